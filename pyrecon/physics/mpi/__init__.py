"""Magnetic particle imaging: particles, receive chain and a field-free-line scanner, simulated."""

from pyrecon.physics.mpi.particles import Particles, langevin
from pyrecon.physics.mpi.receiver import ReceiveCoil, Receiver
from pyrecon.physics.mpi.scanner import Scanner

__all__ = ["Particles", "ReceiveCoil", "Receiver", "Scanner", "langevin"]
