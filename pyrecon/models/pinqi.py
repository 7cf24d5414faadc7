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
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import check_count, check_flag, check_number
from pyrecon.linops import LinearOperator
from pyrecon.models._map_network import Iterates, MapNetwork, as_channels, options_of
from pyrecon.models.data_consistency import DataConsistency
from pyrecon.nn import ConditionedUNet
from pyrecon.ops import SignalModel, fit_voxels

__all__ = ["PINQI", "Iterates"]

_BETA = 5.0  # of the softplus that keeps weights positive
_RATE_FLOOR = 0.2  # rates that P says are above -0.2 / s


class PINQI(MapNetwork):
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
        Of P and Y; the defaults are the published networks of 2,235,308 and 597,323 weights for five images. Group norm
        has half as many groups as the first resolution has channels, which are the published 16 and 8.
    start, scale
        P says ``start + 10 scale tanh(network)``: (rate in 1/s, real and imaginary part of M0).
    bounds
        Of the fitted rate, 1/s.
    weights
        First (l_q, l_p, l_y), for every iteration the same or ``iterations`` of them; learned, positive.
    image_net, parameter_net, fit, repeat
        False, the paper's ablations: without Y (and l_y); without P (and l_p), fits have no prior; P's suggestion in
        the place of the fit (and of l_p); both networks applied in the first iteration alone.
    rtol, max_iter
        Of the linear system.
    first_iterations
        Of conjugate gradients for the first images, from ``A^H k``.
    """

    network: ClassVar[str] = "pinqi"
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
        parameter_net: bool = True,
        fit: bool = True,
        repeat: bool = True,
        rtol: float = 1e-4,
        max_iter: int = 50,
        first_iterations: int = 2,
    ) -> None:
        super().__init__(images, model, {
            "iterations": iterations, "widths": list(widths), "image_widths": list(image_widths),
            "start": list(start), "scale": list(scale), "bounds": list(bounds), "image_net": image_net,
            "parameter_net": parameter_net, "fit": fit, "repeat": repeat, "rtol": rtol, "max_iter": max_iter,
            "first_iterations": first_iterations,
        })  # fmt: skip
        self.iterations = check_count("iterations", iterations)
        flags = {"image_net": image_net, "parameter_net": parameter_net, "fit": fit, "repeat": repeat}
        for name, flag in flags.items():
            check_flag(name, flag)
        if not (parameter_net or fit):
            raise ValueError("parameter_net, fit: both false, which leaves nothing that says parameters")
        self.fitted, self.repeat, self.bounds = fit, repeat, bounds
        self.first_iterations = check_count("first_iterations", first_iterations, 0)
        self.parameter_net: ConditionedUNet | None = None
        self.image_net: ConditionedUNet | None = None
        if parameter_net:
            self.parameter_net = ConditionedUNet(
                2 * images + 1, 3, widths, groups=max(1, widths[0] // 2), conditioned=True
            )
        if image_net:
            self.image_net = image_unet(image_widths)
        self.consistency = DataConsistency(rtol=rtol, max_iter=max_iter)
        for name, three in (("start", start), ("scale", scale)):
            known = [check_number(name, value, -math.inf) for value in three]
            self.register_buffer(name, torch.tensor(known).view(1, 3, 1, 1))
        table = weights if isinstance(weights[0], tuple) else (weights,) * iterations
        if len(table) != iterations:
            raise ValueError(f"weights: {len(table)} triples, but {iterations} iterations")
        numbers = [[check_number("weights", w, above=True) for w in three] for three in table]
        self.raw_weights = nn.Parameter(unweighted(torch.tensor(numbers)))

    @property
    def weights(self) -> Tensor:
        """``(iterations, 3)``: l_q, l_p and l_y of every iteration."""
        return weighted(self.raw_weights)

    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """``k`` data of the physics, whose images are ``(B, T, H, W)``; ``times`` ``(T,)`` as for the model, or
        ``(B|1, T)``."""
        _, spread = self._begin(k, physics, times)
        y = self.first(k, physics, self.first_iterations)
        found = Iterates()
        suggestion = self.suggest(y, 0.0) if self.parameter_net is not None else None
        begun = suggestion
        if begun is None:
            begun = fit_voxels(self.model, y, spread, bounds=self.bounds).value
        found.parameters.append(begun)
        improved: Tensor | None = None
        for i, (data, prior, image) in enumerate(self.weights):
            level = (i + 1) / self.iterations
            terms = [(data, self.signal(found.parameters[-1], spread))]
            if self.image_net is not None:
                improved = self.improve(y, level) if improved is None or self.repeat else improved
                terms.append((image, improved))
            y = self.consistency(k, physics, terms, x0=y.detach())
            if self.parameter_net is not None and (i == 0 or self.repeat):
                suggestion = self.suggest(y, level + 1)
            found.images.append(y)
            found.suggested.append((suggestion, improved))
            if not self.fitted and suggestion is not None:
                found.parameters.append(suggestion)
                continue
            weight = 0.0 if suggestion is None else prior.expand(len(y))
            fit = fit_voxels(self.model, y, spread, prior=suggestion, weight=weight, bounds=self.bounds)
            found.fits.append(fit)
            found.parameters.append(fit.value)
        return found

    def suggest(self, images: Tensor, level: float | Tensor) -> Tensor:
        """P: parameters ``(B, 3, H, W)`` from images ``(B, T, H, W)``; ``level`` tells the iteration, 0 before the
        first and ``1 + i / iterations`` after the i-th."""
        if self.parameter_net is None:
            raise ValueError("parameter_net: this model has none")
        x = as_channels(images)
        told = _told(level, x)
        return ranged(self.parameter_net(_tagged(x, told), told), self.start, self.scale)

    def improve(self, images: Tensor, level: float | Tensor) -> Tensor:
        """Y: images without the artefacts; ``level`` is ``i / iterations``."""
        if self.image_net is None:
            raise ValueError("image_net: this model has none")
        return improved_by(self.image_net, images, level)

    @classmethod
    def _configured(cls, config: dict[str, Any]) -> dict[str, Any]:
        return options_of(
            config, counts=("iterations", "max_iter", "first_iterations"), widths=("widths", "image_widths"),
            numbers={"start": 3, "scale": 3, "bounds": 2},
        )  # fmt: skip


# --- what the unrolled rivals have of it -----------------------------------------------------------------------------
def image_unet(widths: tuple[int, ...]) -> ConditionedUNet:
    """Y."""
    return ConditionedUNet(3, 2, widths, groups=max(1, widths[0] // 2), temporal=True)


def improved_by(net: ConditionedUNet, images: Tensor, level: float | Tensor) -> Tensor:
    """Images and what Y adds to them."""
    x = torch.view_as_real(images.resolve_conj()).movedim(-1, 1)
    change = net(_tagged(x, _told(level, x)))
    return images + torch.view_as_complex(change.movedim(1, -1).contiguous())


def ranged(x: Tensor, start: Tensor, scale: Tensor) -> Tensor:
    """Parameters of a network's numbers: around ``start``, up to ten times ``scale`` away, rates above -0.2 / s."""
    found = start + 10 * scale * torch.tanh(x)
    rate = F.softplus(found[:, :1] + _RATE_FLOOR, beta=_BETA) - _RATE_FLOOR
    return torch.cat((rate, found[:, 1:]), dim=1)


def weighted(raw: Tensor) -> Tensor:
    """Positive weights of any numbers, ``log(1 + exp(5 x)) / 5``."""
    return F.softplus(raw, beta=_BETA)


def unweighted(weights: Tensor) -> Tensor:
    """The inverse of :func:`weighted`; large weights are their own."""
    return weights + torch.log(-torch.expm1(-_BETA * weights)) / _BETA


def _told(level: float | Tensor, x: Tensor) -> Tensor:
    """``(B,)``."""
    known = torch.as_tensor(level, dtype=x.dtype, device=x.device)
    return known.expand(len(x)) if known.dim() == 0 else known


def _tagged(x: Tensor, level: Tensor) -> Tensor:
    """With a channel more, that is ``level`` everywhere."""
    channel = level.view(-1, *[1] * (x.dim() - 1)).expand(len(x), 1, *x.shape[2:])
    return torch.cat((x, channel), dim=1)
