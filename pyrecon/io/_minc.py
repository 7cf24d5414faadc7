"""MINC volumes, 1 (netCDF 3) and 2 (HDF5): stored numbers with axes z, y, x, and what makes values of them.

A value of a slice is ``slope * stored + offset``, by the stored range (``valid_range``) and the slice's least and
largest value (``image-min``, ``image-max``). netCDF headers are read here: SciPy's reader copies what a variable
declares, however often a hostile header points to the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._hdf5 import Hdf5

MINC1, MINC2 = b"CDF", b"\x89HDF\r\n\x1a\n"

Shape = tuple[int, ...]
Scaled = tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]

_AXES = ("zspace", "yspace", "xspace")
_TYPES = {1: ">i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8"}
_MOST_HEADER = 2**20
_IMAGE = "/minc-2.0/image/0/"


def read_minc1(path: Path, content: bytes, shapes: tuple[Shape, ...]) -> Scaled:
    """Stored numbers ``(Z, Y, X)`` of one of ``shapes``, slopes and offsets ``(Z,)``."""
    try:
        header = _Header(content)
    except (struct.error, ValueError, KeyError, IndexError, OverflowError):
        raise DataError(f"{path}: is not a readable MINC 1 file; it is truncated or corrupted") from None
    if "image" not in header.variables:
        raise DataError(f"{path}: is a netCDF file without an image, expected a MINC volume")
    image = header.variables["image"]
    axes = _checked(path, image.axes, image.shape, shapes)
    stored = _values(path, content, image)
    if image.attributes.get("signtype", b"") != b"signed__" and stored.dtype.kind == "i":
        stored = stored.view(stored.dtype.str.replace("i", "u"))
    ends = [_values(path, content, header.variables[n]) for n in ("image-min", "image-max") if n in header.variables]
    valid = image.attributes.get("valid_range")
    return _scaled(path, stored, axes, valid if isinstance(valid, np.ndarray) else None, ends)


def read_minc2(path: Path, shapes: tuple[Shape, ...]) -> Scaled:
    """The same of a MINC 2 file."""
    with Hdf5(path) as file:
        node = file.dataset(_IMAGE + "image")
        with file.reading(_IMAGE + "image"):
            order, valid = _attribute(node, b"dimorder"), _attribute(node, b"valid_range")
        names = order.decode(errors="replace").rstrip("\0").split(",") if isinstance(order, bytes) else _AXES
        axes = _checked(path, tuple(names), node.shape, shapes)
        stored = file.array(_IMAGE + "image")
        ends = [file.array(_IMAGE + name) for name in ("image-min", "image-max") if file.has(_IMAGE + name)]
    return _scaled(path, stored, axes, valid if isinstance(valid, np.ndarray) else None, ends)


def _checked(path: Path, names: tuple[str, ...], shape: Shape, shapes: tuple[Shape, ...]) -> tuple[int, ...]:
    """Places of z, y and x among the axes."""
    if sorted(names) != sorted(_AXES) or len(shape) != 3:
        raise DataError(f"{path}: image has the axes {', '.join(names)[:80]}, expected {', '.join(_AXES)}")
    axes = tuple(names.index(name) for name in _AXES)
    if tuple(shape[axis] for axis in axes) not in shapes:
        known = " or ".join(" x ".join(map(str, s)) for s in shapes)
        raise DataError(f"{path}: a volume of {' x '.join(map(str, shape))} voxels, expected {known}")
    return axes


def _scaled(
    path: Path, stored: NDArray[Any], axes: tuple[int, ...], valid: NDArray[Any] | None, ends: list[NDArray[Any]]
) -> Scaled:
    if stored.dtype.kind not in "iuf":
        raise DataError(f"{path}: image of type {stored.dtype}, expected numbers")
    slices, first = stored.shape[axes[0]], stored.shape[0]
    if len(ends) < 2 or stored.dtype.kind == "f":  # values as they are
        return stored.transpose(axes), np.ones(slices), np.zeros(slices)
    if valid is None:
        info = np.iinfo(stored.dtype)
        valid = np.array([info.min, info.max], float)
    low, high = (np.asarray(end, np.float64).reshape(-1) for end in ends)
    plain = valid.size == 2 and len(low) == len(high) and len(low) in (1, first) and valid.dtype.kind in "iuf"
    if not plain or (len(low) > 1 and axes[0] != 0 and (np.ptp(low) > 0 or np.ptp(high) > 0)):
        raise DataError(f"{path}: image-min and image-max are not one for the volume or for each slice along z")
    bottom, top = sorted(float(v) for v in valid)
    if not (np.isfinite([*low, *high, bottom, top]).all() and top > bottom):
        raise DataError(f"{path}: valid_range {bottom:g} to {top:g}, or image-min and image-max are not finite")
    slope = np.broadcast_to((high - low) / (top - bottom), first)
    offset = low - bottom * slope
    return stored.transpose(axes), np.resize(slope, slices), np.resize(offset, slices)


def _attribute(node: h5py.Dataset, name: bytes) -> Any:
    """Fixed-length text as bytes, or a few numbers; None for what is missing or of another kind."""
    if not h5py.h5a.exists(node.id, name):
        return None
    attribute = h5py.h5a.open(node.id, name)
    kind, size = attribute.get_type(), attribute.get_type().get_size()
    code = kind.get_class()
    if int(np.prod(attribute.shape, dtype=object)) > 8 or size > 256:
        return None
    if code == h5py.h5t.STRING and kind.is_variable_str():
        return None
    if code not in (h5py.h5t.STRING, h5py.h5t.FLOAT, h5py.h5t.INTEGER):
        return None
    value = np.asarray(node.attrs[name.decode()])
    return value.reshape(-1)[0] if value.dtype.kind == "S" and value.size == 1 else value


# --- netCDF 3 --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Variable:
    axes: tuple[str, ...]
    shape: Shape
    attributes: dict[str, bytes | NDArray[Any]]
    dtype: np.dtype[Any]
    begin: int


def _values(path: Path, content: bytes, variable: _Variable) -> NDArray[Any]:
    count = int(np.prod(variable.shape, dtype=object))
    end = variable.begin + count * variable.dtype.itemsize
    if not 0 <= variable.begin <= end <= len(content):
        raise DataError(f"{path}: declares bytes {variable.begin} to {end}, it has {len(content)}; it is truncated")
    return np.frombuffer(content, variable.dtype, count, variable.begin).reshape(variable.shape)


class _Header:
    """Dimensions and variables; struct.error, KeyError and the like where it is damaged."""

    def __init__(self, content: bytes) -> None:
        self._head, self._at = content[:_MOST_HEADER], 8  # after the mark, the version and the number of records
        if content[3] not in (1, 2):
            raise ValueError("version")
        offset = ">q" if content[3] == 2 else ">i"
        dimensions = [(self._text(), self._number()) for _ in range(self._entries(10))]
        self._attributes()
        self.variables: dict[str, _Variable] = {}
        for _ in range(self._entries(11)):
            name = self._text()
            places = [dimensions[self._count()] for _ in range(self._count())]
            attributes, kind = self._attributes(), _TYPES[self._number()]
            self._number()  # its size, once more
            (begin,) = self._take(offset)
            axes, shape = tuple(axis for axis, _ in places), tuple(size for _, size in places)
            if any(size < 0 for size in shape):
                raise ValueError("size")
            self.variables[name] = _Variable(axes, shape, attributes, np.dtype(kind), begin)

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._head, self._at)
        self._at += -(-struct.calcsize(layout) // 4) * 4
        return values

    def _number(self) -> int:
        return int(self._take(">i")[0])

    def _count(self) -> int:
        count = self._number()
        if not 0 <= count <= len(self._head):
            raise ValueError("count")
        return count

    def _entries(self, tag: int) -> int:
        """How many of a list follow: each takes bytes, so that a large number ends with the header."""
        found, count = self._number(), self._count()
        if found not in (0, tag) or (found == 0 and count):
            raise ValueError("list")
        return count

    def _text(self) -> str:
        return bytes(self._take(f"{self._count()}s")[0]).decode("latin1")

    def _attributes(self) -> dict[str, bytes | NDArray[Any]]:
        found: dict[str, bytes | NDArray[Any]] = {}
        for _ in range(self._entries(12)):
            name, kind, count = self._text(), np.dtype(_TYPES[self._number()]), self._count()
            (packed,) = self._take(f"{count * kind.itemsize}s")
            found[name] = packed.rstrip(b"\0") if kind.kind == "S" else np.frombuffer(packed, kind)
        return found
