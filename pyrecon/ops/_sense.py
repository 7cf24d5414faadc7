"""Multi-coil Cartesian MRI (SENSE): coil maps, a centred orthonormal Fourier transform F, and a sampling mask.

The law. With image x, maps S, mask M and k-space k, per sample::

    sense_forward      A x = M F (S x)                           (B, H, W)    -> (B, C, H, W)
    sense_adjoint      A^H k = sum_c conj(S_c) F^H (M k_c)       (B, C, H, W) -> (B, H, W)
    sense_normal       A^H A x                                   (B, H, W)    -> (B, H, W)
    sense_maps_adjoint conj(x) F^H (M k)                         (B, C, H, W) -> (B, C, H, W)

The last one is the adjoint of A x as a function of S. The first, second and fourth are each other's derivatives, so
gradients of any order stay within this file.

In A^H A the transforms along an axis where the mask is constant cancel, exactly: with a 1-D mask only the other axis is
transformed. And the centring cancels against a rolled mask, so that A^H A needs no shifts at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import COMPLEX, check_dtype, check_like, check_out, check_shape, dense
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._product import product

_AXES = (-2, -1)
_Fourier = Callable[..., Tensor]  # of (x, axes=_AXES, *, adjoint=False): centred and orthonormal


# --- the reference: a transform is a matrix whose angles are whole n-ths of a turn, reduced exactly -----------------
@lru_cache(maxsize=32)
def _waves(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The centred orthonormal transform of n numbers as a matrix, (n, n). It is symmetric."""
    k = torch.arange(n) - n // 2
    turns = torch.outer(k, k) % n
    turns = torch.where(2 * turns > n, turns - n, turns)  # within half a turn an angle has a digit more
    scale = torch.full((n, n), 1 / sqrt(n), dtype=torch.float64)
    return torch.polar(scale, turns.double() * (-2 * pi / n)).to(device, dtype)


def _fourier(x: Tensor, axes: tuple[int, ...] = _AXES, *, adjoint: bool = False) -> Tensor:
    for axis in axes:
        waves = _waves(x.shape[axis], x.dtype, x.device)
        waves = waves.conj() if adjoint else waves
        x = product(x, waves) if axis == -1 else product(waves, x)
    return x


def _each(shared: Tensor, batch: int) -> Tensor:
    """One of ``shared`` per sample of the batch, where consecutive samples share one."""
    return shared.repeat_interleave(batch // shared.shape[0], dim=0) if 1 < shared.shape[0] < batch else shared


def _forward_reference(image: Tensor, maps: Tensor, mask: Tensor, fourier: _Fourier = _fourier) -> Tensor:
    return _each(mask, len(image)) * fourier(_each(maps, len(image)) * image[:, None])


def _adjoint_reference(kspace: Tensor, maps: Tensor, mask: Tensor, fourier: _Fourier = _fourier) -> Tensor:
    coils = fourier(_each(mask, len(kspace)) * kspace, adjoint=True)
    return (_each(maps, len(kspace)).conj() * coils).sum(dim=1)


def _maps_adjoint_reference(kspace: Tensor, image: Tensor, mask: Tensor, fourier: _Fourier = _fourier) -> Tensor:
    return image[:, None].conj() * fourier(_each(mask, len(kspace)) * kspace, adjoint=True)


def _normal_reference(image: Tensor, maps: Tensor, mask: Tensor, fourier: _Fourier = _fourier) -> Tensor:
    maps, mask = _each(maps, len(image)), _each(mask, len(image))
    axes = tuple(axis for axis in _AXES if mask.shape[axis] > 1)  # along the others the transforms cancel
    coils = fourier(mask.square() * fourier(maps * image[:, None], axes), axes, adjoint=True)
    return (maps.conj() * coils).sum(dim=1)


# --- kernels ---------------------------------------------------------------------------------------------------
def _cpp(name: str, reference: Callable[..., Tensor]) -> Callable[..., None]:
    """The kernel ``name`` of csrc/cpu/sense.cpp, and its law with SciPy's FFT for sizes that its own does not take."""

    def kernel(first: Tensor, second: Tensor, mask: Tensor, out: Tensor) -> None:
        if out.numel() == 0:
            return
        plans = [_plan(n, out.dtype) for n in first.shape[-2:]]
        if any(plan is None for plan in plans):
            if name == "sense_normal":  # between two transforms the shifts cancel against a rolled mask
                mask = torch.fft.ifftshift(mask, dim=_AXES)
                out.copy_(reference(first, second, mask, partial(_pocketfft, centred=False)))
            else:
                out.copy_(reference(first, second, mask, _pocketfft))
            return
        suffix, threads = "f32" if out.dtype == torch.complex64 else "f64", kernel_threads()
        coils = (first if first.dim() == 4 else second).shape[1]
        maps_batch = second.shape[0] if second.dim() == 4 else 1
        sizes = first.shape[0], coils, *first.shape[-2:], maps_batch, mask.shape[0], *mask.shape[2:], threads
        workspace = torch.empty(getattr(_core, f"sense_workspace_{suffix}")(*sizes), dtype=mask.dtype)
        tensors = (first, second, mask, out, *plans, workspace)
        getattr(_core, f"{name}_{suffix}")(*(t.data_ptr() for t in tensors if t is not None), *sizes)

    return kernel


def _pocketfft(x: Tensor, axes: tuple[int, ...] = _AXES, *, adjoint: bool = False, centred: bool = True) -> Tensor:
    """``_fourier`` by an FFT whose error is known: 2 eps at any length and on any machine, which torch's is not."""
    import scipy.fft

    if not axes:
        return x
    transform = scipy.fft.ifftn if adjoint else scipy.fft.fftn
    shifted = torch.fft.ifftshift(x, dim=axes) if centred else x
    spectrum = transform(shifted.numpy(), axes=axes, norm="ortho", workers=kernel_threads())
    result = torch.from_numpy(spectrum)
    return torch.fft.fftshift(result, dim=axes) if centred else result


@cache
def _plan(n: int, dtype: torch.dtype) -> Tensor | None:
    """Tables of the C++ FFT of length n, or None where n has a prime factor that is too large."""
    make = _core.sense_plan_f32 if dtype == torch.complex64 else _core.sense_plan_f64
    memory = torch.empty(make(n, 0), dtype=torch.uint8)
    return memory if make(n, memory.data_ptr()) else None


def _triton(name: str) -> Callable[..., None]:
    def kernel(*tensors: Tensor) -> None:
        from pyrecon.kernels import sense

        getattr(sense, name)(*tensors)

    return kernel


def _like_coils(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return image.new_empty(image.shape[0], *maps.shape[1:])


def _like_image(kspace: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return kspace.new_empty(kspace.shape[0], *kspace.shape[2:])


_forward = Op(
    "sense_forward(Tensor image, Tensor maps, Tensor mask) -> Tensor",
    outputs=_like_coils,
    reference=_forward_reference,
    kernels={"cpp": _cpp("sense_forward", _forward_reference), "triton": _triton("forward")},
)
_adjoint = Op(
    "sense_adjoint(Tensor kspace, Tensor maps, Tensor mask) -> Tensor",
    outputs=_like_image,
    reference=_adjoint_reference,
    kernels={"cpp": _cpp("sense_adjoint", _adjoint_reference), "triton": _triton("adjoint")},
)
_maps_adjoint = Op(
    "sense_maps_adjoint(Tensor kspace, Tensor image, Tensor mask) -> Tensor",
    outputs=lambda kspace, image, mask: torch.empty_like(kspace),
    reference=_maps_adjoint_reference,
    kernels={"cpp": _cpp("sense_maps_adjoint", _maps_adjoint_reference), "triton": _triton("maps_adjoint")},
)
_normal = Op(
    "sense_normal(Tensor image, Tensor maps, Tensor mask) -> Tensor",
    outputs=lambda image, maps, mask: torch.empty_like(image),
    reference=_normal_reference,
    kernels={"cpp": _cpp("sense_normal", _normal_reference), "triton": _triton("normal")},
)


# --- autograd --------------------------------------------------------------------------------------------------
# Each of forward, adjoint and maps_adjoint is linear (or conjugate-linear) in two arguments; its two gradients are the
# other two. `_shared` sums a map gradient over the samples that use the same maps.
def _taped(function: type[torch.autograd.Function], *inputs: Tensor) -> Tensor:
    result: Tensor = function.apply(*map(dense, inputs))
    return result


class _SenseFunction(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _Forward(_SenseFunction):
    @staticmethod
    def forward(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
        return _forward(image, maps, mask)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        image, maps, mask = ctx.saved_tensors
        d_image = _taped(_Adjoint, g, maps, mask) if ctx.needs_input_grad[0] else None
        d_maps = _taped(_MapsAdjoint, g, image, mask) if ctx.needs_input_grad[1] else None
        return d_image, _shared(d_maps, maps), None


class _Adjoint(_SenseFunction):
    @staticmethod
    def forward(kspace: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
        return _adjoint(kspace, maps, mask)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        kspace, maps, mask = ctx.saved_tensors
        d_kspace = _taped(_Forward, g, maps, mask) if ctx.needs_input_grad[0] else None
        d_maps = _taped(_MapsAdjoint, kspace, g, mask) if ctx.needs_input_grad[1] else None
        return d_kspace, _shared(d_maps, maps), None


class _MapsAdjoint(_SenseFunction):
    @staticmethod
    def forward(kspace: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        return _maps_adjoint(kspace, image, mask)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        kspace, image, mask = ctx.saved_tensors
        d_kspace = _taped(_Forward, image, g, mask) if ctx.needs_input_grad[0] else None
        d_image = _taped(_Adjoint, kspace, g, mask) if ctx.needs_input_grad[1] else None
        return d_kspace, d_image, None


class _Normal(_SenseFunction):
    @staticmethod
    def forward(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
        return _normal(image, maps, mask)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        image, maps, mask = ctx.saved_tensors
        d_image = _taped(_Normal, g, maps, mask) if ctx.needs_input_grad[0] else None
        d_maps = None
        if ctx.needs_input_grad[1]:  # the maps enter twice: on the way out and on the way back
            d_maps = _taped(_MapsAdjoint, _taped(_Forward, image, maps, mask), g, mask)
            d_maps = d_maps + _taped(_MapsAdjoint, _taped(_Forward, g, maps, mask), image, mask)
        return d_image, _shared(d_maps, maps), None


def _shared(gradient: Tensor | None, maps: Tensor) -> Tensor | None:
    if gradient is None or maps.shape[0] == gradient.shape[0]:
        return gradient
    own = maps.shape[0]
    return gradient.reshape(own, gradient.shape[0] // own, *gradient.shape[1:]).sum(dim=1)


# --- the public functions --------------------------------------------------------------------------------------
def sense_forward(image: Tensor, maps: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Sampled k-space of an image seen by every coil: ``mask * F(maps * image)``.

    F is the centred orthonormal two-dimensional Fourier transform: DC at index ``n // 2`` of both axes, of the image
    and of k-space, ``F^H F = 1``.

    Parameters
    ----------
    image
        ``(B, H, W)``, complex64 or complex128.
    maps
        Coil sensitivities, ``(B / n, C, H, W)`` of the same dtype, each for n consecutive images (time frames, say);
        constant along H or W where that size is 1.
    mask
        bool, or weights of the matching real dtype: ``(B / n, 1, H, W)``, constant along H or W where that size is 1,
        which is how a 1-D Cartesian mask is declared: ``(1, 1, 1, W)`` or ``(1, 1, H, 1)``. Not differentiable.
    out
        Buffer for the result, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        ``(B, C, H, W)``. Differentiable, any number of times, in ``image`` and ``maps``.

    Notes
    -----
    CPU (C++ throughout; sizes with a prime factor above 257 take SciPy's FFT) and GPU (Triton around cuFFT).
    Pruessmann et al., SENSE, Magn Reson Med 42:952 (1999).
    """
    check_dtype("image", image, COMPLEX)
    check_shape("image", image, (None, None, None), "(B, H, W)")
    _check_pixels("image", image)
    batch, rows, cols = image.shape
    maps = _maps(maps, "image", image, batch, None, rows, cols)
    mask = _mask(mask, "image", image, batch, rows, cols)
    check_out("out", out, (batch, *maps.shape[1:]), image, inputs=(image, maps, mask))
    return _call(_forward, _Forward, image, maps, mask, out)


def sense_adjoint(kspace: Tensor, maps: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The adjoint of :func:`sense_forward`: ``sum over coils of conj(maps) * F^H(mask * kspace)``.

    Parameters
    ----------
    kspace
        ``(B, C, H, W)``, complex64 or complex128, DC in the centre.
    maps, mask, out
        As in :func:`sense_forward`.

    Returns
    -------
    Tensor
        ``(B, H, W)``. Differentiable, any number of times, in ``kspace`` and ``maps``.
    """
    check_dtype("kspace", kspace, COMPLEX)
    check_shape("kspace", kspace, (None, None, None, None), "(B, C, H, W)")
    _check_pixels("kspace", kspace)
    batch, coils, rows, cols = kspace.shape
    maps = _maps(maps, "kspace", kspace, batch, coils, rows, cols)
    mask = _mask(mask, "kspace", kspace, batch, rows, cols)
    check_out("out", out, (batch, rows, cols), kspace, inputs=(kspace, maps, mask))
    return _call(_adjoint, _Adjoint, kspace, maps, mask, out)


def sense_normal(image: Tensor, maps: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``A^H A image`` with A of :func:`sense_forward`, cheaper than the two products.

    Where the mask is constant along an axis the transforms along it cancel and are left out, so declare a 1-D mask as
    ``(B / n, 1, 1, W)`` or ``(B / n, 1, H, 1)``: a full-size mask is not searched for it.

    Parameters
    ----------
    image, maps, mask, out
        As in :func:`sense_forward`; the mask enters squared.

    Returns
    -------
    Tensor
        ``(B, H, W)``. Differentiable, any number of times, in ``image`` and ``maps``.
    """
    check_dtype("image", image, COMPLEX)
    check_shape("image", image, (None, None, None), "(B, H, W)")
    _check_pixels("image", image)
    batch, rows, cols = image.shape
    maps = _maps(maps, "image", image, batch, None, rows, cols)
    mask = _mask(mask, "image", image, batch, rows, cols)
    check_out("out", out, image.shape, image, inputs=(image, maps, mask))
    return _call(_normal, _Normal, image, maps, mask, out)


def sense_maps_adjoint(kspace: Tensor, image: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The adjoint of ``maps -> sense_forward(image, maps, mask)``: ``conj(image) * F^H(mask * kspace)``.

    The gradient of a data term with respect to the coil maps, for joint estimation of image and maps.

    Parameters
    ----------
    kspace
        ``(B, C, H, W)``, complex64 or complex128, DC in the centre.
    image
        ``(B, H, W)`` of the same dtype.
    mask, out
        As in :func:`sense_forward`.

    Returns
    -------
    Tensor
        ``(B, C, H, W)``. Differentiable, any number of times, in ``kspace`` and ``image``.
    """
    check_dtype("kspace", kspace, COMPLEX)
    check_shape("kspace", kspace, (None, None, None, None), "(B, C, H, W)")
    _check_pixels("kspace", kspace)
    batch, _, rows, cols = kspace.shape
    check_like("image", image, "kspace", kspace)
    check_shape("image", image, (batch, rows, cols), "(B, H, W)")
    mask = _mask(mask, "kspace", kspace, batch, rows, cols)
    check_out("out", out, kspace.shape, kspace, inputs=(kspace, image, mask))
    return _call(_maps_adjoint, _MapsAdjoint, kspace, image, mask, out)


def _call(
    op: Op, function: type[torch.autograd.Function], first: Tensor, second: Tensor, mask: Tensor, out: Tensor | None
) -> Tensor:
    if out is None and needs_grad(first, second):
        return _taped(function, first, second, mask)
    result: Tensor = op(dense(first), dense(second), dense(mask), out=out)
    return result


def _check_pixels(name: str, tensor: Tensor) -> None:
    if tensor.shape[-1] == 0 or tensor.shape[-2] == 0:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} has no pixels")


def _maps(maps: Tensor, name: str, like: Tensor, batch: int, coils: int | None, rows: int, cols: int) -> Tensor:
    """``maps`` with full H and W and its own batch size."""
    check_like("maps", maps, name, like)
    meaning = f"(B / n, C, H | 1, W | 1) of {name} {tuple(like.shape)}"
    expected = (_divisor(maps, batch), coils, _or_one(maps, 2, rows), _or_one(maps, 3, cols))
    check_shape("maps", maps, expected, meaning)
    if maps.shape[1] == 0:
        raise ValueError(f"maps: shape {tuple(maps.shape)} holds no coil, expected at least one")
    return maps.expand(-1, -1, rows, cols)


def _mask(mask: Tensor, name: str, like: Tensor, batch: int, rows: int, cols: int) -> Tensor:
    """``mask`` as weights in the real dtype of ``like``."""
    real = like.real.dtype
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = mask.to(real)
    check_like("mask", mask, name, like, dtype=real)
    expected = (_divisor(mask, batch), 1, _or_one(mask, 2, rows), _or_one(mask, 3, cols))
    check_shape("mask", mask, expected, f"(B / n, 1, H | 1, W | 1) of {name} {tuple(like.shape)}")
    if mask.requires_grad:
        raise ValueError("mask: is not differentiable here, detach it")
    return mask


def _or_one(tensor: Tensor, axis: int, size: int) -> int:
    return 1 if tensor.dim() == 4 and tensor.shape[axis] == 1 else size


def _divisor(tensor: Tensor, batch: int) -> int:
    """The batch size that is expected of ``tensor``: its own if it divides ``batch``."""
    return tensor.shape[0] if tensor.dim() == 4 and tensor.shape[0] and batch % tensor.shape[0] == 0 else batch
