"""The largest memory that a training step holds, measured; and the largest batch for a memory, read off it."""

from __future__ import annotations

import gc
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pyrecon.implicit import ImplicitGradient
from pyrecon.losses import supervised
from pyrecon.models._data_step import Reconstructor
from pyrecon.models.luser import LUSER
from pyrecon.models.unrolled import DEQ4IP, UnrolledDnCNN
from pyrecon.solvers import ConvergenceWarning
from pyrecon.train.luser import Config, new_model, physics_of
from pyrecon.train.problem import Batch, Problem

_STEPS = 6  # of every solve: Anderson's history of five is full, and more steps hold no more


def peak_bytes(run: Callable[[], Any], device: torch.device | None = None) -> int:
    """The most that ``run`` holds at a time beyond what is held when it begins.

    On a CPU every allocation and release of torch's allocator is recorded and added up, so the number is exact and
    repeats; what libraries keep for themselves is not in it (convolutions' scratch memory among that). On a GPU it is
    ``max_memory_allocated``.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    watched = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silence():
        watched.start()
        run()
        watched.stop()
    assert watched.profiler is not None
    results: Any = watched.profiler.kineto_results
    held = top = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return top


@contextmanager
def _silence() -> Iterator[None]:
    """Without what the profiler's library writes past Python, and the allocator of blocks that it did not see made."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def training_bytes(model: Reconstructor, batch: Batch) -> int:
    """Of a step of Adam on a batch: weights, their gradients, Adam's moments, data, and all that the step holds.

    The second step is measured, the first one fills what stays. The physics' own memory is not in it.
    """
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        supervised(model(batch.y, physics_of(model, batch)), batch.images).backward()  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # solves of a fixed number of steps do not converge
        step()
        model.solves = []
        gc.collect()  # what is released while it is watched, and was there before, would not be told
        kept: list[torch.Tensor | None] = [*model.parameters(), *model.buffers(), batch.y, batch.images]
        kept += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        held = sum(tensor.nbytes for tensor in kept if tensor is not None)
        return held + peak_bytes(step, batch.y.device)


@dataclass(frozen=True)
class Line:
    """``bytes = fixed + per_pixel * (pixels of a batch)``, and the largest relative distance of a measured point."""

    fixed: float
    per_pixel: float
    error: float

    def batch(self, memory: float, pixels: int, *, even: bool = True) -> int:
        """The largest batch of images of so many pixels; with ``even`` an even number, or 1."""
        fits = max(0, math.floor((memory - self.fixed) / (self.per_pixel * pixels)))
        return fits if not even or fits < 2 else fits - fits % 2


def line(points: Sequence[tuple[int, int]]) -> Line:
    """Through measured ``(pixels of a batch, bytes)``, by least squares on relative errors."""
    if len({pixels for pixels, _ in points}) < 2:
        raise ValueError(f"points: {len(points)} at one size, expected two sizes or more to tell fixed from growing")
    x = torch.tensor([[1.0, pixels] for pixels, _ in points], dtype=torch.float64)
    y = torch.tensor([[size] for _, size in points], dtype=torch.float64)
    (fixed,), (per_pixel,) = torch.linalg.lstsq(x / y, torch.ones_like(y)).solution.tolist()
    found = x @ torch.tensor([[fixed], [per_pixel]], dtype=torch.float64)
    return Line(fixed, per_pixel, float((found / y - 1).abs().max()))


def measured_model(config: Config, *, recompute: bool = True, checkpointing: bool = False) -> Reconstructor:
    """A model whose solves take a fixed number of steps: what a step holds does not depend on more of them."""
    model = new_model(config)
    if isinstance(model, LUSER | DEQ4IP):
        model.tol, model.max_iter = 0.0, _STEPS
        model.gradient = ImplicitGradient(tol=0.0, max_iter=_STEPS)
    if isinstance(model, LUSER):
        model.recompute = recompute
    if isinstance(model, UnrolledDnCNN):
        model.checkpointing = checkpointing
    return model.train()


def memory_line(
    config: Config, problem: Callable[[Config], Problem], sizes: Sequence[tuple[int, int]], **options: bool
) -> Line:
    """Of training ``config.network``, measured at ``sizes``: (pixels along an axis, batch)."""
    points = []
    for size, count in sizes:
        at = replace(config, size=size)
        model = measured_model(at, **options)
        batch = problem(at).batch(0, count).scaled()
        points.append((count * size * size, training_bytes(model, batch)))
    return line(points)
