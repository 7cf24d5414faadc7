"""What the case table does not say about the SENSE operators: adjoints, conventions, shortcuts, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon import _core
from pyrecon.ops import sense_adjoint, sense_forward, sense_maps_adjoint, sense_normal
from pyrecon.testing import assert_adjoint, assert_close_to_reference

EPS = {torch.complex64: 2.0**-23, torch.complex128: 2.0**-52}
SHAPES = [(2, 3, 12, 10), (1, 2, 9, 7), (2, 1, 1, 8), (1, 2, 5, 1), (2, 2, 46, 23)]


def randn(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_mask(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=["c64", "c128"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pairs_are_adjoint(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, _, rows, cols = shape
    x, k, maps = randn(batch, rows, cols, dtype=dtype), randn(*shape, seed=1), randn(*shape, dtype=dtype, seed=2)
    k, mask = k.to(dtype), random_mask(1, 1, rows, cols, dtype=dtype.to_real())
    rtol = 8 * EPS[dtype]  # errors of the terms are independent: a few roundings, whatever the number of terms
    assert_adjoint(lambda u: sense_forward(u, maps, mask), lambda v: sense_adjoint(v, maps, mask), x, k, rtol=rtol)
    assert_adjoint(lambda s: sense_forward(x, s, mask), lambda v: sense_maps_adjoint(v, x, mask), maps, k, rtol=rtol)
    y = randn(batch, rows, cols, dtype=dtype, seed=3)
    assert_adjoint(lambda u: sense_normal(u, maps, mask), lambda v: sense_normal(v, maps, mask), x, y, rtol=2 * rtol)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (6, 7), (1, 4)], ids=str)
def test_transform_is_centred_and_orthonormal(shape: tuple[int, int]) -> None:
    x = randn(1, *shape)
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x[0].numpy()), norm="ortho"))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    np.testing.assert_allclose(sense_forward(x, one.to(x.dtype), one)[0, 0].numpy(), expected, atol=1e-14)
    constant = sense_forward(torch.ones_like(x), one.to(x.dtype), one)[0, 0]
    dc = torch.zeros_like(constant)
    dc[shape[0] // 2, shape[1] // 2] = (shape[0] * shape[1]) ** 0.5
    torch.testing.assert_close(constant, dc, atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [(1, 1, 1, 14), (2, 1, 1, 14), (1, 1, 15, 1), (2, 1, 15, 1), (1, 1, 1, 1)], ids=str)
def test_declared_shape_of_a_mask_changes_the_cost_only(size: tuple[int, int, int, int]) -> None:
    x, maps, mask = randn(2, 15, 14), randn(2, 3, 15, 14, seed=1), random_mask(*size)
    full = mask.expand(-1, -1, 15, 14)
    expected = sense_adjoint(sense_forward(x, maps, full), maps, full)
    assert_close_to_reference(sense_normal(x, maps, mask), expected, k=20)
    assert_close_to_reference(sense_normal(x, maps, full), expected, k=20)
    assert_close_to_reference(sense_forward(x, maps, mask), sense_forward(x, maps, full), k=1)


@pytest.mark.parametrize("rows", [1, 6])
def test_batch_sharing_equals_repetition(rows: int) -> None:
    x, maps, mask = randn(3, 6, 5), randn(1, 2, 6, 5, seed=1), random_mask(1, 1, rows, 5)
    for op in (sense_forward, sense_normal):
        each = torch.cat([op(x[i : i + 1], maps, mask) for i in range(3)])
        torch.testing.assert_close(op(x, maps.repeat(3, 1, 1, 1), mask.repeat(3, 1, 1, 1)), each)
        torch.testing.assert_close(op(x, maps, mask), each)


def test_maps_constant_along_axes() -> None:
    x, mask = randn(1, 6, 5), random_mask(1, 1, 6, 5)
    for size in [(1, 2, 1, 1), (1, 2, 6, 1), (1, 2, 1, 5)]:
        maps = randn(*size, seed=1).requires_grad_()
        full = maps.detach().expand(1, 2, 6, 5)
        torch.testing.assert_close(sense_normal(x, maps, mask), sense_normal(x, full, mask))
        (gradient,) = torch.autograd.grad(sense_normal(x, maps, mask).abs().square().sum(), maps)
        assert gradient.shape == maps.shape


def test_bool_mask_means_ones_and_zeros() -> None:
    x, maps, mask = randn(1, 6, 5), randn(1, 2, 6, 5), random_mask(1, 1, 6, 5) > 0.5
    assert torch.equal(sense_forward(x, maps, mask), sense_forward(x, maps, mask.double()))
    assert bool((sense_forward(x, maps, mask)[:, :, ~mask[0, 0]] == 0).all())


def test_shared_inputs_collect_gradients_over_the_batch() -> None:
    x, mask = randn(3, 4, 6), random_mask(3, 1, 4, 1)
    maps = randn(1, 2, 4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sense_normal(x, s, mask), maps)
    assert torch.autograd.gradcheck(lambda s: sense_forward(x, s, mask), maps)


@pytest.mark.parametrize(
    ("batch", "coils"),
    [(1, 5), (1, 2), (2, 1), (4, 2), (3, 3)],
    ids=["coils and a rest", "fewer coils than threads", "one coil", "samples", "samples and a rest"],
)
def test_threads_share_the_work_without_changing_the_answer(batch: int, coils: int) -> None:
    # 192 x 140 is large enough that one coil is split between threads too; 140 leaves a tile that is not full.
    x, k = randn(batch, 192, 140, dtype=torch.complex64), randn(batch, coils, 192, 140, dtype=torch.complex64, seed=1)
    maps = randn(1, coils, 192, 140, dtype=torch.complex64, seed=2)
    before = torch.get_num_threads()
    for size in [(1, 1, 192, 140), (batch, 1, 192, 1), (1, 1, 1, 140), (1, 1, 1, 1)]:
        mask = random_mask(*size, dtype=torch.float32)
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            calls = (sense_forward(x, maps, mask), sense_normal(x, maps, mask))
            answers.append((*calls, sense_adjoint(k, maps, mask), sense_maps_adjoint(k, x, mask)))
        torch.set_num_threads(before)
        for answer in answers[1:]:
            for value, alone in zip(answer, answers[0], strict=True):
                # Only the sum over coils may be grouped otherwise: a rounding per coil.
                assert_close_to_reference(value, alone, k=coils + 1)


def test_sizes_with_large_primes_are_transformed_too() -> None:
    assert _core.sense_plan_f32(257 * 8, 0) > 0
    assert _core.sense_plan_f32(263, 0) == 0
    for shape in ((263, 6), (6, 526)):
        x, k, maps = randn(2, *shape), randn(2, 2, *shape, seed=2), randn(1, 2, *shape, seed=1)
        for size in ((1, 1, *shape), (2, 1, shape[0], 1), (1, 1, 1, shape[1]), (1, 1, 1, 1)):
            mask = random_mask(*size)
            calls = (
                lambda x, k, maps, mask: sense_forward(x, maps, mask),
                lambda x, k, maps, mask: sense_adjoint(k, maps, mask),
                lambda x, k, maps, mask: sense_maps_adjoint(k, x, mask),
                lambda x, k, maps, mask: sense_normal(x, maps, mask),
            )
            for call in calls:
                with pyrecon.backend("reference"):
                    expected = call(x, k, maps, mask)
                assert_close_to_reference(call(x, k, maps, mask), expected, k=20)  # as in the case table
                single = [t.to(torch.complex64) for t in (x, k, maps)]
                found = call(*single, mask.float())
                assert found.dtype == torch.complex64
                assert_close_to_reference(found, expected, k=22)  # and the inputs' own rounding


def test_a_nan_stays_in_its_sample() -> None:
    x, maps, mask = randn(3, 6, 5), randn(1, 2, 6, 5), random_mask(1, 1, 6, 5)
    clean = [sense_forward(x, maps, mask), sense_normal(x, maps, mask)]
    x[1, 2, 3] = float("nan")
    for op, expected in zip((sense_forward, sense_normal), clean, strict=True):
        assert torch.equal(op(x, maps, mask)[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": torch.zeros(2, 6, 5)}, TypeError, "image: dtype float32"),
        ({"image": randn(6, 5)}, ValueError, r"image: shape \(6, 5\)"),
        ({"maps": randn(3, 2, 6, 5)}, ValueError, r"maps: shape \(3, 2, 6, 5\)"),
        ({"maps": randn(1, 0, 6, 5)}, ValueError, "at least one"),
        ({"maps": randn(1, 2, 6, 5, dtype=torch.complex64)}, TypeError, "maps: dtype"),
        ({"mask": random_mask(1, 1, 6, 4)}, ValueError, r"mask: shape \(1, 1, 6, 4\)"),
        ({"mask": random_mask(6, 5)}, ValueError, r"mask: shape \(6, 5\)"),
        ({"mask": random_mask(1, 1, 6, 5, dtype=torch.float32)}, TypeError, "mask: dtype"),
        ({"mask": random_mask(1, 1, 6, 5).requires_grad_()}, ValueError, "not differentiable"),
        ({"mask": None}, TypeError, "mask: expected a torch.Tensor, got None"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    arguments = {"image": randn(2, 6, 5), "maps": randn(1, 2, 6, 5), "mask": random_mask(1, 1, 6, 5)} | change
    for op in (sense_forward, sense_normal):
        with pytest.raises(error, match=message):
            op(**arguments)
