"""``pyrecon train deq-mpi``: vessels and a system matrix to weights. Configuration, stages and card.

The machinery is :mod:`pyrecon.train.run`, the data are :mod:`pyrecon.train.mpi_data`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.data.mpi import GRID, MPISystem, prepare_system
from pyrecon.implicit import Gradient, ImplicitGradient, JacobianFree, Unrolled
from pyrecon.models.deq_mpi import DEQMPI, Consistency, Role, new_card
from pyrecon.models.mpi import LEARNED
from pyrecon.nn import RDN, ExactConsistency, LearnedConsistency
from pyrecon.ops import project_l2_ball
from pyrecon.solvers import Anderson
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, Stage, setting
from pyrecon.train.mpi_data import (
    VALIDATION,
    Source,
    TrainingData,
    drawn_images,
    fine_shape,
    mean_psnr,
    starts,
)
from pyrecon.train.mpi_scanners import kept_scanners
from pyrecon.train.run import Drawn, Option, Training, train
from pyrecon.train.task import Outcome, Quality, Report, Task


# --- configuration ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Config(RunConfig):
    """A training run of DEQ-MPI.

    Attributes
    ----------
    snr_db
        SNR of the training data (DEQ-MPI Eq. 36), one value as published.
    consistency
        ``"ball"``: projection, fits any system matrix. ``"learned"``: a network over this scan's rows. ``"none"``: the
        data as they are, ``z0 = y``.
    measure
        How data are made: ``"blurred"`` with A_meas, the model reading them with ``A_meas U D`` (DEQ-MPI section IV-D);
        ``"finer"`` by the system on a grid twice as fine, the model reading them with A_meas.
    vessels
        Generated ones: ``"natural"`` as angiograms show them, or ``"plain"``
        (:meth:`~pyrecon.data.vessels.VesselStyle.plain`), from which the weights that ship have learned.
    pool, validation
        Images drawn for the run, for training and for measuring quality. Every batch takes images of the pool with
        fresh brightness, mirrored at random.
    scanners
        So many scanners at random (:func:`~pyrecon.physics.mpi.drawn_calibration`) measure the images in every other
        step, by turns, for weights that travel: objects lie on a grid twice as fine and are read with a noisy
        calibration, its noise taken out. Not with learned consistency, which belongs to the rows of one scan.
    layers
        Convolutions per block of the RDN: 4 as released, 12 as printed.
    dims
        Of the learned consistency's kernels: 1 over the frequencies of a field-free line's angles; 2 over (channel,
        frequency) for a scanner with several receive channels.
    consistency_start
        ``"projection"``: learned consistency begins as the projection onto the ball
        (:meth:`~pyrecon.nn.LearnedConsistency.become_projection`), and its own stage is left out; ``"random"`` as
        published. After 300 steps of that stage and 100 of the equilibrium at 25 dB the published way was still 6 dB
        behind the other.
    denoiser, projection, equilibrium
        The three stages: the RDN learns to denoise, the learned consistency to project onto the l2-ball, and both train
        on at the equilibrium. A stage of no steps is left out: its network starts from random weights.
    end_to_end
        In place of the equilibrium: the RDN learns to turn least-squares images into true ones.
    denoiser_noise
        sigma_1, standard deviation of the noise that the RDN learns to remove.
    projection_noise
        sigma_2 on y and sigma_3 on v, for the learned consistency; zeros train it on noise-free data.
    gradient
        How gradients pass the equilibrium: ``"implicit"`` as published, or ``"jacobian-free"``, at a fraction of the
        time. ``"unrolled"``: no equilibrium, but ``unrolled_steps`` plain steps from the start, in training and at
        inference.
    unrolled_steps
        5 as published.
    penalty
        c of :class:`~pyrecon.models.DEQMPI`, 1 as published. Without an equilibrium that 25 steps come near, the
        training is of something else than is used: at 25 dB and c = 1 an image that had gained 10.8 dB over least
        squares in 25 steps lost 1.6 dB of them by 400. Higher SNR wants more: 25 at 35 dB.
    kappa
        Of the ball, without learned consistency: :class:`~pyrecon.models.DEQMPI`'s, so 0.8 of it for the matrices of
        ``scanners``, which noise was taken out of.
    tolerance, limit, backward_limit
        Of the equilibrium and its gradient: relative change at which they end, and most iterations of either.
    memory
        Of Anderson mixing, in training and at inference.
    """

    snr_db: float = setting(25.0, "--snr", "SNR of the training data in dB.")
    consistency: Literal["ball", "learned", "none"] = setting(
        "ball", "--consistency", "ball: fits any system matrix. learned: for this scan's rows. none: z0 = y."
    )
    measure: Literal["blurred", "finer"] = setting(
        "blurred", "--measure", "blurred: A x + noise, read with A U D. finer: objects on a finer grid."
    )
    vessels: Literal["natural", "plain"] = setting(
        "natural", "--vessels", "Generated ones. plain: of even brightness, with sharp edges."
    )
    pool: int = setting(12_000, "--pool", "Training images.", least=1)
    validation: int = setting(128, "--validation", "Validation images.", least=1)
    scanners: int = setting(
        0, "--scanners", "Scanners at random beside the system matrix, for weights that travel.", least=0, most=1024
    )
    layers: int = setting(4, "", "Convolutions per block of the RDN.", least=1, most=1024)
    dims: Literal[1, 2] = setting(
        1, "--dims", "Of learned consistency: 1 for a field-free line, 2 for several channels."
    )
    consistency_start: Literal["projection", "random"] = setting(
        "projection",
        "--consistency-start",
        "Of learned consistency. random: as published, then a stage that learns to project.",
    )
    denoiser: Stage = setting(Stage(1800, halve=450), "--denoiser-steps", "Steps of the denoiser's stage.")
    projection: Stage = setting(Stage(500, halve=100), "--projection-steps", "Steps of learned consistency's stage.")
    equilibrium: Stage = setting(Stage(600, batch=16, halve=150))
    end_to_end: Stage = setting(Stage(0))
    denoiser_noise: float = setting(0.1, "", "Noise that the denoiser learns to remove.", above=0)
    projection_noise: tuple[float, float] = setting(
        (0.05, 0.02), "--projection-noise", "Noise on y and v in learned consistency's stage; 0 0: none."
    )
    gradient: Literal["implicit", "jacobian-free", "unrolled"] = setting(
        "implicit", "--gradient", "Through the equilibrium; jacobian-free is faster."
    )
    unrolled_steps: int = setting(5, "--unrolled-steps", "Steps of the unrolled model.", least=1, most=1024)
    penalty: float = setting(
        10.0, "--penalty", "Of the data's split in ADMM; 1 as published, more for high SNR.", above=0
    )
    kappa: float = setting(1.0, "--kappa", "Radius of the ball in the range of A, in units of the noise.", above=0)
    tolerance: float = setting(1e-4, "--tolerance", "Relative change at which they end.", least=0)
    limit: int = setting(40, "--limit", "Most iterations to the equilibrium.", least=1)
    backward_limit: int = setting(20, "--backward-limit", "Most iterations to its gradient.", least=1)
    memory: int = setting(5, "", "Of Anderson mixing.", least=1, most=1024)

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"end_to_end", "unrolled_steps", "consistency_start", "scanners", "vessels", "kappa"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.projection_noise) < 0:
            raise DataError(f"projection_noise: {self.projection_noise}, expected numbers from 0")
        if self.end_to_end.steps and self.equilibrium.steps:
            raise DataError("end_to_end, equilibrium: a run has steps of one of them, not of both")
        if self.scanners and self.consistency == "learned":
            raise DataError(
                f"scanners: {self.scanners} have other rows than the system matrix, and consistency 'learned' belongs "
                "to rows; use 'ball'"
            )
        if self.scanners >= self.validation:
            raise DataError(
                f"validation: {self.validation} images for {self.scanners} scanners and the system matrix, expected at "
                "least one for each"
            )

    @property
    def role(self) -> Role | None:
        """What the weights will be for: what the last stage trains; None where no stage has steps."""
        if self.end_to_end.steps:
            return "end-to-end"
        if self.equilibrium.steps:
            return "unrolled" if self.gradient == "unrolled" else "equilibrium"
        return "denoiser" if self.denoiser.steps else None

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Role = "equilibrium", **changes: Any) -> Config:
        """``"quick"``: within an hour on two cores. ``"full"``: as published, 200 epochs of 33,692 images, for a GPU.

        The publication does not say how long the two networks are trained beforehand; here 50 and 10 epochs. ``role``
        picks the stages: all for ``"equilibrium"`` and ``"unrolled"``, the first for ``"denoiser"``; for
        ``"end-to-end"`` one stage of its own, with as many steps as the others have together.
        """
        quick = cls()
        if scale == "quick":
            return cls(**(_stages_of(role, quick) | changes))
        if scale != "full":
            raise DataError(f"scale: {scale!r}, expected quick or full")
        epoch = math.ceil(33_692 / 64)
        published: dict[str, Any] = {
            "pool": 33_692,
            "validation": 512,
            "denoiser": Stage(50 * epoch, halve=8 * epoch),
            "projection": Stage(10 * epoch, halve=2 * epoch),
            "equilibrium": Stage(200 * epoch, halve=30 * epoch),
            "limit": 25,
            "backward_limit": 25,
            "validate_every": epoch,
            "save_every": epoch // 2,
        }
        return cls(**(published | _stages_of(role, cls(**published)) | changes))

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that have something to do, in order."""
        learns = self.consistency == "learned" and self.consistency_start == "random"
        return tuple(name for name in super().stages if name != "projection" or learns)


def _stages_of(role: Role, usual: Config) -> dict[str, Any]:
    none = Stage(0)
    if role == "denoiser":
        return {"projection": none, "equilibrium": none}
    if role == "end-to-end":
        steps = usual.denoiser.steps + usual.equilibrium.steps
        halve = round(usual.equilibrium.halve * steps / usual.equilibrium.steps)
        stages = dict.fromkeys(("denoiser", "projection", "equilibrium"), none)
        return stages | {"end_to_end": replace(usual.equilibrium, steps=steps, batch=usual.denoiser.batch, halve=halve)}
    return {"gradient": "unrolled"} if role == "unrolled" else {}


# --- stages ----------------------------------------------------------------------------------------------------------
class Denoiser(Task):
    """``|RDN(x + n) - x|_1``, n white of standard deviation sigma_1 (DEQ-MPI Eq. 26). Quality: pSNR."""

    name = "denoiser"

    @property
    def part(self) -> nn.Module:
        rdn: nn.Module = self.model.rdn
        return rdn

    def loss(self, step: int) -> Tensor:
        images = self.data.coarse(self.data.images(step, self.stage.batch))
        noise = self.data.config.denoiser_noise * self.data.noise(tuple(images.shape), step)
        return F.l1_loss(self.model.rdn(images + noise), images)

    def quality(self) -> dict[str, float]:
        images = self.data.coarse(torch.cat(self.data.validation_images()))
        noise = self.data.config.denoiser_noise * self.data.noise(tuple(images.shape), 2, VALIDATION)
        return {"quality": float(metrics.psnr(self.model.rdn(images + noise), images).mean())}


class Projection(Task):
    """``|LC(v, y) - proj(v, y)|_1`` for noisy y and v of the same image (Eq. 27). Quality: ``-20 log10`` of the
    relative distance between the two."""

    name = "projection"
    measure = Quality("nearness")

    @property
    def part(self) -> nn.Module:
        consistency: nn.Module = self.model.consistency
        return consistency

    def loss(self, step: int) -> Tensor:
        learned, projected = self._both(self.data.images(step, self.stage.batch), step, None)
        return F.l1_loss(learned, projected)

    def quality(self) -> dict[str, float]:
        learned, projected = self._both(self.data.validation_images()[0], 3, VALIDATION)
        distance = torch.linalg.vector_norm(learned - projected, dim=1) / torch.linalg.vector_norm(projected, dim=1)
        return {"quality": float(-20 * torch.log10(distance).mean())}

    def _both(self, images: Tensor, step: int, stream: int | None) -> tuple[Tensor, Tensor]:
        (bench,), config = self.data.benches, self.data.config  # learned consistency has one
        clean = bench.clean(images)
        noise = self.data.noise((2, *clean.shape), step, **({} if stream is None else {"stream": stream}))
        y, v = (clean + sigma * n for sigma, n in zip(config.projection_noise, noise, strict=True))
        radius = y.new_full((len(y),), bench.system.radius(config.snr_db))
        return self.model.consistency(v, y, radius), project_l2_ball(v, y, radius)


class Equilibrium(Task):
    """``|x* - x|_1`` at the fixed point (Eq. 13). Quality: pSNR after the steps of inference."""

    name = "equilibrium"

    def loss(self, step: int) -> Tensor:
        batch = self.data.measured(step, self.stage.batch)
        return F.l1_loss(self.model(batch.problem, batch.y, batch.radius), batch.images)

    def watched(self) -> dict[str, Tensor]:
        gradient = self.model.gradient
        if isinstance(gradient, ImplicitGradient) and gradient.last is not None:
            return {"gradient_residual": gradient.last.residual.mean()}
        return {}

    def quality(self) -> dict[str, float]:
        sets = self.data.validation_sets()
        found = [self.model.reconstruct(part.problem, part.y, part.radius) for part in sets]
        return {
            "quality": mean_psnr([solution.value.clamp(min=0) for solution in found], sets),
            "least_squares": mean_psnr(starts(sets), sets),
            "residual": float(torch.cat([solution.residual for solution in found]).mean()),  # change in the last step
        }


class EndToEnd(Task):
    """``|RDN(x_ls) - x|_1`` for least-squares images x_ls of noisy data (section V-A). Quality: pSNR."""

    name = "end_to_end"

    @property
    def part(self) -> nn.Module:
        rdn: nn.Module = self.model.rdn
        return rdn

    def loss(self, step: int) -> Tensor:
        batch = self.data.measured(step, self.stage.batch)
        return F.l1_loss(self.model.direct(batch.problem, batch.y), batch.images)

    def quality(self) -> dict[str, float]:
        sets = self.data.validation_sets()
        return {
            "quality": mean_psnr([self.model.direct(part.problem, part.y) for part in sets], sets),
            "least_squares": mean_psnr(starts(sets), sets),
        }


# --- the system ------------------------------------------------------------------------------------------------------
class DEQMPITraining(Training):
    """DEQ-MPI, or what it is compared with, on random vascular trees or patches of an angiogram."""

    source: Source
    config: Config

    name = "deq-mpi"
    settings = Config
    tasks = (Denoiser, Projection, Equilibrium, EndToEnd)
    models: ClassVar[Mapping[str, Role]] = {
        "deq": "equilibrium",
        "unrolled": "unrolled",
        "end-to-end": "end-to-end",
        "denoiser": "denoiser",
    }
    options = (
        Option("--system-matrix", Path, None, "MDF system matrix. Default: a simulated calibration.", also=("-s",)),
        Option("--field", float, 0.5, "Selection field of the simulated scanner, T/m.", least=0.05),
        Option("--snr-threshold", float, 5.0, "Leave out system-matrix rows with less SNR.", least=0),
        Option("--upsample", int, 1, "Refine the system matrix's grid by this factor.", least=1),
        Option("--images", Path, None, "NIfTI angiogram to cut training images from. Default: generated vessels."),
    )

    @classmethod
    def configured(cls, scale: Any, model: str, given: Mapping[str, Any]) -> Config:
        """What was given has to be of the model that is trained."""
        gradient = given.get("gradient")
        if model == "unrolled" and gradient not in (None, "unrolled"):
            raise DataError(f"--gradient: {gradient} leads through an equilibrium, --model unrolled has none")
        if model not in ("deq", "unrolled") and gradient is not None:
            raise DataError(f"--gradient: is of the equilibrium, which --model {model} does not train")
        if "unrolled_steps" in given and model != "unrolled" and gradient != "unrolled":
            raise DataError("--unrolled-steps: is for --model unrolled")
        learns = given.get("consistency") == "learned" and given.get("consistency_start") == "random"
        if not learns and (given.get("projection.steps") or "projection_noise" in given):
            raise DataError(
                "--projection-steps, --projection-noise: are for --consistency learned --consistency-start random"
            )
        config = super().configured(scale, model, given)
        assert isinstance(config, Config)
        return config

    @classmethod
    def new_source(cls, seed: int, options: Mapping[str, Any]) -> Source:
        from pyrecon import io
        from pyrecon.io import mdf
        from pyrecon.physics.mpi import Scanner

        path, factor = options["system_matrix"], options["upsample"]
        if path is None:
            calibration = Scanner(gradient=options["field"]).calibrate(GRID, seed=seed)
        else:
            if io.detect(path) != "mdf-system-matrix":
                raise DataError(f"{path}: is {io.detect(path)}, expected an MDF system matrix")
            calibration = mdf.read_system_matrix(path)
        system = prepare_system(calibration, snr_threshold=options["snr_threshold"])
        source = Source.of(system if factor == 1 else system.upsampled(factor))
        return source if options["images"] is None else source.with_images(options["images"])

    @classmethod
    def kept(cls, source: Source | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if source is None:
            raise DataError("system: a new run needs a system matrix")
        return source.kept()

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Source:
        return Source.restored(tensors, facts)

    @classmethod
    def pretrained(cls, name: str | Path) -> DEQMPI:
        return DEQMPI.from_pretrained(name)

    def data(self, drawn: Drawn) -> TrainingData:
        config, source = self.config, self.source
        if config.consistency == "learned" and source.layout is None:
            raise DataError("consistency: 'learned' needs rows of several angles or channels; use 'ball'")
        count, shape = config.pool + config.validation, fine_shape(source.shape, config)
        path = self.folder / "scanners.safetensors"
        scanners = kept_scanners(path, config, source.shape, lambda: drawn(0, count))
        images = kept_pool(self.folder / "pool.npy", count, shape, drawn_images(source, config), drawn)
        sources = [source.compact(), *scanners] if scanners else source
        return TrainingData.of(sources, config, images[: config.pool], images[config.pool :])

    def model(self, initial: Path | None) -> DEQMPI:
        config, layout = self.config, self.source.layout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            rdn = RDN(layers=config.layers)
            consistency: Consistency | None = None
            if config.consistency == "learned" and layout is not None:
                consistency = LearnedConsistency(layout, dims=config.dims)
                if config.consistency_start == "projection":
                    consistency.become_projection()
            elif config.consistency == "none":
                consistency = ExactConsistency()
        card = None
        if initial is not None:
            known = DEQMPI.load(initial)
            rdn, card = known.rdn, known.card
            if isinstance(consistency, LearnedConsistency) and isinstance(known.consistency, LearnedConsistency):
                if known.consistency.layout.digest != consistency.layout.digest:
                    raise DataError("initial: its learned consistency belongs to other rows than the system matrix has")
                consistency = known.consistency
        solver = Anderson(memory=config.memory)
        gradient: Gradient = JacobianFree()
        inference = {"memory": config.memory}
        if config.gradient == "implicit":
            gradient = ImplicitGradient(solver=solver, tol=config.tolerance, max_iter=config.backward_limit)
        elif config.gradient == "unrolled":  # inference is what was trained: as many steps, and plain ones
            gradient, inference = Unrolled(config.unrolled_steps), {"iterations": config.unrolled_steps}
        model = DEQMPI(
            rdn,
            consistency,
            penalty=config.penalty,
            kappa=1.0 if config.consistency == "learned" else config.kappa,
            solver=solver,
            tol=config.tolerance,
            max_iter=config.limit,
            gradient=gradient,
            **inference,
        )
        model.card = card
        return model

    def finish(self, model: DEQMPI, data: TrainingData, outcomes: dict[str, Outcome]) -> None:
        config, source, role = self.config, self.source, self.config.role or "equilibrium"
        facts: dict[str, Any] = {"config": asdict(config), "rows": len(source.matrix)}
        if config.scanners:
            facts["scanners"] = {str(bench.source.seed): bench.source.rows for bench in data.benches[1:]}
        if source.angiogram is not None:
            facts["images"] = source.angiogram.facts()
        facts["quality_db"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {
            name: [[step, round(quality, 2)] for step, quality in outcome.history] for name, outcome in outcomes.items()
        }
        if model.card is not None:
            facts["initial"] = model.card.training  # how the weights that the run began with were made
            role = config.role or cast(Role, model.card.role)
        model.card = new_card(config.snr_db, source.shape, data.signal_range, plain(facts), role)

    @classmethod
    def advice(cls, model: DEQMPI, path: Path) -> str:
        assert model.card is not None
        method = next(name for name, kind in LEARNED.items() if kind.role == model.card.role)
        return f"pyrecon reconstruct SCAN.mdf -s SM.mdf -m {method} --weights {path}"


def train_deq_mpi(
    folder: str | Path,
    system: MPISystem | Source | None = None,
    config: Config | None = None,
    *,
    initial: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    report: Report = lambda progress: None,
    drawn: Drawn = lambda done, total: None,
    stop: Any = lambda: False,
) -> DEQMPI:
    """Train DEQ-MPI, or finish a run that was interrupted: :func:`pyrecon.train.train` of this system.

    Parameters
    ----------
    folder, resume, device, report, drawn, stop
        As in :func:`~pyrecon.train.train`.
    system, config
        The whitened system matrix and the schedule of a new run.
    initial
        Weights of :meth:`DEQMPI.save` to begin with, in place of random ones, whatever their role: the networks of a
        run at another SNR, say, or a denoiser to train on. Stages of no steps are left out.

    Returns
    -------
    DEQMPI
        With the weights of the best validation, also in ``folder/weights.safetensors``.

    Source: DEQ-MPI (Güngör et al.), section III-B.2.
    """
    source = Source.of(system) if isinstance(system, MPISystem) else system
    model: DEQMPI = train(
        DEQMPITraining,
        folder,
        source,
        config,
        initial=initial,
        resume=resume,
        device=device,
        report=report,
        drawn=drawn,
        stop=stop,
    )
    return model
