"""RoboDesk: the scripted players reach the package's own success and keep it.

Run: pytest tests/test_robodesk_player.py            (one episode of two tasks)
     pytest tests/test_robodesk_player.py -m slow    (success rates over ten episodes of all)
"""

import numpy as np
import pytest

import envs
import experts
from envs import robodesk

PLAYED = ("rd-push-red", "rd-push-green", "rd-push-blue", "rd-open-slide", "rd-flat-block-in-bin")


def play(env, seed: int) -> tuple[float, float]:
    """-> return, success at the last step."""
    obs, info = env.reset(seed=seed)
    script, total, truncated = robodesk.player(env, obs, 0), 0.0, False
    action = next(script)
    while not truncated:
        assert action.shape == (5,) and np.isfinite(action).all()
        obs, reward, _, truncated, info = env.step(np.clip(action, -1, 1).astype(np.float32))
        total += reward
        action = script.send((obs, info))
    return total, info["success"]


def test_played_tasks_are_those_of_the_suite_but_the_drawer():
    suite = {name for name, task in envs.TASKS.items() if task.domain == "robodesk"}
    assert set(PLAYED) == suite - {"rd-open-drawer"}
    assert {name for name in suite if experts.source_of(name) == "script"} == set(PLAYED)


@pytest.mark.parametrize("name", ["rd-push-green", "rd-flat-block-in-bin"])
def test_success_at_the_end(name):
    assert play(envs.make(name), seed=1000)[1] == 1


def test_only_reads():
    """With a script at its side, an episode of doing nothing ends in the same state as without."""
    ends = []
    for watched in (False, True):
        env = envs.make("rd-push-blue")
        obs, info = env.reset(seed=5)
        script = robodesk.player(env, obs, 0)
        next(script)
        for _ in range(5):
            obs, _, _, _, info = env.step(np.zeros(5, np.float32))
            if watched:
                script.send((obs, info))
        ends.append(env.get_state())
    assert (ends[0]["physics"] == ends[1]["physics"]).all() and ends[0]["rng"] == ends[1]["rng"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate"), [(name, 0.9 if "push" in name else 0.2) for name in PLAYED])
def test_success_rate(name, rate):
    env = envs.make(name)
    assert np.mean([play(env, seed)[1] for seed in range(10)]) >= rate
