"""What Rician fits must satisfy beyond the shared laws of tests/test_ops.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torch import Tensor

from pyrecon import _core, backend, testing
from pyrecon.ops import CustomSignal, EchoDecay, InversionRecovery, SignalModel, fit_voxels
from pyrecon.ops._rician import bessel_ratio
from pyrecon.solvers import Status
from pyrecon.testing.cases.fit import SIGNALS
from pyrecon.testing.cases.rician import MODELS, magnitudes


def data_of(name: str, *space: int, seed: int = 0) -> tuple[SignalModel, Tensor, Tensor, Tensor]:
    _, data, times, noise, _, _ = magnitudes(name, 1, *space)(torch.Generator().manual_seed(seed), torch.float64)
    return SIGNALS[name][0], data, times, noise


def objective(model: SignalModel, data: Any, times: Tensor, noise: float) -> Callable[[Any], tuple[float, Any]]:
    """The sum that is minimised and its gradient at (rate, factors), by numpy and scipy, of one voxel."""
    time, sums, q, rest, u = (row.numpy() for row in model.table(times))
    s = np.asarray(data)

    def at(p: Any) -> tuple[float, Any]:
        e = np.exp(-time * p[0])
        phi = (sums - q * (1 - e)) / (rest + u * (1 - e))
        slope = -time * e * (q * rest + u * sums) / (rest + u * (1 - e)) ** 2
        f = p[1] * phi if model.linear == 1 else p[1] + p[2] * phi
        z = np.abs(s * f) / noise**2
        value = np.sum(f**2 - 2 * noise**2 * (np.log(scipy.special.ive(0, z)) + z))
        along = 2 * (f - np.sign(f) * s * scipy.special.ive(1, z) / scipy.special.ive(0, z))
        columns = [p[-1] * slope, phi] if model.linear == 1 else [p[-1] * slope, np.ones_like(phi), phi]
        return float(value), np.array([np.sum(along * column) for column in columns])

    return at


def decays(count: int, noise: float, rate: float = 20.0, echoes: int = 8) -> tuple[Tensor, Tensor]:
    """Magnitudes of one decay of size 1, over and over."""
    times = 0.012 * torch.arange(1, echoes + 1, dtype=torch.float64)
    draws = torch.randn(2, 1, echoes, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.hypot(torch.exp(-rate * times)[None, :, None] + noise * draws[0], noise * draws[1]), times


# --- Bessel functions ------------------------------------------------------------------------------------------------
def exact_ratios(z: Tensor) -> Any:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        rows = []
        for number in z.tolist():
            x = mpmath.mpf(number)
            i0, i1 = mpmath.besseli(0, x), mpmath.besseli(1, x)
            a = i1 / i0
            rows.append([a, x * (1 - a / x - a * a), mpmath.log(i0) - x])
        return np.array(rows).T


SEAMS = [np.nextafter(at, to) for at in (8, 12, 20) for to in (0, 99)]
ARGUMENTS = np.concatenate([np.geomspace(1e-6, 1e6, 100), np.linspace(0.1, 25, 150), SEAMS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", testing.available_isa_levels())
def test_bessel_ratios_of_the_kernel(level: str, dtype: torch.dtype) -> None:
    """Of roundings: some ten terms of polynomials whose sums are of one sign, or nearly."""
    z = torch.from_numpy(ARGUMENTS).to(dtype)
    found = [torch.empty_like(z) for _ in range(3)]
    kernel = _core.bessel_ratios_f32 if dtype == torch.float32 else _core.bessel_ratios_f64
    with testing.isa(level):
        kernel(z.data_ptr(), *(t.data_ptr() for t in found), len(z))
    eps = torch.finfo(dtype).eps
    for value, expected, floor in zip(found, exact_ratios(z), (0.0, 0.0, 1.0), strict=True):
        error = np.abs(value.double().numpy() - expected) / np.maximum(np.abs(expected), floor)
        assert float(error.max()) <= 8 * eps


def test_bessel_ratios_of_the_reference() -> None:
    """A' is a difference of numbers near one: below 20, 2 z^2 = 800 times their roundings, which are some eps each."""
    z = torch.from_numpy(ARGUMENTS)
    for value, expected, k in zip(bessel_ratio(z), exact_ratios(z), (8, 4000, 8), strict=True):
        error = np.abs(value.numpy() - expected) / np.maximum(np.abs(expected), 1.0 if k == 8 else 0.0)
        assert float(error.max()) <= k * torch.finfo(torch.float64).eps
    ends = bessel_ratio(torch.tensor([0.0, math.inf], dtype=torch.float64))
    assert ends[0].tolist() == [0, 1]
    assert ends[1].tolist() == [0, 0]


# --- the minimum -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_the_optimum_is_that_of_scipy(name: str, implementation: str) -> None:
    """In units of what is found, so that all unknowns are near one."""
    model, data, times, noise = data_of(name, 6)
    with backend(implementation):
        fit = fit_voxels(model, data, times, noise_std=noise)
    assert bool(fit.converged.all())
    for i in range(6):
        at = objective(model, data[0, :, i], times, float(noise[0, i]))
        value = fit.value[0, :, i].numpy()

        def scaled(x: Any, at: Any = at, value: Any = value) -> tuple[float, Any]:
            total, slope = at(x * value)
            return total, slope * value

        start = np.full(len(value), 1.03)
        steepest = abs(scaled(start)[1]).max()
        assert (
            scipy.optimize.check_grad(lambda x, f=scaled: f(x)[0], lambda x, f=scaled: f(x)[1], start) < 1e-4 * steepest
        )
        found = scipy.optimize.minimize(scaled, start, jac=True, method="BFGS", options={"gtol": 1e-10})
        np.testing.assert_allclose(found.x, 1, rtol=1e-6)
        assert abs(scaled(1.0)[1]).max() < 1e-6 * steepest


@pytest.mark.parametrize("name", ["t2", "sr", "vfa"])
def test_no_rate_is_better(name: str) -> None:
    model, data, times, noise = data_of(name, 4)
    fit = fit_voxels(model, data, times, noise_std=noise)
    for i in range(4):
        at = objective(model, data[0, :, i], times, float(noise[0, i]))
        reached, scale = at(fit.value[0, :, i].numpy())[0], float(fit.value[0, 1, i])
        for rate in np.geomspace(*model.range, 80):
            best = scipy.optimize.minimize_scalar(lambda c, f=at, r=rate: f([r, c])[0], (0.5 * scale, scale))
            assert reached <= best.fun + 1e-9 * abs(reached)


@pytest.mark.parametrize("name", MODELS)
def test_without_noise_it_is_least_squares(name: str) -> None:
    """A(z) = 1 - 1 / (2 z): data move by sigma^2 / (2 f), 1e-12 of them or less, which the fit may make some 100 of."""
    model, data, times, _ = data_of(name, 50)
    plain = fit_voxels(model, data, times)
    size = float(data.max())
    fit = fit_voxels(model, data, times, noise_std=1e-7 * size)
    assert bool(fit.converged.all())
    far = (plain.signal().amin(1) > 0.05 * size)[0]
    assert int(far.sum()) > 5
    torch.testing.assert_close(fit.value[0][:, far], plain.value[0][:, far], rtol=1e-9, atol=1e-9)


def test_it_has_not_the_bias_of_least_squares() -> None:
    """One decay 20,000 times, the last echoes three times the noise. Standard normal z: their mean has an error of
    0.007 and their width one of 0.5 %; estimates from eight data are normal to first order only, hence 0.1 and 4 %."""
    noise, rate = 0.049, 20.0
    data, times = decays(20_000, noise, rate)
    assert 2.9 < math.exp(-rate * float(times[-1])) / noise < 3.1
    fit, plain = (fit_voxels("t2", data, times, noise_std=given) for given in (noise, None))
    assert bool(fit.converged.all())
    known = torch.tensor([rate, 1.0], dtype=torch.float64)[:, None]
    bias, error = fit.value[0].mean(1) - known[:, 0], fit.value[0].std(1)
    assert float((bias / error).abs().max()) < 0.1
    assert float((plain.value[0, 0].mean() - rate) / plain.value[0, 0].std()) < -0.15
    z = (fit.value[0] - known) / fit.standard_errors()[0]
    assert float(z.mean(1).abs().max()) < 0.1
    assert float((z.std(1) - 1).abs().max()) < 0.04


def test_covariance_is_that_of_the_second_differences() -> None:
    for name in ("t2", "ir-magnitude"):
        model, data, times, noise = data_of(name, 3)
        prior = fit_voxels(model, data, times, noise_std=noise).value * 1.01
        fit = fit_voxels(model, data, times, noise_std=noise, prior=prior, weight=1e-3)
        for i in range(3):
            at = objective(model, data[0, :, i], times, float(noise[0, i]))
            p, h = fit.value[0, :, i].numpy(), 1e-5
            steps = np.diag(h * np.abs(p))
            rows = [(at(p + d)[1] - at(p - d)[1]) / (2 * h * abs(x)) for d, x in zip(steps, p, strict=True)]
            expected = np.linalg.inv(0.5 * np.array(rows) / float(noise[0, i]) ** 2)
            np.testing.assert_allclose(fit.covariance()[0, :, :, i].numpy(), expected, rtol=1e-5)


def test_magnitudes_near_the_change_of_sign_are_no_matter() -> None:
    """An image at the null of the inversion has no sign; the fit sees through its noise, and through any order."""
    times = torch.tensor([0.1, 0.4, 0.6, 0.69, 0.8, 1.2, 2.5, 5.0], dtype=torch.float64)
    draws = torch.randn(2, 1, 8, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = (1 - 2 * torch.exp(-times))[None, :, None]
    data = torch.hypot(truth + 0.1 * draws[0], 0.1 * draws[1])
    fit, plain = (fit_voxels("ir-magnitude", data, times, noise_std=given) for given in (0.1, None))
    bias, of_squares = (abs(float(f.rate.mean()) - 1) for f in (fit, plain))  # their error is 0.003
    assert bias < 0.5 * of_squares
    assert float((fit.rate - 1).square().mean()) < 0.8 * float((plain.rate - 1).square().mean())
    order = torch.tensor([3, 0, 7, 5, 4, 1, 6, 2])
    other = fit_voxels("ir-magnitude", data[:, order], times[order], noise_std=0.1)
    assert torch.equal(other.value, fit.value)
    assert torch.equal(other.covariance(), fit.covariance())
    assert float(fit.signal().amin()) >= 0


# --- derivatives -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
def test_derivatives_hold_at_bounds(implementation: str) -> None:
    """Finite differences of fits of which every other rate is at its bound; prior and weight among the variables."""
    model, data, times, noise = data_of("t2", 4)
    free = fit_voxels(model, data, times, noise_std=noise)
    low, high = free.rate.sort().values[0, [0, 2]].tolist()
    bounds = (low * 1.02, high * 0.98)
    prior, weight = free.value * 1.01, torch.tensor([[1e-3, 0.0, 0.1, 1e-3]], dtype=torch.float64)
    variables = tuple(v.clone().requires_grad_() for v in (data, times, noise, prior, weight))

    def call(*v: Tensor) -> Tensor:
        data, times, noise, prior, weight = v
        return fit_voxels(
            model, data, times, noise_std=noise, prior=prior, weight=weight, bounds=bounds, tol=1e-15
        ).value

    with backend("auto" if implementation == "cpp" else implementation):  # times have their derivative in plain torch
        value = call(*variables)
        held = (value[:, 0] == bounds[0]) | (value[:, 0] == bounds[1])
        assert 1 <= int(held.sum()) <= 3
        assert torch.autograd.gradcheck(call, variables)
        grads = torch.autograd.grad(value[:, 0][held].sum(), variables)
    assert all(float(g.abs().max()) == 0 for g in grads)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("level", testing.available_isa_levels())
def test_derivatives_of_the_kernel_are_those_of_the_reference(name: str, level: str) -> None:
    model, data, times, noise = data_of(name, 37)
    inputs = tuple(v.clone().requires_grad_() for v in (data, times, noise))

    def grads() -> tuple[Tensor, ...]:
        value = fit_voxels(model, inputs[0], inputs[1], noise_std=inputs[2], tol=1e-14).value
        incoming = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(5))
        return torch.autograd.grad(value, inputs, incoming)

    with testing.isa(level):
        found = grads()
    with backend("reference"):
        for value, expected in zip(found, grads(), strict=True):
            assert float((value - expected).abs().max() / expected.abs().max()) < 1e-10


# --- what cannot be fitted -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [*testing.available_isa_levels(), "reference"])
@pytest.mark.parametrize("name", ["t2", "ir-magnitude"])
def test_lost_voxels_are_flagged_and_their_neighbours_untouched(name: str, level: str, dtype: torch.dtype) -> None:
    model, data, times, noise = data_of(name, 5000)  # more than are looked through for what cannot be
    data, times, noise = (v.to(dtype) for v in (data, times, noise))
    with (
        testing.isa(testing.available_isa_levels()[0] if level == "reference" else level),
        backend("reference" if level == "reference" else "auto"),
    ):
        before = fit_voxels(model, data, times, noise_std=noise)
        data[0, 2, 7] = math.nan
        data[0, 0, 11] = math.inf
        data[0, 1, 13] = -0.1
        data[0, :, 20] = 0
        data[0, :, 21] = 1.4 * noise[0, 21]  # less than the root of two: no signal is likelier than any
        noise[0, 30:34] = torch.tensor([0.0, -1.0, math.nan, math.inf])
        data, noise = data.requires_grad_(), noise.requires_grad_()
        fit = fit_voxels(model, data, times, noise_std=noise)
        lost = torch.zeros(5000, dtype=torch.bool)
        lost[[7, 11, 13, 20, 21, 30, 31, 32, 33]] = True
        assert torch.equal(fit.status[0] == Status.NONFINITE, lost)
        assert bool(torch.isnan(fit.rate[0, lost]).all())
        assert torch.equal(fit.value[0][:, ~lost], before.value[0][:, ~lost])
        assert float(fit.value[0, 1:, [20, 21]].detach().abs().max()) == 0
        grads = torch.autograd.grad(torch.nansum(fit.value), (data, noise))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert float(grads[0][0][:, lost].abs().max()) == float(grads[1][0, lost].abs().max()) == 0
    assert bool(torch.isnan(fit.covariance()[0][:, :, lost]).all())


def test_noise_alone_is_told() -> None:
    """No signal is the likeliest where, at every rate, the mean of s^2 weighed by phi^2 is below 2 sigma^2."""
    data, times = decays(4000, 1.0)
    data = torch.hypot(*torch.randn(2, 1, 8, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    fit = fit_voxels("t2", data, times, noise_std=1.0, max_iter=200)
    counts = fit.counts()
    assert counts.get("MAX_ITER", 0) == 0
    rates = torch.logspace(math.log10(0.2), math.log10(2000), 400, dtype=torch.float64)
    squares = torch.exp(-2 * times[None] * rates[:, None])
    excess = ((squares @ data[0].square()) / (2 * squares.sum(1)[:, None]) - 1).amax(0)
    none = fit.status[0] == Status.NONFINITE
    assert 800 < int(none.sum()) < 3200
    assert bool(none[excess < -1e-3].all())
    assert float((none & (excess > 1e-3)).sum()) < 0.1 * 4000  # the start was in another basin
    assert bool((fit.value[0, 1, none] == 0).all())


def test_limits_are_told() -> None:
    model, data, times, noise = data_of("t2", 1000)
    fit = fit_voxels(model, data, times, noise_std=noise)
    assert float(fit.iterations.float().mean()) < 6
    assert float(fit.residual.max()) < 1e-3
    assert fit_voxels(model, data, times, noise_std=noise, max_iter=1).counts()["MAX_ITER"] > 500
    loose = fit_voxels(model, data, times, noise_std=noise, tol=1e-2)
    assert float(loose.iterations.float().mean()) < float(fit.iterations.float().mean()) - 0.5


def test_single_precision_is_near_the_exact_answer() -> None:
    for name in MODELS:
        model, data, times, noise = data_of(name, 2000)
        data, times, noise = data.float(), times.float(), noise.float()
        fit = fit_voxels(model, data, times, noise_std=noise)
        exact = fit_voxels(model, data.double(), times.double(), noise_std=noise.double())
        both = fit.converged & exact.converged
        assert float(both.double().mean()) > 0.999
        error = ((fit.rate.double() - exact.rate) / exact.rate).abs()[both]
        assert float(error.median()) < 1e-6
        assert float(error.quantile(0.99)) < 1e-4  # where noise has left a signal of little slope


# --- arguments -------------------------------------------------------------------------------------------------------
def test_noise_is_a_number_or_a_map() -> None:
    model, data, times, _ = data_of("t2", 4, 5)
    fit = fit_voxels(model, data, times, noise_std=0.04)
    for shape in ((), (1,), (1, 1, 1), (1, 4, 1), (1, 4, 5)):
        level = torch.full(shape, 0.04, dtype=torch.float64)
        assert torch.equal(fit_voxels(model, data, times, noise_std=level).value, fit.value)
    several = data.expand(3, -1, -1, -1) * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).view(3, 1, 1, 1)
    scaled = fit_voxels(model, several, times, noise_std=0.04 * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(scaled.rate, fit.rate.expand(3, -1, -1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
def test_units_do_not_matter(implementation: str) -> None:
    """Powers of two change no digit."""
    model, data, times, noise = data_of("t2", 40)
    data, times, noise = data.float(), times.float(), noise.float()
    with backend(implementation):
        fit = fit_voxels(model, data, times, noise_std=noise)
        for scale in (2.0**-50, 2.0**50):
            other = fit_voxels(model, scale * data, times, noise_std=scale * noise)
            assert torch.equal(other.rate, fit.rate)
            assert torch.equal(other.factors[0], scale * fit.factors[0])


def test_masks_and_buffers() -> None:
    model, data, times, noise = data_of("t2", 4, 5)
    mask = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    whole = fit_voxels(model, data, times, noise_std=noise)
    part = fit_voxels(model, data, times, noise_std=noise, mask=mask)
    assert torch.equal(part.value, torch.where(mask[:, None], whole.value, 0.0))
    assert bool((part.status == 0).all())
    buffer = torch.full_like(whole.value, math.nan)
    assert fit_voxels(model, data, times, noise_std=noise, out=buffer).value is buffer
    assert torch.equal(buffer, whole.value)
    level = noise.clone().requires_grad_()
    fit_voxels(model, data, times, noise_std=level, mask=mask).rate.sum().backward()
    assert level.grad is not None
    assert torch.equal(level.grad != 0, mask)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"noise_std": 0.0}, ValueError, "noise_std"),
        ({"noise_std": -1.0}, ValueError, "noise_std"),
        ({"noise_std": math.nan}, ValueError, "noise_std"),
        ({"noise_std": math.inf}, ValueError, "noise_std"),
        ({"noise_std": "a tenth"}, TypeError, "noise_std"),
        ({"noise_std": torch.tensor([0.0])}, ValueError, "noise_std: 0 among them, expected finite numbers above 0"),
        ({"noise_std": torch.tensor([math.nan])}, ValueError, "noise_std: nan among them"),
        ({"noise_std": torch.full((1, 3), -2.0)}, ValueError, "noise_std: -2 among them"),
        ({"noise_std": torch.full((1, 3), math.inf)}, ValueError, "noise_std: inf among them"),
        ({"noise_std": torch.ones(1, 4)}, ValueError, "noise_std: shape \\(1, 4\\) does not fit"),
        ({"noise_std": torch.ones(2)}, ValueError, "noise_std: shape"),
        ({"noise_std": torch.ones(1, dtype=torch.float64)}, TypeError, "noise_std: dtype torch.float64"),
        ({"noise_std": torch.ones(1, dtype=torch.complex64)}, TypeError, "noise_std"),
        ({"data": torch.ones(1, 5, 3, dtype=torch.complex64)}, TypeError, "the data are complex; give .abs"),
        ({"model": "ir"}, ValueError, "noise_std: .* InversionRecovery has signed data; give it magnitude=True"),
        ({"model": InversionRecovery()}, ValueError, "magnitude=True"),
        ({"model": CustomSignal(lambda t, r: torch.exp(-t * r), ("R",), [[1.0]], ((0.0, 9.0),))}, ValueError,
         "not for a CustomSignal"),
        ({"out": torch.ones(1, 3, 3)}, ValueError, "out: shape"),
    ],
)  # fmt: skip
def test_misuse_is_refused_by_name(change: dict[str, Any], error: type[Exception], said: str) -> None:
    arguments: dict[str, Any] = {
        "model": EchoDecay(), "data": torch.rand(1, 5, 3), "times": [0.01, 0.02, 0.03, 0.05, 0.09], "noise_std": 0.1,
    }  # fmt: skip
    with pytest.raises(error, match=said):
        fit_voxels(**arguments | change)
