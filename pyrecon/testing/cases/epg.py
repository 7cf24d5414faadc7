from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon import ops
from pyrecon.testing.cases._case import Case, Make, randn

SPACING = 0.01


def fit_epg(
    data: Tensor,
    times: Tensor,
    angles: Tensor | float,
    t1: Tensor | float,
    b1: Tensor | None,
    prior: Tensor | None,
    weight: Tensor | None,
    *,
    out: Any = None,
) -> Any:
    """Parameters, as exact as the precision allows."""
    tol = 1e-7 if data.dtype in (torch.float32, torch.complex64) else 1e-15
    model = ops.MultiSpinEcho(angles, t1, b1, None if b1 is not None else (0.3, 1.0))
    level = 0.0 if weight is None else weight
    return ops.fit_voxels(model, data, times, prior=prior, weight=level, tol=tol, out=out).value


def problem(
    batch: int,
    *space: int,
    echoes: int = 8,
    with_angles: bool = False,
    maps: bool = False,
    known_b1: bool = False,
    with_prior: bool = False,
    per_sample: bool = False,
) -> Make:
    """Trains of maps that differ, a hundredth of noise in them; B1 of 0.6 to 0.85, in which noise leaves it off its
    bounds."""

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        wide, real = (torch.complex128 if dtype.is_complex else torch.float64), dtype.to_real()

        def drawn(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        rate, flip = drawn(8.0, 30.0, batch, *space), drawn(0.6, 0.85, batch, *space)
        factor = 1 + 0.2 * randn(generator, batch, *space, dtype=wide)
        times = SPACING * torch.arange(1, echoes + 1, dtype=torch.float64)
        if per_sample:
            times = times * drawn(0.9, 1.2, batch, 1)
        angles = drawn(2.6, math.pi, echoes) if with_angles else math.pi
        t1 = drawn(0.5, 2.0, batch, 1, *space) if maps else 1.2
        b1 = flip[:, None] if known_b1 else None
        truth = ops.MultiSpinEcho(angles, t1, None, (0.3, 1.0))
        signal = truth.signal(rate, flip, factor, times)
        data = signal + 0.01 * randn(generator, *signal.shape, dtype=wide)
        prior = weight = None
        if with_prior:
            fitted = [rate] if known_b1 else [rate, flip]
            parts = torch.view_as_real(factor).unbind(-1) if dtype.is_complex else (factor,)
            prior = torch.stack([*fitted, *parts], 1)
            prior = (prior * (1 + 0.05 * randn(generator, *prior.shape, dtype=torch.float64))).to(real)
            weight = drawn(0.0, 0.1, batch, *space).to(real)
        settings = (v.to(real) if isinstance(v, Tensor) else v for v in (times, angles, t1, b1))
        return data.to(dtype), *settings, prior, weight

    return make


# As in cases/fit.py: roundings of the sums, times what they are to the gradient's slope, least with three echoes (76).
_K = 400
_REAL = (torch.float32, torch.float64)

CASES = (
    Case(fit_epg, "tiny", problem(2, 2), k=_K, tiny=True, grad=(0, 1), twice=False),
    Case(fit_epg, "tiny-angles", problem(1, 2, with_angles=True), k=_K, dtypes=_REAL, tiny=True, grad=(0, 1, 2),
         twice=False),
    Case(fit_epg, "tiny-maps", problem(2, 2, maps=True, with_prior=True), k=_K, tiny=True, grad=(0, 3, 5, 6),
         twice=False),
    Case(fit_epg, "tiny-b1", problem(1, 2, with_angles=True, maps=True, known_b1=True, with_prior=True), k=_K,
         tiny=True, grad=(0, 1, 2, 3, 4, 5, 6), twice=False),
    Case(fit_epg, "tiny-per-sample", problem(2, 1, per_sample=True), k=_K, dtypes=_REAL, tiny=True, grad=(0, 1),
         twice=False),
    Case(fit_epg, "plane", problem(2, 13, 9, echoes=16), k=_K),
    Case(fit_epg, "odd-echoes", problem(1, 33, echoes=7, per_sample=True), k=_K),
    Case(fit_epg, "three-echoes", problem(1, 17, echoes=3), k=_K, dtypes=_REAL),
    Case(fit_epg, "maps", problem(2, 5, 7, maps=True, with_angles=True, with_prior=True), k=_K),
    Case(fit_epg, "b1", problem(2, 5, 7, known_b1=True), k=_K),
    Case(fit_epg, "empty-batch", problem(0, 4), k=_K),
    Case(fit_epg, "no-voxels", problem(2, 0), k=_K),
    Case(fit_epg, "size-1", problem(1, 1), k=_K),
)  # fmt: skip
