"""Every field of MDF 2.1: written as specified, used or told when it is read, and listed in docs/formats.md."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mpi_volumes import FieldFreePoint
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.mpi import match_periods, prepare_frames, prepare_system
from pyrecon.data.raw import Grid, MPICalibration, MPIScan
from pyrecon.io import mdf
from pyrecon.io._mdf_spec import FIELDS
from pyrecon.models.mpi import HybADMM, Reconstructor

ROOT = Path(__file__).parents[1]

# What the specification (arXiv:1602.06072v9) demands of every file: name, type, axes in the order of HDF5.
_ALL = """
/version S; /uuid S; /time S; /study/description S; /study/name S; /study/number I; /study/uuid S
/experiment/description S; /experiment/isSimulation F; /experiment/name S; /experiment/number I; /experiment/subject S
/experiment/uuid S; /scanner/facility S; /scanner/manufacturer S; /scanner/name S; /scanner/operator S
/scanner/topology S; /acquisition/numAverages I; /acquisition/numFrames I; /acquisition/numPeriodsPerFrame I
/acquisition/startTime S; /acquisition/drivefield/baseFrequency R; /acquisition/drivefield/cycle R
/acquisition/drivefield/divider I D,F; /acquisition/drivefield/numChannels I; /acquisition/drivefield/phase R J,D,F
/acquisition/drivefield/strength R J,D,F; /acquisition/drivefield/waveform S D,F; /acquisition/receiver/bandwidth R
/acquisition/receiver/numChannels I; /acquisition/receiver/numSamplingPoints I; /acquisition/receiver/unit S
/measurement/isBackgroundCorrected F; /measurement/isBackgroundFrame F N; /measurement/isFastFrameAxis F
/measurement/isFourierTransformed F; /measurement/isFramePermutation F; /measurement/isFrequencySelection F
/measurement/isSparsityTransformed F; /measurement/isSpectralLeakageCorrected F
/measurement/isTransferFunctionCorrected F; /tracer/batch S A; /tracer/concentration R A; /tracer/name S A
/tracer/solute S A; /tracer/vendor S A; /tracer/volume R A; /acquisition/gradient R J,Y,3,3
"""
_DATA = {"system_matrix": "/measurement/data C J,C,K,N", "measurement": "/measurement/data C N,J,C,K"}
_MATRIX = """
/calibration/method S; /calibration/size I 3; /calibration/fieldOfView R 3; /calibration/fieldOfViewCenter R 3
/calibration/order S; /calibration/deltaSampleSize R 3
"""


def listed(text: str) -> list[list[str]]:
    return [entry.split() for line in text.strip().splitlines() for entry in line.split("; ")]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    result = CliRunner().invoke(app, ["simulate", "mpi", "-o", str(folder), "--frames", "2", "--phantom", "y"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", ["system_matrix", "measurement"])
def test_simulated_files_are_as_specified(simulated: Path, name: str) -> None:
    """Groups, names, types and shapes, each by itself; sizes are those that the file declares."""
    entries = listed(_ALL + _DATA[name] + (_MATRIX if name == "system_matrix" else ""))
    with h5py.File(simulated / f"{name}.mdf") as file:

        def number(field: str) -> int:
            return int(file[field][()])

        sizes = {
            "N": number("acquisition/numFrames"), "J": number("acquisition/numPeriodsPerFrame"), "3": 3, "A": 1, "Y": 1,
            "C": number("acquisition/receiver/numChannels"), "D": number("acquisition/drivefield/numChannels"), "F": 1,
        }  # fmt: skip
        selected = number("measurement/isFrequencySelection")
        points = number("acquisition/receiver/numSamplingPoints")
        sizes["K"] = file["measurement/frequencySelection"].size if selected else points // 2 + 1
        for path, kind, *axes in entries:
            node = file[path]
            assert isinstance(node, h5py.Dataset), path
            assert node.shape == (tuple(sizes[a] for a in axes[0].split(",")) if axes else ()), path
            if kind == "S":
                assert h5py.check_string_dtype(node.dtype).encoding == "utf-8", path
            elif kind == "C":
                assert node.dtype in (np.complex64, np.complex128), path
                pair = node.id.get_type()
                assert [pair.get_member_name(i) for i in range(2)] == [b"r", b"i"], path
            else:
                assert node.dtype == {"I": np.int64, "R": np.float64, "F": np.int8}[kind], path
                assert kind != "F" or set(np.ravel(node[()])) <= {0, 1}, path
        assert file["version"].asstr()[()] == "2.1.0"
        assert len({file[f"{g}uuid"].asstr()[()] for g in ("", "study/", "experiment/")}) == 3
        assert ("calibration" in file) == (name == "system_matrix")
        if selected:
            chosen = file["measurement/frequencySelection"][()]
            assert chosen.min() >= 1
            assert chosen.max() <= points // 2 + 1
        # A period of the drive field is what the samples of a period take, and both give the frequencies.
        seconds = points / (2 * file["acquisition/receiver/bandwidth"][()])
        assert file["acquisition/drivefield/cycle"][()] == pytest.approx(seconds, rel=1e-9)
        if name == "system_matrix":
            foreground = int((file["measurement/isBackgroundFrame"][()] == 0).sum())
            assert int(np.prod(file["calibration/size"][()])) == foreground
            if "calibration/snr" in file:
                assert file["calibration/snr"].shape == (sizes["J"], sizes["C"], sizes["K"])
        names: list[str] = []
        file.visititems(lambda field, node: names.append(f"/{field}") if isinstance(node, h5py.Dataset) else None)
    assert {n for n in names if not n.startswith("/_")} <= set(FIELDS)


def test_a_file_of_ones_own_needs_no_notes(simulated: Path) -> None:
    assert "notes" not in mdf.read_measurement(simulated / "measurement.mdf").metadata
    assert "notes" not in mdf.read_system_matrix(simulated / "system_matrix.mdf").metadata


def test_the_documentation_lists_every_field_and_tests_that_there_are() -> None:
    text = (ROOT / "docs/formats.md").read_text().split("\n## MDF\n")[1].split("\n## ")[0]
    said = set(re.findall(r"`(/[A-Za-z/]+)`", text))
    for path in FIELDS:
        assert path in said, path
    for name in re.findall(r"`(test_\w+)`", text):
        found = [p for p in (ROOT / "tests").glob("test_*.py") if f"def {name}(" in p.read_text()]
        assert len(found) == 1, name


# ---- what a reader tells


GRID = Grid((1, 5, 6), (1e-3, 2e-3, 2e-3), (0.0, 0.0, 0.0))
SCANNER = FieldFreePoint(GRID)
IMAGE = np.zeros(GRID.shape)
IMAGE[0, 1, 2:5] = 1


def written(folder: Path, **changes: Any) -> Path:
    """A measurement in time, each change a field (``__`` for ``/``), which is removed by None."""
    path = folder / "m.mdf"
    mdf.write_measurement(path, SCANNER.measure(IMAGE, frames=2), domain="time")
    change(path, **changes)
    return path


def matrix(folder: Path, **changes: Any) -> Path:
    path = folder / "sm.mdf"
    mdf.write_system_matrix(path, SCANNER.calibrate())
    change(path, **changes)
    return path


def change(path: Path, **changes: Any) -> None:
    with h5py.File(path, "a") as file:
        for name, value in changes.items():
            field = name.replace("__", "/")
            if field in file:
                del file[field]
            if value is not None:
                file[field] = value


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"measurement__isBackgroundFrame": None}, "isBackgroundFrame: is missing, all 22 frames are taken to hold"),
        ({"measurement__isFrequencySelection": None}, "isFrequencySelection missing, taken as 0"),
        ({"acquisition__receiver__unit": None}, "unit: is missing, taken as V"),
        ({"acquisition__drivefield__cycle": 1.0}, "cycle: 1 s, but sampling points and bandwidth make a period of 2"),
        ({"acquisition__drivefield__cycle": np.nan}, "cycle: nan, expected a finite number"),
        (
            {"measurement__isFramePermutation": 1, "measurement__framePermutation": np.arange(22)},
            "framePermutation: counts from 0",
        ),
        ({"acquisition__drivefield__customWaveform": np.zeros((3, 1, 9999))}, "customWaveform: not read, and not"),
        ({"study__description": np.ones(3, [("a", "f4"), ("b", "f4"), ("c", "f4")])}, "/study/description: not read"),
        ({"acquisition__colour": "blue"}, "not defined by the format and not used: /acquisition/colour"),
        ({"extra__data": np.ones(3)}, "not defined by the format and not used: /extra"),
        ({"reconstruction__data": np.ones((1, 30, 1))}, "/reconstruction: the images that the file holds are not"),
    ],
)  # fmt: skip
def test_what_a_measurement_leaves_open_is_told(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    notes = mdf.read_measurement(written(tmp_path, **changes)).metadata["notes"]
    assert any(note in line for line in notes), notes
    assert all(line.startswith("measurement: ") for line in notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"calibration__fieldOfViewCenter": None}, "fieldOfViewCenter: is missing, the grid is taken to lie around"),
        ({"calibration__fieldOfView": np.array([12e-3, 1e-2, 0])}, "one voxel, which is taken to be 1 mm thick"),
        ({"calibration__offsetFields": np.zeros((30, 3, 400))}, "offsetFields: not read, and not needed"),
    ],
)
def test_what_a_system_matrix_leaves_open_is_told(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    notes = mdf.read_system_matrix(matrix(tmp_path, **changes)).metadata["notes"]
    assert any(note in line for line in notes), notes


def test_names_of_ones_own_begin_with_an_underscore_and_are_not_told(tmp_path: Path) -> None:
    scan = mdf.read_measurement(written(tmp_path, acquisition___colour="blue", _mine__data=np.ones(3)))
    assert "notes" not in scan.metadata
    assert scan.metadata["/acquisition/_colour"] == "blue"


def test_older_names_become_those_of_today(tmp_path: Path) -> None:
    path = written(tmp_path, acquisition__drivefield__cycle=None, acquisition__drivefield__period=24e-6)
    assert mdf.read_measurement(path).metadata["/acquisition/drivefield/cycle"] == 24e-6


def test_notes_stand_in_the_report_and_are_not_written_on(tmp_path: Path) -> None:
    changes = {"acquisition__colour": "blue", "acquisition__drivefield__strength": np.full((1, 3, 1), 99.0)}
    path, target = written(tmp_path, **changes), tmp_path / "i.npz"
    result = CliRunner().invoke(app, ["reconstruct", str(path), "-s", str(matrix(tmp_path)), "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert "warning      measurement: not defined by the format and not used: /acquisition/colour" in result.output
    assert "/acquisition/drivefield/strength: the system matrix has" in result.output
    mdf.write_measurement(tmp_path / "again.mdf", mdf.read_measurement(path))
    with h5py.File(tmp_path / "again.mdf") as file:
        assert "_pyrecon" not in file


def test_sampling_points_beyond_all_measure_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = written(tmp_path, acquisition__receiver__numSamplingPoints=2**52)
    with pytest.raises(DataError, match="60 samples a period, expected 4503599627370496"):
        mdf.read_measurement(path)


@pytest.mark.parametrize("which", ["measurement", "system matrix"])
def test_a_file_of_version_1_is_named_with_the_way_out(tmp_path: Path, which: str) -> None:
    """Its data lie elsewhere: /measurement/dataTD, /calibration/dataFD."""
    files = {"measurement": written(tmp_path), "system matrix": matrix(tmp_path)}
    change(files[which], version="1.0.5", measurement__data=None, measurement__dataTD=np.zeros((2, 3, 60)))
    result = CliRunner().invoke(app, ["reconstruct", str(files["measurement"]), "-s", str(files["system matrix"])])
    assert isinstance(result.exception, DataError)
    assert str(result.exception).startswith(f"{files[which]}: /version: MDF 1.0.5, expected MDF 2.0 or 2.1")
    assert "convert it with MPIFiles.jl: saveasMDF(new, old)" in str(result.exception)


def test_corrected_data_are_left_as_they_are() -> None:
    calibration = SCANNER.calibrate()
    scan = SCANNER.measure(IMAGE)
    shifted = replace(scan, spectrum=scan.spectrum + 0.5, background_corrected=True)
    system = prepare_system(calibration, shifted)
    plain = prepare_frames(system, shifted, background="none")
    np.testing.assert_array_equal(prepare_frames(system, shifted).y, plain.y)
    other = prepare_frames(system, replace(shifted, background_corrected=False)).y
    assert float((other - plain.y).norm()) > 0.1 * float(plain.y.norm())


# ---- periods


def matched(calibration: MPICalibration, scan: MPIScan, average: bool = False) -> tuple[MPICalibration, MPIScan]:
    calibration, scan = match_periods(calibration, scan, average=average)
    assert calibration.spectrum.shape[0] == scan.spectrum.shape[1]
    return calibration, scan


def repeated(calibration: MPICalibration, offsets: list[tuple[float, float, float]]) -> MPICalibration:
    """The same rows at several offset fields: a multi-patch calibration by name only."""
    times = len(offsets)
    metadata = calibration.metadata | {"/acquisition/offsetField": np.array(offsets)[:, None]}
    assert calibration.background is not None
    return replace(
        calibration,
        spectrum=np.repeat(calibration.spectrum, times, axis=0),
        background=np.repeat(calibration.background, times, axis=1),
        metadata=metadata,
    )


def test_periods_that_repeat_each_other_are_averaged() -> None:
    scan = SCANNER.measure(IMAGE, periods=8)
    calibration, found = matched(SCANNER.calibrate(), scan)
    np.testing.assert_allclose(found.spectrum, scan.spectrum.mean(axis=1, keepdims=True), atol=1e-6)
    assert found.metadata["periods"] == "8 of the measurement and 1 of the system matrix, averaged to 1"
    assert found.metadata["notes"] == []
    # An eighth of the noise's variance is left.
    one, mean = (prepare_frames(prepare_system(calibration, s), s).snr_db for s in (SCANNER.measure(IMAGE), found))
    assert one is not None
    assert mean is not None
    assert float(mean[0] - one[0]) == pytest.approx(10 * np.log10(8), abs=0.5)


def test_without_offset_fields_repetitions_are_an_assumption() -> None:
    scan = SCANNER.measure(IMAGE, periods=2)
    del scan.metadata["/acquisition/offsetField"]
    _, found = matched(SCANNER.calibrate(), scan)
    assert found.metadata["notes"][0].startswith("periods: the measurement's 2 are averaged as repetitions")


def test_periods_are_averaged_on_request() -> None:
    calibration = repeated(SCANNER.calibrate(), [(0.0, 0.0, 0.0)] * 3)
    scan = SCANNER.measure(IMAGE, periods=3)
    kept = matched(calibration, scan)[1]
    assert kept.spectrum.shape[1] == 3
    assert kept.metadata["periods"] == "3 with the same fields, each with rows of its own"
    ours, theirs = matched(calibration, scan, average=True)
    assert theirs.spectrum.shape[1] == 1
    np.testing.assert_allclose(ours.spectrum[0], calibration.spectrum.mean(axis=0), atol=1e-6)


PATCHES = [(0.0, 0.0, 0.0), (4e-3, 0.0, 0.0)]


def patches(order: list[int]) -> MPIScan:
    scan = SCANNER.measure(IMAGE, periods=len(order))
    scan.metadata["/acquisition/offsetField"] = np.array([PATCHES[i] for i in order])[:, None]
    scan.spectrum[:] = np.array(order)[:, None, None]  # to be told apart
    return scan


def test_patches_need_a_matrix_with_the_same_patches() -> None:
    with pytest.raises(
        DataError, match=r"measurement: is multi-patch \(2 values of /acquisition/offsetField in 2 periods"
    ):
        match_periods(SCANNER.calibrate(), patches([0, 1]))
    with pytest.raises(DataError, match=r"is multi-patch .* and cannot be averaged"):
        match_periods(repeated(SCANNER.calibrate(), PATCHES), patches([0, 1]), average=True)
    with pytest.raises(DataError, match=r"offsetField: 2 of 2 patches lie elsewhere .*same patches"):
        match_periods(repeated(SCANNER.calibrate(), PATCHES), patches([1, 0]))
    other = repeated(SCANNER.calibrate(), [PATCHES[0], (0.0, 9e-3, 0.0)])
    with pytest.raises(DataError, match=r"periods: the system matrix has 2 .2 with different fields.*not the same"):
        match_periods(other, patches([0, 1, 0, 1]))


def test_a_patch_that_the_matrix_lacks_is_in_no_mean() -> None:
    scan = patches([0, 1, 0, 1])
    scan.metadata["/acquisition/offsetField"][2, 0] = (4e-3, 2e-3, 0.0)
    with pytest.raises(DataError, match="and they are not the same"):
        match_periods(repeated(SCANNER.calibrate(), PATCHES), scan)


def test_patches_are_stacked_and_those_measured_several_times_averaged() -> None:
    calibration = repeated(SCANNER.calibrate(), PATCHES)
    _, found = matched(calibration, patches([0, 1]))
    assert found.metadata["periods"] == "2: 2 patches, each with rows of its own"
    _, found = matched(calibration, patches([1, 0, 1, 0, 0]))
    assert found.spectrum[:, 0].real.max() == 0
    assert found.spectrum[:, 1].real.min() == 1
    assert found.metadata["/acquisition/offsetField"].shape == (2, 1, 3)


def test_two_patches_see_more_than_one(tmp_path: Path) -> None:
    """The field of view is wider than one patch; the rows of both patches together resolve what neither does alone."""
    grid = Grid((1, 5, 12), (1e-3, 2e-3, 2e-3), (0.0, 0.0, 0.0))
    image = np.zeros(grid.shape)
    image[0, 1, 2], image[0, 3, 9] = 1, 1
    parts = []
    for side in (-6.0, 6.0):  # mT along x, at 1 T/m: mm
        scanner = FieldFreePoint(replace(grid, spacing=(1e-3, 2e-3, 1e-3)), offset=(side, 0.0, 0.0))
        wide = FieldFreePoint(grid, offset=(side, 0.0, 0.0), metadata={
            "/acquisition/drivefield/strength": scanner.fields()["/acquisition/drivefield/strength"]})  # fmt: skip
        rows = wide.matrix(strength=scanner.strength)
        parts.append((wide.calibrate(rows), wide.measure(image, rows, frames=1)))
    stacked = [np.concatenate([p.spectrum for p in both], axis=axis)
               for both, axis in zip(zip(*parts, strict=True), (0, 1), strict=True)]  # fmt: skip
    offsets = np.concatenate([c.metadata["/acquisition/offsetField"] for c, _ in parts])
    both = {f: np.repeat(parts[0][0].metadata[f], 2, axis=0) for f in ("/acquisition/gradient",
            "/acquisition/drivefield/strength", "/acquisition/drivefield/phase")}  # fmt: skip
    both["/acquisition/offsetField"] = offsets
    first, scan = parts[0]
    empty = np.concatenate([c.background for c, _ in parts], axis=1)
    calibration = replace(first, spectrum=stacked[0], background=empty, metadata=first.metadata | both)
    mdf.write_system_matrix(tmp_path / "sm.mdf", calibration)
    mdf.write_measurement(tmp_path / "m.mdf", replace(scan, spectrum=stacked[1], metadata=scan.metadata | both))
    target = tmp_path / "i.npz"
    arguments = ["reconstruct", str(tmp_path / "m.mdf"), "-s", str(tmp_path / "sm.mdf"), "-o", str(target)]
    for one, data in parts:  # each patch alone
        system = prepare_system(one, data)
        alone, _ = Reconstructor(system, HybADMM())(prepare_frames(system, data))
        assert float((alone[0] - torch.from_numpy(image[:, :, :])).norm()) > 0.5 * np.linalg.norm(image)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "periods      2: 2 patches, each with rows of its own" in result.output
    found = np.load(target)["image"][0]
    assert np.linalg.norm(found - image[0]) < 0.25 * np.linalg.norm(image)


# ---- what two files say differently


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("/scanner/name", "another"),
        ("/scanner/topology", "FFL"),
        ("/tracer/name", ["synomag"]),
        ("/acquisition/gradient", 1.1 * SCANNER.fields()["/acquisition/gradient"]),
        ("/acquisition/offsetField", np.array([[[1e-3, 0, 0]]])),
        ("/acquisition/drivefield/baseFrequency", 3e6),
        ("/acquisition/drivefield/cycle", 1e-3),
        ("/acquisition/drivefield/divider", [[10], [12], [16]]),
        ("/acquisition/drivefield/strength", np.full((1, 3, 1), 0.5)),
        ("/acquisition/drivefield/phase", np.zeros((1, 3, 1))),
        ("/acquisition/drivefield/waveform", [["triangle"]] * 3),
        ("/acquisition/receiver/inductionFactor", [1.0, 2.0, 3.0]),
        ("/acquisition/drivefield/customWaveform", np.ones((3, 1, 5))),
        ("/measurement/isSpectralLeakageCorrected", 1),
    ],
)
def test_other_settings_of_the_scanner_are_told(field: str, value: Any) -> None:
    usual = {"/acquisition/receiver/inductionFactor": [1.0, 1.0, 1.0], "/measurement/isSpectralLeakageCorrected": 0,
             "/scanner/name": "one", "/acquisition/drivefield/customWaveform": np.zeros((3, 1, 5))}  # fmt: skip
    calibration, scan = SCANNER.calibrate(), SCANNER.measure(IMAGE)
    calibration, scan = (replace(s, metadata=s.metadata | usual) for s in (calibration, scan))
    assert match_periods(calibration, scan)[1].metadata["notes"] == []
    (note,) = match_periods(calibration, replace(scan, metadata=scan.metadata | {field: value}))[1].metadata["notes"]
    assert note.startswith(f"{field}: the system matrix has ")


def test_what_is_not_known_does_not_differ() -> None:
    calibration, scan = SCANNER.calibrate(), SCANNER.measure(IMAGE)
    unknown = {"/scanner/name": "n.a.", "/acquisition/drivefield/strength": np.full((1, 3, 1), np.nan)}
    other = replace(scan, metadata=scan.metadata | unknown)
    assert match_periods(calibration, other)[1].metadata["notes"] == []


def test_noise_of_a_scan_without_background_is_that_of_the_matrix() -> None:
    """Where the matrix has fewer rows than voxels the data do not tell; averages count."""
    scanner = FieldFreePoint(Grid((3, 8, 9), (2e-3, 2e-3, 2e-3), (0.0, 0.0, 0.0)))
    calibration = scanner.calibrate(background=200)
    scan = scanner.measure(np.ones((3, 8, 9)), empty=0)
    scan.metadata["/acquisition/numAverages"] = 4
    system = prepare_system(calibration, scan)
    assert system.noise_of == "system matrix"
    assert len(system.matrix) < system.matrix.shape[1]
    with pytest.warns(UserWarning, match="its noise is taken to be that of the system matrix's, of 0.25 times as many"):
        frames = prepare_frames(system, scan, background="none")
    assert frames.noise_std is not None
    assert float(frames.noise_std[0]) == pytest.approx(0.5)
