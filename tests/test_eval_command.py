"""eval.py as a command: any task and any words, killed and continued, success twice, baselines, bad input.

Run: pytest tests/test_eval_command.py        (about two minutes on one core)
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import agent_file
import envs
import eval as evaluation
import language
import newt
import tables
from episodes import Episode

ROOT = Path(evaluation.__file__).parent
TASKS = ["mujoco-reacher", "walker-walk"]


def an_agent(task_dim: int = 384, tasks: list[str] = TASKS, **sizes) -> newt.Agent:
    cfg = newt.Config(size="XS", num_samples=8, num_elites=4, num_pi=2, iterations=1, task_dim=task_dim, **sizes)
    rows, emb = [envs.TASKS[name] for name in tasks], torch.zeros(len(tasks), task_dim)
    if task_dim == language.DIM:
        emb = language.embed([row.sentence for row in rows])
    return newt.create(cfg, tasks, emb, [r.action_dim for r in rows], [r.discount for r in rows], seed=3)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ckpt") / "agent.safetensors"
    agent_file.save(path, an_agent(), step=1234)
    return path


def command(*args) -> dict:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "tests")}
    return {"args": [sys.executable, str(ROOT / "eval.py"), *map(str, args)], "env": environ, "text": True}


# ---- any task, any words ----


def test_an_unseen_task_is_told_by_its_row():
    agent = an_agent()
    tasks = ["mw-push", "mujoco-reacher", "spinner-jump"]
    wider, sentences = evaluation.told(agent, tasks, None, "x")
    assert wider.tasks == (*TASKS, "mw-push", "spinner-jump")
    assert sentences == {name: envs.TASKS[name].sentence for name in tasks}
    for i, name in enumerate(wider.tasks):
        row = envs.TASKS[name]
        torch.testing.assert_close(wider.emb[i], language.embed([row.sentence])[0], atol=1e-6, rtol=0)
        assert wider.mask[i].tolist() == [1.0] * row.action_dim + [0.0] * (16 - row.action_dim)
        assert float(wider.discount[i]) == np.float32(row.discount) and wider.guided[i] == 1
    assert torch.equal(wider.emb[:2], agent.emb) and agent.tasks == tuple(TASKS)  # as in the file; nothing changed
    assert evaluation.told(agent, TASKS, None, "x")[0] is agent


def test_an_instruction_replaces_the_words_behind_the_body():
    agent, row = an_agent(), envs.TASKS["walker-walk"]
    for words, sentence in (("Fall over", f"{row.embodiment}. Fall over."), ("", f"{row.embodiment}.")):
        other, sentences = evaluation.told(agent, ["walker-walk"], words, "x")
        assert sentences == {"walker-walk": sentence} and sorted(other.tasks) == sorted(TASKS)
        emb = other.emb[other.tasks.index("walker-walk")]
        torch.testing.assert_close(emb, language.embed([sentence])[0], atol=1e-6, rtol=0)
        assert torch.equal(other.emb[other.tasks.index("mujoco-reacher")], agent.emb[0])
    other, sentences = evaluation.told(agent, ["mw-push"], "Lift the puck", "x")  # unseen, too
    assert sentences["mw-push"].endswith(". Lift the puck.") and other.tasks[-1] == "mw-push"


@pytest.mark.parametrize(
    "task_dim, tasks, words, message",
    [
        (512, ["mw-push"], None, "reads embeddings of 512 numbers.*not on mw-push"),
        (512, ["walker-walk"], "Fall", "reads embeddings of 512 numbers.*not on another instruction"),
        (0, ["mw-push"], None, "has no language: it can't be told mw-push"),
        (384, TASKS, "Fall", "--instruction is for a single task, 2"),
    ],
)
def test_what_cannot_be_told_is_said(task_dim, tasks, words, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluation.told(an_agent(task_dim), tasks, words, "x.safetensors")
    assert "\n" not in str(error.value)
    assert evaluation.told(an_agent(task_dim), TASKS, None, "x")[1].keys() == {*TASKS}  # its own are no trouble


def test_a_body_that_is_too_large():
    small = an_agent(obs_dim=24, action_dim=6)
    with pytest.raises(ValueError, match="24 observations and 4 actions of mw-push, which has 39 and 4"):
        evaluation.tasks_of(small, "mw-push", "x", others=True)
    with pytest.raises(ValueError, match="is for 128 observations and 2 actions of hopper-hop, which has 15 and 4"):
        evaluation.tasks_of(an_agent(action_dim=2, tasks=TASKS[:1]), "hopper-hop", "x", others=True)


def test_unseen_tasks_are_played_and_marked(ckpt, tmp_path, monkeypatch, capsys):
    """Held out, somebody's own with an early end, and another body: a number each, and a + behind its name."""
    monkeypatch.chdir(tmp_path)
    names = "mujoco-reacher,pygame-point-maze-var1,my_envs:dies,gym:Pendulum-v1"
    path = tmp_path / "r.json"
    evaluation.main(evaluation.Eval((ckpt,), names, 2, planner="off", json=path, workers=1))
    out = capsys.readouterr().out
    for name in names.split(","):
        assert re.search(rf"^{re.escape(name)}{re.escape('+' * (name != TASKS[0]))} +-?\d", out, re.M), name
    assert out.rstrip().endswith(tables.UNSEEN_NOTE)
    record = json.loads(path.read_text())
    assert [record["about"][name]["unseen"] for name in names.split(",")] == [False, True, True, True]
    assert record["about"]["gym:Pendulum-v1"]["sentence"] == "A simulated system. Pendulum v1."
    assert all(len(record["tasks"][name]) == 2 for name in names.split(","))


def test_words_change_what_is_done(ckpt, tmp_path, capsys):
    """The embedding reaches the decision: another instruction, other episodes; the same again, the same."""
    returns = []
    for words in (None, "Stand still", "Stand still", envs.TASKS["walker-walk"].instruction):
        cfg = evaluation.Eval(ckpt, "mujoco-reacher", 1, instruction=words, planner="off", workers=1)
        if words == envs.TASKS["walker-walk"].instruction:
            cfg = replace(cfg, tasks="mujoco-reacher", instruction=envs.TASKS["mujoco-reacher"].instruction)
        evaluation.main(cfg)
        out = capsys.readouterr().out
        returns.append(re.search(r"^mujoco-reacher +(\S+)", out, re.M)[1])
        assert ("Stand still." in out) == (words == "Stand still")
    assert returns[1] == returns[2] != returns[0] == returns[3]


# ---- the file ----


def test_killed_and_continued(ckpt, tmp_path):
    """kill -9 in the middle: the same command plays what is missing, and the file is that of one go."""
    args = ("--ckpt", ckpt, "--tasks", "mujoco-reacher,walker-walk", "--episodes", "2", "--workers", "1")
    whole = subprocess.run(**command(*args, "--json", tmp_path / "whole.json"), capture_output=True)
    assert whole.returncode == 0, whole.stderr
    path = tmp_path / "half.json"
    process = subprocess.Popen(
        **command(*args, "--json", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = json.loads(path.read_text())["tasks"]
    assert len(found["mujoco-reacher"]) == 2 and not found.get("walker-walk")  # 50 steps are over, 500 are not
    again = subprocess.run(**command(*args, "--json", path), capture_output=True)
    assert again.returncode == 0 and again.stdout == whole.stdout
    assert json.loads(path.read_text()) == json.loads((tmp_path / "whole.json").read_text())


def test_what_is_there_is_not_played_again(ckpt, tmp_path, monkeypatch, capsys):
    """More episodes go on; fewer, and other tasks, leave what is there."""
    path = tmp_path / "r.json"
    cfg = evaluation.Eval(ckpt, "mujoco-reacher", 3, planner="off", json=path, workers=1)
    evaluation.main(cfg)
    out, before = capsys.readouterr().out, path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("observe.VectorEnv", lambda *_, **__: pytest.fail("played again"))
        evaluation.main(cfg)
        assert capsys.readouterr().out == out and path.read_bytes() == before
        evaluation.main(replace(cfg, episodes=1))
        assert json.loads(path.read_text()) == json.loads(before)
    evaluation.main(replace(cfg, tasks="pygame-reacher-easy", episodes=1))
    evaluation.main(replace(cfg, episodes=4))
    tasks = json.loads(path.read_text())["tasks"]
    assert [len(tasks[name]) for name in ("mujoco-reacher", "pygame-reacher-easy")] == [4, 1]
    assert tasks["mujoco-reacher"][:3] == json.loads(before)["tasks"]["mujoco-reacher"]


@pytest.mark.parametrize(
    "args, message",
    [
        ("--json other.json", "other.json holds an evaluation with another value of the checkpoint, --seed"),
        ("--json notes.json", "notes.json holds something else than an evaluation"),
        ("--open-loop 0", "from 1 to 50"),
        ("--open-loop 1,51", "from 1 to 50, the shortest of these tasks' episodes"),
        ("--open-loop 1,two", "got 'two'"),
        ("--until 2", "until must be at most 1"),
        ("--instruction Go", "--instruction is for a single task, 2"),
        (f"--tasks mw-reach --instruction {'go-' * 300}", "at most 256 are allowed"),
        ("--tasks pygame-point-maze-var5", "only a name"),
    ],
)
def test_bad_input(args, message, ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = {"newt_evaluation": 1, "ckpt": "x", "step": 1, "planner": {}, "about": {}, "tasks": {}, "open_loop": {},
             "settings": {"agent": "0", "seed": 7, "planner": "on", "instruction": None}}  # fmt: skip
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys, "argv", ["eval.py", "--ckpt", str(ckpt), *args.split(" ")])
    import tyro

    with pytest.raises(SystemExit) as end:
        evaluation.run(lambda: evaluation.main(tyro.cli(evaluation.Eval)))
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.startswith("error: ") and message in said.err
    assert said.err.count("\n") == 1 and not said.out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- the table ----


def test_chance_and_demonstrations_stand_beside():
    """As results/ has them, also for tasks whose row has a * there."""
    with open(ROOT / "results/random_policy.csv", newline="") as file:
        chance = {row["task"].rstrip("*"): float(row["score_mean"]) for row in csv.DictReader(file)
                  if row["policy"] == "random"}  # fmt: skip
    with open(ROOT / "results/demos.csv", newline="") as file:
        shown = {row["task"].rstrip("*"): float(row["score"]) for row in csv.DictReader(file) if row["score"]}
    known = tables.baselines()
    assert len(known) > 200 and {name: row["random"] for name, row in known.items() if "random" in row} == chance
    assert {name: row["demonstrated"] for name, row in known.items() if "demonstrated" in row} == shown
    text = tables.table({"cartpole-swingup": [Episode(500.0, 0, 0.5, 500)] * 2, "my_envs:dies": [Episode(1, 0, 0)] * 2})
    want = [f"{table['cartpole-swingup']:.3f}" for table in (chance, shown)]
    assert re.search(rf"^cartpole-swingup .* {want[0]} +{want[1]} ", text, re.M)
    assert re.search(rf"^mean of tasks .* {want[0]} +{want[1]}$", text, re.M)  # of what is known
