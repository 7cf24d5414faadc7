"""Computed tomography of a slice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrecon._check import check_count, described
from pyrecon.linops._base import LinearOperator
from pyrecon.ops import fbp, radon, radon_adjoint
from pyrecon.ops._radon_geometry import Beam


class Radon(LinearOperator):
    """Line integrals along the rays of a scan: ``(B, H, W)`` to ``(B, views, n_det)``.

    Parameters
    ----------
    geometry
        :class:`pyrecon.ops.ParallelBeam`, :class:`~pyrecon.ops.FanBeam` or :class:`~pyrecon.ops.ViewBeam`.
    channels
        If given, samples are stacks of as many slices, ``(B, channels, H, W)`` to ``(B, channels, views, n_det)``.
    """

    like: Tensor

    def __init__(self, geometry: Beam, *, channels: int | None = None) -> None:
        super().__init__()
        if not isinstance(geometry, Beam):
            raise TypeError(f"geometry: {described(geometry)}, expected a ParallelBeam, FanBeam or ViewBeam")
        self.geometry, self.channels = geometry, channels
        lead = () if channels is None else (check_count("channels", channels),)
        self.domain_shape, self.range_shape = (*lead, *geometry.shape), (*lead, *geometry.range_shape)
        # Says on which device and in which precision random vectors are drawn; the rays' own are float64 always.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return radon(x, self.geometry)

    def adjoint(self, y: Tensor) -> Tensor:
        return radon_adjoint(y, self.geometry)

    def fbp(self, y: Tensor, filter: str | None = "ramp", *, short_scan: bool | None = None) -> Tensor:
        """Filtered backprojection, see :func:`pyrecon.ops.fbp`."""
        return fbp(y, self.geometry, filter, short_scan=short_scan)

    def subset(self, views: Tensor | Sequence[int] | slice) -> Radon:
        """The operator of some of the views."""
        part = Radon(self.geometry.subset(views), channels=self.channels)
        return part.to(self.like.device, self.like.dtype)

    def extra_repr(self) -> str:
        return f"{self.domain_shape} -> {self.range_shape}, {self.geometry}"
