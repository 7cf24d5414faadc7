"""One stage of a run, and what runs it knows: which part trains, the loss of a step, quality, progress, interrupts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from pyrecon._errors import Stopped
from pyrecon.train.config import Stage

Report = Callable[["Progress"], None]


class Interrupted(Stopped):
    """The run was asked to stop; its folder resumes it."""


class Diverged(Stopped):
    """A loss, a gradient or weights became NaN or infinite; nothing of the kind was saved."""


class DivergenceWarning(UserWarning):
    """Training shows early signs of divergence; its numbers are still finite."""


@dataclass(frozen=True)
class Quality:
    """What a stage's validation measures, its unit, and whether more of it is better."""

    name: str = "pSNR"
    unit: str = "dB"
    higher: bool = True

    def better(self, value: float, than: float) -> bool:
        return value > than if self.higher else value < than

    @property
    def worst(self) -> float:
        return -math.inf if self.higher else math.inf

    def text(self, value: float) -> str:
        """``"34.80 dB"``, ``"0.0123 nRMSE"``."""
        return f"{value:.2f} {self.unit}" if self.unit == "dB" else f"{value:.4g} {self.unit or self.name}"


@dataclass(frozen=True)
class Progress:
    """Where a run is: after ``step`` of ``steps`` of a stage. ``quality`` is the last validation's; NaN before."""

    stage: str
    step: int
    steps: int
    loss: float
    quality: float
    measure: Quality = Quality()


@dataclass(frozen=True)
class Outcome:
    """What a stage came to: the best quality, and that of every validation by its step."""

    quality: float
    history: list[tuple[int, float]]
    measure: Quality = Quality()


class Task(ABC):
    """One stage of a system: which part trains, its loss at a step, and its quality on validation data.

    Whatever is random in a step must be a function of the seed and the step: that, and :meth:`state`, is what makes a
    resumed run repeat the interrupted one bit by bit.
    """

    name: ClassVar[str]
    measure: Quality = Quality()

    def __init__(self, model: Any, data: Any, stage: Stage) -> None:
        self.model, self.data, self.stage = model, data, stage

    @property
    def part(self) -> nn.Module:
        """What is trained."""
        part: nn.Module = self.model
        return part

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Its parameters, as :meth:`~pyrecon.train.config.Stage.optimizer` takes them."""
        return [{"params": list(self.part.parameters())}]

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """Of a batch of ``stage.batch`` that is a function of the step."""

    @abstractmethod
    def quality(self) -> dict[str, float]:
        """Values to log; ``"quality"``, in the unit of ``measure``, decides which weights are best."""

    def watched(self) -> dict[str, Tensor]:
        """More to log after every step."""
        return {}

    # What a task carries from step to step beside the model, such as the states of samplers.
    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps with the model."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave; ValueError or TypeError where it is not of this run."""
        if state:
            raise ValueError(f"holds {', '.join(map(str, list(state)[:4]))}, of which {self.name} knows nothing")

    def saved(self) -> None:  # noqa: B027  # most tasks keep nothing outside of checkpoints
        """The checkpoint with the present :meth:`state` has been written."""


@dataclass
class Context:
    """What a run tells and asks: ``report`` after every step, ``stop`` whether to end, on which ``device``."""

    device: str = "cpu"
    report: Report = lambda progress: None
    stop: Callable[[], bool] = lambda: False
    hold: Callable[[], None] = field(default=lambda: None)
