"""What all readers and writers share: believing a file, saying what is wrong with it, writing it whole or not."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.raw import fault, usable

PathLike = str | os.PathLike[str]

# Below this an allocation harms nobody, so no plausibility check is made.
SMALL = 64 * 2**20


def existing_file(path: PathLike) -> Path:
    """The path of a readable, regular, non-empty file; DataError otherwise."""
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            kind = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise DataError(f"{path}: is {kind}, expected a data file")
        if info.st_size == 0:
            raise DataError(f"{path}: the file is empty")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return path


def one_line(error: BaseException) -> str:
    """What an exception says, fit for the middle of a one-line message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_memory(
    path: PathLike, field: str, nbytes: int, available_on_disk: int, ratio: int, share: float = 1.0
) -> None:
    """DataError if ``field`` asks for more than ``ratio`` times its bytes on disk, or ``share`` of it, which will be
    read, for more memory than there is."""
    if nbytes <= SMALL:
        return
    if nbytes > ratio * available_on_disk:
        raise DataError(
            f"{path}: {field} declares {_size(nbytes)}, but the file holds only {_size(available_on_disk)} for it; "
            "the file is truncated or corrupted"
        )
    check_room(f"{path}: {field}", share * nbytes)


def _size(nbytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.3g} TiB"


def check_finite(path: PathLike, field: str, data: NDArray[Any], unit: str) -> None:
    """DataError naming the entries of the first axis (``unit``: "frame", "line", ...) that hold NaN, Inf or more than
    can be measured."""
    step = max(1, 2**20 * len(data) // max(1, data.size))  # temporaries stay small
    parts = (data[start : start + step] for start in range(0, len(data), step))
    whole = np.concatenate([usable(part).reshape(len(part), -1).all(axis=1) for part in parts] or [np.ones(0, bool)])
    bad = np.flatnonzero(~whole).tolist()
    if bad:
        raise DataError(
            f"{path}: {field} holds {fault(data[bad])} in {listing(unit, bad)} of {len(data)}; expected finite numbers"
        )


def joined(real: NDArray[Any], imag: NDArray[Any]) -> NDArray[np.complexfloating]:
    """Complex numbers of their parts, no product being made: 1j times Inf is NaN, with a warning."""
    whole = np.empty(real.shape, np.result_type(real, imag, np.complex64))
    whole.real, whole.imag = real, imag
    return whole


def listing(unit: str, indices: Sequence[int], most: int = 8) -> str:
    """``"frames 1, 5, 7"``: the first ``most`` of them, and how many more."""
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"{unit}{'s' if len(indices) > 1 else ''} {', '.join(str(i) for i in indices[:most])}{more}"


def check_room(what: str, nbytes: float, advice: str = "") -> None:
    """DataError if ``what`` takes more memory than there is, with what to do about it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > memory:
        instead = f"; {advice}" if advice else ""
        raise DataError(f"{what} needs {_size(int(nbytes))} of memory, this machine has {_size(memory)}{instead}")


def check_writable(option: str, path: Path) -> None:
    """DataError, before the work that makes its content, where no file can be written at ``path``."""
    try:
        if not path.parent.is_dir():
            raise DataError(f"{option}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise DataError(f"{option}: {path} is a directory, expected a file to write")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise DataError(f"{option}: the folder {path.parent} cannot be written to")
    except OSError as error:  # a name that is too long
        raise DataError(f"{option}: {path} cannot be written ({error.strerror})") from None
    except ValueError as error:  # a null byte in the name
        if isinstance(error, DataError):
            raise
        raise DataError(f"{option}: {str(path)!r} cannot be written ({error})") from None


@contextmanager
def written_whole(path: PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, moved onto it when the block ends well and removed otherwise.

    ``path`` therefore holds either its old content or all of the new one, whatever happens in between.
    """
    path = Path(os.path.realpath(path))  # a link stays one: what it leads to is replaced
    temporary: Path | None = None
    try:
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and not stat.S_ISREG(mode):
            raise DataError(
                f"{path}: is {'a directory' if stat.S_ISDIR(mode) else 'no file'}, expected a file to write"
            )
        # The suffix stays last: libraries choose the format or compression by it.
        suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        temporary = path.with_name(f".{path.name[:32]}.{secrets.token_hex(6)}{suffix}")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        if mode is not None:
            os.fchmod(handle, stat.S_IMODE(mode))
        os.close(handle)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or one_line(error)})") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # a read-only file system refuses even what is not there; say what was wrong first
                temporary.unlink(missing_ok=True)
