"""The methods: from whitened k-space, coil maps and a mask to images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyrecon._check import check_count
from pyrecon._errors import DataError
from pyrecon._threads import one_thread_if_small
from pyrecon.data.fourier import ifft_centered
from pyrecon.data.mri import calibration_mask
from pyrecon.linops import Sense, Wavelet
from pyrecon.models.method import Method
from pyrecon.ops import soft_threshold, tv_prox
from pyrecon.ops._variation import MAX_ITERATIONS
from pyrecon.solvers import Solution, Status, conjugate_gradient, fista


class MRIMethod(Method):
    """A reconstruction of whitened k-space.

    Attributes
    ----------
    needs_maps
        Whether it needs coil maps; where not, it gets None.
    finds_maps
        Whether it estimates them itself: :meth:`estimate` then gives images and maps.
    fills_in
        By what it fills in the side of k-space that partial Fourier leaves out, as reports say it.
    completes
        What homodyne and POCS may act on: its images, which are complex, or the coils' k-space before it.
    """

    needs_maps: ClassVar[bool] = True
    finds_maps: ClassVar[bool] = False
    fills_in: ClassVar[str] = "means of its own"
    completes: ClassVar[Literal["", "images", "coils"]] = ""

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        """Images ``(B, H, W)`` from k-space ``(B, C, H, W)`` complex, maps ``(B | 1, C, H, W)`` with a root sum of
        squares of 1 (or 0: no object there), and a mask ``(B | 1, 1, H | 1, W | 1)``."""
        raise NotImplementedError(f"{type(self).__name__}: a method defines solve")

    def estimate(self, kspace: Tensor, mask: Tensor) -> Solution[tuple[Tensor, Tensor]]:
        """Images and maps ``(B, C, H, W)``, of a method that finds maps."""
        raise NotImplementedError(f"{type(self).__name__}: a method that finds maps defines estimate")

    def story(self, kspace: Tensor, mask: Tensor) -> dict[str, Any]:
        """What a report says of settings that come from the data."""
        return {}

    @property
    def knows_slices(self) -> bool:
        """Whether it was trained on slices, and takes nothing else for images."""
        return False

    def fitted(self, kspace: Tensor, mask: Tensor) -> MRIMethod:
        """The method with the settings that it takes from all of the data, not from a part of them."""
        return self


@dataclass(frozen=True)
class ZeroFilled(MRIMethod):
    """Root sum of squares of the coil images, unsampled k-space left zero: no maps, no noise model, aliasing stays.

    Roemer et al., Magn Reson Med 16:192 (1990).
    """

    name: ClassVar[str] = "zero-filled RSS"
    needs_maps: ClassVar[bool] = False
    fills_in: ClassVar[str] = "zeros"
    completes: ClassVar[Literal["", "images", "coils"]] = "coils"

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        image = torch.linalg.vector_norm(ifft_centered(kspace * mask), dim=1)
        return _direct(image.to(kspace.dtype))


@dataclass(frozen=True)
class CGSense(MRIMethod):
    """``argmin_x 1/2 |A x - y|^2 + weight/2 |x - x_c|^2`` by conjugate gradients.

    x_c is the low-resolution image of the fully sampled centre of k-space (zero if there is none), so the penalty
    shrinks what is to be filled in and leaves the mean contrast alone. Pruessmann et al., Magn Reson Med 46:638 (2001);
    the prior image: Lin et al., Magn Reson Med 51:559 (2004).

    Parameters
    ----------
    weight
        In units of the noise. None: 1 / (mean signal power of a k-space sample outside that centre), the Wiener weight
        of what the penalty acts on. 0: least squares.
    tol
        Stops when the residual of the normal equations is below ``tol`` times the norm that noise has in ``A^H y``:
        what is left to fit is then noise.
    max_iter
        Iterations at most.
    """

    name: ClassVar[str] = "CG-SENSE"
    fills_in: ClassVar[str] = "least squares, which leaves it nearly zero"
    completes: ClassVar[Literal["", "images", "coils"]] = "images"
    weight: float | None = None
    tol: float = 0.02
    max_iter: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def fitted(self, kspace: Tensor, mask: Tensor) -> CGSense:
        return replace(self, weight=self.wiener_weight(kspace, mask)) if self.weight is None else self

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        maps = given_maps(maps)
        with one_thread_if_small(kspace[:, 0].numel()):
            operator = Sense(maps, mask)
            prior = Sense(maps, _centre(mask, kspace)).adjoint(kspace)
            weight = self.wiener_weight(kspace, mask) if self.weight is None else self.weight
            solution = conjugate_gradient(
                lambda x: operator.gram(x) + weight * x,
                operator.adjoint(kspace) - operator.gram(prior),
                rtol=8 * torch.finfo(kspace.dtype).eps,  # what the precision allows, where noise is negligible
                atol=self.tol * _adjoint_noise(kspace, maps, mask),
                max_iter=self.max_iter,
            )
        return replace(solution, value=solution.value + prior)

    @staticmethod
    def wiener_weight(kspace: Tensor, mask: Tensor) -> float:
        """The weight that ``None`` stands for: noise power 1 over the signal power, all coils together."""
        outside = mask.bool() & ~_centre(mask, kspace)
        samples = int(count_samples(outside, kspace).sum())
        if samples == 0:
            return 0.0  # nothing but the centre: nothing to fill in
        power = float((kspace * outside).abs().square().sum(dtype=torch.float64)) / samples - kspace.shape[1]
        return 1 / max(power, 0.1)


@dataclass(frozen=True)
class WaveletSense(MRIMethod):
    """``argmin_x 1/2 |A x - y|^2 + weight |W x|_1`` by FISTA (Lustig et al., Magn Reson Med 58:1182, 2007).

    W is an orthogonal periodic wavelet transform; its coarsest scale is not penalised.

    Parameters
    ----------
    weight
        In units of the noise. The default gives the best PSNR, within 0.3 dB, for 4-fold lines and 6-fold Poisson-disc
        sampling of the head phantom by 8 coils at peak signal-to-noise ratios of 20 and 50 (0.1 to 1.3 tried).
    wavelet, levels
        See :class:`pyrecon.linops.Wavelet`.
    tol
        Stops when an iteration changes the image by less than ``tol`` relative to it.
    max_iter
        Iterations at most.
    """

    name: ClassVar[str] = "l1-wavelet SENSE"
    fills_in: ClassVar[str] = "least squares and the wavelet penalty"
    completes: ClassVar[Literal["", "images", "coils"]] = "images"
    weight: float = 0.4
    wavelet: str = "db4"
    levels: int | None = None
    tol: float = 3e-4
    max_iter: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        Wavelet((2**15, 2**15), wavelet=self.wavelet, levels=self.levels)

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        try:
            transform = Wavelet((kspace.shape[2], kspace.shape[3]), wavelet=self.wavelet, levels=self.levels)
        except ValueError as error:  # more levels than the image has
            raise DataError(str(error)) from None
        rows, columns = transform.coarse_shape

        def prox(x: Tensor, step: Tensor) -> Tensor:
            coefficients = transform(x)
            coarse = coefficients[:, :rows, :columns].clone()
            coefficients = soft_threshold(coefficients, self.weight * step.flatten())
            coefficients[:, :rows, :columns] = coarse
            return transform.adjoint(coefficients)

        return _fista(self, kspace, given_maps(maps), mask, prox)


@dataclass(frozen=True)
class TVSense(MRIMethod):
    """``argmin_x 1/2 |A x - y|^2 + weight TV(x)`` by FISTA (Block et al., Magn Reson Med 57:1086, 2007).

    TV is isotropic and that of a complex image: magnitude and phase have their edges together.

    Parameters
    ----------
    weight
        In units of the noise; the default as in :class:`WaveletSense`.
    tol
        Stops when an iteration changes the image by less than ``tol`` relative to it. The proximal map of TV within
        starts from the last dual and runs until its duality gap proves the same precision.
    max_iter, max_inner
        Iterations at most, of FISTA and of the proximal map within.
    """

    name: ClassVar[str] = "TV-SENSE"
    fills_in: ClassVar[str] = "least squares and total variation"
    completes: ClassVar[Literal["", "images", "coils"]] = "images"
    weight: float = 0.4
    tol: float = 3e-4
    max_iter: int = 200
    max_inner: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        check_count("max_inner", self.max_inner, 1, MAX_ITERATIONS)

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        dual: Tensor | None = None

        def prox(x: Tensor, step: Tensor) -> Tensor:
            nonlocal dual
            # A fixed small number of inner iterations is not enough: with the dual carried along, 10 make FISTA diverge
            # slowly, and from zero they leave the objective 1 % too high; certified, 30 outer ones reach 1e-6.
            level = self.weight * step.flatten()
            image, dual = tv_prox(x, level, dual, iterations=self.max_inner, tol=self.tol, return_dual=True)
            return image

        return _fista(self, kspace, given_maps(maps), mask, prox)


CLASSICAL: dict[str, type[MRIMethod]] = {
    "rss": ZeroFilled,
    "cg-sense": CGSense,
    "l1-sense": WaveletSense,
    "tv-sense": TVSense,
}


def given_maps(maps: Tensor | None) -> Tensor:
    """The maps, of a method that needs some."""
    if maps is None:
        raise TypeError("maps: None, this method needs coil maps (C, H, W) of every image")
    return maps


def _check(method: CGSense | WaveletSense | TVSense) -> None:
    if method.weight is not None and not method.weight >= 0:
        raise ValueError(f"weight: {method.weight}, expected a number >= 0")
    if not method.tol > 0 or method.max_iter < 1:
        raise ValueError(f"tol, max_iter: {method.tol} and {method.max_iter}, expected numbers > 0 and >= 1")


def _fista(method: WaveletSense | TVSense, kspace: Tensor, maps: Tensor, mask: Tensor, prox: Any) -> Solution[Tensor]:
    operator = Sense(maps, mask)
    start = operator.adjoint(kspace)
    # A^H A has no eigenvalue above 1: F is unitary, and the maps' root sum of squares is 1 at most.
    with one_thread_if_small(start.numel()):
        solution = fista(
            lambda x: operator.gram(x) - start,
            prox,
            start,
            step=1.0,
            max_iter=method.max_iter,
            tol=method.tol,
        )
    # Where there are no maps there is no object; what a penalty alone puts there is the value of the pixels beside it.
    return replace(solution, value=solution.value * (maps != 0).any(dim=1))


def _direct(image: Tensor) -> Solution[Tensor]:
    """The solution of a method without iterations."""
    count = torch.zeros(len(image), dtype=torch.int32, device=image.device)
    finite = torch.isfinite(image.abs()).flatten(1).all(dim=1)
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NONFINITE)).to(torch.int8)
    return Solution(image, status, count, torch.zeros(len(image), device=image.device))


def _centre(mask: Tensor, kspace: Tensor) -> Tensor:
    """Mask ``(B | 1, 1, H, W)`` of the largest fully sampled block about the centre of k-space."""
    return calibration_mask(mask, (kspace.shape[2], kspace.shape[3])).to(kspace.device)


def count_samples(mask: Tensor, kspace: Tensor) -> Tensor:
    """Samples of one coil, per image ``(B,)``."""
    batch, _, height, width = kspace.shape
    return mask.bool().expand(batch, 1, height, width).flatten(1).sum(dim=1)


def _adjoint_noise(kspace: Tensor, maps: Tensor, mask: Tensor) -> float:
    """``sqrt(E|A^H n|^2)`` for white noise n of unit power, the smallest of the batch's images that see any.

    That is the trace of A A^H: by the unitarity of F, the sampled fraction times the sum of |maps|^2.
    """
    _, _, height, width = kspace.shape
    power = maps.abs().square().sum(dim=(1, 2, 3)) * count_samples(mask, kspace) / (height * width)
    seen = power[power > 0]
    return float(seen.min().sqrt()) if len(seen) else 0.0
