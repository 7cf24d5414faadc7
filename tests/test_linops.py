"""Every linear operator: shapes, adjoint, gram."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrecon import linops
from pyrecon.testing import assert_adjoint


def randn(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) > 0.4


OPERATORS = {
    "Sense": (linops.Sense(randn(1, 3, 8, 6), mask(1, 1, 8, 6)), torch.complex128),
    "Sense-1d": (linops.Sense(randn(2, 3, 8, 6), mask(2, 1, 1, 6)), torch.complex128),
    "Fourier": (linops.Fourier(mask(1, 1, 7, 6), (7, 6)), torch.complex128),
    "Fourier-1d": (linops.Fourier(mask(2, 1, 7, 1), (7, 6)), torch.complex128),
}
each_operator = pytest.mark.parametrize(("operator", "dtype"), OPERATORS.values(), ids=OPERATORS.keys())


@each_operator
def test_adjoint_and_gram(operator: linops.LinearOperator, dtype: torch.dtype) -> None:
    x, y = randn(2, *operator.domain_shape, dtype=dtype), randn(2, *operator.range_shape, dtype=dtype, seed=1)
    assert_adjoint(operator, operator.H, x, y, rtol=1e-14)
    torch.testing.assert_close(operator.gram(x), operator.adjoint(operator(x)))
    assert operator.H.H is operator
    assert operator.H.domain_shape == operator.range_shape


def test_gradients_reach_the_maps_of_an_operator() -> None:
    maps = randn(1, 2, 4, 4).requires_grad_()
    operator = linops.Sense(2 * maps, mask(1, 1, 1, 4))
    operator.gram(randn(1, 4, 4)).abs().sum().backward()
    assert maps.grad is not None
    assert float(maps.grad.abs().sum()) > 0


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="maps"):
        linops.Sense(randn(3, 8, 6), mask(1, 1, 8, 6))
    with pytest.raises(ValueError, match="mask"):
        linops.Fourier(mask(1, 1, 7, 5), (7, 6))
