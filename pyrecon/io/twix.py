"""Siemens raw data ("twix", meas.dat) of VB, VD, VE and XA scanners, Cartesian.

Layouts and flags come from twixtools. The walk from readout to readout and the few values of the protocol are read
here, because a damaged file must end in an error: a length of zero keeps twixtools' own reader in place for ever, and
an array index in the protocol makes its parser ask for any amount of memory.

**Orientation.** The image of a Siemens k-space (centred inverse transform) runs against the readout and phase-encoding
directions of the header. Both axes are turned here where needed, by reversing k-space, so that an image shown with row
0 on top looks as radiologists expect: anterior and head on top, the patient's right (for sagittal slices: anterior) on
the left. Rows stay phase encoding and columns readout; the scan's ``placement`` says where they lie, and
``metadata["orientation"]`` where they lead, for example ``"PL"``: rows to posterior, columns to left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.placement import LONGEST, SHORTEST, Frame
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._cartesian import assemble, averages, oriented, reference_scan
from pyrecon.io._files import PathLike, check_finite, existing_file
from pyrecon.io._readouts import Readout, choose, integrated, one_direction, phase_correction

__all__ = ["read_twix"]

_COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
_MDH_NAMES = ("Sli", "Eco", "Phs", "Rep", "Set")
_OTHER_COUNTERS = ("Ida", "Idb", "Idc", "Idd", "Ide", "Seg")
# Readouts that no image is made of, by the flags they have. What is done for every flag: docs/formats.md.
_OTHER_KINDS = {
    "noise": ("NOISEADJSCAN",),
    "phase correction": ("PHASCOR",),
    "navigator": ("PACE",),
    "feedback": ("RTFEEDBACK", "HPFEEDBACK", "noname60"),
    "phase stabilisation": ("REFPHASESTABSCAN", "PHASESTABSCAN"),
    "dummy": ("RETRO_DUMMYSCAN", "B1_CONTROLLOOP", "CT_NORMALIZE"),
}
# What cannot be reconstructed line by line, and of image readouts what is not done for them.
_REFUSED = {
    "SLICE_ACCEL_REFSCAN": "slices measured at once (simultaneous multi-slice)",
    "SLICE_ACCEL_PHASCOR": "slices measured at once (simultaneous multi-slice)",
    "2NDHADAMARPULSE": "slices in Hadamard pairs",
    "FIRST_SCAN_IN_BLADE": "blades that turn (BLADE, PROPELLER)",
    "SWAPPED": "readout and phase encoding swapped from line to line",
}
_NOT_DONE = {
    "RAWDATACORRECTION": "a correction of the channels' gains by factors of the protocol",
    "SCANSCALEFACTOR": "a scale factor of its own",
    "SIGNREV": "a reversed sign",
    "RETRO_REPEATTHISHEARTBEAT": "the repetition of a heartbeat that was rejected",
    "RETRO_REPEATPREVHEARTBEAT": "the repetition of a heartbeat that was rejected",
    "RETRO_ABORTSCANNOW": "the end of a scan that was broken off",
}
_MOST_HEADER = 64 * 2**20
_DMA_BITS = 2**25


def read_twix(path: PathLike) -> MRIScan:
    """Read the last measurement of a twix file; noise comes from any measurement with the same number of channels.

    Rows are phase-encoding lines and columns the readout, both with the centre of k-space at ``n // 2``; partial
    Fourier and partial echo leave zeros that ``mask`` marks. Reference lines of parallel imaging in the gaps of the
    image's are image data too; a scan of its own is returned as ``calibration``. Lines of both directions get the
    phases of one from the file's navigators. Slices are numbered as acquired. ``metadata["notes"]`` tells what is left
    out or guessed, ``metadata["readouts"]`` counts the kinds. Raises DataError naming what does not fit,
    MissingDependency without twixtools.
    """
    path = existing_file(path)
    layout = _layout()
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    measurements = [_Measurement(path, raw, layout, *span) for span in _spans(path, raw)]
    scan = measurements[-1]
    protocol = scan.protocol()
    lines = list(scan.lines())
    kinds = _kinds(lines)
    if not kinds.get("image"):
        raise DataError(f"{path}: {len(lines)} readouts, none of them image data; expected an imaging measurement")
    references = kinds.get("reference", [])
    _check_flags(path, lines)
    notes = _not_done(kinds["image"])
    geometry = _geometry(path, protocol, kinds["image"] + references)
    image, reference = ([geometry.place(line) for line in some] for some in (kinds["image"], references))
    if integrated(image, reference):
        image, reference = image + reference, []
    chosen = choose(path, image, _COUNTERS, _OTHER_COUNTERS)
    notes += chosen.notes
    navigators = [geometry.place(line) for line in kinds.get("phase correction", [])]
    readouts, navigated = one_direction(chosen.readouts, navigators, geometry.shape[2], notes)
    found = assemble(path, readouts, geometry.shape, chosen.names)
    noise, noise_ratio = _noise(path, measurements, found.kspace.shape[1], notes)
    calibration = reference_scan(path, reference, navigators, found, (_COUNTERS, _OTHER_COUNTERS), notes)
    kspace, mask, calibration, placement = oriented(found, calibration, geometry.field_of_view[2], against=True)
    return MRIScan(
        kspace=kspace,
        mask=mask,
        noise=noise,
        calibration=calibration,
        readout_oversampling=geometry.oversampling,
        field_of_view=geometry.field_of_view,
        labels=found.labels,
        noise_ratio=noise_ratio / averages(readouts) if noise is not None else 1.0,
        slices=found.slices,
        places=found.places,
        placement=placement,
        stack=found.stack,
        metadata=protocol.summary()
        | ({"orientation": placement.letters} if placement else {})
        | {"readouts": {kind: len(of_kind) for kind, of_kind in kinds.items()}}
        | phase_correction(navigated)
        | ({"notes": notes} if notes else {}),
    )


def _check_flags(path: Path, lines: list[_Line]) -> None:
    """DataError where readouts, of whatever kind, say that the image cannot be made line by line."""
    for flag, what in _REFUSED.items():
        count = sum(line.has(flag) for line in lines)
        if count:
            raise DataError(f"{path}: {count} readouts with the flag {flag}: {what}, which is not supported")


def _not_done(image: list[_Line]) -> list[str]:
    """What flags of image readouts ask for and does not happen."""
    counts = {flag: sum(line.has(flag) for line in image) for flag in _NOT_DONE}
    return [f"{n} readouts ask for {_NOT_DONE[flag]} ({flag}), which is not done" for flag, n in counts.items() if n]


def _kinds(lines: list[_Line]) -> dict[str, list[_Line]]:
    """Which readouts are what; each is of one kind."""
    kinds: dict[str, list[_Line]] = {}
    for line in lines:
        other = next((kind for kind, flags in _OTHER_KINDS.items() if line.has(*flags)), None)
        alone = line.has("PATREFSCAN") and not line.has("PATREFANDIMASCAN")
        kinds.setdefault(other or ("reference" if alone else "image"), []).append(line)
    return kinds


# ---- the file's outline


def _spans(path: Path, raw: NDArray[np.uint8]) -> list[tuple[int, int, bool]]:
    """(start, stop, is_ve) of every measurement: VD and later files begin with a table, VB files hold one."""
    if len(raw) < 16:
        raise DataError(f"{path}: {len(raw)} bytes, expected a twix file")
    first, count = (int(v) for v in raw[:8].view("<u4"))
    if first >= 10_000:
        return [(0, len(raw), False)]
    if not 1 <= count <= 64:
        raise DataError(f"{path}: the table of measurements has {count} entries, expected 1 to 64")
    if len(raw) < 8 + 152 * count:
        raise DataError(f"{path}: {len(raw)} bytes, expected at least {8 + 152 * count} for {count} measurements")
    spans = []
    for k in range(count):
        offset, length = (int(v) for v in raw[8 + 152 * k : 32 + 152 * k].view("<u4")[2:6].view("<u8"))
        if length == 0 and count == 1:  # a scan that was cut off
            length = len(raw) - offset
        if offset < 8 + 152 * count or length < 8 or offset + length > len(raw):
            raise DataError(
                f"{path}: measurement {k} spans bytes {offset} to {offset + length}, the file has {len(raw)}; "
                "it is truncated or corrupted"
            )
        spans.append((offset, offset + length, True))
    return spans


class _Layout(NamedTuple):
    scan: Any  # numpy dtypes
    channel: Any
    vb: Any
    flags: dict[str, int]


def _layout() -> _Layout:
    try:
        from twixtools import mdh_def
    except ImportError:
        raise MissingDependency("twixtools", "io", "reading Siemens raw data") from None
    return _Layout(
        np.dtype(mdh_def.Scan_header),
        np.dtype(mdh_def.Channel_header),
        np.dtype(mdh_def.VB17_header),
        {name: 1 << bit for name, bit in mdh_def.mask_dict.items()},
    )


@dataclass(frozen=True)
class _Line:
    data: Complex  # (C, n), cut-off samples removed
    header: Any
    start: int  # index of data's first sample in the full readout
    flags: int
    layout: _Layout

    def has(self, *names: str) -> bool:
        return any(self.flags & self.layout.flags[name] for name in names)

    @property
    def is_noise(self) -> bool:
        return self.has("NOISEADJSCAN")


@dataclass(frozen=True)
class _Measurement:
    path: Path
    raw: NDArray[np.uint8]
    layout: _Layout
    start: int
    stop: int
    is_ve: bool

    def _header_length(self) -> int:
        length = int(self.raw[self.start : self.start + 4].view("<u4")[0])
        if not 16 <= length <= min(self.stop - self.start, _MOST_HEADER):
            raise DataError(
                f"{self.path}: the protocol is {length} bytes long, expected 16 to "
                f"{min(self.stop - self.start, _MOST_HEADER)}"
            )
        return length

    def protocol(self) -> _Protocol:
        """The protocol's parts by name."""
        stop = self.start + self._header_length()
        count = int(self.raw[self.start + 4 : self.start + 8].view("<u4")[0])
        if not 1 <= count <= 64:
            raise DataError(f"{self.path}: the protocol has {count} parts, expected 1 to 64")
        parts: dict[str, str] = {}
        at = self.start + 8
        for _ in range(count):
            head = self.raw[at : min(at + 48, stop)].tobytes()
            name, found, rest = head.partition(b"\0")
            length = int.from_bytes(rest[:4], "little")
            at += len(name) + 5
            if not found or len(rest) < 4 or not re.fullmatch(rb"\w{4,}", name) or at + length > stop:
                raise DataError(
                    f"{self.path}: the protocol's part {name[:32]!r} does not end inside it; it is corrupted"
                )
            parts[name.decode()] = self.raw[at : at + length].tobytes().decode("latin1")
            at += length
        return _Protocol(self.path, parts)

    def lines(self) -> Iterator[_Line]:
        """Every readout up to the end mark; those of other content (physiology) are stepped over."""
        scan, channel = (self.layout.scan, self.layout.channel) if self.is_ve else (self.layout.vb, None)
        at = self.start + self._header_length()
        number = 0
        while at + scan.itemsize <= self.stop:
            header = self.raw[at : at + scan.itemsize].view(scan)[0]
            flags = int(header["EvalInfoMask"])
            length = int(header["FlagsAndDMALength"]) % _DMA_BITS
            if flags & self.layout.flags["ACQEND"]:
                return
            samples, channels = int(header["SamplesInScan"]), int(header["UsedChannels"])
            if not flags & self.layout.flags["SYNCDATA"]:
                # Not the header's own length, which is wrong in some files: VB counts one channel, with packing bits.
                length = channels * (8 * samples + (channel.itemsize if channel else scan.itemsize))
                length += scan.itemsize if channel else 0
                if channels == 0 or samples == 0:
                    raise DataError(f"{self.path}: readout {number} has {channels} channels of {samples} samples")
            if not scan.itemsize <= length <= self.stop - at:
                raise DataError(
                    f"{self.path}: readout {number} at byte {at} is {length} bytes long, expected at least "
                    f"{scan.itemsize} and at most the {self.stop - at} that are left; it is truncated or corrupted"
                )
            if not flags & self.layout.flags["SYNCDATA"]:
                yield self._line(at, header, flags, samples, channels, number)
                number += 1
            at += length

    def _line(self, at: int, header: Any, flags: int, samples: int, channels: int, number: int) -> _Line:
        skip = self.layout.channel.itemsize if self.is_ve else self.layout.vb.itemsize
        start = at + (self.layout.scan.itemsize if self.is_ve else 0)
        block = self.raw[start : start + channels * (skip + 8 * samples)].reshape(channels, skip + 8 * samples)
        data = block[:, skip:].view("<c8")  # in the file: nothing is copied before it goes into k-space
        first, last = int(header["CutOff"]["Pre"]), samples - int(header["CutOff"]["Post"])
        if first >= last:
            raise DataError(
                f"{self.path}: readout {number} keeps samples {first} to {last} of {samples}, expected some"
            )
        data = data[:, first:last]
        start_sample = first
        if flags & self.layout.flags["REFLECT"]:
            data, start_sample = data[:, ::-1], samples - last
        return _Line(data, header, start_sample, flags, self.layout)


# ---- what the protocol says


class _Protocol:
    """The values of a protocol: ``sSliceArray.asSlice[0].dThickness = 4.0`` and ``<ParamDouble."RoFOV"> { 200.0 }``."""

    def __init__(self, path: Path, parts: dict[str, str]) -> None:
        self.path = path
        self._parts = parts
        self._assigned: dict[str, str] = {}
        for line in parts.get("MeasYaps", "").splitlines():
            name, found, value = line.partition("=")
            if found and len(line) < 1000:
                self._assigned[name.strip()] = value.strip().strip('"')

    def text(self, name: str, part: str = "MeasYaps") -> str | None:
        """The value called ``name``: an assignment in MeasYaps, a parameter in any other part."""
        if part == "MeasYaps":
            return self._assigned.get(name)
        pattern = rf'<Param(?:Double|Long|String|Array)\."{re.escape(name)}">\s{{0,64}}\{{([^{{}}]{{0,400}})\}}'
        match = re.search(pattern, self._parts.get(part, ""))
        if match is None:
            return None
        value = re.sub(r"<\w{1,40}>[ ]{0,8}[^\s]{0,40}", "", match[1]).strip().strip('"')  # <Precision> 6 and the like
        return value or None

    def number(self, name: str, part: str = "MeasYaps") -> float | None:
        """A finite number called ``name``, or None."""
        text = self.text(name, part)
        try:
            value = float(int(text, 16)) if text and text.startswith("0x") else float(text or "nan")
        except (ValueError, OverflowError):
            return None
        return value if math.isfinite(value) else None

    def summary(self) -> dict[str, Any]:
        """A few plain facts for reports; nothing that names the patient."""
        facts: dict[str, Any] = {
            "sequence": self.text("tSequenceFileName"),
            "protocol": self.text("tProtocolName"),
            "repetition_time_s": self.number("alTR[0]"),
            "echo_time_s": self.number("alTE[0]"),
            "flip_angle_deg": self.number("adFlipAngleDegree[0]"),
            "scanner": self.text("ManufacturersModelName", "Dicom"),
            "software": self.text("SoftwareVersions", "Dicom"),
            "field_strength_t": self.number("flMagneticFieldStrength", "Dicom"),
        }
        for name in ("repetition_time_s", "echo_time_s"):
            facts[name] = facts[name] and facts[name] / 1e6
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True)
class _Geometry:
    shape: tuple[int, int, int]  # P, H, W
    oversampling: float
    field_of_view: tuple[float, float, float]

    def place(self, line: _Line) -> Readout:
        partitions, rows, columns = self.shape
        counter = line.header["Counter"]
        # A full readout can lie in one place only.
        full = int(line.header["SamplesInScan"]) == columns
        center = columns // 2 if full else int(line.header["CenterCol"])
        return Readout(
            line.data,
            int(counter["Lin"]) - int(line.header["CenterLin"]) + rows // 2,
            int(counter["Par"]) - int(line.header["CenterPar"]) + partitions // 2 if partitions > 1 else 0,
            line.start - center + columns // 2,
            tuple(int(counter[name]) for name in _MDH_NAMES),
            average=int(counter["Ave"]),
            others=tuple(int(counter[name]) for name in _OTHER_COUNTERS),
            frame=_frame(line.header),
            backwards=line.has("REFLECT"),
        )


def _geometry(path: Path, protocol: _Protocol, image: list[_Line]) -> _Geometry:
    if protocol.number("sKSpace.ucTrajectory") not in (None, 1.0):
        raise DataError(f"{path}: protocol sKSpace.ucTrajectory: not Cartesian, expected a Cartesian trajectory")
    modes = re.findall(r"\d+", protocol.text("alRegridMode", "Meas") or "")  # one for each kind of readout
    if any(int(mode) > 1 for mode in modes):
        raise DataError(f"{path}: protocol alRegridMode: readouts sampled on gradient ramps, expected uniform sampling")
    base = protocol.number("sKSpace.lBaseResolution")
    columns = max(int(line.header["SamplesInScan"]) for line in image)
    oversampling = protocol.number("flReadoutOSFactor", "Dicom") or protocol.number("flReadoutOSFactor", "Meas") or 2.0
    if not 1 <= oversampling <= 16:
        raise DataError(f"{path}: protocol flReadoutOSFactor: {oversampling:g}, expected 1 to 16")
    if base is not None and 1 <= base <= 65536:
        columns = max(columns, round(base * oversampling))
        oversampling = columns / base

    rows = _extent(image, "Lin", "CenterLin", protocol.number("sKSpace.lPhaseEncodingLines"))
    partitions = 1
    if any(int(line.header["Counter"]["Par"]) for line in image):
        partitions = _extent(image, "Par", "CenterPar", protocol.number("sKSpace.lPartitions"))

    first = "sSliceArray.asSlice[0]"
    readout = protocol.number(f"{first}.dReadoutFOV") or protocol.number("RoFOV", "Meas") or 1e3
    phase = protocol.number(f"{first}.dPhaseFOV") or protocol.number("PeFOV", "Meas") or readout
    phase *= 1 + (protocol.number("sKSpace.dPhaseOversamplingForDialog") or 0.0)
    thickness = (protocol.number(f"{first}.dThickness") or 1e3) / partitions
    lengths = phase / 1e3, readout / 1e3, thickness / 1e3
    if not all(SHORTEST <= length <= LONGEST for length in lengths):
        raise DataError(f"{path}: protocol: a field of view of {phase:g} x {readout:g} x {thickness:g} mm")
    return _Geometry((partitions, rows, columns), oversampling, lengths)


def _frame(header: Any) -> Frame | None:
    """Where a slice lies, from its rotation (a unit quaternion) and position in millimetres."""
    a, b, c, d = (float(v) for v in header["SliceData"]["Quaternion"])
    if not abs(a * a + b * b + c * c + d * d - 1) < 1e-2:
        return None
    # Patient coordinates: sagittal to left, coronal to posterior, transversal to head.
    phase = (1 - 2 * (c * c + d * d), 2 * (b * c + d * a), 2 * (b * d - c * a))
    read = (2 * (b * c - d * a), 1 - 2 * (b * b + d * d), 2 * (c * d + b * a))
    normal = np.cross(phase, read)
    x, y, z = (float(header["SliceData"]["SlicePos"][name]) / 1e3 for name in ("Sag", "Cor", "Tra"))
    return Frame(phase, read, (float(normal[0]), float(normal[1]), float(normal[2])), (x, y, z))


def _extent(image: list[_Line], counter: str, center: str, planned: float | None) -> int:
    """An even number of lines, as planned or as many as hold every line with the centre at n // 2."""
    before = max(int(line.header[center]) - int(line.header["Counter"][counter]) for line in image)
    after = max(int(line.header["Counter"][counter]) - int(line.header[center]) for line in image)
    planned_lines = int(planned) if planned is not None and 1 <= planned <= 65536 else 1
    return max(planned_lines + planned_lines % 2, 2 * before, 2 * (after + 1))


# The receiver's filter lets less noise through in the margins of the oversampled readout: the power of a noise scan is
# this fraction of what the same filter gives inside the field of view.
_NOISE_BANDWIDTH = 0.79


def _noise(
    path: Path, measurements: list[_Measurement], channels: int, notes: list[str]
) -> tuple[Complex | None, float]:
    """The noise scan, and the noise power of an image sample over that of one of its samples.

    Noise goes as 1 / dwell time; the dwell times are known if the noise was measured apart.
    """
    all_noise = [[line.data for line in m.lines() if line.is_noise] for m in measurements]
    found = [[data for data in part if len(data) == channels] for part in all_noise]
    others = [len(data) for part in all_noise for data in part if len(data) != channels]
    if others:
        counts = ", ".join(map(str, sorted(set(others))))
        notes.append(f"{len(others)} noise readouts of {counts} channels are left out: the image has {channels}")
    if not any(found):
        return None, 1.0
    noise = np.concatenate([data for part in found for data in part], axis=1)
    check_finite(path, "the noise scan", noise, "channel")
    first = next(m for m, part in zip(measurements, found, strict=True) if part)
    dwell = [m.protocol().number("sRXSPEC.alDwellTime[0]") or 0.0 for m in (first, measurements[-1])]
    return noise, (dwell[0] / dwell[1] if min(dwell) > 0 else 1.0) / _NOISE_BANDWIDTH
