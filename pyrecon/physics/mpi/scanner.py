"""A field-free-line scanner for magnetic particle imaging, from the particle to the digitised spectrum."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyrecon.data._mpi_settings import NOISE_SEED
from pyrecon.data.raw import Grid, MPICalibration, MPIScan
from pyrecon.physics.mpi._system_function import SystemFunction
from pyrecon.physics.mpi.particles import Particles
from pyrecon.physics.mpi.receiver import ReceiveCoil, Receiver

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]

VACUUM_PERMEABILITY = 4e-7 * np.pi  # T m / A
_SAMPLING_RATE = 5e6  # Hz, where the spectrum's grid of frequencies comes from


@dataclass(frozen=True)
class Scanner:
    """A field-free line in the imaging plane, turned step by step and driven across itself; SI units throughout.

    The model. The line passes through ``center`` at right angles to (cos theta, sin theta) in (x, y). With the
    distance xi of a point from it and the height z above the plane, the field is, along the normal of the line and
    across the plane::

        B_n(t) = G xi + A cos(2 pi f0 t) + B_s 2t/T_b        xi = (x - x_c) cos theta + (y - y_c) sin theta
        B_z    = -G z

    during a burst -T_b/2 < t < T_b/2, and zero drive before and after. The magnetisation follows it by the Langevin
    law and relaxes with one time constant (:class:`Particles`); as the slow shift B_s moves little in one cycle, it is
    M(t) = sum_n c_n(G xi + B_s 2t/T_b) exp(2 pi i n f0 t), with coefficients c_n that depend on the field alone. The
    receive coil picks up u = -d/dt int p(r) M dV (:class:`ReceiveCoil`), the amplifier multiplies by H(f)
    (:class:`Receiver`). The window T_w is longer than the burst, so around each harmonic n f0 there are
    ``bandwidth * T_w`` components f = n f0 + q, q a multiple of 1/T_w::

        u(f) = -2 pi i f H(f) / (1 + 2 pi i f tau) int p(r, theta) S_nq(xi) c(r) dV
        S_nq(xi) = 2/T_b int_{-T_b/2}^{T_b/2} c_n(G xi + B_s 2t/T_b) exp(-2 pi i q t) dt

    in volts: a steady harmonic of the burst has its amplitude. Without a shift S_nq = 2 c_n(G xi) sinc(q T_b), the
    line shape of a burst; the components of one harmonic then differ by a factor only, as they do in the published
    selection of high-SNR rows, and a shift makes them different views. What is left out: leakage of one harmonic into
    the components of another through the edges of the burst (1e-3 of a neighbour's amplitude), particle interaction,
    inhomogeneity of the gradient and of the drive field.

    Units of concentration: 1 is the undiluted tracer of ``particles``, which is also what calibration samples hold.

    Attributes
    ----------
    gradient
        G, T/m.
    drive_amplitude, drive_frequency
        A in T, f0 in Hz.
    shift_amplitude
        B_s in T: the slow shift runs from -B_s to B_s once in the burst.
    angles, angle_span, angle_offset
        theta_a = angle_offset + angle_span * a / angles, radians.
    center
        (y, x) of the axis of rotation, metres.
    harmonics, bandwidth
        Which harmonics are recorded, and how many Hz around each.
    burst, window, repetition
        T_b, T_w and the time from one burst to the next, seconds.
    coils
        One entry per receive channel.
    session
        Number of the session; it draws the feed-through of the drive field.

    Source: the scanner of DEQ-MPI, section IV-C, as far as it is described there.
    """

    particles: Particles = field(default_factory=lambda: Particles(size_spread=0.1))
    gradient: float = 0.5
    drive_amplitude: float = 9e-3
    drive_frequency: float = 26e3
    shift_amplitude: float = 0.0
    angles: int = 60
    angle_span: float = 2 * np.pi
    angle_offset: float = 0.0
    center: tuple[float, float] = (0.0, 0.0)
    harmonics: tuple[int, ...] = tuple(range(2, 21))
    bandwidth: float = 500.0
    burst: float = 10e-3
    window: float = 26e-3
    repetition: float = 0.1
    coils: tuple[ReceiveCoil, ...] = (ReceiveCoil(),)
    receiver: Receiver = field(default_factory=Receiver)
    session: int = 0

    def __post_init__(self) -> None:
        for name in ("gradient", "drive_amplitude", "drive_frequency", "bandwidth", "burst"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.angles < 1:
            raise ValueError(f"angles: {self.angles}, expected at least one")
        if not self.coils:
            raise ValueError("coils: empty, expected one receive coil per channel")
        if not self.harmonics or min(self.harmonics) < 1 or list(self.harmonics) != sorted(set(self.harmonics)):
            raise ValueError(f"harmonics: {self.harmonics}, expected increasing numbers from 1")
        if not self.burst <= self.window <= self.repetition:
            raise ValueError(
                f"window: {self.window} s, expected no less than the burst ({self.burst} s) and no more than the "
                f"repetition time ({self.repetition} s)"
            )
        for name, time in (("burst", self.burst), ("window", self.window)):
            cycles = time * self.drive_frequency
            if abs(cycles - round(cycles)) > 1e-6:
                raise ValueError(f"{name}: holds {cycles} cycles of the drive field, expected a whole number")
        if self.bandwidth >= self.drive_frequency:
            raise ValueError(f"bandwidth: {self.bandwidth} Hz, the bands of the harmonics would overlap")

    # --- geometry of the data ---------------------------------------------------------------------------------------
    @property
    def line_angles(self) -> Real:
        """theta, (angles,) radians."""
        return self.angle_offset + self.angle_span * np.arange(self.angles) / self.angles

    @property
    def frequencies(self) -> Real:
        """(K,) Hz, harmonic by harmonic."""
        carriers = np.array(self.harmonics, dtype=np.float64) * self.drive_frequency
        return np.asarray((carriers[:, None] + self._offsets).ravel())

    @property
    def _offsets(self) -> Real:
        half = (int(self.bandwidth * self.window + 1e-9) - 1) // 2
        return np.arange(-half, half + 1) / self.window

    def drifted(self, seed: int, strength: float = 1.0) -> Scanner:
        """The same scanner in another session: each parameter that drifts, moved by a normal random amount.

        Standard deviations at ``strength`` 1: gradient 1 %, drive field 0.5 %, angle 0.5 degrees, axis 0.3 mm, coil
        sensitivity 3 % and position 1 mm, receive delay 50 ns (5 degrees at 286 kHz), core diameter 1 %, relaxation
        time 5 %. The feed-through is drawn anew. ``strength`` 0 keeps all but that.
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x5E55]))

        def factor(deviation: float) -> float:
            return float(np.exp(strength * deviation * rng.standard_normal()))

        def moved(center: tuple[float, float], deviation: float) -> tuple[float, float]:
            y, x = strength * deviation * rng.standard_normal(2)
            return center[0] + float(y), center[1] + float(x)

        return replace(
            self,
            gradient=self.gradient * factor(0.01),
            drive_amplitude=self.drive_amplitude * factor(0.005),
            angle_offset=self.angle_offset + strength * np.deg2rad(0.5) * float(rng.standard_normal()),
            center=moved(self.center, 0.3e-3),
            coils=tuple(
                replace(coil, sensitivity=coil.sensitivity * factor(0.03), center=moved(coil.center, 1e-3))
                for coil in self.coils
            ),
            receiver=replace(
                self.receiver, delay=self.receiver.delay + strength * 50e-9 * float(rng.standard_normal())
            ),
            particles=replace(
                self.particles,
                core_diameter=self.particles.core_diameter * factor(0.01),
                relaxation_time=self.particles.relaxation_time * factor(0.05),
            ),
            session=seed,
        )

    # --- noise-free ---------------------------------------------------------------------------------------------------
    def response(self, positions: ArrayLike, *, thickness: float = 0.0) -> Complex:
        """Spectrum of undiluted tracer per volume, V/m^3, at ``positions`` (P, 2), rows (y, x) in metres.

        Returns (angles, channels, K, P). ``thickness`` averages over |z| <= thickness/2. Multiply by concentration
        and volume, and sum: the model is linear in both.
        """
        points = np.asarray(positions, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"positions: shape {points.shape} does not fit, expected (P, 2), rows (y, x)")
        return self._spectra(points[:, None], np.ones(1), thickness)

    def _spectra(self, points: Real, volumes: Real, thickness: float, amounts: Real | None = None) -> Complex:
        """Spectra (angles, channels, K, count) of boxes, ``points`` (count, P, 2) of ``volumes`` (P,) each.

        Or (angles, channels, K, B) of B objects made of them, by ``amounts`` (B, count).
        """
        count, per_box, _ = points.shape
        flat = points.reshape(-1, 2)
        reach = float(np.hypot(*(flat - self.center).T).max(initial=0.0))
        table = _table(self, thickness, 5e-3 * np.ceil(max(reach, 30e-3) / 5e-3))
        f = self.frequencies
        factor = -2j * np.pi * f * self.particles.relaxation(f) * self.receiver.transfer(f)
        mixing = factor[:, None] * table.mixing

        spectra = np.empty((self.angles, len(self.coils), len(f), count if amounts is None else len(amounts)), complex)
        y, x = (flat - self.center).T
        for a, angle in enumerate(self.line_angles):
            shapes = table.at(x * np.cos(angle) + y * np.sin(angle)).reshape(count, per_box, -1)
            for c, coil in enumerate(self.coils):
                weights = volumes * coil.gain(flat, angle).reshape(count, per_box)
                boxes = np.einsum("np,npr->nr", weights, shapes)
                spectra[a, c] = mixing @ (boxes if amounts is None else amounts @ boxes).T
        return spectra

    # --- measurements -------------------------------------------------------------------------------------------------
    def calibrate(
        self,
        grid: Grid,
        *,
        sample_size: float | tuple[float, float, float] = 2e-3,
        noise: float = 1.0,
        snr_db: float | None = None,
        averages: int = 1,
        background_every: int = 13,
        move_time: float = 1.0,
        seed: int = 0,
    ) -> MPICalibration:
        """Measure a system matrix: a box of undiluted tracer is moved to every position of ``grid`` (2-D, axes y, x).

        Parameters
        ----------
        sample_size
            Edge of the cube, or (y, x, z) edges, metres.
        noise
            Factor on the receiver's noise and interference.
        snr_db
            In place of ``noise``: scale it for this SNR in dB (DEQ-MPI, Eq. 36), averaged over positions, within the
            receiver's band and before averaging.
        averages
            Records averaged at each position, for the signal and the background.
        background_every
            An empty frame is taken first, after every so many positions, and last.
        move_time
            Seconds from one position to the next, on top of the records; the feed-through drifts meanwhile.

        Returns
        -------
        MPICalibration
            Background not subtracted, transfer function not divided out.
        """
        self._check_grid(grid)
        if background_every < 1:
            raise ValueError(f"background_every: {background_every}, expected at least 1")
        size = (sample_size,) * 3 if isinstance(sample_size, int | float) else tuple(sample_size)
        if len(size) != 3 or min(size) <= 0:
            raise ValueError(f"sample_size: {sample_size}, expected one positive edge or three (y, x, z)")
        signal = self._spectra(*_box_points(grid.coordinates(), size), size[2]).astype(np.complex64)

        taken = np.unique(np.append(np.arange(0, grid.size, background_every), grid.size))
        position = np.sort(np.concatenate([np.arange(grid.size) + 0.5, taken]), kind="stable")
        empty = np.isin(position, taken)
        factor = self._noise_factor(np.moveaxis(signal, -1, 0), noise, snr_db)
        frames = self._empty_frames(len(position), factor, averages, move_time, seed)
        return MPICalibration(
            spectrum=signal + np.moveaxis(frames[~empty], 0, -1),
            frequencies=self.frequencies,
            grid=grid,
            background=frames[empty],
            background_positions=taken,
            transfer_function=self._transfer(),
            metadata=self._metadata(averages)
            | {
                NOISE_SEED: seed,
                "/calibration/method": "simulation",
                "/calibration/deltaSampleSize": np.array(size)[[1, 0, 2]],
                "/calibration/fieldOfView": np.array([*grid.field_of_view[::-1], size[2]]),
                "/calibration/fieldOfViewCenter": np.array([*grid.center[::-1], 0.0]),
            },
        )

    def measure(
        self,
        image: ArrayLike | torch.Tensor,
        grid: Grid,
        *,
        thickness: float = 2e-3,
        noise: float = 1.0,
        snr_db: float | None = None,
        averages: int = 1,
        background_frames: int = 10,
        seed: int = 1,
    ) -> MPIScan:
        """Scan an object: ``image`` (H, W) or (frames, H, W) of concentration on ``grid``, finer than that of the SM.

        Parameters
        ----------
        image
            Concentration relative to the undiluted tracer, constant within a voxel and within |z| <= thickness/2.
        noise, snr_db, averages
            As in :meth:`calibrate`; one factor for all frames, so that the mean signal power over frames has the SNR.
        background_frames
            Empty frames, the first half before the object and the rest after it.
        seed
            Of the noise, another than the calibration's: of two recordings with one seed every record has the noise of
            the other's of that number, and the scan repeats what noise has left in the system matrix.

        Returns
        -------
        MPIScan
            Frames in the order in which they were taken; background not subtracted.
        """
        self._check_grid(grid)
        images = np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image, dtype=np.float64)
        if images.ndim not in (2, 3) or images.shape[-2:] != grid.shape:
            raise ValueError(
                f"image: shape {images.shape} does not fit, expected (H, W) or (frames, H, W) = {grid.shape}"
            )
        if not np.isfinite(images).all():
            raise ValueError("image: has values that are not finite")
        if background_frames < 0:
            raise ValueError(f"background_frames: {background_frames}, expected 0 or more")
        if not thickness > 0:
            raise ValueError(f"thickness: {thickness} is not positive")
        images = images.reshape(-1, grid.size)
        points, volumes = _box_points(grid.coordinates(), (*grid.spacing, thickness))
        spectra = self._spectra(points, volumes, thickness, images)
        signal = np.moveaxis(spectra, -1, 0).astype(np.complex64)

        before = (background_frames + 1) // 2
        index = np.arange(len(images) + background_frames) - before
        is_background = (index < 0) | (index >= len(images))
        factor = self._noise_factor(signal, noise, snr_db)
        frames = self._empty_frames(len(index), factor, averages, 0.0, seed)
        frames[~is_background] += signal
        return MPIScan(
            spectrum=frames,
            frequencies=self.frequencies,
            is_background=is_background,
            transfer_function=self._transfer(),
            metadata=self._metadata(averages) | {NOISE_SEED: seed},
        )

    def _noise_factor(self, signal: NDArray[np.complex64], noise: float, snr_db: float | None) -> float:
        """Factor on the receiver's noise; ``signal`` is (frames, angles, channels, K)."""
        if snr_db is None:
            if not noise >= 0:
                raise ValueError(f"noise: {noise} is negative")
            return noise
        if noise != 1.0:
            raise ValueError(f"snr_db: {snr_db} dB and noise={noise} both set the noise, give one of them")
        f = self.frequencies
        band = (f >= self.receiver.band[0]) & (f <= self.receiver.band[1])
        power = float(np.sum(np.abs(signal[..., band]) ** 2, dtype=np.float64)) / len(signal)
        variance = self.receiver.noise_deviation(f, self.burst, self.window)[band] ** 2
        expected = self.angles * len(self.coils) * float(variance.sum())
        return float(np.sqrt(power / expected) * 10 ** (-snr_db / 20))

    def _empty_frames(self, count: int, factor: float, averages: int, pause: float, seed: int) -> NDArray[np.complex64]:
        """``count`` frames without an object, (count, angles, channels, K): drifting feed-through plus noise."""
        if averages < 1:
            raise ValueError(f"averages: {averages}, expected at least 1")
        shape = (count, self.angles, len(self.coils))
        noise_rng, drift_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
        frames = self.receiver.noise(noise_rng, self.frequencies, self.burst, self.window, shape)
        frames *= np.float32(factor / np.sqrt(averages))

        # A random walk per channel and harmonic that has run for an hour before the first frame.
        interval = averages * self.angles * self.repetition + pause
        steps = np.sqrt(np.where(np.arange(count) == 0, 3600.0, interval) / 3600)[:, None, None]
        walk = drift_rng.standard_normal((2, count, len(self.coils), len(self.harmonics))) / np.sqrt(2)
        drift = self.receiver.feedthrough_drift * np.cumsum(steps * (walk[0] + 1j * walk[1]), axis=0)
        per_harmonic = (1 + drift)[:, None] * self._feedthrough()  # (count, angles, channels, harmonics)
        line = np.sinc(self._offsets * self.burst) * self._transfer().reshape(len(self.coils), len(self.harmonics), -1)
        frames += (per_harmonic[..., None] * line).reshape(frames.shape).astype(np.complex64)
        return frames

    def _feedthrough(self) -> Complex:
        """Feed-through of the drive field at the amplifier's input in this session, (angles, channels, harmonics)."""
        rng = np.random.default_rng(np.random.SeedSequence([self.session, 0xFEED]))
        # The drive coils along x and y each leak into the channel: odd harmonics with the sign of their current, even
        # ones, which a distortion makes from its square, without.
        leak = rng.standard_normal((2, 2, len(self.coils), len(self.harmonics))) / 2
        along_x, along_y = leak[0] + 1j * leak[1]
        numbers = np.array(self.harmonics)
        current = np.stack([np.cos(self.line_angles), np.sin(self.line_angles)])[..., None, None]
        x, y = np.where(numbers % 2 == 0, current**2, current)
        return np.asarray(self.receiver.feedthrough * (2 / numbers) ** 2 * (x * along_x + y * along_y))

    def _transfer(self) -> Complex:
        return np.tile(self.receiver.transfer(self.frequencies), (len(self.coils), 1))

    def _check_grid(self, grid: Grid) -> None:
        if len(grid.shape) != 2:
            raise ValueError(f"grid: has {len(grid.shape)} axes, expected two, y and x")

    def _metadata(self, averages: int) -> dict[str, Any]:
        """The fields of the MDF format that describe this scanner."""
        normal = np.stack([np.cos(self.line_angles), np.sin(self.line_angles), np.zeros(self.angles)], axis=1)
        field_tensor = normal[:, :, None] * normal[:, None, :]
        field_tensor[:, 2, 2] = -1
        samples = round(_SAMPLING_RATE * self.window)
        return {
            "/experiment/isSimulation": 1,
            "/scanner/name": "pyrecon simulated field-free line",
            "/scanner/topology": "FFL",
            "/tracer/name": ["simulated magnetite"],
            "/acquisition/gradient": self.gradient * field_tensor[:, None],
            "/acquisition/numAverages": averages,
            "/acquisition/drivefield/baseFrequency": self.drive_frequency,
            "/acquisition/drivefield/cycle": self.window,
            "/acquisition/drivefield/divider": [[1]],
            "/acquisition/drivefield/strength": np.full((self.angles, 1, 1), self.drive_amplitude),
            "/acquisition/drivefield/phase": np.full((self.angles, 1, 1), np.pi / 2),
            "/acquisition/receiver/numSamplingPoints": samples,
            "/acquisition/receiver/bandwidth": _SAMPLING_RATE / 2,
        }


@lru_cache(maxsize=8)
def _table(scanner: Scanner, thickness: float, reach: float) -> SystemFunction:
    return SystemFunction.tabulate(
        scanner.particles,
        gradient=scanner.gradient,
        drive=scanner.drive_amplitude,
        shift=scanner.shift_amplitude,
        harmonics=np.array(scanner.harmonics),
        offsets=scanner._offsets,
        burst=scanner.burst,
        thickness=thickness,
        reach=reach,
    )


def _box_points(centers: Real, size: tuple[float, ...]) -> tuple[Real, Real]:
    """Gauss-Legendre points (count, P, 2) in boxes of ``size`` (y, x, z) around ``centers``, and their volumes (P,)."""
    lines = []
    for edge in size[:2]:
        # Two points and one more per millimetre: four in 2 mm, where lobes are 3 mm wide at the least.
        nodes, weights = np.polynomial.legendre.leggauss(2 + int(edge / 1e-3))
        lines.append((nodes * edge / 2, weights * edge / 2))
    (dy, wy), (dx, wx) = lines
    offsets = np.stack(np.meshgrid(dy, dx, indexing="ij"), axis=-1).reshape(-1, 2)
    return centers[:, None] + offsets, np.outer(wy, wx).ravel() * size[2]
