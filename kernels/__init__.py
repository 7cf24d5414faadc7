"""Triton kernels and their launchers; they register nothing. Imported as ``pyrecon.kernels``."""
