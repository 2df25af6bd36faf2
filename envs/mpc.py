"""Sampling MPC on the true simulator: demonstrations for tasks that no script can do.

At every decision, from the present state of the simulator:

    knots      (K, A), the plan; M @ knots = (H, A) actions, linear between the knots or each held (`hold`)
    candidates plan + sigma * noise, one half with 0.35 sigma: small changes refine, large ones escape; and the plan
    value      sum of H rewards of the task itself, plus SHAPING where that pays nothing on the way
    one round  predictive sampling: the best candidate is the plan
    two        cross-entropy method: the second round draws around mean and spread (>= FLOOR) of the best ELITES of the
               first; the plan is the best of all and of the second mean. Needed by fast and by torque-driven bodies
    next       `every` actions are executed, then the plan is moved on by as many (least squares for its knots)

The simulator is the environment itself, put back by get_state and set_state, which are exact: what the plan promises is
what happens. Box2D can't be put back; there a twin with the same ground gets the bodies' places and speeds.
Source: predictive sampling (arXiv 2212.00541); settings of PLANS measured task by task, results/demos.csv.
Test: pytest tests/test_mpc.py
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import envs

ELITES, FLOOR = 0.12, 0.1


class Plan(NamedTuple):
    horizon: int  # H, agent steps
    knots: int  # K
    samples: int  # N, per round
    sigma: float
    rounds: int = 1
    hold: bool = False
    every: int = 1


def cem(horizon: int, knots: int, samples: int, sigma: float, **more) -> Plan:
    return Plan(horizon, knots, samples, sigma, rounds=2, **more)


PLANS = {
    "walker-stand": Plan(20, 6, 32, 0.5),
    "walker-walk": Plan(20, 6, 32, 0.5),
    "walker-run": cem(18, 6, 64, 0.6),
    "cheetah-run": cem(25, 10, 64, 0.7),
    "acrobot-swingup": Plan(60, 15, 96, 0.8),
    "cup-catch": Plan(30, 6, 32, 0.6),
    "finger-spin": Plan(20, 5, 160, 1.0, hold=True),
    "finger-turn-easy": Plan(25, 6, 24, 0.6),
    "finger-turn-hard": Plan(25, 6, 24, 0.6),
    "fish-swim": Plan(25, 6, 32, 1.0),
    "hopper-stand": Plan(30, 8, 48, 0.6),
    "hopper-hop": cem(25, 10, 64, 0.7),
    "quadruped-walk": Plan(20, 5, 32, 0.5),
    "quadruped-run": Plan(20, 5, 32, 0.5),
    "walker-walk-backward": Plan(20, 6, 32, 0.5),
    "walker-run-backward": cem(18, 6, 64, 0.6),
    "cheetah-run-backward": cem(25, 10, 64, 0.7),
    "cheetah-run-front": cem(25, 10, 64, 0.7),
    "cheetah-run-back": cem(25, 10, 64, 0.7),
    "cheetah-jump": cem(25, 10, 64, 0.7),
    "hopper-hop-backward": cem(25, 10, 64, 0.7),
    "cup-spin": Plan(30, 6, 32, 0.6),
    "spinner-spin": cem(25, 10, 64, 0.7),
    "spinner-spin-backward": cem(25, 10, 64, 0.7),
    "spinner-jump": cem(25, 10, 64, 0.7),
    "giraffe-run": cem(25, 10, 64, 0.7),
    "mujoco-ant": cem(15, 8, 64, 0.5),
    "mujoco-halfcheetah": cem(20, 10, 128, 0.8),
    "mujoco-hopper": Plan(40, 8, 32, 0.6),
    "mujoco-walker": cem(25, 10, 64, 0.7),
    "rd-open-drawer": Plan(6, 3, 16, 0.9),
}
PLANS |= dict.fromkeys(
    [f"bipedal-walker-{ground}" for ground in ("flat", "uneven", "rugged", "hills", "obstacles")], Plan(45, 10, 96, 0.6)
)

# What the planner is paid besides, per agent step, where the task's own reward is zero for too long. Of dm_control's
# Physics, so for those tasks only; recorded rewards are never touched.
SHAPING = {
    "cup-catch": lambda p: -0.05 * np.linalg.norm(p.ball_to_target()),
    "finger-turn": lambda p: -0.02 * abs(p.dist_to_target()),
    "finger-spin": lambda p: -0.05 * np.clip(p.hinge_velocity(), -20, 20),
    "fish-swim": lambda p: -5 * np.linalg.norm(p.mouth_to_target()),
    "hopper": lambda p: 0.3 * min(p.height(), 0.9),
    "acrobot": lambda p: -0.02 * p.to_target(),
}


def matrix(plan: Plan) -> np.ndarray:
    """(H, K): knots -> actions."""
    if plan.hold:
        return np.eye(plan.knots)[np.arange(plan.horizon) * plan.knots // plan.horizon]
    t, knots = np.arange(plan.horizon), np.linspace(0, plan.horizon - 1, plan.knots)
    return np.stack([np.interp(t, knots, row) for row in np.eye(plan.knots)], 1)


def improve(knots: np.ndarray, value: Callable[[np.ndarray], float], plan: Plan, rng) -> np.ndarray:
    """One decision: (K, A) -> better (K, A). value(knots) is the return of a plan."""
    best, best_value = knots, -np.inf
    mean, std = knots, plan.sigma
    scale = np.where(np.arange(plan.samples) % 2, 1, 0.35)[:, None, None]
    for n in range(plan.rounds):
        noise = rng.standard_normal((plan.samples, *knots.shape)) * std * (scale if n == 0 else 1)
        noise[0] = 0
        candidates = (mean + noise).clip(-1, 1)
        values = np.array([value(candidate) for candidate in candidates])
        order = np.argsort(-values, kind="stable")
        if values[order[0]] > best_value:
            best, best_value = candidates[order[0]], values[order[0]]
        if plan.rounds > 1:
            elites = candidates[order[: max(2, round(ELITES * plan.samples))]]
            mean, std = elites.mean(0), np.maximum(elites.std(0), FLOOR)
    return mean if plan.rounds > 1 and value(mean) > best_value else best


def player(env, obs, number):
    """Yields actions for a task of PLANS; experts.py says what a player is."""
    plan, rng = PLANS[env.name], np.random.default_rng(number)
    to_actions = matrix(plan)
    to_knots = np.linalg.pinv(to_actions)
    get, put, advance = simulator(env)
    knots = np.zeros((plan.knots, *env.action_space.shape))
    while True:
        start = get()

        def value(candidate, start=start):
            put(start)
            return sum(advance(action) for action in to_actions @ candidate)

        knots = improve(knots, value, plan, rng)
        put(start)
        actions = to_actions @ knots
        for t in range(plan.every):
            yield actions[t]
        ahead = np.concatenate([actions[plan.every :], np.repeat(actions[-1:], plan.every, 0)])
        knots = (to_knots @ ahead).clip(-1, 1)


# ---- simulators: (get, put, advance), and what the planner is paid ----


def simulator(env) -> tuple[Callable, Callable, Callable]:
    """get() -> snapshot; put(snapshot); advance(action (A,)) -> reward of an agent step, without observation."""
    kinds = {"dmcontrol": dmcontrol, "dmcontrol-ext": dmcontrol, "mujoco": mujoco, "robodesk": robodesk,
             "box2d": biped}  # fmt: skip
    return kinds[envs.TASKS[env.name].domain](env)


def dmcontrol(env) -> tuple[Callable, Callable, Callable]:
    """The reward is asked for once per agent step, after the last control step: half of the time is rewards."""
    physics, task, repeat = env._env.physics, env._env.task, env._repeat
    steps = repeat * env._env._n_sub_steps
    shaping = next((call for word, call in SHAPING.items() if env.name.startswith(word)), None)

    def advance(action) -> float:
        physics.set_control(env._low + env._scale * (action + 1))
        physics.step(steps)
        return repeat * task.get_reward(physics) + (shaping(physics) if shaping else 0.0)

    return env.get_state, env.set_state, advance


def mujoco(env) -> tuple[Callable, Callable, Callable]:
    return env.get_state, env.set_state, lambda action: env._advance(action.astype(np.float32))[1]


def robodesk(env) -> tuple[Callable, Callable, Callable]:
    return env.get_state, env.set_state, lambda action: env._env.step(action)[1]


def biped(env) -> tuple[Callable, Callable, Callable]:
    """A twin of Box2D's world: the same ground, bodies put where those of the true world are."""
    from gymnasium.envs.box2d import bipedal_walker as walker

    from envs.box2d import METRE

    twin_env = envs.make(env.name)
    twin_env.set_state(env.get_state() | {"actions": np.zeros((0, 4), np.float32)})
    real, twin = env._env, twin_env._env
    left = 0  # steps until the plan ends, for the price of a fall

    def bodies(world):
        return [world.hull, *world.legs]

    def get():
        return [(tuple(b.position), b.angle, tuple(b.linearVelocity), b.angularVelocity) for b in bodies(real)]

    def put(state):
        nonlocal left
        left = PLANS[env.name].horizon
        twin.game_over = False
        for b, (position, angle, velocity, spin) in zip(bodies(twin), state, strict=True):
            b.position, b.angle, b.linearVelocity, b.angularVelocity, b.awake = position, angle, velocity, spin, True

    def advance(action) -> float:
        nonlocal left
        left -= 1
        if twin.game_over:
            return 0.0
        total = 0.0
        for _ in range(env._repeat):
            x, angle = twin.hull.position.x, abs(twin.hull.angle)
            for i, joint in enumerate(twin.joints):
                joint.motorSpeed = float((walker.SPEED_HIP, walker.SPEED_KNEE)[i % 2] * np.sign(action[i]))
                joint.maxMotorTorque = float(walker.MOTORS_TORQUE * min(abs(action[i]), 1))
            twin.world.Step(1 / walker.FPS, 60, 20)
            moved, tilted = twin.hull.position.x - x, abs(twin.hull.angle) - angle
            total += min(max(METRE * moved - 5 * tilted - 0.028 * np.abs(action).sum(), -1), 10)
        return total - (30 + 2 * left if twin.game_over else 0)

    return get, put, advance
