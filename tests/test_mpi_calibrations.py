"""Experiments on the noise of the calibration and on unseen scanners: what they compare is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyrecon.data.mpi import FINER, prepare_frames
from pyrecon.experiments.deq_mpi import EXPERIMENTS, Study, calibrations
from pyrecon.experiments.deq_mpi.calibrations import Scene, unseen_scenes
from pyrecon.experiments.mpi_data import vessel_images
from pyrecon.models.mpi import ART, DEQ, Tikhonov
from pyrecon.models.mpi.system import FactoredSystem
from pyrecon.physics.mpi import drawn_calibration

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return next(iter(unseen_scenes(25.0, count=2)))[1]


def test_every_treatment_brings_the_matrix_nearer_and_ours_nearest(scene: Scene) -> None:
    exact = calibrations._noise_free(scene).matrix
    errors = {label: float((treat(scene).matrix - exact).norm()) for label, treat in calibrations._TREATMENTS.items()}
    measured, *others, ours, none = errors.values()
    assert none == 0
    assert max(others) < 0.8 * measured
    assert ours < 0.75 * min(others)


def test_a_matrix_without_noise_is_that_of_the_scanner(scene: Scene) -> None:
    """Rows and units of the measured one, whose noise is all that lies between them."""
    exact, measured = calibrations._noise_free(scene), calibrations._measured(scene)
    assert exact.matrix.shape == measured.matrix.shape
    assert measured.error is not None
    noise = (measured.matrix - exact.matrix).square().sum(dim=1).mean()
    expected = measured.error.variance(torch.eye(exact.matrix.shape[1])).sum()
    assert float(noise / expected) == pytest.approx(1, rel=0.1)
    assert exact.error is not None
    assert not exact.noisy


def test_true_images_explain_the_data_to_within_the_noise() -> None:
    """In the range of the matrix, where images differ: not so where scan and calibration were given one seed."""
    for place, (seed, scene) in enumerate(unseen_scenes(15.0, count=4)):
        if place not in (2, 3):
            continue
        system = calibrations._ours(scene)
        factored = FactoredSystem(system.matrix, system.grid.shape, rank=system.rank)
        frames = prepare_frames(system, scene.scan)
        scanner, images = drawn_calibration(seed).scanner, vessel_images(test=4, validation=1).test
        drift, whole = (
            scanner.measure(x, system.grid.finer(FINER), noise=0.0, background_frames=20, seed=seed + 1).spectrum
            for x in (0 * images, images)
        )
        rows = (whole - drift)[~scene.scan.is_background][(slice(None), *system.rows.T)]
        signal = np.concatenate([rows.real / system.scale[0], rows.imag / system.scale[1]], axis=1)
        left = factored.coordinates(frames.y - torch.from_numpy(signal).float())[:, :-1]
        assert frames.noise_std is not None
        ratio = left.square().mean() / frames.noise_std.square().mean()
        assert float(ratio) == pytest.approx(1, abs=0.25)  # of 4 x 68 and 4 x 139 numbers: 0.09 and 0.06


@pytest.mark.parametrize("name", ["calibration", "scanners"])
def test_tables(name: str, tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        calibrations, "unseen_scenes", lambda snr: iter([(calibrations.UNSEEN[k], scene) for k in (0, 1)])
    )
    monkeypatch.setattr(calibrations, "demo_scene", lambda: scene)
    monkeypatch.setattr(calibrations, "_METHODS", (ART(), Tikhonov(), DEQ("deq-mpi-25dB", iterations=2)))
    monkeypatch.setattr(calibrations, "SNRS", (25.0,))
    listing = EXPERIMENTS[name](Study(tmp_path))
    assert all(len(line) == len(listing.heads) for line in listing.lines)
    if name == "calibration":
        assert [line[0] for line in listing.lines] == ["demo"] * 6 + ["unseen"] * 6
        assert listing.lines[0][2:] == listing.lines[6][2:]  # the same scene twice has its own mean
        return
    first, second, mean, against = listing.lines
    assert first[2:] == second[2:] == mean[2:]
    assert against[4] == "+0.0 ± 0.0"
    assert float(against[2].split()[0]) == pytest.approx(float(mean[2]) - float(mean[4]), abs=0.11)
