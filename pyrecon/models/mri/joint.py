"""Joint reconstruction of image and coil maps: no calibration lines, any sampling, a prior of real images by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyrecon._check import check_count, described
from pyrecon.linops import NonCartesianSense
from pyrecon.models.mri.methods import MRIMethod
from pyrecon.models.weights import find_weights, which_weights
from pyrecon.ops import sense_maps_adjoint
from pyrecon.solvers import CenterCrop, Charbonnier, Denoised, Solution, ipalm

# lam / (sigma / peak) of the rule from the noise. TV: within 0.7 dB of the best for noise of 0.3 to 3 % of the peak and
# masks with and without calibration lines. The denoiser's is of the same form and was not searched for. A generative
# prior knows the temperature T of its energies: lam = weight (sigma / peak)^2 / (2 T), 1 at the most probable image.
_NOISE_RULE = {"tv": 0.1, "denoiser": 1.0, "generative": 1.0, "none": 0.0}
# The published rule is a regression on what is rounding in single precision; in exact arithmetic it gives lambda =
# 0.5477 for lambda D + R, with mu = 10 (TV: lambda / 0.003 and 100), which is this for D + lam R.
_PUBLISHED = 0.5477


@dataclass(frozen=True)
class JointMRI(MRIMethod):
    """``argmin over u >= 0 and maps S of 1/2 sum_c |M F(u S_c/|S|) - y_c|^2 + lam R(u) + mu/2 |D S|^2`` by iPALM.

    Image and maps come from the same data, so it needs no calibration lines. The image is real, its phase is in the
    maps; it is on the scale of a root-sum-of-squares image. The data are divided by the brightest pixel of the zero-
    filled one for it, and the result multiplied. Zach, Knoll and Pock, IEEE TMI 42, 2023; the solver is
    :func:`pyrecon.solvers.ipalm`.

    Attributes
    ----------
    prior
        ``"tv"``: smoothed total variation; ``"generative"``: :class:`pyrecon.models.GenerativePrior`, of the central
        pixels; ``"denoiser"``: the network of :class:`pyrecon.models.DEProx`, by its residual; ``"none"``.
    weights
        Of the learned priors: a file, or the name of shipped ones.
    rule
        ``"noise"``: ``lam = weight * sigma / peak``, sigma the standard deviation of a complex sample and peak the
        brightest pixel; of a generative prior ``weight * (sigma / peak)^2 / (2 T)``, with the temperature T that its
        energies were trained at. ``"published"``: the constants that the published regression has in exact arithmetic,
        for lam and mu.
    weight
        Of the rule from the noise; None: 0.1 for TV, 1 for the learned priors.
    lam, mu
        In place of what the rule gives, for data of peak 1.
    retraction, continuation, decay, jitter, seed
        As in :func:`pyrecon.solvers.ipalm`.
    first
        What learned priors begin with: ``"tv"``, the joint estimate with total variation, whose brightest pixel is also
        the unit of their images then; or ``"zero-filled"``, whose errors the maps take up before the prior sees to
        them: 2 to 11 dB lower on four images of 4-fold lines.
    epsilon
        Of TV, in units of the brightest pixel.
    tol
        Stops when a step changes image and coil images by less than ``tol`` relative to them. Without calibration lines
        the way is long and flat: 1e-4 stopped 2 to 4 dB below the end on a measured scan.
    max_iter
        Iterations at most.
    """

    name: ClassVar[str] = "joint"
    needs_maps: ClassVar[bool] = False
    finds_maps: ClassVar[bool] = True
    fills_in: ClassVar[str] = "a real image, whose phase is in smooth maps"
    prior: Literal["tv", "generative", "denoiser", "none"] = "tv"
    weights: str | None = None
    rule: Literal["noise", "published"] = "noise"
    weight: float | None = None
    lam: float | None = None
    mu: float | None = None
    first: Literal["tv", "zero-filled"] = "tv"
    epsilon: float = 1e-3
    retraction: bool = True
    continuation: float = 100.0
    decay: float = 0.95
    jitter: float = 0.0
    seed: int = 0
    tol: float = 1e-5
    max_iter: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "lam", "mu", "jitter", "tol"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: {value}, expected a number >= 0")
        if not self.epsilon > 0 or self.max_iter < 1:
            raise ValueError(f"epsilon, max_iter: {self.epsilon} and {self.max_iter}, expected numbers > 0 and >= 1")
        if not self.continuation >= 1 or not 0 < self.decay <= 1 or self.seed < 0:
            raise ValueError(
                f"continuation, decay, seed: {self.continuation}, {self.decay} and {self.seed}, expected numbers >= 1, "
                "above 0 up to 1, and >= 0"
            )
        if self.weights is not None and self.prior not in ("generative", "denoiser"):
            raise ValueError(f"weights: the prior {self.prior!r} has none; set prior=generative or prior=denoiser")

    @property
    def knows_slices(self) -> bool:
        return self.prior in ("generative", "denoiser")

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        """Images alone, complex like those of the other methods; :meth:`estimate` gives the maps as well."""
        found = self.estimate(kspace, mask)
        return Solution(found.value[0].to(kspace.dtype), found.status, found.iterations, found.residual)

    def estimate(self, kspace: Tensor, mask: Tensor, sigma: float = 1.0) -> Solution[tuple[Tensor, Tensor]]:
        """Images ``(B, H, W)``, real, and maps ``(B, C, H, W)`` of root sum of squares 1.

        Parameters
        ----------
        kspace, mask
            As in :meth:`solve`.
        sigma
            Standard deviation of a complex sample of k-space; whitened data have 1.
        """
        mask = as_lines(mask)
        peak = self._peak(kspace, mask)
        start, continuation = None, self.continuation
        if self._begins_with_tv:
            tv = JointMRI(retraction=self.retraction, epsilon=self.epsilon, tol=self.tol, max_iter=self.max_iter)
            image, maps = tv.estimate(kspace, mask, sigma).value
            top = image.flatten(1).amax(dim=1)
            peak = torch.where((top > 0) & top.isfinite(), top, peak)
            start, continuation = (image / peak[:, None, None], maps), 1.0
        lam, mu = self.parameters(sigma / peak)
        found = ipalm(
            kspace / peak[:, None, None, None],
            mask,
            self.image_prior,
            lam=lam.to(kspace.real.dtype),
            mu=mu,
            start=start,
            continuation=continuation,
            decay=self.decay,
            retraction=self.retraction,
            jitter=self.jitter,
            seed=self.seed,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        image, maps = found.value
        return replace(found, value=(image * peak[:, None, None], maps))

    def parameters(self, noise: Tensor) -> tuple[Tensor, float]:
        """lam ``(B,)`` and mu for data of peak 1 whose complex samples have the noise ``(B,)``."""
        if self.rule == "noise":
            weight = _NOISE_RULE[self.prior] if self.weight is None else self.weight
            lam, mu = weight * noise, 0.1
            if self.prior == "generative":
                lam = weight * noise.square() / (2 * self.image_prior.prior.temperature)
        else:
            scale = 0.003 / _PUBLISHED if self.prior == "tv" else 1 / _PUBLISHED
            lam, mu = torch.full_like(noise, scale), (100.0 if self.prior == "tv" else 10.0) * scale
        if self.lam is not None:
            lam = torch.full_like(noise, self.lam)
        return lam, mu if self.mu is None else self.mu

    def story(self, kspace: Tensor, mask: Tensor) -> dict[str, Any]:
        """What a report says of the settings that the data gave: lam, mu and sigma for images of peak 1."""
        noise = 1 / self._peak(kspace, mask)
        lam, mu = self.parameters(noise)
        middle = [float(v.median()) for v in (lam, noise)]
        if self._begins_with_tv:
            return {"start": "total variation, whose brightest pixel is the unit", "mu": f"{mu:.3g}"}
        return {"lam": f"{middle[0]:.3g} (median)", "mu": f"{mu:.3g}", "sigma": f"{middle[1]:.3g} of the peak (median)"}

    @property
    def _begins_with_tv(self) -> bool:
        return self.first == "tv" and self.prior in ("generative", "denoiser")

    @cached_property
    def image_prior(self) -> Any:
        """R, loaded once."""
        if self.prior == "none":
            return None
        if self.prior == "tv":
            return Charbonnier(self.epsilon)
        if self.prior == "denoiser":
            from pyrecon.models.deq import DEProx, for_inference

            model = DEProx.load(find_weights(self.weights or "de-prox-mri"))
            for_inference(model)
            return Denoised(lambda u: _real(model.denoised(u.to(u.dtype.to_complex()))))
        from pyrecon.models import GenerativePrior

        if self.weights is None:
            raise which_weights("generative", "mri", "pyrecon train generative")
        prior: Any = GenerativePrior.from_pretrained(self.weights)
        return CenterCrop(prior, (prior.size, prior.size))

    @staticmethod
    def _peak(kspace: Tensor, mask: Tensor) -> Tensor:
        """The brightest pixel ``(B,)`` of the zero-filled root sum of squares, 1 where there is none."""
        ones = kspace.new_ones(kspace.shape[0], *kspace.shape[2:])
        coils = sense_maps_adjoint(kspace, ones, mask)
        peak = torch.linalg.vector_norm(coils, dim=1).amax(dim=(1, 2))
        return torch.where((peak > 0) & peak.isfinite(), peak, 1.0)


class CoilwiseTransform:
    """A :class:`~pyrecon.linops.NonCartesianSense` with one map of ones as the transform of single coils: what
    :func:`pyrecon.solvers.ipalm` takes in place of a mask.

    ``bound`` is the largest eigenvalue of its ``gram`` by power iteration, with a margin of 5 %.

    Parameters
    ----------
    operator
        With maps ``(1, 1, H, W)`` of ones.
    iterations
        Of the power iteration.
    """

    def __init__(self, operator: NonCartesianSense, *, iterations: int = 30) -> None:
        if not isinstance(operator, NonCartesianSense):
            raise TypeError(f"operator: {described(operator)}, expected a NonCartesianSense")
        if operator.maps.shape[:2] != (1, 1) or bool((operator.maps != 1).any()):
            raise ValueError("operator: expected one map of ones, the maps are what is to be found")
        self.operator = operator
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(operator.maps.shape[1:], dtype=operator.maps.dtype, generator=generator)
        largest = torch.ones(())
        for _ in range(check_count("iterations", iterations)):
            x = operator.gram(x / torch.linalg.vector_norm(x))
            largest = torch.linalg.vector_norm(x)
        self.bound = 1.05 * float(largest)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Coil images ``(B, C, H, W)`` of data ``(B, C, K)``."""
        return self.operator.adjoint(kspace.flatten(0, 1)[:, None]).view(*kspace.shape[:2], *self.operator.domain_shape)

    def gram(self, coils: Tensor) -> Tensor:
        """``F^H W^2 F`` of coil images ``(B, C, H, W)``."""
        return self.operator.gram(coils.flatten(0, 1)).view_as(coils)


def as_lines(mask: Tensor) -> Tensor:
    """The mask with size 1 along an axis along which it is constant: a looked-for 1-D mask, on a CPU."""
    if mask.is_cuda:
        return mask
    for axis in (-2, -1):
        if mask.shape[axis] > 1 and bool((mask == mask.narrow(axis, 0, 1)).all()):
            mask = mask.narrow(axis, 0, 1)
    return mask


def _real(image: Tensor) -> Tensor:
    return image.real if image.is_complex() else image
