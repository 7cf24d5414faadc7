from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map_only

from pyrecon import backend
from pyrecon.testing._extended import extended

# make(generator, dtype) -> positional arguments of the public function; dtype is the dtype of its main input.
Make = Callable[[Generator, torch.dtype], tuple[Any, ...]]

SINGLE = (torch.float32, torch.complex64)
DOUBLE = (torch.float64, torch.complex128)
_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


@dataclass(frozen=True, eq=False)  # equal to itself only, so that a law is kept by its row
class Case:
    """One row of a case table: a public function, how to make its arguments, and how exact the answer must be.

    The error allowed against :meth:`law` is ``k * eps * max|reference|``; say at the row where k comes from.
    ``tiny`` cases also run under gradcheck (for the inputs numbered in ``grad``, twice if ``twice``), opcheck,
    ``torch.compile`` and the Triton interpreter, so they hold a few hundred numbers at most.
    """

    op: Callable[..., Any]
    name: str
    make: Make
    k: float
    options: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = (*SINGLE, *DOUBLE)
    tiny: bool = False
    grad: tuple[int, ...] = ()
    twice: bool = True

    def __str__(self) -> str:
        return f"{self.op.__name__}-{self.name}"

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Any, ...]:
        return self.make(torch.Generator().manual_seed(seed), dtype)

    @cache  # noqa: B019 (rows live as long as the process)
    def law(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The answer to ``inputs(dtype)`` by definition: the reference, in double precision.

        For inputs in double precision its sums are taken in extended precision, so that no error of this machine's
        libraries is laid at the kernel's door.
        """
        wide = tree_map_only(Tensor, lambda t: t.to(_WIDE.get(t.dtype, t.dtype)), self.inputs(dtype))
        with extended() if dtype in DOUBLE else backend("reference"):
            answer = self.op(*wide, **self.options)
        return answer if isinstance(answer, tuple) else (answer,)


def randn(generator: Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers that are the same in every precision: drawn in double, then rounded."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def complex_randn(generator: Generator, *shape: int, like: torch.dtype) -> Tensor:
    """Complex standard normal numbers in the precision of ``like``."""
    return randn(generator, *shape, dtype=like.to_complex())
