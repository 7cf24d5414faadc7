"""``pyrecon sample``: a raw-data file in, an image and what the data leave open of it out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console
from pyrecon.cli._jobs import check_device, placed_grid, volumes_of
from pyrecon.cli.reconstruct import MRI_FORMATS, check_target

if TYPE_CHECKING:
    from pyrecon.data.placement import Volumes
    from pyrecon.data.raw import Grid, MRIScan
    from pyrecon.io.results import Result
    from pyrecon.models.mri.sampling import Uncertainty
    from pyrecon.report import Report


class Kind(StrEnum):
    """Samplers; :data:`pyrecon.models.mri.sampling.SAMPLERS` are these."""

    PRECONDITIONED = "preconditioned"
    ULA = "ula"
    MALA = "mala"


def sample(
    file: Annotated[
        Path, typer.Argument(help="Raw data of MRI: Siemens twix, ISMRMRD, fastMRI or k-space.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Maps: .nii, .nii.gz, .npz or .h5. Default: FILE_posterior.nii.gz."),
    ] = None,
    prior: Annotated[
        str, typer.Option(help="tv (smoothed total variation), or weights of a generative prior: a file or a name.")
    ] = "tv",
    sampler: Annotated[
        Kind | None,
        typer.Option(
            help="preconditioned: most of an evaluation; ula: cheapest a step; mala: no bias of the step. Default: ula "
            "for tv, else preconditioned.",
            show_default=False,
        ),
    ] = None,
    chains: Annotated[int, typer.Option(help="Chains of every slice.", min=1)] = 4,
    burn_in: Annotated[int, typer.Option(help="Steps to forget the start.", min=0)] = 500,
    samples: Annotated[int, typer.Option(help="States of each chain to keep after them.", min=8)] = 2000,
    thinning: Annotated[int, typer.Option(help="Steps from one state that is kept to the next.", min=1)] = 1,
    level: Annotated[float, typer.Option(help="Of the intervals: what they hold of a pixel's posterior.")] = 0.9,
    weight: Annotated[
        float | None, typer.Option(help="Of the prior; default: what suits it.", min=0, show_default=False)
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Coil maps together with an image, as where no calibration lines are.")
    ] = False,
    coils: Annotated[int | None, typer.Option(help="Compress to this many coils.", min=1, show_default=False)] = None,
    slices: Annotated[
        int | None, typer.Option(help="Only the first slices, so many.", min=1, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.", min=0)] = 0,
    figure: Annotated[Path | None, typer.Option(help="Also draw the maps: .png, .pdf or .svg.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Sample the posterior of every slice: mean, standard deviation and intervals of every pixel.

    Ctrl-C leaves the chains in OUTPUT.chains; the same command goes on from them to the same numbers.
    """
    from pyrecon import io
    from pyrecon.data.mri import first_slices
    from pyrecon.data.raw import MRIScan
    from pyrecon.models.mri.sampling import sample_mri

    target = output or Path(f"{file.name.removesuffix('.gz').rsplit('.', 1)[0]}_posterior.nii.gz")
    check_target(target, figure)
    if target.suffix.lower() == ".png":
        raise DataError("--output: .png holds no numbers; use --figure for a picture")
    if not 0 < level < 1:
        raise DataError(f"--level: {level}, expected a number between 0 and 1")
    check_device(device)
    kind = io.detect(file)
    if kind not in MRI_FORMATS:
        raise DataError(f"{file}: is {kind}, expected raw data of MRI ({', '.join(MRI_FORMATS)})")
    chosen = _prior(prior, device)
    scan = io.read(file)
    assert isinstance(scan, MRIScan)
    if slices is not None:
        scan = first_slices(scan, slices)
    with _console.progress() as bar:
        task = bar.add_task(f"{len(scan.kspace)} slices, {chains} chains")
        found, report = sample_mri(
            scan, chosen, sampler=None if sampler is None else sampler.value, chains=chains, burn_in=burn_in,
            samples=samples, thinning=thinning, level=level, weight=weight, joint=joint, coils=coils, seed=seed,
            device=device,
            state=target.with_name(f"{target.name}.chains"),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    report.details |= {"file": file.name}
    report.parameters["prior"] = prior
    grid = _grid(scan)
    count, height, width = grid.shape
    io.write_result(target, _result(found, report, grid, volumes_of(scan, np.arange(count), (height, width))))
    if figure is not None:
        _draw(figure, found, f"{file.name}: {report.method}", grid, scan.labels)
    if as_json:
        print(json.dumps(report.to_dict() | {"output": str(target)}, indent=2))
    else:
        _console.out.print(str(report), markup=False, soft_wrap=True)
        _console.out.print(f"written      {target}" + (f", {figure}" if figure else ""), markup=False, soft_wrap=True)


def _prior(name: str, device: str) -> Any:
    from pyrecon.models.mri.sampling import TV_EPSILON
    from pyrecon.solvers import Charbonnier

    if name == "tv":
        return Charbonnier(TV_EPSILON)
    from pyrecon.models import GenerativePrior

    return GenerativePrior.from_pretrained(name).to(device)


def _grid(scan: MRIScan) -> Grid:
    from pyrecon.data.mri import image_height, readout_width
    from pyrecon.data.raw import Grid

    y, x, thickness = scan.field_of_view
    shape = (len(scan.kspace), image_height(scan), readout_width(scan))
    return Grid(shape, (thickness, y / shape[1], x / shape[2]), (0.0, 0.0, 0.0))


def _volumes(found: Uncertainty) -> dict[str, Any]:
    """By title, in the order in which they are written."""
    level = f"{found.level:.0%}"
    return {
        "mean": found.mean,
        "standard deviation": found.std,
        f"lower end, {level}": found.lower,
        f"upper end, {level}": found.upper,
        "effective samples": found.ess,
        "split R-hat": found.rhat,
    }


def _result(found: Uncertainty, report: Report, grid: Grid, arranged: Volumes) -> Result:
    """Volumes of one time lie where the scanner had them; those of several follow each other, nowhere in space."""
    from pyrecon.io import Result

    named, order = _volumes(found), arranged.order
    report.details["geometry"] = arranged.note
    told = report.to_dict()
    image = np.stack([value.numpy() for value in named.values()])
    affine = None
    if len(order) == 1:
        image, grid, affine = image[:, order[0]], placed_grid(grid, order.shape[1], arranged), arranged.affine
    return Result(image, grid, report.method, told["parameters"], told, tuple(named), affine=affine, placed=False)


def _draw(path: Path, found: Uncertainty, heading: str, grid: Grid, labels: tuple[str, ...], most: int = 4) -> None:
    from pyrecon import plotting

    count = len(found.mean)
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    rows = []
    for s in chosen:
        mean, std, width = (v[s].numpy() for v in (found.mean, found.std, found.upper - found.lower))
        finite = std[np.isfinite(std)]
        top = float(np.percentile(finite, 99.5)) if finite.size and finite.max() > 0 else 1.0
        rows.append([
            plotting.Panel(mean, "mean"),
            plotting.Panel(std, "standard deviation", window=(0.0, top), colormap="magma", bar=" "),
            plotting.Panel(width, f"{found.level:.0%} interval", window=(0.0, 3.5 * top), colormap="magma", bar=" "),
        ])  # fmt: skip
    titles = [labels[s] if s < len(labels) else f"slice {s}" for s in chosen] if count > 1 else ()
    spacing = [(grid.spacing[-2], grid.spacing[-1])] * len(rows)
    plotting.save(plotting.figure(rows, spacing=spacing, heading=heading, row_titles=titles, panel_size=3.0), path)
