"""Speed of pyrecon/ops/_langevin.py.

The rivals make other random numbers: what they give is asserted to lie within seven standard deviations of the drift.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon.ops import Moments, langevin_step

STEP, STD = 0.01, 0.1
COUNT = 9  # samples in the running moments before the step
SEED, COUNTER = 1, 5


class TorchStep:
    """The step in torch, noise and differences in buffers made once."""

    def __init__(self, x: Tensor, moments: Moments | None) -> None:
        self.out, self.noise = torch.empty_like(x), torch.empty_like(x)
        self.moments = moments
        if moments is not None:
            self.before, self.after = torch.empty_like(x), torch.empty_like(x)

    def __call__(self, x: Tensor, grad: Tensor) -> Tensor:
        (torch.view_as_real(self.noise) if x.is_complex() else self.noise).normal_()
        torch.add(x, grad, alpha=-STEP / 2, out=self.out).add_(self.noise, alpha=STD)
        if self.moments is not None:
            mean = self.moments.mean
            torch.sub(self.out, mean, out=self.before)
            mean.add_(self.before, alpha=1 / (COUNT + 1))
            torch.sub(self.out, mean, out=self.after)
            if x.is_complex():
                self.moments.m2.add_(self.before.mul_(self.after.conj()).real)
            else:
                self.moments.m2.addcmul_(self.before, self.after)
        return self.out


def plain_step(x: Tensor, grad: Tensor, out: Tensor, mean: Tensor | None, m2: Tensor | None) -> None:
    """What torch.compile fuses, noise included."""
    noise = torch.view_as_complex(torch.randn_like(torch.view_as_real(x))) if x.is_complex() else torch.randn_like(x)
    result = x - STEP / 2 * grad + STD * noise
    out.copy_(result)
    if mean is not None and m2 is not None:
        delta = result - mean
        new = mean + delta / (COUNT + 1)
        product = delta * (result - new).conj()
        mean.copy_(new)
        m2.add_(product.real if x.is_complex() else product)


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "torch.compile"])
@pytest.mark.parametrize("with_moments", [False, True], ids=["step", "moments"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((50, 320, 320), torch.float32), ((8, 320, 320), torch.complex64), ((64, 26, 13), torch.float32)],
    ids=["mri", "complex", "mpi"],
)
def test_langevin_step(
    timed: Callable[..., None], device: str, impl: str, with_moments: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad, mean = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    m2 = COUNT * torch.rand(shape, generator=generator)

    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected_moments = Moments(mean.to(wide), m2.double(), torch.tensor(COUNT)) if with_moments else None
    std = None if impl == "pyrecon" else 0.0
    with pyrecon.backend("reference"):
        law = langevin_step(x.to(wide), grad.to(wide), STEP, std, seed=SEED, counter=COUNTER, moments=expected_moments)
    expected = (law,) if expected_moments is None else (law, expected_moments.mean, expected_moments.m2)
    k = 16.0
    if impl != "pyrecon":
        k = 7 * STD * 2**0.5 / (torch.finfo(dtype).eps * float(expected[-min(2, len(expected))].abs().max()))
        expected = (*expected[:2], *(None for _ in expected[2:]))

    x, grad, mean, m2 = (t.to(device) for t in (x, grad, mean, m2))
    moments = Moments(mean, m2, torch.tensor(COUNT, device=device)) if with_moments else None
    eager, out = TorchStep(x, moments), torch.empty_like(x)
    compiled = torch.compile(plain_step, fullgraph=True)

    def run() -> tuple[Tensor, ...]:
        result = out
        if impl == "pyrecon":
            langevin_step(x, grad, STEP, seed=SEED, counter=COUNTER, moments=moments, out=out)
        elif impl == "torch":
            result = eager(x, grad)
        else:
            compiled(x, grad, out, *((mean, m2) if with_moments else (None, None)))
        return (result, mean, m2) if with_moments else (result,)

    whole = shape[0] == 50 and device == "cpu"
    timed(
        run,
        row=f"Langevin step {'x'.join(map(str, shape))}"
        f"{' complex' * dtype.is_complex}{', mean and variance' * with_moments}",
        impl=impl,
        expected=expected,
        k=k,
        goal={"ratio": 1 / 12 if with_moments else 1 / 8, "against": "torch"} if whole else None,
        bytes_moved=x.nbytes * 3 + (2 * (mean.nbytes + m2.nbytes) if with_moments else 0),
        sizes={"batch": shape[0], "height": shape[1], "width": shape[2]},
    )
