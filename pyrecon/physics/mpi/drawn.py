"""Scanners and calibrations drawn at random: what models train on, to travel to scanners that they have not seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pyrecon.data.mpi import GRID
from pyrecon.data.raw import Grid, MPICalibration
from pyrecon.physics.mpi.particles import Particles
from pyrecon.physics.mpi.receiver import ReceiveCoil, Receiver
from pyrecon.physics.mpi.scanner import Scanner

FIRST_UNSEEN = 2**32
UNSEEN = tuple(range(FIRST_UNSEEN, FIRST_UNSEEN + 8))  # to test on: training_seeds() stays below
_TRAINING, _SCANNER, _CALIBRATION = 0x7EA1, 0x5CA2, 0xCA11  # streams of random numbers


def training_seeds(seed: int) -> Iterator[int]:
    """Seeds of scanners to train on, without end: a function of ``seed``, all below those of :data:`UNSEEN`."""
    rng = _stream(seed, _TRAINING)
    while True:
        yield int(rng.integers(FIRST_UNSEEN))


def drawn_scanner(seed: int) -> Scanner:
    """A random, plausible field-free-line scanner for a field of view of 26 x 52 mm; a function of ``seed`` alone.

    ====================  ================================  ==========================================================
    quantity              range                             reason
    ====================  ================================  ==========================================================
    gradient              0.25 to 0.8 T/m (log)             DEQ-MPI's scanner has 0.3, 0.5 and 0.6
    reach of the line     14 to 36 mm, 5 to 20 mT (log)     (A + B_s) / G: 9 mT reach 30, 18 and 15 mm there. 5 mT is
                                                            what nerves bear, 20 mT usual for small animals
    shift amplitude       0 in half, 10 to 50 % of that     0: the components of one harmonic are copies of each other
    drive frequency       20 to 45 kHz in steps of 500 Hz   25 kHz is usual; whole cycles in burst and window
    core diameter         19 to 28 nm (log)                 effective cores of the tracers in use; smaller ones give
                                                            next to no harmonics at these fields
    size spread           0.05 to 0.2                       of log(diameter); commercial tracers
    relaxation time       0.5 to 6 us (log)                 lags of 5 to 45 degrees at 26 kHz
    angles                24 to 60 over pi, twice as many   of the line; DEQ-MPI's has 60 over 2 pi
                          over 2 pi, any offset
    axis of rotation      -1 to 1 mm along y and x
    harmonics             from 2, or 3 in a quarter, to     the second lies next to the filter of the drive field
                          10 to 20
    bandwidth             150 to 1000 Hz (log)              3 to 25 components a harmonic
    channels              1, or 2 in a third
    coil                  homogeneous in a quarter, else    the default coil: 40 mm, 4 mm off centre
                          radius 25 to 60 mm (log), centre
                          within 12 mm, anisotropy -0.3 to
                          0.3
    coil sensitivity      10 to 40 uT/A (log)               against the amplifier's and digitiser's noise
    pass band             5 to 20, 150 to 500 kHz (log)     the default: 10 to 300 kHz
    receive delay         -0.3 to 0.3 us                    a phase that grows with frequency
    1/f corner            30 to 200 kHz (log)
    interference          0 to 5 lines within 20 to 400     amplitude 0.1 to 1 uV (log)
                          kHz
    feed-through          10 to 60 uV (log), drifting       of the second harmonic
                          0.3 to 2 % an hour (log)
    ====================  ================================  ==========================================================

    (log): uniform in the logarithm; otherwise uniform. Where no source is named, the range is the default
    :class:`Scanner`'s value with room to both sides. Burst, window, repetition, temperature, core material and dilution
    are the default's: they act as factors on signal or noise, which sensitivity and calibration vary.

    Raises
    ------
    ValueError
        For a seed that is no whole number from 0.
    """
    rng = _stream(seed, _SCANNER)
    gradient = _log(rng, 0.25, 0.8)
    field = gradient * _log(rng, max(14e-3, 5e-3 / gradient), min(36e-3, 20e-3 / gradient))
    shift = field * float(rng.uniform(0.1, 0.5)) * (rng.random() < 0.5)
    half_turn, angles = bool(rng.random() < 0.5), int(rng.integers(24, 61))
    first = 3 if rng.random() < 0.25 else 2
    return Scanner(
        particles=Particles(
            core_diameter=_log(rng, 19e-9, 28e-9),
            size_spread=float(rng.uniform(0.05, 0.2)),
            relaxation_time=_log(rng, 0.5e-6, 6e-6),
        ),
        gradient=gradient,
        drive_amplitude=field - shift,
        drive_frequency=500.0 * int(rng.integers(40, 91)),
        shift_amplitude=shift,
        angles=angles if half_turn else 2 * angles,
        angle_span=np.pi if half_turn else 2 * np.pi,
        angle_offset=float(rng.uniform(0, np.pi)),
        center=_point(rng, 1e-3),
        harmonics=tuple(range(first, int(rng.integers(10, 21)) + 1)),
        bandwidth=_log(rng, 150.0, 1000.0),
        coils=tuple(_coil(rng) for _ in range(2 if rng.random() < 1 / 3 else 1)),
        receiver=Receiver(
            band=(_log(rng, 5e3, 20e3), _log(rng, 150e3, 500e3)),
            delay=float(rng.uniform(-0.3e-6, 0.3e-6)),
            noise_corner=_log(rng, 30e3, 200e3),
            interference=tuple(
                (float(rng.uniform(20e3, 400e3)), _log(rng, 0.1e-6, 1e-6)) for _ in range(int(rng.integers(6)))
            ),
            feedthrough=_log(rng, 10e-6, 60e-6),
            feedthrough_drift=_log(rng, 0.3e-2, 2e-2),
        ),
        session=seed,
    )


@dataclass(frozen=True)
class DrawnCalibration:
    """How a scanner is calibrated, drawn at random as well: :func:`drawn_calibration`.

    Attributes
    ----------
    scanner
        :func:`drawn_scanner` of ``seed``.
    noise
        Factor on the receiver's noise, 0.4 to 1.5 (log): dose of the sample and quality of the amplifier.
    averages
        1, 2 or 4 records at each position.
    background_every
        An empty frame after every 13 to 26 positions, one to two rows of the default grid.
    snr_threshold
        Of the rows to use, 3 to 8: where :func:`~pyrecon.data.mpi.prepare_system` is to cut, 5 in DEQ-MPI.
    """

    scanner: Scanner
    noise: float
    averages: int
    background_every: int
    snr_threshold: float
    seed: int

    def measured(self, grid: Grid = GRID) -> MPICalibration:
        """The system matrix on a grid (y, x)."""
        return self.scanner.calibrate(
            grid,
            noise=self.noise,
            averages=self.averages,
            background_every=self.background_every,
            seed=self.seed,
        )


def drawn_calibration(seed: int) -> DrawnCalibration:
    """The scanner of a seed and how it is calibrated; a function of ``seed`` alone, ValueError where that is none."""
    rng = _stream(seed, _CALIBRATION)
    return DrawnCalibration(
        drawn_scanner(seed),
        noise=_log(rng, 0.4, 1.5),
        averages=2 ** int(rng.integers(3)),
        background_every=int(rng.integers(13, 27)),
        snr_threshold=float(rng.uniform(3.0, 8.0)),
        seed=seed,
    )


def _coil(rng: np.random.Generator) -> ReceiveCoil:
    sensitivity = _log(rng, 10e-6, 40e-6)
    center, radius, anisotropy = _point(rng, 12e-3), _log(rng, 25e-3, 60e-3), float(rng.uniform(-0.3, 0.3))
    if rng.random() < 0.25:
        return ReceiveCoil(sensitivity, (0.0, 0.0), 1e3, 0.0)
    return ReceiveCoil(sensitivity, center, radius, anisotropy)


def _point(rng: np.random.Generator, reach: float) -> tuple[float, float]:
    y, x = rng.uniform(-reach, reach, 2)
    return float(y), float(x)


def _log(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _stream(seed: int, stream: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: {seed!r}, expected a whole number from 0")
    return np.random.default_rng(np.random.SeedSequence([seed, stream]))
