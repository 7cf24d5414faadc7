"""Partial Fourier: what of k-space was left out, and how near homodyne and POCS come to the image of all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.fourier import fft_centered, ifft_centered
from pyrecon.data.heads import heads
from pyrecon.data.partial_fourier import LINES, Part, complete, measured_parts, told
from pyrecon.data.raw import MRIScan
from pyrecon.io import read_result
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.models.mri import (
    CGSense,
    JointMRI,
    SenseFit,
    TVSense,
    WaveletSense,
    ZeroFilled,
    reconstruct_maps,
    reconstruct_mri,
    sample_mri,
)
from pyrecon.physics.mri import coil_maps, gaussian_lines, poisson_disc, random_lines, simulate
from pyrecon.physics.t1 import TIMES, scan_brains, unseen_brains

N = 96


def lines(first: int, last: int, step: int = 1, n: int = N) -> NDArray[np.bool_]:
    """``(1, 1, N, 1)``: lines ``first`` to ``last - 1``."""
    mask = np.zeros((1, 1, n, 1), bool)
    mask[:, :, first:last:step] = True
    return mask


def error(found: Tensor, truth: Tensor) -> float:
    """Of magnitudes, relative."""
    return float((found.abs() - truth.abs()).norm() / truth.norm())


# ---- what was left out


@pytest.mark.parametrize(
    ("mask", "part"),
    [
        (lines(0, N), "whole"),
        (lines(1, N), "whole"),
        (lines(0, N, 4), "whole"),
        (lines(3, N, 4), "whole"),
        (lines(20, 76), "whole"),  # as far on either side: less resolution, nothing that a phase could tell
        (lines(36, N), "60 of 96 lines, 12 beyond the centre"),
        (lines(0, 60), "60 of 96 lines, 11 beyond the centre"),
        (lines(24, N, 3), "70 of 96 lines, 24 beyond the centre"),
        (lines(84, N), "12 of 96 lines, 0 beyond the centre"),
        (np.broadcast_to(np.arange(N) >= 30, (1, 1, N, N)), "66 of 96 samples of the readout, 18 beyond the centre"),
        (
            lines(36, N) & (np.arange(N) < 70),
            "60 of 96 lines, 12 beyond the centre and 70 of 96 samples of the readout, 21 beyond the centre",
        ),
    ],
)
def test_what_was_left_out_is_found(mask: NDArray[np.bool_], part: str) -> None:
    (found,) = measured_parts(mask, (N, N))
    assert found.said(LINES) == ("" if part == "whole" else part)
    assert found.is_partial == (part != "whole")


@pytest.mark.parametrize("seed", range(8))
def test_random_masks_are_not_partial(seed: int) -> None:
    shape = (128, 112)
    masks = [random_lines(shape, 4, seed=seed), gaussian_lines(shape, 6, seed=seed), poisson_disc(shape, 6, seed=seed)]
    for mask in masks:
        whole = np.broadcast_to(mask.numpy() != 0, (1, 1, 128, mask.shape[3]))
        assert told(measured_parts(whole, shape)) == ""


# ---- one image


def head(number: int = 0, phase: float = 1.0) -> Tensor:
    return torch.from_numpy(heads(1, (N, N), seed=3, first=number, phase=phase))[0]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("after", [True, False], ids=["first lines", "last lines"])
@pytest.mark.parametrize(("eighths", "homodyne", "pocs"), [(5, 0.03, 0.012), (6, 0.015, 0.01)])
def test_the_magnitude_of_the_whole_comes_back(
    number: int, after: bool, eighths: int, homodyne: float, pocs: float
) -> None:
    """Homodyne bears less of a slope in the phase than POCS does, whose measured samples stay as they are."""
    truth, missing = head(number, 0.5), N - eighths * N // 8
    mask = lines(missing, N) if after else lines(0, N - missing)
    parts = measured_parts(mask, (N, N))
    kspace = fft_centered(truth)[None] * torch.from_numpy(mask[0])
    zero = error(complete(kspace, parts, "zero")[0], truth)
    assert error(complete(kspace, parts, "homodyne")[0], truth) < min(homodyne, 0.5 * zero)
    truth = head(number)
    kspace = fft_centered(truth)[None] * torch.from_numpy(mask[0])
    filled = complete(kspace, parts, "pocs")
    assert error(filled[0], truth) < min(pocs, 0.25 * zero)
    kept = fft_centered(filled) * torch.from_numpy(mask[0])
    assert torch.linalg.vector_norm(kept - kspace) < 1e-5 * torch.linalg.vector_norm(kspace)


def test_an_asymmetric_echo_and_both_axes_at_once() -> None:
    truth = head()
    echo = np.broadcast_to(np.arange(N) >= 30, (1, 1, N, N))
    both = echo & lines(0, 70)
    for mask, least in ((echo, 0.3), (both, 0.75)):
        parts = measured_parts(mask, (N, N))
        kspace = fft_centered(truth)[None] * torch.from_numpy(mask[0].copy())
        zero, homodyne, pocs = (error(complete(kspace, parts, w)[0], truth) for w in ("zero", "homodyne", "pocs"))
        assert pocs < least * zero
        assert homodyne < 0.9 * zero


def test_without_a_phase_the_formula_of_homodyne_is_exact() -> None:
    """A real image: lines of one side are the conjugates of the other's, but for k = -n/2, which has no other."""
    truth = head().abs().to(torch.complex128)
    kspace = fft_centered(truth)
    kspace[0] = 0
    truth = ifft_centered(kspace)
    mask = lines(36, N)
    parts = measured_parts(mask, (N, N))
    for way in ("homodyne", "pocs"):
        found = complete(kspace[None] * torch.from_numpy(mask[0]), parts, way)[0]
        # The low-resolution image is negative nowhere that counts, so its phase is 0.
        assert error(found, truth) < (1e-2 if way == "homodyne" else 1e-3)


@pytest.mark.parametrize("way", ["zero", "homodyne", "pocs"])
def test_whole_k_space_stays_as_it_is(way: Any) -> None:
    """Of random phase too; and so does an image among others that are partial."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal((2, 3, 20, 24)) + 1j * rng.standard_normal((2, 3, 20, 24)))
    kspace = fft_centered(image)
    whole = Part(slice(0, 20), slice(0, 24), (20, 24))
    assert torch.equal(complete(kspace, [whole], way), ifft_centered(kspace))
    partial = Part(slice(5, 20), slice(0, 24), (20, 24))
    assert torch.equal(complete(kspace, [partial, whole], way)[1], ifft_centered(kspace)[1])
    with pytest.raises(ValueError, match="way: 'conjugate' is not known, expected one of zero, homodyne, pocs"):
        complete(kspace, [whole], "conjugate")  # type: ignore[arg-type]


# ---- scans


def scan_of(mask: NDArray[np.bool_], noise: float = 0.005) -> tuple[MRIScan, Tensor]:
    """And the root sum of squares of its coils in units of the noise."""
    truth, maps = torch.from_numpy(heads(2, (N, N), seed=3)), coil_maps((N, N), 8)
    scan = simulate(truth, maps, torch.from_numpy(np.array(mask)), noise_std=noise, seed=0)
    return scan, truth.abs() * maps.abs().square().sum(1).sqrt() / noise


@pytest.mark.parametrize("method", [ZeroFilled(), CGSense(), WaveletSense(), TVSense()], ids=lambda m: m.name)
@pytest.mark.parametrize("eighths", [5, 6])
def test_every_coil_or_the_combined_image_is_filled_in(method: Any, eighths: int) -> None:
    missing = N - eighths * N // 8
    scan, truth = scan_of(lines(missing, N))
    errors = {}
    for way in ("zero", "homodyne", "pocs"):
        images, report = reconstruct_mri(scan, method, partial_fourier=way)
        errors[way] = error(images, truth)
        told_of = f"{N - missing} of 96 lines, {N // 2 - missing} beyond the centre: {way}"
        assert report.details["partial_fourier"].startswith(told_of)
        if way == "pocs" and report.residual_over_noise:
            assert 0.8 < np.median(report.residual_over_noise) < 1.05
    whole = error(reconstruct_mri(scan_of(lines(0, N))[0], CGSense())[0], truth)
    floor = 0.75 if method.name == "zero-filled RSS" else 0.5  # noise that a root sum of squares takes for signal
    assert errors["pocs"] < floor * errors["zero"]
    assert errors["homodyne"] < 0.8 * errors["zero"]
    assert errors["pocs"] < whole + (0.025 if method.name == "zero-filled RSS" else 0.01)


def test_undersampled_lines_are_unfolded_first() -> None:
    mask = lines(24, N, 2) | lines(36, 60)
    scan, truth = scan_of(mask)
    zero, homodyne, pocs = (
        error(reconstruct_mri(scan, CGSense(), partial_fourier=way)[0], truth) for way in ("zero", "homodyne", "pocs")
    )
    assert max(homodyne, pocs) < 0.65 * zero
    with pytest.raises(DataError, match=r"% of the samples inside the measured part are left out, .* such as cg-sense"):
        reconstruct_mri(scan, ZeroFilled(), partial_fourier="pocs")


@pytest.mark.parametrize("way", ["homodyne", "pocs"])
@pytest.mark.parametrize("method", [ZeroFilled(), CGSense()], ids=lambda m: m.name)
def test_a_whole_scan_is_not_touched(method: Any, way: Any) -> None:
    scan, _ = scan_of(lines(0, N))
    images, report = reconstruct_mri(scan, method, partial_fourier=way)
    plain, quiet = reconstruct_mri(scan, method)
    assert torch.equal(images, plain)
    assert report.details["partial_fourier"] == f"none: nothing for {way} to fill in"
    assert "partial_fourier" not in quiet.details


def test_one_entry_without_a_centre_does_not_stop_the_others() -> None:
    mask = np.concatenate([lines(24, N), lines(0, 30)])
    scan, truth = scan_of(mask)
    scan = replace(scan, places=np.zeros(2, int), calibration=scan.kspace[:1] * lines(36, 60))
    with pytest.warns(UserWarning, match="slice 1: too few lines beyond the centre for pocs, zero-filled"):
        images, report = reconstruct_mri(scan, CGSense(), partial_fourier="pocs")
    assert error(images[:1], truth[:1]) < 0.04
    assert "in 1 of 2 images, others in 1" in report.details["partial_fourier"]
    hopeless = replace(scan, mask=scan.mask[1:], kspace=scan.kspace[1:], places=None)
    with pytest.raises(DataError, match="30 of 96 lines, 0 beyond the centre: too few for the phase"):
        reconstruct_mri(hopeless, CGSense(), partial_fourier="pocs")


def test_methods_that_fill_in_by_themselves_say_so() -> None:
    scan, _ = scan_of(lines(24, N))
    for method, words in (
        (CGSense(max_iter=2), "zero, filled in by least squares, which leaves it nearly zero"),
        (TVSense(max_iter=2), "zero, filled in by least squares and total variation"),
        (ZeroFilled(), "zero, filled in by zeros"),
        (JointMRI(max_iter=2), "zero, filled in by a real image, whose phase is in smooth maps"),
    ):
        assert reconstruct_mri(scan, method)[1].details["partial_fourier"].endswith(words)
    with pytest.raises(ValueError, match="partial_fourier: 'pocs' does not go with joint, which fills in by a real"):
        reconstruct_mri(scan, JointMRI(), partial_fourier="pocs")
    with pytest.raises(ValueError, match="partial_fourier: 'margosian' is not known, expected one of 'zero', 'homo"):
        reconstruct_mri(scan, partial_fourier="margosian")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_maps_and_samples_tell_of_it() -> None:
    scan = scan_brains(unseen_brains(1, 32), TIMES["five"], coils=3, acceleration=1.0)
    scan = replace(scan, kspace=scan.kspace * lines(8, 32, n=32), mask=scan.mask & lines(8, 32, n=32))
    assert (
        reconstruct_maps(scan, SenseFit())[1].details["partial_fourier"] == "24 of 32 lines, 8 beyond the centre: zero"
    )
    one = replace(scan, kspace=scan.kspace[:1], mask=scan.mask[:1], slices=None, settings={}, labels=(), places=None)
    told_of = sample_mri(one, chains=2, burn_in=1, samples=8)[1].details["partial_fourier"]
    assert told_of == "24 of 32 lines, 8 beyond the centre: a real image of the phase that is held"


# ---- the command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reconstruct", *map(str, arguments)])


def test_the_command_takes_it(tmp_path: Path) -> None:
    scan, truth = scan_of(lines(24, N))
    write_ismrmrd(tmp_path / "s.h5", scan)
    errors = {}
    for way in (None, "homodyne", "pocs"):
        out = tmp_path / f"{way}.npz"
        found = run(tmp_path / "s.h5", "-o", out, *(["--partial-fourier", way] if way else []))
        assert found.exit_code == 0, found.output
        result = read_result(out)
        errors[way] = error(torch.from_numpy(result.image), truth)
        said = result.report["details"]["partial_fourier"]
        assert said.startswith(f"72 of 96 lines, 24 beyond the centre: {way or 'zero'}")
    assert max(errors["homodyne"], errors["pocs"]) < 0.6 * errors[None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "joint", "--partial-fourier", "pocs"], "--partial-fourier: 'pocs' does not go with joint"),
        (["-m", "sense-fit", "--partial-fourier", "pocs"], "--partial-fourier: is for images, sense-fit makes maps"),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_ismrmrd(tmp_path / "s.h5", scan_of(lines(24, N))[0])
    found = run(tmp_path / "s.h5", "-o", tmp_path / "a.npz", *arguments)
    assert isinstance(found.exception, DataError)
    assert message in str(found.exception)
