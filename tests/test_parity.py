"""Newt against numbers recorded from the published implementation: networks, losses, gradients, updates, plans.

Run: pytest tests/test_parity.py        (about 5 s on one core)

The recording: github newt, commit 75def92, CPU, float32, one thread, every random draw replaced by a stored array.
Sizes: T = H = 3 steps, B = 8, obs 16, action 5 (the four tasks have 5, 3, 2, 1 real dims), task embedding 24,
latent 64, encoder 64 (3 layers), mlp 96, 5 Q heads, 101 bins; planning: 3 environments, 32 samples, 8 elites, 4 policy
plans, 6 iterations. No layer is zero, and the target ensemble differs from the online one on purpose.

Tolerance: |x - ref| <= 1e-5 + 1e-5 |ref|. Parameters after updates: Adam divides by sqrt(v), which amplifies rounding
where the gradient is about 1e-8, so one element in a thousand may be off by more than 1e-5, none by more than 1e-4.
That says little about small numbers: the mean error of a part's gradient must also be below 0.1 % of its mean size, and
that of its updates (1e-4 to 1e-3) below 1 %.

tests/data/parity.npz is a trimmed copy (the whole recording, 10 MB, agrees as well):
- Names are ours: `_encoder.state.i` -> `encoder.i`, `_dynamics`, `_reward`, `_pi` -> `dynamics`, `reward`, `pi`,
  `_Qs.online._Qs.k.i` stacked over k -> `q.i`, `_Qs.target._Qs.k.i` -> `q_target.i`. No trailing singleton axes.
- params_init: all parameters in sorted order as one float32 vector, its bytes transposed to (4, n) because the
  exponents then compress well. The target's head 4, which no TD target here uses, is left out; `initial_params` puts
  the online one in its place.
- Logits, gradients and updated parameters: every 97th element (`stride`) of each flattened tensor, the tensors of a
  part joined in sorted order; q_target only of the heads in `target_heads`, online_onlinetarget's q only of head 0.
- Scalars of one kind are one array; the columns are named in the tests. Left out are scalars that follow from those
  kept (means of the entropy, of log_std, ...), interp.mean and .std (planning's init_mean and init_std show the
  same), discount.fixture_tasks and lr.at_construction. Planning, losses, batches and noise are complete.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import envs
import losses
import newt
import planner
import world_model as wm
from buffer import Batch
from world_model import Policy, Task

with np.load(Path(__file__).parent / "data" / "parity.npz", allow_pickle=False) as file:
    DATA = {name: torch.from_numpy(file[name]) for name in file.files}

SIZE = wm.Size(enc_dim=64, mlp_dim=96, latent_dim=64, num_enc_layers=3, num_q=5)
BINS = wm.make_bins()
STRIDE = int(DATA["stride"])
PLAN_STEPS = ("None", "0", "2000000", "6000000", "10000000", "12000000")  # None: no constraint
CFG = newt.Config(
    obs_dim=16, action_dim=5, task_dim=24, batch_size=8, num_samples=32, num_elites=8, num_pi=4, warmup_updates=0
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As recorded: another number of threads adds up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(got: Tensor, name: str) -> None:
    torch.testing.assert_close(got.detach(), DATA[name], rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


def group(prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in DATA.items() if name.startswith(prefix)}


def initial_params() -> wm.Params:
    flat = torch.from_numpy(np.ascontiguousarray(DATA["params_init"].numpy().T).view(np.float32).ravel())
    params, heads = wm.init(SIZE, obs_dim=16, action_dim=5, task_dim=24), DATA["target_heads"]
    kept = {name: value[heads] if name.startswith("q_target.") else value for name, value in params.items()}
    pieces = flat.split([kept[name].numel() for name in sorted(kept)])
    given = {name: piece.view(kept[name].shape) for name, piece in zip(sorted(kept), pieces, strict=True)}
    for name in params:
        if name.startswith("q_target."):
            given[name] = given[name.replace("q_target.", "q.")].index_copy(0, heads, given[name])
    return given


PARAMS = initial_params()


def sample(tensors: dict[str, Tensor], part: str, heads: Tensor | None = None) -> Tensor:
    """The elements of a part that are stored."""
    chosen = [tensors[name] for name in sorted(tensors) if name.startswith(f"{part}.")]
    return torch.cat([(v if heads is None else v[heads]).detach().flatten()[::STRIDE] for v in chosen])


def make_agent(**settings) -> newt.Agent:
    dims, discounts = [5, 3, 2, 1], [0.95, 0.95, 0.99, 0.995]
    return newt.create(replace(CFG, **settings), list("abcd"), DATA["task.emb"], dims, discounts, params=PARAMS)


def make_batch(step: int) -> tuple[Batch, losses.UpdateNoise]:
    b = group(f"batches.step{step}.")
    noise = losses.UpdateNoise(b["eps_td"], b["eps_bc"], b["eps_pi"], heads_td=b["qidx_td"], heads_pi=b["qidx_pi"])
    return Batch(b["obs"], b["action"], b["reward"], b["task"]), noise


BATCH, NOISE = make_batch(0)
TASK = Task(DATA["task.emb"], DATA["task.mask"], BATCH.task)
MASK = F.embedding(BATCH.task, DATA["task.mask"])  # (B, A)


def test_the_agent_has_the_published_masks():
    assert torch.equal(make_agent().mask, DATA["task.mask"])


# ---------------------------------------------------------------- maths


def test_math_two_hot():
    close(wm.symlog(DATA["math.two_hot.x"]), "math.two_hot.symlog")
    close(wm.two_hot(DATA["math.two_hot.x"], BINS), "math.two_hot.enc")


def test_math_soft_ce():
    close(wm.two_hot_cross_entropy(DATA["math.soft_ce.logits"], DATA["math.two_hot.x"], BINS), "math.soft_ce.loss")


def test_math_two_hot_inv():
    close(wm.decode(DATA["math.soft_ce.logits"], BINS), "math.two_hot_inv")


def test_math_symexp():
    close(wm.symexp(DATA["math.symexp.x"]), "math.symexp")


def test_math_log_std():
    # A policy of one layer that hands its input through: mean 0, raw log_std x.
    params = {"pi.0.weight": torch.eye(2), "pi.0.bias": torch.zeros(2)}
    x = DATA["math.log_std.x"].unsqueeze(1)
    task = Task(torch.zeros(1, 0), torch.ones(1, 1), torch.tensor(0))
    policy = wm.pi(params, F.pad(x, (1, 0)), task, eps=torch.zeros_like(x))
    close(policy.log_std[:, 0], "math.log_std")


def test_math_rho():
    close(losses.time_weights(3, CFG.rho), "math.rho")


def test_math_masked_bc():
    action = DATA["math.masked_bc.pi_action"]
    close(losses.imitation_error(Policy(action, action, action, action), BATCH.action, MASK), "math.masked_bc.loss")


def test_math_discount():
    lengths = DATA["math.discount.episode_length"].tolist()
    recorded = dict(zip(lengths, DATA["math.discount.value"].tolist(), strict=True))
    rows = [task for task in envs.TASKS.values() if not task.discount_explicit]
    assert {task.episode_length for task in rows} >= {25, 100, 200, 500}
    for task in rows:
        assert task.discount == pytest.approx(recorded[task.episode_length], rel=1e-5), task.name


@pytest.mark.parametrize("batch", ("b8", "b1000"))
def test_math_scale(batch):
    scale, values = torch.tensor(1.0), []
    for x, (low, high) in zip(DATA[f"math.scale.{batch}.x"], DATA[f"math.scale.{batch}.percentiles"], strict=True):
        torch.testing.assert_close(losses.update_scale(scale, x, tau=1.0), (high - low).clamp(min=1))
        scale = losses.update_scale(scale, x, CFG.tau)
        values.append(scale)
    close(torch.stack(values), f"math.scale.{batch}.value")


def test_math_gumbel():
    # One-step plans whose action is their own number / 8 and whose return gives them the recorded probability.
    p, exponential = DATA["math.gumbel.p"], DATA["math.gumbel.exponential"]  # (4, 8)
    order = p.argsort(1, descending=True)  # elites come best first, and the noise must follow them
    settings = planner.Settings(horizon=1, num_samples=8, num_elites=8, num_pi=0, iterations=1)
    model = planner.Model(
        next=lambda z, action: z,
        reward=lambda z, action: p.log() / settings.temperature,
        pi=lambda z, eps: eps,
        q=lambda z, action, heads: torch.zeros_like(p),
    )
    noise = planner.draw_noise(settings, 4, 1, 5, torch.Generator().manual_seed(0))
    number = torch.arange(8) / 8 / settings.std_max
    noise = noise._replace(
        sample=number.view(1, 1, 1, 8, 1).expand(1, 4, 1, 8, 1), gumbel=-exponential.gather(1, order).log()
    )
    zeros, ones = torch.zeros(4, 1, 1), torch.ones(4, 1)
    first = torch.zeros(4, dtype=torch.bool)
    plan = planner.plan(model, zeros[:, 0], zeros, first, ones, ones[:, 0], settings, noise, explore=False)
    assert (plan.action[:, 0] * 8).round().long().tolist() == DATA["math.gumbel.index"].tolist()


def test_math_interp():
    weights = [planner.policy_weight(int(s), 2_000_000, 10_000_000) for s in DATA["math.interp.steps"]]
    close(torch.tensor(weights), "math.interp.weight")
    assert (CFG.constraint_start, CFG.constraint_duration) == (2_000_000, 10_000_000)


def test_math_lr():
    # Columns: encoder, dynamics, reward, Q, pi, and the policy's own optimiser, which runs online only: no warm-up.
    agent = make_agent(warmup_updates=5000)
    for number, wanted in zip(DATA["math.lr.update_number"], DATA["math.lr.value"], strict=True):
        agent.updates = int(number) - 1
        newt.update(agent, BATCH, "pretrain", NOISE)
        got = [group["lr"] for group in agent.model_optim.param_groups]
        assert got == pytest.approx(wanted[:5].tolist(), rel=1e-5), f"update {number}"
    assert agent.pi_optim.param_groups[0]["lr"] == pytest.approx(float(wanted[5]), rel=1e-5)


# ---------------------------------------------------------------- forward passes


def test_forward_encode():
    close(wm.encode(PARAMS, BATCH.obs, TASK), "forward.z")


def test_forward_dynamics():
    close(wm.dynamics(PARAMS, DATA["forward.z"][:3], BATCH.action, TASK), "forward.next_z")


def test_forward_reward():
    logits = wm.reward(PARAMS, DATA["forward.z"][:3], BATCH.action, TASK)
    close(logits.flatten()[::STRIDE], "forward.reward_logits")
    close(wm.decode(logits, BINS), "forward.reward")


def test_forward_pi():
    policy = wm.pi(PARAMS, DATA["forward.z"], TASK, DATA["forward.pi.eps"])
    entropy, scaled = wm.entropy(policy, MASK)
    for got, name in ((policy.action, "action"), (policy.mean, "mean"), (policy.log_std, "log_std")):
        close(got, f"forward.pi.{name}")
    close(entropy, "forward.pi.entropy")
    close(scaled, "forward.pi.scaled_entropy")


@pytest.mark.parametrize("part, name", (("q", "q_online"), ("q_target", "q_target")))
def test_forward_q(part, name):
    heads = DATA["target_heads"] if part == "q_target" else None
    logits = wm.q(PARAMS, DATA["forward.z"][:3], BATCH.action, TASK, heads, part)
    close(logits.flatten()[::STRIDE], f"forward.{name}_logits")
    close(wm.decode(logits, BINS), f"forward.{name}")
    two = wm.decode(wm.q(PARAMS, DATA["forward.z"][:3], BATCH.action, TASK, DATA["forward.q_subset"], part), BINS)
    close(two.amin(0), f"forward.{name}_min")
    close(two.mean(0), f"forward.{name}_avg")


def test_forward_plan_shape():
    z, action = DATA["forward.plan_shape.z"], DATA["forward.plan_shape.action"]  # (3, 6, .)
    task = TASK._replace(index=DATA["forward.plan_shape.task"].unsqueeze(1))
    close(wm.dynamics(PARAMS, z, action, task), "forward.plan_shape.next_z")
    close(wm.decode(wm.reward(PARAMS, z, action, task), BINS), "forward.plan_shape.reward")


# ---------------------------------------------------------------- losses and gradients


TD_TARGETS = {"ema": "ema", "online_target": "online"}  # prefix in the recording -> our setting
MODEL_COLUMNS = ("loss/consistency", "loss/reward", "loss/value", "loss/model")


@cache
def model_loss(td_target: str, phase: str) -> tuple[newt.Agent, Tensor, dict[str, Tensor]]:
    """zs, metrics, and an agent whose parameters carry the gradients of the model loss."""
    agent = make_agent(td_target=td_target)
    discount = agent.discount[BATCH.task]
    loss, zs, metrics = losses.model_loss(agent.cfg, agent.params, BATCH, TASK, discount, NOISE, phase)
    loss.backward()
    return agent, zs.detach(), metrics


@cache
def policy_loss(scale: str) -> tuple[newt.Agent, dict[str, Tensor]]:
    """Metrics, and an agent whose parameters carry the gradients of the online policy loss."""
    agent = make_agent()
    loss, metrics = losses.policy_loss(
        agent.params, DATA["losses.ema.zs"], BATCH.action, TASK, NOISE.eps_pi, NOISE.heads_pi,
        torch.tensor(float(scale)), losses.time_weights(3, CFG.rho), BINS, CFG.entropy_coef,
    )  # fmt: skip
    loss.backward()
    return agent, metrics


def grads(agent: newt.Agent) -> dict[str, Tensor]:
    return {name: value.grad for name, value in agent.params.items() if value.grad is not None}


def norm(tensors: dict[str, Tensor], part: str = "") -> Tensor:
    return torch.stack([torch.zeros(()), *(v.norm() for k, v in tensors.items() if k.startswith(part))]).norm()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().mean() / wanted.abs().mean())


@pytest.mark.parametrize("prefix", TD_TARGETS)
def test_td_target(prefix):
    z, td = losses.td_target(
        PARAMS, BATCH.obs[1:], BATCH.reward, make_agent().discount[BATCH.task], TASK, NOISE.eps_td, NOISE.heads_td,
        BINS, TD_TARGETS[prefix],
    )  # fmt: skip
    close(td, f"losses.{prefix}.td_target")
    close(z, "losses.ema.encoded_next")


@pytest.mark.parametrize("phase", ("pretrain", "online"))
@pytest.mark.parametrize("prefix", TD_TARGETS)
def test_model_loss(prefix, phase):
    agent, zs, metrics = model_loss(TD_TARGETS[prefix], phase)
    close(torch.stack([metrics[name] for name in MODEL_COLUMNS]), f"losses.{prefix}.{phase}.losses")
    close(zs, "losses.ema.zs")
    parts = [norm(grads(agent), f"{part}.") for part in newt.PARTS]  # encoder, dynamics, reward, q, pi
    close(torch.stack([*parts, norm(grads(agent))]), f"losses.{prefix}.{phase}.grad_norm")


@pytest.mark.parametrize("prefix", TD_TARGETS)
def test_model_loss_per_step(prefix):
    """Each loss on the recorded latents with all the weight on one step."""
    zs, action = DATA["losses.ema.zs"], BATCH.action
    rewards, values = wm.reward(PARAMS, zs[:3], action, TASK), wm.q(PARAMS, zs[:3], action, TASK)
    steps = torch.eye(3)
    z_next, td = DATA["losses.ema.encoded_next"], DATA[f"losses.{prefix}.td_target"]
    consistency = [losses.consistency_loss(zs[1:], z_next, rho)[0] for rho in steps]
    close(torch.stack(consistency), "losses.ema.consistency_t")
    reward = [losses.reward_loss(rewards, BATCH.reward, rho, BINS)[0] for rho in steps]
    close(torch.stack(reward), "losses.ema.reward_ce_t")
    per_head = [[losses.value_loss(head.unsqueeze(0), td, rho, BINS)[0] for rho in steps] for head in values]
    close(torch.tensor(per_head), f"losses.{prefix}.value_ce_qt")


def test_bc_loss():
    policy = wm.pi(PARAMS, DATA["losses.ema.zs"][:3], TASK, NOISE.eps_bc)
    entropy, scaled = wm.entropy(policy, MASK)
    close(losses.imitation_error(policy, BATCH.action, MASK), "losses.ema.pretrain.bc_loss")
    close(entropy, "losses.ema.pretrain.pi_entropy")
    close(scaled, "losses.ema.pretrain.pi_scaled_entropy")
    close(-CFG.entropy_coef * scaled, "losses.ema.pretrain.entropy_loss")
    loss, _ = losses.bc_loss(policy, BATCH.action, MASK, DATA["math.rho"][:3], CFG.entropy_coef)
    close(loss, "losses.ema.pretrain.pi_prior_loss")


@pytest.mark.parametrize("scale", ("1.0", "2.7"))
def test_policy_loss(scale):
    agent, metrics = policy_loss(scale)
    name = f"losses.pi_loss.scale{scale}"
    close(metrics["loss/pi"], f"{name}.pi_loss")
    close(metrics["q"], f"{name}.qs0")
    assert {k.split(".")[0] for k in grads(agent)} == {"pi"}, "the policy loss must not move Q"
    close(norm(grads(agent)), f"{name}.grad_norm")
    policy = wm.pi(PARAMS, DATA["losses.ema.zs"], TASK, NOISE.eps_pi)
    entropy, scaled = wm.entropy(policy, MASK)
    close(entropy, f"{name}.entropy")
    close(scaled, f"{name}.scaled_entropy")
    error = losses.imitation_error(Policy(*(v[:3] for v in policy)), BATCH.action, MASK)
    close((DATA["math.rho"][:3, None] * error).sum(0).mean(), f"{name}.pi_prior_loss")
    close(policy.log_std.exp().mean(), f"{name}.pi_std")  # masked dims count as 1, as published
    close(policy.log_std.exp().max(), f"{name}.pi_max_std")


GRADS = [name.removeprefix("grads.") for name in DATA if name.startswith("grads.")]


def test_gradients_are_complete():
    parts = ("encoder", "dynamics", "reward", "q")
    wanted = {f"{phase}.{part}" for phase in ("pretrain", "online") for part in parts}
    assert set(GRADS) == wanted | {"pretrain.pi", "pi_loss.scale2.7.pi"}


@pytest.mark.parametrize("name", GRADS)
def test_gradients(name):
    kind, part = name.rsplit(".", 1)
    agent = policy_loss("2.7")[0] if kind == "pi_loss.scale2.7" else model_loss("ema", kind)[0]
    got = sample(grads(agent), part)
    close(got, f"grads.{name}")
    assert relative_error(got, DATA[f"grads.{name}"]) < 1e-3


# ---------------------------------------------------------------- updates


RUNS = {
    "pretrain": {},
    "online": {},
    "online_clip": {"grad_clip": 0.05},  # active in both optimisers
    "online_onlinetarget": {"td_target": "online"},
}
COLUMNS = {
    "pretrain": (*MODEL_COLUMNS, "train/grad_norm", "loss/bc", "train/entropy", "train/q_scale"),
    "online": (*MODEL_COLUMNS, "train/grad_norm", "loss/pi", "train/entropy", "train/pi_grad_norm", "train/q_scale"),
}
ALL_PARTS = {*newt.PARTS, "q_target"}
SAVED = {  # run and number of updates -> recorded parts
    ("pretrain", 1): ALL_PARTS,
    ("pretrain", 3): ALL_PARTS,
    ("online", 1): ALL_PARTS,
    ("online", 3): ALL_PARTS,
    ("online_clip", 3): {"encoder", "dynamics", "pi"},
    ("online_onlinetarget", 3): {"encoder", "q"},
}


@cache
def run(name: str) -> tuple[list[dict[str, Tensor]], list[wm.Params]]:
    """Metrics and parameters after each of three updates."""
    agent, metrics, params = make_agent(**RUNS[name]), [], []
    for step in range(3):
        batch, noise = make_batch(step)
        metrics.append(newt.update(agent, batch, name.split("_")[0], noise))
        params.append({key: value.detach().clone() for key, value in agent.params.items()})
    return metrics, params


@pytest.mark.parametrize("name", RUNS)
def test_update_metrics(name):
    columns = COLUMNS[name.split("_")[0]]
    close(torch.stack([torch.stack([step[key] for key in columns]) for step in run(name)[0]]), f"updates.{name}")


@pytest.mark.parametrize("name, updates", SAVED, ids=lambda value: str(value))
def test_updated_params(name, updates):
    recorded = group(f"params.{name}.step{updates}.")
    assert set(recorded) == SAVED[name, updates]
    errors = []
    for part, wanted in recorded.items():
        heads = DATA["target_heads"] if part == "q_target" else None
        if (name, part) == ("online_onlinetarget", "q"):
            heads = torch.tensor([0])
        got, before = sample(run(name)[1][updates - 1], part, heads), sample(PARAMS, part, heads)
        errors.append((got - wanted).abs())
        assert relative_error(got - before, wanted - before) < 0.01, part
    errors = torch.cat(errors)
    assert (errors > 1e-5).float().mean() <= 1e-3
    assert errors.max() <= 1e-4


# ---------------------------------------------------------------- planning


def plan_noise() -> planner.Noise:
    x = group("plan.in.")
    eps = x["eps_pi_traj"].unflatten(1, (3, 4)).transpose(0, 1)  # (H, B*P, A) -> (B, H, P, A)
    gumbel = -x["exponential"].log()
    return planner.Noise(eps, x["eps_sample"], x["eps_terminal"], x["qidx"], gumbel, x["eps_final"])


def policy_weight(step: str) -> float:
    if step == "None":
        return 0.0
    return planner.policy_weight(int(step), CFG.constraint_start, CFG.constraint_duration)


@pytest.fixture
def make_plan(monkeypatch):
    """`planner.plan` for the recorded decision, and the (plans, returns) that each of its iterations looked at."""
    seen, plan_return = [], planner.plan_return

    def spy(model, z, actions, *rest):
        seen.append((actions, plan_return(model, z, actions, *rest)))
        return seen[-1][1]

    def make(step: str, noise: planner.Noise, explore: bool = False) -> tuple[planner.Plan, list]:
        agent, x = make_agent(), group("plan.in.")
        task = Task(agent.emb, agent.mask, x["task"])
        model = newt.planner_model(agent.params, task._replace(index=x["task"].unsqueeze(1)), BINS)
        z, mask, discount = wm.encode(agent.params, x["obs"], task), agent.mask[x["task"]], agent.discount[x["task"]]
        weight, settings = policy_weight(step), newt.plan_settings(CFG)
        plan = planner.plan(model, z, x["prev_mean"], x["t0"], mask, discount, settings, noise, weight, explore)
        return plan, seen

    monkeypatch.setattr(planner, "plan_return", spy)
    return make


@pytest.mark.parametrize("mode", ("eval", "train"))
@pytest.mark.parametrize("step", PLAN_STEPS)
def test_plan(make_plan, step, mode):
    plan, seen = make_plan(step, plan_noise(), explore=mode == "train")
    close(torch.stack([value for _, value in seen]), f"plan.step{step}.values")
    close(plan.mean, f"plan.step{step}.out_mean")
    close(plan.action, f"plan.step{step}.{mode}.action")
    if step in ("None", "0"):
        close(seen[0][0], f"plan.step{step}.actions_iter0")
        close(seen[5][0], f"plan.step{step}.actions_iter5")


@pytest.mark.parametrize("step", PLAN_STEPS[1:])
def test_initial_gaussian(make_plan, step):
    """Noise 0 shows the mean, noise 1/2 / std towards 0 shows the standard deviation (in units of the recorded one)."""
    mean, std = DATA[f"plan.step{step}.init_mean"], DATA[f"plan.step{step}.init_std"]  # (B, H, A)
    towards_zero = torch.where(mean > 0, -0.5, 0.5)
    noise = torch.zeros_like(plan_noise().sample)
    noise[0, :, :, 1] = towards_zero / std
    _, seen = make_plan(step, plan_noise()._replace(sample=noise))
    mask = DATA["task.mask"][DATA["plan.in.task"]].unsqueeze(1)
    plans = seen[0][0][:, :, 4:]  # behind those of the policy
    close(plans[:, :, 0], f"plan.step{step}.init_mean")
    torch.testing.assert_close(plans[:, :, 1], (mean + towards_zero) * mask, rtol=1e-5, atol=1e-5)


def test_policy_plans(make_plan):
    _, seen = make_plan("0", plan_noise())
    actions = seen[0][0][:, :, :4]
    close(actions.mean(2), "plan.pi_mean")
    close(actions.std(2).clamp(0.05, 2.0), "plan.pi_std")


@pytest.mark.parametrize("mode", ("eval", "train"))
@pytest.mark.parametrize("step", PLAN_STEPS[1:])
def test_act(monkeypatch, step, mode):
    """The same decision through `newt.act`, which may split the environments into groups."""
    monkeypatch.setattr(planner, "draw_noise", lambda *_: plan_noise())
    x = group("plan.in.")
    plan = newt.act(make_agent(), x["obs"], x["task"], x["prev_mean"], x["t0"], int(step), explore=mode == "train")
    close(plan.mean, f"plan.step{step}.out_mean")
    close(plan.action, f"plan.step{step}.{mode}.action")
