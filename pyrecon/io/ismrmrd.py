"""ISMRM raw data (ISMRMRD, HDF5), Cartesian: reading, and writing for simulations.

Source: S. J. Inati et al., "ISMRM Raw data format: A proposed standard for MRI raw datasets", Magn. Reson. Med. 77
(2017) 411-421. The file is read with h5py in batches, not through the ``ismrmrd`` package: that makes three HDF5 reads
for each readout and believes every count in it.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.placement import Frame
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._cartesian import assemble, averages, laid, reference_scan, without_slice_oversampling
from pyrecon.io._contradictions import is_without_oversampling, off_centre
from pyrecon.io._files import PathLike, check_finite
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._ismrmrd_header import Encoding, Header, read_header, settings_of
from pyrecon.io._ismrmrd_layout import (
    CALIBRATION,
    CALIBRATION_AND_IMAGE,
    COMPRESSED,
    COUNTERS,
    INDEX_NAMES,
    NEEDED,
    NOISE,
    OTHER_COUNTERS,
    OTHER_KINDS,
    PHASE_CORRECTION,
    REVERSE,
    UNKNOWN,
)
from pyrecon.io._ismrmrd_write import write_ismrmrd
from pyrecon.io._ramp import uniform
from pyrecon.io._readouts import Readout, choose, integrated, one_direction, phase_correction

__all__ = ["read_ismrmrd", "write_ismrmrd"]


def read_ismrmrd(path: PathLike) -> MRIScan:
    """Read a Cartesian encoding of an ISMRMRD file: the first that has image data.

    Lines are laid on the encoded matrix with the centre of k-space at ``n // 2``, zeros where nothing was measured;
    averages are averaged; slices, contrasts, phases, repetitions and sets follow each other along S. Reference lines
    of parallel imaging in the gaps of the image's are image data too; a scan of its own, of the same or another
    encoding space, goes into ``calibration``, noise into ``noise``. Readouts sampled on gradient ramps are resampled
    along the trapezoid that the header describes, lines of both directions get the phases of one from the file's
    navigators. ``metadata["notes"]`` tells what is left out or guessed, ``metadata["readouts"]`` counts the
    kinds. Raises DataError naming what is missing or does not fit.
    """
    with Hdf5(path) as file:
        group = _group(file)
        header = read_header(file, f"{group}/xml")
        heads, data = _records(file, f"{group}/data")
        kinds = _kinds(file, f"{group}/data", heads)
    notes: list[str] = []
    space = _space(heads, kinds, notes)
    encoding = header.encodings[space] if space < len(header.encodings) else None
    if encoding is None:
        raise DataError(
            f"{path}: the image's encoding space {space} is not in the header, which has {len(header.encodings)}"
        )
    if isinstance(encoding, DataError):
        raise encoding

    here = heads["encoding_space_ref"] == space
    used = here & (kinds["image"] | kinds["reference"])
    encoding = _as_sampled(encoding, heads, data, used)
    _check_samples(path, encoding, heads, used | (here & kinds["phase correction"]))

    def readouts(chosen: NDArray[np.bool_]) -> list[Readout]:
        placed = [_readout(heads[i], data[i], encoding) for i in np.flatnonzero(chosen)]
        return _uniform(path, header, encoding, placed, notes)

    unknown = int(np.bitwise_or.reduce(heads["flags"][kinds["image"]]) & UNKNOWN)
    if unknown:
        bits = ", ".join(str(bit) for bit in range(1, 65) if unknown >> (bit - 1) & 1)
        notes.append(f"image readouts have flags that the format does not define ({bits}); they are not looked at")
    image, references = readouts(kinds["image"] & here), readouts(kinds["reference"] & here)
    if integrated(image, references):
        image, references = image + references, []
    references += _elsewhere(path, header, encoding, heads, data, kinds["reference"] & ~here, notes)
    chosen = choose(path, image, COUNTERS, OTHER_COUNTERS, header.channels)
    notes += chosen.notes
    navigators = readouts(kinds["phase correction"] & here)
    lines, navigated = one_direction(chosen.readouts, navigators, encoding.shape[2], notes)
    found = assemble(path, lines, encoding.shape, chosen.names)
    calibration = reference_scan(path, references, navigators, found, (COUNTERS, OTHER_COUNTERS), notes)
    centers = (*encoding.center, encoding.shape[2] // 2)
    notes += off_centre(lines, encoding.shape, centers)
    noise, ratio = _noise(path, heads, data, kinds, found.kspace.shape[1], notes)
    ratio *= 1.0 if encoding.ramp is None else encoding.ramp.noise
    known, left_out = settings_of(header.sequence, found.contrasts)
    facts = header.facts | encoding.facts | phase_correction(navigated)
    facts |= {"readouts": {kind: int(which.sum()) for kind, which in kinds.items() if which.any()}}
    against, frames = _axes(header, found.frames, notes)
    found = found._replace(frames=frames)
    seen = laid(found, calibration, encoding.field_of_view[2], notes, against=against)
    if seen.placement is not None:
        facts["orientation"] = seen.placement.letters
    scan = MRIScan(
        kspace=seen.kspace,
        mask=seen.mask,
        noise=noise,
        calibration=seen.calibration,
        readout_oversampling=encoding.oversampling,
        phase_oversampling=encoding.shape[1] / encoding.kept[1],
        field_of_view=encoding.field_of_view,
        labels=found.labels,
        noise_ratio=ratio / (header.noise_bandwidth * averages(lines)) if noise is not None else 1.0,
        slices=found.slices,
        places=found.places,
        placement=seen.placement,
        encoded_partitions=seen.encoded_partitions,
        stack=found.stack,
        settings=known,
        metadata=facts
        | ({"notes": notes + encoding.notes} if notes or encoding.notes else {})
        | ({"settings_left_out": left_out} if left_out else {}),
    )
    return without_slice_oversampling(scan, found.where[:, 1], encoding.shape[0], encoding.kept[0])


def _axes(header: Header, frames: list[Frame] | None, notes: list[str]) -> tuple[bool, list[Frame] | None]:
    """Whether images run against the directions of the readouts' headers, and these if they say anything.

    The format does not say which sign its Fourier transform has. Files that were converted from Siemens' have theirs:
    images run against the directions; those of other vendors run along them. Where no vendor is named, the converted
    are by far the most; the scanner's own axes, with no vendor and no position, are what writers put who know none.
    """
    if frames is None:
        return False, None
    vendor = header.facts.get("vendor", "")
    untouched = Frame((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    if not vendor and all(frame == untouched for frame in frames):
        return False, None
    if not vendor:
        notes.append("the header names no vendor: directions are taken as those of files converted from Siemens'")
    return _is_against(header), frames


def _is_against(header: Header) -> bool:
    vendor = header.facts.get("vendor", "")
    return not vendor or "siemens" in vendor.lower()


def _kinds(file: Hdf5, field: str, heads: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Which readouts are what; DataError where they make no image."""
    if (heads["flags"] & COMPRESSED != 0).any():
        raise file.fail(field, "readouts with compressed samples", "samples as they are")
    kinds = _told_apart(heads["flags"])
    if not kinds["image"].any():
        raise file.fail(field, f"{len(heads)} readouts, none of them image data", "some")
    return kinds


def _told_apart(flags: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Which readouts are what; each is of one kind."""
    kinds: dict[str, NDArray[np.bool_]] = {}
    rest = np.ones(len(flags), bool)
    named = [("noise", NOISE), *((name, 1 << (bit - 1)) for bit, name in OTHER_KINDS.items())]
    for name, bits in [*named, ("phase correction", PHASE_CORRECTION)]:
        kinds[name] = kinds.get(name, np.zeros(len(flags), bool)) | (rest & (flags & bits != 0))
        rest = rest & ~kinds[name]
    kinds["reference"] = rest & (flags & CALIBRATION != 0) & (flags & CALIBRATION_AND_IMAGE == 0)
    kinds["image"] = rest & ~kinds["reference"]
    return kinds


def _space(heads: NDArray[Any], kinds: dict[str, NDArray[np.bool_]], notes: list[str]) -> int:
    """The encoding space of the image: the first that has image data; others are told of."""
    spaces = np.unique(heads["encoding_space_ref"][kinds["image"]]).tolist()
    if len(spaces) > 1:
        others = ", ".join(map(str, spaces[1:]))
        count = int((heads["encoding_space_ref"][kinds["image"]] != spaces[0]).sum())
        notes.append(f"{count} image readouts of encoding space {others} are left out: space {spaces[0]} is read")
    return int(spaces[0])


def _as_sampled(encoding: Encoding, heads: NDArray[Any], data: list[Complex], which: NDArray[np.bool_]) -> Encoding:
    """The encoding, or that without oversampling where its readouts have none."""
    there = np.flatnonzero(which)
    whole = not (heads["discard_pre"][there].any() or heads["discard_post"][there].any())
    centers = heads["center_sample"][there].astype(np.int64)
    lines = [data[i] for i in there]
    if (
        encoding.ramp is None
        and whole
        and is_without_oversampling(lines, centers, encoding.shape[2], encoding.columns_kept)
    ):
        return encoding.without_oversampling()
    return encoding


def _check_samples(path: PathLike, encoding: Encoding, heads: NDArray[Any], which: NDArray[np.bool_]) -> None:
    """DataError unless readouts on gradient ramps have as many samples as their trajectory."""
    found = np.unique(heads["number_of_samples"][which])
    if encoding.ramp is not None and (found != encoding.ramp.samples).any():
        raise DataError(
            f"{path}: readouts of {', '.join(map(str, found.tolist()[:8]))} samples on gradient ramps, expected the "
            f"{encoding.ramp.samples} of the trajectory's description (numSamples)"
        )


def _uniform(
    path: PathLike, header: Header, encoding: Encoding, readouts: list[Readout], notes: list[str]
) -> list[Readout]:
    width = encoding.extent[0] if encoding.is_sized else math.inf
    return uniform(path, encoding.ramp, readouts, width, _is_against(header), notes)


def _elsewhere(
    path: PathLike,
    header: Header,
    encoding: Encoding,
    heads: NDArray[Any],
    data: list[Complex],
    which: NDArray[np.bool_],
    notes: list[str],
) -> list[Readout]:
    """Reference lines of other encoding spaces, laid on the image's matrix."""
    found: list[Readout] = []
    for space in np.unique(heads["encoding_space_ref"][which]).tolist():
        lines = np.flatnonzero(which & (heads["encoding_space_ref"] == space))
        own = header.encodings[space] if space < len(header.encodings) else None
        if isinstance(own, Encoding):
            own = _as_sampled(own, heads, data, which & (heads["encoding_space_ref"] == space))
        problem = own.differs_from(encoding) if isinstance(own, Encoding) else "the header does not describe it"
        if not isinstance(own, Encoding) or problem:
            notes.append(f"{len(lines)} reference lines of encoding space {space} are left out: {problem}")
            continue
        _check_samples(path, own, heads, which & (heads["encoding_space_ref"] == space))
        there = _uniform(path, header, own, [_readout(heads[i], data[i], own) for i in lines], notes)
        moved = [encoding.moved(r, own) for r in there]
        kept = [r for r in moved if r is not None]
        if len(kept) < len(moved):
            notes.append(f"{len(moved) - len(kept)} reference lines of encoding space {space} lie outside its matrix")
        found += kept
    return found


def _noise(
    path: PathLike,
    heads: NDArray[Any],
    data: list[Complex],
    kinds: dict[str, NDArray[np.bool_]],
    channels: int,
    notes: list[str],
) -> tuple[Complex | None, float]:
    """The noise scan, and the noise power of a sample of the image over that of one of it."""
    there = np.flatnonzero(kinds["noise"])
    chosen = [i for i in there if len(data[i]) == channels]
    if len(chosen) < len(there):
        others = ", ".join(str(n) for n in sorted({len(data[i]) for i in there} - {channels}))
        notes.append(
            f"{len(there) - len(chosen)} noise readouts of {others} channels are left out: the image has {channels}"
        )
    if not chosen:
        return None, 1.0
    for i in chosen:
        check_finite(path, "the noise scan", data[i], "channel")
    return np.concatenate([data[i] for i in chosen], axis=1), _dwell_ratio(heads, chosen, kinds["image"])


def _dwell_ratio(heads: NDArray[Any], noise: list[Any], image: NDArray[np.bool_]) -> float:
    """Dwell time of the noise readouts over that of the others, 1 where either is missing: noise goes as 1 / dwell."""
    if "sample_time_us" not in (heads.dtype.names or ()):
        return 1.0
    first, second = (float(np.median(heads["sample_time_us"][chosen])) for chosen in (noise, image))
    known = 0 < first < 1e6 and 0 < second < 1e6
    return first / second if known else 1.0


# ---- readouts


def _group(file: Hdf5) -> str:
    """The group with the raw data: "dataset" by custom."""
    names = file.names("/")
    for name in sorted(names, key=lambda name: name != "dataset"):
        if file.has(f"/{name}/xml") and file.has(f"/{name}/data"):
            return f"/{name}"
    shown = ", ".join(names[:8]) or "nothing"
    raise DataError(f"{file.path}: holds {shown}; expected a group with xml and data, as ISMRMRD has")


def _records(file: Hdf5, field: str) -> tuple[NDArray[Any], list[Complex]]:
    """The headers, and each readout's samples (C, n) without those to be discarded."""
    node, heads = _heads(file, field)
    found: list[Complex] = []
    for start in range(0, len(heads), 1024):
        with file.reading(field):
            block = node.fields("data")[start : start + 1024]
        found += [_samples(file, field, i, heads[i], np.asarray(v, "<f4")) for i, v in enumerate(block, start)]
    return heads, found


def _heads(file: Hdf5, field: str) -> tuple[h5py.Dataset, NDArray[Any]]:
    """The records, and their headers."""
    node = file.records(field)
    names = node.dtype.names or ()
    head = node.dtype["head"] if "head" in names else None
    kind = node.dtype["data"] if "data" in names else np.dtype(float)
    if head is None or head.names is None or h5py.check_vlen_dtype(kind) not in (np.dtype("<f4"), np.dtype(">f4")):
        raise file.fail(field, f"records of {node.dtype}", "head, traj and data as ISMRMRD has them")
    missing = [n for n in NEEDED if n not in head.names]
    missing += [n for n in INDEX_NAMES if "idx" in head.names and n not in (head["idx"].names or ())]
    if missing:
        raise file.fail(f"{field}: head", f"no {', '.join(missing)}", "the fields of an acquisition header")
    with file.reading(field):
        heads = np.empty(node.shape, head)
        for start in range(0, len(node), 65536):
            heads[start : start + 65536] = node.fields("head")[start : start + 65536]
    return node, heads


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
    return np.ascontiguousarray(data[:, ::-1] if int(head["flags"]) & REVERSE else data)


def _readout(head: Any, data: Complex, encoding: Encoding) -> Readout:
    partitions, rows, columns = encoding.shape
    index = head["idx"]
    backwards = bool(int(head["flags"]) & REVERSE)
    first = int(head["discard_post"] if backwards else head["discard_pre"])
    # A full readout can lie in one place only; converters differ about its centre, or leave it 0.
    full = int(head["number_of_samples"]) == columns
    center = columns // 2 if full else int(head["center_sample"])
    names = index.dtype.names or ()
    user = [int(v) for v in np.atleast_1d(index["user"])] if "user" in names else []
    return Readout(
        data,
        int(index["kspace_encode_step_1"]) - encoding.center[1] + rows // 2,
        int(index["kspace_encode_step_2"]) - encoding.center[0] + partitions // 2,
        first if encoding.ramp is not None else first - center + columns // 2,
        tuple(int(index[name]) for name in COUNTERS),
        average=int(index["average"]) if "average" in names else 0,
        others=tuple([int(index["segment"]) if "segment" in names else 0, *(user + [0] * 8)[:8]]),
        frame=_frame(head),
        backwards=backwards,
    )


def _frame(head: Any) -> Frame | None:
    """Where the slice lies, if the header says so: in millimetres and patient coordinates."""
    if not {"position", "read_dir", "phase_dir", "slice_dir"} <= set(head.dtype.names or ()):
        return None
    phase, read, normal, position = (
        tuple(map(float, head[name])) for name in ("phase_dir", "read_dir", "slice_dir", "position")
    )
    return Frame(phase, read, normal, tuple(v / 1e3 for v in position))  # type: ignore[arg-type]  # three each
