"""Argument checks shared by every op and solver: an error names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

FLOATING = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

# dtype.to_real() as a table: Dynamo traces a lookup, not the method.
REAL_OF = {dtype: dtype.to_real() for dtype in COMPLEX} | {dtype: dtype for dtype in FLOATING}


_LARGEST = {dtype: torch.finfo(dtype).max for dtype in FLOATING}  # as a table, for Dynamo


def check_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise TypeError unless ``tensor`` is a dense tensor with one of the ``allowed`` dtypes, memory behind it."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {described(tensor)}")
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name}: dtype {str(tensor.dtype).removeprefix('torch.')} is not supported, expected {names}")
    if not is_dynamo_compiling():  # half the time of is_compiling()
        check_memory(name, tensor)


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Raise unless ``tensor`` has the dtype (``dtype`` if given) and the device of ``other``, memory behind it."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {described(tensor)}")
    expected = other.dtype if dtype is None else dtype
    if tensor.dtype != expected:
        raise TypeError(
            f"{name}: dtype {tensor.dtype} does not match {other_name} ({other.dtype}), expected {expected}"
        )
    if tensor.device != other.device:
        raise ValueError(f"{name}: is on {tensor.device}, but {other_name} is on {other.device}")
    if not is_dynamo_compiling():  # half the time of is_compiling()
        check_memory(name, tensor)


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | None], meaning: str) -> None:
    """Raise ValueError unless the shape is ``expected`` (``None`` matches any size); ``meaning`` names the axes."""
    shape = tensor.shape
    if shape == expected:  # the common case by far: 0.2 us against 1.2 us for the axis-by-axis look
        return
    if len(shape) != len(expected) or any(e is not None and e != s for s, e in zip(shape, expected, strict=True)):
        wanted = ", ".join("?" if e is None else str(e) for e in expected)
        raise ValueError(f"{name}: shape {tuple(shape)} does not fit, expected {meaning} = ({wanted})")


def check_memory(name: str, tensor: Tensor) -> None:
    """Raise unless all that a strided tensor describes exists: a kernel that reads a freed storage ends the process.

    Sharded training frees parameters by ``untyped_storage().resize_(0)``. 0.2 us where the tensor is its whole storage.
    """
    try:
        held = tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # sparse, or the stand-in of a functional transform
        if tensor.layout != torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise TypeError(f"{name}: has the layout {kind}, expected a dense tensor; call .to_dense()") from None
        return
    needed, offset = tensor.nbytes, tensor.storage_offset()
    if (held == needed and not offset) or not needed:
        return
    if tensor.is_contiguous():
        end = offset * tensor.itemsize + needed
    else:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        end = (offset + 1 + sum((size - 1) * stride for size, stride in steps)) * tensor.itemsize
    if end > held and not tensor.is_meta:
        raise ValueError(f"{name}: its storage of {held} bytes was freed or cut, shape {tuple(tensor.shape)} is gone")


def check_radius(name: str, radius: Tensor | float, like: Tensor) -> Tensor:
    """``radius``, a number or ``(B,)``, as a tensor (B,) of the real dtype of ``like`` (B, ...)."""
    dtype = REAL_OF[like.dtype]
    if not isinstance(radius, Tensor):
        return filled(name, radius, like.shape[:1], dtype, like.device, finite=False)
    check_dtype(name, radius, (dtype,))
    if radius.device != like.device:
        raise ValueError(f"{name}: is on {radius.device}, but the data are on {like.device}")
    if radius.dim() == 0:
        return radius.expand(like.shape[:1])
    check_shape(name, radius, like.shape[:1], "a number or (B,)")
    return radius


def check_out(
    name: str, out: Tensor | None, shape: Sequence[int], like: Tensor, *, inputs: Sequence[Tensor] = ()
) -> None:
    """Raise unless ``out`` can be written as a dense result that shares no memory with ``inputs`` and needs no grad."""
    if out is None:
        return
    check_like(name, out, "the result", like)
    check_shape(name, out, shape, "the result's shape")
    if not out.is_contiguous():
        raise ValueError(f"{name}: must be contiguous, its strides are {out.stride()}")
    if out.requires_grad:
        raise ValueError(f"{name}: must not require grad; call without {name} to differentiate")
    if torch.compiler.is_compiling():
        return
    if out.is_conj() or out.is_neg():
        raise ValueError(f"{name}: is a lazy conjugate or negative of its memory, expected a plain tensor")
    start = out.data_ptr()
    stop = start + out.nbytes
    for tensor in inputs:
        if not tensor.is_contiguous():
            continue  # dense() reads it into a copy before anything is written
        other = tensor.data_ptr()
        if start < other + tensor.nbytes and other < stop:
            raise ValueError(f"{name}: shares memory with an input or another output; give it a buffer of its own")


def check_tuple(name: str, value: Any, *names: str) -> None:
    """Raise TypeError unless ``value`` is a tuple of as many tensors as there are ``names``."""
    if not isinstance(value, tuple) or len(value) != len(names):
        came = f"{len(value)} values" if isinstance(value, tuple) else described(value)
        raise TypeError(f"{name}: expected a tuple of {len(names)} tensors ({', '.join(names)}), got {came}")


def check_count(name: str, value: int, least: int = 1, most: int = 2**63 - 1) -> int:
    """``value`` as an int from ``least`` to ``most``; TypeError for what is no whole number, True and 3.0 included."""
    if type(value) is not int and not isinstance(value, torch.SymInt):
        if isinstance(value, bool | Tensor | type) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: {described(value)}, expected a whole number")
        value = index(value)
    if not least <= value <= most:
        limits = f"at least {least}" if most >= 2**63 - 1 > value else f"{least} to {most}"
        raise ValueError(f"{name}: {described(value)} does not fit, expected {limits}")
    return value


def check_number(name: str, value: float, least: float = 0.0, *, above: bool = False, finite: bool = True) -> float:
    """``value`` as a float from ``least`` (``above``: beyond it); TypeError for what is no real number."""
    if type(value) is not float and not isinstance(value, torch.SymFloat | torch.SymInt):
        if isinstance(value, bool | Tensor | str | type) or not hasattr(value, "__float__"):
            raise TypeError(f"{name}: {described(value)}, expected a number")
        try:
            value = float(value)
        except (OverflowError, TypeError, ValueError):
            raise TypeError(f"{name}: {described(value)}, expected a number") from None
    if not (value > least if above else value >= least) or (finite and value == math.inf):
        limit = "" if least == -math.inf else f" {'>' if above else '>='} {least:g}"
        raise ValueError(f"{name}: {value} does not fit, expected a {'finite ' if finite else ''}number{limit}")
    return value


def check_nonneg(nonneg: bool, x: Tensor) -> None:
    """Raise ValueError for positivity of complex numbers."""
    check_flag("nonneg", nonneg)
    if nonneg and x.is_complex():
        raise ValueError("nonneg: complex numbers have no order; pass real numbers, or nonneg=False")


def filled(
    name: str, value: float, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, finite: bool = True
) -> Tensor:
    """A tensor of one number from 0, which must be one in ``dtype`` too."""
    value = check_number(name, value, finite=finite)
    if value > _LARGEST[dtype] and value != math.inf:
        raise ValueError(f"{name}: {value} does not fit into {dtype}")
    return torch.full(shape, value, dtype=dtype, device=device)


def check_flag(name: str, value: bool) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if value is not True and value is not False:
        raise TypeError(f"{name}: {described(value)}, expected True or False")


def check_size(name: str, shape: Sequence[int], axes: int | None = None) -> tuple[int, ...]:
    """``shape`` as a tuple of positive sizes, ``axes`` of them if given."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"{name}: {described(shape)}, expected a tuple of sizes")
    sizes = tuple(check_count(name, n) for n in shape)
    if not sizes or (axes is not None and len(sizes) != axes):
        raise ValueError(f"{name}: {sizes} does not fit, expected {axes or 'at least one'} positive sizes")
    return sizes


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError for what cannot be called, and for a class where its instance or a function belongs."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name}: expected a function or a module, got {described(value)}")


def check_returned(name: str, value: Any, like: Tensor, what: str = "its argument") -> Tensor:
    """What a user's callable ``name`` returned, as a tensor like ``like``: its shape, dtype and device.

    Autocast makes a float32 function return half precision; the dtype of ``like`` holds, so that is cast back.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: returned {described(value)}, expected a tensor like {what}")
    if value.shape != like.shape:
        raise ValueError(f"{name}: returned shape {tuple(value.shape)}, expected {tuple(like.shape)}, that of {what}")
    if value.device != like.device:
        raise ValueError(f"{name}: returned a tensor on {value.device}, but {what} is on {like.device}")
    check_memory(name, value)
    if value.dtype != like.dtype:
        cast = torch.is_autocast_enabled(value.device.type) and value.is_floating_point() and like.is_floating_point()
        if not cast:
            raise TypeError(f"{name}: returned {value.dtype}, but {what} is {like.dtype}; cast the result")
        return value.to(like.dtype)
    return value


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself, or a contiguous copy with conjugate and negative bits resolved: what kernels read."""
    # In eager mode the look costs 0.3 us and the three calls below 0.6; Dynamo cannot trace the look.
    if not torch.compiler.is_compiling() and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous()


def described(value: Any) -> str:
    """A value in a few words: ``the class Anderson``, ``ndarray``, ``-1``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return type(value).__name__
