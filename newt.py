"""The Newt agent: losses, one update step, acting.

Learning (batch: B slices of H transitions, time first; rho_t = 0.5^t normalised over H+1 entries):

    z_0 = h(o_0), z_{t+1} = d(z_t, a_t)                                      latent rollout, gradients flow
    td_t = r_t + gamma_task min_{2 of K} Q_target(h(o_{t+1}), p(h(o_{t+1}))) no gradient
    model loss  = sum_t rho_t [20 |z_{t+1} - h(o_{t+1})|^2 + .1 CE(R(z_t,a_t), r_t) + .1 mean_k CE(Q_k(z_t,a_t), td_t)]
    pretraining = model loss + mean_t rho_t [(p(z_t) - a_t)^2 - 1e-4 entropy]       behaviour cloning, one optimiser
    online      : model loss, then a policy step on the detached z_t with
                  sum_t rho_t [(p(z_t) - a_t)^2 - 1e-4 entropy - mean_{2 of K} Q(z_t, p(z_t)) / S]

S ("q_scale") is the running 5..95 % range of Q. Where a_t ended an episode for good, td_t = r_t, and o_{t+1} is the
absorbing state (buffer.py): its latent is predicted like any other, and worth nothing, so that plans see ends coming.
Papers: Newt (arXiv 2511.19584), TD-MPC2 (arXiv 2310.16828). Where the published code behaves unexpectedly the
difference is named at its place ("Upstream quirk", "Differs from upstream").

    agent = create(Config(size="B"), names, emb, action_dims, discounts, seed=0)
    metrics = update(agent, batch, "online")                # batch: buffer.Batch
    plan = act(agent, obs, task, warm, first, step=0)       # plan.action (B, A); plan.mean is the next warm start

Agents as files: agent_file.py.
Test: pytest tests/test_newt.py tests/test_parity.py
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import machine

import torch
import torch.nn.functional as F
from torch import Tensor

import distributed
import planner
import world_model as wm
from agent_config import Config, check
from buffer import Batch
from planner import Plan
from world_model import Params, Policy, Task

Phase = Literal["pretrain", "online"]


class Functions(NamedTuple):
    """What takes the time, as functions of tensors."""

    model_loss: Callable
    policy_loss: Callable
    decide: Callable


@dataclass
class Agent:
    """All state of a learner. Only `update` changes it."""

    cfg: Config
    tasks: tuple[str, ...]  # names, in the order of the tables below
    emb: Tensor  # (S, G) frozen sentence embeddings
    mask: Tensor  # (S, A) 1 for the real action dims of each task
    discount: Tensor  # (S,) per agent step
    guided: Tensor  # (S,) 1: hold on to the policy online, by imitation and constrained planning (published: all tasks)
    params: Params
    model_optim: torch.optim.Optimizer  # every part; the policy moves through it in pretraining only
    pi_optim: torch.optim.Optimizer  # the policy alone, online
    q_scale: Tensor  # () running 5..95 % range of Q, at least 1
    generator: torch.Generator  # all noise of updates and decisions
    updates: int = 0  # in the current phase; drives the warm-up
    compiled: Functions | None = None  # the same functions, faster (compiled.py)
    eyes: Callable | None = None  # frames -> features, of an agent that sees (observe.py)

    @property
    def functions(self) -> Functions:
        return self.compiled or Functions(model_loss, policy_loss, decide)

    @property
    def device(self) -> torch.device:
        return self.emb.device


def create(
    cfg: Config,
    tasks: list[str] | tuple[str, ...],
    emb: Tensor,
    action_dims: list[int],
    discounts: list[float],
    seed: int = 0,
    device: str | torch.device = "cpu",
    params: Params | None = None,
    q_scale: float = 1.0,
    guided: list[bool] | None = None,
) -> Agent:
    """A fresh agent, or one around given parameters (finetuning: new tasks, new embeddings, cold optimisers).

    emb (S, G); action_dims, discounts, guided: one per task. Raises ValueError for sizes that do not fit together and
    for numbers that cannot be.
    """
    check(cfg)
    if emb.shape != (len(tasks), cfg.task_dim):
        raise ValueError(f"need {len(tasks)} task embeddings of {cfg.task_dim} numbers, got shape {tuple(emb.shape)}")
    if max(action_dims) > cfg.action_dim:
        raise ValueError(f"a task has {max(action_dims)} action dims, the agent only {cfg.action_dim}")
    if min(action_dims) < 1 or not all(0 <= discount <= 1 for discount in discounts) or not emb.isfinite().all():
        raise ValueError("a task without actions, a discount that is not between 0 and 1, or an embedding not finite")
    if not 0 < q_scale < math.inf:
        raise ValueError(f"q_scale must be above 0 and finite, got {q_scale}")
    if params is None:
        # Drawn on the CPU so that one seed gives the same network on every device.
        init_generator = torch.Generator().manual_seed(seed)
        params = wm.init(wm.SIZES[cfg.size], cfg.input_dim, cfg.action_dim, cfg.task_dim, cfg.num_bins, init_generator)
    # Sorted, as files are: the order in which gradient norms are summed must not depend on where parameters came from.
    params = {
        name: value.detach().to(device).clone().requires_grad_(not name.startswith("q_target."))
        for name, value in sorted(params.items())
    }
    groups = {part: [v for k, v in params.items() if k.startswith(f"{part}.")] for part in PARTS}
    model_optim = torch.optim.Adam(
        [{"params": group, "lr": _part_lr(cfg, part)} for part, group in groups.items()], fused=True
    )
    mask = torch.zeros(len(tasks), cfg.action_dim)
    for row, dims in enumerate(action_dims):
        mask[row, :dims] = 1
    return Agent(
        cfg=cfg,
        tasks=tuple(tasks),
        emb=emb.detach().float().to(device).clone(),  # a file's own memory may be unaligned: sums would differ by a bit
        mask=mask.to(device),
        discount=torch.tensor(discounts, dtype=torch.float32, device=device),
        guided=torch.tensor(guided or [True] * len(tasks), dtype=torch.float32, device=device),
        params=params,
        model_optim=model_optim,
        pi_optim=torch.optim.Adam(groups["pi"], lr=cfg.lr, eps=1e-5, fused=True),
        q_scale=torch.tensor(float(q_scale), device=device),
        generator=torch.Generator(device=device).manual_seed(seed),
    )


PARTS = ("encoder", "dynamics", "reward", "q", "pi")


def _part_lr(cfg: Config, part: str) -> float:
    return cfg.lr * (cfg.enc_lr_scale if part == "encoder" else 1.0)


# ---------------------------------------------------------------- losses: each returns (scalar, metrics)


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
    q_logits = wm.q(params, z, action, task, heads, part="q_target" if source == "ema" else "q")
    return z, reward + discount * wm.decode(q_logits, bins).amin(0)


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
    value = wm.decode(wm.q(q_params, zs, policy.action, task, heads), bins).mean(0)  # (H+1, B)
    weight = rho.unsqueeze(1)
    maxq = (weight * (-entropy_coef * scaled_entropy - value / q_scale)).sum(0)
    loss = (bc_coef * (weight[:-1] * error).sum(0) + maxq).mean()
    metrics = {"loss/pi": loss.detach(), "loss/bc": error.detach().mean(), "train/entropy": entropy.detach().mean()}
    return loss, metrics | {"q": value[0].detach()}


def update_scale(q_scale: Tensor, q: Tensor, tau: float) -> Tensor:
    """Moving 5..95 percentile range of Q over the batch, at least 1, so that returns of any size give similar steps."""
    low, high = torch.quantile(q, torch.tensor([0.05, 0.95], device=q.device))
    return q_scale.lerp((high - low).clamp(min=1), tau)


# ---------------------------------------------------------------- one update


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
    """
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


def update(
    agent: Agent,
    batch: Batch,
    phase: Phase,
    noise: UpdateNoise | None = None,
    lr_scale: float = 1.0,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Tensor]:
    """One learning step, in place: model, target, and (online) policy and scale. The only place with optimisers.

    batch  obs (H+1, B, O), action (H, B, A), reward (H, B), task (B,), on the agent's device
    lr_scale  both learning rates are multiplied by it
    rank, world  this process and how many there are: B is then a share of the batch, noise too, and what is
           learned, returned and drawn is the same as if one process had all shares, in the order of ranks
    return scalar metrics as detached tensors
    Raises FloatingPointError if a loss or gradient is not finite: before the step that would spoil the weights.
    """
    cfg, params = agent.cfg, agent.params
    horizon, size, dims = batch.action.shape
    mine = slice(rank * size, (rank + 1) * size)
    if noise is None:
        num_q = params["q.0.weight"].shape[0]
        noise = draw_update_noise(horizon, size * world, dims, num_q, agent.generator)
        noise = UpdateNoise(*(eps[:, mine] for eps in noise[:3]), *noise[3:])
    task = Task(agent.emb, agent.mask, batch.task)
    agent.updates += 1
    # Upstream quirk: the first update already uses factor 2/5000.
    warm = min(1.0, (agent.updates + 1) / cfg.warmup_updates) if phase == "pretrain" and cfg.warmup_updates else 1.0
    for part, group in zip(PARTS, agent.model_optim.param_groups, strict=True):
        group["lr"] = _part_lr(cfg, part) * warm * lr_scale
    agent.pi_optim.param_groups[0]["lr"] = cfg.lr * lr_scale

    loss, zs, metrics = agent.functions.model_loss(cfg, params, batch, task, agent.discount[batch.task], noise, phase)
    metrics["train/grad_norm"] = _descend(agent.model_optim, loss, cfg.grad_clip, list(metrics.values()), world)
    targets = [name for name in params if name.startswith("q_target.")]
    with torch.no_grad():
        online = [params[name.replace("q_target.", "q.", 1)] for name in targets]
        torch._foreach_lerp_([params[name] for name in targets], online, cfg.tau)

    if phase == "online":
        rho = time_weights(horizon, cfg.rho, batch.obs.device)
        bins = wm.make_bins(cfg.num_bins, device=batch.obs.device)
        loss, pi_metrics = agent.functions.policy_loss(
            params, zs.detach(), batch.action, task, noise.eps_pi, noise.heads_pi, agent.q_scale, rho, bins,
            cfg.entropy_coef, cfg.online_bc_coef * agent.guided[batch.task],
        )  # fmt: skip
        # The scale needs the values of the whole batch: each process fills its own part, and the mean collects them.
        q = torch.zeros(size * world, device=batch.obs.device)
        q[mine] = pi_metrics.pop("q") * world
        norm = _descend(agent.pi_optim, loss, cfg.grad_clip, [q, *pi_metrics.values()], world)
        agent.q_scale = update_scale(agent.q_scale, q, cfg.tau)
        metrics |= pi_metrics | {"train/pi_grad_norm": norm}
    return metrics | {"train/q_scale": agent.q_scale}


def _descend(optim: torch.optim.Optimizer, loss: Tensor, clip: float, also: list[Tensor], world: int) -> Tensor:
    """One step of an optimiser -> norm of the gradient. `also` is averaged over processes in the same message."""
    weights = [value for group in optim.param_groups for value in group["params"]]
    optim.zero_grad(set_to_none=True)
    loss.backward()
    if world > 1:  # a timed update of one process alone must not wait for the others
        distributed.average([value.grad for value in weights if value.grad is not None] + also)
    norm = torch.nn.utils.clip_grad_norm_(weights, clip)
    if not (loss.detach() + norm).isfinite():  # waits for a GPU, once per step: a bad one could not be taken back
        raise FloatingPointError(f"loss {float(loss.detach()):g} or its gradient's norm {float(norm):g}")
    optim.step()
    return norm


# ---------------------------------------------------------------- acting


def plan_settings(cfg: Config) -> planner.Settings:
    return planner.Settings(**{name: getattr(cfg, name) for name in planner.Settings._fields})


def planner_model(params: Params, task: Task, bins: Tensor) -> planner.Model:
    """The world model as the planner sees it: rewards and returns as scalars, actions of the policy prior."""
    return planner.Model(
        next=lambda z, action: wm.dynamics(params, z, action, task),
        reward=lambda z, action: wm.decode(wm.reward(params, z, action, task), bins),
        pi=lambda z, eps: wm.pi(params, z, task, eps).action,
        q=lambda z, action, heads: wm.decode(wm.q(params, z, action, task, heads), bins).mean(0),
        q_heads=lambda z, action: wm.decode(wm.q(params, z, action, task), bins),
    )


@torch.no_grad()
def decide(
    params: Params,
    emb: Tensor,
    mask: Tensor,
    z: Tensor,
    warm: Tensor,
    first: Tensor,
    discount: Tensor,
    noise: planner.Noise,
    weight: Tensor,
    settings: planner.Settings,
    num_bins: int,
    elite: str,
) -> Plan:
    """planner.plan with this world model, without exploring, as a function of tensors: emb (B, G), mask (B, A)."""
    task = Task(emb, mask, torch.arange(z.shape[0], device=z.device).unsqueeze(1))
    model = planner_model(params, task, wm.make_bins(num_bins, device=z.device))
    return planner.plan(model, z, warm, first, mask, discount, settings, noise, weight, False, elite)


@torch.no_grad()
def act(
    agent: Agent,
    obs: Tensor,
    task: Tensor,
    warm: Tensor,
    first: Tensor,
    step: int = 0,
    explore: bool = False,
    use_planner: bool = True,
    generator: torch.Generator | None = None,
) -> Plan:
    """One action per environment.

    obs (B, O) padded; task (B,) long; warm (B, H, A): `.mean` of the previous result (zeros at first); first (B,) bool
    step: environment steps so far, for constrained planning.  use_planner=False: the policy prior's mean action, or a
    sample of it when exploring.  generator: default the agent's; pass one to leave training's random stream alone.
    explore: as published, a random elite's action with noise, whatever `cfg.elite` says: that is for showing what was
    learned. What the model over-estimates has to be tried while learning, or it would never be corrected (cartpole-
    swingup after 5,000 steps: 190 instead of 470 where exploring was sure, too).
    On a CPU a few environments are planned at a time: the activations of all of them together would leave the cache.
    Groups run side by side on the cores that torch's own threads leave free (`share_cores` in eval.py).
    """
    cfg, generator = agent.cfg, generator or agent.generator
    tables = Task(agent.emb[task], agent.mask[task], torch.arange(len(task), device=obs.device))
    z = wm.encode(agent.params, obs, tables)
    if not use_planner:
        shape = (len(task), cfg.action_dim)
        eps = torch.zeros(shape, device=obs.device)
        eps = eps.normal_(generator=generator) if explore else eps
        action = wm.pi(agent.params, z, tables, eps).action
        nothing = torch.zeros_like(warm)
        return Plan(action, nothing, nothing, action.new_zeros(len(task), 1), nothing)
    settings = plan_settings(cfg)
    weight = planner.policy_weight(step, cfg.constraint_start, cfg.constraint_duration) * agent.guided[task]
    num_q = agent.params["q.0.weight"].shape[0]
    noise = planner.draw_noise(settings, len(task), cfg.action_dim, num_q, generator)

    @torch.no_grad()  # the mode is per thread
    def plan_for(rows: Tensor) -> Plan:
        own = planner.Noise(
            noise.pi[rows], noise.sample[:, rows], noise.terminal[:, rows], noise.heads, noise.gumbel[rows],
            noise.final[rows],
        )  # fmt: skip
        plan = agent.functions.decide(
            agent.params, tables.emb[rows], tables.mask[rows], z[rows], warm[rows], first[rows],
            agent.discount[task[rows]], own, weight[rows], settings, cfg.num_bins, "sample" if explore else cfg.elite,
        )  # fmt: skip
        return planner.explored(plan, own) if explore else plan

    every = torch.arange(len(task), device=obs.device)
    if obs.device.type != "cpu" or len(task) == 1:
        return plan_for(every)
    cores = max(1, CORES // torch.get_num_threads())
    groups = every.split(max(1, min(CPU_PLAN_ROWS // cfg.num_samples, -(-len(task) // cores))))
    return Plan(*(torch.cat(parts) for parts in zip(*_PLANNERS.map(plan_for, groups), strict=True)))


CPU_PLAN_ROWS = 2048  # plans evaluated at once by a core
CORES = machine.cores()
_PLANNERS = ThreadPoolExecutor(CORES)
