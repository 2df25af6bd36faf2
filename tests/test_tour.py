"""tour.py: run as a newcomer does; the shapes it prints are those of its letters; what it checks can fail.

Run: pytest tests/test_tour.py        (about 20 seconds on one core)
"""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import command
import losses
import newt
import planner
import tour
import train_config
from buffer import Batch, Buffer

ROOT = Path(tour.__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[str, Path]:
    """What the course prints, its training shortened to two seconds, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("tour") / "new"
    words = [sys.executable, "tour.py", "--minutes", str(2 / 60), "--out", str(out)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_pictures_appear(told):
    said, out = told
    assert {path.name for path in out.iterdir()} == {"plans_at_first.png", "plans_trained.png", "curve.png"}
    assert all(str(path) in said and path.stat().st_size > 10_000 for path in out.iterdir())
    chapters = re.split(r"\n==== \d  ", said)[1:]
    assert len(chapters) == 5


def test_printed_shapes_are_those_of_their_letters(told):
    """Sizes by definition: cartpole has 5 observations, all else is a setting of the run that it shortens."""
    cfg = train_config.FROM_SCRATCH.agent
    size = newt.wm.SIZES[cfg.size]
    letters = {
        "o": 5, "O": cfg.obs_dim, "A": cfg.action_dim, "G": cfg.task_dim, "K": cfg.num_bins, "H": cfg.horizon,
        "Z": size.latent_dim, "D": size.mlp_dim, "Q": size.num_q, "N": cfg.num_samples, "P": cfg.num_pi,
        "E": cfg.num_elites, "I": cfg.iterations,
    }  # fmt: skip
    names = set()
    for chapter in told[0].split("\n==== ")[1:]:
        letters["B"] = cfg.batch_size if chapter.startswith("3") else 1
        for line in chapter.splitlines():
            if found := re.fullmatch(r"(\S.*?) \((\S*(?:, \S*)*)\) *= (\([\d, ]+\)) *(\S.*)", line):
                name, axes, shape, _ = found.groups()
                names.add(name)
                want = [eval(re.sub(r"(?<=\w)\(", "*(", axis), {}, letters) for axis in axes.split(", ")]
                assert eval(shape) == tuple(want), line
    everything = (  # that a decision and an update are made of
        "obs emb mask z policy.action policy.mean policy.log_std z_next bins reward q td z_target zs rho batch.obs "
        "batch.action batch.reward batch.terminated batch.task own plans value elite weight mean std plan.action "
        "plan.chosen candidates ways sure warm noise.pi noise.sample noise.eps_td noise.heads_td entropy error"
    ).split()
    assert {*everything, "z in groups", "two_hot(1.0)", "reward logits", "q logits"} <= names


def test_everything_is_checked_twice(told):
    """As reckoned by hand and by the program: untrained and after some updates, before and after the training."""
    for name in ("consistency", "reward", "value", "model", "bc", "pi"):
        assert len(re.findall(rf"checked  loss/{name} +by hand", told[0])) == 2
    for name in ("plan.value", "plan.mean, plan.std", "plan.chosen"):
        assert len(re.findall(rf"checked  {re.escape(name)} +all", told[0])) == 2
    assert "loss/reward            by hand  4.3" in told[0]  # log 101 times 14 of 15 parts of rho


@pytest.fixture
def agent() -> newt.Agent:
    """A small one whose rewards and values are not 0, which would hide faults; it imitates, too."""
    cfg = newt.Config(
        "XS", obs_dim=7, action_dim=3, task_dim=4, batch_size=16, horizon=2, num_samples=12, num_elites=5, num_pi=3,
        iterations=2, online_bc_coef=2.0,
    )  # fmt: skip
    emb = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    agent = newt.create(cfg, ["a", "b"], emb, [3, 2], [0.9, 0.5])
    for part in ("reward", "q", "q_target"):
        weight = agent.params[f"{part}.2.weight"].detach()
        weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(part)))
    return agent


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(3, 16, 7, generator=generator), torch.rand(2, 16, 3, generator=generator) * 2 - 1
    task = torch.arange(16) % 2
    action[:, task == 1, 2] = 0
    terminated = (torch.arange(32) % 5 == 0).float().view(2, 16)
    return Batch(obs, action, torch.randn(2, 16, generator=generator), task, terminated)


def times(by: float):
    """Makes a fault: the function's first result is larger by so much."""
    return lambda there: lambda *args, **named: (lambda loss, *rest: (loss * by, *rest))(*there(*args, **named))


def setting(**changed: float):
    """Makes a fault: a loss is taken with another coefficient."""
    return lambda there: lambda cfg, *rest: there(replace(cfg, **changed), *rest)


FAULTS = {
    "consistency_loss": times(1.01),
    "reward_loss": times(1.01),
    "value_loss": times(1.01),
    "policy_loss": times(1.01),
    "time_weights": lambda there: lambda *args: there(*args) * 1.01,
    "imitation_error": lambda there: lambda *args: there(*args) * 1.01,
    "update_scale": lambda there: lambda scale, *rest: there(scale, *rest) + 0.01,
    "rollout": lambda there: lambda params, z, actions, task: there(params, z, actions.flip(0), task),
    "td_target": lambda there: lambda params, obs, reward, *rest: there(params, obs, reward * 1.1, *rest),
    "model_loss": setting(consistency_coef=19.0),
    "_part_lr": lambda there: lambda *args: there(*args) * 1.05,
}


def nothing(*_) -> None: ...


def test_an_update_agrees(agent, batch):
    for _ in range(3):
        tour.update(agent, batch, nothing)
    assert agent.updates == 3


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_an_update_is_noticed(name, agent, batch, monkeypatch):
    for module in (losses, newt):  # a function lives in one, and the other may have imported it
        if hasattr(module, name):
            monkeypatch.setattr(module, name, FAULTS[name](getattr(module, name)))
    with pytest.raises(AssertionError):
        tour.update(agent, batch, nothing)


@pytest.mark.parametrize("name", ["value_coef", "reward_coef"])
def test_another_coefficient_is_noticed(name, agent, batch, monkeypatch):
    monkeypatch.setattr(newt, "model_loss", setting(**{name: 0.2})(losses.model_loss))
    with pytest.raises(AssertionError, match="loss/model"):
        tour.update(agent, batch, nothing)


@pytest.fixture
def one(agent) -> newt.Agent:
    """The course's agent has one task."""
    agent.emb, agent.mask, agent.discount = agent.emb[:1], agent.mask[:1], agent.discount[:1]
    return agent


def test_a_decision_agrees(one, tmp_path):
    tour.decide(one, torch.randn(1, 7), tmp_path / "plans.png", "", nothing)
    assert (tmp_path / "plans.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["value", "mean", "std", "chosen"])
def test_a_fault_of_a_decision_is_noticed(name, one, tmp_path, monkeypatch):
    there, wrong = planner.plan, "sure" if name == "chosen" else "sample"

    def plan(*args, explore: bool, elite: str = "sample"):
        result = there(*args, explore=explore, elite=elite)
        return result._replace(**{name: getattr(result, name) + 0.01}) if elite == wrong else result

    monkeypatch.setattr(planner, "plan", plan)
    with pytest.raises(AssertionError):
        tour.decide(one, torch.randn(1, 7), tmp_path / "plans.png", "", nothing)


class Count(gym.Env):
    """Observation: steps so far. Ends for good after three, and pays 1, 2 and 3."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **_):
        self.t = 0
        return np.array([0], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t], np.float32), float(self.t), self.t == 3, False, {}


def test_an_episode_is_remembered_as_it_was():
    buffer, asked = Buffer(10, 2, 1), []

    def choose(obs, first):
        asked.append((float(obs[0]), first))
        return np.array([obs[0] / 10], np.float32)

    assert tour.play(Count(), buffer, choose) == 6
    assert asked == [(0, True), (1, False), (2, False)] and buffer.steps == 3
    batch = buffer.sample(50, 1, torch.Generator().manual_seed(0))
    alive = batch.obs[0, :, 1] == 0
    start = batch.obs[0, alive, 0]
    torch.testing.assert_close(batch.action[0, alive, 0], start / 10)
    torch.testing.assert_close(batch.reward[0, alive], (start + 1) % 4)  # behind the end, nothing is paid
    assert batch.terminated[0, batch.obs[0, :, 0] == 2].all()


def test_time_that_is_up_leaves_no_part_of_an_episode():
    buffer = Buffer(10, 2, 1)
    assert tour.play(Count(), buffer, lambda *_: np.zeros(1, np.float32), deadline=-math.inf) is None
    assert buffer.episodes == 0


@pytest.mark.parametrize(
    "cfg, said",
    [
        (tour.Tour(minutes=-1), "minutes must be at least 0"),
        (tour.Tour(minutes=math.nan), "minutes must be a number"),
        (tour.Tour(out=ROOT / "README.md"), "cannot write"),
    ],
)
def test_bad_input_is_one_line(cfg, said, capsys):
    with pytest.raises(SystemExit) as end:
        command.run(tour.main, cfg)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out and err.count("\n") == 1 and said in err
