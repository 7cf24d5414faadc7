"""Errors that a user is meant to read."""


class DataError(ValueError):
    """A file or data set cannot be used. The message names the file and field, what came and what was expected.

    The command line prints it on one line and exits with code 2.
    """


class Stopped(RuntimeError):
    """Work that ended before its end; the message says why, and how to go on. Exit code 1."""


class MissingDependency(ImportError):
    """An optional package is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'pyrecon-imaging[{extra}]'")
