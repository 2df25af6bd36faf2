"""The agent's settings, and what they may be. Apart from newt.py, so that `--help` need not wait for torch.

Test: pytest tests/test_newt.py
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from command import check_fields

FEATURES = 768  # numbers of an image's feature, of every encoder (vision.py)


@dataclass(frozen=True)
class Config:
    """Everything that defines the agent. Defaults are the published multitask settings."""

    size: Literal["XS", "S", "B", "L", "XL"] = "L"
    """network size: S, B, L, XL as published (2, 5, 20, 80 million parameters); XS for laptops (0.6 million)"""
    obs: Literal["state", "rgb", "state+rgb"] = "state"
    """what the agent observes: the simulator's state, a frozen encoder's feature of a frame, or both (published)"""
    obs_dim: int = 128
    """states are zero-padded to this many numbers; the largest of the 200 tasks has 128. Without states: 0"""
    image_encoder: Literal["lite0", "dinov2"] = "lite0"
    """frozen network that makes features of frames: lite0, which is installed, or dinov2 (published), for which
    --image-weights is needed"""
    image_hash: tyro.conf.Suppress[str] = ""
    """fingerprint of that network's weights; found out, not given"""
    frames: Literal["fast", "full"] = "fast"
    """how MuJoCo draws for the encoder; fast: without shadows, reflections and multisampling, ten times cheaper"""
    action_dim: int = 16
    """actions are padded to this many numbers; the largest of the 200 tasks has 12"""
    obs_norm: Literal["none", "demos"] = "none"
    """demos: each task's states are standardised by mean and standard deviation of its demonstrations, or of those of
    other tasks with the same body. A cube that moves by centimetres is as visible then as a joint that moves by radians
    (results/imitation.csv)"""
    task_dim: int = 384
    """size of the sentence embedding that tells the tasks apart (published: CLIP, 512); 0 for no language"""
    num_bins: int = 101
    """two-hot bins of reward and return, evenly spaced on [-10, 10] in symlog units"""

    batch_size: int = 1024
    """slices per update"""
    horizon: int = 3
    """transitions per slice, and steps that the planner looks ahead"""
    lr: float = 3e-4
    """learning rate of both Adam optimisers"""
    enc_lr_scale: float = 0.3
    """the encoder's learning rate is lr times this"""
    warmup_updates: int = 5000
    """pretraining's learning rate grows linearly from 0 over this many updates"""
    grad_clip: float = 20.0
    """gradient norm is clipped to this, in each optimiser by itself"""
    rho: float = 0.5
    """a loss t steps into the slice weighs rho^t"""
    tau: float = 0.01
    """the target Q ensemble moves this fraction towards the online one per update; also the rate of q_scale"""
    td_target: Literal["ema", "online"] = "ema"
    """which Q ensemble the TD target uses; "online" is what the published code really computes when compiled"""
    consistency_coef: float = 20.0
    """weight of the latent prediction loss"""
    reward_coef: float = 0.1
    """weight of the reward loss"""
    value_coef: float = 0.1
    """weight of the value loss"""
    bc_coef: float = 1.0
    """weight of imitating the batch's actions in pretraining"""
    online_bc_coef: float = 1.0
    """weight of imitating the batch's actions online, in guided tasks"""
    entropy_coef: float = 1e-4
    """weight of the policy's entropy bonus"""

    num_samples: int = 512
    """plans per decision and iteration"""
    num_elites: int = 64
    """best plans that refit the Gaussian"""
    num_pi: int = 24
    """plans that follow the policy prior"""
    iterations: int = 6
    """refits per decision"""
    warm_iterations: int = 0
    """refits of the decisions after an episode's first, which start from the plan before; 0: as many as at the first"""
    temperature: float = 0.5
    """elites weigh exp(temperature * return)"""
    std_min: float = 0.05
    """smallest standard deviation of the planning Gaussian"""
    std_max: float = 2.0
    """initial and largest standard deviation of the planning Gaussian"""
    elite: Literal["sample", "mean", "sure"] = "sample"
    """which action a decision executes in evaluation: a weighted random elite's (published, and while exploring), the
    Gaussian's mean, or that of the elite that is most surely better than the policy's own plan, else the policy's"""
    caution: float = 2.0
    """how sure: standard deviations of all that the model says of a plan, by which it must beat the policy's"""
    constraint_start: int = 2_000_000
    """until this many environment steps the initial Gaussian is the policy's (constrained planning), in guided tasks"""
    constraint_duration: int = 10_000_000
    """environment steps over which that pull goes from 1 to 0"""

    @property
    def feature_dim(self) -> int:
        """Numbers of an observation that are an image's feature; they come last."""
        return 0 if self.obs == "state" else FEATURES

    @property
    def input_dim(self) -> int:
        """Numbers of an observation: state, then feature."""
        return self.obs_dim + self.feature_dim

    @property
    def features(self) -> str:
        """Which features it reads, in words: only the same ones mean the same."""
        return f"{self.image_encoder} {self.image_hash} {self.frames}" if self.feature_dim else ""


RANGES = {  # of every number above: smallest and largest value
    "action_dim": (1, 100_000),
    **dict.fromkeys(("obs_dim", "task_dim"), (0, 100_000)),
    "num_bins": (2, 100_000),
    "batch_size": (1, 1_000_000),
    "horizon": (1, 1000),
    "lr": (1e-12, 1),
    "enc_lr_scale": (0, 1000),
    "grad_clip": (1e-6, 1e9),
    **dict.fromkeys(("rho", "tau"), (0, 1)),
    **dict.fromkeys(("consistency_coef", "reward_coef", "value_coef", "bc_coef", "online_bc_coef"), (0, 1e6)),
    "entropy_coef": (0, 1e6),
    **dict.fromkeys(("num_samples", "num_elites"), (1, 100_000)),
    "num_pi": (2, 100_000),
    "iterations": (1, 1000),
    "warm_iterations": (0, 1000),
    "temperature": (0, 1e4),
    **dict.fromkeys(("std_min", "std_max", "caution"), (0, 1000)),
    **dict.fromkeys(("warmup_updates", "constraint_start", "constraint_duration"), (0, 10**15)),
}


def check(cfg: Config) -> None:
    """Raise ValueError, one line, for settings that cannot work."""
    check_fields(cfg, RANGES)
    # One number is left to an agent without states: what tells the end of own tasks (buffer.py).
    if (cfg.obs == "rgb" and cfg.obs_dim > 1) or (cfg.obs != "rgb" and cfg.obs_dim < 1):
        raise ValueError(f"obs_dim is {cfg.obs_dim}, which doesn't go with obs {cfg.obs}")
    if not cfg.num_pi < cfg.num_samples or cfg.num_elites > cfg.num_samples:
        raise ValueError(
            f"planning needs num_pi < num_samples and num_elites <= num_samples, got num_pi {cfg.num_pi}, "
            f"num_samples {cfg.num_samples}, num_elites {cfg.num_elites}"
        )
    if cfg.std_min > cfg.std_max:
        raise ValueError(f"std_min {cfg.std_min} is above std_max {cfg.std_max}")
