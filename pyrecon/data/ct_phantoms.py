"""Random bodies for computed tomography: an endless supply of training images that are nobody's scan.

Values are attenuation in units of a peak near 1. In :func:`organs` that is twice the attenuation of water, so that soft
tissue is near 0.5, as Hounsfield numbers h become ``(1 + h / 1000) / 2``. Image i depends on ``(seed, first + i)``
alone, and an image is the mean over points finer than its pixels.
"""

from __future__ import annotations

import numpy as np

from pyrecon.data._drawing import Canvas, Images, Real, drawn

_AIR, _FAT, _MUSCLE, _BLOOD, _BONE = 0.0, 0.45, 0.525, 0.54, 0.85


def ellipses(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Images:
    """Random soft ellipses in a larger one, each shaded and textured, ``(count, H, W)`` float32, peak 1."""
    return _stacked(drawn(_ellipses, count, shape, seed, first, 1), shape)


def organs(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Images:
    """Slices of random bodies, half of them chests and half abdomens, ``(count, H, W)`` float32, from 0 to about 1."""
    return _stacked(drawn(_body, count, shape, seed, first, 2), shape)


def discs(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Images:
    """Discs of one material with holes of several shapes, ``(count, H, W)`` float32, 1 where there is material.

    Like the phantoms of the Helsinki Tomography Challenge 2022.
    """
    return _stacked(drawn(_disc, count, shape, seed, first, 3), shape)


def _stacked(images: list[Real], shape: tuple[int, int]) -> Images:
    return np.stack(images).astype(np.float32) if images else np.empty((0, *shape), np.float32)


# --- ellipses --------------------------------------------------------------------------------------------------------
def _ellipses(canvas: Canvas) -> Real:
    rng = canvas.rng
    a, b = rng.uniform(0.6, 0.9, 2)
    outer = canvas.ellipse(0.0, 0.0, a, b, rng.uniform(-0.3, 0.3), wobble=0.04)
    canvas.cover(outer, rng.uniform(0.3, 0.6))
    for _ in range(int(rng.integers(4, 14))):
        radius, angle = 0.75 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        size = np.exp(rng.uniform(np.log(0.04), np.log(0.35)))
        part = canvas.ellipse(
            radius * a * np.cos(angle),
            radius * b * np.sin(angle),
            size,
            size * rng.uniform(0.4, 1.0),
            rng.uniform(0, np.pi),
            wobble=rng.choice([0.0, 0.08]),
        )
        canvas.cover(part * outer, canvas.image * rng.uniform(0.5, 1.0) + rng.uniform(-0.1, 0.5))
    shade = 1 + 0.06 * canvas.field(0.5)
    texture = rng.uniform(0.0, 0.04) * canvas.field(0.05, slope=1.5)
    image = canvas.pixels((canvas.image * shade + texture * outer).clip(min=0))
    return np.asarray(image / max(float(image.max()), 1e-6))


# --- bodies ----------------------------------------------------------------------------------------------------------
def _body(canvas: Canvas) -> Real:
    """A trunk of skin, fat, muscle and bones round the organs of a chest or an abdomen, at any small turn."""
    rng = canvas.rng
    a, b = rng.uniform(0.5, 0.72), rng.uniform(0.78, 0.96)  # half axes, front to back and side to side
    y0, x0 = rng.uniform(-0.08, 0.08), rng.uniform(-0.02, 0.02)
    power = rng.uniform(2.1, 2.7)
    fat = rng.uniform(0.02, 0.1)

    def at(depth: float, wobble: float = 0.015) -> Real:
        return canvas.ellipse(y0, x0, a - depth, b - depth, wobble=wobble, power=power)

    canvas.cover(at(0.0, 0.02), rng.normal(_MUSCLE, 0.01))
    canvas.cover(at(0.015), rng.normal(_FAT, 0.01))
    canvas.cover(at(fat), rng.normal(_MUSCLE, 0.01))
    chest = bool(rng.random() < 0.5)
    wall = fat + rng.uniform(0.05, 0.1)
    inner = at(wall)
    (_chest if chest else _abdomen)(canvas, (y0, x0), (a - wall, b - wall), inner)
    _ribs(canvas, (y0, x0), (a - wall + 0.03, b - wall + 0.03), power, int(rng.integers(6, 15) if chest else 4))
    _spine(canvas, y0 + a - wall - rng.uniform(0.0, 0.1), x0)
    body = at(0.0)
    canvas.image *= body
    canvas.image *= 1 + 0.02 * canvas.field(0.4)
    canvas.image += rng.uniform(0.003, 0.02) * canvas.field(0.02, slope=1.0) * body
    if rng.random() < 0.5:  # the table
        bend, low = rng.uniform(0.0, 0.12), y0 + a + rng.uniform(0.01, 0.05)
        x = np.linspace(-0.8, 0.8, 25)
        canvas.cover(canvas.stroke(np.stack([low - bend * x**2, x], 1), 0.025), rng.uniform(0.1, 0.35))
    image = canvas.pixels(canvas.image.clip(min=0))
    return image[:, ::-1] if rng.random() < 0.5 else image


def _chest(canvas: Canvas, centre: tuple[float, float], half: tuple[float, float], inner: Real) -> None:
    rng, (y0, x0), (a, b) = canvas.rng, centre, half
    canvas.cover(inner, rng.normal(_FAT + 0.05, 0.015))
    for side in (-1, 1):
        lung = canvas.ellipse(
            y0 + rng.uniform(-0.1, 0.1) * a,
            x0 + side * rng.uniform(0.5, 0.58) * b,
            rng.uniform(0.7, 0.95) * a,
            rng.uniform(0.36, 0.46) * b,
            side * rng.uniform(-0.1, 0.25),
            wobble=0.07,
        )
        lung = lung * inner
        canvas.cover(lung, (rng.uniform(0.06, 0.13) + 0.02 * canvas.field(0.15)).clip(0.01))
        root = np.array([y0 + rng.uniform(-0.1, 0.1) * a, x0 + side * rng.uniform(0.15, 0.25) * b])
        _vessels(canvas, root, side, lung, int(rng.integers(5, 10)))
        if rng.random() < 0.15:  # a nodule or a consolidation
            at = root + np.array([rng.uniform(-0.4, 0.4) * a, side * rng.uniform(0.1, 0.5) * b])
            size = np.exp(rng.uniform(np.log(0.02), np.log(0.12)))
            canvas.cover(canvas.ellipse(at[0], at[1], size, size, wobble=0.15) * lung, rng.uniform(0.3, 0.55))
    heart = canvas.ellipse(
        y0 - rng.uniform(0.1, 0.35) * a,
        x0 + rng.uniform(0.02, 0.2) * b,
        rng.uniform(0.3, 0.55) * a,
        rng.uniform(0.25, 0.4) * b,
        rng.uniform(-0.6, 0.6),
        wobble=0.06,
    )
    blood = _BLOOD + rng.choice([0.0, rng.uniform(0.02, 0.12)])  # with or without contrast agent
    canvas.cover(heart * inner, rng.normal(_MUSCLE, 0.01))
    for _ in range(3):
        part = canvas.ellipse(
            y0 - rng.uniform(0.0, 0.4) * a,
            x0 + rng.uniform(-0.05, 0.25) * b,
            rng.uniform(0.07, 0.2),
            rng.uniform(0.07, 0.2),
            wobble=0.1,
        )
        canvas.cover(part * heart, blood)
    for y, x, size in ((0.45, 0.12, 0.075), (0.05, -0.08, 0.055), (-0.05, 0.03, 0.07)):  # aorta, cava, pulmonary trunk
        size *= rng.uniform(0.8, 1.3)
        tube = canvas.ellipse(y0 + (y + rng.normal(0, 0.05)) * a, x0 + (x + rng.normal(0, 0.03)) * b, size, size)
        canvas.cover(tube, blood)
    trachea = canvas.ellipse(y0 + rng.uniform(-0.1, 0.2) * a, x0 + rng.normal(0, 0.02), 0.04, 0.045)
    if rng.random() < 0.5:
        canvas.cover(trachea, 0.02)
    canvas.cover(canvas.ellipse(y0 - a - 0.01, x0, 0.03, 0.1, wobble=0.1), rng.uniform(0.62, 0.75))  # sternum


def _vessels(canvas: Canvas, root: Real, side: int, lung: Real, count: int) -> None:
    """Branching vessels from the root into a lung, thinner outwards; those across the slice are dots."""
    rng = canvas.rng
    for _ in range(count):
        angle, points, width = rng.uniform(-1.3, 1.3), [root], rng.uniform(0.015, 0.04)
        for _ in range(int(rng.integers(4, 9))):
            angle += rng.normal(0, 0.3)
            points.append(points[-1] + 0.08 * np.array([np.sin(angle), side * np.cos(angle)]))
        widths = width * np.linspace(1, 0.3, len(points))
        canvas.cover(canvas.stroke(np.array(points), widths) * lung, rng.uniform(0.35, 0.5))
    for _ in range(3 * count):
        dot = root + np.array([rng.uniform(-0.5, 0.5), side * rng.uniform(0.0, 0.5)])
        size = rng.uniform(0.006, 0.014)
        canvas.cover(canvas.stroke(np.array([dot, dot + rng.normal(0, 0.01, 2)]), 2 * size) * lung, 0.4)


def _abdomen(canvas: Canvas, centre: tuple[float, float], half: tuple[float, float], inner: Real) -> None:
    rng, (y0, x0), (a, b) = canvas.rng, centre, half
    canvas.cover(inner, rng.normal(_FAT, 0.012))
    contrast = rng.choice([0.0, rng.uniform(0.01, 0.08)])

    def organ(y: float, x: float, ya: float, xb: float, value: float, turn: float = 0.0, grain: float = 0.006) -> Real:
        share = canvas.ellipse(
            y0 + (y + rng.normal(0, 0.05)) * a,
            x0 + (x + rng.normal(0, 0.05)) * b,
            ya * a * rng.uniform(0.85, 1.15),
            xb * b * rng.uniform(0.85, 1.15),
            turn + rng.normal(0, 0.25),
            wobble=0.1,
        )
        share = share * inner
        canvas.cover(share, value + rng.normal(0, 0.008) + grain * canvas.field(0.04))
        return share

    for _ in range(int(rng.integers(4, 12))):  # bowel, with gas or contrast in some of it
        y, x = rng.uniform(-0.75, 0.35), rng.uniform(-0.75, 0.75)
        size = rng.uniform(0.1, 0.22)
        loop = organ(y, x, size, size * rng.uniform(0.6, 1.4) * a / b, _MUSCLE)
        filling = rng.choice([0.0, 0.5, 0.62], p=[0.35, 0.45, 0.2])
        centre_y, centre_x = y0 + y * a, x0 + x * b
        lumen = canvas.ellipse(centre_y, centre_x, 0.7 * size * a, 0.7 * size * a, wobble=0.2)
        canvas.cover(lumen * loop, filling)
    liver = organ(-0.15, -0.5, 0.75, 0.45, _BLOOD + contrast, -0.3)
    for _ in range(int(rng.integers(2, 7))):
        at = np.array([y0 + rng.uniform(-0.5, 0.3) * a, x0 - rng.uniform(0.25, 0.7) * b])
        line = at + np.array([(0, 0), rng.normal(0, 0.12, 2), rng.normal(0, 0.2, 2)])
        canvas.cover(canvas.stroke(line, rng.uniform(0.01, 0.025)) * liver, _BLOOD + 1.6 * contrast - 0.01)
    if rng.random() < 0.7:
        organ(0.1, 0.72, 0.4, 0.16, _BLOOD + contrast, 0.3)  # spleen
    if rng.random() < 0.7:
        stomach = organ(-0.4, 0.35, 0.35, 0.3, _MUSCLE - 0.01, 0.5)
        if rng.random() < 0.6:  # gas lies in front
            canvas.cover(stomach * (canvas.y < y0 - rng.uniform(0.4, 0.6) * a), 0.0)
    for side in (-1, 1):
        if rng.random() < 0.85:
            kidney = organ(0.45, 0.42 * side, 0.26, 0.13, _MUSCLE + 1.5 * contrast, 0.3 * side)
            pelvis = canvas.ellipse(y0 + 0.45 * a, x0 + 0.36 * side * b, 0.07, 0.035, wobble=0.2)
            canvas.cover(pelvis * kidney, _FAT + 0.02)
        psoas = canvas.ellipse(y0 + 0.75 * a, x0 + 0.2 * side * b, 0.1, 0.075, wobble=0.06)
        canvas.cover(psoas * inner, _MUSCLE)
    for x in (0.06, -0.09):  # aorta and cava
        size = rng.uniform(0.035, 0.055)
        canvas.cover(canvas.ellipse(y0 + 0.5 * a, x0 + x * b, size, size), _BLOOD + 1.8 * contrast)


def _ribs(canvas: Canvas, centre: tuple[float, float], half: tuple[float, float], power: float, count: int) -> None:
    rng, (a, b) = canvas.rng, half
    for angle in np.linspace(0.35, 2 * np.pi - 0.35, count) + rng.normal(0, 0.1, count) + np.pi:
        cos, sin = -np.cos(angle), np.sin(angle)
        radius = (np.abs(cos / a) ** power + np.abs(sin / b) ** power) ** (-1 / power)
        y, x = centre[0] + radius * cos, centre[1] + radius * sin
        turn = np.arctan2(cos / b**2, -sin / a**2)  # along the wall
        size, thin = rng.uniform(0.05, 0.13), rng.uniform(0.018, 0.03)
        canvas.cover(canvas.ellipse(y, x, size, thin, turn, wobble=0.05), rng.uniform(0.68, 0.9))
        canvas.cover(canvas.ellipse(y, x, 0.7 * size, 0.45 * thin, turn), rng.uniform(0.56, 0.65))


def _spine(canvas: Canvas, y: float, x: float) -> None:
    rng, size = canvas.rng, canvas.rng.uniform(0.09, 0.13)
    bone = rng.normal(_BONE, 0.05)
    for side in (-1, 1):  # transverse and spinous processes
        line = np.array([[y + size, x], [y + 1.5 * size, x + 1.8 * side * size]])
        canvas.cover(canvas.stroke(line, 0.05), bone - 0.1)
    canvas.cover(canvas.stroke(np.array([[y + size, x], [y + 2.3 * size, x]]), 0.045), bone - 0.1)
    canvas.cover(canvas.ellipse(y, x, size, 1.2 * size, wobble=0.04), bone)
    body = canvas.ellipse(y, x, 0.85 * size, 1.05 * size, wobble=0.04)
    canvas.cover(body, bone - rng.uniform(0.1, 0.2) + 0.03 * canvas.field(0.02))
    canvas.cover(canvas.ellipse(y + 1.25 * size, x, 0.4 * size, 0.5 * size), _MUSCLE)


# --- discs -----------------------------------------------------------------------------------------------------------
def _disc(canvas: Canvas) -> Real:
    rng = canvas.rng
    radius = rng.uniform(0.8, 0.95)
    y0, x0 = rng.uniform(-1, 1, 2) * (0.97 - radius)
    disc = canvas.ellipse(y0, x0, radius, radius)
    if rng.random() < 0.4:
        rim = radius - rng.uniform(0.06, 0.22)
        inner = canvas.ellipse(y0, x0, rim, rim, wobble=float(rng.choice([0.0, 0.03])))
        wall = rng.uniform(0.04, 0.12)
        holes = canvas.rounded(_cells(canvas, wall) * inner, rng.uniform(0.015, max(0.03, 0.5 * wall)))
    else:
        holes = _scattered(canvas, (y0, x0), radius)
    return canvas.pixels(disc * (1 - holes))


def _cells(canvas: Canvas, wall: float) -> Real:
    """Share of the points in cells about random seeds, walls between them."""
    rng, count = canvas.rng, int(canvas.rng.integers(4, 25))
    seeds: list[Real] = []
    for _ in range(20 * count):
        point = rng.uniform(-0.85, 0.85, 2)
        if len(seeds) < count and all(np.hypot(*(point - other)) > 1.1 / np.sqrt(count) for other in seeds):
            seeds.append(point)
    distances = np.sort([np.hypot(canvas.y - y, canvas.x - x) for y, x in seeds], axis=0)
    return canvas.share(wall - (distances[1] - distances[0]))


def _scattered(canvas: Canvas, centre: tuple[float, float], radius: float) -> Real:
    """Holes that do not touch: ellipses, rings, polygons, and strokes as of letters."""
    rng, (y0, x0) = canvas.rng, centre
    placed: list[tuple[float, float, float]] = []
    wanted, typical = int(rng.integers(2, 20)), rng.uniform(0.1, 0.25)
    holes = np.zeros_like(canvas.image)
    alike = (rng.uniform(0.4, 1.0), rng.uniform(0, np.pi)) if rng.random() < 0.3 else None
    for _ in range(30 * wanted):
        if len(placed) == wanted:
            break
        size = min(0.4, typical * float(np.exp(rng.normal(0, 0.35 if alike is None else 0.1))))
        far, angle = (radius - size - 0.04) * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        y, x = y0 + far * np.sin(angle), x0 + far * np.cos(angle)
        if any(np.hypot(y - v, x - u) < size + other + 0.03 for v, u, other in placed):
            continue
        placed.append((y, x, size))
        if alike is None:
            hole = _hole(canvas, y, x, size)
        else:  # ellipses of one shape, nearly of one turn
            hole = canvas.ellipse(y, x, size, size * alike[0], alike[1] + rng.normal(0, 0.15))
        holes = np.maximum(holes, hole)
    return holes


def _hole(canvas: Canvas, y: float, x: float, size: float) -> Real:
    """Within ``size`` of (y, x)."""
    rng = canvas.rng
    kind, turn = rng.choice(5, p=[0.3, 0.3, 0.15, 0.15, 0.1]), rng.uniform(0, 2 * np.pi)
    if kind == 0:
        return canvas.ellipse(y, x, size, size * float(rng.choice([1.0, rng.uniform(0.4, 1.0)])), turn)
    if kind == 1:
        corners = int(rng.integers(3, 8))
        angles = turn + (rng.uniform(0, 0.5, corners) + np.arange(corners)) * 2 * np.pi / corners
        polygon = canvas.polygon(np.stack([y + size * np.sin(angles), x + size * np.cos(angles)], 1))
        return canvas.rounded(polygon, 0.15 * size) if rng.random() < 0.6 else polygon
    if kind == 2:  # an arc, or a whole ring
        angles = turn + np.linspace(0, rng.uniform(1.5, 6.5), 24)
        width = size * rng.uniform(0.3, 0.6)
        arm = size - width / 2
        return canvas.stroke(np.stack([y + arm * np.sin(angles), x + arm * np.cos(angles)], 1), width)
    width = size * rng.uniform(0.3, 0.6)
    joints = np.array([y, x]) + (size - width / 2) * _joints(rng, int(rng.integers(2, 5)), turn)
    if kind == 3:
        return canvas.stroke(joints, width)
    bars = [canvas.stroke(np.array([[y, x], joint]), width) for joint in joints]  # a star
    return np.asarray(np.maximum.reduce(bars))


def _joints(rng: np.random.Generator, count: int, turn: float) -> Real:
    """Different ones of the corners and the middles of a square's sides, within 1, turned: as letters have joints."""
    grid = 0.7 * np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j])
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(grid[rng.permutation(len(grid))[:count]] @ turned)
