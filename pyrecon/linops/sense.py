"""Multi-coil Cartesian MRI as operators: plain, with several sets of maps, and in three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_dtype
from pyrecon._fft import transformed
from pyrecon.linops._base import LinearOperator
from pyrecon.ops import sense_adjoint, sense_forward, sense_maps_adjoint, sense_normal


class Sense(LinearOperator):
    """``A x = mask * F(maps * x)``, images ``(B, *other, H, W)`` to coil data ``(B, *other, C, H, W)``.

    ``other`` are any axes of images that do not mix: time frames, contrasts, slices.

    Parameters
    ----------
    maps
        Coil sensitivities ``(B | 1, *other, C, H, W)``, complex, of size 1 along other axes that share them. May
        require grad, or depend on what does.
    mask
        ``(B | 1, *other, 1, H | 1, W | 1)``, bool or real: see :func:`pyrecon.ops.sense_forward`. With a 1-D mask,
        declared by an axis of size 1, :meth:`gram` transforms along the other axis alone.
    """

    maps: Tensor
    mask: Tensor

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        super().__init__()
        check_dtype("maps", maps, COMPLEX)
        if maps.dim() < 4:
            raise ValueError(f"maps: shape {tuple(maps.shape)} does not fit, expected (B | 1, *other, C, H, W)")
        _check_axes("mask", mask, maps.dim())
        self.register_buffer("maps", maps)
        self.register_buffer("mask", mask)
        try:
            plane = torch.broadcast_shapes(maps.shape[-2:], mask.shape[-2:])
            self.other = tuple(torch.broadcast_shapes(maps.shape[1:-3], mask.shape[1:-3]))
        except RuntimeError:
            raise ValueError(f"mask: shape {tuple(mask.shape)} does not fit maps {tuple(maps.shape)}") from None
        if 0 in (*plane, maps.shape[-3]):
            raise ValueError(f"maps: shape {tuple(maps.shape)} has no coil or no pixels")
        self.domain_shape = (*self.other, *plane)
        self.range_shape = (*self.other, maps.shape[-3], *plane)

    @property
    def norm_bound(self) -> Tensor:
        """Upper bound of the largest eigenvalue of ``A^H A`` per set of maps and mask, ``(B | 1,)``.

        The largest sum over coils of ``|maps|^2`` times the largest ``mask^2``: 1 for normalised maps.
        """
        coils = self.maps.detach().abs().square().sum(dim=-3).flatten(1).amax(dim=1)
        return coils * self.mask.to(coils.dtype).square().flatten(1).amax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self._each(sense_forward, x, 3)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._each(sense_adjoint, y, 4)

    def gram(self, x: Tensor) -> Tensor:
        return self._each(sense_normal, x, 3)

    def _each(self, op: Callable[..., Tensor], x: Tensor, axes: int) -> Tensor:
        """``op`` with the other axes of ``x`` flattened into its batch."""
        if not self.other:
            return op(x, self.maps, self.mask)
        if x.dim() != axes + len(self.other) or x.shape[1 : 1 + len(self.other)] != self.other:
            expected = self.domain_shape if axes == 3 else self.range_shape
            raise ValueError(f"x, y: shape {tuple(x.shape)} does not fit, expected a batch of {expected}")
        count = (len(x), *self.other)
        images = x.flatten(0, len(self.other))
        result = op(images, _per_image(self.maps, count), _per_image(self.mask, count))
        return result.reshape(*count, *result.shape[1:])


class SoftSense(LinearOperator):
    """``A x = mask * F(sum over s of maps_s * x_s)``, images ``(B, S, H, W)`` to coil data ``(B, C, H, W)``.

    With several sets of maps a field of view that is smaller than the object, where two places fold onto one pixel, is
    still represented exactly (Uecker et al., ESPIRiT, Magn Reson Med 71:990, 2014: "soft" SENSE).

    Parameters
    ----------
    maps
        ``(B | 1, S, C, H, W)``, complex. May require grad.
    mask
        ``(B | 1, 1, H | 1, W | 1)``, bool or real.
    """

    maps: Tensor
    mask: Tensor

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        super().__init__()
        check_dtype("maps", maps, COMPLEX)
        if maps.dim() != 5:
            raise ValueError(f"maps: shape {tuple(maps.shape)} does not fit, expected (B | 1, S, C, H, W)")
        _check_axes("mask", mask, 4)
        if mask.shape[1] != 1 or any(m not in (1, n) for m, n in zip(mask.shape[2:], maps.shape[3:], strict=True)):
            raise ValueError(f"mask: shape {tuple(mask.shape)} does not fit maps {tuple(maps.shape)}")
        if 0 in maps.shape[1:]:
            raise ValueError(f"maps: shape {tuple(maps.shape)} has no coil or no pixels")
        self.register_buffer("maps", maps)
        self.register_buffer("mask", mask)
        _, sets, coils, rows, cols = maps.shape
        self.domain_shape, self.range_shape = (sets, rows, cols), (coils, rows, cols)

    # The sum over sets is what a coil sees. It takes the place of the maps, around an image of ones, and then the
    # transforms are those of the plain operator.
    def forward(self, x: Tensor) -> Tensor:
        return sense_forward(self._ones(len(x)), self._seen(x), self.mask)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._combine(sense_maps_adjoint(y, self._ones(len(y)), self.mask))

    def gram(self, x: Tensor) -> Tensor:
        coils = self._seen(x)
        one = self.maps.new_ones(1, 1, 1, 1)
        return self._combine(sense_normal(coils.flatten(0, 1), one, self.mask).view_as(coils))

    def _seen(self, x: Tensor) -> Tensor:
        self._check_batch(len(x))
        return (self.maps * x[:, :, None]).sum(dim=1)

    def _combine(self, coils: Tensor) -> Tensor:
        return (self.maps.conj() * coils[:, None]).sum(dim=2)

    def _check_batch(self, batch: int) -> None:
        if len(self.maps) not in (1, batch):
            raise ValueError(f"x, y: a batch of {batch} does not fit maps {tuple(self.maps.shape)}")

    def _ones(self, batch: int) -> Tensor:
        self._check_batch(batch)
        return self.maps.new_ones(batch, *self.range_shape[1:])


class Sense3D(LinearOperator):
    """``A x = mask * F(maps * x)`` with a three-dimensional F: images ``(B, D, H, W)`` to data ``(B, C, D, H, W)``.

    Where the mask is constant along an axis, the readout of every Cartesian scan, the transforms along it are one-
    dimensional and the rest is one two-dimensional problem per position; :meth:`gram` needs no transform along it.

    Parameters
    ----------
    maps
        ``(B | 1, C, D, H, W)``, complex. May require grad.
    mask
        ``(B | 1, 1, D | 1, H | 1, W | 1)``, bool or real; constant along axes of size 1, declare the readout so.
    """

    slice_maps: Tensor
    mask: Tensor

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        super().__init__()
        check_dtype("maps", maps, COMPLEX)
        if maps.dim() != 5:
            raise ValueError(f"maps: shape {tuple(maps.shape)} does not fit, expected (B | 1, C, D, H, W)")
        _check_axes("mask", mask, 5)
        if mask.shape[1] != 1 or any(m not in (1, n) for m, n in zip(mask.shape[2:], maps.shape[2:], strict=True)):
            raise ValueError(
                f"mask: shape {tuple(mask.shape)} does not fit maps {tuple(maps.shape)}, "
                "expected (B | 1, 1, D | 1, H | 1, W | 1)"
            )
        if 0 in maps.shape[1:]:
            raise ValueError(f"maps: shape {tuple(maps.shape)} has no coil or no pixels")
        self.domain_shape, self.range_shape = tuple(maps.shape[2:]), tuple(maps.shape[1:])
        constant = [axis for axis in (2, 3, 4) if mask.shape[axis] == 1]
        # The axis of the slices; a mask that varies along all three is applied after all of them.
        self.axis = (constant[0] if constant else 2) - 5
        self.whole = not constant
        # Slices first, once: a copy of the maps per product would cost as much as the product.
        self.register_buffer("slice_maps", maps.movedim(self.axis, 0).contiguous())
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        data = sense_forward(self._slices(x), *self._held(len(x)))
        data = _along(torch.fft.fftn, self._volume(data, len(x)), self.axis)
        return self._mask(data) * data if self.whole else data

    def adjoint(self, y: Tensor) -> Tensor:
        if self.whole:
            y = self._mask(y) * y
        data = _along(torch.fft.ifftn, y, self.axis).movedim(self.axis, 0).flatten(0, 1)
        return self._volume(sense_adjoint(data, *self._held(len(y))), len(y))

    def gram(self, x: Tensor) -> Tensor:
        if self.whole:
            return self.adjoint(self(x))
        return self._volume(sense_normal(self._slices(x), *self._held(len(x))), len(x))

    def _slices(self, x: Tensor) -> Tensor:
        return x.movedim(self.axis, 0).flatten(0, 1)

    def _volume(self, slices: Tensor, batch: int) -> Tensor:
        shape = self.domain_shape[self.axis], batch, *slices.shape[1:]
        return slices.reshape(shape).movedim(0, self.axis)

    def _held(self, batch: int) -> tuple[Tensor, Tensor]:
        count = self.domain_shape[self.axis], batch
        maps = _per_image(self.slice_maps, count)
        if self.whole:
            return maps, self.mask.new_ones(1, 1, 1, 1)
        return maps, _per_image(self.mask.movedim(self.axis, 0), count)

    def _mask(self, like: Tensor) -> Tensor:
        return self.mask.to(like.real.dtype)


def _per_image(held: Tensor, count: tuple[int, ...]) -> Tensor:
    """``held`` ``(*count | 1, C, H, W)`` with one leading axis that divides the number of images.

    Trailing leading axes of size 1 mean that consecutive images share it, which costs nothing; what is shared in
    another pattern is repeated.
    """
    lead = held.shape[: len(count)]
    if any(n not in (1, m) for n, m in zip(lead, count, strict=True)):
        raise ValueError(f"maps, mask: shape {tuple(held.shape)} does not fit images {count}, expected 1 or equal")
    own = max((i + 1 for i, n in enumerate(lead) if n > 1), default=0)
    size = prod(count[:own])
    return held.expand(*count[:own], *held.shape[own:]).reshape(size, *held.shape[len(count) :])


def _along(transform: Callable[..., Tensor], x: Tensor, axis: int) -> Tensor:
    """A centred orthonormal transform along one axis."""
    shifted = torch.fft.ifftshift(x, dim=axis)
    result: Tensor = torch.fft.fftshift(transformed(transform, shifted, dim=(axis,), norm="ortho"), dim=axis)
    return result


def _check_axes(name: str, tensor: Tensor, count: int) -> None:
    check_dtype(name, tensor, (torch.bool, *FLOATING))
    if tensor.dim() != count:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit, expected {count} axes")
