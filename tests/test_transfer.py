"""results/transfer.py on a tiny budget: four stages that begin alike, killed and continued, nothing mixed up.

Run: pytest tests/test_transfer.py -m slow        (about two minutes on one core)
"""

import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_episodes import an_agent

import agent_file
import eval as evaluation
import tables

ROOT = Path(evaluation.__file__).parent
TASK = "pygame-point-maze-var1"


@pytest.fixture
def transfer(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])  # it adds to it
    spec = importlib.util.spec_from_file_location("transfer", ROOT / "results/transfer.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "transfer", module)
    spec.loader.exec_module(module)
    module.HERE = tmp_path / "results"
    module.HERE.mkdir()
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    agent = an_agent(["mujoco-reacher"])
    agent.params["reward.0.bias"].data.fill_(0.1)  # fresh ones are 0
    agent_file.save(tmp_path / "a.safetensors", agent)
    cfg = module.Transfer(tmp_path / "a.safetensors", TASK, seeds=1, episodes=2, demos=1, imitation=2, updates=3,
                          steps=40, folder=tmp_path / "runs")  # fmt: skip
    return module, cfg


def rows_of(module) -> list[dict]:
    with open(module.HERE / "transfer.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_measured_is_refused_or_kept(transfer, monkeypatch, capsys):
    """Without training: rows go on after an interruption, another protocol is refused, own tasks are no transfer."""
    module, cfg = transfer
    asked = []

    def measure(cfg, task, seed, stage):
        asked.append((seed, stage))
        if len(asked) == 3:
            raise KeyboardInterrupt
        row = {"task": task, "suite": "miniarcade", "seed": seed, "stage": stage, "return": 1.0, "score": 0.5,
               "low": 0.25, "high": 1.0, "success": 0.0, "success_any": 0.0, "minutes": 0.1}  # fmt: skip
        return {key: str(value) for key, value in (row | module.settings(cfg)).items()}

    monkeypatch.setattr(module, "measure", measure)
    cfg = replace(cfg, seeds=2)
    with pytest.raises(KeyboardInterrupt):
        module.main(cfg)
    assert [row["stage"] for row in rows_of(module)] == ["random", "zero-shot"]
    module.main(cfg)
    want = [(seed, stage) for seed in range(2) for stage in module.STAGES]
    assert asked == [*want[:3], *want[2:]] and len(rows_of(module)) == 8
    assert (module.HERE / "transfer.png").read_bytes()[:4] == b"\x89PNG"
    # The mean over two seeds of one task: each side's distance divided by the square root of two.
    found = module.estimates(rows_of(module))["mean"]["scratch"]
    assert found == pytest.approx((0.5, 0.5 - 0.25 / 2**0.5, 0.5 + 0.5 / 2**0.5))
    before = (module.HERE / "transfer.csv").read_bytes()
    for change, message in (({"steps": 41}, "another value of steps"), ({"tasks": "mujoco-reacher"}, "no transfer")):
        with pytest.raises(ValueError, match=message):
            module.main(replace(cfg, **change))
    assert (module.HERE / "transfer.csv").read_bytes() == before and "scratch" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_protocol(transfer):
    module, cfg = transfer
    module.main(cfg)
    rows = {row["stage"]: row for row in rows_of(module)}
    assert set(rows) == set(module.STAGES) and all(row["agent"] and row["episodes"] == "2" for row in rows.values())
    assert tables.baselines()[TASK]["random"] - 0.5 < float(rows["random"]["score"]) <= 1
    finetuned, scratch = (agent_file.load(cfg.folder / f"{TASK}-0-{stage}/agent.safetensors")[0]
                          for stage in ("finetuned", "scratch"))  # fmt: skip
    assert finetuned.tasks == scratch.tasks == (TASK,)
    bias = "reward.0.bias"
    assert finetuned.params[bias].min() > 0.08 and scratch.params[bias].abs().max() < 0.02  # a few small updates later
    module.main(cfg)  # nothing is left to do
    assert len(rows_of(module)) == 4
