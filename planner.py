"""MPPI in latent space, as pure functions over a model that is known only by a few callables. Imports torch only.

Each decision: sample N action sequences of length H from a Gaussian (a few of them from the policy prior), let the
model predict their returns, refit the Gaussian to the best E, repeat; execute the first action of one of the elites.

A search finds what is good and, where a model is wrong, what it is wrong about: the further from what was learned, the
more. So a decision may be asked to be sure (`elite="sure"`): an elite replaces the policy's own plan only if it is
better by every way of reckoning it that the model has (`advantages`), the more so the further off it is (`surest`).

Papers: MPPI (Williams et al. 2015), TD-MPC2 (arXiv 2310.16828), constrained planning: Newt (arXiv 2511.19584).

Axis letters: B environment, H planning step, N sampled plans, P of them from the policy, E elites, A action, Z latent,
I iterations. The planner has no memory: the warm start (`Plan.mean`) goes out and comes back in. All randomness is
in `Noise`, drawn from a torch.Generator by `draw_noise` or given by the caller, so a plan is a function of its inputs.

    model = Model(next=..., reward=..., pi=..., q=...)
    plan_ = plan(model, z, warm, first, mask, discount, Settings(), draw_noise(Settings(), B, A, num_q, generator))
    env.step(plan_.action); warm = plan_.mean
Test: pytest tests/test_planner.py tests/test_parity.py
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Model(NamedTuple):
    """z is (B, N, Z), or (B, 1, Z) where all plans of an environment still share one latent."""

    next: Callable[[Tensor, Tensor], Tensor]  # z, action (B, N, A) -> next z (B, N, Z)
    reward: Callable[[Tensor, Tensor], Tensor]  # z, action -> (B, N), raw units
    pi: Callable[[Tensor, Tensor], Tensor]  # z, eps (B, N, A) standard normal -> action (B, N, A)
    q: Callable[[Tensor, Tensor, Tensor], Tensor]  # z, action, heads (2,) long -> return (B, N), mean of two heads
    q_heads: Callable[[Tensor, Tensor], Tensor] | None = None  # z, action -> (K, B, N), every head; for "sure" only


class Settings(NamedTuple):
    horizon: int = 3
    num_samples: int = 512
    num_elites: int = 64
    num_pi: int = 24  # plans that follow the policy prior; they stay in the sample set in every iteration
    iterations: int = 6
    temperature: float = 0.5
    std_min: float = 0.05
    std_max: float = 2.0
    caution: float = 2.0  # with elite="sure": standard deviations by which a plan must beat the policy's


class Noise(NamedTuple):
    pi: Tensor  # (B, H, P, A) standard normal, policy plans
    sample: Tensor  # (I, B, H, N-P, A) standard normal, Gaussian plans
    terminal: Tensor  # (I, B, N, A) standard normal, policy action at each plan's last latent
    heads: Tensor  # (I, 2) long, the Q heads used in each iteration
    gumbel: Tensor  # (B, E) standard Gumbel, the draw among elites
    final: Tensor  # (B, A) standard normal, exploration


class Plan(NamedTuple):
    action: Tensor  # (B, A) to execute, in [-1, 1]
    mean: Tensor  # (B, H, A) the fitted Gaussian: hand `mean` to the next call as its warm start
    std: Tensor  # (B, H, A)
    value: Tensor  # (B, N) predicted return of each plan of the last iteration
    chosen: Tensor  # (B, H, A) the plan whose first action is executed, before exploration


def draw_noise(
    settings: Settings, batch: int, action_dim: int, num_q: int, generator: torch.Generator | None = None
) -> Noise:
    """All random numbers of one `plan` call, on the generator's device (CPU without one)."""
    device = generator.device if generator is not None else "cpu"
    h, n, p, i = settings.horizon, settings.num_samples, settings.num_pi, settings.iterations

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    exponential = torch.empty(batch, settings.num_elites, device=device).exponential_(generator=generator)
    # Two different heads per iteration: the order of uniform numbers is a random permutation of the ensemble.
    heads = torch.rand(i, num_q, generator=generator, device=device).argsort(1)[:, : min(2, num_q)]
    return Noise(
        pi=normal(batch, h, p, action_dim),
        sample=normal(i, batch, h, n - p, action_dim),
        terminal=normal(i, batch, n, action_dim),
        heads=heads,
        gumbel=-exponential.log(),
        final=normal(batch, action_dim),
    )


def policy_weight(step: int, start: int, duration: int) -> float:
    """How much of the initial Gaussian comes from the policy prior at environment step `step`: 1, then linearly to 0.

    Early in a finetuning run the model is wrong outside of the demonstrations and the policy keeps plans inside.
    The published config calls the duration "final step", yet its formula, like this one, ends at start + duration.
    """
    if step < start:
        return 1.0
    return max(0.0, 1.0 - (step - start) / duration) if duration > 0 else 0.0


def policy_plans(model: Model, z: Tensor, eps: Tensor) -> Tensor:
    """Roll the policy prior out in the model: z (B, 1, Z), eps (B, H, P, A) -> actions (B, H, P, A)."""
    actions = []
    for step in range(eps.shape[1]):
        z = z.expand(-1, eps.shape[2], -1)
        actions.append(model.pi(z, eps[:, step]))
        if step < eps.shape[1] - 1:
            z = model.next(z, actions[-1])
    return torch.stack(actions, 1)


def look_ahead(model: Model, z: Tensor, actions: Tensor, discount: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the model expects on the way: H discounted rewards (B, N), where that ends (B, N, Z), and gamma^H (B, 1).

    z (B, 1, Z); actions (B, H, N, A); discount (B,), per agent step
    """
    total, factor = 0.0, torch.ones_like(discount).unsqueeze(1)
    for action in actions.unbind(1):
        total = total + factor * model.reward(z, action)  # the reward belongs to the latent *before* the step
        z, factor = model.next(z, action), factor * discount.unsqueeze(1)
    return total, z, factor


def plan_return(
    model: Model, z: Tensor, actions: Tensor, discount: Tensor, eps: Tensor, heads: Tensor,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What the model expects of each plan: H discounted rewards, then the value of the latent where it ends.

    z (B, 1, Z); actions (B, H, N, A); discount (B,), per agent step; eps (B, N, A); heads (2,)  ->  (B, N)
    known: the first two that look_ahead gave for the first so many plans, if they were looked at before
    """
    looked = 0 if known is None else known[0].shape[1]
    total, end, factor = look_ahead(model, z, actions[:, :, looked:], discount)
    if known is not None:
        total, end = torch.cat((known[0], total), 1), torch.cat((known[1], end), 1)
    return total + factor * model.q(end, model.pi(end, eps), heads)


def refit(actions: Tensor, value: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One MPPI step: weigh the best plans by softmax(temperature * value), return the Gaussian that fits them.

    actions (B, H, N, A), value (B, N)  ->  mean, std (B, H, A); elite (B, H, E, A), weight (B, E)
    Differs from upstream: a NaN return counts as -inf, not as 0, which would beat every negative return.
    """
    value = torch.nan_to_num(value, nan=-torch.finfo(value.dtype).max)
    top = value.topk(settings.num_elites, dim=1)
    index = top.indices[:, None, :, None].expand(-1, actions.shape[1], -1, actions.shape[3])
    elite = actions.gather(2, index)  # (B, H, E, A)
    weight = torch.softmax(settings.temperature * (top.values - top.values[:, :1]), dim=1)  # (B, E)
    w = weight[:, None, :, None]
    mean = (w * elite).sum(2)
    std = (w * (elite - mean.unsqueeze(2)).square()).sum(2).sqrt()
    return mean, std.clamp(settings.std_min, settings.std_max), elite, weight


def advantages(model: Model, z: Tensor, actions: Tensor, discount: Tensor) -> Tensor:
    """By how much each plan is better than the first one, by every way of reckoning it.

    z (B, 1, Z); actions (B, H, N, A); discount (B,)  ->  (K (H+1), B, N), 0 for n = 0

    Way (k, h): h rewards and latents of the model, then what head k says of the plan's next action (after the last one,
    of the policy's). They agree where the model was learned and differ where it was not: with h = 0 no reward and no
    latent is believed, with h = H no value of a state that is near. Errors that all plans share cancel.
    Measured on small agents: the mean of all ways minus twice their deviation tells good plans from bad ones near the
    policy's where the published return, the minimum or the spread of the heads at h = H alone do not.
    """
    total, factor, ways = 0.0, torch.ones_like(discount).unsqueeze(1), []
    for action in actions.unbind(1):
        z = z.expand(-1, action.shape[1], -1)
        ways.append(total + factor * model.q_heads(z, action))
        total = total + factor * model.reward(z, action)
        z, factor = model.next(z, action), factor * discount.unsqueeze(1)
    ways.append(total + factor * model.q_heads(z, model.pi(z, torch.zeros_like(action))))
    ways = torch.cat(ways)
    return ways - ways[..., :1]


def surest(model: Model, z: Tensor, actions: Tensor, discount: Tensor, caution: float, near: Tensor) -> Tensor:
    """Index (B,) of the plan whose advantage over the first one is largest after `caution` deviations are taken off.

    near (B,): how far from the first plan, as a norm over steps and actions, the ways of reckoning are taken at their
    word. They share what the data did not teach them, so beyond it their deviation counts in proportion to the
    distance: with a search of std 2 a model is wrong by more than its ways differ (results/README.md, Planning).
    The first plan has advantage 0 for sure, so it is chosen unless another is better by more than that. A plan of NaN
    is never chosen.
    """
    ways = advantages(model, z, actions, discount)
    far = (actions - actions[:, :, :1]).square().sum((1, 3)).sqrt()  # (B, N)
    doubt = (far / near.unsqueeze(1)).clamp(min=1) * ways.std(0)
    return torch.nan_to_num(ways.mean(0) - caution * doubt, nan=-torch.inf).argmax(1)


@torch.no_grad()
def plan(
    model: Model,
    z: Tensor,
    warm: Tensor,
    first: Tensor,
    mask: Tensor,
    discount: Tensor,
    settings: Settings,
    noise: Noise,
    policy_weight: float | Tensor = 0.0,
    explore: bool = True,
    elite: str = "sample",
) -> Plan:
    """Choose one action per environment.

    z         (B, Z)     latent of the current observation
    warm      (B, H, A)  `Plan.mean` of the previous decision; ignored where `first`
    first     (B,)       bool, True at an episode's first step
    mask      (B, A)     1 for real action dimensions; the others are 0 in the result, given that `model.pi` masks too
    discount  (B,)       per agent step
    policy_weight        share of the policy plans' statistics in the initial Gaussian (constrained planning); also (B,)
    explore              add Gaussian noise with the final std to the action
    elite                "sample": a score-weighted random elite's first action (published, also in evaluation);
                         "mean": the fitted mean's first action; "sure": that of the elite or the fitted mean that is
                         most surely better than the policy's plan without noise, or else of that plan (`surest`)
    Raises ValueError: warm start of another shape; a policy weight with fewer than two policy plans to take a std of.
    """
    if warm.shape != (z.shape[0], settings.horizon, mask.shape[1]):
        raise ValueError(f"warm must be {(z.shape[0], settings.horizon, mask.shape[1])}, got {tuple(warm.shape)}")
    constrained = isinstance(policy_weight, Tensor) or policy_weight > 0
    if constrained and settings.num_pi < 2:
        raise ValueError(f"constrained planning needs num_pi of at least 2, got {settings.num_pi}")
    z, mask_h = z.unsqueeze(1), mask.unsqueeze(1)  # (B, 1, Z), (B, 1, A)
    pi_actions = policy_plans(model, z, noise.pi)  # (B, H, P, A)

    # Initial Gaussian: the previous plan moved one step ahead, mixed with what the policy would do.
    mean = torch.cat((warm[:, 1:], torch.zeros_like(warm[:, :1])), 1)
    mean = torch.where(first[:, None, None], torch.zeros_like(mean), mean)
    std = torch.full_like(mean, settings.std_max)
    if constrained:
        weight = policy_weight[:, None, None] if isinstance(policy_weight, Tensor) else policy_weight
        pi_std = pi_actions.std(2).clamp(settings.std_min, settings.std_max)
        mean = weight * pi_actions.mean(2) + (1 - weight) * mean
        std = weight * pi_std + (1 - weight) * std

    # The same in every iteration.
    known = look_ahead(model, z, pi_actions, discount)[:2] if settings.num_pi else None
    for i in range(settings.iterations):
        sampled = (mean.unsqueeze(2) + std.unsqueeze(2) * noise.sample[i]).clamp(-1, 1) * mask_h.unsqueeze(2)
        actions = torch.cat((pi_actions, sampled), 2)  # (B, H, N, A)
        value = plan_return(model, z, actions, discount, noise.terminal[i], noise.heads[i], known)
        mean, std, elites, weight = refit(actions, value, settings)
        mean, std = mean * mask_h, std * mask_h

    if elite == "mean":
        plans, index = mean.unsqueeze(2), torch.zeros_like(first, dtype=torch.long)
    elif elite == "sure":
        own = policy_plans(model, z, torch.zeros_like(noise.pi[:, :, :1]))
        plans = torch.cat((own, mean.unsqueeze(2), elites), 2)
        # Near is what the policy itself would do, and what the finest search would.
        spread = ((pi_actions - own).square().sum((1, 2, 3)) / max(1, settings.num_pi)).sqrt()
        finest = settings.std_min * (settings.horizon * mask.sum(1)).sqrt()
        near = torch.maximum(spread, finest).clamp(min=1e-6)
        index = surest(model, z, plans, discount, settings.caution, near)
    else:
        # Gumbel-argmax draws an elite in proportion to its weight. No temperature: argmax(x / T) is the same for all T.
        plans, index = elites, ((weight + 1e-9).log() + noise.gumbel).argmax(1)
    index = index[:, None, None, None].expand(-1, settings.horizon, 1, mask.shape[1])
    chosen = plans.gather(2, index).squeeze(2)  # (B, H, A)
    result = Plan(chosen[:, 0].clamp(-1, 1), mean, std, value, chosen)
    return explored(result, noise) if explore else result


def explored(plan: Plan, noise: Noise) -> Plan:
    """The same plan, to be executed with Gaussian noise of its final std."""
    return plan._replace(action=(plan.chosen[:, 0] + plan.std[:, 0] * noise.final).clamp(-1, 1))
