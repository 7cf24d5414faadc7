"""The method ``joint``: scans without calibration lines, its report, the maps it finds, and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrecon import io, metrics
from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.mri import undersample
from pyrecon.data.raw import MRIScan
from pyrecon.linops import NonCartesianSense
from pyrecon.models.mri import (
    METHODS,
    CGSense,
    JointMRI,
    ZeroFilled,
    reconstruct_mri,
    reconstruct_with_maps,
)
from pyrecon.models.mri.joint import CoilwiseTransform, as_lines
from pyrecon.physics.mri import coil_maps, head_phantom, simulate
from pyrecon.solvers import Charbonnier, ConvergenceWarning, ipalm
from pyrecon.testing.mrd import mrd_encoding, mrd_file, mrd_header

SHAPE = (48, 40)
SIEMENS = Path(__file__).parents[2] / "shared/data/siemens_gre_2coils.dat"
shared = pytest.mark.skipif(not SIEMENS.exists(), reason="no real twix file beside the checkout")


def lines(count: int, seed: int = 0) -> Tensor:
    """Random rows with the central one, no calibration lines."""
    mask = torch.zeros(1, 1, SHAPE[0], 1, dtype=torch.bool)
    mask[0, 0, torch.randperm(SHAPE[0], generator=torch.Generator().manual_seed(seed))[:count]] = True
    mask[0, 0, SHAPE[0] // 2] = True
    return mask


def scan_of(mask: Tensor, batch: int = 1, **options: Any) -> MRIScan:
    image = head_phantom(SHAPE, batch=batch, seed=1)
    return simulate(image, coil_maps(SHAPE, 6), mask, **({"noise_std": 0.01, "seed": 4} | options))


def truth(batch: int = 1) -> Tensor:
    image, maps = head_phantom(SHAPE, batch=batch, seed=1), coil_maps(SHAPE, 6)
    return torch.linalg.vector_norm(image[:, None] * maps, dim=1)


def test_a_scan_without_calibration_lines_is_reconstructed_with_its_maps() -> None:
    scan = scan_of(lines(24))
    with pytest.raises(DataError, match=r"joint \(JointMRI\) and nlinv \(NLINV\) need neither"):
        reconstruct_mri(scan, CGSense())
    image, maps, report = reconstruct_with_maps(scan, JointMRI())
    assert image.dtype == torch.complex64
    assert maps is not None
    assert maps.shape == (1, 6, *SHAPE)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(1, *SHAPE))
    scaled = image.abs() * 0.01  # units of the noise
    zero_filled = reconstruct_mri(scan, ZeroFilled())[0].abs() * 0.01
    peak = float(truth().max())
    assert metrics.psnr(scaled / peak, truth() / peak) > 32
    assert metrics.psnr(scaled / peak, truth() / peak) > metrics.psnr(zero_filled / peak, truth() / peak) + 12
    assert report.status == {"CONVERGED": 1}
    assert 0.7 < report.residual_over_noise[0] < 1.1
    assert {"lam", "mu", "sigma", "iterations"} <= set(report.details)
    assert torch.equal(image, reconstruct_mri(scan, JointMRI())[0])


def test_compression_and_batches() -> None:
    scan = scan_of(lines(30), batch=2)
    image, maps, report = reconstruct_with_maps(scan, JointMRI(), coils=4)
    assert maps is not None
    assert maps.shape == (2, 4, *SHAPE)
    assert report.samples == 2
    alone, _ = reconstruct_mri(replace(scan, kspace=scan.kspace[1:]), JointMRI(tol=1e-5), coils=4, whiten=True)
    assert metrics.psnr(image[1:].abs() / 100, alone.abs() / 100) > 30


def test_every_setting_changes_the_image() -> None:
    scan = scan_of(lines(24))
    kspace, mask = torch.from_numpy(scan.kspace) / 0.01, torch.from_numpy(scan.mask)
    options: dict[str, Any] = {"max_iter": 6, "tol": 0.0}
    plain = JointMRI(**options).solve(kspace, None, mask).value
    for change in (
        {"prior": "none"}, {"rule": "published"}, {"weight": 1.0}, {"lam": 0.1}, {"mu": 3.0}, {"epsilon": 0.1},
        {"retraction": False}, {"continuation": 1.0}, {"decay": 0.5}, {"jitter": 0.1}, {"max_iter": 7},
        {"prior": "denoiser"},
    ):  # fmt: skip
        changed = JointMRI(**(options | change)).solve(kspace, None, mask).value
        assert float((changed - plain).abs().max()) > 1e-3, change
    seeds = [JointMRI(**options, jitter=0.1, seed=s).solve(kspace, None, mask).value for s in (0, 1)]
    assert not torch.equal(*seeds)
    with pytest.warns(ConvergenceWarning, match="MAX_ITER"):
        JointMRI(max_iter=6, tol=1e-6).solve(kspace, None, mask)
    lam, mu = JointMRI().parameters(torch.tensor([0.02]))
    assert (float(lam), mu) == (pytest.approx(0.002), 0.1)
    lam, mu = JointMRI(rule="published").parameters(torch.tensor([0.02]))
    assert (float(lam), mu) == (pytest.approx(0.003 / 0.5477), pytest.approx(0.3 / 0.5477))
    lam, mu = JointMRI(rule="published", prior="generative", mu=4.0).parameters(torch.tensor([0.02]))
    assert (float(lam), mu) == (pytest.approx(1 / 0.5477), 4.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "wavelet"}, "prior: 'wavelet', expected one of tv, generative, denoiser, none"),
        ({"weights": "x"}, "weights: the prior 'tv' has none"),
        ({"lam": -1.0}, "lam: -1"),
        ({"epsilon": 0.0}, "epsilon, max_iter"),
        ({"max_iter": 0}, "epsilon, max_iter"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointMRI(**settings)


def test_learned_priors_begin_with_total_variation() -> None:
    """From there an image with few lines is nearer to the truth after the same steps than from zero-filled ones."""
    scan = scan_of(lines(20))
    peak = float(truth().max())
    quality = {}
    for first in ("tv", "zero-filled"):
        method = JointMRI(prior="denoiser", first=first, max_iter=60)  # type: ignore[arg-type]
        images, _, report = reconstruct_with_maps(scan, method)
        quality[first] = float(metrics.psnr(images.abs() * 0.01 / peak, truth() / peak))
        assert ("start" in report.details) == (first == "tv")
    assert quality["tv"] > quality["zero-filled"] + 0.1


def test_a_mask_is_looked_at_for_lines() -> None:
    mask = lines(20)
    whole = mask.expand(1, 1, *SHAPE)
    assert torch.equal(as_lines(whole), mask)
    assert torch.equal(as_lines(whole.mT), mask.mT)
    assert as_lines(torch.ones(1, 1, 4, 4)).shape == (1, 1, 1, 1)
    points = torch.eye(4)[None, None]
    assert torch.equal(as_lines(points), points)


def test_along_a_trajectory_it_is_the_same_as_on_the_grid() -> None:
    """Points of a trajectory with whole coordinates are the samples of a mask."""
    pytest.importorskip("finufft")
    shape = (16, 18)
    image = head_phantom(shape, seed=1).to(torch.complex128)
    seen = image[:, None] * coil_maps(shape, 3).to(torch.complex128)
    mask = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 8, 9] = True
    shifted = torch.fft.fft2(torch.fft.ifftshift(seen, dim=(-2, -1)), norm="ortho")
    kspace = mask * torch.fft.fftshift(shifted, dim=(-2, -1))
    places = mask[0, 0].nonzero()
    trajectory = (places - torch.tensor([8, 9])).double()
    one = torch.ones(1, 1, *shape, dtype=torch.complex128)
    transform = CoilwiseTransform(NonCartesianSense(one, trajectory))
    assert 1 - 1e-6 < transform.bound < 3
    data = kspace[:, :, places[:, 0], places[:, 1]]
    found = ipalm(data, transform, Charbonnier(), lam=1e-3, max_iter=250)
    wanted = ipalm(kspace, mask, Charbonnier(), lam=1e-3, max_iter=250)
    peak = float(wanted.value[0].max())
    assert metrics.psnr(found.value[0] / peak, wanted.value[0] / peak) > 35


def test_the_command_line(tmp_path: Path) -> None:
    kspace, taken = scan_of(lines(24)).kspace[0], lines(24).flatten().nonzero().flatten().tolist()
    turned = {"read_dir": (1, 0, 0), "phase_dir": (0, 0, 1), "slice_dir": (0, -1, 0), "position": (10.0, -20.0, 5.0)}
    scan = mrd_file(
        tmp_path / "scan.h5",
        [{"data": kspace[:, row], "at": {"kspace_encode_step_1": row}, **turned} for row in taken],
        mrd_header(mrd_encoding((SHAPE[1], SHAPE[0], 1), (200.0, 240.0, 5.0), oversampling=1)),
    )
    target, maps = tmp_path / "image.npz", tmp_path / "maps.h5"
    call = ["reconstruct", str(scan), "-m", "joint", "-p", "tol=1e-3", "-o", str(target), "--maps-out", str(maps)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "sigma" in done.output
    image, found = io.read_result(target), io.read_result(maps)
    assert image.method == "joint"
    assert found.image.shape == (6, 1, *image.image.shape[-2:])  # coils, slices
    assert np.allclose((np.abs(found.image) ** 2).sum(0), 1, atol=1e-5)
    assert image.affine is not None
    np.testing.assert_allclose(found.affine, image.affine)
    wrong = CliRunner().invoke(app, [*call[:-1], str(tmp_path / "maps.png")])
    assert isinstance(wrong.exception, DataError)
    assert "expected .npz or .h5" in str(wrong.exception)
    none = CliRunner().invoke(app, ["reconstruct", str(scan), "-m", "rss", "-o", str(tmp_path / "x.npz"), *call[8:]])
    assert isinstance(none.exception, DataError)
    assert "has none" in str(none.exception)
    assert not (tmp_path / "x.npz").exists()
    assert METHODS["joint"] is JointMRI


@shared
def test_a_measured_scan_without_calibration_lines() -> None:
    full = io.read(SIEMENS)
    assert isinstance(full, MRIScan)
    mask = np.zeros((1, 1, full.kspace.shape[2], 1), dtype=bool)
    mask[0, 0, np.random.default_rng(0).choice(mask.shape[2], mask.shape[2] // 2, replace=False)] = True
    mask[0, 0, mask.shape[2] // 2] = True
    scan = undersample(full, mask)
    whole = reconstruct_mri(full, ZeroFilled())[0].abs()
    peak = float(whole.max())
    zero_filled, joint = (reconstruct_mri(scan, m)[0].abs() for m in (ZeroFilled(), JointMRI()))
    assert metrics.psnr(joint / peak, whole / peak) > metrics.psnr(zero_filled / peak, whole / peak) + 5
