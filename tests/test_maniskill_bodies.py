"""ManiSkill's cartpoles and dog: the scripted player balances, swings up first where the pole hangs, and gets there.

Run: pytest tests/test_maniskill_bodies.py            (one episode of each dense task, three of the dog)
     pytest tests/test_maniskill_bodies.py -m slow    (all four, five episodes)
"""

import numpy as np
import pytest

import envs
import experts
from envs import maniskill_bodies

pytest.importorskip("mani_skill")


def play(env, seed: int) -> tuple[float, np.ndarray]:
    """-> score, (T,) heights of the pole's tip over the cart, 1 is upright; obs[1] is the angle."""
    one = experts.play(env, maniskill_bodies.player, seed, 0)
    return one.score[0], np.cos(one.obs[1:, 1])


@pytest.mark.parametrize("name", ["ms-cartpole-balance", "ms-cartpole-swingup"])
def test_pole_ends_upright_and_stays(name):
    score, heights = play(envs.make(name), seed=1)
    assert (heights[:3] < -0.9).all() if "swingup" in name else (heights > 0.99).all()
    assert (heights[-400:] > 0.99).all()
    assert score > 0.9


def test_dog_trots_to_the_goal_and_stands_there():
    env = envs.make("ms-anymal-reach")
    assert experts.source_of("ms-anymal-reach") == "script"
    for seed in range(3):
        one = experts.play(env, maniskill_bodies.player, seed, 0)
        gap = np.linalg.norm(one.obs[:, -2:], axis=1)
        assert one.score[0] == 1 and gap[0] > 1.9 and gap[-3:].max() < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("job", ["balance", "swingup", "balance-sparse", "swingup-sparse"])
def test_score(job):
    env = envs.make(f"ms-cartpole-{job}")
    assert min(play(env, seed)[0] for seed in range(5)) > 0.9
