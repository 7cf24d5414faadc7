from __future__ import annotations

import os

import pytest
import torch

# Parallel workers already fill the cores: two OpenMP teams of two on two cores wait for each other's time slices.
# Threaded runs of every op have a test of their own (test_threads_obey_the_law).
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
