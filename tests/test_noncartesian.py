"""MRI along trajectories: the transform against its sum, the Toeplitz product against both transforms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyrecon._errors import MissingDependency
from pyrecon.linops import NonCartesianSense, Sense, density_weights
from pyrecon.testing import assert_adjoint

pytest.importorskip("finufft", reason="needs finufft: pip install 'pyrecon-imaging[nufft]'")

SHAPES = {"even": (8, 6), "odd": (7, 9), "mixed": (5, 8), "3-D": (4, 5, 6)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def randn(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def operator(shape: tuple[int, ...], batch: int = 1, dtype: torch.dtype = torch.complex128) -> NonCartesianSense:
    points = (torch.rand(37, len(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.5) * (
        torch.tensor(shape)
    )
    weights = torch.linspace(0.2, 1.5, 37, dtype=torch.float64)
    real = dtype.to_real()
    return NonCartesianSense(randn(batch, 3, *shape).to(dtype), points.to(real), weights.to(real))


def by_definition(A: NonCartesianSense, x: Tensor) -> Tensor:
    """The sum over all pixels, one axis after the other."""
    value = (A.maps * x[:, None])[:, :, None]
    for d, n in enumerate(A.domain_shape):
        r = torch.arange(n, dtype=torch.float64) - n // 2
        phase = torch.polar(torch.ones(()).double(), -2 * math.pi / n * A.trajectory[:, d : d + 1] * r)
        value = (value * phase.view(1, 1, -1, n, *[1] * (len(A.domain_shape) - d - 1))).sum(dim=3)
    return A.weights * value / math.sqrt(math.prod(A.domain_shape))


@each_shape
@pytest.mark.parametrize("batch", [1, 2])
def test_is_the_sum_and_its_adjoint(shape: tuple[int, ...], batch: int) -> None:
    A = operator(shape, batch)
    x, y = randn(2, *shape), randn(2, *A.range_shape, seed=1)
    torch.testing.assert_close(A(x), by_definition(A, x), rtol=1e-10, atol=1e-10)
    assert_adjoint(A, A.H, x, y, rtol=1e-11)


@each_shape
@pytest.mark.parametrize("batch", [1, 2])
def test_convolution_is_both_transforms(shape: tuple[int, ...], batch: int) -> None:
    A, x = operator(shape, batch), randn(2, *shape)
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)), rtol=1e-9, atol=1e-10)


@each_shape
def test_of_no_images_there_are_no_data(shape: tuple[int, ...]) -> None:
    A = operator(shape)
    x, y = randn(0, *shape).requires_grad_(), randn(0, *A.range_shape)
    assert A(x).shape == y.shape
    assert A.adjoint(y).shape == x.shape
    A.gram(x).abs().sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_single_precision() -> None:
    A, exact, x = operator((8, 6), dtype=torch.complex64), operator((8, 6)), randn(2, 8, 6)
    for result, expected in ((A(x.to(torch.complex64)), exact(x)), (A.gram(x.to(torch.complex64)), exact.gram(x))):
        assert result.dtype == torch.complex64
        # FINUFFT is asked for 1e-6 and states its error up to a small factor.
        assert float((result - expected).abs().max() / expected.abs().max()) < 1e-5


def test_whole_coordinates_are_cartesian_samples() -> None:
    maps, x = randn(1, 3, 8, 7), randn(2, 8, 7)
    rows, cols = torch.meshgrid(torch.arange(8) - 4, torch.arange(7) - 3, indexing="ij")
    points = torch.stack((rows.flatten(), cols.flatten()), dim=1).double()
    full = Sense(maps, torch.ones(1, 1, 8, 7, dtype=torch.float64))
    A = NonCartesianSense(maps, points)
    torch.testing.assert_close(A(x).view(2, 3, 8, 7), full(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(A.gram(x), full.gram(x), rtol=1e-9, atol=1e-9)


def test_gradients_reach_image_maps_and_data() -> None:
    A = operator((4, 5))

    def product(maps: Tensor, x: Tensor) -> Tensor:
        return NonCartesianSense(maps, A.trajectory, A.weights)(x)

    def back(maps: Tensor, y: Tensor) -> Tensor:
        return NonCartesianSense(maps, A.trajectory, A.weights).adjoint(y)

    def normal(maps: Tensor, x: Tensor) -> Tensor:
        return NonCartesianSense(maps, A.trajectory, A.weights).gram(x)

    maps, x, y = (t.requires_grad_() for t in (A.maps.clone(), randn(1, 4, 5), randn(1, *A.range_shape, seed=1)))
    for function, inputs in ((product, (maps, x)), (back, (maps, y)), (normal, (maps, x))):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_density_weights_make_radial_data_an_image() -> None:
    """A disc sampled along 80 full spokes: adjoint of weighted data against the disc, and against no weights."""
    n, spokes = 32, 80
    angle = torch.arange(spokes, dtype=torch.float64)[:, None] * math.pi / spokes
    radius = torch.linspace(-n / 2, n / 2 - 0.5, 2 * n, dtype=torch.float64)
    points = torch.stack((radius * torch.sin(angle), radius * torch.cos(angle)), dim=-1).view(-1, 2)
    grid = torch.arange(n, dtype=torch.float64) - n // 2
    disc = ((grid[:, None] ** 2 + grid**2) < 81).to(torch.complex128)[None]
    maps = torch.ones(1, 1, n, n, dtype=torch.complex128)
    w = density_weights(points, (n, n))
    A = NonCartesianSense(maps, points)

    def error(image: Tensor) -> float:
        image = image * (image.conj() * disc).sum() / image.abs().square().sum()
        return float((image - disc).abs().square().sum() / disc.abs().square().sum())

    assert error(A.adjoint(w * A(disc))) < 0.05 < error(A.adjoint(A(disc)))
    # The scale is right too, not only the shape.
    assert float(A.adjoint(w * A(disc)).real[0, n // 2, n // 2]) == pytest.approx(1.0, abs=0.1)
    # Least squares needs no weights at all.
    assert error(A.pinv(A(disc), rtol=1e-4, max_iter=500)) < 0.01


def test_what_does_not_fit_is_refused() -> None:
    maps, points = randn(1, 2, 8, 6), torch.zeros(5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"leaves the k-space"):
        NonCartesianSense(maps, points + 3.5)
    with pytest.raises(ValueError, match=r"trajectory: shape \(5, 3\)"):
        NonCartesianSense(maps, torch.zeros(5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"weights: shape"):
        NonCartesianSense(maps, points, torch.ones(4, dtype=torch.float64))
    with pytest.raises(TypeError, match="trajectory: dtype"):
        NonCartesianSense(maps, points.float())


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(MissingDependency, match=r"pyrecon-imaging\[nufft\]"):
        operator((8, 6))(randn(1, 8, 6))
