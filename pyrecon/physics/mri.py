"""Multi-coil Cartesian MRI, simulated: sampling masks, coil sensitivities, an object with phase, noisy acquisition.

Masks are bool tensors ``(B, 1, H | 1, W | 1)``, DC at index n // 2; an axis of size 1 is fully sampled. Every mask of
a batch has the same number of samples, the exact acceleration is :func:`acceleration`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # whose parts load when they are used
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._check import COMPLEX, check_dtype, check_like, check_shape
from pyrecon.data.fourier import centered_slice, fft_centered
from pyrecon.data.raw import MRIScan

Shape = tuple[int, int]


# --- sampling masks --------------------------------------------------------------------------------------------
def acceleration(mask: Tensor) -> float:
    """Grid points per sample taken: the net acceleration, calibration lines included."""
    return mask.numel() / int(mask.sum())


def random_lines(
    shape: Shape, acceleration: float, *, acl: int = 16, axis: int = -2, batch: int = 1, seed: int = 0
) -> Tensor:
    """Phase-encoding lines drawn uniformly, without replacement, around ``acl`` central ones.

    Parameters
    ----------
    shape
        ``(H, W)`` of the k-space grid.
    acceleration
        Net acceleration: exactly ``round(n / acceleration)`` of the n lines are taken, the ``acl`` ones among them.
    acl
        Autocalibration lines: the fully sampled block at the centre.
    axis
        The phase-encoding axis: -2 gives ``(batch, 1, H, 1)``, -1 gives ``(batch, 1, 1, W)``.
    """
    n = _lines(shape, axis)
    return _as_lines(_choose(np.ones(n), _count(n, acceleration), _center(n, acl), batch, seed), axis)


def gaussian_lines(
    shape: Shape,
    acceleration: float,
    *,
    acl: int = 16,
    width: float = 0.2,
    axis: int = -2,
    batch: int = 1,
    seed: int = 0,
) -> Tensor:
    """Phase-encoding lines of Gaussian variable density, drawn without replacement; see :func:`random_lines`.

    ``width`` is the standard deviation of the density as a fraction of the n lines.
    """
    n = _lines(shape, axis)
    return _as_lines(_choose(_gaussian(n, width), _count(n, acceleration), _center(n, acl), batch, seed), axis)


def equispaced_lines(shape: Shape, spacing: int, *, acl: int = 16, offset: int = 0, axis: int = -2) -> Tensor:
    """Every ``spacing``-th phase-encoding line, counted from ``offset`` past the centre, and ``acl`` central ones.

    The net acceleration is below ``spacing`` by the calibration lines: :func:`acceleration` tells.
    """
    if spacing < 1:
        raise ValueError(f"spacing: {spacing} lines, expected at least 1")
    n = _lines(shape, axis)
    taken = _center(n, acl)
    taken[(n // 2 + offset) % spacing :: spacing] = True
    return _as_lines(taken[None], axis)


def gaussian_points(
    shape: Shape, acceleration: float, *, calibration: int = 16, width: float = 0.2, batch: int = 1, seed: int = 0
) -> Tensor:
    """Points of a 2-D Gaussian density, drawn without replacement, around a sampled square: ``(batch, 1, H, W)``.

    Both axes are phase encoding: a slice of a 3-D acquisition. ``width`` is the density's standard deviation as a
    fraction of each axis; exactly ``round(H * W / acceleration)`` points are taken.
    """
    height, width_px = shape
    weight = np.outer(_gaussian(height, width), _gaussian(width_px, width))
    taken = _choose(weight.ravel(), _count(weight.size, acceleration), _square(shape, calibration).ravel(), batch, seed)
    return torch.from_numpy(taken.reshape(batch, 1, *shape))


def poisson_disc(
    shape: Shape, acceleration: float, *, calibration: int = 16, slope: float = 3.0, batch: int = 1, seed: int = 0
) -> Tensor:
    """Variable-density Poisson disc around a sampled square: ``(batch, 1, H, W)``, both axes phase encoding.

    A point p keeps all later points farther than ``r(p) = r0 (1 + slope * |p|)`` away, ``|p|`` being 1 at the ends of
    the axes; so the density falls as 1 / r^2 and gaps stay small, which makes the aliasing incoherent without the
    holes of independent draws. r0 is searched until at most a hundredth too many are taken, and that surplus is dropped
    at random: exactly ``round(H * W / acceleration)`` points remain.
    """
    if slope < 0:
        raise ValueError(f"slope: {slope} makes the outer density exceed the inner one, expected >= 0")
    count = _count(shape[0] * shape[1], acceleration)
    square = _square(shape, calibration)
    _check_fits(int(square.sum()), count, "calibration", acceleration)
    rows, columns = (np.abs(np.arange(n) - n // 2) / (n / 2) for n in shape)
    growth = 1 + slope * np.hypot(rows[:, None], columns[None, :])
    masks = []
    for sample in range(batch):
        rng = np.random.default_rng([seed, sample])
        order = rng.permutation(growth.size)
        jitter = rng.uniform(-0.5, 0.5, (2, *shape))
        best, scale = np.ones(shape, bool), np.sqrt(0.7 * growth.size / count / (growth**2).mean())
        low, high = 0.0, np.inf
        for _ in range(20):
            taken = _throw_darts(scale * growth, square, order, jitter)
            found = int(taken.sum())
            if found >= count:
                low, best = scale, taken
            else:
                high = scale
            if count <= found <= 1.01 * count:
                break
            scale *= np.sqrt(found / (1.005 * count))  # the density falls about as 1 / r0^2
            if not low < scale < high:
                scale = 0.5 * (low + high)
        surplus = rng.permutation(np.flatnonzero(best & ~square))[: int(best.sum()) - count]
        best.ravel()[surplus] = False
        masks.append(best)
    return torch.from_numpy(np.stack(masks)[:, None])


def _throw_darts(
    radius: NDArray[np.float64], start: NDArray[np.bool_], order: NDArray[np.int64], jitter: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Take points in ``order`` that no taken point blocks; a taken point blocks a disc of its own ``radius``.

    A point lies anywhere in its cell (``jitter``, (2, H, W)): on the bare lattice the density would fall in steps,
    one ring for every lattice distance.
    """
    height, width = radius.shape
    reach = int(radius.max()) + 2
    free = np.ones((height + 2 * reach, width + 2 * reach), bool)  # a border, so that no disc needs clipping
    free[reach:-reach, reach:-reach] = ~start
    y, x = (np.pad(j, reach) for j in jitter)
    y += np.arange(len(y))[:, None]
    x += np.arange(x.shape[1])
    taken = start.copy()
    for point, r in zip(order.tolist(), radius.ravel()[order].tolist(), strict=True):
        i, j = divmod(point, width)
        if free[i + reach, j + reach]:
            taken[i, j] = True
            k = int(r) + 1
            window = slice(i + reach - k, i + reach + k + 1), slice(j + reach - k, j + reach + k + 1)
            far = (y[window] - y[i + reach, j + reach]) ** 2 + (x[window] - x[i + reach, j + reach]) ** 2 > r * r
            free[window] &= far
    return taken


def _choose(
    weight: NDArray[np.float64], count: int, fixed: NDArray[np.bool_], batch: int, seed: int
) -> NDArray[np.bool_]:
    """``(batch, n)``: ``fixed`` and draws without replacement in proportion to ``weight``, ``count`` in all."""
    _check_fits(int(fixed.sum()), count, "acl, calibration", weight.size / count)
    # The Gumbel trick: the largest of log(weight) + Gumbel noise are such draws, all at once.
    keys = np.log(weight) + np.random.default_rng(seed).gumbel(size=(batch, weight.size))
    keys[:, fixed] = np.inf
    chosen = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    taken = np.zeros(keys.shape, bool)
    np.put_along_axis(taken, chosen, True, axis=1)
    return taken


def _gaussian(n: int, width: float) -> NDArray[np.float64]:
    if not width > 0:
        raise ValueError(f"width: {width} is not a standard deviation, expected a fraction of the axis > 0")
    z = (np.arange(n) - n // 2) / (width * n)
    return np.exp(-0.5 * np.minimum(z**2, 1000.0))  # the outermost points keep a positive weight


def _lines(shape: Shape, axis: int) -> int:
    if axis not in (-2, -1):
        raise ValueError(f"axis: {axis} is not a phase-encoding axis, expected -2 (rows, H) or -1 (columns, W)")
    return shape[axis]


def _as_lines(taken: NDArray[np.bool_], axis: int) -> Tensor:
    lines = torch.from_numpy(taken)[:, None, :, None]
    return lines if axis == -2 else lines.mT


def _center(n: int, size: int) -> NDArray[np.bool_]:
    if not 0 <= size <= n:
        raise ValueError(f"acl, calibration: {size} samples do not fit an axis of {n}")
    taken = np.zeros(n, bool)
    taken[centered_slice(n, size)] = True
    return taken


def _square(shape: Shape, size: int) -> NDArray[np.bool_]:
    return np.logical_and.outer(_center(shape[0], size), _center(shape[1], size))


def _count(n: int, acceleration: float) -> int:
    if not 1 <= acceleration <= n:
        raise ValueError(f"acceleration: {acceleration} of {n} samples, expected between 1 and {n}")
    return round(n / acceleration)


def _check_fits(fixed: int, count: int, name: str, acceleration: float) -> None:
    if fixed > count:
        raise ValueError(
            f"{name}: {fixed} fully sampled ones exceed the {count} samples that acceleration {acceleration:g} leaves; "
            "take a smaller centre or accelerate less"
        )


# --- coils and object ------------------------------------------------------------------------------------------
def coil_maps(shape: Shape, coils: int, *, ring: float = 1.5, loop: float | None = None, turn: float = 0.0) -> Tensor:
    """Sensitivities of circular loops around the object, ``(1, coils, H, W)`` complex64, root sum of squares 1.

    The loops stand on a ring about the image, each facing the centre; a coil's sensitivity is its transverse field
    B_x - i B_y (reciprocity; Hoult 2000), here in the plane of the loops' centres, from the closed form of a circular
    current's field in complete elliptic integrals. Smooth, with magnitude and phase.

    Parameters
    ----------
    coils
        Number of loops, evenly spaced from the right (column) side on.
    ring
        Radius of the ring in units of half the longer side of the image.
    loop
        Radius of a loop in the same units; by default neighbours overlap by a fifth.
    turn
        Radians by which all of them are turned on.
    """
    if coils < 1:
        raise ValueError(f"coils: {coils}, expected at least 1")
    a = 1.2 * ring * np.sin(np.pi / max(coils, 3)) if loop is None else loop
    if not (ring > 0 and a > 0):
        raise ValueError(f"ring, loop: radii {ring} and {a} must be positive")
    half = max(shape) / 2
    y, x = ((np.arange(n) - n // 2) / half for n in shape)
    maps = np.empty((coils, *shape), complex)
    for c, angle in enumerate(turn + 2 * np.pi * np.arange(coils) / coils):
        axial = ring - (np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None])  # from the loop towards the centre
        radial = np.cos(angle) * y[:, None] - np.sin(angle) * x[None, :]
        b_axial, b_radial = _loop_field(axial, radial, a)
        maps[c] = (b_axial + 1j * b_radial) * -np.exp(-1j * angle)  # B_x - i B_y in the image's axes
    maps /= np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    return torch.from_numpy(maps.astype(np.complex64))[None]


def _loop_field(
    z: NDArray[np.float64], rho: NDArray[np.float64], a: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axial and (signed) radial field of a loop of radius ``a``, up to a constant (Smythe, Static and Dynamic
    Electricity, 7.10)."""
    r = np.abs(rho)
    outer, inner = (a + r) ** 2 + z**2, (a - r) ** 2 + z**2
    m = 4 * a * r / outer
    k, e = scipy.special.ellipk(m), scipy.special.ellipe(m)
    b_axial = (k + (a**2 - r**2 - z**2) / inner * e) / np.sqrt(outer)
    safe = np.where(r > 1e-9, r, 1.0)
    b_radial = np.where(r > 1e-9, z / safe * (-k + (a**2 + r**2 + z**2) / inner * e) / np.sqrt(outer), 0.0)
    return b_axial, np.sign(rho) * b_radial


# Shepp and Logan's head in the contrast of Toft (1996): intensity added, half axes, centre (x, y up), angle in degrees.
_HEAD = np.array(
    [
        (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
        (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
        (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
        (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
        (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
        (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
        (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
        (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
        (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
        (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
    ]
)


def head_phantom(shape: Shape, *, batch: int = 1, seed: int | None = None, phase: float = 1.0) -> Tensor:
    """A head of ellipses with smooth phase: ``(batch, H, W)`` complex64, magnitudes from 0 to 1.

    Parameters
    ----------
    seed
        None gives the modified Shepp-Logan head; a number turns, shifts and scales its parts at random, each sample
        differently.
    phase
        Amplitude in radians of the phase, a slow wave across the field of view as off-resonance leaves it.
    """
    rng = np.random.default_rng(seed)
    fine = 4  # a pixel is the mean over 4 x 4 points: no jagged edges
    y, x = ((np.arange(n * fine) + 0.5) / (n * fine) * 2 - 1 for n in shape)
    images = np.zeros((batch, *shape), complex)
    for sample in range(batch):
        image = np.zeros((shape[0] * fine, shape[1] * fine))
        for part, (value, a, b, x0, y0, degrees) in enumerate(_HEAD):
            if seed is not None and part > 1:
                value, a, b = np.array([value, a, b]) * rng.uniform(0.7, 1.3, 3)
                x0, y0 = x0 + rng.uniform(-0.06, 0.06), y0 + rng.uniform(-0.06, 0.06)
                degrees += rng.uniform(-30, 30)
            turn = np.exp(1j * np.deg2rad(degrees))
            u = (x[None, :] - x0) * turn.real + (-y[:, None] - y0) * turn.imag
            v = -(x[None, :] - x0) * turn.imag + (-y[:, None] - y0) * turn.real
            image += value * ((u / a) ** 2 + (v / b) ** 2 <= 1)
        shade = image.reshape(shape[0], fine, shape[1], fine).mean(axis=(1, 3)).clip(0.0, 1.0)
        shift = rng.uniform(0, 2 * np.pi, 2) if seed is not None else np.array([0.3, 1.1])
        yc, xc = (grid.reshape(-1, fine).mean(axis=1) for grid in (y, x))
        wave = 0.5 * (np.sin(2.0 * yc + shift[0])[:, None] + np.cos(2.5 * xc + shift[1])[None, :])
        images[sample] = shade * np.exp(1j * phase * wave)
    return torch.from_numpy(images.astype(np.complex64))


# --- acquisition -----------------------------------------------------------------------------------------------
def simulate(
    image: Tensor,
    maps: Tensor,
    mask: Tensor,
    *,
    noise_std: float = 0.0,
    noise_covariance: Tensor | NDArray[Any] | None = None,
    noise_samples: int = 4096,
    readout_oversampling: int = 1,
    field_of_view: tuple[float, float, float] = (0.22, 0.22, 0.005),
    seed: int = 0,
) -> MRIScan:
    """Acquire ``y_c = mask * (F (maps_c * image) + n_c)`` with noise correlated between coils, and a noise scan.

    Parameters
    ----------
    image
        ``(B, H, W)`` complex; each sample becomes a slice.
    maps
        ``(B | 1, C, H, W)`` complex.
    mask
        ``(B | 1, 1, H | 1, W | 1)`` bool.
    noise_std, noise_covariance
        ``E[n n^H] = noise_std^2 * noise_covariance`` over the coils, ``(C, C)`` Hermitian positive definite, identity
        by default: at identity, real and imaginary parts have the standard deviation ``noise_std / sqrt(2)`` each. In
        the orthonormal transform a pixel of a fully sampled coil image has the same noise as a sample.
    noise_samples
        Length of the noise scan; 0 leaves it out.
    readout_oversampling
        The readout (along W) covers that many times the field of view. Needs a mask that is constant along W.
    field_of_view
        Metres along H and W, and slice thickness.

    Returns
    -------
    MRIScan
        In the reader's conventions. The object is what its pixels say: no sub-pixel detail, no relaxation.
    """
    for name, tensor in (("image", image), ("maps", maps)):
        check_dtype(name, tensor, COMPLEX)
    check_shape("image", image, (None, None, None), "(B, H, W)")
    batch, height, width = image.shape
    check_like("maps", maps, "image", image)
    check_shape("maps", maps, (batch if maps.shape[0] != 1 else 1, None, height, width), "(B | 1, C, H, W)")
    coils = maps.shape[1]
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: dtype {mask.dtype} is not supported, expected bool")
    sizes = ((batch, 1), (1,), (height, 1), (width, 1))
    if mask.dim() != 4 or any(n not in allowed for n, allowed in zip(mask.shape, sizes, strict=True)):
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} does not fit {batch} images of {height} x {width}, "
            "expected (B | 1, 1, H | 1, W | 1)"
        )
    if readout_oversampling < 1 or (readout_oversampling > 1 and mask.shape[3] != 1):
        raise ValueError(
            f"readout_oversampling: {readout_oversampling} with a mask of shape {tuple(mask.shape)}; expected a whole "
            "number >= 1, and above 1 a mask that takes whole lines along W"
        )
    if noise_std < 0:
        raise ValueError(f"noise_std: {noise_std} is not a standard deviation, expected >= 0")

    coil_images = (maps * image[:, None]).to(torch.complex128).cpu()
    before = width * readout_oversampling // 2 - width // 2
    after = width * (readout_oversampling - 1) - before
    kspace = fft_centered(torch.nn.functional.pad(coil_images, (before, after))).numpy()
    rng = np.random.default_rng(seed)
    root = noise_std * _covariance_root(noise_covariance, coils)
    kspace += np.einsum("cd,bdhw->bchw", root, _white(rng, kspace.shape))
    taken = mask.cpu().expand(-1, 1, height, -1).numpy().copy()
    return MRIScan(
        kspace=np.where(taken, kspace, 0).astype(np.complex64),
        mask=taken,
        noise=(root @ _white(rng, (coils, noise_samples))).astype(np.complex64) if noise_samples else None,
        readout_oversampling=float(readout_oversampling),
        field_of_view=field_of_view,
        labels=tuple(f"slice {s}" for s in range(batch)),
        metadata={"source": "simulated", "noise_std": noise_std, "seed": seed},
    )


def _white(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Circular complex normal numbers with ``E|n|^2 = 1``."""
    pairs = rng.standard_normal((*shape, 2)) * np.sqrt(0.5)
    return np.asarray(pairs.view(np.complex128)[..., 0])


def _covariance_root(covariance: Tensor | NDArray[Any] | None, coils: int) -> NDArray[np.complex128]:
    if covariance is None:
        return np.eye(coils, dtype=np.complex128)
    matrix = np.asarray(covariance, np.complex128)
    if matrix.shape != (coils, coils):
        raise ValueError(f"noise_covariance: shape {matrix.shape} does not fit {coils} coils, expected (C, C)")
    if not np.allclose(matrix, matrix.conj().T, rtol=1e-6, atol=1e-9 * float(np.abs(matrix).max())):
        raise ValueError("noise_covariance: is not Hermitian")
    try:
        return np.asarray(np.linalg.cholesky(matrix), np.complex128)
    except np.linalg.LinAlgError:
        raise ValueError("noise_covariance: is not positive definite") from None
