"""``pyrecon fit``: a series of images in, maps of relaxation times with their errors out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.cli import _console
from pyrecon.cli._jobs import check_device
from pyrecon.cli._maps import draw_maps, maps_result
from pyrecon.cli.reconstruct import check_target

if TYPE_CHECKING:
    from pyrecon.data.series import ImageSeries
    from pyrecon.models.mri.mapping import Maps, Region


class Series(StrEnum):
    """What was measured; :data:`pyrecon.models.mri.mapping.KINDS` says what each is."""

    IR = "ir"
    SR = "sr"
    MOLLI = "molli"
    VFA = "vfa"
    T2 = "t2"
    EPG = "epg"
    T2STAR = "t2star"


def fit(
    kind: Annotated[
        Series,
        typer.Argument(
            help="Inversion (ir) or saturation recovery (sr), MOLLI, variable flip angles (vfa), spin echoes (t2; "
            "epg: with stimulated echoes), gradient echoes (t2star).",
            show_default=False,
        ),
    ],
    series: Annotated[
        list[Path],
        typer.Argument(
            help="A folder of DICOM files; NIfTI with an axis of images, or one file an image, with BIDS sidecars.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Maps and errors: .nii, .nii.gz, .npz or .h5.")] = Path(
        "maps.nii.gz"
    ),
    times: Annotated[
        str | None,
        typer.Option(metavar="T1,T2,...", help="Inversion, saturation or echo times in s.", show_default=False),
    ] = None,
    flip_angles: Annotated[
        str | None, typer.Option(metavar="A1,A2,...", help="In degrees.", show_default=False)
    ] = None,
    repetition_time: Annotated[
        str | None, typer.Option(metavar="TR[,TR,...]", help="In s, one or one an image.", show_default=False)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="An image: 0 is not fitted, other whole numbers are regions.", show_default=False),
    ] = None,
    b1: Annotated[
        Path | None,
        typer.Option("--b1", help="vfa, epg: an image of actual over nominal flip angles.", show_default=False),
    ] = None,
    offset: Annotated[bool, typer.Option("--offset", help="t2, t2star: a constant beside the decay.")] = False,
    noise_std: Annotated[
        float | None,
        typer.Option(
            help="Of real and imaginary part, in the unit of the images: magnitudes are fitted by their Rician "
            "likelihood.",
            min=1e-30,
            show_default=False,
        ),
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(
            help="ir with several repetition times: of the inversion; default fitted.",
            min=0.01,
            max=1.0,
            show_default=False,
        ),
    ] = None,
    refocusing_angle: Annotated[
        float, typer.Option(help="epg: nominal angle of the refocusing pulses, degrees.", min=1, max=360)
    ] = 180.0,
    t1: Annotated[float, typer.Option("--t1", help="epg: the T1 that is assumed, s.", min=1e-3)] = 1.0,
    component: Annotated[
        str | None, typer.Option(help="DICOM: magnitude, phase, real or imaginary images.", show_default=False)
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the maps: .png, .pdf or .svg.")] = None,
    table: Annotated[Path | None, typer.Option(help="Also write the values of the regions: .csv or .md.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print report and regions as JSON.")] = False,
) -> None:
    """Fit T1, T2 or T2* in every voxel of a series of images."""
    from pyrecon import io
    from pyrecon.io._files import check_writable
    from pyrecon.io.series import read_map, read_series
    from pyrecon.models.mri.mapping import KINDS, fit_series, regions

    check_target(output, figure)
    if output.suffix.lower() == ".png":
        raise DataError("--output: .png holds no numbers; use --figure for a picture")
    if table is not None and table.suffix.lower() not in (".csv", ".md"):
        raise DataError(f"--table: {table.name!r} has no known format, expected .csv or .md")
    if table is not None:
        check_writable("--table", table)
    check_device(device)
    scan = _with_settings(
        read_series(series, component=component), KINDS[kind].setting, times, flip_angles, repetition_time
    )
    labels = None if mask is None else read_map(mask, scan, "--mask")
    factor = None if b1 is None else read_map(b1, scan, "--b1")
    with _console.progress() as bar:
        task = bar.add_task(KINDS[kind].about, total=scan.images.shape[1])
        maps, report = fit_series(
            scan, kind, mask=labels, b1=factor, offset=offset, noise_std=noise_std, efficiency=efficiency,
            refocusing=math.radians(refocusing_angle), t1=t1, device=device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    report.details |= {"file": ", ".join(path.name for path in series)}
    shown = [name for name in maps.values if maps.units[name] == "s"][:1] + (["B1"] if "B1" in maps.values else [])
    found = [r for name in shown for r in regions(maps, maps.inside if labels is None else labels, name)]
    io.write_result(output, maps_result(maps, report, scan.grid, scan.affine))
    if figure is not None:
        heading = f"{KINDS[kind].about}: {', '.join(path.name for path in series[:3])}"
        spacing = None if scan.grid is None else (scan.grid.spacing[-2], scan.grid.spacing[-1])
        draw_maps(figure, maps, shown[0], heading, image=("first image", scan.images[0]), spacing=spacing)
    listing = _listing(found, maps)
    if table is not None:
        with io.written_whole(table) as temporary:
            temporary.write_text(listing.to_csv() if table.suffix.lower() == ".csv" else listing.to_markdown())
    if as_json:
        told = {"output": str(output), "regions": plain(found)}  # NaN, of a region without a value, is none of JSON
        print(json.dumps(report.to_dict() | told, indent=2))
        return
    _console.out.print(str(report), markup=False, soft_wrap=True)
    _print(listing)
    also = "".join(f", {path}" for path in (figure, table) if path is not None)
    _console.out.print(f"written      {output}{also}", markup=False, soft_wrap=True)


def _with_settings(
    scan: ImageSeries, wanted: str, times: str | None, flip_angles: str | None, repetition_time: str | None
) -> ImageSeries:
    """What the command line says instead of the files."""
    count, known = len(scan.images), dict(scan.settings)
    if wanted == "flip angle" and times is not None:
        raise DataError("--times: a series of flip angles has none; give --flip-angles, in degrees")
    if wanted != "flip angle" and flip_angles is not None:
        raise DataError(f"--flip-angles: is for vfa; this series differs in its {wanted}")
    for option, text, name, unit in (
        ("--times", times, wanted, 1.0),
        ("--flip-angles", flip_angles, "flip angle", math.pi / 180),
        ("--repetition-time", repetition_time, "repetition time", 1.0),
    ):
        if text is None:
            continue
        values = _numbers(option, text)
        if name == "repetition time" and len(values) == 1:
            values = values * count
        if len(values) != count:
            raise DataError(f"{option}: {len(values)} values, but {count} images")
        known[name] = unit * np.array(values)
    return dataclasses.replace(scan, settings=known)


def _numbers(option: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(v) for v in values):
        raise DataError(f"{option}: {text!r}, expected numbers with commas between them")
    return values


def _listing(found: Sequence[Region], maps: Maps) -> Any:
    from pyrecon.experiments.table import Listing

    heads = ["region", "map", "unit", "voxels", "of", "mean", "standard deviation", "median", "standard error"]
    lines = [
        [str(r.label), r.name, maps.units[r.name], str(r.voxels), str(r.size),
         *(f"{v:.5g}" for v in (r.mean, r.deviation, r.median, r.error))]
        for r in found
    ]  # fmt: skip
    notes = [
        "Voxels with a value, of the region's: converged, not at a bound. The standard error is the mean of those of "
        "single voxels."
    ]
    return Listing("Regions", heads, lines, notes)


def _print(listing: Any, most: int = 30) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in listing.heads:
        table.add_column(head, justify="left" if head in ("region", "map", "unit") else "right")
    for line in listing.lines[:most]:
        table.add_row(*line)
    _console.out.print(table)
    if len(listing.lines) > most:
        _console.out.print(f"... {len(listing.lines) - most} more regions (--table writes all)")
