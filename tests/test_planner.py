"""planner.py against its naive twin (naive.py), against the definitions, and copied alone into an empty folder.

Run: pytest tests/test_planner.py        (about 15 s on one core)
"""

import ast
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import naive
import planner
import world_model as wm
from planner import Model, Noise, Settings

SMALL = Settings(horizon=3, num_samples=20, num_elites=6, num_pi=4, iterations=4)
BINS64 = torch.linspace(-10, 10, 101, dtype=torch.float64)
MASK = (torch.arange(5) < torch.tensor([[5], [3], [2], [1]])).double()  # (S, A) of four tasks
STEPS = [0, 2_000_000, 6_000_000, 10_000_000, 12_000_000]  # weights 1, 1, 0.6, 0.2, 0


def draw(settings, batch, action_dim, num_q=3, seed=0) -> Noise:
    """float64, so that no two plans are close enough for rounding to swap their ranks."""
    noise = planner.draw_noise(settings, batch, action_dim, num_q, torch.Generator().manual_seed(seed))
    return Noise(*(v.double() if v.is_floating_point() else v for v in noise))


def random_network(size, task_dim=4):
    """Untrained but far from its initial values, with rewards and returns of every size between about -10 and 10."""
    generator = torch.Generator().manual_seed(0)
    params = wm.init(size, 7, 5, task_dim)
    for name, value in params.items():
        noise = torch.randn(value.shape, dtype=torch.float64, generator=generator)
        if name.endswith("ln.weight"):
            params[name] = 1 + 0.3 * noise
        elif name.endswith("bias"):
            params[name] = 0.3 * noise
        else:
            params[name] = (3.5 if name in ("reward.2.weight", "q.2.weight") else 2) * noise / value.shape[-1] ** 0.5
    return params


def fast_model(params, task):
    return Model(
        next=lambda z, a: wm.dynamics(params, z, a, task),
        reward=lambda z, a: wm.decode(wm.reward(params, z, a, task), BINS64),
        pi=lambda z, eps: wm.pi(params, z, task, eps).action,
        q=lambda z, a, heads: wm.decode(wm.q(params, z, a, task, heads), BINS64).mean(0),
        q_heads=lambda z, a: wm.decode(wm.q(params, z, a, task), BINS64),
    )


class Case:
    """One decision of four environments with four tasks, a warm start, and both programs to make it."""

    def __init__(self, size=wm.Size(32, 32, 16, 2, 3), settings=SMALL, seed=0):  # noqa: B008 (an immutable tuple)
        generator = torch.Generator().manual_seed(100 + seed)
        params, emb = random_network(size), torch.randn(4, 4, dtype=torch.float64, generator=generator)
        index, self.settings = torch.tensor([2, 0, 3, 1]), settings
        obs = torch.randn(4, 7, dtype=torch.float64, generator=generator)
        self.z = wm.encode(params, obs, wm.Task(emb, MASK, index))
        self.mask = MASK[index]
        self.warm = torch.rand(4, settings.horizon, 5, dtype=torch.float64, generator=generator) * 2 - 1
        self.warm *= self.mask.unsqueeze(1)
        self.first = torch.tensor([False, False, True, False])
        self.discount = torch.tensor([0.95, 0.99, 0.97, 0.5], dtype=torch.float64)
        self.noise = draw(settings, 4, 5, size.num_q, seed)
        self.model = fast_model(params, wm.Task(emb, MASK, index.unsqueeze(1)))
        self.models = [naive.network_model(params, emb[i], MASK[i], BINS64) for i in index.tolist()]

    def inputs(self):
        return self.z, self.warm, self.first, self.mask, self.discount, self.settings, self.noise

    def check(self, *args, **kwargs):
        got = planner.plan(self.model, *self.inputs(), *args, **kwargs)
        want = naive.plan(self.models, *self.inputs(), *args, **kwargs)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, equal_nan=True)
        return got


# ---------------------------------------------------------------- agreement with the naive planner


@pytest.mark.parametrize("explore, elite", itertools.product([True, False], ["sample", "mean", "sure"]))
@pytest.mark.parametrize("step", STEPS)
def test_plan_agrees_with_naive(step, explore, elite):
    weight = planner.policy_weight(step, 2_000_000, 10_000_000)
    got = Case(seed=step // 1_000_000).check(weight, explore, elite)
    assert got.value.std(1).min() > 0.3  # plans differ, so that ranks and weights mean something
    assert (got.std[got.std > 0] < 2).all()


@pytest.mark.parametrize("seed", range(4))
def test_plan_agrees_with_naive_on_more_seeds(seed):
    Case(seed=50 + seed).check(0.3)


def test_plan_agrees_with_naive_at_size_s():
    Case(wm.SIZES["S"], SMALL._replace(iterations=2)).check(0.5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(horizon=1),
        dict(horizon=5, iterations=2),
        dict(iterations=1),
        dict(temperature=3.0, std_min=0.2, std_max=0.7),
        dict(num_elites=1),
        dict(num_elites=20),
        dict(num_pi=20),
    ],
    ids=str,
)
def test_plan_agrees_with_naive_at_other_settings(changes):
    Case(settings=SMALL._replace(**changes), seed=7).check(0.4)


@pytest.mark.parametrize("caution", [0.0, 0.3, 1.0, 2.0])
def test_sure_plans_agree_with_naive(caution):
    """Around 0.3 some environments keep the policy's plan and some do not."""
    Case(settings=SMALL._replace(caution=caution), seed=3).check(0.5, False, "sure")


def test_plan_agrees_with_naive_without_policy_plans():
    Case(settings=SMALL._replace(num_pi=0), seed=8).check(0.0)


def test_plan_agrees_with_naive_where_returns_are_nan():
    case = Case(seed=9)
    fast, slow = case.model.reward, [model.reward for model in case.models]

    def spoil(a, value):
        return torch.where((40 * a[..., 0]).sin() > 0.8, torch.nan, value)  # stripes too fine to be avoided

    case.model = case.model._replace(reward=lambda z, a: spoil(a, fast(z, a)))
    case.models = [
        model._replace(reward=lambda z, a, old=old: spoil(a, old(z, a)))
        for model, old in zip(case.models, slow, strict=True)
    ]
    assert case.check(0.0).value.isnan().any()


def test_default_is_no_constraint_and_an_exploring_sample():
    case = Case()
    got, want = planner.plan(case.model, *case.inputs()), naive.plan(case.models, *case.inputs(), 0.0, True, "sample")
    torch.testing.assert_close(got.action, want[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("environment", range(4))
def test_environments_do_not_touch_each_other(environment):
    case, b = Case(), slice(environment, environment + 1)
    batch = planner.plan(case.model, *case.inputs(), 0.5)
    noise, single = case.noise, case.models[environment]
    noise = Noise(noise.pi[b], noise.sample[:, b], noise.terminal[:, b], noise.heads, noise.gumbel[b], noise.final[b])
    inputs = (case.z[b], case.warm[b], case.first[b], case.mask[b], case.discount[b], case.settings, noise)
    for got, want in zip(batch, naive.plan([single], *inputs, 0.5), strict=True):
        torch.testing.assert_close(got[b], want, rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------- the parts, by hand


@pytest.mark.parametrize(
    "step, want",
    [(0, 1), (1_999_999, 1), (2_000_000, 1), (7_000_000, 0.5), (10_000_000, 0.2), (12_000_000, 0), (10**8, 0)],
)
def test_policy_weight_ends_at_start_plus_duration(step, want):
    assert planner.policy_weight(step, 2_000_000, 10_000_000) == pytest.approx(want)
    assert naive.policy_weight(step, 2_000_000, 10_000_000) == pytest.approx(want)


def test_policy_weight_without_duration():
    assert [planner.policy_weight(step, 100, 0) for step in (0, 99, 100, 101)] == [1, 1, 0, 0]


def test_plan_return_by_hand():
    """z counts steps, the reward is action + z (before the step), the value is z + the policy's action + the heads."""
    model = Model(
        next=lambda z, a: z + 1,
        reward=lambda z, a: a[..., 0] + z[..., 0],
        pi=lambda z, eps: 10 * eps,
        q=lambda z, a, heads: z[..., 0] + a[..., 0] + heads.sum(),
    )
    actions = torch.tensor([[2.0, 5.0], [4.0, 6.0]]).view(1, 2, 2, 1)  # two steps, two plans
    eps = torch.tensor([0.1, 0.2]).view(1, 2, 1)
    got = planner.plan_return(model, torch.zeros(1, 1, 1), actions, torch.tensor([0.5]), eps, torch.tensor([1, 2]))
    want = torch.tensor([[2 + 0.5 * 5 + 0.25 * (2 + 1 + 3), 5 + 0.5 * 7 + 0.25 * (2 + 2 + 3)]])
    torch.testing.assert_close(got, want)


def test_policy_plans_by_hand():
    model = Model(next=lambda z, a: z + a, reward=None, pi=lambda z, eps: z + eps, q=None)
    eps = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]).view(1, 3, 2, 1)
    got = planner.policy_plans(model, torch.full((1, 1, 1), 100.0), eps)
    # z: 100, 201, 404 for the first plan; an action is its latent plus its own noise
    assert got.view(3, 2).tolist() == [[101, 110], [203, 230], [407, 470]]


def test_refit_by_hand():
    actions = torch.tensor([0.0, 1.0, -1.0, 0.5]).view(1, 1, 4, 1)
    value = torch.tensor([[2.0, 0.0, -50.0, 1.0]])
    settings = Settings(num_elites=2, temperature=0.5, std_min=0.0)
    mean, std, elite, weight = planner.refit(actions, value, settings)
    w = 1 / (1 + torch.tensor(-0.5).exp())  # softmax(0.5 * [2, 1])
    torch.testing.assert_close(weight, torch.stack([w, 1 - w]).view(1, 2))
    assert elite.flatten().tolist() == [0.0, 0.5]
    torch.testing.assert_close(mean.item(), 0.5 * (1 - w.item()))
    torch.testing.assert_close(std.item(), 0.5 * (w * (1 - w)).sqrt().item())
    assert planner.refit(actions, value, settings._replace(std_min=0.3))[1].item() == pytest.approx(0.3)
    assert planner.refit(actions, value, settings._replace(std_max=0.1))[1].item() == pytest.approx(0.1)


def test_refit_follows_a_clear_winner():
    actions, value = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.zeros(2, 8)
    value[:, 5] = 1e4
    mean, std, *_ = planner.refit(actions, value, Settings(num_elites=4))
    torch.testing.assert_close(mean, actions[:, :, 5])
    assert (std == torch.tensor(0.05)).all()


def test_refit_never_weighs_nan():
    actions = torch.linspace(-1, 1, 8).view(1, 1, 8, 1)
    value = torch.full((1, 8), torch.nan)
    value[0, 2], value[0, 6] = -1000.0, -1001.0  # NaN as 0 would beat both
    mean, std, elite, weight = planner.refit(actions, value, Settings(num_elites=5))
    assert elite.flatten()[:2].tolist() == actions.flatten()[[2, 6]].tolist() and weight[0, 2:].sum() == 0
    for result in planner.refit(actions, torch.full((1, 8), torch.nan), Settings(num_elites=5)):
        assert result.isfinite().all()  # nothing to choose from: still a number


# ---------------------------------------------------------------- promises of plan()


def toy(reward, pi=None, value=None, heads=None):
    """A model of pure functions: the latent is a point that the action moves."""
    return Model(
        next=lambda z, a: z + a,
        reward=reward,
        pi=pi or (lambda z, eps: torch.tanh(eps) + 0 * z),
        q=lambda z, a, heads: z[..., 0] * 0 if value is None else value(z),
        q_heads=heads or (lambda z, a: (z[..., 0] * 0 if value is None else value(z)).expand(2, *a.shape[:-1])),
    )


def run(model, settings, batch=1, dims=2, z=None, mask=None, discount=0.9, seed=0, warm=None, first=None, **kwargs):
    z = torch.zeros(batch, dims) if z is None else z
    mask = torch.ones(batch, dims) if mask is None else mask
    warm = torch.zeros(batch, settings.horizon, dims) if warm is None else warm
    first = torch.ones(batch, dtype=torch.bool) if first is None else first
    noise = planner.draw_noise(settings, batch, dims, 3, torch.Generator().manual_seed(seed))
    return planner.plan(model, z, warm, first, mask, torch.full((batch,), discount), settings, noise, **kwargs)


@pytest.mark.parametrize("start", [-1.0, 0.3, 0.8])
def test_finds_the_optimum_of_a_linear_quadratic_problem(start):
    """z' = z + a, reward -(z^2 + c a^2), value -z^2: the best first action is -k z, k from the Riccati recursion."""
    c, gamma = 0.5, 0.8
    p = 1.0
    for _ in range(3):
        k = gamma * p / (c + gamma * p)
        p = 1 + c * k**2 + gamma * p * (1 - k) ** 2
    model = toy(lambda z, a: -(z.square() + c * a.square()).sum(-1), value=lambda z: -z.square().sum(-1))
    z = torch.tensor([[start, -start]])
    settings = Settings(iterations=12, std_min=0.01)
    got = run(model, settings, z=z, discount=gamma, explore=False, elite="mean")
    torch.testing.assert_close(got.action, -k * z, rtol=0, atol=0.01)
    sampled = run(model, settings, z=z, discount=gamma, explore=False, elite="sample")
    torch.testing.assert_close(sampled.action, -k * z, rtol=0, atol=0.04)
    expected = -(p * z.square()).sum().item()
    assert got.value.max().item() == pytest.approx(expected, abs=0.01)
    assert got.value.max() <= expected + 1e-5  # nothing is better than the optimum


def test_finds_an_optimum_at_the_border():
    got = run(toy(lambda z, a: 10 * a[..., 0] - 10 * a[..., 1]), Settings(), explore=False, elite="mean")
    torch.testing.assert_close(got.mean, torch.tensor([1.0, -1.0]).expand(1, 3, 2), rtol=0, atol=0.05)


def test_first_flag_forgets_the_last_plan():
    """With almost no spread the result is the initial mean: the last plan moved one step on, or zero."""
    settings = Settings(num_samples=32, num_elites=8, num_pi=0, std_min=1e-6, std_max=1e-6)
    warm = torch.tensor([[0.1, -0.2], [0.3, -0.4], [0.5, -0.6]]).expand(2, 3, 2)
    first = torch.tensor([False, True])
    got = run(toy(lambda z, a: a.sum(-1)), settings, 2, warm=warm, first=first, explore=False)
    want = torch.stack([torch.tensor([[0.3, -0.4], [0.5, -0.6], [0.0, 0.0]]), torch.zeros(3, 2)])
    torch.testing.assert_close(got.mean, want, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.action, want[:, 0], rtol=0, atol=1e-4)
    old = torch.where(first[:, None, None], torch.nan, warm)  # what stands in a forgotten plan must not matter
    again = run(toy(lambda z, a: a.sum(-1)), settings, 2, warm=old, first=first, explore=False)
    assert torch.equal(again.mean, got.mean)


def test_full_constraint_starts_from_the_policy():
    """A policy without spread, weight 1: sampling starts around its action and cannot get far in one iteration."""
    model = toy(lambda z, a: 100 * a[..., 0], pi=lambda z, eps: 0 * eps + torch.tensor([-0.5, 0.5]))
    settings = Settings(iterations=1)
    near = run(model, settings, policy_weight=1.0, explore=False, elite="mean").mean
    torch.testing.assert_close(near, torch.tensor([-0.5, 0.5]).expand(1, 3, 2), rtol=0, atol=0.2)
    assert (run(model, settings, policy_weight=0.0, explore=False, elite="mean").mean[..., 0] > 0).all()


def test_policy_plans_stay_in_the_sample_set():
    """Only the policy's own plan is any good, and no sample can hit it: it must win after the last iteration too."""
    model = toy(lambda z, a: -1e4 * (a[..., 0] - 0.123).abs(), pi=lambda z, eps: 0 * eps + 0.123)
    for seed in range(5):
        got = run(model, Settings(num_samples=64, num_elites=8, num_pi=2), dims=1, seed=seed, explore=False)
        assert got.action.item() == pytest.approx(0.123) and (got.value[:, :2] == 0).all()


@pytest.mark.parametrize("elite", ["sample", "mean", "sure"])
@pytest.mark.parametrize("seed", range(5))
def test_nan_returns_are_never_chosen(seed, elite):
    """NaN wherever a[0] > 0. All other returns are below -100, so a NaN that counts as 0 would win."""
    model = toy(
        lambda z, a: torch.where(a[..., 0] > 0, torch.nan, 10 * a[..., 0] - 100),
        pi=lambda z, eps: 0.1 * torch.tanh(eps) - torch.tensor([0.5, 0.0]),
    )
    got = run(model, Settings(num_samples=64, num_elites=48, num_pi=4), 8, seed=seed, explore=False, elite=elite)
    assert got.value.isnan().any()
    assert (got.action[:, 0] <= 0).all() and (got.mean[..., 0] <= 0).all() and got.std.isfinite().all()


@pytest.mark.parametrize("explore, elite", itertools.product([True, False], ["sample", "mean", "sure"]))
def test_actions_stay_in_range_and_masked_dims_at_zero(explore, elite):
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 0, 1]]).repeat(20, 1)
    # The policy masks its own actions, as the world model's does; the return would love to use the masked dims.
    model = toy(
        lambda z, a: 9 * a.sum(-1),
        pi=lambda z, eps: torch.tanh(3 * eps + 0 * z) * mask.unsqueeze(1),
    )
    settings = Settings(num_samples=40, num_elites=10, num_pi=4, std_min=0.5, caution=0.0)
    seen = []
    for seed in range(3):
        for weight in (0.0, 0.5, 1.0):
            warm = torch.full((60, 3, 3), 5.0)  # even if somebody hands in nonsense
            first = torch.zeros(60, dtype=torch.bool)
            got = run(
                model, settings, 60, 3, None, mask, 0.9, seed, warm, first,
                policy_weight=weight, explore=explore, elite=elite,
            )  # fmt: skip
            off = mask == 0
            assert got.action.abs().max() <= 1 and got.mean.abs().max() <= 1 + 1e-6
            assert (got.action[off] == 0).all()
            assert (got.mean.transpose(1, 2)[off] == 0).all() and (got.std.transpose(1, 2)[off] == 0).all()
            seen.append(got.action)
    assert (torch.cat(seen) == 1).any() or elite == "mean"  # the border was reached, so clamping was put to the test


def test_noise_in_masked_dims_is_ignored():
    case = Case()
    off = case.mask == 0

    def spoil(noise, view):
        return torch.where(off.view(view), 3.0, noise)

    spoiled = Noise(
        pi=spoil(case.noise.pi, (4, 1, 1, 5)),
        sample=spoil(case.noise.sample, (1, 4, 1, 1, 5)),
        terminal=spoil(case.noise.terminal, (1, 4, 1, 5)),
        heads=case.noise.heads,
        gumbel=case.noise.gumbel,
        final=spoil(case.noise.final, (4, 5)),
    )
    want = planner.plan(case.model, *case.inputs(), 0.5)
    got = planner.plan(case.model, *case.inputs()[:-1], spoiled, 0.5)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("elite", ["sample", "mean", "sure"])
def test_exploration_adds_the_final_std_to_the_first_action(elite):
    case = Case()
    still = planner.plan(case.model, *case.inputs(), explore=False, elite=elite)
    noisy = planner.plan(case.model, *case.inputs(), explore=True, elite=elite)
    want = (still.action + still.std[:, 0] * case.noise.final).clamp(-1, 1)
    torch.testing.assert_close(noisy.action, want)
    assert not torch.equal(noisy.action, still.action) and torch.equal(noisy.mean, still.mean)
    if elite == "mean":
        torch.testing.assert_close(still.action, still.mean[:, 0])


def test_elites_are_drawn_in_proportion_to_their_weight():
    """All plans come from the policy (no sampling), so their returns are known: 0, 2 and 3; the fourth is no elite."""
    settings = Settings(horizon=1, num_samples=4, num_elites=3, num_pi=4, iterations=1)
    returns, n = torch.tensor([0.0, 2.0, 3.0, -1.0]), 20_000
    model = Model(
        next=lambda z, a: z + a,
        reward=lambda z, a: returns[: a.shape[1]] - a[..., 0] * 0,
        pi=lambda z, eps: 0 * eps + torch.tensor([0.1, 0.2, 0.3, 0.4]).view(-1, 1),
        q=lambda z, a, heads: z[..., 0] * 0,
    )
    got = run(model, settings, n, 1, explore=False)
    share = torch.stack([(got.action - 0.1 * k).abs().lt(1e-4).float().mean() for k in (1, 2, 3, 4)])
    want = torch.cat([torch.softmax(0.5 * returns[:3], 0), torch.zeros(1)])
    torch.testing.assert_close(share, want, rtol=0, atol=5 * 0.5 / n**0.5)


# ---------------------------------------------------------------- being sure


def test_advantages_by_hand():
    """One dimension, H = 2, heads 10 z + a and 20 z + a, z' = z + a, reward a, discount 1/2, the policy says 0."""
    model = toy(lambda z, a: a[..., 0], pi=lambda z, eps: 0 * (z + eps),
                heads=lambda z, a: torch.stack((10 * z + a, 20 * z + a))[..., 0])  # fmt: skip
    plans = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.5, 0.5]]).T.reshape(1, 2, 3, 1)
    got = planner.advantages(model, torch.tensor([[[1.0]]]), plans, torch.tensor([0.5]))
    # Plan (1, -1): h = 0: Q(1, 1) - Q(1, 0) = 1; h = 1: 1 + (10 * 2 - 1 - 10) / 2 = 5.5 and 1 + (20 * 2 - 1 - 20) / 2
    # = 10.5; h = 2: 1 - 1/2 + (10 * 1 - 10) / 4 = 0.5. Plan (.5, .5): .5; .5 + (15.5 - 10) / 2 = 3.25 and 5.75;
    # .5 + .25 + (20 - 10) / 4 = 3.25 and 5.75.
    want = torch.tensor([[0, 1, 0.5], [0, 1, 0.5], [0, 5.5, 3.25], [0, 10.5, 5.75], [0, 0.5, 3.25], [0, 0.5, 5.75]])
    torch.testing.assert_close(got, want.unsqueeze(1))
    mean, std, inputs = want.mean(0), want.std(0), (model, torch.tensor([[[1.0]]]), plans, torch.tensor([0.5]))
    for caution in (0.0, 0.5, 1.0, 2.0):
        for near in (9.0, 1.0, 0.9, 0.5):  # the plans are sqrt(2) and sqrt(1/2) off
            doubt = torch.tensor([1, max(1, 2**0.5 / near), max(1, 0.5**0.5 / near)]) * std
            chosen = planner.surest(*inputs, caution, torch.tensor([near]))
            assert chosen.item() == (mean - caution * doubt).argmax().item()
    assert planner.surest(*inputs, 9.0, torch.tensor([9.0])).item() == 0


def test_a_wrong_value_outside_of_the_data_is_walked_into_unless_sure():
    """The best place is 0.4. Behind 1 there are no data: the model promises more and more there, each head its own."""

    def beyond(z):
        return (z[..., 0].abs() - 1).clamp(min=0)

    def truth(z):
        return -(z[..., 0] - 0.4).square()

    model = toy(
        lambda z, a: truth(z + a) + 40 * beyond(z + a),
        pi=lambda z, eps: 0.1 * torch.tanh(eps) + 0 * z,
        value=lambda z: 2 * truth(z) + 40 * beyond(z),
        heads=lambda z, a: torch.stack([3 * truth(z + a) + k * beyond(z + a) for k in (0, 15, 30, 60, 95)]),
    )
    settings = Settings(num_samples=128, num_elites=16, num_pi=8, std_min=0.03)
    rash = run(model, settings, 32, 1, explore=False).chosen
    sure = run(model, settings, 32, 1, explore=False, elite="sure").chosen
    assert (rash.sum(1).abs() > 1.5).float().mean() > 0.9  # where three such steps end
    assert (sure.cumsum(1).abs() < 1.2).all()


@pytest.mark.parametrize("distance_counts", [True, False])
def test_errors_that_all_ways_share_grow_with_the_distance(distance_counts, monkeypatch):
    """The best place is 0.2. Behind 0.5, where the policy never is, rewards and all heads promise much the same."""

    def beyond(z):
        return (z[..., 0].abs() - 0.5).clamp(min=0, max=0.3)

    def truth(z):
        return -(z[..., 0] - 0.2).square()

    model = toy(
        lambda z, a: truth(z + a) + 10 * beyond(z + a),
        pi=lambda z, eps: 0.1 * torch.tanh(eps) + 0 * z,
        value=lambda z: 2 * truth(z) + 10 * beyond(z),
        heads=lambda z, a: torch.stack([3 * truth(z + a) + k * beyond(z + a) for k in (20, 25, 30, 35, 40)]),
    )
    if not distance_counts:
        surest = planner.surest
        monkeypatch.setattr(planner, "surest", lambda *args: surest(*args[:-1], torch.full((32,), 1e9)))
    settings = Settings(num_samples=128, num_elites=16, num_pi=8, std_min=0.03)
    chosen = run(model, settings, 32, 1, explore=False, elite="sure").chosen
    astray = (chosen.cumsum(1).abs() > 0.6).any(1).float().mean()
    assert astray == 0 if distance_counts else astray > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_what_replaces_the_policys_plan_is_better_where_the_ways_of_reckoning_hold_the_truth(seed):
    """If the true advantage is within `caution` deviations of the mean of all ways, no worse plan is ever chosen."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(1000, 20, generator=generator)
    true[:, 0] = 0
    error = torch.randn(20, 1000, 20, generator=generator) * torch.rand(1, 1000, 20, generator=generator) * 3
    error += torch.randn(1, 1000, 20, generator=generator) * error.std(0)  # that all ways share
    error[..., 0] = 0
    within = error.mean(0).abs() <= 2 * error.std(0)
    ways = torch.where(within, true + error, -9.0)  # elsewhere all say that it is bad
    steps = iter(ways.view(4, 5, 1000, 20))
    model = toy(lambda z, a: 0 * a[..., 0], heads=lambda z, a: next(steps))
    one = torch.ones(1000)
    chosen = planner.surest(model, torch.zeros(1000, 1, 1), torch.zeros(1000, 3, 20, 1), one, 2.0, one)
    gained = true.gather(1, chosen.unsqueeze(1))
    assert gained.min() >= 0 and (chosen > 0).float().mean() > 0.1
    rash = true.gather(1, ways.mean(0).argmax(1, keepdim=True))
    assert rash.min() < -0.5  # by the mean alone, worse ones are


def test_same_generator_same_plan():
    model = toy(lambda z, a: -a.square().sum(-1))
    one, again, other = (run(model, Settings(num_samples=64, num_elites=8), 3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.action, other.action)


def test_plan_draws_nothing_and_tracks_no_gradient():
    """All randomness is in `noise`, and planning through trainable parameters builds no graph."""
    case, before = Case(), torch.get_rng_state()
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    reward = case.model.reward
    got = planner.plan(case.model._replace(reward=lambda z, a: weight * reward(z, a)), *case.inputs(), 0.5)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(v.requires_grad for v in got)


# ---------------------------------------------------------------- noise


def test_noise_shapes():
    noise = planner.draw_noise(SMALL, 2, 5, 3)
    shapes = [tuple(v.shape) for v in noise]
    assert shapes == [(2, 3, 4, 5), (4, 2, 3, 16, 5), (4, 2, 20, 5), (4, 2), (2, 6), (2, 5)]
    assert noise.heads.dtype == torch.long
    assert planner.draw_noise(SMALL, 2, 5, 1).heads.tolist() == [[0]] * 4  # an ensemble of one


def test_noise_is_standard():
    settings = Settings(iterations=3000, num_samples=3, num_pi=1, num_elites=1000, horizon=2)
    noise = planner.draw_noise(settings, 4, 2, 4, torch.Generator().manual_seed(0))
    for normal in (noise.sample, noise.terminal):
        assert normal.mean().abs() < 0.02 and (normal.std() - 1).abs() < 0.02
    assert noise.gumbel.mean().item() == pytest.approx(0.5772, abs=0.1)  # Euler's constant
    assert noise.gumbel.std().item() == pytest.approx(1.2825, abs=0.1)  # pi / sqrt(6)
    assert noise.gumbel.median().item() == pytest.approx(0.3665, abs=0.1)  # -log(log 2): the sign matters
    assert (noise.heads[:, 0] != noise.heads[:, 1]).all()
    pairs = torch.bincount(noise.heads[:, 0] * 4 + noise.heads[:, 1], minlength=16).view(4, 4)
    expected = 3000 / 12  # ordered pairs of different heads
    assert ((pairs - expected)[~torch.eye(4, dtype=torch.bool)].square() / expected).sum() < 31.3  # chi2(11), p = 0.001


def test_generator_decides_the_noise():
    def draw_from(seed):
        return planner.draw_noise(SMALL, 2, 5, 3, torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    one, again, other = draw_from(3), draw_from(3), draw_from(4)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- the file on its own


USE = """
import importlib.util, os, torch, planner
assert os.path.samefile(os.path.dirname(os.path.abspath(planner.__file__)), os.getcwd())
assert all(importlib.util.find_spec(name) is None for name in ("world_model", "newt", "train", "envs"))
goal = torch.tensor([0.25, -0.5])
model = planner.Model(
    next=lambda z, a: z + a,
    reward=lambda z, a: -(a - goal).square().sum(-1),
    pi=lambda z, eps: torch.tanh(z + eps),
    q=lambda z, a, heads: 0 * z[..., 0],
)
settings, warm = planner.Settings(num_samples=256), torch.zeros(2, 3, 2)
generator = torch.Generator().manual_seed(0)
for step in range(3):
    noise = planner.draw_noise(settings, 2, 2, 5, generator)
    out = planner.plan(model, torch.zeros(2, 2), warm, torch.full((2,), step == 0), torch.ones(2, 2),
                       torch.full((2,), 0.99), settings, noise, explore=False, elite="mean")
    warm = out.mean
print((out.action - goal).abs().max().item() < 0.1)
"""


def test_copied_alone(tmp_path):
    source = Path(planner.__file__)
    shutil.copy(source, tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"
    roots = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch"}
