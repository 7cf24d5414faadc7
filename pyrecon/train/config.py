"""What a training run of DEQ-MPI is, as plain values: written beside its results, read back to resume it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pyrecon._errors import DataError
from pyrecon.models.deq_mpi import Role


@dataclass(frozen=True)
class Stage:
    """One stage: ``steps`` of Adam (0.9, 0.999) on batches of ``batch`` images, the rate halved every ``halve`` steps.

    ``halve`` 0 keeps the rate; ``clip`` bounds the norm of the gradient, 0 does not.
    """

    steps: int
    batch: int = 64
    rate: float = 1e-3
    halve: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.halve < 0 or not self.rate > 0 or not self.clip >= 0:
            raise DataError(
                f"stage: steps={self.steps}, batch={self.batch}, rate={self.rate}, halve={self.halve}, "
                f"clip={self.clip}; expected steps, halve and clip from 0, batch and rate above 0"
            )

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, as a share of ``rate``."""
        return 0.5 ** (step // self.halve) if self.halve else 1.0


@dataclass(frozen=True)
class Config:
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
    pool, validation
        Images drawn for the run, for training and for measuring quality. Every batch takes images of the pool with
        fresh brightness, mirrored at random.
    seed
        Of images, noise and weights.
    layers
        Convolutions per block of the RDN: 4 as released, 12 as printed.
    dims
        Of the learned consistency's kernels: 1 over the frequencies of a field-free line's angles; 2 over (channel,
        frequency) for a scanner with several receive channels.
    consistency_start
        ``"projection"``: the learned consistency begins as the projection onto the ball
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
    tolerance, limit, backward_limit
        Of the equilibrium and its gradient: relative change at which they end, and most iterations of either.
    memory
        Of Anderson mixing, in training and at inference.
    validate_every, save_every
        Steps between validations, and between checkpoints.
    """

    snr_db: float = 25.0
    consistency: Literal["ball", "learned", "none"] = "ball"
    measure: Literal["blurred", "finer"] = "blurred"
    pool: int = 12_000
    validation: int = 128
    seed: int = 0
    layers: int = 4
    dims: Literal[1, 2] = 1
    consistency_start: Literal["projection", "random"] = "projection"
    denoiser: Stage = field(default_factory=lambda: Stage(1800, halve=450))
    projection: Stage = field(default_factory=lambda: Stage(500, halve=100))
    equilibrium: Stage = field(default_factory=lambda: Stage(600, batch=16, halve=150))
    end_to_end: Stage = field(default_factory=lambda: Stage(0))
    denoiser_noise: float = 0.1
    projection_noise: tuple[float, float] = (0.05, 0.02)
    gradient: Literal["implicit", "jacobian-free", "unrolled"] = "implicit"
    unrolled_steps: int = 5
    penalty: float = 10.0
    tolerance: float = 1e-4
    limit: int = 40
    backward_limit: int = 20
    memory: int = 5
    validate_every: int = 100
    save_every: int = 50

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise DataError(f"{name}: {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in (
            "pool",
            "validation",
            "layers",
            "limit",
            "backward_limit",
            "memory",
            "unrolled_steps",
            "validate_every",
            "save_every",
        ):
            if getattr(self, name) < 1:
                raise DataError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.dims not in (1, 2):
            raise DataError(f"dims: {self.dims}, expected 1 or 2")
        if not math.isfinite(self.snr_db):
            raise DataError(f"snr_db: {self.snr_db} is no SNR")
        if self.seed < 0:
            raise DataError(f"seed: {self.seed}, expected a number from 0")
        if not (self.denoiser_noise > 0 and min(self.projection_noise) >= 0 and self.tolerance >= 0):
            raise DataError("denoiser_noise: expected a value above 0; projection_noise, tolerance from 0")
        if not 0 < self.penalty < math.inf:
            raise DataError(f"penalty: {self.penalty}, expected a number above 0")
        if self.end_to_end.steps and self.equilibrium.steps:
            raise DataError("end_to_end, equilibrium: a run has steps of one of them, not of both")

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
        return tuple(name for name in STAGES if getattr(self, name).steps and (name != "projection" or learns))

    def with_stage(self, name: str, **changes: Any) -> Config:
        """The same with a stage's values changed; those that are None are left."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, **{name: replace(getattr(self, name), **given)})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Config:
        """From the file that a run began with; DataError where it is none."""
        try:
            value = json.loads(path.read_text())
            known = {f.name for f in fields(cls)}
            if not isinstance(value, Mapping) or not known - _ADDED <= set(value) <= known:
                raise ValueError("has other entries than a training run has")
            stages = {name: Stage(**value[name]) for name in STAGES if name in value}
            return cls(**(dict(value) | stages | {"projection_noise": tuple(value["projection_noise"])}))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; expected the folder of a training run") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: is not the description of a training run ({error})") from None


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


STAGES = ("denoiser", "projection", "equilibrium", "end_to_end")
# Absent from the runs of earlier versions, which had no such stage.
_ADDED = {"end_to_end", "unrolled_steps", "consistency_start"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "consistency": ("ball", "learned", "none"),
    "consistency_start": ("projection", "random"),
    "measure": ("blurred", "finer"),
    "gradient": ("implicit", "jacobian-free", "unrolled"),
}
