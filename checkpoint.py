"""What makes a run survive kill -9: everything that it needs to go on exactly, complete or absent.

    runs/<name>/checkpoints/<step>/agent.safetensors   weights (agent_file.save): all that eval.py needs
    runs/<name>/checkpoints/<step>/state.safetensors   optimisers, random stream; counters as JSON in its header
    runs/<name>/checkpoints/<step>/rank-0.safetensors  the same of each process by itself (distributed.py)
    runs/<name>/buffer/rank-0/                         its online buffer's episodes, append-only (buffer.Buffer.save)

A checkpoint is written into a hidden folder, flushed to disk, and renamed. The newest two are kept. The buffer's files
are shared between checkpoints: each one knows how many episodes had been added, and later ones are ignored.
A full disk costs the checkpoint that did not fit, not those before. Nothing is unpickled. The folder: run_folder.py.
Test: pytest tests/test_checkpoint.py; pytest tests/test_train.py tests/test_faults.py -k "resume or disk"
"""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import safetensors
import torch

import agent_file
import demo_features
import demo_format
import distributed
import losses
import newt
import run_folder
from buffer import Buffer, write_atomically
from command import check_fields
from distributed import World

KEEP = 2  # checkpoints


@dataclass
class State:
    """Counters of a run, besides the tensors. The same in every process."""

    phase: losses.Phase
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


def begin(
    folder: Path,
    config: dict,
    demos: dict[str, Path],
    files: dict[str, demo_format.Demos],
    agent: newt.Agent,
    state: State,
    own: Own,
    online: Buffer,
    world: World,
) -> None:
    """The first checkpoint of a new run, all processes together; an older run stands until this one does.

    demos, files: where each task's demonstrations are, and what was read there
    """
    staged = folder / run_folder.STAGED
    if world.rank == 0:
        (staged / "checkpoints").mkdir(parents=True)
        known = {
            task: {"file": str(demos[task].resolve()), "seeds": demo.seed[: len(state.demos[task])].tolist()}
            for task, demo in files.items()
        }
        run_folder.write_config(staged, {run_folder.MARK: {"folder": str(folder.resolve()), "demos": known}, **config})
    distributed.gather(None)
    save(staged, f"pretrain-{state.updates}", agent, state, own, online, 0, world)
    if world.rank == 0:
        os.rename(staged, folder / run_folder.NEXT)
        run_folder.flush(folder)
        run_folder.finish(folder)
    online.moved(_buffer_folder(folder, world))
    distributed.gather(None)


def find_demos(
    folder: Path, returns: dict[str, list[float]], nearby: Path, features: str = ""
) -> tuple[dict, str]:
    """The demonstrations that a run began with, task -> Demos, and where they were found, if not where they were.

    returns  task -> those of its episodes
    nearby   a folder to look into, after where they lie as seen from the run (both may have moved) and where they lay
    Files may have got more episodes since. ValueError, one line: they lack some; FileNotFoundError: no file.
    """
    stored, here = run_folder.stored(folder).get(run_folder.MARK, {}), folder.resolve()
    demos, moved = {}, {}
    for task, wanted in returns.items():
        known, places = stored.get("demos", {}).get(task), [demo_format.place(nearby, task)]
        if known:
            with suppress(ValueError):  # another drive of Windows
                places.insert(0, here / os.path.relpath(known["file"], stored["folder"]))
            places.insert(1, Path(known["file"]))
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            looked = ", ".join(dict.fromkeys(os.path.normpath(path) for path in places))
            raise FileNotFoundError(f"{folder} began with demonstrations of {task} that are gone; looked for {looked}")
        demo = demo_features.load(path, task, features)
        seeds, chosen = known["seeds"] if known else [None] * len(wanted), []
        if len(seeds) != len(wanted):
            raise ValueError(f"{folder} is damaged: its settings and its checkpoint differ in episodes of {task}")
        for ret, seed in zip(wanted, seeds, strict=True):
            rest = (e for e in range(len(demo.ret)) if e not in chosen)
            found = next((e for e in rest if demo.ret[e] == ret and seed in (None, demo.seed[e])), None)
            if found is None:
                raise ValueError(f"{folder} began with other demonstrations of {task} than those in {path}")
            chosen.append(found)
        demos[task] = demo_format.join([demo_format.episode(demo, e) for e in chosen], demo.meta)
        if known and path.resolve() != Path(known["file"]):
            moved[str(path.resolve().parent)] = str(Path(known["file"]).parent)
    return demos, "; ".join(f"demonstrations are in {now}, they were in {was}" for now, was in moved.items())


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
    # There already: a run that was resumed here. Replacing it would leave a moment without it.
    there = path in run_folder.complete(folder)
    if world.rank == 0 and not there:
        for stale in path.parent.glob(".*"):  # of a run that was killed while writing it
            if run_folder.NAME.fullmatch(stale.name[1:]):
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
            if path.is_dir():  # somebody's notes are in it, from a checkpoint that is gone
                for file in sorted(temporary.iterdir()):  # state.safetensors, which makes it complete, last
                    os.replace(file, path / file.name)
                temporary.rmdir()
            else:
                os.rename(temporary, path)
            run_folder.flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if isinstance(error, ConnectionError):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        kept = run_folder.complete(folder)
        remedy = f"{kept[-1]} is kept. Make room, then --resume {folder}" if kept else "make room and start again"
        raise RuntimeError(f"can't write {path}: {error}; {remedy}") from error
    if world.rank == 0:
        for old in run_folder.complete(folder)[:-KEEP]:
            for file in sorted(file for file, _ in run_folder.files(folder) if file.parent == old):
                file.unlink()
            with suppress(OSError):  # somebody's notes are in it
                old.rmdir()


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


def load(folder: Path, device: torch.device, own: Own, world: World) -> tuple[newt.Agent, State]:
    """Agent (with optimisers and random stream) and counters of the newest checkpoint; there must be one.

    Fills `own`. ValueError, one line: damaged, of another version, or saved by another number of processes.
    """
    path = run_folder.complete(folder)[-1]
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
        check_fields(own, RANGES)
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
        check_fields(state, RANGES)
        _check_tables(state, agent.tasks)
        agent.generator.set_state(tensors.pop("generator"))
        _restore_optimisers(agent, tensors)
    return agent, state


def _buffer_folder(folder: Path, world: World) -> Path:
    return folder / "buffer" / f"rank-{world.rank}"


def load_buffer(folder: Path, online: Buffer, own: Own, world: World, tasks: int) -> None:
    online.load(_buffer_folder(folder, world), own.buffer_first, own.buffer_episodes, tasks)
