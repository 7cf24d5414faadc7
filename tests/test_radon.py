"""What line integrals and filtered backprojection must satisfy beyond the shared laws of tests/test_ops.py."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import skimage.io
import skimage.transform
import torch
from torch import Tensor

from pyrecon import backend, testing
from pyrecon.linops import Radon
from pyrecon.ops import Beam, FanBeam, ParallelBeam, ViewBeam, fbp, radon, radon_adjoint
from pyrecon.ops._fbp import _short_scan_weights
from pyrecon.testing.ellipses import ellipse_image, ellipse_projection, shepp_logan

SIZE = (72, 64)
WIDTH = 5.0  # of the blobs, pixels: what is between pixels is then known to 1e-9, and the rest is Joseph's error
BLOBS = ((1.0, 4.0, -6.0), (0.6, -9.0, 8.0), (-0.4, 2.0, 11.0))  # value, x, y


def turn(count: int, arc: float = math.pi, first: float = 0.13) -> Tensor:
    return first + torch.arange(count, dtype=torch.float64) * (arc / count)


def blobs(geometry: Beam) -> Tensor:
    height, width = geometry.shape
    dy, dx = geometry.pixel_size
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * dx
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64)[:, None]) * dy
    return sum(v * (-((x - a) ** 2 + (y - b) ** 2) / (2 * WIDTH**2)).exp() for v, a, b in BLOBS)


def blob_integrals(geometry: Beam) -> Tensor:
    points, directions = geometry.rays()
    directions = directions / directions.norm(dim=-1, keepdim=True)
    total = torch.zeros(geometry.range_shape, dtype=torch.float64)
    for v, a, b in BLOBS:
        x, y = points[..., 0] - a, points[..., 1] - b
        distance = x * directions[..., 1] - y * directions[..., 0]
        total += v * math.sqrt(2 * math.pi) * WIDTH * (-(distance**2) / (2 * WIDTH**2)).exp()
    return total


def fan(views: int = 90, arc: float = 2 * math.pi, **options: Any) -> FanBeam:
    return FanBeam(turn(views, arc), SIZE, 130, 1.4, 120.0, 190.0, **options)


def view_by_view(beam: ParallelBeam | FanBeam) -> ViewBeam:
    c, s = beam.angles.cos(), beam.angles.sin()
    across, forward = torch.stack([c, s], 1), torch.stack([-s, c], 1)
    if isinstance(beam, ParallelBeam):
        middle = beam.det_offset * across
        return ViewBeam(middle, beam.det_spacing * across, beam.shape, beam.n_det, rays=3 * forward)
    middle = (beam.source_to_detector - beam.source_to_axis) * forward + beam.det_offset * across
    return ViewBeam(
        middle, beam.det_spacing * across, beam.shape, beam.n_det, sources=-beam.source_to_axis * forward,
        curved=beam.curved,
    )  # fmt: skip


GEOMETRIES: dict[str, Callable[[], Beam]] = {
    "parallel": lambda: ParallelBeam(turn(40), SIZE),
    "parallel-moved": lambda: ParallelBeam(turn(40), SIZE, 150, 0.8, det_offset=7.3),
    "parallel-offsets": lambda: ParallelBeam(turn(40), SIZE, 120, det_offset=torch.linspace(-2, 2, 40)),
    "fan": fan,
    "fan-curved": lambda: fan(curved=True, det_offset=-4.0),
    "views": lambda: view_by_view(fan(20, det_offset=3.0)),
    "views-curved": lambda: view_by_view(fan(20, curved=True)),
    "views-parallel": lambda: view_by_view(ParallelBeam(turn(20), SIZE)),
}


# --- line integrals ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GEOMETRIES)
def test_integrals_of_smooth_bodies(name: str) -> None:
    geometry = GEOMETRIES[name]()
    exact = blob_integrals(geometry)
    # Linear interpolation smooths by f (1 - f) / 2 pixels^2, a third of 1/4 on average, along one axis: of a blob that
    # is 1/12 / 2 / WIDTH^2 = 0.2 % at its top, 0.5 % where it curves most.
    error = float((radon(blobs(geometry), geometry) - exact).abs().max() / exact.abs().max())
    assert error < 5e-3, error


@pytest.mark.parametrize("name", ["parallel", "fan", "fan-curved"])
def test_integrals_of_ellipses_converge(name: str) -> None:
    errors = []
    for size in (64, 128):
        angles, pixel = turn(12, 2 * math.pi), 96 / size
        if name == "parallel":
            geometry: Beam = ParallelBeam(angles, (size, size), 140, 1.0, pixel_size=pixel)
        else:
            geometry = FanBeam(angles, (size, size), 140, 1.6, 150.0, 220.0, pixel_size=pixel, curved=name != "fan")
        ellipses = shepp_logan(45.0)
        exact = ellipse_projection(geometry, ellipses)
        difference = radon(ellipse_image(geometry, ellipses, fine=4), geometry) - exact
        errors.append(float(difference.norm() / exact.norm()))
    # Half as large pixels, half the error: that of the edges, which pixels blur.
    assert errors[1] < 0.6 * errors[0] < 0.05, errors


def test_projections_have_the_mass_of_the_body_at_every_angle() -> None:
    # https://github.com/matteo-ronchetti/torch-radon/issues/30: sums wrong at 0 and 90 degrees.
    angles = torch.deg2rad(torch.tensor([0.0, 45.0, 90.0, 30.0, 60.0, 135.0, 179.0]).double())
    for pixel, spacing in (((1.0, 1.0), 1.0), ((0.8, 1.3), 0.7)):
        geometry = ParallelBeam(angles, SIZE, 200, spacing, pixel_size=pixel)
        image = blobs(geometry)
        sums = radon(image, geometry).sum(1) * spacing
        mass = image.sum() * pixel[0] * pixel[1]
        # The blobs end at the border of the image, where the widest is exp(-23^2 / 50) of its top.
        assert float((sums / mass - 1).abs().max()) < 5e-5


def test_angle_zero_is_that_of_scikit_image() -> None:
    size = 65  # odd: its middle is then a pixel, as scikit-image has it for every size
    image = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reach = torch.arange(size) - size // 2
    image *= reach**2 + reach[:, None] ** 2 < (size // 2 - 2) ** 2
    degrees = np.array([0.0, 90.0, 30.0, 75.0, 140.0])
    geometry = ParallelBeam(torch.deg2rad(torch.from_numpy(degrees)), (size, size), size)
    ours = radon(image, geometry)
    theirs = torch.from_numpy(skimage.transform.radon(image.numpy(), degrees)).T
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-9, atol=1e-9)
    # Elsewhere they turn the image, interpolating along both axes; of what is smooth this changes little.
    smooth = blobs(geometry)
    ours = radon(smooth, geometry)
    theirs = torch.from_numpy(skimage.transform.radon(smooth.numpy(), degrees, circle=False)).T
    theirs = theirs[:, theirs.shape[1] // 2 - size // 2 :][:, :size]  # middle on middle
    assert float((ours - theirs).norm() / theirs.norm()) < 0.01
    assert float((ours.flip(1) - theirs).norm() / theirs.norm()) > 0.1


def test_a_fan_from_far_away_is_parallel() -> None:
    beam = ParallelBeam(turn(12), SIZE, 100)
    image = blobs(beam)
    for curved in (False, True):
        far = FanBeam(turn(12), SIZE, 100, 1.0, 1e9, 1e9 + 100, curved=curved)
        torch.testing.assert_close(radon(image, far), radon(image, beam), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["parallel", "parallel-offsets", "fan", "curved"])
def test_view_by_view_is_the_same_scanner(name: str) -> None:
    beam = GEOMETRIES[name]() if name != "curved" else fan(curved=True)
    assert isinstance(beam, ParallelBeam | FanBeam)
    views = view_by_view(beam) if name != "parallel-offsets" else None
    if views is None:
        c, s = beam.angles.cos(), beam.angles.sin()
        across = torch.stack([c, s], 1)
        views = ViewBeam(
            beam.det_offset[:, None] * across, across, SIZE, beam.n_det, rays=torch.stack([-s, c], 1)
        )  # fmt: skip
    x, y = torch.randn(SIZE, dtype=torch.float64), torch.randn(beam.range_shape, dtype=torch.float64)
    torch.testing.assert_close(radon(x, views), radon(x, beam), rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(fbp(y, views), fbp(y, beam), rtol=1e-9, atol=1e-9)
    assert views.arc == pytest.approx(beam.arc)
    assert views.full_arc == pytest.approx(beam.full_arc, abs=0.02)  # an offset widens one side of the fan


def test_a_detector_may_count_the_other_way() -> None:
    beam = fan(60)
    views = view_by_view(beam)
    assert views.sources is not None
    mirrored = ViewBeam(views.detectors, -views.axes, SIZE, beam.n_det, sources=views.sources)
    x, y = torch.randn(SIZE, dtype=torch.float64), torch.randn(beam.range_shape, dtype=torch.float64)
    torch.testing.assert_close(radon(x, mirrored), radon(x, beam).flip(1), rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(fbp(y.flip(1), mirrored), fbp(y, beam), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_transpose_is_exact(name: str, dtype: torch.dtype) -> None:
    A = Radon(GEOMETRIES[name]()).to(dtype)
    assert A.adjoint_error(batch=2) <= (1e-7 if dtype == torch.float32 else 1e-15)


@pytest.mark.parametrize("level", testing.available_isa_levels())
def test_scanners_of_any_proportions(level: str) -> None:
    """Sources that nearly touch the image, rays by the dozen in a pixel or many pixels apart, pixels of any shape."""
    generator = torch.Generator().manual_seed(1)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for trial in range(60):
        size, n_det = (int(draw(1, 90)), int(draw(1, 90))), int(draw(1, 150))
        pixel = (draw(0.5, 2), draw(0.5, 2))
        reach = math.hypot(size[0] * pixel[0], size[1] * pixel[1]) / 2
        angles, offset, spacing = [draw(0, 6.3) for _ in range(4)], draw(-9, 9), math.exp(draw(-3, 2))
        far = draw(1.05, 6) * reach
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if trial % 3 == 0 or n_det * spacing > 2 * far:
                geometry: Beam = ParallelBeam(angles, size, n_det, spacing, offset, pixel)
            else:
                options = (n_det, spacing, far, draw(1, 2) * far, offset, pixel)
                geometry = FanBeam(angles, size, *options, curved=trial % 3 == 1)
        x, y = (torch.randn(1, *shape, generator=generator) for shape in (size, geometry.range_shape))
        with backend("reference"):
            exact = radon(x.double(), geometry), radon_adjoint(y.double(), geometry)
        with testing.isa(level):
            found = radon(x, geometry), radon_adjoint(y, geometry)
        for value, expected in zip(found, exact, strict=True):
            testing.assert_close_to_reference(value, expected, k=256)  # places of up to 200 pixels, few samples


def test_a_nan_stays_in_its_image() -> None:
    geometry = ParallelBeam(turn(9), (16, 16))
    image = torch.ones(3, 16, 16)
    image[1, 4, 5] = math.nan
    assert torch.isfinite(radon(image, geometry)[[0, 2]]).all()
    assert not torch.isfinite(radon(image, geometry)[1]).all()
    sino = torch.ones(3, *geometry.range_shape)
    sino[1, 4, 5] = math.nan
    for back in (radon_adjoint, fbp):
        assert torch.isfinite(back(sino, geometry)[[0, 2]]).all()


@pytest.mark.parametrize("views", [[3, 1, 7], slice(1, 9, 3), torch.tensor([5]), torch.arange(40) % 2 == 0])
def test_some_of_the_views(views: Any) -> None:
    for geometry in (GEOMETRIES["parallel-offsets"](), fan(40), view_by_view(fan(40))):
        image = torch.randn(SIZE, dtype=torch.float64)
        index = views if isinstance(views, slice) else torch.as_tensor(views)
        part = geometry.subset(views)
        assert type(part) is type(geometry)
        assert torch.equal(radon(image, part), radon(image, geometry)[index])
        assert torch.equal(part.tables(torch.device("cpu"))[0], part._lines()[0])  # what was taken along is right


# --- gradients by the geometry ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["parallel", "flat", "curved", "views"])
def test_gradients_reach_the_geometry(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 7, 6, dtype=torch.float64, generator=generator).requires_grad_()
    sino = torch.randn(2, 4, 9, dtype=torch.float64, generator=generator).requires_grad_()
    start = {
        "angles": turn(4, 5.0), "det_offset": torch.tensor([0.11, -0.2, 0.05, 0.3]), "det_spacing": torch.tensor(1.13),
        "source_to_axis": torch.tensor(14.2), "source_to_detector": torch.tensor(20.3),
    }  # fmt: skip
    names = list(start)[: 3 if kind == "parallel" else 5]
    values = [start[name].double().requires_grad_() for name in names]

    def geometry(*values: Tensor) -> Beam:
        options: dict[str, Any] = dict(zip(names, values, strict=True))
        if kind == "parallel":
            return ParallelBeam(shape=(7, 6), n_det=9, unit="mm", **options)
        beam = FanBeam(shape=(7, 6), n_det=9, curved=kind == "curved", **options)
        return beam if kind != "views" else view_by_view_each(beam)

    def view_by_view_each(beam: FanBeam) -> ViewBeam:
        c, s = beam.angles.cos(), beam.angles.sin()
        across, forward = torch.stack([c, s], 1), torch.stack([-s, c], 1)
        middle = (beam.source_to_detector - beam.source_to_axis) * forward + beam.det_offset[:, None] * across
        return ViewBeam(middle, beam.det_spacing * across, (7, 6), 9, sources=-beam.source_to_axis * forward)

    for op, data in ((radon, image), (radon_adjoint, sino)):

        def call(data: Tensor, *values: Tensor, op: Callable[..., Tensor] = op) -> Tensor:
            return op(data, geometry(*values))

        assert torch.autograd.gradcheck(call, (data, *values), eps=1e-7, atol=1e-5, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (data, *values), eps=1e-7, atol=1e-4, fast_mode=True)


def test_an_offset_is_found_by_its_gradient() -> None:
    angles = turn(30)
    image = blobs(ParallelBeam(angles, SIZE))
    data = radon(image, ParallelBeam(angles, SIZE, 110, det_offset=1.7))
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    geometry = ParallelBeam(angles, SIZE, 110, det_offset=offset)  # one object: read anew in every step
    optimizer = torch.optim.LBFGS([offset], line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (radon(image, geometry) - data).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert float(offset.detach()) == pytest.approx(1.7, abs=1e-3)


# --- filtered backprojection -----------------------------------------------------------------------------------------
SCANS: dict[str, Callable[[], Beam]] = {
    "half-turn": lambda: ParallelBeam(turn(120), SIZE),
    "full-turn": lambda: ParallelBeam(turn(240, 2 * math.pi), SIZE),
    "backwards": lambda: ParallelBeam(turn(120).flip(0), SIZE, 130, 0.8),
    "uneven": lambda: ParallelBeam(turn(160) + 0.3 * torch.sin(2 * turn(160)), SIZE),
    "moved": lambda: ParallelBeam(turn(120), SIZE, det_offset=3.3),
    "pixels": lambda: ParallelBeam(turn(120), (60, 80), 140, 0.8, pixel_size=(1.2, 0.8)),
    "fan": lambda: fan(240),
    "curved": lambda: fan(240, curved=True),
    "fan-moved": lambda: fan(240, det_offset=5.0),
    "short": lambda: fan(170, math.pi + 2 * math.atan(0.5 * 129 * 1.4 / 190.0)),
    "over-scan": lambda: fan(200, 1.6 * math.pi),
    "curved-short": lambda: fan(170, math.pi + 2 * (0.5 * 129 * 1.4 / 190.0), curved=True),
}  # fmt: skip


@pytest.mark.parametrize("name", SCANS)
def test_fbp_recovers_smooth_bodies(name: str) -> None:
    geometry = SCANS[name]()
    image = blobs(geometry)
    found = fbp(blob_integrals(geometry), geometry)
    # Interpolation on the detector smooths as in the projection, and the ends of a short scan are only so smooth.
    assert float((found - image).abs().max() / image.max()) < (0.03 if "short" in name or "over" in name else 0.01)


def test_limited_scans_say_so() -> None:
    limited = ParallelBeam(turn(60, math.pi / 2), SIZE)
    assert limited.arc == pytest.approx(math.pi / 2)
    assert limited.full_arc == pytest.approx(math.pi)
    assert fan(60, 1.5).arc == pytest.approx(1.5)
    assert fan().full_arc == pytest.approx(math.pi + 2 * math.atan(0.5 * 129 * 1.4 / 190.0))
    assert fan().arc == pytest.approx(2 * math.pi)
    assert ParallelBeam([0.3], SIZE).arc == 0
    image = blobs(limited)
    assert torch.isfinite(fbp(radon(image, limited), limited)).all()


@pytest.mark.parametrize("curved", [False, True])
def test_short_scan_weights_count_every_line_once(curved: bool) -> None:
    half, arc = 0.3, math.pi + 0.7
    fans = torch.linspace(-half, half, 31, dtype=torch.float64)
    first = torch.linspace(0, arc, 400, dtype=torch.float64)
    once = _short_scan_weights(first, arc, fans.expand(400, 31), half)
    again = first[:, None] + math.pi - 2 * fans
    other = torch.stack(
        [_short_scan_weights(again[:, d], arc, -fans[d].expand(400, 1), half)[:, 0] for d in range(31)], dim=1
    )
    measured = (again >= 0) & (again <= arc)
    torch.testing.assert_close((once + other)[measured], torch.ones(int(measured.sum()), dtype=torch.float64))


def test_weights_of_a_full_turn_are_an_option() -> None:
    geometry = fan(240)
    sino = blob_integrals(geometry)
    counted, parker = fbp(sino, geometry, short_scan=False), fbp(sino, geometry, short_scan=True)
    assert not torch.equal(counted, parker)
    torch.testing.assert_close(fbp(sino, geometry), counted, rtol=0, atol=0)


def test_windows_damp_high_frequencies_in_their_order() -> None:
    geometry = ParallelBeam(turn(90), SIZE)
    noise = torch.randn(geometry.range_shape, generator=torch.Generator().manual_seed(0))
    sizes = [float(fbp(noise, geometry, f).norm()) for f in ("ramp", "shepp-logan", "cosine", "hamming", "hann")]
    assert sizes == sorted(sizes, reverse=True)
    image = blobs(geometry)
    for window in ("ramp", "shepp-logan", "cosine", "hamming", "hann"):
        found = fbp(blob_integrals(geometry), geometry, window)
        assert float(found.sum() / image.sum()) == pytest.approx(1, abs=2e-3)
    plain = fbp(noise, geometry, None)
    assert float(plain.norm()) > 0
    assert not torch.allclose(plain, fbp(noise, geometry), rtol=0.1)


def test_fbp_is_that_of_scikit_image() -> None:
    size = 65
    degrees = np.arange(0.0, 180.0, 1.5)
    geometry = ParallelBeam(torch.deg2rad(torch.from_numpy(degrees)), (size, size), size)
    sino = radon(blobs(geometry), geometry)
    for name in ("ramp", "hann"):
        theirs = skimage.transform.iradon(sino.numpy().T, degrees, filter_name=name)
        ours = fbp(sino, geometry, name).numpy()
        inside = theirs != 0
        # They pad to the next power of two only, so that views reach around; and their window is cut off at zero.
        assert np.abs(ours - theirs)[inside].max() < 5e-3 * np.abs(theirs).max()


def test_repeated_views_share_their_weight() -> None:
    angles = turn(60)
    once = ParallelBeam(angles, SIZE)
    with pytest.warns(UserWarning, match=r"angles: 2 of 62 repeat others"):
        twice = ParallelBeam(torch.cat([angles, angles[[0, 17]]]), SIZE)
    torch.testing.assert_close(fbp(blob_integrals(twice), twice), fbp(blob_integrals(once), once))


def test_units_are_stated_once() -> None:
    metres = FanBeam(turn(30, 6.2), SIZE, 130, 1.4e-3, 0.12, 0.19, pixel_size=1e-3, unit="m")
    millimetres = FanBeam(turn(30, 6.2), SIZE, 130, 1.4, 120.0, 190.0, pixel_size=1.0, unit="mm")
    plain = FanBeam(turn(30, 6.2), SIZE, 130, 1.4, 120.0, 190.0)
    assert millimetres.pixel_size == pytest.approx((1e-3, 1e-3))
    image = blobs(plain)
    torch.testing.assert_close(radon(image, metres), radon(image, plain) * 1e-3)
    torch.testing.assert_close(radon(image, millimetres), radon(image, plain) * 1e-3)
    sino = blob_integrals(plain)
    torch.testing.assert_close(fbp(sino * 1e-3, millimetres), fbp(sino, plain), rtol=1e-9, atol=1e-12)
    moved = ViewBeam([[0.0, 70.0]], [[1.4, 0.0]], SIZE, 130, sources=[[0.0, -120.0]], unit="mm")
    torch.testing.assert_close(radon(image, moved), 1e-3 * radon(image, FanBeam([0.0], SIZE, 130, 1.4, 120.0, 190.0)))


# --- the operator ----------------------------------------------------------------------------------------------------
def test_the_operator_is_the_ops() -> None:
    geometry = fan(20)
    A = Radon(geometry)
    x, y = torch.randn(2, *SIZE), torch.randn(2, *geometry.range_shape)
    assert torch.equal(A(x), radon(x, geometry))
    assert torch.equal(A.H(y), radon_adjoint(y, geometry))
    assert torch.equal(A.fbp(y, "hann", short_scan=True), fbp(y, geometry, "hann", short_scan=True))
    assert torch.equal(A.subset([4, 2])(x), A(x)[:, [4, 2]])
    assert A.geometry is geometry
    slices = Radon(geometry, channels=3)
    stack = torch.randn(2, 3, *SIZE)
    assert slices.range_shape == (3, *geometry.range_shape)
    assert torch.equal(slices(stack), radon(stack, geometry))
    assert slices.subset(slice(0, 3)).range_shape == (3, 3, 130)
    # Rays keep their digits whatever is done to the module.
    assert torch.equal(A.half().to(torch.float32)(x), radon(x, geometry))
    matrix = Radon(ParallelBeam(turn(5), (6, 5))).double().as_matrix()
    norm = Radon(ParallelBeam(turn(5), (6, 5))).double().norm(rtol=1e-9, max_iter=2000)
    assert float(norm) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-6)


# --- wrong use -------------------------------------------------------------------------------------------------------
IMAGE = torch.zeros(8, 8)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no angles": (lambda: ParallelBeam([], (8, 8)), r"angles: shape \(0,\)"),
    "angles of NaN": (lambda: ParallelBeam([0.0, math.nan], (8, 8)), "angles: holds NaN or infinity"),
    "complex angles": (lambda: ParallelBeam(torch.ones(3, dtype=torch.complex64), (8, 8)), "angles: dtype"),
    "words": (lambda: ParallelBeam("all round", (8, 8)), "angles: 'all round', expected angles in radians"),
    "no pixels": (lambda: ParallelBeam([0.0], (0, 8)), "shape: 0 does not fit"),
    "no detector": (lambda: ParallelBeam([0.0], (8, 8), 0), "n_det: 0 does not fit"),
    "three sides": (lambda: ParallelBeam([0.0], (8, 8), pixel_size=(1.0, 1.0, 1.0)), "pixel_size: "),
    "flat pixels": (lambda: ParallelBeam([0.0], (8, 8), pixel_size=0.0), "pixel_size: 0.0 does not fit"),
    "kilometres": (lambda: ParallelBeam([0.0], (512, 512), pixel_size=2.0, unit="m"), r"a body of 1024 m.*are they mm"),
    "feet": (lambda: ParallelBeam([0.0], (8, 8), unit="ft"), "unit: 'ft' is not known, expected 'm' or 'mm'"),
    "negative spacing": (lambda: ParallelBeam([0.0], (8, 8), det_spacing=-1.0), "det_spacing: -1.0 does not fit"),
    "two offsets": (lambda: ParallelBeam([0.0, 1.0, 2.0], (8, 8), det_offset=torch.ones(2)), "det_offset: shape"),
    "source inside": (lambda: FanBeam([0.0], (8, 8), 9, 1.0, 3.0, 9.0), "source: that of view 0 lies inside the image"),
    "half a sphere": (lambda: FanBeam([0.0], (8, 8), 900, 1.0, 8.0, 9.0, curved=True), "fan of .* less than 180"),
    "flag": (lambda: FanBeam([0.0], (8, 8), 9, 1.0, 9.0, 9.0, curved=1), "curved: 1, expected True or False"),
    "rays and sources": (lambda: ViewBeam([[0, 9]], [[1, 0]], (8, 8), 20, sources=[[0, -9]], rays=[[0, 1]]), "both"),
    "neither": (lambda: ViewBeam([[0, 9]], [[1, 0]], (8, 8), 20), "sources: expected either"),
    "an axis too few": (lambda: ViewBeam([[0, 9], [9, 0]], [[1, 0]], (8, 8), 20, rays=[[0, 1]]), "axes: shape"),
    "detector along the ray": (lambda: ViewBeam([[0, 9]], [[0, 1]], (8, 8), 20, rays=[[0, 1]]), "lies along its rays"),
    "detector behind": (lambda: ViewBeam([[0, -19]], [[1, 0]], (8, 8), 20, sources=[[0, -9]]), "detectors: .*in front"),
    "curved without source": (lambda: ViewBeam([[0, 9]], [[1, 0]], (8, 8), 20, rays=[[0, 1]], curved=True), "curved: "),
    "another image": (lambda: radon(IMAGE, ParallelBeam([0.0], (8, 9))), r"image: shape \(8, 8\).*\(8, 9\)"),
    "another sinogram": (lambda: radon_adjoint(IMAGE, ParallelBeam([0.0], (8, 8), 8)), "sino: shape .*views, n_det"),
    "whole numbers": (lambda: radon(IMAGE.long(), ParallelBeam([0.0], (8, 8))), "image: dtype int64"),
    "no geometry": (lambda: radon(IMAGE, 3), "geometry: 3, expected a ParallelBeam"),
    "no geometry, fbp": (lambda: fbp(IMAGE, None), "geometry: None, expected a ParallelBeam"),
    "no operator": (lambda: Radon("fan"), "geometry: 'fan', expected a ParallelBeam"),
    "window": (lambda: fbp(torch.zeros(1, 12), ParallelBeam([0.0], (8, 8), 12), "box"), "filter: 'box' is not known"),
    "short parallel": (
        lambda: fbp(torch.zeros(1, 12), ParallelBeam([0.0], (8, 8), 12), short_scan=True), "short_scan: parallel rays"),
    "crooked": (
        lambda: fbp(torch.zeros(2, 40), ViewBeam([[0, 9], [9, 3]], [[1, 0], [0, -1]], (8, 8), 40,
                                                 sources=[[0, -12], [-14, 0]])), "ideal scanner.*take least"),
    "view 9": (lambda: ParallelBeam([0.0, 1.0], (8, 8)).subset([9]), "views: 9 to 9 does not fit, expected 0 to 1"),
    "no views": (lambda: ParallelBeam([0.0, 1.0], (8, 8)).subset([]), r"views: shape \(0,\)"),
    "views by name": (lambda: ParallelBeam([0.0, 1.0], (8, 8)).subset("first"), "views: 'first', expected numbers"),
    "half a view": (lambda: ParallelBeam([0.0, 1.0], (8, 8)).subset([0.5]), "views: dtype"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_named(name: str) -> None:
    call, message = WRONG[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_doubtful_scans_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"detector: 3 of 3 views reach only .* truncated"):
        ParallelBeam([0.0, 1.0, 2.0], (64, 64), 40)
    with pytest.warns(UserWarning, match=r"are they degrees"):
        ParallelBeam(torch.arange(0.0, 180.0), (64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParallelBeam([0.0, 1.0, 2.0], (64, 64), 64)
        fan()


SHARED = Path(__file__).parents[2] / "shared/data/ct"


@pytest.mark.skipif(not SHARED.exists(), reason="the Helsinki scans lie beside the checkout, if anywhere")
@pytest.mark.parametrize(("scan", "truth"), [("tb_90deg", "tb"), ("tb_30deg", "tb"), ("ta_category7", "ta")])
def test_a_real_fan_beam_scan_is_the_projection_of_its_segmentation(scan: str, truth: str) -> None:
    file = scipy.io.loadmat(str(SHARED / f"htc_{scan}.mat"), squeeze_me=True, struct_as_record=False)
    data = next(value for name, value in file.items() if not name.startswith("_"))
    about = data.parameters
    mask = torch.from_numpy(skimage.io.imread(SHARED / f"htc_{truth}_truth.png") > 0).double()
    geometry = FanBeam(
        torch.deg2rad(torch.from_numpy(np.asarray(about.angles, float))), mask.shape, about.numDetectorsPost,
        about.pixelSizePost, about.distanceSourceOrigin, about.distanceSourceDetector,
        pixel_size=about.effectivePixelSizePost, unit="mm",
    )  # fmt: skip
    both = torch.stack([radon(mask, geometry).flatten(), torch.from_numpy(data.sinogram).flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99
