"""CT scanners: line integrals of an object, and the noise of counting photons or of electronics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrecon._check import FLOATING, check_count, check_dtype, check_number
from pyrecon.data import ct_phantoms
from pyrecon.data.ct import CTScan, line_integrals, natural_grid, on_grid
from pyrecon.ops import FanBeam, ParallelBeam, radon
from pyrecon.ops._radon_geometry import Beam
from pyrecon.testing.ellipses import ellipse_image, ellipse_projection, shepp_logan

# The scanner of the Helsinki Tomography Challenge, metres.
SOURCE_TO_AXIS, SOURCE_TO_DETECTOR, DETECTOR = 0.41066, 0.55374, 0.112
# Peak attenuation of phantoms, 1/m: acrylic at 45 kV; for others line integrals of about 3.
ACRYLIC, OTHERS = 37.0, 60.0


def scanner(
    beam: str, views: int, *, arc: float | None = None, start: float = 0.0, n_det: int = 560, offset: float = 0.0
) -> Beam:
    """A geometry like that of the Helsinki Tomography Challenge, on its natural grid.

    Parameters
    ----------
    beam
        "parallel", "fan" or "curved".
    views, arc, start
        Views evenly over ``arc`` degrees (a full turn, half of one for parallel rays) from ``start`` on.
    n_det, offset
        Detector pixels, and how many of them its middle is off the axis.
    """
    check_count("views", views)
    check_count("n_det", n_det, 2)
    full = 180.0 if beam == "parallel" else 360.0
    covered = full if arc is None else check_number("arc", arc, above=True)
    angles = torch.deg2rad(start + covered * torch.arange(views, dtype=torch.float64) / views)
    spacing = DETECTOR / n_det
    if beam == "parallel":
        spacing *= SOURCE_TO_AXIS / SOURCE_TO_DETECTOR
    elif beam not in ("fan", "curved"):
        raise ValueError(f"beam: {beam!r} is not known, expected 'parallel', 'fan' or 'curved'")

    def build(shape: tuple[int, int], pixel: float) -> Beam:
        if beam == "parallel":
            return ParallelBeam(angles, shape, n_det, spacing, offset * spacing, pixel, unit="m")
        return FanBeam(
            angles, shape, n_det, spacing, SOURCE_TO_AXIS, SOURCE_TO_DETECTOR, offset * spacing, pixel,
            curved=beam == "curved", unit="m",
        )  # fmt: skip

    with warnings.catch_warnings():  # of the image of one pixel
        warnings.simplefilter("ignore")
        shape, pixel = natural_grid(build((1, 1), 1e-6))
    return build(shape, pixel)


def phantom(kind: str, geometry: Beam, count: int = 1, *, seed: int = 0) -> Tensor:
    """What :func:`simulate` scans: "disc" and "body" images of twice as many pixels, "head" ellipses."""
    if kind == "head":
        side = min(n * p for n, p in zip(geometry.shape, geometry.pixel_size, strict=True))
        ellipses = shepp_logan(side / 2)
        ellipses[:, 0] *= OTHERS
        return ellipses
    draw = {"disc": (ct_phantoms.discs, ACRYLIC), "body": (ct_phantoms.organs, OTHERS)}
    if kind not in draw:
        raise ValueError(f"kind: {kind!r} is not known, expected 'disc', 'body' or 'head'")
    function, peak = draw[kind]
    height, width = geometry.shape
    return peak * torch.from_numpy(function(count, (2 * height, 2 * width), seed=seed))


def simulate(
    body: Tensor,
    geometry: Beam,
    *,
    photons: float | None = None,
    noise_std: float = 0.0,
    seed: int = 0,
) -> CTScan:
    """Scan an object.

    Parameters
    ----------
    body
        Images ``(S, h, w)`` in 1/m that fill the geometry's image, of any number of pixels: finer ones are sharper than
        what is reconstructed. Or ellipses ``(E, 6)`` as :func:`pyrecon.testing.ellipses.ellipse_projection` has them,
        whose line integrals are exact.
    geometry
        The rays, and the grid of the images to be reconstructed.
    photons
        How many reach a detector pixel where nothing is in the way; they are counted, so their number is Poisson's.
        None for no such noise.
    noise_std
        Standard deviation of white noise on top, in line integrals.
    seed
        Of the noise.
    """
    check_dtype("body", body, FLOATING)
    check_number("noise_std", noise_std)
    check_count("seed", seed, 0)
    if body.dim() == 2 and body.shape[1] == 6:
        clean = ellipse_projection(geometry, body)[None].numpy()
    elif body.dim() == 3 and len(body):
        with warnings.catch_warnings():  # that the rays do not reach its corners was said of the geometry
            warnings.simplefilter("ignore")
            fine = on_grid(geometry, tuple(body.shape[1:]), _pixels(body, geometry))
        clean = radon(body.double(), fine).numpy()
    else:
        raise ValueError(f"body: shape {tuple(body.shape)} does not fit, expected images (S, h, w) or ellipses (E, 6)")
    rng = np.random.default_rng(seed)
    metadata: dict[str, Any] = {"source": "simulated", "noise_std": noise_std, "seed": seed}
    if photons is not None:
        check_number("photons", photons, 1.0)
        counts = rng.poisson(photons * np.exp(-clean))
        clean, clamped = line_integrals(counts, None, photons)
        metadata |= {"photons": photons, "clamped": f"{clamped} of {counts.size} values (no photon)"}
    noisy = clean + noise_std * rng.standard_normal(clean.shape)
    return CTScan(np.ascontiguousarray(noisy, np.float32), geometry, metadata=metadata)


def _pixels(body: Tensor, geometry: Beam) -> tuple[float, float]:
    """Of an image that fills the geometry's."""
    rows, columns = (
        n * p / m for n, p, m in zip(geometry.shape, geometry.pixel_size, tuple(body.shape[1:]), strict=True)
    )
    return rows, columns


def truth(body: Tensor, geometry: Beam) -> Tensor:
    """The object on the geometry's grid, ``(S, H, W)``: means of images whose size is a multiple of it, or ellipses."""
    if body.dim() == 2:
        return ellipse_image(geometry, body)[None].to(body.dtype)
    return torch.nn.functional.adaptive_avg_pool2d(body[:, None], geometry.shape)[:, 0]
