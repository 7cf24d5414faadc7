from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon import ops
from pyrecon.ops._signals import curve
from pyrecon.testing.cases._case import Case, Make, randn
from pyrecon.testing.cases.fit import RATES, SIGNALS

MODELS = ("sr", "ir-magnitude", "t2", "t2-offset", "vfa")


def fit_rician(
    name: str,
    data: Tensor,
    times: Tensor,
    noise: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    *,
    out: Any = None,
) -> Any:
    """Parameters, as exact as the precision allows."""
    tol = 1e-7 if data.dtype == torch.float32 else 1e-15
    level = 0.0 if weight is None else weight
    model = SIGNALS[name][0]
    return ops.fit_voxels(model, data, times, noise_std=noise, prior=prior, weight=level, tol=tol, out=out).value


def magnitudes(name: str, batch: int, *space: int, per_voxel: bool = False, with_prior: bool = False) -> Make:
    """Magnitudes of maps that differ, in noise of a fiftieth to a twentieth of the largest."""
    model, instants = SIGNALS[name]

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        low, high = RATES[model.rate]
        rate = low + (high - low) * uniform(batch, 1, *space)
        first = 1 + 0.2 * uniform(batch, 1, *space)
        last = -1.9 if name.startswith("ir") else 3.0
        times = torch.tensor(instants, dtype=torch.float64)
        shaped = times.view(1, -1, *[1] * len(space))
        if per_voxel:
            times = shaped = shaped * (1 + 0.1 * uniform(batch, 1, *space))
        signal = curve(model.table(shaped), rate, (first,) if model.linear == 1 else (first, last * first))
        # Of the signal's size, for that of a spoiled echo is a tenth of the others.
        noise = (0.02 + 0.03 * uniform(batch, *space)) * float(signal.abs().amax() if signal.numel() else 1)
        real, imaginary = (noise[:, None] * randn(generator, *signal.shape, dtype=torch.float64) for _ in range(2))
        data = torch.hypot(signal + real, imaginary)
        prior = weight = None
        if with_prior:
            prior = 1 + randn(generator, batch, 1 + model.linear, *space, dtype=dtype)
            weight = (0.1 * uniform(batch, *space)).to(dtype)
        return name, data.to(dtype), times.to(dtype), noise.to(dtype), prior, weight

    return make


# As of least squares: the gradient's roundings, times what they are to its slope, which noise near the signal flattens.
_K = 400
_REAL = (torch.float32, torch.float64)

CASES = (
    *(Case(fit_rician, f"tiny-{n}", magnitudes(n, 2, 3), k=_K, dtypes=_REAL, tiny=True, grad=(1, 2, 3), twice=False)
      for n in MODELS),
    Case(fit_rician, "tiny-prior", magnitudes("ir-magnitude", 1, 2, with_prior=True), k=_K, dtypes=_REAL, tiny=True,
         grad=(1, 2, 3, 4, 5), twice=False),
    Case(fit_rician, "tiny-per-voxel", magnitudes("vfa", 2, 2, per_voxel=True, with_prior=True), k=_K, dtypes=_REAL,
         tiny=True, grad=(1, 2, 3, 4, 5), twice=False),
    *(Case(fit_rician, n, magnitudes(n, 2, 13, 29), k=_K, dtypes=_REAL) for n in MODELS),
    Case(fit_rician, "per-voxel", magnitudes("vfa", 2, 7, 9, per_voxel=True), k=_K, dtypes=_REAL),
    Case(fit_rician, "per-sample", magnitudes("sr", 3, 1, per_voxel=True), k=_K, dtypes=_REAL),
    Case(fit_rician, "prior", magnitudes("sr", 3, 5, 7, with_prior=True), k=_K, dtypes=_REAL),
    Case(fit_rician, "empty-batch", magnitudes("sr", 0, 4), k=_K, dtypes=_REAL),
    Case(fit_rician, "no-voxels", magnitudes("t2", 2, 0), k=_K, dtypes=_REAL),
    Case(fit_rician, "size-1", magnitudes("sr", 1, 1), k=_K, dtypes=_REAL),
)  # fmt: skip
