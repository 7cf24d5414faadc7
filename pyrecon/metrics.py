"""Image and data quality, batched: one number per sample, computed in double precision, differentiable.

The first axis is the batch; a metric reduces over all others (SSIM: its windows lie in the last two).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(x: Tensor, reference: Tensor, *, peak: Tensor | float | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``20 log10(sqrt(N) |reference|_inf / |x - reference|_2)``.

    Parameters
    ----------
    x, reference
        ``(B, ...)`` real or complex.
    peak
        In place of each reference's largest magnitude: a number or ``(B,)``. With 1.0 for images in [0, 1] this is
        the common definition of PSNR.

    Returns
    -------
    Tensor
        ``(B,)`` float64; infinite where the images are equal.

    Notes
    -----
    DEQ-MPI, Eq. 37. Equals scikit-image's ``peak_signal_noise_ratio`` with ``data_range`` the peak.
    """
    x, reference = _pair(x, reference)
    top = reference.abs().amax(dim=1) if peak is None else torch.as_tensor(peak, dtype=torch.float64, device=x.device)
    mse = (x - reference).abs().square().mean(dim=1)
    return 20 * torch.log10(top) - 10 * torch.log10(mse)


def snr(y: Tensor, clean: Tensor) -> Tensor:
    """Signal-to-noise ratio of ``y`` in dB, with ``clean`` its noise-free part: ``20 log10(|clean| / |y - clean|)``.

    ``(B, ...)`` real or complex to ``(B,)`` float64. DEQ-MPI, Eq. 36.
    """
    return -10 * torch.log10(nmse(y, clean))


def nmse(x: Tensor, reference: Tensor) -> Tensor:
    """Normalised squared error ``|x - reference|_2^2 / |reference|_2^2``, ``(B, ...)`` to ``(B,)`` float64."""
    x, reference = _pair(x, reference)
    return (x - reference).abs().square().sum(dim=1) / reference.abs().square().sum(dim=1)


def ssim(
    x: Tensor,
    reference: Tensor,
    *,
    data_range: Tensor | float | None = None,
    window: Literal["uniform", "gaussian"] = "uniform",
) -> Tensor:
    """Mean structural similarity in [-1, 1] over all windows that lie inside the image.

    Per window, with means m, unbiased (co)variances v, ``c1 = (0.01 L)^2`` and ``c2 = (0.03 L)^2``::

        (2 m_x m_r + c1) (2 v_xr + c2) / ((m_x^2 + m_r^2 + c1) (v_x + v_r + c2))

    Parameters
    ----------
    x, reference
        ``(B, ..., H, W)`` real.
    data_range
        L: a number or ``(B,)``. Default each reference's largest magnitude, the peak that :func:`psnr` uses.
    window
        ``"uniform"``: 7x7, scikit-image's default. ``"gaussian"``: standard deviation 1.5 cut at 11x11 with biased
        variances, as in Wang et al. 2004. An image with a side below the window takes the largest odd window that fits.

    Returns
    -------
    Tensor
        ``(B,)`` float64. Equals scikit-image's ``structural_similarity`` with the same window and range.
    """
    if x.is_complex() or reference.is_complex():
        raise TypeError("x: SSIM is defined for real images; take .abs() of complex ones")
    if x.dim() < 3:
        raise ValueError(f"x: shape {tuple(x.shape)} does not fit, expected (B, ..., H, W)")
    flat, flat_reference = _pair(x, reference)
    if data_range is None:
        span = flat_reference.abs().amax(dim=1)
    else:
        span = torch.as_tensor(data_range, dtype=torch.float64, device=x.device).expand(len(x))
    c1, c2 = ((k * span)[:, None, None, None].square() for k in (0.01, 0.03))

    shape = (x.shape[0], -1, *x.shape[-2:])
    a, r = flat.reshape(shape), flat_reference.reshape(shape)
    profile = _profile(window, min(x.shape[-2:])).to(x.device)
    samples = len(profile) ** 2
    unbiased = samples / (samples - 1) if window == "uniform" and samples > 1 else 1.0

    mean_a, mean_r = _local_mean(a, profile), _local_mean(r, profile)
    var_a = unbiased * (_local_mean(a * a, profile) - mean_a * mean_a)
    var_r = unbiased * (_local_mean(r * r, profile) - mean_r * mean_r)
    cov = unbiased * (_local_mean(a * r, profile) - mean_a * mean_r)
    similarity = (2 * mean_a * mean_r + c1) * (2 * cov + c2)
    similarity = similarity / ((mean_a.square() + mean_r.square() + c1) * (var_a + var_r + c2))
    return similarity.flatten(1).mean(dim=1)


def matthews(x: Tensor, reference: Tensor) -> Tensor:
    """Matthews correlation of two segmentations, with TP, ... the counts of pixels that are true in both, ...::

        (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))

    ``(B, ...)`` bool to ``(B,)`` float64: 1 where they agree, 0 where one is constant. Equals scikit-learn's
    ``matthews_corrcoef``.
    """
    for name, tensor in (("x", x), ("reference", reference)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
            raise TypeError(f"{name}: expected a bool tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
    flat, known = _pair(x, reference)
    positive, true, both, n = flat.sum(1), known.sum(1), (flat * known).sum(1), flat.shape[1]
    spread = positive * (n - positive) * true * (n - true)
    return torch.where(spread > 0, (n * both - positive * true) / spread.clamp(min=1).sqrt(), 0.0)


def t1_errors(t1: Tensor, truth: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Errors of maps of T1 within a mask, per sample.

    Parameters
    ----------
    t1, truth
        ``(B, H, W)`` in seconds. A pixel where no T1 was found (not finite, or not above 0) counts as T1 = 0 and
        R1 = 0, an error of all of it; the truth is above 0.
    inside
        ``(B, H, W)`` bool.

    Returns
    -------
    dict
        ``(B,)`` float64 each, NaN of a sample without a pixel inside: ``"nrmse"`` is ``|T1 - ref| / |ref|``, ``"mae"``
        the mean of ``|T1 - ref|`` in seconds, ``"r1_nrmse"`` that of ``R1 = 1 / T1``, ``"median"`` the median of
        ``|T1 - ref| / ref``.
    """
    for name, tensor in (("truth", truth), ("inside", inside)):
        if tensor.shape != t1.shape or t1.dim() != 3:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, t1 has {tuple(t1.shape)}, expected (B, H, W)")
    if inside.dtype != torch.bool:
        raise TypeError(f"inside: {inside.dtype}, expected bool")
    rows = [_t1_errors(*pair) for pair in zip(t1.double(), truth.double(), inside, strict=True)]
    names = ("nrmse", "mae", "r1_nrmse", "median")
    stacked = torch.stack(rows, 1) if rows else t1.new_zeros(len(names), 0, dtype=torch.float64)
    return dict(zip(names, stacked, strict=True))


def _t1_errors(t1: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """``(4,)`` of one sample."""
    found, known = t1[inside], truth[inside]
    there = torch.isfinite(found) & (found > 0)
    found = torch.where(there, found, 0.0)
    rate, known_rate = torch.where(there, 1 / found, 0.0), 1 / known
    change = (found - known).abs()
    if not len(known):
        return truth.new_full((4,), torch.nan)
    return torch.stack(
        (change.norm() / known.norm(), change.mean(), (rate - known_rate).norm() / known_rate.norm(),
         (change / known).median())
    )  # fmt: skip


def _pair(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (B, n) in double precision."""
    for name, tensor in (("x", x), ("reference", reference)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if x.shape != reference.shape:
        raise ValueError(f"x: shape {tuple(x.shape)} does not match reference {tuple(reference.shape)}")
    if x.dim() < 2 or x.shape[1:].numel() == 0:
        raise ValueError(f"x: shape {tuple(x.shape)} does not fit, expected (B, ...) with the batch first")
    if x.device != reference.device:
        raise ValueError(f"x: is on {x.device}, but reference is on {reference.device}")
    wide = torch.complex128 if x.is_complex() or reference.is_complex() else torch.float64
    return x.reshape(len(x), x.shape[1:].numel()).to(wide), reference.reshape(len(x), x.shape[1:].numel()).to(wide)


def _profile(window: str, side: int) -> Tensor:
    """The window along one axis, no longer than ``side``; it sums to 1."""
    if window not in ("uniform", "gaussian"):
        raise ValueError(f"window: {window!r} is not known, expected 'uniform' or 'gaussian'")
    length = min(7 if window == "uniform" else 11, side - 1 + side % 2)
    offset = torch.arange(length, dtype=torch.float64) - length // 2
    weight = torch.ones_like(offset) if window == "uniform" else torch.exp(-0.5 * (offset / 1.5).square())
    return weight / weight.sum()


def _local_mean(x: Tensor, profile: Tensor) -> Tensor:
    batch, planes, height, width = x.shape
    x = x.reshape(batch * planes, 1, height, width)
    x = F.conv2d(F.conv2d(x, profile[None, None, :, None]), profile[None, None, None, :])
    return x.reshape(batch, planes, *x.shape[-2:])
