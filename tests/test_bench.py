"""The benchmark command: what it prints, what it compares, what it refuses. Timings themselves are not asserted."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyrecon.benchmarks import render
from pyrecon.cli import app


def bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.mark.slow
def test_runs_compares_and_finds_a_regression(tmp_path: Path) -> None:
    file = tmp_path / "now.json"
    # In its own process: inside a worker of pytest-xdist, pytest-benchmark measures nothing.
    command = [sys.executable, "-m", "pyrecon", "bench", "-o", str(file), "--json", "--threads", "1", "--device", "cpu"]
    command += ["-k", "test_project_l2_ball and 1-pyrecon or test_project_l2_ball and 1-torch"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert json.loads(file.read_text()) == result
    (row,) = result["rows"].values()
    assert result["machine"]["threads"] == 1
    assert row["roofline"] == pytest.approx(render.roofline_ms(row) / row["ms"]["pyrecon"])
    assert row["ratio"] == pytest.approx(row["ms"]["pyrecon"] / row["ms"]["torch"])
    assert "| l2-ball projection" in render.markdown(result)
    faster = copy.deepcopy(result)
    (faster_row,) = faster["rows"].values()
    faster_row["ratio"] /= 2 * render.WORSE
    assert render.regressions(result, faster)
    assert not render.regressions(faster, result)


def test_a_worse_ratio_is_a_regression_and_a_slower_machine_is_none() -> None:
    def result(ratio: float, factor: float = 1.0) -> dict[str, Any]:
        return {"rows": {"a": {"ms": {"pyrecon": factor * ratio, "torch": factor}, "ratio": ratio}}}

    (found,) = render.regressions(result(0.5 * render.WORSE * 1.01), result(0.5))
    assert found.startswith("a: ratio 0.50 -> ")
    assert not render.regressions(result(0.5 * render.WORSE * 0.99, factor=10.0), result(0.5))
    assert not render.regressions(result(0.5), {"rows": {}})


@pytest.mark.parametrize("content", ["", "{}", '{"rows": 3}', "[1]"])
def test_a_foreign_file_to_compare_with_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"--compare: .*x\.json is not a result"):
        bench("--compare", str(tmp_path / "x.json"))


def test_unknown_names_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no benchmark has 'nosuchthing'"):
        bench("-k", "nosuchthing")
    with pytest.raises(ValueError, match=r"expected \.json, \.md"):
        bench("-o", str(tmp_path / "x.csv"))
    with pytest.raises(ValueError, match="--device: 'tpu' is not known"):
        bench("--device", "tpu")


def test_goals_are_judged_by_their_own_rule() -> None:
    row = {"ms": {"pyrecon": 1.0, "torch": 3.0, "bare FFT": 2.0}, "best_rival": "bare FFT"}
    assert render.reached(row) is None
    assert render.reached(row | {"goal": {"ms": 1.5}})
    assert not render.reached(row | {"goal": {"ms": 0.5}})
    assert render.reached(row | {"goal": {"ratio": 0.5}})
    assert not render.reached(row | {"goal": {"ratio": 0.3, "against": "torch"}})
