"""Fast operators that drop into torch code: each one has a plain-torch reference that defines it."""

from pyrecon.ops._anderson import anderson_mix
from pyrecon.ops._charbonnier import charbonnier
from pyrecon.ops._consistency import project_l2_ball, sm_consistency
from pyrecon.ops._custom import CustomSignal, inversion_recovery
from pyrecon.ops._fbp import fbp
from pyrecon.ops._joint import joint_coils
from pyrecon.ops._kaczmarz import kaczmarz
from pyrecon.ops._kaczmarz_order import kaczmarz_order
from pyrecon.ops._langevin import Moments, langevin_step
from pyrecon.ops._learned_consistency import learned_consistency
from pyrecon.ops._radon import radon, radon_adjoint
from pyrecon.ops._radon_geometry import Beam, FanBeam, ParallelBeam, ViewBeam
from pyrecon.ops._rdn import rdn
from pyrecon.ops._sense import sense_adjoint, sense_forward, sense_maps_adjoint, sense_normal
from pyrecon.ops._signals import (
    EchoDecay,
    InversionRecovery,
    LookLocker,
    SaturationRecovery,
    SignalModel,
    SpoiledGradientEcho,
)
from pyrecon.ops._sine import dst1, prox_smooth_maps
from pyrecon.ops._soft_threshold import soft_threshold
from pyrecon.ops._spin_echo import MultiSpinEcho
from pyrecon.ops._variation import tv_gap, tv_prox
from pyrecon.ops._voxel_fit import VoxelFit
from pyrecon.ops._voxels import fit_voxels

__all__ = [
    "Beam",
    "CustomSignal",
    "EchoDecay",
    "FanBeam",
    "InversionRecovery",
    "LookLocker",
    "Moments",
    "MultiSpinEcho",
    "ParallelBeam",
    "SaturationRecovery",
    "SignalModel",
    "SpoiledGradientEcho",
    "ViewBeam",
    "VoxelFit",
    "anderson_mix",
    "charbonnier",
    "dst1",
    "fbp",
    "fit_voxels",
    "inversion_recovery",
    "joint_coils",
    "kaczmarz",
    "kaczmarz_order",
    "langevin_step",
    "learned_consistency",
    "project_l2_ball",
    "prox_smooth_maps",
    "radon",
    "radon_adjoint",
    "rdn",
    "sense_adjoint",
    "sense_forward",
    "sense_maps_adjoint",
    "sense_normal",
    "sm_consistency",
    "soft_threshold",
    "tv_gap",
    "tv_prox",
]
