"""Phase and slice oversampling: what lies beyond the asked-for field of view is cropped, what is inside stays in its
place. In both formats, by every command."""

from __future__ import annotations

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
from pyrecon.data.raw import MRIScan
from pyrecon.io import read, read_result
from pyrecon.io.ismrmrd import read_ismrmrd, write_ismrmrd
from pyrecon.models.mri import CGSense, SenseFit, ZeroFilled, reconstruct_maps, reconstruct_with_maps, sample_mri
from pyrecon.physics.mri import coil_maps, simulate
from pyrecon.physics.t1 import TIMES, scan_brains, unseen_brains
from pyrecon.testing.mrd import fastmri_file, mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

ROWS, COLUMNS, PARTITIONS = 24, 16, 8  # encoded; columns without oversampling
KEPT_ROWS, KEPT_PARTITIONS = 16, 6
PIXEL, THICKNESS = 0.01, 0.004
ROTATION = np.array((0.68, 0.11, -0.09, 0.72)) / np.linalg.norm((0.68, 0.11, -0.09, 0.72))
CENTER = np.array([0.004, 0.01, 0.045])


def axes() -> NDArray[Any]:
    """Phase, read and normal of the rotation, as rows."""
    a, b, c, d = ROTATION
    phase = np.array([1 - 2 * (c * c + d * d), 2 * (b * c + d * a), 2 * (b * d - c * a)])
    read_axis = np.array([2 * (b * c - d * a), 1 - 2 * (b * b + d * d), 2 * (c * d + b * a)])
    return np.stack([phase, read_axis, np.cross(phase, read_axis)])


def lines_of(site: NDArray[Any], outside: NDArray[Any], partitions: int) -> list[dict[str, Any]]:
    """K-space of a point, and of a brighter one in the margin that was oversampled, in the sign of Siemens scanners."""
    total = np.zeros((partitions, ROWS, 2 * COLUMNS), complex)
    counts = [np.arange(n) - n // 2 for n in total.shape]
    for place, size in ((site, 1.0), (outside, 3.0)):
        along = (place - CENTER) @ axes().T
        turns = (along[2] / (partitions * THICKNESS), along[0] / (ROWS * PIXEL), along[1] / (2 * COLUMNS * PIXEL))
        waves = [np.exp(2j * np.pi * k * turn) for k, turn in zip(counts, turns, strict=True)]
        total += size * waves[0][:, None, None] * waves[1][:, None] * waves[2]
    return [{"data": total[None, p, r].astype(np.complex64), "row": r, "partition": p}
            for p in range(partitions) for r in range(ROWS)]  # fmt: skip


def siemens(path: Path, lines: list[dict[str, Any]], partitions: int) -> Path:
    protocol = (
        f"sKSpace.lBaseResolution = {COLUMNS}\nsKSpace.lPhaseEncodingLines = {ROWS}\nsKSpace.ucTrajectory = 1\n"
        f"sKSpace.dPhaseOversamplingForDialog = {ROWS / KEPT_ROWS - 1}\n"
        f"sSliceArray.asSlice[0].dReadoutFOV = {1e3 * COLUMNS * PIXEL}\n"
        f"sSliceArray.asSlice[0].dPhaseFOV = {1e3 * KEPT_ROWS * PIXEL}\n"
    )
    slab = THICKNESS if partitions == 1 else KEPT_PARTITIONS * THICKNESS
    protocol += f"sSliceArray.asSlice[0].dThickness = {1e3 * slab}\n"
    if partitions > 1:
        factor = PARTITIONS / KEPT_PARTITIONS - 1
        protocol += f"sKSpace.lPartitions = {partitions}\nsKSpace.dSliceOversamplingForDialog = {factor}\n"
    own = [
        {"data": line["data"], "at": {"Lin": line["row"], "Par": line["partition"]}, "center_line": ROWS // 2,
         "center_partition": partitions // 2, "rotation": ROTATION, "position": tuple(1e3 * CENTER)}
        for line in lines
    ]  # fmt: skip
    path = path.with_suffix(".dat")
    path.write_bytes(twix_bytes(own, protocol))
    return path


def converted(path: Path, lines: list[dict[str, Any]], partitions: int) -> Path:
    kept = KEPT_PARTITIONS if partitions > 1 else 1
    encoding = mrd_encoding(
        (2 * COLUMNS, ROWS, partitions),
        (2e3 * COLUMNS * PIXEL, 1e3 * ROWS * PIXEL, 1e3 * partitions * THICKNESS),
        image=(
            (COLUMNS, KEPT_ROWS, kept),
            (1e3 * COLUMNS * PIXEL, 1e3 * KEPT_ROWS * PIXEL, 1e3 * kept * THICKNESS),
        ),
    )
    phase, read_axis, normal = axes()
    own = [
        {"data": line["data"], "at": {"kspace_encode_step_1": line["row"], "kspace_encode_step_2": line["partition"]},
         "phase_dir": phase, "read_dir": read_axis, "slice_dir": normal, "position": 1e3 * CENTER}
        for line in lines
    ]  # fmt: skip
    return mrd_file(path.with_suffix(".h5"), own, mrd_header(encoding, vendor="SIEMENS"))


FORMATS = pytest.mark.parametrize("write", [siemens, converted], ids=["twix", "ismrmrd"])


@FORMATS
@pytest.mark.parametrize("partitions", [1, PARTITIONS], ids=["slice", "slab"])
def test_images_are_cropped_and_stay_in_their_place(tmp_path: Path, write: Any, partitions: int) -> None:
    """The brightest point lies beyond the asked-for field of view; what is left is where it is in the patient."""
    phase, read_axis, normal = axes()
    site = CENTER + 0.063 * phase - 0.041 * read_axis + (0.009 * normal if partitions > 1 else 0)
    outside = CENTER - 0.1 * phase + 0.03 * read_axis
    if partitions > 1:
        outside = CENTER + 0.02 * read_axis - 0.0155 * normal
    file = write(tmp_path / "m", lines_of(site, outside, partitions), partitions)
    out, maps = tmp_path / "v.nii.gz", tmp_path / "maps.npz"
    found = CliRunner().invoke(app, ["reconstruct", str(file), "-m", "rss", "-o", str(out)])
    assert found.exit_code == 0, found.output
    image = nibabel.load(out)
    count = KEPT_PARTITIONS if partitions > 1 else 1
    assert image.shape[:3] == (COLUMNS, KEPT_ROWS, count)
    np.testing.assert_allclose(image.header.get_zooms()[:3], [1e3 * PIXEL, 1e3 * PIXEL, 1e3 * THICKNESS], rtol=1e-5)
    values = image.get_fdata().reshape(image.shape[:3])
    place = image.affine @ [*np.unravel_index(values.argmax(), values.shape), 1]
    off = np.abs((place[:3] * [-1e-3, -1e-3, 1e-3] - site) @ axes().T)
    assert (off <= np.array([PIXEL, PIXEL, THICKNESS]) / 2 + 1e-6).all()
    told = read_result(out).report["details"]
    assert told["phase_oversampling"] == "1.5: images cropped from 24 to 16 rows"
    assert ("slice_oversampling" in told) == (partitions > 1)
    whole = CliRunner().invoke(app, ["reconstruct", str(file), "-m", "cg-sense", "--maps-out", str(maps), "-o",
                                     str(tmp_path / "w.npz")])  # fmt: skip
    assert whole.exit_code == 0, whole.output
    assert read_result(maps).image.shape[-2:] == (KEPT_ROWS, COLUMNS)


def a_scan() -> MRIScan:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((2, 24, 20)) + 0j).to(torch.complex64)
    return simulate(images, coil_maps((24, 20), 4), torch.ones(1, 1, 24, 20, dtype=torch.bool), noise_std=0.01, seed=0)


@pytest.mark.parametrize("method", [ZeroFilled(), CGSense()])
def test_the_crop_is_that_of_the_whole_image_and_its_maps(method: Any) -> None:
    scan = a_scan()
    whole, maps, _ = reconstruct_with_maps(scan, method)
    images, own, report = reconstruct_with_maps(replace(scan, phase_oversampling=1.5), method)
    assert torch.equal(images, whole[:, 4:20])
    assert report.details["phase_oversampling"] == "1.5: images cropped from 24 to 16 rows"
    if maps is not None and own is not None:
        assert torch.equal(own, maps[..., 4:20, :])
        with pytest.raises(ValueError, match=r"expected \(S \| 1, C, H, W\) = .*, with the phase oversampling"):
            reconstruct_with_maps(replace(scan, phase_oversampling=1.5), method, maps=own)


@pytest.mark.filterwarnings("ignore:.*effective samples", "ignore:split R-hat")
def test_maps_of_t1_and_samples_are_cropped_too() -> None:
    scan = scan_brains(unseen_brains(1, 32), TIMES["five"], coils=3, centre=10)
    whole, _ = reconstruct_maps(scan, SenseFit())
    maps, _ = reconstruct_maps(replace(scan, phase_oversampling=2.0), SenseFit())
    np.testing.assert_array_equal(maps.values["T1"], whole.values["T1"][:, 8:24])
    np.testing.assert_array_equal(maps.inside, whole.inside[:, 8:24])
    few: dict[str, Any] = {"chains": 2, "burn_in": 2, "samples": 8}
    samples = [sample_mri(one, **few)[0] for one in (a_scan(), replace(a_scan(), phase_oversampling=1.5))]
    assert torch.equal(samples[1].mean, samples[0].mean[:, 4:20])
    assert torch.equal(samples[1].upper, samples[0].upper[:, 4:20])


def test_phase_oversampling_survives_a_file(tmp_path: Path) -> None:
    scan = replace(a_scan(), phase_oversampling=24 / 17, field_of_view=(0.17, 0.2, 0.005))
    write_ismrmrd(tmp_path / "s.h5", scan)
    back = read_ismrmrd(tmp_path / "s.h5")
    assert back.phase_oversampling == pytest.approx(24 / 17)
    assert back.field_of_view == pytest.approx(scan.field_of_view)


def test_fastmri_volumes_are_cropped(tmp_path: Path) -> None:
    header = mrd_header(mrd_encoding((32, 24, 1), (320.0, 240.0, 5.0), image=((16, 16, 1), (160.0, 160.0, 5.0))))
    rng = np.random.default_rng(1)
    kspace = (rng.standard_normal((2, 32, 24)) + 1j * rng.standard_normal((2, 32, 24))).astype(np.complex64)
    scan = read(fastmri_file(tmp_path / "f.h5", kspace, header=header))
    assert isinstance(scan, MRIScan)
    assert scan.phase_oversampling == pytest.approx(1.5)
    assert scan.field_of_view == pytest.approx((0.16, 0.16, 0.005))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (((32, 48, 1), (160.0, 240.0, 5.0)), "none: the header asks for 48 x 32 pixels, 24 x 16 were measured"),
        (((16, 24, 1), (160.0, 240.0, 5.0)), None),
        (((8, 8, 1), (160.0, 240.0, 5.0)), None),
    ],
)
def test_interpolation_that_the_header_asks_for_is_told(tmp_path: Path, image: Any, told: str | None) -> None:
    lines = lines_of(CENTER, CENTER, 1)
    own = [{"data": line["data"], "at": {"kspace_encode_step_1": line["row"]}} for line in lines]
    header = mrd_header(mrd_encoding((32, 24, 1), (320.0, 240.0, 5.0), image=image))
    scan = read(mrd_file(tmp_path / "m.h5", own, header))
    _, report = ZeroFilled(), reconstruct_with_maps(scan, ZeroFilled())[2]
    assert report.details.get("interpolation") == told
    assert scan.phase_oversampling == 1.0
    assert scan.field_of_view == pytest.approx((0.24, 0.16, 0.005))


def test_an_image_beyond_what_was_encoded_is_told(tmp_path: Path) -> None:
    lines = [
        {"data": line["data"], "at": {"kspace_encode_step_1": line["row"]}} for line in lines_of(CENTER, CENTER, 1)
    ]
    larger = mrd_encoding((32, 24, 1), (320.0, 240.0, 5.0), image=((16, 24, 1), (160.0, 300.0, 5.0)))
    scan = read(mrd_file(tmp_path / "m.h5", lines, mrd_header(larger)))
    assert scan.field_of_view[0] == pytest.approx(0.24)
    assert any("an image of 300 mm along y, 240 mm were encoded" in note for note in scan.metadata["notes"])
    absurd = mrd_encoding((32, 24, 1), (320.0, 240.0, 5.0), image=((16, 24, 1), (160.0, 2.0, 5.0)))
    with pytest.raises(DataError, match=r"0\.24 m for an image of 0\.002 m along y, expected lengths of"):
        read(mrd_file(tmp_path / "n.h5", lines, mrd_header(absurd)))


def test_a_siemens_factor_that_is_none_is_named(tmp_path: Path) -> None:
    protocol = "sKSpace.lBaseResolution = 4\nsKSpace.dPhaseOversamplingForDialog = -2\n"
    (tmp_path / "m.dat").write_bytes(twix_bytes([{"data": np.ones((1, 8)), "at": {"Lin": 0}}], protocol))
    with pytest.raises(DataError, match="dPhaseOversamplingForDialog: -2, expected 0 to 15"):
        read(tmp_path / "m.dat")
