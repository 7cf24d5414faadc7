"""Retrospective undersampling: how well does each method do without the lines that are there?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon.data.heads import smooth_phase
from pyrecon.data.mri import WHITENED, check_scan, prewhiten, remove_oversampling, undersample
from pyrecon.data.raw import MRIScan
from pyrecon.models.mri.methods import CGSense, MRIMethod, TVSense, WaveletSense, ZeroFilled
from pyrecon.models.mri.reconstruct import reconstruct_mri
from pyrecon.physics.mri import acceleration, coil_maps, gaussian_lines, simulate


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


def scan_of_images(
    images: NDArray[Any], *, coils: int = 8, noise: float = 0.05, slices: int = 3, seed: int = 0
) -> tuple[MRIScan, Tensor]:
    """A fully sampled scan of slices of a volume, and what it shows: ``(S, H, W)`` in units of the noise.

    Parameters
    ----------
    images
        ``(H, W)``, ``(S, H, W)`` or with further axes that are slices too; magnitudes, a smooth phase is added where
        they are real. Slices are taken evenly from the middle half.
    coils
        Of :func:`pyrecon.physics.mri.coil_maps`.
    noise
        Standard deviation of a sample's noise, relative to the brightest thousandth of the pixels.
    """
    stack = np.asarray(images).reshape(-1, *images.shape[-2:])
    if stack.dtype.kind not in "biufc" or not np.isfinite(stack).all():
        raise DataError("image: expected finite numbers")
    first, last = len(stack) // 4, len(stack) - 1 - len(stack) // 4
    chosen = np.unique(np.linspace(first, last, min(slices, last - first + 1)).round().astype(int))
    top = np.quantile(np.abs(stack[chosen]), 0.999)
    if not top > 0:
        raise DataError("image: its middle slices are zero, nothing to scan")
    picked = stack[chosen] / top
    shape = (picked.shape[1], picked.shape[2])
    if not np.iscomplexobj(picked):
        picked = picked * np.stack([smooth_phase(shape, seed=seed, number=int(i)) for i in chosen])
    truth = torch.from_numpy(picked.astype(np.complex64))
    maps = coil_maps(shape, coils)
    everything = torch.ones(1, 1, *shape, dtype=torch.bool)
    scan = simulate(truth, maps, everything, noise_std=noise, seed=seed)
    return scan, truth * maps.abs().square().sum(1).sqrt() / noise


def evaluation_table(rows: Sequence[Evaluation]) -> str:
    """Markdown."""
    lines = ["| method | acceleration (net) | PSNR, dB | SSIM | NMSE | s |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.method} | {r.acceleration:g} ({r.net_acceleration:.2f}) | {r.psnr:.2f} | {r.ssim:.3f} | {r.nmse:.2e} "
        f"| {r.seconds:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)
