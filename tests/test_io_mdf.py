"""MDF: what is written comes back, files of other writers are understood, and everything else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyrecon.data.raw import Grid, MPICalibration, MPIScan
from pyrecon.io import detect, mdf, read

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
