"""``pyrecon demo``: two scanners, every method, one figure and one table."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from pyrecon.cli import _console
from pyrecon.cli._commands import make_folder


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for demo.png and summary.md.")] = Path(
        "demo_out"
    ),
    seed: Annotated[int, typer.Option(help="Seed of noise, sampling and vessel crops.")] = 0,
) -> None:
    """Reconstruct an MPI scan of vessels and a multi-coil MRI scan by every classical method (under two minutes)."""
    from pyrecon import plotting
    from pyrecon.experiments import demo as experiment
    from pyrecon.io import written_whole

    make_folder(output)
    start = time.perf_counter()
    with _console.err.status("starting") as status, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reports hold them; the summary prints each one once
        studies = [experiment.mpi_study(status.update, seed=seed), experiment.mri_study(status.update, seed=seed)]
    rows = []
    for study in studies:
        panels = [plotting.Panel(study.truth[0].numpy(), title="truth")]
        window = (0.0, float(study.truth[0].max()))
        for row in study.rows:
            note = f"{row.psnr:.1f} dB, SSIM {row.ssim:.2f}"
            panels.append(plotting.Panel(row.images[0].numpy(), title=row.report.method, note=note, window=window))
        rows.append(panels)
    figure = plotting.figure(rows, spacing=[s.spacing for s in studies], row_titles=[s.title for s in studies])
    plotting.save(figure, output / "demo.png")
    text = experiment.summary(studies)
    with written_whole(output / "summary.md") as temporary:
        temporary.write_text(text)
    _console.out.print(text, markup=False, soft_wrap=True)
    _console.out.print(f"written {output}/demo.png and {output}/summary.md in {time.perf_counter() - start:.0f} s")
