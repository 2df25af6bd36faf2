"""ManiSkill: the package's scenes step by step against the package itself, ours against their formulas.

Run: pytest tests/test_maniskill.py            (about 30 seconds on one core)
     pytest tests/test_maniskill.py -m slow    (every task: against the package, over processes, state, stand-ins)
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import envs
from envs import maniskill
from envs.maniskill_assets import YCB, asset, write

pytest.importorskip("mani_skill")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

TASKS = [name for name in envs.select("maniskill,heldout") if name.startswith("ms-")]
POS, POSE, JOINTS = "pd_ee_delta_pos", "pd_ee_delta_pose", "pd_joint_delta_pos"
STOCK = (
    {  # task -> the package's id, control mode (None: the package's default), robot (None: default)
        "ms-ant-walk": ("MS-AntWalk-v1", None, None),
        "ms-ant-run": ("MS-AntRun-v1", None, None),
        "ms-cartpole-balance": ("MS-CartpoleBalance-v1", None, None),
        "ms-cartpole-swingup": ("MS-CartpoleSwingUp-v1", None, None),
        "ms-hopper-stand": ("MS-HopperStand-v1", None, None),
        "ms-hopper-hop": ("MS-HopperHop-v1", None, None),
        "ms-pick-cube": ("PickCube-v1", POS, None),
        "ms-pick-cube-eepose": ("PickCube-v1", POSE, None),
        "ms-pick-cube-so": ("PickCubeSO100-v1", JOINTS, None),
        "ms-pick-cube-xarm6": ("PickCube-v1", POS, "xarm6_robotiq"),
        "ms-poke-cube": ("PokeCube-v1", POSE, None),
        "ms-push-cube": ("PushCube-v1", POSE, None),
        "ms-pull-cube": ("PullCube-v1", POSE, None),
        "ms-pull-cube-tool": ("PullCubeTool-v1", POSE, None),
        "ms-stack-cube": ("StackCube-v1", POSE, None),
        "ms-place-sphere": ("PlaceSphere-v1", POS, None),
        "ms-lift-peg": ("LiftPegUpright-v1", POSE, None),
        "ms-anymal-reach": ("AnymalC-Reach-v1", JOINTS, None),
    }
    | {name: ("PickSingleYCB-v1", POSE, None) for name in TASKS if name[8:] in YCB and name.startswith("ms-pick")}
)
PUSH_YCB = [name for name in TASKS if name[8:] in YCB and name.startswith("ms-push")]
REACH = ["ms-reach", "ms-reach-eepose", "ms-reach-xarm6"]
SPARSE = ["ms-cartpole-balance-sparse", "ms-cartpole-swingup-sparse"]


def some_actions(name, steps, seed=0):
    """Uniform; arms are pushed down, so that they touch things."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, envs.TASKS[name].action_dim)).astype(np.float32)
    if len(actions[0]) in (4, 7) and "hopper" not in name:
        actions[:, 2] -= 0.4
    return actions.clip(-1, 1)


def rollout(env, actions, seed=None):
    """-> (T+1, O), (T, 3): observations; reward, score, success."""
    rows, obs = [], [env.reset(seed=seed)[0]]
    for action in actions:
        ob, reward, _, _, info = env.step(action)
        obs.append(ob)
        rows.append((reward, info["score"], info["success"]))
    return np.stack(obs), np.array(rows)


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def package_seed(seed):
    """What an episode that starts with reset(seed=seed) asks of the package."""
    return int(seeding.np_random(seed)[0].integers(2**31))


def run_python(code, *arguments, **environ):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("NEWT_", "MS_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**inherited, **environ}, cwd=Path(envs.__file__).parents[1], capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode().strip()


# ---- against the package ----


def package_rollout(name, actions, seed, folder):
    """The package's own environment under the benchmark's rules: two steps per action, success of the second."""
    from mani_skill.utils.registration import REGISTERED_ENVS
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

    env_id, mode, robot = STOCK[name]
    with maniskill._building(name, asset(name), draws=False):
        if asset(name) == "stand-in":  # outlives the block: scenes are built again at every reset
            for owner, attribute, value in write(name, folder):
                setattr(owner, attribute, value)
        env = REGISTERED_ENVS[env_id].cls(
            obs_mode="state", control_mode=mode, num_envs=1, render_backend="none",
            **({"robot_uids": robot} if robot else {}),
        )  # fmt: skip
        if env_id == "PickSingleYCB-v1":
            env.all_model_ids = np.array([YCB[name[8:]][0]])
        env = CPUGymWrapper(env, ignore_terminations=True)
        # A scene without a past, as ours is after a reset.
        obs, rows, total = [env.reset(seed=package_seed(seed), options={"reconfigure": True})[0]], [], 0.0
        for action in actions:
            rewards = [(step := env.step(action))[1] for _ in range(2)]
            total += float(rewards[0]) + float(rewards[1])
            success = float(step[4].get("success", 0))
            score = total / 1000 if "cartpole" in name else total / 600 if "hopper" in name else success
            obs.append(step[0])
            rows.append((float(rewards[0]) + float(rewards[1]), score, success))
        env.close()
    return np.stack(obs), np.array(rows)


def check_against_package(name, steps, seed, folder):
    actions, env = some_actions(name, steps, seed), envs.make(name)
    want, got = package_rollout(name, actions, seed, folder), rollout(env, actions, seed)
    assert want[0].dtype == np.float32 and want[0].shape == (steps + 1, envs.TASKS[name].obs_dim)
    assert_same(want, got)
    env.close()


@pytest.mark.parametrize(
    "name", ["ms-pick-cube", "ms-stack-cube", "ms-hopper-hop", "ms-ant-walk", "ms-pick-cube-so", "ms-pick-mug"]
)
def test_equals_the_package(name, tmp_path):
    check_against_package(name, 15, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_equals_the_package_whole_episodes(name, tmp_path):
    for seed in range(2):
        check_against_package(name, envs.TASKS[name].episode_length, seed, tmp_path)


def test_every_task_is_tested_one_way_or_the_other():
    assert sorted([*STOCK, *PUSH_YCB, *REACH, *SPARSE]) == sorted(TASKS) and len(TASKS) == 47


# ---- our own scenes, by their formulas ----


def each_simulator_step(env):
    """A list that gets (observation, reward, success) of each step of the scene inside, not only every second."""
    seen, step = [], env._sim.step

    def spy(action):
        obs, reward, *_, info = result = step(action)
        success = float(info["success"]) if "success" in info else 0.0
        seen.append((np.array(obs[0], np.float64), float(reward), success))
        return result

    env._sim.step = spy
    return seen


def distance(a, b):
    return np.sqrt(((a - b) ** 2).sum(-1))


@pytest.mark.parametrize("name", REACH)
def test_reach(name):
    env, joints = envs.make(name), 24 if "xarm6" in name else 18
    seen, ends = each_simulator_step(env), []
    for seed, policy in ((0, "random"), (1, "go"), (2, "go")):
        obs, info = env.reset(seed=seed)
        assert info["success"] == 0.0
        for random in some_actions(name, 25, seed):
            hand, goal = obs[joints : joints + 3], obs[joints + 7 : joints + 10]
            go = np.zeros(env.action_space.shape, np.float32)
            go[:3] = np.clip((goal - hand) / 0.1, -1, 1)
            before = len(seen)
            obs, reward, _, _, info = env.step(random if policy == "random" else go)
            assert len(seen) == before + 2 and reward == seen[-1][1] + seen[-2][1]
            assert info["score"] == info["success"] == seen[-1][2]
        ends.append(info["success"])
    assert ends[1:] == [1.0, 1.0]
    states, rewards, successes = map(np.array, zip(*seen, strict=True))
    hand, goal = states[:, joints : joints + 3], states[:, joints + 7 : joints + 10]
    np.testing.assert_allclose(states[:, joints + 10 :], goal - hand, atol=1e-6)
    assert (abs(np.linalg.norm(states[:, joints + 3 : joints + 7], axis=1) - 1) < 1e-4).all()  # the rest of the pose
    d = distance(goal, hand)
    clear = abs(d - 0.025) > 1e-6
    assert ((d <= 0.025) == successes)[clear].all() and 0.1 < successes.mean() < 0.9
    np.testing.assert_allclose(rewards[clear], (1 + (d <= 0.025) - np.tanh(5 * d))[clear], atol=1e-5)


def test_reach_starts():
    env = envs.make("ms-reach", seed=0)
    starts = np.array([env.reset()[0] for _ in range(60)], np.float64)
    rest = [0, np.pi / 8, 0, -5 * np.pi / 8, 0, 3 * np.pi / 4, np.pi / 4]
    noise = starts[:, :7] - rest
    assert abs(noise.mean()) < 0.005 and 0.017 < noise.std() < 0.023 and len(np.unique(noise)) == 420
    np.testing.assert_allclose(starts[:, 7:9], 0.04, atol=1e-6)
    np.testing.assert_allclose(starts[:, 9:18], 0, atol=1e-6)
    goals = starts[:, 25:28]
    assert (goals >= [-0.1, -0.1, 0]).all() and (goals <= [0.1, 0.1, 0.3]).all()
    # Kolmogorov-Smirnov at 60 draws: 0.21 is passed by chance once in a hundred times, and the seed is fixed.
    for column, (low, high) in zip(goals.T, ((-0.1, 0.1), (-0.1, 0.1), (0, 0.3)), strict=True):
        gap = abs(np.sort((column - low) / (high - low)) - (np.arange(60) + 0.5) / 60).max()
        assert gap < 0.21
    assert {actor for actor in env._sim.scene.actors if "cube" in actor} == set()


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_cartpole(name):
    env, dense = envs.make(name), envs.make(name.removesuffix("-sparse"))
    seen, total = each_simulator_step(env), 0.0
    for action in some_actions(name, 100)[: (env.reset(seed=4), 100)[1]]:
        _, reward, _, _, info = env.step(action)
        total += reward
        assert info["score"] == pytest.approx(total / 1000, abs=1e-12) and info["success"] == 0.0
    states, rewards, _ = map(np.array, zip(*seen, strict=True))
    np.testing.assert_array_equal(rewards, (np.cos(states[:, 1]) + 1) / 2 > 0.85)
    assert 0 < rewards.mean() < 1 and len(rewards) == 200
    # the same start and the same motion as the dense task
    np.testing.assert_array_equal(
        rollout(env, some_actions(name, 10), 5)[0], rollout(dense, some_actions(name, 10), 5)[0]
    )


def check_push(name):
    from mani_skill.utils.structs.pose import Pose

    env, draw, h = envs.make(name), np.random.default_rng(0), 0.04
    obs, info = env.reset(seed=1)
    obj, goal = obs[28:31], obs[25:28]
    assert info["success"] == 0.0
    np.testing.assert_allclose(obs[31:35], [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose([obj[2], goal[2]], [h, 0.001], atol=1e-6)
    np.testing.assert_allclose(goal[:2], obj[:2] + [0.2, 0], atol=1e-6)
    assert (abs(obj[:2]) <= 0.1).all()
    seen = each_simulator_step(env)
    for i in range(80):
        if i % 20 == 0:
            env.reset(seed=i)
        # Where it is, at the goal, or just where a hand would push it; otherwise the branches are hardly ever met.
        hand = np.array(env._sim.agent.tcp.pose.p[0])
        place = {
            0: hand + [h + 0.005, 0, 0] + draw.normal(0, 0.004, 3),
            1: np.array(env._sim.goal_region.pose.p[0]) + [*draw.normal(0, 0.07, 2), draw.uniform(0.02, 0.08)],
        }.get(i % 3)
        if place is not None:
            # The can is too tall to count while it stands.
            turn = [0.5**0.5, 0.5**0.5, 0, 0] if name == "ms-push-can" else [1.0, 0, 0, 0]
            env._sim.obj.set_pose(Pose.create_from_pq([place.tolist()], [turn]))
        env.step(some_actions(name, 1, i)[0] * (0.1 if i % 3 == 0 else 1))
    states, rewards, successes = map(np.array, zip(*seen, strict=True))
    hand, goal, obj = states[:, 18:21], states[:, 25:28], states[:, 28:31]
    away, d = distance(obj[:, :2], goal[:, :2]), distance(obj - [h + 0.005, 0, 0], hand)
    success, pay = (away < 0.1) & (obj[:, 2] < h + 0.005), 1 - np.tanh(5 * away)
    lift = 1 - np.tanh(5 * abs(obj[:, 2] - h))
    want = np.where(success, 4, 1 - np.tanh(5 * d) + (d < 0.01) * pay * (1 + lift)) / 4
    clear = (abs(d - 0.01) > 1e-6) & (abs(away - 0.1) > 1e-6) & (abs(obj[:, 2] - h - 0.005) > 1e-6)
    np.testing.assert_array_equal(success[clear], successes[clear])
    np.testing.assert_allclose(rewards[clear], want[clear], atol=1e-5)
    assert success.sum() >= 3 and ((d < 0.01) & ~success).sum() >= 3 and (d > 0.05).sum() >= 20 and len(d) == 160
    env.close()


@pytest.mark.parametrize("name", ["ms-push-sponge"])
def test_push(name):
    check_push(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUSH_YCB)
def test_push_all(name):
    check_push(name)


def test_scores():
    hopper, ant = envs.make("ms-hopper-stand"), envs.make("ms-ant-walk")
    cartpole = envs.make("ms-cartpole-balance")
    for env, best in ((hopper, 600), (cartpole, 1000), (ant, None)):
        total, assets = 0.0, {env.reset(seed=1)[1]["asset"]}  # this hopper starts on its foot
        for action in 0.3 * np.random.default_rng(0).uniform(-1, 1, (30, *env.action_space.shape)):
            _, reward, _, _, info = env.step(action)
            total += reward
            assets.add(info["asset"])
            assert info["score"] == (pytest.approx(total / best, abs=1e-12) if best else 0.0) and info["success"] == 0.0
        assert assets == {"real"} and total > 0


# ---- solvable by hand: the inputs mean what the header says ----


def move(env, target, hand, gripper):
    action = np.zeros(env.action_space.shape, np.float32)
    action[:3], action[-1] = np.clip((target - hand) / 0.1, -1, 1), gripper
    return env.step(action)


def pick(env, seed):
    """Above, down, close, carry  -> return, success at the end."""
    obs, _ = env.reset(seed=seed)
    total = closing = 0
    for _ in range(25):
        hand, goal, cube = obs[19:22], obs[26:29], obs[29:32]
        if closing == 0 and np.linalg.norm((hand - cube)[:2]) > 0.01 and hand[2] > cube[2] + 0.02:
            target, gripper = cube + [0, 0, 0.06], 1
        elif closing == 0 and np.linalg.norm(hand - cube) > 0.012:
            target, gripper = cube, 1
        elif closing < 2:
            target, gripper, closing = cube, -1, closing + 1
        else:
            target, gripper = goal + hand - cube, -1
        obs, reward, _, _, info = move(env, target, hand, gripper)
        total += reward
    return total, info["success"]


def test_a_cube_can_be_picked():
    env = envs.make("ms-pick-cube")
    results = [pick(env, seed) for seed in range(4)]
    assert sum(success for _, success in results) >= 3, results
    assert np.mean([total for total, _ in results]) > 22  # a random policy gets about 1.5 of 50


def test_rotation_turns_the_other_way_round():
    env = envs.make("ms-reach-eepose")
    a, b, c, d = env.reset(seed=0)[0][21:25]
    for _ in range(5):
        obs = env.step(np.array([0, 0, 0, 0, 0, 1, 1], np.float32))[0]
    w, x, y, z = obs[21:25]
    # now times the inverse of the start: how it was turned about the z axis of the base
    turned = 2 * np.arctan2(-w * d - x * c + y * b + z * a, w * a + x * b + y * c + z * d)
    assert -0.6 < turned < -0.1  # about 0.07 rad per step, against the sign of the action


# ---- randomness and state ----

# What the engine remembers of the last contacts changes the next episode of the first of these, and what the ant
# feels in its feet at the start: both need the scene to be built anew.
TOUCHY = ["ms-place-sphere", "ms-ant-walk", "ms-pick-cube-eepose"]


def check_seed(name, steps=20):
    actions = some_actions(name, steps)
    used, fresh = envs.make(name, seed=7), envs.make(name, seed=8)
    rollout(used, some_actions(name, min(25, envs.TASKS[name].episode_length), seed=1), seed=3)
    first = rollout(used, actions, seed=5)
    assert_same(first, rollout(fresh, actions, seed=5))
    assert_same(first, rollout(used, actions, seed=5))
    assert_same(rollout(used, actions[:3]), rollout(fresh, actions[:3]))  # the following episodes, too
    assert (rollout(used, actions[:0], seed=6)[0] != first[0][0]).any()
    one, other = envs.make(name, seed=9), envs.make(name, seed=9)
    assert_same(rollout(one, actions[:2]), rollout(other, actions[:2]))
    for env in (used, fresh, one, other):
        env.close()


@pytest.mark.parametrize("name", TOUCHY)
def test_seed_decides_everything(name):
    check_seed(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_seed_decides_everything_everywhere(name):
    check_seed(name)


def test_no_other_generator_is_touched(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it seeds the learner's GPU"))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("it would open the GPU"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fork, seed = torch.random.fork_rng, torch.manual_seed
    env = envs.make("ms-stack-cube", seed=1)
    rollout(env, some_actions("ms-stack-cube", 3))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert torch.random.fork_rng is fork and torch.manual_seed is seed  # as they were


def check_state(name, before=9, after=8):
    env, other, actions = envs.make(name, seed=1), envs.make(name, seed=2), some_actions(name, before + after, seed=3)
    rollout(other, actions[::-1][: before + 2])
    rollout(env, actions[:before], seed=4)
    state = env.get_state()
    assert set(state) == {"seed", "actions", "rng"} and state["actions"].shape == (before, env.action_space.shape[0])

    def go_on(env):
        steps = [env.step(action) for action in actions[before:]]
        draw = env.np_random.random()
        rows = np.array([(s[1], s[3], s[4]["score"], s[4]["success"]) for s in steps])
        return np.stack([s[0] for s in steps] + [env.reset()[0], env.step(actions[0])[0]]), np.append(rows, draw)

    want = go_on(env)
    for target in (env, other, envs.make(name)):
        target.set_state(state)
        assert_same(want, go_on(target))
    state["actions"][:] = 0  # a copy, not a view
    env.close()
    other.close()


@pytest.mark.parametrize("name", ["ms-place-sphere", "ms-hopper-hop", "ms-pick-hammer"])
def test_state_is_restored_exactly(name):
    check_state(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_state_is_restored_exactly_everywhere(name):
    check_state(name)
    check_state(name, before=0)
    check_state(name, before=envs.TASKS[name].episode_length - 8)


def test_state_between_episodes():
    env, other = envs.make("ms-reach", seed=1), envs.make("ms-reach", seed=2)
    other.reset()
    other.set_state(env.get_state())  # nothing was started
    with pytest.raises(gym.error.ResetNeeded):
        other.step(np.zeros(4, np.float32))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    rollout(env, some_actions("ms-reach", 25))
    other.set_state(env.get_state())  # the episode is over
    with pytest.raises(gym.error.ResetNeeded):
        other.step(np.zeros(4, np.float32))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


PROCESS = """
import sys, hashlib, numpy as np, envs
for name in sys.argv[1:]:
    env, digest = envs.make(name), hashlib.sha256()
    digest.update(env.reset(seed=11)[0].tobytes())
    for action in np.random.default_rng(0).uniform(-1, 1, (20, *env.action_space.shape)).astype(np.float32):
        obs, reward = env.step(action)[:2]
        digest.update(obs.tobytes() + np.float64(reward).tobytes())
    print(name, digest.hexdigest())
"""


def check_processes(names):
    one, other = run_python(PROCESS, *names), run_python(PROCESS, *names[::-1])
    assert sorted(one.splitlines()) == sorted(other.splitlines()) and len(one.splitlines()) == len(names)


@pytest.mark.slow
def test_same_numbers_in_other_processes():
    check_processes(TASKS)


# ---- contract ----


def check_contract(name, actions):
    task, env = envs.TASKS[name], envs.make(name)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(task.action_dim, np.float32))
    check_env(env, skip_render_check=True)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
    env.reset(seed=0)
    for t, action in enumerate(actions, start=1):
        obs, reward, terminated, truncated, info = env.step(action)
        assert obs.shape == (task.obs_dim,) and obs.dtype == np.float32 and np.isfinite(obs).all()
        assert type(reward) is float and terminated is False and truncated is (t == task.episode_length)
        assert type(info["score"]) is type(info["success"]) is float
        assert 0 <= info["score"] <= 1 and info["success"] in (0, 1) and info["asset"] == asset(name)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(action)
    env.reset()
    for shape in ((task.action_dim + 1,), (), (1, task.action_dim)):
        with pytest.raises(ValueError, match=f"this task takes \\({task.action_dim},\\)"):
            env.step(np.zeros(shape, np.float32))
    env.close()
    env.close()


@pytest.mark.parametrize("name", ["ms-reach", "ms-pick-cube-so", "ms-pick-banana"])
def test_contract(name):
    check_contract(name, some_actions(name, 25))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_contract_everywhere(name):
    check_contract(name, some_actions(name, envs.TASKS[name].episode_length))


def test_import_is_light():
    heavy = ("torch", "mani_skill", "sapien", "trimesh")
    code = f"import sys, envs.maniskill; envs.label('ms-reach-xarm6'); print([n for n in {heavy} if n in sys.modules])"
    assert run_python(code) == "[]"


def test_missing_package_is_named():
    code = """
import sys
sys.modules["mani_skill"] = None
import envs
try:
    envs.make("ms-reach")
except ImportError as error:
    print(error)
"""
    assert run_python(code).startswith("task 'ms-reach' needs `pip install mani_skill`")


# ---- frames ----


def test_states_need_no_vulkan():
    # A driver that doesn't exist stands for a machine without one, whatever this machine has.
    code = (
        "import envs; env = envs.make('ms-stack-cube'); env.reset(); env.step(env.action_space.sample()); print('ok')"
    )
    assert run_python(code, VK_DRIVER_FILES="/none", VK_ICD_FILENAMES="/none", CUDA_VISIBLE_DEVICES="") == "ok"


def test_no_vulkan_is_one_clear_error():
    code = """
import envs
env = envs.make("ms-reach")
env.reset(seed=0)
for _ in range(2):
    try:
        env.render()
    except RuntimeError as error:
        print(error)
print(env.step(env.action_space.sample())[0].shape)
"""
    lines = run_python(code, VK_DRIVER_FILES="/none", VK_ICD_FILENAMES="/none", CUDA_VISIBLE_DEVICES="").splitlines()
    lines = [line for line in lines if "svulkan2" not in line]  # SAPIEN's own words before it fails
    assert len(lines) == 3 and lines[2] == "(31,)"
    assert all(line.startswith("no frames: ") and "mesa-vulkan-drivers" in line for line in lines[:2])


@pytest.mark.parametrize("name", ["ms-stack-cube", "ms-hopper-hop", "ms-pick-mug"])
def test_the_twin_shows_what_is_and_changes_nothing(name):
    import torch

    env, plain, frame = envs.make(name), envs.make(name), torch.zeros((1, 224, 224, 3), dtype=torch.uint8)
    env._twin = env._build(draws=False)  # all but the drawing, which not every machine can do
    env._twin.render = lambda: frame
    obs, rows = [env.reset(seed=3)[0]], []
    for action in some_actions(name, 12):
        assert env.render().shape == (224, 224, 3) and env.render().dtype == np.uint8
        for kind in ("actors", "articulations"):
            for key, entity in getattr(env._sim.scene, kind).items():
                twin = getattr(env._twin.scene, kind)[key]
                torch.testing.assert_close(twin.pose.raw_pose, entity.pose.raw_pose, rtol=0, atol=1e-6)
                for link, other in zip(getattr(entity, "links", []), getattr(twin, "links", []), strict=True):
                    torch.testing.assert_close(link.pose.raw_pose, other.pose.raw_pose, rtol=0, atol=1e-5)
        ob, reward, _, _, info = env.step(action)
        obs.append(ob)
        rows.append((reward, info["score"], info["success"]))
    assert_same((np.stack(obs), np.array(rows)), rollout(plain, some_actions(name, 12), seed=3))


@pytest.mark.slow  # the first frame of a process takes most of a minute where the CPU draws
def test_frame():
    env = envs.make("ms-stack-cube", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        frame = env.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert frame.shape == (224, 224, 3) and frame.dtype == np.uint8 and frame.std() > 10
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    assert ((red > 100) & (green < 60) & (blue < 60)).any() and ((green > 90) & (red < 70) & (blue < 70)).any()


# ---- assets ----


def test_assets_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    assert {name for name in TASKS if asset(name) == "stand-in"} == {n for n in TASKS if envs.TASKS[n].needs_download}
    for name, file in {
        "ms-pick-cube-xarm6": "robots/xarm6/xarm6_robotiq.urdf",
        "ms-anymal-reach": "robots/anymal_c/urdf/anymal.urdf",
        "ms-push-apple": "assets/mani_skill2_ycb/models/013_apple/collision.ply",
    }.items():
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True)
        path.touch()
        assert asset(name) == "real"
    assert asset("ms-pick-apple") == asset("ms-reach-xarm6") == "real" and asset("ms-pick-cup") == "stand-in"
    assert asset("walker-walk") == "real"


@pytest.mark.parametrize(
    "name, command", [("ms-pick-fork", "ycb"), ("ms-reach-xarm6", "xarm6"), ("ms-anymal-reach", "anymal_c")]
)
def test_stand_ins_can_be_refused(name, command, monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    monkeypatch.setenv("NEWT_REQUIRE_REAL_ASSETS", "1")
    with pytest.raises(FileNotFoundError) as error:
        envs.make(name)
    assert f"python -m mani_skill.utils.download_asset {command}" in str(error.value) and "\n" not in str(error.value)
    envs.make("ms-reach").close()  # needs nothing


def test_stand_ins_are_announced_once(monkeypatch, tmp_path):
    from envs import maniskill_assets

    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    maniskill_assets._warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("ms-pick-fork", "ms-push-can", "ms-reach"):
            envs.make(name).close()
    told = [str(w.message) for w in caught if "stand-in" in str(w.message)]
    assert len(told) == 1 and "download_asset" in told[0]


REAL = """
import sys, hashlib, numpy as np, envs
for name in sys.argv[1:]:
    env, digest = envs.make(name), hashlib.sha256()
    obs, info = env.reset(seed=1)
    for action in np.random.default_rng(0).uniform(-1, 1, (10, *env.action_space.shape)).astype(np.float32):
        digest.update(env.step(action)[0].tobytes())
    print(name, info["asset"], digest.hexdigest())
"""


def test_files_on_disk_are_used(tmp_path):
    """Our own files, laid out as a download is, play the part of the real ones."""
    names, data = ["ms-pick-hammer", "ms-reach-xarm6", "ms-anymal-reach", "ms-push-can"], tmp_path / "full/data"
    write("ms-push-can", data)
    facts = data / "assets/mani_skill2_ycb/info_pick_v0.json"
    can = facts.read_text()
    write("ms-pick-hammer", data)
    facts.write_text(can[:-1] + ", " + facts.read_text()[1:])
    write("ms-reach-xarm6", data / "robots/xarm6")
    for end in ("urdf", "srdf"):
        (data / f"robots/xarm6/xarm6.{end}").rename(data / f"robots/xarm6/xarm6_robotiq.{end}")
    write("ms-anymal-reach", data / "robots/anymal_c/urdf")
    (data / "robots/anymal_c/urdf/anymal_c.urdf").rename(data / "robots/anymal_c/urdf/anymal.urdf")
    real = run_python(REAL, *names, MS_ASSET_DIR=str(tmp_path / "full"), NEWT_REQUIRE_REAL_ASSETS="1")
    ours = run_python(REAL, *names, MS_ASSET_DIR=str(tmp_path / "empty"))
    assert real.count(" real ") == ours.count(" stand-in ") == 4
    assert real.replace(" real ", " stand-in ") == ours


HALF = {  # published half extents, metres, with the scale applied
    "ms-pick-apple": (0.0379, 0.0379, 0.0361), "ms-pick-banana": (0.0352, 0.0994, 0.0189),
    "ms-pick-can": (0.0346, 0.0346, 0.0513), "ms-pick-fork": (0.0992, 0.0134, 0.0081),
    "ms-pick-spoon": (0.0984, 0.0215, 0.0106), "ms-pick-knife": (0.1075, 0.0102, 0.0080),
    "ms-pick-hammer": (0.0643, 0.1690, 0.0167), "ms-pick-screwdriver": (0.1086, 0.0180, 0.0176),
    "ms-pick-mug": (0.0535, 0.0475, 0.0407), "ms-pick-orange": (0.0365, 0.0369, 0.0364),
    "ms-pick-tennis-ball": (0.0339, 0.0340, 0.0333), "ms-pick-baseball": (0.0370, 0.0368, 0.0369),
    "ms-pick-sponge": (0.0405, 0.0561, 0.0102), "ms-push-pear": (0.0342, 0.0481, 0.0330),
    "ms-pick-rubiks-cube": (0.0296, 0.0302, 0.0291), "ms-pick-cup": (0.0297, 0.0294, 0.0315),
    "ms-pick-golf-ball": (0.0217, 0.0217, 0.0213), "ms-pick-soccer-ball": (0.0322, 0.03195, 0.0311),
}  # fmt: skip
PIECES = {"banana": 6, "fork": 3, "spoon": 3, "knife": 2, "hammer": 2, "screwdriver": 2, "mug": 18, "pear": 2,
          "cup": 15}  # fmt: skip


@pytest.mark.parametrize("name", [*HALF])
def test_object_stand_ins_have_the_published_size(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    half, env = np.array(HALF[name]), envs.make(name)
    obs, info = env.reset(seed=0)
    assert info["asset"] == "stand-in"
    if name.startswith("ms-pick"):
        assert obs[34] == pytest.approx(half[2], rel=0.02)  # it lies on the table
    body = env._sim.obj._objs[0].components[0]
    shapes = body.collision_shapes
    assert len(shapes) == PIECES.get(name[8:], 1)
    points = np.concatenate(
        [s.local_pose.to_transformation_matrix()[:3, :3] @ (s.vertices * s.scale).T + s.local_pose.p[:, None]
         for s in shapes], axis=1
    )  # fmt: skip
    np.testing.assert_allclose([points.min(1), points.max(1)], [-half, half], rtol=0.02)
    box = 8 * half.prod() * 1000
    assert 0.03 * box < body.mass < 1.001 * box
    if name[8:] in ("apple", "orange", "tennis-ball", "baseball", "golf-ball", "soccer-ball"):
        assert body.mass == pytest.approx(np.pi / 6 * box, rel=0.1)  # an ellipsoid
    elif name[8:] in ("sponge", "rubiks-cube"):
        assert body.mass == pytest.approx(box, rel=0.01)
    elif name[8:] == "can":
        assert body.mass == pytest.approx(np.pi / 4 * box, rel=0.03)
    env.close()


def mean_return(name, policy, episodes):
    env, returns, draw = envs.make(name, seed=0), [], np.random.default_rng(0)
    for _ in range(episodes):
        env.reset()
        shape, total = (envs.TASKS[name].episode_length, *env.action_space.shape), 0.0
        for action in draw.uniform(-1, 1, shape) if policy == "random" else np.zeros(shape):
            total += env.step(action)[1]
        returns.append(total)
    return np.mean(returns)


def test_anymal_stand_in(monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    env = envs.make("ms-anymal-reach")
    robot, legs = env._sim.agent.robot, ("LF", "RF", "LH", "RH")
    assert [j.name for j in robot.active_joints] == [f"{leg}_{j}" for j in ("HAA", "HFE", "KFE") for leg in legs]
    assert sum(float(link.mass[0]) for link in robot.links) == pytest.approx(52.1, abs=0.1)
    env.reset(seed=0)
    heights = [float(robot.links_map[f"{leg}_FOOT"].pose.p[0, 2]) for leg in legs]
    feet = np.array([np.array(robot.links_map[f"{leg}_FOOT"].pose.p[0, :2]) for leg in legs])
    assert max(heights) - min(heights) < 0.02 and max(heights) < 0.1  # it stands on the ground, level ...
    np.testing.assert_array_equal(np.sign(feet), [[1, 1], [1, -1], [-1, 1], [-1, -1]])  # ... one foot in each corner
    np.testing.assert_allclose(abs(feet), abs(feet).mean(0).repeat(4).reshape(2, 4).T, atol=0.02)
    assert mean_return("ms-anymal-reach", "zero", 3) == pytest.approx(65, abs=2)  # recorded with the real one: 64.5


def test_xarm6_stand_in(monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    robot = envs.make("ms-reach-xarm6")._sim.agent.robot
    fingers = "left_outer_knuckle left_inner_knuckle right_outer_knuckle right_inner_knuckle left_inner_finger"
    names = [f"joint{i}" for i in range(1, 7)] + [f"{f}_joint" for f in f"{fingers} right_inner_finger".split()]
    assert [joint.name for joint in robot.active_joints] == names
    # Recorded with the real robot, zero actions: 24.9 +- 6.6 for one episode, and 3.20 +- 0.38.
    assert mean_return("ms-reach-xarm6", "zero", 6) == pytest.approx(24.9, abs=8)
    assert mean_return("ms-pick-cube-xarm6", "zero", 4) == pytest.approx(3.2, abs=0.4)


@pytest.mark.slow
def test_robot_stand_ins_behave_like_the_real_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))  # recorded with the real ones, 20 random episodes:
    assert mean_return("ms-anymal-reach", "random", 60) == pytest.approx(43.2, abs=6)  # 43.2 +- 10.1
    assert mean_return("ms-reach-xarm6", "random", 60) == pytest.approx(12.2, abs=3)  # 12.2 +- 6.1
