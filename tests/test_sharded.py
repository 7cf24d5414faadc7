"""Rows of a system matrix on several processes: one answer, whatever their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pyrecon.linops import LinearOperator, SystemMatrix

ROWS, COLUMNS = 23, 6  # rows that no number of processes below divides


def problem(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, COLUMNS), (3, COLUMNS), (3, ROWS), (3, ROWS)
    A, x, d, y = (torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
    return A, x, d, y


def answers(operator: LinearOperator, x: Tensor, d: Tensor, y: Tensor) -> list[Tensor]:
    """Products, a consistency step, and gradients to all its inputs."""
    inputs = [t.clone().requires_grad_() for t in (x, d, y)]
    z, r, product = operator.consistency(*inputs, 2.0)  # type: ignore[operator]
    loss = z.abs().square().sum() + (r.abs() * torch.arange(COLUMNS)).square().sum() + product.abs().sum()
    gradients = torch.autograd.grad(loss, inputs)
    given = operator.consistency(*inputs, 2.0, Ax=operator(x))  # type: ignore[operator]
    return [operator(x), operator.adjoint(y), operator.gram(x), z, r, product, *given, *gradients, operator.norm()]


def run(rank: int, count: int, folder: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    A, x, d, y = problem(dtype)
    leaf = A.clone().requires_grad_()
    operator = SystemMatrix(A).shard()
    assert len(operator.rows) <= ROWS // count + 1
    operator.rows = leaf[operator.first : operator.first + len(operator.rows)]
    operator(x).abs().square().sum().backward()
    torch.save([*(t.detach() for t in answers(operator, x, d, y)), leaf.grad], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("count", [1, 2])
def test_same_answer_on_any_number_of_processes(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    A, x, d, y = problem(dtype)
    leaf = A.clone().requires_grad_()
    (x @ leaf.mT).abs().square().sum().backward()
    expected: list[Any] = answers(SystemMatrix(A), x, d, y)
    kind = str(dtype).removeprefix("torch.")
    # This file is the program of each rank: it starts the same way wherever pytest was started from.
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(count), str(tmp_path), kind], stderr=subprocess.PIPE)
        for rank in range(count)
    ]
    errors = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(errors)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(count)]
    for result in results:
        for value, wanted in zip(result[:-1], expected, strict=True):
            torch.testing.assert_close(value, wanted.detach())
    # Every process has the gradient of its own rows, and zeros elsewhere.
    torch.testing.assert_close(sum(result[-1] for result in results), leaf.grad)


def test_without_processes_there_is_advice() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        SystemMatrix(torch.eye(3)).shard()


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], getattr(torch, sys.argv[4]))
