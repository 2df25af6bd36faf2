"""train.py end to end on one short task: everything it writes, kill -9 and resume, finetuning, bad input.

Run: pytest tests/test_train.py        (about two minutes on one core)
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from test_newt import fields_that_take_nonsense

import agent_file
import checkpoint
import demo_format
import envs
import eval as evaluation
import newt
import prepare
import recordings
import run_folder
import train
import train_config
from buffer import Batch, Buffer
from clock import Clock, describe, estimate
from command import Interruption, check_fields
from distributed import World

ROOT = Path(train.__file__).parent
PATHS = ("folder", "resume", "ckpt", "image_weights")
SMALL = (
    "--preset laptop --tasks mw-reach --demo-episodes 2 --pretrain-updates 6 --checkpoint-updates 4 --steps 320 "
    "--seed-episodes 1 --eval-every 100 --eval-episodes 1 --final-episodes 2 --log-every 2 --utd 0.1 --batch-size 16 "
    "--num-samples 16 --num-elites 4 --num-pi 2 --iterations 2 --buffer-steps 450 --workers 1"
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


def command(folder: Path, *args: str) -> dict:
    """Arguments for Popen: train.py with an empty home folder, no display, and a network that cannot be reached."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    environ = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "WANDB_API_KEY")}
    environ |= {"HOME": str(folder / "home"), "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    environ |= {"ATTEMPTS": str(folder / "attempts"), "CUDA_VISIBLE_DEVICES": ""}
    return {"args": [sys.executable, ROOT / "train.py", *args], "cwd": folder, "env": environ, "text": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A whole run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, subprocess.run(**command(folder, *SMALL, "--folder", "whole"), capture_output=True)


def test_needs_no_network_home_display_or_gpu(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert not (folder / "attempts").exists(), (folder / "attempts").read_text()


def test_files_of_a_run(finished):
    folder, done = finished
    run = folder / "whole"
    # Episodes of 100 steps; evaluations after 100, 200, 300 steps and at the end; the newest two checkpoints are kept.
    assert [p.name for p in run_folder.complete(run)] == ["300", "320"]
    assert json.loads((run / "config.json").read_text())["agent"]["batch_size"] == 16
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if "eval/mw-reach/score" in line]
    assert evaluated == [0, 0, 100, 200, 300, 320]  # random, after pretraining, three on the way, final
    assert [line["step"] for line in lines if "train/mw-reach/return" in line] == [100, 200, 300]
    # 0.1 updates per step, none in the first episode
    assert max(line["train/updates"] for line in lines if "train/updates" in line) == 22
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list(run.glob("events.out.tfevents*"))
    assert (run / "agent.safetensors").read_bytes() == (run / "checkpoints/320/agent.safetensors").read_bytes()
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


def test_killed_run_resumes_bit_for_bit(finished, tmp_path):
    whole = finished[0] / "whole"
    for moment in ("pretrain-4", "200"):  # in pretraining, and online after a few evaluations
        folder = tmp_path / moment
        process = subprocess.Popen(**command(folder, *SMALL, "--folder", "cut"), stdout=-3, stderr=-3)
        run = folder / "cut"
        while not (run / "checkpoints" / moment).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)  # somewhere in what follows
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        # A checkpoint that was being written when the power went is invisible.
        (run / "checkpoints" / ".999").mkdir()
        done = subprocess.run(**command(folder, "--resume", "cut"), capture_output=True)
        assert done.returncode == 0, done.stderr
        assert_same_run(run, whole)


def test_workers_do_not_outlive_a_kill(finished, tmp_path):
    process = subprocess.Popen(**command(tmp_path, *SMALL, "--folder", "cut"), stdout=-3, stderr=-3)
    wait_for(process, (tmp_path / "cut" / "checkpoints" / "100").exists)
    children = set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    assert any("spawn_main" in Path(f"/proc/{child}/cmdline").read_text() for child in children)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


if not sys.platform.startswith("linux"):
    del test_workers_do_not_outlive_a_kill  # it looks into /proc


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


def test_presets(monkeypatch):
    monkeypatch.setattr(train_config, "on_gpu", lambda: False)
    cfg, tasks, demos = train.parse([])
    assert cfg == replace(train_config.LAPTOP, folder=Path("runs/starter"))
    assert tasks == train_config.STARTER.split(",") and list(demos) == tasks
    assert train.parse(["--preset", "published"]).cfg.agent == newt.Config()
    monkeypatch.setattr(train_config, "on_gpu", lambda: True)
    assert train.parse([]).cfg.agent == newt.Config()
    assert train.parse(["--preset=laptop", "--horizon", "4"]).cfg.agent == replace(train_config.LAPTOP.agent, horizon=4)


def test_settings_fit_own_tasks(tmp_path):
    """Sizes of a new agent grow, one more input tells of the end; an evaluation comes after a whole episode."""
    setup = train.parse(["--preset", "laptop", "--tasks", "gym:Humanoid-v5", "--demos", "none"])
    cfg = setup.cfg
    assert (cfg.agent.obs_dim, cfg.agent.action_dim, cfg.eval_every) == (349, 17, 1000)
    agent = prepare.create_agent(setup, torch.device("cpu"))
    assert agent.params["encoder.0.weight"].shape[1] == 349 + 384 and agent.mask.sum() == 17
    envs.TASKS["gym:Humanoid-v5"] = replace(envs.TASKS["gym:Humanoid-v5"], episode_length=2500)
    words = ["--preset", "laptop", "--tasks", "gym:Humanoid-v5"]
    assert train.parse(words).cfg.eval_every == 2500
    assert train.parse([*words, "--eval-every", "900"]).cfg.eval_every == 900
    own = train.parse(["--preset", "laptop", "--tasks", "my_envs:dies,walker-walk"])
    assert (own.cfg.agent.obs_dim, own.cfg.agent.action_dim, own.cfg.eval_every) == (128, 16, 1000)
    agent = prepare.create_agent(own._replace(tasks=["walker-walk"]), torch.device("cpu"))
    agent_file.save(tmp_path / "a.safetensors", agent)
    setup = train.parse([*words, "--ckpt", str(tmp_path / "a.safetensors")])
    assert (setup.cfg.agent.obs_dim, setup.cfg.agent.action_dim) == (128, 16)
    with pytest.raises(ValueError, match="obs_dim is 128, these tasks need 349; action_dim is 16, these tasks need 17"):
        prepare.create_agent(setup, torch.device("cpu"))
    for name in ("gym:Humanoid-v5", "my_envs:dies"):
        del envs.TASKS[name]


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


@pytest.mark.parametrize("words, name, why", [
    ("", "LAPTOP", "preset laptop (no CUDA GPU), demonstrations"),
    ("--tasks walker-walk", "FROM_SCRATCH", "from-scratch form: neither demonstrations nor --ckpt"),
    ("--tasks walker-walk,cheetah-run --preset laptop", "FROM_SCRATCH", "preset laptop (as asked), its from-scratch"),
    ("--demos none", "FROM_SCRATCH", "from-scratch form"),
    ("--tasks walker-walk,mw-reach", "LAPTOP", "demonstrations"),
    ("--tasks walker-walk --demos shown", "LAPTOP", "demonstrations"),
    ("--tasks walker-walk --ckpt some.safetensors", "LAPTOP", "--ckpt"),
    ("--tasks mw-reach --demos none --ckpt some.safetensors --preset auto", "LAPTOP", "(no CUDA GPU), --ckpt"),
    ("--preset published", "PUBLISHED", "preset published (as asked), demonstrations"),
    ("--preset published --demos none", "PUBLISHED", "no demonstrations"),
    ("--preset published --demos none --tasks walker-walk", "SINGLE", "its single-task form: one task, no demonstr"),
    ("--preset=published --tasks=mw-reach", "SINGLE", "one task, demonstrations"),
])  # fmt: skip
def test_settings_follow_from_what_there_is(words, name, why, tmp_path, monkeypatch):
    monkeypatch.setattr(train_config, "on_gpu", lambda: False)
    monkeypatch.setattr(train_config, "made_here", lambda demos, task: demos == "auto" and task.startswith("mw-"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "walker-walk.safetensors").touch()
    cfg, default = train.parse(words.split()).cfg, getattr(train_config, name)
    given = {"tasks": cfg.tasks, "folder": cfg.folder, "demos": cfg.demos, "ckpt": cfg.ckpt}
    assert cfg == replace(default, **given) and why in cfg.why and cfg.preset in ("laptop", "published")
    assert cfg.demos == "none" or name != "FROM_SCRATCH"
    assert train.parse([*words.split(), "--utd", "0.25", "--std-min", "0.07"]).cfg.utd == 0.25  # a user's word counts


def test_settings_by_definition():
    """From scratch: wider search, twice the updates, to the end. Published for one task: size B, ten environments, and
    a pull to the policy that ends within the run."""
    scratch, single = train_config.FROM_SCRATCH, train_config.SINGLE
    assert (scratch.utd, scratch.lr_end, scratch.agent.std_min) == (1.0, 1.0, 0.1)
    assert (single.agent.size, single.envs_per_task) == ("B", 10)
    ends = single.agent.constraint_start + single.agent.constraint_duration
    assert 0 < ends < single.steps * single.envs_per_task / 2
    assert replace(single, envs_per_task=1, agent=newt.Config()) == train_config.PUBLISHED


def test_names_of_run_folders():
    """One folder below runs/, with a name that every system takes."""
    names = ["all", "a,b", "gym:Pendulum-v1", "gym:my_envs:lab/Reach-v0", "my_robot:make_reach", "../x", "a" * 300]
    folders = [train_config.run_folder_of(name) for name in names]
    assert len(set(folders)) == len(names) and train_config.run_folder_of(train_config.STARTER) == Path("runs/starter")
    assert all(str(folder.parent) == "runs" and not set(folder.name) & set('/\\:*?"<>|') for folder in folders)


def test_published_numbers():
    """The schedule of the paper for 200 tasks: 100M steps, 0.075 updates per step, evaluation every 20 * 500 steps."""
    cfg = train_config.PRESETS["published"]
    assert cfg.steps * 200 == 100_000_000 and cfg.utd == 0.075 and cfg.eval_every == 20 * 500
    assert (cfg.pretrain_updates, cfg.buffer_steps, cfg.seed_episodes) == (200_000, 10_000_000, 5)
    assert (cfg.sampling, cfg.eval_episodes, cfg.agent.batch_size) == ("episode", 2, 1024)


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


@pytest.mark.parametrize("name", [f.name for f in fields(train_config.Train) if f.name not in ("agent", *PATHS)])
def test_every_setting_is_checked(name):
    """A new number without a range fails here."""
    ranges = train_config.RANGES
    assert fields_that_take_nonsense(train_config.Train(), lambda cfg: check_fields(cfg, ranges), name) == []


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


def test_a_film_that_fails_costs_the_film_only(finished, tmp_path, monkeypatch, capsys):
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
    assert re.search(r"^online: 320 steps, [\d.]+ step/s, .* left$", done.stderr, re.M), done.stderr
    assert "%|" not in done.stderr and "Warning" not in done.stderr


def test_resume_does_not_change_settings(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    before = snapshot(finished[0] / "whole")
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse(["--resume", "whole", "--utd", "0.5"])))
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "can't change utd" in err and err.count("\n") == 1
    assert snapshot(finished[0] / "whole") == before


def test_resume_remembers_more_steps(finished, tmp_path, monkeypatch):
    """A run that is continued for longer, and stopped again, goes on to where it was told to go; from anywhere."""
    shutil.copytree(finished[0] / "whole", tmp_path / "whole")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train.main(train.parse(["--resume", "../whole", "--steps", "330"]))
    assert train.parse(["--resume", "../whole"]).cfg.steps == 330
    assert [path.name for path in run_folder.complete(tmp_path / "whole")] == ["320", "330"]


def test_restart_by_torchrun_goes_on_with_its_own_run_only(finished, tmp_path, monkeypatch, capsys):
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
    assert run_folder.complete(tmp_path / "whole")[-1].name == "320"


def test_two_programs_never_work_in_one_folder(finished, tmp_path, monkeypatch, capsys):
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


def test_demonstrations_of_some_tasks(tmp_path, monkeypatch):
    """auto: what is recorded or a script can do in seconds is made, the rest is used if it is there. A folder: what it
    holds. More gets recorded with time, so it is said here what is."""
    monkeypatch.chdir(tmp_path)
    tasks = ["mw-reach", "walker-walk", "cheetah-run", "pygame-cowboy"]
    monkeypatch.setattr(recordings, "of", lambda task: object() if task == "walker-walk" else None)
    assert sorted(train_config.demo_files("auto", tasks)) == ["mw-reach", "pygame-cowboy", "walker-walk"]
    monkeypatch.setattr(recordings, "of", lambda task: None)
    assert sorted(train_config.demo_files("auto", tasks)) == ["mw-reach", "pygame-cowboy"]
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos" / "cheetah-run.safetensors").touch()
    assert sorted(train_config.demo_files("auto", tasks)) == ["cheetah-run", "mw-reach", "pygame-cowboy"]
    given = train_config.demo_files("demos", tasks)
    assert given == {"cheetah-run": Path("demos/cheetah-run.safetensors")}
    assert train_config.demo_files("none", tasks) == {}


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
    model_loss = newt.model_loss

    def bad(*args):
        loss, zs, metrics = model_loss(*args)
        return loss * torch.inf, zs, metrics

    monkeypatch.setattr(newt, "model_loss", bad)
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(lambda: train.main(train.parse(["--resume", "whole", "--steps", "500"])))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "is not finite" in error and "checkpoint in whole is kept" in error
    assert snapshot(tmp_path / "whole" / "checkpoints") == kept


# ---- signals and faults: nothing hangs, nothing is damaged, no process is left


def start(folder: Path, *words: str) -> subprocess.Popen:
    """A run in a process group of its own, as a shell starts it, with Ctrl-C on (it is off in background jobs)."""
    options = command(folder, *words)
    on = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with open(folder / "site" / "sitecustomize.py", "a") as file:
        file.write(on)
    return subprocess.Popen(**options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(process: subprocess.Popen, condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run ended or hangs"
        time.sleep(0.01)


def no_process_left(group: int) -> bool:
    """Also none that waits to be collected by init, which may take a moment."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def resumable(run: Path, folder: Path, *words: str) -> bool:
    return subprocess.run(**command(folder, "--resume", run.name, *words), capture_output=True).returncode == 0


@pytest.mark.parametrize("number, moment", [
    (signal.SIGTERM, "online"), (signal.SIGINT, "pretraining"), (signal.SIGINT, "twice"),
])  # fmt: skip
def test_signals_write_a_checkpoint(number, moment, tmp_path):
    online = moment == "online"
    words = "--pretrain-updates 2 --steps 5000 --eval-every 5000" if online else "--pretrain-updates 100000"
    process = start(tmp_path, *SMALL, "--folder", "cut", *words.split())
    run, log = tmp_path / "cut", tmp_path / "cut" / "metrics.jsonl"
    if online:
        wait_for(process, lambda: log.is_file() and "train/updates" in log.read_text())
    else:
        wait_for(process, lambda: (run / "checkpoints" / "pretrain-8").exists())
    before = {path.name for path in run_folder.complete(run)}
    os.killpg(process.pid, number)  # as a terminal does: to the program and to its workers
    if moment == "twice":
        time.sleep(0.02)
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and no_process_left(process.pid)
    assert "Traceback" not in errors
    if moment != "twice":  # the second one may come before the checkpoint or after it
        assert "stopping after this step" in errors and "go on with: python train.py --resume cut" in errors
    own = checkpoint.Own(torch.Generator(), torch.Generator())
    _, state = checkpoint.load(run, torch.device("cpu"), own, World())
    assert state.phase == ("online" if online else "pretrain")
    if online:
        assert {path.name for path in run_folder.complete(run)} - before and state.vector_step > 100
        assert resumable(run, tmp_path, "--steps", str(state.vector_step + 50))
    else:
        assert state.updates > 4


def test_a_closed_terminal_asks_for_a_checkpoint(monkeypatch):
    """As SIGTERM does, though nothing can be printed any more; but not under nohup."""
    if not hasattr(signal, "SIGHUP"):
        return  # Windows
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        interruption = Interruption()
        monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "no terminal")))
        with interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.code == 129
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(1)
        interruption.restore()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interruption = Interruption()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        interruption.restore()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_full_disk(tmp_path):
    """No file may grow beyond 4 MB: the checkpoint that doesn't fit is the only thing that is lost."""
    import resource

    options = command(tmp_path, *SMALL, "--folder", "cut")
    limit = (4_000_000, resource.RLIM_INFINITY)  # the weights fit (3 MB), the optimisers (5 MB after updates) do not
    done = subprocess.run(
        **options, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    run = tmp_path / "cut"
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: can't write") and "pretrain-0 is kept" in error and "--resume cut" in error
    assert [path.name for path in run_folder.complete(run)] == ["pretrain-0"]
    assert not [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert resumable(run, tmp_path)


def test_training_goes_on_when_simulators_are_lost(tmp_path):
    process = start(tmp_path, *SMALL, "--folder", "cut", "--steps", "1500", "--eval-every", "1500")
    run, log = tmp_path / "cut", tmp_path / "cut" / "metrics.jsonl"
    wait_for(process, lambda: log.is_file() and "train/updates" in log.read_text())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and no_process_left(process.pid), errors
    assert "no task at fault: a worker process died" in errors or "mw-reach: a worker process died" in errors
    assert [path.name for path in run_folder.complete(run)][-1] == "1500"
    assert '"train/mw-reach/dropped": 1' in log.read_text()


FRAGILE = """
from pathlib import Path
import gymnasium as gym
import numpy as np

class Fragile(gym.Env):
    episode_length = 200
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == 150 and Path("cut/checkpoints/0").exists() and not Path("failed").exists():
            Path("failed").touch()
            raise ArithmeticError("the simulator exploded")
        return np.full(3, self.t / 200, np.float32), 1.0, False, False, {}

def make(render_mode=None):
    return Fragile()
"""


def test_a_lost_first_episode_does_not_hold_up_learning(tmp_path):
    """One task finishes episodes of 100 steps; the other loses its first in step 150, and its second lasts on."""
    words = "--folder cut --tasks mw-reach,fragile:make --demos none --steps 300 --eval-every 300".split()
    options = command(tmp_path, *SMALL, *words)
    (tmp_path / "site" / "fragile.py").write_text(FRAGILE)
    done = subprocess.run(**options, capture_output=True)
    assert done.returncode == 0 and "fragile:make: ArithmeticError: the simulator exploded" in done.stderr, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    updates = [(line["step"], line["train/updates"]) for line in lines if "train/updates" in line]
    assert 2 * 150 <= updates[0][0] < 2 * 175
    assert updates[-1][1] == 30  # a tenth of the 2 * 150 steps that were left


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


# ---- killed at any moment

FOUR = (
    "--preset laptop --tasks mw-reach,pygame-landing,ms-push-cube,og-point-arena,mujoco-reacher --demo-episodes 2 "
    "--pretrain-updates 40 --checkpoint-updates 10 --steps 900 --seed-episodes 1 --eval-every 200 --eval-episodes 1 "
    "--final-episodes 1 --log-every 5 --utd 0.05 --batch-size 16 --num-samples 16 --num-elites 4 --num-pi 2 "
    "--iterations 2 --buffer-steps 3000 --workers 2"
).split()


@pytest.mark.slow
def test_killed_at_five_random_moments(tmp_path):
    """The whole process group, five times in one run, once while a checkpoint is being written; five suites."""
    whole, cut, random = tmp_path / "whole", tmp_path / "cut", np.random.default_rng(0)
    begin = time.monotonic()
    done = subprocess.run(**command(tmp_path, *FOUR, "--folder", "whole"), capture_output=True)
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    kills, words = 0, [*FOUR, "--folder", "cut"]
    while kills < 5:
        before = set((cut / "checkpoints").glob(".*"))
        process = start(tmp_path, *words)
        if kills == 2:  # a hidden folder is a checkpoint in the making
            wait_for(process, lambda before=before: set((cut / "checkpoints").glob(".*")) - before, 300)
        else:
            time.sleep(random.uniform(0.2, 0.35) * took)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        kills += 1
        if (cut / "config.json").is_file():
            words = ["--resume", "cut"]
    done = subprocess.run(**command(tmp_path, *words), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(cut, whole)


def test_estimate_says_nothing_to_other_processes(monkeypatch):
    """Only rank 0 estimates what the published preset would take: the others wouldn't answer."""
    monkeypatch.setattr(newt.distributed, "average", lambda tensors: 1 / 0)
    cfg = train_config.LAPTOP
    agent = newt.create(cfg.agent, ["a"], torch.zeros(1, cfg.agent.task_dim), [2], [0.9])
    assert estimate(agent, cfg.steps, 1, cfg.utd) > 0


def test_several_lines_of_one_step_say_the_same_speed():
    clock = Clock()
    clock.done = 5
    one = clock.look("steps", 100)
    assert one["time/steps_per_s"] > 0 and clock.look("steps", 100) == one


def test_estimate_grows_with_the_work():
    setup = train.parse([*SMALL])
    agent = prepare.create_agent(setup, torch.device("cpu"))
    ratio = [estimate(agent, 10_000, 1, setup.cfg.utd) / estimate(agent, 1000, 1, setup.cfg.utd) for _ in range(5)]
    assert 5 < np.median(ratio) < 20
    assert (describe(0.5), describe(30), describe(100)) == ("30 minutes", "30 hours", "4 days")
    assert describe(24 * 70) == "10 weeks"
