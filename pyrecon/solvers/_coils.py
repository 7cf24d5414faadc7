"""The transform of single coils that joint estimation needs: ``F^H M k`` and ``F^H M^2 F`` of coil images."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrecon._check import check_dtype, check_number, check_returned, check_shape
from pyrecon._threads import outside
from pyrecon.ops import sense_maps_adjoint, sense_normal
from pyrecon.ops._joint import joint_coils


@runtime_checkable
class CoilTransform(Protocol):
    """The transform of single coils, for data that no Cartesian mask describes.

    ``adjoint(kspace)`` gives coil images ``(B, C, H, W)``, ``gram(coils)`` is ``F^H M^2 F`` of such, and ``bound`` is
    its largest eigenvalue or more.
    """

    bound: float

    def adjoint(self, kspace: Tensor, /) -> Tensor: ...

    def gram(self, coils: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class CartesianCoils:
    """F^H M^2 F of coil images, by a mask."""

    mask: Tensor
    bound: float

    def gram(self, coils: Tensor, out: Tensor) -> Tensor:
        one = coils.new_ones(1, 1, 1, 1)
        sense_normal(coils.flatten(0, 1), one, self.mask, out=out.view(-1, *out.shape[2:]))
        return out

    def normal(self, image: Tensor, unit: Tensor) -> Tensor:
        """``Re A^H A image`` with the maps ``unit``."""
        return sense_normal(image.to(unit.dtype), unit, self.mask).real

    def of(self, kept: Tensor) -> CartesianCoils:
        return replace(self, mask=self.mask[kept]) if len(self.mask) > 1 else self


@dataclass(frozen=True)
class GivenCoils:
    """The same by a :class:`CoilTransform`, whose results are checked."""

    physics: CoilTransform
    bound: float

    def gram(self, coils: Tensor, out: Tensor) -> Tensor:
        return out.copy_(check_returned("mask.gram", outside(self.physics.gram)(coils), coils, "the coil images"))

    def normal(self, image: Tensor, unit: Tensor) -> Tensor:
        seen = self.gram(joint_coils(image, unit), torch.empty_like(unit))
        return (seen.real * unit.real + seen.imag * unit.imag).sum(dim=1)

    def of(self, kept: Tensor) -> GivenCoils:
        return self


Coils = CartesianCoils | GivenCoils


def coil_transform(kspace: Tensor, mask: Any) -> tuple[Coils, Tensor]:
    """The physics and ``F^H M k``, ``(B, C, H, W)``."""
    if isinstance(mask, Tensor):
        check_shape("kspace", kspace, (None, None, None, None), "(B, C, H, W)")
        if 0 in kspace.shape[1:]:
            raise ValueError(f"kspace: shape {tuple(kspace.shape)} has no coil or no pixels")
        weights = mask.to(kspace.real.dtype) if mask.dtype == torch.bool else mask
        ones = kspace.new_ones(kspace.shape[0], *kspace.shape[2:])
        data = sense_maps_adjoint(kspace, ones, weights)  # checks the mask
        if len(weights) not in (1, len(kspace)):
            weights = weights.repeat_interleave(len(kspace) // len(weights), dim=0)
        bound = float(weights.square().max()) if weights.numel() else 1.0
        _warn_of_sampling(weights, kspace.shape[2:])
        return CartesianCoils(weights, bound), data
    if isinstance(mask, type) or not isinstance(mask, CoilTransform):
        raise TypeError(
            f"mask: {type(mask).__name__}, expected a tensor, or an object with adjoint(kspace), gram(coils) and bound"
        )
    data = outside(mask.adjoint)(kspace)
    check_dtype("mask.adjoint: what it returned", data, (kspace.dtype,))
    check_shape("mask.adjoint: what it returned", data, (len(kspace), None, None, None), "(B, C, H, W)")
    return GivenCoils(mask, check_number("mask.bound", mask.bound, above=True)), data.contiguous()


def _warn_of_sampling(mask: Tensor, shape: torch.Size) -> None:
    """Tell of samplings that leave the joint problem open; looks at the sampled rows and columns of the first mask."""
    sampled = (mask[0, 0] != 0).expand(*shape).cpu()
    if not bool(sampled.any()):
        warnings.warn("mask: samples nothing, the image will be zero", stacklevel=4)
        return
    if not bool(sampled[shape[0] // 2, shape[1] // 2]):
        warnings.warn(
            "mask: the centre of k-space is not sampled: the image comes near the true one and leaves it again; stop "
            "early (max_iter), or sample the centre",
            stacklevel=4,
        )
    for axis, name in ((1, "rows"), (0, "columns")):
        places = sampled.any(dim=axis).nonzero()[:, 0].tolist()
        spacing = math.gcd(*(b - a for a, b in pairwise(places))) if len(places) > 1 else 1
        if spacing > 1:
            warnings.warn(
                f"mask: every sampled place is a multiple of {spacing} {name} from the others and no calibration line "
                "lies between: maps and image that are folded fit the data as well as the true ones. Sample a few "
                "lines more, or give maps",
                stacklevel=4,
            )
