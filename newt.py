"""The Newt agent: its state, one update step, acting.

What is learned is in losses.py; here are the optimisers that learn it, and the planner that acts on it.
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
from typing import NamedTuple

import machine

import torch
from torch import Tensor

import distributed
import planner
import world_model as wm
from agent_config import Config, check
from buffer import Batch
from losses import (
    Phase,
    UpdateNoise,
    draw_update_noise,
    model_loss,
    policy_loss,
    time_weights,
    unless_all,
    update_scale,
)
from planner import Plan
from world_model import Params, Task


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
    obs_stats: Tensor | None  # (2, S, O) mean and standard deviation of observations, where they're standardised
    guided: Tensor  # (S,) 1: hold on to the policy online, by imitation and constrained planning (published: all tasks)
    params: Params
    model_optim: torch.optim.Optimizer  # every part; the policy moves through it in pretraining only
    pi_optim: torch.optim.Optimizer  # the policy alone, online
    q_scale: Tensor  # () running 5..95 % range of Q, at least 1
    generator: torch.Generator  # all noise of updates and decisions
    updates: int = 0  # in the current phase; drives the warm-up
    left_out: Tensor | int = 0  # updates that were not finite
    compiled: Functions | None = None  # the same functions, faster (compiled.py)
    eyes: Callable | None = None  # frames -> features, of an agent that sees (observe.py)
    precision: torch.dtype = torch.float32  # of hidden layers' matrix products (precision.py)

    @property
    def functions(self) -> Functions:
        return self.compiled or Functions(model_loss, policy_loss, decide)

    @property
    def weights(self) -> Params:
        """The parameters as the network computes with them."""
        return wm.in_precision(self.params, self.precision)

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
    obs_stats: Tensor | None = None,
) -> Agent:
    """A fresh agent, or one around given parameters (finetuning: new tasks, new embeddings, cold optimisers).

    emb (S, G); action_dims, discounts, guided: one per task; obs_stats (2, S, O): means and standard deviations, of an
    agent with `obs_norm`; default 0 and 1. Raises ValueError for sizes that do not fit together and for numbers that
    cannot be.
    """
    check(cfg)
    if emb.shape != (len(tasks), cfg.task_dim):
        raise ValueError(f"need {len(tasks)} task embeddings of {cfg.task_dim} numbers, got shape {tuple(emb.shape)}")
    if max(action_dims) > cfg.action_dim:
        raise ValueError(f"a task has {max(action_dims)} action dims, the agent only {cfg.action_dim}")
    if min(action_dims) < 1 or not all(0 <= discount <= 1 for discount in discounts) or not emb.isfinite().all():
        raise ValueError("a task without actions, a discount that is not between 0 and 1, or an embedding not finite")
    norm, shape = cfg.obs_norm != "none", (2, len(tasks), cfg.input_dim)
    if norm and obs_stats is None:
        obs_stats = torch.stack([torch.zeros(shape[1:]), torch.ones(shape[1:])])
    if norm != (obs_stats is not None) or (norm and obs_stats.shape != shape):
        raise ValueError(f"obs_norm {cfg.obs_norm} doesn't go with these statistics of observations")
    if norm and not (obs_stats.isfinite().all() and (obs_stats[1] > 0).all()):
        raise ValueError("statistics of observations that aren't finite, or a deviation that isn't above 0")
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
        obs_stats=None if obs_stats is None else obs_stats.detach().float().to(device).clone(),
        guided=torch.tensor(guided or [True] * len(tasks), dtype=torch.float32, device=device),
        params=params,
        model_optim=model_optim,
        pi_optim=torch.optim.Adam(groups["pi"], lr=cfg.lr, eps=1e-5, fused=True),
        q_scale=torch.tensor(float(q_scale), device=device),
        generator=torch.Generator(device=device).manual_seed(seed),
    )


def standardised(agent: Agent, obs: Tensor, task: Tensor) -> Tensor:
    """Observations (..., B, O) of tasks (B,) as the encoder reads them: (obs - mean) / std, at most 10 away from 0.

    What nothing is known of (mean 0, deviation 1) stays as it is: a task of one's own may observe thousands.
    """
    if agent.obs_stats is None:
        return obs
    mean, std = agent.obs_stats[:, task]
    return torch.where((mean == 0) & (std == 1), obs, ((obs - mean) / std).clamp(-10, 10))


PARTS = ("encoder", "dynamics", "reward", "q", "pi")


def _part_lr(cfg: Config, part: str) -> float:
    return cfg.lr * (cfg.enc_lr_scale if part == "encoder" else 1.0)


# ---------------------------------------------------------------- one update


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
    Raises FloatingPointError if a loss or gradient is not finite. The step that would spoil the weights is not taken;
    on a GPU, which nobody waits for, all such steps are left out until it is noticed, after CHECK_EVERY updates.
    """
    cfg, params = agent.cfg, agent.params
    horizon, size, dims = batch.action.shape
    mine = slice(rank * size, (rank + 1) * size)
    if noise is None:
        num_q = params["q.0.weight"].shape[0]
        noise = draw_update_noise(horizon, size * world, dims, num_q, agent.generator)
        noise = UpdateNoise(*(eps[:, mine] for eps in noise[:3]), *noise[3:])
    task = Task(agent.emb, agent.mask, batch.task)
    batch = batch._replace(obs=standardised(agent, batch.obs, batch.task))
    agent.updates += 1
    # Upstream quirk: the first update already uses factor 2/5000.
    warm = min(1.0, (agent.updates + 1) / cfg.warmup_updates) if phase != "online" and cfg.warmup_updates else 1.0
    for part, group in zip(PARTS, agent.model_optim.param_groups, strict=True):
        group["lr"] = _part_lr(cfg, part) * warm * lr_scale
    agent.pi_optim.param_groups[0]["lr"] = cfg.lr * lr_scale

    discount = agent.discount[batch.task]
    loss, zs, metrics = agent.functions.model_loss(cfg, agent.weights, batch, task, discount, noise, phase)
    norm, finite = _descend(agent.model_optim, loss, cfg.grad_clip, list(metrics.values()), world)
    metrics["train/grad_norm"] = norm
    if phase != "imitate":
        targets = [name for name in params if name.startswith("q_target.")]
        with torch.no_grad():
            online = [params[name.replace("q_target.", "q.", 1)] for name in targets]
            torch._foreach_lerp_([params[name] for name in targets], online, cfg.tau)

    if phase == "online":
        rho = time_weights(horizon, cfg.rho, batch.obs.device)
        bins = wm.make_bins(cfg.num_bins, device=batch.obs.device)
        loss, pi_metrics = agent.functions.policy_loss(
            agent.weights, zs.detach(), batch.action, task, noise.eps_pi, noise.heads_pi, agent.q_scale, rho, bins,
            cfg.entropy_coef, cfg.online_bc_coef * agent.guided[batch.task],
        )  # fmt: skip
        # The scale needs the values of the whole batch: each process fills its own part, and the mean collects them.
        q = torch.zeros(size * world, device=batch.obs.device)
        q[mine] = pi_metrics.pop("q") * world
        norm, pi_finite = _descend(agent.pi_optim, loss, cfg.grad_clip, [q, *pi_metrics.values()], world)
        agent.q_scale = torch.where(pi_finite, update_scale(agent.q_scale, q, cfg.tau), agent.q_scale)
        metrics |= pi_metrics | {"train/pi_grad_norm": norm}
        finite = finite & pi_finite
    agent.left_out = agent.left_out + ~finite
    if loss.device.type != "cpu" and agent.updates % CHECK_EVERY == 0 and agent.left_out:
        raise FloatingPointError(f"loss or gradient of {int(agent.left_out)} updates")
    return metrics | {"train/q_scale": agent.q_scale}


CHECK_EVERY = 100


def _descend(optim: torch.optim.Optimizer, loss: Tensor, clip: float, also: list[Tensor], world: int):
    """One step of an optimiser -> norm of the gradient, and whether all was finite, both (). Not taken if it wasn't.

    `also` is averaged over processes in the same message.
    """
    weights = [value for group in optim.param_groups for value in group["params"]]
    optim.zero_grad(set_to_none=True)
    loss.backward()
    grads = [value.grad for value in weights if value.grad is not None]
    if world > 1:  # a timed update of one process alone must not wait for the others
        distributed.average(grads + also)
    norm = torch.nn.utils.get_total_norm(grads)
    finite = (loss.detach() + norm).isfinite()
    if loss.device.type == "cpu" and not finite:  # nothing to wait for
        raise FloatingPointError(f"loss {float(loss.detach()):g} or its gradient's norm {float(norm):g}")
    # Clipped and, if need be, left out inside of Adam's own kernel: no pass over the gradients, no waiting for a GPU.
    optim.grad_scale, optim.found_inf = (norm / clip).clamp(min=1).float(), (~finite).float()
    optim.step()
    return norm, finite


# ---------------------------------------------------------------- acting


def plan_settings(cfg: Config) -> planner.Settings:
    return planner.Settings(**{name: getattr(cfg, name) for name in planner.Settings._fields})


def planner_model(params: Params, task: Task, bins: Tensor) -> planner.Model:
    """The world model as the planner sees it: rewards and returns as scalars, actions of the policy prior."""
    return planner.Model(
        next=lambda z, action: wm.dynamics(params, z, action, task),
        reward=lambda z, action: wm.decode(wm.reward(params, z, action, task), bins),
        pi=lambda z, eps: wm.pi(params, z, task, eps).action,
        q=lambda z, action, heads: wm.decode(wm.q(params, z, action, task, unless_all(params, heads)), bins).mean(0),
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
    noise: planner.Noise | None = None,
    z: Tensor | None = None,
) -> Plan:
    """One action per environment.

    obs (B, O) padded; task (B,) long; warm (B, H, A): `.mean` of the previous result (zeros at first); first (B,) bool
    step: environment steps so far, for constrained planning.  use_planner=False: the policy prior's mean action, or a
    sample of it when exploring.  generator: default the agent's; pass one to leave training's random stream alone.
    explore: as published, a random elite's action with noise, whatever `cfg.elite` says: that is for showing what was
    learned. What the model over-estimates has to be tried while learning, or it would never be corrected (cartpole-
    swingup after 5,000 steps: 190 instead of 470 where exploring was sure, too).
    noise: the caller's, and then all these environments are planned for at a time.  z (B, Z): latents instead of obs's
    On a CPU a few environments are planned at a time: the activations of all of them together would leave the cache.
    Groups run side by side on the cores that torch's own threads leave free (`share_cores` in eval.py).
    """
    cfg, generator = agent.cfg, generator or agent.generator
    tables = Task(agent.emb[task], agent.mask[task], torch.arange(len(task), device=obs.device))
    weights = agent.weights
    z = wm.encode(weights, standardised(agent, obs, task), tables) if z is None else z
    if not use_planner:
        shape = (len(task), cfg.action_dim)
        eps = torch.zeros(shape, device=obs.device)
        eps = eps.normal_(generator=generator) if explore else eps
        action = wm.pi(weights, z, tables, eps).action
        nothing = torch.zeros_like(warm)
        return Plan(action, nothing, nothing, action.new_zeros(len(task), 1), nothing)
    settings = plan_settings(cfg)
    weight = planner.policy_weight(step, cfg.constraint_start, cfg.constraint_duration) * agent.guided[task]
    num_q = agent.params["q.0.weight"].shape[0]
    together, noise = bool(noise), noise or planner.draw_noise(settings, len(task), cfg.action_dim, num_q, generator)

    @torch.no_grad()  # the mode is per thread
    def plan_for(rows: Tensor, settings: planner.Settings, decide: Callable) -> Plan:
        own = planner.Noise(
            noise.pi[rows], noise.sample[: settings.iterations, rows], noise.terminal[:, rows], noise.heads,
            noise.gumbel[rows], noise.final[rows],
        )  # fmt: skip
        plan = decide(
            weights, tables.emb[rows], tables.mask[rows], z[rows], warm[rows], first[rows],
            agent.discount[task[rows]], own, weight[rows], settings, cfg.num_bins, "sample" if explore else cfg.elite,
        )  # fmt: skip
        return planner.explored(plan, own) if explore else plan

    # A group: its rows, how they are planned, and by what. First decisions are few: not worth compiling them, too.
    fast = agent.functions.decide
    groups = [(torch.arange(len(task), device=obs.device), settings, fast)]
    if cfg.warm_iterations not in (0, cfg.iterations):
        later = settings._replace(iterations=cfg.warm_iterations)
        groups = [(first.nonzero().squeeze(1), settings, decide), ((~first).nonzero().squeeze(1), later, fast)]
    if obs.device.type == "cpu" and not together:
        groups = [(part, *how) for rows, *how in groups for part in rows.split(at_a_time(cfg, len(task)))]
    groups = [group for group in groups if len(group[0])]
    if len(groups) == 1:
        return plan_for(*groups[0])
    parts = list(_PLANNERS.map(plan_for, *zip(*groups, strict=True)))
    back = torch.cat([rows for rows, *_ in groups]).argsort()
    return Plan(*(torch.cat(part)[back] for part in zip(*parts, strict=True)))


def at_a_time(cfg: Config, environments: int) -> int:
    """How many of so many environments a CPU's core plans for together."""
    cores = max(1, CORES // torch.get_num_threads())
    return max(1, min(CPU_PLAN_ROWS // cfg.num_samples, -(-environments // cores)))


CPU_PLAN_ROWS = 2048  # plans evaluated at once by a core
CORES = machine.cores()
_PLANNERS = ThreadPoolExecutor(CORES)
