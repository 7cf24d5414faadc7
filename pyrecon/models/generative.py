"""A generative prior on magnitude images: an energy R, trained so that exp(-R / T) draws images like those it saw.

It is trained once, on images alone, and knows no coils, masks or k-space: in a reconstruction it stands beside the
data term of whatever was measured (:func:`pyrecon.solvers.ipalm`), and by Langevin sampling of the posterior it says
what the data do not determine.

M. Zach, F. Knoll, T. Pock, Stable deep MRI reconstruction using generative priors, 2023. The temperature T is that of
the authors' program, whose Langevin steps have less noise than their length asks for; in the text it is 1.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pyrecon._check import FLOATING, check_count, check_dtype, check_flag, check_number, check_shape
from pyrecon._errors import DataError
from pyrecon.data.fourier import centered_slice
from pyrecon.models.weights import UNUSABLE, Card, filled, find_weights, read_header, whole_number, write_weights
from pyrecon.nn.energy import EnergyNet
from pyrecon.solvers import Chain, langevin

__all__ = ["LEVELS", "ROLE", "GenerativePrior", "IntensityWarning"]

ROLE = "prior"  # of weights, on their cards
LEVELS = 16, 256  # of so many training images so many quantiles of their intensities
_RANGE = (0.5, 2.0)  # of an image's maximum over that of the training images: beyond it a warning is due


class IntensityWarning(UserWarning):
    """Images are much darker or brighter than those that a prior was trained on."""


class GenerativePrior(nn.Module):
    """``R(u)`` of real images ``(B, H, W)``, of their centre ``size x size`` alone: R o crop, with its gradient zero
    elsewhere (the crop's adjoint).

    Parameters
    ----------
    size, width, growth, stages, absolute
        Of the :class:`~pyrecon.nn.EnergyNet`; the defaults are the published 21,350,640 weights.
    step, noise_std
        Of the Langevin steps ``u - step/2 grad R + noise_std xi`` that it is trained and sampled with: images are drawn
        from exp(-R / T) with ``temperature`` ``T = noise_std^2 / step``, up to the bias of the step.

    Attributes
    ----------
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    levels
        ``(16, 256)``: quantiles of the intensities of training images, which samples from noise begin with.

    The weights are parameters like any network's: freeze them (``prior.requires_grad_(False)``) in a reconstruction
    that records gradients of its own.
    """

    system: ClassVar[str] = "generative"
    card: Card | None = None
    levels: Tensor

    def __init__(
        self,
        size: int = 320,
        width: int = 48,
        *,
        growth: float = 1.75,
        stages: int | None = None,
        absolute: bool = True,
        step: float = 2.0,
        noise_std: float = 7.5e-3,
    ) -> None:
        super().__init__()
        self.network = EnergyNet(size, width, growth=growth, stages=stages, absolute=absolute)
        self.step = check_number("step", step, above=True)
        self.noise_std = check_number("noise_std", noise_std, above=True)
        self.register_buffer("levels", torch.linspace(0, 1, LEVELS[1]).repeat(LEVELS[0], 1))

    @property
    def size(self) -> int:
        """Pixels along both axes of what it looks at."""
        return self.network.size

    @property
    def temperature(self) -> float:
        """``noise_std^2 / step``."""
        return self.noise_std**2 / self.step

    @property
    def peak(self) -> float:
        """The intensity that the brightest pixel of a training image has, by the card; 1 without one."""
        if self.card is None:
            return 1.0
        return float(self.card.data.get("peak", 1.0))

    # --- the energy --------------------------------------------------------------------------------------------------
    def forward(self, u: Tensor) -> Tensor:
        return self.energy(u)

    def energy(self, u: Tensor) -> Tensor:
        """``(B,)``, dimensionless, differentiable in the image and the weights.

        Parameters
        ----------
        u
            ``(B, H, W)``, real, of the weights' dtype and device, H and W from ``size`` on.
        """
        return self.network(self._crop(u))  # type: ignore[no-any-return]

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``R(u)`` ``(B,)`` and ``grad R(u)``, like u, from one pass forward and one back.

        Every sample's gradient is its own: a NaN stays in its image. Both are without a record of gradients, and the
        caller's recording is left as it is; differentiate :meth:`energy` for more. See it for ``u``.
        """
        with torch.enable_grad():
            crop = self._crop(u.detach()).requires_grad_()
            energy = self.network(crop)
            (slope,) = torch.autograd.grad(energy.sum(), crop)
        if slope.shape == u.shape:
            return energy.detach(), slope.contiguous()
        gradient = torch.zeros_like(u, memory_format=torch.contiguous_format)
        gradient[self._window(u)] = slope
        return energy.detach(), gradient

    def gradient(self, u: Tensor) -> Tensor:
        """``grad R(u)`` alone, for :func:`pyrecon.solvers.langevin`."""
        return self.energy_and_gradient(u)[1]

    def _crop(self, u: Tensor) -> Tensor:
        check_dtype("u", u, FLOATING)
        check_shape("u", u, (None, None, None), "(B, H, W)")
        weight = self.network.last.weight
        if u.dtype != weight.dtype or u.device != weight.device:
            raise TypeError(
                f"u: {u.dtype} on {u.device} does not fit the prior's {weight.dtype} on {weight.device}; cast one of "
                "them"
            )
        if min(u.shape[1:]) < self.size:
            raise ValueError(
                f"u: {u.shape[1]} x {u.shape[2]} pixels, expected at least {self.size} x {self.size}, which the prior "
                "was made for; take one of a smaller size, or pad the image with zeros"
            )
        return u[self._window(u)]

    def _window(self, u: Tensor) -> tuple[slice, slice, slice]:
        return slice(None), centered_slice(u.shape[1], self.size), centered_slice(u.shape[2], self.size)

    def check_intensity(self, u: Tensor, *, warn: bool = True) -> Tensor:
        """``(B,)`` bool: whether an image's maximum, in the centre that is looked at, is within a factor of two of that
        of the training images, to whose range an image must be scaled; an :class:`IntensityWarning` tells of others.

        NaN and images of zeros are not within it.
        """
        check_flag("warn", warn)
        tops = self._crop(u.detach()).flatten(1).abs().amax(1) / self.peak
        fine = (tops >= _RANGE[0]) & (tops <= _RANGE[1])
        if warn and not bool(fine.all()):
            worst = tops[~fine][0].item() * self.peak
            warnings.warn(
                f"u: {int((~fine).sum())} of {len(u)} images have another intensity range than the prior was trained "
                f"on: a maximum of {worst:.3g}, expected {self.peak:.3g} within a factor of two. Divide images, and "
                "data with them, by the maximum of a first reconstruction.",
                IntensityWarning,
                stacklevel=2,
            )
        return fine

    # --- sampling ----------------------------------------------------------------------------------------------------
    def noise(self, count: int, *, seed: int = 0) -> Tensor:
        """``(count, size, size)``: pixels with the intensities of a training image each, and no order in them, as an
        image's permuted pixels are."""
        check_count("count", count, 0)
        check_count("seed", seed, 0, 2**63 - 1)
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(LEVELS[0], (count, 1, 1), generator=generator)
        place = torch.randint(LEVELS[1], (count, self.size, self.size), generator=generator)
        return self.levels[which.to(self.levels.device), place.to(self.levels.device)]

    def sample(
        self,
        start: int | Tensor | Chain = 16,
        *,
        iterations: int = 500,
        burn_in: int = 0,
        thinning: int = 1,
        step: float | None = None,
        noise_std: float | None = None,
        nonneg: bool = False,
        seed: int = 0,
    ) -> Chain:
        """Images without data: Langevin steps on exp(-R / T).

        Parameters
        ----------
        start
            How many chains from :meth:`noise`; images ``(B, H, W)`` to begin with; or a chain to go on with, which
            keeps its seed.
        iterations, burn_in, thinning, nonneg
            Of :func:`pyrecon.solvers.langevin`.
        step, noise_std
            Those of the prior by default. ``noise_std`` 0 descends to a mode.
        seed
            Of the start and of the steps.

        Returns
        -------
        Chain
            With the images ``x``, their ``mean`` and ``std``, and a ``status`` each.
        """
        step = self.step if step is None else check_number("step", step, above=True)
        noise_std = self.noise_std if noise_std is None else check_number("noise_std", noise_std)
        if not isinstance(start, Chain | Tensor):
            start = self.noise(check_count("start", start, 0), seed=seed)
        return langevin(
            self.gradient, start, step=step, noise_std=noise_std, iterations=iterations, burn_in=burn_in,
            thinning=thinning, nonneg=nonneg, seed=None if isinstance(start, Chain) else seed,
        )  # fmt: skip

    # --- weights -----------------------------------------------------------------------------------------------------
    @property
    def config(self) -> dict[str, Any]:
        """What makes a prior of the same tensors."""
        return self.network.config | {"step": self.step, "noise_std": self.noise_std}

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        write_weights(path, self.system, self.config, self.state_dict(), self.card)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The prior that :meth:`save` wrote, for evaluation, with frozen weights; DataError where the file is none."""
        header = read_header(path)
        if header.model != cls.system:
            raise DataError(f"{path}: holds weights of {header.model!r}, expected {cls.system!r}")
        try:
            config = dict(header.config)
            whole: dict[str, Any] = {name: whole_number(config.pop(name)) for name in ("size", "width", "stages")}
            header.expect_count(1 + EnergyNet.tensors(whole["stages"]))
            if not 1 <= config["growth"] <= 4:  # 4^10 stages of any width are more channels than any file has
                raise ValueError(f"growth: {config['growth']}, expected 1 to 4")
            with torch.device("meta"):
                model = cls(**whole, **config)
            model.card = None if header.card is None else Card.from_dict(header.card)
            check_number("peak", model.peak, above=True)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        return filled(model, header).requires_grad_(False)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))
