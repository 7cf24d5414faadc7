"""MPI methods side by side: settings as published, settings found on a validation set, and trained weights.

Every row of the table sees the same system matrix, images and noise. There are two ways to make data, and neither
hands the reconstruction the model that made them:

``"measured"``
    As in DEQ-MPI section IV-D: ``y = A_meas x + n`` with the calibrated matrix and white noise, reconstruction with
    ``A_meas U D``.
``"scanner"``
    The object lies on a grid twice as fine in the simulated scanner, with its coloured noise and drifting background,
    goes through the whole preprocessing, and is reconstructed with the calibrated matrix.

``pyrecon evaluate mpi --tune`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.mpi import MPISystem, box_downsample, prepare_frames, prepare_system
from pyrecon.data.phantoms import retina_vessels, vessel_patches
from pyrecon.data.raw import Grid, MPICalibration
from pyrecon.experiments.search import Range, search
from pyrecon.experiments.table import Table
from pyrecon.models.mpi import ART, DEQ, L1ADMM, TVADMM, FactoredSystem, HybADMM, Reconstructor, Tikhonov
from pyrecon.models.mpi.scale import SIGNAL_RMS
from pyrecon.physics.mpi import Scanner

GRID = Grid((26, 13), (2e-3, 2e-3), (0.0, 0.0))
FINER = 2  # the object's grid in the scanner against that of the images

# Table I of DEQ-MPI (vessels 13 x 26, one system matrix throughout): mean and standard deviation over its test set of
# pSNR in dB and of SSIM in percent, at 15, 25 and 35 dB.
PUBLISHED: dict[str, dict[float, tuple[float, float, float, float]]] = {
    "l1-ADMM": {15: (18.9, 3.5, 16.4, 9.5), 25: (23.2, 2.2, 32.6, 14.0), 35: (28.9, 1.3, 58.6, 13.8)},
    "TV-ADMM": {15: (27.3, 6.1, 56.2, 20.0), 25: (31.2, 4.4, 71.9, 11.3), 35: (35.5, 3.0, 84.5, 6.5)},
    "Hyb-ADMM": {15: (28.7, 5.1, 63.9, 9.5), 25: (31.7, 3.6, 74.8, 7.5), 35: (35.9, 2.7, 85.6, 5.6)},
    "l2-ART": {15: (26.7, 4.3, 49.6, 7.8), 25: (28.5, 5.7, 64.3, 8.8), 35: (31.9, 4.3, 76.1, 4.4)},
    "DEQ-MPI": {15: (32.1, 4.5, 75.2, 9.9), 25: (34.8, 3.5, 81.5, 8.3), 35: (37.7, 2.6, 88.1, 5.7)},
}

# What the search may change; everything else stays as published.
_BALL = {"mu": Range(1.0, 10_000.0), "epsilon": Range(0.9, 1.1, log=False), "iterations": Range(10, 500, integer=True)}
RANGES: dict[type[Any], dict[str, Range]] = {
    L1ADMM: _BALL,
    TVADMM: _BALL,
    HybADMM: {**_BALL, "alpha": Range(0.02, 0.98, log=False)},
    ART: {"weight": Range(1e-4, 100.0), "sweeps": Range(1, 50, integer=True)},
    Tikhonov: {"weight": Range(1e-5, 100.0)},
}


@dataclass(frozen=True)
class Images:
    """Vessel images for one study, on the fine grid ``(B, FINER * H, FINER * W)``: validation and test apart."""

    validation: Tensor
    test: Tensor
    source: str


@dataclass(frozen=True)
class Data:
    """Images ``(B, H, W)``, their data, the norm of the noise, and the data's coordinates."""

    images: Tensor
    y: Tensor
    noise: Tensor
    coordinates: Tensor


@dataclass(frozen=True)
class Problem:
    """One noise level in the scale of the published settings: a matrix, and data of both image sets."""

    system: FactoredSystem
    validation: Data
    test: Data
    facts: str


def evaluate_mpi(
    images: Images,
    *,
    calibration: MPICalibration | None = None,
    gradient: float = 0.5,
    snr_db: Sequence[float] = (15.0, 25.0, 35.0),
    data: Literal["measured", "scanner"] = "measured",
    tune: bool = False,
    weights: Sequence[str] = (),
    budget: int = 48,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> tuple[Table, dict[str, Tensor]]:
    """Reconstruct the test images with every classical method, and with trained weights, and compare.

    Parameters
    ----------
    images
        From :func:`vessel_images`, or your own.
    calibration
        A measured system matrix on a two-dimensional grid; default a simulated calibration on 26 x 13 voxels.
    gradient
        Selection field of the simulated scanner, T/m.
    snr_db
        SNR of the data (DEQ-MPI Eq. 36).
    data
        How data are made, see the module. ``"scanner"`` needs the simulated calibration.
    tune
        Add rows with settings found on the validation images, ``budget`` evaluations for every method.
    weights
        Add a row of DEQ-MPI for each: names or files, as for :class:`pyrecon.models.mpi.DEQ`.
    progress
        Called with what is being done, how many steps are done, and how many there are.

    Returns
    -------
    tuple[Table, dict[str, Tensor]]
        Rows per method and kind of settings: ``"paper"`` and ``"released"`` with the published numbers,
        ``"default"`` as :class:`Reconstructor` runs the method without any settings, ``"tuned"``. And the images of the
        last SNR, by method and kind, with ``"truth"``.
    """
    scanner = Scanner(gradient=gradient)
    if calibration is None:
        calibration = scanner.calibrate(GRID, seed=seed)
    elif data == "scanner":
        raise DataError("data: 'scanner' scans with the simulated scanner and so cannot take a measured system matrix")
    _check_images(images, calibration.grid)
    trained = {text: DEQ(text) for text in weights}
    table = Table(
        f"{'Classical and learned' if trained else 'Classical'} MPI reconstruction: {images.source}",
        [f"{snr:g} dB" for snr in snr_db],
        facts={
            "images": f"{len(images.test)} test, {len(images.validation)} validation, from {images.source}",
            "data": _WAYS[data],
        },
    )
    steps = budget + 1 if tune else 1
    done, total = 0, len(snr_db) * len(RANGES) * steps
    pictures: dict[str, Tensor] = {}
    for snr, column in zip(snr_db, table.columns, strict=True):
        if data == "measured":
            problem = measured_problem(prepare_system(calibration), images, snr, seed)
        else:
            problem = scanner_problem(scanner, calibration, images, snr, seed)
        table.facts[column] = problem.facts
        pictures = {"truth": problem.test.images}
        for kind in RANGES:

            def step(kind: Any = kind, column: str = column) -> None:
                nonlocal done
                progress(f"{kind.name} at {column}", done, total)
                done += 1

            step()
            chosen = {name: getattr(kind, name)(snr) for name in ("paper", "released") if hasattr(kind, name)}
            if tune:
                chosen["tuned"], edges = _tune(
                    chosen["paper"] if "paper" in chosen else kind(weight=1.0), problem, budget, seed, step
                )
                if edges:
                    table.notes.append(f"{kind.name} at {column}: {edges} ended at an end of the range searched.")
            results = {name: _solve(method, problem.system, problem.test) for name, method in chosen.items()}
            results["default"] = _by_default(kind(), problem)
            for name in ("paper", "released", "default", "tuned"):
                if name not in results:
                    continue
                row = table.row(kind.name, name)
                row.psnr[column] = metrics.psnr(results[name], problem.test.images).tolist()
                row.ssim[column] = metrics.ssim(results[name], problem.test.images).tolist()
                row.settings[column] = _varied(chosen[name]) if name in chosen else {}
                if snr in PUBLISHED.get(kind.name, {}) and name in ("paper", "tuned"):
                    row.published[column] = PUBLISHED[kind.name][snr]
                pictures[f"{kind.name}, {name}"] = results[name]
        for text, learned in trained.items():
            name = Path(text).stem
            found = _by_default(learned, problem)
            row = table.row(learned.name, name)
            row.psnr[column] = metrics.psnr(found, problem.test.images).tolist()
            row.ssim[column] = metrics.ssim(found, problem.test.images).tolist()
            if snr in PUBLISHED[learned.name]:
                row.published[column] = PUBLISHED[learned.name][snr]
            pictures[f"{learned.name}, {name}"] = found
    return table, pictures


# --- problems ----------------------------------------------------------------------------------------------------
def measured_problem(system: MPISystem, images: Images, snr_db: float, seed: int) -> Problem:
    """``y = A_meas x + n``, to be read with ``A_meas U D``; sigma = 0.41 * 10^(-SNR/20), one for the set."""
    coarse = {name: box_downsample(getattr(images, name), FINER) for name in ("validation", "test")}
    clean = {name: x.flatten(1) @ system.matrix.T for name, x in coarse.items()}
    gain = SIGNAL_RMS / float(clean["validation"].square().mean().sqrt())
    factored = FactoredSystem(gain * system.blurred().matrix, system.grid.shape)
    sigma = SIGNAL_RMS * 10 ** (-snr_db / 20)
    generator = torch.Generator().manual_seed(seed)
    sets = {}
    for name, signal in clean.items():
        y = gain * signal + sigma * torch.randn(signal.shape, generator=generator)
        sets[name] = _data(factored, coarse[name], y, y.new_full((len(y),), sigma * y.shape[1] ** 0.5))
    return Problem(factored, **sets, facts=_facts(factored, sets["test"], gain * clean["test"]))


def scanner_problem(scanner: Scanner, calibration: MPICalibration, images: Images, snr_db: float, seed: int) -> Problem:
    """Objects on the fine grid in the scanner, whole preprocessing; noise scaled for the SNR of the whitened rows."""
    grid = calibration.grid
    fine = Grid(tuple(FINER * n for n in grid.shape), tuple(d / FINER for d in grid.spacing), grid.center)
    objects = torch.cat([images.validation, images.test])

    def scan(noise: float) -> tuple[MPISystem, Tensor, Tensor]:
        measured = scanner.measure(objects, fine, noise=noise, background_frames=60, seed=seed + 1)
        system = prepare_system(calibration, measured)
        frames = prepare_frames(system, measured)
        assert frames.noise_norm is not None
        return system, frames.y, frames.noise_norm

    _, y, noise = scan(1.0)
    snr_of_one = 10 * float(torch.log10((y.square().sum() - noise.square().sum()) / noise.square().sum()))
    system, y, noise = scan(10 ** ((snr_of_one - snr_db) / 20))
    gain = SIGNAL_RMS / float(((y.square().sum() - noise.square().sum()) / y.numel()).sqrt())
    factored = FactoredSystem(gain * system.matrix, grid.shape)
    split = len(images.validation)
    truth = box_downsample(objects, FINER)
    validation = _data(factored, truth[:split], gain * y[:split], gain * noise[:split])
    test = _data(factored, truth[split:], gain * y[split:], gain * noise[split:])
    return Problem(factored, validation, test, _facts(factored, test, None))


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


# --- methods -----------------------------------------------------------------------------------------------------
def _solve(method: Any, system: FactoredSystem, data: Data) -> Tensor:
    solution, _ = method.solve(system, data.y, data.noise, coordinates=data.coordinates)
    return torch.as_tensor(solution.value.view_as(data.images))


def _by_default(method: Any, problem: Problem) -> Tensor:
    """What a user gets who sets nothing."""
    reconstruct = Reconstructor(problem.system.matrix, method, shape=problem.system.shape)
    images, _ = reconstruct(problem.test.y, noise_std=problem.test.noise / problem.test.y.shape[1] ** 0.5)
    return images


def _tune(known: Any, problem: Problem, budget: int, seed: int, step: Callable[[], None]) -> tuple[Any, str]:
    """The method with the highest mean pSNR on the validation set, and which of its settings ended at an end."""
    ranges = RANGES[type(known)]

    def score(settings: dict[str, Any]) -> float:
        images = _solve(replace(known, **settings), problem.system, problem.validation)
        return float(metrics.psnr(images, problem.validation.images).mean())

    first = {name: getattr(known, name) for name in ranges}
    found = search(ranges, score, budget=budget, first=first, seed=seed, progress=step)
    return replace(known, **found.settings), ", ".join(found.at_edge)


def _varied(method: Any) -> dict[str, Any]:
    return {name: getattr(method, name) for name in RANGES[type(method)]}


# --- images ------------------------------------------------------------------------------------------------------
_WAYS = {
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
    tensors = []
    for stack in stacks:
        images = torch.from_numpy(stack)
        # The peak that was drawn is that of the image on the system matrix's grid.
        coarse = box_downsample(images, FINER).amax(dim=(1, 2), keepdim=True)
        tensors.append(images * images.amax(dim=(1, 2), keepdim=True) / coarse)
    return Images(tensors[0], tensors[1], source)


def _patches(
    path: str | Path, counts: tuple[int, int], shape: tuple[int, int], seed: int, *, level: float, filled: float
) -> list[NDArray[np.float32]]:
    """Patches from the two ends of a volume, a tenth of it between them unused."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise MissingDependency("nibabel", "io", "reading NIfTI volumes") from error
    try:
        volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    except (OSError, ImageFileError) as error:
        raise DataError(f"{path}: cannot be read as NIfTI: {error}") from error
    if volume.ndim != 3:
        raise DataError(f"{path}: has {volume.ndim} axes, expected a volume of three")
    cut = round(0.45 * len(volume))
    slabs = (volume[:cut], volume[len(volume) - cut :])
    return [
        vessel_patches(slab, count, shape=shape, factor=1, level=level, filled=filled, seed=seed + k)
        for k, (slab, count) in enumerate(zip(slabs, counts, strict=True))
    ]


def _check_images(images: Images, grid: Grid) -> None:
    expected = tuple(FINER * n for n in grid.shape)
    for name in ("validation", "test"):
        stack = getattr(images, name)
        if stack.dim() != 3 or tuple(stack.shape[1:]) != expected or len(stack) == 0:
            raise DataError(
                f"images: {name} has shape {tuple(stack.shape)}, expected (B, {', '.join(map(str, expected))}), "
                f"{FINER} times the grid of the system matrix"
            )


# --- figure ------------------------------------------------------------------------------------------------------
def draw(pictures: dict[str, Tensor], kind: str, count: int = 4) -> Any:
    """A figure: the truth, and every method's images with ``kind`` of settings or with trained weights."""
    from pyrecon import plotting

    truth = pictures["truth"][:count].numpy()
    rows = [[plotting.Panel(image, "truth", window=(0, float(image.max()))) for image in truth]]
    for name, images in pictures.items():
        if not (name.endswith(f", {kind}") or name.startswith(DEQ.name)):
            continue
        quality = metrics.psnr(images[:count], pictures["truth"][:count])
        rows.append(
            [
                plotting.Panel(image, name.partition(",")[0], f"{q:.1f} dB", window=(0, float(reference.max())))
                for image, reference, q in zip(images[:count].numpy(), truth, quality, strict=True)
            ]
        )
    # Methods side by side, images below each other.
    return plotting.figure(list(zip(*rows, strict=True)), spacing=[(2e-3, 2e-3)] * len(truth), panel_size=1.1)
