"""Linear operators: ``A(x)``, ``A.H(y)``, ``A.gram(x)``, ``A.pinv(y)``, and their algebra."""

from pyrecon.linops._base import Identity, LinearOperator, Stack
from pyrecon.linops.blur import Blur, disk_kernel, gaussian_kernel, motion_kernel
from pyrecon.linops.fourier import Fourier
from pyrecon.linops.gradient import Gradient
from pyrecon.linops.noncartesian import NonCartesianSense, density_weights
from pyrecon.linops.radon import Radon
from pyrecon.linops.sense import Sense, Sense3D, SoftSense
from pyrecon.linops.sharded import ShardedSystemMatrix
from pyrecon.linops.system_matrix import SystemMatrix
from pyrecon.linops.wavelet import Wavelet
from pyrecon.linops.whitened import Whitened

__all__ = [
    "Blur",
    "Fourier",
    "Gradient",
    "Identity",
    "LinearOperator",
    "NonCartesianSense",
    "Radon",
    "Sense",
    "Sense3D",
    "ShardedSystemMatrix",
    "SoftSense",
    "Stack",
    "SystemMatrix",
    "Wavelet",
    "Whitened",
    "density_weights",
    "disk_kernel",
    "gaussian_kernel",
    "motion_kernel",
]
