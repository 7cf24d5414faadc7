"""Chains on disk: the same numbers after a stop, and files that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyrecon._errors import DataError
from pyrecon.io.chains import read_chain, write_chain
from pyrecon.solvers import MALA, ULA, Chain, ConvergenceWarning, langevin


def gradient(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.abs().square().flatten(1).sum(1), 2 * x


def run(x: Any, iterations: int, dtype: torch.dtype = torch.float32, mala: bool = False, **more: Any) -> Chain:
    return langevin(
        both if mala else gradient, x, step=0.2, iterations=iterations, burn_in=3, thinning=2,
        sampler=MALA() if mala else ULA(), **more,
    )  # fmt: skip


KEPT: dict[str, Any] = {"seed": 5, "batches": 8, "draws": 4}


@pytest.mark.parametrize("mala", [False, True], ids=["ula", "mala"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_a_chain_from_disk_goes_on_to_the_same_numbers(tmp_path: Path, dtype: torch.dtype, mala: bool) -> None:
    x0 = torch.randn(3, 4, 5, dtype=dtype)
    whole = run(x0, 40, mala=mala, **KEPT)
    write_chain(tmp_path / "a.safetensors", run(x0, 17, mala=mala, **KEPT), {"what": [1, "two"]})
    read, facts = read_chain(tmp_path / "a.safetensors")
    assert facts == {"what": [1, "two"]}
    again = run(read, 23, mala=mala)
    assert again.batches is not None
    assert whole.batches is not None
    assert again.draws is not None
    assert whole.draws is not None
    for ours, theirs in (
        (again.x, whole.x), (again.mean, whole.mean), (again.std, whole.std), (again.status, whole.status),
        (again.batches.mean, whole.batches.mean), (again.batches.m2, whole.batches.m2),
        (again.draws.states, whole.draws.states), *[(again.memory[key], whole.memory[key]) for key in whole.memory],
    ):  # fmt: skip
        assert torch.equal(ours, theirs)
    assert (again.batches.size, again.batches.count) == (whole.batches.size, whole.batches.count)
    assert (again.draws.every, again.draws.count) == (whole.draws.every, whole.draws.count)
    assert (again.steps, again.seed, again.first_sample) == (40, 5, 0)


def test_a_chain_without_batches_and_one_that_was_lost(tmp_path: Path) -> None:
    x0 = torch.randn(2, 3)
    x0[1] = torch.nan
    with pytest.warns(ConvergenceWarning):
        chain = run(x0, 5)
    write_chain(tmp_path / "a.safetensors", chain)
    read, facts = read_chain(tmp_path / "a.safetensors")
    assert facts == {}
    assert read.batches is None
    assert torch.equal(read.status, chain.status)
    assert torch.equal(read.x[0], chain.x[0])


def forged(path: Path, change: Any) -> None:
    """The file with tensors, said and table changed by ``change(tensors, said, metadata)``."""
    tensors = load_file(path)
    raw = path.read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    said = json.loads(metadata["pyrecon-chain"])
    change(tensors, said, metadata)
    metadata["pyrecon-chain"] = json.dumps(said)
    save_file(tensors, path, metadata=metadata)


def put(name: str, value: Any) -> Any:
    return lambda tensors, said, metadata: tensors.update({name: value})


def say(*keys: str, value: Any) -> Any:
    def change(tensors: Any, said: Any, metadata: Any) -> None:
        for key in keys[:-1]:
            said = said[key]
        said[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("x", torch.zeros(3)), "batches.m2 is"),
        (put("x", torch.zeros(3, 4, dtype=torch.int64)), "expected states"),
        (put("more", torch.zeros(3)), "more is"),
        (put("status", torch.zeros(3, dtype=torch.int8)), "status: holds values that no chain has"),
        (put("moments.m2", torch.full((3, 4), torch.nan)), "moments.m2: holds NaN"),
        (put("moments.count", torch.tensor(10**6)), "moments.count: 1000000 states of 9 steps"),
        (put("batches.mean", torch.zeros(7, 3, 4)), "batches or draws of shape"),
        (put("memory.accepted", torch.zeros(3)), "memory.accepted is"),
        (lambda t, s, m: t.pop("moments.mean"), "moments.mean is absent"),
        (lambda t, s, m: m.update(dtype="complex128"), "expected states"),
        (say("format", value=9), "format 9"),
        (say("steps", value=-1), "steps: '-1'"),
        (say("steps", value=1.5), "steps: '1.5'"),
        (say("seed", value=2**70), "seed: "),
        (say("batches", "size", value=3), "batches: "),
        (say("batches", "count", value=10**9), "batches.count"),
        (say("draws", "every", value=0), "draws.every"),
        (say("facts", value=3), "is no whole file of a chain"),
        (say("draws", value=3), "is no whole file of a chain"),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "a.safetensors"
    write_chain(path, run(torch.ones(3, 4), 9, **KEPT))
    forged(path, change)
    with pytest.raises(DataError, match=message) as error:
        read_chain(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_cut_files_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    write_chain(path, run(torch.ones(3, 4), 9, **KEPT))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.safetensors"):
        read_chain(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}" * 50)
    with pytest.raises(DataError, match="a header of"):
        read_chain(path)


def test_only_chains_are_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="chain: expected a Chain"):
        write_chain(tmp_path / "a", torch.zeros(3))  # type: ignore[arg-type]
