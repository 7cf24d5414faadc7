"""LUSER as a method of raw scans, MRI and CT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan
from pyrecon.data.mri import prewhiten
from pyrecon.linops import Fourier, Radon
from pyrecon.models import DEQ4IP, LUSER, UnrolledDnCNN
from pyrecon.models.ct import LUSERCT, reconstruct_ct
from pyrecon.models.luser import load
from pyrecon.models.mri import LUSERMRI, reconstruct_mri
from pyrecon.models.weights import Card
from pyrecon.ops import ParallelBeam
from pyrecon.physics.mri import coil_maps, gaussian_lines, head_phantom, simulate

SIZE, VIEWS = 16, 6


def saved(folder: Path, task: str, kind: type[Any] = LUSER, role: str = "reconstruction") -> str:
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 4, "stages": 2} if kind is LUSER else {"width": 4, "layers": 3}
    model = kind(2 if task == "mri" else 1, **small)
    known = {"task": task, "noise_std": 0.01, "angles": VIEWS, "arc": 180.0, "whiten": False}
    model.card = Card("luser", role, (SIZE, SIZE), known, {})
    model.save(folder / "w.safetensors")
    return str(folder / "w.safetensors")


def mri_scan(coils: int = 1) -> Any:
    shape = (SIZE, SIZE)
    maps = coil_maps(shape, coils) if coils > 1 else torch.ones(1, 1, *shape, dtype=torch.complex64)
    return simulate(head_phantom(shape), maps, gaussian_lines(shape, 2.0, acl=8), noise_std=0.01, seed=0)


def ct_scan(slices: int = 2) -> CTScan:
    """Discs of 20 per metre."""
    angles = torch.arange(VIEWS, dtype=torch.float64) * math.pi / VIEWS
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, SIZE)], indexing="ij")
    images = np.stack([20.0 * (np.hypot(y - 0.1 * i, x) < 0.5) for i in range(slices)]).astype(np.float32)
    geometry = ParallelBeam(angles, (SIZE, SIZE), pixel_size=2e-3)
    return CTScan(Radon(geometry)(torch.from_numpy(images)).numpy(), geometry)


@pytest.mark.parametrize("kind", [LUSER, UnrolledDnCNN])
def test_a_scan_of_mri_comes_out_in_its_own_scale(tmp_path: Path, kind: type[Any]) -> None:
    """The same as the model by hand; several coils are one image too."""
    path, one = saved(tmp_path, "mri", kind), mri_scan()
    image, report = reconstruct_mri(one, LUSERMRI(path))
    white = prewhiten(one)
    kspace, A = torch.from_numpy(white.kspace), Fourier(torch.from_numpy(white.mask), (SIZE, SIZE))
    peak = A.adjoint(kspace[:, 0]).abs().max()
    by_hand = load(path).reconstruct(kspace[:, 0] / peak, A).value * peak
    torch.testing.assert_close(image, by_hand, rtol=1e-4, atol=1e-3 * float(peak))
    assert report.method == "LUSER"
    assert torch.isfinite(reconstruct_mri(mri_scan(4), LUSERMRI(path))[0].abs()).all()


def test_a_scan_of_ct_comes_out_in_its_own_scale(tmp_path: Path) -> None:
    """Twice the line integrals are twice the image, and slices do not see each other."""
    path, one = saved(tmp_path, "ct"), ct_scan()
    image, report = reconstruct_ct(one, LUSERCT(path))
    assert report.method == "LUSER"
    twice, _ = reconstruct_ct(CTScan(2 * one.sinogram, one.geometry), LUSERCT(path))
    alone, _ = reconstruct_ct(CTScan(one.sinogram[1:], one.geometry), LUSERCT(path))
    torch.testing.assert_close(twice, 2 * image, rtol=1e-3, atol=0.02)
    torch.testing.assert_close(alone[0], image[1], rtol=1e-3, atol=0.02)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pyrecon train luser"):
        reconstruct_mri(mri_scan(), LUSERMRI())
    with pytest.raises(DataError, match="trained for 'ct', LUSER takes 'mri' here"):
        reconstruct_mri(mri_scan(), LUSERMRI(saved(tmp_path, "ct")))
    with pytest.raises(DataError, match="trained for 'mri', LUSER takes 'ct' here"):
        reconstruct_ct(ct_scan(), LUSERCT(saved(tmp_path, "mri", DEQ4IP)))
    with pytest.raises(DataError, match="role 'denoiser'"):
        reconstruct_mri(mri_scan(), LUSERMRI(saved(tmp_path, "mri", role="denoiser")))
