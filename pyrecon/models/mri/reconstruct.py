"""From a scan to images and a report."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon._threads import one_thread_if_small
from pyrecon.data.coil_maps import espirit_maps, walsh_maps
from pyrecon.data.fourier import ifft_centered
from pyrecon.data.mri import (
    COIL_TRANSFORM,
    WHITENED,
    averaged_calibration,
    calibration_data,
    check_scan,
    compress_coils,
    prewhiten,
    remove_oversampling,
    slice_name,
)
from pyrecon.data.raw import MRIScan
from pyrecon.linops import Sense
from pyrecon.models.method import check_method
from pyrecon.models.mri.methods import CGSense, MRIMethod, TVSense, count_samples
from pyrecon.report import Recorder, Report
from pyrecon.solvers import Solution

# What is done once, not in a loop, may be so many times as large before torch gets all its threads: a second one saves
# two milliseconds of 8 coils of 230 x 360 samples, and beside other processes costs their time slices.
_PASSES = 8
CHUNK_BYTES = 2**29  # of coil data reconstructed at a time; a solver needs about four times as much


def default_method(scan: MRIScan) -> CGSense | TVSense:
    """What a scan is reconstructed by if nothing is said: CG-SENSE up to 3-fold undersampling, TV-SENSE beyond it."""
    return TVSense() if scan.mask.size / max(1, int(scan.mask.sum())) > 3 else CGSense()


def reconstruct_mri(
    scan: MRIScan,
    method: MRIMethod | None = None,
    *,
    maps: Tensor | None = None,
    coil_maps: Literal["espirit", "walsh"] = "espirit",
    calibration: int = 24,
    whiten: bool = True,
    coils: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Report]:
    """Reconstruct every slice of a scan.

    Removes readout oversampling, whitens the noise, compresses the coils if asked, estimates coil maps, and solves.

    Parameters
    ----------
    scan
        From a reader or a simulation.
    method
        One of the classes here; :func:`default_method` if not given.
    maps
        Maps ``(S | 1, C, H, W)`` of the scan's coils, in place of estimated ones; any normalisation.
    coil_maps
        How maps are estimated: :func:`~pyrecon.data.coil_maps.espirit_maps` or
        :func:`~pyrecon.data.coil_maps.walsh_maps`. A single coil has the map 1.
    calibration
        Maps are estimated from this many central samples along each axis, or as many as are sampled.
    whiten
        Whiten by :func:`~pyrecon.data.mri.prewhiten`; a scan that is whitened already stays as it is. Without it, or
        where the noise cannot be found (then with a warning), a hundredth of the brightest pixel counts as noise.
    coils
        Compress to this many coils.
    device
        Where to compute.

    Returns
    -------
    images, report
        ``(S, H, W)`` complex64 on the CPU. In units of the noise if the data were whitened and the maps estimated: the
        magnitude is then the signal-to-noise ratio of a fully sampled scan. Else in units of the data, over those of
        ``maps``.

    Raises
    ------
    DataError
        If the scan is damaged, or has no calibration region, no maps are given and the method needs some:
        :class:`~pyrecon.models.mri.JointMRI` does not.
    """
    options: dict[str, Any] = {"maps": maps, "coil_maps": coil_maps, "calibration": calibration, "whiten": whiten}
    images, _, report = reconstruct_with_maps(scan, method, **options, coils=coils, device=device)
    return images, report


def reconstruct_with_maps(
    scan: MRIScan,
    method: MRIMethod | None = None,
    *,
    maps: Tensor | None = None,
    coil_maps: Literal["espirit", "walsh"] = "espirit",
    calibration: int = 24,
    whiten: bool = True,
    coils: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor | None, Report]:
    """As :func:`reconstruct_mri`, with the maps in between: images, maps, report.

    The maps ``(S | 1, C, H, W)`` complex64 are those of the whitened, compressed coils, with a root sum of squares of 1
    or 0; None for a method without any.
    """
    if not isinstance(scan, MRIScan):
        raise TypeError(f"scan: expected an MRIScan from a reader or a simulation, got {type(scan).__name__}")
    method = default_method(scan) if method is None else check_method(method, MRIMethod, "CGSense()")
    if coil_maps not in ("espirit", "walsh"):
        raise ValueError(f"coil_maps: {coil_maps!r} is not known, expected 'espirit' or 'walsh'")
    run = Recorder(method.name, method, device=device)
    report = run.report()
    images, found = [], []
    iterations = 0
    with run:
        with one_thread_if_small(scan.kspace.size // _PASSES):
            data = prepare(scan, maps, whiten, coils, report.details)
            method = method.fitted(*data.tensors(slice(None)))
        report.parameters |= method.settings()
        if method.needs_maps:
            data = with_coil_maps(data, coil_maps, calibration, torch.device(device), report.details)
        for part in data.parts():
            here: Tensor | None
            solution: Solution[Tensor]
            kspace, mask = (tensor.to(device) for tensor in data.tensors(part))
            if method.finds_maps:
                joint = method.estimate(kspace, mask)
                here = joint.value[1]
                solution = Solution(joint.value[0].to(kspace.dtype), joint.status, joint.iterations, joint.residual)
                report.details |= method.story(kspace, mask)
                found.append(here.cpu())
            elif method.needs_maps:
                here = data.maps_of(part).to(device)
                solution = method.solve(kspace, here, mask)
            else:
                here, solution = None, method.solve(kspace, None, mask)
            if here is None:
                run.add(solution)
            else:
                with one_thread_if_small(kspace.numel() // _PASSES):
                    misfit = ((Sense(here, mask)(solution.value) - kspace) * mask).flatten(1)
                    noise = (kspace.shape[1] * count_samples(mask, kspace)).sqrt() if data.noise_known else None
                    run.add(solution, residual=torch.linalg.vector_norm(misfit, dim=1), noise_level=noise)
            iterations = max(iterations, int(solution.iterations.max()))
            images.append(solution.value.cpu() * data.unit(part))
    report.details["iterations"] = iterations
    return torch.cat(images), torch.cat(found) if found else data.maps, report


@dataclass(frozen=True)
class Prepared:
    """A scan in units of its noise; with maps of root sum of squares 1 or 0 once they are known."""

    scan: MRIScan
    noise_known: bool
    scale: float  # by which the data were multiplied where the noise is not known
    maps: Tensor | None = None
    gain: Tensor | None = None  # (S | 1, H, W): root sum of squares of the maps that were given

    def parts(self) -> Iterator[slice]:
        """The slices of the scan in groups that fit the memory."""
        count = len(self.scan.kspace)
        step = max(1, CHUNK_BYTES // self.scan.kspace[0].nbytes)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def tensors(self, part: slice) -> tuple[Tensor, Tensor]:
        """k-space and mask."""
        return torch.from_numpy(self.scan.kspace[part]), torch.from_numpy(_of(self.scan.mask, part))

    def maps_of(self, part: slice) -> Tensor:
        assert self.maps is not None
        return cast(Tensor, _of(self.maps, part))

    def unit(self, part: slice) -> Tensor | float:
        """What a solution is to be multiplied by."""
        if self.gain is None:
            return 1 / self.scale
        gain = _of(self.gain, part)
        return torch.where(gain > 0, 1 / (self.scale * gain), 0)


def _of(values: Any, part: slice) -> Any:
    """Those of the slices ``part``; one alone is everybody's."""
    return values if len(values) == 1 else values[part]


def prepare(scan: MRIScan, maps: Tensor | None, whiten: bool, coils: int | None, details: dict[str, Any]) -> Prepared:
    """Whitened and compressed, with the given maps taken along."""
    check_scan(scan)
    for note in [*scan.metadata.get("notes", ()), *_incomplete(scan)]:
        warnings.warn(note, stacklevel=4)
    before = scan.metadata.get(COIL_TRANSFORM, np.eye(scan.kspace.shape[1]))
    scan = remove_oversampling(scan)
    if maps is not None:
        _check_maps(maps, scan)
    known = WHITENED in scan.metadata
    if whiten and not known:
        try:
            scan = prewhiten(scan)
            known = True
        except DataError as error:
            warnings.warn(f"{error}; a hundredth of the brightest pixel counts as noise", stacklevel=4)
    if coils is not None:
        scan = compress_coils(scan, coils)
        details["coils"] = f"{coils} combinations with {scan.metadata['compression_energy']:.2%} of the energy"
    scale = 1.0
    if not known:
        brightest = max(
            float(torch.linalg.vector_norm(ifft_centered(torch.from_numpy(k)), dim=0).max()) for k in scan.kspace
        )
        if brightest == 0:
            raise DataError("kspace: is zero everywhere, nothing to reconstruct")
        scale = 100 / brightest
        scan = replace(
            scan,
            kspace=scan.kspace * np.float32(scale),
            calibration=None if scan.calibration is None else scan.calibration * np.float32(scale),
        )
    details["noise"] = scan.metadata[WHITENED] if known else "unknown: 1 % of the brightest pixel"
    if "phase_correction" in scan.metadata:
        details["phase_correction"] = scan.metadata["phase_correction"]
    details["image_unit"] = "noise" if known and maps is None else "data"
    data = Prepared(scan, known, scale)
    if maps is None:
        return data
    change = scan.metadata.get(COIL_TRANSFORM, before) @ np.linalg.pinv(before)
    moved = torch.einsum("dc,schw->sdhw", torch.from_numpy(change).to(maps.dtype), maps.cpu()).to(torch.complex64)
    gain = torch.linalg.vector_norm(moved, dim=1)
    details["maps"] = "given"
    return replace(data, maps=torch.where(gain[:, None] > 0, moved / gain[:, None], 0), gain=gain)


def _incomplete(scan: MRIScan) -> Iterator[str]:
    """Entries with far fewer samples than most: a repetition that was broken off."""
    counts = scan.mask.sum(axis=(1, 2, 3))
    usual = float(np.median(counts))
    few = np.flatnonzero(counts < 0.6 * usual).tolist()
    if few:
        names = ", ".join(slice_name(scan, entry) for entry in few[:8]) + (", ..." if len(few) > 8 else "")
        least = 100 * counts[few].min() / usual
        yield f"{names}: only {least:.0f} % of the samples that others have, perhaps broken off; the image is doubtful"


def with_coil_maps(data: Prepared, kind: str, size: int, device: torch.device, details: dict[str, Any]) -> Prepared:
    """With maps estimated unless they are there."""
    if data.maps is not None:
        return data
    slices, coils, height, width = data.scan.kspace.shape
    if coils == 1:
        details["maps"] = "1 (single coil)"
        return replace(data, maps=torch.ones(1, 1, height, width, dtype=torch.complex64))
    try:
        block, owner, over_time = _calibration(data.scan, size)
        details["maps"] = f"{kind} from {block.shape[2]} x {block.shape[3]} samples{over_time}"
        maps = _estimated(block.to(device), kind, (height, width))
    except DataError as error:
        raise DataError(f"{error}; the method joint (JointMRI) needs neither") from None
    maps = maps.cpu()[torch.from_numpy(owner)]
    empty = (maps == 0).flatten(1).all(dim=1).nonzero()[:, 0].tolist()
    if len(empty) == slices:
        raise DataError("kspace: no signal rises above the noise in the centre of any slice; nothing to reconstruct")
    if empty:
        names = ", ".join(slice_name(data.scan, s) for s in empty[:8]) + (", ..." if len(empty) > 8 else "")
        warnings.warn(f"no signal rises above the noise in {names}: the image is zero there", stacklevel=4)
    return replace(data, maps=maps)


def _calibration(scan: MRIScan, size: int) -> tuple[Tensor, NDArray[np.int64], str]:
    """The centre of k-space, which of them each entry belongs to, and whether it is an average over time.

    The average where it is larger: lines are left out in turn, or an entry was broken off before others were.
    """
    slices = len(scan.kspace)
    several = scan.places is not None and scan.calibration is None and len(np.unique(scan.places)) < slices
    try:
        block = calibration_data(scan, size)
    except DataError:
        if not several:
            raise
        return *averaged_calibration(scan, size), ", averaged over time"
    if several and min(block.shape[2:]) < size:
        average, places = averaged_calibration(scan, size)
        if average[0, 0].numel() > block[0, 0].numel():
            return average, places, ", averaged over time"
    return block, np.arange(slices) // (slices // len(block)), ""


def _estimated(block: Tensor, kind: str, shape: tuple[int, int]) -> Tensor:
    if kind == "walsh":
        return walsh_maps(block, shape)
    # Of 10 lines a kernel of 6 took 155 of 3,000 pixels of a brain for empty, and its maps of the others were off
    # by 9 times as much as with 4; from 14 lines on 3 to 6 are equal. Fewer than 6 lines are too few for any.
    side = min(block.shape[2:])
    kernel = min(6, side // 2 - 1) if side >= 6 else 6
    return espirit_maps(block, shape, noise_std=1.0, kernel=kernel)[0]


def _check_maps(maps: Tensor, scan: MRIScan) -> None:
    slices, coils, height, width = scan.kspace.shape
    if not isinstance(maps, Tensor) or not maps.is_complex():
        raise TypeError(f"maps: expected a complex tensor, got {getattr(maps, 'dtype', type(maps).__name__)}")
    if maps.dim() != 4 or maps.shape[0] not in (1, slices) or maps.shape[1:] != (coils, height, width):
        raise ValueError(
            f"maps: shape {tuple(maps.shape)} does not fit the scan, "
            f"expected (S | 1, C, H, W) = ({slices} | 1, {coils}, {height}, {width})"
        )
    if not bool(torch.isfinite(torch.view_as_real(maps)).all()):
        raise ValueError("maps: hold NaN or Inf")
