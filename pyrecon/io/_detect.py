"""What a file is, from its content alone."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pyrecon._errors import DataError
from pyrecon.io._arrays import KSPACE, MATLAB_HDF5, NPY, open_arrays
from pyrecon.io._bart import header_of
from pyrecon.io._files import PathLike, existing_file, one_line
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._matlab import SIGNATURE, find_struct, outline_matlab, read_matlab
from pyrecon.io._npz import damage

_HDF5 = b"\x89HDF\r\n\x1a\n"
_LOOKED_FOR = (
    "HDF5 (MDF, ISMRMRD, fastMRI, Data Exchange, pyrecon sinogram or image), Siemens twix, MATLAB, NumPy (NPY, NPZ), "
    "BART (a header of '# Dimensions' beside its .cfl), NIfTI, PNG, DICOM"
)


def detect(path: PathLike) -> str:
    """The kind of a file by its content, never by its extension; BART's samples, bare numbers, by the header beside.

    One of ``"mdf-measurement"``, ``"mdf-system-matrix"``, ``"mdf-reconstruction"``, ``"ismrmrd"``, ``"fastmri"``,
    ``"data-exchange"``, ``"pyrecon-image"`` (HDF5), ``"sinogram"`` (HDF5 or NPZ), ``"htc"`` (MATLAB), ``"twix"``,
    ``"bart"``, ``"kspace-array"`` (NPY; NPZ with ``kspace``; MATLAB with that or one complex array), ``"nifti"``,
    ``"npz"``, ``"png"``, ``"dicom"``. Raises DataError saying what was looked for if it is none of them.
    """
    if header_of(path) is not None:
        return "bart"
    path = existing_file(path)
    with path.open("rb") as file:
        head = file.read(2**14)
        if _has_hdf5_signature(path, head):
            return "kspace-array" if head.startswith(MATLAB_HDF5) and _holds_kspace(path) else _hdf5_kind(path)
    kind = _kind_of_bytes(path, head)
    if kind is None:
        shown = " ".join(f"{byte:02x}" for byte in head[:8])
        raise DataError(f"{path}: unknown format (it begins with {shown}); looked for {_LOOKED_FOR}")
    return kind


def _has_hdf5_signature(path: Path, head: bytes) -> bool:
    """At byte 0, or after a user block of 512, 1024, 2048, ... bytes; a signature cut off or damaged is not one."""
    if head.startswith(_HDF5):
        return True
    return any(head[start : start + 8] == _HDF5 for start in (512, 1024, 2048, 4096, 8192))


def _hdf5_kind(path: Path) -> str:
    with Hdf5(path) as file:
        if file.has("/version") and any(file.has(f"/{g}") for g in ("measurement", "calibration", "reconstruction")):
            # Some writers leave an empty calibration group, or one with the sample's size alone, in measurements.
            if any(file.has(f"/calibration/{name}") for name in ("size", "method", "positions", "fieldOfView")):
                return "mdf-system-matrix"
            return "mdf-measurement" if file.has("/measurement") else "mdf-reconstruction"
        if file.has("/pyrecon") and file.has("/image"):
            return "pyrecon-image"
        beside = ("ismrmrd_header", "mask", "reconstruction_rss", "reconstruction_esc")
        if file.has("/kspace") and any(file.has(f"/{name}") for name in beside):
            return "fastmri"
        if file.has("/sinogram") and file.has("/beam"):
            return "sinogram"
        if file.has("/exchange/data"):
            return "data-exchange"
        for name in file.names("/"):
            if file.has(f"/{name}/xml") and file.has(f"/{name}/data"):
                return "ismrmrd"
        names = ", ".join(file.names("/")[:8]) or "nothing"
    raise DataError(
        f"{path}: an HDF5 file of unknown layout (it holds {names}); looked for MDF (/version and /measurement), "
        "ISMRMRD (a group with xml and data), fastMRI (/kspace and a header or a mask), Data Exchange "
        "(/exchange/data), a pyrecon sinogram (/sinogram and /beam), a pyrecon image and MATLAB 7.3 with k-space"
    )


def _kind_of_bytes(path: Path, head: bytes) -> str | None:
    if head[:4] == b"PK\x03\x04":
        return _npz_kind(path)
    if head.startswith(NPY):
        return "kspace-array"
    if head.startswith(SIGNATURE):
        variables = outline_matlab(path)
        if any(known.is_struct for known in variables.values()) and find_struct(read_matlab(path)) is not None:
            return "htc"
        if _holds_kspace(path):
            return "kspace-array"
        raise DataError(
            f"{path}: a MATLAB file of unknown layout (it holds {', '.join(variables) or 'nothing'}); looked for a "
            "struct with sinogram and parameters (Helsinki Tomography Challenge), or k-space: a variable kspace or one "
            "complex array"
        )
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path, "rb") as file:
                head = file.read(540)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: cannot be decompressed ({one_line(error)}); it is truncated or corrupted"
            ) from error
        return "nifti" if _is_nifti(head) else None
    if _is_nifti(head):
        return "nifti"
    if head[128:132] == b"DICM":
        return "dicom"
    return "twix" if _is_twix(head) else None


def _npz_kind(path: Path) -> str:
    with damage(path, "NPZ"), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    if {"sinogram", "beam"} <= names:
        return "sinogram"
    is_kspace = "pyrecon" not in names and not {name.lower() for name in names}.isdisjoint(KSPACE)
    return "kspace-array" if is_kspace else "npz"


def _holds_kspace(path: Path) -> bool:
    """An array of that name, or a complex one that no other can be mistaken for."""
    arrays = open_arrays(path)
    complex_ones = [held for held in arrays.held.values() if held.dtype.kind == "c" and len(held.shape) > 1]
    return arrays.called(KSPACE) is not None or len(complex_ones) == 1


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:12] == b"n+2\0\r\n\x1a\n"


def _is_twix(head: bytes) -> bool:
    """A table of one to 64 measurements (VD and later), or a protocol whose first part has a name (VB)."""
    if len(head) < 48:
        return False
    first, count = (int(v) for v in np.frombuffer(head[:8], "<u4"))
    if first < 10_000 and 1 <= count <= 64 and len(head) >= 160:
        offset = int(np.frombuffer(head[16:24], "<u8")[0])
        return offset >= 8 + 152 * count and offset % 8 == 0 and offset < 2**24
    name = head[8:40].split(b"\0")[0]
    return first >= 10_000 and 1 <= count <= 64 and name in (b"Config", b"Meas", b"Dicom", b"MeasYaps", b"Phoenix")
