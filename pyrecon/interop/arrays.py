"""Arrays of other packages in and out, without a copy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def as_tensor(array: Any) -> Tensor:
    """A tensor that shares its memory with an array of NumPy, CuPy or any other package that speaks DLPack.

    Strides, dtype and device stay. A tensor comes back as it is. NumPy arrays that are read-only or run backwards are
    copied, because torch has no such tensors; ``TypeError`` for what is no array.
    """
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        if not array.dtype.isnative:
            raise TypeError(f"array: byte order of dtype {array.dtype} is foreign; call array.astype('=...') first")
        usable = array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()
        return torch.from_numpy(usable)
    if hasattr(array, "__dlpack__"):
        return torch.from_dlpack(array)  # type: ignore[attr-defined]
    raise TypeError(f"array: {type(array).__name__} is no array: it has no __dlpack__")


def on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """An op, or any function of tensors, as a function of arrays.

    Arrays among the arguments, ``out=`` included, become tensors that share their memory; tensors in the result become
    arrays of the package the first array came from, again without a copy. CuPy arrays are worked on in CuPy's current
    stream, so nothing needs to be synchronised. Numbers and everything else pass through::

        kaczmarz = on_arrays(pyrecon.ops.kaczmarz)
        image = kaczmarz(A, y, weight=0.1)        # NumPy in, NumPy out
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        package: list[str] = []

        def enter(value: Any) -> Any:
            if isinstance(value, Tensor) or not hasattr(value, "__dlpack__"):
                return value
            package.append(type(value).__module__.partition(".")[0])
            return as_tensor(value)

        args, kwargs = tree_map(enter, (args, kwargs))
        kind = package[0] if package else "torch"
        with torch.no_grad() if package else nullcontext(), _stream_of(kind):
            result = function(*args, **kwargs)
            return tree_map(lambda value: _leave(value, kind) if isinstance(value, Tensor) else value, result)

    return call


def _leave(tensor: Tensor, kind: str) -> Any:
    if kind == "torch":
        return tensor
    tensor = tensor.resolve_conj().resolve_neg()
    if kind == "numpy":
        return tensor.numpy()
    if kind == "cupy":
        import cupy  # type: ignore[import-not-found]

        return cupy.from_dlpack(tensor)
    # Whoever speaks DLPack takes tensors by it.
    return tensor


@contextmanager
def _stream_of(kind: str) -> Iterator[None]:
    """Work on the stream of the caller's package."""
    if kind != "cupy":
        yield
        return
    import cupy

    with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)):
        yield
