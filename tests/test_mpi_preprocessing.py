"""From calibration and scan to a real system with white noise: what is subtracted, selected, divided and compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon._errors import DataError
from pyrecon.data._background import EmptyScanner
from pyrecon.data.mpi import box_downsample, match_frequencies, prepare_frames, prepare_system, upsample_rows
from pyrecon.data.raw import Grid, MPICalibration, MPIScan

PERIODS, CHANNELS, K, SHAPE = 3, 2, 20, (5, 6)
N = SHAPE[0] * SHAPE[1]
FREQUENCIES = 25e3 * np.arange(2, 2 + K)


class Scanner:
    """A made-up linear scanner with coloured noise, different in real and imaginary part, and a drifting background."""

    def __init__(self, *, drift: float = 0.0, noise: float = 1.0) -> None:
        self.rng = np.random.default_rng(7)
        strength = np.logspace(1.5, -1, K)  # low harmonics are strong, high ones drown
        self.matrix = self.complex(PERIODS, CHANNELS, K, N) * strength[:, None]
        self.std = noise * np.stack([np.linspace(0.3, 1, K), np.linspace(0.6, 2, K)])[:, None].repeat(CHANNELS, 1)
        self.std[:, 1] *= 3
        self.offset = 20 * self.complex(PERIODS, CHANNELS, K)
        self.slope = drift * self.complex(PERIODS, CHANNELS, K)

    def complex(self, *shape: int) -> np.ndarray[Any, Any]:
        return self.rng.normal(size=shape) + 1j * self.rng.normal(size=shape)

    def noise(self, count: int) -> np.ndarray[Any, Any]:
        parts = self.rng.normal(size=(2, count, PERIODS, CHANNELS, K)) * self.std[:, None, None]
        return parts[0] + 1j * parts[1]

    def background(self, times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.offset + np.asarray(times, float)[:, None, None, None] * self.slope

    def calibrate(self, empty: int = 30, order: np.ndarray[Any, Any] | None = None) -> MPICalibration:
        when = np.arange(N) if order is None else order
        filled = np.moveaxis(self.matrix, -1, 0) + self.background(when + 0.5) + self.noise(N)
        positions = np.repeat([0, N // 2, N], -(-empty // 3))[:empty]
        return MPICalibration(
            spectrum=np.moveaxis(filled, 0, -1).astype(np.complex64),
            frequencies=FREQUENCIES,
            grid=Grid(SHAPE, (2e-3, 2e-3), (0.0, 0.0)),
            background=(self.background(positions) + self.noise(empty)).astype(np.complex64) if empty else None,
            background_positions=positions if empty else None,
            position_order=order,
        )

    def measure(self, images: np.ndarray[Any, Any], *, empty: int = 20) -> MPIScan:
        """Half of the empty frames before, half after."""
        is_background = np.repeat([True, False, True], [empty // 2, len(images), empty - empty // 2])
        clean = np.zeros((len(is_background), PERIODS, CHANNELS, K), complex)
        clean[~is_background] = np.einsum("pckn,bn->bpck", self.matrix, images)
        spectrum = clean + self.background(np.arange(len(clean))) + self.noise(len(clean))
        return MPIScan(spectrum.astype(np.complex64), FREQUENCIES, is_background)


def noiseless(scanner: Scanner) -> MPICalibration:
    return MPICalibration(
        scanner.matrix.astype(np.complex64),
        FREQUENCIES,
        Grid(SHAPE, (2e-3, 2e-3), (0.0, 0.0)),
        background_corrected=True,
    )


def test_the_real_system_is_the_complex_one() -> None:
    """Without noise, A x equals y, real parts on top, rows in the same order."""
    scanner = Scanner(noise=0.0)
    images = scanner.rng.random((2, N))
    scan = replace(scanner.measure(images, empty=2))
    system = prepare_system(noiseless(scanner), scan, snr_threshold=0, whiten="none")
    frames = prepare_frames(system, scan)
    expected = np.einsum("pckn,bn->bpck", scanner.matrix, images).reshape(2, -1)
    torch.testing.assert_close(
        frames.y, torch.from_numpy(np.hstack([expected.real, expected.imag])).float(), rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(torch.from_numpy(images).float() @ system.matrix.T, frames.y, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("whiten", ["component", "row", "none"])
def test_whitened_noise_is_white(whiten: Any) -> None:
    scanner = Scanner()
    scan = scanner.measure(np.zeros((400, N)), empty=400)
    system = prepare_system(scanner.calibrate(), scan, snr_threshold=0, whiten=whiten)
    frames = prepare_frames(system, scan, background="mean")
    rows = len(system.rows)
    std = frames.y.double().std(dim=0).view(2, rows).numpy()
    expected = {
        "component": np.ones_like(scanner.std),
        "row": scanner.std / np.sqrt(np.square(scanner.std).mean(axis=0)),
        "none": scanner.std,
    }[whiten][:, system.rows[:, 1], system.rows[:, 2]]
    # 400 frames give each standard deviation to 1/sqrt(800) = 3.5 %; 240 of them stay within 4.5 of those.
    np.testing.assert_allclose(std, expected, rtol=4.5 * 0.036)
    assert frames.noise_std is not None
    np.testing.assert_allclose(frames.noise_std, float(frames.y.double().square().mean().sqrt()), rtol=0.02)


def test_the_noise_is_the_scans_if_it_has_background_frames_else_the_calibrations() -> None:
    scanner = Scanner()
    calibration = scanner.calibrate(empty=300)
    scan = scanner.measure(np.zeros((1, N)), empty=300)
    louder = replace(scan, spectrum=scan.spectrum * 2)
    own, theirs = (prepare_system(calibration, s, snr_threshold=0).scale for s in (None, louder))
    np.testing.assert_allclose(theirs / own, 2.0, rtol=0.2)
    np.testing.assert_array_equal(
        prepare_system(calibration, scanner.measure(np.zeros((1, N)), empty=0), snr_threshold=0).scale, own
    )


def test_interpolation_takes_out_a_drift_that_the_mean_leaves() -> None:
    """Over 200 frames the background moves by some twenty times what the noise of a row is."""
    scanner = Scanner(drift=0.1)
    scan = scanner.measure(np.zeros((200, N)), empty=20)
    system = prepare_system(noiseless(scanner), scan, snr_threshold=0)
    left = {mode: prepare_frames(system, scan, background=mode) for mode in ("interpolate", "mean", "none")}
    rms = {mode: frames.y.square().mean().sqrt().item() for mode, frames in left.items()}
    assert rms["interpolate"] == pytest.approx(float(left["interpolate"].noise_std.square().mean().sqrt()), rel=0.1)
    assert rms["mean"] > 3 * rms["interpolate"]
    assert rms["none"] > 3 * rms["mean"]


def background_model(times: np.ndarray[Any, Any], rho: float, seed: int, rows: int = 60) -> EmptyScanner:
    """Frames of a level that walks ``rho`` noise variances over the whole time."""
    rng = np.random.default_rng(seed)
    ticks = np.arange(0, times.max() + 1)
    noise = rng.normal(size=(2, len(times), 5, 1, rows))
    walk = np.cumsum(rng.normal(size=(2, len(ticks), 5, 1, rows)) * np.sqrt(rho / np.ptp(times)), axis=1)
    level = 30 + walk[:, np.searchsorted(ticks, times)]
    parts = level + noise
    return EmptyScanner((parts[0] + 1j * parts[1]).astype(np.complex64), times.astype(float), np.arange(len(times)))


def test_the_strength_of_a_walk_is_found_and_noise_alone_is_none() -> None:
    times = np.arange(0, 300, 10)
    walks = 4.0 ** np.arange(-3, 9)
    for rho in (0.0, 10.0, 1000.0):
        noise = background_model(times, rho, seed=int(rho)).noise
        assert noise is not None
        # Between two frames the strongest walk moves 33 variances of the noise, which can then hardly be told apart.
        np.testing.assert_allclose(noise.variance.mean(), 1.0, atol=0.1 if rho < 100 else 0.5)
        found = np.where(noise.drift == 0, 0.0, walks[np.clip(noise.drift - 1, 0, 11)])
        if rho == 0:
            assert (noise.drift > 0).mean() < 0.15  # two kinds of motion, each believed at 5 %
        else:
            assert (noise.drift < 13).mean() > 0.9  # a walk, not a line
            assert 0.3 < np.median(found) / rho < 3


def test_the_background_is_the_best_linear_estimate() -> None:
    """Against the dense formula of universal kriging, for each motion."""
    times = np.array([0.0, 7.0, 7.0, 20.0, 31.0])
    model = EmptyScanner(np.zeros((5, 1, 1, 1), np.complex64), times, np.array([0, 1, 1, 2, 3]))
    at = np.array([0, 3, 7, 25, 31])
    weights = model.weights(at, "smooth")
    np.testing.assert_allclose(weights[0], 0.2)
    for kind, covariance in enumerate((np.minimum.outer, np.multiply.outer)):
        for level, rho in ((3, 4.0**-1), (8, 4.0**4)):
            kernel, cross = rho * covariance(times / 31, times / 31), rho * covariance(at / 31, times / 31)
            inverse = np.linalg.inv(kernel + np.eye(5))
            ones = np.ones((5, 1))
            mean = (ones.T @ inverse) / (ones.T @ inverse @ ones)
            expected = mean + cross @ inverse @ (np.eye(5) - ones @ mean)
            np.testing.assert_allclose(weights[12 * kind + level], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose([w.sum(axis=1) for w in weights], 1.0)


@pytest.mark.parametrize("rho", [0.0, 30.0, 3000.0])
def test_the_smooth_background_is_never_worse_than_mean_or_interpolation(rho: float) -> None:
    """The error summed over ten positions at a time, which is what an image sees."""
    at = np.arange(300)
    rows = (np.repeat(np.arange(5), 60), np.zeros(300, int), np.tile(np.arange(60), 5))
    errors: dict[str, float] = {"smooth": 0.0, "mean": 0.0, "interpolate": 0.0}
    for seed in range(3):
        every = background_model(np.arange(301), rho, seed)
        model = EmptyScanner(every.spectrum[::10], every.times[::10], np.arange(31))
        truth = every.spectrum[:-1].reshape(300, -1)
        for mode in errors:
            estimate = model.background(model.weights(at, mode), *rows)  # type: ignore[arg-type]
            errors[mode] += np.abs((estimate - truth).reshape(30, 10, -1).sum(axis=1)).mean()
    assert errors["smooth"] <= 1.02 * min(errors["mean"], errors["interpolate"])


@pytest.mark.parametrize("shuffled", [False, True])
def test_drift_during_the_calibration_follows_the_order_of_measurement(shuffled: bool) -> None:
    scanner = Scanner(drift=0.5, noise=1e-3)
    order = scanner.rng.permutation(N) if shuffled else None
    calibration = scanner.calibrate(order=order)
    matrix = np.concatenate([scanner.matrix.reshape(-1, N).real, scanner.matrix.reshape(-1, N).imag])
    system = prepare_system(calibration, snr_threshold=0, whiten="none")
    assert np.abs(system.matrix.numpy() - matrix).max() < 0.02
    for wrong in (
        replace(calibration, background_positions=None),
        replace(calibration, position_order=np.arange(N)[::-1]),
    ):
        assert np.abs(prepare_system(wrong, snr_threshold=0, whiten="none").matrix.numpy() - matrix).max() > 1


def test_rows_are_selected_by_the_snr_measured_in_the_calibration() -> None:
    scanner = Scanner()
    system = prepare_system(scanner.calibrate(empty=300), snr_threshold=12)
    std = np.sqrt(np.square(scanner.std).sum(axis=0))
    snr = np.abs(scanner.matrix).max(axis=3) / std
    clear = np.abs(np.log(snr / 12)) > 0.3  # the noise of the calibration itself moves the others across
    chosen = np.zeros_like(clear)
    chosen[tuple(system.rows.T)] = True
    np.testing.assert_array_equal(chosen[clear], snr[clear] > 12)
    assert 10 < len(system.rows) < snr.size - 10
    strong = system.snr > 100
    np.testing.assert_allclose(system.snr[strong], snr[tuple(system.rows.T)][strong], rtol=0.12)
    np.testing.assert_array_equal(system.frequencies, FREQUENCIES[system.rows[:, 2]])


def test_the_files_own_snr_comes_first() -> None:
    scanner = Scanner()
    snr = np.full((PERIODS, CHANNELS, K), 4.9)
    snr[1, 0, 7] = snr[2, 1, 3] = 5.0
    system = prepare_system(replace(scanner.calibrate(), snr=snr))
    np.testing.assert_array_equal(system.rows, [[1, 0, 7], [2, 1, 3]])


def test_band_and_channels() -> None:
    calibration = Scanner().calibrate()
    system = prepare_system(calibration, snr_threshold=0, band=(75e3, 130e3), channels=[1])
    assert set(system.rows[:, 1]) == {1}
    assert set(system.frequencies) == {75e3, 100e3, 125e3}
    assert len(system.rows) == 3 * PERIODS


@pytest.mark.parametrize("average", [1, 4])
@pytest.mark.parametrize("background", ["mean", "interpolate"])
def test_noise_after_averaging_is_predicted(average: int, background: Any) -> None:
    """The subtracted background brings noise too: with 4 empty frames it is a large part."""
    scanner = Scanner()
    levels, predicted = [], []
    for _ in range(30):
        scan = scanner.measure(np.zeros((8, N)), empty=4)
        frames = prepare_frames(
            prepare_system(scanner.calibrate(), scan, snr_threshold=0), scan, average=average, background=background
        )
        assert frames.y.shape[0] == 8 // average
        levels.append(frames.y.double().square().mean().item())
        predicted.append(frames.noise_std.double().square().mean().item())
    np.testing.assert_allclose(np.mean(levels), np.mean(predicted), rtol=0.1)


def test_a_remainder_is_a_last_noisier_frame() -> None:
    scanner = Scanner()
    scan = scanner.measure(np.zeros((7, N)), empty=40)
    frames = prepare_frames(prepare_system(scanner.calibrate(), scan), scan, average=3, background="mean")
    assert frames.noise_std is not None
    np.testing.assert_allclose(
        frames.noise_std[[0, 1, 2]] ** 2 / frames.noise_std[0] ** 2, [1, 1, (1 + 1 / 40) / (1 / 3 + 1 / 40)], rtol=1e-5
    )


def test_snr_is_estimated_from_the_background() -> None:
    scanner = Scanner()
    images = scanner.rng.random((5, N)) * np.array([[0.01], [0.03], [0.1], [1.0], [10.0]])
    scan = scanner.measure(images, empty=200)
    system = prepare_system(scanner.calibrate(), scan, snr_threshold=0)
    frames = prepare_frames(system, scan, background="mean")
    index = tuple(system.rows.T)
    clean = np.einsum("pckn,bn->bpck", scanner.matrix, images)[:, *index]
    clean = np.concatenate([clean.real / system.scale[0], clean.imag / system.scale[1]], axis=1)
    true = 20 * np.log10(np.linalg.norm(clean, axis=1) / np.sqrt(clean.shape[1]))
    assert frames.snr_db is not None
    np.testing.assert_allclose(frames.snr_db, true, atol=0.7)
    nothing = prepare_frames(system, replace(scan, spectrum=scan.spectrum * 0)).snr_db
    assert nothing is not None


def test_frequencies_are_matched_by_value() -> None:
    scanner = Scanner()
    calibration = scanner.calibrate()
    scan = scanner.measure(scanner.rng.random((2, N)))
    shuffle = np.random.default_rng(0).permutation(K)
    other = replace(scan, spectrum=scan.spectrum[..., shuffle], frequencies=FREQUENCIES[shuffle] * (1 + 1e-9))
    a, b = (prepare_frames(prepare_system(calibration, s), s).y for s in (scan, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    fewer = replace(scan, spectrum=scan.spectrum[..., :5], frequencies=FREQUENCIES[:5])
    np.testing.assert_array_equal(match_frequencies(calibration, fewer), [0, 1, 2, 3, 4] + [-1] * (K - 5))


def transfer(factor: float) -> np.ndarray[Any, Any]:
    return np.full((CHANNELS, K), factor, complex)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, spectrum=s.spectrum[:, :2]), "periods: the system matrix has 3, the measurement 2"),
        (lambda s: replace(s, spectrum=s.spectrum[:, :, :1]), "receive channels: .* has 2, the measurement 1"),
        (lambda s: replace(s, unit="A*m^2"), r"unit: the system matrix is in 'V', the measurement in 'A\*m\^2'"),
        (lambda s: replace(s, transfer_corrected=True), "divided out of the measurement but not of the system matrix"),
        (lambda s: replace(s, transfer_function=transfer(1.1)), "transfer function: .* differs from .* by 10 %"),
        (lambda s: replace(s, frequencies=s.frequencies + 100.0), "frequencies: none of the system matrix's 20 "),
        (lambda s: replace(s, spectrum=s.spectrum[..., :5], frequencies=FREQUENCIES[:5]), "it does not have"),
        (lambda s: replace(s, is_background=np.ones(len(s.spectrum), bool)), "all 22 frames are background frames"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_named(change: Any, message: str) -> None:
    scanner = Scanner()
    calibration = replace(scanner.calibrate(), transfer_function=transfer(1.0))
    system = prepare_system(calibration)
    with pytest.raises(DataError, match=message):
        prepare_frames(system, change(scanner.measure(np.zeros((2, N)))))


def test_an_empty_selection_comes_with_advice() -> None:
    calibration = Scanner().calibrate()
    with pytest.raises(
        DataError, match=r"snr_threshold: no row of 120 reaches 1e\+06; the best has .*: lower the threshold"
    ):
        prepare_system(calibration, snr_threshold=1e6)
    with pytest.raises(DataError, match="band: 1 to 2 Hz holds none of the system matrix's 20 frequencies"):
        prepare_system(calibration, band=(1, 2))
    with pytest.raises(DataError, match=r"channels: \[2\] was asked for, the system matrix has channels 0 to 1"):
        prepare_system(calibration, channels=[2])


def test_missing_background_is_told_and_works() -> None:
    scanner = Scanner()
    calibration = scanner.calibrate(empty=0)
    with pytest.warns(UserWarning, match="are not whitened"), pytest.warns(UserWarning, match="all 120 rows are used"):
        system = prepare_system(calibration)
    assert len(system.rows) == PERIODS * CHANNELS * K
    assert np.isnan(system.snr).all()
    with pytest.warns(UserWarning, match="no background is subtracted"):
        frames = prepare_frames(system, scanner.measure(np.zeros((2, N)), empty=0))
    assert frames.noise_std is None
    assert frames.noise_norm is None
    assert frames.snr_db is None


def test_broken_numbers_are_named() -> None:
    scanner = Scanner()
    calibration = scanner.calibrate()
    spectrum = calibration.spectrum.copy()
    spectrum[2, 1, 3, 4] = np.nan
    with pytest.raises(
        DataError, match=r"system matrix: 1 of 120 selected rows hold NaN .* period 2, channel 1, 125000 Hz"
    ):
        prepare_system(replace(calibration, spectrum=spectrum), snr_threshold=0)
    assert calibration.background is not None
    background = calibration.background.copy()
    background[6, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="system matrix: background frame 6 holds NaN"):
        prepare_system(replace(calibration, background=background))
    with pytest.raises(DataError, match="noise: background frames have no usable variance in 120 of 120 rows"):
        prepare_system(replace(calibration, background=calibration.background * 0), snr_threshold=0)


def test_up_and_down_are_the_matrices_they_say() -> None:
    """blurred() is A U D with U bicubic and D the mean over boxes, and it moves the matrix a little, not a lot."""
    system = prepare_system(Scanner().calibrate(), snr_threshold=0)
    eye = torch.eye(N, dtype=torch.float64)
    up = upsample_rows(eye, SHAPE).view(N, 2 * SHAPE[0], 2 * SHAPE[1])
    down = box_downsample(up).view(N, N)
    torch.testing.assert_close(system.blurred().matrix.double(), system.matrix.double() @ down, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(down.sum(dim=0), torch.ones(N, dtype=torch.float64))
    assert 0.01 < float((down - eye).abs().max()) < 0.5

    fine = system.upsampled()
    assert fine.grid == Grid((10, 12), (1e-3, 1e-3), (0.0, 0.0))
    torch.testing.assert_close(fine.matrix.double(), system.matrix.double() @ up.view(N, -1) / 4, rtol=1e-4, atol=1e-3)
    image = torch.rand(1, *SHAPE)
    coarse = image.flatten(1) @ system.blurred().matrix.T
    repeated = image.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(repeated.flatten(1) @ fine.matrix.T, coarse, rtol=1e-4, atol=1e-2)


def test_interpolation_needs_an_image_and_boxes_must_fit() -> None:
    system = prepare_system(Scanner().calibrate(), snr_threshold=0)
    with pytest.raises(DataError, match="is not an image"):
        replace(system, grid=Grid((30,), (1e-3,), (0.0,))).upsampled()
    with pytest.raises(ValueError, match="5 x 6 pixels do not divide into boxes of 2 x 2"):
        box_downsample(torch.zeros(1, 5, 6))


def test_misspelt_options_are_refused() -> None:
    calibration = Scanner().calibrate()
    with pytest.raises(ValueError, match="whiten: 'rows' is not known, expected one of component, row, none"):
        prepare_system(calibration, whiten="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="background: 'median' is not known"):
        prepare_system(calibration, background="median")  # type: ignore[arg-type]
