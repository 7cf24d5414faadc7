"""Scanners drawn at random: ranges as stated, a function of the seed alone, systems to reconstruct with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest

from pyrecon.data.mpi import GRID, prepare_system
from pyrecon.physics.mpi import UNSEEN, Particles, Receiver, Scanner, drawn_calibration, drawn_scanner, training_seeds

COUNT = 400
DRAWN = [drawn_calibration(seed) for seed in range(COUNT)]
SCANNERS = [drawn.scanner for drawn in DRAWN]


def test_a_scanner_is_a_function_of_its_seed() -> None:
    assert [drawn_calibration(seed) for seed in reversed(range(20))] == DRAWN[19::-1]
    assert len({repr(replace(s, session=0)) for s in SCANNERS}) == COUNT
    assert drawn_calibration(7).scanner == drawn_scanner(7)
    small = replace(SCANNERS[1], angles=3, harmonics=(2, 3))
    first, again = (replace(DRAWN[1], scanner=small).measured() for _ in range(2))
    np.testing.assert_array_equal(first.spectrum, again.spectrum)
    for seed in (-1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="seed"):
            drawn_scanner(seed)  # type: ignore[arg-type]


def test_scanners_to_test_on_are_never_trained_on() -> None:
    seeds = list(islice(training_seeds(0), 20_000))
    assert len(set(UNSEEN)) == 8
    assert max(seeds) < min(UNSEEN)
    assert max(seeds) > 2**31  # they use their range
    assert seeds[:10] == list(islice(training_seeds(0), 10))
    assert not set(seeds) & set(islice(training_seeds(1), 1000))


def _positions(low: float, high: float, of: Callable[[Scanner], float], log: bool = True) -> np.ndarray:
    """Where the values lie in their range, 0 to 1."""
    values = np.array([of(s) for s in SCANNERS])
    if log:
        low, high, values = math.log(low), math.log(high), np.log(values)
    return (values - low) / (high - low)


@pytest.mark.parametrize(
    ("low", "high", "of", "log"),
    [
        (0.25, 0.8, lambda s: s.gradient, True),
        (20e3, 45e3, lambda s: s.drive_frequency, False),
        (19e-9, 28e-9, lambda s: s.particles.core_diameter, True),
        (0.05, 0.2, lambda s: s.particles.size_spread, False),
        (0.5e-6, 6e-6, lambda s: s.particles.relaxation_time, True),
        (24, 60, lambda s: s.angles if s.angle_span < 4 else s.angles / 2, False),
        (0, math.pi, lambda s: s.angle_offset, False),
        (-1e-3, 1e-3, lambda s: s.center[0], False),
        (10, 20, lambda s: s.harmonics[-1], False),
        (150, 1000, lambda s: s.bandwidth, True),
        (10e-6, 40e-6, lambda s: s.coils[0].sensitivity, True),
        (5e3, 20e3, lambda s: s.receiver.band[0], True),
        (150e3, 500e3, lambda s: s.receiver.band[1], True),
        (-0.3e-6, 0.3e-6, lambda s: s.receiver.delay, False),
        (30e3, 200e3, lambda s: s.receiver.noise_corner, True),
        (0, 5, lambda s: len(s.receiver.interference), False),
        (10e-6, 60e-6, lambda s: s.receiver.feedthrough, True),
        (0.3e-2, 2e-2, lambda s: s.receiver.feedthrough_drift, True),
    ],
)
def test_quantities_fill_their_stated_ranges_evenly(
    low: float, high: float, of: Callable[[Scanner], float], log: bool
) -> None:
    place = np.sort(_positions(low, high, of, log))
    assert place[0] > -1e-12
    assert place[-1] < 1 + 1e-12
    assert place[0] < 0.03
    assert place[-1] > 0.97
    # Kolmogorov's distance of 400 even draws passes 0.1 once in 1,300; whole numbers add half a step to it.
    steps = len(set(place))
    even = np.abs(place - (np.arange(COUNT) + 0.5) / COUNT).max()
    assert even < 0.1 + (0 if steps > 100 else 1 / steps)


def test_the_line_reaches_what_it_has_to() -> None:
    reach = np.array([(s.drive_amplitude + s.shift_amplitude) / s.gradient for s in SCANNERS])
    field = np.array([s.drive_amplitude + s.shift_amplitude for s in SCANNERS])
    for values, low, high in ((reach, 14e-3, 36e-3), (field, 5e-3, 20e-3)):
        assert low * (1 - 1e-9) <= values.min() < 1.1 * low
        assert 0.9 * high < values.max() <= high * (1 + 1e-9)
    share = np.array([s.shift_amplitude for s in SCANNERS]) / field
    assert 0.4 < np.mean(share == 0) < 0.6
    assert 0.1 <= share[share > 0].min() < share.max() <= 0.5


def test_everything_varies_but_what_the_docstring_names() -> None:
    constant = {
        Scanner: {"burst", "window", "repetition"},
        Particles: {"temperature", "saturation", "volume_fraction"},
        Receiver: {"gain", "noise_density", "digitizer_noise"},
    }
    parts = {Scanner: SCANNERS, Particles: [s.particles for s in SCANNERS], Receiver: [s.receiver for s in SCANNERS]}
    for kind, values in parts.items():
        same = {f.name for f in fields(kind) if len({repr(getattr(v, f.name)) for v in values}) == 1}
        assert same == constant[kind]
    channels = [len(s.coils) for s in SCANNERS]
    even = [s.coils[0].radius > 1 for s in SCANNERS]
    spans, first = [s.angle_span for s in SCANNERS], [s.harmonics[0] for s in SCANNERS]
    # Shares of 400: five standard deviations are 0.125 at most.
    for found, expected in (
        (np.mean(np.equal(channels, 2)), 1 / 3),
        (np.mean(even), 1 / 4),
        (np.mean(np.equal(spans, math.pi)), 1 / 2),
        (np.mean(np.equal(first, 3)), 1 / 4),
    ):
        assert abs(found - expected) < 0.125
    coils = [coil for s in SCANNERS for coil in s.coils if coil.radius < 1]
    assert 25e-3 <= min(c.radius for c in coils) < max(c.radius for c in coils) <= 60e-3
    assert 0.25 < max(abs(c.anisotropy) for c in coils) <= 0.3
    assert 11e-3 < max(max(map(abs, c.center)) for c in coils) <= 12e-3
    lines = [line for s in SCANNERS for line in s.receiver.interference]
    assert 20e3 <= min(f for f, _ in lines) < max(f for f, _ in lines) <= 400e3
    assert 0.1e-6 <= min(a for _, a in lines) < max(a for _, a in lines) <= 1e-6

    assert {d.averages for d in DRAWN} == {1, 2, 4}
    for name, low, high in (("noise", 0.4, 1.5), ("snr_threshold", 3, 8), ("background_every", 13, 26)):
        found = [getattr(d, name) for d in DRAWN]
        assert low <= min(found) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(found) <= high


def test_calibrations_give_systems_to_reconstruct_with() -> None:
    """Rows enough, and in each the signal of a scanner without noise and feed-through, within the noise."""
    rows, errors = [], []
    for drawn in (*DRAWN[:10], *map(drawn_calibration, UNSEEN[:2])):
        system = prepare_system(drawn.measured(), snr_threshold=drawn.snr_threshold, denoise=False)
        rows.append(len(system.rows))
        silent = replace(drawn.scanner, receiver=replace(drawn.scanner.receiver, feedthrough=0.0, interference=()))
        signal = silent.calibrate(GRID, noise=0.0).spectrum[tuple(system.rows.T)]
        clean = np.concatenate([signal.real / system.scale[0][:, None], signal.imag / system.scale[1][:, None]])
        errors.append(np.sqrt(np.mean((system.matrix.numpy() - clean) ** 2)))
        assert np.mean(clean**2) > 1
    assert np.mean(np.array(rows) >= 500) > 0.8
    # 1 is the noise; the subtracted background adds to it. Where the feed-through wanders by more than the noise from
    # one empty frame to the next, a few carriers are taken to be less noisy than they are.
    assert min(errors) > 0.95
    assert np.mean(np.array(errors) < 1.2) > 0.8
