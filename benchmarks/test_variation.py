"""Speed of pyrecon/ops/_variation.py.

Rivals minimise the same function, each with the iterations it needs to come within 3e-3 of the largest pixel of the
solution (the accuracy every entry is asserted to have); the rows with 50 iterations compare equal numbers of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrecon.ops import soft_threshold, tv_prox
from pyrecon.testing.cases.variation import noisy_blocks

ACCURACY = 3e-3
WEIGHT = 0.1


class FGP:
    """The fast gradient projection of Beck and Teboulle in torch, in buffers made once."""

    def __init__(self, x: Tensor, iterations: int) -> None:
        self.iterations = iterations
        self.u, self.length = torch.empty_like(x), torch.empty_like(x.real)
        self.p, self.q, self.r, self.d = (torch.zeros(2, *x.shape, dtype=x.dtype) for _ in range(4))

    def __call__(self, x: Tensor) -> Tensor:
        p, q, r, d = self.p.zero_(), self.q, self.r.zero_(), self.d
        t = 1.0
        for _ in range(self.iterations):
            u = self._image(x, r)
            torch.sub(u[..., 1:, :], u[..., :-1, :], out=d[0, ..., :-1, :])
            torch.sub(u[..., 1:], u[..., :-1], out=d[1, ..., :-1])
            torch.add(r, d, alpha=0.125, out=q)
            torch.linalg.vector_norm(q, dim=0, out=self.length)
            q *= WEIGHT / self.length.clamp_(min=WEIGHT)
            t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
            torch.lerp(p, q, 1 + (before - 1) / t, out=r)
            p, q = q, p
        return self._image(x, p)

    def _image(self, x: Tensor, q: Tensor) -> Tensor:
        u = self.u.copy_(x)
        u[..., :-1, :] += q[0, ..., :-1, :]
        u[..., 1:, :] -= q[0, ..., :-1, :]
        u[..., :-1] += q[1, ..., :-1]
        u[..., 1:] -= q[1, ..., :-1]
        return u


def image(x: Tensor, q: Tensor) -> Tensor:
    down, right = q[0, ..., :-1, :], q[1, ..., :-1]
    pad = torch.nn.functional.pad
    return x + pad(down, (0, 0, 0, 1)) - pad(down, (0, 0, 1, 0)) + pad(right, (0, 1)) - pad(right, (1, 0))


@torch.compile(fullgraph=True)
def fgp_step(x: Tensor, p: Tensor, r: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    u = image(x, r)
    pad = torch.nn.functional.pad
    d = torch.stack((pad(u.diff(dim=-2), (0, 0, 0, 1)), pad(u.diff(dim=-1), (0, 1))))
    z = r + d / 8
    q = z * (WEIGHT / z.square().sum(0).sqrt().clamp(min=WEIGHT))
    return q, q + momentum * (q - p)


def compiled_fgp(x: Tensor, iterations: int) -> Callable[[], Tensor]:
    momenta, t = [], 1.0
    for _ in range(iterations):
        t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        momenta.append(torch.tensor((before - 1) / t, dtype=x.dtype))
    zero = torch.zeros(2, *x.shape, dtype=x.dtype)

    def run() -> Tensor:
        p = r = zero
        for momentum in momenta:
            p, r = fgp_step(x, p, r, momentum)
        return image(x, p)

    return run


def scikit_image(x: Tensor, iterations: int) -> Callable[[], Tensor]:
    from skimage.restoration import denoise_tv_chambolle

    images = list(x.numpy())
    return lambda: torch.stack(
        [torch.from_numpy(denoise_tv_chambolle(i, WEIGHT, eps=0, max_num_iter=iterations)) for i in images]
    )


def deepinv(x: Tensor, iterations: int) -> Callable[[], Tensor]:
    pytest.importorskip("deepinv", exc_type=ImportError)
    from deepinv.models import TVDenoiser

    model, images = TVDenoiser(n_it_max=iterations, crit=0.0), x[:, None]
    return lambda: model(images, ths=WEIGHT)[:, 0]


def ours(x: Tensor, iterations: int) -> Callable[[], Tensor]:
    out = torch.empty_like(x)
    return lambda: tv_prox(x, WEIGHT, iterations=iterations, out=out)


def fgp(x: Tensor, iterations: int) -> Callable[[], Tensor]:
    loop = FGP(x, iterations)
    return lambda: loop(x)


RIVALS = {
    "pyrecon": ours,
    "torch": fgp,
    "torch.compile": compiled_fgp,
    "scikit-image": scikit_image,
    "deepinv": deepinv,
}
NEEDED = {"pyrecon": 36, "torch": 50, "torch.compile": 50, "scikit-image": 300, "deepinv": 200}


def run(
    timed: Callable[..., None], x: Tensor, row: str, impl: str, iterations: int, goal: dict[str, object] | None
) -> None:
    solution = tv_prox(x.to(torch.promote_types(x.dtype, torch.float64)), WEIGHT, iterations=1000)
    # One pass per iteration: x, q and s in, q and s out.
    bytes_moved = 9 * x.numel() * x.element_size() * iterations if impl == "pyrecon" else None
    timed(
        RIVALS[impl](x, iterations),
        row=row,
        impl=impl,
        expected=solution,
        k=ACCURACY / torch.finfo(x.dtype).eps,
        goal=goal,
        bytes_moved=bytes_moved,
        sizes={"batch": x.shape[0], "height": x.shape[1], "width": x.shape[2], "iterations": iterations},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "torch.compile"])
@pytest.mark.parametrize("shape", [(64, 26, 13), (1, 26, 13), (1, 512, 512)], ids=str)
def test_fifty_iterations(timed: Callable[..., None], impl: str, shape: tuple[int, int, int]) -> None:
    x = noisy_blocks(torch.Generator().manual_seed(0), *shape, torch.float32)
    batch, height, width = shape
    goal = {"ratio": 1 / 15, "against": "torch"} if batch == 64 else None
    run(timed, x, f"TV prox, {batch} x {height}x{width}, 50 iterations", impl, 50, goal)


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
def test_complex(timed: Callable[..., None], impl: str) -> None:
    x = noisy_blocks(torch.Generator().manual_seed(0), 1, 640, 368, torch.complex64)
    run(timed, x, "TV prox, 640x368 complex, 50 iterations", impl, 50, None)


@pytest.mark.parametrize("impl", list(RIVALS))
@pytest.mark.parametrize("shape", [(64, 26, 13), (1, 512, 512)], ids=str)
def test_equal_accuracy(timed: Callable[..., None], impl: str, shape: tuple[int, int, int]) -> None:
    x = noisy_blocks(torch.Generator().manual_seed(0), *shape, torch.float32)
    batch, height, width = shape
    run(timed, x, f"TV prox, {batch} x {height}x{width}, error < {ACCURACY:g}", impl, NEEDED[impl], None)


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["real", "complex"])
def test_soft_threshold(timed: Callable[..., None], impl: str, dtype: torch.dtype) -> None:
    x = torch.randn(8, 640, 368, dtype=dtype, generator=torch.Generator().manual_seed(0))
    out, length = torch.empty_like(x), torch.empty_like(x.real)

    def shrink() -> Tensor:
        if not x.is_complex():
            return torch.nn.functional.softshrink(x, 0.3)
        torch.abs(x, out=length)
        return torch.mul(x, length.sub_(0.3).clamp_(min=0).div_(length + 0.3), out=out)

    timed(
        {"pyrecon": lambda: soft_threshold(x, 0.3, out=out), "torch": shrink}[impl],
        row=f"soft threshold, 8x640x368 {'complex' if x.is_complex() else 'real'}",
        impl=impl,
        expected=x.to(torch.complex128 if x.is_complex() else torch.float64)
        * (1 - 0.3 / x.abs().double()).clamp(min=0),
        k=8,
        bytes_moved=2 * x.numel() * x.element_size(),
        sizes={"elements": x.numel()},
    )
