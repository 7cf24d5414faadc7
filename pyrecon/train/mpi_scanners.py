"""The drawn scanners of a training run of DEQ-MPI: made once, kept in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.mpi import FINER, GRID, MatrixError, MPISystem, prepare_system
from pyrecon.data.vessels import vascular_images
from pyrecon.io._files import check_memory, one_line
from pyrecon.models.mpi import FactoredSystem
from pyrecon.physics.mpi.drawn import FIRST_UNSEEN, drawn_calibration, training_seeds
from pyrecon.train._files import read_tensors, write_tensors
from pyrecon.train.mpi_data import Bench, Source

if TYPE_CHECKING:
    from pyrecon.train.deq_mpi import Config

_FEWEST = 500  # selected rows of a scanner to train on; nine in ten have them
_SHARE = 0.7  # of sigma, what the matrix's noise may add to the signal of a typical image
_SHAPE = (GRID.shape[0], GRID.shape[1])
_TYPICAL = 64  # images that say what that is
_THICKNESS = 2e-3  # of the objects, metres
_VOLUME = _THICKNESS * float(np.prod(GRID.spacing)) / FINER**2  # of a voxel of theirs


def kept_scanners(
    path: Path, config: Config, shape: tuple[int, int], step: Callable[[], None] = lambda: None
) -> list[Source]:
    """``config.scanners`` scanners for images of ``shape``, drawn once per run and kept in ``path``.

    Which they are is a function of ``config.seed``; none of them is one of :data:`pyrecon.physics.mpi.UNSEEN`. Those
    with fewer than 500 rows above their noise are left out. ``step`` is called before each.

    Raises
    ------
    DataError
        For a shape that is not the grid that scanners are drawn for, and for a file that is none of these.
    """
    count = config.scanners
    if count == 0:
        return []
    if shape != _SHAPE:
        raise DataError(
            f"scanners: are drawn for a grid of {_SHAPE[0]} x {_SHAPE[1]} voxels, the system matrix has "
            f"{shape[0]} x {shape[1]}; train without them"
        )
    memory = 4 * count * GRID.size**2 * (1 + FINER**2)
    check_memory(path, "scanners", memory, memory, 1)
    if path.exists():
        return _read(path, count)
    found: list[Source] = []
    for number in training_seeds(config.seed):
        step()
        source = drawn_source(number, config)
        if source is not None:
            found.append(source)
        if len(found) == count:
            break
    _write(path, found)
    return found


def drawn_source(seed: int, config: Config) -> Source | None:
    """The scanner of a seed: its calibration with the noise taken out, as a user has it, in few coordinates, and what
    the scanner does to objects on a finer grid; None where too few rows stand out of the noise.

    The noise of the calibration is that which was drawn, or less: data of the SNR of ``config`` are the noise of the
    scan and the error of the matrix together, and the latter may be 0.7 of it for typical images.
    """
    if seed >= FIRST_UNSEEN:
        raise ValueError(f"seed: {seed} is of a scanner to test on, expected one below {FIRST_UNSEEN}")
    drawn = drawn_calibration(seed)
    try:
        system = prepare_system(drawn.measured(), snr_threshold=drawn.snr_threshold)
    except DataError:  # no row reaches the threshold
        return None
    if len(system.rows) < _FEWEST or system.rank is None:
        return None
    # Of voxels of 1 mm, at their middle, in pieces: all spectra at once take a gigabyte.
    pieces = np.array_split(GRID.finer(FINER).coordinates(), FINER**2)
    seen = [drawn.scanner.response(piece, thickness=_THICKNESS)[tuple(system.rows.T)] for piece in pieces]
    exact = (_VOLUME * np.concatenate(seen, axis=1)).astype(np.complex64)
    source = _few(system, exact, seed)
    images = torch.from_numpy(
        vascular_images(_TYPICAL, shape=(FINER * _SHAPE[0], FINER * _SHAPE[1]), factor=1, peak=(1.0, 1.0))
    )
    bench = Bench.of(source, config, images)
    wrong = float(bench.wrong(images / bench.system.unit, config.snr_db).square().mean().sqrt())
    if wrong <= _SHARE:
        return source
    quieter = replace(drawn, noise=drawn.noise * _SHARE / wrong)
    return _few(prepare_system(quieter.measured(), rows=system.rows), exact, seed)


def _few(system: MPISystem, exact: NDArray[np.complex64], seed: int) -> Source:
    """In the coordinates of what is left of the matrix: data ``Q^T y``, which is all that images are found from.
    ``exact`` is the scanner's response to the finer grid, in the rows of the system."""
    factored = FactoredSystem(system.matrix, GRID.shape, rank=system.rank)
    parts = (exact.real / system.scale[0][:, None], exact.imag / system.scale[1][:, None])
    forward = factored.Q.T @ torch.from_numpy(np.concatenate(parts).astype(np.float32))
    return Source(
        factored.s[:, None] * factored.V.T,
        _SHAPE,
        silent=len(system.matrix) - factored.rank,
        rank=factored.rank,
        seed=seed,
        forward=forward,
        error=system.error,
    )


# --- the file --------------------------------------------------------------------------------------------------------
def _write(path: Path, sources: list[Source]) -> None:
    tensors: dict[str, list[Tensor]] = {"matrix": [], "forward": [], "shared": []}
    facts = []
    for source in sources:
        assert source.forward is not None
        assert source.error is not None
        shared = source.error.shared.T.contiguous()
        for name, part in (("matrix", source.matrix), ("forward", source.forward), ("shared", shared)):
            tensors[name].append(part)
        facts.append(
            {"seed": source.seed, "held": len(source.matrix), "silent": source.silent, "std": source.error.std,
             "shared": len(shared)}
        )  # fmt: skip
    write_tensors(path, {name: torch.cat(parts) for name, parts in tensors.items()}, facts)


def _read(path: Path, count: int) -> list[Source]:
    tensors, facts = read_tensors(path, "the scanners", most=1 + FINER**2)
    try:
        if len(facts) != count:
            raise ValueError(f"{len(facts)} scanners, expected {count}")
        held, shared, silent, seeds = ([int(f[key]) for f in facts] for key in ("held", "shared", "silent", "seed"))
        stds = [float(f["std"]) for f in facts]
        sizes = {"matrix": sum(held), "forward": sum(held), "shared": sum(shared)}
        columns = {"matrix": GRID.size, "forward": FINER**2 * GRID.size, "shared": GRID.size}
        if min(held) < 1 or min(shared) < 0 or min(silent) < 0 or not 0 <= min(stds) <= max(stds) < np.inf:
            raise ValueError(f"rows {min(held)}, {min(silent)}, {min(shared)}, noise {min(stds)} to {max(stds)}")
        if not 0 <= min(seeds) <= max(seeds) < FIRST_UNSEEN:
            raise ValueError(f"seeds {seeds[:4]}, expected seeds below {FIRST_UNSEEN}")
        for name, rows in sizes.items():
            found, size = tensors[name], (rows, columns[name])
            if found.dtype != torch.float32 or tuple(found.shape) != size or not torch.isfinite(found).all():
                raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}, expected finite float32 {size}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: is not the scanners of a training run ({one_line(error)})") from None
    return list(_sources(tensors, held, shared, silent, seeds, stds))


def _sources(
    tensors: dict[str, Tensor],
    held: list[int],
    shared: list[int],
    silent: list[int],
    seeds: list[int],
    stds: list[float],
) -> Iterator[Source]:
    parts = zip(
        tensors["matrix"].split(held), tensors["forward"].split(held), tensors["shared"].split(shared), silent, seeds,
        stds, strict=True,
    )  # fmt: skip
    for matrix, forward, background, more, seed, std in parts:
        error = MatrixError(std, background.T.clone(memory_format=torch.contiguous_format), rank=len(matrix))
        yield Source(matrix, _SHAPE, silent=more, rank=len(matrix), seed=seed, forward=forward, error=error)
