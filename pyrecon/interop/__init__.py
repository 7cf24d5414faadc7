"""pyrecon beside other packages: arrays of NumPy, CuPy and anyone who speaks DLPack; operators of deepinv and mrpro."""

from pyrecon.interop.arrays import as_tensor, on_arrays
from pyrecon.interop.operators import from_deepinv, from_mrpro, to_deepinv, to_mrpro

__all__ = ["as_tensor", "from_deepinv", "from_mrpro", "on_arrays", "to_deepinv", "to_mrpro"]
