"""What an MDF file says beside its data: all small fields by path, and what of it is not used or had to be assumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyrecon._errors import DataError
from pyrecon.data._mpi_settings import PER_PERIOD
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._mdf_spec import FIELDS, MANDATORY_GROUPS, OPTIONAL_GROUPS, located

# Fields that become attributes of the containers; every other small field goes into their metadata.
_ATTRIBUTES = (
    "/measurement/data",
    "/measurement/isBackgroundFrame",
    "/measurement/framePermutation",
    "/measurement/frequencySelection",
    "/acquisition/receiver/transferFunction",
    "/calibration/snr",
    "/calibration/positions",
)
_OLDER = {older: field.path for field in FIELDS.values() for older in field.older}
_ROOT = ("/version", "/uuid", "/time")
_FLAGS = (
    "isBackgroundCorrected",
    "isFastFrameAxis",
    "isFourierTransformed",
    "isFramePermutation",
    "isFrequencySelection",
    "isTransferFunctionCorrected",
)
_MOST_NAMES, _MOST_FIELDS = 8, 1000


def metadata_of(file: Hdf5, what: str, notes: list[str]) -> dict[str, Any]:
    """Small fields by their names in version 2.1; ``"notes"`` are those given and what is found here.

    ``what`` the file is begins every note.
    """
    groups = [*_ROOT, *MANDATORY_GROUPS, *OPTIONAL_GROUPS, "/_pyrecon"]
    found = file.metadata(groups, skip=_ATTRIBUTES)
    found.pop("/_pyrecon/background_positions", None)
    found = {_OLDER.get(name, name): value for name, value in found.items() if _OLDER.get(name, name) == name
             or _OLDER[name] not in found}  # fmt: skip
    for field in PER_PERIOD:  # of any size: they tell repetitions from patches
        if field not in found and file.has(field):
            found[field] = file.array(field)
    notes = [*notes, *_missing(file), *_unread(file, found), *_undefined(file)]
    if file.has("/reconstruction"):
        notes.append("/reconstruction: the images that the file holds are not looked at")
    own = {name.removeprefix("/_pyrecon/"): value for name, value in found.items()}
    return own | ({"notes": [f"{what}: {note}" for note in notes]} if notes else {})


def _missing(file: Hdf5) -> Iterator[str]:
    flags = [name for name in _FLAGS if not file.has(located(file, f"/measurement/{name}"))]
    if flags:
        yield f"/measurement: {', '.join(flags)} missing, taken as 0"
    if not file.has(located(file, "/acquisition/receiver/unit")):
        yield "/acquisition/receiver/unit: is missing, taken as V"


def _unread(file: Hdf5, found: dict[str, Any]) -> Iterator[str]:
    """Fields of the format that are there and neither read nor small enough to keep."""
    for field in FIELDS:
        name = located(file, field)
        if field in _ATTRIBUTES or field in found or field.startswith("/reconstruction") or not file.has(name):
            continue
        try:
            node = file.dataset(name)
            why = f"{node.dtype} of shape {node.shape}, more than is kept"
        except DataError as error:
            why = str(error).removeprefix(f"{file.path}: ").removeprefix(f"{name}: ")
        yield f"{field}: not read, and not needed ({why})"


def _undefined(file: Hdf5) -> Iterator[str]:
    """Names that the format does not know and does not leave to users, whose own begin with an underscore."""
    known = set(FIELDS) | set(_OLDER) | set(_ROOT)
    parts = {path[:i] for path in known for i in range(2, len(path)) if path[i] == "/"}
    waiting, visited = [""], 0
    unknown: list[str] = []
    while waiting and visited < _MOST_FIELDS:
        group = waiting.pop(0)
        for name in file.names(group or "/"):
            visited += 1
            field = f"{group}/{name}"
            if name.startswith("_") or field in known:
                continue
            if field in parts:
                waiting.append(field)
            else:
                unknown.append(field)
    if unknown:
        more = f" and {len(unknown) - _MOST_NAMES} more" if len(unknown) > _MOST_NAMES else ""
        yield f"not defined by the format and not used: {', '.join(unknown[:_MOST_NAMES])}{more}"
