"""precision.py: float32 is what it was, bf16 is near it, what is learned stays float32, and auto measures.

Run: pytest tests/test_precision.py        (about 20 s on one core; with -m slow, a run that is cut and resumed)
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_compiled import agent, batches
from test_devices import DEVICE
from test_devices import agent as agent_on_device  # noqa: F401  a fixture
from test_devices import update as update_on_device
from test_eval_command import an_agent
from test_train import SMALL, assert_same_run, command

import agent_file
import eval as evaluation
import newt
import precision
import run_folder
import train_config
import world_model as wm

ROOT, CPU, BF16 = Path(precision.__file__).parent, torch.device("cpu"), torch.bfloat16


def decided(one: newt.Agent, **how) -> newt.Plan:
    generator = torch.Generator().manual_seed(5)
    obs, task = torch.randn(3, 6, generator=generator), torch.arange(3) % 2
    return newt.act(one, obs, task, torch.zeros(3, 2, 3), task == 0, generator=generator, **how)


def learned(one: newt.Agent, phase: str = "online", updates: int = 5) -> dict[str, torch.Tensor]:
    for batch in batches(updates):
        metrics = newt.update(one, batch, phase)
    return metrics


@pytest.mark.parametrize("phase", ["pretrain", "online"])
def test_float32_is_bit_for_bit_a_network_that_knows_no_precision(phase, monkeypatch):
    def plain(x, weight, bias=None):
        return F.linear(x, weight, bias) if weight.dim() == 2 else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    def all_numbers() -> list[torch.Tensor]:
        one = agent()
        metrics = learned(one, phase)
        return [*one.params.values(), *metrics.values(), *decided(one), *decided(one, use_planner=False)]

    ours = all_numbers()
    monkeypatch.setattr(wm, "_linear", plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, all_numbers(), strict=True))
    assert (one := agent()).weights is one.params


@pytest.mark.parametrize("phase", ["pretrain", "online"])
def test_losses_are_near_those_in_float32_and_what_is_learned_is_float32(phase):
    """Within 2 %: bf16 has 8 bits, an error of 0.4 % at most in each number of a product."""
    full, low = agent(), replace(agent(), precision=BF16)
    wanted, got = learned(full, phase), learned(low, phase)
    for name in (name for name in wanted if name.startswith("loss/")):
        torch.testing.assert_close(got[name], wanted[name], rtol=0.02, atol=2e-3, msg=name)
    assert got["loss/model"] != wanted["loss/model"]  # it is bf16
    kept = [*low.params.values(), *got.values(), low.q_scale]
    kept += [x for optim in (low.model_optim, low.pi_optim) for state in optim.state.values() for x in state.values()]
    kept += [x.grad for x in low.params.values() if x.grad is not None]
    assert len(kept) > 100 and {x.dtype for x in kept} == {torch.float32}


def test_decisions_are_near_those_in_float32():
    """The policy's within 1 % of the range of actions; a plan's returns within 2 % of their spread."""
    for one in (full := agent(), low := replace(agent(), precision=BF16)):
        one.params = {name: value * 3 if name.startswith("pi.2") else value for name, value in one.params.items()}
    wanted, got = decided(full, use_planner=False).action, decided(low, use_planner=False).action
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.02)
    assert not torch.equal(got, wanted) and wanted.abs().max() > 0.1
    wanted, got = decided(full), decided(low)
    assert {x.dtype for x in got} == {torch.float32}
    # Later samples depend on which plans were best before: the order of the best ones shows how near the returns are.
    assert (got.mean - wanted.mean).abs().mean() < 0.1


def test_what_is_rounded():
    """Weights and biases of layers whose output is normalised; not norms, not what sees, not what gives results."""
    one = replace(agent(), precision=BF16)
    low = {name for name, value in one.weights.items() if value.dtype == BF16}
    layers = ["encoder.1", *(f"{part}.{i}" for part in ("dynamics", "reward", "pi", "q", "q_target") for i in (0, 1))]
    assert low == {f"{layer}.{what}" for layer in (*layers, "dynamics.2") for what in ("weight", "bias")}
    assert all(value.dtype in (BF16, torch.float32) for value in one.weights.values())
    assert all(value.dtype == torch.float32 for value in one.params.values())


@pytest.mark.parametrize("phase", ["pretrain", "online"])
def test_an_update_in_bf16_stays_on_its_device_and_asks_for_no_number(agent_on_device, phase):  # noqa: F811
    agent_on_device.precision = BF16
    metrics = update_on_device(agent_on_device, phase)
    assert {value.device.type for value in metrics.values()} == {DEVICE}


@pytest.mark.parametrize("stacked", [False, True])
def test_a_product_rounds_what_goes_in_and_what_comes_out(stacked):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 5, 64, generator=generator), torch.randn(2, 7, 64, generator=generator)
    bias = torch.randn(2, 7, generator=generator)
    if not stacked:
        x, weight, bias = x[0], weight[0], bias[0]
    exact = x.bfloat16().double() @ weight.bfloat16().double().mT + bias.bfloat16().double().unsqueeze(-2)
    got = wm._linear(x, weight.to(BF16), bias.to(BF16))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=2**-7)


def test_auto_measures_and_takes_bf16_only_if_it_is_clearly_faster(monkeypatch):
    asked = []
    for ratio, low in ((0.1, False), (1.0, False), (precision.CLEARLY - 0.01, False), (2.0, True)):
        monkeypatch.setattr(precision, "times_faster", lambda *shape, ratio=ratio: asked.append(shape) or ratio)
        assert precision.choose("auto", CPU, "B", 768)[0] is low
        assert precision.choose("float32", CPU, "B", 768) == (False, "as asked")
        assert precision.choose("bf16", CPU, "B", 768) == (True, "as asked")
    assert asked == [(768, 512, CPU)] * 4
    assert precision.choose("auto", CPU, "L", 10**6)[1] == (
        "1024 rows of 1024 numbers are multiplied 2.0 times as fast in bf16 here"
    )


def test_the_measurement_tells_slow_from_fast(monkeypatch):
    """A product in bf16 that takes ten times longer, as where a processor has no units for it."""
    real = F.linear

    def slow(x, weight):
        for _ in range(30 if x.dtype == BF16 else 1):
            out = real(x.float(), weight.float())
        return out.to(x.dtype)

    monkeypatch.setattr(precision.F, "linear", slow)
    assert 0 < precision.times_faster(256, 256, CPU) < 0.5


def test_a_run_keeps_its_precision(tmp_path):
    """auto has been decided in its config.json; older ones don't know the word. It can't be changed in between."""
    cfg = train_config.parse(["--preset", "laptop", "--folder", str(tmp_path / "run"), "--precision", "bf16"]).cfg
    assert train_config.Train().precision == "float32"
    (tmp_path / "run").mkdir()
    run_folder.write_config(tmp_path / "run", asdict(cfg))
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert train_config.parse(["--resume", str(tmp_path / "run")]).cfg.precision == "bf16"
    with pytest.raises(ValueError, match="can't change precision"):
        train_config.parse(["--resume", str(tmp_path / "run"), "--precision", "float32"])
    del stored["precision"]
    (tmp_path / "run/config.json").write_text(json.dumps(stored))
    assert train_config.parse(["--resume", str(tmp_path / "run")]).cfg.precision == "float32"


def python(script: str, *words, cwd: Path) -> subprocess.CompletedProcess:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = [sys.executable, str(ROOT / script), *map(str, words)]
    return subprocess.run(done, env=environ, cwd=cwd, capture_output=True, text=True)


def test_eval_takes_it_and_mixes_no_evaluations(tmp_path):
    agent_file.save(tmp_path / "a.safetensors", an_agent(0), step=1)
    words = ["--ckpt", "a.safetensors", "--tasks", "mujoco-reacher", "--episodes", 1, "--workers", 1]
    low = python("eval.py", *words, "--precision", "bf16", "--json", "low.json", cwd=tmp_path)
    assert low.returncode == 0 and "planner on  bf16" in low.stdout, low.stderr
    assert json.loads((tmp_path / "low.json").read_text())["settings"]["precision"] == "bf16"
    other = python("eval.py", *words, "--json", "low.json", cwd=tmp_path)
    assert other.returncode == 2 and "another value of --precision" in other.stderr


def test_evaluations_without_the_word_go_on_in_float32(tmp_path):
    agent_file.save(tmp_path / "a.safetensors", an_agent(0), step=1)
    ef = evaluation.evaluation_file
    begun = ef.new(tmp_path / "a.safetensors", 1, 0, "on", None)
    older = {**begun, "settings": {k: v for k, v in begun["settings"].items() if k != "precision"}}
    ef.save(tmp_path / "r.json", older)
    assert ef.go_on(tmp_path / "r.json", begun)["settings"] == begun["settings"]
    with pytest.raises(ValueError, match="--precision"):
        ef.go_on(tmp_path / "r.json", ef.new(tmp_path / "a.safetensors", 1, 0, "on", None, "bf16"))


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_another_word_is_refused(script, tmp_path):
    done = python(script, "--precision", "fp8", *(["--ckpt", "a"] if script == "eval.py" else []), cwd=tmp_path)
    assert done.returncode == 2 and "precision" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_in_bf16_resumes_bit_for_bit(tmp_path):
    words = [*SMALL, "--precision", "bf16", "--compile", "off", "--lr-end", "1"]  # whose fall would end elsewhere
    for name, steps in (("whole", "320"), ("cut", "200")):
        done = subprocess.run(**command(tmp_path, *words, "--folder", name, "--steps", steps), capture_output=True)
        assert done.returncode == 0 and "precision: bf16 (as asked)" in done.stdout, done.stderr
    done = subprocess.run(**command(tmp_path, "--resume", "cut", "--steps", "320"), capture_output=True)
    assert done.returncode == 0 and "precision: bf16" in done.stdout, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
