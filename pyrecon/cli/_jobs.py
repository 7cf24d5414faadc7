"""Reconstructions of each modality that are ready to run, made from what the command line was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from pyrecon._errors import DataError
from pyrecon.cli import _settings
from pyrecon.cli._maps import draw_maps, maps_result
from pyrecon.data.placement import Stack, Volumes, volumes
from pyrecon.data.raw import Grid, MRIScan
from pyrecon.io._files import check_room
from pyrecon.io.results import Result
from pyrecon.report import Report

if TYPE_CHECKING:
    from pyrecon.models.mri.mapping import Maps

Progress = Callable[[float, int], None]


def silent(done: float, total: int) -> None:
    pass


_WORKING = 4  # images of a slice that any method of CT holds besides the result


def check_device(device: str) -> None:
    try:
        torch.empty(1, device=device).cpu()  # meta holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device: {device!r} is not usable here: {str(error).splitlines()[0]}") from error


@dataclasses.dataclass(frozen=True)
class Job:
    """A reconstruction that is ready to run.

    ``facts`` say what will be done; ``run(count, progress)`` reconstructs the first ``count`` images (all for None),
    and calls ``progress`` with how many are done and how many there are, if it ``reports``.
    """

    facts: dict[str, str]
    method: Any
    images: int
    memory: int
    run: Callable[[int | None, Progress], tuple[Any, Report]]
    reports: bool
    grid: Grid | None
    labels: tuple[str, ...]

    counted: ClassVar[str] = "images"

    def result(self, found: Any, report: Report) -> Result:
        """What is written, of what ``run`` found."""
        told = report.to_dict()
        return Result(found.cpu().numpy(), self.grid, report.method, told["parameters"], told, self.labels)

    def draw(self, path: Path, found: Any, heading: str, most: int = 12) -> None:
        """A figure of (at most ``most``) images."""
        from pyrecon import plotting

        stack = found.cpu().reshape(-1, *found.shape[-2:]).numpy()
        chosen = np.unique(np.linspace(0, len(stack) - 1, min(most, len(stack))).round().astype(int))
        labels = self.labels or tuple(f"image {i}" for i in range(len(stack)))
        panels = [plotting.Panel(stack[i], title=labels[i] if len(stack) > 1 else "") for i in chosen]
        columns = min(4, len(panels))
        rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
        spacing = None if self.grid is None else [(self.grid.spacing[-2], self.grid.spacing[-1])] * len(rows)
        size = 2.2 if columns > 1 else 4.5
        plotting.save(plotting.figure(rows, spacing=spacing, heading=heading, panel_size=size), path)


@dataclasses.dataclass(frozen=True)
class MRIJob(Job):
    """A reconstruction of a scan's images, written as volumes: ``(V, Z, H, W)``, or ``(Z, H, W)`` if it is one.

    ``run`` leaves the coil maps that it used or found in ``maps``, if there were any.
    """

    volumes: Volumes
    maps: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def result(self, found: Any, report: Report) -> Result:
        order = self.volumes.order
        images, labels = found.cpu().numpy()[order], self.volumes.labels
        if len(order) == 1:
            images, labels = images[0], ()
        return self._written(images, report, report.method, labels)

    def maps_result(self, report: Report) -> Result:
        """What ``--maps-out`` writes: ``(C, Z, H, W)`` of one volume, else ``(S | 1, C, 1, H, W)``."""
        maps, order = self.maps[0].numpy(), self.volumes.order
        of_volume = len(order) == 1 and len(maps) == order.size
        maps = maps[order[0]].swapaxes(0, 1) if of_volume else maps[:, :, None]
        return self._written(maps, report, f"coil maps of {report.method}", (), placed=of_volume)

    def _written(
        self, images: Any, report: Report, method: str, labels: tuple[str, ...], *, placed: bool = True
    ) -> Result:
        report.details["geometry"] = self.volumes.note
        told = report.to_dict()
        grid = placed_grid(self.grid, images.shape[-3], self.volumes)
        affine = self.volumes.affine if placed else None
        return Result(images, grid, method, told["parameters"], told, labels, affine=affine, placed=False)


@dataclasses.dataclass(frozen=True)
class VolumesJob(MRIJob):
    """Of volumes with partitions in k-space, which are reconstructed as a whole: ``images`` counts these."""

    counted: ClassVar[str] = "volumes"


@dataclasses.dataclass(frozen=True)
class MapsJob(Job):
    """A reconstruction of maps: ``images`` counts slices."""

    counted: ClassVar[str] = "slices"
    volumes: Volumes

    def result(self, found: Maps, report: Report) -> Result:
        order = self.volumes.order
        if len(order) > 1:  # slices at several times, one after another: no volume that lies anywhere
            return dataclasses.replace(maps_result(found, report, self.grid), placed=False)
        grid = placed_grid(self.grid, order.shape[1], self.volumes)
        report.details["geometry"] = self.volumes.note
        result = maps_result(found.of_slices(order[0]), report, grid, self.volumes.affine)
        return dataclasses.replace(result, placed=False)

    def draw(self, path: Path, found: Maps, heading: str, most: int = 4) -> None:
        assert self.grid is not None
        factor = next(name for name, unit in found.units.items() if unit == "a.u.")
        spacing = (self.grid.spacing[-2], self.grid.spacing[-1])
        image = (f"|{factor}|", found.values[factor])
        draw_maps(path, found, "T1", heading, image=image, spacing=spacing, labels=self.labels, most=most)


def placed_grid(grid: Grid | None, slices: int, volumes: Volumes) -> Grid:
    """That of a volume, with the distance between its slices where it is known."""
    assert grid is not None
    thickness = grid.spacing[0] if volumes.affine is None else 1e-3 * float(np.linalg.norm(volumes.affine[:3, 2]))
    return Grid((slices, *grid.shape[-2:]), (thickness, *grid.spacing[-2:]), (0.0, 0.0, 0.0))


def volumes_of(scan: MRIScan, entries: Any, shape: tuple[int, int]) -> Volumes:
    """Of the scan's entries of these numbers."""
    y, x, thickness = scan.field_of_view
    count = len(entries)
    stack = Stack(np.zeros(count, np.int64), np.arange(count)) if scan.stack is None else scan.stack.some(entries)
    placement = None if scan.placement is None else scan.placement.some(entries)
    return volumes(placement, stack, shape, (y / shape[0], x / shape[1], thickness))


@dataclasses.dataclass(frozen=True)
class ArrayOptions:
    """What the command line says about k-space that is a bare array: lengths in millimetres with commas between."""

    axes: str | None = None
    mask: Path | None = None
    fov: str | None = None

    def given(self) -> list[str]:
        """The options that were, as they are written."""
        return [f"--{name}" for name, value in dataclasses.asdict(self).items() if value is not None]


def read_mri(file: Path, options: ArrayOptions) -> MRIScan:
    """A scan of any format; DataError where an option is no such thing."""
    from pyrecon import io
    from pyrecon.io.kspace_array import read_kspace_array

    if not options.given():
        found = io.read(file)
        assert isinstance(found, MRIScan)
        return found
    try:
        lengths = None if options.fov is None else [1e-3 * float(mm) for mm in options.fov.split(",")]
    except ValueError:
        raise DataError(f"--fov: {options.fov!r}, expected millimetres with commas between, e.g. 220,220,5") from None
    try:
        return read_kspace_array(file, axes=options.axes, mask=options.mask, field_of_view=lengths)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"--axes, --fov: {error}") from None


@dataclasses.dataclass(frozen=True)
class MRIOptions:
    """What the command line says about an MRI scan."""

    arrays: ArrayOptions = dataclasses.field(default_factory=ArrayOptions)
    coils: int | None = None
    partial_fourier: str | None = None


def mri_job(file: Path, kind: str, method: str | None, settings: list[str], options: MRIOptions, device: str) -> Job:
    from pyrecon.data.mri import first_slices, image_height, readout_width
    from pyrecon.models.mri import LEARNED, MAPPING, METHODS, default_method, reconstruct_with_maps
    from pyrecon.models.mri.partial_fourier import check_way

    scan, coils = read_mri(file, options.arrays), options.coils
    have = scan.kspace.shape[1]
    if coils is not None and coils > have:
        raise DataError(f"--coils: {coils}, expected at most the {have} that {file} has")
    if method in MAPPING:
        if options.partial_fourier is not None:
            raise DataError(f"--partial-fourier: is for images, {method} makes maps")
        return _maps_job(file, kind, scan, _settings.make(MAPPING, method, settings), device, coils)
    chosen = default_method(scan) if method is None and not settings else None
    if chosen is None:
        names = {v: k for k, v in METHODS.items()}
        chosen = _settings.make(METHODS | LEARNED | MAPPING, method or names[type(default_method(scan))], settings)
    way: Any = options.partial_fourier or "zero"
    try:
        check_way(way, chosen)
    except ValueError as error:
        raise DataError(f"--partial-fourier: {str(error).removeprefix('partial_fourier: ')}") from error
    count, _, height, width = scan.kspace.shape
    each = scan.encoded_partitions
    images = f"{count} images" if each == 1 else f"{count // each} volumes of {each} partitions"
    facts = {
        "file": f"{file.name}: {kind}, {images}, {have} coils, {height} x {width} samples "
        f"({scan.mask.mean():.0%} sampled, readout oversampling {scan.readout_oversampling:g})",
        "method": chosen.name,
        "settings": ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(chosen).items()),
    }
    # k-space before and after removal of the oversampling, maps, and a few coil stacks of working memory.
    memory = 8 * scan.kspace.size + 5 * 8 * count * (coils or have) * height * readout_width(scan)
    height, width = image_height(scan), readout_width(scan)
    y, x, thickness = scan.field_of_view
    grid = Grid((count, height, width), (thickness, y / height, x / width), (0.0, 0.0, 0.0))

    def run(first: int | None, progress: Progress) -> tuple[torch.Tensor, Report]:
        part = scan if first is None else first_slices(scan, first * each)
        images, maps, report = reconstruct_with_maps(part, chosen, coils=coils, partial_fourier=way, device=device)
        report.details |= {name: scan.metadata[name] for name in ("axes", "sampled") if name in scan.metadata}
        found[:] = [] if maps is None else [maps]
        return images, report

    found: list[torch.Tensor] = []
    arranged = volumes_of(scan, np.arange(count), (height, width))
    made = MRIJob if each == 1 else VolumesJob
    return made(facts, chosen, count // each, memory, run, False, grid, scan.labels, arranged, found)


def _maps_job(file: Path, kind: str, scan: MRIScan, chosen: Any, device: str, coils: int | None) -> Job:
    from pyrecon.data.contrasts import contrasts_of
    from pyrecon.data.mri import image_height, readout_width, some_entries
    from pyrecon.models.mri import reconstruct_maps

    series = contrasts_of(scan, chosen.setting, chosen.besides)
    slices, images = series.entries.shape
    _, have, height, width = scan.kspace.shape
    facts = {
        "file": f"{file.name}: {kind}, {slices} slices of {images} images, {have} coils, {height} x {width} samples "
        f"({scan.mask.mean():.0%} sampled, readout oversampling {scan.readout_oversampling:g})",
        chosen.setting: ", ".join(f"{v:.6g}" for v in series.values) + " s",
        "method": chosen.title,
        "settings": ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(chosen).items()),
    }
    # k-space before and after whitening, maps of the coils and of the tissue, a few coil stacks of working memory.
    pixels = slices * height * readout_width(scan)
    memory = 8 * scan.kspace.size * 2 + 8 * pixels * ((coils or have) + 16) + 5 * min(8 * scan.kspace.size, 2**29)
    height, width = image_height(scan), readout_width(scan)
    y, x, thickness = scan.field_of_view
    grid = Grid((slices, height, width), (thickness, y / height, x / width), (0.0, 0.0, 0.0))

    def run(first: int | None, progress: Progress) -> tuple[Maps, Report]:
        part = scan if first is None else some_entries(scan, series.entries[:first].ravel())
        return reconstruct_maps(part, chosen, coils=coils, device=device, progress=progress)

    arranged = volumes_of(scan, series.entries[:, 0], (height, width))
    return MapsJob(facts, chosen, slices, memory, run, True, grid, series.labels, arranged)


@dataclasses.dataclass(frozen=True)
class CTOptions:
    """What the command line says about a CT scan: pixel sizes in millimetres, views as ``START:STOP:STEP``."""

    views: str | None = None
    shape: tuple[int, int] | None = None
    pixel_size: float | None = None
    detector_pixel: float | None = None
    center: float | None = None
    rows: str | None = None

    def given(self) -> list[str]:
        """The options that were, as they are written."""
        return [f"--{name.replace('_', '-')}" for name, value in dataclasses.asdict(self).items() if value is not None]


def ct_job(file: Path, kind: str, method: str | None, settings: list[str], options: CTOptions, device: str) -> Job:
    from pyrecon.data.ct import CTScan, coverage, on_grid, some_slices, some_views
    from pyrecon.io import read
    from pyrecon.io.data_exchange import read_data_exchange
    from pyrecon.models.ct import LEARNED, METHODS, default_method, reconstruct_ct

    if kind == "data-exchange":
        pixel = None if options.detector_pixel is None else 1e-3 * options.detector_pixel
        rows = _slice("--rows", options.rows)
        scan = read_data_exchange(file, pixel_size=pixel, center=options.center, rows=rows)
    else:
        own = {"--detector-pixel", "--center", "--rows"} & set(options.given())
        if own:
            raise DataError(f"{', '.join(sorted(own))}: for Data Exchange files, {file} is {kind} and says it itself")
        found = read(file)
        assert isinstance(found, CTScan)
        scan = found
    views = _slice("--views", options.views)
    if views is not None:
        try:
            scan = some_views(scan, views)
        except ValueError as error:
            raise DataError(f"--views: {options.views} leaves nothing of {scan.geometry.views} views") from error
    known: dict[str, Any] = METHODS | LEARNED
    if method is None and not settings:
        chosen: Any = default_method(scan)
    else:
        names = {v: k for k, v in METHODS.items()}
        chosen = _settings.make(known, method or names[type(default_method(scan))], settings)
    size = None if options.pixel_size is None else 1e-3 * options.pixel_size
    shape = chosen.shape if options.shape is None and size is None else options.shape
    try:
        geometry = on_grid(scan.geometry, shape, size)
    except ValueError as error:
        raise DataError(f"--shape, --pixel-size: {error}") from error
    scan = dataclasses.replace(scan, geometry=geometry)
    slices, count, n_det = scan.sinogram.shape
    height, width = geometry.shape
    check_room(f"{file}: an image of {height} x {width} pixels", 4 * height * width * (slices + _WORKING))
    facts = {
        "file": f"{file.name}: {kind}, {slices} slices, {count} views of {n_det} detector pixels",
        "coverage": str(coverage(geometry)),
        "image": f"{geometry.shape[0]} x {geometry.shape[1]} pixels of "
        + " x ".join(f"{1e3 * p:.4g}" for p in geometry.pixel_size)
        + " mm",
        **{name: str(value) for name, value in scan.metadata.items() if name != "warnings"},
        "method": chosen.name,
        "settings": ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(chosen).items()),
    }
    # The sinogram, the rays in double, and what solvers hold: about eight images of each slice.
    memory = 4 * scan.sinogram.size + 25 * count * n_det + 4 * 8 * slices * geometry.shape[0] * geometry.shape[1]

    def run(first: int | None, progress: Progress) -> tuple[torch.Tensor, Report]:
        part = scan if first is None else some_slices(scan, first)
        said = None if chosen.shape is None else geometry.shape  # that of the options, not the method's
        return reconstruct_ct(part, chosen, shape=said, device=device)

    return Job(facts, chosen, slices, memory, run, False, scan.grid, scan.labels)


def _slice(option: str, text: str | None) -> slice | None:
    """``START:STOP:STEP`` with any of them left out; a number alone is START."""
    if text is None:
        return None
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or (len(parts) == 3 and parts[2] is not None and parts[2] < 1):
        raise DataError(f"{option}: {text!r}, expected START:STOP:STEP, e.g. 0:90 or ::4")
    if len(parts) == 1:
        if parts[0] is None:
            raise DataError(f"{option}: {text!r}, expected START:STOP:STEP, e.g. 0:90 or ::4")
        return slice(parts[0], parts[0] + 1 or None)
    return slice(*parts)
