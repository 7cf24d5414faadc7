"""What the data do not determine: samples of the posterior of an image, of a scan and a prior.

:mod:`pyrecon.models.mri.posterior` has the posterior, :mod:`pyrecon.solvers._samplers` how it is sampled.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrecon._check import check_callable, check_count, check_flag, check_number
from pyrecon._errors import DataError, Stopped
from pyrecon._plain import plain
from pyrecon.data.mri import crop_phase
from pyrecon.data.raw import MRIScan
from pyrecon.io.chains import read_chain, write_chain
from pyrecon.models.mri.posterior import Posterior, held_maps
from pyrecon.report import Recorder, Report
from pyrecon.solvers import (
    MALA,
    ULA,
    Chain,
    Charbonnier,
    Draw,
    Sampler,
    Solution,
    Status,
    diagnose,
    langevin,
    largest_curvature,
    quantiles,
)

Progress = Callable[[int, int], None]
SAMPLERS = ("preconditioned", "ula", "mala")
TV_EPSILON = 0.01  # of the prior that is taken where none is given
_BATCHES = 32
_CHECKPOINT = 60.0  # seconds of work that a power cut may cost
_PIECE = 1.0  # seconds between two looks whether to stop
_SOLVED = 1e-2  # of a solve with P^-1: its error in the variance is below that of the step


@dataclass(frozen=True)
class Uncertainty:
    """An image and what is not known of it, slice by slice: ``(S, H, W)`` float32 on the CPU, in the scan's own unit.

    Attributes
    ----------
    mean
        Of the posterior: the estimate of least mean squared error.
    std
        Its standard deviation, pixel by pixel.
    lower, upper
        Ends of the interval that holds ``level`` of the posterior of a pixel, as much beyond on either side.
    ess, rhat
        Effective samples behind the mean, and split R-hat: see :class:`pyrecon.solvers.Diagnostics`.
    level
        Of the intervals.
    """

    mean: Tensor
    std: Tensor
    lower: Tensor
    upper: Tensor
    ess: Tensor
    rhat: Tensor
    level: float


def sample_mri(
    scan: MRIScan,
    prior: Any = None,
    *,
    sampler: Literal["preconditioned", "ula", "mala"] | None = None,
    chains: int = 4,
    burn_in: int = 500,
    samples: int = 2000,
    thinning: int = 1,
    level: float = 0.9,
    weight: float | None = None,
    bias: float = 0.05,
    nonneg: bool = True,
    draws: int = 128,
    maps: Tensor | None = None,
    joint: bool = False,
    calibration: int = 24,
    coils: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    state: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Uncertainty, Report]:
    """Sample the posterior of every slice of a scan.

    Parameters
    ----------
    scan
        From a reader or a simulation.
    prior
        Has ``energy_and_gradient(u) -> ((B,), like u)`` of images ``(B, H, W)`` float32 of peak 1: a
        ``GenerativePrior``, or :class:`~pyrecon.solvers.Charbonnier`; that with 0.01 if not given.
    sampler
        ``"preconditioned"``: ULA with (A^H A + s^-2)^-1, most effective samples an evaluation of the prior; ``"ula"``:
        cheapest a step; ``"mala"``: no bias of the step, but steps that fall with the number of pixels. If not given:
        ``"ula"`` for total variation, whose evaluation costs less than a solve, else ``"preconditioned"``.
    chains
        Of every slice, begun apart: from a smooth least-squares image to uniform noise.
    burn_in, samples, thinning
        Steps to forget the start, states to keep after them, and steps from one to the next.
    level
        Of the intervals, between 0 and 1.
    weight
        Of R. If not given, ``1 / prior.temperature`` where the prior has one, else the 0.2 / sigma of total variation,
        sigma the noise of a complex sample over the peak: on images with known noise the maximum a posteriori of that
        weight is within 0.7 dB of the best one.
    bias
        By how much the step may widen variances along the stiffest direction: of ``preconditioned`` and ``ula``.
    nonneg
        Positive images. False: Gaussian priors of either sign.
    draws
        States that are stored for the intervals, of each chain at most; half of as many at least.
    maps, calibration, coils
        As in :func:`~pyrecon.models.mri.reconstruct_mri`. The phase of the image is estimated from the fully sampled
        centre and held, as the maps are: what they leave uncertain is not in the result.
    joint
        Maps and phase are estimated together with an image (:class:`~pyrecon.models.mri.JointMRI`), as they are where
        there are no calibration lines.
    seed
        Of all noise.
    device
        Where to compute.
    state
        A folder, made if need be, where an interrupted run leaves its chains; the same call goes on from them to the
        same numbers. It is removed in the end.
    progress
        Called with how many steps are done and how many there are.
    stop
        Asked about once a second; True ends the run as Ctrl-C does: chains are left in ``state``.

    Returns
    -------
    uncertainty, report
        The status of a slice is CONVERGED where chains agree and there are effective samples enough for its intervals,
        MAX_ITER where not, with advice in the warnings.

    Raises
    ------
    DataError
        If the scan is damaged, or ``state`` holds another run.
    pyrecon._errors.Stopped
        If it was interrupted.
    """
    if not isinstance(scan, MRIScan):
        raise TypeError(f"scan: expected an MRIScan from a reader or a simulation, got {type(scan).__name__}")
    prior = Charbonnier(TV_EPSILON) if prior is None else prior
    if not callable(getattr(prior, "energy_and_gradient", None)):
        raise TypeError(f"prior: {type(prior).__name__} has no energy_and_gradient(u)")
    if sampler is None:
        sampler = "ula" if isinstance(prior, Charbonnier) else "preconditioned"
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: {sampler!r} is not known, expected one of {', '.join(SAMPLERS)}")
    for name, value, least in (
        ("chains", chains, 1), ("burn_in", burn_in, 0), ("samples", samples, 8), ("thinning", thinning, 1),
        ("draws", draws, 4), ("seed", seed, 0),
    ):  # fmt: skip
        check_count(name, value, least)
    if not 0 < check_number("level", level) < 1:
        raise ValueError(f"level: {level} does not fit, expected a number between 0 and 1")
    if weight is not None:
        check_number("weight", weight)
    check_number("bias", bias, above=True)
    check_flag("nonneg", nonneg)
    check_flag("joint", joint)
    check_callable("progress", progress)
    check_callable("stop", stop)
    settings = {
        "prior": repr(prior) if isinstance(prior, Charbonnier) else type(prior).__name__,
        "sampler": sampler, "chains": chains, "burn_in": burn_in, "samples": samples, "thinning": thinning,
        "level": level, "weight": weight, "bias": bias, "nonneg": nonneg, "draws": draws, "seed": seed,
        "joint": joint,
    }  # fmt: skip
    run = Recorder("posterior sampling", settings, device=device)
    report = run.report()
    parts: list[list[Tensor]] = []
    notes: list[dict[str, Any]] = []
    with run:
        data = held_maps(scan, maps, calibration, coils, torch.device(device), report.details, joint=joint)
        count = len(data.scan.kspace)
        total = burn_in + samples * thinning
        folder = None if state is None else Path(state)
        for index in range(count):
            part = slice(index, index + 1)
            kspace, mask = (tensor.to(device) for tensor in data.tensors(part))
            problem = Posterior(kspace, data.maps_of(part).to(device), mask, prior, weight)
            walk = _Walk(problem, settings, folder, index, scan)
            start = time.perf_counter()
            chain = walk.run(total, partial(_advance, progress, index, count, total), stop)
            seconds = time.perf_counter() - start
            found, note = _summed_up(problem, chain, settings, walk, seconds)
            solution = Solution(found[0][None], torch.tensor([note.pop("status")], dtype=torch.int8),
                                torch.tensor([chain.steps], dtype=torch.int32), torch.zeros(1))  # fmt: skip
            # The prior shapes what noise leaves: about 1 where the mean explains the data.
            run.add(
                solution, residual=problem.residual(found[0]), noise_level=problem.noise if data.noise_known else None
            )
            unit = data.unit(part)
            parts.append([v.cpu() * (unit * problem.peak if i < 4 else 1) for i, v in enumerate(found)])
            notes.append(note)
        report.details |= _details(notes)
    if folder is not None:
        for index in range(count):
            _state(folder, index).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    mean, std, lower, upper, ess, rhat = (
        crop_phase(torch.stack([part[i].reshape(part[i].shape[-2:]) for part in parts]), scan) for i in range(6)
    )
    return Uncertainty(mean, std, lower, upper, ess, rhat, level), report


def _advance(progress: Progress, index: int, count: int, total: int, done: int) -> None:
    progress(index * total + done, count * total)


class _Walk:
    """The chains of one slice: begun or found on disk, run in pieces, left on disk where they are interrupted."""

    def __init__(
        self, problem: Posterior, settings: dict[str, Any], folder: Path | None, index: int, scan: MRIScan
    ) -> None:
        self.problem, self.settings = problem, settings
        self.path = None if folder is None else _state(folder, index)
        # A prior has no name that says all of it: what it answers at the reference does.
        said = problem.prior.energy_and_gradient(problem.reference * problem.inside)[0].double().tolist()
        known = json.dumps([plain(settings), index, said], sort_keys=True).encode()
        self.mark = hashlib.sha256(known + np.ascontiguousarray(scan.kspace[index]).tobytes()).hexdigest()
        self.seed = settings["seed"] + index
        self.sampler, self.step = self._sampler()

    def _sampler(self) -> tuple[Sampler, float]:
        """How the chains move, and by which step: a share of the curvature at a place where they will be.

        The reference is none: it is smooth, and total variation is stiffest there. A draw of the Gaussian that data and
        metric make about it is as rough as the chain's states, or a little less.
        """
        problem, settings = self.problem, self.settings
        how = problem.preconditioned(_SOLVED, self.seed)
        place = problem.reference + how.solve(how.perturb(Draw(problem.reference, self.seed, 0, 0)))
        place = place.clamp(min=0) if settings["nonneg"] else place
        share = 4 * settings["bias"] / (1 + settings["bias"])  # step times curvature
        if settings["sampler"] == "preconditioned":
            return how, share / float(largest_curvature(problem.gradient, place, solve=how.solve, seed=self.seed))
        curvature = float(largest_curvature(problem.gradient, place, seed=self.seed))
        if settings["sampler"] == "ula":
            return ULA(), share / curvature
        return MALA(), 2.7 / (curvature * int(problem.inside.sum()) ** (1 / 3))  # to begin with

    def run(self, total: int, done: Callable[[int], None], stop: Callable[[], bool]) -> Chain:
        """All ``total`` steps; Stopped where it is interrupted."""
        chain = self._found()
        piece, saved = 1, -math.inf  # at once, so that a folder which cannot be written is told of at once
        try:
            while chain is None or chain.steps < total:
                if stop():
                    raise KeyboardInterrupt
                before = time.perf_counter()
                chain = self._further(chain, min(piece, total - (0 if chain is None else chain.steps)))
                if bool((chain.status == Status.NONFINITE).all()):
                    break
                now = time.perf_counter()
                piece = max(1, min(4 * piece, int(piece * _PIECE / max(now - before, 1e-6))))
                if self.path is not None and now - saved > _CHECKPOINT:
                    self._save(chain)
                    saved = now
                done(chain.steps)
        except KeyboardInterrupt:
            steps = 0 if chain is None else chain.steps
            if self.path is None or chain is None:
                raise Stopped(f"interrupted after {steps} of {total} steps, which are lost") from None
            self._save(chain)
            raise Stopped(
                f"interrupted after {steps} of {total} steps, the chains are in {self.path.parent}; the same "
                "command goes on"
            ) from None
        if self.path is not None:
            self._save(chain)
        return chain

    def _further(self, chain: Chain | None, steps: int) -> Chain:
        settings = self.settings
        new: dict[str, Any] = {}
        start: Chain | Tensor
        if chain is None:
            start = self.problem.starts(settings["chains"], self.seed, settings["nonneg"])
            new = {"seed": self.seed, "batches": _BATCHES, "draws": settings["draws"] // 2 * 2}
        else:
            start = chain
        energies = isinstance(self.sampler, MALA)
        return langevin(
            self.problem.energy_and_gradient if energies else self.problem.gradient,
            start,
            step=self.step,
            iterations=steps,
            burn_in=settings["burn_in"],
            thinning=settings["thinning"],
            nonneg=settings["nonneg"],
            sampler=self.sampler,
            **new,
        )

    def _found(self) -> Chain | None:
        if self.path is None or not self.path.exists():
            return None
        chain, facts = read_chain(self.path, device=self.problem.kspace.device)
        shape = (self.settings["chains"], *self.problem.reference.shape[1:])
        if facts.get("mark") != self.mark or chain.x.shape != shape:
            raise DataError(
                f"{self.path}: is of another scan, prior or settings; remove {self.path.parent}, or give what it was "
                "begun with"
            )
        return chain

    def _save(self, chain: Chain) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.path.parent}: cannot be made ({error.strerror})") from None
        write_chain(self.path, chain, {"mark": self.mark})


def _state(folder: Path, index: int) -> Path:
    return folder / f"slice-{index}.safetensors"


def _summed_up(
    problem: Posterior, chain: Chain, settings: dict[str, Any], walk: _Walk, seconds: float
) -> tuple[list[Tensor], dict[str, Any]]:
    """Mean, std, lower, upper, ess, rhat ``(H, W)``, zero without maps; and what is told of a slice."""
    level, chains = settings["level"], settings["chains"]
    (found,) = diagnose(chain, chains)
    lower, upper = quantiles(chain, ((1 - level) / 2, (1 + level) / 2), chains)[:, 0]
    maps = [found.mean, found.std, lower, upper, found.ess, found.rhat]
    maps = [torch.where(problem.inside, value, 0) for value in maps]
    summary = found.summary(problem.inside)
    finite = found.chains > 0
    said = found.advice(problem.inside) if finite else []
    for text in said:
        warnings.warn(text, stacklevel=4)
    note: dict[str, Any] = {
        "status": int(Status.NONFINITE if not finite else Status.MAX_ITER if said else Status.CONVERGED),
        "step": walk.step,
        "weight": problem.weight, "peak": problem.peak,
        "acceptance": None if chain.acceptance is None else float(chain.acceptance.nanmean()),
        "draws": chains * (0 if chain.draws is None else chain.draws.kept),
        "evaluations": chain.steps * chains, "seconds": seconds,
    } | summary  # fmt: skip
    return maps, note


def _details(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all slices: medians, and the worst of what can be bad."""

    def middle(name: str) -> float:
        return float(np.median([note[name] for note in notes]))

    ess, seconds = middle("ess_median"), middle("seconds")
    told: dict[str, Any] = {
        "peak": f"{middle('peak'):.4g} of the noise",
        "weight": f"{middle('weight'):.4g}",
        "step": f"{middle('step'):.3g}",
    }
    if notes[0]["acceptance"] is not None:
        told["acceptance"] = f"{middle('acceptance'):.3f}"
    told |= {
        "effective": f"{ess:.0f} samples in half of the pixels, {min(n['ess_worst'] for n in notes):.0f} in the worst; "
        f"{ess / max(seconds, 1e-9):.3g} a second, {ess / middle('evaluations'):.2g} an evaluation",
        "split R-hat": f"{middle('rhat_median'):.4f} in half of the pixels, {max(n['rhat_worst'] for n in notes):.3f} "
        "in the worst",
        "drifting": f"{max(n['drifting'] for n in notes):.1%} of the pixels",
        "intervals": f"of {middle('draws'):.0f} draws",
    }
    return told
