"""Arrays of the Berkeley Advanced Reconstruction Toolbox (BART): ``NAME.hdr``, a text with sizes, beside ``NAME.cfl``.

Source: the toolbox's ``doc/`` and ``src/misc/mri.h``, which names the axes. Samples are complex of single precision,
little-endian, the first axis fastest.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._files import PathLike, existing_file

# The toolbox's axes in order, and what those that are read are called in pyrecon.io.kspace_array.
_AXES = {
    "READ": "W", "PHS1": "H", "PHS2": "P", "COIL": "C", "MAPS": "", "TE": "E", "COEFF": "", "COEFF2": "", "ITER": "",
    "CSHIFT": "", "TIME": "T", "TIME2": "", "LEVEL": "", "SLICE": "S", "AVG": "", "BATCH": "",
}  # fmt: skip
_TITLE = b"# Dimensions"
_MOST_TEXT = 2**20  # the command line that made the array may stand in the header
_MOST_AXES = 64


def header_of(path: PathLike) -> Path | None:
    """The header of an array that is named by its header, by its samples, or by what both names begin with."""
    path = Path(path)
    if path.is_file():
        if _is_header(path):
            return path
        beside = path.with_suffix(".hdr")
        return beside if path.suffix.lower() == ".cfl" and _is_header(beside) else None
    if not path.name or path.exists():
        return None
    beside = path.with_name(f"{path.name.removesuffix('.')}.hdr")
    return beside if _is_header(beside) else None


def _is_header(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"#") and any(line.strip() == _TITLE for line in head.splitlines())


def dimensions(header: Path) -> dict[str, int]:
    """The sizes of an array's axes by the toolbox's names, of those with more than one entry."""
    return {name: size for name, size in zip(_AXES, _sizes(header), strict=False) if size > 1}


def read_bart(path: PathLike) -> tuple[NDArray[Any], str]:
    """The array, left on the disk until it is used, and a letter for each of its axes; those of size 1 are dropped.

    Axes are W (READ), H (PHS1), P (PHS2), C (COIL), E (TE), T (TIME) and S (SLICE). Raises DataError naming any other
    axis that has more than one entry, and where the samples are not as many as the header says.
    """
    header = header_of(path)
    if header is None:
        raise DataError(f"{path}: is no array of BART, expected a header with '# Dimensions' and its .cfl")
    sizes = _sizes(existing_file(header))
    samples = existing_file(header.with_suffix(".cfl"))
    there, expected = samples.stat().st_size, 8 * math.prod(sizes)
    if there != expected:
        shown = " x ".join(map(str, sizes))
        raise DataError(f"{samples}: {there} bytes, expected {expected} for {shown} as {header.name} says")
    letters = ""
    for number, (size, name) in enumerate(zip(sizes, _AXES, strict=False)):
        if size > 1 and not _AXES[name]:
            read = ", ".join(known for known, letter in _AXES.items() if letter)
            raise DataError(f"{header}: {name} (axis {number}) has {size} entries, expected 1; read are {read}")
        letters += _AXES[name] if size > 1 else ""
    shape = tuple(size for size in sizes if size > 1)
    return np.memmap(samples, "<c8", "r", shape=shape, order="F"), letters


def _sizes(header: Path) -> tuple[int, ...]:
    if header.stat().st_size > _MOST_TEXT:
        raise DataError(f"{header}: {header.stat().st_size} bytes, expected a header of at most {_MOST_TEXT}")
    lines = [line.strip() for line in header.read_bytes().splitlines()]
    titles = [line for line in lines if line.startswith(b"#")]
    if titles.count(_TITLE) != 1:
        raise DataError(f"{header}: {titles.count(_TITLE)} lines '# Dimensions', expected one: an array, not several")
    if b"# Data" in titles:
        raise DataError(f"{header}: names another file for its samples ('# Data'), expected them in the .cfl beside it")
    texts = b"".join(lines[lines.index(_TITLE) + 1 :][:1]).split()
    if not 1 <= len(texts) <= _MOST_AXES or not all(t.isdigit() and len(t) < 10 and int(t) > 0 for t in texts):
        shown = b" ".join(texts)[:60].decode(errors="replace")
        raise DataError(f"{header}: dimensions {shown!r}, expected up to {len(_AXES)} whole numbers from 1")
    sizes = tuple(map(int, texts))
    if any(size > 1 for size in sizes[len(_AXES) :]):
        raise DataError(f"{header}: {len(sizes)} dimensions, expected {len(_AXES)}: what lies beyond has no name")
    return sizes[: len(_AXES)]
