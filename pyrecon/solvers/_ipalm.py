"""Joint estimation of an image and its coil maps by inertial proximal alternating linearised minimisation (iPALM).

The energy, for a real image u >= 0 and maps S, with F the transform of one coil and M the sampling::

    H(u, S) = 1/2 sum_c |M F(u S_c / |S|) - k_c|^2 + lam R(u) + mu/2 sum_c |D S_c|^2

|S| is the root sum of squares over the coils of a pixel, so u is on the scale of a root-sum-of-squares image and no
scale of the maps enters the data. An iteration is a step in u and a step in S, each from a point carried on along its
way, each with a step length that an inequality certifies::

    u_bar = u + k/(k+3) (u - u_before)     u' = max(0, u_bar - grad_u / L_u)
    S_bar = S + k/(k+3) (S - S_before)     S' = prox_smooth_maps(S_bar - grad_S / L_S, mu / L_S)

Both tests are quadratic forms of the steps, not differences of energies, of which single precision would leave nothing.
With F^H M^2 F <= 1 the data term rises by at most 1/2 |d|^2 above its tangent in u, and by the E of
:mod:`pyrecon.ops._joint` in S: neither costs a transform. An iteration is one ``A^H A`` (image), one ``F^H M^2 F`` of
the coil images, one proximal map and three pointwise passes, in six buffers of coil images.

Source: Zach, Knoll and Pock, Stable deep MRI reconstruction using generative priors, IEEE TMI 42, 2023, Algorithms 1
and 2; iPALM: Pock and Sabach, SIAM J. Imaging Sci. 9, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import (
    COMPLEX,
    REAL_OF,
    check_count,
    check_dtype,
    check_flag,
    check_like,
    check_number,
    check_returned,
    check_shape,
    check_tuple,
)
from pyrecon._solution import Solution, Status
from pyrecon._threads import SMALL, one_thread_if_small, outside
from pyrecon.ops import langevin_step, prox_smooth_maps
from pyrecon.ops._joint import joint_coils, joint_extrapolate, joint_maps_step, joint_maps_test
from pyrecon.solvers._batch import GPU_STOP_TEST_EVERY, dot, like, norm, per_sample
from pyrecon.solvers._coils import Coils, CoilTransform, coil_transform
from pyrecon.solvers._image_priors import Charbonnier, check_prior, energy_of

_GROW, _SHRINK = 2.0, 1.5  # of L after a step that fails and after one that holds
_MARGIN = 1.1  # of the next L over what the last step needed
# Least L_S, over the largest curvature bound * max(u)^2 of the data term at |S| = 1: with inertia near 1 a step of t
# is stable where t * curvature <= 4/3. The inequality sums over all pixels and does not notice the brightest: with the
# published floor of 0.5 they swing from one iteration to the next, by 6 % of the coil images in a trial, for ever.
_FLOOR = 0.75
_LEAST = 1e-6  # an image of zeros moves no map, but divides nothing by zero either
_TRIES = 40  # 2^40: no finite curvature is beyond it
_START_SMOOTHING = 100.0  # weight of the proximal map that makes the first maps: 10 pixels
_ADVICE = (
    "MAX_ITER: raise max_iter or tol. DIVERGED: no step length held, the prior's gradient is not that of its energy. "
    "NONFINITE: the data, the start or what the prior returned hold NaN or Inf."
)


def ipalm(
    kspace: Tensor,
    mask: Tensor | CoilTransform,
    prior: Any = None,
    *,
    lam: float | Tensor = 0.0,
    mu: float = 0.1,
    continuation: float = 100.0,
    decay: float = 0.95,
    maps: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    retraction: bool = True,
    inertia: bool = True,
    jitter: float = 0.0,
    seed: int = 0,
    max_iter: int = 100,
    tol: float = 0.0,
) -> Solution[tuple[Tensor, Tensor]]:
    """Image and coil maps of undersampled k-space, without calibration data.

    Parameters
    ----------
    kspace
        ``(B, C, H, W)``, complex64 or complex128, DC in the centre; what ``mask`` takes where that is no tensor. The
        defaults of ``mu`` and ``epsilon`` of :class:`Charbonnier` are for data scaled to images of peak 1.
    mask
        ``(B | 1, 1, H | 1, W | 1)``, bool or real, constant along an axis where its size is 1: declare 1-D masks so,
        the transforms along that axis are then done once and never again. Or a :class:`CoilTransform`.
    prior
        R: an object with ``energy_and_gradient(u)``, such as :class:`Charbonnier`, or None for R = 0. It is evaluated
        once an iteration at u_bar, and its energy again for each step tried unless it offers ``curvature``; never in
        the step of the maps.
    lam
        Weight of R, not negative, a number or ``(B,)``. For Charbonnier and images of peak 1, ``0.1 sigma`` with sigma
        the standard deviation of a complex sample of k-space was within 0.7 dB of the best, for any mask and noise.
    mu
        Weight of the maps' smoothness.
    continuation, decay
        Iteration k uses ``mu * max(1, continuation * decay^k)``: smooth maps first. ``continuation=1``: ``mu`` at once.
    maps
        Maps that stay as they are, ``(B | 1, C, H, W)`` or of size 1 along H and W: only the image is found. They are
        normalised. Ones for the study of a single coil and real images.
    start
        First image ``(B, H, W)``, real, and maps ``(B, C, H, W)``. By default the maps are a smoothed version of the
        zero-filled coil images, and the image is their combination by these.
    retraction
        Normalise the maps after each step, ``S <- S / |S|``. The energy does not see |S| but for its smoothness, which
        lets it shrink, pixel by pixel, until L_S is so large that the maps freeze: without (the published form) masks
        that lack calibration lines end up to 18 dB lower. What it gives up: the proof of descent, as the smoothness
        term may rise in the normalisation.
    inertia
        Carry on by ``k/(k+3)``; else steps start where the last ones ended.
    jitter
        Standard deviation of noise at which the prior is evaluated, ``R(u + noise)``, new in every iteration: 7.5e-3 in
        the released code, for networks trained on noisy images.
    seed
        Of that noise.
    max_iter
        Iterations at most.
    tol
        A sample stops when, past the continuation, an iteration's steps change its image and its coil images by at most
        ``tol``, relative to them. 0: all iterations are made, and no warning is given.

    Returns
    -------
    Solution
        ``value`` is the image ``(B, H, W)``, real, and the maps ``(B, C, H, W)`` with ``|S| = 1``. ``residual`` is what
        ``tol`` is compared with. Samples of a batch do not influence each other. No gradient flows through.

    Warns
    -----
    UserWarning
        For samplings from which maps and image cannot be told apart: equispaced without a calibration line, or without
        the centre of k-space.

    Notes
    -----
    On a GPU the host looks at each backtracking test, which waits for the device twice an iteration.
    """
    check_dtype("kspace", kspace, COMPLEX)
    if prior is not None:
        check_prior("prior", prior)
    for name, flag in (("retraction", retraction), ("inertia", inertia)):
        check_flag(name, flag)
    for name, number in (("mu", mu), ("tol", tol), ("jitter", jitter)):
        check_number(name, number)
    check_number("continuation", continuation, 1.0)
    if not 0 < check_number("decay", decay) <= 1:
        raise ValueError(f"decay: {decay}, expected a number above 0, 1 at most")
    check_count("max_iter", max_iter, 0)
    check_count("seed", seed, 0)
    with torch.no_grad():
        physics, data = coil_transform(kspace.detach(), mask)
        weight = per_sample("lam", lam, "kspace", data)
        state = _first(data, maps, start)
        run = _Run(
            physics, prior, retraction, inertia, maps is not None, mu, continuation, decay, jitter, seed, max_iter, tol
        )
        # torch's own operations are on images here: the kernels have the coil data, and threads of their own.
        with one_thread_if_small(0 if data.is_cpu else SMALL + 1):
            solution = run.iterate(state, weight)
    return (
        solution
        if tol == 0 and not bool((solution.status > 1).any())
        else solution.warn_unless_converged("ipalm", _ADVICE)
    )


# --- where it starts --------------------------------------------------------------------------------------------
@dataclass
class _State:
    """Of the samples that still run: their places in the batch, image, maps, and what belongs to the maps."""

    places: Tensor
    data: Tensor
    u: Tensor
    u_before: Tensor
    maps: Tensor
    before: Tensor
    unit: Tensor
    combined: Tensor  # Re sum conj(unit) data
    L_u: Tensor
    L_maps: Tensor


def _normalised(maps: Tensor) -> Tensor:
    """Maps of root sum of squares 1; equal ones where there were none, because an image without a map is free."""
    unit = joint_coils(maps.real.new_ones((1, 1, 1)).expand(maps.shape[0], *maps.shape[2:]), maps)
    empty = (unit == 0).all(dim=1, keepdim=True)
    return unit.masked_fill_(empty, maps.shape[1] ** -0.5) if bool(empty.any()) else unit


def _first(data: Tensor, maps: Tensor | None, start: Any) -> _State:
    batch, coils, rows, cols = data.shape
    if maps is not None:
        check_like("maps", maps, "kspace", data)
        sizes = (batch if maps.dim() != 4 or maps.shape[0] != 1 else 1, coils)
        pixels = (1, 1) if maps.shape[2:] == (1, 1) else (rows, cols)
        check_shape("maps", maps, (*sizes, *pixels), "(B | 1, C, H, W) of kspace")
    if start is not None:
        check_tuple("start", start, "image", "maps")
        check_like("start[0]", start[0], "kspace", data, dtype=REAL_OF[data.dtype])
        check_shape("start[0]", start[0], (batch, rows, cols), "(B, H, W) of kspace")
        check_like("start[1]", start[1], "kspace", data)
        check_shape("start[1]", start[1], data.shape, "the coil images")
    if maps is not None:
        unit = _normalised(maps.detach()).expand_as(data).contiguous()
    elif start is not None:
        unit = _normalised(start[1].detach())
    else:
        unit = _normalised(prox_smooth_maps(data, _START_SMOOTHING))
    combined = (unit.real * data.real + unit.imag * data.imag).sum(dim=1)
    u = (combined if start is None else start[0].detach()).clamp(min=0)
    ones = torch.ones(batch, dtype=u.dtype, device=u.device)
    places = torch.arange(batch, device=u.device)
    return _State(places, data, u, u.clone(), unit, unit.clone(), unit, combined, ones, ones.clone())


# --- the iteration -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Run:
    physics: Coils
    prior: Any
    retraction: bool
    inertia: bool
    fixed: bool
    mu: float
    continuation: float
    decay: float
    jitter: float
    seed: int
    max_iter: int
    tol: float

    def iterate(self, state: _State, lam: Tensor) -> Solution[tuple[Tensor, Tensor]]:
        batch, device = len(state.u), state.u.device
        image, maps = state.u.clone(), state.unit.clone()
        status = torch.full((batch,), Status.MAX_ITER, dtype=torch.int8, device=device)
        iterations = torch.zeros(batch, dtype=torch.int32, device=device)
        residual = torch.full((batch,), math.inf, dtype=state.u.dtype, device=device)
        steps = _Steps(self, state, self.physics, lam)
        verdict = torch.where(norm(state.data).isfinite() & norm(state.u).isfinite(), 1, int(Status.NONFINITE))
        every = GPU_STOP_TEST_EVERY if device.type == "cuda" else 1
        change = residual
        for k in range(self.max_iter + 1):
            if k % every == 0 or k == self.max_iter:  # those that are through leave the batch
                through = verdict != Status.MAX_ITER
                if k == self.max_iter:
                    through = torch.ones_like(through)
                if bool(through.any()):
                    at, ended = steps.state.places[through], steps.state
                    image[at], maps[at] = ended.u[through], ended.unit[through]
                    status[at], iterations[at] = verdict[through].to(torch.int8), k
                    residual[at] = change[through]
                    kept = ~through
                    if not bool(kept.any()):
                        break
                    steps.keep(kept)
                    verdict, change = verdict[kept], change[kept]
            change, held = steps.advance(k + 1)
            # The problem is the one asked for only when mu has come down.
            tol = self.tol if self.fixed or self.continuation * self.decay ** (k + 1) <= 1 else -1.0
            now = torch.where(change <= tol, int(Status.CONVERGED), int(Status.MAX_ITER))
            now = torch.where(held, now, int(Status.DIVERGED))
            now = torch.where(change.isfinite(), now, int(Status.NONFINITE))
            verdict = torch.where(verdict == Status.MAX_ITER, now, verdict)
        return Solution((image, maps), status, iterations, residual)


class _Steps:
    """The two block steps of the samples that still run, and their buffers."""

    def __init__(self, run: _Run, state: _State, physics: Coils, lam: Tensor) -> None:
        self.run, self.state, self.physics, self.lam = run, state, physics, lam
        self._buffers()

    def _buffers(self) -> None:
        if not self.run.fixed:
            self.spare, self.response = torch.empty_like(self.state.data), torch.empty_like(self.state.data)
            if not self.run.retraction:
                self.state.unit = self.state.unit.clone()
            self.along = torch.empty_like(self.state.u)

    def keep(self, kept: Tensor) -> None:
        """Go on with some of the samples."""
        s = self.state
        self.state = _State(*(getattr(s, name)[kept] for name in _State.__dataclass_fields__))
        if self.run.retraction or self.run.fixed:
            self.state.unit = self.state.maps
        self.lam, self.physics = self.lam[kept], self.physics.of(kept)
        self._buffers()

    def advance(self, k: int) -> tuple[Tensor, Tensor]:
        """Relative change (B,) and whether step lengths were found (B,)."""
        beta = k / (k + 3) if self.run.inertia and k > 1 else 0.0
        change, held = self.image_step(k, beta)
        if not self.run.fixed:
            maps_change, maps_held = self.maps_step(k, beta)
            change, held = torch.maximum(change, maps_change), held & maps_held
        return change, held

    def image_step(self, k: int, beta: float) -> tuple[Tensor, Tensor]:
        s, bound = self.state, self.physics.bound
        bar = torch.lerp(s.u_before, s.u, 1 + beta)
        gradient = self.physics.normal(bar, s.unit) - s.combined
        test = self._prior_test(k, bar, gradient)
        proposal = bar

        def attempt() -> Tensor:
            nonlocal proposal
            proposal = torch.addcdiv(bar, gradient, like(s.L_u, bar), value=-1).clamp_(min=0)
            d = proposal - bar
            # F^H M^2 F <= bound: the data term takes no transform.
            return bound + _ratio(2 * test(proposal, d), dot(d, d))

        held, s.L_u = _backtrack(attempt, s.L_u, torch.full_like(s.L_u, bound))
        change = _ratio(norm(proposal - bar), norm(proposal))
        s.u_before, s.u = s.u, proposal
        return change.to(bar.dtype), held

    def _prior_test(self, k: int, bar: Tensor, gradient: Tensor) -> Any:
        """Adds lam grad R(bar) to the gradient; returns ``(u', d) -> `` what lam R rises above its tangent, or more."""
        prior, lam, run = self.run.prior, self.lam, self.run
        if prior is None:
            return lambda u, d: bar.new_zeros(len(bar), dtype=torch.float64)
        noise: Tensor | float = 0.0
        if run.jitter:
            zero = torch.zeros_like(bar)
            noise = langevin_step(zero, zero, 0.0, run.jitter, seed=run.seed, counter=k)
        at = bar + noise
        call: Any = (lambda f: f) if isinstance(prior, Charbonnier) else outside
        found = call(prior.energy_and_gradient)(at.clone())
        check_tuple("prior.energy_and_gradient: what it returned", found, "energy", "gradient")
        energy = _numbers("prior.energy_and_gradient", found[0], bar)
        slope = check_returned("prior.energy_and_gradient", found[1], bar)
        gradient += like(lam, bar) * slope
        if hasattr(prior, "curvature"):

            def by_curvature(u: Tensor, d: Tensor) -> Tensor:
                return lam * _numbers("prior.curvature", call(prior.curvature)(at, d), bar) / 2

            return by_curvature

        eps = torch.finfo(bar.dtype).eps

        def by_energy(u: Tensor, d: Tensor) -> Tensor:
            new = _numbers("prior.energy", outside(energy_of)(prior, u + noise), bar)
            rounding = 4 * eps * (energy.abs() + new.abs())  # a network's sums, of which the difference is taken
            return lam * (new - energy - dot(slope, d) - rounding)

        return by_energy

    def maps_step(self, k: int, beta: float) -> tuple[Tensor, Tensor]:
        run, s, bound = self.run, self.state, self.physics.bound
        mu = run.mu * max(1.0, run.continuation * run.decay**k)
        bar, coils = joint_extrapolate(s.maps, s.before, beta, s.u, out=(s.before, self.spare))
        self.physics.gram(coils, self.response)
        floor = _FLOOR * bound * s.u.flatten(1).amax(dim=1).square().clamp(min=_LEAST)
        s.L_maps = torch.maximum(s.L_maps, floor)
        step = 1 / s.L_maps
        moved, along = joint_maps_step(bar, self.response, s.data, s.u, step, out=(self.response, self.along))
        unit = coils if run.retraction else s.unit
        sums = s.u.new_empty((len(s.u), 3))
        taken = step

        def attempt() -> Tensor:
            nonlocal taken
            step = 1 / s.L_maps
            if taken is not step and not torch.equal(taken, step):  # a shorter step the same way
                torch.lerp(bar, moved, like(step / taken, bar.real).to(moved.dtype), out=moved)
                taken = step
            prox_smooth_maps(moved, mu * step, out=coils)
            joint_maps_test(coils, bar, moved, step, s.u, along, s.data, bound=bound, out=(unit, s.combined, sums))
            return _ratio(2 * sums[:, 1], sums[:, 0])

        held, s.L_maps = _backtrack(attempt, s.L_maps, floor)
        change = _ratio(sums[:, 2].sqrt(), norm(s.u).to(sums.dtype))
        self.spare, s.before, s.maps = bar, s.maps, coils
        s.unit = unit
        return change, held


def _numbers(name: str, value: Any, bar: Tensor) -> Tensor:
    """What a prior said of each image, ``(B,)`` in the images' precision or in double, as doubles."""
    numbers = bar[:, 0, 0]
    if isinstance(value, Tensor) and value.dtype == torch.float64:
        numbers = numbers.double()
    return check_returned(name, value, numbers, "a batch of numbers").double()


def _backtrack(attempt: Callable[[], Tensor], L: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Raise L, in place, until it is at least ``attempt()``, what each sample's step needs; then the next L.

    A sample that holds repeats its step, bit by bit. Of NaN there is nothing to find: such samples count as held. L
    falls as far as the last step allows, where the published rule tries a shorter one at every second iteration in
    vain, at the price of a proximal map.
    """
    for _ in range(_TRIES):
        needed = attempt()
        failed = needed > L
        if not bool(failed.any()):
            break
        L.mul_(torch.where(failed, _GROW, 1.0))
    lower = torch.minimum(L, (_MARGIN * needed).to(L.dtype))
    return ~failed, torch.where(needed.isfinite(), torch.maximum(torch.maximum(L / _SHRINK, lower), floor), L)


def _ratio(change: Tensor, value: Tensor) -> Tensor:
    """``change / value``, 0 where nothing changes."""
    return torch.where(change == 0, 0.0, change / value)
