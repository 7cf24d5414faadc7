"""Trained networks as methods of :class:`Reconstructor`: weights chosen by SNR, data brought into their range.

DEQ-MPI, and two of what it is compared with (section V-A, Fig. 3): the same step unrolled a fixed number of times, and
the denoising network alone, trained to improve the least-squares image.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pyrecon._check import check_number
from pyrecon._errors import DataError
from pyrecon.data.mpi import MPISystem
from pyrecon.models.deq_mpi import DEQMPI, Role
from pyrecon.models.method import Progress
from pyrecon.models.mpi.method import Data, MPIMethod, trained_kappa
from pyrecon.models.mpi.system import (
    FactoredSystem,
    Problem,
    compressed,
    image_shape,
    noise_std,
    published_start,
    row_layout,
    whole,
)
from pyrecon.models.weights import Card, check_role, find_weights, read_header, shipped_weights
from pyrecon.nn import LearnedConsistency
from pyrecon.solvers import Solution, Status

_BOUNDARY = 1.05  # a frame scaled by more than this away from its noise level lies outside the training data


@dataclass(frozen=True)
class _Trained(MPIMethod):
    """What the methods with trained weights share."""

    weights: str | None = None

    role: ClassVar[Role] = "equilibrium"
    volumes: ClassVar[bool] = False

    def prepare(self, system: FactoredSystem, source: MPISystem | None = None) -> Ready:
        """The models, loaded and checked against the system."""
        if self.weights is not None:
            path = find_weights(self.weights)
            models = {path.name: DEQMPI.load(path)}
        else:
            models = {name: DEQMPI.load(path) for name, path in shipped(self.role).items()}
        cards = {name: check_role(name, model.card, self.role, self.name) for name, model in models.items()}
        models = {name: models[name] for name in _of_grid(cards, system)}
        for name, model in models.items():
            check_layout(name, model, system, source)
            _warn_of_grid(name, cards[name], system)
        return Ready(self, models, system)

    def _images(self, model: DEQMPI, problem: Problem, y: Tensor, radius: Tensor) -> Solution[Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class DEQ(_Trained):
    """DEQ-MPI with trained weights (:class:`pyrecon.models.DEQMPI`).

    Every frame is scaled so that its noise is that of the training set; where its signal would then be outside what was
    seen in training, the signal is brought to the border of that range, with a warning.

    Attributes
    ----------
    weights
        A file of :meth:`~pyrecon.models.DEQMPI.save`, or the name of weights that come with the package. None takes,
        of those for the equilibrium without learned consistency, which fit any system matrix, trained on images of the
        system's grid (or the nearest), the ones whose SNR is nearest to the frame's.
    iterations
        Steps; None takes the weights' own number, 25 as published.
    kappa
        Of the ball: the misfit in the range of A as a multiple of the noise expected there; None: as in training
        (:func:`~pyrecon.models.mpi.method.trained_kappa`).
    """

    iterations: int | None = None
    kappa: float | None = None

    name: ClassVar[str] = "DEQ-MPI"
    role: ClassVar[Role] = "equilibrium"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations: {self.iterations}, expected at least one")
        if self.kappa is not None:
            check_number("kappa", self.kappa)

    def _images(self, model: DEQMPI, problem: Problem, y: Tensor, radius: Tensor) -> Solution[Tensor]:
        return model.reconstruct(problem, y, radius, iterations=self.iterations)


@dataclass(frozen=True)
class Unrolled(DEQ):
    """The step of DEQ-MPI a fixed number of times, with weights that were trained for that number.

    ``weights`` and ``iterations`` as in :class:`DEQ`; None takes as many steps as in training, 5 as published. With
    more the images get worse (DEQ-MPI Fig. 4). Trained by ``pyrecon train deq-mpi --model unrolled``.
    """

    name: ClassVar[str] = "Unrolled"
    role: ClassVar[Role] = "unrolled"


@dataclass(frozen=True)
class EndToEnd(_Trained):
    """``RDN(least squares)``: one pass of a network over the truncated least-squares image, data not looked at again.

    ``weights`` as in :class:`DEQ`. Trained by ``pyrecon train deq-mpi --model end-to-end``.
    """

    name: ClassVar[str] = "End-to-end"
    role: ClassVar[Role] = "end-to-end"

    @torch.no_grad()
    def _images(self, model: DEQMPI, problem: Problem, y: Tensor, radius: Tensor) -> Solution[Tensor]:
        image = model.direct(problem, y)
        # ReLU lets a NaN pass, but what counts is whether the data were numbers.
        whole = torch.isfinite(y).all(dim=1) & torch.isfinite(image).flatten(1).all(dim=1)
        status = torch.where(whole, int(Status.CONVERGED), int(Status.NONFINITE)).to(torch.int8)
        image = torch.where(whole[:, None, None], image, torch.nan)
        return Solution(image, status, torch.ones_like(status, dtype=torch.int32), torch.zeros_like(y[:, 0]))


class Ready(MPIMethod):
    """Loaded models of a method and the system as each of them takes it."""

    def __init__(self, method: _Trained, models: dict[str, DEQMPI], system: FactoredSystem) -> None:
        self.models = {name: model.to(system.matrix) for name, model in models.items()}
        self.method, self.system = method, system
        self.problems: dict[str, Problem] = {}

    def _solve(
        self, system: FactoredSystem, data: Data, start: None, progress: Progress
    ) -> tuple[Solution[Tensor], None]:
        names = list(self.models)
        chosen = _nearest(data, [float(_card(self.models[name]).data["snr_db"]) for name in names])
        parts: list[tuple[Tensor, Solution[Tensor]]] = []
        for index in chosen.unique().tolist() or [0]:
            rows = torch.nonzero(chosen == index)[:, 0]
            parts.append((rows, self._images(names[index], data.of(rows))))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        fields = [
            torch.cat([getattr(solution, name) for _, solution in parts])[order]
            for name in ("value", "status", "iterations", "residual")
        ]
        return Solution(*fields), None

    def _images(self, name: str, data: Data) -> Solution[Tensor]:
        model, gain = self.models[name], self.system.gain
        learned = isinstance(model.consistency, LearnedConsistency)
        scale = _into_range(name, gain * data.signal, gain * data.noise, data.y.shape[1], _card(model))
        kappa = getattr(self.method, "kappa", None)
        if kappa is None:
            kappa = model.kappa if learned else trained_kappa(model.kappa, self.system)
        y, radius = (data.y, data.radius(kappa)) if learned else data.ball(kappa)
        up = gain * scale
        found = self.method._images(model, self._problem(name), y * up[:, None], radius * up)
        image = found.value.flatten(1).clamp(min=0) / scale[:, None]
        return Solution(image, found.status, found.iterations, found.residual)

    def _problem(self, name: str) -> Problem:
        """In the basis of the data's coordinates, or with all rows; made when first needed."""
        if name not in self.problems:
            model = self.models[name]
            learned = isinstance(model.consistency, LearnedConsistency)
            problem = (whole if learned else compressed)(self.system, float(_card(model).data["snr_db"]))
            unfinished = self.method.role in ("end-to-end", "unrolled")
            self.problems[name] = published_start(problem) if unfinished else problem
        return self.problems[name]


def check_layout(name: str, model: DEQMPI, system: FactoredSystem, source: MPISystem | None) -> None:
    """DataError where learned consistency belongs to other rows than the system's."""
    if not isinstance(model.consistency, LearnedConsistency):
        return
    ours = model.consistency.layout
    if source is None:
        rows = len(system.matrix)
        fits, theirs = rows == 2 * len(ours.rows), f"{rows // 2} rows"
    else:
        layout = row_layout(source)
        fits = layout is not None and layout.digest == ours.digest
        theirs = f"{len(source.rows)} rows" + ("" if layout is None else f" on {layout.grid[0]} x {layout.grid[1]}")
    if not fits:
        others = list(_shipped(_card(model).role))
        advice = f" ({', '.join(others)})" if others else ""
        grid = f"{ours.grid[0]} x {ours.grid[1]}"
        raise DataError(
            f"{name}: its learned consistency belongs to {len(ours.rows)} rows on {grid} angles (or channels) x "
            f"frequencies, the system matrix has {theirs}; use weights without learned consistency, which fit any "
            f"system matrix{advice}"
        )


def shipped(role: Role) -> dict[str, Path]:
    """Weights of a role that come with the package and fit any system matrix; DataError that says how to make some
    where there are none."""
    found = _shipped(role)
    if not found:
        model = "deq" if role == "equilibrium" else role
        raise DataError(
            f"weights: none of the role {role!r} come with this package; train some with `pyrecon train deq-mpi "
            f"--model {model}` and give their file"
        )
    return found


def _shipped(role: str) -> dict[str, Path]:
    """By the headers alone; learned consistency fits one layout of rows only."""
    found = {}
    for name, path in shipped_weights(DEQMPI.system).items():
        header = read_header(path)
        kind = header.config.get("consistency", {}).get("kind")
        if header.card is not None and header.card.get("role") == role and kind != "learned":
            found[name] = path
    return found


def _of_grid(cards: dict[str, Card], system: FactoredSystem) -> list[str]:
    """Models trained on images of the system's grid; where there are none, of the nearest number of voxels."""
    shape = image_shape(system.shape)

    def distance(card: Card) -> tuple[bool, float]:
        return card.shape != shape, abs(math.log(math.prod(card.shape) / math.prod(shape)))

    least = min(distance(card) for card in cards.values())
    return [name for name, card in cards.items() if distance(card) == least]


def _warn_of_grid(name: str, card: Card, system: FactoredSystem) -> None:
    """The networks take any grid, but what they know is images of one size and voxel."""
    height, width = image_shape(system.shape)
    if (height, width) != card.shape:
        warnings.warn(
            f"grid: {name} was trained on images of {card.shape[0]} x {card.shape[1]}, the system matrix has "
            f"{height} x {width}: the images may be less good than they look",
            stacklevel=4,
        )


def _card(model: DEQMPI) -> Card:
    assert model.card is not None
    return model.card


def _nearest(data: Data, levels: list[float]) -> Tensor:
    """``(B,)`` index of the model whose SNR is nearest to each frame's; the highest for data without noise."""
    snr = 20 * torch.log10(data.signal / data.noise).nan_to_num(nan=0.0, posinf=1e3, neginf=-1e3)
    return (snr[:, None] - snr.new_tensor(levels)).abs().argmin(dim=1)


def _into_range(name: str, signal: Tensor, noise: Tensor, rows: int, card: Card) -> Tensor:
    """``(B,)`` by which to multiply frames: to the noise of the training set, within the range of its signals."""
    sigma, rms = noise / math.sqrt(rows), signal / math.sqrt(rows)
    floor = torch.finfo(signal.dtype).tiny
    # A frame of noise alone keeps the scale of its noise: there is no signal to bring anywhere.
    low, high = (bound / rms.clamp(min=floor) for bound in card.data["signal_range"])
    snr = float(card.data["snr_db"])
    wanted = noise_std(snr) / sigma.clamp(min=floor)
    scale = torch.where(rms > 0.1 * sigma, torch.minimum(torch.maximum(wanted, low), high), wanted.clamp(max=1 / floor))
    away = torch.maximum(scale / wanted, wanted / scale)
    silent = noise == 0
    if bool(silent.any()):
        warnings.warn(
            f"data: no noise is given for {int(silent.sum())} of {len(signal)} frames, {name} was trained at "
            f"{snr:g} dB and takes some for granted",
            stacklevel=6,
        )
    far = torch.nonzero((away > _BOUNDARY) & ~silent)[:, 0]
    if len(far):
        kind = "weaker" if scale[far[0]] > wanted[far[0]] else "stronger"
        by = 20 * math.log10(float(away[far].max()))
        warnings.warn(
            f"data: the signal of {len(far)} of {len(signal)} frames is {kind} against its noise than any that {name} "
            f"({snr:g} dB) was trained on, by up to {by:.0f} dB: the images may be less good than they look",
            stacklevel=6,
        )
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
