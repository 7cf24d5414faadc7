"""K-space in files of bare arrays: every format gives the same scan, and what is not certain is told or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.fourier import fft_centered
from pyrecon.data.raw import MRIScan
from pyrecon.io import detect, read, read_result
from pyrecon.io.kspace_array import read_kspace_array
from pyrecon.models.mri import reconstruct_mri

S, C, H, W = 2, 3, 24, 20
AXES = ("READ", "PHS1", "PHS2", "COIL", "MAPS", "TE", "COEFF", "COEFF2", "ITER", "CSHIFT", "TIME", "TIME2", "LEVEL",
        "SLICE", "AVG", "BATCH")  # fmt: skip


def images(*lead: int) -> NDArray[np.float64]:
    """Ellipses with a spot that no mirror image has in its place."""
    y, x = np.meshgrid(np.arange(H) / H - 0.5, np.arange(W) / W - 0.5, indexing="ij")
    disc, spot = (y / 0.42) ** 2 + (x / 0.33) ** 2 < 1, (y - 0.2) ** 2 + (x - 0.1) ** 2 < 0.01
    number = np.arange(int(np.prod(lead)))[:, None, None]
    return np.reshape(disc + (1 + number) * spot, (*lead, H, W))


def kspace(*lead: int, coils: int = C) -> NDArray[np.complex64]:
    """``(*lead, C, H, W)`` of the images, with noise of a percent."""
    x = np.arange(W) / W - 0.5
    maps = np.stack([np.exp(-((x - a) ** 2) + 1j * a) * np.ones((H, 1)) for a in np.linspace(-1, 1, coils)])
    found = fft_centered(torch.from_numpy(images(*lead)[..., None, :, :] * maps)).numpy()
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2, *found.shape))
    return (found + 0.01 * (noise[0] + 1j * noise[1])).astype(np.complex64)


def bart(path: Path, array: NDArray[Any], axes: str, more: str = "") -> Path:
    """An array with its axes named, as the toolbox writes it: sizes as text, samples with the first axis fastest."""
    sizes = [1] * 16
    names = axes.split()
    for name, size in zip(names, array.shape, strict=True):
        sizes[AXES.index(name)] = size
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + " \n" + more)
    order = sorted(range(len(names)), key=lambda i: AXES.index(names[i]))
    content = np.transpose(array, order).astype("<c8").tobytes(order="F")
    path.with_suffix(".cfl").write_bytes(content)
    return path.with_suffix(".cfl")


def matlab_hdf5(path: Path, **arrays: NDArray[Any]) -> Path:
    """As MATLAB 7.3 writes it: behind 512 bytes of text, axes backwards, complex numbers as pairs."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_group("#refs#")
        for name, array in arrays.items():
            stored = array.T
            if np.iscomplexobj(stored):
                pair = np.empty(stored.shape, [("real", "<f8"), ("imag", "<f8")])
                pair["real"], pair["imag"] = stored.real, stored.imag
                stored = pair
            file[name] = stored
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    path.write_bytes(content)
    return path


def npy(path: Path, **arrays: NDArray[Any]) -> Path:
    np.save(path.with_suffix(".npy"), arrays["kspace"])
    return path.with_suffix(".npy")


def npz(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return path.with_suffix(".npz")


def npz_packed(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return path.with_suffix(".npz")


def mat(path: Path, **arrays: NDArray[Any]) -> Path:
    savemat(path.with_suffix(".mat"), arrays)
    return path.with_suffix(".mat")


def mat_packed(path: Path, **arrays: NDArray[Any]) -> Path:
    savemat(path.with_suffix(".mat"), arrays, do_compression=True)
    return path.with_suffix(".mat")


Write = Callable[..., Path]
ARCHIVES: list[Write] = [npz, npz_packed, mat, mat_packed, matlab_hdf5]


def notes(scan: MRIScan) -> str:
    return "; ".join(scan.metadata.get("notes", []))


# ---- formats


@pytest.mark.parametrize("write", [npy, *ARCHIVES])
def test_every_format_gives_the_array(tmp_path: Path, write: Write) -> None:
    stored = kspace(S)
    path = write(tmp_path / "k", kspace=stored)
    assert detect(path) == "kspace-array"
    scan = read(path)
    np.testing.assert_array_equal(scan.kspace, stored)
    assert scan.mask.shape == (1, 1, H, 1)
    assert scan.mask.all()
    assert scan.labels == ("slice 0", "slice 1")
    assert f"axes are taken as SCHW: {S} slices, {C} coils, {H} phase encoding, {W} readout" in notes(scan)
    assert "pixels count as 1 mm" in notes(scan)


@pytest.mark.parametrize("named", ["k.cfl", "k.hdr", "k", "k."])
def test_bart_by_any_of_its_names(tmp_path: Path, named: str) -> None:
    stored = kspace(S)
    bart(tmp_path / "k", stored, "SLICE COIL PHS1 READ", "# Command\nphantom -k k\n# Creator\nBART v0.9\n")
    assert detect(tmp_path / named) == "bart"
    scan = read(tmp_path / named)
    np.testing.assert_array_equal(scan.kspace, stored)
    assert "axes are taken" not in notes(scan)


def test_bart_axes_of_time_and_echo(tmp_path: Path) -> None:
    stored = kspace(S, 2, 3)
    bart(tmp_path / "k", stored, "SLICE TE TIME COIL PHS1 READ")
    scan = read(tmp_path / "k.cfl")
    np.testing.assert_array_equal(scan.kspace, stored.reshape(12, C, H, W))
    assert scan.labels[7] == "slice 1, contrast 0, repetition 1"
    np.testing.assert_array_equal(scan.slices, [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5])  # but for the echo
    np.testing.assert_array_equal(scan.places, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])  # but for the time
    assert scan.stack is not None
    np.testing.assert_array_equal(scan.stack.slice, np.arange(12) // 6)


def test_partitions_become_slices(tmp_path: Path) -> None:
    stored = kspace(4).swapaxes(0, 1)  # (C, slices, H, W)
    volume = fft_centered(torch.from_numpy(stored.copy()), (1,)).numpy()
    bart(tmp_path / "k", volume, "COIL PHS2 PHS1 READ")
    np.save(tmp_path / "k.npy", volume)
    for scan in (read(tmp_path / "k.hdr"), read_kspace_array(tmp_path / "k.npy", axes="CPHW")):
        np.testing.assert_allclose(scan.kspace, stored.swapaxes(0, 1), atol=1e-4)
        assert scan.labels[3] == "partition 3"
    deep = read_kspace_array(tmp_path / "k.cfl", field_of_view=(0.2, 0.24, 0.04))
    assert deep.field_of_view == pytest.approx((0.24, 0.2, 0.01))  # the array has the readout first


def test_a_bart_slice_of_a_volume_has_two_phase_encodings(tmp_path: Path) -> None:
    bart(tmp_path / "k", kspace(), "COIL PHS1 PHS2")
    np.testing.assert_array_equal(read(tmp_path / "k.cfl").kspace[0], kspace())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("MAPS COIL PHS1 READ", r"k\.hdr: MAPS \(axis 4\) has 2 entries, expected 1; read are READ, PHS1, PHS2, COIL"),
        ("AVG COIL PHS1 READ", r"k\.hdr: AVG \(axis 14\) has 2 entries"),
        ("CSHIFT COIL PHS1 READ", r"k\.hdr: CSHIFT \(axis 9\)"),
    ],
)
def test_bart_axes_that_no_image_has_are_refused(tmp_path: Path, axes: str, message: str) -> None:
    bart(tmp_path / "k", kspace(2), axes)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "k.cfl")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("# Dimensions\n20 24 1 3 1 1 1 1 1 1 1 1 1 3\n", r"k\.cfl: 23040 bytes, expected 34560 for 20 x 24 x 1 x 3"),
        ("# Dimensions\n20 99999999999999999999\n", r"dimensions '20 99999999999999999999', expected up to 16"),
        ("# Dimensions\n20 999999999 999999999 999999999\n", r"k\.cfl: 23040 bytes, expected 1"),
        ("# Dimensions\n20 -24\n", "dimensions '20 -24'"),
        ("# Dimensions\n", "dimensions ''"),
        ("# Dimensions\n20 0 3\n", "dimensions '20 0 3'"),
        ("# Dimensions\n" + "1 " * 16 + "2\n", "17 dimensions, expected 16"),
        ("# Dimensions\n20 24\n# Dimensions\n20 24\n", "2 lines '# Dimensions', expected one"),
        ("# Dimensions\n20 24 1 3 1 1 1 1 1 1 1 1 1 2\n# Data\n/etc/passwd\n", "names another file for its samples"),
    ],
)
def test_bart_headers_that_cannot_be(tmp_path: Path, header: str, message: str) -> None:
    bart(tmp_path / "k", kspace(2), "SLICE COIL PHS1 READ")
    (tmp_path / "k.hdr").write_text(header)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "k.cfl")


def test_half_of_a_pair_is_told(tmp_path: Path) -> None:
    bart(tmp_path / "k", kspace(), "COIL PHS1 READ")
    (tmp_path / "k.cfl").rename(tmp_path / "other.cfl")
    with pytest.raises(DataError, match=r"k\.cfl: no such file"):
        read(tmp_path / "k")
    with pytest.raises(DataError, match=r"other\.cfl: unknown format .* looked for .*BART \(a header"):
        read(tmp_path / "other.cfl")
    (tmp_path / "other.hdr").write_bytes((348).to_bytes(4, "little") + bytes(344))  # that of an Analyze image
    with pytest.raises(DataError, match=r"other\.cfl: unknown format"):
        read(tmp_path / "other.cfl")


# ---- what is not mistaken for k-space


@pytest.mark.parametrize("write", ARCHIVES)
def test_other_arrays_are_no_k_space(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "a", weights=np.ones((3, 4)), bias=np.ones((3, 4)))
    if write in (npz, npz_packed):
        assert detect(path) == "npz"
    else:
        with pytest.raises(DataError, match=r"unknown layout .*weights"):
            detect(path)
    with pytest.raises(
        DataError, match=r"holds .*weights \(float64 of shape \(3, 4\)\).*; expected .* the name kspace"
    ):
        read_kspace_array(path)


def test_a_complex_image_stays_an_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=kspace()[0])
    assert detect(tmp_path / "a.npz") == "npz"
    np.testing.assert_array_equal(read(tmp_path / "a.npz").image, kspace()[0])
    np.savez(tmp_path / "c.npz", image=images(), kspace=kspace())
    np.testing.assert_array_equal(read(tmp_path / "c.npz").kspace[0], kspace())
    np.savez(tmp_path / "b.npz", kspace()[0])  # arr_0: whatever it is
    result = CliRunner().invoke(app, ["reconstruct", str(tmp_path / "b.npz")])
    assert isinstance(result.exception, DataError)
    assert "an array of k-space is to have the name kspace in it" in str(result.exception)


@pytest.mark.parametrize("write", ARCHIVES)
def test_the_k_space_of_several_arrays(tmp_path: Path, write: Write) -> None:
    named = read_kspace_array(write(tmp_path / "a", other=1j * np.ones((3, 4)), KSpace=kspace()))
    np.testing.assert_array_equal(named.kspace[0], kspace())
    only = read_kspace_array(write(tmp_path / "b", truth=images(), data=kspace()))
    np.testing.assert_array_equal(only.kspace[0], kspace())
    assert "the array data is taken for the k-space" in notes(only)


# ---- axes


def test_axes_that_are_said(tmp_path: Path) -> None:
    for axes in ("HWC", "WHC", "chw", "CWH"):
        stored = np.einsum(f"CHW->{axes.upper()}", kspace())
        np.save(tmp_path / "k.npy", stored)
        scan = read_kspace_array(tmp_path / "k.npy", axes=axes)
        np.testing.assert_array_equal(scan.kspace[0], kspace())
        assert "axes are taken" not in notes(scan)
    np.save(tmp_path / "k.npy", kspace()[0])
    scan = read(tmp_path / "k.npy")
    assert scan.kspace.shape == (1, 1, H, W)
    assert "axes are taken as HW" in notes(scan)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (kspace().transpose(1, 2, 0), r"shape \(24, 20, 3\) would be 24 coils of 20 x 3 samples; .*--axes HWC"),
        (kspace(2).transpose(2, 3, 1, 0), r"would be 20 coils of 3 x 2 samples; .*--axes HWCS"),
        (np.stack([kspace().real, kspace().imag], -1), r"float32 of shape .* store x\[\.\.\., 0\] \+ 1j"),
        (kspace().real, r"float32 of shape \(3, 24, 20\), expected complex numbers$"),
        (kspace()[0, 0], "expected samples on two axes"),
        (kspace()[:, :0], "expected samples"),
        (kspace()[None, None], r"expected \(H, W\), \(C, H, W\) or \(S, C, H, W\)"),
        (0 * kspace(), "zero everywhere"),
        (kspace() * np.array([1, np.nan, 1])[:, None, None], "NaN or Inf in image 0 of 1"),
        (1e200 * kspace().astype(complex), "NaN or Inf in image 0"),
        (kspace(2) * np.array([1, 0])[:, None, None, None], "no samples of slice 1"),
        (np.array([[None]]), "holds Python objects"),
    ],
)
def test_arrays_that_are_no_k_space(tmp_path: Path, array: NDArray[Any], message: str) -> None:
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "k.npy")


def test_arguments_that_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", kspace())
    for axes in ("CHH", "CH", "CHX", ""):
        with pytest.raises(ValueError, match=r"axes: .* expected a letter for each axis"):
            read_kspace_array(tmp_path / "k.npy", axes=axes)
    with pytest.raises(DataError, match=r"shape \(3, 24, 20\), but --axes .* has 4 letters"):
        read_kspace_array(tmp_path / "k.npy", axes="SCHW")
    for lengths in ((0.2,), (0.2, -0.1), (0.2, np.nan), (200.0, 200.0)):
        with pytest.raises(ValueError, match="field_of_view"):
            read_kspace_array(tmp_path / "k.npy", field_of_view=lengths)


def test_k_space_that_is_not_shifted_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.fft.ifftshift(kspace(), axes=(-2, -1)))
    assert "the largest sample is the first along both axes" in notes(read(tmp_path / "k.npy"))
    np.save(tmp_path / "k.npy", kspace())
    assert "largest sample" not in notes(read(tmp_path / "k.npy"))


# ---- what was sampled

LINES = (np.arange(H) % 2 == 0) | (np.abs(np.arange(H) - H // 2) < 4)
COLUMNS = (np.arange(W) % 2 == 0) | (np.abs(np.arange(W) - W // 2) < 4)


def test_zeros_were_not_sampled(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", kspace(2) * LINES[:, None])
    scan = read(tmp_path / "k.npy")
    np.testing.assert_array_equal(scan.mask[0, 0, :, 0], LINES)
    assert scan.mask.shape == (1, 1, H, 1)
    each = np.stack([LINES, ~LINES | (np.arange(H) == 12)])
    np.save(tmp_path / "k.npy", kspace(2) * each[:, None, :, None])
    np.testing.assert_array_equal(read(tmp_path / "k.npy").mask[:, 0, :, 0], each)
    points = np.random.default_rng(0).random((H, W)) < 0.5
    np.save(tmp_path / "k.npy", kspace() * points)
    np.testing.assert_array_equal(read(tmp_path / "k.npy").mask[0, 0], points)


@pytest.mark.parametrize("how", ["npy", "bart"])
def test_the_undersampled_axis_is_phase_encoding(tmp_path: Path, how: str) -> None:
    stored = kspace() * COLUMNS
    path = tmp_path / "k.npy"
    np.save(path, stored)
    if how == "bart":
        path = bart(tmp_path / "k", stored, "COIL PHS1 READ")
    scan = read_kspace_array(path, field_of_view=(0.24, 0.2, 0.005) if how == "npy" else (0.2, 0.24, 0.005))
    np.testing.assert_array_equal(scan.kspace[0], stored.swapaxes(-1, -2))
    np.testing.assert_array_equal(scan.mask[0, 0, :, 0], COLUMNS)
    assert scan.field_of_view == pytest.approx((0.2, 0.24, 0.005))
    assert "images are transposed against the array" in notes(scan)
    if how == "npy":
        said = read_kspace_array(path, axes="CHW")
        np.testing.assert_array_equal(said.kspace[0], stored)
        np.testing.assert_array_equal(said.mask[0, 0], np.broadcast_to(COLUMNS, (H, W)))


def test_a_partial_echo_is_no_undersampling(tmp_path: Path) -> None:
    echo = np.arange(W) >= 5
    np.save(tmp_path / "k.npy", kspace() * echo)
    scan = read(tmp_path / "k.npy")
    np.testing.assert_array_equal(scan.mask[0, 0], np.broadcast_to(echo, (H, W)))
    assert "transposed" not in notes(scan)


MASKS: dict[str, NDArray[Any]] = {
    "lines": LINES,
    "lines as numbers": LINES.astype(np.float32),
    "an image": np.broadcast_to(LINES[:, None], (H, W)),
    "an image of one column": LINES[:, None],
    "a slice, a coil": np.broadcast_to(LINES[:, None], (S, 1, H, W)),
    "slices": np.broadcast_to(LINES[:, None], (S, H, W)),
    "coils": np.broadcast_to(LINES[:, None], (S, C, H, W)),
    "one slice": np.broadcast_to(LINES[:, None], (1, 1, H, W)),
    "whole numbers": LINES.astype(np.uint8),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("write", [npy, npz, mat, matlab_hdf5, bart])
def test_a_mask_of_any_shape(tmp_path: Path, name: str, write: Write) -> None:
    np.save(tmp_path / "k.npy", kspace(S))
    given = MASKS[name]
    if write is bart:
        named = {1: "PHS1", 2: "PHS1 READ", 3: "SLICE PHS1 READ", 4: "SLICE COIL PHS1 READ"}[given.ndim]
        path = bart(tmp_path / "m", given, named)
    else:
        path = write(tmp_path / "m", **{"kspace" if write is npy else "mask": given * (1.0 if write is mat else 1)})
    scan = read_kspace_array(tmp_path / "k.npy", mask=path)
    np.testing.assert_array_equal(scan.kspace, kspace(S) * LINES[:, None])
    assert scan.mask.shape == (1, 1, H, 1)
    np.testing.assert_array_equal(scan.mask[0, 0, :, 0], LINES)
    assert f"{S * (H - LINES.sum()) * W} of {S * H * W} places that the mask leaves out have values" in notes(scan)


def test_a_mask_along_the_other_axis_of_a_square(tmp_path: Path) -> None:
    square = kspace()[:, 2:22]
    kept = np.arange(20) % 3 != 1
    np.save(tmp_path / "m.npy", kept)
    for sampled, transposed in ((square * kept[:, None], False), (square * kept, True)):
        np.save(tmp_path / "k.npy", sampled)
        scan = read_kspace_array(tmp_path / "k.npy", mask=tmp_path / "m.npy")
        np.testing.assert_array_equal(scan.mask[0, 0, :, 0], kept)
        assert ("transposed" in notes(scan)) is transposed
        assert "left out too" not in notes(scan)
    np.save(tmp_path / "k.npy", square)
    scan = read_kspace_array(tmp_path / "k.npy", mask=tmp_path / "m.npy")
    assert "the mask of 20 is taken to run along the phase encoding axis" in notes(scan)
    np.testing.assert_array_equal(scan.kspace[0], square * kept[:, None])


def test_zeros_that_a_mask_keeps_count_as_measured(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", kspace() * (np.arange(H) > 3)[:, None])
    np.save(tmp_path / "m.npy", np.ones((H, W)))
    scan = read_kspace_array(tmp_path / "k.npy", mask=tmp_path / "m.npy")
    assert scan.mask.all()
    assert f"{4 * W} of {H * W} places that the mask keeps are exactly zero" in notes(scan)


@pytest.mark.parametrize("write", ARCHIVES)
def test_a_mask_beside_the_k_space(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "k", kspace=kspace(), mask=np.broadcast_to(1.0 * LINES[:, None], (H, W)))
    assert detect(path) == "kspace-array"  # not fastMRI's, which has these names in HDF5
    scan = read(path)
    np.testing.assert_array_equal(scan.mask[0, 0, :, 0], LINES)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(H + 1), r"m\.npy: m: shape \(25,\) does not fit k-space of 24 H, 20 W"),
        (np.broadcast_to(np.arange(C)[:, None, None] > 0, (C, H, W)), "differs from coil to coil"),
        (np.full((H, W), 0.5), "other values than 0 and 1"),
        (np.full((H, W), np.nan), "other values than 0 and 1"),
        (np.zeros((H, W)), "keeps no sample that the k-space has"),
        (np.ones((H, W, 5)), "expected 0 and 1 over"),
        (np.array(["a"]), "expected 0 and 1"),
    ],
)
def test_masks_that_are_none(tmp_path: Path, mask: NDArray[Any], message: str) -> None:
    np.save(tmp_path / "k.npy", kspace())
    np.save(tmp_path / "m.npy", mask)
    with pytest.raises(DataError, match=message):
        read_kspace_array(tmp_path / "k.npy", mask=tmp_path / "m.npy")


# ---- the command line


def command(*arguments: str | Path) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["reconstruct", *map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    report: dict[str, Any] = json.loads(found.stdout)
    return report


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command_line_reconstructs_bart(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    bart(tmp_path / "k", kspace(S, coils=8) * LINES[:, None], "SLICE COIL PHS1 READ")
    out = tmp_path / "o.nii.gz"
    report = command(tmp_path / "k", "--fov", "200,240,5", "--coils", "3", "-o", out)
    written = nibabel.load(out)
    assert written.header.get_zooms() == pytest.approx((10, 10, 5))
    assert int(written.header["sform_code"]) == 0
    image = np.asarray(written.get_fdata()).T
    mask = np.broadcast_to(LINES[:, None], (1, 1, H, 1))
    direct, _ = reconstruct_mri(MRIScan(kspace(S, coils=8) * LINES[:, None], mask), coils=3)
    np.testing.assert_allclose(image, direct.abs().numpy(), rtol=1e-3, atol=1e-3)
    match = [np.corrcoef(np.flip(image, axis).ravel(), images(S).ravel())[0, 1] for axis in ((), 0, 1, 2)]
    assert match[0] > 0.9
    assert max(match[1:]) < match[0] - 0.02
    assert report["details"]["coils"].startswith("3 combinations with 9")
    assert report["details"]["noise"].startswith("k-space corners")
    assert report["details"]["maps"].startswith("espirit from")
    assert report["details"]["axes"] == "WHCS"
    assert report["details"]["sampled"] == "what is not zero in all coils"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_as_many_coils_as_there_are_change_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", kspace(coils=4))
    found = []
    for options in ((), ("--coils", "4")):
        command(tmp_path / "k.npy", "-m", "rss", *options, "-o", tmp_path / "o.npz")
        found.append(np.abs(read_result(tmp_path / "o.npz").image))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coils", "9"], "--coils: 9, expected at most the 3"),
        (["--fov", "220"], "--axes, --fov: field_of_view"),
        (["--fov", "220,wide"], "--fov: '220,wide', expected millimetres"),
        (["--axes", "XYZ"], "--axes, --fov: axes: 'XYZ'"),
        (["--mask", "none.npy"], "none.npy: no such file"),
        (["--views", "0:3"], "--views: for CT"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: list[str], message: str) -> None:
    np.save(tmp_path / "k.npy", kspace())
    found = CliRunner().invoke(app, ["reconstruct", str(tmp_path / "k.npy"), *options])
    assert isinstance(found.exception, DataError)
    assert message in str(found.exception)


def test_options_of_arrays_are_for_arrays(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["simulate", "ct", "-o", str(tmp_path / "c.h5"), "--detector", "20", "--views", "6"])
    for options, message in ((["--fov", "1,2"], "--fov: for k-space"), (["--coils", "2"], "--coils: for MRI")):
        found = CliRunner().invoke(app, ["reconstruct", str(tmp_path / "c.h5"), *options])
        assert message in str(found.exception)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bart_headers(tmp_path: Path, seed: int) -> None:
    """Read, or one DataError of one line; never more than the samples that are there."""
    path = bart(tmp_path / "k", kspace(), "COIL PHS1 READ")
    rng = np.random.default_rng(seed)
    content = np.frombuffer((tmp_path / "k.hdr").read_bytes(), np.uint8).copy()
    where = rng.integers(len(content), size=rng.integers(1, 4))
    content[where] = rng.choice([*range(256), *b"0123456789 #-\n" * 20], size=len(where))
    content[: rng.integers(1, len(content) + 1)].tofile(tmp_path / "k.hdr")
    said = str(tmp_path)
    try:
        assert read(path).kspace.size <= kspace().size
    except DataError as error:
        said = str(error)
    assert "\n" not in said
    assert said.startswith(str(tmp_path))
