"""The task table, and DMControl and Meta-World against the packages themselves. All suites: tests/test_tasks.py.

Run: pytest tests/test_envs.py                (ten tasks; about 30 seconds on one core)
     pytest tests/test_envs.py -m slow        (the contract and the comparison with the package, for all 70 tasks)
"""

import subprocess
import sys
from ctypes.util import find_library

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import envs
from envs.camera import Camera, choose_backend

DMCONTROL = ["walker-walk", "cup-catch", "finger-turn-hard", "fish-swim", "quadruped-run"]
METAWORLD = ["mw-reach", "mw-hammer", "mw-door-lock", "mw-stick-pull", "mw-button-press-topdown-wall"]

needs_gl = pytest.mark.skipif(
    sys.platform == "linux" and not find_library("EGL") and not find_library("OSMesa"),
    reason="no off-screen OpenGL library here (Debian: libegl1 or libosmesa6)",
)


def random_actions(name, steps, seed=0, bound=1.0):
    return np.random.default_rng(seed).uniform(-bound, bound, (steps, envs.TASKS[name].action_dim)).astype(np.float32)


def rollout(env, actions, seed=None):
    """-> (T+1, O), (T,): bit patterns to compare."""
    obs, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        step = env.step(action)
        obs.append(step[0])
        rewards.append(step[1])
    return np.stack(obs), np.array(rewards)


def run_python(code, **environ):
    """A fresh interpreter: what is imported, and in which order, matters. -> stdout; fails on any error or stderr."""
    import os

    inherited = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environ}, cwd=envs.__path__[0] + "/..", capture_output=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout.decode().strip()


# ---- the table ----


def test_table_facts():
    rows = list(envs.TASKS.values())
    assert [row.split for row in rows] == ["train"] * 200 + ["heldout"] * 34
    assert list(envs.TASKS) == [row.name for row in rows] and len(envs.TASKS) == 234
    counts = {"dmcontrol": 21, "dmcontrol-ext": 16, "metaworld": 49, "maniskill": 36, "mujoco": 6, "box2d": 8}
    counts |= {"robodesk": 6, "ogbench": 12, "miniarcade": 19, "atari": 27}
    assert [row.domain for row in rows[:200]] == [domain for domain, n in counts.items() for _ in range(n)]
    assert {row.domain for row in rows[200:]} <= set(counts)
    assert len({row.sentence for row in rows}) == 234
    assert all(len(text.split()) <= 12 for row in rows for text in (row.instruction, row.embodiment))
    absent = [row.name for row in rows if not row.implemented_in_reference]
    assert [row.name for row in rows if row.obs_dim == 0] == absent
    assert max(row.obs_dim for row in rows) == 128 and max(row.action_dim for row in rows) == 12
    assert {row.episode_length for row in rows} == {25, 50, 100, 200, 250, 500, 1000}
    assert sum(row.is_new_in_mmbench for row in rows[:200]) == 41


def test_table_discount_follows_from_length():
    explicit = [row for row in envs.TASKS.values() if row.discount_explicit]
    assert len(explicit) == 43 and {row.discount for row in explicit} == {0.99}
    for row in envs.TASKS.values():
        if not row.discount_explicit:
            horizon = row.episode_length / 5
            assert row.discount == pytest.approx(min(max((horizon - 1) / horizon, 0.95), 0.995), abs=1e-12), row.name


def test_table_rows_by_hand():
    walker, reach = envs.TASKS["walker-walk"], envs.TASKS["mw-reach"]
    assert (walker.obs_dim, walker.action_dim, walker.episode_length, walker.action_repeat) == (24, 6, 500, 2)
    assert (walker.discount, walker.score_formula, walker.success_defined) == (0.99, "R/1000", False)
    assert (reach.obs_dim, reach.action_dim, reach.episode_length, reach.action_repeat) == (39, 4, 100, 2)
    assert (reach.discount, reach.score_formula, reach.success_defined) == (0.95, "success", True)
    assert walker.sentence == "Planar biped moved by six leg joint motors. Stride ahead at an easy pace."
    assert list(envs.TASKS).index("walker-stand") == 0 and list(envs.TASKS).index("mw-assembly") == 37
    assert "mw-shelf-place" not in envs.TASKS


# ---- select ----


def test_select():
    everything = envs.select("all")
    assert everything == [name for name in envs.TASKS if name in everything]  # canonical order
    assert {envs.TASKS[name].domain for name in everything} == set(envs.MAKERS)
    assert all(envs.TASKS[name].split == "train" for name in everything)
    assert len(envs.select("dmcontrol")) == 21 and len(envs.select("metaworld")) == 49
    assert envs.select("mw-reach") == ["mw-reach"]
    assert envs.select(" mw-reach, walker-walk,mw-reach,") == ["mw-reach", "walker-walk"]
    assert envs.select("mw-reach,metaworld")[:2] == ["mw-reach", "mw-assembly"]
    assert len(envs.select("mw-reach,metaworld")) == 49


@pytest.mark.parametrize(
    "names, message",
    [
        ("walker-wlak", "unknown task 'walker-wlak': did you mean walker-walk"),
        ("mw-reach,mw_door-open", "unknown task 'mw_door-open': did you mean mw-door-open"),
        ("meta-world", "did you mean metaworld"),
        ("qqqqqq", "unknown task 'qqqqqq': all names are in envs/tasks.csv"),
        (" ,", "no task in ' ,'"),
    ],
)
def test_select_explains_bad_names(names, message):
    with pytest.raises(ValueError) as error:
        envs.select(names)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_make_explains_bad_arguments():
    with pytest.raises(ValueError, match="did you mean mw-reach"):
        envs.make("mw-reahc")
    with pytest.raises(ValueError, match="render_mode is None or 'rgb_array', not 'human'"):
        envs.make("mw-reach", render_mode="human")


# ---- the contract ----


def check_contract(name):
    task, env = envs.TASKS[name], envs.make(name)
    dmcontrol = task.domain == "dmcontrol"
    with pytest.raises(gym.error.ResetNeeded):  # nothing was started yet
        env.step(np.zeros(task.action_dim, np.float32))
    check_env(env, skip_render_check=True)
    assert env.observation_space.shape == (task.obs_dim,) and env.observation_space.dtype == np.float32
    assert env.action_space == gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
    for actions in (random_actions(name, task.episode_length), np.zeros((task.episode_length, task.action_dim))):
        obs, info = env.reset(seed=1)
        total = 0.0
        for t, action in enumerate(actions, start=1):
            assert obs.shape == (task.obs_dim,) and obs.dtype == np.float32 and np.isfinite(obs).all()
            assert type(info["score"]) is type(info["success"]) is float
            assert 0 <= info["score"] <= 1 and info["success"] in ((0,) if dmcontrol else (0, 1))
            obs, reward, terminated, truncated, info = env.step(action)
            assert type(reward) is float and 0 <= reward <= (2 if dmcontrol else 20)
            assert terminated is False and truncated is (t == task.episode_length)
            total += reward
        assert info["score"] == pytest.approx(total / 1000 if dmcontrol else info["success"], abs=1e-12)
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            env.step(action)
    env.reset()
    with pytest.raises(ValueError, match=f"this task takes \\({task.action_dim},\\)"):
        env.step(np.zeros(task.action_dim + 1, np.float32))
    env.close()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # check_env: infinite bounds of obs
@pytest.mark.parametrize("name", DMCONTROL + METAWORLD)
def test_contract(name):
    check_contract(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_contract_of_all_tasks():
    for name in envs.select("dmcontrol,metaworld"):
        check_contract(name)


def test_score_is_the_running_return_in_dmcontrol():
    env = envs.make("cartpole-balance")  # pays close to 1 per control step while the pole stands
    env.reset(seed=0)
    first = env.step(np.zeros(1, np.float32))
    second = env.step(np.zeros(1, np.float32))
    assert 1.5 < first[1] <= 2 and first[4]["score"] == pytest.approx(first[1] / 1000, abs=1e-15)
    assert second[4]["score"] == pytest.approx((first[1] + second[1]) / 1000, abs=1e-15)


def test_success_is_reported_and_not_latched_in_metaworld():
    from metaworld.policies import SawyerDrawerCloseV3Policy

    env, expert = envs.make("mw-drawer-close"), SawyerDrawerCloseV3Policy()
    obs, info = env.reset(seed=0)
    assert info == {"score": 0.0, "success": 0.0}
    for _ in range(99):
        obs, _, _, _, info = env.step(np.clip(expert.get_action(obs.astype(np.float64)), -1, 1))
    assert info == {"score": 1.0, "success": 1.0}
    handle = env._env.data.joint("goal_slidey")
    handle.qpos[0] = -0.15  # pull the drawer open again
    *_, truncated, info = env.step(np.zeros(4, np.float32))
    assert truncated and info == {"score": 0.0, "success": 0.0}


# ---- randomness ----


@pytest.mark.parametrize("name", DMCONTROL + METAWORLD)
def test_seed_decides_everything(name):
    actions = random_actions(name, 20)
    used, fresh = envs.make(name, seed=7), envs.make(name, seed=8)
    rollout(used, random_actions(name, 30, seed=1), seed=3)  # its past must not matter
    first, again = rollout(used, actions, seed=5), rollout(fresh, actions, seed=5)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    # the following episodes go on with the same stream
    np.testing.assert_array_equal(rollout(used, actions)[0], rollout(fresh, actions)[0])
    assert (rollout(used, actions, seed=5)[0] != rollout(used, actions)[0]).any()
    assert (rollout(used, actions, seed=6)[0][0] != first[0][0]).any()
    # make's seed is the first reset's seed
    np.testing.assert_array_equal(rollout(envs.make(name, seed=5), actions)[0], first[0])


@pytest.mark.parametrize("name", DMCONTROL + METAWORLD)
def test_global_generator_is_neither_read_nor_moved(name):
    actions, episodes = random_actions(name, 5), []
    for global_seed in (0, 1):
        np.random.seed(global_seed)
        before = np.random.get_state()
        env = envs.make(name, seed=2)
        episodes.append(np.concatenate([rollout(env, actions)[0] for _ in range(3)]))
        after = np.random.get_state()
        assert before[2:] == after[2:]
        np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(*episodes)


def test_np_random_is_the_source():
    for name in ("fish-swim", "mw-push"):
        env = envs.make(name)
        env.reset(seed=1)
        state = env.np_random.bit_generator.state
        first = env.reset()[0]
        assert env.np_random.bit_generator.state != state
        env.np_random.bit_generator.state = state
        np.testing.assert_array_equal(env.reset()[0], first)


def test_metaworld_goals_cover_their_range():
    env = envs.make("mw-reach", seed=0)
    goals = np.stack([env.reset()[0][36:] for _ in range(40)])
    low, high = np.array([-0.1, 0.8, 0.05]), np.array([0.1, 0.9, 0.3])
    assert (goals >= low - 1e-6).all() and (goals <= high + 1e-6).all()
    assert (np.ptp(goals, axis=0) > 0.8 * (high - low)).all()


# ---- against the packages' own environments ----


def dmcontrol_reference(name, seed, actions):
    """Two control steps per action of suite.load's environment, in its own wrappers -> obs (T+1, O), reward (T,)."""
    from dm_control import suite
    from dm_control.rl.control import flatten_observation
    from dm_control.suite.wrappers import action_scale

    domain, task = name.replace("cup-", "ball-in-cup-").replace("-", "_").rsplit("_", 1)
    if domain.startswith(("finger", "cartpole")):  # the task has more than one word
        domain, task = name.replace("-", "_").split("_", 1)
    random = np.random.RandomState(seeding.np_random(seed)[0].bit_generator)
    env = action_scale.Wrapper(suite.load(domain, task, task_kwargs={"random": random}), minimum=-1, maximum=1)
    time_step, rewards = env.reset(), []
    obs = [flatten_observation(time_step.observation)["observations"]]
    for action in actions:
        steps = [env.step(action.astype(np.float64)) for _ in range(2)]
        obs.append(flatten_observation(steps[1].observation)["observations"])
        rewards.append(steps[0].reward + steps[1].reward)
    return np.stack(obs).astype(np.float32), np.array(rewards)


def metaworld_reference(name, seed, actions):
    """Two simulator steps per action of the package's class with visible goal, after one step at rest; 3.75 weld."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name[3:]}-v3-goal-observable"](seed=0)
    assert env.model.eq_data[0, 10] == 5.0 and len(env.model.eq_data) == 1  # what the package has
    env.model.eq_data[0, 10] = 3.75
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.seed(seed)
    env.reset()
    obs, rewards = [env.step(np.zeros(4))[0]], []
    for action in actions:
        steps = [env.step(action) for _ in range(2)]
        obs.append(steps[1][0])
        rewards.append(steps[0][1] + steps[1][1])
        np.testing.assert_array_equal(steps[1][0][18:36], steps[0][0][:18])  # "previous" is per simulator step
    return np.stack(obs).astype(np.float32), np.array(rewards)


def check_against_package(name):
    reference = metaworld_reference if name.startswith("mw-") else dmcontrol_reference
    actions = random_actions(name, 40, bound=1.2)  # outside the box too: dm_control must see them unclipped
    actions = actions.clip(-1, 1) if name.startswith("mw-") else actions
    for seed in (0, 11):
        obs, rewards = rollout(envs.make(name), actions, seed)
        want_obs, want_rewards = reference(name, seed, actions)
        np.testing.assert_array_equal(obs, want_obs, err_msg=name)
        np.testing.assert_allclose(rewards, want_rewards, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", DMCONTROL + METAWORLD)
def test_same_numbers_as_the_package(name):
    check_against_package(name)


@pytest.mark.slow
def test_same_numbers_as_the_package_for_all_tasks():
    for name in envs.select("dmcontrol,metaworld"):
        check_against_package(name)


def test_quadruped_actions_are_scaled_to_its_motors():
    env = envs.make("quadruped-walk")
    env.reset(seed=0)
    for action, leg in ((-1, [-1, -1, -0.8]), (0, [0, 0.05, 0]), (1, [1, 1.1, 0.8])):  # yaw, lift, extend
        env.step(np.full(12, action, np.float32))
        np.testing.assert_allclose(env._env.physics.control(), leg * 4, atol=1e-12)


# ---- gymnasium ----


def test_registered_with_gymnasium():
    assert all(f"mmbench/{name}-v0" in gym.registry for name in envs.select("all"))
    env = gym.make("mmbench/walker-walk-v0", seed=4)
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, envs.make("walker-walk", seed=4).reset()[0])
    for t in range(1, 501):
        truncated = env.step(env.action_space.sample())[3]
        assert truncated == (t == 500)


@needs_gl
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_the_registered_environment_with_frames():
    for name in ("walker-walk", "mw-reach"):
        check_env(gym.make(f"mmbench/{name}-v0", render_mode="rgb_array").unwrapped)


# ---- frames ----


@needs_gl
@pytest.mark.parametrize("name", ["walker-walk", "quadruped-run", "mw-reach"])
def test_frame_shows_the_scene_and_changes_nothing(name):
    actions = random_actions(name, 15)
    plain, drawn = envs.make(name, seed=1), envs.make(name, seed=1, render_mode="rgb_array")
    a, b, frames = plain.reset()[0], drawn.reset()[0], []
    for action in actions:
        frames.append(drawn.render())
        np.testing.assert_array_equal(a, b)
        a, b = plain.step(action)[0], drawn.step(action)[0]
    np.testing.assert_array_equal(a, b)
    for frame in frames:
        assert frame.shape == (224, 224, 3) and frame.dtype == np.uint8 and frame.std() > 10
    assert (frames[0] != frames[-1]).any()
    np.testing.assert_array_equal(plain.render(), drawn.render())  # render_mode only announces
    drawn.close()
    drawn.close()
    assert drawn.render().shape == (224, 224, 3)  # opens a new one


@needs_gl
def test_camera_frame_is_upright():
    import mujoco

    ball = '<geom type="sphere" size=".3" pos="{}" rgba="{}"/>'
    red_above, green_right = ball.format("0 0 .6", "1 0 0 1"), ball.format(".6 0 0", "0 1 0 1")
    looks_along_y = '<camera pos="0 -3 0" xyaxes="1 0 0 0 0 1"/><light pos="0 -3 1" dir="0 1 0"/>'
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody>{red_above}{green_right}{looks_along_y}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    frame = Camera(model, 0).frame(data).astype(int)
    row, _ = np.nonzero(frame[..., 0] > frame[..., 1] + 50)
    _, column = np.nonzero(frame[..., 1] > frame[..., 0] + 50)
    assert row.mean() < 90 and column.mean() > 134


@needs_gl
def test_frames_are_those_of_the_packages():
    """Also: Python ends without a word though nothing was closed."""
    code = """
import os, numpy as np
from dm_control import suite
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
import envs
for name, camera in (("walker-walk", 0), ("quadruped-run", 2)):
    env = envs.make(name)
    env.reset(seed=1)
    frame, want = env.render(), env._env.physics.render(224, 224, camera_id=camera)
    print((frame == want).mean() > 0.99, end=" ")
env = envs.make("mw-reach")
env.reset(seed=1)
ref = ALL_V3_ENVIRONMENTS["reach-v3"](render_mode="rgb_array", camera_name="corner4", width=224, height=224)
ref._freeze_rand_vec, ref.seeded_rand_vec, ref._set_task_called, ref.model.eq_data[0, 10] = False, True, True, 3.75
ref.seed(1)
ref.reset()
ref.step(np.zeros(4, np.float32))
frame, want = env.render(), ref.render()[::-1]
print((frame == want).mean() > 0.99, end=" ", flush=True)
ref.close()
ref.mujoco_renderer._viewers = ref.mujoco_renderer.viewer = None
"""
    assert run_python(code, MUJOCO_GL=choose_backend()) == "True True True"


# ---- what is loaded, and what is missing ----


def test_import_is_light():
    heavy = "torch", "mujoco", "dm_control", "metaworld", "OpenGL", "glfw"
    assert run_python(f"import envs, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_states_need_no_gl():
    code = """
import envs, sys, os
for name in ("walker-walk", "mw-reach"):
    env = envs.make(name)
    env.reset()
    env.step(env.action_space.sample())
print("OpenGL" in sys.modules, os.environ.get("MUJOCO_GL"))
"""
    assert run_python(code) == "False None"
    for setting in ("disabled", "egl", "osmesa", "glfw"):  # no setting may matter, with or without its library
        assert run_python(code, MUJOCO_GL=setting) == f"False {setting}"


def test_gl_missing_is_one_clear_error(monkeypatch):
    for name in ("walker-walk", "mw-reach"):
        env = envs.make(name)
        env.reset()
        monkeypatch.setenv("MUJOCO_GL", "disabled")
        with pytest.raises(RuntimeError, match="MUJOCO_GL=disabled turns OpenGL off"):
            env.render()
        monkeypatch.setenv("MUJOCO_GL", "osmesa")
        monkeypatch.setitem(sys.modules, "mujoco.osmesa", None)
        with pytest.raises(RuntimeError, match=r"^no frames: .*libegl1.*libosmesa6") as error:
            env.render()
        assert "\n" not in str(error.value)
        env.step(env.action_space.sample())  # states go on


def test_gl_default_is_egl_then_osmesa(monkeypatch):
    import envs.camera as camera

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for platform, libraries, want in (
        ("linux", {"EGL", "OSMesa"}, "egl"),
        ("linux", {"OSMesa"}, "osmesa"),
        ("darwin", set(), "cgl"),
        ("win32", set(), "glfw"),
    ):
        monkeypatch.setattr(camera.sys, "platform", platform)
        monkeypatch.setattr(camera, "find_library", lambda name, there=libraries: name if name in there else None)
        assert choose_backend() == want


@pytest.mark.parametrize(
    "broken, blocked, package, works",
    [
        ("walker-walk", ["dm_control"], "dm_control", "mw-reach"),
        ("mw-reach", ["metaworld", "metaworld.env_dict"], "metaworld", "walker-walk"),
    ],
)
def test_missing_package_is_named_and_the_other_suite_works(monkeypatch, broken, blocked, package, works):
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)  # Python's way to say: not installed
    with pytest.raises(ImportError, match=f"task '{broken}' needs `pip install {package}`"):
        envs.make(broken)
    envs.make(works).reset()
