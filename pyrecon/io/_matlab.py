"""Structs, numbers and texts of a MATLAB 5 file, read without believing a size in it.

Layout: MathWorks, MAT-File Format, chapter 1. scipy's reader makes room for whatever shape a variable declares, and a
check beforehand would have to read the file as scipy does; this one reads what measurements consist of and no more.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pyrecon._errors import DataError
from pyrecon.io._files import PathLike, check_memory, existing_file, joined, one_line

SIGNATURE = b"MATLAB 5.0 MAT-file"
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_STRUCT, _CHAR = 2, 4
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
_MOST_EXPANSION = 1100  # deflate's
_MOST_DEPTH = 8
_MOST_HEADING = 4096  # bytes of a variable's flags, shape and name

Kind = TypeVar("Kind")


def read_matlab(path: PathLike, only: str | None = None) -> dict[str, Any]:
    """All variables, or that ``only``, by name: arrays, texts, a dict for a 1 x 1 struct; None for what is none of
    these.

    Raises DataError for a file that is truncated, corrupted or no MATLAB 5 file.
    """
    return _of(existing_file(path), lambda reader, content: dict(reader.variables(content, only)))


class Outline(NamedTuple):
    """What a variable is, without its values: ``dtype`` None for what is no array of numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    is_struct: bool


def outline_matlab(path: PathLike) -> dict[str, Outline]:
    """All variables by name; only their beginnings are decompressed. Raises DataError as :func:`read_matlab`."""
    return _of(existing_file(path), lambda reader, content: dict(reader.outlines(content)))


def _of(path: Path, read: Callable[[_Reader, memoryview], dict[str, Kind]]) -> dict[str, Kind]:
    try:
        if path.stat().st_size < 128:
            raise DataError(f"{path}: is no MATLAB 5 file")
        content = np.memmap(path, np.uint8, "r").data  # variables that nobody asks for stay on the disk
        if bytes(content[: len(SIGNATURE)]) != SIGNATURE:
            raise DataError(f"{path}: is no MATLAB 5 file")
        mark = bytes(content[126:128])
        order = {b"IM": "<", b"MI": ">"}.get(mark)
        if order is None:
            raise DataError(f"{path}: the byte order {mark!r}, expected b'IM' or b'MI'; it is corrupted")
        return read(_Reader(path, order), content[128:])
    except (ValueError, TypeError, OverflowError, MemoryError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not a readable MATLAB file ({one_line(error)}); it is corrupted") from error


def find_struct(variables: dict[str, Any]) -> str | None:
    """The variable that holds a scan of the Helsinki Tomography Challenge, if any."""
    return next(
        (n for n, v in variables.items() if isinstance(v, dict) and {"sinogram", "parameters"} <= v.keys()), None
    )


class _Reader:
    def __init__(self, path: Path, order: str) -> None:
        self._path, self._order = path, order
        self._expanded = 0

    def variables(self, content: memoryview, only: str | None) -> Iterator[tuple[str, Any]]:
        for kind, body, packed in self._elements(content):
            if only is not None and (known := self._outline(kind, body, packed)) and known[0] != only:
                continue
            if packed:
                kind, body, _ = self._element(self._expand(body))
            if kind == _MATRIX and len(body):
                yield self._matrix(body, 0)

    def outlines(self, content: memoryview) -> Iterator[tuple[str, Outline]]:
        for element in self._elements(content):
            known = self._outline(*element)
            if known is not None:
                yield known

    def _elements(self, content: memoryview) -> Iterator[tuple[int, memoryview, bool]]:
        """Type and bytes of each; of a compressed one, those are to be expanded."""
        while len(content) >= 8:
            kind, body, content = self._element(content)
            yield kind, body, kind == _COMPRESSED

    def _outline(self, kind: int, body: memoryview, packed: bool) -> tuple[str, Outline] | None:
        if packed:
            head = memoryview(zlib.decompressobj().decompress(body, _MOST_HEADING))
            if len(head) < 8:
                raise self._cut()
            kind, body = int(np.frombuffer(head[:4], f"{self._order}u4")[0]), head[8:]
        if kind != _MATRIX or not len(body):
            return None
        title, flag, shape, _ = self._heading(body)
        dtype = np.dtype(_CLASSES[flag & 0xFF]) if flag & 0xFF in _CLASSES else None
        if dtype is not None and flag & _COMPLEX:
            dtype = np.result_type(dtype, np.complex64)
        return title, Outline(shape, dtype, flag & 0xFF == _STRUCT)

    def _expand(self, body: memoryview) -> memoryview:
        """The one element that a compressed one holds; all of a file's fit the memory together."""
        engine = zlib.decompressobj()
        head = engine.decompress(body, 8)
        if len(head) < 8:
            raise self._cut()
        size = int(np.frombuffer(head, f"{self._order}u4")[1])
        self._expanded += size
        check_memory(self._path, "its variables", self._expanded, len(body), _MOST_EXPANSION)
        return memoryview(head + engine.decompress(engine.unconsumed_tail, size) if size else head)

    def _element(self, content: memoryview) -> tuple[int, memoryview, memoryview]:
        """The type and the bytes of the first element, and what follows it."""
        if len(content) < 8:
            raise self._cut()
        kind, size = (int(v) for v in np.frombuffer(content[:8], f"{self._order}u4"))
        if kind >> 16:  # a small one: both in four bytes, the data in the next four
            kind, size = kind & 0xFFFF, kind >> 16
            start, stop, following = 4, 4 + size, 8
            if size > 4:
                raise self._cut()
        else:
            start, stop = 8, 8 + size
            following = stop if kind == _COMPRESSED else stop + -size % 8
        if stop > len(content):
            raise self._cut()
        return kind, content[start:stop], content[following:]

    def _heading(self, body: memoryview) -> tuple[str, int, tuple[int, ...], memoryview]:
        """Name, flags and shape of a variable, and what follows them."""
        _, flags, rest = self._element(body)
        _, dims, rest = self._element(rest)
        _, name, rest = self._element(rest)
        if len(flags) < 4 or len(dims) % 4:
            raise self._cut()
        flag = int(np.frombuffer(flags[:4], f"{self._order}u4")[0])
        shape = tuple(int(n) for n in np.frombuffer(dims, f"{self._order}i4"))
        if not 2 <= len(shape) <= 32 or min(shape) < 0:
            raise DataError(f"{self._path}: a variable of shape {shape[:8]}; it is corrupted")
        return bytes(name).decode("latin-1"), flag, shape, rest

    def _matrix(self, body: memoryview, depth: int) -> tuple[str, Any]:
        title, flag, shape, rest = self._heading(body)
        kind, count = flag & 0xFF, math.prod(shape)
        if kind in _CLASSES:
            real, rest = self._numbers(rest, count)
            if flag & _COMPLEX:
                real = joined(real, self._numbers(rest, count)[0])
            return title, real.reshape(shape, order="F")
        if kind == _CHAR:
            return title, self._text(rest, shape)
        if kind == _STRUCT and count == 1 and depth < _MOST_DEPTH:
            return title, self._struct(rest, depth)
        return title, None

    def _numbers(self, content: memoryview, count: int) -> tuple[np.ndarray[Any, Any], memoryview]:
        kind, data, rest = self._element(content)
        if kind not in _NUMBERS:
            raise DataError(f"{self._path}: numbers of the unknown type {kind}; it is corrupted")
        values = np.frombuffer(data, self._order + _NUMBERS[kind])
        if len(values) != count:
            raise DataError(f"{self._path}: {len(values)} numbers where the shape has {count}; it is corrupted")
        return values.astype(values.dtype.newbyteorder("=")), rest

    def _text(self, content: memoryview, shape: tuple[int, ...]) -> str | None:
        if math.prod(shape) == 0:
            return ""
        kind, data, _ = self._element(content)
        if shape[0] != 1 or kind not in _TEXTS:
            return None  # a table of characters
        code = _TEXTS[kind]
        if code.startswith("utf-") and code != "utf-8":
            code += "-le" if self._order == "<" else "-be"
        return bytes(data).decode(code, errors="replace")

    def _struct(self, content: memoryview, depth: int) -> dict[str, Any]:
        _, length, rest = self._element(content)
        _, names, rest = self._element(rest)
        width = int(np.frombuffer(length[:4], f"{self._order}i4")[0]) if len(length) >= 4 else 0
        if width <= 0 or len(names) % width:
            raise self._cut()
        fields: dict[str, Any] = {}
        for start in range(0, len(names), width):
            kind, body, rest = self._element(rest)
            if kind != _MATRIX:
                raise DataError(f"{self._path}: a struct with a field of type {kind}; it is corrupted")
            title = bytes(names[start : start + width]).split(b"\0")[0].decode("latin-1")
            fields[title] = self._matrix(body, depth + 1)[1] if len(body) else np.zeros((0, 0))
        return fields

    def _cut(self) -> DataError:
        return DataError(f"{self._path}: ends inside of a variable; it is truncated or corrupted")
