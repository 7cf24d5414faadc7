"""The Triton kernels on CPU tensors, under the interpreter: run as its own pytest process (see .ci/run).

``TRITON_INTERPRET`` must be set before the kernels are imported, so these tests cannot share a process with others.
"""

from __future__ import annotations

import os

import pytest
import torch

import pyrecon
from pyrecon import testing
from pyrecon._library import _OPS
from pyrecon.testing.cases import CASES, Case

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

TRITON = [case for case in CASES if case.tiny and "triton" in _OPS[case.op.__name__].kernels]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in TRITON for dtype in case.dtypes],
)
def test_triton_kernel_obeys_the_law(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    with pyrecon.backend("triton"), testing.poisoned_memory(), testing.record_calls() as calls:
        answer = case.op(*inputs, **case.options)
    assert {call.backend for call in calls} == {"triton"}
    for value, wanted in zip(answer if isinstance(answer, tuple) else (answer,), case.law(dtype), strict=True):
        testing.assert_close_to_reference(value, wanted, k=case.k)
