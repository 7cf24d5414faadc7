"""Deep equilibrium models of an iteration with a learned denoiser, their unrolled twins, and a network alone, for any
linear physics.

Gilton, Ongie and Willett, Deep equilibrium architectures for inverse problems in imaging, IEEE Trans. Comput. Imaging 7
(2021); as in Mehta, Kitichotkul, Goyal and Tachella, Equivariant deep equilibrium models for imaging inverse problems.

Images are real or complex ``(B, H, W)``, or real ``(B, C, H, W)``; a denoiser sees them as real channels
``(B, C, H, W)``, 2 of a complex image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from pyrecon import implicit
from pyrecon._check import check_count, check_number, check_returned
from pyrecon._errors import DataError
from pyrecon.implicit import ImplicitGradient, Unrolled, fixed_point_layer
from pyrecon.linops import LinearOperator
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    Header,
    filled,
    find_weights,
    read_header,
    whole_number,
    write_weights,
)
from pyrecon.nn import DnCNN, ResidualUNet
from pyrecon.nn._channels import from_channels, to_channels
from pyrecon.nn.unet import steady_weights
from pyrecon.solvers import Anderson, FixedPointMethod, Solution, Status

Start = Literal["adjoint", "pinv"]
# Networks that a file of weights can hold: by name, as ``channels`` and their ``config`` build them again.
NETWORKS: dict[str, type[Any]] = {"unet": ResidualUNet, "dncnn": DnCNN}
LIMIT = 100  # iterations at inference: training's 40 end a little before some equilibria (50 on average, seen for CT)


class _Model(nn.Module, ABC):
    """A denoiser inside a reconstruction: what its file holds, and how it reads images.

    Attributes
    ----------
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    """

    system: ClassVar[str]
    card: Card | None = None

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        if not isinstance(denoiser, nn.Module):
            got = getattr(denoiser, "__name__", type(denoiser).__name__)
            raise TypeError(f"denoiser: expected a module, got {got}")
        self.denoiser = denoiser

    @abstractmethod
    def reconstruct(self, y: Tensor, physics: LinearOperator) -> Solution[Tensor]:
        """Images with a status per sample, without recording gradients; an image that is not finite is NaN."""

    def denoised(self, image: Tensor) -> Tensor:
        """D of an image of any kind."""
        x = to_channels(image)
        return from_channels(check_returned("denoiser", self.denoiser(x), x, "the image's channels"), image)

    # --- weights -------------------------------------------------------------------------------------------------
    def _settings(self) -> dict[str, Any]:
        """What the file holds beside the denoiser's configuration; :meth:`_from_settings` takes it."""
        return {}

    @classmethod
    def _from_settings(cls, denoiser: nn.Module, settings: dict[str, Any]) -> Self:
        """ValueError, KeyError or TypeError where they are none."""
        if settings:
            raise ValueError(f"has {sorted(settings)}, expected nothing")
        return cls(denoiser)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        kind = next((name for name, kind in NETWORKS.items() if type(self.denoiser) is kind), None)
        if kind is None:
            raise DataError(f"{path}: not written, a denoiser of the class {type(self.denoiser).__name__} is not ours")
        denoiser: Any = self.denoiser
        network = {"channels": denoiser.channels, **denoiser.config}
        config = {"network": kind, "denoiser": network, **self._settings()}
        write_weights(path, self.system, config, self.state_dict(), self.card)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that :meth:`save` wrote, in evaluation mode; DataError where the file is none."""
        header = read_header(path)
        if header.model != cls.system:
            raise DataError(f"{path}: holds weights of {header.model!r}, expected {cls.system!r}")
        return cls._of(header)

    @classmethod
    def _of(cls, header: Header) -> Self:
        try:
            settings: dict[str, Any] = dict(header.config)
            kind, network = NETWORKS[settings.pop("network")], dict(settings.pop("denoiser"))
            for value in network.values():
                if not isinstance(value, bool | str):
                    whole_number(value)
            with torch.device("meta"):  # nothing of the sizes that a header claims takes memory
                model = cls._from_settings(kind(network.pop("channels"), **network), settings)
            header.expect_count(len(model.state_dict()))
            model.card = None if header.card is None else Card.from_dict(header.card)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        return filled(model, header)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))


class Equilibrium(_Model):
    """What :class:`DEProx` and :class:`DEGrad` share: the image at the fixed point of a step with a denoiser D.

    Parameters
    ----------
    denoiser
        D, a module from real channels ``(B, C, H, W)`` to the same; :class:`pyrecon.nn.ResidualUNet` is one that can be
        saved.
    step
        eta of the gradient, above 0; up to ``1 / |A|^2``, which is 1 for normalised coil maps and unitary transforms.
    strength
        Above 0: ``x + strength (D(x) - x)`` takes the place of D(x). 1 for a D that was trained at the equilibrium; a
        denoiser that was not (plug-and-play, RED) has its weight against the data here.
    start
        ``"adjoint"``: from ``A^H y``. ``"pinv"``: from ``A^+ y``.
    layers
        So many plain steps from the start in place of the fixed point, all recorded: the unrolled network with shared
        weights. ``solver``, ``tol``, ``max_iter`` and ``gradient`` play no part then.
    solver, tol, max_iter
        Of the equilibrium, in training and at inference. Loose solves train a point that is not the equilibrium: at a
        relative change of 1e-3 within 20 iterations the quality was 1.3 dB below that of 1e-4 within 40.
    gradient
        How gradients pass it; default :class:`~pyrecon.implicit.ImplicitGradient` to 3e-3 within ``max_iter``.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        step: float = 1.0,
        strength: float = 1.0,
        start: Start = "adjoint",
        layers: int | None = None,
        solver: FixedPointMethod | None = None,
        tol: float = 1e-4,
        max_iter: int = 40,
        gradient: implicit.Gradient | None = None,
    ) -> None:
        super().__init__(denoiser)
        if start not in get_args(Start):
            raise ValueError(f"start: {start!r}, expected one of {', '.join(get_args(Start))}")
        if layers is not None and gradient is not None:
            raise ValueError("gradient: plays no part with layers, whose steps are recorded; give one of the two")
        self.step_size = check_number("step", step, above=True)
        self.strength = check_number("strength", strength, above=True)
        self.start, self.layers = start, None if layers is None else check_count("layers", layers)
        self.tol, self.max_iter = check_number("tol", tol), check_count("max_iter", max_iter)
        self.solver = Anderson() if solver is None else solver
        if layers is not None:
            self.gradient: implicit.Gradient = Unrolled(layers)
        else:
            self.gradient = ImplicitGradient(tol=3e-3, max_iter=max_iter) if gradient is None else gradient

    @abstractmethod
    def step(self, x: Tensor, adjoint: Tensor, physics: LinearOperator) -> Tensor:
        """One application of the map whose fixed point is sought; ``adjoint`` is ``A^H y``."""

    def forward(self, y: Tensor, physics: LinearOperator) -> Tensor:
        """Images from data y of ``physics``, for training; gradients reach the denoiser and y."""
        image: Tensor = self._solved(y, physics, self.max_iter, self.gradient).value
        return image

    @torch.no_grad()
    def reconstruct(self, y: Tensor, physics: LinearOperator, *, max_iter: int | None = None) -> Solution[Tensor]:
        """Images with a status per sample, without recording gradients; an image that is not finite is NaN.

        ``max_iter`` in place of the model's own; of an unrolled model, layers.
        """
        limit = self.max_iter if max_iter is None else max_iter
        unrolled = self.layers is not None and max_iter is not None
        found = self._solved(y, physics, limit, Unrolled(limit) if unrolled else self.gradient)
        lost = (found.status == Status.NONFINITE).view(-1, *[1] * (found.value.dim() - 1))
        value = torch.where(lost, torch.full_like(found.value, torch.nan), found.value)
        return Solution(value, found.status, found.iterations, found.residual)

    def _solved(self, y: Tensor, physics: LinearOperator, limit: int, gradient: implicit.Gradient) -> Solution[Tensor]:
        _linear(physics)
        adjoint = physics.adjoint(y)
        with steady_weights(self):
            solution: Solution[Tensor] = fixed_point_layer(
                self.map(physics), adjoint if self.start == "adjoint" else physics.pinv(y), (adjoint,),
                solver=self.solver, tol=self.tol, max_iter=limit, gradient=gradient, return_solution=True,
            )  # fmt: skip
        return solution

    def map(self, physics: LinearOperator) -> Callable[[Tensor, Tensor], Tensor]:
        """The step as a function of the image and ``A^H y``."""
        return lambda x, adjoint: self.step(x, adjoint, physics)

    def moved(self, x: Tensor) -> Tensor:
        """``strength (D(x) - x)``."""
        return self.strength * (self.denoised(x) - x)

    def _settings(self) -> dict[str, Any]:
        return {
            "step": self.step_size, "strength": self.strength, "start": self.start, "layers": self.layers,
            "tol": self.tol, "max_iter": self.max_iter,
        }  # fmt: skip

    @classmethod
    def _from_settings(cls, denoiser: nn.Module, settings: dict[str, Any]) -> Self:
        known: dict[str, Any] = {name: _finite(name, settings.pop(name)) for name in ("step", "strength", "tol")}
        layers, limit = settings.pop("layers"), whole_number(settings.pop("max_iter"))
        known |= {"layers": None if layers is None else whole_number(layers), "max_iter": limit}
        return cls(denoiser, start=settings.pop("start"), **known, **settings)


class DEProx(Equilibrium):
    """The image at the fixed point of a proximal gradient step, with a denoiser in place of the proximal map::

        x = D(x - step A^H (A x - y))

    with exact gradients to the denoiser by implicit differentiation. Parameters: :class:`Equilibrium`. With a denoiser
    that was not trained for it, this is plug-and-play.
    """

    system: ClassVar[str] = "de-prox"

    def step(self, x: Tensor, adjoint: Tensor, physics: LinearOperator) -> Tensor:
        x = x - self.step_size * (physics.gram(x) - adjoint)
        return self.denoised(x) if self.strength == 1 else x + self.moved(x)


class DEGrad(Equilibrium):
    """The image at the fixed point of a gradient step with the residual of a denoiser as the regulariser's gradient::

        x = x - step (A^H (A x - y) + strength (x - D(x)))

    with exact gradients to the denoiser by implicit differentiation. Parameters: :class:`Equilibrium`. With a denoiser
    that was not trained for it, this is regularisation by denoising (RED).
    """

    system: ClassVar[str] = "de-grad"

    def step(self, x: Tensor, adjoint: Tensor, physics: LinearOperator) -> Tensor:
        return x - self.step_size * (physics.gram(x) - adjoint - self.moved(x))


class UNetRefinement(_Model):
    """A network alone: ``D(A^+ y)``, with the pseudo-inverse of the physics.

    ``denoiser``: from real channels ``(B, C, H, W)`` to the same.
    """

    system: ClassVar[str] = "unet-refinement"

    def forward(self, y: Tensor, physics: LinearOperator) -> Tensor:
        """Images from data y of ``physics``."""
        with steady_weights(self):
            return self.denoised(_linear(physics).pinv(y))

    @torch.no_grad()
    def reconstruct(self, y: Tensor, physics: LinearOperator) -> Solution[Tensor]:
        """As those of the equilibria; nothing is iterated."""
        image = self(y, physics)
        rows = image.flatten(1)
        finite = torch.isfinite(rows).all(1) & torch.isfinite(y.flatten(1)).all(1)
        status = torch.where(finite, int(Status.CONVERGED), int(Status.NONFINITE)).to(torch.int8)
        image = torch.where(finite.view(-1, *[1] * (image.dim() - 1)), image, torch.full_like(image, torch.nan))
        zeros = torch.zeros_like(rows[:, 0].real)
        return Solution(image, status, zeros.to(torch.int32), zeros)


MODELS: Mapping[str, type[_Model]] = {kind.system: kind for kind in (DEProx, DEGrad, UNetRefinement)}


def for_inference(model: Equilibrium) -> None:
    """More iterations than training could afford: an equilibrium that exists is to be reached."""
    if model.layers is None:
        model.max_iter = max(model.max_iter, LIMIT)


def load(name_or_path: str | Path) -> DEProx | DEGrad | UNetRefinement:
    """Whichever of the models a file holds."""
    header = read_header(find_weights(name_or_path))
    if header.model not in MODELS:
        raise DataError(f"{header.path}: holds weights of {header.model!r}, expected one of {', '.join(MODELS)}")
    model: Any = MODELS[header.model]._of(header)
    return model  # type: ignore[no-any-return]


def _linear(physics: LinearOperator) -> LinearOperator:
    if not isinstance(physics, LinearOperator):
        raise TypeError(f"physics: expected a LinearOperator, got {type(physics).__name__}")
    return physics


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: {number}")
    return number
