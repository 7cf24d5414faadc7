"""fastMRI volumes of all its sets, and what the command line makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.fourier import fft_centered
from pyrecon.io import detect, read, read_result
from pyrecon.testing.mrd import fastmri_file, mrd_encoding, mrd_header

LINES, SAMPLES = 24, 32  # samples with twofold oversampling


def volume(coils: int | None = 3) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """K-space ``(S, [C,] readout, lines)``, and the images ``(S, readout, lines)``."""
    y, x = np.meshgrid(np.arange(SAMPLES) / SAMPLES - 0.5, np.arange(LINES) / LINES - 0.5, indexing="ij")
    disc, spot = (y / 0.2) ** 2 + (x / 0.3) ** 2 < 1, (y - 0.1) ** 2 + x**2 < 0.01
    images = np.stack([1.0 * disc + (1 + s) * spot for s in range(2)])
    maps = np.stack([np.exp(-((x - a) ** 2) + 1j * a) for a in np.linspace(-1, 1, coils or 1)])
    kspace = fft_centered(torch.from_numpy(images[:, None] * maps)).numpy()
    rng = np.random.default_rng(0)
    kspace = kspace + 0.02 * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))
    kspace = kspace.astype(np.complex64)
    return (kspace if coils else kspace[:, 0]), images


@pytest.mark.parametrize("coils", [3, None], ids=["multi-coil", "single-coil"])
def test_a_volume_becomes_a_scan(tmp_path: Path, coils: int | None) -> None:
    kspace, _ = volume(coils)
    path = fastmri_file(tmp_path / "f.h5", kspace, reconstruction_rss=np.zeros((2, 8, 8), np.float32))
    assert detect(path) == "fastmri"
    scan = read(path)
    whole = kspace if coils else kspace[:, None]
    np.testing.assert_array_equal(scan.kspace, whole.swapaxes(-1, -2))
    assert scan.mask.all()
    assert scan.readout_oversampling == 2.0
    assert scan.field_of_view == pytest.approx((1e-3 * LINES, 1e-3 * SAMPLES, 5e-3))
    assert "notes" not in scan.metadata


def test_a_mask_and_padding_say_what_was_measured(tmp_path: Path) -> None:
    """Two lines of padding; every other line of the rest is left out by the mask (test sets) or zeros (challenge)."""
    kspace, _ = volume()
    kspace[..., :2] = 0
    mask = np.arange(LINES) % 2 == 1
    scans = [
        read(fastmri_file(tmp_path / "m.h5", kspace, mask=mask.astype(np.float32))),
        read(fastmri_file(tmp_path / "z.h5", kspace * mask)),
        read(fastmri_file(tmp_path / "h.h5", kspace * mask, mask=mask, header=None)),
    ]
    for scan in scans:
        np.testing.assert_array_equal(np.flatnonzero(scan.mask[0, 0, :, 0]), np.arange(3, LINES, 2))
        np.testing.assert_array_equal(scan.kspace, (kspace * mask).swapaxes(-1, -2))
    assert "11 lines that the file's mask leaves out have values" in scans[0].metadata["notes"][0]
    assert scans[2].readout_oversampling == 1.0
    assert "no header" in scans[2].metadata["notes"][0]


def test_the_command_line_reconstructs_it(tmp_path: Path) -> None:
    kspace, images = volume()
    path = fastmri_file(tmp_path / "f.h5", kspace)
    found = CliRunner().invoke(app, ["reconstruct", str(path), "-m", "rss", "-o", str(tmp_path / "o.npz")])
    assert found.exit_code == 0, found.output
    image = np.abs(read_result(tmp_path / "o.npz").image)
    assert image.shape == (2, LINES, SAMPLES // 2)
    truth = images[:, SAMPLES // 4 : -SAMPLES // 4].swapaxes(-1, -2)
    assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones(LINES - 1)}, r"/mask: shape \(23,\), expected \(24\)"),
        ({"mask": np.zeros(LINES)}, "/mask keeps no line"),
        ({"header": mrd_header(mrd_encoding(trajectory="radial"))}, "encoding/trajectory: 'radial'"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(fastmri_file(tmp_path / "f.h5", volume()[0], **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k.real, "expected complex"),
        (lambda k: k[0, 0], "expected complex"),
        (lambda k: 0 * k, "zero everywhere"),
        (lambda k: k * np.nan, "NaN or Inf"),
    ],
)
def test_k_space_that_is_none(tmp_path: Path, change: Any, message: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["kspace"], file["ismrmrd_header"] = change(volume()[0]), mrd_header()
    with pytest.raises(DataError, match=message):
        read(tmp_path / "f.h5")
