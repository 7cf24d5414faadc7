"""The report of a reconstruction: totals over chunks, warnings that still reach the caller, JSON that can be read."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrecon.report import Recorder, plain
from pyrecon.solvers import Solution, Status


def solution(*status: Status) -> Solution[torch.Tensor]:
    n = len(status)
    return Solution(torch.zeros(n, 3), torch.tensor(status, dtype=torch.int8), torch.ones(n), torch.zeros(n))


def test_chunks_add_up() -> None:
    run = Recorder("m", {"mu": 2.0})
    for end in (Status.CONVERGED, Status.MAX_ITER):
        with run:
            pass
        run.add(solution(end, Status.CONVERGED), residual=torch.tensor([2.0, 3.0]), noise_level=2.0)
    report = run.report()
    assert report.samples == 4
    assert report.status == {"CONVERGED": 3, "MAX_ITER": 1}
    assert report.residual_over_noise == [1.0, 1.5, 1.0, 1.5]
    assert report.seconds > 0
    assert report.samples_per_second == pytest.approx(4 / report.seconds)


def test_warnings_are_noted_once_and_still_reach_the_caller() -> None:
    run = Recorder("m")

    def careless() -> None:
        with run:
            for _ in range(3):
                warnings.warn("careful", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="careful"):
        careless()
    assert run.report().warnings == ["careful"]


def test_a_warning_before_an_error_is_noted_and_the_error_passes() -> None:
    run = Recorder("m")

    def fail() -> None:
        with run:
            warnings.warn("noted", UserWarning, stacklevel=1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert run.report().warnings == ["noted"]


def test_peak_memory_is_that_of_the_block_and_reaches_the_outer_recorder() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system keeps no resettable high-water mark")
    outer, inner, after = Recorder("outer"), Recorder("inner"), Recorder("after")
    with outer:
        big = np.ones(40_000_000)  # 320 MB touched in the outer block, freed before the inner one
        del big
        with inner:
            pass
    with after:
        pass
    assert after.report().peak_memory < outer.report().peak_memory
    assert outer.report().peak_memory - inner.report().peak_memory > 200e6


@dataclass(frozen=True)
class Settings:
    mu: float = 3.0
    shape: tuple[int, int] = (2, 3)


def test_json_can_be_read_back() -> None:
    run = Recorder(
        "m", Settings(), details={"a": np.float32(1.5), "b": torch.arange(2), "c": math.nan, "d": Status.DIVERGED}
    )
    run.add(samples=1, residual=torch.tensor([1.0]), noise_level=torch.tensor([0.0]))
    content = json.loads(run.report().to_json())
    assert content["parameters"] == {"mu": 3.0, "shape": [2, 3]}
    assert content["details"] == {"a": 1.5, "b": [0, 1], "c": None, "d": "DIVERGED"}
    assert content["residual_over_noise"] == [None]
    assert content["versions"]["torch"] == torch.__version__
    assert "m (mu=3.0" in str(run.report())


def test_plain_handles_complex_and_unknown() -> None:
    assert plain(1 + 2j) == [1.0, 2.0]
    assert plain({"x": object}) == {"x": repr(object)}
