"""Laws every operator must satisfy, for tests of this package and of code built on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrecon import _core, _library
from pyrecon.testing._extended import dft, dst, extended

__all__ = [
    "ISA_LEVELS",
    "Call",
    "assert_adjoint",
    "assert_close_to_reference",
    "available_isa_levels",
    "dft",
    "dst",
    "extended",
    "isa",
    "poisoned_memory",
    "record_calls",
]

ISA_LEVELS = ("baseline", "avx2", "avx512")


def assert_adjoint(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    rtol: float,
) -> None:
    """Assert ``|<A x, y> - <x, A^H y>| <= rtol * |A x| |y|``, shapes first.

    ``rtol`` must come from a derivation; ``k * eps`` with k of the order of the square root of the terms summed.
    """
    ax, ahy = forward(x), adjoint(y)
    assert ax.shape == y.shape, f"forward gives {tuple(ax.shape)}, the adjoint takes {tuple(y.shape)}"
    assert ahy.shape == x.shape, f"adjoint gives {tuple(ahy.shape)}, the forward takes {tuple(x.shape)}"
    left, right = _inner(ax, y), _inner(x, ahy)
    scale = float(torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y))
    error = abs(left - right)
    assert error <= rtol * scale, (
        f"<Ax, y> = {left}, <x, A^H y> = {right}: relative error {error / scale:.2e} > {rtol:.2e}"
    )


def assert_close_to_reference(result: Tensor, reference: Tensor, *, k: float) -> None:
    """Assert ``max|result - reference| <= k * eps * max|reference|`` with eps of the result's precision.

    ``reference`` is computed in double precision from the same inputs; for a result in double precision under
    :func:`extended`.
    """
    assert result.shape == reference.shape, f"shape {tuple(result.shape)}, expected {tuple(reference.shape)}"
    eps = torch.finfo(result.dtype).eps
    wide = reference.to(torch.complex128 if reference.is_complex() else torch.float64)
    scale = float(wide.abs().max()) if wide.numel() else 0.0
    error = float((result.to(wide.dtype) - wide).abs().max()) if wide.numel() else 0.0
    assert error <= k * eps * scale, (
        f"error {error:.3e} is {error / (eps * scale or 1):.1f} eps of the scale, allowed {k}"
    )


class Call(NamedTuple):
    """One run of an op: its name, the backend that answered, and its dense inputs."""

    op: str
    backend: str
    inputs: tuple[Any, ...]


@contextmanager
def record_calls() -> Iterator[list[Call]]:
    """Collect every op that runs in the block, so a test can tell which kernel answered."""
    calls: list[Call] = []
    previous = _library._listener
    _library._listener = lambda op, backend, inputs: calls.append(Call(op, backend, inputs))
    try:
        yield calls
    finally:
        _library._listener = previous


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill every tensor that ``torch.empty`` and friends make with NaN, so that an element left unwritten shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def available_isa_levels() -> tuple[str, ...]:
    """The instruction-set levels that this processor runs and this build has, lowest first."""
    return _core.isa_levels()


@contextmanager
def isa(level: str) -> Iterator[None]:
    """Run the CPU kernels in this block at one instruction-set level."""
    previous = _core.isa()
    if not _core.force_isa(ISA_LEVELS.index(level)):
        raise RuntimeError(f"isa: this processor or build has no {level} kernels (it has {available_isa_levels()})")
    try:
        yield
    finally:
        _core.force_isa(ISA_LEVELS.index(previous))


def _inner(a: Tensor, b: Tensor) -> complex:
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return complex((a.conj().to(wide) * b.to(wide)).sum())
