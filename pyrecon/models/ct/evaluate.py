"""How much of an object of one material is found from limited views, as the Helsinki Tomography Challenge asks.

An image is cut in two at Otsu's threshold and compared with the true segmentation by the Matthews correlation
coefficient: 1 where all pixels agree, 0 for guessing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.ct import CTScan, coverage
from pyrecon.metrics import matthews
from pyrecon.models.ct.methods import CGLS, FBP, SIRT, TV, CTMethod
from pyrecon.models.ct.reconstruct import reconstruct_ct
from pyrecon.solvers import ConvergenceWarning


@dataclass(frozen=True)
class Evaluation:
    """How one method, by its label, did on one scan: ``correlation`` is Matthews', ``degrees`` what the views cover."""

    scan: str
    degrees: float
    views: int
    method: str
    correlation: float
    threshold: float
    seconds: float
    status: dict[str, int]


def evaluate_ct(
    scans: Mapping[str, CTScan],
    truth: NDArray[Any],
    methods: Sequence[CTMethod] = (FBP(), CGLS(), SIRT(), TV()),
    *,
    pixel_size: float | None = None,
    device: torch.device | str = "cpu",
) -> tuple[list[Evaluation], dict[tuple[str, str], Tensor]]:
    """Segment one object from each of several scans by every method.

    Parameters
    ----------
    scans
        By name, of one slice each.
    truth
        ``(H, W)``: what is above half of its maximum is the object. Images get its shape.
    methods
        All combinations are run. Those of one label, as of one network with several weights, are numbered.
    pixel_size
        Of the truth, metres. None: as wide as rays are apart at the axis, as the challenge has it.
    device
        Where to compute.

    Returns
    -------
    rows, images
        One :class:`Evaluation` each, and the images ``(H, W)`` by ``(scan, method)``.
    """
    mask = np.asarray(truth)
    if mask.ndim != 2 or not np.isfinite(mask).all() or not mask.max() > mask.min():
        raise DataError(f"truth: {mask.dtype} of shape {mask.shape}, expected a segmentation (H, W) with both kinds")
    known = torch.from_numpy(2 * mask.astype(np.float64) > float(mask.max()))
    labels = [method.label for method in methods]
    labels = [f"{m} ({labels[:i].count(m) + 1})" if labels.count(m) > 1 else m for i, m in enumerate(labels)]
    rows, images = [], {}
    for name, scan in scans.items():
        if len(scan.sinogram) != 1:
            raise DataError(f"{name}: {len(scan.sinogram)} slices, expected one")
        seen = coverage(scan.geometry)
        size = scan.geometry.pixel_size[0] if pixel_size is None else pixel_size
        for method, label in zip(methods, labels, strict=True):
            with warnings.catch_warnings():  # the row says how it ended, its scan what is missing
                warnings.simplefilter("ignore", ConvergenceWarning)
                warnings.filterwarnings("ignore", "limited angle")
                found, report = reconstruct_ct(scan, method, shape=tuple(mask.shape), pixel_size=size, device=device)
            level = _otsu(found[0])
            score = float(matthews(found > level, known[None]))
            images[name, label] = found[0]
            rows.append(
                Evaluation(
                    name,
                    float(np.degrees(seen.arc)),
                    seen.views,
                    label,
                    score,
                    level,
                    report.seconds,
                    report.status,
                )
            )
    return rows, images


def evaluation_table(rows: Sequence[Evaluation]) -> str:
    """Markdown, a column for each method."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = [f"| scan | degrees | views | {' | '.join(methods)} |", "|---|---|---|" + "---|" * len(methods)]
    for name in dict.fromkeys(row.scan for row in rows):
        own = {row.method: row for row in rows if row.scan == name}
        first = next(iter(own.values()))
        cells = " | ".join(f"{own[m].correlation:.3f} ({own[m].seconds:.1f} s)" for m in methods)
        lines.append(f"| {name} | {first.degrees:.0f} | {first.views} | {cells} |")
    return "\n".join(lines)


def _otsu(image: Tensor) -> float:
    try:
        from skimage.filters import threshold_otsu
    except ImportError:
        raise MissingDependency("scikit-image", "demo", "Otsu's threshold") from None
    return float(threshold_otsu(image.numpy()))
