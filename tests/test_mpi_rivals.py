"""What DEQ-MPI is compared with: plug-and-play, unrolled, end-to-end, and the deep image prior."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.models import DEQMPI
from pyrecon.models import weights as stored
from pyrecon.models.deq_mpi import ROLES, Role, card_of, new_card
from pyrecon.models.mpi import (
    DEQ,
    L1ADMM,
    LEARNED,
    DeepImagePrior,
    EndToEnd,
    FactoredSystem,
    PnP,
    Reconstructor,
    ScaledSystem,
    Unrolled,
)
from pyrecon.models.mpi.deq import shipped
from pyrecon.models.mpi.system import noise_std, published_start, row_gain
from pyrecon.models.weights import _card_of_1
from pyrecon.nn import RDN, ExactConsistency
from pyrecon.ops import project_l2_ball

SHAPE = (9, 7)
N = SHAPE[0] * SHAPE[1]
NOISE = 0.1
METHODS: dict[Role, type[Any]] = {"equilibrium": DEQ, "unrolled": Unrolled, "end-to-end": EndToEnd, "denoiser": PnP}


def matrix(rows: int = 160) -> Tensor:
    """Singular values that fall by two decades."""
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(rows, N, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(N, N, generator=generator))
    return (q * (6 * torch.logspace(0, -2, N))) @ v.T


def frames(A: Tensor, count: int = 3, noise: float = NOISE) -> tuple[Tensor, Tensor]:
    """Blocks, and their noisy data."""
    generator = torch.Generator().manual_seed(2)
    x = torch.zeros(count, *SHAPE)
    for k, image in enumerate(x):
        image[1 + k % 4 : 5 + k % 4, 2:5] = 0.5 + k / count
    return x, x.flatten(1) @ A.T + noise * torch.randn(count, len(A), generator=generator)


def net(role: Role = "denoiser", **options: Any) -> DEQMPI:
    """Small and gentle: near the identity."""
    torch.manual_seed(3)
    model = DEQMPI(RDN(4, 3, 2, 2), **options)
    with torch.no_grad():
        model.rdn.last.weight.mul_(0.05)
        model.rdn.last.bias.fill_(-0.01)  # type: ignore[union-attr]
    model.card = new_card(20.0, SHAPE, (0.05, 2.0), {}, role)
    return model.eval()


def saved(folder: Path, role: Role = "denoiser", **options: Any) -> str:
    net(role, **options).save(folder / f"{role}.safetensors")
    return str(folder / f"{role}.safetensors")


def reconstructed(method: Any, A: Tensor, y: Tensor, **options: Any) -> Tensor:
    return Reconstructor(A, method, shape=SHAPE, **options)(y, noise_std=NOISE)[0]


# --- plug and play ---------------------------------------------------------------------------------------------------
def identity() -> RDN:
    """A denoiser that changes no image that is not negative."""
    rdn = RDN(4, 3, 1, 1)
    with torch.no_grad():
        for value in rdn.last.parameters():
            value.zero_()
    return rdn


def test_a_denoiser_that_does_nothing_leaves_least_squares_in_the_ball(tmp_path: Path) -> None:
    """The only prior left is the network's ReLU, so the same iterates come from l1-ADMM with a threshold of zero."""
    model = DEQMPI(identity())
    model.card = new_card(20.0, SHAPE, (0.05, 2.0), {}, "denoiser")
    model.save(tmp_path / "identity.safetensors")
    A = matrix().double()
    A = A * row_gain(A)
    y = frames(A.float())[1].double()
    system, noise = FactoredSystem(A, SHAPE), torch.full((3,), NOISE * len(A) ** 0.5, dtype=torch.float64)
    for kappa, iterations in ((1.0, 40), (0.5, 7)):
        method = PnP(str(tmp_path / "identity.safetensors"), strength=3.0, kappa=kappa, iterations=iterations)
        found, _ = method.solve(system, y, noise)
        expected, _ = L1ADMM(mu=1e12, kappa=kappa, iterations=iterations).solve(system, y, noise)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-6, atol=1e-8)
        assert found.iterations.tolist() == [iterations] * 3
        if iterations == 40:
            inside = ((found.value @ A.T - y) @ system.Q).norm(dim=1)
            assert (inside < 1.05 * NOISE * system.rank**0.5).all()


def test_plug_and_play_is_its_equations_in_all_rows(tmp_path: Path) -> None:
    """The docstring word for word, in M dimensions, by dense algebra."""
    A = matrix().double()
    A = A * row_gain(A)
    y = frames(A.float())[1].double()
    noise, strength = torch.full((3,), NOISE * len(A) ** 0.5, dtype=torch.float64), 0.3
    denoise = net().rdn.double()
    inverse = torch.linalg.inv(torch.eye(N, dtype=torch.float64) + 3.0 * A.T @ A)
    y_in = y @ torch.linalg.pinv(A).T @ A.T  # the ball is in the range of A
    radius = torch.full((3,), 0.8 * NOISE * int(torch.linalg.matrix_rank(A)) ** 0.5, dtype=torch.float64)
    x, d0 = torch.zeros(3, N, dtype=torch.float64), torch.zeros_like(y)
    d1 = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(12):
            z0 = project_l2_ball(x @ A.T - d0, y_in, radius)
            z1 = denoise((strength * (x - d1)).unflatten(1, SHAPE)).flatten(1) / strength
            x = (3.0 * (z0 + d0) @ A + z1 + d1) @ inverse
            d0, d1 = d0 + z0 - x @ A.T, d1 + z1 - x
    method = PnP(saved(tmp_path), strength=strength, kappa=0.8, iterations=12, penalty=3.0)
    found, _ = method.solve(FactoredSystem(A, SHAPE), y, noise)
    torch.testing.assert_close(found.value, x.clamp(min=0), rtol=1e-6, atol=1e-7)


def test_a_scaled_network_is_the_network_of_a_scaled_image() -> None:
    rdn, image = RDN(5, 4, 2, 3).double(), torch.rand(2, *SHAPE, dtype=torch.float64)
    for strength in (0.2, 7.0):
        torch.testing.assert_close(rdn.scaled(strength)(image), rdn(strength * image) / strength)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="strength"):
            rdn.scaled(wrong)


# --- unrolled, end to end --------------------------------------------------------------------------------------------
def test_an_unrolled_model_infers_as_it_was_trained() -> None:
    from pyrecon.implicit import Unrolled as UnrolledGradient

    model = DEQMPI(RDN(4, 3, 2, 2), iterations=5, gradient=UnrolledGradient(5))
    scaled = ScaledSystem.of_matrix(matrix(), SHAPE)
    y = frames(scaled.matrix)[1]
    radius = torch.full((3,), noise_std(20.0) * len(y[0]) ** 0.5)
    problem = scaled.problem(20.0)
    trained = model(problem, y, radius)
    assert trained.requires_grad
    torch.testing.assert_close(model.reconstruct(problem, y, radius).value, trained.detach(), rtol=1e-4, atol=1e-5)
    more = model.reconstruct(problem, y, radius, iterations=6).value
    assert float((more - trained.detach()).abs().max()) > 1e-3


def test_end_to_end_is_the_network_of_the_least_squares_image(tmp_path: Path) -> None:
    A = matrix()
    y = frames(A)[1]
    scaled, up = ScaledSystem.of_matrix(A, SHAPE), noise_std(20.0) / (NOISE * row_gain(A))
    start = published_start(scaled.problem(20.0)).start(y * scaled.gain * up)[0]
    with torch.no_grad():
        expected = net().rdn(start.unflatten(1, SHAPE)) / up
    images, report = Reconstructor(A, EndToEnd(saved(tmp_path, "end-to-end")), shape=SHAPE, model_error=False)(
        y, noise_std=NOISE
    )
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)
    assert report.status == {"CONVERGED": 3}
    assert report.method == "End-to-end"


def test_unrolled_begins_with_the_published_least_squares(tmp_path: Path) -> None:
    A = matrix()
    y = frames(A)[1]
    scaled, up = ScaledSystem.of_matrix(A, SHAPE), noise_std(20.0) / (NOISE * row_gain(A))
    problem = published_start(scaled.problem(20.0))
    radius = torch.full((3,), noise_std(20.0) * len(A) ** 0.5)
    expected = net(iterations=1).reconstruct(problem, y * scaled.gain * up, radius).value.clamp(min=0) / up
    method = Unrolled(saved(tmp_path, "unrolled", iterations=1))
    images = reconstructed(method, A, y, model_error=False)
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


def test_data_as_they_are_is_a_consistency_of_its_own(tmp_path: Path) -> None:
    """z0 = y: with it the projection's radius plays no part, and it comes back from its file."""
    model = net("equilibrium", consistency=ExactConsistency())
    scaled = ScaledSystem.of_matrix(matrix(), SHAPE)
    y, problem = frames(scaled.matrix)[1], scaled.problem(20.0)
    x, _, d0 = model.step(problem, problem.start(y), y, torch.ones(3))
    torch.testing.assert_close(d0, y - problem.A(x), rtol=1e-4, atol=1e-4)
    small, large = (model.reconstruct(problem, y, torch.full((3,), r)).value for r in (1e-3, 1e3))
    assert torch.equal(small, large)
    model.save(tmp_path / "exact.safetensors")
    loaded = DEQMPI.load(tmp_path / "exact.safetensors")
    assert isinstance(loaded.consistency, ExactConsistency)
    A = matrix()
    exact, ball = (
        reconstructed(DEQ(path), A, frames(A)[1])
        for path in (str(tmp_path / "exact.safetensors"), saved(tmp_path, "equilibrium"))
    )
    assert float((exact - ball).abs().max()) > 0.01


# --- roles -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ROLES)
def test_weights_work_where_they_are_for_and_nowhere_else(tmp_path: Path, role: Role) -> None:
    A = matrix()
    y = frames(A)[1]
    path = saved(tmp_path, role)
    assert DEQMPI.load(path).card.role == role  # type: ignore[union-attr]
    for expected, method in METHODS.items():
        if expected == role:
            assert torch.isfinite(reconstructed(method(path), A, y)).all()
            continue
        with pytest.raises(DataError, match=f"{role}.safetensors: holds weights of the role '{role}', .*'{expected}'"):
            Reconstructor(A, method(path), shape=SHAPE)
    assert {kind.role for kind in LEARNED.values()} == set(METHODS)


def test_shipped_weights_are_chosen_by_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHIPPED", tmp_path)
    A = matrix()
    y = frames(A)[1]
    for role, method in METHODS.items():
        model = "deq" if role == "equilibrium" else role
        with pytest.raises(DataError, match=f"none of the role '{role}' .*--model {model}`"):
            Reconstructor(A, method(), shape=SHAPE)
    for role in ROLES:
        saved(tmp_path, role)
    assert set(stored.shipped_weights()) == set(ROLES)
    for role, method in METHODS.items():
        assert list(shipped(role)) == [role]
        torch.testing.assert_close(reconstructed(method(), A, y), reconstructed(method(role), A, y))


def test_shipped_weights_are_chosen_by_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    A = matrix()
    right, wrong = DEQMPI.load(saved(tmp_path, "equilibrium")), DEQMPI.load(saved(tmp_path, "unrolled"))
    assert right.card is not None
    with torch.no_grad():
        wrong.rdn.last.bias += 1
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(stored, "SHIPPED", shipped)
    for name, model, shape in (("a", wrong, (2 * SHAPE[0], 2 * SHAPE[1])), ("b", right, SHAPE)):
        model.card = replace(right.card, shape=shape)
        model.save(shipped / f"{name}.safetensors")
    y = frames(A)[1]
    torch.testing.assert_close(reconstructed(DEQ(), A, y), reconstructed(DEQ("b"), A, y))


def test_weights_from_before_there_were_roles_are_for_the_equilibrium() -> None:
    """And their cards had the data beside the role."""
    old = {"snr_db": 25.0, "shape": [3, 4], "signal_range": [0.1, 1.0], "training": {"images": "vessels"}}
    for extra, role in (({}, "equilibrium"), ({"role": "denoiser"}, "denoiser")):
        new = card_of(_card_of_1(old | extra, "deq-mpi"))
        assert new == new_card(25.0, (3, 4), (0.1, 1.0), {"images": "vessels"}, role)
    with pytest.raises(ValueError, match="'judge', expected one of equilibrium, denoiser"):
        card_of(_card_of_1(old | {"role": "judge"}, "deq-mpi"))


# --- deep image prior ------------------------------------------------------------------------------------------------
def fitted(A: Tensor, y: Tensor, **settings: Any) -> Any:
    noise = torch.full((len(y),), NOISE * len(A) ** 0.5, dtype=y.dtype)
    return DeepImagePrior(**settings).solve(FactoredSystem(A, SHAPE), y, noise)[0]


def test_deep_image_prior_of_two_frames_is_that_of_each_alone() -> None:
    """In float64, as Adam divides small gradients by their size. The first frame leaves the batch before the other."""
    A = matrix().double()
    y = frames(A.float())[1].double()[[0, 2]]
    y = y * torch.tensor([[0.05], [3.0]])  # the first is weak against its noise: done at once
    both = fitted(A, y, iterations=40, rate=5e-3, kappa=2.0)
    assert both.iterations[0] < both.iterations[1]
    for k in range(2):
        alone = fitted(A, y[[k]], iterations=40, rate=5e-3, kappa=2.0)
        torch.testing.assert_close(alone.value[0], both.value[k], rtol=1e-6, atol=1e-8)
        assert alone.iterations[0] == both.iterations[k]
        assert alone.status[0] == both.status[k]


def test_deep_image_prior_stops_at_the_noise() -> None:
    A = matrix()
    x, y = frames(A)
    found = fitted(A, y, iterations=600, rate=5e-3)
    assert found.counts() == {"CONVERGED": 3}
    system = FactoredSystem(A, SHAPE)
    misfit = ((found.value @ A.T - y) @ system.Q).norm(dim=1)  # in the range of A
    radius = NOISE * system.rank**0.5
    torch.testing.assert_close(found.residual, misfit / radius, rtol=1e-3, atol=0)
    assert ((misfit <= radius * 1.001) & (misfit > 0.5 * radius)).all()
    assert (found.iterations % 10 == 0).all()
    assert float((found.value.view_as(x) - x).square().mean()) < 0.3 * float(x.square().mean())
    on = fitted(A, y, iterations=50, rate=5e-3, kappa=0.0)
    assert on.counts() == {"MAX_ITER": 3}
    assert on.iterations.tolist() == [50] * 3


def test_deep_image_prior_minimises_the_misfit_in_all_rows() -> None:
    """The first steps by autograd on |A net(z) - y|^2 itself."""
    from pyrecon.models.mpi.dip import _first, _network

    A = matrix().double()
    y = frames(A.float())[1].double()[:1]
    weights, z = _first(0, SHAPE, y)
    weights = [w.requires_grad_() for w in weights]
    adam = torch.optim.Adam(weights, lr=1e-3)
    for _ in range(4):
        adam.zero_grad()
        ((_network(weights, z) @ A.T - y).square().sum() / (N + 1)).backward()
        adam.step()
    found = fitted(A, y, iterations=4, kappa=0.0)
    torch.testing.assert_close(found.value, _network(weights, z).detach(), rtol=1e-5, atol=1e-7)


def test_progress_of_a_long_method_is_told() -> None:
    A = matrix()
    y = frames(A)[1]
    told: list[tuple[float, int]] = []
    method = DeepImagePrior(iterations=20, kappa=0.0)
    Reconstructor(A, method, shape=SHAPE, batch=2)(y, noise_std=NOISE, progress=lambda *at: told.append(at))
    assert told == [(1.0, 3), (2.0, 3), (2.0, 3), (2.5, 3), (3.0, 3), (3, 3)]

    def interrupt(done: float, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reconstructor(A, DeepImagePrior(), shape=SHAPE)(y, noise_std=NOISE, progress=interrupt)


# --- settings and bad input ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "change"),
    [
        (PnP(iterations=9), {"strength": 0.1}),
        (PnP(iterations=9), {"kappa": 0.3}),
        (PnP(iterations=9), {"iterations": 10}),
        (PnP(iterations=9), {"penalty": 5.0}),
        (Unrolled(), {"iterations": 2}),
        (DeepImagePrior(iterations=20, kappa=0.0), {"iterations": 21}),
        (DeepImagePrior(iterations=20, kappa=0.0), {"rate": 2e-3}),
        (DeepImagePrior(iterations=20, kappa=0.0), {"seed": 1}),
        (DeepImagePrior(iterations=20, kappa=0.0), {"kappa": 10.0}),
    ],
    ids=str,
)
def test_every_setting_has_an_effect(tmp_path: Path, method: Any, change: dict[str, Any]) -> None:
    if hasattr(method, "weights"):
        method = replace(method, weights=saved(tmp_path, method.role))
    A = matrix()
    y = frames(A)[1]
    before, after = (reconstructed(m, A, y) for m in (method, replace(method, **change)))
    assert float((before - after).abs().max()) > 1e-4 * float(before.abs().max())


def test_settings_are_checked() -> None:
    for kind, wrong in (
        (PnP, {"strength": 0.0}),
        (PnP, {"kappa": -0.1}),
        (PnP, {"kappa": math.nan}),
        (PnP, {"iterations": 0}),
        (PnP, {"penalty": 0.0}),
        (Unrolled, {"iterations": 0}),
        (DeepImagePrior, {"iterations": 0}),
        (DeepImagePrior, {"rate": 0.0}),
        (DeepImagePrior, {"kappa": -1.0}),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(**wrong)
    A = matrix()
    y = frames(A)[1]
    with pytest.raises(DataError, match="not an image"):
        Reconstructor(A, DeepImagePrior(iterations=5), shape=(N,))
    with pytest.raises(ValueError, match=r"noise_std: -0\.1 is negative"):
        Reconstructor(A, L1ADMM(), shape=SHAPE)(y, noise_std=-0.1)


def test_a_radius_is_checked(tmp_path: Path) -> None:
    """Negative is refused; zero is data without noise, which trained weights have never seen."""
    scaled = ScaledSystem.of_matrix(matrix(), SHAPE)
    y = frames(scaled.matrix)[1]
    with pytest.raises(ValueError, match="radius: -1 is negative"):
        net().reconstruct(scaled.problem(20.0), y, torch.tensor([1.0, -1.0, 1.0]))
    for role in ("equilibrium", "unrolled", "end-to-end"):
        with pytest.warns(UserWarning, match=f"no noise is given for 3 of 3 frames, {role}.safetensors was trained"):
            Reconstructor(matrix(), METHODS[role](saved(tmp_path, role)), shape=SHAPE, model_error=False)(
                frames(matrix(), noise=0.0)[1], noise_std=0.0
            )


def rivals(folder: Path) -> list[Any]:
    trained = [method(saved(folder, role)) for role, method in METHODS.items()]
    return [*trained, DeepImagePrior(iterations=10)]


def test_one_bad_frame_among_64_is_named_and_the_others_are_right(tmp_path: Path) -> None:
    A = matrix()
    y = frames(A, count=64)[1]
    broken = y.clone()
    broken[17, 5] = torch.nan
    others = [k for k in range(64) if k != 17]
    for method in rivals(tmp_path):
        expected = reconstructed(method, A, y)
        with pytest.warns(UserWarning, match="data: NaN or infinite values in frames 17$"):
            images, report = Reconstructor(A, method, shape=SHAPE)(broken, noise_std=NOISE)
        assert report.status["NONFINITE"] == 1, method.name
        assert torch.isnan(images[17]).all(), method.name
        torch.testing.assert_close(images[others], expected[others], rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:data. the signal", "ignore:data. no noise")
def test_zeros_and_noiseless_frames_are_images_and_zeros_are_named(tmp_path: Path) -> None:
    A = matrix()
    clean = frames(A, noise=0.0)[1]
    clean[1] = 0
    for method in (*rivals(tmp_path), L1ADMM()):
        for noise in (NOISE, 0.0):
            with pytest.warns(UserWarning, match="data: nothing but zeros in frames 1$"):
                images, report = Reconstructor(A, method, shape=SHAPE)(clean, noise_std=noise)
            assert "NONFINITE" not in report.status, (method.name, noise)
            assert torch.isfinite(images).all(), (method.name, noise)


def test_images_of_another_size_than_in_training_are_a_warning(tmp_path: Path) -> None:
    A = matrix()
    for role in ("equilibrium", "unrolled", "end-to-end"):
        with pytest.warns(UserWarning, match=r"grid: .* was trained on images of 9 x 7, the system matrix has 7 x 9"):
            Reconstructor(A, METHODS[role](saved(tmp_path, role)), shape=SHAPE[::-1])


# --- the command -----------------------------------------------------------------------------------------------------
def test_command_reconstructs_with_each(tmp_path: Path) -> None:
    import numpy as np

    from pyrecon.cli import app
    from pyrecon.data.raw import Grid
    from pyrecon.io import mdf
    from pyrecon.physics.mpi import Scanner

    scanner = replace(Scanner(), angles=4, harmonics=(2, 3, 4))
    mdf.write_system_matrix(tmp_path / "sm.mdf", scanner.calibrate(Grid(SHAPE, (2e-3, 2e-3), (0.0, 0.0)), noise=0.1))
    fine = Grid((18, 14), (1e-3, 1e-3), (0.0, 0.0))
    mdf.write_measurement(tmp_path / "scan.mdf", scanner.measure(torch.rand(2, 18, 14), fine, noise=0.1))
    files = [str(tmp_path / "scan.mdf"), "-s", str(tmp_path / "sm.mdf")]
    for name, options in {
        "pp-mpi": ["--weights", saved(tmp_path, "denoiser"), "-p", "iterations=5", "-p", "strength=2"],
        "unrolled": ["--weights", saved(tmp_path, "unrolled")],
        "end-to-end": ["--weights", saved(tmp_path, "end-to-end")],
        "dip": ["-p", "iterations=3"],
    }.items():
        target = tmp_path / f"{name}.npz"
        result = CliRunner().invoke(app, ["reconstruct", *files, "-m", name, *options, "-o", str(target), "--json"])
        assert result.exit_code == 0, result.output
        assert np.load(target)["image"].shape == (2, *SHAPE)
        assert json.loads(result.stdout)["samples"] == 2
    told, images = [], []
    for options in ([], ["--no-denoise"]):
        target = tmp_path / "hyb.npz"
        result = CliRunner().invoke(app, ["reconstruct", *files, "-m", "hyb", *options, "-o", str(target), "--json"])
        assert result.exit_code == 0, result.output
        images.append(np.load(target)["image"])
        told.append(json.loads(result.stdout)["details"]["matrix"])
    assert "of its noise taken out, rank" in told[0]
    assert told[1] == told[0].split(",")[0]
    assert np.abs(images[0] - images[1]).max() > 1e-3 * np.abs(images[0]).max()
