"""MDF: what is written comes back, files of other writers are understood, and everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.raw import Grid, MPICalibration, MPIScan
from pyrecon.io import detect, mdf, read
from pyrecon.io._mdf_spec import FIELDS

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(rng: np.random.Generator, *shape: int) -> NDArray[np.complex64]:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def harmonics(count: int, base: float = 25e3) -> NDArray[np.float64]:
    """The lines of harmonics 2 to 11 with two sidebands of 100 Hz steps, the first ``count`` of them."""
    return np.array([h * base + m * 100 for h in range(2, 12) for m in range(-2, 3)])[:count]


def a_scan(frames: int = 4, periods: int = 3, channels: int = 2, length: int = 11) -> MPIScan:
    rng = np.random.default_rng(frames * 1000 + periods * 100 + channels * 10 + length)
    return MPIScan(
        spectrum=noise(rng, frames, periods, channels, length),
        frequencies=harmonics(length),
        is_background=np.arange(frames) % 3 == 1,
        transfer_function=noise(rng, channels, length).astype(np.complex128),
        metadata={"/tracer/name": "perimag", "/acquisition/drivefield/strength": np.full((periods, 1, 1), 9e-3)},
    )


def a_calibration(
    shape: tuple[int, ...] = (3, 4), periods: int = 2, channels: int = 2, length: int = 7, background: int = 5
) -> MPICalibration:
    rng = np.random.default_rng(length)
    count = int(np.prod(shape))
    return MPICalibration(
        spectrum=noise(rng, periods, channels, length, count),
        frequencies=harmonics(length),
        grid=Grid(shape, tuple(1e-3 * (i + 1) for i in range(len(shape))), tuple(5e-3 * i for i in range(len(shape)))),
        background=noise(rng, background, periods, channels, length) if background else None,
        background_positions=np.sort(rng.integers(0, count + 1, background)) if background else None,
        position_order=np.arange(count)[::-1] if count > 1 and background > 1 else None,
        snr=rng.random((periods, channels, length)),
    )


def same(one: Any, other: Any) -> bool:
    return (one is None) == (other is None) and (one is None or np.array_equal(one, other))


# ---- round trips


@FEW
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20))
def test_a_measurement_comes_back(tmp_path: Path, frames: int, periods: int, channels: int, length: int) -> None:
    scan = a_scan(frames, periods, channels, length)
    mdf.write_measurement(tmp_path / "m.mdf", scan)
    assert mdf.validate(tmp_path / "m.mdf") == []
    assert detect(tmp_path / "m.mdf") == "mdf-measurement"
    back = read(tmp_path / "m.mdf")
    assert isinstance(back, MPIScan)
    assert same(back.spectrum, scan.spectrum)
    assert same(back.is_background, scan.is_background)
    assert same(back.transfer_function, scan.transfer_function)
    np.testing.assert_allclose(back.frequencies, scan.frequencies, rtol=1e-12)
    assert list(back.metadata["/tracer/name"]) == ["perimag"]


@FEW
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 9),
    st.integers(0, 4),
)  # fmt: skip
def test_a_system_matrix_comes_back(
    tmp_path: Path, shape: list[int], periods: int, channels: int, length: int, background: int
) -> None:
    # An axis of one voxel is dropped (z first) as long as two remain, so a volume of one slice returns as its image.
    while len(shape) > 2 and 1 in shape:
        shape.remove(1)
    written = a_calibration(tuple(shape), periods, channels, length, background)
    mdf.write_system_matrix(tmp_path / "s.mdf", written)
    assert mdf.validate(tmp_path / "s.mdf") == []
    assert detect(tmp_path / "s.mdf") == "mdf-system-matrix"
    back = read(tmp_path / "s.mdf")
    assert isinstance(back, MPICalibration)
    for name in ("spectrum", "background", "background_positions", "position_order", "snr", "transfer_function"):
        assert same(getattr(back, name), getattr(written, name)), name
    assert back.grid.shape == written.grid.shape
    np.testing.assert_allclose([*back.grid.spacing, *back.grid.center], [*written.grid.spacing, *written.grid.center])


def test_a_signal_in_time_has_the_spectrum_it_was_made_from(tmp_path: Path) -> None:
    scan = a_scan()
    mdf.write_measurement(tmp_path / "m.mdf", scan, domain="time")
    assert mdf.validate(tmp_path / "m.mdf") == []
    back = mdf.read_measurement(tmp_path / "m.mdf")
    bins = np.searchsorted(back.frequencies, scan.frequencies - 1)
    np.testing.assert_allclose(back.frequencies[bins], scan.frequencies, rtol=1e-12)
    # Two transforms in float32: 2 eps log2(V) of the largest component, V = 5200.
    np.testing.assert_allclose(back.spectrum[..., bins], scan.spectrum, atol=26 * 1.2e-7 * np.abs(scan.spectrum).max())
    others = np.delete(back.spectrum, bins, axis=-1)
    assert np.abs(others).max() < 1e-5 * np.abs(scan.spectrum).max()
    np.testing.assert_allclose(back.transfer_function[:, bins], scan.transfer_function)


def test_a_complex_constant_is_no_real_signal(tmp_path: Path) -> None:
    scan = replace(a_scan(length=2), frequencies=np.array([0.0, 100.0]))
    with pytest.raises(ValueError, match="imaginary part at zero"):
        mdf.write_measurement(tmp_path / "m.mdf", scan, domain="time")
    assert list(tmp_path.iterdir()) == []


def test_image_axes_other_than_y_and_x(tmp_path: Path) -> None:
    written = replace(a_calibration((3, 4)), metadata={"axes": "zx"})
    mdf.write_system_matrix(tmp_path / "s.mdf", written)
    with h5py.File(tmp_path / "s.mdf") as file:
        assert list(file["calibration/size"][()]) == [4, 1, 3]
    back = mdf.read_system_matrix(tmp_path / "s.mdf")
    assert back.metadata["axes"] == "zx"
    assert same(back.spectrum, written.spectrum)
    assert back.grid.shape == (3, 4)


def test_metadata_of_ones_own_is_kept(tmp_path: Path) -> None:
    scan = replace(a_scan(), metadata={"phantom": "vessels", "angles": np.arange(3.0), "/scanner/topology": "FFL"})
    mdf.write_measurement(tmp_path / "m.mdf", scan)
    back = mdf.read_measurement(tmp_path / "m.mdf").metadata
    assert back["phantom"] == "vessels"
    assert same(back["angles"], np.arange(3.0))
    assert back["/scanner/topology"] == "FFL"


def test_reading_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    mdf.write_system_matrix(tmp_path / "a.mdf", replace(a_calibration(), metadata={"/tracer/name": "perimag"}))
    first = mdf.read_system_matrix(tmp_path / "a.mdf")
    mdf.write_system_matrix(tmp_path / "b.mdf", first)
    second = mdf.read_system_matrix(tmp_path / "b.mdf")
    assert same(first.spectrum, second.spectrum)
    assert same(first.background_positions, second.background_positions)
    assert same(first.frequencies, second.frequencies)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frequencies": np.array([100.0, 200.0, 300.0 + np.pi])}, "multiples of one frequency"),
        ({"frequencies": np.array([100.0, 100.0, 200.0])}, "twice"),
        ({"frequencies": np.array([100.0, np.nan, 200.0])}, "finite"),
        ({"metadata": {"/acquisition/drivefield/strength": np.ones(7)}}, "/acquisition/drivefield/strength"),
        ({"metadata": {"/study/number": "seven"}}, "/study/number"),
        ({"metadata": {"odd": object()}}, "odd"),
        ({"spectrum": np.zeros((4, 3, 2), np.complex64)}, r"scan.spectrum: got shape \(4, 3, 2\), expected 4 axes"),
        ({"is_background": np.zeros(5, bool)}, r"is_background: got shape \(5,\), expected \(4,\)"),
        ({"transfer_function": np.ones((2, 4), complex)}, r"transfer_function: got shape \(2, 4\), expected \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mdf.write_measurement(tmp_path / "m.mdf", replace(a_scan(length=3), **change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["spectrum", "frequencies", "background", "background_positions", "position_order", "snr"]
)
def test_a_calibration_whose_parts_do_not_fit_is_not_written(tmp_path: Path, name: str) -> None:
    calibration = a_calibration()
    part = getattr(calibration, name)
    wrong = np.zeros(11, int) if part is None else part[..., 1:]
    with pytest.raises(ValueError, match=f"{name}: got shape"):
        mdf.write_system_matrix(tmp_path / "s.mdf", replace(calibration, **{name: wrong}))
    assert list(tmp_path.iterdir()) == []


def test_the_order_in_which_positions_were_measured(tmp_path: Path) -> None:
    written = replace(a_calibration(), position_order=np.random.default_rng(8).permutation(12))
    mdf.write_system_matrix(tmp_path / "s.mdf", written, method="hybrid")
    back = mdf.read_system_matrix(tmp_path / "s.mdf")
    for name in ("spectrum", "background", "background_positions", "position_order"):
        assert same(getattr(back, name), getattr(written, name)), name
    assert back.metadata["/calibration/method"] == "hybrid"
    mdf.write_system_matrix(tmp_path / "t.mdf", back)
    assert mdf.read_system_matrix(tmp_path / "t.mdf").metadata["/calibration/method"] == "hybrid"


# ---- files of other writers


def foreign(path: Path, **changes: Any) -> Path:
    """A 2.0 measurement as other programs write it: time domain, converter values, older names, few metadata.

    Each change replaces the field of that name (``__`` for ``/``), or removes it if None.
    """
    rng = np.random.default_rng(1)
    fields: dict[str, Any] = {
        "version": "2.0",
        "acquisition/numFrames": 4,
        "acquisition/numPeriods": 2,
        "acquisition/receiver/numChannels": 3,
        "acquisition/receiver/numSamplingPoints": 16,
        "acquisition/receiver/bandwidth": 800.0,
        "acquisition/drivefield/period": 0.01,
        "measurement/unit": "V",
        "measurement/dataConversionFactor": np.array([[2e-3, 0.5], [1e-3, 0.0], [5e-4, -0.25]]),
        "measurement/data": rng.integers(-2000, 2000, (4, 2, 3, 16)).astype(np.int16),
        "measurement/isFourierTransformed": np.int8(0),
        "measurement/isTransposed": np.int8(0),
        "measurement/isFramePermutation": np.int8(0),
        "measurement/isFrequencySelection": np.int8(0),
        "measurement/isBackgroundCorrected": np.int8(0),
        "measurement/isTransferFunctionCorrected": np.int8(0),
        "measurement/isBackgroundFrame": np.array([1, 0, 0, 1], np.int8),
    }
    fields |= {name.replace("__", "/"): value for name, value in changes.items()}
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file[name] = value
    return path


def raw_spectrum(**fields: Any) -> NDArray[np.complex128]:
    """The spectrum that the file of ``foreign`` has by definition."""
    data = np.random.default_rng(1).integers(-2000, 2000, (4, 2, 3, 16)).astype(float)
    factor = np.array([[2e-3, 0.5], [1e-3, 0.0], [5e-4, -0.25]])
    return np.fft.rfft(factor[:, :1] * data + factor[:, 1:], axis=-1)


def test_converter_values_in_time(tmp_path: Path) -> None:
    scan = mdf.read_measurement(foreign(tmp_path / "f.mdf"))
    np.testing.assert_allclose(scan.spectrum, raw_spectrum(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(scan.frequencies, np.arange(9) * 100.0)
    assert scan.is_background.tolist() == [True, False, False, True]
    assert scan.unit == "V"
    assert mdf.validate(tmp_path / "f.mdf") != []


def test_converter_values_in_frequency_give_the_same(tmp_path: Path) -> None:
    # Scale and offset act on the signal, so the offset may reach the zero-frequency bin only.
    raw = np.fft.rfft(np.random.default_rng(1).integers(-2000, 2000, (4, 2, 3, 16)), axis=-1)
    path = foreign(tmp_path / "f.mdf", measurement__data=raw, measurement__isFourierTransformed=1)
    np.testing.assert_allclose(mdf.read_measurement(path).spectrum, raw_spectrum(), rtol=1e-5, atol=1e-4)


def test_complex_values_as_a_last_axis(tmp_path: Path) -> None:
    value = raw_spectrum().astype(np.complex64)
    pairs = np.stack([value.real, value.imag], -1)
    plain = {"measurement__dataConversionFactor": None, "measurement__isFourierTransformed": 1}
    scan = mdf.read_measurement(foreign(tmp_path / "f.mdf", measurement__data=pairs, **plain))
    assert same(scan.spectrum, value)
    record = np.zeros(value.shape, [("real", "<f4"), ("imag", "<f4")])
    record["real"], record["imag"] = value.real, value.imag
    scan = mdf.read_measurement(foreign(tmp_path / "g.mdf", measurement__data=record, **plain))
    assert same(scan.spectrum, value)


def test_fast_frame_axis_and_frame_permutation(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(-2000, 2000, (4, 2, 3, 16)).astype(np.int16)
    acquired = np.array([2, 0, 3, 1])  # stored frame i was acquired as number acquired[i]
    scan = mdf.read_measurement(
        foreign(
            tmp_path / "f.mdf",
            measurement__data=np.moveaxis(data[acquired], 0, -1),
            measurement__isTransposed=None,
            measurement__isFastFrameAxis=1,
            measurement__isFramePermutation=1,
            measurement__framePermutation=acquired + 1,
            measurement__isBackgroundFrame=np.array([1, 0, 0, 1], np.int8)[acquired],
        )
    )
    np.testing.assert_allclose(scan.spectrum, raw_spectrum(), rtol=1e-6, atol=1e-5)
    assert scan.is_background.tolist() == [True, False, False, True]


@pytest.mark.parametrize("first", [0, 1])
def test_frequency_selection_counted_from_one_or_zero(tmp_path: Path, first: int) -> None:
    chosen = np.array([0, 3, 4])
    value = raw_spectrum()[..., chosen].astype(np.complex64)
    transfer = np.arange(27).reshape(3, 9) * (1 + 2j)
    scan = mdf.read_measurement(
        foreign(
            tmp_path / "f.mdf",
            measurement__data=value,
            measurement__dataConversionFactor=None,
            measurement__isFourierTransformed=1,
            measurement__isFrequencySelection=1,
            measurement__frequencySelection=chosen + first,
            acquisition__receiver__transferFunction=transfer,
        )
    )
    assert same(scan.frequencies, chosen * 100.0)
    assert same(scan.spectrum, value)
    assert same(scan.transfer_function, transfer[:, chosen])


def test_no_background_mask_and_vectors_kept_as_matrices(tmp_path: Path) -> None:
    scan = mdf.read_measurement(foreign(tmp_path / "f.mdf", measurement__isBackgroundFrame=None))
    assert not scan.is_background.any()
    scan = mdf.read_measurement(
        foreign(
            tmp_path / "g.mdf",
            measurement__isBackgroundFrame=np.array([[1.0], [0.0], [0.0], [1.0]]),
            acquisition__receiver__bandwidth=np.array([[800.0]]),
            version=np.array(["2.0.1"], dtype=h5py.string_dtype()),
        )
    )
    assert scan.is_background.tolist() == [True, False, False, True]


SIZE = (2, 3, 4)  # x, y, z


def foreign_matrix(path: Path, frames: NDArray[np.int64], **changes: Any) -> Path:
    """A calibration whose stored frame i holds the number of the voxel ``frames[i]``, x fastest."""
    count = len(frames)
    fields = {
        "acquisition/numFrames": count,
        "acquisition/receiver/numChannels": 1,
        "measurement/data": np.repeat(frames, 9).reshape(count, 1, 1, 9).astype(np.complex64),
        "measurement/isFourierTransformed": 1,
        "measurement/dataConversionFactor": None,
        "measurement/isBackgroundFrame": None,
        "calibration/size": np.array(SIZE),
        "calibration/fieldOfView": np.array([2e-2, 6e-2, 4e-2]),
        "calibration/method": "robot",
    }
    fields |= {name.replace("__", "/"): value for name, value in changes.items()}
    return foreign(path, **fields)


def in_image_order(path: Path) -> None:
    """The voxel (z, y, x) must hold its number."""
    calibration = mdf.read_system_matrix(path)
    assert calibration.grid.shape == SIZE[::-1]
    np.testing.assert_allclose(calibration.grid.spacing, (1e-2, 2e-2, 1e-2))
    np.testing.assert_array_equal(calibration.spectrum[0, 0, 0].real, np.arange(24))


@pytest.mark.parametrize("order", ["".join(p) for p in permutations("xyz")])
def test_foreign_order_of_positions(tmp_path: Path, order: str) -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in SIZE[::-1]), indexing="ij")
    number = (z * SIZE[1] + y) * SIZE[0] + x
    frames = number.transpose(["zyx".index(axis) for axis in order[::-1]]).ravel()
    in_image_order(foreign_matrix(tmp_path / "s.mdf", frames, calibration__order=order))


def test_a_meandering_robot(tmp_path: Path) -> None:
    path = [
        (x, y, z)
        for z in range(SIZE[2])
        for y in range(SIZE[1])[:: -1 if z % 2 else 1]
        for x in range(SIZE[0])[:: -1 if (y + z) % 2 else 1]
    ]
    steps = np.abs(np.diff(path, axis=0)).sum(axis=1)
    assert (steps == 1).all()  # it never jumps
    frames = np.array([(z * SIZE[1] + y) * SIZE[0] + x for x, y, z in path])
    in_image_order(foreign_matrix(tmp_path / "s.mdf", frames, calibration__isMeanderingGrid=1))


def test_positions_in_any_order_need_no_grid_fields(tmp_path: Path) -> None:
    frames = np.random.default_rng(2).permutation(24)
    z, y, x = np.unravel_index(frames, SIZE[::-1])
    positions = np.stack([1e-2 * x + 0.1, 2e-2 * y, 1e-2 * z], axis=1)
    path = foreign_matrix(tmp_path / "s.mdf", frames, calibration__positions=positions,
                          calibration__size=None, calibration__fieldOfView=None)  # fmt: skip
    in_image_order(path)
    np.testing.assert_allclose(mdf.read_system_matrix(path).grid.center, (0.015, 0.02, 0.105))


def test_background_between_the_positions(tmp_path: Path) -> None:
    acquired = np.array([1, 2, 4, 5, 0, 3, 6])  # four positions, then background taken first, in the middle and last
    value = np.repeat(np.arange(7), 9).reshape(7, 1, 1, 9).astype(np.complex64)
    path = foreign_matrix(
        tmp_path / "s.mdf",
        np.arange(7),
        measurement__data=value,
        measurement__isBackgroundFrame=np.arange(7) >= 4,
        measurement__isFramePermutation=1,
        measurement__framePermutation=acquired + 1,
        calibration__size=np.array([2, 2, 1]),
    )
    calibration = mdf.read_system_matrix(path)
    assert calibration.spectrum[0, 0, 0].real.tolist() == [0, 1, 2, 3]
    assert calibration.background_positions.tolist() == [0, 2, 4]
    assert calibration.background[:, 0, 0, 0].real.tolist() == [4, 5, 6]
    assert calibration.snr is None


def test_a_grid_given_by_hand(tmp_path: Path) -> None:
    path = foreign_matrix(tmp_path / "s.mdf", np.arange(24), calibration__size=None, calibration__fieldOfView=None)
    with pytest.raises(DataError, match=r"/calibration/size is missing.*pass grid="):
        mdf.read_system_matrix(path)
    grid = Grid((4, 6), (1e-3, 1e-3), (0.0, 0.0))
    calibration = mdf.read_system_matrix(path, grid=grid)
    assert calibration.grid == grid
    assert calibration.spectrum[0, 0, 0].real.tolist() == list(range(24))
    with pytest.raises(DataError, match="24 positions, expected 20"):
        mdf.read_system_matrix(path, grid=Grid((4, 5), (1e-3, 1e-3), (0.0, 0.0)))


# ---- what is refused, and how

NAN = np.zeros((4, 2, 3, 16), np.float32)
NAN[[1, 3], 0, 0, 5] = np.nan, np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": None}, "/version is missing"),
        ({"version": "1.0.5"}, "/version: MDF 1.0.5, expected MDF 2.0 or 2.1"),
        ({"version": "two"}, "/version: 'two'"),
        ({"version": 2}, "/version: values of type int64, expected text"),
        ({"measurement__data": None}, "/measurement/data is missing"),
        ({"measurement__data": "text"}, "/measurement/data: values of type object, expected numbers"),
        ({"measurement__data": np.zeros((4, 2, 16))}, r"/measurement/data: shape \(4, 2, 16\), expected four axes"),
        ({"measurement__data": np.zeros((4, 2, 3, 15))}, "15 samples a period, expected 16"),
        ({"measurement__data": np.zeros((4, 0, 3, 16))}, "at least one value"),
        ({"measurement__data": NAN}, "/measurement/data holds NaN or Inf in frames 1, 3 of 4"),
        ({"measurement__data": np.full((4, 2, 3, 16), 1e300)}, "NaN or Inf in frames 0, 1, 2, 3 of 4"),
        ({"measurement__data": np.zeros((4, 2, 3, 16), complex)}, "complex values with isFourierTransformed = 0"),
        ({"measurement__isFourierTransformed": 1}, "real values of shape"),
        ({"measurement__isFourierTransformed": 3}, "isFourierTransformed: 3, expected 0 or 1"),
        ({"measurement__isFourierTransformed": "yes"}, "isFourierTransformed: .*expected numbers"),
        ({"measurement__isSparsityTransformed": 1, "measurement__sparsityTransformation": "DCT"}, r"\(DCT\)"),
        ({"acquisition__numFrames": 5}, "/acquisition/numFrames: 5, expected 4 as in /measurement/data"),
        ({"acquisition__receiver__numChannels": 2}, "numChannels: 2, expected 3"),
        ({"acquisition__receiver__numSamplingPoints": None}, "numSamplingPoints is missing"),
        ({"acquisition__receiver__numSamplingPoints": -16}, "numSamplingPoints: -16, expected a whole number from 1"),
        ({"acquisition__receiver__numSamplingPoints": 16.5}, "numSamplingPoints: 16.5"),
        ({"acquisition__receiver__bandwidth": 0.0}, "bandwidth: 0 Hz, expected a positive frequency"),
        ({"acquisition__receiver__bandwidth": np.nan}, "bandwidth: nan, expected a finite number"),
        (
            {"measurement__dataConversionFactor": np.ones((2, 2))},
            r"dataConversionFactor: shape \(2, 2\), expected \(3, 2\)",
        ),
        ({"measurement__isBackgroundFrame": np.ones(4)}, "all 4 frames marked as background"),
        ({"measurement__isBackgroundFrame": np.ones(3)}, r"shape \(3,\), expected \(4\)"),
        ({"measurement__isBackgroundFrame": np.array([0, 1, 2, 0])}, "other than 0 and 1"),
        ({"measurement__isFramePermutation": 1}, "/measurement/framePermutation is missing"),
        (
            {"measurement__isFramePermutation": 1, "measurement__framePermutation": np.array([1, 2, 2, 4])},
            r"repeated or missing frames, expected a permutation of 1\.\.4",
        ),
        ({"acquisition__receiver__transferFunction": np.ones((3, 5), complex)}, r"shape \(3, 5\), expected \(3, 9\)"),
    ],
)
def test_a_measurement_that_contradicts_itself(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = foreign(tmp_path / "f.mdf", **change)
    with pytest.raises(DataError, match=message) as caught:
        mdf.read_measurement(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration__size": np.array([2, 3, 5])}, "2 x 3 x 5, expected 24 positions"),
        ({"calibration__size": np.array([-2, -3, 4])}, "expected 24 positions"),
        ({"calibration__order": "xxy"}, "/calibration/order: 'xxy'"),
        ({"calibration__fieldOfView": None}, "/calibration/fieldOfView is missing"),
        ({"calibration__fieldOfView": np.array([0.0, 1.0, 1.0])}, "expected positive lengths"),
        ({"calibration__fieldOfView": np.array([1.0, 1.0])}, r"shape \(2,\), expected \(3\)"),
        ({"calibration__fieldOfViewCenter": np.array([np.nan, 1.0, 1.0])}, "fieldOfViewCenter"),
        ({"calibration__fieldOfView": np.array([1.0, 1e300, 1.0])}, "voxels and a centre of"),
        (
            {"calibration__fieldOfViewCenter": np.array([0.0, 0.0, -1e200])},
            "voxels and a centre of",
        ),
        ({"calibration__positions": np.zeros((24, 3))}, "a position that occurs twice|off the grid"),
        ({"calibration__positions": np.zeros((23, 3))}, r"shape \(23, 3\), expected \(24, 3\)"),
        ({"calibration__snr": np.ones((1, 1, 8))}, r"/calibration/snr: .*expected real \(1, 1, 9\)"),
    ],
)
def test_a_calibration_that_contradicts_itself(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mdf.read_system_matrix(foreign_matrix(tmp_path / "s.mdf", np.arange(24), **change))


def test_a_measurement_is_no_system_matrix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is a measurement"):
        mdf.read_system_matrix(foreign(tmp_path / "f.mdf"))


def outside(file: h5py.File, folder: Path) -> None:
    file["measurement/data"] = h5py.ExternalLink(str(folder / "other.h5"), "/data")


def storage(file: h5py.File, folder: Path) -> None:
    stored = [(str(folder / "other.bin"), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("measurement/data", (4, 2, 3, 16), "f4", external=stored)


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((4, 2, 3, 16), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "data", (4, 2, 3, 16))
    file.create_virtual_dataset("measurement/data", layout)


def circle(file: h5py.File, folder: Path) -> None:
    file["measurement/data"] = h5py.SoftLink("/measurement/there")
    file["measurement/there"] = h5py.SoftLink("data")


def vast(file: h5py.File, folder: Path) -> None:
    file.create_dataset("measurement/data", (2**20, 2**10, 3, 16), "f4")  # 192 GiB in no bytes at all


def bomb(file: h5py.File, folder: Path) -> None:
    data = file.create_dataset(
        "measurement/data", (2**16, 2**8, 3, 16), "f4", chunks=(2**12, 1, 3, 16), compression="gzip"
    )
    data.id.write_direct_chunk((0, 0, 0, 0), bytes(1000))


def chunk(file: h5py.File, folder: Path) -> None:
    data = file.create_dataset(
        "measurement/data", (4, 2, 3, 16), "f4", maxshape=(None,) * 4, chunks=(4, 2, 2**10, 2**14), compression="gzip"
    )
    data.id.write_direct_chunk((0, 0, 0, 0), bytes(1000))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (outside, "/measurement/data: a link to another file"),
        (storage, "/measurement/data: data kept in another file"),
        (virtual, "/measurement/data: data kept in another file"),
        (circle, "soft links that lead in a circle"),
        (vast, "declares 192.0 GiB, but the file holds only"),
        (bomb, "declares 3.0 GiB, but the file holds only"),
        (chunk, r"/measurement/data \(chunk\) declares 512.0 MiB"),
    ],
)
def test_hostile_files(tmp_path: Path, build: Callable[[h5py.File, Path], None], message: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones((4, 2, 3, 16), np.float32)
    (tmp_path / "other.bin").write_bytes(bytes(4 * 4 * 2 * 3 * 16))
    path = foreign(tmp_path / "f.mdf", measurement__data=None)
    with h5py.File(path, "a") as file:
        build(file, tmp_path)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_soft_link_inside_the_file_is_followed(tmp_path: Path) -> None:
    path = foreign(tmp_path / "f.mdf")
    with h5py.File(path, "a") as file:
        file.move("measurement/data", "elsewhere")
        file["measurement/data"] = h5py.SoftLink("/elsewhere")
    np.testing.assert_allclose(mdf.read_measurement(path).spectrum, raw_spectrum(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "path", [p for p, field in FIELDS.items() if field.condition == "" and not p.startswith("/reconstruction")]
)
def test_validate_names_a_missing_or_mistyped_field(tmp_path: Path, path: str) -> None:
    mdf.write_system_matrix(tmp_path / "s.mdf", replace(a_calibration(), metadata={"/tracer/name": "perimag"}))
    assert mdf.validate(tmp_path / "s.mdf") == []
    with h5py.File(tmp_path / "s.mdf", "a") as file:
        del file[path]
    assert f"{path}: the field is missing" in mdf.validate(tmp_path / "s.mdf")
    with h5py.File(tmp_path / "s.mdf", "a") as file:
        file[path] = np.ones((1, 1, 1, 1, 1), complex)
    assert any(line.startswith(f"{path}: has ") for line in mdf.validate(tmp_path / "s.mdf"))


def test_validate_needs_what_a_flag_promises(tmp_path: Path) -> None:
    mdf.write_measurement(tmp_path / "m.mdf", a_scan())
    with h5py.File(tmp_path / "m.mdf", "a") as file:
        del file["measurement/frequencySelection"]
        file["measurement/isFramePermutation"][()] = 1
    found = mdf.validate(tmp_path / "m.mdf")
    assert "/measurement/frequencySelection: the field is missing" in found
    assert "/measurement/framePermutation: the field is missing" in found
