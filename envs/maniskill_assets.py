"""Objects and robots that ManiSkill's pip package lacks: the real ones if they are on disk, else stand-ins of our own.

    anymal_c   published masses, joints and collision shapes; small fixed parts are lumped into their parents
    xarm6      published masses and joints of the arm and its Robotiq gripper; boxes where the real links have meshes
    ycb        simple shapes that fill the published bounding box, 1000 kg/m^3 as in ManiSkill

    mean return           zero actions               random actions
                          stand-in   real            stand-in (60 episodes)   real (20 episodes)
    ms-anymal-reach       65.1       64.5 +- 1.1     43.3 +- 11.5             43.2 +- 10.1
    ms-reach-xarm6        22.7       24.9 +- 6.6     14.0 +- 6.6              12.2 +- 6.1
    objects               never compared with the real ones
A stand-in is good for testing and for learning to use the tasks. Results on it are not results of the benchmark:
`asset` tells them apart, every step of such a task says info["asset"] = "stand-in", and NEWT_REQUIRE_REAL_ASSETS=1
refuses them.

Source: ANYmal C and xArm6 descriptions (kinematics, inertia), the YCB table of ManiSkill 2 (bounding boxes).
Test: pytest tests/test_maniskill.py -k "asset or stand"
"""

import functools
import json
import os
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

# What follows ms-pick- or ms-push- -> ManiSkill's name, half extents in metres (before scaling), scale
YCB = {
    "apple": ("013_apple", (0.0379, 0.0379, 0.0361), 1.0),
    "banana": ("011_banana", (0.0352, 0.0994, 0.0189), 1.0),
    "can": ("005_tomato_soup_can", (0.0346, 0.0346, 0.0513), 1.0),
    "fork": ("030_fork", (0.0992, 0.0134, 0.0081), 1.0),
    "spoon": ("031_spoon", (0.0984, 0.0215, 0.0106), 1.0),
    "knife": ("032_knife", (0.1075, 0.0102, 0.0080), 1.0),
    "hammer": ("048_hammer", (0.0643, 0.1690, 0.0167), 1.0),
    "screwdriver": ("044_flat_screwdriver", (0.1086, 0.0180, 0.0176), 1.0),
    "mug": ("025_mug", (0.0535, 0.0475, 0.0407), 1.0),
    "orange": ("017_orange", (0.0365, 0.0369, 0.0364), 1.0),
    "tennis-ball": ("056_tennis_ball", (0.0339, 0.0340, 0.0333), 1.0),
    "baseball": ("055_baseball", (0.0370, 0.0368, 0.0369), 1.0),
    "sponge": ("026_sponge", (0.0405, 0.0561, 0.0102), 1.0),
    "pear": ("016_pear", (0.0342, 0.0481, 0.0330), 1.0),
    "rubiks-cube": ("077_rubiks_cube", (0.0296, 0.0302, 0.0291), 1.0),
    "cup": ("065-a_cups", (0.0297, 0.0294, 0.0315), 1.0),
    "golf-ball": ("058_golf_ball", (0.0217, 0.0217, 0.0213), 1.0),
    "soccer-ball": ("053_mini_soccer_ball", (0.0644, 0.0639, 0.0622), 0.5),
}


def ycb(name: str) -> str | None:
    """Which object a task is about: a key of YCB."""
    verb, _, thing = name.removeprefix("ms-").partition("-")
    return thing if verb in ("pick", "push") and thing in YCB else None


def _source(name: str) -> tuple[str, str] | None:
    """The download that a task needs, and a file of it that the task reads."""
    if name.endswith("xarm6"):
        return "xarm6", "robots/xarm6/xarm6_robotiq.urdf"
    if name == "ms-anymal-reach":
        return "anymal_c", "robots/anymal_c/urdf/anymal.urdf"
    if ycb(name):
        return "ycb", f"assets/mani_skill2_ycb/models/{YCB[ycb(name)][0]}/collision.ply"
    return None


def asset(name: str) -> str:
    """ "real" or "stand-in": what a task runs with on this machine, as things are now. Imports no simulator."""
    source = _source(name)
    # The package's rule for its folder. It reads the variable once, when it is imported.
    folder = Path(os.environ.get("MS_ASSET_DIR", Path.home() / ".maniskill")) / "data"
    return "real" if source is None or (folder / source[1]).is_file() else "stand-in"


def require(name: str) -> str:
    """asset(name), with a warning for the first stand-in of the process.

    Raises FileNotFoundError, one line, for a stand-in where NEWT_REQUIRE_REAL_ASSETS=1 forbids it.
    """
    kind = asset(name)
    if kind == "stand-in":
        command = f"python -m mani_skill.utils.download_asset {_source(name)[0]}"
        if os.environ.get("NEWT_REQUIRE_REAL_ASSETS") == "1":
            raise FileNotFoundError(f"task {name!r} would run on a stand-in for its real assets; get them: `{command}`")
        _warn()
    return kind


@functools.cache
def _warn() -> None:  # cached: once per process, whatever the filters for warnings say
    warnings.warn(
        "ManiSkill tasks run on stand-ins for assets that are not on disk, and their results are not results of the "
        "benchmark. Get the real ones: `python -m mani_skill.utils.download_asset ID`, ID = ycb, xarm6, anymal_c",
        stacklevel=2,
    )


def write(name: str, folder: Path) -> list[tuple[object, str, object]]:
    """Write the stand-in of a task, and say where the package has to look for it while it builds the scene.

    return  (object, attribute, value): what to set, for as long as the folder is there
    """
    for file, content in _files(name).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    source = _source(name)[0]
    if source == "ycb":
        from mani_skill.envs.tasks.tabletop import pick_single_ycb
        from mani_skill.utils.building.actors import ycb as builder

        return [(pick_single_ycb, "ASSET_DIR", folder), (builder, "ASSET_DIR", folder)]
    from mani_skill.agents.robots import ANYmalC, XArm6Robotiq

    return [({"anymal_c": ANYmalC, "xarm6": XArm6Robotiq}[source], "urdf_path", str(folder / f"{source}.urdf"))]


@functools.cache
def _files(name: str) -> dict[str, bytes]:
    """The files of a task's stand-in, in the layout of ManiSkill's downloads."""
    source = _source(name)[0]
    if source == "anymal_c":
        return {"anymal_c.urdf": _anymal()}
    if source == "xarm6":
        return {"xarm6.urdf": _xarm6(), "xarm6.srdf": _xarm6_pairs()}
    model, half, scale = YCB[ycb(name)]
    shape, folder = stand_in(model, np.array(half)), "assets/mani_skill2_ycb"
    facts = {"bbox": {"min": [-x for x in half], "max": half}, "scales": [scale], "density": 1000}
    return {
        f"{folder}/info_pick_v0.json": json.dumps({model: facts}).encode(),
        # ManiSkill takes this one apart again and makes every connected piece convex.
        f"{folder}/models/{model}/collision.ply": shape.export(file_type="ply"),
        f"{folder}/models/{model}/textured.obj": shape.export(file_type="obj").encode(),  # for frames
    }


# ---- objects ----


def stand_in(model: str, half: np.ndarray):
    """trimesh.Trimesh of convex pieces; together they fill the box from -half to half."""
    import trimesh

    x, y, z = half

    def box(center, size):
        return trimesh.creation.box(size, trimesh.transformations.translation_matrix(center))

    def ball(center, radii):  # 128 flat faces: with more than 255, SAPIEN crashes
        turn, tilt = np.meshgrid(np.arange(16) * np.pi / 8, np.arange(9) * np.pi / 8)
        points = np.stack([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)], -1).reshape(-1, 3)
        return trimesh.convex.convex_hull(points * radii + center)

    def rod(x0, x1, radius):  # along x
        return trimesh.creation.cylinder(radius, segment=[(x0, 0, 0), (x1, 0, 0)], sections=16)

    def bowl(radius, wall, center_x):  # 14 boxes around a floor
        side = 2 * (radius - wall / 2) * np.tan(np.pi / 14)
        turns = [trimesh.transformations.rotation_matrix(a, (0, 0, 1)) for a in np.arange(14) * 2 * np.pi / 14]
        walls = [box((radius - wall / 2, 0, 0), (wall, side, 2 * z)).apply_transform(turn) for turn in turns]
        floor = trimesh.creation.cylinder(radius - wall, wall, sections=14).apply_translation((0, 0, wall / 2 - z))
        return [piece.apply_translation((center_x, 0, 0)) for piece in (*walls, floor)]

    if model in ("026_sponge", "077_rubiks_cube"):
        pieces = [box((0, 0, 0), 2 * half)]
    elif model == "005_tomato_soup_can":
        pieces = [trimesh.creation.cylinder(x, 2 * z, sections=32)]
    elif model == "011_banana":
        bend = np.linspace(-1, 1, 7)
        radius = z * (1 - 0.6 * bend**2)  # tapered towards both ends
        path = np.stack([(2 * x - z) * (0.5 - bend**2), (y - radius[0]) * bend, 0 * bend], 1)
        # A little smaller in each piece than in the last: pieces with a corner in common would count as one.
        ends = [[ball(path[j], np.full(3, radius[j] * (1 - 0.002 * i))) for j in (i, i + 1)] for i in range(6)]
        pieces = [trimesh.util.concatenate(pair).convex_hull for pair in ends]
    elif model in ("030_fork", "031_spoon"):
        wide, flat = (0.5, 0.003) if model == "030_fork" else (0.4, 0.0035)
        pieces = [
            box((-0.55 * x, 0, flat - z), (0.9 * x, wide * y * 2, 2 * flat)),
            box((0.2 * x, 0, 0), (0.6 * x, wide * y, 2 * flat)),
            box((0.75 * x, 0, z - flat), (0.5 * x, 2 * y, 2 * flat)),
        ]
    elif model == "032_knife":
        pieces = [box((-0.5 * x, 0, 0), (x, 1.6 * y, 2 * z)), box((0.5 * x, 0, 0), (x, 2 * y, 0.0036))]
    elif model == "048_hammer":
        pieces = [box((0, -0.1 * y, 0), (0.03, 1.8 * y, 1.6 * z)), box((0, 0.9 * y, 0), (2 * x, 0.2 * y, 2 * z))]
    elif model == "044_flat_screwdriver":
        pieces = [rod(-x, 0, y), rod(0, x, 0.004)]
    elif model == "025_mug":
        handle = 2 * (x - y)  # how far it stands out at +x; the body is round, so its radius is y
        inner, outer = y - handle / 2, x
        pieces = bowl(y, 0.006, -handle / 2) + [
            box((outer - 0.003, 0, 0), (0.006, 0.012, 1.2 * z)),
            box(((inner + outer) / 2, 0, 0.5 * z), (outer - inner, 0.012, 0.006)),
            box(((inner + outer) / 2, 0, -0.5 * z), (outer - inner, 0.012, 0.006)),
        ]
    elif model == "065-a_cups":
        pieces = bowl(x, 0.003, 0)
    elif model == "016_pear":
        pieces = [ball((0, -0.3 * y, 0), (x, 0.7 * y, z)), ball((0, 0.4 * y, 0), (0.6 * x, 0.6 * y, 0.6 * z))]
    else:
        pieces = [ball((0, 0, 0), half)]
    shape = trimesh.util.concatenate(pieces)
    low, high = shape.bounds
    return shape.apply_translation(-(low + high) / 2).apply_scale(2 * half / (high - low))


# ---- robots ----


def _numbers(*values) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _robot(name: str, links: dict, joints: list) -> bytes:
    """URDF.

    links   name -> (mass, centre of mass, inertia xx xy xz yy yz zz, shapes); None has no mass
            shape: (kind, its attributes, xyz, rpy)
    joints  (name, parent, child, xyz, rpy, axis, (lower, upper), effort, velocity, damping, friction), fixed without
            axis
    """
    robot = ET.Element("robot", name=name)
    for link_name, body in links.items():
        link = ET.SubElement(robot, "link", name=link_name)
        if body is None:
            continue
        mass, com, inertia, shapes = body
        inertial = ET.SubElement(link, "inertial")
        ET.SubElement(inertial, "origin", xyz=_numbers(*com), rpy="0 0 0")
        ET.SubElement(inertial, "mass", value=_numbers(mass))
        names = ("ixx", "ixy", "ixz", "iyy", "iyz", "izz")
        ET.SubElement(inertial, "inertia", {key: _numbers(i) for key, i in zip(names, inertia, strict=True)})
        for kind, size, xyz, rpy in shapes:
            for role in ("visual", "collision"):
                part = ET.SubElement(link, role)
                ET.SubElement(part, "origin", xyz=_numbers(*xyz), rpy=_numbers(*rpy))
                ET.SubElement(ET.SubElement(part, "geometry"), kind, size)
    for joint_name, parent, child, xyz, rpy, axis, limits, effort, velocity, damping, friction in joints:
        joint = ET.SubElement(robot, "joint", name=joint_name, type="revolute" if axis else "fixed")
        ET.SubElement(joint, "parent", link=parent)
        ET.SubElement(joint, "child", link=child)
        ET.SubElement(joint, "origin", xyz=_numbers(*xyz), rpy=_numbers(*rpy))
        if axis:
            lower, upper = map(_numbers, limits)
            ET.SubElement(joint, "axis", xyz=_numbers(*axis))
            ET.SubElement(
                joint, "limit", lower=lower, upper=upper, effort=_numbers(effort), velocity=_numbers(velocity)
            )
            ET.SubElement(joint, "dynamics", damping=_numbers(damping), friction=_numbers(friction))
    return ET.tostring(robot)


def _fixed(parent: str, child: str, xyz=(0, 0, 0), rpy=(0, 0, 0)) -> tuple:
    return f"{child}_fixed", parent, child, xyz, rpy, None, None, 0, 0, 0, 0


def _table(text: str) -> dict[str, np.ndarray]:
    """First word of each row -> the numbers behind it."""
    return {name: np.array(numbers, float) for name, *numbers in map(str.split, text.strip().splitlines())}


def _body(row: np.ndarray, *shapes) -> tuple:
    """Mass, centre of mass, inertia and shapes, as _robot wants them."""
    return row[0], row[1:4], row[4:], shapes


_ANYMAL = """
    base       6.222    -.018 -.002 .024         .017939 .00388 .001501 .370888 .000069 .372498
    base_rest  20.1512  -.01773 .00038 .00372    .196791 .004347 .056406 1.412318 -.001463 1.461174
    hip-1      2.781    .05666 -.01529 -.0083    .003296 -.00001 .000107 .005044 -.000319 .005727
    hip+1      2.781    .05676 .01529 -.0083     .003296 -.000011 -.000109 .005046 .000319 .005729
    thigh      3.071    .03081 .00005 -.2457     .029564 .000044 .004142 .029904 .0001 .004861
    shank-1    .5884    .00546 -.06125 -.08066   .010161 -.000054 -.000023 .00881 -.001819 .00155
    shank+1    .5884    .00546 .06125 -.08066    .010161 .000054 -.000023 .00881 .001819 .00155
    tiny       .001     0 0 0                    1e-6 0 0 1e-6 0 1e-6
"""  # link (+-1: side, see _anymal), mass, centre of mass, inertia xx xy xz yy yz zz


def _anymal() -> bytes:
    pi, body = np.pi, _table(_ANYMAL)
    trunk = ("cylinder", {"radius": "0.075", "length": "0.75"}, (0, 0, 0), (0, pi / 2, 0))
    # Two links that move as one: ManiSkill leaves gravity on the root only, so what the root itself weighs matters.
    links = {"base": _body(body["base"], trunk), "base_rest": _body(body["base_rest"])}
    hips, thighs, knees, drive = [], [], [], (80, 7.5, 0, 0)
    for leg in ("LF", "RF", "LH", "RH"):
        left, front = 1 if leg[0] == "L" else -1, 1 if leg[1] == "F" else -1
        side = -left * front  # legs across from each other are alike
        hip, thigh, shank, foot = (f"{leg}_{part}" for part in ("HIP", "THIGH", "SHANK", "FOOT"))
        knee = f"{leg}_KFE"  # a link of this name, because the reward asks for its contacts
        cap = ("cylinder", {"radius": "0.06", "length": "0.08"}, (-0.07, 0, 0), (0, pi / 2, 0))
        bone = ("cylinder", {"radius": "0.0175", "length": "0.2"}, (0.01, side * 0.1, -0.2), (0, 0, 0))
        sole = ("sphere", {"radius": "0.03"}, (0, 0, 0.0225), (0, 0, 0))
        links |= {
            hip: _body(body[f"hip{side:+}"]),
            thigh: _body(body["thigh"]),
            knee: _body(body["tiny"], cap),
            shank: _body(body[f"shank{side:+}"], bone),
            foot: _body(body["tiny"], sole),
        }
        at, turn = (front * 0.2999, left * 0.104, 0), (side * -2.617994, 0, 0 if front > 0 else pi)
        limits = (-0.51, 0.49) if left > 0 else (-0.49, 0.51)
        hips += [(f"{leg}_HAA", "base", hip, at, turn, (front, 0, 0), limits, *drive)]
        at, turn = (0.0599, side * 0.07258, -0.04191), (-left * pi, 0.523599, side * pi / 2)
        limits = (-0.1, 0.9) if front > 0 else (-0.9, 0.1)
        thighs += [(f"{leg}_HFE", hip, thigh, at, turn, (left, 0, 0), limits, *drive)]
        at, limits = (0.1003, 0, -0.285), (-1.3, -0.3) if front > 0 else (0.3, 1.3)
        knees += [
            (f"{leg}_KFE", thigh, shank, at, (0, 0, 0), (left, 0, 0), limits, *drive),
            _fixed(thigh, knee, at),
            _fixed(shank, foot, (0.01305, side * 0.08795, -0.33797), (0, 0, -left * pi / 2)),
        ]
    return _robot("anymal", links, [_fixed("base", "base_rest"), *hips, *thighs, *knees])


_ARM = """
    link_base  2.7     0 0 .09103             .00495 -3.5e-6 1.25e-5 .00494 1.67e-6 .00222
    link1      2.16    -.002 .02692 -.01332   .00539 1.1e-5 1.6e-6 .0049 .00079 .00312
    link2      1.71    .03531 -.21398 .03386  .02487 -.00431 -.00068 .00486 .00457 .02388
    link3      1.384   .06781 .10749 .01457   .00537 .00142 -.00092 .00324 -.00169 .00502
    link4      1.115   -.00021 .02578 -.02538 .00439 5e-5 1.4e-5 .00401 .00045 .0011
    link5      1.275   .05428 .01781 .00543   .0012 .00049 -.00039 .00229 -.00012 .00269
    link6      .1096   0 .00064 -.00952       4.5e-5 0 0 4.8e-5 0 8e-5
"""  # link, mass, centre of mass, inertia xx xy xz yy yz zz; the gripper's links exist on the left and on the right
_GRIPPER = """
    robotiq_arg2f_base_link  .22652  0 0 .03145         2e-4 0 0 1.78e-4 0 1.35e-4
    outer_knuckle            .01292  0 .01778 .00159    2.1e-6 0 0 2.1e-6 0 1e-6
    inner_knuckle            .02728  0 .01703 .01993    1.25e-5 0 0 1e-5 0 3.1e-6
    outer_finger             .01778  0 .00306 .02356    5.8e-6 0 0 5e-6 0 1.2e-6
    inner_finger             .01317  0 -.01105 .01522   2.7e-6 0 0 2.4e-6 0 1e-6
    inner_finger_pad         .00524  0 0 0              1e-6 0 0 1e-6 0 1e-6
"""
_BOXES = """
    link_base                -.0928 -.0635 -.0005     .0635 .0641 .1558
    link1                    -.049 -.056 -.1126       .0488 .0762 .0486
    link2                    -.0483 -.3283 -.0683     .0961 .0482 .1191
    link3                    -.0429 -.0428 -.0426     .1209 .1697 .1079
    link4                    -.0429 -.0432 -.1735     .0426 .0865 .038
    link5                    -.0379 -.038 -.038       .114 .0694 .0585
    link6                    -.0374 -.0516 -.028      .0374 .0374 0
    robotiq_arg2f_base_link  -.0375 -.0424 -.0027     .0375 .0424 .09
    outer_knuckle            -.012 -.0075 -.0101      .012 .0388 .0129
    inner_knuckle            -.0195 -.006 -.006       .0195 .0431 .0494
    outer_finger             -.0135 -.006 -.006       .0135 .0121 .0531
    inner_finger             -.0075 -.0239 -.006      .0075 .006 .0445
    inner_finger_pad         -.011 -.003175 -.01875   .011 .003175 .01875
"""  # link, lowest corner, highest corner
_JOINTS = """
    joint1  0 0 .267         0        -6.2831853 6.2831853  50
    joint2  0 0 0            -1.5708  -2.059 2.0944         50
    joint3  .0535 -.2845 0   0        -3.8 .19198           32
    joint4  .0775 .3425 0    -1.5708  -6.2831853 6.2831853  32
    joint5  0 0 0            1.5708   -1.69297 3.1415927    32
    joint6  .076 .097 0      -1.5708  -6.2831853 6.2831853  20
"""  # joint, origin, its roll, limits, effort; all turn about z
_PALM, *_FINGER_PARTS = _table(_GRIPPER)


def _xarm6() -> bytes:
    boxes, arm, gripper = _table(_BOXES), _table(_ARM), _table(_GRIPPER)

    def link(name, row):
        low, high = boxes[name][:3], boxes[name][3:]
        return _body(row, ("box", {"size": _numbers(*(high - low))}, (low + high) / 2, (0, 0, 0)))

    links = {"world": None, "eef": None, "camera_link": None}
    links |= {name: link(name, row) for name, row in arm.items()} | {_PALM: link(_PALM, gripper[_PALM])}
    links |= {f"{side}_{part}": link(part, gripper[part]) for side in ("left", "right") for part in _FINGER_PARTS}

    chain, joints = list(arm), [_fixed("world", "link_base")]
    for i, (name, (x, y, z, roll, lower, upper, effort)) in enumerate(_table(_JOINTS).items()):
        turn, drive = ((roll, 0, 0), (0, 0, 1)), ((lower, upper), effort, 3.14, 1, 1)
        joints += [(name, chain[i], chain[i + 1], (x, y, z), *turn, *drive)]
    joints += [_fixed("link6", _PALM), _fixed("link6", "camera_link", (0.05, 0, 0)), _fixed(_PALM, "eef", (0, 0, 0.15))]
    for side, sign, yaw in (("left", -1, np.pi), ("right", 1, 0)):
        outer, inner, finger, tip, pad = (f"{side}_{part}" for part in _FINGER_PARTS)
        turn, drive = ((0, 0, yaw), (1, 0, 0)), (50, 2, 0, 0)
        joints += [
            (f"{outer}_joint", _PALM, outer, (0, sign * 0.0306011, 0.054904), *turn, (0, 0.81), *drive),
            (f"{inner}_joint", _PALM, inner, (0, sign * 0.0127, 0.06142), *turn, (0, 0.8757), *drive),
            _fixed(outer, finger, (0, 0.0315, -0.0041)),
            (f"{tip}_joint", finger, tip, (0, 0.0061, 0.0471), (0, 0, 0), (1, 0, 0), (-0.8757, 0), *drive),
            _fixed(tip, pad, (0, -0.02202, 0.03242)),
        ]
    return _robot("xarm6_robotiq", links, joints)


def _xarm6_pairs() -> bytes:
    """SRDF: links that pass through each other, because boxes overlap where the real shapes do not.

    Parent and child never collide, and inside the gripper the package itself turns it off.
    """
    pairs = "link_base link2, link1 link3, link2 link4, link3 link5, link3 link6, link4 link6"
    pairs = [pair.split() for pair in pairs.split(", ")]
    pairs += [("link6", f"{side}_{part}") for side in ("left", "right") for part in _FINGER_PARTS]
    robot = ET.Element("robot", name="xarm6_robotiq")
    for one, other in pairs:
        ET.SubElement(robot, "disable_collisions", link1=one, link2=other, reason="Default")
    return ET.tostring(robot)
