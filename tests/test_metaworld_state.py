"""Meta-World: a saved state goes on bit for bit as the original did, while the expert works on the task.

Run: pytest tests/test_metaworld_state.py            (six tasks)
     pytest tests/test_metaworld_state.py -m slow    (all 49)
"""

import sys
from ctypes.util import find_library

import numpy as np
import pytest

import envs

# Experts that lift, hook, drop into a bin; and the package's odd ones: goals and starts that move with the simulator
# (door-lock, basketball), a reward that remembers a distance from the first time it was asked (bin-picking).
FAST = ["mw-door-lock", "mw-basketball", "mw-bin-picking", "mw-hammer", "mw-stick-pull", "mw-lever-pull"]


def expert_actions(env, steps):
    """What the package's noisy expert does from here on; plays it, too."""
    from metaworld.policies import ENV_POLICY_MAP

    expert, obs, actions = ENV_POLICY_MAP[f"{env.name[3:]}-v3"](), env.last, []
    for noise in np.random.default_rng(0).normal(0, 0.2, (steps, 4)):
        actions.append((expert.get_action(obs.astype(np.float64)) + noise).clip(-1, 1).astype(np.float32))
        obs = env.step(actions[-1])[0]
    return actions


def make(name, seed):
    env = envs.make(name, seed=seed)
    env.name, env.last = name, env.reset()[0]
    return env


def go_on(env, actions):
    """The rest of an episode, the next one's start, and one more step: every number that comes out."""
    rows = []
    for action in actions:
        obs, reward, _, truncated, info = env.step(action)
        rows.append([*obs, reward, truncated, info["score"], info["success"]])
    rows.append([*env.reset()[0], 0, 0, 0, 0])
    rows.append([*env.step(actions[0])[0], 0, 0, 0, 0])
    return np.array(rows)


def check_restore(name):
    env = make(name, seed=1)
    expert_actions(env, 35)
    state = env.get_state()
    for key, value in state.items():
        assert isinstance(value, dict if key == "rng" else (int, float, np.number, np.ndarray)), key
    before = {key: np.array(value) for key, value in state.items() if key != "rng"}
    # The same 65 actions in all runs, chosen while they are first played; the state must not have been touched.
    env.last = state["package._last_stable_obs"]
    actions = expert_actions(env, 65)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value, err_msg=f"{name} {key}")

    never_saved = make(name, seed=1)
    for action in np.array(expert_actions(make(name, seed=1), 35)):
        never_saved.step(action)
    want = go_on(never_saved, actions)
    assert want[64, 40] == 1 and np.isfinite(want).all()  # truncated after 35 + 65 steps
    assert (np.ptp(want[:65, 4:18], axis=0) > 1e-4).any() or name == "mw-reach"  # something was moved

    fresh = envs.make(name, seed=2)  # never reset
    busy = make(name, seed=3)
    expert_actions(busy, 50)
    for other in (env, fresh, busy):
        for _ in range(2):
            other.set_state(state)
            np.testing.assert_array_equal(go_on(other, actions), want, err_msg=name)


@pytest.mark.parametrize("name", FAST)
def test_state_is_restored_exactly(name):
    check_restore(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", envs.select("metaworld"))
def test_state_is_restored_exactly_for_all_tasks(name):
    check_restore(name)


@pytest.mark.skipif(
    sys.platform == "linux" and not find_library("EGL") and not find_library("OSMesa"), reason="no off-screen OpenGL"
)
def test_frame_of_a_restored_state_is_the_same():
    env, other = make("mw-drawer-open", seed=1), envs.make("mw-drawer-open", seed=2)
    expert_actions(env, 40)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(env.render(), other.render())
    env.close()
    other.close()
