"""Time of the cores against one size at a time, into ``benchmarks/results/scaling-<device>.json``.

    python benchmarks/scaling.py

The knees are where theory puts a bend: where the data outgrow the processor's last cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from conftest import THREADS
from rich.progress import track
from test_anderson import PERIOD, TorchAnderson
from test_consistency import TorchStep
from test_sense import fourier, fourier_adjoint
from torch.utils.benchmark import Timer

from pyrecon.ops import sense_normal, sm_consistency
from pyrecon.solvers import Anderson

RESULTS = Path(__file__).resolve().parent / "results"
Work = dict[str, Callable[[], Any]]


def consistency(batch: int, rows: int, columns: int) -> Work:
    A, x = torch.randn(rows, columns), torch.randn(batch, columns)
    d, y = torch.randn(batch, rows), torch.randn(batch, rows)
    radius = torch.full((batch,), 0.5 * (rows * columns) ** 0.5)
    out = torch.empty_like(d), torch.empty_like(x), torch.empty_like(d)
    eager = TorchStep(x, d)
    return {
        "pyrecon": lambda: sm_consistency(A, x, d, y, radius, out=out),
        "torch": lambda: eager(A, x, d, y, radius, None),
    }


def sense(coils: int, n: int) -> Work:
    image, maps = torch.randn(1, n, n, dtype=torch.complex64), torch.randn(1, coils, n, n, dtype=torch.complex64)
    mask, out = (torch.rand(1, 1, n, n) > 0.7).float(), torch.empty_like(image)
    return {
        "pyrecon": lambda: sense_normal(image, maps, mask, out=out),
        "torch": lambda: torch.sum(
            maps.conj() * fourier_adjoint(mask * fourier(maps * image[:, None])), dim=1, out=out
        ),
    }


def anderson(batch: int, n: int, memory: int) -> Work:
    values = [torch.randn(batch, n) for _ in range(PERIOD)]
    x, rows, step = torch.randn(batch, n), torch.arange(batch), iter(range(10**9))
    ours, rival = Anderson(memory=memory).start(batch, x), TorchAnderson(batch, n, torch.float32, memory)
    return {
        "pyrecon": lambda: ours.advance(x, [values[next(step) % PERIOD]], rows),
        "torch": lambda: x.copy_(rival(x, values[next(step) % PERIOD])),
    }


def curves() -> Iterator[tuple[str, str, Sequence[int], Callable[[int], Work], list[float]]]:
    """Title, name of the size, sizes, the work at a size, and where the curve should bend."""
    cache = _cache_bytes()
    yield "sm_consistency, A 5486 x 338", "samples", [2**i for i in range(9)], lambda b: consistency(b, 5486, 338), []
    rows = [2**i for i in range(8, 17)]
    yield "sm_consistency, N = 338, B = 1", "rows of A", rows, lambda m: consistency(1, m, 338), [cache / (4 * 338)]
    columns = [2**i for i in range(5, 13)]
    yield "sm_consistency, M = 5486, B = 1", "columns", columns, lambda n: consistency(1, 5486, n), [cache / (4 * 5486)]
    yield "SENSE normal, 256 x 256", "coils", [1, 2, 4, 8, 16, 32], lambda c: sense(c, 256), []
    yield "SENSE normal, 8 coils", "pixels", [4**i for i in range(5, 11)], lambda n: sense(8, isqrt(n)), []
    yield "Anderson step, 8 x 204800", "memory", [2, 3, 4, 6, 8, 12, 16], lambda m: anderson(8, 204800, m), []


def main() -> None:
    torch.set_num_threads(THREADS)
    found: dict[str, Any] = {}
    for title, size, sizes, make, knees in curves():
        ms: dict[str, list[float]] = {}
        for n in track(sizes, description=title):
            for name, call in make(n).items():
                timer = Timer("call()", globals={"call": call}, num_threads=THREADS)
                ms.setdefault(name, []).append(1e3 * timer.blocked_autorange(min_run_time=0.3).median)
        found[title] = {"size": size, "sizes": list(sizes), "ms": ms, "knees": knees}
    path = RESULTS / "scaling-cpu.json"
    path.write_text(json.dumps({"threads": THREADS, "curves": found}, indent=1) + "\n")
    print("written", path)


def _cache_bytes() -> float:
    """The last cache of the first processor, as the kernel tells it; 32 MiB where it does not."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return float(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}[text[-1]]
    except (OSError, KeyError, ValueError):
        return 32 * 2**20


if __name__ == "__main__":
    main()
