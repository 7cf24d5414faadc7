"""Image and coil maps by regularised nonlinear inversion: no calibration lines, and little to choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from pyrecon._check import check_count, check_number
from pyrecon.models.mri.joint import as_lines
from pyrecon.models.mri.methods import MRIMethod, count_samples
from pyrecon.solvers import Solution, nlinv


@dataclass(frozen=True)
class NLINV(MRIMethod):
    """Complex image rho and smooth maps S with ``|M F(rho S_c) - y_c|`` at the noise, by Gauss-Newton steps whose
    regularisation falls from step to step (Uecker et al., Magn Reson Med 60:674, 2008): :func:`pyrecon.solvers.nlinv`.

    It needs no calibration lines and knows no prior beyond small norms: what the maps do not unfold stays noise or
    folded edges. Its noise rule is the discrepancy principle: the first step that fits the data to the noise is the
    last.

    Parameters
    ----------
    misfit
        Stops at this multiple of the noise, or after ``steps``. A good image takes up some of it: 1 stopped up to 2.6
        dB below the best step, 0.95 up to 1.2 (tests/test_nlinv.py), 0.9 is never reached where 12 coils see 2-fold
        lines.
    steps, alpha, reduction, smoothness, order, rtol, max_iter
        As in :func:`pyrecon.solvers.nlinv`.
    """

    name: ClassVar[str] = "NLINV"
    needs_maps: ClassVar[bool] = False
    finds_maps: ClassVar[bool] = True
    fills_in: ClassVar[str] = "smooth maps and a small norm"
    completes: ClassVar[Literal["", "images", "coils"]] = "images"
    misfit: float = 0.95
    steps: int = 16
    alpha: float = 1.0
    reduction: float = 0.5
    smoothness: float = 220.0
    order: float = 32.0
    rtol: float = 0.1
    max_iter: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("misfit", self.misfit)
        check_number("rtol", self.rtol)
        check_count("steps", self.steps)
        check_count("max_iter", self.max_iter)
        for name in ("alpha", "reduction", "smoothness", "order"):
            check_number(name, getattr(self, name), above=True)
        if self.reduction > 1:
            raise ValueError(f"reduction: {self.reduction}, expected a number above 0, 1 at most")

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        """Images alone; :meth:`estimate` gives the maps as well."""
        found = self.estimate(kspace, mask)
        return Solution(found.value[0], found.status, found.iterations, found.residual)

    def estimate(self, kspace: Tensor, mask: Tensor) -> Solution[tuple[Tensor, Tensor]]:
        """Images ``(B, H, W)`` and maps ``(B, C, H, W)`` of root sum of squares 1."""
        noise = (kspace.shape[1] * count_samples(mask, kspace)).to(kspace.real.dtype).sqrt()
        return nlinv(
            kspace, as_lines(mask), steps=self.steps, tol=self.misfit * noise.to(kspace.device), alpha=self.alpha,
            reduction=self.reduction, smoothness=self.smoothness, order=self.order, rtol=self.rtol,
            max_iter=self.max_iter,
        )  # fmt: skip

    def story(self, kspace: Tensor, mask: Tensor) -> dict[str, Any]:
        """Nothing that comes from the data but the number of steps, which a report has."""
        return {"steps end": f"at {self.misfit:g} of the noise, {self.steps} at most"}
