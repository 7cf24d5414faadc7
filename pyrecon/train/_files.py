"""The files of a run: tensors with JSON in one safetensors file, judged before they are read, and the pool of images.

Runs of earlier versions kept ``weights.pt`` and ``last.ckpt`` of torch.save; these are still read.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.io import written_whole
from pyrecon.io._files import check_memory, existing_file, one_line

_HEADER = 16 * 2**20  # bytes; that of a checkpoint with 1,000 tensors has 0.2 MB
_SLACK = 64 * 2**20
# What written_whole leaves beside a file when its process is killed.
_LEFT_OVER = re.compile(
    r"\.(config\.json|(pool|photographs|replay)\.npy|samples-\d+\.png|last\.ckpt|weights\.pt|"
    r"(source|scanners|initial|last|weights)\.safetensors)"
    r"\.[0-9a-f]{12}\.(json|npy|png|ckpt|pt|safetensors)"
)


# --- tensors and JSON ------------------------------------------------------------------------------------------------
def write_tensors(path: Path, tensors: dict[str, Tensor], facts: Any) -> None:
    """A safetensors file with ``facts`` as JSON in its header, whole or not at all."""
    from safetensors.torch import save as packed

    # Clones: safetensors takes no two tensors that share their memory.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with written_whole(path) as temporary:
        temporary.write_bytes(packed(own, metadata={"pyrecon": json.dumps(facts)}))


def read_tensors(path: Path, what: str, *, most: int) -> tuple[dict[str, Tensor], Any]:
    """What :func:`write_tensors` wrote, of at most ``most`` tensors; DataError saying that it is no ``what``."""
    from safetensors import SafetensorError, safe_open

    try:
        with existing_file(path).open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > _HEADER:  # 300,000 names take 24 s to look at
            raise ValueError(f"its header has {header} bytes, expected at most {_HEADER}")
        with safe_open(path, framework="pt") as file:  # compares the table of sizes with the file's size
            names = list(file.keys())
            if len(names) > most:
                raise ValueError(f"holds {len(names)} tensors, expected at most {most}")
            facts = json.loads((file.metadata() or {})["pyrecon"])
            return {name: file.get_tensor(name) for name in names}, facts
    except DataError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path}: is not {what} of a training run ({one_line(error)})") from None


def write_tree(path: Path, tree: Any) -> None:
    """Nested dicts, lists and tuples of tensors, numbers and text."""
    tensors: dict[str, Tensor] = {}

    def packed(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, packed(entry, f"{name}/{key}")] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            entries = [packed(entry, f"{name}/{i}") for i, entry in enumerate(value)]
            return {"tuple": entries} if isinstance(value, tuple) else entries
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{name}: a checkpoint cannot hold {type(value).__name__}")

    facts = packed(tree, "")
    write_tensors(path, tensors, facts)


def read_tree(path: Path, what: str, *, most: int) -> Any:
    """What :func:`write_tree` wrote."""
    tensors, facts = read_tensors(path, what, most=most)

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return [unpacked(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(unpacked(entry) for entry in content)
        if kind != "dict":
            raise ValueError(f"an entry of the kind {kind!r}")
        return {key: unpacked(entry) for key, entry in content}

    try:
        return unpacked(facts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: is not {what} of a training run ({one_line(error)})") from None


def read_torch(path: Path, what: str, *, most_bytes: int) -> Any:
    """A file of torch.save from an earlier version: judged by its table before torch unpacks it.

    torch stores without compression, so that what is in it is never more than the file: 3 MB of zeros, compressed
    3 GiB, cost 6.3 GiB of memory before.
    """
    try:
        size = existing_file(path).stat().st_size
        if size > most_bytes + _SLACK:
            raise ValueError(f"has {size} bytes, expected at most {most_bytes + _SLACK}")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("holds compressed entries, which torch does not write")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its entries are larger than the file")
        return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # a truncated archive or a hostile pickle has its own ways to fail
        raise DataError(
            f"{path}: is not {what} of a training run ({type(error).__name__}: {one_line(error)})"
        ) from None


def check_state(path: Path, found: Any, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model, DataError unless they are those ``expected`` and finite."""
    if not isinstance(found, dict) or found.keys() != expected.keys():
        names = found.keys() if isinstance(found, dict) else set()
        other = min(map(str, names ^ expected.keys()), default="none")
        raise DataError(f"{path}: is of another model than its run's ({other} is in one of them only)")
    for name, value in expected.items():
        own = found[name]
        if not isinstance(own, Tensor) or own.shape != value.shape or own.dtype != value.dtype:
            said = f"{own.dtype} {tuple(own.shape)}" if isinstance(own, Tensor) else type(own).__name__
            raise DataError(f"{path}: {name} is {said}, expected {value.dtype} {tuple(value.shape)}")
        if own.is_floating_point() and not torch.isfinite(own).all():
            raise DataError(f"{path}: {name} holds NaN or infinite values")
    return found


# --- the folder ------------------------------------------------------------------------------------------------------
def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a run's folder and those of its stages."""
    for path in _hidden(folder):
        path.unlink(missing_ok=True)


def _hidden(folder: Path) -> Iterator[Path]:
    for place in (folder, *(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())):
        yield from (path for path in place.glob(".*") if _LEFT_OVER.fullmatch(path.name) and path.is_file())


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror})") from error


def kept_pool(
    path: Path,
    count: int,
    shape: tuple[int, ...],
    draw: Callable[[int, int], NDArray[np.float32]],
    drawn: Callable[[int, int], None] = lambda done, total: None,
    *,
    chunk: int = 256,
) -> Tensor:
    """``(count, *shape)`` float32: images that are drawn once per run and kept in ``path``.

    ``draw(first, count)`` makes the images ``first`` and following; ``drawn`` hears of every chunk.
    """
    memory = 4 * count * math.prod(shape)
    check_memory(path, "a pool", memory, memory, 1)
    if path.exists():
        return torch.from_numpy(_read_pool(path, (count, *shape)))
    images = np.empty((count, *shape), np.float32)
    for first in range(0, count, chunk):
        part = images[first : first + chunk]
        part[:] = draw(first, len(part))
        drawn(first + len(part), count)
    with written_whole(path) as temporary:
        np.save(temporary, images)
    return torch.from_numpy(images)


def _read_pool(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        existing_file(path)
        # A map: what the header declares is compared with the file and with what is expected before it takes memory.
        mapped = np.lib.format.open_memmap(path, mode="r")
    except DataError:
        raise
    except Exception as error:  # numpy parses the header as Python: SyntaxError, RecursionError, MemoryError
        raise DataError(f"{path}: is not the pool of a training run ({one_line(error)})") from None
    if mapped.shape != shape or mapped.dtype != np.float32:
        raise DataError(f"{path}: holds {mapped.dtype} {mapped.shape}, expected float32 {shape}")
    images = np.array(mapped, order="C")
    if not np.isfinite(images).all():
        raise DataError(f"{path}: holds NaN or infinite values")
    return images
