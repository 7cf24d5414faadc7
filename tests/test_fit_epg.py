"""Spin-echo trains with stimulated echoes: the signal against turning spins, the fit against searches and scipy."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from pyrecon import backend, testing
from pyrecon.ops import EchoDecay, MultiSpinEcho, VoxelFit, fit_voxels
from pyrecon.ops._spin_echo import echo_train
from pyrecon.solvers import Status

SPACING, ECHOES = 0.01, 16
TIMES = SPACING * torch.arange(1, ECHOES + 1, dtype=torch.float64)


def turned_spins(rate: float, r1: float, spacing: float, angles: Any, spins: int = 200) -> Any:
    """Echoes by rotation matrices and relaxation, of spins whose phases are spread evenly over a circle, more of them
    than the phase graph has orders: their mean is exact."""
    phase = 2 * np.pi * np.arange(spins) / spins
    cos, sin = np.cos(phase), np.sin(phase)
    kept, stored = np.exp(-spacing / 2 * rate), np.exp(-spacing / 2 * r1)
    x, y, z = np.ones(spins), np.zeros(spins), np.zeros(spins)
    echoes = []
    for angle in angles:
        x, y, z = kept * (cos * x - sin * y), kept * (sin * x + cos * y), stored * z + 1 - stored
        y, z = np.cos(angle) * y - np.sin(angle) * z, np.sin(angle) * y + np.cos(angle) * z
        x, y, z = kept * (cos * x - sin * y), kept * (sin * x + cos * y), stored * z + 1 - stored
        echoes.append(x.mean())
    return np.array(echoes)


def maps(*space: int, b1: tuple[float, float] = (0.6, 0.9), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, *space, generator=generator, dtype=torch.float64)

    return drawn(8.0, 30.0), drawn(*b1), drawn(0.5, 1.5)


def noisy(*space: int, sigma: float = 0.01, model: MultiSpinEcho | None = None, **options: Any) -> Tensor:
    signal = (model or MultiSpinEcho()).signal(*maps(*space, **options), TIMES)
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return signal + sigma * noise


# --- the signal ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("echoes", [1, 2, 7, 32])
def test_the_signal_is_that_of_turning_spins(echoes: int) -> None:
    generator = np.random.default_rng(echoes)
    angles = generator.uniform(1.5, 3.5, echoes)
    times = SPACING * torch.arange(1, echoes + 1, dtype=torch.float64)
    for rate, t1, b1 in ((4.0, 0.3, 0.4), (20.0, 1.4, 0.8), (150.0, 3.0, 1.2)):
        model = MultiSpinEcho(tuple(angles), t1)
        known = 1.3 * turned_spins(rate, 1 / t1, SPACING, b1 * angles)
        one = torch.ones(1, 1, dtype=torch.float64)
        signal = model.signal(rate * one, b1 * one, 1.3 * one, times)[0, :, 0].numpy()
        np.testing.assert_allclose(signal, known, rtol=0, atol=1e-13)


def test_perfect_pulses_leave_an_exponential_and_the_first_echoes_are_known() -> None:
    rate, b1, factor = maps(5)
    torch.testing.assert_close(
        MultiSpinEcho().signal(rate, torch.ones_like(rate), factor, TIMES),
        EchoDecay().signal(rate[:, None], (factor[:, None],), TIMES[:, None, None])[:, :, 0],
        rtol=1e-13, atol=1e-14,
    )  # fmt: skip
    angles, t1 = (2.9, 2.2), 0.7
    first, second = MultiSpinEcho(angles, t1).signal(rate, b1, factor, TIMES[:2]).unbind(1)
    f, z = torch.exp(-SPACING * rate), math.exp(-SPACING / t1)
    one, two = (torch.sin(b1 * a / 2).square() for a in angles)
    torch.testing.assert_close(first, factor * f * one, rtol=1e-13, atol=0)
    stimulated = 0.5 * torch.sin(b1 * angles[0]) * torch.sin(b1 * angles[1]) * f * z
    torch.testing.assert_close(second, factor * (f * f * one * two + stimulated), rtol=1e-13, atol=0)


def test_pulses_beyond_pi_are_those_before_it() -> None:
    rate, b1, factor = maps(9)
    model = MultiSpinEcho()
    torch.testing.assert_close(model.signal(rate, b1, factor, TIMES), model.signal(rate, 2 - b1, factor, TIMES))


def test_tangents_are_the_derivatives() -> None:
    rate, b1, _ = maps(4)
    settings = torch.full((1, 1), SPACING, dtype=torch.float64), torch.full((1, 1), 0.8, dtype=torch.float64)
    angles = torch.linspace(2.5, 3.3, 6, dtype=torch.float64)

    def phi(rate: Tensor, b1: Tensor, order: int = 0) -> list[Tensor]:
        return echo_train(rate, b1, *settings, angles, order)

    found, one, none = phi(rate, b1, 2), torch.ones_like(rate), torch.zeros_like(rate)
    for i, along in enumerate(((one, none), (none, one))):
        slope = torch.func.jvp(lambda *p: phi(*p)[0], (rate, b1), along)[1]
        torch.testing.assert_close(found[1 + i], slope)
        bent = torch.func.jvp(lambda *p: tuple(phi(*p, 1)[1:]), (rate, b1), along)[1]
        torch.testing.assert_close(found[3 + i], bent[0])
        torch.testing.assert_close(found[4 + i], bent[1])


# --- the minimum ---------------------------------------------------------------------------------------------------
def test_no_other_point_is_better() -> None:
    data = noisy(12, sigma=0.02)
    fit = fit_voxels(MultiSpinEcho(), data, TIMES)
    rates = torch.logspace(math.log10(0.2), math.log10(2000), 250, dtype=torch.float64)
    grid = torch.meshgrid(rates, torch.linspace(0.3, 1, 120, dtype=torch.float64), indexing="ij")
    one = torch.ones(1, 1, dtype=torch.float64)
    angles = torch.full((ECHOES,), math.pi, dtype=torch.float64)
    (phi,) = echo_train(*(g.reshape(1, -1) for g in grid), SPACING * one, one, angles)
    phi = phi[0] / phi[0].norm(dim=0).clamp(min=1e-100)
    least = data[0].square().sum(0) - (phi.T @ data[0]).square().amax(0)
    assert bool((fit.residuals()[0].square().sum(0) <= least * (1 + 1e-9)).all())


def test_few_voxels_end_in_another_minimum() -> None:
    """Slow decays and noise leave several along a valley, which the best of twelve strips of B1 shows."""
    generator = torch.Generator().manual_seed(3)
    rate, b1 = (v + w * torch.rand(1, 500, generator=generator, dtype=torch.float64) for v, w in ((3, 37), (0.4, 0.6)))
    data = MultiSpinEcho().signal(rate, b1, torch.ones_like(rate), TIMES)
    data = data + 0.05 * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    reached = fit_voxels(MultiSpinEcho(), data, TIMES).residuals().square().sum(1)
    parts = torch.linspace(0.3, 1.0, 13, dtype=torch.float64).tolist()
    least = torch.stack([
        fit_voxels(MultiSpinEcho(b1_range=ends), data, TIMES).residuals().square().sum(1)
        for ends in pairwise(parts)
    ]).amin(0)  # fmt: skip
    assert float((reached > least * (1 + 1e-7)).double().mean()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_optimum_is_that_of_scipy(dtype: torch.dtype) -> None:
    data = noisy(5).to(dtype)
    fit = fit_voxels(MultiSpinEcho(t1=0.9), data, TIMES.to(dtype))
    for i in range(5):
        found, _ = scipy.optimize.curve_fit(
            lambda _t, r, b, m: m * turned_spins(r, 1 / 0.9, SPACING, np.full(ECHOES, b * np.pi), 40),
            TIMES.numpy(), data[0, :, i].double().numpy(), fit.value[0, :, i].double().numpy() * [1.1, 0.97, 1.05],
            xtol=1e-13, ftol=1e-13, gtol=1e-13,
        )  # fmt: skip
        np.testing.assert_allclose(fit.value[0, :, i].double().numpy(), found, rtol=1e-5)


def test_the_gradient_vanishes_and_iterations_are_few() -> None:
    data = noisy(3000, b1=(0.5, 0.95))
    fit = fit_voxels(MultiSpinEcho(), data, TIMES)
    assert fit.counts() == {"CONVERGED": 3000}
    assert float(fit.iterations.float().mean()) < 6
    p, one = fit.value, torch.ones(1, 1, dtype=torch.float64)
    angles = torch.full((ECHOES,), math.pi, dtype=torch.float64)
    phi = echo_train(p[:, 0], p[:, 1], SPACING * one, one, angles, 1)
    inner = p[:, 1] < 0.999  # beyond, the slope itself vanishes
    for slope in phi[1:]:
        along = p[:, 2:] * slope
        relative = (fit.residuals() * along).sum(1).abs() / (along.norm(dim=1) * data.norm(dim=1))
        assert float(relative[inner].max()) < 1e-6
    cut = fit_voxels(MultiSpinEcho(), data, TIMES, max_iter=1)
    assert cut.counts()["MAX_ITER"] > 2000


def test_what_stimulated_echoes_do_to_an_exponential_they_do_not_here() -> None:
    rate, b1, factor = maps(40, b1=(0.6, 0.8))
    data = MultiSpinEcho(t1=1.2).signal(rate, b1, factor, TIMES)
    ours = fit_voxels(MultiSpinEcho(t1=1.2), data, TIMES).maps()
    assert list(ours) == ["T2", "B1", "M0"]
    for name, truth in (("T2", 1 / rate), ("B1", b1), ("M0", factor)):
        torch.testing.assert_close(ours[name], truth, rtol=1e-7, atol=0)
    exponential = fit_voxels("t2", data, TIMES).maps()["T2"]
    assert float((exponential * rate - 1).mean()) > 0.1


def test_an_error_of_t1_does_what_the_docstring_says() -> None:
    times = 0.01 * torch.arange(1, 33, dtype=torch.float64)
    t2, b1 = torch.meshgrid(torch.linspace(0.04, 0.2, 9).double(), torch.linspace(0.6, 0.95, 8).double(), indexing="ij")
    rate, b1 = 1 / t2.reshape(1, -1), b1.reshape(1, -1)
    for t1, low, high in ((0.3, -0.095, 0.003), (0.5, -0.044, 0.002), (0.7, -0.02, 0.001), (2.0, -0.001, 0.024),
                          (3.0, -0.001, 0.033)):  # fmt: skip
        data = MultiSpinEcho(t1=t1).signal(rate, b1, torch.ones_like(rate), times)
        error = fit_voxels(MultiSpinEcho(), data, times).maps()["T2"] * rate - 1
        assert low < float(error.min())
        assert float(error.max()) < high


# --- bounds, B1 that is known, priors, masks -----------------------------------------------------------------------
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
def test_bounds_hold_and_have_no_gradient(implementation: str) -> None:
    with backend(implementation):
        data = noisy(60, b1=(1.0, 1.0)).requires_grad_()
        fit = fit_voxels(MultiSpinEcho(), data, TIMES)
        at = fit.value.detach()[:, 1] == 1
        assert 15 < int(at.sum()) < 45
        (grad,) = torch.autograd.grad(fit.value[:, 1][at].sum(), data, retain_graph=True)
        assert float(grad.abs().max()) == 0
        (grad,) = torch.autograd.grad(fit.rate[at].sum(), data)
        known = fit_voxels(MultiSpinEcho(b1=1.0), data, TIMES)
        torch.testing.assert_close(fit.rate[at], known.rate[at], rtol=1e-9, atol=0)
        (expected,) = torch.autograd.grad(known.rate[at].sum(), data)
        torch.testing.assert_close(grad, expected)
        errors, alone = fit.standard_errors(), known.standard_errors()
        assert bool(torch.isnan(errors[:, 1][at]).all())
        count = ECHOES - 3, ECHOES - 2  # parameters that were counted
        torch.testing.assert_close(errors[:, 0][at] * math.sqrt(count[0] / count[1]), alone[:, 0][at])
        rate = float(fit.rate.detach().median())
        cut = fit_voxels(MultiSpinEcho(), data, TIMES, bounds=(1.0, rate))
        assert float(cut.rate.detach().max()) == rate
        (grad,) = torch.autograd.grad(cut.rate[cut.rate == rate].sum(), data)
        assert float(grad.abs().max()) == 0


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize(
    ("held", "bounds", "b1_range"),
    [("B1", (0.2, 2000.0), (0.3, 0.65)), ("R2", (40.0, 2000.0), (0.3, 1.0)), ("both", (40.0, 2000.0), (0.85, 1.0))],
)
def test_gradients_at_active_bounds_match_finite_differences(
    held: str, bounds: tuple[float, float], b1_range: tuple[float, float], implementation: str
) -> None:
    data, t1 = noisy(2, b1=(0.75, 0.9))[:, :8], torch.full((1, 1, 1), 0.9, dtype=torch.float64)

    def f(data: Tensor, times: Tensor, t1: Tensor) -> Tensor:
        return fit_voxels(MultiSpinEcho(t1=t1, b1_range=b1_range), data, times, bounds=bounds, tol=1e-15).value

    with backend(implementation):
        value = f(data, TIMES[:8], t1)
        assert bool(((value[:, 0] == bounds[0]) == (held != "B1")).all())
        assert bool((((value[:, 1] == b1_range[0]) | (value[:, 1] == b1_range[1])) == (held != "R2")).all())
        assert torch.autograd.gradcheck(f, [v.clone().requires_grad_() for v in (data, TIMES[:8], t1)])


@pytest.mark.parametrize("scale", [1e-140, 1e-6, 1e140])
def test_the_scale_of_the_data_does_not_matter(scale: float) -> None:
    data = noisy(20)
    one, other = fit_voxels(MultiSpinEcho(), data, TIMES), fit_voxels(MultiSpinEcho(), scale * data, TIMES)
    torch.testing.assert_close(other.value[:, :2], one.value[:, :2], rtol=1e-9, atol=0)
    leaf = (scale * data).requires_grad_()
    (grad,) = torch.autograd.grad(fit_voxels(MultiSpinEcho(), leaf, TIMES).rate.sum(), leaf)
    assert float(grad.abs().max()) * scale > 0.1


def test_b1_may_be_known() -> None:
    rate, b1, factor = maps(6, 5)
    angles = tuple(np.linspace(2.4, 3.1, ECHOES))
    data = MultiSpinEcho(angles).signal(rate, b1, factor, TIMES)
    fit = fit_voxels(MultiSpinEcho(angles, b1=b1[:, None]), data, TIMES)
    assert fit.names == ("R2", "M0")
    torch.testing.assert_close(fit.rate, rate, rtol=1e-9, atol=0)
    torch.testing.assert_close(fit.maps()["M0"], factor, rtol=1e-9, atol=0)
    torch.testing.assert_close(fit.signal(), data)
    number = fit_voxels(MultiSpinEcho(angles, b1=0.8), data, TIMES)
    torch.testing.assert_close(
        number.value, fit_voxels(MultiSpinEcho(angles, b1=torch.full((1, 1, 6, 5), 0.8)), data, TIMES).value,
        rtol=1e-6, atol=1e-7,  # 0.8 in single precision
    )  # fmt: skip


def test_complex_data_and_trains_of_their_own() -> None:
    rate, b1, factor = maps(2, 7)
    rate, b1, factor = (v.view(2, 7) for v in (rate, b1, factor))
    phase = torch.polar(factor, 3 * b1)
    times = TIMES * torch.tensor([[1.0], [1.3]], dtype=torch.float64)
    fit = fit_voxels(MultiSpinEcho(), MultiSpinEcho().signal(rate, b1, phase, times), times)
    assert fit.names == ("R2", "B1", "M0_re", "M0_im")
    assert fit.units == ("1/s", "", "unit of the data", "unit of the data")
    torch.testing.assert_close(fit.rate, rate, rtol=1e-9, atol=0)
    torch.testing.assert_close(fit.factors[0], phase, rtol=1e-9, atol=0)


def test_a_heavy_prior_wins_and_a_light_one_changes_nothing() -> None:
    data = noisy(9)
    plain = fit_voxels(MultiSpinEcho(), data, TIMES)
    prior = plain.value * 1.05
    heavy = fit_voxels(MultiSpinEcho(), data, TIMES, prior=prior, weight=1e9)
    torch.testing.assert_close(heavy.value, prior, rtol=1e-6, atol=1e-6)
    light = fit_voxels(MultiSpinEcho(), data, TIMES, prior=prior, weight=1e-13)
    torch.testing.assert_close(light.value, plain.value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
def test_without_a_signal_the_prior_is_left(implementation: str) -> None:
    prior = torch.tensor([[[15.0], [0.8], [0.0]]], dtype=torch.float64)
    with backend(implementation):
        fit = fit_voxels(
            MultiSpinEcho(), torch.zeros(1, ECHOES, 1, dtype=torch.float64), TIMES, prior=prior, weight=0.5
        )
    assert fit.counts() == {"CONVERGED": 1}
    torch.testing.assert_close(fit.value, prior)


def test_masks_leave_the_rest_alone() -> None:
    data, mask = noisy(4, 5), torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    whole, part = fit_voxels(MultiSpinEcho(), data, TIMES), fit_voxels(MultiSpinEcho(), data, TIMES, mask=mask)
    assert torch.equal(part.value, torch.where(mask[:, None], whole.value, 0.0))
    assert bool((part.status == 0).all())
    buffer = torch.full_like(whole.value, float("nan"))
    assert fit_voxels(MultiSpinEcho(), data, TIMES, mask=mask, out=buffer).value is buffer
    assert torch.equal(buffer, part.value)


# --- what cannot be fitted -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [*testing.available_isa_levels(), "reference"])
def test_lost_voxels_are_flagged_and_their_neighbours_untouched(level: str) -> None:
    def fit(data: Tensor, t1: Tensor) -> VoxelFit:
        if level == "reference":
            with backend("reference"):
                return fit_voxels(MultiSpinEcho(t1=t1), data, TIMES)
        with testing.isa(level):
            return fit_voxels(MultiSpinEcho(t1=t1), data, TIMES)

    data, t1 = noisy(40), torch.full((1, 1, 40), 0.9, dtype=torch.float64)
    before = fit(data, t1)
    data[0, 2, 7], data[0, 0, 11], data[0, :, 20] = math.nan, math.inf, 0
    t1[0, 0, 30], t1[0, 0, 31] = 0, math.nan
    lost = torch.zeros(40, dtype=torch.bool)
    lost[[7, 11, 20, 30, 31]] = True
    data, t1 = data.requires_grad_(), t1.requires_grad_()
    after = fit(data, t1)
    assert torch.equal(after.status[0] == Status.NONFINITE, lost)
    assert bool(torch.isnan(after.value[0][:, lost]).all())
    assert torch.equal(after.value[0][:, ~lost], before.value[0][:, ~lost])
    torch.nansum(after.value).backward()
    for leaf in (data, t1):
        assert bool(torch.isfinite(leaf.grad).all())  # type: ignore[arg-type]
        assert float(leaf.grad[0][:, lost].abs().max()) == 0  # type: ignore[index]


def test_lost_voxels_do_not_spoil_the_gradient_of_times() -> None:
    data, grads = noisy(12), []
    for broken in (False, True):
        given, times = data.clone(), TIMES.clone().requires_grad_()
        if broken:
            given[0, 1, 3] = math.nan
        fit_voxels(MultiSpinEcho(), given, times).rate[0, :3].sum().backward()
        grads.append(times.grad)
    torch.testing.assert_close(grads[1], grads[0])


def fitted(change: dict[str, Any]) -> None:
    settings = {name: change.pop(name) for name in ("angles", "t1", "b1", "b1_range") if name in change}
    arguments: dict[str, Any] = {"data": torch.rand(1, 5, 3), "times": [0.01, 0.02, 0.03, 0.04, 0.05]}
    fit_voxels(MultiSpinEcho(**settings), **arguments | change)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"times": [0.01, 0.02, 0.035, 0.04, 0.05]}, ValueError, r"echo 3 at 0.035 s, but the first is at 0.01 s"),
        ({"times": [0.0, 0.01, 0.02, 0.03, 0.04]}, ValueError, "at n times a positive spacing"),
        ({"times": [0.005, 0.015, 0.025, 0.035, 0.045]}, ValueError, "echo 2 at 0.015 s, but the first is at 0.005"),
        ({"times": [10.0, 20.0, 30.0, 40.0, 50.0]}, ValueError, "are these milliseconds"),
        ({"times": [0.01, 0.02]}, ValueError, "2 echo times in seconds, but 5 images"),
        ({"times": torch.rand(1, 5, 3)}, ValueError, r"maps of shape \(1, 5, 3\), but echo times are"),
        ({"times": [0.01, 0.02], "data": torch.rand(1, 2, 3)}, ValueError, "2 echoes, but MultiSpinEcho has 3"),
        ({"times": [], "data": torch.rand(1, 0, 3)}, ValueError, "0 echoes, but MultiSpinEcho has 3"),
        ({"angles": 180.0}, ValueError, "are these degrees"),
        ({"angles": [3.0, 180.0]}, ValueError, "are these degrees"),
        ({"angles": -1.0}, ValueError, "angles: -1"),
        ({"angles": "pi"}, TypeError, "angles: 'pi', expected a number"),
        ({"angles": [3.0, 3.0]}, ValueError, "2 refocusing angles, but 5 echoes"),
        ({"angles": torch.full((5,), 3.0)}, ValueError, "b1_range: has no default for a tensor of angles"),
        ({"angles": torch.full((1, 5), 3.0)}, ValueError, "expected one for each echo"),
        ({"t1": 1000.0}, ValueError, "are these milliseconds"),
        ({"t1": 0.0}, ValueError, "t1: 0"),
        ({"t1": torch.ones(1, 3)}, ValueError, r"t1: its shape \(1, 3\) does not fit"),
        ({"t1": torch.ones(1, 1, 3, dtype=torch.int32)}, TypeError, "t1: dtype int32"),
        ({"b1": torch.ones(1, 1, 4)}, ValueError, "b1: its shape"),
        ({"b1": 0.9, "b1_range": (0.3, 1.0)}, ValueError, "b1 is known and not fitted"),
        ({"b1_range": (1.0, 0.5)}, ValueError, "leaves no B1"),
        ({"b1_range": 0.5}, TypeError, "expected \\(low, high\\)"),
        ({"bounds": (2.0, 1.0)}, ValueError, "leaves no rate"),
        ({"prior": torch.ones(1, 2, 3)}, ValueError, "prior: shape"),
        ({"weight": 1.0}, ValueError, "there is no prior"),
        ({"mask": torch.ones(1, 4, dtype=torch.bool)}, ValueError, "mask: shape"),
        ({"out": torch.ones(1, 2, 3)}, ValueError, "out: shape"),
        ({"data": torch.ones(1, 5, 3, dtype=torch.int32)}, TypeError, "int32"),
        ({"max_iter": 0}, ValueError, "max_iter"),
    ],
)  # fmt: skip
def test_misuse_is_refused_by_name(change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fitted(dict(change))


# --- errors of the estimates ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_standard_errors_are_calibrated(dtype: torch.dtype) -> None:
    """As in tests/test_fit.py: bias below a tenth of the error, widths of z those of Student's t within 4 %."""
    count, times = 4000, 0.01 * torch.arange(1, 25, dtype=torch.float64)
    rate, b1 = (torch.full((1, count), v, dtype=torch.float64) for v in (18.0, 0.75))
    truth = MultiSpinEcho().signal(rate, b1, torch.ones(1, count, dtype=dtype), times)
    noise = torch.randn(truth.shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    fit = fit_voxels(MultiSpinEcho(), truth + 0.002 * (math.sqrt(2) if dtype.is_complex else 1) * noise, times)
    known = torch.stack([rate, b1, torch.ones_like(rate), torch.zeros_like(rate)], 1)[:, : fit.value.shape[1]]
    z = (fit.value - known) / fit.standard_errors()
    assert float(z.mean(-1).abs().max()) < 0.1
    free = (2 if dtype.is_complex else 1) * len(times) - fit.value.shape[1]
    assert float((z.std(-1) / math.sqrt(free / (free - 2)) - 1).abs().max()) < 0.04
    sample = torch.cov(fit.value[0])
    assert float((fit.covariance()[0].mean(-1) - sample).abs().max() / sample.abs().max()) < 0.1
