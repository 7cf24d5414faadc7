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
from pyrecon.data.coil_maps import espirit_maps, in_phase, walsh_maps
from pyrecon.data.fourier import ifft_centered
from pyrecon.data.mri import (
    COIL_TRANSFORM,
    WHITENED,
    averaged_calibration,
    calibration_data,
    check_scan,
    compress_coils,
    crop_phase,
    image_height,
    prewhiten,
    remove_oversampling,
    slice_name,
)
from pyrecon.data.partial_fourier import LINES, PARTITIONS, Way
from pyrecon.data.planes import expect_slices, planes_of, to_planes, to_slices, volume_name
from pyrecon.data.raw import MRIScan
from pyrecon.linops import Sense
from pyrecon.models.method import check_method
from pyrecon.models.mri.methods import CGSense, MRIMethod, TVSense, count_samples
from pyrecon.models.mri.partial_fourier import Filling, check_way
from pyrecon.report import Recorder, Report
from pyrecon.solvers import Solution

TOLD = ("phase_correction", "ramp_sampling", "slice_oversampling", "interpolation")  # by readers, for the report
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
    partial_fourier: Way = "zero",
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Report]:
    """Reconstruct every slice of a scan.

    Removes readout oversampling, whitens the noise, compresses the coils if asked, estimates coil maps, solves, and
    crops the images to the field of view where the phase encoding was oversampled. A scan with partitions in k-space is
    solved in planes of partitions and rows, one for each column (:mod:`pyrecon.data.planes`): the report counts these,
    penalties act within them.

    Parameters
    ----------
    scan
        From a reader or a simulation.
    method
        One of the classes here; :func:`default_method` if not given.
    maps
        Maps ``(S | 1, C, H, W)`` of the scan's coils, in place of estimated ones, over all of the field of view that
        was encoded along H; any normalisation.
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
    partial_fourier
        What fills in the side of k-space along rows or columns that partial Fourier and asymmetric echoes leave out:
        ``"zero"``: what the method does by itself, which the report says; ``"homodyne"`` or ``"pocs"``: the smooth
        phase of the image (:func:`pyrecon.data.partial_fourier.complete`), of the combined image that the method has
        unfolded, or of every coil where it has no maps.
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
        :class:`~pyrecon.models.mri.JointMRI` and :class:`~pyrecon.models.mri.NLINV` do not.
    """
    options: dict[str, Any] = {"maps": maps, "coil_maps": coil_maps, "calibration": calibration, "whiten": whiten}
    images, _, report = reconstruct_with_maps(
        scan, method, **options, coils=coils, partial_fourier=partial_fourier, device=device
    )
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
    partial_fourier: Way = "zero",
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor | None, Report]:
    """As :func:`reconstruct_mri`, with the maps in between: images, maps, report.

    The maps ``(S | 1, C, H, W)`` complex64 are those of the whitened, compressed coils on the pixels of the images,
    with a root sum of squares of 1 or 0; None for a method without any.
    """
    if not isinstance(scan, MRIScan):
        raise TypeError(f"scan: expected an MRIScan from a reader or a simulation, got {type(scan).__name__}")
    method = default_method(scan) if method is None else check_method(method, MRIMethod, "CGSense()")
    check_way(partial_fourier, method)
    if coil_maps not in ("espirit", "walsh"):
        raise ValueError(f"coil_maps: {coil_maps!r} is not known, expected 'espirit' or 'walsh'")
    run = Recorder(method.name, method, device=device)
    report = run.report()
    if method.knows_slices:
        expect_slices(scan, method.name, "reconstruct it by cg-sense, tv-sense or joint with total variation")
    images, found = [], []
    iterations = 0
    with run:
        with one_thread_if_small(scan.kspace.size // _PASSES):
            data = prepare(scan, maps, whiten, coils, report.details)
            method = method.fitted(*data.tensors(slice(None)))
        report.counted = "images" if data.planes is None else "planes"
        report.parameters |= method.settings()
        if method.needs_maps:
            data = with_coil_maps(data, coil_maps, calibration, torch.device(device), report.details)
        axes = LINES if data.planes is None else PARTITIONS
        filling = Filling(data.scan, method, partial_fourier, axes)
        report.details |= filling.story
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
                whole, everywhere = filling.coils(part, kspace, mask)
                here, solution = None, method.solve(whole, None, everywhere)
            solution = filling.images(part, solution, here)
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
    used = torch.cat(found) if found else data.maps
    return (
        crop_phase(data.slices(torch.cat(images)), scan),
        None if used is None else crop_phase(data.slices(used), scan),
        report,
    )


@dataclass(frozen=True)
class Prepared:
    """A scan, or its planes, in units of its noise; with maps of root sum of squares 1 or 0 once they are known."""

    scan: MRIScan
    noise_known: bool
    scale: float  # by which the data were multiplied where the noise is not known, or columns are missing
    maps: Tensor | None = None
    gain: Tensor | None = None  # (S | 1, H, W): root sum of squares of the maps that were given
    planes: int | None = None  # that make up a volume with partitions in k-space: one for each column

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

    def slices(self, values: Tensor) -> Tensor:
        """Images or maps of the scan, of those of its planes."""
        if self.planes is None:
            return values
        if len(values) == 1 < self.planes:  # the map of a single coil
            return to_slices(values.expand(self.planes, *values.shape[1:]), self.planes)[:1]
        return to_slices(values, self.planes)

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
    if scan.phase_oversampling != 1:
        details["phase_oversampling"] = (
            f"{scan.phase_oversampling:.4g}: images cropped from {scan.kspace.shape[2]} to {image_height(scan)} rows"
        )
    scale, planes = 1.0, None
    if scan.encoded_partitions > 1:
        planes = scan.kspace.shape[3]
        scan, maps, scale = _in_planes(scan, maps, details)
    if not known:
        brightest = max(
            float(torch.linalg.vector_norm(ifft_centered(torch.from_numpy(k)), dim=0).max()) for k in scan.kspace
        )
        if brightest == 0:
            raise DataError("kspace: is zero everywhere, nothing to reconstruct")
        scale = 100 / brightest
    if scale != 1:
        scan = replace(
            scan,
            kspace=scan.kspace * np.float32(scale),
            calibration=None if scan.calibration is None else scan.calibration * np.float32(scale),
        )
    details["noise"] = scan.metadata[WHITENED] if known else "unknown: 1 % of the brightest pixel"
    details |= {name: scan.metadata[name] for name in TOLD if name in scan.metadata}
    details["image_unit"] = "noise" if known and maps is None else "data"
    data = Prepared(scan, known, scale, planes=planes)
    if maps is None:
        return data
    change = scan.metadata.get(COIL_TRANSFORM, before) @ np.linalg.pinv(before)
    moved = torch.einsum("dc,schw->sdhw", torch.from_numpy(change).to(maps.dtype), maps.cpu()).to(torch.complex64)
    gain = torch.linalg.vector_norm(moved, dim=1)
    details["maps"] = "given"
    return replace(data, maps=torch.where(gain[:, None] > 0, moved / gain[:, None], 0), gain=gain)


def _in_planes(scan: MRIScan, maps: Tensor | None, details: dict[str, Any]) -> tuple[MRIScan, Tensor | None, float]:
    """Planes, the given maps of these, and what makes the noise of a sample what it was."""
    count, partitions, columns = len(scan.kspace), scan.encoded_partitions, scan.kspace.shape[3]
    height, _, thickness = scan.field_of_view
    rows = scan.kspace.shape[2]
    details["partitions"] = (
        f"{partitions}, sampled differently: {columns} planes of {partitions} x {rows} for each volume; penalties act "
        f"within them, along partitions of {1e3 * thickness:.3g} mm and rows of {1e3 * height / rows:.3g} mm alike"
    )
    scan, share = planes_of(scan)
    if share < 1:
        warnings.warn(
            f"{1 - share:.0%} of the samples along the readout were not measured (partial echo): they are zero, the "
            "resolution along the readout is lower",
            stacklevel=5,
        )
    if maps is not None:
        maps = to_planes(maps.expand(count, *maps.shape[1:]), partitions)
    return scan, maps, share**-0.5


def _incomplete(scan: MRIScan) -> Iterator[str]:
    """Slices or volumes with far fewer samples than most: a repetition that was broken off."""
    each = scan.encoded_partitions
    name = slice_name if each == 1 else volume_name
    counts = scan.mask.sum(axis=(1, 2, 3))
    counts = counts.reshape(-1, each).sum(axis=1) if len(counts) > 1 else counts
    usual = float(np.median(counts))
    few = np.flatnonzero(counts < 0.6 * usual).tolist()
    if few:
        names = ", ".join(name(scan, entry) for entry in few[:8]) + (", ..." if len(few) > 8 else "")
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
        block, owner, over_time = calibration_block(data.scan, size)
        details["maps"] = f"{kind} from {block.shape[2]} x {block.shape[3]} samples{over_time}"
        maps = _estimated(block.to(device), kind, (height, width), in_planes=data.planes is not None)
    except DataError as error:
        raise DataError(f"{error}; the methods joint (JointMRI) and nlinv (NLINV) need neither") from None
    if data.planes is not None:  # the columns of an image have one phase
        maps = in_phase(maps, block.to(device))
    maps = maps.cpu()[torch.from_numpy(owner)]
    each = data.planes or 1  # a column beside the object is no news
    empty = (maps == 0).flatten(1).all(dim=1).view(-1, each).all(dim=1).nonzero()[:, 0].tolist()
    if len(empty) * each == slices:
        raise DataError("kspace: no signal rises above the noise in the centre of any slice; nothing to reconstruct")
    if empty:
        names = ", ".join(slice_name(data.scan, s * each) for s in empty[:8]) + (", ..." if len(empty) > 8 else "")
        warnings.warn(f"no signal rises above the noise in {names}: the image is zero there", stacklevel=4)
    return replace(data, maps=maps)


def calibration_block(scan: MRIScan, size: int) -> tuple[Tensor, NDArray[np.int64], str]:
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


def _estimated(block: Tensor, kind: str, shape: tuple[int, int], *, in_planes: bool) -> Tensor:
    if kind == "walsh":
        return walsh_maps(block, shape)
    kernel = kernel_sides((block.shape[2], block.shape[3]), in_planes=in_planes)
    return espirit_maps(block, shape, noise_std=1.0, kernel=kernel)[0]


def kernel_sides(samples: tuple[int, int], *, in_planes: bool) -> tuple[int, int]:
    """Of ESPIRiT's kernel for a block of so many samples, of a slice or ``in_planes`` of partitions and lines; larger
    than the block where that is too small."""
    # Of 10 lines a kernel of 6 took 155 of 3,000 pixels of a brain for empty, and its maps of the others were off
    # by 9 times as much as with 4; from 14 lines on 3 to 6 are equal. Fewer than 6 lines are too few for any. A kernel
    # of more than half the partitions takes the whole object for empty; of 4, 2 gives maps within 8 to 14 %.
    if in_planes:
        return _side(samples[0], 4), _side(samples[1], 6)
    return 2 * (_side(min(samples), 6),)


def _side(samples: int, least: int) -> int:
    """Of a kernel; one that does not fit where there are too few samples."""
    return max(2, min(6, samples // 2 - 1)) if samples >= least else 6


def _check_maps(maps: Tensor, scan: MRIScan) -> None:
    slices, coils, height, width = scan.kspace.shape
    if not isinstance(maps, Tensor) or not maps.is_complex():
        raise TypeError(f"maps: expected a complex tensor, got {getattr(maps, 'dtype', type(maps).__name__)}")
    if maps.dim() != 4 or maps.shape[0] not in (1, slices) or maps.shape[1:] != (coils, height, width):
        raise ValueError(
            f"maps: shape {tuple(maps.shape)} does not fit the scan, "
            f"expected (S | 1, C, H, W) = ({slices} | 1, {coils}, {height}, {width})"
            + (", with the phase oversampling" if scan.phase_oversampling != 1 else "")
        )
    if not bool(torch.isfinite(torch.view_as_real(maps)).all()):
        raise ValueError("maps: hold NaN or Inf")
