"""Trained networks on raw CT scans: the grid and the scale of training, and the frame of the arc."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from pyrecon import io
from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.ct import CTScan, first_angle, on_grid, some_views
from pyrecon.data.ct_phantoms import discs
from pyrecon.io.sinogram import write_sinogram
from pyrecon.linops import Radon
from pyrecon.models import LUSER, UnrolledDnCNN
from pyrecon.models.ct import LUSERCT, TV, evaluate_ct, reconstruct_ct
from pyrecon.models.ct.learned import _Frame, _resampled, peak_of
from pyrecon.models.weights import Card
from pyrecon.ops import FanBeam, ParallelBeam, ViewBeam
from pyrecon.physics.ct import phantom, scanner, simulate, truth

SIZE, VIEWS = 16, 12
SIDE = 0.07594
REAL = Path(__file__).parents[2] / "shared/data/ct"


def saved(folder: Path, shape: tuple[int, ...] = (SIZE, SIZE), **data: Any) -> str:
    """Random weights that say they were trained on 12 views over 90 degrees."""
    torch.manual_seed(0)
    model = LUSER(width=4, stages=2, tol=1e-6, max_iter=200)
    known = {"task": "ct", "angles": VIEWS, "arc": 90.0, "whiten": False, "peak": 1.2}
    model.card = Card("luser", "reconstruction", shape, known | data, {})
    model.save(folder / "w.safetensors")
    return str(folder / "w.safetensors")


def beam(start: float = 0.0, arc: float = 90.0, views: int = VIEWS, size: int = SIZE) -> FanBeam:
    """As the Helsinki challenge's, with few wide pixels."""
    angles = torch.deg2rad(start + arc * torch.arange(views, dtype=torch.float64) / views)
    return FanBeam(angles, (size, size), 24, 0.112 / 20, 0.41066, 0.55374, pixel_size=SIDE / size, unit="m")


def scan(images: Tensor, geometry: FanBeam) -> CTScan:
    return CTScan(Radon(geometry)(images).numpy(), geometry)


def body(size: int = SIZE) -> Tensor:
    return 37 * torch.from_numpy(discs(2, (size, size), seed=3))


# --- the frame of the arc --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("degrees", [[350, 355, 0, 5, 10], [10, 5, 0, 355, 350], [710, 5, -5, 10, 0]])
def test_an_arc_begins_after_the_widest_gap(degrees: list[float]) -> None:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    fan = FanBeam(angles, (8, 8), 24, 0.1, 10.0, 12.0, pixel_size=0.1)
    assert math.degrees(first_angle(fan)) == pytest.approx(350)
    assert math.degrees(first_angle(ParallelBeam(angles, (8, 8)))) == pytest.approx(170)  # half a turn is the whole


def test_a_scanner_without_angles_begins_at_0() -> None:
    views = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    free = ViewBeam(10 * views, views.flip(1), (4, 4), 8, rays=views)
    assert first_angle(free) == 0
    with pytest.raises(ValueError, match="turn: 1, but a ViewBeam has no angles"):
        on_grid(free, turn=1.0)


@pytest.mark.parametrize("kind", ["parallel", "fan", "curved"])
def test_a_turned_frame_sees_the_turned_image(kind: str) -> None:
    """A quarter of a turn is exact: rows and columns that turn anticlockwise hold an image that turned clockwise."""
    geometry = on_grid(scanner(kind, 7, arc=80.0, n_det=40, offset=3.0), (20, 20))
    turned = on_grid(geometry, turn=math.pi / 2)
    assert (turned.shape, turned.pixel_size) == (geometry.shape, geometry.pixel_size)
    image = torch.rand(1, 20, 20, dtype=torch.float64)
    torch.testing.assert_close(Radon(turned)(image.rot90(-1, (1, 2))), Radon(geometry)(image), rtol=1e-9, atol=1e-12)


def test_images_turn_back() -> None:
    """A quarter of a turn is exact, and so is a plane at any turn; what lies beyond the image is 0."""
    asked, quarter = beam(size=8), math.pi / 2
    image = torch.rand(2, 8, 8, dtype=torch.float64)
    frame = _Frame((8, 8), asked.pixel_size, quarter)
    torch.testing.assert_close(_resampled(image, frame, asked), image.rot90(1, (1, 2)))

    def plane(y: Tensor, x: Tensor) -> Tensor:
        return 2 + 30 * x - 50 * y

    def places(n: int) -> tuple[Tensor, Tensor]:
        along = SIDE / n * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2)
        return -along[:, None], along[None]

    turn, (y, x) = 0.3, places(24)
    frame = _Frame((16, 16), (SIDE / 16, SIDE / 16), turn)
    own_y, own_x = y * math.cos(turn) - x * math.sin(turn), x * math.cos(turn) + y * math.sin(turn)
    found = _resampled(plane(*places(16))[None], frame, beam(size=24))[0]
    inner = torch.maximum(own_x.abs(), own_y.abs()) < SIDE / 2 * (1 - 1 / 16)  # between the middles of pixels
    torch.testing.assert_close(found[inner], plane(own_y, own_x)[inner])
    assert not found[torch.maximum(own_x.abs(), own_y.abs()) > 1.001 * SIDE / 2].any()
    assert not found[0, 0]
    assert found[0, 12]


def test_a_turned_scan_gives_the_turned_image(tmp_path: Path) -> None:
    """A network knows which edges its arc missed, so an arc that begins elsewhere is brought to where it was."""
    path = saved(tmp_path)
    images = body()
    here, _ = reconstruct_ct(scan(images, beam()), LUSERCT(path))
    there, report = reconstruct_ct(scan(images.rot90(1, (1, 2)), beam(90.0)), LUSERCT(path))
    torch.testing.assert_close(there, here.rot90(1, (1, 2)), rtol=1e-3, atol=1e-3 * float(here.abs().max()))
    assert "turned by 90 degrees to where its arc begins; interpolated" in report.details["network"]
    # One that was trained on half a turn and more misses none, and stays as it is.
    with pytest.warns(UserWarning, match="trained at 12 over 180 degrees, the scan has 12 over 90"):
        _, report = reconstruct_ct(scan(images, beam(90.0)), LUSERCT(saved(tmp_path, arc=180.0)))
    assert report.details["network"] == "on 16 x 16 pixels of 4.746 mm"


# --- the grid of training --------------------------------------------------------------------------------------------
def test_the_network_works_on_the_pixels_of_training(tmp_path: Path) -> None:
    path, one = saved(tmp_path), scan(body(64), beam(size=64))
    small, report = reconstruct_ct(one, LUSERCT(path))
    assert small.shape == (2, SIZE, SIZE)  # unless another is asked for
    assert "image" in report.details
    large, report = reconstruct_ct(one, LUSERCT(path), shape=(64, 64))
    assert report.details["network"] == "on 16 x 16 pixels of 4.746 mm; interpolated to the image"
    expected = F.interpolate(small[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(large, expected, rtol=1e-4, atol=1e-3)
    with pytest.warns(UserWarning, match="trained on images of 16 x 16, the scan's have 64 x 64"):
        other, report = reconstruct_ct(one, LUSERCT(path, grid="image"))
    assert other.shape == (2, 64, 64)
    assert not torch.allclose(other, large, rtol=0.1, atol=1.0)
    assert report.details["network"] == "on 64 x 64 pixels of 1.187 mm"
    with pytest.raises(ValueError, match="grid: 'own'"):
        LUSERCT(path, grid="own")  # type: ignore[arg-type]


def test_a_field_of_view_that_is_no_square(tmp_path: Path) -> None:
    """The network's pixels are square and cover all of it."""
    one = scan(body(64), beam(size=64))
    _, report = reconstruct_ct(one, LUSERCT(saved(tmp_path)), shape=(32, 64), pixel_size=SIDE / 64)
    assert report.details["network"].startswith("on 16 x 16 pixels of 4.746 mm")


def test_segmentations_have_the_shape_of_the_truth(tmp_path: Path) -> None:
    images = body(64)[:1]
    one = scan(images, beam(75.0, size=64))
    rows, found = evaluate_ct({"a": one}, images[0].numpy(), (LUSERCT(saved(tmp_path)),), pixel_size=SIDE / 64)
    assert found["a", "LUSER-DW"].shape == (64, 64)
    assert rows[0].correlation > 0.2  # two random stages are a blurred back-projection


def test_networks_are_compared_by_their_names(tmp_path: Path) -> None:
    """Several weights of one network are numbered."""
    images = body()[:1]
    (tmp_path / "rival").mkdir()
    rival = UnrolledDnCNN(width=4, layers=3, stages=2)
    rival.card = LUSERCT(saved(tmp_path)).model.card
    rival.save(tmp_path / "rival/w.safetensors")
    own, other = LUSERCT(saved(tmp_path)), LUSERCT(str(tmp_path / "rival/w.safetensors"))
    for methods, expected in (
        ((own, other), ["LUSER-DW", "LU-DnCNN"]),
        ((own, other, own), ["LUSER-DW (1)", "LU-DnCNN", "LUSER-DW (2)"]),
    ):
        rows, found = evaluate_ct({"a": scan(images, beam())}, images[0].numpy(), methods, pixel_size=SIDE / SIZE)
        assert [row.method for row in rows] == expected
        assert list(found) == [("a", name) for name in expected]


def test_the_command_line_takes_the_grid_of_training(tmp_path: Path) -> None:
    raw, image, path = tmp_path / "a.h5", tmp_path / "a.npz", saved(tmp_path)
    write_sinogram(raw, scan(body(64), beam(20.0, size=64)))
    side = io.read(raw).geometry.shape[1] * io.read(raw).geometry.pixel_size[1]
    for options, shape in (
        ([], SIZE),
        (["--shape", "40", "40"], 40),
        (["-p", "grid=image", "--shape", "24", "24"], 24),
    ):
        given = ["reconstruct", str(raw), "-m", "luser", "--weights", path, "-o", str(image), *options]
        found = CliRunner().invoke(app, given)
        assert found.exit_code == 0, found.output
        result = io.read_result(image)
        assert result.image.shape == (2, shape, shape)
        assert result.grid is not None
        assert result.grid.spacing[-1] * shape == pytest.approx(side)
        assert "turned by 20 degrees" in found.output


# --- the scale of training -------------------------------------------------------------------------------------------
def test_the_peak_grows_with_the_data_and_not_with_the_noise() -> None:
    """What 5 % of noise adds to least squares is a third of the body and more; ended early it is a tenth at most."""
    images = torch.from_numpy(discs(8, (32, 32), seed=1))
    physics = Radon(scanner("fan", 48, arc=90.0, n_det=64))
    physics = Radon(on_grid(physics.geometry, (32, 32)))
    operator = physics / float(physics.norm())
    y = operator(images)
    noisy = y + 0.05 * y.std() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    clean = peak_of(operator, y)
    # By a power of two, which changes no rounding: iterations that end early magnify it to parts in a thousand.
    torch.testing.assert_close(peak_of(operator, 4 * y), 4 * clean, rtol=1e-6, atol=0)
    torch.testing.assert_close(peak_of(operator, noisy), clean, rtol=0.1, atol=0)
    assert bool((operator.pinv(noisy).flatten(1).quantile(0.99, dim=1) > 1.33 * clean).all())
    assert float(clean.std() / clean.mean()) < 0.1  # whatever the holes
    assert bool((peak_of(operator, torch.zeros_like(y)) == 1).all())


def test_the_peak_of_training_is_divided_by(tmp_path: Path) -> None:
    """The model by hand, on a scan that needs no turn."""
    one = scan(body(), beam())
    image, _ = reconstruct_ct(one, LUSERCT(saved(tmp_path, peak=1.5)))
    physics = Radon(one.geometry)
    norm = float(physics.norm(rtol=1e-4))
    A, y = physics / norm, torch.from_numpy(one.sinogram) / norm
    scale = (peak_of(A, y) / 1.5).view(-1, 1, 1)
    by_hand = LUSERCT(saved(tmp_path, peak=1.5)).model.reconstruct(y / scale, A).value * scale
    torch.testing.assert_close(image, by_hand, rtol=1e-3, atol=1e-2)


def test_only_scans_of_another_kind_are_warned_of(tmp_path: Path) -> None:
    path = LUSERCT(saved(tmp_path))
    dense = scan(body(), beam(views=36))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct_ct(dense, path)
    for other in (some_views(dense, slice(0, None, 6)), scan(body(), beam(arc=60.0))):
        with pytest.warns(UserWarning, match="trained at 12 over 90 degrees"):
            reconstruct_ct(other, path)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"peak": "large"}, "peak is 'large' on their card"),
        ({"peak": 0.0}, "peak is '0.0' on their card"),
        ({"arc": -90.0}, "arc is '-90.0' on their card"),
        ({"angles": [3]}, "angles is"),
        ({"shape": (4096, 4096)}, "trained on images of"),
        ({"shape": (8,)}, "trained on images of"),
    ],
)
def test_cards_that_make_no_sense_are_refused(tmp_path: Path, card: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        reconstruct_ct(scan(body(), beam()), LUSERCT(saved(tmp_path, **card)))


@pytest.mark.parametrize("arc", [90, 60, 30])
def test_shipped_weights_beat_total_variation_on_discs_they_never_saw(arc: int) -> None:
    """From finer discs, wherever the arc begins, and at twice the density of views."""
    geometry = scanner("fan", arc + 1, arc=arc + 1, start=40.0, n_det=96)
    scores: dict[str, list[float]] = {}
    for seed in range(20, 24):
        disc = phantom("disc", geometry, 1, seed=seed)
        one, known = simulate(disc, geometry, noise_std=0.006), truth(disc, geometry)[0].numpy()
        rows, _ = evaluate_ct({"a": one}, known, (TV(max_iter=200), LUSERCT(f"lu-dncnn-ct-discs-{arc}")))
        for row in rows:
            scores.setdefault(row.method, []).append(row.correlation)
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means["LU-DnCNN"] > means["TV"] + 0.02, means


@pytest.mark.skipif(not REAL.is_dir(), reason="the challenge's scans are no part of this package")
@pytest.mark.parametrize(("arc", "least"), [(90, 0.88), (60, 0.82), (30, 0.75)])
def test_shipped_weights_on_the_real_disc(arc: int, least: float) -> None:
    """0.899, 0.840 and 0.778; total variation 0.858, 0.734 and 0.537."""
    known = io.read_result(REAL / "htc_tb_truth.png").image.astype(np.float32).squeeze()
    one = io.read(REAL / f"htc_tb_{arc}deg.mat")
    assert isinstance(one, CTScan)
    (row,), _ = evaluate_ct({"tb": one}, known, (LUSERCT(f"lu-dncnn-ct-discs-{arc}"),))
    assert row.correlation > least


def test_a_network_of_full_turns_at_work_twice(tmp_path: Path) -> None:
    """Slices come in parts and scans one after the other; no operator of another scan is kept for them."""
    method = LUSERCT(saved(tmp_path, arc=360.0, angles=24))
    geometries = [beam(start, 360.0, 24) for start in (0.0, 7.0)]
    found = [reconstruct_ct(scan(body(), g), method)[0] for g in (*geometries, geometries[0])]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert np.isfinite(found[1].numpy()).all()
