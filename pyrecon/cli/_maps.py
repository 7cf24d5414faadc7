"""Maps of a fit as a file and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError

if TYPE_CHECKING:
    from pyrecon.data.raw import Grid
    from pyrecon.io import Result
    from pyrecon.models.mri.mapping import Maps
    from pyrecon.report import Report


_BRIGHT = 0.2  # of the brightest, above which an image is no background


def saturation_times(text: str) -> tuple[float, ...]:
    """``five``, ``eight``, or seconds with commas between them."""
    from pyrecon.physics.t1 import TIMES

    if text in TIMES:
        return TIMES[text]
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not 2 <= len(values) <= 256 or not all(0 < v < 1e3 for v in values):
        raise DataError(f"--times: {text!r}, expected {', '.join(TIMES)} or seconds with commas between them")
    return values


def maps_result(maps: Maps, report: Report, grid: Grid | None, affine: NDArray[np.float64] | None = None) -> Result:
    """Volumes one after another: maps, their standard errors, the residual, the status, what is at a bound."""
    from pyrecon.io import Result

    named = {_titled(name, maps.units[name]): values for name, values in maps.values.items()}
    named |= {_titled(f"{name} standard error", maps.units[name]): values for name, values in maps.errors.items()}
    named |= {"residual (a.u.)": maps.residual, "status": maps.status.astype(np.float32)}
    named["at a bound"] = maps.at_bound.astype(np.float32)
    told = report.to_dict()
    image = np.stack(list(named.values()))
    labels = tuple(named)
    if grid is None and affine is None:  # two axes of space: each slice is an image
        labels = tuple(f"{name}, slice {s}" for name in named for s in range(image.shape[1]))
    return Result(image, grid, report.method, told["parameters"], told, labels, affine=affine)


def draw_maps(
    path: Path,
    maps: Maps,
    name: str,
    heading: str,
    *,
    image: tuple[str, NDArray[Any]],
    spacing: tuple[float, float] | None = None,
    labels: Sequence[str] = (),
    most: int = 4,
) -> None:
    """An image of the given title, a map, its standard error if it has one, and the residual, of (at most ``most``)
    slices; white where no value was found."""
    from pyrecon import plotting

    count = len(maps.inside)
    slices = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    unknown = maps.at_bound | (maps.inside & (maps.status != 0))
    title, images = image
    panels = [(np.abs(images) if np.iscomplexobj(images) else images, title, "", "gray")]
    panels.append((np.where(unknown, np.nan, maps.values[name]), name, maps.units[name], "viridis"))
    if name in maps.errors:
        panels.append((np.where(unknown, np.nan, maps.errors[name]), "standard error", maps.units[name], "magma"))
    panels.append((maps.residual, "residual", "a.u.", "magma"))

    def window(s: int, values: NDArray[Any], text: str) -> tuple[float, float]:
        bright = panels[0][0][s] > _BRIGHT * np.percentile(panels[0][0][s], 99)
        if not bright.any() or text not in (name, "standard error"):
            return _window(values[s])
        within = _window(values[s][bright], 99)
        # Elsewhere errors have no end, and a network says anything.
        return within if text == "standard error" else max(within, _window(values[s]))

    rows = [
        [plotting.Panel(v[s], text, window=window(s, v, text), colormap=c, bar=u or " ") for v, text, u, c in panels]
        for s in slices
    ]
    titles = [labels[s] if labels else f"slice {s}" for s in slices] if len(slices) > 1 else ()
    spaced = None if spacing is None else [spacing] * len(rows)
    plotting.save(plotting.figure(rows, spacing=spaced, heading=heading, row_titles=titles, panel_size=3.0), path)


def _titled(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _window(image: NDArray[Any], share: float = 97) -> tuple[float, float]:
    """From zero to what nearly all voxels stay below: a few that are lost fit anything."""
    values = image[np.isfinite(image) & (image > 0)]
    return (0.0, float(np.percentile(values, share)) * 1.1) if values.size else (0.0, 1.0)
