"""Groups of transforms under which sets of images do not change: rotations, shifts, flips.

A group draws one element per sample; images are real or complex ``(B, H, W)``, or real ``(B, C, H, W)``. All of it is
differentiable.

>>> turn = Rotations().draw(images, torch.Generator().manual_seed(0))
>>> turned = turn(images)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_count, check_dtype, check_number
from pyrecon.linops import LinearOperator
from pyrecon.nn._channels import from_channels, to_channels

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Element:
    """A transform for each sample of a batch; call it with images.

    ``inverse`` undoes it to rounding, and is None where interpolation stands in the way.
    """

    apply: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(_images(images))


class Group(ABC):
    """Transforms to draw from, for images like ``like``."""

    @abstractmethod
    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Element:
        """One element per sample of ``like``, each as likely as the others; on any device the same for one seed."""


@dataclass(frozen=True)
class Rotations(Group):
    """By multiples of ``step`` whole degrees about the centre, counterclockwise; square images only.

    By interpolation, zero from outside: what lies beyond the inscribed circle is lost at the corners. Multiples of 90
    degrees are exact (:class:`QuarterTurns`).

    Attributes
    ----------
    step
        1 to 180 degrees.
    interpolation
        ``"bicubic"`` blurs less, in twice the time; a virtual measurement of a blurred image teaches blur.
    """

    step: int = 1
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        check_count("Rotations: step", self.step, 1, 180)
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"Rotations: interpolation={self.interpolation!r}, expected bilinear or bicubic")

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Element:
        count = -(-360 // self.step)
        return self.by(self.step * torch.randint(count, (len(_square(like)),), generator=generator))

    def by(self, degrees: Tensor | float) -> Element:
        """By given angles, a number or one per sample."""
        angles = torch.as_tensor(degrees, dtype=torch.float64)
        exact = bool((angles % 90 == 0).all())
        if exact:
            return QuarterTurns().by((angles / 90).to(torch.int64))
        return Element(lambda images: self._turned(_square(images), angles))

    def _turned(self, images: Tensor, degrees: Tensor) -> Tensor:
        x = to_channels(images)
        radians = torch.deg2rad(degrees).expand(len(x))
        cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
        # Where in the image each pixel of the result comes from; x to the right, y down.
        rows = (torch.stack((cos, -sin, zero), 1), torch.stack((sin, cos, zero), 1))
        grid = F.affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
        return from_channels(F.grid_sample(x, grid, mode=self.interpolation, align_corners=False), images)


@dataclass(frozen=True)
class QuarterTurns(Group):
    """By 0, 90, 180 or 270 degrees counterclockwise, exactly; square images only."""

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Element:
        return self.by(torch.randint(4, (len(_square(like)),), generator=generator))

    def by(self, turns: Tensor | int) -> Element:
        """By so many quarter turns, a number or one per sample."""
        turns = torch.as_tensor(turns, dtype=torch.int64)
        return Element(lambda x: _quarters(_square(x), turns), lambda x: _quarters(_square(x), -turns))


@dataclass(frozen=True)
class Shifts(Group):
    """By whole pixels down and to the right, what leaves on one side enters on the other.

    ``most`` bounds either of them in both directions; None: any.
    """

    most: int | None = None

    def __post_init__(self) -> None:
        if self.most is not None:
            check_count("Shifts: most", self.most)

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Element:
        _images(like)
        sides = like.shape[-2:]
        if self.most is None:
            drawn = [torch.randint(side, (len(like),), generator=generator) for side in sides]
        else:
            drawn = [torch.randint(-self.most, self.most + 1, (len(like),), generator=generator) for _ in sides]
        return self.by(torch.stack(drawn, 1))

    def by(self, pixels: Tensor) -> Element:
        """By ``(B, 2)`` pixels, down and to the right."""
        moves = pixels.tolist()

        def rolled(x: Tensor, sign: int) -> Tensor:
            return _each(x, [partial(torch.roll, shifts=(sign * a, sign * b), dims=(-2, -1)) for a, b in moves])

        return Element(lambda x: rolled(x, 1), lambda x: rolled(x, -1))


@dataclass(frozen=True)
class Flips(Group):
    """Upside down, left to right, both or neither."""

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Element:
        _images(like)
        return self.by(torch.randint(2, (len(like), 2), generator=generator).bool())

    def by(self, axes: Tensor) -> Element:
        """``(B, 2)`` bool: along rows' axis, along columns' axis."""
        dims = [[d for d, flipped in zip((-2, -1), row, strict=True) if flipped] for row in axes.tolist()]

        def flipped(x: Tensor) -> Tensor:
            return _each(x, [partial(torch.flip, dims=d) for d in dims])

        return Element(flipped, flipped)


class Product(Group):
    """An element of each of several groups, one after the other: ``Product(Rotations(), Flips())``."""

    def __init__(self, *groups: Group) -> None:
        if not groups or not all(isinstance(group, Group) for group in groups):
            raise TypeError(f"groups: expected one or more groups, got {groups!r}")
        self.groups = groups

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.groups))})"

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Element:
        drawn = [group.draw(like, generator) for group in self.groups]
        back = [element.inverse for element in reversed(drawn)]
        known = [inverse for inverse in back if inverse is not None]
        return Element(
            lambda x: _in_turn([element.apply for element in drawn], x),
            (lambda x: _in_turn(known, x)) if len(known) == len(back) else None,
        )


def commutes(physics: LinearOperator, group: Group, like: Tensor, *, tol: float = 5e-2, seed: int = 0) -> bool:
    """Whether ``A^H A T = T A^H A`` for transforms of the group, on random images like ``like`` ``(B, ...)``.

    If so, the virtual operators ``A T`` see no more of an image than A does: equivariant imaging has nothing to learn
    from. Judged at a relative difference of ``tol``, for smooth images, which interpolation leaves alone. By rotations
    a Gaussian blur differs by 1 to 3 % (its window is square), 16 views by 10 to 50 %.
    """
    if not isinstance(physics, LinearOperator):
        raise TypeError(f"physics: expected a LinearOperator, got {type(physics).__name__}")
    if not isinstance(group, Group):
        raise TypeError(f"group: expected a group of pyrecon.transforms, got {type(group).__name__}")
    check_number("tol", tol)
    generator = torch.Generator().manual_seed(check_count("seed", seed, 0))
    _images(like)
    with torch.no_grad():
        noise = torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)
        window = [torch.hann_window(n, False, dtype=like.real.dtype, device=like.device) for n in like.shape[-2:]]
        x = from_channels(F.avg_pool2d(to_channels(noise), 5, 1, 2), noise) * torch.outer(*window)
        for _ in range(4):
            element = group.draw(x, generator)
            first, then = physics.gram(element(x)), element(physics.gram(x))
            if float(torch.linalg.vector_norm(first - then)) > tol * float(torch.linalg.vector_norm(then)):
                return False
    return True


def _images(images: Tensor) -> Tensor:
    check_dtype("images", images, (*FLOATING, *COMPLEX))
    if images.dim() != 3 and (images.dim() != 4 or images.is_complex()):
        raise ValueError(
            f"images: shape {tuple(images.shape)} does not fit, expected (B, H, W), or (B, C, H, W) of real numbers"
        )
    return images


def _square(images: Tensor) -> Tensor:
    height, width = _images(images).shape[-2:]
    if height != width:
        raise ValueError(f"images: of {height} x {width} pixels, rotations take square ones; pad or crop them")
    return images


def _quarters(images: Tensor, turns: Tensor) -> Tensor:
    return _each(images, [partial(torch.rot90, k=k, dims=(-2, -1)) for k in turns.expand(len(images)).tolist()])


def _each(images: Tensor, maps: list[Callable[[Tensor], Tensor]]) -> Tensor:
    if len(images) != len(maps):
        raise ValueError(f"images: {len(images)} samples, the transform was drawn for {len(maps)}")
    return torch.stack([apply(image) for apply, image in zip(maps, images, strict=True)]) if maps else images


def _in_turn(maps: list[Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    for apply in maps:
        images = apply(images)
    return images
