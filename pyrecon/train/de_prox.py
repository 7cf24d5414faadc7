"""``pyrecon train de-prox``: the proximal gradient model, by default for MRI."""

from __future__ import annotations

from pyrecon.train.equilibrium import Config, EquilibriumTraining

__all__ = ["Config", "DEProxTraining"]


class DEProxTraining(EquilibriumTraining):
    """DE-Prox, its unrolled twin, a U-Net or a denoiser, with ground truth or from measurements alone."""

    name = "de-prox"
