"""episodes.py: an episode is the same alone and in company, with any number of workers, after interruptions.

Run: pytest tests/test_episodes.py        (about a minute on one core)
"""

from collections import Counter

import numpy as np
import pytest
import torch

import envs
import episodes
import newt
import planner
from envs.vector import episode_seed
from episodes import Episode, Player, evaluate

FIVE = ["mujoco-reacher", "pygame-reacher-easy", "cartpole-balance", "mw-reach", "pygame-landing"]
TWENTY = [name for name in envs.select("miniarcade,mujoco,mw-push,mw-drawer-close") if name not in FIVE][:20]


def an_agent(tasks: list[str], **sizes) -> newt.Agent:
    """Untrained, but with values and rewards that depend on the action: they are 0 in fresh networks."""
    sizes = {"size": "XS", "num_samples": 16, "num_elites": 4, "num_pi": 2, "iterations": 2, **sizes}
    g, rows = torch.Generator().manual_seed(0), [envs.TASKS[name] for name in tasks]
    emb = torch.randn(len(tasks), 384, generator=g)
    agent = newt.create(newt.Config(**sizes), tasks, emb, [r.action_dim for r in rows], [r.discount for r in rows])
    for value in agent.params.values():
        if not value.any():
            value.data.normal_(0, 0.1, generator=g)
    return agent


@pytest.fixture
def short(monkeypatch):
    """Episodes of a few steps, cut off by the table: enough for a difference to show, if there is one."""
    real = episodes._play
    monkeypatch.setattr(episodes, "_play", lambda v, p, n, length, bar: cut(real, v, p, n, bar))


def cut(real, vector, player, numbers, bar):
    steps, left, step = 12, [12], vector.step

    def stop(action):
        result = step(action)
        left[0] -= 1
        return result._replace(done=result.done | (left[0] == 0))

    vector.step = stop
    try:
        return real(vector, player, numbers, steps, bar)
    finally:
        vector.step = step


@pytest.mark.parametrize("policy", ["planner", "policy", "random"])
def test_the_same_alone_in_company_and_with_any_workers(policy, short):
    """Five tasks alone, one by one, among twenty others, shuffled, in rounds of other sizes."""
    agent = an_agent([*FIVE, *TWENTY])
    alone = evaluate(agent, FIVE, 3, 5, policy, workers=1)
    assert len({e.ret for played in alone.values() for e in played}) >= 10  # and not for lack of differences
    among = evaluate(agent, [*TWENTY, *FIVE][::-1], 2, 5, policy, workers=2)
    single = {name: evaluate(agent, [name], 1, 5, policy, workers=1)[name] for name in FIVE[:2]}
    for name in FIVE:
        assert alone[name][:2] == among[name]
        assert [e.number for e in alone[name]] == [0, 1, 2]
    assert all(single[name] == alone[name][:1] for name in single)
    other = evaluate(agent, FIVE[:1], 1, 6, policy, workers=1)[FIVE[0]]
    assert other != alone[FIVE[0]][:1]


def test_going_on_is_like_never_having_stopped(short):
    agent, kept = an_agent(FIVE), []
    whole = evaluate(agent, FIVE, 3, workers=2, keep=kept.append)
    assert kept[-1] == whole
    half = {FIVE[0]: whole[FIVE[0]][1:2], FIVE[1]: whole[FIVE[1]][:1]}  # with a hole, too
    played = Counter()
    real = episodes._play
    episodes._play = lambda v, p, n, *rest: played.update(zip(v.tasks, n, strict=True)) or real(v, p, n, *rest)
    try:
        assert evaluate(agent, FIVE, 3, workers=1, done=half) == whole
    finally:
        episodes._play = real
    assert not {(name, e.number) for name, rows in half.items() for e in rows} & {*played}


def test_a_decision_is_that_of_newt_act(monkeypatch):
    """The groups of Player against one call of newt.act with all environments and the same noise."""
    agent, g = an_agent(FIVE, num_samples=32), torch.Generator().manual_seed(1)
    obs = torch.randn(5, 128, generator=g)
    player = Player(agent, FIVE, [3] * 5, seed=9)
    got = player(obs.numpy(), np.array([1, 1, 1, 0, 1], bool))
    settings, heads = newt.plan_settings(agent.cfg), torch.Generator().manual_seed(9)
    drawn = [planner.draw_noise(settings, 1, 16, 2, torch.Generator().manual_seed(episode_seed(9, name, 1, 3)))
             for name in FIVE]  # fmt: skip
    heads = planner.draw_noise(settings, 0, 16, agent.params["q.0.weight"].shape[0], heads).heads
    for i in (0, 1, 2, 4):
        task, zeros = torch.tensor([i]), torch.zeros(1, 3, 16)
        plan = newt.act(agent, obs[i : i + 1], task, zeros, torch.tensor([True]), noise=drawn[i]._replace(heads=heads))
        np.testing.assert_allclose(got[i], plan.action[0], atol=1e-5)
    assert not got[3].any()


def test_until_counts_the_first_narrow_interval():
    def rows(scores):
        return [Episode(0.0, 0.0, score, 1, number=i) for i, score in enumerate(scores)]

    assert episodes.counted(rows([0.5] * 30), 100, 0.02) == 10  # not before
    assert episodes.counted(rows([0.5] * 5), 100, 0.02) == 100  # not yet
    assert episodes.counted(rows([0.5] * 30), 100, 0) == 100 and episodes.counted(rows([0.5] * 30), 8, 0.02) == 8
    mixed = rows([0.0, 1.0] * 60)  # Wilson: half the width is 0.1 at about 92 episodes
    n = episodes.counted(mixed, 120, 0.1)
    assert 85 < n < 100 and episodes.counted(mixed[: n + 5], 120, 0.1) == n  # what was under way isn't seen
    assert episodes.counted(rows([np.nan] * 30), 100, 0.02) == 100


def test_until_ends_a_task_and_not_the_others(monkeypatch):
    """A task whose scores are all alike has its ten; one of coin flips goes on to the end."""
    agent, kept = an_agent(FIVE[:2]), []

    def play(vector, player, numbers, length, bar):
        score = {FIVE[0]: lambda k: 0.5, FIVE[1]: lambda k: float(k % 2)}
        return [None if k is None else Episode(0.0, 0.0, score[name](k), 1, 0.0, k)
                for name, k in zip(vector.tasks, numbers, strict=True)]  # fmt: skip

    monkeypatch.setattr(episodes, "_play", play)
    got = evaluate(agent, FIVE[:2], 45, until=0.02, policy="random", workers=1, keep=kept.append)
    assert [len(got[name]) for name in FIVE[:2]] == [10, 45] and kept[-1] == got


def test_what_a_fault_cut_off_is_replaced(monkeypatch):
    agent, faults = an_agent(FIVE[:1]), [1, 2]

    def play(vector, player, numbers, length, bar):
        return [None if k is None or (k in faults and not faults.remove(k)) else Episode(float(k), 0.0, 0.0, 1, 0.0, k)
                for k in numbers]  # fmt: skip

    monkeypatch.setattr(episodes, "_play", play)
    assert [e.number for e in evaluate(agent, FIVE[:1], 4, policy="random", workers=1)[FIVE[0]]] == [0, 3, 4, 5]


def test_success_at_any_step():
    """my_envs: success at the second step alone."""
    agent = newt.create(newt.Config(size="XS"), ["my_envs:dies"], torch.zeros(1, 384), [1], [0.95])
    (episode,) = evaluate(agent, ["my_envs:dies"], 1, policy="random", workers=1)["my_envs:dies"]
    assert (episode.success, episode.success_any, episode.length) == (0.0, 1.0, 7)
