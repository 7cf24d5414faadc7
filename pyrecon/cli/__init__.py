"""The command ``pyrecon``. Exit codes: 0 it worked, 1 it failed, 2 the request or the data are unusable.

Ctrl-C and SIGTERM, with which batch queues end jobs, are failures: code 1, after what was half-written is removed and,
in training, a checkpoint is written.
"""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType

import typer

from pyrecon.cli import _console

app = typer.Typer(
    name="pyrecon",
    help="Compiled-kernel accelerated reconstruction for MPI, MRI and CT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_INTERRUPTED = 130  # what typer makes of Ctrl-C, without a word


def _register() -> None:
    from pyrecon.cli import bench, demo, evaluate, fit, info, inspect, reconstruct, reproduce, sample, simulate, train

    app.command("reconstruct")(reconstruct.reconstruct)
    app.command("inspect")(inspect.inspect)
    app.command("fit")(fit.fit)
    app.command("sample")(sample.sample)
    app.add_typer(simulate.app, name="simulate")
    app.add_typer(train.app, name="train")
    app.add_typer(evaluate.app, name="evaluate")
    app.add_typer(reproduce.app, name="reproduce")
    app.command("demo")(demo.demo)
    app.command("bench")(bench.bench)
    app.command("info")(info.info)


_register()


def main() -> None:
    """Entry point: turns the errors a user is meant to read into one line and an exit code."""
    from pyrecon._errors import DataError, MissingDependency, Stopped

    warnings.showwarning = _console.show_warning
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except (MissingDependency, Stopped) as error:
        _console.error(str(error))
        sys.exit(1)
    except (DataError, OSError) as error:
        _console.error(str(error))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _console.error(f"out of memory: {(str(error) or 'no more was to be had').splitlines()[0]}")
        sys.exit(1)
    except KeyboardInterrupt:
        _console.error("interrupted; nothing was left half-written")
        sys.exit(1)
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _console.error("interrupted; nothing was left half-written")
        sys.exit(1)


def _out_of_memory(error: Exception) -> bool:
    """Whether that is what Python, NumPy or torch, which has an error of its own on GPUs alone, say."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C, so that what clears up after one does after the other."""
    raise KeyboardInterrupt
