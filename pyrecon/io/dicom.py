"""DICOM images of one MRI examination, classic or enhanced, with the settings of every image."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.data.raw import Grid
from pyrecon.data.series import ImageSeries
from pyrecon.io._files import PathLike, check_memory, existing_file, listing, one_line

__all__ = ["COMPONENTS", "read_dicom"]

# Of complex images, as image types call them.
COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}
# Names of settings, with attributes of classic images (milliseconds, degrees).
_SETTINGS = {
    "inversion time": ("InversionTime", 1e-3),
    "echo time": ("EchoTime", 1e-3),
    "repetition time": ("RepetitionTime", 1e-3),
    "flip angle": ("FlipAngle", math.pi / 180),
}
# Of enhanced images: sequence and attribute of each frame.
_ENHANCED = {
    "inversion time": ("MRModifierSequence", "InversionTimes"),
    "echo time": ("MREchoSequence", "EffectiveEchoTime"),
    "repetition time": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "flip angle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
}
_PHILIPS_SLOPE = (0x2005, 0x100E)
_MOST_FILES = 2**17
_MOST_EXPANSION = 1100
_SAME_PLACE = 1e-2  # mm: positions and spacings are rounded by scanners


@dataclass(frozen=True)
class _Frame:
    """One image, not yet read: where it lies and how it was made."""

    path: Path
    number: int  # within the file
    shape: tuple[int, int]
    spacing: tuple[float, float]  # mm between rows, between columns
    columns: NDArray[np.float64]  # direction in which the column number grows, left-posterior-superior
    rows: NDArray[np.float64]
    position: NDArray[np.float64]  # of the first pixel, mm
    thickness: float
    settings: dict[str, float]
    component: str
    scale: tuple[float, float]  # slope and intercept to the scanner's own values
    series: str  # in words

    @property
    def height(self) -> float:
        """Along the normal of the slice, mm."""
        return float(np.cross(self.columns, self.rows) @ self.position)

    @property
    def aside(self) -> NDArray[np.float64]:
        """Of the first pixel within the plane, mm."""
        return np.array([self.columns @ self.position, self.rows @ self.position])


def read_dicom(path: PathLike, *, component: str | None = None) -> ImageSeries:
    """The images of a folder (with all below it) or file, sorted by place and settings.

    Slices lie along the normal, settings in the order of their times. Values are as the scanner means them: rescaled,
    and for Philips by its scale slope too, which differs between images. Milliseconds become seconds.

    Parameters
    ----------
    component
        ``"magnitude"``, ``"phase"``, ``"real"`` or ``"imaginary"``, needed only where there are several.

    Raises
    ------
    DataError
        For what is no DICOM, images of several sizes, orientations or components, slices that lack settings of others,
        images twice in one place with the same settings, slices at uneven distances.
    MissingDependency
        Without pydicom.
    """
    files = _files(Path(path))
    frames, skipped = list[_Frame](), list[str]()
    for file in files:
        found = list(_frames(file, single=len(files) == 1))
        frames += found
        if not found:
            skipped.append(file.name)
    if not frames:
        raise DataError(f"{path}: no DICOM image among {len(files)} files")
    frames = _of_component(Path(path), frames, component)
    _check_alike(Path(path), frames)
    table, heights, names = _sorted(Path(path), frames)
    images = _pixels(Path(path), table)
    first = table[0][0]
    step = (heights[-1] - heights[0]) / (len(heights) - 1) if len(heights) > 1 else first.thickness
    grid = Grid(
        images.shape[1:],
        (1e-3 * step, 1e-3 * first.spacing[0], 1e-3 * first.spacing[1]),
        (0.0, 0.0, 0.0),
    )
    metadata = {"images": f"{len(frames)} DICOM images of {len({f.series for f in frames})} series"}
    if skipped:
        more = f" and {len(skipped) - 4} more" if len(skipped) > 4 else ""
        metadata["left out"] = f"no DICOM images: {', '.join(skipped[:4])}{more}"
    settings = {name: np.array([row[0].settings[name] for row in table]) for name in names}
    return ImageSeries(images, settings, grid, _affine(first, step), metadata)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingDependency("pydicom", "io", "reading DICOM") from None
    return pydicom


# ---- headers
def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [existing_file(path)]
    found = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith(".") and file.name != "DICOMDIR" and file.stat().st_size:
            found.append(file)
        if len(found) > _MOST_FILES:
            raise DataError(f"{path}: holds more than {_MOST_FILES} files, expected those of one series")
    return found


def _frames(path: Path, single: bool) -> Iterator[_Frame]:
    """Of a file; none where it is no DICOM or has no image, which is an error of a ``single`` one."""
    pydicom = _pydicom()
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            if single:
                raise DataError(f"{path}: is no DICOM file")
            return
    with _damage(path):
        data = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in data or "Columns" not in data:
            if single:
                raise DataError(f"{path}: DICOM without an image")
            return
        if str(data.get("Modality", "MR")) != "MR":
            raise DataError(f"{path}: modality {data.Modality}, expected MR")
        if "PerFrameFunctionalGroupsSequence" in data:
            yield from _enhanced(path, data)
        else:
            yield _classic(path, data)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What pydicom raises on damaged files is one DataError; what it mends and warns of is told no one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MissingDependency):
        raise
    except Exception as error:  # of many kinds
        raise DataError(f"{path}: is no readable DICOM image ({one_line(error)})") from error


def _numbers(path: Path, name: str, value: Any, count: int) -> NDArray[np.float64]:
    try:
        found = np.array([float(v) for v in value], np.float64) if count > 1 else np.array([float(value)])
    except (TypeError, ValueError):
        raise DataError(f"{path}: {name} is {value!r}, expected numbers: {count}") from None
    if len(found) != count or not np.isfinite(found).all():
        raise DataError(f"{path}: {name} is {value!r}, expected finite numbers: {count}")
    return found


def _needed(path: Path, data: Any, name: str) -> Any:
    value = data.get(name)
    if value is None or value == "":
        raise DataError(f"{path}: has no {name}, without which the image has no place")
    return value


def _placed(path: Path, place: Any, orientation: Any, measures: Any) -> dict[str, Any]:
    """The geometry of a frame from the data sets that hold it."""
    directions = _numbers(path, "ImageOrientationPatient", _needed(path, orientation, "ImageOrientationPatient"), 6)
    columns, rows = directions[:3], directions[3:]
    lengths = [float(np.linalg.norm(columns)), float(np.linalg.norm(rows)), 1 + float(columns @ rows)]
    if not np.allclose(lengths, 1, atol=1e-3):
        raise DataError(f"{path}: ImageOrientationPatient {directions.tolist()} is no pair of orthogonal unit vectors")
    spacing = _numbers(path, "PixelSpacing", _needed(path, measures, "PixelSpacing"), 2)
    thickness = measures.get("SliceThickness") or measures.get("SpacingBetweenSlices") or 0.0
    thickness = abs(_numbers(path, "SliceThickness", thickness, 1)[0]) or float(min(spacing))
    position = _numbers(path, "ImagePositionPatient", _needed(path, place, "ImagePositionPatient"), 3)
    for name, sizes in (("PixelSpacing", spacing), ("SliceThickness", np.array([thickness]))):
        if not ((sizes >= 1e3 * SHORTEST) & (sizes <= 1e3 * LONGEST)).all():
            raise DataError(f"{path}: {name} {sizes.tolist()} mm, expected {1e3 * SHORTEST:g} to {1e3 * LONGEST:g}")
    if not (np.abs(position) <= 1e3 * LONGEST).all():
        raise DataError(f"{path}: ImagePositionPatient {position.tolist()} mm, expected at most {1e3 * LONGEST:g}")
    return {
        "spacing": (float(spacing[0]), float(spacing[1])),
        "columns": columns,
        "rows": rows,
        "position": position,
        "thickness": float(thickness),
    }


def _classic(path: Path, data: Any) -> _Frame:
    frames = data.get("NumberOfFrames")
    if frames is not None and int(frames) > 1:
        raise DataError(f"{path}: {frames} frames without a geometry of each (PerFrameFunctionalGroupsSequence)")
    settings = {}
    for name, (attribute, unit) in _SETTINGS.items():
        value = data.get(attribute)
        if value is not None and value != "":
            settings[name] = unit * float(_numbers(path, attribute, value, 1)[0])
    kinds = [str(v) for v in data.get("ImageType", [])]
    part = str(data.get("ComplexImageComponent", "")) or _part(kinds)
    return _Frame(
        path, 0, (int(data.Rows), int(data.Columns)), **_placed(path, data, data, data), settings=settings,
        component=part, scale=_scale(path, data, data), series=_series(data),
    )  # fmt: skip


def _part(kinds: Sequence[str]) -> str:
    """Magnitude unless the image type says otherwise; vendors write M, P, R, I, or M_SE and its kin."""
    for kind in kinds[2:]:
        first = kind.split("_")[0].upper()
        if first in COMPONENTS or first in {name.upper() for name in COMPONENTS.values()}:
            return COMPONENTS[first[0]]
        if first == "REAL" or first == "IMAGINARY":
            return first.lower()
    return "magnitude"


def _series(data: Any) -> str:
    number, name = data.get("SeriesNumber", "?"), data.get("SeriesDescription", "")
    return f"series {number}" + (f" ({name})" if name else "")


def _scale(path: Path, data: Any, outer: Any) -> tuple[float, float]:
    values = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
    for name in values:
        given = data.get(name)
        if given is not None and given != "":
            values[name] = float(_numbers(path, name, given, 1)[0])
    slope, intercept = values["RescaleSlope"], values["RescaleIntercept"]
    if not slope > 0:
        raise DataError(f"{path}: RescaleSlope {slope:g}, expected more than 0")
    if str(outer.get("Manufacturer", "")).lower().startswith("philips") and _PHILIPS_SLOPE in outer:
        # Displayed values are those of the scanner times its own slope: Chenevert et al., Transl. Oncol. 7, 2014.
        own = float(_numbers(path, "the scale slope (2005,100E)", outer[_PHILIPS_SLOPE].value, 1)[0])
        if own > 0:
            slope, intercept = 1 / own, intercept / (slope * own)
    return slope, intercept


def _enhanced(path: Path, data: Any) -> Iterator[_Frame]:
    shared = data.get("SharedFunctionalGroupsSequence")
    shared = shared[0] if shared else {}
    frames = data.PerFrameFunctionalGroupsSequence
    if int(data.get("NumberOfFrames", 1)) != len(frames):
        raise DataError(f"{path}: {data.get('NumberOfFrames')} frames, but the geometry of {len(frames)}")

    def group(frame: Any, name: str) -> Any:
        for place in (frame, shared):
            found = place.get(name)
            if found:
                return found[0]
        return {}

    for number, frame in enumerate(frames):
        settings = {}
        for name, (sequence, attribute) in _ENHANCED.items():
            value = group(frame, sequence).get(attribute)
            if value is None or value == "":
                continue
            several = not isinstance(value, str | float | int)
            if several and len(value) != 1:
                raise DataError(f"{path}: frame {number} has {len(value)} of {attribute}, expected one")
            settings[name] = _SETTINGS[name][1] * float(_numbers(path, attribute, value[0] if several else value, 1)[0])
        about = group(frame, "MRImageFrameTypeSequence")
        part = str(about.get("ComplexImageComponent", "")) or _part([str(v) for v in about.get("FrameType", [])])
        position, orientation = group(frame, "PlanePositionSequence"), group(frame, "PlaneOrientationSequence")
        yield _Frame(
            path, number, (int(data.Rows), int(data.Columns)),
            **_placed(path, position, orientation, group(frame, "PixelMeasuresSequence")), settings=settings,
            component=part.lower(), scale=_scale(path, group(frame, "PixelValueTransformationSequence"), data),
            series=_series(data),
        )  # fmt: skip


# ---- the order of a series
def _of_component(path: Path, frames: list[_Frame], wanted: str | None) -> list[_Frame]:
    known = Counter(frame.component.lower() for frame in frames)
    if wanted is not None:
        if wanted not in known:
            raise DataError(f"{path}: no {wanted} images, there are {', '.join(known)}")
        return [frame for frame in frames if frame.component.lower() == wanted]
    if len(known) > 1:
        counts = ", ".join(f"{number} {name}" for name, number in known.items())
        raise DataError(f"{path}: {counts} images; choose one kind (--component)")
    return frames


def _check_alike(path: Path, frames: list[_Frame]) -> None:
    first = frames[0]
    for frame in frames:
        if frame.shape != first.shape:
            what = f"{frame.shape[0]} x {frame.shape[1]} and {first.shape[0]} x {first.shape[1]} pixels"
        elif not np.allclose(frame.spacing, first.spacing, atol=_SAME_PLACE):
            what = f"pixels of {frame.spacing} and {first.spacing} mm"
        elif not np.allclose([*frame.columns, *frame.rows], [*first.columns, *first.rows], atol=1e-3):
            what = "orientations that differ"
        elif abs(frame.aside - first.aside).max() > 10 * _SAME_PLACE:
            what = "images that are shifted in their plane"
        else:
            continue
        raise DataError(
            f"{path}: {what} ({first.path.name}, {first.series}; {frame.path.name}, {frame.series}); give the images "
            "of one examination alone"
        )


def _sorted(path: Path, frames: list[_Frame]) -> tuple[list[list[_Frame]], list[float], list[str]]:
    """Frames by setting and slice, heights of the slices, and the names of the settings that all have."""
    names = [name for name in _SETTINGS if all(name in frame.settings for frame in frames)]
    heights = list[float]()
    for height in sorted(frame.height for frame in frames):
        if not heights or height - heights[-1] > _SAME_PLACE:
            heights.append(height)
    cells: dict[tuple[tuple[float, ...], int], list[_Frame]] = defaultdict(list)
    for frame in frames:
        key = tuple(round(frame.settings[name], 9) for name in names)
        cells[key, int(np.argmin([abs(h - frame.height) for h in heights]))].append(frame)
    keys = sorted({key for key, _ in cells})
    said = [", ".join(_said(name, value) for name, value in zip(names, key, strict=True)) for key in keys]
    for (key, place), found in cells.items():
        if len(found) > 1:
            raise DataError(
                f"{path}: {len(found)} images at slice {place} with {said[keys.index(key)] or 'no settings'} "
                f"({', '.join(f'{f.path.name} of {f.series}' for f in found[:3])}); remove all but one, or fit each "
                "series alone"
            )
    for key, text in zip(keys, said, strict=True):
        gaps = [place for place in range(len(heights)) if (key, place) not in cells]
        if gaps:
            raise DataError(
                f"{path}: no image with {text or 'no settings'} at {listing('slice', gaps)} of {len(heights)}; is this "
                "one examination?"
            )
    steps = np.diff(heights)
    if len(steps) and steps.max() - steps.min() > 0.05 * steps.mean():
        raise DataError(
            f"{path}: slices {steps.min():.3g} to {steps.max():.3g} mm apart, expected even distances; fit each alone"
        )
    return [[cells[key, place][0] for place in range(len(heights))] for key in keys], heights, names


def _said(name: str, value: float) -> str:
    return f"{name} {1e3 * value:g} ms" if "time" in name else f"{name} {math.degrees(value):g} degrees"


def _affine(frame: _Frame, step: float) -> NDArray[np.float64]:
    """To RAS, of columns, rows and slices."""
    affine = np.eye(4)
    affine[:3, 0] = frame.columns * frame.spacing[1]
    affine[:3, 1] = frame.rows * frame.spacing[0]
    affine[:3, 2] = np.cross(frame.columns, frame.rows) * step
    affine[:3, 3] = frame.position
    affine[:2] *= -1  # DICOM's axes point to the left and to the back
    return affine


# ---- pixels
def _pixels(path: Path, table: list[list[_Frame]]) -> NDArray[np.float32]:
    """``(T, S, H, W)``, every file read once."""
    first = table[0][0]
    shape = (len(table), len(table[0]), *first.shape)
    files = {frame.path for row in table for frame in row}
    on_disk = sum(file.stat().st_size for file in files)
    check_memory(path, "the series", 4 * math.prod(shape), on_disk, _MOST_EXPANSION)
    images = np.empty(shape, np.float32)
    places = defaultdict(list)
    for t, row in enumerate(table):
        for s, frame in enumerate(row):
            places[frame.path].append((t, s, frame))
    for file, wanted in places.items():
        stored = _stored(file, first.shape)
        for t, s, frame in wanted:
            if frame.number >= len(stored):
                raise DataError(f"{file}: holds {len(stored)} frames, its header speaks of more")
            images[t, s] = stored[frame.number] * frame.scale[0] + frame.scale[1]
    return images


def _stored(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """``(frames, H, W)``, as they are stored."""
    pydicom = _pydicom()
    with _damage(path):
        data = pydicom.dcmread(path)
        frames = int(data.get("NumberOfFrames", 1) or 1)
        nbytes = frames * shape[0] * shape[1] * max(1, int(data.get("BitsAllocated", 16)) // 8)
        check_memory(path, "the image", nbytes, path.stat().st_size, _MOST_EXPANSION)
        pixels = np.asarray(data.pixel_array)
    if pixels.size != frames * shape[0] * shape[1]:
        raise DataError(f"{path}: pixels of shape {pixels.shape}, expected grey images of {shape[0]} x {shape[1]}")
    return pixels.reshape(frames, *shape)
