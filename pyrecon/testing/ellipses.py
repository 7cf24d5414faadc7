"""Ellipses, whose line integrals are known: what projectors are measured by."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon.ops import Beam

# Value, centre (x, y), half axes and turn in radians, of an image from -1 to 1: a modified Shepp-Logan head (P. Toft,
# The Radon transform, 1996) of softer contrast than the first.
SHEPP_LOGAN = (
    (1.0, 0.0, 0.0, 0.69, 0.92, 0.0),
    (-0.8, 0.0, -0.0184, 0.6624, 0.874, 0.0),
    (-0.2, 0.22, 0.0, 0.11, 0.31, -0.3142),
    (-0.2, -0.22, 0.0, 0.16, 0.41, 0.3142),
    (0.1, 0.0, 0.35, 0.21, 0.25, 0.0),
    (0.1, 0.0, 0.1, 0.046, 0.046, 0.0),
    (0.1, 0.0, -0.1, 0.046, 0.046, 0.0),
    (0.1, -0.08, -0.605, 0.046, 0.023, 0.0),
    (0.1, 0.0, -0.605, 0.023, 0.023, 0.0),
    (0.1, 0.06, -0.605, 0.023, 0.046, 0.0),
)


def shepp_logan(radius: float) -> Tensor:
    """Ellipses ``(10, 6)`` of a head that fills an image of half width ``radius``, in the same unit."""
    ellipses = torch.tensor(SHEPP_LOGAN, dtype=torch.float64)
    ellipses[:, 1:5] *= radius
    return ellipses


def ellipse_projection(geometry: Beam, ellipses: Tensor) -> Tensor:
    """Exact line integrals of a sum of ellipses along the rays of a scan, ``(views, n_det)`` float64.

    Parameters
    ----------
    geometry
        The scan.
    ellipses
        ``(E, 6)``: value in 1/m, centre x and y, half axes, all in metres, and turn in radians (anticlockwise).
    """
    points, directions = (t.detach() for t in geometry.rays())
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    total: Tensor = torch.zeros(geometry.range_shape, dtype=torch.float64)
    for value, x, y, a, b, turn in ellipses.double():
        p = _turned(points - torch.stack([x, y]), turn) / torch.stack([a, b])
        d = _turned(directions, turn) / torch.stack([a, b])
        dd, pd, pp = (d * d).sum(-1), (p * d).sum(-1), (p * p).sum(-1)
        total += value * 2 * (pd.square() - dd * (pp - 1)).clamp(min=0).sqrt() / dd
    return total


def ellipse_image(geometry: Beam, ellipses: Tensor, *, fine: int = 8) -> Tensor:
    """The same ellipses as an image ``geometry.shape`` float64, each pixel the mean of ``fine`` x ``fine`` points."""
    height, width = geometry.shape
    dy, dx = geometry.pixel_size
    x = (torch.arange(width * fine, dtype=torch.float64) + 0.5 - width * fine / 2) * (dx / fine)
    y = (height * fine / 2 - torch.arange(height * fine, dtype=torch.float64) - 0.5) * (dy / fine)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    image = torch.zeros(height * fine, width * fine, dtype=torch.float64)
    for value, cx, cy, a, b, turn in ellipses.double():
        inside = (_turned(places - torch.stack([cx, cy]), turn) / torch.stack([a, b])).square().sum(-1) <= 1
        image += value * inside
    means: Tensor = image.view(height, fine, width, fine).mean((1, 3))
    return means


def _turned(v: Tensor, angle: Tensor) -> Tensor:
    """Vectors (..., 2) turned clockwise."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * v[..., 0] + s * v[..., 1], -s * v[..., 0] + c * v[..., 1]], dim=-1)
