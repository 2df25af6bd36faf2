"""torch.compile around whole functions, at the edge: the same losses and plans, with fewer passes over memory.

    compile_agent(agent, ("pretrain", "online"), 128, 8)    from now on newt.update and newt.act call compiled functions
                                                            instead of those of losses.py and newt.decide
    begin(agent, ...)                                       the same in the background

Measured: results/README.md, Speed. What it costs is a minute or more of both cores before the first update, less where
an earlier run's files are found in CACHE. So `--compile auto` compiles only where a run is long enough.
Numbers differ from eager ones by rounding, so a run is compiled from its first update to its last: train.py waits for
the compiler, and a resumed run compiles again. Where there is no compiler, or it fails, everything goes on in eager.
Test: pytest tests/test_compiled.py
"""

import os
import shutil
import threading
from collections.abc import Callable

import torch

import losses
import newt
from buffer import Batch
from clock import rehearsal

CACHE = os.path.expanduser("~/.cache/newt")  # stays as it is where nobody has a home
SMALL = ("XS", "S")  # sizes in whose time there is more than matrix products
WORTH = 0.5  # hours of acting and learning, from which on a third less is more than the minutes of compiling


def available(device: torch.device) -> bool:
    """Whether there is what torch.compile needs: a C++ compiler for CPUs, Triton for CUDA."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return False
        return True
    return device.type == "cpu" and os.name == "posix" and bool(shutil.which(os.environ.get("CXX", "g++")))


def functions(mode: str | None = None) -> newt.Functions:
    """Compiled when they are first called: updates for each shape; decisions for the first number of environments,
    which is training's, and once more for any number. mode: of torch.compile; results/gpu.py tries another."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", CACHE)
    learning = (torch.compile(f, dynamic=False, mode=mode) for f in (losses.model_loss, losses.policy_loss))
    return newt.Functions(*learning, torch.compile(newt.decide, mode=mode))


def compile_agent(agent: newt.Agent, phases: tuple[losses.Phase, ...], share: int, environments: int) -> None:
    """Compile for updates with batches of `share` slices, and for decisions; raises what the compiler raises.

    All is tried on a rehearsal: the agent has its functions at the end, and nothing else of it changes.
    """
    scratch, batch, inputs = rehearsal(agent, share, environments)
    scratch.compiled = functions()
    for phase in phases:
        newt.update(scratch, one_by_one(batch) if phase == "imitate" else batch, phase)
    # Group by group, and so in this thread: a program that is stopped waits for the planners' threads, and these would
    # be compiling for minutes.
    most = newt.at_a_time(agent.cfg, environments) if agent.device.type == "cpu" else environments
    for n in (most, environments % most):
        if n:
            newt.act(scratch, *(x[:n] for x in inputs), explore=True)
    agent.compiled = scratch.compiled
    torch._dynamo.config.suppress_errors = True  # shapes that come later and fail are left in eager


def one_by_one(batch: Batch) -> Batch:
    """The same actions as slices of one transition each, which is all that imitation needs."""
    horizon, size, _ = batch.action.shape
    obs = torch.stack([part.reshape(horizon * size, -1) for part in (batch.obs[:-1], batch.obs[1:])])
    flat = (x.reshape(1, horizon * size, *x.shape[2:]) for x in (batch.action, batch.reward))
    return Batch(obs, *flat, batch.task.repeat(horizon))


def choose(wanted: str, device: torch.device, size: str, hours: float) -> tuple[bool, str]:
    """Whether to compile, and why: `wanted` is auto, on or off, `hours` what learning will take without."""
    if wanted != "auto":
        return wanted == "on", "as asked"
    if size not in SMALL or device.type == "cuda":
        return False, f"size {size} on {device.type} gains little or was not measured"
    if not available(device):
        return False, f"no compiler for {device.type} here"
    minutes = f"{hours * 60:.0f} minutes of learning"
    return hours > WORTH, f"{minutes} {'pay it back' if hours > WORTH else 'are too few to pay it back'}"


def begin(agent: newt.Agent, *words) -> Callable[[], str]:
    """compile_agent in the background. What it returns waits for the end, and says what went wrong, "" if nothing."""
    reason = []

    def work() -> None:
        try:
            compile_agent(agent, *words)
            reason.append("")
        except Exception as error:  # of the compiler, of a full disk: eager does the same, slower
            lines = str(error).strip().splitlines() or [""]
            reason.append(f"{type(error).__name__}: {lines[0]:.200}")

    thread = threading.Thread(target=work, daemon=True)  # a program that ends doesn't wait for it
    thread.start()

    def end() -> str:
        thread.join()
        return reason[0]

    return end
