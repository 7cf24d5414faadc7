from __future__ import annotations

import torch
from torch import Generator

from pyrecon.ops import anderson_mix
from pyrecon.testing.cases._case import Case, Make, randn


def _history(batch: int, m: int, n: int, count: int | tuple[int, ...]) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[object, ...]:
        X, G = (randn(generator, batch, m, n, dtype=dtype) for _ in range(2))
        # The rows computed earlier, as a solver would have left them: in the precision of the history.
        wide = torch.view_as_real(G).flatten(2).double() if dtype.is_complex else G.double()
        gram = (wide @ wide.mT).to(dtype.to_real())
        return X, G, gram, count if isinstance(count, int) else torch.tensor(count)

    return make


# k: the small solve is in double and its matrix, of random rows with n >= 2 m, has a condition of some tens, which
# multiplies the rounding of the Gram entries (2 to 4 eps of 512-term partial sums); m terms of the mix add one each.
CASES = (
    Case(anderson_mix, "2x3x7", _history(2, 3, 7, 9), k=64, tiny=True, grad=(0, 1)),
    Case(anderson_mix, "partial", _history(3, 3, 6, (1, 2, 7)), k=64, tiny=True, grad=(0, 1)),
    Case(anderson_mix, "beta-0", _history(2, 2, 6, 3), k=64, options={"beta": 0.0}, tiny=True),
    Case(anderson_mix, "beta-2-absolute", _history(2, 2, 6, 4), k=64, options={"beta": 2.0, "ridge": 1.0,
         "absolute_ridge": True}, tiny=True, grad=(0, 1)),
    Case(anderson_mix, "memory-1", _history(2, 1, 9, 5), k=8),
    Case(anderson_mix, "empty-batch", _history(0, 3, 9, 5), k=8),
    Case(anderson_mix, "odd", _history(5, 7, 1031, 12), k=64),
    Case(anderson_mix, "deq-mpi-64", _history(64, 5, 6162, 8), k=64),
)  # fmt: skip
