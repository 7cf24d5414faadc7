"""Chains that persist from step to step: the replay buffer of maximum-likelihood training, in memory or in a file.

A file holds the chains as they were at the last checkpoint, and the checkpoint all that changed since the one before:
once it is written, the changes go into the file. Whenever a process dies, applying them again gives the same chains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.io import written_whole
from pyrecon.io._files import one_line

Draw = Callable[[int, int], Tensor]
_CHUNK = 256


class Replay:
    """``count`` chains ``(size, size)`` float32, and how often each was visited since it began.

    Parameters
    ----------
    count, size
        How many, of ``size x size`` pixels.
    draw
        ``draw(first, count)``: what chains ``first`` and following begin with, ``(count, size, size)``.
    visits
        What the counts begin with.
    path
        File to keep the chains in; None: in memory, and whole in every checkpoint.
    """

    def __init__(self, count: int, size: int, draw: Draw, *, visits: int = 0, path: Path | None = None) -> None:
        self.count, self.size, self.path = count, size, path
        self.visits = torch.full((count,), visits, dtype=torch.int32)
        self._changed: dict[int, NDArray[np.float32]] = {}  # of a file: since the last checkpoint
        self._images: NDArray[np.float32]
        if path is None:
            self._images = np.empty((count, size, size), np.float32)
            self._fill(self._images, draw)
            return
        if not path.exists():
            with written_whole(path) as temporary:
                made = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=np.float32, shape=(count, size, size)
                )  # fmt: skip
                self._fill(made, draw)
                made.flush()
        self._images = _opened(path, (count, size, size))

    def _fill(self, images: NDArray[np.float32], draw: Draw) -> None:
        for first in range(0, self.count, _CHUNK):
            part = images[first : first + _CHUNK]
            part[:] = draw(first, len(part)).numpy()

    def read(self, chosen: Tensor) -> Tensor:
        """Chains by their numbers ``(n,)``, copied."""
        if self.path is None:
            return torch.from_numpy(self._images[chosen.numpy()])
        rows = [self._changed[i] if i in self._changed else self._images[i] for i in chosen.tolist()]
        return torch.from_numpy(np.stack(rows))

    def write(self, chosen: Tensor, images: Tensor) -> None:
        """Their new states; the numbers are all different."""
        values = images.detach().cpu().numpy()
        if self.path is None:
            self._images[chosen.numpy()] = values
        else:
            self._changed |= {i: row.copy() for i, row in zip(chosen.tolist(), values, strict=True)}

    # --- checkpoints -------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: the visits, and the chains, or those that changed with their numbers."""
        if self.path is None:
            return {"visits": self.visits, "chains": torch.from_numpy(self._images)}
        rows = sorted(self._changed)
        chains = np.stack([self._changed[i] for i in rows]) if rows else np.empty((0, self.size, self.size), np.float32)
        return {
            "visits": self.visits,
            "chains": torch.from_numpy(chains),
            "rows": torch.tensor(rows, dtype=torch.int64),
        }

    def saved(self) -> None:
        """The checkpoint with this state is written."""
        if self.path is not None:
            for i, row in self._changed.items():
                self._images[i] = row
            assert isinstance(self._images, np.memmap)
            self._images.flush()
            self._changed = {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint; ValueError where it is of other chains."""
        names = {"visits", "chains"} | ({"rows"} if self.path is not None else set())
        if state.keys() != names:
            raise ValueError(f"the state of the chains holds {sorted(map(str, state))}, expected {sorted(names)}")
        rows = state.get("rows")
        many = self.count if rows is None else len(rows.reshape(-1))
        expected = {
            "visits": (torch.int32, (self.count,)),
            "chains": (torch.float32, (many, self.size, self.size)),
            "rows": (torch.int64, (many,)),
        }
        for name, value in state.items():
            if (value.dtype, tuple(value.shape)) != expected[name]:
                said = f"{value.dtype} {tuple(value.shape)}"
                raise ValueError(f"{name} is {said}, expected {expected[name][0]} {expected[name][1]}")
        if int(state["visits"].min()) < 0:
            raise ValueError("visits holds negative counts")
        if rows is None:
            self._images = state["chains"].clone().numpy()
        else:
            if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= self.count or bool((rows.diff() <= 0).any())):
                raise ValueError(f"rows are no growing numbers of {self.count} chains")
            self._changed = {}
            self.write(rows, state["chains"])
            self.saved()
        self.visits = state["visits"].clone()


def _opened(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r+")
    except Exception as error:  # numpy parses the header as Python: SyntaxError, RecursionError, MemoryError
        raise DataError(f"{path}: is not the replay buffer of a training run ({one_line(error)})") from None
    if mapped.shape != shape or mapped.dtype != np.float32 or not mapped.flags.c_contiguous:
        raise DataError(f"{path}: holds {mapped.dtype} {mapped.shape}, expected float32 {shape}")
    return mapped
