"""The losses of Newt, each by itself and put together: pure functions that return (scalar, metrics).

Learning (batch: B slices of H transitions, time first; rho_t = 0.5^t normalised over H+1 entries):

    z_0 = h(o_0), z_{t+1} = d(z_t, a_t)                                      latent rollout, gradients flow
    td_t = r_t + gamma_task min_{2 of K} Q_target(h(o_{t+1}), p(h(o_{t+1}))) no gradient
    model loss  = sum_t rho_t [20 |z_{t+1} - h(o_{t+1})|^2 + .1 CE(R(z_t,a_t), r_t) + .1 mean_k CE(Q_k(z_t,a_t), td_t)]
    imitation   = mean_t [(p(h(o_t)) - a_t)^2 - 1e-4 entropy]                        encoder and policy alone, no model
    pretraining = model loss + mean_t rho_t [(p(z_t) - a_t)^2 - 1e-4 entropy]       behaviour cloning, one optimiser
    online      : model loss, then a policy step on the detached z_t with
                  sum_t rho_t [(p(z_t) - a_t)^2 - 1e-4 entropy - mean_{2 of K} Q(z_t, p(z_t)) / S]

S ("q_scale") is the running 5..95 % range of Q. Where a_t ended an episode for good, td_t = r_t, and o_{t+1} is the
absorbing state (buffer.py): its latent is predicted like any other, and worth nothing, so that plans see ends coming.
Papers: Newt (arXiv 2511.19584), TD-MPC2 (arXiv 2310.16828). Where the published code behaves unexpectedly the
difference is named at its place ("Upstream quirk", "Differs from upstream").

Test: pytest tests/test_newt.py tests/test_parity.py
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import world_model as wm
from agent_config import Config
from buffer import Batch
from world_model import Params, Policy, Task

Phase = Literal["imitate", "pretrain", "online"]


def slices(cfg: Config, phase: Phase) -> tuple[int, int]:
    """How many slices a batch has, and of how many transitions.

    Imitation alone needs no more than one: as many actions, from more places.
    """
    return (cfg.batch_size * cfg.horizon, 1) if phase == "imitate" else (cfg.batch_size, cfg.horizon)


def time_weights(horizon: int, rho: float, device=None) -> Tensor:
    """rho_t = rho^t for t = 0..H, normalised to sum 1. (H+1,)"""
    weights = rho ** torch.arange(horizon + 1, device=device)
    return weights / weights.sum()


def td_target(
    params: Params,
    next_obs: Tensor,
    reward: Tensor,
    discount: Tensor,
    task: Task,
    eps: Tensor,
    heads: Tensor,
    bins: Tensor,
    source: Literal["ema", "online"] = "ema",
) -> tuple[Tensor, Tensor]:
    """Latents of what really came next, (T, B, Z), and one-step bootstrapped returns, (T, B). Call without gradients.

    next_obs (T, B, O); reward (T, B); discount (B,) or, 0 where nothing follows, (T, B); eps (T, B, A); heads (2,): the
    minimum of two random heads.
    Upstream quirk: with the published default (compiled) the target call runs the *online* ensemble; source="online"
    reproduces that.
    """
    z = wm.encode(params, next_obs, task)
    action = wm.pi(params, z, task, eps).action
    q_logits = wm.q(params, z, action, task, unless_all(params, heads), part="q_target" if source == "ema" else "q")
    return z, reward + discount * wm.decode(q_logits, bins).amin(0)


def unless_all(params: Params, heads: Tensor) -> Tensor | None:
    """None where the drawn heads are all there are: not copied, and neither minimum nor mean knows their order."""
    return heads if len(heads) < params["q.0.bias"].shape[0] else None


def largest_value(reward, discount: float) -> float:
    """The largest absolute value of a state in an episode with these rewards (T,): beyond VALUE_LIMIT it is clipped."""
    value = largest = 0.0
    for r in reversed(reward.tolist()):
        value = r + discount * value
        largest = max(largest, abs(value))
    return largest


VALUE_LIMIT = float(wm.symexp(wm.make_bins()[-1]))  # 22,025: where the two-hot support ends


def rollout(params: Params, z: Tensor, actions: Tensor, task: Task) -> Tensor:
    """Latents predicted from the first one: z (B, Z), actions (T, B, A) -> (T+1, B, Z)."""
    zs = [z]
    for action in actions:
        zs.append(wm.dynamics(params, zs[-1], action, task))
    return torch.stack(zs)


def consistency_loss(z_pred: Tensor, z_target: Tensor, rho: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Predicted latents should equal the encoder's latents of what really came next. Both (T, B, Z), rho (T,).

    The target carries no gradient: with one, the encoder could make this zero by mapping everything to one point.
    """
    per_step = (z_pred - z_target.detach()).square().mean((1, 2))  # (T,)
    loss = (rho * per_step).sum()
    return loss, {"loss/consistency": loss.detach()}


def reward_loss(logits: Tensor, reward: Tensor, rho: Tensor, bins: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of the predicted reward. logits (T, B, K), reward (T, B), rho (T,)."""
    loss = (rho * wm.two_hot_cross_entropy(logits, reward, bins).mean(1)).sum()
    return loss, {"loss/reward": loss.detach()}


def value_loss(logits: Tensor, target: Tensor, rho: Tensor, bins: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of every Q head, mean over heads. logits (Q, T, B, K), target (T, B) raw return, rho (T,)."""
    loss = (rho * wm.two_hot_cross_entropy(logits, target, bins).mean(2)).sum(1).mean()
    return loss, {"loss/value": loss.detach()}


def imitation_error(policy: Policy, action: Tensor, mask: Tensor) -> Tensor:
    """Squared distance to the batch's action, mean over the task's real dims. (T, B, A) -> (T, B)."""
    return ((policy.action - action).square() * mask).sum(-1) / mask.sum(-1)


def bc_loss(
    policy: Policy, action: Tensor, mask: Tensor, rho: Tensor, entropy_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pretraining: imitate the demonstration. policy and action (T, B, A), mask (B, A), rho (T,).

    A mean over time of rho-weighted terms, as published: with H = 3 it is a third of a rho-weighted sum.
    """
    error = imitation_error(policy, action, mask)  # (T, B)
    entropy, scaled_entropy = wm.entropy(policy, mask)
    loss = (rho.unsqueeze(1) * (error - entropy_coef * scaled_entropy)).mean()
    return loss, {"loss/bc": error.detach().mean(), "train/entropy": entropy.detach().mean()}


def policy_loss(
    params: Params,
    zs: Tensor,
    action: Tensor,
    task: Task,
    eps: Tensor,
    heads: Tensor,
    q_scale: Tensor,
    rho: Tensor,
    bins: Tensor,
    entropy_coef: float,
    bc_coef: float | Tensor = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Online: maximise Q and entropy while staying near the batch's actions.

    zs (H+1, B, Z) detached latents; action (H, B, A); eps (H+1, B, A); heads (2,): mean of two random heads;
    bc_coef: also one per sample, (B,).
    Q's parameters get no gradient: they are detached here. metrics["q"] (B,) is the unscaled value at t=0.
    """
    policy = wm.pi(params, zs, task, eps)
    mask = F.embedding(task.index, task.mask)
    error = imitation_error(Policy(*(v[:-1] for v in policy)), action, mask)  # (H, B)
    entropy, scaled_entropy = wm.entropy(policy, mask)
    q_params = {name: value.detach() for name, value in params.items() if name.startswith("q.")}
    value = wm.decode(wm.q(q_params, zs, policy.action, task, unless_all(params, heads)), bins).mean(0)  # (H+1, B)
    weight = rho.unsqueeze(1)
    maxq = (weight * (-entropy_coef * scaled_entropy - value / q_scale)).sum(0)
    loss = (bc_coef * (weight[:-1] * error).sum(0) + maxq).mean()
    metrics = {"loss/pi": loss.detach(), "loss/bc": error.detach().mean(), "train/entropy": entropy.detach().mean()}
    return loss, metrics | {"q": value[0].detach()}


def update_scale(q_scale: Tensor, q: Tensor, tau: float) -> Tensor:
    """Moving 5..95 percentile range of Q over the batch, at least 1, so that returns of any size give similar steps."""
    # Made on the device: a list would be copied there, and the copy waited for.
    low, high = torch.quantile(q, torch.linspace(0.05, 0.95, 2, device=q.device))
    return q_scale.lerp((high - low).clamp(min=1), tau)


# ---------------------------------------------------------------- the loss of the model optimiser


class UpdateNoise(NamedTuple):
    """All random numbers of one update. eps_* standard normal; heads_* (2,) long."""

    eps_td: Tensor  # (H, B, A)
    eps_bc: Tensor  # (H, B, A)    pretraining
    eps_pi: Tensor  # (H+1, B, A)  online
    heads_td: Tensor
    heads_pi: Tensor


def draw_update_noise(horizon: int, batch: int, action_dim: int, num_q: int, generator: torch.Generator) -> UpdateNoise:
    def normal(steps: int) -> Tensor:
        return torch.randn(steps, batch, action_dim, generator=generator, device=generator.device)

    def heads() -> Tensor:
        return torch.randperm(num_q, generator=generator, device=generator.device)[:2]

    return UpdateNoise(normal(horizon), normal(horizon), normal(horizon + 1), heads(), heads())


def model_loss(
    cfg: Config, params: Params, batch: Batch, task: Task, discount: Tensor, noise: UpdateNoise, phase: Phase
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of the model optimiser: total, the latent rollout zs (H+1, B, Z) and metrics.

    discount (B,): per sample. In pretraining it contains behaviour cloning; its gradient reaches encoder and dynamics.
    In imitation there is nothing else, and zs are the H latents of what was observed.
    """
    if phase == "imitate":
        zs = wm.encode(params, batch.obs[:-1], task)
        even = torch.ones(len(zs), device=zs.device)
        policy, mask = wm.pi(params, zs, task, noise.eps_bc), F.embedding(task.index, task.mask)
        loss, metrics = bc_loss(policy, batch.action, mask, even, cfg.entropy_coef)
        return loss, zs, metrics | {"loss/model": loss.detach()}
    rho = time_weights(batch.action.shape[0], cfg.rho, batch.obs.device)
    bins = wm.make_bins(cfg.num_bins, device=batch.obs.device)
    with torch.no_grad():
        goes_on = discount * (1 - batch.terminated)
        z_target, td = td_target(
            params, batch.obs[1:], batch.reward, goes_on, task, noise.eps_td, noise.heads_td, bins, cfg.td_target
        )
    zs = rollout(params, wm.encode(params, batch.obs[0], task), batch.action, task)
    consistency, m1 = consistency_loss(zs[1:], z_target, rho[:-1])
    rewards, m2 = reward_loss(wm.reward(params, zs[:-1], batch.action, task), batch.reward, rho[:-1], bins)
    value, m3 = value_loss(wm.q(params, zs[:-1], batch.action, task), td, rho[:-1], bins)
    loss = cfg.consistency_coef * consistency + cfg.reward_coef * rewards + cfg.value_coef * value
    metrics = m1 | m2 | m3
    if phase == "pretrain":
        policy = wm.pi(params, zs[:-1], task, noise.eps_bc)
        bc, m4 = bc_loss(policy, batch.action, F.embedding(task.index, task.mask), rho[:-1], cfg.entropy_coef)
        loss, metrics = loss + cfg.bc_coef * bc, metrics | m4
    return loss, zs, metrics | {"loss/model": loss.detach()}
