"""Updates and decisions away from the CPU, on any machine: on the device "meta", whose tensors hold no numbers.

A tensor left on the CPU is an error here as it would be on a GPU, and so is every question for a number, for which the
program would have to wait there. (torch's fake tensors of the device cuda can't be indexed where torch has no CUDA.)
Run: pytest tests/test_devices.py        (about 10 s on one core)
"""

import sys
from dataclasses import replace

import pytest
import torch

import newt
import planner
from buffer import Batch
from losses import UpdateNoise

DEVICE = "meta"
OPTIMIZER = sys.modules[torch.optim.Optimizer.__module__]  # its module; torch.optim hides the name
B, H, A, O = 16, 3, 4, 6  # noqa: E741
CFG = newt.Config(size="S", obs_dim=O, action_dim=A, task_dim=8, batch_size=B, horizon=H, num_samples=24, num_elites=6,
                  num_pi=4, iterations=2)  # fmt: skip


@pytest.fixture
def agent(monkeypatch) -> newt.Agent:
    """All of it there, after it was made on the CPU: what `create` checks are numbers."""
    monkeypatch.setattr(OPTIMIZER, "_get_fused_kernels_supported_devices", lambda: [DEVICE, "cpu"])
    agent = newt.create(CFG, ["left", "right"], torch.randn(2, 8), [4, 2], [0.9, 0.99])
    moved = {}

    def move(x: torch.Tensor) -> torch.Tensor:
        if id(x) not in moved:
            moved[id(x)] = torch.empty(x.shape, dtype=x.dtype, device=DEVICE).requires_grad_(x.requires_grad)
        return moved[id(x)]

    for name in ("emb", "mask", "discount", "guided", "q_scale"):
        setattr(agent, name, move(getattr(agent, name)))
    agent.params = {name: move(value) for name, value in agent.params.items()}
    for optim in (agent.model_optim, agent.pi_optim):
        for group in optim.param_groups:
            group["params"] = [move(value) for value in group["params"]]
    return agent


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE)


def whole(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.long, device=DEVICE)


def update(agent: newt.Agent, phase: str, eps_device: str = DEVICE) -> dict:
    batch = Batch(normal(H + 1, B, O), normal(H, B, A), normal(H, B), whole(B), normal(H, B))
    eps = torch.randn(H, B, A, device=eps_device)
    return newt.update(agent, batch, phase, UpdateNoise(eps, eps, normal(H + 1, B, A), whole(2), whole(2)))


@pytest.mark.parametrize("phase", ["pretrain", "online"])
def test_an_update_stays_on_its_device_and_asks_for_no_number(agent, phase):
    for _ in range(2):
        metrics = update(agent, phase)
    assert {value.device.type for value in metrics.values()} == {DEVICE} and len(metrics) > 5
    assert agent.q_scale.device.type == agent.left_out.device.type == DEVICE
    assert all(x.device.type == DEVICE for state in agent.model_optim.state.values() for x in state.values())


def test_a_tensor_on_the_cpu_is_noticed(agent):
    with pytest.raises(RuntimeError, match="device meta is not on the expected device cpu"):
        update(agent, "online", "cpu")


def test_a_number_asked_for_is_noticed(agent):
    """Once in a hundred updates: whether any of them was left out."""
    agent.updates = newt.CHECK_EVERY - 1
    with pytest.raises(RuntimeError, match="meta tensors"):
        update(agent, "online")


@pytest.mark.parametrize("elite", ["sample", "mean", "sure"])
def test_a_decision_stays_on_its_device_and_asks_for_no_number(agent, elite):
    agent.cfg = replace(CFG, elite=elite)
    n, p, i = CFG.num_samples, CFG.num_pi, CFG.iterations
    noise = planner.Noise(normal(5, H, p, A), normal(i, 5, H, n - p, A), normal(i, 5, n, A), whole(i, 2),
                          normal(5, CFG.num_elites), normal(5, A))  # fmt: skip
    first = torch.zeros(5, dtype=torch.bool, device=DEVICE)
    for options in ({"noise": noise}, {"use_planner": False}):
        plan = newt.act(agent, normal(5, O), whole(5), normal(5, H, A), first, **options)
        assert {value.device.type for value in plan} == {DEVICE} and plan.action.shape == (5, A)
