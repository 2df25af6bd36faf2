"""What makes a run survive kill -9, and a folder survive runs: whose files these are, and when they are replaced.

    runs/<name>/config.json                            settings, to continue with; by its MARK a run is recognised
    runs/<name>/checkpoints/<step>/agent.safetensors   weights (agent_file.save): all that eval.py needs
    runs/<name>/checkpoints/<step>/state.safetensors   optimisers, random stream; counters as JSON in its header
    runs/<name>/checkpoints/<step>/rank-0.safetensors  the same of each process by itself (distributed.py)
    runs/<name>/buffer/rank-0/                         its online buffer's episodes, append-only (buffer.Buffer.save)
    runs/<name>/agent.safetensors                      copy of the newest weights

A checkpoint is written into a hidden folder, flushed to disk, and renamed. The newest two are kept. The buffer's files
are shared between checkpoints: each one knows how many episodes had been added, and later ones are ignored.
A full disk costs the checkpoint that did not fit, not those before. Nothing is unpickled.

Only files that a run writes (OURS) are ever removed, so a folder may be a mount point or a link, and hold notes.
A new run is written into STAGED until its first checkpoint stands. Renaming that to NEXT is the moment in which it
takes the place of an older run: whoever comes to such a folder first finishes what was begun. From the check of a
folder to the end of the program a lock keeps others off it.
Test: pytest tests/test_checkpoint.py; pytest tests/test_train.py -k "resume or disk"
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import safetensors
import torch

import agent_file
import demo_format
import distributed
import newt
from buffer import Buffer, replacing, write_atomically
from distributed import World

if os.name == "posix":
    import fcntl

KEEP = 2  # checkpoints
MARK = "newt_run"  # key in config.json of what a run knows besides its settings: where its demonstrations are
STAGED, NEXT, LOCK = ".newt-new", ".newt-next", ".newt-lock"
NAME = re.compile(r"(pretrain-)?\d+")  # of a checkpoint
OURS = re.compile(
    r"(config\.json|metrics\.jsonl|curves\.png|agent\.safetensors|events\.out\.tfevents\.[^/]+|videos/final\.mp4|"
    rf"checkpoints/\.?{NAME.pattern}/(agent|state|rank-\d+)\.safetensors|buffer/rank-\d+/episodes-\d+-\d+\.safetensors)"
    r"(?P<half>(\.[0-9a-f]{32})?\.tmp)?|(buffer/rank-\d+/)?(?P<hidden>\.tmp\w{6})"  # what safetensors itself writes to
)
OUR_FOLDERS = re.compile(rf"videos|checkpoints(/\.?{NAME.pattern})?|buffer(/rank-\d+)?")


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


# ---------------------------------------------------------------- folders


def _config(folder: Path) -> Path:
    """Settings of the run that a folder holds, also if the program was killed while that replaced another one."""
    staged = folder / NEXT / "config.json"
    return staged if staged.is_file() else folder / "config.json"


def _stored(folder: Path) -> dict:
    """What a run wrote about itself. FileNotFoundError or ValueError, one line, if none did."""
    path = _config(folder)
    if not path.is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: {path} is missing")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!s:.200}") from error
    if not isinstance(stored, dict) or not (isinstance(stored.get(MARK), dict) or _before_marks(stored)):
        raise ValueError(f"{path} was written by another program")
    if MARK in stored and not _sound(stored[MARK]):
        raise ValueError(f"{path} is damaged: what it holds under {MARK!r} is no folder with demonstrations")
    return stored


def _sound(mark) -> bool:
    """Whether this is what `begin` writes: {"folder": word, "demos": {task: {"file": word, "seeds": numbers}}}."""

    def word(x) -> bool:
        return isinstance(x, str) and 0 < len(x) < 1000

    if not isinstance(mark, dict) or not word(mark.get("folder")) or not isinstance(mark.get("demos"), dict):
        return False
    rows = mark["demos"].values()
    return all(
        isinstance(row, dict) and word(row.get("file")) and isinstance(row.get("seeds"), list)
        and all(type(seed) is int for seed in row["seeds"]) for row in rows
    )  # fmt: skip


def _before_marks(stored: dict) -> bool:
    """Whether these are the settings of a run of the time without MARK: no other program has all of these names."""
    names = {"tasks", "preset", "demo_episodes", "pretrain_updates", "agent"}
    agent = stored.get("agent")
    return names <= set(stored) and isinstance(agent, dict) and {"online_bc_coef", "constraint_duration"} <= set(agent)


def read_config(folder: Path) -> dict:
    """Settings of a run. FileNotFoundError or ValueError, one line, if there is none."""
    return {name: value for name, value in _stored(folder).items() if name != MARK}


def is_run(folder: Path) -> bool:
    try:
        return bool(_stored(folder))
    except (OSError, ValueError):
        return False


def as_stored(config: dict) -> dict:
    """Settings as reading them back gives them: paths as words, tuples as lists."""
    return json.loads(json.dumps(config, default=str))


def _write_config(folder: Path, stored: dict) -> None:
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(stored, indent=1, default=str), encoding="utf-8")


def set_steps(folder: Path, steps: int) -> None:
    _write_config(folder, {**_stored(folder), "steps": steps})


def _check(folder: Path, resume: bool, overwrite: bool) -> None:
    """FileExistsError, FileNotFoundError or ValueError, one line, unless a run can go on or begin here."""
    if resume:
        _stored(folder)
        if not complete(folder) and not (folder / NEXT).is_dir():
            raise FileNotFoundError(
                f"nothing to resume in {folder}: its checkpoints are gone. --overwrite replaces the run, or choose "
                "another --folder"
            )
        return
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another --folder")
    # lost+found: a disk of its own has it at its top
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} - {LOCK, STAGED, "lost+found"}:
        return
    if not is_run(folder):
        raise FileExistsError(f"{folder} holds files that are not a run; choose another folder with --folder")
    if not overwrite:
        raise FileExistsError(f"{folder} already holds a run; --resume {folder} continues it, --overwrite replaces it")


@contextmanager
def claim(folder: Path, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """In the block a run may go on here, or begin, and no other program may: two would drop each other's replay.

    FileExistsError, FileNotFoundError or ValueError, one line, and nothing was touched: files that are not a run, a
    run that nobody said to replace or without checkpoints, another process. A claim ends with the process, however
    that ends.
    """
    _check(folder, resume, overwrite)
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            _check(folder, resume, overwrite)  # again: before the lock another program may have been at work
            _finish(folder)
            try:
                yield
            finally:
                shutil.rmtree(folder / STAGED, ignore_errors=True)
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Windows has no such lock."""
    if os.name != "posix":
        yield
        return
    path = folder / LOCK
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is at work in {folder}") from None
            except OSError as error:  # some network file systems
                print(f"can't make sure that nobody else works in {folder}: {error}", file=sys.stderr)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:  # whoever ended since it was opened removed it: a lock on it keeps nobody off
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _files(folder: Path) -> list[tuple[Path, re.Match]]:
    """What a run wrote. Its folders may be links."""
    places = [path for pattern in ("*", "videos/*", "checkpoints/*/*", "buffer/*/*") for path in folder.glob(pattern)]
    found = [(path, OURS.fullmatch(path.relative_to(folder).as_posix())) for path in places if not path.is_dir()]
    return [(path, match) for path, match in found if match]


def _finish(folder: Path) -> None:
    """Complete what a killed program began: a new run takes an older one's place; half files go."""
    staged = folder / NEXT
    if (staged / "config.json").is_file():
        settings = folder / "config.json"
        if settings.is_file():  # the older run's: the last of its files to go. The agent's is replaced below
            for path, _ in _files(folder):
                if path not in (settings, folder / "agent.safetensors"):
                    path.unlink()
            _drop_empty_folders(folder)
            settings.unlink()
        files = [path for path in staged.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path == staged / "config.json"):  # this one comes last
            target = folder / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)  # where checkpoints/ is a link, it may be another disk
        _flush(folder)
    for leftover in (staged, folder / STAGED):
        shutil.rmtree(leftover, ignore_errors=True)
    for path, match in _files(folder):
        if match["half"] or match["hidden"]:
            path.unlink()


def _drop_empty_folders(folder: Path) -> None:
    for pattern in ("checkpoints/*", "buffer/*", "*"):
        for path in folder.glob(pattern):
            if OUR_FOLDERS.fullmatch(path.relative_to(folder).as_posix()):
                with suppress(OSError):  # somebody's file is in it, or it's a link
                    path.rmdir()


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
    staged = folder / STAGED
    if world.rank == 0:
        (staged / "checkpoints").mkdir(parents=True)
        known = {
            task: {"file": str(demos[task].resolve()), "seeds": demo.seed[: len(state.demos[task])].tolist()}
            for task, demo in files.items()
        }
        _write_config(staged, {MARK: {"folder": str(folder.resolve()), "demos": known}, **config})
    distributed.gather(None)
    save(staged, f"pretrain-{state.updates}", agent, state, own, online, 0, world)
    if world.rank == 0:
        os.rename(staged, folder / NEXT)
        _flush(folder)
        _finish(folder)
    online.moved(_buffer_folder(folder, world))
    distributed.gather(None)


def find_demos(folder: Path, returns: dict[str, list[float]], nearby: Path) -> tuple[dict, str]:
    """The demonstrations that a run began with, task -> Demos, and where they were found, if not where they were.

    returns  task -> those of its episodes
    nearby   a folder to look into, after where they lie as seen from the run (both may have moved) and where they lay
    Files may have got more episodes since. ValueError, one line: they lack some; FileNotFoundError: no file.
    """
    stored, here = _stored(folder).get(MARK, {}), folder.resolve()
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
        demo = demo_format.load(path, task)
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


# ---------------------------------------------------------------- checkpoints


def _order(path: Path) -> tuple[bool, int]:
    """pretrain-2000 < pretrain-4000 < 0 < 8000."""
    return not path.name.startswith("pretrain-"), int(path.name.removeprefix("pretrain-"))


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = (path for path in (folder / "checkpoints").glob("*") if NAME.fullmatch(path.name))
    return sorted((path for path in found if (path / "state.safetensors").is_file()), key=_order)


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
    there = path in complete(folder)  # a run that was resumed here: replacing it would leave a moment without it
    if world.rank == 0 and not there:
        for stale in path.parent.glob(".*"):  # of a run that was killed while writing it
            if NAME.fullmatch(stale.name[1:]):
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
            _flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if isinstance(error, ConnectionError):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        kept = complete(folder)
        remedy = f"{kept[-1]} is kept. Make room, then --resume {folder}" if kept else "make room and start again"
        raise RuntimeError(f"can't write {path}: {error}; {remedy}") from error
    if world.rank == 0:
        for old in complete(folder)[:-KEEP]:
            for file in sorted(file for file, _ in _files(folder) if file.parent == old):
                file.unlink()
            with suppress(OSError):  # somebody's notes are in it
                old.rmdir()


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


def load(folder: Path, device: torch.device, own: Own, world: World) -> tuple[newt.Agent, State]:
    """Agent (with optimisers and random stream) and counters of the newest checkpoint; there must be one.

    Fills `own`. ValueError, one line: damaged, of another version, or saved by another number of processes.
    """
    path = complete(folder)[-1]
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
