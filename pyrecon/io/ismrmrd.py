"""ISMRM raw data (ISMRMRD, HDF5), Cartesian: reading, and writing for simulations.

Source: S. J. Inati et al., "ISMRM Raw data format: A proposed standard for MRI raw datasets", Magn. Reson. Med. 77
(2017) 411-421. The file is read with h5py in batches, not through the ``ismrmrd`` package: that makes three HDF5 reads
for each readout and believes every count in it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._cartesian import Readout, assemble, averages
from pyrecon.io._files import PathLike, check_finite, one_line, written_whole
from pyrecon.io._hdf5 import Hdf5

__all__ = ["read_ismrmrd", "write_ismrmrd"]

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_COUNTERS = ("slice", "contrast", "phase", "repetition", "set")

_NOISE, _CALIBRATION, _CALIBRATION_AND_IMAGE, _REVERSE = (1 << (bit - 1) for bit in (19, 20, 21, 22))
# Navigator, phase correction, feedback, dummy, surface-coil correction and phase stabilisation.
_NOT_IMAGE = sum(1 << (bit - 1) for bit in (23, 24, 26, 27, 28, 29, 30, 31))

_INDEX = np.dtype(
    [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", *_COUNTERS[:3])]
    + [("repetition", "<u2"), ("set", "<u2"), ("segment", "<u2"), ("user", "<u2", (8,))]
)
_INDEX_NAMES = ("kspace_encode_step_1", "kspace_encode_step_2", *_COUNTERS)
_HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        *((name, "<f4", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")),
        ("idx", _INDEX),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
_RECORD = np.dtype([("head", _HEAD), ("traj", h5py.vlen_dtype("<f4")), ("data", h5py.vlen_dtype("<f4"))])
_NEEDED = (
    "flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample",
    "encoding_space_ref", "idx",
)  # fmt: skip


def read_ismrmrd(path: PathLike) -> MRIScan:
    """Read the first Cartesian encoding of an ISMRMRD file.

    Lines are laid on the encoded matrix with the centre of k-space at ``n // 2``, zeros where nothing was measured;
    averages are averaged; slices, contrasts, phases, repetitions and sets follow each other along S. Noise scans and
    separate calibration lines go into ``noise`` and ``calibration``; navigator, phase-correction and dummy lines are
    left out. Raises DataError naming what is missing or does not fit.
    """
    with Hdf5(path) as file:
        group = _group(file)
        header = _header(file, f"{group}/xml")
        heads, data = _records(file, f"{group}/data")
    flags = heads["flags"]
    other = (flags & (_NOISE | _NOT_IMAGE) != 0) | (heads["encoding_space_ref"] != 0)
    only_calibration = (flags & _CALIBRATION != 0) & (flags & _CALIBRATION_AND_IMAGE == 0)

    def readouts(chosen: NDArray[np.bool_]) -> list[Readout]:
        return [_readout(path, int(i), heads[i], data[i], header) for i in np.flatnonzero(chosen)]

    if not (~other & ~only_calibration).any():
        raise DataError(f"{path}: {group}/data: {len(heads)} readouts, none of them image data; expected some")
    image = readouts(~other & ~only_calibration)
    found = assemble(path, image, header.shape, _COUNTERS)
    calibration = None
    if (only_calibration & ~other).any():
        calibration = assemble(path, readouts(only_calibration & ~other), header.shape, _COUNTERS).kspace
    chosen = [i for i in np.flatnonzero(flags & _NOISE != 0) if len(data[i]) == found.kspace.shape[1]]
    noise = [data[i] for i in chosen]
    for block in noise:
        check_finite(path, "the noise scan", block, "channel")
    known, left_out = _settings(header.sequence, found.contrasts)
    return MRIScan(
        kspace=found.kspace,
        mask=found.mask,
        noise=np.concatenate(noise, axis=1) if noise else None,
        calibration=calibration,
        readout_oversampling=header.oversampling,
        field_of_view=header.field_of_view,
        labels=found.labels,
        noise_ratio=_dwell_ratio(heads, chosen, ~other) / (header.noise_bandwidth * averages(image)) if noise else 1.0,
        slices=found.slices,
        settings=known,
        metadata=header.facts | ({"settings_left_out": left_out} if left_out else {}),
    )


def _dwell_ratio(heads: NDArray[Any], noise: list[Any], image: NDArray[np.bool_]) -> float:
    """Dwell time of the noise readouts over that of the others, 1 where either is missing: noise goes as 1 / dwell."""
    if "sample_time_us" not in (heads.dtype.names or ()):
        return 1.0
    first, second = (float(np.median(heads["sample_time_us"][chosen])) for chosen in (noise, image))
    known = 0 < first < 1e6 and 0 < second < 1e6
    return first / second if known else 1.0


# ---- header


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, int, int]  # P, H, W
    center: tuple[int, int]  # of partitions and rows, in counter values
    oversampling: float
    field_of_view: tuple[float, float, float]
    noise_bandwidth: (
        float  # the receiver filter's, relative to an ideal one: what is missing in the noise scan's margins
    )
    sequence: dict[str, list[str]]  # by name of the setting, a text for each contrast
    facts: dict[str, Any]


def _group(file: Hdf5) -> str:
    """The group with the raw data: "dataset" by custom."""
    names = file.names("/")
    for name in sorted(names, key=lambda name: name != "dataset"):
        if file.has(f"/{name}/xml") and file.has(f"/{name}/data"):
            return f"/{name}"
    shown = ", ".join(names[:8]) or "nothing"
    raise DataError(f"{file.path}: holds {shown}; expected a group with xml and data, as ISMRMRD has")


def _header(file: Hdf5, field: str) -> _Header:
    text = file.text(field)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise file.fail(field, "a document type or entity declaration", "plain XML")
    try:
        root = ElementTree.fromstring(text.strip("\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file.path}: {field} is no XML ({one_line(error)}); it is corrupted") from error
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    encoding = root.find("encoding")
    if encoding is None:
        raise file.fail(field, "no encoding", "one with encodedSpace and reconSpace")

    def number(path: str, default: float | None = None) -> float:
        found = encoding.findtext(path)
        if found is None and default is not None:
            return default
        try:
            value = float(found or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not 0 <= value < 2**24:
            raise file.fail(f"{field}: encoding/{path}", repr(found), "a number from 0")
        return value

    def size(path: str) -> int:
        value = number(path)
        if value != int(value) or not 1 <= value <= 65536:
            raise file.fail(f"{field}: encoding/{path}", f"{value:g}", "a whole number from 1 to 65536")
        return int(value)

    trajectory = (encoding.findtext("trajectory") or "").strip().lower()
    if trajectory != "cartesian":
        raise file.fail(f"{field}: encoding/trajectory", repr(trajectory), "'cartesian'")
    columns, rows, partitions = (size(f"encodedSpace/matrixSize/{axis}") for axis in "xyz")
    extent = [number(f"encodedSpace/fieldOfView_mm/{axis}") / 1e3 for axis in "xyz"]
    readout = number("reconSpace/fieldOfView_mm/x", extent[0] * 1e3) / 1e3
    if min(*extent, readout) <= 0 or not 1 - 1e-3 <= extent[0] / readout <= 16:
        raise file.fail(
            f"{field}: encoding/encodedSpace/fieldOfView_mm", f"{extent} m for an image of {readout:g} m along x",
            "positive lengths and an oversampling of 1 to 16",
        )  # fmt: skip
    limits = "encodingLimits/kspace_encoding_step_"
    return _Header(
        shape=(partitions, rows, columns),
        center=(int(number(f"{limits}2/center", partitions // 2)), int(number(f"{limits}1/center", rows // 2))),
        oversampling=max(1.0, extent[0] / readout),
        field_of_view=(extent[1], readout, extent[2] / partitions),
        noise_bandwidth=_noise_bandwidth(root),
        sequence=_sequence(root),
        facts=_facts(root),
    )


def _noise_bandwidth(root: ElementTree.Element) -> float:
    try:
        value = float(root.findtext("acquisitionSystemInformation/relativeReceiverNoiseBandwidth") or 1.0)
    except ValueError:
        return 1.0
    return value if 0.1 <= value <= 1 else 1.0


def _facts(root: ElementTree.Element) -> dict[str, Any]:
    """A few plain facts for reports; nothing that names the patient."""
    wanted = {
        "protocol": ("measurementInformation/protocolName", str, 1.0),
        "scanner": ("acquisitionSystemInformation/systemModel", str, 1.0),
        "field_strength_t": ("acquisitionSystemInformation/systemFieldStrength_T", float, 1.0),
        "repetition_time_s": ("sequenceParameters/TR", float, 1e-3),
        "echo_time_s": ("sequenceParameters/TE", float, 1e-3),
        "inversion_time_s": ("sequenceParameters/TI", float, 1e-3),
        "flip_angle_deg": ("sequenceParameters/flipAngle_deg", float, 1.0),
    }
    facts: dict[str, Any] = {}
    for name, (place, kind, scale) in wanted.items():
        found = [element.text or "" for element in root.findall(place)]
        if kind is str and found:
            facts[name] = found[0].strip()[:200]
        elif found:
            try:
                values = [float(text) * scale for text in found]
            except ValueError:
                continue
            facts[name] = values[0] if len(values) == 1 else values
    return facts


# Names of settings, of the header's elements, and what one of their units is.
_SEQUENCE = {
    "repetition time": ("TR", 1e3),
    "echo time": ("TE", 1e3),
    "inversion time": ("TI", 1e3),
    "flip angle": ("flipAngle_deg", 180 / math.pi),
}


def _sequence(root: ElementTree.Element) -> dict[str, list[str]]:
    found = {
        name: [element.text or "" for element in root.findall(f"sequenceParameters/{tag}")]
        for name, (tag, _) in _SEQUENCE.items()
    }
    return {name: texts for name, texts in found.items() if texts}


def _settings(
    sequence: dict[str, list[str]], contrasts: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """Of every entry, and why others are left out. The i-th value of the header is that of contrast i, one alone
    everybody's. Foreign headers list times that nothing was measured at: whether that matters, who uses them knows."""
    known, left_out = {}, {}
    there = len(np.unique(contrasts))
    for name, texts in sequence.items():
        tag, unit = _SEQUENCE[name]
        try:
            values = np.array([float(text) for text in texts]) / unit
        except ValueError:
            values = np.full(1, np.nan)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            left_out[name] = f"the header's {tag} are {', '.join(texts)[:80]}, expected numbers from 0"
        elif len(values) == 1:
            known[name] = values.repeat(len(contrasts))
        elif len(values) == there == int(contrasts.max()) + 1:
            known[name] = values[contrasts]
        else:
            last = f", the last of them number {int(contrasts.max())}" if len(values) == there else ""
            left_out[name] = f"the header has {len(values)} values ({tag}), the file {there} contrasts{last}"
    return known, left_out


# ---- readouts


def _records(file: Hdf5, field: str) -> tuple[NDArray[Any], list[Complex]]:
    """The headers, and each readout's samples (C, n) without those to be discarded."""
    node = file.records(field)
    names = node.dtype.names or ()
    head = node.dtype["head"] if "head" in names else None
    kind = node.dtype["data"] if "data" in names else np.dtype(float)
    if head is None or head.names is None or h5py.check_vlen_dtype(kind) not in (np.dtype("<f4"), np.dtype(">f4")):
        raise file.fail(field, f"records of {node.dtype}", "head, traj and data as ISMRMRD has them")
    missing = [n for n in _NEEDED if n not in head.names]
    missing += [n for n in _INDEX_NAMES if "idx" in head.names and n not in (head["idx"].names or ())]
    if missing:
        raise file.fail(f"{field}: head", f"no {', '.join(missing)}", "the fields of an acquisition header")
    with file.reading(field):
        heads = np.empty(node.shape, head)
        for start in range(0, len(node), 65536):
            heads[start : start + 65536] = node.fields("head")[start : start + 65536]
    found: list[Complex] = []
    for start in range(0, len(heads), 1024):
        with file.reading(field):
            block = node.fields("data")[start : start + 1024]
        found += [_samples(file, field, i, heads[i], np.asarray(v, "<f4")) for i, v in enumerate(block, start)]
    return heads, found


def _samples(file: Hdf5, field: str, number: int, head: Any, values: NDArray[np.float32]) -> Complex:
    channels, samples = int(head["active_channels"]), int(head["number_of_samples"])
    if values.ndim != 1 or len(values) != 2 * channels * samples or len(values) == 0:
        raise file.fail(
            f"{field}[{number}]",
            f"{values.size} values",
            f"{2 * channels * samples} for {channels} channels of {samples}",
        )
    first, last = int(head["discard_pre"]), samples - int(head["discard_post"])
    if first >= last:
        raise file.fail(f"{field}[{number}]", f"samples {first} to {last} of {samples} to be kept", "at least one")
    data = np.ascontiguousarray(values).view(np.complex64).reshape(channels, samples)[:, first:last]
    return np.ascontiguousarray(data[:, ::-1] if int(head["flags"]) & _REVERSE else data)


def _readout(path: PathLike, number: int, head: Any, data: Complex, header: _Header) -> Readout:
    partitions, rows, columns = header.shape
    index = head["idx"]
    turned = bool(int(head["flags"]) & _REVERSE)
    first = int(head["discard_post"] if turned else head["discard_pre"])
    # A full readout can lie in one place only; converters differ about its centre, or leave it 0.
    full = int(head["number_of_samples"]) == columns
    center = columns // 2 if full else int(head["center_sample"])
    return Readout(
        data,
        int(index["kspace_encode_step_1"]) - header.center[1] + rows // 2,
        int(index["kspace_encode_step_2"]) - header.center[0] + partitions // 2,
        first - center + columns // 2,
        tuple(int(index[name]) for name in _COUNTERS),
    )


# ---- writing


def write_ismrmrd(path: PathLike, scan: MRIScan) -> None:
    """Write a scan as ISMRMRD, whole or not at all: one readout per measured line, entries of S as slices, those that
    show the same one as its contrasts.

    Noise and calibration lines are written too. Raises ValueError if a line is measured in more than one piece or is
    longer than the format's 65535 samples, or if the slices differ in their settings.
    """
    slices, channels, rows, columns = scan.kspace.shape
    if max(slices, channels, rows, columns) > 65535:
        raise ValueError(f"scan: k-space of shape {scan.kspace.shape}, the format counts to 65535 along each axis")
    mask = np.broadcast_to(scan.mask, (slices, 1, rows, columns))[:, 0]
    places = _places(scan)
    records: list[tuple[NDArray[Any], Complex]] = []

    def add(data: Complex, flags: int, row: int = 0, entry: int = 0, center: int = 0) -> None:
        head = np.zeros((), _HEAD)
        head["version"], head["flags"], head["scan_counter"] = 1, flags, len(records)
        head["number_of_samples"], head["center_sample"] = data.shape[1], center
        head["available_channels"] = head["active_channels"] = channels
        head["sample_time_us"] = 5.0 * (scan.noise_ratio if flags == _NOISE else 1.0)
        head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3, dtype=np.float32)
        head["idx"]["kspace_encode_step_1"] = row
        head["idx"]["slice"], head["idx"]["contrast"] = places[entry]
        records.append((head, np.ascontiguousarray(data, np.complex64)))

    if scan.noise is not None:
        for start in range(0, scan.noise.shape[1], columns):
            add(scan.noise[:, start : start + columns], _NOISE)
    for source, flags in ((scan.calibration, _CALIBRATION), (scan.kspace, 0)):
        if source is None:
            continue
        for entry in range(len(source)):
            number = entry if source is scan.kspace else entry * (slices // len(source))
            measured = mask[entry] if source is scan.kspace else source[entry].any(axis=0)
            for row in np.flatnonzero(measured.any(axis=-1)):
                kept = np.flatnonzero(measured[row]) if source is scan.kspace else np.arange(columns)
                if kept[-1] - kept[0] + 1 != len(kept):
                    raise ValueError(f"scan: row {row} of entry {entry} is measured in pieces, expected one stretch")
                line = source[entry, :, row, kept[0] : kept[-1] + 1]
                add(line, flags, int(row), number, columns // 2 - int(kept[0]))
    stored = np.empty(len(records), _RECORD)
    for i, (head, data) in enumerate(records):
        stored[i] = (head[()], np.zeros(0, np.float32), data.view(np.float32).ravel())
    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("dataset/xml", data=[_xml(scan).encode()], dtype=h5py.special_dtype(vlen=bytes))
        file.create_dataset("dataset/data", data=stored, maxshape=(None,))


def _places(scan: MRIScan) -> NDArray[np.int64]:
    """``(S, 2)``: slice and contrast of every entry, contrasts in the order of the entries."""
    count = len(scan.kspace)
    slices = np.arange(count) if scan.slices is None else np.unique(scan.slices, return_inverse=True)[1]
    seen: Counter[int] = Counter()
    places = np.empty((count, 2), np.int64)
    for entry, number in enumerate(slices.tolist()):
        places[entry] = number, seen[number]
        seen[number] += 1
    return places


def _listed(scan: MRIScan) -> dict[str, NDArray[np.float64]]:
    """The settings, a value for each contrast or one for all."""
    contrasts = _places(scan)[:, 1]
    found = {}
    for name, values in scan.settings.items():
        if name not in _SEQUENCE:
            raise ValueError(f"settings: {name!r}, ISMRMRD has {', '.join(_SEQUENCE)}")
        listed = np.array([values[contrasts == c][0] for c in range(int(contrasts.max()) + 1)])
        if (values != listed[contrasts]).any():
            raise ValueError(f"settings: the {name} differs between slices, ISMRMRD has one for each contrast")
        found[name] = listed[:1] if (listed == listed[0]).all() else listed
    return found


def _xml(scan: MRIScan) -> str:
    _, _, rows, columns = scan.kspace.shape
    slices, contrasts = (int(n) + 1 for n in _places(scan).max(axis=0))
    height, width, thickness = (1e3 * extent for extent in scan.field_of_view)
    root = ElementTree.Element("ismrmrdHeader", xmlns=_NAMESPACE)

    def add(parent: ElementTree.Element, path: str, value: Any) -> None:
        *outer, name = path.split("/")
        for step in outer:
            found = parent.find(step)
            parent = ElementTree.SubElement(parent, step) if found is None else found
        ElementTree.SubElement(parent, name).text = str(value)

    add(root, "experimentalConditions/H1resonanceFrequency_Hz", round(42.577e6 * 3))
    encoding = ElementTree.SubElement(root, "encoding")
    spaces = {"encodedSpace": (columns, width * scan.readout_oversampling),
              "reconSpace": (round(columns / scan.readout_oversampling), width)}  # fmt: skip
    for space, (samples, extent) in spaces.items():
        for axis, size in zip("xyz", (samples, rows, 1), strict=True):
            add(encoding, f"{space}/matrixSize/{axis}", size)
        for axis, length in zip("xyz", (extent, height, thickness), strict=True):
            add(encoding, f"{space}/fieldOfView_mm/{axis}", repr(float(length)))
    limits = (("kspace_encoding_step_1", rows - 1, rows // 2), ("slice", slices - 1, 0), ("contrast", contrasts - 1, 0))
    for name, last, center in limits:
        for key, value in (("minimum", 0), ("maximum", last), ("center", center)):
            add(encoding, f"encodingLimits/{name}/{key}", value)
    add(encoding, "trajectory", "cartesian")
    listed = _listed(scan)
    for name, (tag, unit) in _SEQUENCE.items():
        for value in listed.get(name, ()):
            add(root, f"sequenceParameters/{tag}", repr(float(unit * value)))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")
