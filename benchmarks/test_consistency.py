"""Speed of pyrecon.ops.consistency at the size of an MPI system matrix: 5,486 selected rows, 13x26 pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrecon.ops import project_l2_ball


def torch_project(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> Tensor:
    torch.sub(v, center, out=out)
    norm = torch.linalg.vector_norm(out, dim=1, keepdim=True)
    out *= (radius[:, None] / norm).clamp_(max=1.0)
    return out.add_(center)


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("batch", [1, 64])
def test_project_l2_ball(timed, impl: str, batch: int) -> None:
    m = 5486
    generator = torch.Generator().manual_seed(0)
    v, center = (torch.randn(batch, m, generator=generator) for _ in range(2))
    radius = torch.full((batch,), 0.5 * m**0.5)
    out = torch.empty_like(v)
    call = {
        "pyrecon": lambda: project_l2_ball(v, center, radius, out=out),
        "torch": lambda: torch_project(v, center, radius, out),
    }
    timed(
        call[impl],
        row=f"l2-ball projection, {batch} x {m}",
        impl=impl,
        expected=torch_project(v.double(), center.double(), radius.double(), out.double()),
        k=34,
        bytes_moved=3 * 4 * batch * m,
        flops=6 * batch * m,
        sizes={"batch": batch, "rows": m},
    )
