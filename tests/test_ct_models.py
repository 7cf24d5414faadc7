"""CT reconstruction: each method against its definition, the whole road against the truth and from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrecon import io, metrics
from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.ct import CTScan, noise_std, some_views
from pyrecon.io.sinogram import write_sinogram
from pyrecon.linops import Radon
from pyrecon.models.ct import (
    CGLS,
    FBP,
    METHODS,
    SIRT,
    TV,
    default_method,
    evaluate_ct,
    evaluation_table,
    reconstruct_ct,
)
from pyrecon.models.ct.methods import _largest_eigenvalue, noise_of
from pyrecon.ops import FanBeam, ParallelBeam, ViewBeam
from pyrecon.physics.ct import phantom, scanner, simulate, truth
from pyrecon.solvers import ConvergenceWarning, Status


def problem(views: int = 20, arc: float = 360.0) -> tuple[Tensor, Radon]:
    """Noisy line integrals of two slices of 16 x 16 pixels, in float64."""
    geometry = scanner("fan", views, arc=arc, n_det=18)
    scan = simulate(phantom("disc", geometry, 2), geometry, noise_std=0.02)
    return torch.from_numpy(scan.sinogram).double(), Radon(geometry)


def scanned(views: int = 120, n_det: int = 72, noise: float = 0.01, **more: Any) -> tuple[CTScan, Tensor]:
    """A disc with holes, and what it is."""
    geometry = scanner(more.pop("beam", "fan"), views, n_det=n_det, **more)
    body = phantom("disc", geometry, 1)
    return simulate(body, geometry, noise_std=noise), truth(body, geometry).float()


def psnr(image: Tensor, reference: Tensor) -> float:
    return float(metrics.psnr(image, reference).mean())


# --- the methods against their definitions -------------------------------------------------------------------------
def test_fbp_is_fbp_with_its_window() -> None:
    y, physics = problem()
    for window in ("ramp", "hann"):
        found = FBP(filter=window, circle=False).solve(y, physics)
        torch.testing.assert_close(found.value, physics.fbp(y, window))
        assert bool(found.converged.all())
    clipped = FBP(nonneg=True, circle=False).solve(y, physics).value
    torch.testing.assert_close(clipped, physics.fbp(y).clamp(min=0))
    assert (physics.fbp(y) < 0).any()
    n = physics.geometry.shape[0]
    corner, middle = slice(0, n // 8), slice(n // 4, -n // 4)
    cut = FBP().solve(y, physics).value
    assert not cut[:, corner, corner].any()
    assert torch.equal(cut[:, middle, middle], physics.fbp(y)[:, middle, middle])
    assert physics.fbp(y)[:, corner, corner].any()


@pytest.mark.parametrize("arc", [30.0, 90.0, 200.0, 360.0])
def test_fbp_has_the_right_height_for_any_arc(arc: float) -> None:
    """A filtered view keeps its mean, so the mean of a disc grows with the arc, up to half a turn."""
    views = round(arc)
    geometry = scanner("fan", views, arc=arc, n_det=96)
    disc = torch.tensor([[37.0, 0.0, 0.0, 0.025, 0.025, 0.0]], dtype=torch.float64)
    y = torch.from_numpy(simulate(disc, geometry).sinogram)
    image = FBP().solve(y, Radon(geometry)).value[0]
    middle = image[tuple(slice(n // 2 - 4, n // 2 + 4) for n in image.shape)].mean()
    assert float(middle) == pytest.approx(37.0 * min(1.0, arc / 180), rel=0.06)


def test_cgls_without_noise_is_least_squares_of_its_last_step() -> None:
    y, physics = problem(8)
    a = physics.double().as_matrix()
    with pytest.warns(ConvergenceWarning):
        found = CGLS(noise_std=0.0, max_iter=4).solve(y, physics).value.flatten(1)
    # The best of the Krylov space: the residual is orthogonal to A K_4.
    basis = [a.T @ y[0].flatten()]
    for _ in range(3):
        basis.append(a.T @ (a @ basis[-1]))
        basis[-1] /= basis[-1].norm()
    space = torch.linalg.qr(torch.stack(basis, dim=1)).Q
    best = space @ torch.linalg.lstsq(a @ space, y[0].flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(found[0], best, rtol=1e-6, atol=1e-6 * float(best.abs().max()))


@pytest.mark.parametrize("method", [CGLS(noise_std=0.02), SIRT(noise_std=0.02, max_iter=5000)])
def test_iterations_end_at_the_noise(method: CGLS | SIRT) -> None:
    y, physics = problem(40)
    noise = 0.02 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    y = physics(physics.fbp(y).clamp(min=0)) + noise  # what these pixels can explain
    found = method.solve(y, physics)
    limit = 0.02 * math.sqrt(y[0].numel())
    assert bool(found.converged.all())
    assert bool((found.residual <= limit).all())
    with pytest.warns(ConvergenceWarning):
        before = type(method)(noise_std=0.02, max_iter=int(found.iterations.min()) - 1).solve(y, physics)
    assert bool((before.residual > limit).all())  # not a step too many


def test_tv_minimises_what_it_says() -> None:
    """No way leads down from it, and what is known of the minimum holds, in float64."""
    y, physics = problem(10)
    weight, noise = 0.8, 0.02
    found = TV(weight=weight, noise_std=noise, tol=1e-9, max_iter=20000, max_inner=5000, nonneg=False).solve(y, physics)
    pixel = math.sqrt(math.prod(physics.geometry.pixel_size))
    w = weight * noise * math.sqrt(10)

    def variation(x: Tensor) -> Tensor:
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        down[:, :-1], right[:, :, :-1] = x.diff(dim=1), x.diff(dim=2)
        return w * pixel * (down.square() + right.square()).sqrt().flatten(1).sum(1)

    def objective(x: Tensor) -> Tensor:
        return (physics(x) - y).square().flatten(1).sum(1) / 2 + variation(x)

    least = objective(found.value)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            way = torch.randn(found.value.shape, dtype=torch.float64, generator=generator)
            assert bool((objective(found.value + size * way) >= least * (1 - 1e-10)).all())
    # TV grows in proportion to x, so along x itself the objective is level where <A x - y, A x> = -TV(x).
    lines = physics(found.value)
    slope = ((lines - y) * lines).flatten(1).sum(1)
    torch.testing.assert_close(-slope, variation(found.value), rtol=1e-4, atol=0)
    # A constant is not penalised: the residual is orthogonal to the projections of one.
    ones = physics(torch.ones_like(found.value))
    slack = ((physics(found.value) - y) * ones).flatten(1).sum(1)
    assert bool((slack.abs() < 1e-6 * (y * ones).flatten(1).sum(1).abs()).all())


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_every_setting_changes_the_image() -> None:
    y, physics = problem(12)
    base: dict[type, dict[str, Any]] = {
        FBP: {}, CGLS: {"max_iter": 4, "noise_std": 0.0}, SIRT: {"max_iter": 9, "noise_std": 0.0},
        TV: {"noise_std": 0.02, "max_iter": 40, "max_inner": 20},
    }  # fmt: skip
    changes: dict[type, dict[str, Any]] = {
        FBP: {"filter": "cosine", "nonneg": True, "circle": False},
        CGLS: {"max_iter": 5, "noise_std": 0.3},
        SIRT: {"relaxation": 1.0, "nonneg": False, "noise_std": 0.3, "max_iter": 10},
        TV: {"weight": 2.0, "nonneg": False, "noise_std": 0.05, "tol": 0.1, "max_iter": 10, "max_inner": 1},
    }
    for kind, settings in changes.items():
        usual = kind(**base[kind]).solve(y, physics).value
        for name, value in settings.items():
            other = kind(**(base[kind] | {name: value})).solve(y, physics).value
            assert not torch.allclose(usual, other, rtol=1e-4), (kind.__name__, name)
        assert settings.keys() == kind(**base[kind]).settings().keys()  # and there are no others


def test_the_noise_is_estimated_or_told() -> None:
    y, _ = problem(40)
    assert noise_of(y).tolist() == pytest.approx([noise_std(s) for s in y.numpy()])
    assert noise_of(y, 0.3).tolist() == [0.3, 0.3]
    smooth = torch.linspace(0, 2, 50).expand(1, 4, 50)
    assert float(noise_of(smooth)) == pytest.approx(2e-3)  # never nothing


def test_the_bound_of_the_norm_is_one_and_tight() -> None:
    y, physics = problem()
    exact = float(torch.linalg.matrix_norm(physics.double().as_matrix(), 2)) ** 2
    assert exact <= _largest_eigenvalue(physics, y) <= 1.1 * exact


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_units_do_not_matter() -> None:
    """The same scan in other lengths: attenuation scales with 1/m, everything else stays."""
    y, physics = problem(12)
    g = physics.geometry
    assert isinstance(g, FanBeam)
    larger = FanBeam(
        g.angles, g.shape, g.n_det, 50 * g.det_spacing, 50 * g.source_to_axis, 50 * g.source_to_detector,
        pixel_size=[50 * p for p in g.pixel_size], unit="m",
    )  # fmt: skip
    for method in (FBP(), CGLS(), SIRT(max_iter=20), TV(max_iter=50)):
        here, there = method.solve(y, physics).value, method.solve(y, Radon(larger)).value
        torch.testing.assert_close(here, 50 * there, rtol=1e-6, atol=1e-6 * float(here.abs().max()))


# --- the whole road ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beam", ["parallel", "fan", "curved"])
@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_complete_scans_give_the_body(beam: str) -> None:
    scan, image = scanned(beam=beam)
    for method, least in ((FBP(), 24.0), (CGLS(), 23.0), (SIRT(), 23.0), (TV(), 31.0)):
        found, report = reconstruct_ct(scan, method)
        assert found.shape == image.shape
        assert psnr(found, image) > least, (method.name, psnr(found, image))
        assert report.samples == 1


def test_a_limited_angle_says_so_and_tv_does_better() -> None:
    scan, image = scanned(91, arc=91.0)
    with pytest.warns(UserWarning, match="limited angle: 91 views over 90 of 180 degrees"):
        direct, report = reconstruct_ct(scan, FBP())
    assert "cannot be recovered by filtered back-projection" in report.details["coverage"]
    found, report = reconstruct_ct(scan)
    assert report.method == "TV"
    assert psnr(found, image) > psnr(direct, image) + 1.5
    assert report.residual_over_noise[0] == pytest.approx(1, abs=0.5)


def test_the_default_method_follows_the_views() -> None:
    assert isinstance(default_method(scanned()[0]), FBP)
    assert isinstance(default_method(scanned(10)[0]), TV)
    assert isinstance(default_method(scanned(60, arc=60.0)[0]), TV)
    _, report = reconstruct_ct(scanned()[0], views=slice(0, 30))
    assert report.method == "TV"  # of the views that are used


def test_views_of_no_ideal_scanner_are_not_back_projected() -> None:
    scan, _ = scanned(120)
    geometry = scan.geometry
    assert isinstance(geometry, FanBeam)
    angles = geometry.angles
    toward, across = (torch.stack([a.cos(), a.sin()], 1) for a in (angles + torch.pi / 2, angles))
    sources = -0.4 * toward
    sources[7] *= 1.05  # one view from further away
    free = ViewBeam(
        0.15 * toward, 2e-3 * across, geometry.shape, geometry.n_det, geometry.pixel_size, sources=sources, unit="m"
    )
    free_scan = CTScan(scan.sinogram, free)
    assert isinstance(default_method(free_scan), TV)
    with pytest.raises(DataError, match="view 7 is not that of an ideal scanner"):
        reconstruct_ct(free_scan, FBP())


def test_grids_and_views_of_a_reconstruction() -> None:
    scan, _ = scanned(60, n_det=48)
    image, report = reconstruct_ct(scan, FBP(), shape=(20, 30), pixel_size=2e-3)
    assert image.shape == (1, 20, 30)
    assert "20 x 30 pixels of 2 x 2 mm" in report.details["image"]
    part, _ = reconstruct_ct(scan, FBP(), views=slice(None, None, 2))
    own, _ = reconstruct_ct(some_views(scan, slice(None, None, 2)), FBP())
    assert torch.equal(part, own)


def test_an_asymmetric_body_comes_out_the_right_way_up() -> None:
    """Row 0 is at the top: a dot at large y and small x is at the upper left."""
    geometry = scanner("fan", 90, n_det=64)
    dot = torch.tensor([[37.0, -0.02, 0.03, 0.004, 0.004, 0.0]], dtype=torch.float64)
    image, _ = reconstruct_ct(simulate(dot, geometry), FBP())
    row, column = np.unravel_index(int(image[0].argmax()), image[0].shape)
    y = (image.shape[1] - 1) / 2 * geometry.pixel_size[0] - row * geometry.pixel_size[0]
    x = column * geometry.pixel_size[1] - (image.shape[2] - 1) / 2 * geometry.pixel_size[1]
    assert (x, y) == (pytest.approx(-0.02, abs=3e-3), pytest.approx(0.03, abs=3e-3))


def test_slices_go_in_parts_and_a_bad_one_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = scanner("fan", 24, n_det=32)
    scan = simulate(phantom("disc", geometry, 3), geometry)
    whole, _ = reconstruct_ct(scan, FBP())
    monkeypatch.setattr("pyrecon.models.ct.reconstruct._CHUNK_BYTES", 1)
    parts, report = reconstruct_ct(scan, FBP())
    assert torch.equal(whole, parts)
    assert report.status == {"CONVERGED": 3}
    assert len(report.residual) == 3


def test_warnings_of_reading_reach_the_report() -> None:
    scan, _ = scanned(24, n_det=32)
    scan.metadata["warnings"] = ["angles: 2 of 24 repeat others"]
    with pytest.warns(UserWarning, match="repeat others"):
        _, report = reconstruct_ct(scan, FBP())
    assert "angles: 2 of 24 repeat others" in report.warnings
    assert "warnings" not in report.details


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"scan": 3}, TypeError, "scan: expected a CTScan"),
        ({"method": "tv"}, TypeError, "method: got the text 'tv'"),
        ({"method": TV}, TypeError, r"expected an instance: TV\("),
        ({"shape": (0, 3)}, ValueError, "shape"),
        ({"pixel_size": -1.0}, ValueError, "pixel_size"),
        ({"pixel_size": (1e-3, 1e-3, 1e-3)}, ValueError, "pixel_size"),
        ({"pixel_size": 100.0}, ValueError, "pixel_size: makes a body of"),
        ({"shape": (3,)}, ValueError, "shape"),
        ({"shape": 3}, TypeError, "shape"),
        ({"views": [99]}, ValueError, "views"),
    ],
)
def test_misuse_is_told(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    scan, _ = scanned(24, n_det=32)
    with pytest.raises(error, match=words):
        reconstruct_ct(**({"scan": scan} | arguments))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (FBP, {"filter": "boxcar"}), (FBP, {"nonneg": 1}), (CGLS, {"max_iter": 0}), (CGLS, {"noise_std": -1.0}),
        (SIRT, {"relaxation": 2.0}), (TV, {"weight": -1.0}), (TV, {"tol": 0.0}), (TV, {"max_inner": 0}),
        (TV, {"weight": float("nan")}),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(kind: type, settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(settings))):
        kind(**settings)


def test_a_parallel_scan_off_its_axis() -> None:
    scan, image = scanned(90, beam="parallel", offset=6.0)
    assert isinstance(scan.geometry, ParallelBeam)
    found, _ = reconstruct_ct(scan, TV())
    assert psnr(found, image) > 30


# --- the command line ----------------------------------------------------------------------------------------------
def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("extension", ["h5", "npz"])
def test_simulate_and_reconstruct(tmp_path: Path, extension: str) -> None:
    file, target, body = tmp_path / f"a.{extension}", tmp_path / "a.nii.gz", tmp_path / "body.npz"
    command("simulate", "ct", "-o", str(file), "--views", "90", "--detector", "64", "--noise", "0.01", "--slices", "2",
            "--truth", str(body))  # fmt: skip
    text = command("reconstruct", str(file), "-o", str(target), "--figure", str(tmp_path / "a.png"), "--json")
    report = json.loads(text)
    assert (report["method"], report["samples"]) == ("FBP", 2)
    result, known = io.read_result(target), io.read_result(body)
    assert result.grid == known.grid
    assert psnr(torch.from_numpy(result.image), torch.from_numpy(known.image)) > 18
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_options_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    command("simulate", "ct", "-o", str(file), "--views", "40", "--detector", "48", "--beam", "parallel", "--arc", "40",
            "--start", "20", "--offset", "2", "--photons", "10000", "--phantom", "head")  # fmt: skip
    text = command("reconstruct", str(file), "-o", str(tmp_path / "a.npz"), "-m", "sirt", "-p", "max_iter=3", "--views",
                   "::2", "--shape", "20", "24", "--pixel-size", "3", "--json")  # fmt: skip
    report = json.loads(text)
    assert report["parameters"]["max_iter"] == 3
    assert report["details"]["image"] == "20 x 24 pixels of 3 x 3 mm, in 1/m"
    assert "20 views over 38 of 180 degrees" in report["details"]["coverage"]
    result = io.read_result(tmp_path / "a.npz")
    assert result.image.shape == (1, 20, 24)
    assert result.grid is not None
    assert result.grid.spacing == pytest.approx((3e-3, 3e-3))
    plan = command("reconstruct", str(file), "--dry-run", "-m", "fbp")
    assert "limited angle" in plan
    assert "nothing was written" in plan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--views", "50:60"], "--views: 50:60 leaves nothing of 20 views"),
        (["--views", "a:b"], "--views: 'a:b', expected START:STOP:STEP"),
        (["--views", "::-1"], "--views: '::-1'"),
        (["--center", "3"], "--center: for Data Exchange files"),
        (["--pixel-size", "100000"], "--shape, --pixel-size: pixel_size: makes a body of"),
        (["-m", "hyb"], "--method: 'hyb' is not known here, expected one of fbp"),
        (["-p", "filter=box"], "-p"),
        (["-s", "sm.mdf"], "no system matrix"),
    ],
)
def test_what_the_command_line_refuses(tmp_path: Path, options: list[str], words: str) -> None:
    geometry = scanner("fan", 20, n_det=24)
    write_sinogram(tmp_path / "a.h5", simulate(phantom("disc", geometry), geometry))
    with pytest.raises(DataError, match=words):
        CliRunner().invoke(app, ["reconstruct", str(tmp_path / "a.h5"), *options], catch_exceptions=False)


def test_methods_have_names_of_their_own() -> None:
    assert len({kind.name for kind in METHODS.values()}) == len(METHODS)
    assert int(Status.CONVERGED) == 0


# --- the comparison ------------------------------------------------------------------------------------------------
def test_limited_views_are_scored_by_segmentation(tmp_path: Path) -> None:
    geometry = scanner("fan", 90, n_det=64)
    body = phantom("disc", geometry, seed=1)
    scan, mask = simulate(body, geometry, noise_std=0.01), truth(body, geometry)[0] > 18
    parts = {"all": scan, "few": some_views(scan, slice(0, 10))}
    rows, images = evaluate_ct(parts, mask.numpy(), (FBP(), TV()))
    scores = {(row.scan, row.method): row.correlation for row in rows}
    assert scores["all", "TV"] > 0.97
    assert scores["few", "FBP"] < scores["few", "TV"] < scores["all", "TV"]
    for (name, method), score in scores.items():
        above = images[name, method] > next(r.threshold for r in rows if (r.scan, r.method) == (name, method))
        assert score == pytest.approx(np.corrcoef(above.flatten().double(), mask.flatten().double())[0, 1])
    assert [row.views for row in rows] == [90, 90, 10, 10]
    assert rows[2].degrees == pytest.approx(36, abs=0.5)
    table = evaluation_table(rows)
    assert table.splitlines()[0] == "| scan | degrees | views | FBP | TV |"
    assert f"{scores['few', 'TV']:.3f}" in table

    write_sinogram(tmp_path / "few.h5", parts["few"])
    io.write_result(tmp_path / "mask.npz", io.Result(mask.numpy()[None]))  # a stack of one is one
    files = {name: str(tmp_path / name) for name in ("few.h5", "mask.npz", "a.md", "a.png")}
    shown = command("evaluate", "ct", files["few.h5"], "--truth", files["mask.npz"], "-m", "fbp", "-m", "tv",
                    "-o", files["a.md"], "--figure", files["a.png"])  # fmt: skip
    assert f"{scores['few', 'FBP']:.3f}" in shown
    assert shown.strip() in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_truths_that_are_none() -> None:
    scan, _ = scanned(24, n_det=32)
    with pytest.raises(DataError, match="truth"):
        evaluate_ct({"a": scan}, np.ones((9, 9)))
    with pytest.raises(DataError, match="truth"):
        evaluate_ct({"a": scan}, np.zeros((2, 9, 9)))
    with pytest.raises(DataError, match="a: 2 slices"):
        evaluate_ct({"a": simulate(phantom("disc", scan.geometry, 2), scan.geometry)}, np.eye(9))
