"""What ``pyrecon inspect`` says of a file is what is in it, and what a reconstruction then does."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.fourier import fft_centered
from pyrecon.io import Result, read, write_result
from pyrecon.io._outline import sampling
from pyrecon.io.inspection import inspect
from pyrecon.models.mri import reconstruct_mri
from pyrecon.testing.mrd import fastmri_file, mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

H, W, C = 24, 32, 3
HEADER = mrd_header(mrd_encoding((W, H, 1), (400.0, 300.0, 5.0)), vendor="SIEMENS")
PROTOCOL = (
    f"sKSpace.lBaseResolution = {W // 2}\nsKSpace.lPhaseEncodingLines = {H}\nsSliceArray.asSlice[0].dThickness = 5\n"
)
GRAPPA = [*range(0, H, 2)]
GAPS = [9, 11, 13, 15]


def kspace(slices: int = 1) -> NDArray[np.complex64]:
    """``(S, C, H, W)`` of discs, with noise."""
    y, x = np.meshgrid(np.arange(H) / H - 0.5, 2 * (np.arange(W) / W - 0.5), indexing="ij")
    maps = np.stack([np.exp(-((x - a) ** 2) - (y - a) ** 2 + 2j * a) for a in np.linspace(-0.5, 0.5, C)])
    image = np.stack([1.0 * ((x / 0.3) ** 2 + (y / 0.4) ** 2 < 1 - 0.1 * s) for s in range(slices)])
    found = fft_centered(torch.from_numpy(image[:, None] * maps)).numpy()
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, *found.shape))
    return (found + 0.01 * (noise[0] + 1j * noise[1])).astype(np.complex64)


def noise(samples: int = 64) -> NDArray[np.complex64]:
    rng = np.random.default_rng(3)
    return 0.01 * (rng.standard_normal((C, samples)) + 1j * rng.standard_normal((C, samples))).astype(np.complex64)


def ismrmrd(path: Path, header: str = HEADER, gaps: list[int] = GAPS, slices: int = 2, whole: bool = False) -> Path:
    lines: list[dict[str, Any]] = [{"data": noise(), "flags": ["IS_NOISE_MEASUREMENT"]}]
    for s, k in enumerate(kspace(slices)):
        place = {
            "position": (1.0, 2.0, 10.0 * s),
            "read_dir": (1, 0, 0),
            "phase_dir": (0, 1, 0),
            "slice_dir": (0, 0, 1),
        }
        for row in range(H) if whole else GRAPPA:
            lines.append({"data": k[:, row], "at": {"kspace_encode_step_1": row, "slice": s}, **place})
        for row in gaps:
            lines.append({"data": k[:, row], "at": {"kspace_encode_step_1": row, "slice": s},
                          "flags": ["IS_PARALLEL_CALIBRATION"], **place})  # fmt: skip
    return mrd_file(path.with_suffix(".h5"), lines, header)


def siemens(path: Path, *more: dict[str, Any], gaps: list[int] = GAPS, scale: complex = 1) -> Path:
    lines: list[dict[str, Any]] = [{"data": noise(), "flags": ["NOISEADJSCAN"]}]
    for row in GRAPPA + gaps:
        flags = ["PATREFSCAN"] * (row in gaps)
        lines.append({"data": scale * kspace()[0][:, row], "at": {"Lin": row}, "center_line": H // 2, "flags": flags,
                      "rotation": (1, 0, 0, 0), "position": (1.0, 2.0, 3.0)})  # fmt: skip
    path.with_suffix(".dat").write_bytes(twix_bytes([*lines, *more], PROTOCOL))
    return path.with_suffix(".dat")


def command(*arguments: str | Path) -> str:
    found = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def said(path: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(path, "--json", *options))
    return found


# ---- raw MRI


@pytest.mark.parametrize("write", [ismrmrd, siemens])
def test_counters_readouts_and_geometry(tmp_path: Path, write: Callable[..., Path]) -> None:
    found = said(write(tmp_path / "m"))
    slices = 2 if write is ismrmrd else 1
    counters = {row.pop("counter"): tuple(row.values()) for row in found["counters"]}
    assert counters["line"] == (0, H - 2, len(GRAPPA) + len(GAPS))
    assert counters["slice"] == (0, slices - 1, slices)
    unused = ("partition", "contrast", "phase", "repetition", "set", "average", "segment")
    assert all(counters[name] == (0, 0, 1) for name in unused)
    readouts = {row["kind"]: row for row in found["readouts"]}
    assert readouts["image"]["count"] == slices * len(GRAPPA)
    assert readouts["reference"]["count"] == slices * len(GAPS)
    assert (readouts["noise"]["channels"], readouts["noise"]["samples"]) == (str(C), "64")
    reference = "PARALLEL_CALIBRATION" if write is ismrmrd else "PATREFSCAN"
    assert readouts["reference"]["flags"] == f"{reference} {slices * len(GAPS)}"
    facts = found["facts"]
    assert facts["channels"] == str(C)
    assert facts["matrix"] == f"{H} lines x {W} samples, readout oversampling 2"
    assert facts["sampling"] == "16 of 24 lines, every 2nd, net acceleration 1.50, 9 fully sampled about the centre"
    assert facts["calibration"] == f"{slices * len(GAPS)} reference lines in the gaps of the image's"
    assert facts["noise"] == "1 readouts of 3 channels, 64 samples"
    assert facts["orientation"].endswith(f"at 1.0, 2.0, {0 if write is ismrmrd else 3}.0 mm to left, posterior, head")
    if write is ismrmrd:
        assert facts["orientation"].startswith("rows to posterior, columns to left")
        assert facts["field of view"] == "300 x 200 mm, slices of 5 mm"
        assert facts["scanner"] == "SIEMENS"
    assert found["refused"] is None


@pytest.mark.parametrize(
    "write",
    [
        ismrmrd,
        siemens,
        lambda path: ismrmrd(path, gaps=[], whole=True),
        lambda path: siemens(path, gaps=[]),
        lambda path: fastmri_file(path, kspace(2).swapaxes(-1, -2)),
        lambda path: _saved(path.with_suffix(".npy"), kspace(2)[..., : W // 2]),
        lambda path: _saved(path.with_suffix(".npy"), kspace(1)[0, 0] * (np.arange(H) % 5 == 2)[:, None]),
        lambda path: _slab(path.with_suffix(".h5")),
        lambda path: _in_turn(path.with_suffix(".h5")),
    ],
    ids=[
        "ismrmrd",
        "twix",
        "ismrmrd, whole",
        "twix, no reference",
        "fastmri",
        "npy",
        "one coil, fivefold",
        "3-D",
        "times in turn",
    ],
)
def test_what_would_be_done_is_done(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Method, size of the images, source of maps and noise, geometry: as the reconstruction's report has them."""
    path = write(tmp_path / "m")
    plan = said(path)["plan"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if plan["coil maps"].startswith("refused: "):
            reason = re.escape(plan["coil maps"].removeprefix("refused: ").split(";")[0])
            with pytest.raises(DataError, match=reason):
                reconstruct_mri(read(path))
            return
        images, report = reconstruct_mri(read(path))
    assert plan["method"].startswith(f"{report.method} (")
    assert plan["images"].startswith(f"{len(images)} of {images.shape[1]} x {images.shape[2]}")
    if report.details["maps"].startswith("1 ("):
        assert plan["coil maps"] == report.details["maps"]
    else:
        block = re.search(r"from (\d+ x \d+) samples", report.details["maps"])
        assert block is not None
        assert f"estimated from {block[1]} samples" in plan["coil maps"]
        assert ("over time" in report.details["maps"]) == ("over time" in plan["coil maps"])
    scan_of_noise = report.details["noise"].startswith("noise scan")
    assert plan["noise"] == f"whitened by the {'noise scan' if scan_of_noise else 'corners of k-space'}"


def _slab(path: Path) -> Path:
    """Eight partitions, every second line of each in turn, whole about the centre of both directions."""
    volume = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(kspace(8), axes=0), axis=0, norm="ortho"), axes=0)
    lines = [
        {"data": volume[z, :, y], "at": {"kspace_encode_step_1": y, "kspace_encode_step_2": z}}
        for z, y in np.ndindex(8, H)
        if (y + z) % 2 == 0 or (abs(y - H // 2) < 5 and abs(z - 4) < 3)
    ]
    return mrd_file(path, lines, mrd_header(mrd_encoding((W, H, 8), (400.0, 300.0, 40.0)), channels=C))


def _in_turn(path: Path) -> Path:
    """Two repetitions of one slice, each with every second line."""
    lines = [{"data": kspace(1)[0, :, y], "at": {"kspace_encode_step_1": y, "repetition": y % 2}} for y in range(H)]
    return mrd_file(path, lines, mrd_header(mrd_encoding((W, H, 1), (400.0, 300.0, 5.0)), channels=C))


def _saved(path: Path, array: NDArray[Any]) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("write", "refusal"),
    [
        (lambda p: ismrmrd(p, HEADER.replace("cartesian", "spiral")), "'spiral', expected 'cartesian'"),
        (lambda p: siemens(p, {"data": noise(W), "flags": ["SLICE_ACCEL_REFSCAN"]}), "slices measured at once"),
        (lambda p: siemens(p, {"data": noise(W), "at": {"Lin": 3}, "flags": ["SWAPPED"]}), "SWAPPED"),
        (lambda p: siemens(p, scale=np.nan), "NaN or Inf"),
    ],
    ids=["trajectory", "multi-slice", "swapped", "nan"],
)
def test_what_a_reader_refuses_is_shown(tmp_path: Path, write: Callable[[Path], Path], refusal: str) -> None:
    path = write(tmp_path / "m")
    found = said(path)
    assert refusal in found["refused"]
    assert found["plan"] == {"nothing": "the reader refuses the file"}
    assert {row["kind"] for row in found["readouts"]} == {"image", "reference", "noise"}
    assert len(found["counters"]) == 9
    text = command(path)
    assert re.search(r"^refused +.*" + re.escape(refusal), text, re.MULTILINE)


def test_a_file_of_noise_alone(tmp_path: Path) -> None:
    (tmp_path / "m.dat").write_bytes(twix_bytes([{"data": noise(), "flags": ["NOISEADJSCAN"]}], PROTOCOL))
    found = said(tmp_path / "m.dat")
    assert found["facts"] == {"noise": "1 readouts of 3 channels, 64 samples"}
    assert "none of them image data" in found["refused"]


@pytest.mark.parametrize("write", [ismrmrd, siemens])
def test_large_files_are_judged_by_their_headers(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Not even a file of NaN is refused: no sample is looked at."""
    path = write(tmp_path / "m")
    whole, heads = inspect(path), inspect(path, most=0)
    assert heads.scan is None
    assert heads.refusal is None
    assert heads.unread is not None
    assert (heads.facts, heads.counters, heads.readouts) == (whole.facts, whole.counters, whole.readouts)
    if write is siemens:
        spoilt = inspect(siemens(tmp_path / "n", scale=np.nan), most=0)
        assert spoilt.facts == whole.facts
        assert spoilt.refusal is None


def test_the_plan_of_a_file_that_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrecon.io.inspection.MOST_READ", 1000)
    plan = said(ismrmrd(tmp_path / "m"))["plan"]
    assert plan["method"].startswith("CG-SENSE")
    assert "--whole does" in plan["not looked at"]
    sparse = siemens(tmp_path / "s", gaps=[])
    assert said(sparse, "--whole")["plan"]["coil maps"].startswith("refused")


def test_partitions(tmp_path: Path) -> None:
    lines = [
        {"data": noise(W), "at": {"Lin": row, "Par": p}, "center_line": H // 2, "center_partition": 4}
        for row in GRAPPA
        for p in range(1, 7)
    ]
    (tmp_path / "m.dat").write_bytes(twix_bytes(lines, PROTOCOL + "sKSpace.lPartitions = 8\n"))
    found = said(tmp_path / "m.dat")
    assert found["counters"][1] == {"counter": "partition", "lowest": 1, "highest": 6, "count": 6}
    facts = found["facts"]
    assert facts["matrix"].startswith("8 partitions x 24 lines x 32 samples")
    assert facts["images"] == "1 volumes of 8 partitions"
    assert facts["partitions"] == "6 of 8 partitions"
    assert facts["orientation"] == "the file does not say where its images lie"


def lines(*chosen: int, count: int = 32) -> NDArray[np.bool_]:
    found = np.zeros(count, bool)
    found[list(chosen)] = True
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([lines(*range(32))], "32 of 32 lines"),
        ([lines(*range(0, 32, 4))], "8 of 32 lines, every 4th, net acceleration 4.00, no fully sampled block"),
        ([lines(*range(0, 32, 3), *range(12, 20))], "every 3rd, net acceleration 2.00, 8 fully sampled about"),
        ([lines(0, 5, 7, 13, 15, 16, 17, 29)], "at irregular distances, net acceleration 4.00, 3 fully sampled"),
        ([lines(*range(10, 32))], "22 of 32 lines, 10 left out at the beginning and 0 at the end (partial Fourier)"),
        ([lines(*range(8, 32, 2))], "8 left out at the beginning and 1 at the end (partial Fourier)"),
        ([lines(*range(0, 32, 2)), lines(*range(1, 32, 2))], "16 of 32 lines, every 2nd, .*not the same in every"),
        ([lines(*range(32)), lines(*range(20))], "20 to 32 of 32 lines, not the same in every image"),
    ],
)  # fmt: skip
def test_sampling_in_words(given: list[NDArray[np.bool_]], expected: str) -> None:
    told = sampling(np.stack(given))
    pattern = expected if ".*" in expected else re.escape(expected)
    assert re.search(pattern, told), told


# ---- other formats


def test_k_space_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "k.npz", kspace=kspace(2) * lines(*GRAPPA, *GAPS, count=H)[:, None], other=np.ones(3))
    found = said(tmp_path / "k.npz")
    assert found["facts"]["arrays"] == f"kspace (complex64 of shape (2, 3, {H}, {W})), other (float64 of shape (3,))"
    assert found["facts"]["sampling"].startswith("16 of 24 lines, every 2nd, net acceleration 1.50, 9 fully sampled")
    assert any("axes are taken as SCHW" in note for note in found["notes"])
    np.save(tmp_path / "r.npy", np.ones((3, 4, 5)))
    refused = said(tmp_path / "r.npy")
    assert "expected complex numbers" in refused["refused"]
    assert refused["facts"]["arrays"] == "r (float64 of shape (3, 4, 5))"


def test_bart_axes_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "k.hdr").write_text("# Dimensions\n32 24 1 3 2 1 1 1 1 1 1 1 1 1 1 1\n")
    (tmp_path / "k.cfl").write_bytes(bytes(8 * 32 * 24 * 3 * 2))
    found = said(tmp_path / "k")
    assert found["facts"] == {"dimensions": "READ 32, PHS1 24, COIL 3, MAPS 2"}
    assert "MAPS (axis 4) has 2 entries" in found["refused"]
    assert found["bytes"] == 8 * 32 * 24 * 3 * 2 + (tmp_path / "k.hdr").stat().st_size


def test_fastmri(tmp_path: Path) -> None:
    found = said(fastmri_file(tmp_path / "f.h5", kspace(2).swapaxes(-1, -2), mask=lines(*GRAPPA, count=H)))
    assert found["facts"]["kspace"] == f"complex64 of shape (2, 3, {W}, {H}) (S, [C,] readout, lines)"
    assert found["facts"]["mask"] == "in the file"
    assert found["facts"]["sampling"].startswith("12 of 24 lines, every 2nd, net acceleration 2.00")
    assert found["plan"]["coil maps"].startswith("refused")


def test_mpi_files(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["simulate", "mpi", "-o", str(tmp_path)])
    found = said(tmp_path / "measurement.mdf")
    scan = read(tmp_path / "measurement.mdf")
    assert found["facts"]["specification"] == "as it says"
    frames, background = len(scan.is_background), int(scan.is_background.sum())
    assert found["facts"]["background"] == f"{background} of {frames} frames"
    assert found["facts"]["frames"] == str(frames)
    assert "--system-matrix" in found["plan"]["method"]
    with h5py.File(tmp_path / "measurement.mdf", "a") as file:
        del file["study/name"]
    assert said(tmp_path / "measurement.mdf")["facts"]["specification"].startswith("departs in 1 fields: ")
    matrix = said(tmp_path / "system_matrix.mdf")
    assert matrix["facts"]["grid"] == "13, 26, 1"
    assert "nothing" in matrix["plan"]


def test_ct_files(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["simulate", "ct", "-o", str(tmp_path / "c.h5"), "--views", "50", "--detector", "40"])
    found = said(tmp_path / "c.h5")
    assert found["facts"]["sinogram"] == "1 slices, 50 views of 40 detector pixels"
    assert found["plan"]["coverage"] == "50 views, all directions"
    counts = 100 + np.random.default_rng(0).uniform(0, 50, (30, 4, 24)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["exchange/data"], file["exchange/theta"] = counts, 6.0 * np.arange(30)
        file["exchange/data_white"] = counts[:3] + 100
    exchange = said(tmp_path / "x.h5")
    assert exchange["facts"]["data"] == "float32 of shape (30, 4, 24)"
    assert exchange["facts"]["data_dark"] == "none"
    assert exchange["facts"]["theta"] == "float64 of shape (30,), 0 to 174"
    assert "1 slices, 30 views" in exchange["facts"]["sinogram"]  # the middle row
    assert any("1 mm is assumed" in note for note in exchange["notes"])
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["exchange/data"]
        file["exchange/data"] = counts[:, 0, 0]
    assert "float32 of shape (30,), expected real numbers" in said(tmp_path / "x.h5")["refused"]


def test_images_and_folders(tmp_path: Path) -> None:
    write_result(tmp_path / "a.npz", Result(np.ones((3, 4)), method="x"))
    found = said(tmp_path / "a.npz")
    assert found["facts"] == {"image": "float64 of shape (3, 4)", "method": "x"}
    assert found["plan"] == {"nothing": "an image already"}
    folder = said(tmp_path)
    assert folder["facts"]["series"] == "1 of 1 slices of 3 x 4 pixels, float32"
    assert "pyrecon fit" in folder["plan"]["nothing"]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = siemens(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:-3000])
    found = CliRunner().invoke(app, ["inspect", str(path)])
    assert isinstance(found.exception, DataError)
    assert str(found.exception).startswith(f"{path}: measurement 0 spans bytes")
    assert "\n" not in str(found.exception)
    assert found.stdout == ""
