"""The outline of raw MRI files by the readers' own rules, without their samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io import ismrmrd, twix
from pyrecon.io._files import PathLike, existing_file
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._ismrmrd_header import Encoding, read_header
from pyrecon.io._outline import Outline, first_placement, hollow
from pyrecon.io._readouts import Readout

# By the shift of the bit; marks of firsts and lasts, and what is not defined, left out.
_ISMRMRD_FLAGS = {
    18: "NOISE_MEASUREMENT", 19: "PARALLEL_CALIBRATION", 20: "PARALLEL_CALIBRATION_AND_IMAGING", 21: "REVERSE",
    22: "NAVIGATION_DATA", 23: "PHASECORR_DATA", 25: "HPFEEDBACK_DATA", 26: "DUMMYSCAN_DATA", 27: "RTFEEDBACK_DATA",
    28: "SURFACECOILCORRECTIONSCAN_DATA", 29: "PHASE_STABILIZATION_REFERENCE", 30: "PHASE_STABILIZATION",
    **{52 + i: f"COMPRESSION{1 + i}" for i in range(4)}, **{56 + i: f"USER{1 + i}" for i in range(8)},
}  # fmt: skip

_COUNTERS = ("line", "partition", "slice", "contrast", "phase", "repetition", "set", "average", "segment")
_TWIX_NAMES = ("Lin", "Par", *twix._MDH_NAMES, "Ave", "Seg")


def outline_ismrmrd(path: PathLike) -> Outline:
    """What the header and the heads of the readouts say; no sample is read."""
    with Hdf5(path) as file:
        group = ismrmrd._group(file)
        header = read_header(file, f"{group}/xml")
        _, heads = ismrmrd._heads(file, f"{group}/data")
    kinds = {kind: which for kind, which in ismrmrd._told_apart(heads["flags"]).items() if which.any()}
    index = heads["idx"]
    steps = {"line": "kspace_encode_step_1", "partition": "kspace_encode_step_2"}
    fields = {name: steps.get(name, name) for name in _COUNTERS}
    flags = {name: heads["flags"] >> bit & 1 != 0 for bit, name in _ISMRMRD_FLAGS.items()}
    outline = Outline(
        kinds=kinds,
        counters={n: index[f].astype(np.int64) for n, f in fields.items() if f in (index.dtype.names or ())},
        flags={name: which for name, which in flags.items() if which.any()},
        channels=heads["active_channels"].astype(np.int64),
        samples=heads["number_of_samples"].astype(np.int64),
        facts={key: value for key, value in header.facts.items() if value != ""},
    )
    if "image" not in kinds:
        return outline
    notes: list[str] = []
    space = ismrmrd._space(heads, kinds, notes)
    encoding = header.encodings[space] if space < len(header.encodings) else None
    if not isinstance(encoding, Encoding):
        return outline

    def placed(kind: str) -> list[Readout]:
        chosen = np.flatnonzero(kinds.get(kind, np.zeros(len(heads), bool)) & (heads["encoding_space_ref"] == space))
        return [ismrmrd._readout(heads[i], hollow(outline.channels[i], outline.samples[i]), encoding) for i in chosen]

    image = placed("image")
    against, frames = ismrmrd._axes(header, [r.frame for r in image[:1] if r.frame is not None] or None, notes)
    return replace(
        outline,
        shape=encoding.shape,
        oversampling=encoding.oversampling,
        field_of_view=encoding.field_of_view,
        image=image,
        reference=placed("reference"),
        placement=first_placement(frames, against=against),
        facts=outline.facts | {"encoding spaces": len(header.encodings)},
    )


def outline_twix(path: PathLike) -> Outline:
    """What the protocol and the heads of the last measurement's readouts say; no sample is looked at."""
    path = existing_file(path)
    layout = twix._layout()
    raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    measurements = [twix._Measurement(path, raw, layout, *span) for span in twix._spans(path, raw)]
    protocol, lines = measurements[-1].protocol(), list(measurements[-1].lines())
    kinds = twix._kinds(lines)
    heads = np.array([line.header for line in lines], layout.scan if measurements[-1].is_ve else layout.vb)
    masks = np.array([line.flags for line in lines], np.uint64)
    flags = {name: (masks & np.uint64(bit)) != 0 for name, bit in layout.flags.items()}
    outline = Outline(
        kinds={kind: np.isin([id(line) for line in lines], [id(line) for line in kinds[kind]]) for kind in kinds},
        counters={
            name: heads["Counter"][field].astype(np.int64) for name, field in zip(_COUNTERS, _TWIX_NAMES, strict=True)
        },
        flags={name: which for name, which in flags.items() if which.any() and not _is_mark(name)},
        channels=heads["UsedChannels"].astype(np.int64),
        samples=heads["SamplesInScan"].astype(np.int64),
        facts=protocol.summary() | {"measurements": len(measurements)},
    )
    image, reference = kinds.get("image", []), kinds.get("reference", [])
    try:
        geometry = twix._geometry(path, protocol, image + reference) if image else None
    except DataError:
        geometry = None  # the reader says why
    if geometry is None:
        return outline
    frame = twix._frame(image[0].header)
    elsewhere = sum(line.is_noise for other in measurements[:-1] for line in other.lines())
    return replace(
        outline,
        noise_elsewhere=elsewhere,
        shape=geometry.shape,
        oversampling=geometry.oversampling,
        field_of_view=geometry.field_of_view,
        image=[geometry.place(line) for line in image],
        reference=[geometry.place(line) for line in reference],
        placement=first_placement(None if frame is None else [frame], against=True),
    )


def _at(numbers: list[int], count: int) -> NDArray[np.bool_]:
    which = np.zeros(count, bool)
    which[numbers] = True
    return which


def _is_mark(flag: str) -> bool:
    """Of a first or a last, or for the scanner's own program: what docs/formats.md has no use for."""
    return flag.startswith(("FIRSTSCAN", "LASTSCAN")) or flag in ("ONLINE", "OFFLINE", "ACQEND", "SYNCDATA")
