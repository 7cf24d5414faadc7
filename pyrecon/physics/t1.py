"""Scans by saturation recovery of brains whose T1 is known: for trying methods out, for comparisons and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyrecon._check import check_count, check_number
from pyrecon.data.brains import Brains, brains
from pyrecon.data.raw import MRIScan
from pyrecon.physics.mri import coil_maps, simulate

__all__ = ["TIMES", "scan_brains", "unseen_brains", "variable_lines"]

# Saturation times of PINQI, seconds.
TIMES: Mapping[str, tuple[float, ...]] = {
    "five": (0.5, 1.0, 1.5, 2.0, 8.0),
    "eight": (0.5, 0.7, 0.9, 1.1, 1.3, 1.6, 2.0, 8.0),
}
_UNSEEN = 10**6  # trainings draw from the streams of smaller seeds


def unseen_brains(count: int, size: int, seed: int = 0) -> Brains:
    """Brains that no training has seen, whatever its seed below 300,000."""
    return brains(count, (size, size), seed=_UNSEEN + check_count("seed", seed, 0))


def variable_lines(count: int, size: int, acceleration: float, centre: int, generator: torch.Generator) -> Tensor:
    """``(count, size)`` bool: which lines are taken, for every image anew.

    ``centre`` lines in the middle always, the others without replacement by the density ``exp(-2.5 t^2) + 1/16``, t
    from -1 to 1, until there are ``size / acceleration``.
    """
    wanted = max(round(size / check_number("acceleration", acceleration, 1)), check_count("centre", centre, 0), 1)
    if wanted > size:
        raise ValueError(f"centre: {centre} lines, the images have {size}")
    middle = torch.arange(size) - size // 2
    inner = (middle >= -(centre // 2)) & (middle < centre - centre // 2)
    density = torch.exp(-2.5 * (middle / (size / 2)) ** 2) + 1 / 16
    # The largest of random numbers to the power of 1 / density: without replacement, by the density.
    keys = torch.rand(count, size, generator=generator).clamp(min=1e-12).log() / density
    keys = torch.where(inner, torch.inf, keys)
    mask = torch.zeros(count, size, dtype=torch.bool)
    return mask.scatter_(1, keys.topk(wanted, dim=1).indices, True)


def scan_brains(
    known: Brains,
    times: Sequence[float],
    *,
    coils: int = 6,
    acceleration: float = 4.0,
    centre: int = 10,
    noise: float = 0.01,
    seed: int = 0,
) -> MRIScan:
    """Every brain at every saturation time, ``M0 (1 - exp(-t / T1))``, a slice each.

    Parameters
    ----------
    times
        ``(T,)`` seconds.
    coils
        Of :func:`pyrecon.physics.mri.coil_maps`, turned at random, for each slice another way.
    acceleration, centre
        Of :func:`variable_lines`, for each image others; 1: all lines.
    noise
        Standard deviation in the real and in the imaginary part of a sample; M0 is about 1.
    """
    if not times or any(not 0 <= t < np.inf for t in times):
        raise ValueError(f"times: {list(times)}, expected seconds from 0")
    check_number("noise", noise, 0)
    count, height, width = known.t1.shape
    generator = torch.Generator().manual_seed(seed)
    turns = 2 * np.pi * torch.rand(count, generator=generator)
    masks = variable_lines(count * len(times), height, acceleration, centre, generator).view(count, -1, 1, height, 1)
    seeds = np.random.SeedSequence(seed).generate_state(count)
    seconds = torch.tensor(times, dtype=torch.float64).view(-1, 1, 1)
    parts = []
    for s in range(count):
        share = -torch.expm1(-seconds / torch.from_numpy(known.t1[s]).double())
        images = torch.from_numpy(known.m0[s]) * share
        maps = coil_maps((height, width), coils, turn=float(turns[s]))
        parts.append(
            simulate(
                images.to(torch.complex64), maps, masks[s], noise_std=2**0.5 * noise,
                noise_samples=4096 if s == 0 and noise > 0 else 0, seed=int(seeds[s]),
            )
        )  # fmt: skip
    return replace(
        parts[0],
        kspace=np.concatenate([part.kspace for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        labels=tuple(f"slice {s}, contrast {t}" for s in range(count) for t in range(len(times))),
        slices=np.arange(count).repeat(len(times)),
        settings={"inversion time": np.tile(np.array(times, float), count)},
        metadata={"source": "simulated", "noise_std": 2**0.5 * noise, "seed": seed},
    )
