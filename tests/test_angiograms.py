"""Patches of a volume for training: where they come from, what is refused, and ``pyrecon train deq-mpi --images``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deq_mpi_runs import SHAPE, config, source
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.data.angiograms import DEPTH, Angiogram, cut_patches, part_of, read_volume
from pyrecon.models import DEQMPI
from pyrecon.train import Interrupted, train_deq_mpi
from pyrecon.train.mpi_data import Source, drawn_images

nibabel = pytest.importorskip("nibabel")


def saved(path: Path, volume: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    return path


def tubes(length: int = 100, seed: int = 0) -> np.ndarray:
    """Vessels along all axes; every slice of the first axis has a brightness of its own."""
    rng = np.random.default_rng(seed)
    volume = np.zeros((length, 60, 40), np.float32)
    for _ in range(40):
        y, x = rng.integers(2, 58), rng.integers(2, 38)
        volume[:, y - 1 : y + 1, :] += rng.random() < 0.3
        volume[:, :, x - 1 : x + 1] += rng.random() < 0.3
    return np.minimum(volume, 1) * (1 + np.arange(length, dtype=np.float32))[:, None, None]


# --- parts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [100, 256, 301])
def test_parts_share_no_slice(length: int) -> None:
    parts = [part_of(length, part) for part in ("training", "validation", "test")]
    slices = [set(range(length)[part]) for part in parts]
    assert sum(map(len, slices)) == len(set().union(*slices)) == length
    assert all(len(part) >= DEPTH for part in slices)
    assert len(slices[0]) == len(slices[2]) == round(0.45 * length)


def test_short_volumes_give_validation_a_slab_at_the_cost_of_training() -> None:
    training, validation = part_of(30, "training"), part_of(30, "validation")
    assert (training, validation) == (slice(0, 10), slice(10, 20))


def test_patches_come_from_their_part(tmp_path: Path) -> None:
    """Slices are as bright as their number, so the brightest of a slab says where it was."""
    volume = tubes()
    for part, first, last in (("training", 10, 45), ("validation", 55, 55), ("test", 65, 100)):
        region = volume[part_of(100, part)]  # type: ignore[arg-type]
        assert (region.max(), region[-DEPTH:].max()) == (last, last)
        assert region[:DEPTH].max() == first
        images = cut_patches("v", volume, part, 8, shape=(10, 8), factor=2, seed=3)  # type: ignore[arg-type]
        assert images.shape == (8, 10, 8)
        assert np.array_equal(images, cut_patches("v", volume, part, 8, shape=(10, 8), factor=2, seed=3))  # type: ignore[arg-type]


# --- files -----------------------------------------------------------------------------------------------------------
def test_axes_are_those_of_the_file(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((30, 24, 20)).astype(np.float32)
    for name in ("v.nii", "v.nii.gz"):
        np.testing.assert_array_equal(read_volume(saved(tmp_path / name, volume)), volume)
    again = read_volume(saved(tmp_path / "one.nii", volume[..., None]))  # a fourth axis of one
    np.testing.assert_array_equal(again, volume)


def nan() -> np.ndarray:
    volume = tubes()
    volume[7, 3, 3] = np.nan
    return volume


BAD: list[tuple[Any, str]] = [
    (b"this is text", "unknown format"),
    (b"\x89PNG\r\n\x1a\n", "is png, expected a NIfTI volume"),
    (np.zeros((60, 40), np.float32) + 1, "60 x 40 x 1 voxels, expected a volume of three axes"),
    (np.ones((100, 60, 40, 3), np.float32), "100 x 60 x 40 x 3 voxels"),
    (nan(), "NaN"),
    (np.zeros((100, 60, 40), np.float32), "no value above 0"),
    (-tubes(), "no value above 0"),
    (tubes()[:25], "7 x 60 x 40 voxels for training (of 25 x 60 x 40), too few for a patch of 10 x 20 x 16"),
    (tubes()[:, :12], "too few for a patch of 10 x 20 x 16"),
    (np.where(np.arange(100)[:, None, None] < 50, tubes(), 0)[:, ::-1] * (np.arange(100) < 45)[:, None, None],
     "validation: volume: "),
    (tubes().astype(np.complex64), "complex"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), BAD)
def test_what_is_no_angiogram_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "bad.nii"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        saved(path, content)
    with pytest.raises(DataError) as refused:
        Angiogram.read(path, (20, 16))
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    with pytest.raises(DataError, match="no such file"):
        Angiogram.read(tmp_path / "none.nii", (20, 16))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "v.nii.gz", tubes()).read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated or corrupted"):
        Angiogram.read(tmp_path / "v.nii.gz", (20, 16))


# --- training --------------------------------------------------------------------------------------------------------
def test_the_pool_is_patches_of_the_volume(tmp_path: Path) -> None:
    """Of peak 1, whatever the chunks of training and validation; each a projection that the volume has somewhere."""
    settings = config(pool=6, validation=3)
    volume = tubes() * np.random.default_rng(1).uniform(0.5, 1, (100, 60, 40)).astype(np.float32)  # no two slabs alike
    made = source().with_images(saved(tmp_path / "v.nii", volume))
    cut = drawn_images(made, settings)
    images = cut(0, 9)
    assert images.shape == (9, *SHAPE)
    np.testing.assert_allclose(images.max(axis=(1, 2)), 1, rtol=1e-6)
    np.testing.assert_array_equal(cut(0, 9), images)
    shape = (2 * SHAPE[0], 2 * SHAPE[1])
    for image, part in ((images[2], slice(0, 45)), (images[7], slice(45, 55))):
        slabs = (volume[k : k + DEPTH].max(axis=0) for k in range(part.start, part.stop - DEPTH + 1))
        views = (
            np.lib.stride_tricks.sliding_window_view(slab, shape).reshape(-1, SHAPE[0], 2, SHAPE[1], 2).mean((2, 4))
            for slab in slabs
        )
        assert any(
            (np.abs(view / np.maximum(view.max((1, 2), keepdims=True), 1e-9) - image).max((1, 2)) < 1e-5).any()
            for view in views
        )
    assert not np.array_equal(drawn_images(made, config(pool=6, validation=3, seed=1))(0, 9), images)


def test_a_run_on_a_volume_resumes_without_it_and_says_what_was_cut(tmp_path: Path) -> None:
    path = saved(tmp_path / "v.nii", tubes())
    settings, made = config(denoiser=config().projection), source().with_images(path)
    whole = train_deq_mpi(tmp_path / "whole", made, settings)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    with pytest.raises(Interrupted):
        train_deq_mpi(tmp_path / "parts", made, settings, stop=stop)
    path.unlink()  # the pool was drawn and is kept
    resumed = train_deq_mpi(tmp_path / "parts", resume=True)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert whole.card is not None
    assert resumed.card is not None
    said = whole.card.training["images"]
    assert said == resumed.card.training["images"]
    assert said["path"] == str(path)
    assert (said["training_slices"], said["validation_slices"], said["slab"]) == ([0, 45], [45, 55], DEPTH)
    assert made.kept()[1]["images"]["sha256"] == said["sha256"]
    assert Source.restored(*json_trip(made)) == made


def json_trip(made: Source) -> Any:
    tensors, facts = made.kept()
    return tensors, json.loads(json.dumps(facts))


def test_a_source_keeps_the_rank_that_its_matrix_was_cut_to() -> None:
    made = replace(source(), rank=3)
    assert Source.restored(*json_trip(made)) == made
    assert Source.restored(*json_trip(source())).rank is None
    tensors, facts = made.kept()
    for wrong in (0, 10**6, "many"):
        with pytest.raises(ValueError, match=r"rank|many"):
            Source.restored(tensors, facts | {"rank": wrong})


def test_a_run_that_has_not_drawn_needs_the_volume_it_began_with(tmp_path: Path) -> None:
    path = saved(tmp_path / "v.nii", tubes())
    with pytest.raises(Interrupted, match="images were drawn"):
        train_deq_mpi(tmp_path / "run", source().with_images(path), config(), stop=lambda: True)
    (tmp_path / "run" / "pool.npy").unlink(missing_ok=True)
    saved(path, tubes(seed=1))
    with pytest.raises(DataError, match="not the volume that the run began with"):
        train_deq_mpi(tmp_path / "run", resume=True)
    saved(path, tubes())
    train_deq_mpi(tmp_path / "run", resume=True)


@pytest.mark.parametrize("facts", [{}, {"path": 1, "shape": [9, 9, 9], "sha256": "a"}, {"path": "a", "shape": [9, 9]}])
def test_a_source_with_other_images_is_refused(facts: dict[str, Any]) -> None:
    tensors, known = source().kept()
    with pytest.raises((ValueError, KeyError, TypeError)):
        Source.restored(tensors, known | {"images": facts})


def test_command_trains_on_a_volume(tmp_path: Path) -> None:
    from pyrecon.cli import app

    path, run = saved(tmp_path / "v.nii.gz", np.tile(tubes(), (1, 2, 2))), tmp_path / "run"
    short = ["--steps", "2", "--denoiser-steps", "2", "--pool", "20", "--validation", "4", "-p", "layers=1"]
    result = CliRunner().invoke(app, ["train", "deq-mpi", "-o", str(run), "--images", str(path), *short])
    assert result.exit_code == 0, result.output
    pool = np.load(run / "pool.npy")
    assert pool.shape == (24, 26, 13)
    card = DEQMPI.load(run / "weights.safetensors").card
    assert card is not None
    assert card.training["images"]["path"] == str(path)
    small = saved(tmp_path / "small.nii", tubes()[:, :, :20])
    new = ["train", "deq-mpi", "-o", str(tmp_path / "none"), "--images", str(small)]
    with pytest.raises(DataError, match="too few for a patch of 10 x 52 x 26"):
        CliRunner().invoke(app, new, catch_exceptions=False)
    assert not (tmp_path / "none").exists()
    again = ["train", "deq-mpi", "--resume", str(run), "--images", str(path)]
    with pytest.raises(DataError, match="leave out images"):
        CliRunner().invoke(app, again, catch_exceptions=False)
