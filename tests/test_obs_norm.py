"""Observations standardised by demonstrations' statistics: by definition, in files, and of tasks that are new."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import agent_file
import demo_format
import envs
import eval as evaluation
import newt
import observe
from buffer import Batch

WALK, RUN, OTHER = "walker-walk", "walker-run", "pygame-cowboy"
CFG = newt.Config(size="XS", obs_dim=32, obs_norm="demos", task_dim=8, num_samples=16, num_elites=4, num_pi=2)


def shown(task: str, mean: float, std: float, seed: int = 0) -> demo_format.Demos:
    """An episode whose observations are drawn with these, in every dimension."""
    row, rng = envs.TASKS[task], np.random.default_rng(seed)
    obs = (mean + std * rng.standard_normal((401, row.obs_dim))).astype(np.float32)
    action, reward = np.zeros((400, row.action_dim), np.float32), np.zeros(400, np.float32)
    return demo_format.from_arrays(task, obs, action, reward)


def agent(stats: torch.Tensor | None = None, cfg: newt.Config = CFG, tasks=(WALK, OTHER), seed: int = 0) -> newt.Agent:
    emb = torch.randn(len(tasks), cfg.task_dim, generator=torch.Generator().manual_seed(7))
    rows = [envs.TASKS[name] for name in tasks]
    dims, discounts = [r.action_dim for r in rows], [r.discount for r in rows]
    return newt.create(cfg, list(tasks), emb, dims, discounts, seed, obs_stats=stats)


def some_stats(tasks: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(tasks, CFG.input_dim, generator=generator)
    return torch.stack([mean, 0.1 + torch.rand(tasks, CFG.input_dim, generator=generator)])


def test_statistics_are_those_of_the_demonstrations():
    """numpy's mean and standard deviation of each dimension, 0 and 1 where a task is padded."""
    files = {WALK: shown(WALK, 3.0, 0.5), OTHER: shown(OTHER, -1.0, 2.0)}
    stats = observe.statistics(CFG, [WALK, OTHER], files)
    for i, (name, file) in enumerate(files.items()):
        dims = envs.TASKS[name].obs_dim
        np.testing.assert_allclose(stats[0, i, :dims], file.obs.mean(0, dtype=np.float64), atol=1e-5)
        np.testing.assert_allclose(stats[1, i, :dims], file.obs.std(0, ddof=1, dtype=np.float64), rtol=1e-4)
        assert (stats[0, i, dims:] == 0).all() and (stats[1, i, dims:] == 1).all()


@pytest.mark.parametrize("obs", ["rgb", "state+rgb"])
def test_features_are_standardised_too(obs):
    """After the state's columns, of which an agent that only sees has none; and after it learned to see, too."""
    cfg = replace(CFG, obs=obs, obs_dim=0 if obs == "rgb" else CFG.obs_dim)
    seen = np.random.default_rng(0).normal(-2, 3, (401, 768)).astype(np.float16)
    file = shown(WALK, 3.0, 0.5)._replace(feature=seen)
    stats = observe.statistics(cfg, [WALK, "walker-stand", OTHER], {WALK: file})
    assert stats.shape == (2, 3, cfg.input_dim)
    for i in range(2):  # walker-stand has no demonstrations, but the same body
        np.testing.assert_allclose(stats[0, i, cfg.obs_dim :], seen.mean(0, dtype=np.float64), atol=1e-3)
        np.testing.assert_allclose(stats[1, i, cfg.obs_dim :], seen.std(0, ddof=1, dtype=np.float64), rtol=1e-3)
    assert (stats[0, 2] == 0).all() and (stats[1, 2] == 1).all()
    if obs == "state+rgb":
        known = agent(some_stats())
        both = observe.statistics(cfg, [WALK], {WALK: file}, known)
        assert torch.equal(both[:, 0, : CFG.obs_dim], known.obs_stats[:, 0])
        assert torch.equal(both[:, 0, CFG.obs_dim :], stats[:, 0, CFG.obs_dim :])


def test_of_what_nothing_is_known_nothing_is_changed():
    """Not even where it is large: no demonstrations, nor others of that body."""
    stats = observe.statistics(CFG, [WALK, OTHER], {WALK: shown(WALK, 3.0, 0.5)})
    obs = torch.full((1, 2, CFG.obs_dim), 5000.0)
    walk, other = newt.standardised(agent(stats), obs, torch.tensor([0, 1]))[0]
    assert (walk[: envs.TASKS[WALK].obs_dim] == 10).all() and (other == 5000).all()


def test_what_never_moves_is_not_blown_up():
    file = shown(WALK, 3.0, 0.0)
    stats = observe.statistics(CFG, [WALK], {WALK: file})
    assert (stats[1, 0, : envs.TASKS[WALK].obs_dim] == pytest.approx(0.01)) and stats[1].min() > 0


def test_a_task_without_demonstrations_has_those_of_its_body():
    """The same as of all observations of its body's other tasks together; of nobody's body: unchanged."""
    files = {WALK: shown(WALK, 3.0, 0.5), "walker-stand": shown("walker-stand", -1.0, 2.0, 1)}
    stats = observe.statistics(CFG, [RUN, OTHER], files)
    together, dims = np.concatenate([file.obs for file in files.values()]), envs.TASKS[RUN].obs_dim
    np.testing.assert_allclose(stats[0, 0, :dims], together.mean(0), atol=1e-4)
    np.testing.assert_allclose(stats[1, 0, :dims], together.std(0), rtol=3e-3)
    assert (stats[0, 1] == 0).all() and (stats[1, 1] == 1).all()


def test_an_agent_reads_them_standardised():
    """It acts as one without does on observations that are standardised already, and learns the same."""
    stats = some_stats()
    norm, plain = agent(stats), agent(cfg=replace(CFG, obs_norm="none"))
    generator, task = torch.Generator().manual_seed(2), torch.tensor([0, 1, 1])
    obs = torch.randn(4, 3, CFG.obs_dim, generator=generator)
    ready = (obs - stats[0][task]) / stats[1][task]
    assert ready.abs().max() > 10  # what is further away than that is read as 10
    ready = ready.clamp(-10, 10)
    warm, first = torch.zeros(3, 3, CFG.action_dim), torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(
        newt.act(norm, obs[0], task, warm, first).action, newt.act(plain, ready[0], task, warm, first).action
    )
    action = torch.rand(3, 3, CFG.action_dim, generator=generator)
    reward, over = torch.rand(3, 3, generator=generator), torch.zeros(3, 3)
    for a, x in ((norm, obs), (plain, ready)):
        a.generator.manual_seed(0)
        a.metrics = newt.update(a, Batch(x, action, reward, task, over), "pretrain")
    for name, value in norm.metrics.items():
        torch.testing.assert_close(value, plain.metrics[name])


def test_a_file_keeps_them(tmp_path):
    stats = some_stats()
    agent_file.save(tmp_path / "a.safetensors", agent(stats))
    back, _ = agent_file.load(tmp_path / "a.safetensors")
    assert torch.equal(back.obs_stats, stats) and back.cfg.obs_norm == "demos"


@pytest.mark.parametrize("where, value", [((0, 0, 0), float("nan")), ((1, 1, 2), 0.0), ((1, 0, 3), -1.0)])
def test_statistics_that_cannot_be_are_refused(tmp_path, where, value):
    one = agent(some_stats())
    one.obs_stats[where] = value
    agent_file.save(tmp_path / "a.safetensors", one)
    with pytest.raises(ValueError, match="a.safetensors: .*(not finite|above 0)"):
        agent_file.load(tmp_path / "a.safetensors")


def test_a_file_without_them_is_refused(tmp_path):
    one = agent(some_stats())
    one.obs_stats = None
    agent_file.save(tmp_path / "a.safetensors", one)
    with pytest.raises(ValueError, match="obs_stats"):
        agent_file.load(tmp_path / "a.safetensors")


def test_an_unseen_task_is_read_as_its_body(tmp_path):
    """walker-run, told to an agent of walker-walk: the same statistics; a game's unseen one: unchanged."""
    stats = some_stats()
    cfg = replace(CFG, task_dim=384)
    one, _ = evaluation.told(agent(stats, cfg), [WALK, RUN, "pygame-pong"], None, tmp_path / "a.safetensors")
    dims = envs.TASKS[WALK].obs_dim
    assert one.tasks == (WALK, OTHER, RUN, "pygame-pong")
    torch.testing.assert_close(one.obs_stats[:, 2, :dims], stats[:, 0, :dims])
    torch.testing.assert_close(one.obs_stats[:, :2, :dims][:, 0], stats[:, 0, :dims])
    assert (one.obs_stats[0, 3] == 0).all() and (one.obs_stats[1, 3] == 1).all()


def test_what_an_agent_knows_stays_to_the_last_bit(tmp_path):
    """Being told of other tasks must not change the numbers of its own."""
    stats = some_stats()
    one, _ = evaluation.told(agent(stats, replace(CFG, task_dim=384)), [RUN], None, tmp_path / "a.safetensors")
    assert torch.equal(one.obs_stats[:, :2], stats)


def test_own_tasks_that_a_file_names_are_not_run(tmp_path):
    """A name with a colon is code. It came with the file, nobody here has asked for it."""
    stats, name = some_stats(), "nowhere:nothing"
    source = replace(agent(stats, replace(CFG, task_dim=384)), tasks=(WALK, name))
    one, _ = evaluation.told(source, [RUN], None, tmp_path / "a.safetensors")
    assert one.tasks == (WALK, name, RUN) and torch.equal(one.obs_stats[:, 1], stats[:, 1])
    assert name not in envs.TASKS
