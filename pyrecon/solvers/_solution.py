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
    """How a sample's run ended."""

    CONVERGED = 0
    MAX_ITER = 1
    DIVERGED = 2
    NONFINITE = 3


class ConvergenceWarning(UserWarning):
    """A solver stopped without reaching its tolerance; the message says what to try."""


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

    def warn_unless_converged(self, solver: str, advice: str) -> Solution[Value]:
        """Issue one :class:`ConvergenceWarning` if any sample did not converge; returns self."""
        bad = {name: n for name, n in self.counts().items() if name != Status.CONVERGED.name}
        if bad:
            worst = float(self.residual.nan_to_num(nan=float("inf")).max())
            summary = ", ".join(f"{n} {name}" for name, n in bad.items())
            warnings.warn(
                f"{solver}: {sum(bad.values())} of {self.status.numel()} samples did not converge ({summary}; "
                f"largest residual {worst:.2e}). {advice}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self
