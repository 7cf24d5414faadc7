"""What every solver returns, and how it speaks about a run that did not converge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Status(IntEnum):
    """How a sample's run ended; ``status.message`` says it in words."""

    CONVERGED = 0
    MAX_ITER = 1
    DIVERGED = 2
    NONFINITE = 3

    @property
    def message(self) -> str:
        """What happened, in a sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "The stop test was met.",
    Status.MAX_ITER: "The limit of iterations came before the stop test was met.",
    Status.DIVERGED: "The iteration moved away from a solution.",
    Status.NONFINITE: "A NaN or an infinite number came up.",
}


class ConvergenceWarning(UserWarning):
    """A solver stopped without reaching its tolerance; the message says what to try."""


class ConvergenceError(RuntimeError):
    """Raised by :meth:`Solution.throw` where a sample did not converge."""


@dataclass(frozen=True)
class Solution(Generic[Value]):
    """Result of a solver, per sample.

    Attributes
    ----------
    value
        The solution: a tensor, or a tuple of tensors, batch first.
    status
        ``(B,)`` int8 on the value's device, values of :class:`Status`.
    iterations
        ``(B,)`` int32: iterations each sample took part in.
    residual
        ``(B,)``: the quantity the stop test compares, at exit.
    """

    value: Value
    status: Tensor
    iterations: Tensor
    residual: Tensor

    @property
    def converged(self) -> Tensor:
        """``(B,)`` bool."""
        return self.status == Status.CONVERGED

    def counts(self) -> dict[str, int]:
        """Number of samples per status; the statuses that occur only."""
        values, counts = torch.unique(self.status, return_counts=True)
        return {Status(int(v)).name: int(c) for v, c in zip(values, counts, strict=True)}

    def throw(self) -> Solution[Value]:
        """Raise :class:`ConvergenceError` if any sample did not converge; returns self, so that calls chain."""
        if bad := self._failures():
            words = " ".join(Status[name].message for name in bad)
            raise ConvergenceError(f"{self._summary(bad)}. {words}")
        return self

    def warn_unless_converged(self, solver: str, advice: str, *, stacklevel: int = 3) -> Solution[Value]:
        """Issue one :class:`ConvergenceWarning` if any sample did not converge; returns self."""
        if bad := self._failures():
            warnings.warn(f"{solver}: {self._summary(bad)}. {advice}", ConvergenceWarning, stacklevel=stacklevel)
        return self

    def _failures(self) -> dict[str, int]:
        return {name: n for name, n in self.counts().items() if name != Status.CONVERGED.name}

    def _summary(self, bad: dict[str, int]) -> str:
        worst = float(self.residual.nan_to_num(nan=float("inf")).max())
        listed = ", ".join(f"{n} {name}" for name, n in bad.items())
        return (
            f"{sum(bad.values())} of {self.status.numel()} samples did not converge ({listed}; largest residual "
            f"{worst:.2e})"
        )
