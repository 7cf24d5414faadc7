"""Arrays of NumPy's files, read without its pickle and without believing a size that the file cannot hold."""

from __future__ import annotations

import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._files import check_memory, one_line

_MOST_EXPANSION = 1100  # deflate's, for masks and the like


def read_npy(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of an open archive."""
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        shape, by_columns, dtype, nbytes = _heading(path, name, file)
        if nbytes > entry.file_size:
            raise DataError(f"{path}: {name}: declares shape {shape}, but holds {entry.file_size} bytes")
        check_memory(path, name, nbytes, path.stat().st_size, _MOST_EXPANSION)
        content = file.read(nbytes)
    if len(content) < nbytes:
        raise DataError(f"{path}: {name}: holds {len(content)} bytes, expected {nbytes} for shape {shape}")
    if dtype.kind == "U" and (np.frombuffer(content, dtype.byteorder + "u4") > sys.maxunicode).any():
        raise DataError(f"{path}: {name}: holds what is no text; it is corrupted")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C").copy()


def outline_npz(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array by its name, without values."""
    with damage(path, "NPZ"), zipfile.ZipFile(path) as archive:
        found = {}
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    shape, _, dtype, _ = _heading(path, name, file)
                found[name.removesuffix(".npy")] = (shape, dtype)
        return found


def map_npy(path: Path) -> NDArray[Any]:
    """The array of a file of its own, left on the disk until it is used."""
    with damage(path, "NPY"):
        with path.open("rb") as file:
            shape, by_columns, dtype, nbytes = _heading(path, "the array", file)
            start = file.tell()
        there = path.stat().st_size - start
        if nbytes > there:
            raise DataError(f"{path}: declares shape {shape} of {dtype}, {nbytes} bytes, but holds {there}")
        if nbytes == 0:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape, "F" if by_columns else "C")


def _heading(path: Path, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns follow each other, dtype, and bytes of what comes next."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote
        try:
            shape, by_columns, dtype = read_header(file)
        except (TokenError, RecursionError) as error:  # what damage() below does not expect of any other library
            raise DataError(f"{path}: {name}: has no readable head ({one_line(error)}); it is corrupted") from error
    if dtype.hasobject:
        raise DataError(f"{path}: {name}: holds Python objects, expected numbers")
    if any(n < 0 for n in shape):
        raise DataError(f"{path}: {name}: declares shape {shape}, expected sizes from 0")
    return shape, by_columns, dtype, int(np.prod(shape, dtype=object)) * dtype.itemsize


@contextmanager
def damage(path: Path, kind: str) -> Iterator[None]:
    """Turns what libraries raise on a damaged file of this kind into a DataError."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, SyntaxError, TypeError,
            MemoryError, OverflowError, TokenError, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
        raise DataError(
            f"{path}: is not a readable {kind} file ({one_line(error)}); it is truncated or corrupted"
        ) from error
