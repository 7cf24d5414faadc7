"""Diagnostics of chains: against their definitions, chains of known correlation, and what another package finds."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.solvers import (
    Batches,
    Chain,
    ConvergenceWarning,
    Draws,
    diagnose,
    effective_sample_size,
    langevin,
    quantiles,
    split_rhat,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ar1(phi: float, chains: int, states: int, pixels: int, seed: int = 0) -> Tensor:
    """(C, N, pixels), stationary, of variance 1; ESS = C N (1 - phi) / (1 + phi)."""
    xi = randn(states, chains, pixels, seed=seed)
    x = [xi[0]]
    for k in range(1, states):
        x.append(phi * x[-1] + math.sqrt(1 - phi**2) * xi[k])
    return torch.stack(x, dim=1)


def chain_of(states: Tensor, batches: int = 32, draws: int = 16) -> Chain:
    """A Chain that went through ``states`` (C, N, ...), by the sampler itself."""
    moving = iter(states.transpose(0, 1))
    # With step 2 and no noise the next state is x - gradient.
    chain = langevin(
        lambda x: x - next(moving),
        torch.zeros_like(states[:, 0]),
        step=2.0,
        noise_std=0.0,
        iterations=states.shape[1],
        batches=batches,
        draws=draws,
    )
    torch.testing.assert_close(chain.x, states[:, -1])
    return chain


# --- streaming ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [5, 8, 9, 16, 37, 64, 100])
def test_batches_are_means_and_sums_of_consecutive_states(count: int) -> None:
    states = randn(count, 2, 3) + 5
    batches = Batches.like(states[0], 8)
    for x in states:
        batches.update(x)
    assert batches.count == count
    assert batches.size == 2 ** max(0, math.ceil(math.log2(count / 8)))
    for i in range(-(-count // batches.size)):
        part = states[i * batches.size : (i + 1) * batches.size]
        torch.testing.assert_close(batches.mean[i], part.mean(0))
        torch.testing.assert_close(batches.m2[i], (part - part.mean(0)).square().sum(0))


@pytest.mark.parametrize("count", [3, 4, 5, 8, 12, 33, 100])
def test_draws_are_evenly_thinned(count: int) -> None:
    draws = Draws.like(torch.zeros(1), 8)
    for k in range(count):
        draws.update(torch.tensor([float(k)]))
    expected = torch.arange(count, dtype=torch.float32)[draws.every - 1 :: draws.every]
    assert torch.equal(draws.states[: draws.kept, 0], expected)
    assert min(count, 4) <= draws.kept <= 8


# --- formulas ----------------------------------------------------------------------------------------------------
def by_hand(draws: Tensor) -> tuple[float, float]:
    """ESS and split R-hat of (C, N) by loops, as Vehtari et al. 2021 write them."""
    n = draws.shape[1] // 2
    halves = [c for chain in draws for c in (chain[:n], chain[-n:])]
    m = len(halves)
    means = torch.stack([h.mean() for h in halves])
    within = float(torch.stack([h.var() for h in halves]).mean())
    variance = (n - 1) / n * within + float(means.var())
    rho = [1.0]
    for t in range(1, n):
        covariance = sum(float(((h - h.mean())[t:] * (h - h.mean())[: n - t]).sum()) / n for h in halves) / m
        rho.append(1 - (within - covariance) / variance)
    pairs = [rho[2 * k] + rho[2 * k + 1] for k in range((n - 3) // 2 + 1)]
    tau, least, k = -1.0, math.inf, 0
    while k < len(pairs) - 1 and pairs[k] > 0:
        least = min(least, pairs[k])
        tau += 2 * least
        k += 1
    tau += max(rho[2 * k], 0)
    return m * n / max(tau, 1 / math.log10(m * n)), math.sqrt(variance / within)


# Of arviz 0.23.4, ess(method="mean") and rhat(method="split"), for ar1(0.6, 4, 50, 3, seed=1), and with chain 2 moved.
ARVIZ = (
    ([22.368370359555026, 44.682003640848784, 77.01309084508505],
     [1.1460228206069702, 1.0529382896568689, 1.030893600795633]),
    ([14.327126807651593, 33.03431699404976, 73.11569601752511],
     [1.2380508133655996, 1.0878718670231766, 1.0474914442449448]),
)  # fmt: skip


def test_formulas_are_those_of_the_papers_and_of_arviz() -> None:
    for moved, (ess, rhat) in zip((0.0, 0.5), ARVIZ, strict=True):
        draws = ar1(0.6, 4, 50, 3, seed=1)
        draws[2] += moved
        torch.testing.assert_close(split_rhat(draws), torch.tensor(rhat, dtype=torch.float64), rtol=1e-9, atol=0)
        ours = effective_sample_size(draws)
        torch.testing.assert_close(ours, torch.tensor(ess, dtype=torch.float64), rtol=1e-9, atol=0)
        for pixel in range(3):
            hand = by_hand(draws[..., pixel])
            assert (float(ours[pixel]), float(split_rhat(draws)[pixel])) == pytest.approx(hand, rel=1e-9)


def test_formulas_take_numbers_and_images() -> None:
    draws = ar1(0.5, 3, 20, 6)
    for formula in (split_rhat, effective_sample_size):
        flat = formula(draws)
        assert torch.equal(formula(draws.view(3, 20, 2, 3)), flat.view(2, 3))
        torch.testing.assert_close(formula(draws[..., 0]), flat[0])


@pytest.mark.parametrize("states", [4, 5, 6, 7, 9, 40])
@pytest.mark.parametrize("phi", [-0.7, 0.0, 0.95])
def test_formulas_at_short_and_odd_lengths(states: int, phi: float) -> None:
    draws = ar1(phi, 3, states, 20, seed=2)
    ess, rhat = effective_sample_size(draws), split_rhat(draws)
    for pixel in range(20):
        assert (float(ess[pixel]), float(rhat[pixel])) == pytest.approx(by_hand(draws[..., pixel]), rel=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.98])
def test_both_estimates_of_effective_samples_find_those_of_known_chains(phi: float) -> None:
    chains, states, pixels = 4, 4096, 400
    draws = ar1(phi, chains, states, pixels, seed=3)
    exact = chains * states * (1 - phi) / (1 + phi)
    stored = effective_sample_size(draws)
    streamed = diagnose(chain_of(draws), chains)[0].ess
    # Of 128 batch means a pixel is good to sqrt(2 / 127) = 13 %, and what Geyer's sum adds; the middle of 400 to 1 %.
    assert abs(float(stored.median()) / exact - 1) <= 0.06
    assert abs(float(streamed.median()) / exact - 1) <= 0.06
    assert float((streamed / exact - 1).square().mean().sqrt()) <= 0.3
    assert float((stored / exact - 1).square().mean().sqrt()) <= 0.25


def test_streamed_numbers_are_those_of_stored_states() -> None:
    draws = ar1(0.7, 3, 64, 5, seed=4)
    found = diagnose(chain_of(draws, batches=64), chains=3)[0]  # one state a batch: nothing is lost
    torch.testing.assert_close(found.rhat, split_rhat(draws))
    torch.testing.assert_close(found.mean, draws.mean((0, 1)))
    torch.testing.assert_close(found.std, draws.flatten(0, 1).std(0))
    assert (found.chains, found.states) == (3, 64)
    long = ar1(0.7, 3, 1024, 5, seed=4)
    batched = diagnose(chain_of(long, batches=16), chains=3)[0]
    torch.testing.assert_close(batched.rhat, split_rhat(long))  # exact for any batches
    torch.testing.assert_close(batched.std, long.flatten(0, 1).std(0))


def test_drift_is_normal_where_there_is_none_and_large_where_there_is() -> None:
    draws = ar1(0.8, 4, 2048, 1000, seed=5)
    still, alone = diagnose(chain_of(draws), 4)[0], diagnose(chain_of(draws), 1)[0]
    for found in (still, alone):
        assert abs(float(found.drift.square().mean().sqrt()) - 1) <= 0.25
        assert abs(float(found.drift.mean())) <= 0.2
    draws += 3 * torch.exp(-torch.arange(2048, dtype=torch.float64) / 500)[None, :, None]
    moving = diagnose(chain_of(draws), 4)[0]
    assert moving.summary()["drifting"] > 0.5
    assert any("drifts" in text for text in moving.advice())
    assert still.summary()["drifting"] < 0.03


def test_chains_that_disagree_are_told() -> None:
    draws = ar1(0.0, 4, 1024, 50, seed=6)
    good = diagnose(chain_of(draws), 4)[0]
    assert good.advice() == []
    assert good.warn("sample") is good
    draws[1] += 1
    bad = diagnose(chain_of(draws), 4)[0]
    assert bad.summary()["rhat_median"] > 1.05
    with pytest.warns(ConvergenceWarning, match="sample: .*effective samples in half of the pixels.*split R-hat"):
        bad.warn("sample")
    assert good.advice(ess=1e6)[0].startswith(f"{good.summary()['ess_median']:.0f} effective samples")
    inside = torch.zeros(50, dtype=torch.bool)
    inside[7] = True
    assert good.summary(inside)["ess_median"] == pytest.approx(float(good.ess[7]))


def test_problems_are_groups_of_chains_and_lost_chains_are_left_out() -> None:
    draws = ar1(0.3, 6, 64, 4, seed=7)
    lost = draws.clone()
    lost[4, 40:] = torch.nan
    whole = diagnose(chain_of(draws), 3)
    with pytest.warns(ConvergenceWarning, match="1 of 6"):
        chain = langevin_of(lost)
    found = diagnose(chain, 3)
    assert torch.equal(found[0].ess, whole[0].ess)
    assert (found[0].chains, found[1].chains) == (3, 2)
    torch.testing.assert_close(found[1].mean, draws[[3, 5]].mean((0, 1)))
    assert torch.isfinite(quantiles(chain, (0.5,), 3)).all()
    lost[3:, 40:] = torch.nan
    with pytest.warns(ConvergenceWarning, match="3 of 6"):
        chain = langevin_of(lost)
    assert diagnose(chain, 3)[1].ess.isnan().all()
    assert math.isnan(diagnose(chain, 3)[1].summary()["ess_median"])
    assert diagnose(chain, 3)[1].advice() != []
    assert quantiles(chain, (0.5,), 3)[:, 1].isnan().all()


def langevin_of(states: Tensor) -> Chain:
    moving = iter(states.transpose(0, 1))
    return langevin(
        lambda x: x - next(moving), torch.zeros_like(states[:, 0]), step=2.0, noise_std=0.0,
        iterations=states.shape[1], batches=32, draws=16,
    )  # fmt: skip


def test_too_few_batches_give_no_numbers_and_advice() -> None:
    found = diagnose(chain_of(ar1(0.0, 2, 7, 3)), 2)[0]
    assert found.ess.isnan().all()
    assert found.advice() != []


def test_a_pixel_that_never_moved_has_no_effective_sample() -> None:
    draws = ar1(0.0, 2, 64, 3)
    draws[..., 1] = 2.0
    found = diagnose(chain_of(draws), 2)[0]
    assert found.ess.isnan().tolist() == [False, True, False]
    assert found.summary()["ess_worst"] == 0
    assert found.summary()["rhat_worst"] == math.inf


# --- quantiles ---------------------------------------------------------------------------------------------------
def test_quantiles_are_those_of_the_draws_of_a_problem() -> None:
    states = randn(6, 16, 4, 5)
    chain = chain_of(states, draws=16)
    found = quantiles(chain, (0.0, 0.05, 0.5, 0.95, 1.0), 3)
    assert found.shape == (5, 2, 4, 5)
    for problem in range(2):
        pooled = states[3 * problem : 3 * problem + 3].flatten(0, 1)
        levels = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64)
        torch.testing.assert_close(found[:, problem], torch.quantile(pooled, levels, dim=0))


# --- errors ------------------------------------------------------------------------------------------------------
PLAIN = langevin(lambda x: x, torch.zeros(4, 3), step=0.1, iterations=9)
COMPLEX = langevin(lambda x: x, torch.zeros(4, 3, dtype=torch.complex64), step=0.1, iterations=9, batches=8, draws=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose(3), "chain: expected a Chain"),
        (lambda: diagnose(PLAIN), r"chain: kept no batches; run langevin\(..., batches=32\)"),
        (lambda: quantiles(PLAIN, (0.5,)), "chain: kept no draws"),
        (lambda: diagnose(COMPLEX), "chain: complex states"),
        (lambda: quantiles(COMPLEX, (0.5,)), "chain: complex states"),
        (lambda: diagnose(chain_of(randn(4, 9, 2)), 3), "chains: 3 does not divide the batch of 4"),
        (lambda: quantiles(chain_of(randn(4, 9, 2)), (1.5,)), "levels: 1.5 does not fit"),
        (lambda: quantiles(chain_of(randn(4, 9, 2)), ()), "levels: none were given"),
        (lambda: split_rhat(randn(4, 3)), r"draws: shape \(4, 3\)"),
        (lambda: effective_sample_size(randn(9)), r"draws: shape \(9,\)"),
        (lambda: effective_sample_size(randn(2, 9).to(torch.complex128)), "draws: complex"),
        (lambda: effective_sample_size([1.0]), "draws: expected a torch.Tensor"),
    ],
)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_of_no_columns_there_are_no_numbers() -> None:
    draws = torch.zeros(3, 9, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert effective_sample_size(draws).shape == split_rhat(draws).shape == (0,)
