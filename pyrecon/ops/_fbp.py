"""Filtered backprojection of parallel and fan beams.

    image(x) = sum over views of  c * q(d(x)) / U(x)^2,   q = (weights * sinogram) * ramp

d(x) is where the ray through x meets the detector (q is interpolated linearly, zero outside), U(x) the distance of x
from the source along the middle ray (flat detector) or straight (curved one) over that of the axis, 1 for parallel
rays, and c the angle of a view. The ramp is the band-limited one, sampled in space, whose mean is right (Kak, Slaney,
Principles of computerized tomographic imaging, 1988, Sec. 3.3 and 3.4), applied by FFT without wrap-around.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pyrecon import _core
from pyrecon._check import check_flag, check_out, dense, described
from pyrecon._errors import DataError
from pyrecon._fft import transformed
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._radon import SAMPLES, check_input
from pyrecon.ops._radon_geometry import Beam, FanBeam, ParallelBeam, ViewBeam

Plan = tuple[Tensor, Tensor, float | None, bool]
FILTERS = ("ramp", "shepp-logan", "cosine", "hann", "hamming")


# --- the reference: backprojection of filtered views -------------------------------------------------------------
# A camera (8,) says where a view sees pixel (i, j): with n = c0 + c1 j + c2 i, u = c3 + c4 j + c5 i and t = n / u it is
# at d = c6 + c7 t on a flat detector, with the weight 1 / u^2, and at d = c6 + c7 atan(t) on a curved one, with the
# weight 1 / (n^2 + u^2). Parallel rays have u = 1.
def _seen(cameras: Tensor, curved: bool, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Place on the detector and weight, (A, H, W) each."""
    c = cameras[:, :, None, None].unbind(1)
    j = torch.arange(width, dtype=torch.float64, device=cameras.device)
    i = torch.arange(height, dtype=torch.float64, device=cameras.device)[:, None]
    n, u = c[0] + c[1] * j + c[2] * i, c[3] + c[4] * j + c[5] * i
    if curved:
        return c[6] + c[7] * torch.atan2(n, u), 1 / (n * n + u * u)
    return torch.where(u > 0, c[6] + c[7] * n / u, -1.0), torch.where(u > 0, 1 / (u * u), 0.0)  # none behind the source


def _samples(
    cameras: Tensor, curved: bool, height: int, width: int, n_det: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For some views at a time: index of the detector pixel before, one zero ahead; distance from it; weight."""
    chunk = max(1, SAMPLES // max(1, height * width))
    for first in range(0, len(cameras), chunk):
        part = slice(first, first + chunk)
        place, weight = _seen(cameras[part], curved, height, width)
        place = place.clamp(-1, n_det)
        before = place.floor()
        view = torch.arange(len(place), device=cameras.device)[:, None, None]
        yield part, before.long() + 1 + view * (n_det + 3), place - before, weight


def _reference(sino: Tensor, cameras: Tensor, curved: bool, height: int, width: int) -> Tensor:
    padded = torch.nn.functional.pad(sino, (1, 2))
    image = sino.new_zeros(len(sino), height, width)
    for part, index, f, weight in _samples(cameras, curved, height, width, sino.shape[-1]):
        values, f = padded[:, part].flatten(1), f.to(sino.dtype)
        image += (((1 - f) * values[:, index] + f * values[:, index + 1]) * weight.to(sino.dtype)).sum(1)
    return image


def _backward_reference(image: Tensor, cameras: Tensor, curved: bool, n_det: int) -> Tensor:
    """The transpose."""
    parts = [image.new_zeros(len(image), 0, n_det)]
    for _, index, f, weight in _samples(cameras, curved, image.shape[1], image.shape[2], n_det):
        sums = image.new_zeros(len(image), len(index) * (n_det + 3))
        weighted, f = image[:, None] * weight.to(image.dtype), f.to(image.dtype)
        sums.index_add_(1, index.flatten(), ((1 - f) * weighted).flatten(1))
        sums.index_add_(1, index.flatten() + 1, (f * weighted).flatten(1))
        parts.append(sums.view(len(image), len(index), n_det + 3)[..., 1:-2])
    return torch.cat(parts, dim=1)


# --- kernels -----------------------------------------------------------------------------------------------------
def _cpp(sino: Tensor, cameras: Tensor, curved: bool, height: int, width: int, out: Tensor) -> None:
    kernel = _core.fbp_f32 if sino.dtype == torch.float32 else _core.fbp_f64
    kernel(
        sino.data_ptr(), cameras.data_ptr(), curved, out.data_ptr(), *sino.shape, height, width, kernel_threads()
    )  # fmt: skip


def _backward_cpp(image: Tensor, cameras: Tensor, curved: bool, n_det: int, out: Tensor) -> None:
    kernel = _core.fbp_backward_f32 if image.dtype == torch.float32 else _core.fbp_backward_f64
    kernel(
        image.data_ptr(), cameras.data_ptr(), curved, out.data_ptr(), len(image), len(cameras), n_det,
        *image.shape[1:], kernel_threads(),
    )  # fmt: skip


def _triton(sino: Tensor, cameras: Tensor, curved: bool, height: int, width: int, out: Tensor) -> None:
    from pyrecon.kernels.fbp import fbp as launch

    launch(sino, cameras, curved, height, width, out)


# --- registration and autograd -------------------------------------------------------------------------------------
_fbp = Op(
    "fbp(Tensor sino, Tensor cameras, bool curved, int height, int width) -> Tensor",
    outputs=lambda sino, cameras, curved, height, width: sino.new_empty(sino.shape[0], height, width),
    reference=_reference,
    kernels={"cpp": _cpp, "triton": _triton},
)
_fbp_backward = Op(
    "fbp_backward(Tensor image, Tensor cameras, bool curved, int n_det) -> Tensor",
    outputs=lambda image, cameras, curved, n_det: image.new_empty(image.shape[0], cameras.shape[0], n_det),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp},
)


class _Backprojection(torch.autograd.Function):
    @staticmethod
    def forward(sino: Tensor, cameras: Tensor, curved: bool, height: int, width: int) -> Tensor:
        return _fbp(sino, cameras, curved, height, width)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.curved, ctx.n_det = inputs[2], inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (cameras,) = ctx.saved_tensors
        return _Projection.apply(dense(g), cameras, ctx.curved, ctx.n_det), None, None, None, None  # type: ignore[no-untyped-call]


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, cameras: Tensor, curved: bool, n_det: int) -> Tensor:
        return _fbp_backward(image, cameras, curved, n_det)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.curved, ctx.size = inputs[2], inputs[0].shape[1:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (cameras,) = ctx.saved_tensors
        return _Backprojection.apply(dense(g), cameras, ctx.curved, *ctx.size), None, None, None  # type: ignore[no-untyped-call]


# --- the filter ------------------------------------------------------------------------------------------------
@lru_cache(maxsize=64)
def _response(n_det: int, window: str | None, fan_step: float | None) -> Tensor:
    """Of the ramp for detector pixels one apart, ``(m // 2 + 1,)`` of a transform of m >= 2 n_det - 1 numbers.

    ``fan_step``: radians between the pixels of a curved detector, whose kernel is (g / sin g)^2 times that of the ramp.
    """
    m = 1 << max(1, math.ceil(math.log2(2 * n_det)))
    k = torch.arange(m, dtype=torch.float64)
    k = torch.minimum(k, m - k)
    kernel = torch.where(k % 2 == 1, -1 / (math.pi * k.clamp(min=1)).square(), 0.0)
    kernel[0] = 0.25
    if fan_step is not None:
        fan = (k * fan_step).clamp(max=3.0)  # what is beyond the detector's width takes no part
        kernel = kernel * torch.where(k > 0, fan / fan.sin().where(k > 0, 1.0), 1.0).square()
    response: Tensor = torch.fft.rfft(kernel).real
    return response * _window(window, m)


def _window(name: str | None, m: int) -> Tensor:
    """From 1 at frequency zero to what it is at half the sampling rate."""
    half = torch.arange(m // 2 + 1, dtype=torch.float64) / m  # cycles per pixel
    if name == "shepp-logan":
        return torch.sinc(half)
    if name == "cosine":
        return (math.pi * half).cos()
    if name == "hann":
        return 0.5 + 0.5 * (2 * math.pi * half).cos()
    if name == "hamming":
        return 0.54 + 0.46 * (2 * math.pi * half).cos()
    return torch.ones_like(half)


def _filtered(sino: Tensor, response: Tensor, m: int) -> Tensor:
    if sino.shape[0] == 0:  # FFTs refuse nothing
        return sino
    spectrum = transformed(torch.fft.rfft, sino, n=m) * response.to(sino.device, sino.dtype)
    filtered: Tensor = transformed(torch.fft.irfft, spectrum, n=m)
    return filtered[..., : sino.shape[-1]]


# --- weights ---------------------------------------------------------------------------------------------------
def _view_angles(angles: Tensor, period: float) -> Tensor:
    """The angle of each view: half of the gaps to its neighbours, equal views sharing theirs. The gap that limits a
    scan counts for the views at its ends as the usual one."""
    turned, order = torch.sort(angles.remainder(period))
    gaps = torch.cat([turned.diff(), turned[:1] + period - turned[-1:]])
    same = gaps < 1e-9 * period
    usual = gaps[~same].median() if bool((~same).any()) else gaps.max()
    gaps = torch.where(gaps > LIMIT * usual, usual, gaps)
    shares = 0.5 * (gaps + gaps.roll(1))
    groups = torch.cat([torch.zeros(1, dtype=torch.int64), (~same[:-1]).long().cumsum(0)])
    if bool(same[-1]) and int(groups[-1]):  # across the seam
        groups = torch.where(groups == groups[-1], 0, groups)
    count = torch.bincount(groups)
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, groups, shares)
    result = torch.empty_like(shares)
    result[order] = (total / count.clamp(min=1))[groups]
    return result


LIMIT = 3.0  # a gap so many times as large as the usual one is where a scan ends


def _scan(angles: Tensor) -> tuple[Tensor, float]:
    """Angles from the first view of an arc on, and the arc's length."""
    turned, _ = torch.sort(angles.remainder(2 * math.pi))
    gaps = torch.cat([turned.diff(), turned[:1] + 2 * math.pi - turned[-1:]])
    largest = int(gaps.argmax())
    first = turned[(largest + 1) % len(turned)]
    from_first = (angles - first + 1e-9).remainder(2 * math.pi) - 1e-9
    return from_first, 2 * math.pi - float(gaps.max())


def _short_scan_weights(from_first: Tensor, arc: float, fan: Tensor, half_fan: float) -> Tensor:
    """Parker's weights, (A, D): the two measurements of a line sum to 1, smoothly over views and detector.

    With Silver's wider fan for scans longer than the shortest: D. L. Parker, Med. Phys. 9, 1982; M. D. Silver, Med.
    Phys. 27, 2000. A ray at angle b and fan angle f is measured again at b + pi - 2 f with -f.
    """
    extra = max((arc - math.pi) / 2, half_fan)
    b, g = from_first[:, None], -fan
    rising = b / (2 * (extra - g)).clamp(min=1e-12)
    falling = (math.pi + 2 * extra - b) / (2 * (extra + g)).clamp(min=1e-12)

    def smooth(t: Tensor) -> Tensor:
        return (0.5 * math.pi * t.clamp(0, 1)).sin().square()

    return smooth(rising) * smooth(falling)


# --- cameras ---------------------------------------------------------------------------------------------------
def _cameras(geometry: ParallelBeam | FanBeam) -> Tensor:
    height, width = geometry.shape
    dy, dx = geometry.pixel_size
    angles = geometry.angles.detach()
    c, s = angles.cos(), angles.sin()
    middle = (geometry.n_det - 1) / 2
    offset = geometry.det_offset.detach().expand(len(angles))
    spacing = geometry.det_spacing.detach()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    # Along the detector and along the middle ray: x = (j - (W - 1) / 2) dx, y = ((H - 1) / 2 - i) dy.
    across = (-c * dx * (width - 1) / 2 + s * dy * (height - 1) / 2, c * dx, -s * dy)
    forward = (s * dx * (width - 1) / 2 + c * dy * (height - 1) / 2, -s * dx, -c * dy)
    if isinstance(geometry, ParallelBeam):
        return torch.stack([*across, one, zero, zero, middle - offset / spacing, (1 / spacing).expand_as(c)], dim=1)
    axis, far = geometry.source_to_axis.detach(), geometry.source_to_detector.detach()
    ahead = (1 + forward[0] / axis, forward[1] / axis, forward[2] / axis)
    across = (across[0] / axis, across[1] / axis, across[2] / axis)
    return torch.stack([*across, *ahead, middle - offset / spacing, (far / spacing).expand_as(c)], dim=1)


# --- the public function -------------------------------------------------------------------------------------------
def fbp(
    sino: Tensor,
    geometry: Beam,
    filter: str | None = "ramp",
    *,
    short_scan: bool | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Filtered backprojection: the image whose line integrals are ``sino``, where the scan is complete.

    Parameters
    ----------
    sino
        ``(..., views, n_det)``, float32 or float64, line integrals without a unit.
    geometry
        :class:`ParallelBeam`, :class:`FanBeam`, or a :class:`ViewBeam` that is one of them to 1e-6; what it was made of
        gets no gradients here.
    filter
        ``"ramp"``, or the ramp under a window that damps noise and detail: ``"shepp-logan"``, ``"cosine"``, ``"hann"``,
        ``"hamming"``; None backprojects without a filter.
    short_scan
        For fans: weigh rays that were measured twice by Parker's weights (True), or count all views of a full turn
        (False). By itself True where the views cover less than a turn.
    out
        Buffer for the result, dense, sharing no memory with ``sino``. Not differentiable.

    Returns
    -------
    Tensor
        ``(..., H, W)`` in 1/m. Differentiable in ``sino``, any number of times.

    Notes
    -----
    Views may come in any order and spacing; each counts with the angle to its neighbours, and views that repeat share
    theirs. A scan that covers less than ``geometry.full_arc`` gives what can be had without the missing directions:
    edges along them are lost, and streaks run beside them; total variation or a learned method does better.
    """
    check_input("sino", sino, geometry, domain=False)
    if filter is not None and (not isinstance(filter, str) or filter not in FILTERS):
        raise ValueError(f"filter: {described(filter)} is not known, expected one of {', '.join(FILTERS)}, or None")
    if short_scan is not None:
        check_flag("short_scan", short_scan)
    lead = sino.shape[:-2]
    check_out("out", out, (*lead, *geometry.shape), sino, inputs=(sino,))
    weights, cameras, curved, response, m = _plan(geometry, short_scan, filter)
    weighted = dense(sino).view(prod(lead), *geometry.range_shape) * weights.to(sino.device, sino.dtype)
    filtered = weighted if filter is None else _filtered(weighted, response, m)
    cameras = cameras.to(sino.device)
    if out is None and needs_grad(sino):
        image = _Backprojection.apply(dense(filtered), cameras, curved, *geometry.shape)  # type: ignore[no-untyped-call]
    else:
        buffer = None if out is None else out.view(prod(lead), *geometry.shape)
        image = _fbp(dense(filtered), cameras, curved, *geometry.shape, out=buffer)
    return image.view(*lead, *geometry.shape) if out is None else out


def _plan(geometry: Beam, short_scan: bool | None, window: str | None) -> tuple[Tensor, Tensor, bool, Tensor, int]:
    """Weights (A, D) before the filter, cameras (A, 8), whether the detector is curved, the filter, and the length of
    its transform: a number, as dynamic shapes would take the size of a constant for a variable of unknown source."""
    if geometry.requires_grad:  # its numbers may change
        plan = _new_plan(geometry, short_scan)
    else:
        if short_scan not in geometry._plans:
            with _disable_current_modes():  # torch.export would trace it
                geometry._plans[short_scan] = _new_plan(geometry, short_scan)
        plan = geometry._plans[short_scan]
    weights, cameras, fan_step, curved = plan
    with _disable_current_modes():
        response = _response(geometry.n_det, window, fan_step)
    return weights, cameras, curved, response, 2 * (len(response) - 1)


# What torch.compiler.assume_constant_result does; calling it imports the compiler, which takes 1.5 s.
_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _new_plan(geometry: Beam, short_scan: bool | None) -> Plan:
    """Weights, cameras, radians between pixels of a curved detector, and whether it is one."""
    if isinstance(geometry, ViewBeam):
        ideal, mirrored = _as_ideal(geometry)
        weights, cameras, fan_step, curved = _new_plan(ideal, short_scan)
        if mirrored:
            weights = weights.flip(1)
            cameras[:, 6:] = torch.stack([geometry.n_det - 1 - cameras[:, 6], -cameras[:, 7]], dim=1)
        return weights, cameras, fan_step, curved
    assert isinstance(geometry, ParallelBeam | FanBeam)
    angles, spacing = geometry.angles.detach().cpu(), float(geometry.det_spacing.detach())
    views, n_det = geometry.range_shape
    if isinstance(geometry, ParallelBeam):
        if short_scan:
            raise ValueError("short_scan: parallel rays are measured once in half a turn, expected None or False")
        weights = (_view_angles(angles, math.pi) / spacing)[:, None].expand(views, n_det)
        return weights, _cameras(geometry), None, False
    axis, far = float(geometry.source_to_axis.detach()), float(geometry.source_to_detector.detach())
    offset = geometry.det_offset.detach().cpu().expand(views)[:, None]
    place = (torch.arange(n_det, dtype=torch.float64) - (n_det - 1) / 2) * spacing + offset
    fan = place / far if geometry.curved else (place / far).atan()
    # The filter is that of pixels one apart: on the axis they are spacing * axis / far, on an arc an angle.
    if geometry.curved:
        fan_step = spacing / far
        weights = fan.cos() / (fan_step * axis)
    else:
        fan_step = None
        weights = fan.cos() * (far / (spacing * axis))
    from_first, arc = _scan(angles)
    steps = _view_angles(angles, 2 * math.pi)
    full = arc + float(steps.max()) > 2 * math.pi * (1 - 1e-6)
    if short_scan is None:
        short_scan = not full
    if short_scan:
        weights = weights * _short_scan_weights(from_first, arc, fan, geometry._half_fan())
    else:
        weights = 0.5 * weights
    return weights * steps[:, None], _cameras(geometry), fan_step, geometry.curved


def check_ideal(geometry: Beam) -> None:
    """DataError unless filtered back-projection is for these views."""
    if isinstance(geometry, ViewBeam):
        try:
            _as_ideal(geometry)
        except ValueError as error:
            raise DataError(str(error)) from None


def _as_ideal(geometry: ViewBeam) -> tuple[ParallelBeam | FanBeam, bool]:
    """The parallel beam or fan on a circle that the scanner is, to ``IDEAL``, and whether its detector pixels count the
    other way; raises if it is neither."""
    detectors, axes, sources = geometry.detectors.detach(), geometry.axes.detach(), geometry.sources
    mirrored = False
    if sources is not None:
        ahead = detectors - sources.detach()
        mirrored = bool((axes[:, 0] * ahead[:, 1] < axes[:, 1] * ahead[:, 0]).all())
    spacing = torch.linalg.vector_norm(axes, dim=1)
    across = axes / (-spacing if mirrored else spacing)[:, None]
    forward = torch.stack([-across[:, 1], across[:, 0]], dim=1)
    common = (torch.atan2(across[:, 1], across[:, 0]), geometry.shape, geometry.n_det, spacing.mean())
    pixel = geometry.pixel_size
    ideal: ParallelBeam | FanBeam
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user has been told
            if sources is None:
                ideal = ParallelBeam(*common, (detectors * across).sum(1), pixel)
            else:
                axis, far = -(sources.detach() * forward).sum(1).mean(), (ahead * forward).sum(1).mean()
                ideal = FanBeam(*common, axis, far, (ahead * across).sum(1), pixel, curved=geometry.curved)
    except ValueError as problem:
        raise ValueError(f"geometry: {problem}; that is no ideal scanner, {_ADVICE}") from None
    distance, direction = (t.flip(1) if mirrored else t for t in _lines(geometry))
    found, toward = _lines(ideal)
    size = max(n * p for n, p in zip(geometry.shape, pixel, strict=True))
    turn = direction[..., 0] * toward[..., 1] - direction[..., 1] * toward[..., 0]
    off = torch.maximum((distance - found).abs() / size, turn.abs())
    if not float(off.max()) <= IDEAL:
        raise ValueError(f"geometry: view {int(off.amax(1).argmax())} is not that of an ideal scanner, {_ADVICE}")
    return ideal, mirrored


IDEAL = 1e-6
_ADVICE = (
    "and filtered backprojection is for parallel beams and fans on a circle about the axis; take least squares "
    "(conjugate_gradient on Radon(geometry).gram) or total variation"
)


def _lines(geometry: Beam) -> tuple[Tensor, Tensor]:
    """Distance from the origin, ``(A, D)`` without its sign, and direction of each ray."""
    points, directions = (t.detach() for t in geometry.rays())
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    cross = points[..., 0] * directions[..., 1] - points[..., 1] * directions[..., 0]
    return cross.abs(), directions
