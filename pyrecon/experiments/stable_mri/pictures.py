"""Images of the tables with their errors, and the posterior's deviation beside the error that it should foretell."""

from __future__ import annotations

from typing import Any

from pyrecon import metrics, plotting
from pyrecon.experiments.stable_mri.study import correlations
from pyrecon.experiments.study import Pictures

_ERROR = 0.2  # of the peak: white in the maps of errors
_SPREAD = 0.1  # the same of deviations


def picture(pictures: Pictures) -> Any:
    """A row of images and one of their errors for every mask, as Figures 2 and 3; the last panel is the deviation."""
    rows = []
    for name, images in pictures.items():
        truth = images["truth"]
        peak = float(truth.max())
        shown, errors = [], []
        for method, image in images.items():
            if method == "deviation":
                continue
            last = method == "truth"
            value = "" if last else f"{float(metrics.psnr(image[None], truth[None])):.1f} dB"
            words = name.replace(", ", ",\n")  # as wide as a panel
            title = f"{words}\n{method}" if method == next(iter(images)) else method
            shown.append(plotting.Panel(image.numpy(), title, value, (0.0, peak)))
            if not last:
                errors.append(plotting.Panel((image - truth).abs().numpy(), "", "", (0.0, _ERROR * peak), "magma"))
        if "deviation" in images:
            spread, wrong = images["deviation"], (images["MMSE"] - truth).abs()
            known = float(correlations(wrong[None], spread[None])[0])
            text = f"correlation with the error {known:.2f}"
            errors.append(plotting.Panel(spread.numpy(), "deviation", text, (0.0, _SPREAD * peak), "magma"))
        rows += [shown, errors]
    return plotting.figure(rows, panel_size=1.5)
