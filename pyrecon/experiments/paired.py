"""Differences of two methods on the same images, and how sure one may be of their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pyrecon._check import check_number


@dataclass(frozen=True)
class Paired:
    """Mean of differences with the ends of its confidence interval; str: ``"+0.42 (0.31 to 0.53)"``."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def paired(differences: Sequence[Sequence[float]], *, confidence: float = 0.95) -> Paired:
    """Of ``differences[run][image]``, one method's quality minus the other's, of runs that share images and seeds.

    Student's interval of the mean. Runs of training are what a comparison would repeat, so with several of them their
    means are the sample, and the images only make these sharper; with one run the images are the sample, and the
    interval says nothing of other seeds. Of a single number it is infinite.
    """
    if not 0 < check_number("confidence", confidence) < 1:
        raise ValueError(f"confidence: {confidence}, expected a number between 0 and 1")
    runs = [np.asarray(run, dtype=float) for run in differences]
    if not runs or any(run.ndim != 1 or not run.size or not np.isfinite(run).all() for run in runs):
        raise ValueError("differences: expected runs of at least one finite number each, differences[run][image]")
    sample = np.array([run.mean() for run in runs]) if len(runs) > 1 else runs[0]
    mean, count = float(sample.mean()), len(sample)
    if count == 1:
        return Paired(mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * sample.std(ddof=1) / math.sqrt(count))
    return Paired(mean, mean - half, mean + half)
