"""The comparison of MPI methods: same rows, same budget, times, and where its images come from."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.data.mpi import box_downsample, prepare_system
from pyrecon.data.raw import Grid, MPICalibration
from pyrecon.data.vessels import vascular_images
from pyrecon.experiments.deq_mpi.published import TABLE_1, TABLE_2, TABLE_3
from pyrecon.experiments.mpi import (
    Images,
    Run,
    draw,
    evaluate_mpi,
    generated_images,
    measured_scenario,
    phantom_images,
)
from pyrecon.models import DEQMPI
from pyrecon.models.deq_mpi import Role, new_card
from pyrecon.models.mpi import DEQ, L1ADMM, Reconstructor
from pyrecon.models.mpi.system import row_layout, rows_of
from pyrecon.nn import RDN, LearnedConsistency, RowLayout
from pyrecon.physics.mpi import Scanner

SHAPE, GRID = (6, 4), Grid((6, 4), (2e-3, 2e-3), (0.0, 0.0))


def calibrated(gradient: float = 0.5, angles: int = 4) -> MPICalibration:
    return replace(Scanner(gradient=gradient), angles=angles, harmonics=(2, 3, 4)).calibrate(GRID, noise=1.0)


def pictures() -> Images:
    images = torch.rand(3, 12, 8, generator=torch.Generator().manual_seed(0))
    return Images(images[:1], images[1:], "random")


def saved(folder: Path, role: Role, layout: RowLayout | None = None, name: str | None = None) -> str:
    torch.manual_seed(0)
    model = DEQMPI(RDN(4, 3, 1, 1), None if layout is None else LearnedConsistency(layout, width=4), iterations=3)
    model.card = new_card(25.0, SHAPE, (1e-3, 1e3), {}, role)
    path = folder / f"{name or role}.safetensors"
    model.save(path)
    return str(path)


def test_every_rival_has_its_row_with_times_and_its_share_of_the_search(tmp_path: Path) -> None:
    roles: tuple[Role, ...] = ("equilibrium", "denoiser", "unrolled", "end-to-end")
    steps: list[tuple[str, int, int]] = []
    table, results = evaluate_mpi(
        pictures(),
        calibration=calibrated(),
        snr_db=(25.0,),
        tune=True,
        budget=4,
        weights=[saved(tmp_path, role) for role in roles],
        dip=12,
        published={"PP-MPI": TABLE_1["PP-MPI"], "DIP": TABLE_1["DIP"]},
        progress=lambda *at: steps.append(at),
    )
    kinds = {(row.method, row.kind): row for row in table.rows}
    for key in (
        ("DEQ-MPI", "equilibrium"),
        ("PP-MPI", "denoiser"),
        ("PP-MPI", "denoiser, tuned"),
        ("Unrolled", "unrolled"),
        ("End-to-end", "end-to-end"),
        ("DIP", "12 iterations"),
        ("TV-ADMM", "tuned"),
        ("l2-ART", "paper"),
    ):
        row = kinds[key]
        assert len(row.psnr["25 dB"]) == 2
        together, alone = row.milliseconds["25 dB"]
        assert together > 0
        assert alone > 0
        assert f"| {key[0]} | {key[1]} |" in table.to_markdown()
        assert results[", ".join(key)].shape == (2, *SHAPE)
    assert kinds["PP-MPI", "denoiser, tuned"].published["25 dB"][0] == 33.4
    assert kinds["DIP", "12 iterations"].published["25 dB"][0] == 22.6
    assert not kinds["DEQ-MPI", "equilibrium"].published  # the figures given have none
    assert ("DIP", "tuned") not in kinds  # only with the published number of iterations
    assert set(kinds["PP-MPI", "denoiser, tuned"].settings["25 dB"]) == {"strength", "kappa", "iterations", "penalty"}
    assert any("at most 12 iterations, where 20000 are published" in note for note in table.notes)
    searched = [name for name, *_ in steps]
    # One step before, and as many as the budget has, for every method that has settings.
    assert {searched.count(f"{name} at 25 dB") for name in ("PP-MPI", "l1-ADMM", "Tikhonov")} == {5}
    assert len(steps) == steps[0][2]
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert all(float(row["ms_together"]) > 0 and float(row["ms_alone"]) > 0 for row in rows)
    assert draw(results, "tuned") is not None


def test_learned_consistency_is_tested_on_the_rows_it_was_trained_on(tmp_path: Path) -> None:
    """Those of 0.5 T/m in a calibration at 0.6, for all methods; alone that calibration has others."""
    first, second = calibrated(0.5), calibrated(0.6)
    system = prepare_system(first)
    layout = row_layout(system)
    assert layout is not None
    np.testing.assert_array_equal(rows_of(layout, first), system.rows)
    forced = prepare_system(second, rows=rows_of(layout, second))
    found = row_layout(forced)
    assert found is not None
    assert found.digest == layout.digest
    assert not torch.equal(forced.matrix, system.matrix)
    plain = prepare_system(second)
    assert not np.array_equal(plain.rows, forced.rows)
    path = saved(tmp_path, "equilibrium", layout)
    with pytest.raises(DataError, match="learned consistency belongs to"):
        Reconstructor(plain, DEQ(path))
    table, _ = evaluate_mpi(pictures(), calibration=second, snr_db=(25.0,), weights=[path])
    assert "learned consistency" in table.facts["rows"]
    assert table.facts["25 dB"].startswith(f"{2 * len(system.rows)} real rows")
    assert [len(row.psnr["25 dB"]) for row in table.rows if row.method == "DEQ-MPI"] == [2]

    other = saved(tmp_path, "equilibrium", RowLayout(layout.grid, layout.rows[1:], layout.used), "other")
    with pytest.raises(DataError, match="2 different sets of rows"):
        evaluate_mpi(pictures(), calibration=second, snr_db=(25.0,), weights=[path, other])
    with pytest.raises(DataError, match=r"has 3 x .*belongs to 4 x"):
        evaluate_mpi(pictures(), calibration=calibrated(angles=3), snr_db=(25.0,), weights=[path])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0, 0, 1], [0, 0, 10**6]], "1 of 2 are not in the system matrix, which has 4 periods"),
        ([[0, 0, 2], [0, 0, 1]], "increasing order"),
        ([[0, 0, 1], [0, 0, 1]], "some twice"),
        ([[0, 1]], "expected indices"),
        ([[0.0, 0.0, 1.0]], "expected indices"),
    ],
)
def test_rows_that_a_calibration_does_not_have_are_refused(rows: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepare_system(calibrated(), rows=np.array(rows))


def test_weights_of_one_name_have_rows_of_their_own(tmp_path: Path) -> None:
    paths = []
    for folder in ("a/run", "b/run", "c"):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(saved(tmp_path / folder, "equilibrium", name="weights"))
    table, _ = evaluate_mpi(pictures(), calibration=calibrated(), snr_db=(25.0,), weights=paths)
    assert [row.kind for row in table.rows if row.method == "DEQ-MPI"] == ["run", paths[1], "c"]


def test_generated_images_are_none_that_training_draws() -> None:
    images = generated_images(test=3, validation=2, shape=(13, 7), seed=0)
    assert images.test.shape == (3, 26, 14)
    assert images.validation.shape == (2, 26, 14)
    drawn = vascular_images(3, shape=(13, 7), factor=2, seed=0)
    for stack in (images.test, images.validation):
        peaks = box_downsample(stack, 2).amax(dim=(1, 2))
        assert ((peaks >= 0.5) & (peaks <= 1.5)).all()
        for image in box_downsample(stack, 2):
            assert all(np.corrcoef(image.flatten(), other.flatten())[0, 1] < 0.99 for other in drawn)
    again = generated_images(test=2, validation=1, shape=(13, 7), seed=0)
    assert torch.equal(again.test, images.test[:2])
    assert not torch.equal(generated_images(test=2, validation=1, shape=(13, 7), seed=1).test, again.test)


@pytest.mark.parametrize("phantom", ["torus", "tubes", "y"])
def test_phantoms_are_whole_and_anywhere(phantom: Any) -> None:
    images = phantom_images(phantom, test=6, validation=1, seed=3)
    assert images.test.shape == (6, 52, 26)
    centers = set()
    for image in images.test:
        peak = float(box_downsample(image[None], 2).max())
        assert 0.5 <= peak <= 1.5
        mass = float((image / image.max()).sum())  # square millimetres, as fine voxels have one
        hole = {"torus": (12.0, 80.0), "tubes": (140.0, 161.0), "y": (70.0, 130.0)}[phantom]
        assert hole[0] < mass < hole[1]
        rows = image.sum(1) @ torch.arange(52.0) / image.sum()
        centers.add(round(float(rows), 1))
    assert len(centers) > 3
    with pytest.raises(DataError, match="expected one of torus, tubes, y"):
        phantom_images("cube")  # type: ignore[arg-type]


def test_a_finer_grid_than_the_calibrations(tmp_path: Path) -> None:
    """52 x 26 voxels from 26 x 13 in DEQ-MPI's Table III; here 12 x 8 from 6 x 4."""
    images = phantom_images("torus", test=2, validation=1, grid=GRID, upsampled=2, hole=1e-3)
    assert images.test.shape == (2, 24, 16)
    table, results = evaluate_mpi(images, calibration=calibrated(), snr_db=(25.0,), upsampled=2)
    assert results["truth"].shape == (2, 12, 8)
    assert "x 96 voxels" in table.facts["25 dB"]
    with pytest.raises(DataError, match="the system matrix, refined"):
        evaluate_mpi(pictures(), calibration=calibrated(), snr_db=(25.0,), upsampled=2)
    with pytest.raises(DataError, match="measured"):
        evaluate_mpi(images, snr_db=(25.0,), upsampled=2, data="scanner")
    with pytest.raises(DataError, match="hole"):
        phantom_images("y", hole=1e-3)


def test_a_run_is_a_users_reconstruction_and_its_time() -> None:
    system = prepare_system(calibrated())
    run = Run(L1ADMM(), measured_scenario(system, pictures(), 25.0, 0))
    std = run.problem.test.noise / run.problem.test.y.shape[1] ** 0.5
    expected, _ = Reconstructor(run.problem.prepared, L1ADMM())(run.problem.test.y, noise_std=std)
    assert torch.equal(run(), expected)
    assert run(1).shape == (1, *SHAPE)
    given = Run(L1ADMM(), run.problem, given=True)()
    assert not torch.allclose(given, expected)
    assert run.milliseconds(1) > 0


def test_command_takes_images_by_name_and_the_deep_image_prior(tmp_path: Path) -> None:
    from pyrecon.cli import app
    from pyrecon.cli.evaluate import _images
    from pyrecon.io import mdf

    mdf.write_system_matrix(tmp_path / "sm.mdf", calibrated())
    common = ["evaluate", "mpi", "-s", str(tmp_path / "sm.mdf"), "--snr=25", "--test=1", "--validation=1"]
    result = CliRunner().invoke(app, [*common, "--images", "generated", "--dip", "--dip-iterations=3", "--upsample=2"])
    assert result.exit_code == 0, result.output
    assert "generated vascular trees" in result.stdout
    assert "| DIP | 3 iterations |" in result.stdout
    assert "x 96 voxels" in result.stdout
    assert "Milliseconds per image" in result.stdout
    torus = _images("torus", GRID, test=2, validation=1, tissue=0.0, texture=None, seed=0, upsampled=2)
    assert torus.source.startswith("torus phantoms")
    assert torus.test.shape == (2, 24, 16)
    for wrong, said in (
        (["--images", "torus", "--tissue=0.3"], "--tissue"),
        (["--dip-iterations=3"], "--dip"),
        (["--images", "absent.nii"], "absent.nii"),
    ):
        with pytest.raises(DataError, match=said):
            CliRunner().invoke(app, [*common, *wrong], catch_exceptions=False)


def test_a_papers_figures_stand_beside_its_own_images_and_grids_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vessels on 26 x 13 or 52 x 26 voxels; before, any images on any grid had the vessels' figures beside them."""
    from pyrecon.cli import app
    from pyrecon.experiments.table import Table
    from pyrecon.io import mdf

    asked: list[dict[str, Any]] = []

    def evaluated(images: Images, **options: Any) -> tuple[Table, dict[str, Any]]:
        asked.append(options)
        return Table("t", []), {}

    monkeypatch.setattr("pyrecon.experiments.mpi.evaluate_mpi", evaluated)
    mdf.write_system_matrix(tmp_path / "sm.mdf", calibrated())
    for options, expected in (
        (["--images=generated"], TABLE_1),
        (["--images=generated", "--field=0.6"], TABLE_2),
        (["--images=generated", "--gradient=0.6"], TABLE_2),  # the old name
        (["--images=generated", "--upsample=2"], TABLE_3),
        (["--images=generated", "--upsample=3"], {}),
        (["--images=generated", f"--system-matrix={tmp_path / 'sm.mdf'}"], {}),
        (["--images=y"], None),
        (["--images=torus", "--upsample=2"], None),
    ):
        command = ["evaluate", "mpi", "--test=1", "--validation=1", *options]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert asked[-1]["published"] == expected, options
    assert [options["selection_field"] for options in asked[:3]] == [0.5, 0.6, 0.6]
