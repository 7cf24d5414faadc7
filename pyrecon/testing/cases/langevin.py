from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import Moments, langevin_step
from pyrecon.testing.cases._case import Case, Make, randn

REAL = (torch.float32, torch.float64)


def langevin_moments(
    x: Tensor,
    grad: Tensor,
    step: Tensor,
    mean: Tensor,
    m2: Tensor,
    count: Tensor,
    *,
    counter: int | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The step with moments as a function of its inputs alone: the result, the new mean, the new m2.

    Without a counter the step takes the number of samples, a tensor, for one.
    """
    result, new_mean, new_m2 = out or (None, torch.empty_like(mean), torch.empty_like(m2))
    moments = Moments(new_mean.copy_(mean), new_m2.copy_(m2), count.clone())
    number = count if counter is None else counter
    result = langevin_step(x, grad, step, moments=moments, counter=number, out=result, **options)
    return out or (result, moments.mean, moments.m2)


def _samples(*shape: int, steps: int = 0, noise: bool = False) -> Make:
    """x, grad and a step of about 0.3 for all (``steps`` 0) or one each."""

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        x, grad = (randn(generator, *shape, dtype=dtype) for _ in range(2))
        step = torch.linspace(0.2, 0.4, steps or 1, dtype=torch.float64).to(dtype.to_real())
        step = step if steps else step[0]
        return (x, grad, step, 2 * step) if noise else (x, grad, step)

    return make


def _with_moments(make: Make, count: int) -> Make:
    def more(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        x, grad, step = make(generator, dtype)
        mean, m2 = randn(generator, *x.shape, dtype=dtype), count * randn(generator, *x.shape, dtype=dtype).abs()
        return x, grad, step, mean, m2, torch.tensor(count)

    return more


# k: the noise is within 3 eps of its largest value (measured 1.2), and three more roundings follow.
# With moments: m2 sums the product of two differences whose scale is twice that of x.
FIRST: dict[str, Any] = {"seed": 0, "counter": 0}
FAR: dict[str, Any] = {"seed": 2**63 - 3, "counter": 2**40 + 5, "offset": 2**36 - 7}  # words change halfway
CASES: tuple[Case, ...] = (
    Case(langevin_step, "3x7", _samples(3, 7), k=8, options=FIRST, tiny=True, grad=(0, 1, 2)),
    Case(langevin_step, "2x150-far", _samples(2, 150, noise=True), k=8, options=FAR, tiny=True, grad=(2, 3)),
    Case(langevin_step, "4x5-steps-nonneg", _samples(4, 5, steps=4), k=8, options={**FAR, "nonneg": True},
         dtypes=REAL, tiny=True, grad=(0, 1, 2)),
    Case(langevin_step, "3x2x35-steps", _samples(3, 2, 35, steps=3, noise=True), k=8, options={**FAR, "counter": 3},
         tiny=True, grad=(0, 1, 2, 3)),
    Case(langevin_step, "number", _samples(), k=8, options=FIRST, tiny=True),
    Case(langevin_step, "empty-batch", _samples(0, 5, steps=0), k=8, options=FIRST),
    Case(langevin_step, "empty-rows", _samples(3, 0, steps=3), k=8, options=FIRST),
    Case(langevin_step, "one-each", _samples(333, steps=333), k=8, options=FAR),
    Case(langevin_step, "odd", _samples(3, 20011), k=8, options=FAR),
    Case(langevin_step, "odd-steps", _samples(5, 61, 83, steps=5), k=8, options=FAR),
    Case(langevin_step, "mri", _samples(2, 320, 320), k=8, options={**FIRST, "offset": 64}),
    Case(langevin_moments, "3x7", _with_moments(_samples(3, 7), 3), k=16, options={"seed": 1}, tiny=True),
    Case(langevin_moments, "2x75-nonneg", _with_moments(_samples(2, 75, steps=2), 1), k=16,
         options={**FAR, "nonneg": True}, dtypes=REAL, tiny=True),
    Case(langevin_moments, "5x61x41-steps", _with_moments(_samples(5, 61, 41, steps=5), 7), k=16, options=FAR),
    Case(langevin_moments, "mri", _with_moments(_samples(2, 320, 320), 100), k=16, options=FIRST),
)  # fmt: skip
