from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon import ops
from pyrecon.ops._signals import curve
from pyrecon.testing.cases._case import Case, Make, randn

SIGNALS: dict[str, tuple[ops.SignalModel, list[float]]] = {
    "sr": (ops.SaturationRecovery(), [0.5, 1.0, 1.5, 2.0, 8.0]),
    "ir": (ops.InversionRecovery(), [0.05, 0.3, 0.9, 1.8, 4.0]),
    "ir-magnitude": (ops.InversionRecovery(magnitude=True), [0.05, 0.3, 0.9, 1.8, 4.0]),
    "t2": (ops.EchoDecay(), [0.01, 0.03, 0.06, 0.1]),
    "t2-offset": (ops.EchoDecay(offset=True), [0.01, 0.02, 0.04, 0.08, 0.16]),
    "vfa": (ops.SpoiledGradientEcho(0.02), [0.05, 0.15, 0.3, 0.5]),
}
RATES = {"R1": (0.4, 2.5), "R2": (8.0, 40.0)}


def fit_voxels(
    name: str, data: Tensor, times: Tensor, prior: Tensor | None, weight: Tensor | None, *, out: Any = None
) -> Any:
    """Parameters, as exact as the precision allows."""
    tol = 1e-7 if data.dtype in (torch.float32, torch.complex64) else 1e-15
    level = 0.0 if weight is None else weight
    fit = ops.fit_voxels(SIGNALS[name][0], data, times, prior=prior, weight=level, tol=tol, out=out)
    return fit.value


def problem(name: str, batch: int, *space: int, per_voxel: bool = False, with_prior: bool = False) -> Make:
    """Signals of maps that differ, a twentieth of noise in them."""
    model, instants = SIGNALS[name]

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        wide, real = (torch.complex128 if dtype.is_complex else torch.float64), dtype.to_real()
        low, high = RATES[model.rate]
        rate = low + (high - low) * torch.rand(batch, 1, *space, generator=generator, dtype=torch.float64)
        first = 1 + 0.2 * randn(generator, batch, 1, *space, dtype=wide)
        factors = (first,) if model.linear == 1 else (first, (-1.9 if name.startswith("ir") else 3.0) * first)
        times = torch.tensor(instants, dtype=torch.float64)
        if per_voxel:
            spread = 1 + 0.1 * torch.rand(batch, 1, *space, generator=generator, dtype=torch.float64)
            times = times.view(1, -1, *[1] * len(space)) * spread
        shaped = times if per_voxel else times.view(1, -1, *[1] * len(space))
        signal = curve(model.table(shaped), rate, factors)
        data = signal + 0.02 * randn(generator, *signal.shape, dtype=wide)
        data = data.abs() if model.polarity else data
        prior = weight = None
        if with_prior:
            parts = 1 + model.linear * (2 if dtype.is_complex else 1)
            prior = 1 + randn(generator, batch, parts, *space, dtype=real)
            weight = 0.1 * torch.rand(batch, *space, generator=generator, dtype=torch.float64).to(real)
        return name, data.to(dtype), times.to(real), prior, weight

    return make


# A step ends where the gradient is rounding: k is the number of roundings in its sums, times what they are to the
# gradient's slope, which the times above keep to some ten.
_K = 400
_REAL = (torch.float32, torch.float64)

CASES = (
    *(Case(fit_voxels, f"tiny-{n}", problem(n, 2, 3), k=_K, dtypes=_REAL, tiny=True, grad=(1, 2), twice=False)
      for n in SIGNALS),
    Case(fit_voxels, "tiny-complex", problem("sr", 2, 2), k=_K, tiny=True, grad=(1, 2), twice=False),
    Case(fit_voxels, "tiny-prior", problem("ir", 1, 2, with_prior=True), k=_K, tiny=True, grad=(1, 2, 3, 4),
         twice=False),
    Case(fit_voxels, "tiny-per-voxel", problem("vfa", 2, 2, per_voxel=True, with_prior=True), k=_K, tiny=True,
         grad=(1, 2, 3, 4), twice=False),
    *(Case(fit_voxels, n, problem(n, 2, 13, 29), k=_K, dtypes=_REAL if "magnitude" in n else Case.dtypes)
      for n in SIGNALS),
    Case(fit_voxels, "per-voxel", problem("vfa", 2, 7, 9, per_voxel=True), k=_K),
    Case(fit_voxels, "per-sample", problem("sr", 3, 1, per_voxel=True), k=_K),
    Case(fit_voxels, "prior", problem("sr", 3, 5, 7, with_prior=True), k=_K),
    Case(fit_voxels, "empty-batch", problem("sr", 0, 4), k=_K),
    Case(fit_voxels, "no-voxels", problem("t2", 2, 0), k=_K),
    Case(fit_voxels, "size-1", problem("sr", 1, 1), k=_K),
)  # fmt: skip
