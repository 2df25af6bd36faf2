"""The agents that come with the project: whole files, each with its evaluation and the command that made it.

Run: pytest tests/test_agents.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import agent_file
import envs
import evaluation_file

ROOT = Path(__file__).parent.parent
AGENTS = sorted((ROOT / "agents").glob("*.safetensors"))
MOST = 16 * 2**20


@pytest.fixture(params=AGENTS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_there_are_some():
    assert "starter" in {path.stem for path in AGENTS}


def test_it_is_small_and_whole(path):
    agent, meta = agent_file.load(path)
    assert path.stat().st_size <= MOST
    assert meta["step"] >= 0 and not [name for name in agent.tasks if name not in envs.TASKS]


def test_its_evaluation_is_of_this_file_and_of_every_task(path):
    agent, evaluation = agent_file.load(path)[0], json.loads(path.with_suffix(".json").read_text())
    assert evaluation["settings"]["agent"] == evaluation_file.fingerprint(path)
    assert set(evaluation["tasks"]) == set(agent.tasks)
    assert min(len(episodes) for episodes in evaluation["tasks"].values()) >= 5


def test_its_page_says_how_it_was_made(path):
    """Its mean score as in the table of agents/README.md, and the command beside it."""
    page = (ROOT / "agents" / "README.md").read_text()
    evaluation = json.loads(path.with_suffix(".json").read_text())
    mean = np.mean([np.mean([e["score"] for e in episodes]) for episodes in evaluation["tasks"].values()])
    row = next(line for line in page.splitlines() if line.startswith(f"| `{path.name}`"))
    assert f"{mean:.3f}" in row
    assert "```bash" in page and "Machine:" in page and "python train.py" in page


def test_a_committed_evaluation_is_shown_as_it_is(path, tmp_path):
    """The same command as the one that made it plays nothing again: it prints what the file holds, in seconds."""
    shutil.copy(path.with_suffix(".json"), tmp_path / "r.json")
    evaluation = json.loads((tmp_path / "r.json").read_text())
    fewest = min(len(episodes) for episodes in evaluation["tasks"].values())
    words = ["--ckpt", str(path), "--json", str(tmp_path / "r.json"), "--episodes", str(fewest),
             "--planner", evaluation["settings"]["planner"]]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    args = [sys.executable, str(ROOT / "eval.py"), *words]
    done = subprocess.run(args, env=environ, text=True, capture_output=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, episodes in evaluation["tasks"].items():
        row = next(line for line in done.stdout.splitlines() if line.split()[:1] == [envs.label(name)])
        assert f"{np.mean([e['score'] for e in episodes[:fewest]]):.3f}" in row


def test_the_starter_does_what_its_evaluation_says(tmp_path):
    """One episode of a task that it always solves: solved here, too, whatever this processor's last bits."""
    path = ROOT / "agents" / "starter.safetensors"
    known = json.loads(path.with_suffix(".json").read_text())["tasks"]["mw-drawer-close"]
    assert all(e["success"] == 1 for e in known)
    words = ["--ckpt", str(path), "--tasks", "mw-drawer-close", "--episodes", "1", "--planner", "off",
             "--json", str(tmp_path / "r.json")]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    args = [sys.executable, str(ROOT / "eval.py"), *words]
    done = subprocess.run(args, env=environ, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["tasks"]["mw-drawer-close"][0]["success"] == 1
