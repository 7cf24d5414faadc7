"""What DEQ-MPI's parts are worth: the same training without one of them, with three seeds; and another session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

import pyrecon.experiments.deq_mpi.published as published
from pyrecon import metrics
from pyrecon.data.mpi import GRID
from pyrecon.experiments.deq_mpi.study import LEVELS, SNRS, Recipe, Study, penalty
from pyrecon.experiments.mpi import Run, Scenario, measured_scenario, measured_system
from pyrecon.experiments.table import Listing
from pyrecon.models import DEQMPI
from pyrecon.models.deq_mpi import Role
from pyrecon.models.mpi import DEQ, HybADMM, Unrolled
from pyrecon.models.mpi.system import compressed, row_gain, rows_of
from pyrecon.nn import LearnedConsistency
from pyrecon.physics.mpi import Particles, Scanner

SEEDS = (0, 1, 2)
_KAPPAS = (1.4, 1.2, 1.0, 0.9)
# All with the rows of the first, so that learned consistency can read them.
_SAME_ROWS = {
    "of training": Scanner(),
    "0.4 T/m": Scanner(gradient=0.4),
    "0.6 T/m": Scanner(gradient=0.6),
    "cores of 22 nm": Scanner(particles=Particles(core_diameter=22e-9, size_spread=0.1)),
    "slower tracer, 5 us": Scanner(particles=Particles(relaxation_time=5e-6, size_spread=0.1)),
}
_LONG = 200  # steps by which a model has shown whether its images stay


@dataclass(frozen=True)
class Ablation:
    """Variants of one training, trained and tested at one SNR: a row's name, and that of its training in
    :data:`VARIANTS`; ``published`` has pSNR in dB of some rows."""

    title: str
    snr_db: float
    rows: Mapping[str, str]
    published: Mapping[str, float] = field(default_factory=dict)


def _variants() -> dict[str, Recipe]:
    """Trainings that begin with the shipped denoiser, or with nothing. At quick scale with a fifth of the usual steps:
    33 runs within an hour and a half on one core."""

    def recipe(snr_db: float, quick: dict[str, Any], *, without: tuple[str, ...] = (), **changes: Any) -> Recipe:
        role: Role = "unrolled" if changes.get("gradient") == "unrolled" else "equilibrium"
        common = {"snr_db": snr_db, "penalty": penalty(snr_db)}
        initial = None if "denoiser" in without else "denoiser"
        schedule = {"pool": 3000, "equilibrium": quick, "projection": {"steps": 300, "halve": 60}}
        return Recipe(role, common | changes, initial=initial, without=without, quick=schedule)

    steps = {"steps": 120, "halve": 30}
    variants = {
        "implicit": recipe(25.0, steps),
        "jacobian-free": recipe(25.0, steps, gradient="jacobian-free"),
        "unrolled": recipe(25.0, steps, gradient="unrolled"),
        "learned": recipe(25.0, steps, consistency="learned"),
        "exact": recipe(25.0, steps, consistency="none"),
    }
    fewer = {"steps": 60, "batch": 8, "halve": 15}
    published_way: dict[str, Any] = {"consistency": "learned", "consistency_start": "random"}
    return variants | {
        "start-pretrained": recipe(35.0, fewer, **published_way),
        "start-random-denoiser": recipe(35.0, fewer, without=("denoiser",), **published_way),
        "start-random-consistency": recipe(35.0, fewer, without=("projection",), **published_way),
        "start-random": recipe(35.0, fewer, without=("denoiser", "projection"), **published_way),
        "start-noise-free": recipe(35.0, fewer, projection_noise=(0.0, 0.0), **published_way),
        "start-projection": recipe(35.0, fewer, consistency="learned"),
    }


VARIANTS = _variants()
GRADIENTS = Ablation(
    "how gradients pass the equilibrium",
    25.0,
    {"implicit": "implicit", "Jacobian-free": "jacobian-free", "unrolled, 5 steps": "unrolled"},
)
CONSISTENCY = Ablation(
    "learned consistency, a fixed projection, the data as they are",
    25.0,
    {"learned": "learned", "l2-ball": "implicit", "z0 = y": "exact"},
)
INITIALISATION = Ablation(
    "what the two networks begin with",
    35.0,
    {
        "both pre-trained": "start-pretrained",
        "denoiser random": "start-random-denoiser",
        "consistency random": "start-random-consistency",
        "both random": "start-random",
        "consistency on noise-free data": "start-noise-free",
        "consistency begins as the projection": "start-projection",
    },
    published.INITIALISATION,
)


def ablation(of: Ablation) -> Callable[[Study], Listing]:
    """The table of an ablation."""

    def table(study: Study) -> Listing:
        images = study.test_images()
        problem = measured_scenario(study.system(), images, of.snr_db, study.seed)
        lines = []
        for label, name in of.rows.items():
            own, long = np.array([_qualities(study, problem, name, seed) for seed in SEEDS]).T
            theirs = f"{of.published[label]}" if label in of.published else ""
            lines.append([label, _spread(own), ", ".join(f"{q:.1f}" for q in own), _spread(long), theirs])
        heads = ["variant", "pSNR, dB", "each seed", f"after {_LONG} iterations", "published"]
        notes = [
            f"Trained and tested at {of.snr_db:g} dB; mean ± standard deviation over {len(SEEDS)} seeds of training "
            f"(images, noise, random weights) of the mean over {len(images.test)} test images, {images.source}.",
            *_schedules(study, of),
        ]
        return Listing(f"Ablation: {of.title}", heads, lines, notes)

    return table


def sessions(study: Study) -> Listing:
    """Another session: the scanner has drifted and was calibrated anew, as in section V-C; and was not."""
    images = study.test_images()
    old = study.calibration()
    consistency = DEQMPI.from_pretrained(study.weights("deq-mpi-learned-35dB")).consistency
    assert isinstance(consistency, LearnedConsistency)
    rows = rows_of(consistency.layout, old)
    first = measured_system(old, rows)
    lines = []
    for snr in SNRS:
        methods = {
            "Hyb-ADMM": (HybADMM.paper(snr), True),
            "DEQ-MPI, l2-ball": (DEQ(study.weights(f"deq-mpi-{snr:g}dB")), False),
            "DEQ-MPI, learned consistency": (DEQ(study.weights(f"deq-mpi-learned-{snr:g}dB")), False),
        }
        same = {
            name: Run(m, measured_scenario(first, images, snr, study.seed), given=g) for name, (m, g) in methods.items()
        }
        qualities: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for seed in SEEDS:
            study.progress(f"session {seed + 1} at {snr:g} dB", seed, len(SEEDS))
            new = measured_system(Scanner().drifted(1 + seed).calibrate(GRID, seed=1 + seed), rows)
            calibrated = measured_scenario(new, images, snr, study.seed)
            outdated = measured_scenario(new, images, snr, study.seed, read_with=first)
            for name, (method, given) in methods.items():
                pair = [Run(method, problem, given=given).quality() for problem in (calibrated, outdated)]
                qualities[name].append((pair[0], pair[1]))
        for name, values in qualities.items():
            again, not_again = np.array(values).T
            lines.append([f"{snr:g} dB", name, f"{same[name].quality():.1f}", _spread(again), _spread(not_again)])
    heads = ["SNR", "method", "session of training", "other sessions, calibrated anew", "other sessions, old matrix"]
    notes = [
        f"pSNR in dB, mean over {len(images.test)} test images, {images.source}; mean ± standard deviation over "
        f"{len(SEEDS)} other sessions (`Scanner.drifted`). Rows of the first session for all; Hyb-ADMM with published "
        "settings."
    ]
    return Listing("Another session, another state of the scanner", heads, lines, notes)


def learned(study: Study) -> Listing:
    """What learned consistency has learned: how closely it follows the data, beside balls of several radii; on the
    scanner of its training and on others with the same rows."""
    images = study.test_images()
    calibrations = {where: scanner.calibrate(GRID, seed=0) for where, scanner in _SAME_ROWS.items()}
    labels = [*(f"ball, kappa {kappa:g}" for kappa in _KAPPAS), "learned"]
    lines = []
    for snr in SNRS:
        weights = study.weights(f"deq-mpi-learned-{snr:g}dB")
        network = DEQMPI.from_pretrained(weights).consistency
        assert isinstance(network, LearnedConsistency)
        rows = rows_of(network.layout, calibrations["of training"])
        ball = DEQMPI.from_pretrained(study.weights(f"deq-mpi-{snr:g}dB"))
        for done, (where, calibration) in enumerate(calibrations.items()):
            study.progress(f"learned consistency at {snr:g} dB", done, len(calibrations))
            problem = measured_scenario(measured_system(calibration, rows), images, snr, study.seed)
            small, truth = compressed(problem.system, snr), problem.test.images
            gain = row_gain(problem.system.matrix)
            balls = (problem.test.ball(problem.system, kappa) for kappa in _KAPPAS)
            values = [gain * ball.reconstruct(small, data, radius).value.clamp(min=0) for data, radius in balls]
            found = dict(zip(labels, [*values, Run(DEQ(weights), problem)()], strict=True))
            qualities = [f"{float(metrics.psnr(value, truth).mean()):.2f}" for value in found.values()]
            misfits = [f"{_kappa_of(found[label], problem):.2f}" for label in ("ball, kappa 1", "learned")]
            lines.append([f"{snr:g} dB", where, *qualities, *misfits])
    heads = ["SNR", "scanner", *labels, "misfit of kappa 1", "of learned"]
    notes = [
        f"pSNR in dB, mean over {len(images.test)} test images, {images.source}; `A x` + noise, read with `A U D`. All "
        "have the rows of the learned consistency, however noisy on another scanner.",
        "Misfit: |A x - y| in the range of A over sigma sqrt(r), mean over the images; at the equilibrium of a ball "
        "that is its kappa.",
    ]
    return Listing("What learned consistency has learned", heads, lines, notes)


def starts(study: Study) -> Listing:
    """Least squares from more or fewer singular values: where DEQ-MPI starts, and whether it matters where it ends."""
    images, counts = study.test_images(), (5, 25, _LONG)
    lines = []
    for snr in (*SNRS, LEVELS[-1]):
        problem = measured_scenario(study.system(), images, snr, study.seed)
        gain, truth = row_gain(problem.system.matrix), problem.test.images
        model = DEQMPI.from_pretrained(study.weights(f"deq-mpi-{snr:g}dB"))
        for rank in (None, 100, 200, len(problem.system.s)):
            study.progress(f"starts at {snr:g} dB", 0, 1)
            small = compressed(problem.system, snr)
            if rank is not None:
                small.cutoff, small.rank = 0.0, rank
            # The data have the noise of training already; an image in the model's scale is 1 / gain of one in ours.
            data, radius = problem.test.ball(problem.system, model.kappa)
            first = gain * small.start(data)[0].view_as(truth).clamp(min=0)
            found = [gain * model.reconstruct(small, data, radius, iterations=n).value.clamp(min=0) for n in counts]
            qualities = [float(metrics.psnr(image, truth).mean()) for image in (first, *found)]
            label = "above a tenth of the noise" if rank is None else f"{rank}"
            lines.append([f"{snr:g} dB", label, *(f"{q:.2f}" for q in qualities)])
    heads = ["SNR", "singular values", "start", *(f"after {n} iterations" for n in counts)]
    note = f"pSNR in dB, mean over {len(images.test)} test images, {images.source}; DEQ-MPI with the l2-ball."
    return Listing("Where the iteration starts", heads, lines, [note])


ABLATIONS: dict[str, Callable[[Study], Listing]] = {
    "gradients": ablation(GRADIENTS),
    "consistency": ablation(CONSISTENCY),
    "initialisation": ablation(INITIALISATION),
    "sessions": sessions,
    "learned": learned,
    "starts": starts,
}


# --- parts ---------------------------------------------------------------------------------------------------------
def _kappa_of(images: Tensor, problem: Scenario) -> float:
    """``|A x - y|`` in the range of A over ``sigma sqrt(r)``, mean over the images."""
    system, test = problem.system, problem.test
    misfit = system.coordinates(images.flatten(1) @ system.matrix.T) - test.coordinates
    sigma = test.noise / test.y.shape[1] ** 0.5
    return float((misfit[:, :-1].norm(dim=1) / (sigma * system.rank**0.5)).mean())


def _qualities(study: Study, problem: Scenario, name: str, seed: int) -> tuple[float, float]:
    """Mean pSNR of a variant with its own number of iterations, and after many."""
    recipe = VARIANTS[name]
    seeded = replace(recipe, changes=recipe.changes | {"seed": seed})
    weights = study.trained(f"{name}-seed{seed}", seeded)
    method = Unrolled if recipe.role == "unrolled" else DEQ
    own, long = (Run(method(weights, iterations=count), problem).quality() for count in (None, _LONG))
    return own, long


def _schedules(study: Study, of: Ablation) -> list[str]:
    """What the rows were trained with: all stages of an ablation have the same steps where they have any."""
    configs = [study.config(VARIANTS[name]) for name in of.rows.values()]
    texts = dict.fromkeys(
        f"{getattr(config, stage).steps} steps of {getattr(config, stage).batch} images in the stage {stage!r}"
        for config in configs
        for stage in config.stages
    )
    return [f"Trained for {', '.join(texts)}."]


def _spread(values: np.ndarray[Any, Any]) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
