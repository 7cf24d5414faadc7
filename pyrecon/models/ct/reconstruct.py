"""From a scan to images and a report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.ct import Coverage, CTScan, check_rays, check_scan, coverage, on_grid, some_views
from pyrecon.linops import Radon
from pyrecon.models.ct.methods import FBP, TV, CTMethod, noise_of
from pyrecon.models.method import check_method
from pyrecon.ops._fbp import check_ideal
from pyrecon.report import Recorder, Report

_CHUNK_BYTES = 2**28  # of images reconstructed at a time; a solver needs about eight times as much


def default_method(scan: CTScan) -> FBP | TV:
    """What a scan is reconstructed by if nothing is said: FBP where the views cover all directions closely and are
    those of an ideal scanner, else TV."""
    seen = coverage(scan.geometry)
    if seen.limited or seen.sparse:
        return TV()
    try:
        check_ideal(scan.geometry)
    except DataError:
        return TV()
    return FBP()


def reconstruct_ct(
    scan: CTScan,
    method: CTMethod | None = None,
    *,
    shape: Sequence[int] | None = None,
    pixel_size: float | Sequence[float] | None = None,
    views: slice | Sequence[int] | Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Report]:
    """Reconstruct every slice of a scan.

    Parameters
    ----------
    scan
        From a reader or a simulation.
    method
        One of the classes here; :func:`default_method` of the views that are used if not given.
    shape, pixel_size
        Of the images, pixels in metres; by default the scan's own, for a trained network the shape it was trained at.
        With one of the two the field of view stays.
    views
        Use these only.
    device
        Where to compute.

    Returns
    -------
    images, report
        ``(S, H, W)`` float32 on the CPU, in 1/m; row 0 is at the top, x to the right, as the angles count
        anticlockwise. The report says what was done and assumed on the way here, and which directions are missing.

    Raises
    ------
    DataError
        If the scan is damaged.
    """
    check_scan(scan)
    if method is not None:
        check_method(method, CTMethod, "FBP()")
    if views is not None:
        scan = some_views(scan, views)
    method = default_method(scan) if method is None else method
    run = Recorder(method.name, method, device=device)
    report = run.report()
    report.details |= {name: value for name, value in scan.metadata.items() if name != "warnings"}
    images = []
    iterations = 0
    with run:
        for text in scan.metadata.get("warnings", ()):
            warnings.warn(str(text), stacklevel=2)
        if shape is None and pixel_size is None:
            shape = method.shape
        physics = Radon(on_grid(scan.geometry, shape, pixel_size)).to(device)
        check_rays(physics.geometry)
        seen = coverage(physics.geometry)
        report.details |= _facts(physics, seen) | method.facts(physics)
        if seen.limited and isinstance(method, FBP):
            warnings.warn(f"{seen}; total variation (tv) does better", stacklevel=2)
        step = max(1, _CHUNK_BYTES // (4 * int(np.prod(physics.domain_shape))))
        for start in range(0, len(scan.sinogram), step):
            sinogram = torch.from_numpy(scan.sinogram[start : start + step]).to(device)
            solution = method.solve(sinogram, physics)
            misfit = torch.linalg.vector_norm((physics(solution.value) - sinogram).flatten(1), dim=1)
            noise = noise_of(sinogram, getattr(method, "noise_std", None))
            known = bool((noise > 0).all())
            run.add(solution, residual=misfit, noise_level=noise * sinogram[0].numel() ** 0.5 if known else None)
            iterations = max(iterations, int(solution.iterations.max()))
            images.append(solution.value.cpu())
    if iterations:
        report.details["iterations"] = iterations
    return torch.cat(images), report


def _facts(physics: Radon, seen: Coverage) -> dict[str, Any]:
    height, width = physics.geometry.shape
    dy, dx = (f"{1e3 * p:.4g}" for p in physics.geometry.pixel_size)
    return {"image": f"{height} x {width} pixels of {dy} x {dx} mm, in 1/m", "coverage": str(seen)}
