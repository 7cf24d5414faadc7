"""How an op comes to exist: one law, one reference, one kernel per device, one registration.

An :class:`Op` is defined by a plain-torch reference and has hand-written kernels beside it. In eager mode it calls the
kernel directly; while a graph is captured, traced or transformed it goes through the registered ``torch.ops.pyrecon``.
Measured on 2 CPU threads: the direct call costs 1.6-2.2 us, ``torch.library.custom_op`` 7-8 us, and these ops are
called thousands of times in one reconstruction.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")

_LIBRARY = torch.library.Library("pyrecon", "DEF")
_OPS: dict[str, Op] = {}

# Called with (op, backend, inputs) after each run; testing.record_calls() sets it.
_listener: Callable[[str, str, tuple[Any, ...]], None] | None = None


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend: {name!r} is not known, expected one of {', '.join(BACKENDS)}")
    return name


_DEFAULT_BACKEND = _known_backend(os.environ.get("PYRECON_BACKEND", "auto"))
_backend: ContextVar[str] = ContextVar("pyrecon_backend", default=_DEFAULT_BACKEND)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose which implementation the ops in this block run.

    ``"auto"`` takes the kernel of the tensors' device (C++ on a CPU; Triton or CUDA on a GPU) and the reference where a
    device has none. ``"reference"`` takes the plain-torch definition of every op. ``"cpp"``, ``"triton"``, ``"cuda"``
    insist on one kind of kernel and raise ``RuntimeError`` where an op has none. The environment variable
    ``PYRECON_BACKEND`` sets the default. The choice belongs to the current thread or task, not to the process, and is
    made when an op runs, so compiled graphs obey it too. (Autograd runs the backward of GPU tensors in a thread of its
    own, which sees the default.)
    """
    token = _backend.set(_known_backend(name))
    try:
        yield
    finally:
        _backend.reset(token)


def registered_ops() -> dict[str, tuple[str, ...]]:
    """Names of all ops and the kernels each one has besides its reference."""
    return {name: tuple(op.kernels) for name, op in sorted(_OPS.items())}


class Op:
    """One registered op.

    Parameters
    ----------
    schema
        Name and torch schema of the functional form, e.g. ``"dst1(Tensor x) -> Tensor"``.
    outputs
        ``outputs(*inputs)`` allocates the result; it is also the op's fake implementation, so it may use
        only metadata. A tensor, or a tuple of tensors.
    reference
        ``reference(*inputs)`` returns the result in plain torch operations; it defines the op.
    kernels
        Backend name to ``kernel(*inputs, *outs)``, which writes dense outputs. A device takes the first one it can run.
    """

    def __init__(
        self,
        schema: str,
        *,
        outputs: Callable[..., Any],
        reference: Callable[..., Any],
        kernels: dict[str, Callable[..., None]],
    ) -> None:
        self.name = schema.partition("(")[0]
        self.outputs = outputs
        self.reference = reference
        self.kernels = kernels
        _LIBRARY.define(schema)
        # The composite key serves every device that has no kernel of its own through the reference.
        _LIBRARY.impl(self.name, self._functional, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pyrecon::{self.name}", outputs, lib=_LIBRARY)
        self._packet = getattr(torch.ops.pyrecon, self.name)
        _OPS[self.name] = self

    def __call__(self, *inputs: Any, out: Any = None) -> Any:
        """Run on dense inputs; ``out`` (a tensor, or a tuple for several results) is written and returned."""
        if _is_traced():
            result = self._packet(*inputs)
            if out is None:
                return result
            for target, value in zip(_as_tuple(out), _as_tuple(result), strict=True):
                target.copy_(value)
            return out
        return self._run(inputs, out)

    def _functional(self, *inputs: Any) -> Any:
        return self._run(inputs, None)

    def _run(self, inputs: tuple[Any, ...], out: Any) -> Any:
        chosen = self._choose(inputs)
        if chosen == "reference":
            result = self.reference(*inputs)
            if out is not None:
                for target, value in zip(_as_tuple(out), _as_tuple(result), strict=True):
                    target.copy_(value)
                result = out
        else:
            result = self.outputs(*inputs) if out is None else out
            if isinstance(result, tuple):
                self.kernels[chosen](*inputs, *result)
            else:
                self.kernels[chosen](*inputs, result)
        if _listener is not None:
            _listener(self.name, chosen, inputs)
        return result

    def _choose(self, inputs: tuple[Any, ...]) -> str:
        wanted = _backend.get()
        if wanted == "reference":
            return wanted
        if wanted != "auto":
            if wanted not in self.kernels:
                have = ", ".join(self.kernels) or "none"
                raise RuntimeError(f"backend({wanted!r}): {self.name} has no such kernel (it has: {have})")
            return wanted
        return self.kernel_for(inputs[0]) or "reference"

    def kernel_for(self, tensor: Tensor) -> str | None:
        """The kernel that tensors of this device get by themselves; None where it has none."""
        if tensor.is_cuda:
            for name in ("triton", "cuda"):
                if name in self.kernels and _GPU_AVAILABLE[name]():
                    return name
        elif tensor.is_cpu and "cpp" in self.kernels:
            return "cpp"
        return None


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors must be recorded: public functions skip ``autograd.Function`` otherwise."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a plain loop: any() over a generator takes twice the time
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def wants_gradient(ctx: Any, index: int) -> bool:
    """Whether this backward pass uses the gradient of input ``index`` of a Function; call it from its ``backward``.

    ``ctx.needs_input_grad`` says only whether the input requires one: it is True also in ``torch.autograd.grad`` for
    other inputs, as the pullbacks of an implicit gradient are. True where that cannot be told.
    """
    if not ctx.needs_input_grad[index] or torch.compiler.is_compiling():
        return bool(ctx.needs_input_grad[index])
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[index][0]))
    except (AttributeError, RuntimeError, TypeError):  # a functional transform; a leaf that grad() was asked for
        return True


def runs_kernel(*tensors: Tensor, op: str | None = None) -> bool:
    """Whether a network on these tensors runs as one op: on a CPU, where it has a kernel and a gradient.

    On a GPU the kernel of ``op``, if named and there, has no gradient: it serves inference, in the precision of its
    inputs, so that under autocast the modules run. Functional transforms would call an op slice by slice, and it has no
    derivatives in forward mode.
    """
    first = tensors[0]
    if not first.is_cpu and (
        op is None
        or _OPS[op].kernel_for(first) is None
        or needs_grad(*tensors)
        or torch.is_autocast_enabled(first.device.type)
    ):
        return False
    return (
        first.dtype in (torch.float32, torch.float64)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _is_traced() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _has_cuda_module() -> bool:
    from importlib.util import find_spec

    return find_spec("pyrecon._cuda") is not None


def _once(probe: Callable[[], bool]) -> Callable[[], bool]:
    known: list[bool] = []

    def ask() -> bool:
        if not known:
            known.append(probe())
        return known[0]

    return ask


_GPU_AVAILABLE = {"triton": _once(_has_triton), "cuda": _once(_has_cuda_module)}
