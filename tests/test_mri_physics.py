"""Simulated MRI: masks hold exactly what they say, coils obey the field of a current loop, noise its covariance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon.data.fourier import centered_slice, fft_centered, ifft_centered
from pyrecon.physics import mri

LINES = {"random": mri.random_lines, "gaussian": mri.gaussian_lines}
POINTS = {"gaussian": mri.gaussian_points, "poisson": mri.poisson_disc}


# --- masks -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", LINES.values(), ids=LINES.keys())
@pytest.mark.parametrize(("n", "rate", "acl"), [(160, 4, 16), (161, 3.3, 15), (368, 8, 15), (32, 1, 8), (31, 31, 1)])
@pytest.mark.parametrize("axis", [-2, -1])
def test_lines_have_the_stated_acceleration_and_acl(
    make: Callable[..., Tensor], n: int, rate: float, acl: int, axis: int
) -> None:
    shape = (n, 7) if axis == -2 else (7, n)
    mask = make(shape, rate, acl=acl, axis=axis, batch=3, seed=1)
    assert mask.dtype == torch.bool
    assert mask.shape == ((3, 1, n, 1) if axis == -2 else (3, 1, 1, n))
    lines = mask.flatten(1)
    assert (lines.sum(dim=1) == round(n / rate)).all()
    assert lines[:, centered_slice(n, acl)].all()
    assert mri.acceleration(mask) == n / round(n / rate)


@pytest.mark.parametrize("make", POINTS.values(), ids=POINTS.keys())
@pytest.mark.parametrize(("shape", "rate", "side"), [((96, 80), 6, 12), ((61, 64), 3.7, 9), ((40, 40), 1, 0)])
def test_points_have_the_stated_acceleration_and_centre(
    make: Callable[..., Tensor], shape: tuple[int, int], rate: float, side: int
) -> None:
    mask = make(shape, rate, calibration=side, batch=2, seed=3)
    assert mask.shape == (2, 1, *shape)
    assert (mask.flatten(1).sum(dim=1) == round(shape[0] * shape[1] / rate)).all()
    assert mask[:, 0, centered_slice(shape[0], side), centered_slice(shape[1], side)].all()


@pytest.mark.parametrize("make", [*LINES.values(), *POINTS.values()])
def test_masks_follow_the_seed_and_differ_within_a_batch(make: Callable[..., Tensor]) -> None:
    draw = partial(make, (96, 96), 4, batch=2)
    assert torch.equal(draw(seed=5), draw(seed=5))
    assert not torch.equal(draw(seed=5), draw(seed=6))
    assert not torch.equal(*draw(seed=5))


def test_random_lines_are_uniform_outside_the_acl() -> None:
    n, batch, acl, rate = 40, 20000, 8, 2
    mask = mri.random_lines((n, 1), rate, acl=acl, batch=batch)[:, 0, :, 0]
    outside = torch.ones(n, dtype=torch.bool)
    outside[centered_slice(n, acl)] = False
    p = (n // rate - acl) / (n - acl)
    # A line is in a mask with probability p: five standard errors of its frequency, over 32 lines.
    assert (mask.double().mean(dim=0)[outside] - p).abs().max() < 5 * (p * (1 - p) / batch) ** 0.5


def test_gaussian_lines_thin_out_as_wide_as_asked() -> None:
    n, batch = 101, 4000
    spread = []
    for width in (0.1, 0.2):
        # Few lines of many: drawing without replacement then leaves the density as it is.
        mask = mri.gaussian_lines((n, 1), n / 3, acl=0, width=width, batch=batch)[:, 0, :, 0].double()
        offset = torch.arange(n).double() - n // 2
        spread.append(float(((mask * offset**2).sum() / mask.sum()) ** 0.5) / n)
    # The edge at half the axis trims a Gaussian of 0.2 by 5 % (scipy.stats.truncnorm(-2.5, 2.5).std() = 0.95); three
    # draws without replacement widen it a little.
    assert spread[0] == pytest.approx(0.1, rel=0.04)
    assert spread[1] == pytest.approx(0.2 * 0.95, rel=0.04)


def test_equispaced_lines_are_a_comb_and_the_acl() -> None:
    mask = mri.equispaced_lines((160, 4), 4, acl=24)[0, 0, :, 0]
    expected = torch.zeros(160, dtype=torch.bool)
    expected[::4] = True
    expected[centered_slice(160, 24)] = True
    assert torch.equal(mask, expected)
    assert mask[80]
    shifted = mri.equispaced_lines((160, 4), 4, acl=0, offset=1)[0, 0, :, 0]
    assert shifted.nonzero()[:, 0].tolist() == list(range(1, 160, 4))


def test_poisson_disc_keeps_its_distance() -> None:
    slope = 2.0
    mask = mri.poisson_disc((128, 128), 8, calibration=0, slope=slope)[0, 0]
    points = mask.nonzero().double()
    distance = torch.cdist(points, points).fill_diagonal_(float("inf"))
    radius = torch.linalg.vector_norm((points - 64) / 64, dim=1) * slope + 1
    # Each point keeps r0 (1 + slope |p|) from those drawn after it, so any two the smaller of their radii; a point lies
    # anywhere in its cell, which takes up to sqrt(2) off the distance of the cells. r0: what the closest pair kept.
    r0 = float(((distance + 2**0.5) / torch.minimum(radius[:, None], radius[None, :])).min())
    assert r0 * radius.mean() > 0.8 * (128**2 / len(points)) ** 0.5


def test_poisson_disc_leaves_no_hole_as_independent_draws_do() -> None:
    grid = torch.ones(128, 128).nonzero().double()

    def largest_hole(mask: Tensor) -> float:
        return float(torch.cdist(grid, mask.nonzero().double()).amin(dim=1).max())

    independent = mri.gaussian_points((128, 128), 8, calibration=0, width=100.0)[0, 0]
    disc = mri.poisson_disc((128, 128), 8, calibration=0, slope=0.0)[0, 0]
    assert largest_hole(disc) < 0.7 * largest_hole(independent)


@pytest.mark.parametrize("slope", [0.0, 4.0])
def test_poisson_disc_slope_sets_the_density_gradient(slope: float) -> None:
    # 16-fold: nowhere so dense that the lattice limits it.
    mask = mri.poisson_disc((160, 160), 16, calibration=0, slope=slope)[0, 0].double()
    inner, outer = mask[60:100, 60:100].mean(), mask[:40, 60:100].mean()
    # Mean of (1 + slope |p|)^-2 over the two squares: |p| about 0.19 and 0.77.
    expected = ((1 + slope * 0.77) / (1 + slope * 0.19)) ** 2
    assert float(inner / outer) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mri.random_lines((160, 160), 8, acl=24), "acl, calibration: 24 fully sampled ones exceed the 20"),
        (lambda: mri.random_lines((160, 160), 0.5), "acceleration: 0.5"),
        (lambda: mri.random_lines((160, 160), 4, acl=161), "161 samples do not fit an axis of 160"),
        (lambda: mri.random_lines((160, 160), 4, axis=0), "axis: 0"),
        (lambda: mri.gaussian_lines((160, 160), 4, width=0.0), "width"),
        (lambda: mri.poisson_disc((64, 64), 8, calibration=32), "calibration: 1024 fully sampled"),
        (lambda: mri.poisson_disc((64, 64), 8, slope=-1.0), "slope"),
        (lambda: mri.equispaced_lines((64, 64), 0), "spacing"),
        (lambda: mri.coil_maps((8, 8), 0), "coils"),
        (lambda: mri.coil_maps((8, 8), 4, ring=-1.0), "ring"),
    ],
)
def test_impossible_masks_and_coils_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- coils and object ------------------------------------------------------------------------------------------
def test_coil_maps_are_the_field_of_current_loops() -> None:
    shape, coils, ring, loop = (21, 24), 5, 1.4, 0.7
    maps = mri.coil_maps(shape, coils, ring=ring, loop=loop)[0].to(torch.complex128).numpy()
    y, x = np.meshgrid((np.arange(21) - 10) / 12, (np.arange(24) - 12) / 12, indexing="ij")
    expected = np.empty_like(maps)
    turn = np.arange(400) * 2 * np.pi / 400  # a closed curve: the trapezoidal rule converges exponentially
    for c in range(coils):
        angle = 2 * np.pi * c / coils
        out = np.array([np.cos(angle), np.sin(angle), 0.0])
        u, v = np.array([-np.sin(angle), np.cos(angle), 0.0]), np.array([0.0, 0.0, 1.0])
        wire = ring * out + loop * (np.cos(turn)[:, None] * u + np.sin(turn)[:, None] * v)
        dl = loop * (-np.sin(turn)[:, None] * u + np.cos(turn)[:, None] * v)
        r = np.stack([x, y, 0 * x], axis=-1)[:, :, None, :] - wire
        field = (np.cross(dl, r) / np.linalg.norm(r, axis=-1, keepdims=True) ** 3).sum(axis=2)  # Biot and Savart
        expected[c] = field[..., 0] - 1j * field[..., 1]
    expected /= np.sqrt((np.abs(expected) ** 2).sum(axis=0))
    sign = np.sign((expected.conj() * maps).sum().real)  # the current's direction is free
    assert np.abs(sign * maps - expected).max() < 1e-6  # complex64


@pytest.mark.parametrize("coils", [1, 2, 15])
def test_coil_maps_have_unit_root_sum_of_squares(coils: int) -> None:
    maps = mri.coil_maps((20, 33), coils)
    assert maps.shape == (1, coils, 20, 33)
    assert maps.dtype == torch.complex64
    assert (maps.abs().square().sum(dim=1) - 1).abs().max() < 8 * torch.finfo(torch.float32).eps


def test_head_phantom_fills_its_range_has_phase_and_follows_the_seed() -> None:
    head = mri.head_phantom((64, 48))
    assert head.shape == (1, 64, 48)
    assert float(head.abs().max()) == pytest.approx(1.0)
    assert float(head.abs()[0, 0, 0]) == 0.0
    inside = head.abs() > 0.05
    assert float(head.angle()[inside].std()) > 0.2
    assert torch.equal(mri.head_phantom((64, 48), phase=0.0).imag, torch.zeros(1, 64, 48))
    batch = mri.head_phantom((64, 48), batch=2, seed=1)
    assert torch.equal(batch, mri.head_phantom((64, 48), batch=2, seed=1))
    assert not torch.equal(*batch)


# --- acquisition -----------------------------------------------------------------------------------------------
def test_simulate_obeys_its_formula_without_noise() -> None:
    shape = (24, 20)
    image, maps = mri.head_phantom(shape, batch=2, seed=0), mri.coil_maps(shape, 3)
    mask = mri.random_lines(shape, 2, acl=4)
    scan = mri.simulate(image, maps, mask)
    expected = fft_centered((maps * image[:, None]).to(torch.complex128)) * mask
    error = np.abs(scan.kspace - expected.numpy()).max()
    assert error <= torch.finfo(torch.float32).eps * np.abs(scan.kspace).max()
    assert scan.mask.shape == (1, 1, 24, 1)
    assert scan.kspace[~np.broadcast_to(scan.mask, scan.kspace.shape)].any() == np.False_
    assert len(scan.labels) == 2


@pytest.mark.parametrize("width", [20, 21])
@pytest.mark.parametrize("factor", [2, 3])
def test_oversampled_readout_holds_the_same_image(width: int, factor: int) -> None:
    image, maps = mri.head_phantom((16, width)), mri.coil_maps((16, width), 2)
    scan = mri.simulate(image, maps, torch.ones(1, 1, 1, 1, dtype=torch.bool), readout_oversampling=factor)
    assert scan.kspace.shape == (1, 2, 16, factor * width)
    wide = ifft_centered(torch.from_numpy(scan.kspace))
    inner = wide[..., centered_slice(factor * width, width)]
    assert (inner - maps * image[:, None]).abs().max() < 1e-5
    assert float(wide.abs().square().sum()) == pytest.approx(float(inner.abs().square().sum()), rel=1e-5)


def test_noise_has_the_stated_covariance_in_the_data_and_the_noise_scan() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.complex128, generator=generator)
    covariance = (root @ root.mH + torch.eye(4)).numpy()
    image = torch.zeros(2, 96, 96, dtype=torch.complex64)
    maps = mri.coil_maps((96, 96), 4)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    scan = mri.simulate(image, maps, mask, noise_std=0.3, noise_covariance=covariance, noise_samples=20000, seed=7)
    assert scan.noise is not None
    for samples in (scan.kspace.transpose(1, 0, 2, 3).reshape(4, -1), scan.noise):
        n = samples.shape[1]
        found = samples @ samples.conj().T / n
        # An entry's standard error is at most sqrt(C_ii C_jj / n); five of them.
        power = 0.09 * covariance.diagonal().real
        assert (np.abs(found - 0.09 * covariance) < 5 * np.sqrt(np.outer(power, power) / n)).all()
        circular = np.abs(samples @ samples.T / n)  # real and imaginary parts alike and independent
        assert (circular < 5 * np.sqrt(2 * np.outer(power, power) / n)).all()


def test_simulate_is_reproducible_and_the_seed_matters() -> None:
    image, maps = mri.head_phantom((16, 16)), mri.coil_maps((16, 16), 2)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    a, b, c = (mri.simulate(image, maps, mask, noise_std=0.1, seed=s).kspace for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert mri.simulate(image, maps, mask, noise_samples=0).noise is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(1, 1, 15, 1, dtype=torch.bool)}, r"mask: shape \(1, 1, 15, 1\)"),
        ({"maps": mri.coil_maps((16, 15), 2)}, "maps: shape"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"noise_covariance": np.eye(3)}, r"noise_covariance: shape \(3, 3\) does not fit 2 coils"),
        ({"noise_covariance": np.array([[1, 2], [2, 1]])}, "not positive definite"),
        ({"noise_covariance": np.array([[1, 1j], [1j, 1]])}, "not Hermitian"),
        ({"mask": torch.ones(1, 1, 16, 16, dtype=torch.bool), "readout_oversampling": 2}, "readout_oversampling"),
    ],
)
def test_simulate_refuses_what_does_not_fit(change: dict[str, object], message: str) -> None:
    fitting = {
        "image": mri.head_phantom((16, 16)),
        "maps": mri.coil_maps((16, 16), 2),
        "mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        mri.simulate(**(fitting | change))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mask: dtype"):
        mri.simulate(fitting["image"], fitting["maps"], torch.ones(1, 1, 1, 1))
