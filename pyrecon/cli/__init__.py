"""The command ``pyrecon``. Exit codes: 0 it worked, 1 it failed, 2 the request or the data are unusable."""

from __future__ import annotations

import sys
import warnings

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
    from pyrecon.cli import bench, demo, evaluate, info, reconstruct, reproduce, simulate, train

    app.command("reconstruct")(reconstruct.reconstruct)
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
    from pyrecon._errors import DataError, MissingDependency

    warnings.showwarning = _console.show_warning
    try:
        app()
    except (DataError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        _console.error(str(error))
        sys.exit(2)
    except MissingDependency as error:
        _console.error(str(error))
        sys.exit(1)
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _console.error("interrupted; nothing was left half-written")
        sys.exit(1)
