"""Which Python, how many cores: the refusal comes before any package, the count follows affinity and cgroups.

Run: pytest tests/test_machine.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import machine

import pytest

ROOT = Path(machine.__file__).parent
COMMANDS = ["train.py", "eval.py", "demos.py", "convert.py", "bench.py", "tour.py", "envs"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("have", [(3, 9), (3, 13)])
def test_another_python_is_refused_in_one_line_by_every_command(command, have):
    """Where no package is installed, as none could be."""
    packages = ("numpy", "torch", "gymnasium", "tyro", "tqdm", "safetensors", "psutil")
    program = (
        f"import runpy, sys; sys.version_info = {(*have, 1, 'final', 0)}; sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.modules.update(dict.fromkeys({packages}))\n"
        f"runpy.run_{'module' if command == 'envs' else 'path'}({command!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done.stderr
    assert f"Python 3.10, 3.11 or 3.12 is needed, this is {have[0]}.{have[1]}" in done.stderr


def test_nothing_else_counts_cores():
    files = [*ROOT.glob("*.py"), *ROOT.glob("envs/**/*.py"), *ROOT.glob("results/*.py")]
    counting = [path.name for path in files if re.search(r"cpu_count\(\)", path.read_text(encoding="utf-8"))]
    assert counting == ["machine.py"]


def test_a_process_bound_to_one_core_has_one():
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", "import machine, newt; print(machine.cores(), newt.CORES, newt._PLANNERS._max_workers)"],
        cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, [one]),
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1", "1"], done.stderr


if not hasattr(os, "sched_setaffinity"):
    del test_a_process_bound_to_one_core_has_one  # Linux binds processes

GROUPS = {  # what a process is told its group is, files, cores' worth of time
    "version 2": ("0::/a b/c", {"a b/c/cpu.max": "150000 100000"}, [1.5]),
    "version 2, no limit": ("0::/a", {"a/cpu.max": "max 100000"}, []),
    "version 2, a limit above": ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, [4]),
    "version 2, in a container": ("0::/", {"cpu.max": "50000 100000"}, [0.5]),
    "version 1": ("3:cpuset:/x\n2:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
                                                    "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, [3]),
    "version 1, no limit": ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
    "version 1, in a container": ("4:cpu,cpuacct:/docker/1f", {"cpu/cpu.cfs_quota_us": "200000",
                                                               "cpu/cpu.cfs_period_us": "100000"}, [2]),
    "both": ("1:name=systemd:/a\n0::/a", {"unified/a/cpu.max": "100000 50000"}, [2]),
    "of another group": ("0::/a", {"b/cpu.max": "100000 100000"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_quotas(name, tmp_path, monkeypatch):
    listed, files, expected = GROUPS[name]
    (tmp_path / "cgroup").write_text(listed + "\n")
    for path, content in files.items():
        path = tmp_path / "mounted" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    found = list(machine.quotas(tmp_path / "cgroup", tmp_path / "mounted"))
    assert sorted(set(found)) == expected
    monkeypatch.setattr(machine, "quotas", lambda: found)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert machine.cores() == (max(1, int(expected[0])) if expected else 8)


def test_without_cgroups_and_affinity(tmp_path, monkeypatch):
    assert list(machine.quotas(tmp_path / "none", tmp_path)) == []
    monkeypatch.setattr(machine, "quotas", lambda: [])
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.cores() == 3
