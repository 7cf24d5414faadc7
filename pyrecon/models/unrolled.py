"""The rivals of LUSER: an unrolled DnCNN, recorded whole, and an equilibrium of the whole iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrecon import implicit
from pyrecon._check import check_count, check_flag, check_number
from pyrecon.implicit import ImplicitGradient, fixed_point_layer
from pyrecon.models._data_step import Physics, Reconstructor, Start
from pyrecon.models.weights import whole_number
from pyrecon.nn.dncnn import DnCNN
from pyrecon.solvers import Anderson, FixedPointMethod, Solution
from pyrecon.solvers._fixed_point import iterate


class UnrolledDnCNN(Reconstructor):
    """LU-DnCNN: ``stages`` steps ``x+ = D(x + lambda A^H (y - A x))`` with one denoiser D, recorded whole.

    The stages share D's weights. The running statistics of its batch norm are kept for each of them: their images
    differ, and one set for all, which evaluation then took, cost 0.6 dB in a trial on CT.

    Parameters
    ----------
    channels, stages, step, start, kernel
        As of :class:`LUSER`; 556,033 weights with one channel.
    layers, width
        Of :class:`pyrecon.nn.DnCNN`.
    checkpointing
        Keep the images between stages only and repeat each stage in the backward pass. Batch norm's running statistics
        follow the first time alone.
    """

    network: ClassVar[str] = "lu-dncnn"
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int = 1,
        *,
        stages: int = 8,
        layers: int = 17,
        width: int = 64,
        step: float = 1.0,
        start: Start = "adjoint",
        kernel: Tensor | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(channels, step, start, kernel)
        self.stages = check_count("stages", stages)
        check_flag("checkpointing", checkpointing)
        self.checkpointing = checkpointing
        self.denoiser = DnCNN(channels, layers=layers, width=width)
        self.register_buffer("running_mean", torch.zeros(stages, layers - 2, width))
        self.register_buffer("running_var", torch.ones(stages, layers - 2, width))

    def _stages(self, y: Tensor, physics: Physics | None, x0: Tensor | None) -> list[Tensor]:
        x, step = self._begin(y, physics, x0)
        weights, images = self.denoiser.weights(), []
        for own in zip(self.running_mean, self.running_var, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                again = _Again(partial(self.denoiser.denoised, weights=weights, running=own), self.training)
                x = checkpoint(lambda x, again=again: again(step(x)), x, use_reentrant=False)
            else:
                x = self.denoiser.denoised(step(x), weights, "batch" if self.training else "running", own)
            images.append(x)
        return images

    @property
    def config(self) -> dict[str, Any]:
        return {"stages": self.stages, "layers": self.denoiser.config["layers"], "width": self.denoiser.config["width"]}

    @classmethod
    def _tensors(cls, config: dict[str, Any]) -> int:
        return 2 + DnCNN.tensors(layers=whole_number(config["layers"], 2), norm=True, bias=False, spectral=False)

    @classmethod
    def _built(cls, config: dict[str, Any], kernel: Tensor | None) -> Self:
        numbers: dict[str, Any] = {name: whole_number(config[name]) for name in ("stages", "layers", "width")}
        return cls(config["channels"], start=config["start"], kernel=kernel, **numbers)


class DEQ4IP(Reconstructor):
    """The fixed point ``x = D(x + lambda A^H (y - A x))``, by Anderson mixing, with implicit gradients.

    Gilton, Ongie and Willett, IEEE Trans. Comput. Imaging 7 (2021). Convolutions of D have spectral norms. In the
    equilibrium batch norm is its running statistics: those of a batch would couple its samples and move with every
    iteration, so what is trained would not be what is used. D gets them as a denoiser before.

    Parameters
    ----------
    channels, step, start, kernel
        As of :class:`LUSER`; 556,033 weights with one channel.
    layers, width
        Of :class:`pyrecon.nn.DnCNN`.
    solver, tol, max_iter, gradient
        Of the equilibrium, and how gradients pass it: default ImplicitGradient to 1e-2 within ``max_iter``.
    """

    network: ClassVar[str] = "deq4ip"

    def __init__(
        self,
        channels: int = 1,
        *,
        layers: int = 17,
        width: int = 64,
        step: float = 1.0,
        start: Start = "adjoint",
        kernel: Tensor | None = None,
        solver: FixedPointMethod | None = None,
        tol: float = 1e-3,
        max_iter: int = 50,
        gradient: implicit.Gradient | None = None,
    ) -> None:
        super().__init__(channels, step, start, kernel)
        self.tol, self.max_iter = check_number("tol", tol), check_count("max_iter", max_iter)
        self.solver = Anderson() if solver is None else solver
        self.gradient = ImplicitGradient(tol=1e-2, max_iter=max_iter) if gradient is None else gradient
        self.denoiser = DnCNN(channels, layers=layers, width=width, spectral=True)

    def _stages(self, y: Tensor, physics: Physics | None, x0: Tensor | None) -> list[Tensor]:
        start, step = self._begin(y, physics, x0)
        weights = self.denoiser.weights()

        def f(x: Tensor) -> Tensor:
            return self.denoiser.denoised(step(x), weights, "running")

        if torch.is_grad_enabled():
            found = fixed_point_layer(
                f, start, solver=self.solver, tol=self.tol, max_iter=self.max_iter, gradient=self.gradient,
                return_solution=True,
            )  # fmt: skip
        else:
            found = iterate(f, start, (), self.solver, self.tol, self.max_iter)
        self.solves = [Solution(None, found.status, found.iterations, found.residual)]
        return [found.value]

    @property
    def config(self) -> dict[str, Any]:
        own = {name: self.denoiser.config[name] for name in ("layers", "width")}
        return {"tol": self.tol, "max_iter": self.max_iter, **own}

    @classmethod
    def _tensors(cls, config: dict[str, Any]) -> int:
        return DnCNN.tensors(layers=whole_number(config["layers"], 2), norm=True, bias=False, spectral=True)

    @classmethod
    def _built(cls, config: dict[str, Any], kernel: Tensor | None) -> Self:
        numbers: dict[str, Any] = {name: whole_number(config[name]) for name in ("layers", "width", "max_iter")}
        return cls(config["channels"], tol=config["tol"], start=config["start"], kernel=kernel, **numbers)


class _Again:
    """A function that knows whether it is called for the first time: batch norm moves its statistics but once."""

    def __init__(self, f: Callable[..., Tensor], training: bool) -> None:
        self.f, self.training, self.called = f, training, False

    def __call__(self, x: Tensor) -> Tensor:
        how = "running" if not self.training else "unmoved" if self.called else "batch"
        self.called = True
        return self.f(x, statistics=how)
