"""Weights of DEQ-MPI on disk: a safetensors file whose header says what they are and what they were trained for.

Metadata entry ``"pyrecon"``, JSON: format version, model, network configurations, the row layout's grid and digest (its
rows are the tensor ``consistency.rows``), iterations, mixing (0 where absent), penalty (1 where absent), and the
:class:`~pyrecon.models.deq_mpi.Card`. Nothing in a file is used before its names, shapes and types have been compared
with those that its own header demands.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrecon import __version__
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.io import written_whole
from pyrecon.io._files import PathLike, existing_file, one_line
from pyrecon.models.deq_mpi import DEQMPI, Card, Consistency, Role
from pyrecon.nn import RDN, BallConsistency, ExactConsistency, LearnedConsistency, RowLayout

FORMAT = 1
SHIPPED = Path(__file__).parent / "pretrained"
_ROWS = "consistency.rows"
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
_POINTS = 10**8
_MOST = 1024  # larger than any sensible number of channels, layers or iterations


def save(model: DEQMPI, path: PathLike) -> None:
    """Write the weights and their header, whole or not at all."""
    from safetensors.torch import save as packed

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{path}: not written, {name} holds NaN or infinite values")
    consistency: dict[str, Any] = {"kind": "none" if isinstance(model.consistency, ExactConsistency) else "ball"}
    if isinstance(model.consistency, LearnedConsistency):
        layout = model.consistency.layout
        tensors[_ROWS] = layout.rows.cpu().contiguous()
        consistency = {"kind": "learned", **model.consistency.config, "grid": layout.grid, "used": layout.used}
        consistency["digest"] = layout.digest
    header = {
        "format": FORMAT,
        "model": "deq-mpi",
        "pyrecon": __version__,
        "rdn": model.rdn.config,
        "consistency": consistency,
        "iterations": model.iterations,
        "mixing": model.mixing,
        "penalty": model.penalty,
        "card": None if model.card is None else asdict(model.card),
    }
    # One spelling of one content: equal weights make equal files.
    text = json.dumps(plain(header), sort_keys=True, allow_nan=False)
    with written_whole(path) as temporary:
        temporary.write_bytes(packed(tensors, metadata={"pyrecon": text}))  # save_file makes files for its user only


def load(path: PathLike) -> DEQMPI:
    """The model in a file that :func:`save` wrote, in evaluation mode; DataError naming what is wrong otherwise."""
    path = existing_file(path)
    header, found, tensors = _read(path)
    if header.get("model") != "deq-mpi" or header.get("format") != FORMAT:
        raise DataError(
            f"{path}: holds {header.get('model')!r} in format {header.get('format')!r} (pyrecon "
            f"{header.get('pyrecon')!r}), expected 'deq-mpi' in format {FORMAT}"
        )
    try:
        with torch.device("meta"):
            rdn = RDN(**_numbers(header["rdn"], ("features", "growth", "blocks", "layers")))
        consistency = _consistency(header["consistency"], found, tensors)
        penalty = float(header.get("penalty", 1.0))
        if not 0 < penalty < math.inf:
            raise ValueError(f"penalty: {penalty}, expected a number above 0")
        mixing = header.get("mixing", 0)
        if not isinstance(mixing, int) or not 0 <= mixing <= _MOST:
            raise ValueError(f"mixing: {mixing!r}, expected a whole number from 0 to {_MOST}")
        steps = _number(header["iterations"])
        model = DEQMPI(rdn, consistency, iterations=steps, mixing=mixing, penalty=penalty)
        model.card = None if header["card"] is None else Card.from_dict(header["card"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: the header is unusable ({type(error).__name__}: {one_line(error)})") from None
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    if isinstance(consistency, LearnedConsistency):
        expected[_ROWS] = ((len(consistency.layout.rows),), torch.int64)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise DataError(f"{path}: {name} is {_said(found.get(name))}, expected {_said(expected.get(name))}")
    state = {name: tensors[name] for name in model.state_dict()}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{path}: {name} holds NaN or infinite values")
    model.load_state_dict(state, assign=True)
    return model.eval()


def shipped_weights(role: Role | None = None) -> dict[str, Path]:
    """Weights that come with the package, by name; with ``role`` those of it that fit any system matrix."""
    known = {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}
    return known if role is None else {name: path for name, path in known.items() if _kind(path) == (role, False)}


def _kind(path: Path) -> tuple[str, bool]:
    """Role, and whether consistency is learned, by the header alone."""
    header, _, _ = _read(path, tensors=False)
    try:
        role = (header["card"] or {}).get("role", "equilibrium")
        return str(role), header["consistency"]["kind"] == "learned"
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the header is unusable ({type(error).__name__}: {one_line(error)})") from None


def check_role(name: str, model: DEQMPI, role: Role, method: str) -> Card:
    """The card of weights that are for ``role``; DataError where there is none or it is another's."""
    if model.card is None:
        raise DataError(f"{name}: does not say what it was trained for")
    if model.card.role != role:
        raise DataError(f"{name}: holds weights of the role {model.card.role!r}, {method} takes {role!r}")
    return model.card


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


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Header, what each tensor is by the file's own table, and the tensors if asked for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # checks that the table fits the file's size, byte by byte
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            found = {
                name: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype())) for name, s in slices.items()
            }
            values = {name: file.get_tensor(name) for name in slices} if tensors else {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: is no whole safetensors file ({one_line(error)})") from None
    if "pyrecon" not in metadata:
        raise DataError(f"{path}: has no pyrecon header; weights of the authors load with DEQMPI.from_released")
    try:
        header = json.loads(metadata["pyrecon"])
    except ValueError as error:
        raise DataError(f"{path}: the header is no JSON ({one_line(error)})") from None
    if not isinstance(header, dict):
        raise DataError(f"{path}: the header is a {type(header).__name__}, expected an object")
    return header, found, values


def _consistency(config: dict[str, Any], found: dict[str, Any], tensors: dict[str, Tensor]) -> Consistency:
    if config["kind"] == "ball":
        return BallConsistency()
    if config["kind"] == "none":
        return ExactConsistency()
    if config["kind"] != "learned":
        raise ValueError(f"consistency: {config['kind']!r}, expected 'ball', 'learned' or 'none'")
    if _ROWS not in found or found[_ROWS][1] != torch.int64:
        raise ValueError(f"{_ROWS} is {_said(found.get(_ROWS))}, expected int64 rows")
    groups, frequencies = config["grid"]
    if not 0 < groups * frequencies <= _POINTS:
        raise ValueError(f"grid: {groups} x {frequencies}, expected up to {_POINTS} points")
    layout = RowLayout((int(groups), int(frequencies)), tensors[_ROWS], int(config["used"]))
    if layout.digest != config["digest"]:
        raise ValueError(f"the row layout has digest {layout.digest}, expected {config['digest']}")
    sizes = _numbers({name: config[name] for name in ("width", "layers", "kernel", "dims")})
    with torch.device("meta"):
        return LearnedConsistency(layout, **sizes, ball=config["ball"])  # type: ignore[arg-type]


def _numbers(config: dict[str, Any], names: tuple[str, ...] | None = None) -> dict[str, int]:
    if names is not None and set(config) != set(names):
        raise ValueError(f"has {sorted(config)}, expected {sorted(names)}")
    return {name: _number(value) for name, value in config.items()}


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
        raise ValueError(f"{value!r}, expected a whole number from 1 to {_MOST}")
    return value


def _said(entry: Any) -> str:
    if entry is None:
        return "absent"
    shape, dtype = entry
    size = math.prod(shape)
    return f"{' x '.join(map(str, shape)) or 'a scalar'} {str(dtype).removeprefix('torch.')} ({size} numbers)"
