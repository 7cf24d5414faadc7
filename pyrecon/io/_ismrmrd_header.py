"""The XML header of an ISMRMRD file: encodings, settings of the sequence, a few facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.io._contradictions import oversampling_note
from pyrecon.io._files import one_line
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._ramp import Ramp
from pyrecon.io._readouts import Readout

_MOST_ENCODINGS = 64
_MOST_ZOOM = 16  # of one encoding's readout against another's: what is resampled must not take any memory


@dataclass(frozen=True)
class Encoding:
    """One of the header's encodings that is Cartesian."""

    shape: tuple[int, int, int]  # P, H, W
    center: tuple[int, int]  # of partitions and rows, in counter values
    oversampling: float
    kept: tuple[int, int]  # partitions and rows that were asked for, about the centre; the others are oversampling
    field_of_view: tuple[float, float, float]  # of the rows and columns that were asked for, and of one partition
    facts: dict[str, str]
    extent: tuple[float, float, float]  # encoded, x, y, z in metres; 1 mm a pixel where it is not known
    notes: list[str]
    is_sized: bool  # whether the extent is known
    ramp: Ramp | None  # of readouts that are sampled on gradient ramps too

    def without_oversampling(self) -> Encoding:
        """The encoding of readouts that have the samples of the image."""
        partitions, rows, columns = self.shape
        kept = self.columns_kept
        return replace(
            self,
            shape=(partitions, rows, kept),
            oversampling=1.0,
            extent=(self.field_of_view[1], *self.extent[1:]),
            notes=[*self.notes, oversampling_note(columns, kept)],
        )

    @property
    def columns_kept(self) -> int:
        """Samples of a readout without oversampling."""
        return max(1, round(self.shape[2] / self.oversampling))

    def differs_from(self, other: Encoding) -> str:
        """Why lines of it have no place among the other's."""
        for axis, ours, theirs in zip("yz", self.extent[1:], other.extent[1:], strict=True):
            if abs(ours / theirs - 1) > 1e-2:
                return f"its field of view along {axis} is {1e3 * ours:g} mm, the image's {1e3 * theirs:g} mm"
        if not 1 / _MOST_ZOOM <= self.extent[0] / other.extent[0] <= _MOST_ZOOM:
            return f"its field of view along x is {1e3 * self.extent[0]:g} mm, the image's {1e3 * other.extent[0]:g} mm"
        if not all(n <= m for n, m in zip(self.shape[:2], other.shape[:2], strict=True)):
            return f"it has {self.shape[0]} x {self.shape[1]} lines, the image {other.shape[0]} x {other.shape[1]}"
        return ""

    def moved(self, r: Readout, own: Encoding) -> Readout | None:
        """A readout of the encoding ``own`` on this one's matrix; None where it lies outside its own."""
        (_, rows, columns), (_, own_rows, own_columns) = self.shape, own.shape
        if not 0 <= r.column <= r.column + r.data.shape[1] <= own_columns:
            return None
        whole = np.zeros((len(r.data), own_columns), np.complex64)
        whole[:, r.column : r.column + r.data.shape[1]] = r.data
        # Along the readout, another field of view is another step in k-space: what lies outside is cut off as an image.
        count = max(1, round(own_columns * self.extent[0] / own.extent[0]))
        with np.errstate(over="ignore", invalid="ignore"):  # of samples that the file is refused for later
            line = _fitted(_centred(np.fft.ifft, whole), count)
            line = _fitted(_centred(np.fft.fft, line), columns) * np.sqrt(count / own_columns)
        return r._replace(
            data=np.asarray(line, np.complex64),
            row=r.row - own_rows // 2 + rows // 2,
            partition=r.partition - own.shape[0] // 2 + self.shape[0] // 2,
            column=0,
        )


def _centred(transform: Any, x: NDArray[Any]) -> NDArray[Any]:
    shifted = transform(np.fft.ifftshift(x, axes=1), axis=1, norm="ortho")
    return np.asarray(np.fft.fftshift(shifted, axes=1))


def _fitted(x: NDArray[Any], columns: int) -> NDArray[Any]:
    """The centre of x, or x amid zeros."""
    have = x.shape[1]
    if have >= columns:
        return x[:, have // 2 - columns // 2 :][:, :columns]
    out = np.zeros((len(x), columns), x.dtype)
    out[:, columns // 2 - have // 2 :][:, :have] = x
    return out


@dataclass(frozen=True)
class Header:
    encodings: list[Encoding | DataError]  # or why one cannot be used
    channels: int | None
    noise_bandwidth: (
        float  # the receiver filter's, relative to an ideal one: what is missing in the noise scan's margins
    )
    sequence: dict[str, list[str]]  # by name of the setting, a text for each contrast
    facts: dict[str, Any]


def read_header(file: Hdf5, field: str) -> Header:
    """The header; DataError where it is none. Encodings that cannot be used say why."""
    text = file.text(field)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise file.fail(field, "a document type or entity declaration", "plain XML")
    try:
        root = ElementTree.fromstring(text.strip("\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file.path}: {field} is no XML ({one_line(error)}); it is corrupted") from error
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    found = root.findall("encoding")
    if not found:
        raise file.fail(field, "no encoding", "one with encodedSpace and reconSpace")
    encodings: list[Encoding | DataError] = []
    for number, element in enumerate(found[:_MOST_ENCODINGS]):
        try:
            encodings.append(_encoding(file, f"{field}: encoding" + (f"[{number}]" if number else ""), element))
        except DataError as error:
            encodings.append(error)
    return Header(
        encodings=encodings,
        channels=_channels(root),
        noise_bandwidth=_noise_bandwidth(root),
        sequence=_sequence(root),
        facts=_facts(root),
    )


def _encoding(file: Hdf5, field: str, encoding: ElementTree.Element) -> Encoding:
    def number(path: str, default: float | None = None) -> float:
        found = encoding.findtext(path)
        if found is None and default is not None:
            return default
        try:
            value = float(found or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not 0 <= value < 2**24:
            raise file.fail(f"{field}/{path}", repr(found), "a number from 0")
        return value

    def size(path: str, default: float | None = None) -> int:
        value = number(path, default)
        if value != int(value) or not 1 <= value <= 65536:
            raise file.fail(f"{field}/{path}", f"{value:g}", "a whole number from 1 to 65536")
        return int(value)

    trajectory = (encoding.findtext("trajectory") or "").strip().lower()
    described = (encoding.findtext("trajectoryDescription/identifier") or "").strip().lower() == _EPI.lower()
    if trajectory != "cartesian" and not (trajectory == "epi" and described):
        also = f", for epi a trajectoryDescription {_EPI}" if trajectory == "epi" else ""
        raise file.fail(f"{field}/trajectory", repr(trajectory), f"'cartesian'{also}")
    columns, rows, partitions = (size(f"encodedSpace/matrixSize/{axis}") for axis in "xyz")
    extent = [number(f"encodedSpace/fieldOfView_mm/{axis}") / 1e3 for axis in "xyz"]
    asked = [number(f"reconSpace/fieldOfView_mm/{axis}", extent[i] * 1e3) / 1e3 for i, axis in enumerate("xyz")]
    notes = []
    is_sized = min(*extent, asked[0]) > 0
    if not is_sized:  # how some writers say that they do not know it
        notes.append("the header's field of view is 0, which is taken as not known: pixels count as 1 mm")
        extent = [1e-3 * n for n in (columns, rows, partitions)]
        asked = [1e-3 * min(size("reconSpace/matrixSize/x", columns), columns), *extent[1:]]
    asked[1] = asked[1] or extent[1]
    asked[2] = asked[2] if asked[2] and partitions > 1 else extent[2]  # a slice is as thick as it is encoded
    for i, axis in enumerate("xyz"):
        possible = all(SHORTEST <= length <= LONGEST for length in (extent[i], asked[i], extent[i] / partitions))
        if not possible or not (1 - 1e-3 if i == 0 else 0) <= extent[i] / asked[i] <= 16:
            raise file.fail(
                f"{field}/encodedSpace/fieldOfView_mm",
                f"{extent[i]:g} m for an image of {asked[i]:g} m along {axis}",
                f"lengths of {SHORTEST:g} to {LONGEST:g} m and an oversampling of 1 to 16",
            )
        if asked[i] > extent[i] * (1 + 1e-2):
            notes.append(
                f"the header asks for an image of {1e3 * asked[i]:g} mm along {axis}, {1e3 * extent[i]:g} mm were "
                "encoded: the image has these"
            )
    kept = [
        n if whole <= part * (1 + 1e-3) else max(1, round(n * part / whole))
        for n, whole, part in zip((columns, rows, partitions), extent, asked, strict=True)
    ]
    ramp = _ramp(file, field, encoding, columns, kept[0]) if described else None
    limits = "encodingLimits/kspace_encoding_step_"
    return Encoding(
        shape=(partitions, rows, columns),
        center=(int(number(f"{limits}2/center", partitions // 2)), int(number(f"{limits}1/center", rows // 2))),
        oversampling=max(1.0, extent[0] / asked[0]),
        kept=(kept[2], kept[1]),
        field_of_view=(extent[1] * kept[1] / rows, asked[0], extent[2] / partitions),
        facts=_interpolation(encoding, kept) | ({} if ramp is None else ramp.facts),
        is_sized=is_sized,
        ramp=ramp,
        extent=(extent[0], extent[1], extent[2]),
        notes=notes,
    )


# Microseconds; the names are those of Siemens' converter and of Gadgetron.
_EPI = "ConventionalEPI"
_EPI_TIMES = ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime", "dwellTime", "numSamples")


def _ramp(file: Hdf5, field: str, encoding: ElementTree.Element, columns: int, kept: int) -> Ramp | None:
    """The trapezoid of echo-planar readouts; None where all of it is sampled on the flat top."""
    field = f"{field}/trajectoryDescription {_EPI}"
    said = {
        (element.findtext("name") or "").strip(): element.findtext("value") or ""
        for kind in ("userParameterLong", "userParameterDouble")
        for element in encoding.findall(f"trajectoryDescription/{kind}")
    }
    values = {}
    for name in _EPI_TIMES:
        try:
            values[name] = float(said[name])
            int(values[name])  # no NaN, no infinity
        except (KeyError, ValueError, OverflowError):
            raise file.fail(f"{field}/{name}", repr(said.get(name)), "a number: of ramp sampling") from None
    up, flat, down, delay, dwell, samples = values.values()
    if samples != int(samples) or not 2 <= samples < 2**16:
        raise file.fail(f"{field}/numSamples", f"{samples:g}", "a whole number from 2 to 65535")
    ramp = Ramp(up, flat, down, delay, dwell * samples, int(samples), columns, kept)
    if ramp.is_uniform:
        return None
    problem = ramp.problem()
    if problem:
        raise file.fail(field, *problem)
    return ramp


def _interpolation(encoding: ElementTree.Element, kept: Sequence[int]) -> dict[str, str]:
    """What a report says of an image that is to have more pixels than were measured."""
    texts = [encoding.findtext(f"reconSpace/matrixSize/{axis}") or "" for axis in "xy"]
    if not all(text.isdecimal() and len(text) < 6 for text in texts):
        return {}
    columns, rows = map(int, texts)
    if columns <= kept[0] and rows <= kept[1]:
        return {}
    return {
        "interpolation": f"none: the header asks for {rows} x {columns} pixels, {kept[1]} x {kept[0]} were measured"
    }


def _channels(root: ElementTree.Element) -> int | None:
    text = (root.findtext("acquisitionSystemInformation/receiverChannels") or "").strip()
    return int(text) if text.isdecimal() and len(text) < 6 else None


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
        "vendor": ("acquisitionSystemInformation/systemVendor", str, 1.0),
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
SEQUENCE = {
    "repetition time": ("TR", 1e3),
    "echo time": ("TE", 1e3),
    "inversion time": ("TI", 1e3),
    "flip angle": ("flipAngle_deg", 180 / math.pi),
}


def _sequence(root: ElementTree.Element) -> dict[str, list[str]]:
    found = {
        name: [element.text or "" for element in root.findall(f"sequenceParameters/{tag}")]
        for name, (tag, _) in SEQUENCE.items()
    }
    return {name: texts for name, texts in found.items() if texts}


def settings_of(
    sequence: dict[str, list[str]], contrasts: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """Of every entry, and why others are left out. The i-th value of the header is that of contrast i, one alone
    everybody's. Foreign headers list times that nothing was measured at: whether that matters, who uses them knows."""
    known, left_out = {}, {}
    there = len(np.unique(contrasts))
    for name, texts in sequence.items():
        tag, unit = SEQUENCE[name]
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
