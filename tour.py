"""The course: one task, one small agent, every tensor of a decision and of an update. Read it beside what it prints.

    python tour.py                     less than five minutes on a laptop, two of them training; pictures in runs/tour/
    python tour.py --minutes 10        the curve at the end rises; two minutes are about 1,000 steps

    1  parts     what the five networks of the world model read and say, before anything is learned    world_model.py
    2  play      an episode, and how it is remembered                                                  buffer.py
    3  update    one update: every loss from its definition, checked against newt.update    losses.py, newt.py
    4  decide    one decision: a search in imagination, checked against planner.plan                   planner.py
    5  learn     for two minutes: decide, act, remember, update                                        train.py

A line `z (B, Z) = (1, 128)  the latent` gives a tensor's axes, by letter and by size. Letters, here and in all files:
B environments or slices, H steps of a slice or a plan, N plans, P of them the policy's, E elites, I iterations,
O observation, A action, G sentence, Z latent, K bins, Q heads, D hidden; small o: this task's own obs, not padded.
Several have the same size here (O, Z, D, N and B are 128): go by the letters.
What is computed by hand here and what the program computes has to agree: otherwise AssertionError.
Test: pytest tests/test_tour.py
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import machine  # noqa: F401  refuses a Python that lacks the packages below

import tyro

import command

TASK = "cartpole-swingup"


@dataclass(frozen=True)
class Tour:
    """The course: what every tensor is, one update and one decision by hand, and two minutes of training."""

    minutes: float = 2.0
    """of training, in the last chapter"""
    out: Path = Path("runs/tour")
    """folder for the pictures"""


RANGES = {"minutes": (0, 10_000)}

if __name__ == "__main__":
    given = command.start(tyro.cli, Tour)
    print(f"one task, {TASK}, and one untrained agent; loading torch and the simulator takes some seconds", flush=True)

# Only now what takes seconds to load: --help and wrong words are answered above.
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import envs
import language
import losses
import newt
import planner
import train_config
import world_model as wm
from buffer import Batch, Buffer
from eval import share_cores

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt


def show(name: str, axes: str, x, meaning: str) -> None:
    print(f"{f'{name} ({axes})':31}= {str(tuple(x.shape)):21}{meaning}")


def check(name: str, by_hand: Tensor, there: Tensor) -> None:
    """AssertionError unless both are the same numbers, but for rounding: sums are taken in another order here."""
    torch.testing.assert_close(by_hand, there, rtol=1e-4, atol=1e-6, msg=lambda what: f"{name}: {what}")
    said = f"by hand {by_hand:9.6f}, newt.py {there:9.6f}" if there.ndim == 0 else f"all {there.numel()} numbers agree"
    print(f"    checked  {name:22} {said}")


# ---------------------------------------------------------------- 1: what the networks read and say


@torch.no_grad()
def parts(agent: newt.Agent, env) -> None:
    """A tensor a line, from an observation to a value."""
    print("\n==== 1  The parts of the world model: five small networks (world_model.py)\n")
    cfg, params, table = agent.cfg, agent.params, envs.TASKS[TASK]
    obs, _ = env.reset()
    show("obs", "o", obs, "from the simulator: position, cosine and sine of the angle, and both speeds")
    obs = padded(obs, cfg)
    show("obs", "B, O", obs, "zero-padded: one network reads all 200 tasks. Here B = 1 environment")
    print(f'\n    "{table.sentence}"\n')
    show("emb", "B, G", agent.emb, "that sentence, embedded by a frozen network (language.py): it tells tasks apart")
    show("mask", "B, A", agent.mask, f"1 for real action numbers, here {table.action_dim}; actions are padded, too")
    task = wm.Task(agent.emb, agent.mask, torch.tensor([0]))  # index (B,): the row of those tables for each sample

    show("encoder.0.weight", "D, O+G", params["encoder.0.weight"], "first layer of the encoder h: reads obs and emb")
    z = wm.encode(params, obs, task)
    show("z", "B, Z", z, "the latent z = h(obs, emb): all that the others see of the world. They read emb, too")
    groups = z.unflatten(-1, (-1, wm.SIMNORM_GROUP))
    show("z in groups", "B, Z/8, 8", groups, "SimNorm: each group of 8 is a softmax, so a latent can't blow up")
    check("groups sum to 1", groups.sum(-1), torch.ones(groups.shape[:2]))

    policy = wm.pi(params, z, task, eps=torch.randn(1, cfg.action_dim, generator=agent.generator))
    show("policy.mean", "B, A", policy.mean, "the policy prior p(z): a Gaussian, squashed into [-1, 1] by tanh")
    show("policy.log_std", "B, A", policy.log_std, "log of its standard deviation, before the tanh")
    show("policy.action", "B, A", policy.action, "a sample of it; 0 where masked")
    z_next = wm.dynamics(params, z, policy.action, task)
    show("z_next", "B, Z", z_next, "the dynamics d(z, action): the next latent, without a simulator")

    bins = wm.make_bins(cfg.num_bins)
    show("bins", "K", bins, "-10 to 10: a scalar is encoded as weights over these, as symlog(x) = sign(x) log(1 + |x|)")
    one = wm.two_hot(torch.tensor(1.0), bins)
    near = [f"{one[k]:.2f} on bin {bins[k]:.1f}" for k in one.nonzero().flatten().tolist()]
    show("two_hot(1.0)", "K", one, f"symlog(1) = {wm.symlog(torch.tensor(1.0)):.3f}, so: {' and '.join(near)}")
    logits = wm.reward(params, z, policy.action, task)
    show("reward logits", "B, K", logits, "the reward R(z, action) is predicted as a distribution over the bins ...")
    show("reward", "B", wm.decode(logits, bins), "... and read as symexp of their mean: 0, as last layers start at 0")
    show("q.0.weight", "Q, D, Z+G+A", params["q.0.weight"], "an ensemble: heads that begin differently, stacked")
    q_logits = wm.q(params, z, policy.action, task)
    show("q logits", "Q, B, K", q_logits, "Q(z, action) of every head: discounted rewards from here on, following p")
    show("q", "Q, B", wm.decode(q_logits, bins), "as numbers; where heads differ, the model does not know")


def padded(obs: np.ndarray, cfg: newt.Config) -> Tensor:
    """(o,) -> (1, O)."""
    return F.pad(torch.as_tensor(obs), (0, cfg.obs_dim - len(obs))).unsqueeze(0)


# ---------------------------------------------------------------- 2: an episode


def play(env, buffer: Buffer, choose: Callable[[np.ndarray, bool], np.ndarray], deadline=float("inf")) -> float | None:
    """One episode into the buffer -> its return, the sum of its rewards; None if the time is up before its end.

    choose: obs (o,), whether it is the first of the episode -> action (a,).
    """
    obs, _ = env.reset()
    # Row t: an observation, and the action and reward that led to it. Nothing led to the first one.
    rows, done = [(obs, np.full(env.action_space.shape, np.nan), np.nan)], False
    while not done:
        if time.monotonic() > deadline:
            return None
        action = choose(obs, len(rows) == 1)
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward))
        done = terminated or truncated
    buffer.add(*(np.stack(column) for column in zip(*rows, strict=True)), task=0, terminated=terminated)
    return sum(reward for _, _, reward in rows[1:])


# ---------------------------------------------------------------- 3: one update


def update(agent: newt.Agent, batch: Batch, show: Callable) -> None:
    """One update by newt.update, and everything that it does, here."""
    cfg, params = agent.cfg, agent.params
    show("batch.obs", "H+1, B, O", batch.obs, "B slices of episodes, drawn at random; time comes first")
    show("batch.action", "H, B, A", batch.action, "action[t] leads from obs[t] to obs[t + 1]")
    show("batch.reward", "H, B", batch.reward, "and pays reward[t]")
    show("batch.terminated", "H, B", batch.terminated, "1 where nothing comes after; in the 200 tasks always 0")
    show("batch.task", "B", batch.task, "row in the tables of sentences and masks; here always 0")
    horizon, size, _ = batch.action.shape
    task, mask = wm.Task(agent.emb, agent.mask, batch.task), agent.mask[batch.task]
    bins, num_q, discount = wm.make_bins(cfg.num_bins), len(params["q.0.weight"]), agent.discount[batch.task]
    show("discount", "B", discount, f"of each slice's task, per step: here {discount[0]:.3f}")
    # Noise is an argument, so that the same update can be taken twice: here, and in newt.py.
    noise = losses.draw_update_noise(horizon, size, cfg.action_dim, num_q, agent.generator)
    show("noise.eps_td", "H, B, A", noise.eps_td, "standard normal, for the policy's actions; eps_pi has H+1 steps")
    show("noise.heads_td", "2", noise.heads_td, f"which two of the {num_q} heads to ask; heads_pi likewise")

    # ---- what should have been predicted: no gradient flows here, or all latents could collapse to a constant
    with torch.no_grad():
        z_target = wm.encode(params, batch.obs[1:], task)
        next_action = wm.pi(params, z_target, task, noise.eps_td).action
        q = wm.decode(wm.q(params, z_target, next_action, task, noise.heads_td, part="q_target"), bins)
        td = batch.reward + discount * (1 - batch.terminated) * q.amin(0)
    show("z_target", "H, B, Z", z_target, "latents of what really came next")
    show("q", "2, H, B", q, "their values by these two heads of the target ensemble, a slow copy of Q")
    show("td", "H, B", td, "the value to learn: reward + discount x the smaller of the two")

    # ---- what is predicted: from obs[0] on, the model rolls out its own latents
    zs = [wm.encode(params, batch.obs[0], task)]
    for action in batch.action:
        zs.append(wm.dynamics(params, zs[-1], action, task))
    zs = torch.stack(zs)
    reward_logits = wm.reward(params, zs[:-1], batch.action, task)
    q_logits = wm.q(params, zs[:-1], batch.action, task)
    show("zs", "H+1, B, Z", zs, "obs[0] encoded, and H steps of imagination from there; gradients flow through")
    show("reward logits", "H, B, K", reward_logits, "of every imagined latent and the action that was taken")
    show("q logits", "Q, H, B, K", q_logits, "the same by every head: all of them learn, from the same td")

    # ---- the model's loss: weights fall with time, because imagination gets worse
    rho = cfg.rho ** torch.arange(horizon + 1)
    rho = rho / rho.sum()
    show("rho", "H+1", rho, f"weight of each step: {', '.join(f'{w:.2f}' for w in rho.tolist())}")
    step = rho[:-1, None]  # (H, 1): of the H steps that a slice has an action for, the same for all of its B

    def cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
        return -(wm.two_hot(x, bins) * logits.log_softmax(-1)).sum(-1)

    def length(gradient: tuple[Tensor, ...]) -> Tensor:
        return sum(g.square().sum() for g in gradient).sqrt()

    consistency = (step * (zs[1:] - z_target).square().mean(-1)).sum(0).mean()
    reward = (step * cross_entropy(reward_logits, batch.reward)).sum(0).mean()
    value = (step * cross_entropy(q_logits, td)).sum(-2).mean()  # over heads, too
    model = cfg.consistency_coef * consistency + cfg.reward_coef * reward + cfg.value_coef * value  # 20, 0.1, 0.1
    names = [name for name in params if not name.startswith(("pi.", "q_target."))]
    gradient = torch.autograd.grad(model, [params[name] for name in names])

    # ---- the update itself, by the program
    before, q_scale = {name: value.detach().clone() for name, value in params.items()}, agent.q_scale
    metrics = newt.update(agent, batch, "online", noise)
    check("loss/consistency", consistency, metrics["loss/consistency"])
    check("loss/reward", reward, metrics["loss/reward"])
    check("loss/value", value, metrics["loss/value"])
    check("loss/model", model, metrics["loss/model"])
    check("train/grad_norm", length(gradient), metrics["train/grad_norm"])

    # ---- how weights move. Adam keeps running means of the clipped gradient, m, and of its square, v. Both start at 0,
    # for which the denominators correct: the first step of every weight is the learning rate long (the encoder's is 0.3
    # of the others'), against its gradient's sign.
    name, shrink = "reward.2.weight", min(1.0, cfg.grad_clip / float(length(gradient)))
    adam = agent.model_optim.state[params[name]]
    m, v, t = adam["exp_avg"], adam["exp_avg_sq"], float(adam["step"])
    check("clipped gradient", shrink * gradient[names.index(name)], params[name].grad)
    move = -cfg.lr * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    check("Adam's step", move, params[name] - before[name])
    slow, fast = before["q_target.2.weight"], params["q.2.weight"]
    check("target follows Q", slow + cfg.tau * (fast - slow), params["q_target.2.weight"])

    # ---- the policy's loss comes second: latents from before the update, without gradients, and Q from after it
    zs, params = zs.detach(), {name: value.detach() for name, value in params.items()}
    old = {name: value.requires_grad_() for name, value in before.items() if name.startswith("pi.")}
    policy = wm.pi(old, zs, task, noise.eps_pi)
    q = wm.decode(wm.q(params, zs, policy.action, task, noise.heads_pi), bins).mean(0)
    show("policy.action", "H+1, B, A", policy.action, "what the policy would do in each latent")
    show("q", "H+1, B", q, "how good that would be, by the two heads_pi: the policy makes it larger")
    # Entropy rewards staying undecided. The published scaling cancels the tanh's correction; what remains is the
    # entropy of the Gaussian times the number of real action numbers.
    log_gauss = (-0.5 * policy.eps.square() - policy.log_std - wm.LOG_SQRT_2PI).sum(-1)
    entropy = -log_gauss * mask.sum(-1)
    error = ((policy.action[:-1] - batch.action).square() * mask).sum(-1) / mask.sum(-1)  # (H, B)
    imitate = cfg.online_bc_coef * agent.guided[batch.task]  # 0 here: without demonstrations it would imitate itself
    # Per slice, what the policy should make large. q_scale is the running 5..95 % range of q, at least 1.
    want = (rho[:, None] * (cfg.entropy_coef * entropy + q / q_scale)).sum(0)
    show("entropy", "H+1, B", entropy, "made larger as well, but counts little")
    show("error", "H, B", error, "distance to the batch's action: imitation, for tasks with demonstrations")
    check("loss/bc", error.mean(), metrics["loss/bc"])
    loss = (imitate * (step * error).sum(0) - want).mean()
    check("loss/pi", loss, metrics["loss/pi"])
    check("train/pi_grad_norm", length(torch.autograd.grad(loss, list(old.values()))), metrics["train/pi_grad_norm"])
    spread = (q[0].quantile(0.95) - q[0].quantile(0.05)).clamp(min=1)
    check("train/q_scale", q_scale + cfg.tau * (spread - q_scale), metrics["train/q_scale"])


# ---------------------------------------------------------------- 4: one decision


@torch.no_grad()
def decide(agent: newt.Agent, obs: Tensor, path: Path, title: str, show: Callable) -> None:
    """One decision for obs (1, O), searched here and by planner.plan, and its picture."""
    cfg, mask, settings = agent.cfg, agent.mask, newt.plan_settings(agent.cfg)
    task = wm.Task(agent.emb, mask, torch.zeros(1, 1, dtype=torch.long))  # index (B, 1): one task for all N plans
    model = newt.planner_model(agent.params, task, wm.make_bins(cfg.num_bins))
    z = wm.encode(agent.params, obs, task._replace(index=torch.tensor([0])))
    noise = planner.draw_noise(settings, 1, cfg.action_dim, len(agent.params["q.0.weight"]), agent.generator)
    warm = torch.zeros(1, cfg.horizon, cfg.action_dim)
    show("obs", "B, O", obs, "the pole hangs; again B = 1 environment")
    show("z", "B, Z", z, "where all plans begin")
    show("warm", "B, H, A", warm, "the mean that the previous decision ended with; it is moved one step on")
    show("noise.pi", "B, H, P, A", noise.pi, "standard normal, for the plans of the policy ...")
    show("noise.sample", "I, B, H, N-P, A", noise.sample, "... and those of the Gaussian, new in each iteration")
    show("noise.terminal", "I, B, N, A", noise.terminal, "for the policy's action where a plan ends, with whose Q ...")
    show("noise.heads", "I, 2", noise.heads, "... by these two heads it is continued")
    show("noise.gumbel", "B, E", noise.gumbel, "draws one of the elites; noise.final (B, A) explores around it")

    # ---- the search (MPPI): try many plans in the model, fit a Gaussian to the best, try again from there
    start = z.unsqueeze(1)  # (B, 1, Z): the same for all N plans
    own = planner.policy_plans(model, start, noise.pi)
    mean, std, drawn = warm, torch.full_like(warm, settings.std_max), []
    for i in range(settings.iterations):
        tried = (mean.unsqueeze(2) + std.unsqueeze(2) * noise.sample[i]).clamp(-1, 1) * mask
        plans = torch.cat((own, tried), 2)
        value = planner.plan_return(model, start, plans, agent.discount, noise.terminal[i], noise.heads[i])
        mean, std, elite, weight = planner.refit(plans, value, settings)
        mean, std = mean * mask, std * mask
        drawn.append((plans, value, mean, std))
    show("own", "B, H, P, A", own, "plans of the policy prior, rolled out in the model; they stay in all iterations")
    show("plans", "B, H, N, A", plans, "those, and sequences of H actions from the Gaussian")
    show("value", "B, N", value, "what the model expects of each: H rewards, then Q of where it ends")
    show("elite", "B, H, E, A", elite, "the E best, best first")
    show("weight", "B, E", weight, f"softmax of {settings.temperature} * value: how much each counts in the fit")
    show("mean", "B, H, A", mean, "the Gaussian that fits them; the next decision's search starts here, one step on")
    show("std", "B, H, A", std, f"width, from {settings.std_max} down to {settings.std_min} at least; 0 where masked")

    inputs = (model, z, warm, torch.tensor([True]), mask, agent.discount, settings, noise)
    plan = planner.plan(*inputs, explore=False)
    show("plan.chosen", "B, H, A", plan.chosen, "one elite, drawn by weight ...")
    show("plan.action", "B, A", plan.action, "... whose first action is executed; exploring adds noise of width std")
    check("plan.value", value, plan.value)
    check("plan.mean, plan.std", torch.stack((mean, std)), torch.stack((plan.mean, plan.std)))

    # ---- elite="sure": a search also finds where the model is wrong. So we leave the policy's own plan only if another
    # one beats it by a margin over how much the Q(H+1) estimates differ: h rewards of the model, then what head k says,
    # for all h from 0 to H and all k.
    calm = planner.policy_plans(model, start, torch.zeros_like(noise.pi[:, :, :1]))  # the policy's, without noise
    candidates = torch.cat((calm, mean.unsqueeze(2), elite), 2)
    ways = planner.advantages(model, start, candidates, agent.discount)
    # All estimates may share an error, which grows with the distance from what the policy would do.
    far = (candidates - calm).square().sum((1, 3)).sqrt()
    spread = (own - calm).square().sum((1, 3)).mean(1).sqrt()
    near = torch.maximum(spread, settings.std_min * (settings.horizon * mask.sum(1)).sqrt())
    sure = ways.mean(0) - settings.caution * ways.std(0) * (far / near.unsqueeze(1)).clamp(min=1)
    best = int(sure.argmax(1))
    show("candidates", "B, H, 2+E, A", candidates, "for elite='sure': policy's plan, Gaussian's mean, elites")
    show("ways", "Q(H+1), B, 2+E", ways, "by how much each beats the policy's, by every estimate: heads of h = 0 first")
    show("far", "B, 2+E", far, "norm of how each differs from the policy's")
    show("near", "B", near, "the same of the policy's samples: so far the ways are believed")
    show("sure", "B, 2+E", sure, f"mean of ways less {settings.caution} std, beyond near times far / near")
    check("plan.chosen", candidates[:, :, best], planner.plan(*inputs, explore=False, elite="sure").chosen)
    what = ["the policy's plan: nothing is better for sure", "the Gaussian's mean", f"elite {best - 2}"][min(best, 2)]
    print(f"    chosen: {what} (the best of the others: {sure[0, 1:].max():.4g})")
    draw_plans(drawn, settings, path, title)


def draw_plans(drawn: list[tuple], settings: planner.Settings, path: Path, title: str) -> None:
    """A panel per iteration: first action and expected return of every plan, and the Gaussian that fits the elites."""
    figure, axes = plt.subplots(1, len(drawn), figsize=(3.2 * len(drawn), 3), sharey=True, layout="constrained")
    x = torch.linspace(-1, 1, 200)
    for i, (axis, (plans, value, mean, std)) in enumerate(zip(axes, drawn, strict=True)):
        first, best = plans[0, 0, :, 0], value[0].topk(settings.num_elites).indices
        axis.plot(first, value[0], ".", color="lightgrey", label=f"{len(first)} plans")
        axis.plot(first[best], value[0, best], ".", color="tab:orange", label=f"{len(best)} elites")
        bell = axis.twinx()
        bell.fill_between(x, torch.exp(-0.5 * ((x - mean[0, 0, 0]) / std[0, 0, 0]) ** 2), alpha=0.2)
        bell.set(ylim=(0, 1.5), yticks=[])
        axis.set(title=f"iteration {i + 1}: {mean[0, 0, 0]:.2f} ± {std[0, 0, 0]:.2f}", xlabel="first action of a plan")
    axes[0].set_ylabel("return, as the model expects")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"One decision {title}; blue: the Gaussian that fits the elites")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"    picture  {path}")


# ---------------------------------------------------------------- 5: decide, act, remember, update


def learn(agent: newt.Agent, env, buffer: Buffer, sampler: torch.Generator, minutes: float) -> list[float]:
    """Train for so long -> the return of every episode that ended. train.py does this for many environments at once."""
    cfg, zero, start = agent.cfg, torch.tensor([0]), time.monotonic()
    warm, returns = torch.zeros(1, cfg.horizon, cfg.action_dim), []
    look = "{l_bar}{bar}| {n:.0f} of {total:.0f} s{postfix}"  # tqdm puts a comma before the postfix
    with tqdm(total=60 * minutes, desc="training", mininterval=1, bar_format=look) as bar:

        def choose(obs: np.ndarray, first: bool) -> np.ndarray:
            nonlocal warm
            plan = newt.act(agent, padded(obs, cfg), zero, warm, torch.tensor([first]), explore=True)
            newt.update(agent, buffer.sample(cfg.batch_size, cfg.horizon, sampler), "online")
            warm = plan.mean
            bar.update(min(time.monotonic() - start, bar.total) - bar.n)
            return plan.action[0, : env.action_space.shape[0]].numpy()

        while (ret := play(env, buffer, choose, start + 60 * minutes)) is not None:
            returns.append(ret)
            bar.set_postfix_str(f"last return {ret:.0f}")
    return returns


def draw_curve(returns: list[float], length: int, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axis.plot(np.arange(1, len(returns) + 1) * length, returns, "o-", label="episodes; the first one acts at random")
    axis.axhline(57, color="grey", linestyle=":", label="random, mean of 20 (results/random_policy.csv)")
    axis.axhline(870, color="tab:green", linestyle=":", label="planning in the simulator (results/demos.csv)")
    axis.set(title=TASK, xlabel="environment steps", ylabel="return of the episode", ylim=(0, 1000), xlim=(0, None))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    few = "" if len(returns) > 3 else "; few episodes ended in this time, --minutes 10 shows more"
    print(f"    returns  {', '.join(f'{ret:.0f}' for ret in returns)}{few}\n    picture  {path}\n")


def main(cfg: Tour) -> None:
    command.check_fields(cfg, RANGES)
    command.try_folder(cfg.out)
    cfg.out.mkdir(parents=True, exist_ok=True)
    settings, row = train_config.FROM_SCRATCH.agent, envs.TASKS[TASK]  # as `train.py --preset laptop --demos none`
    share_cores(settings.size)
    emb, dims, discounts = language.embed([row.sentence]), [row.action_dim], [row.discount]
    agent = newt.create(settings, [TASK], emb, dims, discounts, guided=[False])
    env, sampler = envs.make(TASK, seed=0), torch.Generator().manual_seed(0)
    buffer = Buffer(500_000, settings.obs_dim, settings.action_dim)
    print(f"{wm.num_params(agent.params) / 1e6:.1f} million parameters, size {settings.size}")

    parts(agent, env)

    print("\n==== 2  An episode of random actions, remembered (buffer.py)\n")
    env.action_space.seed(0)
    returns = [play(env, buffer, lambda obs, first: env.action_space.sample())]
    print(f"return {returns[0]:.1f} of 1000")

    print("\n==== 3  One update, by hand (losses.py: model_loss, policy_loss; newt.py: update)\n")
    update(agent, buffer.sample(settings.batch_size, settings.horizon, sampler), show)
    print("\nloss/reward and loss/value were log 101 = 4.62, all bins being equally likely, times sum(rho[:H]) = 0.93.")
    print("After 50 more updates:\n")
    for _ in range(50):
        newt.update(agent, buffer.sample(settings.batch_size, settings.horizon, sampler), "online")
    update(agent, buffer.sample(settings.batch_size, settings.horizon, sampler), lambda *_: None)

    print("\n==== 4  One decision, by hand (planner.py)\n")
    obs = padded(env.reset()[0], settings)
    decide(agent, obs, cfg.out / "plans_at_first.png", f"after {agent.updates} updates", show)

    print(f"\n==== 5  {cfg.minutes:g} minutes of training: decide, act, remember, update (train.py)\n")
    returns += learn(agent, env, buffer, sampler, cfg.minutes)
    draw_curve(returns, row.episode_length, cfg.out / "curve.png")
    decide(agent, obs, cfg.out / "plans_trained.png", f"after {agent.updates} updates", lambda *_: None)
    print("\nFor longer, with tables, curves and a film (results/from_scratch.csv: 850 after 2 x 10,000 steps):")
    print(f"python train.py --preset laptop --tasks {TASK} --demos none --envs-per-task 2 --steps 10000")


if __name__ == "__main__":
    command.run(main, given)
