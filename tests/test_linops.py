"""Every linear operator: shapes, adjoint, gram."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon import linops
from pyrecon.linops.sense import _per_image
from pyrecon.testing import assert_adjoint, dft


def randn(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) > 0.4


OPERATORS = {
    "Sense": (linops.Sense(randn(1, 3, 8, 6), mask(1, 1, 8, 6)), torch.complex128),
    "Sense-1d": (linops.Sense(randn(2, 3, 8, 6), mask(2, 1, 1, 6)), torch.complex128),
    "Sense-frames": (linops.Sense(randn(1, 1, 3, 8, 6), mask(1, 4, 1, 1, 6)), torch.complex128),
    "Sense-frames-shared": (linops.Sense(randn(2, 1, 3, 8, 6), mask(2, 1, 1, 8, 6)), torch.complex128),
    "Sense-frames-contrasts": (linops.Sense(randn(1, 3, 1, 2, 8, 6), mask(1, 3, 2, 1, 8, 6)), torch.complex128),
    "SoftSense": (linops.SoftSense(randn(1, 2, 3, 8, 6), mask(2, 1, 8, 6)), torch.complex128),
    "SoftSense-1d": (linops.SoftSense(randn(2, 2, 3, 8, 6), mask(1, 1, 8, 1)), torch.complex128),
    "Sense3D": (linops.Sense3D(randn(1, 2, 4, 5, 6), mask(1, 1, 4, 5, 6)), torch.complex128),
    "Sense3D-readout": (linops.Sense3D(randn(2, 2, 4, 5, 6), mask(2, 1, 4, 1, 6)), torch.complex128),
    "Sense3D-lines": (linops.Sense3D(randn(1, 2, 4, 5, 6), mask(2, 1, 1, 5, 1)), torch.complex128),
    "Fourier": (linops.Fourier(mask(1, 1, 7, 6), (7, 6)), torch.complex128),
    "Fourier-1d": (linops.Fourier(mask(2, 1, 7, 1), (7, 6)), torch.complex128),
    "Gradient": (linops.Gradient((5, 4)), torch.float64),
    "Gradient-complex": (linops.Gradient((5, 1)), torch.complex128),
    "Gradient-3d": (linops.Gradient((3, 4, 5)), torch.float64),
    "Wavelet": (linops.Wavelet((16, 24), levels=3), torch.float64),
    "Wavelet-complex": (linops.Wavelet((16, 8), wavelet="db2"), torch.complex128),
    "Wavelet-extended": (linops.Wavelet((11, 18), wavelet="db3", levels=2), torch.complex128),
    "Wavelet-tiny": (linops.Wavelet((2, 1), wavelet="db4", levels=2), torch.float64),
}
each_operator = pytest.mark.parametrize(("operator", "dtype"), OPERATORS.values(), ids=OPERATORS.keys())


@each_operator
def test_adjoint_and_gram(operator: linops.LinearOperator, dtype: torch.dtype) -> None:
    x, y = randn(2, *operator.domain_shape, dtype=dtype), randn(2, *operator.range_shape, dtype=dtype, seed=1)
    assert_adjoint(operator, operator.H, x, y, rtol=1e-14)
    torch.testing.assert_close(operator.gram(x), operator.adjoint(operator(x)))
    assert operator.H.H is operator
    assert operator.H.domain_shape == operator.range_shape


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [(A, dtype) for A, dtype in OPERATORS.values() if all(held.shape[0] == 1 for held in A.buffers())],
    ids=lambda value: type(value).__name__,
)
def test_of_no_images_there_are_no_data(operator: linops.LinearOperator, dtype: torch.dtype) -> None:
    """torch's transforms end an empty batch with an error of MKL's."""
    x, y = randn(0, *operator.domain_shape, dtype=dtype), randn(0, *operator.range_shape, dtype=dtype)
    x.requires_grad_()
    data = operator(x)
    assert data.shape == y.shape
    assert operator.adjoint(y).shape == operator.gram(x).shape == operator.pinv(y, max_iter=2).shape == x.shape
    data.abs().sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_a_mask_serves_images_in_a_row_or_says_that_it_does_not_fit() -> None:
    masks = mask(2, 1, 7, 1) * torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
    operator = linops.Fourier(masks, (7, 6))
    y = randn(4, 7, 6)
    torch.testing.assert_close(operator(operator.pinv(operator(y))), operator(y))  # weights are divided by, too
    alone = [linops.Fourier(masks[i // 2 : i // 2 + 1], (7, 6)).pinv(y[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(operator.pinv(y), torch.cat(alone))
    for call in (operator, operator.adjoint, operator.gram, operator.pinv):
        for count in (1, 3):
            with pytest.raises(ValueError, match=r"mask: shape \(2, 1, 7, 1\) does not fit"):
                call(y[:count])


def test_gradients_reach_the_maps_of_an_operator() -> None:
    maps = randn(1, 2, 4, 4).requires_grad_()
    operator = linops.Sense(2 * maps, mask(1, 1, 1, 4))
    operator.gram(randn(1, 4, 4)).abs().sum().backward()
    assert maps.grad is not None
    assert float(maps.grad.abs().sum()) > 0


def test_gradient_is_the_forward_difference_and_its_norm_is_bounded() -> None:
    x = randn(2, 4, 5)
    d = linops.Gradient((4, 5))(x)
    torch.testing.assert_close(d[:, 0, :3], x[:, 1:] - x[:, :3])
    torch.testing.assert_close(d[:, 1, :, :4], x[:, :, 1:] - x[:, :, :4])
    assert (d[:, 0, 3] == 0).all()
    assert (d[:, 1, :, 4] == 0).all()
    checkerboard = torch.tensor([[1.0, -1], [-1, 1]]).repeat(20, 20)[None]
    gradient = linops.Gradient((40, 40))
    quotient = gradient(checkerboard).square().sum() / checkerboard.square().sum()
    assert 0.95 * gradient.norm_bound < quotient < gradient.norm_bound


@pytest.mark.parametrize(("wavelet", "moments"), [("db1", 1), ("db2", 2), ("db3", 3), ("db4", 4)])
def test_wavelets_agree_with_pywavelets(wavelet: str, moments: int) -> None:
    pywt = pytest.importorskip("pywt")
    x = randn(1, 16, 24, dtype=torch.float64)
    rolled = x[0].roll((1 - moments, 1 - moments), (0, 1)).numpy()  # PyWavelets centres the filter elsewhere
    coarse, (rows, cols, both) = pywt.dwt2(rolled, wavelet, "periodization")
    expected = torch.tensor(coarse), torch.tensor(cols), torch.tensor(rows), torch.tensor(both)
    ours = linops.Wavelet((16, 24), wavelet=wavelet, levels=1)(x)[0]
    blocks = ours[:8, :12], ours[:8, 12:], ours[8:, :12], ours[8:, 12:]
    for block, wanted in zip(blocks, expected, strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(16, 24), (13, 10)])
def test_wavelet_adjoint_is_its_inverse(shape: tuple[int, int]) -> None:
    wavelet = linops.Wavelet(shape, levels=2)
    x = randn(2, *shape)
    torch.testing.assert_close(wavelet.H(wavelet(x)), x, rtol=0, atol=1e-14)
    assert (wavelet.range_shape == shape) == (shape == (16, 24))
    rows, cols = wavelet.coarse_shape
    assert (rows, cols) == (wavelet.range_shape[0] // 4, wavelet.range_shape[1] // 4)


def test_wavelet_compresses_polynomials_into_the_coarse_scale() -> None:
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64)
    image = (ramp[:, None] * ramp**3)[None]
    for name, levels in [("db4", 1), ("db4", 2)]:
        wavelet = linops.Wavelet((32, 32), wavelet=name, levels=levels)
        details = wavelet(image)
        _, cols = wavelet.coarse_shape
        # Away from the periodic border the details of a cubic vanish.
        assert float(details[0, 16 : 16 + 8, : cols // 2].abs().max()) < 1e-13
    assert linops.Wavelet((32, 32)).levels == 2
    assert linops.Wavelet((32, 32), wavelet="db1").levels == 4


def test_norm_bound_of_sense_bounds_every_rayleigh_quotient() -> None:
    maps, weights = randn(2, 3, 8, 6), torch.rand(1, 1, 8, 6, dtype=torch.float64)
    operator = linops.Sense(maps, weights)
    x = randn(2, 8, 6, seed=3)
    for _ in range(200):
        x = operator.gram(x)
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    largest = torch.linalg.vector_norm(operator.gram(x), dim=(1, 2))
    assert (largest <= operator.norm_bound).all()
    normalised = linops.Sense(maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True), torch.ones(1, 1, 1, 6))
    torch.testing.assert_close(normalised.norm_bound, torch.ones(2, dtype=torch.float64))


def test_frames_are_images_of_their_own() -> None:
    maps, masks, x = randn(2, 1, 3, 8, 6), mask(1, 4, 1, 8, 6), randn(2, 4, 8, 6, seed=3)
    operator = linops.Sense(maps, masks)
    each = [linops.Sense(maps[:, 0], masks[:, t]) for t in range(4)]
    torch.testing.assert_close(operator(x), torch.stack([A(x[:, t]) for t, A in enumerate(each)], dim=1))
    torch.testing.assert_close(operator.gram(x), torch.stack([A.gram(x[:, t]) for t, A in enumerate(each)], dim=1))
    bound = torch.stack([A.norm_bound for A in each]).amax(dim=0)
    assert (operator.norm_bound >= bound - 1e-12).all()
    with pytest.raises(ValueError, match=r"expected \(B, 4, 8, 6\)"):
        operator(x[:, :3])


def test_frames_share_maps_without_copies() -> None:
    maps = randn(3, 1, 2, 8, 6)
    assert _per_image(maps, (3, 50)).data_ptr() == maps.data_ptr()
    with pytest.raises(ValueError, match="does not fit images"):
        _per_image(maps, (2, 50))


def test_sets_of_maps_add_up() -> None:
    maps, masks, x = randn(2, 2, 3, 8, 6), mask(1, 1, 1, 6), randn(2, 2, 8, 6, seed=3)
    each = [linops.Sense(maps[:, s], masks) for s in range(2)]
    data = each[0](x[:, 0]) + each[1](x[:, 1])
    operator = linops.SoftSense(maps, masks)
    torch.testing.assert_close(operator(x), data)
    torch.testing.assert_close(operator.adjoint(data), torch.stack([A.adjoint(data) for A in each], dim=1))


@pytest.mark.parametrize("sizes", [(4, 5, 6), (1, 5, 6), (4, 1, 6), (4, 5, 1), (1, 5, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_volume_is_the_three_dimensional_transform(sizes: tuple[int, int, int], batch: int) -> None:
    maps, x, weights = randn(batch, 2, 4, 5, 6), randn(2, 4, 5, 6, seed=3), torch.rand(3 - batch, 1, *sizes).double()
    coils = (maps * x[:, None]).numpy()
    for axis in (-3, -2, -1):
        coils = np.fft.fftshift(dft(np.fft.ifftshift(coils, axis), axis), axis) / coils.shape[axis] ** 0.5
    expected = weights * torch.from_numpy(coils.astype(np.complex128))
    maps.requires_grad_()
    operator = linops.Sense3D(maps, weights)
    torch.testing.assert_close(operator(x).detach(), expected)
    # Gradients to the maps: of gram, which skips transforms, as of the two products.
    (short,) = torch.autograd.grad(operator.gram(x).abs().square().sum(), maps)
    (long,) = torch.autograd.grad(operator.adjoint(operator(x)).abs().square().sum(), maps)
    torch.testing.assert_close(short, long)


def test_errors_name_the_argument() -> None:
    for make in (
        lambda: linops.Wavelet((8, 8), wavelet="sym4"),
        lambda: linops.Wavelet((8, 8), wavelet="db5"),
    ):
        with pytest.raises(ValueError, match=r"wavelet: .* expected one of db1, db2, db3, db4"):
            make()
    with pytest.raises(ValueError, match="levels"):
        linops.Wavelet((8, 8), levels=-1)
    with pytest.raises(ValueError, match="shape"):
        linops.Gradient((0, 3))
    with pytest.raises(ValueError, match="maps"):
        linops.Sense(randn(3, 8, 6), mask(1, 1, 8, 6))
    with pytest.raises(ValueError, match=r"mask: .* expected 5 axes"):
        linops.Sense(randn(1, 1, 3, 8, 6), mask(1, 1, 8, 6))
    with pytest.raises(ValueError, match=r"mask: .* expected \(B \| 1, 1, D \| 1"):
        linops.Sense3D(randn(1, 2, 4, 5, 6), mask(1, 1, 4, 5, 5))
    with pytest.raises(ValueError, match="mask"):
        linops.Fourier(mask(1, 1, 7, 5), (7, 6))
