"""Speed of pyrecon/solvers/_ipalm.py and _nlinv.py and of ops/_charbonnier.py: joint image and coil maps, no network.

The rival makes the same iterations in torch: transforms by torch.fft along both axes, as a full-size mask needs them,
sine transforms as matrix products, total variation by differences of the image. Nonlinear inversion has BART's beside
it, by bartorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon.data.fourier import fft_centered, ifft_centered
from pyrecon.ops import charbonnier
from pyrecon.physics.mri import coil_maps, head_phantom
from pyrecon.solvers import Charbonnier, conjugate_gradient, ipalm, nlinv
from pyrecon.solvers import _ipalm as ours

LAM, MU, CONTINUATION, DECAY = 1e-3, 0.1, 100.0, 0.95
EPSILON = 1e-3
AXES = (-2, -1)


class TorchLoop:
    """The iterations of :func:`pyrecon.solvers.ipalm` for one sample, one torch operation after the other."""

    def __init__(self, kspace: Tensor, mask: Tensor) -> None:
        self.weights = torch.fft.ifftshift(mask.to(kspace.real.dtype).expand(1, 1, *kspace.shape[2:]), dim=AXES)
        moved = torch.fft.ifftshift(kspace, dim=AXES) * self.weights
        self.data = torch.fft.fftshift(torch.fft.ifft2(moved, norm="ortho"), dim=AXES)
        self.prior = Charbonnier()
        self.sines, self.eigenvalues = zip(*(self._sine(n, kspace.real.dtype) for n in kspace.shape[2:]), strict=True)

    @staticmethod
    def _sine(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        k = torch.arange(1, n + 1, dtype=torch.float64)
        matrix = math.sqrt(2 / (n + 1)) * torch.sin(math.pi / (n + 1) * torch.outer(k, k))
        return matrix.to(dtype), (2 - 2 * torch.cos(math.pi * k / (n + 1))).to(dtype)

    def gram(self, coils: Tensor) -> Tensor:
        return torch.fft.ifft2(self.weights * torch.fft.fft2(coils, norm="ortho"), norm="ortho")

    def smooth(self, maps: Tensor, weight: float) -> Tensor:
        rows, cols = self.sines
        damping = 1 + weight * (self.eigenvalues[0][:, None] + self.eigenvalues[1])
        parts = [rows @ ((rows @ part @ cols) / damping) @ cols for part in (maps.real, maps.imag)]
        return torch.complex(*parts)

    @staticmethod
    def unit(maps: Tensor) -> Tensor:
        return maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()

    def __call__(self, iterations: int) -> tuple[Tensor, Tensor]:
        data = self.data
        maps = before = self.unit(self.smooth(data, ours._START_SMOOTHING))
        u = u_before = (maps.conj() * data).sum(1).real.clamp(min=0)
        L_u = L_maps = 1.0
        for k in range(1, iterations + 1):
            beta = k / (k + 3) if k > 1 else 0.0
            bar = u + beta * (u - u_before)
            gradient = (maps.conj() * (self.gram(maps * bar[:, None]) - data)).sum(1).real
            with pyrecon.backend("reference"):
                gradient = gradient + LAM * self.prior.energy_and_gradient(bar)[1]
            while True:
                new = (bar - gradient / L_u).clamp(min=0)
                d = new - bar
                with pyrecon.backend("reference"):
                    needed = 1 + LAM * float(self.prior.curvature(bar, d)) / float(d.square().sum())
                if needed <= L_u:
                    break
                L_u *= ours._GROW
            u, u_before = new, u
            L_u = max(L_u / ours._SHRINK, min(L_u, ours._MARGIN * needed), 1.0)

            mu = MU * max(1.0, CONTINUATION * DECAY**k)
            bar = maps + beta * (maps - before)
            root = bar.abs().square().sum(dim=1, keepdim=True).sqrt()
            n = bar / root
            residual = self.gram(n * u[:, None]) - data
            along = (n.conj() * residual).sum(dim=1, keepdim=True).real
            gradient = u[:, None] * (residual - n * along) / root
            floor = ours._FLOOR * float(u.max()) ** 2
            L_maps = max(L_maps, floor)
            while True:
                new = self.smooth(bar - gradient / L_maps, mu / L_maps)
                after = new.abs().square().sum(dim=1, keepdim=True).sqrt()
                e = new / after - n
                rise = (root - after)[:, 0] * (gradient.conj() * e).sum(1).real
                rise = rise + e.abs().square().sum(1) * u * (u - along[:, 0]) / 2
                needed = 2 * float(rise.sum()) / float((new - bar).abs().square().sum())
                if needed <= L_maps:
                    break
                L_maps *= ours._GROW
            maps, before = new / after, maps
            L_maps = max(L_maps / ours._SHRINK, min(L_maps, ours._MARGIN * needed), floor)
        return u, maps


def measured(coils: int, rows: int, cols: int, points: bool) -> tuple[Tensor, Tensor]:
    """A third of the lines, or of all points, with 24 lines in the centre; noise of 1 % of the brightest pixel."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 1, rows if points else 1, cols, generator=generator) < 0.3
    mask[..., mask.shape[2] // 2, cols // 2 - 12 : cols // 2 + 12] = True
    image = head_phantom((rows, cols), seed=0)
    seen = image[:, None] * coil_maps((rows, cols), coils)
    seen = seen / torch.linalg.vector_norm(seen, dim=1).max()
    kspace = fft_centered(seen)
    return mask * (kspace + 0.01 * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)), mask


def plain_nlinv(kspace: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The image by the steps of :func:`pyrecon.solvers.nlinv`, with all coefficients of the maps and whole transforms
    of them."""
    rows, cols = kspace.shape[2:]
    ky, kx = ((torch.arange(n, dtype=kspace.real.dtype) - n // 2) / 256 for n in (rows, cols))
    weight = (1 + 220 * (ky[:, None] ** 2 + kx**2)).pow(-16)
    taken = mask.to(kspace.real.dtype)
    scale = 100 / 256 * math.sqrt(rows * cols) / float(torch.linalg.vector_norm(kspace))
    start = torch.cat((torch.ones_like(kspace[:, :1]), torch.zeros_like(kspace)), dim=1)
    x = start
    for n in range(steps):
        alpha, rho, maps = 0.5**n, x[:, :1], ifft_centered(weight * x[:, 1:])

        def forward(d: Tensor, rho: Tensor = rho, maps: Tensor = maps) -> Tensor:
            return taken * fft_centered(d[:, :1] * maps + rho * ifft_centered(weight * d[:, 1:]))

        def adjoint(k: Tensor, rho: Tensor = rho, maps: Tensor = maps) -> Tensor:
            coils = ifft_centered(taken * k)
            of_image = (maps.conj() * coils).sum(dim=1, keepdim=True)
            return torch.cat((of_image, weight * fft_centered(rho.conj() * coils)), dim=1)

        right = adjoint(scale * kspace - taken * fft_centered(rho * maps)) + alpha * (start - x)
        found = conjugate_gradient(lambda d, a=alpha, f=forward, g=adjoint: g(f(d)) + a * d, right, rtol=0.1)  # type: ignore[misc]
        x = x + found.value
    return x[:, 0] * torch.linalg.vector_norm(ifft_centered(weight * x[:, 1:]), dim=1) / scale


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bartorch"])
def test_nlinv(timed: Callable[..., None], peer: Callable[[str], Any], device: str, impl: str) -> None:
    if device != "cpu":
        pytest.skip("the loop is timed on a CPU")
    coils, size, steps = 8, 256, 8
    kspace, mask = measured(coils, size, size, False)
    expected = plain_nlinv(kspace.to(torch.complex128), mask, steps).abs()

    def in_bart() -> Tensor:
        # Its images have a scale that changes from step to step, which is no part of the comparison.
        image = peer("bartorch").tools.nlinv(kspace[0][:, None], maxiter=steps).abs().view(1, size, size)
        return image * ((image * expected).sum() / image.square().sum()).float()

    timed(
        {
            "pyrecon": lambda: nlinv(kspace, mask, steps=steps).value[0].abs(),
            "torch": lambda: plain_nlinv(kspace, mask, steps).abs(),
            "bartorch": in_bart,
        }[impl],
        row=f"nonlinear inversion {coils}x{size}x{size}, {steps} steps",
        impl=impl,
        expected=expected,
        # Conjugate gradients that end at a tenth of their residual keep the roundings of every iteration; BART's linear
        # problems end elsewhere.
        k=3e6 if impl == "bartorch" else 1e4,
        sizes={"coils": coils, "height": size, "width": size, "steps": steps},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize(
    ("coils", "rows", "cols", "points"),
    [(15, 640, 368, False), (5, 640, 368, False), (8, 128, 128, True)],
    ids=["mri", "compressed", "points"],
)
def test_joint(
    timed: Callable[..., None], device: str, impl: str, coils: int, rows: int, cols: int, points: bool
) -> None:
    if device != "cpu":
        pytest.skip("the loop is timed on a CPU")
    iterations = 3
    kspace, mask = measured(coils, rows, cols, points)
    expected = TorchLoop(kspace.to(torch.complex128), mask)(iterations)[0]
    loop = TorchLoop(kspace, mask)
    # 3 iterations, each a few roundings of transforms and of a division by maps that are small outside the body.
    timed(
        (lambda: ipalm(kspace, mask, Charbonnier(), lam=LAM, mu=MU, max_iter=iterations).value[0])
        if impl == "pyrecon"
        else (lambda: loop(iterations)[0]),
        row=f"joint image and maps {coils}x{rows}x{cols}{', points' if points else ''}, {iterations} iterations",
        impl=impl,
        expected=expected,
        k=1000,
        goal={"ratio": 1 / 5, "against": "torch"} if coils == 15 else None,
        bytes_moved=None,
        sizes={"coils": coils, "height": rows, "width": cols, "iterations": iterations},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "torch.compile"])
@pytest.mark.parametrize("batch", [1, 16], ids=["mri", "batch"])
def test_charbonnier(timed: Callable[..., None], device: str, impl: str, batch: int) -> None:
    rows, cols = (640, 368) if batch == 1 else (320, 320)
    u = head_phantom((rows, cols), seed=0).real.expand(batch, -1, -1).contiguous().to(device)
    u += 0.01 * torch.randn(u.shape, generator=torch.Generator().manual_seed(0)).to(device)
    out = (u.new_empty(batch), torch.empty_like(u))

    def plain(u: Tensor) -> tuple[Tensor, Tensor]:
        down, right = u[:, 1:] - u[:, :-1], u[:, :, 1:] - u[:, :, :-1]
        pad = torch.nn.functional.pad
        root = (pad(down, (0, 0, 0, 1)).square() + pad(right, (0, 1)).square() + EPSILON**2).sqrt()
        down, right = down / root[:, :-1], right / root[:, :, :-1]
        gradient = pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))
        return root.sum(dim=(1, 2), dtype=torch.float64).float(), gradient

    compiled = torch.compile(plain) if impl == "torch.compile" else plain
    with pyrecon.backend("reference"):
        expected = charbonnier(u.double(), EPSILON)
    timed(
        (lambda: charbonnier(u, EPSILON, out=out)) if impl == "pyrecon" else (lambda: compiled(u)),
        row=f"Charbonnier energy and gradient {batch}x{rows}x{cols}",
        impl=impl,
        expected=expected,
        # Differences of numbers of size 1 over epsilon: their roundings are 1 / epsilon larger in the quotient.
        k=2 / EPSILON,
        goal=None,
        bytes_moved=2 * u.numel() * u.element_size(),
        sizes={"batch": batch, "height": rows, "width": cols},
    )
