"""What misuse.py puts in place of arguments that work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = 3


class Boom(Exception):
    """What a user's callable raises reaches the user as it is."""


def freed(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def cut(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.nbytes // 2)
    return t


def cut_view(t: Tensor) -> Tensor:
    t = torch.cat([t, t]).mT if t.dim() == 2 else torch.cat([t, t])
    t.untyped_storage().resize_(t.nbytes // 2)
    return t


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "double": lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64),
    "half": lambda t: t.real.half() if t.is_complex() else t.half(),
    "bfloat16": lambda t: t.real.bfloat16() if t.is_complex() else t.bfloat16(),
    "int": lambda t: torch.ones(t.shape, dtype=torch.int64),
    "far ints": lambda t: torch.full(t.shape, 2**62, dtype=torch.int64),
    "low ints": lambda t: torch.full(t.shape, -(2**63), dtype=torch.int64),
    "bool": lambda t: torch.ones(t.shape, dtype=torch.bool),
    "complex": lambda t: t.to(torch.complex64),
    "real": lambda t: t.real,
    "meta": lambda t: t.to("meta"),
    "numpy": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "class": lambda t: Tensor,
    "sparse": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr() if t.dim() == 2 else t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(torch.ones(t.shape), 0.1, 0, torch.qint8),
    "no rows": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "no axis 1": lambda t: t[:, :0] if t.dim() > 1 else t[:0],
    "fewer rows": lambda t: t[:1],
    "more rows": lambda t: torch.cat([t, t]) if t.dim() else t,
    "an axis more": lambda t: t[None],
    "an axis less": lambda t: t[0] if t.dim() and len(t) else t,
    "number": lambda t: torch.zeros((), dtype=t.dtype),
    "NaN": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() or t.is_complex() else t,
    "infinite": lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() or t.is_complex() else t,
    "huge": lambda t: torch.full_like(t, 1e38) if t.is_floating_point() or t.is_complex() else t,
    "negative": lambda t: -t.abs() - 1 if t.is_floating_point() else t,
    "zero": torch.zeros_like,
    "strided": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "expanded": lambda t: t[:1].expand(t.shape) if t.dim() else t,
    "conjugate": lambda t: t.conj(),
    "needs grad": lambda t: t.clone().requires_grad_(t.is_floating_point() or t.is_complex()),
    "parameter": lambda t: nn.Parameter(t.clone(), requires_grad=False),
    "freed": freed,
    "freed view": lambda t: freed(t)[:1],
    "freed transposed": lambda t: freed(t).mT if t.dim() > 1 else freed(t),
    "cut": cut,
    "cut view": cut_view,
}
NUMBERS: list[Any] = [
    -1,
    -1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    True,
    "3",
    2.5,
    np.float64(0.5),
    1 + 1j,
]
NUMBERS += [10**400, [1.0], np.ones(2), torch.tensor(0.5), torch.tensor(-1.0), torch.tensor([1, 2])]
COUNTS: list[Any] = [-1, 0, 1, 2.5, float("nan"), True, "3", 2**63, 10**30, np.int64(2), np.float32(2), torch.tensor(2)]
ANYTHING: list[Any] = [None, "text", b"bytes", object(), [], (), {}, Tensor, torch.float32, nn.ReLU, print, 3, -2.0]


def boom(*_: Any) -> Any:
    raise Boom


def in_place(*a: Any) -> Any:
    parts = a[0] if isinstance(a[0], tuple) else (a[0],)
    for part in parts:
        part.mul_(0.5)
    return a[0]


def under_autocast(t: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return t @ torch.eye(t.shape[-1], dtype=t.dtype)


def with_parts(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda x, *_: tuple(map(change, x)) if isinstance(x, tuple) else change(x)


def blamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """What goes wrong in a user's callable is the user's."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise Boom from error

    return call


CALLABLES: dict[str, Callable[..., Any]] = {
    "raises": boom,
    "returns None": lambda *_: None,
    "returns a number": lambda *_: 3,
    "returns the class": lambda *_: Tensor,
    "returns a pair": lambda x, *_: (x, x),
    "returns nothing": lambda *_: (),
    "takes nothing": lambda: None,
    "works in place": in_place,
    "autocast": with_parts(under_autocast),
    "identity": lambda x, *_: x,
    "swapped": lambda x, *_: x[::-1] if isinstance(x, tuple) else x,
    "closes over a batch": lambda x, *_: with_parts(lambda p: 0.5 * p + torch.ones(BATCH, *p.shape[1:], dtype=p.dtype))(
        x
    ),
    **{f"returns {name}": with_parts(change) for name, change in TENSORS.items()},
}


def misuses(valid: Any, others: dict[str, Any]) -> st.SearchStrategy[tuple[str, Any]]:
    """Strategies of (what, value) for an argument whose value is ``valid``."""
    foreign = st.sampled_from(ANYTHING).map(lambda v: (repr(v), v))
    if isinstance(valid, Tensor):
        made = st.sampled_from(sorted(TENSORS)).map(lambda name: (name, lambda: TENSORS[name](valid)))
        tensors = [(name, other) for name, other in others.items() if isinstance(other, Tensor)]
        same = st.sampled_from(tensors).map(lambda pair: (f"the same as {pair[0]}", pair[1]))
        return st.one_of(made, made, made, same, foreign)
    if isinstance(valid, bool | str) or valid is None:
        return foreign
    if isinstance(valid, int):
        return st.one_of(st.sampled_from(COUNTS).map(lambda v: (repr(v)[:40], v)), foreign)
    if isinstance(valid, float):
        return st.one_of(st.sampled_from(NUMBERS).map(lambda v: (repr(v)[:40], v)), foreign)
    if isinstance(valid, tuple) and valid and all(isinstance(v, Tensor) for v in valid):
        made = st.sampled_from(sorted(TENSORS)).map(
            lambda name: (name, lambda: (*valid[:-1], TENSORS[name](valid[-1])))
        )
        return st.one_of(made, foreign, st.just(("twice the same", (valid[0],) * len(valid))))
    if callable(valid):
        names = st.sampled_from(sorted(CALLABLES))
        return st.one_of(names.map(lambda name: (name, blamed(CALLABLES[name]))), foreign)
    return foreign
