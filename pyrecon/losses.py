"""Losses of reconstruction models, as functions of images, data, physics and the model; means over a batch.

:func:`supervised` needs the truth; the others need measurements only. They may be added up, and pass through a model
several times in one sum, each pass with its own gradient: of an equilibrium model the implicit or the Jacobian-free
one, as the model says.

A model is a callable ``f(y, physics) -> images``. ``|.|^2`` is a mean over all samples or pixels, real or complex.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_count, check_number, check_returned
from pyrecon.transforms import Group

Model = Callable[[Tensor, Any], Tensor]


def supervised(images: Tensor, truth: Tensor) -> Tensor:
    """``mean |images - truth|^2`` over all pixels, real or complex, of one shape; a scalar."""
    if images.shape != truth.shape:
        raise ValueError(f"images: shape {tuple(images.shape)} does not fit the truth's {tuple(truth.shape)}")
    return _squared(images - truth).mean()


def measurement_consistency(images: Tensor, y: Tensor, physics: Callable[[Tensor], Tensor]) -> Tensor:
    """``mean |A images - y|^2``; blind to what A does not see, and content with the noise in y."""
    check_callable("physics", physics)
    return _squared(check_returned("physics", physics(images), y, "y") - y).mean()


def equivariance(
    model: Model,
    images: Tensor,
    physics: Callable[[Tensor], Tensor],
    group: Group,
    *,
    noise_std: Tensor | float = 0.0,
    transforms: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``mean |f(A T x + n) - T x|^2`` for T drawn from a group: virtual measurements of transformed reconstructions.

    Chen, Tachella and Davies, Equivariant imaging: learning beyond the range space, ICCV 2021. Gradients pass both
    through f and through x.

    Parameters
    ----------
    model, physics
        f and A.
    images
        x = f(y), with its graph.
    group
        Of :mod:`pyrecon.transforms`. If A commutes with it (:func:`pyrecon.transforms.commutes`), nothing is learned.
    noise_std
        Of n, white, as of the measurements: f must not learn that measurements have none. A number, or a tensor that
        broadcasts to y; of a complex sample, ``E|n|^2 = noise_std^2``.
    transforms
        So many are drawn for every image.
    """
    check_callable("model", model)
    check_callable("physics", physics)
    if not isinstance(group, Group):
        raise TypeError(f"group: expected a group of pyrecon.transforms, got {type(group).__name__}")
    total = images.real.new_zeros(())
    for _ in range(check_count("transforms", transforms)):
        moved = group.draw(images, generator)(images)
        virtual = physics(moved)
        virtual = virtual + _std(noise_std, virtual) * _white(virtual, generator)
        again = check_returned("model", model(virtual, physics), moved, "the images")
        total = total + _squared(again - moved).mean()
    return total / transforms


def sure(
    model: Model,
    images: Tensor,
    y: Tensor,
    physics: Callable[[Tensor], Tensor],
    noise_std: Tensor | float,
    *,
    probe: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stein's unbiased estimate of ``mean |A f(y) - A x|^2`` for white Gaussian noise of known ``noise_std`` in y::

        mean( |A f(y) - y|^2 - noise_std^2 + c noise_std^2 Re(b* (A f(y + probe b) - A f(y))) / probe )

    with b white of variance 1 in every real number, c = 2 for real data and 1 for complex ones. It stands in the place
    of :func:`measurement_consistency` for noisy data (Chen, Tachella and Davies, Robust equivariant imaging, CVPR
    2022).

    Parameters
    ----------
    images
        ``f(y)``, with its graph.
    noise_std
        A number, or a tensor that broadcasts to y and is 0 where y has no noise, such as outside a mask. Of a complex
        sample, ``E|n|^2 = noise_std^2``.
    probe
        Length of the difference quotient, in the unit of y: small against what bends f, large against what the solve
        of an equilibrium leaves.
    """
    check_callable("model", model)
    check_callable("physics", physics)
    check_number("probe", probe, above=True)
    std = _std(noise_std, y)
    seen = check_returned("physics", physics(images), y, "y")
    b = _white(y, generator) * (math.sqrt(2) if y.is_complex() else 1.0)
    apart = physics(check_returned("model", model(y + probe * b, physics), images, "the images")) - seen
    divergence = (b.conj() * apart).real / probe
    return (_squared(seen - y) + std.square() * ((1 if y.is_complex() else 2) * divergence - 1)).mean()


def equivariant_imaging(
    model: Model,
    y: Tensor,
    physics: Callable[[Tensor], Tensor],
    group: Group,
    *,
    weight: float = 1.0,
    noise_std: Tensor | float = 0.0,
    robust: bool = False,
    probe: float | None = None,
    transforms: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``measurement_consistency + weight equivariance`` of ``f(y)``: training without ground truth.

    ``robust`` takes :func:`sure` in place of measurement consistency, for noisy data, with ``probe`` (default the
    largest ``noise_std``). The other parameters are those of :func:`equivariance`.
    """
    check_callable("model", model)
    check_number("weight", weight)
    images = model(y, physics)
    if robust:
        largest = float(torch.as_tensor(noise_std).max())
        if probe is None and not largest > 0:
            raise ValueError("noise_std: 0, robust training is for noisy data; give their standard deviation")
        data = sure(
            model, images, y, physics, noise_std, probe=largest if probe is None else probe, generator=generator
        )
    else:
        data = measurement_consistency(images, y, physics)
    if weight == 0:
        return data
    return data + weight * equivariance(
        model, images, physics, group, noise_std=noise_std, transforms=transforms, generator=generator
    )


def _squared(x: Tensor) -> Tensor:
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def _white(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Of ``E|n|^2 = 1``; drawn on the CPU, so that a seed gives the same on every device."""
    return torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)


def _std(noise_std: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(noise_std, Tensor):
        return torch.as_tensor(check_number("noise_std", noise_std), dtype=like.real.dtype, device=like.device)
    try:
        fits = torch.broadcast_shapes(noise_std.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits or noise_std.is_complex():
        raise ValueError(
            f"noise_std: shape {tuple(noise_std.shape)} does not fit, expected real, as y {tuple(like.shape)}"
        )
    return noise_std.to(like.real.dtype)
