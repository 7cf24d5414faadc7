"""Matrix products of the references: exact to a few roundings on any machine.

A reference defines its op, so its error has to be known. That of a library is not: torch's float64 FFT (MKL) errs by
37 eps at n = 368 and by 62 at n = 371 on an Intel Xeon, and by 1 to 2 on an AMD EPYC. So the references transform by
matrices, and what a BLAS adds up at a time, in an order of its own, is bounded here.
"""

from __future__ import annotations

from torch import Tensor

# One running sum of n terms errs by sqrt(n) / 6 eps (measured relative to the norm of white noise: 3.8 at 640, 5.5 at
# 1283), runs of 128 by 2 at most, up to 5486 terms. Shorter ones gain 0.3 eps and double the time.
_RUN = 128


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices, in batches or not, summed in runs whose sums are added one after the other."""
    terms = a.shape[-1]
    total = a[..., :_RUN] @ b[..., :_RUN, :]
    for start in range(_RUN, terms, _RUN):
        total = total + a[..., start : start + _RUN] @ b[..., start : start + _RUN, :]
    return total
