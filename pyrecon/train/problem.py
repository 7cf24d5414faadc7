"""The inverse problem that a model of any system trains on: images, physics, noise, and measurements without truth.

Three tasks, each with an operator of norm 1 (deblur: just below) and images of peak about 1: ``ct``, parallel or fan
beam of few views; ``mri``, one coil and a sampling mask; ``deblur``, colour images through a Gaussian. Every random
number is a function of (seed, stream, step), whatever ran before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data import ct_phantoms
from pyrecon.data.heads import heads, smooth_phase
from pyrecon.data.photographs import photographs
from pyrecon.io.folders import ImageFolder, Part, Values
from pyrecon.linops import Blur, Fourier, LinearOperator, Radon, Whitened, gaussian_kernel
from pyrecon.models.ct.learned import peak_of
from pyrecon.ops import FanBeam, ParallelBeam
from pyrecon.physics import mri
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, setting
from pyrecon.train.run import Drawn, Option, Training

Task = Literal["ct", "mri", "deblur"]
Kind = Literal["organs", "ellipses", "photographs", "heads", "discs", "folder"]
# The streams of random numbers: virtual noise takes those from _VIRTUAL on, masks that of their noise and _MASKS more.
_IMAGES, _NOISE, _STORE, _HELD_STORE, _VALIDATION, _TEST = range(6)
_VIRTUAL, _MASKS = 100, 10_000
_FIXED = 2**31 - 1  # the seed of what is the same in all runs: the fixed mask, and test images with their noise
_USUAL: dict[Task, tuple[Kind, float]] = {
    "ct": ("organs", 0.0),
    "mri": ("heads", 0.05),
    "deblur": ("photographs", 0.01),
}
_SMALL = 64  # pixels along an axis: images up to this size are kept for the next run of the process
# The fan of the Helsinki challenge's scanner, in sides of its image: source to axis, source to detector.
_FAN = (410.66 / 75.94, 553.74 / 75.94)


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

    task: Task = setting("mri", "--task", "The physics: ct, mri or deblur.")
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

    ``scale`` ``(B, 1, ...)`` is what a model's input is divided by: in mri the brightest pixel of ``A^H y``, so that
    raw scans of any gain fit, elsewhere 1.
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
    source
        The folder that the images are from, if any.
    """

    config: ProblemConfig
    pool: Tensor
    held_out: Tensor
    operator: LinearOperator | None = None
    source: ImageFolder | None = None
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
        images = draw(self.config, "test", 0, count, self.source).to(self.pool.device)
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

    def about(self) -> dict[str, Any]:
        """What a card says of the data: the settings that play a part in the task."""
        config = self.config
        names = {
            "ct": ("angles", "arc", "beam", "whiten"),
            "mri": ("mask", "acceleration"),
            "deblur": ("blur_size", "blur_variance"),
        }[config.task]
        facts: dict[str, Any] = {"task": config.task, "images": config.kind, "noise_std": config.noise_level}
        facts |= {name: getattr(config, name) for name in names}
        if config.task == "ct":  # what a raw scan is brought to
            batch = self.self_validation()
            facts["peak"] = float(peak_of(batch.physics, batch.y).mean())
        if config.task == "mri":  # what a raw scan can be compared by: the noise over the brightest pixel of A^H y
            facts["noise_over_brightest"] = config.noise_level / float(self.self_validation().scale.mean())
        return facts

    def _fixed(self) -> LinearOperator:
        if self.operator is None:
            raise ValueError("physics: every image has a mask of its own, give that of y")
        return self.operator

    def _measured(self, images: Tensor, seed: int, step: int, stream: int = _NOISE) -> Batch:
        physics = self.operator or self._masked(self._masks(len(images), seed, _MASKS + stream, step))
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


# --- a run -----------------------------------------------------------------------------------------------------------
class FolderTraining(Training):
    """What systems that may train on a user's images share: ``--folder``, which becomes the run's source."""

    options: ClassVar[tuple[Option, ...]] = (
        Option(
            "--folder", Path, None, "Folder of images for --images folder: fastMRI, LoDoPaB, NIfTI, NumPy, pictures."
        ),
    )

    @classmethod
    def new_source(cls, seed: int, options: Mapping[str, Any]) -> Path | None:
        folder = options.get("folder")
        return None if folder is None else Path(folder).resolve()

    @classmethod
    def kept(cls, source: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return None if source is None else ({}, {"folder": str(source)})

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path | None:
        return Path(facts["folder"]) if facts else None


class ProblemTraining(FolderTraining):
    """What systems that train on a problem share."""

    def problem(self, drawn: Drawn) -> Problem:
        return make_problem(self.config, self.folder, drawn, self.source)


def make_problem(
    config: ProblemConfig, folder: Path, drawn: Drawn = lambda done, total: None, source: Path | None = None
) -> Problem:
    """The problem of a run: its images are drawn, or read from ``source``, and kept in the run's ``folder``."""
    if (config.kind == "folder") != (source is not None):
        said = "give --folder too" if source is None else f"give --images folder too, the images are {config.kind}"
        raise DataError(f"images: {config.images} with{'out' if source is None else ''} a folder; {said}")
    operator = operator_of(config)
    images_of = None if source is None else ImageFolder(source)
    shape = (*config.image_shape, 2) if config.task == "mri" else config.image_shape

    def part(first: int, count: int) -> NDArray[np.float32]:
        """Training images first, then those for validation."""
        train = max(0, min(count, config.pool - first))
        parts = [draw(config, "train", first, train, images_of)] if train else []
        if train < count:
            parts.append(draw(config, "validation", max(0, first - config.pool), count - train, images_of))
        whole = torch.cat(parts)
        return np.asarray((torch.view_as_real(whole) if whole.is_complex() else whole).numpy())

    images = kept_pool(folder / "pool.npy", config.pool + config.validation, shape, part, drawn, chunk=32)
    images = torch.view_as_complex(images) if config.task == "mri" else images
    return Problem(config, images[: config.pool], images[config.pool :], operator, images_of)


# --- physics ---------------------------------------------------------------------------------------------------------
def operator_of(config: ProblemConfig) -> LinearOperator | None:
    """The physics that all images share, None where each has a mask of its own; DataError for settings of none."""
    try:
        if config.task == "mri":
            mask = sampling_masks(config, 1, _FIXED)
            return Fourier(mask, config.shape) if config.fixed_mask else None
        if config.task == "deblur":
            kernel = gaussian_kernel(config.blur_size, config.blur_variance).float()
            return Blur(kernel, config.shape, channels=3)
        settings = (config.size, config.angles, config.arc, config.beam, config.whiten)
        return copy.deepcopy(_ct_operator(*settings))
    except ValueError as error:
        if config.task == "mri":
            said = f"acceleration: {config.acceleration:g} at {config.size} pixels"
        else:
            said = f"whiten: {config.size} pixels and {config.angles} views" if config.whiten else "size, angles"
        raise DataError(f"{said}: {error}") from None


@lru_cache(maxsize=4)  # a decomposition takes seconds
def _ct_operator(size: int, angles: int, arc: float, beam: str, whiten: bool) -> LinearOperator:
    operator = Radon(_geometry(size, angles, arc, beam))
    return Whitened(operator) if whiten else operator / float(operator.norm(rtol=1e-7, max_iter=1000))


def _geometry(size: int, views: int, arc: float, beam: str) -> ParallelBeam | FanBeam:
    """An image of side 1, its diagonal on the detector, a detector pixel for an image pixel."""
    angles = torch.arange(views, dtype=torch.float64) * math.radians(arc) / views
    pixel = 1 / size
    if beam == "parallel":
        return ParallelBeam(angles, (size, size), pixel_size=pixel)
    to_axis, to_detector = _FAN
    spacing = pixel * to_detector / to_axis
    half = to_detector * math.tan(math.asin(math.sqrt(0.5) / to_axis))
    n_det = 2 * math.ceil(half / spacing) + 1
    return FanBeam(angles, (size, size), n_det, spacing, to_axis, to_detector, pixel_size=pixel)


def sampling_masks(config: ProblemConfig, count: int, seed: int) -> Tensor:
    """``(count, 1, H | 1, W | 1)`` bool, the centre full: an eighth of an axis; of ``random-lines`` as in fastMRI
    .32 / acceleration of them."""
    n = config.size
    if config.mask == "random-lines":
        lines = max(1, round(0.32 * n / config.acceleration))
        return mri.random_lines(config.shape, config.acceleration, acl=lines, axis=-1, batch=count, seed=seed)
    centre = max(4, n // 8)
    if config.mask == "gaussian-lines":
        return mri.gaussian_lines(config.shape, config.acceleration, acl=centre, axis=-1, batch=count, seed=seed)
    return mri.gaussian_points(config.shape, config.acceleration, calibration=centre, batch=count, seed=seed)


# --- images ----------------------------------------------------------------------------------------------------------
def draw(config: ProblemConfig, part: Part, first: int, count: int, source: ImageFolder | None = None) -> Tensor:
    """Images as the task has them, ``(count, *image_shape)``: real for ct and deblur, complex for mri."""
    if source is not None:
        values: dict[Task, Values] = {"ct": "real", "mri": "complex", "deblur": "color"}
        return torch.from_numpy(source.read(part, first, count, config.shape, values[config.task]))
    # Test images are the same whatever the seed.
    seed = _state(_FIXED if part == "test" else config.seed, _IMAGES, _PARTS.index(part)) >> 33
    make = _drawn if config.size <= _SMALL else _drawn.__wrapped__
    return torch.from_numpy(make(config.kind, config.task, part, seed, first, count, config.size)).clone()


_PARTS: tuple[Part, ...] = ("train", "validation", "test")


@lru_cache(maxsize=64)  # chunks of 32: the second run of a process, of another model, has them at once
def _drawn(kind: Kind, task: Task, part: Part, seed: int, first: int, count: int, size: int) -> NDArray[Any]:
    shape = (size, size)
    images: NDArray[Any]
    if kind == "photographs":
        images = photographs(count, shape, color=task == "deblur", part=part, seed=seed, first=first)
    elif kind == "heads":
        images = heads(count, shape, seed=seed, first=first)
    else:
        images = getattr(ct_phantoms, kind)(count, shape, seed=seed, first=first)
    if task == "mri":
        if not np.iscomplexobj(images):
            phases = [smooth_phase(shape, seed=seed, number=first + i) for i in range(count)]
            images = images / np.maximum(images.max(axis=(1, 2), keepdims=True), 1e-6) * np.stack(phases)
        return images.astype(np.complex64)
    images = np.abs(images).astype(np.float32)
    if task == "deblur" and images.ndim == 3:
        images = np.repeat(images[:, None], 3, axis=1)
    return images


# --- random numbers --------------------------------------------------------------------------------------------------
def generator_of(seed: int, stream: int, step: int) -> torch.Generator:
    """A function of its arguments alone."""
    return torch.Generator().manual_seed(_state(seed, stream, step) >> 1)


def _state(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
