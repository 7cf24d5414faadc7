"""From the sample to the digitiser: coil sensitivity, amplifier, noise, interference and feed-through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]


@dataclass(frozen=True)
class ReceiveCoil:
    """Coils whose signals are combined to look along the drive field, at every angle of the line.

    ``p(r, theta) = sensitivity (1 + |r - center|^2 / radius^2)^(-3/2) (1 + anisotropy cos 2 theta)``

    The fall-off is that of the field of a current loop along its axis.

    Attributes
    ----------
    sensitivity
        Field per unit current at ``center``, T/A.
    center
        (y, x) in metres.
    radius
        Metres.
    anisotropy
        By how much the coil along x outdoes the one along y, as half their relative difference.
    """

    sensitivity: float = 20e-6
    center: tuple[float, float] = (0.0, -4e-3)
    radius: float = 40e-3
    anisotropy: float = 0.15

    def gain(self, positions: ArrayLike, angle: float) -> Real:
        """p in T/A at ``positions`` (P, 2), rows (y, x) in metres -> (P,)."""
        distance = np.sum((np.asarray(positions, dtype=np.float64) - self.center) ** 2, axis=-1)
        fall_off = (1 + distance / self.radius**2) ** -1.5
        return np.asarray(self.sensitivity * fall_off * (1 + self.anisotropy * np.cos(2 * angle)))


@dataclass(frozen=True)
class Receiver:
    """Amplifier with a pass band, its noise, interference lines and the feed-through of the drive field.

    The transfer function is first order at the lower edge and second order at the upper one, with a delay::

        H(f) = gain * (i f / f1) / (1 + i f / f1) / (1 + i f / f2)^2 * exp(-2 pi i f delay),   band = (f1, f2)

    Noise at the output has the one-sided density e(f), V/sqrt(Hz)::

        e(f)^2 = |H(f)|^2 noise_density^2 (1 + noise_corner / f) + digitizer_noise^2

    Attributes
    ----------
    gain, band, delay
        Voltage gain; edges in Hz; seconds.
    noise_density, noise_corner
        White noise at the input in V/sqrt(Hz), and the frequency in Hz at which 1/f noise equals it.
    digitizer_noise
        White noise at the output, V/sqrt(Hz).
    interference
        (frequency in Hz, amplitude in V at the input) of narrow-band lines; their phase is new in every record.
    feedthrough
        Amplitude in V at the input of the drive field's second harmonic in the receive coil; harmonic n has
        (2/n)^2 of it, times a complex factor that depends on the angle of the line and on the session.
    feedthrough_drift
        Relative standard deviation of the feed-through after one hour, a random walk of each harmonic.
    """

    gain: float = 5.0
    band: tuple[float, float] = (10e3, 300e3)
    delay: float = 0.0
    noise_density: float = 11.5e-9
    noise_corner: float = 100e3
    digitizer_noise: float = 16.8e-9
    interference: tuple[tuple[float, float], ...] = ((77.93e3, 0.42e-6), (130.07e3, 0.34e-6), (207.9e3, 0.42e-6))
    feedthrough: float = 40e-6
    feedthrough_drift: float = 0.02

    def transfer(self, frequencies: ArrayLike) -> Complex:
        """H(f), dimensionless, at ``frequencies`` in Hz."""
        f = np.asarray(frequencies, dtype=np.float64)
        high = 1j * f / self.band[0]
        low = 1 + 1j * f / self.band[1]
        return np.asarray(self.gain * high / (1 + high) / low**2 * np.exp(-2j * np.pi * f * self.delay))

    def density(self, frequencies: ArrayLike) -> Real:
        """e(f) in V/sqrt(Hz) at the output."""
        f = np.asarray(frequencies, dtype=np.float64)
        amplified = np.abs(self.transfer(f)) * self.noise_density * np.sqrt(1 + self.noise_corner / f)
        return np.hypot(amplified, self.digitizer_noise)

    def noise_deviation(self, frequencies: ArrayLike, burst: float, window: float) -> Real:
        """Root mean square |n_k| in V of the random part of component k, noise and interference.

        A component is (2/T_b) times the Fourier integral over the window T_w, so noise of density e has
        <|n|^2> = 2 e^2 T_w / T_b^2, and a line of amplitude a at f_i has |n| = a |H| T_w/T_b |sinc((f - f_i) T_w)|.
        """
        f = np.asarray(frequencies, dtype=np.float64)
        variance = 2 * window * (self.density(f) / burst) ** 2
        return np.asarray(np.sqrt(variance + np.sum(np.abs(self._lines(f, burst, window)) ** 2, axis=0)))

    def noise(
        self, rng: np.random.Generator, frequencies: Real, burst: float, window: float, shape: tuple[int, ...]
    ) -> NDArray[np.complex64]:
        """Random part of ``shape`` records, ``(*shape, K)`` in V: see :meth:`noise_deviation`."""
        deviation = (np.sqrt(window) / burst * self.density(frequencies)).astype(np.float32)
        pairs = rng.standard_normal((*shape, len(frequencies), 2), dtype=np.float32)
        noise = np.asarray(pairs.view(np.complex64)[..., 0])
        noise *= deviation
        for line in self._lines(frequencies, burst, window):
            near = np.abs(line) > 1e-3 * np.abs(line).max()  # a line reaches one harmonic's components only
            phase = np.exp(2j * np.pi * rng.random(shape))
            noise[..., near] += (phase[..., None] * line[near]).astype(np.complex64)
        return noise

    def _lines(self, frequencies: Real, burst: float, window: float) -> Complex:
        """Spectrum of each interference line at phase zero, (lines, *shape of frequencies)."""
        transfer = self.transfer(frequencies)
        lines = [
            amplitude * transfer * window / burst * np.sinc((frequencies - frequency) * window)
            for frequency, amplitude in self.interference
        ]
        return np.array(lines, dtype=np.complex128).reshape(len(lines), *np.shape(frequencies))
