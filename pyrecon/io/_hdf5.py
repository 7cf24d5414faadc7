"""A wary view of an HDF5 file: nothing outside it is opened, and nothing is read before its size is believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._files import PathLike, check_memory, existing_file, joined, one_line
from pyrecon.io._hdf5_checks import Heaps, is_plain

# What h5py raises on a damaged file, seen by fuzzing.
_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OverflowError, NotImplementedError)

# Measured data hardly compress; a zero-filled k-space does by its undersampling. Deflate could expand 1032 times.
_MOST_EXPANSION = 200
_MOST_TEXT = 8 * 2**20
_MOST_HOPS = 16
_MOST_OBJECTS = 10_000

_Node = Any  # h5py.Group, Dataset or Datatype


class Hdf5:
    """A read-only HDF5 file that may be damaged or hostile: every method returns checked values or raises DataError.

    Soft links are followed inside the file only; external links, external storage and virtual datasets are refused.
    Field names are absolute paths (``"/measurement/data"``).
    """

    def __init__(self, path: PathLike) -> None:
        self.path = existing_file(path)
        self._size = self.path.stat().st_size
        self._known: dict[str, _Node | None] = {}
        with self.reading("/"):
            self._file = h5py.File(self.path, "r", locking="best-effort")
            self._heaps = Heaps(self.path, self._file)

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def fail(self, field: str, came: str, expected: str) -> DataError:
        """The error to raise about ``field``."""
        return DataError(f"{self.path}: {field}: {came}, expected {expected}")

    @contextmanager
    def reading(self, field: str) -> Iterator[None]:
        """Turns what h5py raises on a damaged file into a DataError about ``field``."""
        try:
            yield
        except DataError:
            raise
        except _DAMAGE as error:
            what = "is not a readable HDF5 file" if field == "/" else f"{field} cannot be read"
            raise DataError(f"{self.path}: {what} ({one_line(error)}); it is truncated or corrupted") from error

    # ---- objects

    def _find(self, field: str, hops: int = 0) -> _Node | None:
        """The object called ``field``; each is looked up once, the file being read-only."""
        field = field.rstrip("/")
        if field not in self._known:
            with self.reading(field):
                self._known[field] = self._look_up(field, hops)
        return self._known[field]

    def _look_up(self, field: str, hops: int) -> _Node | None:
        if field == "":
            root: _Node = self._file["/"]
            return root
        group, _, name = field.rpartition("/")
        parent, link = self._find(group, hops), name.encode()
        if not isinstance(parent, h5py.Group) or not parent.id.links.exists(link):
            return None
        kind = parent.id.links.get_info(link).type
        if kind == h5py.h5l.TYPE_SOFT:
            if hops == _MOST_HOPS:
                raise self.fail(field, "soft links that lead in a circle", "data")
            target = parent.id.links.get_val(link).decode()
            return self._find(target if target.startswith("/") else f"{group}/{target}", hops + 1)
        if kind != h5py.h5l.TYPE_HARD:
            raise self.fail(field, "a link to another file", "data inside this file")
        found: _Node = parent[name]
        return found

    def has(self, field: str) -> bool:
        """Whether a dataset or group of this name exists."""
        return self._find(field) is not None

    def names(self, group: str) -> list[str]:
        """Names in a group, or an empty list if it is none."""
        node = self._find(group)
        if not isinstance(node, h5py.Group):
            return []
        with self.reading(group):
            return [str(name) for name in node][:_MOST_OBJECTS]

    def dataset(self, field: str, *, axis: int = 0, taken: slice | None = None) -> h5py.Dataset:
        """A dataset that is safe to read: stored in this file, of a size that the file can account for.

        Of which ``taken`` along ``axis`` will be read; all must fit the file, but only that the memory.
        """
        node = self._find(field)
        if node is None:
            raise DataError(f"{self.path}: {field} is missing")
        if not isinstance(node, h5py.Dataset):
            raise self.fail(field, "a group", "a dataset")
        with self.reading(field):
            settings = node.id.get_create_plist()
            layout = settings.get_layout()
            if layout == h5py.h5d.VIRTUAL or settings.get_external_count() > 0:
                raise self.fail(field, "data kept in another file", "data inside this file")
            if node.shape is None:
                raise self.fail(field, "an empty dataset", "data")
            if not is_plain(node.id.get_type()):
                raise self.fail(field, "values of an unusual type", "numbers or text")
            nbytes = node.size * node.dtype.itemsize
            stored = node.id.get_storage_size()
            ratio = _MOST_EXPANSION if layout == h5py.h5d.CHUNKED and settings.get_nfilters() > 0 else 1
            check_memory(self.path, field, nbytes, min(stored, self._size), ratio, _share(node.shape, axis, taken))
            if layout == h5py.h5d.CHUNKED:  # a chunk is decompressed whole, however little of it is asked for
                chunk = int(np.prod(settings.get_chunk(), dtype=object)) * node.dtype.itemsize
                check_memory(self.path, f"{field} (chunk)", chunk, max(stored, nbytes), _MOST_EXPANSION)
        return node

    # ---- values

    def outline(self, field: str) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        """Shape and dtype of what :meth:`array` would give, without reading it; None where it is no such dataset."""
        node = self._find(field)
        if not isinstance(node, h5py.Dataset):
            return None
        with self.reading(field):
            kind = node.dtype if node.shape is not None and is_plain(node.id.get_type()) else None
            if kind is None or not (kind.kind in "iufcb" or _is_pair(kind)) or kind.subdtype is not None:
                return None
            return node.shape, np.result_type(kind[0], np.complex64) if _is_pair(kind) else kind

    def array(self, field: str, shape: Sequence[int | None] | None = None) -> NDArray[Any]:
        """Numbers of any real or complex dtype (compound real/imaginary pairs too); ``None`` in shape fits any size."""
        node = self.dataset(field)
        with self.reading(field):
            kind = node.dtype
            pair = _is_pair(kind)
            if not (kind.kind in "iufcb" or pair) or kind.subdtype is not None:
                raise self.fail(field, f"values of type {kind}", "numbers")
            data = np.asarray(node[()])
        if pair and data.dtype.names is not None:
            real, imag = (data[name] for name in data.dtype.names)
            data = joined(real, imag)
        if shape is not None and len(shape) == 1 and data.ndim > 1 and data.size == max(data.shape):
            data = data.reshape(-1)  # a vector that its writer keeps as a row or a column
        if shape is not None:
            fits = data.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, data.shape, strict=True))
            if not fits:
                wanted = ", ".join("?" if n is None else str(n) for n in shape)
                raise self.fail(field, f"shape {data.shape}", f"({wanted})")
        return data

    def number(self, field: str, default: float | None = None) -> float:
        """One finite real number."""
        if default is not None and not self.has(field):
            return default
        data = self.array(field)
        if data.size != 1 or data.dtype.kind not in "iufb":
            raise self.fail(field, f"{data.dtype} of shape {data.shape}", "one real number")
        value = float(data.reshape(()))
        if not np.isfinite(value):
            raise self.fail(field, str(value), "a finite number")
        return value

    def integer(self, field: str, least: int = 0, default: int | None = None) -> int:
        """One whole number, at least ``least``."""
        if default is not None and not self.has(field):
            return default
        value = self.number(field)
        if value != int(value) or value < least or value > 2**53:
            raise self.fail(field, f"{value:g}", f"a whole number from {least}")
        return int(value)

    def flag(self, field: str, default: bool | None = None) -> bool:
        """A truth value, stored as 0 or 1."""
        if default is not None and not self.has(field):
            return default
        value = self.number(field)
        if value not in (0.0, 1.0):
            raise self.fail(field, f"{value:g}", "0 or 1")
        return value == 1.0

    def text(self, field: str, default: str | None = None) -> str:
        """One text, whether stored as a scalar or as an array of one."""
        if default is not None and not self.has(field):
            return default
        values = self.texts(field)
        if values.size != 1:
            raise self.fail(field, f"{values.size} texts", "one")
        return str(values.reshape(())[()])

    def texts(self, field: str) -> NDArray[Any]:
        """An array of texts."""
        node = self.dataset(field)
        with self.reading(field):
            kind = h5py.check_string_dtype(node.dtype)
            if kind is None:
                raise self.fail(field, f"values of type {node.dtype}", "text")
            size = node.size * node.dtype.itemsize
            if kind.length is None:
                size += self._heaps.total(field, node, member=0, width=16, itemsize=1)
            if size > _MOST_TEXT:
                raise self.fail(field, f"{size} bytes", f"a text of at most {_MOST_TEXT}")
            return np.asarray(node.asstr(errors="replace")[()])

    def records(self, field: str) -> h5py.Dataset:
        """A list of records of which every variable-length member is safe to read.

        HDF5 follows the references of all members, also of those that are not asked for.
        """
        node = self.dataset(field)
        with self.reading(field):
            kind = node.id.get_type()
            if node.ndim != 1 or node.shape[0] == 0 or kind.get_class() != h5py.h5t.COMPOUND:
                raise self.fail(field, f"{node.dtype} of shape {node.shape}", "a list of records")
            total = 0
            for i in range(kind.get_nmembers()):
                member = kind.get_member_type(i)
                if member.get_class() == h5py.h5t.VLEN and not member.get_super().detect_class(h5py.h5t.VLEN):
                    itemsize = member.get_super().get_size()
                    total += self._heaps.total(field, node, kind.get_member_offset(i), kind.get_size(), itemsize)
                elif member.detect_class(h5py.h5t.VLEN) or h5py.check_string_dtype(member.dtype) is not None:
                    raise self.fail(field, f"a member of type {member.dtype}", "numbers or lists of numbers")
        # Many records may point at one value; a sound file is larger than all of its values.
        check_memory(self.path, field, total, self._size, 1)
        return node

    # ---- everything small, for the record

    def metadata(self, groups: Sequence[str], skip: Sequence[str], most: int = 2**16) -> dict[str, Any]:
        """All texts and numbers of up to ``most`` bytes in ``groups``, by path; what cannot be read is left out."""
        found: dict[str, Any] = {}
        waiting = [(group, 0) for group in groups]
        visited = 0
        while waiting and visited < _MOST_OBJECTS:
            field, depth = waiting.pop(0)
            visited += 1
            if field in skip or depth > 8:
                continue
            try:
                names = self.names(field)
                if names or not isinstance(self._find(field), h5py.Dataset):
                    waiting += [(f"{field}/{name}", depth + 1) for name in names]
                    continue
                node = self.dataset(field)
                if node.size * max(1, node.dtype.itemsize) > most:
                    continue
                is_text = h5py.check_string_dtype(node.dtype) is not None
                value = self.texts(field) if is_text else self.array(field)
            except DataError:
                continue
            found[field] = value.item() if value.ndim == 0 else value
        return found


def _is_pair(kind: np.dtype[Any]) -> bool:
    """Real and imaginary part."""
    return kind.names is not None and len(kind.names) == 2 and all(kind[n].kind in "fiu" for n in kind.names)


def _share(shape: tuple[int, ...], axis: int, taken: slice | None) -> float:
    """Of an array that ``taken`` is."""
    if taken is None or axis >= len(shape) or shape[axis] == 0:
        return 1.0
    return len(range(shape[axis])[taken]) / shape[axis]
