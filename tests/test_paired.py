"""Paired differences: the interval against its own promise, and what it is of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pyrecon.experiments.paired import Paired, paired


def test_the_interval_of_three_numbers_is_student_s() -> None:
    """1, 2, 3: mean 2, deviation 1, quantile 4.3027 of two degrees of freedom."""
    found = paired([[1.0, 1.0], [2.0], [0.0, 6.0]])
    assert (found.mean, found.high) == pytest.approx((2.0, 2 + 4.302653 / math.sqrt(3)), rel=1e-6)
    assert found.low == pytest.approx(2 * found.mean - found.high)
    assert not found.clear
    assert str(found) == "+2.00 (-0.48 to +4.48)"


def test_95_of_100_intervals_hold_the_truth() -> None:
    """Runs with a spread of their own: 1,000 comparisons, two deviations of the count allowed."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        runs = 0.3 + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.5, (3, 10))
        found = paired(runs.tolist())
        held += found.low <= 0.3 <= found.high
    assert abs(held - 950) <= 2 * math.sqrt(1000 * 0.95 * 0.05)


def test_one_run_is_judged_by_its_images_and_one_number_not_at_all() -> None:
    assert paired([[1.0, 2.0, 3.0]]).mean == 2.0
    assert paired([[1.0, 2.0, 3.0]]).high < 5
    assert paired([[1.0]]) == Paired(1.0, -math.inf, math.inf)
    wide, narrow = (paired([[1.0, 2.0, 3.0]], confidence=c) for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.clear


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: paired([]), "differences: expected runs"),
        (lambda: paired([[]]), "differences: expected runs"),
        (lambda: paired([[math.nan]]), "differences: expected runs"),
        (lambda: paired([[1.0]], confidence=1.0), "confidence: 1.0"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
