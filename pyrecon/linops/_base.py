"""The interface of a linear operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn


class LinearOperator(nn.Module, ABC):
    """A linear map between batched tensors: ``A(x)``, ``A.H(y)``, ``A.gram(x) = A.H(A(x))``.

    A subclass implements :meth:`forward` and :meth:`adjoint` and sets ``domain_shape`` and ``range_shape``, the shapes
    of one sample without the batch axis. Buffers and parameters behave as in any ``nn.Module``.
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

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
