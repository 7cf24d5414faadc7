"""One command for every system: its options come from data that the system declares, spelled once."""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pyrecon.systems import having

if TYPE_CHECKING:
    from pyrecon.train.run import Option

Parameters = Mapping[str, tuple[Any, Any]]  # by name: annotation with a typer.Option, and the default


def group(
    help: str,
    part: typing.Literal["training", "paper"],
    build: Callable[[str], tuple[str, Parameters, Callable[..., None]]],
) -> typer.Typer:
    """A command of a command for every system that has a ``part``; ``build`` gives its help, options and function.

    A system is loaded when its command or the list of all of them is asked for.
    """

    class Systems(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(having(part))

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return _command(cmd_name, *build(cmd_name)) if cmd_name in having(part) else None

    app = typer.Typer(cls=Systems, help=help, no_args_is_help=True)
    app.callback()(lambda: None)
    return app


def option(declared: Option) -> tuple[Any, Any]:
    """What a system declares, as typer takes it. The default is filled in later: None says that it was not given."""
    shown = "none" if declared.default is None else str(declared.default)
    about = typer.Option(
        declared.name,
        *declared.also,
        help=declared.help,
        show_default=shown if declared.default is not None else False,
        min=declared.least,
    )
    return Annotated[declared.kind | None, about], None


def choice(name: str, values: typing.Sequence[str], help: str, **more: Any) -> tuple[Any, Any]:
    """One of a few words."""
    kind = enum.StrEnum("Choice", {value: value for value in values})  # type: ignore[misc]
    return Annotated[kind | None, typer.Option(name, help=help, **more)], None


def filled(options: typing.Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of declared options by key, their defaults where they were not given."""
    return {o.key: o.default if given[o.key] is None else given[o.key] for o in options}


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Those of a function that is annotated as typer wants it."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: (hints[name], p.default) for name, p in inspect.signature(function).parameters.items()}


def _command(name: str, help: str, takes: Parameters, function: Callable[..., None]) -> Any:
    def command(**given: Any) -> None:
        function(**{key: value.value if isinstance(value, enum.Enum) else value for key, value in given.items()})

    kind = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(key, kind, default=default, annotation=of) for key, (of, default) in takes.items()]
    )
    command.__annotations__ = {key: of for key, (of, _) in takes.items()}
    command.__doc__ = help
    single = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    single.command(name)(command)
    return typer.main.get_command(single)


def make_folder(path: Path) -> None:
    """Make a folder; DataError where that cannot be."""
    from pyrecon._errors import DataError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: {path} cannot be made ({error.strerror})") from None
