"""Fast operators that drop into torch code: each one has a plain-torch reference that defines it."""

from pyrecon.ops.anderson import anderson_mix
from pyrecon.ops.consistency import project_l2_ball, sm_consistency
from pyrecon.ops.deq_mpi import deq_mpi
from pyrecon.ops.kaczmarz import kaczmarz, kaczmarz_order
from pyrecon.ops.langevin import Moments, langevin_step
from pyrecon.ops.learned_consistency import learned_consistency
from pyrecon.ops.rdn import rdn
from pyrecon.ops.sense import sense_adjoint, sense_forward, sense_maps_adjoint, sense_normal
from pyrecon.ops.sine import dst1, prox_smooth_maps
from pyrecon.ops.variation import soft_threshold, tv_gap, tv_prox

__all__ = [
    "Moments",
    "anderson_mix",
    "deq_mpi",
    "dst1",
    "kaczmarz",
    "kaczmarz_order",
    "langevin_step",
    "learned_consistency",
    "project_l2_ball",
    "prox_smooth_maps",
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
