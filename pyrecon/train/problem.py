"""The inverse problem that a model of any system trains on: images, physics, noise, and measurements without truth.

Three tasks, each with an operator of norm 1 and images of peak about 1: ``ct``, parallel or fan beam of few views;
``mri``, one coil and a sampling mask; ``deblur``, colour images through a Gaussian. Every random number is a function of
(seed, stream, step), whatever ran before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data import ct_phantoms
from pyrecon.data.photographs import Part, photographs
from pyrecon.linops import Blur, Fourier, LinearOperator, SystemMatrix, Whitened, gaussian_kernel
from pyrecon.physics import mri
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, setting
from pyrecon.train.run import Drawn

Kind = Literal["organs", "ellipses", "photographs", "heads", "discs", "folder"]
# The streams of random numbers; virtual noise takes those from _VIRTUAL on.
_IMAGES, _NOISE, _MASKS, _STORE, _HELD_STORE, _VALIDATION, _TEST, _VIRTUAL = range(8)
_FIXED = 2**31 - 1  # the seed of what is the same in all runs: the fixed mask, and test images with their noise
_USUAL: dict[str, tuple[Kind, float]] = {"ct": ("organs", 0.0), "mri": ("heads", 0.05), "deblur": ("photographs", 0.01)}


@dataclass(frozen=True)
class ProblemConfig(RunConfig):
    """The settings of a problem; those of another task have no effect.

    Attributes
    ----------
    task
        ``"ct"``, ``"mri"`` or ``"deblur"``.
    size
        Images of ``size x size`` pixels.
    images
        What they show; ``"auto"``: organs, heads or photographs by the task. ``"folder"``: files of the user's.
    pool, validation
        Images drawn for the run.
    noise_std
        Standard deviation of the noise of a sample of y, the operator having norm 1 and images peak 1: of a real one,
        or of a complex one with its two parts together. None is the task's: 0, 0.05 and 0.01.
    angles, arc, beam
        ct: views evenly over ``arc`` degrees, the last one a step before its end.
    whiten
        ct: data in the coordinates of the operator's singular vectors, :class:`~pyrecon.linops.Whitened`.
    mask, acceleration, fixed_mask
        mri: the sampling and its net acceleration; one mask for all images in all runs, or another for every image.
    blur_size, blur_variance
        deblur: the Gaussian's window in pixels and its variance in pixels squared.
    """

    task: Literal["ct", "mri", "deblur"] = setting("mri", "--task", "The physics: ct, mri or deblur.")
    size: int = setting(48, "--size", "Pixels along an axis.", least=8, most=1024)
    images: Literal["auto", "organs", "ellipses", "photographs", "heads", "discs", "folder"] = setting(
        "auto", "--images", "What the images show; auto is by the task."
    )
    pool: int = setting(512, "--pool", "Training images.", least=1)
    validation: int = setting(32, "--validation", "Validation images.", least=1)
    noise_std: float | None = setting(None, "--noise", "Of a sample of y, for images of peak 1.", least=0, most=1)
    angles: int = setting(16, "--angles", "ct: views.", least=1, most=10_000)
    arc: float = setting(180.0, "", "ct: degrees covered.", above=0, most=360)
    beam: Literal["parallel", "fan"] = setting("parallel", "", "ct: parallel, or fan as in the Helsinki challenge.")
    whiten: bool = setting(True, "", "ct: A+ = A^T by a dense decomposition.")
    mask: Literal["gaussian-points", "gaussian-lines", "random-lines"] = setting(
        "gaussian-points", "", "mri: sampling."
    )
    acceleration: float = setting(8.0, "--acceleration", "mri: k-space samples per one taken.", least=1, most=64)
    fixed_mask: bool = setting(False, "", "mri: one mask for all images.")
    blur_size: int = setting(9, "", "deblur: pixels of the kernel along an axis.", least=1, most=255)
    blur_variance: float = setting(5.0, "", "deblur: of the Gaussian, pixels squared.", above=0, most=1e6)

    @property
    def kind(self) -> Kind:
        return _USUAL[self.task][0] if self.images == "auto" else self.images

    @property
    def noise_level(self) -> float:
        return _USUAL[self.task][1] if self.noise_std is None else self.noise_std

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: ``(H, W)``, for deblur ``(3, H, W)``."""
        return (3, *self.shape) if self.task == "deblur" else self.shape


@dataclass
class Batch:
    """Measurements ``y = physics(images) + noise``; ``images`` is None where nobody may know them.

    ``scale`` ``(B, 1, ...)`` is what a model's input is divided by: in mri the brightest pixel of ``A^H y``, so that raw
    scans of any gain fit, elsewhere 1.
    """

    images: Tensor | None
    y: Tensor
    physics: LinearOperator
    scale: Tensor

    def scaled(self) -> Batch:
        """Images and y over ``scale``; the noise's standard deviation is divided by it too."""
        scale = self.scale.reshape(-1, *[1] * (self.y.dim() - 1))
        return replace(self, images=None if self.images is None else self.images / self.scale, y=self.y / scale)


@dataclass
class Problem:
    """Images and what a scanner makes of them.

    Attributes
    ----------
    pool, held_out
        ct: real ``(P, H, W)``; mri: complex ``(P, H, W)``; deblur: real ``(P, 3, H, W)``.
    operator
        The physics, None in mri with a mask for every image.
    """

    config: ProblemConfig
    pool: Tensor
    held_out: Tensor
    operator: LinearOperator | None = None
    _stores: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Problem:
        stores = {
            key: (y.to(device), None if masks is None else masks.to(device)) for key, (y, masks) in self._stores.items()
        }
        operator = None if self.operator is None else copy.deepcopy(self.operator).to(device)
        return replace(
            self, pool=self.pool.to(device), held_out=self.held_out.to(device), operator=operator, _stores=stores
        )

    # --- with truth --------------------------------------------------------------------------------------------------
    def batch(self, step: int, count: int) -> Batch:
        """Random images of the pool, measured anew."""
        return self._measured(self.pool[self._chosen(len(self.pool), step, count)], self.config.seed, step)

    def validation(self) -> Batch:
        """The held-out images, with the same masks and noise at all times."""
        return self._measured(self.held_out, self.config.seed, 0, _VALIDATION)

    def test(self, count: int) -> Batch:
        """Images that no run trains or selects weights on, with their noise; the same ones for every seed."""
        images = as_task(self.config, draw(self.config, "test", 0, count)).to(self.pool.device)
        return self._measured(images, _FIXED, 0, _TEST)

    # --- without truth -----------------------------------------------------------------------------------------------
    def measurements(self, step: int, count: int) -> Batch:
        """Random ones of the pool's measurements, each made once; ``images`` is None."""
        y, masks = self._store(_STORE)
        chosen = self._chosen(len(y), step, count)
        return self._unknown(y[chosen], None if masks is None else masks[chosen])

    def self_validation(self) -> Batch:
        """The held-out images' measurements, each made once; ``images`` is None."""
        return self._unknown(*self._store(_HELD_STORE))

    def blind(self) -> Problem:
        """The measurements, and NaN in place of all images: what self-supervised training takes."""
        stores = {which: self._store(which) for which in (_STORE, _HELD_STORE)}
        pool, held_out = (torch.full_like(images, torch.nan) for images in (self.pool, self.held_out))
        return replace(self, pool=pool, held_out=held_out, _stores=stores)

    def noise(self, y: Tensor, step: int, purpose: int = 0, physics: LinearOperator | None = None) -> Tensor:
        """Noise as in y, ``(B, ...)`` of y's shape: other numbers for every step and ``purpose``.

        Where masks differ, ``physics`` is that of y: nothing is measured elsewhere, and so is no noise.
        """
        return self._noise(y, physics or self._fixed(), self.config.seed, step, _VIRTUAL + purpose)

    def _fixed(self) -> LinearOperator:
        if self.operator is None:
            raise ValueError("physics: every image has a mask of its own, give that of y")
        return self.operator

    def _measured(self, images: Tensor, seed: int, step: int, stream: int = _NOISE) -> Batch:
        physics = self.operator or self._masked(self._masks(len(images), seed, stream + _MASKS * 100, step))
        clean = physics(images)
        y = clean + self._noise(clean, physics, seed, step, stream)
        return Batch(images, y, physics, self._scale(y, physics))

    def _noise(self, y: Tensor, physics: LinearOperator, seed: int, step: int, stream: int) -> Tensor:
        level, generator = self.config.noise_level, generator_of(seed, stream, step)
        if not level:
            return torch.zeros_like(y)
        if isinstance(physics, Whitened):
            return physics.transform(level * torch.randn(len(y), *physics.data_shape, generator=generator).to(y.device))
        white = level * torch.randn(y.shape, dtype=y.dtype, generator=generator).to(y.device)
        return white * physics.mask[:, 0] if isinstance(physics, Fourier) else white

    def _scale(self, y: Tensor, physics: LinearOperator) -> Tensor:
        if self.config.task == "mri":
            return physics.adjoint(y).abs().amax(dim=(1, 2), keepdim=True)
        return y.new_ones(len(y), *[1] * len(self.config.image_shape))

    def _store(self, which: int) -> tuple[Tensor, Tensor | None]:
        """Every image measured once, with masks ``(P, 1, H | 1, W | 1)`` where they differ."""
        if which not in self._stores:
            images, y, masks = self.pool if which == _STORE else self.held_out, [], []
            for i in range(len(images)):
                batch = self._measured(images[i : i + 1], self.config.seed, i, which)
                y.append(batch.y)
                if self.operator is None:
                    masks.append(batch.physics.mask)
            self._stores[which] = torch.cat(y), torch.cat(masks) if masks else None  # type: ignore[arg-type]
        return self._stores[which]

    def _unknown(self, y: Tensor, masks: Tensor | None) -> Batch:
        physics = self._fixed() if masks is None else self._masked(masks)
        return Batch(None, y, physics, self._scale(y, physics))

    def _chosen(self, of: int, step: int, count: int) -> Tensor:
        chosen = torch.randint(of, (count,), generator=generator_of(self.config.seed, _IMAGES, step))
        return chosen.to(self.pool.device)

    def _masks(self, count: int, seed: int, stream: int, step: int) -> Tensor:
        return sampling_masks(self.config, count, _state(seed, stream, step) >> 33).to(self.pool.device)

    def _masked(self, masks: Tensor) -> Fourier:
        return Fourier(masks, self.config.shape)


def make_problem(config: ProblemConfig, folder: Path, drawn: Drawn = lambda done, total: None) -> Problem:
    """The problem of a run: its images are drawn, or read from ``folder``, where they are kept."""
    check_problem(config)
    operator = operator_of(config)
    shape = (*config.image_shape, 2) if config.task == "mri" else config.image_shape

    def part(first: int, count: int) -> NDArray[np.float32]:
        """Training images first, then those for validation."""
        train = max(0, min(count, config.pool - first))
        images = [draw(config, "train", first, train)] if train else []
        if train < count:
            images.append(draw(config, "validation", max(0, first - config.pool), count - train))
        whole = as_task(config, np.concatenate(images))
        return np.asarray(torch.view_as_real(whole).numpy() if whole.is_complex() else whole.numpy())

    images = kept_pool(folder / "pool.npy", config.pool + config.validation, shape, part, drawn, chunk=32)
    images = torch.view_as_complex(images) if config.task == "mri" else images
    return Problem(config, images[: config.pool], images[config.pool :], operator)


def check_problem(config: ProblemConfig) -> None:
    """DataError for settings that fit no physics, before anything is drawn."""
    if config.task == "mri":
        try:
            sampling_masks(config, 1, 0)
        except ValueError as error:
            raise DataError(f"acceleration: {config.acceleration:g} at size {config.size}: {error}") from None


# --- physics ---------------------------------------------------------------------------------------------------------
def operator_of(config: ProblemConfig) -> LinearOperator | None:
    """The physics of norm 1 that all images share; None where each has a mask of its own."""
    if config.task == "mri":
        return Fourier(sampling_masks(config, 1, _FIXED), config.shape) if config.fixed_mask else None
    if config.task == "deblur":
        kernel = gaussian_kernel(config.blur_size, config.blur_variance).float()
        return Blur(kernel, config.shape, channels=3)
    return copy.deepcopy(_ct_operator(config.size, config.angles, config.arc, config.beam, config.whiten))


@lru_cache(maxsize=4)  # the decomposition takes seconds
def _ct_operator(size: int, angles: int, arc: float, beam: str, whiten: bool) -> LinearOperator:
    operator: LinearOperator = _Projections(size, angles, arc)
    if whiten:
        return Whitened(operator)
    return operator / float(operator.norm(rtol=1e-7, max_iter=500))


class _Projections(LinearOperator):
    """A stand-in: pixels' centres projected on the detector, linear between bins, as a dense matrix."""

    def __init__(self, size: int, angles: int, arc: float) -> None:
        super().__init__()
        bins = int(np.ceil(np.sqrt(2) * size)) + 1
        y, x = np.meshgrid(*2 * [np.arange(size) - (size - 1) / 2], indexing="ij")
        matrix = torch.zeros(angles, bins, size * size)
        for a, angle in enumerate(np.deg2rad(arc) * np.arange(angles) / angles):
            s = (x * np.cos(angle) - y * np.sin(angle)).ravel() + (bins - 1) / 2
            low = np.floor(s).astype(int)
            for bin, share in ((low, 1 - (s - low)), (low + 1, s - low)):
                matrix[a, torch.from_numpy(bin), torch.arange(size * size)] += torch.from_numpy(share).float()
        self.matrix = SystemMatrix(matrix.flatten(0, 1))
        self.domain_shape, self.range_shape = (size, size), (angles, bins)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x.flatten(1)).unflatten(1, self.range_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.matrix.adjoint(y.flatten(1)).unflatten(1, self.domain_shape)


def sampling_masks(config: ProblemConfig, count: int, seed: int) -> Tensor:
    """``(count, 1, H | 1, W | 1)`` bool. The centre is full: an eighth of an axis, in ``random-lines`` .32 / acceleration
    of it as in fastMRI."""
    n = config.size
    if config.mask == "random-lines":
        lines = max(1, round(0.32 * n / config.acceleration))
        return mri.random_lines(config.shape, config.acceleration, acl=lines, axis=-1, batch=count, seed=seed)
    centre = max(4, n // 8)
    if config.mask == "gaussian-lines":
        return mri.gaussian_lines(config.shape, config.acceleration, acl=centre, axis=-1, batch=count, seed=seed)
    return mri.gaussian_points(config.shape, config.acceleration, calibration=centre, batch=count, seed=seed)


# --- images ----------------------------------------------------------------------------------------------------------
def draw(config: ProblemConfig, part: Part, first: int, count: int) -> NDArray[np.generic]:
    """Images of the configured kind: real ``(count, H, W)``, colour ``(count, 3, H, W)`` or complex ``(count, H, W)``."""
    seed = _seed(config.seed if part != "test" else _FIXED, ("train", "validation", "test").index(part))
    if config.kind == "photographs":
        return photographs(count, config.shape, color=config.task == "deblur", part=part, seed=seed, first=first)
    if config.kind == "heads":
        heads = [mri.head_phantom(config.shape, seed=seed + first + i) for i in range(count)]
        return np.asarray(torch.cat(heads).numpy())
    drawings: dict[str, Callable[..., NDArray[np.float32]]] = {
        "organs": ct_phantoms.organs,
        "ellipses": ct_phantoms.ellipses,
        "discs": ct_phantoms.discs,
    }
    return drawings[config.kind](count, config.shape, seed=seed, first=first)


def as_task(config: ProblemConfig, images: NDArray[np.generic]) -> Tensor:
    """As the task has them: magnitudes for ct and deblur, complex for mri, three channels for deblur."""
    if config.task == "mri":
        return torch.from_numpy(images.astype(np.complex64))
    magnitudes = torch.from_numpy(np.abs(images).astype(np.float32))
    if config.task == "deblur" and magnitudes.dim() == 3:
        return magnitudes[:, None].expand(-1, 3, -1, -1).contiguous()
    return magnitudes


# --- random numbers --------------------------------------------------------------------------------------------------
def generator_of(seed: int, stream: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_state(seed, stream, step) >> 1)


def _state(*words: Any) -> int:
    return int(np.random.SeedSequence(list(words)).generate_state(1, np.uint64)[0])


def _seed(seed: int, part: int) -> int:
    return _state(seed, part, 99) >> 33
