"""All steps of DEQ-MPI in one call: image, duals, data step and network stay in cache from step to step.

The law. The state of a sample is (x, d1, d0), of n, n and M numbers; with c = penalty and the symmetric matrix
``inverse`` = M (I + c A^T A, inverted) one application f of the map is::

    z0 = D(A x - d0, y)          z1 = rdn(x - d1)
    x' = M (c A^T (d0 + z0) + d1 + z1)
    f(x, d1, d0) = (x', d1 + z1 - x', d0 + z0 - A x')

with D the projection onto ``|z0 - y| <= radius``, or ``z0 = y``, or a learned consistency. ``memory`` 0 takes plain
steps, else Anderson mixing over so many (:func:`anderson_mix`, beta 1). A sample ends with f of its state where
``|f(s) - s| <= tol (|f(s)| + 1e-5)``, after all steps, or where it is no longer finite.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    FLOATING,
    check_count,
    check_dtype,
    check_like,
    check_number,
    check_out,
    check_radius,
    check_shape,
    check_tuple,
    dense,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._anderson import MAX_MEMORY, _advance_reference
from pyrecon.ops._learned_consistency import _reference as _learned
from pyrecon.ops._learned_consistency import check_network
from pyrecon.ops._learned_consistency import weights_count as learned_count
from pyrecon.ops._product import product
from pyrecon.ops._rdn import _reference as _rdn
from pyrecon.ops._rdn import weights_count

DataStep = Literal["ball", "exact", "learned", "released"]
_DATA_STEPS: tuple[DataStep, ...] = get_args(DataStep)


# --- the reference ---------------------------------------------------------------------------------------------
def _reference(
    matrix: Tensor,
    inverse: Tensor,
    state: Tensor,
    y: Tensor,
    radius: Tensor,
    weights: Tensor,
    learned: Tensor,
    places: Tensor,
    height: int,
    width: int,
    features: int,
    growth: int,
    blocks: int,
    layers: int,
    data: int,
    points: int,
    learned_width: int,
    learned_layers: int,
    kernel: int,
    steps: int,
    memory: int,
    penalty: float,
    tol: float,
    ridge: float,
) -> tuple[Tensor, Tensor]:
    n = height * width
    network = features, growth, blocks, layers
    consistency = points, learned_width, learned_layers, kernel, _DATA_STEPS[data] == "released"

    def advance(state: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        x, d1, d0 = state.split((n, n, len(matrix)), dim=1)
        v = product(x, matrix.T) - d0
        if _DATA_STEPS[data] == "ball":
            distance = torch.linalg.vector_norm(v - y, dim=1)
            z0 = torch.lerp(y, v, torch.where(distance <= radius, 1.0, radius / distance)[:, None])
        elif _DATA_STEPS[data] == "exact":
            z0 = y
        else:
            z0 = _learned(v, y, radius, learned, places, *consistency)
        z1 = _rdn((x - d1).view(-1, height, width), weights, *network).flatten(1)
        d0, d1 = d0 + z0, d1 + z1
        x = product(penalty * product(d0, matrix) + d1, inverse)
        return torch.cat((x, d1 - x, d0 - product(x, matrix.T)), dim=1)

    batch, now = len(state), state.clone()
    out, report = torch.empty_like(state), state.new_zeros(batch, 3)
    rows = torch.arange(batch, device=state.device)
    H, G = (state.new_zeros(batch, memory, state.shape[1]) for _ in range(2))
    gram = state.new_zeros(batch, memory, memory, dtype=torch.float64)
    count = torch.zeros_like(rows)
    for step in range(1, steps + 1):
        new = advance(now, y[rows], radius[rows])
        norms = torch.stack([(v.double() ** 2).sum(1) for v in (new - now, new)], dim=1)
        change = norms[:, 0].sqrt() / (norms[:, 1].sqrt() + 1e-5)
        done = ~(norms.sum(1) < 1e300)
        if step == 1:
            report[:, 1] = change.to(report.dtype)
        elif not (memory or tol) and step < steps:
            done = torch.zeros_like(done)  # nobody looks
        report[rows, 0], report[rows, 2] = float(step), change.to(report.dtype)
        if tol > 0:
            done = done | (change <= tol)
        if step == steps:
            done = torch.ones_like(done)
        out[rows[done]] = new[done]
        if memory:
            _advance_reference(now, [new], rows, H, G, gram, count, 1.0, ridge, False, 0.0)
        else:
            now = new
        rows, now = rows[~done], now[~done]
        if not len(rows):
            break
    return out, report


# --- the kernel ------------------------------------------------------------------------------------------------
def _cpp(*arguments: Any) -> None:
    *inputs, out, report = arguments
    tensors, config = inputs[:8], inputs[8:]
    state, rows = inputs[2], len(inputs[0])
    run = _core.deq_mpi_f32 if state.dtype == torch.float32 else _core.deq_mpi_f64
    addresses = [tensor.data_ptr() for tensor in (*tensors, out, report)]
    run(*addresses, len(state), rows, *config, kernel_threads())


_deq_mpi = Op(
    "deq_mpi(Tensor matrix, Tensor inverse, Tensor state, Tensor y, Tensor radius, Tensor weights, Tensor learned, "
    "Tensor places, int height, int width, int features, int growth, int blocks, int layers, int data, int points, "
    "int learned_width, int learned_layers, int kernel, int steps, int memory, float penalty, float tol, float ridge) "
    "-> (Tensor, Tensor)",
    outputs=lambda matrix, inverse, state, *_: (
        torch.empty_like(state),
        state.new_empty(len(state), 3),
    ),
    reference=_reference,
    kernels={"cpp": _cpp},
)


# --- the public function ---------------------------------------------------------------------------------------
def deq_mpi(
    matrix: Tensor,
    inverse: Tensor,
    state: Tensor,
    y: Tensor,
    radius: Tensor | float,
    weights: Tensor,
    learned: Tensor | None = None,
    places: Tensor | None = None,
    *,
    shape: tuple[int, int],
    steps: int,
    features: int = 12,
    growth: int = 12,
    blocks: int = 4,
    layers: int = 4,
    data: DataStep = "ball",
    points: int = 0,
    learned_width: int = 8,
    learned_layers: int = 3,
    kernel: int = 3,
    penalty: float = 1.0,
    memory: int = 0,
    tol: float = 0.0,
    ridge: float = 1e-4,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The iteration of :class:`pyrecon.models.DEQMPI` at inference, as a function of its weights.

    Parameters
    ----------
    matrix, inverse
        A ``(M, n)`` and the symmetric ``(I + c A^T A)^-1`` ``(n, n)``, float32 or float64.
    state
        ``(B, 2 n + M)``: image, its dual and the data's dual, side by side; where the iteration starts.
    y, radius
        ``(B, M)`` data and the norm of their noise, a number or ``(B,)``.
    weights, shape, features, growth, blocks, layers
        The network, as in :func:`rdn`, and the size ``(H, W)`` of an image, H W = n.
    data
        ``"ball"``: projection. ``"exact"``: z0 = y. ``"learned"`` and ``"released"``: :func:`learned_consistency`.
    learned, places, points, learned_width, learned_layers, kernel
        Its weights, where the rows lie, and its sizes.
    steps, memory, tol, ridge
        Most steps; history of Anderson mixing, up to 32, 0 for plain steps; the change at which a sample ends (0: after
        all steps); regularisation of the mixing, relative.
    penalty
        c, as in ``inverse``.
    out
        Buffers for the results, sharing no memory with the inputs.

    Returns
    -------
    tuple[Tensor, Tensor]
        States ``(B, 2 n + M)``, and ``(B, 3)``: steps taken, and the change of the first and of the last step.
        What is not finite stays in its sample. Not differentiable: for gradients at the fixed point see
        :meth:`pyrecon.models.DEQMPI.forward`.

    Notes
    -----
    CPU (C++, the same bits on any number of threads); elsewhere in torch. With plain steps and no ``tol`` a sample that
    is not finite is only noticed at the end. Gungor et al., DEQ-MPI, IEEE Transactions on Medical Imaging 2024, Eqs.
    20-25.
    """
    check_dtype("state", state, FLOATING)
    check_like("matrix", matrix, "state", state)
    check_shape("matrix", matrix, (None, None), "(M, n)")
    rows, n = matrix.shape
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] != n:
        raise ValueError(f"shape: images of {shape} do not have the {n} voxels of the matrix")
    check_shape("state", state, (None, 2 * n + rows), "(B, 2 n + M)")
    batch = state.shape[0]
    if data not in _DATA_STEPS:
        raise ValueError(f"data: {data!r}, expected one of {', '.join(_DATA_STEPS)}")
    config = features, growth, blocks, layers
    counts = ("features", features), ("growth", growth), ("blocks", blocks), ("layers", layers), ("steps", steps)
    for name, count in counts:
        check_count(name, count)
    check_count("memory", memory, 0, MAX_MEMORY)
    check_number("penalty", penalty, above=True)
    check_number("tol", tol)
    check_number("ridge", ridge)
    check_dtype("y", y, FLOATING)
    radius = check_radius("radius", radius, y)
    for name, value, expected, text in (
        ("inverse", inverse, (n, n), "(n, n)"),
        ("y", y, (batch, rows), "(B, M)"),
        ("radius", radius, (batch,), "(B,)"),
        ("weights", weights, (weights_count(*config),), "all parameters of the network"),
    ):
        check_like(name, value, "state", state)
        check_shape(name, value, expected, text)
    learned, places = _checked(data, learned, places, state, rows, (points, learned_width, learned_layers, kernel))
    tensors = matrix, inverse, state, y, radius, weights, learned
    if needs_grad(*tensors):
        raise ValueError("deq_mpi: has no gradient; call it under torch.no_grad(), or train with pyrecon.models.DEQMPI")
    if out is not None:
        check_tuple("out", out, "states", "report")
        check_out("out[0]", out[0], state.shape, state, inputs=(*tensors, places))
        check_out("out[1]", out[1], torch.Size((batch, 3)), state, inputs=(*tensors, places, out[0]))
    sizes = points, learned_width, learned_layers, kernel
    result: tuple[Tensor, Tensor] = _deq_mpi(
        *(dense(tensor) for tensor in (*tensors, places)), *shape, *config, _DATA_STEPS.index(data), *sizes, steps,
        memory, float(penalty), float(tol), float(ridge), out=out,
    )  # fmt: skip
    return result


def _checked(
    data: str, learned: Tensor | None, places: Tensor | None, state: Tensor, rows: int, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    if data not in ("learned", "released"):
        if learned is not None or places is not None:
            raise ValueError(f"learned, places: are not for data={data!r}")
        return state.new_empty(0), torch.empty(0, dtype=torch.int64, device=state.device)
    if learned is None or places is None:
        raise ValueError(f"learned, places: data={data!r} needs weights and where the rows lie")
    check_network(sizes, "points", "learned_width", "learned_layers", "kernel")
    if rows % 2:
        raise ValueError(f"matrix: {rows} rows are no real and imaginary parts")
    check_like("learned", learned, "state", state)
    check_shape("learned", learned, (learned_count(*sizes[1:]),), "all parameters of the network")
    check_like("places", places, "state", state, dtype=torch.int64)
    check_shape("places", places, (rows // 2,), "(M / 2,)")
    return learned, places
