"""The phantom of PINQI's Table 1: nine tubes of liquid of known T1 in a cylinder (F. F. Zimmermann et al., 2023).

The paper gives the T1 that a fully sampled scan with 18 delays found; here they are the truth. It does not say where
the tubes stand: here in three rows of three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrecon._check import check_count, check_number, check_size
from pyrecon.data._drawing import Canvas
from pyrecon.data.brains import Brains, mixture, nothing
from pyrecon.data.heads import smooth_phase

__all__ = ["TUBES", "Tubes", "tubes"]

TUBES = (0.28, 0.38, 0.39, 0.45, 0.59, 0.60, 1.15, 1.42, 1.76)
"""T1 of the tubes in seconds."""

_STREAM = 11
# In units of half the shorter side.
_CYLINDER, _TUBE, _APART, _AWRY = 0.9, 0.15, 0.46, 0.025


@dataclass(frozen=True)
class Tubes(Brains):
    """Maps ``(N, H, W)`` as those of :class:`~pyrecon.data.brains.Brains`, of tubes in the place of tissues.

    Attributes
    ----------
    labels
        int8: the number of the tube that is most of the pixel, its place in ``reference``; -1 elsewhere.
    inside
        bool: the pixels of tubes.
    reference
        T1 in seconds.
    """

    reference: tuple[float, ...] = TUBES


def tubes(
    shape: tuple[int, int], count: int = 1, *, background: float | None = None, seed: int = 0, first: int = 0
) -> Tubes:
    """Nine tubes, each of one T1 and of an M0 from 0.8 to 1, with smooth phase; edges are mixed by area.

    Parameters
    ----------
    shape, count
        Maps ``(count, H, W)``; a tube's diameter is 0.15 of the shorter side.
    background
        T1 in seconds of what fills the cylinder about the tubes, M0 1; None for nothing: it is dark.
    seed, first
        Phantom i depends on ``(seed, first + i)`` alone: which tube stands where, and by how little it is displaced.
    """
    for name, value in (("count", count), ("seed", seed), ("first", first)):
        check_count(name, value, 0)
    shape = check_size("shape", shape, 2)  # type: ignore[assignment]  # two of them
    if background is not None:
        check_number("background", background, above=True)
    empty = nothing(count, shape)
    found = Tubes(empty.t1, empty.m0, empty.labels, empty.inside)
    unit = min(shape) / max(shape)  # of the canvas, which is 2 along the longer side
    t1 = np.array([*TUBES, background or 1.0])
    for i in range(count):
        rng = np.random.default_rng((seed, _STREAM, first + i))
        canvas = Canvas(rng, shape)
        (y0, x0), turn = rng.uniform(-0.02, 0.02, 2), rng.uniform(-0.2, 0.2)
        m0 = np.append(rng.uniform(0.8, 1.0, len(TUBES)), 0.0 if background is None else 1.0)
        shares = np.zeros((len(t1), *shape))
        for place, tube in enumerate(rng.permutation(len(TUBES))):
            row, column = _APART * np.array([place // 3 - 1, place % 3 - 1]) + rng.uniform(-_AWRY, _AWRY, 2)
            y, x = row * np.cos(turn) + column * np.sin(turn) + y0, column * np.cos(turn) - row * np.sin(turn) + x0
            shares[tube] = canvas.pixels(canvas.ellipse(unit * y, unit * x, unit * _TUBE, unit * _TUBE))
        liquid = shares[:-1].sum(0)
        cylinder = canvas.ellipse(unit * y0, unit * x0, unit * _CYLINDER, unit * _CYLINDER)
        shares[-1] = (canvas.pixels(cylinder) - liquid).clip(0)
        density, rate = mixture(shares, t1, m0)
        found.t1[i] = 1 / rate
        found.m0[i] = density * smooth_phase(shape, seed=seed, number=first + i)
        found.labels[i] = np.where(shares[:-1].max(0) > 0.5, shares[:-1].argmax(0), -1)
        found.inside[i] = found.labels[i] >= 0
    return found
