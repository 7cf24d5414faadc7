"""Blur: its definition by loops, exact adjoints for every border and method, derivatives, kernels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

from pyrecon.linops import Blur, disk_kernel, gaussian_kernel, motion_kernel

BORDERS, METHODS = ("zero", "periodic", "reflect"), ("direct", "matrix", "fft")
KERNELS = {"odd": (3, 5), "even": (4, 2), "row": (1, 7), "one": (1, 1), "larger than the image": (11, 12)}


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_definition(x: Tensor, kernel: Tensor, border: str) -> Tensor:
    """The docstring's sum over one plane."""
    (h, w), (H, W) = kernel.shape, x.shape
    y = torch.zeros_like(x)
    for i, j, a, b in itertools.product(range(H), range(W), range(h), range(w)):
        at = []
        for index, n in ((i + h // 2 - a, H), (j + w // 2 - b, W)):
            if border == "periodic":
                index %= n
            if border == "reflect":
                while not 0 <= index < n:
                    index = -index if index < 0 else 2 * (n - 1) - index
            at.append(index)
        if 0 <= at[0] < H and 0 <= at[1] < W:
            y[i, j] += kernel[a, b] * x[at[0], at[1]]
    return y


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", KERNELS.values(), ids=KERNELS)
def test_is_the_sum_of_the_docstring(size: tuple[int, int], method: Any, border: Any) -> None:
    x, kernel = randn(4, 5), randn(*size, seed=1)
    A = Blur(kernel, (4, 5), border=border, method=method)
    torch.testing.assert_close(A(x[None])[0], by_definition(x, kernel, border), rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", KERNELS.values(), ids=KERNELS)
def test_adjoints_are_exact(size: tuple[int, int], method: Any, border: Any) -> None:
    """Per-channel kernels; of both precisions."""
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        A = Blur(randn(3, *size, dtype=dtype), (11, 8), channels=3, border=border, method=method)
        assert A.adjoint_error(batch=2) < bound


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_channels_and_parts_are_blurred_apart(method: Any, border: Any) -> None:
    kernels, x = randn(2, 4, 3), torch.complex(randn(2, 2, 7, 6), randn(2, 2, 7, 6, seed=1))
    y = Blur(kernels, (7, 6), channels=2, border=border, method=method)(x)
    for b, c in itertools.product(range(2), range(2)):
        one = Blur(kernels[c], (7, 6), border=border)
        torch.testing.assert_close(y[b, c].real, one(x[b, c : c + 1].real)[0], rtol=0, atol=1e-13)
        torch.testing.assert_close(y[b, c].imag, one(x[b, c : c + 1].imag)[0], rtol=0, atol=1e-13)
    same = Blur(kernels[0], (7, 6), channels=2, border=border, method=method)
    torch.testing.assert_close(same(x)[:, 0], y[:, 0], rtol=0, atol=1e-13)
    assert not torch.allclose(same(x)[:, 1], y[:, 1])
    back = Blur(kernels, (7, 6), channels=2, border=border, method=method).adjoint(x.conj())
    torch.testing.assert_close(
        back, Blur(kernels, (7, 6), channels=2, border=border).adjoint(x).conj(), rtol=0, atol=1e-13
    )


def test_agrees_with_scipy() -> None:
    """Its convolve has the same centre for odd kernels; its "mirror" is our reflect."""
    x, kernel = randn(12, 10), randn(5, 3, seed=1)
    for border, mode in (("zero", "constant"), ("periodic", "wrap"), ("reflect", "mirror")):
        expected = scipy.ndimage.convolve(x.numpy(), kernel.numpy(), mode=mode)
        found = Blur(kernel, (12, 10), border=border)(x[None])[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_a_transfer_function_is_that_of_the_periodic_border() -> None:
    """A wave is an eigenvector, its eigenvalue the kernel's Fourier transform about its centre."""
    kernel, n = randn(5, 5, seed=2), 16
    at, offset = torch.arange(n, dtype=torch.float64), torch.arange(-2, 3, dtype=torch.float64)
    wave, phases = (torch.exp(2j * torch.pi / n * (3 * r[:, None] + 2 * r)) for r in (at, -offset))
    A = Blur(kernel, (n, n), border="periodic")
    torch.testing.assert_close(A(wave[None])[0], (kernel * phases).sum() * wave, rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_derivatives(method: Any, border: Any) -> None:
    """In images and kernels, first and second."""
    x = randn(1, 2, 3, 3).requires_grad_()
    kernel = randn(2, 3, 2, seed=1).requires_grad_()

    def both(x: Tensor, kernel: Tensor) -> Tensor:
        A = Blur(kernel, (3, 3), channels=2, border=border, method=method)
        return A.adjoint(A(x).tanh())

    assert torch.autograd.gradcheck(both, (x, kernel))
    assert torch.autograd.gradgradcheck(both, (x, kernel))
    A = Blur(kernel.detach(), (3, 3), channels=2, border=border, method=method)  # the road without the kernel's
    assert torch.autograd.gradcheck(lambda x: A.adjoint(A(x).tanh()), (x,))
    assert torch.autograd.gradgradcheck(lambda x: A.adjoint(A(x).tanh()), (x,))
    torch.testing.assert_close(A.adjoint(A(x).tanh()), both(x, kernel), rtol=0, atol=1e-13)


def test_a_kernel_that_is_written_to_is_used() -> None:
    x = randn(1, 8, 8)
    for method in METHODS:
        A = Blur(gaussian_kernel(3, 1.0), (8, 8), method=method)  # type: ignore[arg-type]
        before = A(x)
        A.kernel.mul_(2)
        torch.testing.assert_close(A(x), 2 * before)
        A.kernel = A.kernel / 4
        torch.testing.assert_close(A(x), before / 2)
        single = A.float()
        assert single(x.float()).dtype == torch.float32
        torch.testing.assert_close(single(x.float()).double(), before / 2, rtol=0, atol=1e-6)


def test_parameters_learn() -> None:
    kernel = nn.Parameter(gaussian_kernel(5, 1.0).float())
    A = Blur(kernel, (12, 12), channels=3)
    assert [*A.parameters()] == [kernel]
    A(randn(2, 3, 12, 12, dtype=torch.float32)).square().sum().backward()
    assert kernel.grad is not None
    assert float(kernel.grad.abs().min()) > 0


def test_auto_takes_what_was_measured() -> None:
    """Gaussians are products of lines; large kernels go by FFT. All methods agree."""
    for kernel, method in (
        (gaussian_kernel(9, 5.0), "matrix"),
        (gaussian_kernel(41, 50.0).float(), "direct"),  # rounded, and still a product of lines
        (gaussian_kernel(45, 50.0), "fft"),
        (randn(15, 15), "direct"),
        (randn(16, 15), "fft"),
        (gaussian_kernel(9, 5.0).requires_grad_(), "direct"),
        (gaussian_kernel(41, 50.0).requires_grad_(), "fft"),
        (torch.stack([gaussian_kernel(9, 5.0), randn(9, 9)]), "direct"),
    ):
        channels = 2 if kernel.dim() == 3 else None
        size = 24 if method == "matrix" else 100
        A = Blur(kernel, (size, size), channels=channels)
        assert A.method == method
        x = randn(2, *A.domain_shape)
        for other in METHODS:
            B = Blur(kernel, (size, size), channels=channels, method=other)  # type: ignore[arg-type]
            torch.testing.assert_close(B(x), A(x), rtol=0, atol=1e-6 if kernel.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("planes", [1, 3, 16, 17])
def test_strips_of_large_planes_join(planes: int) -> None:
    """Whatever the number of planes that fill a vector, and of rows that do not divide."""
    kernel, x = randn(5, 4), randn(planes, 37, 9, seed=1)
    A, B = (Blur(kernel, (37, 9), border="reflect", method=method) for method in ("direct", "fft"))  # type: ignore[arg-type]
    torch.testing.assert_close(A(x), B(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(A.adjoint(x), B.adjoint(x), rtol=0, atol=1e-12)
    assert A(x[:0]).shape == (0, 37, 9)


def test_functions_of_torch_see_a_linear_map() -> None:
    A = Blur(gaussian_kernel(5, 2.0), (10, 9))
    x, y = randn(2, 10, 9), randn(2, 10, 9, seed=1)
    _, pull = torch.func.vjp(A, x)
    torch.testing.assert_close(pull(y)[0], A.adjoint(y))
    torch.testing.assert_close(torch.vmap(A)(x[:, None]), A(x)[:, None])


def test_compiles_whole() -> None:
    A, x = Blur(gaussian_kernel(5, 2.0), (10, 9)), randn(2, 10, 9)
    compiled = torch.compile(lambda x: A.adjoint(A(x)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), A.gram(x))


def test_kernels() -> None:
    for kernel in (gaussian_kernel(9, 5.0), gaussian_kernel(4, 0.01), disk_kernel(3.0), motion_kernel(7.0, 0.4)):
        assert float(kernel.sum()) == pytest.approx(1)
        assert float(kernel.min()) >= 0
        torch.testing.assert_close(kernel.flip(-2, -1), kernel)
    r = torch.arange(81, dtype=torch.float64) - 40
    assert float((gaussian_kernel(81, 5.0).sum(0) * r.square()).sum()) == pytest.approx(5.0, rel=1e-6)
    disk = disk_kernel(8.0)
    assert disk.shape == (17, 17)
    assert 1 / float(disk.max()) == pytest.approx(np.pi * 64, rel=0.01)  # its area in pixels
    line = motion_kernel(5.0)
    torch.testing.assert_close(line[line.shape[0] // 2, 1:-1], torch.full((5,), 0.2, dtype=torch.float64))
    upward = motion_kernel(21.0, np.pi / 4)
    assert float(upward[5, 17]) > 0.02 > 0 == float(upward[5, 5])  # to the right and up
    assert disk_kernel(0.4).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Blur(torch.zeros(3), (8, 8)), r"kernel: shape \(3,\) does not fit, expected \(h, w\)"),
        (lambda: Blur(torch.zeros(2, 3, 3), (8, 8), channels=3), r"expected \(h, w\) or \(3, h, w\)"),
        (lambda: Blur(torch.zeros(3, 3, 3), (8, 8)), r"kernel: shape \(3, 3, 3\)"),
        (lambda: Blur(torch.zeros(0, 3), (8, 8)), "kernel: shape"),
        (lambda: Blur(torch.zeros(3, 3, dtype=torch.complex64), (8, 8)), "kernel: dtype complex64"),
        (lambda: Blur(torch.full((3, 3), torch.nan), (8, 8)), "kernel: holds NaN"),
        (lambda: Blur(torch.ones(3, 3), (8, 0)), "shape: 0"),
        (lambda: Blur(torch.ones(3, 3), (8, 8), border="mirror"), "border: 'mirror'"),  # type: ignore[arg-type]
        (lambda: Blur(torch.ones(3, 3), (8, 8), method="conv"), "method: 'conv'"),  # type: ignore[arg-type]
        (lambda: Blur(torch.ones(3, 3), (8, 8), channels=0), "channels: 0"),
        (lambda: Blur(torch.ones(3, 3), (8, 8), channels=2)(torch.zeros(1, 8, 8)), r"x: shape \(1, 8, 8\)"),
        (lambda: gaussian_kernel(0, 1.0), "size: 0"),
        (lambda: gaussian_kernel(3, 0.0), "variance: 0.0"),
        (lambda: disk_kernel(-1.0), "radius: -1.0"),
        (lambda: motion_kernel(0.0), "length: 0.0"),
        (lambda: motion_kernel(3.0, torch.nan), "angle: nan"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()


@pytest.mark.parametrize("method", METHODS)
def test_of_no_images_there_are_none(method: Any) -> None:
    A = Blur(randn(3, 4), (11, 8), method=method)
    x = randn(0, 11, 8).requires_grad_()
    A.gram(x).sum().backward()
    assert x.grad is not None
    assert A(x).shape == A.adjoint(x).shape == x.grad.shape == x.shape
