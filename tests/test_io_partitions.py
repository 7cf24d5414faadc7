"""3-D scans whose partitions are sampled differently: any (ky, kz), from files of both formats to volumes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.cli._jobs import volumes_of
from pyrecon.data.fourier import fft_centered, ifft_centered
from pyrecon.data.mri import WHITENED, calibration_region, check_scan, first_slices, some_entries
from pyrecon.data.planes import to_planes, to_slices
from pyrecon.data.raw import MRIScan
from pyrecon.io import read
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.linops import Sense3D
from pyrecon.models.mri import (
    CGSense,
    DEProxMRI,
    JointMRI,
    TVSense,
    VarNetMRI,
    WaveletSense,
    ZeroFilled,
    reconstruct_maps,
    reconstruct_mri,
    sample_mri,
)
from pyrecon.models.mri.reconstruct import reconstruct_with_maps
from pyrecon.solvers import conjugate_gradient
from pyrecon.testing.mrd import mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

P, H, W, COILS, SIGMA = 12, 32, 24, 8, 0.02
Line = dict[str, Any]
Write = Callable[..., Path]


def axes() -> tuple[NDArray[np.float64], ...]:
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) / n for n in (P, H, W)), indexing="ij")
    return z, y, x


def phantom() -> NDArray[np.float64]:
    """An ellipsoid with a dark and a bright spot where no mirror image has them."""
    z, y, x = axes()
    image = 1.0 * ((x / 0.33) ** 2 + (y / 0.42) ** 2 + (z / 0.4) ** 2 < 1)
    image[((x + 0.12) / 0.1) ** 2 + ((y + 0.15) / 0.12) ** 2 + ((z - 0.1) / 0.2) ** 2 < 1] = 0.2
    image[((x - 0.12) / 0.1) ** 2 + ((y - 0.1) / 0.08) ** 2 + ((z + 0.1) / 0.15) ** 2 < 1] = 1.8
    return image


def coil_maps() -> NDArray[np.complex128]:
    """``(C, P, H, W)``: two rings of coils, above and below."""
    z, y, x = axes()
    maps = []
    for c in range(COILS):
        turn, height = 2 * np.pi * (c // 2) / (COILS // 2) + 0.4, 0.35 * (-1) ** c
        distance = (x - 0.55 * np.cos(turn)) ** 2 + (y - 0.55 * np.sin(turn)) ** 2 + (z - height) ** 2
        phase = turn + 2 * x * np.sin(turn) - 2 * y * np.cos(turn) + 4 * z * height
        maps.append(np.exp(-distance / 0.35 + 1j * phase))
    return np.stack(maps)


def seen() -> NDArray[np.float64]:
    """The root sum of squares of the coil images without noise: what a reconstruction is to be."""
    return np.asarray(np.linalg.norm(coil_maps() * phantom(), axis=0))


def kspace(seed: int = 0, sigma: float = SIGMA) -> NDArray[np.complex64]:
    """``(C, P, H, 2 W)`` with twofold oversampling of the readout."""
    wide = np.pad(coil_maps() * phantom(), [(0, 0)] * 3 + [(W // 2, W // 2)])
    clean = fft_centered(torch.from_numpy(wide), (-3, -2, -1)).numpy()
    return (clean + noise(clean.shape, seed, sigma)).astype(np.complex64)


def noise(shape: Sequence[int], seed: int, sigma: float = SIGMA) -> NDArray[np.complex64]:
    rng = np.random.default_rng(seed)
    both = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return np.asarray(sigma / np.sqrt(2) * both, np.complex64)


def shapes() -> dict[str, NDArray[np.bool_]]:
    """Masks ``(P, H)`` that are no product of lines and partitions."""
    z, y = np.meshgrid(np.arange(P) - P // 2, np.arange(H) - H // 2, indexing="ij")
    inside = (2 * y / H) ** 2 + (2 * z / P) ** 2 <= 1
    block = (abs(y + 0.5) < 6) & (abs(z + 0.5) < 3)
    return {
        "ellipse": inside,
        "caipirinha": ((y % 2 == 0) & ((z + y // 2) % 2 == 0)) | block,
        "random": (np.random.default_rng(1).random((P, H)) < 0.4) | block,
        "partitions": (z % 2 == 0) | (abs(z + 0.5) < 3),
        "partial Fourier": z >= -3,
    }


SHAPES = shapes()


# ---- a line is written to either format by the same words

_FLAGS = {
    "reference": ("IS_PARALLEL_CALIBRATION", ("PATREFSCAN",)),
    "both": ("IS_PARALLEL_CALIBRATION_AND_IMAGING", ("PATREFSCAN", "PATREFANDIMASCAN")),
    "noise": ("IS_NOISE_MEASUREMENT", ("NOISEADJSCAN",)),
}
_COUNTERS = {"row": ("kspace_encode_step_1", "Lin"), "partition": ("kspace_encode_step_2", "Par"),
             "repetition": ("repetition", "Rep"), "average": ("average", "Ave"), "slice": ("slice", "Sli")}  # fmt: skip
CENTER = (4.0, 10.0, 45.0)  # mm
SPACE = mrd_encoding((2 * W, H, P), (2.0 * W, 1.0 * H, 2.0 * P))
PROTOCOL = (
    f"sKSpace.lBaseResolution = {W}\nsKSpace.lPhaseEncodingLines = {H}\nsKSpace.lPartitions = {P}\n"
    f"sKSpace.ucTrajectory = 1\nsSliceArray.asSlice[0].dReadoutFOV = {W}\nsSliceArray.asSlice[0].dPhaseFOV = {H}\n"
    f"sSliceArray.asSlice[0].dThickness = {2 * P}\n"
)


def line(data: NDArray[np.complex64], row: int, partition: int, *flags: str, **at: int) -> Line:
    return {"data": data, "flags": flags, "at": {"row": row, "partition": partition, **at}}


def lines_of(k: NDArray[np.complex64], mask: NDArray[np.bool_], *flags: str, **at: int) -> list[Line]:
    return [line(k[:, p, row], int(row), int(p), *flags, **at) for p, row in np.argwhere(mask)]


def mrd(path: Path, lines: Sequence[Line], *encodings: str) -> Path:
    def own(entry: Line) -> Line:
        at = {_COUNTERS[name][0]: value for name, value in entry["at"].items()}
        flags = [_FLAGS[flag][0] for flag in entry["flags"]]
        place = {"phase_dir": (1, 0, 0), "read_dir": (0, 1, 0), "slice_dir": (0, 0, 1), "position": CENTER}
        return {**place, **entry, "at": at, "flags": flags}

    header = mrd_header(*(encodings or (SPACE,)), vendor="SIEMENS")
    return mrd_file(path.with_suffix(".h5"), [own(entry) for entry in lines], header)


def twix(path: Path, lines: Sequence[Line]) -> Path:
    def own(entry: Line) -> Line:
        at = {_COUNTERS[name][1]: value for name, value in entry["at"].items()}
        flags = [name for flag in entry["flags"] for name in _FLAGS[flag][1]]
        place = {"center_line": H // 2, "center_partition": P // 2, "rotation": (1, 0, 0, 0), "position": CENTER}
        return {**place, **entry, "at": at, "flags": flags}

    path = path.with_suffix(".dat")
    path.write_bytes(twix_bytes([own(entry) for entry in lines], PROTOCOL))
    return path


FORMATS = pytest.mark.parametrize("write", [mrd, twix], ids=["ismrmrd", "twix"])
NOISE = [line(noise((COILS, 2 * W), seed), 0, 0, "noise") for seed in range(50, 90)]


def turned(volume: NDArray[Any]) -> NDArray[Any]:
    """As the readers turn these slices: rows and columns run against the scanner's."""
    return np.roll(volume[..., ::-1, ::-1], (1, 1), (-2, -1))


def error(image: torch.Tensor, expected: NDArray[Any] | None = None) -> float:
    """nRMSE of magnitudes, up to a factor."""
    found, expected = image.abs().numpy().ravel(), (turned(seen()) if expected is None else expected).ravel()
    return float(np.linalg.norm(found * (found @ expected) / (found @ found) - expected) / np.linalg.norm(expected))


def quietly(scan: MRIScan, method: Any = None, **more: Any) -> tuple[torch.Tensor, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reconstruct_mri(scan, CGSense() if method is None else method, **more)


def notes(scan: MRIScan) -> str:
    return "; ".join(scan.metadata.get("notes", []))


# ---- the volume


@FORMATS
@pytest.mark.parametrize("name", SHAPES)
def test_a_volume_of_any_sampling_is_what_was_scanned(tmp_path: Path, write: Write, name: str) -> None:
    scan = read(write(tmp_path / "m", [*NOISE, *lines_of(kspace(), SHAPES[name])]))
    assert scan.encoded_partitions == P
    np.testing.assert_array_equal(scan.mask[:, 0, :, 0], np.roll(SHAPES[name][:, ::-1], 1, 1))
    filled, by_coils, smooth = (quietly(scan, method)[0] for method in (ZeroFilled(), CGSense(), TVSense()))
    assert smooth.shape == (P, H, W)
    assert error(smooth) < 0.045 < error(by_coils) < 0.13 < error(filled)
    _, report = quietly(scan, TVSense())
    assert (report.counted, report.samples) == ("planes", W)
    filtered = 1.0 if write is mrd else 0.79  # of the noise that is expected of a twix file: its receiver's filter
    assert np.median(report.residual_over_noise) == pytest.approx(filtered**0.5, abs=0.06)
    assert "penalties act within them, along partitions of 2 mm and rows of 1 mm alike" in report.details["partitions"]


@pytest.mark.parametrize("name", SHAPES)
def test_cg_sense_is_that_of_the_operator_of_volumes(tmp_path: Path, name: str) -> None:
    """argmin 1/2 |A x - y|^2 + w/2 |x - x_c|^2 with Sense3D, on the scan's own samples and with its maps."""
    weight, mask = 0.3, SHAPES[name]
    scan = read(mrd(tmp_path / "m", lines_of(kspace(), mask)))
    maps = torch.from_numpy(turned(coil_maps())).to(torch.complex64)
    found, _ = quietly(scan, CGSense(weight=weight, tol=1e-7), maps=maps.movedim(0, 1), whiten=False)

    wide = ifft_centered(torch.from_numpy(turned(kspace() * mask[..., None])), (-1,))[..., W // 2 : -W // 2]
    y = fft_centered(wide, (-1,))[None]
    gain = torch.linalg.vector_norm(maps, dim=0)
    sampled = torch.from_numpy(np.roll(mask[:, ::-1], 1, 1).copy())[None, None, :, :, None]
    operator = Sense3D((maps / gain)[None], sampled)
    block = torch.zeros_like(sampled)
    block[(0, 0, *calibration_region(sampled[..., 0].numpy(), (P, H)))] = True
    prior = operator.adjoint(y * block)
    more = conjugate_gradient(
        lambda x: operator.gram(x) + weight * x,
        operator.adjoint(y) - operator.gram(prior),
        rtol=1e-6,
        max_iter=200,
    )
    expected = (prior + more.value)[0] / gain
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_full_volume_is_the_same_in_slices_and_in_planes(tmp_path: Path) -> None:
    whole = read(mrd(tmp_path / "m", [*NOISE, *lines_of(kspace(), np.ones((P, H), bool))]))
    assert whole.encoded_partitions == 1
    back = fft_centered(torch.from_numpy(whole.kspace), (0,)).numpy()
    encoded = replace(whole, kspace=back, encoded_partitions=P)
    torch.testing.assert_close(quietly(encoded, ZeroFilled())[0], quietly(whole, ZeroFilled())[0], rtol=1e-4, atol=1e-4)
    maps = torch.from_numpy(turned(coil_maps())).to(torch.complex64).movedim(0, 1)
    options = {"maps": maps, "coils": 6}
    ours, theirs = (quietly(scan, CGSense(), **options)[0] for scan in (encoded, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * float(theirs.abs().max()))
    estimated = [quietly(scan)[0] for scan in (encoded, whole)]
    assert max(error(image) for image in estimated) < 0.05


@FORMATS
def test_slices_have_the_names_and_places_of_a_full_scan(tmp_path: Path, write: Write) -> None:
    full, part = (
        read(write(tmp_path / name, [entry for r in range(2) for entry in lines_of(kspace(r), mask, repetition=r)]))
        for name, mask in (("full", np.ones((P, H), bool)), ("part", SHAPES["ellipse"]))
    )
    assert (full.encoded_partitions, part.encoded_partitions) == (1, P)
    assert part.labels == full.labels
    assert part.labels[P + 1] == "repetition 1, partition 1"
    assert part.metadata["orientation"] == full.metadata["orientation"]
    arranged = [volumes_of(scan, np.arange(2 * P), (H, W)) for scan in (full, part)]
    np.testing.assert_array_equal(arranged[1].order, arranged[0].order)
    np.testing.assert_array_equal(arranged[1].affine, arranged[0].affine)
    assert arranged[1].labels == arranged[0].labels == ("repetition 0", "repetition 1")


def test_both_formats_give_the_same_volumes_in_the_same_place(tmp_path: Path) -> None:
    """Two repetitions with masks of their own, through the command line."""
    masks = SHAPES["caipirinha"], SHAPES["random"]
    lines = [entry for r in range(2) for entry in lines_of((2 - r) * kspace(r), masks[r], repetition=r)]
    images = {}
    for write in (mrd, twix):
        file, out = write(tmp_path / "m", lines), tmp_path / f"{write.__name__}.nii.gz"
        ran = CliRunner().invoke(app, ["reconstruct", str(file), "-m", "cg-sense", "-o", str(out)])
        assert ran.exit_code == 0, ran.output
        images[write.__name__] = nibabel.load(out)
    first, second = images["mrd"], images["twix"]
    assert first.shape == (W, H, P, 2)
    assert int(first.header["sform_code"]) == 1
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-4)
    np.testing.assert_allclose(second.get_fdata(), first.get_fdata(), rtol=1e-4, atol=1e-3)
    expected = np.moveaxis(turned(seen()), 0, -1).swapaxes(0, 1)
    for repetition in range(2):
        values = first.get_fdata()[..., repetition]
        # Slices follow each other towards the head; images run against the scanner's normal, which leads there.
        backwards, forwards = (error(torch.from_numpy(values[:, :, ::way].copy()), expected) for way in (-1, 1))
        assert backwards < 0.2 < 0.4 < forwards
        assert values.max() == pytest.approx((2 - repetition) * first.get_fdata()[..., 1].max(), rel=0.1)


def test_planes_become_slices_and_back() -> None:
    values = torch.arange(2 * 3 * 2 * 4 * 5).reshape(2 * 3, 2, 4, 5)
    planes = to_planes(values, 3)
    assert planes.shape == (2 * 5, 2, 3, 4)
    assert planes[5 + 4, 1, 2, 3] == values[3 + 2, 1, 3, 4]
    assert torch.equal(to_slices(planes, 5), values)


def test_all_columns_of_an_image_have_one_phase_and_their_maps(tmp_path: Path) -> None:
    scan = replace(read(mrd(tmp_path / "m", lines_of(kspace(), SHAPES["caipirinha"]))), metadata={WHITENED: "before"})
    scan = replace(scan, kspace=scan.kspace / np.float32(SIGMA))
    image, maps, _ = reconstruct_with_maps(scan, CGSense())
    inside = turned(seen()) > 0.5 * seen().max()
    truth = torch.from_numpy(turned(coil_maps())).movedim(0, 1)
    agreement = (maps.conj() * truth).sum(1).abs() / torch.linalg.vector_norm(truth, dim=1)
    assert float(agreement[torch.from_numpy(inside)].quantile(0.05)) > 0.99
    step = torch.angle(image[..., 1:] * image[..., :-1].conj()).abs().numpy()
    assert step[inside[..., 1:] & inside[..., :-1]].max() < 0.3


# ---- calibration


@FORMATS
def test_references_in_the_lattice_are_calibration_and_image(tmp_path: Path, write: Write) -> None:
    """Flagged as calibration alone between the lines of the lattice, as both on them; averages are averaged."""
    z, y = np.meshgrid(np.arange(P) - P // 2, np.arange(H) - H // 2, indexing="ij")
    lattice, block = (y + z) % 2 == 0, (abs(y + 0.5) < 6) & (abs(z + 0.5) < 4)
    lines = []
    for average in range(2):
        k = kspace(average)
        lines += lines_of(k, lattice & ~block, average=average) + lines_of(k, lattice & block, "both", average=average)
        lines += lines_of(k, block & ~lattice, "reference", average=average)
    scan = read(write(tmp_path / "m", [*NOISE, *lines]))
    assert scan.calibration is None
    np.testing.assert_array_equal(scan.mask[:, 0, :, 0], np.roll((lattice | block)[:, ::-1], 1, 1))
    image, report = quietly(scan)
    assert report.details["maps"] == "espirit from 8 x 11 samples"
    assert error(image) < 0.07


@FORMATS
@pytest.mark.parametrize("image", ["a lattice", "lines"])
@pytest.mark.parametrize("shape", ["disc", "block"])
def test_a_reference_scan_of_its_own(tmp_path: Path, write: Write, image: str, shape: str) -> None:
    """Partitions stay in k-space where those of the reference or of the image are sampled differently."""
    z, y = np.meshgrid(np.arange(P) - P // 2, np.arange(H) - H // 2, indexing="ij")
    mask = (y + z) % 2 == 0 if image == "a lattice" else y % 2 == 0
    about = (y / 8) ** 2 + (z / 5) ** 2 < 1 if shape == "disc" else (abs(y + 0.5) < 6) & (abs(z + 0.5) < 4)
    lines = [*NOISE, *lines_of(kspace(), mask), *lines_of(3 * kspace(1), about, "reference", repetition=1)]
    scan = read(write(tmp_path / "m", lines))
    assert scan.encoded_partitions == (1 if (image, shape) == ("lines", "block") else P)
    check_scan(scan)
    if scan.encoded_partitions == P:
        np.testing.assert_array_equal((scan.calibration != 0).any(axis=(1, 3)), np.roll(about[:, ::-1], 1, 1))
    found, report = quietly(scan)
    assert report.details["maps"].startswith("espirit from ")
    assert error(found) < 0.08 < error(quietly(scan, ZeroFilled())[0])


def test_references_of_a_smaller_matrix(tmp_path: Path) -> None:
    """Another encoding space of the same field of view: few lines on the image's whole matrix, which is no damage."""
    z, y = np.meshgrid(np.arange(P) - P // 2, np.arange(H) - H // 2, indexing="ij")
    small = mrd_encoding((2 * W, 12, 8), (2.0 * W, 1.0 * H, 2.0 * P))
    lines = lines_of(kspace(), (y + z) % 2 == 0)
    about = (abs(y + 0.5) < 6) & (abs(z + 0.5) < 4) & ((2 * y / 12) ** 2 + (2 * z / 8) ** 2 < 1.6)
    lines += [
        line(3 * kspace(1)[:, p, row], row - H // 2 + 6, p - P // 2 + 4, "reference") | {"encoding_space_ref": 1}
        for p, row in np.argwhere(about)
    ]
    scan = read(mrd(tmp_path / "m", [*NOISE, *lines], SPACE, small))
    np.testing.assert_array_equal((scan.calibration != 0).any(axis=(1, 3)), np.roll(about[:, ::-1], 1, 1))
    assert error(quietly(scan)[0]) < 0.08


def test_few_references_on_a_large_matrix_are_no_damage(tmp_path: Path) -> None:
    """A disc of 29 lines in 24 x 192: 159 places for each of its samples, but the image's lie there too."""
    z, y = np.meshgrid(np.arange(24), np.arange(192), indexing="ij")
    data, about = np.ones((1, 16), np.complex64), np.hypot(z - 12, y - 96) < 3.1
    lines = [line(data, int(row), int(p)) for p, row in np.argwhere((y + 2 * z) % 16 == 0)]
    lines += [line(2 * data, int(row), int(p), "reference", repetition=1) for p, row in np.argwhere(about)]
    scan = read(mrd(tmp_path / "m", lines, mrd_encoding((16, 192, 24), (16.0, 192.0, 48.0), oversampling=1.0)))
    assert int((scan.calibration != 0).any(axis=(1, 3)).sum()) == about.sum() < 24 * 192 / 64


def test_lines_left_out_in_turn_give_maps_from_their_average(tmp_path: Path) -> None:
    """Two slabs at two times; the second is seen by the coils in another order."""
    z, y = np.meshgrid(np.arange(P), np.arange(H), indexing="ij")
    lines = []
    for slab, r in np.ndindex(2, 2):
        lines += lines_of(np.roll(kspace(r), slab, axis=0), (y + z) % 2 == r, repetition=r, slice=slab)
    images, report = quietly(read(mrd(tmp_path / "m", [*NOISE, *lines])))
    assert report.details["maps"] == "espirit from 12 x 24 samples, averaged over time"
    assert max(error(image) for image in images.view(4, P, H, W)) < 0.045


@pytest.mark.parametrize("partitions", [3, 4])
def test_few_calibration_partitions(tmp_path: Path, partitions: int) -> None:
    """The kernel follows the block; where there is none that fits, joint is named."""
    z, y = np.meshgrid(np.arange(P) - P // 2, np.arange(H) - H // 2, indexing="ij")
    mask = ((y + z) % 2 == 0) | ((abs(y + 0.5) < 8) & (z >= -(partitions // 2)) & (z < (partitions + 1) // 2))
    scan = read(mrd(tmp_path / "m", [*NOISE, *lines_of(kspace(), mask)]))
    if partitions == 4:
        assert error(quietly(scan)[0]) < 0.1
        return
    with pytest.raises(DataError, match=r"3 x 1\d samples are fewer than the kernel.*joint \(JointMRI\)"):
        quietly(scan)
    image, maps, _ = reconstruct_with_maps(scan, JointMRI(max_iter=150))
    assert maps.shape == (P, COILS, H, W)
    assert error(image) < 0.15


def test_a_single_coil_needs_no_maps(tmp_path: Path) -> None:
    k = kspace()[:1]
    scan = read(mrd(tmp_path / "m", lines_of(k, SHAPES["ellipse"])))
    image, maps, _ = reconstruct_with_maps(scan, CGSense())
    assert maps.shape == (1, 1, H, W)
    assert error(image, turned(np.abs(coil_maps()[0] * phantom()))) < 0.2


# ---- what was not measured


@FORMATS
def test_slice_partial_fourier_and_a_lower_resolution_are_told(tmp_path: Path, write: Write) -> None:
    z, _ = np.meshgrid(np.arange(P) - P // 2, np.arange(H), indexing="ij")
    half = read(write(tmp_path / "a", lines_of(kspace(), z >= -2)))
    assert half.encoded_partitions == P
    assert "partitions 0, 1, 2, 3 of 12 not measured (slice partial Fourier, or" in notes(half)
    low = read(write(tmp_path / "b", lines_of(kspace(), abs(z) <= 4)))
    assert low.encoded_partitions == 1  # zeros at both ends: interpolated slices
    assert "partitions 0, 1, 11 of 12 not measured" in notes(low)
    clean = read(write(tmp_path / "c", lines_of(kspace(), SHAPES["ellipse"])))
    assert notes(clean) == ""
    every = read(write(tmp_path / "d", lines_of(kspace(), z % 2 == 0)))
    assert every.encoded_partitions == P  # aliased, and no zero filling


def test_slice_partial_fourier_is_filled_in(tmp_path: Path) -> None:
    """By the phase of the partitions on both sides; of all coils together and of each."""
    scan = read(mrd(tmp_path / "m", [*NOISE, *lines_of(kspace(), SHAPES["partial Fourier"])]))
    for method in (CGSense(), ZeroFilled()):
        zero, told = quietly(scan, method)
        better, report = quietly(scan, method, partial_fourier="pocs")
        assert told.details["partial_fourier"].startswith("9 of 12 partitions, 3 beyond the centre: zero")
        assert report.details["partial_fourier"] == "9 of 12 partitions, 3 beyond the centre: pocs"
        assert error(better) < 0.9 * error(zero)
    folded = read(mrd(tmp_path / "f", lines_of(kspace(), SHAPES["caipirinha"] & SHAPES["partial Fourier"])))
    with pytest.raises(DataError, match="of the samples inside the measured part are left out"):
        quietly(folded, ZeroFilled(), partial_fourier="pocs")


def test_a_repetition_broken_off_is_named(tmp_path: Path) -> None:
    lines = [entry for r in range(3) for entry in lines_of(kspace(r), SHAPES["ellipse"], repetition=r)]
    scan = read(mrd(tmp_path / "m", [*NOISE, *lines[: len(lines) * 5 // 6]]))
    with pytest.warns(UserWarning, match="repetition 2: only 50 % of the samples that others have"):
        reconstruct_mri(scan, ZeroFilled())


def test_a_partial_echo_is_told_and_keeps_the_noise(tmp_path: Path) -> None:
    cut, k = W // 2, kspace()
    lines = [
        {**entry, "data": entry["data"][:, cut:], "center": W - cut} for entry in lines_of(k, SHAPES["caipirinha"])
    ]
    scan = read(mrd(tmp_path / "m", [*NOISE, *lines]))
    assert scan.mask.shape == (P, 1, H, 2 * W)
    with pytest.warns(UserWarning, match=r"25 % of the samples along the readout were not measured|25% of the"):
        image, report = reconstruct_mri(scan, CGSense())
    assert np.median(report.residual_over_noise) == pytest.approx(1, abs=0.05)
    assert error(image) < 0.15
    whole, _ = quietly(read(mrd(tmp_path / "w", [*NOISE, *lines_of(k, SHAPES["caipirinha"])])))
    assert float(image.abs().sum() / whole.abs().sum()) == pytest.approx(1, abs=0.1)
    lines[7] = lines_of(k, SHAPES["caipirinha"])[7]
    with pytest.raises(DataError, match="some lines of volume 0 lack a part of the readout that others have"):
        quietly(read(mrd(tmp_path / "n", lines)))


# ---- what cannot be done


def test_what_knows_slices_alone_is_refused(tmp_path: Path) -> None:
    scan = read(mrd(tmp_path / "m", lines_of(kspace(), SHAPES["ellipse"])))
    for method in (DEProxMRI("de-prox-mri"), VarNetMRI("x"), JointMRI(prior="denoiser")):
        with pytest.raises(DataError, match=f"{method.name} expects slices: reconstruct it by cg-sense"):
            reconstruct_mri(scan, method)
    with pytest.raises(DataError, match="sampling expects slices"):
        sample_mri(scan, samples=8)
    with pytest.raises(DataError, match="expects slices: reconstruct the images by cg-sense"):
        reconstruct_maps(scan)
    with pytest.raises(ValueError, match="12 partitions of a volume are in k-space, expected slices"):
        write_ismrmrd(tmp_path / "w.h5", scan)
    with pytest.raises(ValueError, match="chosen: a part of a volume"):
        some_entries(scan, np.arange(5))


def test_a_scan_whose_volumes_do_not_add_up_is_refused(tmp_path: Path) -> None:
    scan = read(mrd(tmp_path / "m", lines_of(kspace(), SHAPES["ellipse"])))
    with pytest.raises(DataError, match="encoded_partitions: 5 does not divide 12 entries"):
        check_scan(replace(scan, encoded_partitions=5))
    with pytest.raises(DataError, match="calibration: 6 entries for 12 partitions"):
        check_scan(replace(scan, calibration=scan.kspace[:6]))
    with pytest.raises(DataError, match="mask: a volume has no sample at all"):
        check_scan(replace(scan, mask=np.zeros_like(scan.mask)))


def test_first_slices_are_whole_volumes(tmp_path: Path) -> None:
    lines = [entry for r in range(2) for entry in lines_of(kspace(r), SHAPES["ellipse"], repetition=r)]
    scan = read(mrd(tmp_path / "m", lines))
    assert len(first_slices(scan, 1).kspace) == P
    assert len(first_slices(scan, P + 1).kspace) == 2 * P
    ran = CliRunner().invoke(app, ["reconstruct", str(tmp_path / "m.h5"), "-m", "rss", "--dry-run", "--json"])
    plan = json.loads(ran.stdout)
    assert plan["volumes"] == "2"
    assert "2 volumes of 12 partitions" in plan["file"]


# ---- no warning that is not the package's own


@pytest.mark.parametrize("name", ["full", *SHAPES])
@pytest.mark.parametrize("method", [ZeroFilled(), CGSense(), WaveletSense(), TVSense()], ids=lambda m: m.name)
def test_no_library_warns(tmp_path: Path, name: str, method: Any) -> None:
    mask = SHAPES.get(name, np.ones((P, H), bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "partitions .* not measured|no signal rises above the noise in")
        lines = [
            {**entry, "phase_dir": (0, 0, 0)} for entry in lines_of(kspace(), mask)
        ]  # nowhere: not turned, no copy
        scan = read(mrd(tmp_path / "m", [*NOISE, *lines]))
        assert scan.mask.flags.writeable  # torch warns of others, but once a process
        assert scan.kspace.flags.writeable
        reconstruct_mri(scan, method)
