"""Samplers against the closed forms of Gaussian posteriors, and what must hold for every one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.linops import Sense
from pyrecon.physics.mri import coil_maps
from pyrecon.solvers import (
    MALA,
    ULA,
    Chain,
    ConvergenceWarning,
    Draw,
    PreconditionedULA,
    Status,
    langevin,
    largest_curvature,
)
from pyrecon.solvers._samplers import _log_proposal


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def quadratic(K: Tensor, m: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """H = 1/2 (x - m)^T K (x - m): energy and gradient."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        g = (x - m) @ K.to(x.dtype)
        return (0.5 * ((x - m) * g).double().sum(1)), g

    return both


def spd(n: int, *eigenvalues: float, seed: int = 3) -> Tensor:
    Q = torch.linalg.qr(randn(n, n, seed=seed)).Q
    return Q @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ Q.T


K = spd(5, 0.5, 1.0, 2.0, 5.0, 20.0)
M = torch.linspace(-1, 2, 5, dtype=torch.float64)
H = quadratic(K, M)
CHAINS = 6000


def exact_start(seed: int) -> Tensor:
    """States that have the law already."""
    return M + randn(CHAINS, 5, seed=seed) @ torch.linalg.cholesky(torch.linalg.inv(K)).T


def assert_covariance(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Of independent rows of x; five standard errors."""
    count = len(x)
    assert ((x.mean(0) - mean).abs() <= 5 * (covariance.diagonal() / count).sqrt()).all()
    away = x - mean
    error = ((covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2) / count).sqrt()
    assert ((away.T @ away / count - covariance).abs() <= 5 * error).all()


# --- the law ---------------------------------------------------------------------------------------------------
def test_mala_keeps_a_gaussian_law_with_a_step_at_which_ula_is_far_off() -> None:
    step = 0.12  # ULA: variance 1 / (1 - 0.12 * 20 / 4) = 2.5 times too large along the stiffest direction
    chain = langevin(H, exact_start(1), step=step, iterations=60, sampler=MALA(adapt=False), seed=5)
    assert_covariance(chain.x, M, torch.linalg.inv(K))
    assert chain.acceptance is not None
    assert 0.3 < float(chain.acceptance.mean()) < 0.95
    wide = langevin(lambda x: H(x)[1], exact_start(1), step=step, iterations=60, seed=5)
    with pytest.raises(AssertionError):
        assert_covariance(wide.x, M, torch.linalg.inv(K))


def test_mala_forgets_its_start() -> None:
    chain = langevin(H, randn(CHAINS, 5, seed=2) * 3, step=0.1, iterations=300, burn_in=100, sampler=MALA(), seed=6)
    assert_covariance(chain.x, M, torch.linalg.inv(K))


def test_reflected_mala_has_the_truncated_law() -> None:
    # One pixel, H = (x - m)^2 / 2 on x >= 0, m near 0: a half-normal number, where clamped ULA puts mass on 0 itself.
    m = 0.3
    both = quadratic(torch.ones(1, 1, dtype=torch.float64), torch.tensor([m], dtype=torch.float64))
    chain = langevin(
        both, torch.ones(20000, 1, dtype=torch.float64), step=1.0, iterations=60, sampler=MALA(adapt=False), nonneg=True
    )
    phi, Phi = math.exp(-m * m / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(m / math.sqrt(2)))
    mean = m + phi / Phi
    variance = 1 - m * phi / Phi - (phi / Phi) ** 2
    assert (chain.x > 0).all()
    assert abs(float(chain.x.mean()) - mean) <= 5 * math.sqrt(variance / 20000)
    assert abs(float(chain.x.var()) / variance - 1) <= 5 * math.sqrt(8 / 20000)
    clamped = langevin(
        lambda x: both(x)[1], torch.ones(20000, 1, dtype=torch.float64), step=1.0, iterations=60, nonneg=True
    )
    assert float((clamped.x == 0).double().mean()) > 0.1


@pytest.mark.parametrize("reflected", [False, True])
def test_density_of_the_proposal_integrates_to_one(reflected: bool) -> None:
    x, gradient, h = torch.tensor([0.4]).double(), torch.tensor([1.5]).double(), 0.3
    y = torch.linspace(0 if reflected else -8, 8, 200001, dtype=torch.float64)
    log_q = _log_proposal(y, x.expand(len(y)), gradient.expand(len(y)), torch.full((len(y),), h).double(), reflected)
    integral = torch.trapezoid(log_q.exp(), y) / math.sqrt(2 * math.pi * h)
    assert abs(float(integral) - 1) <= 1e-6


def test_preconditioned_ula_has_the_bias_of_its_metric() -> None:
    # P^(1/2) K P^(1/2) has eigenvalues L; in its basis the variance is 1 / (L (1 - h L / 4)) of the unit.
    P = torch.linalg.inv(spd(5, 0.7, 1.0, 3.0, 6.0, 12.0, seed=9))
    root = torch.linalg.cholesky(torch.linalg.inv(P))
    sampler = PreconditionedULA(lambda v: v @ P, lambda draw: draw(5) @ root.T)
    h = 0.3
    chain = langevin(lambda x: H(x)[1], exact_start(3), step=h, iterations=150, sampler=sampler, seed=7)
    half = torch.linalg.cholesky(P)
    L, Q = torch.linalg.eigh(half.T @ K @ half)
    assert h * L.max() / 4 > 0.3  # the comparison tells the law from the posterior
    covariance = half @ Q @ (1 / (L * (1 - h * L / 4))).diag() @ Q.T @ half.T
    assert_covariance(chain.x, M, covariance)


def mri(seed: int = 0) -> tuple[Sense, Tensor]:
    """Three coils, 6 x 8, lines; and Re A^H A on real images as a matrix."""
    mask = torch.zeros(1, 1, 6, 1, dtype=torch.float64)
    mask[:, :, [0, 2, 3, 5]] = 1
    A = Sense(coil_maps((6, 8), 3).to(torch.complex128), mask)
    eye = torch.eye(48, dtype=torch.float64).view(48, 6, 8)
    return A, A.gram(eye.to(torch.complex128)).real.reshape(48, 48)


def test_perturbation_of_least_squares_has_the_covariance_of_the_precision() -> None:
    A, gram = mri()
    sampler = PreconditionedULA.least_squares(
        lambda x: A.gram(x.to(torch.complex128)).real, lambda y: A.adjoint(y).real, A.range_shape,
        prior_std=0.5, noise_std=0.3, dtype=torch.complex128, rtol=1e-10,
    )  # fmt: skip
    x = torch.zeros(20000, 6, 8, dtype=torch.float64)
    precision = gram / 0.3**2 + torch.eye(48) / 0.5**2
    eta = sampler.perturb(Draw(x, 1, 2, 0))
    assert_covariance(eta.flatten(1), torch.zeros(48, dtype=torch.float64), precision)
    v = randn(3, 6, 8)
    torch.testing.assert_close(
        sampler.solve(v).flatten(1), torch.linalg.solve(precision, v.flatten(1).T).T, rtol=1e-8, atol=1e-10
    )


def test_diagonal_form_is_that_of_least_squares() -> None:
    # One coil: Re A^H A is diagonal in k-space, with the mean of the mask at k and -k.
    mask = torch.zeros(1, 1, 6, 1, dtype=torch.float64)
    mask[:, :, [1, 2, 3]] = 1
    A = Sense(torch.ones(1, 1, 6, 8, dtype=torch.complex128), mask)
    full = torch.fft.ifftshift(mask[0].expand(1, 6, 8).square(), dim=(-2, -1))
    mirrored = full.flip((-2, -1)).roll((1, 1), (-2, -1))
    precision = (full + mirrored) / 2 / 0.3**2 + 1 / 0.5**2
    closed = PreconditionedULA.diagonal(
        precision,
        lambda x: torch.fft.fft2(x, norm="ortho"),
        lambda y: torch.fft.ifft2(y, norm="ortho").real,
    )
    iterated = PreconditionedULA.least_squares(
        lambda x: A.gram(x.to(torch.complex128)).real, lambda y: A.adjoint(y).real, A.range_shape,
        prior_std=0.5, noise_std=0.3, dtype=torch.complex128, rtol=1e-12,
    )  # fmt: skip
    v = randn(2, 6, 8)
    torch.testing.assert_close(closed.solve(v), iterated.solve(v), rtol=1e-9, atol=1e-11)
    eye = torch.eye(48, dtype=torch.float64).view(48, 6, 8)
    matrix = closed.solve(eye).reshape(48, 48)
    eta = closed.perturb(Draw(torch.zeros(20000, 6, 8, dtype=torch.float64), 1, 2, 0)).flatten(1)
    assert_covariance(eta, torch.zeros(48, dtype=torch.float64), torch.linalg.inv(matrix))


def test_complex_states_have_the_law_in_both_parts() -> None:
    a = torch.tensor([2.0, 0.5], dtype=torch.complex128)
    sampler = PreconditionedULA.least_squares(
        lambda x: a.abs().square() * x, lambda y: a.conj() * y, (2,), prior_std=2.0, rtol=1e-12
    )
    h = 0.4
    chain = langevin(
        lambda x: a.abs().square() * x,
        torch.zeros(20000, 2).to(torch.complex128),
        step=h,
        iterations=80,
        sampler=sampler,
    )
    curvature = a.abs().square()
    P = 1 / (curvature + 0.25)
    variance = 1 / (curvature * (1 - h * P * curvature / 4))
    for part in (chain.x.real, chain.x.imag):
        assert ((part.var(0) / variance - 1).abs() <= 5 * math.sqrt(2 / 20000)).all()


# --- what MALA does --------------------------------------------------------------------------------------------
def test_mala_adapts_in_the_burn_in_only_and_to_its_target() -> None:
    x0 = exact_start(4)[:64]

    def run(target: float, **more: Any) -> Chain:
        return langevin(H, x0, step=1.0, iterations=1200, burn_in=600, sampler=MALA(target, **more))

    for target in (0.574, 0.8):
        chain = run(target)
        assert chain.acceptance is not None
        assert chain.memory["tried"].tolist() == [600] * 64
        # 600 tries of each chain, and the wobble of the last steps of the adaptation.
        assert abs(float(chain.acceptance.mean()) - target) <= 0.03
    fixed = run(0.574, adapt=False)
    assert fixed.scale is not None
    assert (fixed.scale == 1).all()
    assert float(fixed.acceptance.mean()) < 0.05
    frozen = langevin(H, run(0.574), step=1.0, iterations=50, burn_in=600, sampler=MALA())
    assert torch.equal(frozen.scale, run(0.574).scale)


def test_acceptance_in_the_recurrence_is_the_ratio_of_densities() -> None:
    # Detailed balance, number for number: pi(x) q(y|x) r(x, y) = pi(y) q(x|y) for r < 1.
    x, y = randn(50, 5, seed=1), randn(50, 5, seed=2)
    gx, gy = H(x)[1], H(y)[1]
    h = torch.full((50,), 0.1, dtype=torch.float64)
    forth = torch.distributions.MultivariateNormal(x - 0.05 * gx, 0.1 * torch.eye(5, dtype=torch.float64)).log_prob(y)
    back = torch.distributions.MultivariateNormal(y - 0.05 * gy, 0.1 * torch.eye(5, dtype=torch.float64)).log_prob(x)
    ours = _log_proposal(x, y, gy, h, False) - _log_proposal(y, x, gx, h, False)
    torch.testing.assert_close(ours, back - forth)


def test_an_infinite_energy_is_refused_and_nan_is_told() -> None:
    def walled(x: Tensor) -> tuple[Tensor, Tensor]:
        energy, g = H(x)
        return torch.where((x > 1.5).any(1), torch.inf, energy), g

    chain = langevin(walled, torch.zeros(200, 5).double(), step=0.1, iterations=300, sampler=MALA())
    assert (chain.x <= 1.5).all()
    assert (chain.status == Status.MAX_ITER).all()

    def broken(x: Tensor) -> tuple[Tensor, Tensor]:
        energy, g = H(x)
        return torch.where(torch.arange(len(x)) == 1, torch.nan, energy), g

    with pytest.warns(ConvergenceWarning, match="1 of 3"):
        lost = langevin(broken, torch.zeros(3, 5).double(), step=0.1, iterations=9, sampler=MALA())
    good = langevin(H, torch.zeros(3, 5).double(), step=0.1, iterations=9, sampler=MALA())
    assert lost.status.tolist() == [Status.MAX_ITER, Status.NONFINITE, Status.MAX_ITER]
    assert torch.equal(lost.x[[0, 2]], good.x[[0, 2]])


# --- every sampler ---------------------------------------------------------------------------------------------
def samplers() -> dict[str, tuple[Any, Any]]:
    A, _ = mri()

    def gradient(x: Tensor) -> Tensor:
        return A.gram(x.to(torch.complex128)).real + 0.1 * x

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        g = gradient(x)
        return 0.5 * (x * g).flatten(1).sum(1), g

    perturbed = PreconditionedULA.least_squares(
        lambda x: A.gram(x.to(torch.complex128)).real, lambda y: A.adjoint(y).real, A.range_shape,
        prior_std=1.0, dtype=torch.complex128,
    )  # fmt: skip
    return {"ula": (ULA(), gradient), "mala": (MALA(), both), "preconditioned": (perturbed, gradient)}


SAMPLERS = pytest.mark.parametrize("name", ["ula", "mala", "preconditioned"])


@SAMPLERS
def test_chains_are_the_same_in_pieces_and_in_parts(name: str) -> None:
    sampler, gradient = samplers()[name]
    x0 = randn(5, 6, 8)
    common: dict[str, Any] = {"step": 0.3, "burn_in": 6, "sampler": sampler}
    kept: dict[str, Any] = {"batches": 8, "draws": 4, "seed": 3}
    whole = langevin(gradient, x0, iterations=23, **common, **kept)
    first = langevin(gradient, x0, iterations=4, **common, **kept)
    resumed = langevin(gradient, langevin(gradient, first, iterations=9, **common), iterations=10, **common)
    parts = [
        langevin(gradient, x0[:2], iterations=23, **common, **kept),
        langevin(gradient, x0[2:], iterations=23, **common, **kept, first_sample=2),
    ]
    for read in (
        lambda c: c.x,
        lambda c: c.mean,
        lambda c: c.std,
        lambda c: c.batches.mean.transpose(0, 1),
        lambda c: c.batches.m2.transpose(0, 1),
        lambda c: c.draws.states.transpose(0, 1),
        *[lambda c, key=key: c.memory[key] for key in whole.memory],
    ):
        assert torch.equal(read(resumed), read(whole))
        assert torch.equal(torch.cat([read(part) for part in parts]), read(whole))
    assert first.steps == 4
    assert first.batches is not None
    assert first.batches.count == 0  # what went on left it as it was


@SAMPLERS
def test_a_sample_that_blows_up_is_alone(name: str) -> None:
    sampler, gradient = samplers()[name]
    x0 = randn(3, 6, 8)
    good = langevin(gradient, x0, step=0.3, iterations=70, sampler=sampler)
    x0[1, 2, 3] = torch.nan
    with pytest.warns(ConvergenceWarning, match="1 of 3 samples"):
        chain = langevin(gradient, x0, step=0.3, iterations=70, sampler=sampler)
    assert chain.status.tolist() == [Status.MAX_ITER, Status.NONFINITE, Status.MAX_ITER]
    assert torch.equal(chain.x[[0, 2]], good.x[[0, 2]])
    assert chain.mean[1].isnan().all()


@SAMPLERS
def test_nonneg_keeps_states_nonnegative(name: str) -> None:
    sampler, gradient = samplers()[name]
    chain = langevin(gradient, randn(3, 6, 8).abs(), step=0.3, iterations=20, sampler=sampler, nonneg=True)
    assert (chain.x >= 0).all()
    assert not (langevin(gradient, randn(3, 6, 8).abs(), step=0.3, iterations=20, sampler=sampler).x >= 0).all()


@SAMPLERS
def test_steps_of_each_sample_and_seeds_have_their_effect(name: str) -> None:
    sampler, gradient = samplers()[name]
    x0 = randn(3, 6, 8)

    def run(**options: Any) -> Chain:
        return langevin(gradient, x0, **({"step": 0.3, "iterations": 5, "sampler": sampler} | options))

    least = 0.01 if name == "mala" else 0.0
    each = run(step=torch.tensor([0.3, least, 0.1], dtype=torch.float64))
    assert torch.equal(each.x[0], run().x[0])
    assert not torch.equal(each.x[2], run().x[2])
    if name != "mala":
        assert torch.equal(each.x[1], x0[1])
    assert not torch.isclose(run(seed=1).x, run().x).any()
    assert torch.equal(run(step=lambda k: 0.3).x, run().x)


def test_draws_are_white_and_each_call_gives_others() -> None:
    draw = Draw(torch.zeros(50, 3), 1, 7, 0)
    first, second = draw(1000), draw(1000)
    assert first.shape == (50, 1000)
    assert first.dtype == torch.float32
    assert not torch.isclose(first, second).any()
    for values in (first, second):
        assert abs(float(values.var()) - 1) <= 5 * math.sqrt(2 / 50000)
    assert abs(float((first * second).mean())) <= 5 / math.sqrt(50000)
    wide = draw(1000, dtype=torch.complex128)
    assert wide.dtype == torch.complex128
    assert abs(float(wide.real.var()) - 1) <= 5 * math.sqrt(2 / 50000)


# --- curvature -------------------------------------------------------------------------------------------------
def test_largest_curvature_is_the_largest_eigenvalue_in_either_metric() -> None:
    gradient = lambda x: H(x)[1]  # noqa: E731
    found = largest_curvature(gradient, randn(2, 5), iterations=60)
    torch.testing.assert_close(found, torch.full((2,), 20.0, dtype=torch.float64), rtol=1e-3, atol=0)
    P = torch.linalg.inv(spd(5, 0.7, 1.0, 3.0, 6.0, 12.0, seed=9))
    exact = torch.linalg.eigvals(P @ K).real.max()
    assert float(largest_curvature(gradient, randn(1, 5), solve=lambda v: v @ P, iterations=60)) == pytest.approx(
        float(exact), rel=1e-3
    )
    early = largest_curvature(gradient, randn(1, 5), iterations=1)
    assert float(early) < 20
    assert float(largest_curvature(lambda x: 0 * x, randn(1, 5))) == 0
    x = randn(2, 5)
    x[1] = torch.nan
    assert float(largest_curvature(gradient, x)[0]) == float(largest_curvature(gradient, randn(2, 5))[0])


# --- errors ----------------------------------------------------------------------------------------------------
IDENTITY = PreconditionedULA(lambda v: v, lambda draw: draw(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": MALA}, "sampler: expected a sampler like MALA"),
        ({"sampler": MALA()}, "gradient: with MALA: expected a tuple"),
        ({"sampler": MALA(), "gradient": lambda x: (x.sum(), x)}, r"energy of shape \(\)"),
        ({"sampler": MALA(), "gradient": lambda x: (x.sum(1).int(), x)}, "gradient: its energy: dtype int32"),
        ({"sampler": MALA(), "gradient": lambda x: (x.sum(1), x), "step": 0.0}, "step: 0.0"),
        ({"sampler": MALA(), "noise_std": 0.1}, "noise_std: is for ULA, MALA"),
        ({"sampler": IDENTITY, "noise_std": 0.1}, "noise_std: is for ULA"),
        (
            {"sampler": MALA(), "gradient": lambda x: (x.sum(1), x), "x0": -torch.ones(2, 3), "nonneg": True},
            "x0: has neg",
        ),
        ({"sampler": PreconditionedULA(lambda v: v[:1], IDENTITY.perturb)}, r"solve: returned shape \(1, 3\)"),
        ({"sampler": PreconditionedULA(lambda v: v.mul_(2), IDENTITY.perturb)}, "solve: writes into its argument"),
        ({"sampler": PreconditionedULA(lambda v: v, lambda draw: draw(2))}, r"perturb: returned shape \(2, 2\)"),
        ({"sampler": IDENTITY, "step": -1.0}, "step: -1.0"),
        ({"sampler": IDENTITY, "step": torch.ones(3)}, r"step: shape \(3,\)"),
        ({"batches": 9}, "batches: 9 does not fit, expected an even number"),
        ({"batches": 4}, "batches: 4 does not fit, expected at least 8"),
        ({"draws": 2}, "draws: 2 does not fit"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        langevin(**({"gradient": lambda x: x, "x0": torch.zeros(2, 3), "step": 0.1, "iterations": 2} | change))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MALA(0.0), "target: 0.0"),
        (lambda: MALA(1.0), "target: 1.0"),
        (lambda: MALA(adapt=1), "adapt: 1, expected True or False"),
        (lambda: PreconditionedULA(None, lambda d: d), "solve: expected a function"),
        (lambda: PreconditionedULA(lambda v: v, 3), "perturb: expected a function"),
        (lambda: PreconditionedULA.diagonal(torch.zeros(3), abs, abs), "precision: has numbers"),
        (lambda: PreconditionedULA.least_squares(abs, abs, (3,), prior_std=0.0), "prior_std: 0.0"),
        (lambda: PreconditionedULA.least_squares(abs, abs, (3,), prior_std=1.0, noise_std=-1.0), "noise_std: -1.0"),
        (lambda: PreconditionedULA.least_squares(abs, abs, (0,), prior_std=1.0), "range_shape: 0"),
        (lambda: PreconditionedULA.least_squares(abs, abs, (3,), prior_std=1.0, dtype=torch.int32), "dtype: dtype"),
    ],
)  # fmt: skip
def test_errors_of_samplers_name_the_argument(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_chain_goes_on_with_the_kind_of_sampler_it_began_with() -> None:
    chain = langevin(lambda x: x, torch.zeros(2, 3), step=0.1, iterations=1)
    with pytest.raises(ValueError, match="sampler: the chain began with another one than MALA"):
        langevin(lambda x: (x.sum(1), x), chain, step=0.1, iterations=1, sampler=MALA())
    with pytest.raises(ValueError, match="batches, draws: a chain has its own"):
        langevin(lambda x: x, chain, step=0.1, iterations=1, batches=8)
