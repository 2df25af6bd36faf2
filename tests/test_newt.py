"""newt.py: what an update may change, what guides a task, acting, and settings that are refused.

Numbers are compared with recordings in test_parity.py. Run: pytest tests/test_newt.py        (about 10 s on one core)
"""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import agent_config
import losses
import newt
import planner
import world_model as wm
from buffer import Batch, Buffer
from command import check_fields
from newt import Config

CFG = Config(size="XS", obs_dim=6, action_dim=4, task_dim=8, batch_size=16, warmup_updates=0, num_samples=24,
             num_elites=6, num_pi=4, iterations=2)  # fmt: skip
DIMS = [4, 2]


def agent(cfg=CFG, seed=0, **options) -> newt.Agent:
    emb = torch.randn(2, cfg.task_dim, generator=torch.Generator().manual_seed(9))
    return newt.create(cfg, ["left", "right"], emb, DIMS, [0.9, 0.99], seed, **options)


def batch(seed=0, cfg=CFG) -> Batch:
    g = torch.Generator().manual_seed(seed)
    b, h = cfg.batch_size, cfg.horizon
    task = torch.randint(2, (b,), generator=g)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])[task]
    action = (torch.rand(h, b, 4, generator=g) * 2 - 1) * mask
    return Batch(torch.randn(h + 1, b, 6, generator=g), action, torch.randn(h, b, generator=g), task)


def changed(before: dict, after: dict) -> set[str]:
    """Parts of the network with at least one other number."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def copy(params: dict) -> dict:
    return {name: value.detach().clone() for name, value in params.items()}


def act(a, n=6, step=0, **options):
    g = torch.Generator().manual_seed(4)
    obs, task = torch.randn(n, 6, generator=g), torch.arange(n) % 2
    warm, first = torch.randn(n, 3, 4, generator=g).clamp(-1, 1), torch.arange(n) % 3 == 0
    return newt.act(a, obs, task, warm, first, step, generator=torch.Generator().manual_seed(5), **options), task


def test_update_changes_every_part_in_both_phases():
    for phase in ("pretrain", "online"):
        a = agent()
        before = copy(a.params)
        for seed in range(2):  # the first one leaves what lies before the zero last layers untouched
            newt.update(a, batch(seed), phase)
        assert changed(before, a.params) == {"encoder", "dynamics", "reward", "pi", "q", "q_target"}
    assert a.q_scale == 1  # the range of these small values stays below 1


def test_imitation_alone_moves_encoder_and_policy_towards_what_was_done():
    """Its loss by hand: the policy's mean action for what is observed at each step, and nothing predicted."""
    a, b = agent(), batch()
    before = copy(a.params)
    noise = losses.draw_update_noise(CFG.horizon, CFG.batch_size, CFG.action_dim, 5, torch.Generator().manual_seed(0))
    noise = noise._replace(eps_bc=torch.zeros_like(noise.eps_bc))
    metrics = newt.update(a, b, "imitate", noise)
    task = wm.Task(a.emb, a.mask, b.task)
    errors = []
    for t in range(CFG.horizon):
        policy = wm.pi(before, wm.encode(before, b.obs[t], task), task, torch.zeros(len(b.task), CFG.action_dim))
        off = (policy.action - b.action[t]) ** 2 * a.mask[b.task]
        errors += (off.sum(-1) / a.mask[b.task].sum(-1)).tolist()
    assert float(metrics["loss/bc"]) == pytest.approx(np.mean(errors), rel=1e-4)
    for _ in range(60):
        metrics = newt.update(a, b, "imitate")
    assert float(metrics["loss/bc"]) < 0.5 * np.mean(errors)
    assert changed(before, a.params) == {"encoder", "pi"}


def test_consistency_moves_the_prediction_only():
    """A target with a gradient could be met by an encoder that maps everything to one point."""
    predicted, target = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    predicted.retain_grad(), target.retain_grad()
    losses.consistency_loss(predicted, target, losses.time_weights(2, 0.5))[0].backward()
    assert predicted.grad.abs().min() > 0 and target.grad is None


def test_target_follows_slowly():
    a = agent()
    before = copy(a.params)
    newt.update(a, batch(), "online")
    for name, value in before.items():
        if name.startswith("q_target."):
            online = a.params[name.replace("q_target.", "q.", 1)]
            torch.testing.assert_close(a.params[name], 0.99 * value + 0.01 * online)


def test_update_is_a_function_of_its_seed():
    runs = []
    for seed in (0, 0, 1):
        a = agent(seed=3)
        a.generator.manual_seed(seed)
        newt.update(a, batch(), "online")
        newt.update(a, batch(1), "online")
        runs.append(copy(a.params))
    assert not changed(runs[0], runs[1]) and changed(runs[0], runs[2])


def test_a_loss_that_is_not_finite_stops_before_the_step():
    a, data = agent(), batch()
    before = copy(a.params)
    data.reward[0, 0] = torch.nan
    with pytest.raises(FloatingPointError):
        newt.update(a, data, "online")
    assert not changed(before, a.params)


def test_two_different_heads_are_drawn():
    g, pairs = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        noise = losses.draw_update_noise(1, 1, 1, 3, g)
        pairs |= {tuple(noise.heads_td.tolist()), tuple(noise.heads_pi.tolist())}
    assert pairs == {(i, j) for i in range(3) for j in range(3) if i != j}


def test_padding_of_the_batch_changes_nothing():
    """Numbers in action dims that a task does not have must not reach a loss."""
    clean, dirty = batch(), batch()
    short = clean.task == 1
    dirty.action[:, short, 2:] = 0.7
    values = []
    for data in (clean, dirty):
        noise = losses.draw_update_noise(3, 16, 4, 2, torch.Generator().manual_seed(1))
        a = agent()
        task = newt.Task(a.emb, a.mask, data.task)
        zs = newt.wm.encode(a.params, data.obs, task)
        loss, _ = losses.policy_loss(
            a.params, zs, data.action, task, noise.eps_pi, noise.heads_pi, a.q_scale, losses.time_weights(3, 0.5),
            newt.wm.make_bins(101), 0.0,
        )  # fmt: skip
        values.append(loss)
    assert values[0] == values[1]


def test_imitation_online_is_for_guided_tasks():
    """Without imitation the policy step does not look at the batch's actions; with it, it does."""
    other = batch()
    other.action[:, other.task == 1] *= -1  # only the second task's actions differ
    for guided, differs in (([True, False], False), ([False, True], True)):
        steps = []
        for data in (batch(), other):
            a = agent(guided=guided)
            z = newt.wm.encode(a.params, data.obs, newt.Task(a.emb, a.mask, data.task)).detach()
            noise = losses.draw_update_noise(3, 16, 4, 2, torch.Generator().manual_seed(1))
            rho, bins, task = losses.time_weights(3, 0.5), newt.wm.make_bins(101), newt.Task(a.emb, a.mask, data.task)
            loss, _ = losses.policy_loss(
                a.params, z, data.action, task, noise.eps_pi, noise.heads_pi, a.q_scale, rho, bins, 1e-4,
                CFG.online_bc_coef * a.guided[data.task],
            )  # fmt: skip
            steps.append(loss)
        assert (steps[0] != steps[1]) == differs


def test_update_imitates_only_where_it_is_guided():
    """In `update` itself: what the coefficient is matters to guided tasks, and to no other."""
    for guided, differs in ((False, False), (True, True)):
        learned = []
        for coef in (0.0, 5.0):
            a = agent(replace(CFG, online_bc_coef=coef), guided=[guided] * 2)
            for seed in range(2):
                newt.update(a, batch(seed), "online")
            learned.append(copy(a.params))
        assert ("pi" in changed(*learned)) == differs


# ---- ends

LINE, RING, GAMMA = [0.75, 1.5, 1.0, 2.0], [0.8, 1.6, 1.2, 2.4], 0.5  # V(k) = r(k) + V(next) / 2, by hand


def chain(replay: Buffer) -> None:
    """Two tasks with states 0 to 3 and rewards 0, 1, 0, 2: after the last one comes the end, or the first one again.

    Both are also cut off, after five steps or in the middle of the line, which must not matter to any value.
    """
    reward = torch.tensor([0.0, 1, 0, 2])
    for first in range(4):
        for task, steps, terminated in ((0, 4 - first, True), (0, 3 - first, False), (1, 5, False)):
            state = first + torch.arange(steps + 1)
            obs = torch.nn.functional.one_hot(state % 4 if task else state.clamp(max=3), 5).float()
            led = torch.cat([torch.zeros(1), reward[state[:-1] % 4]])
            if steps:
                replay.add(obs, torch.rand(steps + 1, 1) * 2 - 1, led, task, terminated)


def test_values_at_truncation_and_at_termination(monkeypatch):
    """Learned, within 0.05: by the values, and by plans, which go beyond the end."""
    monkeypatch.setitem(newt.wm.SIZES, "XS", newt.wm.Size(64, 64, 64, 2, 2))
    cfg = newt.Config(size="XS", obs_dim=5, action_dim=1, task_dim=8, batch_size=64, lr=2e-3, enc_lr_scale=1.0, tau=0.1)
    emb = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    a, replay = newt.create(cfg, ["line", "ring"], emb, [1, 1], [GAMMA] * 2), Buffer(2000, 5, 1)
    torch.manual_seed(0)
    for _ in range(10):  # with other actions: they don't matter
        chain(replay)
    draw, bins = torch.Generator().manual_seed(0), newt.wm.make_bins()
    for _ in range(450):
        newt.update(a, replay.sample(64, 3, draw, "task"), "online")
    obs, eps = torch.nn.functional.one_hot(torch.arange(4), 5).float(), torch.zeros(4, 1)
    for k, want in enumerate((LINE, RING)):
        task = newt.Task(a.emb, a.mask, torch.full((4,), k))
        with torch.no_grad():
            z = newt.wm.encode(a.params, obs, task)
            q = newt.wm.decode(newt.wm.q(a.params, z, newt.wm.pi(a.params, z, task, eps).action, task), bins).mean(0)
            model = newt.planner_model(a.params, task._replace(index=task.index[:, None]), bins)
            plans = torch.linspace(-1, 1, 9).expand(4, 3, 9).unsqueeze(-1)  # three steps, whatever is done
            value = newt.planner.plan_return(
                model, z[:, None], plans, torch.full((4,), GAMMA), torch.zeros(4, 9, 1), torch.tensor([0, 1])
            )
        assert (q - torch.tensor(want)).abs().max() < 0.05, (k, q)
        assert (value - torch.tensor(want)[:, None]).abs().max() < 0.05, (k, value)


def test_nothing_is_worth_anything_after_the_end():
    """Where a step was the last one the target is its reward, whatever the target network says; elsewhere it isn't."""
    data = batch()._replace(terminated=torch.arange(3 * 16).reshape(3, 16).remainder(2).float())
    values = []
    for said in (0.0, 3.0):
        a = agent()
        a.params["q.2.bias"].data += torch.linspace(0, 1, 101)  # not the same loss for every target
        a.params["q_target.2.bias"] += said * torch.arange(101)  # values far above 0
        for part in (data.terminated, torch.ones(3, 16)):
            noise = losses.draw_update_noise(3, 16, 4, 2, torch.Generator().manual_seed(1))
            task, whole = newt.Task(a.emb, a.mask, data.task), data._replace(terminated=part)
            values.append(losses.model_loss(CFG, a.params, whole, task, a.discount[data.task], noise, "online")[2])
    half, all_ended, half_more, all_ended_more = (float(metrics["loss/value"]) for metrics in values)
    assert all_ended == all_ended_more and half != half_more


def test_values_beyond_the_range_are_noticed():
    assert losses.VALUE_LIMIT == pytest.approx(math.exp(10) - 1)
    assert losses.largest_value(np.array([1.0, 0, -8]), 0.5) == 8
    assert losses.largest_value(np.array([2.0, 4, 8]), 0.5) == 8 and losses.largest_value(np.ones(99), 0.9) < 10


# ---- acting


def test_the_policy_explores_with_its_own_noise():
    a = agent(seed=1)
    calm, task = act(a, use_planner=False)
    bold, _ = act(a, use_planner=False, explore=True)
    eps = torch.zeros(6, 4).normal_(generator=torch.Generator().manual_seed(5))
    obs = torch.randn(6, 6, generator=torch.Generator().manual_seed(4))
    tables = newt.Task(a.emb, a.mask, task)
    policy = newt.wm.pi(a.params, newt.wm.encode(a.params, obs, tables), tables, eps)
    torch.testing.assert_close(calm.action, policy.mean)
    torch.testing.assert_close(bold.action, policy.action)
    assert (bold.action - calm.action)[task == 0].abs().min() > 1e-4  # every number of every action


def test_constrained_planning_is_for_guided_tasks():
    cfg = replace(CFG, constraint_start=100, constraint_duration=0)
    plans = {}
    for guided in ([True, False], [False, False], [True, True]):
        for step in (0, 100):
            plans[tuple(guided), step], task = act(agent(cfg, guided=guided), step=step)
    free, mixed, full = (plans[key, 0].mean for key in ((False, False), (True, False), (True, True)))
    torch.testing.assert_close(mixed[task == 1], free[task == 1])
    torch.testing.assert_close(mixed[task == 0], full[task == 0])
    assert not torch.allclose(free, full)
    torch.testing.assert_close(plans[(True, True), 100].mean, free)  # over for all after its last step


def test_sure_is_for_evaluation():
    """Exploring is as published; otherwise an untrained model is sure of nothing, and the policy's action is taken."""
    rash, sure = (agent(replace(CFG, elite=elite, caution=5.0)) for elite in ("sample", "sure"))
    for part in ("q.2.weight", "reward.2.weight"):  # far from their initial zeros
        noise = 3 * torch.randn(rash.params[part].shape, generator=torch.Generator().manual_seed(1))
        rash.params[part].data += noise
        sure.params[part].data += noise
    assert torch.equal(act(rash, explore=True)[0].action, act(sure, explore=True)[0].action)
    policy = act(sure, use_planner=False)[0].action
    torch.testing.assert_close(act(sure)[0].action, policy)
    assert not torch.allclose(act(rash)[0].action, policy, atol=0.1)


def test_actions_are_bounded_and_masked():
    for options in ({}, {"explore": True}, {"use_planner": False}, {"use_planner": False, "explore": True}):
        plan, task = act(agent(), **options)
        assert plan.action.shape == (6, 4) and plan.action.abs().max() <= 1
        assert not plan.action[task == 1, 2:].any() and plan.action[task == 1, :2].all()


def test_environments_do_not_see_each_other():
    """The same decision whether an environment is planned for in a large group, on two cores, or on one."""
    a = agent()
    whole, _ = act(a, n=8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(newt.CORES)  # no core is left for a second group
        alone, _ = act(a, n=8)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone.action, whole.action)


def test_warm_up_and_learning_rates():
    a = agent(replace(CFG, warmup_updates=10))
    newt.update(a, batch(), "pretrain")
    rates = [group["lr"] for group in a.model_optim.param_groups]
    assert rates == pytest.approx([0.3 * 3e-4 * 0.2] + [3e-4 * 0.2] * 4)  # encoder first; 2/10 at the first update
    newt.update(a, batch(), "online")
    assert a.model_optim.param_groups[1]["lr"] == pytest.approx(3e-4)
    newt.update(a, batch(), "online", lr_scale=0.1)
    assert [group["lr"] for group in a.model_optim.param_groups] == pytest.approx([0.3 * 3e-5] + [3e-5] * 4)
    assert a.pi_optim.param_groups[0]["lr"] == pytest.approx(3e-5)
    before = copy(a.params)
    newt.update(a, batch(), "online", lr_scale=0.0)
    assert changed(before, a.params) == {"q_target"}


# ---- bad input


@pytest.mark.parametrize("name", [f.name for f in fields(Config)])
def test_every_setting_is_checked(name):
    """A new number without a range fails here, and so does a range that lets in what is none."""
    assert fields_that_take_nonsense(Config(), lambda cfg: check_fields(cfg, agent_config.RANGES), name) == []
    assert fields_that_take_nonsense(CFG, newt.check, name) == []


def fields_that_take_nonsense(settings, check, name: str) -> list:
    """Values that `check` takes for the field `name` of a dataclass, and should not: another type, NaN, infinite."""
    check(settings)
    kind, taken = type(settings).__dataclass_fields__[name].type, []
    kind = getattr(kind, "__origin__", kind)  # str, where tyro was told more about it
    for value in (math.nan, math.inf, -math.inf, -1, 10**400, None, [1], "nonsense", True, {}):
        if kind in (str, bool) and type(value) is kind:
            continue
        try:
            check(replace(settings, **{name: value}))
            taken.append(value)
        except ValueError as error:
            assert str(error).startswith(name) and "\n" not in str(error) and len(str(error)) < 200
    return taken


@pytest.mark.parametrize(
    "change",
    [{"std_min": 5.0, "std_max": 1.0}, {"std_min": 2.5}, {"tau": 5.0}, {"grad_clip": 0.0}, {"warmup_updates": -3},
     {"rho": 1.5}, {"temperature": -1.0}, {"elite": "best"}, {"size": "HUGE"}, {"td_target": "x"}],
)  # fmt: skip
def test_settings_that_make_no_sense(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        newt.check(replace(CFG, **change))


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"horizon": 0}, {"obs_dim": 0}, {"num_bins": 1}, {"task_dim": -1}, {"lr": 0.0}, {"num_pi": 1},
     {"num_pi": 24}, {"num_elites": 25}, {"iterations": 0}],
)  # fmt: skip
def test_sizes_that_cannot_work(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        newt.check(replace(CFG, **change))


def test_tables_must_fit():
    with pytest.raises(ValueError, match="2 task embeddings of 8"):
        newt.create(CFG, ["a", "b"], torch.zeros(3, 8), DIMS, [0.9, 0.9])
    with pytest.raises(ValueError, match="5 action dims"):
        newt.create(CFG, ["a", "b"], torch.zeros(2, 8), [5, 2], [0.9, 0.9])
    for dims, discounts, emb, scale in (
        ([0, 2], [0.9, 0.9], 0, 1), (DIMS, [0.9, math.nan], 0, 1), (DIMS, [0.9, 1.1], 0, 1), (DIMS, [-0.1, 0.9], 0, 1),
        (DIMS, [0.9, 0.9], math.inf, 1), (DIMS, [0.9, 0.9], 0, 0), (DIMS, [0.9, 0.9], 0, math.nan),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="without actions|q_scale"):
            newt.create(CFG, ["a", "b"], torch.full((2, 8), float(emb)), dims, discounts, q_scale=scale)


def test_an_agent_owns_its_numbers():
    """Tensors out of a file lie where the file has them, aligned or not, and sums of such differ in the last bit."""
    emb = torch.arange(17.0)[1:].view(2, 8)
    one = newt.create(CFG, ["a", "b"], emb, DIMS, [0.9, 0.9])
    two = newt.create(CFG, ["a", "b"], emb, DIMS, [0.9, 0.9], params=one.params)
    assert len({x.data_ptr() for x in (emb, one.emb, two.emb)}) == 3
    assert not {x.data_ptr() for x in one.params.values()} & {x.data_ptr() for x in two.params.values()}


def test_later_decisions_of_an_episode_search_less():
    """First ones make all iterations, the others only the first few of them: from the same noise, each by itself."""
    a = agent(replace(CFG, iterations=4, warm_iterations=1, constraint_start=0, constraint_duration=0))
    with torch.no_grad():  # weights that tell plans apart: a fresh agent's last layers are 0
        for name, value in a.params.items():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    obs, task = torch.randn(5, CFG.obs_dim), torch.tensor([0, 1, 0, 1, 0])
    warm = torch.rand(5, CFG.horizon, CFG.action_dim) * a.mask[task].unsqueeze(1)
    first = torch.tensor([True, False, False, True, False])
    plan = newt.act(a, obs, task, warm, first, generator=torch.Generator().manual_seed(3))
    for iterations, rows in ((4, first), (1, ~first)):
        settings = newt.plan_settings(a.cfg)
        num_q = len(a.params["q.0.weight"])
        noise = planner.draw_noise(settings, 5, CFG.action_dim, num_q, torch.Generator().manual_seed(3))
        z = wm.encode(a.params, obs, wm.Task(a.emb[task], a.mask[task], torch.arange(5)))
        want = newt.decide(
            a.params, a.emb[task], a.mask[task], z, warm, first, a.discount[task], noise,
            torch.zeros(5), settings._replace(iterations=iterations), CFG.num_bins, CFG.elite,
        )  # fmt: skip
        for got, expected in zip(plan, want, strict=True):
            torch.testing.assert_close(got[rows], expected[rows], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plan.mean[~rows], want.mean[~rows])


def test_an_update_that_is_not_finite_is_left_out_on_the_device():
    """What a GPU does without being waited for, here without the question that a CPU asks at once: weights, moments
    and their counts stay to the last bit; and Adam's own clipping is clipping to a norm."""
    for bad in (math.nan, math.inf):
        weight = torch.tensor([3.0, 4.0], requires_grad=True)
        optim = torch.optim.Adam([weight], lr=0.1, fused=True)
        (weight * torch.tensor([3.0, -4.0])).sum().backward()  # a gradient of norm 5
        optim.grad_scale, optim.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        optim.step()
        assert optim.state[weight]["exp_avg"].tolist() == pytest.approx([0.15, -0.2])  # 0.1 * gradient / 2
        before = [weight.detach().clone(), *(value.clone() for value in optim.state[weight].values())]
        weight.grad = torch.tensor([bad, 1.0])
        optim.grad_scale, optim.found_inf = torch.tensor(bad), torch.tensor(1.0)
        optim.step()
        after = [weight.detach(), *optim.state[weight].values()]
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
