"""Raw scans of a series: which entries show the same slice under other settings of the sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.mri import check_scan, slice_name
from pyrecon.data.raw import MRIScan, Real

__all__ = ["Contrasts", "contrasts_of"]


@dataclass(frozen=True)
class Contrasts:
    """Of a scan with ``S T`` entries.

    Attributes
    ----------
    entries
        ``(S, T)``: numbers along the scan's first axis, slice by slice, in the order of the setting.
    values
        ``(T,)``, the setting, from the smallest on.
    labels
        ``(S,)`` texts of the slices.
    """

    entries: NDArray[np.int64]
    values: Real
    labels: tuple[str, ...]


def contrasts_of(scan: MRIScan, setting: str, besides: tuple[str, ...] = ()) -> Contrasts:
    """The series of every slice by ``setting``, one of ``MRIScan.settings``; ``besides`` are others that may change.

    Raises
    ------
    DataError
        Where the setting is not known or the same for all, with the reason; where another one changes; where slices
        have different numbers of images, or other settings.
    """
    check_scan(scan)
    values = _values(scan, setting)
    count = len(scan.kspace)
    slices = np.arange(count) if scan.slices is None else scan.slices
    groups = [np.flatnonzero(slices == number) for number in np.unique(slices)]
    groups = [group[np.argsort(values[group], kind="stable")] for group in groups]
    first = groups[0]
    if len(first) == 1:
        raise DataError(f"{setting}: {count} slices of one image each, expected several contrasts of a slice")
    for group in groups:
        if len(group) != len(first):
            names = [_label(scan, g[0]) for g in (group, first)]
            raise DataError(f"{setting}: {names[0]} has {len(group)} images, {names[1]} has {len(first)}")
        if (values[group] != values[first]).any():
            said = [", ".join(f"{v:.6g}" for v in values[g]) for g in (group, first)]
            raise DataError(f"{setting}: of {_label(scan, group[0])} {said[0]}, of {_label(scan, first[0])} {said[1]}")
    if not _changes(values):
        raise DataError(f"{setting}: is {values[0]:.6g} in all {len(first)} images; is this such a series?")
    others = [name for name, v in scan.settings.items() if name not in (setting, *besides) and _changes(v)]
    if others:
        raise DataError(
            f"{others[0]}: changes from image to image, beside the {setting}; reconstruct such images apart"
        )
    return Contrasts(np.stack(groups), values[first], tuple(_label(scan, group[0]) for group in groups))


def _changes(values: Real) -> bool:
    """By more than headers are rounded."""
    return bool(np.ptp(values) > 1e-3 * np.abs(values).max())


def _values(scan: MRIScan, setting: str) -> Real:
    if setting in scan.settings:
        return scan.settings[setting]
    reason = scan.metadata.get("settings_left_out", {}).get(setting)
    if reason is not None:
        raise DataError(f"{setting}: {reason}; correct the header")
    there = ", ".join(scan.settings) or "none"
    raise DataError(f"{setting}: is needed of every image, the scan says {there}; ISMRMRD has it in its header")


def _label(scan: MRIScan, entry: int) -> str:
    """That of an entry without its contrast."""
    parts = [part for part in slice_name(scan, int(entry)).split(", ") if not part.startswith("contrast ")]
    return ", ".join(parts) or "slice 0"
