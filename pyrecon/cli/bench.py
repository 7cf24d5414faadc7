"""``pyrecon bench``: the benchmark suite on the user's own machine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pyrecon._errors import DataError, MissingDependency
from pyrecon.cli import _console

if TYPE_CHECKING:
    import pytest
    from rich.progress import Progress


def bench(
    only: Annotated[str, typer.Option("--only", "-k", help="Run benchmarks whose name holds this: sense, tv ...")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One size of each, few rounds: within two minutes.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; both where there is a GPU.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every implementation.")] = 2,
    compare: Annotated[
        Path | None, typer.Option(help="Results of an earlier run: rows that got slower end in exit code 1.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the results: .json or .md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the kernels against their best alternatives here; every answer is asserted first.

    An interrupt ends the run early, with exit code 1; what has been measured by then is printed and written.
    """
    import torch

    from pyrecon.benchmarks import render
    from pyrecon.io import written_whole
    from pyrecon.io._files import check_writable

    if output is not None and output.suffix not in (".json", ".md"):
        raise DataError(f"--output: {output.name!r} has no known format, expected .json, .md")
    if output is not None:
        check_writable("--output", output)
    if device not in (None, "cpu", "cuda"):
        raise DataError(f"--device: {device!r} is not known, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device: torch finds no CUDA device here")
    if quick and compare is not None:
        raise DataError("--quick: three rounds are too few for --compare, leave one of the two out")
    earlier = None if compare is None else _earlier(compare)
    run = _measure(Path(render.__file__).parent, only, device, threads, quick)
    result = render.condense(run.report)
    if not result["rows"]:
        if run.trouble:
            raise typer.Exit(1)
        raise DataError(f"--only: no benchmark has {only!r} in its name")
    text = json.dumps(result, indent=1) + "\n"
    if output is not None:
        with written_whole(output) as part:
            part.write_text(text if output.suffix == ".json" else render.markdown(result))
    if as_json:
        print(text, end="")
    else:
        _print(result)
    slower = [] if earlier is None else render.regressions(result, earlier)
    for line in slower:
        _console.err.print(f"slower: {line}", markup=False, soft_wrap=True)
    if slower or run.trouble:
        raise typer.Exit(1)


@dataclass
class _Run:
    """What came of the benchmarks: pytest-benchmark's report, and whether something kept it from being whole."""

    report: dict[str, Any] = field(default_factory=lambda: {"benchmarks": [], "machine_info": {}})
    trouble: bool = False


def _measure(folder: Path, only: str, device: str | None, threads: int, quick: bool) -> _Run:
    """Run the suite in this process, say how far it is, and keep what there is when it ends early."""
    try:
        import pytest
        import pytest_benchmark  # noqa: F401
    except ImportError:
        raise MissingDependency("pytest-benchmark", extra="bench", purpose="time the kernels") from None

    run, talk = _Run(), io.StringIO()
    # This stream, not whatever sys.stderr is: pytest's own talk is kept back below.
    console = Console(file=sys.stderr, highlight=False)
    with tempfile.TemporaryDirectory() as scratch, _console.progress(console) as bar, _stopped_by_signals():
        watch = _Watch(bar, console)
        report = Path(scratch) / "report.json"
        arguments = [str(folder), "-q", "-s", "-k", only, "--import-mode=importlib", f"--rootdir={folder}"]
        arguments += ["-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
        arguments += [f"--benchmark-json={report}"]
        if device is not None:
            arguments += ["-m", "gpu" if device == "cuda" else "not gpu"]
        os.environ["PYRECON_BENCH_THREADS"] = str(threads)  # both are read by the benchmarks' conftest
        os.environ["PYRECON_BENCH_QUICK"] = str(int(quick))
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            code = pytest.main(arguments, plugins=[watch])
        if report.exists() and report.stat().st_size:
            run.report = json.loads(report.read_text())
    run.trouble = code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if code == pytest.ExitCode.INTERRUPTED:
        kept = (
            f"what was measured in {watch.done} of {watch.total} benchmarks is kept" if run.report["benchmarks"] else ""
        )
        _console.error(f"interrupted; {kept or 'nothing was measured yet'}")
    elif code == pytest.ExitCode.TESTS_FAILED:
        _console.error(f"{len(watch.failed)} of {watch.total} benchmarks failed and are left out")
        for text in watch.failed:
            _console.err.print(text, markup=False, soft_wrap=True)
    elif run.trouble:
        _console.err.print(talk.getvalue(), markup=False, soft_wrap=True)
    return run


class _Watch:
    """A plugin of pytest: a bar moves with every finished benchmark, or, where there is no terminal, a line says so."""

    def __init__(self, bar: Progress, console: Console) -> None:
        self.bar, self.console = bar, console
        self.task = bar.add_task("benchmarks", total=None)
        self.done, self.total = 0, 0
        self.failed: list[str] = []
        self._outcome = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items)
        self.bar.update(self.task, total=self.total)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed.append(f"{report.nodeid}\n{report.longreprtext}")
            self._outcome = f"{name}: failed"
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self._outcome = f"{name}: {reason.removeprefix('Skipped: ')}"
        if report.when != "teardown":
            return
        timed: Any = dict(report.user_properties).get("timed")
        if timed is not None:
            row, impl, milliseconds = timed
            self._outcome = f"{row}: {impl} {milliseconds:.3g} ms"
        self.done += 1
        self.bar.advance(self.task)
        if not self.console.is_terminal:
            self.console.print(f"[{self.done}/{self.total}] {self._outcome or name}", markup=False, soft_wrap=True)
        self._outcome = ""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM, a batch queue's way of ending a job, does what Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _earlier(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        quick = any(row.get("quick") for row in found["rows"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(f"--compare: {path} is not a result of `pyrecon bench -o FILE.json` ({problem})") from None
    if quick:
        raise DataError(f"--compare: {path} is of a run with --quick, whose three rounds are too few to compare with")
    return found  # type: ignore[no-any-return]


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    from pyrecon.benchmarks import render

    table = Table(title=f"{render.where(result)}; medians, ratio = ours over the fastest rival")
    for name in render.COLUMNS:
        table.add_column(name, justify="left" if name == "work" else "right")
    for row in render.cells(result):
        table.add_row(*row)
    # A pipe has no width: a table folded to the 80 columns that rich assumes is of no use to grep or an editor.
    (_console.out if _console.out.is_terminal else Console(width=1000, highlight=False)).print(table)
