"""Whether intervals hold what they claim: every sampler on a Gaussian prior, where the posterior is known.

Images x ~ N(m, C), C stationary, data z = A x + n with parts of n of standard deviation sigma. The posterior is
N(mu, K^-1) with ``K = Re A^H A / sigma^2 + C^-1``, ``mu = K^-1 (Re A^H z / sigma^2 + C^-1 m)``. For each sampler: the
mean against mu, the variance against K^-1 and against the law of the algorithm (a step h makes it
``1 / (1 - h L / 4)`` times as large along directions of curvature L), how often 90 % intervals hold the truth, and
effective samples, by the autocorrelations of the law and as measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrecon.experiments.table import Listing
from pyrecon.linops import Sense
from pyrecon.physics.mri import coil_maps, random_lines
from pyrecon.solvers import MALA, ULA, PreconditionedULA, Sampler, diagnose, langevin, quantiles

LEVEL = 0.9
_NORMAL = 1.6448536269514722  # half the width of the interval of that level of a standard normal number
_BIAS = 0.05  # of the variance along the stiffest direction
_EFFECTIVE = 150  # samples of each chain: with 60, intervals by the quantiles of draws held a percent less
_SLOW = 2000


@dataclass(frozen=True)
class Case:
    """A Gaussian problem: images of ``size`` x ``size`` pixels, ``coils`` coils, one line of ``acceleration`` taken."""

    name: str
    sigma: float
    coils: int
    acceleration: float = 2.1
    size: int = 12


CASES = (
    Case("one coil, sigma 0.03", 0.03, 1),
    Case("one coil, sigma 0.01", 0.01, 1),
    Case("four coils, sigma 0.03", 0.03, 4, 3.0),
)
_STD, _LENGTH = 0.25, 1.0  # of the prior: of a pixel, and the distance in pixels over which it is smooth


class Problem:
    """Matrices of a case, on images as vectors of float64."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, n = case, case.size
        maps = torch.ones(1, 1, n, n) if case.coils == 1 else coil_maps((n, n), case.coils)
        mask = random_lines((n, n), case.acceleration, acl=4, seed=seed)
        self.operator = Sense(maps.to(torch.complex128), mask)
        self.mask = mask
        eye = torch.eye(n * n, dtype=torch.float64)
        self.data = self._real(self.operator.gram(eye.view(-1, n, n).to(torch.complex128))) / case.sigma**2
        self.data = (self.data + self.data.T) / 2
        # Stationary: a spectrum that falls as 1 / (1 + (length k)^2), scaled to the variance of a pixel.
        k = 2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64)
        spectrum = (1 + _LENGTH**2 * (k[:, None] ** 2 + k**2)) ** -1
        spectrum *= _STD**2 / spectrum.mean()
        self.spectrum = spectrum
        self.prior = self._filtered(eye, 1 / spectrum)
        self.precision = self.data + self.prior
        self.covariance = torch.linalg.inv(self.precision)
        self.mean = torch.full((n * n,), 0.5, dtype=torch.float64)

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Truths from the prior and the means mu of their posteriors, ``(count, pixels)``."""
        generator = torch.Generator().manual_seed(seed)
        n = self.case.size
        white = torch.randn(count, n * n, generator=generator, dtype=torch.float64)
        truth = self.mean + self._filtered(white, self.spectrum.sqrt())
        noise = torch.randn(count, self.case.coils, n, n, 2, generator=generator, dtype=torch.float64)
        data = self.operator(truth.view(-1, n, n).to(torch.complex128))
        data += self.case.sigma * torch.view_as_complex(noise) * self.mask
        right = self._real(self.operator.adjoint(data)) / self.case.sigma**2 + self.mean @ self.prior
        return truth, right @ self.covariance

    def samplers(self) -> dict[str, tuple[Sampler, Tensor]]:
        """By name: the sampler, and the P of its metric."""
        n, sigma = self.case.size, self.case.sigma
        eye = torch.eye(n * n, dtype=torch.float64)
        found: dict[str, tuple[Sampler, Tensor]] = {"ULA": (ULA(), eye), "MALA": (MALA(), eye)}
        P = torch.linalg.inv(self.data + eye / _STD**2)
        if self.case.coils == 1:
            # The mask is constant along W; for real images k and -k share it.
            lines = torch.fft.ifftshift(self.mask[0, 0].double(), dim=0)
            mirrored = lines.flip(0).roll(1, 0)
            closed = PreconditionedULA.diagonal(
                (lines + mirrored) / 2 / sigma**2 + 1 / _STD**2,
                lambda x: torch.fft.fft2(x.view(-1, n, n), norm="ortho"),
                lambda y: torch.fft.ifft2(y, norm="ortho").real.flatten(1),
            )
            found["preconditioned ULA, closed form"] = closed, P
        iterated = PreconditionedULA.least_squares(
            lambda x: sigma**2 * (x @ self.data),
            lambda y: self._real(self.operator.adjoint(y)),
            (self.case.coils, n, n),
            prior_std=_STD,
            noise_std=sigma,
            dtype=torch.complex128,
            rtol=1e-2,
        )
        found["preconditioned ULA, CG"] = iterated, P
        return found

    def _real(self, images: Tensor) -> Tensor:
        return images.real.flatten(1)

    def _filtered(self, x: Tensor, gain: Tensor) -> Tensor:
        n = self.case.size
        images: Tensor = torch.fft.ifft2(gain * torch.fft.fft2(x.view(-1, n, n)))
        return self._real(images)


@dataclass(frozen=True)
class Found:
    """What a sampler did on a case; see the heads of :func:`calibrate`."""

    mean_error: float  # rms of (mean - mu), in what effective samples explain: 1 where there is no bias
    variance: float  # over that of the posterior, mean over pixels
    law: float  # the same by the law of the algorithm; 1 for MALA
    coverage: float
    coverage_draws: float
    acceptance: float
    per_evaluation: float
    law_per_evaluation: float
    per_second: float


@dataclass(frozen=True)
class Law:
    """What theory says of ULA in the metric P: its step, the variance of pixels over the right one, and tau."""

    step: float
    variance: float
    tau: float

    @classmethod
    def of(cls, precision: Tensor, P: Tensor) -> Law:
        root = torch.linalg.cholesky(P)
        L, Q = torch.linalg.eigh(root.T @ precision @ root)
        h = 4 * _BIAS / (1 + _BIAS) / float(L.max())
        directions = (root @ Q).square() / L / (1 - h * L / 4)  # of the variance of a pixel
        # Along a direction the autocorrelation is (1 - h L / 2)^t, and tau = (1 + rho) / (1 - rho).
        tau = (directions * (4 / (h * L) - 1)).sum(1) / directions.sum(1)
        exact = torch.linalg.inv(precision).diagonal()
        return cls(h, float((directions.sum(1) / exact).mean()), float(tau.mean()))


def run(problem: Problem, sampler: Sampler, law: Law, *, replicates: int, steps: int, seed: int) -> Found:
    """Chains of ``replicates`` images with data of their own, begun in their posteriors."""
    K = problem.precision
    adjusted = isinstance(sampler, MALA)
    truth, mu = problem.draw(replicates, seed)
    white = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    begin = mu + white @ torch.linalg.cholesky(problem.covariance).T

    def gradient(x: Tensor) -> Any:
        g = (x - mu) @ K
        return (0.5 * ((x - mu) * g).sum(1), g) if adjusted else g

    burn_in = steps // 8
    start = time.perf_counter()
    chain = langevin(
        gradient, begin, step=law.step, iterations=burn_in + steps, burn_in=burn_in, sampler=sampler, seed=seed,
        batches=64, draws=256,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    exact = problem.covariance.diagonal()
    ess = torch.stack([one.ess for one in diagnose(chain)])
    # The variance that is measured misses that of the mean: 1 - 1 / ess of it is left.
    variance = chain.std.square() / (1 - 1 / ess.mean())
    half = _NORMAL * chain.std
    lower, upper = quantiles(chain, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    count = float(1 / (1 / ess).mean())
    return Found(
        mean_error=float(((chain.mean - mu).square() / exact).mean().sqrt()) * math.sqrt(count),
        variance=float((variance / exact).mean()),
        law=1.0 if adjusted else law.variance,
        coverage=float(((chain.mean - half <= truth) & (truth <= chain.mean + half)).double().mean()),
        coverage_draws=float(((lower <= truth) & (truth <= upper)).double().mean()),
        acceptance=math.nan if chain.acceptance is None else float(chain.acceptance.mean()),
        per_evaluation=count / steps,
        law_per_evaluation=math.nan if adjusted else 1 / law.tau,
        per_second=count * replicates / seconds * (burn_in + steps) / steps,
    )


def calibrate(
    *,
    seed: int = 0,
    replicates: int = 64,
    scale: float = 1.0,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Listing:
    """Every sampler on every case, as a table; ``scale`` multiplies the steps."""
    heads = [
        "case", "sampler", "steps", "error of the mean", "variance", "by the law", "coverage", "of draws", "acceptance",
        "effective / evaluation", "by the law", "effective / s",
    ]  # fmt: skip
    lines: list[list[str]] = []
    for i, case in enumerate(CASES):
        problem = Problem(case, seed)
        for name, (sampler, P) in problem.samplers().items():
            progress(f"{case.name}: {name}", i, len(CASES))
            law = Law.of(problem.precision, P)
            if law.tau > _SLOW:
                known = [f"{law.variance:.3f}", "", "", "", "", f"{1 / law.tau:.5f}", ""] if name == "ULA" else [""] * 7
                lines.append([case.name, name, "not run", "", "", *known])
                continue
            # MALA's step is some three times as long.
            steps = max(400, int(scale * _EFFECTIVE * law.tau * (0.4 if name == "MALA" else 1)))
            found = run(problem, sampler, law, replicates=replicates, steps=steps, seed=seed)
            lines.append([
                case.name, name, str(steps), f"{found.mean_error:.2f}", f"{found.variance:.3f}",
                f"{found.law:.3f}", f"{found.coverage:.1%}", f"{found.coverage_draws:.1%}",
                "" if math.isnan(found.acceptance) else f"{found.acceptance:.3f}", f"{found.per_evaluation:.4f}",
                "" if math.isnan(found.law_per_evaluation) else f"{found.law_per_evaluation:.4f}",
                f"{found.per_second:.0f}",
            ])  # fmt: skip
    size = CASES[0].size
    notes = [
        f"{replicates} images of {size} x {size} drawn from the prior, each with data and one chain of its own, begun "
        "in its posterior; means over all their pixels.",
        "Error of the mean: its root mean square over the standard deviation of the posterior, times the root of the "
        "effective samples; 1 is what so many independent samples leave, and what a bias adds comes on top.",
        "Variance: over that of the posterior. ULA's steps are set to 5 % along the stiffest direction, its law says "
        "what that is on average over pixels.",
        f"Coverage: how many pixels of the truth are within the {LEVEL:.0%} interval, of mean and standard deviation, "
        "and of the quantiles of the draws that are kept.",
        "Seconds are those of a product with a matrix, the cheapest gradient there is, and of all images together; "
        "where a network is the prior, evaluations are what time goes into.",
        f"Not run: more than {_SLOW} steps go into one effective sample.",
    ]
    return Listing("Calibration of samplers on a Gaussian prior", heads, lines, notes)


def calibration(study: Any) -> Listing:
    """For ``pyrecon reproduce stable-mri --experiment calibration``."""
    return calibrate(seed=study.seed, scale=1.0 if study.scale == "quick" else 4.0, progress=study.progress)
