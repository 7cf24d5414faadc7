"""Fits of signal models to images, voxel by voxel: what users call, see :mod:`pyrecon.ops._fit` for the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    filled,
)
from pyrecon._library import needs_grad
from pyrecon.ops._custom import CustomSignal, fit_custom
from pyrecon.ops._epg import fit_spin_echo
from pyrecon.ops._fit import Fit, _fit, _outputs
from pyrecon.ops._rician import RicianFit, fit_rician, information
from pyrecon.ops._signals import ROWS, InversionRecovery, SignalModel, curve, model_of
from pyrecon.ops._spin_echo import MultiSpinEcho, check_spacing, images_of
from pyrecon.ops._voxel_fit import VoxelFit

_LOOKED_AT = 4096  # times that are looked through for what cannot be


def fit_voxels(
    model: SignalModel | CustomSignal | MultiSpinEcho | str,
    data: Tensor,
    times: Tensor | Sequence[float],
    *,
    prior: Tensor | None = None,
    weight: Tensor | float = 0.0,
    noise_std: Tensor | float | None = None,
    mask: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    tol: float | None = None,
    max_iter: int = 50,
    out: Tensor | None = None,
) -> VoxelFit:
    """Fit a signal model to every voxel: ``argmin_p |data - f(p)|^2 + weight |p - prior|^2``, the rate within bounds.

    p are the rate (1/s), B1 of a :class:`MultiSpinEcho` that does not know it, and the linear parameters, real and
    imaginary parts where the data are complex.

    With ``noise_std`` = sigma the data s are magnitudes in Rician noise and p is the likeliest (J. Sijbers et al., IEEE
    Trans. Med. Imaging 17, 1998): least squares takes what noise leaves of magnitudes, 1.25 sigma at least, for
    signal, and a decay for slower than it is. Instead of ``|data - f(p)|^2`` stands

        sum_t [f_t(p)^2 - 2 sigma^2 log I0(s_t f_t(p) / sigma^2)].

    Parameters
    ----------
    model
        A :class:`SignalModel`, or the name of one: ``"sr"``, ``"ir"``, ``"ir-magnitude"``, ``"molli"``, ``"t2"``,
        ``"t2-offset"``. Or a :class:`CustomSignal` of one's own, which is fitted by Levenberg-Marquardt in plain torch,
        in double precision, with memory for several copies of the data; its bounds are its own. Or a
        :class:`MultiSpinEcho`, which is fitted in double precision, too, from two places of a grid over R2 and B1.
    data
        ``(B, T, ...)``, float32, float64 or complex, one image for each time; magnitudes for a model that says so.
    times
        ``(T,)``: what the model says, seconds or radians; or ``(B|1, T, ...)`` where they differ from sample to sample
        or from voxel to voxel, sizes of 1 being repeated. Of a train ``(T,)`` or ``(B|1, T)``, multiples of the first.
    prior, weight
        ``(B, P, ...)`` real, and how much it counts: a number, ``(B,)`` or ``(B, ...)``. Parameters enter as they are,
        in their units.
    noise_std
        Standard deviation of the noise in the real and in the imaginary part of the images whose magnitudes the data
        are, in the unit of the data: a number, ``(B,)`` or ``(B, ...)``, above 0. Data are real and not negative.
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
        With ``noise_std`` also in that. Where no signal is likelier than any, as where no datum exceeds
        ``sqrt(2) noise_std``, the status is NONFINITE, the rate NaN and the linear parameters are 0; a negative datum
        makes its voxel NaN.

    Raises
    ------
    ValueError, TypeError
        For times that are too few, negative, not in seconds or, in a train, not equally spaced, shapes that do not fit,
        complex magnitudes, bounds that leave nothing, ``noise_std`` with complex data, a CustomSignal, a MultiSpinEcho,
        or an inversion recovery without ``magnitude=True``.

    Notes
    -----
    CPU (C++) and GPU (Triton; plain torch for ``noise_std``, a MultiSpinEcho and a CustomSignal). Beside the maps that
    are returned memory does not grow with the number of voxels, but for a copy of the data where they are magnitudes,
    have a mask or ``noise_std``, and, on a CPU, for the gradient of times or of what the model holds, which is plain
    torch there.
    """
    if not isinstance(model, CustomSignal | MultiSpinEcho):
        model = model_of(model)
    check_dtype("data", data, (*FLOATING, *COMPLEX))
    if data.dim() < 2:
        raise ValueError(f"data: shape {tuple(data.shape)} does not fit, expected (B, T, ...)")
    if isinstance(model, CustomSignal):
        if noise_std is not None:
            raise ValueError(
                "noise_std: is for the package's signal models, not for a CustomSignal; leave out both it and the data "
                "near the noise"
            )
        return _custom(model, data, times, prior, weight, mask, bounds, tol, max_iter, out)
    if isinstance(model, MultiSpinEcho):
        if noise_std is not None:
            raise ValueError("noise_std: is not for a MultiSpinEcho, which least squares fits; leave out one of them")
        return _spin_echo(model, data, times, prior, weight, mask, bounds, tol, max_iter, out)
    if model.polarity and data.is_complex():
        raise TypeError(f"data: complex, but {type(model).__name__} with magnitude=True takes magnitudes; give .abs()")
    noise = None if noise_std is None else _noise(noise_std, model, data)
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
    shape = table.shape[1:]
    if shape != settings.shape:  # the model has maps
        shape = torch.broadcast_shapes(shape, (1, images, *[1] * len(space)))
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
    inputs = (flat, curves, start, level, *(() if noise is None else (noise,)))
    given = [t for t in inputs if t is not None]
    check_out("out", out, (batch, parts, *space), curves, inputs=given)
    fits: Callable[..., tuple[Tensor, ...]] = _fit if noise is None else fit_rician
    if out is None and needs_grad(*given):
        fits = Fit.apply if noise is None else RicianFit.apply
    options = (low, high, model.linear, model.polarity, float(tol), max_iter)
    if mask is not None:
        found = _masked(fits, _checked_mask(mask, data), inputs, options)
    elif out is None:
        found = fits(*inputs, *options)
    else:
        buffers = (out.view(batch, parts, flat.shape[2]), *_outputs(flat, curves, start, level, *options)[1:])
        found = fits(*inputs, *options, out=buffers)
    value, status, count, residual = found
    value = value.reshape(batch, parts, *space)
    if out is not None:
        value = out if mask is None else out.copy_(value)
    shaped, steps, size = (v.reshape(batch, *space) for v in (status, count, residual))
    known = None if noise is None else partial(
        information, data=flat.detach(), curves=curves.detach(), noise=noise.detach(), linear=model.linear
    )  # fmt: skip
    return VoxelFit(
        value, shaped, steps, size, model, _names(model, data.is_complex()),
        ("1/s", *["unit of the data"] * (parts - 1)), data.detach(), partial(_curve_of, kept.detach(), model.linear),
        _information=known,
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


def _spin_echo(
    model: MultiSpinEcho,
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
    ends, real, (batch, echoes, *space) = _bounds(bounds, model), REAL_OF[data.dtype], data.shape
    tol = (1e-6 if real == torch.float32 else 1e-12) if tol is None else check_number("tol", tol)
    check_count("max_iter", max_iter)
    if isinstance(times, Tensor) and times.dim() == 2 and data.dim() != 2:
        times = times.view(*times.shape, *[1] * (data.dim() - 2))
    spaced = _times(model, times, data, torch.float64)
    if any(n != 1 for n in spaced.shape[2:]):
        raise ValueError(f"times: maps of shape {tuple(spaced.shape)}, but echo times are (T,) or (B|1, T) for a train")
    spaced = spaced.flatten(1)
    if _read(spaced):
        check_spacing(spaced.detach())
    names = model.names(data.is_complex())
    shape = (batch, len(names), *space)
    start, level = _prior(prior, weight, data, shape, real)
    if echoes == 0 or (start is None and echoes <= len(model.fitted)):
        raise ValueError(
            f"times: {echoes} echoes, but MultiSpinEcho has {1 + len(model.fitted)} parameters; measure more, give b1, "
            "or a prior and its weight"
        )
    settings = model.settings(data, spaced)
    inside = None if mask is None else _checked_mask(mask, data)
    found = fit_spin_echo(model, data, settings, start, level, inside, ends, tol, max_iter, out)
    units = ("1/s", *("",) * (len(model.fitted) - 1), *("unit of the data",) * (len(names) - len(model.fitted)))
    spacing, angles, r1 = (t.detach() for t in settings[:3])
    b1 = None if settings[3] is None else settings[3].detach()
    return VoxelFit(
        *found, model, names, units, data.detach(), lambda p: images_of(p, spacing, angles, r1, b1),
        (ends, model.flips)[: len(model.fitted)],
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


def _bounds(bounds: tuple[float, float] | None, model: SignalModel | MultiSpinEcho) -> tuple[float, float]:
    if bounds is None:
        return model.range
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise TypeError(f"bounds: {described(bounds)}, expected (low, high) in 1/s")
    low, high = (check_number("bounds", bound, above=True) for bound in bounds)
    if not low < high:
        raise ValueError(f"bounds: {low} to {high} 1/s leaves no rate, expected low < high")
    return low, high


def _times(
    model: SignalModel | MultiSpinEcho | None, times: Tensor | Sequence[float], data: Tensor, real: torch.dtype
) -> Tensor:
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
    series = settings.detach()[..., None].flatten(2).movedim(1, 2).flatten(0, 1).tolist()
    fewest = min((len(set(times)) for times in series), default=1 + model.linear)
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
        level = _of_voxels("weight", weight, data, real)
    count = math.prod(space)  # -1 would not do for empty batches
    return dense(prior.reshape(batch, shape[1], count)), dense(level.reshape(batch, count))


def _of_voxels(name: str, value: Tensor, data: Tensor, real: torch.dtype) -> Tensor:
    """(B,) or (B, ...) as (B, ...)."""
    batch, _, *space = data.shape
    check_like(name, value, "data", data, dtype=real)
    level = value.view(-1, *[1] * len(space)) if value.shape == (batch,) else value
    if level.dim() not in (0, 1 + len(space)) or any(
        n not in (1, m) for n, m in zip(level.shape, (batch, *space), strict=False)
    ):
        raise ValueError(f"{name}: shape {tuple(value.shape)} does not fit, expected (B,) or (B, ...)")
    return level.expand(batch, *space)


def _noise(noise_std: Tensor | float, model: SignalModel, data: Tensor) -> Tensor:
    """(B, N)."""
    if data.is_complex():
        raise TypeError("noise_std: is for magnitudes, but the data are complex; give .abs(), or leave it out")
    if isinstance(model, InversionRecovery) and not model.polarity:
        raise ValueError(
            f"noise_std: is for magnitudes, but {type(model).__name__} has signed data; give it magnitude=True"
        )
    batch, _, *space = data.shape
    if not isinstance(noise_std, Tensor):
        check_number("noise_std", noise_std, above=True)
        return filled("noise_std", noise_std, (batch, math.prod(space)), data.dtype, data.device)
    level = _of_voxels("noise_std", noise_std, data, data.dtype)
    if _read(noise_std) and noise_std.numel():
        least, most = (float(f(noise_std.detach())) for f in (torch.min, torch.max))
        if not (least > 0 and most < math.inf):
            worst = most if least > 0 else least
            raise ValueError(f"noise_std: {worst:g} among them, expected finite numbers above 0")
    return dense(level.reshape(batch, math.prod(space)))


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
    inputs: tuple[Any, ...],
    options: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Of the voxels inside alone, as a single sample: tables of their own where they are not those of all."""
    data, curves, prior, *maps = inputs  # weight, noise: (B, N)
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
    levels = (None if t is None else inside(t[:, None])[:, 0] for t in maps)
    return tuple(outside(t) for t in fits(inside(data), table, start, *levels, *options))
