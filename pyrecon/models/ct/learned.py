"""Trained networks as methods of :func:`~pyrecon.models.ct.reconstruct_ct`."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.linops import LinearOperator, Radon, Whitened
from pyrecon.models._data_step import Reconstructor
from pyrecon.models.ct.methods import CTMethod
from pyrecon.models.deq import DEGrad
from pyrecon.models.luser import ROLE, load_for
from pyrecon.models.weights import Card, check_role, find_weights
from pyrecon.solvers import Solution

_PEAK = 0.995  # the quantile of least squares that stands for the peak: its largest values are streaks


@dataclass(frozen=True)
class DEGradCT(CTMethod):
    """DE-Grad with trained weights: :class:`pyrecon.models.DEGrad` along the rays of the scan.

    Every image is brought to the scale of training, where bodies have a peak of 1, by its least-squares image, and
    back. Weights trained with whitened data take a dense decomposition of the scan's own geometry: small images only.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.DEGrad.save`; ``pyrecon train de-grad`` makes one. None ship with the package.
    """

    weights: str | None = None

    name: ClassVar[str] = "DE-Grad"
    role: ClassVar[str] = "equilibrium"

    @cached_property
    def model(self) -> DEGrad:
        """The network, loaded once."""
        if self.weights is None:
            raise DataError("weights: none of DE-Grad come with this package; `pyrecon train de-grad` makes a file")
        model = DEGrad.load(find_weights(self.weights))
        card = check_role(str(self.weights), model.card, self.role, self.name)
        if card.data.get("task") != "ct":
            raise DataError(f"{self.weights}: trained for {card.data.get('task')!r}, {self.name} takes 'ct' here")
        return model

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        return _solved(self.model, sinogram, physics)


@dataclass(frozen=True)
class LUSERCT(CTMethod):
    """LUSER, LU-DnCNN or DEQ4IP with trained weights along the rays of the scan.

    Every image is brought to the scale of training, where bodies have a peak of 1, by its least-squares image, and
    back.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.LUSER.save` or of its rivals'; ``pyrecon train luser -p task=ct`` makes one.
        None ship with the package.
    """

    weights: str | None = None

    name: ClassVar[str] = "LUSER"
    role: ClassVar[str] = ROLE

    @cached_property
    def model(self) -> Reconstructor:
        """The network, loaded once."""
        return load_for("ct", self.weights)

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        return _solved(self.model, sinogram, physics)


def _solved(model: DEGrad | Reconstructor, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
    """In the scale of training and back."""
    model, card = model.to(sinogram.device), model.card
    assert card is not None
    _warn(card, physics)
    operator, factor = _normalised(physics, bool(card.data.get("whiten")))
    y = operator.transform(sinogram) if isinstance(operator, Whitened) else sinogram / factor
    peak = operator.pinv(y).flatten(1).quantile(_PEAK, dim=1).view(-1, 1, 1)
    scale = torch.where(peak > 0, peak, torch.ones_like(peak))
    found = model.reconstruct(y / scale.reshape(-1, *[1] * (y.dim() - 1)), operator)
    return Solution(found.value * scale, found.status, found.iterations, found.residual)


@lru_cache(maxsize=1)  # slices come in parts
def _normalised(physics: Radon, whiten: bool) -> tuple[LinearOperator, float]:
    """The scan's operator with singular values 1, or over its norm."""
    if not whiten:
        norm = float(physics.norm(rtol=1e-4).max())
        return physics / norm, norm
    try:
        return Whitened(physics), 1.0
    except ValueError as error:
        raise DataError(f"weights: trained with whitened data, which this scan is too large for ({error})") from None


def _warn(card: Card, physics: Radon) -> None:
    """Of scans that are not like those of training."""
    views, arc = card.data.get("angles"), card.data.get("arc")
    geometry = physics.geometry
    own = math.degrees(geometry.arc)
    if views is not None and arc is not None and (geometry.views != views or abs(own - arc) > 0.05 * arc):
        warnings.warn(
            f"views: the weights were trained at {views} over {arc:.0f} degrees, the scan has {geometry.views} over "
            f"{own:.0f}: the images may be less good than they look",
            stacklevel=5,
        )
    if tuple(card.shape) != tuple(geometry.shape):
        size, own_size = (" x ".join(map(str, s)) for s in (card.shape, geometry.shape))
        warnings.warn(
            f"grid: the weights were trained on images of {size}, the scan's have {own_size}: the images may be less "
            "good than they look",
            stacklevel=5,
        )
