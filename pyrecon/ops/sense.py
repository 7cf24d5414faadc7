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

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import COMPLEX, check_dtype, check_like, check_out, check_shape, dense
from pyrecon._library import Op, needs_grad

_AXES = (-2, -1)


# --- the reference ---------------------------------------------------------------------------------------------
def _fourier(x: Tensor) -> Tensor:
    k: Tensor = torch.fft.fftshift(_fft(torch.fft.ifftshift(x, dim=_AXES)), dim=_AXES)
    return k


def _fourier_adjoint(k: Tensor) -> Tensor:
    x: Tensor = torch.fft.fftshift(_ifft(torch.fft.ifftshift(k, dim=_AXES)), dim=_AXES)
    return x


def _fft(x: Tensor, axes: tuple[int, ...] = _AXES) -> Tensor:
    """torch's orthonormal transform, for an empty batch too."""
    return torch.fft.fftn(x, dim=axes, norm="ortho") if x.numel() and axes else x


def _ifft(k: Tensor, axes: tuple[int, ...] = _AXES) -> Tensor:
    return torch.fft.ifftn(k, dim=axes, norm="ortho") if k.numel() and axes else k


def _forward_reference(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return mask * _fourier(maps * image[:, None])


def _adjoint_reference(kspace: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return (maps.conj() * _fourier_adjoint(mask * kspace)).sum(dim=1)


def _maps_adjoint_reference(kspace: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    return image[:, None].conj() * _fourier_adjoint(mask * kspace)


def _normal_reference(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return (maps.conj() * _circulant(maps * image[:, None], mask)).sum(dim=1)


def _circulant(coils: Tensor, mask: Tensor) -> Tensor:
    """``F^H M^2 F``, transforming only the axes along which the mask varies."""
    axes = _varying(mask)
    return _ifft(torch.fft.ifftshift(mask, dim=_AXES).square() * _fft(coils, axes), axes)


def _varying(mask: Tensor) -> tuple[int, ...]:
    return tuple(axis for axis in _AXES if mask.shape[axis] > 1)


# --- kernels ---------------------------------------------------------------------------------------------------
# The pointwise parts are kernels of ours, the transforms torch's. F = Q FFT P with diagonal phases P and Q, which the
# pointwise kernels multiply in on their way: no fftshift copies.
def _forward_by(ours: Any, image: Tensor, maps: Tensor, mask: Tensor, out: Tensor) -> None:
    before, after = _centring(image)
    ours.expand(image, maps, before, out)
    ours.weight(_fft(out).contiguous(), mask, after, out)


def _adjoint_by(ours: Any, kspace: Tensor, maps: Tensor, mask: Tensor, out: Tensor) -> None:
    ours.combine(_to_coils(ours, kspace, mask), maps, _centring(kspace)[0], out)


def _maps_adjoint_by(ours: Any, kspace: Tensor, image: Tensor, mask: Tensor, out: Tensor) -> None:
    ours.correlate(_to_coils(ours, kspace, mask), image, _centring(kspace)[0], out)


def _to_coils(ours: Any, kspace: Tensor, mask: Tensor) -> Tensor:
    coils = torch.empty_like(kspace)
    p, q = _centring(kspace)[1]
    ours.weight(kspace, mask, (p.conj().resolve_conj(), q.conj().resolve_conj()), coils)
    return _ifft(coils).contiguous()


def _normal_by(ours: Any, image: Tensor, maps: Tensor, mask: Tensor, out: Tensor) -> None:
    axes = _varying(mask)
    coils = _like_coils(image, maps, mask)
    ours.expand(image, maps, None, coils)
    spectrum = _fft(coils, axes).contiguous()  # torch lays a transform along the rows out by columns
    ours.weight(spectrum, torch.fft.ifftshift(mask, dim=_AXES).square(), None, spectrum)
    ours.combine(_ifft(spectrum, axes).contiguous(), maps, None, out)


def _centring(like: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Phases along rows and columns before and after an uncentred transform that make it a centred one."""
    before, after = zip(*(_centring_axis(n, like.dtype, like.device) for n in like.shape[-2:]), strict=True)
    return before, after


@cache
def _centring_axis(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # exp(-2 pi i (j - c)(k - c) / n) = exp(2 pi i c j / n) exp(-2 pi i j k / n) exp(2 pi i c (k - c) / n), c = n // 2
    c, j = n // 2, torch.arange(n)
    angles = (torch.remainder(c * index, n).double() * (2 * torch.pi / n) for index in (j, j - c))
    before, after = (torch.polar(torch.ones_like(a), a).to(dtype=dtype, device=device) for a in angles)
    return before, after


class _Cpp:
    """The pointwise kernels of csrc/cpu/sense.cpp."""

    @staticmethod
    def expand(image: Tensor, maps: Tensor, phases: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
        _cpp("coil_expand", image, maps, phases, out, out, maps_batch=maps.shape[0])

    @staticmethod
    def combine(coils: Tensor, maps: Tensor, phases: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
        _cpp("coil_combine", coils, maps, phases, out, coils, maps_batch=maps.shape[0])

    @staticmethod
    def correlate(coils: Tensor, image: Tensor, phases: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
        _cpp("coil_correlate", coils, image, phases, out, coils)

    @staticmethod
    def weight(coils: Tensor, mask: Tensor, phases: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
        _cpp("coil_weight", coils, mask, phases, out, coils, mask=mask.shape)


def _cpp(
    name: str,
    first: Tensor,
    second: Tensor,
    phases: tuple[Tensor, Tensor] | None,
    out: Tensor,
    coils: Tensor,
    *,
    maps_batch: int = 1,
    mask: tuple[int, ...] = (1, 1, 1, 1),
) -> None:
    kernel = getattr(_core, f"{name}_{'f32' if out.dtype == torch.complex64 else 'f64'}")
    p, q = (phases[0].data_ptr(), phases[1].data_ptr()) if phases else (0, 0)
    addresses = first.data_ptr(), second.data_ptr(), p, q, out.data_ptr()
    kernel(*addresses, *coils.shape, maps_batch, mask[0], mask[2], mask[3], torch.get_num_threads())


def _triton() -> ModuleType:
    from pyrecon.kernels import sense

    return sense


def _like_coils(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return image.new_empty(image.shape[0], *maps.shape[1:])


def _like_image(kspace: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return kspace.new_empty(kspace.shape[0], *kspace.shape[2:])


_forward = Op(
    "sense_forward(Tensor image, Tensor maps, Tensor mask) -> Tensor",
    outputs=_like_coils,
    reference=_forward_reference,
    kernels={"cpp": lambda *a: _forward_by(_Cpp, *a), "triton": lambda *a: _forward_by(_triton(), *a)},
)
_adjoint = Op(
    "sense_adjoint(Tensor kspace, Tensor maps, Tensor mask) -> Tensor",
    outputs=_like_image,
    reference=_adjoint_reference,
    kernels={"cpp": lambda *a: _adjoint_by(_Cpp, *a), "triton": lambda *a: _adjoint_by(_triton(), *a)},
)
_maps_adjoint = Op(
    "sense_maps_adjoint(Tensor kspace, Tensor image, Tensor mask) -> Tensor",
    outputs=lambda kspace, image, mask: torch.empty_like(kspace),
    reference=_maps_adjoint_reference,
    kernels={"cpp": lambda *a: _maps_adjoint_by(_Cpp, *a), "triton": lambda *a: _maps_adjoint_by(_triton(), *a)},
)
_normal = Op(
    "sense_normal(Tensor image, Tensor maps, Tensor mask) -> Tensor",
    outputs=lambda image, maps, mask: torch.empty_like(image),
    reference=_normal_reference,
    kernels={"cpp": lambda *a: _normal_by(_Cpp, *a), "triton": lambda *a: _normal_by(_triton(), *a)},
)


# --- autograd --------------------------------------------------------------------------------------------------
# Each of forward, adjoint and maps_adjoint is linear (or conjugate-linear) in two arguments; its two gradients are the
# other two. `_shared` sums a map gradient over the batch where all samples use the same maps.
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
    return gradient.sum(dim=0, keepdim=True)


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
        Coil sensitivities, ``(B | 1, C, H, W)`` of the same dtype; constant along H or W where that size is 1.
    mask
        bool, or weights of the matching real dtype: ``(B | 1, 1, H, W)``, constant along H or W where that size is 1,
        which is how a 1-D Cartesian mask is declared: ``(1, 1, 1, W)`` or ``(1, 1, H, 1)``. Not differentiable.
    out
        Buffer for the result, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        ``(B, C, H, W)``. Differentiable, any number of times, in ``image`` and ``maps``.

    Notes
    -----
    CPU (C++) and GPU (Triton around cuFFT). Pruessmann et al., SENSE, Magn Reson Med 42:952 (1999).
    """
    check_dtype("image", image, COMPLEX)
    check_shape("image", image, (None, None, None), "(B, H, W)")
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
    batch, coils, rows, cols = kspace.shape
    maps = _maps(maps, "kspace", kspace, batch, coils, rows, cols)
    mask = _mask(mask, "kspace", kspace, batch, rows, cols)
    check_out("out", out, (batch, rows, cols), kspace, inputs=(kspace, maps, mask))
    return _call(_adjoint, _Adjoint, kspace, maps, mask, out)


def sense_normal(image: Tensor, maps: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``A^H A image`` with A of :func:`sense_forward`, cheaper than the two products.

    Where the mask is constant along an axis the transforms along it cancel and are left out, so declare a 1-D mask as
    ``(B | 1, 1, 1, W)`` or ``(B | 1, 1, H, 1)``: a full-size mask is not searched for it.

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


def _maps(maps: Tensor, name: str, like: Tensor, batch: int, coils: int | None, rows: int, cols: int) -> Tensor:
    """``maps`` with full H and W and its own batch size."""
    check_like("maps", maps, name, like)
    meaning = f"(B | 1, C, H | 1, W | 1) of {name} {tuple(like.shape)}"
    expected = (_or_one(maps, 0, batch), coils, _or_one(maps, 2, rows), _or_one(maps, 3, cols))
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
    expected = (_or_one(mask, 0, batch), 1, _or_one(mask, 2, rows), _or_one(mask, 3, cols))
    check_shape("mask", mask, expected, f"(B | 1, 1, H | 1, W | 1) of {name} {tuple(like.shape)}")
    if mask.requires_grad:
        raise ValueError("mask: is not differentiable here, detach it")
    return mask


def _or_one(tensor: Tensor, axis: int, size: int) -> int:
    return 1 if tensor.dim() == 4 and tensor.shape[axis] == 1 else size
