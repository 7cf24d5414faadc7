"""The demo: real vessels through a simulated MPI scanner, a head through a simulated MRI scanner, every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon.data.mpi import GRID
from pyrecon.data.raw import Grid
from pyrecon.report import Report

if TYPE_CHECKING:
    from pyrecon.data.raw import MPICalibration, MPIScan
    from pyrecon.physics.mpi import Scanner

MPI_GRID = GRID  # by the name that examples know
OVERSAMPLING = 4  # the object's grid is this much finer than the system matrix's, so data and model differ


@dataclass(frozen=True)
class Row:
    """One method's result: images ``(B, H, W)``, their mean pSNR (dB) and SSIM, and its report."""

    images: Tensor
    psnr: float
    ssim: float
    report: Report


@dataclass(frozen=True)
class Study:
    """One scanner's part of the demo: what was scanned, the truth, and a row per method."""

    title: str
    truth: Tensor
    spacing: tuple[float, float]
    rows: tuple[Row, ...]


def fine_grid(grid: Grid = GRID, factor: int = OVERSAMPLING) -> Grid:
    """The same field of view with ``factor`` times the voxels along each axis."""
    return grid.finer(factor)


@dataclass(frozen=True)
class MPIScene:
    """Retina vessels ``(B, H, W)`` on the fine grid, the scanner, its calibration and the scan."""

    vessels: Tensor
    scanner: Scanner
    calibration: MPICalibration
    scan: MPIScan


def mpi_scene(
    progress: Callable[[str], None] = lambda text: None, *, snr_db: float = 30.0, frames: int = 6, seed: int = 0
) -> MPIScene:
    """Retina vessels in a field-free-line scanner whose system matrix was calibrated with noise.

    The object is drawn on a grid four times finer than the system matrix's in each direction, and the system matrix is
    a noisy calibration with a sample of finite size, so no method solves the problem that made the data.
    """
    from pyrecon.data.phantoms import retina_vessels
    from pyrecon.physics.mpi import Scanner

    fine = fine_grid()
    progress("MPI: calibrating the scanner")
    scanner = Scanner()
    calibration = scanner.calibrate(GRID, seed=seed)
    vessels = torch.as_tensor(retina_vessels(fine.shape, frames, seed=seed), dtype=torch.float32)
    progress(f"MPI: scanning {frames} vessel images")
    return MPIScene(vessels, scanner, calibration, scanner.measure(vessels, fine, snr_db=snr_db, seed=seed + 1))


def mpi_study(progress: Callable[[str], None], *, snr_db: float = 30.0, frames: int = 6, seed: int = 0) -> Study:
    """:func:`mpi_scene` by every method."""
    from pyrecon.data.mpi import box_downsample, prepare_frames, prepare_system
    from pyrecon.models.mpi import DEQ, METHODS, PnP, Reconstructor

    scene = mpi_scene(progress, snr_db=snr_db, frames=frames, seed=seed)
    calibration, scan, vessels = scene.calibration, scene.scan, scene.vessels
    system = prepare_system(calibration, scan)
    data = prepare_frames(system, scan)
    truth = box_downsample(vessels, OVERSAMPLING)
    rows = []
    methods: list[type[Any]] = [*METHODS.values(), PnP, DEQ]
    for method in methods:
        progress(f"MPI: {method.name}")
        images, report = Reconstructor(system, method())(data)
        rows.append(_row(images.clamp_min(0), truth, report))
    complex_rows = system.matrix.shape[0] // 2
    title = f"MPI: vessels, {complex_rows} rows x {GRID.size} voxels, data SNR {snr_db:g} dB"
    return Study(title, truth, (GRID.spacing[0], GRID.spacing[1]), tuple(rows))


def mri_study(
    progress: Callable[[str], None],
    *,
    size: int = 256,
    coils: int = 8,
    acceleration: float = 4.0,
    noise: float = 0.03,
    seed: int = 0,
) -> Study:
    """A head phantom, eight coils, four-fold random undersampling with 24 calibration lines; maps by ESPIRiT."""
    from pyrecon.models.mri import METHODS, reconstruct_mri
    from pyrecon.physics.mri import coil_maps, head_phantom, random_lines, simulate

    shape = (size, size)
    progress("MRI: scanning")
    phantom, maps = head_phantom(shape), coil_maps(shape, coils)
    scan = simulate(phantom, maps, random_lines(shape, acceleration, acl=24, seed=seed), noise_std=noise, seed=seed)
    rows = []
    for method in METHODS.values():
        progress(f"MRI: {method.name}")
        images, report = reconstruct_mri(scan, method())
        rows.append(_row(_scaled(images.abs(), phantom.abs()), phantom.abs(), report))
    pixel = (scan.field_of_view[0] / size, scan.field_of_view[1] / size)
    title = f"MRI: {size} x {size}, {coils} coils, {acceleration:g}x random lines, noise {noise:g}"
    return Study(title, phantom.abs(), pixel, tuple(rows))


def summary(studies: list[Study]) -> str:
    """The results as Markdown tables."""
    parts = ["# pyrecon demo", ""]
    for study in studies:
        parts += [f"## {study.title}", "", "| method | pSNR (dB) | SSIM | time |", "|---|---|---|---|"]
        for row in study.rows:
            seconds = f"{row.report.seconds:.2f} s"
            parts.append(f"| {row.report.method} | {row.psnr:.1f} | {row.ssim:.3f} | {seconds} |")
        parts.append("")
    notes = dict.fromkeys(text for study in studies for row in study.rows for text in row.report.warnings)
    parts += [*(f"Warning: {text}.\n" for text in notes)]
    parts += [
        f"Mean over {len(studies[0].truth)} MPI frames and {len(studies[1].truth)} MRI slice; the time is for all of "
        "them, without calibration and set-up. "
        + ", ".join(f"{name} {value}" for name, value in studies[0].rows[0].report.versions.items())
        + ".",
        "",
    ]
    return "\n".join(parts)


def _row(images: Tensor, truth: Tensor, report: Report) -> Row:
    return Row(images, float(metrics.psnr(images, truth).mean()), float(metrics.ssim(images, truth).mean()), report)


def _scaled(images: Tensor, truth: Tensor) -> Tensor:
    """Least-squares intensity scale per image: maps from data have no absolute gain."""
    gain = (images * truth).sum((1, 2)) / images.square().sum((1, 2))
    return images * gain[:, None, None]
