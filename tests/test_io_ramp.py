"""Readouts sampled on gradient ramps, from gradients that are integrated numerically, against uniform k-space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.fourier import fft_centered, ifft_centered
from pyrecon.io import read
from pyrecon.io._ramp import Ramp
from pyrecon.io._readouts import Readout
from pyrecon.models.mri import ZeroFilled, reconstruct_mri
from pyrecon.testing.mrd import mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

N, SAMPLES = 48, 2 * 48
# Microseconds: ramps, flat top, start of sampling and what a sample takes.
SYMMETRIC = {"up": 200.0, "flat": 320.0, "down": 200.0, "delay": 24.0, "dwell": 7.0}
ASYMMETRIC = {"up": 160.0, "flat": 400.0, "down": 220.0, "delay": 60.0, "dwell": 6.5}
SHAPES = pytest.mark.parametrize(
    ("times", "sine"),
    [(SYMMETRIC, False), (ASYMMETRIC, False), (SYMMETRIC, True), (ASYMMETRIC, True)],
    ids=["symmetric", "asymmetric", "sinusoidal", "asymmetric sinusoidal"],
)


def trajectory(times: dict[str, float], sine: bool = False, samples: int = SAMPLES) -> tuple[Any, Any]:
    """``(n,)`` twice, by summing up the gradient in steps of 1 ns: where samples lie, and where those of the flat top's
    gradient alone would, in steps of the matrix from the gradient's middle."""
    up, flat, down = (times[name] for name in ("up", "flat", "down"))
    fine = (np.arange(round(1000 * (up + flat + down))) + 0.5) / 1000
    rising, falling = fine / up, (up + flat + down - fine) / down
    gradient = np.minimum(1.0, np.minimum(rising, falling).clip(0))
    area = np.cumsum(np.sin(np.pi / 2 * gradient) if sine else gradient) / 1000
    at = times["delay"] + (np.arange(samples) + 0.5) * times["dwell"]
    edges = times["delay"] + np.array([0, samples * times["dwell"]])
    covered = np.diff(np.interp(edges, fine, area))[0]
    k = np.interp(at, fine, area) - area[-1] / 2
    middle = np.interp(area[-1] / 2, area, fine)
    return 2 * N / covered * k, 2 * N / covered * (at - middle)


def ramp_of(times: dict[str, float], sine: bool = False, samples: int = SAMPLES) -> Ramp:
    return Ramp(times["up"], times["flat"], times["down"], times["delay"], samples * times["dwell"], samples,
                columns=2 * N, kept=N, sine=sine)  # fmt: skip


def phantom() -> NDArray[np.float64]:
    y, x = np.meshgrid(*2 * [(np.arange(N) - N // 2) / N], indexing="ij")
    image = 1.0 * ((x / 0.45) ** 2 + (y / 0.4) ** 2 < 1)
    image[(x + 0.2) ** 2 + (y + 0.15) ** 2 < 0.01] = 0.2
    image[(x - 0.2) ** 2 + (y - 0.1) ** 2 < 0.007] = 1.8
    return image


def along_readout(lines: NDArray[Any], k: NDArray[np.float64]) -> NDArray[Any]:
    """Fourier transform of ``(..., N)`` pixels, of twice the field of view, at any places of k-space."""
    x = np.arange(N) - N // 2
    return lines @ np.exp(-2j * np.pi * np.outer(x, k) / (2 * N)) / np.sqrt(2 * N)


def relative(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


# ---- one readout


@SHAPES
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_samples_on_ramps_give_the_uniform_k_space(times: dict[str, float], sine: bool, backwards: bool) -> None:
    """A backwards readout has the same gradient, of the other sign; it is stored from left to right."""
    k, _ = trajectory(times, sine)
    ramp = ramp_of(times, sine)
    np.testing.assert_allclose(ramp.positions, k, atol=1e-3)
    data = along_readout(phantom(), (-k)[::-1] if backwards else k)
    found = ramp.resampled(Readout(data.astype(np.complex64), 0, 0, 0, (0,), backwards=backwards))
    assert (found.column, found.data.shape) == (0, (N, 2 * N)) or times is ASYMMETRIC
    grid = np.arange(2 * N)[found.column : found.column + found.data.shape[1]] - N
    assert len(grid) >= 2 * N - 5
    assert relative(found.data, along_readout(phantom(), grid)) < 1e-3
    as_it_is = along_readout(phantom(), k)
    assert relative(as_it_is, along_readout(phantom(), np.arange(2 * N) - N)) > 0.3


@SHAPES
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_receiver_that_does_not_follow_the_ramps(times: dict[str, float], sine: bool, backwards: bool) -> None:
    """An image 0.3 fields of view off the centre; the receiver undoes that by the flat top's gradient alone."""
    k, tuned = trajectory(times, sine)
    shift = np.exp(-2j * np.pi * (k - tuned) * 0.3)
    data = along_readout(phantom(), (-k)[::-1] if backwards else k) * (shift.conj()[::-1] if backwards else shift)
    found = ramp_of(times, sine).resampled(Readout(data.astype(np.complex64), 0, 0, 0, (0,), backwards=backwards), -0.3)
    grid = np.arange(found.column, found.column + found.data.shape[1]) - N
    assert relative(found.data, along_readout(phantom(), grid)) < 1e-3


def test_a_body_that_is_no_sum_of_pixels() -> None:
    """Edges anywhere: k-space from the formula of a box, beyond what the matrix resolves too."""
    k, _ = trajectory(SYMMETRIC)
    boxes = [(-17.3, 11.8, 1.0), (-5.2, -1.1, -0.6), (3.4, 9.9, 0.7)]

    def spectrum(k: NDArray[np.float64]) -> NDArray[Any]:
        return sum(v * (b - a) * np.sinc(k * (b - a) / (2 * N)) * np.exp(-1j * np.pi * k * (a + b) / (2 * N))
                   for a, b, v in boxes)  # fmt: skip

    found = ramp_of(SYMMETRIC).resampled(Readout(spectrum(k)[None].astype(np.complex64), 0, 0, 0, (0,)))
    assert relative(found.data[0], spectrum(np.arange(2.0 * N) - N)) < 0.02


def test_a_part_of_the_samples_gives_the_columns_that_it_spans() -> None:
    k, _ = trajectory(SYMMETRIC)
    ramp = ramp_of(SYMMETRIC)
    for backwards in (False, True):
        data = along_readout(phantom(), (-k)[::-1] if backwards else k)[:, 20:]
        found = ramp.resampled(Readout(data.astype(np.complex64), 0, 0, 20, (0,), backwards=backwards))
        assert k[20] - 0.5 <= found.column - N <= k[20] + 0.5
        grid = np.arange(found.column, 2 * N) - N
        assert relative(found.data, along_readout(phantom(), grid)) < 0.02


@pytest.mark.parametrize("times", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_noise_is_counted(times: dict[str, float]) -> None:
    ramp, rng = ramp_of(times), np.random.default_rng(0)
    noise = (rng.standard_normal((4000, SAMPLES)) + 1j * rng.standard_normal((4000, SAMPLES))) / np.sqrt(2)
    found = ramp.resampled(Readout(noise.astype(np.complex64), 0, 0, 0, (0,)))
    whole = np.pad(found.data, [(0, 0), (found.column, 2 * N - found.column - found.data.shape[1])])
    image = ifft_centered(torch.from_numpy(whole), (-1,))[:, N // 2 : -N // 2]
    assert 1 < ramp.noise < 1.5
    assert float(image.abs().square().mean()) == pytest.approx(ramp.noise, rel=0.01)


# ---- files


Line = dict[str, Any]
Write = Callable[..., Path]


def mrd(path: Path, lines: Sequence[Line], times: dict[str, float], sine: bool = False, **changes: Any) -> Path:
    epi: dict[str, Any] = {
        "rampUpTime": times["up"], "flatTopTime": times["flat"], "rampDownTime": times["down"],
        "acqDelayTime": times["delay"], "dwellTime": times["dwell"], "numSamples": SAMPLES, "etl": N,
    } | changes  # fmt: skip
    epi = {name: value for name, value in epi.items() if value is not None}
    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0), trajectory="epi", epi=epi), vendor="SIEMENS")
    flags = {"backwards": "IS_REVERSE", "navigator": "IS_PHASECORR_DATA"}
    own = [
        {**line, "at": {"kspace_encode_step_1": line["row"]}, "flags": [flags[flag] for flag in line["flags"]]}
        for line in lines
    ]
    return mrd_file(path.with_suffix(".h5"), own, header)


def twix(path: Path, lines: Sequence[Line], times: dict[str, float], sine: bool = False, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "alRegridMode": "4 1" if sine else "2 1", "alRegridRampupTime": f"{times['up']:.0f} 0",
        "alRegridFlattopTime": f"{times['flat']:.0f} 0", "alRegridRampdownTime": f"{times['down']:.0f} 0",
        "alRegridDelaySamplesTime": f"{times['delay']:.0f} 0",
        "aflRegridADCDuration": f"<Precision> 16 {SAMPLES * times['dwell']} 0.0",
    } | changes  # fmt: skip
    kind = {True: "Double", False: "Long"}
    meas = "\n".join(
        f'<Param{kind[name.startswith("afl")]}."{name}">  {{ {value} }}'
        for name, value in values.items() if value is not None
    )  # fmt: skip
    protocol = (
        f"sKSpace.lBaseResolution = {N}\nsKSpace.lPhaseEncodingLines = {N}\nsKSpace.ucTrajectory = 1\n"
        "sSliceArray.asSlice[0].dReadoutFOV = 200\nsSliceArray.asSlice[0].dPhaseFOV = 200\n"
    )
    flags = {"backwards": "REFLECT", "navigator": "PHASCOR", "skip": "SKIP_REGRIDDING"}
    own = [
        {**line, "at": {"Lin": line["row"]}, "center_line": N // 2, "flags": [flags[flag] for flag in line["flags"]]}
        for line in lines
    ]
    path = path.with_suffix(".dat")
    path.write_bytes(twix_bytes(own, protocol, {"Meas": meas}))
    return path


FORMATS = pytest.mark.parametrize("write", [mrd, twix], ids=["ismrmrd", "twix"])


def echo_planar(times: dict[str, float], sine: bool, constant: float = 0.0, slope: float = 0.0) -> list[Line]:
    """Every other line backwards, with a phase of its own, after three navigators; samples in the order of time."""
    k, _ = trajectory(times, sine)
    rows = fft_centered(torch.from_numpy(phantom() + 0j), (-2,)).numpy()
    x = np.arange(N) - N // 2

    def line(row: int, image: NDArray[Any], backwards: bool, *flags: str) -> Line:
        bent = image * np.exp(1j * (constant + slope * x)) if backwards else image
        data = along_readout(bent, -k if backwards else k)
        two = np.stack([data, 1j * data]).astype(np.complex64)
        return {"data": two, "row": row, "flags": [*flags, *["backwards"] * backwards]}

    found = [line(N // 2, rows[N // 2], bool(i % 2), "navigator") for i in range(3)]
    return found + [line(row, rows[row], bool(row % 2)) for row in range(N)]


@pytest.mark.parametrize(
    ("write", "times", "sine"),
    [(mrd, SYMMETRIC, False), (mrd, ASYMMETRIC, False), (twix, SYMMETRIC, False), (twix, ASYMMETRIC, False),
     (twix, SYMMETRIC, True), (twix, ASYMMETRIC, True)],
)  # fmt: skip
def test_echo_planar_readouts_on_ramps(tmp_path: Path, write: Write, times: dict[str, float], sine: bool) -> None:
    """Resampled first, then lines of both directions get one phase."""
    scan = read(write(tmp_path / "m", echo_planar(times, sine, 0.8, 0.05), times, sine))
    truth = along_readout(fft_centered(torch.from_numpy(phantom() + 0j), (-2,)).numpy(), np.arange(2 * N) - N)
    both = np.broadcast_to(scan.mask[0, 0], truth.shape)
    assert both.mean() > 0.95
    assert relative(scan.kspace[0, 0] * both, truth * both) < 0.01
    assert scan.metadata["phase_correction"] == "lines of both directions, by 3 navigators"
    assert "notes" not in scan.metadata
    images, report = reconstruct_mri(scan, ZeroFilled(), whiten=False)
    assert report.details["ramp_sampling"].startswith(f"96 samples resampled: {'sinusoidal' if sine else 'straight'}")
    assert np.corrcoef(images[0].abs().numpy().ravel(), phantom().ravel())[0, 1] > 0.995


@FORMATS
@pytest.mark.parametrize("times", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.filterwarnings("ignore:lines were sampled in both", "ignore:noise. the coils' covariance")
def test_an_image_off_the_centre_is_sharp_and_in_its_place(
    tmp_path: Path, write: Write, times: dict[str, float]
) -> None:
    """Siemens' receiver is tuned to the image's centre by the flat top's gradient, on the ramps too. A point, measured
    with the scanner's own coordinates along the readout."""
    k, tuned = trajectory(times)
    a, b, c, d = rotation = np.array((0.68, 0.11, -0.09, 0.72)) / np.linalg.norm((0.68, 0.11, -0.09, 0.72))
    phase = np.array([1 - 2 * (c * c + d * d), 2 * (b * c + d * a), 2 * (b * d - c * a)])
    along = np.array([2 * (b * c - d * a), 1 - 2 * (b * b + d * d), 2 * (c * d + b * a)])
    center, off, lines = 0.06 * along + 0.01 * phase, np.array([-0.02, 0.031]), []
    for row in range(N):
        backwards = row % 2 == 1
        here, followed = (-k, -tuned) if backwards else (k, tuned)
        site, middle = 0.06 + off[1], 0.06
        wave = np.exp(2j * np.pi * (here * site - followed * middle) / 0.4)
        data = wave * np.exp(2j * np.pi * (row - N // 2) * off[0] / 0.2)
        lines.append({
            "data": np.stack([data, data]).astype(np.complex64), "row": row, "flags": ["backwards"] * backwards,
            "position": 1e3 * center, "rotation": rotation, "phase_dir": phase, "read_dir": along,
            "slice_dir": np.cross(phase, along),
        })  # fmt: skip
    out = tmp_path / "v.nii.gz"
    file = write(tmp_path / "m", lines, times)
    found = CliRunner().invoke(app, ["reconstruct", str(file), "-m", "rss", "-o", str(out)])
    assert found.exit_code == 0, found.output
    image = nibabel.load(out)
    values = image.get_fdata().reshape(N, N)
    place = image.affine @ [*np.unravel_index(values.argmax(), values.shape), 0, 1]
    distance = (place[:3] * [-1e-3, -1e-3, 1e-3] - center) @ np.stack([phase, along]).T - off
    assert (np.abs(distance) <= 0.2 / N / 2 + 1e-6).all()
    # The energy of a point is in its pixel and the next ones.
    near = values[max(0, values.argmax() // N - 2) : values.argmax() // N + 3]
    assert (near**2).sum() > 0.9 * (values**2).sum()


def test_other_vendors_off_the_centre_are_told(tmp_path: Path) -> None:
    lines = [
        {**line, "position": (0.0, 80.0, 0.0), "phase_dir": (1, 0, 0), "read_dir": (0, 1, 0), "slice_dir": (0, 0, -1)}
        for line in echo_planar(SYMMETRIC, False)
    ]
    path = mrd(tmp_path / "m", lines, SYMMETRIC)
    assert "notes" not in read(path).metadata
    import h5py

    with h5py.File(path, "a") as file:
        text = file["dataset/xml"][0].decode().replace("SIEMENS", "OSI2")
        file["dataset/xml"][0] = text.encode()
    assert any("off the centre along a readout that was sampled on gradient ramps" in note
               for note in read(path).metadata["notes"])  # fmt: skip


@FORMATS
def test_samples_of_the_flat_top_alone_stay_as_they_are(tmp_path: Path, write: Write) -> None:
    flat = {"up": 100.0, "flat": 700.0, "down": 100.0, "delay": 110.0, "dwell": 7.0}
    rng = np.random.default_rng(1)
    data = [(rng.standard_normal((2, SAMPLES)) + 0j).astype(np.complex64) for _ in range(N)]
    scan = read(write(tmp_path / "m", [{"data": v, "row": row, "flags": []} for row, v in enumerate(data)], flat))
    np.testing.assert_array_equal(scan.kspace[0], np.stack(data, axis=1))
    assert "ramp_sampling" not in scan.metadata


def test_siemens_lines_that_skip_it_stay_as_they_are(tmp_path: Path) -> None:
    lines = echo_planar(SYMMETRIC, False)
    lines[3 + 20]["flags"].append("skip")  # after the navigators; lines of even numbers run forwards
    scan = read(twix(tmp_path / "m", lines, SYMMETRIC))
    np.testing.assert_array_equal(scan.kspace[0, :, 20], lines[3 + 20]["data"])
    assert relative(scan.kspace[0, :, 18], lines[3 + 18]["data"]) > 0.3


@pytest.mark.parametrize(
    ("write", "changes", "message"),
    [
        (twix, {"alRegridRampupTime": None}, "protocol alRegridRampupTime: '', expected a number"),
        (twix, {"aflRegridADCDuration": "long"}, "protocol aflRegridADCDuration: 'long', expected a number"),
        (twix, {"alRegridMode": "8"}, "protocol alRegridMode: 8, readouts sampled on gradient ramps, expected 2"),
        (twix, {"alRegridMode": "1 2"}, "protocol alRegridMode: 1 2, readouts sampled on gradient ramps"),
        (twix, {"alRegridFlattopTime": "-4"}, "times of 200, -4, 200, 24, 672 us, expected numbers from 0"),
        (twix, {"alRegridFlattopTime": "20"}, "sampling until 696 us of a gradient that lasts 420 us, expected it to"),
        (mrd, {"dwellTime": None}, "trajectoryDescription ConventionalEPI/dwellTime: None, expected a number"),
        (mrd, {"rampUpTime": "inf"}, "ConventionalEPI/rampUpTime: 'inf', expected a number"),
        (mrd, {"numSamples": 9.5}, "ConventionalEPI/numSamples: 9.5, expected a whole number"),
        (mrd, {"numSamples": 90}, r"readouts of 96 samples on gradient ramps, expected the 90"),
        (mrd, {"numSamples": 30000, "dwellTime": 0.01}, "30000 samples for 96 columns, expected 2 to 4096"),
        (mrd, {"numSamples": 20, "dwellTime": 33.0}, "steps apart, for 1. pixels, expected the 48 of the image"),
    ],
)
def test_what_makes_no_trajectory_is_named(tmp_path: Path, write: Write, changes: Any, message: str) -> None:
    path = write(tmp_path / "m", echo_planar(SYMMETRIC, False), SYMMETRIC, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_echo_planar_without_a_description_is_refused(tmp_path: Path) -> None:
    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0), trajectory="epi"))
    path = mrd_file(tmp_path / "m.h5", [{"data": np.ones((1, SAMPLES), np.complex64)}], header)
    with pytest.raises(DataError, match="'epi', expected 'cartesian', for epi a trajectoryDescription ConventionalEPI"):
        read(path)
