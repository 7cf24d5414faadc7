"""Random heads for magnetic resonance: an endless supply of training images that are nobody's brain.

A slice of scalp, skull, water, folded grey matter, white matter and ventricles, in the contrast of a random spin echo,
shaded as by a coil, textured, with smooth phase. Image i depends on ``(seed, first + i)`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyrecon.data._drawing import Canvas, Real, drawn

Tissue = tuple[float, float, float]

# Proton density, T1 and T2 in seconds at 3 T.
FAT, MUSCLE, WATER = (0.9, 0.35, 0.07), (0.75, 1.3, 0.04), (1.0, 4.0, 1.5)
GREY, WHITE, DEEP, MARROW = (0.82, 1.35, 0.1), (0.7, 0.85, 0.075), (0.8, 1.1, 0.075), (0.6, 0.4, 0.06)


def heads(
    count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0, phase: float = 1.0
) -> NDArray[np.complex64]:
    """``(count, H, W)`` complex64, magnitudes from 0 to 1; ``phase`` scales :func:`smooth_phase`."""
    images = np.empty((count, *shape), np.complex64)
    for i, magnitude in enumerate(drawn(_head, count, shape, seed, first, 5)):
        images[i] = magnitude * smooth_phase(shape, seed=seed, number=first + i, size=phase)
    return images


def smooth_phase(shape: tuple[int, int], *, seed: int = 0, number: int = 0, size: float = 1.0) -> NDArray[np.complex64]:
    """``exp(i phi)``, ``(H, W)``: an offset, a slope and slow waves, as off-resonance and the coil leave them.

    Slope and waves have standard deviations of about ``size`` / 2 radians.
    """
    canvas = Canvas(np.random.default_rng((seed, 6, number)), shape)
    rng = canvas.rng
    slope = rng.normal(0, 0.8, 2)
    field = slope[0] * canvas.y + slope[1] * canvas.x + 0.5 * canvas.field(0.5)
    phi = canvas.pixels(size * field) + rng.uniform(0, 2 * np.pi)
    return np.asarray(np.exp(1j * phi), np.complex64)


def _head(canvas: Canvas) -> Real:
    rng = canvas.rng
    signal = _contrast(rng)
    a, b = rng.uniform(0.82, 0.97), rng.uniform(0.64, 0.8)
    turn, y0, x0 = rng.normal(0, 0.1), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    power = rng.uniform(2.0, 2.3)

    def shell(depth: float, wobble: float = 0.01) -> Real:
        return canvas.ellipse(y0, x0, a - depth, b - depth, turn, wobble=wobble, power=power)

    scalp, skull = rng.uniform(0.03, 0.07), rng.uniform(0.05, 0.08)
    canvas.cover(shell(0.0), signal(FAT))
    if rng.random() < 0.5:  # temporal muscle
        for side in (-1, 1):
            muscle = canvas.ellipse(y0 - rng.uniform(0.1, 0.3), x0 + side * (b - 0.05), 0.2, 0.035, turn)
            canvas.cover(muscle * shell(0.01), signal(MUSCLE))
    canvas.cover(shell(scalp), 0.03)
    canvas.cover(shell(scalp + 0.35 * skull) - shell(scalp + 0.7 * skull), rng.uniform(0.3, 0.8) * signal(MARROW))
    canvas.cover(shell(scalp + skull), signal(WATER))
    rim = scalp + skull + rng.uniform(0.005, 0.025)
    draw_brain(canvas, _Signals(canvas, signal), (y0, x0), (a - rim, b - rim), turn, shell(rim, 0.025))
    image = canvas.image * (1 + rng.uniform(0.03, 0.15) * canvas.field(0.8))
    image *= 1 + rng.uniform(0.01, 0.05) * canvas.field(0.015, slope=1.0)
    image = canvas.pixels(image.clip(min=0))
    return np.asarray(image / max(float(image.max()), 1e-6))


def _contrast(rng: np.random.Generator) -> Callable[[Tissue], float]:
    """Signal of a tissue, ``rho (1 - exp(-TR / T1))^p exp(-TE / T2)``: T1-, T2- or density-weighted, or with p = 2 the
    steeper T1 contrast of a prepared gradient echo. Tissues vary a little; fat is suppressed to some part."""
    repetition, echo, power = (
        (rng.uniform(0.4, 0.8), 0.01, 1),
        (rng.uniform(2.5, 6.0), rng.uniform(0.07, 0.11), 1),
        (rng.uniform(2.5, 5.0), rng.uniform(0.01, 0.03), 1),
        (rng.uniform(0.5, 0.9), 0.004, 2),
    )[rng.integers(4)]
    fat = rng.uniform(0.2, 0.7) / power

    def signal(tissue: Tissue) -> float:
        density, t1, t2 = np.array(tissue) * rng.uniform(0.95, 1.05, 3)
        value = float(density * (1 - np.exp(-repetition / t1)) ** power * np.exp(-echo / t2))
        return fat * value if tissue is FAT else value

    return signal


class Paint(Protocol):
    """What :func:`draw_brain` draws with."""

    def of(self, tissue: Tissue) -> Any:
        """What a tissue is drawn as; asked for once each time that the tissue is drawn anew."""
        ...

    def cover(self, share: Real, value: Any, texture: Real | float = 1.0) -> None: ...

    def lesion(self, level: float, grey: Any, white: Any) -> Any:
        """What one is drawn as, ``level`` times the brighter of the two."""
        ...


@dataclass(frozen=True)
class _Signals:
    """Signals of one contrast."""

    canvas: Canvas
    signal: Callable[[Tissue], float]

    def of(self, tissue: Tissue) -> float:
        return self.signal(tissue)

    def cover(self, share: Real, value: float, texture: Real | float = 1.0) -> None:
        self.canvas.cover(share, value * texture)

    def lesion(self, level: float, grey: float, white: float) -> float:
        return level * max(grey, white)


def draw_brain(
    canvas: Canvas,
    paint: Paint,
    centre: tuple[float, float],
    half: tuple[float, float],
    turn: float,
    brain: Real,
) -> None:
    """White matter, a folded cortex about valleys of a random field that are water, and the nuclei and ventricles."""
    rng, (a, b) = canvas.rng, half
    dy, dx = canvas.y - centre[0], canvas.x - centre[1]
    along, across = dy * np.cos(turn) + dx * np.sin(turn), dx * np.cos(turn) - dy * np.sin(turn)
    depth = (1 - np.hypot(along / a, across / b)) * np.sqrt(a * b) / rng.uniform(0.3, 0.45)
    depth = depth.clip(0, 1)  # 0 at the surface, 1 where no sulcus goes
    fold = np.abs(canvas.field(rng.uniform(0.03, 0.045)))
    between = np.abs(across + 0.012 * canvas.field(0.06))  # the hemispheres
    steep = 0.05  # of the fields' slope: a share changes within points, not within folds
    sulci = canvas.share((fold - rng.uniform(0.2, 0.4) * (1 - depth)) * steep)
    cortex = canvas.share((fold - rng.uniform(0.9, 1.2) * (0.95 - depth)) * steep)
    middle = canvas.share(np.abs(along) - rng.uniform(0.2, 0.35) * a)  # the hemispheres' bridge
    gap = canvas.share(between - rng.uniform(0.004, 0.015)) * (1 - middle)
    medial = canvas.share(between - rng.uniform(0.04, 0.06)) * (1 - middle)
    surface = canvas.share((depth - 0.1) * steep)
    grey, white, water = paint.of(GREY), paint.of(WHITE), paint.of(WATER)
    paint.cover(brain, white, 1 + 0.02 * canvas.field(0.08))
    paint.cover(brain * np.maximum.reduce([cortex, medial, surface]), grey)
    paint.cover(brain * np.maximum(sulci, gap), water)

    def part(y: float, x: float, ya: float, xb: float, tilt: float, value: Any) -> None:
        at = (
            centre[0] + y * a * np.cos(turn) - x * b * np.sin(turn),
            centre[1] + y * a * np.sin(turn) + x * b * np.cos(turn),
        )
        ya, xb = ya * a * rng.uniform(0.75, 1.25), xb * b * rng.uniform(0.75, 1.25)
        paint.cover(canvas.ellipse(*at, ya, xb, turn + tilt, wobble=0.1) * brain, value)

    if rng.random() < 0.7:
        deep, width = paint.of(DEEP), rng.uniform(0.03, 0.1)
        for side in (-1, 1):
            part(0.05, 0.2 * side, 0.15, 0.13, 0.3 * side, deep)  # thalamus
            part(-0.12, 0.4 * side, 0.22, 0.09, -0.15 * side, deep)  # putamen
            part(-0.24, 0.2 * side, 0.13, 0.07, 0.3 * side, deep)  # caudate
            part(-0.2, 0.1 * side, 0.17, width, 0.3 * side, water)  # frontal and occipital horns
            part(0.25, 0.18 * side, 0.2, width, -0.35 * side, water)
        part(0.05, 0.0, 0.14, 0.02, 0.0, water)
    if rng.random() < 0.2:  # a lesion
        size = float(np.exp(rng.uniform(np.log(0.03), np.log(0.15))))
        y, x = rng.uniform(-0.6, 0.6, 2)
        part(y, x, size, size, 0.0, paint.lesion(float(rng.uniform(0.2, 1.3)), grey, white))
