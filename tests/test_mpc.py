"""Sampling MPC: knots, one decision, and that planning neither disturbs the simulator nor misjudges it.

Run: pytest tests/test_mpc.py            (about 20 s on one core)
     pytest tests/test_mpc.py -m slow    (a whole planned episode; a minute)
"""

import numpy as np
import pytest

import envs
import experts
from envs import mpc
from envs.mpc import Plan


def test_knots_to_actions():
    np.testing.assert_allclose(mpc.matrix(Plan(3, 2, 1, 1.0)), [[1, 0], [0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(mpc.matrix(Plan(4, 2, 1, 1.0, hold=True)), [[1, 0], [1, 0], [0, 1], [0, 1]])
    for hold in (False, True):  # constant knots are constant actions
        np.testing.assert_allclose(mpc.matrix(Plan(25, 10, 1, 1.0, hold=hold)).sum(1), 1)


@pytest.mark.parametrize("rounds", [1, 2])
def test_one_decision(rounds):
    """On a value with a known best plan: better every time, never out of range, the same for the same generator."""
    best, asked = np.array([[0.9, -0.4], [0.2, 0.0], [-1.0, 0.5]]), []

    def value(knots):
        asked.append(knots)
        return -np.square(knots - best).sum()

    plan, knots = Plan(20, 3, 64, 0.5, rounds=rounds), np.zeros((3, 2))
    values = [value(knots)]
    for seed in range(8):
        knots = mpc.improve(knots, value, plan, np.random.default_rng(seed))
        values.append(value(knots))
    assert (np.diff(values) >= 0).all() and values[0] < -2 and values[-1] > -0.05
    assert np.abs(asked).max() <= 1
    again = [mpc.improve(knots, value, plan, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    flat = mpc.improve(knots, lambda _: 0.0, plan, np.random.default_rng(0))
    np.testing.assert_array_equal(flat, knots)  # nothing to gain: the plan stays


def test_number_of_rollouts():
    """What an episode costs: N per round, and with two rounds the mean as well."""
    for rounds, rollouts in ((1, 24), (2, 49)):
        asked = []
        mpc.improve(np.zeros((2, 1)), lambda k, asked=asked: asked.append(k) or 0.0, Plan(5, 2, 24, 1.0, rounds),
                    np.random.default_rng(0))  # fmt: skip
        assert len(asked) == rollouts


def test_every_task_of_the_control_suites_has_one_who_shows_it():
    by_script = {name for name in envs.TASKS if experts.script_of(name)}
    assert set(mpc.PLANS) <= set(envs.TASKS) and not set(mpc.PLANS) & by_script
    assert set(envs.select("dmcontrol,dmcontrol-ext,mujoco")) <= set(mpc.PLANS) | by_script
    for plan in mpc.PLANS.values():
        assert plan.horizon >= plan.knots >= 1 and plan.every <= plan.horizon


PLANNED = ["cheetah-run", "walker-walk", "cup-catch", "finger-turn-easy", "hopper-stand", "acrobot-swingup",
           "fish-swim", "finger-spin", "walker-run-backward", "mujoco-ant", "mujoco-walker",
           "bipedal-walker-obstacles"]  # fmt: skip
SMALL = Plan(6, 3, 4, 0.8)


@pytest.mark.parametrize("task", PLANNED)
def test_planning_changes_nothing(task, monkeypatch):
    """The actions that planning found, played again in an environment that never planned: the same to the last bit."""
    monkeypatch.setitem(mpc.PLANS, task, SMALL)
    env, other = envs.make(task), envs.make(task)
    obs, info = env.reset(seed=4)
    np.testing.assert_array_equal(obs, other.reset(seed=4)[0])
    script = mpc.player(env, obs, 0)
    action = next(script)
    for _ in range(8):
        action = np.clip(action, -1, 1).astype(np.float32)
        result, expected = env.step(action), other.step(action)
        np.testing.assert_array_equal(result[0], expected[0])
        assert result[1] == expected[1]
        action = script.send((result[0], result[4]))


@pytest.mark.parametrize("task", ["cheetah-run", "quadruped-walk", "mujoco-hopper"])
def test_what_is_promised_happens(task):
    """Positions after five imagined steps are those after five real ones."""
    env = envs.make(task)
    env.reset(seed=1)
    actions = np.random.default_rng(0).uniform(-1, 1, (8, *env.action_space.shape))
    for action in actions[:3]:
        env.step(action)
    get, put, advance = mpc.simulator(env)
    start = get()
    put(start)
    for action in actions[3:]:
        advance(action)
    physics = np.copy(env.get_state()["physics"])
    put(start)
    for action in actions[3:]:
        env.step(action)
    np.testing.assert_allclose(physics, env.get_state()["physics"], rtol=1e-5, atol=1e-6)  # float32 actions for some


def test_reward_is_the_task_s():
    env = envs.make("mujoco-walker")
    env.reset(seed=0)
    get, put, advance = mpc.simulator(env)
    action = np.full(6, 0.3, np.float32)
    start = get()
    imagined = advance(action)
    put(start)
    assert env.step(action)[1] == imagined
    env = envs.make("walker-walk")  # asked once for two control steps; smooth, so nearly the sum
    env.reset(seed=0)
    get, put, advance = mpc.simulator(env)
    start = get()
    imagined = advance(action)
    put(start)
    assert abs(env.step(action)[1] - imagined) < 0.05


def test_twin_of_the_biped_follows_the_true_one():
    env = envs.make("bipedal-walker-rugged")
    env.reset(seed=3)
    actions = np.random.default_rng(1).uniform(-1, 1, (40, 4)).astype(np.float32)
    for action in actions[:20]:
        env.step(action)
    get, put, advance = mpc.simulator(env)
    place = env._env.hull.position.x
    put(get())
    imagined = sum(advance(action) for action in actions[20:24])
    assert env._env.hull.position.x == place  # nothing happened to the true one
    real = sum(env.step(action)[1] for action in actions[20:24])
    assert abs(imagined - real) < 0.2, (imagined, real)


def test_a_fall_of_the_biped_costs():
    """30 and 2 for each step that is left, paid once; nothing is paid afterwards, and a new plan starts on its feet."""
    env = envs.make("bipedal-walker-flat")
    env.reset(seed=0)
    get, put, advance = mpc.simulator(env)
    start = get()
    for _ in range(2):
        put(start)
        rewards = [advance(np.array([1, 0, 1, 1])) for _ in range(mpc.PLANS[env.name].horizon)]
        fallen = int(np.argmin(rewards))
        left = len(rewards) - fallen - 1
        assert 0 < fallen < len(rewards) - 1 and abs(rewards[fallen] + 30 + 2 * left) < 4
        assert rewards[fallen + 1 :] == [0.0] * left


@pytest.mark.slow
def test_a_planned_episode():
    """Far above what the specification calls a failure; the committed table has means."""
    assert experts.play(envs.make("finger-turn-easy"), mpc.player, 0, 0).score[0] > 0.6
