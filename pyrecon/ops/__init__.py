"""Fast operators that drop into torch code: each one has a plain-torch reference that defines it."""

from pyrecon.ops.consistency import project_l2_ball

__all__ = ["project_l2_ball"]
