"""ISMRMRD and Siemens raw data: where each line goes, what is left out, what the reference packages make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.raw import MRIScan
from pyrecon.io import detect, read
from pyrecon.io.ismrmrd import read_ismrmrd, write_ismrmrd
from pyrecon.io.twix import read_twix
from pyrecon.testing.siemens import twix_bytes

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIEMENS = Path(__file__).parents[2] / "shared/data/siemens_gre_2coils.dat"


def noise(rng: np.random.Generator, *shape: int) -> NDArray[np.complex64]:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def a_scan(slices: int = 2, channels: int = 3, rows: int = 8, columns: int = 12, skip: int = 2) -> MRIScan:
    rng = np.random.default_rng(rows * columns)
    mask = np.zeros((1, 1, rows, 1), bool)
    mask[:, :, rows % skip :: skip] = True
    return MRIScan(
        kspace=noise(rng, slices, channels, rows, columns) * mask,
        mask=mask,
        noise=noise(rng, channels, 3 * columns + 1),
        readout_oversampling=2.0,
        field_of_view=(0.2, 0.25, 0.005),
    )


# ---- ISMRMRD


@FEW
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 16), st.integers(1, 3))
def test_a_scan_comes_back(tmp_path: Path, slices: int, channels: int, rows: int, columns: int, skip: int) -> None:
    scan = a_scan(slices, channels, rows, columns, min(skip, rows))
    write_ismrmrd(tmp_path / "s.h5", scan)
    assert detect(tmp_path / "s.h5") == "ismrmrd"
    back = read(tmp_path / "s.h5")
    assert isinstance(back, MRIScan)
    np.testing.assert_array_equal(back.kspace, scan.kspace)
    np.testing.assert_array_equal(back.mask, scan.mask)
    np.testing.assert_array_equal(back.noise, scan.noise)
    assert back.readout_oversampling == pytest.approx(2.0)
    assert back.field_of_view == pytest.approx(scan.field_of_view)
    assert len(back.labels) == slices


def test_partial_echo_and_calibration_come_back(tmp_path: Path) -> None:
    scan = a_scan(skip=1)
    mask = np.broadcast_to(np.arange(12) >= 3, (1, 1, 8, 12))
    reference = np.zeros_like(scan.kspace)
    reference[:, :, 3:5] = scan.kspace[:, :, 3:5]
    scan = replace(scan, kspace=scan.kspace * mask, mask=mask, calibration=reference)
    write_ismrmrd(tmp_path / "s.h5", scan)
    back = read_ismrmrd(tmp_path / "s.h5")
    np.testing.assert_array_equal(back.kspace, scan.kspace)
    np.testing.assert_array_equal(back.mask, mask)
    np.testing.assert_array_equal(back.calibration, reference)


def test_a_line_in_pieces_cannot_be_written(tmp_path: Path) -> None:
    mask = np.broadcast_to(np.arange(12) % 2 == 0, (1, 1, 8, 12))
    with pytest.raises(ValueError, match="measured in pieces"):
        write_ismrmrd(tmp_path / "s.h5", replace(a_scan(), mask=mask))
    assert list(tmp_path.iterdir()) == []


def test_the_reference_package_reads_what_we_write(tmp_path: Path) -> None:
    ismrmrd = pytest.importorskip("ismrmrd")
    scan = a_scan()
    write_ismrmrd(tmp_path / "s.h5", scan)
    with ismrmrd.Dataset(str(tmp_path / "s.h5"), mode="r") as file:
        header = ismrmrd.xsd.CreateFromDocument(file.read_xml_header())
        acquisitions = [file.read_acquisition(i) for i in range(file.number_of_acquisitions())]
    space = header.encoding[0].encodedSpace
    assert (space.matrixSize.x, space.matrixSize.y, space.matrixSize.z) == (12, 8, 1)
    assert space.fieldOfView_mm.x == pytest.approx(500)
    lines = [a for a in acquisitions if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert len(lines) == scan.mask.sum() * 2
    for line in lines:
        expected = scan.kspace[line.idx.slice, :, line.idx.kspace_encode_step_1]
        np.testing.assert_array_equal(line.data, expected)
        assert line.center_sample == 6


XML = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>8</x><y>6</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>400</x><y>300</y><z>40</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>4</x><y>6</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>200</x><y>300</y><z>40</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>3</maximum><center>1</center>
</kspace_encoding_step_1></encodingLimits><trajectory>{trajectory}</trajectory></encoding>
<sequenceParameters><TR>500</TR><TE>10</TE><TE>20</TE></sequenceParameters></ismrmrdHeader>"""


def package_file(path: Path, lines: Sequence[dict[str, Any]], z: int = 1, trajectory: str = "cartesian") -> Path:
    """A file that the reference package writes; each line is keyword arguments: data, flags and counters."""
    ismrmrd = pytest.importorskip("ismrmrd")
    with ismrmrd.Dataset(str(path), mode="w") as file:
        file.write_xml_header(XML.format(z=z, trajectory=trajectory).encode())
        for line in lines:
            acquisition = ismrmrd.Acquisition.from_array(line["data"])
            acquisition.center_sample = line.get("center", line["data"].shape[1] // 2)
            for flag in line.get("flags", ()):
                acquisition.setFlag(getattr(ismrmrd, f"ACQ_{flag}"))
            for name in ("discard_pre", "discard_post", "encoding_space_ref"):
                setattr(acquisition, name, line.get(name, 0))
            for name, value in line.get("at", {}).items():
                setattr(acquisition.idx, name, value)
            file.append_acquisition(acquisition)
    return path


def at(row: int, **counters: int) -> dict[str, int]:
    return {"kspace_encode_step_1": row, **counters}


def test_lines_of_a_foreign_file_go_where_they_belong(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    full, turned, echo, averaged, second = (noise(rng, 2, 8) for _ in range(5))
    lines = [
        {"data": noise(rng, 2, 50), "flags": ["IS_NOISE_MEASUREMENT"]},
        {"data": noise(rng, 2, 8), "flags": ["IS_NAVIGATION_DATA"], "at": at(0)},
        {"data": noise(rng, 2, 8), "flags": ["IS_PHASECORR_DATA"], "at": at(0)},
        {"data": noise(rng, 2, 8), "flags": ["IS_DUMMYSCAN_DATA"], "at": at(0)},
        {"data": noise(rng, 2, 8), "encoding_space_ref": 1, "at": at(0)},
        {"data": full, "at": at(0)},
        {"data": turned[:, ::-1], "flags": ["IS_REVERSE"], "at": at(1)},
        {"data": echo[:, 3:], "center": 1, "at": at(2)},  # starts three samples late
        {"data": averaged, "at": at(3)},
        {"data": 3 * averaged, "at": at(3, average=1)},
        {"data": second, "flags": ["IS_PARALLEL_CALIBRATION_AND_IMAGING"], "at": at(0, contrast=1, slice=2)},
        {"data": second, "flags": ["IS_PARALLEL_CALIBRATION"], "at": at(2)},
    ]
    scan = read_ismrmrd(package_file(tmp_path / "f.h5", lines))
    # Row 1 holds the centre, which belongs at 6 // 2.
    expected = np.zeros((2, 2, 6, 8), np.complex64)
    expected[0, :, 2], expected[0, :, 3], expected[0, :, 4, 3:] = full, turned, echo[:, 3:]
    expected[0, :, 5], expected[1, :, 2] = 2 * averaged, second
    np.testing.assert_allclose(scan.kspace, expected, rtol=1e-6)
    np.testing.assert_array_equal(scan.mask[:, 0], expected[:, 0] != 0)
    np.testing.assert_array_equal(scan.noise, lines[0]["data"])
    np.testing.assert_array_equal(scan.calibration[0, :, 4], second)
    assert scan.labels == ("slice 0, contrast 0", "slice 2, contrast 1")
    assert scan.readout_oversampling == pytest.approx(2)
    assert scan.field_of_view == pytest.approx((0.3, 0.2, 0.04))
    assert scan.metadata["echo_time_s"] == pytest.approx([0.01, 0.02])


def test_samples_to_be_discarded(tmp_path: Path) -> None:
    data = noise(np.random.default_rng(4), 1, 8)
    line = {"data": data, "discard_pre": 2, "discard_post": 1, "at": at(1)}
    scan = read_ismrmrd(package_file(tmp_path / "f.h5", [line]))
    expected = data.copy()
    expected[:, :2] = expected[:, 7:] = 0
    np.testing.assert_array_equal(scan.kspace[0, :, 3], expected)


def test_partitions_become_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    volume = noise(rng, 4, 8)  # along z and x, of one coil and one row
    lines = [{"data": volume[None, p], "at": at(1, kspace_encode_step_2=p)} for p in range(4)]
    scan = read_ismrmrd(package_file(tmp_path / "f.h5", lines, z=4))
    assert scan.kspace.shape == (4, 1, 6, 8)
    shifted = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(volume, axes=0), axis=0, norm="ortho"), axes=0)
    np.testing.assert_allclose(scan.kspace[:, 0, 3], shifted, rtol=1e-5, atol=1e-6)
    assert scan.labels == tuple(f"partition {p}" for p in range(4))
    assert scan.field_of_view[2] == pytest.approx(0.01)
    lines.append({"data": volume[None, 0], "at": at(2, kspace_encode_step_2=0)})
    apart = read_ismrmrd(package_file(tmp_path / "g.h5", lines, z=4))  # no longer alike: they stay in k-space
    assert apart.encoded_partitions == 4
    np.testing.assert_array_equal(apart.kspace[:, 0, 3], volume)
    assert apart.mask[:, 0, :, 0].sum(axis=1).tolist() == [2, 1, 1, 1]


def bad_line(**changes: Any) -> Callable[[Path], Path]:
    line = {"data": np.ones((2, 8), np.complex64), "at": at(1)}
    return lambda path: package_file(path, [line, {**line, **changes}])


def with_xml(old: str, new: str) -> Callable[[Path], Path]:
    def build(path: Path) -> Path:
        write_ismrmrd(path, a_scan())
        with h5py.File(path, "a") as file:
            text = file["dataset/xml"][0].decode()
            assert old in text
            file["dataset/xml"][0] = text.replace(old, new).encode()
        return path

    return build


def with_head(**values: Any) -> Callable[[Path], Path]:
    def build(path: Path) -> Path:
        write_ismrmrd(path, a_scan())
        with h5py.File(path, "a") as file:
            records = file["dataset/data"][()]
            for name, value in values.items():
                records["head"][name][5] = value
            del file["dataset/data"]
            file["dataset/data"] = records
        return path

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (bad_line(at=at(5)), "readout 1 belongs to row 7, .*expected a place in the matrix of 6 x 1 x 8"),
        (bad_line(at=at(1, kspace_encode_step_2=1)), "partition 1"),
        (bad_line(data=np.ones((2, 9), np.complex64)), "columns 0 to 8"),
        (bad_line(data=np.full((2, 8), np.nan, np.complex64)), "NaN or Inf in readout 1 of 2"),
        (bad_line(discard_pre=5, discard_post=4), "samples 5 to 4 of 8"),
        (lambda path: package_file(path, [{"data": np.ones((1, 8), np.complex64), "flags": ["IS_DUMMYSCAN_DATA"]}]),
         "1 readouts, none of them image data"),
        (lambda path: package_file(path, [{"data": np.ones((1, 8), np.complex64)}], trajectory="spiral"),
         "encoding/trajectory: 'spiral', expected 'cartesian'"),
        (with_head(number_of_samples=13), r"/dataset/data\[5\]: 72 values, expected 78 for 3 channels of 13"),
        (with_head(number_of_samples=65535, active_channels=65535), "declares 32.0 GiB|values, expected"),
        (with_xml("<encoding>", "<encodin>"), "is no XML"),
        (with_xml("<x>12</x>", "<x>twelve</x>"), "matrixSize/x: 'twelve', expected a number"),
        (with_xml("<x>12</x>", "<x>-12</x>"), "matrixSize/x"),
        (with_xml("<x>12</x>", "<x>1e9</x>"), "matrixSize/x"),
        (with_xml("<x>12</x>", ""), "matrixSize/x: None"),
        (with_xml("<y>8</y>", "<y>60000</y>"), "15000 places for each sample"),
        (with_xml("<x>500.0</x>", "<x>-1</x>"), "fieldOfView_mm/x: '-1', expected a number from 0"),
        (with_xml("<x>500.0</x>", "<x>100</x>"), "an oversampling of 1 to 16"),
        (with_xml("<ismrmrdHeader", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><ismrmrdHeader'),
         "a document type or entity declaration"),
    ],
)  # fmt: skip
def test_an_ismrmrd_file_that_contradicts_itself(tmp_path: Path, build: Callable[[Path], Path], message: str) -> None:
    path = build(tmp_path / "f.h5")
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


# ---- Siemens


PROTOCOL = """sKSpace.lBaseResolution\t = \t4
sKSpace.lPhaseEncodingLines\t = \t6
sKSpace.ucTrajectory\t = \t0x1
sSliceArray.asSlice[0].dThickness\t = \t5.0
sSliceArray.asSlice[0].dPhaseFOV\t = \t150.0
sSliceArray.asSlice[0].dReadoutFOV\t = \t200.0
alTR[0]\t = \t30000
tProtocolName\t = \t"gre"
"""


def readout(data: NDArray[np.complex64], row: int, *flags: str, **more: Any) -> dict[str, Any]:
    counters = {"Lin": row, **more.pop("at", {})}
    return {"data": data, "at": counters, "center_line": 3, "flags": flags, **more}


def twix(path: Path, lines: Sequence[dict[str, Any]], **options: Any) -> Path:
    path.write_bytes(twix_bytes(lines, **{"protocol": PROTOCOL, **options}))
    return path


@pytest.mark.parametrize("ve", [True, False])
def test_siemens_lines_go_where_they_belong(tmp_path: Path, ve: bool) -> None:
    rng = np.random.default_rng(6)
    full, turned, echo, averaged, second = (noise(rng, 2, 8) for _ in range(5))
    lines = [
        readout(noise(rng, 2, 32), 0, "NOISEADJSCAN"),
        readout(noise(rng, 2, 8), 1, "PHASCOR"),
        readout(noise(rng, 2, 8), 1, "RTFEEDBACK"),
        readout(full, 1),
        readout(turned[:, ::-1], 2, "REFLECT"),
        readout(echo[:, 3:], 3, center=1),
        readout(np.concatenate([np.full((2, 2), 9), echo[:, 3:]], 1), 0, center=3, cut=(2, 0)),
        readout(averaged, 5),
        readout(averaged * 3, 5, at={"Ave": 1, "Seg": 4, "Ida": 1}),
        readout(second, 4, "PATREFANDIMASCAN", at={"Rep": 1}),
        readout(second, 2, "PATREFSCAN"),
    ]
    path = twix(tmp_path / "meas.dat", lines, ve=ve)
    assert detect(path) == "twix"
    scan = read_twix(path)
    expected = np.zeros((2, 2, 6, 8), np.complex64)
    expected[0, :, 1], expected[0, :, 2], expected[0, :, 3, 3:] = full, turned, echo[:, 3:]
    expected[0, :, 0, 3:], expected[0, :, 5], expected[1, :, 4] = echo[:, 3:], 2 * averaged, second
    np.testing.assert_allclose(scan.kspace, expected, rtol=1e-6)
    np.testing.assert_array_equal(scan.mask[:, 0], expected[:, 0] != 0)
    np.testing.assert_array_equal(scan.noise, lines[0]["data"])
    np.testing.assert_array_equal(scan.calibration[0, :, 2], second)
    assert scan.labels == ("repetition 0", "repetition 1")
    assert scan.readout_oversampling == 2.0
    assert scan.field_of_view == pytest.approx((0.15, 0.2, 0.005))
    assert scan.metadata["repetition_time_s"] == pytest.approx(0.03)


def test_siemens_partitions_become_slices(tmp_path: Path) -> None:
    volume = noise(np.random.default_rng(7), 4, 8)
    lines = [readout(volume[None, p], 3, at={"Par": p}, center_partition=2) for p in range(4)]
    scan = read_twix(twix(tmp_path / "m.dat", lines, protocol=PROTOCOL + "sKSpace.lPartitions = 4\n"))
    shifted = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(volume, axes=0), axis=0, norm="ortho"), axes=0)
    np.testing.assert_allclose(scan.kspace[:, 0, 3], shifted, rtol=1e-5, atol=1e-6)


def test_partial_fourier_keeps_the_centre(tmp_path: Path) -> None:
    """Lines 0 to 3 of 6 with the centre line first: it still belongs at 6 // 2."""
    lines = [readout(np.full((1, 8), row + 1, np.complex64), row) | {"center_line": 0} for row in range(3)]
    scan = read_twix(twix(tmp_path / "m.dat", lines))
    assert scan.kspace[0, 0, :, 0].real.tolist() == [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("phase", "read", "normal", "turn", "letters"),
    [  # directions in left, posterior, head; an image shown runs against them
        ((0, 1, 0), (-1, 0, 0), (0, 0, 1), (True, False), "PL"),  # transversal, as scanned by default
        ((0, -1, 0), (1, 0, 0), (0, 0, 1), (False, True), "PL"),  # turned by half
        ((-1, 0, 0), (0, -1, 0), (0, 0, 1), (False, False), "LP"),
        ((-1, 0, 0), (0, 0, 1), (0, 1, 0), (False, False), "LF"),  # coronal
        ((0, 1, 0), (0, 0, 1), (1, 0, 0), (True, False), "PF"),  # sagittal
    ],
)
def test_orientation(
    tmp_path: Path,
    phase: tuple[int, ...],
    read: tuple[int, ...],
    normal: tuple[int, ...],
    turn: tuple[bool, bool],
    letters: str,
) -> None:
    from scipy.spatial.transform import Rotation

    matrix = np.array([phase, read, normal], float).T
    matrix[:, 2] *= np.linalg.det(matrix)
    rotation = Rotation.from_matrix(matrix).as_quat(scalar_first=True)
    image = np.zeros((6, 8), np.complex64)
    image[1, 2] = 1
    shifted = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))
    lines = [readout(shifted[None, row], row, rotation=rotation) for row in range(6)]
    scan = read_twix(twix(tmp_path / "m.dat", lines))
    back = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(scan.kspace[0, 0])))
    # Turning an even axis about its centre n // 2 sends index i to n - i.
    where = (6 - 1 if turn[0] else 1, 8 - 2 if turn[1] else 2)
    assert np.unravel_index(np.abs(back).argmax(), back.shape) == where
    assert scan.metadata["orientation"] == letters


@pytest.mark.skipif(not SIEMENS.exists(), reason="no real twix file beside the checkout")
def test_the_real_siemens_scan_against_twixtools() -> None:
    twixtools = pytest.importorskip("twixtools")
    assert detect(SIEMENS) == "twix"
    scan = read(SIEMENS)
    assert isinstance(scan, MRIScan)
    assert scan.mask.all()
    assert scan.readout_oversampling == 2.0
    assert scan.field_of_view == (0.2, 0.2, 0.004)
    assert scan.metadata["orientation"] == "PL"
    parsed = twixtools.read_twix(str(SIEMENS), parse_pmu=False, verbose=False)
    lines = twixtools.map_twix(parsed, verbose=False)[-1]["image"][:].squeeze()  # (160, 2, 320)
    expected = np.roll(lines[::-1], 1, axis=0).transpose(1, 0, 2)  # rows run from anterior to posterior
    np.testing.assert_array_equal(scan.kspace[0], expected)


GOOD = readout(np.ones((2, 8), np.complex64), 1)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "0 readouts, none of them image data"),
        ([readout(np.ones((2, 8)), 1, "NOISEADJSCAN")], {}, "1 readouts, none of them image data"),
        ([readout(np.full((2, 8), np.inf), 1)], {}, "NaN or Inf in readout 0 of 1"),
        ([readout(np.ones((2, 8)), 1, cut=(5, 4))], {}, "readout 0 keeps samples 5 to 4 of 8"),
        ([readout(np.ones((2, 0)), 1)], {}, "readout 0 has 2 channels of 0 samples"),
        ([GOOD, readout(np.ones((2, 6)), 2, center=6)], {}, "columns -2 to 3"),
        ([GOOD], {"count": 2}, None),
        ([readout(np.ones((2, 8)), 1, "SYNCDATA", length=0)], {}, "is 0 bytes long, expected at least 192"),
        ([GOOD], {"protocol": "sKSpace.ucTrajectory = 4\n"}, "not Cartesian"),
        ([GOOD], {"protocol": "sSliceArray.asSlice[0].dThickness = -5\n"}, "field of view"),
        ([GOOD], {"protocol": "sSliceArray.asSlice[0].dPhaseFOV = 1e300\n"}, "field of view"),
        ([GOOD], {"protocol": "sSliceArray.asSlice[0].dThickness = 1e-300\n"}, "field of view"),
        ([GOOD], {"parts": {"Meas": '<ParamLong."alRegridMode">  { 2 }'}}, "gradient ramps"),
        ([GOOD], {"parts": {"Meas": '<ParamLong."alRegridMode">  { 1 2 }'}}, "gradient ramps"),
        ([GOOD], {"parts": {"Dicom": '<ParamDouble."flReadoutOSFactor"> { 1e9 }'}}, "flReadoutOSFactor: 1e[+]09"),
        ([GOOD | {"at": {"Lin": 65535}}], {}, "places for each sample"),
        ([GOOD], {"parts": {"x" * 60: ""}}, "does not end inside it"),
    ],
)
def test_a_siemens_file_that_contradicts_itself(
    tmp_path: Path, lines: list[dict[str, Any]], options: dict[str, Any], message: str | None
) -> None:
    path = twix(tmp_path / "m.dat", lines, **options)
    if message is None:
        assert read_twix(path).kspace.shape == (1, 2, 6, 8)
        return
    with pytest.raises(DataError, match=message) as caught:
        read_twix(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_truncated_siemens_file(tmp_path: Path) -> None:
    whole = twix_bytes([GOOD] * 3, PROTOCOL)
    for length in (0, 5, 100, 300, 10_240, 10_400, len(whole) - 1):
        (tmp_path / "m.dat").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"m\.dat: "):
            read_twix(tmp_path / "m.dat")


@pytest.mark.parametrize("plan", [[], ["--dry-run"]], ids=["reconstruct", "dry run"])
def test_a_readout_that_oversampling_leaves_nothing_of_is_named(tmp_path: Path, plan: list[str]) -> None:
    """Divided by zero in the report's pixel size."""
    path = tmp_path / "narrow.dat"
    path.write_bytes(twix_bytes([{"data": np.ones((2, 1)), "at": {"Lin": line}} for line in range(4)]))
    found = CliRunner().invoke(app, ["reconstruct", str(path), "-m", "rss", "-o", str(tmp_path / "a.npz"), *plan])
    assert isinstance(found.exception, DataError)
    assert "1 readout samples divided by 2.0" in str(found.exception)
