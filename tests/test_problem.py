"""Problems for training: what is measured of what, whose random numbers repeat, and what self-supervision may know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon._errors import DataError
from pyrecon.linops import Fourier, Whitened
from pyrecon.train.problem import Batch, Problem, ProblemConfig, draw, make_problem

TASKS: dict[str, dict[str, Any]] = {
    "ct": {"task": "ct", "size": 12, "angles": 6, "images": "ellipses"},
    "noisy ct": {"task": "ct", "size": 12, "angles": 6, "images": "discs", "noise_std": 0.05},
    "scaled ct": {"task": "ct", "size": 12, "angles": 6, "whiten": False, "images": "ellipses", "noise_std": 0.05},
    "fan": {"task": "ct", "size": 12, "angles": 8, "beam": "fan", "arc": 360.0, "whiten": False, "images": "discs"},
    "mri": {"task": "mri", "size": 16, "acceleration": 4.0, "images": "ellipses"},
    "mri of one mask": {"task": "mri", "size": 16, "acceleration": 4.0, "fixed_mask": True, "images": "ellipses"},
    "deblur": {"task": "deblur", "size": 12, "blur_size": 5},
}


def config(name: str, **changes: Any) -> ProblemConfig:
    return replace(ProblemConfig(**TASKS[name], pool=6, validation=3), **changes)


def problem(folder: Path, name: str, **changes: Any) -> Problem:
    folder.mkdir(exist_ok=True)
    return make_problem(config(name, **changes), folder)


def equal(a: Batch, b: Batch) -> bool:
    if (a.images is None) != (b.images is None) or a.y.shape != b.y.shape:
        return False
    same = a.images is None or b.images is None or torch.equal(a.images, b.images)
    return same and torch.equal(a.y, b.y) and torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_what_the_physics_makes_of_the_images(tmp_path: Path, name: str) -> None:
    p = problem(tmp_path, name, noise_std=0.0)
    shape, kind = p.config.image_shape, torch.complex64 if p.config.task == "mri" else torch.float32
    for batch, count in ((p.batch(3, 4), 4), (p.validation(), 3), (p.test(5), 5)):
        assert batch.images is not None
        assert (batch.images.shape, batch.images.dtype) == ((count, *shape), kind)
        torch.testing.assert_close(batch.y, batch.physics(batch.images), rtol=0, atol=1e-6)
        if batch.physics.range_shape != shape:
            assert float(batch.physics.norm()) == pytest.approx(1, abs=2e-3)
        assert float(batch.images.abs().max()) < 1.5
        assert float(batch.images.abs().amax(dim=tuple(range(1, batch.images.dim()))).min()) > 0.1
    for image in p.batch(0, 6).images:  # type: ignore[union-attr]
        assert any(torch.equal(image, other) for other in p.pool)


@pytest.mark.parametrize("name", ["noisy ct", "scaled ct", "mri", "deblur"])
def test_noise_has_the_level_of_the_settings(tmp_path: Path, name: str) -> None:
    """Also that of virtual measurements; within five deviations. Whitened, by the gain of each coordinate."""
    level, count = 0.05, 300
    p = problem(tmp_path, name, noise_std=level, pool=3)
    batch = p.batch(1, count)
    assert batch.images is not None
    for noise in (batch.y - batch.physics(batch.images), p.noise(batch.y, 7, physics=batch.physics)):
        if isinstance(batch.physics, Whitened):
            noise = noise / batch.physics.gain
        if isinstance(batch.physics, Fourier):
            sampled = batch.physics.mask[:, 0].expand(noise.shape)
            assert not noise[~sampled].any()
            noise = noise[sampled]
            assert float(noise.real.std()) == pytest.approx(level / np.sqrt(2), rel=5 / np.sqrt(2 * noise.numel()))
        found = float(noise.abs().square().mean().sqrt())
        assert found == pytest.approx(level, rel=5 / np.sqrt(2 * noise.numel()))
    usual = {"noisy ct": 0.0, "scaled ct": 0.0, "mri": 0.05, "deblur": 0.01}
    assert config(name, noise_std=None).noise_level == usual[name]


@pytest.mark.parametrize("name", TASKS)
def test_random_numbers_are_functions_of_seed_and_step(tmp_path: Path, name: str) -> None:
    p = problem(tmp_path / "a", name)
    again = problem(tmp_path / "b", name)
    other = problem(tmp_path / "c", name, seed=1)
    again.test(2), again.batch(9, 2), again.measurements(4, 2)  # what ran before changes nothing
    for step in (0, 5):
        assert equal(p.batch(step, 4), again.batch(step, 4))
        assert equal(p.measurements(step, 4), again.measurements(step, 4))
    assert not equal(p.batch(0, 4), p.batch(1, 4))
    assert not equal(p.measurements(0, 4), p.measurements(1, 4))
    assert equal(p.validation(), again.validation())
    assert not equal(p.validation(), other.validation())
    assert equal(p.test(3), other.test(3))  # for comparisons between seeds
    assert not any(torch.equal(a, b) for a in p.test(3).images for b in (*p.pool, *p.held_out))  # type: ignore[union-attr]
    assert torch.equal(problem(tmp_path / "a", name).pool, p.pool)  # read from the folder
    y, physics = p.batch(0, 2).y, p.batch(0, 2).physics
    if p.config.noise_level:
        draws = [p.noise(y, *which, physics=physics) for which in ((0, 0), (1, 0), (0, 1), (0, 0))]
        assert torch.equal(draws[0], draws[3])
        assert not torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", TASKS)
def test_measurements_are_made_once_and_outlive_the_truth(tmp_path: Path, name: str) -> None:
    """After that NaN in place of the images changes nothing, checkpoint selection included."""
    p = problem(tmp_path, name, pool=4)
    blind = p.blind()
    assert blind.pool.isnan().all()
    assert blind.held_out.isnan().all()
    first, of = blind.measurements(0, 64), p.measurements(0, 64)
    assert equal(first, of)
    assert first.images is None
    assert len({tuple(y.flatten().abs().tolist()) for y in first.y}) == 4  # each image has one measurement
    assert equal(blind.self_validation(), p.self_validation())
    assert len(blind.self_validation().y) == 3
    assert torch.isfinite(first.y.abs()).all()
    assert torch.isfinite(first.scale).all()
    # They are measurements: the physics of each explains its y to the noise.
    batch = blind.self_validation()
    images = p.held_out
    error = (batch.y - batch.physics(images)).abs()
    error = error / batch.physics.gain if isinstance(batch.physics, Whitened) else error
    assert float(error.max()) <= 6 * p.config.noise_level + 1e-5
    assert blind.batch(0, 2).images.isnan().all()  # type: ignore[union-attr]
    moved = blind.to(torch.device("cpu"))
    assert equal(moved.measurements(3, 2), p.measurements(3, 2))


def test_masks(tmp_path: Path) -> None:
    """Of the kind, the acceleration and the number of them that the settings say."""
    for mask, axes in (("gaussian-points", (32, 32)), ("gaussian-lines", (1, 32)), ("random-lines", (1, 32))):
        p = problem(tmp_path / mask, "mri", mask=mask, size=32)
        masks = p.batch(0, 4).physics.mask
        assert masks.shape == (4, 1, *axes)  # type: ignore[union-attr]
        assert float(masks.float().mean()) == 0.25  # type: ignore[union-attr,operator]
        assert masks[..., axes[0] // 2, 16].all()  # type: ignore[index]
        assert len(torch.unique(masks.flatten(1), dim=0)) > 1  # type: ignore[union-attr,operator]
    fixed = problem(tmp_path / "fixed", "mri of one mask")
    other = problem(tmp_path / "other", "mri of one mask", seed=3)
    assert fixed.batch(0, 2).physics.mask.shape == (1, 1, 16, 16)  # type: ignore[union-attr]
    assert torch.equal(fixed.operator.mask, other.operator.mask)  # type: ignore[union-attr,arg-type]


def test_scales(tmp_path: Path) -> None:
    """Scaled scans of any gain are the same; the brightest pixel of their adjoint is 1."""
    batch = problem(tmp_path, "mri").batch(0, 3)
    scaled = batch.scaled()
    start = scaled.physics.adjoint(scaled.y).abs().amax(dim=(1, 2))
    torch.testing.assert_close(start, torch.ones(3))
    torch.testing.assert_close(scaled.images * batch.scale, batch.images)  # type: ignore[operator]
    ct = problem(tmp_path / "ct", "noisy ct").batch(0, 3)
    assert torch.equal(ct.scaled().y, ct.y)
    assert replace(batch, images=None).scaled().images is None


def test_images_of_any_kind_fit_every_task() -> None:
    for kind in ("organs", "ellipses", "photographs", "heads", "discs"):
        for name in ("ct", "mri", "deblur"):
            setting = config(name, images=kind, size=16)
            images = draw(setting, "train", 0, 2)
            assert images.shape == (2, *setting.image_shape)
            assert images.is_complex() == (name == "mri")
            assert float(images.abs().max()) <= 1.3
            if name == "mri":
                torch.testing.assert_close(images.abs().amax(dim=(1, 2)) > 0.75, torch.ones(2, dtype=torch.bool))
                assert float(images.angle()[images.abs() > 0.1].std()) > 0.01
    names = {task: config(task, images="auto").kind for task in ("ct", "mri", "deblur")}
    assert names == {"ct": "organs", "mri": "heads", "deblur": "photographs"}


def test_settings_change_the_physics(tmp_path: Path) -> None:
    def physics(i: int, name: str, **changes: Any) -> Any:
        return problem(tmp_path / str(i), name, **changes).operator

    x = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    base = physics(0, "scaled ct")
    assert base.range_shape == (6, 17)
    for i, changes in enumerate(({"arc": 90.0}, {"beam": "fan"}, {"angles": 7}, {"whiten": True}), 1):
        other = physics(i, "scaled ct", **changes)
        assert other.range_shape != base.range_shape or not torch.allclose(other(x), base(x))
    rgb = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    blurred = physics(8, "deblur")
    for i, changes in enumerate(({"blur_size": 3}, {"blur_variance": 1.0}), 9):
        assert not torch.allclose(physics(i, "deblur", **changes)(rgb), blurred(rgb))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mri", {"acceleration": 64.0}, "acceleration: 64 at 16 pixels: acl, calibration: .* smaller centre"),
        ("mri", {"mask": "random-lines", "acceleration": 17.0}, "acceleration: 17 at 16 pixels"),
        ("ct", {"size": 512, "angles": 200}, "whiten: 512 pixels and 200 views: operator: .* take smaller images"),
        ("ct", {"images": "folder"}, "images: folder without a folder; give --folder too"),
        ("ct", {"angles": 0}, "angles: 0, expected at least 1"),
        ("ct", {"arc": 0.0}, "arc: 0.0, expected a number above 0"),
        ("ct", {"noise_std": -0.1}, "noise_std: -0.1"),
    ],
)
def test_problems_that_cannot_be_are_named(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        problem(tmp_path, name, **changes)


def test_more_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images: ellipses with a folder; give --images folder too"):
        make_problem(config("ct"), tmp_path, source=tmp_path)
    with pytest.raises(ValueError, match="physics: every image has a mask of its own"):
        problem(tmp_path, "mri").noise(torch.zeros(1, 16, 16, dtype=torch.complex64), 0)
    with pytest.raises(ValueError, match="mask: takes no sample of some image"):
        Fourier(torch.zeros(2, 1, 1, 8, dtype=torch.bool), (8, 8))
    some = torch.zeros(2, 1, 1, 8)
    some[0, 0, 0, 4] = 1
    with pytest.raises(ValueError, match="mask: takes no sample of some image"):
        Fourier(some, (8, 8))
