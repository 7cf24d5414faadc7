"""The data step of DEQ-MPI: a projection onto the ball around the data, or a network in its place."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from pyrecon._check import check_radius
from pyrecon.nn._convolutions import packable, runs_as_op
from pyrecon.ops import project_l2_ball
from pyrecon.ops._learned_consistency import learned_consistency


@dataclass(frozen=True)
class RowLayout:
    """Where the selected rows of a system matrix lie in the scan: on a grid of angles (or channels) x frequencies.

    Attributes
    ----------
    grid
        ``(groups, frequencies)``: 60 angles x 247 frequencies in DEQ-MPI.
    rows
        ``(M / 2,)`` int64, increasing: the grid point ``group * frequencies + frequency`` of each complex row.
    used
        The first so many frequencies of each group enter the network (130 of 247 in DEQ-MPI). Rows beyond pass the
        network as zeros.
    """

    grid: tuple[int, int]
    rows: Tensor
    used: int

    def __post_init__(self) -> None:
        groups, frequencies = self.grid
        if self.rows.dim() != 1 or self.rows.dtype != torch.int64:
            raise ValueError(f"rows: expected (K,) int64, got {tuple(self.rows.shape)} {self.rows.dtype}")
        if self.rows.numel() and not (
            int(self.rows[0]) >= 0 and int(self.rows[-1]) < groups * frequencies and bool((self.rows.diff() > 0).all())
        ):
            raise ValueError(f"rows: expected increasing points of a grid of {groups} x {frequencies}")
        if not 1 <= self.used <= frequencies:
            raise ValueError(f"used: {self.used}, expected 1 to {frequencies}")

    @classmethod
    def from_mask(cls, mask: Tensor, grid: tuple[int, int], used: int) -> RowLayout:
        """From a ``(groups * frequencies,)`` mask of the selected rows."""
        return cls(grid, torch.nonzero(mask.flatten())[:, 0], used)

    @cached_property
    def places(self) -> Tensor:
        """Where each row lies in the flattened grid of the used frequencies; -1 for rows beyond them."""
        frequencies = self.grid[1]
        group, frequency = self.rows // frequencies, self.rows % frequencies
        return torch.where(frequency < self.used, group * self.used + frequency, -1)

    @property
    def digest(self) -> str:
        """Two layouts are the same if their digests are (SHA-256 of grid, used frequencies and rows)."""
        content = hashlib.sha256(json.dumps([*self.grid, self.used]).encode())
        content.update(self.rows.cpu().numpy().astype("<i8").tobytes())
        return content.hexdigest()

    def spread(self, data: Tensor) -> Tensor:
        """Stacked data ``(B, M)`` on the grid: ``(B, 2, groups, used)``, real parts first."""
        groups, frequencies = self.grid
        full = data.new_zeros(len(data), 2, groups * frequencies)
        full[:, :, self.rows.to(data.device)] = data.unflatten(1, (2, -1))
        spread: Tensor = full.unflatten(2, self.grid)[..., : self.used]
        return spread

    def gather(self, grid: Tensor) -> Tensor:
        """The rows of ``(B, 2, groups, used)`` as stacked data ``(B, M)``; zero for rows beyond ``used``."""
        full = torch.nn.functional.pad(grid, (0, self.grid[1] - self.used)).flatten(2)
        return full[:, :, self.rows.to(grid.device)].flatten(1)


class BallConsistency(nn.Module):
    """``z = proj(v)`` onto ``|z - y| <= radius``: fits every system matrix, as no weight depends on its rows."""

    def forward(self, v: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
        return project_l2_ball(v, y, radius)

    def operands(self, y: Tensor) -> dict[str, Any] | None:
        """What the op ``deq_mpi`` takes of the step for data y, or None where its module must run."""
        return {"data": "ball"} if runs_as_op(self, BallConsistency) else None


class ExactConsistency(nn.Module):
    """``z = y``: the data are believed to the last digit, noise included; the ablation of DEQ-MPI's data step."""

    def forward(self, v: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
        return y

    def operands(self, y: Tensor) -> dict[str, Any] | None:
        """As those of :class:`BallConsistency`."""
        return {"data": "exact"} if runs_as_op(self, ExactConsistency) else None


class LearnedConsistency(nn.Module):
    """``z = y + (N(y, v) - y) min(1, radius / |N(y, v) - y|)``: a network's proposal, moved into the ball (Eq. 25).

    N is a small convolutional network over the grid of the scan, two channels (real, imaginary) of y and two of v in,
    two out, zero padding, ReLU between layers. 354 parameters with the defaults.

    Parameters
    ----------
    layout
        Where the rows lie.
    dims
        1: one-dimensional kernels over the flattened grid, for a field-free-line scanner, as released (kernels reach
        from the last frequency of an angle to the first of the next). 2: two-dimensional, over (channel, frequency).
    ball
        ``"paper"`` as above. ``"released"``: ``y + N radius / max(|N - y|, radius)``, what the released program does;
        its weights need it.
    """

    def __init__(
        self,
        layout: RowLayout,
        *,
        width: int = 8,
        layers: int = 3,
        kernel: int = 3,
        dims: Literal[1, 2] = 1,
        ball: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__()
        if ball not in ("paper", "released") or dims not in (1, 2) or kernel % 2 == 0:
            raise ValueError(
                f"ball={ball!r}, dims={dims}, kernel={kernel}: expected 'paper' or 'released', 1 or 2, odd"
            )
        self.layout, self.dims, self.ball = layout, dims, ball
        self.config = {"width": width, "layers": layers, "kernel": kernel, "dims": dims, "ball": ball}
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        widths = [4, *[width] * (layers - 1), 2]
        self.convs = nn.ModuleList(conv(a, b, kernel, padding=kernel // 2) for a, b in itertools.pairwise(widths))

    @torch.no_grad()
    def become_projection(self) -> None:
        """Set the weights so that ``N(y, v) = v``: the projection onto the ball, to rounding, from which to learn.

        Four channels of every layer carry ``relu(+-v)``; the others stay as they are, and the last layer does not look
        at them yet, so that the gradient reaches its weights first.
        """
        layers: list[Any] = list(self.convs)
        if len(layers) < 2 or layers[0].out_channels < 4:
            raise ValueError(f"width, layers: {self.config}, expected at least 4 and 2 to carry v through ReLU")
        first, *inner, last = layers
        centre = [layers[0].kernel_size[0] // 2] * self.dims
        for conv in (first, *inner):
            conv.weight[:4], conv.bias[:4] = 0.0, 0.0
        last.weight.zero_()
        last.bias.zero_()
        for part in range(2):
            for channel, sign in ((2 * part, 1.0), (2 * part + 1, -1.0)):
                first.weight[channel, 2 + part, *centre] = sign
                last.weight[part, channel, *centre] = sign
                for conv in inner:
                    conv.weight[channel, channel, *centre] = 1.0

    def operands(self, y: Tensor) -> dict[str, Any] | None:
        """As those of :class:`BallConsistency`."""
        self._check_rows(y)
        plain = self.dims == 1 and runs_as_op(self, LearnedConsistency)
        weights = packable(self.convs) if plain else None
        if weights is None:
            return None
        return {
            "data": "learned" if self.ball == "paper" else "released",
            "learned": _flatten_dense_tensors(weights),
            "places": self.layout.places,
            "points": self.layout.grid[0] * self.layout.used,
            "learned_width": self.config["width"],
            "learned_layers": self.config["layers"],
            "kernel": self.config["kernel"],
        }

    def forward(self, v: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
        radius = check_radius("radius", radius, v)
        weights = packable(self.convs, v, y, radius) if self.dims == 1 else None
        if weights is not None:
            return self._by_op(v, y, radius, _flatten_dense_tensors(weights))
        proposal = self.propose(v, y)
        distance = torch.linalg.vector_norm(proposal - y, dim=1)
        if self.ball == "paper":
            shrink = torch.where(distance <= radius, 1.0, radius / distance)
            return torch.lerp(y, proposal, shrink[:, None])
        return y + proposal * (radius / torch.maximum(distance, radius))[:, None]

    def _by_op(self, v: Tensor, y: Tensor, radius: Tensor, packed: Tensor) -> Tensor:
        self._check_rows(y)
        width, layers, kernel = (int(self.config[name]) for name in ("width", "layers", "kernel"))
        points = self.layout.grid[0] * self.layout.used
        config = points, width, layers, kernel, self.ball == "released"
        return learned_consistency(v, y, radius, packed, self.layout.places, *config)

    def propose(self, v: Tensor, y: Tensor) -> Tensor:
        """``N(y, v)`` before it is moved into the ball."""
        self._check_rows(y)
        grid = torch.cat((self.layout.spread(y), self.layout.spread(v)), dim=1)
        x = grid.flatten(2) if self.dims == 1 else grid
        for conv in self.convs[:-1]:
            x = torch.relu(conv(x))
        x = self.convs[-1](x)
        return self.layout.gather(x.unflatten(2, grid.shape[2:]) if self.dims == 1 else x)

    def _check_rows(self, y: Tensor) -> None:
        if y.shape[1] != 2 * len(self.layout.rows):
            raise ValueError(
                f"y: {y.shape[1]} rows, but the row layout of these weights has {2 * len(self.layout.rows)}; use a "
                "model without learned consistency, which fits any system matrix"
            )
