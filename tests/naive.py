"""The network and the planner of Newt once more, slow and obvious: the twin that the fast ones are tested against.

Written from the papers (Newt, arXiv 2511.19584; TD-MPC2, arXiv 2310.16828), not from world_model.py and planner.py, and
imports neither. Nothing is clever here: inputs are concatenated, all Q heads run one after the other, plans are rolled
out one at a time in Python loops. Only the formats are shared: the flat dict of parameters, and the fields of Noise and
Settings. Run: pytest tests/test_world_model.py tests/test_planner.py
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# ---------------------------------------------------------------- symlog and two-hot, one scalar at a time


def symlog(x: float) -> float:
    return math.copysign(math.log(1 + abs(x)), x)


def symexp(x: float) -> float:
    return math.copysign(math.exp(abs(x)) - 1, x)


def two_hot(x, bins):
    """Each bin's weight falls linearly from 1 at its centre to 0 at its neighbours' centres. (...,) -> (..., K)"""
    centres = bins.tolist()
    width = (centres[-1] - centres[0]) / (len(centres) - 1)
    rows = []
    for value in x.flatten().tolist():
        s = min(max(symlog(value), centres[0]), centres[-1])
        rows.append([max(0.0, 1 - abs(s - centre) / width) for centre in centres])
    return torch.tensor(rows, dtype=x.dtype).reshape(*x.shape, len(centres))


def cross_entropy(logits, x, bins):
    return -(two_hot(x, bins) * torch.log_softmax(logits, -1)).sum(-1)


def decode(logits, bins):
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    s = (p * bins).sum(-1)
    return torch.where(s < 0, 1 - torch.exp(-s), torch.exp(s) - 1)


# ---------------------------------------------------------------- network: e (..., G), mask (..., A) given per sample


def mish(x):
    return x * torch.tanh(F.softplus(x))


def simnorm(x):
    return torch.softmax(x.reshape(*x.shape[:-1], x.shape[-1] // 8, 8), dim=-1).reshape(x.shape)


def mlp(params, part, inputs, last):
    """NormedLinear with Mish for every layer but the last, which is plain (None) or NormedLinear with `last`."""
    x = torch.cat(inputs, dim=-1)
    depth = sum(name.startswith(f"{part}.") and name.count(".") == 2 and name.endswith(".weight") for name in params)
    for i in range(depth):
        activation = last if i == depth - 1 else mish
        x = F.linear(x, params[f"{part}.{i}.weight"], params[f"{part}.{i}.bias"])
        if activation is not None:
            x = F.layer_norm(x, (x.shape[-1],), params[f"{part}.{i}.ln.weight"], params[f"{part}.{i}.ln.bias"], 1e-5)
            x = activation(x)
    return x


def encode(params, obs, e):
    return mlp(params, "encoder", [obs, e], simnorm)


def dynamics(params, z, action, e):
    return mlp(params, "dynamics", [z, e, action], simnorm)


def reward(params, z, action, e):
    return mlp(params, "reward", [z, e, action], None)


def pi(params, z, e, mask, eps):
    """-> action, reported mean, log_std, eps, all (..., A) and masked."""
    out = mlp(params, "pi", [z, e], None)
    a = out.shape[-1] // 2
    mean, log_std = out[..., :a], out[..., a:]
    log_std = -10 + 0.5 * 12 * (torch.tanh(log_std) + 1)
    mean, log_std, eps = mean * mask, log_std * mask, eps * mask
    return torch.tanh(mean + eps * torch.exp(log_std)), torch.tanh(mean), log_std, eps


def entropy(action, log_std, eps, mask):
    """-> entropy, scaled entropy, both (...,)."""
    log_gauss, log_squashed, n_actions = 0.0, 0.0, 0.0
    for i in range(action.shape[-1]):
        log_p = -0.5 * eps[..., i] ** 2 - log_std[..., i] - 0.9189385175704956
        log_gauss = log_gauss + log_p
        log_squashed = log_squashed + log_p - torch.log(torch.clamp(1 - action[..., i] ** 2, min=0) + 1e-6)
        n_actions = n_actions + mask[..., i]
    return -log_squashed, -log_squashed * (log_gauss * n_actions / (log_squashed + 1e-8))


def q(params, z, action, e, part="q"):
    """Logits of every head, (Q, ..., K)."""
    heads = []
    for k in range(len(params[f"{part}.0.weight"])):
        head = {name: value[k] for name, value in params.items() if name.startswith(f"{part}.")}
        heads.append(mlp(head, part, [z, e, action], None))
    return torch.stack(heads)


# ---------------------------------------------------------------- planner


class Model(NamedTuple):
    """One environment's model: plain vectors in, vectors or scalars out."""

    next: object  # z (Z,), action (A,) -> (Z,)
    reward: object  # z, action -> ()
    pi: object  # z, eps (A,) -> (A,)
    q: object  # z, action, heads -> (), mean of the chosen heads
    q_heads: object  # z, action -> list of K values


def network_model(params, e, mask, bins) -> Model:
    """The world model of one task: e (G,), mask (A,). All heads are decoded, two of them are used."""
    return Model(
        next=lambda z, a: dynamics(params, z, a, e),
        reward=lambda z, a: decode(reward(params, z, a, e), bins),
        pi=lambda z, eps: pi(params, z, e, mask, eps)[0],
        q=lambda z, a, heads: sum(decode(q(params, z, a, e)[k], bins) for k in heads.tolist()) / len(heads),
        q_heads=lambda z, a: [float(decode(logits, bins)) for logits in q(params, z, a, e)],
    )


def policy_weight(step, start, duration):
    return 1.0 if step < start else max(0.0, 1 - (step - start) / duration)


def plan_return(model, z, actions, gamma, eps, heads) -> float:
    """sum_t gamma^t R(z_t, a_t) + gamma^H * mean of two Q heads at (z_H, a ~ p(z_H)). actions: list of H vectors."""
    total = 0.0
    for t, action in enumerate(actions):
        total += gamma**t * float(model.reward(z, action))
        z = model.next(z, action)
    return total + gamma ** len(actions) * float(model.q(z, model.pi(z, eps), heads))


def ways_of_reckoning(model, z, actions, gamma) -> list[float]:
    """What a plan is worth: h predicted rewards, then a head's value of the next action; for each h and each head."""
    ways, total = [], 0.0
    for h in range(len(actions) + 1):
        action = actions[h] if h < len(actions) else model.pi(z, torch.zeros_like(actions[0]))
        ways += [total + gamma**h * value for value in model.q_heads(z, action)]
        if h < len(actions):
            total += gamma**h * float(model.reward(z, action))
            z = model.next(z, action)
    return ways


def distance(one, other):
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)))


def sure_plan(model, z, plans, gamma, caution, near):
    """The plan whose advantage over the first has the largest mean minus `caution` sample deviations; of a plan that is
    further off than `near`, these times how many times further."""
    first = ways_of_reckoning(model, z, plans[0], gamma)
    bounds = []
    for actions in plans:
        ways = ways_of_reckoning(model, z, actions, gamma)
        better = [way - base for way, base in zip(ways, first, strict=True)]
        centre = sum(better) / len(better)
        spread = math.sqrt(sum((x - centre) ** 2 for x in better) / (len(better) - 1))
        bounds.append(centre - caution * spread * max(1.0, distance(actions, plans[0]) / near))
    return plans[bounds.index(max(bounds))]


def plan_one(model, z, warm, first, mask, gamma, settings, noise, b, weight, explore, elite):
    """Plan for environment b alone -> action (A,), mean (H, A), std (H, A), values (N,), plan (H, A)."""
    horizon, num_pi, dims = settings.horizon, settings.num_pi, range(len(mask))

    # The policy's own plans, in the sample set of every iteration.
    policy = []
    for p in range(num_pi):
        z_t, actions = z, []
        for t in range(horizon):
            actions.append(model.pi(z_t, noise.pi[b, t, p]))
            z_t = model.next(z_t, actions[-1])
        policy.append(actions)

    # Initial Gaussian: the previous plan one step on, std 2, pulled towards the policy's plans.
    mean, std = torch.zeros_like(warm), torch.zeros_like(warm)
    for t in range(horizon):
        for i in dims:
            m = 0.0 if first or t + 1 == horizon else float(warm[t + 1, i])
            s = settings.std_max
            if weight > 0:
                values = [float(actions[t][i]) for actions in policy]
                centre = sum(values) / num_pi
                spread = math.sqrt(sum((v - centre) ** 2 for v in values) / (num_pi - 1))
                spread = min(max(spread, settings.std_min), settings.std_max)
                m, s = weight * centre + (1 - weight) * m, weight * spread + (1 - weight) * s
            mean[t, i], std[t, i] = m, s

    for iteration in range(settings.iterations):
        plans = list(policy)
        for n in range(settings.num_samples - num_pi):
            actions = []
            for t in range(horizon):
                action = mean[t] + std[t] * noise.sample[iteration, b, t, n]
                actions.append(torch.clamp(action, -1, 1) * mask)
            plans.append(actions)

        raw = []
        for n, actions in enumerate(plans):
            eps, heads = noise.terminal[iteration, b, n], noise.heads[iteration]
            raw.append(plan_return(model, z, actions, gamma, eps, heads))
        values = [-math.inf if math.isnan(v) else v for v in raw]

        # Elites, best first, and the Gaussian of their weighted moments.
        order = sorted(range(len(plans)), key=lambda n: -values[n])[: settings.num_elites]
        best = values[order[0]]
        score = [math.exp(settings.temperature * (values[n] - best)) for n in order]
        score = [s / sum(score) for s in score]
        for t in range(horizon):
            for i in dims:
                chosen = [float(plans[n][t][i]) for n in order]
                m = sum(s * a for s, a in zip(score, chosen, strict=True))
                variance = sum(s * (a - m) ** 2 for s, a in zip(score, chosen, strict=True))
                clamped = min(max(math.sqrt(variance), settings.std_min), settings.std_max)
                mean[t, i], std[t, i] = m * mask[i], clamped * mask[i]

    if elite == "mean":
        plan = mean
    elif elite == "sure":
        quiet, z_t = [], z
        for _ in range(horizon):
            quiet.append(model.pi(z_t, torch.zeros_like(mask)))
            z_t = model.next(z_t, quiet[-1])
        candidates = [quiet, list(mean)] + [plans[n] for n in order]
        spread = math.sqrt(sum(distance(actions, quiet) ** 2 for actions in policy) / num_pi)
        near = max(spread, settings.std_min * math.sqrt(horizon * sum(float(m) for m in mask)))
        plan = torch.stack(sure_plan(model, z, candidates, gamma, settings.caution, near))
    else:
        draw = [math.log(s + 1e-9) + float(g) for s, g in zip(score, noise.gumbel[b], strict=True)]
        plan = torch.stack(plans[order[draw.index(max(draw))]])
    action = plan[0].clone()
    if explore:
        action = action + std[0] * noise.final[b]
    return torch.clamp(action, -1, 1), mean, std, torch.tensor(raw, dtype=z.dtype), plan


@torch.no_grad()
def plan(models, z, warm, first, mask, discount, settings, noise, policy_weight=0.0, explore=True, elite="sample"):
    """models: one Model per environment, the rest as in planner.plan  ->  action, mean, std, value, plan, stacked."""
    rows = []
    for b, model in enumerate(models):
        gamma, is_first = float(discount[b]), bool(first[b])
        rows.append(
            plan_one(model, z[b], warm[b], is_first, mask[b], gamma, settings, noise, b, policy_weight, explore, elite)
        )
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
