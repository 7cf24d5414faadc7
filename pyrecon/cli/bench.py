"""``pyrecon bench``: the benchmark suite on the user's own machine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrecon._errors import DataError, MissingDependency
from pyrecon.cli import _console


def bench(
    only: Annotated[str, typer.Option("--only", "-k", help="Run benchmarks whose name holds this: sense, tv ...")] = "",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; both where there is a GPU.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every implementation.")] = 2,
    compare: Annotated[
        Path | None, typer.Option(help="Results of an earlier run: rows that got slower end in exit code 1.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the results: .json or .md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the kernels against their best alternatives here; every answer is asserted first."""
    import torch

    from pyrecon.benchmarks import render
    from pyrecon.io import written_whole

    if output is not None and output.suffix not in (".json", ".md"):
        raise DataError(f"--output: {output.name!r} has no known format, expected .json, .md")
    if device not in (None, "cpu", "cuda"):
        raise DataError(f"--device: {device!r} is not known, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device: torch finds no CUDA device here")
    earlier = None if compare is None else _earlier(compare)
    result = render.condense(_measure(Path(render.__file__).parent, only, device, threads))
    if not result["rows"]:
        raise DataError(f"--only: no benchmark has {only!r} in its name")
    text = json.dumps(result, indent=1) + "\n"
    if output is not None:
        with written_whole(output) as part:
            part.write_text(text if output.suffix == ".json" else render.markdown(result))
    if as_json:
        print(text, end="")
    else:
        _print(result)
    if earlier is not None:
        found = render.regressions(result, earlier)
        for line in found:
            _console.err.print(f"slower: {line}", markup=False)
        if found:
            raise typer.Exit(1)


def _measure(folder: Path, only: str, device: str | None, threads: int) -> dict[str, Any]:
    """pytest-benchmark's report of a run in this process."""
    try:
        import pytest
        import pytest_benchmark  # noqa: F401
    except ImportError:
        raise MissingDependency("pytest-benchmark", extra="bench", purpose="time the kernels") from None

    class Bar:
        """Moves with every finished benchmark."""

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            bar.update(task, total=len(session.items))

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "teardown":
                bar.advance(task)

    talk = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch, _console.progress() as bar:
        task = bar.add_task("benchmarks", total=None)
        report = Path(scratch) / "report.json"
        arguments = [str(folder), "-q", "-k", only, "--import-mode=importlib", f"--rootdir={folder}", "-c", "/dev/null"]
        arguments += ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", f"--benchmark-json={report}"]
        if device is not None:
            arguments += ["-m", "gpu" if device == "cuda" else "not gpu"]
        os.environ["PYRECON_BENCH_THREADS"] = str(threads)  # read by the benchmarks' conftest
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            code = pytest.main(arguments, plugins=[Bar()])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            _console.err.print(talk.getvalue(), markup=False)
            raise typer.Exit(1)
        if not report.exists() or not report.stat().st_size:
            return {"benchmarks": [], "machine_info": {}}
        return json.loads(report.read_text())  # type: ignore[no-any-return]


def _earlier(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        found["rows"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(f"--compare: {path} is not a result of `pyrecon bench -o FILE.json` ({problem})") from None
    return found  # type: ignore[no-any-return]


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    from pyrecon.benchmarks import render

    table = Table(title=f"{render.where(result)}; medians, ratio = ours over the fastest rival")
    for name in render.COLUMNS:
        table.add_column(name, justify="left" if name == "work" else "right")
    for row in render.cells(result):
        table.add_row(*row)
    _console.out.print(table)
