"""What every benchmark shares: the answer is asserted before it is timed, and ours and its rivals run side by side.

A benchmark is a test of one implementation of one row of the table; ``impl`` is a parameter of the test::

    @pytest.mark.parametrize("impl", ["pyrecon", "torch"])
    def test_thing(timed, impl): ...
        timed(call, row="thing 640x368", impl=impl, expected=float64_answer, k=32, goal={"ratio": 0.2})

``pytest benchmarks`` checks the answers only; ``pytest benchmarks --benchmark-enable --benchmark-json=FILE`` times
them, and ``benchmarks/render.py FILE`` turns the result into the table.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon import _core
from pyrecon.testing import assert_close_to_reference

THREADS = int(os.environ.get("PYRECON_BENCH_THREADS", "2"))
QUICK = (
    os.environ.get("PYRECON_BENCH_QUICK", "") == "1"
)  # one size of each work, few rounds: an overview in two minutes
ROUNDS = {"max_time": 0.1, "min_rounds": 3} if QUICK else {"max_time": 0.7, "min_rounds": 7, "warmup": True}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A quick run keeps the first size of every function, without torch.compile, which takes seconds a graph."""
    if not QUICK:
        return
    seen: set[tuple[Any, ...]] = set()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        assert isinstance(item, pytest.Function)
        impl, where = (item.callspec.params.get(name) for name in ("impl", "device"))
        key = (item.path, item.originalname, impl, where)
        (left_out if key in seen or impl == "torch.compile" else kept).append(item)
        seen.add(key)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


class Timed(Protocol):
    """Assert what ``call()`` returns, then time it as one entry of a row.

    Parameters
    ----------
    call
        Takes nothing and returns a tensor or a tuple of tensors; writes into buffers made once, whoever the rival is.
    row
        The work, in words with its sizes: one line of the table and one pytest-benchmark group.
    impl
        ``"pyrecon"`` or the rival's name.
    expected, k
        The answer by definition in float64, a tensor or a tuple; every entry of the row must be within ``k * eps`` of
        its largest element. ``None`` in a tuple skips that result.
    goal
        ``{"ms": 0.2}``, or ``{"ratio": 0.2}`` of the fastest rival, or ``{"ratio": 0.65, "against": "bare FFT"}``.
    bytes_moved, flops
        What the work needs at least: each input and output once, each multiplication and addition.
    sizes
        Named sizes of the problem.
    """

    def __call__(
        self,
        call: Callable[[], Any],
        *,
        row: str,
        impl: str,
        expected: Any,
        k: float,
        goal: Mapping[str, Any] | None = None,
        bytes_moved: int | None = None,
        flops: int | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None: ...


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    """As many threads for both sides, two unless told, whatever the machine: the numbers in the table say so."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """For benchmarks that make sense on both kinds of device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def peer() -> Callable[[str], Any]:
    """Import a rival; the row goes without it where it is not installed."""
    return _peer


def _peer(name: str) -> Any:
    # deepinv and mrpro import torchvision, which wants two operators that a CPU build of it may lack.
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        pytest.skip(f"the rival {name} is not installed ({problem})")


_libraries: list[torch.library.Library] = []  # a library that is collected takes its operators with it


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> Timed:
    def run(
        call: Callable[[], Any],
        *,
        row: str,
        impl: str,
        expected: Any,
        k: float,
        goal: Mapping[str, Any] | None = None,
        bytes_moved: int | None = None,
        flops: int | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        results = _tuple(call())
        for result, wanted in zip(results, _tuple(expected), strict=True):
            if wanted is not None:
                assert_close_to_reference(result.detach().cpu(), wanted, k=k)
        on_gpu = any(isinstance(result, Tensor) and result.is_cuda for result in results)
        if on_gpu:
            row, goal = f"{row}, GPU", None  # goals are a processor's
        # The marker is read when the benchmark fixture is made, so it is asked for only now.
        timer = _gpu_clock if on_gpu else time.perf_counter
        request.node.add_marker(pytest.mark.benchmark(group=row, timer=timer, **ROUNDS))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info.update(
            impl=impl,
            goal=dict(goal) if goal else None,
            bytes_moved=bytes_moved,
            flops=flops,
            sizes=dict(sizes or {}),
            threads=THREADS,
            quick=QUICK,
            device=torch.cuda.get_device_name() if on_gpu else "cpu",
        )
        if benchmark.enabled:
            benchmark.extra_info["rates"] = machine_rates("cuda" if on_gpu else "cpu")
        try:
            benchmark(call)
        except KeyboardInterrupt:
            benchmark.has_error = True  # cut short is not measured: left out of the results, the others are kept
            raise
        if benchmark.enabled:
            request.node.user_properties.append(("timed", (row, impl, benchmark.stats.stats.median * 1e3)))

    return run


@cache
def machine_rates(device: str) -> dict[str, float]:
    """What the roofline is made of: bytes/s of a large copy (read and written), flop/s of a large float32 product."""
    torch.set_num_threads(THREADS)
    clock = _gpu_clock if device == "cuda" else time.perf_counter
    source = torch.ones(1 << (28 if device == "cuda" else 25), device=device)
    target, a, b = (
        torch.empty_like(source),
        torch.ones(2048, 2048, device=device),
        torch.ones(2048, 2048, device=device),
    )
    c = torch.empty_like(a)
    works: dict[str, tuple[Callable[[], Any], float]] = {
        "copy": (lambda: target.copy_(source), 2 * source.nbytes),
        "product": (lambda: torch.mm(a, b, out=c), 2 * 2048**3),
    }
    rates = {}
    for name, (work, amount) in works.items():
        times = []
        for _ in range(7):
            start = clock()
            work()
            times.append(clock() - start)
        rates[name] = amount / min(times)
    return rates


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["versions"] = {"torch": torch.__version__, "pyrecon": pyrecon.__version__}
    machine_info["isa"] = _core.isa()
    machine_info["threads"] = THREADS
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
