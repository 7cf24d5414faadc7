"""What chains tell about themselves: effective samples, split R-hat, drift, quantiles; streaming, in bounded memory.

A chain keeps the mean and the spread of up to K batches of consecutive states (when they are full, neighbours merge and
batches are twice as long) and up to D states, evenly thinned (when they are full, every second stays). With chains
j = 1 ... 2C, each chain cut into halves of N states, of means m_j and variances v_j::

    W = mean v_j    V = (N - 1) / N W + var m_j    R-hat = sqrt(V / W)                         (split R-hat)
    ESS = V / var(mean of all states)              tau = 2 C N / ESS = 1 + 2 sum_t rho_t

rho_t is the autocorrelation of all chains together, 1 - (W - mean of the chains' autocovariances at t) / V, summed in
pairs (rho_2k + rho_2k+1) while they are positive, made monotone (Geyer's initial sequence). On batch means, about the
mean of all chains, that sum takes in what batches still have in common with their neighbours: they need not be longer
than the correlation.

Sources: Gelman et al., Bayesian data analysis, 3rd ed., 11.4 (2013); Vehtari et al., Bayesian Anal 16:667 (2021);
Geyer, Stat Sci 7:473 (1992); batch means: Flegal and Jones, Ann Stat 38:1034 (2010).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, REAL_OF, check_count, check_dtype, check_number
from pyrecon._fft import transformed
from pyrecon._solution import ConvergenceWarning, Status
from pyrecon.ops._langevin import Moments
from pyrecon.solvers._batch import select

MIXED = 1.01  # split R-hat below which chains agree (Vehtari et al.)
ENOUGH = 400  # effective samples: an interval's end is then good to a percent of probability
_DRIFT = 3.0  # standard errors
_DRIFTING = 0.05  # share of pixels beyond them; 0.003 of a normal number, more where the error itself is estimated


@dataclass
class Batches:
    """Mean and sum of squares of consecutive states, in up to K batches of ``size``.

    Attributes
    ----------
    mean, m2
        ``(K, B, ...)``; see :class:`pyrecon.ops.Moments`. The last one may be a part of a batch, the rest is zero.
    size
        States of a batch: doubled whenever K batches are full.
    count
        States so far.
    """

    mean: Tensor
    m2: Tensor
    size: int = 1
    count: int = 0

    @classmethod
    def like(cls, x: Tensor, batches: int) -> Batches:
        shape = (batches, *x.shape)
        return cls(x.new_zeros(shape), x.new_zeros(shape, dtype=REAL_OF[x.dtype]))

    @property
    def full(self) -> int:
        """Batches that are whole."""
        return self.count // self.size

    def update(self, x: Tensor) -> None:
        """Take in a state."""
        if self.full == len(self.mean):
            self._merge()
        i = self.full
        before = self.count - i * self.size
        delta = x - self.mean[i]
        self.mean[i] += delta / (before + 1)
        rest = x - self.mean[i]
        self.m2[i] += (delta * rest.conj()).real if x.is_complex() else delta * rest
        self.count += 1

    def _merge(self) -> None:
        half = len(self.mean) // 2
        apart = (self.mean[1::2] - self.mean[::2]).abs().square()
        self.m2[:half] = self.m2[::2] + self.m2[1::2] + self.size / 2 * apart
        self.mean[:half] = (self.mean[::2] + self.mean[1::2]) / 2
        self.mean[half:], self.m2[half:] = 0, 0
        self.size *= 2

    def clone(self) -> Batches:
        return Batches(self.mean.clone(), self.m2.clone(), self.size, self.count)


@dataclass
class Draws:
    """Up to D states, each ``every``-th of those that came; ``every`` is doubled whenever D are there.

    Attributes
    ----------
    states
        ``(D, B, ...)``; the first :attr:`kept` of them.
    """

    states: Tensor
    every: int = 1
    count: int = 0

    @classmethod
    def like(cls, x: Tensor, draws: int) -> Draws:
        return cls(x.new_zeros((draws, *x.shape)))

    @property
    def kept(self) -> int:
        return self.count // self.every

    def update(self, x: Tensor) -> None:
        """Take in a state, or pass it by."""
        if self.kept == len(self.states):
            half = len(self.states) // 2
            self.states[:half] = self.states[1::2].clone()
            self.every *= 2
        self.count += 1
        if self.count % self.every == 0:
            self.states[self.kept - 1] = x

    def clone(self) -> Draws:
        return Draws(self.states.clone(), self.every, self.count)


@dataclass
class Chain:
    """Samplers at work, one for each sample of a batch: what :func:`langevin` returns and can go on from.

    Attributes
    ----------
    x
        Their states, ``(B, ...)``.
    moments
        Running mean and variance of the states kept so far.
    steps
        Steps taken so far: the next one draws its noise from this counter.
    seed, first_sample
        Of the noise: see :func:`langevin`.
    status
        ``(B,)`` int8, values of :class:`Status`: MAX_ITER, all steps were taken; NONFINITE, a state was NaN or Inf.
    memory
        What its sampler remembers, ``(B,)`` each: see :class:`MALA`.
    batches, draws
        What :func:`diagnose` and :func:`quantiles` read; None where they were not asked for.
    """

    x: Tensor
    moments: Moments
    steps: int
    seed: int
    first_sample: int
    status: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)
    batches: Batches | None = None
    draws: Draws | None = None

    @property
    def mean(self) -> Tensor:
        """Mean of the states kept: the estimate of least mean squared error. NaN for a NONFINITE sample."""
        return self._finite(self.moments.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the states kept, real; NaN for a NONFINITE sample, and before two were kept."""
        return self._finite(self.moments.std())

    @property
    def acceptance(self) -> Tensor | None:
        """Share of the proposals after the burn-in that :class:`MALA` accepted, ``(B,)``; None for other samplers."""
        if "tried" not in self.memory:
            return None
        return self.memory["accepted"] / self.memory["tried"]

    @property
    def scale(self) -> Tensor | None:
        """Factor by which :class:`MALA` has adapted the step, ``(B,)``; None for other samplers."""
        return self.memory["log_scale"].exp() if "log_scale" in self.memory else None

    def nonfinite(self) -> Tensor:
        """``(B,)`` bool."""
        return self.status == Status.NONFINITE

    def clone(self) -> Chain:
        """A copy that shares no memory."""
        m = self.moments
        return Chain(
            self.x.clone(),
            Moments(m.mean.clone(), m.m2.clone(), m.count.clone()),
            self.steps,
            self.seed,
            self.first_sample,
            self.status.clone(),
            {name: value.clone() for name, value in self.memory.items()},
            None if self.batches is None else self.batches.clone(),
            None if self.draws is None else self.draws.clone(),
        )

    def _finite(self, value: Tensor) -> Tensor:
        return select(self.status != Status.NONFINITE, value, torch.nan)


@dataclass(frozen=True)
class Diagnostics:
    """What the chains of one problem say together, per pixel.

    Attributes
    ----------
    mean, std
        Of the states of all its finite chains.
    ess
        Effective samples behind the mean: its error is ``std / sqrt(ess)``, that of std about ``std / sqrt(2 ess)``.
    rhat
        Split R-hat: 1 where chains, and the halves of each, agree.
    drift
        Difference of the mean of the second halves and of the first ones, in its standard errors: a chain that has not
        forgotten its start has numbers beyond 3.
    chains, states
        How many, and states of each that were used.
    """

    mean: Tensor
    std: Tensor
    ess: Tensor
    rhat: Tensor
    drift: Tensor
    chains: int
    states: int

    def summary(self, where: Tensor | None = None) -> dict[str, float]:
        """Median and worst of the maps, over the pixels ``where`` (all, if not given); ``drifting`` is the share of
        pixels whose drift is beyond 3 standard errors."""
        ess, rhat, drift = (v[where] if where is not None else v.flatten() for v in (self.ess, self.rhat, self.drift))
        if not ess.numel() or not self.chains:
            return dict.fromkeys(("ess_median", "ess_worst", "rhat_median", "rhat_worst", "drifting"), torch.nan)
        # A pixel that never moved, or moved once, has no number; it is no better than the others.
        return {
            "ess_median": float(ess.nan_to_num(nan=0.0).median()),
            "ess_worst": float(ess.nan_to_num(nan=0.0).min()),
            "rhat_median": float(rhat.nan_to_num(nan=torch.inf).median()),
            "rhat_worst": float(rhat.nan_to_num(nan=torch.inf).max()),
            "drifting": float((drift.abs() > _DRIFT).double().mean()),
        }

    def advice(self, where: Tensor | None = None, *, ess: float = ENOUGH) -> list[str]:
        """What to do, in sentences; none where chains agree and half of the pixels have ``ess`` effective samples."""
        check_number("ess", ess)
        found = self.summary(where)
        said = []
        if not found["ess_median"] >= ess:
            said.append(
                f"{found['ess_median']:.0f} effective samples in half of the pixels, {found['ess_worst']:.0f} in the "
                f"worst; expected {ess:.0f}: run longer, or with a sampler that mixes faster"
            )
        if self.chains > 1 and not found["rhat_median"] <= MIXED:
            said.append(
                f"split R-hat {found['rhat_median']:.3f} in half of the pixels, {found['rhat_worst']:.3f} in the "
                f"worst, expected {MIXED}: the chains do not agree yet; lengthen the burn-in and the run"
            )
        if found["drifting"] > _DRIFTING:
            said.append(f"the mean still drifts in {found['drifting']:.0%} of the pixels: lengthen the burn-in")
        return said

    def warn(self, solver: str, where: Tensor | None = None, *, ess: float = ENOUGH) -> Diagnostics:
        """One :class:`~pyrecon.solvers.ConvergenceWarning` with the advice, if there is any."""
        if said := self.advice(where, ess=ess):
            warnings.warn(f"{solver}: {'; '.join(said)}", ConvergenceWarning, stacklevel=2)
        return self


def diagnose(chain: Chain, chains: int = 1) -> list[Diagnostics]:
    """Effective samples, split R-hat and drift of every problem, from the batches that :func:`langevin` kept.

    Parameters
    ----------
    chain
        Of a run with ``batches``.
    chains
        Chains of one problem, which are next to each other in the batch: ``(B / chains)`` problems. A NONFINITE one is
        left out; where all are, or there are fewer than 8 whole batches, numbers are NaN.

    Returns
    -------
    list of Diagnostics
        One for each problem. Real numbers only: take parts of complex ones by a gradient of real states.
    """
    if not isinstance(chain, Chain):
        raise TypeError(f"chain: expected a Chain, got {type(chain).__name__}")
    if chain.batches is None:
        raise ValueError("chain: kept no batches; run langevin(..., batches=32)")
    if chain.x.is_complex():
        raise TypeError("chain: complex states, expected real ones")
    usable = ~chain.nonfinite()
    batches, full = chain.batches, chain.batches.full // 2 * 2
    found = []
    for group in _groups(chain, chains):
        here = group[usable[group]]
        if not len(here) or full < 8:
            nothing = torch.full_like(chain.x[0], torch.nan)
            found.append(Diagnostics(nothing, nothing, nothing, nothing, nothing, len(here), 0))
            continue
        means = batches.mean[:full, here].double().transpose(0, 1)  # (C, full, ...)
        m2 = batches.m2[:full, here].double().transpose(0, 1)
        found.append(_diagnosed(means, m2, batches.size, chain.x.dtype))
    return found


def quantiles(chain: Chain, levels: tuple[float, ...], chains: int = 1) -> Tensor:
    """Quantiles of the draws that :func:`langevin` kept, all chains of a problem together: ``(levels, problems, ...)``.

    Linear between order statistics. Of n independent draws the quantile p is that of a probability within
    ``sqrt(p (1 - p) / n)``; n is at most the number of draws and at most the effective samples. NaN where no chain is
    finite, or no draw was kept.
    """
    if not isinstance(chain, Chain):
        raise TypeError(f"chain: expected a Chain, got {type(chain).__name__}")
    if chain.draws is None:
        raise ValueError("chain: kept no draws; run langevin(..., draws=100)")
    if chain.x.is_complex():
        raise TypeError("chain: complex states, expected real ones")
    if not levels:
        raise ValueError("levels: none were given, expected numbers from 0 to 1")
    for level in levels:
        if not 0 <= check_number("levels", level) <= 1:
            raise ValueError(f"levels: {level} does not fit, expected numbers from 0 to 1")
    usable = ~chain.nonfinite()
    kept = chain.draws.states[: chain.draws.kept]
    found = []
    for group in _groups(chain, chains):
        here = group[usable[group]]
        if not len(here) or not len(kept):
            found.append(chain.x.new_full((len(levels), *chain.x.shape[1:]), torch.nan))
            continue
        ordered = kept[:, here].flatten(0, 1).sort(dim=0).values
        at = [level * (len(ordered) - 1) for level in levels]
        found.append(
            torch.stack([torch.lerp(ordered[int(a)], ordered[min(int(a) + 1, len(ordered) - 1)], a % 1) for a in at])
        )
    return torch.stack(found, dim=1)


def split_rhat(draws: Tensor) -> Tensor:
    """Split R-hat of draws ``(C, N, ...)``, N of each of C chains, at least 4: ``(...)`` float64.

    Each chain is cut into two halves (of an odd N the middle draw is left out); 1 where all halves have the same mean
    against their spread. NaN where a draw is, or nothing moved.
    """
    halves = _halves(_real_draws(draws))
    if halves.numel() == 0:
        return halves.new_zeros(halves.shape[2:])
    m, v = halves.mean(1), halves.var(1)
    n = halves.shape[1]
    within = v.mean(0)
    return ((n - 1) / n + m.var(0) / within).sqrt()


def effective_sample_size(draws: Tensor) -> Tensor:
    """Effective samples behind the mean of draws ``(C, N, ...)``, N >= 4 of each of C chains: ``(...)`` float64.

    Chains are cut into halves, so a drift within one, or disagreement of several, counts. It is ``N C`` for independent
    draws; more for draws that alternate about the mean, up to ``log10(N C)`` times as many. NaN where a draw is NaN, or
    nothing moved.
    """
    halves = _halves(_real_draws(draws))
    return _ess(halves) if halves.numel() else halves.new_zeros(halves.shape[2:])


def _ess(halves: Tensor) -> Tensor:
    n = halves.shape[1]
    covariance = _autocovariance(halves - halves.mean(1, keepdim=True))
    within = covariance[0] * n / (n - 1)
    variance = covariance[0] + halves.mean(1).var(0)
    rho = 1 - (within - covariance) / variance
    rho[0] = 1
    return torch.where(variance > 0, halves.shape[0] * n / _tau(rho, halves), torch.nan)


def _variance_of_mean(series: Tensor) -> Tensor:
    """Of the mean of all of ``(C, n, ...)`` that are centred already, by their correlations about that common centre.

    About the mean of each series autocovariances of n numbers are too small by the variance of that mean, which made
    the effective samples of 32 batches 10 % too many (Agarwal and Vats, J Comput Graph Stat 31:629, 2022).
    """
    covariance = _autocovariance(series)
    count = series.shape[0] * series.shape[1]
    return covariance[0] * _tau(covariance / covariance[0], series) / count


def _autocovariance(series: Tensor) -> Tensor:
    """Mean over the series ``(C, n, ...)`` of the autocovariances at lags 0 to n - 1, sums over n."""
    n = series.shape[1]
    # By the Wiener-Khinchin theorem, padded so that nothing wraps around.
    spectrum = transformed(torch.fft.rfft, series, n=2 * n, dim=1)
    sums = transformed(torch.fft.irfft, spectrum.abs().square(), n=2 * n, dim=1)
    return sums[:, :n].mean(0) / n


def _tau(rho: Tensor, series: Tensor) -> Tensor:
    """Geyer's initial monotone sequence of autocorrelations ``(lags, ...)``, as Vehtari et al. end it."""
    chains, n = series.shape[:2]
    last = max((n - 3) // 2, 0)  # the pair that is not looked beyond
    even, odd = rho[: 2 * last + 1 : 2], rho[1 : 2 * last + 2 : 2]
    pairs = even + odd
    # All pairs before the first that is not positive, or before the last.
    inside = torch.cat([pairs[:-1] > 0, torch.zeros_like(pairs[:1], dtype=torch.bool)]).cumprod(0).bool()
    end = inside.sum(0, keepdim=True)
    tau = -1 + 2 * (pairs.cummin(0).values * inside).sum(0) + even.gather(0, end)[0].clamp(min=0)
    return tau.clamp(min=1 / math.log10(chains * n))


def _diagnosed(means: Tensor, m2: Tensor, size: int, dtype: torch.dtype) -> Diagnostics:
    """From batch means and sums of squares ``(C, F, ...)``, F even, double."""
    chains, full = means.shape[:2]
    halves, sums = _halves(means), _halves(m2)
    n = halves.shape[1] * size
    m = halves.mean(1)
    v = (sums.sum(1) + size * (halves - m[:, None]).square().sum(1)) / (n - 1)
    within = v.mean(0)
    variance = (n - 1) / n * within + m.var(0)
    whole, first, second = m.mean(0), m[:chains].mean(0), m[chains:].mean(0)
    ess = variance / _variance_of_mean(means - whole)
    # What all chains do together is the drift that is asked for, and no part of its error.
    if chains > 1:
        apart = (means - means.mean(0)) * (chains / (chains - 1)) ** 0.5
    else:
        apart = torch.cat([half - half.mean(1, keepdim=True) for half in means.split(full // 2, dim=1)], dim=1)
    drift = (second - first) / (4 * _variance_of_mean(apart)).sqrt()
    everything = (v.sum(0) * (n - 1) + n * (m - whole).square().sum(0)) / (2 * chains * n - 1)
    rhat = (variance / within).sqrt()
    return Diagnostics(
        whole.to(dtype),
        everything.sqrt().to(dtype),
        ess.to(dtype),
        rhat.to(dtype),
        drift.to(dtype),
        chains,
        full * size,
    )


def _halves(draws: Tensor) -> Tensor:
    """(C, N, ...) to (2C, N // 2, ...): first halves of all chains, then second halves."""
    n = draws.shape[1] // 2
    return torch.cat([draws[:, :n], draws[:, -n:]])


def _real_draws(draws: Tensor) -> Tensor:
    check_dtype("draws", draws, (*FLOATING, *COMPLEX))
    if draws.is_complex():
        raise TypeError("draws: complex numbers, expected real ones; take their parts")
    if draws.dim() < 2 or draws.shape[0] < 1 or draws.shape[1] < 4:
        raise ValueError(f"draws: shape {tuple(draws.shape)} does not fit, expected (C, N, ...) with N >= 4")
    return draws.detach().double()


def _groups(chain: Chain, chains: int) -> Tensor:
    """Numbers of samples, (problems, chains)."""
    check_count("chains", chains)
    if len(chain.x) % chains:
        raise ValueError(f"chains: {chains} does not divide the batch of {len(chain.x)} samples")
    return torch.arange(len(chain.x), device=chain.x.device).view(-1, chains)
