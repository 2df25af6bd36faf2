"""Test files run side by side, one per core: each with one thread, or they would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
