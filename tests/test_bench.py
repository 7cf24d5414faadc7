"""The benchmark command: what it prints, what it compares, what it refuses. Timings themselves are not asserted."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyrecon.benchmarks import render
from pyrecon.cli import app
from pyrecon.cli import bench as command


def bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """In its own process, piped: inside a worker of pytest-xdist, pytest-benchmark measures nothing."""
    command = [sys.executable, "-P", "-m", "pyrecon", "bench", "--threads", "1", "--device", "cpu", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"PYTHONUNBUFFERED": "1"}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=folder, **pipe)


@pytest.mark.slow
def test_runs_compares_and_finds_a_regression(tmp_path: Path) -> None:
    file = tmp_path / "now.json"
    chosen = "test_project_l2_ball and 1-pyrecon or test_project_l2_ball and 1-torch"
    run = start(tmp_path, "-o", str(file), "--json", "-k", chosen)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert err.splitlines()[-1].startswith("[2/2] l2-ball projection, 1 x 5486: torch "), err
    result = json.loads(out)
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


def test_a_plain_read_is_no_rival() -> None:
    """However fast: it stands beside the roofline, and the ratio is to the fastest of the others."""
    seconds = {"pyrecon": 2.0, "torch": 8.0, "slow": 9.0, render.READ: 1.0}
    benchmarks = [
        {"group": "a", "extra_info": {"impl": impl, "device": "cpu"}, "stats": {"median": t, "min": t}}
        for impl, t in seconds.items()
    ]
    result = render.condense({"benchmarks": benchmarks, "machine_info": {}})
    assert (result["rows"]["a"]["best_rival"], result["rows"]["a"]["ratio"]) == ("torch", 0.25)
    assert render.cells(result)[0][-1].endswith(f"{render.READ} 50 %")


def test_rows_of_a_part_join_those_of_the_same_machine() -> None:
    machine = {"cpu": "a", "isa": "avx2", "gpu": None, "threads": 2, "python": "3.11", "versions": {"torch": "2"}}
    old = {"machine": machine, "rows": {"one": {"ms": {"pyrecon": 1.0}}, "two": {"ms": {"pyrecon": 2.0}}}}
    new = {"machine": dict(machine), "rows": {"two": {"ms": {"pyrecon": 3.0}}, "three": {"ms": {"pyrecon": 4.0}}}}
    assert {name: row["ms"]["pyrecon"] for name, row in render.joined(new, old)["rows"].items()} == {
        "one": 1.0, "two": 3.0, "three": 4.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="run all benchmarks"):
        render.joined(new | {"machine": machine | {"cpu": "b"}}, old)


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "part.json"
    run = start(tmp_path, "-o", str(file), "-k", "test_project_l2_ball or test_langevin_step")
    assert run.stderr is not None
    for line in run.stderr:
        if "l2-ball projection, 1 x 5486: torch" in line:
            break
    run.send_signal(number)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 1, err
    assert "interrupted; what was measured in " in err
    assert "| l2-ball projection, 1 x 5486 " in out.replace("\u2502", "|")
    rows = json.loads(file.read_text())["rows"]
    assert set(rows["l2-ball projection, 1 x 5486"]["ms"]) == {"pyrecon", "torch"}
    assert len(rows) <= 2


@pytest.mark.slow
def test_quick_takes_the_first_size_and_says_so(tmp_path: Path) -> None:
    run = start(tmp_path, "--quick", "--json", "-k", "test_project_l2_ball or test_sm_consistency")
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    result = json.loads(out)
    assert "torch.compile" not in err
    assert all(row["quick"] for row in result["rows"].values())
    assert [name.split(",")[0] for name in result["rows"]].count("l2-ball projection") == 1
    assert all(row[0].endswith(" (quick)") for row in render.cells(result))
    (tmp_path / "quick.json").write_text(out)
    with pytest.raises(ValueError, match="three rounds are too few to compare with"):
        bench("--compare", str(tmp_path / "quick.json"))


def test_quick_and_compare_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--quick: three rounds are too few for --compare"):
        bench("--quick", "--compare", str(tmp_path / "x.json"))


def test_a_piped_table_has_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a work whose name and sizes alone are longer than the eighty columns of a terminal, 5486 x 338, 64 samples"
    row = {"ms": {"pyrecon": 1.0, "rival": 2.0}, "best_rival": "rival", "ratio": 0.5}
    machine = dict.fromkeys(("gpu", "cpu", "isa", "threads", "python")) | {"versions": {}}
    command._print({"machine": machine, "rows": {name: row}})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "5486" in line)
    assert name in line
    assert "2 (rival)" in line
