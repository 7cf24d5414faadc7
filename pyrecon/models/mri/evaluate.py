"""Retrospective undersampling: how well does each method do without the lines that are there?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon.data.mri import WHITENED, check_scan, prewhiten, remove_oversampling, undersample
from pyrecon.data.raw import MRIScan
from pyrecon.models.mri.methods import CGSense, MRIMethod, TVSense, WaveletSense, ZeroFilled
from pyrecon.models.mri.reconstruct import reconstruct_mri
from pyrecon.physics.mri import acceleration, gaussian_lines


@dataclass(frozen=True)
class Evaluation:
    """How one method did at one acceleration, means over the slices.

    ``acceleration`` was asked for, ``net_acceleration`` is that of the mask; ``psnr`` (dB, peak of the reference),
    ``ssim`` and ``nmse`` compare magnitudes; ``seconds`` is the whole reconstruction of all slices.
    """

    method: str
    acceleration: float
    net_acceleration: float
    psnr: float
    ssim: float
    nmse: float
    seconds: float
    status: dict[str, int]


def evaluate_mri(
    scan: MRIScan,
    accelerations: Sequence[float] = (2.0, 4.0),
    methods: Sequence[MRIMethod] = (ZeroFilled(), CGSense(), WaveletSense(), TVSense()),
    *,
    reference: Tensor | None = None,
    mask: Callable[[tuple[int, int], float], Tensor] = gaussian_lines,
    device: torch.device | str = "cpu",
) -> tuple[list[Evaluation], dict[tuple[str, float], Tensor]]:
    """Undersample a scan retrospectively and compare every method with the fully sampled image.

    Maps are estimated anew from each undersampled scan; the noise, and with it the unit of the images, is that of the
    full one.

    Parameters
    ----------
    scan
        Fully sampled.
    accelerations, methods
        All combinations are run.
    reference
        ``(S, H, W)`` images in units of the noise; by default CG-SENSE of the full scan. Note that the noise of that
        one is in the undersampled scans too.
    mask
        ``mask((H, W), acceleration)``, a function of :mod:`pyrecon.physics.mri` or a ``partial`` of one, is the mask of
        all slices.
    device
        Where to compute.

    Returns
    -------
    rows, images
        One :class:`Evaluation` each, and the images ``(S, H, W)`` by ``(method.name, acceleration)``, the reference as
        ``("reference", 1.0)``.
    """
    check_scan(scan)
    if not scan.mask.all():
        raise DataError(f"mask: {scan.mask.mean():.0%} of the lines are sampled; evaluation needs a fully sampled scan")
    white = remove_oversampling(scan)
    white = white if WHITENED in white.metadata else prewhiten(white)
    if reference is None:
        reference, _ = reconstruct_mri(white, CGSense(), device=device)
    truth = reference.abs()
    rows, images = [], {("reference", 1.0): reference}
    for rate in accelerations:
        lines = mask(white.kspace.shape[2:], rate)
        under = undersample(white, lines)
        for method in methods:
            image, report = reconstruct_mri(under, method, device=device)
            images[method.name, rate] = image
            scores = (metric(image.abs(), truth).mean() for metric in (metrics.psnr, metrics.ssim, metrics.nmse))
            psnr, ssim, nmse = (float(score) for score in scores)
            net = acceleration(lines)
            rows.append(Evaluation(method.name, rate, net, psnr, ssim, nmse, report.seconds, report.status))
    return rows, images


def evaluation_table(rows: Sequence[Evaluation]) -> str:
    """Markdown."""
    lines = ["| method | acceleration (net) | PSNR, dB | SSIM | NMSE | s |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.method} | {r.acceleration:g} ({r.net_acceleration:.2f}) | {r.psnr:.2f} | {r.ssim:.3f} | {r.nmse:.2e} "
        f"| {r.seconds:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)
