"""Laws of the l2-ball projection and the fused system-matrix step beyond those every op is held to in test_ops.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon import backend
from pyrecon.linops import SystemMatrix
from pyrecon.ops import project_l2_ball, sm_consistency
from pyrecon.testing import assert_adjoint, assert_close_to_reference, available_isa_levels, isa

# Few samples take one pass over A, many take two: both, for each way to be complex.
BATCHES = (1, 3, 4, 13)
FIELDS = {
    "real": (torch.float32, torch.float32),
    "complex": (torch.complex64, torch.complex64),
    "real-image": (torch.complex64, torch.float32),
}
each_field = pytest.mark.parametrize(("dtype", "image_dtype"), FIELDS.values(), ids=FIELDS.keys())


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def problem(
    batch: int, dtype: torch.dtype = torch.float32, image_dtype: torch.dtype = torch.float32, m: int = 300, n: int = 21
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    A, x = randn(m, n, dtype=dtype), randn(batch, n, dtype=image_dtype, seed=1)
    d, y = randn(batch, m, dtype=dtype, seed=2), randn(batch, m, dtype=dtype, seed=3)
    radius = (m * n) ** 0.5 * torch.linspace(0.3, 1.6, batch)
    return A, x, d, y, radius


def norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=1)


@each_field
def test_projection_is_the_nearest_point_of_the_ball(dtype: torch.dtype, image_dtype: torch.dtype) -> None:
    v, center = randn(6, 1031, dtype=dtype), randn(6, 1031, dtype=dtype, seed=1)
    radius = torch.linspace(0.0, 80.0, 6)
    z = project_l2_ball(v, center, radius)
    assert (norm(z - center) <= radius * (1 + 1e-6)).all()  # a few roundings of scale and offset
    inside = norm(v - center) <= radius
    assert inside.any()
    assert not inside.all()
    assert torch.equal(z[inside], v[inside])
    # What was taken off points outwards along the radius: <v - z, z - center> = |v - z| |z - center|.
    off, kept = v - z, z - center
    inner = (off.conj() * kept).real.sum(1)
    torch.testing.assert_close(inner, norm(off) * norm(kept), rtol=1e-5, atol=1e-3)
    assert torch.equal(project_l2_ball(v, center, 0.0), center + 0 * v)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_long_row_is_split_over_threads(batch: int) -> None:
    n = 100_003
    v, center = randn(batch, n), randn(batch, n, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        z = project_l2_ball(v, center, 0.5 * n**0.5)
        again = project_l2_ball(v, center, 0.5 * n**0.5)
    finally:
        torch.set_num_threads(before)
    with backend("reference"):
        expected = project_l2_ball(v.double(), center.double(), 0.5 * n**0.5)
    assert_close_to_reference(z, expected, k=8)  # as in the case table: the norm is a double sum
    assert torch.equal(z, again)


@each_field
@pytest.mark.parametrize("batch", BATCHES)
def test_without_data_the_step_is_the_gram_operator(batch: int, dtype: torch.dtype, image_dtype: torch.dtype) -> None:
    A, x, *_ = problem(batch, dtype, image_dtype)
    nothing = torch.zeros(batch, A.shape[0], dtype=dtype)

    def gram(image: Tensor) -> Tensor:
        return sm_consistency(A, image, nothing, nothing, float("inf"))[1]

    assert_adjoint(gram, gram, x, randn(*x.shape, dtype=image_dtype, seed=7), rtol=1e-5)  # sqrt(300) eps, and a few
    z, r, product = sm_consistency(A, x, nothing, nothing, float("inf"))
    assert torch.equal(z, product)
    wide = A.to(torch.complex128) if A.is_complex() else A.double()
    expected = (x.to(wide.dtype) @ wide.mT) @ wide.conj()
    assert_close_to_reference(r, expected if x.is_complex() else expected.real, k=32)


@each_field
@pytest.mark.parametrize("batch", BATCHES)
def test_a_nan_stays_in_its_sample(batch: int, dtype: torch.dtype, image_dtype: torch.dtype) -> None:
    A, x, d, y, radius = problem(batch + 1, dtype, image_dtype)
    clean = sm_consistency(A, x, d, y, radius)
    for poisoned in (x, d, y):
        kept = poisoned.clone()
        poisoned[0, 0] = float("nan")
        for value, expected in zip(sm_consistency(A, x, d, y, radius), clean, strict=True):
            assert torch.equal(value[1:], expected[1:])
        r = sm_consistency(A, x, d, y, radius)[1]
        assert r[0].isnan().all()
        poisoned.copy_(kept)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_nan_fills_its_row_of_the_projection_and_no_other(argument: int) -> None:
    arguments = [randn(4, 1031), randn(4, 1031, seed=1), torch.full((4,), 100.0)]
    clean = project_l2_ball(*arguments)
    arguments[argument][0] = float("nan")
    for name in ("auto", "reference"):
        with backend(name):
            z = project_l2_ball(*arguments)
        assert torch.equal(z[1:], clean[1:])
        assert z[0].isnan().all()


@each_field
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_same_bits_every_time(batch: int, threads: int, dtype: torch.dtype, image_dtype: torch.dtype) -> None:
    inputs = problem(batch, dtype, image_dtype, m=2001, n=67)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = sm_consistency(*inputs)
        for _ in range(3):
            for value, expected in zip(sm_consistency(*inputs), first, strict=True):
                assert torch.equal(value, expected)
    finally:
        torch.set_num_threads(before)


@each_field
@pytest.mark.parametrize("batch", BATCHES)
def test_a_given_product_changes_nothing_but_the_work(batch: int, dtype: torch.dtype, image_dtype: torch.dtype) -> None:
    A, x, d, y, radius = problem(batch, dtype, image_dtype)
    z, r, product = sm_consistency(A, x, d, y, radius)
    z2, r2, same = sm_consistency(A, torch.full_like(x, float("nan")), d, y, radius, Ax=product)
    assert same is product
    torch.testing.assert_close(z2, z)
    torch.testing.assert_close(r2, r, rtol=1e-5, atol=1e-5 * float(r.abs().max()))


def test_out_may_hold_the_given_product_itself() -> None:
    A, x, d, y, radius = problem(3)
    z, r, product = sm_consistency(A, x, d, y, radius)
    buffers = torch.empty_like(z), torch.empty_like(r), product
    assert sm_consistency(A, x, d, y, radius, Ax=product, out=buffers) is buffers
    torch.testing.assert_close(buffers[:2], (z, r), rtol=1e-5, atol=1e-3)
    copied = torch.empty_like(z), torch.empty_like(r), torch.full_like(z, float("nan"))
    sm_consistency(A, x, d, y, radius, Ax=product, out=copied)
    assert torch.equal(copied[2], product)


def test_a_given_product_takes_the_gradient_of_the_image() -> None:
    A, x, d, y, radius = problem(2)
    x.requires_grad_()
    product = (x.detach() @ A.mT).requires_grad_()
    _, r, _ = sm_consistency(A, x, d, y, radius, Ax=product)
    r.sum().backward()
    assert product.grad is not None
    assert x.grad is None


@pytest.mark.parametrize("batch", [1, 5])
def test_sums_over_many_rows_keep_their_digits(batch: int) -> None:
    # All terms have one sign, so rounding does not average out: one float sum of 100,000 terms is off by some 1e-4.
    m, n = 100_000, 9
    A = 1 + 0.1 * randn(m, n).abs()
    x, d, y = 1 + randn(batch, n).abs(), torch.zeros(batch, m), randn(batch, m, seed=2)
    for level in available_isa_levels():
        with isa(level):
            z, r, _ = sm_consistency(A, x, d, y, 0.5 * m**0.5)
        with backend("reference"):
            exact = sm_consistency(A.double(), x.double(), d.double(), y.double(), 0.5 * m**0.5)
        assert_close_to_reference(z, exact[0], k=16)
        # Blocks of 120 terms of one sign round by at most 120 eps / 2 together, in practice by a tenth of that.
        assert_close_to_reference(r, exact[1], k=60)


def _complex_d(arguments: list[Any]) -> None:
    arguments[2] = arguments[2].to(torch.complex64)


def _short_y(arguments: list[Any]) -> None:
    arguments[3] = arguments[3][:, :-1]


def _flat_matrix(arguments: list[Any]) -> None:
    arguments[0] = arguments[0][0]


def _wide_image(arguments: list[Any]) -> None:
    arguments[1] = torch.zeros(3, 99)


def _complex_image(arguments: list[Any]) -> None:
    arguments[1] = arguments[1].to(torch.complex64)


def _integers(arguments: list[Any]) -> None:
    arguments[0] = arguments[0].to(torch.int32)


def _negative_radius(arguments: list[Any]) -> None:
    arguments[4] = -1.0


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_complex_d, TypeError, "d: dtype torch.complex64 does not match A"),
        (_short_y, ValueError, r"y: shape \(3, 299\) does not fit, expected \(B, M\) = \(3, 300\)"),
        (_flat_matrix, ValueError, r"A: shape \(21,\) does not fit"),
        (_wide_image, ValueError, r"x: shape \(3, 99\) does not fit, expected \(B, N\) = \(\?, 21\)"),
        (_complex_image, TypeError, "x: dtype torch.complex64 does not match A"),
        (_integers, TypeError, "A: dtype int32 is not supported"),
        (_negative_radius, ValueError, "radius: -1.0 does not fit"),
    ],
)
def test_errors_name_the_argument(spoil: Any, error: type[Exception], words: str) -> None:
    arguments = list(problem(3))
    spoil(arguments)
    with pytest.raises(error, match=words):
        sm_consistency(*arguments)


def test_buffers_are_checked() -> None:
    A, x, d, y, radius = problem(3)
    z, r, product = sm_consistency(A, x, d, y, radius)
    with pytest.raises(TypeError, match="out: expected a tuple of 3 tensors"):
        sm_consistency(A, x, d, y, radius, out=z)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"out\[0\]: shares memory with an input"):
        sm_consistency(A, x, d, y, radius, out=(d, r, product))
    with pytest.raises(ValueError, match=r"out\[2\]: shares memory with an input"):
        sm_consistency(A, x, d, y, radius, out=(z, r, z))
    with pytest.raises(ValueError, match=r"out\[1\]: shape"):
        sm_consistency(A, x, d, y, radius, out=(z, r[:1], product))


# --- the operator --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_system_matrix_obeys_the_laws_of_an_operator(dtype: torch.dtype) -> None:
    A = SystemMatrix(randn(30, 7, dtype=dtype))
    x, y = randn(4, 7, dtype=dtype, seed=1), randn(4, 30, dtype=dtype, seed=2)
    assert_adjoint(A, A.H, x, y, rtol=1e-14)
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)))
    assert (A.domain_shape, A.range_shape) == ((7,), (30,))


def test_stacked_is_the_complex_matrix_on_real_images() -> None:
    matrix, x = randn(30, 7, dtype=torch.complex128), randn(4, 7, dtype=torch.float64)
    y = randn(4, 30, dtype=torch.complex128, seed=2)
    A, stacked = SystemMatrix(matrix), SystemMatrix.stacked(matrix)
    torch.testing.assert_close(stacked(x), SystemMatrix.stack(A(x)))
    torch.testing.assert_close(stacked.adjoint(SystemMatrix.stack(y)), A.adjoint(y).real)


def test_gram_follows_the_matrix() -> None:
    A, x = SystemMatrix(randn(30, 7, dtype=torch.float64)), randn(2, 7, dtype=torch.float64, seed=1)
    A.gram(x)
    A.matrix.mul_(2)
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)))
    A.matrix = randn(40, 7, dtype=torch.float64, seed=5)
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)))
    A.matrix.requires_grad_()
    A.gram(x).sum().backward()
    assert A.matrix.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_pinv_is_truncated_least_squares(dtype: torch.dtype) -> None:
    u, _ = torch.linalg.qr(randn(30, 6, dtype=dtype))
    v, _ = torch.linalg.qr(randn(6, 6, dtype=dtype, seed=1))
    s = torch.tensor([10.0, 5.0, 1.0, 0.5, 1e-3, 0.0], dtype=torch.float64)
    A, x = SystemMatrix((u * s) @ v.mH), randn(3, 6, dtype=dtype, seed=2)
    torch.testing.assert_close(A.singular_values()[:5], s[:5])

    def part(rank: int) -> Tensor:  # of x in the span of the first right singular vectors
        return (x @ v[:, :rank].conj()) @ v[:, :rank].mT

    torch.testing.assert_close(A.pinv(A(x)), part(5))  # rounding left in place of the zero is cut off by default
    torch.testing.assert_close(A.pinv(A(x), rtol=0.01), part(4))
    torch.testing.assert_close(A.pinv(A(x), rtol=0.3), part(2))
    torch.testing.assert_close(A.pinv(A(x), rank=3), part(3))
    torch.testing.assert_close(A.pinv(A(x), rank=0), torch.zeros_like(x))
    assert torch.autograd.gradcheck(A.pinv, (A(x).requires_grad_(),))


def test_pinv_and_matrix_errors() -> None:
    A = SystemMatrix(randn(5, 3))
    with pytest.raises(ValueError, match=r"rtol: 1.5 is not a fraction"):
        A.pinv(randn(1, 5), rtol=1.5)
    with pytest.raises(ValueError, match=r"rank: -1"):
        A.pinv(randn(1, 5), rank=-1)
    with pytest.raises(ValueError, match=r"y: shape \(1, 4\) does not fit"):
        A.pinv(randn(1, 4))
    with pytest.raises(ValueError, match=r"matrix: shape"):
        SystemMatrix(randn(5))
