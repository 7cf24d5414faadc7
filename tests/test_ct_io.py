"""CT files: what a reader makes of files whose content is known, and what it says of those that make no sense."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from pyrecon import io
from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan, on_grid
from pyrecon.io._matlab import read_matlab
from pyrecon.io.data_exchange import read_data_exchange
from pyrecon.io.htc import read_htc
from pyrecon.io.sinogram import read_sinogram, write_sinogram
from pyrecon.ops import FanBeam, ParallelBeam, ViewBeam, radon
from pyrecon.physics.ct import phantom, scanner, simulate
from pyrecon.testing.ellipses import ellipse_projection

REAL = Path(__file__).parents[2] / "shared/data/ct"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="no real CT files beside the checkout")


# --- MATLAB --------------------------------------------------------------------------------------------------------
VALUES: dict[str, Any] = {
    "double": np.arange(6.0).reshape(2, 3),
    "single": np.float32([[1.5, -2.0]]),
    "bytes": np.uint8([[1, 2], [3, 255]]),
    "whole": np.int64([[-(2**40)]]),
    "small_doubles": np.array([[1.0, 2.0, 300.0]]),
    "complex": np.array([[1 + 2j, -3j]]),
    "cube": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    "flag": np.array([[True, False]]),
    "text": "Zürich mm",
    "empty": np.zeros((0, 3)),
    "nothing": "",
}


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_values_come_back(tmp_path: Path, packed: bool) -> None:
    savemat(tmp_path / "a.mat", {**VALUES, "s": {**VALUES, "deep": {"x": 3.0}}}, do_compression=packed)
    read = read_matlab(tmp_path / "a.mat")
    for found in (read, read["s"]):
        for name, value in VALUES.items():
            if isinstance(value, str):
                assert found[name] == value
            else:
                assert np.array_equal(found[name], value), name
    assert read["s"]["deep"]["x"] == 3.0


def test_what_is_no_value_is_none(tmp_path: Path) -> None:
    cell = np.empty((1, 2), object)
    cell[0, 0], cell[0, 1] = 1.0, "a"
    table = np.array(["ab", "cd"])
    many = np.zeros((1, 2), [("f", object)])
    savemat(tmp_path / "a.mat", {"cell": cell, "table": table, "many": many, "after": 7.0})
    read = read_matlab(tmp_path / "a.mat")
    assert [read[name] for name in ("cell", "table", "many")] == [None] * 3
    assert read["after"] == 7.0


def element(kind: int, body: bytes, size: int | None = None) -> bytes:
    return np.uint32([kind, len(body) if size is None else size]).tobytes() + body + bytes(-len(body) % 8)


def matrix(kind: int, shape: tuple[int, ...], body: bytes, name: bytes = b"x") -> bytes:
    flags = element(6, np.uint32([kind, 0]).tobytes())
    return element(14, flags + element(5, np.int32(shape).tobytes()) + element(1, name) + body)


HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
FIELDS = element(5, np.int32([8]).tobytes()) + element(1, b"a".ljust(8, b"\0"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (matrix(6, (2**30, 2**30), element(9, bytes(8))), "1 numbers where the shape has 1152921504606846976"),
        (matrix(6, (-1, 2), element(9, bytes(8))), r"shape \(-1, 2\)"),
        (matrix(6, (1, 1), element(77, bytes(8))), "unknown type 77"),
        (matrix(6, (1, 1), element(9, bytes(8), size=2**31)), "ends inside of a variable"),
        (matrix(2, (1, 1), FIELDS), "ends inside of a variable"),
        (matrix(2, (1, 1), FIELDS + element(9, bytes(8))), "field of type 9"),
        (matrix(2, (1, 1), element(5, np.int32([0]).tobytes()) + element(1, b"")), "ends inside"),
        (element(15, zlib.compress(np.uint32([14, 2**32 - 1]).tobytes() + bytes(64))), "its variables declares"),
        (element(15, zlib.compress(bytes(4))), "ends inside"),
        (element(15, b"no zlib at all"), "is not a readable MATLAB file"),
    ],
)
def test_hostile_matlab_files(tmp_path: Path, body: bytes, words: str) -> None:
    (tmp_path / "a.mat").write_bytes(HEAD + body)
    with pytest.raises(DataError, match=words):
        read_matlab(tmp_path / "a.mat")


def test_structs_in_structs_end(tmp_path: Path) -> None:
    body = matrix(6, (1, 1), element(9, bytes(8)), b"")
    for _ in range(200):
        body = matrix(2, (1, 1), FIELDS + body, b"")
    (tmp_path / "a.mat").write_bytes(HEAD + body)
    assert "a" in read_matlab(tmp_path / "a.mat")[""]


def test_other_byte_orders_and_headers(tmp_path: Path) -> None:
    big = (
        HEAD[:124] + b"\x01\x00MI"
        + np.array([14, 56], ">u4").tobytes() + np.array([6, 8, 6, 0, 5, 8, 1, 1], ">u4").tobytes()
        + np.array([1, 0], ">u4").tobytes() + np.array([9, 8], ">u4").tobytes() + np.array([2.5], ">f8").tobytes()
    )  # fmt: skip
    (tmp_path / "a.mat").write_bytes(big)
    assert read_matlab(tmp_path / "a.mat")[""] == 2.5
    (tmp_path / "a.mat").write_bytes(big[:126] + b"XX" + big[128:])
    with pytest.raises(DataError, match="byte order"):
        read_matlab(tmp_path / "a.mat")


# --- Helsinki Tomography Challenge ---------------------------------------------------------------------------------
PARAMETERS: dict[str, Any] = {
    "geometryType": "Cone",
    "distanceSourceOrigin": 410.66,
    "distanceSourceDetector": 553.74,
    "distanceUnit": "mm",
    "pixelSize": 0.05,
    "pixelSizePost": 2.0,
    "numDetectorsPost": 56,
    "angles": np.arange(269.0, 299.5, 2.0),
    "scanner": "a scanner",
}
DISC = torch.tensor([[40.0, 0.004, 0.007, 0.02, 0.012, 0.4]], dtype=torch.float64)


def htc_file(path: Path, name: str = "CtDataLimited", **change: Any) -> Path:
    parameters = {k: v for k, v in (PARAMETERS | change).items() if v is not None}
    angles = torch.deg2rad(torch.from_numpy(PARAMETERS["angles"]))
    rays = FanBeam(angles, (40, 40), 56, 2.0, 410.66, 553.74, pixel_size=1.5, unit="mm")
    sinogram = change.get("sinogram", ellipse_projection(rays, DISC).numpy())
    parameters.pop("sinogram", None)
    savemat(path, {name: {"type": "2d", "sinogram": sinogram, "parameters": parameters}}, do_compression=True)
    return path


@pytest.mark.parametrize("name", ["CtDataLimited", "CtDataFull", "anything"])
def test_an_htc_scan_is_that_of_its_body(tmp_path: Path, name: str) -> None:
    path = htc_file(tmp_path / "a.mat", name)
    assert io.detect(path) == "htc"
    scan = io.read(path)
    assert isinstance(scan, CTScan)
    expected = ellipse_projection(scan.geometry, DISC).numpy()
    assert np.abs(scan.sinogram[0] - expected).max() < 1e-6
    assert scan.geometry.pixel_size[0] == pytest.approx(2e-3 * 410.66 / 553.74, rel=1e-3)
    assert scan.metadata["lengths"] == "mm"
    assert "a scanner" in scan.metadata["scanner"]


def test_units_of_an_htc_scan(tmp_path: Path) -> None:
    lengths = ("distanceSourceOrigin", "distanceSourceDetector", "pixelSizePost")
    for unit, factor in (("cm", 0.1), ("m", 1e-3)):
        path = htc_file(tmp_path / "a.mat", distanceUnit=unit, **{k: factor * PARAMETERS[k] for k in lengths})
        assert read_htc(path).geometry.pixel_size[0] == pytest.approx(1.4832e-3, rel=1e-3)
    assumed = read_htc(htc_file(tmp_path / "a.mat", distanceUnit=None))
    assert assumed.metadata["lengths"] == "mm (assumed)"
    unbinned = read_htc(htc_file(tmp_path / "a.mat", pixelSizePost=None, pixelSize=2.0))
    assert unbinned.geometry.pixel_size[0] == pytest.approx(1.4832e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distanceSourceOrigin": None}, "parameters.distanceSourceOrigin is missing"),
        ({"distanceSourceOrigin": "far"}, "distanceSourceOrigin: the text 'far'"),
        ({"distanceSourceOrigin": -3.0}, "distanceSourceOrigin: -3, expected a number above 0"),
        ({"distanceSourceDetector": 300.0}, "distanceSourceDetector: 0.3 m, expected more"),
        ({"distanceSourceDetector": np.nan}, "distanceSourceDetector: holds NaN"),
        ({"distanceUnit": "inch"}, "distanceUnit: 'inch'"),
        ({"pixelSizePost": 1e-320}, "its rays cover no image .* apart at the axis, expected a positive distance"),
        ({"distanceUnit": {"name": "mm"}}, "distanceUnit: a struct, expected a text"),
        ({"distanceUnit": "m"}, "makes no geometry|beyond"),
        ({"geometryType": "Helical"}, "geometryType: 'Helical'"),
        ({"angles": np.arange(5.0)}, r"angles: float64 of shape \(1, 5\), expected 16 real numbers"),
        ({"numDetectorsPost": 7}, "56 detector pixels, expected 7"),
        ({"sinogram": np.full((16, 56), np.nan)}, "NaN or Inf in projections"),
        ({"sinogram": np.zeros((16, 56))}, "zero everywhere"),
        ({"sinogram": "none"}, "sinogram: the text"),
    ],
)
def test_htc_files_that_make_no_sense(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_htc(htc_file(tmp_path / "a.mat", **change))


def test_another_matlab_file(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"y": 1.0})
    for call in (io.detect, read_htc):
        with pytest.raises(DataError, match="holds y"):
            call(tmp_path / "a.mat")
    savemat(tmp_path / "a.mat", {"y": {"sinogram": np.ones((3, 4)), "parameters": 1.0}})
    with pytest.raises(DataError, match=r"y\.parameters: .* expected a struct"):
        io.read(tmp_path / "a.mat")


@needs_real
@pytest.mark.parametrize(("file", "truth"), [("htc_tb_90deg", "htc_tb_truth"), ("htc_ta_category7", "htc_ta_truth")])
def test_a_real_disc_projects_to_its_sinogram(file: str, truth: str) -> None:
    """The segmentation, projected with the file's geometry, is the measurement but for a factor."""
    scan = read_htc(REAL / f"{file}.mat")
    mask = torch.from_numpy(io.read_result(REAL / f"{truth}.png").image / 255.0).float()
    projected = radon(mask, on_grid(scan.geometry, (512, 512), 1.483223e-4)).numpy()
    assert np.corrcoef(projected.ravel(), scan.sinogram.ravel())[0, 1] > 0.99


# --- Data Exchange -------------------------------------------------------------------------------------------------
def exchange_file(path: Path, offset: float = 3.3, arc: float = 180.0, **change: Any) -> Path:
    """Counts of a body behind two rows of a detector, whose middle is off the axis."""
    views = 90
    theta = arc * np.arange(views) / views
    rays = ParallelBeam(torch.deg2rad(torch.from_numpy(theta)), (40, 40), 80, 1.0, offset, unit="mm")
    lines = ellipse_projection(rays, DISC).numpy()
    gain = np.random.default_rng(0).uniform(0.8, 1.2, 80)
    counts = 100 + 1e4 * gain * np.exp(-np.stack([lines, 0.5 * lines], axis=1))
    dark = np.full((5, 2, 80), 100, np.uint16)
    dark[3] = 60000  # a spark in one frame
    content: dict[str, Any] = {
        "exchange/data": counts.astype(np.float32),
        "exchange/data_dark": dark,
        "exchange/data_white": np.broadcast_to(100 + 1e4 * gain, (4, 2, 80)).astype(np.float32),
        "exchange/theta": theta,
    } | {f"exchange/{k}" if "/" not in k else k: v for k, v in change.items()}
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if value is not None:
                file[name] = value
    return path


def test_counts_become_line_integrals_about_the_axis(tmp_path: Path) -> None:
    path = exchange_file(tmp_path / "a.h5")
    assert io.detect(path) == "data-exchange"
    scan = read_data_exchange(path, pixel_size=1e-3)
    assert scan.labels == ("row 0", "row 1")
    found = float(scan.geometry.det_offset)
    assert found == pytest.approx(3.3e-3, abs=0.15e-3)
    told = read_data_exchange(path, pixel_size=1e-3, center=39.5 - 3.3)
    expected = ellipse_projection(told.geometry, DISC).numpy()
    assert np.abs(told.sinogram[0] - expected).max() < 1e-4  # counts are float32, 1e4 of them
    assert np.abs(told.sinogram[1] - 0.5 * expected).max() < 1e-4
    assert told.metadata["center"] == "pixel 36.20 of 80 (given)"
    assert "mirrored" in scan.metadata["center"]
    assert told.metadata["clamped"].startswith("0 of")


def test_rows_of_a_detector(tmp_path: Path) -> None:
    path = exchange_file(tmp_path / "a.h5")
    whole, part = read_data_exchange(path, center=36.2), read_data_exchange(path, center=36.2, rows=slice(1, 2))
    assert np.array_equal(part.sinogram, whole.sinogram[1:])
    with pytest.raises(DataError, match="2 rows, of which none"):
        read_data_exchange(path, rows=slice(5, 9))


def test_a_few_rows_of_a_scan_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exchange_file(tmp_path / "a.h5")
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 90 * 80 * 4}  # bytes: one row of the two
    monkeypatch.setattr("pyrecon.io._files.os.sysconf", pages.__getitem__)
    monkeypatch.setattr("pyrecon.io._files.SMALL", 1000)
    with pytest.raises(DataError, match=r"needs 56\.2 KiB"):
        read_data_exchange(path)
    assert read_data_exchange(path, rows=slice(0, 1)).sinogram.shape == (1, 90, 80)


def test_what_a_data_exchange_file_does_not_say_is_assumed_aloud(tmp_path: Path) -> None:
    plain = read_data_exchange(exchange_file(tmp_path / "a.h5"))
    assert plain.metadata["detector_pixel"] == "1000 um (assumed)"
    assert "1 mm is assumed" in plain.metadata["warnings"][0]
    assert plain.metadata["angle_unit"] == "degrees"
    field = "measurement/instrument/detector/pixel_size_x"
    sized = read_data_exchange(exchange_file(tmp_path / "a.h5", **{field: 7.4}))
    assert sized.geometry.pixel_size[0] == pytest.approx(7.4e-6)
    assert "warnings" not in sized.metadata
    radians = exchange_file(tmp_path / "a.h5", theta=np.deg2rad(2.0 * np.arange(90)))
    assert read_data_exchange(radians).metadata["angle_unit"] == "degrees"  # nothing says otherwise
    with h5py.File(radians, "a") as file:
        file["exchange/theta"].attrs["units"] = "radians"
    read = read_data_exchange(radians)
    assert "radians" in read.metadata["angle_unit"]
    torch.testing.assert_close(read.geometry.angles, plain.geometry.angles)
    bare = read_data_exchange(exchange_file(tmp_path / "a.h5", data_dark=None, data_white=None))
    assert (bare.metadata["dark_field"], bare.metadata["white_field"]) == ("none", "none")
    assert "no whites" in bare.metadata["minus_log"]


def test_dead_pixels_and_opaque_rays_are_counted(tmp_path: Path) -> None:
    with h5py.File(exchange_file(tmp_path / "b.h5")) as file:
        counts, white = file["exchange/data"][()], file["exchange/data_white"][()]
    counts[3, 0, 40] = 50.0
    white[:, 1, 7] = 90.0
    scan = read_data_exchange(exchange_file(tmp_path / "a.h5", data=counts, data_white=white), center=36.2)
    assert scan.metadata["clamped"].startswith(f"{1 + 90} of {counts.size}")
    assert np.isfinite(scan.sinogram).all()
    assert scan.sinogram[0, 3, 40] == scan.sinogram[0].max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": None}, "theta is missing"),
        ({"theta": np.arange(7.0)}, "theta: shape"),
        ({"theta": np.full(90, np.nan)}, "theta: float64 with NaN"),
        ({"data": np.ones((90, 80))}, r"data: float64 of shape \(90, 80\)"),
        ({"data": np.full((90, 2, 80), np.inf)}, "NaN or Inf in lines"),
        ({"data_white": np.ones((3, 2, 79))}, "data_white: float64 of shape"),
        ({"data_dark": np.full((3, 2, 80), np.nan)}, "data_dark: NaN or Inf"),
        ({"measurement/instrument/detector/pixel_size_x": -1.0}, "pixel_size_x: -1"),
        ({"data": np.full((90, 2, 80), 5e3), "data_white": np.full((1, 2, 80), 5e3)}, "zero everywhere"),
    ],
)
def test_data_exchange_files_that_make_no_sense(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_data_exchange(exchange_file(tmp_path / "a.h5", **change))


@needs_real
def test_the_center_of_a_real_tooth() -> None:
    scan = read_data_exchange(REAL / "tooth.h5")
    assert scan.sinogram.shape == (2, 181, 640)
    center = float(scan.metadata["center"].split()[1])
    assert center == pytest.approx(296, abs=0.5)  # what tomopy's documentation gives


# --- the open format -----------------------------------------------------------------------------------------------
def scans() -> dict[str, CTScan]:
    made = {}
    for beam in ("parallel", "fan", "curved"):
        geometry = scanner(beam, 5, n_det=12, offset=0.7)
        made[beam] = simulate(phantom("disc", geometry, 2), geometry, noise_std=0.1)
    fan = made["fan"].geometry
    points, directions = fan.rays()
    middle, axes = points[:, 5:7].mean(1), points[:, 6] - points[:, 5]
    toward = directions[:, 5:7].mean(1)
    source = middle - 0.4 * toward / toward.norm(dim=1, keepdim=True)
    for name, more in (("views", {"sources": source}), ("views-curved", {"sources": source, "curved": True}),
                       ("rays", {"rays": toward})):  # fmt: skip
        geometry = ViewBeam(middle, axes, fan.shape, 12, fan.pixel_size, unit="m", **more)
        made[name] = replace(made["fan"], geometry=geometry, labels=("one", "two"), metadata={"a": 1.5})
    per_view = ParallelBeam(fan.angles, (9, 9), 12, 1e-3, 1e-4 * torch.arange(5.0), 1e-3, unit="m")
    made["offsets"] = replace(made["parallel"], geometry=per_view)
    return made


@pytest.mark.parametrize("extension", [".h5", ".npz"])
@pytest.mark.parametrize("name", list(scans()))
def test_a_scan_comes_back(tmp_path: Path, name: str, extension: str) -> None:
    scan = scans()[name]
    path = tmp_path / f"a{extension}"
    write_sinogram(path, scan)
    assert io.detect(path) == "sinogram"
    read = io.read(path)
    assert isinstance(read, CTScan)
    assert np.array_equal(read.sinogram, scan.sinogram)
    assert type(read.geometry) is type(scan.geometry)
    assert (read.geometry.shape, read.geometry.pixel_size) == (scan.geometry.shape, scan.geometry.pixel_size)
    assert all(torch.equal(a, b) for a, b in zip(read.geometry.rays(), scan.geometry.rays(), strict=True))
    assert read.labels == scan.labels
    assert scan.metadata.items() <= read.metadata.items()


def foreign(path: Path, **change: Any) -> Path:
    """What somebody else writes, in millimetres and degrees, without a grid."""
    content: dict[str, Any] = {
        "sinogram": np.ones((4, 10), np.float64),
        "beam": "parallel",
        "unit": "mm",
        "angle_unit": "deg",
        "angles": np.array([0.0, 45.0, 90.0, 135.0]),
        "det_spacing": 2.0,
    } | change
    content = {k: v for k, v in content.items() if v is not None}
    if path.suffix == ".npz":
        np.savez(path, **content)
        return path
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            file[name] = value
    return path


BOTH = pytest.mark.parametrize("extension", [".h5", ".npz"])


@BOTH
def test_a_file_from_elsewhere(tmp_path: Path, extension: str) -> None:
    scan = read_sinogram(foreign(tmp_path / f"a{extension}"))
    assert scan.sinogram.shape == (1, 4, 10)
    assert scan.geometry.angles.tolist() == pytest.approx([0, math.pi / 4, math.pi / 2, 3 * math.pi / 4])
    assert scan.geometry.shape == (10, 10)
    assert scan.geometry.pixel_size == pytest.approx((2e-3, 2e-3))


@BOTH
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beam": "spiral"}, "beam: 'spiral', expected one of parallel"),
        ({"unit": None}, "unit is missing"),
        ({"unit": "km"}, "unit: 'km'"),
        ({"unit": "m", "det_spacing": 2e3}, "makes no geometry .*body of"),
        ({"angles": None}, "angles is missing"),
        ({"angles": np.zeros((4, 2))}, "angles: float64 of shape"),
        ({"angles": np.array([0, 1, 2, np.nan])}, "makes no geometry .*angles"),
        ({"det_spacing": -1.0}, "makes no geometry .*det_spacing"),
        ({"det_spacing": np.inf}, "det_spacing: inf"),
        ({"det_offset": np.zeros(3)}, "det_offset: float64 of shape"),
        ({"beam": "fan"}, "source_to_axis is missing"),
        ({"beam": "views"}, "detectors is missing"),
        ({"sinogram": np.ones(4)}, "sinogram: float64 of shape"),
        ({"sinogram": np.zeros((0, 10))}, r"sinogram: shape \(1, 0, 10\)"),
        ({"sinogram": np.full((4, 10), np.nan)}, "sinogram holds NaN"),
        ({"shape": np.array([0, 3]), "pixel_size": np.ones(2)}, r"shape: \[0.0, 3.0\]"),
        ({"shape": np.array([10**9, 3]), "pixel_size": np.ones(2)}, "shape: "),
        ({"labels": "[1"}, "labels: is no JSON"),
        ({"labels": '["a", "b"]'}, "labels: 2 texts"),
        ({"metadata": "[]"}, "metadata: is JSON of a list"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, extension: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_sinogram(foreign(tmp_path / f"a{extension}", **change))
    assert str(tmp_path) in str(caught.value)


def test_warnings_of_a_geometry_wait_for_the_report(tmp_path: Path) -> None:
    scan = read_sinogram(foreign(tmp_path / "a.h5", angles=np.array([0.0, 45.0, 45.0, 135.0])))
    assert any("repeat" in text for text in scan.metadata["warnings"])


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return Path.touch, (Path(tmp_path / "sprung"),)  # type: ignore[return-value]

    np.savez(tmp_path / "a.npz", sinogram=np.array([Trap()], object), beam="parallel")
    with pytest.raises(DataError, match="Python objects"):
        read_sinogram(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()
