"""Line integrals through an image, by linear interpolation between the pixels of each row or column (Joseph).

A ray that crosses more rows than columns is ``column = start + slope * row``, and its integral

    sum over rows of  weight * ((1 - f) * image[row, i] + f * image[row, i + 1]),  i + f = start + slope * row

with 0 <= f < 1, weight the length of the ray from one row to the next and zeros outside the image. For the others rows
and columns change places. That is all a kernel knows of a geometry: start, slope and weight of each ray, and which of
the two it is.

P. M. Joseph, An improved algorithm for reprojecting rays through pixel images, IEEE Trans. Med. Imaging 1, 1982.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import FLOATING, check_dtype, check_out, dense, described
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._radon_geometry import Beam

SAMPLES = 1 << 21  # of rays at once, in plain torch


# --- the reference ---------------------------------------------------------------------------------------------
class _Planes:
    """Both ways to go through an image as one list of numbers: rows with zeros beside them, then columns."""

    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width)
        self.rows, self.columns = width + 4, height + 4  # two zeros at both ends
        self.length = height * self.rows + width * self.columns

    def lay(self, image: Tensor) -> Tensor:
        """(B, H, W) -> (B, length)."""
        return torch.cat([_framed(image), _framed(image.mT)], dim=1)

    def gather(self, planes: Tensor) -> Tensor:
        """The transpose of :meth:`lay`."""
        height, width = self.size
        rows, columns = planes.split([height * self.rows, width * self.columns], dim=1)
        image: Tensor = rows.view(-1, height, self.rows)[..., 2:-2]
        turned: Tensor = columns.view(-1, width, self.columns)[..., 2:-2]
        return image + turned.mT

    def samples(self, rays: Tensor, along: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """For some views at a time: where every ray is at every row, (a, D, N): the index of the pixel before, how far
        it is from that one, and the row, -1 where it has none."""
        height, width = self.size
        views, _, n_det = rays.shape
        steps = max(height, width)
        chunk = max(1, SAMPLES // max(1, n_det * steps))
        row = torch.arange(steps, device=rays.device)
        for first in range(0, views, chunk):
            part = slice(first, first + chunk)
            start, slope, _ = rays[part, :, :, None].unbind(1)
            down = along[part, :, None]
            position = start + slope * row
            limit = torch.where(down, width, height)
            position = torch.minimum(position.clamp(min=-2), limit.to(position.dtype))  # zeros beyond
            before = position.detach().floor()
            index = before.long() + 2 + torch.where(down, row * self.rows, height * self.rows + row * self.columns)
            here = row < torch.where(down, height, width)
            yield part, torch.where(here, index, 0), position - before, torch.where(here, row, -1)


def _framed(image: Tensor) -> Tensor:
    framed: Tensor = torch.nn.functional.pad(image, (2, 2))
    return framed.flatten(1)


def _reference(image: Tensor, rays: Tensor, along: Tensor) -> Tensor:
    planes = _Planes(*image.shape[1:])
    values = planes.lay(image)
    parts = [image.new_zeros(len(image), 0, rays.shape[2])]
    for part, index, f, row in planes.samples(rays, along):
        f = f.to(image.dtype)
        sums = ((1 - f) * values[:, index] + f * values[:, index + 1]) * (row >= 0)
        parts.append(sums.sum(-1) * rays[part, 2].to(image.dtype))
    return torch.cat(parts, dim=1)


def _adjoint_reference(sino: Tensor, rays: Tensor, along: Tensor, height: int, width: int) -> Tensor:
    planes = _Planes(height, width)
    sums = sino.new_zeros(len(sino), planes.length)
    for part, index, f, row in planes.samples(rays, along):
        weighted = (sino[:, part] * rays[part, 2].to(sino.dtype))[..., None] * (row >= 0)
        f = f.to(sino.dtype)
        sums.index_add_(1, index.flatten(), ((1 - f) * weighted).flatten(1))
        sums.index_add_(1, index.flatten() + 1, (f * weighted).flatten(1))
    return planes.gather(sums)


def _by_rays(image: Tensor, rays: Tensor, along: Tensor) -> Tensor:
    """Derivatives of the integrals by start, slope and weight of their rays, (B, A, 3, D); differentiable."""
    planes = _Planes(*image.shape[1:])
    values = planes.lay(image)
    parts = [image.new_zeros(len(image), 0, 3, rays.shape[2])]
    for part, index, f, row in planes.samples(rays, along):
        f, weight = f.to(image.dtype), rays[part, 2].to(image.dtype)
        before, here = values[:, index], row >= 0
        rise = (values[:, index + 1] - before) * here
        sums = (rise.sum(-1) * weight, (rise * row).sum(-1) * weight, ((before + f * rise) * here).sum(-1))
        parts.append(torch.stack(sums, dim=2))
    return torch.cat(parts, dim=1)


# --- kernels ---------------------------------------------------------------------------------------------------
def _cpp(image: Tensor, rays: Tensor, along: Tensor, out: Tensor) -> None:
    kernel = _core.radon_f32 if image.dtype == torch.float32 else _core.radon_f64
    kernel(
        image.data_ptr(), rays.data_ptr(), along.data_ptr(), out.data_ptr(), *image.shape, *along.shape,
        kernel_threads(),
    )  # fmt: skip


def _adjoint_cpp(sino: Tensor, rays: Tensor, along: Tensor, height: int, width: int, out: Tensor) -> None:
    kernel = _core.radon_adjoint_f32 if sino.dtype == torch.float32 else _core.radon_adjoint_f64
    kernel(
        sino.data_ptr(), rays.data_ptr(), along.data_ptr(), out.data_ptr(), len(sino), height, width, *along.shape,
        kernel_threads(),
    )  # fmt: skip


def _triton(image: Tensor, rays: Tensor, along: Tensor, out: Tensor) -> None:
    from pyrecon.kernels.radon import radon as launch

    launch(image, rays, along, out)


def _adjoint_triton(sino: Tensor, rays: Tensor, along: Tensor, height: int, width: int, out: Tensor) -> None:
    from pyrecon.kernels.radon import radon_adjoint as launch

    launch(sino, rays, along, out)


# --- registration and autograd: each of the two is the other's gradient ----------------------------------------
_radon = Op(
    "radon(Tensor image, Tensor rays, Tensor along) -> Tensor",
    outputs=lambda image, rays, along: image.new_empty(image.shape[0], *along.shape),
    reference=_reference,
    kernels={"cpp": _cpp, "triton": _triton},
)
_radon_adjoint = Op(
    "radon_adjoint(Tensor sino, Tensor rays, Tensor along, int height, int width) -> Tensor",
    outputs=lambda sino, rays, along, height, width: sino.new_empty(sino.shape[0], height, width),
    reference=_adjoint_reference,
    kernels={"cpp": _adjoint_cpp, "triton": _adjoint_triton},
)


class _Radon(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, rays: Tensor, along: Tensor) -> Tensor:
        return _radon(image, rays, along)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, rays, along = inputs
        ctx.save_for_backward(image if rays.requires_grad else None, rays, along)
        ctx.size = image.shape[1:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        image, rays, along = ctx.saved_tensors
        of_image = _RadonAdjoint.apply(dense(g), rays, along, *ctx.size) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_rays = _contracted(_by_rays(image, rays, along), g) if ctx.needs_input_grad[1] else None
        return of_image, of_rays, None


class _RadonAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(sino: Tensor, rays: Tensor, along: Tensor, height: int, width: int) -> Tensor:
        return _radon_adjoint(sino, rays, along, height, width)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        sino, rays, along, *_ = inputs
        ctx.save_for_backward(sino if rays.requires_grad else None, rays, along)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        sino, rays, along = ctx.saved_tensors
        of_sino = _Radon.apply(dense(g), rays, along) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_rays = _contracted(_by_rays(g, rays, along), sino) if ctx.needs_input_grad[1] else None
        return of_sino, of_rays, None, None, None


def _contracted(derivatives: Tensor, g: Tensor) -> Tensor:
    return (derivatives * g[:, :, None]).sum(0).to(torch.float64)


# --- the public functions --------------------------------------------------------------------------------------
def radon(image: Tensor, geometry: Beam, *, out: Tensor | None = None) -> Tensor:
    """Line integrals of images along the rays of a scan, by Joseph's linear interpolation.

    Parameters
    ----------
    image
        ``(..., H, W)``, float32 or float64, in 1/m (1 over the geometry's unit of length if that has no name).
    geometry
        :class:`ParallelBeam`, :class:`FanBeam` or :class:`ViewBeam`.
    out
        Buffer for the result, dense, sharing no memory with ``image``. Not differentiable.

    Returns
    -------
    Tensor
        ``(..., views, n_det)``, without a unit. Differentiable, any number of times, in ``image`` and in whatever of
        the geometry requires grad (almost everywhere: interpolation has kinks at pixels). A NaN reaches its image only.

    Notes
    -----
    The image is zero outside, and continuous between the centres of its pixels. In float32 places are exact to 3e-6
    of a pixel.
    """
    check_input("image", image, geometry, domain=True)
    lead = image.shape[:-2]
    check_out("out", out, (*lead, *geometry.range_shape), image, inputs=(image,))
    rays, along = geometry.tables(image.device)
    batch = dense(image).view(prod(lead), *geometry.shape)
    if out is None and needs_grad(image, rays):
        return _Radon.apply(batch, rays, along).view(*lead, *geometry.range_shape)  # type: ignore[no-any-return, no-untyped-call]
    result = _radon(batch, rays, along, out=None if out is None else out.view(prod(lead), *geometry.range_shape))
    return result.view(*lead, *geometry.range_shape) if out is None else out


def radon_adjoint(sino: Tensor, geometry: Beam, *, out: Tensor | None = None) -> Tensor:
    """The transpose of :func:`radon`: every ray's number added to the pixels it passed, with the same weights.

    Parameters
    ----------
    sino
        ``(..., views, n_det)``, float32 or float64.
    geometry, out
        As of :func:`radon`.

    Returns
    -------
    Tensor
        ``(..., H, W)``. Differentiable as :func:`radon` is.
    """
    check_input("sino", sino, geometry, domain=False)
    lead = sino.shape[:-2]
    check_out("out", out, (*lead, *geometry.shape), sino, inputs=(sino,))
    rays, along = geometry.tables(sino.device)
    batch = dense(sino).view(prod(lead), *geometry.range_shape)
    if out is None and needs_grad(sino, rays):
        return _RadonAdjoint.apply(batch, rays, along, *geometry.shape).view(*lead, *geometry.shape)  # type: ignore[no-any-return, no-untyped-call]
    buffer = None if out is None else out.view(prod(lead), *geometry.shape)
    result = _radon_adjoint(batch, rays, along, *geometry.shape, out=buffer)
    return result.view(*lead, *geometry.shape) if out is None else out


def check_input(name: str, tensor: Tensor, geometry: Beam, *, domain: bool) -> None:
    """Raise unless ``tensor`` is an image (``domain``) or a sinogram of the geometry."""
    if not isinstance(geometry, Beam):
        raise TypeError(f"geometry: {described(geometry)}, expected a ParallelBeam, FanBeam or ViewBeam")
    check_dtype(name, tensor, FLOATING)
    size = geometry.shape if domain else geometry.range_shape
    if tensor.dim() < 2 or tensor.shape[-2:] != size:
        meaning = "(..., H, W)" if domain else "(..., views, n_det)"
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit, the geometry has {meaning} = {size}")
