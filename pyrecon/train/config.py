"""What a training run is, as plain values: a dataclass of settings and stages, written beside its results.

A system's configuration is a frozen dataclass that inherits :class:`RunConfig`. Every field is a setting of ``pyrecon
train NAME -p FIELD=VALUE`` (``-p STAGE.steps=200`` for one of a stage); :func:`setting` gives it bounds, a line of help
and an option of its own besides.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pyrecon._errors import DataError, MissingDependency
from pyrecon.io._files import one_line

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_LARGEST = 2**20  # bytes of a description; those of published runs have 2,000
_BATCH = 2**20
_LAST = 0.01  # share of the rate that a cosine ends with
_MOST = 2**40  # of any whole number that has no bound of its own


def setting(
    default: T,
    option: str = "",
    help: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> T:
    """A field of a configuration with its bounds, what ``--help`` says of it, and an option beside ``-p FIELD=``.

    For a stage the option sets its steps.
    """
    about = {"option": option, "help": help, "least": least, "most": most, "above": above}
    value: T = field(default=default, metadata=about)
    return value


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

    @property
    def moments(self) -> tuple[str, ...]:
        """What the optimizer keeps for every parameter, tensors of its shape."""
        return "exp_avg", "exp_avg_sq"

    def __post_init__(self) -> None:
        check_types(self, "stage: ")
        if self.batch > _BATCH:  # tensors of that size are no batch, and the memory of no machine
            raise DataError(f"stage: batch={self.batch}, expected at most {_BATCH}")
        if self.steps < 0 or self.batch < 1 or self.halve < 0 or not self.rate > 0 or not self.clip >= 0:
            raise DataError(
                f"stage: steps={self.steps}, batch={self.batch}, rate={self.rate}, halve={self.halve}, "
                f"clip={self.clip}; expected steps, halve and clip from 0, batch and rate above 0"
            )

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, as a share of ``rate``."""
        return 0.5 ** (step // self.halve) if self.halve else 1.0

    def of_length(self, steps: int) -> Self:
        """The same with other steps, in which the rate is halved as many times."""
        halve = max(1, round(self.halve * steps / self.steps)) if self.steps and self.halve else self.halve
        return replace(self, steps=steps, halve=halve)

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Of groups of parameters, ``{"params": ..., "share": s}``: at s times the rate."""
        from torch.optim import Adam

        return Adam(self._rated(groups), lr=self.rate, betas=(0.9, 0.999))

    def _rated(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        known = [dict(group) for group in groups]
        return [group | {"lr": self.rate * group.pop("share", 1.0)} for group in known]


@dataclass(frozen=True)
class Cosine(Stage):
    """One stage of AdamW: the rate rises over ``warm_up`` steps and falls along half a cosine to a hundredth of itself.

    ``decay`` of the weights, but for groups of parameters that say otherwise; ``halve`` must be 0.
    """

    warm_up: int = 0
    decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.halve or self.warm_up < 0 or not self.decay >= 0:
            raise DataError(
                f"stage: halve={self.halve}, warm_up={self.warm_up}, decay={self.decay}; expected 0, and numbers from 0"
            )

    def rate_at(self, step: int) -> float:
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        share = min(1.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * share))

    def of_length(self, steps: int) -> Self:
        """The same with other steps, of which the same share is the rise."""
        return replace(self, steps=steps, warm_up=round(self.warm_up * steps / max(1, self.steps)))

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from torch.optim import AdamW

        return AdamW(self._rated(groups), lr=self.rate, betas=(0.9, 0.999), weight_decay=self.decay)


Five = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Halved(Stage):
    """One stage of Adam or AdaBelief (0.9, 0.999) whose rate is halved at each of five steps; ``halve`` must be 0.

    Steps beyond the last of the stage halve nothing.
    """

    at: Five = (500, 2000, 3000, 5000, 7000)
    method: Literal["adam", "adabelief"] = "adam"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.halve or min(self.at) < 0:
            raise DataError(f"stage: halve={self.halve}, at={self.at}; expected 0, and steps from 0")

    @property
    def moments(self) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq" if self.method == "adam" else "exp_avg_var"

    def rate_at(self, step: int) -> float:
        return 0.5 ** sum(step >= at for at in self.at)

    def of_length(self, steps: int) -> Self:
        """The same with other steps, of which the rate is halved at the same shares."""
        a, b, c, d, e = (max(1, round(n * steps / max(1, self.steps))) for n in self.at)
        return replace(self, steps=steps, at=(a, b, c, d, e))

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.method == "adam":
            return super().optimizer(groups)
        try:
            from pytorch_optimizer import AdaBelief
        except ImportError as error:
            raise MissingDependency("pytorch-optimizer", "train", "AdaBelief") from error
        found: torch.optim.Optimizer = AdaBelief(self._rated(groups), lr=self.rate, betas=(0.9, 0.999))
        return found


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has; a system's configuration adds its own.

    Attributes
    ----------
    seed
        Of everything that is random.
    validate_every, save_every
        Steps between validations, and between checkpoints.
    """

    seed: int = setting(0, "--seed", "Seed of data, noise and weights.", least=0)
    validate_every: int = setting(100, "--validate-every", "Steps between validations.", least=1)
    save_every: int = setting(50, "--save-every", "Steps between checkpoints.", least=1)

    # Fields that runs of earlier versions did not have; they take their defaults.
    ADDED: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def stage_names(cls) -> tuple[str, ...]:
        """All stages, in order."""
        return tuple(name for name, kind in types_of(cls).items() if isinstance(kind, type) and issubclass(kind, Stage))

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that have something to do, in order."""
        return tuple(name for name in self.stage_names() if getattr(self, name).steps)

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """The schedule ``"quick"``, within an hour on two cores, or ``"full"``, as published."""
        if scale not in ("quick", "full"):
            raise DataError(f"scale: {scale!r}, expected quick or full")
        return cls(**changes)

    def with_stage(self, name: str, **changes: Any) -> Self:
        """The same with a stage's values changed; those that are None are left."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, **{name: replace(getattr(self, name), **given)})

    def changed(self, given: Mapping[str, Any]) -> Self:
        """The same with other values, those of stages by dotted names: ``{"snr_db": 35.0, "denoiser.steps": 200}``.

        A stage of other ``steps`` halves its rate as many times, unless its ``halve`` is given too.
        """
        values = {name: value for name, value in given.items() if "." not in name}
        for name in self.stage_names():
            own = {key.partition(".")[2]: v for key, v in given.items() if key.startswith(f"{name}.")}
            if not own:
                continue
            stage = values.get(name, getattr(self, name))
            if "steps" in own and "halve" not in own:
                stage = stage.of_length(own["steps"])
            try:
                values[name] = replace(stage, **own)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
        return replace(self, **values)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """From the file that a run began with; DataError where it is none."""
        try:
            size = path.stat().st_size
            if size > _LARGEST:
                raise ValueError(f"has {size} bytes, expected at most {_LARGEST}")
            value = json.loads(path.read_text())
            known = types_of(cls)
            if not isinstance(value, Mapping) or not set(known) - cls.ADDED <= set(value) <= set(known):
                raise ValueError("has other entries than a training run has")
            return cls(**{name: _restored(known[name], entry) for name, entry in value.items()})
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; expected the folder of a training run") from None
        except RecursionError:
            raise DataError(f"{path}: is not the description of a training run (nested too deeply)") from None
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise DataError(f"{path}: is not the description of a training run ({one_line(error)})") from None


def types_of(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields, in order."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.init}


def check_types(value: Any, what: str = "") -> None:
    """DataError naming a field whose value is not of its type, not finite, or outside its bounds."""
    about = {f.name: f.metadata for f in fields(value)}
    for name, kind in types_of(type(value)).items():
        found = getattr(value, name)
        if not _fits(found, kind):
            raise DataError(f"{what}{name}: {_short(found)}, expected {spelled(kind)}")
        if isinstance(found, int | float) and not isinstance(found, bool):
            limits = about[name]
            least, most, above = (limits.get(key) for key in ("least", "most", "above"))
            if least is not None and found < least:
                raise DataError(f"{what}{name}: {found}, expected at least {least}")
            if above is not None and not found > above:
                raise DataError(f"{what}{name}: {found}, expected a number above {above}")
            most = _MOST if most is None and isinstance(found, int) else most
            if most is not None and found > most:
                raise DataError(f"{what}{name}: {_short(found)}, expected at most {most}")


def spelled(kind: Any) -> str:
    """What a type takes, in words: ``"ball, learned or none"`` of a Literal."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if typing.get_origin(kind) is tuple:
        return f"{len(options)} values: {', '.join(map(spelled, options))}"
    if isinstance(kind, types.UnionType):
        return " or ".join(map(spelled, options))
    return {int: "a whole number", float: "a finite number", bool: "true or false", types.NoneType: "none"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )


def _fits(value: Any, kind: Any) -> bool:
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if isinstance(kind, types.UnionType):
        return any(_fits(value, option) for option in options)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond double precision
        return False


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**30:  # printing one of 5,000 digits is an error of its own
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _restored(kind: Any, value: Any) -> Any:
    """What JSON made of a field, as it was."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping) or set(value) != set(types_of(kind)):
            raise ValueError(f"{_short(value)} is no {kind.__name__.lower()}")
        known = types_of(kind)
        return kind(**{name: _restored(known[name], entry) for name, entry in value.items()})
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    return value
