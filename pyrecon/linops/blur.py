"""Convolution with a point spread function, and some of these.

Small and separable kernels are sums of shifted images, large ones go by FFT. torch's own convolution is the slowest of
the three on a CPU: 24 planes of 128 x 128 under a 9 x 9 Gaussian take 19 ms by it (2.6 without oneDNN), 0.9 ms in two
passes of shifted sums and 2.8 ms by FFT, one thread.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn

from pyrecon._check import FLOATING, check_count, check_dtype, check_number, check_size
from pyrecon.linops._base import LinearOperator

# Shifted sums that take as long as the FFTs: 35 (32 x 32) to 58 (128 x 128, 512 x 512) were measured.
_CROSSOVER = 45
_LARGEST = 4096  # of a kernel that auto decomposes, along an axis


class Blur(LinearOperator):
    """x convolved with ``kernel``, real or complex: ``(B, H, W)``, or ``(B, C, H, W)`` with ``channels``, to the same.

    ``(A x)[i] = sum_j kernel[j] x[i + k // 2 - j]`` along both axes, k the kernel's size there, odd or even. The
    adjoint is exact for every border. Differentiable twice in x, and in a kernel that requires grad.

    Parameters
    ----------
    kernel
        ``(h, w)``, or ``(C, h, w)`` with one for each channel; real, of any size. An ``nn.Parameter`` becomes one of
        this module.
    shape
        ``(H, W)`` of the images.
    channels
        C; None for images without that axis.
    border
        What is beyond the image: ``"zero"``, its other end (``"periodic"``), or its mirror image about the outermost
        pixels' centres (``"reflect"``, numpy's).
    method
        ``"direct"``: shifted sums, in one pass for each axis and term where the kernel is a sum of few products of
        lines; ``"fft"``; ``"auto"`` counts the sums that are needed, more than 45 go by FFT, and so does a kernel that
        requires grad.
    """

    kernel: Tensor

    def __init__(
        self,
        kernel: Tensor,
        shape: tuple[int, int],
        *,
        channels: int | None = None,
        border: Literal["zero", "periodic", "reflect"] = "zero",
        method: Literal["auto", "direct", "fft"] = "auto",
    ) -> None:
        super().__init__()
        shape = check_size("shape", shape, 2)  # type: ignore[assignment]  # two of them
        check_dtype("kernel", kernel, FLOATING)
        if channels is not None:
            check_count("channels", channels)
        one_each = kernel.dim() == 3 and channels is not None and kernel.shape[0] == channels
        if not (kernel.dim() == 2 or one_each) or 0 in kernel.shape:
            wanted = "(h, w)" if channels is None else f"(h, w) or ({channels}, h, w)"
            raise ValueError(f"kernel: shape {tuple(kernel.shape)} does not fit, expected {wanted}")
        if border not in ("zero", "periodic", "reflect"):
            raise ValueError(f"border: {border!r}, expected zero, periodic or reflect")
        if method not in ("auto", "direct", "fft"):
            raise ValueError(f"method: {method!r}, expected auto, direct or fft")
        if not kernel.is_meta and not bool(torch.isfinite(kernel).all()):
            raise ValueError("kernel: holds NaN or infinite values")
        if isinstance(kernel, nn.Parameter):
            self.kernel = kernel
        else:
            self.register_buffer("kernel", kernel)
        self.border, self.channels = border, channels
        self.domain_shape = self.range_shape = (*(() if channels is None else (channels,)), shape[0], shape[1])
        self._derived: dict[str, tuple[object, Any]] = {}
        rows, columns = (
            next_fast_len(n + size - 1, real=True) for n, size in zip(shape, kernel.shape[-2:], strict=True)
        )
        self._fft_size = (rows, columns)
        self.method: str = method
        if method == "auto":
            learned = kernel.requires_grad or max(kernel.shape[-2:]) > _LARGEST
            self.method = "fft" if learned or self._terms()[0] > _CROSSOVER else "direct"

    def forward(self, x: Tensor) -> Tensor:
        planes = self._planes(x)
        for axis, sides in ((-2, self._sides(-2)), (-1, self._sides(-1))):
            planes = _extended(planes, axis, *sides, self.border)
        return self._image(self._correlated(planes), x)

    def adjoint(self, y: Tensor) -> Tensor:
        planes = self._spread(self._planes(y))
        for axis, sides in ((-1, self._sides(-1)), (-2, self._sides(-2))):
            planes = _folded(planes, axis, *sides, self.border)
        return self._image(planes, y)

    def extra_repr(self) -> str:
        size = " x ".join(map(str, self.kernel.shape))
        return f"{super().extra_repr()}, kernel {size}, {self.border}, {self.method}"

    # --- images as real planes (N, C | 1, H, W): C where each channel has a kernel ---------------------------------
    def _planes(self, x: Tensor) -> Tensor:
        if x.is_complex():
            x = torch.view_as_real(x.resolve_conj()).movedim(-1, 0)
        return x.reshape(-1, self._kernels(), *self.domain_shape[-2:])

    def _image(self, planes: Tensor, like: Tensor) -> Tensor:
        if not like.is_complex():
            return planes.reshape(like.shape)
        return torch.view_as_complex(planes.reshape(2, *like.shape).movedim(0, -1).contiguous())

    def _kernels(self) -> int:
        return self.kernel.shape[0] if self.kernel.dim() == 3 else 1

    def _sides(self, axis: int) -> tuple[int, int]:
        """How far the kernel reaches before the image and after it."""
        size = self.kernel.shape[axis]
        return size - 1 - size // 2, size // 2

    # --- y[i] = sum_j w[j] x[i + j] with the flipped kernel w, and its transpose -----------------------------------
    def _correlated(self, x: Tensor) -> Tensor:
        rows, columns = self.domain_shape[-2:]
        if self.method == "fft":
            spectrum = torch.fft.rfft2(x, self._fft_size) * self._transfer(x.dtype).conj()
            result: Tensor = torch.fft.irfft2(spectrum, self._fft_size)
            return result[..., :rows, :columns]
        if self._traced():
            return F.conv2d(x, self._flipped(x.dtype), groups=self._kernels())
        return _shifted(x, *self._terms()[1:], False)

    def _spread(self, y: Tensor) -> Tensor:
        rows, columns = (n + sum(self._sides(axis)) for axis, n in zip((-2, -1), self.domain_shape[-2:], strict=True))
        if self.method == "fft":
            spectrum = torch.fft.rfft2(y, self._fft_size) * self._transfer(y.dtype)
            result: Tensor = torch.fft.irfft2(spectrum, self._fft_size)
            return result[..., :rows, :columns]
        if self._traced():
            return F.conv_transpose2d(y, self._flipped(y.dtype), groups=self._kernels())
        return _shifted(y, *self._terms()[1:], True)

    def _traced(self) -> bool:
        """Whether the kernel's gradient is wanted, or a graph in which it may become another one."""
        return torch.compiler.is_compiling() or (self.kernel.requires_grad and torch.is_grad_enabled())

    def _flipped(self, dtype: torch.dtype) -> Tensor:
        """``(C | 1, 1, h, w)``."""
        return self.kernel.to(dtype).flip(-2, -1).reshape(-1, 1, *self.kernel.shape[-2:])

    def _transfer(self, dtype: torch.dtype) -> Tensor:
        """The flipped kernel's FFT, ``(C | 1, m, n // 2 + 1)``."""

        def make() -> Tensor:
            made: Tensor = torch.fft.rfft2(self._flipped(dtype)[:, 0], self._fft_size)
            return made

        if self._traced():
            return make()
        transfer: Tensor = self._known(f"transfer {dtype}", make)
        return transfer

    def _terms(self) -> tuple[int, Tensor, Tensor | None]:
        """The flipped kernel as a sum of products of lines, columns ``(r, C | 1, h)`` and rows ``(r, C | 1, w)``, or,
        where that takes more sums, itself ``(C | 1, h, w)`` and None; with the number of sums."""

        def make() -> tuple[int, Tensor, Tensor | None]:
            flipped = self._flipped(torch.float64)[:, 0].detach()
            u, s, vh = torch.linalg.svd(flipped, full_matrices=False)
            # What is left out is below the rounding of the kernel's own entries.
            left_out = s.flip(-1).cumsum(-1).flip(-1) > torch.finfo(self.kernel.dtype).eps * s[:, :1]
            rank = max(1, int(left_out.sum(-1).max()))
            height, width = flipped.shape[1:]
            if rank * (height + width) >= height * width:
                return height * width, flipped, None
            columns = (u * s[:, None])[:, :, :rank].permute(2, 0, 1)
            return rank * (height + width), columns.contiguous(), vh[:, :rank].transpose(0, 1).contiguous()

        known: tuple[int, Tensor, Tensor | None] = self._known("terms", make)
        return known

    def _known(self, name: str, make: Any) -> Any:
        """``make()``, kept until the kernel is replaced, moved or written to."""
        kernel = self.kernel
        state = (kernel.data_ptr(), 0 if kernel.is_inference() else kernel._version, kernel.device, kernel.dtype)
        known = self._derived.get(name)
        if known is None or known[0] != state:
            with torch.no_grad():
                known = self._derived[name] = (state, make())
        return known[1]


class _Shifted(torch.autograd.Function):
    """Sums of shifted planes and their transpose, each the other's backward."""

    @staticmethod
    def forward(x: Tensor, columns: Tensor, rows: Tensor | None, transposed: bool) -> Tensor:
        columns = columns.to(x.dtype)[..., None, None]
        if rows is None:
            along = _spread_2d if transposed else _sum_2d
            return along(x, columns)
        rows = rows.to(x.dtype)[..., None, None]
        total: Tensor | None = None
        for column, row in zip(columns, rows, strict=True):
            if transposed:
                part = _spread(_spread(x, column, -2), row, -1)
            else:
                part = _sum(_sum(x, row, -1), column, -2)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, columns, rows, ctx.transposed = inputs
        ctx.save_for_backward(columns, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        columns, rows = ctx.saved_tensors
        return _shifted(grad, columns, rows, not ctx.transposed), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, columns: Tensor, rows: Any, transposed: bool) -> Any:
        planes = x.movedim(in_dims[0], 0)
        result = _shifted(planes.flatten(0, 1), columns, rows, transposed)
        return result.unflatten(0, planes.shape[:2]), 0


def _shifted(x: Tensor, columns: Tensor, rows: Tensor | None, transposed: bool) -> Tensor:
    return _Shifted.apply(x, columns, rows, transposed)  # type: ignore[no-any-return, no-untyped-call]


def _sum(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """``sum_j weights[:, j] x[.., i + j, ..]``."""
    n = x.shape[axis] - weights.shape[1] + 1
    result = x.narrow(axis, 0, n) * weights[:, 0]
    for j in range(1, weights.shape[1]):
        result.addcmul_(x.narrow(axis, j, n), weights[:, j])
    return result


def _spread(y: Tensor, weights: Tensor, axis: int) -> Tensor:
    n, count = y.shape[axis], weights.shape[1]
    shape = list(y.shape)
    shape[axis] = n + count - 1
    result = y.new_zeros(shape)
    for j in range(count):
        result.narrow(axis, j, n).addcmul_(y, weights[:, j])
    return result


def _sum_2d(x: Tensor, weights: Tensor) -> Tensor:
    rows, columns = x.shape[-2] - weights.shape[1] + 1, x.shape[-1] - weights.shape[2] + 1
    result = x.new_zeros(*x.shape[:-2], rows, columns)
    for i in range(weights.shape[1]):
        for j in range(weights.shape[2]):
            result.addcmul_(x[..., i : i + rows, j : j + columns], weights[:, i, j])
    return result


def _spread_2d(y: Tensor, weights: Tensor) -> Tensor:
    rows, columns = y.shape[-2:]
    result = y.new_zeros(*y.shape[:-2], rows + weights.shape[1] - 1, columns + weights.shape[2] - 1)
    for i in range(weights.shape[1]):
        for j in range(weights.shape[2]):
            result[..., i : i + rows, j : j + columns].addcmul_(y, weights[:, i, j])
    return result


# --- borders ---------------------------------------------------------------------------------------------------------
def _extended(x: Tensor, axis: int, before: int, after: int, border: str) -> Tensor:
    """What the kernel sees beyond an axis, set about the image."""
    if border == "zero":
        return F.pad(x, (before, after) if axis == -1 else (0, 0, before, after))
    left, right = _beyond(x, axis, before, after, border)
    return torch.cat((x.index_select(axis, left), x, x.index_select(axis, right)), dim=axis)


def _folded(x: Tensor, axis: int, before: int, after: int, border: str) -> Tensor:
    """The transpose of :func:`_extended`."""
    n = x.shape[axis] - before - after
    image = x.narrow(axis, before, n)
    if border == "zero":
        return image
    left, right = _beyond(image, axis, before, after, border)
    image = image.index_add(axis, left, x.narrow(axis, 0, before))
    return image.index_add(axis, right, x.narrow(axis, before + n, after))


def _beyond(x: Tensor, axis: int, before: int, after: int, border: str) -> tuple[Tensor, Tensor]:
    """Indices of the pixels that stand before and after an axis."""
    n = x.shape[axis]
    index = torch.cat((torch.arange(-before, 0), torch.arange(n, n + after)))
    if border == "periodic":
        index = index % n
    else:
        period = max(2 * n - 2, 1)
        index = index % period
        index = torch.where(index >= n, period - index, index)
    index = index.to(x.device)
    return index[:before], index[before:]


# --- kernels ---------------------------------------------------------------------------------------------------------
def gaussian_kernel(size: int, variance: float) -> Tensor:
    """``(size, size)`` float64 of sum 1, about the centre; variance in pixels squared."""
    check_count("size", size)
    check_number("variance", variance, above=True)
    r = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-0.5 * (r.square() - r.square().min()) / variance)
    return torch.outer(line, line) / line.sum().square()


def disk_kernel(radius: float) -> Tensor:
    """A lens out of focus: a disc of ``radius`` pixels, float64 of sum 1, of the smallest odd size that holds it."""
    check_number("radius", radius, above=True)
    half = max(0, math.ceil(radius - 0.5))
    return _covered(half, lambda y, x: torch.hypot(y, x) <= radius)


def motion_kernel(length: float, angle: float = 0.0) -> Tensor:
    """A camera that moved: a line of ``length`` pixels, one wide, ``angle`` radians from the rows, counterclockwise;
    float64 of sum 1."""
    check_number("length", length, above=True)
    check_number("angle", angle, -math.inf)
    cos, sin = math.cos(angle), math.sin(angle)

    def inside(y: Tensor, x: Tensor) -> Tensor:
        along, across = x * cos - y * sin, x * sin + y * cos
        return (along.abs() <= length / 2) & (across.abs() <= 0.5)

    return _covered(max(0, math.ceil(length / 2)), inside)


def _covered(half: int, inside: Any) -> Tensor:
    """Shares of the pixels from -half to half that are inside, by 16 x 16 points each."""
    fine, size = 16, 2 * half + 1
    points = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / fine - size / 2
    share: Tensor = inside(points[:, None], points[None, :]).double().reshape(size, fine, size, fine).mean(dim=(1, 3))
    return share / share.sum()
