"""What is in a file, from its headers: counters, flags, geometry, noise; and whether its reader takes it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan
from pyrecon.data.placement import Placement
from pyrecon.data.raw import MPICalibration, MPIScan, MRIScan
from pyrecon.data.series import ImageSeries
from pyrecon.io import read
from pyrecon.io._arrays import open_arrays
from pyrecon.io._bart import dimensions, header_of
from pyrecon.io._detect import detect
from pyrecon.io._files import PathLike
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._ismrmrd_header import Encoding, read_header
from pyrecon.io._mdf_spec import located, problems
from pyrecon.io._outline import Outline, lines_of, sampling, table_of_counters, table_of_readouts
from pyrecon.io._outline_readers import outline_ismrmrd, outline_twix
from pyrecon.io._readouts import integrated
from pyrecon.io.data_exchange import read_data_exchange
from pyrecon.io.series import read_series

__all__ = ["Inspection", "inspect"]

MOST_READ = 2**28  # bytes of a file that is read unless somebody asks for more


@dataclass(frozen=True)
class Inspection:
    """What is in a file.

    Attributes
    ----------
    path, kind, size
        The file, what it is, as :func:`pyrecon.io.detect` says it, and its bytes.
    facts
        By name, in words.
    counters
        Raw MRI: of every counter its name, lowest and highest value, and how many there are, among the readouts of the
        image and of its references.
    readouts
        Raw MRI: of every kind its name, how many, channels, samples, and flags.
    scan
        What the reader makes of the file; of Data Exchange, of its middle row. None if it was refused or not asked.
    refusal
        Why the reader takes no file like this.
    unread
        Why the reader was not asked.
    lines
        Raw MRI: ``(E, P, H)`` bool, which lines of each image and partition there are.
    notes
        What it left out, guessed or warned of.
    """

    path: Path
    kind: str
    size: int
    facts: dict[str, str] = field(default_factory=dict)
    counters: list[tuple[str, int, int, int]] = field(default_factory=list)
    readouts: list[tuple[str, int, str, str, str]] = field(default_factory=list)
    scan: Any = None
    refusal: str | None = None
    unread: str | None = None
    lines: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()


def inspect(path: PathLike, *, most: int = MOST_READ) -> Inspection:
    """Look into a file of any format that pyrecon reads.

    A folder is taken for a series of images, DICOM or NIfTI. Headers alone are read of what is larger than ``most``
    bytes; of others the samples too, to say what their reader makes of them. What a reader refuses is no error here,
    but stands in ``refusal``. Raises DataError for a file that is damaged, or of no known format.
    """
    path = Path(path)
    kind, size = "folder" if path.is_dir() else detect(path), _size(path)
    facts: dict[str, str] = {}
    outline: Outline | None = None
    if kind in ("twix", "ismrmrd"):
        outline = (outline_twix if kind == "twix" else outline_ismrmrd)(path)
        facts = _raw_facts(outline)
    elif kind in _HEADS:
        facts = _HEADS[kind](path)
    unread = None
    scan, refusal, notes = _asked(path, kind) if size <= most else (None, None, ())
    if size > most:
        unread = f"the file has {size / 2**20:.0f} MiB, more than the {most / 2**20:.0f} MiB that are read unasked"
    if outline is None and scan is not None:
        facts |= _facts_of(scan)
    counters = [] if outline is None else table_of_counters(outline)
    readouts = [] if outline is None else table_of_readouts(outline)
    lines = None if outline is None or outline.shape is None else lines_of(outline)
    return Inspection(path, kind, size, facts, counters, readouts, scan, refusal, unread, lines, notes)


def _size(path: Path) -> int:
    header = header_of(path)
    files = [path] if header is None else [header, header.with_suffix(".cfl")]
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files if file.exists())


def _asked(path: Path, kind: str) -> tuple[Any, str | None, tuple[str, ...]]:
    """What the reader gives or why it gives nothing, and what it tells."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            scan: Any = _READERS.get(kind, read)(path)
        except DataError as error:
            return None, str(error).removeprefix(f"{path}: "), ()
    metadata = getattr(scan, "metadata", {})
    told = [*metadata.get("notes", ()), *metadata.get("warnings", ()), *(str(w.message) for w in raised)]
    return scan, None, tuple(dict.fromkeys(told))


def _middle_row(path: Path) -> CTScan:
    with Hdf5(path) as file:
        shape = file.dataset("/exchange/data").shape
    rows = shape[1] if len(shape) > 1 else 1
    return read_data_exchange(path, rows=slice(rows // 2, rows // 2 + 1))


_READERS: dict[str, Callable[[Path], Any]] = {
    "data-exchange": _middle_row, "folder": read_series, "dicom": read_series,
}  # fmt: skip


# ---- raw MRI


def _raw_facts(outline: Outline) -> dict[str, str]:
    facts = _machine(outline.facts)
    none = np.zeros(len(outline.channels), bool)
    image, noise = outline.kinds.get("image", none), outline.kinds.get("noise", none)
    if image.any():
        counts = np.unique(outline.channels[image]).tolist()
        facts["channels"] = ", ".join(map(str, counts))
    if outline.shape is not None and outline.field_of_view is not None and outline.oversampling is not None:
        facts |= _matrix(outline.shape, outline.oversampling, outline.field_of_view)
        lines = lines_of(outline)
        facts["images"] = f"{len(lines)}" + (f" volumes of {lines.shape[1]} partitions" if lines.shape[1] > 1 else "")
        if lines.any():
            facts["sampling"] = sampling(np.asarray(lines.any(axis=1)))
        if lines.shape[1] > 1 and lines.any():
            facts["partitions"] = sampling(np.asarray(lines.any(axis=2)), "partitions")
        facts["calibration"] = _calibration(outline)
        facts["orientation"] = _orientation(outline.placement)
    facts["noise"] = _noise(outline, noise)
    return facts


def _machine(known: dict[str, Any]) -> dict[str, str]:
    """Scanner, protocol and sequence in a line each."""
    tesla = f"{known['field_strength_t']:g} T" if "field_strength_t" in known else ""
    times = [
        f"{short} {_listed(known[name], 1e3)} ms"
        for short, name in (("TR", "repetition_time_s"), ("TE", "echo_time_s"), ("TI", "inversion_time_s"))
        if name in known
    ]
    if "flip_angle_deg" in known:
        times.append(f"flip angle {_listed(known['flip_angle_deg'], 1)} degrees")
    scanner = [str(known[name]) for name in ("vendor", "scanner", "software") if name in known]
    protocol = [str(known[name]) for name in ("protocol", "sequence") if name in known]
    facts = {"scanner": ", ".join(filter(None, [*scanner, tesla])), "protocol": ", ".join(protocol + times)}
    for name in ("measurements", "encoding spaces"):
        if known.get(name, 1) > 1:
            facts[name] = str(known[name])
    return {name: text for name, text in facts.items() if text}


def _listed(value: Any, unit: float) -> str:
    return ", ".join(f"{unit * v:.4g}" for v in np.atleast_1d(value).tolist())


def _matrix(
    shape: tuple[int, int, int], oversampling: float, field_of_view: tuple[float, float, float]
) -> dict[str, str]:
    partitions, rows, columns = shape
    height, width, thickness = (1e3 * length for length in field_of_view)
    deep = f"{partitions} partitions x " if partitions > 1 else ""
    return {
        "matrix": f"{deep}{rows} lines x {columns} samples, readout oversampling {oversampling:g}",
        "field of view": f"{height:.4g} x {width:.4g} mm, slices of {thickness:.4g} mm",
    }


def _calibration(outline: Outline) -> str:
    if not outline.reference:
        return "no reference lines"
    count = len({r.line for r in outline.reference})
    if integrated(outline.image, outline.reference):
        return f"{count} reference lines in the gaps of the image's"
    return f"a reference scan of its own, {count} lines"


def _noise(outline: Outline, noise: NDArray[np.bool_]) -> str:
    said = []
    if noise.any():
        samples = int(outline.samples[noise].sum())
        channels = ", ".join(map(str, np.unique(outline.channels[noise]).tolist()))
        said.append(f"{int(noise.sum())} readouts of {channels} channels, {samples} samples")
    if outline.noise_elsewhere:
        said.append(f"{outline.noise_elsewhere} readouts in another measurement of the file")
    return ", ".join(said) or "no noise scan"


def _orientation(placement: Placement | None) -> str:
    if placement is None:
        return "the file does not say where its images lie"
    x, y, z = (1e3 * placement.center[0]).tolist()
    return f"{placement.words}; the first centre at {x:.1f}, {y:.1f}, {z:.1f} mm to left, posterior, head"


# ---- other formats, without their samples


def _fastmri_facts(path: Path) -> dict[str, str]:
    with Hdf5(path) as file:
        found = file.outline("/kspace")
        facts = {"kspace": "no array" if found is None else f"{found[1]} of shape {found[0]} (S, [C,] readout, lines)"}
        facts["mask"] = "in the file" if file.has("/mask") else "none: lines of zeros were not measured"
        if file.has("/ismrmrd_header"):
            header = read_header(file, "/ismrmrd_header")
            facts = _machine(header.facts) | facts
            first = header.encodings[0]
            if isinstance(first, Encoding):
                facts |= _matrix(first.shape, first.oversampling, first.field_of_view)
        return facts


def _array_facts(path: Path) -> dict[str, str]:
    header = header_of(path)
    if header is not None:  # its reader refuses axes that no image has
        return {"dimensions": ", ".join(f"{name} {size}" for name, size in dimensions(header).items())}
    return {"arrays": open_arrays(path).listing()}


def _mdf_facts(path: Path) -> dict[str, str]:
    with Hdf5(path) as file:
        found = file.outline("/measurement/data")
        facts = {"version": f"MDF {file.text('/version', '?')}"}
        for name, field_ in _MDF.items():
            place = located(file, field_)
            value = file.metadata([place], skip=()).get(place) if file.has(place) else None
            if value is not None:
                facts[name] = ", ".join(_short(v) for v in np.atleast_1d(np.asarray(value)).ravel().tolist()[:9])
        if found is not None:
            facts["data"] = f"{found[1]} of shape {found[0]}"
        wrong = problems(file)
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        facts["specification"] = f"departs in {len(wrong)} fields: {shown}" if wrong else "as it says"
        return facts


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:60]


_MDF = {
    "scanner": "/scanner/name", "topology": "/scanner/topology", "tracer": "/tracer/name",
    "subject": "/experiment/subject", "frames": "/acquisition/numFrames",
    "periods": "/acquisition/numPeriodsPerFrame", "channels": "/acquisition/receiver/numChannels",
    "sampling points": "/acquisition/receiver/numSamplingPoints", "bandwidth (Hz)": "/acquisition/receiver/bandwidth",
    "grid": "/calibration/size", "extent (m)": "/calibration/fieldOfView", "method": "/calibration/method",
}  # fmt: skip


def _exchange_facts(path: Path) -> dict[str, str]:
    with Hdf5(path) as file:
        facts = {}
        for name in ("data", "data_dark", "data_white", "theta"):
            found = file.outline(f"/exchange/{name}")
            facts[name] = "none" if found is None else f"{found[1]} of shape {found[0]}"
        facts["what follows"] = "of the middle row of the detector"
        theta = file.outline("/exchange/theta")
        if theta is not None and math.prod(theta[0]) > 0 and theta[1].kind in "fiu":
            angles = file.array("/exchange/theta")
            facts["theta"] += f", {angles.min():.6g} to {angles.max():.6g}"
        return facts


_HEADS: dict[str, Callable[[Path], dict[str, str]]] = {
    "fastmri": _fastmri_facts, "bart": _array_facts, "kspace-array": _array_facts, "mdf-measurement": _mdf_facts,
    "mdf-system-matrix": _mdf_facts, "mdf-reconstruction": _mdf_facts, "data-exchange": _exchange_facts,
}  # fmt: skip


# ---- of what readers give


def _facts_of(scan: Any) -> dict[str, str]:
    if isinstance(scan, MRIScan):
        count, coils, rows, columns = scan.kspace.shape
        sampled = np.broadcast_to(scan.mask, (len(scan.mask), 1, rows, scan.mask.shape[3]))
        return {
            "channels": str(coils),
            "images": str(count),
            **_matrix((1, rows, columns), scan.readout_oversampling, scan.field_of_view),
            "sampling": _of_mask(sampled[:, 0]),
            "noise": "no noise scan" if scan.noise is None else f"{scan.noise.shape[1]} samples",
            "orientation": _orientation(scan.placement),
        }
    if isinstance(scan, CTScan):
        slices, views, n_det = scan.sinogram.shape
        told = {
            name.replace("_", " "): str(v)[:200]
            for name, v in scan.metadata.items()
            if name not in ("warnings", "notes")
        }
        return {"sinogram": f"{slices} slices, {views} views of {n_det} detector pixels"} | told
    if isinstance(scan, MPIScan):
        count = len(scan.is_background)
        return {"background": f"{int(scan.is_background.sum())} of {count} frames", "frequencies": _band(scan)}
    if isinstance(scan, MPICalibration):
        facts = {"frequencies": _band(scan), "image axes": f"{scan.metadata.get('axes')} {scan.grid.shape}"}
        facts["background"] = "none" if scan.background is None else f"{len(scan.background)} frames"
        if scan.snr is not None:
            good = int((scan.snr >= 5).sum())
            facts["SNR"] = f"{float(np.median(scan.snr)):.3g} (median), {good} of {scan.snr.size} at least 5"
        return facts
    if isinstance(scan, ImageSeries):
        images, slices, rows, columns = scan.images.shape
        facts = {"series": f"{images} of {slices} slices of {rows} x {columns} pixels, {scan.images.dtype}"}
        facts |= {name: ", ".join(f"{v:.4g}" for v in values[:12]) for name, values in scan.settings.items()}
        return facts | {name: str(value)[:200] for name, value in scan.metadata.items()}
    image = scan.image
    facts = {"image": f"{image.dtype} of shape {image.shape}", "method": scan.method or "not said"}
    if scan.grid is not None:
        facts["voxels"] = " x ".join(f"{1e3 * step:.4g}" for step in scan.grid.spacing) + " mm"
    return facts


def _band(scan: MPIScan | MPICalibration) -> str:
    low, high = (scan.frequencies[[0, -1]] / 1e3).tolist()
    return f"{len(scan.frequencies)}, {low:.4g} to {high:.4g} kHz"


def _of_mask(sampled: NDArray[np.bool_]) -> str:
    """``(S, H, W)``: by lines where they are whole, else by points."""
    lines = np.asarray(sampled.any(axis=2))
    said = sampling(lines)
    if (sampled == lines[:, :, None]).all():
        return said
    return f"{said}; of these lines {sampled.sum() / (lines.sum() * sampled.shape[2]):.0%} of the samples"
