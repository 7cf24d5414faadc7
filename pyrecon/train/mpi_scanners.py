"""The drawn scanners of a training run of DEQ-MPI: made once, kept in its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pyrecon._errors import DataError
from pyrecon.data.mpi import GRID, prepare_system, upsample_rows
from pyrecon.io._files import check_memory, one_line
from pyrecon.physics.mpi.drawn import FIRST_UNSEEN, drawn_calibration, training_seeds
from pyrecon.train._files import read_tensors, write_tensors
from pyrecon.train.mpi_data import Source

_FEWEST = 500  # selected rows of a scanner to train on; nine in ten have them


def kept_scanners(
    path: Path, seed: int, count: int, shape: tuple[int, int], step: Callable[[], None] = lambda: None
) -> list[Source]:
    """``count`` compact scanners for images of ``shape``, drawn once per run and kept in ``path``.

    Which they are is a function of ``seed``; none of them is one of :data:`pyrecon.physics.mpi.UNSEEN`. Those with
    fewer than 500 rows above their noise are left out. ``step`` is called before each.

    Raises
    ------
    DataError
        For a shape that is no multiple of the grid's that scanners are drawn for, and for a file that is none of these.
    """
    if count == 0:
        return []
    factor = shape[0] // GRID.shape[0]
    if factor < 1 or shape != tuple(factor * n for n in GRID.shape):
        raise DataError(
            f"scanners: are drawn for a grid of {GRID.shape[0]} x {GRID.shape[1]} voxels or one refined from it, the "
            f"system matrix has {shape[0]} x {shape[1]}; train without them"
        )
    memory = 4 * count * GRID.size * shape[0] * shape[1]
    check_memory(path, "scanners", memory, memory, 1)
    if path.exists():
        return _read(path, count, shape)
    found: list[Source] = []
    for number in training_seeds(seed):
        step()
        source = drawn_source(number, factor)
        if source is not None:
            found.append(source)
        if len(found) == count:
            break
    facts = [{"seed": source.seed, "held": len(source.matrix), "silent": source.silent} for source in found]
    write_tensors(path, {"matrix": torch.cat([source.matrix for source in found])}, facts)
    return found


def drawn_source(seed: int, factor: int = 1) -> Source | None:
    """The scanner of a seed as :func:`kept_scanners` takes it, its grid refined by ``factor``; None: too few rows."""
    if seed >= FIRST_UNSEEN:
        raise ValueError(f"seed: {seed} is of a scanner to test on, expected one below {FIRST_UNSEEN}")
    drawn = drawn_calibration(seed)
    try:
        system = prepare_system(drawn.measured(), snr_threshold=drawn.snr_threshold)
    except DataError:  # no row reaches the threshold
        return None
    if len(system.rows) < _FEWEST:
        return None
    source = replace(Source.of(system).compact(), seed=seed)
    if factor == 1:
        return source
    fine = upsample_rows(source.matrix, source.shape, factor) / factor**2
    return replace(source, matrix=fine, shape=(factor * source.shape[0], factor * source.shape[1]))


def _read(path: Path, count: int, shape: tuple[int, int]) -> list[Source]:
    tensors, facts = read_tensors(path, "the scanners", most=1)
    try:
        matrix = tensors["matrix"]
        held = [int(entry["held"]) for entry in facts]
        seeds, silent = ([int(entry[key]) for entry in facts] for key in ("seed", "silent"))
        size = (sum(held), shape[0] * shape[1])
        if len(facts) != count or min(held) < 1 or min(silent) < 0 or not 0 <= min(seeds) <= max(seeds) < FIRST_UNSEEN:
            raise ValueError(f"{len(facts)} scanners of seeds {seeds[:4]}, expected {count} below {FIRST_UNSEEN}")
        if matrix.dtype != torch.float32 or tuple(matrix.shape) != size or not torch.isfinite(matrix).all():
            raise ValueError(f"the matrix is {matrix.dtype} {tuple(matrix.shape)}, expected finite float32 {size}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: is not the scanners of a training run ({one_line(error)})") from None
    parts = matrix.split(held)
    return [Source(part, shape, None, more, seed) for part, more, seed in zip(parts, silent, seeds, strict=True)]
