"""Multi-coil MRI along any trajectory: radial, spiral, cones, jittered Cartesian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, REAL_OF, check_dtype, check_like
from pyrecon._errors import MissingDependency
from pyrecon._fft import transformed
from pyrecon._threads import kernel_threads
from pyrecon.linops._base import LinearOperator
from pyrecon.ops import sense_normal


class NonCartesianSense(LinearOperator):
    """``A x = weights * F(maps * x)`` at arbitrary points of k-space: images ``(B, *shape)`` to data ``(B, C, K)``.

    ``(F x)_k = prod(shape)^(-1/2) sum_r x_r exp(-2 pi i sum_d k_d r_d / n_d)`` with r counted from the centre pixel
    ``n_d // 2``: points with whole coordinates are the samples of :class:`Sense`.

    :meth:`forward` and :meth:`adjoint` use FINUFFT (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41, 2019;
    extra ``nufft``). :meth:`gram` needs no gridding at all: ``F^H W^2 F`` is a Toeplitz operator, a convolution with a
    kernel that is known once the trajectory is, so it becomes a circulant one on twice the grid (Fessler et al., IEEE
    Trans. Signal Process. 53, 2005) and runs on the SENSE kernels.

    Parameters
    ----------
    maps
        ``(B | 1, C, *shape)`` complex64 or complex128, two or three spatial axes, on a CPU. May require grad.
    trajectory
        ``(K, D)`` points in cycles per field of view, ``|k_d| <= n_d / 2``, D coordinates in the order of the spatial
        axes. Real dtype of the maps.
    weights
        ``(K,)``, for instance :func:`density_weights` to the power 1/2; default ones.
    eps
        Relative error of the transforms. Default 1e-6 in single, 1e-12 in double precision.
    """

    maps: Tensor
    trajectory: Tensor
    weights: Tensor

    def __init__(
        self, maps: Tensor, trajectory: Tensor, weights: Tensor | None = None, *, eps: float | None = None
    ) -> None:
        super().__init__()
        check_dtype("maps", maps, COMPLEX)
        if maps.dim() not in (4, 5):
            raise ValueError(
                f"maps: shape {tuple(maps.shape)} does not fit, expected (B | 1, C, H, W) or one more axis"
            )
        if maps.device.type != "cpu":
            raise ValueError(f"maps: are on {maps.device}, but FINUFFT's transforms run on a CPU here")
        shape = tuple(maps.shape[2:])
        check_like("trajectory", trajectory, "maps", maps, dtype=REAL_OF[maps.dtype])
        if trajectory.dim() != 2 or trajectory.shape[1] != len(shape):
            raise ValueError(f"trajectory: shape {tuple(trajectory.shape)} does not fit, expected (K, {len(shape)})")
        limit = torch.tensor(shape, dtype=trajectory.dtype) / 2
        if trajectory.numel() and not bool((trajectory.abs() <= limit).all()):
            raise ValueError(f"trajectory: leaves the k-space of an image of {shape}: expected |k_d| <= n_d / 2")
        if weights is None:
            weights = trajectory.new_ones(len(trajectory))
        check_like("weights", weights, "trajectory", trajectory)
        if weights.shape != trajectory.shape[:1]:
            raise ValueError(f"weights: shape {tuple(weights.shape)} does not fit, expected ({len(trajectory)},)")
        self.register_buffer("maps", maps)
        self.register_buffer("trajectory", trajectory)
        self.register_buffer("weights", weights)
        self.eps = eps
        self.domain_shape, self.range_shape = shape, (maps.shape[1], len(trajectory))
        self._kernel: tuple[Tensor, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        coils = self.maps * x[:, None]
        data: Tensor = _Nufft.apply(coils, self.trajectory, self.eps)  # type: ignore[no-untyped-call]
        return self.weights * data

    def adjoint(self, y: Tensor) -> Tensor:
        weighted = self.weights * y
        coils: Tensor = _NufftAdjoint.apply(weighted, self.trajectory, self.domain_shape, self.eps)  # type: ignore[no-untyped-call]
        return (self.maps.conj() * coils).sum(dim=1)

    def gram(self, x: Tensor) -> Tensor:
        """``A^H A x`` as a convolution on a grid of at least twice the size, made at the first call."""
        if self._kernel is None:
            self._kernel = _toeplitz(self.trajectory, self.weights.square(), self.domain_shape, self.eps)
        spectrum, shift = self._kernel
        grid = spectrum.shape
        # sense_normal applies the square of a mask. The spectrum dips below zero between its samples, so a constant is
        # added, whose convolution is a multiplication, and taken off again.
        if len(grid) == 2:
            maps, padded = _pad(self.maps, grid), _pad(x, grid)
            result = _crop(sense_normal(padded, maps, (spectrum + shift).sqrt()[None, None]), self.domain_shape)
            return result - shift * self.maps.abs().square().sum(dim=1) * x
        axes = tuple(range(-len(grid), 0))
        coils = transformed(torch.fft.fftn, self.maps * x[:, None], s=grid, dim=axes)
        coils = transformed(torch.fft.ifftn, torch.fft.ifftshift(spectrum) * coils, dim=axes)
        return (self.maps.conj() * _crop(coils, self.domain_shape)).sum(dim=1)


def density_weights(trajectory: Tensor, shape: tuple[int, ...], *, iterations: int = 30) -> Tensor:
    """Density compensation ``(K,)``: with these weights the adjoint of data is an image, ``F^H diag(w) F`` near 1.

    ``w <- w / (C w)`` from ones (Pipe and Menon, Magn Reson Med 41:179, 1999), where C holds the squared point spread
    of the field of view, ``prod_d (sin(pi k_d) / (n_d sin(pi k_d / n_d)))^2``: it is never negative, so the iteration
    cannot swing, and 1 on a Cartesian grid. The power 1/2 as ``weights`` of :class:`NonCartesianSense` makes conjugate
    gradients converge sooner, at the price of noise that is weighted unevenly.
    """
    points, lags = 2 * trajectory.double(), tuple(2 * n for n in shape)  # in cycles per twice the field of view
    window = points.new_ones(())
    for n in shape:  # the squared point spread is the transform of a triangle
        window = window[..., None] * (1 - (torch.arange(2 * n, dtype=points.dtype) - n).abs() / n)
    window *= 2 ** len(shape)
    w = points.new_ones(1, 1, len(points))
    for _ in range(iterations):
        density = _forward(window * _adjoint(w.to(torch.complex128), points, lags, 1e-9), points, 1e-9).real
        w = w / density.clamp_min(1e-12)
    return w[0, 0].to(trajectory.dtype)


class _Nufft(torch.autograd.Function):
    """F of coil images ``(B, C, *shape)``, ``(B, C, K)``."""

    @staticmethod
    def forward(ctx: Any, coils: Tensor, trajectory: Tensor, eps: float | None) -> Tensor:
        ctx.save_for_backward(trajectory)
        ctx.shape, ctx.eps = tuple(coils.shape[2:]), eps
        return _forward(coils, trajectory, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (trajectory,) = ctx.saved_tensors
        return _NufftAdjoint.apply(grad, trajectory, ctx.shape, ctx.eps), None, None  # type: ignore[no-untyped-call]


class _NufftAdjoint(torch.autograd.Function):
    """F^H of data ``(B, C, K)``, ``(B, C, *shape)``."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, trajectory: Tensor, shape: tuple[int, ...], eps: float | None) -> Tensor:
        ctx.save_for_backward(trajectory)
        ctx.eps = eps
        return _adjoint(data, trajectory, shape, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        (trajectory,) = ctx.saved_tensors
        return _Nufft.apply(grad, trajectory, ctx.eps), None, None, None  # type: ignore[no-untyped-call]


def _forward(coils: Tensor, trajectory: Tensor, eps: float | None) -> Tensor:
    shape = tuple(coils.shape[2:])
    flat = coils.reshape(-1, *shape)
    data = flat.new_empty((len(flat), len(trajectory)))
    if data.numel():
        plan = _plan(2, shape, len(flat), flat.dtype, trajectory, eps, -1)
        plan.execute(flat.detach().resolve_conj().contiguous().numpy(), out=data.numpy())
    return data.mul_(1 / math.sqrt(math.prod(shape))).view(*coils.shape[:2], len(trajectory))


def _adjoint(data: Tensor, trajectory: Tensor, shape: tuple[int, ...], eps: float | None) -> Tensor:
    flat = data.reshape(-1, data.shape[-1])
    coils = flat.new_zeros((len(flat), *shape))
    if flat.numel():
        plan = _plan(1, shape, len(flat), flat.dtype, trajectory, eps, 1)
        plan.execute(flat.detach().resolve_conj().contiguous().numpy(), out=coils.numpy())
    return coils.mul_(1 / math.sqrt(math.prod(shape))).view(*data.shape[:2], *shape)


def _plan(
    kind: int, shape: tuple[int, ...], count: int, dtype: torch.dtype, points: Tensor, eps: float | None, sign: int
) -> Any:
    try:
        import finufft
    except ImportError:
        raise MissingDependency("finufft", extra="nufft", purpose="transform along a trajectory") from None
    single = dtype == torch.complex64
    plan = finufft.Plan(
        kind,
        shape,
        n_trans=count,
        eps=eps or (1e-6 if single else 1e-12),
        isign=sign,
        dtype="complex64" if single else "complex128",
        nthreads=kernel_threads(),
    )
    angles = [(2 * math.pi / n) * points[:, d] for d, n in enumerate(shape)]
    plan.setpts(*(a.contiguous().numpy() for a in angles))
    return plan


def _toeplitz(trajectory: Tensor, weights: Tensor, shape: tuple[int, ...], eps: float | None) -> tuple[Tensor, float]:
    """Spectrum of the convolution, DC in the centre, of the grid it is circulant on; and minus its least value."""
    grid = tuple(_fast_size(2 * n) for n in shape)
    lags = tuple(2 * n for n in shape)  # lag d of axis of n pixels is d cycles of a field of view n: d / n
    wide = trajectory.double() * 2  # in cycles per twice the field of view
    kernel = _adjoint(weights.to(torch.complex128)[None, None], wide, lags, min(eps or 1e-12, 1e-12))[0, 0]
    kernel *= math.sqrt(math.prod(lags)) / math.prod(shape)
    padded = torch.zeros(grid, dtype=torch.complex128)
    # Lags -n + 1 .. n - 1; lag -n is never used.
    inner = tuple(slice(g // 2 - n + 1, g // 2 + n) for g, n in zip(grid, shape, strict=True))
    padded[inner] = kernel[tuple(slice(1, 2 * n) for n in shape)]
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(padded)).real)
    shift = max(0.0, -float(spectrum.min()))
    return spectrum.to(weights.dtype), shift * (1 + 1e-6)


def _fast_size(n: int) -> int:
    """The next length of small prime factors, and even."""
    from scipy.fft import next_fast_len

    return 2 * int(next_fast_len((n + 1) // 2, real=True))


def _pad(x: Tensor, grid: torch.Size) -> Tensor:
    rows, cols = x.shape[-2:]
    return torch.nn.functional.pad(x, (0, grid[1] - cols, 0, grid[0] - rows))


def _crop(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    for axis, n in enumerate(shape, -len(shape)):
        x = x.narrow(axis, 0, n)
    return x
