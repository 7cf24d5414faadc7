"""How images are estimated from the scans of the tables; everything but the trained networks.

Weights are in units of the data whose brightest pixel is about 1, and lambda is proportional to the noise: one
coefficient serves all masks. Posteriors are ``exp(-|A u - z|^2 / sigma^2 - R(u) / T)`` over ``u >= 0``: sigma^2 is the
mean power of a complex sample's noise, T the temperature at which R was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.fourier import ifft_centered
from pyrecon.data.mri import WHITENED, calibration_mask
from pyrecon.data.raw import MRIScan
from pyrecon.models.mri import NLINV, CGSense, reconstruct_mri
from pyrecon.nn.varnet import root_sum_of_squares
from pyrecon.ops import sense_adjoint, sense_normal, tv_prox
from pyrecon.solvers import Chain, ConvergenceWarning, fista, langevin
from pyrecon.train.magnitude_scans import Batch

_CALIBRATION = 10  # lines from which on ESPIRiT gives better maps than Walsh's method
_INNER, _INNER_TOL = 100, 1e-3  # of TV's proximal map


class Prior(Protocol):
    """What is needed of :class:`pyrecon.models.GenerativePrior`."""

    @property
    def temperature(self) -> float: ...

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]: ...


def zero_filled(batch: Batch) -> Tensor:
    """Root sum of squares of the coils' images ``(B, H, W)``, with zeros where nothing was taken."""
    return root_sum_of_squares(ifft_centered(batch.y))


def gradient_of_data(batch: Batch, maps: Tensor) -> Callable[[Tensor], Tensor]:
    """``u -> Re A^H (A u - z)`` of real images ``(B, H, W)`` with A of the maps; the gradient of ``|A u - z|^2 /
    2``."""
    right = sense_adjoint(batch.y, maps, batch.mask).real

    def gradient(u: Tensor) -> Tensor:
        return sense_normal(u.to(maps.dtype), maps, batch.mask).real - right

    return gradient


def tv(batch: Batch, weight: float, iterations: int) -> Tensor:
    """``argmin over u >= 0 of |A u - z|^2 / 2 + weight TV(u)``, with the maps known, by FISTA and the TV kernel."""
    gradient = gradient_of_data(batch, batch.maps)
    dual: Tensor | None = None

    def prox(v: Tensor, step: Tensor) -> Tensor:
        nonlocal dual
        image, dual = tv_prox(
            v, weight * step.flatten(), dual, iterations=_INNER, tol=_INNER_TOL, nonneg=True, return_dual=True
        )
        return image

    # |A| <= 1: F is unitary, masks are 0 and 1, and the maps' root sum of squares is 1.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the table's
        return fista(gradient, prox, zero_filled(batch), step=1.0, max_iter=iterations, tol=1e-4).value


def map_known(batch: Batch, prior: Any, weight: Tensor, iterations: int, unit: Tensor) -> Tensor:
    """``argmin over u >= 0 of |A u - z|^2 / 2 + weight R(u)`` with the maps known and fixed; ``unit`` ``(B,)`` is what
    the data are divided by first, and the image multiplied by at last, ``weight`` ``(B,)``."""
    return _ipalm(batch, prior, weight, iterations, unit, batch.maps)[0]


def joint(
    batch: Batch,
    prior: Any,
    weight: Tensor,
    iterations: int,
    unit: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Image and maps together, without calibration (Algorithm 1), from another estimate of both; see
    :func:`map_known`."""
    return _ipalm(batch, prior, weight, iterations, unit, None, start)


def charbonnier() -> Any:
    """Smoothed total variation, epsilon 1e-3, as published."""
    from pyrecon.solvers import Charbonnier

    return Charbonnier(epsilon=1e-3)


def _ipalm(
    batch: Batch,
    prior: Any,
    weight: Tensor,
    iterations: int,
    unit: Tensor,
    maps: Tensor | None,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    from pyrecon.solvers import ipalm

    k = batch.y / unit.view(-1, 1, 1, 1)
    given: dict[str, Any] = {}
    if start is not None:  # whose maps are smooth already
        given = {"start": (start[0] / unit.view(-1, 1, 1), start[1]), "continuation": 1.0}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="mask: "
        )  # of the tables' own: random points may leave out the centre
        found = ipalm(k, batch.mask, prior, lam=weight, maps=maps, max_iter=iterations, **given)
    image, known = found.value
    return image * unit.view(-1, 1, 1), known


def posterior(
    batch: Batch,
    prior: Prior,
    maps: Tensor,
    start: Tensor,
    sigma: float,
    unit: Tensor,
    *,
    chains: int,
    burn_in: int,
    samples: int,
    thinning: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(B, H, W)`` of the posterior with the maps fixed, by chains of Langevin steps from
    ``start``, all of an image's together.

    ``sigma`` is the noise's root mean square of a complex sample. What the data leave open moves slowly: with the
    learned prior at 64 x 64 and 4-fold lines the mean of one chain of 100 states is 1 dB below that of sixteen, and
    its deviation a third too small.
    """
    found = []
    for i, part in enumerate(batch.parts(1)):
        own = slice(i, i + 1)
        scale, first = unit[own], start[own] / unit[own].view(-1, 1, 1)
        data = gradient_of_data(Batch(part.y / scale, part.mask, part.images, maps[own]), maps[own])
        chain = _langevin(
            data, prior, first.expand(chains, -1, -1), (sigma / float(scale)) ** 2, burn_in + samples * thinning,
            burn_in=burn_in, thinning=thinning, nonneg=True, seed=seed, first_sample=i * chains,
        )  # fmt: skip
        mean = chain.mean.mean(dim=0)
        within, between = chain.std.square() * (samples - 1), (chain.mean - mean).square() * samples
        std = ((within + between).sum(dim=0) / (chains * samples - 1)).sqrt()
        found.append(torch.stack((mean, std)) * scale)
    means, stds = torch.stack(found, dim=1)
    return means, stds


def _langevin(
    data: Callable[[Tensor], Tensor], prior: Prior, start: Tensor, noise: float, iterations: int, **how: Any
) -> Chain:
    """Of ``exp(-|A u - z|^2 / noise - R(u) / T)``, given the gradient of half of the first square."""
    heat = prior.temperature

    def gradient(u: Tensor) -> Tensor:
        return data(u) * (2 / noise) + prior.energy_and_gradient(u)[1] / heat

    # 2 T is the prior's own step: u - grad R + noise of 2 T. Of the data term, of curvature 2 / sigma^2, sigma^2 / 2
    # makes the variance of what is measured too large by a third. Where both act, the curvatures add up.
    step = 1 / (2 / noise + 1 / (2 * heat))
    return langevin(gradient, start, step=step, iterations=iterations, **how)


def cg_sense(batch: Batch, sigma: float) -> Tensor:
    """CG-SENSE with maps from the calibration lines, image by image: ESPIRiT's from ten lines on, Walsh's below; NaN
    where no centre was sampled."""
    found = []
    for part in batch.parts(1):
        mask = part.mask.bool().expand(-1, -1, part.y.shape[2], -1)
        scan = MRIScan((part.y / sigma).numpy(), mask.numpy().copy(), metadata={WHITENED: "known"})
        kind: Literal["espirit", "walsh"] = "espirit" if _lines(part) >= _CALIBRATION else "walsh"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # of few lines the maps fit no image
                image, _ = reconstruct_mri(scan, CGSense(), coil_maps=kind)
            found.append(image.abs() * sigma)
        except (DataError, ValueError):
            found.append(torch.full_like(part.images, torch.nan))
    return torch.cat(found)


def nlinv(batch: Batch, sigma: float) -> Tensor:
    """Image and maps together by nonlinear inversion, to the first step that fits the data to the noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="mask: ")  # as of the joint estimate
        return NLINV().estimate(batch.y / sigma, batch.mask).value[0].abs() * sigma


def _lines(batch: Batch) -> int:
    """Of the smaller side of the calibration region, of a single image."""
    block = calibration_mask(batch.mask, (batch.y.shape[2], batch.y.shape[3]))[0, 0]
    return min(int(block.any(dim=axis).sum()) for axis in (0, 1))
