"""Trained networks as methods of :func:`~pyrecon.models.mri.reconstruct_mri`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pyrecon.data.fourier import ifft_centered
from pyrecon.linops import Sense
from pyrecon.models._data_step import Reconstructor
from pyrecon.models.deq import DEProx, for_inference
from pyrecon.models.luser import ROLE, load_for
from pyrecon.models.mri.methods import MRIMethod, given_maps
from pyrecon.models.supervised_mri import ROLE as SUPERVISED
from pyrecon.models.supervised_mri import VarNet, load_varnet
from pyrecon.models.weights import Card, check_role, find_weights, which_weights
from pyrecon.solvers import Solution

_FAR = 2.0  # a noise level this many times that of training, or as many times below it, is worth a warning


class LearnedMRI(MRIMethod):
    """What trained networks share: every image is brought to the scale of training, where the brightest pixel of
    ``A^H y`` is 1, and back."""

    fills_in: ClassVar[str] = "the network"

    @property
    def knows_slices(self) -> bool:
        return True

    @property
    def model(self) -> DEProx | Reconstructor:
        """The network."""
        raise NotImplementedError(f"{type(self).__name__}: a learned method has a model")

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        model, physics = self.model.to(kspace.device), Sense(given_maps(maps), mask)
        peak = physics.adjoint(kspace).abs().amax(dim=(1, 2), keepdim=True)
        scale = torch.where(peak > 0, peak, torch.ones_like(peak))
        assert model.card is not None
        _warn(model.card, 1 / float(peak.max().clamp(min=1e-30)), (kspace.shape[2], kspace.shape[3]))
        found = model.reconstruct(kspace / scale[:, None], physics)
        return Solution(found.value * scale, found.status, found.iterations, found.residual)


@dataclass(frozen=True)
class DEProxMRI(LearnedMRI):
    """DE-Prox with trained weights: :class:`pyrecon.models.DEProx` with the coil maps of the scan (1 for one coil).

    Every image is brought to the scale of training, where the brightest pixel of ``A^H y`` is 1, and back.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.DEProx.save`, which ``pyrecon train de-prox`` makes, or the name of some that
        ship: ``"de-prox-mri"``, trained on generated heads of one coil.
    """

    weights: str | None = None

    name: ClassVar[str] = "DE-Prox"
    role: ClassVar[str] = "equilibrium"

    @cached_property
    def model(self) -> DEProx:
        """The network, loaded once."""
        if self.weights is None:
            raise which_weights(DEProx.system, "mri", "pyrecon train de-prox -p task=mri")
        model = DEProx.load(find_weights(self.weights))
        check_role(str(self.weights), model.card, self.role, self.name, "mri")
        for_inference(model)
        return model


@dataclass(frozen=True)
class LUSERMRI(LearnedMRI):
    """LUSER, LU-DnCNN or DEQ4IP with trained weights, with the coil maps of the scan (1 for one coil).

    Every image is brought to the scale of training, where the brightest pixel of ``A^H y`` is 1, and back.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.LUSER.save` or of its rivals'; ``pyrecon train luser -p task=mri`` makes one.
        None ship with the package.
    """

    weights: str | None = None

    name: ClassVar[str] = "LUSER"
    role: ClassVar[str] = ROLE

    @cached_property
    def model(self) -> Reconstructor:
        """The network, loaded once."""
        return load_for("mri", self.weights)


@dataclass(frozen=True)
class VarNetMRI(MRIMethod):
    """The end-to-end variational network with trained weights: :class:`pyrecon.models.VarNet`.

    Needs no coil maps, and no scale: it estimates maps from the fully sampled centre and takes data of any unit. Images
    are magnitudes. It knows the kind of sampling that it was trained on; others are warned about.

    Attributes
    ----------
    weights
        A file of :meth:`pyrecon.models.VarNet.save`; ``pyrecon train supervised-mri --model varnet`` makes one.
    """

    weights: str | None = None

    name: ClassVar[str] = "VarNet"
    role: ClassVar[str] = SUPERVISED
    fills_in: ClassVar[str] = "the network"
    needs_maps: ClassVar[bool] = False

    @property
    def knows_slices(self) -> bool:
        return True

    @cached_property
    def model(self) -> VarNet:
        """The network, loaded once."""
        return load_varnet(self.weights)

    def solve(self, kspace: Tensor, maps: Tensor | None, mask: Tensor) -> Solution[Tensor]:
        model = self.model.to(kspace.device)
        assert model.card is not None
        brightest = float(torch.linalg.vector_norm(ifft_centered(kspace * mask), dim=1).amax())
        shape = (kspace.shape[2], kspace.shape[3])
        _warn(model.card, 1 / max(brightest, 1e-30), shape)
        _warn_of_sampling(model.card, mask, shape)
        found = model.reconstruct(kspace, mask)
        return replace(found, value=found.value.to(kspace.dtype))


def _warn_of_sampling(card: Card, mask: Tensor, shape: tuple[int, int]) -> None:
    """Of masks that do not take whole lines along W, or are many times denser or sparser than those of training."""
    trained = float(card.data["acceleration"])
    full = mask.expand(-1, -1, *shape) != 0
    rate = full.numel() / max(1, int(full.sum()))
    lines = bool((full == full[..., :1]).all())
    if not lines or not trained / _FAR <= rate <= _FAR * trained:
        kind = f"{rate:.1f}-fold" + ("" if lines else ", not in whole rows")
        warnings.warn(
            f"data: sampled {kind}; the weights were trained on random rows, {trained:g}-fold: the images may show "
            "what is not there",
            stacklevel=5,
        )


def _warn(card: Card, noise: float, shape: tuple[int, int]) -> None:
    """Of data that are not like those of training; ``noise`` is that of a sample over the brightest pixel."""
    trained = float(card.data.get("noise_over_brightest", card.data.get("noise_std", noise)))
    lowest = float(card.data.get("noise_low", trained))
    if not lowest / _FAR <= noise <= _FAR * trained:
        span = f"{trained:.2g}" if lowest == trained else f"{lowest:.2g} to {trained:.2g}"
        warnings.warn(
            f"data: their noise is {noise:.2g} of the brightest pixel, the weights were trained at {span}: the "
            "images may be less good than they look",
            stacklevel=6,
        )
    if tuple(card.shape) != shape:
        size, own = (" x ".join(map(str, s)) for s in (card.shape, shape))
        warnings.warn(
            f"grid: the weights were trained on images of {size}, the scan has {own}: the images may be less good than "
            "they look",
            stacklevel=6,
        )
