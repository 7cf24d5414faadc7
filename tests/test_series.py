"""Series of images as scanners and others write them: each with its settings, in its place, or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrecon._errors import DataError
from pyrecon.io import Result, write_result
from pyrecon.io.dicom import read_dicom
from pyrecon.io.series import read_map, read_series

pydicom = pytest.importorskip("pydicom")
nib = pytest.importorskip("nibabel")

# An oblique slice: columns grow along _COLUMNS, rows along _ROWS (left, posterior, superior).
_COLUMNS = np.array([math.cos(0.3), math.sin(0.3), 0.0])
_ROWS = np.array([-math.sin(0.3) * math.cos(0.2), math.cos(0.3) * math.cos(0.2), math.sin(0.2)])
_NORMAL = np.cross(_COLUMNS, _ROWS)


def dataset(pixels: np.ndarray[Any, Any], position: np.ndarray[Any, Any], **values: Any) -> Any:
    """A classic MR image of 16 bits."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality = "MR"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    data.PixelSpacing, data.SliceThickness = [1.5, 1.25], 4
    data.ImageOrientationPatient = [float(f"{v:.9f}") for v in (*_COLUMNS, *_ROWS)]
    data.ImagePositionPatient = [float(f"{v:.6f}") for v in position]
    for name, value in values.items():
        setattr(data, name, value)
    return data


def pixels(time: float, place: int) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[:5, :7]
    return (1000 * place + time + 10 * rows + columns).astype(np.uint16)


def place(number: int) -> np.ndarray[Any, Any]:
    return np.array([-30.0, 12.0, 5.0]) + 6 * number * _NORMAL


def write_classic(folder: Path, times: tuple[float, ...] = (400, 50, 1600), slices: int = 3, **values: Any) -> None:
    folder.mkdir(exist_ok=True)
    for i, time in enumerate(times):
        for s in reversed(range(slices)):
            own = {name: value[i] if isinstance(value, tuple) else value for name, value in values.items()}
            data = dataset(pixels(time, s), place(s), InversionTime=time, **own)
            data.save_as(folder / f"{7 * i + s:03}", enforce_file_format=True)


def test_a_folder_is_sorted_by_place_and_time(tmp_path: Path) -> None:
    write_classic(tmp_path / "a", RepetitionTime=(1000, 1000, 2460), EchoTime=12, FlipAngle=90)
    (tmp_path / "a" / "DICOMDIR").write_bytes(b"x" * 200)
    (tmp_path / "a" / "notes.txt").write_text("nothing")
    series = read_series(tmp_path / "a")
    assert series.images.shape == (3, 3, 5, 7)
    for t, time in enumerate((50, 400, 1600)):
        for s in range(3):
            np.testing.assert_array_equal(series.images[t, s], pixels(time, s))
    np.testing.assert_allclose(series.settings["inversion time"], [0.05, 0.4, 1.6])
    np.testing.assert_allclose(series.settings["repetition time"], [1.0, 1.0, 2.46])
    np.testing.assert_allclose(series.settings["flip angle"], math.pi / 2)
    assert series.grid is not None
    np.testing.assert_allclose(series.grid.spacing, (6e-3, 1.5e-3, 1.25e-3))
    assert "notes.txt" in series.metadata["left out"]


def test_voxels_are_where_dicom_says(tmp_path: Path) -> None:
    """By the definition of the standard (C.7.6.2.1.1), then right and anterior in place of left and posterior."""
    write_classic(tmp_path / "a")
    series = read_series(tmp_path / "a")
    assert series.affine is not None
    for s, row, column in ((0, 0, 0), (2, 0, 0), (1, 4, 0), (0, 0, 6), (2, 3, 5)):
        wanted = place(s) + 1.25 * column * _COLUMNS + 1.5 * row * _ROWS
        found = series.affine @ [column, row, s, 1]
        np.testing.assert_allclose(found[:3], wanted * [-1, -1, 1], atol=1e-4)


def test_values_are_those_that_the_scanner_means(tmp_path: Path) -> None:
    """Rescaled; of Philips by its own slope, which undoes a rescale that differs from image to image."""
    write_classic(tmp_path / "a", RescaleSlope=(2.0, 2.0, 4.0), RescaleIntercept=(1.0, 0.0, 0.0))
    images = read_series(tmp_path / "a").images
    np.testing.assert_allclose(images[1, 0], 2.0 * pixels(400, 0) + 1)
    np.testing.assert_allclose(images[2, 0], 4.0 * pixels(1600, 0))
    (tmp_path / "b").mkdir()
    for i, (time, slope, own) in enumerate(((10, 2.0, 0.5), (20, 4.0, 0.25))):
        data = dataset(pixels(time, 0), place(0), EchoTime=time, RescaleSlope=slope, RescaleIntercept=0)
        data.Manufacturer = "Philips Medical Systems"
        data.add_new((0x2005, 0x100E), "FL", own)
        data.save_as(tmp_path / "b" / str(i), enforce_file_format=True)
    images = read_series(tmp_path / "b").images
    np.testing.assert_allclose(images[0, 0], pixels(10, 0) / 0.5)
    np.testing.assert_allclose(images[1, 0], pixels(20, 0) / 0.25)


def enhanced(path: Path, times: tuple[float, ...] = (30, 10), slices: int = 2) -> None:
    from pydicom.dataset import Dataset

    def inside(**values: Any) -> Any:
        found = Dataset()
        for name, value in values.items():
            setattr(found, name, value)
        return [found]

    order = [(time, s) for s in range(slices) for time in times]
    data = dataset(np.stack([pixels(time, s) for time, s in order]), place(0))
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness"):
        delattr(data, name)
    data.NumberOfFrames = len(order)
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = inside(PixelSpacing=[1.5, 1.25], SliceThickness=4)
    directions = [float(f"{v:.9f}") for v in (*_COLUMNS, *_ROWS)]
    shared.PlaneOrientationSequence = inside(ImageOrientationPatient=directions)
    shared.MRTimingAndRelatedParametersSequence = inside(RepetitionTime=2300.0, FlipAngle=90.0)
    shared.PixelValueTransformationSequence = inside(RescaleSlope=3, RescaleIntercept=0)
    data.SharedFunctionalGroupsSequence = [shared]
    for time, s in order:
        frame = Dataset()
        frame.PlanePositionSequence = inside(ImagePositionPatient=[float(f"{v:.6f}") for v in place(s)])
        frame.MREchoSequence = inside(EffectiveEchoTime=float(time))
        frame.MRModifierSequence = inside(InversionTimes=[100.0 + time])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.save_as(path, enforce_file_format=True)


def test_enhanced_images_have_settings_of_each_frame(tmp_path: Path) -> None:
    enhanced(tmp_path / "a.dcm")
    write_classic(tmp_path / "b", slices=2)
    series = read_series(tmp_path / "a.dcm")
    assert series.images.shape == (2, 2, 5, 7)
    for t, time in enumerate((10, 30)):
        for s in range(2):
            np.testing.assert_array_equal(series.images[t, s], 3.0 * pixels(time, s))
    np.testing.assert_allclose(series.settings["echo time"], [0.01, 0.03])
    np.testing.assert_allclose(series.settings["inversion time"], [0.11, 0.13])
    np.testing.assert_allclose(series.settings["repetition time"], 2.3)
    np.testing.assert_allclose(series.affine, read_series(tmp_path / "b").affine)  # type: ignore[arg-type]


def test_what_is_mixed_or_missing_is_said(tmp_path: Path) -> None:
    def folder(name: str, **values: Any) -> Path:
        write_classic(tmp_path / name, **values)
        return tmp_path / name

    missing = folder("missing")
    (missing / "001").unlink()
    with pytest.raises(DataError, match="no image with inversion time 400 ms at slice 1 of 3"):
        read_dicom(missing)
    twice = folder("twice")
    dataset(pixels(50, 0), place(0), InversionTime=50, SeriesDescription="again").save_as(
        twice / "x", enforce_file_format=True
    )
    with pytest.raises(DataError, match=r"2 images at slice 0 with inversion time 50 ms .*again"):
        read_dicom(twice)
    turned = folder("turned")
    other = dataset(pixels(50, 0), place(0), InversionTime=50, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    other.save_as(turned / "x", enforce_file_format=True)
    with pytest.raises(DataError, match="orientations that differ"):
        read_dicom(turned)
    shifted = folder("shifted")
    dataset(pixels(70, 0), place(0) + 2 * _ROWS, InversionTime=70).save_as(shifted / "x", enforce_file_format=True)
    with pytest.raises(DataError, match="shifted in their plane"):
        read_dicom(shifted)
    larger = folder("larger")
    dataset(np.ones((6, 7)), place(0), InversionTime=50).save_as(larger / "x", enforce_file_format=True)
    with pytest.raises(DataError, match="6 x 7 and 5 x 7 pixels"):
        read_dicom(larger)
    uneven = folder("uneven")
    for time in (400, 50, 1600):
        dataset(pixels(time, 3), place(4), InversionTime=time).save_as(uneven / f"x{time}", enforce_file_format=True)
    with pytest.raises(DataError, match="6 to 12 mm apart"):
        read_dicom(uneven)
    both = folder("both", ImageType=["ORIGINAL", "PRIMARY", "M", "ND"])
    for time in (400, 50, 1600):
        for s in range(3):
            dataset(pixels(time, s), place(s), InversionTime=time, ImageType=["ORIGINAL", "PRIMARY", "P"]).save_as(
                both / f"p{time}{s}", enforce_file_format=True
            )
    with pytest.raises(DataError, match="9 magnitude, 9 phase images"):
        read_dicom(both)
    assert read_dicom(both, component="phase").images.shape == (3, 3, 5, 7)
    with pytest.raises(DataError, match="no real images"):
        read_dicom(both, component="real")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match="is no DICOM file"):
        read_series(tmp_path / "text")
    write_classic(tmp_path / "a", slices=1)
    whole = (tmp_path / "a" / "000").read_bytes()
    (tmp_path / "a" / "000").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="is no readable DICOM image"):
        read_series(tmp_path / "a")
    (tmp_path / "a" / "000").write_bytes(whole)
    for attribute, value in (
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("PixelSpacing", [0, 1]),
        ("RescaleSlope", 0),
        ("Modality", "CT"),
    ):
        dataset(pixels(7, 0), place(0), InversionTime=7, **{attribute: value}).save_as(
            tmp_path / "a" / "x", enforce_file_format=True
        )
        with pytest.raises(DataError, match=attribute if attribute != "Modality" else "modality CT"):
            read_series(tmp_path / "a")


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """2,000 of them: one DataError at most, whatever is damaged."""
    enhanced(tmp_path / "a.dcm")
    write_classic(tmp_path / "b", times=(50,), slices=1)
    rng = np.random.default_rng(0)
    for source in (tmp_path / "a.dcm", tmp_path / "b" / "000"):
        whole = np.frombuffer(source.read_bytes(), np.uint8)
        for _ in range(1000):
            part = whole.copy()
            for _ in range(int(rng.integers(1, 6))):
                part[rng.integers(0, len(part))] = rng.integers(0, 256)
            if rng.random() < 0.2:
                part = part[: rng.integers(1, len(part))]
            path = tmp_path / "mutated"
            path.write_bytes(part.tobytes())
            said = ""
            try:
                read_dicom(path)
            except DataError as error:
                said = str(error)
            assert "\n" not in said


def test_images_of_nothing_are_refused(tmp_path: Path) -> None:
    write_result(tmp_path / "a.npz", Result(np.full((3, 2, 4, 5), np.nan, np.float32)))
    with pytest.raises(DataError, match=r"a\.npz: the images hold no finite number"):
        read_series(tmp_path / "a.npz")


def test_nifti_with_sidecars(tmp_path: Path) -> None:
    """One image a file, as BIDS has them, and one with all of them: the same series."""
    affine = np.array([[-1.2, 0.1, 0, 30], [0.1, 1.2, 0, -20], [0, 0, 5, 7], [0, 0, 0, 1]], float)
    image = np.random.default_rng(0).random((3, 2, 4, 6)).astype(np.float32)  # T, S, H, W
    for i, angle in enumerate((3, 20, 8)):
        volume = nib.Nifti1Image(image[i].transpose(2, 1, 0), affine)
        volume.set_sform(affine, code=1)
        nib.save(volume, tmp_path / f"sub-01_flip-{i}_VFA.nii.gz")
        (tmp_path / f"sub-01_flip-{i}_VFA.json").write_text(
            json.dumps({"FlipAngle": angle, "RepetitionTimeExcitation": 0.015, "EchoTime": 0.002, "Note": "x"})
        )
    series = read_series(tmp_path)
    np.testing.assert_array_equal(series.images, image)
    np.testing.assert_allclose(series.affine, affine, atol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.degrees(series.settings["flip angle"]), [3, 20, 8])
    np.testing.assert_allclose(series.settings["repetition time"], 0.015)
    (tmp_path / "all").mkdir()
    volume = nib.Nifti1Image(image.transpose(3, 2, 1, 0), affine)
    volume.set_sform(affine, code=1)
    nib.save(volume, tmp_path / "all" / "a.nii")
    said = {"FlipAngle": [3, 20, 8], "RepetitionTimeExcitation": 0.015}
    (tmp_path / "all" / "a.json").write_text(json.dumps(said))
    whole = read_series(tmp_path / "all" / "a.nii")
    np.testing.assert_array_equal(whole.images, image)
    np.testing.assert_allclose(whole.settings["flip angle"], series.settings["flip angle"])
    for text, message in (
        ("{", "no sidecar in JSON"),
        (json.dumps({"FlipAngle": [3, 20]}), "FlipAngle has 2 values, a.nii has 3 images"),
        (json.dumps({"FlipAngle": "many"}), "FlipAngle is many, expected numbers"),
        (json.dumps({"FlipAngle": 10**400}), "FlipAngle is 1000"),
    ):
        (tmp_path / "all" / "a.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_series(tmp_path / "all" / "a.nii")


def test_maps_lie_where_the_images_do(tmp_path: Path) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    write_result(tmp_path / "a.nii", Result(np.ones((3, 2, 4, 6), np.float32), affine=affine))
    series = read_series(tmp_path / "a.nii")
    write_result(tmp_path / "mask.nii", Result(np.ones((2, 4, 6), np.uint8), affine=affine))
    assert read_map(tmp_path / "mask.nii", series, "mask").shape == (2, 4, 6)
    write_result(tmp_path / "moved.nii", Result(np.ones((2, 4, 6), np.uint8), affine=np.diag([1.0, 2.0, 4.0, 1.0])))
    with pytest.raises(DataError, match="lies elsewhere than the images"):
        read_map(tmp_path / "moved.nii", series, "mask")
    write_result(tmp_path / "small.nii", Result(np.ones((2, 4, 5), np.uint8), affine=affine))
    with pytest.raises(DataError, match=r"mask .*: 2 x 4 x 5 voxels, the images have 2 x 4 x 6"):
        read_map(tmp_path / "small.nii", series, "mask")
    with pytest.raises(DataError, match="lies elsewhere than a"):
        read_series([tmp_path / "a.nii", tmp_path / "moved.nii"])
