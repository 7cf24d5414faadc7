"""``pyrecon inspect``: what is in a file, in one screen, and what would be done with it."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console
from pyrecon.cli.reconstruct import CT_FORMATS, MRI_FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrecon.data.ct import CTScan
    from pyrecon.data.raw import MRIScan
    from pyrecon.io.inspection import Inspection

_CALIBRATION = 24  # samples along each axis, as of a reconstruction
_IMAGES = ("nifti", "npz", "png", "pyrecon-image")


def inspect(
    file: Annotated[Path, typer.Argument(help="A file of any format in the documentation.", show_default=False)],
    whole: Annotated[
        bool, typer.Option("--whole", help="Read the samples too, however many; else those of up to 256 MiB.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what is in a file: counters, flags, geometry, noise, and what would be done with it."""
    from pyrecon.io.inspection import MOST_READ
    from pyrecon.io.inspection import inspect as look

    found = look(file, most=2**62 if whole else MOST_READ)
    plan, told = _plan(found)
    notes = [*found.notes, *(text for text in told if text not in found.notes)]
    if as_json:
        print(json.dumps(_plain(found, plan, notes), indent=2))
        return
    _facts({"file": f"{found.path.name}: {found.kind}, {_bytes(found.size)}"} | found.facts)
    if found.counters:
        _table(("counter", "lowest", "highest", "how many"), found.counters)
    if found.readouts:
        _table(("readouts", "how many", "channels", "samples", "flags"), found.readouts)
    for note in notes:
        _line("note", note)
    if found.refusal is not None:
        _line("refused", found.refusal)
    _console.out.print("[bold]would be done[/]")
    _facts(plan)


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def _line(name: str, text: str) -> None:
    _console.out.print(f"{name:<14} {text}", markup=False, soft_wrap=True)


def _facts(facts: dict[str, str]) -> None:
    for name, text in facts.items():
        _line(name, text)


def _table(heads: tuple[str, ...], rows: list[Any]) -> None:
    """Numbers to the right, texts to the left, nothing cut off however narrow the terminal."""
    texts = [heads, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(heads))]
    numbers = [all(isinstance(row[i], int) for row in rows) for i in range(len(heads))]
    for row in texts:
        cells = [
            cell.rjust(width) if number else cell.ljust(max(width, 14) if i == 0 else width)
            for i, (cell, width, number) in enumerate(zip(row, widths, numbers, strict=True))
        ]
        _console.out.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)


def _plain(found: Inspection, plan: dict[str, str], notes: list[str]) -> dict[str, Any]:
    counters = [dict(zip(("counter", "lowest", "highest", "count"), row, strict=True)) for row in found.counters]
    readouts = [
        dict(zip(("kind", "count", "channels", "samples", "flags"), row, strict=True)) for row in found.readouts
    ]
    return {
        "file": str(found.path), "kind": found.kind, "bytes": found.size, "facts": found.facts,
        "counters": counters, "readouts": readouts, "notes": notes, "refused": found.refusal, "plan": plan,
    }  # fmt: skip


# ---- what would be done


def _plan(found: Inspection) -> tuple[dict[str, str], list[str]]:
    """By name, and what was warned of on the way."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        plan = _of_kind(found)
    return plan, [str(w.message) for w in raised]


def _of_kind(found: Inspection) -> dict[str, str]:
    if found.refusal is not None:
        return {"nothing": "the reader refuses the file"}
    if found.kind == "mdf-measurement":
        return {"method": "Hyb-ADMM, with its system matrix: pyrecon reconstruct FILE --system-matrix SM.mdf"}
    if found.kind == "mdf-system-matrix":
        return {"nothing": "a system matrix; give it as --system-matrix along with a measurement"}
    if found.kind in _IMAGES:
        return {"nothing": "an image already"}
    if found.kind in ("folder", "dicom"):
        return {"nothing": "images already; pyrecon fit makes maps of T1, T2 or T2* of a series"}
    if found.kind not in MRI_FORMATS + CT_FORMATS:
        return {"nothing": f"{found.kind} is no raw data that pyrecon reconstructs"}
    if found.unread is not None:
        method = {} if found.lines is None or not found.lines.any() else {"method": _named(_by_lines(found.lines))}
        return method | {"not looked at": f"{found.unread}; --whole does"}
    return _of_mri(found.scan) if found.kind in MRI_FORMATS else _of_ct(found.scan)


def _by_lines(lines: NDArray[np.bool_]) -> Any:
    """The default method of a scan of these lines ``(E, P, H)``, of which no sample was read."""
    from pyrecon.data.raw import MRIScan
    from pyrecon.models.mri import default_method

    mask = lines.reshape(-1, 1, lines.shape[2], 1)
    nothing = np.broadcast_to(np.complex64(0), (len(mask), 1, lines.shape[2], 1))
    return default_method(MRIScan(nothing, mask))


def _of_mri(scan: MRIScan) -> dict[str, str]:
    from pyrecon.cli._jobs import volumes_of
    from pyrecon.data.mri import check_scan, image_height, readout_width
    from pyrecon.models.mri import default_method

    count, coils = scan.kspace.shape[:2]
    method = default_method(scan)
    plan = {"method": _named(method)}
    try:
        check_scan(scan)
        height, width = image_height(scan), readout_width(scan)
        each = scan.encoded_partitions
        volumes = "" if each == 1 else f", {count // each} volumes of {each} partitions sampled differently"
        plan["images"] = f"{count} of {height} x {width}{volumes}"
        if coils > 1:
            plan["coil maps"] = _coil_maps(scan)
        else:
            plan["coil maps"] = "1 (single coil)"
        scanned = scan.noise is not None and scan.noise.shape[1] >= 4 * coils
        plan["noise"] = "whitened by the noise scan" if scanned else "whitened by the corners of k-space"
        plan["geometry"] = volumes_of(scan, np.arange(count), (height, width)).note
    except DataError as error:
        plan["refused"] = str(error)
    for name, values in scan.settings.items():
        known = np.unique(values)
        if len(known) > 1:
            plan[name] = ", ".join(f"{v:.4g}" for v in known[:12]) + (", ..." if len(known) > 12 else "")
    return plan


def _coil_maps(scan: MRIScan) -> str:
    """Where they come from, as a reconstruction finds them."""
    from pyrecon.data.mri import remove_oversampling
    from pyrecon.data.planes import planes_of
    from pyrecon.models.mri.reconstruct import calibration_block, kernel_sides

    in_planes = scan.encoded_partitions > 1
    scan = remove_oversampling(scan)
    if in_planes:
        scan, _ = planes_of(scan)
    try:
        block, _, over_time = calibration_block(scan, _CALIBRATION)
    except DataError as error:
        return f"refused: {error}; -m joint needs none"
    height, width = block.shape[2:]
    kernel = kernel_sides((height, width), in_planes=in_planes)
    if height < kernel[0] or width < kernel[1]:
        return (
            f"refused: calibration: {height} x {width} samples are fewer than the kernel of {kernel[0]} x {kernel[1]}; "
            "-m joint needs none"
        )
    source = "the reference scan" if scan.calibration is not None else "the centre of k-space"
    return f"estimated from {height} x {width} samples of {'the average over time' if over_time else source}"


def _of_ct(scan: CTScan) -> dict[str, str]:
    from pyrecon.data.ct import coverage
    from pyrecon.models.ct import default_method

    geometry = scan.geometry
    method = default_method(scan)
    pixels = " x ".join(f"{1e3 * size:.4g}" for size in geometry.pixel_size)
    return {
        "method": _named(method),
        "coverage": str(coverage(geometry)),
        "images": f"{geometry.shape[0]} x {geometry.shape[1]} pixels of {pixels} mm",
    }


def _named(method: Any) -> str:
    """With its settings."""
    settings = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(method).items())
    return f"{method.name} ({settings})"
