"""The noise of the calibration, and scanners that no weights have seen: what every method makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon.data._matrix_noise import shrunk
from pyrecon.data.mpi import (
    FINER,
    GRID,
    MatrixError,
    MPISystem,
    blurred_rows,
    box_downsample,
    prepare_frames,
    prepare_system,
)
from pyrecon.data.raw import MPICalibration, MPIScan
from pyrecon.experiments.demo import mpi_scene
from pyrecon.experiments.deq_mpi.study import SNRS, Study
from pyrecon.experiments.mpi_data import generated_images, vessel_images
from pyrecon.experiments.table import Listing
from pyrecon.models.deq_mpi import DEQMPI, new_card
from pyrecon.models.mpi import ART, DEQ, L1ADMM, TVADMM, EndToEnd, HybADMM, PnP, Reconstructor, Unrolled
from pyrecon.physics.mpi import UNSEEN, Scanner, drawn_calibration, training_seeds

_IMAGES = 16  # of each unseen scanner
_METHODS: tuple[Any, ...] = (L1ADMM(), TVADMM(), HybADMM(), ART(), PnP(), DEQ())
_RIVALS: tuple[Any, ...] = (Unrolled(), EndToEnd())  # trained as DEQ-MPI was, on as many images


@dataclass(frozen=True)
class Scene:
    """A scan of known images ``(B, H, W)``, the calibration that is to read it, and one of the same scanner without
    noise."""

    truth: Tensor
    scan: MPIScan
    calibration: MPICalibration
    exact: MPICalibration
    snr_threshold: float


def demo_scene() -> Scene:
    scene = mpi_scene()
    factor = scene.vessels.shape[1] // GRID.shape[0]
    truth = box_downsample(scene.vessels, factor)
    return Scene(truth, scene.scan, scene.calibration, _exact(scene.scanner), 5.0)


def unseen_scenes(snr_db: float, count: int = _IMAGES) -> Iterator[tuple[int, Scene]]:
    """Of every scanner of :data:`~pyrecon.physics.mpi.UNSEEN`, with its own calibration: crops of the retina."""
    images = vessel_images(test=count, validation=1).test
    for seed in UNSEEN:
        drawn = drawn_calibration(seed)
        # Of another seed than the calibration: with the same, scan and system matrix share their noise.
        scan = drawn.scanner.measure(images, GRID.finer(FINER), snr_db=snr_db, background_frames=20, seed=seed + 1)
        truth = box_downsample(images, FINER)
        yield seed, Scene(truth, scan, drawn.measured(), _exact(drawn.scanner), drawn.snr_threshold)


def _exact(scanner: Scanner) -> MPICalibration:
    return scanner.calibrate(GRID, noise=0.0)


# --- what is done about the calibration's noise ----------------------------------------------------------------------
def _measured(scene: Scene) -> MPISystem:
    return prepare_system(scene.calibration, scene.scan, snr_threshold=scene.snr_threshold, denoise=False)


def _ours(scene: Scene) -> MPISystem:
    return prepare_system(scene.calibration, scene.scan, snr_threshold=scene.snr_threshold)


def _noise_free(scene: Scene) -> MPISystem:
    system = prepare_system(scene.exact, scene.scan, rows=_measured(scene).rows, denoise=False)
    return replace(system, error=MatrixError.none(GRID.size))


def _shrunk(system: MPISystem) -> MPISystem:
    """Step 3 of :mod:`pyrecon.data._matrix_noise` alone, all noise taken to be white."""
    error = _of(system)
    m, n = system.matrix.shape
    u, s, vh = np.linalg.svd(system.matrix.double().numpy(), full_matrices=False)
    kept = error.std * np.sqrt(shrunk((s / error.std) ** 2, m, n))
    matrix = torch.from_numpy((u * kept) @ vh).float()
    return replace(system, matrix=matrix, error=replace(error, rank=int((kept > 0).sum())))


def _wiener(system: MPISystem) -> MPISystem:
    """Every row's image by the spectrum that all rows share, times the row's own energy, against white noise."""
    variance = _of(system).std ** 2
    images = system.matrix.double().numpy().reshape(-1, *system.grid.shape)
    values = scipy.fft.dctn(images, axes=(1, 2), norm="ortho")
    energies = np.maximum(np.square(values).mean(axis=(1, 2)) - variance, 0)[:, None, None]
    # In the spectrum rows count by what they say of it.
    weights = energies / (energies + variance)
    shared = np.maximum((weights * (np.square(values) - variance)).sum(axis=0), 0) / (weights * energies).sum()
    power = energies * shared
    filtered = scipy.fft.idctn(values * power / (power + variance), axes=(1, 2), norm="ortho")
    return replace(system, matrix=torch.from_numpy(filtered.reshape(len(images), -1)).float())


def _of(system: MPISystem) -> MatrixError:
    assert system.error is not None, "the noise of a simulated calibration is known"
    return system.error


_TREATMENTS: dict[str, Callable[[Scene], MPISystem]] = {
    "as measured": _measured,
    "Wiener filter of every row": lambda scene: _wiener(_measured(scene)),
    "singular values shrunk, noise taken for white": lambda scene: _shrunk(_measured(scene)),
    "both": lambda scene: _shrunk(_wiener(_measured(scene))),
    "as by default: shared noise known, frequencies, singular values": _ours,
    "without noise": _noise_free,
}


def calibration(study: Study) -> Listing:
    """Every method with the matrix as measured, and what was done about its noise: on the demo's scan, on others."""
    lines = []
    scenes = {"demo": [demo_scene()], "unseen": []}
    for place, (_, scene) in enumerate(unseen_scenes(25.0)):
        study.progress("scanning", place, len(UNSEEN))
        scenes["unseen"].append(scene)
    for where, group in scenes.items():
        for label, treat in _TREATMENTS.items():
            found = []
            for place, scene in enumerate(group):
                study.progress(f"{where}, {label}", place, len(group))
                system, exact = treat(scene), _noise_free(scene).matrix
                error = 20 * torch.log10((system.matrix - exact).norm() / exact.norm())
                found.append([float(error), *(_quality(system, scene, method) for method in _METHODS)])
            error, *qualities = np.mean(found, axis=0)
            lines.append([where, label, f"{error:.1f}" if np.isfinite(error) else "", *(f"{q:.1f}" for q in qualities)])
    heads = ["scan", "matrix", "its error, dB", *(method.name for method in _METHODS)]
    notes = [
        "pSNR in dB. demo: the scan of `pyrecon demo`, 30 dB, six images of the retina. unseen: mean over the eight "
        f"scanners and calibrations of `pyrecon.physics.mpi.UNSEEN`, {_IMAGES} images of the retina each, 25 dB. All "
        "methods as `Reconstructor` runs them without any settings, what is left of the calibration's noise counted.",
    ]
    return Listing("The noise of the calibration", heads, lines, notes)


def _quality(system: MPISystem, scene: Scene, method: Any) -> float:
    images, _ = Reconstructor(system, method)(prepare_frames(system, scene.scan))
    return float(metrics.psnr(images.clamp_min(0), scene.truth).mean())


# --- scanners that no weights have seen ------------------------------------------------------------------------------
def scanners(study: Study) -> Listing:
    """Every method on every unseen scanner; beside it the authors' released networks, where their file is given."""
    methods = {method.name: method for method in (*_METHODS, *_RIVALS)}
    ours = list(methods).index(DEQ.name)
    if study.released is not None:
        methods |= _released(study.released, study.folder)
    lines = []
    for snr in SNRS:
        found = []
        for place, (seed, scene) in enumerate(unseen_scenes(snr)):
            study.progress(f"unseen scanners at {snr:g} dB", place, len(UNSEEN))
            found.append([_quality(_ours(scene), scene, method) for method in methods.values()])
            lines.append([f"{snr:g} dB", f"{seed - UNSEEN[0] + 1}", *(f"{q:.1f}" for q in found[-1])])
        values = np.array(found)
        mean, apart = values.mean(axis=0), values - values[:, [ours]]
        lines.append([f"{snr:g} dB", "mean", *(f"{q:.1f}" for q in mean)])
        errors = apart.std(axis=0, ddof=1) / len(UNSEEN) ** 0.5
        differences = [f"{a - mean[ours]:+.1f} ± {b:.1f}" for a, b in zip(mean, errors, strict=True)]
        lines.append([f"{snr:g} dB", f"against {DEQ.name}", *differences])
        if study.released is not None:
            lines.append([f"{snr:g} dB", "authors' matrix", *_on_theirs(study.released, snr, methods)])
    heads = ["SNR", "scanner", *methods]
    notes = [
        f"pSNR in dB, {_IMAGES} images of the retina on a grid twice as fine. Scanners and calibrations are the eight "
        "of `pyrecon.physics.mpi.UNSEEN`, of which training takes none. All methods have the denoised matrix and the "
        "radius that counts its error, and no settings. Differences with the standard error of their mean.",
    ]
    if study.released is not None:
        notes.append(
            "released: the networks that the authors released for 35 dB, with the ball in place of the learned "
            "consistency, which belongs to their rows: 25 plain steps with c = 1 as released, and 25 steps of Anderson "
            "mixing with c = 25, as ours. authors' matrix: 5486 x 338, data made with it and read with A U D."
        )
    return Listing("Scanners that no weights have seen", heads, lines, notes)


def _released(path: Path, folder: Path) -> dict[str, DEQ]:
    """The authors' networks in files of ours."""
    methods = {}
    for label, memory, penalty in (("released", 0, 1.0), ("released, mixed", 5, 25.0)):
        model = DEQMPI(DEQMPI.from_released(path).rdn, memory=memory, penalty=penalty)
        model.card = new_card(35.0, (GRID.shape[0], GRID.shape[1]), (0.05, 1.2))
        file = folder / f"{label.replace(', ', '-')}.safetensors"
        model.save(file)
        methods[label] = DEQ(str(file))
    return methods


def _on_theirs(path: Path, snr_db: float, methods: dict[str, Any]) -> list[str]:
    """On the matrix of the authors' file, if it has one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            matrix = torch.from_numpy(archive["A"])
    except (KeyError, ValueError, OSError):
        return ["" for _ in methods]
    shape = (GRID.shape[0], GRID.shape[1])
    truth = box_downsample(vessel_images(test=_IMAGES, validation=1).test, FINER)
    clean = truth.flatten(1) @ matrix.T
    sigma = 10 ** (-snr_db / 20) * float(clean.square().mean().sqrt())
    y = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    read = blurred_rows(matrix, shape)
    found = (Reconstructor(read, method, shape=shape)(y, noise_std=sigma)[0] for method in methods.values())
    return [f"{float(metrics.psnr(images.clamp_min(0), truth).mean()):.1f}" for images in found]


# --- the radius, the grid --------------------------------------------------------------------------------------------
_KAPPAS = (0.5, 0.8, 1.2, 2.0, 3.0)
_TUNED = 6  # scanners


def kappa(study: Study) -> Listing:
    """The radius of every method that has one, on scanners of training and generated vessels."""
    images = generated_images(test=8, validation=1, seed=study.seed).test
    balls = [method for method in _METHODS if hasattr(method, "kappa")]
    lines = []
    for snr in SNRS:
        scenes: list[Scene] = []
        for seed in itertools.islice(training_seeds(study.seed), _TUNED):
            study.progress(f"scanning at {snr:g} dB", len(scenes), _TUNED)
            drawn = drawn_calibration(seed)
            scan = drawn.scanner.measure(images, GRID.finer(FINER), snr_db=snr, background_frames=20, seed=1)
            calibration = drawn.measured()
            truth = box_downsample(images, FINER)
            scenes.append(
                Scene(truth, scan, calibration, calibration, drawn.snr_threshold)
            )  # nobody asks for the exact
        systems = [_ours(scene) for scene in scenes]
        for method in balls:
            found = [
                np.mean(
                    [_quality(s, scene, replace(method, kappa=k)) for s, scene in zip(systems, scenes, strict=True)]
                )
                for k in _KAPPAS
            ]
            lines.append([f"{snr:g} dB", method.name, *(f"{q:.2f}" for q in found)])
    notes = [
        f"pSNR in dB, mean over the first {_TUNED} scanners that training draws, 8 generated images each. The radius "
        "is kappa times the noise that is expected in the range of the matrix, of the data and of the calibration."
    ]
    return Listing("The radius", ["SNR", "method", *(f"kappa {k:g}" for k in _KAPPAS)], lines, notes)


def finer(study: Study) -> Listing:
    """A calibration on 26 x 13 positions, read on 52 x 26 voxels, beside one on 52 x 26 positions."""
    images = vessel_images(test=_IMAGES, validation=1, shape=(FINER * GRID.shape[0], FINER * GRID.shape[1])).test
    grid, scanner = GRID.finer(FINER), Scanner()
    scan = scanner.measure(images, grid.finer(FINER), snr_db=30.0, background_frames=20, seed=1)
    truth = box_downsample(images, FINER)
    coarse, fine = scanner.calibrate(GRID), scanner.calibrate(grid, sample_size=(1e-3, 1e-3, 2e-3))
    exact = scanner.calibrate(grid, sample_size=(1e-3, 1e-3, 2e-3), noise=0.0)
    scene = Scene(truth, scan, coarse, exact, 5.0)
    rows = _measured(scene).rows
    # A sample of a quarter of the volume gives a quarter of the signal, as a voxel does.
    best = prepare_system(exact, scan, rows=rows, denoise=False)
    systems = {
        "26 x 13 positions as measured, bicubic": _measured(scene).upsampled(FINER),
        "26 x 13 positions, noise taken out, bicubic": _ours(scene).upsampled(FINER),
        "52 x 26 positions as measured": prepare_system(fine, scan, rows=rows, denoise=False),
        "52 x 26 positions, noise taken out": prepare_system(fine, scan, rows=rows),
        "52 x 26 positions without noise": replace(best, error=MatrixError.none(grid.size)),
    }
    lines: list[list[str]] = []
    for label, system in systems.items():
        study.progress(label, len(lines), len(systems))
        error = 20 * torch.log10((system.matrix - best.matrix).norm() / best.matrix.norm())
        found = [_quality(system, scene, method) for method in _METHODS]
        lines.append([label, f"{float(error):.1f}" if torch.isfinite(error) else "", *(f"{q:.1f}" for q in found)])
    notes = [
        f"pSNR in dB on 52 x 26 voxels, {_IMAGES} images of the retina on a grid of 104 x 52, 30 dB. The sample of the "
        "finer calibration has a quarter of the volume, so a quarter of the signal in the same noise."
    ]
    heads = ["calibration", "its error, dB", *(method.name for method in _METHODS)]
    return Listing("A calibration read on a finer grid", heads, lines, notes)


EXPERIMENTS: dict[str, Callable[[Study], Listing]] = {
    "calibration": calibration,
    "scanners": scanners,
    "kappa": kappa,
    "finer": finer,
}
