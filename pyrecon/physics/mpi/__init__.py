"""Magnetic particle imaging: particles, receive chain and a field-free-line scanner, simulated; scanners at random."""

from pyrecon.physics.mpi.drawn import UNSEEN, DrawnCalibration, drawn_calibration, drawn_scanner, training_seeds
from pyrecon.physics.mpi.particles import Particles, langevin
from pyrecon.physics.mpi.receiver import ReceiveCoil, Receiver
from pyrecon.physics.mpi.scanner import Scanner

__all__ = [
    "UNSEEN",
    "DrawnCalibration",
    "Particles",
    "ReceiveCoil",
    "Receiver",
    "Scanner",
    "drawn_calibration",
    "drawn_scanner",
    "langevin",
    "training_seeds",
]
