"""From a raw scan to what a reconstruction needs: no readout oversampling, white noise, few coils, fewer samples.

Each step takes an :class:`MRIScan` and returns one; :mod:`pyrecon.data.coil_maps` estimates the sensitivities.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.fourier import centered_slice, fft_centered, ifft_centered
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.data.raw import LARGEST, MRIScan, fault, usable

# Linear maps of the coils that a scan has been through, last first: metadata key of a (C now, C in the file) matrix.
COIL_TRANSFORM = "coil_transform"
WHITENED = "whitened"


@dataclass(frozen=True)
class Noise:
    """Noise of a receiver array.

    Attributes
    ----------
    covariance
        ``(C, C)`` complex128, ``E[n n^H]`` of one sample of ``kspace``; real and imaginary part together.
    samples
        Number of samples it was estimated from.
    source
        ``"noise scan"`` or ``"k-space corners"``.
    """

    covariance: NDArray[np.complex128]
    samples: int
    source: str


def check_scan(scan: MRIScan) -> None:
    """Raise DataError unless shapes fit together and every value is finite; the message names the slice."""
    if scan.kspace.ndim != 4 or scan.kspace.size == 0:
        raise DataError(f"kspace: shape {scan.kspace.shape} does not fit, expected (S, C, H, W) with samples")
    slices, coils = scan.kspace.shape[:2]
    partitions = scan.encoded_partitions
    if partitions < 1 or slices % partitions:
        raise DataError(f"encoded_partitions: {partitions} does not divide {slices} entries of k-space into volumes")
    check_mask(scan.mask, scan.kspace.shape, partitions)
    if scan.noise is not None and (scan.noise.ndim != 2 or scan.noise.shape[0] != coils):
        raise DataError(f"noise: shape {scan.noise.shape} does not fit {coils} coils, expected (C, samples)")
    if scan.calibration is not None:
        fits = scan.calibration.ndim == 4 and scan.calibration.shape[1:] == scan.kspace.shape[1:]
        if not fits or len(scan.calibration) == 0 or slices % len(scan.calibration):
            raise DataError(
                f"calibration: shape {scan.calibration.shape} does not fit k-space of shape {scan.kspace.shape}, "
                "expected the same coils and grid, and a whole number of k-space slices for each of its own"
            )
        if partitions > 1 and len(scan.calibration) != slices:
            raise DataError(f"calibration: {len(scan.calibration)} entries for {slices} partitions, expected as many")
        if not usable(scan.calibration).all():
            raise DataError(f"calibration: {fault(scan.calibration)} in the separate reference lines; leave them out")
    for name, along in {**scan.settings, "slices": scan.slices, "places": scan.places}.items():
        if along is not None and along.shape != (slices,):
            raise DataError(f"{name}: shape {along.shape} does not fit {slices} entries of k-space")
    if not 0 < scan.noise_ratio < np.inf:
        raise DataError(f"noise_ratio: {scan.noise_ratio}, expected a positive number")
    if not all(SHORTEST <= length <= LONGEST for length in scan.field_of_view):
        raise DataError(f"field_of_view: {scan.field_of_view} m, expected lengths of {SHORTEST:g} to {LONGEST:g} m")
    for name in ("readout_oversampling", "phase_oversampling"):
        if not getattr(scan, name) >= 1:
            raise DataError(f"{name}: {getattr(scan, name)}, expected a factor >= 1")
    whole = np.array([usable(kspace).all() for kspace in scan.kspace])
    if not whole.all():
        bad = np.flatnonzero(~whole)
        coil, line, column = np.argwhere(~usable(scan.kspace[bad[0]]))[0]
        names = ", ".join(slice_name(scan, s) for s in bad[:8])
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise DataError(
            f"kspace: {fault(scan.kspace[bad])} in {names}{more} (first: coil {coil}, line {line}, sample {column}); "
            "leave these slices out or repair the file"
        )
    if scan.noise is not None and not usable(scan.noise).all():
        raise DataError(
            f"noise: {fault(scan.noise)} in the noise scan; leave it out (noise=None) to use the k-space corners"
        )


def first_slices(scan: MRIScan, count: int) -> MRIScan:
    """The scan's first ``count`` entries along S; a volume whose partitions are in k-space stays whole."""
    each = scan.encoded_partitions
    return some_entries(scan, np.arange(min(-(-count // each) * each, len(scan.kspace))))


def some_entries(scan: MRIScan, chosen: NDArray[np.int64]) -> MRIScan:
    """The scan's entries along S of these numbers; of partitions in k-space, those of whole volumes."""
    each = scan.encoded_partitions
    if len(chosen) % each or (chosen % each != np.arange(len(chosen)) % each).any():
        raise ValueError(f"chosen: a part of a volume, expected all of its {each} partitions, which are in k-space")
    calibration = scan.calibration
    if calibration is not None and len(calibration) > 1:
        each = len(scan.kspace) // len(calibration)  # slices in a row share one calibration
        calibration = calibration[chosen // each]
    return replace(
        scan,
        kspace=scan.kspace[chosen],
        mask=scan.mask if len(scan.mask) == 1 else scan.mask[chosen],
        calibration=calibration,
        labels=tuple(scan.labels[i] for i in chosen if i < len(scan.labels)),
        slices=None if scan.slices is None else scan.slices[chosen],
        places=None if scan.places is None else scan.places[chosen],
        placement=None if scan.placement is None else scan.placement.some(chosen),
        stack=None if scan.stack is None else scan.stack.some(chosen),
        settings={name: values[chosen] for name, values in scan.settings.items()},
    )


def slice_name(scan: MRIScan, index: int) -> str:
    """The label of an entry along S, or its number."""
    return scan.labels[index] if index < len(scan.labels) else f"slice {index}"


def check_mask(mask: NDArray[np.bool_], shape: tuple[int, ...], partitions: int = 1) -> None:
    """Raise DataError unless ``mask`` is bool ``(S | 1, 1, H, W | 1)`` for a k-space ``(S, C, H, W)``, with a sample in
    every slice, or of so many partitions of a volume in one at least."""
    slices, _, height, width = shape
    if mask.dtype != np.bool_:
        raise DataError(f"mask: dtype {mask.dtype} is not supported, expected bool")
    allowed = ((slices, 1), (1,), (height,), (width, 1))
    if mask.ndim != 4 or any(n not in sizes for n, sizes in zip(mask.shape, allowed, strict=True)):
        raise DataError(
            f"mask: shape {mask.shape} does not fit k-space of shape {shape}, "
            f"expected (S | 1, 1, H, W | 1) = ({slices} | 1, 1, {height}, {width} | 1)"
        )
    if not mask.reshape(-1, mask[:partitions].size).any(axis=1).all():
        raise DataError(f"mask: a {'slice' if partitions == 1 else 'volume'} has no sample at all")


# --- oversampling ----------------------------------------------------------------------------------------------
def remove_oversampling(scan: MRIScan) -> MRIScan:
    """Crop the readout to its field of view, exactly: transform along W, keep the centre, transform back.

    Both transforms are orthonormal, so image values and the noise of a sample stay what they were. A mask that varies
    along W (a partial echo) is taken at the samples the new grid keeps.
    """
    check_scan(scan)
    if scan.readout_oversampling == 1:
        return scan
    width, kept = scan.kspace.shape[3], readout_width(scan)
    mask = scan.mask
    if mask.shape[3] > 1:
        nearest = np.rint((np.arange(kept) - kept // 2) * (width / kept)).astype(int) + width // 2
        mask = mask[..., nearest.clip(0, width - 1)]
    return replace(
        scan,
        kspace=np.where(mask, _cropped(scan.kspace, kept), 0),
        mask=mask,
        calibration=None if scan.calibration is None else _cropped(scan.calibration, kept),
        readout_oversampling=1.0,
    )


def readout_width(scan: MRIScan) -> int:
    """Samples along the readout without its oversampling; DataError where that leaves none, or a part of one."""
    return _kept(scan.kspace.shape[3], scan.readout_oversampling, "readout_oversampling", "readout samples")


def image_height(scan: MRIScan) -> int:
    """Rows of the images without the phase oversampling; DataError where that leaves none, or a part of one."""
    return _kept(scan.kspace.shape[2], scan.phase_oversampling, "phase_oversampling", "lines")


def crop_phase(images: Tensor, scan: MRIScan) -> Tensor:
    """Images or maps ``(..., H, W)`` of a scan, within its field of view along H."""
    return images[..., centered_slice(scan.kspace.shape[2], image_height(scan)), :]


def _kept(count: int, factor: float, name: str, what: str) -> int:
    kept: int = round(count / factor)
    if abs(kept * factor - count) > 1e-3 * count:
        raise DataError(f"{name}: {count} {what} divided by {factor} is no whole number")
    return kept


def _cropped(kspace: NDArray[np.complex64], width: int) -> NDArray[np.complex64]:
    image = ifft_centered(torch.from_numpy(kspace), (-1,))
    return fft_centered(image[..., centered_slice(kspace.shape[3], width)], (-1,)).numpy()


# --- noise -----------------------------------------------------------------------------------------------------
def estimate_noise(scan: MRIScan) -> Noise:
    """Noise covariance between the coils, from the noise scan or, lacking one, from the corners of k-space.

    The corners are the samples outside the ellipse through the ends of both axes, where an object has least signal.
    What signal there is counts as noise, so this estimate is an upper bound: good where the image's finest detail
    drowns in noise, as in nearly every measured scan, wrong for data without noise. Of partitions in k-space it is the
    same ellipse: across thick partitions the ends of k-space hold more signal than those along rows. They are taken
    after the readout oversampling is removed: the receiver's filter lets less noise through in the margins of the
    readout than inside.
    """
    check_scan(scan)
    coils = scan.kspace.shape[1]
    samples = _corners(remove_oversampling(scan))
    if scan.noise is not None and scan.noise.shape[1] >= 4 * coils:
        noise = _noise(scan.noise.astype(np.complex128), "noise scan", scan.noise_ratio)
        power, most = (float(np.mean(np.abs(k) ** 2)) if k.size else np.inf for k in (scan.noise, samples))
        if scan.noise_ratio * power > 2 * most:
            warnings.warn(
                f"noise: the noise scan predicts {scan.noise_ratio * power / most:.1f} times the power that the "
                f"corners of k-space have (noise_ratio is {scan.noise_ratio:g}); regularisation will be too strong",
                stacklevel=2,
            )
        return noise
    if samples.shape[1] < 4 * coils:
        raise DataError(
            f"noise: no noise scan, and {samples.shape[1]} samples in the corners of k-space are too few for the "
            f"covariance of {coils} coils (expected {4 * coils}); give a noise scan or reconstruct without whitening"
        )
    return _noise(samples, "k-space corners")


def _corners(scan: MRIScan) -> NDArray[np.complex128]:
    """``(C, samples)``: what was sampled outside the ellipse, exact zeros (filled in by somebody) left out."""
    slices, _, height, width = scan.kspace.shape
    rows, columns = ((np.arange(n) - n // 2) / (n / 2) for n in (height, width))
    corner = rows[:, None] ** 2 + columns[None, :] ** 2 > 1
    taken = np.broadcast_to(scan.mask & corner, (slices, 1, height, width))[:, 0]
    samples = scan.kspace.transpose(1, 0, 2, 3)[:, taken].astype(np.complex128)
    return samples[:, samples.any(axis=0)]


def _noise(samples: NDArray[np.complex128], source: str, ratio: float = 1.0) -> Noise:
    return Noise(ratio * (samples @ samples.conj().T) / samples.shape[1], samples.shape[1], source)


def prewhiten(scan: MRIScan, noise: Noise | None = None) -> MRIScan:
    """Combine the coils so that their noise is uncorrelated with ``E|n|^2 = 1``.

    That is ``L^-1 k``, L the Cholesky factor of the covariance (by default that of :func:`estimate_noise`). From here
    on k-space, images and regularisation weights are in units of the noise.
    """
    noise = estimate_noise(scan) if noise is None else noise
    coils = scan.kspace.shape[1]
    if noise.covariance.shape != (coils, coils):
        raise DataError(f"noise: covariance of shape {noise.covariance.shape} does not fit {coils} coils")
    power = noise.covariance.diagonal().real
    dead = np.flatnonzero(power <= 1e-12 * power.max())
    if dead.size:
        raise DataError(
            f"noise: coil {', '.join(map(str, dead))} of {coils} has no noise ({noise.source}): a dead channel, or "
            "data without noise; leave the coil out, or reconstruct without whitening"
        )
    scale = np.sqrt(power)
    correlation = noise.covariance / np.outer(scale, scale)
    smallest = float(np.linalg.eigvalsh(correlation)[0])
    if smallest < 1e-6:
        raise DataError(
            f"noise: the coils' covariance ({noise.source}) is singular (smallest eigenvalue of the correlation "
            f"{smallest:.1e}): a channel is stored twice, or the data have no noise; reconstruct without whitening"
        )
    inverse = np.linalg.inv(np.linalg.cholesky(correlation)) / scale
    largest = float(np.abs(inverse).max() * max(np.abs(part).max() for part in (scan.kspace, scan.calibration)
                                                if part is not None))  # fmt: skip
    if not largest * coils <= LARGEST:
        raise DataError(
            f"noise: k-space is up to {largest:.1e} times its noise ({noise.source}), expected at most {LARGEST:g}: "
            "reconstruct without whitening"
        )
    return _transform_coils(scan, inverse.astype(np.complex128), {WHITENED: f"{noise.source}, {noise.samples} samples"})


def compress_coils(scan: MRIScan, coils: int) -> MRIScan:
    """Keep the ``coils`` combinations of coils that hold most of the signal (principal components; Buehrer 2007).

    The combination is orthonormal, so white noise stays white: whiten first. ``metadata["compression_energy"]`` is the
    fraction of the energy kept.
    """
    check_scan(scan)
    have = scan.kspace.shape[1]
    if not 1 <= coils <= have:
        raise ValueError(f"coils: {coils} of {have}, expected between 1 and {have}")
    samples = scan.kspace.transpose(1, 0, 2, 3).reshape(have, -1)
    gram = (samples @ samples.conj().T).astype(np.complex128)
    energy, vectors = np.linalg.eigh(gram)
    kept = float(energy[-coils:].sum() / energy.sum()) if energy.sum() > 0 else 1.0
    return _transform_coils(scan, vectors[:, ::-1][:, :coils].conj().T, {"compression_energy": kept})


def _transform_coils(scan: MRIScan, matrix: NDArray[np.complex128], notes: dict[str, object]) -> MRIScan:
    before = scan.metadata.get(COIL_TRANSFORM)
    whole = matrix if before is None else matrix @ before
    small = matrix.astype(np.complex64)

    def combined(data: NDArray[np.complex64]) -> NDArray[np.complex64]:
        return np.asarray(np.einsum("dc,schw->sdhw", small, data, optimize=True), np.complex64)

    return replace(
        scan,
        kspace=combined(scan.kspace),
        noise=None if scan.noise is None else small @ scan.noise,
        calibration=None if scan.calibration is None else combined(scan.calibration),
        metadata={**scan.metadata, COIL_TRANSFORM: whole, **notes},
    )


# --- sampling --------------------------------------------------------------------------------------------------
def undersample(scan: MRIScan, mask: Tensor | NDArray[np.bool_]) -> MRIScan:
    """The scan as if only ``mask`` ``(S | 1, 1, H | 1, W | 1)`` of what it has had been sampled."""
    given = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
    if given.ndim == 4 and given.shape[2] == 1:
        given = np.broadcast_to(given, (*given.shape[:2], scan.kspace.shape[2], given.shape[3]))
    check_mask(given, scan.kspace.shape, scan.encoded_partitions)
    taken = scan.mask & given
    check_mask(taken, scan.kspace.shape, scan.encoded_partitions)
    return replace(scan, kspace=np.where(taken, scan.kspace, 0), mask=taken)


def calibration_region(mask: NDArray[np.bool_], shape: tuple[int, int], size: int | None = None) -> tuple[slice, slice]:
    """The largest fully sampled block about the centre of k-space, common to all slices, as slices of H and W.

    Parameters
    ----------
    mask
        ``(S | 1, 1, H, W | 1)`` bool.
    shape
        ``(H, W)`` of the k-space.
    size
        Of a block's sides no more than this counts.
    """
    height, width = shape
    most = max(shape) if size is None else size
    full = np.broadcast_to(np.asarray(mask.all(axis=(0, 1))), shape)
    best = (0, 0)
    for rows in range(1, height + 1):
        columns = np.logical_and.reduce(full[centered_slice(height, rows)], axis=0)
        if not columns[width // 2]:
            break  # taller blocks contain this one
        gaps = np.flatnonzero(~columns) - width // 2
        left = int(-gaps[gaps < 0].max()) - 1 if (gaps < 0).any() else width // 2
        right = int(gaps[gaps > 0].min()) - 1 if (gaps > 0).any() else width - 1 - width // 2
        widest = min(2 * left + 1, 2 * right + 2)  # a centred block of size n reaches n // 2 left, (n - 1) // 2 right
        sides = min(rows, most), min(widest, most)
        if sides[0] * sides[1] > best[0] * best[1]:
            best = sides
    return centered_slice(height, best[0]), centered_slice(width, best[1])


def calibration_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The largest fully sampled block about the centre, image by image: bool ``(B | 1, 1, H, W)`` from ``(B | 1, 1, H |
    1, W | 1)``; nothing where the centre itself is not sampled. On the device of ``mask``."""
    block = torch.zeros(len(mask), 1, *shape, dtype=torch.bool)
    for own, sampled in zip(block, (mask != 0).cpu().numpy(), strict=True):
        own[(0, *calibration_region(sampled[None], shape))] = True
    return block.to(mask.device)


def calibration_data(scan: MRIScan, size: int = 24) -> Tensor:
    """The centre of k-space that coil maps are estimated from, ``(S', C, h, w)`` with h, w at most ``size``.

    From the scan's separate reference lines if it has some, each for S / S' slices in a row, else from its own fully
    sampled centre. Raises DataError if the centre is not sampled.
    """
    return _central_block(*_reference_lines(scan), size)


def averaged_calibration(scan: MRIScan, size: int = 24) -> tuple[Tensor, NDArray[np.int64]]:
    """The centre of k-space of the average over time, and ``(S,)`` which of them each entry of the scan belongs to.

    Where lines are left out in turn (TSENSE, Kellman et al., Magn Reson Med 45:846, 2001), or a repetition was broken
    off, the average over phases and repetitions has them all. Raises DataError if it does not.
    """
    check_scan(scan)
    count, height = len(scan.kspace), scan.kspace.shape[2]
    places = np.arange(count) if scan.places is None else np.unique(scan.places, return_inverse=True)[1]
    number = int(places.max()) + 1
    mask = np.broadcast_to(scan.mask, (count, 1, height, scan.mask.shape[3]))
    total = np.zeros((number, *scan.kspace.shape[1:]), np.complex64)
    times = np.zeros((number, *mask.shape[1:]), np.float32)
    for entry, place in enumerate(places):
        total[place] += scan.kspace[entry]
        times[place] += mask[entry]
    mean = (total / np.maximum(times, 1)).astype(np.complex64)
    return _central_block(mean, times > 0, size), places


def _reference_lines(scan: MRIScan) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    check_scan(scan)
    if scan.calibration is not None:
        return scan.calibration, (scan.calibration != 0).any(axis=1, keepdims=True)
    return scan.kspace, scan.mask


def _central_block(source: NDArray[np.complex64], sampled: NDArray[np.bool_], size: int) -> Tensor:
    height, width = source.shape[2:]
    h, w = (r.stop - r.start for r in calibration_region(sampled, (height, width), size))
    if h == 0 or w == 0:
        raise DataError(
            "calibration: the centre of k-space is not sampled; acquire autocalibration lines, or give coil maps"
        )
    block = source[:, :, centered_slice(height, h), centered_slice(width, w)]
    return torch.from_numpy(block.copy())
