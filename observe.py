"""What an agent observes: states, features of frames, or both, as one vector [state, feature].

    with environments(agent, names, seed, workers) as vector: ...     a VectorEnv; of an agent that sees, a Seeing one
    obs = padded(agent, env, obs)                                      of a single environment

Without frames nothing here imports anything of images, and the vector is the plain one. With them, the workers draw
after each reset and step, and the learner encodes on its device (vision.py).
Test: pytest tests/test_observe.py
"""

from functools import partial
from pathlib import Path

import machine

import numpy as np
import torch

import envs
import newt
from agent_config import Config
from demo_format import Demos
from envs.vector import Step, VectorEnv


def open_eyes(cfg: Config, weights: Path | None, device: torch.device):
    """The encoder that an agent's settings name, or None if it doesn't see. ValueError, one line: not its weights."""
    if not cfg.feature_dim:
        if weights is not None:
            raise ValueError(f"--image-weights is for agents that see; this one observes the {cfg.obs}")
        return None
    import vision

    eyes = vision.load(cfg.image_encoder, weights, device, machine.cores())
    if cfg.image_hash not in ("", eyes.weights, "published"):
        raise ValueError(f"these weights of {cfg.image_encoder} ({eyes.weights}) are not those that the agent learned "
                         f"with ({cfg.image_hash})")  # fmt: skip
    return eyes


def join(cfg: Config, state: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """[state, feature]: (n, <=O) and (n, F) -> (n, O+F) float32. An agent that only sees gets zeros for a state."""
    out = np.zeros((len(feature), cfg.input_dim), np.float32)
    if cfg.obs != "rgb":
        out[:, : state.shape[1]] = state
    out[:, cfg.obs_dim :] = feature
    return out


STD_MIN = 0.01  # what moves less than this in all demonstrations isn't blown up any further


def statistics(cfg: Config, tasks: list[str], files: dict[str, Demos], known: newt.Agent | None = None) -> torch.Tensor:
    """Mean and standard deviation of each task's observations, (2, S, O+F): 0 and 1 for what is padded.

    Of its demonstrations (files: task -> Demos). Else of what there is of other tasks with the same body, together;
    else 0 and 1. known: an agent that learned with its own, whose tasks keep theirs to the last bit.
    """

    def body(name: str) -> tuple[str, int]:
        return envs.TASKS[name].embodiment, envs.TASKS[name].obs_dim

    def used(name: str) -> list[int]:
        """Columns that aren't padded."""
        state = range(envs.TASKS[name].obs_dim if cfg.obs != "rgb" else 0)
        return [*state, *range(cfg.obs_dim, cfg.input_dim)]

    none = torch.stack([torch.zeros(cfg.input_dim), torch.ones(cfg.input_dim)])  # (2, O+F)
    found, old = {}, {}  # task -> (2, O+F); task -> what `known` has of the first columns, or of all
    for name, file in files.items():
        obs = torch.from_numpy(join(cfg, file.obs, file.feature) if cfg.feature_dim else file.obs)
        found[name] = none.clone()
        found[name][:, used(name)] = torch.stack([obs.mean(0), obs.std(0)])[:, used(name)]
    for i, name in enumerate(known.tasks if known else ()):
        old[name] = known.obs_stats[:, i].cpu()
        if name in envs.TASKS:  # to ask for the sizes of an own task that nobody has named here would run its code
            found[name] = torch.cat([old[name], found.get(name, none)[:, old[name].shape[1] :]], 1)
    stats = none.unsqueeze(1).repeat(1, len(tasks), 1)
    for i, name in enumerate(tasks):
        whole = name in old and old[name].shape[1] == cfg.input_dim
        alike = [] if whole else [name] if name in found else [x for x in found if body(x) == body(name)]
        if alike:
            mean, std = torch.stack([found[other][:, used(name)] for other in alike], 1)
            var = std.square().mean(0) + mean.var(0, unbiased=False)
            stats[:, i, used(name)] = torch.stack([mean.mean(0), var.sqrt().clamp(min=STD_MIN)])
        if name in old:
            stats[:, i, : old[name].shape[1]] = old[name]
    return stats


class Seeing:
    """A VectorEnv whose observations are what an agent sees."""

    def __init__(self, vector: VectorEnv, agent: newt.Agent):
        self.vector, self.cfg, self.eyes = vector, agent.cfg, agent.eyes

    @property
    def episode(self) -> np.ndarray:
        return self.vector.episode

    def reset(self, episode: int | np.ndarray = 0) -> np.ndarray:
        state = self.vector.reset(episode)
        return join(self.cfg, state, self.eyes(self.vector.frames))

    def send(self, action: np.ndarray) -> None:
        self.vector.send(action)

    def recv(self) -> Step:
        step = self.vector.recv()
        obs = join(self.cfg, step.obs, self.eyes(self.vector.frames))
        final, ended = obs.copy(), np.flatnonzero(step.done)
        final[step.dropped] = 0
        if len(ended):
            final[ended] = join(self.cfg, step.final_obs[ended], self.eyes(self.vector.final_frames[ended]))
        return step._replace(obs=obs, final_obs=final)

    def step(self, action: np.ndarray) -> Step:
        self.send(action)
        return self.recv()

    def __enter__(self) -> "Seeing":
        return self

    def __exit__(self, *_) -> None:
        self.vector.close()


def state_dim(cfg: Config, names: list[str]) -> int:
    """Numbers of state that the workers hand over; more than an agent without states reads."""
    return max(envs.TASKS[name].obs_dim for name in names) if cfg.obs == "rgb" else cfg.obs_dim


def environments(
    agent: newt.Agent, names: list[str], seed: int, workers: int | None, blind: bool = False, alike: bool = False
) -> VectorEnv | Seeing:
    """The environments of these tasks as this agent observes them. blind: nobody looks, so nothing is drawn.

    alike: as VectorEnv takes it.
    """
    cfg = agent.cfg
    sizes = (names, seed, workers, state_dim(cfg, names), cfg.action_dim)
    if blind or not cfg.feature_dim:
        return VectorEnv(*sizes, alike=alike)
    make = partial(envs.make, frames=cfg.frames)
    return Seeing(VectorEnv(*sizes, make, "rgb_array", frames=True, alike=alike), agent)


def try_frames(cfg: Config, names: list[str]) -> None:
    """RuntimeError, one line that names what to install, if a suite of these tasks cannot be drawn here."""
    if cfg.feature_dim:
        first = {envs.TASKS[name].domain: name for name in reversed(names)}
        make = partial(envs.make, frames=cfg.frames)
        VectorEnv(list(first.values()), 0, 1, 1000, 1000, make, "rgb_array", frames=True).close()


def padded(agent: newt.Agent, env, obs: np.ndarray, frame: np.ndarray | None = None) -> torch.Tensor:
    """What a single environment shows after this state, (1, O+F), on the agent's device. It draws as the agent says.

    frame: what it shows now, where that was drawn already
    """
    if not agent.cfg.feature_dim:
        x = torch.zeros(1, agent.cfg.obs_dim, device=agent.device)
        x[0, : len(obs)] = torch.as_tensor(obs)
        return x
    if frame is None:
        env.frames = agent.cfg.frames  # counts until the first one is drawn
        frame = env.render()
    return torch.from_numpy(join(agent.cfg, obs[None], agent.eyes(frame[None]))).to(agent.device)
