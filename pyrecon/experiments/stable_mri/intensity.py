"""The curve that brings the intensities of reconstructions to those of references, fitted on validation images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline, make_lsq_spline
from torch import Tensor

from pyrecon._check import check_count

_DEGREE = 3
_RIDGE = 1e-6  # of the number of pixels: points of the curve itself, for a stretch that no pixel lies in


@dataclass(frozen=True)
class IntensityFit:
    """A cubic spline from the intensities of reconstructions to those of references; beyond its ends it goes on
    straight.

    With R a reconstruction and u what it should be, the spline s minimises ``sum (s(R_i) - u_i)^2`` over all pixels,
    its knots equally spaced from the smallest to the largest R_i (Zach et al., 2023, section 2.6: five of them).
    """

    spline: BSpline
    low: float
    high: float

    @classmethod
    def of(cls, found: Tensor, reference: Tensor, *, knots: int = 5) -> IntensityFit:
        """From images of one shape, real; ``knots`` with both ends, from 2 on. ValueError where ``found`` is
        constant."""
        check_count("knots", knots, 2)
        if found.shape != reference.shape:
            raise ValueError(f"found: shape {tuple(found.shape)} does not fit the reference's {tuple(reference.shape)}")
        x, y = (np.asarray(v.detach().cpu().double()).ravel() for v in (found, reference))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError("found, reference: hold NaN or infinite values")
        low, high = float(x.min()), float(x.max())
        if not high > low:
            raise ValueError(f"found: is {low:g} everywhere, there is no curve through a point")
        at = np.linspace(low, high, knots)
        # Where no pixel lies the curve is undetermined; a few points of the straight line hold it there.
        held = np.linspace(low, high, 4 * knots)
        slope = float(x @ y / max(x @ x, 1e-300))
        weight = np.concatenate([np.ones(len(x)), np.full(len(held), np.sqrt(_RIDGE * len(x)))])
        x, y = np.concatenate([x, held]), np.concatenate([y, slope * held])
        order = np.argsort(x, kind="stable")
        t = np.concatenate([[low] * _DEGREE, at, [high] * _DEGREE])
        return cls(make_lsq_spline(x[order], y[order], t, _DEGREE, weight[order]), low, high)

    def __call__(self, images: Tensor) -> Tensor:
        """Images of any shape, corrected; of the dtype and on the device that they have."""
        x = np.asarray(images.detach().cpu().double())
        inside = x.clip(self.low, self.high)
        slope = self.spline.derivative()
        ends: NDArray[np.float64] = np.where(
            x > self.high, slope(self.high), np.where(x < self.low, slope(self.low), 0.0)
        )
        return torch.from_numpy(np.asarray(self.spline(inside) + ends * (x - inside))).to(images)
