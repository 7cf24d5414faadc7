"""Speed of the denoiser of DEQ-MPI and of the whole model, at its sizes, against the same in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pyrecon.models import DEQMPI
from pyrecon.models.mpi.system import Problem
from pyrecon.nn import RDN, LearnedConsistency, RowLayout

M, N, STEPS = 5486, 338, 25
GRID, USED = (60, 247), 130  # angles x frequencies, of which the learned consistency uses the first


def torch_rdn(net: RDN, image: Tensor) -> Tensor:
    """As the released program has it."""

    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        weight, bias = layer.weight, layer.bias
        return conv2d(x, weight, bias, padding=weight.shape[-1] // 2)  # type: ignore[arg-type,index]

    given = image[:, None]
    shallow = conv(net.shallow, given)
    x, outputs = conv(net.deep, shallow), []
    for block in net.blocks:
        dense = x
        for layer in block.layers:  # type: ignore[union-attr]
            dense = torch.cat((dense, torch.relu(conv(layer, dense))), dim=1)
        x = x + conv(block.fuse, dense)  # type: ignore[arg-type]
        outputs.append(x)
    fused = conv(net.smooth, conv(net.fuse, torch.cat(outputs, dim=1))) + shallow
    return torch.relu(conv(net.last, fused) + given)[:, 0]


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize(
    ("size", "batch", "goal"), [("26x13", 1, 0.154), ("26x13", 64, 0.44), ("52x26", 1, None), ("52x26", 64, None)]
)
@torch.inference_mode()
def test_rdn(timed: Callable[..., None], size: str, batch: int, goal: float | None, impl: str) -> None:
    torch.manual_seed(0)
    rows, cols = (int(n) for n in size.split("x"))
    net, image = RDN(), torch.randn(batch, rows, cols)
    expected = torch_rdn(net.double(), image.double())
    net.float()
    call = (lambda: net(image)) if impl == "pyrecon" else (lambda: torch_rdn(net, image))
    timed(
        call,
        row=f"residual dense network {size}, B={batch}",
        impl=impl,
        expected=expected,
        k=24,
        goal={"ratio": goal, "against": "torch"} if goal else None,
        bytes_moved=8 * image.numel(),
        flops=2 * 58152 * image.numel(),
        sizes={"batch": batch, "rows": rows, "columns": cols},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("asked", ["all", "image"])
@pytest.mark.parametrize("batch", [1, 64])
def test_rdn_gradient(timed: Callable[..., None], batch: int, asked: str, impl: str) -> None:
    """A training step's forward and backward pass; and one more pullback to the image, as implicit gradients take.

    Biases keep every ReLU away from its kink: of four million, some would else pass in one precision only.
    """
    torch.manual_seed(0)
    net, image, g = RDN().double(), 0.1 * torch.randn(batch, 26, 13), torch.randn(batch, 26, 13)
    with torch.no_grad():
        net.last.bias.copy_(torch.tensor([4.0]))  # type: ignore[union-attr]
        for block in net.blocks:
            for layer in block.layers:  # type: ignore[union-attr]
                layer.weight.mul_(0.2)
                layer.bias.copy_(torch.tensor([1.0, -1.0]).repeat(6))
    variables = [image.requires_grad_(), *net.parameters()][: None if asked == "all" else 1]
    wide = image.detach().double().requires_grad_()
    expected = torch.autograd.grad(torch_rdn(net, wide), [wide, *variables[1:]], g.double())
    net.float()
    run = net if impl == "pyrecon" else partial(torch_rdn, net)
    result = run(image)
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "all": lambda: torch.autograd.grad(run(image), variables, g),
        "image": lambda: torch.autograd.grad(result, image, g, retain_graph=True),
    }
    work = {"all": "forward + backward", "image": "pullback to the image"}[asked]
    timed(
        calls[asked],
        row=f"residual dense network 26x13, {work}, B={batch}",
        impl=impl,
        expected=expected,
        k=256,  # sums over up to 21,632 pixels that cancel to about the square root of as many, 147
        flops=2 * 58152 * image.numel() * (3 if asked == "all" else 1),
        sizes={"batch": batch, "rows": 26, "columns": 13},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("asked", ["all", "data"])
@pytest.mark.parametrize("batch", [1, 64])
def test_learned_consistency_gradient(timed: Callable[..., None], batch: int, asked: str, impl: str) -> None:
    """A training step's forward and backward pass; and one more pullback to v, as implicit gradients take."""
    torch.manual_seed(0)
    net = learned_consistency().double()
    v, y, g = torch.randn(3, batch, M)
    radius = torch.full((batch,), 0.3 * M**0.5)
    variables = [v.requires_grad_(), *net.parameters()][: None if asked == "all" else 1]
    wide = v.detach().double().requires_grad_()
    result = torch_consistency(net, wide, y.double(), radius.double())
    expected = torch.autograd.grad(result, [wide, *variables[1:]], g.double())
    net.float()
    run = net if impl == "pyrecon" else partial(torch_consistency, net)
    result = run(v, y, radius)
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "all": lambda: torch.autograd.grad(run(v, y, radius), variables, g),
        "data": lambda: torch.autograd.grad(result, v, g, retain_graph=True),
    }
    work = {"all": "forward + backward", "data": "pullback to v"}[asked]
    timed(
        calls[asked],
        row=f"learned consistency {M}, {work}, B={batch}",
        impl=impl,
        expected=expected,
        k=1024,  # sums over up to half a million points that cancel to about the square root of as many, 707
        flops=2 * 336 * GRID[0] * USED * batch * (3 if asked == "all" else 1),
        sizes={"batch": batch, "rows": M},
    )


def learned_consistency() -> LearnedConsistency:
    """On rows at random among those that it uses."""
    chosen = torch.randperm(GRID[0] * USED)[: M // 2]
    rows = (chosen // USED * GRID[1] + chosen % USED).sort().values
    return LearnedConsistency(RowLayout(GRID, rows, USED))


def torch_consistency(learned: Any, v: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """As the released program has it, with the ball of the paper."""
    layout = learned.layout
    grid = v.new_zeros(len(v), 4, GRID[0] * GRID[1])
    grid[:, :2, layout.rows], grid[:, 2:, layout.rows] = y.unflatten(1, (2, -1)), v.unflatten(1, (2, -1))
    g = grid.unflatten(2, GRID)[..., :USED].flatten(2)
    for layer in learned.convs[:-1]:
        g = torch.relu(torch.conv1d(g, layer.weight, layer.bias, padding=1))
    g = torch.conv1d(g, learned.convs[-1].weight, learned.convs[-1].bias, padding=1)
    full = v.new_zeros(len(v), 2, *GRID)
    full[..., :USED] = g.unflatten(2, (GRID[0], USED))
    proposal = full.flatten(2)[:, :, layout.rows].flatten(1)
    distance = torch.linalg.vector_norm(proposal - y, dim=1)
    return y + (proposal - y) * (radius / distance).clamp(max=1.0)[:, None]


class TorchModel:
    """25 steps of DEQ-MPI in torch, by its four equations; A x is carried over from the end of the step before."""

    def __init__(self, net: DEQMPI, problem: Problem) -> None:
        self.net, self.A, self.inverse = net, problem.A.matrix, problem.inverse()

    def __call__(self, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        A, d1, d0, ax = self.A, torch.zeros_like(x), torch.zeros_like(y), x @ self.A.T
        for _ in range(STEPS):
            z0 = torch_consistency(self.net.consistency, ax - d0, y, radius)
            z1 = torch_rdn(self.net.rdn, (x - d1).view(-1, 26, 13)).flatten(1)
            x = ((z0 + d0) @ A + z1 + d1) @ self.inverse
            ax = x @ A.T
            d0, d1 = d0 + z0 - ax, d1 + z1 - x
        return x


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize(("batch", "goal"), [(1, 6 / 68), (64, 220 / 1160)])
@torch.inference_mode()
def test_deq_mpi(timed: Callable[..., None], batch: int, goal: float, impl: str) -> None:
    """Random weights: what is timed is arithmetic. They are small, for a map that does not amplify rounding."""
    torch.manual_seed(0)
    net = DEQMPI(consistency=learned_consistency(), iterations=STEPS)
    for p in net.parameters():
        p.mul_(0.5)
    A = torch.randn(M, N) @ torch.diag(torch.logspace(0, -3, N)) @ torch.randn(N, N)
    A *= (0.34 / A.square().sum(dim=1).mean()).sqrt()
    images = torch.rand(batch, N) * (torch.rand(batch, N) > 0.8)
    y, radius = images @ A.T + 0.02 * torch.randn(batch, M), torch.full((batch,), 0.02 * M**0.5)
    start = images + 0.1 * torch.randn(batch, N)
    wide = Problem(A.double(), (26, 13))
    expected = TorchModel(net.double(), wide)(start.double(), y.double(), radius.double()).unflatten(1, (26, 13))
    net.float()
    problem = Problem(A, (26, 13))
    plain = TorchModel(net, problem)
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: net.reconstruct(problem, y, radius, start).value,
        "torch": lambda: plain(start, y, radius).unflatten(1, (26, 13)),
    }
    timed(
        calls[impl],
        row=f"DEQ-MPI, {STEPS} steps, {M} x {N}, B={batch}",
        impl=impl,
        expected=expected,
        k=4096,  # 25 steps, each off by some eps of a dual that is tens of times the image
        goal={"ratio": goal, "against": "torch"},
        sizes={"batch": batch, "rows": M, "columns": N, "steps": STEPS},
    )
