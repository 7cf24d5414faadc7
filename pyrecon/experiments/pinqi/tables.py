"""Figures 5 and 6 as tables, and kinds of models compared pair by pair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyrecon.data.tubes import TUBES
from pyrecon.experiments.ledger import Numbers
from pyrecon.experiments.paired import paired
from pyrecon.experiments.pinqi import published
from pyrecon.experiments.pinqi.study import ABLATIONS, METHODS, PINQIStudy
from pyrecon.experiments.study import Pictures
from pyrecon.experiments.table import Listing
from pyrecon.train.pinqi import new_model

_SENSE = "CG-SENSE, fit"
_HEADS = [
    "nRMSE", "MAE, s", "nRMSE of R1", "median relative error", "MAE fluid, s", "MAE grey, s", "MAE white, s",
]  # fmt: skip
_COLUMNS = ("nrmse", "mae", "r1_nrmse", "median", "fluid mae", "grey mae", "white mae")


def methods(study: PINQIStudy) -> tuple[Listing, Pictures]:
    """Figure 5: errors of T1, mean over seeds and test brains, the deviation of the seeds' means, ours beside the
    paper's."""
    lines = []
    for kind, (label, _) in METHODS.items():
        theirs = published.METHODS[kind]
        lines.append([label, _weights(study, kind), *_cells(study.results(kind)), *theirs])
    lines.append([_SENSE, "", *_cells([study.fit_numbers("five")]), "", ""])
    heads = ["method", "weights", *_HEADS, "nRMSE, published", "MAE, published"]
    return Listing("Figure 5: T1 of PINQI and its rivals", heads, lines, _notes(study, "pinqi")), _maps(study, METHODS)


def ablations(study: PINQIStudy) -> tuple[Listing, Pictures]:
    """Figure 6: PINQI without one of its parts, with eight times."""
    lines = []
    whole = study.results("pinqi-8")
    for kind, (label, _) in ABLATIONS.items():
        results = study.results(kind)
        ratio = "" if kind == "pinqi-8" else _ratio(results, whole)
        lines.append([label, _weights(study, kind), *_cells(results), ratio])
    lines.append([_SENSE, "", *_cells([study.fit_numbers("eight")]), _ratio([study.fit_numbers("eight")], whole)])
    heads = ["method", "weights", *_HEADS, "nRMSE over PINQI's"]
    notes = _notes(study, "pinqi-8")
    notes.append(
        "Published: every ablation is worse; regression as a layer has an nRMSE lower than a separate one by more than "
        f"{published.END_TO_END:.0%}."
    )
    return Listing("Figure 6: ablations of PINQI", heads, lines, notes), _maps(study, ABLATIONS)


def phantom(study: PINQIStudy) -> tuple[Listing, Pictures]:
    """Table 1: T1 of nine tubes, undersampled, beside a fully sampled reference."""
    found = [numbers for numbers in (study.tubes(seed) for seed in range(study.seeds)) if numbers]
    theirs = published.TUBES
    heads = ["tube", "truth, s", "reference, s", "PINQI, s", "difference, %", "published: reference", "PINQI", "%"]
    lines, errors = [], []
    for i, truth in enumerate(TUBES):
        row = [f"{i + 1}", f"{truth:g}"]
        if found:
            mean, spread, known, width = (
                float(np.mean([numbers[name][i] for numbers in found]))
                for name in ("mean", "std", "reference mean", "reference std")
            )
            errors.append(mean - known)
            row += [f"{known:.3f} ± {width:.3f}", f"{mean:.3f} ± {spread:.3f}", f"{100 * (mean - known) / known:+.0f}"]
        else:
            row += ["diverged", "", ""]
        (a, b), (c, d) = theirs["reference"][i], theirs["PINQI"][i]
        lines.append([*row, f"{a:g} ± {b:g}", f"{c:g} ± {d:g}", f"{100 * (c - a) / a:+.0f}"])
    config = study.config_of("pinqi")
    many = f"mean of {len(found)} models" if len(found) > 1 else "one model"
    rms = f"{1000 * float(np.sqrt(np.mean(np.square(errors)))):.0f}" if errors else "-"
    notes = [
        f"Root mean square of the differences: {rms} ms here, {published.TUBES_RMS} ms published.",
        f"Here: generated tubes of the published T1, {config.size} x {config.size} pixels, 32 coils, PINQI with "
        f"{len(config.seconds)} delays and one line of {config.acceleration:g}, the reference with 18 and all lines; "
        f"pixels that touch a tube's border are left out; {many}, "
        "± the deviation over a tube. Published: scans of a phantom.",
    ]
    return Listing("Table 1: nine tubes", heads, lines, notes), Pictures()


def pairs(study: PINQIStudy) -> Listing:
    """Differences of nRMSE on the same brains, seed by seed, in percent of T1's norm."""
    compared = [(one, "pinqi") for one in METHODS if one != "pinqi"]
    compared += [(one, "pinqi-8") for one in ABLATIONS if one != "pinqi-8"]
    compared.append(("separate-fit", "end-to-end-fit"))
    labels = {kind: label for kind, (label, _) in (METHODS | ABLATIONS).items()}
    lines = []
    for one, other in compared:
        times = study.times_of(one)
        both = [(study.numbers(one, seed), study.numbers(other, seed)) for seed in range(study.seeds)]
        found = {name: _differences(both, name) for name in ("nrmse", "r1_nrmse", "median")}
        cells = [str(paired(rows)) if rows else "diverged" for rows in found.values()]
        lines.append([times, labels[one], labels[other], *cells])
    heads = ["times", "method", "minus", "nRMSE, %", "nRMSE of R1, %", "median relative error, %"]
    many = f"over {study.seeds} seeds" if study.seeds > 1 else "over the brains of a single seed"
    return Listing("Differences", heads, lines, [f"With Student's 95 % interval {many}."])


def _differences(both: list[tuple[Numbers, Numbers]], name: str) -> list[list[float]]:
    return [(100 * (np.array(one[name]) - np.array(other[name]))).tolist() for one, other in both if one and other]


def _cells(results: list[Numbers]) -> list[str]:
    if not results:
        return ["diverged", *[""] * (len(_COLUMNS) - 1)]
    cells = []
    for name in _COLUMNS:
        means = np.array([np.nanmean(numbers[name]) for numbers in results])
        spread = f" ± {means.std(ddof=1):.3f}" if len(means) > 1 and name in ("nrmse", "mae") else ""
        cells.append(f"{means.mean():.3f}{spread}")
    return cells


def _ratio(results: list[Numbers], whole: list[Numbers]) -> str:
    if not results or not whole:
        return ""
    one, other = (np.mean([np.mean(numbers["nrmse"]) for numbers in part]) for part in (results, whole))
    return f"{one / other:.2f}"


def _weights(study: PINQIStudy, kind: str) -> str:
    return f"{sum(p.numel() for p in new_model(study.config_of(kind)).parameters()):,}"


def _notes(study: PINQIStudy, kind: str) -> list[str]:
    config = study.config_of(kind)
    stages = [getattr(config, name) for name in config.stages]
    runs = _models(study)
    times = ", ".join(f"{t:g}" for t in config.seconds)
    return [
        f"Here: generated brains of {config.size} x {config.size} pixels, {config.coils} coils, one line of "
        f"{config.acceleration:g} with {config.centre} in the middle, saturation times {times} s, noise of "
        f"{config.noise_low:g} to {config.noise_high:g}; {config.pool} brains to train on and {study.amounts.test} "
        f"others to test, the same for all; {runs}. Published: BrainWeb, 192 x 192, 8 coils, one line of 8.",
        f"All models: {sum(stage.steps for stage in stages)} steps of {stages[-1].batch} samples, in all stages "
        f"together. PINQI and what is unrolled like it: {config.iterations} iterations, networks {config.width} and "
        f"{config.image_width} channels wide (published 5, 32, 16); the rivals' {config.rival_width} (64).",
        "nRMSE |T1 - ref| / |ref| and MAE within the brain, mean over the test brains; T1 hangs on the longest, fluid, "
        "so R1 = 1 / T1, the median and tissues stand beside. T1 of all methods lies between 0.05 and 20 s.",
    ]


def _models(study: PINQIStudy) -> str:
    return f"{study.seeds} models a row, ± the deviation of their means" if study.seeds > 1 else "one model a row"


def _maps(study: PINQIStudy, kinds: Mapping[str, tuple[str, object]]) -> Pictures:
    times = study.times_of(next(iter(kinds)))
    batch, _ = study.test_set(times)
    found: Pictures = {_SENSE: study.fitted(times)}
    for kind, (label, _) in kinds.items():
        maps = study.maps(kind)
        if maps is not None:
            found[label] = maps
    if len(found) == 1:
        return Pictures()
    return found | {"truth": 1 / batch.parameters[:, 0], "inside": batch.inside[:, 0]}


__all__ = ["ablations", "methods", "pairs", "phantom"]
