"""The posterior of an image: its energy and gradient for a scan, held coil maps and a prior.

The image u is real and not negative, the phase goes into the maps. With whitened data z, whose complex samples have
E|n|^2 = 1 (variance 1/2 in each part), and u in units in which it is about 1 at its brightest, ``peak`` of the noise::

    H(u) = |peak A u - z|^2 + weight R(u),  u >= 0        A u = mask F(maps u)

|.|^2 and not half of it: that is the likelihood of such noise. R is minus the logarithm of a prior, up to ``weight``.
Pixels without maps are no part of the problem: they are zero in the prior and in the result.

Sources: Zach, Knoll and Pock, Stable deep MRI reconstruction using generative priors, IEEE Trans Med Imaging 42:3817
(2023), sections 2.5 and 2.6.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import check_tuple
from pyrecon._errors import DataError
from pyrecon.data.mri import calibration_region
from pyrecon.data.partial_fourier import measured_parts, told
from pyrecon.data.planes import expect_slices
from pyrecon.data.raw import MRIScan
from pyrecon.linops import Sense
from pyrecon.models.mri.joint import JointMRI
from pyrecon.models.mri.methods import count_samples
from pyrecon.models.mri.reconstruct import Prepared, prepare, with_coil_maps
from pyrecon.solvers import Draw, PreconditionedULA, Status, conjugate_gradient, largest_curvature


def held_maps(
    scan: MRIScan,
    maps: Tensor | None,
    calibration: int,
    coils: int | None,
    device: torch.device,
    details: dict[str, Any],
    *,
    joint: bool = False,
) -> Prepared:
    """The scan in units of its noise, with maps that carry the phase of the image: what sampling holds fixed.

    They are estimated from the calibration lines; with ``joint``, or where there are none, together with an image by
    :class:`~pyrecon.models.mri.JointMRI`, as published.
    """
    expect_slices(scan, "sampling", "an image without intervals is what pyrecon reconstruct makes of them")
    data = prepare(scan, maps, True, coils, details)
    partial = told(measured_parts(data.scan.mask, (data.scan.kspace.shape[2], data.scan.kspace.shape[3])))
    details |= {"partial_fourier": f"{partial}: a real image of the phase that is held"} if partial else {}
    if joint and maps is None:
        return _joint_maps(data, device, details)
    try:
        data = with_coil_maps(data, "espirit", calibration, device, details)
    except DataError:
        if maps is not None or data.scan.kspace.shape[1] == 1:
            raise
        return _joint_maps(data, device, details)
    turned = []
    for part in (slice(i, i + 1) for i in range(len(data.scan.kspace))):
        kspace, mask = data.tensors(part)
        here = data.maps_of(part)
        shape = (kspace.shape[2], kspace.shape[3])
        rows, columns = calibration_region(mask.numpy(), shape)
        window = torch.zeros(shape)
        if rows.stop > rows.start and columns.stop > columns.start:
            sides = [torch.hann_window(r.stop - r.start + 2, periodic=False)[1:-1] for r in (rows, columns)]
            window[rows, columns] = sides[0][:, None] * sides[1]
        else:
            warnings.warn(
                "the centre of k-space is not sampled: the phase is that of the zero-filled image", stacklevel=3
            )
            window[:] = 1
        image = Sense(here, torch.ones(1, 1, 1, 1)).adjoint(kspace * window)
        size = image.abs()
        turned.append(here * torch.where(size > 0, image / size, 1)[:, None])
    details["phase"] = "of the fully sampled centre, held"
    return Prepared(data.scan, data.noise_known, data.scale, torch.cat(turned), data.gain)


def _joint_maps(data: Prepared, device: torch.device, details: dict[str, Any]) -> Prepared:
    """Of an image with a small total variation; its phase is in the maps."""
    method, found = JointMRI(), []
    for part in data.parts():
        kspace, mask = (tensor.to(device) for tensor in data.tensors(part))
        found.append(method.estimate(kspace, mask).value[1].cpu())
    details["maps"] = "estimated together with an image (joint)"
    details["phase"] = "in the maps, held"
    return replace(data, maps=torch.cat(found))


class Posterior:
    """H and its gradient for one slice, in units of the image's peak; chains are the batch.

    H is counted from a least-squares image u_0, as ``peak^2 <d, G d> + <d, g_0>`` with d = u - u_0 and G = Re A^H A:
    differences of energies are then good to single precision of what differs, not of all the energy of the data.

    Attributes
    ----------
    peak
        Largest pixel of the zero-filled image, in units of the noise.
    weight
        Of the prior.
    inside
        ``(H, W)`` bool: pixels with maps.
    """

    def __init__(self, kspace: Tensor, maps: Tensor, mask: Tensor, prior: Any, weight: float | None) -> None:
        self.operator, self.mask, self.prior = Sense(maps, mask), mask, prior
        self.kspace = kspace * mask
        self.inside = (maps != 0).any(1)[0]
        back = self.operator.adjoint(self.kspace).real
        # Sampled densely or not, the centre holds the peak: that of the zero-filled image.
        self.peak = float(back.abs().max())
        if not self.peak > 0:
            raise DataError("kspace: nothing of the object is in the samples, there is no posterior to sample")
        self.data_curvature = 2 * self.peak**2
        temperature = getattr(prior, "temperature", None)
        self.weight = (
            weight if weight is not None else 0.2 * self.peak if temperature is None else 1 / float(temperature)
        )
        self.noise = (kspace.shape[1] * count_samples(mask, kspace)).sqrt()
        self._outside = (~self.inside).to(back.dtype)
        linear = 2 * self.peak * back * self.inside
        # Not to convergence: what is nowhere in the data stays small. Both tolerances 0 warn of nothing.
        self.reference = torch.zeros_like(back)
        self.reference = self._solved(linear, 1e-3 * self.data_curvature, rtol=0.0, max_iter=40) * self.inside
        self.slope = self.gram(self.reference) - linear

    def gram(self, u: Tensor) -> Tensor:
        """``2 peak^2 Re A^H A u``; outside of the maps as if each pixel were sampled: a chain must not wander off."""
        normal = self.operator.gram(u.to(torch.complex64)).real
        return self.data_curvature * torch.where(self.inside, normal, u)

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """H, ``(B,)`` float64, and its gradient."""
        d = u - self.reference
        quadratic = self.gram(d)
        energy = (d.double() * (quadratic.double() / 2 + self.slope.double())).flatten(1).sum(1)
        if self.weight == 0:
            return energy, quadratic + self.slope
        own, gradient = self._prior(u)
        return energy + self.weight * own.double(), quadratic + self.slope + self.weight * gradient

    def gradient(self, u: Tensor) -> Tensor:
        """Of H."""
        return self.energy_and_gradient(u)[1]

    def _prior(self, u: Tensor) -> tuple[Tensor, Tensor]:
        both = self.prior.energy_and_gradient(u * self.inside)
        check_tuple("prior: energy_and_gradient", both, "energy", "gradient")
        energy, gradient = both
        if energy.shape != (len(u),) or gradient.shape != u.shape:
            raise ValueError(
                f"prior: energy_and_gradient returned shapes {tuple(energy.shape)} and {tuple(gradient.shape)}, "
                f"expected (B,) = ({len(u)},) and {tuple(u.shape)}"
            )
        return energy.detach(), gradient.detach().to(u.dtype) * self.inside

    def preconditioned(self, rtol: float, seed: int) -> PreconditionedULA:
        """A sampler whose P^-1 is that of the data and ``weight`` times the prior's ``metric``, where it has one.

        Else it is that of the data and 1 / s^2, the prior's largest curvature, so that directions without data are as
        stiff as those with them.
        """
        place = self.reference.clamp(min=0)
        prior = 0.0
        metric = getattr(self.prior, "metric", None) if self.weight else None
        if metric is None and self.weight:
            prior = float(largest_curvature(lambda u: self.weight * self._prior(u)[1], place, seed=seed))
        floor = max(prior, 1e-6 * self.data_curvature)
        of_data, of_floor, of_prior = (float(c**0.5) for c in (self.data_curvature, floor, self.weight))

        def perturb(draw: Draw) -> Tensor:
            data = self.operator.adjoint(draw(*self.kspace.shape[1:], dtype=torch.complex64)).real
            # Pixels outside are as if sampled: one more white number each.
            eta: Tensor = of_data * torch.where(self.inside, data, draw(*draw.like.shape[1:]))
            eta += of_floor * draw(*draw.like.shape[1:])
            if metric is not None:
                eta += of_prior * self.inside * self.prior.perturbation(draw)
            return eta

        return PreconditionedULA(lambda v: self._solved(v, floor, rtol=rtol, max_iter=200), perturb)

    def _solved(self, v: Tensor, floor: float, rtol: float, max_iter: int) -> Tensor:
        metric = getattr(self.prior, "metric", None) if self.weight else None

        def precision(u: Tensor) -> Tensor:
            found = self.gram(u) + floor * u
            return found if metric is None else found + self.weight * self.inside * metric(u * self.inside)

        # A chain that is lost stays so, and is told of once, not by every solve.
        fine = v.isfinite().flatten(1).all(1)[:, None, None]
        solution = conjugate_gradient(precision, torch.where(fine, v, 0), rtol=rtol, max_iter=max_iter)
        fine = fine & (solution.status != Status.NONFINITE)[:, None, None]
        return torch.where(fine, solution.value, torch.nan)

    def residual(self, u: Tensor) -> Tensor:
        """``|A u - z|`` in units of the noise, of an image ``(1, H, W)`` or ``(H, W)``."""
        image = (self.peak * u).reshape(1, *u.shape[-2:]).to(torch.complex64).to(self.kspace.device)
        misfit: Tensor = (self.operator(image) - self.kspace) * self.mask
        size: Tensor = torch.linalg.vector_norm(misfit.flatten(1), dim=1)
        return size

    def starts(self, chains: int, seed: int, nonneg: bool) -> Tensor:
        """From the least-squares image to uniform noise, so that chains which agree have forgotten where they began."""
        noise = torch.rand((chains, *self.reference.shape[1:]), generator=torch.Generator().manual_seed(seed))
        share = torch.linspace(0, 1, max(chains, 2))[:chains, None, None].to(self.reference)
        start = (1 - share) * self.reference + share * noise.to(self.reference) * self.inside
        return start.clamp(min=0) if nonneg else start
