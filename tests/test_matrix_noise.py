"""The noise of a calibration: what it does to the signal of an image, and what of it can be taken out of a matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon.data import _matrix_noise
from pyrecon.data._background import EmptyScanner
from pyrecon.data.mpi import MatrixError, MPISystem, prepare_frames, prepare_system
from pyrecon.data.raw import Grid, MPICalibration, MPIScan
from pyrecon.models.mpi import HybADMM, Reconstructor
from pyrecon.models.mpi.method import Data
from pyrecon.models.mpi.reconstructor import with_model_error

PERIODS, CHANNELS, K, SHAPE, RANK = 20, 2, 12, (6, 10), 5
N = SHAPE[0] * SHAPE[1]
GRID = Grid(SHAPE, (2e-3, 2e-3), (0.0, 0.0))
FREQUENCIES = 25e3 * np.arange(2, 2 + K)
TAKEN = np.array([0, 0, 15, 30, 30, 45, 60, 60])  # positions before each empty frame
Array = np.ndarray[Any, Any]


def truth(seed: int = 0) -> Array:
    """(periods, channels, K, N): few shapes in space, which all frequencies and periods mix; strong and weak ones."""
    rng = np.random.default_rng(seed)
    shapes = np.cos(np.outer(np.arange(1, RANK + 1), np.linspace(0, np.pi, N)) + rng.uniform(0, 6, (RANK, 1)))
    mixing = rng.normal(size=(2, PERIODS, CHANNELS, 3, RANK)) * 3.0 ** -np.arange(RANK)
    lines = rng.normal(size=(2, K, 3))
    return np.einsum("kq,pcqr,rn->pckn", lines[0] + 1j * lines[1], mixing[0] + 1j * mixing[1], 30 * shapes)


STD = np.stack([np.linspace(0.5, 2, K), np.linspace(1, 3, K)])[:, None] * np.array([1.0, 2.0])[:, None]


def noise(rng: np.random.Generator, count: int, level: float) -> Array:
    parts = rng.normal(size=(2, count, PERIODS, CHANNELS, K)) * (level * STD[:, None, None])
    return np.asarray(parts[0] + 1j * parts[1])


def calibration(seed: int = 0, level: float = 1.0, matrix: Array | None = None) -> MPICalibration:
    """With an offset that the empty frames tell, and noise in the frames of positions and empty scanner alike."""
    rng, matrix = np.random.default_rng((seed, 1)), truth() if matrix is None else matrix
    offset = 50 * rng.normal(size=(PERIODS, CHANNELS, K))
    return MPICalibration(
        spectrum=matrix + offset[..., None] + np.moveaxis(noise(rng, N, level), 0, -1),
        frequencies=FREQUENCIES,
        grid=GRID,
        background=offset + noise(rng, len(TAKEN), level),
        background_positions=TAKEN,
    )


def whitened(system: MPISystem, matrix: Array) -> torch.Tensor:
    """The rows of a system of another matrix."""
    rows = matrix[tuple(system.rows.T)]
    return torch.from_numpy(
        np.concatenate([rows.real / system.scale[0][:, None], rows.imag / system.scale[1][:, None]])
    )


def test_the_error_of_a_signal_has_the_variance_that_is_said() -> None:
    """Over 60 calibrations; the empty frames' noise, which all positions share, is most of it for a positive image."""
    images = torch.rand(3, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[2] -= images[2].mean()  # without a sum
    found, said = [], []
    for seed in range(60):
        system = prepare_system(calibration(seed), snr_threshold=0, denoise=False, whiten="none")
        assert system.error is not None
        wrong = images @ (system.matrix.double() - whitened(system, truth())).T
        found.append(wrong.square().mean(dim=1))
        said.append(system.error.variance(images))
    mean, expected = torch.stack(found).mean(0), torch.stack(said).mean(0)
    # The mean of 60 x 960 squares, 0.6 % each.
    torch.testing.assert_close(mean, expected, rtol=0.03, atol=0)
    own = system.error.std**2 * images.square().sum(dim=1)
    assert (expected[:2] > 3 * own[:2]).all()
    assert expected[2] < 1.3 * own[2]


def test_noise_that_is_known_is_taken_out() -> None:
    """Nearly as well as by who knows the directions of the signal, of which noise leaves its share in each: 3 of 12
    frequencies, 5 of 60 positions; and the reduction that is said is the one there is."""
    for seed in range(3):
        plain, system = (prepare_system(calibration(seed), snr_threshold=0, denoise=d) for d in (False, True))
        exact = whitened(system, truth())
        before, after = (float((s.matrix - exact).square().sum()) for s in (plain, system))
        gain = 10 * np.log10(before / after)
        records = PERIODS * CHANNELS
        left = 2 * RANK * (N + 2 * 3 * records)  # numbers that a real matrix of that rank has, of 2 K records N
        assert gain > 10 * np.log10(2 * K * records * N / left) - 3
        assert system.rank is not None
        assert system.rank <= 2 * RANK
        assert int(torch.linalg.matrix_rank(system.matrix, rtol=1e-5)) == system.rank
        assert system.error is not None
        assert abs(system.error.removed_db - gain) < 2.5  # it is in units of white noise
        assert plain.rank is None


def test_shared_noise_is_known_as_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for signal, the noise of the empty frames would stay in the matrix: most of an image's error."""
    image = torch.ones(1, N, dtype=torch.float64)

    def error() -> float:
        system = prepare_system(calibration(), snr_threshold=0)
        return float((image @ (system.matrix.double() - whitened(system, truth())).T).norm())

    known = error()
    monkeypatch.setattr(_matrix_noise.CalibrationNoise, "_shared", lambda self: np.zeros((N, 0)))
    assert known < 0.75 * error()


def test_a_single_record_is_shrunk_singular_value_by_singular_value() -> None:
    """Gavish and Donoho's formula by a dense decomposition, one period and channel, background known for nothing."""
    one = replace(calibration(), spectrum=calibration().spectrum[:1, :1], background_corrected=True)
    assert one.background is not None
    one = replace(one, background=one.background[:, :1, :1])
    system = prepare_system(one, snr_threshold=0)
    plain = prepare_system(one, snr_threshold=0, denoise=False)
    u, s, vh = np.linalg.svd(plain.matrix.double().numpy(), full_matrices=False)
    m, n = plain.matrix.shape
    root = np.sqrt(np.maximum((s**2 - m - n) ** 2 - 4 * m * n, 0))
    kept = np.where(s >= np.sqrt(m) + np.sqrt(n), root / s, 0)
    np.testing.assert_allclose(system.matrix, (u * kept) @ vh, rtol=1e-4, atol=1e-4 * s[0])
    found = np.linalg.svd(system.matrix.double().numpy(), compute_uv=False)[: system.rank]
    np.testing.assert_allclose(found, kept[: system.rank], rtol=1e-3)
    assert kept[system.rank - 1] < 0.97 * s[system.rank - 1]  # some are shrunk by more than they are off
    assert system.rank == int((kept > 0).sum())


def test_a_matrix_without_noise_comes_back() -> None:
    for level in (1e-9, 0.0):
        clean = calibration(level=level)
        system, plain = (prepare_system(clean, snr_threshold=0, whiten="none", denoise=d) for d in (True, False))
        assert float((system.matrix - plain.matrix).norm()) <= 1e-6 * float(plain.matrix.norm())
    assert system.rank is None  # no noise at all: nothing was done
    assert torch.equal(system.matrix, plain.matrix)


def test_what_does_not_stand_out_of_the_noise_is_left_as_it_is() -> None:
    """There would be no matrix left."""
    weak = calibration(level=1e-3, matrix=1e-3 * truth())
    assert weak.background is not None
    loud = replace(weak, background=weak.background + noise(np.random.default_rng(5), len(TAKEN), 100.0))
    system, plain = (prepare_system(loud, snr_threshold=0, background="none", denoise=d) for d in (True, False))
    assert torch.equal(system.matrix, plain.matrix)
    assert system.rank is None


def test_without_empty_frames_nothing_is_known() -> None:
    blind = replace(calibration(), background=None, background_positions=None, background_corrected=True)
    with pytest.warns(UserWarning, match="not whitened"):
        system = prepare_system(blind, snr_threshold=0)
    assert system.error is None
    assert system.rank is None


def test_rows_that_nobody_asked_for_may_be_broken() -> None:
    """Frequencies learn from all periods and channels; what is no number there, or has no noise, is not looked at."""
    good = calibration()
    rows = np.argwhere(np.ones((PERIODS, CHANNELS, K), bool))
    rows = rows[(rows != [2, 1, 7]).any(axis=1)]
    expected = prepare_system(good, rows=rows).matrix
    spectrum = good.spectrum.copy()
    spectrum[2, 1, 7, 3] = np.nan
    found = prepare_system(replace(good, spectrum=spectrum), rows=rows).matrix
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_too_many_positions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_matrix_noise, "_POSITIONS", N - 1)
    with pytest.warns(UserWarning, match="system matrix: its noise is left in, 60 positions are more than 59"):
        system = prepare_system(calibration(), snr_threshold=0)
    assert system.rank is None
    assert system.error is not None


def test_a_finer_grid_has_the_errors_of_the_one_that_was_measured() -> None:
    system = prepare_system(calibration(), snr_threshold=0)
    fine, scaled, blurred = system.upsampled(), system.scaled(3.0), system.blurred()
    assert system.error is not None
    assert fine.error is not None
    assert scaled.error is not None
    eye = replace(system, matrix=torch.eye(N), error=None)
    image = torch.rand(2, 4 * N)
    torch.testing.assert_close(fine.error.variance(image), system.error.variance(image @ eye.upsampled().matrix.T))
    coarse = torch.rand(2, N)
    torch.testing.assert_close(scaled.error.variance(coarse), 9 * system.error.variance(coarse))
    assert blurred.error is not None
    both = blurred.upsampled().error
    assert both is not None
    combined = eye.blurred().matrix @ eye.upsampled().matrix
    torch.testing.assert_close(both.variance(image), system.error.variance(image @ combined.T), rtol=1e-4, atol=0)
    assert fine.rank == system.rank


# --- what a reconstruction makes of it -------------------------------------------------------------------------------
def scan(images: Array, level: float, seed: int = 3) -> MPIScan:
    rng = np.random.default_rng(seed)
    empty = np.repeat([True, False, True], [15, len(images), 15])
    clean = np.zeros((len(empty), PERIODS, CHANNELS, K), complex)
    clean[~empty] = np.einsum("pckn,bn->bpck", truth(), images)
    return MPIScan(clean + noise(rng, len(empty), level), FREQUENCIES, empty)


def bright(count: int = 4) -> Array:
    images = np.zeros((count, *SHAPE))
    for k in range(count):
        images[k, 1 + k % 3 : 4 + k % 3, 2:7] = 0.5 * (k + 1)
    return images.reshape(count, N)


def test_the_noise_that_counts_is_that_of_data_and_matrix() -> None:
    """The misfit of the true image in the range of A, per direction, is what was expected without knowing the image."""
    images = torch.from_numpy(bright(8)).float()
    ratios = []
    for seed in range(8):
        measured = scan(images.numpy(), 0.5, seed)
        system = prepare_system(calibration(seed), measured, snr_threshold=0)
        frames = prepare_frames(system, measured)
        ready = Reconstructor(system, HybADMM(), normalise=False)
        coordinates = ready.system.coordinates(frames.y)
        assert frames.noise_norm is not None
        noise, wrong = with_model_error(ready.system, coordinates, frames.noise_norm, system.error)
        assert (wrong > 2 * frames.noise_norm).all()
        inside = (images @ ready.system.V) * ready.system.s - coordinates[:, :-1]
        expected = noise * (ready.system.rank / frames.y.shape[1]) ** 0.5
        ratios.append(inside.norm(dim=1) / expected)
    assert 0.75 < float(torch.stack(ratios).square().mean().sqrt()) < 1.35


def test_the_signal_is_what_lies_in_the_range_less_the_noise_there() -> None:
    """Of 200 frames with a signal of norm 3, known in 5 of 40 directions, in noise of twice that norm in all."""
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randn(200, n, generator=generator) for n in (5, 35))
    inside[:, 0] += 3.0
    coordinates = torch.cat([inside, outside.norm(dim=1, keepdim=True)], dim=1)
    y = torch.cat([inside, outside], dim=1)
    noise = torch.full((200,), 40**0.5)
    for rank, of, spread in ((5, coordinates, 6.7), (None, y, 10.8)):  # deviation of |y|^2: sqrt(2 n + 4 * 9)
        squares = Data(y, noise, of, rank).signal.square()
        assert float(squares.mean()) == pytest.approx(9, abs=3 * spread / 200**0.5 + 0.5)  # none is below 0


def test_the_report_says_whose_noise_it_is() -> None:
    measured = scan(bright(), 0.3)
    system = prepare_system(calibration(), measured, snr_threshold=0)
    frames = prepare_frames(system, measured)
    with pytest.warns(UserWarning, match=r"noise of its calibration weighs \d+\.\d times as much .* averages"):
        _, report = Reconstructor(system, HybADMM())(frames)
    assert report.details["data_noise"] == pytest.approx(1, rel=0.15)
    assert report.details["matrix_noise"] > 1.5
    assert report.details["matrix"].endswith(f" dB of its noise taken out, rank {system.rank}")
    assert len([text for text in report.warnings if "calibration weighs" in text]) == 1
    _, plain = Reconstructor(system, HybADMM(), model_error=False)(frames)
    assert "matrix_noise" not in plain.details
    _, quiet = Reconstructor(replace(system, error=None), HybADMM())(frames)
    assert not [text for text in quiet.warnings if "calibration weighs" in text]


def test_a_better_matrix_makes_a_better_image() -> None:
    """Judged by the signal that it would give, as few directions of an image are seen at all."""
    images = bright()
    measured = scan(images, 0.1)

    def error(**options: Any) -> float:
        system = prepare_system(calibration(), measured, snr_threshold=0, **options)
        found, _ = Reconstructor(system, HybADMM())(prepare_frames(system, measured))
        return float(((found.flatten(1) - torch.from_numpy(images)) @ whitened(system, truth()).T).norm())

    with pytest.warns(UserWarning, match="calibration weighs"):
        assert error() < 0.7 * error(denoise=False)


def test_shared_noise_of_nothing() -> None:
    """Where no background is subtracted there is none to share."""
    system = prepare_system(calibration(), snr_threshold=0, background="none")
    assert system.error is not None
    assert system.error.shared.shape == (N, 0)
    x = torch.rand(2, N)
    torch.testing.assert_close(system.error.variance(x), system.error.std**2 * x.square().sum(dim=1))


def test_the_mean_of_the_empty_frames_is_shared_by_all() -> None:
    """B B^T is 1 / n in every element: var = std^2 (|x|^2 + (sum x)^2 / n)."""
    system = prepare_system(calibration(), snr_threshold=0, background="mean")
    assert isinstance(system.error, MatrixError)
    x = torch.rand(2, N, dtype=torch.float64)
    expected = system.error.std**2 * (x.square().sum(dim=1) + x.sum(dim=1).square() / len(TAKEN))
    torch.testing.assert_close(system.error.variance(x), expected, rtol=1e-5, atol=0)
    assert EmptyScanner.of_calibration(calibration()) is not None


def test_a_matrix_with_noise_of_its_own_is_followed_in_all_rows() -> None:
    """The ball leaves as much in the range of the matrix, whichever space it lies in."""
    measured = scan(bright(), 0.3)
    raw = prepare_system(calibration(), measured, snr_threshold=0, denoise=False)
    exact = replace(raw, error=MatrixError.none(N))
    assert raw.noisy
    assert replace(raw, error=None).noisy
    assert not exact.noisy
    assert not prepare_system(calibration(), measured, snr_threshold=0).noisy
    frames = prepare_frames(raw, measured)
    balls = []
    for system in (raw, exact):
        ready = Reconstructor(system, HybADMM(), normalise=False, model_error=False).system
        coordinates = ready.coordinates(frames.y)
        assert frames.noise_norm is not None
        data = Data(frames.y, frames.noise_norm, coordinates, ready.rank, ready.noisy)
        balls.append(data.ball(0.7))
    (around, large), (inside, small) = balls
    torch.testing.assert_close(around[:, :-1], inside[:, :-1])
    assert (inside[:, -1] == 0).all()
    torch.testing.assert_close(large.square() - around[:, -1].square(), small.square(), rtol=1e-3, atol=0)
