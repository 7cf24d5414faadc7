"""Reconstruction models; the methods of a modality are in ``pyrecon.models.mpi`` and ``pyrecon.models.mri``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyrecon._lazy import submodules

if TYPE_CHECKING:
    from pyrecon.models.data_consistency import DataConsistency
    from pyrecon.models.deq import DEGrad, DEProx, UNetRefinement
    from pyrecon.models.deq_mpi import DEQMPI
    from pyrecon.models.generative import GenerativePrior
    from pyrecon.models.luser import LUSER
    from pyrecon.models.map_rivals import DOPAMINE, MANTIS, DeepT1, UnrolledMaps
    from pyrecon.models.pinqi import PINQI
    from pyrecon.models.supervised_mri import ImageUNet, VarNet
    from pyrecon.models.unrolled import DEQ4IP, UnrolledDnCNN

_MODULES = {
    "DataConsistency": "data_consistency",
    "DeepT1": "map_rivals",
    "DEGrad": "deq",
    "DEProx": "deq",
    "DEQ4IP": "unrolled",
    "DEQMPI": "deq_mpi",
    "DOPAMINE": "map_rivals",
    "GenerativePrior": "generative",
    "ImageUNet": "supervised_mri",
    "LUSER": "luser",
    "MANTIS": "map_rivals",
    "PINQI": "pinqi",
    "UNetRefinement": "deq",
    "UnrolledDnCNN": "unrolled",
    "UnrolledMaps": "map_rivals",
    "VarNet": "supervised_mri",
}
__all__ = [
    "DEQ4IP",
    "DEQMPI",
    "DOPAMINE",
    "LUSER",
    "MANTIS",
    "PINQI",
    "DEGrad",
    "DEProx",
    "DataConsistency",
    "DeepT1",
    "GenerativePrior",
    "ImageUNet",
    "UNetRefinement",
    "UnrolledDnCNN",
    "UnrolledMaps",
    "VarNet",
]
_module, __dir__ = submodules(
    __name__,
    "data_consistency",
    "deq",
    "deq_mpi",
    "generative",
    "luser",
    "map_rivals",
    "method",
    "mpi",
    "mri",
    "pinqi",
    "supervised_mri",
    "unrolled",
    "weights",
    *_MODULES,
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return _module(name)
