"""Gaits: that they walk where they should, always alike, and that the search gets better at what it is asked for.

Run: pytest tests/test_gaits.py
"""

import subprocess
import sys

import numpy as np
import pytest

import envs
import experts
from envs import gaits


def played(task: str, steps: int, seed: int = 5):
    """The first steps of an episode  ->  environment, actions."""
    env, actions = envs.make(task), []
    obs, info = env.reset(seed=seed)
    script = gaits.player(env, obs, 0)
    for _ in range(steps):
        actions.append(np.clip(next(script) if not actions else script.send((obs, info)), -1, 1).astype(np.float32))
        obs, _, _, _, info = env.step(actions[-1])
    return env, np.array(actions)


def test_what_is_played_has_a_gait():
    assert set(gaits.TASKS.values()) <= set(gaits.GAITS)
    assert all(experts.source_of(task) == "script" for task in gaits.TASKS)
    found = gaits.load_file(gaits.FILE)
    for task, name in gaits.TASKS.items():
        assert found[name].shape == gaits.body_of(envs.make(task)).shape and 0.3 < found[f"{name}.hz"].item() < 10


@pytest.mark.parametrize("way", [0, 1, 2, 3, 0.5])
def test_ant_walks_where_it_is_sent(way):
    """In quarters of a turn: at least half a metre per second along the way, and less than half of that beside it."""
    angle = way * np.pi / 2
    env = envs.make("og-ant")
    obs, _ = env.reset(seed=2)
    env._goal = np.array([np.cos(angle), np.sin(angle)])
    script = gaits.player(env, obs, 0)
    action = next(script)
    for _ in range(99):
        obs, _, _, _, info = env.step(np.clip(action, -1, 1))
        action = script.send((obs, info))
    x, y = env._body.data.qpos[:2]
    along, beside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    assert along > 5 and abs(beside) < along / 2


def test_ant_looks_the_same_after_a_quarter_turn():
    """Turned by a quarter, with a way turned by a quarter, it feels the same, and its legs do the same."""
    env = envs.make("og-ant")
    env.reset(seed=3)
    data, rng = env._body.data, np.random.default_rng(0)
    data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])  # as a simulator step does
    weights = rng.standard_normal((4, gaits.CLOCK + 26))
    env._goal = np.array([np.cos(0.1), np.sin(0.1)])
    features, actions = [], []
    for _ in range(2):
        body = gaits.body_of(env)
        felt = np.concatenate([gaits.clock(0.7), body.feel(None)])
        features.append(felt), actions.append(body.act(weights, felt))
        w, x, y, z = data.qpos[3:7]
        half = np.sqrt(0.5)  # turn the world about z: quaternion product with (cos 45, 0, 0, sin 45)
        data.qpos[3:7] = half * np.array([w - z, x - y, y + x, z + w])
        data.qvel[:2] = -data.qvel[1], data.qvel[0]
        env._goal = np.array([-env._goal[1], env._goal[0]])
    np.testing.assert_allclose(features[0], features[1], atol=1e-9)
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-9)
    env._goal = np.array([-env._goal[1], env._goal[0]])  # now a quarter to the left of where it looked
    body = gaits.body_of(env)
    other = body.act(weights, np.concatenate([gaits.clock(0.7), body.feel(None)]))
    assert body._side == 1 and np.abs(other - actions[0]).max() > 0.01


def test_mirrored_twice_is_the_same():
    features = np.random.default_rng(0).standard_normal(gaits.CLOCK + 26)
    body = gaits.body_of(envs.make("og-ant"))
    assert np.abs(body.mirrored(features) - features).max() > 0.1
    np.testing.assert_array_equal(body.mirrored(body.mirrored(features)), features)


def test_maze_is_found_through():
    env, _ = played("og-ant-maze", 199)
    assert env._succeeds()


def test_jumper_jumps():
    env, _ = played("jumper-jump", 200)
    assert env._return > 60  # of 400; at rest it gets next to nothing


def test_same_number_same_actions():
    one, other = (played("og-antball", 30)[1] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one, axis=0)) > 25


def test_search_finds_the_best_of_a_toy():
    """A bowl of uneven curvature whose best point is known: closer every ten rounds, and there in the end."""
    best, scale = np.linspace(-1, 1, 12), np.geomspace(1, 30, 12)

    def value(x, _):
        return -np.square(scale * (x - best)).sum()

    means = []
    for mean, candidate, value_of_it in gaits.evolve(value, np.zeros(12), 0.3, 16, np.random.default_rng(0)):
        means.append(mean)
        assert value_of_it == value(candidate, 0)
        if len(means) == 150:
            break
    values = [value(mean, 0) for mean in means]
    assert values[149] > -1e-3 and values[49] > values[0] / 2


@pytest.mark.parametrize("keep", [0, 1])
def test_search_is_repeatable(keep, monkeypatch):
    """One gait per round, with the numbers of the round before it, were it stopped there."""
    monkeypatch.setitem(gaits.GAITS, "jumper-jump", gaits.Gait(1, 3, steps=10, starts=1, width=4, keep=keep))
    one, other = (list(gaits.search("jumper-jump", {})) for _ in range(2))
    assert len(one) == 3
    for a, b in zip(one, other, strict=True):
        assert set(a) == {"jumper-jump", "jumper-jump.hz"}
        assert all((a[name] == b[name]).all() for name in a)
    assert keep or (one[0]["jumper-jump"] != one[2]["jumper-jump"]).any()


def test_command_asks_for_a_known_gait():
    for names, words in (([], "which gait?"), (["og-ant", "og-aunt"], "no gait is called og-aunt")):
        done = subprocess.run([sys.executable, "-m", "envs.gaits", *names], capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr
