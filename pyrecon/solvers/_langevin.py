"""Sampling by the unadjusted Langevin algorithm: posterior mean and standard deviation of every pixel.

x <- x - step/2 grad H(x) + sqrt(step) xi draws from a distribution near exp(-H): Roberts and Tweedie, Bernoulli 2:341
(1996). For a Gaussian H it is Gaussian with the right mean, and a variance that is too large by the factor
1 / (1 - step L / 4) along a direction of curvature L; the step must be below 4 / L.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_count
from pyrecon._solution import ConvergenceWarning, Status
from pyrecon.ops._langevin import Moments, langevin_step
from pyrecon.solvers._batch import applied, check_state, select
from pyrecon.solvers._fixed_point import check_args

LOOK_EVERY = 64  # steps between two looks whether any sample is still finite: on a GPU a look waits


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
    """

    x: Tensor
    moments: Moments
    steps: int
    seed: int
    first_sample: int
    status: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the states kept: the estimate of least mean squared error. NaN for a NONFINITE sample."""
        return self._finite(self.moments.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the states kept, real; NaN for a NONFINITE sample, and before two were kept."""
        return self._finite(self.moments.std())

    def _finite(self, value: Tensor) -> Tensor:
        return select(self.status != Status.NONFINITE, value, torch.nan)


@torch.no_grad()
def langevin(
    gradient: Callable[..., Tensor],
    x0: Tensor | Chain,
    args: tuple[Any, ...] = (),
    *,
    step: float | Tensor | Callable[[int], float | Tensor],
    iterations: int,
    burn_in: int = 0,
    thinning: int = 1,
    noise_std: float | Tensor | None = None,
    nonneg: bool = False,
    seed: int | None = None,
    first_sample: int | None = None,
) -> Chain:
    """Sample from ``exp(-H)`` by Langevin steps, a chain for each sample of a batch.

    Parameters
    ----------
    gradient
        ``(x, *args) -> grad H(x)``, ``(B, ...)`` to the same shape: minus the score. In torch's convention for complex
        x. It runs without recording gradients (open ``torch.enable_grad()`` in it if H is differentiated by torch), and
        x is overwritten by the step: copy what you keep.
    x0
        Start, ``(B, ...)``, real or complex, or a :class:`Chain` to go on with; that one is left as it was. Running a
        chain in one piece or several gives the same states. Several chains for one problem are a batch.
    args
        Passed on to ``gradient``.
    step
        A number, ``(B,)``, or a schedule: a function of the number of the step, counted from the start of the chain.
    iterations
        Steps to take now.
    burn_in
        The first steps of a chain, which the mean and variance leave out.
    thinning
        Keep every this many-th state after them.
    noise_std
        Of the noise, ``sqrt(step)`` if not given; a number or ``(B,)``.
    nonneg
        Project every state onto ``x >= 0``.
    seed
        Of the noise, 0 if not given.
    first_sample
        Number of the first sample in the whole batch, 0 if not given, when x0 is a part of one: each sample then gets
        the noise it has in the whole. A chain knows its seed and its place, and neither may be given again.

    Returns
    -------
    Chain
        With ``mean``, ``std`` and ``status`` per sample, all on the device of x0. Whether a chain has forgotten its
        start is not tested. A :class:`ConvergenceWarning` tells of samples that became NaN or Inf; the others go on.
    """
    for name, value, least in (("iterations", iterations, 0), ("burn_in", burn_in, 0), ("thinning", thinning, 1)):
        check_count(name, value, least)
    check_callable("gradient", gradient)
    args = check_args(args)
    chain = _start(x0, seed, first_sample)
    x, moments = chain.x, chain.moments
    offset = chain.first_sample * (x.numel() // max(len(x), 1))
    failed = chain.status == Status.NONFINITE
    for k in range(chain.steps, chain.steps + iterations):
        g = applied("gradient", gradient, x, *args)
        kept = k >= burn_in and (k - burn_in + 1) % thinning == 0
        langevin_step(
            x,
            g,
            step(k) if callable(step) else step,
            noise_std,
            seed=chain.seed,
            counter=k,
            offset=offset,
            nonneg=nonneg,
            moments=moments if kept else None,
            out=x,
        )
        chain.steps += 1
        if k % LOOK_EVERY == LOOK_EVERY - 1:
            failed |= ~_finite(x)
            if len(x) and failed.all():
                break
    failed |= ~(_finite(x) & _finite(moments.mean) & _finite(moments.m2))
    chain.status[failed] = Status.NONFINITE
    if failed.any():
        warnings.warn(
            f"langevin: {int(failed.sum())} of {len(x)} samples became NaN or Inf within {chain.steps} steps. A step "
            "must be below 4 / L, L the largest curvature of H; or x0 or the data hold NaN or Inf.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return chain


def _start(x0: Tensor | Chain, seed: int | None, first_sample: int | None) -> Chain:
    if isinstance(x0, Chain):
        if seed is not None or first_sample is not None:
            raise ValueError("seed, first_sample: a chain has its own, expected None when x0 is a Chain")
        moments = Moments(x0.moments.mean.clone(), x0.moments.m2.clone(), x0.moments.count.clone())
        return Chain(x0.x.clone(), moments, x0.steps, x0.seed, x0.first_sample, x0.status.clone())
    check_state("x0", x0)
    if seed is not None:
        check_count("seed", seed, 0, 2**63 - 1)
    if first_sample is not None:
        check_count("first_sample", first_sample, 0)
    x = x0.detach().clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
    status = torch.full((len(x),), Status.MAX_ITER, dtype=torch.int8, device=x.device)
    return Chain(x, Moments.zeros_like(x), 0, seed or 0, first_sample or 0, status)


def _finite(value: Tensor) -> Tensor:
    return value.isfinite().flatten(1).all(1) if value.dim() > 1 else value.isfinite()
