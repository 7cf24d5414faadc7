"""A field-free point on a Lissajous path through a volume, Langevin particles, three receive coils."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon.data.raw import Grid, MPICalibration, MPIScan

GRADIENT = np.array([-1.0, -1.0, 2.0])  # T/m along x, y, z
BASE = 2.5e6  # Hz


@dataclass(frozen=True)
class FieldFreePoint:
    """``grid`` is indexed (z, y, x); drive fields reach its edges."""

    grid: Grid
    dividers: tuple[int, int, int] = (10, 12, 15)
    noise: float = 1e-3  # of the strongest component of a voxel
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # mT along x, y, z
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return math.lcm(*self.dividers)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        return np.arange(self.samples // 2 + 1) * BASE / self.samples

    @property
    def strength(self) -> NDArray[np.float64]:
        """``(3,)`` of the drive fields, tesla."""
        return np.asarray(np.abs(GRADIENT) * np.array(self.grid.field_of_view[::-1]) / 2)

    def fields(self) -> dict[str, Any]:
        """Of the format."""
        return {
            "/scanner/topology": "FFP",
            "/tracer/name": ["perimag"],
            "/tracer/concentration": [0.5],
            "/acquisition/gradient": np.diag(GRADIENT)[None, None],
            "/acquisition/offsetField": 1e-3 * np.array(self.offset)[None, None],
            "/acquisition/drivefield/numChannels": 3,
            "/acquisition/drivefield/baseFrequency": BASE,
            "/acquisition/drivefield/divider": [[d] for d in self.dividers],
            "/acquisition/drivefield/strength": self.strength[None, :, None],
            "/acquisition/drivefield/phase": np.full((1, 3, 1), np.pi / 2),
            "/acquisition/drivefield/waveform": [["sine"]] * 3,
            "/acquisition/drivefield/cycle": self.samples / BASE,
            "/acquisition/receiver/numSamplingPoints": self.samples,
            "/acquisition/receiver/bandwidth": BASE / 2,
            **self.metadata,
        }

    def matrix(self, strength: NDArray[np.float64] | None = None) -> NDArray[np.complex64]:
        """``(channels, K, N)``, the strongest component 1; ``strength`` of other drive fields than reach the edges."""
        reach = self.strength if strength is None else strength
        t = np.arange(self.samples) / self.samples
        drive = np.stack(
            [a * np.cos(2 * np.pi * self.samples / d * t) for a, d in zip(reach, self.dividers, strict=True)]
        )
        drive = drive + 1e-3 * np.array(self.offset)[:, None]
        place = self.grid.coordinates()[:, ::-1] - np.array(self.grid.center[::-1])  # the scanner is moved to the grid
        steps = 2j * np.pi * np.arange(self.samples // 2 + 1)
        rows = np.empty((3, len(steps), len(place)), np.complex64)
        for first in range(0, len(place), 256):
            h = 1.5e3 * (drive[None] + (GRADIENT * place[first : first + 256])[:, :, None])  # argument of Langevin
            size = np.linalg.norm(h, axis=1, keepdims=True).clip(1e-3)
            magnetisation = (1 / np.tanh(size) - 1 / size) / size * h
            rows[..., first : first + 256] = np.moveaxis(np.fft.rfft(magnetisation, axis=-1) * steps, 0, -1)
        rows[:, self.frequencies < 1.5 * BASE / min(self.dividers)] = 0  # what the transmit filter takes
        rows[:, -1] = 0
        return np.asarray(rows / np.abs(rows).max(), np.complex64)

    def calibrate(
        self, rows: NDArray[np.complex64] | None = None, background: int = 20, seed: int = 0
    ) -> MPICalibration:
        rows = self.matrix() if rows is None else rows
        rng = np.random.default_rng(seed)
        spectrum = (rows + self._noise(rng, rows.shape))[None]
        empty = self._noise(rng, (background, 1, *rows.shape[:2]))
        return MPICalibration(
            spectrum, self.frequencies, self.grid, empty, np.linspace(0, self.grid.size, background).astype(np.int64),
            metadata=self.fields() | {"/calibration/method": "robot"},
        )  # fmt: skip

    def measure(
        self, volume: NDArray[Any], rows: NDArray[np.complex64] | None = None, frames: int = 1, empty: int = 20,
        periods: int = 1, seed: int = 1,
    ) -> MPIScan:  # fmt: skip
        """``empty`` frames with nothing in the scanner, half of them first, half last."""
        rows = self.matrix() if rows is None else rows
        rng = np.random.default_rng(seed)
        background = np.repeat([True, False, True], [empty // 2, frames, empty - empty // 2])
        spectrum = self._noise(rng, (len(background), periods, *rows.shape[:2]))
        spectrum[..., [0, -1]] = spectrum[..., [0, -1]].real  # a real signal's
        spectrum[~background] += rows @ np.asarray(volume, np.float32).ravel()
        metadata = self.fields()
        for name in ("strength", "phase"):
            metadata[f"/acquisition/drivefield/{name}"] = np.repeat(
                metadata[f"/acquisition/drivefield/{name}"], periods, 0
            )
        for name in ("gradient", "offsetField"):
            metadata[f"/acquisition/{name}"] = np.repeat(metadata[f"/acquisition/{name}"], periods, axis=0)
        return MPIScan(spectrum, self.frequencies, background, metadata=metadata)

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex64]:
        parts = rng.standard_normal((2, *shape), np.float32)
        return np.asarray(self.noise / math.sqrt(2) * (parts[0] + 1j * parts[1]), np.complex64)
