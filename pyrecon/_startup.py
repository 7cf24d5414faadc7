"""While the command ``pyrecon`` starts: torch takes seconds to import, and Ctrl-C in them is a line, not a traceback.

Imported before torch; does nothing in any other program.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType


def _one_line(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, value, trace)
        return
    print("error: interrupted; nothing was begun", file=sys.stderr)
    sys.exit(1)  # as for an interrupt later on; without it Python ends by the signal, code 130


def _is_command() -> bool:
    program = Path(sys.argv[0]).stem if sys.argv else ""
    return program == "pyrecon" or sys.orig_argv[1:3] == ["-m", "pyrecon"]


if _is_command():
    sys.excepthook = _one_line
