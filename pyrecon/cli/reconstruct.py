"""``pyrecon reconstruct``: a raw-data file in, an image with its report out."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console
from pyrecon.cli._jobs import (
    ArrayOptions,
    CTOptions,
    Job,
    MRIJob,
    MRIOptions,
    check_device,
    ct_job,
    mri_job,
    silent,
)
from pyrecon.cli._mpi import MPIOptions, mpi_job

ARRAY_FORMATS = ("bart", "kspace-array")
MRI_FORMATS = ("twix", "ismrmrd", "fastmri", *ARRAY_FORMATS)
CT_FORMATS = ("htc", "data-exchange", "sinogram")


class PartialFourier(StrEnum):
    """What fills in the side that was left out; :data:`pyrecon.data.partial_fourier.WAYS` are these."""

    ZERO = "zero"
    HOMODYNE = "homodyne"
    POCS = "pocs"


def _known_methods() -> str:
    """The registries of the modalities, for ``--help``."""
    from pyrecon.models import ct, mpi, mri

    known: dict[str, dict[str, Any]] = {
        "MPI": mpi.METHODS | mpi.LEARNED | mpi.UNTRAINED,
        "MRI": mri.METHODS | mri.LEARNED,
        "MRI, maps of T1": mri.MAPPING,
        "CT": ct.METHODS | ct.LEARNED,
    }
    return " ".join(f"{modality}: {', '.join(methods)}." for modality, methods in known.items())


def reconstruct(
    file: Annotated[
        Path, typer.Argument(help="A raw-data file of a format listed in the documentation.", show_default=False)
    ],
    system_matrix: Annotated[
        Path | None, typer.Option("--system-matrix", "-s", help="MDF system matrix (MPI only).", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help=_known_methods(),
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Learned methods: a file, or the name of shipped weights.", show_default=False),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A setting of the method; repeat for more.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=".nii, .nii.gz, .npz, .h5 or .png. Default: FILE_recon.nii.gz."),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the images: .png, .pdf or .svg.")] = None,
    maps_out: Annotated[
        Path | None,
        typer.Option(help="MRI: also write the coil maps used or found: .npz or .h5.", show_default=False),
    ] = None,
    partial_fourier: Annotated[
        PartialFourier | None,
        typer.Option(
            help="MRI: fill in what partial Fourier or an asymmetric echo left out, by a smooth phase. Default: zero.",
            show_default=False,
        ),
    ] = None,
    coils: Annotated[
        int | None, typer.Option(help="MRI: compress to this many coils.", min=1, show_default=False)
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(
            help="K-space arrays: a letter for each axis: S slice, E echo, T time, P partition, C coil, H phase "
            "encoding, W readout. Default: HW, CHW or SCHW; of BART its own.",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="K-space arrays: 1 where sampled: .npy, .npz, .mat or .cfl.", show_default=False),
    ] = None,
    fov: Annotated[
        str | None,
        typer.Option(
            metavar="MM,MM[,MM]",
            help="K-space arrays: field of view along the image's axes in the order of the array, and the thickness.",
            show_default=False,
        ),
    ] = None,
    average: Annotated[int, typer.Option(help="MPI: average this many frames into one.", min=1)] = 1,
    average_periods: Annotated[
        bool, typer.Option("--average-periods", help="MPI: average the periods of a frame, which repeat each other.")
    ] = False,
    snr_threshold: Annotated[float, typer.Option(help="MPI: leave out system-matrix rows with less SNR.", min=0)] = 5.0,
    band: Annotated[
        tuple[float, float], typer.Option(help="MPI: lowest and highest frequency in Hz.", show_default=False)
    ] = (0.0, float("inf")),
    upsample: Annotated[int, typer.Option(help="MPI: refine the system matrix's grid by this factor.", min=1)] = 1,
    denoise: Annotated[
        bool, typer.Option(help="MPI: take the noise of its calibration out of the system matrix.")
    ] = True,
    views: Annotated[
        str | None, typer.Option(metavar="A:B:STEP", help="CT: these views only, e.g. 0:90 or ::4.", show_default=False)
    ] = None,
    shape: Annotated[
        tuple[int, int] | None, typer.Option(help="CT: rows and columns of the image.", show_default=False, min=1)
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="CT: pixels of the image, in mm.", show_default=False, min=1e-9)
    ] = None,
    detector_pixel: Annotated[
        float | None, typer.Option(help="Data Exchange: detector pixels, in mm.", show_default=False, min=1e-9)
    ] = None,
    center: Annotated[
        float | None, typer.Option(help="Data Exchange: detector pixel of the axis, else found.", show_default=False)
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="A:B:STEP", help="Data Exchange: these rows of the detector only.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and its memory and time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Reconstruct a raw-data file. The format is found from its content, the method has sensible defaults."""
    from pyrecon import io
    from pyrecon.models import ct, mpi, mri

    target = output or Path(f"{file.name.removesuffix('.gz').rsplit('.', 1)[0]}_recon.nii.gz")
    check_target(target, figure)
    if maps_out is not None:
        if maps_out.suffix.lower() not in (".npz", ".h5", ".hdf5"):
            raise DataError(f"--maps-out: {maps_out.name!r}, expected .npz or .h5, which hold complex numbers")
        check_target(maps_out, option="--maps-out")
    check_device(device)
    kind = io.detect(file)
    settings = list(parameter or [])
    if weights is not None:
        learned: dict[str, Any] = mpi.LEARNED | mri.LEARNED | ct.LEARNED
        learned |= {"joint": mri.METHODS["joint"]}
        learned |= {name: kind for name, kind in mri.MAPPING.items() if kind.role is not None}
        if method not in learned:
            raise DataError(f"--weights: is for {', '.join(learned)}, the method is {method or 'the default'}")
        settings.append(f"weights={weights}")
    if partial_fourier is not None and kind not in MRI_FORMATS:
        raise DataError(f"--partial-fourier: for MRI, {file} is {kind}")
    options = CTOptions(views, shape, pixel_size, detector_pixel, center, rows)
    if kind not in CT_FORMATS and options.given():
        raise DataError(f"{', '.join(options.given())}: for CT, {file} is {kind}")
    arrays = ArrayOptions(axes, mask, fov)
    if kind not in ARRAY_FORMATS and arrays.given():
        raise DataError(f"{', '.join(arrays.given())}: for k-space that is a bare array, {file} is {kind}")
    if coils is not None and kind not in MRI_FORMATS:
        raise DataError(f"--coils: for MRI, {file} is {kind}")
    if system_matrix is not None and kind in (*MRI_FORMATS, *CT_FORMATS):
        raise DataError(f"{file}: is {kind}, which has no system matrix; leave out --system-matrix")
    scanner = MPIOptions(average, average_periods, snr_threshold, band, upsample, denoise)
    if kind in (*MRI_FORMATS, *CT_FORMATS) and scanner.given():
        raise DataError(f"{', '.join(scanner.given())}: for MPI, {file} is {kind}")
    if kind == "mdf-measurement":
        if system_matrix is None:
            raise DataError(f"{file}: is an MPI measurement, give its system matrix with --system-matrix SM.mdf")
        job: Job = mpi_job(file, system_matrix, method, settings, scanner, device)
    elif kind in MRI_FORMATS:
        if method in mri.MAPPING and target.suffix.lower() == ".png":
            raise DataError("--output: .png holds no numbers; use --figure for a picture")
        said = MRIOptions(arrays, coils, None if partial_fourier is None else partial_fourier.value)
        job = mri_job(file, kind, method, settings, said, device)
    elif kind in CT_FORMATS:
        job = ct_job(file, kind, method, settings, options, device)
    else:
        expected = ", ".join(("mdf-measurement", *MRI_FORMATS, *CT_FORMATS))
        advice = {
            "mdf-system-matrix": "; give it as --system-matrix along with a measurement",
            "npz": "; an array of k-space is to have the name kspace in it",
        }.get(kind, "")
        raise DataError(f"{file}: is {kind}, nothing to reconstruct; expected {expected}{advice}")

    if maps_out is not None and not (isinstance(job, MRIJob) and (job.method.needs_maps or job.method.finds_maps)):
        raise DataError(f"--maps-out: is for coil maps of MRI, {job.facts['method']} has none")
    if dry_run:
        _print_plan(job, target, figure, as_json)
        return
    title = f"{job.facts['method']}: {job.images} {job.counted}"
    if job.reports:
        with _console.progress() as bar:
            task = bar.add_task(title, total=job.images)
            found, report = job.run(None, lambda done, total: bar.update(task, completed=done, total=total))
    else:
        with _console.err.status(title):
            found, report = job.run(None, silent)
    report.details |= {"file": file.name}
    io.write_result(target, job.result(found, report))
    if maps_out is not None and isinstance(job, MRIJob):
        io.write_result(maps_out, job.maps_result(report))
    if figure is not None:
        job.draw(figure, found, f"{file.name}: {report.method}")
    if as_json:
        print(json.dumps(report.to_dict() | {"output": str(target)}, indent=2))
    else:
        _console.out.print(str(report), markup=False, soft_wrap=True)
        written = ", ".join(str(path) for path in (target, maps_out, figure) if path is not None)
        _console.out.print(f"written      {written}", markup=False, soft_wrap=True)


def _print_plan(job: Job, target: Path, figure: Path | None, as_json: bool) -> None:
    """Facts, memory, and the time measured on one image: the whole takes at most that times the number of images."""
    one = job.counted[:-1]
    with _console.err.status(f"timing one {one}"):
        start = time.perf_counter()
        _, report = job.run(1, silent)
        whole = time.perf_counter() - start
    once = whole - report.seconds
    seconds = once + report.seconds * job.images
    plan = job.facts | {
        job.counted: str(job.images),
        "memory": f"about {job.memory / 2**20:.0f} MiB for the data and the system",
        "time": f"at most about {seconds:.1f} s ({once:.1f} s set-up, {report.seconds:.2g} s for the first {one})",
        "output": str(target) + (f", {figure}" if figure else ""),
    }
    if as_json:
        print(json.dumps(plan | {"memory_bytes": job.memory, "seconds": seconds}, indent=2))
        return
    for name, value in plan.items():
        _console.out.print(f"{name:<12} {value}", markup=False, soft_wrap=True)
    _console.out.print("dry run: nothing was written")


def check_target(target: Path, figure: Path | None = None, option: str = "--output") -> None:
    """Complain about outputs before the work, not after it."""
    from pyrecon._errors import MissingDependency
    from pyrecon.io._files import check_writable
    from pyrecon.io.results import FORMATS

    if not target.name.lower().endswith(FORMATS) or target.name.lower() in FORMATS:
        raise DataError(f"{option}: {target.name!r} has no known format, expected NAME{', NAME'.join(FORMATS)}")
    check_writable(option, target)
    if figure is not None:
        from pyrecon import plotting

        plotting.check_target(figure)
    if ".nii" in target.suffixes:
        try:
            import nibabel  # noqa: F401
        except ImportError as error:
            raise MissingDependency("nibabel", "io", "writing NIfTI (or choose -o NAME.npz)") from error
