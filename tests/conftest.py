"""Test files run side by side, one per core: each with one thread, or they would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest  # noqa: E402

import envs  # noqa: E402

# Those that take a core more than half a minute, the longest first: whoever began one of them as the last file would
# keep everybody waiting. The order changes when a test ends, not what it says.
LONGEST = (
    "test_train test_distributed test_faults test_maniskill test_eval test_demos test_tasks test_envs test_vector "
    "test_planner"
).split()


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True, scope="module")
def no_own_tasks_are_left():
    """Which files a process runs one after the other is chance; what one looked up must not be in another's table."""
    yield
    for name in [name for name, row in envs.TASKS.items() if row.split == "own"]:
        del envs.TASKS[name]
