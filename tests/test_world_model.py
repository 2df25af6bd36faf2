"""world_model.py against its naive twin (naive.py), against the definitions, and copied alone into an empty folder.

Run: pytest tests/test_world_model.py        (about 10 s on one core)
"""

import ast
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import naive
import world_model as wm

OBS, ACTION, TASK, TASKS, BINS = 11, 5, 6, 4, 101
LEADS = [(), (4,), (3, 4), (2, 3, 4), (0,)]
BINS64 = torch.linspace(-10, 10, BINS, dtype=torch.float64)
# Looser than rounding in float32; in float64 the two programs must agree far below any conceivable mistake.
TOLERANCE = {torch.float32: dict(rtol=2e-5, atol=2e-5), torch.float64: dict(rtol=1e-9, atol=1e-11)}


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_params(size, dtype=torch.float64, task_dim=TASK):
    """Parameters away from the initial values, so that no zero hides a mistake; target heads of their own."""
    params = wm.init(wm.SIZES[size], OBS, ACTION, task_dim, BINS)
    for i, (name, value) in enumerate(params.items()):
        noise = randn(*value.shape, seed=100 + i)
        if name.endswith("ln.weight"):
            noise = 1 + 0.3 * noise
        elif name.endswith("bias"):
            noise = 0.3 * noise
        else:
            noise = 1.5 * noise / value.shape[-1] ** 0.5
        params[name] = noise.to(dtype)
    return params


def random_task(index_shape, dtype=torch.float64, task_dim=TASK):
    mask = (torch.arange(ACTION) < torch.tensor([[5], [3], [2], [1]])).to(dtype)
    index = torch.randint(TASKS, index_shape, generator=torch.Generator().manual_seed(1))
    return wm.Task(randn(TASKS, task_dim, dtype=dtype, seed=2), mask, index)


def inputs(size, lead, dtype):
    z = torch.softmax(randn(*lead, wm.SIZES[size].latent_dim, dtype=dtype, seed=3), -1) * 16
    return randn(*lead, OBS, dtype=dtype, seed=4), z, randn(*lead, ACTION, dtype=dtype, seed=5).tanh()


def same(got, want, dtype=torch.float64):
    torch.testing.assert_close(got, want, **TOLERANCE[dtype])


# ---------------------------------------------------------------- agreement with the naive network


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("size", ["XS", "S"])
def test_every_part_agrees_with_naive(size, lead, dtype):
    params, task = random_params(size, dtype), random_task(lead, dtype)
    obs, z, action = inputs(size, lead, dtype)
    eps = randn(*lead, ACTION, dtype=dtype, seed=6)
    e, mask = task.emb[task.index], task.mask[task.index]
    same(wm.encode(params, obs, task), naive.encode(params, obs, e), dtype)
    same(wm.dynamics(params, z, action, task), naive.dynamics(params, z, action, e), dtype)
    same(wm.reward(params, z, action, task), naive.reward(params, z, action, e), dtype)
    policy = wm.pi(params, z, task, eps)
    for got, want in zip(policy, naive.pi(params, z, e, mask, eps), strict=True):
        same(got, want, dtype)
    got, want = wm.entropy(policy, mask), naive.entropy(policy.action, policy.log_std, policy.eps, mask)
    same(got[0], want[0], dtype)
    same(got[1], want[1], dtype)


@pytest.mark.parametrize("part", ["q", "q_target"])
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("size", ["XS", "S"])
def test_q_agrees_with_naive(size, lead, part):
    params, task = random_params(size), random_task(lead)
    _, z, action = inputs(size, lead, torch.float64)
    want = naive.q(params, z, action, task.emb[task.index], part)
    num_q = wm.SIZES[size].num_q
    assert want.shape == (num_q, *lead, BINS)
    same(wm.q(params, z, action, task, part=part), want)
    for heads in ([0], [num_q - 1, 0], [1, 0]):
        same(wm.q(params, z, action, task, torch.tensor(heads), part), want[heads])
    other = wm.q(params, z, action, task, part="q_target" if part == "q" else "q")
    assert want.numel() == 0 or (other - want).abs().amax() > 0.1  # the two ensembles are not one and the same


def test_q_agrees_with_naive_in_float32():
    params, task = random_params("S", torch.float32), random_task((3, 4), torch.float32)
    _, z, action = inputs("S", (3, 4), torch.float32)
    same(wm.q(params, z, action, task), naive.q(params, z, action, task.emb[task.index]), torch.float32)


def test_chosen_heads_do_not_read_the_others():
    params, task = random_params("S"), random_task((4,))
    _, z, action = inputs("S", (4,), torch.float64)
    want = wm.q(params, z, action, task)
    for name in [name for name in params if name.startswith("q.")]:
        params[name][1] = torch.nan
    same(wm.q(params, z, action, task, torch.tensor([2, 0])), want[[2, 0]])


@pytest.mark.parametrize(
    "z_lead, action_lead, index_lead, lead",
    [((4, 1), (4, 6), (4, 1), (4, 6)), ((3, 4), (3, 4), (4,), (3, 4)), ((3, 4), (3, 4), (1, 1), (3, 4))],
    ids=["planning: one latent, many plans", "learning: one task row per batch column", "one task for all"],
)
def test_leading_shapes_broadcast(z_lead, action_lead, index_lead, lead):
    params, task = random_params("XS"), random_task(index_lead)
    _, z, _ = inputs("XS", z_lead, torch.float64)
    _, _, action = inputs("XS", action_lead, torch.float64)
    wide_z, index = z.expand(*lead, -1), task.index.expand(lead)
    e = task.emb[index]
    same(wm.dynamics(params, z, action, task), naive.dynamics(params, wide_z, action, e))
    same(wm.reward(params, z, action, task), naive.reward(params, wide_z, action, e))
    same(wm.q(params, z, action, task), naive.q(params, wide_z, action, e))
    got = wm.pi(params, z, task, action)  # any (..., A) will do for eps
    for a, b in zip(got, naive.pi(params, wide_z, e, task.mask[index], action), strict=True):
        same(a.expand_as(b), b)


def test_without_language():
    params, task = random_params("XS", task_dim=0), random_task((4,), task_dim=0)
    obs, z, action = inputs("XS", (4,), torch.float64)
    none = torch.zeros(4, 0, dtype=torch.float64)
    same(wm.encode(params, obs, task), naive.encode(params, obs, none))
    same(wm.dynamics(params, z, action, task), naive.dynamics(params, z, action, none))
    same(wm.q(params, z, action, task), naive.q(params, z, action, none))
    same(wm.pi(params, z, task, action).action, naive.pi(params, z, none, task.mask[task.index], action)[0])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_encoder_depth(layers):
    params = wm.init(wm.Size(24, 16, 32, layers, 2), OBS, ACTION, TASK)
    weights = [tuple(v.shape) for name, v in params.items() if name.startswith("encoder.") and v.dim() == 2]
    hidden = max(layers - 1, 1)
    assert weights == [(24, OBS + TASK)] + [(24, 24)] * (hidden - 1) + [(32, 24)]
    task, obs = random_task((4,), torch.float32), randn(4, OBS, dtype=torch.float32)
    same(wm.encode(params, obs, task), naive.encode(params, obs, task.emb[task.index]), torch.float32)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-8), (torch.float32, 5e-3)])
def test_gradients_agree_with_naive(dtype, rtol):
    """One scalar that runs through every part, as in learning; the loss weights are random."""
    task, heads, lead = random_task((3, 4), dtype), torch.tensor([2, 0]), (3, 4)
    e, mask, bins = task.emb[task.index], task.mask[task.index], BINS64.to(dtype)
    target = randn(*lead, dtype=dtype, seed=8) * 20
    eps = randn(*lead, ACTION, dtype=dtype, seed=6)

    def weigh(*outputs):
        return sum((randn(*v.shape, dtype=dtype, seed=20 + i) * v).mean() for i, v in enumerate(outputs))

    def fast(params, obs, action):
        z = wm.dynamics(params, wm.encode(params, obs, task), action, task)
        policy = wm.pi(params, z, task, eps)
        q_logits = wm.q(params, z, policy.action, task, heads)
        r_logits = wm.reward(params, z, action, task)
        ce = wm.two_hot_cross_entropy(q_logits, target, bins)
        value = wm.decode(wm.q(params, z, policy.action, task, heads, "q_target"), bins).mean(0)
        return weigh(z, *policy[:3], wm.entropy(policy, mask)[0], q_logits, r_logits, ce, value)

    def slow(params, obs, action):
        z = naive.dynamics(params, naive.encode(params, obs, e), action, e)
        a, mean, log_std, masked_eps = naive.pi(params, z, e, mask, eps)
        q_logits = naive.q(params, z, a, e)[heads]
        r_logits = naive.reward(params, z, action, e)
        ce = naive.cross_entropy(q_logits, target, bins)
        value = naive.decode(naive.q(params, z, a, e, "q_target"), bins)[heads].mean(0)
        return weigh(z, a, mean, log_std, naive.entropy(a, log_std, masked_eps, mask)[0], q_logits, r_logits, ce, value)

    grads = []
    for loss in (fast, slow):
        params = {name: v.requires_grad_() for name, v in random_params("S", dtype).items()}
        obs, _, action = inputs("S", lead, dtype)
        params |= {"obs": obs.requires_grad_(), "action": action.requires_grad_()}
        total = loss(params, obs, action)
        grads.append(dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True)))
    for name, want in grads[1].items():
        size = want.abs().amax()
        assert size > 0, name
        assert (grads[0][name] - want).abs().amax() <= rtol * size, name


def test_scaled_entropy_gradient():
    task, mask = random_task((6,)), random_task((6,)).mask[random_task((6,)).index]
    _, z, _ = inputs("XS", (6,), torch.float64)
    eps, grads = randn(6, ACTION, seed=6), []
    for fast in (True, False):
        params = {name: v.requires_grad_() for name, v in random_params("XS").items()}
        if fast:
            scaled = wm.entropy(wm.pi(params, z, task, eps), mask)[1]
        else:
            action, _, log_std, masked_eps = naive.pi(params, z, task.emb[task.index], mask, eps)
            scaled = naive.entropy(action, log_std, masked_eps, mask)[1]
        scaled.sum().backward()
        grads.append([params[f"pi.{i}.{kind}"].grad for i in range(3) for kind in ("weight", "bias")])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9 * want.abs().amax().item())


# ---------------------------------------------------------------- policy and masks


def test_masked_actions_are_zero_and_their_noise_is_ignored():
    params, task = random_params("XS"), random_task((5, 40))
    _, z, _ = inputs("XS", (5, 40), torch.float64)
    real = task.mask[task.index].bool()
    assert not real.all() and real.any()
    eps = randn(5, 40, ACTION, seed=6)
    policy = wm.pi(params, z, task, eps)
    for value in policy:
        assert (value[~real] == 0).all() and (value[real] != 0).all()
    other = wm.pi(params, z, task, torch.where(real, eps, 7.0))
    for got, want in zip(other, policy, strict=True):
        assert torch.equal(got, want)
    assert policy.action.abs().max() <= 1 and policy.log_std.min() >= -10 and policy.log_std.max() <= 2
    still = wm.pi(params, z, task, torch.zeros_like(eps))
    assert torch.equal(still.action, still.mean)


def test_log_std_covers_its_range():
    params, task = random_params("XS"), random_task((1,))._replace(mask=torch.ones(TASKS, ACTION).double())
    _, z, _ = inputs("XS", (1,), torch.float64)
    for shift, want in ((-1e3, -10.0), (1e3, 2.0)):
        params["pi.2.bias"][ACTION:] = shift  # the second half of the outputs is log_std, the first is the mean
        log_std = wm.pi(params, z, task, torch.zeros(1, ACTION, dtype=torch.float64)).log_std
        torch.testing.assert_close(log_std, torch.full_like(log_std, want))


def test_entropy_by_hand():
    """Two real dims, one padded; the padded one adds -0.919 to the log-probability and counts in no other way."""
    eps, log_std, mask = torch.tensor([[0.5, -1, 0], [-0.3, 0.2, 0], [1, 1, 0]], dtype=torch.float64)
    action = torch.tensor([0.6, 1, 0], dtype=torch.float64)  # 1: a saturated action must stay finite
    c = 0.9189385175704956
    gauss = (-0.125 + 0.3 - c) + (-0.5 - 0.2 - c) + (-c)
    squashed = gauss - sum(math.log(x + 1e-6) for x in (0.64, 0, 1))
    plain, scaled = wm.entropy(wm.Policy(action, action, log_std, eps), mask)
    assert plain.item() == pytest.approx(-squashed, rel=1e-9)
    assert scaled.item() == pytest.approx(-squashed * gauss * 2 / (squashed + 1e-8), rel=1e-9)


# ---------------------------------------------------------------- symlog, two-hot, decoding


EDGE = torch.tensor([0.0, 1e-6, -1e-6, 1.0, -1.0, 0.2, -3.7, 25.0, 1000.0, -1234.5, 2.2e4, -2.2e4, 2.3e4, 1e9, -1e9])


def test_symlog_by_hand():
    x = torch.tensor([0.0, 1.0, -1.0, 999.0, -0.5]).double()
    want = torch.tensor([0.0, 0.6931471805599453, -0.6931471805599453, 6.907755278982137, -0.4054651081081644]).double()
    torch.testing.assert_close(wm.symlog(x), want)
    torch.testing.assert_close(wm.symexp(wm.symlog(EDGE.double())), EDGE.double())
    torch.testing.assert_close(wm.symexp(torch.tensor([-1.0]).double()), torch.tensor([-1.718281828459045]).double())


def test_bins_are_a_fifth_apart():
    bins = wm.make_bins()
    assert bins.shape == (101,) and bins[0] == -10 and bins[100] == 10
    torch.testing.assert_close(bins.diff(), torch.full((100,), 0.2), rtol=0, atol=2e-6)
    torch.testing.assert_close(wm.make_bins(5, -2, 2), torch.tensor([-2.0, -1, 0, 1, 2]))


def test_two_hot_by_hand():
    bins = wm.make_bins(5, -2, 2)
    x = wm.symexp(torch.tensor([0.0, 0.25, -1.75, 2.0, 9.0, -9.0]))
    last = [0, 0, 0, 0, 1]
    want = [[0, 0, 1, 0, 0], [0, 0, 0.75, 0.25, 0], [0.75, 0.25, 0, 0, 0], last, last, last[::-1]]
    torch.testing.assert_close(wm.two_hot(x, bins), torch.tensor(want, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4)], ids=str)
def test_two_hot_agrees_with_naive(shape):
    x = randn(*shape, seed=9) * 30
    same(wm.two_hot(x, BINS64), naive.two_hot(x, BINS64))
    logits = randn(*shape, BINS, seed=10)
    same(wm.two_hot_cross_entropy(logits, x, BINS64), naive.cross_entropy(logits, x, BINS64))
    same(wm.decode(logits * 3, BINS64), naive.decode(logits * 3, BINS64))
    stacked = randn(3, *shape, BINS, seed=11)  # one target for all heads
    same(wm.two_hot_cross_entropy(stacked, x, BINS64), naive.cross_entropy(stacked, x, BINS64))


def test_two_hot_is_two_neighbours_that_sum_to_one_and_means_the_number():
    x = torch.cat([EDGE.double(), randn(500, seed=12) * 10 ** (2 * randn(500, seed=13))])
    weight = wm.two_hot(x, BINS64)
    assert (weight >= 0).all()
    same(weight.sum(-1), torch.ones(len(x), dtype=torch.float64))
    for row in weight:
        on = row.nonzero().flatten()
        assert len(on) in (1, 2) and on[-1] - on[0] == len(on) - 1
    limit = wm.symexp(torch.tensor(10.0).double()).item()
    want = x.clamp(-limit, limit)
    torch.testing.assert_close(wm.symexp(weight @ BINS64), want, rtol=1e-9, atol=1e-12)
    # The logits that stand for exactly these weights; log 0 = -inf is a fine logit.
    torch.testing.assert_close(wm.decode(weight.log(), BINS64), want, rtol=1e-9, atol=1e-12)


def test_two_hot_in_float32():
    """The distance of two float32 bins is off by 1e-6 of itself: as bin width it is 1e-4 off after a hundred bins."""
    x, bins = torch.cat([EDGE, randn(200, dtype=torch.float32, seed=12) * 300]), wm.make_bins()
    weight = wm.two_hot(x, bins)
    assert (weight >= 0).all()
    torch.testing.assert_close(weight.double(), naive.two_hot(x.double(), BINS64), rtol=0, atol=2e-5)
    logits = randn(len(x), BINS, dtype=torch.float32, seed=10)
    want = naive.cross_entropy(logits.double(), x.double(), BINS64)
    torch.testing.assert_close(wm.two_hot_cross_entropy(logits, x, bins).double(), want, rtol=1e-5, atol=5e-5)


def test_infinite_targets_land_in_the_last_bins():
    weight = wm.two_hot(torch.tensor([torch.inf, -torch.inf]), wm.make_bins(5, -2, 2))
    assert weight.tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_cross_entropy_is_least_at_its_target():
    x = torch.tensor([0.37]).double()
    logits = wm.two_hot(x, BINS64).clamp(min=1e-30).log().requires_grad_()
    wm.two_hot_cross_entropy(logits, x, BINS64).sum().backward()
    assert logits.grad.abs().max() < 1e-9


def test_uniform_logits_decode_to_zero():
    assert wm.decode(torch.zeros(2, BINS), wm.make_bins()).abs().max() < 1e-5


# ---------------------------------------------------------------- SimNorm and Mish


@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4)], ids=str)
def test_simnorm(lead):
    x = randn(*lead, 24, seed=14) * 3
    got = wm.simnorm(x)
    same(got, naive.simnorm(x))
    assert (got > 0).all()
    groups = got.reshape(*lead, 3, 8)
    same(groups.sum(-1), torch.ones(*lead, 3, dtype=torch.float64))
    shifted = x.clone()
    shifted[..., 8:16] += 5  # the same constant on one whole group changes nothing, on half of it only that group
    same(wm.simnorm(shifted), got)
    shifted[..., 8:12] += 5
    changed = (wm.simnorm(shifted) - got).abs() > 1e-6
    assert changed[..., 8:16].all() and not changed[..., :8].any() and not changed[..., 16:].any()
    assert torch.autograd.gradcheck(wm.simnorm, x.requires_grad_())


def test_simnorm_of_huge_inputs():
    assert wm.simnorm(torch.tensor([1e4] + [-1e4] * 7)).tolist() == [1.0] + [0.0] * 7


def test_mish_gradient_is_exact():
    x = torch.tensor([-40.0, -19.0, -3.0, -1.2, -0.1, 0.0, 0.1, 1.0, 5.0, 19.9, 20.1, 60.0]).double().requires_grad_()
    assert torch.autograd.gradcheck(wm.mish, x)
    wide = randn(3, 4, 5, seed=15).mul(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: wm.mish(v.transpose(0, 2)[1:]), wide)
    same(torch.autograd.grad(wm.mish(wide).sum(), wide)[0], torch.autograd.grad(F.mish(wide).sum(), wide)[0])


def test_mish_value():
    x = torch.linspace(-60, 60, 4001)
    before = x.clone()
    got, want = wm.mish(x), F.mish(x.double())
    assert torch.equal(x, before)  # in-place arithmetic must not reach the input
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)
    near = x.abs() < 10
    torch.testing.assert_close(got[near].double(), want[near], rtol=1e-6, atol=2e-6)
    same(wm.mish(x.double()), naive.mish(x.double()))
    huge = torch.tensor([-1e6, -200.0, 200.0, 1e6], requires_grad=True)
    wm.mish(huge).sum().backward()
    assert wm.mish(huge).tolist() == [0, 0, 200, 1e6] and huge.grad.tolist() == [0, 0, 1, 1]


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("size, want", [("S", 2_143_284), ("B", 7_261_566), ("L", 20_356_734), ("XL", 81_591_240)])
def test_parameter_counts_are_the_published_ones(size, want):
    with torch.device("meta"):  # shapes only: XL would take a second and a gigabyte
        params = wm.init(wm.SIZES[size], 128, 16, 512)
    assert wm.num_params(params) == want


def test_sizes_are_the_published_ones():
    assert wm.SIZES["S"] == (128, 256, 384, 2, 3) and wm.SIZES["B"] == (256, 512, 512, 2, 5)
    assert wm.SIZES["L"] == (1024, 1024, 512, 3, 5) and wm.SIZES["XL"] == (2048, 2048, 704, 4, 7)
    with torch.device("meta"):
        counts = [wm.num_params(wm.init(wm.SIZES[size], 128, 16, 512)) for size in ("XS", "S", "B", "L", "XL")]
    assert counts == sorted(counts)


def test_initial_values():
    params = wm.init(wm.SIZES["S"], 128, 16, 64, generator=torch.Generator().manual_seed(0))
    for name, value in params.items():
        if name.endswith("ln.weight"):
            assert (value == 1).all(), name
        elif name.endswith("bias") or name in ("reward.2.weight", "q.2.weight", "q_target.2.weight"):
            assert (value == 0).all(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.03), name
            assert abs(value.mean().item()) < 6 * 0.02 / value.numel() ** 0.5, name
            within = (value.abs() < 0.02).float().mean().item()  # a normal has 68.3 % within one std, a uniform 57.7 %
            assert within == pytest.approx(0.6827, abs=0.02), name
    assert not torch.equal(params["q.0.weight"][0], params["q.0.weight"][1])  # equal heads would stay equal for ever
    for name in params:
        if name.startswith("q."):
            target = params[name.replace("q.", "q_target.", 1)]
            assert torch.equal(params[name], target) and params[name].data_ptr() != target.data_ptr(), name
    targets = sum(v.numel() for name, v in params.items() if name.startswith("q_target."))
    assert wm.num_params(params) == sum(v.numel() for v in params.values()) - targets


def test_fresh_model_predicts_zero():
    params, task = wm.init(wm.SIZES["XS"], OBS, ACTION, TASK), random_task((4,), torch.float32)
    obs, _, action = inputs("XS", (4,), torch.float32)
    z = wm.encode(params, obs, task)
    assert wm.decode(wm.reward(params, z, action, task), wm.make_bins()).abs().max() < 1e-5
    assert wm.decode(wm.q(params, z, action, task), wm.make_bins()).abs().max() < 1e-5


def test_generator_decides_the_parameters():
    def draw(seed):
        return wm.init(wm.SIZES["XS"], OBS, ACTION, TASK, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    one, again, other = draw(3), draw(3), draw(4)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["pi.0.weight"], other["pi.0.weight"])


def test_latent_must_be_whole_groups():
    with pytest.raises(ValueError, match="multiple of 8.*100"):
        wm.init(wm.SIZES["XS"]._replace(latent_dim=100), OBS, ACTION, TASK)


# ---------------------------------------------------------------- the file on its own


USE = """
import importlib.util, os, torch, world_model as wm
assert os.path.samefile(os.path.dirname(os.path.abspath(wm.__file__)), os.getcwd())
assert all(importlib.util.find_spec(name) is None for name in ("planner", "newt", "train", "envs"))
params = wm.init(wm.SIZES["XS"], 7, 2, 3, generator=torch.Generator().manual_seed(0))
task = wm.Task(torch.randn(2, 3), torch.ones(2, 2), torch.tensor([0, 1, 1]))
z = wm.encode(params, torch.randn(3, 7), task)
policy = wm.pi(params, z, task, torch.randn(3, 2))
z_next = wm.dynamics(params, z, policy.action, task)
r = wm.decode(wm.reward(params, z, policy.action, task), wm.make_bins())
v = wm.q(params, z_next, policy.action, task, torch.tensor([1]), "q_target")
loss = wm.two_hot_cross_entropy(v, r, wm.make_bins()).mean()
assert loss.isfinite()
print(*z_next.shape, *r.shape, *v.shape)
"""


def test_copied_alone(tmp_path):
    source = Path(wm.__file__)
    shutil.copy(source, tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["3", "128", "3", "1", "3", "101"]
    roots = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch"}
