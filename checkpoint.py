"""What makes a run survive kill -9: checkpoints that are complete or absent, and hold everything that comes next.

    runs/<name>/config.json                            settings, to continue with
    runs/<name>/checkpoints/<step>/agent.safetensors   weights (newt.save): all that eval.py needs
    runs/<name>/checkpoints/<step>/state.safetensors   optimisers, random streams; counters as JSON in its header
    runs/<name>/buffer/                                the online buffer's episodes, append-only (buffer.Buffer.save)
    runs/<name>/agent.safetensors                      copy of the newest weights

A checkpoint is written into a hidden folder, flushed to disk, and renamed. The newest two are kept. The buffer's files
are shared between checkpoints: each one knows how many episodes had been added, and later ones are ignored.
Nothing is unpickled. Test: pytest tests/test_train.py -k resume
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import safetensors
import torch

import newt
from buffer import Buffer

KEEP = 2  # checkpoints


@dataclass
class State:
    """Counters of a run, besides the tensors."""

    phase: newt.Phase
    updates: int = 0  # in this phase
    vector_step: int = 0  # online steps of each environment
    learning_steps: int = 0  # environment steps since the first episodes ended; times utd: the updates that are due
    demos: dict[str, list[float]] = field(default_factory=dict)  # task -> returns of its demonstrations
    episodes: dict[str, int] = field(default_factory=dict)  # finished online, per task
    results: dict[str, dict] = field(default_factory=dict)  # "random", "pretrained", "online" -> task -> episodes
    log_size: int = 0  # bytes of metrics.jsonl
    buffer_first: int = 0  # oldest episode that the online buffer holds
    buffer_episodes: int = 0  # episodes ever added to it


def read_config(folder: Path) -> dict:
    """Settings of a run. FileNotFoundError or ValueError, one line, if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: {path} is missing")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def require_empty(folder: Path, overwrite: bool) -> None:
    """A new run must not fall onto anything that is there. FileExistsError, one line."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} holds files that are not a run; choose another folder with --run")
    if not overwrite:
        raise FileExistsError(f"{folder} already holds a run; --resume {folder} continues it, --overwrite replaces it")


def start(folder: Path, config: dict) -> None:
    """Make the run folder, in place of an older run, and write its settings."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=1, default=str))
    os.replace(temporary, folder / "config.json")


def _order(path: Path) -> tuple[int, int]:
    """pretrain-2000 < pretrain-4000 < 0 < 8000."""
    return (0, int(path.name.removeprefix("pretrain-"))) if path.name.startswith("pretrain-") else (1, int(path.name))


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((p for p in (folder / "checkpoints").glob("*") if not p.name.startswith(".")), key=_order)


def _optimisers(agent: newt.Agent) -> dict[str, tuple[torch.optim.Optimizer, torch.Tensor]]:
    """Name in state.safetensors -> (optimiser, parameter) for every parameter of both optimisers."""
    names = {id(value): name for name, value in agent.params.items()}
    return {
        f"{kind}/{names[id(value)]}": (optim, value)
        for kind, optim in (("model", agent.model_optim), ("pi", agent.pi_optim))
        for group in optim.param_groups
        for value in group["params"]
    }


def save(
    folder: Path, name: str, agent: newt.Agent, state: State, sampler: torch.Generator, online: Buffer, step: int
) -> None:
    """Write checkpoints/<name>, then drop what is older than the newest two."""
    temporary, path = folder / "checkpoints" / f".{name}", folder / "checkpoints" / name
    if path.exists():  # a finished run that was resumed: replacing it would leave a moment without it
        return
    online.save(folder / "buffer", state.buffer_first)  # still the one before's: that must stay loadable
    state.buffer_first, state.buffer_episodes = online.first_episode, online.total_episodes
    tensors = {"generator": agent.generator.get_state(), "sampler": sampler.get_state()}
    for key, (optim, value) in _optimisers(agent).items():
        tensors |= {f"{key}/{field}": tensor for field, tensor in optim.state[value].items()}
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    newt.save(temporary / "agent.safetensors", agent, step)
    meta = {**asdict(state), "agent_updates": agent.updates}
    newt.write_atomically(temporary / "state.safetensors", tensors, {"newt_state": json.dumps(meta)})
    os.rename(temporary, path)
    _flush(path.parent)
    newt.save(folder / "agent.safetensors", agent, step)
    for old in complete(folder)[:-KEEP]:
        shutil.rmtree(old)


def _flush(folder: Path) -> None:
    """The rename itself must reach the disk, too (POSIX; Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _read_state(path: Path) -> tuple[State, int, dict[str, torch.Tensor]]:
    file_name = path / "state.safetensors"
    try:
        with safetensors.safe_open(file_name, "pt") as file:
            meta = json.loads(file.metadata()["newt_state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{file_name}: {error}; delete {path} to resume from the checkpoint before") from error
    updates = meta.pop("agent_updates", None)
    if updates is None or set(meta) != {f.name for f in fields(State)}:
        raise ValueError(f"{file_name} was written by another version of this program")
    return State(**meta), updates, tensors


def load(folder: Path, device: torch.device, sampler: torch.Generator) -> tuple[newt.Agent, State] | None:
    """Agent (with optimisers and random stream) and counters of the newest checkpoint; None if there is none yet."""
    found = complete(folder)
    if not found:
        return None
    agent, _ = newt.load(found[-1] / "agent.safetensors", device)
    state, agent.updates, tensors = _read_state(found[-1])
    agent.generator.set_state(tensors.pop("generator"))
    sampler.set_state(tensors.pop("sampler"))
    targets = _optimisers(agent)
    for name, tensor in tensors.items():
        key, _, entry = name.rpartition("/")
        optim, value = targets[key]
        optim.state[value][entry] = tensor.to(device).clone()  # a copy: the file's own memory may be unaligned
    return agent, state
