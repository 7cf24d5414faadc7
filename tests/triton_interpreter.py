"""The Triton kernels on CPU tensors, under the interpreter: run as its own pytest process (see .ci/run).

``TRITON_INTERPRET`` must be set before the kernels are imported, so these tests cannot share a process with others.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import pyrecon
from pyrecon import testing
from pyrecon._library import _OPS
from pyrecon.testing.cases import CASES, Case

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
TRITON = [case for case in CASES if case.tiny and "triton" in _OPS[case.op.__name__].kernels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", TRITON, ids=str)
def test_triton_kernel_obeys_the_law(case: Case, dtype: torch.dtype) -> None:
    if dtype not in case.dtypes:
        return
    inputs = case.inputs(dtype)
    wide = tree_map_only(Tensor, lambda t: t.to(WIDE.get(t.dtype, t.dtype)), inputs)
    with pyrecon.backend("reference"):
        expected = case.op(*wide, **case.options)
    with pyrecon.backend("triton"), testing.poisoned_memory(), testing.record_calls() as calls:
        answer = case.op(*inputs, **case.options)
    assert {call.backend for call in calls} == {"triton"}
    pairs = zip(answer, expected, strict=True) if isinstance(answer, tuple) else [(answer, expected)]
    for value, wanted in pairs:
        testing.assert_close_to_reference(value, wanted, k=case.k)
