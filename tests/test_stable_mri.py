"""Tables of stable MRI: estimates by their laws, metrics, the curve of intensities, tables from a tiny study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from pyrecon import io, metrics
from pyrecon._errors import DataError
from pyrecon.data.magnitudes import draw_magnitudes
from pyrecon.experiments.stable_mri import PAPER, StableMRIStudy, estimates, forms, published
from pyrecon.experiments.stable_mri import study as study_module
from pyrecon.experiments.stable_mri.intensity import IntensityFit
from pyrecon.experiments.stable_mri.study import (
    MASKS,
    METHODS,
    NOISE,
    Amounts,
    brain_slices,
    correlations,
    scores,
)
from pyrecon.experiments.study import reproduce
from pyrecon.models import GenerativePrior
from pyrecon.models.weights import Card
from pyrecon.ops import tv_prox
from pyrecon.physics.masks import NAMES, named_mask
from pyrecon.train.magnitude_scans import Batch, ScanConfig, scanner_of

AMOUNTS = Amounts(test=2, validation=2, budget=2, iterations=8, chains=2, burn_in=4, samples=6, thinning=2)


@dataclass
class Gaussian:
    """``R / T = |u - mean|^2 / (2 width^2)``."""

    mean: float
    width: float
    temperature: float = 3e-3

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        gradient = self.temperature / self.width**2 * (u - self.mean)
        return 0.5 * (gradient * (u - self.mean)).flatten(1).sum(1), gradient


def scanned(coils: int, mask: Tensor, noise: float = NOISE, count: int = 2, size: int = 32) -> Batch:
    config = ScanConfig(size=size, coils=coils, noise_low=noise, noise_high=noise)
    images = torch.from_numpy(draw_magnitudes(size, 0, count, 7))
    return scanner_of(config, images, images).scanned(images, 0, mask)


EVERYTHING = torch.ones(1, 1, 1, 1, dtype=torch.bool)


# --- estimates -------------------------------------------------------------------------------------------------------
def test_all_data_without_noise_are_the_image() -> None:
    for coils in (1, 4):
        batch = scanned(coils, EVERYTHING, 0.0)
        for image in (estimates.zero_filled(batch), estimates.tv(batch, 0.0, 5)):
            torch.testing.assert_close(image, batch.images, atol=1e-5, rtol=1e-4)
        gradient = estimates.gradient_of_data(batch, batch.maps)
        assert float(gradient(batch.images).abs().max()) < 1e-5


def test_the_gradient_is_that_of_the_data() -> None:
    batch = scanned(3, named_mask("gaussian-8x", (32, 32), batch=2))
    wide = Batch(*(v.to(torch.complex128 if v.is_complex() else torch.float64) for v in vars(batch).values()))
    gradient = estimates.gradient_of_data(wide, wide.maps)
    u, d = torch.rand(2, 2, 32, 32, dtype=torch.float64)

    def energy(image: Tensor) -> Tensor:
        coils = torch.fft.ifftshift(wide.maps * image[:, None], (-2, -1))
        k = torch.fft.fftshift(torch.fft.fft2(coils, norm="ortho"), (-2, -1))
        return 0.5 * (wide.mask * k - wide.y).abs().square().flatten(1).sum(1)

    h = 1e-4  # of a quadratic the central difference is exact but for rounding
    slope = (energy(u + h * d) - energy(u - h * d)) / (2 * h)
    torch.testing.assert_close((gradient(u) * d).flatten(1).sum(1), slope, rtol=1e-8, atol=1e-8)


def test_tv_of_all_data_is_its_proximal_map() -> None:
    batch = scanned(1, EVERYTHING, 0.1)
    start = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(batch.y[:, 0], (-2, -1)), norm="ortho"), (-2, -1))
    expected = tv_prox(start.real, 0.1, iterations=2000, nonneg=True)
    torch.testing.assert_close(estimates.tv(batch, 0.1, 200), expected, atol=2e-3, rtol=0)
    assert float(estimates.tv(batch, 0.1, 200).min()) >= 0


def test_map_of_all_data_is_known_in_closed_form() -> None:
    batch, prior = scanned(3, EVERYTHING), Gaussian(0.5, 0.2)
    unit, weight = torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.1])
    found = estimates.map_known(batch, prior, weight, 200, unit)
    curve = (weight * prior.temperature / prior.width**2).view(-1, 1, 1)
    data = -estimates.gradient_of_data(batch, batch.maps)(torch.zeros_like(batch.images)) / unit.view(-1, 1, 1)
    expected = ((data + curve * prior.mean) / (1 + curve)).clamp(min=0) * unit.view(-1, 1, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_joint_estimation_beats_zero_filling() -> None:
    batch = scanned(6, named_mask("gaussian-8x", (48, 48), batch=2, seed=1), size=48)
    unit = torch.ones(2)
    image, maps = estimates.joint(batch, estimates.charbonnier(), torch.full((2,), 0.1 * NOISE), 60, unit)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(2, 48, 48), atol=1e-4, rtol=0)
    better = metrics.psnr(image, batch.images) - metrics.psnr(estimates.zero_filled(batch), batch.images)
    assert float(better.min()) > 2


@pytest.mark.parametrize(("chains", "samples"), [(1, 1500), (500, 3)])
def test_the_posterior_of_a_gaussian_is_known(chains: int, samples: int) -> None:
    """Per pixel of all data: precision p = 2 / sigma^2 + 1 / width^2; ULA's variance is larger by 1 / (1 - h p / 4)."""
    sigma, prior = 0.1, Gaussian(0.5, 0.1)
    batch = scanned(2, EVERYTHING, sigma)
    batch = Batch(batch.y + 2 * estimates_of_ones(batch), batch.mask, batch.images, batch.maps)  # far from u = 0
    unit = torch.tensor([1.0, 2.0])
    start = batch.images + 2
    mean, spread = estimates.posterior(
        batch, prior, batch.maps, start, sigma, unit, chains=chains, burn_in=200, samples=samples, thinning=4, seed=3
    )
    noise = (sigma / unit.double()).square().view(-1, 1, 1)
    precision = 2 / noise + 1 / prior.width**2
    data = -estimates.gradient_of_data(batch, batch.maps)(torch.zeros_like(batch.images)).double() / unit.view(-1, 1, 1)
    expected = (2 / noise * data + prior.mean / prior.width**2) / precision * unit.view(-1, 1, 1)
    step = 1 / (2 / noise + 1 / (2 * prior.temperature))
    deviation = (1 / precision / (1 - step * precision / 4)).sqrt() * unit.view(-1, 1, 1)
    # 1500 states of correlation rho = (1 - h p / 2)^4 <= 0.2: 1000 independent ones; 2048 pixels, 4.5 deviations.
    assert float(((1 - step * precision / 2).abs() ** 4).max()) < 0.2
    assert float(((mean - expected).abs() / deviation).max()) < 4.5 / 1000**0.5
    assert float((spread / deviation - 1).abs().max()) < 4.5 / 2000**0.5


def test_every_image_has_noise_of_its_own() -> None:
    batch, prior = scanned(2, EVERYTHING, 0.1), Gaussian(0.5, 0.1)
    twice = Batch(*(v[:1].expand(2, *v.shape[1:]) for v in (batch.y, batch.mask, batch.images, batch.maps)))
    mean, _ = estimates.posterior(
        twice, prior, twice.maps, twice.images, 0.1, torch.ones(2), chains=2, burn_in=5, samples=3, thinning=2, seed=3
    )
    assert float((mean[0] - mean[1]).abs().median()) > 1e-3


def estimates_of_ones(batch: Batch) -> Tensor:
    """Data of an image of ones."""
    coils = torch.fft.ifftshift(batch.maps, (-2, -1))
    return torch.fft.fftshift(torch.fft.fft2(coils, norm="ortho"), (-2, -1))


def test_cg_sense_needs_a_centre() -> None:
    mask = torch.zeros(2, 1, 48, 1, dtype=torch.bool)
    mask[0, :, ::2] = mask[0, :, 16:32] = True
    mask[1, :, 1::2] = True
    batch = scanned(6, mask, size=48)
    found = estimates.cg_sense(batch, NOISE)
    assert float(metrics.psnr(found[:1], batch.images[:1])) > 25
    assert bool(found[1].isnan().all())
    worst = scores(found, batch.images)
    assert (worst["psnr"][1], worst["nmse"][1], worst["ssim"][1]) == (0, 1, 0)


# --- numbers ---------------------------------------------------------------------------------------------------------
def test_scores_are_those_of_fastmri() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    truth = torch.from_numpy(draw_magnitudes(48, 0, 3, 1)) * 3
    found = truth + 0.1 * torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(0))
    numbers = scores(found, truth)
    for i in range(3):
        a, b = truth[i].double().numpy(), found[i].double().numpy()
        peak = a.max()
        assert numbers["psnr"][i] == pytest.approx(skimage.peak_signal_noise_ratio(a, b, data_range=peak), rel=1e-6)
        assert numbers["ssim"][i] == pytest.approx(skimage.structural_similarity(a, b, data_range=peak), rel=1e-6)
        assert numbers["nmse"][i] == pytest.approx(np.linalg.norm(a - b) ** 2 / np.linalg.norm(a) ** 2, rel=1e-6)


def test_correlations() -> None:
    a, b = torch.rand(2, 3, 8, 8).unbind()
    known = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(correlations(a, b), torch.tensor(known, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert correlations(torch.ones(1, 4, 4), b[:1, :4, :4]).tolist() == [0]


def test_a_curve_that_is_a_spline_is_found() -> None:
    """The knots are the published five: a spline of them comes back, one of more does not."""
    x = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.view(-1)[:2] = torch.tensor([0.0, 1.0])
    curve = CubicSpline(np.linspace(0, 1, 5), [0.0, 0.5, 0.4, 0.9, 1.3])
    wanted = torch.from_numpy(curve(x.numpy()))
    fit = IntensityFit.of(x, wanted)
    # Points that hold the curve where no pixel lies weigh less than a tenth of a pixel in all.
    torch.testing.assert_close(fit(x), wanted, atol=1e-5, rtol=0)
    finer = torch.from_numpy(CubicSpline(np.linspace(0, 1, 12), np.sin(14 * np.linspace(0, 1, 12)))(x.numpy()))
    few, many = (float((IntensityFit.of(x, finer, knots=n)(x) - finer).abs().max()) for n in (5, 12))
    assert few > 0.05 > 10 * many
    # It goes on straight, and keeps the kind of what it is given.
    ends = fit(torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64))
    assert float(ends[2] - ends[1]) == pytest.approx(float(ends[1] - ends[0]), rel=1e-9)
    assert fit(x.float()).dtype == torch.float32


def test_a_curve_without_pixels_in_the_middle_is_tame() -> None:
    x = torch.cat([torch.rand(500) * 0.2, torch.ones(1)])
    fit = IntensityFit.of(x, 2 * x)
    at = torch.linspace(0, 1, 50)
    torch.testing.assert_close(fit(at), 2 * at, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("found", "reference", "text"),
    [
        (torch.ones(4), torch.ones(4), "found: is 1 everywhere"),
        (torch.rand(4), torch.rand(5), "found: shape"),
        (torch.tensor([0.0, torch.nan]), torch.zeros(2), "NaN"),
    ],
)
def test_no_curve_through_what_is_none(found: Tensor, reference: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        IntensityFit.of(found, reference)


def test_published_tables_are_whole() -> None:
    assert set(published.TABLE_1) == set(MASKS["single"])
    assert set(published.TABLE_2_IN) == set(published.TABLE_2_OUT) == set(MASKS["parallel"])
    assert set(NAMES) == {*MASKS["single"], *MASKS["parallel"]}
    for table in (published.TABLE_1, published.TABLE_2_IN, published.TABLE_2_OUT):
        for row in table.values():
            assert len(row) == 5
            for psnr, nmse, ssim in row.values():
                assert 12 < psnr < 37
                assert 0.2 < nmse < 65
                assert 0.4 < ssim < 1
    # PSNR and NMSE of a table belong together: what differs is the images' mean square over their peak's.
    assert published.TABLE_1["random-3x"]["map"] == (30.87, 1.34, 0.86)
    assert published.TABLE_2_IN["radial-11x"]["varnet"] == (20.56, 10.13, 0.69)
    assert published.TABLE_2_OUT["gaussian-8x"]["map*"] == (32.09, 1.25, 0.75)
    for mask, row in published.TABLE_2_IN.items():
        level = {name: cell[0] + 10 * np.log10(cell[1]) for name, cell in row.items()}
        assert np.ptp(list(level.values())) < 6, mask


# --- the study -------------------------------------------------------------------------------------------------------
class Small(StableMRIStudy):
    def config(self, recipe: Any) -> Any:
        config = super().config(recipe).changed({
            "pool": 4, "validation": 2, "validate_every": 2, "width": 2, "pools": 2, "cascades": 2,
            "sensitivity_width": 2, "sensitivity_pools": 2, "reconstruction.steps": 2, "reconstruction.batch": 2,
            "reconstruction.warm_up": 0,
        })  # fmt: skip
        return config if config.network == "unet" else config.changed({"coils": 3})


def few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "single", ("cartesian-4x", "spiral-5x"))
    monkeypatch.setitem(MASKS, "parallel", ("cartesian-4x", "gaussian-8x"))


def test_tables_are_made_with_a_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_masks(monkeypatch)
    torch.manual_seed(0)
    prior = GenerativePrior(32, 4)
    prior.card = Card("generative", "prior", (32, 32), {"images": "heads"})
    prior.save(tmp_path / "prior.safetensors")
    options: dict[str, Any] = {"prior": str(tmp_path / "prior.safetensors"), "sizes": AMOUNTS}
    study = Small(tmp_path / "one", **options)
    assert {study.config_of(coils).images for coils in METHODS} == {"heads"}  # the prior's
    study.folder.mkdir()
    parts = {"table": ["1", "2"], "experiment": ["pairs"]}
    written = [path for path, _ in reproduce(PAPER, study, parts)]
    assert [path.name for path in written] == ["table-1.md", "table-2.md", "pairs.md"]
    text = {path.name: path.read_text() for path in written}
    for value in ("35.53", "36.17", "VarNet", "one of 2, after 4 steps", "Correlation"):
        assert value in text["table-1.md"] + text["table-2.md"]
    assert text["table-2.md"].count("fat-suppressed knees") == 2 * len(METHODS["parallel"])
    assert all((study.folder / f"table-{n}.png").exists() for n in "12")
    # What stands there is what the methods make; the curve is a further column of MAP and MMSE alone.
    truth = study.scans("parallel", "in", "gaussian-8x").images
    for method in METHODS["parallel"]:
        numbers = study.numbers("parallel", "in", "gaussian-8x", method)
        image = study.estimate("parallel", "in", "gaussian-8x", method)
        assert numbers["psnr"] == pytest.approx(scores(image, truth)["psnr"], rel=1e-5)
        assert ("fitted ssim" in numbers) == (method in ("map", "mmse"))
    # One coefficient for all masks, TV's and MAP's from as many evaluations.
    known = {(c, m): study.choice(c, m) for c in ("single", "parallel") for m in ("tv", "map")}  # type: ignore[arg-type]
    assert all(len(found["tried"]) == AMOUNTS.budget for found in known.values())
    assert all(found["psnr"][0] == max(found["tried psnr"]) for found in known.values())
    # The numbers alone make the same tables again, but for the pictures: no model is trained.
    again = Small(tmp_path / "two", **options)
    again.folder.mkdir()
    (study.folder / "results.json").rename(again.folder / "results.json")
    for path, _ in reproduce(PAPER, again, {"experiment": ["pairs"]}):
        assert path.read_text() == text[path.name]
    assert not (again.folder / "models").exists()
    with torch.no_grad():
        prior.network.last.weight.mul_(2)
    prior.save(tmp_path / "prior.safetensors")
    other = Small(again.folder, **options)
    assert other.numbers("single", "in", "spiral-5x", "tv") == again.numbers("single", "in", "spiral-5x", "tv")
    with pytest.raises(DataError, match="other settings"):
        other.numbers("single", "in", "spiral-5x", "map")


def test_without_a_prior_its_columns_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_masks(monkeypatch)
    monkeypatch.setattr(study_module, "shipped_weights", lambda system: {})
    study = Small(tmp_path, size=32, sizes=AMOUNTS)
    ((path, _),) = reproduce(PAPER, study, {"table": ["1"]})
    assert "no prior was given" in path.read_text()
    assert path.read_text().count("| MAP |  |  |  |") == 2


def test_scans_are_the_same_for_all_and_none_is_trained_on(tmp_path: Path) -> None:
    study, again = (Small(tmp_path, size=32, sizes=AMOUNTS) for _ in range(2))
    one = study.scans("parallel", "in", "radial-11x")
    assert torch.equal(one.y, again.scans("parallel", "in", "radial-11x").y)
    assert torch.equal(one.images, study.scans("single", "in", "spiral-5x").images)
    assert not torch.equal(one.images, study.scans("parallel", "in", "radial-11x", validation=True).images)
    assert not torch.equal(one.images, study.scans("parallel", "out", "radial-11x").images)
    assert not torch.equal(
        one.y, Small(tmp_path, seed=1, size=32, sizes=AMOUNTS).scans("parallel", "in", "radial-11x").y
    )
    with pytest.raises(DataError, match="--brain"):
        study.drawn("brain")


def test_slices_of_a_head_are_framed(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.arange(40) - 20, torch.arange(60) - 30, indexing="ij")
    volume = torch.stack([((y / 12) ** 2 + (x / 18) ** 2 < 1) * float(1 + k) for k in range(9)]).numpy()
    io.write_result(tmp_path / "head.nii.gz", io.Result(volume.astype(np.float32), affine=np.diag([1.0, 1, 1, 1])))
    found = brain_slices(tmp_path / "head.nii.gz", 3, 32)
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(1).amax(1), torch.ones(3))
    assert float(found[:, 0].max()) == 0  # a margin
    assert float(found[:, :, 16].float().mean()) > 0.5
    io.write_result(tmp_path / "none.nii.gz", io.Result(0 * volume.astype(np.float32), affine=np.diag([1.0, 1, 1, 1])))
    with pytest.raises(DataError, match="none"):
        brain_slices(tmp_path / "none.nii.gz", 3, 32)


def test_both_forms_of_the_maps_are_compared_on_the_same_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After enough steps the normalised form is ahead on points without a centre of their own; a table says so."""
    monkeypatch.setattr(forms, "MASKS", {"gaussian-8x": forms.MASKS["gaussian-8x"]})
    monkeypatch.setattr(forms, "ITERATIONS", (40,))
    (line,) = forms.retraction(StableMRIStudy(tmp_path, size=32)).lines
    name, normalised, published, difference = line
    assert name == "gaussian-8x"
    mean = float(difference.split()[0])
    assert mean == pytest.approx(float(normalised) - float(published), abs=0.11)
    assert mean > 1
