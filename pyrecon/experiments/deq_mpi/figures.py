"""Figures 3, 4, 9, 10 and 13 of DEQ-MPI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pyrecon import metrics, plotting
from pyrecon.experiments.deq_mpi.study import LEVELS, Study
from pyrecon.experiments.mpi import Run, Scenario, measured_scenario, phantom_images
from pyrecon.experiments.study import Drawing
from pyrecon.models.mpi import DEQ, L1ADMM, TVADMM, EndToEnd, HybADMM, PnP, Unrolled

STEPS = (1, 2, 3, 5, 7, 10, 15, 25, 50, 100, 200)


def figure_3(study: Study) -> Drawing:
    """pSNR at 35 dB of models trained at other SNRs."""
    problem = _problem(study, 35.0)
    kinds = {
        "DEQ-MPI": ("deq-mpi-learned", DEQ),
        "without learned consistency": ("deq-mpi", DEQ),
        "unrolled": ("unrolled", Unrolled),
        "end-to-end": ("end-to-end", EndToEnd),
    }
    curves = {}
    for label, (name, method) in kinds.items():
        runs = [Run(method(study.weights(f"{name}-{snr:g}dB")), problem) for snr in LEVELS]
        curves[label] = [(snr, run.quality()) for snr, run in zip(LEVELS, runs, strict=True)]
    caption = "pSNR of models trained at one SNR each, tested at 35 dB; mean over the test images."
    return _lines(curves, "SNR of training, dB", caption)


def figure_4(study: Study) -> Drawing:
    """pSNR against the number of iterations, 35 dB."""
    problem = _problem(study, 35.0)
    kinds: dict[str, Callable[[int], Any]] = {
        "DEQ-MPI": lambda n: DEQ(study.weights("deq-mpi-learned-35dB"), iterations=n),
        "without learned consistency": lambda n: DEQ(study.weights("deq-mpi-35dB"), iterations=n),
        "unrolled": lambda n: Unrolled(study.weights("unrolled-35dB"), iterations=n),
    }
    curves = {label: [(n, Run(of(n), problem).quality()) for n in STEPS] for label, of in kinds.items()}
    caption = "pSNR after so many iterations; models trained and tested at 35 dB. Mean over the test images."
    return _lines(curves, "iterations", caption, log="x")


def figure_9(study: Study) -> Drawing:
    """Two tubes at 20 dB by models trained at other SNRs, system matrices at 0.5 and 0.6 T/m."""
    rows = []
    numbers: list[list[Any]] = [["selection field, T/m", "trained at, dB", "pSNR, dB"]]
    for strength in (0.5, 0.6):
        problem = measured_scenario(study.system(strength), phantom_images("tubes", test=1), 20.0, study.seed)
        methods = [(f"{snr:g} dB", DEQ(study.weights(f"deq-mpi-{snr:g}dB"))) for snr in LEVELS]
        row, qualities = _pictures(problem, methods)
        rows.append(row)
        numbers += [[strength, name, quality] for (name, _), quality in zip(methods, qualities, strict=True)]
    titles = [f"system matrix at {strength} T/m, SNR 20 dB, trained at" for strength in (0.5, 0.6)]
    return Drawing(_figure(rows, titles), numbers, "Two tubes, reconstructed by models of other training SNRs.")


def figure_10(study: Study) -> Drawing:
    """Two tubes at 0.5 T/m by models trained with system matrices at 0.3, 0.5 and 0.6 T/m."""
    problem = measured_scenario(study.system(0.5), phantom_images("tubes", test=1), 20.0, study.seed)
    names = {"0.3 T/m": "deq-mpi-0.3T-25dB", "0.5 T/m": "deq-mpi-25dB", "0.6 T/m": "deq-mpi-0.6T-25dB"}
    methods = [(label, DEQ(study.weights(name))) for label, name in names.items()]
    row, qualities = _pictures(problem, methods)
    numbers: list[list[Any]] = [
        ["trained at", "pSNR, dB"],
        *([name, q] for (name, _), q in zip(methods, qualities, strict=True)),
    ]
    return Drawing(_figure([row], ["SNR 20 dB, trained at"]), numbers, "Two tubes at 0.5 T/m.")


def figure_13(study: Study) -> Drawing:
    """pSNR against the time for one image."""
    problem = _problem(study, 35.0)
    snr = 35.0
    denoiser = study.weights("denoiser")
    kinds: dict[str, Callable[[int], Any]] = {
        "l1-ADMM": lambda n: replace(L1ADMM.paper(snr), iterations=n),
        "TV-ADMM": lambda n: replace(TVADMM.paper(snr), iterations=n),
        "Hyb-ADMM": lambda n: replace(HybADMM.paper(snr), iterations=n),
        "PP-MPI": lambda n: PnP(denoiser, iterations=n),
        "DEQ-MPI": lambda n: DEQ(study.weights("deq-mpi-35dB"), iterations=n),
    }
    curves = {}
    for label, of in kinds.items():
        runs = [Run(of(n), problem) for n in STEPS[2:]]
        curves[label] = [(run.milliseconds(1), run.quality()) for run in runs]
    caption = "pSNR (mean over the test images, 35 dB) against the time for one image, published settings."
    return _lines(curves, "milliseconds for one image", caption, log="x")


FIGURES: dict[int, Callable[[Study], Drawing]] = {
    3: figure_3,
    4: figure_4,
    9: figure_9,
    10: figure_10,
    13: figure_13,
}


def _problem(study: Study, snr_db: float) -> Scenario:
    return measured_scenario(study.system(), study.test_images(), snr_db, study.seed)


def _lines(
    curves: Mapping[str, Sequence[tuple[float, float]]], x: str, caption: str, *, log: Literal["", "x"] = ""
) -> Drawing:
    numbers: list[list[Any]] = [
        ["method", x, "pSNR, dB"],
        *([name, *point] for name, points in curves.items() for point in points),
    ]
    return Drawing(plotting.curves(curves, x, "pSNR, dB", log=log), numbers, caption)


def _pictures(problem: Scenario, methods: Sequence[tuple[str, Any]]) -> tuple[list[plotting.Panel], list[float]]:
    """The truth and every method's image of it."""
    truth = problem.test.images[0]
    window = (0.0, float(truth.max()))
    panels, qualities = [plotting.Panel(truth.numpy(), "truth", window=window)], []
    for name, method in methods:
        image = Run(method, problem)()[0]
        qualities.append(float(metrics.psnr(image[None], truth[None])))
        panels.append(plotting.Panel(image.numpy(), name, f"{qualities[-1]:.1f} dB", window))
    return panels, qualities


def _figure(rows: list[list[plotting.Panel]], titles: list[str]) -> Any:
    return plotting.figure(rows, spacing=[(2e-3, 2e-3)] * len(rows), row_titles=titles, panel_size=1.2)
