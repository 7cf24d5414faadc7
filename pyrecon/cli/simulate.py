"""``pyrecon simulate``: raw-data files from simulated scanners, for trying things out and for tests."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console
from pyrecon.cli._commands import make_folder
from pyrecon.data.raw import Grid

app = typer.Typer(help="Write raw-data files from simulated scanners.", no_args_is_help=True)


class MPIPhantom(enum.StrEnum):
    """Objects to put into the MPI scanner."""

    vessels = "vessels"
    torus = "torus"
    tubes = "tubes"
    y = "y"


@app.command("mpi")
def mpi(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("mpi_scan"),
    phantom: Annotated[MPIPhantom, typer.Option(help="What is scanned.")] = MPIPhantom.vessels,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the object (vessels: a different crop in each).")] = 4,
    field: Annotated[float, typer.Option(min=0.05, help="Selection field, T/m.")] = 0.5,
    gradient: Annotated[float | None, typer.Option(hidden=True, help="The old name of --field.")] = None,
    snr: Annotated[float, typer.Option(help="SNR of the measurement in dB.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Seed of noise and crops.")] = 0,
) -> None:
    """Calibrate a simulated field-free-line scanner and scan an object with it.

    Writes system_matrix.mdf and measurement.mdf (MDF v2), and truth.npz with the object on the system matrix's grid.
    """
    from pyrecon import io
    from pyrecon.data.mpi import GRID, box_downsample
    from pyrecon.experiments.demo import OVERSAMPLING
    from pyrecon.io import mdf
    from pyrecon.physics.mpi import Scanner

    make_folder(output)
    scanner = Scanner(gradient=field if gradient is None else gradient)
    fine = GRID.finer(OVERSAMPLING)
    with _console.err.status("calibrating"):
        calibration = scanner.calibrate(GRID, seed=seed)
    objects = _objects(phantom, frames, fine, seed)
    with _console.err.status("scanning"):
        scan = scanner.measure(objects, fine, snr_db=snr, seed=seed + 1)
    mdf.write_system_matrix(output / "system_matrix.mdf", calibration)
    mdf.write_measurement(output / "measurement.mdf", scan)
    io.write_result(
        output / "truth.npz", io.Result(box_downsample(objects, OVERSAMPLING).numpy(), grid=GRID, method="truth")
    )
    _console.out.print(f"written      {output}/system_matrix.mdf, measurement.mdf, truth.npz", soft_wrap=True)
    _console.out.print(
        f"try          pyrecon reconstruct {output}/measurement.mdf -s {output}/system_matrix.mdf", soft_wrap=True
    )


@app.command("mri")
def mri(
    output: Annotated[Path, typer.Option("--output", "-o", help="ISMRMRD file to write.")] = Path("mri_scan.h5"),
    size: Annotated[int, typer.Option(min=16, help="Rows and columns.")] = 256,
    coils: Annotated[int, typer.Option(min=1, help="Receive coils.")] = 8,
    acceleration: Annotated[float, typer.Option(min=1, help="Undersampling along the phase-encoding axis.")] = 1.0,
    acl: Annotated[int, typer.Option(min=0, help="Fully sampled lines in the centre.")] = 24,
    noise: Annotated[float, typer.Option(min=0, help="Noise in k-space, relative to a pixel of value 1.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Seed of noise and mask.")] = 0,
) -> None:
    """Scan a head phantom with simulated coils and write an ISMRMRD raw-data file."""
    from pyrecon.io import ismrmrd
    from pyrecon.physics import mri as physics

    _check_targets(output)
    shape = (size, size)
    mask = physics.random_lines(shape, acceleration, acl=min(acl, size), seed=seed)
    scan = physics.simulate(
        physics.head_phantom(shape),
        physics.coil_maps(shape, coils),
        mask,
        noise_std=noise,
        readout_oversampling=2,
        seed=seed,
    )
    ismrmrd.write_ismrmrd(output, scan)
    _console.out.print(f"written      {output}", soft_wrap=True)
    _console.out.print(f"try          pyrecon reconstruct {output} --figure out.png", soft_wrap=True)


@app.command("t1")
def t1(
    output: Annotated[Path, typer.Option("--output", "-o", help="ISMRMRD file to write.")] = Path("t1_scan.h5"),
    size: Annotated[int, typer.Option(min=16, max=1024, help="Rows and columns.")] = 96,
    slices: Annotated[int, typer.Option(min=1, help="Slices, each of another brain.")] = 1,
    coils: Annotated[int, typer.Option(min=1, max=256, help="Receive coils.")] = 6,
    times: Annotated[
        str, typer.Option(help="Saturation times: five, eight, or in s with commas between them.")
    ] = "five",
    acceleration: Annotated[float, typer.Option(min=1, help="Lines per one taken, of every image others.")] = 4.0,
    centre: Annotated[int, typer.Option(min=0, help="Lines that are always taken.")] = 10,
    noise: Annotated[float, typer.Option(min=0, help="In real and imaginary part of k-space; M0 is about 1.")] = 0.01,
    truth: Annotated[Path | None, typer.Option(help="Also write T1, M0 and the tissues: .nii.gz, .npz, ...")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of brains, coils, lines and noise.")] = 0,
) -> None:
    """Scan generated brains by saturation recovery with simulated coils and write an ISMRMRD raw-data file.

    The brains are none of those that trainings draw.
    """
    from pyrecon import io
    from pyrecon.cli._maps import saturation_times
    from pyrecon.cli.reconstruct import check_target
    from pyrecon.io import ismrmrd
    from pyrecon.physics.t1 import scan_brains, unseen_brains

    _check_targets(output, truth)
    seconds = saturation_times(times)
    if centre > size:
        raise DataError(f"--centre: {centre} lines, the images have {size}")
    if truth is not None:
        check_target(truth, option="--truth")
    with _console.err.status("scanning"):
        known = unseen_brains(slices, size, seed)
        scan = scan_brains(
            known, seconds, coils=coils, acceleration=acceleration, centre=centre, noise=noise, seed=seed
        )
    ismrmrd.write_ismrmrd(output, scan)
    written = str(output)
    if truth is not None:
        y, x, thickness = scan.field_of_view
        grid = Grid((slices, size, size), (thickness, y / size, x / size), (0.0, 0.0, 0.0))
        labels = ("T1 (s)", "M0 (a.u.)", "phase of M0 (rad)", "tissue", "inside")
        stack = (known.t1, np.abs(known.m0), np.angle(known.m0), known.labels, known.inside)
        image = np.stack([volume.astype(np.float32) for volume in stack])
        io.write_result(truth, io.Result(image, grid, "truth", labels=labels))
        written += f", {truth}"
    _console.out.print(f"written      {written}", soft_wrap=True)
    _console.out.print(
        f"try          pyrecon reconstruct {output} -m sense-fit -o t1_maps.nii.gz --figure t1_maps.png", soft_wrap=True
    )


class CTPhantom(enum.StrEnum):
    """Objects to put into the CT scanner."""

    disc = "disc"
    body = "body"
    head = "head"


class CTBeam(enum.StrEnum):
    """How its rays run."""

    parallel = "parallel"
    fan = "fan"
    curved = "curved"


@app.command("ct")
def ct(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .h5 or .npz.")] = Path("ct_scan.h5"),
    phantom: Annotated[CTPhantom, typer.Option(help="An acrylic disc with holes, a patient, a head.")] = CTPhantom.disc,
    beam: Annotated[CTBeam, typer.Option(help="Parallel rays, or a fan on a flat or a curved detector.")] = CTBeam.fan,
    views: Annotated[int, typer.Option(min=1, help="Views, evenly over the arc.")] = 360,
    arc: Annotated[float | None, typer.Option(help="Degrees. Default: a full turn, half of one for parallel.")] = None,
    start: Annotated[float, typer.Option(help="Angle of the first view, degrees.")] = 0.0,
    detector: Annotated[int, typer.Option(min=2, help="Detector pixels.")] = 560,
    offset: Annotated[float, typer.Option(help="Of the detector's middle from the axis, in detector pixels.")] = 0.0,
    photons: Annotated[float | None, typer.Option(min=1, help="Counted by a pixel in the open beam.")] = None,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of a line integral.")] = 0.0,
    slices: Annotated[int, typer.Option(min=1, help="Slices, each another object (a head has one).")] = 1,
    truth: Annotated[Path | None, typer.Option(help="Also write the object itself: .npz, .nii.gz, ...")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of objects and noise.")] = 0,
) -> None:
    """Scan an object with simulated X-rays and write sinogram and geometry, the format documented under "CT files".

    The scanner is that of the Helsinki Tomography Challenge: 0.4 m from source to axis, 0.55 m to a detector of 112 mm.
    A patient fits into it too: he is scaled down, and his attenuation up.
    """
    from pyrecon import io
    from pyrecon.io.sinogram import write_sinogram
    from pyrecon.physics import ct as physics

    _check_targets(output, truth)
    if phantom is CTPhantom.head and slices > 1:
        raise DataError("--slices: there is one head")
    geometry = physics.scanner(beam.value, views, arc=arc, start=start, n_det=detector, offset=offset)
    objects = physics.phantom(phantom.value, geometry, slices, seed=seed)
    with _console.err.status("scanning"):
        scan = physics.simulate(objects, geometry, photons=photons, noise_std=noise, seed=seed)
    write_sinogram(output, scan)
    written = str(output)
    if truth is not None:
        io.write_result(truth, io.Result(physics.truth(objects, geometry).numpy(), grid=scan.grid, method="truth"))
        written += f", {truth}"
    _console.out.print(f"written      {written}", soft_wrap=True)
    _console.out.print(f"try          pyrecon reconstruct {output} --figure out.png", soft_wrap=True)


def _objects(phantom: MPIPhantom, frames: int, fine: Grid, seed: int) -> torch.Tensor:
    """``(frames, H, W)`` on the fine grid."""
    from pyrecon.data import phantoms

    if phantom is MPIPhantom.vessels:
        return torch.as_tensor(phantoms.retina_vessels(fine.shape, frames, seed=seed))
    draw: dict[MPIPhantom, Callable[[Grid], phantoms.Image]] = {
        MPIPhantom.torus: phantoms.torus,
        MPIPhantom.tubes: phantoms.two_tubes,
        MPIPhantom.y: phantoms.y_shape,
    }
    return torch.as_tensor(draw[phantom](fine)).expand(frames, *fine.shape)


def _check_targets(output: Path, truth: Path | None = None) -> None:
    """Before the work, not after it."""
    from pyrecon.io._files import check_writable

    check_writable("--output", output)
    if truth is not None:
        check_writable("--truth", truth)
