"""Writing ISMRMRD, for simulations."""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrecon.data.mri import image_height
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._files import PathLike, written_whole
from pyrecon.io._ismrmrd_header import SEQUENCE
from pyrecon.io._ismrmrd_layout import CALIBRATION, HEAD, NOISE, RECORD

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"


def write_ismrmrd(path: PathLike, scan: MRIScan) -> None:
    """Write a scan as ISMRMRD, whole or not at all: one readout per measured line, entries of S as slices, those that
    show the same one as its contrasts.

    Noise and calibration lines are written too. Raises ValueError if a line is measured in more than one piece or is
    longer than the format's 65535 samples, if the slices differ in their settings, or if they are still partitions.
    """
    if scan.encoded_partitions > 1:
        raise ValueError(f"scan: {scan.encoded_partitions} partitions of a volume are in k-space, expected slices")
    slices, channels, rows, columns = scan.kspace.shape
    if max(slices, channels, rows, columns) > 65535:
        raise ValueError(f"scan: k-space of shape {scan.kspace.shape}, the format counts to 65535 along each axis")
    mask = np.broadcast_to(scan.mask, (slices, 1, rows, columns))[:, 0]
    places = _places(scan)
    records: list[tuple[NDArray[Any], Complex]] = []

    def add(data: Complex, flags: int, row: int = 0, entry: int = 0, center: int = 0) -> None:
        head = np.zeros((), HEAD)
        head["version"], head["flags"], head["scan_counter"] = 1, flags, len(records)
        head["number_of_samples"], head["center_sample"] = data.shape[1], center
        head["available_channels"] = head["active_channels"] = channels
        head["sample_time_us"] = 5.0 * (scan.noise_ratio if flags == NOISE else 1.0)
        head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3, dtype=np.float32)
        head["idx"]["kspace_encode_step_1"] = row
        head["idx"]["slice"], head["idx"]["contrast"] = places[entry]
        records.append((head, np.ascontiguousarray(data, np.complex64)))

    if scan.noise is not None:
        for start in range(0, scan.noise.shape[1], columns):
            add(scan.noise[:, start : start + columns], NOISE)
    for source, flags in ((scan.calibration, CALIBRATION), (scan.kspace, 0)):
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
    stored = np.empty(len(records), RECORD)
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
        if name not in SEQUENCE:
            raise ValueError(f"settings: {name!r}, ISMRMRD has {', '.join(SEQUENCE)}")
        listed = np.array([values[contrasts == c][0] for c in range(int(contrasts.max()) + 1)])
        if (values != listed[contrasts]).any():
            raise ValueError(f"settings: the {name} differs between slices, ISMRMRD has one for each contrast")
        found[name] = listed[:1] if (listed == listed[0]).all() else listed
    return found


def _xml(scan: MRIScan) -> str:
    _, _, rows, columns = scan.kspace.shape
    slices, contrasts = (int(n) + 1 for n in _places(scan).max(axis=0))
    height, width, thickness = (1e3 * extent for extent in scan.field_of_view)
    kept = image_height(scan)
    root = ElementTree.Element("ismrmrdHeader", xmlns=_NAMESPACE)

    def add(parent: ElementTree.Element, path: str, value: Any) -> None:
        *outer, name = path.split("/")
        for step in outer:
            found = parent.find(step)
            parent = ElementTree.SubElement(parent, step) if found is None else found
        ElementTree.SubElement(parent, name).text = str(value)

    add(root, "experimentalConditions/H1resonanceFrequency_Hz", round(42.577e6 * 3))
    encoding = ElementTree.SubElement(root, "encoding")
    spaces = {
        "encodedSpace": ((columns, rows), (width * scan.readout_oversampling, height * rows / kept)),
        "reconSpace": ((round(columns / scan.readout_oversampling), kept), (width, height)),
    }
    for space, (matrix, extent) in spaces.items():
        for axis, size in zip("xyz", (*matrix, 1), strict=True):
            add(encoding, f"{space}/matrixSize/{axis}", size)
        for axis, length in zip("xyz", (*extent, thickness), strict=True):
            add(encoding, f"{space}/fieldOfView_mm/{axis}", repr(float(length)))
    limits = (("kspace_encoding_step_1", rows - 1, rows // 2), ("slice", slices - 1, 0), ("contrast", contrasts - 1, 0))
    for name, last, center in limits:
        for key, value in (("minimum", 0), ("maximum", last), ("center", center)):
            add(encoding, f"encodingLimits/{name}/{key}", value)
    add(encoding, "trajectory", "cartesian")
    listed = _listed(scan)
    for name, (tag, unit) in SEQUENCE.items():
        for value in listed.get(name, ()):
            add(root, f"sequenceParameters/{tag}", repr(float(unit * value)))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")
