"""Tables 1 and 2: every mask by every method, ours beside the paper's."""

from __future__ import annotations

import numpy as np

from pyrecon.experiments.paired import paired
from pyrecon.experiments.stable_mri import published
from pyrecon.experiments.stable_mri.study import FITTED, MASKS, METHODS, NOISE, Coils, Images, StableMRIStudy, Tuned
from pyrecon.experiments.study import Pictures
from pyrecon.experiments.table import Listing
from pyrecon.physics.mri import acceleration

LABELS = {
    "zf": "zero-filled", "tv": "TV", "cg": "CG-SENSE", "nlinv": "NLINV", "unet": "U-Net", "varnet": "VarNet",
    "map": "MAP", "mmse": "MMSE",
}  # fmt: skip
_SHOWN = {"in": "in distribution", "out": "fat-suppressed knees", "brain": "slices of a head"}
_METRICS = ("psnr", "nmse", "ssim")


def table_1(study: StableMRIStudy) -> tuple[Listing, Pictures]:
    """Single coil, real images."""
    lines = _lines(study, "single", "in", published.TABLE_1)
    heads = ["mask", "acceleration", "method", *_HEADS]
    title = "Table 1: one coil, real images"
    return Listing(title, heads, lines, _notes(study, "single")), _pictures(study, "single", ("in",))


def table_2(study: StableMRIStudy) -> tuple[Listing, Pictures]:
    """Parallel imaging without coil maps, in and out of distribution."""
    lines = []
    for kind in study.kinds():
        theirs = {"in": published.TABLE_2_IN, "out": published.TABLE_2_OUT}.get(kind, {})
        lines += [[_SHOWN[kind], *line] for line in _lines(study, "parallel", kind, theirs)]
    heads = ["images", "mask", "acceleration", "method", *_HEADS]
    title = "Table 2: parallel imaging"
    return Listing(title, heads, lines, _notes(study, "parallel")), _pictures(study, "parallel", ("in", "out"))


def differences(study: StableMRIStudy) -> Listing:
    """MAP and MMSE minus the others, on the same images."""
    pairs = [("map", "tv"), ("mmse", "map"), ("map", "unet"), ("map", "varnet"), ("map", "cg"), ("map", "nlinv")]
    lines = []
    for coils in METHODS:
        there = study.methods(coils)
        for kind in ("in",) if coils == "single" else study.kinds():
            for mask in MASKS[coils]:
                for one, other in pairs:
                    if one in there and other in there:
                        first, second = (study.numbers(coils, kind, mask, name)["psnr"] for name in (one, other))
                        found = paired([np.subtract(first, second).tolist()])
                        lines.append([coils, _SHOWN[kind], mask, LABELS[one], LABELS[other], str(found)])
    notes = [
        f"PSNR in dB of the first minus the second on the same {study.amounts.test} images, means with Student's 95 % "
        "interval over the images of one model each, which says nothing of other models."
    ]
    return Listing("Methods compared pair by pair", ["coils", "images", "mask", "first", "second", "dB"], lines, notes)


_HEADS = ("PSNR, dB", "NMSE, %", "SSIM", "after the curve", "published PSNR", "NMSE", "SSIM")


def _lines(
    study: StableMRIStudy, coils: Coils, kind: Images, theirs: dict[str, dict[str, published.Cell]]
) -> list[list[str]]:
    lines = []
    for mask in MASKS[coils]:
        rate = f"{acceleration(study.scans(coils, kind, mask).mask):.1f}"
        for method in METHODS[coils]:
            known = theirs.get(mask, {}).get(method)
            printed = [f"{known[0]:g}", f"{known[1]:g}", f"{known[2]:g}"] if known else ["", "", ""]
            if method not in study.methods(coils):
                lines.append([mask, rate, LABELS[method], "", "", "", "", *printed])
                continue
            numbers = study.numbers(coils, kind, mask, method)
            fitted = ""
            if coils == "parallel" and method in FITTED:
                means = [float(np.mean(numbers[f"fitted {name}"])) for name in _METRICS]
                fitted = f"{means[0]:.2f} / {100 * means[1]:.2f} / {means[2]:.2f}"
            psnr, nmse, ssim = (numbers[name] for name in _METRICS)
            cells = [f"{np.mean(psnr):.2f} ± {np.std(psnr):.2f}", f"{100 * np.mean(nmse):.2f}", f"{np.mean(ssim):.2f}"]
            lines.append([mask, rate, LABELS[method], *cells, fitted, *printed])
    return lines


def _notes(study: StableMRIStudy, coils: Coils) -> list[str]:
    config, amounts = study.config_of(coils), study.amounts
    rival = "unet" if coils == "single" else "varnet"
    train = study.settings(rival)[rival].reconstruction  # type: ignore[attr-defined]
    notes = [
        f"{config.size} x {config.size} pixels, {config.coils} coil{'s' * (config.coils > 1)}, {amounts.test} "
        f"generated images a line that no training draws, masks of each its own; noise {NOISE:g} of the brightest "
        "pixel, mean ± deviation over the images. Published: fastMRI knees.",
        "PSNR's peak and SSIM's range are each reference's maximum; SSIM with 7 x 7 uniform windows.",
        f"{LABELS[rival]}: trained on random 4-fold lines with 8 % in the centre, {train.steps} steps of {train.batch} "
        "images, all of them generated.",
    ]
    tuned: tuple[Tuned, ...] = ("tv", "map") if study.energy is not None else ("tv",)
    edge = {name: " (an end of the range)" if study.choice(coils, name)["at edge"][0] else "" for name in tuned}
    lam = [f"{LABELS[name]} {study.coefficient(coils, name):.3g}{edge[name]}" for name in tuned]
    notes.append(
        "lambda is a coefficient times what the noise says: TV's the noise s over the image's peak, MAP's s^2 / (2 T), "
        f"T the temperature of the prior's training. One coefficient for all masks: {', '.join(lam)}, each the best of "
        f"{amounts.budget} on {amounts.validation} validation images at 4-fold lines with 8 % in the centre; "
        + (
            f"{amounts.iterations} iterations."
            if coils == "single"
            else f"{amounts.joint} iterations of TV, {amounts.refined} of MAP, begun with TV's image and maps."
        )
    )
    if coils == "parallel":
        notes.append(
            "CG-SENSE: maps from the calibration lines, ESPIRiT's from ten on, else Walsh's; 0 dB where no centre is "
            "sampled. NLINV, TV, MAP: maps and image together, without calibration; VarNet estimates its own. NLINV "
            "ends with the first step that fits the data to 0.95 of the noise."
        )
        notes.append(
            "After the curve: PSNR / NMSE / SSIM when a cubic spline of five knots, fitted on validation images, has "
            "corrected the intensities, as the published MAP and MMSE are; the other columns are without."
        )
    if study.energy is None:
        notes.append("MAP and MMSE: no prior was given (--prior).")
    else:
        steps = amounts.steps(coils)
        notes.append(
            f"MMSE: {steps['chains']} chains of {steps['samples']} states, one of {steps['thinning']}, after "
            f"{steps['burn_in']} steps from MAP; its posterior has no coefficient. Data are in units of TV's maximum "
            "(published: of the zero-filled image's)."
        )
        found = [float(np.mean(study.numbers(coils, "in", mask, "mmse")["correlation"])) for mask in MASKS[coils]]
        notes.append(
            "Correlation of MMSE's standard deviation with its error, pixel by pixel, mean over the images: "
            + ", ".join(f"{value:.2f} ({mask})" for mask, value in zip(MASKS[coils], found, strict=True))
        )
        if coils == "single":
            held = [float(np.mean(study.numbers(coils, "in", mask, "mmse")["coverage"])) for mask in MASKS[coils]]
            notes.append(
                "The truth lies within 1.645 deviations of MMSE, which hold 90 % of a normal posterior, in "
                + ", ".join(f"{value:.0%} ({mask})" for mask, value in zip(MASKS[coils], held, strict=True))
                + " of the pixels."
            )
    return notes


def _pictures(study: StableMRIStudy, coils: Coils, kinds: tuple[Images, ...]) -> Pictures:
    """The first test image at every mask; needs the estimates, which a ledger does not have."""
    found: Pictures = {}
    for kind in kinds:
        for mask in MASKS[coils]:
            images = {LABELS[name]: study.estimate(coils, kind, mask, name)[0] for name in study.methods(coils)}
            if "mmse" in study.methods(coils):
                images["deviation"] = study.posterior(coils, kind, mask)[1][0]
            images["truth"] = study.scans(coils, kind, mask).images[0]
            found[mask if len(kinds) == 1 else f"{mask}, {_SHOWN[kind]}"] = images
    return found
