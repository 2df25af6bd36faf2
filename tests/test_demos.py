"""Demonstrations: what is stored replays exactly, only good attempts are kept, broken files are told from good ones.

Run: pytest tests/test_demos.py                (about a minute on one core)
     pytest tests/test_demos.py -m slow        (an agent's demonstrations)
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import save_file

import demo_format
import demo_maker
import demos
import envs
import experts
import prepare
import recordings
from buffer import Buffer
from envs import metaworld

ROOT = Path(demos.__file__).parent
TASK, EPISODES = "mw-door-open", 5  # its expert always succeeds and, going on, always loses it again
ARRAYS = ("obs", "action", "reward", "episode_start", "return", "success", "score", "seed")


@pytest.fixture(scope="module", autouse=True)
def nothing_recorded(tmp_path_factory):
    """Here experts act; what plays recordings is tested in test_recordings.py. Commands do have the project's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordings, "FOLDER", tmp_path_factory.mktemp("recordings"))
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos") / "new"  # it isn't there yet
    assert demo_maker.make_all([TASK], EPISODES, folder, workers=1) == []
    return folder / f"{TASK}.safetensors"


@pytest.fixture(scope="module")
def demo(path):
    return demo_format.load(path, TASK)


def episodes(demo):
    """(obs, action, reward) of each episode, one row more than it has steps."""
    for first, end in zip(demo.episode_start[:-1], demo.episode_start[1:], strict=True):
        yield demo.obs[first:end], demo.action[first:end], demo.reward[first:end]


def read(path):
    with safetensors.safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["newt_demos"])


def write(path, arrays, meta):
    save_file(arrays, path, {"newt_demos": meta if isinstance(meta, str) else json.dumps(meta)})


# ---- what is stored ----


def test_file_holds_the_arrays_of_the_format(path, demo):
    arrays, meta = read(path)
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in arrays.items():
        assert array.dtype == (np.int64 if name in ("episode_start", "seed") else np.float32), name
    assert len(demo.ret) == EPISODES and len(set(demo.seed.tolist())) == EPISODES
    assert (np.diff(demo.episode_start) == envs.TASKS[TASK].episode_length + 1).all()  # T steps, T + 1 rows
    assert meta["task"] == TASK and meta["tried"] >= EPISODES and {"metaworld", "mujoco"} <= set(meta["packages"])


def test_replaying_the_actions_gives_the_same_episode(demo):
    env = envs.make(TASK, seed=123)
    for e, (obs, action, reward) in enumerate(episodes(demo)):
        got, _ = env.reset(seed=int(demo.seed[e]))
        np.testing.assert_array_equal(got, obs[0])
        assert np.isnan(action[0]).all() and np.isnan(reward[0])
        for t in range(1, len(obs)):
            got, r, _, truncated, info = env.step(action[t])
            np.testing.assert_array_equal(got, obs[t])
            assert np.float32(r) == reward[t]
        assert truncated and info["success"] == demo.success[e] and info["score"] == demo.score[e]
        np.testing.assert_allclose(demo.ret[e], reward[1:].sum(dtype=np.float64), rtol=1e-5)
        assert np.abs(action[1:]).max() <= 1


def test_same_seed_same_episodes_other_seed_other_ones(path, demo, tmp_path):
    demo_maker.make_all([TASK], EPISODES, tmp_path / "again", workers=2)  # more workers change nothing
    again = demo_format.load(tmp_path / "again" / path.name, TASK)
    for one, other in zip(demo[:-2], again[:-2], strict=True):  # all but what is told of them
        np.testing.assert_array_equal(one, other)
    assert {k: v for k, v in demo.meta.items() if "cpu" not in k} == {
        k: v for k, v in again.meta.items() if "cpu" not in k
    }
    demo_maker.make_all([TASK], 1, tmp_path / "other", seed=1, workers=1)
    assert not set(demo_format.load(tmp_path / "other" / path.name, TASK).seed.tolist()) & set(demo.seed.tolist())


# ---- how an attempt goes on after success ----


class Drift(gym.Env):
    """The hand moves by 0.02 x action and is carried along x by 0.004 a step. Success is a window in x."""

    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.hand, self.received = np.zeros(3), []
        return self._result()[0], {"success": 0.0, "score": 0.0}

    def step(self, action):
        assert action.dtype == np.float32 and action.shape == (4,) and (np.abs(action) <= 1).all()
        self.received.append(action.copy())
        self.hand = self.hand + 0.02 * action[:3] + [0.004, 0, 0]
        return self._result()

    def _result(self):
        obs = np.append(self.hand, 7).astype(np.float32)
        success = inside(obs)
        return obs, float(self.hand[0]), False, len(self.received) == 24, {"success": success, "score": success}


class Rush:
    """Asks for more than the action's range allows, and for another gripper effort at every place."""

    def get_action(self, obs):
        return np.array([3.0, -3.0, 0.25, obs[0]])


def inside(obs):
    return float(0.09 <= obs[0] <= 0.13)


@pytest.mark.parametrize("way", ["continue", "zero", "position", "repeat", "while"])
def test_way_by_definition(way, monkeypatch, tmp_path):
    import metaworld.policies

    env = Drift()
    env.name = TASK
    monkeypatch.setitem(metaworld.policies.ENV_POLICY_MAP, "door-open-v3", Rush)
    monkeypatch.setattr(experts, "_environment", lambda task: env)
    number = metaworld_ways().index(way) + 10  # in the third round, which is without noise like the first
    experts.attempt(origin(TASK, "script"), number, tmp_path / "x.safetensors")
    arrays, meta = read(tmp_path / "x.safetensors")
    obs, action, reward = arrays["obs"], arrays["action"], arrays["reward"]
    np.testing.assert_array_equal(action[1:], env.received)
    assert obs.shape == (25, 4) and np.isnan(action[0]).all() and np.isnan(reward[0])
    assert meta["numbers"] == [number] and arrays["success"].tolist() == [inside(obs[-1])]
    np.testing.assert_allclose(reward[1:], obs[1:, 0], rtol=1e-6)  # of the step that led to the row
    first = next(t for t in range(25) if inside(obs[t]))
    assert first == 4
    for t in range(1, 25):
        expert = np.clip(Rush().get_action(obs[t - 1].astype(np.float64)), -1, 1)
        gripper = action[first, 3]
        still = np.array([0, 0, 0, gripper])
        after = {
            "continue": expert,
            "zero": still,
            "position": np.append(np.clip(10 * (obs[first, :3] - obs[t - 1, :3]), -1, 1), gripper),
            "repeat": action[t - 1],
            "while": still if inside(obs[t - 1]) else expert,
        }[way]
        np.testing.assert_allclose(action[t], expert if t <= first else after, atol=1e-6, err_msg=f"step {t}")
    assert arrays["success"][0] == (way == "position")  # the only one that stands up to the drift


def metaworld_ways():
    assert sorted(metaworld.WAYS) == ["continue", "position", "repeat", "while", "zero"]
    return metaworld.WAYS


# ---- which attempts are accepted ----


def tried(*rows):
    """Attempts from (number, return, score)."""
    rows_of_nothing, start = np.zeros((3, 1), np.float32), np.array([0, 3])

    def one(number, *ends):
        arrays = (np.array([x], np.float32) for x in ends)
        meta = {"numbers": [number], "cpu_seconds": [1.0]}
        return demo_format.Demos(rows_of_nothing, rows_of_nothing, rows_of_nothing[:, 0], start, *arrays, meta)

    return [one(number, ret, score, score, 0) for number, ret, score in rows]


def accepted(*rows, episodes=99, ways=1):
    return [one.meta["numbers"][0] for one in demo_maker.accept(tried(*rows), episodes, ways)]


def test_accept_by_hand():
    rows = [(0, 100, 1), (1, 75, 1), (2, 76, 1), (3, 200, 0), (4, 101, 1), (5, 120, 1)]
    assert accepted(*rows) == [0, 2, 4, 5]  # median of the good ones 100: 75 isn't above 0.75 of it; a failure is out
    assert accepted(*rows, episodes=3) == [0, 2, 4]  # the first ones, not the best ones
    assert accepted((0, -100, 1), (1, -124, 1), (2, -126, 1), (3, -90, 1), (4, -100, 1)) == [0, 1, 3, 4]  # 1.25 x -100
    assert accepted((0, 5, 0.29), (1, 5, 0.31)) == [1]  # the floor, 0.3
    assert accepted((0, 5, 0.2)) == []
    assert accepted((0, 0, 1), (1, -1, 0.9), (2, 0, 1)) == [0, 2]  # coconut-dodge: nothing is better than 0


def test_the_bar_is_that_of_the_best_way():
    zero = [(5 * k, r, s) for k, (r, s) in enumerate([(100, 1), (75, 1), (76, 1), (200, 0), (101, 1), (120, 1)])]
    assert accepted(*zero, ways=5) == [0, 10, 20, 25]
    assert accepted(*zero, *[(5 * k + 1, 50, 1) for k in range(6)], ways=5) == [0, 10, 20, 25]  # not that of all
    assert accepted(*zero, *[(5 * k + 2, 160, 1) for k in range(3)], ways=5) == [
        2,
        7,
        12,
    ]  # 0.75 x 160 = 120, not above
    many = [(5 * k, 100, 1) for k in range(40)]
    assert len(accepted(*many, (3, 900, 1), ways=5)) == 41  # one lucky attempt of a way does not set the bar


def test_disturbed_attempts_are_compared_with_each_other():
    """Even ones: median 100, bar 75. Odd ones: median 40, bar 30: who comes back late is wanted."""
    own = [(0, 100, 1), (2, 74, 1), (4, 100, 1)]
    noisy = [(1, 40, 1), (3, 31, 1), (5, 29, 1), (7, 44, 1), (9, 41, 1), (11, 39, 0.1)]
    rows = tried(*sorted(own + noisy))
    kept = demo_maker.accept(rows, 99, 1, lambda number: number % 2 == 1)
    assert [one.meta["numbers"][0] for one in kept] == [0, 1, 3, 4, 7, 9]
    assert accepted((0, 100, 1), (1, 40, 1), (2, 100, 1)) == [0, 2]  # plans and searches have no noise


def work(source, episodes, folder, *rows):
    task = {"script": "pygame-cowboy", "plan": "walker-walk"}[source]
    job = demo_maker.Work(task, source, episodes, folder, 0, None)
    job.tried = {one.meta["numbers"][0]: one for one in tried(*rows)}
    job.judge()
    return job


def test_attempts_are_judged_in_order(tmp_path):
    good = [(n, 10, 1) for n in range(9)]
    assert not work("script", 2, tmp_path, *good[:3]).finished  # twice as many as wanted come first
    job = work("script", 2, tmp_path, *good[:4])
    assert job.finished and [one.meta["numbers"] for one in job.kept] == [[0], [1]] and job.next() is None
    assert not work("script", 2, tmp_path, *good[1:]).finished  # number 0 is still running: it comes first
    assert work("plan", 2, tmp_path, *good[:2]).finished  # dear ones are not made twice
    bad = work("plan", 3, tmp_path, (0, 10, 1), (1, 10, 0.1), (2, 10, 1))
    assert not bad.finished and bad.next() == 3
    bad.running.add(3)
    assert bad.next() is None  # one is missing, and one is on its way
    assert work("plan", 3, tmp_path, *[(n, 10, 0.1) for n in range(3)]).finished  # hopeless
    assert not work("script", 3, tmp_path, *[(n, 10, 0.1) for n in range(6)]).finished  # cheap: it goes on trying
    late = work("plan", 3, tmp_path, *good[:2])
    late.deadline = time.monotonic() - 1
    assert late.next() is None and not late.finished


def test_nothing_good_nothing_saved(tmp_path):
    job = work("plan", 2, tmp_path, (0, 10, 0.1), (1, 10, 0.2))
    line = job.close()
    assert "walker-walk: 0 of 2 attempts kept" in line and "0.20" in line and not list(tmp_path.iterdir())


# ---- sources ----


def test_sources():
    assert experts.source_of("mw-reach") == "script" and experts.source_of("walker-walk") == "plan"
    assert experts.source_of("atari-pong") == "search" and experts.source_of("mw-reach", "plan") is None
    assert experts.source_of("walker-walk", "agent") == "agent" and experts.source_of("gym:Pendulum-v1") is None
    none = [name for name in envs.select("all") if experts.source_of(name) is None]
    assert none == ["ms-ant-walk", "ms-ant-run", "ms-hopper-stand", "ms-hopper-hop"]


ONE_EACH = ["pygame-cowboy", "og-point-arena", "mujoco-inverted-pendulum", "mujoco-reacher"]


@pytest.mark.parametrize("task", ONE_EACH)
def test_attempt_replays_exactly_in_a_fresh_environment(task, tmp_path):
    experts.attempt(origin(task, experts.source_of(task)), 3, tmp_path / "x.safetensors")
    demo, env = demo_format.load(tmp_path / "x.safetensors", task), envs.make(task, seed=9)
    env.reset(seed=int(demo.seed[0]))
    for t in range(1, len(demo.obs)):
        obs, reward, _, _, info = env.step(demo.action[t])
        np.testing.assert_array_equal(obs, demo.obs[t], err_msg=f"step {t}")
        assert np.float32(reward) == demo.reward[t]
    assert np.float32(info["score"]) == demo.score[0] and demo.score[0] >= 0.5


@pytest.mark.slow
def test_an_agent_demonstrates(tmp_path):
    import torch

    import agent_file
    import newt

    cfg = newt.Config(size="XS", task_dim=0, num_samples=16, num_elites=4, num_pi=4, iterations=1)
    agent = newt.create(cfg, ["pygame-cowboy"], torch.zeros(1, 0), [1], [0.99])
    ckpt = tmp_path / "a.safetensors"
    agent_file.save(ckpt, agent, 0)
    experts.attempt(origin("pygame-cowboy", "agent", ckpt), 0, tmp_path / "x.safetensors", ckpt)
    demo = demo_format.load(tmp_path / "x.safetensors", "pygame-cowboy")
    assert len(demo.obs) == 501 and demo.meta["source"] == "agent" and demo.action[1:].std() > 0


# ---- broken files ----


def set_at(name, index, value):
    def change(arrays, meta):
        arrays[name][index] = value

    return change


def replace(name, function):
    def change(arrays, meta):
        arrays[name] = function(arrays[name])

    return change


BROKEN = {
    "obs of another width": replace("obs", lambda x: x[:, :-1].copy()),
    "action of another width": replace("action", lambda x: np.concatenate([x, x], 1)),
    "reward too short": replace("reward", lambda x: x[:-1].copy()),
    "reward as a column": replace("reward", lambda x: x[:, None].copy()),
    "obs without rows": replace("obs", lambda x: np.zeros((), np.float32)),
    "a return too few": replace("return", lambda x: x[:-1].copy()),
    "a seed too many": replace("seed", lambda x: np.append(x, 1)),
    "float64": replace("obs", lambda x: x.astype(np.float64)),
    "offsets as floats": replace("episode_start", lambda x: x.astype(np.float32)),
    "offsets start late": set_at("episode_start", 0, 1),
    "offsets end early": set_at("episode_start", -1, 400),
    "offsets go back": set_at("episode_start", 2, 50),
    "offsets as a table": replace("episode_start", lambda x: x[:, None].copy()),
    "no episode": replace("episode_start", lambda x: x[:1].copy()),
    "NaN observed": set_at("obs", (7, 0), np.nan),
    "infinite observation": set_at("obs", (7, 0), np.inf),
    "NaN action": set_at("action", (7, 0), np.nan),
    "NaN reward": set_at("reward", 7, np.nan),
    "an action of 5": set_at("action", (7, 0), 5),
    "an action below -1": set_at("action", (7, 0), -1.01),
    "a return that is none": set_at("return", 0, np.nan),
    "offsets that wrap around": replace(
        "episode_start", lambda x: np.array([0, 2**62 + 1, -(2**62) - 1, x[-1]])[[0, 1, 2, 3][: len(x)]]
    ),
    "infinite reward": set_at("reward", 7, np.inf),
    "an action in a first row": set_at("action", (101, 0), 0.5),
    "a reward in a first row": set_at("reward", 101, 0.5),
    "an array missing": lambda arrays, meta: arrays.pop("seed"),
    "another version": lambda arrays, meta: meta.update(version=99),
    "another task": lambda arrays, meta: meta.update(task="mw-door-close"),
}


def check_refused(path, task, *words):
    """load raises one line that names the file."""
    with pytest.raises(ValueError) as error:
        demo_format.load(path, task)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and len(message) < 400, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_refused(path, tmp_path, change):
    arrays, meta = read(path)
    broken = tmp_path / path.name
    write(broken, arrays, meta)
    demo_format.load(broken, TASK)  # a faithful copy is fine
    change(arrays, meta)
    write(broken, arrays, meta)
    check_refused(broken, TASK, TASK)


def test_other_files_are_refused(path, tmp_path):
    arrays, meta = read(path)
    data, other = path.read_bytes(), tmp_path / path.name
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        other.write_bytes(data[:size])
        check_refused(other, TASK)
    other.write_bytes(b"not a safetensors file at all" * 100)
    check_refused(other, TASK)
    save_file(arrays, other)  # no header
    check_refused(other, TASK)
    for text in ("not JSON", "[1]", "null", '"text"'):
        write(other, arrays, text)
        check_refused(other, TASK)
    check_refused(path, "mw-door-close", TASK, "mw-door-close")
    check_refused(path, "mw-nothing", "mw-nothing")
    with pytest.raises(FileNotFoundError, match="mw-reach"):
        demo_format.load(tmp_path / "none.safetensors", "mw-reach")


# ---- the folder ----


def stamp(file):
    return file.stat().st_mtime_ns, file.stat().st_ino


def origin(task, source, ckpt=None):
    return experts.provenance(task, source, experts.settings_of(task, source, ckpt), 0)


def names(folder):
    """Files in a folder and its folders; nothing but these may be left, so no temporary file either."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_make_all_makes_what_is_missing_and_keeps_the_rest(tmp_path):
    demo_maker.make_all(["mw-reach", TASK], 2, tmp_path, workers=2)
    assert names(tmp_path) == [f"{TASK}.safetensors", "mw-reach.safetensors"]
    files = sorted(tmp_path.glob("*.safetensors"))
    before = [stamp(file) for file in files]
    demo_maker.make_all([TASK], 1, tmp_path)  # more than enough
    demo_maker.make_all(["mw-reach", TASK], 2, tmp_path, seed=9)
    assert [stamp(file) for file in files] == before
    two = demo_format.load(files[0], TASK)
    demo_maker.make_all([TASK], 3, tmp_path, workers=1)  # too few
    three = demo_format.load(files[0], TASK)
    assert len(three.ret) == 3 and stamp(files[1]) == before[1]
    assert three.meta["cpu_seconds"][:2] == two.meta["cpu_seconds"]  # to the hundredth: they were not made again
    np.testing.assert_array_equal(three.obs[: len(two.obs)], two.obs)


def test_converted_files_are_never_replaced(demo, path, tmp_path):
    meta = {"version": 1, "task": TASK, "source": "converted"}
    demo_format.save(tmp_path / path.name, demo_format.episode(demo, 0)._replace(meta=meta))
    before = stamp(tmp_path / path.name)
    assert demo_maker.make_all([TASK], 3, tmp_path, workers=1) == []
    assert stamp(tmp_path / path.name) == before and names(tmp_path) == [path.name]


def test_failed_write_leaves_the_old_file_and_no_other(path, demo, tmp_path, monkeypatch):
    target = tmp_path / path.name
    demo_format.save(target, demo)
    before = target.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    for module, name in ((os, "fsync"), (os, "replace"), (demo_format, "save_file")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space"):
                demo_format.save(target, demo_format.episode(demo, 0))
        assert list(tmp_path.iterdir()) == [target] and target.read_bytes() == before


def test_four_programs_write_one_file(path, demo, tmp_path):
    """Each time it is a whole file of one of them, which others may read as umask says; nothing else is left."""
    program = (
        "import sys, demo_format; from pathlib import Path; path = Path(sys.argv[2])\n"
        f"demo = demo_format.load(Path(sys.argv[1]), {TASK!r})\n"
        "for _ in range(60): demo_format.save(path, demo); demo_format.load(path, demo.meta['task'])"
    )
    words = [sys.executable, "-c", program, str(path), str(tmp_path / path.name)]
    started = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    (tmp_path / "plain").touch()
    assert set(names(tmp_path)) == {"plain", path.name}
    assert (tmp_path / path.name).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("words", [["--source", "script", "--seed", "1"], []], ids=["script", "recording"])
def test_kill_9_and_again_makes_nothing_twice(tmp_path, words):
    """Killed with all its processes after every few attempts; at the end the file is that of an undisturbed run."""
    task, command = "pygame-coinrun", [sys.executable, str(ROOT / "demos.py"), "make", "--episodes", "12", *words]
    command += ["--tasks", "pygame-coinrun", "--workers", "2", "--out"]
    seen: dict[str, tuple] = {}
    for goal in (3, 9, 15) if words else (2, 5, 8):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=tmp_path, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 60
        attempts = tmp_path / "killed" / "attempts" / task
        while len(list(attempts.glob("*.safetensors"))) < goal:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {file.name: stamp(file) for file in attempts.glob("*.safetensors")}
        assert seen.items() <= now.items()  # what was there was not written again
        for name in now:
            demo_format.load(attempts / name, task)  # and is whole
        seen = now
    for folder in ("killed", "whole"):
        done = subprocess.run(
            [*command, str(tmp_path / folder)], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert names(tmp_path / folder) == [f"{task}.safetensors"]
    killed, whole = (
        demo_format.load(tmp_path / folder / f"{task}.safetensors", task) for folder in ("killed", "whole")
    )
    for one, other in zip(killed[:-2], whole[:-2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_time_limit_saves_a_partial_set_and_the_next_run_goes_on(tmp_path):
    task = "pygame-coinrun"
    demo_maker.make_all([task], 6, tmp_path, workers=1, minutes=1e-9)
    left = names(tmp_path)
    assert 1 <= len(left) <= 2 and left[0] == f"attempts/{task}/0000.safetensors"
    demo_maker.make_all([task], 6, tmp_path, workers=1)
    assert (
        names(tmp_path) == [f"{task}.safetensors"]
        and len(demo_format.load(tmp_path / f"{task}.safetensors", task).ret) == 6
    )


# ---- the command line ----


def run(*words, cwd=ROOT):
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "demos.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environ, timeout=120)


def test_command_line(tmp_path):
    done = run("make", "--tasks", f"mw-reach,{TASK}", "--episodes", "2", "--out", "d", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("list", "d", "--csv", "d.csv", cwd=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not done.stderr and [line[0] for line in lines[1:3]] == [TASK, "mw-reach"]
    assert lines[4][:5] == ["metaworld", "2", "4", "1.00", "2"] and "walker-walk" in lines[5] + done.stdout.split(", ")
    assert "2 tasks" in done.stdout and len(lines) == 6
    with open(tmp_path / "d.csv") as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*envs.select("all"), "mw-reach", TASK}  # also those that there is nothing of
    assert (rows["walker-walk"]["kept"], rows["walker-walk"]["tried"]) == ("0", "0")
    for name, episodes, ret, success, score, source, count, _ in lines[1:3]:
        demo = demo_format.load(tmp_path / "d" / f"{name}.safetensors", name)
        assert (episodes, success, score, source) == ("2", "1.00", "1.00", "script") and int(count) == demo.meta[
            "tried"
        ]
        assert abs(float(ret) - demo.ret.mean()) <= 0.051
        assert rows[name]["kept"] == "2" and abs(float(rows[name]["return"]) - demo.ret.mean()) < 1e-3


def test_check_plays_them_again(path, demo, tmp_path):
    (tmp_path / path.name).write_bytes(path.read_bytes())
    done = run("check", tmp_path, "--workers", "1")
    assert done.returncode == 0 and "1 tasks played again, 0 differ" in done.stdout, done.stderr
    reward = demo.reward.copy()
    reward[7] = np.nextafter(reward[7], np.inf)  # the smallest difference that there is
    demo_format.save(tmp_path / path.name, demo._replace(reward=reward))
    done = run("check", tmp_path, "--workers", "1")
    assert done.returncode == 1 and f"{TASK}: step 7" in done.stdout and "1 differ" in done.stdout


def test_film(tmp_path):
    demo_maker.make_all(["pygame-landing"], 1, tmp_path, workers=1)
    done = run("play", tmp_path / "pygame-landing.safetensors", "--out", tmp_path / "x.mp4")
    assert done.returncode == 0 and (tmp_path / "x.mp4").stat().st_size > 5000, done.stderr
    score = demo_format.load(tmp_path / "pygame-landing.safetensors", "pygame-landing").score[0]
    assert f"score {score:.3f}" in done.stdout and "recorded" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("make --tasks mw-reech", "mw-reach"),  # a close name
        ("make --tasks ms-ant-walk", "ms-ant-walk"),
        ("make --tasks mw-reach --source plan", "mw-reach"),
        ("make --tasks mw-reach --source agent", "--ckpt"),
        ("make --tasks mw-reach --minutes-per-task -1", "minutes"),
        ("make --tasks mw-reach --episodes 0", "episodes"),
        (f"make --tasks {TASK} --out broken", f"{TASK}.safetensors"),
        ("make --tasks mw-reach --out afile", "mw-reach"),
        ("play nowhere.safetensors", "nowhere"),
        ("list nowhere", "nowhere"),
        ("list broken", f"{TASK}.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, said):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{TASK}.safetensors").write_bytes(b"precious")
    (tmp_path / "afile").write_text("precious")
    done = run(*words.split(), cwd=tmp_path)
    message = [
        line for line in done.stderr.split("\n") if line.strip() and not line.strip("\r").startswith("metaworld:")
    ]
    assert done.returncode == 2 and len(message) == 1 and said in message[0], done.stderr
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == ["afile", "broken", f"broken/{TASK}.safetensors"]  # nothing else was written
    assert (tmp_path / "afile").read_text() == (tmp_path / "broken" / f"{TASK}.safetensors").read_text() == "precious"


# ---- tasks and players of one's own ----

MINE = """
import gymnasium as gym
import numpy as np


def player(env, obs, number):  # to the middle, and there it stays
    while True:
        obs, info = yield np.clip(-2 * obs[:1], -1, 1)


class Slide(gym.Env):
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
    episode_length = 12

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return np.array([self.x, 0], np.float32), {}

    def step(self, action):
        self.x += 0.3 * float(action[0])
        return np.array([self.x, action[0]], np.float32), -abs(self.x), False, False, {}


def slide(render_mode=None):
    return Slide()
"""


def test_own_tasks_and_own_players(tmp_path):
    """A task without success, by a player of one's own: made, listed, checked; a seed doesn't depend on look-ups."""
    (tmp_path / "mine.py").write_text(MINE)
    for folder, tasks in (("a", "mine:slide"), ("b", "gym:Pendulum-v1,mine:slide")):
        words = ("--tasks", tasks, "--source", "mine:player", "--episodes", "2", "--out", folder, "--workers", "1")
        done = run("make", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert names(tmp_path / "a") == ["mine=slide.safetensors"]
    demo, other = (demo_format.load(tmp_path / x / "mine=slide.safetensors", "mine:slide") for x in "ab")
    np.testing.assert_array_equal(demo.obs, other.obs)
    assert len(demo.ret) == 2 and len(demo.obs) == 26 and demo.meta["source"] == "mine:player"
    assert np.isnan(demo.score).all() and np.isnan(demo.success).all()
    assert demo.ret.min() > -4  # it does go to the middle
    done = run("list", "a", cwd=tmp_path)
    words = done.stdout.splitlines()[1].split()
    assert done.returncode == 0 and words[:2] == ["mine:slide", "2"] and words[3:6] == ["-", "-", "mine:player"]
    done = run("check", "a", "--workers", "1", "--tasks", "mine:slide", cwd=tmp_path)
    assert done.returncode == 0 and "1 tasks played again, 0 differ" in done.stdout, done.stderr + done.stdout


def test_files_of_own_tasks_run_nothing_unasked(tmp_path):
    (tmp_path / "trap.py").write_text("open('sprung', 'w').write('')\n" + MINE)
    one = demo_format.from_arrays("trap:slide", np.zeros((13, 2)), np.zeros((12, 1)), np.ones(12))
    demo_format.save(demo_format.place(tmp_path / "d", "trap:slide"), one)
    done = run("list", "d", cwd=tmp_path)
    assert done.returncode == 0 and "trap:slide" in done.stdout, done.stderr
    done = run("check", "d", "--workers", "1", cwd=tmp_path)
    assert "trap:slide" in done.stdout and "0 tasks played again" in done.stdout, done.stderr
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--source mine:nothing", "mine:nothing"),
        ("--source nothing:player", "nothing"),
        ("--source scripts", "module:function"),
    ],
)
def test_a_player_that_cannot_be_had(tmp_path, words, said):
    (tmp_path / "mine.py").write_text(MINE)
    done = run("make", "--tasks", "mine:slide", *words.split(), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
    assert names(tmp_path) == ["mine.py"] or not list(tmp_path.glob("demos"))


def test_a_demonstration_is_as_long_as_its_episode(tmp_path):
    """And says whether that was the end of everything, from the attempt to replay."""

    def still(env, obs, number):
        while True:
            yield np.zeros(1)

    for name, steps, terminated in (("dies", 7, True), ("cut", 5, False)):
        task = f"my_envs:{name}"
        one = experts.play(envs.make(task), still, 3, 0)
        meta = {"version": 1, "task": task, "source": "script", **one.meta}
        demo_format.save(demo_format.place(tmp_path, task), one._replace(meta=meta))
        demo, replay = demo_format.load(demo_format.place(tmp_path, task), task), Buffer(50, 8, 4)
        assert demo.episode_start.tolist() == [0, steps + 1] and demo.terminated == [terminated]
        prepare.fill(replay, {task: demo}, [task], 9)
        assert replay.steps == steps
        batch = replay.sample(99, 3, torch.Generator().manual_seed(0))
        assert bool(batch.terminated.any()) == terminated
        meta["terminated"] = [1]
        demo_format.save(tmp_path / "broken.safetensors", one._replace(meta=meta))
        with pytest.raises(ValueError, match="list of true and false"):
            demo_format.load(tmp_path / "broken.safetensors", task)
        del envs.TASKS[task]


def test_own_arrays_by_the_ten_lines(tmp_path):
    """The lines in demo_format.py's head, and what they refuse."""
    rng = np.random.default_rng(0)
    mine = [(rng.standard_normal((n + 1, 3)), rng.uniform(-1, 1, (n, 1)), rng.standard_normal(n)) for n in (5, 7)]
    episodes = [demo_format.from_arrays("gym:Pendulum-v1", *one, terminated=i == 1) for i, one in enumerate(mine)]
    demo = demo_format.join(episodes, episodes[0].meta)
    demo_format.save(demo_format.place(tmp_path, "gym:Pendulum-v1"), demo)
    demo = demo_format.load(tmp_path / "gym=Pendulum-v1.safetensors", "gym:Pendulum-v1")
    assert demo.episode_start.tolist() == [0, 6, 14] and demo.terminated == [False, True]
    np.testing.assert_array_equal(demo.obs[6:], mine[1][0].astype(np.float32))
    np.testing.assert_array_equal(demo.action[7:], mine[1][1].astype(np.float32))
    np.testing.assert_allclose(demo.ret, [one[2].sum() for one in mine], rtol=1e-5)
    assert np.isnan(demo.action[[0, 6]]).all() and np.isnan(demo.reward[[0, 6]]).all()
    obs, action, reward = mine[0]
    for wrong in ((obs[:-1], action, reward), (obs, action[:, 0], reward), (obs, action, reward[:-1]),
                  (obs, 2 + action, reward)):  # fmt: skip
        with pytest.raises(ValueError, match="Pendulum"):
            demo_format.from_arrays("gym:Pendulum-v1", *wrong)
    with pytest.raises(ValueError, match="mw-reach"):
        demo_format.from_arrays("mw-reach", *mine[0])


def test_metadata_that_lacks_fields_is_one_line(demo, tmp_path, capsys):
    path = tmp_path / f"{TASK}.safetensors"
    for name in demo.meta:
        demo_format.save(path, demo._replace(meta={k: v for k, v in demo.meta.items() if k != name}))
        if name in ("version", "task", "source"):
            with pytest.raises(ValueError, match=f"^{path} [^\n]*$"):
                demos.main_list(demos.List(tmp_path))
        else:  # files of other programs have no more than these
            demos.main_list(demos.List(tmp_path))
    for name in ("numbers", "cpu_seconds"):
        for nonsense in (None, 3, "two", [], [0] * (EPISODES + 1), ["0"] * EPISODES):
            demo_format.save(path, demo._replace(meta={**demo.meta, name: nonsense}))
            with pytest.raises(ValueError, match=f"^{path}: {name} in its header [^\n]*$"):
                demo_format.load(path, TASK)
