"""Joint estimation of an image and its coil maps: the pointwise work around the transforms.

The law. With maps S of a pixel, |S| their root sum of squares, n = S / |S| (0/0 = 0), an image u (real), data images
z = F^H M k of the coils and w = F^H M^2 F (n u), per pixel::

    joint_coils       v_c = u n_c                                                           (Eq. 11 of the source)
    its adjoint       of g: s = Re sum_c conj(n_c) g_c  and  u (g_c - n_c s) / |S|
    joint_extrapolate S_bar = S + inertia (S - S_previous),  and v of S_bar
    joint_maps_step   y = S - step t, t the adjoint at g = w - z, which is the gradient of the data term D;  s
    joint_maps_test   n' = S' / |S'|,  a = Re sum_c conj(n'_c) z_c,  and three sums over the pixels of a sample:
                      |S' - S|^2,  E = sum (|S| - |S'|) Re<t, e> + |e|^2 u (bound u - s) / 2  and  |u e|^2,  e = n' - n

E bounds how far the data term D(S') lies above its tangent at S: with d = S' - S,

    D(S') - D(S) = u Re<w - z, e> + 1/2 |M F (e u)|^2,    Re<n, e> = -|e|^2 / 2,    |S| e - d = n' (|S| - |S'|)

so D(S') <= D(S) + Re<t, d> + E wherever |M F v|^2 <= bound |v|^2, with equality for full sampling (bound 1). Every term
of E is a product of small ones; a difference of energies would leave nothing of them in single precision.

Source: Zach, Knoll and Pock, Stable deep MRI reconstruction using generative priors, IEEE TMI 42, 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    COMPLEX,
    REAL_OF,
    check_dtype,
    check_like,
    check_number,
    check_out,
    check_shape,
    check_tuple,
    dense,
    filled,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads


# --- the reference ---------------------------------------------------------------------------------------------
def _root(maps: Tensor) -> Tensor:
    """|S|, (B, 1, H, W)."""
    return (maps.real.square() + maps.imag.square()).sum(dim=1, keepdim=True).sqrt()


def _inverse(root: Tensor) -> Tensor:
    """1/|S|, and 0 where there is no map; a NaN stays one."""
    empty = root == 0
    return torch.where(empty, 0, 1 / torch.where(empty, 1, root))


def _along(a: Tensor, b: Tensor) -> Tensor:
    """Re<a, b> of every pixel, (B, H, W)."""
    return (a.real * b.real + a.imag * b.imag).sum(dim=1)


def _per_sample(rows: Tensor) -> Tensor:
    return rows[:, None, None, None]


def _coils_reference(image: Tensor, maps: Tensor) -> Tensor:
    squares = (maps.real.square() + maps.imag.square()).sum(dim=1, keepdim=True)
    empty = squares == 0  # before the root, whose derivative is infinite there
    return torch.where(empty, 0, image[:, None] / torch.where(empty, 1, squares).sqrt()) * maps


def _backward_reference(g: Tensor, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    inverse = _inverse(_root(maps))
    n = maps * inverse
    s = _along(n, g)
    return s, image[:, None] * inverse * (g - n * s[:, None])


def _extrapolate_reference(maps: Tensor, previous: Tensor, inertia: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    bar = maps + _per_sample(inertia) * (maps - previous)
    return bar, _coils_reference(image, bar)


def _step_reference(maps: Tensor, response: Tensor, data: Tensor, image: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    s, gradient = _backward_reference(response - data, image, maps)
    return maps - _per_sample(step) * gradient, s


def _test_reference(
    proposal: Tensor,
    maps: Tensor,
    moved: Tensor,
    step: Tensor,
    image: Tensor,
    along: Tensor,
    data: Tensor,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    before, after = _root(maps), _root(proposal)
    unit = proposal * _inverse(after)
    e = unit - maps * _inverse(before)
    tangent = (maps - moved) / _per_sample(step)
    turned = _along(e, e)
    excess = (before - after)[:, 0] * _along(tangent, e) + turned * image * (bound * image - along) / 2
    # Where there was no map, or is none, the data term has no derivative: no bound is claimed.
    excess = torch.where((before[:, 0] == 0) | (after[:, 0] == 0), 0, excess)
    d = proposal - maps
    each = (_along(d, d), excess, turned * image.square())
    sums = torch.stack([v.flatten(1).sum(1, dtype=torch.float64) for v in each], dim=1)
    return unit, _along(unit, data), sums.to(step.dtype)


# --- kernels ---------------------------------------------------------------------------------------------------
def _cpp(name: str, like: Tensor, *arguments: Tensor | float | None) -> None:
    """The kernel ``name`` of csrc/cpu/joint.cpp; ``like`` (B, C, H, W) has the sizes."""
    kernel = getattr(_core, f"{name}_{'f32' if like.dtype == torch.complex64 else 'f64'}")
    batch, coils, rows, cols = like.shape
    given = (0 if a is None else a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    if like.numel():
        kernel(*given, batch, coils, rows * cols, kernel_threads())


def _coils_cpp(image: Tensor, maps: Tensor, out: Tensor) -> None:
    _cpp("joint_coils", maps, maps, None, None, image, None, out)


def _extrapolate_cpp(maps: Tensor, previous: Tensor, inertia: Tensor, image: Tensor, bar: Tensor, out: Tensor) -> None:
    _cpp("joint_coils", maps, maps, previous, inertia, image, bar, out)


def _backward_cpp(g: Tensor, image: Tensor, maps: Tensor, along: Tensor, out: Tensor) -> None:
    _cpp("joint_step", maps, maps, g, None, image, None, out, along)


def _step_cpp(
    maps: Tensor, response: Tensor, data: Tensor, image: Tensor, step: Tensor, out: Tensor, along: Tensor
) -> None:
    _cpp("joint_step", maps, maps, response, data, image, step, out, along)


def _test_cpp(
    proposal: Tensor,
    maps: Tensor,
    moved: Tensor,
    step: Tensor,
    image: Tensor,
    along: Tensor,
    data: Tensor,
    bound: float,
    unit: Tensor,
    combined: Tensor,
    sums: Tensor,
) -> None:
    if not proposal.numel():
        sums.zero_()
    _cpp("joint_test", maps, proposal, maps, moved, step, image, along, data, unit, combined, sums, bound)


def _triton(name: str) -> Any:
    def kernel(*arguments: Any) -> None:
        from pyrecon.kernels import joint

        getattr(joint, name)(*arguments)

    return kernel


_coils = Op(
    "joint_coils(Tensor image, Tensor maps) -> Tensor",
    outputs=lambda image, maps: torch.empty_like(maps),
    reference=_coils_reference,
    kernels={"cpp": _coils_cpp, "triton": _triton("coils")},
)
_backward = Op(
    "joint_coils_backward(Tensor g, Tensor image, Tensor maps) -> (Tensor, Tensor)",
    outputs=lambda g, image, maps: (torch.empty_like(image), torch.empty_like(maps)),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp, "triton": _triton("coils_backward")},
)
_extrapolate = Op(
    "joint_extrapolate(Tensor maps, Tensor previous, Tensor inertia, Tensor image) -> (Tensor, Tensor)",
    outputs=lambda maps, previous, inertia, image: (torch.empty_like(maps), torch.empty_like(maps)),
    reference=_extrapolate_reference,
    kernels={"cpp": _extrapolate_cpp, "triton": _triton("extrapolate")},
)
_step = Op(
    "joint_maps_step(Tensor maps, Tensor response, Tensor data, Tensor image, Tensor step) -> (Tensor, Tensor)",
    outputs=lambda maps, response, data, image, step: (torch.empty_like(maps), torch.empty_like(image)),
    reference=_step_reference,
    kernels={"cpp": _step_cpp, "triton": _triton("maps_step")},
)
_test = Op(
    "joint_maps_test(Tensor proposal, Tensor maps, Tensor moved, Tensor step, Tensor image, Tensor along, Tensor data, "
    "float bound) -> (Tensor, Tensor, Tensor)",
    outputs=lambda proposal, maps, moved, step, image, *_: (
        torch.empty_like(maps),
        torch.empty_like(image),
        image.new_empty((maps.shape[0], 3)),
    ),
    reference=_test_reference,
    kernels={"cpp": _test_cpp, "triton": _triton("maps_test")},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _JointCoils(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, maps: Tensor) -> Tensor:
        return _coils(image, maps)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        image, maps = ctx.saved_tensors
        if needs_grad(g, image, maps):  # a gradient of the gradient: rare enough for plain torch
            return _backward_reference(g, image, maps)
        return _backward(dense(g), image, maps)  # type: ignore[no-any-return]


# --- the public functions --------------------------------------------------------------------------------------
def joint_coils(image: Tensor, maps: Tensor, *, out: Tensor | None = None) -> Tensor:
    """What every coil sees of an image through maps that are normalised on the way: ``image * maps / |maps|``.

    ``|maps|`` is the root sum of squares over the coils of a pixel, and 0/0 = 0: the image is then on the scale of a
    root-sum-of-squares reconstruction, and no scale of the maps needs to be imposed. Followed by
    :func:`sense_forward` with maps of ones it is the forward model of joint estimation, Eq. 11 of Zach et al.

    Parameters
    ----------
    image
        ``(B, H, W)``, float32 or float64: the real image.
    maps
        ``(B, C, H, W)``, complex64 or complex128 to match. Squares must be representable: in single precision a pixel
        whose maps are all below 1e-19 has none.
    out
        Buffer for the result, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        ``(B, C, H, W)`` like ``maps``. Differentiable, any number of times, in ``image`` and ``maps``; without a map
        the gradient is zero. A NaN reaches its own pixel only.

    Notes
    -----
    CPU (C++) and GPU (Triton), each one pass. Zach, Knoll and Pock, Stable deep MRI reconstruction using generative
    priors, IEEE TMI 42, 2023.
    """
    _check_maps("maps", maps)
    _check_image("image", image, maps)
    check_out("out", out, maps.shape, maps, inputs=(image, maps))
    image, maps = dense(image), dense(maps)
    if out is None and needs_grad(image, maps):
        return _JointCoils.apply(image, maps)  # type: ignore[no-untyped-call,no-any-return]
    return _coils(image, maps, out=out)  # type: ignore[no-any-return]


def joint_extrapolate(
    maps: Tensor,
    previous: Tensor,
    inertia: Tensor | float,
    image: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``maps + inertia * (maps - previous)``, and :func:`joint_coils` of the image with those, in one pass.

    ``out[0]`` may be ``previous``. Not differentiable, as the other steps below.
    """
    _check_maps("maps", maps)
    _check_coils("previous", previous, maps)
    rows = _rows("inertia", inertia, maps)
    _check_image("image", image, maps)
    _check_plain(maps=maps, previous=previous, image=image)
    if out is not None:
        check_tuple("out", out, "extrapolated", "coils")
        check_out("out[1]", out[1], maps.shape, maps, inputs=(maps, previous, image))
        given = (maps, image, out[1]) if _same(out[0], previous) else (maps, previous, image, out[1])
        check_out("out[0]", out[0], maps.shape, maps, inputs=given)
    return _extrapolate(dense(maps), dense(previous), rows, dense(image), out=out)  # type: ignore[no-any-return]


def joint_maps_step(
    maps: Tensor,
    response: Tensor,
    data: Tensor,
    image: Tensor,
    step: Tensor | float,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``maps - step * gradient`` of the data term, and the gradient ``(B, H, W)`` by the image at these maps.

    ``response`` is ``F^H M^2 F`` of :func:`joint_coils`, ``data`` is ``F^H M`` of the k-space. ``out[0]`` may be
    ``response``.
    """
    _check_maps("maps", maps)
    _check_coils("response", response, maps)
    _check_coils("data", data, maps)
    _check_image("image", image, maps)
    rows = _rows("step", step, maps)
    _check_plain(maps=maps, response=response, data=data, image=image)
    if out is not None:
        check_tuple("out", out, "moved", "along")
        inputs = (maps, response, data, image)
        check_out("out[1]", out[1], image.shape, image, inputs=inputs)
        given = (maps, data, image, out[1]) if _same(out[0], response) else (*inputs, out[1])
        check_out("out[0]", out[0], maps.shape, maps, inputs=given)
    return _step(dense(maps), dense(response), dense(data), dense(image), rows, out=out)  # type: ignore[no-any-return]


def joint_maps_test(
    proposal: Tensor,
    maps: Tensor,
    moved: Tensor,
    step: Tensor | float,
    image: Tensor,
    along: Tensor,
    data: Tensor,
    *,
    bound: float = 1.0,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of the backtracking inequality of a map step, and what the next image step needs of its result.

    Parameters
    ----------
    proposal
        S', ``(B, C, H, W)``: a proximal map of ``moved``, or any other maps.
    maps, moved, step, image, along
        Arguments and results of :func:`joint_maps_step`.
    data
        ``F^H M`` of the k-space, ``(B, C, H, W)``.
    bound
        Largest eigenvalue of ``F^H M^2 F``, or more: 1 for a mask of zeros and ones.
    out
        Buffers for the results; ``out[0]`` may be ``proposal``.

    Returns
    -------
    unit, combined, sums
        ``proposal / |proposal|``; ``Re sum_c conj(unit_c) data_c``, ``(B, H, W)``; and ``(B, 3)``: the step is
        good for L where ``sums[:, 1] <= L / 2 * sums[:, 0]``, and changes the coil images by ``sums[:, 2].sqrt()``.
    """
    _check_maps("maps", maps)
    for name, value in (("proposal", proposal), ("moved", moved), ("data", data)):
        _check_coils(name, value, maps)
    rows = _rows("step", step, maps)
    _check_image("image", image, maps)
    _check_image("along", along, maps)
    check_number("bound", bound)
    _check_plain(proposal=proposal, maps=maps, moved=moved, image=image, along=along, data=data)
    if out is not None:
        check_tuple("out", out, "unit", "combined", "sums")
        inputs = (maps, moved, image, along, data)
        check_out("out[1]", out[1], image.shape, image, inputs=(proposal, *inputs))
        check_out("out[2]", out[2], (maps.shape[0], 3), image, inputs=(proposal, *inputs, out[1]))
        others = (*inputs, *out[1:]) if _same(out[0], proposal) else (proposal, *inputs, *out[1:])
        check_out("out[0]", out[0], maps.shape, maps, inputs=others)
    given = (dense(proposal), dense(maps), dense(moved), rows, dense(image), dense(along), dense(data))
    return _test(*given, float(bound), out=out)  # type: ignore[no-any-return]


def _check_maps(name: str, maps: Tensor) -> None:
    check_dtype(name, maps, COMPLEX)
    check_shape(name, maps, (None, None, None, None), "(B, C, H, W)")
    if maps.shape[1] == 0:
        raise ValueError(f"{name}: shape {tuple(maps.shape)} holds no coil, expected at least one")


def _check_coils(name: str, value: Tensor, maps: Tensor) -> None:
    check_like(name, value, "maps", maps)
    check_shape(name, value, maps.shape, "(B, C, H, W) of maps")


def _check_image(name: str, image: Tensor, maps: Tensor) -> None:
    check_like(name, image, "maps", maps, dtype=REAL_OF[maps.dtype])
    check_shape(name, image, (maps.shape[0], *maps.shape[2:]), "(B, H, W) of maps")


def _check_plain(**inputs: Tensor) -> None:
    if needs_grad(*inputs.values()):
        name = next(name for name, value in inputs.items() if value.requires_grad)
        raise ValueError(f"{name}: is not differentiable here, detach it")


def _rows(name: str, value: Tensor | float, maps: Tensor) -> Tensor:
    """``value``, a number or (B,), as a dense tensor (B,) of the real dtype of the maps."""
    if not isinstance(value, Tensor):
        return filled(name, value, maps.shape[:1], REAL_OF[maps.dtype], maps.device)
    check_like(name, value, "maps", maps, dtype=REAL_OF[maps.dtype])
    if value.dim():
        check_shape(name, value, maps.shape[:1], "a number or (B,)")
    return dense(value.expand(maps.shape[:1]))


def _same(out: Tensor, given: Tensor) -> bool:
    """Whether ``out`` is ``given`` itself, number for number."""
    if torch.compiler.is_compiling():
        return False
    return isinstance(out, Tensor) and out.data_ptr() == given.data_ptr() and given.is_contiguous()
