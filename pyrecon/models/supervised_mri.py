"""Networks from undersampled k-space to magnitudes, trained with ground truth: rivals of what needs no such training.

:class:`ImageUNet` is the fastMRI baseline on zero-filled images, :class:`VarNet` the end-to-end variational network
with maps of its own. Both take any unit of the data: ``f(c y) = c f(y)`` for c > 0.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from pyrecon._check import COMPLEX, FLOATING, REAL_OF, check_count, check_dtype, check_shape
from pyrecon._errors import DataError
from pyrecon.data.fourier import ifft_centered
from pyrecon.data.mri import calibration_mask
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    check_role,
    filled,
    find_weights,
    read_header,
    which_weights,
    whole_numbers,
    write_weights,
)
from pyrecon.nn.baseline_unet import BaselineUNet
from pyrecon.nn.varnet import VariationalNetwork, root_sum_of_squares
from pyrecon.solvers import Solution, Status

ROLE = "reconstruction"  # of weights, on their cards
_CLIP = 6.0  # standard deviations that the baseline's input is cut to


class SupervisedMRI(nn.Module, ABC):
    """What both share: checked data, a status per image, a file of weights.

    Attributes
    ----------
    card
        :class:`~pyrecon.models.weights.Card` of the weights, or None where they are nobody's.
    """

    system: ClassVar[str] = "supervised-mri"
    network: ClassVar[str]
    card: Card | None = None

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        self.config = config

    def forward(self, y: Tensor, mask: Tensor) -> Tensor:
        """Magnitudes ``(B, H, W)`` from k-space ``(B, C, H, W)``, complex64 or complex128 as the weights are float32 or
        float64, and a mask ``(B | 1, 1, H | 1, W | 1)``, bool or real; what it leaves out is not looked at."""
        y, mask = self._checked(y, mask)
        return self._magnitudes(torch.where(mask != 0, y, torch.zeros_like(y)), (mask != 0).to(y.real.dtype))

    @abstractmethod
    def _magnitudes(self, y: Tensor, mask: Tensor) -> Tensor:
        """The same of checked data that are zero where they were not taken, and a mask of zeros and ones."""

    @torch.no_grad()
    def reconstruct(self, y: Tensor, mask: Tensor) -> Solution[Tensor]:
        """The same with a status per image: CONVERGED, or NONFINITE and NaN. Use it in evaluation mode."""
        image = self(y, mask)
        fine = torch.isfinite(image).flatten(1).all(dim=1)
        status = torch.where(fine, int(Status.CONVERGED), int(Status.NONFINITE)).to(torch.int8)
        image = torch.where(fine.view(-1, 1, 1), image, torch.full_like(image, torch.nan))
        count = torch.zeros(len(image), dtype=torch.int32, device=image.device)
        return Solution(image, status, count, torch.zeros(len(image), dtype=image.dtype, device=image.device))

    def _checked(self, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype("y", y, COMPLEX)
        check_shape("y", y, (None, None, None, None), "(B, C, H, W)")
        kind = next(self.parameters()).dtype
        if REAL_OF[y.dtype] != kind:
            raise TypeError(f"y: dtype {y.dtype} does not fit the model's {kind}; cast one of them")
        check_dtype("mask", mask, (torch.bool, *FLOATING))
        sizes = ((len(y), 1), (1,), (y.shape[2], 1), (y.shape[3], 1))
        if mask.dim() != 4 or any(n not in allowed for n, allowed in zip(mask.shape, sizes, strict=True)):
            raise ValueError(
                f"mask: shape {tuple(mask.shape)} does not fit y {tuple(y.shape)}, expected (B | 1, 1, H | 1, W | 1)"
            )
        if mask.device != y.device:
            raise ValueError(f"mask: is on {mask.device}, but y is on {y.device}")
        return y, mask

    # --- weights ---
    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        write_weights(path, self.system, {"network": self.network} | self.config, self.state_dict(), self.card)

    @classmethod
    @abstractmethod
    def _options(cls) -> tuple[str, ...]:
        """Names of the numbers that make the same tensors."""

    @classmethod
    @abstractmethod
    def _tensors(cls, config: Mapping[str, int]) -> int:
        """How many they are, judged before a model is built."""

    @classmethod
    @abstractmethod
    def _built(cls, config: Mapping[str, int]) -> Self:
        """A model of a configuration."""

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
            known = whole_numbers(config, cls._options())
            header.expect_count(cls._tensors(known))
            with torch.device("meta"):
                model = cls._built(known)
            model.card = None if header.card is None else Card.from_dict(header.card)
        except UNUSABLE as error:
            raise header.unusable(error) from None
        return filled(model, header)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A file of :meth:`save`, or weights that come with the package by name."""
        return cls.load(find_weights(name_or_path))


class ImageUNet(SupervisedMRI):
    """The fastMRI baseline: a :class:`~pyrecon.nn.BaselineUNet` on the magnitude of the zero-filled image.

    The image, the root sum of squares of the coils', is brought to mean 0 and standard deviation 1, cut to +-6, and
    back. J. Zbontar et al., 2018. With the defaults 7,756,097 weights.

    Parameters
    ----------
    width, pools, dropout
        Of the U-Net.
    """

    network: ClassVar[str] = "unet"

    def __init__(self, width: int = 32, pools: int = 4, *, dropout: float = 0.0) -> None:
        super().__init__({"width": width, "pools": pools})
        self.unet = BaselineUNet(1, 1, width, pools, dropout=dropout)

    def _magnitudes(self, y: Tensor, mask: Tensor) -> Tensor:
        image, mean, spread = _standard(y)
        found: Tensor = self.unet(image[:, None])
        return found[:, 0] * spread + mean

    def error(self, y: Tensor, mask: Tensor, truth: Tensor) -> Tensor:
        """What it is trained on: ``mean |f(y) - truth|`` in standard deviations of each zero-filled image."""
        y, mask = self._checked(y, mask)
        image, mean, spread = _standard(torch.where(mask != 0, y, torch.zeros_like(y)))
        found: Tensor = self.unet(image[:, None])
        return (found[:, 0] - (truth - mean) / spread).abs().mean()

    @classmethod
    def _options(cls) -> tuple[str, ...]:
        return "width", "pools"

    @classmethod
    def _tensors(cls, config: Mapping[str, int]) -> int:
        return _of_unet(config["pools"])

    @classmethod
    def _built(cls, config: Mapping[str, int]) -> Self:
        return cls(**config)


class VarNet(SupervisedMRI):
    """The end-to-end variational network: coil maps from the centre of k-space, steps in k-space, root sum of squares.

    :class:`~pyrecon.nn.VariationalNetwork` with 29,936,966 weights by default, as published (A. Sriram et al., 2020).
    The centre is the largest fully sampled block about DC (:func:`pyrecon.data.mri.calibration_mask`), whatever the
    mask; where DC itself was not taken, maps come from all that was, with a warning.

    Parameters
    ----------
    cascades, width, pools, sensitivity_width, sensitivity_pools, dropout
        Of :class:`~pyrecon.nn.VariationalNetwork`.
    """

    network: ClassVar[str] = "varnet"

    def __init__(
        self,
        cascades: int = 12,
        width: int = 18,
        pools: int = 4,
        sensitivity_width: int = 8,
        sensitivity_pools: int = 4,
        *,
        dropout: float = 0.0,
    ) -> None:
        numbers = (cascades, width, pools, sensitivity_width, sensitivity_pools)
        super().__init__(dict(zip(self._options(), numbers, strict=True)))
        self.unrolled = VariationalNetwork(*numbers, dropout=dropout)

    def _magnitudes(self, y: Tensor, mask: Tensor) -> Tensor:
        centre = calibration_mask(mask, (y.shape[2], y.shape[3])).to(mask)
        empty = (centre == 0).flatten(1).all(dim=1)
        if bool(empty.any()):
            warnings.warn(
                f"mask: leaves out the centre of k-space in {int(empty.sum())} of {len(empty)} masks; the maps of "
                "VarNet come from all samples there, which it was not made for",
                stacklevel=4,
            )
            centre = torch.where(empty.view(-1, 1, 1, 1), mask, centre)
        magnitudes: Tensor = self.unrolled(y, mask, centre)
        return magnitudes

    @classmethod
    def _options(cls) -> tuple[str, ...]:
        return "cascades", "width", "pools", "sensitivity_width", "sensitivity_pools"

    @classmethod
    def _tensors(cls, config: Mapping[str, int]) -> int:
        return config["cascades"] * (_of_unet(config["pools"]) + 1) + _of_unet(config["sensitivity_pools"])

    @classmethod
    def _built(cls, config: Mapping[str, int]) -> Self:
        return cls(**config)


KINDS: dict[str, type[SupervisedMRI]] = {kind.network: kind for kind in (ImageUNet, VarNet)}


def load(path: str | Path) -> SupervisedMRI:
    """Weights of either, whichever the file holds."""
    header = read_header(path)
    network = header.config.get("network")
    if header.model != SupervisedMRI.system or network not in KINDS:
        raise DataError(f"{path}: holds weights of {header.model!r}, network {network!r}; expected {', '.join(KINDS)}")
    return KINDS[network].load(path)


def load_varnet(weights: str | Path | None) -> VarNet:
    """Weights for raw data; DataError where they are of something else, or none are given."""
    if weights is None:
        raise which_weights(SupervisedMRI.system, "mri", "pyrecon train supervised-mri --model varnet")
    model = VarNet.from_pretrained(weights)
    check_role(str(weights), model.card, ROLE, "VarNet", "mri")
    return model


def _standard(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zero-filled magnitudes in standard deviations from their mean, that mean and deviation; 1 of a constant image."""
    image = root_sum_of_squares(ifft_centered(y))
    mean, spread = image.mean(dim=(1, 2), keepdim=True), image.std(dim=(1, 2), keepdim=True)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    return ((image - mean) / spread).clamp(-_CLIP, _CLIP), mean, spread


def _of_unet(pools: int) -> int:
    """Tensors of a U-Net: two a block, one a rise, and the last weight and bias."""
    return 2 * (pools + 1) + pools + 2 * check_count("pools", pools, 1, 16) + 2
