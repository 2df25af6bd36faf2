"""What all tasks of all suites promise, from the contract at the top of envs/__init__.py alone.

Run: pytest tests/test_tasks.py            one task of each suite
     pytest tests/test_tasks.py -m slow    all 228 of them, and determinism over processes
"""

import json
import os
import queue
import re
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.browse import check_task, picture, time_suite

ONE_EACH = [
    "cartpole-balance",
    "spinner-spin",
    "mw-reach",
    "ms-pick-cube",
    "mujoco-hopper",
    "bipedal-walker-flat",
    "rd-push-red",
    "og-point-maze",
    "pygame-pong",
    "atari-pong",
]
ALL = envs.select("all,heldout")
# No episode of these has anything random in it: one start, and an emulator without noise.
ONE_START = {name for name in ALL if envs.TASKS[name].domain == "atari"}
every_task = pytest.mark.parametrize("name", [*ONE_EACH, *(pytest.param(n, marks=pytest.mark.slow) for n in ALL)])
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_counts():
    assert len(envs.select("all")) == 200 and len(envs.select("heldout")) == 28
    assert {envs.TASKS[name].domain for name in ONE_EACH} == set(envs.MAKERS) and len(ONE_EACH) == 10
    assert {envs.TASKS[name].domain for name in ALL} == set(envs.MAKERS)


def test_names_without_a_definition_are_refused():
    with pytest.raises(ValueError, match="only a name"):
        envs.make("pygame-point-maze-var5")


@quiet
@every_task
def test_contract(name):
    line, problems = check_task(name)
    assert not problems, line


@quiet
@every_task
def test_gymnasium_checks_it(name):
    env = envs.make(name)
    check_env(env, skip_render_check=True)
    assert env.observation_space.dtype == env.action_space.dtype == np.float32
    with pytest.raises(ValueError):
        env.reset()
        env.step(np.zeros(env.action_space.shape[0] + 1, np.float32))
    env.close()


ROLLOUT = """
import hashlib, json, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
import envs
digests = {}
for name in sys.argv[2:]:
    try:
        for seed in (3, 4):
            env, digest = envs.make(name), hashlib.sha256()
            digest.update(env.reset(seed=seed)[0].tobytes())
            for action in np.random.default_rng(seed if sys.argv[1] == "own" else 0).uniform(
                    -1, 1, (150 if name.startswith("pygame") else 20, *env.action_space.shape)).astype(np.float32):
                obs, reward = env.step(action)[:2]
                digest.update(obs.tobytes() + np.float64(reward).tobytes())
            env.close()
            digests.setdefault(name, []).append(digest.hexdigest())
    except Exception as error:
        digests[name] = [repr(error)]
print(json.dumps(digests))
"""


def digests(names):
    """Name -> digests of a rollout with seed 3 and of one with seed 4 and the same actions, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", ROLLOUT, "same", *names], cwd=Path(envs.__file__).parents[1], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout.decode().strip().splitlines()[-1])


def check_determinism(names):
    # The other order in the second process: what an earlier task leaves behind must not matter.
    first, second = digests(names), digests(names[::-1])
    wrong = [name for name in names if len(first[name]) != 2 or first[name] != second[name]]
    assert not wrong, [(name, first[name], second[name]) for name in wrong]
    assert [name for name in names if first[name][0] == first[name][1] and name not in ONE_START] == []
    assert all(first[name][0] == first[name][1] for name in names if name in ONE_START)


def test_same_seed_same_numbers_in_two_processes():
    check_determinism(ONE_EACH)


@pytest.mark.slow
@pytest.mark.parametrize("suite", list(envs.MAKERS))
def test_same_seed_same_numbers_in_two_processes_all(suite):
    check_determinism([name for name in ALL if envs.TASKS[name].domain == suite])


@quiet
@every_task
def test_drawing_changes_nothing(name):
    plain, drawn = envs.make(name, seed=1), envs.make(name, seed=1, render_mode="rgb_array")
    a, b = plain.reset()[0], drawn.reset()[0]
    for action in np.random.default_rng(0).uniform(-1, 1, (4, *plain.action_space.shape)).astype(np.float32):
        try:
            frame = drawn.render()
        except RuntimeError as error:  # one line that says what to install
            assert "apt-get install" in str(error) and "\n" not in str(error)
            pytest.skip(str(error))
        assert frame.shape == (224, 224, 3) and frame.dtype == np.uint8 and frame.std() > 3
        np.testing.assert_array_equal(a, b)
        (a, ra, *_), (b, rb, *_) = plain.step(action), drawn.step(action)
        assert ra == rb
    np.testing.assert_array_equal(a, b)
    plain.close()
    drawn.close()


@quiet
@every_task
def test_state_is_restored_exactly(name):
    env, other = envs.make(name, seed=1), envs.make(name, seed=2)
    env.reset()
    other.reset()
    draw = np.random.default_rng(0)
    for _ in range(7):
        env.step(draw.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        other.step(draw.uniform(-1, 1, env.action_space.shape).astype(np.float32))
    state, ends = env.get_state(), []
    actions = draw.uniform(-1, 1, (8, *env.action_space.shape)).astype(np.float32)
    for _ in range(2):
        rows = []
        for action in actions:
            obs, reward, _, _, info = env.step(action)
            rows.append(np.append(obs.astype(np.float64), [reward, info["score"], info["success"]]))
        rows.append(np.append(env.reset()[0].astype(np.float64), [0, 0, 0]))  # the generator is part of it
        ends.append(np.array(rows))
        env.set_state(state)
    np.testing.assert_array_equal(ends[0], ends[1])
    other.set_state(state)  # another environment of the task goes on the same way
    rows = [np.append((s := other.step(action))[0].astype(np.float64), [s[1], s[4]["score"], s[4]["success"]])
            for action in actions]  # fmt: skip
    np.testing.assert_array_equal(ends[0][:-1], np.array(rows))
    env.close()
    other.close()


@quiet
@pytest.mark.parametrize("name", ONE_EACH)
def test_registered_with_gymnasium(name):
    env = gym.make(f"mmbench/{name}-v0")
    assert env.reset(seed=0)[0].shape == (envs.TASKS[name].obs_dim,)
    env.close()


MODULES = {"miniarcade": "pygame", "maniskill": "mani_skill", "box2d": "Box2D", "atari": "ale_py"}


@pytest.mark.parametrize("name", ONE_EACH)
def test_missing_package_is_named_and_the_others_work(name):
    suite = envs.TASKS[name].domain
    package = envs.MAKERS[suite][1]
    module = MODULES.get(suite, package.removesuffix("[mujoco]"))
    module = {"gymnasium": "mujoco"}.get(module, module)
    other = "pygame-pong" if suite != "miniarcade" else "cartpole-balance"
    code = f"""
import sys
sys.modules[{module!r}] = None
import envs
try:
    env = envs.make({name!r}, render_mode="rgb_array")
    env.reset()
    env.render()
except ImportError as error:
    print(error)
"""
    if suite != "mujoco":  # dm_control needs mujoco, too
        code += f"envs.make({other!r}).reset()\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(envs.__file__).parents[1], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-1000:]
    out = done.stdout.decode().strip()
    assert f"pip install {package}" in out and "\n" not in out, out


# ---- tasks of one's own ----


class Ends(gym.Env):
    """Terminates after 3 steps and then must not be stepped; says success at the end."""

    observation_space = gym.spaces.Dict(
        a=gym.spaces.Box(-1, 1, (2,), np.float32), b=gym.spaces.Box(-9, 9, (1,), np.float32)
    )
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
    episode_length = 6

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, float(self.np_random.uniform())
        return self._obs(), {}

    def _obs(self):
        return {"a": np.array([self.t / 9, self.x], np.float32), "b": np.zeros(1, np.float32)}

    def step(self, action):
        assert self.t < 3, "stepped after its end"
        self.t += 1
        return self._obs(), float(action[0]), self.t == 3, False, {"is_success": self.t == 3}


def make_ends(render_mode=None):
    return Ends()


@quiet
def test_custom_environment_keeps_the_contract():
    name = f"{__name__}:make_ends"
    try:
        row = envs.TASKS[name]
        assert (row.obs_dim, row.action_dim, row.episode_length, row.discount) == (3, 1, 6, 0.95)
        check_env(envs.make(name), skip_render_check=True)
        env = envs.make(name)
        env.reset(seed=0)
        steps = [env.step(np.array([0.5], np.float32)) for _ in range(3)]
        assert [s[1] for s in steps] == [1, 1, 1]  # 0.5 of [-1, 1] is 1 of [-2, 2]
        assert [s[2] for s in steps] == [False, False, True] and not any(s[3] for s in steps)  # over when it says so
        assert [s[4]["success"] for s in steps] == [s[4]["score"] for s in steps] == [0, 0, 1]
        with pytest.raises(gym.error.ResetNeeded):
            env.step(np.zeros(1, np.float32))
        assert (env.reset(seed=0)[0] == env.reset(seed=0)[0]).all()
    finally:
        envs.TASKS.pop(name, None)


@quiet
def test_gym_ids_are_tasks():
    try:
        line, problems = check_task("gym:Pendulum-v1")
        assert not problems and envs.TASKS["gym:Pendulum-v1"].episode_length == 200, line
        assert envs.select("gym:Pendulum-v1,walker-walk") == ["gym:Pendulum-v1", "walker-walk"]
    finally:
        envs.TASKS.pop("gym:Pendulum-v1", None)


def played(name: str, action: float = 0.0, steps: int = 99) -> list:
    """Steps of an episode until its end."""
    env, rows = envs.make(name), []
    env.reset(seed=0)
    while len(rows) < steps and not (rows and (rows[-1][2] or rows[-1][3])):
        rows.append(env.step(np.full(env.action_space.shape, action, np.float32)))
    return rows


@pytest.fixture
def forget():
    """The table holds no tasks of one's own afterwards."""
    yield
    for name in [name for name in envs.TASKS if ":" in name]:
        del envs.TASKS[name]


def test_custom_ends(forget):
    for name, length, terminated in (("dies", 7, True), ("cut", 5, False), ("integer", 20, False)):
        rows = played(f"my_envs:{name}")
        assert len(rows) == length and [row[2] for row in rows] == [False] * (length - 1) + [terminated]
        assert [row[3] for row in rows] == [False] * (length - 1) + [not terminated]
        assert [row[1] for row in rows] == [1] * length and (rows[-1][0] == length).all()


def test_custom_actions(forget):
    env = envs.make("my_envs:integer")
    env.reset(seed=0)
    taken = []
    for action in (-1, -0.91, -0.89, 0.04, 0.14, 0.89, 0.91, 1):  # -1 is 0, 1 is 10
        env.step(np.array([action], np.float32))
        taken.append(env._env.unwrapped.action)
    assert [int(a[0]) for a in taken] == [0, 0, 1, 5, 6, 9, 10, 10] and {a.dtype for a in taken} == {np.dtype("i8")}
    env = envs.make("my_envs:pinned")
    env.reset(seed=0)
    for action, want in (([-1, -1], [-1, 0.5]), ([0.25, 1], [0.25, 0.5])):
        env.step(np.array(action, np.float32))
        assert env._env.unwrapped.action.tolist() == want


def test_custom_scores(forget):
    assert [(row[4]["score"], row[4]["success"]) for row in played("my_envs:dies", steps=3)] == [(0, 0), (1, 1), (0, 0)]
    last = played("my_envs:quiet")[-1][4]
    assert np.isnan(last["score"]) and np.isnan(last["success"])
    rows = [row[4] for row in played("my_envs:ranged")]
    assert [info["score"] for info in rows] == [0.1, 0.2, 0.3, 0.4] and np.isnan([i["success"] for i in rows]).all()
    for name in ("quiet", "ranged", "dies", "cut"):
        assert not check_task(f"my_envs:{name}")[1]
    assert " score - " in check_task("my_envs:quiet")[0]
    env = envs.make("my_envs:dies")
    env.reset()
    env._env.unwrapped.step = lambda action: (np.zeros(3), 0, False, False, {"success": np.nan})
    assert np.isnan(env.step(np.zeros(1, np.float32))[4]["success"])  # not a 1


def test_custom_tasks_are_timed_beyond_their_ends(forget):
    lines = queue.Queue()
    time_suite(["my_envs:dies"], 20, lines)
    assert re.match(r"my_envs:dies +\d+ /s ", lines.get())


def test_custom_names_of_files(forget):
    for name in ("gym:my_envs:lab/Reach-v0", "my_robot:make_reach", "mw-reach", "og-point-var2"):
        file = envs.file_name(name)
        assert not set(file) & set('<>:"/\\|?*') and envs.task_name(file) == name  # what Windows refuses
    assert envs.file_name("mw-reach") == "mw-reach" and envs.TASKS["gym:my_envs:lab/Reach-v0"].obs_dim == 3


def test_custom_modules_of_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym\ndef make(render_mode=None):\n    env = gym.make('Pendulum-v1')\n    return env\n"
    )
    code = f"import sys; sys.path.append({str(Path(envs.__file__).parents[1])!r}); import envs; "
    code += "print(envs.TASKS['mine:make'].episode_length)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "200\n", done.stderr  # -I: the current folder isn't where Python looks


@pytest.mark.parametrize(
    "name, words",
    [
        ("gym:Nothing-v7", "cannot be made"),
        ("my_envs:unbounded", "without bounds"),
        ("my_envs:nonsense", "score_range"),
        ("gym:CartPole-v1", "needs a Box"),
        ("no_such_module:make", "No module named"),
        ("math:nothing", "cannot be made"),
        ("my_envs:nothing", "cannot be made: it gives builtins.NoneType, not an environment"),
        ("my_envs:a_class", "cannot be made: it gives the class my_envs.E, not an environment"),
        ("my_envs:raises", "cannot be made: ZeroDivisionError: of the maker"),
    ],
)
def test_custom_errors_are_one_line(name, words):
    with pytest.raises(ValueError, match=words) as error:
        envs.select(name)
    assert "\n" not in str(error.value) and name not in dict(envs.TASKS)


def own_frame(name, **environ):
    """A film's first frame in a process of its own, without a display -> what it printed, and its stderr."""
    code = f"""
import envs

def film():
    env = envs.make({name!r}, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    env.close()
    print(frame.shape, frame.std() > 5)

film()
"""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "MUJOCO_GL")
    environ = {**{k: v for k, v in os.environ.items() if k not in hidden}, **environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(envs.__file__).parents[1], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(not find_library("EGL"), reason="no off-screen OpenGL library here (Debian: libegl1)")
@pytest.mark.parametrize("name", ["gym:Hopper-v5", "my_draw:renderer", "my_draw:dmcontrol"])
def test_own_tasks_draw_without_a_display_as_ours_do(name, tmp_path):
    """Gymnasium, MuJoCo's own renderer and dm_control each choose OpenGL in their own way."""
    (tmp_path / "my_draw.py").write_text(DRAWING)
    assert own_frame(name, PYTHONPATH=str(tmp_path)) == ("(224, 224, 3) True", "")


@pytest.mark.skipif(bool(find_library("OSMesa")), reason="there is an OSMesa library here")
def test_a_missing_library_is_named_for_own_tasks_too(tmp_path):
    code = "import envs; envs.make('gym:Hopper-v5', render_mode='rgb_array')"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(envs.__file__).parents[1], capture_output=True,
                          text=True, env={**os.environ, "MUJOCO_GL": "osmesa"})  # fmt: skip
    assert re.search("^RuntimeError: no frames: .*apt-get install libosmesa6", done.stderr, re.M), done.stderr


def test_drawing_without_a_display_says_nothing():
    assert own_frame("gym:Pendulum-v1") == ("(224, 224, 3) True", "")  # pygame looked for Wayland


DRAWING = """
import gymnasium as gym
import numpy as np

class Base(gym.Env):
    episode_length = 10
    observation_space = action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

class Renderer(Base):
    def __init__(self, mode):
        import mujoco
        xml = "<mujoco><worldbody><light pos='0 0 3'/><geom size='.3'/></worldbody></mujoco>"
        model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(model)
        mujoco.mj_forward(model, self.data)
        self.renderer = mujoco.Renderer(model) if mode else None

    def render(self):
        self.renderer.update_scene(self.data)
        return self.renderer.render()

class DmControl(Base):
    def __init__(self):
        from dm_control import suite
        self.physics = suite.load("cartpole", "balance").physics

    def render(self):
        return self.physics.render(200, 200)

def renderer(render_mode=None):
    return Renderer(render_mode)

def dmcontrol(render_mode=None):
    return DmControl()
"""


# ---- the command line ----


def envs_command(*args):
    return subprocess.run(
        [sys.executable, "-m", "envs", *args], cwd=Path(envs.__file__).parents[1], capture_output=True, text=True
    )


def test_list_and_errors():
    done = envs_command("--tasks", "pygame-pong,heldout")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 29
    assert done.stdout.startswith("pygame-pong") and "length  500" in done.stdout
    done = envs_command("--check", "walker-wlak")
    assert done.returncode == 2 and "did you mean walker-walk" in done.stderr and len(done.stderr.splitlines()) == 1
    done = envs_command("--play", "pygame-pong", "--out", "/no/such/folder/x.mp4")
    assert done.returncode == 2 and "no folder" in done.stderr


def test_check_gallery_and_film(tmp_path):
    done = envs_command("--check", "pygame-pong,cartpole-balance")
    assert done.returncode == 0 and "2 tasks, 0 failed" in done.stdout, done.stderr
    done = envs_command("--tasks", "pygame-pong,pygame-cowboy", "--gallery", str(tmp_path / "g.png"))
    assert done.returncode == 0 and (tmp_path / "g.png").read_bytes()[1:4] == b"PNG", done.stderr
    done = envs_command("--play", "pygame-landing", "--out", str(tmp_path / "p.mp4"))
    assert done.returncode == 0 and (tmp_path / "p.mp4").stat().st_size > 5000, done.stderr


def test_picture_is_a_frame():
    assert picture("pygame-pong").shape == (224, 224, 3)
