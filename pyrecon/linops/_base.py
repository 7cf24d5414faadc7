"""The interface of a linear operator, and the operators that are made of others."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrecon._check import COMPLEX, FLOATING, check_count, check_dtype, check_memory, check_number, check_size

Scalar = float | complex | Tensor


def _guarded(method: Callable[..., Tensor], name: str, shape: str) -> Callable[..., Tensor]:
    """A method of one tensor that checks it first: a batch of samples of the operator's ``shape``."""

    @functools.wraps(method)
    def checked(self: LinearOperator, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            kind = f"the class {x.__name__}" if isinstance(x, type) else type(x).__name__
            raise TypeError(f"{name}: expected a torch.Tensor, got {kind}")
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(
                f"{name}: dtype {x.dtype} is not supported, expected real or complex floating-point numbers"
            )
        expected = getattr(self, shape, None)  # None while a constructor finds it out
        if expected is not None and x.shape[1:] != expected:
            wanted = ", ".join(map(str, ("B", *expected)))
            raise ValueError(f"{name}: shape {tuple(x.shape)} does not fit, expected ({wanted})")
        if not torch.compiler.is_compiling():
            check_memory(name, x)
        return method(self, x)

    return checked


class LinearOperator(nn.Module, ABC):
    """A linear map between batched tensors: ``A(x)``, ``A.H(y)``, ``A.gram(x) = A.H(A(x))``.

    A subclass implements :meth:`forward` and :meth:`adjoint` and sets ``domain_shape`` and ``range_shape``, the shapes
    of one sample without the batch axis. Buffers and parameters behave as in any ``nn.Module``. What its methods are
    given is checked before they see it: tensors, batch first, of samples of these shapes.

    Operators combine as matrices do: ``A @ B``, ``A + B``, ``A - B``, ``-A``, ``c * A``, ``A / c`` and :class:`Stack`.
    The result is an operator that holds its parts as submodules, so ``.to(device)``, ``state_dict`` and gradients go
    through. ``repr`` tells the shapes.
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, argument, space in (("forward", "x", "domain"), ("adjoint", "y", "range"), ("gram", "x", "domain")):
            if name in cls.__dict__:
                setattr(cls, name, _guarded(cls.__dict__[name], argument, f"{space}_shape"))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``A x``: ``(B, *domain_shape)`` to ``(B, *range_shape)``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """``A^H y``: ``(B, *range_shape)`` to ``(B, *domain_shape)``."""

    def gram(self, x: Tensor) -> Tensor:
        """``A^H A x``; subclasses override it where that is cheaper than both products."""
        return self.adjoint(self(x))

    @property
    def H(self) -> LinearOperator:
        """The adjoint as an operator."""
        return _Adjoint(self)

    def pinv(self, y: Tensor, *, rtol: float = 1e-5, max_iter: int = 200) -> Tensor:
        """Least squares ``argmin_x |A x - y|^2`` of least norm, ``(B, *domain_shape)``.

        By conjugate gradients on ``A^H A x = A^H y`` from zero, until its residual is ``rtol`` of ``|A^H y|``; warns
        where ``max_iter`` steps are not enough, which is so for ill-conditioned operators: regularise those. First
        derivatives reach ``y`` and what A holds, of operators that lose something too (G. H. Golub, V. Pereyra, SIAM
        J. Numer. Anal. 10, 1973, eq. 4.12), as long as they go on losing as much.
        """
        from pyrecon.solvers import conjugate_gradient  # solvers know no operator; this one knows a solver

        check_dtype("y", y, (*FLOATING, *COMPLEX))
        check_number("rtol", rtol)
        check_count("max_iter", max_iter, 0)

        def least(v: Tensor) -> Tensor:  # A^+ v
            return conjugate_gradient(self.gram, self.adjoint(v), rtol=rtol, max_iter=max_iter).value

        def dual(g: Tensor) -> Tensor:  # (A^H)^+ g; A^H A v = g itself has no solution where g has what A loses
            return conjugate_gradient(lambda v: self(self.adjoint(v)), self(g), rtol=rtol, max_iter=max_iter).value

        with torch.no_grad():
            x = least(y)
        if not torch.is_grad_enabled():
            return x
        residual = y - self(x)
        if not residual.requires_grad:
            return x
        misfit = self.adjoint(residual.detach())
        held = misfit.requires_grad  # A holds what gradients are asked of
        with torch.no_grad():
            source = dual(x) if held else residual
        found: Tensor = _PseudoInverse.apply(  # type: ignore[no-untyped-call]
            x, residual, misfit, self.adjoint(source) if held else misfit, held, least, dual, self.adjoint
        )
        return found

    def as_matrix(self) -> Tensor:
        """The operator as a matrix, ``(prod(range_shape), prod(domain_shape))``: column i is A times unit vector i.

        For small problems and tests: every column takes a product.
        """
        x = torch.zeros_like(self._random(self.domain_shape, 0, 1))
        columns = []
        for i in range(x.numel()):
            x.view(-1)[i] = 1
            columns.append(self(x.clone()).reshape(-1))
            x.view(-1)[i] = 0
        return torch.stack(columns, dim=1) if columns else x.new_zeros(prod(self.range_shape), 0)

    def norm(self, *, rtol: float = 1e-3, max_iter: int = 200, batch: int = 1, seed: int = 0) -> Tensor:
        """Largest singular value, ``(batch,)`` real, by power iteration on ``A^H A``.

        An estimate from below: iteration ends when it grows by less than ``rtol`` of itself per step, or after
        ``max_iter`` steps. A step size of ``1 / norm^2`` wants a few per cent of safety. ``batch`` must fit operators
        that hold something per sample.
        """
        check_number("rtol", rtol)
        check_count("max_iter", max_iter)
        x = self._random(self.domain_shape, seed, batch)
        before = torch.zeros(1)
        with torch.no_grad():
            for _ in range(max_iter):
                x = self.gram(x / _norms(x).clamp_min(torch.finfo(x.dtype).tiny))
                value = _norms(x)
                if not bool((value - before.to(value) > rtol * value).any()):
                    break
                before = value
        return _norms(x).flatten().sqrt()

    def adjoint_error(self, *, batch: int = 1, seed: int = 0) -> float:
        """``|<A x, y> - <x, A^H y>| / (|A x| |y|)`` for random x and y: some multiple of eps if the adjoint is right.

        ``batch`` must fit operators that hold something per sample.
        """
        with torch.no_grad():
            x = self._random(self.domain_shape, seed, batch)
            ax = self(x)
            y = torch.randn(ax.shape, dtype=ax.dtype, generator=torch.Generator().manual_seed(seed + 1)).to(ax.device)
            if y.shape[1:] != self.range_shape:
                raise ValueError(f"range_shape is {self.range_shape}, but A(x) gave samples of {tuple(y.shape[1:])}")
            back = self.adjoint(y)
            if back.shape != x.shape:
                raise ValueError(f"adjoint(y) has shape {tuple(back.shape)}, the domain's is {tuple(x.shape)}")
            # A real image under a complex operator: the identity holds for the real parts.
            wide = torch.complex128 if x.is_complex() else torch.float64
            left = (ax.conj() * y).sum(dtype=torch.complex128 if ax.is_complex() else torch.float64)
            right = (x.conj().to(wide) * back).sum()
            difference = left - right if x.is_complex() or not ax.is_complex() else left.real - right.real
            scale = torch.linalg.vector_norm(ax).double() * torch.linalg.vector_norm(y).double()
            return float(difference.abs() / scale) if float(scale) > 0 else float(difference.abs())

    def _random(self, shape: tuple[int, ...], seed: int, batch: int) -> Tensor:
        """Normal numbers of the dtype and on the device of what the operator holds (default float32, CPU)."""
        held = [t for t in chain(self.parameters(), self.buffers()) if t.is_floating_point() or t.is_complex()]
        dtype, device = torch.float32, held[0].device if held else torch.device("cpu")
        for tensor in held:
            dtype = torch.promote_types(dtype, tensor.dtype)
        check_count("batch", batch)
        generator = torch.Generator().manual_seed(check_count("seed", seed, 0))
        return torch.randn((batch, *shape), dtype=dtype, generator=generator).to(device)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return _Product(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, -other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: Scalar) -> LinearOperator:
        return _Scaled(self, factor) if isinstance(factor, int | float | complex | Tensor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: Scalar) -> LinearOperator:
        if not isinstance(divisor, int | float | complex | Tensor):
            return NotImplemented
        if not isinstance(divisor, Tensor) and divisor == 0:
            raise ZeroDivisionError("A / 0: an operator divided by zero")
        return _Scaled(self, 1 / divisor)

    def extra_repr(self) -> str:
        return f"{getattr(self, 'domain_shape', '?')} -> {getattr(self, 'range_shape', '?')}"

    def __neg__(self) -> LinearOperator:
        return _Scaled(self, -1.0)


class Identity(LinearOperator):
    """``A x = x`` on samples of ``shape``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.domain_shape = self.range_shape = check_size("shape", shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Stack(LinearOperator):
    """Operators on one domain, one above the other: ``(B, *domain_shape)`` to ``(B, sum of the range sizes)``.

    Every part's result is flattened; :meth:`split` undoes that and :meth:`join` does it. So a regularised least-squares
    problem is an ordinary one: ``Stack([A, mu**0.5 * D]).pinv(...)``.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        super().__init__()
        if not isinstance(operators, Sequence) or not all(isinstance(part, LinearOperator) for part in operators):
            raise TypeError("operators: expected a list of linear operators")
        if not operators:
            raise ValueError("operators: an empty stack has no domain")
        for i, operator in enumerate(operators):
            _fits(f"operators[{i}]", operator.domain_shape, operators[0].domain_shape)
        self.operators = nn.ModuleList(operators)
        self.domain_shape = operators[0].domain_shape
        self._shapes = [operator.range_shape for operator in operators]
        self.range_shape = (sum(prod(shape) for shape in self._shapes),)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """``(B, M)`` as one tensor per part, in its own shape."""
        parts = y.split([prod(shape) for shape in self._shapes], dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor per part as ``(B, M)``."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join([operator(x) for operator in self.operators])

    def adjoint(self, y: Tensor) -> Tensor:
        parts = zip(self.operators, self.split(y), strict=True)
        return _total([operator.adjoint(part) for operator, part in parts])  # type: ignore[operator]

    def gram(self, x: Tensor) -> Tensor:
        return _total([operator.gram(x) for operator in self.operators])  # type: ignore[operator]


class _Adjoint(LinearOperator):
    def __init__(self, operator: LinearOperator) -> None:
        super().__init__()
        self.operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class _Product(LinearOperator):
    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        super().__init__()
        _fits("A @ B", inner.range_shape, outer.domain_shape)
        self.outer, self.inner = outer, inner
        self.domain_shape, self.range_shape = inner.domain_shape, outer.range_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def gram(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.gram(self.inner(x)))

    @property
    def H(self) -> LinearOperator:
        return self.inner.H @ self.outer.H


class _Sum(LinearOperator):
    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__()
        _fits("A + B: the domain", right.domain_shape, left.domain_shape)
        _fits("A + B: the range", right.range_shape, left.range_shape)
        self.left, self.right = left, right
        self.domain_shape, self.range_shape = left.domain_shape, left.range_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.left.adjoint(y) + self.right.adjoint(y)

    @property
    def H(self) -> LinearOperator:
        return self.left.H + self.right.H


class _Scaled(LinearOperator):
    """``c A``; c a number, or a tensor with one element, which may require grad."""

    factor: Tensor

    def __init__(self, operator: LinearOperator, factor: Scalar) -> None:
        super().__init__()
        if isinstance(factor, Tensor):
            if factor.numel() != 1:
                raise ValueError(f"factor: shape {tuple(factor.shape)} does not fit, expected one number")
            self.register_buffer("factor", factor.reshape(()))
        else:
            self.factor = factor  # type: ignore[assignment]
        self.operator = operator
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._conjugate() * self.operator.adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        return (self.factor * self._conjugate()).real * self.operator.gram(x)

    @property
    def H(self) -> LinearOperator:
        return self._conjugate() * self.operator.H

    def _conjugate(self) -> Tensor:
        return self.factor.conj() if isinstance(self.factor, Tensor) else self.factor.conjugate()


def _fits(what: str, came: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(came) != tuple(expected):
        raise ValueError(f"{what}: samples of shape {tuple(came)} meet samples of shape {tuple(expected)}")


class _PseudoInverse(torch.autograd.Function):
    """x; derivatives are those of ``A^+ (y - A x) + (A^H A)^+ A^H r + (1 - A^+ A) A^H s`` with x, r = y - A x and
    ``s = (A^H)^+ x`` held fixed, whose terms are recorded as ``residual``, ``misfit`` and ``lost``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, misfit: Tensor, lost: Tensor, held: bool, *products: Any
    ) -> Tensor:
        ctx.held, ctx.products = held, products
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        least, dual, adjoint = ctx.products
        w = dual(g)
        more = (least(w), g - adjoint(w)) if ctx.held else (None, None)
        return None, w, *more, None, None, None, None


def _norms(x: Tensor) -> Tensor:
    """Norm of every sample, with axes of size 1 behind it."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)
    return norms


def _total(parts: list[Tensor]) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
