"""How a chain moves: samplers as objects, for :func:`pyrecon.solvers.langevin`.

With H the energy, h the step and xi, eta from the counter stream of :func:`pyrecon.ops.langevin_step`::

    ULA                 x' = x - h/2 grad H(x) + sqrt(h) xi
    MALA                y  = x - h/2 grad H(x) + sqrt(h) xi,  x' = y with probability min(1, r), else x,
                        log r = H(x) - H(y) + log q(x | y) - log q(y | x),  q(y | x) the density of the proposal
    PreconditionedULA   x' = x + P (-h/2 grad H(x) + sqrt(h) eta),  eta ~ N(0, P^-1)

P eta has the covariance P, so no square root of P is ever needed: for P^-1 = A^H A / sigma^2 + 1 / s^2 the perturbation
eta = A^H e_1 / sigma + e_2 / s with white e_1, e_2 has the covariance P^-1 exactly, and one solve with P^-1 serves
drift and noise together ("perturb and solve": Papandreou and Yuille, NIPS 2010; Orieux, Feron and Giovannelli, IEEE
Signal Process Lett 19:251, 2012). The law of ULA with a P that is constant is that of ULA in the coordinates
P^(-1/2) x: for a Gaussian H of Hessian K every direction of P^(1/2) K P^(1/2) with eigenvalue L has a variance that is
too large by 1 / (1 - h L / 4).

Sources: Roberts and Tweedie, Bernoulli 2:341 (1996); the acceptance rate of 0.574: Roberts and Rosenthal, J R Stat Soc
B 60:255 (1998); its stochastic approximation: Andrieu and Thoms, Stat Comput 18:343 (2008).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import (
    COMPLEX,
    FLOATING,
    check_callable,
    check_count,
    check_dtype,
    check_flag,
    check_number,
    check_returned,
    check_size,
    check_tuple,
    described,
)
from pyrecon._solution import Status
from pyrecon.ops._langevin import Moments, langevin_step
from pyrecon.solvers._batch import applied, like, select
from pyrecon.solvers._conjugate_gradient import conjugate_gradient

_STREAM = 1 << 56  # counters of a stream of its own begin at a multiple of it: the steps use those below
_DECAY = 0.6  # exponent of MALA's adaptation, between 1/2 and 1


@dataclass
class Draw:
    """Standard normal numbers of a step, from the counter stream: the same on every device, however a batch is split.

    ``draw(*shape, dtype=None)`` gives ``(B, *shape)``, of the dtype of the states if none is given; complex numbers
    have independent parts of variance 1 each. Every further call of a step gives other numbers.
    """

    like: Tensor
    seed: int
    counter: int
    first_sample: int
    calls: int = 0

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        kind = self.like.dtype if dtype is None else dtype
        zero = torch.zeros((len(self.like), *shape), dtype=kind, device=self.like.device)
        stream = self.calls * _STREAM + self.counter
        self.calls += 1
        return langevin_step(
            zero, zero, 0.0, 1.0, seed=self.seed, counter=stream, offset=self.first_sample * prod(shape)
        )


@dataclass
class Run:
    """A call of :func:`pyrecon.solvers.langevin`, as a sampler sees it: what is given once."""

    gradient: Callable[..., Any]
    args: tuple[Any, ...]
    noise_std: float | Tensor | None
    nonneg: bool
    seed: int
    first_sample: int
    burn_in: int
    carried: tuple[Tensor, Tensor] | None = None  # of a sampler that goes on with what the step before evaluated

    def draw(self, x: Tensor, k: int) -> Draw:
        """The numbers of step ``k``; those of the step itself, ``calls`` 0, among them."""
        return Draw(x, self.seed, k, self.first_sample)


class Sampler(ABC):
    """What moves a chain. ULA has no memory; a sampler that has one keeps it in tensors ``(B,)`` of the chain."""

    def memory(self, x: Tensor) -> dict[str, Tensor]:
        """What a new chain of states like ``x`` remembers, ``(B,)`` each; goes on disk with the chain."""
        return {}

    def check(self, run: Run) -> None:
        """Raise where ``run`` asks for what this sampler does not have."""
        if run.noise_std is not None:
            raise ValueError(f"noise_std: is for ULA, {type(self).__name__} has the noise of its step; leave it out")

    def begin(self, run: Run, x: Tensor) -> None:  # noqa: B027  # most have nothing to do
        """Before the first step of a call."""

    @abstractmethod
    def move(
        self, run: Run, x: Tensor, k: int, step: float | Tensor, memory: dict[str, Tensor], moments: Moments | None
    ) -> None:
        """Step ``k``: the new states into ``x``, and into ``moments`` if given."""


@dataclass(frozen=True)
class ULA(Sampler):
    """The unadjusted Langevin algorithm: one gradient a step, in one pass over memory.

    Its law is a little too wide, by ``1 / (1 - step L / 4)`` in variance along a direction of curvature L; it is what
    :func:`pyrecon.solvers.langevin` runs if nothing is said.
    """

    def check(self, run: Run) -> None:
        pass

    def move(
        self, run: Run, x: Tensor, k: int, step: float | Tensor, memory: dict[str, Tensor], moments: Moments | None
    ) -> None:
        langevin_step(
            x,
            applied("gradient", run.gradient, x, *run.args),
            step,
            run.noise_std,
            seed=run.seed,
            counter=k,
            offset=run.first_sample * (x.numel() // max(len(x), 1)),
            nonneg=run.nonneg,
            moments=moments,
            out=x,
        )


@dataclass(frozen=True)
class MALA(Sampler):
    """The Metropolis-adjusted Langevin algorithm: no bias of the step, each sample accepted or refused by itself.

    ``gradient`` of :func:`pyrecon.solvers.langevin` then returns ``(H(x), grad H(x))``, energies ``(B,)``: one
    evaluation a step. Return energies in float64 where you can: their differences count, and a float32 sum over an
    image is only good to about 1e-7 of its size. An energy of +Inf is outside of the support and refused.

    ``step`` is that of the first step; during the burn-in it is adapted sample by sample to the acceptance rate
    ``target``, after that it stays (a chain that adapts for ever samples from another law). The step that keeps the
    rate falls with the number of pixels n as n^(-1/3).

    With ``nonneg`` the proposal is reflected at 0, and q is the density of the reflected one: exact too.

    Parameters
    ----------
    target
        Acceptance rate, 0.574 is the best one of many dimensions.
    adapt
        False: the step is as it was given.
    """

    target: float = 0.574
    adapt: bool = True

    def __post_init__(self) -> None:
        check_number("target", self.target, above=True)
        check_flag("adapt", self.adapt)
        if self.target >= 1:
            raise ValueError(f"target: {self.target} does not fit, expected a rate between 0 and 1")

    def memory(self, x: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return {"log_scale": zero, "accepted": zero.to(torch.int64), "tried": zero.to(torch.int64)}

    def begin(self, run: Run, x: Tensor) -> None:
        if run.nonneg and bool((x < 0).any()):
            raise ValueError("x0: has negative numbers, outside of what nonneg allows; clamp it first")
        run.carried = self._evaluated(run, x)

    def move(
        self, run: Run, x: Tensor, k: int, step: float | Tensor, memory: dict[str, Tensor], moments: Moments | None
    ) -> None:
        assert run.carried is not None
        energy, gradient = run.carried
        if not isinstance(step, Tensor):
            check_number("step", step, above=True)  # 0 has no density
        steps = (memory["log_scale"].exp() * _steps(step, x).flatten()).to(x.real.dtype)
        per_image = run.first_sample * (x.numel() // max(len(x), 1))
        y = langevin_step(x, gradient, steps, seed=run.seed, counter=k, offset=per_image)
        if run.nonneg:
            y.abs_()
        energy_y, gradient_y = self._evaluated(run, y)
        back = _log_proposal(x, y, gradient_y, steps, run.nonneg)
        there = _log_proposal(y, x, gradient, steps, run.nonneg)
        log_r = torch.where(energy_y == torch.inf, -torch.inf, energy - energy_y + back - there)
        draw = run.draw(x, k)
        draw.calls = 1
        # u = Phi(xi) is uniform; its logarithm without underflow.
        log_u = torch.special.log_ndtr(draw(dtype=torch.float64))
        taken = log_u < log_r
        torch.where(like(taken, x), y, x, out=x)
        # No answer is no refusal: a NaN energy or gradient makes the sample NaN, which is seen and told.
        lost = log_r.isnan()
        x.masked_fill_(like(lost, x), torch.nan)
        run.carried = torch.where(taken, energy_y, energy), select(taken, gradient_y, gradient)
        if moments is not None:
            moments.update(x)
        if k >= run.burn_in:
            memory["accepted"] += taken
            memory["tried"] += 1
        elif self.adapt:
            rate = log_r.clamp(max=0).exp().nan_to_num(nan=0.0)
            memory["log_scale"] += (rate - self.target) * (k + 1) ** -_DECAY

    def _evaluated(self, run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy in double and gradient, checked."""
        found: list[Tensor] = []

        def gradient(x: Tensor, *args: Any) -> Any:
            both = run.gradient(x, *args)
            check_tuple("gradient: with MALA", both, "energy", "gradient")
            check_dtype("gradient: its energy", both[0], FLOATING)
            if both[0].shape != (len(x),) or both[0].device != x.device:
                raise ValueError(
                    f"gradient: returned an energy of shape {tuple(both[0].shape)} on {both[0].device}, expected "
                    f"(B,) = ({len(x)},) on {x.device}"
                )
            found.append(both[0].double())
            return both[1]

        g = applied("gradient", gradient, x, *run.args)
        return found[0], g


@dataclass(frozen=True)
class PreconditionedULA(Sampler):
    """ULA in the metric of a constant P, which lets stiff and slack directions move alike.

    ``step`` has no unit then: with P near the inverse of the Hessian, 0.2 makes variances 5 % too large, and the next
    state but ten is a new one. With ``nonneg`` the new state is projected, as ULA's is; the projection is that of the
    plain metric, so close to zero the law is further from exp(-H) than ULA's.

    Parameters
    ----------
    solve
        ``v -> P v``, ``(B, ...)`` to the same shape: linear, symmetric positive definite, each sample by itself.
    perturb
        ``draw -> eta``, like the states, of covariance P^-1: made linearly from white numbers, see :class:`Draw`.
    """

    solve: Callable[[Tensor], Tensor] = field()
    perturb: Callable[[Draw], Tensor] = field()

    def __post_init__(self) -> None:
        check_callable("solve", self.solve)
        check_callable("perturb", self.perturb)

    @classmethod
    def least_squares(
        cls,
        gram: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        range_shape: Sequence[int],
        *,
        prior_std: float,
        noise_std: float = 1.0,
        dtype: torch.dtype | None = None,
        rtol: float = 1e-3,
        max_iter: int = 200,
    ) -> PreconditionedULA:
        """With ``P = (A^H A / noise_std^2 + 1 / prior_std^2)^-1``, by conjugate gradients: one solve a step.

        Parameters
        ----------
        gram, adjoint
            ``A^H A`` and ``A^H`` on batches. For real images of a complex A both are real parts: Re A^H A is what acts
            on a real image, and Re A^H e_1 has that covariance where the parts of e_1 have variance 1 each.
        range_shape
            Of the data of one sample.
        prior_std
            s: how far a state may move where there are no data; about the standard deviation that the prior leaves
            there. A factor of two either way costs little.
        noise_std
            sigma of the data, of each part of complex ones.
        dtype
            Of the data; that of the states if not given.
        rtol, max_iter
            Of :func:`pyrecon.solvers.conjugate_gradient`. What a solve leaves undone is an error of the law of the same
            relative size, in both mean and noise.
        """
        check_callable("gram", gram)
        check_callable("adjoint", adjoint)
        shape = check_size("range_shape", tuple(range_shape))
        check_number("prior_std", prior_std, above=True)
        check_number("noise_std", noise_std, above=True)
        check_number("rtol", rtol, above=True)
        check_count("max_iter", max_iter)
        if dtype is not None and dtype not in (*FLOATING, *COMPLEX):
            raise TypeError(f"dtype: {described(dtype)}, expected float32, float64, complex64 or complex128")

        def solve(v: Tensor) -> Tensor:
            # Conjugate gradients keep the last finite iterate, zero here: a lost chain would stand still, as if it were
            # well. It stays lost, and is told of once, not by every solve.
            fine = v.isfinite().flatten(1).all(1) if v.dim() > 1 else v.isfinite()
            found = conjugate_gradient(
                lambda x: gram(x) / noise_std**2 + x / prior_std**2, select(fine, v, 0), rtol=rtol, max_iter=max_iter
            )
            return select(fine & (found.status != Status.NONFINITE), found.value, torch.nan)

        def perturb(draw: Draw) -> Tensor:
            white = draw(*draw.like.shape[1:])
            data = check_returned("adjoint", adjoint(draw(*shape, dtype=dtype)), draw.like, "a state")
            return data / noise_std + white / prior_std

        return cls(solve, perturb)

    @classmethod
    def diagonal(
        cls,
        precision: Tensor,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
    ) -> PreconditionedULA:
        """With ``P = U^H diag(1 / precision) U`` for a unitary U: the closed form where U diagonalises A^H A.

        A single coil with a Fourier mask M has ``precision = M^2 / sigma^2 + 1 / s^2`` in k-space. For real images
        ``adjoint`` takes the real part, and the precision must have equal values at k and -k: the mean of both is what
        Re A^H A has.

        Parameters
        ----------
        precision
            Positive, broadcasting with ``forward(x)``.
        forward, adjoint
            U and U^H on batches.
        """
        check_dtype("precision", precision, FLOATING)
        if not bool((precision > 0).all()):
            raise ValueError("precision: has numbers that are not positive, and P must be positive definite")
        check_callable("forward", forward)
        check_callable("adjoint", adjoint)
        root = precision.sqrt()
        return cls(
            lambda v: adjoint(forward(v) / precision), lambda draw: adjoint(root * forward(draw(*draw.like.shape[1:])))
        )

    def move(
        self, run: Run, x: Tensor, k: int, step: float | Tensor, memory: dict[str, Tensor], moments: Moments | None
    ) -> None:
        g = applied("gradient", run.gradient, x, *run.args)
        eta = check_returned("perturb", self.perturb(run.draw(x, k)), x, "a state")
        h = _steps(step, x)
        x += applied("solve", self.solve, h.sqrt() * eta - h / 2 * g)
        if run.nonneg:
            x.clamp_(min=0)  # NaN stays
        if moments is not None:
            moments.update(x)


def _steps(step: float | Tensor, x: Tensor) -> Tensor:
    """``step``, a number or ``(B,)``, broadcasting with x."""
    if not isinstance(step, Tensor):
        return torch.full((), check_number("step", step), dtype=x.real.dtype, device=x.device)
    check_dtype("step", step, (x.real.dtype,))
    if step.device != x.device or step.shape not in ((), (len(x),)):
        raise ValueError(
            f"step: shape {tuple(step.shape)} on {step.device} does not fit, expected a number or (B,) = ({len(x)},) "
            f"on {x.device}"
        )
    return like(step, x) if step.dim() else step


def _log_proposal(y: Tensor, x: Tensor, gradient: Tensor, steps: Tensor, reflected: bool) -> Tensor:
    """log q(y | x) but for what y and x share, ``(B,)``; every sum in double."""
    h = like(steps, x)
    mean = x - h / 2 * gradient
    away = y - mean
    if away.is_complex():
        away = torch.view_as_real(away)
    away = away.flatten(1).double() if away.dim() > 1 else away[:, None].double()
    quadratic = -away.square() / (2 * steps.double()[:, None])
    if not reflected:
        return quadratic.sum(1)
    # |v| has the density of v at y and at -y: exp(-(y - m)^2 / 2h) (1 + exp(-2 y m / h)).
    mirrored = (-2 * y * mean).flatten(1).double() if y.dim() > 1 else (-2 * y * mean)[:, None].double()
    return (quadratic + torch.nn.functional.softplus(mirrored / steps.double()[:, None])).sum(1)
