"""Shallow deep equilibrium models of an iteration with a learned denoiser, for any linear physics.

Gilton, Ongie and Willett, Deep equilibrium architectures for inverse problems in imaging, IEEE Trans. Comput. Imaging 7
(2021); as in Mehta, Kitichotkul, Goyal and Tachella, Equivariant deep equilibrium models for imaging inverse problems.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyrecon import implicit
from pyrecon._errors import DataError
from pyrecon.implicit import ImplicitGradient, fixed_point_layer
from pyrecon.linops import LinearOperator
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    find_weights,
    read_header,
    read_tensors,
    whole_number,
    whole_numbers,
    write_weights,
)
from pyrecon.nn import ResidualDenoiser
from pyrecon.solvers import Anderson, FixedPointMethod, Solution, Status, fixed_point


class DEProx(nn.Module):
    """The image at the fixed point of a proximal gradient step, with a denoiser in place of the proximal map::

        x = D(x - step A^H (A x - y))

    from ``x = A^H y``, with exact gradients to the denoiser by implicit differentiation.

    Parameters
    ----------
    denoiser
        D, a module from images to images; :class:`pyrecon.nn.ResidualDenoiser` is one that can be saved.
    step
        Of the gradient, above 0; up to ``1 / |A|^2``, which is 1 for normalised coil maps and unitary transforms.
    solver, tol, max_iter
        Of the equilibrium, in training and at inference. Loose solves train a point that is not the equilibrium: at a
        relative change of 1e-3 within 20 iterations the quality was 1.3 dB below that of 1e-4 within 40.
    gradient
        How gradients pass it; default :class:`~pyrecon.implicit.ImplicitGradient` to 3e-3 within ``max_iter``.

    Attributes
    ----------
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    """

    system: ClassVar[str] = "de-prox"
    card: Card | None = None

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        step: float = 1.0,
        solver: FixedPointMethod | None = None,
        tol: float = 1e-4,
        max_iter: int = 40,
        gradient: implicit.Gradient | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, nn.Module):
            got = getattr(denoiser, "__name__", type(denoiser).__name__)
            raise TypeError(f"denoiser: expected a module, got {got}")
        if not 0 < step < math.inf:
            raise ValueError(f"step: {step}, expected a number above 0")
        self.denoiser, self.step_size, self.tol, self.max_iter = denoiser, step, tol, max_iter
        self.solver = Anderson() if solver is None else solver
        self.gradient = ImplicitGradient(tol=3e-3, max_iter=max_iter) if gradient is None else gradient

    def forward(self, y: Tensor, physics: LinearOperator) -> Tensor:
        """Images ``(B, H, W)`` from data y of ``physics``, for training."""
        start = self._start(y, physics)
        image: Tensor = fixed_point_layer(
            self._map(physics), start, (start,), solver=self.solver, tol=self.tol, max_iter=self.max_iter,
            gradient=self.gradient,
        )  # fmt: skip
        return image

    @torch.no_grad()
    def reconstruct(self, y: Tensor, physics: LinearOperator, *, max_iter: int | None = None) -> Solution[Tensor]:
        """The same with a status per sample; an image that is not finite is NaN."""
        start = self._start(y, physics)
        limit = self.max_iter if max_iter is None else max_iter
        found = fixed_point(self._map(physics), start, (start,), solver=self.solver, tol=self.tol, max_iter=limit)
        lost = (found.status == Status.NONFINITE).view(-1, *[1] * (start.dim() - 1))
        assert isinstance(found.value, Tensor)
        value = torch.where(lost, torch.full_like(found.value, torch.nan), found.value)
        return Solution(value, found.status, found.iterations, found.residual)

    def step(self, x: Tensor, adjoint: Tensor, physics: LinearOperator) -> Tensor:
        """One application of the map whose fixed point is sought; ``adjoint`` is ``A^H y``."""
        denoised: Tensor = self.denoiser(x - self.step_size * (physics.gram(x) - adjoint))
        return denoised

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        if not isinstance(self.denoiser, ResidualDenoiser):
            raise DataError(f"{path}: not written, a denoiser of the class {type(self.denoiser).__name__} is not ours")
        config = {"denoiser": self.denoiser.config, "step": self.step_size, "tol": self.tol, "max_iter": self.max_iter}
        write_weights(path, self.system, config, self.state_dict(), self.card)

    @classmethod
    def load(cls, path: str | Path) -> DEProx:
        """The model that :meth:`save` wrote, in evaluation mode; DataError where the file is none."""
        header = read_header(path)
        if header.model != cls.system:
            raise DataError(f"{path}: holds weights of {header.model!r}, expected {cls.system!r}")
        try:
            config: dict[str, Any] = header.config
            network = whole_numbers(config["denoiser"], ("width", "layers"))
            header.expect_count(2 * network["layers"])
            with torch.device("meta"):
                denoiser = ResidualDenoiser(**network)
            tol, limit = float(config["tol"]), whole_number(config["max_iter"])
            if not 0 <= tol < math.inf:
                raise ValueError(f"tol: {tol}")
            model = cls(denoiser, step=float(config["step"]), tol=tol, max_iter=limit)
            model.card = None if header.card is None else Card.from_dict(header.card)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        expected = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
        model.load_state_dict(read_tensors(header, expected), assign=True)
        return model.eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> DEProx:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))

    def _start(self, y: Tensor, physics: LinearOperator) -> Tensor:
        if not isinstance(physics, LinearOperator):
            raise TypeError(f"physics: expected a LinearOperator, got {type(physics).__name__}")
        return physics.adjoint(y)

    def _map(self, physics: LinearOperator) -> Any:
        return lambda x, adjoint: self.step(x, adjoint, physics)
