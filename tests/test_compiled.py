"""compiled.py: the same numbers as in eager, up to rounding; when it is worth it; and what happens if it fails.

Run: pytest tests/test_compiled.py        (about a minute on one core; with -m slow, a run that is killed and resumed)
"""

import subprocess
from dataclasses import replace

import pytest
import torch
from test_train import SMALL, assert_same_run, command

import compiled
import newt
from buffer import Batch

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not compiled.available(CPU), reason="no C++ compiler here")


def agent() -> newt.Agent:
    """With weights that tell good plans from bad ones: a fresh one's last layers are 0."""
    cfg = newt.Config(size="XS", obs_dim=6, action_dim=3, task_dim=4, batch_size=16, horizon=2, num_samples=24,
                      num_elites=6, num_pi=4, iterations=2, elite="sure")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    made = newt.create(cfg, ["a", "b"], torch.randn(2, 4, generator=generator), [3, 2], [0.9, 0.99], seed=1)
    with torch.no_grad():
        for name, value in made.params.items():
            if name.split(".")[0] in ("q", "q_target", "reward"):
                value += 0.1 * torch.randn(value.shape, generator=generator)
    return made


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return [Batch(normal(3, 16, 6), normal(2, 16, 3).tanh(), normal(2, 16), torch.arange(16) % 2) for _ in range(count)]


@pytest.fixture(scope="module")
def functions() -> newt.Functions:
    """Compiled once they are called."""
    return compiled.functions()


@needs_compiler
@pytest.mark.parametrize("elite, counts", [("sure", [3]), pytest.param("sample", [3, 5, 1], marks=pytest.mark.slow)])
def test_plans_agree(functions, elite, counts):
    """For so many environments: compiled for 3, and for any number."""
    for count in counts:
        for explore in (False, True)[: 1 + (elite == "sample")]:  # exploring always samples
            plans = []
            for compiled_ in (None, functions):
                one = replace(agent(), compiled=compiled_)
                one.cfg = replace(one.cfg, elite=elite)
                generator = torch.Generator().manual_seed(count)
                obs, warm = torch.randn(count, 6, generator=generator), torch.zeros(count, 2, 3)
                task = torch.arange(count) % 2
                plans.append(newt.act(one, obs, task, warm, task == 0, explore=explore, generator=generator))
            for ours, theirs in zip(*plans, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(
    "phase", ["online", *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("pretrain", "imitate"))]
)
def test_twenty_updates_agree(functions, phase):
    eager, fast = agent(), replace(agent(), compiled=functions)
    for batch in batches(20):
        ours, theirs = newt.update(eager, batch, phase), newt.update(fast, batch, phase)
        assert ours.keys() == theirs.keys()
    for name, value in eager.params.items():
        torch.testing.assert_close(fast.params[name], value, rtol=1e-4, atol=1e-4)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_compiling_changes_nothing_in_the_agent():
    one, untouched = agent(), agent()
    compiled.compile_agent(one, ("imitate", "online"), 16, 3)
    assert all(torch.equal(value, one.params[name]) for name, value in untouched.params.items())
    assert torch.equal(one.generator.get_state(), untouched.generator.get_state()) and one.updates == 0 and one.compiled


def test_imitation_alone_gets_the_same_actions_one_by_one():
    """Slice b's transition t is slice t * B + b of one transition."""
    batch = batches(1)[0]
    flat, (horizon, size, _) = compiled.one_by_one(batch), batch.action.shape
    for t in range(horizon):
        for b in (0, size - 1):
            place = t * size + b
            assert torch.equal(flat.action[0, place], batch.action[t, b]) and flat.task[place] == batch.task[b]
            assert torch.equal(flat.obs[:, place], batch.obs[t : t + 2, b])
            assert flat.reward[0, place] == batch.reward[t, b]


def test_when_it_pays(monkeypatch):
    monkeypatch.setattr(compiled, "available", lambda device: True)
    assert compiled.choose("on", CPU, "L", 0.0) == (True, "as asked") and not compiled.choose("off", CPU, "XS", 1e9)[0]
    assert compiled.choose("auto", CPU, "XS", 2.0) == (True, "120 minutes of learning pay it back")
    assert compiled.choose("auto", CPU, "XS", 0.05) == (False, "3 minutes of learning are too few to pay it back")
    assert not compiled.choose("auto", CPU, "B", 99.0)[0]  # matrix products are most of it
    monkeypatch.setattr(compiled, "available", lambda device: False)
    assert compiled.choose("auto", CPU, "XS", 2.0) == (False, "no compiler for cpu here")


def test_a_compiler_that_fails_costs_a_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(compiled, "compile_agent", fail)
    one = agent()
    assert compiled.begin(one, ("online",), 16, 1)() == "RuntimeError: first line" and one.compiled is None
    newt.update(one, batches(1)[0], "online")


def test_no_compiler_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert not compiled.available(CPU) and not compiled.available(torch.device("mps"))


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_resumes_bit_for_bit(tmp_path):
    """As one that nobody stopped; without a compiler it goes on all the same."""
    words = [*SMALL, "--compile", "on", "--tasks", "mw-reach", "--lr-end", "1"]  # which falls by the share of --steps
    for name, steps in (("whole", "320"), ("cut", "200")):
        done = subprocess.run(**command(tmp_path, *words, "--folder", name, "--steps", steps), capture_output=True)
        assert done.returncode == 0 and "compile: on, in the background (as asked)" in done.stdout, done.stderr
    done = subprocess.run(**command(tmp_path, "--resume", "cut", "--steps", "320"), capture_output=True)
    assert done.returncode == 0 and "not compiled" not in done.stderr, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
