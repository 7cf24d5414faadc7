"""Undersampled scans of generated magnitude images: what networks from k-space to magnitudes are trained and tested
on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.heads import smooth_phase
from pyrecon.data.magnitudes import Kind, draw_magnitudes
from pyrecon.ops import sense_forward
from pyrecon.physics.mri import coil_maps, random_lines
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, setting
from pyrecon.train.problem import generator_of
from pyrecon.train.run import Drawn

_ORIENTATIONS, _PHASES = 32, 64  # of the coils, and smooth phases: one each is drawn for an image
_CHOSEN, _SCANS, _FIXED = 720, 721, 2**20
_HELD_OUT = 2**31  # added to the seed of images to validate on
Images = Literal["mixed", "anatomy", "heads", "knees", "textures"]
# As in pyrecon.train.generative: with a seed in common networks and prior see the same images.
SHOWN: dict[str, tuple[Kind, ...]] = {
    "mixed": ("heads", "knees", "textures"),
    "anatomy": ("heads", "knees"),
    "heads": ("heads",),
    "knees": ("knees",),
    "textures": ("textures",),
}


@dataclass(frozen=True, kw_only=True)
class ScanConfig(RunConfig):
    """How images are scanned.

    Attributes
    ----------
    size, coils, images
        Pixels along an axis; receive coils, 1 for real images without phase; and what images show
        (:func:`pyrecon.data.magnitudes.draw_magnitudes`).
    acceleration, centre
        Random lines along the rows, one of so many, drawn anew for every sample; ``centre`` is the share of all lines
        that is always taken about DC.
    noise_low, noise_high
        Root mean square of a sample's complex noise, drawn for every image; the brightest pixel is 1.
    """

    size: int = setting(64, "--size", "Pixels along an axis.", least=32, most=1024)
    coils: int = setting(4, "--coils", "Receive coils; 1: real images.", least=1, most=256)
    images: Images = setting("anatomy", "--images", "What they show; mixed: anatomy and textures.")
    acceleration: float = setting(4.0, "--acceleration", "Lines per one taken.", least=1, most=64)
    centre: float = setting(0.08, "--centre", "Share of the lines that is always taken.", least=0, most=1)
    noise_low: float = setting(0.005, "", "Of the noise, which is drawn between.", least=0, most=10)
    noise_high: float = setting(0.02, "--noise", "Largest noise.", least=0, most=10)
    pool: int = setting(4096, "--pool", "Images to train on.", least=1)
    validation: int = setting(32, "--validation", "Images to validate on.", least=1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def lines(self) -> int:
        """Those that are always taken."""
        return round(self.centre * self.size)


@dataclass(frozen=True)
class Batch:
    """Data ``(B, C, H, W)`` with their mask ``(B | 1, 1, H | 1, W | 1)``, and what was scanned: magnitudes ``(B, H,
    W)``, and maps ``(B, C, H, W)`` that have the phase of the object in them, of root sum of squares 1."""

    y: Tensor
    mask: Tensor
    images: Tensor
    maps: Tensor

    def parts(self, count: int) -> Iterator[Batch]:
        """Of at most ``count`` images."""
        for first in range(0, len(self.y), count):
            rows = slice(first, first + count)
            mask = self.mask[rows] if len(self.mask) > 1 else self.mask
            yield Batch(self.y[rows], mask, self.images[rows], self.maps[rows])


@dataclass
class Data:
    """Images to train on and to validate on ``(N, H, W)``, coil maps ``(32, C, H, W)``, and phases ``(64, H, W)``."""

    config: ScanConfig
    pool: Tensor
    held_out: Tensor
    maps: Tensor
    phases: Tensor

    def to(self, device: torch.device) -> Data:
        moved = {name: getattr(self, name).to(device) for name in ("pool", "held_out", "maps", "phases")}
        return replace(self, **moved)

    def batch(self, step: int, count: int) -> Batch:
        """Random images, scanned anew."""
        generator = generator_of(self.config.seed, _CHOSEN, step)
        chosen = torch.randint(len(self.pool), (count,), generator=generator)
        return self.scanned(self.pool[chosen.to(self.pool.device)], step)

    def validation(self) -> Batch:
        """The held-out images, with the same scans at all times."""
        return self.scanned(self.held_out, _FIXED)

    def scanned(self, images: Tensor, step: int, mask: Tensor | None = None) -> Batch:
        """Images in random coils with random phase, on the lines of the configuration or a ``mask``, with noise: a
        function of the step."""
        config, count = self.config, len(images)
        generator = generator_of(config.seed, _SCANS, step)
        maps = self.maps[torch.randint(len(self.maps), (count,), generator=generator).to(self.maps.device)]
        turned = torch.randint(len(self.phases), (count,), generator=generator).to(self.phases.device)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        low, high = config.noise_low, config.noise_high
        level = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
        white = torch.view_as_complex(torch.randn(*maps.shape, 2, generator=generator)) * 0.5**0.5
        if mask is None:
            rate, acl = config.acceleration, config.lines
            mask = random_lines(config.shape, rate, acl=acl, axis=-2, batch=count, seed=seed)
        mask = mask.to(images.device)
        seen = maps * self.phases[turned][:, None] if config.coils > 1 else maps
        clean = sense_forward(images.to(seen.dtype), seen, mask)
        return Batch(clean + mask * (level * white).to(clean), mask, images, seen)


def make_data(config: ScanConfig, folder: Path, drawn: Drawn) -> Data:
    """Images to train on and to validate on, kept in the folder."""
    check_lines(config)

    def part(first: int, count: int) -> NDArray[np.float32]:
        """Each part by a stream of its own: held-out images do not depend on the pool's size."""
        inside = max(0, min(count, config.pool - first))
        found = [drawn_images(config, first, inside, 0)] if inside else []
        if inside < count:
            found.append(drawn_images(config, max(0, first - config.pool), count - inside, 1))
        return np.concatenate(found)

    total = config.pool + config.validation
    pool = kept_pool(folder / "pool.npy", total, config.shape, part, drawn, chunk=32)
    return scanner_of(config, pool[: config.pool], pool[config.pool :])


def drawn_images(config: ScanConfig, first: int, count: int, stream: int) -> NDArray[np.float32]:
    """``stream`` 0: to train on, 1: to validate on, of textures from other photographs."""
    part: Literal["train", "validation"] = "validation" if stream else "train"
    seed = config.seed + _HELD_OUT * stream
    return draw_magnitudes(config.size, first, count, seed, kinds=SHOWN[config.images], part=part)


def scanner_of(config: ScanConfig, pool: Tensor, held_out: Tensor) -> Data:
    """With coils in random orientations and random phases, both functions of the seed."""
    if config.coils == 1:
        ones = torch.ones(1, 1, *config.shape, dtype=torch.complex64)
        return Data(config, pool, held_out, ones, ones[:, 0])
    turns = np.random.default_rng((config.seed, _SCANS)).uniform(0, 2 * np.pi, _ORIENTATIONS)
    maps = torch.cat([coil_maps(config.shape, config.coils, turn=float(turn)) for turn in turns])
    phases = [smooth_phase(config.shape, seed=config.seed, number=number) for number in range(_PHASES)]
    return Data(config, pool, held_out, maps, torch.from_numpy(np.stack(phases)))


def check_lines(config: ScanConfig) -> None:
    """DataError where settings do not fit each other."""
    if config.noise_low > config.noise_high:
        raise DataError(f"noise_low: {config.noise_low}, expected at most noise_high, {config.noise_high}")
    taken = round(config.size / config.acceleration)
    if config.lines > taken:
        raise DataError(
            f"centre: {config.centre} of {config.size} lines are {config.lines}, but acceleration "
            f"{config.acceleration:g} leaves {taken}"
        )
