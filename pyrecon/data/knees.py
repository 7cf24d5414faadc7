"""Random knees for magnetic resonance, coronal: femur, tibia, fibula, cartilage, menisci, ligaments, muscle and fat.

Signals are those of a proton-density-weighted scan, with or without fat suppression; marrow, muscle and fat have the
texture of trabeculae, fibres and septa, so that nothing is piecewise constant. Image i depends on ``(seed, first + i)``
alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_flag
from pyrecon.data._drawing import Canvas, Real, drawn

__all__ = ["knees"]

# Ranges of the signals: proton density weighted, and with fat suppressed, of which a part is left.
_PLAIN = {
    "fat": (0.8, 1.0), "marrow": (0.6, 0.85), "muscle": (0.3, 0.48), "cartilage": (0.45, 0.65), "fluid": (0.5, 0.8),
    "bone": (0.03, 0.1), "ligament": (0.06, 0.16), "meniscus": (0.05, 0.14), "skin": (0.3, 0.5),
}  # fmt: skip
_SUPPRESSED = _PLAIN | {
    "fat": (0.1, 0.25), "marrow": (0.08, 0.2), "muscle": (0.35, 0.5), "cartilage": (0.6, 0.8), "fluid": (0.85, 1.0),
}  # fmt: skip


def knees(
    count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0, suppressed: bool = False
) -> NDArray[np.float32]:
    """``(count, H, W)`` from 0 to 1; ``suppressed``: of knees of the same shapes, with fat suppressed."""
    check_flag("suppressed", suppressed)
    images = np.empty((count, *shape), np.float32)
    signals = _SUPPRESSED if suppressed else _PLAIN
    for i, image in enumerate(drawn(lambda canvas: _Knee(canvas, signals).drawn(), count, shape, seed, first, 9)):
        images[i] = image / max(float(image.max()), 1e-6)
    return images


class _Knee:
    """One knee: y along the leg, x across it, both turned and shifted a little."""

    def __init__(self, canvas: Canvas, signals: dict[str, tuple[float, float]]) -> None:
        self.canvas, self.rng = canvas, canvas.rng
        rng, turn = canvas.rng, canvas.rng.normal(0, 0.07)
        level = rng.uniform(0, 1, len(signals))  # drawn first, so that both contrasts have the same shapes
        self.signal = {
            name: low + u * (high - low) for (name, (low, high)), u in zip(signals.items(), level, strict=True)
        }
        dy, dx = canvas.y - rng.uniform(-0.12, 0.12), canvas.x - rng.uniform(-0.06, 0.06)
        self.turn, self.zoom = turn, rng.uniform(0.9, 1.15)
        self.y = (dy * np.cos(turn) + dx * np.sin(turn)) / self.zoom
        self.x = (dx * np.cos(turn) - dy * np.sin(turn)) / self.zoom
        self.side = float(rng.choice([-1.0, 1.0]))  # where the fibula is
        # Outlines wander with fields, as those of legs and bones do.
        self.wander = 0.02 * canvas.field(0.12)

    def drawn(self) -> Real:
        canvas, rng = self.canvas, self.rng
        leg = self._leg()
        self._joint(leg)
        image = canvas.image * (1 + rng.uniform(0.05, 0.25) * canvas.field(0.9)).clip(min=0.3)
        image *= 1 + rng.uniform(0.01, 0.04) * canvas.field(0.02, slope=1.2)
        return canvas.pixels(image.clip(min=0))

    def _leg(self) -> Real:
        """Skin, fat with septa, and muscle bundles with fibres along the leg; returns what lies under the fat."""
        canvas, rng, signal = self.canvas, self.rng, self.signal
        half = rng.uniform(0.62, 0.78) - rng.uniform(0.05, 0.14) * self.y + 0.1 * self.y**2
        edge = np.abs(self.x) - half + self.wander
        fat = rng.uniform(0.07, 0.16)
        canvas.cover(self._share(edge), signal["skin"])
        septa = 1 - 0.35 * np.exp(-((canvas.field(0.05) / 0.12) ** 2))
        canvas.cover(self._share(edge + 0.02), signal["fat"] * septa)
        within = self._share(edge + fat)
        fibres = 1 + 0.12 * self._streaks(0.012, 0.15)
        between = np.exp(-((self._streaks(0.05, 0.5) / 0.15) ** 2))  # fat between the bundles
        muscle = signal["muscle"] * fibres * (1 - 0.5 * between) + 0.5 * between * signal["fat"]
        # Towards the joint muscle gives way to fat and capsule.
        amount = rng.uniform(0.12, 0.3)
        near = np.exp(-((self.y / amount) ** 4))
        canvas.cover(within, muscle)
        canvas.cover(within * near * 0.8, 0.75 * signal["fat"] * (1 + 0.1 * canvas.field(0.04)))
        return within

    def _joint(self, leg: Real) -> None:
        canvas, rng, signal = self.canvas, self.rng, self.signal
        gap, layer, cortex = rng.uniform(0.01, 0.03), rng.uniform(0.03, 0.05), rng.uniform(0.014, 0.024)
        width = rng.uniform(0.4, 0.47)
        femur, condyles = self._femur(-gap / 2 - layer, width)
        tibia = self._tibia(gap / 2 + layer, width)
        fibula = self._fibula(width)
        # Fluid and cartilage lie about the facing ends, bones over them.
        near = self._share(np.abs(self.y) - 0.32)
        capsule = self._share(np.maximum(np.abs(self.x) - width, np.abs(self.y) - gap - layer))
        canvas.cover(capsule, signal["fluid"])
        glow = 1 + 0.1 * canvas.field(0.03)
        canvas.cover(self._share(condyles - layer) * near, signal["cartilage"] * glow)
        top = np.maximum(tibia - layer, np.abs(self.x) - width + 0.02)
        canvas.cover(self._share(top) * near, signal["cartilage"] * glow)
        for sign in (-1.0, 1.0):  # menisci: wedges open to the outside
            tip, outer = sign * width * rng.uniform(0.55, 0.68), sign * (width + 0.015)
            tall = gap / 2 + layer + rng.uniform(0.0, 0.02)
            wedge = np.maximum(sign * (tip - self.x), sign * (self.x - outer))
            slope = np.abs(self.y) - tall * (sign * (self.x - tip) / (width * 0.4)).clip(0, 1)
            canvas.cover(self._share(np.maximum(wedge, slope)), signal["meniscus"])
        trabeculae = 1 + rng.uniform(0.06, 0.14) * canvas.field(0.015, slope=1.4) + 0.05 * self._streaks(0.01, 0.06)
        for bone in (fibula, femur, tibia):
            canvas.cover(self._share(bone), signal["bone"])
            canvas.cover(self._share(bone + cortex), signal["marrow"] * trabeculae * (1 + 0.06 * canvas.field(0.25)))
        for y, growth in ((-rng.uniform(0.33, 0.42), femur), (rng.uniform(0.24, 0.32), tibia)):  # scars of growth
            line = np.abs(self.y - y - 0.6 * self.wander) - 0.004
            canvas.cover(self._share(line) * self._share(growth + cortex) * 0.7, 0.5 * signal["marrow"])
        if rng.random() < 0.3:  # oedema or a cyst
            spot = np.hypot(self.y - rng.choice([-1, 1]) * rng.uniform(0.12, 0.3), self.x - rng.uniform(-0.3, 0.3))
            inside = np.maximum(self._share(femur + cortex), self._share(tibia + cortex))
            canvas.cover(self._share(spot - rng.uniform(0.02, 0.06) + self.wander) * inside * 0.7, signal["fluid"])
        self._ligaments(width)

    def _ligaments(self, width: float) -> None:
        """Collateral ones along both sides, cruciate ones in the notch, and vessels behind."""
        canvas, rng, signal = self.canvas, self.rng, self.signal
        for sign in (-1.0, 1.0):
            end = (0.42, sign * 0.44) if sign == self.side else (0.45, sign * 0.36)
            line = self._placed([(-0.22, sign * (width + 0.01)), (0.03, sign * (width + 0.035)), end])
            canvas.cover(canvas.stroke(line, 0.025 * self.zoom), signal["ligament"])
        for sign in (-1.0, 1.0):
            if rng.random() < 0.8:
                line = self._placed([(-0.17, sign * 0.08), (0.035, -sign * rng.uniform(0.0, 0.06))])
                canvas.cover(canvas.stroke(line, 0.045 * self.zoom), signal["ligament"] * 1.8)
        for _ in range(rng.integers(0, 5)):
            y, x = rng.uniform(-0.8, 0.8), rng.choice([-1, 1]) * rng.uniform(0.5, 0.62)
            (place,), (a, b) = self._placed([(y, x)]), rng.uniform(0.012, 0.03, 2)
            spot = canvas.ellipse(place[0], place[1], a, b)
            canvas.cover(spot, signal[str(rng.choice(["fluid", "bone"]))])

    # --- bones: distances to their outlines, negative inside ---------------------------------------------------------
    def _femur(self, end: float, width: float) -> tuple[Real, Real]:
        """The whole bone, and the two condyles alone."""
        rng, y = self.rng, self.y
        shaft, flare = rng.uniform(0.17, 0.23), rng.uniform(0.07, 0.11)
        half = shaft + (width - shaft) / (1 + np.exp(-(y - end + rng.uniform(0.3, 0.38)) / flare))
        a, b = rng.uniform(0.17, 0.22), width * rng.uniform(0.5, 0.56)
        knobs = [
            (np.hypot((y - (end - a)) / a, (self.x - sign * (width - b)) / b) - 1) * np.sqrt(a * b)
            for sign in (-1.0, 1.0)
        ]
        trunk = np.maximum(np.abs(self.x) - half, y - (end - a))
        condyles = np.minimum(*knobs)
        return np.minimum(trunk, condyles) + 0.3 * self.wander, condyles + 0.3 * self.wander

    def _tibia(self, end: float, width: float) -> Real:
        rng, y = self.rng, self.y
        shaft = rng.uniform(0.18, 0.24)
        half = shaft + (width * 1.02 - shaft) / (1 + np.exp((y - end - rng.uniform(0.28, 0.38)) / 0.09))
        spines = 0.06 * (np.exp(-(((self.x - 0.06) / 0.03) ** 2)) + np.exp(-(((self.x + 0.06) / 0.03) ** 2)))
        return np.asarray(np.maximum(np.abs(self.x) - half, end - spines - y) + 0.3 * self.wander)

    def _fibula(self, width: float) -> Real:
        rng = self.rng
        top, across = rng.uniform(0.28, 0.38), self.side * self.x - width * rng.uniform(0.92, 1.02)
        head = np.hypot((self.y - top - 0.08) / 0.1, across / 0.085) * 0.09 - 0.09
        shaft = np.maximum(np.abs(across + 0.02) - rng.uniform(0.045, 0.06), top + 0.06 - self.y)
        return np.asarray(np.minimum(head, shaft) + 0.3 * self.wander)

    # --- drawing -----------------------------------------------------------------------------------------------------
    def _share(self, distance: Real) -> Real:
        return self.canvas.share(distance * self.zoom)

    def _placed(self, points: list[tuple[float, float]]) -> Real:
        """Points of the knee on the canvas ``(K, 2)``."""
        y, x = (np.array(points) * self.zoom).T
        where = np.argmin(np.abs(self.y) + np.abs(self.x))
        row, column = np.unravel_index(where, self.y.shape)
        turned = (y * np.cos(self.turn) - x * np.sin(self.turn), y * np.sin(self.turn) + x * np.cos(self.turn))
        return np.stack([self.canvas.y[row, 0] + turned[0], self.canvas.x[0, column] + turned[1]], axis=1)

    def _streaks(self, across: float, along: float) -> Real:
        """A random field of standard deviation 1 with widths across and along the leg."""
        rows, columns = self.canvas.image.shape
        unit = 2 / max(rows, columns)
        fy, fx = np.fft.fftfreq(rows, unit)[:, None], np.fft.rfftfreq(columns, unit)[None, :]
        u, v = fy * np.cos(self.turn) + fx * np.sin(self.turn), fx * np.cos(self.turn) - fy * np.sin(self.turn)
        weight = np.exp(-2 * np.pi**2 * ((along * u) ** 2 + (across * v) ** 2))
        weight[0, 0] = 0
        field = np.fft.irfft2(weight * np.fft.rfft2(self.rng.standard_normal((rows, columns))), (rows, columns))
        return np.asarray(field / max(float(field.std()), 1e-12))
