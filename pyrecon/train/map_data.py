"""Scans of generated brains whose maps are known: what networks from k-space to maps are trained and tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.brains import Brains, brains
from pyrecon.data.brainweb import Split, brainweb
from pyrecon.linops import Sense
from pyrecon.physics.mri import coil_maps
from pyrecon.physics.t1 import TIMES, variable_lines
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, setting
from pyrecon.train.problem import generator_of
from pyrecon.train.run import Drawn

_ORIENTATIONS = 32  # of the coils
_CHOSEN, _SCANS, _FIXED = 700, 701, 2**20
_PARTS = 4  # numbers a pixel in the pool: 1 / T1, M0 as re and im, inside
_TRAIN, _VALIDATE, _TEST = range(3)
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SEEDS = 3  # that many streams of brains a seed


@dataclass(frozen=True)
class ScanConfig(RunConfig):
    """How brains are scanned.

    Attributes
    ----------
    size, coils, times
        Pixels along an axis, receive coils, and the saturation times.
    acceleration, centre
        Of :func:`pyrecon.physics.t1.variable_lines`, for every image anew.
    noise_low, noise_high
        Deviation of the noise in real and imaginary part, drawn for every sample; M0 is about 1.
    """

    validate_every: int = setting(50, "--validate-every", "Steps between validations.", least=1)

    size: int = setting(96, "--size", "Pixels along an axis.", least=8, most=1024)
    coils: int = setting(6, "--coils", "Receive coils.", least=1, most=256)
    times: Literal["five", "eight"] = setting("five", "--times", "Saturation times of the paper.")
    acceleration: float = setting(4.0, "--acceleration", "Lines per one taken.", least=1, most=64)
    centre: int = setting(10, "--centre", "Lines that are always taken.", least=0, most=1024)
    noise_low: float = setting(0.001, "", "Of the noise, which is drawn between.", least=0, most=10)
    noise_high: float = setting(0.04, "--noise", "Largest noise.", least=0, most=10)
    pool: int = setting(512, "--pool", "Brains to train on.", least=1)
    validation: int = setting(16, "--validation", "Brains to validate on.", least=1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def seconds(self) -> tuple[float, ...]:
        return TIMES[self.times]


@dataclass(frozen=True)
class Batch:
    """Scans of brains that are known: parameters ``(B, 3, H, W)`` (1 / T1, M0), clean images ``(B, T, H, W)``."""

    k: Tensor
    physics: Sense
    times: Tensor
    parameters: Tensor
    images: Tensor
    inside: Tensor

    def targets(self, phase: bool) -> Tensor:
        """The parameters; without the phase of M0 its magnitude and zero."""
        if phase:
            return self.parameters
        rate, real, imaginary = self.parameters.unbind(1)
        size = torch.hypot(real, imaginary)
        return torch.stack((rate, size, torch.zeros_like(size)), dim=1)

    def parts(self, count: int) -> Iterator[Batch]:
        """Of at most ``count`` samples."""
        for first in range(0, len(self.k), count):
            rows = slice(first, first + count)
            physics = Sense(self.physics.maps[rows], self.physics.mask[rows])
            yield Batch(self.k[rows], physics, self.times, self.parameters[rows], self.images[rows], self.inside[rows])


@dataclass
class Data:
    """Brains ``(N, 4, H, W)``, first those to train on, and coil maps ``(32, C, H, W)``."""

    config: ScanConfig
    pool: Tensor
    held_out: Tensor
    maps: Tensor

    def to(self, device: torch.device) -> Data:
        return replace(self, pool=self.pool.to(device), held_out=self.held_out.to(device), maps=self.maps.to(device))

    def batch(self, step: int, count: int) -> Batch:
        """Random brains, scanned anew."""
        generator = generator_of(self.config.seed, _CHOSEN, step)
        chosen = torch.randint(len(self.pool), (count,), generator=generator)
        return scanned(self.config, self.pool[chosen.to(self.pool.device)], self.maps, step)

    def validation(self) -> Batch:
        """The held-out brains, with the same scans at all times."""
        return scanned(self.config, self.held_out, self.maps, _FIXED)


def make_data(config: ScanConfig, folder: Path, drawn: Drawn, heads: Path | None = None) -> Data:
    """Brains to train on and to validate on, kept in the folder: generated, or those of a BrainWeb folder ``heads``."""
    if config.noise_low > config.noise_high:
        raise DataError(f"noise_low: {config.noise_low}, expected at most noise_high, {config.noise_high}")
    if config.centre > config.size:
        raise DataError(f"centre: {config.centre} lines, the images have {config.size}")

    def part(first: int, count: int) -> NDArray[np.float32]:
        """Each part by a stream of its own: held-out brains do not depend on the pool's size."""
        inside = max(0, min(count, config.pool - first))
        found = [_drawn(config, _TRAIN, first, inside, heads)] if inside else []
        if inside < count:
            found.append(_drawn(config, _VALIDATE, max(0, first - config.pool), count - inside, heads))
        return np.concatenate([as_pool(part) for part in found])

    total = config.pool + config.validation
    pool = kept_pool(folder / "pool.npy", total, (_PARTS, *config.shape), part, drawn, chunk=32)
    return Data(config, pool[: config.pool], pool[config.pool :], turned_coils(config))


def held_back(config: ScanConfig, count: int, heads: Path | None = None) -> tuple[Batch, Tensor]:
    """Brains that are in no pool, scanned, and the classes ``(B, H, W)`` of their pixels; the same for all that have
    the seed and the scanner in common."""
    found = _drawn(config, _TEST, 0, count, heads)
    batch = scanned(config, torch.from_numpy(as_pool(found)), turned_coils(config), _FIXED + 1)
    return batch, torch.from_numpy(found.labels)


def scanned(
    config: ScanConfig,
    known: Tensor,
    maps: Tensor,
    step: int,
    *,
    seconds: Sequence[float] | None = None,
    acceleration: float | None = None,
) -> Batch:
    """Brains of a pool in random coils, on random lines of every image, with noise: a function of the step.

    ``seconds`` and ``acceleration`` in the place of the configuration's.
    """
    generator, count = generator_of(config.seed, _SCANS, step), len(known)
    seconds = config.seconds if seconds is None else seconds
    turned = torch.randint(len(maps), (count,), generator=generator)
    rate = config.acceleration if acceleration is None else acceleration
    taken = variable_lines(count * len(seconds), config.size, rate, config.centre, generator)
    masks = taken.to(known).view(count, -1, 1, config.size, 1)
    physics = Sense(maps[turned.to(maps.device)][:, None], masks.to(maps.device))
    times = torch.tensor(seconds).to(known)
    parameters = known[:, :3]
    factor = torch.complex(parameters[:, 1], parameters[:, 2])
    images = factor[:, None] * -torch.expm1(-times.view(1, -1, 1, 1) * parameters[:, :1])
    clean = physics(images)
    low, high = config.noise_low, config.noise_high
    level = low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator)
    noise = level * torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator))
    k = clean + physics.mask * noise.to(clean)
    return Batch(k, physics, times, parameters, images, known[:, 3:] > 0.5)


def turned_coils(config: ScanConfig) -> Tensor:
    """Coil maps in random orientations."""
    turns = np.random.default_rng((config.seed, _SCANS)).uniform(0, 2 * np.pi, _ORIENTATIONS)
    return torch.cat([coil_maps(config.shape, config.coils, turn=float(turn)) for turn in turns])


def _drawn(config: ScanConfig, stream: int, first: int, count: int, heads: Path | None) -> Brains:
    seed = _SEEDS * config.seed + stream
    if heads is None:
        return brains(count, config.shape, seed=seed, first=first)
    return brainweb(heads, count, config.shape, seed=seed, first=first, split=_SPLITS[stream])


def as_pool(found: Brains) -> NDArray[np.float32]:
    """``(N, 4, H, W)``: 1 / T1, real and imaginary part of M0, inside."""
    return np.stack((1 / found.t1, found.m0.real, found.m0.imag, found.inside), axis=1).astype(np.float32)
