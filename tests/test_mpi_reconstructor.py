"""Frames in, images out: scale, batches, streams, noise, and what the report says about each."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon.data.mpi import MPIFrames, prepare_frames, prepare_system
from pyrecon.data.raw import Grid
from pyrecon.models.mpi import ART, L1ADMM, METHODS, TVADMM, HybADMM, Reconstructor, Tikhonov
from pyrecon.physics.mpi import Scanner

SHAPE = (8, 6)
ALL = [pytest.param(kind(), id=name) for name, kind in METHODS.items()]


def problem(frames: int = 4, noise: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """A smoothing matrix, blocky images and noisy data."""
    generator = torch.Generator().manual_seed(3)
    n = SHAPE[0] * SHAPE[1]
    y, x = torch.meshgrid(*(torch.arange(k, dtype=torch.float32) for k in SHAPE), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], dim=1)
    waves = torch.randn(300, 2, generator=generator) * 0.7
    matrix = torch.cos(place @ waves.T + 6 * torch.rand(300, generator=generator)).T * 0.15
    images = torch.zeros(frames, *SHAPE)
    for k, image in enumerate(images):
        image[1 + k % 4 : 4 + k % 4, 1 + k % 3 : 4 + k % 3] = 0.6 + 0.2 * k
    clean = images.view(frames, n) @ matrix.T
    return matrix, images, clean + noise * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("method", ALL)
def test_images_come_back(method: Any) -> None:
    matrix, truth, y = problem()
    images, report = Reconstructor(matrix, method, shape=SHAPE)(y, noise_std=0.02)
    assert images.shape == truth.shape
    assert float(metrics.psnr(images, truth).min()) > 18
    assert (images >= 0).all()
    assert report.samples == 4
    assert report.method == method.name
    rows, voxels = matrix.shape  # the constrained methods keep to kappa times the noise in the range of the matrix
    kappa = getattr(method, "kappa", None)
    at_most = 5.0 if kappa is None else 1.1 * (1 + (kappa**2 - 1) * voxels / rows) ** 0.5
    assert 0.8 < min(report.residual_over_noise) <= max(report.residual_over_noise) < at_most


@pytest.mark.parametrize("method", ALL)
def test_units_do_not_matter(method: Any) -> None:
    """Another unit of the signal, another dose: the same image in its own unit; without the standard scale another."""
    matrix, _, y = problem()
    images, _ = Reconstructor(matrix, method, shape=SHAPE)(y, noise_std=0.02)
    for gain, dose in ((1e-9, 1.0), (1.0, 300.0), (1e6, 1e-4)):
        other, _ = Reconstructor(gain * matrix, method, shape=SHAPE)(gain * dose * y, noise_std=0.02 * gain * dose)
        torch.testing.assert_close(other / dose, images, rtol=2e-3, atol=2e-3)
    if method.name not in ("l2-ART", "Tikhonov"):
        plain = Reconstructor(300 * matrix, method, shape=SHAPE, normalise=False)(300 * y, noise_std=6.0)[0]
        assert float((plain - images).abs().max()) > 1e-2


@pytest.mark.parametrize("method", ALL)
def test_a_frame_does_not_depend_on_its_neighbours(method: Any) -> None:
    matrix, _, y = problem(frames=5)
    y[3] *= 4
    together, _ = Reconstructor(matrix, method, shape=SHAPE, batch=5)(y, noise_std=0.02)
    chunks, _ = Reconstructor(matrix, method, shape=SHAPE, batch=2)(y, noise_std=0.02)
    torch.testing.assert_close(chunks, together, rtol=1e-3, atol=1e-3)
    stream = torch.stack(list(Reconstructor(matrix, method, shape=SHAPE, batch=2).stream(iter(y), noise_std=0.02)))
    torch.testing.assert_close(stream, chunks, rtol=0, atol=0)


def test_a_stream_gives_images_as_soon_as_a_batch_is_full_and_counts_only_its_own_time() -> None:
    import time

    matrix, _, y = problem(frames=5)
    taken: list[int] = []

    def source() -> Any:
        for k, frame in enumerate(y):
            taken.append(k)
            time.sleep(0.05)
            yield frame

    reconstruct = Reconstructor(matrix, Tikhonov(), shape=SHAPE, batch=2)
    images = reconstruct.stream(source(), noise_std=0.02)
    next(images)
    assert taken == [0, 1]
    assert len(list(images)) == 4
    report = reconstruct.report
    assert report.samples == 5
    assert report.seconds < 0.2
    assert report.samples_per_second == pytest.approx(5 / report.seconds)
    assert report.status == {"CONVERGED": 5}


@pytest.mark.parametrize(
    "method",
    [L1ADMM(mu=50.0, tol=1e-4, iterations=2000, kappa=1.0), HybADMM(mu=50.0, tol=1e-4, iterations=2000, kappa=1.0)],
)
def test_a_warm_start_saves_iterations(method: Any) -> None:
    matrix, _, y = problem()
    still = y[:1] + 0.001 * torch.randn(6, y.shape[1], generator=torch.Generator().manual_seed(0))
    iterations = {}
    for warm in (False, True):
        reconstruct = Reconstructor(matrix, method, shape=SHAPE, batch=1, warm_start=warm)
        images = torch.stack(list(reconstruct.stream(still, noise_std=0.02)))
        assert float((images - images[0]).abs().max()) < 0.1 * float(images.max())
        iterations[warm] = reconstruct.report.details["iterations_per_image"]
    assert iterations[True] < 0.6 * iterations[False]


def test_a_broken_frame_is_named_and_leaves_the_rest_alone() -> None:
    matrix, _, y = problem(frames=5)
    good, _ = Reconstructor(matrix, HybADMM(), shape=SHAPE)(y, noise_std=0.02)
    broken = y.clone()
    broken[3, 10] = torch.nan
    reconstruct = Reconstructor(matrix, HybADMM(), shape=SHAPE, batch=2, warm_start=True)
    with pytest.warns(UserWarning, match="data: NaN or infinite values in frames 3$"):
        images, report = reconstruct(broken, noise_std=0.02)
    rest = [0, 1, 2, 4]
    torch.testing.assert_close(images[rest], good[rest], rtol=1e-3, atol=1e-3)
    assert torch.isnan(images[3]).all()
    assert report.status["NONFINITE"] == 1
    json.loads(report.to_json())
    with pytest.warns(UserWarning, match="frames 3"):
        stream = torch.stack(list(reconstruct.stream(broken, noise_std=0.02)))
    assert torch.isfinite(stream[4]).all()


def test_data_that_do_not_fit_the_matrix_are_reported_once() -> None:
    matrix, _, y = problem(frames=6)
    foreign = y + 0.3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _, report = Reconstructor(matrix, HybADMM(), shape=SHAPE, batch=2)(foreign, noise_std=0.02)
    assert len(seen) == 1
    assert report.warnings == [str(seen[0].message)]
    assert "of the signal in frame 0" in report.warnings[0]
    assert "the system matrix does not fit" in report.warnings[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Reconstructor(matrix, HybADMM(), shape=SHAPE, batch=2)(y, noise_std=0.02)


def test_what_no_image_explains_counts_as_noise_unless_told_otherwise() -> None:
    """With a model error of five times the noise, an image that explains the data to the noise is worse."""
    matrix, truth, _ = problem()
    clean = truth.flatten(1) @ matrix.T
    error = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    method = HybADMM(mu=50.0, iterations=1000)
    quality = {}
    for allowed in (True, False):
        reconstruct = Reconstructor(matrix, method, shape=SHAPE, model_error=allowed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images, report = reconstruct(clean + error, noise_std=0.02)
        quality[allowed] = float(metrics.psnr(images, truth).mean())
        np.testing.assert_allclose(report.noise_level, 0.02 * 300**0.5, rtol=1e-5)
    assert quality[True] > quality[False] + 1


def test_unknown_noise_is_taken_from_what_no_image_explains() -> None:
    matrix, _, y = problem(noise=0.05)
    known, _ = Reconstructor(matrix, HybADMM(), shape=SHAPE)(y, noise_std=0.05)
    estimated, report = Reconstructor(matrix, HybADMM(), shape=SHAPE)(y)
    # 300 - 48 degrees of freedom: 4.5 % on the standard deviation
    np.testing.assert_allclose(report.noise_level, 0.05 * 300**0.5, rtol=0.2)
    assert float((known - estimated).abs().max()) < 0.3 * float(known.max())


def test_unmet_tolerance_is_a_warning_with_advice_and_a_status() -> None:
    matrix, _, y = problem()
    with pytest.warns(UserWarning, match=r"l1-ADMM: 4 of 4 samples did not converge .* Allow more iterations"):
        _, report = Reconstructor(matrix, L1ADMM(tol=1e-7, iterations=20), shape=SHAPE)(y, noise_std=0.02)
    assert report.status == {"MAX_ITER": 4}


def test_a_frame_of_noise_gives_a_dark_image() -> None:
    matrix, truth, _ = problem()
    noise = 0.02 * torch.randn(2, 300, generator=torch.Generator().manual_seed(9))
    for method in (HybADMM(), Tikhonov()):
        images, _ = Reconstructor(matrix, method, shape=SHAPE)(noise, noise_std=0.02)
        assert float(images.max()) < 0.25 * float(truth.max())
    nothing, _ = Reconstructor(matrix, HybADMM(), shape=SHAPE)(torch.zeros(1, 300), noise_std=0.0)
    assert float(nothing.abs().max()) == 0


def test_no_frames_and_wrong_frames() -> None:
    matrix, _, y = problem()
    reconstruct = Reconstructor(matrix, Tikhonov(), shape=SHAPE)
    images, report = reconstruct(y[:0])
    assert images.shape == (0, *SHAPE)
    assert report.samples == 0
    with pytest.raises(ValueError, match=r"frames: shape \(4, 299\) does not fit"):
        reconstruct(y[:, :299])
    with pytest.raises(ValueError, match="shape: give the shape of an image"):
        Reconstructor(matrix, Tikhonov())
    with pytest.raises(ValueError, match="batch: 0"):
        Reconstructor(matrix, Tikhonov(), shape=SHAPE, batch=0)


def test_from_the_scanner_to_the_image() -> None:
    """Simulated calibration and scan through preprocessing and every method: the torus has its hole."""
    grid = Grid((12, 10), (2.5e-3, 2.5e-3), (0.0, 0.0))
    fine = Grid((48, 40), (0.625e-3, 0.625e-3), (0.0, 0.0))
    scanner = Scanner(angles=20, harmonics=tuple(range(2, 9)))
    y, x = fine.coordinates().T
    radius = np.hypot(y, x - 2e-3)
    torus = ((radius > 3.5e-3) & (radius < 8e-3)).reshape(fine.shape) * 0.05
    calibration = scanner.calibrate(grid, sample_size=(2.5e-3, 2.5e-3, 2e-3), averages=10)
    scan = scanner.measure(np.stack([torus, 2 * torus]), fine, snr_db=30.0)
    system = prepare_system(calibration, scan)
    frames = prepare_frames(system, scan)
    assert isinstance(frames, MPIFrames)
    truth = torch.from_numpy(torus.reshape(12, 4, 10, 4).mean((1, 3))).float()
    # The default weight of Tikhonov follows the noise; here the discretisation is the larger error.
    for method in (L1ADMM(), TVADMM(), HybADMM(), ART(), Tikhonov(weight=0.1)):
        images, report = Reconstructor(system, method)(frames)
        assert float(metrics.nmse(images[:1], truth[None])) < 0.5, method.name  # more than half of its energy is right
        assert float(images[1].sum() / images[0].sum()) == pytest.approx(2, rel=0.1), method.name
        hole = images[0, 5:7, 5:6].mean()
        assert float(hole) < 0.6 * float(images[0].max()), method.name
        assert report.details["matrix"].startswith(f"{system.matrix.shape[0]} x 120, ")
        assert report.details["matrix"].endswith(f"rank {system.rank}")
    doubled, _ = Reconstructor(system.upsampled(2), HybADMM())(frames)
    assert doubled.shape == (2, 24, 20)
    assert float(doubled.mean()) == pytest.approx(float(truth.mean()) * 1.5, rel=0.3)


def test_settings_reach_the_report() -> None:
    matrix, _, y = problem()
    method = replace(ART(), weight=0.5, sweeps=3)
    _, report = Reconstructor(matrix, method, shape=SHAPE)(y, noise_std=0.02)
    assert report.parameters == {"weight": 0.5, "sweeps": 3, "nonneg": True, "order": "cyclic"}
    assert report.versions["device"] == "cpu"
