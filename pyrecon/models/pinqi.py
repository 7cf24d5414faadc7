r"""PINQI: parameter maps straight from undersampled data, by half-quadratic splitting with learned regularisation.

With the signal q(p) of parameters p and A the physics of a series of images, every iteration solves

    y = argmin |A y - k|^2 + l_q |y - q(p)|^2 + l_y |y - Y(y')|^2        (:class:`~pyrecon.models.DataConsistency`)
    p = argmin |q(p) - y|^2 + l_p |p - P(y)|^2                           (:func:`pyrecon.ops.fit_voxels`)

with networks Y on images and P from images to parameters, told how far the iteration is and shared by all of them, and
three weights of its own each. Both minima have exact gradients.

F. F. Zimmermann, A. Kofler, P. Schuenke, C. Kolbitsch, PINQI: An end-to-end physics-informed approach to learned
quantitative MRI reconstruction, 2023, eqs. 11 to 13. Where the text is silent the numbers are those of the authors'
program: the first images, the range of P's output, what the networks are told of the iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import COMPLEX, check_count, check_dtype, check_flag, check_number, check_shape
from pyrecon._errors import DataError
from pyrecon.linops import LinearOperator
from pyrecon.models.data_consistency import DataConsistency
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    filled,
    find_weights,
    read_header,
    whole_number,
    write_weights,
)
from pyrecon.nn import ConditionedUNet
from pyrecon.ops import SaturationRecovery, SignalModel, VoxelFit, fit_voxels
from pyrecon.solvers import conjugate_gradient

_BETA = 5.0  # of the softplus that keeps weights positive
_RATE_FLOOR = 0.2  # rates that P says are above -0.2 / s
_MOST_LEVELS = 12


@dataclass(frozen=True)
class Iterates:
    """Of all iterations in turn.

    Attributes
    ----------
    parameters
        ``(B, 3, H, W)``: rate (1/s), real and imaginary part of M0; first those of the network from the first images.
    images
        ``(B, T, H, W)`` complex.
    suggested
        Parameters that P suggested, images that Y did.
    fits
        The fit of every iteration.
    """

    parameters: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    suggested: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    fits: list[VoxelFit] = field(default_factory=list)


class PINQI(nn.Module):
    """Rate and M0 of series of complex images from multi-coil data.

    Parameters
    ----------
    images
        T, images of a series.
    model
        Of one linear factor M0: saturation recovery, echoes, flip angles.
    iterations
        Of both minima.
    widths, image_widths
        Of P and Y; the defaults are the published networks of 2,235,308 and 597,323 weights for five images.
    start, scale
        P says ``start + 10 scale tanh(network)``: (rate in 1/s, real and imaginary part of M0).
    bounds
        Of the fitted rate, 1/s.
    weights
        First (l_q, l_p, l_y), for every iteration the same or ``iterations`` of them; learned, positive.
    image_net, fit, repeat
        False, the paper's ablations: without Y (and l_y); P's suggestion in the place of the fit (and of l_p); both
        networks applied in the first iteration alone.
    rtol, max_iter
        Of the linear system.
    first_iterations
        Of conjugate gradients for the first images, from ``A^H k``.

    Attributes
    ----------
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    """

    system: ClassVar[str] = "pinqi"
    card: Card | None = None
    start: Tensor
    scale: Tensor

    def __init__(
        self,
        images: int = 5,
        *,
        model: SignalModel | None = None,
        iterations: int = 5,
        widths: tuple[int, ...] = (32, 64, 96, 128, 128),
        image_widths: tuple[int, ...] = (16, 32, 48, 64, 64),
        start: tuple[float, float, float] = (0.8, 0.9, 0.0),
        scale: tuple[float, float, float] = (0.6, 0.2, 0.1),
        bounds: tuple[float, float] = (0.05, 20.0),
        weights: tuple[float, float, float] | tuple[tuple[float, float, float], ...] = (0.1, 3.0, 0.1),
        image_net: bool = True,
        fit: bool = True,
        repeat: bool = True,
        rtol: float = 1e-4,
        max_iter: int = 50,
        first_iterations: int = 2,
    ) -> None:
        super().__init__()
        self._options = {
            "images": images, "iterations": iterations, "widths": list(widths), "image_widths": list(image_widths),
            "start": list(start), "scale": list(scale), "bounds": list(bounds), "image_net": image_net, "fit": fit,
            "repeat": repeat, "rtol": rtol, "max_iter": max_iter, "first_iterations": first_iterations,
        }  # fmt: skip
        self.images, self.iterations = check_count("images", images, 2), check_count("iterations", iterations)
        self.model = SaturationRecovery() if model is None else model
        if not isinstance(self.model, SignalModel) or self.model.linear != 1 or self.model.polarity:
            raise ValueError(f"model: {self.model!r}, expected a SignalModel of complex images with one factor M0")
        for name, flag in (("image_net", image_net), ("fit", fit), ("repeat", repeat)):
            check_flag(name, flag)
        self.fitted, self.repeat, self.bounds = fit, repeat, bounds
        self.first_iterations = check_count("first_iterations", first_iterations, 0)
        self.parameter_net = ConditionedUNet(2 * images + 1, 3, widths, conditioned=True)
        self.image_net = ConditionedUNet(3, 2, image_widths, groups=8, temporal=True) if image_net else None
        self.consistency = DataConsistency(rtol=rtol, max_iter=max_iter)
        for name, three in (("start", start), ("scale", scale)):
            numbers = [check_number(name, value, -math.inf) for value in three]
            self.register_buffer(name, torch.tensor(numbers).view(1, 3, 1, 1))
        table = weights if isinstance(weights[0], tuple) else (weights,) * iterations
        if len(table) != iterations:
            raise ValueError(f"weights: {len(table)} triples, but {iterations} iterations")
        positive = torch.tensor([[check_number("weights", w, above=True) for w in three] for three in table])
        # The inverse of softplus; large weights are their own.
        self.raw_weights = nn.Parameter(positive + torch.log(-torch.expm1(-_BETA * positive)) / _BETA)

    @property
    def weights(self) -> Tensor:
        """``(iterations, 3)``: l_q, l_p and l_y of every iteration."""
        return F.softplus(self.raw_weights, beta=_BETA)

    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """``k`` data of the physics, whose images are ``(B, T, H, W)``; ``times`` ``(T,)`` as for the model, or
        ``(B|1, T)``."""
        right = physics.adjoint(k)
        check_dtype("A^H k", right, COMPLEX)
        check_shape("A^H k", right, (None, self.images, None, None), "(B, T, H, W)")
        if times.dim() not in (1, 2) or times.shape[-1] != self.images:
            raise ValueError(f"times: shape {tuple(times.shape)}, expected (T,) or (B|1, T) for {self.images} images")
        spread = times if times.dim() == 1 else times.view(*times.shape, 1, 1)
        y = self.first(k, physics)
        found = Iterates()
        suggestion = self.suggest(y, 0.0)
        found.parameters.append(suggestion)
        improved: Tensor | None = None
        for i, (data, prior, image) in enumerate(self.weights):
            level = (i + 1) / self.iterations
            terms = [(data, self.signal(found.parameters[-1], spread))]
            if self.image_net is not None:
                improved = self.improve(y, level) if improved is None or self.repeat else improved
                terms.append((image, improved))
            y = self.consistency(k, physics, terms, x0=y.detach())
            suggestion = self.suggest(y, level + 1) if i == 0 or self.repeat else suggestion
            found.images.append(y)
            found.suggested.append((suggestion, improved))
            if not self.fitted:
                found.parameters.append(suggestion)
                continue
            fit = fit_voxels(self.model, y, spread, prior=suggestion, weight=prior.expand(len(y)), bounds=self.bounds)
            found.fits.append(fit)
            found.parameters.append(fit.value)
        return found

    def signal(self, parameters: Tensor, times: Tensor) -> Tensor:
        """q(p): images ``(B, T, H, W)`` of parameters ``(B, 3, H, W)``."""
        factor = torch.complex(parameters[:, 1], parameters[:, 2])
        axes = times.view(1, -1, 1, 1) if times.dim() == 1 else times
        return self.model.signal(parameters[:, 0], (factor,), axes.to(parameters))

    def suggest(self, images: Tensor, level: float | Tensor) -> Tensor:
        """P: parameters ``(B, 3, H, W)`` from images ``(B, T, H, W)``; ``level`` tells the iteration, 0 before the
        first and ``1 + i / iterations`` after the i-th."""
        x = torch.view_as_real(images.resolve_conj()).movedim(-1, 1).flatten(1, 2)
        told = _told(level, x)
        found = self.start + 10 * self.scale * torch.tanh(self.parameter_net(_tagged(x, told), told))
        rate = F.softplus(found[:, :1] + _RATE_FLOOR, beta=_BETA) - _RATE_FLOOR
        return torch.cat((rate, found[:, 1:]), dim=1)

    def improve(self, images: Tensor, level: float | Tensor) -> Tensor:
        """Y: images without the artefacts; ``level`` is ``i / iterations``."""
        if self.image_net is None:
            raise ValueError("image_net: this model has none")
        x = torch.view_as_real(images.resolve_conj()).movedim(-1, 1)
        change = self.image_net(_tagged(x, _told(level, x)))
        return images + torch.view_as_complex(change.movedim(1, -1).contiguous())

    def first(self, k: Tensor, physics: LinearOperator) -> Tensor:
        """What the iteration begins with, without gradients: some conjugate gradients from ``A^H k``."""
        with torch.no_grad():
            right = physics.adjoint(k)
            return conjugate_gradient(physics.gram, right, x0=right, rtol=0.0, max_iter=self.first_iterations).value

    # --- weights ---
    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        if type(self.model) is not SaturationRecovery:
            raise ValueError(f"model: {self.model!r}; files are of saturation recovery alone so far")
        write_weights(path, self.system, self._options, self.state_dict(), self.card)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that :meth:`save` wrote, in evaluation mode; DataError where the file is none."""
        header = read_header(path)
        if header.model != cls.system:
            raise DataError(f"{path}: holds weights of {header.model!r}, expected {cls.system!r}")
        try:
            options = dict(header.config)
            for name in ("images", "iterations", "max_iter", "first_iterations"):
                options[name] = whole_number(options[name])
            for name in ("widths", "image_widths"):
                options[name] = tuple(whole_number(n) for n in options[name])
                if not 2 <= len(options[name]) <= _MOST_LEVELS:
                    raise ValueError(f"{name}: {len(options[name])} resolutions")
            for name in ("start", "scale", "bounds"):
                options[name] = tuple(float(v) for v in options[name])
            with torch.device("meta"):
                model = cls(**options)
            header.expect_count(len(model.state_dict()))
            model.card = None if header.card is None else Card.from_dict(header.card)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        return filled(model, header)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))


def _told(level: float | Tensor, x: Tensor) -> Tensor:
    """``(B,)``."""
    known = torch.as_tensor(level, dtype=x.dtype, device=x.device)
    return known.expand(len(x)) if known.dim() == 0 else known


def _tagged(x: Tensor, level: Tensor) -> Tensor:
    """With a channel more, that is ``level`` everywhere."""
    channel = level.view(-1, *[1] * (x.dim() - 1)).expand(len(x), 1, *x.shape[2:])
    return torch.cat((x, channel), dim=1)
