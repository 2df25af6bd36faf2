"""An agent as a file: all that eval.py needs, complete or absent, and believed only as far as it was checked.

    tensors   parameters (world_model.py), task_emb (S, G), action_mask (S, A), discount (S,), guided (S,), q_scale ();
              obs_stats (2, S, O) where observations are standardised
    header    JSON under "newt": version, config (newt.Config), tasks (S names), step (environment steps trained)

    save(path, agent, step=0, extra={})
    agent, meta = load(path)

A file may come from anybody. Types, ranges, shapes and finiteness are checked before anything is used, nothing is
unpickled, and nothing takes more memory than a small multiple of the file's size. Names of tasks are only words here:
those with a colon name code, and whoever makes environments of them asks `envs.require_named` first.
Test: pytest tests/test_agent_file.py tests/test_hostile.py
"""

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import safetensors
import torch
from torch import Tensor

import newt
import world_model as wm
from buffer import write_atomically

FORMAT_VERSION = 1
# Settings that files of this format may lack; their defaults change nothing for such agents.
YOUNGER = {"caution", "warm_iterations", "obs", "image_encoder", "image_hash", "frames", "obs_norm"}
STEPS = (0, 10**15)  # range of the header's step
TABLES = {"task_emb": "emb", "action_mask": "mask", "discount": "discount", "guided": "guided", "q_scale": "q_scale"}
NAME = re.compile(r"(?!.*\.\.)[\w-](?:[\w.-]*|[\w.-]*:[\w./:-]+)")  # walker-walk, gym:my_envs:lab/Reach-v0; no paths


def save(path: Path, agent: newt.Agent, step: int = 0, extra: dict | None = None) -> None:
    """Write weights, target, task tables and everything eval.py needs as one self-describing safetensors file."""
    tables = {name: getattr(agent, field) for name, field in TABLES.items()}
    if agent.obs_stats is not None:
        tables["obs_stats"] = agent.obs_stats
    meta = {"version": FORMAT_VERSION, "config": asdict(agent.cfg), "tasks": agent.tasks, "step": step, **(extra or {})}
    write_atomically(path, agent.params | tables, {"newt": json.dumps(meta)})


def read(path: Path, key: str) -> tuple[dict, dict[str, Tensor]]:
    """The JSON object under `key` in a safetensors file's header, and its tensors. ValueError, one line."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(key, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a complete safetensors file of plain tensors ({error!s:.200})") from error
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} is a safetensors file, but not a Newt checkpoint (no readable {key!r} in its header)")
    return meta, tensors


def misfits(cfg: newt.Config, params: wm.Params) -> list[str]:
    """Names of tensors that are missing, too many, or of another shape or type than these sizes want."""
    with torch.device("meta"):  # shapes without numbers: sizes out of a file must not take memory
        wanted = wm.init(wm.SIZES[cfg.size], cfg.input_dim, cfg.action_dim, cfg.task_dim, cfg.num_bins)
    wanted, found = ({(name, x.shape, x.dtype) for name, x in tensors.items()} for tensors in (wanted, params))
    return sorted({name for name, *_ in wanted ^ found})


def load(path: Path, device: str | torch.device = "cpu", seed: int = 0) -> tuple[newt.Agent, dict]:
    """Agent (optimisers cold) and metadata from `save`. Never unpickles.

    Raises FileNotFoundError or ValueError, one line that names file and field: missing, truncated, foreign, of another
    version, inconsistent, or numbers that no agent has.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    meta, tensors = read(path, "newt")
    try:
        return _agent(meta, tensors, device, seed), meta
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _agent(meta: dict, tensors: dict[str, Tensor], device: str | torch.device, seed: int) -> newt.Agent:
    """The agent that a header and its tensors describe. ValueError if they do not, or not soundly."""
    if meta.get("version") != FORMAT_VERSION:
        raise ValueError(f"checkpoint format {meta.get('version')!r:.40}, this program reads {FORMAT_VERSION}")
    stored = meta.get("config")
    if not isinstance(stored, dict):
        raise ValueError("no settings under config in its header")
    known = {field.name for field in fields(newt.Config)}
    unknown = (set(stored) - known) | (known - set(stored) - YOUNGER)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"it and this program differ in the settings they know: {names:.200}")
    cfg = newt.Config(**stored)
    newt.check(cfg)
    names, step = meta.get("tasks"), meta.get("step")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("tasks in its header is no list of names")
    strange = [name for name in names if len(name) > 200 or not NAME.fullmatch(name)]
    if strange or len(set(names)) < len(names):
        raise ValueError(f"tasks in its header names {strange[0]!r:.60}" if strange else "a task is named twice")
    if type(step) is not int or not STEPS[0] <= step <= STEPS[1]:
        raise ValueError(f"step in its header is {step!r:.60}, no count of environment steps")
    tables = {name: tensors.pop(name, torch.empty(0)) for name in TABLES}
    shapes = {"task_emb": (len(names), cfg.task_dim), "action_mask": (len(names), cfg.action_dim),
              **dict.fromkeys(("discount", "guided"), (len(names),)), "q_scale": ()}  # fmt: skip
    if cfg.obs_norm != "none":
        tables["obs_stats"] = tensors.pop("obs_stats", torch.empty(0))
        shapes["obs_stats"] = (2, len(names), cfg.input_dim)
    wrong = [k for k, v in tables.items() if v.shape != shapes[k] or v.dtype != torch.float32]
    wrong += misfits(cfg, tensors)
    if wrong:
        raise ValueError(f"it does not hold the tensors that its own header describes: {', '.join(wrong[:3]):.200}")
    wrong = [name for name, value in (tables | tensors).items() if not value.isfinite().all()]
    if wrong:
        raise ValueError(f"numbers that are not finite in {', '.join(wrong[:3])}")
    mask, guided = tables["action_mask"], tables["guided"]
    dims = mask.sum(1).long()
    if not torch.equal(mask, (torch.arange(cfg.action_dim) < dims.unsqueeze(1)).float()):
        raise ValueError("action_mask is not ones followed by zeros")
    if not torch.equal(guided, guided.bool().float()):
        raise ValueError("guided holds other numbers than 0 and 1")
    return newt.create(
        cfg, names, tables["task_emb"], dims.tolist(), tables["discount"].tolist(), seed, device, tensors,
        float(tables["q_scale"]), guided.bool().tolist(), tables.get("obs_stats"),
    )  # fmt: skip
