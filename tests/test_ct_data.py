"""CT scans before reconstruction: centre of rotation, what views cover, counts to line integrals, grids."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon._errors import DataError
from pyrecon.data.ct import (
    CTScan,
    check_rays,
    check_scan,
    coverage,
    find_center,
    line_integrals,
    natural_grid,
    noise_std,
    on_grid,
    some_slices,
    some_views,
)
from pyrecon.ops import FanBeam, ParallelBeam, ViewBeam, radon
from pyrecon.physics.ct import phantom, scanner, simulate, truth
from pyrecon.testing.ellipses import ellipse_projection

# Value, x, y, half axes, turn: nothing symmetric about the axis. Unit: detector pixels.
BODY = torch.tensor(
    [(1.0, 3.0, 5.0, 40.0, 28.0, 0.3), (-0.5, 14.0, 7.0, 8.0, 6.0, 0.0), (0.7, -10.0, -13.0, 7.0, 9.0, 1.0)],
    dtype=torch.float64,
)


def turns(views: int, arc: float) -> torch.Tensor:
    return math.radians(arc) * torch.arange(views, dtype=torch.float64) / views


def off_center(views: int, arc: float, offset: float, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Sinogram and angles of a detector whose middle is ``offset`` pixels off the axis, and 1 % of noise."""
    geometry = ParallelBeam(turns(views, arc), (64, 64), 140, 1.0, offset)
    clean = ellipse_projection(geometry, BODY).numpy()
    noisy = clean + noise * clean.max() * np.random.default_rng(0).standard_normal(clean.shape)
    return noisy[None], geometry.angles.numpy()


@pytest.mark.parametrize("offset", [0.0, 0.5, -3.25, 12.3])
@pytest.mark.parametrize(
    ("views", "arc", "way"),
    [(180, 180, "mirrored sinogram"), (61, 180, "mirrored sinogram"), (360, 360, "mirrored sinogram"),
     (120, 120, "centre of mass")],
)  # fmt: skip
def test_the_center_is_found(offset: float, views: int, arc: float, way: str) -> None:
    sinogram, angles = off_center(views, arc, offset)
    center, found = find_center(sinogram, angles)
    assert found == way
    # s = (d - (D - 1) / 2) + offset is 0 on the axis.
    assert center == pytest.approx(69.5 - offset, abs=0.12)


def test_the_center_of_descending_angles_and_of_many_slices() -> None:
    sinogram, angles = off_center(90, 180, 4.2)
    assert find_center(sinogram[:, ::-1], angles[::-1])[0] == pytest.approx(65.3, abs=0.12)
    assert find_center(np.repeat(sinogram, 3, axis=0), angles)[0] == pytest.approx(65.3, abs=0.12)


@pytest.mark.parametrize(("views", "arc"), [(2, 180), (40, 30), (1, 180)])
def test_too_little_to_find_a_center_by(views: int, arc: float) -> None:
    sinogram, angles = off_center(views, arc, 5.0)
    assert find_center(sinogram, angles) == (69.5, "assumed")
    assert find_center(np.zeros_like(sinogram), angles) == (69.5, "assumed")


def parallel(angles: Any, **more: Any) -> ParallelBeam:
    return ParallelBeam(torch.deg2rad(torch.as_tensor(angles, dtype=torch.float64)), (32, 32), 48, 1.0, **more)


def test_coverage_of_complete_and_limited_scans() -> None:
    whole = coverage(parallel(np.arange(180)))
    assert not whole.limited
    assert not whole.sparse
    assert whole.arc == pytest.approx(math.pi)
    assert str(whole) == "180 views, all directions"
    part = coverage(parallel(np.arange(10, 41)))
    assert part.limited
    assert part.arc == pytest.approx(math.radians(30))
    assert part.missing == (pytest.approx((40, 190)),)
    assert "31 views over 30 of 180 degrees" in str(part)
    assert "from 40 to 190 degrees" in str(part)
    both = coverage(parallel([*range(0, 60), *range(90, 150)]))
    assert [tuple(map(round, gap)) for gap in both.missing] == [(59, 90), (149, 180)]


def test_coverage_of_sparse_and_odd_scans() -> None:
    few = coverage(parallel(np.arange(8) * 22.5))
    assert few.sparse
    assert not few.limited
    assert "streaks" in str(few)
    one = coverage(parallel([30.0]))
    assert one.missing == (pytest.approx((30, 210)),)
    two = coverage(parallel([0.0, 90.0]))
    assert not two.limited or len(two.missing) == 2
    scattered = coverage(parallel(np.random.default_rng(0).permutation(180)))
    assert not scattered.limited


def test_coverage_of_a_fan_is_that_of_its_middle_rays() -> None:
    fan = FanBeam(turns(91, 90.0 * 91 / 90), (32, 32), 48, 1.0, 100.0, 150.0)
    assert coverage(fan).missing[0] == pytest.approx((90, 180), abs=0.6)  # a ray next to the axis
    full = FanBeam(turns(90, 360), (32, 32), 48, 1.0, 100.0, 150.0)
    assert not coverage(full).limited
    free = ViewBeam([[0.0, 50.0]], [[1.0, 0.0]], (32, 32), 48, rays=[[0.0, 1.0]])
    assert coverage(free).missing[0] == pytest.approx((0, 180))


def test_line_integrals_of_counts() -> None:
    dark, white = np.full((2, 3), 10.0), np.full((2, 3), 110.0)
    white[0, 2] = 10.0  # a dead pixel
    counts = np.full((4, 2, 3), 60.0)
    counts[1, 0, 0] = 10.0  # nothing came through
    counts[2, 1, 1] = 8.0
    counts[3, 1, 2] = 11.0
    integrals, clamped = line_integrals(counts, dark, white)
    assert clamped == 4 + 2
    assert integrals[0, 0, 0] == pytest.approx(math.log(2))
    assert integrals[1, 0, 0] == integrals[2, 1, 1] == pytest.approx(math.log(100))  # the least that was seen
    assert not integrals[:, 0, 2].any()
    assert line_integrals(np.array([0.5]))[0][0] == pytest.approx(math.log(2))


def test_noise_is_estimated_through_an_object() -> None:
    sinogram, _ = off_center(60, 180, 0.0, noise=0.02)
    assert noise_std(sinogram) == pytest.approx(0.02 * off_center(60, 180, 0.0, noise=0.0)[0].max(), rel=0.05)
    assert noise_std(np.ones((5, 3))) == 0.0


# --- grids ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beam", ["parallel", "fan", "curved"])
def test_the_natural_grid_is_what_every_view_sees(beam: str) -> None:
    geometry = scanner(beam, 24, n_det=60, offset=3.0)
    shape, pixel = natural_grid(geometry)
    assert geometry.shape == shape
    assert geometry.pixel_size == pytest.approx((pixel, pixel))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not truncated
        on_grid(geometry, shape, pixel)
    with pytest.warns(UserWarning, match="truncated"):
        on_grid(geometry, (shape[0] + 6, shape[1] + 6), pixel)


@pytest.mark.parametrize("kind", ["parallel", "fan", "curved", "views", "rays"])
def test_another_grid_has_the_same_rays(kind: str) -> None:
    if kind in ("views", "rays"):
        fan = scanner("fan", 6, n_det=20)
        points, directions = fan.rays()
        middle = points[:, 9:11].mean(1)
        axes = points[:, 10] - points[:, 9]
        toward = directions.mean(1)
        geometry: Any = (
            ViewBeam(middle, axes, (9, 9), 20, 1e-3, rays=toward, unit="m")
            if kind == "rays"
            else ViewBeam(
                middle, axes, (9, 9), 20, 1e-3, sources=middle - 0.3 * toward / toward.norm(dim=1)[:, None], unit="m"
            )
        )
    else:
        geometry = scanner(kind, 6, n_det=20, offset=1.5)
    other = on_grid(geometry, (5, 7), (2e-3, 3e-3))
    assert (other.shape, other.pixel_size) == ((5, 7), pytest.approx((2e-3, 3e-3)))
    for before, after in zip(geometry.rays(), other.rays(), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-15)
    extent = [n * p for n, p in zip(geometry.shape, geometry.pixel_size, strict=True)]
    halved = on_grid(geometry, pixel_size=geometry.pixel_size[0] / 2)
    assert [n * p for n, p in zip(halved.shape, halved.pixel_size, strict=True)] == pytest.approx(extent)
    assert on_grid(geometry) is geometry


# --- scans ---------------------------------------------------------------------------------------------------------
def scan_of(slices: int = 2) -> CTScan:
    geometry = scanner("fan", 12, n_det=32)
    return simulate(phantom("disc", geometry, slices), geometry, noise_std=0.01)


def test_a_scan_is_that_of_its_phantom() -> None:
    geometry = scanner("fan", 6, n_det=192)
    for kind in ("disc", "body", "head"):
        body = phantom(kind, geometry, 1 if kind == "head" else 2)
        scan = simulate(body, geometry)
        image = truth(body, geometry)
        assert image.shape == (len(scan.sinogram), *geometry.shape)
        again = radon(image.double(), geometry).numpy()
        assert np.linalg.norm(again - scan.sinogram) < 0.03 * np.linalg.norm(scan.sinogram), kind
        assert 0.5 < scan.sinogram.max() < 8  # what a scanner would measure


def test_noise_of_photons_and_of_electronics() -> None:
    geometry = scanner("fan", 200, n_det=64)
    body = phantom("disc", geometry)
    clean = simulate(body, geometry).sinogram
    white = simulate(body, geometry, noise_std=0.03, seed=1).sinogram - clean
    assert white.std() == pytest.approx(0.03, rel=0.02)
    counted = simulate(body, geometry, photons=1e4, seed=1).sinogram - clean
    thick = clean > 1
    # Var(-log N) = 1 / E N
    assert counted[thick].std() == pytest.approx(np.sqrt(np.exp(clean[thick]).mean() / 1e4), rel=0.05)
    assert counted[clean < 0.01].std() == pytest.approx(0.01, rel=0.05)
    starved = simulate(body, geometry, photons=1.0)
    assert np.isfinite(starved.sinogram).all()
    assert "no photon" in starved.metadata["clamped"]


def test_views_and_slices_of_a_scan() -> None:
    scan = scan_of()
    part = some_views(scan, slice(1, 9, 2))
    assert np.array_equal(part.sinogram, scan.sinogram[:, 1:9:2])
    assert torch.equal(part.geometry.rays()[1], scan.geometry.rays()[1][1:9:2])
    assert np.array_equal(some_views(scan, [3, 0]).sinogram, scan.sinogram[:, [3, 0]])
    assert some_slices(scan, 1).sinogram.shape == (1, 12, 32)
    with pytest.raises(ValueError, match="views"):
        some_views(scan, slice(5, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sinogram": np.zeros((1, 11, 32), np.float32)}, r"sinogram: float32 of shape \(1, 11, 32\)"),
        ({"sinogram": np.ones((12, 32), np.float32)}, "sinogram: float32 of shape"),
        ({"sinogram": np.ones((1, 12, 32), np.int32)}, "sinogram: int32"),
        ({"sinogram": np.zeros((1, 12, 32), np.float32)}, "zero everywhere"),
        (
            {"sinogram": np.full((1, 12, 32), np.nan, np.float32)},
            "12 views hold NaN or Inf, the first is view 0 of slice 0",
        ),
        ({"sinogram": np.full((1, 12, 32), 1e20, np.float32)}, r"12 views hold values beyond 1e\+15"),
        ({"labels": ("a", "b", "c")}, "labels: got 3"),
    ],
)
def test_damaged_scans_are_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_scan(replace(scan_of(1), **change))


@pytest.mark.filterwarnings("ignore:detector")
def test_rays_past_the_image_are_told() -> None:
    near, far = (ParallelBeam([0.0, 1.0], (8, 8), 4, 1e-3, offset, 1e-3, unit="m") for offset in (4e-3, 8e-3))
    check_rays(near)
    with pytest.raises(DataError, match=r"no ray crosses the image of 0\.008 x 0\.008 m, the nearest passes 0\.0065 m"):
        check_rays(far)


def test_misuse_is_told() -> None:
    with pytest.raises(TypeError, match="expected a CTScan"):
        check_scan(np.zeros((1, 2, 3)))  # type: ignore[arg-type]
    geometry = scanner("fan", 12, n_det=32)
    with pytest.raises(ValueError, match="body: shape"):
        simulate(torch.ones(3, 3), geometry)
    with pytest.raises(ValueError, match="photons"):
        simulate(torch.ones(1, 3, 3), geometry, photons=0.0)
    with pytest.raises(ValueError, match="beam: 'cone'"):
        scanner("cone", 3)
    with pytest.raises(ValueError, match="kind: 'cat'"):
        phantom("cat", geometry)
