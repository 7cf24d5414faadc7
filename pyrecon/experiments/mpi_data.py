"""Images of a study, and their data: what every method of :mod:`pyrecon.experiments.mpi` is given.

There are two ways to make data, and neither hands the reconstruction the model that made them:

``"measured"``
    As in DEQ-MPI section IV-D: ``y = A_meas x + n`` with the calibrated matrix and white noise, reconstruction with
    ``A_meas U D``.
``"scanner"``
    The object lies on a grid twice as fine in the simulated scanner, with its coloured noise and drifting background,
    goes through the whole preprocessing, and is reconstructed with the calibrated matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon.data import phantoms
from pyrecon.data.angiograms import Part, cut_patches, read_volume
from pyrecon.data.mpi import FINER, GRID, MatrixError, MPISystem, box_downsample, prepare_frames, prepare_system
from pyrecon.data.phantoms import retina_vessels
from pyrecon.data.raw import Grid, MPICalibration
from pyrecon.data.vessels import VesselStyle, vascular_images
from pyrecon.models.mpi import FactoredSystem, method
from pyrecon.models.mpi.reconstructor import with_model_error
from pyrecon.models.mpi.system import SIGNAL_RMS
from pyrecon.physics.mpi import Scanner
from pyrecon.train.mpi_data import with_noise

Phantom = Literal["torus", "tubes", "y"]
PHANTOMS: tuple[Phantom, ...] = get_args(Phantom)


@dataclass(frozen=True)
class Images:
    """Images for one study, on the fine grid ``(B, FINER * H, FINER * W)``: validation and test apart."""

    validation: Tensor
    test: Tensor
    source: str
    vessels: bool = False  # as published: only beside these stand the paper's figures


@dataclass(frozen=True)
class Data:
    """Images ``(B, H, W)``, their data, the norm of the noise, and the data's coordinates."""

    images: Tensor
    y: Tensor
    noise: Tensor
    coordinates: Tensor

    def ball(self, system: FactoredSystem, kappa: float) -> tuple[Tensor, Tensor]:
        """Centre and radius in coordinates: :meth:`pyrecon.models.mpi.method.Data.ball`."""
        return method.Data(self.y, self.noise, self.coordinates, system.rank, system.noisy).ball(kappa)


@dataclass(frozen=True)
class Scenario:
    """One noise level in the scale of the published settings: a system, whole and factorised, and data of both sets."""

    prepared: MPISystem
    system: FactoredSystem
    validation: Data
    test: Data
    facts: str


# --- problems ----------------------------------------------------------------------------------------------------
def measured_system(calibration: MPICalibration, rows: NDArray[np.int64] | None = None) -> MPISystem:
    """A_meas, which is the truth where data are made with it: the noise of its calibration is part of the scanner."""
    system = prepare_system(calibration, rows=rows, denoise=False)
    return replace(system, error=MatrixError.none(system.matrix.shape[1]))


def measured_scenario(
    system: MPISystem, images: Images, snr_db: float, seed: int, *, read_with: MPISystem | None = None
) -> Scenario:
    """``y = A_meas x + n``, to be read with ``A_meas U D``; sigma = 0.41 * 10^(-SNR/20), one for the set.

    ``read_with`` gives another A_meas to the reconstruction, of the same rows: what an outdated calibration does.
    """
    coarse = {name: box_downsample(getattr(images, name), FINER) for name in ("validation", "test")}
    clean = {name: x.flatten(1) @ system.matrix.T for name, x in coarse.items()}
    gain = SIGNAL_RMS / float(clean["validation"].square().mean().sqrt())
    blurred = (read_with or system).blurred().scaled(gain)
    factored = FactoredSystem(blurred.matrix, system.grid.shape)
    generator = torch.Generator().manual_seed(seed)
    sets = {}
    for name, signal in clean.items():
        y, radius = with_noise(gain * signal, snr_db, torch.randn(signal.shape, generator=generator))
        sets[name] = _data(factored, coarse[name], y, radius)
    return Scenario(blurred, factored, **sets, facts=_facts(factored, sets["test"], gain * clean["test"]))


def scanner_scenario(
    scanner: Scanner,
    calibration: MPICalibration,
    images: Images,
    snr_db: float,
    seed: int,
    *,
    rows: NDArray[np.int64] | None = None,
) -> Scenario:
    """Objects on the fine grid in the scanner, whole preprocessing; noise scaled for the SNR of the whitened rows.

    ``rows`` as in :func:`pyrecon.data.mpi.prepare_system`.
    """
    grid = calibration.grid
    fine = grid.finer(FINER)
    objects = torch.cat([images.validation, images.test])

    def scan(noise: float) -> tuple[MPISystem, Tensor, Tensor]:
        measured = scanner.measure(objects, fine, noise=noise, background_frames=60, seed=seed + 1)
        system = prepare_system(calibration, measured, rows=rows)
        frames = prepare_frames(system, measured)
        assert frames.noise_norm is not None
        return system, frames.y, frames.noise_norm

    _, y, noise = scan(1.0)
    snr_of_one = 10 * float(torch.log10((y.square().sum() - noise.square().sum()) / noise.square().sum()))
    system, y, noise = scan(10 ** ((snr_of_one - snr_db) / 20))
    gain = SIGNAL_RMS / float(((y.square().sum() - noise.square().sum()) / y.numel()).sqrt())
    system = system.scaled(gain)
    factored = FactoredSystem(system.matrix, grid.shape, rank=system.rank)
    y, noise = gain * y, gain * noise
    noise, _ = with_model_error(factored, factored.coordinates(y), noise, system.error)
    split = len(images.validation)
    truth = box_downsample(objects, FINER)
    validation = _data(factored, truth[:split], y[:split], noise[:split])
    test = _data(factored, truth[split:], y[split:], noise[split:])
    return Scenario(system, factored, validation, test, _facts(factored, test, None))


def _data(system: FactoredSystem, images: Tensor, y: Tensor, noise: Tensor) -> Data:
    return Data(images, y, noise, system.coordinates(y))


def _facts(system: FactoredSystem, data: Data, clean: Tensor | None) -> str:
    rows, voxels = system.matrix.shape
    energy = float(system.matrix.square().sum()) / rows
    misfit = float((system.residual(data.images.flatten(1), data.y) / data.noise).mean())
    outside = float((data.coordinates[:, -1] / data.noise).mean())
    text = (
        f"{rows} real rows of mean energy {energy:.3g} x {voxels} voxels, |A x - y| of the true images "
        f"{misfit:.3f} x noise, {outside:.3f} x noise outside the range of A"
    )
    if clean is not None:
        snr = metrics.snr(data.y, clean)
        text += f", SNR per image {float(snr.min()):.1f} to {float(snr.max()):.1f} dB"
    return text


# --- images ------------------------------------------------------------------------------------------------------
WAYS = {
    "measured": "A_meas x + white noise, reconstructed with A_meas U D (bicubic up, box down)",
    "scanner": "objects on a twice finer grid in the simulated scanner, coloured noise, drifting background",
}


def vessel_images(
    volume: str | Path | None = None,
    *,
    test: int = 64,
    validation: int = 32,
    tissue: float = 0.0,
    tissue_volume: str | Path | None = None,
    shape: tuple[int, int] = (GRID.shape[0], GRID.shape[1]),
    seed: int = 0,
) -> Images:
    """Vessel images as in DEQ-MPI section IV-B: projections of patches of ``10 x 2H x 2W`` voxels, peak 0.5 to 1.5.

    Parameters
    ----------
    volume
        A NIfTI angiogram; validation patches come from the first 45 % along its first axis, test patches from the last
        45 %. Without one, crops of a retina's vessel tree.
    tissue, tissue_volume
        Brightness of a background relative to the vessels' peak, and a NIfTI volume whose patches give its texture.
        Time-of-flight angiograms have one, CT angiograms with the background removed have none.
    shape
        (H, W) of the system matrix's grid.
    """
    fine = (FINER * shape[0], FINER * shape[1])
    if (tissue > 0) != (tissue_volume is not None):
        raise DataError("tissue: give a brightness above 0 and a volume, or neither")
    if volume is None:
        stacks = [retina_vessels(fine, n, pixels=4, seed=seed + k) for k, n in enumerate((validation, test))]
        source = "crops of the retina's vessel tree"
    else:
        stacks = _patches(volume, (validation, test), fine, seed, level=0.1, filled=0.03)
        source = Path(volume).name
    if tissue_volume is not None:
        textures = _patches(tissue_volume, (validation, test), fine, seed + 1, level=0.3, filled=0.9)
        for vessels, texture in zip(stacks, textures, strict=True):
            peak = vessels.max(axis=(1, 2), keepdims=True)
            texture *= tissue * peak / texture.max(axis=(1, 2), keepdims=True)
            np.maximum(vessels, texture, out=vessels)
        source += f" over {tissue:g} of tissue from {Path(tissue_volume).name}"
    return Images(_peaked(stacks[0]), _peaked(stacks[1]), source, vessels=True)


def generated_images(
    *,
    test: int = 64,
    validation: int = 32,
    shape: tuple[int, int] = (GRID.shape[0], GRID.shape[1]),
    seed: int = 0,
    style: VesselStyle | None = None,
) -> Images:
    """Random vascular trees (:func:`pyrecon.data.vessels.vascular_images`) that no training run has drawn.

    Training takes the first images of its seed, these are the 2^40th and following of theirs. Without a ``style`` they
    are plain (:meth:`~pyrecon.data.vessels.VesselStyle.plain`), as all tables have had them.
    """
    style = style or VesselStyle.plain()
    fine = (FINER * shape[0], FINER * shape[1])
    stacks = [
        vascular_images(count, shape=fine, factor=1, style=style, seed=seed, first=first)
        for count, first in ((validation, 2**40), (test, 2**41))
    ]
    return Images(_peaked(stacks[0]), _peaked(stacks[1]), "generated vascular trees", vessels=True)


def phantom_images(
    phantom: Phantom,
    *,
    test: int = 64,
    validation: int = 32,
    grid: Grid = GRID,
    upsampled: int = 1,
    hole: float | None = None,
    seed: int = 0,
) -> Images:
    """The phantoms of DEQ-MPI section IV-B as test images; validation images are generated vessels.

    Settings of the methods compared are thus found on vessels, as published. Rings have a ``hole`` (metres), or holes
    of 1, 2 and 3 mm in turn; all phantoms lie anywhere in the field of view, tubes and Y at any angle, with peaks of
    0.5 to 1.5. ``grid`` is that of the system matrix, which is to be refined ``upsampled`` times.
    """
    if phantom not in PHANTOMS:
        raise DataError(f"phantom: {phantom!r}, expected one of {', '.join(PHANTOMS)}")
    if hole is not None and (phantom != "torus" or not 0 <= hole < 0.1):
        raise DataError(f"hole: {hole} m in {phantom}, expected that of a torus, below 0.1 m")
    fine = grid.finer(FINER * upsampled)
    rng = np.random.default_rng(seed)
    stack = np.empty((test, *fine.shape), np.float32)
    for i in range(test):
        ring = (1 + i % 3) * 1e-3 if hole is None else hole
        reach = {"torus": ring / 2 + 2e-3, "tubes": 11e-3, "y": 11e-3}[phantom]  # from the centre outwards
        half = [max(n * d / 2 - reach, 0.0) for n, d in zip(grid.shape, grid.spacing, strict=True)]
        y, x = (float(c + h * rng.uniform(-1, 1)) for c, h in zip(grid.center, half, strict=True))
        angle = float(rng.uniform(0, 2 * np.pi))
        if phantom == "torus":
            stack[i] = phantoms.torus(fine, hole=ring, center=(y, x))
        elif phantom == "tubes":
            stack[i] = phantoms.two_tubes(fine, angle=angle, center=(y, x))
        else:
            stack[i] = phantoms.y_shape(fine, angle=angle, center=(y, x))
        stack[i] *= rng.uniform(0.5, 1.5) / max(stack[i].max(), 1e-6)
    shape = (upsampled * grid.shape[0], upsampled * grid.shape[1])
    vessels = generated_images(test=1, validation=validation, shape=shape, seed=seed)
    return Images(vessels.validation, _peaked(stack), f"{phantom} phantoms, validation on {vessels.source}")


def _peaked(stack: NDArray[np.float32]) -> Tensor:
    """Images whose peak on the system matrix's grid is the one that was drawn for the fine grid."""
    images = torch.from_numpy(stack)
    coarse = box_downsample(images, FINER).amax(dim=(1, 2), keepdim=True)
    return images * images.amax(dim=(1, 2), keepdim=True) / coarse


def _patches(
    path: str | Path, counts: tuple[int, int], shape: tuple[int, int], seed: int, *, level: float, filled: float
) -> list[NDArray[np.float32]]:
    """Patches from the two ends of a volume, a tenth of it between them unused."""
    volume, parts = read_volume(path), dict[Part, int](zip(("training", "test"), counts, strict=True))
    return [
        cut_patches(path, volume, part, count, shape=shape, level=level, filled=filled, seed=seed + k)
        for k, (part, count) in enumerate(parts.items())
    ]


def check_images(images: Images, grid: Grid, upsampled: int = 1) -> None:
    """DataError where images are not FINER times as fine as the grid, refined ``upsampled`` times."""
    expected = tuple(FINER * upsampled * n for n in grid.shape)
    for name in ("validation", "test"):
        stack = getattr(images, name)
        if stack.dim() != 3 or tuple(stack.shape[1:]) != expected or len(stack) == 0:
            raise DataError(
                f"images: {name} has shape {tuple(stack.shape)}, expected (B, {', '.join(map(str, expected))}), "
                f"{FINER} times the grid of the system matrix{'' if upsampled == 1 else ', refined'}"
            )
