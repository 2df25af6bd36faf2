"""How long a run will take, where its time goes, and how much is left.

Test: pytest tests/test_clock.py
"""

import time
from collections import Counter
from contextlib import contextmanager, suppress

import psutil
import torch

import newt
from buffer import Batch


class Clock:
    """Where the wall time goes: `with clock("plan"): ...`, and the shares since the last look.

    Waiting for slower processes counts as what it was that needed them: mostly "update".
    """

    def __init__(self):
        self.looked: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self.spent, self.start, self.done = Counter(), time.perf_counter(), 0

    @contextmanager
    def __call__(self, what: str):
        before = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - before

    def look(self, unit: str, left: float) -> dict[str, float]:
        """Shares of the wall time, speed and hours for what is left of what `done` counts; resident memory in GB.

        With nothing done since the last look, what that one said: several lines may fall into one step.
        """
        if not self.done and self.looked:
            return self.looked
        wall = time.perf_counter() - self.start
        rate = self.done / wall
        program = psutil.Process()
        sizes = []
        for child in program.children(recursive=True):
            with suppress(psutil.Error):  # it ended just now
                sizes.append(child.memory_info().rss)
        shares = {f"time/{what}": self.spent[what] / wall for what in ("plan", "update", "wait", "log")}
        memory = {"memory/learner_gb": program.memory_info().rss / 1e9, "memory/workers_gb": sum(sizes) / 1e9}
        self.restart()
        self.looked = {**shares, f"time/{unit}_per_s": rate, "time/hours_left": left / max(rate, 1e-9) / 3600, **memory}
        return self.looked


def rehearsal(agent: newt.Agent, slices: int, environments: int) -> tuple[newt.Agent, Batch, tuple[torch.Tensor, ...]]:
    """For trying what takes time: an agent of the same shape, a batch for newt.update, and what newt.act wants to know.

    All zeros, and nothing of the agent is shared: neither its weights nor its random streams change.
    """
    a, tasks, device = agent.cfg, agent.tasks, agent.device
    dims, discounts = [a.action_dim] * len(tasks), agent.discount.tolist()
    scratch = newt.create(a, tasks, agent.emb, dims, discounts, 0, device)
    scratch.precision = agent.precision

    def zeros(*shape: int, dtype=torch.float32) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    batch = Batch(zeros(a.horizon + 1, slices, a.input_dim), zeros(a.horizon, slices, a.action_dim),
                  zeros(a.horizon, slices), zeros(slices, dtype=torch.long))  # fmt: skip
    task, warm = zeros(environments, dtype=torch.long), zeros(environments, a.horizon, a.action_dim)
    return scratch, batch, (zeros(environments, a.input_dim), task, warm, task == 1)  # in the midst of an episode


def estimate(agent: newt.Agent, steps: int, environments: int, utd: float) -> float:
    """Hours that so many steps of each environment, and utd updates for each step, will take one process.

    From a timed decision and a small timed update.
    """
    few, small = min(environments, 4), min(128, agent.cfg.batch_size)
    scratch, batch, inputs = rehearsal(agent, small, few)

    def seconds(call) -> float:
        times = []
        for _ in range(3):  # the first one allocates; the shortest is the one that nothing else disturbed
            start = time.perf_counter()
            float(call())  # waits for a GPU, too
            times.append(time.perf_counter() - start)
        return min(times)

    plan = seconds(lambda: newt.act(scratch, *inputs).action.sum()) / few
    step = seconds(lambda: newt.update(scratch, batch, "online")["loss/model"]) / small * agent.cfg.batch_size
    return steps * environments * (plan + utd * step) / 3600


def describe(hours: float) -> str:
    for limit, unit, size in ((2, "minutes", 1 / 60), (48, "hours", 1), (24 * 21, "days", 24)):
        if hours < limit:
            return f"{hours / size:.0f} {unit}"
    return f"{hours / 168:.0f} weeks"
