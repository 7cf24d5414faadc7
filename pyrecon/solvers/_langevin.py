"""Sampling by Langevin algorithms: posterior mean and standard deviation of every pixel.

x <- x - step/2 grad H(x) + sqrt(step) xi draws from a distribution near exp(-H): Roberts and Tweedie, Bernoulli 2:341
(1996). For a Gaussian H it is Gaussian with the right mean, and a variance that is too large by the factor
1 / (1 - step L / 4) along a direction of curvature L; the step must be below 4 / L. What else a step can be is in
:mod:`pyrecon.solvers._samplers`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_count, described
from pyrecon._solution import ConvergenceWarning, Status
from pyrecon.ops._langevin import Moments
from pyrecon.solvers._batch import applied, check_state, dot, like, norm, real_dtype, select
from pyrecon.solvers._chains import Batches, Chain, Draws
from pyrecon.solvers._fixed_point import check_args
from pyrecon.solvers._samplers import ULA, Draw, Run, Sampler

LOOK_EVERY = 64  # steps between two looks whether any sample is still finite: on a GPU a look waits


@torch.no_grad()
def langevin(
    gradient: Callable[..., Tensor | tuple[Tensor, Tensor]],
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
    sampler: Sampler | None = None,
    batches: int | None = None,
    draws: int | None = None,
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
    sampler
        How the chain moves: ``ULA()`` if not given, ``MALA()`` (``gradient`` then returns ``(H(x), grad H(x))``), or
        ``PreconditionedULA(...)``. A chain goes on with the kind it began with.
    batches
        Keep the means and spreads of up to this many batches of the states after the burn-in, an even number from 8 on,
        which :func:`diagnose` reads: 32 are enough. Each takes twice the memory of the state. None: none are kept.
    draws
        Keep up to this many of the states, an even number from 4 on, evenly thinned, which :func:`quantiles` reads. At
        least half of as many are there, once so many states have come. A chain goes on with its own batches and draws.

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
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sampler: expected a sampler like MALA(), got {described(sampler)}")
    how = ULA() if sampler is None else sampler
    chain = _start(x0, seed, first_sample, how, batches, draws)
    x, moments = chain.x, chain.moments
    failed = chain.nonfinite()
    run = Run(gradient, args, noise_std, nonneg, chain.seed, chain.first_sample, burn_in)
    how.check(run)
    if iterations:
        how.begin(run, x)
    for k in range(chain.steps, chain.steps + iterations):
        kept = k >= burn_in and (k - burn_in + 1) % thinning == 0
        how.move(run, x, k, step(k) if callable(step) else step, chain.memory, moments if kept else None)
        if kept and chain.batches is not None:
            chain.batches.update(x)
        if kept and chain.draws is not None:
            chain.draws.update(x)
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


@torch.no_grad()
def largest_curvature(
    gradient: Callable[..., Tensor],
    x: Tensor,
    args: tuple[Any, ...] = (),
    *,
    solve: Callable[[Tensor], Tensor] | None = None,
    iterations: int = 20,
    seed: int = 0,
) -> Tensor:
    """The largest curvature L of H near ``x``, of size: what a step is measured in, ``(B,)`` float64.

    Power iteration with differences of gradients, so L comes from below, by a few percent; one gradient an iteration.
    A step of ``0.2 / L`` makes variances of a Gaussian 5 % too large along the stiffest direction, less elsewhere, and
    ``4 / L`` diverges. Where H is no quadratic, L is that of the place: take it where the chain will be.

    Parameters
    ----------
    gradient, args
        As in :func:`langevin`.
    x
        The place, ``(B, ...)``.
    solve
        P of :class:`PreconditionedULA`: L is then that of ``P^(1/2) Hess H P^(1/2)``.
    iterations
        Gradients to take, beside the one at ``x``.
    seed
        Of the direction to begin with.
    """
    check_callable("gradient", gradient)
    args = check_args(args)
    check_state("x", x)
    if solve is not None:
        check_callable("solve", solve)
    check_count("iterations", iterations)
    check_count("seed", seed, 0, 2**63 - 1)
    here = applied("gradient", gradient, x, *args)
    # The root of the precision: rounding and the third derivative weigh the same.
    away = torch.finfo(real_dtype(x)).eps ** 0.5 * (1 + norm(x))
    v = Draw(x, seed, 0, 0)(*x.shape[1:])
    u, found = v, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if solve is not None:
        v = applied("solve", solve, u)
    for _ in range(iterations):
        length = norm(v)
        v, u = (w / like(length, x) for w in (v, u))
        t = like(away, x)
        hessian_v = (applied("gradient", gradient, x + t * v, *args) - here) / t
        # The Rayleigh quotient in the metric of P^-1: <v, K v> / <v, P^-1 v> with v = P u.
        found = (dot(v, hessian_v) / dot(v, u)).abs()
        u = hessian_v
        v = u if solve is None else applied("solve", solve, u)
        # K v = 0 has nowhere to go on to.
        still = norm(v) == 0
        v, u = select(still, torch.ones_like(v), v), select(still, torch.ones_like(u), u)
    return found


def _start(
    x0: Tensor | Chain,
    seed: int | None,
    first_sample: int | None,
    sampler: Sampler,
    batches: int | None,
    draws: int | None,
) -> Chain:
    if isinstance(x0, Chain):
        if seed is not None or first_sample is not None:
            raise ValueError("seed, first_sample: a chain has its own, expected None when x0 is a Chain")
        if batches is not None or draws is not None:
            raise ValueError("batches, draws: a chain has its own, expected None when x0 is a Chain")
        if x0.memory.keys() != sampler.memory(x0.x[:0]).keys():
            raise ValueError(f"sampler: the chain began with another one than {type(sampler).__name__}")
        return x0.clone()
    check_state("x0", x0)
    if seed is not None:
        check_count("seed", seed, 0, 2**63 - 1)
    if first_sample is not None:
        check_count("first_sample", first_sample, 0)
    for name, count, least in (("batches", batches, 8), ("draws", draws, 4)):
        if count is not None and check_count(name, count, least) % 2:
            raise ValueError(f"{name}: {count} does not fit, expected an even number")
    x = x0.detach().clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
    status = torch.full((len(x),), Status.MAX_ITER, dtype=torch.int8, device=x.device)
    return Chain(
        x,
        Moments.zeros_like(x),
        0,
        seed or 0,
        first_sample or 0,
        status,
        sampler.memory(x),
        None if batches is None else Batches.like(x, batches),
        None if draws is None else Draws.like(x, draws),
    )


def _finite(value: Tensor) -> Tensor:
    return value.isfinite().flatten(1).all(1) if value.dim() > 1 else value.isfinite()
