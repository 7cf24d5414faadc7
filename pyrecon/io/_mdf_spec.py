"""The fields of the MDF format, version 2.1.0 with the names of 2.0, and the check of a file against them.

Source: T. Knopp et al., "MDF: Magnetic Particle Imaging Data Format", arXiv:1602.06072v9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from pyrecon._errors import DataError
from pyrecon.io._hdf5 import Hdf5


@dataclass(frozen=True)
class Field:
    """One field: its specified ``type``, ``dims`` in HDF5 (row-major) order, and the ``condition`` for being there."""

    path: str
    type: str
    dims: tuple[str, ...]
    condition: str  # "" mandatory in its group, "?" optional, else the flag that demands it
    older: tuple[str, ...] = ()


# path, type, dimensions ("1" a scalar), condition, older names. Variables: A tracers, N frames, O foreground frames,
# B coefficients, J periods, Y partitions, C receive channels, D drive-field channels, F their frequencies, U samples of
# a custom waveform, V sampling points, K frequencies, Q images, P voxels, S image channels.
_TABLE = """
/version String 1
/uuid String 1
/time String 1
/study/description String 1
/study/name String 1
/study/number Int 1
/study/time String 1 ?
/study/uuid String 1
/experiment/description String 1
/experiment/isSimulation Flag 1
/experiment/name String 1
/experiment/number Int 1
/experiment/subject String 1
/experiment/uuid String 1
/tracer/batch String A
/tracer/concentration Float A
/tracer/injectionTime String A ?
/tracer/name String A
/tracer/solute String A
/tracer/vendor String A
/tracer/volume Float A
/scanner/boreSize Float 1 ?
/scanner/facility String 1
/scanner/manufacturer String 1
/scanner/name String 1 "" /scanner/model
/scanner/operator String 1
/scanner/topology String 1
/acquisition/gradient Float J,Y,3,3 ?
/acquisition/numAverages Int 1 "" /acquisition/receiver/numAverages
/acquisition/numFrames Int 1 "" /measurement/numFrames
/acquisition/numPeriodsPerFrame Int 1 "" /acquisition/numPeriods /acquisition/numPatches
/acquisition/offsetField Float J,Y,3 ?
/acquisition/startTime String 1
/acquisition/drivefield/baseFrequency Float 1
/acquisition/drivefield/customWaveform Float D,F,U ?
/acquisition/drivefield/cycle Float 1 "" /acquisition/drivefield/period
/acquisition/drivefield/divider Int D,F
/acquisition/drivefield/numChannels Int 1
/acquisition/drivefield/phase Float J,D,F
/acquisition/drivefield/strength Float J,D,F
/acquisition/drivefield/waveform String D,F
/acquisition/receiver/bandwidth Float 1
/acquisition/receiver/dataConversionFactor Float C,2 ? /measurement/dataConversionFactor
/acquisition/receiver/inductionFactor Float C ?
/acquisition/receiver/numChannels Int 1
/acquisition/receiver/numSamplingPoints Int 1
/acquisition/receiver/transferFunction Complex C,K ?
/acquisition/receiver/unit String 1 "" /measurement/unit
/measurement/data Number *
/measurement/framePermutation Int N isFramePermutation
/measurement/frequencySelection Int K isFrequencySelection
/measurement/isBackgroundCorrected Flag 1
/measurement/isBackgroundFrame Flag N
/measurement/isFastFrameAxis Flag 1 "" /measurement/isTransposed
/measurement/isFourierTransformed Flag 1
/measurement/isFramePermutation Flag 1 "" /measurement/isFramePermution
/measurement/isFrequencySelection Flag 1
/measurement/isSparsityTransformed Flag 1
/measurement/isSpectralLeakageCorrected Flag 1
/measurement/isTransferFunctionCorrected Flag 1
/measurement/sparsityTransformation String 1 isSparsityTransformed
/measurement/subsamplingIndices Int J,C,K,B isSparsityTransformed
/calibration/deltaSampleSize Float 3 ?
/calibration/fieldOfView Float 3 ?
/calibration/fieldOfViewCenter Float 3 ?
/calibration/isMeanderingGrid Flag 1 ?
/calibration/method String 1
/calibration/offsetFields Float O,3 ? /calibration/offsetField
/calibration/order String 1 ?
/calibration/positions Float O,3 ?
/calibration/size Int 3 ?
/calibration/snr Float J,C,K ?
/reconstruction/data Number Q,P,S
/reconstruction/fieldOfView Float 3 ?
/reconstruction/fieldOfViewCenter Float 3 ?
/reconstruction/isOverscanRegion Flag P ?
/reconstruction/order String 1 ?
/reconstruction/positions Float P,3 ?
/reconstruction/size Int 3 ?
"""

MANDATORY_GROUPS = ("/study", "/experiment", "/scanner", "/acquisition")
OPTIONAL_GROUPS = ("/tracer", "/measurement", "/calibration", "/reconstruction")
ORDERS = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")


def _fields() -> dict[str, Field]:
    fields = {}
    for line in _TABLE.split("\n"):
        if line:
            path, kind, dims, *rest = line.split()
            condition = rest[0].strip('"') if rest else ""
            fields[path] = Field(path, kind, () if dims == "1" else tuple(dims.split(",")), condition, tuple(rest[1:]))
    return fields


FIELDS = _fields()


def located(file: Hdf5, path: str) -> str:
    """``path`` or the older name under which the file has it; ``path`` itself if it has neither."""
    for name in (path, *FIELDS[path].older):
        if file.has(name):
            return name
    return path


def problems(file: Hdf5) -> list[str]:
    """Everything in which the file departs from the specification, one line each, the field's path first."""
    found: list[str] = []
    groups = [g for g in (*MANDATORY_GROUPS, *OPTIONAL_GROUPS) if file.has(g)]
    found += [f"{group}: the group is missing" for group in MANDATORY_GROUPS if group not in groups]
    if "/measurement" not in groups and "/reconstruction" not in groups:
        found.append("/measurement: the group is missing, and so is /reconstruction; one of them holds the data")
    if "/calibration" in groups and "/measurement" not in groups:
        found.append("/measurement: the group is missing, a calibration needs it")

    sizes = _variables(file)
    for field in FIELDS.values():
        group = "/" + field.path.split("/")[1] if field.path.count("/") > 1 else "/"
        if group != "/" and group not in groups:
            continue
        name = located(file, field.path)
        try:
            if file.has(name):
                found += _mismatch(file, field, name, sizes)
            elif field.condition == "" or (field.condition != "?" and _is_set(file, field.condition)):
                found.append(f"{field.path}: the field is missing")
        except DataError as error:
            found.append(f"{field.path}: {str(error).removeprefix(f'{file.path}: ')}")
    return found


def _is_set(file: Hdf5, flag: str) -> bool:
    try:
        return file.flag(located(file, f"/measurement/{flag}"), default=False)
    except DataError:
        return False


def _variables(file: Hdf5) -> dict[str, int]:
    """The sizes that the file itself declares; those it does not are learnt from the first field that has them."""
    sources = {
        "N": "/acquisition/numFrames",
        "J": "/acquisition/numPeriodsPerFrame",
        "C": "/acquisition/receiver/numChannels",
        "D": "/acquisition/drivefield/numChannels",
        "V": "/acquisition/receiver/numSamplingPoints",
    }
    sizes = {"3": 3, "2": 2}
    for variable, path in sources.items():
        try:
            sizes[variable] = file.integer(located(file, path))
        except DataError:
            continue
    if "V" in sizes and not _is_set(file, "isFrequencySelection"):
        sizes["K"] = sizes["V"] // 2 + 1
    try:
        if file.has("/measurement/isBackgroundFrame") and "N" in sizes:
            sizes["O"] = sizes["N"] - int(np.count_nonzero(file.array("/measurement/isBackgroundFrame", (None,))))
    except DataError:
        pass
    return sizes


def _mismatch(file: Hdf5, field: Field, name: str, sizes: dict[str, int]) -> list[str]:
    if field.path == "/measurement/data":
        return _data_mismatch(file, sizes)
    node = file.dataset(name)
    shape = node.shape
    if field.type == "Complex" and not _is_complex(node.dtype) and shape[-1:] == (2,):
        shape = shape[:-1]  # the older way: real and imaginary part along a last axis
    elif not _has_type(node.dtype, field.type):
        return [f"{field.path}: has type {node.dtype}, expected {field.type}"]
    if field.dims == () and shape in ((), (1,)):
        return _bad_value(file, field, name)
    if len(shape) != len(field.dims):
        return [f"{field.path}: has shape {shape}, expected {_wanted(field.dims, sizes)}"]
    for n, variable in zip(shape, field.dims, strict=True):
        if sizes.setdefault(variable, n) != n:
            return [f"{field.path}: has shape {shape}, expected {_wanted(field.dims, sizes)}"]
    return []


def _data_mismatch(file: Hdf5, sizes: dict[str, int]) -> list[str]:
    node = file.dataset("/measurement/data")
    fourier = _is_set(file, "isFourierTransformed")
    shape = node.shape
    if not (_has_type(node.dtype, "Float") or _has_type(node.dtype, "Int") or _is_complex(node.dtype)):
        return [f"/measurement/data: has type {node.dtype}, expected numbers"]
    if fourier and not _is_complex(node.dtype) and shape[-1:] == (2,):
        shape = shape[:-1]
    elif fourier != _is_complex(node.dtype):
        what = "complex" if fourier else "real"
        return [f"/measurement/data: has type {node.dtype}, expected {what} numbers (isFourierTransformed)"]
    last = "K" if fourier else "V"
    dims = ("J", "C", last, "N") if _is_set(file, "isFastFrameAxis") else ("N", "J", "C", last)
    if _is_set(file, "isSparsityTransformed"):
        return []  # B + E frames, with B known only to the transform
    if len(shape) != 4 or any(sizes.setdefault(v, n) != n for v, n in zip(dims, shape, strict=True)):
        return [f"/measurement/data: has shape {shape}, expected {_wanted(dims, sizes)}"]
    return []


def _bad_value(file: Hdf5, field: Field, name: str) -> list[str]:
    if field.type == "Flag":
        file.flag(name)
    elif field.path == "/version" and not file.text(name).startswith("2."):
        return [f"/version: is {file.text(name)!r}, expected 2.x"]
    elif field.path.endswith("/order") and file.text(name) not in ORDERS:
        return [f"{field.path}: is {file.text(name)!r}, expected one of {', '.join(ORDERS)}"]
    return []


def _wanted(dims: tuple[str, ...], sizes: dict[str, int]) -> str:
    if not dims:
        return "a scalar"
    return "(" + ", ".join(v if v.isdigit() else f"{v}={sizes.get(v, '?')}" for v in dims) + ")"


def _is_complex(dtype: Any) -> bool:
    return dtype.kind == "c" or (dtype.names is not None and len(dtype.names) == 2)


def _has_type(dtype: Any, kind: str) -> bool:
    if kind == "String":
        return h5py.check_string_dtype(dtype) is not None
    if kind == "Complex":
        return _is_complex(dtype)
    kinds = {"Float": "f", "Int": "iu", "Flag": "iub", "Number": "iuf"}
    return dtype.kind in kinds[kind] or (kind == "Number" and _is_complex(dtype))
