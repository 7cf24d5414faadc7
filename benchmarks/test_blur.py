"""Speed of pyrecon/linops/blur.py: a Gaussian of lines, a kernel that is no product of lines, a large one.

Every rival computes the same image: the kernels are symmetric, so that convolution and correlation agree, the border is
zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch import Tensor

from pyrecon.linops import Blur, disk_kernel, gaussian_kernel

KERNELS = {
    "9x9 Gaussian": gaussian_kernel(9, 5.0),
    "7x7 disc": disk_kernel(3.3),
    "41x41 Gaussian": gaussian_kernel(41, 60.0),
    "41x41 disc": disk_kernel(20.3),
}


def ours(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    blur = Blur(kernel, (x.shape[2], x.shape[3]), channels=x.shape[1])
    return lambda: blur(x)


def direct(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    planes = x.flatten(0, 1)[:, None]
    return lambda: torch.nn.functional.conv2d(planes, kernel[None, None], padding="same").view(x.shape)


def by_groups(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    weights = kernel.expand(x.shape[1], 1, *kernel.shape).contiguous()
    return lambda: torch.nn.functional.conv2d(x, weights, padding="same", groups=x.shape[1])


def ndimage(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    image, weights = x.numpy(), kernel.numpy()[None, None]
    return lambda: torch.from_numpy(scipy.ndimage.convolve(image, weights, mode="constant"))


def fftconvolve(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    image, weights = x.numpy(), kernel.numpy()[None, None]
    return lambda: torch.from_numpy(scipy.signal.fftconvolve(image, weights, mode="same", axes=(2, 3)))


def deepinv(name: str, **options: Any) -> Callable[[Tensor, Tensor], Callable[[], Tensor]]:
    """Its Blur with zeros beyond the border; its BlurFFT is periodic, and so gets a frame of zeros."""

    def make(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
        from deepinv import physics

        if name == "Blur":
            blur = physics.Blur(filter=kernel[None, None], **options)
            return lambda: blur.A(x)
        half = kernel.shape[0] // 2
        size = (x.shape[1], x.shape[2] + 2 * half, x.shape[3] + 2 * half)
        periodic = physics.BlurFFT(img_size=size, filter=kernel[None, None])

        def run() -> Tensor:
            framed = torch.nn.functional.pad(x, (half, half, half, half))
            return periodic.A(framed)[..., half:-half, half:-half]

        return run

    return make


RIVALS = {
    "pyrecon": ours,
    "torch conv2d": direct,
    "torch conv2d, groups": by_groups,
    "scipy.ndimage": ndimage,
    "scipy fftconvolve": fftconvolve,
    "deepinv Blur": deepinv("Blur", padding="constant"),
    "deepinv BlurFFT": deepinv("BlurFFT"),
}
SLOW = ("torch conv2d", "torch conv2d, groups", "scipy.ndimage", "deepinv Blur")  # seconds a call for large kernels


@pytest.mark.parametrize(
    ("name", "impl"), [(name, impl) for name in KERNELS for impl in RIVALS if name[0] != "4" or impl not in SLOW]
)
@pytest.mark.parametrize("shape", [(8, 3, 128, 128), (1, 1, 512, 512)], ids=str)
def test_forward(timed: Callable[..., None], impl: str, name: str, shape: tuple[int, ...], peer: Any) -> None:
    if impl.startswith("deepinv"):
        peer("deepinv")
    kernel = KERNELS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = Blur(kernel, (shape[2], shape[3]), channels=shape[1], method="fft")(x.double())
    timed(
        RIVALS[impl](x, kernel.float()),
        row=f"blur {'x'.join(map(str, shape))}, {name}",
        impl=impl,
        expected=expected,
        k=64,
        bytes_moved=2 * x.numel() * x.element_size(),
        sizes={"batch": shape[0], "channels": shape[1], "size": shape[2], "kernel": kernel.shape[0]},
    )
