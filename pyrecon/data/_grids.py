"""From one grid of an image to another: rows of a system matrix, and images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FINER = 2  # by how much images are finer than the grid of the system matrix that is to read their data


def upsample_rows(matrix: Tensor, shape: tuple[int, int], factor: int = 2) -> Tensor:
    """``matrix U``: every row ``(N,)`` as an image of ``shape``, bicubically on a ``factor`` times finer grid.

    ``(M, H * W)`` to ``(M, factor^2 * H * W)``. Voxel centres are aligned as voxels are (Keys' kernel, a = -0.75, edge
    voxels repeated).
    """
    images = matrix.view(len(matrix), 1, *shape)
    fine = F.interpolate(images, scale_factor=factor, mode="bicubic", align_corners=False)
    return fine.reshape(len(matrix), -1)


def blurred_rows(matrix: Tensor, shape: tuple[int, int], factor: int = FINER) -> Tensor:
    """``A U D``: every row interpolated bicubically to a ``factor`` times finer grid and averaged back over boxes.

    Simulated data made with A are reconstructed with this, so that the model that made the data is not the one that
    reads them (the inverse crime; DEQ-MPI section IV-D, Eq. 35).
    """
    fine = upsample_rows(matrix, shape, factor)
    return box_downsample(fine.view(-1, *(n * factor for n in shape)), factor).flatten(1)


def box_downsample(images: Tensor, factor: int = 2) -> Tensor:
    """Mean over boxes of ``factor x factor`` pixels, ``(B, H, W)`` to ``(B, H / factor, W / factor)``."""
    _, height, width = images.shape
    if height % factor or width % factor:
        raise ValueError(f"images: {height} x {width} pixels do not divide into boxes of {factor} x {factor}")
    return F.avg_pool2d(images[:, None], factor)[:, 0]
