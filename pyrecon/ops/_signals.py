"""Signal models of relaxometry: one rate R (1/s) and one or two linear parameters per voxel.

With one of them a signal is ``c phi(t; R)``, with two ``a + b E``, and for image t

    E = exp(-time R),    phi = (p + q E) / (1 - u E).

That is all that the kernels of :func:`pyrecon.ops.fit_voxels` know of a model: the table of
``time, p + q, q, 1 - u, u`` of every image. Saturation recovery has ``1 - E``, an echo ``E``, a spoiled gradient echo
``sin(alpha) (1 - E) / (1 - cos(alpha) E)`` with ``time`` the repetition time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrecon._check import FLOATING, check_dtype, check_flag, check_number, described

ROWS = 5  # of the table: time, p + q, q, 1 - u, u


@dataclass(frozen=True)
class SignalModel(ABC):
    """A signal of one rate and ``linear`` factors, real or complex.

    Attributes
    ----------
    rate, time
        Names of the rate that is fitted and of its inverse: ``"R1"`` and ``"T1"``.
    range
        Smallest and largest rate, 1/s, that a fit looks at unless told otherwise.
    setting, longest, advice
        What ``times`` holds, with its unit, for messages; what is beyond ``longest`` is in another unit.
    """

    rate: ClassVar[str]
    time: ClassVar[str]
    range: ClassVar[tuple[float, float]]
    setting: ClassVar[str]
    longest: ClassVar[float] = 100.0
    advice: ClassVar[str] = "are these milliseconds?"

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the linear parameters, in their order."""
        return ("M0",)

    @property
    def polarity(self) -> bool:
        """Whether data are magnitudes of a signal that may be negative."""
        return False

    @property
    def linear(self) -> int:
        """The number of linear parameters."""
        return len(self.factors)

    @abstractmethod
    def table(self, times: Tensor) -> Tensor:
        """``(5, *times.shape)``, differentiable in ``times`` and in what the model holds."""

    def derived(self, rate: Tensor, factors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Maps that users ask for, by name; seconds."""
        names = dict(zip(self.factors, factors, strict=True))
        return {self.time: 1 / rate, **names}

    def signal(self, rate: Tensor, factors: tuple[Tensor, ...], times: Tensor) -> Tensor:
        """Images ``(..., T, H, W)`` of maps ``(..., H, W)`` at ``times``, of a shape that broadcasts to the images'."""
        return curve(self.table(times), rate.unsqueeze(-3), tuple(f.unsqueeze(-3) for f in factors))


def curve(table: Tensor, rate: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """The signal of a table ``(5, ...)``."""
    time, sums, q, rest, u = table.unbind(0)
    m = -torch.expm1(-time * rate)  # 1 - E without its rounding
    if len(factors) == 2:
        return factors[0] + factors[1] * (1 - m)
    return factors[0] * ((sums - q * m) / (rest + u * m))


def _table(time: Tensor, p: Tensor | float, q: Tensor | float, u: Tensor | float = 0.0) -> Tensor:
    def like(value: Tensor | float) -> Tensor:
        return value if isinstance(value, Tensor) else torch.full_like(time, value)

    p, q, u = like(p), like(q), like(u)
    return torch.stack(torch.broadcast_tensors(time, p + q, q, 1 - u, u))


@dataclass(frozen=True)
class SaturationRecovery(SignalModel):
    """``M0 (1 - exp(-t R1))``, t after a saturation pulse."""

    rate = "R1"
    time = "T1"
    range = (0.05, 100.0)
    setting = "saturation times in seconds"

    def table(self, times: Tensor) -> Tensor:
        one = torch.ones_like(times)
        return torch.stack((times, 0 * one, -one, one, 0 * one))


@dataclass(frozen=True)
class InversionRecovery(SignalModel):
    """``a + b exp(-TI R1)``; in a perfect experiment ``b = -2 a``.

    Attributes
    ----------
    magnitude
        Data are magnitudes: which of the early ones were negative is found out for every voxel.
    """

    magnitude: bool = False

    rate = "R1"
    time = "T1"
    range = (0.05, 100.0)
    setting = "inversion times in seconds"

    @property
    def factors(self) -> tuple[str, ...]:
        return "a", "b"

    def __post_init__(self) -> None:
        check_flag("magnitude", self.magnitude)

    @property
    def polarity(self) -> bool:
        return self.magnitude

    def table(self, times: Tensor) -> Tensor:
        zero = torch.zeros_like(times)
        return torch.stack((times, zero + 1, zero + 1, zero + 1, zero))


@dataclass(frozen=True)
class LookLocker(InversionRecovery):
    """``a + b exp(-TI R1*)`` of an inversion read out repeatedly (MOLLI): ``T1 = T1* (-b / a - 1)``.

    The rate that is fitted is R1*. D. R. Messroghli et al., Modified Look-Locker inversion recovery (MOLLI) for
    high-resolution T1 mapping of the heart, Magn. Reson. Med. 52, 2004.
    """

    rate = "R1*"
    time = "T1*"

    def derived(self, rate: Tensor, factors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        a, b = factors
        ratio = -(b / a).real if a.is_complex() else -b / a
        return {"T1": (ratio - 1) / rate, **super().derived(rate, factors)}


@dataclass(frozen=True)
class EchoDecay(SignalModel):
    """``M0 exp(-TE R2)``, with ``offset`` a constant beside it."""

    offset: bool = False

    rate = "R2"
    time = "T2"
    range = (0.2, 2000.0)
    setting = "echo times in seconds"

    def __post_init__(self) -> None:
        check_flag("offset", self.offset)

    @property
    def factors(self) -> tuple[str, ...]:
        return ("offset", "M0") if self.offset else ("M0",)

    def table(self, times: Tensor) -> Tensor:
        zero = torch.zeros_like(times)
        return torch.stack((times, zero + 1, zero + 1, zero + 1, zero))


@dataclass(frozen=True)
class SpoiledGradientEcho(SignalModel):
    """``M0 sin(alpha) (1 - E) / (1 - cos(alpha) E)``, ``E = exp(-TR R1)``; ``times`` are the flip angles, radians.

    Attributes
    ----------
    repetition_time
        TR in seconds: a number, or a tensor that broadcasts to the images, ``(B|1, T|1, H|1, W|1)``.
    b1
        Map of actual over nominal flip angles ``(B|1, 1, H, W)``, or None where they are equal.
    """

    repetition_time: Tensor | float = 0.015
    b1: Tensor | None = None

    rate = "R1"
    time = "T1"
    range = (0.05, 100.0)
    setting = "flip angles in radians"
    longest = 7.0
    advice = "are these degrees?"

    def __post_init__(self) -> None:
        if isinstance(self.repetition_time, Tensor):
            check_dtype("repetition_time", self.repetition_time, FLOATING)
        elif check_number("repetition_time", self.repetition_time, above=True) > 60:
            raise ValueError(
                f"repetition_time: {self.repetition_time} s is no repetition time; are these milliseconds?"
            )
        if self.b1 is not None:
            check_dtype("b1", self.b1, FLOATING)

    def table(self, times: Tensor) -> Tensor:
        angle = times if self.b1 is None else times * self.b1.to(times)
        tr = self.repetition_time
        time = tr.to(times) if isinstance(tr, Tensor) else torch.as_tensor(tr, dtype=times.dtype, device=times.device)
        sin, rest = torch.sin(angle), 2 * torch.sin(angle / 2).square()  # 1 - cos without its rounding
        return torch.stack(torch.broadcast_tensors(time, 0 * sin, -sin, rest, 1 - rest))


MODELS: Mapping[str, SignalModel] = {
    "sr": SaturationRecovery(),
    "ir": InversionRecovery(),
    "ir-magnitude": InversionRecovery(magnitude=True),
    "molli": LookLocker(magnitude=True),
    "t2": EchoDecay(),
    "t2-offset": EchoDecay(offset=True),
}


def model_of(model: SignalModel | str) -> SignalModel:
    """A model, or the one of a name."""
    if isinstance(model, SignalModel):
        return model
    if isinstance(model, str) and model in MODELS:
        return MODELS[model]
    raise ValueError(f"model: {described(model)}, expected a SignalModel or one of {', '.join(MODELS)}")
