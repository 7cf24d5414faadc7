"""Reconstructed images on disk: NIfTI, NPZ, HDF5 and PNG, each with the story of how the image was made inside.

Every format carries one JSON text: grid, spacing, method, parameters, report, labels and versions. NIfTI holds it in a
header extension, so that one file stays one file; PNG in a text chunk; NPZ and HDF5 beside the image.
"""

from __future__ import annotations

import gzip
import json
import math
import platform
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon._plain import plain
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.data.raw import Grid
from pyrecon.io._detect import detect
from pyrecon.io._files import PathLike, check_memory, one_line, written_whole
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._npz import damage, read_npy

__all__ = ["FORMATS", "Result", "read_result", "write_result"]

FORMATS = (".nii", ".nii.gz", ".npz", ".h5", ".hdf5", ".png")
_KEY = "pyrecon"
_MOST_PIXELS = 2**28
_MOST_EXPANSION = 1100  # deflate's, for masks and the like


@dataclass(frozen=True)
class Result:
    """An image and how it came about.

    Attributes
    ----------
    image
        ``(..., *grid.shape)`` real or complex; leading axes are frames, slices or contrasts. Without a grid two axes
        are of space, with an affine three.
    grid
        Shape, spacing and centre of the trailing axes, in metres; None if unknown.
    labels
        One text per entry of the leading axes, if any.
    parameters
        What the method ran with. Values that JSON lacks are written as :func:`pyrecon._plain.plain` does.
    report
        What the reconstruction says about itself: a :class:`pyrecon.report.Report` or a dict; read back as a dict.
    versions
        Of pyrecon and what it ran on; filled in on writing.
    affine
        ``(4, 4)``: from voxel numbers (x, y, z), the trailing axes backwards, to millimetres towards right, anterior
        and superior; None where only the grid is known.
    placed
        Whether the centre of ``grid`` and its axes mean anything. If not, NIfTI says so (``sform_code`` 0).
    """

    image: NDArray[Any]
    grid: Grid | None = None
    method: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    report: Any = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    affine: NDArray[np.float64] | None = None
    placed: bool = True


def write_result(path: PathLike, result: Result, *, window: tuple[float, float] | None = None) -> None:
    """Write an image in the format that the extension names (``FORMATS``), whole or not at all.

    NIfTI and PNG store the magnitude of a complex image, NPZ and HDF5 the complex values. NIfTI axes are x, y, z, then
    the leading axes, in mm by ``affine`` where there is one, else with ``grid.center`` as origin. PNG shows all images
    side by side, with intensities ``window = (black, white)``, by default from 0 (or the minimum, if negative) to the
    99.9th percentile.

    Raises
    ------
    ValueError
        for an unknown extension, an image that does not fit the grid, or a window for a format other than PNG.
    """
    kind = _kind(path)
    image = np.asarray(result.image)
    _check_image(image, result.grid)
    axes = _spatial(result, image.ndim)
    if result.affine is not None and not _places(result.affine):
        raise ValueError(
            f"affine: {np.asarray(result.affine).tolist()}, expected an invertible (4, 4) of finite numbers"
        )
    if window is not None and (kind != ".png" or not window[0] < window[1]):
        raise ValueError(f"window: got {window} for {kind}, expected (black, white), black < white, and a .png file")
    story = _story(result, image)
    if kind in (".nii", ".nii.gz", ".png") and np.iscomplexobj(image):
        image = np.abs(image)
        story["stored"] = "magnitude"
    with written_whole(path) as temporary:
        if kind in (".nii", ".nii.gz"):
            _write_nifti(temporary, image, axes, result, story)
        elif kind == ".npz":
            np.savez_compressed(temporary, image=image, **{_KEY: _json_array(story)})  # type: ignore[arg-type]
        elif kind == ".png":
            _write_png(temporary, image, result.grid, story, window)
        else:
            with h5py.File(temporary, "w") as file:
                file.create_dataset("image", data=image, compression="gzip" if image.size else None)
                file[_KEY] = json.dumps(story)  # an attribute holds 64 KiB at most


def read_result(path: PathLike) -> Result:
    """Read an image back, from any of the formats and by content; a foreign NIfTI or NPZ image has an empty story.

    PNG gives the 8-bit picture. Raises DataError naming what does not fit.
    """
    kind, path = detect(path), Path(path)
    if kind == "png":
        image, story = _read_png(path)
    elif kind == "npz":
        image, story = _read_npz(path)
    elif kind == "pyrecon-image":
        with Hdf5(path) as hdf5:
            image, story = hdf5.array("/image"), _parsed(path, hdf5.text(f"/{_KEY}"))
    elif kind == "nifti":
        return _read_nifti(path)
    else:
        raise DataError(f"{path}: is a {kind} file, expected an image ({', '.join(FORMATS)})")
    return _result(path, image, story)


# ---- the story


def _kind(path: PathLike) -> str:
    name = Path(path).name.lower()
    for kind in sorted(FORMATS, key=len, reverse=True):
        if name.endswith(kind) and name != kind:
            return kind
    raise ValueError(f"{path}: the extension names no image format, expected one of {', '.join(FORMATS)}")


def _check_image(image: NDArray[Any], grid: Grid | None) -> None:
    if image.dtype.kind not in "biufc":
        raise ValueError(f"image: dtype {image.dtype}, expected numbers")
    axes = 2 if grid is None else len(grid.shape)
    if image.ndim < axes or image.size == 0 or (grid is not None and image.shape[-axes:] != grid.shape):
        wanted = "(..., H, W)" if grid is None else f"(..., {', '.join(map(str, grid.shape))})"
        raise ValueError(f"image: shape {image.shape}, expected {wanted}")


def _spatial(result: Result, axes: int) -> int:
    """How many of the trailing axes are those of space."""
    if result.grid is not None:
        return len(result.grid.shape)
    return 2 if result.affine is None else min(3, axes)


def _story(result: Result, image: NDArray[Any]) -> dict[str, Any]:
    from pyrecon import __version__

    entries = int(np.prod(image.shape[: image.ndim - _spatial(result, image.ndim)]))
    if result.labels and len(result.labels) != entries:
        raise ValueError(f"labels: got {len(result.labels)}, expected one for each of {entries} images")
    return {
        "method": result.method,
        "grid": None if result.grid is None else asdict(result.grid),
        "affine": None if result.affine is None else np.asarray(result.affine).tolist(),
        "placed": result.placed,
        "shape": list(image.shape),
        "parameters": plain(result.parameters),
        "report": plain(result.report),
        "labels": list(result.labels),
        "versions": result.versions
        or {"pyrecon": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _json_array(story: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(story).encode(), dtype=np.uint8)


def _parsed(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        story = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: the description of the image is no JSON ({one_line(error)}); the file is corrupted"
        ) from error
    return story if isinstance(story, dict) else {}


def _places(affine: Any) -> bool:
    """Whether every voxel has a place of its own by it."""
    known = np.asarray(affine, dtype=np.float64)
    if known.shape != (4, 4) or not (np.abs(known) <= 1e4 * LONGEST).all() or (known[3] != (0, 0, 0, 1)).any():
        return False
    sizes = np.linalg.norm(known[:3, :3], axis=0)
    return bool(sizes.min() >= 1e3 * SHORTEST and np.linalg.matrix_rank(known[:3, :3] / sizes) == 3)


def _result(
    path: Path,
    image: NDArray[Any],
    story: dict[str, Any],
    grid: Grid | None = None,
    affine: NDArray[np.float64] | None = None,
) -> Result:
    """The image with its story, of which only what has the right type is kept."""

    def texts(value: Any) -> dict[str, str]:
        return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}

    def fields(value: Any) -> dict[str, Any]:
        return value if isinstance(value, dict) else {}

    labels, stored = story.get("labels"), story.get("affine")
    if stored is not None:
        try:
            affine = np.array(stored, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            affine = None
        if affine is None or not _places(affine):
            raise DataError(f"{path}: the affine in the image's description is no invertible (4, 4) of numbers")
    return Result(
        image=image,
        grid=_stored_grid(path, story.get("grid"), image.shape, bool(story.get("tiled"))) or grid,
        method=str(story.get("method", "")),
        parameters=fields(story.get("parameters")),
        report=fields(story.get("report")),
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        versions=texts(story.get("versions")),
        affine=affine,
        placed=story.get("placed") is not False,
    )


def _stored_grid(path: Path, stored: Any, shape: Sequence[int], tiled: bool) -> Grid | None:
    if stored is None:
        return None
    try:
        size = tuple(int(n) for n in stored["shape"])
        spacing, center = (tuple(float(v) for v in stored[key]) for key in ("spacing", "center"))
        if not (len(size) == len(spacing) == len(center) and min(spacing) > 0):
            raise ValueError("lengths differ")
        if not (min(spacing) >= SHORTEST and max(*spacing, *map(abs, center)) <= LONGEST):
            raise ValueError(f"lengths beyond {SHORTEST:g} to {LONGEST:g} m")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: the grid in the image's description cannot be used ({one_line(error)})") from error
    if not tiled and tuple(shape[-len(size) :]) != size:
        raise DataError(f"{path}: the image has shape {tuple(shape)}, expected it to end in {size} as its grid says")
    return Grid(size, spacing, center)


# ---- NIfTI


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise MissingDependency("nibabel", "io", "reading and writing NIfTI") from None
    return nibabel


def _write_nifti(
    path: Path,
    image: NDArray[Any],
    axes: int,
    result: Result,
    story: dict[str, Any],
) -> None:
    nib = _nibabel()
    grid, affine = result.grid, result.affine
    known = affine is not None or (grid is not None and result.placed)
    if axes > 3 or image.ndim - axes > 4:
        raise ValueError(f"image: shape {image.shape}, NIfTI holds three spatial axes and up to four others")
    if image.dtype == bool:
        image = image.astype(np.uint8)
    elif image.dtype in (np.int64, np.uint64, np.float16):
        image = image.astype(np.float64 if image.dtype != np.float16 else np.float32)
    # (frames, z, y, x) becomes (x, y, z, frames); a slice is one voxel deep.
    lead = image.ndim - axes
    data = np.transpose(image, [*range(image.ndim - 1, lead - 1, -1), *range(lead)])
    data = data.reshape(data.shape[:axes] + (1,) * (3 - axes) + data.shape[axes:])
    if affine is None:
        affine = np.eye(4)
        for column, axis in enumerate(reversed(range(axes if grid is not None else 0))):
            assert grid is not None
            step = 1e3 * grid.spacing[axis]
            affine[column, column] = step
            affine[column, 3] = 1e3 * grid.center[axis] - step * (grid.shape[axis] - 1) / 2
    stored = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    stored.header.set_xyzt_units("mm", "unknown")
    stored.set_sform(affine, code="scanner" if known else "unknown")
    stored.set_qform(affine, code="scanner" if known else "unknown")
    stored.header["descrip"] = f"pyrecon {story['method']}".encode("ascii", "replace")[:79]
    stored.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps({_KEY: story}).encode()))
    nib.save(stored, path)


def _read_nifti(path: Path) -> Result:
    nib = _nibabel()
    content = _nifti_bytes(path)
    try:
        nib.imageglobals.logger.disabled = True  # it prints what it mends in damaged headers
        second = content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 540: NIfTI-2
        stored = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)
        declared = int(np.prod(stored.shape, dtype=object)) * stored.get_data_dtype().itemsize
        if declared > len(content):
            raise DataError(f"{path}: the image declares {declared} bytes, the file holds {len(content)}")
        data = np.asarray(stored.dataobj).copy()
        affine = np.asarray(stored.affine, dtype=float)
        placed = bool(stored.header["sform_code"] > 0 or stored.header["qform_code"] > 0)
        notes = [e.get_content() for e in stored.header.extensions if e.get_code() == 6]
    except DataError:
        raise
    except Exception as error:  # nibabel raises many kinds on damaged headers
        raise DataError(
            f"{path}: is not a readable NIfTI file ({one_line(error)}); it is truncated or corrupted"
        ) from error
    finally:
        nib.imageglobals.logger.disabled = False
    story: dict[str, Any] = {}
    for note in notes:
        text = note.decode(errors="replace") if isinstance(note, bytes) else str(note)
        if text.startswith(f'{{"{_KEY}"'):
            story = _parsed(path, text.rstrip("\0")).get(_KEY, {})
    if data.ndim < 2 or data.size == 0:
        raise DataError(f"{path}: an image of shape {data.shape}, expected two or more axes")
    if data.dtype.kind not in "biufc":
        raise DataError(f"{path}: an image of type {data.dtype}, expected numbers")
    data = data.reshape(data.shape + (1,) * (3 - data.ndim))
    spatial = data.shape[:3]
    image = np.ascontiguousarray(data.transpose([*range(3, data.ndim), 2, 1, 0]))
    shape = story.get("shape") if isinstance(story, dict) else None
    if isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape) and math.prod(shape) == image.size:
        return _result(path, image.reshape(shape), story)
    return _result(path, image, {}, _affine_grid(affine, spatial), affine if placed and _places(affine) else None)


def _affine_grid(affine: NDArray[np.float64], shape: tuple[int, ...]) -> Grid | None:
    """Voxel sizes and centre of a foreign image, whatever way its axes run; the centre is 0 if they run obliquely."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    center = affine[:3] @ [*(np.array(shape) - 1) / 2, 1]
    known = (sizes >= 1e3 * SHORTEST).all() and (np.abs([*sizes, *center]) <= 1e3 * LONGEST).all()
    if not known:
        return None
    if not np.allclose(np.abs(affine[:3, :3]), np.diag(sizes), atol=1e-3 * sizes.max()):
        center = np.zeros(3)
    return Grid(shape[::-1], tuple(float(v) / 1e3 for v in sizes[::-1]), tuple(float(v) / 1e3 for v in center[::-1]))


def _nifti_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        return path.read_bytes()
    # The header says how long the content must be, so a bomb is stopped at that length.
    try:
        with gzip.open(path, "rb") as file:
            head = file.read(540)
            size = _declared_size(head)
            check_memory(path, "the image", size, path.stat().st_size, _MOST_EXPANSION)
            return head + file.read(max(0, size - len(head)))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be decompressed ({one_line(error)}); it is truncated or corrupted") from error


def _declared_size(head: bytes) -> int:
    for order in ("<", ">"):
        if len(head) >= 348 and np.frombuffer(head[:4], f"{order}i4")[0] == 348:
            dims = np.frombuffer(head[40:56], f"{order}i2").astype(int)
            bits = int(np.frombuffer(head[72:74], f"{order}i2")[0])
            offset = float(np.frombuffer(head[108:112], f"{order}f4")[0])
        elif len(head) >= 540 and np.frombuffer(head[:4], f"{order}i4")[0] == 540:
            dims = np.frombuffer(head[16:80], f"{order}i8").astype(object)
            bits = int(np.frombuffer(head[14:16], f"{order}i2")[0])
            offset = float(np.frombuffer(head[168:176], f"{order}i8")[0])
        else:
            continue
        if not 0 <= int(dims[0]) <= 7 or not 0 <= offset < 2**40 or bits < 0:
            break
        return (
            int(offset) + int(np.prod([max(0, int(n)) for n in dims[1 : int(dims[0]) + 1]], dtype=object)) * bits // 8
        )
    return len(head)


# ---- NPZ


def _read_npz(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read without NumPy's pickle and without believing a size that the archive cannot hold."""
    with damage(path, "NPZ"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        arrays = [name for name in names if name.endswith(".npy") and name != f"{_KEY}.npy"]
        name = "image.npy" if "image.npy" in arrays else (arrays[0] if len(arrays) == 1 else None)
        if name is None:
            raise DataError(f"{path}: holds {', '.join(names[:8]) or 'nothing'}; expected an array called 'image'")
        image = read_npy(path, archive, name)
        if image.ndim < 2 or image.dtype.kind not in "biufc":
            raise DataError(
                f"{path}: image: {image.dtype} of shape {image.shape}, expected numbers on two or more axes"
            )
        story: dict[str, Any] = {}
        if f"{_KEY}.npy" in names:
            packed = read_npy(path, archive, f"{_KEY}.npy")
            story = _parsed(path, packed.tobytes().decode(errors="replace"))
    return image, story


# ---- PNG


def _pillow() -> Any:
    try:
        from PIL import Image, PngImagePlugin
    except ImportError:
        raise MissingDependency("Pillow", "io", "reading and writing PNG") from None
    return Image, PngImagePlugin


def _write_png(
    path: Path, image: NDArray[Any], grid: Grid | None, story: dict[str, Any], window: tuple[float, float] | None
) -> None:
    image_module, plugin = _pillow()
    tiles = image.reshape(-1, *image.shape[-2:]).astype(np.float64)
    finite = tiles[np.isfinite(tiles)]
    if window is None:
        low = min(0.0, float(finite.min())) if finite.size else 0.0
        high = float(np.percentile(finite, 99.9)) if finite.size else 0.0
        window = (low, max(high, float(np.nextafter(low, np.inf))))
    picture = _mosaic(np.nan_to_num(tiles, nan=window[0], posinf=window[1], neginf=window[0]), window[0])
    grey = np.rint(255 * np.clip((picture - window[0]) / (window[1] - window[0]), 0, 1)).astype(np.uint8)
    info = plugin.PngInfo()
    info.add_itxt(_KEY, json.dumps({**story, "window": list(window), "tiled": True}))
    extra: dict[str, Any] = {}
    if grid is not None and min(grid.spacing[-2:]) > 1 / 2**31:  # whole pixels a metre, of 31 bits
        extra["dpi"] = tuple(0.0254 / grid.spacing[axis] for axis in (-1, -2))
    image_module.fromarray(grey).save(path, format="PNG", pnginfo=info, **extra)


def _mosaic(tiles: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
    """Images side by side in an almost square field, one pixel apart."""
    count, height, width = tiles.shape
    columns = min(count, int(np.ceil(np.sqrt(count * height / width))))
    rows = -(-count // columns)
    field_ = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), fill)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        field_[top : top + height, left : left + width] = tile
    return field_


def _read_png(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    image_module, _ = _pillow()
    with damage(path, "PNG"), image_module.open(path, formats=["PNG"]) as picture:
        if picture.width * picture.height > _MOST_PIXELS:
            raise DataError(f"{path}: {picture.width} x {picture.height} pixels, expected at most {_MOST_PIXELS}")
        image = np.asarray(picture.convert("L"))
        text = picture.text.get(_KEY)
    return image, _parsed(path, text)
