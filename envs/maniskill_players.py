"""Scripted players for ManiSkill's arms: what is to be done next is read off the scene, anew in every step.

    move    = the hand goes straight for a point, and most of the way in one agent step
    cone    = the higher above its place the farther the hand is to the side: over obstacles, then down
    grasp   = down the cone with open fingers, close them there, and once they hold go on to the goal
    press   = the sponge is a millimetre wider than the fingers open: aligned with it, they are pushed down over it
Nothing is remembered between two steps: the action is a function of the scene, and so of the observation.

Units are metres, radians and agent steps; x is ahead of the robot, z up, and the table's top at z = 0.
Source: scenes and robots of ManiSkill 3 (arXiv 2410.00425); the strategies are our own.
Test: pytest tests/test_maniskill_players.py
"""

import numpy as np
from scipy.optimize import lsq_linear

from envs import maniskill_assets as assets

OPEN, CLOSED = 1.0, -1.0  # as the Panda takes it
_STEP, _TURN = 0.1, 0.1  # what an input of 1 means: metres, radians
_REACH = 0.78  # from the base's axis to a hand that points down
_AHEAD, _LEFT, _UP = np.eye(3)


def player(env, obs, number):
    """Script of one episode of any task of an arm; see the header.

    env  what envs.make returned; read only    obs, number  not used, the scene says it all
    Yields actions (A,), to be clipped to [-1, 1].
    """
    play = _policy(env._name)
    while True:
        yield play(env._sim)


def _policy(name: str):
    """Task -> function from a scene to an action."""
    if name == "ms-pick-sponge":
        return pick_sponge
    if name.startswith("ms-pick") and assets.ycb(name):
        return pick_ycb
    if name == "ms-push-can":
        return tip_can
    if name.startswith("ms-push") and assets.ycb(name):
        return push_ycb
    if name.startswith("ms-reach"):
        return reach
    if name == "ms-pick-cube-so":
        return pick_cube_so
    if name.startswith("ms-pick-cube"):
        return pick_cube
    return {
        "ms-push-cube": push_cube,
        "ms-pull-cube": pull_cube,
        "ms-stack-cube": stack_cube,
        "ms-place-sphere": place_sphere,
        "ms-poke-cube": poke_cube,
        "ms-lift-peg": lift_peg,
        "ms-pull-cube-tool": pull_cube_tool,
    }[name]


# ---- what all of them use ----


def place(thing) -> np.ndarray:
    """Where a thing of the scene is: (3,)."""
    return thing.pose.p[0].numpy().astype(float)


def frame(thing) -> np.ndarray:
    """How it is turned: (3, 3), the columns are its axes."""
    return thing.pose.to_transformation_matrix()[0, :3, :3].numpy().astype(float)


def hand(sim) -> np.ndarray:
    """The point between the fingertips: (3,)."""
    return sim.agent.tcp_pose.p[0].numpy().astype(float)


def holds(sim, thing) -> bool:
    return bool(sim.agent.is_grasping(thing)[0])


def act(sim, target, fingers: float, turn=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Action that takes the hand to a point, and turns it where the task's inputs allow it.

    target  (3,)  metres       turn  (3,)  rotation vector in the world, radians      fingers  OPEN to CLOSED
    """
    move = (_within_reach(sim, hand(sim) + np.clip(target - hand(sim), -_STEP, _STEP)) - hand(sim)) / _STEP
    if sim.single_action_space.shape == (7,):
        return np.array([*move, *(-np.array(turn) / _TURN), fingers])  # the package turns the other way round
    return np.array([*move, -fingers if sim.agent.uid.startswith("xarm") else fingers])


def _within_reach(sim, target) -> np.ndarray:
    """The nearest point that the arm gets to with its hand upright: out of reach, it would not move at all."""
    base, ahead = sim.agent.robot.pose.p[0].numpy(), max(0, frame(sim.agent.tcp)[0, 2])
    far = np.linalg.norm((target - base)[:2])
    target = target.copy()
    target[:2] = base[:2] + (target - base)[:2] * min(1, (_REACH + 0.12 * ahead) / far)
    return target


def cone(at, target, height: float) -> np.ndarray:
    """Where to go now to come to target from above: 1 cm to the side is allowed, beyond that 3 m up per m.

    at, target  (3,)      height  how far up it is safe everywhere
    """
    aside = np.linalg.norm((target - at)[:2])
    return target + _UP * np.clip(3 * (aside - 0.01), 0, height)


def grasp(sim, point, height: float, near: float = 0.012, turn=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Go for a point from above and close the fingers there."""
    close = np.linalg.norm(point - hand(sim)) < near
    return act(sim, cone(hand(sim), point, height), CLOSED if close else OPEN, turn)


def carry(sim, thing, goal, height: float = 0.0) -> np.ndarray:
    """Bring a held thing to a goal."""
    return act(sim, hand(sim) + cone(place(thing), goal, height) - place(thing), CLOSED)


# ---- tasks ----


def reach(sim) -> np.ndarray:
    return act(sim, place(sim.goal_site), OPEN)


def pick_cube(sim) -> np.ndarray:
    if holds(sim, sim.cube):
        return carry(sim, sim.cube, place(sim.goal_site))
    return grasp(sim, place(sim.cube), 0.06)


def push_cube(sim) -> np.ndarray:
    """From behind, with closed fingers."""
    return _shove(sim, _AHEAD)


def pull_cube(sim) -> np.ndarray:
    """From the far side, with closed fingers."""
    return _shove(sim, -_AHEAD)


def _shove(sim, way) -> np.ndarray:
    """Shift a thing along the table: to its other side, down, and on until it is well inside the goal region."""
    cube, goal = place(sim.obj), place(sim.goal_region)
    behind = cube - 0.035 * way
    gap = behind - hand(sim)
    if (goal - cube) @ way < 0.09:
        return act(sim, hand(sim), CLOSED)
    if np.linalg.norm(gap) < 0.03 or gap @ way < 0 and np.abs(gap[1:]).max() < 0.02:
        return act(sim, behind + min(0.1, 0.6 * (goal - cube) @ way) * way, CLOSED)  # slower at the end: it slides on
    return act(sim, cone(hand(sim), behind, 0.06), CLOSED)


def stack_cube(sim) -> np.ndarray:
    return _put(sim, sim.cubeA, place(sim.cubeB) + 0.04 * _UP, 0.004)


def place_sphere(sim) -> np.ndarray:
    return _put(sim, sim.obj, place(sim.bin) + 0.0225 * _UP, 0.006)


def _put(sim, thing, spot, drop: float) -> np.ndarray:
    """Grasp a thing, put it on a spot, let go and leave upwards. drop: from how far up it may fall."""
    gap = place(thing) - spot
    if np.linalg.norm(gap[:2]) < 0.006 and gap[2] < drop:
        free = not holds(sim, thing)
        return act(sim, hand(sim) + (0.1 * _UP if free else 0), OPEN)
    if holds(sim, thing):
        return carry(sim, thing, spot + 0.5 * drop * _UP, 0.05)
    return grasp(sim, place(thing), 0.06)


def poke_cube(sim) -> np.ndarray:
    peg, cube, goal = place(sim.peg), place(sim.cube), place(sim.goal_region)
    if not holds(sim, sim.peg):
        back = max(0, peg[0] + 0.15 - 0.13)  # the arm would not reach far enough with the peg's middle
        return grasp(sim, peg - back * _AHEAD, 0.06)
    aside, left = cube[1] - peg[1], goal[0] - cube[0]
    if left < 0.045:  # it slides on
        return act(sim, hand(sim), CLOSED)
    ahead = cube[0] - 0.16 - peg[0] if abs(aside) > 0.01 else min(0.05, 0.5 * left)
    return act(sim, hand(sim) + [ahead, aside, 0.03 - peg[2]], CLOSED)


def pick_ycb(sim) -> np.ndarray:
    if holds(sim, sim.obj):
        return carry(sim, sim.obj, place(sim.goal_site))
    matter = body(sim.obj) @ frame(sim.obj).T + place(sim.obj)
    point, angle = grip(matter, center_of_mass(sim.obj), frame(sim.agent.tcp)[:, 1])
    return grasp(sim, point, max(0.06, matter[:, 2].max() - point[2] + 0.03), 0.012, angle * _UP)


def pick_sponge(sim) -> np.ndarray:
    """A millimetre wider than the fingers open: turned along its short side, they are pressed down over it.

    Most of the time goes into the turn: beyond 70 degrees there is not enough of it.
    """
    at, sponge, axes, tool = hand(sim), place(sim.obj), frame(sim.obj), frame(sim.agent.tcp)
    if holds(sim, sim.obj) and sim.agent.robot.get_qpos()[0, -2:].mean() < 0.0397:  # they gave way: it is in between
        return carry(sim, sim.obj, place(sim.goal_site))
    angle = np.arctan2(axes[1, 0], axes[0, 0]) - np.arctan2(tool[1, 1], tool[0, 1])
    angle = (angle + np.pi / 2) % np.pi - np.pi / 2
    turn = angle * _UP + np.cross(tool[:, 2], -_UP)  # and upright: both fingers have to come down at once
    aside, along, _ = axes.T @ (at - sponge)
    target = sponge + np.clip(along, -0.03, 0.03) * axes[:, 1]
    low = at[2] < 0.03  # the tips are below its upper side
    if at[2] < 0.042 and abs(angle) < (0.15 if low else 0.06) and abs(aside) < (0.006 if low else 0.0015):
        if at[2] < 0.014:
            return act(sim, target * [1, 1, 0] + at * _UP, CLOSED, turn)
        push = np.array([-0.027, 0, -0.045])  # back, too: the arm gives way ahead
        return act(sim, target * [1, 1, 0] + at * _UP + push, OPEN, turn)
    return act(sim, cone(at, target + (0.036 - sponge[2]) * _UP, 0.05), OPEN, turn)


def push_ycb(sim) -> np.ndarray:
    """From behind, with closed fingers, as slowly as there is time for: round things would roll on."""
    at, thing, goal = hand(sim), place(sim.obj), place(sim.goal_region)
    matter = body(sim.obj) @ frame(sim.obj).T + thing
    if goal[0] - thing[0] < 0.08:
        return act(sim, at, CLOSED)
    level = max(thing[2], 0.012)
    behind = np.array([matter[np.abs(matter[:, 1] - thing[1]) < 0.015, 0].min() - 0.02, thing[1], level])
    gap, top = behind - at, matter[:, 2].max()
    if np.linalg.norm(gap) < 0.03 or gap[0] < 0 and abs(gap[1]) < 0.02 and at[2] < top - 0.005:
        return act(sim, behind + 0.041 * _AHEAD, CLOSED)
    return act(sim, cone(at, behind, max(0.06, top + 0.02 - level)), CLOSED)


def tip_can(sim) -> np.ndarray:
    """Success wants it lying: held near its top, carried to the goal, turned beyond its point of balance, let go."""
    at, can, goal = hand(sim), place(sim.obj), place(sim.goal_region)
    tilt = np.arccos(np.clip(frame(sim.obj)[2, 2], -1, 1))
    if tilt > 0.75:
        return act(sim, at + 0.03 * _UP, OPEN)
    if holds(sim, sim.obj):
        up = 0.01 + 0.051 * np.cos(tilt) + 0.035 * np.sin(tilt) - can[2]  # the lower edge 1 cm above the table
        return act(sim, at + [np.clip(goal[0] - can[0], -0.05, 0.05), 0, up], CLOSED, -_LEFT)
    aside = np.linalg.norm((can - at)[:2])
    above = 0.085 + np.clip(10 * (aside - 0.004), 0, 0.05)  # there are 5 mm beside each finger
    close = aside < 0.01 and at[2] < 0.097
    return act(sim, np.array([*can[:2], above]), CLOSED if close else OPEN)


def body(thing, n: int = 1500) -> np.ndarray:
    """Points of a thing in its own frame, (N, 3): on its corners, and between random pairs of them."""
    random, points = np.random.default_rng(0), []
    shapes = _physics(thing).collision_shapes
    for shape in shapes:
        corners = shape.vertices * shape.scale
        corners = corners @ shape.local_pose.to_transformation_matrix()[:3, :3].T + shape.local_pose.p
        one, other = corners[random.integers(len(corners), size=(2, n // len(shapes)))]
        points += [corners, one + random.uniform(size=(len(one), 1)) * (other - one)]
    return np.concatenate(points)


def center_of_mass(thing) -> np.ndarray:
    return frame(thing) @ _physics(thing).cmass_local_pose.p + place(thing)


def _physics(thing):
    return thing._bodies[0]


def grip(matter, center, closing) -> tuple[np.ndarray, float]:
    """Where an object is best grasped from above.

    matter (N, 3)  points of the object    center (3,)  its centre of mass    closing (3,)  how the fingers close now
    return  point (3,), angle by which the hand has to turn about z for it

    Of all places that fit between the fingers, with room for them, the one near the centre and with little to turn:
    5 cm cost as much as a radian. Where nothing fits, the centre.
    """
    best = np.inf, center, 0.0
    heading = np.arctan2(closing[1], closing[0])
    starts = np.concatenate([center[None], matter[:: max(1, len(matter) // 60)]])
    for angle in np.linspace(-np.pi / 2, np.pi / 2, 13):
        along = np.array([np.cos(heading + angle), np.sin(heading + angle), 0])
        aside = np.array([-along[1], along[0], 0])
        for start in starts:
            if abs(angle) + 20 * np.linalg.norm((start - center)[:2]) >= best[0]:
                continue
            near = matter[np.abs((matter - start) @ aside) < 0.011]  # as wide as a finger
            inside = near[np.abs((near - start) @ along) < 0.04]
            if not len(inside):
                continue
            low, high = inside.min(0)[2], inside.max(0)[2]
            across = (inside - start) @ along
            point = start + (across.min() + across.max()) / 2 * along
            point[2] = max((low + high) / 2, high - 0.035, 0.008)  # the palm needs room above it, the tips below
            far = np.abs((near[near[:, 2] > point[2] - 0.012] - point) @ along)
            if not len(far) or ((far > 0.0385) & (far < 0.06)).any():  # a finger would come down on it
                continue
            cost = abs(angle) + 20 * np.linalg.norm((point - center)[:2])
            if cost < best[0]:
                best = cost, point, angle
    return best[1:]


def lift_peg(sim) -> np.ndarray:
    """Held near its far end and turned by the wrist, its near end close above the table.

    Meanwhile the arm stretches out: near the robot it can't point its fingers ahead.
    """
    peg, axis, at = place(sim.peg), frame(sim.peg)[:, 0], hand(sim)
    tilt = np.arctan2(axis[2], axis[0])
    turn = -2 * np.array([0, np.pi / 2 - tilt, 0])
    if not holds(sim, sim.peg):
        point = peg + 0.1 * axis
        return grasp(sim, point, 0.06, turn=turn * (np.linalg.norm(point - at) < 0.012))
    arm, low = 0.22, peg[2] - 0.12 * np.sin(tilt) - 0.025 * np.cos(tilt)
    # Ahead of the wrist, so that the peg also pivots between the fingers: by the wrist alone it would take too long.
    rise = 0.002 - low + arm * (np.sin(min(tilt + 0.45, np.pi / 2)) - np.sin(tilt))
    return act(sim, np.array([0.3, peg[1], at[2] + rise]), CLOSED, turn)


def pull_cube_tool(sim) -> np.ndarray:
    """Over the cube with the hook, down behind it, and back."""
    tool, cube, turned = place(sim.l_shape_tool), place(sim.cube), frame(sim.l_shape_tool)
    if not holds(sim, sim.l_shape_tool):
        return grasp(sim, tool + np.clip(0.27 - cube[0], 0.03, 0.1) * _AHEAD, 0.06)
    hook = tool + turned @ [0.15, 0.06, -0.025]  # its lower edge that touches the cube
    move = cube + [0.035, 0, 0] - hook
    behind = hook[0] > cube[0] + 0.015 and abs(move[1]) < 0.03
    if behind and hook[2] < 0.025:
        near = np.linalg.norm((cube - sim.agent.robot.pose.p[0].numpy())[:2]) < 0.55
        move = np.array([0 if near else -0.06, 0, 0.008 - hook[2]])
    elif np.linalg.norm(move[:2]) < 0.015 or behind:
        move[2] = 0.008 - hook[2]
    else:
        move[2] = 0.065 - hook[2]
        if hook[2] < 0.045:
            move[:2] = 0
    return act(sim, hand(sim) + move, CLOSED)


# ---- the SO100, which takes angles ----

_JAW, _JOINT = 0.2, 0.05  # what an input of 1 means for the jaw and for the other joints, radians
_AJAR = -0.45  # the jaw is open just enough for the cube


def pick_cube_so(sim) -> np.ndarray:
    """The fixed jaw goes beside the cube, the other one closes, and then presses as little as will hold.

    More would squeeze the cube out, and keep the arm from standing still.
    """
    robot, tip, cube = sim.agent.robot, frame(sim.agent.finger1_tip), place(sim.cube)
    between = place(sim.agent.finger1_tip) - 0.018 * tip[:, 0] - 0.004 * tip[:, 1]  # the other jaw is at its -x
    if holds(sim, sim.cube):
        left = place(sim.goal_site) - cube
        arm = joints(sim, between, between + left, 0.005) if np.linalg.norm(left) > 0.008 else np.zeros(5)
        pressure = robot.get_qvel()[0, 5].item()  # the engine pushes back a jaw that presses
        return np.append(arm, np.clip(0.1 * (pressure - 0.15), -0.05, 0.03))
    jaw = -0.7 if np.linalg.norm(cube - between) < 0.022 else (_AJAR - robot.get_qpos()[0, 5].item()) / _JAW
    return np.append(joints(sim, between, cone(between, cube, 0.03), 0.05), jaw)


def joints(sim, point, target, upright: float) -> np.ndarray:
    """Inputs (5,) that take a point of the hand to a target while its fingers point down; the wrist doesn't roll.

    Least squares within the joints' limits and speed.    upright  how many metres a radian of tilt counts as
    """
    robot = sim.agent.robot
    arm = [joint.get_global_pose().to_transformation_matrix()[0].numpy() for joint in robot.active_joints[:4]]
    axes = np.array([pose[:3, 0] for pose in arm])  # SAPIEN's joints turn about x
    moves = np.cross(axes, point - np.array([pose[:3, 3] for pose in arm]))
    tilt = np.cross(-frame(sim.agent.finger1_tip)[:, 1], -_UP)
    jacobian = np.concatenate([moves.T, upright * axes.T, 0.005 * np.eye(4)])
    wish = np.concatenate([target - point, upright * tilt, np.zeros(4)])
    low, high = (robot.get_qlimits()[0, :4] - robot.get_qpos()[0, :4, None]).numpy().T
    bounds = np.clip(low, -_JOINT / 2, -1e-4), np.clip(high, 1e-4, _JOINT / 2)
    return np.append(lsq_linear(jacobian, wish, bounds).x * 2 / _JOINT, 0)
