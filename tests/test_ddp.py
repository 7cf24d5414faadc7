"""Equilibria under DistributedDataParallel: the gradient of a batch, of which every process has a part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyrecon.implicit import ImplicitGradient, fixed_point_layer

N, BATCH = 7, 4


class Twice(nn.Module):
    """Two passes with the same weights in one loss: the second sees what the first one made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(N, N).double()
        nn.init.orthogonal_(self.layer.weight, 0.6)

    def solve(self, y: Tensor) -> Tensor:
        gradient = ImplicitGradient(tol=1e-12, max_iter=300)
        return fixed_point_layer(
            lambda z, y: torch.tanh(self.layer(z)) + y, y, (y,), tol=1e-12, max_iter=300, gradient=gradient
        )

    def forward(self, y: Tensor) -> Tensor:
        first = self.solve(y)
        return (self.solve(first.flip(1)) - first).square().mean() + first.square().mean()


def data() -> Tensor:
    return torch.randn(BATCH, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def run(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    model = nn.parallel.DistributedDataParallel(Twice())
    model(data()[rank * BATCH // count : (rank + 1) * BATCH // count]).backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_one_process_has_the_gradient_without_the_others(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    alone = Twice()
    alone(data()).backward()
    try:
        run(0, 1, str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    for found, parameter in zip(torch.load(tmp_path / "0.pt"), alone.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_processes_together_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    alone = Twice()
    alone(data()).backward()
    # This file is the program of each rank: it starts the same way wherever pytest was started from.
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    for rank in range(2):
        for found, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), alone.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-11)


if __name__ == "__main__":
    run(int(sys.argv[1]), 2, sys.argv[2])
