"""Test files run side by side, one per core: each with one thread, or they would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest  # noqa: E402

import envs  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def no_own_tasks_are_left():
    """Which files a process runs one after the other is chance; what one looked up must not be in another's table."""
    yield
    for name in [name for name, row in envs.TASKS.items() if row.split == "own"]:
        del envs.TASKS[name]
