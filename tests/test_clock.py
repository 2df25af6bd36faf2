"""clock.py: how long it will take, and where the time goes.

Run: pytest tests/test_clock.py        (seconds; what runs write of it is tested in test_train.py)
"""

import numpy as np
import torch
from test_train import SMALL

import newt
import prepare
import train
import train_config
from clock import Clock, describe, estimate


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
