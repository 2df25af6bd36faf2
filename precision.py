"""Matrix products in bf16: who asks for them, and whether this machine is any faster with them.

    low, why = choose("auto", device, "B", 768)       True where an update's products of 768 rows are clearly faster
    agent.precision = DTYPES["bf16" if low else "float32"]

Only hidden layers' products are in bf16 (world_model.in_precision). Weights, gradients, optimisers, targets, q_scale,
norms, activations, losses and the layers that make rewards, values and actions stay float32.
Measured: results/README.md, Speed. Processors with units for it (AMX, AVX-512 BF16, CUDA) are faster where a network is
large enough; others are up to 15 times slower. So `auto` doesn't guess. What is decided stays so to the end of a run.
Test: pytest tests/test_precision.py
"""

import time

import torch
import torch.nn.functional as F

import world_model as wm

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CLEARLY = 1.6  # times faster: half of an update's time, or less, are products, and then the whole is 1.3 times faster
MOST_ROWS = 1024  # of the product that is timed: some milliseconds


def choose(wanted: str, device: torch.device, size: str, rows: int) -> tuple[bool, str]:
    """Whether products are in bf16, and why. wanted: auto, float32 or bf16; rows: of the network's input at once."""
    if wanted != "auto":
        return wanted == "bf16", "as asked"
    rows, width = min(rows, MOST_ROWS), wm.SIZES[size].mlp_dim
    ratio = times_faster(rows, width, device)
    return ratio >= CLEARLY, f"{rows} rows of {width} numbers are multiplied {ratio:.1f} times as fast in bf16 here"


def times_faster(rows: int, width: int, device: torch.device) -> float:
    """How many times faster a product in bf16 is than in float32, with what it takes to get there and back."""
    x, weight = torch.ones(rows, width, device=device), torch.ones(width, width, device=device)
    times = {dtype: [] for dtype in DTYPES.values()}
    for _ in range(6):  # in turns; the shortest is the one that nothing else disturbed
        for dtype, took in times.items():
            low = weight.to(dtype)
            float(low[0, 0])  # waits for a GPU
            start = time.perf_counter()
            float(F.linear(x.to(dtype), low).float()[0, 0])
            took.append(time.perf_counter() - start)
    return min(times[torch.float32]) / min(times[torch.bfloat16])
