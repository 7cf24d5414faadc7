"""Volumes of magnetic particle imaging: total variation by its law, the command from files to pictures and places."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import scipy.optimize
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mpi_volumes import FieldFreePoint
from numpy.typing import NDArray
from typer.testing import CliRunner

from pyrecon import plotting
from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.raw import Grid
from pyrecon.io import mdf, read_result
from pyrecon.linops import Gradient
from pyrecon.models.mpi import LEARNED, TVADMM, UNTRAINED, FactoredSystem, HybADMM, Reconstructor
from pyrecon.models.mpi.variation import Variation, relative_sides
from pyrecon.ops import tv_prox

SPACING = (1.0, 2.0, 4.0)


def differences(shape: tuple[int, ...], sides: tuple[float, ...]) -> NDArray[np.float64]:
    """``(axes, N, N)``, written down voxel by voxel."""
    dense = np.zeros((len(shape), *shape, *shape))
    for voxel in product(*(range(n) for n in shape)):
        for axis, side in enumerate(sides):
            if voxel[axis] + 1 < shape[axis]:
                following = tuple(v + (i == axis) for i, v in enumerate(voxel))
                dense[(axis, *voxel, *following)] = 1 / side
                dense[(axis, *voxel, *voxel)] = -1 / side
    count = int(np.prod(shape))
    return dense.reshape(len(shape), count, count)


# ---- the gradient


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 4, 5), (1, 4, 2), (2, 3, 1, 4)])
def test_the_gradient_with_a_spacing_is_the_matrix_written_down(shape: tuple[int, ...]) -> None:
    sides = (0.5, 2.0, 3.0, 0.7)[: len(shape)]
    gradient, dense = Gradient(shape, sides), differences(shape, sides)
    x = torch.randn(2, *shape, dtype=torch.float64)
    d = torch.randn(2, len(shape), *shape, dtype=torch.float64)
    expected = np.einsum("anm,bm->ban", dense, x.flatten(1).numpy())
    np.testing.assert_allclose(gradient(x).flatten(2).numpy(), expected, atol=1e-12)
    back = np.einsum("anm,ban->bm", dense, d.flatten(2).numpy())
    np.testing.assert_allclose(gradient.adjoint(d).flatten(1).numpy(), back, atol=1e-12)
    assert np.linalg.norm(dense.reshape(-1, dense.shape[-1]), 2) ** 2 <= gradient.norm_bound


def test_a_spacing_that_is_none() -> None:
    with pytest.raises(ValueError, match="spacing: 2 numbers, expected one for each of 3 axes"):
        Gradient((2, 3, 4), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"spacing: 0.0 does not fit"):
        Gradient((2, 3), (1.0, 0.0))
    with pytest.raises(ValueError, match=r"spacing: .* expected a positive number for each axis"):
        FactoredSystem(torch.ones(4, 6), (2, 3), (1.0,))


# ---- the proximal map


def test_the_anisotropic_map_of_a_volume_is_the_solution_of_its_dual() -> None:
    """A least-squares problem with bounds, which another program solves."""
    shape, weight = (3, 4, 2), 0.3
    sides = relative_sides(shape, SPACING)
    v = np.random.default_rng(0).normal(size=24)
    dense = differences(shape, sides).reshape(-1, 24)
    dual = scipy.optimize.lsq_linear(dense.T, v, (-weight, weight), tol=1e-14).x
    term = Variation(shape, weight, 2000, False, False, SPACING)
    found = term.prox(torch.from_numpy(v)[None], torch.empty(1, 24, dtype=torch.float64))
    np.testing.assert_allclose(found[0], v - dense.T @ dual, atol=1e-6)


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5), (7,), (3, 1, 4)])
def test_the_duality_gap_closes(shape: tuple[int, ...], isotropic: bool, nonneg: bool) -> None:
    """``weight sum |D u| - <q, D u> >= |u - u*|^2`` for feasible q, with D written down voxel by voxel."""
    spacing, weight, count = SPACING[: len(shape)], 0.4, int(np.prod(shape))
    term = Variation(shape, weight, 3000, isotropic, nonneg, spacing)
    v = torch.randn(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = term.prox(v, torch.empty_like(v)).numpy()
    assert term.dual is not None
    q = term.dual.flatten(2).numpy()
    dense = differences(shape, relative_sides(shape, spacing))
    length = np.linalg.norm(q, axis=1) if isotropic else np.abs(q)
    assert length.max() <= weight * (1 + 1e-12)
    image = v.numpy() - np.einsum("anm,ban->bm", dense, q)
    np.testing.assert_allclose(u, np.maximum(image, 0) if nonneg else image, atol=1e-12)
    d = np.einsum("anm,bm->ban", dense, u)
    size = np.linalg.norm(d, axis=1).sum(axis=1) if isotropic else np.abs(d).sum(axis=(1, 2))
    gap = weight * size - (q * d).sum(axis=(1, 2))
    assert gap.max() < 1e-6 * float(v.square().sum())


def test_images_with_square_pixels_are_those_of_the_compiled_map() -> None:
    """The plain iteration, step by step the same."""
    v = torch.randn(3, 30, dtype=torch.float64)
    plain = Variation((5, 6), 0.3, 7, True, True, (2e-3, 2e-3))
    assert plain.gradient is None
    plain.gradient = Gradient((5, 6))
    for _ in range(2):
        found = plain.prox(v, torch.empty_like(v))
    expected, dual = tv_prox(v.view(3, 5, 6), 0.3, iterations=7, nonneg=True, return_dual=True)
    expected = tv_prox(v.view(3, 5, 6), 0.3, dual, iterations=7, nonneg=True)
    torch.testing.assert_close(found.view(3, 5, 6), expected, rtol=1e-10, atol=1e-12)


def test_sides_are_relative_and_those_of_single_voxels_do_not_count() -> None:
    np.testing.assert_allclose(relative_sides((4, 5, 6), (1e-3, 2e-3, 4e-3)), (0.5, 1.0, 2.0))
    np.testing.assert_allclose(relative_sides((4, 1, 6), (1e-3, 7.0, 4e-3)), (0.5, 1.0, 2.0))
    assert relative_sides((4, 5, 6), (2e-3, 2e-3 * (1 + 1e-7), 2e-3)) == (1.0, 1.0, 1.0)
    assert relative_sides((4, 5), None) == (1.0, 1.0)


@pytest.mark.parametrize("alpha", [None, 0.4])
@pytest.mark.parametrize("shape", [(2, 2, 3), (3, 4)])
def test_no_volume_that_explains_the_data_has_a_lower_penalty(shape: tuple[int, ...], alpha: float | None) -> None:
    """``min alpha |x|_1 + (1 - alpha) TV(x)`` over ``|A x - y| <= radius, x >= 0`` by sequential quadratic programming,
    with a bound on every difference as a variable of its own."""
    spacing, rng, count = SPACING[-len(shape) :], np.random.default_rng(3), 12
    A, radius = rng.normal(size=(9, count)), 0.3
    truth = np.zeros(shape)
    truth[..., 1:] = 1
    y = A @ truth.ravel() + 0.05 * rng.normal(size=9)
    D = differences(shape, relative_sides(shape, spacing)).reshape(-1, count)
    D = D[np.abs(D).sum(axis=1) > 0]
    share = alpha or 0.0
    cost = np.concatenate([np.full(count, share), np.full(len(D), 1 - share)])
    eye = np.eye(len(D))
    found = scipy.optimize.minimize(
        lambda v: cost @ v,
        np.concatenate([np.full(count, 0.5), np.ones(len(D))]),
        jac=lambda v: cost,
        bounds=[(0, None)] * count + [(None, None)] * len(D),
        constraints=[
            {"type": "ineq", "fun": lambda v: np.hstack([-D, eye]) @ v, "jac": lambda v: np.hstack([-D, eye])},
            {"type": "ineq", "fun": lambda v: np.hstack([D, eye]) @ v, "jac": lambda v: np.hstack([D, eye])},
            {
                "type": "ineq",
                "fun": lambda v: radius**2 - ((A @ v[:count] - y) ** 2).sum(),
                "jac": lambda v: np.concatenate([-2 * A.T @ (A @ v[:count] - y), np.zeros(len(D))]),
            },
        ],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    options: dict[str, Any] = {"mu": 5.0, "iterations": 1500, "isotropic": False, "epsilon": 1.0}
    method = TVADMM(**options) if alpha is None else HybADMM(alpha=alpha, **options)
    system = FactoredSystem(torch.from_numpy(A), shape, spacing)
    solution, _ = method.solve(system, torch.from_numpy(y)[None], torch.tensor([radius], dtype=torch.float64))
    x = solution.value[0].numpy()
    assert np.linalg.norm(A @ x - y) <= radius * (1 + 1e-4)
    assert share * x.sum() + (1 - share) * np.abs(D @ x).sum() == pytest.approx(found.fun, rel=1e-3)
    if alpha is None:
        unequal = share * x.sum() + np.abs(differences(shape, (1.0,) * len(shape)) @ x).sum()
        assert unequal != pytest.approx(found.fun, rel=0.05)  # the sides have a say


def test_a_large_matrix_has_the_factors_of_its_singular_values() -> None:
    """From more than 2000 rows and columns on they come from the Gram matrix."""
    from pyrecon.models.mpi.system import _by_gram

    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((70, 50), (50, 70)):
        q, _ = torch.linalg.qr(torch.randn(rows, 40, generator=generator, dtype=torch.float64))
        v, _ = torch.linalg.qr(torch.randn(columns, 40, generator=generator, dtype=torch.float64))
        s = torch.logspace(0, -8, 40, dtype=torch.float64)
        Q, S, V = _by_gram((q * s) @ v.T)
        assert len(S) == int((s > 1e-6).sum())
        torch.testing.assert_close(S, s[: len(S)], rtol=1e-3, atol=0)
        torch.testing.assert_close((Q * S) @ V.T, (q * s) @ v.T, rtol=0, atol=2e-6)
        torch.testing.assert_close(V.T @ V, torch.eye(len(S), dtype=torch.float64), rtol=0, atol=1e-3)
        torch.testing.assert_close(Q.T @ Q, torch.eye(len(S), dtype=torch.float64), rtol=0, atol=1e-3)


# ---- from files to places and pictures

GRID = Grid((7, 8, 9), (1e-3, 2e-3, 1.5e-3), (4e-3, -3e-3, 10e-3))  # z, y, x
PLACE = np.array([2, 6, 1])  # z, y, x of the middle of a bar of three voxels along x


def bar() -> NDArray[np.float64]:
    volume = np.zeros(GRID.shape)
    volume[2, 6, :3] = 1
    volume[5, 1, 7] = 0.5
    return volume


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("volume")
    scanner = FieldFreePoint(GRID, dividers=(12, 15, 16))
    rows = scanner.matrix()
    mdf.write_system_matrix(folder / "sm.mdf", scanner.calibrate(rows))
    mdf.write_measurement(folder / "m.mdf", scanner.measure(bar(), rows, frames=2))
    with h5py.File(folder / "sm.mdf") as file:  # x runs fastest, as the format has it
        stored = file["measurement/data"][0, :, :, (2 * 8 + 6) * 9 + 1]
    apart = np.abs(stored - rows.reshape(3, -1, *GRID.shape)[:, :, 2, 6, 1])
    assert apart.max() < 10 * scanner.noise
    return folder / "m.mdf", folder / "sm.mdf"


def run(*arguments: Any, refused: bool = False) -> str:
    result = CliRunner().invoke(app, ["reconstruct", *map(str, arguments)])
    if refused:
        assert isinstance(result.exception, DataError), result.output
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


# The error of the volume: without a penalty that knows of edges or of zeros a bar is blurred.
@pytest.mark.parametrize(
    ("method", "error"), [(None, 0.15), ("hyb", 0.15), ("tv", 0.35), ("l1", 0.15), ("art", 0.65), ("tikhonov", 0.6)]
)
def test_a_bar_is_found_where_it_is(files: tuple[Path, Path], tmp_path: Path, method: str | None, error: float) -> None:
    target, picture = tmp_path / "v.nii.gz", tmp_path / "v.png"
    said = run(files[0], "-s", files[1], "-o", target, "--figure", picture, *(["-m", method] if method else []))
    assert "images       2" in said
    image = nibabel.load(target)
    assert image.shape == (9, 8, 7, 2)
    np.testing.assert_allclose(image.header.get_zooms()[:3], (1.5, 2.0, 1.0), rtol=1e-6)
    values = image.get_fdata()[..., 0]
    expected = bar().transpose(2, 1, 0)
    assert np.linalg.norm(values - expected) < error * np.linalg.norm(expected)
    # Centre of mass in mm of the half of the volume that holds the bar, against the place in metres.
    near = np.where(np.arange(8)[:, None] >= 4, values, 0) * (values > 0.1)
    middle = np.array([(np.indices(near.shape)[i] * near).sum() / near.sum() for i in range(3)])
    z, y, x = (1e3 * (c + (p - (n - 1) / 2) * d) for c, p, n, d in zip(GRID.center, PLACE, GRID.shape, GRID.spacing,
                                                                       strict=True))  # fmt: skip
    np.testing.assert_allclose(nibabel.affines.apply_affine(image.affine, middle), (x, y, z), atol=0.75)
    pixels = np.asarray(_pixels(picture))
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 600
    assert (pixels.min(), pixels.max()) == (0, 255)
    back = read_result(target)
    assert back.image.shape == (2, *GRID.shape)
    assert back.grid == GRID


def _pixels(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def test_a_plan_of_a_volume(files: tuple[Path, Path]) -> None:
    plan = json.loads(run(files[0], "-s", files[1], "--dry-run", "--json"))
    assert "of 3 channels x 504 voxels (7 x 8 x 9)" in plan["system"]
    assert plan["unit"] == "1 is the concentration of the calibration's sample of perimag, 0.5 mol/l of solute"
    assert plan["method"] == "Hyb-ADMM"


@pytest.mark.parametrize("method", [*LEARNED, *UNTRAINED])
def test_methods_for_images_say_so(files: tuple[Path, Path], method: str) -> None:
    said = run(files[0], "-s", files[1], "-m", method, refused=True)
    assert (
        "is for images of two axes, the system matrix has a grid of 7 x 8 x 9; for volumes there are l1, tv, hyb"
        in said
    )


def test_refining_a_volume_is_refused(files: tuple[Path, Path]) -> None:
    said = run(files[0], "-s", files[1], "--upsample", 2, refused=True)
    assert "grid: shape (7, 8, 9) is not an image, interpolation needs two axes" in said


def test_a_matrix_beyond_the_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    scanner = FieldFreePoint(Grid((1, 6, 7), (1e-3, 2e-3, 2e-3), (0.0, 0.0, 0.0)))
    mdf.write_system_matrix(tmp_path / "sm.mdf", scanner.calibrate())
    mdf.write_measurement(tmp_path / "m.mdf", scanner.measure(np.eye(6, 7)))
    said = run(tmp_path / "m.mdf", "-s", tmp_path / "sm.mdf", "--upsample", 100_000, refused=True)
    assert "voxels needs" in said
    assert "raise --snr-threshold" in said


@pytest.mark.parametrize("method", ["hyb", "tv", "deq-mpi"])
def test_a_slice_of_three_channels_lies_in_its_plane(tmp_path: Path, method: str) -> None:
    """A grid of x and z with pixels of unequal sides: the third axis of the file is y."""
    grid = Grid((6, 1, 9), (1e-3, 2e-3, 1.5e-3), (4e-3, -3e-3, 10e-3))
    scanner = FieldFreePoint(grid)
    rows = scanner.matrix()
    image = np.zeros(grid.shape)
    image[1, 0, 2:5] = 1
    mdf.write_system_matrix(tmp_path / "sm.mdf", scanner.calibrate(rows))
    mdf.write_measurement(tmp_path / "m.mdf", scanner.measure(image, rows))
    run(tmp_path / "m.mdf", "-s", tmp_path / "sm.mdf", "-m", method, "-o", tmp_path / "i.nii", "--figure",
        tmp_path / "i.png")  # fmt: skip
    found = nibabel.load(tmp_path / "i.nii")
    values = found.get_fdata().squeeze()
    assert values.shape == (9, 6)
    x, z = (float((np.indices(values.shape)[i] * values**2).sum() / (values**2).sum()) for i in range(2))
    place = nibabel.affines.apply_affine(found.affine, (x, z, 0))
    np.testing.assert_allclose(place, (10 - 1 * 1.5, -3.0, 4 - 1.5 * 1.0), atol=0.8)
    np.testing.assert_allclose(found.header.get_zooms()[:3], (1.5, 1.0, 2.0), rtol=1e-6)
    assert _pixels(tmp_path / "i.png").min() == 0


def test_panels_of_a_volume_show_what_is_in_it() -> None:
    volume = bar() + 0.25 * (np.arange(9) == 4)
    volume[2, 6, 1] = 2
    z, y, x, most = plotting.volume_panels(volume, GRID)
    assert np.array_equal(z.image, volume[2])
    assert np.array_equal(y.image, volume[:, 6])
    assert np.array_equal(x.image, volume[:, :, 1])
    assert np.array_equal(most.image, volume.max(axis=0))
    assert (z.spacing, y.spacing, x.spacing) == ((2e-3, 1.5e-3), (1e-3, 1.5e-3), (1e-3, 2e-3))
    assert (z.title, y.title, x.title) == ("z = 3 mm", "y = 2 mm", "x = 5.5 mm")
    assert {panel.window for panel in (z, y, x, most)} == {(0.0, 2.0)}
    figure = plotting.figure([[z, y, x, most]])
    FigureCanvasAgg(figure).draw()
    boxes = [axis.get_window_extent() for axis in figure.subfigs[0].axes]
    # One scale: millimetres per point are the same in all panels and along both axes.
    scales = [
        length / points
        for panel, box in zip((z, y, x, most), boxes, strict=True)
        for length, points in zip(
            (panel.image.shape[0] * panel.spacing[0], panel.image.shape[1] * panel.spacing[1]),
            (box.height, box.width),
            strict=True,
        )
    ]
    np.testing.assert_allclose(scales, scales[0], rtol=0.03)


def test_a_volume_of_nothing_that_can_be_shown() -> None:
    for volume in (np.zeros(GRID.shape), np.full(GRID.shape, np.nan)):
        FigureCanvasAgg(plotting.figure([plotting.volume_panels(volume, GRID)])).draw()


def test_a_frame_of_a_stream_is_a_volume(files: tuple[Path, Path]) -> None:
    from pyrecon.data.mpi import prepare_frames, prepare_system

    scan = mdf.read_measurement(files[0])
    system = prepare_system(mdf.read_system_matrix(files[1]), scan)
    reconstruct = Reconstructor(system, HybADMM(iterations=5))
    frames = prepare_frames(system, scan)
    assert reconstruct.system.spacing == GRID.spacing  # so that edges count by their area
    images = list(reconstruct.stream(iter(frames.y), noise_std=float(frames.noise_std[0])))
    assert [image.shape for image in images] == [GRID.shape] * 2


def test_options_of_the_scanner_are_for_mpi(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.ones((2, 8, 8), np.complex64))
    for option in (("--average", 2), ("--average-periods",), ("--snr-threshold", 3), ("--upsample", 2)):
        assert f"{option[0]}: for MPI, " in run(tmp_path / "k.npy", *option, "-o", tmp_path / "o.npz", refused=True)
