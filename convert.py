"""Published files (PyTorch pickles) -> files of this project (safetensors).

    python convert.py checkpoint soup-L.pt soup-L.safetensors      then eval.py --ckpt, train.py --ckpt
    python convert.py checkpoint run7.pt out.safetensors --tasks walker-walk
    python convert.py demos DIR OUT                                then train.py --demos OUT

A pickle is a program. torch_file.py reads these without running them: tensors, containers and numbers, nothing larger
than the file; for demonstrations also the names in TENSORDICT, as classes of this file that only keep what they are
given, so the package tensordict isn't needed. A file that asks for anything else is refused by that name.

Checkpoint: {"model", "scale", "optim", "pi_optim"} or the model's tensors alone, each name with or without "module.":

    _encoder.state.i.*   _dynamics.i.*   _reward.i.*   _pi.i.*    ->  encoder.i.*   dynamics.i.*   reward.i.*   pi.i.*
    _Qs.online._Qs.k.i.*   _Qs.target._Qs.k.i.*                   ->  q.i.*   q_target.i.*, stacked over k
    _task_emb.weight (S, 512)   _action_masks (S, A)   log_std_min   log_std_dif

Sizes follow from the shapes. Not in such a file, and not recovered: names of the tasks (taken from --tasks; else the
file's name if that is a task; else the set, "all" or a suite, whose action dims are the file's; what has equal dims
can't be told apart), sentences behind the embeddings (of CLIP: language.py can't make more for other tasks), training
steps, the settings it was trained with, and 1 for "scale" where that is missing. Optimisers are left behind. An encoder
that also reads image features has them last, [obs, e, feature]; here they come before e. Such an agent sees with DINOv2
(--image-weights of eval.py and train.py); where those columns are all zeros it never did, and becomes one of states.

Demonstrations: DIR/<task>.pt, each a TensorDict with obs (N, 128), action (N, 16), reward (N,), episode (N,), and maybe
feat (N, 768), DINOv2's features of the frames, which are kept (demo_features.py); more arrays are left behind. Rows are
those of demos.py, padded with zeros. Not recovered: seeds (-1: they can't be played again), and success, and the score
where it is success (NaN). All episodes are kept; the published runs used 20 of each ManiSkill task, all of the others:
--demo-episodes 20.
Test: pytest tests/test_convert.py
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import machine  # noqa: F401  refuses a Python that lacks the packages below

import numpy as np
import safetensors
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import agent_file
import command
import demo_features
import demo_format
import envs
import newt
import torch_file
import world_model as wm
from agent_config import FEATURES

PARTS = {"_encoder.state": "encoder", "_dynamics": "dynamics", "_reward": "reward", "_pi": "pi"}
QS = {"_Qs.online._Qs": "q", "_Qs.target._Qs": "q_target"}
CONSTANTS = {"log_std_min": wm.LOG_STD_MIN, "log_std_dif": wm.LOG_STD_MAX - wm.LOG_STD_MIN}
SEES = {"obs": "state+rgb", "image_encoder": "dinov2", "image_hash": "published", "frames": "full"}
PUBLISHED = newt.Config(**SEES).features  # of demonstrations, too


class TensorDict:
    """In the place of tensordict's class: keeps the state that it is given."""

    state: dict = {}


def make_tensordict(cls, state) -> TensorDict:
    made = TensorDict()
    made.state = state
    return made


# Name in the pickle -> what is called instead. Versions 0.7 to 0.15 write a call of the second, with the first.
TENSORDICT = {"tensordict._td.TensorDict": TensorDict, "tensordict._reductions._make_td": make_tensordict}


# ---------------------------------------------------------------- checkpoints


def rename(state: dict[str, Tensor]) -> tuple[wm.Params, dict[str, Tensor]]:
    """Published names -> our parameters, and the tables _task_emb.weight and _action_masks. ValueError: other names."""
    params, heads, tables, unknown = {}, defaultdict(dict), {}, []
    for name, value in state.items():
        name = str(name).removeprefix("module.")
        part, _, rest = re.sub(r"\.(?=\d+\.)", " ", name, count=1).partition(" ")  # "_pi.0.weight": "_pi", "0.weight"
        if not isinstance(value, Tensor):
            unknown.append(name)
        elif part in PARTS:
            params[f"{PARTS[part]}.{rest}"] = value.float()
        elif part in QS:
            head, _, rest = rest.partition(".")
            heads[f"{QS[part]}.{rest}"][int(head)] = value.float()
        elif name in ("_task_emb.weight", "_action_masks"):
            tables[name] = value.float()
        elif name not in CONSTANTS:
            unknown.append(name)
        elif value.numel() != 1 or float(value) != CONSTANTS[name]:
            found = float(value) if value.numel() == 1 else f"of shape {tuple(value.shape)}"
            raise ValueError(f"{name} is {found}, this program's is {CONSTANTS[name]}")
    if unknown or not params:
        names = ", ".join(unknown[:3]) or "there are none"
        raise ValueError(f"not the tensors of a published agent: {names:.200}")
    # A head that is missing leaves a stack of another shape, or none: `fit` finds it.
    stacked = {name: torch.stack([q[k] for k in sorted(q)]) for name, q in heads.items()}
    return params | stacked, tables


def fit(params: wm.Params) -> tuple[newt.Config, wm.Params]:
    """Settings with the sizes that the shapes have, and the parameters, with the encoder's columns in our order.

    Everything but sizes is the published default. ValueError, one line: a size that this program lacks, or tensors
    that are missing, too many, or of other shapes.
    """
    try:
        shape = {name: tuple(value.shape) for name, value in params.items()}
        (mlp_dim, inputs), (latent_dim, _) = shape["dynamics.0.weight"], shape["dynamics.2.weight"]
        action_dim, num_bins = shape["pi.2.weight"][0] // 2, shape["reward.2.weight"][0]
        (enc_dim, obs_dim), (num_q, *_) = shape["encoder.0.weight"], shape["q.0.weight"]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"not the tensors of a published agent ({error})") from error
    layers = sum(re.fullmatch(r"encoder\.\d+\.weight", name) is not None for name in params)
    size = wm.Size(enc_dim, mlp_dim, latent_dim, layers, num_q)
    names = [name for name, known in wm.SIZES.items() if known == size]
    if not names:
        raise ValueError(f"{size} is no size that this program has ({', '.join(wm.SIZES)})")
    task_dim = inputs - latent_dim - action_dim  # of [z, e, a]
    obs_dim, sees = obs_dim - task_dim, {}  # of [obs, e]
    if obs_dim > FEATURES and min(task_dim, action_dim) >= 0:  # of [obs, e, feature]
        obs_dim -= FEATURES
        obs, emb, feature = params["encoder.0.weight"].split([obs_dim, task_dim, FEATURES], 1)
        sees = SEES if feature.any() else {}
        params = params | {"encoder.0.weight": torch.cat([obs, feature, emb] if sees else [obs, emb], 1)}
    cfg = newt.Config(
        size=names[0], obs_dim=obs_dim, action_dim=action_dim, task_dim=task_dim, num_bins=num_bins, **sees
    )
    newt.check(cfg)
    if wrong := agent_file.misfits(cfg, params):
        raise ValueError(f"tensors that are missing, too many, or of another shape: {', '.join(wrong[:3]):.200}")
    if not all(value.isfinite().all() for value in params.values()):
        raise ValueError("numbers that are not finite")
    return cfg, params


def task_names(asked: str, stem: str, mask: Tensor | None, rows: int) -> list[str]:
    """Which tasks a checkpoint's tables have as rows; mask (rows, A). ValueError, one line: unclear or impossible."""

    def dims(tasks: list[str]) -> list[int]:
        return [envs.TASKS[name].action_dim for name in tasks]

    given = None if mask is None else mask.sum(1).int().tolist()
    if asked or (rows == 1 and stem in envs.TASKS):
        tasks = envs.select(asked or stem)
    else:
        sets = [envs.select(name) for name in ("all", *envs.MAKERS)]
        same = [tasks for tasks in sets if len(tasks) == rows and given in (None, dims(tasks))]
        if len(same) != 1:
            raise ValueError(f"which {rows} tasks it knows is not written in it; name them in its order with --tasks")
        tasks = same[0]
    if len(tasks) != rows:
        raise ValueError(f"it knows {rows} tasks, but --tasks names {len(tasks)}")
    for name, wanted, row in zip(tasks, dims(tasks), given or (), strict=given is not None):
        if row != wanted:
            raise ValueError(f"it has {row} action dims where {name} has {wanted}: other tasks, or another order")
    return tasks


def read_embeddings(path: Path) -> Tensor:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.get_tensor("task_emb").float()
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no safetensors file with a tensor task_emb ({error!s:.200})") from error


def read_scale(scale) -> float:
    """The running range of Q: a number, or the state of what computes it, with "value" among its names."""
    if isinstance(scale, dict):
        scale = next((value for name, value in scale.items() if str(name).strip("_") == "value"), None)
    if not isinstance(scale, (int, float, Tensor, type(None))):
        raise ValueError(f"scale is no number, but {type(scale).__name__}")
    return 1.0 if scale is None else float(scale)


def checkpoint(path: Path, tasks: str = "", embeddings: Path | None = None) -> newt.Agent:
    """The agent of a published file. FileNotFoundError or ValueError, one line."""
    content = torch_file.read(path)
    try:
        if not isinstance(content, dict):
            raise ValueError(f"it holds no dict, but {type(content).__name__}")
        params, tables = rename(content["model"] if isinstance(content.get("model"), dict) else content)
        cfg, params = fit(params)
        mask, emb = tables.get("_action_masks"), tables.get("_task_emb.weight")
        rows = next((len(table) for table in (mask, emb) if table is not None), 1)
        names = task_names(tasks, path.stem, mask, rows)
        if embeddings:
            emb = read_embeddings(embeddings)
        elif emb is None and cfg.task_dim == 0:
            emb = torch.zeros(rows, 0)
        elif emb is None:
            raise ValueError(
                f"its network wants an embedding of {cfg.task_dim} numbers per task, and it holds none; give them "
                f"with --embeddings, a safetensors file with task_emb ({rows}, {cfg.task_dim}), rows in its order"
            )
        table = [envs.TASKS[name] for name in names]
        if max(task.obs_dim for task in table) > cfg.obs_dim:
            raise ValueError(f"its observations have {cfg.obs_dim} numbers, those of its tasks more")
        dims, discounts = [task.action_dim for task in table], [task.discount for task in table]
        scale = read_scale(content.get("scale"))
        return newt.create(cfg, names, emb, dims, discounts, params=params, q_scale=scale)
    except (ValueError, TypeError, IndexError, RuntimeError, OverflowError) as error:  # also tables of absurd shapes
        raise ValueError(f"{path}: {str(error).partition(chr(10))[0]}") from error


# ---------------------------------------------------------------- demonstrations


def score(task: envs.Task, ret: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Score at the end of episodes (E,) from their return, as in tasks.csv: "success", "R/1000", "clip01((R+3)/6)"."""
    if task.score_formula == "success":
        return success
    a, b, c = re.fullmatch(r"(?:clip01)?\(?(?:(\d+)\+)?\(?R(?:\+(\d+)\))?/(\d+)\)?", task.score_formula).groups()
    value = float(a or 0) + (ret + float(b or 0)) / float(c)
    return value.clip(0, 1) if task.score_formula.startswith("clip01") else value


def demonstrations(path: Path, name: str) -> demo_format.Demos:
    """A published file, cut back to the task's own sizes. FileNotFoundError or ValueError, one line."""
    content, task = torch_file.read(path, TENSORDICT), envs.TASKS[name]
    if isinstance(content, TensorDict) and isinstance(content.state, dict):
        content = content.state.get("_tensordict")
    keys = ("obs", "action", "reward", "episode")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), Tensor) for key in keys):
        raise ValueError(f"{path} holds no demonstrations of {name}: no TensorDict with {', '.join(keys)}")
    obs, action, reward = (content[key].float().numpy() for key in keys[:3])
    number, n = content["episode"].double().numpy(), content["reward"].numel()
    wide = (obs.ndim, action.ndim) == (2, 2) and obs.shape[1] >= task.obs_dim and action.shape[1] >= task.action_dim
    if not wide or len(obs) != n or len(action) != n or reward.shape != (n,) or number.shape != (n,):
        shapes = ", ".join(str(x.shape) for x in (obs, action, reward, number))
        raise ValueError(f"{path}: shapes do not fit {name} or each other: {shapes}")
    first = np.isnan(reward)
    border = np.flatnonzero(first != np.diff(number, prepend=number[:1] - 1).astype(bool))
    if len(border):
        raise ValueError(f"{path}: {name}: row {border[0]} has no reward, or begins an episode, but not both")
    start = np.append(np.flatnonzero(first), n)
    if n == 0 or set(np.diff(start)) != {task.episode_length + 1}:
        raise ValueError(
            f"{path}: not all episodes have the {task.episode_length} steps of {name}: another task, or cut"
        )
    if obs[:, task.obs_dim :].any() or action[~first, task.action_dim :].any():
        raise ValueError(
            f"{path}: more than {name}'s {task.obs_dim} observations and {task.action_dim} actions are used"
        )
    obs, action = (np.ascontiguousarray(x) for x in (obs[:, : task.obs_dim], action[:, : task.action_dim]))
    ret = np.array([np.nansum(rows) for rows in np.split(reward, start[1:-1])], np.float32)
    success = np.full(len(ret), np.nan if task.success_defined else 0, np.float32)
    meta = {"version": demo_format.FORMAT_VERSION, "task": name, "source": "published", "file": path.name,
            "wanted": len(ret), "tried": len(ret), "tried_cpu_seconds": 0.0}  # fmt: skip
    ends = (ret, success, score(task, ret, success).astype(np.float32), np.full(len(ret), -1))
    feature = content.get("feat")
    if isinstance(feature, Tensor):
        if feature.shape != (n, FEATURES) or not feature.half().isfinite().all():
            raise ValueError(f"{path}: feat is no ({n}, {FEATURES}) of numbers, but {tuple(feature.shape)}")
        feature = feature.half().numpy()
    else:
        feature = None
    return demo_format.check(demo_format.Demos(obs, action, reward, start, *ends, meta, feature), path, name)


# ---------------------------------------------------------------- command line


@dataclass(frozen=True)
class Checkpoint:
    """A published agent (.pt) -> a checkpoint for eval.py and train.py."""

    file: tyro.conf.Positional[Path]
    """published file"""
    out: tyro.conf.Positional[Path]
    """checkpoint to write"""
    tasks: str = ""
    """its tasks in its order: names with commas between, a suite, or all; default: found out where that is possible"""
    embeddings: Path | None = None
    """safetensors file with task_emb (tasks, numbers), in place of the embeddings in the file"""
    step: int = 100_000_000
    """environment steps that it was trained for; below 12 million, plans are held near its policy (newt.Config)"""
    overwrite: bool = False
    """replace an existing checkpoint"""


@dataclass(frozen=True)
class Demos:
    """Published demonstrations (a folder of <task>.pt) -> a folder of files for train.py and demos.py."""

    folder: tyro.conf.Positional[Path]
    """folder with published files"""
    out: tyro.conf.Positional[Path]
    """folder to write to"""
    overwrite: bool = False
    """replace existing files"""


def main_checkpoint(cfg: Checkpoint) -> None:
    if cfg.out.exists() and not (cfg.overwrite and cfg.out.is_file()):
        raise FileExistsError(f"{cfg.out} exists; --overwrite replaces a file")
    command.check_fields(cfg, {"step": agent_file.STEPS})
    agent = checkpoint(cfg.file, cfg.tasks, cfg.embeddings)
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    agent_file.save(cfg.out, agent, cfg.step, {"converted_from": cfg.file.name})
    sizes = f"size {agent.cfg.size}, {wm.num_params(agent.params) / 1e6:.1f}M parameters"
    dims = f"observations {agent.cfg.obs_dim}, actions {agent.cfg.action_dim}, embeddings {agent.cfg.task_dim}"
    shown = ", ".join(agent.tasks[:3]) + (", ..." if len(agent.tasks) > 3 else "")
    print(f"{cfg.out}: {sizes}; {dims}; {len(agent.tasks)} tasks: {shown}")
    if agent.cfg.feature_dim:
        print("it sees: eval.py and train.py need DINOv2's weights for it, --image-weights FILE")


def main_demos(cfg: Demos) -> None:
    files = sorted(cfg.folder.glob("*.pt"))
    known = [path for path in files if path.stem in envs.TASKS]
    if not known:
        raise FileNotFoundError(f"no <task>.pt with a name of envs/tasks.csv in {cfg.folder}")
    targets = [cfg.out / f"{path.stem}.safetensors" for path in known]
    there = [str(target) for target in targets if target.exists()]
    if there and not cfg.overwrite:
        raise FileExistsError(f"{len(there)} files exist, such as {there[0]}; --overwrite replaces them")
    for path, target in zip(tqdm(known, desc="convert", unit="task", disable=None), targets, strict=True):
        demo = demonstrations(path, path.stem)
        demo_format.save(target, demo)
        if demo.feature is not None:
            known = dict(enumerate(np.split(demo.feature, demo.episode_start[1:-1])))
            demo_features.save(demo_features.place(target, PUBLISHED), path.stem, PUBLISHED, demo, known)
    print(f"{len(known)} tasks in {cfg.out}")
    if len(known) < len(files):
        left = ", ".join(path.name for path in files if path not in known)
        print(f"left out, no names of envs/tasks.csv: {left}")


def main(cfg: Checkpoint | Demos) -> None:
    try:
        main_checkpoint(cfg) if isinstance(cfg, Checkpoint) else main_demos(cfg)
    except (OSError, safetensors.SafetensorError) as error:  # also: no right to write, no space
        raise ValueError(str(error)) from error


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, tyro.conf.OmitSubcommandPrefixes[Checkpoint | Demos]))
