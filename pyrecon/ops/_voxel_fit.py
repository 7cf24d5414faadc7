"""What a fit of every voxel returns: parameters, maps, residuals, covariances and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrecon._solution import Solution
from pyrecon.ops._custom import CustomSignal
from pyrecon.ops._signals import SignalModel
from pyrecon.ops._spin_echo import MultiSpinEcho

_AT_BOUND = 1e-6  # a minimum at a bound without slope is reached to this fraction of it


@dataclass(frozen=True)
class VoxelFit(Solution[Tensor]):
    """A fit of every voxel: ``value`` ``(B, P, ...)`` are the rate (1/s) and real parameters after it, by ``names``.

    ``status``, ``iterations`` and ``residual`` (the last relative step of the rate) are maps ``(B, ...)``. What is no
    number, or has no signal to fit, has the status NONFINITE and a rate of NaN; its neighbours do not notice.

    Attributes
    ----------
    model, names, units
        The signal model, and what the parameters are; complex ones have a real and an imaginary map.
    """

    model: SignalModel | CustomSignal | MultiSpinEcho
    names: tuple[str, ...]
    units: tuple[str, ...]
    _data: Tensor = field(repr=False)
    _signal: Callable[[Tensor], Tensor] = field(repr=False)  # parameters (B, P, ...) to images (B, T, ...)
    _ranges: tuple[tuple[float, float], ...] = field(default=(), repr=False)  # of the first parameters, held at an end
    _information: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)  # (B, P, N) to (B, N, P, P)

    @property
    def rate(self) -> Tensor:
        """``(B, ...)``, 1/s."""
        return self.value[:, 0]

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The linear parameters ``(B, ...)``, complex where the data are."""
        return self._factors(self.value)

    def maps(self) -> dict[str, Tensor]:
        """What is read off a fit, by name: T1 or T2 in seconds, the factors, what the model derives from them; of a
        signal of one's own what it says, or its parameters."""
        return self._derived(self.value)

    def errors(self) -> dict[str, Tensor]:
        """Standard errors of :meth:`maps`, to first order, in double precision; of complex maps those of magnitudes."""
        covariance = self.covariance()

        def real(p: Tensor) -> dict[str, Tensor]:
            return {name: v.abs() if v.is_complex() else v for name, v in self._derived(p).items()}

        p, slopes = self.value.detach().double(), list[dict[str, Tensor]]()
        for i in range(p.shape[1]):
            along = torch.zeros_like(p)
            along[:, i] = 1
            slopes.append(torch.func.jvp(real, (p,), (along,))[1])
        found = {}
        for name in slopes[0]:
            slope = torch.stack([s[name] for s in slopes], 1)
            both = slope[:, :, None] * slope[:, None]
            # A parameter at its bound has no error, and a map that it does not change has one all the same.
            found[name] = torch.where(both == 0, 0.0, both * covariance).sum((1, 2)).sqrt()
        return found

    def _derived(self, p: Tensor) -> dict[str, Tensor]:
        parts = p.unbind(1)
        if isinstance(self.model, CustomSignal):
            derived = self.model.derived
            return dict(zip(self.names, parts, strict=True)) if derived is None else derived(*parts)
        if isinstance(self.model, MultiSpinEcho):
            return self.model.derived(p, self._factors(p)[0])
        return self.model.derived(parts[0], self._factors(p))

    def _factors(self, p: Tensor) -> tuple[Tensor, ...]:
        rest = p.unbind(1)[len(self.model.fitted) if isinstance(self.model, MultiSpinEcho) else 1 :]
        if self._data.is_complex():
            return tuple(torch.complex(rest[i], rest[i + 1]) for i in range(0, len(rest), 2))
        return rest

    def signal(self) -> Tensor:
        """The fitted images, like the data; of magnitudes the magnitude."""
        with torch.no_grad():
            signal = self._signal(self.value)
        return signal.abs() if self._magnitudes else signal

    def residuals(self) -> Tensor:
        """Data less the fitted images."""
        return self._data - self.signal()

    def covariance(self) -> Tensor:
        """``(B, P, P, ...)``, in double precision: ``sigma^2 (J^T J)^-1`` with ``sigma^2`` from the voxel's residual.

        J are the derivatives of the signal, ``sigma^2`` the sum of squares over the number of real data less that of
        parameters: NaN where there are no more data than parameters. Without the prior, which it would be told from.
        Of a spin-echo train, R2 and B1 at a bound are taken as known: the others' rows are those without them, their
        own NaN.

        Of a fit with ``noise_std`` the inverse of the observed information, which is half the Hessian of its objective
        without the prior over ``noise_std^2``: NaN where that is not positive, as it may be at a bound.
        """
        if self._information is not None:
            matrix = self._information(self.value.detach().flatten(2))
            return self._inverted(matrix, torch.ones_like(matrix[..., 0, 0]))
        p, data = self.value.detach().double(), self._data
        count = data.shape[1] * (2 if data.is_complex() else 1)

        def f(v: Tensor) -> Tensor:
            signal = self._signal(v)
            return torch.cat((signal.real, signal.imag), 1) if signal.is_complex() else signal

        columns = []
        for i in range(p.shape[1]):
            along = torch.zeros_like(p)
            along[:, i] = 1
            columns.append(torch.func.jvp(f, (p,), (along,))[1].flatten(2).detach())
        jacobian = torch.stack(columns, 1)
        normal = torch.einsum("bitn,bjtn->bnij", jacobian, jacobian)
        held = torch.zeros_like(normal[..., 0], dtype=torch.bool)  # (B, N, P)
        for i, (low, high) in enumerate(self._ranges):
            at = self.value.detach()[:, i].flatten(1) if data.dim() > 2 else self.value.detach()[:, i, None]
            held[..., i] = (at <= low * (1 + _AT_BOUND)) | (at >= high * (1 - _AT_BOUND))
        either = held[..., None] | held[..., None, :]
        normal = torch.where(either, torch.eye(p.shape[1]).to(normal), normal)
        power = self.residuals().flatten(2).abs().double().square().sum(1)
        power = power / (count - p.shape[1] if count > p.shape[1] else torch.nan)
        return self._inverted(normal, power, either)

    def _inverted(self, matrix: Tensor, power: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Inverse times power, (B, N, P, P) and (B, N) as (B, P, P, ...); NaN where it is not positive definite."""
        count = matrix.shape[-1]
        fine = torch.isfinite(matrix).all(-1).all(-1)
        eye = torch.eye(count, dtype=torch.float64, device=matrix.device)
        root, info = torch.linalg.cholesky_ex(torch.where(fine[..., None, None], matrix, eye))
        fine = (fine & (info == 0))[..., None, None]
        inverse = torch.cholesky_inverse(torch.where(fine, root, eye))
        known = fine if unknown is None else fine & ~unknown
        found = torch.where(known, inverse * power[..., None, None], torch.nan)
        return found.permute(0, 2, 3, 1).reshape(len(matrix), count, count, *self._data.shape[2:])

    def standard_errors(self) -> Tensor:
        """``(B, P, ...)``: roots of the covariance's diagonal."""
        return self.covariance().diagonal(dim1=1, dim2=2).movedim(-1, 1).sqrt()

    @property
    def _magnitudes(self) -> bool:
        return self._information is not None or (isinstance(self.model, SignalModel) and self.model.polarity)
