"""Convolution with a point spread function, and some of these.

torch's convolution is only fast where it has many channels. So planes become channels of one image, large planes are
cut into strips until there are 16, and a larger kernel that is a product of lines goes in two passes. On one thread 24
planes of 128 x 128 take 19 ms as a batch, 1.4 ms as channels and 2.4 to 4 ms by FFT under a 9 x 9 Gaussian, and under
one of 31 x 31 2.1 ms in two passes. Of small images the passes are products with banded matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import FLOATING, check_count, check_dtype, check_number, check_size
from pyrecon._fft import transformed
from pyrecon.linops._base import LinearOperator

_STRIPS = 16  # planes that a convolution should have at least: lanes of a vector
# Costs in weights of a kernel that goes in one pass: of the FFTs (15 x 15, measured between 13 and 17), and of the two
# passes of a product of lines besides twice their own weights.
_CROSSOVER, _TERM = 230, 60
# Sides of the images, times the terms, up to which matrices are faster: 81 us against 253 for 24 planes of
# 32 x 32, 592 against 900 for 12 of 96 x 96.
_SIDES = 192
_LARGEST = 1024  # of a kernel that is decomposed, along an axis

Frame = tuple[tuple[int, int], tuple[int, int]]  # rows above and below, columns left and right


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
        ``"direct"``, in a pass along each axis where the kernel is a sum of few products of lines and needs no grad;
        ``"matrix"``, those passes as products with matrices of the images' sides; ``"fft"``. ``"auto"``: what was
        measured to be faster, matrices for products of lines up to 96 x 96 pixels, FFT for kernels from 16 x 16 on, or
        43 x 43 for a product of lines.
    """

    kernel: Tensor

    def __init__(
        self,
        kernel: Tensor,
        shape: tuple[int, int],
        *,
        channels: int | None = None,
        border: Literal["zero", "periodic", "reflect"] = "zero",
        method: Literal["auto", "direct", "matrix", "fft"] = "auto",
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
        if method not in ("auto", "direct", "matrix", "fft"):
            raise ValueError(f"method: {method!r}, expected auto, direct, matrix or fft")
        if not kernel.is_meta and not bool(torch.isfinite(kernel).all()):
            raise ValueError("kernel: holds NaN or infinite values")
        if isinstance(kernel, nn.Parameter):
            self.kernel = kernel
        else:
            self.register_buffer("kernel", kernel)
        self.border, self.channels = border, channels
        self.domain_shape = self.range_shape = (*(() if channels is None else (channels,)), shape[0], shape[1])
        self._derived: dict[str, tuple[object, Any]] = {}
        rows, columns = (n + size - 1 for n, size in zip(shape, kernel.shape[-2:], strict=True))
        self._fft_size = (_fast_size(rows), _fast_size(columns))
        self.method: str = method
        if method == "auto":
            weights = kernel.shape[-2] * kernel.shape[-1]
            learned = kernel.requires_grad or kernel.is_meta or max(kernel.shape[-2:]) > _LARGEST
            self.method = "fft" if (weights if learned else self._terms()[0]) > _CROSSOVER else "direct"
            if not learned and self._terms()[2] * sum(shape) <= _SIDES:
                self.method = "matrix"

    def forward(self, x: Tensor) -> Tensor:
        planes = self._planes(x)
        if self.method == "matrix" and not self._traced():
            terms = [left @ planes @ right.mT for left, right in self._matrices(planes.dtype)]
            return self._image(_total(terms), x)
        if self.border == "zero":
            return self._image(self._correlated(planes, (self._sides(-2), self._sides(-1))), x)
        for axis in (-2, -1):
            planes = _extended(planes, axis, *self._sides(axis), self.border)
        return self._image(self._correlated(planes, ((0, 0), (0, 0))), x)

    def adjoint(self, y: Tensor) -> Tensor:
        planes = self._planes(y)
        if self.method == "matrix" and not self._traced():
            terms = [left.mT @ planes @ right for left, right in self._matrices(planes.dtype)]
            return self._image(_total(terms), y)
        if self.border == "zero":
            return self._image(self._correlated(planes, (self._sides(-2)[::-1], self._sides(-1)[::-1]), True), y)
        high, wide = (size - 1 for size in self.kernel.shape[-2:])
        planes = self._correlated(planes, ((high, high), (wide, wide)), True)
        for axis in (-1, -2):
            planes = _folded(planes, axis, *self._sides(axis), self.border)
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

    def _correlated(self, x: Tensor, frame: Frame, transposed: bool = False) -> Tensor:
        """``sum_j w[j] x[i + j]`` in a ``frame`` of zeros, w the kernel flipped, or, transposed, as it is."""
        if self.method == "fft":
            rows, columns = (
                n + sum(sides) - size + 1
                for n, sides, size in zip(x.shape[-2:], frame, self.kernel.shape[-2:], strict=True)
            )
            transfer = self._transfer(x.dtype, (frame[0][0], frame[1][0]), transposed)
            spectrum = transformed(torch.fft.rfft2, x, self._fft_size)
            image = transformed(torch.fft.irfft2, spectrum * transfer, self._fft_size)
            return image[..., :rows, :columns]
        terms = []
        for kernels in self._passes():
            term = x
            for kernel in kernels:
                sides = (
                    frame if len(kernels) == 1 else (frame[0], (0, 0)) if kernel.shape[2] == 1 else ((0, 0), frame[1])
                )
                weights = kernel.to(x.dtype)
                term = _pass(term, weights.flip(-2, -1) if transposed else weights, sides)
            terms.append(term)
        return _total(terms)

    def _passes(self) -> list[tuple[Tensor, ...]]:
        """Terms, each of kernels ``(C | 1, h, w)`` that go one after the other, along both axes or along one each."""
        if self._traced():
            return [(self._flipped(self.kernel.dtype),)]
        passes: list[tuple[Tensor, ...]] = self._terms()[1]
        return passes

    def _traced(self) -> bool:
        """Whether the kernel's gradient is wanted, or a graph in which it may become another one."""
        return torch.compiler.is_compiling() or (self.kernel.requires_grad and torch.is_grad_enabled())

    def _flipped(self, dtype: torch.dtype) -> Tensor:
        """``(C | 1, h, w)``."""
        return self.kernel.to(dtype).flip(-2, -1).reshape(-1, *self.kernel.shape[-2:])

    def _transfer(self, dtype: torch.dtype, start: tuple[int, int], transposed: bool) -> Tensor:
        """``(C | 1, m, n // 2 + 1)``: what the sums from ``-start`` on multiply spectra by."""

        def make() -> Tensor:
            kernel = self._flipped(dtype)
            kernel = kernel.flip(-2, -1) if transposed else kernel
            framed = F.pad(kernel, [side for n, m in zip(self._fft_size[::-1], kernel.shape[:0:-1], strict=True)
                                    for side in (0, n - m)])  # fmt: skip
            made: Tensor = torch.fft.rfft2(framed.roll([-n for n in start], (-2, -1))).conj()
            return made

        if self._traced():
            return make()
        transfer: Tensor = self._known(f"transfer {dtype} {start} {transposed}", make)
        return transfer

    def _matrices(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """For each term what rows and columns are multiplied by, ``(C | 1, H, H)`` and ``(C | 1, W, W)``."""

        def make() -> list[tuple[Tensor, Tensor]]:
            sides = self.domain_shape[-2:]
            return [
                (self._matrix(column, -2, sides[0]).to(dtype), self._matrix(row, -1, sides[1]).to(dtype))
                for row, column in self._terms()[3]
            ]

        matrices: list[tuple[Tensor, Tensor]] = self._known(f"matrices {dtype}", make)
        return matrices

    def _matrix(self, line: Tensor, axis: int, n: int) -> Tensor:
        """A pass along an axis, from what it makes of unit vectors: ``(C | 1, n, n)``."""
        units = torch.eye(n, dtype=line.dtype, device=line.device).reshape(n, 1, *((n, 1) if axis == -2 else (1, n)))
        framed = _extended(units, axis, *self._sides(axis), self.border).expand(-1, len(line), -1, -1)
        return _pass(framed, line, ((0, 0), (0, 0))).reshape(n, -1, n).permute(1, 2, 0).contiguous()

    def _terms(self) -> tuple[int, list[tuple[Tensor, ...]], int, list[tuple[Tensor, Tensor]]]:
        """How long the fewest passes take, in weights of a kernel, and the passes: the flipped kernel as a sum of
        products of lines, or as it is; the number of those products, and they, rows ``(C | 1, 1, w)`` first."""

        def make() -> tuple[int, list[tuple[Tensor, ...]], int, list[tuple[Tensor, Tensor]]]:
            flipped = self._flipped(torch.float64).detach()
            height, width = flipped.shape[1:]
            u, s, vh = torch.linalg.svd(flipped, full_matrices=False)
            # What is left out is below the rounding of the kernel's own entries.
            kept = s.flip(-1).cumsum(-1).flip(-1) > torch.finfo(self.kernel.dtype).eps * s[:, :1]
            rank = max(1, int(kept.sum(-1).max()))
            cost = rank * (_TERM + 2 * (height + width))
            columns = (u * s[:, None]).unsqueeze(2)  # (C | 1, h, 1, r)
            lines = [(vh[:, i, None], columns[..., i]) for i in range(rank)]
            if cost >= height * width or 1 in (height, width):
                return height * width, [(flipped,)], rank, lines
            return cost, [*lines], rank, lines

        known: tuple[int, list[tuple[Tensor, ...]], int, list[tuple[Tensor, Tensor]]] = self._known("terms", make)
        return known

    def _known(self, name: str, make: Callable[[], Any]) -> Any:
        """``make()``, kept until the kernel is replaced, moved or written to."""
        kernel = self.kernel
        state = (kernel.data_ptr(), 0 if kernel.is_inference() else kernel._version, kernel.device, kernel.dtype)
        known = self._derived.get(name)
        if known is None or known[0] != state:
            with torch.no_grad():
                known = self._derived[name] = (state, make())
        return known[1]


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _pass(x: Tensor, weights: Tensor, frame: Frame) -> Tensor:
    """``sum_j weights[j] x[i + j]`` of planes ``(N, C | 1, H, W)`` in a frame of zeros by ``(C | 1, h, w)``."""
    samples, channels = x.shape[:2]
    above, below = frame[0]
    rows = x.shape[2] + above + below - weights.shape[1] + 1
    if not x.numel():
        return x.new_zeros(samples, channels, rows, x.shape[3] + sum(frame[1]) - weights.shape[2] + 1) + x.sum()
    strips = min(-(-_STRIPS // (samples * channels)), -(-rows // 8))
    height = -(-rows // strips)
    # Not by the convolution's own padding, with which kernels of 15 and more take 10 to 30 times as long.
    x = F.pad(x, (*frame[1], above, below + strips * height - rows))
    if strips > 1:
        seen = height + weights.shape[1] - 1
        x = torch.stack([x[:, :, i * height : i * height + seen] for i in range(strips)], dim=2)
    # Planes of all samples, channels and strips are the channels of one image.
    kernels = weights[:, None, None].expand(-1, strips, -1, -1, -1).repeat(samples, 1, 1, 1, 1).flatten(0, 1)
    image = F.conv2d(x.reshape(1, -1, *x.shape[-2:]), kernels, groups=kernels.shape[0])
    return image.reshape(samples, channels, strips * height, -1)[:, :, :rows]


def _fast_size(n: int) -> int:
    """The next multiple of 4 without prime factors above 11: of others MKL's FFT takes up to seven times as long."""
    size = -(-n // 4) * 4
    while math.gcd(size, (2**20) * (3 * 5 * 7 * 11) ** 12) != size:
        size += 4
    return size


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


def _covered(half: int, inside: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Shares of the pixels from -half to half that are inside, by 16 x 16 points each."""
    fine, size = 16, 2 * half + 1
    points = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / fine - size / 2
    share: Tensor = inside(points[:, None], points[None, :]).double().reshape(size, fine, size, fine).mean(dim=(1, 3))
    return share / share.sum()
