"""Fits of signal models to images, voxel by voxel: what users call, see :mod:`pyrecon.ops._fit` for the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from pyrecon._check import (
    COMPLEX,
    FLOATING,
    REAL_OF,
    check_count,
    check_dtype,
    check_like,
    check_number,
    check_out,
    check_shape,
    dense,
    described,
)
from pyrecon._library import needs_grad
from pyrecon._solution import Solution
from pyrecon.ops._custom import CustomSignal, fit_custom
from pyrecon.ops._fit import Fit, _fit, _outputs
from pyrecon.ops._signals import ROWS, SignalModel, curve, model_of

_LOOKED_AT = 4096  # times that are looked through for what cannot be


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

    model: SignalModel | CustomSignal
    names: tuple[str, ...]
    units: tuple[str, ...]
    _data: Tensor = field(repr=False)
    _signal: Callable[[Tensor], Tensor] = field(repr=False)  # parameters (B, P, ...) to images (B, T, ...)

    @property
    def rate(self) -> Tensor:
        """``(B, ...)``, 1/s."""
        return self.value[:, 0]

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The linear parameters ``(B, ...)``, complex where the data are."""
        rest = self.value[:, 1:]
        if self._data.is_complex():
            return tuple(torch.complex(rest[:, i], rest[:, i + 1]) for i in range(0, rest.shape[1], 2))
        return rest.unbind(1)

    def maps(self) -> dict[str, Tensor]:
        """What is read off a fit, by name: T1 or T2 in seconds, the factors, what the model derives from them; of a
        signal of one's own its parameters."""
        if isinstance(self.model, CustomSignal):
            return dict(zip(self.names, self.value.unbind(1), strict=True))
        return self.model.derived(self.rate, self.factors)

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
        """
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
        power = self.residuals().flatten(2).abs().double().square().sum(1)
        power = power / (count - p.shape[1] if count > p.shape[1] else torch.nan)
        fine = torch.isfinite(normal).all(-1).all(-1)
        eye = torch.eye(p.shape[1], dtype=torch.float64, device=p.device)
        inverse, info = torch.linalg.inv_ex(torch.where(fine[..., None, None], normal, eye))
        found = torch.where((fine & (info == 0))[..., None, None], inverse * power[..., None, None], torch.nan)
        return found.permute(0, 2, 3, 1).reshape(data.shape[0], p.shape[1], p.shape[1], *data.shape[2:])

    def standard_errors(self) -> Tensor:
        """``(B, P, ...)``: roots of the covariance's diagonal."""
        return self.covariance().diagonal(dim1=1, dim2=2).movedim(-1, 1).sqrt()

    @property
    def _magnitudes(self) -> bool:
        return isinstance(self.model, SignalModel) and self.model.polarity


def fit_voxels(
    model: SignalModel | CustomSignal | str,
    data: Tensor,
    times: Tensor | Sequence[float],
    *,
    prior: Tensor | None = None,
    weight: Tensor | float = 0.0,
    mask: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    tol: float | None = None,
    max_iter: int = 50,
    out: Tensor | None = None,
) -> VoxelFit:
    """Fit a signal model to every voxel: ``argmin_p |data - f(p)|^2 + weight |p - prior|^2``, the rate within bounds.

    p are the rate (1/s) and the linear parameters, real and imaginary parts where the data are complex.

    Parameters
    ----------
    model
        A :class:`SignalModel`, or the name of one: ``"sr"``, ``"ir"``, ``"ir-magnitude"``, ``"molli"``, ``"t2"``,
        ``"t2-offset"``. Or a :class:`CustomSignal` of one's own, which is fitted by Levenberg-Marquardt in plain torch,
        in double precision, with memory for several copies of the data; its bounds are its own.
    data
        ``(B, T, ...)``, float32, float64 or complex, one image for each time; magnitudes for a model that says so.
    times
        ``(T,)``: what the model says, seconds or radians; or ``(B|1, T, ...)`` where they differ from sample to sample
        or from voxel to voxel, sizes of 1 being repeated.
    prior, weight
        ``(B, P, ...)`` real, and how much it counts: a number, ``(B,)`` or ``(B, ...)``. Parameters enter as they are,
        in their units.
    mask
        ``(B|1, ...)`` bool: voxels outside are not fitted and zero, with the status CONVERGED.
    bounds
        Smallest and largest rate, 1/s; default those of the model.
    tol
        Relative step of the rate at which a voxel ends; default 1e-6, and 1e-12 in double precision.
    max_iter
        Newton steps at most; five are usual.
    out
        Buffer for ``value``, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    VoxelFit
        ``value`` differentiable (once) in ``data``, ``times``, ``prior``, ``weight`` and what the model holds, by the
        implicit function theorem; a rate at its bound has derivative 0. Not differentiable across a change of polarity.

    Raises
    ------
    ValueError, TypeError
        For times that are too few, negative or not in seconds, shapes that do not fit, complex magnitudes, bounds that
        leave nothing.

    Notes
    -----
    CPU (C++) and GPU (Triton). Beside the maps that are returned memory does not grow with the number of voxels, but
    for a copy of the data where they are magnitudes or have a mask, and, on a CPU, for the gradient of times or of what
    the model holds, which is plain torch there.
    """
    if not isinstance(model, CustomSignal):
        model = model_of(model)
    check_dtype("data", data, (*FLOATING, *COMPLEX))
    if data.dim() < 2:
        raise ValueError(f"data: shape {tuple(data.shape)} does not fit, expected (B, T, ...)")
    if isinstance(model, CustomSignal):
        return _custom(model, data, times, prior, weight, mask, bounds, tol, max_iter, out)
    if model.polarity and data.is_complex():
        raise TypeError(f"data: complex, but {type(model).__name__} with magnitude=True takes magnitudes; give .abs()")
    low, high = _bounds(bounds, model)
    real = REAL_OF[data.dtype]
    tol = (1e-6 if real == torch.float32 else 1e-12) if tol is None else check_number("tol", tol)
    check_count("max_iter", max_iter)
    settings = _times(model, times, data, real)
    batch, images, *space = data.shape
    parts = 1 + model.linear * (2 if data.is_complex() else 1)
    start, level = _prior(prior, weight, data, (batch, parts, *space), real)
    if start is None:
        _enough(model, settings)
    table = model.table(settings)
    shape = torch.broadcast_shapes(table.shape[1:], (1, images, *[1] * len(space)))
    if shape[1] != images or any(n not in (1, m) for n, m in zip((shape[0], *shape[2:]), (batch, *space), strict=True)):
        raise ValueError(f"model: its maps of shape {tuple(shape)} do not fit the data {tuple(data.shape)}")
    table = table.expand(ROWS, *shape)
    wide = any(n != 1 for n in shape[2:])
    table = table.expand(*table.shape[:3], *space) if wide else table
    curves = dense(table.movedim(0, 1).reshape(shape[0], ROWS, images, -1))
    flat = dense(data.flatten(2) if space else data[..., None])
    kept = curves
    if model.polarity:  # images in the order of their times: the first of them are the negative ones
        order = settings.reshape(settings.shape[0], images, -1).detach().mean((0, 2)).argsort()
        flat, curves = dense(flat[:, order]), dense(curves[:, :, order])
    given = [t for t in (flat, curves, start, level) if t is not None]
    check_out("out", out, (batch, parts, *space), curves, inputs=given)
    fits = Fit.apply if out is None and needs_grad(*given) else _fit
    options = (low, high, model.linear, model.polarity, float(tol), max_iter)
    if mask is not None:
        found = _masked(fits, _checked_mask(mask, data), flat, curves, start, level, options)
    elif out is None:
        found = fits(flat, curves, start, level, *options)
    else:
        buffers = (out.view(batch, parts, flat.shape[2]), *_outputs(flat, curves, start, level, *options)[1:])
        found = _fit(flat, curves, start, level, *options, out=buffers)
    value, status, count, residual = found
    value = value.reshape(batch, parts, *space)
    if out is not None:
        value = out if mask is None else out.copy_(value)
    shaped, steps, size = (v.reshape(batch, *space) for v in (status, count, residual))
    return VoxelFit(
        value, shaped, steps, size, model, _names(model, data.is_complex()),
        ("1/s", *["unit of the data"] * (parts - 1)), data.detach(), partial(_curve_of, kept.detach(), model.linear),
    )  # fmt: skip


def _custom(
    model: CustomSignal,
    data: Tensor,
    times: Tensor | Sequence[float],
    prior: Tensor | None,
    weight: Tensor | float,
    mask: Tensor | None,
    bounds: tuple[float, float] | None,
    tol: float | None,
    max_iter: int,
    out: Tensor | None,
) -> VoxelFit:
    if bounds is not None:
        raise ValueError("bounds: a CustomSignal has its own")
    tol = 1e-9 if tol is None else check_number("tol", tol)
    check_count("max_iter", max_iter)
    real, batch, space = REAL_OF[data.dtype], data.shape[0], data.shape[2:]
    settings = _times(None, times, data, real)
    shape = (batch, len(model.names), *space)
    start, level = _prior(prior, weight, data, shape, real)
    inside = None if mask is None else _checked_mask(mask, data).reshape(batch, *space)
    check_out("out", out, shape, data.real, inputs=(data, settings))
    given = data if inside is None else torch.where(inside[:, None], data, torch.nan)
    value, status, count, residual = fit_custom(
        model, given, settings, None if start is None else start.reshape(shape),
        None if level is None else level.reshape(batch, *space), tol, max_iter,
    )  # fmt: skip
    if inside is not None:
        value, residual = torch.where(inside[:, None], value, 0.0), torch.where(inside, residual, 0.0)
        status = torch.where(inside, status, 0)
    if out is not None:
        value = out.copy_(value)
    units = model.units or ("",) * len(model.names)
    return VoxelFit(
        value, status, count, residual, model, model.names, units, data.detach(),
        lambda p: model.signal(settings.to(p.dtype), p),
    )  # fmt: skip


def _curve_of(curves: Tensor, linear: int, p: Tensor) -> Tensor:
    """Images (B, T, ...) of parameters (B, P, ...), by a table (B|1, 5, T, N|1)."""
    flat, space = (p.flatten(2), p.shape[2:]) if p.dim() > 2 else (p[..., None], p.shape[2:])
    rows = curves.movedim(1, 0).to(p.dtype)
    is_complex = flat.shape[1] > 1 + linear
    return curve(rows, *_split(flat, is_complex, linear)).reshape(p.shape[0], curves.shape[2], *space)


def _split(p: Tensor, is_complex: bool, linear: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(B, P, N) as a rate (B, 1, N) and factors (B, 1, N)."""
    if is_complex:
        return p[:, :1], tuple(torch.complex(p[:, 1 + 2 * i], p[:, 2 + 2 * i])[:, None] for i in range(linear))
    return p[:, :1], tuple(p[:, 1 + i, None] for i in range(linear))


def _names(model: SignalModel, is_complex: bool) -> tuple[str, ...]:
    if not is_complex:
        return (model.rate, *model.factors)
    return (model.rate, *(f"{name}_{part}" for name in model.factors for part in ("re", "im")))


def _bounds(bounds: tuple[float, float] | None, model: SignalModel) -> tuple[float, float]:
    if bounds is None:
        return model.range
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise TypeError(f"bounds: {described(bounds)}, expected (low, high) in 1/s")
    low, high = (check_number("bounds", bound, above=True) for bound in bounds)
    if not low < high:
        raise ValueError(f"bounds: {low} to {high} 1/s leaves no rate, expected low < high")
    return low, high


def _times(model: SignalModel | None, times: Tensor | Sequence[float], data: Tensor, real: torch.dtype) -> Tensor:
    """(B|1, T, ...), as many axes as the data."""
    if not isinstance(times, Tensor):
        times = torch.as_tensor(times, dtype=torch.float64)
    check_dtype("times", times, FLOATING)
    images = data.shape[1]
    if times.dim() == 1:
        if len(times) != images:
            said = "values" if model is None else model.setting
            raise ValueError(f"times: {len(times)} {said}, but {images} images (axis 1 of the data)")
        times = times.view(1, -1, *[1] * (data.dim() - 2))
    wanted = (data.shape[0], images, *data.shape[2:])
    if times.dim() != data.dim() or any(
        n not in (1, m) or (i == 1 and n != m) for i, (n, m) in enumerate(zip(times.shape, wanted, strict=True))
    ):
        raise ValueError(
            f"times: shape {tuple(times.shape)} does not fit the data {tuple(data.shape)}, expected ({images},) or "
            "(B|1, T, ...)"
        )
    if model is not None and _read(times):
        least, most = (float(f(times.detach())) if times.numel() else 0.0 for f in (torch.min, torch.max))
        if not least >= 0 or most == math.inf:
            raise ValueError(f"times: {least:g} among them, expected finite {model.setting}, not negative")
        if most > model.longest:
            raise ValueError(f"times: up to {most:g}, expected {model.setting}; {model.advice}")
    return times.to(data.device, real)


def _read(times: Tensor) -> bool:
    """Of maps, on a GPU and in compiled graphs no number is looked at."""
    return times.numel() <= _LOOKED_AT and not times.is_cuda and not is_compiling()


def _enough(model: SignalModel, settings: Tensor) -> None:
    if not _read(settings):
        return
    flat = settings.detach()[..., None].flatten(2)
    series = (flat[b, :, i] for b in range(flat.shape[0]) for i in range(flat.shape[2]))
    fewest = min((len(torch.unique(times)) for times in series), default=1 + model.linear)
    if fewest < 1 + model.linear:
        raise ValueError(
            f"times: {fewest} different {model.setting}, but {type(model).__name__} has {1 + model.linear} parameters; "
            "measure at more, or give a prior and its weight"
        )


def _prior(
    prior: Tensor | None, weight: Tensor | float, data: Tensor, shape: tuple[int, ...], real: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """(B, P, N) and (B, N), or nothing."""
    batch, _, *space = shape
    if prior is None:
        if isinstance(weight, Tensor) or check_number("weight", weight) != 0:
            raise ValueError("weight: given, but there is no prior to weigh")
        return None, None
    check_like("prior", prior, "data", data, dtype=real)
    check_shape("prior", prior, shape, "(B, P, ...)")
    if not isinstance(weight, Tensor):
        level = prior.new_full((batch, *space), check_number("weight", weight))
    else:
        check_like("weight", weight, "data", data, dtype=real)
        level = weight.view(-1, *[1] * len(space)) if weight.shape == (batch,) else weight
        if level.dim() not in (0, 1 + len(space)) or any(
            n not in (1, m) for n, m in zip(level.shape, (batch, *space), strict=False)
        ):
            raise ValueError(f"weight: shape {tuple(weight.shape)} does not fit, expected (B,) or (B, ...)")
        level = level.expand(batch, *space)
    return dense(prior.reshape(batch, shape[1], -1)), dense(level.reshape(batch, -1))


def _checked_mask(mask: Tensor, data: Tensor) -> Tensor:
    """(B, N)."""
    check_dtype("mask", mask, (torch.bool,))
    wanted = (data.shape[0], *data.shape[2:])
    if mask.dim() != len(wanted) or mask.shape[0] not in (1, wanted[0]) or mask.shape[1:] != wanted[1:]:
        raise ValueError(f"mask: shape {tuple(mask.shape)} does not fit the data, expected (B|1, ...) = {wanted}")
    return mask.to(data.device).expand(wanted).reshape(wanted[0], -1)


def _masked(
    fits: Any,
    mask: Tensor,
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    options: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Of the voxels inside alone, as a single sample: tables of their own where they are not those of all."""
    where = mask.reshape(-1).nonzero()[:, 0]

    def inside(t: Tensor) -> Tensor:  # (B, X, N) -> (1, X, voxels)
        full = t.movedim(1, 0).reshape(t.shape[1], -1)
        return dense(full.index_select(1, where)[None])

    def outside(t: Tensor) -> Tensor:  # and back
        lead = t.shape[1:-1]
        full = t.new_zeros(*lead, mask.numel()).index_copy(-1, where, t[0])
        return full.reshape(*lead, *mask.shape).movedim(-2, 0)

    table = curves
    if curves.shape[0] != 1 or curves.shape[3] != 1:
        batch, n = mask.shape
        wide = curves.expand(batch, *curves.shape[1:3], n).flatten(1, 2)
        table = inside(wide).unflatten(1, curves.shape[1:3])
    start = None if prior is None else inside(prior)
    level = None if weight is None else inside(weight[:, None])[:, 0]
    return tuple(outside(t) for t in fits(inside(data), table, start, level, *options))
