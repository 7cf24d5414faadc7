"""Where images lie: points at known places in the patient, measured along oblique axes, found again by the affine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon.cli import app
from pyrecon.data.placement import Frame, Placement, Stack, placed, turned, volumes
from pyrecon.io import read, read_result
from pyrecon.testing.mrd import mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

ROWS, COLUMNS = 24, 16  # columns without oversampling
FOV_ROWS, FOV_COLUMNS, THICKNESS, GAP = 0.24, 0.12, 0.005, 0.008
SITES = np.array([[0.011, -0.019, 0.052], [-0.03, 0.02, 0.04]])  # metres: left, posterior, head
CENTER = np.array([0.004, 0.01, 0.045])

# Unit quaternions of three oblique slices, near transversal, sagittal and coronal, with the rows in some direction.
ROTATIONS = {
    "transversal": (0.68, 0.11, -0.09, 0.72),
    "sagittal": (0.55, 0.45, 0.52, -0.47),
    "coronal": (0.12, 0.70, -0.08, 0.69),
}


def axes_of(quaternion: tuple[float, ...]) -> tuple[tuple[float, ...], NDArray[Any]]:
    """The quaternion of length 1, and phase, read and normal by the rotation it stands for, as rows."""
    a, b, c, d = np.array(quaternion) / np.linalg.norm(quaternion)
    cross = np.array([[0, -d, c], [d, 0, -b], [-c, b, 0]])
    rotation = np.eye(3) + 2 * a * cross + 2 * cross @ cross
    phase, minus_read = rotation[:, 0], rotation[:, 1]
    read = np.array([2 * (b * c - d * a), 1 - 2 * (b * b + d * d), 2 * (c * d + b * a)])
    np.testing.assert_allclose(read, minus_read, atol=1e-12)
    return (a, b, c, d), np.stack([phase, read, np.cross(phase, read)])


def measured(axes: NDArray[Any], center: NDArray[Any], sites: NDArray[Any], sign: float) -> NDArray[np.complex64]:
    """K-space ``(1, H, 2 W)`` of points, ``exp(sign 2 pi i k r)`` with r along the axes from the centre."""
    total = np.zeros((ROWS, 2 * COLUMNS), complex)
    rows, columns = np.arange(ROWS) - ROWS // 2, np.arange(2 * COLUMNS) - COLUMNS
    for site in sites:
        along = (site - center) @ axes.T
        phase = np.exp(sign * 2j * np.pi * rows * along[0] / FOV_ROWS)
        read = np.exp(sign * 2j * np.pi * columns * along[1] / (2 * FOV_COLUMNS))
        total += np.outer(phase, read)
    return total[None].astype(np.complex64)


def siemens(path: Path, quaternion: tuple[float, ...], slices: list[NDArray[Any]], data: list[NDArray[Any]]) -> Path:
    protocol = (
        f"sKSpace.lBaseResolution = {COLUMNS}\nsKSpace.lPhaseEncodingLines = {ROWS}\nsKSpace.ucTrajectory = 1\n"
        f"sSliceArray.asSlice[0].dReadoutFOV = {1e3 * FOV_COLUMNS}\n"
        f"sSliceArray.asSlice[0].dPhaseFOV = {1e3 * FOV_ROWS}\n"
        f"sSliceArray.asSlice[0].dThickness = {1e3 * THICKNESS}\n"
    )
    lines = [
        {"data": k[:, row], "at": {"Lin": row, "Sli": s}, "center_line": ROWS // 2, "rotation": quaternion,
         "position": tuple(1e3 * slices[s])}
        for s, k in enumerate(data) for row in range(ROWS)
    ]  # fmt: skip
    path.write_bytes(twix_bytes(lines, protocol))
    return path


def converted(
    path: Path, axes: NDArray[Any], slices: list[NDArray[Any]], data: list[NDArray[Any]], vendor: str
) -> Path:
    header = mrd_header(
        mrd_encoding((2 * COLUMNS, ROWS, 1), (2e3 * FOV_COLUMNS, 1e3 * FOV_ROWS, 1e3 * THICKNESS)), vendor=vendor
    )
    lines = [
        {"data": k[:, row], "at": {"kspace_encode_step_1": row, "slice": s}, "phase_dir": axes[0], "read_dir": axes[1],
         "slice_dir": axes[2], "position": 1e3 * slices[s]}
        for s, k in enumerate(data) for row in range(ROWS)
    ]  # fmt: skip
    return mrd_file(path, lines, header)


def run(file: Path, out: Path) -> Path:
    found = CliRunner().invoke(app, ["reconstruct", str(file), "-m", "rss", "-o", str(out)])
    assert found.exit_code == 0, found.output
    return out


def peak(image: Any) -> NDArray[Any]:
    """Where the brightest voxel is by the file's affine: left, posterior, head in metres."""
    values = np.asarray(image.dataobj)
    place = image.affine @ [*np.unravel_index(values.argmax(), values.shape)[:3], 1]
    return place[:3] * [-1e-3, -1e-3, 1e-3]


@pytest.mark.parametrize("name", ROTATIONS)
def test_points_are_found_where_they_are(tmp_path: Path, name: str) -> None:
    """Slices out of order with a gap; the middle one goes through the site. Three writers, one place, one image."""
    quaternion, axes = axes_of(ROTATIONS[name])
    site = SITES[0]
    middle = CENTER + axes[2] * ((site - CENTER) @ axes[2])
    slices = [middle + step * GAP * axes[2] for step in (0, 2, -1, 1)]
    images = {}
    for kind, sign in (("twix", 1.0), ("siemens", 1.0), ("other", -1.0)):
        data = [(1.0 if s == 0 else 0.3) * measured(axes, slices[s], SITES[:1], sign) for s in range(4)]
        if kind == "twix":
            file = siemens(tmp_path / "m.dat", quaternion, slices, data)
        else:
            file = converted(tmp_path / f"{kind}.h5", axes, slices, data, "SIEMENS" if kind == "siemens" else "OSI2")
        image = nibabel.load(run(file, tmp_path / f"{kind}.nii.gz"))
        assert image.shape == (COLUMNS, ROWS, 4)
        assert int(image.header["sform_code"]) == 1
        zooms = [1e3 * FOV_COLUMNS / COLUMNS, 1e3 * FOV_ROWS / ROWS, 1e3 * GAP]
        np.testing.assert_allclose(image.header.get_zooms(), zooms, rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), zooms, rtol=1e-4)
        off = np.abs((peak(image) - site) @ axes.T)
        assert (off <= [0.5 * FOV_ROWS / ROWS + 1e-6, 0.5 * FOV_COLUMNS / COLUMNS + 1e-6, 1e-6]).all()
        images[kind] = image
        # Shown with row 0 on top an image has anterior or head on top, and the patient's right or anterior on the left.
        letters = nibabel.aff2axcodes(image.affine)
        assert letters[1] in "PI"
        assert letters[0] in "LP"
    for kind in ("siemens", "other"):
        np.testing.assert_allclose(images[kind].affine, images["twix"].affine, atol=2e-3)
        np.testing.assert_allclose(images[kind].get_fdata(), images["twix"].get_fdata(), rtol=1e-4, atol=1e-3)


def test_a_slab_of_partitions_is_a_volume_in_its_place(tmp_path: Path) -> None:
    _, axes = axes_of(ROTATIONS["transversal"])
    count, site = 6, SITES[0]
    center = site - 0.006 * axes[2]  # beside the middle, within the slab
    extent = (2e3 * FOV_COLUMNS, 1e3 * FOV_ROWS, 1e3 * count * THICKNESS)
    header = mrd_header(mrd_encoding((2 * COLUMNS, ROWS, count), extent), vendor="OSI2")
    along = (site - center) @ axes[2]
    plane = measured(axes, center, SITES[:1], -1.0)
    lines = [
        {"data": plane[:, row] * np.exp(-2j * np.pi * (p - count // 2) * along / (count * THICKNESS)),
         "at": {"kspace_encode_step_1": row, "kspace_encode_step_2": p}, "phase_dir": axes[0], "read_dir": axes[1],
         "slice_dir": axes[2], "position": 1e3 * center}
        for p in range(count) for row in range(ROWS)
    ]  # fmt: skip
    image = nibabel.load(run(mrd_file(tmp_path / "m.h5", lines, header), tmp_path / "v.nii.gz"))
    assert image.shape == (COLUMNS, ROWS, count)
    np.testing.assert_allclose(image.header.get_zooms()[2], 1e3 * THICKNESS, rtol=1e-4)
    off = np.abs((peak(image) - site) @ axes.T)
    assert (off <= np.array([FOV_ROWS / ROWS, FOV_COLUMNS / COLUMNS, THICKNESS]) / 2 + 1e-6).all()


def test_times_follow_on_the_fourth_axis(tmp_path: Path) -> None:
    _, axes = axes_of(ROTATIONS["coronal"])
    slices = [CENTER + step * GAP * axes[2] for step in range(3)]
    lines = [
        {"data": (1 + t) * measured(axes, slices[s], SITES, -1.0)[:, row], "phase_dir": axes[0], "read_dir": axes[1],
         "at": {"kspace_encode_step_1": row, "slice": s, "repetition": t}, "slice_dir": axes[2],
         "position": 1e3 * slices[s]}
        for s in range(3) for t in range(2) for row in range(ROWS)
    ]  # fmt: skip
    header = mrd_header(mrd_encoding((2 * COLUMNS, ROWS, 1), (240.0, 240.0, 5.0)), vendor="OSI2")
    out = run(mrd_file(tmp_path / "m.h5", lines, header), tmp_path / "v.nii.gz")
    image = nibabel.load(out)
    assert image.shape == (COLUMNS, ROWS, 3, 2)
    values = image.get_fdata()
    np.testing.assert_allclose(values[..., 1], 2 * values[..., 0], rtol=1e-3)
    back = read_result(out)
    assert back.labels == ("repetition 0", "repetition 1")
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-4)


@pytest.mark.parametrize("axes", [np.zeros((3, 3)), np.eye(3)[[1, 0, 2]]], ids=["zero", "the scanner's own"])
def test_a_file_that_says_nothing_is_nowhere(tmp_path: Path, axes: NDArray[Any]) -> None:
    """No directions, or what writers put who know none: code 0, images as they are, thickness kept."""
    header = mrd_header(mrd_encoding((2 * COLUMNS, ROWS, 1), (240.0, 240.0, 5.0)))
    data = measured(np.eye(3)[[1, 0, 2]], np.zeros(3), SITES, -1.0)
    lines = [
        {"data": data[:, row], "at": {"kspace_encode_step_1": row, "slice": s}, "phase_dir": axes[0],
         "read_dir": axes[1], "slice_dir": axes[2]}
        for s in range(2) for row in range(ROWS)
    ]  # fmt: skip
    file = mrd_file(tmp_path / "m.h5", lines, header)
    assert read(file).placement is None
    np.testing.assert_array_equal(read(file).kspace[0], data)
    out = run(file, tmp_path / "v.nii.gz")
    image = nibabel.load(out)
    assert image.shape == (COLUMNS, ROWS, 2)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (0, 0)
    assert image.header.get_zooms() == pytest.approx((7.5, 10.0, 5.0))
    assert "does not say" in read_result(out).report["details"]["geometry"]


def test_without_a_vendor_directions_are_those_of_converted_files(tmp_path: Path) -> None:
    _, axes = axes_of(ROTATIONS["sagittal"])
    data = [measured(axes, CENTER, SITES, 1.0)]
    named = read(converted(tmp_path / "a.h5", axes, [CENTER], data, "Siemens"))
    unnamed = read(converted(tmp_path / "b.h5", axes, [CENTER], data, ""))
    np.testing.assert_array_equal(unnamed.kspace, named.kspace)
    assert any("names no vendor" in note for note in unnamed.metadata["notes"])


# ---- what is no stack


def a_placement(normals: NDArray[Any], heights: NDArray[Any]) -> Placement:
    count = len(heights)
    rows, columns = np.tile([0.0, 1.0, 0.0], (count, 1)), np.tile([1.0, 0.0, 0.0], (count, 1))
    return Placement(rows, columns, normals, heights[:, None] * normals)


@pytest.mark.parametrize("heights", [[0.0, 0.01, 0.03], [0.01, 0.01, 0.01]], ids=["uneven", "one place"])
def test_slices_that_are_no_stack_are_volumes_of_their_own(heights: list[float]) -> None:
    placement = a_placement(np.tile([0.0, 0.0, 1.0], (3, 1)), np.array(heights))
    found = volumes(placement, Stack(np.zeros(3, int), np.arange(3)), (8, 8), (0.01, 0.01, 0.005))
    assert found.affine is None
    assert found.order.tolist() == [[0], [1], [2]]
    assert "uneven" in found.note


def test_slices_of_several_orientations_are_nowhere() -> None:
    """A localiser."""
    axes = np.eye(3)
    frames = [Frame(tuple(axes[i]), tuple(axes[(i + 1) % 3]), tuple(axes[(i + 2) % 3]), (0, 0, 0)) for i in range(3)]
    _, placement = placed(frames, np.zeros(3), against=True)
    found = volumes(placement, Stack(np.zeros(3, int), np.arange(3)), (8, 8), (0.01, 0.01, 0.005))
    assert found.affine is None
    assert "several orientations" in found.note


def test_a_time_that_lacks_a_slice_is_told() -> None:
    stack = Stack(np.array([0, 0, 1]), np.array([0, 1, 0]), ("repetition 0", "repetition 1"))
    found = volumes(None, stack, (8, 8), (0.01, 0.01, 0.005))
    assert found.order.shape == (3, 1)
    assert "not all slices are there at all times" in found.note


@pytest.mark.parametrize("shape", [(5, 6), (6, 5), (1, 4)])
def test_turning_k_space_turns_the_image(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((3, 1, *shape)) + 1j * rng.standard_normal((3, 1, *shape))

    def transform(x: NDArray[Any], way: Any) -> NDArray[Any]:
        return np.fft.fftshift(way(np.fft.ifftshift(x, axes=(-2, -1))), axes=(-2, -1))

    turn = np.array([[False, False], [True, False], [True, True]])
    found = transform(turned(transform(image, np.fft.fft2), turn), np.fft.ifft2)
    for i, which in enumerate(turn):
        expected = image[i]
        for axis, flip in zip((-2, -1), which, strict=True):
            n = expected.shape[axis]
            expected = np.roll(np.flip(expected, axis), 1 - n % 2, axis) if flip and n > 1 else expected
        np.testing.assert_allclose(found[i], expected, atol=1e-12)


def test_a_mask_that_all_share_is_turned_for_each() -> None:
    mask = np.zeros((1, 1, 4, 1), bool)
    mask[:, :, 3] = True
    both = turned(mask, np.array([[False, False], [True, False]]))
    assert both[:, 0, :, 0].tolist() == [[False, False, False, True], [False, True, False, False]]
