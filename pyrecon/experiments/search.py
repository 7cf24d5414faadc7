"""A search for a method's settings with a fixed budget: the same effort for every method that is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scipy.stats import qmc

_EDGE = 0.02  # of the range: a best point this close to an end asks for a wider range


@dataclass(frozen=True)
class Range:
    """Values between ``low`` and ``high``, spread evenly on a logarithmic or a linear scale."""

    low: float
    high: float
    log: bool = True
    integer: bool = False

    def value(self, share: float) -> float | int:
        """The value ``share`` (0 to 1) of the way from low to high."""
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.integer else float(f"{value:.4g}")

    def share(self, value: float) -> float:
        """The inverse of :meth:`value`, clipped to the range."""
        if self.low == self.high:
            return 0.0
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class Found:
    """The best settings, their score, every settings tried with its score, and names that ended at an end of range."""

    settings: dict[str, Any]
    score: float
    tried: list[tuple[dict[str, Any], float]]
    at_edge: list[str]


def search(
    ranges: Mapping[str, Range],
    score: Callable[[dict[str, Any]], float],
    *,
    budget: int,
    first: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Found:
    """Maximise ``score(settings)`` over a box with ``budget`` evaluations.

    Half of them cover the box evenly (a scrambled Sobol sequence), a quarter a box of 2/5 its width around the best,
    the last quarter one of 1/8. ``first`` is tried first, so the result is never worse than a known setting. Scores
    that are not finite count as the worst.
    """
    names = list(ranges)
    tried: list[tuple[list[float], dict[str, Any], float]] = []

    def attempt(point: list[float]) -> None:
        if len(tried) >= budget:
            return
        settings = {name: ranges[name].value(share) for name, share in zip(names, point, strict=True)}
        value = next((v for _, known, v in tried if known == settings), None)
        value = score(settings) if value is None else value
        tried.append((point, settings, value if math.isfinite(value) else -math.inf))
        progress()

    if first is not None:
        attempt([ranges[name].share(first[name]) for name in names])
    points = qmc.Sobol(len(names), seed=seed).random(2 ** math.ceil(math.log2(max(budget, 2))))
    used = 0
    for count, width in ((budget // 2, 1.0), (budget // 4, 0.4), (budget, 0.125)):
        center = max(tried, key=lambda t: t[2])[0] if width < 1 else [0.5] * len(names)
        for point in points[used : used + count]:
            attempt([min(max(c + width * (p - 0.5), 0.0), 1.0) for c, p in zip(center, point, strict=True)])
        used = min(used + count, len(points))
    point, settings, best = max(tried, key=lambda t: t[2])
    at_edge = [name for name, share in zip(names, point, strict=True) if min(share, 1 - share) < _EDGE]
    return Found(settings, best, [(s, v) for _, s, v in tried], at_edge)
