"""Weights on disk: a safetensors file whose header says what they are and what they were trained for.

Metadata entry ``"pyrecon"``, JSON: format version, model, the model's configuration, and a :class:`Card`. This module
knows no model: a model says which configuration makes which tensors. Nothing in a file is used, and nothing is built
from it, before sizes, names, shapes and types have been compared with those that its own header demands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyrecon import __version__
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.io import written_whole
from pyrecon.io._files import PathLike, existing_file, one_line

FORMAT = 2  # 1 had the configuration beside these entries and the card's data beside its role
SHIPPED = Path(__file__).parent / "pretrained"
MOST = 1024  # larger than any sensible number of channels, layers or iterations
_HEADER_BYTES = 4 << 20  # shipped files have 20 KB
_TENSORS = 10_000
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}

# What reading nonsense raises, whichever way it is nested or however large its numbers.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)

M = TypeVar("M", bound=nn.Module)
Entry = tuple[tuple[int, ...], torch.dtype]  # shape and type of a tensor


@dataclass(frozen=True)
class Card:
    """What weights are for and what they were trained on; it travels with them.

    Attributes
    ----------
    model
        Name of the system, e.g. ``"deq-mpi"``.
    role
        What the weights are for, one of the model's own words.
    shape
        Of the training images. The networks take any, the image content should be alike.
    data
        What the training data were like, in the model's own words: their SNR, range, operator.
    training
        Facts about the training: system, images, schedule, quality on its validation set.
    """

    model: str
    role: str
    shape: tuple[int, ...]
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Card:
        """From a header; ValueError, KeyError or TypeError for what is none."""
        shape = tuple(int(n) for n in value["shape"])
        if not shape or min(shape) < 1:
            raise ValueError(f"card: images of shape {shape}")
        texts = (value["model"], value["role"])
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"card: model and role are {texts}, expected text")
        return cls(*texts, shape, dict(value["data"]), dict(value["training"]))


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before any tensor is read.

    ``tensors`` is the file's own table of shapes and types, ``format`` the version it was written in, ``config`` the
    entries that belong to the model.
    """

    path: Path
    model: str
    config: dict[str, Any]
    card: dict[str, Any] | None
    tensors: dict[str, Any]
    format: int = FORMAT

    def unusable(self, error: Exception) -> DataError:
        """What to raise where the model cannot make sense of the configuration."""
        return DataError(f"{self.path}: the header is unusable ({type(error).__name__}: {one_line(error)})")

    def expect_count(self, count: int) -> None:
        """ValueError unless the file has ``count`` tensors: a model compares before it builds its modules."""
        if len(self.tensors) != count:
            raise ValueError(f"the file holds {len(self.tensors)} tensors, its configuration has {count}")


def write_weights(
    path: PathLike, model: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], card: Card | None
) -> None:
    """Write tensors and their header, whole or not at all; DataError where a value is not finite."""
    from safetensors.torch import save as packed

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    for name, value in whole.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"{path}: not written, {name} holds NaN or infinite values")
    header = {"format": FORMAT, "model": model, "pyrecon": __version__, "config": dict(config)}
    header["card"] = None if card is None else asdict(card)
    # One spelling of one content: equal weights make equal files.
    text = json.dumps(plain(header), sort_keys=True, allow_nan=False)
    with written_whole(path) as temporary:
        temporary.write_bytes(packed(whole, metadata={"pyrecon": text}))  # save_file makes files for its user only


def read_header(path: PathLike) -> Header:
    """The header of a file that :func:`write_weights` wrote; DataError naming what is wrong otherwise."""
    path = existing_file(path)
    try:
        table = json.loads(_header_text(path))
        metadata = table.pop("__metadata__", {})
        if len(table) > _TENSORS:
            raise ValueError(f"{len(table)} tensors, expected up to {_TENSORS}")
        tensors = {
            str(name): (tuple(int(n) for n in entry["shape"]), _DTYPES.get(entry["dtype"], entry["dtype"]))
            for name, entry in table.items()
        }
        text = metadata.get("pyrecon")
    except UNUSABLE as error:
        raise DataError(f"{path}: is no whole safetensors file ({one_line(error)})") from None
    if text is None:
        raise DataError(f"{path}: has no pyrecon header; weights of the authors load with DEQMPI.from_released")
    try:
        found = json.loads(text)
    except UNUSABLE as error:
        raise DataError(f"{path}: the header is no JSON ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: the header is a {type(found).__name__}, expected an object")
    version, model = found.get("format"), found.get("model")
    if version not in (1, FORMAT) or not isinstance(model, str):
        raise DataError(
            f"{path}: holds {model!r} in format {version!r} (pyrecon {found.get('pyrecon')!r}), expected a model in "
            f"format 1 or {FORMAT}"
        )
    config = found if version == 1 else found.get("config")
    card = found.get("card")
    if not isinstance(config, dict) or not isinstance(card, dict | None):
        raise DataError(f"{path}: the header is unusable (its configuration or card is no object)")
    return Header(path, model, config, _card_of_1(card, model) if card and version == 1 else card, tensors, version)


def read_tensors(header: Header, expected: Mapping[str, Entry] | Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a file, all of them if each is as ``expected``, finite; or only those that are named."""
    from safetensors import SafetensorError, safe_open

    if isinstance(expected, Mapping):
        for name in sorted(expected.keys() | header.tensors.keys()):
            if header.tensors.get(name) != expected.get(name):
                have, want = (_said(table.get(name)) for table in (header.tensors, expected))
                raise DataError(f"{header.path}: {name} is {have}, expected {want}")
    try:
        with safe_open(header.path, framework="pt") as file:  # checks that the table fits the file, byte by byte
            values = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{header.path}: is no whole safetensors file ({one_line(error)})") from None
    for name, value in values.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"{header.path}: {name} holds NaN or infinite values")
    return values


def filled(model: M, header: Header) -> M:
    """``model``, built on the meta device, with the tensors of a file; in evaluation mode."""
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    model.load_state_dict(read_tensors(header, expected), assign=True)
    return model.eval()


def shipped_weights(model: str | None = None, task: str | None = None) -> dict[str, Path]:
    """Weights that come with the package, by name; with ``model`` those of one system, with ``task`` for one problem
    (``"ct"``, ``"mri"``, ``"deblur"``)."""
    known = {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}
    if model is None:
        return known
    headers = {name: read_header(path) for name, path in known.items()}
    of_model = {name: header for name, header in headers.items() if header.model == model}
    return {
        name: known[name]
        for name, header in of_model.items()
        if task is None or (header.card or {}).get("data", {}).get("task") == task
    }


def find_weights(name_or_path: PathLike) -> Path:
    """A file of weights, given as a path or as the name of shipped ones."""
    known = shipped_weights()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if Path(name_or_path).suffix or Path(name_or_path).exists():
        return existing_file(name_or_path)
    raise DataError(
        f"weights: {str(name_or_path)!r} is neither a file nor one of the shipped ones ({', '.join(known) or 'none'})"
    )


def check_role(name: str, card: Card | None, role: str, method: str, task: str | None = None) -> Card:
    """The card of weights that are for ``role``, and for ``task`` where one is given; DataError where there is none or
    it is another's."""
    if card is None:
        raise DataError(f"{name}: does not say what it was trained for")
    if card.role != role:
        raise DataError(f"{name}: holds weights of the role {card.role!r}, {method} takes {role!r}")
    if task is not None and card.data.get("task") != task:
        raise DataError(f"{name}: trained for {card.data.get('task')!r}, {method} takes {task!r} here")
    return card


def which_weights(model: str, task: str, command: str) -> DataError:
    """What to raise where a method of raw data was given no weights; ``command`` makes some."""
    known = ", ".join(shipped_weights(model, task)) or "none do"
    return DataError(f"weights: which? A file that `{command}` made, or the name of some that ship ({known})")


def whole_number(value: Any, least: int = 1) -> int:
    """A number of channels, layers or steps in a header; ValueError for what cannot be one."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise ValueError(f"expected a whole number from {least} to {MOST}, got {str(value)[:40]!r}")
    return value


def whole_numbers(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """These and no others."""
    if set(config) != set(names):
        raise ValueError(f"has {sorted(config)}, expected {sorted(names)}")
    return {name: whole_number(value) for name, value in config.items()}


def _header_text(path: Path) -> bytes:
    """The JSON at the head of a safetensors file, its length judged before it is read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_BYTES, path.stat().st_size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {path.stat().st_size}")
        return file.read(length)


def _card_of_1(card: dict[str, Any], model: str) -> dict[str, Any]:
    """Format 1 knew one model, whose data it named beside the rest; the first files had no roles."""
    own = ("shape", "training", "role")
    data = {name: value for name, value in card.items() if name not in own}
    return {
        "model": model,
        "role": card.get("role", "equilibrium"),
        "shape": card.get("shape", ()),
        "data": data,
        "training": card.get("training"),
    }


def _said(entry: Any) -> str:
    if entry is None:
        return "absent"
    shape, dtype = entry
    size = math.prod(shape)
    return f"{' x '.join(map(str, shape)) or 'a scalar'} {str(dtype).removeprefix('torch.')} ({size} numbers)"
