"""Figures of reconstructions. Needs matplotlib (the ``viz`` extra); imported only when a figure is asked for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.raw import Grid
from pyrecon.io import written_whole
from pyrecon.io._files import check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One image of a figure.

    Attributes
    ----------
    image
        ``(H, W)``; the magnitude of complex images is shown.
    title, note
        Lines above and below the image.
    window
        Grey levels of black and white; default 0 (or the minimum, if negative) to the 99.9th percentile.
    colormap
        A matplotlib name.
    bar
        With a colour bar of this unit.
    spacing
        Pixel size ``(y, x)`` in metres, where panels of a row differ: all of the row are then drawn to one scale.
    cross
        Row and column of thin lines through the image: where the planes of its neighbours cut it.
    """

    image: NDArray[Any]
    title: str = ""
    note: str = ""
    window: tuple[float, float] | None = None
    colormap: str = "gray"
    bar: str = ""
    spacing: tuple[float, float] | None = None
    cross: tuple[float, float] | None = None


def figure(
    rows: Sequence[Sequence[Panel]],
    *,
    spacing: Sequence[tuple[float, float]] | None = None,
    heading: str = "",
    row_titles: Sequence[str] = (),
    panel_size: float = 2.2,
) -> Figure:
    """Lay out panels in rows.

    Parameters
    ----------
    rows
        Panels, row by row; rows may differ in length and in image shape.
    spacing
        Per row the pixel size ``(y, x)`` in metres: pixels are drawn in proportion, with a scale bar. None for neither.
    heading, row_titles
        Text above the figure, and above each row.
    panel_size
        Width of a panel in inches.
    """
    matplotlib = _matplotlib()
    shares = [_shares(row) for row in rows]
    heights = [
        _aspect(row, spacing[i] if spacing else None) * panel_size
        if share is None
        else _tallest(row, share) * panel_size
        for i, (row, share) in enumerate(zip(rows, shares, strict=True))
    ]
    extra = 0.55 + (0.3 if row_titles else 0.0)
    width = max(len(row) for row in rows) * (panel_size + 0.1)
    total = sum(heights) + extra * len(rows) + (0.4 if heading else 0.0)
    fig: Figure = matplotlib.figure.Figure(figsize=(width, total), dpi=150, layout="constrained")
    if heading:
        fig.suptitle(heading, fontsize=11)
    bands = fig.subfigures(len(rows), 1, squeeze=False, height_ratios=[h + extra for h in heights])[:, 0]
    for i, (band, row) in enumerate(zip(bands, rows, strict=True)):
        if row_titles:
            band.suptitle(row_titles[i], fontsize=9, x=0.01, ha="left", weight="bold")
        share = shares[i]
        if share is None:
            axes = band.subplots(1, max(len(r) for r in rows), squeeze=False)[0]
        else:
            axes = band.subplots(1, len(row), squeeze=False, width_ratios=share)[0]
        for axis, panel in zip(axes, row, strict=False):
            _draw(axis, panel, panel.spacing or (spacing[i] if spacing else None))
        for axis in axes[len(row) :]:
            axis.set_axis_off()
        first = row[0].spacing or (spacing[i] if spacing else None)
        if first:
            _scale_bar(axes[0], row[0].image.shape, first)
    return fig


def volume_panels(volume: NDArray[Any], grid: Grid, axes: str = "zyx") -> list[Panel]:
    """Three orthogonal slices through the brightest voxel of a ``(Z, Y, X)`` volume and its maximum-intensity
    projection along the first axis, in one window, with thin lines where the slices cut each other.

    ``axes`` names the axes of the volume in the titles, which say where the slices lie.
    """
    values = np.abs(volume) if np.iscomplexobj(volume) else np.asarray(volume)
    known = np.where(np.isfinite(values), values, -np.inf)
    peak = np.unravel_index(int(known.argmax()), known.shape)
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), float(finite.max())) if finite.size else (0.0, 1.0)
    window = (low, high if high > low else low + 1.0)
    panels = []
    for cut in range(3):
        down, right = (axis for axis in range(3) if axis != cut)
        place = grid.center[cut] + (peak[cut] - (grid.shape[cut] - 1) / 2) * grid.spacing[cut]
        panels.append(
            Panel(
                values.take(peak[cut], axis=cut),
                title=f"{axes[cut]} = {1e3 * place:.3g} mm",
                note=f"{axes[right]} to the right, {axes[down]} down",
                window=window,
                spacing=(grid.spacing[down], grid.spacing[right]),
                cross=(float(peak[down]), float(peak[right])),
            )
        )
    panels.append(
        Panel(
            values.max(axis=0),
            title=f"maximum along {axes[0]}",
            note=f"{axes[2]} to the right, {axes[1]} down; white is {window[1]:.3g}",
            window=window,
            spacing=(grid.spacing[1], grid.spacing[2]),
        )
    )
    return panels


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, log: Literal["", "x", "y", "xy"] = ""
) -> Figure:
    """Named lines through points ``(x, y)`` in one pair of axes, of which ``log`` are logarithmic."""
    many = len(lines) > 6  # then the names stand beside the axes
    fig: Figure = _matplotlib().figure.Figure(figsize=(7.6 if many else 5.6, 3.6), dpi=150, layout="constrained")
    axis = fig.subplots()
    styles = itertools.product(("-", "--", ":"), [f"C{i}" for i in range(10)])  # no two lines alike
    for (name, points), marker, (dashes, color) in zip(lines.items(), itertools.cycle("osv^D"), styles, strict=False):
        look: dict[str, Any] = {
            "marker": marker,
            "markersize": 4,
            "linewidth": 1.2,
            "linestyle": dashes,
            "color": color,
        }
        axis.plot(*zip(*points, strict=True), **look, label=name)
    axis.set(xlabel=x, ylabel=y, **{f"{name}scale": "log" for name in log})
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, **({"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if many else {}))
    return fig


def save(fig: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure whole or not at all; the format follows the extension."""
    with written_whole(path) as temporary:
        fig.savefig(temporary, format=_format(Path(path)))


def check_target(path: str | os.PathLike[str] | None) -> None:
    """DataError, before the work, where :func:`save` could not write a figure; MissingDependency without matplotlib."""
    if path is not None:
        _format(Path(path))
        check_writable("--figure", Path(path))


def _format(path: Path) -> str:
    _matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    kind, known = path.suffix.removeprefix(".") or "png", FigureCanvasBase.get_supported_filetypes()
    if kind not in known:
        raise DataError(f"{path}: has no known figure format, expected one of {', '.join(sorted(known))}")
    return kind


def _draw(axis: Any, panel: Panel, spacing: tuple[float, float] | None) -> None:
    image = np.abs(panel.image) if np.iscomplexobj(panel.image) else np.asarray(panel.image)
    finite = image[np.isfinite(image)]
    low, high = panel.window or (
        min(0.0, float(finite.min())) if finite.size else 0.0,
        float(np.percentile(finite, 99.9)) if finite.size else 1.0,
    )
    aspect = spacing[0] / spacing[1] if spacing else 1.0
    shown = axis.imshow(image, cmap=panel.colormap, vmin=low, vmax=high if high > low else low + 1.0, aspect=aspect,
                        interpolation="nearest")  # fmt: skip
    if panel.bar:
        bar = axis.figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
        bar.ax.set_title(panel.bar, fontsize=7)
        bar.ax.tick_params(labelsize=6)
    if panel.cross is not None:
        look: dict[str, Any] = {"color": "tab:orange", "linewidth": 0.5, "alpha": 0.6}
        axis.axhline(panel.cross[0], **look)
        axis.axvline(panel.cross[1], **look)
    axis.set_title(panel.title, fontsize=8)
    axis.set_xlabel(panel.note, fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])


def _scale_bar(axis: Any, shape: tuple[int, ...], spacing: tuple[float, float]) -> None:
    extent = shape[-1] * spacing[1]
    length = max((v for v in (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1) if v <= extent / 2.5), default=1e-3)
    x, y = 0.06 * shape[-1] - 0.5, 0.95 * shape[-2] - 0.5
    axis.plot([x, x + length / spacing[1]], [y, y], color="white", linewidth=2, solid_capstyle="butt")
    axis.text(x, y - 0.02 * shape[-2], f"{length * 1e3:g} mm", color="white", fontsize=6, va="bottom")


def _aspect(row: Sequence[Panel], spacing: tuple[float, float] | None) -> float:
    dy, dx = spacing or (1.0, 1.0)
    return float(max(p.image.shape[-2] * dy / (p.image.shape[-1] * dx) for p in row))


def _shares(row: Sequence[Panel]) -> list[float] | None:
    """Widths of panels with pixel sizes of their own, drawn to one scale; None where they have none."""
    widths = [p.image.shape[-1] * p.spacing[1] for p in row if p.spacing is not None]
    return widths if len(widths) == len(row) else None


def _tallest(row: Sequence[Panel], widths: Sequence[float]) -> float:
    """Height of such a row over the mean width of its panels."""
    heights = [p.image.shape[-2] * p.spacing[0] for p in row if p.spacing is not None]
    return float(max(heights) / np.mean(widths))


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "viz", "drawing figures") from error
    return matplotlib
