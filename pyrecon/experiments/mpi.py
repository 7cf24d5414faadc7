"""MPI methods side by side: settings as published, settings found on a validation set, and trained weights.

Every row of the table sees the same system matrix, images and noise (:mod:`pyrecon.experiments.mpi_data` makes them),
and every method whose settings are searched has the same budget. ``pyrecon evaluate mpi --tune`` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon.data.mpi import GRID
from pyrecon.data.raw import MPICalibration
from pyrecon.experiments.mpi_data import (
    WAYS,
    Data,
    Images,
    Scenario,
    check_images,
    generated_images,
    measured_scenario,
    measured_system,
    phantom_images,
    scanner_scenario,
    vessel_images,
)
from pyrecon.experiments.search import Range, search
from pyrecon.experiments.table import Table
from pyrecon.models import DEQMPI
from pyrecon.models.mpi import (
    ART,
    L1ADMM,
    LEARNED,
    TVADMM,
    UNTRAINED,
    DeepImagePrior,
    FactoredSystem,
    HybADMM,
    PnP,
    Reconstructor,
    Tikhonov,
)
from pyrecon.models.mpi.system import rows_of
from pyrecon.models.weights import find_weights
from pyrecon.nn import LearnedConsistency, RowLayout
from pyrecon.physics.mpi import Scanner

__all__ = [
    "GRID",
    "RANGES",
    "Images",
    "Run",
    "Scenario",
    "draw",
    "evaluate_mpi",
    "generated_images",
    "measured_scenario",
    "measured_system",
    "phantom_images",
    "scanner_scenario",
    "vessel_images",
]

# What the search may change; everything else stays as published. DIP's iterations end at those it is given.
_KAPPA = Range(0.3, 2.0)
_BALL = {"mu": Range(1.0, 10_000.0), "kappa": _KAPPA, "iterations": Range(10, 500, integer=True)}
RANGES: dict[type[Any], dict[str, Range]] = {
    L1ADMM: _BALL,
    TVADMM: _BALL,
    HybADMM: {**_BALL, "alpha": Range(0.02, 0.98, log=False)},
    ART: {"weight": Range(1e-4, 100.0), "sweeps": Range(1, 50, integer=True)},
    Tikhonov: {"weight": Range(1e-5, 100.0)},
    PnP: {
        "strength": Range(0.05, 20.0),
        "kappa": _KAPPA,
        "iterations": Range(10, 500, integer=True),
        "penalty": Range(0.1, 1000.0),
    },
    DeepImagePrior: {"iterations": Range(20, DeepImagePrior.iterations, integer=True), "rate": Range(1e-4, 1e-2)},
}
CLASSICAL: tuple[type[Any], ...] = (L1ADMM, TVADMM, HybADMM, ART, Tikhonov)


def evaluate_mpi(
    images: Images,
    *,
    calibration: MPICalibration | None = None,
    selection_field: float = 0.5,
    snr_db: Sequence[float] = (15.0, 25.0, 35.0),
    data: Literal["measured", "scanner"] = "measured",
    tune: bool = False,
    weights: Sequence[str] | Mapping[str, str] = (),
    dip: int = 0,
    upsampled: int = 1,
    budget: int = 48,
    seed: int = 0,
    published: Mapping[str, Mapping[float, tuple[float, float, float, float]]] | None = None,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> tuple[Table, dict[str, Tensor]]:
    """Reconstruct the test images with every classical method, and with trained weights, and compare.

    Parameters
    ----------
    images
        From :func:`vessel_images`, :func:`generated_images` or :func:`phantom_images`, or your own.
    calibration
        A measured system matrix on a two-dimensional grid; default a simulated calibration on 26 x 13 voxels.
    selection_field
        Of the simulated scanner, T/m.
    snr_db
        SNR of the data (DEQ-MPI Eq. 36).
    data
        How data are made, see :mod:`pyrecon.experiments.mpi_data`. ``"scanner"`` needs the simulated calibration.
    tune
        Add rows with settings found on the validation images, ``budget`` evaluations for every method that has some.
    weights
        Add a row for each: names or files, whose role says of which method: DEQ-MPI, PP-MPI, the unrolled or the
        end-to-end model. With a learned consistency among them, all methods get the rows of the system matrix that it
        was trained on, whatever their SNR: so it can be tested with the matrix of another selection field. A mapping
        says what the rows are called.
    dip
        Add the deep image prior with at most so many iterations (20,000 as published); 0 leaves it out. With fewer its
        settings are not searched: 48 fits of 32 images with 1000 iterations take an hour on two cores.
    upsampled
        Refine the system matrix's grid by this factor (bicubically, as DEQ-MPI does for 26 x 52 voxels); the images
        must be as much finer. For ``"measured"`` data.
    published
        Figures of a paper for such images on such a grid, by method and SNR: mean and standard deviation of pSNR in dB
        and of SSIM in percent.
    progress
        Called with what is being done, how many steps are done, and how many there are.

    Returns
    -------
    tuple[Table, dict[str, Tensor]]
        Rows per method and kind of settings: ``"paper"`` and ``"released"`` with the published numbers,
        ``"default"`` as :class:`Reconstructor` runs the method without any settings, ``"tuned"``; for trained weights
        their name. Times per image, all test images at once and one alone. And the images of the last SNR, by method
        and kind, with ``"truth"``.
    """
    figures = published or {}
    if upsampled != 1 and data == "scanner":
        raise DataError("upsampled: is for 'measured' data")
    scanner = Scanner(gradient=selection_field)
    if calibration is None:
        calibration = scanner.calibrate(GRID, seed=seed)
    elif data == "scanner":
        raise DataError("data: 'scanner' scans with the simulated scanner and so cannot take a measured system matrix")
    check_images(images, calibration.grid, upsampled)
    trained, rows = _trained(weights, calibration)
    contenders = [_classical(kind) for kind in CLASSICAL] + trained + ([_dip(dip)] if dip else [])
    table = Table(
        f"{'Classical and learned' if trained else 'Classical'} MPI reconstruction: {images.source}",
        [f"{snr:g} dB" for snr in snr_db],
        facts={
            "images": f"{len(images.test)} test, {len(images.validation)} validation, from {images.source}",
            "data": WAYS[data],
        },
    )
    if rows is not None:
        table.facts["rows"] = "those that the learned consistency was trained on, for all methods"
    if 0 < dip < DeepImagePrior.iterations:
        table.notes.append(f"DIP: at most {dip} iterations, where {DeepImagePrior.iterations} are published.")
    done, total = 0, len(snr_db) * sum(budget + 1 if tune and c.search is not None else 1 for c in contenders)
    pictures: dict[str, Tensor] = {}
    for snr, column in zip(snr_db, table.columns, strict=True):
        if data == "measured":
            system = measured_system(calibration, rows)
            problem = measured_scenario(system.upsampled(upsampled) if upsampled > 1 else system, images, snr, seed)
        else:
            problem = scanner_scenario(scanner, calibration, images, snr, seed, rows=rows)
        table.facts[column] = problem.facts
        pictures = {"truth": problem.test.images}
        for contender in contenders:

            def step(name: str = contender.default.name, column: str = column) -> None:
                nonlocal done
                progress(f"{name} at {column}", done, total)
                done += 1

            step()
            runs = {kind: Run(known(snr), problem, given=True) for kind, known in contender.known.items()}
            runs[contender.label] = Run(contender.default, problem, given=False)
            if tune and contender.search is not None:
                found, edges = _tune(contender.search(snr), contender.ranges, problem, budget, seed, step)
                runs[contender.tuned] = Run(found, problem, given=True)
                if edges:
                    name = found.name
                    table.notes.append(f"{name} at {column}: {edges} ended at an end of the range searched.")
            for kind, run in runs.items():
                row = table.row(run.method.name, kind)
                results, together = run.timed()
                row.milliseconds[column] = together, run.milliseconds(1)
                row.psnr[column] = metrics.psnr(results, problem.test.images).tolist()
                row.ssim[column] = metrics.ssim(results, problem.test.images).tolist()
                if kind != "default":
                    row.settings[column] = {name: getattr(run.method, name) for name in contender.ranges}
                if kind not in ("default", "released") and snr in figures.get(row.method, {}):
                    row.published[column] = figures[row.method][snr]
                pictures[f"{row.method}, {kind}"] = results
    return table, pictures


# --- contenders --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Contender:
    """A method in the table.

    ``default`` is what a user gets who sets nothing, in a row of the kind ``label``; ``known`` are settings for an SNR,
    by kind; ``search`` is where a search for an SNR begins, and ``tuned`` the kind of what it finds.
    """

    default: Any
    label: str = "default"
    known: dict[str, Callable[[float], Any]] = field(default_factory=dict)
    search: Callable[[float], Any] | None = None
    tuned: str = "tuned"
    ranges: dict[str, Range] = field(default_factory=dict)


def _classical(kind: Any) -> _Contender:
    known = {name: getattr(kind, name) for name in ("paper", "released") if hasattr(kind, name)}
    return _Contender(kind(), known=known, search=known.get("paper", lambda snr: kind(weight=1.0)), ranges=RANGES[kind])


def _dip(iterations: int) -> _Contender:
    method = DeepImagePrior(iterations=iterations)
    ranges = dict(RANGES[DeepImagePrior])
    ranges["iterations"] = replace(ranges["iterations"], low=max(1, min(20, iterations // 2)), high=iterations)
    if iterations == DeepImagePrior.iterations:
        return _Contender(method, "paper", search=_always(method), ranges=ranges)
    return _Contender(method, f"{iterations} iterations", ranges=ranges)


def _always(method: Any) -> Callable[[float], Any]:
    return lambda snr: method


def _trained(
    weights: Sequence[str] | Mapping[str, str], calibration: MPICalibration
) -> tuple[list[_Contender], NDArray[np.int64] | None]:
    """The methods of weights, by their roles, and the rows that their learned consistencies belong to."""
    kinds: dict[str | None, Any] = {kind.role: kind for kind in LEARNED.values()}
    contenders, layouts = list[_Contender](), dict[str, RowLayout]()
    for text in weights:
        path = find_weights(text)
        model = DEQMPI.load(path)
        # Training calls every file weights.safetensors, in a folder that has a name.
        label = path.absolute().parent.name if path.stem == "weights" else path.stem
        if isinstance(weights, Mapping):
            label = weights[text]
        elif any(label == known.label for known in contenders):
            label = str(path)
        if model.card is None:
            raise DataError(f"{path}: does not say what it was trained for")
        method = kinds[model.card.role](text)
        if isinstance(method, PnP):
            contenders.append(
                _Contender(method, label, search=_always(method), tuned=f"{label}, tuned", ranges=RANGES[PnP])
            )
            continue
        contenders.append(_Contender(method, label))
        if isinstance(model.consistency, LearnedConsistency):
            layouts[model.consistency.layout.digest] = model.consistency.layout
    if len(layouts) > 1:
        raise DataError(f"weights: have learned consistencies for {len(layouts)} different sets of rows; compare one")
    return contenders, rows_of(next(iter(layouts.values())), calibration) if layouts else None


class Run:
    """A method with the test data of a problem, ready: ``run(count)`` reconstructs the first ``count``, or all.

    Without settings that were ``given`` for the data's own scale, the method is used as a user does, by
    :class:`~pyrecon.models.mpi.Reconstructor`.
    """

    def __init__(self, method: Any, problem: Scenario, *, given: bool = False) -> None:
        self.method, self.problem = method, problem
        self._solver = method.prepare(problem.system) if given else Reconstructor(problem.prepared, method)

    def __call__(self, count: int | None = None) -> Tensor:
        """Images ``(count, H, W)``."""
        test = self.problem.test
        y, noise = test.y[:count], test.noise[:count]
        if isinstance(self._solver, Reconstructor):
            return self._solver(y, noise_std=noise / y.shape[1] ** 0.5)[0]
        value: Tensor = self._solver.solve(self.problem.system, y, noise)[0].value
        return value.view_as(test.images[:count])

    def timed(self, count: int | None = None) -> tuple[Tensor, float]:
        """Images, and milliseconds per image when ``count`` are reconstructed together: the best of a few runs."""
        shortest, spent = float("inf"), 0.0
        for _ in range(5):
            start = time.perf_counter()
            images = self(count)
            seconds = time.perf_counter() - start
            shortest, spent = min(shortest, seconds), spent + seconds
            if spent > 1:
                break
        return images, 1e3 * shortest / len(images)

    def milliseconds(self, count: int | None = None) -> float:
        """The time alone."""
        return self.timed(count)[1]

    def quality(self) -> float:
        """Mean pSNR over all test images."""
        return float(metrics.psnr(self(), self.problem.test.images).mean())


# --- the search --------------------------------------------------------------------------------------------------
def _solve(method: Any, system: FactoredSystem, data: Data) -> Tensor:
    solution, _ = method.solve(system, data.y, data.noise, coordinates=data.coordinates)
    value: Tensor = solution.value
    return value.view_as(data.images)


def _tune(
    known: Any, ranges: dict[str, Range], problem: Scenario, budget: int, seed: int, step: Callable[[], None]
) -> tuple[Any, str]:
    """The method with the highest mean pSNR on the validation set, and which of its settings ended at an end."""

    def score(settings: dict[str, Any]) -> float:
        images = _solve(replace(known, **settings), problem.system, problem.validation)
        return float(metrics.psnr(images, problem.validation.images).mean())

    first = {name: getattr(known, name) for name in ranges}
    found = search(ranges, score, budget=budget, first=first, seed=seed, progress=step)
    return replace(known, **found.settings), ", ".join(found.at_edge)


# --- figure ------------------------------------------------------------------------------------------------------
def draw(pictures: dict[str, Tensor], kind: str, count: int = 4) -> Any:
    """A figure: the truth, and every method's images with ``kind`` of settings or with trained weights."""
    from pyrecon import plotting

    networks = tuple(f"{method.name}, " for method in (LEARNED | UNTRAINED).values())
    truth = pictures["truth"][:count].numpy()
    rows = [[plotting.Panel(image, "truth", window=(0, float(image.max()))) for image in truth]]
    for name, images in pictures.items():
        if not (name.endswith(f", {kind}") or name.startswith(networks)):
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
