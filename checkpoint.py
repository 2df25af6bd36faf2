"""What makes a run survive kill -9: checkpoints that are complete or absent, and hold everything that comes next.

    runs/<name>/config.json                            settings, to continue with
    runs/<name>/checkpoints/<step>/agent.safetensors   weights (agent_file.save): all that eval.py needs
    runs/<name>/checkpoints/<step>/state.safetensors   optimisers, random stream; counters as JSON in its header
    runs/<name>/checkpoints/<step>/rank-0.safetensors  the same of each process by itself (distributed.py)
    runs/<name>/buffer/rank-0/                         its online buffer's episodes, append-only (buffer.Buffer.save)
    runs/<name>/agent.safetensors                      copy of the newest weights

A checkpoint is written into a hidden folder, flushed to disk, and renamed. The newest two are kept. The buffer's files
are shared between checkpoints: each one knows how many episodes had been added, and later ones are ignored.
A full disk costs the checkpoint that did not fit, not those before. Nothing is unpickled.
Test: pytest tests/test_train.py -k "resume or disk"
"""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch

import agent_file
import distributed
import newt
from buffer import Buffer, write_atomically
from distributed import World

if os.name == "posix":
    import fcntl

KEEP = 2  # checkpoints


@dataclass
class State:
    """Counters of a run, besides the tensors. The same in every process."""

    phase: newt.Phase
    updates: int = 0  # in this phase
    vector_step: int = 0  # online steps of each environment
    learning_steps: int = 0  # environment steps since the first episodes ended; times utd: the updates that are due
    demos: dict[str, list[float]] = field(default_factory=dict)  # task -> returns of its demonstrations
    results: dict[str, dict] = field(default_factory=dict)  # "random", "pretrained" -> task -> episodes
    log_size: int = 0  # bytes of metrics.jsonl


RANGES = dict.fromkeys(
    ("updates", "vector_step", "learning_steps", "log_size", "buffer_first", "buffer_episodes"), (0, 10**15)
)


@dataclass
class Own:
    """What a process has for itself, of its own tasks."""

    sampler: torch.Generator  # draws batches from the buffers
    actor: torch.Generator  # noise of decisions
    buffer_first: int = 0  # oldest episode that the online buffer holds
    buffer_episodes: int = 0  # episodes ever added to it
    episodes: dict[str, int] = field(default_factory=dict)  # finished online, per task
    dropped: dict[str, int] = field(default_factory=dict)  # lost to faults of a simulator, per task

    def counters(self) -> dict:
        return {name: getattr(self, name) for name in ("buffer_first", "buffer_episodes", "episodes", "dropped")}


def read_config(folder: Path) -> dict:
    """Settings of a run. FileNotFoundError or ValueError, one line, if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: {path} is missing")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!s:.200}") from error


def require_empty(folder: Path, overwrite: bool) -> None:
    """A new run must not fall onto anything that is there. FileExistsError, one line."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} holds files that are not a run; choose another folder with --folder")
    if not overwrite:
        raise FileExistsError(f"{folder} already holds a run; --resume {folder} continues it, --overwrite replaces it")
    if (log := folder / "metrics.jsonl").is_file():
        with open(log, "ab") as file:
            claim(file)


def start(folder: Path, config: dict) -> None:
    """Make the run folder, in place of an older run, and write its settings."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)
    write_config(folder, config)


def as_stored(config: dict) -> dict:
    """Settings as reading them back gives them: paths as words, tuples as lists."""
    return json.loads(json.dumps(config, default=str))


def write_config(folder: Path, config: dict) -> None:
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=1, default=str))
    os.replace(temporary, folder / "config.json")


def claim(file: BinaryIO) -> None:
    """Keep other processes off a run, for as long as this file of it is open. ValueError, one line, if one is on it.

    Two would drop each other's replay. The claim ends with the process, however that ends; Windows has no such lock.
    """
    if os.name == "posix":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {Path(file.name).parent}") from None
        except OSError as error:  # some network file systems
            print(f"can't make sure that nobody else works in {Path(file.name).parent}: {error}", file=sys.stderr)


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
    folder: Path, name: str, agent: newt.Agent, state: State, own: Own, online: Buffer, step: int, world: World
) -> None:
    """Write checkpoints/<name>, all processes together, then drop what is older than the newest two.

    RuntimeError, one line, if that fails (a full disk): the checkpoints before are still there.
    """
    temporary, path = folder / "checkpoints" / f".{name}", folder / "checkpoints" / name
    there = path.exists()  # a run that was resumed here: replacing it would leave a moment without it
    if world.rank == 0 and not there:
        for stale in path.parent.glob(".*"):  # of a run that was killed while writing it
            shutil.rmtree(stale)
        temporary.mkdir()
    if any(distributed.gather(there)):
        return
    try:
        online.save(_buffer_folder(folder, world), own.buffer_first)  # still the one before's: must stay loadable
        own.buffer_first, own.buffer_episodes = online.first_episode, online.total_episodes
        streams = {"sampler": own.sampler.get_state(), "actor": own.actor.get_state()}
        meta = {**own.counters(), "world": world.size}
        write_atomically(temporary / f"rank-{world.rank}.safetensors", streams, {"newt_rank": json.dumps(meta)})
        if world.rank == 0:
            tensors = {"generator": agent.generator.get_state()}
            for key, (optim, value) in _optimisers(agent).items():
                tensors |= {f"{key}/{field}": tensor for field, tensor in optim.state[value].items()}
            agent_file.save(temporary / "agent.safetensors", agent, step)
            meta = {**asdict(state), "agent_updates": agent.updates}
            write_atomically(temporary / "state.safetensors", tensors, {"newt_state": json.dumps(meta)})
        distributed.gather(None)  # every file is there
        if world.rank == 0:
            # The copy first: a run that is killed in between goes on from the checkpoint before and writes both again.
            # After the rename nothing would, and the newest weights could be missing for ever.
            agent_file.save(folder / "agent.safetensors", agent, step)
            os.rename(temporary, path)
            _flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if isinstance(error, ConnectionError):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        kept = [str(p) for p in complete(folder)[-1:]] or ["no checkpoint"]
        raise RuntimeError(
            f"can't write {path}: {error}; {kept[0]} is kept. Make room, then --resume {folder}"
        ) from error
    if world.rank == 0:
        for old in complete(folder)[:-KEEP]:
            shutil.rmtree(old)


def _buffer_folder(folder: Path, world: World) -> Path:
    return folder / "buffer" / f"rank-{world.rank}"


def _flush(folder: Path) -> None:
    """The rename itself must reach the disk, too (POSIX; Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


@contextmanager
def _naming(file: Path):
    """ValueError, one line that names the file, for whatever is wrong in it."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError, LookupError) as error:
        hint = f"delete {file.parent} to resume from the checkpoint before"
        reason = f"was written by another version of this program, or is damaged ({error!s:.300})"
        raise ValueError(f"{file} {reason}; {hint}") from error


def _check_tables(state: State, tasks: tuple[str, ...]) -> None:
    """ValueError unless the tables of a state are of this agent's tasks and hold numbers: they end up in prints."""
    if not isinstance(state.demos, dict) or not isinstance(state.results, dict):
        raise ValueError("demos and results must be tables")
    for name, table in {"demos": state.demos, **state.results}.items():
        whole = isinstance(table, dict) and (set(table) <= set(tasks) if name == "demos" else set(table) == set(tasks))
        if name not in ("demos", "random", "pretrained") or not whole:
            raise ValueError(f"a table {name!r:.40} of other tasks than the agent's")
        for values in table.values():
            rows = [values] if name == "demos" else values
            if not rows or not all(isinstance(row, list) and (name == "demos" or len(row) >= 3) for row in rows):
                raise ValueError(f"{name} holds no episodes")
            if not all(type(x) in (int, float) and not abs(x) > 1e300 for row in rows for x in row):
                raise ValueError(f"{name} holds other things than numbers")


def _restore_optimisers(agent: newt.Agent, tensors: dict[str, torch.Tensor]) -> None:
    """ValueError for what Adam does not keep."""
    targets, kept = _optimisers(agent), {"step", "exp_avg", "exp_avg_sq"}
    for name, tensor in tensors.items():
        key, _, entry = name.rpartition("/")
        if key not in targets or entry not in kept:
            raise ValueError(f"a tensor {name!r:.80}")
        optim, value = targets[key]
        shape = () if entry == "step" else value.shape
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ValueError(f"{name} has another shape or type, or numbers that are not finite")
        if entry != "exp_avg" and (tensor < 0).any():
            raise ValueError(f"{name} is negative")
        optim.state[value][entry] = tensor.to(agent.device).clone()  # a copy: the file's own memory may be unaligned
    if not all(set(optim.state[value]) in (set(), kept) for optim, value in targets.values()):
        raise ValueError("half of an optimiser's state")


def load(folder: Path, device: torch.device, own: Own, world: World) -> tuple[newt.Agent, State] | None:
    """Agent (with optimisers and random stream) and counters of the newest checkpoint; None if there is none yet.

    Fills `own`. ValueError, one line: damaged, of another version, or saved by another number of processes.
    """
    found = complete(folder)
    if not found:
        return None
    path = found[-1]
    agent, _ = agent_file.load(path / "agent.safetensors", device)
    first, mine = path / "rank-0.safetensors", path / f"rank-{world.rank}.safetensors"
    with _naming(first):
        counters, streams = agent_file.read(first, "newt_rank")
    if (saved_by := counters.get("world")) != world.size:
        raise ValueError(f"{folder} was written by {saved_by!r:.40} processes and can't go on in {world.size}")
    with _naming(mine):
        if world.rank:
            counters, streams = agent_file.read(mine, "newt_rank")
        if set(counters) != {*own.counters(), "world"}:
            raise ValueError(f"its header has {', '.join(counters):.80}")
        for name in own.counters():
            setattr(own, name, counters[name])
        newt.check_fields(own, RANGES)
        for table in (own.episodes, own.dropped):
            if not isinstance(table, dict) or not set(table) <= set(agent.tasks):
                raise ValueError("it counts episodes of other tasks than the agent's")
            if not all(type(count) is int and 0 <= count <= 10**15 for count in table.values()):
                raise ValueError("it counts episodes in something else than numbers")
        own.sampler.set_state(streams["sampler"])
        own.actor.set_state(streams["actor"])
    file = path / "state.safetensors"
    with _naming(file):
        meta, tensors = agent_file.read(file, "newt_state")
        agent.updates = meta.pop("agent_updates", None)
        if set(meta) != {f.name for f in fields(State)} or type(agent.updates) is not int or agent.updates < 0:
            raise ValueError(f"its header has {', '.join(meta):.80}")
        state = State(**meta)
        newt.check_fields(state, RANGES)
        _check_tables(state, agent.tasks)
        agent.generator.set_state(tensors.pop("generator"))
        _restore_optimisers(agent, tensors)
    return agent, state


def load_buffer(folder: Path, online: Buffer, own: Own, world: World, tasks: int) -> None:
    online.load(_buffer_folder(folder, world), own.buffer_first, own.buffer_episodes, tasks)
