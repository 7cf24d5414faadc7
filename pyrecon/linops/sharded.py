"""A system matrix too large for one device: its rows spread over the processes of torch.distributed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyrecon.linops._base import LinearOperator
from pyrecon.ops import project_l2_ball


class ShardedSystemMatrix(LinearOperator):
    """``A x`` with the rows of A on several processes, made by :meth:`SystemMatrix.shard`.

    Images and data are whole on every process and the same on all of them, only A is spread: of the two, A is the large
    one by a factor of N / B. So it stands wherever :class:`SystemMatrix` stands, and every process calls it. A product
    with A gathers the parts of the result, ``(B, M)`` numbers; one with ``A^H`` adds them up, ``(B, N)``.

    Gradients reach images and data. Those in the matrix are taken rows by rows, each process those of its own.

    Attributes
    ----------
    rows
        ``(M_i, N)``, the rows of this process.
    first
        Number of the first of them.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, total: int, first: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.first, self.group = first, group
        self.range_shape, self.domain_shape = (total,), (rows.shape[1],)

    def forward(self, x: Tensor) -> Tensor:
        return _Forward.apply(x.to(self.rows.dtype), self.rows, self)  # type: ignore[no-any-return,no-untyped-call]

    def adjoint(self, y: Tensor) -> Tensor:
        return _Adjoint.apply(y.to(self.rows.dtype), self.rows, self)  # type: ignore[no-any-return,no-untyped-call]

    def consistency(
        self, x: Tensor, d: Tensor, y: Tensor, radius: Tensor | float, *, Ax: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`pyrecon.ops.sm_consistency` with this matrix: ``z, r, Ax``."""
        Ax = self(x) if Ax is None else Ax
        z = project_l2_ball(Ax - d, y, radius)
        r = self.adjoint(z + d)
        return z, r if x.is_complex() or not r.is_complex() else r.real, Ax

    def _gathered(self, part: Tensor) -> Tensor:
        """The parts of all processes, ``(B, M_i)`` each, side by side."""
        sizes = [stop - start for start, stop in shares(self.range_shape[0], self.group)]
        padded = torch.nn.functional.pad(part, (0, max(sizes) - part.shape[1])).contiguous()  # gloo wants equal sizes
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([whole[:, :size] for whole, size in zip(parts, sizes, strict=True)], dim=1)

    def _summed(self, part: Tensor) -> Tensor:
        # gloo and NCCL know no complex numbers in every version; a sum of pairs is a sum of complex numbers.
        part = part.contiguous()
        dist.all_reduce(torch.view_as_real(part) if part.is_complex() else part, group=self.group)
        return part

    def _own(self, y: Tensor) -> Tensor:
        return y[:, self.first : self.first + len(self.rows)]


def shard(matrix: Tensor, mesh: Any = None) -> ShardedSystemMatrix:
    """See :meth:`SystemMatrix.shard`."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("shard: torch.distributed is not initialised; call torch.distributed.init_process_group")
    if mesh is None:
        group = dist.group.WORLD
    elif isinstance(mesh, dist.ProcessGroup):
        group = mesh
    else:
        if mesh.ndim != 1:
            raise ValueError(f"mesh: has {mesh.ndim} dimensions, expected one; take a dimension with mesh['name']")
        group = mesh.get_group()
    if group is None or dist.get_rank(group) < 0:
        raise RuntimeError("mesh: this process is not part of it")
    start, stop = shares(len(matrix), group)[dist.get_rank(group)]
    return ShardedSystemMatrix(matrix[start:stop].clone(), len(matrix), start, group)


def shares(total: int, group: dist.ProcessGroup) -> list[tuple[int, int]]:
    """First row and the one after the last of every process; sizes differ by one at most."""
    count = dist.get_world_size(group)
    return [(total * i // count, total * (i + 1) // count) for i in range(count)]


class _Forward(torch.autograd.Function):
    """``A x``. All processes hold the same gradient of the whole result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, operator: ShardedSystemMatrix) -> Tensor:
        ctx.save_for_backward(x, rows)
        ctx.operator = operator
        return operator._gathered(x @ rows.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, rows = ctx.saved_tensors
        to_x, to_rows = ctx.needs_input_grad[:2]
        grad_x = _Adjoint.apply(grad, rows, ctx.operator) if to_x else None  # type: ignore[no-untyped-call]
        return grad_x, ctx.operator._own(grad).mT @ x.conj() if to_rows else None, None


class _Adjoint(torch.autograd.Function):
    """``A^H y``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rows: Tensor, operator: ShardedSystemMatrix) -> Tensor:
        ctx.save_for_backward(y, rows)
        ctx.operator = operator
        return operator._summed(operator._own(y) @ rows.conj())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, rows = ctx.saved_tensors
        to_y, to_rows = ctx.needs_input_grad[:2]
        grad_y = _Forward.apply(grad, rows, ctx.operator) if to_y else None  # type: ignore[no-untyped-call]
        return grad_y, ctx.operator._own(y).mT @ grad.conj() if to_rows else None, None
