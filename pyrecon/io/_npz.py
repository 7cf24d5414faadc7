"""Arrays of an NPZ archive, read without NumPy's pickle and without believing a size that the archive cannot hold."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._files import check_memory, one_line

_MOST_EXPANSION = 1100  # deflate's, for masks and the like


def read_npy(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of an open archive."""
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, by_columns, dtype = read_header(file)
        except (TokenError, RecursionError) as error:  # what damage() below does not expect of any other library
            raise DataError(f"{path}: {name}: has no readable head ({one_line(error)}); it is corrupted") from error
        if dtype.hasobject:
            raise DataError(f"{path}: {name}: holds Python objects, expected numbers")
        if any(n < 0 for n in shape):
            raise DataError(f"{path}: {name}: declares shape {shape}, expected sizes from 0")
        nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if nbytes > entry.file_size:
            raise DataError(f"{path}: {name}: declares shape {shape}, but holds {entry.file_size} bytes")
        check_memory(path, name, nbytes, path.stat().st_size, _MOST_EXPANSION)
        content = file.read(nbytes)
    if len(content) < nbytes:
        raise DataError(f"{path}: {name}: holds {len(content)} bytes, expected {nbytes} for shape {shape}")
    if dtype.kind == "U" and (np.frombuffer(content, dtype.byteorder + "u4") > sys.maxunicode).any():
        raise DataError(f"{path}: {name}: holds what is no text; it is corrupted")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C").copy()


@contextmanager
def damage(path: Path, kind: str) -> Iterator[None]:
    """Turns what libraries raise on a damaged file of this kind into a DataError."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, SyntaxError, TypeError,
            MemoryError, OverflowError, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
        raise DataError(
            f"{path}: is not a readable {kind} file ({one_line(error)}); it is truncated or corrupted"
        ) from error
