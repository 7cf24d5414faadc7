"""Chains of samplers on disk: a safetensors file from which a run goes on to the same numbers.

Metadata entry ``"pyrecon-chain"``, JSON: format version, steps, seed, place in the batch, counts, and facts of the
caller's. No tensor of a file is read before names, types and shapes of all of them fit one another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import REAL_OF
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon._solution import Status
from pyrecon.io._files import PathLike, existing_file, one_line, written_whole
from pyrecon.ops import Moments
from pyrecon.solvers import Batches, Chain, Draws

__all__ = ["read_chain", "write_chain"]

_KEY = "pyrecon-chain"
_FORMAT = 1
_HEADER_BYTES = 1 << 20
_DTYPES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I8": torch.int8,
}
_MEMORY = {"log_scale": torch.float64, "accepted": torch.int64, "tried": torch.int64}  # of MALA
_PLACES = ("steps", "seed", "first_sample")
_COUNTS = {"batches": "size", "draws": "every"}


def write_chain(path: PathLike, chain: Chain, facts: Mapping[str, Any] | None = None) -> None:
    """Write a chain, whole or not at all, with ``facts`` that JSON can hold: what it is a chain of."""
    from safetensors.torch import save

    if not isinstance(chain, Chain):
        raise TypeError(f"chain: expected a Chain, got {type(chain).__name__}")
    tensors = _tensors(chain)
    said: dict[str, Any] = {"format": _FORMAT, "facts": plain(dict(facts or {}))}
    said |= {name: getattr(chain, name) for name in _PLACES}
    for part, each in _COUNTS.items():
        if (held := getattr(chain, part)) is not None:
            said[part] = {"count": held.count, each: getattr(held, each)}
    packed = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # safetensors has no complex128: pairs, which the type of the state tells from others.
        packed[name] = torch.view_as_real(value) if value.dtype == torch.complex128 else value
    text = json.dumps(said, sort_keys=True, allow_nan=False)
    with written_whole(path) as temporary:
        temporary.write_bytes(save(packed, metadata={_KEY: text, "dtype": str(chain.x.dtype).removeprefix("torch.")}))


def read_chain(path: PathLike, *, device: torch.device | str = "cpu") -> tuple[Chain, dict[str, Any]]:
    """A chain and its facts as :func:`write_chain` wrote them; DataError naming what does not fit."""
    from safetensors import SafetensorError, safe_open

    path = existing_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER_BYTES, path.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {path.stat().st_size}")
            table = json.loads(file.read(length))
        metadata = table.pop("__metadata__", {})
        said = json.loads(metadata[_KEY])
        wide = metadata["dtype"] == "complex128"
        held = {
            str(name): (tuple(int(n) for n in entry["shape"]), _DTYPES.get(entry["dtype"]))
            for name, entry in table.items()
        }
        expected = _expected(held, said, wide)
        for name in sorted(held.keys() | expected.keys()):
            if held.get(name) != expected.get(name):
                raise ValueError(
                    f"{name} is {held.get(name, 'absent')}, expected {expected.get(name, 'no such entry')}"
                )
        with safe_open(path, framework="pt") as whole:  # checks that the table fits the file, byte by byte
            tensors = {name: whole.get_tensor(name).to(device) for name in expected}
        return _chain(tensors, said, wide), dict(said["facts"])
    except (
        SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
        RuntimeError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: is no whole file of a chain ({one_line(error)})") from None


def _tensors(chain: Chain) -> dict[str, Tensor]:
    found = {"x": chain.x, "status": chain.status}
    found |= {f"moments.{name}": getattr(chain.moments, name) for name in ("mean", "m2", "count")}
    found |= {f"memory.{name}": value for name, value in chain.memory.items()}
    if chain.batches is not None:
        found |= {"batches.mean": chain.batches.mean, "batches.m2": chain.batches.m2}
    if chain.draws is not None:
        found["draws.states"] = chain.draws.states
    return found


def _expected(
    held: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]], said: Mapping[str, Any], wide: bool
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types that the state demands of the others; ValueError where there is none."""
    if said["format"] != _FORMAT:
        raise ValueError(f"format {said['format']!r}, expected {_FORMAT}")
    shape, dtype = held["x"]
    if dtype not in (torch.float32, torch.float64, torch.complex64) or not shape or (wide and shape[-1] != 2):
        raise ValueError(f"x is {shape} {dtype}, expected states (B, ...)")
    real = shape[:-1] if wide else shape
    of_real = REAL_OF[dtype]
    batch = shape[:1]
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "x": (shape, dtype),
        "status": (batch, torch.int8),
        "moments.mean": (shape, dtype),
        "moments.m2": (real, of_real),
        "moments.count": ((), torch.int64),
    }
    if any(name.startswith("memory.") for name in held):
        found |= {f"memory.{name}": (batch, kind) for name, kind in _MEMORY.items()}
    if "batches" in said:
        count = _even(held["batches.mean"][0], 8)
        found |= {"batches.mean": ((count, *shape), dtype), "batches.m2": ((count, *real), of_real)}
    if "draws" in said:
        found["draws.states"] = ((_even(held["draws.states"][0], 4), *shape), dtype)
    return found


def _even(shape: tuple[int, ...], least: int) -> int:
    if not shape or shape[0] < least or shape[0] % 2:
        raise ValueError(f"batches or draws of shape {shape}, expected an even number of at least {least}")
    return shape[0]


def _chain(tensors: dict[str, Tensor], said: Mapping[str, Any], wide: bool) -> Chain:
    def state(name: str) -> Tensor:
        return torch.view_as_complex(tensors[name]) if wide else tensors[name]

    steps, seed, first_sample = (_number(name, said[name]) for name in _PLACES)
    status = tensors["status"]
    if not bool(((status == Status.MAX_ITER) | (status == Status.NONFINITE)).all()):
        raise ValueError("status: holds values that no chain has")
    count = int(tensors["moments.count"])
    if not 0 <= count <= steps:
        raise ValueError(f"moments.count: {count} states of {steps} steps")
    fine = status != Status.NONFINITE
    for name, value in tensors.items():
        per_sample = value.movedim(1, 0) if name.startswith(("batches.", "draws.")) else value
        if value.dim() and (value.is_floating_point() or value.is_complex()) and not per_sample[fine].isfinite().all():
            raise ValueError(f"{name}: holds NaN or infinite numbers of a sample whose status is fine")
    batches = draws = None
    if "batches" in said:
        size = _number("batches.size", said["batches"]["size"], 1)
        batches = Batches(state("batches.mean"), tensors["batches.m2"], size, _kept("batches", said, steps))
        _fits("batches", batches.count, size, len(batches.mean))
    if "draws" in said:
        every = _number("draws.every", said["draws"]["every"], 1)
        draws = Draws(state("draws.states"), every, _kept("draws", said, steps))
        _fits("draws", draws.count, every, len(draws.states))
    memory = {name: tensors[f"memory.{name}"] for name in _MEMORY if f"memory.{name}" in tensors}
    moments = Moments(state("moments.mean"), tensors["moments.m2"], tensors["moments.count"])
    return Chain(state("x"), moments, steps, seed, first_sample, status, memory, batches, draws)


def _number(name: str, value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name}: {str(value)[:40]!r}, expected a whole number from {least}")
    return value


def _kept(part: str, said: Mapping[str, Any], steps: int) -> int:
    count = _number(f"{part}.count", said[part]["count"])
    if count > steps:
        raise ValueError(f"{part}.count: {count} states of {steps} steps")
    return count


def _fits(part: str, count: int, each: int, room: int) -> None:
    if each & (each - 1) or math.ceil(count / each) > room + 1 or count // each > room:
        raise ValueError(f"{part}: {count} states by {each} do not fit into {room}")
