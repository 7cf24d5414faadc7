"""Orthogonal wavelets, for l1-regularised reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon._check import check_count, check_size
from pyrecon.linops._base import LinearOperator

# Daubechies' extremal-phase filters with 1 to 4 vanishing moments, by spectral factorisation in 40 digits.
# Daubechies, Comm Pure Appl Math 41:909 (1988).
_FILTERS = {
    "db1": (0.707106781186547524, 0.707106781186547524),
    "db2": (0.482962913144534143, 0.836516303737807906, 0.224143868042013381, -0.129409522551260381),
    "db3": (
        *(0.332670552950082616, 0.806891509311092576, 0.459877502118491571),
        *(-0.135011020010254589, -0.0854412738820266617, 0.0352262918857095366),
    ),
    "db4": (
        *(0.230377813308896501, 0.714846570552915647, 0.630880767929858908, -0.0279837694168598542),
        *(-0.187034811719093084, 0.0308413818355607636, 0.0328830116668851997, -0.0105974017850690321),
    ),
}


class Wavelet(LinearOperator):
    """Periodic orthogonal wavelet transform of images, real or complex: ``(B, H, W)`` to ``(B, *range_shape)``.

    ``A.H(A(x)) = x`` and ``|A x| = |x|``: the adjoint undoes the transform. The coefficients lie in one image: the
    coarse scale in the corner ``[:, :h, :w]``, ``(h, w) = coarse_shape``, around it the details from coarse to fine.

    An axis whose size is not a multiple of ``2 ** levels`` is extended to the next multiple with zeros; otherwise
    ``range_shape`` is ``domain_shape`` and the transform is unitary, so that shrinking the coefficients,
    ``A.H(shrink(A(x)))``, is exactly a proximal map. With an extension it is that of a slightly different prior.

    Parameters
    ----------
    shape
        ``(H, W)``.
    wavelet
        ``"db1"`` (Haar) to ``"db4"``.
    levels
        Halvings; as many as keep the coarse scale at least as long as the filter, at most 4, by default.
    """

    def __init__(self, shape: tuple[int, int], *, wavelet: str = "db4", levels: int | None = None) -> None:
        super().__init__()
        if not isinstance(wavelet, str) or wavelet not in _FILTERS:
            raise ValueError(f"wavelet: {wavelet!r} is not known, expected one of {', '.join(_FILTERS)}")
        shape = check_size("shape", shape, 2)  # type: ignore[assignment]  # two of them
        if levels is None:
            levels = max((k for k in range(5) if min(shape) >> k >= len(_FILTERS[wavelet])), default=0)
        check_count("levels", levels, 0, max(shape).bit_length())  # of more, nearly all would be padding
        self.levels = levels
        self._low = _FILTERS[wavelet]
        self._high = tuple((-1) ** i * value for i, value in enumerate(reversed(self._low)))
        self.domain_shape = (shape[0], shape[1])
        rows, cols = (-(-n // 2**levels) * 2**levels for n in shape)
        self.range_shape = (rows, cols)

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """``(h, w)`` of the coarse scale in the corner of the coefficients."""
        rows, cols = self.range_shape
        return rows >> self.levels, cols >> self.levels

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = self.range_shape
        x = torch.nn.functional.pad(x, (0, cols - x.shape[2], 0, rows - x.shape[1]))
        return self._split(x, self.levels)

    def _split(self, x: Tensor, levels: int) -> Tensor:
        if levels == 0:
            return x
        (ll, lh), (hl, hh) = (self._analyse(half, 2) for half in self._analyse(x, 1))
        ll = self._split(ll, levels - 1)
        return torch.cat([torch.cat([ll, lh], 2), torch.cat([hl, hh], 2)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        rows, cols = self.domain_shape
        return self._join(y, self.levels)[:, :rows, :cols]

    def _join(self, y: Tensor, levels: int) -> Tensor:
        if levels == 0:
            return y
        (ll, lh), (hl, hh) = (half.chunk(2, 2) for half in y.chunk(2, 1))
        low, high = self._synthesise(self._join(ll, levels - 1), lh, 2), self._synthesise(hl, hh, 2)
        return self._synthesise(low, high, 1)

    def gram(self, x: Tensor) -> Tensor:
        return x

    def _analyse(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """``low[k] = sum_j h[j] x[2k + j]``, high likewise with g, periodic; even and odd samples apart."""
        taps = len(self._low) // 2
        halves = x.unflatten(axis, (-1, 2))
        n = halves.shape[axis]
        wrapped = torch.arange(n + taps - 1, device=x.device) % n
        even, odd = (halves.select(axis + 1, i).index_select(axis, wrapped) for i in (0, 1))
        low, high = torch.zeros_like(even.narrow(axis, 0, n)), torch.zeros_like(even.narrow(axis, 0, n))
        for i in range(taps):
            e, o = even.narrow(axis, i, n), odd.narrow(axis, i, n)
            low = low.add(e, alpha=self._low[2 * i]).add(o, alpha=self._low[2 * i + 1])
            high = high.add(e, alpha=self._high[2 * i]).add(o, alpha=self._high[2 * i + 1])
        return low, high

    def _synthesise(self, low: Tensor, high: Tensor, axis: int) -> Tensor:
        """The transpose of :meth:`_analyse`."""
        taps, n = len(self._low) // 2, low.shape[axis]
        wrapped = torch.arange(1 - taps, n, device=low.device) % n
        low, high = low.index_select(axis, wrapped), high.index_select(axis, wrapped)
        halves = []
        for side in (0, 1):
            total = torch.zeros_like(low.narrow(axis, 0, n))
            for i in range(taps):
                start = taps - 1 - i
                total = total.add(low.narrow(axis, start, n), alpha=self._low[2 * i + side])
                total = total.add(high.narrow(axis, start, n), alpha=self._high[2 * i + side])
            halves.append(total)
        return torch.stack(halves, axis + 1).flatten(axis, axis + 1)
