"""What HDF5 2.0 believes though a damaged file may get it wrong, checked before it is asked to read. Found by fuzzing.

- A heap's free space of length zero, or a value of nearly 2^64 bytes, keeps it in place for ever.
- The length in a reference to a variable-length value makes it allocate and copy that much, whatever the heap holds.
- A number type with an odd bias or layout makes its conversion write past the end of the buffer.

Layouts: HDF5 file format specification 3.0, III.E "Global Heap" and IV.A.2.d "Datatype Message".
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from pyrecon._errors import DataError

_SIGNATURE = b"GCOL\x01\0\0\0"  # with version and reserved bytes
_OBJECT_HEADER = 16


def is_plain(kind: h5py.h5t.TypeID) -> bool:
    """Whether a type is standard numbers, texts, truth values, or records and lists of them, and nothing odd besides.

    The type is built anew from what can be asked about it: if the two differ, it holds what must not be there.
    """
    try:
        return bool(kind.equal(_rebuilt(kind)))
    except (ValueError, TypeError, RuntimeError, StopIteration):  # _rebuilt refuses, or HDF5 does
        return False


def _rebuilt(kind: h5py.h5t.TypeID) -> h5py.h5t.TypeID:
    t = h5py.h5t
    code, size = kind.get_class(), kind.get_size()
    if code in (t.INTEGER, t.FLOAT):
        return next(known for known in _STANDARD.get((code, size), ()) if kind.equal(known))
    if code == t.STRING:
        text = t.C_S1.copy()
        text.set_size(t.VARIABLE if kind.is_variable_str() else size)
        text.set_cset(kind.get_cset())
        text.set_strpad(kind.get_strpad())
        return text
    if code == t.ENUM and kind.dtype == bool:
        truth = t.enum_create(_rebuilt(kind.get_super()))
        for i in range(kind.get_nmembers()):
            truth.enum_insert(kind.get_member_name(i), kind.get_member_value(i))
        return truth
    if code == t.VLEN:
        if any(kind.encode()[3:6]):  # flags of a text in a list of numbers, which no call shows and equal() overlooks
            raise TypeError("a list of unknown kind")
        return t.vlen_create(_rebuilt(kind.get_super()))
    if code == t.ARRAY:
        return t.array_create(_rebuilt(kind.get_super()), kind.get_array_dims())
    if code != t.COMPOUND:
        raise TypeError(f"a type of class {code}")
    record = t.create(t.COMPOUND, size)
    for i in range(kind.get_nmembers()):  # HDF5 refuses members that overlap or stick out
        record.insert(kind.get_member_name(i), kind.get_member_offset(i), _rebuilt(kind.get_member_type(i)))
    return record


def _standard() -> dict[tuple[int, int], list[h5py.h5t.TypeID]]:
    known: dict[tuple[int, int], list[h5py.h5t.TypeID]] = {}
    whole = [f"STD_{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)]
    for name in (*whole, "IEEE_F16", "IEEE_F32", "IEEE_F64"):
        for order in ("LE", "BE"):
            kind = getattr(h5py.h5t, name + order)
            known.setdefault((kind.get_class(), kind.get_size()), []).append(kind)
    return known


_STANDARD = _standard()


class Heaps:
    """Where every variable-length value of a file lies and how long it is."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        self._base = int(file.userblock_size)
        if file.id.get_create_plist().get_sizes() != (8, 8):
            raise DataError(f"{path}: has file addresses of an unusual size, expected 8 bytes")
        self._sizes: dict[tuple[int, int], int] | None = None

    def total(self, field: str, node: h5py.Dataset, member: int, width: int, itemsize: int) -> int:
        """Bytes of all values of a dataset; DataError if a reference asks for more than its value has.

        The reference stands at byte ``member`` of each element of ``width`` bytes; its length counts ``itemsize``.
        """
        if self._sizes is None:
            self._sizes = self._measure()
        reference = np.dtype(
            {"names": ["length", "heap", "index"], "formats": ["<u4", "<u8", "<u4"],
             "offsets": [member, member + 4, member + 12], "itemsize": width}
        )  # fmt: skip
        total = 0
        for block in self._blocks(field, node):
            if len(block) % width:
                raise DataError(f"{self._path}: {field}: {len(block)} bytes, expected a multiple of {width}")
            for length, heap, index in np.frombuffer(block, reference).tolist():
                if length == 0:
                    continue
                if length * itemsize > self._sizes.get((heap, index), -1):
                    raise DataError(
                        f"{self._path}: {field}: refers to {length * itemsize} bytes that are not at their place; "
                        "it is truncated or corrupted"
                    )
                total += length * itemsize
        return total

    def _measure(self) -> dict[tuple[int, int], int]:
        sizes: dict[tuple[int, int], int] = {}
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_SIGNATURE)
            while start >= 0:
                at = start + _OBJECT_HEADER
                stop = min(start + int.from_bytes(content[start + 8 : at], "little"), len(content))
                while at + _OBJECT_HEADER <= stop:
                    index = int.from_bytes(content[at : at + 2], "little")
                    size = int.from_bytes(content[at + 8 : at + 16], "little")
                    step = _OBJECT_HEADER + (size + 7) // 8 * 8 if index else size
                    if step < _OBJECT_HEADER or at + step > stop:
                        raise DataError(
                            f"{self._path}: the HDF5 heap at byte {start} holds a value of {size} bytes, expected 0 to "
                            f"{stop - at - _OBJECT_HEADER}; it is truncated or corrupted"
                        )
                    sizes[start - self._base, index] = size
                    at += step
                start = content.find(_SIGNATURE, start + len(_SIGNATURE))
        return sizes

    def _blocks(self, field: str, node: h5py.Dataset) -> Iterator[bytes]:
        """The dataset's elements as they are stored."""
        settings = node.id.get_create_plist()
        places: list[tuple[int, int]] = []
        if settings.get_layout() == h5py.h5d.CONTIGUOUS:
            offset = node.id.get_offset()
            if offset is not None:
                places.append((offset, node.id.get_storage_size()))
        elif settings.get_layout() == h5py.h5d.CHUNKED and settings.get_nfilters() == 0:
            node.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
        else:
            raise DataError(
                f"{self._path}: {field}: variable-length values in a compact or filtered dataset, expected plain"
            )
        with self._path.open("rb") as file:
            for offset, size in places:
                file.seek(offset)
                yield file.read(size)
