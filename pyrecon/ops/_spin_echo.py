"""Spin-echo trains with stimulated echoes: the signal and its model, which :mod:`pyrecon.ops._epg` fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrecon._check import FLOATING, check_dtype, check_number, described

_OFF = 1e-3  # of the spacing that echo times may be from their multiples: scanners round them


# --- the signal ------------------------------------------------------------------------------------------------------
def echo_train(
    rate: Tensor, b1: Tensor, spacing: Tensor, r1: Tensor, angles: Tensor, derivatives: int = 0
) -> list[Tensor]:
    """phi ``(B, T, N)`` of maps that broadcast to (B, N), and its derivatives up to the second: R2, B1; R2 R2, R2 B1,
    B1 B1."""
    rate, b1, spacing, r1 = torch.broadcast_tensors(rate, b1, spacing, r1)
    parts, count = (1, 3, 6)[derivatives], len(angles)
    zero, one = torch.zeros_like(rate)[None], torch.ones_like(rate)[None]
    kept, stored = torch.exp(-spacing * rate), torch.exp(-spacing * r1)
    plus = [one if i == 0 else zero for i in range(parts)]
    minus, z = [zero] * parts, [zero] * parts
    echoes = []
    for n in range(count):
        angle = angles[n]
        cos, sin = torch.cos(b1 * angle), torch.sin(b1 * angle)
        sums = [p + m for p, m in zip(plus, minus, strict=True)]
        apart = [p - m for p, m in zip(plus, minus, strict=True)]
        d = [cos * x + sin * y for x, y in zip(apart, z, strict=True)]
        z = [cos * y - sin * x for x, y in zip(apart, z, strict=True)]
        if parts >= 3:  # the derivative of a turn is a quarter turn
            d[2], z[2] = d[2] + angle * z[0], z[2] - angle * d[0]
        if parts == 6:
            d[4], z[4] = d[4] + angle * z[1], z[4] - angle * d[1]
            d[5], z[5] = (
                d[5] + 2 * angle * z[2] + angle.square() * d[0],
                z[5] - 2 * angle * d[2] + angle.square() * z[0],
            )
        plus = _decayed([0.5 * kept * (x + y) for x, y in zip(sums, d, strict=True)], spacing)
        minus = _decayed([0.5 * kept * (x - y) for x, y in zip(sums, d, strict=True)], spacing)
        echoes.append([m[0] for m in minus])
        orders = min(n + 2, count - n - 1)
        plus = [torch.cat((m[:1], p))[:orders] for p, m in zip(plus, minus, strict=True)]
        minus = [torch.cat((m[1:], zero, zero))[:orders] for m in minus]
        z = [torch.cat((stored * y, zero))[:orders] for y in z]
    return [torch.stack([echo[i] for echo in echoes], 1) for i in range(parts)]


def _decayed(x: list[Tensor], spacing: Tensor) -> list[Tensor]:
    """Derivatives of what has decayed by exp(-spacing R2), that of the factor still missing."""
    if len(x) >= 3:
        first = x[1] - spacing * x[0]
        if len(x) == 6:
            x[3], x[4] = x[3] - spacing * (x[1] + first), x[4] - spacing * x[2]
        x[1] = first
    return x


def images_of(p: Tensor, spacing: Tensor, angles: Tensor, r1: Tensor, b1: Tensor | None) -> Tensor:
    """Images (B, T, ...) of parameters (B, P, ...)."""
    flat = p.flatten(2) if p.dim() > 2 else p[..., None]
    fitted = 2 if b1 is None else 1
    flip = flat[:, 1] if b1 is None else b1
    phi = echo_train(flat[:, 0], flip, spacing[:, None], r1, angles)[0].to(p.dtype)
    rest = flat[:, fitted:]
    factor = torch.complex(rest[:, 0], rest[:, 1]) if rest.shape[1] == 2 else rest[:, 0]
    return (factor[:, None] * phi).reshape(p.shape[0], phi.shape[1], *p.shape[2:])


# --- the model -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MultiSpinEcho:
    """``M0 phi(R2, B1)``: a CPMG train with stimulated echoes, of imperfect refocusing, by an extended phase graph.

    A signal model of :func:`pyrecon.ops.fit_voxels`, whose ``times`` are the echo times, ``n`` times the spacing, and
    whose parameters are R2 (1/s), B1 (actual over nominal refocusing angle) and M0, real or complex like the data.
    The pulses, of ``B1 angle`` about the axis of the magnetisation, are in the middle between echoes; what B1 makes of
    the excitation is part of M0. Pulses are instantaneous and act on the whole slice alike: a slice profile is not
    modelled, and shows as a B1 below the true one.

    T1 is given, not fitted, for it matters little. With 32 echoes 10 ms apart, T2 of 40 to 200 ms, B1 of 0.6 to 0.95, a
    true T1 of 2 or 3 s where 1 s is assumed makes T2 at most 2.4 or 3.2 % too long, one of 0.7, 0.5 or 0.3 s at most
    2.0, 4.4 or 9.5 % too short, and B1 wrong by less than 0.009.

    Angles of pi make the signal of B1 and of 2 - B1 the same, equal ones that of ``B1`` and of ``2 pi / angle - B1``:
    B1 is sought on one side. At B1 = 1 the signal has no slope in it, so that noise takes about half of all voxels with
    perfect pulses to that bound, where B1 has derivative 0 and no standard error.

    J. Hennig, J. Magn. Reson. 78, 1988; M. Weigel, J. Magn. Reson. Imaging 41, 2015, eq. 15 and 18.

    Attributes
    ----------
    angles
        Nominal refocusing angles, radians: a number, or one for each echo. A tensor ``(T,)`` may require gradients.
    t1
        Seconds: a number, or a map ``(B|1, 1, ...)``; what is not positive there is lost like a NaN in the data.
    b1
        Actual over nominal angle, where it is known: a number or a map ``(B|1, 1, ...)``; it is not fitted then.
    b1_range
        Smallest and largest B1 that a fit looks at. Default from 0.3, where pulses of pi leave a fifth of the first
        echo, to ``pi / angle`` of the largest angle, at least 0.5 and at most 1.5; a tensor of angles has no default.

    Raises
    ------
    ValueError, TypeError
        For angles in degrees, T1 in milliseconds, numbers that are not positive, a range that leaves nothing.
    """

    angles: Tensor | Sequence[float] | float = math.pi
    t1: Tensor | float = 1.0
    b1: Tensor | float | None = None
    b1_range: tuple[float, float] | None = None

    rate: ClassVar[str] = "R2"
    range: ClassVar[tuple[float, float]] = (0.2, 2000.0)
    setting: ClassVar[str] = "echo times in seconds"
    longest: ClassVar[float] = 10.0
    advice: ClassVar[str] = "are these milliseconds?"

    def __post_init__(self) -> None:
        if isinstance(self.angles, Tensor):
            check_dtype("angles", self.angles, FLOATING)
            if self.angles.dim() != 1:
                raise ValueError(f"angles: shape {tuple(self.angles.shape)}, expected one for each echo, (T,)")
        elif isinstance(self.angles, Sequence) and not isinstance(self.angles, str):
            for angle in self.angles:
                _check_angle(angle)
        else:
            _check_angle(self.angles)
        if isinstance(self.t1, Tensor):
            check_dtype("t1", self.t1, FLOATING)
        elif check_number("t1", self.t1, above=True) > 60:
            raise ValueError(f"t1: {self.t1} s is no T1 of tissue; are these milliseconds?")
        if isinstance(self.b1, Tensor):
            check_dtype("b1", self.b1, FLOATING)
        elif self.b1 is not None:
            check_number("b1", self.b1, above=True)
        self._check_range()

    def _check_range(self) -> None:
        if self.b1_range is None:
            if isinstance(self.angles, Tensor) and self.b1 is None:
                raise ValueError(
                    "b1_range: has no default for a tensor of angles; give it, (0.3, 1.0) for angles of pi"
                )
            return
        if self.b1 is not None:
            raise ValueError("b1_range: given, but b1 is known and not fitted; give one of them")
        if not isinstance(self.b1_range, tuple) or len(self.b1_range) != 2:
            raise TypeError(f"b1_range: {described(self.b1_range)}, expected (low, high)")
        low, high = (check_number("b1_range", end, above=True) for end in self.b1_range)
        if not low < high:
            raise ValueError(f"b1_range: {low} to {high} leaves no B1, expected low < high")

    @property
    def fitted(self) -> tuple[str, ...]:
        """Names of the parameters before the factor."""
        return ("R2",) if self.b1 is not None else ("R2", "B1")

    @property
    def flips(self) -> tuple[float, float]:
        """The range of B1."""
        if self.b1_range is not None:
            return self.b1_range
        if isinstance(self.angles, Tensor):
            return 0.3, 1.0  # B1 is known, and the range means nothing
        largest = max(self.angles) if isinstance(self.angles, Sequence) else self.angles
        return 0.3, max(min(1.5, math.pi / float(largest)), 0.5)

    def names(self, is_complex: bool) -> tuple[str, ...]:
        """Names of all parameters, in their order."""
        return *self.fitted, *(("M0_re", "M0_im") if is_complex else ("M0",))

    def derived(self, value: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """Maps that users ask for, by name; T2 in seconds."""
        b1 = {"B1": value[:, 1]} if self.b1 is None else {}
        return {"T2": 1 / value[:, 0], **b1, "M0": factor}

    def signal(self, rate: Tensor, b1: Tensor, factor: Tensor, times: Tensor | Sequence[float]) -> Tensor:
        """Images ``(B, T, ...)`` of maps ``(B, ...)`` at echo times ``(T,)`` or ``(B|1, T)``."""
        like = factor[:, None].expand(-1, len(times) if not isinstance(times, Tensor) else times.shape[-1],
                                      *factor.shape[1:])  # fmt: skip
        at = torch.as_tensor(times, dtype=torch.float64, device=rate.device)
        spacing, angles, r1, _ = self.settings(like, at[None] if at.dim() == 1 else at)
        flat_rate, flat_b1 = (v.flatten(1) if v.dim() > 1 else v[:, None] for v in (rate, b1))
        (phi,) = echo_train(flat_rate, flat_b1, spacing[:, None], r1, angles)
        return factor[:, None] * phi.reshape(like.shape)

    def settings(self, data: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Spacing ``(B|1,)``, angles ``(T,)``, R1 and B1 ``(B|1, N|1)`` for data ``(B, T, ...)`` and echo times
        ``(B|1, T)``, in double precision; NaN where a T1 or B1 is none."""
        echoes, device = data.shape[1], data.device
        numbers = torch.arange(1, echoes + 1, dtype=torch.float64, device=device)
        spacing = (times.double() * numbers).sum(1) / numbers.square().sum()
        if isinstance(self.angles, Tensor):
            angles = self.angles.to(device, torch.float64)
        elif isinstance(self.angles, Sequence):
            angles = torch.tensor(self.angles, dtype=torch.float64, device=device)
        else:
            angles = torch.full((echoes,), float(self.angles), dtype=torch.float64, device=device)
        if len(angles) != echoes:
            raise ValueError(f"angles: {len(angles)} refocusing angles, but {echoes} echoes (axis 1 of the data)")
        t1, t1_known = _known(_flat("t1", self.t1, data))
        r1 = torch.where(t1_known, 1 / t1, torch.nan)
        if self.b1 is None:
            return spacing, angles, r1, None
        b1, b1_known = _known(_flat("b1", self.b1, data))
        return spacing, angles, r1, torch.where(b1_known, b1, torch.nan)


def check_spacing(times: Tensor) -> None:
    """Raise unless echo times ``(B|1, T)`` are multiples of the first, as echoes of a train are."""
    first = times[:, :1]
    numbers = torch.arange(1, times.shape[1] + 1, dtype=times.dtype, device=times.device)
    wrong = ((times - numbers * first).abs() > _OFF * numbers.clamp(max=2) * first) | (first <= 0)
    if bool(wrong.any()):
        b, n = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"times: echo {n + 1} at {float(times[b, n]):g} s, but the first is at {float(first[b, 0]):g} s; expected "
            "echo n of a train at n times a positive spacing"
        )


def _check_angle(angle: float) -> None:
    if check_number("angles", angle, above=True) > 7:
        raise ValueError(f"angles: {angle}, expected radians; are these degrees?")


def _flat(name: str, value: Tensor | float, data: Tensor) -> Tensor:
    """(B|1, N|1) of a number or a map."""
    if not isinstance(value, Tensor):
        return torch.full((1, 1), float(value), dtype=torch.float64, device=data.device)
    wanted = (data.shape[0], 1, *data.shape[2:])
    if value.dim() == 0:
        value = value.view([1] * data.dim())
    if value.dim() != data.dim() or any(n not in (1, m) for n, m in zip(value.shape, wanted, strict=True)):
        raise ValueError(
            f"{name}: its shape {tuple(value.shape)} does not fit the data {tuple(data.shape)}, expected (B|1, 1, ...)"
        )
    wide = value.to(data.device, torch.float64)
    if any(n != 1 for n in value.shape[2:]):
        wide = wide.expand(value.shape[0], 1, *data.shape[2:])
    return wide.reshape(value.shape[0], -1) if value.numel() else wide.new_ones(1, 1)


def _known(value: Tensor) -> tuple[Tensor, Tensor]:
    """Positive numbers, others replaced so that they have no derivative, and where they are."""
    known = value > 0
    return torch.where(known, value, 1.0), known
