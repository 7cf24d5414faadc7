"""How a reconstruction fills in the side of k-space that was left out, and what its report says of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.fourier import fft_centered
from pyrecon.data.mri import slice_name
from pyrecon.data.partial_fourier import LINES, WAYS, Part, Way, complete, measured_parts, told
from pyrecon.data.raw import MRIScan
from pyrecon.models.mri.methods import MRIMethod
from pyrecon.solvers import Solution

_CORNERS = 0.25  # what an elliptical shutter leaves out of a part that is measured otherwise


def check_way(way: Any, method: MRIMethod) -> None:
    """ValueError unless the way is known and the method's images, or coils before it, can be completed so."""
    if way not in WAYS:
        raise ValueError(f"partial_fourier: {way!r} is not known, expected one of {', '.join(map(repr, WAYS))}")
    if way != "zero" and not method.completes:
        raise ValueError(
            f"partial_fourier: {way!r} does not go with {method.name}, which fills in by {method.fills_in}; "
            "expected 'zero', or a method such as CGSense()"
        )


class Filling:
    """Partial Fourier along both axes of a scan, which ``axes`` names, by one of the
    :data:`~pyrecon.data.partial_fourier.WAYS`.

    Lines that parallel imaging leaves out inside the measured part come first: with coil maps the method unfolds the
    image, and the combined complex image is completed; without maps every coil's k-space is.

    Attributes
    ----------
    story
        What the report says: nothing where k-space is whole and nothing else was asked for.
    """

    def __init__(self, scan: MRIScan, method: MRIMethod, way: Way, axes: tuple[str, str] = LINES) -> None:
        height, width = scan.kspace.shape[2:]
        self.way, self.on = way, method.completes
        self.parts = measured_parts(scan.mask, (height, width))
        text = told(self.parts, axes)
        self.story: dict[str, str] = {}
        if way == "zero":
            self.story = {"partial_fourier": f"{text}: {way}, filled in by {method.fills_in}"} if text else {}
            return
        self.story = {"partial_fourier": f"{text}: {way}" if text else f"none: nothing for {way} to fill in"}
        partial = [i for i, part in enumerate(self.parts) if part.is_partial]
        hopeless = [i for i in partial if not self.parts[i].has_phase]
        if hopeless and len(hopeless) == len(partial):
            raise DataError(f"partial_fourier: {text}: too few for the phase that {way} needs; use 'zero'")
        if hopeless:
            names = ", ".join(slice_name(scan, i) for i in hopeless[:8]) + (", ..." if len(hopeless) > 8 else "")
            warnings.warn(f"{names}: too few lines beyond the centre for {way}, zero-filled", stacklevel=3)
        if self.on == "coils":
            for i in partial:
                _check_whole_inside(scan, i, self.parts[i], way)

    def coils(self, chosen: slice, kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """K-space ``(B, C, H, W)`` and mask, completed where the method has no maps."""
        parts = self._of(chosen)
        if self.way == "zero" or self.on != "coils" or not any(part.is_partial for part in parts):
            return kspace, mask
        return fft_centered(complete(kspace * mask, parts, self.way)), torch.ones_like(mask[:1])

    def images(self, chosen: slice, solution: Solution[Tensor], maps: Tensor | None) -> Solution[Tensor]:
        """Combined images ``(B, H, W)``, completed within the maps' support."""
        parts = self._of(chosen)
        if self.way == "zero" or self.on != "images" or maps is None or not any(part.is_partial for part in parts):
            return solution
        completed = complete(fft_centered(solution.value), parts, self.way) * (maps != 0).any(dim=1)
        whole = torch.tensor([not part.is_partial for part in parts], device=completed.device)[:, None, None]
        return replace(solution, value=torch.where(whole, solution.value, completed))

    def _of(self, chosen: slice) -> list[Part]:
        return self.parts if len(self.parts) == 1 else self.parts[chosen]


def _check_whole_inside(scan: MRIScan, entry: int, part: Part, way: Way) -> None:
    mask = scan.mask[entry if len(scan.mask) > 1 else 0, 0]
    inside = mask[part.rows, part.columns if mask.shape[1] > 1 else slice(None)]
    lacking = 1 - float(inside.mean())
    if lacking > _CORNERS or not inside.any(axis=1).all() or not inside.any(axis=0).all():
        raise DataError(
            f"partial_fourier: {lacking:.0%} of the samples inside the measured part are left out, and the phase of an "
            f"image that is folded is none to complete it by ({way}); use a method with coil maps, such as cg-sense"
        )
