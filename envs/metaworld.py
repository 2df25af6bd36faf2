"""Meta-World: 49 tasks of one robot arm, the package's own definitions, new object and goal positions at every reset.

    obs    = [now (18), the same one simulator step earlier (18), goal (3)]     18 = hand 3, gripper 1, objects 14
    reward = r(first simulator step) + r(second)                                the same action twice; 0..10 each
    score  = success = the package's success flag after the second step         not latched: it can be lost again

Task mw-X is the package's X-v3 with its default (`v2`) reward; its scripted experts (metaworld.policies) act on obs.
Source: Meta-World (arXiv 1910.10897), package metaworld 3.1.1; action repeat, length, camera as in Newt's benchmark.
Differs from upstream: Newt has a fork with the older -v2 tasks. Goals, rewards and success are the same but for a small
gripper term in button-press-topdown-wall; WELD_TORQUE_SCALE brings the dynamics closer.
Test: pytest tests/test_envs.py -k mw; pytest tests/test_metaworld_state.py
"""

import copy

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs.camera import Camera

# How firmly the weld holds the hand's orientation. 3.75 is the value of the published benchmark's fork, 5.0 that of the
# package (a slightly stiffer hand): use that one to compare with results of the package.
WELD_TORQUE_SCALE = 3.75
CAMERA = "corner4"  # what Newt gets by moving corner2 to (0.75, 0.075, 0.7)
# How the player goes on after its first success, in turn. Many experts keep moving then, and lose it again.
WAYS = (
    "position",  # hold the hand where it succeeded
    "zero",  # no motion, gripper as it was
    "while",  # no motion only while it is a success, the expert again when that is lost
    "continue",  # the expert as it is
    "repeat",  # the last action again
)


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. Raises ImportError without metaworld."""
    return MetaWorld(task, seed, render_mode)


class MetaWorld(gym.Env):
    """One task. What the wrapper adds to the package is in the header, what it promises in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # an agent step is 0.025 s

    def __init__(self, task, seed: int, render_mode: str | None):
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self._mujoco = mujoco
        self._env = ALL_V3_ENVIRONMENTS[task.name.removeprefix("mw-") + "-v3"]()
        self._env._partially_observable = False  # show the goal
        del self._env.sawyer_observation_space  # cached while the goal was hidden: it would clip the goal to zero
        self._env._freeze_rand_vec = False  # new positions at every reset ...
        self._env.seeded_rand_vec = True  # ... drawn from the environment's np_random, not numpy's global generator
        self._env._set_task_called = True  # else step refuses: the package wants one of its fixed lists of goals
        self._env.model.eq_data[self._env.model.eq_type == mujoco.mjtEq.mjEQ_WELD, 10] = WELD_TORQUE_SCALE
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode = render_mode
        self._camera = None
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._steps = self._length  # as after an episode: reset comes first
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self._env.np_random = self.np_random  # the package's own reset ignores its seed
        self._env.reset()
        # One simulator step at rest: the package's reset observation is not clipped and has no earlier step in it.
        obs, _, _, _, info = self._env.step(np.zeros(4, np.float32))
        self._steps = 0
        success = float(info["success"])
        return obs.astype(np.float32), {"score": success, "success": success}

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != (4,):
            raise ValueError(f"action has shape {action.shape}, this task takes (4,)")
        reward = 0.0
        for _ in range(self._repeat):
            obs, simulator_reward, _, _, info = self._env.step(action)
            reward += float(simulator_reward)
        self._steps += 1
        success = float(info["success"])
        info = {"score": success, "success": success}
        return obs.astype(np.float32), reward, False, self._steps == self._length, info

    def get_state(self) -> dict:
        """Everything the future depends on, as copies: the simulator, what a reset moved in its model, the package."""
        model, data, kind = self._env.model, self._env.data, self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(model, kind))
        self._mujoco.mj_getState(model, data, physics, kind)
        state = {"physics": physics, "body_pos": model.body_pos.copy(), "site_pos": model.site_pos.copy(),
                 "steps": self._steps, "rng": self.np_random.bit_generator.state}  # fmt: skip
        for name, value in vars(self._env).items():
            # Some of the package's positions are windows into the simulator, such as obj_init_pos of door-lock, which
            # thus moves with the lock. A copy would stand still; restoring the simulator is enough.
            if isinstance(value, (int, float, np.number, np.ndarray)) and not (
                np.may_share_memory(value, data.xpos) or np.may_share_memory(value, data.site_xpos)
            ):
                state[f"package.{name}"] = copy.deepcopy(value)
        return state

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task."""
        if self._env.curr_path_length == 0:  # the first reset opens the windows mentioned above
            self.reset()
        for name, value in state.items():
            if name.startswith("package."):
                setattr(self._env, name.removeprefix("package."), copy.deepcopy(value))
        model, data = self._env.model, self._env.data
        model.body_pos[:], model.site_pos[:] = state["body_pos"], state["site_pos"]
        self._mujoco.mj_setState(model, data, state["physics"], self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._mujoco.mj_fwdPosition(model, data)  # for a frame before the next step
        self._steps = state["steps"]
        self.np_random.bit_generator.state = state["rng"]

    def render(self) -> np.ndarray:
        self._camera = self._camera or Camera(self._env.model, self._env.model.camera(CAMERA).id, self.frames)
        return self._camera.frame(self._env.data)[::-1].copy()  # this camera hangs upside down

    def close(self):
        if self._camera:
            self._camera.close()
            self._camera = None


def player(env, obs, number):
    """Yields what the package's scripted expert does, asked once per agent step, in way number % 5 of WAYS."""
    from metaworld.policies import ENV_POLICY_MAP

    expert, way = ENV_POLICY_MAP[env.name.removeprefix("mw-") + "-v3"](), WAYS[number % len(WAYS)]
    held, success, last = None, False, None  # held: the hand's position at the first success
    while True:
        action = np.clip(expert.get_action(obs.astype(np.float64)), -1, 1)
        if held is not None:
            gripper = last[3]  # action: hand motion 3, gripper 1
            if way == "position":
                action = np.append(np.clip(10 * (held - obs[:3]), -1, 1), gripper)
            elif way == "zero" or (way == "while" and success):
                action = np.append(np.zeros(3), gripper)
            elif way == "repeat":
                action = last
        last = action.astype(np.float32)
        obs, info = yield last
        success = info["success"]
        if success and held is None:
            held = obs[:3].astype(np.float64)
