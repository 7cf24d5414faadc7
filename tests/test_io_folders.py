"""Folders of images: every format as its owners write it, parts that share no volume, damaged and hostile files."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from pyrecon._errors import DataError
from pyrecon.data.fourier import fft_centered
from pyrecon.io.folders import ImageFolder
from pyrecon.train.problem import ProblemConfig, ProblemTraining, make_problem

RNG = np.random.default_rng(0)
SHARED = Path(__file__).parents[2] / "shared/data"


def h5(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def png(path: Path, image: np.ndarray[Any, Any]) -> Path:
    Image.fromarray(image).save(path)
    return path


def numbered(folder: Path, count: int, slices: int = 3) -> Path:
    """Arrays whose slices hold 10 times the number of the file plus their own."""
    for i in range(count):
        volume = np.full((slices, 8, 8), 10.0 * i) + np.arange(slices)[:, None, None]
        np.save(folder / f"{i:02}.npy", volume.astype(np.float32))
    return folder


@pytest.mark.parametrize(("files", "by"), [(20, 10), (4, 1)])
def test_parts_are_of_different_files(tmp_path: Path, files: int, by: int) -> None:
    """Nine tenths for training; of few files, of different slices. Nothing is lost or twice."""
    folder = ImageFolder(numbered(tmp_path, files, 5))
    found = {}
    for part in ("train", "validation", "test"):
        images = folder.read(part, 0, folder.count(part), (4, 4))  # type: ignore[arg-type]
        assert np.ptp(images, axis=(1, 2)).max() == 0
        found[part] = images[:, 0, 0]
    together = np.concatenate(list(found.values()))
    assert sorted(together) == sorted(10.0 * i + s for i in range(files) for s in range(5))
    assert len(folder) == 5 * files
    assert len(found["train"]) == 0.9 * len(folder)
    assert len(found["test"]) == len(found["validation"])
    sets = [set(values // by) for values in found.values()]
    assert not sets[0] & (sets[1] | sets[2])
    assert not sets[1] & sets[2]
    assert not np.array_equal(found["train"], np.sort(found["train"]))
    again = ImageFolder(tmp_path)
    np.testing.assert_array_equal(again.read("train", 2, 3, (4, 4)), folder.read("train", 0, 5, (4, 4))[2:])


def test_fastmri_single_coil(tmp_path: Path) -> None:
    """k-space becomes complex images of the field of view of reconstruction_esc, whose magnitudes they have."""
    image = RNG.normal(size=(4, 20, 12)) + 1j * RNG.normal(size=(4, 20, 12))
    esc = np.abs(image)[:, 5:15, 1:11]
    kspace = fft_centered(torch.from_numpy(image)).numpy().astype(np.complex64)
    h5(tmp_path / "file1000001.h5", kspace=1e-4 * kspace, reconstruction_esc=1e-4 * esc, ismrmrd_header="")
    folder = ImageFolder(tmp_path)
    found = folder.read("train", 0, 2, (10, 10), "complex")
    assert found.dtype == np.complex64
    np.testing.assert_allclose(np.abs(found).max(axis=(1, 2)), 1, rtol=1e-6)
    order = [int(np.argmin([np.abs(np.abs(f) - e / e.max()).max() for e in esc])) for f in found]
    for f, number in zip(found, order, strict=True):
        expected = image[number, 5:15, 1:11]
        np.testing.assert_allclose(f, expected / np.abs(expected).max(), atol=1e-5)
    real = folder.read("train", 0, 2, (10, 10), "real")
    np.testing.assert_allclose(real, np.abs(found), atol=1e-6)
    h5(tmp_path / "file1000001.h5", kspace=kspace)  # the middle square, without it
    square = ImageFolder(tmp_path).read("train", 0, 1, (12, 12), "complex")[0]
    best = min(np.abs(square - im[4:16] / np.abs(im[4:16]).max()).max() for im in image)
    assert best < 1e-5
    h5(tmp_path / "file1000001.h5", reconstruction_esc=3e-5 * esc)  # test sets
    assert ImageFolder(tmp_path).read("train", 0, 1, (10, 10)).max() == pytest.approx(1)


def test_lodopab(tmp_path: Path) -> None:
    """Attenuation over 81.35858 /m to attenuation over that of twice water: water is at one half."""
    h5(tmp_path / "ground_truth_train_000.hdf5", data=np.full((10, 36, 36), 20 / 81.35858, np.float32))
    np.testing.assert_allclose(ImageFolder(tmp_path).read("train", 0, 8, (6, 6)), 0.5, rtol=1e-6)


def test_celeba_and_other_pictures(tmp_path: Path) -> None:
    """The largest centred part of the aspect, means of it; colours, luminance, grey, 16 bits."""
    (tmp_path / "img_align_celeba").mkdir()
    color = RNG.integers(0, 256, (21, 18, 3), dtype=np.uint8)
    for i in range(10):
        png(tmp_path / f"img_align_celeba/{i:06}.png", color)
    (tmp_path / "img_align_celeba/.hidden.png").write_bytes(b"")
    (tmp_path / "list_attr_celeba.txt").write_text("no image")
    folder = ImageFolder(tmp_path)
    assert len(folder) == 10
    found = folder.read("train", 0, 1, (6, 6), "color")[0]
    middle = color[1:19].reshape(6, 3, 6, 3, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(found, middle.transpose(2, 0, 1), atol=1e-6)
    grey = folder.read("train", 0, 1, (6, 6), "real")[0]
    np.testing.assert_allclose(grey, middle @ [0.299, 0.587, 0.114], atol=1e-6)
    assert folder.read("test", 0, 1, (6, 6), "complex").dtype == np.complex64
    deep = tmp_path / "deep"
    deep.mkdir()
    for i in range(3):
        png(deep / f"{i}.png", np.full((8, 8), 65535, np.uint16))
    np.testing.assert_array_equal(ImageFolder(deep).read("train", 0, 1, (8, 8), "color"), 1)
    photo = tmp_path / "photo"
    photo.mkdir()
    for i in range(3):
        Image.fromarray(color).save(photo / f"{i}.jpg", quality=95)
    np.testing.assert_allclose(ImageFolder(photo).read("train", 0, 1, (1, 1), "color")[0, :, 0, 0],
                               color[1:19].mean(axis=(0, 1)) / 255, atol=0.02)  # fmt: skip


def test_volumes(tmp_path: Path) -> None:
    """Slices of NIfTI along its third axis, the middle three fifths; Hounsfield numbers; the volume's peak is 1."""
    volume = np.arange(10, dtype=np.int16)[None, None, :] * np.ones((6, 8, 1), np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "head.nii.gz")
    folder = ImageFolder(tmp_path / "head.nii.gz")
    assert len(folder) == 6
    values = [folder.read(part, 0, folder.count(part), (6, 6))[:, 0, 0] for part in ("train", "validation", "test")]  # type: ignore[arg-type]
    np.testing.assert_allclose(sorted(np.concatenate(values)), np.arange(2, 8) / 9, rtol=1e-6)
    hu = np.array([-1024, -1000, 0, 1000], np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    np.savez(tmp_path / "ct.npz", hu=hu)
    ct = ImageFolder(tmp_path / "ct.npz")
    values = [ct.read(part, 0, ct.count(part), (4, 4))[:, 0, 0] for part in ("train", "validation", "test")]  # type: ignore[arg-type]
    np.testing.assert_allclose(sorted(np.concatenate(values)), [0, 0, 0.5, 1])
    waves = np.exp(1j * np.linspace(0, 3, 3 * 16)).reshape(3, 4, 4) * [[[2.0]]]
    np.save(tmp_path / "waves.npy", waves)
    found = ImageFolder(tmp_path / "waves.npy").read("train", 0, 1, (4, 4), "complex")[0]
    assert min(np.abs(found - w / 2).max() for w in waves) < 1e-6


def test_real_sets_are_read() -> None:
    if not SHARED.exists():
        pytest.skip("the real sets are not beside this checkout")
    for name, values in (("chest_ct_slices.npz", "real"), ("brain_t1.nii.gz", "complex")):
        images = ImageFolder(SHARED / name).read("train", 0, 3, (48, 48), values)  # type: ignore[arg-type]
        assert 0.6 < np.abs(images).max() <= 1.5
        assert 0.03 < np.abs(images).mean() < 0.6


# --- damaged and hostile ---------------------------------------------------------------------------------------------
def multicoil(path: Path) -> None:
    h5(path / "a.h5", kspace=np.zeros((3, 15, 8, 8), np.complex64))


def truncated(path: Path) -> None:
    h5(path / "a.h5", kspace=RNG.normal(size=(9, 64, 64)))
    (path / "a.h5").write_bytes((path / "a.h5").read_bytes()[:-9000])


def bomb(path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
        content, {"descr": "<f8", "fortran_order": False, "shape": (100, 2**20, 2**20)}
    )
    (path / "a.npy").write_bytes(content.getvalue() + bytes(100))


def sparse(path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
        content, {"descr": "<f8", "fortran_order": False, "shape": (2**17, 2**10, 2**10)}
    )
    (path / "a.npy").write_bytes(content.getvalue())
    os.truncate(path / "a.npy", len(content.getvalue()) + 2**40)


def pickled(path: Path) -> None:
    np.save(path / "a.npy", np.array([{}, {}], object), allow_pickle=True)


def no_picture(path: Path) -> None:
    for i in range(12):
        (path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))


def huge_picture(path: Path) -> None:
    header = png(path / "0.png", np.zeros((2, 2), np.uint8)).read_bytes()
    for i in range(12):
        (path / f"{i}.png").write_bytes(header[:16] + (2**20).to_bytes(4, "big") * 2 + header[24:])


def nan(path: Path) -> None:
    np.save(path / "a.npy", np.full((5, 8, 8), np.nan, np.float32))


def two_arrays(path: Path) -> None:
    with zipfile.ZipFile(path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"")
        archive.writestr("b.npy", b"")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "holds no images that are read here, expected .h5"),
        (multicoil, r"a\.h5: /kspace: 15 coils \(multi-coil fastMRI\), expected single-coil"),
        (lambda path: h5(path / "a.h5", other=np.zeros(3)), r"a\.h5: holds other; expected kspace"),
        (lambda path: h5(path / "a.h5", data=np.zeros((3, 3))), r"/data: shape \(3, 3\), expected \(S, H, W\)"),
        (lambda path: h5(path / "a.h5", data=np.full((9, 9, 9), b"text")), r"/data: values of type"),
        (truncated, r"a\.h5"),
        (bomb, r"a\.npy: "),
        (sparse, r"a\.npy: the array needs 1 TiB of memory, this machine has"),
        (pickled, r"a\.npy: cannot be read"),
        (no_picture, r"\.png: cannot be read"),
        (huge_picture, r"\.png: (cannot be read|1048576 x 1048576 pixels)"),
        (nan, "NaN or infinite values in one of"),
        (two_arrays, r"a\.npz: "),
        (lambda path: np.save(path / "a.npy", np.zeros((2, 2, 3, 3))), r"a\.npy: float64 of shape \(2, 2, 3, 3\)"),
        (lambda path: np.save(path / "a.npy", np.zeros((2, 9, 9))), "holds 2 images, expected at least three"),
        (lambda path: np.save(path / "a.npy", np.zeros((5, 9, 3))), "9 x 3 pixels, expected at least 8 x 8"),
        (lambda path: np.save(path / "a.npy", np.zeros((3, 9, 9))), "has 1 images of 1 files for train, 2 are asked"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=said):
        ImageFolder(tmp_path).read("train", 0, 2, (8, 8))


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt: is no image that is read here"):
        ImageFolder(tmp_path / "a.txt")


# --- as a problem ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["ct", "mri", "deblur"])
def test_a_problem_of_a_folder(tmp_path: Path, task: Any) -> None:
    """Its three parts; the pool is kept in the run, the source comes back from what the run keeps."""
    folder, run = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    np.save(folder / "a.npy", RNG.random((40, 10, 12)).astype(np.float32))
    source = ProblemTraining.restored(*ProblemTraining.kept(ProblemTraining.new_source(0, {"folder": folder})))  # type: ignore[misc]
    assert source == folder
    config = ProblemConfig(task=task, size=8, images="folder", pool=20, validation=2, acceleration=2.0, angles=4)
    problem = make_problem(config, run, source=source)
    images = ImageFolder(folder)
    values = {"ct": "real", "mri": "complex", "deblur": "color"}[task]
    for found, part in ((problem.pool, "train"), (problem.held_out, "validation"), (problem.test(2).images, "test")):
        expected = images.read(part, 0, len(found), (8, 8), values)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.numpy(), expected)
    for path in folder.iterdir():
        path.write_bytes(b"gone")
    assert torch.equal(make_problem(config, run, source=source).pool, problem.pool)
    with pytest.raises(DataError, match=r"a\.npy: "):
        make_problem(config, run, source=source).test(1)
    assert ProblemTraining.restored({}, {}) is None
    assert ProblemTraining.kept(None) is None
