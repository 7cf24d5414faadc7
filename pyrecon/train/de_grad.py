"""``pyrecon train de-grad``: the gradient model, by default for CT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyrecon.train.config import setting
from pyrecon.train.equilibrium import Config as Shared
from pyrecon.train.equilibrium import EquilibriumTraining


@dataclass(frozen=True)
class Config(Shared):
    """As that of DE-Prox, of another task and step."""

    task: Literal["ct", "mri", "deblur"] = setting("ct", "--task", "The physics: ct, mri or deblur.")
    form: Literal["prox", "grad"] = setting("grad", "", "The step of the equilibrium.")


class DEGradTraining(EquilibriumTraining):
    """DE-Grad, its unrolled twin, a U-Net or a denoiser, with ground truth or from measurements alone."""

    name = "de-grad"
    settings = Config
