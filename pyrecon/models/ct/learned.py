"""Trained networks as methods of :func:`~pyrecon.models.ct.reconstruct_ct`.

A network knows bodies of one size in pixels, of peak 1 and, if it was trained on part of a turn, with the edges missing
that its arc missed. So a scan is brought to that: to the pixels of training, to their scale by a first image, and to a
frame in which its arc begins where that of training did, at 0. Its image is interpolated, once, to what is asked for.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrecon._errors import DataError
from pyrecon.data.ct import first_angle, on_grid
from pyrecon.linops import LinearOperator, Radon, Whitened
from pyrecon.models._data_step import Reconstructor
from pyrecon.models.ct.methods import CTMethod
from pyrecon.models.deq import DEGrad, for_inference
from pyrecon.models.luser import ROLE, load_for
from pyrecon.models.weights import MOST, Card, check_role, find_weights, which_weights
from pyrecon.ops._radon_geometry import Beam
from pyrecon.solvers import ConvergenceWarning, Solution, conjugate_gradient

# Of least squares, ended before noise and what the pixels cannot explain are fitted (semi-convergence), the quantile
# that stands for the peak: the largest values are streaks.
_STEPS, _PEAK = 8, 0.99
_HALF_TURN = 180.0  # degrees; a training on less knows which edges are missing


class _Frame(NamedTuple):
    """The image a network works on: its pixels in metres, and by how many radians it is turned anticlockwise."""

    shape: tuple[int, int]
    pixel_size: tuple[float, float]
    turn: float

    def is_of(self, geometry: Beam) -> bool:
        """Whether it is the image that is asked for."""
        return self == (geometry.shape, geometry.pixel_size, 0.0)


@dataclass(frozen=True)
class LearnedCT(CTMethod):
    """What trained networks share.

    Attributes
    ----------
    weights
        A file, or the name of weights that ship.
    grid
        ``"training"``: the network works on as many pixels as it was trained on, over the field of view, and its image
        is interpolated, bilinearly, to the one that is asked for. ``"image"``: on those that are asked for.
    """

    weights: str | None = None
    grid: Literal["training", "image"] = "training"

    @property
    def model(self) -> DEGrad | Reconstructor:
        """The network."""
        raise NotImplementedError(f"{type(self).__name__}: a learned method has a model")

    @property
    def shape(self) -> tuple[int, int] | None:
        return None if self.grid == "image" else _shape_of(self._card)

    def facts(self, physics: Radon) -> dict[str, str]:
        frame = self._frame(physics.geometry)
        said = f"on {frame.shape[0]} x {frame.shape[1]} pixels of {1e3 * frame.pixel_size[0]:.4g} mm"
        if frame.turn:
            said += f", turned by {math.degrees(frame.turn):.0f} degrees to where its arc begins"
        return {"network": said if frame.is_of(physics.geometry) else f"{said}; interpolated to the image"}

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        model, card = self.model.to(sinogram.device), self._card
        frame = self._frame(physics.geometry)
        _warn(card, physics.geometry, frame)
        operator, factor = _normalised(physics, frame, bool(card.data.get("whiten")))
        y = operator.transform(sinogram) if isinstance(operator, Whitened) else sinogram / factor
        scale = (peak_of(operator, y) / (_number(card, "peak") or 1.0)).view(-1, 1, 1)
        found = model.reconstruct(y / scale.reshape(-1, *[1] * (y.dim() - 1)), operator)
        image = found.value * scale
        if not frame.is_of(physics.geometry):
            image = _resampled(image, frame, physics.geometry)
        return Solution(image, found.status, found.iterations, found.residual)

    @property
    def _card(self) -> Card:
        card = self.model.card
        assert card is not None
        return card

    def _frame(self, geometry: Beam) -> _Frame:
        card = self._card
        arc = _number(card, "arc")
        turn = first_angle(geometry) if arc is not None and arc < _HALF_TURN else 0.0
        shape = _shape_of(card)
        if self.grid == "image" or shape == geometry.shape:
            return _Frame(geometry.shape, geometry.pixel_size, turn)
        side = max(n * p for n, p in zip(geometry.shape, geometry.pixel_size, strict=True))
        pixel = side / max(shape)
        return _Frame(shape, (pixel, pixel), turn)


@dataclass(frozen=True)
class DEGradCT(LearnedCT):
    """DE-Grad with trained weights: :class:`pyrecon.models.DEGrad` along the rays of the scan.

    Every image is brought to the scale of training, where bodies have a peak of 1, by its least-squares image, and
    back. Weights trained with whitened data take a dense decomposition of the scan's own geometry: few rays only.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.DEGrad.save`; ``pyrecon train de-grad`` makes one. None ship with the package.
    grid
        As of :class:`LearnedCT`.
    """

    name: ClassVar[str] = "DE-Grad"
    role: ClassVar[str] = "equilibrium"

    @cached_property
    def model(self) -> DEGrad:
        """The network, loaded once."""
        if self.weights is None:
            raise which_weights(DEGrad.system, "ct", "pyrecon train de-grad -p task=ct")
        model = DEGrad.load(find_weights(self.weights))
        check_role(str(self.weights), model.card, self.role, self.name, "ct")
        for_inference(model)
        return model


@dataclass(frozen=True)
class LUSERCT(LearnedCT):
    """LUSER, LU-DnCNN or DEQ4IP with trained weights along the rays of the scan.

    Every image is brought to the scale of training, where bodies have a peak of 1, by its least-squares image, and
    back.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.LUSER.save` or of its rivals'; ``pyrecon train luser -p task=ct`` makes one. Or
        the name of some that ship, ``"lu-dncnn-ct-discs-90"``: LU-DnCNN for discs of one material with holes, from 90,
        60 or 30 degrees.
    grid
        As of :class:`LearnedCT`.
    """

    name: ClassVar[str] = "LUSER"
    role: ClassVar[str] = ROLE

    @property
    def label(self) -> str:
        """LUSER-SW, LUSER-DW or the rival that it is."""
        network = self.model.network
        if network == "luser":
            return "LUSER-SW" if self.model.config["shared"] else "LUSER-DW"
        return {"lu-dncnn": "LU-DnCNN", "deq4ip": "DEQ4IP"}[network]

    @cached_property
    def model(self) -> Reconstructor:
        """The network, loaded once."""
        return load_for("ct", self.weights)


def peak_of(operator: LinearOperator, y: Tensor) -> Tensor:
    """Estimates of the peaks of the images behind y, ``(B,)``, up to a factor of the geometry: their mean over images
    of peak 1 is on the card of weights."""
    if isinstance(operator, Whitened):
        images = operator.pinv(y)
    else:
        with warnings.catch_warnings():  # it is to end early
            warnings.simplefilter("ignore", ConvergenceWarning)
            images = conjugate_gradient(operator.gram, operator.adjoint(y), max_iter=_STEPS).value
    peak: Tensor = images.flatten(1).quantile(_PEAK, dim=1)
    return torch.where(peak > 0, peak, torch.ones_like(peak))


# --- to the network and back -----------------------------------------------------------------------------------------
@lru_cache(maxsize=1)  # slices come in parts, of one physics
def _normalised(physics: Radon, frame: _Frame, whiten: bool) -> tuple[LinearOperator, float]:
    """The scan's operator in the network's frame with singular values 1, or over its norm."""
    own = Radon(on_grid(physics.geometry, frame.shape, frame.pixel_size, turn=frame.turn))
    own = own.to(physics.like.device, physics.like.dtype)
    if not whiten:
        norm = float(own.norm(rtol=1e-4).max())
        return own / norm, norm
    try:
        return Whitened(own), 1.0
    except ValueError as error:
        raise DataError(f"weights: trained with whitened data, which this scan is too large for ({error})") from None


def _resampled(images: Tensor, frame: _Frame, asked: Beam) -> Tensor:
    """Bilinear, turned back, on the grid that is asked for; 0 beyond the network's image."""
    (height, width), (dy, dx) = asked.shape, asked.pixel_size
    options: dict[str, Any] = {"dtype": torch.float64, "device": images.device}
    y = dy * ((height - 1) / 2 - torch.arange(height, **options))[:, None]
    x = dx * (torch.arange(width, **options) - (width - 1) / 2)
    cos, sin = math.cos(frame.turn), math.sin(frame.turn)
    half_y, half_x = (n * p / 2 for n, p in zip(frame.shape, frame.pixel_size, strict=True))
    places = torch.stack([(cos * x + sin * y) / half_x, (sin * x - cos * y) / half_y], dim=-1)
    inside = (places.abs() <= 1 + 1e-9).all(dim=-1)
    places = places.to(images.dtype).expand(len(images), -1, -1, -1)
    found = F.grid_sample(images[:, None], places, "bilinear", "border", align_corners=False)[:, 0]
    return found * inside


# --- what cards say --------------------------------------------------------------------------------------------------
def _shape_of(card: Card) -> tuple[int, int]:
    if len(card.shape) != 2 or max(card.shape) > MOST:
        raise DataError(f"weights: trained on images of {card.shape}, expected rows and columns, {MOST} at most")
    return card.shape[0], card.shape[1]


def _number(card: Card, name: str) -> float | None:
    """A number above 0 of the card, None where it says nothing; DataError for anything else."""
    value = card.data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"weights: {name} is {str(value)[:40]!r} on their card, expected a number above 0")
    return float(value)


def _warn(card: Card, geometry: Beam, frame: _Frame) -> None:
    """Of scans that are not like those of training. More views over the same arc are alike: the operator has norm 1,
    and noise counts for less; whitened data of more views are of another operator."""
    views, arc = _number(card, "angles"), _number(card, "arc")
    own = math.degrees(geometry.arc)
    if views is not None and arc is not None:
        denser = geometry.views / own > 0.95 * views / arc
        if not (geometry.views == views if card.data.get("whiten") else denser) or abs(own - arc) > 0.05 * arc:
            warnings.warn(
                f"views: the weights were trained at {views:.0f} over {arc:.0f} degrees, the scan has {geometry.views} "
                f"over {own:.0f}: the images may be less good than they look",
                stacklevel=4,
            )
    shape = _shape_of(card)
    if shape != frame.shape:
        size, own_size = (" x ".join(map(str, s)) for s in (shape, frame.shape))
        warnings.warn(
            f"grid: the weights were trained on images of {size}, the scan's have {own_size}: the images may be less "
            "good than they look",
            stacklevel=4,
        )
