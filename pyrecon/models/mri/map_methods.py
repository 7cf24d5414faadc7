"""The methods from k-space to maps: least squares image by image and a fit of every voxel, and trained networks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.linops import Sense
from pyrecon.models._map_network import Iterates, MapNetwork
from pyrecon.models.map_rivals import load
from pyrecon.models.method import Method
from pyrecon.models.mri.methods import CGSense
from pyrecon.models.weights import check_role, which_weights
from pyrecon.ops import InversionRecovery, SaturationRecovery, VoxelFit, fit_voxels
from pyrecon.solvers import Status

_FAR = 1.5  # noise or acceleration this many times that of training is worth a warning
_APART = 0.01  # times may differ by this fraction from those of training
# The median of the pixels brighter than a fifth of the brightest, of the last image of training brains: 0.72 +- 0.07
# from first images at 1 to 8-fold acceleration, without noise and with all that training has.
_BRIGHT, _TYPICAL = 0.2, 0.72


@dataclass(frozen=True)
class Fitted:
    """Maps ``(B, H, W)`` in units of the noise.

    Attributes
    ----------
    values, errors
        By name: ``"T1"`` in seconds, factors that are complex where their phase is known; standard errors of magnitudes
        if the method has any.
    images
        ``(B, T, H, W)``, which the maps were read off.
    residual
        Root mean square over the images of what the maps leave of them.
    status
        int8, :class:`pyrecon.solvers.Status`.
    at_bound
        bool: the rate is at an end of its range.
    """

    values: dict[str, Tensor]
    errors: dict[str, Tensor]
    images: Tensor
    residual: Tensor
    status: Tensor
    at_bound: Tensor


class MapMethod(Method):
    """From whitened k-space of several contrasts to maps.

    Attributes
    ----------
    setting
        What differs between the images, one of ``MRIScan.settings``.
    besides
        What else may, because it changes nothing.
    """

    setting: ClassVar[str] = "inversion time"

    @property
    def besides(self) -> tuple[str, ...]:
        return ("repetition time",)

    @property
    def title(self) -> str:
        """Its name, or that of the network that its weights are of."""
        return self.name

    @property
    def ends(self) -> tuple[float, float]:
        """Of the range of the rate, 1/s."""
        return SaturationRecovery.range

    def fitted(self, kspace: Tensor, mask: Tensor, values: Sequence[float]) -> MapMethod:
        """The method with the settings that it takes from all of the data; DataError where it is not for the
        ``values`` of the setting."""
        return self

    def assumed(self) -> dict[str, str]:
        """What reports are to say."""
        return {}

    def solve(self, kspace: Tensor, maps: Tensor, mask: Tensor, values: Tensor) -> Fitted:
        """Maps from k-space ``(B, T, C, H, W)``, coil maps ``(B | 1, 1, C, H, W)`` with a root sum of squares of 1
        or 0, a mask ``(B | 1, T, 1, H | 1, W | 1)`` and ``(T,)`` values of the setting, from the smallest on."""
        raise NotImplementedError(f"{type(self).__name__}: a method defines solve")


@dataclass(frozen=True)
class SenseFit(MapMethod):
    """Every image by :class:`~pyrecon.models.mri.CGSense`, then :func:`pyrecon.ops.fit_voxels`.

    Parameters
    ----------
    model
        ``"sr"``: ``M0 (1 - exp(-t / T1))``; ``"ir"``: ``a + b exp(-t / T1)``, of any flip angle.
    weight, tol, max_iter
        Of CG-SENSE; the weight is one for all images.
    """

    name: ClassVar[str] = "CG-SENSE + fit"
    model: Literal["sr", "ir"] = "sr"
    weight: float | None = None
    tol: float = 0.02
    max_iter: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._images()

    @property
    def besides(self) -> tuple[str, ...]:
        return ("repetition time",) if self.model == "sr" else ()

    def fitted(self, kspace: Tensor, mask: Tensor, values: Sequence[float]) -> MapMethod:
        return replace(self, weight=self._images().fitted(kspace, mask).weight)

    def assumed(self) -> dict[str, str]:
        return {"assumed": "perfect saturation" if self.model == "sr" else "the same repetition time for all"}

    def solve(self, kspace: Tensor, maps: Tensor, mask: Tensor, values: Tensor) -> Fitted:
        batch, count = kspace.shape[:2]
        held = [t.expand(batch, count, *t.shape[2:]).flatten(0, 1) for t in (maps, mask)]
        found = self._images().solve(kspace.flatten(0, 1), *held)
        images = found.value.unflatten(0, (batch, count))
        inside = (maps != 0).any(dim=2)[:, 0]
        model = SaturationRecovery() if self.model == "sr" else InversionRecovery()
        fit = fit_voxels(model, images, values, mask=inside)
        residual = fit.residuals().abs().square().mean(1).sqrt()
        return Fitted(fit.maps(), fit.errors(), images, residual, fit.status, _at_end(fit, self.ends))

    def _images(self) -> CGSense:
        return CGSense(self.weight, self.tol, self.max_iter)


@dataclass(frozen=True)
class PINQIMRI(MapMethod):
    """PINQI, or a rival of it, with trained weights: :class:`pyrecon.models.PINQI` with the coil maps of the scan.

    Every slice is brought to the scale of training, where M0 is about 1, and back: bright pixels of its last image have
    a median of 0.72 and, on average, no phase.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.PINQI.save`, which ``pyrecon train pinqi`` makes, or the name of some that ship.
    """

    weights: str | None = None

    name: ClassVar[str] = "PINQI"
    role: ClassVar[str] = "maps"

    @cached_property
    def model(self) -> MapNetwork:
        """The network, loaded once."""
        if self.weights is None:
            raise which_weights(MapNetwork.system, "t1", "pyrecon train pinqi")
        model = load(self.weights)
        check_role(str(self.weights), model.card, self.role, self.name, "t1")
        return model.requires_grad_(False)

    @property
    def title(self) -> str:
        return type(self.model).__name__

    @property
    def ends(self) -> tuple[float, float]:
        low, high = getattr(self.model, "bounds", super().ends)
        return low, high

    def fitted(self, kspace: Tensor, mask: Tensor, values: Sequence[float]) -> MapMethod:
        known = self._times()
        if len(known) != len(values) or any(
            abs(a - b) > _APART * b for a, b in zip(values, sorted(known), strict=True)
        ):
            said = [", ".join(f"{v:.6g}" for v in times) for times in (values, known)]
            raise DataError(
                f"{self.setting}: {len(values)} of {said[0]} s, the weights are for {len(known)} of {said[1]} s; train "
                "some for these (pyrecon train pinqi), or use the method sense-fit"
            )
        return self

    def assumed(self) -> dict[str, str]:
        return {
            "assumed": "perfect saturation",
            "scale": f"bright pixels of the last image of each slice brought to a median of {_TYPICAL}, as in "
            "training, and to no phase on average; M0 brought back",
        }

    def solve(self, kspace: Tensor, maps: Tensor, mask: Tensor, values: Tensor) -> Fitted:
        model, physics = self.model.to(kspace.device), Sense(maps, mask)
        order = torch.tensor(self._times()).argsort().argsort().to(kspace.device)  # the network's from the sorted
        back = order.argsort()
        first = model.first(kspace, physics)
        scale = _scale(first[:, -1]).view(-1, 1, 1, 1)
        self._warn(kspace, mask, scale)
        physics = Sense(maps, mask[:, order])
        with torch.no_grad():
            found: Iterates = model(kspace[:, order] / scale[..., None], physics, values[order].to(kspace.real))
        parameters = found.parameters[-1]
        images = found.images[-1][:, back] if found.images else first / scale
        signal = model.signal(parameters, values.to(parameters))
        left = images - signal if model.phase else images.abs() - signal.abs()
        size = scale[:, 0].abs()
        m0 = torch.complex(parameters[:, 1], parameters[:, 2]) * scale[:, 0] if model.phase else parameters[:, 1] * size
        rate = parameters[:, 0]
        there = torch.isfinite(rate) & (rate > 0)
        status = torch.where(there, int(Status.CONVERGED), int(Status.NONFINITE)).to(torch.int8)
        at_end = torch.zeros_like(there)
        if found.fits:
            status, at_end = found.fits[-1].status, _at_end(found.fits[-1], self.ends)
        values_of = {"T1": torch.where(there, 1 / rate, torch.nan), "M0": m0}
        residual = size * left.abs().square().mean(1).sqrt()
        return Fitted(values_of, {}, images * scale, residual, status, at_end)

    def _times(self) -> tuple[float, ...]:
        """Those of training, in the order of the network's inputs."""
        assert self.model.card is not None
        known = self.model.card.data.get("times")
        if not isinstance(known, list) or not all(isinstance(t, int | float) and t > 0 for t in known):
            raise DataError(f"{self.weights}: does not say which times it was trained for")
        if len(known) != self.model.images:
            raise DataError(f"{self.weights}: says {len(known)} times, its network takes {self.model.images} images")
        return tuple(float(t) for t in known)

    def _warn(self, kspace: Tensor, mask: Tensor, scale: Tensor) -> None:
        """Of data that are not like those of training."""
        card = self.model.card
        assert card is not None
        shape, said = (kspace.shape[3], kspace.shape[4]), list[str]()
        noise = 2**-0.5 / float(scale.abs().median().clamp(min=1e-30))
        trained = _number(card.data.get("noise_std"), noise)
        if noise > _FAR * trained:
            said.append(f"noise of {noise:.2g} of M0, {trained:.2g} at most")
        rate = 1 / max(float(mask.double().mean()), 1e-12)
        trained = _number(card.data.get("acceleration"), rate)
        if rate > _FAR * trained:
            said.append(f"{rate:.3g}-fold acceleration, {trained:.3g}")
        if tuple(card.shape) != shape:
            said.append(" x ".join(map(str, shape)) + " pixels, " + " x ".join(map(str, card.shape)))
        if said:
            warnings.warn(
                f"data: {'; '.join(f'{text} in training' for text in said)}: the maps may be less good than they look",
                stacklevel=4,
            )


def _scale(image: Tensor) -> Tensor:
    """``(B,)`` complex: what to divide images ``(B, H, W)`` by to be like those of training; 1 where there is none."""
    scales = []
    for one in image.flatten(1):
        size = one.abs()
        bright = size > _BRIGHT * size.quantile(0.99) if len(size) < 2**24 else size > _BRIGHT * size.max()
        if not bool(bright.any()):
            scales.append(one.new_ones(()))
            continue
        phase = torch.sgn((one * size)[bright].sum())
        scales.append(size[bright].median() / _TYPICAL * torch.where(phase == 0, 1, phase))
    return torch.stack(scales)


def _number(value: Any, otherwise: float) -> float:
    """What a card says, if it is a number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else otherwise


def _at_end(fit: VoxelFit, ends: tuple[float, float]) -> Tensor:
    low, high = (torch.tensor(end, dtype=fit.value.dtype, device=fit.value.device) for end in ends)
    return (fit.rate <= low) | (fit.rate >= high)


MAPPING: dict[str, type[MapMethod]] = {"sense-fit": SenseFit, "pinqi": PINQIMRI}
