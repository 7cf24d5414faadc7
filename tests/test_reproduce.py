"""The paper's tables and figures with few images and random networks: that they say what they should."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app, main
from pyrecon.data.raw import MPICalibration
from pyrecon.experiments import deq_mpi
from pyrecon.experiments.deq_mpi import RECIPES, Sizes, Study, ablations, published, tables, training_images
from pyrecon.experiments.deq_mpi.study import LEVELS, Recipe
from pyrecon.experiments.mpi_data import measured_scenario
from pyrecon.experiments.table import Listing, Row, Table
from pyrecon.models import DEQMPI
from pyrecon.models.deq_mpi import new_card
from pyrecon.models.mpi.system import row_layout
from pyrecon.nn import RDN, LearnedConsistency
from pyrecon.physics.mpi import Scanner


def every_fourth(calibrate: Callable[..., MPICalibration]) -> Callable[..., MPICalibration]:
    """Of the frequencies: 1570 rows for 338 voxels, which are decomposed in a quarter of the time of 5478."""

    def thinned(*args: Any, **options: Any) -> MPICalibration:
        whole = calibrate(*args, **options)
        assert whole.background is not None
        return replace(
            whole,
            spectrum=whole.spectrum[:, :, ::4],
            frequencies=whole.frequencies[::4],
            background=whole.background[..., ::4],
        )

    return thinned


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """With a small random network for every model."""
    monkeypatch.setattr(Scanner, "calibrate", every_fourth(Scanner.calibrate))
    torch.manual_seed(0)
    for name, recipe in RECIPES.items():
        model = DEQMPI(RDN(4, 4, 1, 1), iterations=4)
        model.card = new_card(recipe.changes.get("snr_db", 25.0), (26, 13), (0.05, 1.0), role=recipe.role)
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        model.save(folder / "weights.safetensors")
    small = Study(tmp_path, "full", sizes=Sizes(test=3, validation=2, budget=4, dip=3, repeats=3))
    small.__dict__["_calibrations"] = _calibrations
    return small


_calibrations: dict[float, object] = {}  # one for all tests: they take a second each


def test_published_figures_hold_together() -> None:
    for table in (published.TABLE_1, published.TABLE_2, published.TABLE_3, published.TABLE_4):
        assert set(table) == set(published.TABLE_5)
        assert all(len(row) == 3 for row in table.values())
    # The leads that the paper states in its text.
    for figures, leads in ((published.TABLE_1, (2.8, 1.7)), (published.TABLE_2, (2.5, 1.3))):
        ours = figures["DEQ-MPI"]
        for rivals, lead in zip((("l1-ADMM", "TV-ADMM", "Hyb-ADMM", "l2-ART"), ("PP-MPI",)), leads, strict=True):
            mean = sum(ours[c][0] - max(figures[r][c][0] for r in rivals) for c in ours) / len(ours)
            assert mean == pytest.approx(lead, abs=0.15)  # two printed digits of each, and of the lead


def test_a_table_of_vessels(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SNRS", (25.0,))
    table, pictures = tables.table_2(study)
    assert isinstance(table, Table)
    assert table.columns == ["25 dB"]
    kinds = {(row.method, row.kind) for row in table.rows}
    assert {
        ("DEQ-MPI", "l2-ball"),
        ("PP-MPI", "denoiser, tuned"),
        ("DIP", "3 iterations"),
        ("l2-ART", "tuned"),
    } <= kinds
    (row,) = (row for row in table.rows if row.kind == "l2-ball")
    assert row.published["25 dB"] == published.TABLE_2["DEQ-MPI"][25.0]
    assert len(row.psnr["25 dB"]) == 3
    assert any("leads the best tuned classical method" in note for note in table.notes)
    assert any(note.startswith("Control: Hyb-ADMM") for note in table.notes)
    assert deq_mpi.picture(pictures, 2).get_axes()


def test_weights_of_another_snr_are_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "evaluate_mpi", lambda *a, snr_db, **k: (Table("t", [f"{snr_db[0]:g} dB"]), {}))
    study.scale = "quick"
    monkeypatch.setattr(study, "nearest", lambda kind, snr: f"{kind}-25dB")
    notes = {
        snr: tables._evaluated(study, None, snr, ("deq-mpi",), selection_field=0.5, upsampled=1)[0].notes
        for snr in (15.0, 25.0)
    }
    assert notes == {15.0: ["15 dB: the weights are deq-mpi-25dB, there are no deq-mpi-15dB."], 25.0: []}


def test_leads_are_over_the_best_rival_of_each_column() -> None:
    values = {"l1-ADMM": (20.0, 31.0), "TV-ADMM": (22.0, 30.0), "PP-MPI": (23.0, 29.0), "DEQ-MPI": (25.0, 33.0)}
    table = Table("t", ["a", "b"])
    for name, pair in values.items():
        kind = "l2-ball" if name == "DEQ-MPI" else "tuned"
        table.rows.append(Row(name, kind, psnr={c: [v] for c, v in zip("ab", pair, strict=True)}))
    (note,) = tables._margins(table)
    assert "by 2.5 dB" in note  # (25 - 22 + 33 - 31) / 2
    assert "at its best by 3.0 dB" in note


def test_figures_have_their_numbers(study: Study) -> None:
    study.scale = "quick"
    drawing = deq_mpi.FIGURES[10](study)
    rows = list(csv.reader(drawing.to_csv().splitlines()))
    assert rows[0] == ["trained at", "pSNR, dB"]
    assert [row[0] for row in rows[1:]] == ["0.3 T/m", "0.5 T/m", "0.6 T/m"]
    assert drawing.figure.get_axes()


def test_models_ship_or_are_trained_where_a_run_left_off(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study.weights("denoiser")
    assert path.endswith("models/denoiser/weights.safetensors")  # at full scale shipped ones do not count
    study.scale = "quick"
    assert study.weights("denoiser") == "denoiser"
    assert study.nearest("deq-mpi", 25.0) == "deq-mpi-25dB"
    assert study.nearest("deq-mpi", 20.0) in ("deq-mpi-15dB", "deq-mpi-25dB")
    calls = []
    monkeypatch.setattr(
        "pyrecon.experiments.study.train", lambda system, folder, *a, **k: calls.append((folder.name, k["resume"]))
    )
    monkeypatch.setattr("pyrecon.experiments.study.shipped_weights", lambda role=None: {})
    for name in ("end-to-end-25dB", "denoiser"):
        (study.folder / "models" / name / "weights.safetensors").unlink()
    (study.folder / "models/denoiser/config.json").write_text("{}")
    study.weights("end-to-end-25dB")
    assert calls == [("denoiser", True), ("end-to-end-25dB", False)]
    with pytest.raises(DataError, match="expected one of denoiser"):
        study.weights("nonsense")


def test_what_learned_consistency_has_learned(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside balls whose radius matters; and an image of a known misfit has that misfit."""
    monkeypatch.setattr(ablations, "SNRS", (25.0,))
    monkeypatch.setattr(ablations, "_SAME_ROWS", {"of training": Scanner()})
    layout = row_layout(study.system())
    assert layout is not None
    consistency = LearnedConsistency(layout)
    consistency.become_projection()
    known = DEQMPI.load(study.weights("deq-mpi-25dB"))
    model = DEQMPI(known.rdn, consistency, iterations=4, penalty=known.penalty)
    model.card = new_card(25.0, (26, 13), (0.05, 1.0))
    model.save(study.folder / "models/deq-mpi-learned-25dB/weights.safetensors")
    table = deq_mpi.EXPERIMENTS["learned"](study)
    (line,) = table.lines
    assert len(line) == len(table.heads)
    values = dict(zip(table.heads, line, strict=True))
    assert float(values["learned"]) != float(values["ball, kappa 1.4"]) != float(values["ball, kappa 1"])

    problem = measured_scenario(study.system(), study.test_images(), 25.0, 0)
    system, images = problem.system, problem.test.images
    away = 0.7 * system.rank**0.5 * problem.test.noise[:, None] / problem.test.y.shape[1] ** 0.5 * system.Q[:, 3]
    outside = torch.randn_like(problem.test.y)  # that no image explains, and that does not count
    outside -= outside @ system.Q @ system.Q.T
    moved = images.flatten(1) @ system.matrix.T + away + outside
    test = replace(problem.test, y=moved, coordinates=system.coordinates(moved))
    assert ablations._kappa_of(images, replace(problem, test=test)) == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_rivals_are_trained_on_as_many_images_of_the_same_scanners(level: float) -> None:
    study, seen = Study(Path("unused")), {}
    for kind in ("deq-mpi", "unrolled", "end-to-end"):
        runs = study.settings(f"{kind}-{level:g}dB")
        stages = [getattr(config, name) for config in runs.values() for name in config.stages]
        own = runs[f"{kind}-{level:g}dB"]
        seen[kind] = sum(stage.steps * stage.batch for stage in stages), own.scanners, own.vessels, own.pool
    assert len(set(seen.values())) == 1, seen


def test_a_search_on_a_finer_grid_has_fewer_images() -> None:
    study = Study(Path("unused"), sizes=Sizes(test=4, validation=8, budget=1, dip=1, repeats=1))
    assert [len(study.test_images(factor).validation) for factor in (1, 2)] == [8, 2]
    assert [len(study.test_images(factor).test) for factor in (1, 2)] == [4, 4]


def test_an_ablation_has_a_row_for_each_variant_and_its_seeds(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def weights(name: str, recipe: Recipe) -> str:
        trained.append((name, recipe.changes["seed"], recipe.role))
        return study.weights("unrolled-25dB" if recipe.role == "unrolled" else "deq-mpi-25dB")

    monkeypatch.setattr(study, "trained", weights, raising=False)
    path = study.folder / "models"
    monkeypatch.setattr(study, "weights", lambda name: str(path / name / "weights.safetensors"))
    study.scale = "quick"
    table = deq_mpi.EXPERIMENTS["gradients"](study)
    assert [line[0] for line in table.lines] == list(ablations.GRADIENTS.rows)
    assert [line[2].count(",") for line in table.lines] == [2, 2, 2]
    assert trained[-1] == ("unrolled-seed2", 2, "unrolled")
    assert len(trained) == 9
    assert "120 steps of 16 images in the stage 'equilibrium'" in table.notes[1]


def test_variants_differ_in_what_their_names_say(study: Study) -> None:
    study.scale = "quick"
    configs = {name: study.config(recipe) for name, recipe in ablations.VARIANTS.items()}
    assert {name: c.gradient for name, c in configs.items() if c.gradient != "implicit"} == {
        "jacobian-free": "jacobian-free",
        "unrolled": "unrolled",
    }
    assert [configs[name].consistency for name in ("implicit", "learned", "exact")] == ["ball", "learned", "none"]
    for name, stages, start in (
        ("start-pretrained", ("projection", "equilibrium"), "denoiser"),
        ("start-random-denoiser", ("projection", "equilibrium"), None),
        ("start-random-consistency", ("equilibrium",), "denoiser"),
        ("start-random", ("equilibrium",), None),
        ("start-projection", ("equilibrium",), "denoiser"),
    ):
        assert (configs[name].stages, ablations.VARIANTS[name].initial) == (stages, start)
    assert configs["start-noise-free"].projection_noise == (0.0, 0.0)
    assert {c.pool for c in configs.values()} == {3000}
    study.scale = "full"
    assert study.config(ablations.VARIANTS["implicit"]).pool == 33_692
    rows = [
        name
        for table in (ablations.GRADIENTS, ablations.CONSISTENCY, ablations.INITIALISATION)
        for name in table.rows.values()
    ]
    assert set(rows) == set(configs)
    assert set(ablations.INITIALISATION.published) < set(ablations.INITIALISATION.rows)


def test_sessions_compare_a_new_calibration_with_the_old_one(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "SNRS", (25.0,))
    monkeypatch.setattr(ablations, "SEEDS", (0, 1))
    learned = DEQMPI(RDN(4, 4, 1, 1), LearnedConsistency(row_layout(study.system())), iterations=4)
    learned.consistency.become_projection()
    learned.card = new_card(25.0, (26, 13), (0.05, 1.0))
    for name in ("deq-mpi-learned-25dB", "deq-mpi-learned-35dB"):
        learned.save(study.folder / "models" / name / "weights.safetensors")
    table = deq_mpi.EXPERIMENTS["sessions"](study)
    assert [line[:2] for line in table.lines] == [
        ["25 dB", "Hyb-ADMM"],
        ["25 dB", "DEQ-MPI, l2-ball"],
        ["25 dB", "DEQ-MPI, learned consistency"],
    ]
    same, anew, old = (float(text.partition(" ")[0]) for text in table.lines[0][2:])
    assert abs(anew - same) < 2  # another state of the scanner is as good a scanner
    assert old < same - 2  # whose matrix is not


def test_starts_are_those_of_more_and_more_singular_values(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "SNRS", (35.0,))
    table = deq_mpi.EXPERIMENTS["starts"](study)
    assert len(table.lines) == 8
    at_35 = [float(line[2]) for line in table.lines[:4]]
    assert at_35[1] < at_35[2] < at_35[3]  # least squares gains from every one as long as noise is small
    few, many = (float(line[2]) for line in table.lines[5:8:2])
    assert few < many


def test_training_images_are_compared_on_the_same_data(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")
    monkeypatch.setattr(training_images, "SNRS", (25.0,))
    path = study.folder / "models"
    monkeypatch.setattr(study, "trained", lambda name, recipe: str(path / "deq-mpi-25dB" / "weights.safetensors"))
    without = deq_mpi.EXPERIMENTS["images"](study)
    assert without.heads == ["SNR", "scanner", "trained on", "retina", "generated", "plain"]
    assert [line[1:3] for line in without.lines] == [
        [scanner, label]
        for scanner in ("of training", "unseen")
        for label in ("weights that ship", "plain vessels", "generated vessels")
    ]
    assert without.lines[0][3:] != without.lines[3][3:]  # another scanner

    volume = np.zeros((100, 70, 60), np.float32)
    volume[:, 30:33, :] = 1
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii")
    study.angiogram = tmp_path / "v.nii"
    table = deq_mpi.EXPERIMENTS["images"](study)
    assert table.heads[3] == "angiogram"
    assert [line[2] for line in table.lines[:5]][3:] == ["an angiogram", "generated less angiogram"]
    assert set(table.lines[4][3:]) == {"+0.00 ± 0.00"}  # the same weights here
    assert [line[4:] for line in table.lines[:3]] == [line[3:] for line in without.lines[:3]]


def test_recipes_of_training_images_differ_in_their_images(study: Study, tmp_path: Path) -> None:
    study.scale = "quick"
    kinds = {kind: training_images.recipe(kind, 35.0) for kind in training_images.KINDS}
    configs = {kind: study.config(recipe) for kind, recipe in kinds.items()}
    assert {kind: c.vessels for kind, c in configs.items()} == {
        "plain": "plain",
        "natural": "natural",
        "angiogram": "natural",
    }
    assert {replace(c, vessels="natural") for c in configs.values()} == {configs["natural"]}
    assert configs["natural"].penalty == 25.0
    assert configs["natural"].stages == ("equilibrium",)
    assert study.source(kinds["natural"]).angiogram is None
    with pytest.raises(DataError, match="--angiogram"):
        study.source(kinds["angiogram"])


def test_command_writes_whole_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def listing(study: Study) -> tuple[Listing, dict[str, torch.Tensor]]:
        runs.append(study.scale)
        return Listing("Times", ["method", "ms"], [["ART", "3"]], ["on this machine"]), {}

    monkeypatch.setitem(deq_mpi.TABLES, "V", listing)
    command = ["reproduce", "deq-mpi", "-o", str(tmp_path / "out"), "--table", "V"]
    for text in ("written", "is there"):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0
        assert text in result.output
    assert runs == ["quick"]
    assert (tmp_path / "out/table-V.md").read_text().splitlines()[-1] == "- on this machine"
    assert (tmp_path / "out/table-V.csv").read_text() == "method,ms\nART,3\n"
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"--output: .*file cannot be made"):
        CliRunner().invoke(app, [*command[:3], str(tmp_path / "file"), "--table", "V"], catch_exceptions=False)
    for wrong in (
        ["--experiment", "none"],
        ["--table", "VI"],
        ["--figure", "5"],
        ["--images", str(tmp_path / "absent.nii")],
        ["--angiogram", str(tmp_path / "absent.nii")],
    ):
        with pytest.raises(DataError, match=wrong[0]):
            CliRunner().invoke(app, [*command[:4], *wrong], catch_exceptions=False)


def test_an_interrupt_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(study: Study) -> tuple[Listing, dict[str, torch.Tensor]]:
        raise KeyboardInterrupt

    monkeypatch.setitem(deq_mpi.TABLES, "V", interrupted)
    monkeypatch.setattr(sys, "argv", ["pyrecon", "reproduce", "deq-mpi", "-o", str(tmp_path), "--table", "V"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "interrupted; nothing was left half-written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
