"""Images on disk: they come back with their story, in place, whole; what is no image is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrecon._errors import DataError
from pyrecon.data.raw import Grid
from pyrecon.io import Result, detect, read, read_result, results, write_result
from pyrecon.io._files import check_finite, written_whole
from pyrecon.report import Report

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = {".nii": "nifti", ".nii.gz": "nifti", ".npz": "npz", ".h5": "pyrecon-image", ".png": "png"}


def a_result(image: np.ndarray[Any, Any], grid: Grid | None = None, **more: Any) -> Result:
    return Result(image, grid, method="TV-ADMM", parameters={"weight": 0.1, "iterations": 50}, **more)


@FEW
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(1, 5), max_size=2),
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.sampled_from([np.float32, np.float64, np.complex64, np.int16, np.uint8]),
)
def test_an_image_comes_back(tmp_path: Path, kind: str, lead: list[int], shape: list[int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = 100 * rng.random((*lead, *shape)) + (100j * rng.random((*lead, *shape)) if dtype is np.complex64 else 0)
    image = image.astype(dtype)
    grid = Grid(
        tuple(shape), tuple(1e-3 * (i + 1) for i in range(len(shape))), tuple(0.01 * i for i in range(len(shape)))
    )
    labels = tuple(f"frame {i}" for i in range(int(np.prod(lead))))
    path = tmp_path / f"image{kind}"
    write_result(path, a_result(image, grid, labels=labels))
    assert detect(path) == KINDS[kind]
    back = read(path)
    assert isinstance(back, Result)
    assert back.grid == grid
    assert back.method == "TV-ADMM"
    assert back.parameters == {"weight": 0.1, "iterations": 50}
    assert back.labels == labels
    assert set(back.versions) == {"pyrecon", "python", "numpy"}
    if kind != ".png":
        keeps_complex = kind in (".npz", ".h5")
        np.testing.assert_array_equal(back.image, image if keeps_complex else np.abs(image))


@pytest.mark.parametrize("kind", results.FORMATS)
def test_a_report_goes_along(tmp_path: Path, kind: str) -> None:
    report = Report(method="CG-SENSE", samples=3, status={"CONVERGED": 3}, residual=[0.1, 0.2, float("inf")] * 5000)
    write_result(tmp_path / f"a{kind}", a_result(np.ones((4, 5)), report=report))
    back = read_result(tmp_path / f"a{kind}").report
    assert back["status"] == {"CONVERGED": 3}
    assert back["residual"][:3] == [0.1, 0.2, None]


@pytest.mark.parametrize("kind", [".nii.gz", ".npz", ".h5", ".png"])
def test_an_affine_comes_back(tmp_path: Path, kind: str) -> None:
    """Oblique and mirrored; three axes are of space then."""
    affine = np.array([[-1.2, 0.1, 0.4, 30], [0.1, 1.2, 0.3, -20], [0, 0.2, 5, 7], [0, 0, 0, 1]])
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    path = tmp_path / f"a{kind}"
    write_result(path, a_result(image, labels=("one", "two"), affine=affine))
    back = read_result(path)
    np.testing.assert_array_equal(back.affine, affine)  # type: ignore[arg-type]
    if kind == ".nii.gz":
        nib = pytest.importorskip("nibabel")
        stored = nib.load(path)
        assert stored.shape == (5, 4, 3, 2)
        np.testing.assert_allclose(stored.affine, affine, atol=1e-6)
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine), path)  # without the story
        foreign = read_result(path)
        np.testing.assert_allclose(foreign.affine, affine, atol=1e-6)  # type: ignore[arg-type]
        np.testing.assert_array_equal(foreign.image, image)


def test_an_affine_that_places_nothing_is_refused(tmp_path: Path) -> None:
    for affine in (np.zeros((4, 4)), np.eye(3), np.diag([1, 1, np.nan, 1]), np.diag([1, 1, 1, 2])):
        with pytest.raises(ValueError, match="affine: "):
            write_result(tmp_path / "a.npz", a_result(np.ones((4, 5)), affine=affine))
    path = tmp_path / "a.npz"
    story = np.frombuffer(json.dumps({"affine": [[1]]}).encode(), np.uint8)
    np.savez(path, image=np.ones((4, 5)), pyrecon=story)
    with pytest.raises(DataError, match="affine in the image's description"):
        read_result(path)


def test_nifti_is_in_its_place(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)  # frames, z, y, x
    grid = Grid((3, 4, 5), (3e-3, 2e-3, 1e-3), (0.03, 0.02, 0.01))
    write_result(tmp_path / "a.nii.gz", a_result(image, grid))
    stored = nib.load(tmp_path / "a.nii.gz")
    assert stored.shape == (5, 4, 3, 2)
    assert stored.header.get_zooms()[:3] == (1, 2, 3)
    assert stored.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(stored.get_fdata()[1, 2, 0, 1], image[1, 0, 2, 1])
    # The middle voxel lies at the centre.
    np.testing.assert_allclose(stored.affine @ [2, 1.5, 1, 1], [10, 20, 30, 1])


def test_a_foreign_nifti(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    data = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    affine = np.diag([-2.0, 2.0, 4.0, 1.0])  # stored from right to left
    affine[:3, 3] = 4, 0, 0
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
    back = read_result(tmp_path / "a.nii")
    np.testing.assert_array_equal(back.image, data.T)
    assert back.grid == Grid((3, 4, 5), (4e-3, 2e-3, 2e-3), (4e-3, 3e-3, 0.0))
    assert back.method == ""
    nib.save(nib.Nifti2Image(data, affine), tmp_path / "b.nii")
    np.testing.assert_array_equal(read_result(tmp_path / "b.nii").image, data.T)


def test_png_windows_and_tiles(tmp_path: Path) -> None:
    image = np.array([[[0.0, 1.0], [2.0, 4.0]], [[1.0, 1.0], [1.0, 8.0]]])
    write_result(tmp_path / "a.png", a_result(image), window=(0, 4))
    shown = read_result(tmp_path / "a.png").image
    # Two by two pixels each, side by side with a line between them; 8 is cut at white.
    assert shown.tolist() == [[0, 64, 0, 64, 64], [128, 255, 0, 64, 255]]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 7.0, np.nan])
def test_png_of_a_constant(tmp_path: Path, value: float) -> None:
    write_result(tmp_path / "a.png", a_result(np.full((3, 4), value)))
    shown = read_result(tmp_path / "a.png").image
    assert len(np.unique(shown)) == 1


@pytest.mark.parametrize(
    ("name", "result", "options", "message"),
    [
        ("a.tiff", a_result(np.ones((3, 4))), {}, "names no image format, expected one of .nii"),
        (".png", a_result(np.ones((3, 4))), {}, "names no image format"),
        ("a.npz", a_result(np.ones(4)), {}, r"image: shape \(4,\), expected \(..., H, W\)"),
        ("a.npz", a_result(np.ones((3, 4)), Grid((4, 3), (1, 1), (0, 0))), {}, r"expected \(..., 4, 3\)"),
        ("a.npz", a_result(np.array([["a"]])), {}, "image: dtype <U1"),
        ("a.npz", a_result(np.ones((2, 3, 4)), labels=("one",)), {}, "labels: got 1, expected one for each of 2"),
        ("a.npz", a_result(np.ones((3, 4))), {"window": (0, 1)}, "window"),
        ("a.png", a_result(np.ones((3, 4))), {"window": (1, 1)}, "black < white"),
        ("a.nii", a_result(np.ones((1,) * 5 + (3, 4))), {}, "NIfTI holds three spatial axes"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, name: str, result: Result, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_result(tmp_path / name, result, **options)
    assert list(tmp_path.iterdir()) == []


# ---- whole or not at all


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")

    def fail() -> None:
        with written_whole(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real.h5").write_bytes(b"old")
    (tmp_path / "real.h5").chmod(0o640)
    (tmp_path / "link.h5").symlink_to(tmp_path / "real.h5")
    write_result(tmp_path / "link.h5", a_result(np.ones((3, 4))))
    assert (tmp_path / "link.h5").is_symlink()
    assert (tmp_path / "real.h5").stat().st_mode & 0o777 == 0o640
    assert read_result(tmp_path / "real.h5").image.shape == (3, 4)


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_result(tmp_path / "a.npz", a_result(np.ones((3, 4))))
    finally:
        os.umask(old)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o640


def test_places_that_take_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "device.npz").symlink_to("/dev/null")
    for name, message in (
        ("folder.npz", "is a directory"),
        ("device.npz", "/dev/null: is no file"),
        ("nowhere/a.npz", "cannot be written"),
    ):
        with pytest.raises(DataError, match=message):
            write_result(tmp_path / name, a_result(np.ones((3, 4))))
    assert Path("/dev/null").is_char_device()


# ---- what is no image


def npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def zipped(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def pickled(path: Path) -> Path:
    stream = io.BytesIO()
    np.save(stream, np.array([[os.getcwd]], dtype=object), allow_pickle=True)
    return zipped(path, "image.npy", stream.getvalue())


def vast(path: Path) -> Path:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)})
    return zipped(path, "image.npy", stream.getvalue() + bytes(100))


def bad_story(path: Path, text: str) -> Path:
    return npz(path, image=np.ones((3, 4)), pyrecon=np.frombuffer(text.encode(), np.uint8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: npz(p, one=np.ones(3), two=np.ones(3)), "holds one.npy, two.npy; expected an array called 'image'"),
        (lambda p: npz(p, image=np.ones(3)), r"image: float64 of shape \(3,\), expected numbers on two or more axes"),
        (lambda p: npz(p, image=np.array([["a", "b"]])), "image: <U1"),
        (pickled, "image.npy: holds Python objects, expected numbers"),
        (vast, "image.npy: declares shape"),
        (lambda p: zipped(p, "image.npy", bytes(2**20)), "is not a readable NPZ file"),
        (lambda p: bad_story(p, "{"), "the description of the image is no JSON"),
        (lambda p: bad_story(p, "[" * 100_000), "the description of the image is no JSON"),
        (lambda p: bad_story(p, '{"grid": {"shape": [3, 5], "spacing": [1, 1], "center": [0, 0]}}'), "its grid says"),
        (lambda p: bad_story(p, '{"grid": {"shape": [3, 4], "spacing": [1, -1], "center": [0, 0]}}'), "grid"),
        (lambda p: bad_story(p, '{"grid": 7}'), "the grid in the image's description cannot be used"),
    ],
)
def test_a_bad_npz(tmp_path: Path, build: Any, message: str) -> None:
    path = build(tmp_path / "a.npz")
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_an_odd_story_is_not_believed(tmp_path: Path) -> None:
    back = read_result(bad_story(tmp_path / "a.npz", '{"labels": 7, "report": [], "versions": 1, "parameters": null}'))
    assert back.image.shape == (3, 4)
    assert (back.labels, back.report, back.versions, back.parameters) == ((), {}, {}, {})
    assert read_result(bad_story(tmp_path / "b.npz", "[1, 2]")).method == ""


def test_a_nifti_that_grows_on_unpacking(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_result(tmp_path / "a.nii", a_result(np.ones((3, 4))))
    head = bytearray((tmp_path / "a.nii").read_bytes())
    with gzip.open(tmp_path / "b.nii.gz", "wb", compresslevel=1) as file:
        file.write(head + bytes(2**26))  # much more than the header says: not unpacked
    assert read_result(tmp_path / "b.nii.gz").image.shape == (3, 4)
    head[42:44] = (30_000).to_bytes(2, "little")
    head[44:46] = (30_000).to_bytes(2, "little")
    with gzip.open(tmp_path / "c.nii.gz", "wb") as file:
        file.write(head)
    with pytest.raises(DataError, match=r"declares 6\.7 GiB, but the file holds only"):
        read_result(tmp_path / "c.nii.gz")


def test_files_that_are_nothing_known(tmp_path: Path) -> None:
    for content, message in (
        (b"", "the file is empty"),
        (b"hello world", r"unknown format \(it begins with 68 65 6c 6c 6f 20 77 6f\); looked for HDF5 \(MDF"),
        (gzip.compress(b"hello"), "unknown format"),
        (b"\x1f\x8b", "cannot be decompressed"),
        (bytes(20_000), "unknown format"),
        (bytes(128) + b"DICM" + bytes(100), "is a dicom file, which pyrecon does not read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is not a readable HDF5 file"),
    ):
        (tmp_path / "a.mdf").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(tmp_path / "a.mdf")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(DataError, match=r"an HDF5 file of unknown layout \(it holds something\)"):
        read(tmp_path / "b.h5")
    for name, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none", "no such file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            read(name)


def test_detection_ignores_the_extension(tmp_path: Path) -> None:
    write_result(tmp_path / "a.npz", a_result(np.ones((3, 4))))
    (tmp_path / "a.npz").rename(tmp_path / "a.nii.gz")
    assert detect(tmp_path / "a.nii.gz") == "npz"
    assert read_result(tmp_path / "a.nii.gz").image.shape == (3, 4)


def test_hdf5_behind_a_user_block(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["image"] = np.ones((3, 4))
        file["pyrecon"] = json.dumps({"method": "x"})
    assert detect(tmp_path / "a.h5") == "pyrecon-image"
    assert read_result(tmp_path / "a.h5").method == "x"


def test_only_what_is_not_finite_is_named() -> None:
    data = np.full((4, 3), 9e14, np.float32)
    check_finite("f", "data", data, "frame")
    data[2, 1] = np.nan
    with pytest.raises(DataError, match="f: data holds NaN or Inf in frame 2 of 4"):
        check_finite("f", "data", data, "frame")
    data[2, 1] = -1e20  # its square is none of single precision
    with pytest.raises(DataError, match=r"f: data holds values beyond 1e\+15 in frame 2 of 4"):
        check_finite("f", "data", data, "frame")
    many = np.zeros((3 * 2**19, 2), np.complex64)  # looked at in parts
    many[[5, 2**20 + 7], 1] = 1j * np.inf
    with pytest.raises(DataError, match="NaN or Inf in lines 5, 1048583 of 1572864"):
        check_finite("f", "data", many, "line")


def test_damaged_arrays_of_an_archive(tmp_path: Path) -> None:
    def member(head: str, content: bytes = bytes(96)) -> None:
        text = head.ljust(117).encode() + b"\n"
        whole = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("image.npy", whole)

    sound = "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }"
    member(sound)
    assert read_result(tmp_path / "a.npz").image.shape == (3, 4)
    for head, message in (
        (sound.replace("}", ""), "head|header"),  # a tuple or a bracket without an end, which the tokenizer refuses
        (sound.replace("(3, 4), }", "(3, 4"), "head|header"),
        (sound.replace("(3, 4)", "(-1, 4)"), r"declares shape \(-1, 4\), expected sizes from 0"),
        (sound.replace("<f8", "<U1").replace("(3, 4)", "(24,)"), "holds what is no text"),
        (sound.replace("<f8", ">U1").replace("(3, 4)", "(24,)"), "holds what is no text"),
    ):
        member(head, b"\x7f" * 96)
        with pytest.raises(DataError, match=message):
            read_result(tmp_path / "a.npz")


def test_pixels_too_small_for_a_picture_are_left_out_of_it(tmp_path: Path) -> None:
    tiny = Result(np.ones((3, 4)), Grid((3, 4), (1e-9, 1e-10), (0.0, 0.0)))
    write_result(tmp_path / "a.png", tiny)
    assert detect(tmp_path / "a.png") == "png"


def test_a_story_that_contradicts_its_image(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    image = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    write_result(tmp_path / "a.nii", Result(image, Grid((2, 3, 4), (1e-3,) * 3, (0.0,) * 3), affine=np.eye(4)))
    content = (tmp_path / "a.nii").read_bytes()
    for wrong in (b'"xxxxxxx"', b"[2,[], 4]", b"[-2,-3,4]", b"[2, 3, 5]"):  # as long as [2, 3, 4]
        (tmp_path / "b.nii").write_bytes(content.replace(b'"shape": [2, 3, 4], "p', b'"shape": ' + wrong + b', "p'))
        assert read_result(tmp_path / "b.nii").image.shape == (2, 3, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = image
        file["pyrecon"] = json.dumps({"affine": (10**400 * np.eye(4, dtype=object)).tolist()})
    with pytest.raises(DataError, match="no invertible"):
        read_result(tmp_path / "a.h5")
