"""Damage to files by a seed: of their bytes, of texts and values in them, of what single formats say with these."""

from __future__ import annotations

import gzip
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Damage = Callable[[Path, Rng], None]

NUMBERS = (
    "0", "-1", "1", "0.5", "2", "3", "7", "64", "255", "65535", "65536", "1e9", "2147483648", "-2147483648",
    "18446744073709551616", "1" + 400 * "0", "1e308", "-1e308", "1e-308", "1e-30", "nan", "NaN", "inf", "-Infinity",
    "", " ", "0x10", "1,5", "1_0", "ten", "½", "٣", "1e", "--1", "true", "null",
)  # fmt: skip
TEXTS = ("", " ", "\0", "x" * 5000, "é\udcff".encode(errors="replace").decode(), "\u202e\n", "]]>", "&#0;", "<a>", "{}",
         "%s%n{0}", "../../x", "[red]", "-1")  # fmt: skip
EXTREME = (0, 1, 2, -1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62,
           2**63 - 1, 2**64 - 1)  # fmt: skip
REAL = (0.0, -0.0, -1.0, 0.5, 2.0, 1e-320, 1e-30, 1e-10, 1e10, 1e18, 3e38, -3e38, 1e308, np.nan, np.inf, -np.inf)


def pick(rng: Rng, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


# --- bytes ---------------------------------------------------------------------------------------------------------
def damaged_bytes(content: bytes, rng: Rng) -> bytes:
    """Wrong bytes, numbers of extreme values, parts that are cut off, lost, repeated or exchanged."""
    data = np.frombuffer(content, np.uint8).copy()
    size = len(data)
    filled = np.flatnonzero(data)  # headers with much space would hide the rest

    def place() -> int:
        way = rng.integers(4)
        if way == 0 or not len(filled):
            return int(rng.integers(size))
        return min(int(rng.exponential(1000)), size - 1) if way == 1 else int(pick(rng, filled))

    def stretch() -> tuple[int, int]:
        start = place()
        return start, min(size, start + int(rng.integers(1, 1 + min(size, int(pick(rng, (4, 64, 1024)))))))

    kind = int(rng.integers(9))
    if kind == 0:
        return content[: place()]
    if kind == 1:
        for _ in range(rng.integers(1, 9)):
            data[place()] = rng.integers(256)
    elif kind == 2:
        data[place()] ^= 1 << rng.integers(8)
    elif kind == 3:
        start, stop = stretch()
        data[start:stop] = pick(rng, (0, 255, int(rng.integers(256))))
    elif kind in (4, 5):
        form = pick(rng, ("<u2", "<u4", "<u8", "<f4", "<f8"))
        width = np.dtype(form).itemsize
        start = min(place() // 2 * 2, size - width)
        value = pick(rng, REAL) if "f" in form else pick(rng, EXTREME) % 2 ** (8 * width)
        with np.errstate(over="ignore"):
            data[start : start + width] = np.frombuffer(np.array([value]).astype(form).tobytes(), np.uint8)
    elif kind == 6:
        (a, b), (c, d) = sorted((stretch(), stretch()))
        c = max(b, c)
        return content[:a] + content[c : max(c, d)] + content[b:c] + content[a:b] + content[max(c, d) :]
    else:
        start, stop = stretch()
        return content[:start] + content[start:stop] * (0 if kind == 7 else 2) + content[stop:]
    return data.tobytes()


# --- texts ---------------------------------------------------------------------------------------------------------
def damaged_text(text: str, rng: Rng) -> str:
    """Another number, a line or an element that is lost, empty or doubled, wrong characters, an end that is missing."""
    parts: list[re.Match[str]] = []
    kind = int(rng.integers(6))
    if kind <= 2:
        parts = list(re.finditer(r"(?<![\w.])-?\d+\.?\d*(?:[eE][-+]?\d+)?", text))
    elif kind == 3:
        parts = list(re.finditer(r"<(\w+)[^>]*>[^<]*</\1>|<(\w+)[^>]*>.*?</\2>|[^\n]+\n|\"[^\"]*\"", text, re.S))
    if not parts:
        start = int(rng.integers(len(text) + 1))
        if kind == 5:
            return text[:start]
        return text[:start] + pick(rng, TEXTS) + text[start + int(rng.integers(3)) :]
    part = pick(rng, parts)
    new = pick(rng, NUMBERS) if kind <= 2 else pick(rng, ("", 2 * part[0], re.sub(">[^<]*<", "><", part[0])))
    return text[: part.start()] + new + text[part.end() :]


def damaged_json(text: str, rng: Rng) -> str:
    """As a text, or with another value, a name that is missing or one more."""
    if rng.integers(3) == 0:
        return damaged_text(text, rng)
    whole = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(whole)
    if not places:
        return damaged_text(text, rng)
    node, key = pick(rng, places)
    if rng.integers(4) == 0:
        del node[key]
    else:
        node[key] = pick(rng, (None, True, [], {}, [[1.0]], "x", "", -1, 0, 1e308, 10**400, float("nan"), [None], "1"))
    return json.dumps(whole)


# --- arrays --------------------------------------------------------------------------------------------------------
def damaged_array(a: NDArray[Any], rng: Rng) -> Any:
    """Other values, another shape or another type."""
    way = int(rng.integers(4))
    if way <= 1 and a.size:
        return _other_values(a.copy(), rng)
    return _other_shape(a, rng) if way == 2 else _other_type(a, rng)


def _other_values(a: NDArray[Any], rng: Rng) -> Any:
    flat = a.reshape(-1)
    at: Any = int(rng.integers(flat.size)) if rng.integers(3) else slice(None)
    if a.dtype.names:
        name = pick(rng, a.dtype.names)
        part = flat[name]
        if part.dtype == object:  # a list of numbers of any length
            values = flat[name][at] if isinstance(at, int) else flat[name][0]
            flat[name][at] = values[: rng.integers(8)]
        else:
            part[at] = _other_values(np.atleast_1d(part[at]).copy(), rng).reshape(np.shape(part[at]))
        return a
    if a.dtype.kind in "OSU":
        said = str(flat[0] if not isinstance(flat[0], bytes) else flat[0].decode(errors="replace"))
        return np.array(damaged_text(said, rng).replace("\0", ""), object)
    with np.errstate(all="ignore"):
        if a.dtype.kind in "iu":
            flat[at] = np.array(pick(rng, EXTREME)).astype(a.dtype)
        elif a.dtype.kind == "b":
            flat[at] = ~flat[at]
        elif rng.integers(3) or isinstance(at, int):
            flat[at] = pick(rng, REAL)
        else:
            flat *= pick(rng, (1e-30, 1e-8, 1e8, 1e25, 1e37))
    return a


def _other_shape(a: NDArray[Any], rng: Rng) -> NDArray[Any]:
    if a.ndim == 0:
        return np.broadcast_to(a, pick(rng, ((1,), (2,), (0,), (1, 1), (3, 2)))).copy()
    axis = int(rng.integers(a.ndim))
    ways: tuple[Callable[[], NDArray[Any]], ...] = (
        lambda: a.take(np.arange(rng.integers(a.shape[axis] + 1)), axis),
        lambda: np.concatenate([a, a], axis),
        lambda: a.swapaxes(axis, -1),
        lambda: a.T,
        lambda: a[None],
        lambda: a.reshape(-1),
        lambda: np.flip(a, axis),
        lambda: a.take([0], axis) if a.shape[axis] else a,
        lambda: a.max(axis) if a.dtype.kind in "iuf" and a.shape[axis] else a[..., None],
        lambda: np.zeros((1,) * 20, a.dtype if a.dtype.kind in "iuf" else np.int8),
    )
    return pick(rng, ways)()


def _other_type(a: NDArray[Any], rng: Rng) -> Any:
    if a.dtype.kind not in "iufcb":
        return pick(rng, (np.array(1.5), np.arange(3), np.ones((2, 3), complex)))
    kind = pick(rng, ("f2", "f4", ">f8", "i1", ">i4", "i8", "u1", "u8", "c8", "c16", "?", "S4", "S0", "f8"))
    with np.errstate(all="ignore"):
        if a.dtype.kind == "c" and kind[-2] not in "cS":
            return np.stack([a.real, a.imag], -1).astype(kind)
        return a.astype(kind)


# --- HDF5 ----------------------------------------------------------------------------------------------------------
def damaged_hdf5(path: Path, rng: Rng) -> None:
    """Fields that are missing, renamed, linked, kept otherwise, or hold something else."""
    names: list[str] = []
    with h5py.File(path, "a") as file:
        file.visit(names.append)
        for _ in range(pick(rng, (1, 1, 1, 2, 3))):
            _damage_field(file, pick(rng, names), rng)


def _damage_field(file: h5py.File, name: str, rng: Rng) -> None:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink | None) or name not in file:
        return  # damaged already
    node, kind = file[name], int(rng.integers(20))
    kept = isinstance(node, h5py.Dataset) and node.shape is not None and node.size < 2**20
    value = node[()] if kept else None
    if kind == 0:
        file.move(name, name + "_")
    elif kind == 1:
        del file[name]
    elif kind == 2:
        others: list[str] = []
        file.visit(others.append)
        del file[name]
        file[name] = h5py.SoftLink("/" + pick(rng, [name, name + "/x", *others[:40], ""]))
    elif kind == 3:
        del file[name]
        file[name] = h5py.ExternalLink(pick(rng, ("/dev/zero", "missing.h5", "/etc/hostname", "/")), "/" + name)
    elif kind == 4:
        del file[name]
        file.create_group(name + "/" + name.rpartition("/")[2])
    elif kind == 5 and value is not None:
        del file[name]
        file.create_dataset(name, (4,), "f4", external=[(pick(rng, ("/dev/zero", "/etc/hostname")), 0, 16)])
    elif kind == 6 and value is not None:
        del file[name]
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(pick(rng, (".", "missing.h5")), "x", (4,))
        file.create_virtual_dataset(name, layout)
    elif kind == 7 and value is not None:  # sizes without data
        del file[name]
        shape = pick(rng, ((2**20,) * 3, (2**40,), (0,), (2**16, 2**16), (1, 2**31), (2**30, 1, 1, 2)))
        file.create_dataset(name, shape, pick(rng, ("f4", "c8", "u1")), chunks=tuple(min(n, 64) or 1 for n in shape),
                            maxshape=(None,) * len(shape), compression=pick(rng, (None, "gzip")))  # fmt: skip
    elif kind == 8 and isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iufc":
        del file[name]
        chunks = tuple(max(1, n // 2) for n in value.shape)
        made = file.create_dataset(name, data=value, chunks=chunks, compression="gzip", shuffle=True, fletcher32=True)
        if rng.integers(2):
            made.id.write_direct_chunk((0,) * value.ndim, bytes(rng.integers(256, size=9, dtype=np.uint8)))
    elif kind == 9:
        node.attrs[pick(rng, ("version", "x", "units", "CLASS"))] = pick(rng, (-1, "x", np.ones(3)))
    elif value is not None:
        wrong = damaged_array(np.asarray(value), rng)
        made = None if kind == 10 else node.dtype  # strings and records keep their types
        same = isinstance(wrong, np.ndarray) and wrong.dtype == np.asarray(value).dtype
        del file[name]
        file.create_dataset(name, data=wrong, dtype=made if same else None)


# --- NPZ and compressed files --------------------------------------------------------------------------------------
def damaged_npz(path: Path, rng: Rng) -> None:
    """Arrays that are missing, renamed, twice there, of other values, or with a head of its own making."""
    with np.load(path) as archive:
        arrays: dict[str, Any] = dict(archive)
    name, kind = pick(rng, list(arrays)), int(rng.integers(10))
    members: dict[str, bytes] = {}
    for key, value in arrays.items():
        wrong = damaged_array(value, rng) if key == name and kind > 3 else value
        if key == name and kind == 3 and value.dtype.kind == "U" and value.ndim == 0:
            wrong = np.array(damaged_text(str(value), rng))
        if isinstance(wrong, np.ndarray) and wrong.dtype == object:
            wrong = wrong.astype(str)
        file = io.BytesIO()
        np.save(file, np.array([wrong, None], object) if key == name and kind == 0 else wrong, allow_pickle=kind == 0)
        members[key + ".npy"] = file.getvalue()
    if kind == 1:
        content = members.pop(name + ".npy")
        if rng.integers(2):
            members[pick(rng, ("x.npy", name, "/" + name + ".npy", "../" + name + ".npy"))] = content
    elif kind == 2:
        head, rest = members[name + ".npy"][:128], members[name + ".npy"][128:]
        members[name + ".npy"] = damaged_text(head.decode("latin1"), rng).encode("latin1", "replace") + rest
    with zipfile.ZipFile(path, "w", pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as out:
        for key, content in members.items():
            out.writestr(key, content)


def inside_gzip(change: Callable[[bytes, Rng], bytes]) -> Callable[[bytes, Rng], bytes]:
    """``change`` of what is compressed, with a sound checksum."""
    return lambda content, rng: gzip.compress(change(gzip.decompress(content), rng), 1)


# --- what formats say ----------------------------------------------------------------------------------------------
def xml_in(field: str) -> Damage:
    """The header, or any field."""

    def damage(path: Path, rng: Rng) -> None:
        if rng.integers(2):
            damaged_hdf5(path, rng)
            return
        with h5py.File(path, "a") as file:
            if field not in file:
                return
            value = np.asarray(file[field][()]).reshape(-1)[0]
            text = value.decode() if isinstance(value, bytes) else str(value)
            for _ in range(pick(rng, (1, 1, 2, 5))):
                text = damaged_text(text, rng)
            del file[field]
            file[field] = text.replace("\0", " ").encode(errors="replace").decode()

    return damage


def readouts(path: Path, rng: Rng) -> None:
    """Counters, flags and sizes of ISMRMRD readouts, header and fields."""
    if rng.integers(3):
        xml_in("dataset/xml")(path, rng)
        return
    with h5py.File(path, "a") as file:
        rows = file["dataset/data"][()]
        head = rows["head"]
        chosen = rng.integers(len(rows), size=pick(rng, (1, 1, 2, len(rows))))
        for _ in range(pick(rng, (1, 2, 4))):
            inside = rng.integers(2) == 1
            part = head["idx"] if inside else head
            name = pick(rng, part.dtype.names if inside else [n for n in part.dtype.names if n != "idx"])
            kind = part[name].dtype
            with np.errstate(all="ignore"):
                wrong = np.array(pick(rng, REAL if kind.kind == "f" else (*EXTREME, *(2**n for n in range(17, 32)))))
                part[name][chosen] = wrong.astype(kind)
        file["dataset/data"][...] = rows


def protocol(path: Path, rng: Rng) -> None:
    """Text of the protocol, its length kept or not; or a number of a readout's header."""
    content = path.read_bytes()
    start = content.find(b"MeasYaps\0")
    stop = content.find(b"alRegridMode") + 80
    if rng.integers(2) and 0 <= start < stop:
        text = content[start + 13 : stop].decode("latin1")
        for _ in range(pick(rng, (1, 1, 2, 5))):
            text = damaged_text(text, rng)
        new = text.encode("latin1", "replace")
        if rng.integers(3):  # so that all that follows stays in its place
            new = new[: stop - start - 13].ljust(stop - start - 13)
        path.write_bytes(content[: start + 13] + new + content[stop:])
        return
    head = stop + int(rng.integers(200))
    data = np.frombuffer(content, np.uint8).copy()
    readout = np.flatnonzero(data[head:]) + head
    for _ in range(pick(rng, (1, 2, 4))):
        at = int(pick(rng, readout)) // 2 * 2
        new_bytes = np.array(pick(rng, EXTREME) % 2**16, "<u2").tobytes()
        data[at : at + 2] = np.frombuffer(new_bytes, np.uint8)[: len(data[at : at + 2])]
    path.write_bytes(data.tobytes())


def matlab(path: Path, rng: Rng) -> None:
    """Fields of the struct."""
    from scipy.io import loadmat, savemat

    known = {k: v for k, v in loadmat(path, simplify_cells=True).items() if not k.startswith("__")}
    (name,) = known
    part = known[name]
    place = pick(rng, [(part, key) for key in part] + [(part["parameters"], key) for key in part["parameters"]])
    holder, key = place
    kind = int(rng.integers(8))
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key + "_"] = holder.pop(key)
    elif kind == 2:
        others = ("", "x", [], {}, {"a": 1}, np.zeros((0, 3)), np.array(["a", "b"], object), 1j, [1, [2]])
        holder[key] = pick(rng, others)
    elif isinstance(holder[key], str):
        holder[key] = damaged_text(holder[key], rng)
    elif not isinstance(holder[key], dict):
        holder[key] = damaged_array(np.asarray(holder[key]), rng)
    savemat(path, {pick(rng, (name, name, name, "x")): part}, do_compression=bool(rng.integers(2)))


def bart_sizes(path: Path, rng: Rng) -> None:
    """Another size of an axis in the head of a BART array, or other text there."""
    head = path.with_suffix(".hdr")
    lines = head.read_text().splitlines()
    sizes = lines[1].split()
    if rng.integers(3):
        sizes[int(rng.integers(len(sizes)))] = str(pick(rng, EXTREME))
        head.write_text("\n".join([lines[0], " ".join(sizes), *lines[2:]]))
    else:
        head.write_text(damaged_text(head.read_text(), rng))


def attributes(path: Path, rng: Rng) -> None:
    """Attributes of a DICOM image."""
    import pydicom
    from pydicom import config

    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    data = pydicom.dcmread(path)
    elements = [(data, e) for e in data]
    for sequence in (e for e in list(data) if e.VR == "SQ"):
        for item in sequence.value:
            elements += [(item, e) for e in item]
            elements += [(i, e) for s in item if s.VR == "SQ" for i in s.value for e in i]
    holder, element = pick(rng, elements)
    kind = int(rng.integers(6))
    if kind == 0:
        del holder[element.tag]
    elif kind == 1 and element.VR in ("US", "UL", "SS"):
        element._value = int(pick(rng, EXTREME)) % 2**16
    elif element.VR in ("DS", "IS"):
        kinds = [pick(rng, NUMBERS_16) for _ in range(pick(rng, (1, 1, 2, 3, 6)))]
        holder[element.tag] = pydicom.DataElement(element.tag, "LO", kinds if len(kinds) > 1 else kinds[0])
    elif element.VR == "FD":
        element._value = pick(rng, (*REAL, [], [1.0, 2.0], None))
    elif element.VR in ("OW", "OB"):
        element._value = element.value[: 2 * int(rng.integers(len(element.value) // 2 + 1))]
    elif element.VR == "US":
        element._value = pick(rng, ([], [1, 2], None, 1, 3, 8, 32))
    elif element.VR == "SQ":
        element._value = pydicom.Sequence(list(element.value)[: rng.integers(len(element.value) + 1)])
    else:
        element._value = pick(rng, ("", None, "x", "\\", "PT", "1.2.840.10008.1.2.4.50", "M\\P", "é"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data.save_as(path)
        except Exception:  # what pydicom does not write; then the bytes
            path.write_bytes(damaged_bytes(path.read_bytes(), rng))


NUMBERS_16 = ("0", "-1", "1", "0.5", "3", "1e9", "1e308", "-1e308", "1e-300", "nan", "inf", "", "x", "1e", "65536")


def volume(path: Path, rng: Rng) -> None:
    """A sidecar; the head of a NIfTI image, which is compressed or not."""
    if path.suffix == ".json":
        path.write_text(damaged_json(path.read_text(), rng), errors="replace")
        return

    def head(content: bytes, rng: Rng) -> bytes:
        data = np.frombuffer(content, np.uint8).copy()
        dims, sizes, places = (int(rng.integers(n)) for n in (12, 14, 18))
        form, at = pick(rng, (("<i2", 40 + 2 * dims), ("<i2", 70), ("<f4", 76 + 4 * sizes), ("<f4", 108), ("<i2", 252),
                              ("<f4", 256 + 4 * places), ("<i4", 348), ("<i4", 352), ("<i4", 356)))  # fmt: skip
        value = pick(rng, REAL) if "f" in form else pick(rng, (*EXTREME, 4, 8, 16, 64, 512, 2304, -2))
        width = np.dtype(form).itemsize
        with np.errstate(over="ignore"):
            raw = np.array([value % 2 ** (8 * width) if "i" in form else value])
            data[at : at + width] = np.frombuffer(raw.astype(form.replace("i", "u")).tobytes(), np.uint8)
        return data.tobytes()

    change = inside_gzip(head) if path.suffix == ".gz" else head
    path.write_bytes(change(path.read_bytes(), rng))
