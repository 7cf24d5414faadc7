"""From a raw scan of several contrasts to maps and a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.contrasts import Contrasts, contrasts_of
from pyrecon.data.fourier import centered_slice
from pyrecon.data.mri import COIL_TRANSFORM, image_height, some_entries
from pyrecon.data.partial_fourier import measured_parts, told
from pyrecon.data.planes import expect_slices
from pyrecon.data.raw import MRIScan
from pyrecon.linops import Sense
from pyrecon.models.method import check_method
from pyrecon.models.mri.map_methods import Fitted, MapMethod, SenseFit
from pyrecon.models.mri.mapping import Maps, count_voxels
from pyrecon.models.mri.reconstruct import CHUNK_BYTES, Prepared, prepare, with_coil_maps
from pyrecon.report import Recorder, Report

__all__ = ["reconstruct_maps"]


def reconstruct_maps(
    scan: MRIScan,
    method: MapMethod | None = None,
    *,
    coil_maps: Literal["espirit", "walsh"] = "espirit",
    calibration: int = 24,
    whiten: bool = True,
    coils: int | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Maps, Report]:
    """T1 and M0 of every slice of a scan with several contrasts.

    Readout oversampling, noise and coils are dealt with as by :func:`~pyrecon.models.mri.reconstruct_mri`. The coil
    maps of a slice are one set for all its images, estimated from the last: that of the longest time, which has most
    signal.

    Parameters
    ----------
    scan
        Whose ``slices`` and ``settings`` say which image is which; in any order.
    method
        :class:`~pyrecon.models.mri.SenseFit` if not given, or :class:`~pyrecon.models.mri.PINQIMRI`.
    coil_maps, calibration, whiten, coils, device
        As of :func:`~pyrecon.models.mri.reconstruct_mri`.
    progress
        Told how many slices are done, of how many.

    Returns
    -------
    maps, report
        T1 in seconds, factors as magnitude and phase in the unit of the data over the root sum of squares of the coils,
        where the coil maps are not zero; the phase is relative to that of the coil maps.

    Raises
    ------
    DataError
        If the scan is damaged, is no series of the method's setting, or has no calibration region; if the weights are
        for other times.
    """
    if not isinstance(scan, MRIScan):
        raise TypeError(f"scan: expected an MRIScan from a reader or a simulation, got {type(scan).__name__}")
    method = SenseFit() if method is None else check_method(method, MapMethod, "SenseFit()")
    if coil_maps not in ("espirit", "walsh"):
        raise ValueError(f"coil_maps: {coil_maps!r} is not known, expected 'espirit' or 'walsh'")
    expect_slices(scan, method.title, "reconstruct the images by cg-sense and fit them by pyrecon fit")
    series = contrasts_of(scan, method.setting, method.besides)
    run = Recorder(method.title, method, device=device)
    report = run.report()
    report.details[method.setting] = ", ".join(f"{v:.6g}" for v in series.values) + " s"
    values = torch.from_numpy(series.values).to(device)
    parts = list[Maps]()
    with run:
        data = prepare(scan, None, whiten, coils, report.details)
        method = method.fitted(*data.tensors(slice(None)), series.values.tolist())
        report.parameters |= method.settings()
        last = replace(data, scan=some_entries(data.scan, series.entries[:, -1]))
        found = with_coil_maps(last, coil_maps, calibration, torch.device(device), report.details).maps
        assert found is not None
        gain = _gain(found, data, scan)
        _tell(report, method, len(series.values))
        partial = told(measured_parts(data.scan.mask, (data.scan.kspace.shape[2], data.scan.kspace.shape[3])))
        report.details |= {"partial_fourier": f"{partial}: zero"} if partial else {}
        count, here = len(series.entries), found.expand(len(series.entries), *found.shape[1:])
        step = max(1, CHUNK_BYTES // (len(values) * data.scan.kspace[0].nbytes))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            kspace, mask = (tensor.to(device) for tensor in _tensors(data, series, rows))
            coil = here[rows, None].to(device)
            fitted = method.solve(kspace, coil, mask, values)
            misfit = ((Sense(coil, mask)(fitted.images) - kspace) * mask).flatten(1)
            samples = mask.expand(*kspace.shape[:2], 1, *kspace.shape[3:]).flatten(1).sum(1)
            noise = (kspace.shape[2] * samples).sqrt() if data.noise_known else None
            run.add(residual=torch.linalg.vector_norm(misfit, dim=1), noise_level=noise)
            parts.append(_maps(fitted, gain.expand(count, *gain.shape[1:])[rows], (coil != 0).any(dim=2)[:, 0]))
            progress(min(start + step, count), count)
    maps = _joined(parts).of_rows(centered_slice(scan.kspace.shape[2], image_height(scan)))
    count_voxels(report, maps, "T1", method.ends)
    return maps, report


def _tensors(data: Prepared, series: Contrasts, rows: slice) -> tuple[Tensor, Tensor]:
    """K-space ``(B, T, C, H, W)`` and mask ``(B | 1, T, 1, H, W | 1)`` of some slices."""
    entries, mask = series.entries[rows], data.scan.mask
    taken = mask[None].repeat(entries.shape[1], axis=1) if len(mask) == 1 else mask[entries]
    return torch.from_numpy(data.scan.kspace[entries]), torch.from_numpy(taken)


def _gain(maps: Tensor, data: Prepared, scan: MRIScan) -> Tensor:
    """``(S | 1, H, W)``: what an image in units of the noise, with ``maps`` of the combined coils, is to be multiplied
    by to be in the unit of the scan's data, with maps of its own coils whose root sum of squares is 1."""
    before = scan.metadata.get(COIL_TRANSFORM, np.eye(scan.kspace.shape[1]))
    change = data.scan.metadata.get(COIL_TRANSFORM, before) @ np.linalg.pinv(before)
    back = torch.from_numpy(np.linalg.pinv(change)).to(torch.complex64)
    own = torch.einsum("cd,sdhw->schw", back, maps)
    gain: Tensor = torch.linalg.vector_norm(own, dim=1) / data.scale
    return gain


def _tell(report: Report, method: MapMethod, images: int) -> None:
    details = report.details
    details["images"] = f"{images} of each slice"
    details["maps"] += ", of the last image of each slice"
    details["unit"] = "of the data, over the root sum of squares of the coils; phase relative to the coil maps"
    del details["image_unit"]
    details |= method.assumed()


def _maps(fitted: Fitted, gain: Tensor, inside: Tensor) -> Maps:
    gain, kept = gain.to(inside.device), inside.cpu()

    def plain(v: Tensor) -> NDArray[np.float32]:
        return torch.where(kept, v.cpu(), 0.0).float().numpy()

    values, units = dict[str, NDArray[np.float32]](), dict[str, str]()
    for name, value in fitted.values.items():
        values[name] = plain(value if name == "T1" else value.abs() * gain)
        units[name] = "s" if name == "T1" else "a.u."
        if value.is_complex():
            values[f"phase of {name}"], units[f"phase of {name}"] = plain(value.angle()), "rad"
    errors = {name: plain(v if name == "T1" else v * gain) for name, v in fitted.errors.items()}
    status = torch.where(kept, fitted.status.cpu(), 0).numpy()
    at_bound = (kept & fitted.at_bound.cpu()).numpy()
    return Maps(values, errors, plain(fitted.residual * gain), status, at_bound, kept.numpy(), units)


def _joined(parts: list[Maps]) -> Maps:
    if not parts:
        raise DataError("kspace: has no slices")
    first = parts[0]
    return Maps(
        {name: np.concatenate([part.values[name] for part in parts]) for name in first.values},
        {name: np.concatenate([part.errors[name] for part in parts]) for name in first.errors},
        np.concatenate([part.residual for part in parts]),
        np.concatenate([part.status for part in parts]),
        np.concatenate([part.at_bound for part in parts]),
        np.concatenate([part.inside for part in parts]),
        first.units,
    )
