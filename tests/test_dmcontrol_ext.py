"""DMControl-ext: bodies, rewards and starts against the benchmark's tables and dm_control's classes; saved states.

What a test expects is computed here: bodies from the kinematic tables, attribute by attribute; rewards from Jacobians
and body frames of the raw simulation; starts and motion by dm_control's own environment around these bodies.

Run: pytest tests/test_dmcontrol_ext.py            (15 seconds of one core)
     pytest tests/test_dmcontrol_ext.py -m slow    (saved states of all 49 tasks of both suites)
"""

import functools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from ctypes.util import find_library

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import envs

EXT = [row.name for row in envs.TASKS.values() if row.domain == "dmcontrol-ext"]

made = functools.cache(lambda name, number=0: envs.make(name, seed=100 + number))  # making one takes half a second


def random_actions(name, steps, seed=0, bound=1.0):
    return np.random.default_rng(seed).uniform(-bound, bound, (steps, envs.TASKS[name].action_dim)).astype(np.float32)


def model_data(env):
    return env._env.physics.model.ptr, env._env.physics.data.ptr


# ---- bodies ----

# Body, parent, pos, euler, its joint's (range, stiffness, damping), its capsules' (name, size, pos, euler).
GIRAFFE = [
    ("neck", "torso", ".44 0 0", "0 0 0", ("-5 20", 240, 6), [("neck", ".052 .39", "0 0 .39", "0 6 0")]),
    ("head", "neck", ".15 0 .66", "0 0 0", None, [("head", ".046 .088", "0 0 0", "0 -236 0")]),
    ("bthigh", "torso", "-.34 0 0", "0 0 0", ("-30 60", 240, 6), [("bthigh", ".046 .145", ".1 0 -.13", "0 -200 0")]),
    ("bshin", "bthigh", ".16 0 -.25", "0 0 0", ("-50 50", 180, 4.5),
     [("bshin", ".046 .15", "-.14 0 -.07", "0 -116 0")]),
    ("bfoot", "bshin", "-.28 0 -.14", "0 0 0", ("-230 50", 120, 3),
     [("bfoot", ".046 .069", ".03 0 -.072", "0 -15 0")]),
    ("fthigh", "torso", ".34 0 0", "0 0 0", ("-57 .40", 180, 4.5), [("fthigh", ".046 .133", "-.07 0 -.12", "0 30 0")]),
    ("fshin", "fthigh", "-.14 0 -.24", "0 0 0", ("-70 50", 120, 3), [("fshin", ".046 .106", ".065 0 -.09", "0 -34 0")]),
    ("ffoot", "fshin", ".13 0 -.18", "0 0 0", ("-28 28", 60, 1.5), [("ffoot", ".046 .056", ".045 0 -.056", "0 -34 0")]),
]  # fmt: skip
GIRAFFE_MOTORS = {"bthigh": 120, "bshin": 90, "bfoot": 60, "fthigh": 90, "fshin": 60, "ffoot": 30, "neck": 30}
TORSO_GEOMS = {
    "giraffe": [dict(name="torso", type="capsule", size=".092", fromto="-.34 0 0 .34 0 0")],
    "ball": [
        dict(name="torso", type="sphere", size=".22", pos="0 0 0"),
        dict(name="eye_left", type="sphere", size=".037", pos="-0.06 -0.16 0.12"),
        dict(name="eye_right", type="sphere", size=".037", pos="0.06 -0.16 0.12"),
    ],
}


def planar_body(total, friction, height, torso, rows, motors):
    """A model that moves in a plane, every attribute written out; without materials, which take long to draw."""
    root = ET.Element("mujoco")
    ET.SubElement(root, "compiler", settotalmass=str(total))
    ET.SubElement(root, "option", timestep="0.01", integrator="Euler")
    world = ET.SubElement(root, "worldbody")
    ET.SubElement(world, "geom", name="ground", type="plane", pos="98 0 0", size="200 .8 .5",
                  conaffinity="1", friction="1 .005 .0001")  # fmt: skip
    bodies = {"torso": ET.SubElement(world, "body", name="torso", pos=f"0 0 {height}")}
    ET.SubElement(bodies["torso"], "camera", name="side", mode="trackcom", pos="0 -3 0", quat="0.707 0.707 0 0")
    for name, kind, axis in (("rootx", "slide", "1 0 0"), ("rootz", "slide", "0 0 1"), ("rooty", "hinge", "0 1 0")):
        ET.SubElement(bodies["torso"], "joint", name=name, type=kind, axis=axis, limited="false", armature="0",
                      damping="0", stiffness="0")  # fmt: skip
    contact = dict(contype="1", conaffinity="1", condim="3", friction=friction)
    for geom in torso:
        ET.SubElement(bodies["torso"], "geom", geom | contact)
    for name, parent, pos, euler, joint, geoms in rows:
        bodies[name] = ET.SubElement(bodies[parent], "body", name=name, pos=pos, euler=euler)
        if joint:
            ET.SubElement(bodies[name], "joint", name=name, type="hinge", axis="0 1 0", limited="true", range=joint[0],
                          stiffness=str(joint[1]), damping=str(joint[2]), armature="0.1")  # fmt: skip
        for geom in geoms:
            if not isinstance(geom, dict):
                geom = dict(name=geom[0], type="capsule", size=geom[1], pos=geom[2], euler=geom[3])
            ET.SubElement(bodies[name], "geom", geom | contact)
    ET.SubElement(ET.SubElement(root, "sensor"), "subtreelinvel", name="torso_subtreelinvel", body="torso")
    actuators = ET.SubElement(root, "actuator")
    for name, gear in motors.items():
        ET.SubElement(actuators, "motor", name=name, joint=name, gear=str(gear), ctrllimited="true", ctrlrange="-1 1")
    return ET.tostring(root, encoding="unicode")


def ball_body(limb, angles):
    clubs = [
        dict(type="capsule", size="0.052", fromto="0 0 0 0 0 0.566"),
        dict(type="sphere", size="0.078", pos="0 0 0.566"),
    ]
    rows = [
        (f"{limb}_{i}", "torso", "0 0 0", f"0 {angle} 0", ("-35 35", 220, 5), clubs) for i, angle in enumerate(angles)
    ]
    return planar_body(2, ".15 .1 .1", 0.9, TORSO_GEOMS["ball"], rows, {row[0]: 100 for row in rows})


def three_link_reacher():
    """Contacts are off, so walls and ground don't matter; the target is only looked at."""
    link = '<geom name="{0}" type="capsule" fromto="0 0 0 {1} 0 0" size=".01"/>{2}'
    joint = '<joint name="{0}" type="hinge" axis="0 0 1" damping=".01" {1}/>'
    limited = 'limited="true" range="-80 80"'
    motor = '<motor name="{0}" joint="{0}" gear=".05" ctrllimited="true" ctrlrange="-1 1"/>'
    return f"""<mujoco><option timestep=".02"><flag contact="disable"/></option><worldbody>
      <camera name="fixed" pos="0 0 .75"/>
      <body name="arm0" pos="0 0 .01">{link.format("arm0", ".09", joint.format("shoulder0", ""))}
        <body name="arm1" pos=".09 0 0">{link.format("arm1", ".09", joint.format("shoulder1", limited))}
          <body name="hand" pos=".09 0 0">{link.format("hand", ".1", joint.format("wrist", limited))}
            <body name="finger" pos=".09 0 0"><geom name="finger" type="sphere" size=".01"/></body>
          </body></body></body>
      <geom name="target" type="sphere" pos="0 0 .01" size=".05"/></worldbody>
      <actuator>{"".join(motor.format(name) for name in ("shoulder0", "shoulder1", "wrist"))}</actuator></mujoco>"""


def packaged(domain, *replacements):
    """The package's XML with these texts replaced, each of which occurs once; materials dropped."""
    from dm_control import suite

    xml = suite.common.read_model(f"{domain}.xml").decode()
    for old, new in replacements:
        assert xml.count(old) == 1
        xml = xml.replace(old, new)
    return re.sub(r'<include[^>]*>|material="\w*"', "", xml)


def two_poles():
    pole = '<geom name="pole_1"/>'
    second = '<body name="pole_2" pos="0 0 1" childclass="pole"><joint name="hinge_2"/><geom name="pole_2"/></body>'
    return packaged("cartpole", (pole, pole + second), ('pos="0 0 -.05"', 'pos="0 0 -1.05"'))


INCLINE = ('pos="248 0 0" size="250 .8 .2" material="grid" zaxis="0 0 1"',
           'pos="0 0 0" size="500 .8 .2" zaxis="-0.139173 0 0.996195"')  # fmt: skip
LONG = ('fromto="0 0 0 0 0 1" size="0.045" material="self" mass=".1"', 'fromto="0 0 0 0 0 1.5" size="0.045" mass=".2"')
# One task of each body: its MJCF, dm_control's module, task class and arguments, seconds per control step (None: one
# simulator step); total mass, nq = nv, nu, seconds per simulator step.
BODIES = {
    "walker-walk-backward": (lambda: packaged("walker"), "walker", "PlanarWalker", {"move_speed": 1}, 0.025,
                             28.540322, 9, 6, 0.0025),
    "cheetah-jump": (lambda: packaged("cheetah"), "cheetah", "Cheetah", {}, None, 14, 9, 6, 0.01),
    "hopper-hop-backward": (lambda: packaged("hopper"), "hopper", "Hopper", {"hopping": True}, 0.02,
                            12.439154, 7, 4, 0.005),
    "reacher-three-hard": (three_link_reacher, "reacher", "Reacher", {"target_size": 0.015}, None,
                           0.104720, 3, 3, 0.02),
    "cup-spin": (lambda: packaged("ball_in_cup"), "ball_in_cup", "BallInCup", {}, 0.02, 0.130603, 4, 2, 0.002),
    "pendulum-spin": (lambda: packaged("pendulum"), "pendulum", "SwingUp", {}, None, 1, 1, 1, 0.02),
    "jumper-jump": (lambda: ball_body("leg", [144, 216]), "cheetah", "Cheetah", {}, None, 2, 5, 2, 0.01),
    "spinner-spin": (lambda: ball_body("limb", [0, 72, 144, 216, 288]), "cheetah", "Cheetah", {}, None, 2, 8, 5, 0.01),
    "spinner-jump-four": (lambda: ball_body("limb", [0, 72, 144, 216]), "cheetah", "Cheetah", {}, None, 2, 7, 4, 0.01),
    "giraffe-run": (lambda: planar_body(16, ".45 .1 .1", 0.7, TORSO_GEOMS["giraffe"], GIRAFFE, GIRAFFE_MOTORS),
                    "cheetah", "Cheetah", {}, None, 16, 10, 7, 0.01),
    "walker-run-incline": (lambda: packaged("walker", INCLINE), "walker", "PlanarWalker", {"move_speed": 8}, 0.025,
                           28.540322, 9, 6, 0.0025),
    "cartpole-balance-long-sparse": (lambda: packaged("cartpole", LONG), "cartpole", "Balance",
                                     {"swing_up": False, "sparse": True}, None, 1.2, 2, 1, 0.01),
    "cartpole-balance-two-poles-sparse": (two_poles, "cartpole", "Balance",
                                          {"swing_up": False, "sparse": True}, None, 1.2, 3, 1, 0.01),
}  # fmt: skip


@functools.cache
def reference(name):
    """dm_control's environment around the table's body."""
    from dm_control import suite
    from dm_control.rl import control

    xml, module, task, arguments, control_timestep, *_ = BODIES[name]
    domain = getattr(suite, module)
    physics, task = domain.Physics.from_xml_string(xml()), getattr(domain, task)(**arguments)
    return control.Environment(physics, task, control_timestep=control_timestep)


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_those_of_the_tables(name):
    *_, mass, nq, nu, timestep = BODIES[name]
    model, want = made(name)._env.physics.model.ptr, reference(name).physics.model.ptr
    assert (model.nq, model.nv, model.nu, model.opt.timestep) == (nq, nq, nu, timestep)
    assert model.body_mass.sum() == pytest.approx(mass, abs=5e-7)
    for kind in (mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_JOINT, mujoco.mjtObj.mjOBJ_ACTUATOR):
        for i in range(want.nbody if kind == mujoco.mjtObj.mjOBJ_BODY else nq if "JOINT" in kind.name else nu):
            assert mujoco.mj_id2name(model, kind, i) == mujoco.mj_id2name(want, kind, i)
    assert (model.opt.integrator, model.opt.disableflags) == (want.opt.integrator, want.opt.disableflags)
    # Scenery of the reacher, and how far planes and cameras reach, are only for the eye.
    fields = (
        "body_parentid body_pos body_quat body_mass body_inertia body_ipos body_iquat jnt_type jnt_axis jnt_limited "
        "jnt_range jnt_stiffness jnt_pos dof_armature dof_damping actuator_gear actuator_ctrlrange actuator_trnid"
    )
    if not name.startswith("reacher"):
        fields += " geom_type geom_friction geom_pos geom_quat geom_contype geom_conaffinity geom_condim geom_bodyid"
    for field in fields.split():
        np.testing.assert_array_equal(getattr(model, field), getattr(want, field), err_msg=field)
    solid = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    if not name.startswith("reacher"):
        np.testing.assert_array_equal(model.geom_size[solid], want.geom_size[solid])


@pytest.mark.parametrize("name", BODIES)
def test_starts_and_motion_are_those_of_dm_control(name):
    env, other, actions = made(name), reference(name), random_actions(name, 40, bound=1.2)
    if name == "cup-spin":  # its start is another one, see below
        env.reset(seed=4)
        other.reset()
        with other.physics.reset_context():
            other.physics.data.qpos[:] = env._env.physics.data.qpos
        want = [env.reset(seed=4)[0]]
    else:
        other.task._random = np.random.RandomState(seeding.np_random(4)[0].bit_generator)
        want = [np.concatenate([np.ravel(entry) for entry in other.reset().observation.values()])]
    got = [env.reset(seed=4)[0]]
    for action in actions:
        got.append(env.step(action)[0])
        for _ in range(2):
            step = other.step(action.astype(np.float64))
        want.append(np.concatenate([np.ravel(entry) for entry in step.observation.values()]))
    np.testing.assert_array_equal(np.stack(got), np.stack(want).astype(np.float32))
    assert np.ptp(np.stack(got), axis=0).max() > 0.1


def test_masses_of_single_bodies():
    """Recorded from the published models."""
    giraffe = [8.259815, 2.792186, 0.610568, 0.903846, 0.929572, 0.512808, 0.842103, 0.703182, 0.445920]
    for name, masses in (
        ("giraffe-run", giraffe),
        ("spinner-spin", [1.098867] + [0.180227] * 5),
        ("spinner-jump-four", [1.207696] + [0.198076] * 4),
        ("jumper-jump", [1.505998] + [0.247001] * 2),
    ):
        np.testing.assert_allclose(made(name)._env.physics.model.body_mass[1:], masses, atol=6e-7)


def test_same_body_for_all_tasks_of_a_word():
    """BODIES holds one task of each; the others must not have fallen to another body."""
    of = {"incline": "walker-run-incline", "four": "spinner-jump-four", "long": "cartpole-balance-long-sparse",
          "two": "cartpole-balance-two-poles-sparse"}  # fmt: skip
    first = {name.partition("-")[0]: name for name in reversed(BODIES) if not set(of) & set(name.split("-"))}
    for name in EXT:
        variant = [of[word] for word in name.split("-") if word in of]
        model, want = made(name)._env.physics.model, reference((variant or [first[name.partition("-")[0]]])[0])
        for field in ("nq", "nu", "nbody"):
            assert getattr(model, field) == getattr(want.physics.model, field), name
        floor = [model.geom(i).quat for i in range(model.ngeom) if model.geom(i).type == mujoco.mjtGeom.mjGEOM_PLANE]
        assert (abs(floor[0][2]) > 0.05 if floor else False) == name.endswith("-incline"), name


def test_clubs_push_each_other_all_the_time():
    for name, pairs in (("spinner-spin", 10), ("spinner-spin-four", 6), ("jumper-jump", 1)):
        env = made(name)
        env.reset(seed=0)
        model, data = model_data(env)
        for action in random_actions(name, 20):
            env.step(action)
            clubs = [contact for contact in data.contact if min(contact.geom) > 0]  # geom 0 is the ground
            assert len({tuple(sorted(model.geom_bodyid[contact.geom])) for contact in clubs}) == pairs


def test_the_slope_rises_forward():
    model, data = model_data(made("walker-walk-incline"))
    x, _, z = data.geom("floor").xmat.reshape(3, 3)[:, 2]
    assert np.degrees(np.arctan2(-x, z)) == pytest.approx(7.95, abs=0.005)
    assert (model.geom("floor").pos == 0).all() and (model.body("torso").pos == [0, 0, 1.3]).all()


def test_last_action_of_the_giraffe_moves_its_neck():
    env = made("giraffe-run")
    env.reset(seed=0)
    env.step(np.array([0, 0, 0, 0, 0, 0, 0.5], np.float32))
    torques = env._env.physics.data.qfrc_actuator  # rootx, rootz, rooty, neck, legs
    np.testing.assert_allclose(torques, [0, 0, 0, 15, 0, 0, 0, 0, 0, 0], atol=1e-12)


# ---- rewards ----


def bell(x, low, high, margin):
    return 0.1 ** ((max(low - x, x - high, 0) / margin) ** 2)


def line(x, low, high, margin, at_margin):
    return max(0, 1 - (1 - at_margin) * max(low - x, x - high, 0) / margin)


class Measured:
    """Quantities of a state by other ways than dm_control's: Jacobians, frames, joints."""

    def __init__(self, env):
        self.model, self.data = model_data(env)

    def z(self, *bodies):
        return sum(self.data.body(body).xpos[2] for body in bodies) / len(bodies)

    def zz(self, body="torso"):
        return self.data.body(body).xmat[8]

    def joint(self, name):
        return self.data.joint(name).qpos[0]

    @property
    def vx(self):
        jacobian = np.zeros((3, self.model.nv))
        mujoco.mj_jacSubtreeCom(self.model, self.data, jacobian, self.model.body("torso").id)
        return jacobian[0] @ self.data.qvel

    @property
    def spin(self):
        """Angular momentum about the centre of mass, y: sum over bodies of orbital and own part."""
        total, centre = np.zeros(3), self.data.body("torso").subtree_com
        for i in range(1, self.model.nbody):
            linear, angular = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
            mujoco.mj_jacBodyCom(self.model, self.data, linear, angular, i)
            frame = self.data.ximat[i].reshape(3, 3)
            omega, lever = angular @ self.data.qvel, self.data.xipos[i] - centre
            total += self.model.body_mass[i] * np.cross(lever, linear @ self.data.qvel)
            total += frame @ (self.model.body_inertia[i] * (frame.T @ omega))
        return total[1]

    @property
    def hopper_height(self):
        return self.data.body("torso").xipos[2] - self.data.body("foot").xipos[2]

    @property
    def ball(self):
        """From the cup's target to the ball, x and z."""
        return (self.data.body("ball").xpos - self.data.site("target").xpos)[[0, 2]]

    @property
    def ball_speed(self):
        return np.hypot(self.data.joint("ball_x").qvel[0], self.data.joint("ball_z").qvel[0])

    @property
    def finger(self):
        return np.linalg.norm((self.data.geom("finger").xpos - self.data.geom("target").xpos)[:2])


inf = np.inf


def stand(m):
    return (3 * bell(m.z("torso"), 1.2, inf, 0.6) + (1 + m.zz()) / 2) / 4


def one_foot(m, foot):
    up = (3 * bell(m.z(foot), 1.2, inf, 0.6) + 2 * bell(m.z("torso"), 1.2, inf, 0.6)) / 5
    return up * (5 * line(m.vx, 6, inf, 6, 0) + 1) / 6


def jump(m):
    return sum(
        (5 * bell((m.z("torso") + m.z(foot)) / 2, 1.2, inf, 0.6) + line(m.vx, -0.5, 0.5, 0.5, 0)) / 6
        for foot in ("bfoot", "ffoot")
    ) / 2  # fmt: skip


def cup(m):
    inside = float((np.abs(m.ball) < 0.05 - 0.025).all())
    return (1 - inside) * (min(1, 2 * np.linalg.norm(m.ball)) + 2 * min(1, m.ball_speed / 6)) / 3


def roll(m, sign):
    return (2 * line(sign * m.spin, 8, inf, 8, 0) + 3 * line(sign * m.vx, 8, inf, 8, 0)) / 5


def balanced(m, poles):
    return float(abs(m.joint("slider")) <= 0.25 and all(m.zz(pole) >= 0.995 for pole in poles))


def low_torso(m):
    return bell(m.z("torso"), -inf, 0.08, 0.04)


def low_thighs(m):
    return bell(m.z("left_thigh", "right_thigh"), -inf, 0.08, 0.04)


def high_feet(m):
    return bell(m.z("left_foot", "right_foot"), 1.1, inf, 0.55)


FORMULAS = {
    "walker-walk-backward": lambda m: stand(m) * (5 * line(m.vx, -inf, -1, 0.5, 0.5) + 1) / 6,
    "walker-run-backward": lambda m: stand(m) * (5 * line(m.vx, -inf, -8, 4, 0.5) + 1) / 6,
    "cheetah-run-backward": lambda m: line(m.vx, -inf, -8, 8, 0),
    "cheetah-run-front": lambda m: one_foot(m, "bfoot"),
    "cheetah-run-back": lambda m: one_foot(m, "ffoot"),
    "cheetah-jump": jump,
    "hopper-hop-backward": lambda m: (0.6 <= m.hopper_height <= 2) * line(m.vx, -inf, -1, 0.5, 0.5),
    "reacher-three-easy": lambda m: float(m.finger <= 0.05 + 0.01),
    "reacher-three-hard": lambda m: float(m.finger <= 0.015 + 0.01),
    "cup-spin": cup,
    "pendulum-spin": lambda m: min(1, abs(m.data.joint("hinge").qvel[0]) / 9),
    "jumper-jump": lambda m: bell(m.z("torso"), 1.5, inf, 0.75),
    "spinner-spin": lambda m: roll(m, 1),
    "spinner-spin-backward": lambda m: roll(m, -1),
    "spinner-jump": lambda m: bell(m.z("torso"), 1.5, inf, 0.75),
    "giraffe-run": lambda m: bell(m.z("head"), 0.5, inf, 0.25) * (3 * line(m.vx, 10, inf, 10, 0) + 1) / 4,
    "cartpole-balance-two-poles-sparse": lambda m: balanced(m, ["pole_1", "pole_2"]),
    "cartpole-balance-long-sparse": lambda m: balanced(m, ["pole_1"]),
    "walker-stand-incline": stand,
    "walker-walk-incline": lambda m: stand(m) * (5 * line(m.vx, 1, inf, 0.5, 0.5) + 1) / 6,
    "walker-run-incline": lambda m: stand(m) * (5 * line(m.vx, 8, inf, 4, 0.5) + 1) / 6,
    "walker-arabesque": lambda m: (
        3 * bell(m.z("torso"), 1, inf, 0.5) + bell(m.z("left_foot"), -inf, 0.08, 0.5)
        + bell(m.z("right_foot"), 1, inf, 0.5) + (1 - m.zz()) / 2
    ) / 6,
    "walker-lie-down": lambda m: (3 * low_torso(m) + low_thighs(m) + (1 - m.zz()) / 2) / 5,
    "walker-legs-up": lambda m: (3 * low_torso(m) + 2 * high_feet(m) + low_thighs(m) + (1 - m.zz()) / 2) / 7,
    "walker-headstand": lambda m: (3 * high_feet(m) + 2 * bell(m.z("left_thigh", "right_thigh"), 1, inf, 0.5)) / 5,
    "spinner-spin-four": lambda m: roll(m, 1),
    "spinner-spin-backward-four": lambda m: roll(m, -1),
    "spinner-jump-four": lambda m: bell(m.z("torso"), 1.5, inf, 0.75),
}  # fmt: skip


def scatter(env, rng):
    """Put the simulation somewhere: high or low, upright, lying or upside down, slow to very fast."""
    model, data = model_data(env)
    root = {"rootx": rng.uniform(-2, 2), "rootz": rng.choice([rng.uniform(-1.4, 2), rng.uniform(-1.3, -1.15)]),
            "rooty": rng.choice([rng.uniform(-np.pi, np.pi), rng.choice([-2, -1, 0, 0, 1]) * np.pi / 2])}  # fmt: skip
    close, pace = rng.uniform() < 0.5, rng.choice([0.2, 0.6, 2, 10])
    with env._env.physics.reset_context():
        for i in range(model.njnt):
            joint = model.joint(i)
            if joint.name in root:
                data.qpos[i] = root[joint.name]
            elif joint.limited[0]:
                data.qpos[i] = rng.uniform(*joint.range) * (0.2 if close else 1)
            elif joint.name.startswith("hinge"):  # of a pole: half of the time about upright
                data.qpos[i] = rng.uniform(-0.1, 0.1) if close else rng.uniform(-np.pi, np.pi)
            else:
                data.qpos[i] = rng.uniform(-1, 1)
            data.qvel[i] = rng.normal() * pace
        if model.joint(0).name == "slider" and close:
            data.qpos[0] = rng.uniform(-0.35, 0.35)
        if model.joint(0).name == "cup_x" and close:  # ball at the cup: its frame is at 0.2, the target's at 0.55
            data.qpos[2:] = data.qpos[:2] + [0, 0.35] + rng.uniform(-0.04, 0.04, 2)
        if model.joint(0).name == "shoulder0" and close:
            mujoco.mj_kinematics(model, data)
            model.geom("target").pos[:2] = data.geom("finger").xpos[:2] + rng.uniform(-0.06, 0.06, 2)


def test_every_task_has_its_formula():
    assert list(FORMULAS) == EXT and len(EXT) == 28


@pytest.mark.parametrize("name", EXT)
def test_reward_is_the_formula(name):
    env, rng, rewards = made(name), np.random.default_rng(1), []
    measured, formula = Measured(env), FORMULAS[name]
    env.reset(seed=0)
    for _ in range(200):
        scatter(env, rng)
        rewards.append(formula(measured))
        assert env._env.task.get_reward(env._env.physics) == pytest.approx(rewards[-1], abs=1e-11), measured.data.qpos
    assert 0 <= min(rewards) < 0.3 and 0.6 < max(rewards) <= 1
    assert len(set(rewards)) > (1 if "sparse" in name or "reacher" in name else 9)
    # A step pays for both of its control steps, each after it was taken; score is their sum so far.
    total = 0.0
    env.reset(seed=0)
    for action in random_actions(name, 12):
        state, want = env.get_state(), 0.0
        for _ in range(2):
            env._env.step(action.astype(np.float64))
            want += formula(measured)
        total += want
        env.set_state(state)
        _, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(want, abs=1e-11) and type(reward) is float
        assert info["score"] == pytest.approx(total / 1000, abs=1e-12) and info["success"] == 0.0


def test_best_and_worst():
    """Some values by hand, each where its formula is easy."""
    env = made("pendulum-spin")
    env.reset(seed=0)
    reward = env._env.task.get_reward
    for omega, want in ((0, 0), (3, 1 / 3), (-4.5, 0.5), (-9, 1), (20, 1)):
        env._env.physics.data.qvel[0] = omega
        assert reward(env._env.physics) == pytest.approx(want, abs=1e-12)
    env = made("jumper-jump")
    env.reset(seed=0)
    for lift, want in ((0.6, 1), (-0.15, 0.1), (5, 1)):  # the torso starts at 0.9
        with env._env.physics.reset_context():
            env._env.physics.data.qpos[1] = lift
        assert env._env.task.get_reward(env._env.physics) == pytest.approx(want, abs=1e-12)


# ---- the start of cup-spin ----


def test_cup_spin_starts_mostly_inside_the_cup():
    """Its draws in order: u, then x and z until the ball touches nothing and is inside or may be outside."""
    env = made("cup-spin")
    model, inside = reference("cup-spin").physics.model.ptr, []
    data = mujoco.MjData(model)
    for seed in range(120):
        obs, _ = env.reset(seed=seed)
        random = np.random.RandomState(seeding.np_random(seed)[0].bit_generator)
        anywhere, done = random.uniform(0, 1) < 0.1, False
        while not done:
            data.qpos[2:] = random.uniform(-0.2, 0.2), random.uniform(0.2, 0.5)
            mujoco.mj_forward(model, data)
            in_cup = (np.abs(data.body("ball").xpos - data.site("target").xpos)[[0, 2]] < 0.025).all()
            done = data.ncon == 0 and (in_cup or anywhere)
        np.testing.assert_array_equal(obs, np.concatenate([data.qpos, data.qvel]).astype(np.float32))
        inside.append(in_cup)
    assert 0.8 < np.mean(inside) < 0.99


# ---- states ----

# Bodies of both suites, RK4 and Euler; targets that a reset moves, sizes and damping that only the first reset sets.
STATES = ["finger-spin", "finger-turn-hard", "fish-swim", "quadruped-run", "hopper-hop", "acrobot-swingup",
          "cup-spin", "reacher-three-hard", "spinner-spin", "giraffe-run", "cartpole-balance-two-poles-sparse",
          "walker-walk-incline"]  # fmt: skip


def go_on(env, actions):
    """The rest of an episode, the next one's start, and some steps more: every number that comes out."""
    rows = []
    for action in actions:
        obs, reward, _, truncated, info = env.step(action)
        rows.append([*obs, reward, truncated, info["score"]])
    rows.append([*env.reset()[0], 0, 0, 0])
    for action in actions[:3]:
        obs, reward, _, truncated, info = env.step(action)
        rows.append([*obs, reward, truncated, info["score"]])
    return np.array(rows)


def check_restore(name, past):
    """A state after `past` steps goes on as the episode did: at once, later, and in environments with another past."""
    actions, env = random_actions(name, past + 15, seed=3), made(name)
    env.reset(seed=1)
    for action in actions[:past]:
        env.step(action)
    state = env.get_state()
    for key, value in state.items():
        assert isinstance(value, dict if key == "rng" else (int, float, np.ndarray)), key
    before = {key: np.array(value) for key, value in state.items() if key != "rng"}
    want = go_on(env, actions[past:])
    assert want[14, -2] == (past + 15 == 500) and np.isfinite(want).all() and len(np.unique(want[:, 0])) > 10
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value, err_msg=f"{name} {key}")

    fresh, busy = envs.make(name, seed=2), made(name, 1)  # never reset; in the middle of something
    busy.reset(seed=9)
    for action in random_actions(name, 25, seed=4):
        busy.step(action)
    for other in (env, fresh, busy):
        for _ in range(2):
            other.set_state(state)
            np.testing.assert_array_equal(go_on(other, actions[past:]), want, err_msg=name)
    over, state = envs.make(name, seed=2), fresh.get_state()
    over.set_state(state)
    np.testing.assert_array_equal(over.step(actions[0])[0], fresh.step(actions[0])[0])


@pytest.mark.parametrize("name", STATES)
def test_state_is_restored_exactly(name):
    for past in (0, 1, 40):
        check_restore(name, past)


def test_state_is_restored_exactly_at_the_end_of_an_episode():
    check_restore("spinner-spin", 485)
    env, other = made("spinner-spin"), made("spinner-spin", 1)
    env.reset(seed=0)
    for action in random_actions("spinner-spin", 500):
        env.step(action)
    other.reset(seed=1)
    other.set_state(env.get_state())
    with pytest.raises(gym.error.ResetNeeded):
        other.step(np.zeros(5, np.float32))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", envs.select("dmcontrol") + EXT)
def test_state_is_restored_exactly_for_all_tasks(name):
    for past in (0, 1, 200, 485):
        check_restore(name, past)


# ---- the contract ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # check_env: infinite bounds of obs
@pytest.mark.parametrize("name", ["cup-spin", "giraffe-run", "cartpole-balance-two-poles-sparse"])
def test_contract(name):
    env, row = made(name, 1), envs.TASKS[name]
    check_env(env, skip_render_check=True)
    assert env.observation_space.shape == (row.obs_dim,)
    assert env.action_space == gym.spaces.Box(-1, 1, (row.action_dim,), np.float32)
    obs, info = env.reset(seed=3)
    assert info == {"score": 0.0, "success": 0.0}
    for t, action in enumerate(random_actions(name, 500), start=1):
        obs, reward, terminated, truncated, info = env.step(action)
        assert obs.dtype == np.float32 and obs.shape == (row.obs_dim,) and np.isfinite(obs).all()
        assert 0 <= reward <= 2 and 0 <= info["score"] <= 1 and info["success"] == 0.0
        assert terminated is False and truncated is (t == 500)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    env.reset()
    with pytest.raises(ValueError, match="action has shape"):
        env.step(np.zeros(row.action_dim + 1, np.float32))


def test_seed_decides_everything_in_another_process_too():
    code = """
import hashlib, sys, numpy as np, envs
digest = hashlib.sha256()
for name in ("cup-spin", "spinner-spin"):
    env = envs.make(name, seed=5)
    rng = np.random.default_rng(0)
    for episode in range(2):
        digest.update(env.reset()[0].tobytes())
        for _ in range(20):
            step = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            digest.update(step[0].tobytes() + np.float64(step[1]).tobytes())
print("OpenGL" in sys.modules, digest.hexdigest())
"""
    import hashlib

    root = envs.__path__[0] + "/.."
    there = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    digest, before = hashlib.sha256(), np.random.get_state()[1].copy()
    for name in ("cup-spin", "spinner-spin"):
        env, rng = made(name), np.random.default_rng(0)
        for episode in range(2):
            digest.update((env.reset(seed=5) if episode == 0 else env.reset())[0].tobytes())
            for _ in range(20):
                step = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
                digest.update(step[0].tobytes() + np.float64(step[1]).tobytes())
    assert there.split() == ["False", digest.hexdigest()]
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_module_is_light():
    code = "import envs.dmcontrol_ext, sys; print([m for m in ('mujoco', 'dm_control', 'OpenGL') if m in sys.modules])"
    root = envs.__path__[0] + "/.."
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "[]"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ImportError, match="task 'giraffe-run' needs `pip install dm_control`"):
        envs.make("giraffe-run")


# ---- frames ----


def test_frames_are_taken_from_the_published_cameras():
    names = {"walker": "side", "cheetah": "side", "giraffe": "side", "spinner": "side", "jumper": "side"}
    names |= {"reacher": "fixed", "pendulum": "fixed", "cartpole": "fixed", "cup": "cam0", "hopper": "cam0"}
    for name in EXT:
        env = made(name)
        camera = env._env.physics.model.ptr.camera(env._camera_index)
        assert camera.name == names[name.partition("-")[0]], name
    assert (made("cartpole-balance-two-poles-sparse")._env.physics.model.cam_pos[0] == [0, -5, 1]).all()
    assert (made("giraffe-run")._env.physics.model.ptr.camera("side").pos == [0, -3, 0]).all()


@pytest.mark.skipif(
    sys.platform == "linux" and not find_library("EGL") and not find_library("OSMesa"), reason="no off-screen OpenGL"
)
@pytest.mark.parametrize("name", ["giraffe-run", "spinner-spin", "reacher-three-hard"])
def test_frame_shows_the_scene_and_changes_nothing(name):
    env, other, actions = made(name), made(name, 1), random_actions(name, 10)
    env.reset(seed=1)
    first = env.render()
    for action in actions:
        env.step(action)
        frame = env.render()
    assert frame.shape == (224, 224, 3) and frame.dtype == np.uint8 and frame.std() > 10 and (frame != first).any()
    other.reset(seed=1)
    for action in actions:
        other.step(action)
    np.testing.assert_array_equal(env.get_state()["physics"], other.get_state()["physics"])
    other.reset(seed=2)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(other.render(), frame)
    assert (np.abs(frame.astype(int) - np.array([178, 127, 76])).sum(-1) < 90).sum() > 50  # material `self`: the body
    env.close()
    other.close()
