"""Processes that simulate: how they start, what reaches them, and how they end. Nothing here takes time to import.

Test: pytest tests/test_vector.py
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from contextlib import contextmanager
from multiprocessing.resource_tracker import ensure_running

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@contextmanager
def light_spawn():
    """Children neither import the program that was started (train.py would load torch into each) nor use threads.

    Spawn runs the file of `__main__` again in every child, if it has one; a bare module in its place has none. The
    number of threads must be in the environment before a child imports numpy: setting it there would be too late.
    """
    main, before = sys.modules["__main__"], {name: os.environ.get(name) for name in THREADS}
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def end_with_parent() -> None:
    """First call in a child process: one whose parent was killed would wait for work, or be busy with it, for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def hidden_from_signals():
    """Children started here get no SIGINT, SIGTERM or SIGHUP: those may reach every process, but the parent decides.

    A mask is inherited, so it holds from a child's first moment; the caller gets its signal when the block ends.
    Windows has no masks: there workers refuse Ctrl-C themselves (`_work`), and nothing else reaches them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    ensure_running()  # Python starts its resource tracker with the first child, and that lifts the mask again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_all(pipes: dict, processes: dict) -> None:
    """Workers end when their pipes close; whatever still lives after a second, or a Ctrl-C meanwhile, is killed."""
    for pipe in pipes.values():
        pipe.close()
    end = time.monotonic() + 1
    try:
        for process in processes.values():
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()
        pipes.clear()
        processes.clear()
