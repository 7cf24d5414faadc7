"""Magnitude images to train a generative prior on: heads, knees, and crops of photographs as textures.

What nobody has to collect: shapes of :mod:`pyrecon.data.heads` and :mod:`pyrecon.data.knees` under random contrasts,
shaded as by coils, with texture at several scales (total variation is not the truth of them), and photographs of
:mod:`pyrecon.data.photographs`, which are CC0 or in the public domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_count
from pyrecon.data._drawing import Canvas
from pyrecon.data.heads import heads
from pyrecon.data.knees import knees
from pyrecon.data.photographs import Part, photographs

__all__ = ["KINDS", "Kind", "draw_magnitudes"]

Kind = Literal["heads", "knees", "suppressed-knees", "textures"]
KINDS: tuple[Kind, ...] = ("heads", "knees", "suppressed-knees", "textures")
_STREAM = 10
_LEAST_SIZE = 8


def draw_magnitudes(
    size: int,
    first: int,
    count: int,
    seed: int,
    *,
    kinds: Sequence[Kind] = ("heads", "knees", "textures"),
    part: Part = "train",
) -> NDArray[np.float32]:
    """Random magnitude images, each divided by its maximum.

    Parameters
    ----------
    size
        Pixels along both axes; they can be told apart by eye from 32 on.
    first, count, seed
        Images ``first`` and following. Image i depends on ``(seed, i)``, size, kinds and part alone.
    kinds
        What they show, drawn with equal chances; repeat one to have more of it. ``"suppressed-knees"`` are knees of
        another contrast, fat suppressed, for tests out of distribution.
    part
        Of the photographs: see :func:`~pyrecon.data.photographs.photographs`. Heads and knees of another part are those
        of another seed.

    Returns
    -------
    ``(count, size, size)`` float32, 0 to 1, and 1 somewhere in each.
    """
    check_count("size", size, _LEAST_SIZE)
    for name, value in (("first", first), ("count", count), ("seed", seed)):
        check_count(name, value, 0)
    known: tuple[Kind, ...] = tuple(kinds)
    if isinstance(kinds, str) or not known or not set(known) <= set(KINDS):
        raise ValueError(f"kinds: {', '.join(map(str, known)) or 'none'}, expected some of {', '.join(KINDS)}")
    if part not in ("train", "validation", "test"):
        raise ValueError(f"part: {part!r}, expected train, validation or test")
    images = np.empty((count, size, size), np.float32)
    for i in range(count):
        rng = np.random.default_rng((seed, _STREAM, ("train", "validation", "test").index(part), first + i))
        kind = known[int(rng.integers(len(known)))]
        image = _drawn(kind, (size, size), seed, first + i, part)
        if kind != "textures":
            image = _textured(image, rng)
        images[i] = image / max(float(image.max()), 1e-6)
    return images


def _drawn(kind: Kind, shape: tuple[int, int], seed: int, number: int, part: Part) -> NDArray[np.float32]:
    if kind == "textures":
        images = photographs(1, shape, color=False, part=part, seed=seed, first=number)
    elif kind == "heads":
        images = np.abs(heads(1, shape, seed=seed, first=number, phase=0.0))
    else:
        images = knees(1, shape, seed=seed, first=number, suppressed=kind == "suppressed-knees")
    return np.asarray(images[0])


def _textured(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Grain of 2 to 8 % within the tissue, of a spectrum that falls slowly, so that no scale is smooth."""
    canvas = Canvas(rng, image.shape)
    grain = canvas.pixels(canvas.field(0.03, slope=rng.uniform(0.9, 1.4)))
    amount = np.exp(rng.uniform(np.log(0.02), np.log(0.08))) / max(float(grain.std()), 1e-12)
    return np.asarray((image * (1 + amount * grain)).clip(min=0), np.float32)
