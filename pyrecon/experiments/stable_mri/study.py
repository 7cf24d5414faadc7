"""The images and scans of the tables, the trained networks, and what every method makes of every scan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrecon import io, metrics
from pyrecon._errors import DataError
from pyrecon.data._slices import averaged, frame_of, seen
from pyrecon.data.magnitudes import draw_magnitudes
from pyrecon.experiments.ledger import Numbers
from pyrecon.experiments.search import Found, Range, search
from pyrecon.experiments.stable_mri import estimates
from pyrecon.experiments.stable_mri.intensity import IntensityFit
from pyrecon.experiments.study import Recipe, Scale, Study
from pyrecon.models.supervised_mri import SupervisedMRI, load
from pyrecon.models.weights import find_weights, shipped_weights
from pyrecon.physics.masks import named_mask
from pyrecon.train.magnitude_scans import SHOWN, Batch, ScanConfig, scanner_of
from pyrecon.train.supervised_mri import Config, SupervisedMRITraining

Coils = Literal["single", "parallel"]
Images = Literal["in", "out", "brain"]
Tuned = Literal["tv", "map"]
MASKS: dict[Coils, tuple[str, ...]] = {
    "single": ("random-3x", "cartesian-4x", "spiral-5x", "radial-6x"),
    "parallel": ("cartesian-4x", "cartesian-4x-swapped", "cartesian-4x-acl4", "radial-11x", "gaussian-8x"),
}
METHODS: dict[Coils, tuple[str, ...]] = {
    "single": ("zf", "tv", "unet", "map", "mmse"),
    "parallel": ("zf", "cg", "nlinv", "tv", "varnet", "map", "mmse"),
}
FITTED = ("map", "mmse")  # of parallel imaging also with the curve of intensities
NOISE = 0.01  # root mean square of a complex sample's noise; the brightest pixel is 1
TUNED = "cartesian-4x"  # the mask on which the one coefficient of lambda is chosen, as published
# Of that coefficient: lambda of TV over the noise of an image of peak 1, and of MAP over noise^2 / (2 T), of which 1 is
# the most probable image.
_RANGES = {"tv": Range(0.01, 3.0), "map": Range(0.01, 10.0)}
_NORMAL_90 = 1.6448536269514722
_TEST_SEED = 10**6  # of images that no training draws
_TOGETHER = 16
# Of four images: as many as the prior that ships has seen, 57,600.
_STEPS = {"unet": 14_400, "varnet": 14_400}


@dataclass(frozen=True)
class Amounts:
    """How much is computed: test and validation images, evaluations of the search of one coefficient (the same for TV
    and MAP), iterations with the maps known, of TV's joint estimate, and of MAP's that begins with it, and Langevin
    steps of every chain. With known maps 100 iterations from the zero-filled image left MAP 0.4 to 2.4 dB short."""

    test: int = 8
    validation: int = 4
    budget: int = 8
    iterations: int = 400
    joint: int = 400
    refined: int = 100
    chains: int = 16
    burn_in: int = 200
    samples: int = 100
    thinning: int = 4
    joint_burn_in: int = 20
    joint_samples: int = 50

    def steps(self, coils: Coils) -> dict[str, int]:
        """Of the posterior's chains; of parallel imaging few, as published: they begin at MAP, and its maps stay."""
        burn_in, samples = (
            (self.burn_in, self.samples) if coils == "single" else (self.joint_burn_in, self.joint_samples)
        )
        return {"chains": self.chains, "burn_in": burn_in, "samples": samples, "thinning": self.thinning}


# What a method's numbers hang on, beside the number of test images.
_CHOSEN = ("validation", "budget")
_DEPENDS: dict[str, dict[Coils, tuple[str, ...]]] = {
    "tv": {"single": (*_CHOSEN, "iterations"), "parallel": (*_CHOSEN, "joint")},
    "map": {"single": (*_CHOSEN, "iterations"), "parallel": (*_CHOSEN, "joint", "refined")},
}
_DEPENDS["mmse"] = {
    "single": (*_DEPENDS["map"]["single"], "chains", "burn_in", "samples", "thinning"),
    "parallel": (*_DEPENDS["map"]["parallel"], "chains", "joint_burn_in", "joint_samples", "thinning"),
}


@dataclass
class StableMRIStudy(Study):
    """The U-Net and the variational network are trained in the study's folder; the prior is given, or one that ships.

    Attributes
    ----------
    prior
        Weights of a :class:`pyrecon.models.GenerativePrior`, a file or a name; without any the columns MAP and MMSE
        stay empty. Images are of its size.
    brain
        A NIfTI file of a head: its slices are further images out of distribution. Nothing is trained on it.
    size
        Pixels along an axis, where no prior says.
    """

    prior: Path | str | None = None
    brain: Path | None = None
    size: int | None = None
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    training = SupervisedMRITraining

    def sizes_of(self, scale: Scale) -> Amounts:
        if scale == "quick":
            return Amounts()
        return Amounts(test=64, validation=30, budget=16, burn_in=10_000, samples=625, thinning=15)

    def source(self, recipe: Recipe) -> None:
        """The data are made of nothing but the seed."""

    @cached_property
    def recipes(self) -> Mapping[str, Recipe]:  # type: ignore[override]  # of the size of the prior
        changes: dict[str, Any] = {} if self.pixels is None else {"size": self.pixels}
        card = None if self.energy is None else self.energy.card
        if card is not None and card.data.get("images") in SHOWN:  # the same images for all
            changes["images"] = card.data["images"]
            drawn = card.training.get("config", {}).get("pool")
            changes |= {} if drawn is None else {"pool": drawn}
        return {
            name: Recipe(name, changes | {"seed": self.seed}, quick={"reconstruction": {"steps": _STEPS[name]}})
            for name in ("unet", "varnet")
        }

    @cached_property
    def pixels(self) -> int | None:
        return self.size if self.energy is None else int(self.energy.size)

    @cached_property
    def energy(self) -> Any:
        """The prior, or None."""
        from pyrecon.models.generative import GenerativePrior

        name = self.prior if self.prior is not None else next(iter(shipped_weights(GenerativePrior.system)), None)
        return None if name is None else GenerativePrior.from_pretrained(find_weights(name))

    def methods(self, coils: Coils) -> tuple[str, ...]:
        """Those that are there."""
        return tuple(name for name in METHODS[coils] if self.energy is not None or name not in FITTED)

    # --- images and scans --------------------------------------------------------------------------------------------
    def config_of(self, coils: Coils) -> ScanConfig:
        """Of the test scans: as the rival was trained, at one noise."""
        own: Config = self.config(self.recipes["unet" if coils == "single" else "varnet"])
        scans = ScanConfig(**{f.name: getattr(own, f.name) for f in fields(ScanConfig)})
        return replace(scans, seed=_TEST_SEED + self.seed, noise_low=NOISE, noise_high=NOISE)

    def kinds(self) -> tuple[Images, ...]:
        return ("in", "out") if self.brain is None else ("in", "out", "brain")

    def drawn(self, kind: Images, *, validation: bool = False) -> Tensor:
        """``(B, H, W)``, peak 1: like those of training, knees with fat suppressed, or slices of the brain."""
        count = self.amounts.validation if validation else self.amounts.test
        size, seed = self.config_of("single").size, _TEST_SEED + self.seed
        if kind == "brain" and not validation:
            return brain_slices(self._brain, count, size)
        shown = SHOWN[self.config_of("single").images] if kind == "in" else ("suppressed-knees",)
        part: Literal["validation", "test"] = "validation" if validation else "test"
        return torch.from_numpy(draw_magnitudes(size, 0, count, seed, kinds=shown, part=part))

    @property
    def _brain(self) -> Path:
        if self.brain is None:
            raise DataError("--brain: no file of a head was given")
        return self.brain

    def scans(self, coils: Coils, kind: Images, mask: str, *, validation: bool = False) -> Batch:
        """The same for all methods: coils, phase and noise drawn by the seed, a mask of its own for every image."""

        def make() -> Batch:
            config = self.config_of(coils)
            images = self.drawn(kind, validation=validation)
            seed = _TEST_SEED + self.seed + validation
            taken = named_mask(mask, config.shape, batch=len(images), seed=seed)
            return scanner_of(config, images, images).scanned(images, 2**21 + validation, taken)

        return self._once(("scans", coils, kind, mask, validation), make)  # type: ignore[no-any-return]

    # --- estimates ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def estimate(self, coils: Coils, kind: Images, mask: str, method: str, *, validation: bool = False) -> Tensor:
        """Images ``(B, H, W)`` by a method's name."""
        batch = self.scans(coils, kind, mask, validation=validation)

        def make() -> Tensor:
            match method:
                case "zf":
                    return estimates.zero_filled(batch)
                case "cg":
                    return estimates.cg_sense(batch, NOISE)
                case "nlinv":
                    return estimates.nlinv(batch, NOISE)
                case "tv":
                    return self.tv(coils, batch, self.coefficient(coils, "tv"))
                case "unet" | "varnet":
                    model = self.network(method)
                    return torch.cat([model.reconstruct(p.y, p.mask).value for p in batch.parts(_TOGETHER)])
                case "map":
                    return self._mode(coils, kind, mask, validation)[0]
                case "mmse":
                    return self.posterior(coils, kind, mask, validation=validation)[0]
            raise DataError(f"method: {method!r}, expected one of {', '.join(METHODS[coils])}")

        return self._once(("estimate", coils, kind, mask, method, validation), make)  # type: ignore[no-any-return]

    def tv(self, coils: Coils, batch: Batch, coefficient: float) -> Tensor:
        """Total variation: with the map known by FISTA, or smoothed, and the maps estimated too."""
        if coils == "single":
            return estimates.tv(batch, coefficient * NOISE, self.amounts.iterations)
        return self._joint_tv(batch, coefficient)[0]

    def _joint_tv(self, batch: Batch, coefficient: float) -> tuple[Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor]:
            unit = _peaks(estimates.zero_filled(batch))
            weight = coefficient * NOISE / unit
            return estimates.joint(batch, estimates.charbonnier(), weight, self.amounts.joint, unit)

        return self._once(("joint tv", id(batch), coefficient), make)  # type: ignore[no-any-return]  # batches are kept

    def mode(self, coils: Coils, batch: Batch, coefficient: float) -> tuple[Tensor, Tensor]:
        """MAP with the prior, and the maps.

        Joint estimates begin with those of TV: from zero-filled images, whose errors the maps take up before the prior
        sees to them, four images of lines 4x ended 2 to 11 dB lower.
        """
        # The prior knows the range of its images. Zero-filled ones have another with every mask; total variation's do
        # not.
        unit = _peaks(self.tv(coils, batch, self.coefficient(coils, "tv")))
        weight = coefficient * (NOISE / unit).square() / (2 * self.energy.temperature)
        if coils == "single":
            return estimates.map_known(batch, self.energy, weight, self.amounts.iterations, unit), batch.maps
        first = self._joint_tv(batch, self.coefficient(coils, "tv"))
        return estimates.joint(batch, self.energy, weight, self.amounts.refined, unit, first)

    def _mode(self, coils: Coils, kind: Images, mask: str, validation: bool = False) -> tuple[Tensor, Tensor]:
        batch = self.scans(coils, kind, mask, validation=validation)
        return self._once(  # type: ignore[no-any-return]
            ("map", coils, kind, mask, validation), lambda: self.mode(coils, batch, self.coefficient(coils, "map"))
        )

    def posterior(self, coils: Coils, kind: Images, mask: str, *, validation: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, from MAP on; of parallel imaging with the maps that came with it."""
        batch, amounts = self.scans(coils, kind, mask, validation=validation), self.amounts

        def make() -> tuple[Tensor, Tensor]:
            start, maps = self._mode(coils, kind, mask, validation)
            return estimates.posterior(
                batch, self.energy, maps, start, NOISE, _peaks(start), **amounts.steps(coils), seed=self.seed
            )

        return self._once(("posterior", coils, kind, mask, validation), make)  # type: ignore[no-any-return]

    def network(self, name: str) -> SupervisedMRI:
        """After training it if need be."""
        return self._once(("network", name), lambda: load(self.weights(name)))  # type: ignore[no-any-return]

    # --- what is chosen on validation images -------------------------------------------------------------------------
    def coefficient(self, coils: Coils, method: Tuned) -> float:
        """lambda over what the noise says, the best mean PSNR on validation images at 4-fold lines with 8 % in the
        centre; the same for all masks and images. TV and MAP are given the same evaluations."""
        return self.choice(coils, method)["coefficient"][0]

    def choice(self, coils: Coils, method: Tuned) -> Numbers:
        """``"coefficient"`` and its ``"psnr"``, all that were ``"tried"`` with their ``"tried psnr"``, and whether it
        lies ``"at edge"`` of the range."""

        def compute() -> Numbers:
            batch = self.scans(coils, "in", TUNED, validation=True)
            run = self.tv if method == "tv" else lambda *given: self.mode(*given)[0]

            def score(settings: dict[str, Any]) -> float:
                self.progress(f"{method}, {coils}: choosing lambda", 0, 1)
                return float(metrics.psnr(run(coils, batch, settings["coefficient"]), batch.images).mean())

            found: Found = search({"coefficient": _RANGES[method]}, score, budget=self.amounts.budget, seed=self.seed)
            tried = [(settings["coefficient"], value) for settings, value in found.tried]
            return {
                "psnr": [found.score], "coefficient": [found.settings["coefficient"]],
                "tried": [c for c, _ in tried], "tried psnr": [value for _, value in tried],
                "at edge": [float(bool(found.at_edge))],
            }  # fmt: skip

        return self._written(f"lambda {coils} {method}", coils, method, 1, compute)

    def curve(self, coils: Coils, kind: Images, method: str) -> IntensityFit:
        """Of a method's intensities on validation images, those out of distribution where the test images are, too."""
        kind = "in" if kind == "in" else "out"

        def make() -> IntensityFit:
            found = self.estimate(coils, kind, TUNED, method, validation=True)
            return IntensityFit.of(found, self.scans(coils, kind, TUNED, validation=True).images)

        return self._once(("curve", coils, kind, method), make)  # type: ignore[no-any-return]

    # --- numbers -----------------------------------------------------------------------------------------------------
    def numbers(self, coils: Coils, kind: Images, mask: str, method: str) -> Numbers:
        """``"psnr"``, ``"nmse"``, ``"ssim"`` of every test image; of MAP and MMSE of parallel imaging also after the
        curve of intensities, ``"fitted psnr"`` and so on; of MMSE the correlation of deviation and error,
        ``"correlation"``, and of one coil how often the interval of 90 % of a normal number of that deviation holds the
        truth, ``"coverage"``: of several it does not know what the maps leave open."""

        def compute() -> Numbers:
            self.progress(f"{coils}, {kind}, {mask}: {method}", 0, 1)
            truth = self.scans(coils, kind, mask).images
            images = self.estimate(coils, kind, mask, method)
            found = scores(images, truth)
            if coils == "parallel" and method in FITTED:
                fitted = scores(self.curve(coils, kind, method)(images), truth)
                found |= {f"fitted {name}": values for name, values in fitted.items()}
            if method == "mmse":
                spread = self.posterior(coils, kind, mask)[1]
                error = (images - truth).abs()
                found["correlation"] = correlations(error, spread).tolist()
                if coils == "single":
                    found["coverage"] = (error <= _NORMAL_90 * spread).double().mean(dim=(1, 2)).tolist()
            return found

        return self._written(f"{coils} {kind} {mask} {method}", coils, method, self.amounts.test, compute)

    def _written(self, name: str, coils: Coils, method: str, images: int, compute: Callable[[], Numbers]) -> Numbers:
        configs: dict[str, Any] = {"scans": self.config_of(coils)}
        if method in ("unet", "varnet"):
            configs |= self.settings(method)
        depends = ("test", *_DEPENDS.get(method, {}).get(coils, ()))
        evaluation: dict[str, Any] = {"amounts": {key: getattr(self.amounts, key) for key in depends}}
        if method in FITTED:
            state = self.energy.state_dict()
            digest = hashlib.sha256()
            for key in sorted(state):
                digest.update(key.encode() + state[key].detach().cpu().contiguous().numpy().tobytes())
            evaluation["prior"] = digest.hexdigest()[:16]
        return self.ledger.numbers(name, configs, images, compute, evaluation)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def scores(images: Tensor, truth: Tensor) -> Numbers:
    """Of every image, as fastMRI has them: the peak, and SSIM's range, are the reference's maximum. NaN images have the
    worst of each: 0 dB, 1 and 0."""
    fine = torch.isfinite(images).flatten(1).all(dim=1)
    known = torch.where(fine.view(-1, 1, 1), images, torch.zeros_like(images))
    found = {"psnr": metrics.psnr(known, truth), "nmse": metrics.nmse(known, truth), "ssim": metrics.ssim(known, truth)}
    worst = {"psnr": 0.0, "nmse": 1.0, "ssim": 0.0}
    return {name: torch.where(fine, values, worst[name]).tolist() for name, values in found.items()}


def correlations(error: Tensor, spread: Tensor) -> Tensor:
    """Pearson's, of the pixels of each image ``(B, H, W)``; 0 where one is constant."""
    a, b = (v.flatten(1).double() - v.flatten(1).double().mean(dim=1, keepdim=True) for v in (error, spread))
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 0, (a * b).sum(dim=1) / norm.clamp(min=1e-300), 0.0)


def brain_slices(path: Path, count: int, size: int) -> Tensor:
    """Axial slices from the middle third of a head in a NIfTI file, ``(count, size, size)``, each of peak 1."""
    volume = np.abs(np.asarray(io.read_result(path).image, np.float64)).reshape(
        -1, *io.read_result(path).image.shape[-2:]
    )
    if not np.isfinite(volume).all() or not volume.any():
        raise DataError(f"{path}: holds no finite image that is not zero")
    third = len(volume) // 3
    chosen = volume[np.linspace(third, 2 * third, count).round().astype(int)]
    frame = frame_of((chosen > 0.05 * chosen.max()).any(axis=0), (size, size))
    images = averaged(seen(chosen, frame), (size, size))
    peaks = images.max(axis=(1, 2), keepdims=True)
    return torch.from_numpy((images / np.where(peaks > 0, peaks, 1)).astype(np.float32))


def _peaks(images: Tensor) -> Tensor:
    """``(B,)``; 1 of an empty image."""
    peak = images.abs().flatten(1).amax(dim=1)
    return torch.where(peak > 0, peak, torch.ones_like(peak))
