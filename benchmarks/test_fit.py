"""Speed of pyrecon/ops/_fit.py, _epg.py and _rician.py: T1 of 192 x 192 voxels at five saturation times, T2 at thirty
echoes, T2 and B1 of 32 echoes with stimulated ones, and T2 of eight magnitudes in Rician noise.

The rivals: batched Levenberg-Marquardt in plain torch over all voxels at once, in the three real parameters, as one
would write it; mrpro's optimiser layer, one L-BFGS over all of them; scipy's curve_fit, voxel by voxel; and Newton's
iteration for the Rician likelihood in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from pyrecon import backend
from pyrecon.ops import EchoDecay, MultiSpinEcho, SaturationRecovery, fit_voxels

SIZE = 192
SATURATION = torch.tensor([0.5, 1.0, 1.5, 2.0, 8.0], dtype=torch.float64)
ECHOES = 0.01 * torch.arange(1, 31, dtype=torch.float64)
SAME = 4e3  # in eps of the largest parameter: what noise leaves of the slope at the worst of 36,864 voxels


@cache
def recovery() -> tuple[Tensor, Tensor]:
    """Data in single precision, and their parameters in double."""
    generator = torch.Generator().manual_seed(0)
    rate = 0.3 + 1.7 * torch.rand(1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    phase = 2 * torch.rand(1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    signal = SaturationRecovery().signal(rate, (torch.polar(torch.ones_like(phase), phase),), SATURATION[:, None, None])
    noise = torch.randn(signal.shape, dtype=signal.dtype, generator=generator)
    data = (signal + 0.02 * noise).to(torch.complex64)
    return data, fit_voxels("sr", data.to(torch.complex128), SATURATION).value


@cache
def decay() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rate = 8 + 30 * torch.rand(1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    signal = EchoDecay().signal(rate, (torch.ones_like(rate),), ECHOES[:, None, None])
    data = (signal + 0.01 * torch.randn(signal.shape, dtype=signal.dtype, generator=generator)).float()
    return data, fit_voxels("t2", data.double(), ECHOES).value


def in_torch(data: Tensor, times: Tensor, iterations: int = 10) -> Tensor:
    """Levenberg-Marquardt in (R1, Re M0, Im M0), its normal equations solved by hand."""
    s, t = data.flatten(2)[0], times.to(data.real.dtype)[:, None]
    rate, factor = torch.ones_like(s[0].real), s[-1].clone()
    damping = torch.full_like(rate, 1e-2)
    decay = torch.exp(-t * rate)
    residual = s - factor * (1 - decay)
    value = torch.view_as_real(residual).square().sum((0, 2))
    for _ in range(iterations):
        phi, slope = 1 - decay, t * decay
        c = (phi.square().sum(0)) * (1 + damping)
        cross = (phi * slope).sum(0) * factor
        rr = slope.square().sum(0) * torch.view_as_real(factor).square().sum(-1) * (1 + damping)
        seen = (slope * residual).sum(0)
        gr, gc = (factor.conj() * seen).real, (phi * residual).sum(0)
        dr = (gr - (cross.conj() * gc).real / c) / (rr - torch.view_as_real(cross).square().sum(-1) / c)
        new_rate, new_factor = (rate + dr).clamp(0.05, 20.0), factor + (gc - cross * dr) / c
        new_decay = torch.exp(-t * new_rate)
        new_residual = s - new_factor * (1 - new_decay)
        new_value = torch.view_as_real(new_residual).square().sum((0, 2))
        better = new_value < value
        rate, factor = torch.where(better, new_rate, rate), torch.where(better, new_factor, factor)
        decay, residual = torch.where(better, new_decay, decay), torch.where(better, new_residual, residual)
        value, damping = torch.where(better, new_value, value), torch.where(better, 0.1 * damping, 10 * damping)
    return torch.stack([rate, factor.real, factor.imag]).view(1, 3, *data.shape[2:])


def in_mrpro(mrpro: Any, data: Tensor, times: Tensor) -> Callable[[], Tensor]:
    """In (R1, Re M0, Im M0) from R1 = 1 and the last image, to the layer's tightest tolerances."""
    t = times[:, None, None]

    def factory(data: Tensor) -> Callable[..., tuple[Tensor]]:
        def objective(rate: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor]:
            residual = data - torch.complex(re, im) * -torch.expm1(-t * rate)
            return (torch.view_as_real(residual).square().sum(),)

        return objective

    def begin(data: Tensor) -> tuple[Tensor, ...]:
        last = data[:, -1:]
        return torch.ones_like(last.real), last.real.clone(), last.imag.clone()

    optimize = partial(
        mrpro.algorithms.optimizers.lbfgs, max_iterations=200, max_evaluations=1000, tolerance_grad=1e-9,
        tolerance_change=1e-12, history_size=10,
    )  # fmt: skip
    layer = mrpro.operators.OptimizerOp(factory, begin, optimize)
    return lambda: torch.cat(layer(data), 1)


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "mrpro"])
def test_saturation_recovery(timed: Callable[..., None], device: str, impl: str, peer: Callable[[str], Any]) -> None:
    data, expected = recovery()
    data, times, out = data.to(device), SATURATION.float().to(device), torch.empty(expected.shape, device=device)
    if impl == "pyrecon":
        call: Callable[[], Any] = lambda: fit_voxels("sr", data, times, out=out).value  # noqa: E731
    elif impl == "mrpro":
        call = in_mrpro(peer("mrpro"), data, times)
    else:
        call = lambda: in_torch(data, times)  # noqa: E731
    timed(
        call,
        row=f"T1 fit {SIZE} x {SIZE}, 5 saturation times, complex",
        impl=impl,
        expected=expected,
        # Ten steps, and an L-BFGS that ends where the sum over all voxels does not change.
        k={"pyrecon": SAME, "torch": 50 * SAME, "mrpro": 1e6}[impl],
        goal={"ratio": 1 / 15, "against": "torch"},
        bytes_moved=data.nbytes + out.nbytes,
        sizes={"voxels": SIZE * SIZE, "images": 5},
    )


@pytest.mark.parametrize("impl", ["pyrecon"])
def test_its_gradient(timed: Callable[..., None], device: str, impl: str) -> None:
    data, _ = recovery()
    leaf = data.to(device, copy=True).requires_grad_()
    value = fit_voxels("sr", leaf, SATURATION.float().to(device)).value
    incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    wide = data.to(torch.complex128).requires_grad_()
    (known,) = torch.autograd.grad(fit_voxels("sr", wide, SATURATION).value, wide, incoming.double())
    incoming = incoming.to(device)
    timed(
        lambda: torch.autograd.grad(value, leaf, incoming, retain_graph=True)[0],
        row=f"T1 fit {SIZE} x {SIZE}, gradient",
        impl=impl,
        expected=known,
        k=50 * SAME,
        bytes_moved=2 * data.nbytes + 2 * incoming.nbytes,
        sizes={"voxels": SIZE * SIZE, "images": 5},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "scipy curve_fit"])
def test_echoes(timed: Callable[..., None], impl: str) -> None:
    data, expected = decay()
    if impl == "pyrecon":
        part, known = data[:, :, :8, :8].contiguous(), expected[:, :, :8, :8]
        out = torch.empty(known.shape)
        call: Callable[[], Any] = lambda: fit_voxels("t2", part, ECHOES.float(), out=out).value  # noqa: E731
    else:
        known = expected[:, :, :8, :8]
        voxels, times = data[0, :, :8, :8].flatten(1).double().numpy().T, ECHOES.numpy()

        def call() -> Tensor:
            found = [
                scipy.optimize.curve_fit(lambda t, r, m: m * np.exp(-r * t), times, voxel, (10.0, 1.0))[0]
                for voxel in voxels
            ]
            return torch.from_numpy(np.array(found).T.reshape(1, 2, 8, 8))

    timed(
        call,
        row="T2 fit of 64 voxels, 30 echoes",
        impl=impl,
        expected=known,
        k=SAME if impl == "pyrecon" else 1e11,  # it ends at 1e-8 of the sum of squares
        sizes={"voxels": 64, "images": 30},
    )


@pytest.mark.parametrize("impl", ["pyrecon"])
def test_all_echoes(timed: Callable[..., None], device: str, impl: str) -> None:
    data, expected = decay()
    data, times, out = data.to(device), ECHOES.float().to(device), torch.empty(expected.shape, device=device)
    timed(
        lambda: fit_voxels("t2", data, times, out=out).value,
        row=f"T2 fit {SIZE} x {SIZE}, 30 echoes",
        impl=impl,
        expected=expected,
        k=SAME,
        goal={"ms": SIZE * SIZE / 1e3},
        bytes_moved=data.nbytes + out.nbytes,
        sizes={"voxels": SIZE * SIZE, "images": 30},
    )


# --- spin-echo trains with stimulated echoes -------------------------------------------------------------------------
TRAIN = 0.01 * torch.arange(1, 33, dtype=torch.float64)


@cache
def trains() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    rate, b1 = (a + b * torch.rand(1, SIZE * SIZE, generator=generator, dtype=torch.float64)
                for a, b in ((8.0, 22.0), (0.6, 0.3)))  # fmt: skip
    signal = MultiSpinEcho().signal(rate, b1, torch.ones_like(rate), TRAIN)
    data = (signal + 0.01 * torch.randn(signal.shape, dtype=signal.dtype, generator=generator)).float()
    return data, fit_voxels(MultiSpinEcho(), data.double(), TRAIN).value


def phase_graph(_times: Any, rate: float, b1: float, factor: float) -> Any:
    """As one would write it: all orders, a matrix for each pulse."""
    angle, count = b1 * np.pi, len(TRAIN)
    half = np.diag([np.exp(-0.005 * rate)] * 2 + [np.exp(-0.005)])
    cos, sin = np.cos(angle / 2) ** 2, np.sin(angle / 2) ** 2
    turn = np.sin(angle)
    pulse = np.array([[cos, sin, turn], [sin, cos, -turn], [-0.5 * turn, 0.5 * turn, np.cos(angle)]])
    states = np.zeros((3, 2 * count + 2))
    states[0, 0] = 1.0

    def shifted(x: Any) -> Any:
        x = half @ x
        plus, minus = np.concatenate((x[1, 1:2], x[0, :-1])), np.append(x[1, 1:], 0.0)
        minus[0] = plus[0]
        return np.stack((plus, minus, x[2]))

    echoes = np.empty(count)
    for n in range(count):
        states = shifted(pulse @ shifted(states))
        echoes[n] = states[0, 0]
    return factor * echoes


@pytest.mark.parametrize("impl", ["pyrecon", "torch reference", "scipy curve_fit"])
def test_trains(timed: Callable[..., None], impl: str) -> None:
    data, expected = trains()
    part, known, times = data[..., :16].contiguous(), expected[..., :16], TRAIN.float()

    def call() -> Tensor:
        if impl == "scipy curve_fit":
            voxels, start = part[0].double().numpy().T, (15.0, 0.75, 1.0)
            found = [scipy.optimize.curve_fit(phase_graph, TRAIN.numpy(), voxel, start)[0] for voxel in voxels]
            return torch.from_numpy(np.array(found).T[None])
        with backend("auto" if impl == "pyrecon" else "reference"):
            return fit_voxels(MultiSpinEcho(), part, times).value

    timed(
        call,
        row="T2 and B1 fit of 16 voxels, 32 echoes",
        impl=impl,
        expected=known,
        k=1e11 if impl == "scipy curve_fit" else SAME,  # it ends at 1e-8 of the sum of squares
        sizes={"voxels": 16, "images": 32},
    )


@pytest.mark.parametrize("impl", ["pyrecon"])
def test_all_trains(timed: Callable[..., None], impl: str) -> None:
    data, expected = trains()
    out, times = torch.empty(expected.shape), TRAIN.float()
    timed(
        lambda: fit_voxels(MultiSpinEcho(), data, times, out=out).value,
        row=f"T2 and B1 fit {SIZE} x {SIZE}, 32 echoes",
        impl=impl,
        expected=expected,
        k=SAME,
        goal={"ms": SIZE * SIZE / 50},
        bytes_moved=data.nbytes + out.nbytes,
        sizes={"voxels": SIZE * SIZE, "images": 32},
    )


# --- magnitudes in Rician noise --------------------------------------------------------------------------------------
MAGNITUDES, NOISE = 0.012 * torch.arange(1, 9, dtype=torch.float64), 0.05


@cache
def magnitudes() -> tuple[Tensor, Tensor]:
    """Decays that end between eight times the noise and a fiftieth of it."""
    generator = torch.Generator().manual_seed(3)
    rate = 8 + 30 * torch.rand(1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    signal = EchoDecay().signal(rate, (torch.ones_like(rate),), MAGNITUDES[:, None, None])
    draws = torch.randn(2, *signal.shape, dtype=signal.dtype, generator=generator)
    data = torch.hypot(signal + NOISE * draws[0], NOISE * draws[1]).float()
    return data, fit_voxels("t2", data.double(), MAGNITUDES, noise_std=NOISE).value


def likeliest_in_torch(data: Tensor, times: Tensor, noise: float, iterations: int = 8) -> Tensor:
    """Newton in (R2, M0) from one rate for all; with J^T J first, and where the Hessian is not positive."""
    s, t = data.flatten(2)[0] / noise, times.to(data.dtype)[:, None]
    rate = torch.full_like(s[0], 20.0)
    factor = s[0] * torch.exp(t[0] * rate)
    for i in range(iterations):
        phi = torch.exp(-t * rate)
        f = factor * phi
        z = s * f
        a = torch.special.i1e(z) / torch.special.i0e(z)
        r, q = f - s * a, 1 - s.square() * (1 - a / z - a.square())
        slope = -t * f
        g = (r * slope).sum(0), (r * phi).sum(0)
        rr, rc, cc = (
            (q * slope.square() - r * t * slope).sum(0),
            (q * slope * phi - r * t * phi).sum(0),
            (q * phi**2).sum(0),
        )
        plain = slope.square().sum(0), (slope * phi).sum(0), phi.square().sum(0)
        fine = (cc > 0) & (rr * cc > rc.square()) & (i > 5)
        rr, rc, cc = (torch.where(fine, m, n) for m, n in zip((rr, rc, cc), plain, strict=True))
        below = rr * cc - rc.square()
        dr, dc = -(cc * g[0] - rc * g[1]) / below, -(rr * g[1] - rc * g[0]) / below
        dr = torch.minimum(torch.maximum(dr, -0.5 * rate), rate)
        rate, factor = (rate + dr).clamp(0.2, 2000.0), factor + dc
    return torch.stack([rate, noise * factor]).view(1, 2, *data.shape[2:])


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
def test_rician_echoes(timed: Callable[..., None], impl: str) -> None:
    data, expected = magnitudes()
    out = torch.empty(expected.shape)
    times = MAGNITUDES.float()
    if impl == "pyrecon":
        call: Callable[[], Any] = lambda: fit_voxels("t2", data, times, noise_std=NOISE, out=out).value  # noqa: E731
    else:
        call = lambda: likeliest_in_torch(data, times, NOISE)  # noqa: E731
    timed(
        call,
        row=f"T2 fit {SIZE} x {SIZE}, 8 echoes, Rician",
        impl=impl,
        expected=expected,
        k=SAME,
        bytes_moved=data.nbytes + out.nbytes,
        sizes={"voxels": SIZE * SIZE, "images": 8},
    )
