"""Maps normalised after every step against the published form, which lets their scale run: all masks, three seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import metrics
from pyrecon.data.heads import smooth_phase
from pyrecon.data.magnitudes import draw_magnitudes
from pyrecon.experiments.paired import paired
from pyrecon.experiments.table import Listing
from pyrecon.ops import sense_forward
from pyrecon.physics.masks import named_mask
from pyrecon.physics.mri import coil_maps, random_lines
from pyrecon.solvers import Charbonnier, ipalm

if TYPE_CHECKING:
    from pyrecon.experiments.stable_mri.study import StableMRIStudy

SEEDS, IMAGES, COILS, NOISE = 3, 2, 8, 0.01
ITERATIONS = (100, 400)
_WEIGHT = 0.1  # of TV over the noise: the rule for every mask
_FIRST = 5 * 10**6  # of seeds that nothing trains on
Draw = Callable[[tuple[int, int], int], Tensor]
_NAMED = ("cartesian-4x", "cartesian-4x-swapped", "cartesian-4x-acl4", "radial-11x", "gaussian-8x", "random-3x")


def _named(name: str, shape: tuple[int, int], seed: int) -> Tensor:
    return named_mask(name, shape, batch=IMAGES, seed=seed)


def _without_calibration(shape: tuple[int, int], seed: int) -> Tensor:
    return random_lines(shape, 3.0, acl=1, batch=IMAGES, seed=seed)


MASKS: dict[str, Draw] = {name: partial(_named, name) for name in _NAMED} | {"lines 3x, no ACL": _without_calibration}


def retraction(study: StableMRIStudy) -> Listing:
    """For ``pyrecon reproduce stable-mri --experiment retraction``: PSNR of joint TV by both forms."""
    size = 128 if study.pixels is None or study.scale == "full" else study.pixels
    lines: list[list[str]] = []
    for i, (name, draw) in enumerate(MASKS.items()):
        row = [name]
        for count in ITERATIONS:
            study.progress(f"retraction: {name}, {count} iterations", i, len(MASKS))
            found = {
                form: [_quality(size, draw, study.seed + i, form, count) for i in range(SEEDS)]
                for form in (True, False)
            }
            means = {form: np.concatenate(values).mean() for form, values in found.items()}
            gain = paired([(a - b).tolist() for a, b in zip(found[True], found[False], strict=True)])
            row += [f"{means[True]:.1f}", f"{means[False]:.1f}", str(gain)]
        lines.append(row)
    heads = ["mask"]
    for count in ITERATIONS:
        heads += [f"normalised, {count} iterations", "published form", "difference"]
    notes = [
        f"PSNR in dB of joint image and coil maps, smoothed total variation with {_WEIGHT:g} of the noise: {size} x "
        f"{size} pixels, {COILS} coils, noise {NOISE:g} of the brightest pixel, {IMAGES} generated images of each of "
        f"{SEEDS} seeds.",
        "Difference: mean over the seeds and its 95 % interval. Published form: |S| is free, smoothness shrinks it.",
    ]
    return Listing("Normalised maps against the published form", heads, lines, notes)


def _quality(size: int, draw: Draw, seed: int, normalised: bool, iterations: int) -> NDArray[np.float64]:
    """PSNR of every image ``(IMAGES,)``."""
    kspace, mask, truth = _scan(size, draw, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mask: ")  # random points may leave out the centre
        found = ipalm(kspace, mask, Charbonnier(), lam=_WEIGHT * NOISE, retraction=normalised, max_iter=iterations)
    return np.asarray(metrics.psnr(found.value[0], truth, peak=1.0).numpy())


def _scan(size: int, draw: Draw, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """K-space, mask and magnitudes of peak 1."""
    shape = (size, size)
    rng = np.random.default_rng((seed, _FIRST))
    drawn = draw_magnitudes(size, IMAGES * seed, IMAGES, _FIRST, kinds=("heads", "knees"), part="test")
    truth = torch.from_numpy(drawn)
    phases = np.stack([smooth_phase(shape, seed=_FIRST + seed, number=i) for i in range(IMAGES)])
    maps = coil_maps(shape, COILS, turn=float(rng.uniform(0, 2 * np.pi)))
    mask = draw(shape, seed)
    image = truth * torch.from_numpy(phases)
    noise = torch.from_numpy(rng.standard_normal((IMAGES, COILS, *shape, 2)) * (NOISE / np.sqrt(2)))
    kspace = sense_forward(image, maps, mask) + mask * torch.view_as_complex(noise).to(torch.complex64)
    return kspace, mask, truth
