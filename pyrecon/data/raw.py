"""What a raw-data file holds, whatever its format: readers and simulators make these, preprocessing takes them.

Arrays are NumPy, as they come off the disk; torch begins after preprocessing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon.data.placement import Placement, Stack

Complex = NDArray[np.complex64]
Real = NDArray[np.float64]

# No measured value is larger, in whatever unit; sums of squares of larger ones do not fit into single precision.
LARGEST = 1e15


def usable(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where numbers are finite and at most :data:`LARGEST`; of complex ones both parts."""
    if np.iscomplexobj(values):
        return np.asarray(usable(values.real) & usable(values.imag))
    return np.asarray(np.abs(values) <= LARGEST)


def fault(values: NDArray[Any]) -> str:
    """What is wrong with numbers that are not all usable, in words."""
    return f"values beyond {LARGEST:g}" if np.isfinite(values).all() else "NaN or Inf"


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels; axis i of ``shape`` is axis i of an image.

    ``spacing`` and ``center`` are in metres. For images ``(H, W)`` axis 0 is y (rows) and axis 1 is x (columns).
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    center: tuple[float, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def field_of_view(self) -> tuple[float, ...]:
        """Extent along each axis in metres."""
        return tuple(n * d for n, d in zip(self.shape, self.spacing, strict=True))

    def finer(self, factor: int) -> Grid:
        """The same field of view with ``factor`` times the voxels along each axis."""
        return Grid(tuple(factor * n for n in self.shape), tuple(d / factor for d in self.spacing), self.center)

    def coordinates(self) -> Real:
        """Centres of the voxels, ``(size, axes)`` metres, last axis of the grid fastest."""
        axes = zip(self.shape, self.spacing, self.center, strict=True)
        lines = [center + (np.arange(n) - (n - 1) / 2) * spacing for n, spacing, center in axes]
        return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(self.size, len(self.shape))


@dataclass(frozen=True)
class MPIScan:
    """An MPI measurement in the frequency domain.

    Attributes
    ----------
    spectrum
        ``(frames, periods, channels, K)`` complex64, K components per period, in ``unit``. A field-free-line scanner
        stores one line angle per period.
    frequencies
        ``(K,)`` Hz.
    is_background
        ``(frames,)`` bool: frames taken with an empty scanner.
    transfer_function
        ``(channels, K)`` complex, receive chain, or None; ``transfer_corrected`` says whether it is divided out.
    metadata
        The file's other fields by their path (tracer, scanner, study, acquisition), values plain Python or NumPy.
    """

    spectrum: Complex
    frequencies: Real
    is_background: NDArray[np.bool_]
    transfer_function: NDArray[np.complex128] | None = None
    transfer_corrected: bool = False
    background_corrected: bool = False
    unit: str = "V"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MPICalibration:
    """A measured system matrix: the spectrum of a small sample at every grid position.

    Attributes
    ----------
    spectrum
        ``(periods, channels, K, N)`` complex64; position n is ``np.unravel_index(n, grid.shape)``, background not
        subtracted unless ``background_corrected``.
    background
        ``(frames, periods, channels, K)`` complex64, empty-scanner frames taken during the calibration, or None.
    background_positions
        ``(frames,)`` int: how many positions had been measured when each background frame was taken, so that drift can
        be interpolated; None if unknown.
    position_order
        ``(N,)`` int: how many positions had been measured before position n; None if they were measured as numbered.
    snr
        ``(periods, channels, K)`` as stored in the file, or None.
    """

    spectrum: Complex
    frequencies: Real
    grid: Grid
    background: Complex | None = None
    background_positions: NDArray[np.int64] | None = None
    position_order: NDArray[np.int64] | None = None
    snr: Real | None = None
    transfer_function: NDArray[np.complex128] | None = None
    transfer_corrected: bool = False
    background_corrected: bool = False
    unit: str = "V"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MRIScan:
    """A Cartesian multi-coil MRI acquisition.

    Attributes
    ----------
    kspace
        ``(S, C, H, W)`` complex64: slices, repetitions and contrasts along S; phase encoding along H, readout along W;
        DC in the centre (index n // 2); unsampled lines zero.
    mask
        ``(S | 1, 1, H, W | 1)`` bool, what was sampled.
    noise
        ``(C, samples)`` complex64 from a noise calibration scan, or None.
    calibration
        ``(S', C, H, W)`` complex64, separately measured reference lines of parallel imaging (zero elsewhere) that are
        not part of ``kspace``, or None.
    readout_oversampling
        By how much the readout's field of view exceeds ``field_of_view[1]``; 1.0 once removed.
    phase_oversampling
        By how much k-space's field of view along H exceeds ``field_of_view[0]``: images and maps are cropped to this
        one once they are reconstructed.
    field_of_view
        Metres along H and W (without the oversampling of either), and slice thickness last.
    labels
        One text per entry of S, e.g. ``"slice 3, contrast 0"``.
    noise_ratio
        Noise power of a sample of ``kspace`` over that of a sample of ``noise``: the two differ in dwell time, receiver
        filter and averages.
    slices
        ``(S,)``: entries of the same number show the same slice (of the same repetition, phase and set) in another
        contrast; None: each shows another.
    places
        ``(S,)``: entries of the same number show the same thing at another time; None: each shows another.
    placement
        Where the images lie in the patient; None where the file does not say.
    stack
        Which entries are slices of one volume; None: all are.
    settings
        ``(S,)`` of every entry by name, of those that are known, as :class:`pyrecon.data.series.ImageSeries` has them:
        ``"inversion time"`` (a saturation time is one too), ``"echo time"``, ``"repetition time"`` in seconds,
        ``"flip angle"`` in radians. ``metadata["settings_left_out"]`` says by name why one is not known.
    encoded_partitions
        1: every entry is a slice. Else every so many entries in a row, of ``kspace`` and of ``calibration``, are the
        partitions of one volume, still in k-space with DC at n // 2: a 3-D scan whose partitions are sampled
        differently. Those that were never measured are there too, with an empty mask; entry p is slice p of the images.
    metadata
        Plain facts for reports; ``"notes"``, a list of what a reader left out or guessed, become warnings of a
        reconstruction.
    """

    kspace: Complex
    mask: NDArray[np.bool_]
    noise: Complex | None = None
    calibration: Complex | None = None
    readout_oversampling: float = 1.0
    phase_oversampling: float = 1.0
    field_of_view: tuple[float, float, float] = (1.0, 1.0, 1.0)
    labels: tuple[str, ...] = ()
    noise_ratio: float = 1.0
    slices: NDArray[np.int64] | None = None
    places: NDArray[np.int64] | None = None
    placement: Placement | None = None
    stack: Stack | None = None
    settings: dict[str, Real] = field(default_factory=dict)
    encoded_partitions: int = 1
    metadata: dict[str, Any] = field(default_factory=dict)
