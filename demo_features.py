"""Features of frames for demonstrations: made by playing them again, kept in a file beside each.

demos/<task>.safetensors  ->  demos/features/<encoder>-<frames>/<task>.safetensors

    feature (N, 768) float16     of each row of the episodes that are in it, which may be some of the demonstrations'
    seed, return, rows (E,)      which episodes these are
    header, "newt_features"      version, task, encoder, weights (their fingerprint), frames: full or fast

A seed and its actions give the same episode again, to the last bit of its rewards; where they don't (another version of
a simulator), no feature is kept. Published demonstrations have no seeds: convert.py keeps the features they come with.
Whatever was made before a kill is kept, by the episode.
Test: pytest tests/test_demo_features.py
"""

import functools
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import machine

import numpy as np
import safetensors
from tqdm import tqdm

import demo_format
import envs
from agent_config import FEATURES
from demo_format import Demos
from envs.processes import end_with_parent, light_spawn

FORMAT_VERSION = 1
SAVE_S = 60  # seconds between files of a task that isn't finished


def place(path: Path, features: str) -> Path:
    """Where the features of a file of demonstrations are. features: as in agent_config: encoder, weights, frames."""
    encoder, _, frames = features.split(" ")
    return path.parent / "features" / f"{encoder}-{frames}" / path.name


def save(path: Path, task: str, features: str, demo: Demos, known: dict[int, np.ndarray]) -> None:
    """known: number of an episode -> its feature (T+1, 768) float16."""
    order, (encoder, weights, frames) = sorted(known), features.split(" ")
    arrays = {"feature": np.concatenate([known[e] for e in order]), "seed": demo.seed[order].astype(np.int64),
              "return": demo.ret[order], "rows": np.array([len(known[e]) for e in order])}  # fmt: skip
    meta = {"version": FORMAT_VERSION, "task": task, "encoder": encoder, "weights": weights, "frames": frames}
    demo_format.write(path, arrays, {"newt_features": json.dumps(meta)})


def read(path: Path, task: str, features: str, demo: Demos) -> dict[int, np.ndarray]:
    """Number of an episode of `demo` -> its feature, of those that the file has; empty if there is no file.

    ValueError, one line: damaged, of another task, or features that another encoder or other frames gave.
    """
    if not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, "np") as file:
            meta = json.loads((file.metadata() or {}).get("newt_features", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        found = tuple(meta[name] for name in ("version", "task", "encoder", "weights", "frames"))
        feature, seed, ret, rows = (arrays[name] for name in ("feature", "seed", "return", "rows"))
        sound = feature.dtype == np.float16 and feature.ndim == 2 and feature.shape[1] == FEATURES
        sound &= rows.ndim == 1 and seed.shape == ret.shape == rows.shape and rows.dtype == np.int64
        sound = sound and (rows > 0).all() and rows.max() <= len(feature) == rows.sum() and np.isfinite(feature).all()
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, LookupError,
            AttributeError, RecursionError) as error:  # fmt: skip
        raise ValueError(f"{path} is no complete file of features ({error!s:.200})") from error
    if not sound:
        raise ValueError(f"{path}: arrays of another shape or type than the format's, or numbers that are not finite")
    encoder, weights, frames = features.split(" ")
    same = weights == found[3] or "published" in (weights, found[3])  # of which no fingerprint is known
    if found[:3] + found[4:] != (FORMAT_VERSION, task, encoder, frames) or not same:
        words = " ".join(str(word) for word in found[1:])
        raise ValueError(f"{path} holds features of {words:.120}, needed are {task} {features}; `python demos.py "
                         "features` makes those in a folder without this file")  # fmt: skip
    known, parts = {}, np.split(feature, rows.cumsum()[:-1])
    lengths = np.diff(demo.episode_start)
    for part, *key in zip(parts, seed.tolist(), ret.tolist(), rows.tolist(), strict=True):
        same = (e for e in range(len(demo.ret)) if [int(demo.seed[e]), float(demo.ret[e]), int(lengths[e])] == key)
        e = next((e for e in same if e not in known), None)
        if e is not None:
            known[e] = part
    return known


def load(path: Path, task: str, features: str = "") -> Demos:
    """demo_format.load, with features if any are asked for. ValueError, one line, if some are missing."""
    demo = demo_format.load(path, task)
    if not features:
        return demo
    known = read(place(Path(path), features), task, features, demo)
    missing = len(demo.ret) - len(known)
    if missing:
        folder = Path(path).parent
        raise ValueError(f"{missing} of {len(demo.ret)} demonstrations of {task} in {folder} have no features of "
                         f"{features}: `python demos.py features {folder}` makes them")  # fmt: skip
    return demo._replace(feature=np.concatenate([known[e] for e in range(len(demo.ret))]))


# ---- making them ----


@functools.lru_cache(maxsize=1)
def _environment(task: str, frames: str):
    return envs.make(task, render_mode="rgb_array", frames=frames)


@functools.cache
def _encoder(name: str, weights: Path | None, device: str):
    import vision

    return vision.load(name, weights, device)


def see(task: str, seed: int, demo: Demos, encoder: str, weights: Path | None, frames: str, device: str) -> np.ndarray:
    """The features (T+1, 768) of an episode, played again. ValueError if that gives other rewards or observations."""
    env, eyes = _environment(task, frames), _encoder(encoder, weights, device)
    obs, _ = env.reset(seed=seed)
    out = [eyes(env.render()[None])]
    for t in range(1, len(demo.obs)):
        obs, reward, *_ = env.step(demo.action[t])
        if np.float32(reward) != demo.reward[t] or not np.array_equal(obs, demo.obs[t]):
            raise ValueError(f"step {t} gives another reward or observation than was recorded; make it anew")
        out.append(eyes(env.render()[None]))
    return np.concatenate(out)


def make_all(
    tasks: list[str], folder: Path, features: str, weights: Path | None, workers: int = 0, device: str = "cpu"
) -> dict[str, str]:
    """The features that are missing in a folder of demonstrations, with a bar -> what failed: task -> why.

    features: encoder, fingerprint of its weights, frames. Tasks without a file are left out.
    """
    encoder, _, frames = features.split(" ")
    failed, todo, demos, known = {}, [], {}, {}
    for task in tasks:
        path = demo_format.place(folder, task)
        if path.is_file():
            demos[task] = demo_format.load(path, task)
            known[task] = read(place(path, features), task, features, demos[task])
            lacking = [e for e in range(len(demos[task].ret)) if e not in known[task]]
            if lacking and (demos[task].seed[lacking] < 0).any():
                failed[task] = "it doesn't say its seeds (converted files don't), so it can't be played again"
            else:
                todo += [(task, e) for e in lacking]
    left = {task: sum(one == task for one, _ in todo) for task, _ in todo}
    rows = sum(int(np.diff(demos[task].episode_start)[e]) for task, e in todo)
    saved = dict.fromkeys(left, time.monotonic())

    def write(task: str) -> None:
        if known[task]:
            save(place(demo_format.place(folder, task), features), task, features, demos[task], known[task])
        saved[task] = time.monotonic()

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers or machine.cores(), context, end_with_parent)
    with pool, tqdm(total=rows, desc="features", unit="frame", unit_scale=True, disable=None) as bar:
        try:
            with light_spawn():
                jobs = {}
                for task, e in todo:
                    one = demo_format.episode(demos[task], e)
                    words = (task, int(one.seed[0]), one, encoder, weights, frames, device)
                    jobs[pool.submit(see, *words)] = task, e
            for job in as_completed(jobs):
                task, e = jobs[job]
                left[task] -= 1
                if error := job.exception():
                    failed[task] = f"episode {e}: {' '.join(str(error).split())}"
                else:
                    known[task][e] = job.result()
                    bar.update(len(known[task][e]))
                if not left[task] or time.monotonic() > saved[task] + SAVE_S:
                    write(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():  # in the middle of an episode, which may take a minute
                child.terminate()
            for task in left:
                write(task)
            raise
    return failed
