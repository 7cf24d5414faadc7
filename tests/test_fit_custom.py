"""Fits of signals of one's own: the minimum of the kernels, its derivatives, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.ops import CustomSignal, fit_voxels, inversion_recovery
from pyrecon.ops._signals import curve
from pyrecon.solvers import Status
from pyrecon.testing.cases.fit import SIGNALS, problem

FREE = (-math.inf, math.inf)


def as_custom(name: str) -> CustomSignal:
    """A real signal of the kernels as one's own."""
    model = SIGNALS[name][0]

    def f(times: Tensor, rate: Tensor, *factors: Tensor) -> Tensor:
        return curve(model.table(times), rate, factors)

    rates = [0.5, 1.0, 2.0, 4.0] if model.rate == "R1" else [5.0, 10.0, 20.0, 40.0]
    second = () if model.linear == 1 else ((-1.9,) if name == "ir" else (3.0,))
    return CustomSignal(f, (model.rate, *model.factors), [(r, 1.0, *second) for r in rates],
                        (model.range, *[FREE] * model.linear))  # fmt: skip


def made(name: str, *space: int) -> tuple[Tensor, Tensor]:
    _, data, times, _, _ = problem(name, 1, *space)(torch.Generator().manual_seed(0), torch.float64)
    return data, times


@pytest.mark.parametrize("name", ["sr", "ir", "t2", "t2-offset", "vfa"])
def test_the_minimum_is_that_of_the_kernels(name: str) -> None:
    data, times = made(name, 4, 5)
    ours, kernel = fit_voxels(as_custom(name), data, times, max_iter=100), fit_voxels(SIGNALS[name][0], data, times)
    assert bool((ours.status == Status.CONVERGED).all())
    torch.testing.assert_close(ours.value, kernel.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.signal(), kernel.signal(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.covariance(), kernel.covariance(), rtol=1e-7, atol=1e-12)
    single = fit_voxels(as_custom(name), data.float(), times.float(), max_iter=100)
    assert single.value.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), kernel.value, rtol=1e-4, atol=1e-4)


def test_gradients_reach_all_that_the_signal_holds() -> None:
    data, times = made("ir", 3)
    data = data[..., None]
    tr = torch.full((1, 5, 1, 1), 6.0, dtype=torch.float64)
    prior = torch.tensor([1.0, 1.0, 0.9], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 3, 1).contiguous()
    weight = torch.full((1, 3, 1), 0.1, dtype=torch.float64)

    def f(data: Tensor, times: Tensor, tr: Tensor, prior: Tensor, weight: Tensor) -> Tensor:
        return fit_voxels(inversion_recovery(tr), data, times, prior=prior, weight=weight, max_iter=200).value

    inputs = [t.clone().requires_grad_() for t in (data, times, tr, prior, weight)]
    assert torch.autograd.gradcheck(f, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)
    assert not fit_voxels(inversion_recovery(6.0), data, times).value.requires_grad


@pytest.mark.parametrize("kind", ["real", "magnitude", "complex"])
def test_inversions_with_repetition_times_of_their_own(kind: str) -> None:
    """A series whose TR differs from image to image: with one TR for all T1 is wrong by a tenth and more."""
    times = torch.tensor([0.05, 0.15, 0.35, 0.75, 1.25, 1.85], dtype=torch.float64)
    tr = torch.tensor([1.0, 1.0, 1.0, 1.26, 1.86, 2.46], dtype=torch.float64).view(1, 6, 1)
    t1 = torch.linspace(0.1, 3.0, 30, dtype=torch.float64).view(1, 1, 30)  # the last ones never recover
    factor = 700 * torch.exp(torch.tensor(0.4j)) if kind == "complex" else torch.tensor(700.0)
    ti = times.view(1, 6, 1)
    recovered = 1 - torch.exp(-(tr - ti) / t1)  # from zero, when the next inversion comes
    longitudinal = 1 + (-0.97 * recovered - 1) * torch.exp(-ti / t1)
    signal = factor.to(torch.complex128 if kind == "complex" else torch.float64) * longitudinal
    data = signal.abs() if kind == "magnitude" else signal
    options: dict[str, Any] = {"magnitude": kind == "magnitude", "is_complex": kind == "complex"}
    fit = fit_voxels(inversion_recovery(tr, **options), data, times, max_iter=200)
    assert bool((fit.status == Status.CONVERGED).all())
    torch.testing.assert_close(fit.maps()["T1"], t1[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(fit.maps()["efficiency"], torch.full((1, 30), 0.97, dtype=torch.float64))
    assert fit.names[0] == "R1"
    assert fit.names[-1] == "efficiency"
    one = fit_voxels(inversion_recovery(1.0, efficiency=0.97, **options), data, times, max_iter=200)
    assert float((one.maps()["T1"] / t1[:, 0] - 1).abs().max()) > 0.1


def test_bounds_masks_and_lost_voxels() -> None:
    data, times = made("sr", 12)
    free = fit_voxels(as_custom("sr"), data, times)
    middle = 0.999 * float(free.rate.median())  # no voxel's own minimum
    model = as_custom("sr")
    bounded = CustomSignal(model.function, model.names, model.start, ((0.05, middle), FREE))
    data[0, 1, 3] = float("nan")
    data = data.requires_grad_()
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 5] = False
    fit = fit_voxels(bounded, data, times, mask=mask, max_iter=100)
    status = torch.zeros(1, 12, dtype=torch.int8)
    status[0, 3] = Status.NONFINITE
    assert torch.equal(fit.status, status)
    assert bool((fit.value[:, :, 5] == 0).all())
    assert bool(torch.isnan(fit.value[:, :, 3]).all())
    assert float(fit.rate.detach().nan_to_num().max()) <= middle
    at = fit.rate.detach() == middle
    assert int(at.sum()) > 2
    (grad,) = torch.autograd.grad(fit.rate[at].sum(), data)
    assert float(grad.abs().max()) == 0


def test_a_lost_voxel_does_not_spoil_the_gradient_of_times() -> None:
    data, times = made("sr", 4)
    grads = []
    for broken in (False, True):
        given, t = data.clone(), times.clone().requires_grad_()
        if broken:
            given[0, 1, 3] = float("nan")
        fit_voxels(as_custom("sr"), given, t, max_iter=100).rate[0, :3].sum().backward()
        grads.append(t.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"bounds": (FREE,)}, ValueError, "1 pairs, but 2 parameters"),
        ({"bounds": ((2.0, 1.0), FREE)}, ValueError, "bounds of R1: 2.0 to 1.0 leave nothing"),
        ({"names": ()}, ValueError, "at least one parameter"),
        ({"function": 3}, TypeError, "function"),
        ({"units": ("1/s",)}, ValueError, "units: 1, but 2"),
        ({"start": []}, ValueError, "start: is empty"),
        ({"start": [(1.0,)]}, ValueError, "start: 1 values, but 2 parameters"),
        ({"function": lambda t, r, m: m}, ValueError, "function"),
        ({"function": lambda t, r, m: (m * torch.exp(-t * r)).float()}, TypeError, "function"),
    ],
)  # fmt: skip
def test_misuse_is_refused_by_name(change: dict[str, Any], error: type[Exception], said: str) -> None:
    good = as_custom("sr")
    arguments: dict[str, Any] = {
        "function": good.function, "names": good.names, "start": good.start, "bounds": good.bounds,
    }  # fmt: skip
    data, times = made("sr", 3)
    with pytest.raises(error, match=said):
        fit_voxels(CustomSignal(**arguments | change), data, times)
    with pytest.raises(ValueError, match="a CustomSignal has its own"):
        fit_voxels(good, data, times, bounds=(1.0, 2.0))
    with pytest.raises(ValueError, match="magnitudes are not complex"):
        inversion_recovery(1.0, magnitude=True, is_complex=True)
    with pytest.raises(ValueError, match=r"efficiency: 1\.5"):
        inversion_recovery(1.0, efficiency=1.5)
