"""What other busy processes cost: every method and solver on two threads and on one, idle and beside them.

    python benchmarks/contention.py [-k NAME] [--seconds 0.15] [--rounds 3] [-o FILE.md]

A cell is the mean time of a call in a loop, the median over the rounds. Each busy process counts and does nothing else;
the first is tied to the last of this process's processors, and so on, so that "one" leaves the first to us.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from pyrecon import ops, solvers
from pyrecon.data.mpi import prepare_frames, prepare_system
from pyrecon.data.phantoms import retina_vessels
from pyrecon.data.raw import Grid
from pyrecon.models import mpi, mri
from pyrecon.nn import RDN, LearnedConsistency, RowLayout
from pyrecon.physics.mpi import Scanner
from pyrecon.physics.mri import coil_maps, head_phantom, random_lines, simulate

THREADS = int(os.environ.get("PYRECON_BENCH_THREADS", "2"))
MOST_OF_IDLE, MOST_OF_ONE = 3.0, 1.2  # the goals: of idle on as many threads, of one thread beside the same processes
COLUMNS = (f"idle, {THREADS} threads", "1 thread", "beside one", "1 thread", "beside one a core", "1 thread")

_COUNT = """
import os, sys
parent, cpu = int(sys.argv[1]), int(sys.argv[2])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [cpu])
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many busy processes, gone at the end; should this process be killed, they end themselves."""
    cpus = sorted(os.sched_getaffinity(0), reverse=True) if hasattr(os, "sched_getaffinity") else range(count)
    made = [
        subprocess.Popen([sys.executable, "-c", _COUNT, str(os.getpid()), str(cpu)])
        for cpu, _ in zip(cpus, range(count), strict=False)
    ]
    try:
        if made:
            time.sleep(0.3)  # until they count
        yield
    finally:
        for process in made:
            process.kill()
        for process in made:
            process.wait()


# --- the work: name and a call, made when it is asked for ----------------------------------------------------------
def mpi_methods() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Six frames of 26 x 13, the demo's scanner."""
    grid, scanner = Grid((26, 13), (2e-3, 2e-3), (0.0, 0.0)), Scanner()
    vessels = torch.as_tensor(retina_vessels(grid.shape, 6, seed=0), dtype=torch.float32)
    scan = scanner.measure(vessels, grid, snr_db=30.0, seed=1)
    system = prepare_system(scanner.calibrate(grid, seed=0), scan)
    data = prepare_frames(system, scan)
    methods: list[type[mpi.MPIMethod]] = [*mpi.METHODS.values(), mpi.PnP, mpi.DEQ]
    for method in methods:
        reconstruct = mpi.Reconstructor(system, method())
        yield f"MPI {method.name}, 6 frames", partial(reconstruct, data)


def mri_methods() -> Iterator[tuple[str, Callable[[], Any]]]:
    shape, coils = (230, 180), 8
    maps, noise = coil_maps(shape, coils), 0.03
    scan = simulate(head_phantom(shape), maps, random_lines(shape, 4.0, acl=24, seed=0), noise_std=noise, seed=0)
    kspace, mask = torch.as_tensor(scan.kspace) / noise, torch.as_tensor(scan.mask).float()
    for method in (mri.CGSense(max_iter=20), mri.TVSense(max_iter=10)):
        yield f"MRI {method.name} 8x230x180", partial(method.solve, kspace, maps, mask)
    whole = simulate(
        head_phantom(shape), maps, random_lines(shape, 2.0, acl=24, seed=0), noise_std=noise, readout_oversampling=2
    )
    yield "MRI scan 8x230x360, whole way", partial(mri.reconstruct_mri, whole)


def kernels() -> Iterator[tuple[str, Callable[[], Any]]]:
    torch.manual_seed(0)
    x, b = torch.randn(6, 6162), torch.randn(6, 6162)
    yield (
        "fixed point, Anderson, 6x6162",
        lambda: solvers.fixed_point(lambda x: 0.9 * torch.cos(x) + b, x, tol=0.0, max_iter=30),
    )
    for name, size in (("small", (2, 64, 64)), ("large", (8, 320, 320))):
        image, grad = torch.randn(size), torch.randn(size)
        out = torch.empty_like(image)
        yield (
            f"langevin step {name}",
            partial(ops.langevin_step, image, grad, 0.01, seed=0, counter=0, out=out),
        )
    A, y = torch.randn(5486, 338), torch.randn(6, 5486)
    yield "kaczmarz 5486x338, B=6", lambda: ops.kaczmarz(A, y)
    d, z, radius = torch.randn(6, 5486), torch.randn(6, 338), torch.full((6,), 10.0)
    yield "sm_consistency 5486x338, B=6", lambda: ops.sm_consistency(A, z, d, y, radius)
    for name, size in (("26x13, B=6", (6, 26, 13)), ("256x256", (1, 256, 256))):
        noisy = torch.randn(size)
        yield f"tv_prox {name}", partial(ops.tv_prox, noisy, 0.1, iterations=50)
    for coils, rows, cols in ((4, 32, 32), (8, 230, 180)):
        image = torch.randn(1, rows, cols, dtype=torch.complex64)
        maps, mask = (
            torch.randn(1, coils, rows, cols, dtype=torch.complex64),
            (torch.rand(1, 1, rows, cols) > 0.7).float(),
        )
        yield (
            f"sense_normal {coils}x{rows}x{cols}",
            partial(ops.sense_normal, image, maps, mask),
        )
    maps = torch.randn(1, 8, 230, 180, dtype=torch.complex64)
    yield "prox_smooth_maps 8x230x180", partial(ops.prox_smooth_maps, maps, 10.0)
    net = RDN().requires_grad_(False)
    for batch in (1, 6):
        image = torch.randn(batch, 26, 13)
        yield f"rdn 26x13, B={batch}", partial(net, image)
    layout = RowLayout((60, 247), torch.randperm(60 * 130)[:2743].sort().values, 130)
    learned = LearnedConsistency(layout).requires_grad_(False)
    v, data = torch.randn(6, 5486), torch.randn(6, 5486)
    yield "learned_consistency 5486, B=6", lambda: learned(v, data, radius)


def works(only: str) -> dict[str, Callable[[], Any]]:
    groups = (mpi_methods, mri_methods, kernels)
    return {name: call for group in groups for name, call in group() if only.lower() in name.lower()}


# --- the clock -----------------------------------------------------------------------------------------------------
def measure(
    calls: dict[str, Callable[[], Any]], seconds: float, rounds: int, loads: tuple[int, ...]
) -> dict[str, list[float]]:
    """Seconds of a call for each load on THREADS threads and on one: ``{name: [...]}`` in the order of COLUMNS."""
    found: dict[str, list[list[float]]] = {name: [[] for _ in range(2 * len(loads))] for name in calls}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("contention", total=rounds * len(loads) * len(calls))
        for _ in range(rounds):
            for i, load in enumerate(loads):
                with busy(load):
                    for name, call in calls.items():
                        for j, threads in enumerate((THREADS, 1)):
                            torch.set_num_threads(threads)
                            found[name][2 * i + j].append(mean_time(call, seconds))
                        bar.advance(task)
    return {name: [statistics.median(times) for times in cells] for name, cells in found.items()}


def mean_time(call: Callable[[], Any], seconds: float) -> float:
    """Mean over a loop that lasts at least so long, without its first call."""
    call()
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or count == 0:
        call()
        count += 1
    return passed / count


def table(found: dict[str, list[float]]) -> str:
    """Markdown: milliseconds, then each load over idle on as many threads, and over one thread beside the same."""
    lines = [f"| milliseconds | {' | '.join(COLUMNS)} | of idle | of 1 thread |", "|---|" + "---:|" * 8]
    for name, cells in found.items():
        idle, of_idle, of_one = cells[0], [], []
        for i in range(2, len(cells), 2):
            of_idle.append(cells[i] / idle)
        for i in range(0, len(cells), 2):
            of_one.append(cells[i] / cells[i + 1])
        marks = [_marked(of_idle, MOST_OF_IDLE), _marked(of_one, MOST_OF_ONE)]
        lines.append(f"| {name} | {' | '.join(f'{1e3 * t:.3g}' for t in cells)} | {' | '.join(marks)} |")
    return "\n".join(lines)


def _marked(ratios: list[float], most: float) -> str:
    return ", ".join(f"**{r:.2g}**" if r > most else f"{r:.2g}" for r in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", dest="only", default="", help="only what has this in its name")
    parser.add_argument("--seconds", type=float, default=0.15, help="length of a loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", dest="output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    with torch.inference_mode():
        found = measure(works(options.only), options.seconds, options.rounds, (0, 1, cores))
    torch.set_num_threads(before)
    text = table(found)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
