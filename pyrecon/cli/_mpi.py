"""Reconstructions of magnetic particle imaging that are ready to run: images, and volumes with their pictures."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.cli import _settings
from pyrecon.cli._jobs import Job, Progress
from pyrecon.data.mpi import MPISystem
from pyrecon.data.raw import Grid, MPICalibration, MPIScan
from pyrecon.io._files import check_room
from pyrecon.io.results import Result
from pyrecon.report import Report


@dataclasses.dataclass(frozen=True)
class MPIOptions:
    """What the command line says about an MPI scan."""

    average: int = 1
    average_periods: bool = False
    snr_threshold: float = 5.0
    band: tuple[float, float] = (0.0, float("inf"))
    upsample: int = 1
    denoise: bool = True

    def given(self) -> list[str]:
        """The options that are not at their defaults, as they are written."""
        return [
            f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]


@dataclasses.dataclass(frozen=True)
class MPIJob(Job):
    """A reconstruction of frames: images, or volumes of which slices and projections are drawn.

    ``axes`` names the grid's axes, ``affine`` says where its voxels lie in the scanner.
    """

    axes: str
    affine: NDArray[np.float64]

    def result(self, found: Any, report: Report) -> Result:
        return dataclasses.replace(super().result(found, report), affine=self.affine)

    def draw(self, path: Path, found: Any, heading: str, most: int = 12) -> None:
        assert self.grid is not None
        if len(self.grid.shape) != 3:
            super().draw(path, found, heading, most)
            return
        from pyrecon import plotting

        volumes = found.cpu().reshape(-1, *self.grid.shape).numpy()
        chosen = np.unique(np.linspace(0, len(volumes) - 1, min(most // 3, len(volumes))).round().astype(int))
        rows = [plotting.volume_panels(volumes[i], self.grid, self.axes) for i in chosen]
        titles = [self.labels[i] for i in chosen] if len(volumes) > 1 else ()
        plotting.save(plotting.figure(rows, heading=heading, row_titles=titles, panel_size=2.6), path)


def mpi_job(
    file: Path, system_matrix: Path, method: str | None, settings: list[str], options: MPIOptions, device: str
) -> MPIJob:
    from pyrecon import io
    from pyrecon.data.mpi import match_periods, prepare_frames, prepare_system
    from pyrecon.io import mdf
    from pyrecon.models.mpi import LEARNED, METHODS, UNTRAINED, Reconstructor

    chosen = _settings.make(METHODS | LEARNED | UNTRAINED, method or "hyb", settings)
    scan: MPIScan = mdf.read_measurement(file)
    if io.detect(system_matrix) != "mdf-system-matrix":
        raise DataError(f"{system_matrix}: is {io.detect(system_matrix)}, expected an MDF system matrix")
    calibration = mdf.read_system_matrix(system_matrix)
    count = scan.spectrum.shape[1]
    with warnings.catch_warnings(record=True) as caught:  # told with the rest, and in the report
        warnings.simplefilter("always")
        calibration, scan = match_periods(calibration, scan, average=options.average_periods)
        system = prepare_system(
            calibration, scan, snr_threshold=options.snr_threshold, band=options.band, denoise=options.denoise
        )
        frames = prepare_frames(system, scan, average=options.average)
    frames = dataclasses.replace(frames, notes=(*frames.notes, *dict.fromkeys(str(w.message) for w in caught)))
    del calibration
    rows, voxels, images = len(system.matrix), system.matrix.shape[1] * options.upsample**2, len(frames.y)
    # The matrix, its factor in double while it is made, and the data; what the solvers add is small against these.
    factor = 2 + 2 + 4 * min(rows, voxels) / max(rows, voxels) if chosen.factors else 1
    memory = int(4 * rows * voxels * (1 + factor)) + 4 * images * (rows + 6 * voxels)
    instead = "raise --snr-threshold, narrow --band" + ", or use -m art, which needs no factors" * chosen.factors
    check_room(f"system matrix: {rows} real rows x {voxels} voxels", memory, instead)
    if options.upsample > 1:
        system = system.upsampled(options.upsample)
    told = {"periods": scan.metadata["periods"]} if count > 1 else {}
    told["unit"] = _unit(system.calibration)
    channels = system.calibration.spectrum.shape[1]
    facts = {
        "file": f"{file.name}: MPI measurement, {len(scan.is_background)} frames, "
        f"{int(scan.is_background.sum())} of them background",
        "system": f"{system_matrix.name}: {rows // 2} complex rows of {channels} channels x {voxels} voxels "
        f"({' x '.join(map(str, system.grid.shape))})",
        **told,
        **_noise_of(system),
        "method": f"{chosen.name}",
        "settings": ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(chosen).items()),
    }

    def run(count: int | None, progress: Progress) -> tuple[torch.Tensor, Report]:
        std = None if frames.noise_std is None else frames.noise_std[:count]
        part = dataclasses.replace(frames, y=frames.y[:count], noise_std=std)
        images, report = Reconstructor(system, chosen, device=device)(part, progress=progress)
        report.details |= told
        return images, report

    labels = tuple(f"frame {i}" for i in range(images))
    axes = str(system.calibration.metadata.get("axes", "zyx"[-len(system.grid.shape) :]))
    affine = affine_of(system.grid, axes, system.calibration.metadata)
    return MPIJob(facts, chosen, images, memory, run, True, system.grid, labels, axes, affine)


def _noise_of(system: MPISystem) -> dict[str, str]:
    """What was done about the noise of the calibration."""
    if system.error is None:
        return {"matrix noise": "unknown: fewer than two empty frames in the system matrix"}
    if system.error.rank is None:
        return {"matrix noise": "left in the system matrix"}
    taken = f"{system.error.removed_db:.1f} dB of it taken out of the system matrix"
    return {"matrix noise": f"{taken}, of which {system.error.rank} singular values are left"}


def _unit(calibration: MPICalibration) -> str:
    """What a voxel of value 1 holds."""

    def first(field: str) -> Any:
        values = np.atleast_1d(np.asarray(calibration.metadata.get(field, "")))
        return values.ravel()[0] if values.size else ""

    name, held = str(first("/tracer/name")), first("/tracer/concentration")
    of = "the calibration's sample" + (f" of {name}" if name not in ("", "n.a.") else "")
    known = isinstance(held, float | np.floating | int | np.integer) and np.isfinite(held) and held > 0
    return f"1 is the concentration of {of}" + (f", {held:g} mol/l of solute" if known else "")


def affine_of(grid: Grid, axes: str, metadata: dict[str, Any]) -> NDArray[np.float64]:
    """``(4, 4)`` from voxel numbers, the image's axes backwards and then that of a single slice, to mm along x, y, z.

    A slice lies where the file's field of view has its centre, and is as thick as that.
    """
    places = {a: (d, c, n) for a, d, c, n in zip(axes, grid.spacing, grid.center, grid.shape, strict=True)}
    for i, axis in enumerate("xyz"):
        if axis not in places:
            sizes, middles = (
                np.ravel(metadata.get(f"/calibration/{n}", ())) for n in ("fieldOfView", "fieldOfViewCenter")
            )
            size = float(sizes[i]) if len(sizes) == 3 and sizes[i] > 0 else 1e-3
            places[axis] = (size, float(middles[i]) if len(middles) == 3 else 0.0, 1)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, axis in enumerate([*reversed(axes), *(a for a in "xyz" if a not in axes)]):
        spacing, center, count = places[axis]
        row = "xyz".index(axis)
        affine[row, column] = 1e3 * spacing
        affine[row, 3] = 1e3 * (center - spacing * (count - 1) / 2)
    return affine
