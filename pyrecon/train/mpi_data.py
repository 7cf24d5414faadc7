"""Training data of DEQ-MPI: vascular images, and their measurement with noise in the scale of the model.

One pool of images lies above one or several benches, each a system that measures them: every other step takes the
first, the steps between the others by turns. Every random number is a function of (seed, purpose, step), whatever ran
before: a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import metrics
from pyrecon.data.angiograms import Angiogram, Part, cut_patches
from pyrecon.data.mpi import FINER, MatrixError, MPISystem, blurred_rows, box_downsample, upsample_rows
from pyrecon.data.vessels import VesselStyle, vascular_images
from pyrecon.models.mpi import FactoredSystem
from pyrecon.models.mpi.method import trained_kappa
from pyrecon.models.mpi.system import (
    SIGNAL_RMS,
    Problem,
    ScaledSystem,
    compressed,
    image_shape,
    noise_std,
    published_start,
    row_gain,
    row_layout,
)
from pyrecon.nn import RowLayout

if TYPE_CHECKING:
    from pyrecon.train.deq_mpi import Config

_SAMPLE = 1024  # images of the pool whose signals set the scale
_POINTS = 10**8  # of a grid of rows
# The streams of random numbers.
IMAGES, NOISE, VALIDATION, SCALE, PATCHES = range(5)


@dataclass(frozen=True)
class Source:
    """What data are made of: a whitened system matrix ``(M, N)``, the shape of its images, where its rows lie, and the
    angiogram that images are cut from, if any.

    ``silent`` more rows hold noise alone and only count (:meth:`compact`). ``rank`` is that of a matrix that noise was
    taken out of. Of a drawn scanner ``seed`` is its own, ``forward`` ``(M, FINER^2 N)`` makes data of objects on a grid
    FINER times finer, without the noise that its calibration left in the matrix, and ``error`` is what is known of
    that.
    """

    matrix: Tensor
    shape: tuple[int, int]
    layout: RowLayout | None = None
    silent: int = 0
    rank: int | None = None
    seed: int | None = None
    forward: Tensor | None = None
    error: MatrixError | None = None
    angiogram: Angiogram | None = None  # in place of generated images

    @classmethod
    def of(cls, system: MPISystem) -> Source:
        """What a run keeps of a whitened system."""
        return cls(system.matrix, image_shape(system.grid.shape), row_layout(system), rank=system.rank)

    @property
    def rows(self) -> int:
        """M, silent ones included."""
        return len(self.matrix) + self.silent

    def compact(self) -> Source:
        """The same data in other coordinates: at most N rows, and ``silent`` ones.

        With ``A = Q R`` the rows of ``R`` are orthonormal combinations of those of A and hold all signal, of A as of
        ``A U D``; noise that is white stays so. Where no layout of rows matters that is all that training needs: 0.5 MB
        in place of 7 for 26 x 13 voxels.
        """
        # Rows in order, as a file gives them back: products with columns in order round otherwise.
        upper = torch.linalg.qr(self.matrix.double(), mode="r").R.to(self.matrix.dtype).contiguous()
        return replace(self, matrix=upper, layout=None, silent=self.rows - len(upper))

    def with_images(self, path: str | Path) -> Source:
        """The same, to be trained on patches of a NIfTI angiogram: slabs, their maximum, FINER times finer than images.

        DataError where the file is none, or too small or too empty for patches.
        """
        return replace(self, angiogram=Angiogram.read(path, (FINER * self.shape[0], FINER * self.shape[1])))

    def kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors and JSON."""
        tensors, facts = {"matrix": self.matrix}, dict[str, Any](shape=self.shape, rank=self.rank)
        if self.layout is not None:
            tensors["rows"] = self.layout.rows
            facts |= {"grid": self.layout.grid, "used": self.layout.used}
        if self.angiogram is not None:
            facts["images"] = self.angiogram.facts()
        return tensors, facts

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Source:
        """From what :meth:`kept` gave; ValueError, KeyError or TypeError where it is something else."""
        (height, width), matrix = facts["shape"], tensors["matrix"]
        if matrix.dtype != torch.float32 or matrix.dim() != 2 or matrix.shape[1] != height * width or not len(matrix):
            raise ValueError(f"the matrix is {matrix.dtype} {tuple(matrix.shape)} for images of {height} x {width}")
        angiogram = Angiogram.of_facts(facts["images"]) if "images" in facts else None
        rank = facts.get("rank")
        if rank is not None and not 0 < int(rank) <= matrix.shape[1]:
            raise ValueError(f"rank {rank} of a matrix with {matrix.shape[1]} columns")
        common: dict[str, Any] = {"angiogram": angiogram, "rank": rank and int(rank)}
        if "rows" not in tensors:
            return cls(matrix, (height, width), **common)
        rows, (groups, frequencies) = tensors["rows"], facts["grid"]
        if rows.dtype != torch.int64 or 2 * len(rows) != len(matrix) or not 0 < groups * frequencies <= _POINTS:
            raise ValueError(f"{len(rows)} rows of {groups} x {frequencies} for a matrix of {len(matrix)}")
        return cls(matrix, (height, width), RowLayout((groups, frequencies), rows, facts["used"]), **common)


@dataclass
class Measured:
    """A batch as the model takes it: images ``(B, H, W)``, data ``(B, rows)``, their radius ``(B,)``, their system."""

    images: Tensor
    y: Tensor
    radius: Tensor
    problem: Problem


@dataclass
class Bench:
    """A system in the scale of the model, and how it makes data.

    Attributes
    ----------
    source
        What it is made of; ``seed`` and numbers of rows are its own.
    forward
        ``(M, h w)``: makes data, of the grid of the model or of the finer one.
    system
        What the model knows of it.
    problem
        The model's system: all rows where consistency is learned, else compressed to the coordinates of ``factored``.
    signal_range
        1st and 99th percentile of the signals' root mean square.
    """

    source: Source
    forward: Tensor
    system: ScaledSystem
    problem: Problem
    factored: FactoredSystem | None
    signal_range: tuple[float, float]

    @classmethod
    def of(cls, source: Source, config: Config, pool: Tensor) -> Bench:
        """``pool`` as in :meth:`TrainingData.of`: its signals set the unit."""
        forward, matrix, heard = source.matrix, source.matrix, len(source.matrix) / source.rows
        if source.forward is not None:
            forward = source.forward
        elif config.measure == "blurred":
            matrix = blurred_rows(matrix, source.shape)
        else:
            # A fine voxel holds a share of a coarse one's tracer.
            forward = upsample_rows(matrix, source.shape, FINER) / FINER**2
        gain = row_gain(matrix) / math.sqrt(heard)
        forward = gain * forward
        rms = ((_seen(pool[:_SAMPLE], forward) @ forward.T).square().mean(1) * heard).sqrt()
        # One unit for the whole set: its signals have the standard root mean square, single images differ. The mean of
        # the brightness squared is 13/12.
        unit = float((13 / 12 * rms.square().mean()).sqrt()) / SIGNAL_RMS
        rms = rms * (0.5 + torch.rand(rms.shape, generator=_generator(config.seed, SCALE, 0)))
        system = ScaledSystem(gain * matrix, image_shape(source.shape), gain, unit, source.layout)
        factored = None
        if config.consistency != "learned":
            factored = FactoredSystem(system.matrix, system.shape, rank=source.rank)
            if source.silent or source.forward is not None:
                factored.gain = 1.0  # it has the scale already, but for the rows that the matrix does not show
            problem = compressed(factored, config.snr_db)
        else:
            problem = system.problem(config.snr_db)
        if config.role in ("end-to-end", "unrolled"):
            problem = published_start(problem)
        low, high = (float(q) / unit for q in torch.quantile(rms, torch.tensor([0.01, 0.99])))
        return cls(source, forward, system, problem, factored, (low, high))

    def to(self, device: torch.device) -> Bench:
        problem = Problem(
            self.problem.A.matrix.to(device), self.system.shape, cutoff=self.problem.cutoff, rank=self.problem.rank
        )
        factored = self.factored and FactoredSystem(
            self.factored.matrix.to(device), self.factored.shape, rank=self.source.rank
        )
        return replace(self, forward=self.forward.to(device), problem=problem, factored=factored)

    def clean(self, images: Tensor) -> Tensor:
        """Noise-free data ``(B, M)``, silent rows left out, of images in the scale of the model."""
        return _seen(images, self.forward) @ self.forward.T

    def measured(self, images: Tensor, config: Config, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Data as ``problem`` takes them, and the radius of their ball: ``kappa sigma sqrt(r)`` in the range of A
        (:meth:`pyrecon.models.mpi.method.Data.ball`), kappa by :func:`~pyrecon.models.mpi.method.trained_kappa`; for a
        learned consistency, that of all noise. ``noise`` ``(B, M)`` has standard deviation 1. Where the matrix has
        errors they are a part of sigma, noise the rest."""
        clean = self.clean(images)
        if self.source.error is not None:
            noise = noise * (1 - self.wrong(images, config.snr_db).square()).clamp(min=0.01).sqrt()[:, None]
        y, radius = with_noise(clean, config.snr_db, noise)
        if self.factored is None:
            return y, radius
        center = self.factored.coordinates(y)
        center[:, -1] = 0
        inside = trained_kappa(config.kappa, self.factored) * noise_std(config.snr_db) * math.sqrt(self.factored.rank)
        return center, torch.full_like(radius, inside)

    def wrong(self, images: Tensor, snr_db: float) -> Tensor:
        """``(B,)`` what the noise of the matrix adds to a row of an image's signal, in units of sigma."""
        assert self.source.error is not None
        variance = self.source.error.variance(_seen(images, self.system.matrix))
        return variance.sqrt() * (self.system.gain / noise_std(snr_db))


@dataclass
class TrainingData:
    """The pool, and the benches that measure it.

    Attributes
    ----------
    pool, validation
        Images ``(P, h, w)``: of the system's grid, or FINER times that where a bench makes data on a finer grid. Those
        of validation have their brightness.
    benches
        At least one, first that of the system matrix. In the scale of the model an image is divided by the unit of the
        bench that measures it.
    """

    config: Config
    pool: Tensor
    validation: Tensor
    benches: tuple[Bench, ...]

    @classmethod
    def of(cls, sources: Source | Sequence[Source], config: Config, pool: Tensor, validation: Tensor) -> TrainingData:
        """``pool`` and ``validation`` hold images of peak 1 on the grid that data are made on: :func:`fine_shape`."""
        sources = [sources] if isinstance(sources, Source) else sources
        benches = tuple(Bench.of(source, config, pool) for source in sources)
        return cls(config, pool, _bright(validation, _generator(config.seed, VALIDATION, 0)), benches)

    def to(self, device: torch.device) -> TrainingData:
        """The same on a device; random numbers are still drawn on the CPU, so they are the same everywhere."""
        if self.pool.device == device:
            return self
        benches = tuple(bench.to(device) for bench in self.benches)
        return replace(self, pool=self.pool.to(device), validation=self.validation.to(device), benches=benches)

    @property
    def signal_range(self) -> tuple[float, float]:
        """That of all benches together."""
        lows, highs = zip(*(bench.signal_range for bench in self.benches), strict=True)
        return min(lows), max(highs)

    def bench(self, step: int) -> Bench:
        """Whose turn it is."""
        others = self.benches[1:]
        return others[step // 2 % len(others)] if others and step % 2 else self.benches[0]

    def images(self, step: int, batch: int) -> Tensor:
        """``(batch, h, w)`` of the pool, brightness times U(0.5, 1.5), mirrored along each axis at random."""
        generator = _generator(self.config.seed, IMAGES, step)
        chosen = self.pool[torch.randint(len(self.pool), (batch,), generator=generator).to(self.pool.device)]
        chosen = chosen / self.bench(step).system.unit
        for dim in (1, 2):
            mirror = (torch.rand(batch, 1, 1, generator=generator) < 0.5).to(chosen.device)
            chosen = torch.where(mirror, chosen.flip(dim), chosen)
        return _bright(chosen, generator)

    def validation_images(self) -> list[Tensor]:
        """For each bench its share of the validation images, always the same."""
        others = len(self.benches) - 1
        shares = [self.validation[:: 2 if others else 1]]
        shares += [self.validation[1 + 2 * k :: 2 * others] for k in range(others)]
        return [share / bench.system.unit for share, bench in zip(shares, self.benches, strict=True)]

    def coarse(self, images: Tensor) -> Tensor:
        """Images on the grid of the model."""
        return images if tuple(images.shape[1:]) == self.benches[0].system.shape else box_downsample(images, FINER)

    def noise(self, shape: tuple[int, ...], step: int, stream: int = NOISE) -> Tensor:
        """White noise of standard deviation 1."""
        return torch.randn(shape, generator=_generator(self.config.seed, stream, step)).to(self.pool.device)

    def measured(self, step: int, batch: int) -> Measured:
        """A training batch."""
        return self._measure(self.bench(step), self.images(step, batch), step, NOISE)

    def validation_sets(self) -> list[Measured]:
        """The validation images of each bench, with the same noise at all times."""
        # Steps 2 and 3 of the stream are what the first two stages take.
        return [
            self._measure(bench, images, 1 + 3 * k, VALIDATION)
            for k, (bench, images) in enumerate(zip(self.benches, self.validation_images(), strict=True))
        ]

    def _measure(self, bench: Bench, images: Tensor, step: int, stream: int) -> Measured:
        noise = self.noise((len(images), len(bench.forward)), step, stream)
        y, radius = bench.measured(images, self.config, noise)
        return Measured(self.coarse(images), y, radius, bench.problem)


def starts(sets: list[Measured]) -> list[Tensor]:
    """Least-squares images of each."""
    return [part.problem.start(part.y)[0].view_as(part.images) for part in sets]


def mean_psnr(images: list[Tensor], truth: list[Measured]) -> float:
    """Over the images of all."""
    each = [metrics.psnr(found, part.images) for found, part in zip(images, truth, strict=True)]
    return float(torch.cat(each).mean())


def with_noise(clean: Tensor, snr_db: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Data ``(B, M)`` in the scale of the model with white ``noise`` of an SNR, and the radius of their ball ``(B,)``.

    ``sigma = 0.41 * 10^(-SNR / 20)`` on every real row, ``radius = sigma * sqrt(M)`` (DEQ-MPI Eq. 36).
    """
    sigma = noise_std(snr_db)
    y = clean + sigma * noise
    return y, y.new_full((len(y),), sigma * math.sqrt(y.shape[1]))


def drawn_images(source: Source, config: Config) -> Callable[[int, int], NDArray[np.float32]]:
    """Images ``first`` and following of a run, of peak 1: generated vessels, or patches of an angiogram.

    After ``config.pool`` images for training come those for validation, from another part of an angiogram.
    """
    shape = fine_shape(source.shape, config)
    factor = FINER * source.shape[0] // shape[0]
    angiogram = source.angiogram
    if angiogram is None:
        style = VesselStyle.plain() if config.vessels == "plain" else VesselStyle()
        return lambda first, count: vascular_images(
            count, shape=shape, factor=factor, peak=(1.0, 1.0), style=style, seed=config.seed, first=first
        )
    volume: list[NDArray[np.float32]] = []

    def cut(first: int, count: int) -> NDArray[np.float32]:
        if not volume:  # a pool that is there already needs no volume
            volume.append(angiogram.volume())
        training = min(max(config.pool - first, 0), count)
        parts: dict[Part, int] = {"training": training, "validation": count - training}
        state = np.random.SeedSequence([config.seed, PATCHES, first]).generate_state(len(parts))
        images = np.concatenate(
            [
                cut_patches(angiogram.path, volume[0], part, n, shape=shape, factor=factor, seed=int(seed))
                for (part, n), seed in zip(parts.items(), state, strict=True)
                if n
            ]
        )
        return np.asarray(images / images.max(axis=(1, 2), keepdims=True))

    return cut


def fine_shape(shape: tuple[int, int], config: Config) -> tuple[int, int]:
    """``(h, w)`` of the images that data are made from."""
    factor = FINER if config.measure == "finer" or config.scanners else 1
    return factor * shape[0], factor * shape[1]


def _seen(images: Tensor, matrix: Tensor) -> Tensor:
    """Images ``(B, h, w)`` on the grid of a matrix's columns, ``(B, N)``."""
    fine = images.shape[1] * images.shape[2] > matrix.shape[1]
    return (box_downsample(images, FINER) if fine else images).flatten(1)


def _bright(images: Tensor, generator: torch.Generator) -> Tensor:
    return images * (0.5 + torch.rand(len(images), 1, 1, generator=generator)).to(images.device)


def _generator(seed: int, stream: int, step: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
