"""Box2D: the lander's scripted player earns what a demonstration must.

Run: pytest tests/test_box2d_player.py
"""

import numpy as np
import pytest

import envs
import experts
from envs import box2d


def play(env, seed: int, number: int = 0):
    """-> (T, A) actions as the simulator got them, return, last obs, score."""
    one = experts.play(env, box2d.player, seed, number)
    return one.action[1:], one.ret[0], one.obs[-1], one.score[0]


# Returns of a packaged controller and of simple ones with its gains, as means over 20 episodes: 157, 421 and 405.
@pytest.mark.parametrize(("job", "mean"), [("land", 170), ("hover", 421), ("takeoff", 405)])
def test_return(job, mean):
    env = envs.make(f"lunarlander-{job}")
    episodes = [play(env, seed) for seed in range(10)]
    assert np.mean([total for _, total, *_ in episodes]) > mean
    assert all(score >= 0.3 for *_, score in episodes)


def test_land_comes_to_rest_upright_on_both_legs():
    env = envs.make("lunarlander-land")
    for seed in range(5):
        actions, _, (x, y, vx, vy, angle, spin, left, right), _ = play(env, seed)
        assert left and right and abs(angle) < 0.1 and abs(x) < 1 / 3 and max(map(abs, (vx, vy, spin))) < 1e-3
        assert not actions[-100:].any()  # engines off


def test_reads_only_the_observation():
    """The same actions whatever the attempt's number, and without an environment."""
    env = envs.make("lunarlander-hover")
    actions, *_ = play(env, seed=3, number=0)
    obs, _ = env.reset(seed=3)
    script = box2d.player(None, obs, 7)
    action = next(script)
    for expected in actions[:50]:
        assert (np.clip(action, -1, 1).astype(np.float32) == expected).all()
        action = script.send((env.step(expected)[0], {}))
