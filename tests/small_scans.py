"""Small whole scans of every format that the command line reads: of each it makes an image, in milliseconds.

Each function writes variant ``i`` of a format into an empty folder.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import savemat

from pyrecon.data.ct import CTScan
from pyrecon.data.raw import Grid, MPICalibration, MPIScan, MRIScan
from pyrecon.io import Result, mdf, write_result
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.io.sinogram import write_sinogram
from pyrecon.ops import ViewBeam
from pyrecon.physics import ct, mri
from pyrecon.physics.t1 import scan_brains, unseen_brains
from pyrecon.testing.mrd import fastmri_file, mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

ROWS, COLUMNS, COILS = 16, 16, 2  # COLUMNS: without the readout's oversampling


def head(acceleration: float = 1.0, coils: int = COILS) -> MRIScan:
    """A head with noise, oversampled along the readout, with a noise scan."""
    shape = (ROWS, COLUMNS)
    mask = mri.random_lines(shape, acceleration, acl=8, seed=0)
    maps = mri.coil_maps(shape, coils)
    return mri.simulate(mri.head_phantom(shape), maps, mask, noise_std=0.02, readout_oversampling=2, seed=0)


def lines_of(scan: MRIScan, **more: Any) -> list[dict[str, Any]]:
    """The sampled rows as readouts of raw data."""
    kspace = scan.kspace[0]
    rows = [row for row in range(kspace.shape[1]) if kspace[:, row].any()]
    return [{"data": kspace[:, row], "row": row} | more for row in rows]


# --- MRI -----------------------------------------------------------------------------------------------------------
def ismrmrd(folder: Path, variant: int) -> None:
    path = folder / "scan.h5"
    if variant == 0:
        write_ismrmrd(path, head())
    elif variant == 1:
        write_ismrmrd(path, head(2.0))
    elif variant == 2:
        write_ismrmrd(path, scan_brains(unseen_brains(1, 16, 0), (0.3, 0.9, 2.0), coils=2, acceleration=2.0, centre=8))
    elif variant == 3:
        _echo_planar(path)
    elif variant == 4:
        _two_slices(path)
    else:
        _slab(path)


def _encoding(rows: int = ROWS, slices: int = 1) -> str:
    return mrd_encoding((2 * COLUMNS, rows, slices), (400.0, 200.0, 5.0))


def _echo_planar(path: Path) -> None:
    """Lines of both directions with navigators, and references of another encoding space."""
    scan = head()
    directions = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1), "position": (0, 0, 3)}
    centre = scan.kspace[0, :, ROWS // 2]
    lines: list[dict[str, Any]] = [
        {"data": centre[:, ::-1] if i % 2 else centre, "flags": ["IS_PHASECORR_DATA", *["IS_REVERSE"] * (i % 2)]}
        for i in range(3)
    ]
    for line in lines_of(scan, **directions):
        row = line.pop("row")
        turned = line["data"][:, ::-1] if row % 2 else line["data"]
        flags = ["IS_REVERSE"] * (row % 2)
        lines.append(line | {"data": turned, "at": {"kspace_encode_step_1": row}, "flags": flags})
    for line in lines_of(scan)[4:12]:
        lines.append({"data": line["data"], "at": {"kspace_encode_step_1": line["row"] - 4}, "encoding_space_ref": 1,
                      "flags": ["IS_PARALLEL_CALIBRATION"]})  # fmt: skip
    system = "<sequenceParameters><TR>800</TR><TE>10</TE><flipAngle_deg>30</flipAngle_deg></sequenceParameters>"
    mrd_file(path, lines, mrd_header(_encoding(), _encoding(8), channels=COILS, vendor="SIEMENS", more=system))


def _two_slices(path: Path) -> None:
    """Of two repetitions, with places."""
    lines = []
    for s in range(2):
        for repetition in range(2):
            for line in lines_of(head()):
                at = {"kspace_encode_step_1": line["row"], "slice": s, "repetition": repetition}
                lines.append({"data": line["data"], "at": at, "position": (1.0, 2.0, 5.0 * s), "read_dir": (0, 1, 0),
                              "phase_dir": (1, 0, 0), "slice_dir": (0, 0, 1)})  # fmt: skip
    mrd_file(path, lines, mrd_header(_encoding(), channels=COILS, vendor="GE"))


def _slab(path: Path) -> None:
    """Four partitions, of which every other line is left out in turn beyond the centre."""
    lines = []
    for partition in range(4):
        for line in lines_of(head()):
            if (line["row"] + partition) % 2 == 0 or abs(line["row"] - ROWS // 2) < 4:
                at = {"kspace_encode_step_1": line["row"], "kspace_encode_step_2": partition}
                lines.append({"data": line["data"], "at": at})
    mrd_file(path, lines, mrd_header(_encoding(slices=4), channels=COILS))


def arrays(folder: Path, variant: int, *, suffix: str) -> None:
    """K-space as a bare array, undersampled by zeros or by a mask beside it."""
    kspace, mask = head(2.0).kspace, head(2.0).mask
    if suffix == ".cfl":
        stored = kspace[:1].transpose(3, 2, 0, 1) if variant == 0 else kspace[0].transpose(2, 1, 0)[:, :, None]
        sizes = [*stored.shape, *[1] * (16 - stored.ndim)]
        (folder / "scan.hdr").write_text(f"# Dimensions\n{' '.join(map(str, sizes))}\n")
        (folder / "scan.cfl").write_bytes(stored.astype("<c8").tobytes("F"))
        return
    held: dict[str, Any] = {"kspace": kspace if variant == 0 else kspace[0]}
    if variant:
        held["mask"] = mask[0, 0, :, 0].astype(np.uint8)
    if suffix == ".npz":
        np.savez(folder / "scan.npz", **held)
    else:
        savemat(folder / "scan.mat", held, do_compression=variant == 1)


PROTOCOL = f"""tSequenceFileName = ""%SiemensSeq%\\gre""
tProtocolName = ""head""
sKSpace.lBaseResolution = {COLUMNS}
sKSpace.lPhaseEncodingLines = {ROWS}
sKSpace.lPartitions = 1
sKSpace.dPhaseOversamplingForDialog = 0.1
sKSpace.ucTrajectory = 0x1
sSliceArray.asSlice[0].dThickness = 5.0
sSliceArray.asSlice[0].dPhaseFOV = 200.0
sSliceArray.asSlice[0].dReadoutFOV = 200.0
alTR[0] = 800000
alTE[0] = 10000
adFlipAngleDegree[0] = 30.0
"""
PARTS = {
    "Dicom": '<ParamDouble."flReadoutOSFactor">  { <Precision> 6  2.000000  }\n'
    '<ParamString."ManufacturersModelName">  { "Prisma"  }\n<ParamDouble."flMagneticFieldStrength">  { 3.0 }\n',
    "Meas": '<ParamLong."alRegridMode">  { 1 1 1 }\n<ParamDouble."RoFOV">  { 200.0 }\n',
}


def twix(folder: Path, variant: int, *, ve: bool) -> None:
    """One slice; two with places; undersampled with a reference scan; lines of both directions with navigators."""
    full, some = head(), head(2.0)
    assert full.noise is not None
    rotation = (np.sqrt(0.5), 0, 0, np.sqrt(0.5))
    lines: list[dict[str, Any]] = [{"data": full.noise[:, :64], "flags": ["NOISEADJSCAN"]}]
    centre = {"center_line": ROWS // 2, "rotation": rotation}
    if variant == 2:
        lines += [{"data": line["data"], "at": {"Lin": line["row"]}, "flags": ["PATREFSCAN"]} | centre
                  for line in lines_of(full)[4:12]]  # fmt: skip
    if variant == 3:
        for turned in (False, True, False):
            data = full.kspace[0, :, ROWS // 2]
            flags = ["PHASCOR", *["REFLECT"] * turned]
            lines.append({"data": data[:, ::-1] if turned else data, "at": {"Lin": ROWS // 2}, "flags": flags} | centre)
    for s in range(2 if variant == 1 else 1):
        for line in lines_of(some if variant == 2 else full):
            turned = variant == 3 and line["row"] % 2 == 1
            data = line["data"][:, ::-1] if turned else line["data"]
            at = {"Lin": line["row"], "Sli": s}
            lines.append({"data": data, "at": at, "position": (0, 0, 5 * s), "flags": ["REFLECT"] * turned} | centre)
    (folder / "meas.dat").write_bytes(twix_bytes(lines, PROTOCOL, PARTS, ve=ve))


def fastmri(folder: Path, variant: int) -> None:
    """Two slices of several coils with a mask; one slice of a single coil."""
    kspace = head().kspace.swapaxes(2, 3).repeat(2, 0)  # readout, lines
    mask = (np.arange(ROWS) % 2 == 0) | (np.abs(np.arange(ROWS) - ROWS // 2) < 4)
    if variant:
        fastmri_file(folder / "file.h5", kspace[:1, 0], reconstruction_esc=np.ones((1, COLUMNS, ROWS), np.float32))
        return
    images = np.ones((2, COLUMNS, ROWS), np.float32)
    fastmri_file(folder / "file.h5", kspace * mask, mask=mask.astype(np.float32), reconstruction_rss=images)


# --- MPI -----------------------------------------------------------------------------------------------------------
def mpi(folder: Path, variant: int) -> None:
    """A measurement of three frames, the first of an empty scanner, and its system matrix."""
    rng = np.random.default_rng(variant)
    grid = Grid((4, 3), (1e-3, 1e-3), (0.0, 0.0))
    shape, count = (2, 1, 8), grid.size  # periods, channels, frequencies

    def noise(*lead: int, trail: tuple[int, ...] = shape) -> NDArray[Any]:
        return rng.standard_normal((*lead, *trail)) + 1j * rng.standard_normal((*lead, *trail))

    system = 100 * noise(trail=(*shape, count))
    background = noise(3)
    images = np.zeros((count, 3))
    images[5, 1:], images[6, 2] = 1.0, 0.5
    frames = np.moveaxis(system @ images, -1, 0) + noise(3)
    frequencies = 1e4 * np.arange(1, 9)
    calibration = MPICalibration(
        (system + 0.1 * noise(trail=(*shape, count))).astype(np.complex64), frequencies, grid,
        background=background.astype(np.complex64), background_positions=np.array([0, 6, count]),
        snr=np.full(shape, 100.0),
    )  # fmt: skip
    scan = MPIScan(frames.astype(np.complex64), frequencies, np.arange(3) == 0)
    if variant:
        factor = np.full((1, 8), 2.0 + 1j)
        scan, calibration = replace(scan, transfer_function=factor), replace(calibration, transfer_function=factor)
    mdf.write_measurement(folder / "measurement.mdf", scan)
    mdf.write_system_matrix(folder / "system.mdf", calibration)


# --- CT ------------------------------------------------------------------------------------------------------------
def _integrals(views: int = 9, detector: int = 12) -> NDArray[np.float32]:
    geometry = ct.scanner("fan", views, n_det=detector)
    scan = ct.simulate(ct.phantom("disc", geometry, 1, seed=0), geometry, noise_std=0.01, seed=0)
    return scan.sinogram


def htc(folder: Path, variant: int) -> None:
    parameters = {"distanceSourceOrigin": 410.66, "distanceSourceDetector": 553.74, "distanceUnit": "mm",
                  "pixelSizePost": 9.0, "angles": np.arange(0.0, 360, 40), "geometryType": "Cone"}  # fmt: skip
    content = {"type": "2D", "sinogram": _integrals()[0].astype(np.float64), "parameters": parameters}
    name = "CtDataFull" if variant else "CtDataLimited"
    savemat(folder / "scan.mat", {name: content}, do_compression=bool(variant))


def exchange(folder: Path, variant: int) -> None:
    rng = np.random.default_rng(0)
    lines = _integrals()
    dark, white = 10 + rng.uniform(0, 1, (2, 2, 12)), 1000 + rng.uniform(0, 1, (3, 2, 12))
    counts = 10 + 990 * np.exp(-lines.swapaxes(0, 1).repeat(2, 1))
    with h5py.File(folder / "scan.h5", "w") as file:
        for name, values in (("data", counts), ("data_dark", dark), ("data_white", white)):
            file[f"exchange/{name}"] = values.astype(np.uint16 if variant else np.float32)
        file["exchange/theta"] = 20.0 * np.arange(9)


def sinogram(folder: Path, variant: int, *, suffix: str) -> None:
    """Parallel, a fan, a curved one, and views of their own."""
    kind = ("fan", "parallel", "curved", "fan")[variant]
    geometry: Any = ct.scanner(kind, 9, n_det=12)
    scan = ct.simulate(ct.phantom("disc", geometry, 2, seed=0), geometry, noise_std=0.01, seed=0)
    labels = ("above", "below")
    if variant == 3:
        turned = [torch.stack([a.cos(), a.sin()], -1) for a in (geometry.angles, geometry.angles + torch.pi / 2)]
        geometry = ViewBeam(
            0.15 * turned[1], 9e-3 * turned[0], geometry.shape, 12, geometry.pixel_size, sources=-0.4 * turned[1],
            unit="m",
        )  # fmt: skip
    write_sinogram(folder / f"scan{suffix}", CTScan(scan.sinogram, geometry, labels, {"phantom": "disc"}))


# --- series --------------------------------------------------------------------------------------------------------
TIMES = (0.1, 0.4, 1.2, 3.0)


def _recovery() -> NDArray[np.float32]:
    """``(T, S, H, W)`` of saturation recovery."""
    t1 = np.linspace(0.4, 1.5, 2 * 3 * 4).reshape(2, 3, 4)
    images = 1000 * (1 - np.exp(-np.array(TIMES)[:, None, None, None] / t1))
    return images.astype(np.float32)


def dicom(folder: Path, variant: int) -> None:
    """Classic images of two slices, a file each; the same in one enhanced file."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    def image(pixels: NDArray[Any], number: int) -> Any:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesNumber, data.SeriesDescription = "MR", 3, "recovery"
        data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        data.Rows, data.Columns = pixels.shape[-2:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = "1.5", "2"
        data.PixelData = pixels.astype("<u2").tobytes()
        return data

    def inside(**values: Any) -> list[Any]:
        found = Dataset()
        for name, value in values.items():
            setattr(found, name, value)
        return [found]

    orientation, images = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], _recovery()
    if variant == 0:
        for t, time in enumerate(TIMES):
            for s in range(2):
                data = image(images[t, s], 2 * t + s)
                data.PixelSpacing, data.SliceThickness = [1.5, 1.25], 4
                data.ImageOrientationPatient, data.ImagePositionPatient = orientation, [-30.0, 12.0, 6.0 * s]
                data.InversionTime, data.RepetitionTime, data.EchoTime, data.FlipAngle = 1e3 * time, 5000, 12, 90
                data.save_as(folder / f"{t}{s}.dcm", enforce_file_format=True)
        return
    data = image(images.reshape(-1, 3, 4), 0)
    data.NumberOfFrames = 2 * len(TIMES)
    shared = Dataset()
    shared.PixelMeasuresSequence = inside(PixelSpacing=[1.5, 1.25], SliceThickness=4)
    shared.PlaneOrientationSequence = inside(ImageOrientationPatient=orientation)
    shared.MRTimingAndRelatedParametersSequence = inside(RepetitionTime=5000.0, FlipAngle=90.0)
    data.SharedFunctionalGroupsSequence, frames = [shared], []
    for time in TIMES:
        for s in range(2):
            frame = Dataset()
            frame.PlanePositionSequence = inside(ImagePositionPatient=[-30.0, 12.0, 6.0 * s])
            frame.MREchoSequence = inside(EffectiveEchoTime=12.0)
            frame.MRModifierSequence = inside(InversionTimes=[1e3 * time])
            frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.save_as(folder / "all.dcm", enforce_file_format=True)


def nifti(folder: Path, variant: int) -> None:
    """One file with an axis of times, compressed or not; a file for each time."""
    grid = Grid((2, 3, 4), (4e-3, 1.5e-3, 1.25e-3), (0.0, 0.0, 0.0))
    images = _recovery()
    parts: list[tuple[str, NDArray[np.float32], Any]] = [("series", images, list(TIMES))]
    if variant == 2:
        parts = [(f"time{t}", image, TIMES[t]) for t, image in enumerate(images)]
    for name, image, times in parts:
        write_result(folder / f"{name}.nii{'.gz' if variant == 0 else ''}", Result(image, grid))
        said = {"InversionTime": times, "RepetitionTime": 5.0, "EchoTime": 0.012, "FlipAngle": 90, "Modality": "MR"}
        (folder / f"{name}.json").write_text(json.dumps(said, indent=1))
