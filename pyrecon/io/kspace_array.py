"""K-space that somebody keeps as an array: NumPy's ``.npy`` and ``.npz``, MATLAB's ``.mat``, BART's ``.cfl``.

Such files hold samples and nothing else, so what they mean is taken by a rule, said by the caller, or refused; what was
taken stands in ``metadata["notes"]``.

**Axes** have a letter each: S slice, E echo or contrast, T time, C coil, P partition (the second phase encoding of a
3-D scan), H phase encoding, W readout. BART names its own. Of others two axes are ``HW``, three ``CHW``, four
``SCHW``, unless ``axes`` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._arrays import KSPACE, MASK, Arrays, Held, open_arrays
from pyrecon.io._cartesian import gathered, laid
from pyrecon.io._files import PathLike, check_finite, check_memory

__all__ = ["read_kspace_array"]

_ORDER = "SETPCHW"
_WORDS = {"S": "slices", "E": "echoes", "T": "times", "P": "partitions", "C": "coils", "H": "phase encoding",
          "W": "readout"}  # fmt: skip
_USUAL = {2: "HW", 3: "CHW", 4: "SCHW"}
_COUNTERS = ("slice", "contrast", "repetition")  # of S, E and T
_LONGEST = 10.0  # metres of a field of view


def read_kspace_array(
    path: PathLike,
    *,
    axes: str | None = None,
    mask: PathLike | None = None,
    field_of_view: Sequence[float] | None = None,
) -> MRIScan:
    """Read Cartesian k-space with its centre at index ``n // 2`` along H, W and P.

    An archive's array is that called ``kspace``, or the only complex one. What is exactly zero in all coils was not
    sampled, unless a mask says what was: ``mask``, or an array of that name beside the k-space. Where the columns of
    the array are undersampled and its rows are not, it has the phase encoding along W whatever the usual order says:
    the image is then transposed against the array, which ``metadata["notes"]`` tells.

    Parameters
    ----------
    path
        The file; of BART's two either, or what their names begin with.
    axes
        A letter for each axis of the array, for example ``"WHC"``; then phase encoding is where this says.
    mask
        A file with 0 and 1: over the axes of the array without the coils, over the image's two, or over one of them.
    field_of_view
        Metres along the image's two axes in the order of the array, then, unless it is not known, the thickness of a
        slice or, of a 3-D scan, of all partitions together. Without it pixels count as 1 mm.

    Raises
    ------
    DataError
        If the file is damaged, or does not say plainly enough what it holds.
    ValueError
        If ``axes`` are no such letters, or ``field_of_view`` are no lengths.
    """
    extent_said = _checked_lengths(field_of_view)
    arrays = open_arrays(path)
    notes: list[str] = []
    name = _chosen(arrays, notes)
    where, held = f"{arrays.path}: {name}", arrays.held[name]
    _check_numbers(where, held)
    letters = _letters(where, arrays.axes, held.shape, axes, notes)
    check_memory(arrays.path, name, 8 * math.prod(held.shape), 8 * math.prod(held.shape), 1)
    sizes = {"H": 1, "W": 1} | dict(zip(letters, held.shape, strict=True))
    kspace = _ordered(arrays.load(name), letters)
    check_finite(arrays.path, name, kspace.reshape(len(kspace), -1), "image")
    there = np.asarray(kspace.any(axis=2))
    if not there.any():
        raise DataError(f"{where} is zero everywhere, nothing to reconstruct")
    sampled, said_by = _sampled(arrays, mask, letters, sizes, there, notes)
    kspace *= sampled[:, :, None]
    backwards = "W" in letters and letters.find("H") > letters.find("W")  # the array has the readout first
    if axes is None and _along_columns(sampled):
        order = "the readout axis" if arrays.axes else "the array's last image axis"
        notes.append(
            f"{order} is undersampled and the other is not: phase encoding is taken to run along it, and images are "
            "transposed against the array (--axes, axes= says otherwise)"
        )
        kspace, sampled, backwards = kspace.swapaxes(-1, -2), sampled.swapaxes(-1, -2), not backwards
    _check_center(kspace, notes)
    extent = _extent(extent_said, kspace.shape, backwards, notes)
    entries = list(product(*(range(sizes.get(letter, 1)) for letter in "SET")))
    found = gathered(kspace.swapaxes(2, 3), sampled, entries, _COUNTERS, None)
    seen = laid(found, None, extent[2], notes, against=False)
    empty = np.flatnonzero(~found.mask.reshape(-1, found.mask[: found.partitions].size).any(axis=1)).tolist()
    if empty:
        shown = ", ".join(found.labels[i * found.partitions] for i in empty[:8])
        raise DataError(f"{where}: no samples of {shown}, expected some of each image; leave these out")
    return MRIScan(
        kspace=seen.kspace,
        mask=seen.mask,
        encoded_partitions=seen.encoded_partitions,
        field_of_view=extent,
        labels=found.labels,
        slices=found.slices,
        places=found.places,
        stack=found.stack,
        metadata={"axes": letters, "sampled": said_by} | ({"notes": notes} if notes else {}),
    )


# ---- which array, and what its axes are


def _chosen(arrays: Arrays, notes: list[str]) -> str:
    if not arrays.held:
        raise DataError(f"{arrays.path}: holds no array of numbers, expected k-space under the name kspace")
    name = arrays.called(KSPACE)
    if name is not None or len(arrays.held) == 1:
        return name or next(iter(arrays.held))
    likely = [n for n, held in arrays.held.items() if held.dtype.kind == "c" and len(held.shape) > 1]
    if len(likely) != 1:
        raise DataError(f"{arrays.path}: holds {arrays.listing()}; expected k-space under the name kspace")
    notes.append(f"the array {likely[0]} is taken for the k-space, being the only complex one")
    return likely[0]


def _check_numbers(where: str, held: Held) -> None:
    if 0 in held.shape or len(held.shape) < 2:
        raise DataError(f"{where}: {held}, expected samples on two axes or more")
    if held.dtype.kind != "c":
        pair = 2 in (held.shape[0], held.shape[-1]) and held.dtype.kind in "fiu"
        advice = "; if the axis of 2 is real and imaginary part, store x[..., 0] + 1j * x[..., 1]" if pair else ""
        raise DataError(f"{where}: {held}, expected complex numbers{advice}")


def _letters(where: str, file_says: str | None, shape: tuple[int, ...], axes: str | None, notes: list[str]) -> str:
    if axes is not None:
        letters = _checked_letters(axes)
        if len(letters) != len(shape):
            raise DataError(f"{where}: shape {shape}, but --axes (axes=) has {len(letters)} letters: {axes!r}")
        return letters
    if file_says is not None:
        slice_of_volume = "P" in file_says and "W" not in file_says
        return file_says.replace("P", "W") if slice_of_volume else file_says
    if len(shape) not in _USUAL:
        raise DataError(
            f"{where}: shape {shape}, expected (H, W), (C, H, W) or (S, C, H, W); of others say the axes, a letter of "
            f"{_ORDER} for each (--axes, axes=)"
        )
    letters = _USUAL[len(shape)]
    if len(shape) > 2 and shape[-3] > min(shape[-2:]):
        likely = {"CHW": "HWC", "SCHW": "HWCS"}[letters] if shape[-1] == min(shape) or len(shape) == 4 else letters
        raise DataError(
            f"{where}: shape {shape} would be {shape[-3]} coils of {shape[-2]} x {shape[-1]} samples; say the axes, "
            f"for example --axes {likely} (axes={likely!r})"
        )
    told = ", ".join(f"{n} {_WORDS[letter]}" for n, letter in zip(shape, letters, strict=True))
    notes.append(f"axes are taken as {letters}: {told} (--axes, axes= says otherwise)")
    return letters


def _checked_letters(axes: str) -> str:
    letters = axes.upper()
    if not {"H", "W"} <= set(letters) <= set(_ORDER) or len(set(letters)) < len(letters):
        known = ", ".join(f"{letter} {_WORDS[letter]}" for letter in _ORDER)
        raise ValueError(f"axes: {axes!r}, expected a letter for each axis, H and W among them: {known}")
    return letters


def _ordered(values: NDArray[Any], letters: str) -> Complex:
    """``(E, P, C, H, W)``, of slices, echoes and times along E, in memory of its own."""
    values = _spread(values, letters)
    s, e, t, *rest = values.shape
    kspace = np.empty((s * e * t, *rest), np.complex64)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond complex64 become Inf and are reported as such
        kspace.reshape(values.shape)[...] = values
    return kspace


def _spread(values: NDArray[Any], letters: str) -> NDArray[Any]:
    """All axes in their order, those that are not there of size 1."""
    ordered = values.transpose([letters.index(letter) for letter in _ORDER if letter in letters])
    return ordered[tuple(slice(None) if letter in letters else None for letter in _ORDER)]


# ---- what was sampled


def _sampled(
    arrays: Arrays,
    mask: PathLike | None,
    letters: str,
    sizes: dict[str, int],
    there: NDArray[np.bool_],
    notes: list[str],
) -> tuple[NDArray[np.bool_], str]:
    """``(E, P, H, W)``, and who says it: a mask, or the values that are ``there``."""
    source = arrays if mask is None else open_arrays(mask)
    name = source.called(MASK)
    if mask is None and name is None:
        return there, "what is not zero in all coils"
    if name is None:
        if len(source.held) != 1:
            raise DataError(f"{source.path}: holds {source.listing()}; expected the mask under the name mask")
        name = next(iter(source.held))
    where = f"{source.path}: {name}"
    held = source.held[name]
    if held.dtype.kind not in "bfiuc" or math.prod(held.shape) > there.size * sizes.get("C", 1):
        raise DataError(f"{where}: {held}, expected 0 and 1 over {' x '.join(f'{sizes[n]} {n}' for n in letters)}")
    values = source.load(name)
    if not ((values == 0) | (values == 1)).all():
        raise DataError(f"{where}: other values than 0 and 1, expected 1 where k-space was sampled")
    given = values == 1
    chosen = _mask_letters(where, source.axes, given, letters, sizes, there, notes)
    fitted = _spread(given.reshape(chosen[1]), chosen[0])
    if (fitted != fitted[:, :, :, :, :1]).any():
        raise DataError(f"{where}: differs from coil to coil, expected the same samples of all")
    whole = np.broadcast_to(fitted[:, :, :, :, 0], (*(sizes.get(n, 1) for n in "SETP"), *there.shape[-2:]))
    sampled = whole.reshape(there.shape)
    if not (sampled & there).any():
        raise DataError(f"{where} keeps no sample that the k-space has")
    outside, zeros = int((there & ~sampled).sum()), int((sampled & ~there).sum())
    if outside:
        notes.append(f"{outside} of {there.size} places that the mask leaves out have values; left out too")
    if zeros:
        notes.append(f"{zeros} of {there.size} places that the mask keeps are exactly zero: they count as measured")
    return sampled, where


def _mask_letters(
    where: str,
    file_says: str | None,
    given: NDArray[np.bool_],
    letters: str,
    sizes: dict[str, int],
    there: NDArray[np.bool_],
    notes: list[str],
) -> tuple[str, tuple[int, ...]]:
    """Which axes of the k-space those of a mask are, and its shape on them."""
    if file_says is not None:
        own = file_says.replace("P", "W") if "P" not in letters else file_says
        if all(sizes.get(letter) == n for letter, n in zip(own, given.shape, strict=True)):
            return own, given.shape
    image = "".join(n for n in letters if n in "HW")
    ways = [letters, letters.replace("C", ""), "".join(n for n in letters if n in "PHW"), image, *image[::-1]]
    for shape in (given.shape, tuple(n for n in given.shape if n > 1)):
        fitting = [way for way in dict.fromkeys(ways) if _fits(way, shape, sizes)]
        if len(shape) == 1 and len(fitting) == 2:  # of a square: along the axis that the data have it along
            lines = {"H": there.any(axis=(0, 1, 3)), "W": there.any(axis=(0, 1, 2))}
            agreeing = [way for way in fitting if not (lines[way] & ~given.ravel()).any()]
            fitting = agreeing if len(agreeing) == 1 else ["H"]
            notes.append(f"the mask of {shape[0]} is taken to run along the {_WORDS[fitting[0]]} axis")
        if fitting:
            return fitting[0], shape
    shown = ", ".join(f"{sizes[n]} {n}" for n in letters if n != "C")
    raise DataError(f"{where}: shape {given.shape} does not fit k-space of {shown}; expected those, {image}, H or W")


def _fits(way: str, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    return len(way) == len(shape) and all(n in (1, sizes[letter]) for letter, n in zip(way, shape, strict=True))


def _along_columns(sampled: NDArray[np.bool_]) -> bool:
    """Whether lines along H are left out between others, and none along W."""
    rows, columns = np.asarray(sampled.any(axis=-1)), np.asarray(sampled.any(axis=-2))
    lines = bool((sampled == (rows[..., None] & columns[..., None, :])).all())
    return lines and _has_gaps(columns) and not _has_gaps(rows)


def _has_gaps(lines: NDArray[np.bool_]) -> bool:
    begun = np.logical_or.accumulate(lines, axis=-1)
    to_come = np.logical_or.accumulate(lines[..., ::-1], axis=-1)[..., ::-1]
    return bool((begun & to_come & ~lines).any())


def _check_center(kspace: Complex, notes: list[str]) -> None:
    power = sum(np.einsum("pchw,pchw->hw", entry, entry.conj()).real for entry in kspace)
    if min(power.shape) >= 8 and int(np.argmax(power)) == 0:
        notes.append(
            "the largest sample is the first along both axes, not that in the middle: the array seems not to be "
            "shifted; if so, store np.fft.fftshift of it over these axes"
        )


# ---- lengths


def _checked_lengths(field_of_view: Sequence[float] | None) -> tuple[float, ...] | None:
    if field_of_view is None:
        return None
    lengths = tuple(float(length) for length in field_of_view)
    if len(lengths) not in (2, 3) or not all(math.isfinite(n) and 0 < n < _LONGEST for n in lengths):
        raise ValueError(f"field_of_view: {lengths} m, expected two or three lengths above 0 and below {_LONGEST:g} m")
    return lengths


def _extent(
    said: tuple[float, ...] | None, shape: tuple[int, ...], backwards: bool, notes: list[str]
) -> tuple[float, float, float]:
    """Along rows and columns, and of a partition."""
    _, partitions, _, rows, columns = shape
    if said is None:
        notes.append("no field of view is known (--fov, field_of_view=): pixels count as 1 mm")
        return 1e-3 * rows, 1e-3 * columns, 1e-3
    if len(said) == 2:
        notes.append("the thickness of a slice is not known (the third of --fov, field_of_view=): it counts as 1 mm")
    first, second = said[1::-1] if backwards else said[:2]
    return first, second, said[2] / partitions if len(said) == 3 else 1e-3
