"""``pyrecon reconstruct``: a raw-data file in, an image with its report out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console, _settings
from pyrecon.data.raw import Grid, MPIScan, MRIScan
from pyrecon.report import Report

MRI_FORMATS = ("twix", "ismrmrd")


Progress = Callable[[float, int], None]


def _silent(done: float, total: int) -> None:
    pass


def _known_methods() -> str:
    """The registries of the modalities, for ``--help``."""
    from pyrecon.models import mpi, mri

    known = {"MPI": mpi.METHODS | mpi.LEARNED | mpi.UNTRAINED, "MRI": mri.METHODS}
    return " ".join(f"{modality}: {', '.join(methods)}." for modality, methods in known.items())


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
    run: Callable[[int | None, Progress], tuple[torch.Tensor, Report]]
    reports: bool
    grid: Grid | None
    labels: tuple[str, ...]


def reconstruct(
    file: Annotated[Path, typer.Argument(help="An MDF measurement, Siemens twix or ISMRMRD.", show_default=False)],
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
    average: Annotated[int, typer.Option(help="MPI: average this many frames into one.", min=1)] = 1,
    snr_threshold: Annotated[float, typer.Option(help="MPI: leave out system-matrix rows with less SNR.", min=0)] = 5.0,
    band: Annotated[
        tuple[float, float], typer.Option(help="MPI: lowest and highest frequency in Hz.", show_default=False)
    ] = (0.0, float("inf")),
    upsample: Annotated[int, typer.Option(help="MPI: refine the system matrix's grid by this factor.", min=1)] = 1,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and its memory and time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Reconstruct a raw-data file. The format is found from its content, the method has sensible defaults."""
    from pyrecon import io
    from pyrecon.models.mpi import LEARNED

    target = output or Path(f"{file.name.removesuffix('.gz').rsplit('.', 1)[0]}_recon.nii.gz")
    _check_target(target)
    check_device(device)
    kind = io.detect(file)
    settings = list(parameter or [])
    if weights is not None:
        if method not in LEARNED:
            raise DataError(f"--weights: is for {', '.join(LEARNED)}, the method is {method or 'the default'}")
        settings.append(f"weights={weights}")
    if kind == "mdf-measurement":
        if system_matrix is None:
            raise DataError(f"{file}: is an MPI measurement, give its system matrix with --system-matrix SM.mdf")
        job = _mpi_job(file, system_matrix, method, settings, average, snr_threshold, band, upsample, device)
    elif kind in MRI_FORMATS:
        if system_matrix is not None:
            raise DataError(f"{file}: is MRI data ({kind}), which has no system matrix; leave out --system-matrix")
        job = _mri_job(file, kind, method, settings, device)
    else:
        expected = ", ".join(("mdf-measurement", *MRI_FORMATS))
        advice = "; give it as --system-matrix along with a measurement" if kind == "mdf-system-matrix" else ""
        raise DataError(f"{file}: is {kind}, nothing to reconstruct; expected {expected}{advice}")

    if dry_run:
        _print_plan(job, target, figure, as_json)
        return
    title = f"{job.facts['method']}: {job.images} images"
    if job.reports:
        with _console.progress() as bar:
            task = bar.add_task(title, total=job.images)
            images, report = job.run(None, lambda done, total: bar.update(task, completed=done, total=total))
    else:
        with _console.err.status(title):
            images, report = job.run(None, _silent)
    report.details |= {"file": file.name}
    result = io.Result(
        image=images.cpu().numpy(),
        grid=job.grid,
        method=report.method,
        parameters=report.to_dict()["parameters"],
        report=report.to_dict(),
        labels=job.labels,
    )
    io.write_result(target, result)
    if figure is not None:
        draw(figure, result, file.name)
    if as_json:
        print(json.dumps(report.to_dict() | {"output": str(target)}, indent=2))
    else:
        _console.out.print(str(report), markup=False, soft_wrap=True)
        _console.out.print(f"written      {target}" + (f", {figure}" if figure else ""), markup=False, soft_wrap=True)


def draw(path: Path, result: Any, heading: str, most: int = 12) -> None:
    """A figure of (at most ``most`` of) the images of a result."""
    from pyrecon import plotting

    shape = result.image.shape[-2:]
    stack = result.image.reshape(-1, *shape)
    chosen = np.unique(np.linspace(0, len(stack) - 1, min(most, len(stack))).round().astype(int))
    labels = result.labels or tuple(f"image {i}" for i in range(len(stack)))
    panels = [plotting.Panel(stack[i], title=labels[i] if len(stack) > 1 else "") for i in chosen]
    columns = min(4, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    spacing = None if result.grid is None else [result.grid.spacing[-2:]] * len(rows)
    size = 2.2 if columns > 1 else 4.5
    plotting.save(plotting.figure(rows, spacing=spacing, heading=f"{heading}: {result.method}", panel_size=size), path)


def _mpi_job(
    file: Path,
    system_matrix: Path,
    method: str | None,
    settings: list[str],
    average: int,
    snr_threshold: float,
    band: tuple[float, float],
    upsample: int,
    device: str,
) -> Job:
    from pyrecon import io
    from pyrecon.data.mpi import prepare_frames, prepare_system
    from pyrecon.io import mdf
    from pyrecon.models.mpi import LEARNED, METHODS, UNTRAINED, Reconstructor

    chosen = _settings.make(METHODS | LEARNED | UNTRAINED, method or "hyb", settings)
    if io.detect(system_matrix) != "mdf-system-matrix":
        raise DataError(f"{system_matrix}: is {io.detect(system_matrix)}, expected an MDF system matrix")
    scan: MPIScan = mdf.read_measurement(file)
    system = prepare_system(mdf.read_system_matrix(system_matrix), scan, snr_threshold=snr_threshold, band=band)
    frames = prepare_frames(system, scan, average=average)
    if upsample > 1:
        system = system.upsampled(upsample)
    rows, voxels = system.matrix.shape
    facts = {
        "file": f"{file.name}: MPI measurement, {len(scan.is_background)} frames, "
        f"{int(scan.is_background.sum())} of them background",
        "system": f"{system_matrix.name}: {rows // 2} complex rows x {voxels} voxels "
        f"({' x '.join(map(str, system.grid.shape))})",
        "method": f"{chosen.name}",
        "settings": ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(chosen).items()),
    }
    images = len(frames.y)
    # The matrix, its factor in double while it is made, and the data; what the solvers add is small against these.
    memory = 4 * rows * voxels * (1 + 2 + 2) + 4 * images * (rows + 6 * voxels)

    def run(count: int | None, progress: Progress) -> tuple[torch.Tensor, Report]:
        part = frames if count is None else dataclasses.replace(
            frames, **{n: v[:count] for n, v in vars(frames).items() if isinstance(v, torch.Tensor) and v.dim()}
        )  # fmt: skip
        return Reconstructor(system, chosen, device=device)(part, progress=progress)

    labels = tuple(f"frame {i}" for i in range(images))
    return Job(facts, chosen, images, memory, run, True, system.grid, labels)


def _mri_job(file: Path, kind: str, method: str | None, settings: list[str], device: str) -> Job:
    from pyrecon import io
    from pyrecon.data.mri import first_slices, readout_width
    from pyrecon.models.mri import METHODS, default_method, reconstruct_mri

    scan = io.read(file)
    assert isinstance(scan, MRIScan)
    chosen = default_method(scan) if method is None and not settings else None
    if chosen is None:
        names = {v: k for k, v in METHODS.items()}
        chosen = _settings.make(METHODS, method or names[type(default_method(scan))], settings)
    count, coils, height, width = scan.kspace.shape
    facts = {
        "file": f"{file.name}: {kind}, {count} images, {coils} coils, {height} x {width} samples "
        f"({scan.mask.mean():.0%} sampled, readout oversampling {scan.readout_oversampling:g})",
        "method": chosen.name,
        "settings": ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(chosen).items()),
    }
    width = readout_width(scan)
    y, x, _ = scan.field_of_view
    grid = Grid((height, width), (y / height, x / width), (0.0, 0.0))
    # k-space before and after removal of the oversampling, maps, and a few coil stacks of working memory.
    memory = 8 * scan.kspace.size + 5 * 8 * count * coils * height * width

    def run(first: int | None, progress: Progress) -> tuple[torch.Tensor, Report]:
        return reconstruct_mri(scan if first is None else first_slices(scan, first), chosen, device=device)

    return Job(facts, chosen, count, memory, run, False, grid, scan.labels)


def _print_plan(job: Job, target: Path, figure: Path | None, as_json: bool) -> None:
    """Facts, memory, and the time measured on one image: the whole takes at most that times the number of images."""
    with _console.err.status("timing one image"):
        start = time.perf_counter()
        _, report = job.run(1, _silent)
        whole = time.perf_counter() - start
    once = whole - report.seconds
    seconds = once + report.seconds * job.images
    plan = job.facts | {
        "images": str(job.images),
        "memory": f"about {job.memory / 2**20:.0f} MiB for the data and the system",
        "time": f"at most about {seconds:.1f} s ({once:.1f} s set-up, {report.seconds:.2g} s for the first image)",
        "output": str(target) + (f", {figure}" if figure else ""),
    }
    if as_json:
        print(json.dumps(plan | {"memory_bytes": job.memory, "seconds": seconds}, indent=2))
        return
    for name, value in plan.items():
        _console.out.print(f"{name:<12} {value}", markup=False, soft_wrap=True)
    _console.out.print("dry run: nothing was written")


def _check_target(target: Path) -> None:
    """Complain about the output before the work, not after it."""
    from pyrecon._errors import MissingDependency
    from pyrecon.io.results import FORMATS

    if not target.name.lower().endswith(FORMATS):
        raise DataError(f"--output: {target.name!r} has no known format, expected {', '.join(FORMATS)}")
    if not target.parent.is_dir():
        raise DataError(f"--output: the folder {target.parent} does not exist")
    if ".nii" in target.suffixes:
        try:
            import nibabel  # noqa: F401
        except ImportError as error:
            raise MissingDependency("nibabel", "io", "writing NIfTI (or choose -o NAME.npz)") from error


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device: {device!r} is not usable here: {str(error).splitlines()[0]}") from error
