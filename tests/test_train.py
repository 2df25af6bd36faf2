"""train.py end to end on one short task: everything it writes, kill -9 and resume, finetuning, bad input.

Run: pytest tests/test_train.py        (about two minutes on one core; signals and faults: tests/test_faults.py)
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

import agent_file
import checkpoint
import demo_format
import envs
import eval as evaluation
import losses
import newt
import prepare
import run_folder
import train
from buffer import Batch, Buffer
from distributed import World
from episodes import Episode

ROOT = Path(train.__file__).parent
SMALL = (
    "--preset laptop --tasks mw-reach --demo-episodes 2 --imitation-updates 3 --pretrain-updates 3 --steps 220 "
    "--checkpoint-updates 4 --seed-episodes 1 --eval-every 100 --eval-episodes 1 --final-episodes 2 --log-every 2 "
    "--utd 0.1 --batch-size 16 --num-samples 16 --num-elites 4 --num-pi 2 --iterations 2 --buffer-steps 350 --workers 1"
).split()

# Any attempt to reach a machine is recorded and fails as it does without a network.
NO_NETWORK = """
import os, socket
real = socket.socket.connect
def connect(self, address):
    if self.family == getattr(socket, "AF_UNIX", None):
        return real(self, address)
    open(os.environ["ATTEMPTS"], "a").write(f"{address}\\n")
    raise OSError(101, "Network is unreachable")
socket.socket.connect = socket.socket.connect_ex = connect
"""


def command(folder: Path, *args: str, film: bool = False) -> dict:
    """Arguments for Popen: train.py with an empty home folder, no display, and a network that cannot be reached.

    Without OpenGL, unless the film at the end is asked for: drawn on a CPU, it takes a third of such a run's time.
    """
    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    environ = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "WANDB_API_KEY")}
    environ |= {"HOME": str(folder / "home"), "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    environ |= {"ATTEMPTS": str(folder / "attempts"), "CUDA_VISIBLE_DEVICES": ""}
    environ |= {} if film else {"MUJOCO_GL": "disabled"}
    return {"args": [sys.executable, ROOT / "train.py", *args], "cwd": folder, "env": environ, "text": True}


def wait_for(process: subprocess.Popen, condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run ended or hangs"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A whole run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, subprocess.run(**command(folder, *SMALL, "--folder", "whole", film=True), capture_output=True)


def test_needs_no_network_home_display_or_gpu(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert not (folder / "attempts").exists(), (folder / "attempts").read_text()


def test_files_of_a_run(finished):
    folder, done = finished
    run = folder / "whole"
    # Episodes of 100 steps; evaluations after 100 and 200 steps and at the end; the newest two checkpoints are kept.
    assert [p.name for p in run_folder.complete(run)] == ["200", "220"]
    assert json.loads((run / "config.json").read_text())["agent"]["batch_size"] == 16
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if "eval/mw-reach/score" in line]
    assert evaluated == [0, 0, 100, 200, 220]  # random, after pretraining, two on the way, final
    assert [line["step"] for line in lines if "train/mw-reach/return" in line] == [100, 200]
    # 0.1 updates per step, none in the first episode
    assert max(line["train/updates"] for line in lines if "train/updates" in line) == 12
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list(run.glob("events.out.tfevents*"))
    assert (run / "agent.safetensors").read_bytes() == (run / "checkpoints/220/agent.safetensors").read_bytes()
    assert (run / "videos/final.mp4").is_file() or "no video:" in done.stderr


def test_prints_settings_and_table(finished):
    _, done = finished
    assert "num_samples          16" in done.stdout and "seed_episodes        1" in done.stdout
    assert "settings: preset laptop (as asked), demonstrations\n" in done.stdout
    for name, value in (("preset", "laptop"), ("folder", "whole"), ("device", "cpu"), ("workers", "1")):
        assert f"  {name:20} {value}\n" in done.stdout
    table = done.stdout[done.stdout.index("score (0 to 1)") :].splitlines()
    assert table[1].split() == ["task", *["random", "pretrained", "online"] * 2]
    assert table[2].split()[0] == "mw-reach" and len(table[2].split()) == 7
    assert "it/s" in done.stderr or "update/s" in done.stderr  # tqdm bars


def assert_same_run(one: Path, other: Path, ranks: int = 1) -> None:
    """Weights, optimisers, random streams, what the buffers hold, and metrics but for times: equal to the last bit."""
    newest = [run_folder.complete(run)[-1] for run in (one, other)]
    assert newest[0].name == newest[1].name
    names = ["agent.safetensors", *(f"rank-{rank}.safetensors" for rank in range(ranks)), "state.safetensors"]
    assert all(sorted(file.name for file in path.iterdir()) == names for path in newest)
    for name in names:
        ours, theirs = (load_file(path / name) for path in newest)
        assert ours.keys() == theirs.keys() and len(ours) > 1
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    for rank in range(ranks):
        content = []
        for run, path in zip((one, other), newest, strict=True):
            with safetensors.safe_open(path / f"rank-{rank}.safetensors", "pt") as file:
                counts = json.loads(file.metadata()["newt_rank"])
            config = json.loads((run / "config.json").read_text())
            online = Buffer(config["buffer_steps"] // ranks, config["agent"]["obs_dim"], config["agent"]["action_dim"])
            online.load(run / "buffer" / f"rank-{rank}", counts["buffer_first"], counts["buffer_episodes"])
            batch = online.sample(50_000, 1, torch.Generator().manual_seed(0), by="step")  # each step several times
            content.append((online.steps, online.episodes, *batch))
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*content, strict=True))
    plain = [
        [{k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
         for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)
    ]  # fmt: skip
    assert plain[0] == plain[1]


class Killed(NamedTuple):
    run: Path
    codes: list[int]  # what the killed processes ended with
    workers: set[str]  # children that the last one had
    left: set[str]  # those that were still there ten seconds after it
    done: subprocess.CompletedProcess  # the last resume


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Killed:
    """The same run, killed in pretraining, resumed, killed online after a few evaluations, and resumed to its end."""
    folder, words, codes = tmp_path_factory.mktemp("killed"), [*SMALL, "--folder", "cut"], []
    run, workers = folder / "cut", set()
    for moment in ("pretrain-4", "200"):
        process = subprocess.Popen(**command(folder, *words), stdout=-3, stderr=-3)
        while not (run / "checkpoints" / moment).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)  # somewhere in what follows
        if sys.platform.startswith("linux") and process.poll() is None:
            workers = set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            assert moment != "200" or any(
                "spawn_main" in Path(f"/proc/{child}/cmdline").read_text() for child in workers
            )
        process.send_signal(signal.SIGKILL)
        codes.append(process.wait())
        # A checkpoint that was being written when the power went is invisible.
        (run / "checkpoints" / ".999").mkdir(exist_ok=True)
        words = ["--resume", "cut"]
    left, deadline = workers, time.monotonic() + 10
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = {child for child in left if Path(f"/proc/{child}").exists()}
    done = subprocess.run(**command(folder, *words), capture_output=True)
    return Killed(run, codes, workers, left, done)


def test_killed_run_resumes_bit_for_bit(finished, killed):
    assert killed.codes == [-signal.SIGKILL] * 2, "the run ended before it could be killed"
    assert killed.done.returncode == 0, killed.done.stderr
    assert_same_run(killed.run, finished[0] / "whole")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_do_not_outlive_a_kill(killed):
    assert killed.workers and not killed.left


def test_finetuning_keeps_the_network_and_changes_the_tasks(finished):
    source = finished[0] / "whole" / "agent.safetensors"
    setup = train.parse([*SMALL, "--tasks", "mw-push,mw-drawer-open", "--ckpt", str(source), "--size", "S"])
    agent = prepare.create_agent(setup, torch.device("cpu"))
    saved, _ = agent_file.load(source)
    assert agent.cfg.size == "XS" and agent.tasks == ("mw-push", "mw-drawer-open")
    assert all(torch.equal(agent.params[name], value) for name, value in saved.params.items())
    assert agent.q_scale == saved.q_scale and not agent.model_optim.state
    assert not torch.allclose(agent.emb[0], saved.emb[0])


def test_instruction_is_what_the_agent_hears():
    setup = train.parse([*SMALL, "--instruction", "Bring the hand to the goal"])
    agent = prepare.create_agent(setup, torch.device("cpu"))
    body = envs.TASKS["mw-reach"].embodiment
    torch.testing.assert_close(agent.emb, prepare.language.embed([f"{body}. Bring the hand to the goal."]))


def test_own_tasks_end_to_end(tmp_path):
    """Two tasks whose episodes end early, one for good: a run, its files, and going on with it."""
    dies, cut = "my_envs:rich", "gym:my_envs:lab/Reach-v0"
    shutil.copy(ROOT / "tests" / "my_envs.py", tmp_path)
    words = ["--tasks", f"{dies},{cut}", *SMALL[4:], "--demos", "none", "--steps", "60", "--eval-every", "30"]
    done = subprocess.run(**command(tmp_path, "--preset", "laptop", *words), capture_output=True)
    assert done.returncode == 0, done.stderr
    # 10,000 in each of 7 steps, discounted by 0.95; told once
    assert done.stderr.count("is clipped") == 1 and f"{dies}: values reach 60,333" in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "my_envs=rich+gym=my_envs=lab@Reach-v0"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for task, steps, score in ((dies, 7, False), (cut, 5, True)):
        ended = [line for line in lines if f"train/{task}/length" in line]
        ends = [2 * (begun + t) for begun in (0, 30) for t in range(steps, 31, steps)]
        assert [line["step"] for line in ended] == ends
        assert {line[f"train/{task}/length"] for line in ended} == {steps}
        assert all((f"train/{task}/score" in line) == score for line in ended)
        assert (f"eval/{task}/score" in lines[0]) == score and lines[0][f"eval/{task}/length"] == steps
    table = done.stdout[done.stdout.index("score (0 to 1)") :].splitlines()
    assert table[0].split()[-2:] == ["return", "length"] and re.search(rf"^{dies} +- +- ", table[2]), table
    again = subprocess.run(**command(tmp_path, "--resume", str(run), *words[:2], "--steps", "90"), capture_output=True)
    assert again.returncode == 0, again.stderr
    own, online = checkpoint.Own(torch.Generator(), torch.Generator()), Buffer(450, 128, 16)
    agent, _ = checkpoint.load(run, torch.device("cpu"), own, World())
    checkpoint.load_buffer(run, online, own, World(), 2)
    assert online.steps == 3 * (28 + 30)  # what happened and was not cut off by an evaluation
    batch = online.sample(500, 3, torch.Generator().manual_seed(0))
    assert batch.terminated[:, batch.task == 0].any() and not batch.terminated[:, batch.task == 1].any()


# ---- bad input: one line on stderr, exit code 2, nothing overwritten


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def files(finished, tmp_path_factory) -> Path:
    """A folder with a good checkpoint, three bad ones, a run and a folder that is none."""
    folder = tmp_path_factory.mktemp("bad")
    good = (finished[0] / "whole" / "agent.safetensors").read_bytes()
    (folder / "good.safetensors").write_bytes(good)
    (folder / "truncated.safetensors").write_bytes(good[: len(good) // 2])
    (folder / "text.safetensors").write_bytes(b"not a checkpoint at all")
    save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
    (folder / "old").mkdir()
    (folder / "old" / "config.json").write_text(json.dumps({run_folder.MARK: {"folder": "old", "demos": {}}}))
    for name, content in (
        ("junk", b"precious"),
        ("cut", (finished[0] / "demos" / "mw-reach.safetensors").read_bytes()),
    ):
        (folder / name).mkdir()
        (folder / name / "mw-reach.safetensors").write_bytes(content[:-1])
    (folder / "swapped").mkdir()
    (folder / "swapped" / "mw-push.safetensors").write_bytes(content)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model" / "thesis.tex").write_text("precious")
    shutil.copytree(finished[0] / "whole", folder / "gone", ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "gone" / "notes.txt").write_text("precious")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("precious")
    return folder


BAD = {
    "unknown task": ("--tasks mw-reech", "mw-reach"),
    "no task": ("--tasks ,", "no task"),
    "batch": ("--batch-size 0", "batch_size must be at least 1"),
    "horizon": ("--horizon 0", "horizon must be at least 1"),
    "samples": ("--num-samples 0", "num_samples must be at least 1"),
    "steps": ("--steps 0", "steps must be at least 1"),
    "seed episodes": ("--seed-episodes 0", "seed_episodes must be at least 1"),
    "environments": ("--envs-per-task -3", "envs_per_task must be at least 1"),
    "obs_dim": ("--obs-dim 20", "obs_dim is 20, these tasks need 39"),
    "long horizon": ("--horizon 101", "horizon 101 is longer"),
    "two instructions": ("--tasks mw-reach,mw-push --instruction Push", "single task"),
    "no checkpoint": ("--ckpt nowhere.safetensors", "no checkpoint at nowhere.safetensors"),
    "truncated": ("--ckpt truncated.safetensors", "not a complete safetensors file"),
    "text": ("--ckpt text.safetensors", "not a complete safetensors file"),
    "foreign": ("--ckpt foreign.safetensors", "not a Newt checkpoint"),
    "run exists": ("--folder old", "--resume old continues it"),
    "not a run": ("--folder mine --overwrite", "not a run"),
    "another program's": ("--folder model --overwrite", "not a run"),
    "another program's, to resume": ("--resume model", "written by another program"),
    "a file": ("--folder good.safetensors --overwrite", "good.safetensors is a file"),
    "no checkpoints": ("--resume gone", "its checkpoints are gone"),
    "nothing to resume": ("--resume mine", "no run to resume"),
    "foreign run": ("--resume old", "another version"),
    "no demonstrations": ("--tasks mw-reach,mw-push --demos good_intentions", "mw-reach, mw-push"),
    "demonstrations of nothing": ("--demos junk", "junk/mw-reach.safetensors is not"),
    "truncated demonstrations": ("--demos cut", "cut/mw-reach.safetensors is not a complete"),
    "of another task": ("--tasks mw-push --demos swapped", "swapped/mw-push.safetensors is format 1 of mw-reach"),
    "memory": ("--buffer-steps 10000000000000", "GB are free"),
    "evaluations too often": ("--eval-every 60", "eval_every 60 is shorter than an episode"),
    "update rate": ("--utd nan", "utd must be a number, got nan"),
    "infinite update rate": ("--utd inf", "utd must be at most 1000"),
    "rates at the end": ("--lr-end nan", "lr_end must be a number"),
    "temperature": ("--temperature nan", "temperature must be a number"),
    "search": ("--std-min 5 --std-max 1", "std_min 5.0 is above std_max 1.0"),
    "target": ("--tau 5", "tau must be at most 1"),
    "clipping": ("--grad-clip -1", "grad_clip must be at least"),
    "warm-up": ("--warmup-updates -3", "warmup_updates must be at least 0"),
    "seed": ("--seed -1", "seed must be at least 0"),
    "many environments": ("--envs-per-task 10000000", "GB are needed for unfinished episodes"),
    "folder under a file": ("--folder text.safetensors/new", "Not a directory"),
    "small buffer": ("--buffer-steps 100", "cannot hold one episode"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, files, monkeypatch, capsys):
    args, message = BAD[name]
    monkeypatch.chdir(files)
    before = snapshot(files)
    small = [] if "--resume" in args else SMALL
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse([*small, "--demos", "none", "--folder", "new", *args.split()]))
                       if small else train.main(train.parse(args.split())))  # fmt: skip
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in err and err.count("\n") == 1 and not out, err
    assert snapshot(files) == before


def test_tasks_of_a_stored_run_run_no_code_unasked(finished, tmp_path, monkeypatch, capsys):
    """Names with a colon are modules: out of config.json they are made only if the user repeats them."""
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evilmod.py").write_text("open('proof', 'w')")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    for tasks in ("evilmod:f", "mw-reach,gym:evilmod:X-v0"):
        (tmp_path / "whole" / "config.json").write_text(json.dumps({**config, "tasks": tasks}))
        for words in ([], ["--tasks", "mw-reach"]):
            with pytest.raises(SystemExit) as stopped:
                evaluation.run(lambda words=words: train.main(train.parse(["--resume", "whole", *words])))
            err = capsys.readouterr().err
            assert stopped.value.code == 2 and "with --tasks" in err and err.count("\n") == 1, err
    assert not (tmp_path / "proof").exists() and "evilmod" not in sys.modules
    with pytest.raises(ValueError, match="cannot be made"):  # and it is tried
        train.parse(["--resume", "whole", "--tasks", "mw-reach,gym:evilmod:X-v0"])
    assert (tmp_path / "proof").exists() and sys.modules.pop("evilmod")


def test_a_checkpoint_of_other_tasks_than_the_run_is_refused(finished, tmp_path, monkeypatch, capsys):
    """And so is one whose tables name a task that its agent doesn't know: the summary would make it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0] / "demos", tmp_path / "demos")
    for file, spoil, message in (
        ("agent.safetensors", lambda meta: meta.update(tasks=["evilmod:f"]), "other tasks than the agent's"),
        ("state.safetensors", lambda meta: meta["results"].update(random={"evilmod:f": []}), "'random' of other"),
        ("state.safetensors", lambda meta: meta["demos"].update({"evilmod:f": [0]}), "'demos' of other tasks"),
        ("state.safetensors", lambda meta: meta.update(vector_step="1"), "vector_step must be a number"),
        ("rank-0.safetensors", lambda meta: meta["episodes"].update({"evilmod:f": 1}), "other tasks than the agent's"),
    ):
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
        shutil.copytree(finished[0] / "whole", tmp_path / "whole")
        path = run_folder.complete(tmp_path / "whole")[-1] / file
        with safetensors.safe_open(path, "pt") as opened:
            ((key, text),) = opened.metadata().items()
        spoil(meta := json.loads(text))
        save_file(load_file(path), path, {key: json.dumps(meta)})
        with pytest.raises(SystemExit):
            evaluation.run(lambda: train.main(train.parse(["--resume", "whole"])))
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1 and "to resume from the checkpoint before" in err, err


@pytest.mark.parametrize("words, said", [(" ", "is empty"), ("\u200b", "is empty"), ("a\udcff", "no text in UTF-8")])
def test_an_instruction_is_words(words, said, files, monkeypatch, capsys):
    """What a terminal of another encoding, or an empty variable in a script, makes of it."""
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(train.main, train.parse([*SMALL, "--demos", "none", "--folder", "new", "--instruction", words]))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and said in err and err.count("\n") == 1 and not out, err


@pytest.fixture
def no_evaluation(monkeypatch):
    """For what happens to folders and claims when a run goes on: evaluating would take most of the time."""
    monkeypatch.setenv("MUJOCO_GL", "disabled")  # nor films
    played = Episode(0.0, 0.0, 0.0, 100)
    monkeypatch.setattr(train, "evaluate", lambda _, tasks, n, *__: dict.fromkeys(tasks, [played] * n))


def test_a_film_that_fails_costs_the_film_only(finished, no_evaluation, tmp_path, monkeypatch, capsys):
    class FatalError(Exception):  # MuJoCo's own is no RuntimeError
        pass

    def record(*_):
        raise FatalError("no OpenGL")

    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    shutil.copytree(finished[0] / "demos", tmp_path / "demos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "record", record)
    train.main(train.parse(["--resume", "whole"]))
    out, err = capsys.readouterr()
    assert "score (0 to 1)" in out and "no video: no OpenGL" in err


def test_logs_have_lines_and_no_bars(finished):
    _, done = finished
    assert re.search(r"^pretrain: 6 updates, [\d.]+ update/s, .* left$", done.stderr, re.M), done.stderr
    assert re.search(r"^online: 220 steps, [\d.]+ step/s, .* left$", done.stderr, re.M), done.stderr
    assert "%|" not in done.stderr and "Warning" not in done.stderr


def test_resume_does_not_change_settings(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    before = snapshot(finished[0] / "whole")
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse(["--resume", "whole", "--utd", "0.5"])))
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "can't change utd" in err and err.count("\n") == 1
    assert snapshot(finished[0] / "whole") == before


def test_resume_remembers_more_steps(finished, no_evaluation, tmp_path, monkeypatch):
    """A run that is continued for longer, and stopped again, goes on to where it was told to go; from anywhere."""
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train.main(train.parse(["--resume", "../whole", "--steps", "230"]))
    assert train.parse(["--resume", "../whole"]).cfg.steps == 230
    assert [path.name for path in run_folder.complete(tmp_path / "whole")] == ["220", "230"]


def test_restart_by_torchrun_goes_on_with_its_own_run_only(finished, no_evaluation, tmp_path, monkeypatch, capsys):
    """It starts all processes again with the same words; what lies in the folder may be somebody else's."""
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    shutil.copytree(finished[0] / "demos", tmp_path / "demos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    kept = snapshot(tmp_path / "whole")
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse([*SMALL, "--folder", "whole", "--seed", "1"])))
    assert stopped.value.code == 2 and "already holds a run" in capsys.readouterr().err
    assert snapshot(tmp_path / "whole") == kept
    for _ in range(2):  # and with it again
        train.main(train.parse([*SMALL, "--folder", "whole"]))
    assert run_folder.complete(tmp_path / "whole")[-1].name == "220"


def test_two_programs_never_work_in_one_folder(finished, no_evaluation, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    shutil.copytree(finished[0] / "demos", tmp_path / "demos")
    monkeypatch.chdir(tmp_path)
    hold = "import run_folder, pathlib, time\nwith run_folder.claim(pathlib.Path('whole'), resume=True):\n"
    hold += " print(flush=True)\n time.sleep(100)"
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    other.stdout.readline()
    kept = snapshot(tmp_path / "whole")
    for words in (["--resume", "whole", "--steps", "500"], [*SMALL, "--folder", "whole", "--overwrite"]):
        with pytest.raises(SystemExit) as stopped:
            evaluation.run(lambda words=words: train.main(train.parse(words)))
        assert stopped.value.code == 2 and "another process is at work in whole" in capsys.readouterr().err
        assert snapshot(tmp_path / "whole") == kept
    other.kill()
    other.wait()
    train.main(train.parse(["--resume", "whole"]))  # nothing is left of the claim


def test_resume_with_other_demonstrations_is_refused(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    shutil.copytree(finished[0] / "demos", tmp_path / "demos")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "demos" / "mw-reach.safetensors"
    demo = demo_format.load(file, "mw-reach")
    demo_format.save(file, demo._replace(ret=demo.ret + 1))
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse(["--resume", "whole"])))
    assert stopped.value.code == 2 and "whole began with other demonstrations" in capsys.readouterr().err


def test_checkpoint_of_another_version_is_refused(finished, tmp_path):
    """One that doesn't say which demonstrations it began with would go on without any."""
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    path = run_folder.complete(tmp_path / "whole")[-1] / "state.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["newt_state"])
    del meta["demos"]
    save_file(load_file(path), path, {"newt_state": json.dumps(meta)})
    own = checkpoint.Own(torch.Generator(), torch.Generator())
    with pytest.raises(ValueError, match="state.safetensors was written by another version"):
        checkpoint.load(tmp_path / "whole", torch.device("cpu"), own, World())


def test_command_line_exit_code(tmp_path):
    done = subprocess.run(**command(tmp_path, "--tasks", "mw-reech"), capture_output=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: unknown task")


@pytest.mark.parametrize("phase", ["pretrain", "online"])
def test_what_is_not_a_number_stops_before_the_step(finished, phase):
    agent, _ = agent_file.load(finished[0] / "whole" / "agent.safetensors")
    generator = torch.Generator().manual_seed(0)
    h, b, cfg = agent.cfg.horizon, 16, agent.cfg
    obs = torch.randn(h + 1, b, cfg.obs_dim, generator=generator)
    batch = Batch(obs, torch.zeros(h, b, cfg.action_dim), torch.zeros(h, b), torch.zeros(b, dtype=torch.long))
    newt.update(agent, batch, phase)
    before = {name: value.clone() for name, value in agent.params.items()}
    batch.reward[1, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="loss nan"):
        newt.update(agent, batch, phase)
    assert all(torch.equal(agent.params[name], before[name]) for name in before)


def test_a_loss_that_is_not_a_number_keeps_the_last_checkpoint(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    shutil.copytree(finished[0] / "demos", tmp_path / "demos")
    monkeypatch.chdir(tmp_path)
    kept = snapshot(tmp_path / "whole" / "checkpoints")
    model_loss = losses.model_loss

    def bad(*args):
        loss, zs, metrics = model_loss(*args)
        return loss * torch.inf, zs, metrics

    monkeypatch.setattr(newt, "model_loss", bad)
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse(["--resume", "whole", "--steps", "500"])))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "is not finite" in error and "checkpoint in whole is kept" in error
    assert snapshot(tmp_path / "whole" / "checkpoints") == kept


def test_every_line_of_metrics_says_where_the_time_went(finished):
    lines = [json.loads(line) for line in (finished[0] / "whole" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss/model" in line]
    assert len(lines) > 5
    for line in lines:
        shares = [line[f"time/{what}"] for what in ("plan", "update", "wait", "log")]
        assert min(shares) >= 0 and sum(shares) <= 1.001 and line["time/update"] > 0
        assert line["time/hours_left"] >= 0 and 0.1 < line["memory/learner_gb"] < 8
        online = line["step"] > 0
        assert line["time/steps_per_s" if online else "time/updates_per_s"] > 0
        assert (line["memory/workers_gb"] > 0.02) == online
    # Nothing but bookkeeping is left over
    assert np.mean([sum(line[f"time/{w}"] for w in ("plan", "update", "wait", "log")) for line in lines]) > 0.8
