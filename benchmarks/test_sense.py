"""Speed of pyrecon/ops/_sense.py at the size of a fastMRI brain slice.

The goals are stated against torch's bare transform of the coil data, without maps, mask, shifts or the sum over coils:
no composition of torch operations can beat it. "torch" is the usual composition of torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log2
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon.ops import sense_adjoint, sense_forward, sense_normal

COILS, ROWS, COLS = 15, 640, 368
SIZES = {"coils": COILS, "rows": ROWS, "cols": COLS}
AXES = (-2, -1)
IMAGE_BYTES = 8 * ROWS * COLS
COIL_BYTES = COILS * IMAGE_BYTES
K = log2(ROWS * COLS) + 8  # see the case table: one rounding per level of a transform, and a few
MASKS = {"2-D mask": (ROWS, COLS), "1-D mask along W": (1, COLS), "1-D mask along H": (ROWS, 1)}


@cache
def inputs(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Image, maps and k-space."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, ROWS, COLS), (1, COILS, ROWS, COLS), (1, COILS, ROWS, COLS)
    image, maps, kspace = (torch.randn(shape, generator=generator, dtype=torch.complex64) for shape in shapes)
    return image.to(device), maps.to(device), kspace.to(device)


@cache
def mask(name: str, device: str = "cpu") -> Tensor:
    return (torch.rand(1, 1, *MASKS[name], generator=torch.Generator().manual_seed(1)) > 0.7).float().to(device)


@cache
def expected(op: Callable[..., Tensor], mask_name: str) -> Tensor:
    image, maps, kspace = (t.to(torch.complex128) for t in inputs())
    with pyrecon.backend("reference"):
        return op(kspace if op is sense_adjoint else image, maps, mask(mask_name).double())


@cache
def spectrum() -> Tensor:
    return torch.fft.fft2(inputs()[1].to(torch.complex128), norm="ortho")


def fourier(x: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=AXES), norm="ortho"), dim=AXES)


def fourier_adjoint(k: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, dim=AXES), norm="ortho"), dim=AXES)


def bare_pair(maps: Tensor, k: Tensor, out: Tensor) -> Tensor:
    torch.fft.fft2(maps, norm="ortho", out=k)
    return torch.fft.ifft2(k, norm="ortho", out=out)


class Peers:
    """The operator as other packages have it: ``forward``, ``adjoint`` and ``normal`` on what :func:`inputs` gives."""

    def __init__(self, peer: Callable[[str], Any], name: str) -> None:
        image, maps, kspace = inputs()
        sampled = mask("2-D mask")
        getattr(self, f"_{name}")(peer, image, maps, kspace, sampled)

    def _mrpro(self, peer: Callable[[str], Any], image: Tensor, maps: Tensor, kspace: Tensor, sampled: Tensor) -> None:
        operators = peer("mrpro").operators  # (batch, coils, z, y, x)
        sense, fourier = operators.SensitivityOp(maps[:, :, None]), operators.FastFourierOp(dim=AXES)
        x, k, m = image[:, None, None], kspace[:, :, None], sampled[:, :, None]
        self.forward = lambda: (m * fourier(*sense(x))[0])[:, :, 0]
        self.adjoint = lambda: sense.adjoint(*fourier.adjoint(m * k))[0][:, 0, 0]
        self.normal = lambda: sense.adjoint(*fourier.adjoint(m.square() * fourier(*sense(x))[0]))[0][:, 0, 0]

    def _deepinv(
        self, peer: Callable[[str], Any], image: Tensor, maps: Tensor, kspace: Tensor, sampled: Tensor
    ) -> None:
        physics = peer("deepinv.physics").MultiCoilMRI(mask=sampled, coil_maps=maps, img_size=(2, ROWS, COLS))
        x, k = (torch.stack((t.real, t.imag), dim=1) for t in (image, kspace))
        self.forward = lambda: torch.complex(*physics.A(x).unbind(1))
        self.adjoint = lambda: torch.complex(*physics.A_adjoint(k).unbind(1))
        self.normal = lambda: torch.complex(*physics.A_adjoint_A(x).unbind(1))

    def _sigpy(self, peer: Callable[[str], Any], image: Tensor, maps: Tensor, kspace: Tensor, sampled: Tensor) -> None:
        operator = peer("sigpy.mri").linop.Sense(maps[0].numpy(), weights=sampled[0].square().numpy())
        x, k = image[0].numpy(), kspace[0].numpy()
        backwards, normal = operator.H, operator.N
        self.forward = lambda: torch.from_numpy(operator(x))[None]
        self.adjoint = lambda: torch.from_numpy(backwards(k))[None]
        self.normal = lambda: torch.from_numpy(normal(x))[None]


PEERS = ("mrpro", "deepinv", "sigpy")


def on_cpu(impl: str, device: str) -> None:
    if impl in PEERS and device != "cpu":
        pytest.skip("the peers are timed on the CPU")


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bare FFT", *PEERS])
def test_forward(timed: Callable[..., None], peer: Callable[[str], Any], device: str, impl: str) -> None:
    on_cpu(impl, device)
    image, maps, _ = inputs(device)
    sampled, out = mask("2-D mask", device), torch.empty_like(maps)
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_forward(image, maps, sampled, out=out),
        "torch": lambda: torch.mul(fourier(maps * image[:, None]), sampled, out=out),
        "bare FFT": lambda: torch.fft.fft2(maps, norm="ortho", out=out),
    }
    timed(
        Peers(peer, impl).forward if impl in PEERS else calls[impl],
        row="SENSE forward 15x640x368",
        impl=impl,
        expected=spectrum() if impl == "bare FFT" else expected(sense_forward, "2-D mask"),
        k=K,
        goal={"ratio": 0.65, "against": "bare FFT"},
        bytes_moved=2 * COIL_BYTES + IMAGE_BYTES,
        sizes=SIZES,
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bare FFT", *PEERS])
def test_adjoint(timed: Callable[..., None], peer: Callable[[str], Any], device: str, impl: str) -> None:
    on_cpu(impl, device)
    image, maps, kspace = inputs(device)
    sampled, out, coils = mask("2-D mask", device), torch.empty_like(image), torch.empty_like(maps)
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_adjoint(kspace, maps, sampled, out=out),
        "torch": lambda: torch.sum(maps.conj() * fourier_adjoint(sampled * kspace), dim=1, out=out),
        "bare FFT": lambda: torch.fft.fft2(maps, norm="ortho", out=coils),
    }
    timed(
        Peers(peer, impl).adjoint if impl in PEERS else calls[impl],
        row="SENSE adjoint 15x640x368",
        impl=impl,
        expected=spectrum() if impl == "bare FFT" else expected(sense_adjoint, "2-D mask"),
        k=K,
        goal={"ratio": 0.65, "against": "bare FFT"},
        bytes_moved=2 * COIL_BYTES + IMAGE_BYTES,
        sizes=SIZES,
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bare FFT + inverse", *PEERS])
@pytest.mark.parametrize("name", MASKS)
def test_normal(timed: Callable[..., None], peer: Callable[[str], Any], device: str, name: str, impl: str) -> None:
    on_cpu(impl, device)
    if impl in PEERS and name != "2-D mask":
        pytest.skip("no peer uses the shape of a mask: their time is that of a 2-D one")
    image, maps, _ = inputs(device)
    sampled, out, k, coils = mask(name, device), torch.empty_like(image), torch.empty_like(maps), torch.empty_like(maps)
    squared = sampled.square()
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_normal(image, maps, sampled, out=out),
        "torch": lambda: torch.sum(
            maps.conj() * fourier_adjoint(squared * fourier(maps * image[:, None])), dim=1, out=out
        ),
        "bare FFT + inverse": lambda: bare_pair(maps, k, coils),
    }
    timed(
        Peers(peer, impl).normal if impl in PEERS else calls[impl],
        row=f"SENSE normal 15x640x368, {name}",
        impl=impl,
        expected=maps.cpu().to(torch.complex128) if impl == "bare FFT + inverse" else expected(sense_normal, name),
        k=2 * K,
        goal={"ratio": 0.45 if name == "2-D mask" else 0.2, "against": "bare FFT + inverse"},
        bytes_moved=COIL_BYTES + 2 * IMAGE_BYTES,
        sizes=SIZES,
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
def test_frames(timed: Callable[..., None], impl: str) -> None:
    """A dynamic scan: 32 frames of 8 coils share their maps, every frame has lines of its own."""
    frames, coils, n = 32, 8, 256
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(frames, n, n, generator=generator, dtype=torch.complex64)
    maps = torch.randn(1, coils, n, n, generator=generator, dtype=torch.complex64)
    lines = (torch.rand(frames, 1, n, 1, generator=generator) > 0.7).float()
    out = torch.empty_like(image)
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_normal(image, maps, lines, out=out),
        "torch": lambda: torch.sum(
            maps.conj() * fourier_adjoint(lines * fourier(maps * image[:, None])), dim=1, out=out
        ),
    }
    with pyrecon.backend("reference"):
        wide = sense_normal(image.to(torch.complex128), maps.to(torch.complex128), lines.double())
    timed(
        calls[impl],
        row=f"SENSE normal {frames} frames x {coils} coils x {n}x{n}, lines",
        impl=impl,
        expected=wide,
        k=2 * K,
        bytes_moved=8 * n * n * (2 * frames + coils),
        flops=frames * coils * n * n * (2 * 5 * 8 + 16),  # two transforms of 256 points each, two complex products
        sizes={"frames": frames, "coils": coils, "n": n},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
def test_backward(timed: Callable[..., None], impl: str) -> None:
    """A gradient through the normal operator to image and maps, as unrolled models take it."""
    image, maps, _ = inputs()
    sampled = mask("2-D mask")

    def normal(x: Tensor, s: Tensor) -> Tensor:
        if impl == "pyrecon" and x.dtype == torch.complex64:
            return sense_normal(x, s, sampled)
        m = sampled.to(x.real.dtype)
        return torch.sum(s.conj() * fourier_adjoint(m * fourier(s * x[:, None])), dim=1)

    def gradients(x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        x, s = x.detach().requires_grad_(), s.detach().requires_grad_()
        return torch.autograd.grad(normal(x, s), (x, s), x.detach())

    timed(
        lambda: gradients(image, maps),
        row="SENSE normal 15x640x368, forward and backward",
        impl=impl,
        expected=gradients(image.to(torch.complex128), maps.to(torch.complex128)),
        k=4 * K,
        sizes=SIZES,
    )
