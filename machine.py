"""What there is to run on: a Python that all packages exist for, and the cores that this process may use.

Commands import this before any package, in a section of its own (pyproject.toml): with another Python some could not
even be installed, and the line below says more than the module that is missing. Imports the standard library only.
Test: pytest tests/test_machine.py
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    have = ".".join(map(str, sys.version_info[:2]))
    print(
        f"error: Python 3.10, 3.11 or 3.12 is needed, this is {have}: a package, labmaze, exists for no other",
        file=sys.stderr,
    )
    raise SystemExit(2)


def cores() -> int:
    """How many this process may use, at least 1: fewer than os.cpu_count() if it is bound to some, or has a quota.

    Bound by taskset or Slurm; a quota is what containers have, as time of so many cores: parts of a core are dropped.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([bound, *quotas()])))


def quotas(listed: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """Cores' worth of time that each cgroup around this process allows; nothing from those without a limit.

    listed   lines "number:controllers:path", with no controllers for version 2
    mounted  a container may see its own group here, at the top, and not under the path that is listed
    """
    for line in _read(listed).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for root in (mounted / controllers, mounted / ("cpu" if controllers else "unified")):
            for folder in (root / group, *(root / above for above in group.parents)):
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
                limit = " ".join(_read(folder / name) for name in files).split()
                if len(limit) == 2 and all(number.isdecimal() for number in limit):  # else "max", or -1
                    yield int(limit[0]) / int(limit[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
