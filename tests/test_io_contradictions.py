"""Headers that contradict the readouts are noticed, and no others. In both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyrecon.data.fourier import fft_centered
from pyrecon.io import read
from pyrecon.models.mri import ZeroFilled, reconstruct_mri
from pyrecon.testing.mrd import fastmri_file, mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

N = 64
SIEMENS = Path(__file__).parents[2] / "shared/data/siemens_gre_2coils.dat"


def phantom(shift: int = 0, phase: float = 0.0) -> NDArray[np.complex128]:
    """A disc with two spots, ``shift`` rows off the middle, with a linear phase of ``phase`` turns over the rows."""
    y, x = np.meshgrid(*2 * [(np.arange(N) - N // 2) / N], indexing="ij")
    image = 1.0 * ((x / 0.3) ** 2 + (y / 0.25) ** 2 < 1)
    image[(x + 0.12) ** 2 + (y + 0.1) ** 2 < 0.01] = 0.2
    image[(x - 0.12) ** 2 + (y - 0.1) ** 2 < 0.007] = 1.8
    return np.roll(image, shift, axis=0) * np.exp(2j * np.pi * phase * y)


def kspace(image: NDArray[Any], oversampling: int = 2, noise: float = 0.02) -> NDArray[np.complex64]:
    """``(2, N, oversampling N)`` of two coils that see the same."""
    margin = (oversampling - 1) * N // 2
    seen = np.pad(np.stack([image, 1j * image]), [(0, 0), (0, 0), (margin, margin)])
    rng = np.random.default_rng(0)
    error = noise * (rng.standard_normal(seen.shape) + 1j * rng.standard_normal(seen.shape))
    return (fft_centered(torch.from_numpy(seen)).numpy() + error).astype(np.complex64)


def mrd(path: Path, k: NDArray[Any], center: int = N // 2, sample: int | None = None) -> Path:
    """``center`` is the header's centre line, ``sample`` that of the readouts."""
    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0), center=(center, 0)))
    first = max(0, center - N // 2)  # the lines that have a place
    lines = [
        {
            "data": k[:, row],
            "at": {"kspace_encode_step_1": row},
            "center": k.shape[2] // 2 if sample is None else sample,
        }
        for row in range(first, min(N, N // 2 + center))
    ]
    return mrd_file(path.with_suffix(".h5"), lines, header)


def twix(path: Path, k: NDArray[Any], center: int = N // 2, sample: int | None = None) -> Path:
    protocol = f"sKSpace.lBaseResolution = {N}\nsKSpace.lPhaseEncodingLines = {N}\nsKSpace.ucTrajectory = 1\n"
    lines = [
        {"data": k[:, row], "at": {"Lin": row}, "center_line": center,
         "center": k.shape[2] // 2 if sample is None else sample}
        for row in range(N)
    ]  # fmt: skip
    path = path.with_suffix(".dat")
    path.write_bytes(twix_bytes(lines, protocol))
    return path


Write = Callable[..., Path]
FORMATS = pytest.mark.parametrize("write", [mrd, twix], ids=["ismrmrd", "twix"])


def notes(path: Path) -> str:
    return "; ".join(read(path).metadata.get("notes", []))


@FORMATS
@pytest.mark.parametrize("center", [N // 2 - 12, 0, N // 2 + 12])
def test_a_centre_line_without_the_signal_is_told_with_both_numbers(tmp_path: Path, write: Write, center: int) -> None:
    found = notes(write(tmp_path / "m", kspace(phantom()), center))
    strongest = 31 if write is mrd and center == 0 else 32  # line 32 has no place then
    assert f"the signal is strongest in line {strongest}, the centre by the header is line {center}" in found


@FORMATS
def test_a_centre_sample_without_the_signal_is_told(tmp_path: Path, write: Write) -> None:
    """An echo of 96 of 128 samples, whose centre is sample 32 and not 60."""
    k = kspace(phantom())[:, :, 32:]
    assert notes(write(tmp_path / "a", k, sample=32)) == ""
    found = notes(write(tmp_path / "b", k, sample=64))
    assert "the signal is strongest in sample 32, the centre by the header is sample 64" in found


@FORMATS
@pytest.mark.parametrize(
    "image",
    [phantom(9), phantom(0, 3.0), phantom(-6, -3.0), 0 * phantom()],
    ids=["shifted", "phase", "both", "noise alone"],
)
def test_shifts_phases_and_noise_are_no_contradiction(tmp_path: Path, write: Write, image: NDArray[Any]) -> None:
    assert notes(write(tmp_path / "m", kspace(image))) == ""
    assert notes(write(tmp_path / "n", kspace(image), N // 2 + 2)) == ""


@pytest.mark.skipif(not SIEMENS.exists(), reason="no real twix file beside the checkout")
def test_the_real_siemens_scan_does_not_contradict_itself() -> None:
    assert notes(SIEMENS) == ""


@FORMATS
def test_oversampling_that_is_removed_already_is_noticed(tmp_path: Path, write: Write) -> None:
    k = kspace(phantom(), oversampling=1)
    scan = read(write(tmp_path / "m", k))
    assert (scan.readout_oversampling, scan.kspace.shape) == (1.0, (1, 2, N, N))
    np.testing.assert_array_equal(scan.kspace[0], k)
    assert scan.field_of_view[1] == pytest.approx(0.2 if write is mrd else 1.0)
    assert f"readouts have {N} samples, as the image, where the header encodes {2 * N}" in notes(tmp_path / (
        "m.h5" if write is mrd else "m.dat"))  # fmt: skip
    with pytest.warns(UserWarning, match="removed already"):
        image, _ = reconstruct_mri(scan, ZeroFilled())
    assert np.corrcoef(image[0].abs().flatten(), np.abs(phantom()).ravel())[0, 1] > 0.98


@pytest.mark.parametrize(("sample", "removed"), [(0, True), (N // 2, True), (N, True), (20, False)])
def test_a_centre_that_is_not_known_does_not_hide_it(tmp_path: Path, sample: int, removed: bool) -> None:
    scan = read(mrd(tmp_path / "m", kspace(phantom(), oversampling=1), sample=sample))
    assert (scan.readout_oversampling == 1.0) == removed


def test_a_half_echo_is_not_taken_for_it(tmp_path: Path) -> None:
    """As many samples as the image has, but they begin at the centre of k-space."""
    scan = read(mrd(tmp_path / "m", kspace(phantom())[:, :, N:], sample=0))
    assert scan.readout_oversampling == 2.0
    np.testing.assert_array_equal(scan.mask[0, 0, 0], np.arange(2 * N) >= N)


def test_fastmri_volumes_without_oversampling_are_noticed(tmp_path: Path) -> None:
    k = kspace(phantom(), oversampling=1).swapaxes(-1, -2)[None]
    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0)))
    scan = read(fastmri_file(tmp_path / "f.h5", k, header=header))
    assert scan.readout_oversampling == 1.0
    assert scan.field_of_view == pytest.approx((0.2, 0.2, 0.005))
