"""What networks from k-space to parameter maps share: the signal, the first images, a file of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pyrecon._check import COMPLEX, check_count, check_dtype, check_shape
from pyrecon._errors import DataError
from pyrecon.linops import LinearOperator
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    filled,
    find_weights,
    read_header,
    whole_number,
    write_weights,
)
from pyrecon.ops import SaturationRecovery, SignalModel, VoxelFit
from pyrecon.solvers import conjugate_gradient

_MOST_LEVELS = 12


@dataclass(frozen=True)
class Iterates:
    """Of all iterations in turn.

    Attributes
    ----------
    parameters
        ``(B, 3, H, W)``: rate (1/s), real and imaginary part of M0; first those that the iteration begins with, if any.
    images
        ``(B, T, H, W)`` complex.
    suggested
        Parameters that a network suggested, and images that one did.
    fits
        The fit of every iteration.
    """

    parameters: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    suggested: list[tuple[Tensor | None, Tensor | None]] = field(default_factory=list)
    fits: list[VoxelFit] = field(default_factory=list)


class MapNetwork(nn.Module, ABC):
    """A model of series of complex images with one linear factor M0.

    Attributes
    ----------
    network
        Its name in files of weights.
    phase
        Whether it knows the phase of M0; otherwise its imaginary part is zero and the real one is the magnitude.
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    """

    system: ClassVar[str] = "pinqi"
    network: ClassVar[str]
    phase: ClassVar[bool] = True
    card: Card | None = None

    def __init__(self, images: int, model: SignalModel | None, options: dict[str, Any]) -> None:
        """``options`` are what makes the same tensors, all but ``images``."""
        super().__init__()
        self.images = check_count("images", images, 2)
        self.model = SaturationRecovery() if model is None else model
        if not isinstance(self.model, SignalModel) or self.model.linear != 1 or self.model.polarity:
            raise ValueError(f"model: {self.model!r}, expected a SignalModel of complex images with one factor M0")
        self._options = {"network": self.network, "images": images} | options

    @abstractmethod
    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """``k`` data of the physics, whose images are ``(B, T, H, W)``; ``times`` ``(T,)`` as for the model, or
        ``(B|1, T)``."""

    def _begin(self, k: Tensor, physics: LinearOperator, times: Tensor) -> tuple[Tensor, Tensor]:
        """``A^H k``, and the times as maps have them."""
        if not isinstance(physics, LinearOperator):
            raise TypeError(f"physics: {type(physics).__name__}, expected a LinearOperator")
        right = physics.adjoint(k)
        check_dtype("A^H k", right, COMPLEX)
        check_shape("A^H k", right, (None, self.images, None, None), "(B, T, H, W)")
        if times.dim() not in (1, 2) or times.shape[-1] != self.images:
            raise ValueError(f"times: shape {tuple(times.shape)}, expected (T,) or (B|1, T) for {self.images} images")
        return right, times if times.dim() == 1 else times.view(*times.shape, 1, 1)

    def signal(self, parameters: Tensor, times: Tensor) -> Tensor:
        """q(p): images ``(B, T, H, W)`` of parameters ``(B, 3, H, W)``."""
        factor = torch.complex(parameters[:, 1], parameters[:, 2])
        axes = times.view(1, -1, 1, 1) if times.dim() == 1 else times
        return self.model.signal(parameters[:, 0], (factor,), axes.to(parameters))

    def first(self, k: Tensor, physics: LinearOperator, iterations: int = 2) -> Tensor:
        """What iterations begin with, without gradients: some conjugate gradients from ``A^H k``."""
        with torch.no_grad():
            right = physics.adjoint(k)
            return conjugate_gradient(physics.gram, right, x0=right, rtol=0.0, max_iter=iterations).value

    # --- weights ---
    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        if type(self.model) is not SaturationRecovery:
            raise ValueError(f"model: {self.model!r}; files are of saturation recovery alone so far")
        write_weights(path, self.system, self._options, self.state_dict(), self.card)

    @classmethod
    @abstractmethod
    def _configured(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Options of the constructor from a header's; ValueError, KeyError or TypeError for what is none."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that :meth:`save` wrote, in evaluation mode; DataError where the file is none."""
        header = read_header(path)
        if header.model != cls.system:
            raise DataError(f"{path}: holds weights of {header.model!r}, expected {cls.system!r}")
        try:
            config = dict(header.config)
            network = config.pop("network")
            if network != cls.network:
                raise ValueError(f"network: {network!r}, expected {cls.network!r}")
            images = whole_number(config.pop("images"), 2)
            with torch.device("meta"):
                model = cls(images, **cls._configured(config))
            header.expect_count(len(model.state_dict()))
            model.card = None if header.card is None else Card.from_dict(header.card)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        return filled(model, header)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))


def as_channels(images: Tensor) -> Tensor:
    """Complex ``(B, T, H, W)`` as real ``(B, 2 T, H, W)``: all real parts, then all imaginary ones."""
    return torch.view_as_real(images.resolve_conj()).movedim(-1, 1).flatten(1, 2)


def options_of(
    config: dict[str, Any], *, counts: Sequence[str] = (), widths: Sequence[str] = (), numbers: Mapping[str, int] = {}
) -> dict[str, Any]:
    """A header's configuration with whole numbers, channels of several resolutions and tuples of so many numbers."""
    options = dict(config)
    for name in counts:
        options[name] = whole_number(options[name], 0)
    for name in widths:
        options[name] = tuple(whole_number(n) for n in options[name])
        if not 2 <= len(options[name]) <= _MOST_LEVELS:
            raise ValueError(f"{name}: {len(options[name])} resolutions")
    return options | {name: numbers_of(options[name], count) for name, count in numbers.items()}


def numbers_of(value: Any, count: int) -> tuple[float, ...]:
    """``count`` numbers, from a header."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise ValueError(f"expected {count} numbers, got {str(value)[:40]!r}")
    return tuple(float(v) for v in value)
