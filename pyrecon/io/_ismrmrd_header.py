"""The XML header of an ISMRMRD file: encodings, settings of the sequence, a few facts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.io._files import one_line
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._readouts import Readout

_MOST_ENCODINGS = 64
_MOST_ZOOM = 16  # of one encoding's readout against another's: what is resampled must not take any memory


@dataclass(frozen=True)
class Encoding:
    """One of the header's encodings that is Cartesian."""

    shape: tuple[int, int, int]  # P, H, W
    center: tuple[int, int]  # of partitions and rows, in counter values
    oversampling: float
    field_of_view: tuple[float, float, float]
    extent: tuple[float, float, float]  # encoded, x, y, z in metres; 1 mm a pixel where it is not known
    notes: list[str]

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
    if trajectory != "cartesian":
        raise file.fail(f"{field}/trajectory", repr(trajectory), "'cartesian'")
    columns, rows, partitions = (size(f"encodedSpace/matrixSize/{axis}") for axis in "xyz")
    extent = [number(f"encodedSpace/fieldOfView_mm/{axis}") / 1e3 for axis in "xyz"]
    readout = number("reconSpace/fieldOfView_mm/x", extent[0] * 1e3) / 1e3
    notes = []
    if min(*extent, readout) == 0:  # how some writers say that they do not know it
        kept = size("reconSpace/matrixSize/x", columns)
        notes.append("the header's field of view is 0, which is taken as not known: pixels count as 1 mm")
        extent, readout = [1e-3 * n for n in (columns, rows, partitions)], 1e-3 * min(kept, columns)
    possible = all(SHORTEST <= length <= LONGEST for length in (*extent, extent[2] / partitions, readout))
    if not possible or not 1 - 1e-3 <= extent[0] / readout <= 16:
        raise file.fail(
            f"{field}/encodedSpace/fieldOfView_mm", f"{extent} m for an image of {readout:g} m along x",
            f"lengths of {SHORTEST:g} to {LONGEST:g} m and an oversampling of 1 to 16",
        )  # fmt: skip
    limits = "encodingLimits/kspace_encoding_step_"
    return Encoding(
        shape=(partitions, rows, columns),
        center=(int(number(f"{limits}2/center", partitions // 2)), int(number(f"{limits}1/center", rows // 2))),
        oversampling=max(1.0, extent[0] / readout),
        field_of_view=(extent[1], readout, extent[2] / partitions),
        extent=(extent[0], extent[1], extent[2]),
        notes=notes,
    )


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
