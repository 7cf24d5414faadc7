"""BrainWeb's segmentations in all the forms that users have, brains made of them, damaged and hostile files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import netcdf_file

from pyrecon._errors import DataError
from pyrecon.data import brainweb as module
from pyrecon.data.brains import CLASSES
from pyrecon.data.brainweb import brainweb
from pyrecon.io import _minc
from pyrecon.io.brainweb import FIRST, TWENTY, brainweb_files, read_brainweb
from pyrecon.train.pinqi import Config, PINQITraining

Volume = np.ndarray[Any, np.dtype[np.uint8]]


def head(shape: tuple[int, int, int] = FIRST, *, top: int = 10, size: float = 1.0) -> Volume:
    """Shells, symmetric from left to right alone; the neck is below, nothing on top."""
    nz, ny, nx = shape
    volume = np.zeros(shape, np.uint8)
    y, x = np.meshgrid((np.arange(ny) - ny / 2) / (ny / 2), (np.arange(nx) - (nx - 1) / 2) / (nx / 2), indexing="ij")
    radius = np.hypot(1.1 * y + 0.1, 1.2 * x)
    for z in range(nz // 8, nz - nz // 6):
        reach = size * (0.85 if z < nz // 3 else 0.85 * np.sqrt(max(0.0, 1 - ((z - nz / 3) / (nz / 2)) ** 2)))
        for depth, number in ((0.0, 6), (0.03, 4), (0.09, 7), (0.15, 1), (0.2, 2), (0.3, 3)):
            if number not in (1, 2, 3) or z >= nz // 4:
                volume[z][radius < reach - depth] = number
    volume[nz // 2, ny // 2, nx // 2 - 1 : nx // 2 + 1] = top
    return volume


@pytest.fixture(scope="module")
def small() -> Volume:
    return head()


@pytest.fixture(scope="module")
def large() -> bytes:
    """A head of the 20, packed."""
    return gzip.compress(head(TWENTY, top=11).tobytes(), 1)


def raw(path: Path, volume: Volume) -> Path:
    path.write_bytes(gzip.compress(volume.tobytes(), 1) if path.suffix == ".gz" else volume.tobytes())
    return path


def minc1(path: Path, volume: Volume, axes: str = "zyx", high: float = 10.0) -> Path:
    """As BrainWeb's: bytes of 0 to 255 for what goes from 0 to ``high``."""
    data = volume.transpose(["zyx".index(a) for a in axes])
    file = netcdf_file(path, "w")
    for axis, n in zip(axes, data.shape, strict=True):
        file.createDimension(f"{axis}space", n)
    image = file.createVariable("image", "b", [f"{axis}space" for axis in axes])
    image.signtype, image.valid_range = b"unsigned", np.array([0.0, 255.0])
    image[:] = np.rint(data * (255 / high)).astype(np.uint8).view(np.int8)
    for name, value in (("image-min", 0.0), ("image-max", high)):
        file.createVariable(name, "d", [f"{axes[0]}space"])[:] = value
    file.close()
    return path


def minc2(path: Path, volume: Volume, order: bytes = b"zspace,yspace,xspace") -> Path:
    with h5py.File(path, "w") as file:
        node = file.create_dataset("/minc-2.0/image/0/image", data=volume, compression=1, chunks=(8, *volume.shape[1:]))
        node.attrs["dimorder"], node.attrs["valid_range"] = np.bytes_(order), [0.0, 10.0]
        file["/minc-2.0/image/0/image-max"], file["/minc-2.0/image/0/image-min"] = 10.0, 0.0
    return path


def only(path: Path) -> Volume:
    (volume,) = read_brainweb(path)
    return volume


# --- reading ---------------------------------------------------------------------------------------------------------
def test_raw_volumes_of_bytes_and_of_shorts(tmp_path: Path, small: Volume) -> None:
    """Shorts are as BrainWeb gives them, 4095 for 255, or plain."""
    for name in ("phantom_1.0mm_normal_crisp.rawb", "a.rawb.gz", "a.BIN.GZ"):
        np.testing.assert_array_equal(only(raw(tmp_path / name, small)), small)
    for values in (small.astype("<u2"), small.astype("<u2") * 16, np.rint(small * (4095 / 255)).astype("<u2")):
        found = only(raw(tmp_path / "a.raws.gz", values))
        np.testing.assert_array_equal(found, small)
        assert found.dtype == np.uint8


def test_a_head_of_the_20(tmp_path: Path, large: bytes) -> None:
    (tmp_path / "subject04_crisp_v.rawb.gz").write_bytes(large)
    volume = only(tmp_path)
    assert volume.shape == TWENTY
    assert (volume.dtype, int(volume.max())) == (np.uint8, 11)
    assert volume.tobytes() == gzip.decompress(large)


@pytest.mark.parametrize("swapped", [False, True])
def test_nifti_of_both_orders(tmp_path: Path, small: Volume, swapped: bool) -> None:
    """Left and right are found whether the axes were turned or not."""
    data = small if swapped else small.transpose(2, 1, 0)
    for name, kind in (("a.nii.gz", np.uint8), ("b.nii", np.int16), ("c.nii.gz", np.float32)):
        nibabel.save(nibabel.Nifti1Image(data.astype(kind), np.eye(4)), tmp_path / name)
        np.testing.assert_array_equal(only(tmp_path / name), small)


def test_minc_of_both_versions(tmp_path: Path, small: Volume) -> None:
    for axes in ("zyx", "xzy"):
        np.testing.assert_array_equal(only(minc1(tmp_path / "a.mnc", small, axes)), small)
    packed = gzip.compress((tmp_path / "a.mnc").read_bytes(), 1)
    (tmp_path / "a.mnc.gz").write_bytes(packed)
    np.testing.assert_array_equal(only(tmp_path / "a.mnc.gz"), small)
    np.testing.assert_array_equal(only(minc2(tmp_path / "b.mnc", small)), small)
    turned = minc2(tmp_path / "c.mnc", small.transpose(2, 1, 0), b"xspace,yspace,zspace")
    np.testing.assert_array_equal(only(turned), small)
    (tmp_path / "d.mnc.gz").write_bytes(gzip.compress(turned.read_bytes(), 1))
    with pytest.raises(DataError, match=r"d\.mnc\.gz: is a packed MINC 2 file.*gunzip"):
        only(tmp_path / "d.mnc.gz")


def test_files_are_in_the_order_of_their_subjects(tmp_path: Path) -> None:
    names = ("deep/subject_18_crisp.rawb", "brainweb_s06_crisp.nii.gz", "subject04_crisp_v.mnc.gz", "zz_crisp.raw")
    (tmp_path / "deep").mkdir()
    for name in (*names, "subject04_t1w.rawb", ".subject05_crisp.rawb", "subject20_crisp.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [str(p.relative_to(tmp_path)) for p in brainweb_files(tmp_path)] == [names[k] for k in (2, 1, 0, 3)]
    (tmp_path / "subject004_crisp.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is of subject 4, as is subject004_crisp\.bin; leave one"):
        brainweb_files(tmp_path)


# --- brains ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads, the larger the higher their number."""
    path = tmp_path_factory.mktemp("brainweb")
    for number in range(4):
        raw(path / f"subject{number + 4:02}_crisp.rawb.gz", head(size=0.7 + 0.1 * number))
    return path


def test_brain_i_depends_on_the_seed_and_its_number_alone(folder: Path) -> None:
    many, one = brainweb(folder, 4, (48, 40), seed=3), brainweb(folder, 1, (48, 40), seed=3, first=2)
    for name in ("t1", "m0", "labels", "inside"):
        np.testing.assert_array_equal(getattr(many, name)[2], getattr(one, name)[0])
    assert many.t1.shape == (4, 48, 40)
    assert np.abs(many.m0[0] - many.m0[1]).max() > 0.1
    assert np.abs(brainweb(folder, 1, (48, 40), seed=4, first=2).m0 - one.m0).max() > 0.1
    assert brainweb(folder, 0, (8, 8)).t1.shape == (0, 8, 8)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_brains_are_whole_and_in_the_ranges_of_their_classes(folder: Path, split: Any) -> None:
    found = brainweb(folder, 6, (64, 64), split=split)
    assert np.isfinite(found.t1).all()
    assert (found.t1 > 0).all()
    assert (found.m0[:, :2] == 0).all()  # the margin
    assert (found.t1[found.m0 == 0] == 1).all()
    assert found.inside.any((1, 2)).all()  # no slice without brain
    names = {CLASSES[k].name for k in np.unique(found.labels) if k >= 0}
    assert {"fluid", "grey matter", "white matter", "fat", "skin", "bone"} <= names
    for k, tissue in enumerate(CLASSES):
        here = found.labels == k
        if here.sum() > 200:
            middle = float(np.median(found.t1[here]))
            assert 0.85 * tissue.t1[0] < middle < 1.15 * tissue.t1[1], tissue


def test_classes_keep_their_area() -> None:
    """Also where pixels are no whole number of voxels; each pixel has shares of one."""
    volume = head(size=0.6)
    labels = volume[80]
    head_ = module.frame_of(labels > 0, (48, 40))
    shares = module._shares(module.seen(labels, head_), module._PLACE_OF[FIRST], (48, 40))
    pixel = head_.rows * head_.columns / (48 * 40)
    for number, name in ((1, "fluid"), (2, "grey matter"), (3, "white matter"), (7, "bone")):
        place = [c.name for c in CLASSES].index(name)
        assert shares[place].sum() * pixel == pytest.approx((labels == number).sum(), rel=1e-5)
    assert shares.sum(0).max() == pytest.approx(1, abs=1e-5)
    assert head_.rows / 48 == pytest.approx(head_.columns / 40, rel=0.01)  # square


def test_a_turn_keeps_areas_and_flips_are_exact() -> None:
    labels = head(size=0.6)[80]
    frame = module.frame_of(labels > 0, (50, 50))
    plain = module.seen(labels, frame)
    np.testing.assert_array_equal(module.seen(labels, frame, flips=(True, False)), plain[::-1])
    np.testing.assert_array_equal(module.seen(labels, frame, flips=(False, True)), plain[:, ::-1])
    turned = module.seen(labels, frame, turn=0.17)
    assert (turned != plain).mean() > 0.05
    for number in (1, 2, 3, 6):
        assert (turned == number).sum() == pytest.approx((plain == number).sum(), rel=0.02)


def test_splits_share_no_subject(folder: Path, tmp_path: Path) -> None:
    """16, 1 and 3 of 20, by number; at least one of others."""
    for count, expected in ((20, (16, 1, 3)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (7, 1, 2)), (40, (32, 2, 6))):
        where = tmp_path / str(count)
        where.mkdir()
        for number in range(count):
            (where / f"subject{number:02}_crisp.rawb").write_bytes(b"x")
        parts = [module._files(where, split) for split in ("train", "validation", "test")]  # type: ignore[arg-type]
        assert tuple(map(len, parts)) == expected
        assert [path for part in parts for path in part] == brainweb_files(where)
    with pytest.raises(ValueError, match="split: 'all', expected train"):
        brainweb(folder, 1, (8, 8), split="all")  # type: ignore[arg-type]
    for name in sorted((tmp_path / "3").iterdir())[1:]:
        name.unlink()
    with pytest.raises(DataError, match="3: holds 1 subjects, expected at least three"):
        brainweb(tmp_path / "3", 1, (8, 8))


def test_held_out_brains_are_not_turned(folder: Path) -> None:
    """The heads are symmetric, so their labels are."""
    straight, turned = (brainweb(folder, 3, (64, 64), split=split).labels for split in ("test", "train"))  # type: ignore[arg-type]
    mirrored = [float((labels != labels[:, :, ::-1]).mean()) for labels in (straight, turned)]
    assert mirrored[0] < 0.03 < mirrored[1]


# --- damaged and hostile ---------------------------------------------------------------------------------------------
def truncated(path: Path, volume: Volume) -> Path:
    return raw(path / "a.rawb", volume[:-1])


def truncated_gzip(path: Path, volume: Volume) -> Path:
    file = raw(path / "a.rawb.gz", volume)
    file.write_bytes(file.read_bytes()[:-2000])
    return file


def bomb(path: Path, volume: Volume) -> Path:
    """One that would unpack to 16 GB, a megabyte a member."""
    (path / "a.rawb.gz").write_bytes(gzip.compress(bytes(2**20)) * 2**14)
    return path / "a.rawb.gz"


def one_too_many(path: Path, volume: Volume) -> Path:
    (path / "a.rawb.gz").write_bytes(gzip.compress(volume.tobytes() + b"\0", 1))
    return path / "a.rawb.gz"


def unknown_class(path: Path, volume: Volume) -> Path:
    changed = volume.copy()
    changed[100, 100, 100] = 11  # which only the 20 have
    return raw(path / "a.rawb", changed)


def fuzzy(path: Path, volume: Volume) -> Path:
    return raw(path / "a.rawb", np.rint(volume * 25.5).astype(np.uint8))


def no_brain(path: Path, volume: Volume) -> Path:
    return raw(path / "a.rawb.gz", np.where(volume == 3, 0, volume).astype(np.uint8))


def small_nifti(path: Path, volume: Volume) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume[::2], np.eye(4)), path / "a.nii.gz")
    return path / "a.nii.gz"


def image_nifti(path: Path, volume: Volume) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32) * 0.37, np.eye(4)), path / "a.nii.gz")
    return path / "a.nii.gz"


def nan_nifti(path: Path, volume: Volume) -> Path:
    values = np.where(volume == 7, np.nan, volume).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path / "a.nii.gz")
    return path / "a.nii.gz"


def nifti_bomb(path: Path, volume: Volume) -> Path:
    header = nibabel.Nifti1Image(volume[:1, :1, :1], np.eye(4)).header
    header["dim"], header["vox_offset"] = [3, *FIRST, 1, 1, 1, 1], 2**31
    (path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(2**20), 1))
    return path / "a.nii.gz"


def minc_of_another_size(path: Path, volume: Volume) -> Path:
    return minc1(path / "a.mnc", volume[:50])


def minc_cut(path: Path, volume: Volume) -> Path:
    file = minc1(path / "a.mnc", volume)
    file.write_bytes(file.read_bytes()[: -(10**6)])
    return file


def minc_without_end(path: Path, volume: Volume) -> Path:
    (path / "a.mnc").write_bytes(b"CDF\x01" + bytes(4) + b"\0\0\0\x0a\0\x0f\xff\xff" + b"\0\0\0\x04spac" * 40)
    return path / "a.mnc"


def minc2_of_another_size(path: Path, volume: Volume) -> Path:
    return minc2(path / "a.mnc", volume[:, :50])


def minc2_axes(path: Path, volume: Volume) -> Path:
    return minc2(path / "a.mnc", volume, b"time,yspace,xspace")


def other_file(path: Path, volume: Volume) -> Path:
    (path / "notes.txt").write_text("no volume")
    return path / "notes.txt"


def missing(path: Path, volume: Volume) -> Path:
    return path / "subject04_crisp.rawb"


REFUSED = {
    truncated: "7069860 bytes, expected 56873096 .362 x 434 x 362. or 7109137", truncated_gzip: "cannot be decompress",
    bomb: "at least", one_too_many: "7109138 bytes", unknown_class: "holds 11, expected class numbers from 0 to 10",
    fuzzy: "holds [0-9, ]*, expected class numbers.*crisp volume", no_brain: "no white matter",
    small_nifti: "181 x 217 x 91 voxels", image_nifti: "expected class numbers", nan_nifti: "holds nan",
    nifti_bomb: "8 bits a voxel after 2.14748e.09 bytes",
    minc_of_another_size: "50 x 217 x 181 voxels", minc_cut: "it is truncated", minc_without_end: "not a readable MINC",
    minc2_of_another_size: "181 x 50 x 181", minc2_axes: "axes time, yspace, xspace",
    other_file: "no BrainWeb volume by its name", missing: "no such file",
}  # fmt: skip


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_what_is_no_segmentation_is_refused_by_name(tmp_path: Path, small: Volume, write: Any) -> None:
    path = write(tmp_path, small)
    with pytest.raises(DataError, match=rf"{path.name}: .*{REFUSED[write]}"):
        list(read_brainweb(path))


def test_folders_without_volumes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no BrainWeb volumes, expected files like"):
        read_brainweb(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_brainweb(tmp_path / "nowhere")


def test_damaged_minc_headers_are_refused(tmp_path: Path, small: Volume) -> None:
    """Whatever byte of the header is wrong, it is read or refused, never worse."""
    content = bytearray(minc1(tmp_path / "a.mnc", small).read_bytes()[:4096])
    rng = np.random.default_rng(0)
    for _ in range(600):
        damaged = bytearray(content)
        damaged[int(rng.integers(4, 600))] = int(rng.choice([0, 1, 127, 128, 255]))
        with pytest.raises(DataError, match=r"a\.mnc: "):
            _minc.read_minc1(tmp_path / "a.mnc", bytes(damaged), (FIRST,))


# --- training on them ------------------------------------------------------------------------------------------------
def test_networks_are_trained_on_the_folder(tmp_path: Path, small: Volume) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    for number in range(3):
        raw(folder / f"subject0{number}_crisp_v.rawb.gz", small)
    source = PINQITraining.new_source(0, {"brainweb": folder})
    kept = PINQITraining.kept(source)
    assert kept is not None
    assert PINQITraining.restored(*kept) == folder.resolve()
    assert PINQITraining.kept(None) is None
    config = Config(size=32, coils=2, pool=3, validation=2, seed=1)
    data = PINQITraining(tmp_path, source, config).data(lambda done, total: None)
    for pool, count, seed, split in ((data.pool, 3, 3, "train"), (data.held_out, 2, 4, "validation")):
        brains = brainweb(folder, count, (32, 32), seed=seed, split=split)
        np.testing.assert_allclose(pool[:, 0].numpy(), 1 / brains.t1, rtol=1e-6)
        np.testing.assert_array_equal(pool[:, 3].numpy() > 0, brains.inside)
    (folder / "subject01_crisp_v.rawb.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="subject01"):
        PINQITraining.new_source(0, {"brainweb": folder})
