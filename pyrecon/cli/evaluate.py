"""``pyrecon evaluate``: methods side by side on the same data, noise and metrics."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console

if TYPE_CHECKING:
    from pyrecon.data.raw import Grid
    from pyrecon.experiments.mpi_data import Images

app = typer.Typer(help="Compare methods on the same data, noise and metrics.", no_args_is_help=True)


class Way(enum.StrEnum):
    """How MPI data are made."""

    measured = "measured"
    scanner = "scanner"


@app.command("mpi")
def mpi(
    images: Annotated[
        str, typer.Option(help="retina, generated, torus, tubes, y, or a NIfTI angiogram for vessel patches.")
    ] = "retina",
    tissue: Annotated[float, typer.Option(min=0, help="Background brightness relative to the vessels.")] = 0.0,
    tissue_images: Annotated[Path | None, typer.Option(help="NIfTI volume for the background texture.")] = None,
    system_matrix: Annotated[
        Path | None, typer.Option("--system-matrix", "-s", help="MDF system matrix. Default: a simulated calibration.")
    ] = None,
    field: Annotated[float, typer.Option(min=0.05, help="Selection field of the simulated scanner, T/m.")] = 0.5,
    gradient: Annotated[float | None, typer.Option(hidden=True, help="The old name of --field.")] = None,
    snr: Annotated[list[float] | None, typer.Option(help="SNR in dB; repeat for more. Default 15, 25, 35.")] = None,
    data: Annotated[
        Way,
        typer.Option(help="measured: A x + noise, reconstructed with A U D. scanner: finer objects, coloured noise."),
    ] = Way.measured,
    tune: Annotated[bool, typer.Option("--tune", help="Search each method's settings on validation images.")] = False,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Add the method these weights are for: a file or a name; repeat for more."),
    ] = None,
    dip: Annotated[bool, typer.Option("--dip", help="Add the deep image prior.")] = False,
    dip_iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Most iterations of --dip. Default 2000; published are 20000."),
    ] = None,
    upsample: Annotated[int, typer.Option(min=1, help="Refine the system matrix's grid by this factor.")] = 1,
    budget: Annotated[int, typer.Option(min=4, help="Evaluations of the search, the same for every method.")] = 48,
    test: Annotated[int, typer.Option(min=1, help="Test images.")] = 64,
    validation: Annotated[int, typer.Option(min=1, help="Validation images.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of noise and patches.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table: .md, .csv or .json.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the images of the last SNR.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """MPI methods with published settings, the package's defaults, (--tune) the best found, and trained weights."""
    from pyrecon import plotting
    from pyrecon.data.mpi import GRID
    from pyrecon.experiments.deq_mpi.published import of_vessels
    from pyrecon.experiments.mpi import draw, evaluate_mpi
    from pyrecon.io import mdf, written_whole

    writers = {".md": "to_markdown", ".csv": "to_csv", ".json": "to_json"}
    if output is not None and output.suffix not in writers:
        raise DataError(f"--output: {output.name!r} has no known format, expected {', '.join(writers)}")
    _check_targets(output, figure)
    calibration = None if system_matrix is None else mdf.read_system_matrix(system_matrix)
    grid = GRID if calibration is None else calibration.grid
    if len(grid.shape) != 2:
        raise DataError(f"{system_matrix}: has a grid of {len(grid.shape)} dimensions, the comparison needs two")
    if dip_iterations is not None and not dip:
        raise DataError("--dip-iterations: is for --dip")
    counts = {"test": test, "validation": validation, "seed": seed, "upsampled": upsample}
    pictures = _images(images, grid, tissue=tissue, texture=tissue_images, **counts)
    field = field if gradient is None else gradient
    shape = tuple(upsample * n for n in grid.shape)
    with _console.progress() as bar:
        task = bar.add_task("calibrating")
        table, results = evaluate_mpi(
            pictures,
            calibration=calibration,
            selection_field=field,
            snr_db=snr or (15.0, 25.0, 35.0),
            data=data.value,
            tune=tune,
            weights=weights or (),
            dip=(dip_iterations or 2000) if dip else 0,
            upsampled=upsample,
            budget=budget,
            seed=seed,
            published=of_vessels(shape, field) if pictures.vessels else None,
            progress=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
    if output is not None:
        with written_whole(output) as temporary:
            temporary.write_text(getattr(table, writers[output.suffix])())
    if figure is not None:
        plotting.save(draw(results, "tuned" if tune else "default"), figure)
    print(table.to_json() if as_json else table.to_markdown())


def _images(
    source: str,
    grid: Grid,
    *,
    tissue: float,
    texture: Path | None,
    test: int,
    validation: int,
    seed: int,
    upsampled: int,
) -> Images:
    from pyrecon.experiments.mpi_data import PHANTOMS, generated_images, phantom_images, vessel_images

    shape = (upsampled * grid.shape[0], upsampled * grid.shape[1])
    counts: dict[str, Any] = {"test": test, "validation": validation, "seed": seed}
    if source in (*PHANTOMS, "generated"):
        if tissue > 0 or texture is not None:
            raise DataError(f"--tissue: is for vessel patches, --images is {source}")
        if source == "generated":
            return generated_images(**counts, shape=shape)
        kind = next(phantom for phantom in PHANTOMS if phantom == source)
        return phantom_images(kind, **counts, grid=grid, upsampled=upsampled)
    volume = None if source == "retina" else source
    return vessel_images(volume, **counts, tissue=tissue, tissue_volume=texture, shape=shape)


@app.command("mri")
def mri(
    file: Annotated[
        Path,
        typer.Argument(
            help="Fully sampled twix or ISMRMRD file; or an image (NIfTI, NPZ, ...), whose scan is simulated.",
            show_default=False,
        ),
    ],
    acceleration: Annotated[list[float] | None, typer.Option("--acceleration", "-a", help="Repeat for more.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="NAME, or NAME=WEIGHTS for learned ones; repeat for more. Default: all others."
        ),
    ] = None,
    coils: Annotated[int, typer.Option(min=1, max=256, help="Of a simulated scan.")] = 8,
    noise: Annotated[
        float, typer.Option(min=1e-6, help="Of a simulated scan, relative to its brightest pixel.")
    ] = 0.05,
    slices: Annotated[int, typer.Option(min=1, help="Of a simulated scan, evenly from the volume's middle half.")] = 3,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table as Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the first image of every method.")] = None,
) -> None:
    """Undersample a fully sampled scan and compare every method with the image from all lines, or with an image that a
    simulated scan was made of."""
    from pyrecon import io, plotting
    from pyrecon.cli import _settings
    from pyrecon.data.raw import MRIScan
    from pyrecon.models.mri import LEARNED, METHODS, evaluate_mri, evaluation_table, scan_of_images

    _check_targets(output, figure)
    known: dict[str, Any] = METHODS | LEARNED
    chosen = []
    for text in method or METHODS:
        name, given, weights = text.partition("=")
        chosen.append(_settings.make(known, name, [f"weights={weights}"] if given else []))
    scan, truth = io.read(file), None
    if isinstance(scan, io.Result):
        scan, truth = scan_of_images(scan.image, coils=coils, noise=noise, slices=slices)
    if not isinstance(scan, MRIScan):
        raise DataError(f"{file}: is {io.detect(file)}, expected raw MRI data (twix or ismrmrd) or an image")
    rates = acceleration or [2.0, 4.0]
    if bad := [rate for rate in rates if rate < 1]:
        raise DataError(f"--acceleration: {bad[0]} is below 1")
    with _console.err.status("reconstructing"):
        rows, images = evaluate_mri(scan, rates, chosen, reference=truth)
    table = evaluation_table(rows)
    if output is not None:
        with io.written_whole(output) as temporary:
            temporary.write_text(f"# Retrospective undersampling of {file.name}\n\n{table}\n")
    if figure is not None:
        reference = images["reference", 1.0][0].abs().cpu().numpy()
        window = (0.0, float(reference.max()))
        panels = []
        for rate in rates:
            line = [plotting.Panel(reference, "all lines" if truth is None else "truth", window=window)]
            for row in (r for r in rows if r.acceleration == rate):
                image = images[row.method, rate][0].abs().cpu().numpy()
                title = f"{row.method}, {row.net_acceleration:.1f}x"
                line.append(plotting.Panel(image, title, f"{row.psnr:.1f} dB, SSIM {row.ssim:.2f}", window))
            panels.append(line)
        height, width = reference.shape
        pixel = (scan.field_of_view[0] / height, scan.field_of_view[1] / width)
        plotting.save(plotting.figure(panels, spacing=[pixel] * len(panels), heading=file.name), figure)
    print(table)


@app.command("t1")
def t1(
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="sense-fit, or pinqi=WEIGHTS; repeat for more. Default: sense-fit."),
    ] = None,
    acceleration: Annotated[list[float] | None, typer.Option("--acceleration", "-a", help="Repeat for more.")] = None,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Rows and columns.")] = 96,
    coils: Annotated[int, typer.Option(min=1, max=256, help="Receive coils.")] = 6,
    times: Annotated[
        str, typer.Option(help="Saturation times: five, eight, or in s with commas between them.")
    ] = "five",
    centre: Annotated[int, typer.Option(min=0, help="Lines that are always taken.")] = 10,
    noise: Annotated[float, typer.Option(min=0, help="In real and imaginary part of k-space; M0 is about 1.")] = 0.01,
    test: Annotated[int, typer.Option(min=1, help="Brains.")] = 16,
    brainweb: Annotated[
        Path | None,
        typer.Option(help="A folder of BrainWeb's segmentations: brains of its test subjects.", show_default=False),
    ] = None,
    mni: Annotated[
        bool, typer.Option("--mni", help="Slices of the average brain of 152 people (needs nilearn).")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of brains, coils, lines and noise.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table as Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw T1 of the first brain by every method.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
) -> None:
    """Maps of T1 from simulated scans, compared with what the brains are: generated ones that no training draws, or
    those of --brainweb or --mni."""
    from pyrecon import io, plotting
    from pyrecon.cli import _settings
    from pyrecon.cli._jobs import check_device
    from pyrecon.cli._maps import saturation_times
    from pyrecon.data.brainweb import brainweb as read_brains
    from pyrecon.data.mni import mni_brains
    from pyrecon.experiments.t1 import evaluate_t1, evaluation_table
    from pyrecon.models.mri import MAPPING
    from pyrecon.physics.t1 import unseen_brains

    check_device(device)
    _check_targets(output, figure)
    seconds, rates = saturation_times(times), acceleration or [4.0]
    if bad := [rate for rate in rates if rate < 1]:
        raise DataError(f"--acceleration: {bad[0]} is below 1")
    if centre > size:
        raise DataError(f"--centre: {centre} lines, the images have {size}")
    chosen = []
    for text in method or ["sense-fit"]:
        name, given, weights = text.partition("=")
        made = _settings.make(MAPPING, name, [f"weights={weights}"] if given else [])
        several = sum(other.partition("=")[0] == name for other in method or ()) > 1
        chosen.append((f"{made.title} ({weights})" if several else made.title, made))
    if mni and brainweb is not None:
        raise DataError("--mni: is one source of brains, --brainweb another; give one of them")
    if mni:
        known, source = mni_brains((size, size), test, seed=seed), "slices of MNI152"
    elif brainweb is not None:
        known, source = read_brains(brainweb, test, (size, size), seed=seed, split="test"), "slices of BrainWeb"
    else:
        known, source = unseen_brains(test, size, seed), "brains"
    with _console.progress() as bar:
        task = bar.add_task("scanning")
        rows, maps = evaluate_t1(
            chosen, known, times=seconds, accelerations=rates, coils=coils, centre=centre, noise=noise, seed=seed,
            device=device,
            progress=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )  # fmt: skip
    table = evaluation_table(rows)
    if output is not None:
        told = f"{test} {source} of {size} x {size} pixels, {coils} coils, saturation times "
        told += f"{', '.join(f'{t:g}' for t in seconds)} s, noise {noise:g}, seed {seed}; means and standard deviations"
        with io.written_whole(output) as temporary:
            temporary.write_text(f"# T1 from undersampled k-space\n\n{told}.\n\n{table}\n")
    if figure is not None:
        inside = known.inside[0]
        truth = np.where(inside, known.t1[0], 0)
        window = (0.0, float(np.percentile(truth[inside], 99)) if inside.any() else 1.0)
        looks: dict[str, Any] = {"window": window, "colormap": "viridis", "bar": "s"}
        panels = []
        for rate in rates:
            line = [plotting.Panel(truth, "truth", **looks)]
            for row in (r for r in rows if r.acceleration == rate):
                image = np.where(inside, maps[row.method, rate][0], 0)
                note = f"nRMSE {float(row.errors['nrmse'][0]):.3f}"
                line.append(plotting.Panel(image, f"{row.method}, {rate:g}-fold", note, **looks))
            panels.append(line)
        plotting.save(plotting.figure(panels, heading="T1 inside the brain", panel_size=3.0), figure)
    print(table)


@app.command("ct")
def ct(
    files: Annotated[list[Path], typer.Argument(help="Scans of one object from different views.", show_default=False)],
    truth: Annotated[Path, typer.Option(help="Its segmentation: .png, .npz, ...", show_default=False)],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="NAME, or NAME=WEIGHTS for learned ones; repeat for more. Default: all others."
        ),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Of the segmentation, in mm. Default: rays' distance at the axis.", min=1e-9)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table as Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw all images.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
) -> None:
    """Segment an object of one material from limited views, scored as in the Helsinki Tomography Challenge."""
    from pyrecon import io, plotting
    from pyrecon.cli import _settings
    from pyrecon.cli._jobs import check_device
    from pyrecon.data.ct import CTScan
    from pyrecon.models.ct import LEARNED, METHODS, evaluate_ct, evaluation_table

    check_device(device)
    _check_targets(output, figure)
    chosen = []
    for text in method or METHODS:
        name, given, weights = text.partition("=")
        chosen.append(_settings.make(METHODS | LEARNED, name, [f"weights={weights}"] if given else []))
    scans = {}
    for file in files:
        scan = io.read(file)
        if not isinstance(scan, CTScan):
            raise DataError(f"{file}: is {io.detect(file)}, expected a CT scan")
        scans[file.stem] = scan
    known = io.read_result(truth).image.astype(np.float32)
    known = known[0] if known.ndim == 3 and len(known) == 1 else known
    size = None if pixel_size is None else 1e-3 * pixel_size
    with _console.err.status("reconstructing"):
        rows, images = evaluate_ct(scans, known, chosen, pixel_size=size, device=device)
    table = evaluation_table(rows)
    if output is not None:
        with io.written_whole(output) as temporary:
            temporary.write_text(f"# Segmentation from limited views: Matthews correlation\n\n{table}\n")
    if figure is not None:
        panels = []
        for name in scans:
            own = [row for row in rows if row.scan == name]
            line = [plotting.Panel(known, f"truth ({own[0].degrees:.0f} degrees)")]
            line += [plotting.Panel(images[name, r.method].numpy(), r.method, f"MCC {r.correlation:.3f}") for r in own]
            panels.append(line)
        plotting.save(plotting.figure(panels), figure)
    print(table)


def _check_targets(output: Path | None, figure: Path | None) -> None:
    """Complain about outputs before the work, not after it."""
    from pyrecon import plotting
    from pyrecon.io._files import check_writable

    if output is not None:
        check_writable("--output", output)
    plotting.check_target(figure)
