"""A run's folder: whose files these are, who may write there, and how a new run takes the place of an older one.

    runs/<name>/config.json              settings, to continue with; by its MARK a run is recognised
    runs/<name>/checkpoints/<name>/      complete or absent (checkpoint.py)
    runs/<name>/buffer/rank-0/           replay of each process (buffer.Buffer.save)
    runs/<name>/agent.safetensors        copy of the newest weights
    runs/<name>/metrics.jsonl, events.out.tfevents.*, curves.png, videos/final.mp4

Only files that a run writes (OURS) are ever removed, so a folder may be a mount point or a link, and hold notes.
A new run is written into STAGED until its first checkpoint stands. Renaming that to NEXT is the moment in which it
takes the place of an older run: whoever comes to such a folder first finishes what was begun. From the check of a
folder to the end of the program a lock keeps others off it.
Test: pytest tests/test_checkpoint.py; pytest tests/test_train.py -k folder
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from buffer import replacing

if os.name == "posix":
    import fcntl

MARK = "newt_run"  # key in config.json of what a run knows besides its settings: where its demonstrations are
STAGED, NEXT, LOCK = ".newt-new", ".newt-next", ".newt-lock"
NAME = re.compile(r"(pretrain-)?\d+")  # of a checkpoint
OURS = re.compile(
    r"(config\.json|metrics\.jsonl|curves\.png|agent\.safetensors|events\.out\.tfevents\.[^/]+|videos/final\.mp4|"
    rf"checkpoints/\.?{NAME.pattern}/(agent|state|rank-\d+)\.safetensors|buffer/rank-\d+/episodes-\d+-\d+\.safetensors)"
    r"(?P<half>(\.[0-9a-f]{32})?\.tmp)?|(buffer/rank-\d+/)?(?P<hidden>\.tmp\w{6})"  # what safetensors itself writes to
)
OUR_FOLDERS = re.compile(rf"videos|checkpoints(/\.?{NAME.pattern})?|buffer(/rank-\d+)?")


def _config(folder: Path) -> Path:
    """Settings of the run that a folder holds, also if the program was killed while that replaced another one."""
    staged = folder / NEXT / "config.json"
    return staged if staged.is_file() else folder / "config.json"


def stored(folder: Path) -> dict:
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
    return {name: value for name, value in stored(folder).items() if name != MARK}


def is_run(folder: Path) -> bool:
    try:
        return bool(stored(folder))
    except (OSError, ValueError):
        return False


def as_stored(config: dict) -> dict:
    """Settings as reading them back gives them: paths as words, tuples as lists."""
    return json.loads(json.dumps(config, default=str))


def write_config(folder: Path, stored: dict) -> None:
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(stored, indent=1, default=str), encoding="utf-8")


def set_steps(folder: Path, steps: int) -> None:
    write_config(folder, {**stored(folder), "steps": steps})


def _check(folder: Path, resume: bool, overwrite: bool) -> None:
    """FileExistsError, FileNotFoundError or ValueError, one line, unless a run can go on or begin here."""
    if resume:
        stored(folder)
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
            finish(folder)
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


def files(folder: Path) -> list[tuple[Path, re.Match]]:
    """What a run wrote. Its folders may be links."""
    places = [path for pattern in ("*", "videos/*", "checkpoints/*/*", "buffer/*/*") for path in folder.glob(pattern)]
    found = [(path, OURS.fullmatch(path.relative_to(folder).as_posix())) for path in places if not path.is_dir()]
    return [(path, match) for path, match in found if match]


def finish(folder: Path) -> None:
    """Complete what a killed program began: a new run takes an older one's place; half files go."""
    staged = folder / NEXT
    if (staged / "config.json").is_file():
        settings = folder / "config.json"
        if settings.is_file():  # the older run's: the last of its files to go. The agent's is replaced below
            for path, _ in files(folder):
                if path not in (settings, folder / "agent.safetensors"):
                    path.unlink()
            _drop_empty_folders(folder)
            settings.unlink()
        new = [path for path in staged.rglob("*") if path.is_file()]
        for path in sorted(new, key=lambda path: path == staged / "config.json"):  # this one comes last
            target = folder / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)  # where checkpoints/ is a link, it may be another disk
        flush(folder)
    for leftover in (staged, folder / STAGED):
        shutil.rmtree(leftover, ignore_errors=True)
    for path, match in files(folder):
        if match["half"] or match["hidden"]:
            path.unlink()


def _drop_empty_folders(folder: Path) -> None:
    for pattern in ("checkpoints/*", "buffer/*", "*"):
        for path in folder.glob(pattern):
            if OUR_FOLDERS.fullmatch(path.relative_to(folder).as_posix()):
                with suppress(OSError):  # somebody's file is in it, or it's a link
                    path.rmdir()


def _order(path: Path) -> tuple[bool, int]:
    """pretrain-2000 < pretrain-4000 < 0 < 8000."""
    return not path.name.startswith("pretrain-"), int(path.name.removeprefix("pretrain-"))


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = (path for path in (folder / "checkpoints").glob("*") if NAME.fullmatch(path.name))
    return sorted((path for path in found if (path / "state.safetensors").is_file()), key=_order)


def flush(folder: Path) -> None:
    """The rename itself must reach the disk, too (POSIX; Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
