"""DEQ-MPI on scanners drawn at random: their data in few coordinates, their turns, their file, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from deq_mpi_runs import NONE, SHAPE, config, source, trained
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.data.mpi import GRID, blurred_rows, box_downsample, prepare_system
from pyrecon.data.vessels import vascular_images
from pyrecon.models import DEQMPI
from pyrecon.models.mpi import FactoredSystem
from pyrecon.models.mpi.method import KAPPA
from pyrecon.physics.mpi import UNSEEN, drawn_calibration, training_seeds
from pyrecon.train import Stage, train_deq_mpi
from pyrecon.train._files import read_tensors, write_tensors
from pyrecon.train.mpi_data import Bench, TrainingData
from pyrecon.train.mpi_scanners import drawn_source, kept_scanners

WHOLE = source(3, (GRID.shape[0], GRID.shape[1]))
SHORT: dict[str, Any] = {"scanners": 2, "pool": 8, "validation": 5, "denoiser": Stage(2, batch=2), "limit": 4}


def data(sources: Any, shape: tuple[int, int] = SHAPE, **changes: Any) -> TrainingData:
    factor = 1 if changes.get("measure", "blurred") == "blurred" else 2
    images = torch.rand(30, factor * shape[0], factor * shape[1], generator=torch.Generator().manual_seed(1))
    return TrainingData.of(sources, config(**changes), images[:24], images[24:])


def gram(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.double().T @ matrix.double()


def differ(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- few coordinates -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("measure", ["blurred", "finer"])
def test_compact_data_have_the_law_of_the_whole(measure: Any) -> None:
    """The same scale, the same distances, and noise as strong within and outside what the model reaches."""
    many = source(2)
    many = replace(many, matrix=many.matrix.repeat(3, 1), layout=None)
    short = many.compact()
    assert short.matrix.shape == (80, 80)
    assert short.rows == many.rows == len(many.matrix)
    assert differ(gram(short.matrix), gram(many.matrix)) < 1e-6
    assert differ(gram(blurred_rows(short.matrix, SHAPE)), gram(blurred_rows(many.matrix, SHAPE))) < 1e-6
    assert short.compact().rows == short.rows
    both = [data(each, measure=measure, snr_db=5.0) for each in (many, short)]
    one, two = (made.benches[0] for made in both)
    assert one.system.unit == pytest.approx(two.system.unit, rel=1e-5)
    assert one.signal_range == pytest.approx(two.signal_range, rel=1e-5)
    assert differ(gram(one.problem.A.matrix), gram(two.problem.A.matrix)) < 1e-5
    assert one.problem.cutoff == pytest.approx(two.problem.cutoff, rel=1e-5)

    images = both[0].images(0, 1).expand(4000, -1, -1)
    found = []
    for made in both:
        batch = made._measure(made.benches[0], images, 0, 1)
        inside = batch.problem.A.pinv(batch.y, rtol=1e-2)
        assert (batch.y[:, -1] == 0).all()  # the ball lies in the range of the matrix
        found.append((batch.radius, inside))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0.0)
    # Of 4000 numbers: the mean within five of its deviations, their spread within 8 %.
    ours, theirs = (inside for _, inside in found)
    deviation = theirs.std(dim=0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * (2 / 4000) ** 0.5 * deviation).all()
    torch.testing.assert_close(ours.std(dim=0), deviation, rtol=0.08, atol=0.0)


def test_a_drawn_scanner_is_its_calibration_in_few_coordinates() -> None:
    """The matrix is a user's, its noise taken out; data are those of the scanner without noise, on a finer grid."""
    settings = config(**SHORT | {"snr_db": 0.0})  # no calibration is too noisy
    drawn = drawn_calibration(6)
    system = prepare_system(drawn.measured(), snr_threshold=drawn.snr_threshold)
    found = drawn_source(6, settings)
    assert found is not None
    assert (found.seed, found.rows, found.shape) == (6, len(system.matrix), GRID.shape)
    assert len(found.matrix) == system.rank
    assert differ(gram(found.matrix), gram(system.matrix)) < 1e-4
    assert found.error is not None
    assert found.forward is not None
    image = torch.rand(1, 26, 13).repeat_interleave(2, 1).repeat_interleave(2, 2)
    quiet = replace(drawn.scanner, receiver=replace(drawn.scanner.receiver, feedthrough=0.0, interference=()))
    exact = (
        prepare_system(
            quiet.calibrate(GRID, noise=0.0), rows=system.rows, whiten="none", denoise=False, background="none"
        ).matrix
        / torch.from_numpy(system.scale.reshape(-1, 1)).float()
    )
    basis = FactoredSystem(system.matrix, GRID.shape, rank=system.rank).Q
    expected = exact @ box_downsample(image).flatten() @ basis
    # Voxels of 1 mm are taken at their middle, those of 2 mm at some points within.
    assert float((found.forward @ image.flatten() - expected).norm()) < 0.01 * float(expected.norm())
    assert drawn_source(13, settings) is None  # 16 rows above the noise
    for seed in UNSEEN:
        with pytest.raises(ValueError, match="to test on"):
            drawn_source(seed, settings)


@pytest.mark.parametrize("snr_db", [15.0, 35.0])
def test_noise_and_error_of_the_matrix_make_the_noise_of_the_run(snr_db: float) -> None:
    """The misfit of true images, per direction, is sigma where the grid does not matter; the error's is limited."""
    settings = config(**SHORT | {"snr_db": snr_db, "kappa": 1.0})
    drawn = drawn_source(6, settings)
    assert drawn is not None
    pool = torch.from_numpy(vascular_images(40, shape=(52, 26), factor=1, peak=(1.0, 1.0)))
    coarse = box_downsample(pool).repeat_interleave(2, 1).repeat_interleave(2, 2)
    bench = Bench.of(drawn, settings, coarse)
    images = coarse / bench.system.unit
    share = float(bench.wrong(images, snr_db).square().mean().sqrt())
    assert share < 0.85
    if snr_db == 35:
        assert share > 0.5  # as much as is allowed
    noise = torch.randn(40, len(drawn.matrix), generator=torch.Generator().manual_seed(0))
    y, radius = bench.measured(images, settings, noise)
    assert bench.factored is not None
    factored = bench.factored
    misfit = ((box_downsample(images).flatten(1) @ factored.V) * factored.s - y[:, :-1]).norm(dim=1)
    found = float((KAPPA * misfit / radius).square().mean().sqrt())  # noise was taken out of the matrix
    assert 0.9 < found < 1.15
    assert (y[:, -1] == 0).all()


# --- turns -----------------------------------------------------------------------------------------------------------
def test_benches_take_turns_and_each_has_the_scale() -> None:
    sources = [source(0), replace(source(1), matrix=5 * source(1).matrix.abs()), source(2).compact()]
    made = data(sources, validation=7)
    for step, turn in ((0, 0), (1, 1), (2, 0), (3, 2), (4, 0), (5, 1), (302, 0), (303, 2)):
        batch, bench = made.measured(step, 4), made.benches[turn]
        assert batch.problem is bench.problem
        torch.testing.assert_close(batch.images, made.images(step, 4))
        assert torch.equal(made.measured(step, 4).y, batch.y)
    shares = made.validation_sets()
    assert [len(part.images) for part in shares] == [3, 2, 1]
    torch.testing.assert_close(made.validation_images()[1] * made.benches[1].system.unit, made.validation[1::4])
    twins = data([source(0), source(0)], validation=7)
    empty = replace(twins, validation=0 * twins.validation).validation_sets()
    assert not torch.equal(empty[0].y, empty[1].y)  # noise of their own
    for step, (bench, given) in enumerate(zip(made.benches, sources, strict=True)):
        assert float(bench.system.matrix.square().sum()) / given.rows == pytest.approx(0.34, rel=1e-4)
        signal = bench.clean(made.images(2 * step - 1 if step else 0, 2000)).square().sum(1).mean() / given.rows
        assert float(signal.sqrt()) == pytest.approx(0.41, rel=0.1)
    lows, highs = zip(*(data(each).signal_range for each in sources), strict=True)
    assert made.signal_range == (min(lows), max(highs))


# --- the file --------------------------------------------------------------------------------------------------------
def test_scanners_are_drawn_once_and_kept(tmp_path: Path) -> None:
    path, shape = tmp_path / "scanners.safetensors", (GRID.shape[0], GRID.shape[1])
    two = config(**SHORT)
    first = kept_scanners(path, two, shape)
    usable = [s for s in (drawn_source(seed, two) for seed in islice(training_seeds(0), 3)) if s is not None]
    assert [s.seed for s in first] == [s.seed for s in usable[:2]]
    again = kept_scanners(path, two, shape, lambda: pytest.fail("drawn again"))
    x = torch.rand(2, GRID.size)
    for a, b in zip(first, again, strict=True):
        assert (a.seed, a.rows, a.shape) == (b.seed, b.rows, b.shape)
        assert torch.equal(a.matrix, b.matrix)
        assert a.forward is not None
        assert b.forward is not None
        assert torch.equal(a.forward, b.forward)
        assert a.error is not None
        assert b.error is not None
        assert torch.equal(a.error.variance(x), b.error.variance(x))
    assert kept_scanners(path, config(), (3, 4)) == []
    with pytest.raises(DataError, match=r"26 x 13 voxels.*has 20 x 20"):
        kept_scanners(path, two, (20, 20))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not the scanners"):
        kept_scanners(path, two, shape)
    path.write_bytes(whole)
    tensors, facts = read_tensors(path, "scanners", most=5)
    unseen, longer = [facts[0], facts[1] | {"seed": UNSEEN[0]}], [facts[0], facts[1] | {"held": 339}]
    nameless = [{key: entry[key] for key in ("held", "seed", "shared", "std")} for entry in facts]
    for given, said in (
        (tensors, unseen),
        (tensors, longer),
        (tensors, nameless),
        (tensors, {}),
        (tensors, [facts[0] | {"std": -1.0}, facts[1]]),
        (tensors | {"matrix": tensors["matrix"].double()}, facts),
        (tensors | {"forward": tensors["forward"] * torch.nan}, facts),
        ({name: part for name, part in tensors.items() if name != "shared"}, facts),
        ({"other": tensors["matrix"]}, facts),
    ):
        write_tensors(path, given, said)
        with pytest.raises(DataError, match="is not the scanners"):
            kept_scanners(path, two, shape)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="is not the scanners"):
        kept_scanners(path, config(**SHORT | {"scanners": 3}), shape)


# --- runs ------------------------------------------------------------------------------------------------------------
def test_a_run_on_three_systems_resumes_bit_by_bit(tmp_path: Path) -> None:
    """Stopped before its scanners are drawn, while images are, and in both stages."""
    settings = config(**SHORT | {"equilibrium": Stage(5, batch=2)})
    whole = trained(tmp_path / "whole", settings, given=WHOLE)
    assert trained(tmp_path / "parts", settings, (1, 4, 7, 10), given=WHOLE) == whole
    kept = [(tmp_path / name / "scanners.safetensors").read_bytes() for name in ("whole", "parts")]
    assert kept[0] == kept[1]
    alone = config(**SHORT | {"equilibrium": Stage(5, batch=2), "scanners": 0})
    trained(tmp_path / "alone", alone, given=WHOLE)
    last = "equilibrium/last.safetensors"
    name = "/state_dict/model.rdn.last.weight"
    assert not torch.equal(load_file(tmp_path / "alone" / last)[name], load_file(tmp_path / "whole" / last)[name])

    card = DEQMPI.load(tmp_path / "whole/weights.safetensors").card
    assert card is not None
    found = kept_scanners(tmp_path / "whole/scanners.safetensors", settings, WHOLE.shape)
    assert card.training["scanners"] == {str(s.seed): s.rows for s in found}
    assert card.training["config"]["scanners"] == 2
    assert not {int(seed) for seed in card.training["scanners"]} & set(UNSEEN)


@pytest.mark.parametrize(
    "changes",
    [NONE | {"end_to_end": Stage(3, batch=2)}, {"gradient": "unrolled", "measure": "finer", "consistency": "none"}],
    ids=["end-to-end", "unrolled"],
)
def test_what_deq_mpi_is_compared_with_trains_on_them_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = train_deq_mpi(tmp_path / "run", WHOLE, config(**SHORT | {"equilibrium": Stage(2, batch=2)} | changes))
    assert model.card is not None
    assert all(-20 < quality < 60 for quality in model.card.training["quality_db"].values())


def test_runs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for changes, said in (
        ({"consistency": "learned"}, r"scanners: 2 have other rows.*'learned'"),
        ({"validation": 2}, "validation: 2 images for 2 scanners"),
        ({"scanners": -1}, "scanners: -1"),
        ({"scanners": 5000}, "scanners: 5000"),
    ):
        with pytest.raises(DataError, match=said):
            config(**SHORT | changes)
    with pytest.raises(DataError, match=r"26 x 13.*has 10 x 8"):
        train_deq_mpi(tmp_path / "run", source(), config(**SHORT))
    value = json.loads(config().to_json())
    del value["scanners"]  # a run of an earlier version
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert type(config()).from_json(tmp_path / "config.json") == config()


# --- the command -----------------------------------------------------------------------------------------------------
def test_command(tmp_path: Path) -> None:
    from pyrecon.cli import app

    run = tmp_path / "run"
    short = ["--scanners=1", "--pool=8", "--validation=4", "--denoiser-steps=1", "--steps=2", "--batch=2", "--limit=3"]
    result = CliRunner().invoke(app, ["train", "deq-mpi", "-o", str(run), *short])
    assert result.exit_code == 0, result.output
    card = DEQMPI.load(run / "weights.safetensors").card
    assert card is not None
    assert len(card.training["scanners"]) == 1
    assert CliRunner().invoke(app, ["train", "deq-mpi", "--resume", str(run)]).exit_code == 0
    with pytest.raises(DataError, match="scanners"):
        CliRunner().invoke(app, ["train", "deq-mpi", "--resume", str(run), "--scanners=2"], catch_exceptions=False)
    with pytest.raises(DataError, match="learned"):
        CliRunner().invoke(
            app,
            ["train", "deq-mpi", "-o", str(tmp_path / "l"), *short, "--consistency=learned"],
            catch_exceptions=False,
        )
    assert not (tmp_path / "l").exists()
    help = CliRunner().invoke(app, ["train", "deq-mpi", "--help"], env={"COLUMNS": "200"})
    assert "--scanners" in help.output
