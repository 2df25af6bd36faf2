"""Folders of runs: whose they are, what is removed from them and when; two programs in one, killed at any moment.

The programs here are child processes that do with a folder what train.py does, without training anything in between.
Run: pytest tests/test_checkpoint.py
"""

import json
import os
import shutil
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import agent_file
import checkpoint
import demo_format
import envs
import newt
import run_folder
from buffer import Buffer
from distributed import World

if not hasattr(os, "fork"):
    pytest.skip("the programs here are forks", allow_module_level=True)

CFG = newt.Config(size="XS", obs_dim=4, action_dim=2, task_dim=0, num_bins=5)
TASK = "mw-reach"
CPU = torch.device("cpu")
MINE = {  # what a user keeps in a run's folder, also where names look like ours
    "notes.txt": "mine",
    "config.yaml": "mine",
    ".git/config": "mine",
    "agent.safetensors.bak": "mine",
    "checkpoints/best/agent.safetensors": "mine",
    "checkpoints/.DS_Store": "mine",
    "checkpoints/.cache/x": "mine",
    "checkpoints/pretrain-0/why.txt": "mine",
    "checkpoints/12 (copy)/agent.safetensors": "mine",
    "buffer/rank-0/readme": "mine",
    "videos/holiday.mp4": "mine",
    "tb/events.out.tfevents.1": "mine",
}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Networks of some hundred numbers, one thread: a fork has none of its parent's, and would wait for them."""
    before, size = torch.get_num_threads(), newt.wm.SIZES["XS"]
    torch.set_num_threads(1)
    newt.wm.SIZES["XS"] = size._replace(enc_dim=8, mlp_dim=8, latent_dim=8)
    yield
    newt.wm.SIZES["XS"] = size
    torch.set_num_threads(before)


def program(folder: Path, seed: int, mode: str, at: Callable = lambda moment: None, updates: int = 0) -> None:
    """What train.py does with a folder: claims it; begins, or goes on; writes a checkpoint named `updates`."""
    own = checkpoint.Own(torch.Generator(), torch.Generator())
    online = Buffer(50, 4, 2)
    with run_folder.claim(folder, resume=mode == "resume", overwrite=mode == "overwrite"):
        at("claimed")
        if mode == "resume":
            agent, state = checkpoint.load(folder, CPU, own, World())
            checkpoint.load_buffer(folder, online, own, World(), 1)
            seed = run_folder.read_config(folder)["seed"]
        else:
            agent = newt.create(CFG, [TASK], torch.zeros(1, 0), [2], [0.9], seed)
            online.add(np.full((9, 4), seed, np.float32), np.zeros((9, 2)), np.zeros(9), 0)
            state = checkpoint.State("pretrain")
            checkpoint.begin(folder, {"seed": seed}, {}, {}, agent, state, own, online, World())
            (folder / "metrics.jsonl").write_text(f"{seed}\n")
        at("begun")
        if updates:
            online.add(np.full((9, 4), -seed, np.float32), np.zeros((9, 2)), np.zeros(9), 0)
            checkpoint.save(folder, str(updates), agent, state, own, online, updates, World())


def child(call: Callable, *args) -> int:
    """Process id of a fork that calls it; exit code 0, 2 for bad input, 9 where it was killed, 1 for anything else."""
    number = os.fork()
    if number:
        return number
    code = 0
    try:
        call(*args)
    except (OSError, ValueError) as error:
        code = 2 if "\n" not in str(error) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def run_of(folder: Path, seed: int) -> Path:
    """A run with two checkpoints, and what it draws at its end."""
    program(folder, seed, "new", updates=7)
    for name in ("curves.png", "videos/final.mp4", "events.out.tfevents.1.host.2.0"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(str(seed))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def leave(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def mine(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in MINE if (folder / name).is_file()}


def who(folder: Path) -> int | None:
    """Seed of the run that --resume would go on with, everything of it belonging together; None if there is none."""
    try:
        with run_folder.claim(folder, resume=True):
            own, online = checkpoint.Own(torch.Generator(), torch.Generator()), Buffer(50, 4, 2)
            agent, _ = checkpoint.load(folder, CPU, own, World())
            checkpoint.load_buffer(folder, online, own, World(), 1)
    except (FileNotFoundError, ValueError):
        return None
    seed = run_folder.read_config(folder)["seed"]
    fresh = newt.create(CFG, [TASK], torch.zeros(1, 0), [2], [0.9], seed)
    copy, _ = agent_file.load(folder / "agent.safetensors")
    for saved in (agent, copy):
        assert all(torch.equal(saved.params[name], value) for name, value in fresh.params.items())
    assert set(online.sample(50, 1).obs.unique().tolist()) <= {seed, -seed}
    if (folder / "metrics.jsonl").is_file():
        assert (folder / "metrics.jsonl").read_text() == f"{seed}\n"
    return seed


# ---- two programs


@pytest.mark.parametrize("moment", ["claimed", "begun"])
@pytest.mark.parametrize("first", ["new", "overwrite", "resume"])
@pytest.mark.parametrize("second", ["new", "overwrite", "resume"])
def test_every_pair_of_programs(first, second, moment, tmp_path):
    """The second is refused while the first is at work, and touches nothing; then the first is killed."""
    folder = tmp_path / "run"
    if first != "new":
        run_of(folder, 1)
        leave(folder, MINE)
    told, tell = os.pipe()

    def at(reached: str) -> None:
        if reached == moment:
            os.write(tell, b"x")
            signal.pause()

    other = child(program, folder, 2, first, at)
    os.close(tell)
    assert os.read(told, 1) == b"x", "the first one ended"
    os.close(told)
    before = snapshot(folder)
    assert ended(child(program, folder, 3, second)) == 2
    assert snapshot(folder) == before

    os.kill(other, signal.SIGKILL)
    ended(other)
    stands = 2 if moment == "begun" and first != "resume" else None if first == "new" else 1
    allowed = {"new": stands is None, "overwrite": True, "resume": stands is not None}[second]
    assert ended(child(program, folder, 3, second)) == (0 if allowed else 2)
    if not allowed:
        assert snapshot(folder) == before
    assert who(folder) == (3 if allowed and second != "resume" else stands)
    assert mine(folder) == (MINE if first != "new" else {})


def killed_at(count: int, folder: Path, call: Callable, *args) -> None:
    """Ends like a killed program in front of the count-th time that a name appears, disappears or changes."""
    left = [count]

    def hook(event: str, words: tuple) -> None:
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            left[0] -= 1
            if not left[0]:
                os._exit(9)

    sys.addaudithook(hook)
    call(*args)


@pytest.mark.parametrize("mode", ["overwrite", "resume", "new"])
def test_killed_at_any_moment(mode, tmp_path):
    """Then both --resume and --overwrite work, and nothing of the old run is gone before the new one stands."""
    made, count, seen, every = tmp_path / "made", 0, set(), 2 if mode == "overwrite" else 3
    if mode != "new":
        run_of(made, 1)
        leave(made, MINE)
    while True:
        count += every
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        if made.exists():
            shutil.copytree(made, folder)
        code = ended(child(killed_at, count, folder, program, folder, 2, mode, lambda moment: None, 9))
        assert code in (0, 9)
        left = snapshot(folder) if folder.exists() else {}
        if mode != "new":
            assert "agent.safetensors" in left and mine(folder) == MINE
        standing = (folder / run_folder.NEXT).exists() or (folder / "config.json").exists()
        standing = standing and run_folder.read_config(folder)["seed"]
        if mode == "overwrite" and standing == 1:
            assert {name: left[name] for name in snapshot(made)} == snapshot(made)
        again = tmp_path / "again"
        shutil.rmtree(again, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, again)
        assert who(folder) == (standing or None)
        seen.add(standing)
        program(again, 3, "overwrite")
        assert who(again) == 3
        if mode != "new":
            assert mine(folder) == mine(again) == MINE
        allowed = {run_folder.OURS.fullmatch(name) is not None for name in set(snapshot(again)) - set(MINE)}
        assert allowed == {True}
        if not code:
            break
    assert count >= 15 and seen == {"overwrite": {1, 2}, "resume": {1}, "new": {False, 2}}[mode]


def test_programs_that_begin_together(tmp_path):
    """Of eight one begins; the others leave nothing behind."""
    for k in range(5):
        folder = tmp_path / str(k)
        codes = [ended(number) for number in [child(program, folder, seed, "new") for seed in range(1, 9)]]
        assert sorted(codes) == [0, *[2] * 7]
        assert who(folder) == codes.index(0) + 1
        assert all(run_folder.OURS.fullmatch(name) for name in snapshot(folder))


# ---- what is in the folder


def test_only_files_of_a_run_are_replaced(tmp_path):
    run_of(tmp_path / "run", 1)
    leave(tmp_path / "run", MINE)
    ours = set(snapshot(tmp_path / "run")) - set(MINE)
    assert len(ours) == 14
    program(tmp_path / "run", 2, "overwrite")
    assert mine(tmp_path / "run") == MINE and who(tmp_path / "run") == 2
    left = set(snapshot(tmp_path / "run")) - set(MINE)
    assert left < ours and not any("7/" in name or "final" in name or "events" in name for name in left)


@pytest.mark.parametrize("name", ["agent.safetensors", "a_users_model"])
def test_what_is_not_a_run_is_never_touched(name, tmp_path):
    """config.json is a common name."""
    for number, config in enumerate(['{"model_type": "bert"}', "[1, 2]", "{", "", '{"newt_run": 1}', '{"agent": {}}']):
        folder = tmp_path / str(number)
        leave(folder, {"config.json": config, "thesis.txt": "mine", name: "mine"})
        before = snapshot(folder)
        for mode in ("new", "overwrite", "resume"):
            with pytest.raises((FileExistsError, ValueError)):
                program(folder, 2, mode)
            assert snapshot(folder) == before


def test_a_run_of_the_time_before_marks_is_one(tmp_path):
    run_of(tmp_path, 1)
    settings = {"seed": 1, "tasks": TASK, "preset": "auto", "demo_episodes": 1, "pretrain_updates": 1}
    agent = {"online_bc_coef": 1.0, "constraint_duration": 1}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"agent": agent}))
    assert who(tmp_path) == 1
    program(tmp_path, 2, "overwrite")
    assert who(tmp_path) == 2


def test_a_run_without_checkpoints_is_not_resumed(tmp_path):
    run_of(tmp_path / "run", 1)
    leave(tmp_path / "run", MINE)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = snapshot(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="checkpoints are gone"):
        program(tmp_path / "run", 2, "resume")
    assert snapshot(tmp_path / "run") == before
    program(tmp_path / "run", 2, "overwrite")
    assert who(tmp_path / "run") == 2


def test_the_folder_itself_stays(tmp_path, monkeypatch):
    """A link to another disk, or where one is mounted: it can't be removed, and neither can its lost+found."""
    disk, link = tmp_path / "disk", tmp_path / "run"
    (disk / "lost+found").mkdir(parents=True)
    link.symlink_to(disk)
    number = disk.stat().st_ino
    rmdir = os.rmdir

    def busy(path, **words):
        if not words.get("dir_fd") and os.path.samefile(path, disk):
            raise OSError(16, "Device or resource busy")
        rmdir(path, **words)

    monkeypatch.setattr(os, "rmdir", busy)
    for seed, mode in ((1, "new"), (2, "overwrite"), (3, "resume")):
        program(link, seed, mode)
    assert link.is_symlink() and disk.stat().st_ino == number and who(disk) == 2


def test_parts_of_a_run_on_another_disk(tmp_path):
    run_of(tmp_path / "run", 1)
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "big")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "big")
    assert who(tmp_path / "run") == 1
    program(tmp_path / "run", 2, "overwrite", updates=3)
    assert who(tmp_path / "run") == 2 and (tmp_path / "run" / "checkpoints").is_symlink()
    assert [path.name for path in run_folder.complete(tmp_path / "run")] == ["pretrain-0", "3"]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        program(tmp_path / "file", 1, "overwrite")
    with pytest.raises(OSError):
        program(tmp_path / "file" / "below", 1, "new")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        program(tmp_path / "none", 1, "resume")
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_a_program_that_fails_before_it_begins_leaves_nothing(tmp_path):
    def fail(moment: str) -> None:
        raise ValueError(moment)

    with pytest.raises(ValueError, match="claimed"):
        program(tmp_path / "run", 1, "new", fail)
    assert not (tmp_path / "run").exists()
    run_of(tmp_path / "run", 1)
    before = snapshot(tmp_path / "run")
    for mode in ("overwrite", "resume"):
        with pytest.raises(ValueError, match="claimed"):
            program(tmp_path / "run", 2, mode, fail)
        assert snapshot(tmp_path / "run") == before


def test_foreign_names_among_the_checkpoints(tmp_path):
    """They are neither read nor deleted, by checkpoints that replace each other in particular."""
    run_of(tmp_path, 1)
    leave(tmp_path, MINE)
    (tmp_path / "checkpoints" / "99").mkdir()  # somebody's, and no checkpoint
    (tmp_path / "checkpoints" / "8").mkdir()
    (tmp_path / "checkpoints" / "8" / "why.txt").write_text("mine")
    for updates in (8, 9, 10):
        program(tmp_path, 1, "resume", updates=updates)
    assert [path.name for path in run_folder.complete(tmp_path)] == ["9", "10"]
    assert mine(tmp_path) == MINE and (tmp_path / "checkpoints" / "99").is_dir()
    assert os.listdir(tmp_path / "checkpoints" / "8") == ["why.txt"]
    assert who(tmp_path) == 1


def test_files_may_be_read_by_whoever_umask_says(tmp_path):
    for umask, rights in ((0o022, 0o644), (0o007, 0o660)):
        before = os.umask(umask)
        try:
            run_of(tmp_path / str(umask), 1)
        finally:
            os.umask(before)
        files = [path for path in (tmp_path / str(umask)).rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {rights}


# ---- demonstrations of a run


def demonstrations(path: Path, seeds: list[int], shift: float = 0) -> demo_format.Demos:
    """Episodes of two rows; all of one return, as where the return is success."""
    row, n = envs.TASKS[TASK], len(seeds)
    obs = np.repeat(np.array(seeds, np.float32)[:, None], 2 * row.obs_dim, 1).reshape(2 * n, row.obs_dim)
    action, reward = np.zeros((2 * n, row.action_dim), np.float32), np.ones(2 * n, np.float32)
    action[::2], reward[::2] = np.nan, np.nan
    ends = (np.ones(n, np.float32) + np.float32(shift), *np.ones((2, n), np.float32))
    demo = demo_format.Demos(obs, action, reward, np.arange(0, 2 * n + 1, 2), *ends, np.array(seeds), {})
    demo = demo._replace(meta={"version": demo_format.FORMAT_VERSION, "task": TASK, "source": "script"})
    demo_format.save(path, demo)
    return demo


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A project with a run that began with demonstrations of seeds 5, 6, 7; whoever looks stands elsewhere."""
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    path = Path("demos") / f"{TASK}.safetensors"
    demo = demonstrations(path, [5, 6, 7, 8])
    agent = newt.create(CFG, [TASK], torch.zeros(1, 0), [2], [0.9])
    state = checkpoint.State("pretrain", demos={TASK: demo.ret[:3].tolist()})
    own = checkpoint.Own(torch.Generator(), torch.Generator())
    folder = Path("runs/run")
    with run_folder.claim(folder):
        checkpoint.begin(folder, {}, {TASK: path}, {TASK: demo}, agent, state, own, Buffer(50, 4, 2), World())
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def found(folder: Path) -> tuple[list[float], str]:
    """Seeds of the episodes, which are also their observations; where they were."""
    demos, moved = checkpoint.find_demos(folder, {TASK: [1.0] * 3}, Path("demos"))
    assert demos[TASK].obs[::2, 0].tolist() == demos[TASK].seed.tolist()
    return demos[TASK].seed.tolist(), moved


def test_demonstrations_are_found_from_any_folder(shown):
    assert found(shown / "runs" / "run") == ([5, 6, 7], "")
    assert found(Path("../project/runs/run")) == ([5, 6, 7], "")


def test_demonstrations_that_moved_are_found_by_name_and_it_is_said(shown):
    other = shown.parent / "other"
    shown.rename(other)  # with the run
    moved = f"demonstrations are in {other / 'demos'}, they were in {shown / 'demos'}"
    assert found(other / "runs" / "run") == ([5, 6, 7], moved)
    shutil.move(other / "demos", "demos")  # here
    moved = f"demonstrations are in {Path('demos').resolve()}, they were in {shown / 'demos'}"
    assert found(other / "runs" / "run") == ([5, 6, 7], moved)
    shutil.rmtree("demos")
    with pytest.raises(FileNotFoundError, match="began with demonstrations of mw-reach that are gone"):
        found(other / "runs" / "run")


def test_a_run_that_moved_alone_knows_where_they_are(shown):
    shutil.move(shown / "runs" / "run", "moved")
    assert found(Path("moved")) == ([5, 6, 7], "")


def test_demonstrations_that_were_added_since_do_not_matter(shown):
    demonstrations(shown / "demos" / f"{TASK}.safetensors", [1, 5, 2, 6, 7, 8, 9, 3])
    assert found(shown / "runs" / "run")[0] == [5, 6, 7]


def test_other_demonstrations_are_refused(shown):
    for seeds, shift in (([5, 6, 8], 0), ([5, 6, 7], 1)):
        demonstrations(shown / "demos" / f"{TASK}.safetensors", seeds, shift)
        with pytest.raises(ValueError, match="began with other demonstrations of mw-reach than those in"):
            found(shown / "runs" / "run")
