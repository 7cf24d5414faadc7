"""DE-Grad as a method of raw CT scans."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.ct import CTScan
from pyrecon.linops import Radon, Whitened
from pyrecon.models import DEGrad
from pyrecon.models.ct import DEGradCT, reconstruct_ct
from pyrecon.models.ct.learned import peak_of
from pyrecon.models.weights import Card
from pyrecon.nn import ResidualUNet
from pyrecon.ops import ParallelBeam

SIZE, VIEWS, PIXEL = 16, 6, 2e-3


def beam(size: int = SIZE, views: int = VIEWS) -> ParallelBeam:
    angles = torch.arange(views, dtype=torch.float64) * math.pi / views
    return ParallelBeam(angles, (size, size), pixel_size=PIXEL)


def scan(size: int = SIZE, views: int = VIEWS, slices: int = 2) -> CTScan:
    """Discs of 20 per metre."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    images = np.stack([20.0 * (np.hypot(y - 0.1 * i, x) < 0.5) for i in range(slices)]).astype(np.float32)
    geometry = beam(size, views)
    return CTScan(Radon(geometry)(torch.from_numpy(images)).numpy(), geometry)


def saved(folder: Path, **data: Any) -> Path:
    torch.manual_seed(0)
    # Layers: an untrained equilibrium need not exist, and rounding would decide what an image is.
    model = DEGrad(ResidualUNet(1, 4, 2), step=0.9, layers=6)
    known = {"task": "ct", "angles": VIEWS, "arc": 180.0, "whiten": True, "noise_std": 0.0} | data
    model.card = Card("de-grad", "equilibrium", (SIZE, SIZE), known, {})
    model.save(folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize("whiten", [True, False])
def test_a_scan_comes_out_in_its_own_scale(tmp_path: Path, whiten: bool) -> None:
    """The model by hand; twice the line integrals are twice the image; slices do not see each other."""
    path, one = saved(tmp_path, whiten=whiten, peak=1.2), scan()
    image, report = reconstruct_ct(one, DEGradCT(str(path)))
    physics = Radon(one.geometry)
    y = torch.from_numpy(one.sinogram)
    if whiten:
        A: Any = Whitened(physics)
        y = A.transform(y)
    else:
        norm = float(physics.norm(rtol=1e-4))
        A, y = physics / norm, y / norm
    peak = peak_of(A, y) / 1.2
    scale = peak.view(-1, *[1] * (y.dim() - 1))
    by_hand = DEGrad.load(path).reconstruct(y / scale, A).value * peak.view(-1, 1, 1)
    torch.testing.assert_close(image, by_hand, rtol=1e-4, atol=1e-3)
    assert report.method == "DE-Grad"
    double, _ = reconstruct_ct(CTScan(2 * one.sinogram, one.geometry), DEGradCT(str(path)))
    torch.testing.assert_close(double, 2 * image, rtol=1e-4, atol=2e-3)
    alone, _ = reconstruct_ct(CTScan(one.sinogram[1:], one.geometry), DEGradCT(str(path)))
    torch.testing.assert_close(alone[0], image[1], rtol=1e-4, atol=1e-3)


def test_an_empty_slice_is_an_empty_image(tmp_path: Path) -> None:
    one = scan()
    one.sinogram[1] = 0
    image, _ = reconstruct_ct(one, DEGradCT(str(saved(tmp_path))))
    assert torch.isfinite(image).all()
    assert float(image[1].abs().max()) < 1


def test_scans_unlike_those_of_training_are_named(tmp_path: Path) -> None:
    path = str(saved(tmp_path))
    with pytest.warns(UserWarning, match="trained at 6 over 180 degrees, the scan has 5 over 180"):
        reconstruct_ct(scan(views=5), DEGradCT(path))
    with pytest.warns(UserWarning, match="trained on images of 16 x 16, the scan's have 12 x 12"):
        reconstruct_ct(scan(12), DEGradCT(path, grid="image"))
    with pytest.raises(DataError, match="pyrecon train de-grad"):
        reconstruct_ct(scan(), DEGradCT())
    with pytest.raises(DataError, match="trained for 'mri', DE-Grad takes 'ct'"):
        reconstruct_ct(scan(), DEGradCT(str(saved(tmp_path, task="mri"))))


def test_scans_too_large_to_whiten_say_so(tmp_path: Path) -> None:
    geometry = beam(256, 300)
    large = CTScan(np.ones((1, *geometry.range_shape), np.float32), geometry)
    with pytest.raises(DataError, match="trained with whitened data, which this scan is too large for"):
        reconstruct_ct(large, DEGradCT(str(saved(tmp_path)), grid="image"))


def test_from_sinograms_alone_to_an_image_by_command(tmp_path: Path) -> None:
    """Trained without ground truth, with the command that training advises."""
    run, raw, image = tmp_path / "run", tmp_path / "scan.h5", tmp_path / "image.npz"
    small = ["--denoiser-steps", "2", "--steps", "2", "-p", "width=4", "-p", "limit=6", "-p", "photographs=8"]
    size = ["--size", "16", "--angles", "6", "--pool", "4", "--validation", "2"]
    said = ""
    for command in (
        ["train", "de-grad", "-o", str(run), "--loss", "ei", *small, *size],
        ["simulate", "ct", "-o", str(raw), "--beam", "parallel", "--views", "6", "--detector", "20"],
        ["reconstruct", str(raw), "-m", "de-grad", "--weights", str(run / "weights.safetensors"), "-o", str(image)],
    ):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, found.output
        said += found.output
    assert f"pyrecon reconstruct SCAN.h5 -m de-grad --weights {run / 'weights.safetensors'}" in said
    with np.load(image) as archive:
        assert np.isfinite(archive["image"]).all()
        assert archive["image"].max() > 1  # 1/m
