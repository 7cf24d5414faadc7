"""Sampling of k-space along spokes and spirals and at random, on the Cartesian grid, and the named masks of a paper.

As in :mod:`pyrecon.physics.mri`: bool tensors ``(B, 1, H | 1, W | 1)``, DC at index n // 2. A trajectory takes every
grid point whose cell it passes through, so its samples are points of the grid and need no gridding ("pseudo-radial").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._check import check_count, check_number, check_size
from pyrecon.physics.mri import Shape, gaussian_points, random_lines

_STEPS = 8  # points of a trajectory to a grid point along an axis: it misses only cells that it cuts by a corner


def random_points(shape: Shape, acceleration: float, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Points drawn uniformly, without replacement, the centre as likely as any other: ``(batch, 1, H, W)``.

    Exactly ``round(H * W / acceleration)`` points; DC is among them as chance has it.
    """
    height, width = _shape(shape)
    check_number("acceleration", acceleration)
    check_count("batch", batch)
    if not 1 <= acceleration <= height * width:
        raise ValueError(f"acceleration: {acceleration}, expected between 1 and {height * width}")
    count = round(height * width / acceleration)
    keys = np.random.default_rng(check_count("seed", seed, 0)).random((batch, height * width))
    taken = np.zeros(keys.shape, bool)
    np.put_along_axis(taken, np.argpartition(keys, count - 1, axis=1)[:, :count], True, axis=1)
    return torch.from_numpy(taken.reshape(batch, 1, height, width))


def spokes(shape: Shape, count: int, *, turn: float = 0.0) -> Tensor:
    """``count`` diameters at equal angles through the centre, ``(1, 1, H, W)``; ``turn`` radians further on.

    They end on the ellipse that touches the ends of both axes. 45 of them take one point of six at 320 x 320.
    """
    height, width = _shape(shape)
    angles = turn + np.pi * np.arange(check_count("count", count)) / count
    radius = np.linspace(-1, 1, _STEPS * max(height, width) + 1)
    return _rasterised(shape, radius * np.sin(angles)[:, None], radius * np.cos(angles)[:, None])


def radial_points(shape: Shape, acceleration: float, *, turn: float = 0.0) -> Tensor:
    """As many :func:`spokes` as come closest to ``acceleration``: ``(1, 1, H, W)``."""
    height, width = _shape(shape)
    _reachable(acceleration)
    wanted = height * width / acceleration
    # A spoke crosses about (H + W) 2 / pi cells, and spokes share those near the centre.
    low, high = 1, max(2, round(6 * wanted / (height + width)) + 2)
    while low < high:  # the first number of spokes with as many points
        middle = (low + high) // 2
        if int(spokes(shape, middle, turn=turn).sum()) >= wanted:
            high = middle
        else:
            low = middle + 1
    return _closest([spokes(shape, n, turn=turn) for n in (max(1, low - 1), low)], wanted)


def spiral_points(shape: Shape, acceleration: float, *, arms: int = 1, power: float = 1.5, turn: float = 0.0) -> Tensor:
    """Spirals from the centre out, as dense as ``acceleration`` asks for: ``(1, 1, H, W)``.

    The radius grows as ``t^power`` with the angle t: 1 is Archimedes' spiral, more is denser at the centre. Windings
    are searched for the number of points that comes closest to ``H * W / acceleration``; the spiral ends on the ellipse
    that touches the ends of both axes.
    """
    height, width = _shape(shape)
    _reachable(acceleration)
    check_count("arms", arms)
    check_number("power", power, above=True)
    wanted = height * width / acceleration

    def wound(windings: float) -> Tensor:
        steps = _STEPS * max(height, width) * int(np.ceil(windings) + 1) * 2
        t = np.linspace(0, 1, steps)
        angles = turn + 2 * np.pi * (windings * t + np.arange(arms)[:, None] / arms)
        return _rasterised(shape, t**power * np.sin(angles), t**power * np.cos(angles))

    low, high = 0.0, 1.0
    while int(wound(high).sum()) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-2:
        middle = (low + high) / 2
        if int(wound(middle).sum()) < wanted:
            low = middle
        else:
            high = middle
    return _closest([wound(low), wound(high)], wanted)


def _rasterised(shape: Shape, y: NDArray[np.float64], x: NDArray[np.float64]) -> Tensor:
    """Grid points nearest to ``y`` and ``x``, which are from -1 to 1 within the ellipse."""
    taken = np.zeros(shape, bool)
    rows, columns = (
        np.clip(np.floor(v * (n // 2) + 0.5).astype(int) + n // 2, 0, n - 1) for v, n in zip((y, x), shape, strict=True)
    )
    taken[rows, columns] = True
    return torch.from_numpy(taken)[None, None]


def _closest(masks: list[Tensor], wanted: float) -> Tensor:
    return min(masks, key=lambda mask: abs(int(mask.sum()) - wanted))


def _shape(shape: Shape) -> Shape:
    height, width = check_size("shape", shape, 2)
    return height, width


def _reachable(acceleration: float) -> None:
    """A full ellipse is 4 / pi of acceleration."""
    if not check_number("acceleration", acceleration) >= 1.5:
        raise ValueError(f"acceleration: {acceleration}, expected at least 1.5: an ellipse leaves the corners out")


# --- the masks of the paper ------------------------------------------------------------------------------------------
def _cartesian(shape: Shape, batch: int, seed: int, *, acl: float, axis: int) -> Tensor:
    return random_lines(shape, 4.0, acl=round(acl * shape[axis]), axis=axis, batch=batch, seed=seed)


def _gaussian(shape: Shape, batch: int, seed: int) -> Tensor:
    """DC is always taken: a draw may leave it out, and then the mean of the image is unknown."""
    return gaussian_points(shape, 8.0, calibration=1, width=0.125, batch=batch, seed=seed)


def _turned(make: Callable[..., Tensor], shape: Shape, batch: int, seed: int) -> Tensor:
    """Each mask turned at random."""
    turns = np.random.default_rng(seed).uniform(0, 2 * np.pi, batch)
    return torch.cat([make(shape, turn=float(turn)) for turn in turns])


# Zach, Knoll and Pock, Stable deep MRI reconstruction using generative priors, 2023, Tables 1 and 2. Phases are encoded
# along H, as in the scans that the readers here return (fastMRI: along W); swapped, along W.
_NAMED: dict[str, Callable[[Shape, int, int], Tensor]] = {
    "random-3x": lambda shape, batch, seed: random_points(shape, 3.0, batch=batch, seed=seed),
    "cartesian-4x": partial(_cartesian, acl=0.08, axis=-2),
    "cartesian-4x-swapped": partial(_cartesian, acl=0.08, axis=-1),
    "cartesian-4x-acl4": partial(_cartesian, acl=0.04, axis=-2),
    "spiral-5x": partial(_turned, partial(spiral_points, acceleration=5.0)),
    "radial-6x": partial(_turned, partial(radial_points, acceleration=6.0)),
    "radial-11x": partial(_turned, partial(radial_points, acceleration=11.0)),
    "gaussian-8x": _gaussian,
}
NAMES = tuple(_NAMED)


def named_mask(name: str, shape: Shape, *, batch: int = 1, seed: int = 0) -> Tensor:
    """One of ``NAMES``: bool ``(batch, 1, H | 1, W | 1)``, every image's drawn or turned anew.

    ``"random-3x"``: uniform points; ``"cartesian-4x"``: random lines with 8 % of them in the centre, ``"-swapped"``
    along the other axis, ``"-acl4"`` with 4 %; ``"spiral-5x"``, ``"radial-6x"``, ``"radial-11x"``: trajectories on the
    grid; ``"gaussian-8x"``: points of a 2-D Gaussian density, a standard deviation of an eighth of each axis. Of any
    size.
    """
    if name not in _NAMED:
        raise ValueError(f"name: {name!r}, expected one of {', '.join(NAMES)}")
    return _NAMED[name](_shape(shape), check_count("batch", batch), check_count("seed", seed, 0))
