r"""The quadratic step of half-quadratic splitting as a layer: measurements and regularisers meet in one linear system.

    x = argmin |A x - k|^2 + sum_i lambda_i |x - y_i|^2,      (A^H A + sum_i lambda_i I) x = A^H k + sum_i lambda_i y_i

With H the matrix on the left and v = H^-1 g for an incoming gradient g, derivatives of the solution are

    k: A v,      y_i: lambda_i v,      lambda_i: Re <v, y_i - x>,      A: those of Re <A v, k - A x>, v and x fixed

(PINQI, Eqs. 16 to 18; its Eq. 18, of A, has the opposite sign.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyrecon._check import COMPLEX, FLOATING, REAL_OF, check_count, check_dtype, check_like, check_number, check_shape
from pyrecon.linops import LinearOperator
from pyrecon.solvers import Solution, conjugate_gradient


class DataConsistency(nn.Module):
    """``x`` of ``(A^H A + sum_i lambda_i I) x = A^H k + sum_i lambda_i y_i`` by conjugate gradients, per sample.

    Gradients are exact to the tolerance, by a second solve, and reach k, every ``y_i``, every ``lambda_i`` and what the
    operator holds, coil maps among it; memory does not grow with the iterations. Float32, float64 and complex, on any
    device, each sample with steps and an end of its own.

    Parameters
    ----------
    rtol, atol, max_iter
        Of :func:`pyrecon.solvers.conjugate_gradient`.
    preconditioner
        ``preconditioner(x, operator, weight)`` with ``weight`` ``(B, ...)`` the sum of the lambdas: an approximation of
        ``H^-1 x``, linear and Hermitian positive definite in x.

    Attributes
    ----------
    last
        :class:`~pyrecon.solvers.Solution` of the last call, without its value.
    """

    def __init__(
        self,
        *,
        rtol: float = 1e-5,
        atol: float = 0.0,
        max_iter: int = 100,
        preconditioner: Callable[[Tensor, LinearOperator, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.rtol, self.atol = check_number("rtol", rtol), check_number("atol", atol)
        self.max_iter = check_count("max_iter", max_iter, 0)
        self.preconditioner = preconditioner
        self.last: Solution[None] | None = None

    def forward(
        self,
        k: Tensor,
        physics: LinearOperator,
        terms: Sequence[tuple[Tensor | float, Tensor]] = (),
        *,
        x0: Tensor | None = None,
        return_solution: bool = False,
    ) -> Any:
        """The solution ``(B, *domain)``, or with ``return_solution`` the :class:`~pyrecon.solvers.Solution`.

        Parameters
        ----------
        k
            Measurements, ``(B, *range)`` of the operator.
        physics
            A.
        terms
            ``(lambda_i, y_i)``: a number, not negative, or a real tensor, 0-dimensional or ``(B,)``; and an image
            ``(B, *domain)``. Without terms A itself must be injective.
        x0
            Where the iteration starts; default the mean of the ``y_i`` by weight where there are any: with large
            lambdas that is the solution already. No gradient flows to it.
        """
        if not isinstance(physics, LinearOperator):
            raise TypeError(f"physics: {type(physics).__name__}, expected a LinearOperator")
        check_dtype("k", k, (*FLOATING, *COMPLEX))
        right = physics.adjoint(k)
        weights = list[Tensor]()
        for i, term in enumerate(terms):
            if not isinstance(term, tuple) or len(term) != 2:
                raise TypeError(f"terms: entry {i} is no pair (lambda, y)")
            weight, image = term
            check_like(f"terms[{i}], y", image, "A^H k", right)
            check_shape(f"terms[{i}], y", image, right.shape, "the shape of A^H k")
            weights.append(_weight(f"terms[{i}], lambda", weight, right))
            right = right + weights[-1] * image
        total = sum(weights[1:], weights[0]) if weights else None

        def system(x: Tensor) -> Tensor:
            image = physics.gram(x)
            return image if total is None else image + total * x

        precondition = None
        if self.preconditioner is not None:
            outer, level = self.preconditioner, _weight("lambda", 0.0, right) if total is None else total

            def precondition(x: Tensor) -> Tensor:
                return outer(x, physics, level.detach())

        if x0 is None and total is not None and bool((total > 0).all()):
            mean = sum((w * image for w, (_, image) in zip(weights, terms, strict=True)), right.new_zeros(()))
            x0 = (mean / total).detach()
        found = conjugate_gradient(
            system, right, x0=x0, rtol=self.rtol, atol=self.atol, max_iter=self.max_iter, preconditioner=precondition
        )
        self.last = Solution(None, found.status, found.iterations, found.residual)
        return found if return_solution else found.value


def _weight(name: str, weight: Tensor | float, like: Tensor) -> Tensor:
    """``(B | 1, 1, ...)`` real."""
    axes = [1] * (like.dim() - 1)
    if not isinstance(weight, Tensor):
        return like.real.new_full((1, *axes), check_number(name, weight))
    check_like(name, weight, "A^H k", like, dtype=REAL_OF[like.dtype])
    if weight.dim() > 1 or (weight.dim() == 1 and len(weight) not in (1, len(like))):
        raise ValueError(f"{name}: shape {tuple(weight.shape)} does not fit, expected () or ({len(like)},)")
    return weight.reshape(-1, *axes)
