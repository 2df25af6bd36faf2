"""The world model of Newt: five small MLPs as pure functions over one flat dict of tensors. Imports torch only.

    z = h(obs, e)            encoder        z' = d(z, e, a)       latent dynamics      e = frozen sentence embedding
    r = R(z, e, a)           reward         a ~ p(z, e)           policy prior             of the task ("emb")
    v = Q_k(z, e, a)         return, an ensemble of K heads

Papers: Newt (arXiv 2511.19584), TD-MPC2 (arXiv 2310.16828: SimNorm, NormedLinear, the five parts), DreamerV3
(arXiv 2301.04104: symlog, two-hot). Axis letters: B batch or environment, T time, N sampled plans, S tasks, O obs,
A action, Z latent, G task embedding, K bins, Q ensemble. `(...)` is any leading shape; leading shapes broadcast.

    params = init(SIZES["B"], obs_dim=128, action_dim=16, task_dim=384)
    task = Task(emb, mask, index)                      # (S, G), (S, A), (...,)
    z = encode(params, obs, task)                      # (..., Z)
    z = dynamics(params, z, action, task)
    r = decode(reward(params, z, action, task), bins)  # (...,)

Parameter names are `<part>.<layer>.weight|bias|ln.weight|ln.bias`; the same dict is what safetensors stores.
Test: pytest tests/test_world_model.py tests/test_parity.py
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]

SIMNORM_GROUP = 8  # latents are softmax-normalised in groups of 8 (TD-MPC2)
LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0  # range of the policy's log standard deviation
LOG_SQRT_2PI = 0.9189385175704956  # as the published code rounds it


class Size(NamedTuple):
    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int


# S to XL as published (about 2, 5, 20 and 80 million parameters); XS is ours, for laptops and teaching.
SIZES = {
    "XS": Size(128, 128, 128, 2, 2),
    "S": Size(128, 256, 384, 2, 3),
    "B": Size(256, 512, 512, 2, 5),
    "L": Size(1024, 1024, 512, 3, 5),
    "XL": Size(2048, 2048, 704, 4, 7),
}


class Task(NamedTuple):
    """Which task each sample belongs to, and what is known about those tasks.

    emb (S, G) frozen sentence embeddings   mask (S, A) 1 for real action dims   index (...,) long, row per sample
    G may be 0 (single-task models without language). `index` broadcasts against the samples' leading shape.
    """

    emb: Tensor
    mask: Tensor
    index: Tensor


class Policy(NamedTuple):
    """action, mean in [-1, 1] after tanh; log_std, eps zero where masked. All (..., A)."""

    action: Tensor
    mean: Tensor
    log_std: Tensor
    eps: Tensor


# ---------------------------------------------------------------- symlog and two-hot


def symlog(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().expm1()


def make_bins(num_bins: int = 101, low: float = -10.0, high: float = 10.0, device=None) -> Tensor:
    """Centres of the two-hot support, (K,), evenly spaced in symlog units; +-10 covers returns up to +-22,000."""
    return torch.linspace(low, high, num_bins, device=device)


def _neighbours(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Left neighbour's index and right neighbour's share of symlog(x), both (...,)."""
    x = symlog(x).clamp(bins[0], bins[-1])
    # Width from the ends: bins[1] - bins[0] cancels digits, an error that grows to 1e-4 of a bin at the far end.
    width = (bins[-1] - bins[0]) / (len(bins) - 1)
    pos = (x - bins[0]) / width  # fractional index in [0, K-1]
    # x == bins[-1] must still have a right neighbour; a NaN must not become an index, so that the loss can be NaN.
    left = pos.nan_to_num(0.0).floor().long().clamp(max=len(bins) - 2)
    return left, pos - left


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Write each scalar as a mix of its two neighbouring bins, so that regression becomes classification.

    x (...,) raw units, any sign; bins (K,)  ->  (..., K), non-negative, sums to 1, at most two non-zero entries
    Source: DreamerV3. Unlike TD-MPC2's version it takes any leading shape.
    """
    left, share = (v.unsqueeze(-1) for v in _neighbours(x, bins))
    out = x.new_zeros(*x.shape, len(bins))
    return out.scatter(-1, left, 1 - share).scatter(-1, left + 1, share)


def two_hot_cross_entropy(logits: Tensor, x: Tensor, bins: Tensor) -> Tensor:
    """-sum_k two_hot(x)_k log softmax(logits)_k without building the target: only two bins of it are non-zero.

    logits (..., K); x (...,) raw units, broadcasts against logits' leading shape (one target for all Q heads) -> (...,)
    """
    left, share = _neighbours(x, bins)
    left, share = left.expand(logits.shape[:-1]), share.expand(logits.shape[:-1])
    log_p = F.log_softmax(logits, -1)
    pair = log_p.gather(-1, torch.stack((left, left + 1), -1))  # (..., 2)
    return -(pair[..., 0] * (1 - share) + pair[..., 1] * share)


def decode(logits: Tensor, bins: Tensor) -> Tensor:
    """Scalar that two-hot logits stand for: symexp of the expected bin. (..., K) -> (...,)"""
    return symexp(F.softmax(logits, -1) @ bins)


# ---------------------------------------------------------------- layers


def simnorm(x: Tensor) -> Tensor:
    """Softmax within groups of 8: a latent is a list of small categorical distributions, so it cannot blow up."""
    groups = x.unflatten(-1, (-1, SIMNORM_GROUP))
    # Softmax over the last axis runs row by row; over any other axis it is vectorised: 8 times faster on a CPU.
    return F.softmax(groups.transpose(-1, -2).contiguous(), -2).transpose(-1, -2).flatten(-2)


class _MishCPU(torch.autograd.Function):
    """mish(x) = x tanh(log(1 + e^x)) = x - 2x / s with u = 1 + e^x, s = u^2 + 1: one exponential and cheap arithmetic.

    4 times faster than F.mish on a CPU, where the activation would otherwise cost more than the matrix products.
    mish'(x) = 1 - 4 ((u - u^2) x / s + 1/2) / s needs no exponential of its own, so u and s are kept for it.
    Absolute rounding error about 1e-6 for |x| < 10 (inputs are layer-normalised). e^x is cut at x = 20, where mish(x)
    equals x in float32: beyond, u^2 would become infinite, and the gradient NaN.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        u = x.clamp(max=20).exp_().add_(1)
        s = u.square().add_(1)
        ctx.save_for_backward(x, u, s)
        return torch.addcdiv(x, x, s, value=-2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        x, u, s = ctx.saved_tensors
        inner = torch.addcmul(u, u, u, value=-1).mul_(x).div_(s).add_(0.5).mul_(grad)
        return torch.addcdiv(grad, inner, s, value=-4)


def mish(x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return F.mish(x)
    if torch.is_grad_enabled():
        return _MishCPU.apply(x)
    return torch.addcdiv(x, x, x.exp().add_(1).square_().add_(1), value=-2)  # an infinite s is right here: x


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. A 3-D weight (Q, out, in) is a stacked ensemble: x (Q, M, in) -> (Q, M, out).

    In the precision of the weight (`in_precision`); the result is of x's.
    """
    if x.dtype != weight.dtype:
        return _linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _normed(params: Params, layer: str, x: Tensor, activation) -> Tensor:
    """LayerNorm then activation: what makes a Linear a NormedLinear."""
    weight, bias = params[f"{layer}.ln.weight"], params[f"{layer}.ln.bias"]
    if weight.dim() == 1:
        return activation(F.layer_norm(x, weight.shape, weight, bias))
    # stacked ensemble (Q, M, D): layer_norm has no per-head affine part
    return activation(torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, x.shape[-1:]), weight.unsqueeze(1)))


def _first_layer(params: Params, part: str, x: Tensor, action: Tensor | None, task: Task) -> Tensor:
    """The first Linear on [x, emb, action] as x Wx + emb We + action Wa + b, with broadcasting.

    Nothing is concatenated: the language part is computed once per task instead of once per sample, and in planning
    the part of a shared first latent once per environment instead of once per plan. About half the layer's work.
    """
    weight, bias = params[f"{part}.0.weight"], params[f"{part}.0.bias"]
    action_dim = 0 if action is None else action.shape[-1]
    w_x, w_emb, w_action = weight.split([x.shape[-1], task.emb.shape[-1], action_dim], -1)
    out = _linear(x, w_x, bias)
    if task.emb.shape[-1] > 0:
        out = out + F.embedding(task.index, _linear(task.emb, w_emb))
    return out if action is None else out + _linear(action, w_action)


def _mlp(params: Params, part: str, hidden: Tensor, last=None) -> Tensor:
    """From the first layer's pre-activation to the output. `last`: activation of a normed last layer, None if plain."""
    depth = 1
    while f"{part}.{depth}.weight" in params:
        hidden = _normed(params, f"{part}.{depth - 1}", hidden, mish)
        hidden = _linear(hidden, params[f"{part}.{depth}.weight"], params[f"{part}.{depth}.bias"])
        depth += 1
    return hidden if last is None else _normed(params, f"{part}.{depth - 1}", hidden, last)


# ---------------------------------------------------------------- the five parts


def encode(params: Params, obs: Tensor, task: Task) -> Tensor:
    """h: observation (..., O), zero-padded -> latent (..., Z)."""
    return _mlp(params, "encoder", _first_layer(params, "encoder", obs, None, task), simnorm)


def dynamics(params: Params, z: Tensor, action: Tensor, task: Task) -> Tensor:
    """d: latent (..., Z) and action (..., A) -> next latent (..., Z)."""
    return _mlp(params, "dynamics", _first_layer(params, "dynamics", z, action, task), simnorm)


def reward(params: Params, z: Tensor, action: Tensor, task: Task) -> Tensor:
    """R: two-hot logits (..., K) of the reward for taking `action` in `z`."""
    return _mlp(params, "reward", _first_layer(params, "reward", z, action, task))


def pi(params: Params, z: Tensor, task: Task, eps: Tensor) -> Policy:
    """p: squashed Gaussian policy prior; eps (..., A) standard normal noise (0 gives the mean action)."""
    mask = F.embedding(task.index, task.mask)  # (..., A)
    mean, log_std = _mlp(params, "pi", _first_layer(params, "pi", z, None, task)).chunk(2, -1)
    log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(log_std) + 1)
    mean, log_std, eps = mean * mask, log_std * mask, eps * mask
    return Policy(torch.tanh(mean + eps * log_std.exp()), torch.tanh(mean), log_std, eps)


def entropy(policy: Policy, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One-sample entropy of the squashed policy, and the scaled entropy that the losses use. Both (...,), nats.

    mask (..., A). scaled = entropy * [log p_gauss * (number of real dims) / log p_squashed] (Newt).
    # Upstream quirk: masked dims have eps = log_std = 0, so each adds the constant -0.919 to the log-probability;
    kept because published policies were trained with it.
    """
    log_gauss = (-0.5 * policy.eps.square() - policy.log_std - LOG_SQRT_2PI).sum(-1)
    log_squashed = log_gauss - (F.relu(1 - policy.action.square()) + 1e-6).log().sum(-1)
    scale = log_gauss * mask.sum(-1) / (log_squashed + 1e-8)
    return -log_squashed, -log_squashed * scale


def q(params: Params, z: Tensor, action: Tensor, task: Task, heads: Tensor | None = None, part: str = "q") -> Tensor:
    """Q: two-hot logits (Q, ..., K) of the return after `action` in `z`, for all heads or the chosen ones only.

    heads (H,) long: indices into the ensemble; the others are not computed.  part: "q", or "q_target" for the copy.
    """
    if heads is not None:
        params = {name: value.index_select(0, heads) for name, value in params.items() if name.startswith(f"{part}.")}
    weight, bias = params[f"{part}.0.weight"], params[f"{part}.0.bias"]  # (Q, D, Z+G+A), (Q, D)
    # All heads read the same input, so the first layer of the ensemble is one matrix product with Q*D outputs.
    flat = {f"{part}.0.weight": weight.flatten(0, 1), f"{part}.0.bias": bias.flatten()}
    hidden = _first_layer(flat, part, z, action, task)  # (..., Q*D)
    lead = hidden.shape[:-1]
    hidden = hidden.reshape(-1, *bias.shape).transpose(0, 1)  # (Q, M, D)
    logits = _mlp(params, part, hidden)
    return logits.reshape(len(logits), *lead, logits.shape[-1])  # unflatten refuses an empty lead


# ---------------------------------------------------------------- parameters


def init(size: Size, obs_dim: int, action_dim: int, task_dim: int, num_bins: int = 101, generator=None) -> Params:
    """Fresh parameters: weights truncated normal (std 0.02), biases 0, LayerNorm 1/0, last layer of reward and Q 0.

    With zero last layers every prediction starts at 0 instead of at a random return. The target ensemble
    `q_target.*` starts as a copy of `q.*`. Raises ValueError if the latent is not a multiple of 8.
    """
    if size.latent_dim % SIMNORM_GROUP:
        raise ValueError(f"latent_dim must be a multiple of {SIMNORM_GROUP} (SimNorm groups), got {size.latent_dim}")
    mlp, z_dim = [size.mlp_dim] * 2, size.latent_dim
    hidden = [size.enc_dim] * max(size.num_enc_layers - 1, 1)
    widths = {
        "encoder": [obs_dim + task_dim, *hidden, z_dim],
        "dynamics": [z_dim + task_dim + action_dim, *mlp, z_dim],
        "reward": [z_dim + task_dim + action_dim, *mlp, num_bins],
        "pi": [z_dim + task_dim, *mlp, 2 * action_dim],
        "q": [z_dim + task_dim + action_dim, *mlp, num_bins],
    }
    params: Params = {}
    for part, dims in widths.items():
        stack = (size.num_q,) if part == "q" else ()
        for i, (d_in, d_out) in enumerate(zip(dims, dims[1:], strict=False)):
            last = i == len(dims) - 2
            weight = torch.zeros(*stack, d_out, d_in)
            if not (last and part in ("reward", "q")):
                torch.nn.init.trunc_normal_(weight, std=0.02, generator=generator)
            params[f"{part}.{i}.weight"] = weight
            params[f"{part}.{i}.bias"] = torch.zeros(*stack, d_out)
            if not last or part in ("encoder", "dynamics"):
                params[f"{part}.{i}.ln.weight"] = torch.ones(*stack, d_out)
                params[f"{part}.{i}.ln.bias"] = torch.zeros(*stack, d_out)
    params |= {name.replace("q.", "q_target.", 1): v.clone() for name, v in params.items() if name.startswith("q.")}
    return params


def in_precision(params: Params, dtype: torch.dtype) -> Params:
    """The same parameters, with the hidden layers' matrix products in this precision. Gradients reach the given ones.

    Hidden are those whose output is normalised. Others make rewards, values and actions, which plans add up. What is
    observed isn't rounded either: it has units of its own.
    """
    if dtype == torch.float32:
        return params
    hidden = {name for name in params if f"{name.rpartition('.')[0]}.ln.weight" in params}
    return {
        name: value.to(dtype) if name in hidden and not name.startswith("encoder.0.") else value
        for name, value in params.items()
    }


def num_params(params: Params) -> int:
    """Trainable parameters; the target copy is not counted."""
    return sum(math.prod(v.shape) for name, v in params.items() if not name.startswith("q_target."))
