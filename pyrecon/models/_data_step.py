"""What LUSER and its rivals share: physics of any kind, the data step with one learned lambda, a file of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pyrecon._check import (
    COMPLEX,
    FLOATING,
    REAL_OF,
    check_callable,
    check_count,
    check_dtype,
    check_like,
    check_number,
    check_returned,
    check_shape,
)
from pyrecon._errors import DataError
from pyrecon.linops import Blur, LinearOperator
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    filled,
    find_weights,
    read_header,
    whole_number,
    write_weights,
)
from pyrecon.nn._channels import to_channels
from pyrecon.solvers import Solution, Status

Physics = LinearOperator | Callable[[Tensor], Tensor]
Start = Literal["adjoint", "data"]


class Reconstructor(nn.Module, ABC):
    """What the three models share: the physics, the start, the learned step and kernel, and the file of weights.

    Attributes
    ----------
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    solves
        The equilibria of the last call in turn, :class:`~pyrecon.solvers.Solution` without their values.
    """

    system: ClassVar[str] = "luser"
    network: ClassVar[str]
    card: Card | None = None

    def __init__(self, channels: int, step: float, start: Start, kernel: Tensor | None) -> None:
        super().__init__()
        self.channels = check_count("channels", channels)
        if start not in ("adjoint", "data"):
            raise ValueError(f"start: {start!r}, expected adjoint or data")
        self.start = start
        self.step_size = nn.Parameter(torch.tensor(check_number("step", step, above=True)))
        self.kernel: nn.Parameter | None = None
        if kernel is not None:
            check_dtype("kernel", kernel, FLOATING)
            check_shape("kernel", kernel, (channels, None, None), "(channels, rows, columns)")
            self.kernel = nn.Parameter(kernel.detach().clone())
        self.solves: list[Solution[None]] = []

    def forward(
        self, y: Tensor, physics: Physics | None = None, *, x0: Tensor | None = None, return_stages: bool = False
    ) -> Any:
        """Images from data y, for training; with ``return_stages`` the list of those after every stage, for an
        auxiliary loss. ``physics`` and ``x0`` as in the description of the class."""
        images = self._stages(y, physics, x0)
        self._warn()
        return images if return_stages else images[-1]

    @torch.no_grad()
    def reconstruct(self, y: Tensor, physics: Physics | None = None, *, x0: Tensor | None = None) -> Solution[Tensor]:
        """The same with a status per sample: the worst of its equilibria, their iterations together, the largest
        residual. An image that is not finite is NaN, and NONFINITE."""
        value = self._stages(y, physics, x0)[-1]
        fine = torch.isfinite(torch.view_as_real(value) if value.is_complex() else value).flatten(1).all(1)
        status = torch.zeros(len(value), dtype=torch.int8, device=value.device)
        iterations = torch.zeros_like(status, dtype=torch.int32)
        residual = torch.zeros(len(value), dtype=REAL_OF[value.dtype], device=value.device)
        for solve in self.solves:
            status = torch.maximum(status, solve.status)
            iterations, residual = iterations + solve.iterations, torch.fmax(residual, solve.residual)
        status = torch.where(fine, status, int(Status.NONFINITE)).to(torch.int8)
        lost = (status == Status.NONFINITE).view(-1, *[1] * (value.dim() - 1))
        return Solution(torch.where(lost, torch.full_like(value, torch.nan), value), status, iterations, residual)

    @abstractmethod
    def _stages(self, y: Tensor, physics: Physics | None, x0: Tensor | None) -> list[Tensor]:
        """The images after every stage."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What makes a model of the same tensors."""

    @classmethod
    @abstractmethod
    def _tensors(cls, config: dict[str, Any]) -> int:
        """How many tensors a model of a configuration has, judged before it is built."""

    @classmethod
    @abstractmethod
    def _built(cls, config: dict[str, Any], kernel: Tensor | None) -> Self:
        """A model of a configuration; UNUSABLE for what makes none."""

    # --- the data step ---
    def _begin(self, y: Tensor, physics: Physics | None, x0: Tensor | None) -> tuple[Tensor, Callable[..., Tensor]]:
        """The first image, and ``x -> x + lambda A^H (y - A x)``."""
        check_dtype("y", y, (*FLOATING, *COMPLEX))
        if REAL_OF[y.dtype] != self.step_size.dtype:
            raise TypeError(f"y: dtype {y.dtype} does not fit the model's {self.step_size.dtype}; cast one of them")
        if physics is None:
            if self.kernel is None:
                raise TypeError("physics: expected a LinearOperator or a function of images, got None")
            images = to_channels(y, "y")
            physics = Blur(self.kernel, (images.shape[2], images.shape[3]), channels=self.channels)
        elif not isinstance(physics, LinearOperator):
            check_callable("physics", physics)
        adjoint = physics.adjoint(y) if isinstance(physics, LinearOperator) else None
        if x0 is None:
            x0 = y if self.start == "data" else adjoint
        if x0 is None:
            raise ValueError("x0: physics that is no LinearOperator has no A^H y; pass x0, or build with start='data'")
        check_dtype("x0", x0, (*FLOATING, *COMPLEX))
        check_like("x0", x0, "y", y, dtype=x0.dtype)
        found = to_channels(x0, "x0").shape[1]
        if found != self.channels:
            raise ValueError(f"y, physics: make images of {found} channels, the model takes {self.channels}")

        def step(x: Tensor) -> Tensor:
            if isinstance(physics, LinearOperator):
                assert adjoint is not None
                return x + self.step_size * (adjoint - physics.gram(x))
            return x + self.step_size * pulled_back(physics, x, y)

        return x0, step

    def _warn(self) -> None:
        """Of equilibria that were not reached, in one warning."""
        for i, solve in enumerate(self.solves):
            if not bool(solve.converged.all()):
                advice = "Raise max_iter or tol; gradients are inexact to about the residual."
                solve.warn_unless_converged(f"{self.network}: the equilibrium of stage {i + 1}", advice, stacklevel=4)
                return

    # --- weights ---
    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        shape = None if self.kernel is None else list(self.kernel.shape[1:])
        config = {"network": self.network, "channels": self.channels, "start": self.start, "kernel": shape}
        write_weights(path, self.system, config | self.config, self.state_dict(), self.card)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that :meth:`save` wrote, in evaluation mode; DataError where the file is none."""
        header = read_header(path)
        if header.model != cls.system:
            raise DataError(f"{path}: holds weights of {header.model!r}, expected {cls.system!r}")
        try:
            config = dict(header.config)
            if config.pop("network") != cls.network:
                raise ValueError(f"network: {header.config['network']!r}, expected {cls.network!r}")
            size = config.pop("kernel")
            config["channels"] = whole_number(config["channels"])
            header.expect_count(1 + (size is not None) + cls._tensors(config))
            with torch.device("meta"):
                kernel = None
                if size is not None:
                    rows, columns = (whole_number(n) for n in size)
                    kernel = torch.empty(config["channels"], rows, columns)
                model = cls._built(config, kernel)
            model.card = None if header.card is None else Card.from_dict(header.card)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        return filled(model, header)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))


def pulled_back(physics: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """``J^H (y - A(x))`` with J the derivative of any function A at x: minus the gradient of ``|y - A(x)|^2 / 2``.

    Differentiable where gradients are recorded, also in what A holds. Raises like a solver where A returns no tensor
    like y, or one that does not depend on x.
    """
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if recording and x.requires_grad else x.detach().requires_grad_()
        found = check_returned("physics", physics(at), y, "the data y")
        if not found.requires_grad:
            raise ValueError("physics: what it returned does not depend on the image by differentiable operations")
        (back,) = torch.autograd.grad(found, at, y - found, create_graph=recording, allow_unused=True)
    if back is None:
        raise ValueError("physics: what it returned does not depend on the image by differentiable operations")
    return back if recording else back.detach()
