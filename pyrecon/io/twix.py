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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.placement import LONGEST, SHORTEST, Frame
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._cartesian import assemble, averages, laid, reference_scan, without_slice_oversampling
from pyrecon.io._contradictions import is_without_oversampling, off_centre, oversampling_note
from pyrecon.io._files import PathLike, check_finite, existing_file
from pyrecon.io._ramp import Ramp, siemens_is_ramped, siemens_ramp, uniform
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
_UNIFORM = "SKIP_REGRIDDING"  # of readouts amid ramp-sampled ones
_MOST_HEADER = 64 * 2**20
_DMA_BITS = 2**25


def read_twix(path: PathLike) -> MRIScan:
    """Read the last measurement of a twix file; noise comes from any measurement with the same number of channels.

    Rows are phase-encoding lines and columns the readout, both with the centre of k-space at ``n // 2``; partial
    Fourier and partial echo leave zeros that ``mask`` marks. Reference lines of parallel imaging in the gaps of the
    image's are image data too; a scan of its own is returned as ``calibration``. Readouts sampled on gradient ramps
    are resampled, lines of both directions get the phases of one from the file's navigators. Slices are numbered as
    acquired. ``metadata["notes"]`` tells what is left out or guessed, ``metadata["readouts"]`` counts the kinds. Raises
    DataError naming what does not fit, MissingDependency without twixtools.
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
    navigators = kinds.get("phase correction", [])
    image, reference, navigating = (
        geometry.placed(path, some, notes) for some in (kinds["image"], references, navigators)
    )
    if integrated(image, reference):
        image, reference = image + reference, []
    chosen = choose(path, image, _COUNTERS, _OTHER_COUNTERS)
    notes += chosen.notes
    readouts, navigated = one_direction(chosen.readouts, navigating, geometry.shape[2], notes)
    found = assemble(path, readouts, geometry.shape, chosen.names)
    first = kinds["image"][0].header
    centers = (int(first["CenterPar"]), int(first["CenterLin"]), geometry.shape[2] // 2)
    notes += geometry.notes + off_centre(readouts, geometry.shape, centers)
    noise, noise_ratio = _noise(path, measurements, found.kspace.shape[1], notes)
    noise_ratio *= 1.0 if geometry.ramp is None else geometry.ramp.noise
    calibration = reference_scan(path, reference, navigating, found, (_COUNTERS, _OTHER_COUNTERS), notes)
    seen = laid(found, calibration, geometry.field_of_view[2], notes, against=True)
    whole = MRIScan(
        kspace=seen.kspace,
        mask=seen.mask,
        noise=noise,
        calibration=seen.calibration,
        readout_oversampling=geometry.oversampling,
        phase_oversampling=geometry.shape[1] / geometry.kept[1],
        field_of_view=geometry.field_of_view,
        labels=found.labels,
        noise_ratio=noise_ratio / averages(readouts) if noise is not None else 1.0,
        slices=found.slices,
        places=found.places,
        placement=seen.placement,
        encoded_partitions=seen.encoded_partitions,
        stack=found.stack,
        metadata=protocol.summary()
        | ({"orientation": seen.placement.letters} if seen.placement else {})
        | {"readouts": {kind: len(of_kind) for kind, of_kind in kinds.items()}}
        | phase_correction(navigated)
        | geometry.facts
        | ({"notes": notes} if notes else {}),
    )
    return without_slice_oversampling(whole, found.where[:, 1], geometry.shape[0], geometry.kept[0])


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
    kept: tuple[int, int]  # partitions and rows that were asked for, about the centre; the others are oversampling
    field_of_view: tuple[float, float, float]  # of the rows and columns that were asked for, and of one partition
    facts: dict[str, str]
    notes: list[str]
    ramp: Ramp | None  # of readouts that are sampled on gradient ramps too

    def placed(self, path: Path, lines: list[_Line], notes: list[str]) -> list[Readout]:
        """Readouts on the matrix, resampled where they were sampled on ramps."""
        readouts = [self.place(line) for line in lines]
        if self.ramp is None:
            return readouts
        on_ramps = [i for i, line in enumerate(lines) if not line.has(_UNIFORM)]
        for i in on_ramps:
            samples = int(lines[i].header["SamplesInScan"])
            if samples != self.ramp.samples:
                raise DataError(
                    f"{path}: a readout of {samples} samples on gradient ramps, expected {self.ramp.samples} as others"
                )
            readouts[i] = readouts[i]._replace(column=lines[i].start)
        width = self.field_of_view[1] * self.oversampling
        resampled = uniform(path, self.ramp, [readouts[i] for i in on_ramps], width, True, notes)
        for i, r in zip(on_ramps, resampled, strict=True):
            readouts[i] = r
        return readouts

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
    meas = partial(protocol.text, part="Meas")
    ramped = siemens_is_ramped(path, meas)
    notes: list[str] = []
    base = protocol.number("sKSpace.lBaseResolution")
    columns = max(int(line.header["SamplesInScan"]) for line in image)
    oversampling = protocol.number("flReadoutOSFactor", "Dicom") or protocol.number("flReadoutOSFactor", "Meas") or 2.0
    if not 1 <= oversampling <= 16:
        raise DataError(f"{path}: protocol flReadoutOSFactor: {oversampling:g}, expected 1 to 16")
    if base is not None and 1 <= base <= 65536:
        planned, own = round(base * oversampling), np.array([int(line.header["CenterCol"]) for line in image])
        if not ramped and is_without_oversampling([line.data for line in image], own, planned, round(base)):
            notes.append(oversampling_note(planned, round(base)))
        else:
            columns = planned if ramped else max(columns, planned)
        oversampling = columns / base

    on_ramps = [int(line.header["SamplesInScan"]) for line in image if not line.has(_UNIFORM)]
    ramp = (
        siemens_ramp(path, meas, on_ramps[0], columns, round(columns / oversampling)) if ramped and on_ramps else None
    )
    rows = _extent(image, "Lin", "CenterLin", protocol.number("sKSpace.lPhaseEncodingLines"))
    partitions = 1
    if any(int(line.header["Counter"]["Par"]) for line in image):
        partitions = _extent(image, "Par", "CenterPar", protocol.number("sKSpace.lPartitions"))

    interpolated = (protocol.number("sKSpace.uc2DInterpolation") or 0.0) > 0
    first = "sSliceArray.asSlice[0]"
    readout = protocol.number(f"{first}.dReadoutFOV") or protocol.number("RoFOV", "Meas") or 1e3
    phase = protocol.number(f"{first}.dPhaseFOV") or protocol.number("PeFOV", "Meas") or readout
    thickness = protocol.number(f"{first}.dThickness") or 1e3
    lengths = phase / 1e3, readout / 1e3, thickness / partitions / 1e3
    if not all(SHORTEST <= length <= LONGEST for length in lengths):
        raise DataError(f"{path}: protocol: a field of view of {phase:g} x {readout:g} x {thickness:g} mm")
    phase_factor = _factor(path, protocol, "sKSpace.dPhaseOversamplingForDialog")
    slice_factor = _factor(path, protocol, "sKSpace.dSliceOversamplingForDialog") if partitions > 1 else 1.0
    kept = max(1, round(partitions / slice_factor)), max(1, round(rows / phase_factor))
    return _Geometry(
        shape=(partitions, rows, columns),
        oversampling=oversampling,
        kept=kept,
        field_of_view=(
            phase * phase_factor * kept[1] / rows / 1e3, readout / 1e3, thickness * slice_factor / partitions / 1e3
        ),
        facts=({"interpolation": "none, though the protocol asks for it"} if interpolated else {})
        | ({} if ramp is None else ramp.facts),
        notes=notes,
        ramp=ramp,
    )  # fmt: skip


def _factor(path: Path, protocol: _Protocol, name: str) -> float:
    """An oversampling, which protocols give as what is beyond 1."""
    beyond = protocol.number(name) or 0.0
    if not 0 <= beyond <= 15:
        raise DataError(f"{path}: protocol {name}: {beyond:g}, expected 0 to 15")
    return 1 + beyond


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
