"""The metrics against scikit-image and against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyrecon import metrics

skimage_metrics = pytest.importorskip("skimage.metrics")

SHAPES = [(3, 13, 26), (2, 26, 52), (1, 7, 7), (2, 64, 40)]


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(math.prod(shape))
    reference = torch.rand(shape, generator=generator, dtype=torch.float64).square() * 3
    return (reference + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype), reference.to(
        dtype
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_equals_scikit_image(shape: tuple[int, ...]) -> None:
    x, reference = images(shape)
    expected = [
        skimage_metrics.peak_signal_noise_ratio(r, a, data_range=r.max())
        for a, r in zip(x.numpy(), reference.numpy(), strict=True)
    ]
    np.testing.assert_allclose(metrics.psnr(x, reference), expected, rtol=1e-12)
    unit = [
        skimage_metrics.peak_signal_noise_ratio(r, a, data_range=1.0)
        for a, r in zip(x.numpy(), reference.numpy(), strict=True)
    ]
    np.testing.assert_allclose(metrics.psnr(x, reference, peak=1.0), unit, rtol=1e-12)


def test_psnr_is_equation_37() -> None:
    reference = torch.tensor([[3.0, 0.0, -4.0, 0.0]])
    x = reference + torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert metrics.psnr(x, reference).item() == pytest.approx(20 * math.log10(math.sqrt(4) * 4 / 1.0))
    assert metrics.psnr(reference, reference).item() == math.inf


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_equals_scikit_image(shape: tuple[int, ...]) -> None:
    x, reference = images(shape)
    expected = [
        skimage_metrics.structural_similarity(r, a, data_range=np.abs(r).max())
        for a, r in zip(x.numpy(), reference.numpy(), strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(x, reference), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [s for s in SHAPES if min(s[1:]) >= 11])
def test_gaussian_ssim_equals_scikit_image(shape: tuple[int, ...]) -> None:
    x, reference = images(shape)
    expected = [
        skimage_metrics.structural_similarity(
            r, a, data_range=2.5, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, r in zip(x.numpy(), reference.numpy(), strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(x, reference, data_range=2.5, window="gaussian"), expected, rtol=1e-9)


@pytest.mark.parametrize(("side", "window"), [(5, 5), (4, 3), (1, 1)])
def test_a_small_image_takes_the_largest_window_that_fits(side: int, window: int) -> None:
    x, reference = images((2, side, 9))
    if window > 1:
        expected = [
            skimage_metrics.structural_similarity(r, a, data_range=np.abs(r).max(), win_size=window)
            for a, r in zip(x.numpy(), reference.numpy(), strict=True)
        ]
        np.testing.assert_allclose(metrics.ssim(x, reference), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.ssim(reference, reference), [1.0, 1.0])


def test_each_sample_has_its_own_range() -> None:
    x, reference = images((3, 13, 26))
    scale = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None, None]
    for metric in (metrics.psnr, metrics.ssim, metrics.nmse):
        np.testing.assert_allclose(metric(x * scale, reference * scale), metric(x, reference), rtol=1e-9)
    spread = metrics.ssim(x, reference, data_range=torch.tensor([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(spread[1], metrics.ssim(x[1:2], reference[1:2], data_range=2.0)[0])


def test_further_axes_are_averaged_over() -> None:
    x, reference = images((2, 3, 13, 26))
    parts = torch.stack([metrics.ssim(x[:, c], reference[:, c], data_range=3.0) for c in range(3)]).mean(0)
    np.testing.assert_allclose(metrics.ssim(x, reference, data_range=3.0), parts)


def test_nmse_and_snr_are_the_same_ratio() -> None:
    clean = torch.tensor([[3.0 + 4.0j, 0.0]])
    noisy = clean + torch.tensor([[0.3j, 0.4]])
    assert metrics.nmse(noisy, clean).item() == pytest.approx(0.01, rel=1e-6)
    assert metrics.snr(noisy, clean).item() == pytest.approx(20.0, rel=1e-6)
    x, reference = images((4, 13, 26))
    expected = [
        skimage_metrics.normalized_root_mse(r, a) ** 2 for a, r in zip(x.numpy(), reference.numpy(), strict=True)
    ]
    np.testing.assert_allclose(metrics.nmse(x, reference), expected)


def test_single_precision_images_are_measured_in_double() -> None:
    """A constant 1e3 with a ripple of 1e-2: in single precision the variance of a window would be lost."""
    ripple = 1e-2 * torch.randn(1, 13, 26, generator=torch.Generator().manual_seed(0))
    reference = (1e3 + ripple).float()
    x = (1e3 - ripple).float()
    expected = metrics.ssim(x.double(), reference.double(), data_range=0.02)
    np.testing.assert_allclose(metrics.ssim(x, reference, data_range=0.02), expected)
    assert metrics.ssim(x, reference).dtype == torch.float64


def test_gradients_are_right() -> None:
    x, reference = images((2, 9, 8))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: metrics.ssim(v, reference), (x,))
    assert torch.autograd.gradcheck(lambda v: metrics.psnr(v, reference), (x,))


def test_errors_name_the_argument() -> None:
    x, reference = images((2, 9, 8))
    with pytest.raises(ValueError, match=r"x: shape \(2, 9, 7\) does not match reference"):
        metrics.psnr(x[:, :, :7], reference)
    with pytest.raises(ValueError, match="batch first"):
        metrics.nmse(x[0, 0], reference[0, 0])
    with pytest.raises(TypeError, match=r"x: SSIM is defined for real images"):
        metrics.ssim(x + 0j, reference)
    with pytest.raises(ValueError, match=r"\(B, \.\.\., H, W\)"):
        metrics.ssim(x[0], reference[0])
    with pytest.raises(ValueError, match="window: 'box' is not known"):
        metrics.ssim(x, reference, window="box")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"reference: expected a torch\.Tensor"):
        metrics.psnr(x, reference.numpy())  # type: ignore[arg-type]


def test_matthews_is_the_correlation_of_two_segmentations() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 8, 9, generator=generator) > torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    b = a ^ (torch.rand(3, 8, 9, generator=generator) > 0.8)
    expected = [float(np.corrcoef(x.flatten().double(), y.flatten().double())[0, 1]) for x, y in zip(a, b, strict=True)]
    assert metrics.matthews(a, b).tolist() == pytest.approx(expected)
    assert metrics.matthews(a, a).tolist() == pytest.approx([1, 1, 1])
    assert metrics.matthews(a, ~a).tolist() == pytest.approx([-1, -1, -1])
    assert metrics.matthews(torch.ones_like(a), b).tolist() == [0, 0, 0]
    with pytest.raises(TypeError, match="x: expected a bool tensor"):
        metrics.matthews(a.float(), b)
