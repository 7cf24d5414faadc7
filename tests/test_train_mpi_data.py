"""Training data of DEQ-MPI: their scale, and that a batch is a function of seed and step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from deq_mpi_runs import NONE, SHAPE, config, source

from pyrecon._errors import DataError
from pyrecon.data.vessels import VesselStyle, vascular_images
from pyrecon.models import DEQMPI
from pyrecon.models.mpi import FactoredSystem, ScaledSystem
from pyrecon.models.mpi.method import KAPPA
from pyrecon.models.mpi.system import compressed, noise_std
from pyrecon.nn import RDN
from pyrecon.train import Stage
from pyrecon.train.mpi_data import Bench, TrainingData, drawn_images


def data(**changes: Any) -> TrainingData:
    images = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(1))
    return TrainingData.of(source(), config(**changes), images[:24], images[24:])


def test_plain_vessels_are_drawn_on_demand() -> None:
    for name, style in (("plain", VesselStyle.plain()), ("natural", VesselStyle())):
        images = drawn_images(source(), config(vessels=name, seed=4))(2, 3)
        np.testing.assert_array_equal(
            images, vascular_images(3, shape=SHAPE, peak=(1.0, 1.0), style=style, seed=4, first=2)
        )


# --- the scale -------------------------------------------------------------------------------------------------------
def test_scale_is_the_published_one_and_leads_back() -> None:
    images = torch.rand(20, *SHAPE)
    scaled = ScaledSystem.of_matrix(source().matrix, SHAPE, images)
    assert float(scaled.matrix.square().sum(1).mean()) == pytest.approx(0.34, rel=1e-5)
    y = images.flatten(1) @ source().matrix.T
    signal = scaled.data(y)
    assert float(signal.square().mean().sqrt()) == pytest.approx(0.41, rel=1e-5)
    torch.testing.assert_close(signal, (images / scaled.unit).flatten(1) @ scaled.matrix.T, rtol=1e-4, atol=1e-4)
    assert noise_std(20.0) == pytest.approx(0.041)
    assert scaled.radius(20.0) == pytest.approx(0.041 * len(scaled.matrix) ** 0.5)
    with pytest.raises(DataError, match="nothing to scale by"):
        ScaledSystem.of_matrix(0 * source().matrix, SHAPE)
    with pytest.raises(DataError, match="not an image"):
        ScaledSystem.of_matrix(source().matrix, (4, 4, 5))


def test_compressed_system_gives_the_images_of_the_whole_one() -> None:
    """Without learned consistency the r + 1 coordinates of the data are enough, step by step."""
    scaled = ScaledSystem.of_matrix(source().matrix, SHAPE)
    factored = FactoredSystem(scaled.matrix, SHAPE)
    small = compressed(factored, 25.0)
    assert len(small.A.matrix) == factored.rank + 1 < len(scaled.matrix)
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(5, 80, generator=generator) @ scaled.matrix.T
    y += 0.1 * torch.randn(y.shape, generator=generator)
    radius = torch.full((5,), 0.05 * y.shape[1] ** 0.5)  # too small a ball: what no image explains matters
    torch.manual_seed(0)
    net = DEQMPI(RDN(4, 4, 1, 1))
    whole = net.reconstruct(scaled.problem(25.0), y, radius).value
    short = net.reconstruct(small, factored.coordinates(y), radius).value
    torch.testing.assert_close(short, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes", [NONE | {"end_to_end": Stage(1)}, {"gradient": "unrolled"}], ids=["alone", "unrolled"]
)
def test_what_depends_on_its_start_has_the_published_one(changes: dict[str, Any]) -> None:
    settings = config(**changes)
    images = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(1))
    direct = TrainingData.of(source(), settings, images[:24], images[24:]).benches[0].problem
    values = direct.A.singular_values()
    kept = int((values > 1e-4 * values[0]).sum())
    assert direct.rank == round(250 / 338 * kept)
    y = torch.randn(2, len(direct.A.matrix), generator=torch.Generator().manual_seed(2))
    u, s, vh = torch.linalg.svd(direct.A.matrix.double(), full_matrices=False)
    expected = (y.double() @ u[:, : direct.rank] / s[: direct.rank]) @ vh[: direct.rank]
    torch.testing.assert_close(direct.start(y)[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert data().benches[0].problem.rank is None


def test_row_layout_is_where_the_scan_has_its_rows() -> None:
    from pyrecon.data.mpi import prepare_system
    from pyrecon.data.raw import Grid
    from pyrecon.models.mpi.system import row_layout
    from pyrecon.physics.mpi import Scanner

    scanner = replace(Scanner(), angles=4, harmonics=(2, 3))
    system = prepare_system(scanner.calibrate(Grid((6, 4), (2e-3, 2e-3), (0.0, 0.0)), noise=0.1))
    layout = row_layout(system)
    assert layout is not None
    assert layout.grid == (4, len(scanner.frequencies))
    period, channel, frequency = system.rows.T
    assert channel.max() == 0
    np.testing.assert_array_equal(layout.rows.numpy() // layout.grid[1], period)
    np.testing.assert_array_equal(layout.rows.numpy() % layout.grid[1], frequency)
    assert layout.used == frequency.max() + 1
    one = prepare_system(replace(scanner, angles=1).calibrate(Grid((6, 4), (2e-3, 2e-3), (0.0, 0.0)), noise=0.1))
    assert row_layout(one) is None


# --- data ------------------------------------------------------------------------------------------------------------
def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, other = data(), data()
    other.measured(0, 4)
    for name in ("images", "y", "radius"):
        assert torch.equal(getattr(first.measured(7, 4), name), getattr(other.measured(7, 4), name))
    assert not torch.equal(first.measured(7, 4).images, first.measured(8, 4).images)
    assert not torch.equal(first.measured(7, 4).images, data(seed=1).measured(7, 4).images)


def test_images_are_those_of_the_pool_in_all_mirrored_forms_and_brightness() -> None:
    made = data()
    batch = made.images(3, 200)
    ratios, forms = [], set()
    for image in batch:
        for form in range(4):
            mirrored = image.flip([d for d in (0, 1) if form >> d & 1]) if form else image
            ratio = (mirrored / made.pool * made.benches[0].system.unit).flatten(1)
            for r in ratio[(ratio.amax(1) - ratio.amin(1)) < 1e-4]:
                ratios.append(float(r[0]))
                forms.add(form)
    assert len(ratios) == 200
    assert forms == {0, 1, 2, 3}
    assert 0.5 <= min(ratios) < 0.55
    assert 1.45 < max(ratios) <= 1.5


@pytest.mark.parametrize("consistency", ["ball", "learned"])
@pytest.mark.parametrize("measure", ["blurred", "finer"])
def test_signals_and_noise_have_the_stated_strength(measure: Any, consistency: Any) -> None:
    shape = SHAPE if measure == "blurred" else (20, 16)
    images = torch.rand(30, *shape, generator=torch.Generator().manual_seed(1))
    made = TrainingData.of(source(), config(measure=measure, consistency=consistency), images[:24], images[24:])
    batch = made.measured(0, 64)
    assert batch.images.shape == (64, *SHAPE)
    (bench,) = made.benches
    if consistency == "ball":  # its radius has kappa
        half = TrainingData.of(source(), config(measure=measure, kappa=0.5), images[:24], images[24:]).measured(0, 64)
        torch.testing.assert_close(2 * half.radius, batch.radius)
    signal = bench.clean(made.images(0, 1000)).square().mean().sqrt()
    assert float(signal) == pytest.approx(0.41, rel=0.1)
    # The model that reads the data is not the one that made them, but near it.
    misfit = torch.linalg.vector_norm(batch.images.flatten(1) @ batch.problem.A.matrix.T - batch.y, dim=1)
    assert (misfit > 0.7 * batch.radius).all()  # of the 78 directions of a ball in the range of the matrix, within 8 %
    assert float((misfit / batch.radius).square().mean()) > 0.9
    assert (len(batch.problem.A.matrix) < 82) == (consistency == "ball")
    assert float(bench.system.matrix.square().sum(1).mean()) == pytest.approx(0.34, rel=1e-4)
    low, high = made.signal_range
    assert low < 0.41 < high


def test_the_ball_of_a_matrix_that_was_cut_is_smaller() -> None:
    """By :data:`KAPPA`, and in as many directions as were left."""
    settings, made = config(kappa=0.5), source()
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, len(made.matrix), generator=torch.Generator().manual_seed(1))
    radii = {}
    for rank in (None, 4):
        bench = Bench.of(replace(made, rank=rank), settings, images)
        assert bench.factored is not None
        radii[rank] = bench.measured(images, settings, noise)[1] / bench.factored.rank**0.5
        assert rank in (None, bench.factored.rank)
    torch.testing.assert_close(radii[None], torch.full((3,), 0.5 * noise_std(settings.snr_db)))
    torch.testing.assert_close(radii[4], KAPPA * radii[None])
