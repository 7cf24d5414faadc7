"""Which rows Kaczmarz' sweeps visit, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_count, check_dtype, check_like, check_shape, dense


def _uniform(seed: int, n: int, device: torch.device) -> Tensor:
    """``n`` float64 numbers in (0, 1), the same everywhere: Philox 4x32-10 with key ``seed``, counters 0, 1, ..."""
    word = 0xFFFFFFFF
    zero = torch.zeros((n + 3) // 4, dtype=torch.int64, device=device)
    c = [torch.arange((n + 3) // 4, dtype=torch.int64, device=device), zero, zero, zero]
    key = [seed & word, seed >> 32 & word]
    for _ in range(10):
        even, odd = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57  # modulo 2^64; the shifted sign is masked away
        c = [odd >> 32 & word ^ c[1] ^ key[0], odd & word, even >> 32 & word ^ c[3] ^ key[1], even & word]
        key = [key[0] + 0x9E3779B9 & word, key[1] + 0xBB67AE85 & word]
    return (torch.stack(c, dim=1).flatten()[:n].double() + 0.5) / 2**32


def kaczmarz_order(A: Tensor, *, sweeps: int = 1, seed: int = 0) -> Tensor:
    """Rows drawn with probability proportional to their energy ``|a_i|^2``: what ``kaczmarz(order="random")`` visits.

    Parameters
    ----------
    A
        ``(M, N)``, float32, float64, complex64 or complex128.
    sweeps
        Every sweep gets M draws of its own, with replacement.
    seed
        The same seed gives the same rows on every device and backend: the numbers are counter-based (Philox 4x32-10)
        and the energies are summed in float64.

    Returns
    -------
    Tensor
        ``(sweeps, M)`` int64 on the device of ``A``. Rows of zeros never occur.

    Notes
    -----
    Strohmer and Vershynin, "A randomized Kaczmarz algorithm with exponential convergence", J. Fourier Anal. Appl. 15
    (2009) 262. Make it once where the same order serves many calls.
    """
    check_dtype("A", A, (*FLOATING, *COMPLEX))
    check_shape("A", A, (None, None), "(M, N)")
    check_count("sweeps", sweeps)
    check_count("seed", seed, 0, 2**63 - 1)
    reals = torch.view_as_real(dense(A.detach())).flatten(1) if A.is_complex() else A.detach()
    bounds = torch.linalg.vector_norm(reals, dim=1, dtype=torch.float64).square().cumsum(0)
    rows = A.shape[0]
    if rows == 0:
        return torch.empty(sweeps, 0, dtype=torch.int64, device=A.device)
    drawn = torch.searchsorted(bounds, _uniform(seed, sweeps * rows, A.device) * bounds[-1], right=True)
    return drawn.clamp(max=rows - 1).view(sweeps, rows)


def rows_of(order: Tensor | str | None, seed: int | None, A: Tensor, sweeps: int) -> Tensor | None:
    """The order as a dense tensor ``(K,)`` or ``(sweeps, K)``; None for every row once."""
    if seed is not None and not (isinstance(order, str) and order == "random"):
        raise ValueError('seed: has no effect without order="random"')
    if isinstance(order, Tensor):
        check_like("order", order, "A", A, dtype=torch.int64)
        if order.dim() != 1:
            check_shape("order", order, (sweeps, None), "(K,) or (sweeps, K)")
        return dense(order)
    if isinstance(order, str) and order == "random":
        return kaczmarz_order(A, sweeps=sweeps, seed=seed or 0)
    if order is None or (isinstance(order, str) and order == "cyclic"):
        return None
    raise ValueError(f'order: {order!r} is not known, expected "cyclic", "random" or an int64 tensor of row numbers')


def check_rows(order: Tensor, rows: int) -> None:
    if order.numel():
        low, high = (int(v) for v in torch.aminmax(order))
        if low < 0 or high >= rows:
            raise ValueError(f"order: row {low if low < 0 else high} does not exist, A has rows 0 to {rows - 1}")
