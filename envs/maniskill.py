"""ManiSkill: 36 tasks of arms, a robot dog and simple walkers, and 11 held-out ones; the package's own scenes.

    reward = r(first env step) + r(second)       the same action twice; r is the package's normalized dense reward
    score  = success at the last step            ms-cartpole-*: return so far / 1000; ms-hopper-*: return so far / 600
                                                 ms-ant-*: always 0, the package defines no success there
    arms   = 4 inputs: hand shifted in x, y, z (+-1: 0.1 m from where it is) and gripper; 7: turned as well (+-1: 0.1
             rad the other way round, the package's sign); a positive gripper input opens the Panda's fingers
    reset  = builds the scene anew (5 to 25 ms)  the engine keeps contacts of the past, and nothing else clears them
    state  = the episode's seed and its actions  set_state plays them again, for the same reason: it takes as long
    asset  = real or stand-in, in every info     some objects and robots are no part of the package: maniskill_assets.py

Ours, as the package lacks them: Reach, PushYCB, sparse cartpoles, each a subclass of the package's next relative.
Source: ManiSkill 3 (arXiv 2410.00425), packages mani_skill 3.0.1 and sapien 3.0.3; action repeat, lengths, scores and
the tasks of our own as in Newt's benchmark.
Differs from upstream: seeds go through reset(seed=), and no contact forces of the last episode are seen in the first
observation. The simulation has no renderer, so states need no Vulkan; frames are drawn by a twin that gets its poses.
Test: pytest tests/test_maniskill.py
"""

import functools
import logging
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs import maniskill_assets as assets

_POS, _POSE, _JOINTS = "pd_ee_delta_pos", "pd_ee_delta_pose", "pd_joint_delta_pos"
SCENES = {  # what follows "ms-" -> the package's environment or a key of _own_scenes, control mode, arguments
    "ant-walk": ("MS-AntWalk-v1", _JOINTS, {}),
    "ant-run": ("MS-AntRun-v1", _JOINTS, {}),
    "cartpole-balance": ("MS-CartpoleBalance-v1", _JOINTS, {}),
    "cartpole-swingup": ("MS-CartpoleSwingUp-v1", _JOINTS, {}),
    "cartpole-balance-sparse": ("BalanceSparse", _JOINTS, {}),
    "cartpole-swingup-sparse": ("SwingUpSparse", _JOINTS, {}),
    "hopper-stand": ("MS-HopperStand-v1", _JOINTS, {}),
    "hopper-hop": ("MS-HopperHop-v1", _JOINTS, {}),
    "anymal-reach": ("AnymalC-Reach-v1", _JOINTS, {}),
    "pick-cube": ("PickCube-v1", _POS, {}),
    "pick-cube-eepose": ("PickCube-v1", _POSE, {}),
    "pick-cube-so": ("PickCubeSO100-v1", _JOINTS, {}),
    "pick-cube-xarm6": ("PickCube-v1", _POS, {"robot_uids": "xarm6_robotiq"}),
    "poke-cube": ("PokeCube-v1", _POSE, {}),
    "push-cube": ("PushCube-v1", _POSE, {}),
    "pull-cube": ("PullCube-v1", _POSE, {}),
    "pull-cube-tool": ("PullCubeTool-v1", _POSE, {}),
    "stack-cube": ("StackCube-v1", _POSE, {}),
    "place-sphere": ("PlaceSphere-v1", _POS, {}),
    "lift-peg": ("LiftPegUpright-v1", _POSE, {}),
    "reach": ("Reach", _POS, {}),
    "reach-eepose": ("Reach", _POSE, {}),
    "reach-xarm6": ("Reach", _POS, {"robot_uids": "xarm6_robotiq"}),
}


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make.

    Raises ImportError without mani_skill, FileNotFoundError if NEWT_REQUIRE_REAL_ASSETS=1 and the task lacks them.
    """
    return ManiSkill(task, seed, render_mode)


class ManiSkill(gym.Env):
    """One task. What the wrapper adds to the package is in the header, what it promises in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # agent steps last 0.1 s; 0.05 for the ant

    def __init__(self, task, seed: int, render_mode: str | None):
        self._name, self._asset = task.name, assets.require(task.name)
        self._sim, self._twin = self._build(draws=False), None
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode = render_mode
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._steps, self._return = self._length, 0.0  # as after an episode: reset comes first
        self._seed, self._actions = -1, []  # -1: no episode was started
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def _build(self, draws: bool):
        with _building(self._name, self._asset, draws):
            scene, control_mode, arguments = _scene(self._name)
            size = {"width": 224, "height": 224}
            return scene(
                obs_mode="state",
                control_mode=control_mode,
                render_mode="rgb_array" if draws else None,
                sim_backend="physx_cpu",
                render_backend="gpu" if draws else "none",  # falls back to the CPU
                reconfiguration_freq=0,  # _start rebuilds, always
                sensor_configs=size,
                human_render_camera_configs=size,
                **arguments,
            )

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self._start(int(self.np_random.integers(2**31)))

    def _start(self, seed: int):
        with _building(self._name, self._asset, draws=False):
            obs, info = self._sim.reset(seed=[seed], options={"reconfigure": True})
        self._seed, self._actions = seed, []
        self._steps, self._return = 0, 0.0
        return _flat(obs), self._info(info)

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.array(action, np.float32)  # a copy, to play again
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        reward = 0.0
        for _ in range(self._repeat):
            obs, simulator_reward, _, _, info = self._sim.step(action)
            reward += float(simulator_reward)
        self._actions.append(action)
        self._steps += 1
        self._return += reward
        return _flat(obs), reward, False, self._steps == self._length, self._info(info)

    def _info(self, info: dict) -> dict:
        success = score = float(info.get("success", 0.0))
        for body, best in (("cartpole", 1000), ("hopper", 600)):
            if body in self._name:
                score = self._return / best
        return {"score": score, "success": success, "asset": self._asset}

    def get_state(self) -> dict:
        """What the past was: all that the future depends on."""
        actions = np.array(self._actions, np.float32).reshape(-1, *self.action_space.shape)
        return {"seed": self._seed, "actions": actions, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task.

        Takes as long as the episode took to get there.
        """
        if state["seed"] < 0:
            self._steps, self._return, self._seed, self._actions = self._length, 0.0, -1, []
        else:
            self._start(state["seed"])
            for action in state["actions"]:
                self.step(action)
        self.np_random.bit_generator.state = state["rng"]

    def render(self) -> np.ndarray:
        if self._twin is None:
            try:
                self._twin = self._build(draws=True)
            except RuntimeError as error:  # no driver, an old one, no device: all the same to the user
                why = " ".join(str(error).split())
                raise RuntimeError(
                    f"no frames: Vulkan doesn't start: {why}. On Debian (13, or 12 with its backports) or Ubuntu "
                    f"(24.04 or later): `apt-get install mesa-vulkan-drivers libvulkan1`, or a GPU with its "
                    "own Vulkan driver"
                ) from error
        self._twin.scene.set_sim_state(self._sim.scene.get_sim_state())
        return self._twin.render()[0].cpu().numpy()

    def close(self):
        for scene in filter(None, (self._sim, self._twin)):
            scene.close()
        self._sim = self._twin = None


def _flat(obs) -> np.ndarray:
    """(1, obs_dim) tensor  ->  (obs_dim,) float32."""
    return np.array(obs[0], np.float32)


class _Nothing:
    """In the place of a material, which SAPIEN can't make without Vulkan. Takes whatever one would."""

    def __init__(self, *_, **attributes):
        self.__dict__.update(attributes)

    def __getattr__(self, name: str):
        if name.startswith("set_"):
            return lambda *_, **__: None
        raise AttributeError(name)


class _NoTexture(_Nothing):
    """In the place of a texture. A class of its own: SAPIEN asks which of the two it has."""


@functools.cache
def _package() -> SimpleNamespace:
    """The modules in which _building puts other things in place. Imported once, and quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAPIEN misses the system's libvulkan
        import mani_skill.envs.sapien_env
        import sapien.pysapien.render
        import sapien.wrapper.urdf_loader
        import torch
        from mani_skill.utils.building import _mjcf_loader

    mani_skill.logger.setLevel(logging.ERROR)  # it complains about its own scenes, each time
    warnings.filterwarnings("ignore", ".*precision lowered by casting")  # and Gymnasium about its action spaces
    drawing = sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader, _mjcf_loader
    return SimpleNamespace(torch=torch, base=mani_skill.envs.sapien_env, drawing=drawing)


@contextmanager
def _building(name: str, kind: str, draws: bool):
    """Inside this block the package can build a scene: wherever it would do harm, it finds something else.

    Renderer    without frames, materials and textures are nothing: no Vulkan is needed, and none of its memory
    Random      the package seeds and restores every CUDA device; here it is the CPU's generator alone
    Garbage     a full collection per scene would take ten times as long as the scene
    Stand-ins   files that exist inside this block only
    """
    package = _package()
    torch = package.torch
    swaps = [
        (torch.random, "fork_rng", functools.partial(torch.random.fork_rng, devices=[])),
        (torch, "manual_seed", lambda seed: torch.default_generator.manual_seed(int(seed))),
        (package.base, "gc", SimpleNamespace(collect=lambda: None)),
    ]
    if not draws:
        swaps += [(module, "RenderMaterial", _Nothing) for module in package.drawing]
        swaps += [(module, "RenderTexture2D", _NoTexture) for module in package.drawing]
    with tempfile.TemporaryDirectory() as folder:
        if kind == "stand-in":
            swaps += assets.write(name, Path(folder))
        before = [getattr(owner, attribute) for owner, attribute, _ in swaps]
        try:
            for owner, attribute, value in swaps:
                setattr(owner, attribute, value)
            yield
        finally:
            for (owner, attribute, _), value in zip(swaps, before, strict=True):
                setattr(owner, attribute, value)


def _scene(name: str) -> tuple[type, str, dict]:
    """Class, control mode and arguments of a task's scene."""
    thing = assets.ycb(name)
    if thing:
        scene = "PickYCB" if name.startswith("ms-pick") else "PushYCB"
        control_mode, arguments = _POSE, {"model": assets.YCB[thing][0]}
    else:
        scene, control_mode, arguments = SCENES[name.removeprefix("ms-")]
    from mani_skill.utils.registration import REGISTERED_ENVS

    # The classes and not gym.make, which would ask on the terminal whether to download what a stand-in replaces.
    return _own_scenes().get(scene) or REGISTERED_ENVS[scene].cls, control_mode, arguments


@functools.cache
def _own_scenes() -> dict[str, type]:
    """Scenes that the package lacks. In a function, as the package is imported when a task is made."""
    import sapien
    import torch
    from mani_skill.envs.tasks.control.cartpole import CartpoleBalanceEnv, CartpoleSwingUpEnv
    from mani_skill.envs.tasks.tabletop.pick_cube import PickCubeEnv
    from mani_skill.envs.tasks.tabletop.pick_single_ycb import PickSingleYCBEnv
    from mani_skill.envs.tasks.tabletop.push_cube import PushCubeEnv
    from mani_skill.utils.building import actors
    from mani_skill.utils.scene_builder.table import TableSceneBuilder
    from mani_skill.utils.structs.pose import Pose

    class Sparse:
        """Paid only while the pole is within 45.6 degrees of upright."""

        def compute_dense_reward(self, obs, action, info):
            return ((self.pole_angle_cosine + 1) / 2 > 0.85).float()

    class BalanceSparse(Sparse, CartpoleBalanceEnv):
        pass

    class SwingUpSparse(Sparse, CartpoleSwingUpEnv):
        pass

    class Reach(PickCubeEnv):
        """PickCube without the cube: the hand itself goes to the marker."""

        def _load_scene(self, options):
            self.table_scene = TableSceneBuilder(self, robot_init_qpos_noise=self.robot_init_qpos_noise)
            self.table_scene.build()
            self.goal_site = actors.build_sphere(
                self.scene,
                radius=self.goal_thresh,
                color=[0, 1, 0, 1],
                name="goal_site",
                body_type="kinematic",
                add_collision=False,
                initial_pose=sapien.Pose(),
            )
            self._hidden_objects.append(self.goal_site)

        def _initialize_episode(self, env_idx, options):
            self.table_scene.initialize(env_idx)
            size = torch.tensor([0.2, 0.2, 0.3])
            goal = torch.rand((len(env_idx), 3)) * size - torch.tensor([0.1, 0.1, 0.0])
            self.goal_site.set_pose(Pose.create_from_pq(goal))

        def _away(self):
            return self.goal_site.pose.p - self.agent.tcp_pose.p

        def _get_obs_extra(self, info):
            hand, goal = self.agent.tcp_pose.raw_pose, self.goal_site.pose.p
            return {"tcp_pose": hand, "goal_pos": goal, "tcp_to_goal_pos": self._away()}

        def evaluate(self):
            return {"success": torch.linalg.norm(self._away(), dim=1) <= self.goal_thresh}

        def compute_dense_reward(self, obs, action, info):  # the parent divides it by 5
            return 5 * (1 + info["success"].float() - torch.tanh(5 * torch.linalg.norm(self._away(), dim=1)))

    class PickYCB(PickSingleYCBEnv):
        """One object instead of one out of all."""

        def __init__(self, model, **arguments):
            self._model = model
            super().__init__(**arguments)

        def _load_scene(self, options):
            self.all_model_ids = np.array([self._model])
            super()._load_scene(options)

    class PushYCB(PushCubeEnv):
        """PushCube with another object. What the parent derives from the cube's size stays that of a 0.08 m cube."""

        cube_half_size = 0.04

        def __init__(self, model, **arguments):
            self._model = model
            super().__init__(**arguments)

        def _load_scene(self, options):
            self.table_scene = TableSceneBuilder(self, robot_init_qpos_noise=self.robot_init_qpos_noise)
            self.table_scene.build()
            builder = actors.get_actor_builder(self.scene, id=f"ycb:{self._model}")
            builder.initial_pose = sapien.Pose(p=[0, 0, self.cube_half_size])
            self.obj = builder.build(name="ycb_object")
            self.goal_region = actors.build_red_white_target(
                self.scene,
                radius=self.goal_radius,
                thickness=1e-5,
                name="goal_region",
                add_collision=False,
                body_type="kinematic",
                initial_pose=sapien.Pose(p=[0, 0, 1e-3]),
            )

    return {scene.__name__: scene for scene in (BalanceSparse, SwingUpSparse, Reach, PickYCB, PushYCB)}
