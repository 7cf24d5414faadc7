"""Every Triton kernel compiled to machine code for sm_80, sm_90 and sm_100, without a GPU.

The launchers run on CPU tensors with the launch itself replaced by a recorder, so each kernel is compiled with exactly
the argument types and block sizes that its op would use. Its own pytest process (see Makefile), because other tests
must not see the recorder.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_interpreter import BACKWARD, backward_calls

import pyrecon
from pyrecon._library import _OPS
from pyrecon.testing.cases import CASES

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

POINTER = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
    torch.bool: "*i1", torch.int8: "*i8",
}  # fmt: skip
ARCHITECTURES = (80, 90, 100)
SHARES = os.cpu_count() or 1
OPTIONS = {"num_warps", "num_stages", "num_ctas"}


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTER[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def recorded_launches(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Any, ...], ASTSource]:
    """Run every op's tiny cases and their gradients, and keep one source per kernel and argument types."""
    launches: dict[tuple[Any, ...], tuple[ASTSource, dict[str, Any]]] = {}

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        constant = {p.name for p in kernel.params if p.is_constexpr} | {n for n, v in bound.items() if v is None}
        constant &= set(kernel.arg_names)
        for parameter in kernel.params:
            if parameter.name not in bound and parameter.has_default:
                bound[parameter.name] = parameter.default
        signature = {n: "constexpr" if n in constant else type_of(bound[n]) for n in kernel.arg_names}
        constants = {n: bound[n] for n in constant}
        options = {n: v for n, v in kwargs.items() if n in OPTIONS}
        key = (kernel.fn.__qualname__, tuple(signature.items()), tuple(sorted(constants.items(), key=str)))
        launches[key] = (ASTSource(kernel, signature, constants), options)

    gradients = [call for case in BACKWARD for dtype in case.dtypes for call in backward_calls(case, dtype)]
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", record)
    with pyrecon.backend("triton"):
        for call in gradients:
            getattr(torch.ops.pyrecon, call.op)(*call.inputs)
        for case in CASES:
            if "triton" not in _OPS[case.op.__name__].kernels:
                continue
            for dtype in case.dtypes:
                if case.tiny:
                    case.op(*case.inputs(dtype), **case.options)
    return launches  # type: ignore[return-value]


def forked(work: Callable[[int], Any]) -> list[Any]:
    """``work(share)`` of every share in a process of its own: three minutes of compiling become half as many."""
    context = multiprocessing.get_context("fork")  # the sources of kernels do not pickle
    results: multiprocessing.SimpleQueue[Any] = context.SimpleQueue()
    processes = [context.Process(target=lambda k=k: results.put(work(k))) for k in range(SHARES)]
    for process in processes:
        process.start()
    parts = []
    while any(p.is_alive() for p in processes) or not results.empty():
        if results.empty():
            time.sleep(0.1)
        else:
            parts.append(results.get())
    assert [p.exitcode for p in processes] == [0] * SHARES
    return parts


def architectures(launches: dict[tuple[Any, ...], ASTSource]) -> Iterator[tuple[Any, ...]]:
    """Every kernel for all of them; with further types and sizes for one of them in turn, which halves the time."""
    seen = set[str]()
    for k, ((name, *_), source) in enumerate(launches.items()):
        for architecture in (ARCHITECTURES[k % 3],) if name in seen else ARCHITECTURES:
            yield name, *source, architecture
        seen.add(name)


def resource_usage(cubin: bytes, path: Path) -> tuple[int, int]:
    """Registers per thread, and how many instructions store to local memory: those are spills.

    (The size of the stack is no measure: a call to the double-precision division has a frame of its own.)
    """
    path.write_bytes(cubin)
    dump = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([dump, "--dump-resource-usage", path], check=True, capture_output=True, text=True).stdout
    assembly = subprocess.run([dump, "--dump-sass", path], check=True, capture_output=True, text=True).stdout
    return int(re.search(r"REG:(\d+)", usage)[1]), len(re.findall(r"\bSTL\b", assembly))


def test_kernels_compile_without_spills(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    launches = recorded_launches(monkeypatch)
    monkeypatch.undo()
    assert launches
    jobs = list(architectures(launches))

    def compiled(share: int) -> list[tuple[str, int, int, int, int]]:
        rows = []
        for name, source, options, architecture in jobs[share::SHARES]:
            kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            registers, spilled = resource_usage(kernel.asm["cubin"], tmp_path / f"{share}.cubin")
            rows.append((name, registers, kernel.metadata.shared, architecture, spilled))
        return rows

    rows = [row for part in forked(compiled) for row in part]
    assert len(rows) == len(jobs)
    for name, *_, architecture, spilled in rows:
        assert spilled == 0, f"{name} for sm_{architecture} has {spilled} spill instructions"
    with capsys.disabled():
        print(f"\n{len(rows)} cubins of {len({row[0] for row in rows})} kernels, none spills registers")
        for name in sorted({row[0] for row in rows}):
            registers, shared = (max(row[i] for row in rows if row[0] == name) for i in (1, 2))
            print(f"  {name}: up to {registers} registers, {shared} bytes of shared memory")
