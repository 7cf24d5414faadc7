"""Linear operators of deepinv and mrpro as ours, and ours as theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrecon._check import check_size
from pyrecon._errors import MissingDependency
from pyrecon.linops import LinearOperator


def to_deepinv(operator: LinearOperator) -> Any:
    """A :class:`deepinv.physics.LinearPhysics` that computes with ``operator``.

    deepinv's tensors have a channel axis after the batch: one channel for real numbers, two for the real and the
    imaginary part. So images are ``(B, 1 | 2, *domain_shape)`` and data ``(B, 1 | 2, *range_shape)``.
    """
    physics = _import("deepinv", "hand operators to deepinv").physics

    class Physics(physics.LinearPhysics):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.operator = operator

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return _to_channels(self.operator(_from_channels(x)))

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return _to_channels(self.operator.adjoint(_from_channels(y)))

        def A_adjoint_A(self, x: Tensor, **_: Any) -> Tensor:
            return _to_channels(self.operator.gram(_from_channels(x)))

    return Physics()


def from_deepinv(physics: Any, domain_shape: tuple[int, ...]) -> LinearOperator:
    """A deepinv physics as an operator on its own tensors, channel axis included: ``domain_shape`` is ``(C, H, W)``.

    The shape of the data is found by applying it to zeros.
    """
    return _Foreign(physics, physics.A, physics.A_adjoint, domain_shape)


def to_mrpro(operator: LinearOperator) -> Any:
    """An :class:`mrpro.operators.LinearOperator` that computes with ``operator``, on tensors of the same shapes."""
    base = _import("mrpro", "hand operators to mrpro").operators.LinearOperator

    class Operator(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.operator = operator

        def __call__(self, x: Tensor) -> tuple[Tensor]:
            return self.forward(x)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.operator(x),)

        def adjoint(self, x: Tensor) -> tuple[Tensor]:
            return (self.operator.adjoint(x),)

    return Operator()


def from_mrpro(operator: Any, domain_shape: tuple[int, ...]) -> LinearOperator:
    """An mrpro linear operator as ours: ``domain_shape`` is its input's shape without the first axis, the batch.

    For mrpro's images ``(other, coils, z, y, x)`` that is ``(coils, z, y, x)``. The shape of the data is found by
    applying it to zeros.
    """
    return _Foreign(operator, lambda x: operator(x)[0], lambda y: operator.adjoint(y)[0], domain_shape)


class _Foreign(LinearOperator):
    def __init__(self, module: Any, forward: Any, adjoint: Any, domain_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.foreign = module  # registered where it is an nn.Module, so that .to(device) reaches it
        self._forward, self._adjoint = forward, adjoint
        self.domain_shape = check_size("domain_shape", domain_shape)
        with torch.no_grad():
            self.range_shape = tuple(self(torch.zeros_like(self._random(self.domain_shape, 0, 1))).shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self._returned("its product", self._forward(x), x, getattr(self, "range_shape", None))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._returned("its adjoint", self._adjoint(y), y, self.domain_shape)

    def _returned(self, what: str, value: Any, given: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """What the other package computed, checked like an argument: kernels read it."""
        kind = type(self.foreign).__name__
        if not isinstance(value, Tensor):
            raise TypeError(f"operator: {what} by {kind} is {type(value).__name__}, expected a torch.Tensor")
        expected = (len(given), *(value.shape[1:] if shape is None else shape))
        if value.shape != expected or value.device != given.device:
            came = f"{tuple(value.shape)} on {value.device}"
            raise ValueError(f"operator: {what} by {kind} is {came}, expected {expected} on {given.device}")
        return value


def _from_channels(x: Tensor) -> Tensor:
    if x.dim() < 2 or x.shape[1] not in (1, 2):
        raise ValueError(f"x: shape {tuple(x.shape)} does not fit, expected (B, 1 | 2, ...): real, or two parts")
    return x[:, 0] if x.shape[1] == 1 else torch.complex(x[:, 0], x[:, 1])


def _to_channels(x: Tensor) -> Tensor:
    return torch.stack((x.real, x.imag), dim=1) if x.is_complex() else x[:, None]


def _import(name: str, purpose: str) -> Any:
    from importlib import import_module

    try:
        import_module(f"{name}.operators" if name == "mrpro" else f"{name}.physics")
        return import_module(name)
    except ImportError:
        raise MissingDependency(name, extra="interop", purpose=purpose) from None
