"""The classical MPI methods: exact in few dimensions, optimal where they converge, each sample on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon.models.mpi import ART, L1ADMM, TVADMM, FactoredSystem, HybADMM, Tikhonov
from pyrecon.models.mpi.admm import _Sparse
from pyrecon.models.mpi.variation import Variation
from pyrecon.ops import project_l2_ball
from pyrecon.solvers import Status

SHAPE = (6, 7)
N = SHAPE[0] * SHAPE[1]


def system(rows: int = 120, rank: int = N, dtype: torch.dtype = torch.float64, seed: int = 0) -> FactoredSystem:
    """Singular values fall by three decades, as those of a system matrix do."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(rows, min(rank, rows), generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(N, min(rank, rows), generator=generator, dtype=torch.float64))
    s = 5 * torch.logspace(0, -3, min(rank, rows), dtype=torch.float64)
    return FactoredSystem(((q * s) @ v.T).to(dtype), SHAPE)


def scene(model: FactoredSystem, batch: int = 3, noise: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """Blocky images, noisy data and the norm of their noise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(batch, *SHAPE, dtype=torch.float64)
    for image in x:
        top, left = (int(torch.randint(0, 4, (), generator=generator)) for _ in range(2))
        image[top : top + 3, left : left + 2] = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    x = x.flatten(1)
    error = noise * torch.randn(batch, model.matrix.shape[0], generator=generator, dtype=torch.float64)
    y = x @ model.matrix.double().T + error
    return x, y.to(model.matrix.dtype), torch.linalg.vector_norm(error, dim=1).to(model.matrix.dtype)


def full_admm(
    model: FactoredSystem, y: Tensor, radius: Tensor, terms: list[Any], iterations: int
) -> tuple[Tensor, Tensor]:
    """DEQ-MPI Eqs. 5-9 word for word, in all M dimensions, by dense algebra: the image and the data dual."""
    A = model.matrix
    inverse = torch.linalg.inv(len(terms) * torch.eye(N, dtype=torch.float64) + A.double().T @ A.double()).to(A.dtype)
    x, d0 = y.new_zeros(len(y), N), torch.zeros_like(y)
    d = [torch.zeros_like(x) for _ in terms]
    for _ in range(iterations):
        z0 = project_l2_ball(x @ A.T - d0, y, radius)
        z = [term.prox(x - d_i, torch.empty_like(x)) for term, d_i in zip(terms, d, strict=True)]
        x = ((z0 + d0) @ A + sum(z_i + d_i for z_i, d_i in zip(z, d, strict=True))) @ inverse
        d0 = d0 + z0 - x @ A.T
        d = [d_i + z_i - x for d_i, z_i in zip(d, z, strict=True)]
    return x, d0


METHODS = [
    L1ADMM(mu=30.0, iterations=60, nonneg=False, epsilon=1.0),
    TVADMM(mu=30.0, iterations=60, nonneg=False, epsilon=1.0),
    HybADMM(mu=30.0, iterations=60, alpha=0.4, nonneg=False, epsilon=1.0),
]


@pytest.mark.parametrize("radius", [1.0, 0.3, 0.0, 100.0], ids=["noise", "infeasible", "point", "everything"])
@pytest.mark.parametrize(("rows", "rank"), [(120, N), (120, 17), (30, 30)])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_few_dimensions_give_the_images_of_all(method: Any, rows: int, rank: int, radius: float) -> None:
    model = system(rows, rank)
    _, y, noise = scene(model)
    expected, dual = full_admm(model, y, radius * noise, method._terms(SHAPE), method.iterations)
    solution, state = replace(method, epsilon=radius).solve(model, y, noise)
    scale = float(expected.abs().max())
    # 60 steps of a non-expansive map, each off by some eps of a dual that may be a thousand times the image.
    assert float((solution.value - expected).abs().max()) <= 1e-9 * max(scale, 1.0)
    torch.testing.assert_close(state.data_dual.norm(dim=1), dual.norm(dim=1), rtol=1e-8, atol=1e-9)


def test_the_dual_outside_the_range_follows_one_scalar() -> None:
    """u <- 1 + u (1 - s), the recursion of the docstring, is the last coordinate of the data dual: (u - 1) |y_p|."""
    model = system()
    _, y, noise = scene(model)
    radius = 0.7 * noise
    center = model.coordinates(y)
    y_p = y - (y @ model.Q) @ model.Q.T
    u = torch.ones(len(y), dtype=torch.float64)
    for iterations in range(1, 8):
        before = L1ADMM(mu=30.0, iterations=iterations - 1, epsilon=0.7).solve(model, y, noise)[1]
        inside = (before.x @ model.V) * model.s - before.data_dual[:, :-1] - center[:, :-1]
        s = torch.clamp(radius / torch.sqrt(inside.square().sum(1) + (u * center[:, -1]).square()), max=1.0)
        u = 1 + u * (1 - s)
        state = L1ADMM(mu=30.0, iterations=iterations, epsilon=0.7).solve(model, y, noise)[1]
        torch.testing.assert_close(state.data_dual[:, -1], (u - 1) * center[:, -1], rtol=1e-10, atol=1e-12)
        _, dual = full_admm(model, y, radius, [_Sparse(1 / 30.0, True)], iterations)
        torch.testing.assert_close(dual - (dual @ model.Q) @ model.Q.T, (u - 1)[:, None] * y_p, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_single_precision_loses_no_more_than_the_full_form_does(method: Any) -> None:
    exact_model, model = system(), system(dtype=torch.float32)
    _, y, noise = scene(model)
    exact_model = FactoredSystem(model.matrix.double(), SHAPE)
    exact, _ = full_admm(exact_model, y.double(), noise.double(), method._terms(SHAPE), method.iterations)
    full, _ = full_admm(model, y, noise, method._terms(SHAPE), method.iterations)
    ours = method.solve(model, y, noise)[0].value
    error, allowed = ((x.double() - exact).abs().max() for x in (ours, full))
    assert error <= 2 * allowed
    assert error <= 1e-3 * exact.abs().max()


def test_l1_solution_meets_the_optimality_conditions() -> None:
    """At the minimum of sum(x) over x >= 0 in the ball: the ball is touched and 1 - lambda A^T (y - A x) is zero where
    x > 0 and not negative elsewhere, for one lambda > 0. What is left in the range of A is kappa times the noise there,
    sigma sqrt(r), whatever the part of the data outside."""
    model, kappa = system(), 1.1
    _, y, noise = scene(model)
    y += 5 * noise[:, None] * (torch.eye(len(y.T))[:3].to(y) - model.Q[:3] @ model.Q.T)  # that no image explains
    solution, _ = L1ADMM(mu=20.0, iterations=20000, tol=1e-9, kappa=kappa).solve(model, y, noise)
    assert solution.counts() == {"CONVERGED": 3}
    x = solution.value
    inside = ((x @ model.matrix.T - y) @ model.Q).norm(dim=1)
    torch.testing.assert_close(inside, kappa * noise * (model.rank / y.shape[1]) ** 0.5, rtol=1e-4, atol=0)
    pull = (y - x @ model.matrix.T) @ model.matrix
    support = x > 1e-4
    assert support.any(dim=1).all()
    assert not support.all()
    lam = torch.stack([1 / pull[b][support[b]].mean() for b in range(len(x))])
    slack = 1 - lam[:, None] * pull
    assert (lam > 0).all()
    assert float(slack[support].abs().max()) < 1e-2
    assert float(slack.min()) > -1e-2


@pytest.mark.parametrize("method", [L1ADMM(mu=20.0), TVADMM(mu=20.0)], ids=lambda m: m.name)
def test_a_ball_in_the_range_is_reached_sooner(method: Any) -> None:
    """Than one in all rows with the same images in it, where data have a part that no image explains."""
    model, whole = system(), system()
    whole.noisy = True
    _, y, noise = scene(model)
    y += 5 * noise[:, None] * (torch.eye(len(y.T))[:3].to(y) - model.Q[:3] @ model.Q.T)
    limit = replace(method, iterations=20000).solve(model, y, noise)[0].value
    inside, outside = (
        (replace(method, iterations=100).solve(each, y, noise)[0].value - limit).norm() for each in (model, whole)
    )
    assert inside < 0.5 * outside
    slow = replace(method, iterations=20000).solve(whole, y, noise)[0].value
    assert (slow - limit).norm() < 0.5 * outside  # it gets there


def total_variation(x: Tensor) -> Tensor:
    image = x.view(-1, *SHAPE)
    down = torch.diff(image, dim=1, append=image[:, -1:])
    right = torch.diff(image, dim=2, append=image[:, :, -1:])
    return torch.sqrt(down.square() + right.square()).sum(dim=(1, 2))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_no_feasible_image_has_a_lower_penalty(alpha: float) -> None:
    """The true image lies in the ball by construction; so do mixtures of it with the solution."""
    model = system()
    truth, y, noise = scene(model)
    method = HybADMM(mu=20.0, alpha=alpha, iterations=8000, tol=1e-7, inner_iterations=20, epsilon=1.0)
    solution, _ = method.solve(model, y, noise)
    x = solution.value

    def penalty(image: Tensor) -> Tensor:
        return alpha * image.abs().sum(dim=1) + (1 - alpha) * total_variation(image)

    assert (model.residual(x, y) <= noise * (1 + 1e-3)).all()
    for share in (1.0, 0.1, 0.01):
        assert (penalty(x) <= penalty(share * truth + (1 - share) * x) * (1 + 1e-4)).all()
    if alpha in (0.0, 1.0):
        kind = TVADMM if alpha == 0 else L1ADMM
        single = kind(mu=20.0, iterations=8000, tol=1e-7, epsilon=1.0).solve(model, y, noise)[0]
        torch.testing.assert_close(single.value, x, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", [L1ADMM(tol=1e-4), TVADMM(tol=1e-4), HybADMM(tol=1e-4)], ids=lambda m: m.name)
def test_each_sample_stops_by_itself_and_a_broken_one_alone(method: Any) -> None:
    """Samples that leave the batch early, NaN among them, change nothing for the others."""
    model = system()
    _, y, noise = scene(model, batch=5)
    y = y * torch.tensor([1.0, 0.01, 1.0, 5.0, 0.3], dtype=torch.float64)[:, None]
    noise = noise * torch.tensor([1.0, 0.01, 1.0, 5.0, 0.3], dtype=torch.float64)
    y[2, 7] = torch.nan
    method = replace(method, iterations=400)
    together, state = method.solve(model, y, noise)
    assert together.status[2] == Status.NONFINITE
    assert len(set(together.iterations.tolist())) > 1
    for b in (0, 1, 3, 4):
        alone, own = method.solve(model, y[b : b + 1], noise[b : b + 1])
        assert alone.iterations[0] == together.iterations[b]
        assert alone.status[0] == together.status[b]
        torch.testing.assert_close(alone.value[0], together.value[b], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(own.duals[:, 0], state.duals[:, b], rtol=1e-7, atol=1e-9)
    assert (together.residual[together.status == Status.CONVERGED] <= 1e-4).all()


def test_a_warm_start_goes_on_where_the_run_ended() -> None:
    model = system()
    _, y, noise = scene(model)
    method = L1ADMM(mu=30.0, iterations=40)
    once = method.solve(model, y, noise)[0].value
    _, state = replace(method, iterations=25).solve(model, y, noise)
    again = replace(method, iterations=15).solve(model, y, noise, start=state)[0].value
    torch.testing.assert_close(again, once, rtol=1e-10, atol=1e-12)


CHANGES = [
    (L1ADMM(mu=30.0, iterations=20), {"mu": 60.0}),
    (L1ADMM(mu=30.0, iterations=20), {"iterations": 21}),
    (L1ADMM(mu=30.0, iterations=200), {"tol": 1e-2}),
    (L1ADMM(mu=30.0, iterations=20), {"nonneg": False}),
    (L1ADMM(mu=30.0, iterations=20), {"epsilon": 1.2}),
    (L1ADMM(mu=30.0, iterations=20), {"kappa": 0.5}),
    (L1ADMM(mu=30.0, iterations=20), {"cutoff": 1e-2}),
    (TVADMM(mu=30.0, iterations=20), {"isotropic": False}),
    (TVADMM(mu=30.0, iterations=20), {"inner_iterations": 3}),
    (HybADMM(mu=30.0, iterations=20), {"alpha": 0.2}),
    (HybADMM(mu=30.0, iterations=20), {"isotropic": False}),
    (HybADMM(mu=30.0, iterations=20), {"inner_iterations": 3}),
    (ART(weight=1.0), {"weight": 2.0}),
    (ART(weight=0.01), {"sweeps": 11}),
    (ART(weight=0.01), {"nonneg": False}),
    (ART(weight=0.01, sweeps=2), {"order": "random"}),
    (Tikhonov(weight=0.01), {"weight": 0.02}),
    (Tikhonov(weight=0.01), {"nonneg": False}),
]


@pytest.mark.parametrize(("method", "change"), CHANGES, ids=lambda v: v.name if hasattr(v, "name") else str(v))
def test_every_setting_has_an_effect(method: Any, change: dict[str, Any]) -> None:
    model = system()
    _, y, noise = scene(model, noise=0.1)
    before, after = (m.solve(model, y, noise)[0].value for m in (method, replace(method, **change)))
    assert float((before - after).abs().max()) > 1e-4 * float(before.abs().max())


def test_published_settings() -> None:
    assert (L1ADMM.paper(25).mu, L1ADMM.paper(25).iterations) == (250.0, 200)
    assert (TVADMM.paper(25).mu, TVADMM.paper(25).iterations) == (50.0, 100)
    assert [HybADMM.paper(snr).alpha for snr in (15, 19.9, 20, 25, 29.9, 30, 35)] == [0.1, 0.1, 0.8, 0.8, 0.8, 0.9, 0.9]
    assert (HybADMM.paper(25).mu, HybADMM.paper(25).iterations) == (10.0, 100)
    assert [ART.paper(snr).weight for snr in (14.9, 15, 25, 34.9, 35)] == [10.0, 1.0, 1.0, 1.0, 0.1]
    assert ART.paper(25).sweeps == 10
    assert (L1ADMM.released(25).mu, TVADMM.released(25).mu) == (50.0, 250.0)
    assert not TVADMM.released(25).isotropic
    assert TVADMM.released(25).inner_iterations == HybADMM.released(25).inner_iterations == 10


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mu: 0\.0 is not positive"):
        L1ADMM(mu=0.0)
    with pytest.raises(ValueError, match="alpha: 2 is not a share, expected 0 to 1"):
        HybADMM(alpha=2)
    with pytest.raises(ValueError, match="cutoff: 2 is not relative to the largest singular value"):
        TVADMM(cutoff=2)
    for method in (TVADMM, HybADMM):
        with pytest.raises(ValueError, match="inner_iterations: 0 does not fit, expected 1 to 1000000"):
            method(inner_iterations=0)
    for size in (1e-40, 1e20):
        with pytest.raises(ValueError, match=r"mu: 1e.\d+ does not fit, expected 0 or 1e-30 to 1e"):
            TVADMM(mu=size)
    for name in ("kappa", "epsilon"):
        with pytest.raises(ValueError, match=f"{name}: -1.0 does not fit, expected a finite number >= 0"):
            TVADMM(**{name: -1.0})
    with pytest.raises(ValueError, match="iterations: -1 is negative"):
        TVADMM(iterations=-1)
    with pytest.raises(ValueError, match="weight: nan does not fit"):
        Tikhonov(weight=float("nan"))
    with pytest.raises(ValueError, match="sweeps: 0, expected at least one"):
        ART(sweeps=0)
    line = FactoredSystem(torch.rand(9, 6), (6,))
    with pytest.raises(ValueError, match=r"noise: shape \(2,\) does not fit"):
        L1ADMM().solve(line, torch.rand(1, 9), torch.ones(2))
    with pytest.raises(ValueError, match=r"y: shape \(1, 8\) does not fit"):
        ART().solve(line, torch.rand(1, 8), torch.ones(1))


# --- linear methods ----------------------------------------------------------------------------------------------
def test_art_is_tikhonov_kaczmarz_with_its_dual() -> None:
    model = system()
    _, y, noise = scene(model)
    A, weight = model.matrix.numpy(), 0.5
    expected = []
    for data in y.numpy():
        x, v = np.zeros(N), np.zeros(len(A))
        for _ in range(4):
            for i, row in enumerate(A):
                step = (data[i] - row @ x - np.sqrt(weight) * v[i]) / (row @ row + weight)
                x += step * row
                v[i] += np.sqrt(weight) * step
            x = np.maximum(x, 0)
        expected.append(x)
    solution, state = ART(weight=weight, sweeps=4).solve(model, y, noise)
    np.testing.assert_allclose(solution.value, np.array(expected), rtol=1e-8, atol=1e-10)
    assert solution.iterations.tolist() == [4, 4, 4]
    assert state is solution.value


def test_many_sweeps_reach_tikhonov() -> None:
    """Without the sign constraint; few sweeps say that they have not."""
    model = system()
    _, y, noise = scene(model)
    target, _ = Tikhonov(weight=0.5, nonneg=False).solve(model, y, noise)
    solution, _ = ART(weight=0.5, sweeps=2000, nonneg=False).solve(model, y, noise)
    torch.testing.assert_close(solution.value, target.value, rtol=1e-4, atol=1e-5)
    assert solution.counts() == {"CONVERGED": 3}
    assert ART(weight=0.01, sweeps=1, nonneg=False).solve(model, y, noise)[0].counts() == {"MAX_ITER": 3}
    assert target.counts() == {"CONVERGED": 3}


def test_tikhonov_solves_the_normal_equations_for_all_weights_at_once() -> None:
    model = system(rank=20)
    _, y, noise = scene(model)
    weights = torch.logspace(-3, 1, 5, dtype=torch.float64)
    path = model.tikhonov(model.coordinates(y), weights)
    assert path.shape == (5, 3, N)
    for weight, x in zip(weights, path, strict=True):
        gram = model.matrix.T @ model.matrix + weight * torch.eye(N, dtype=torch.float64)
        torch.testing.assert_close(x, torch.linalg.solve(gram, (y @ model.matrix).T).T, rtol=1e-8, atol=1e-9)
        single, _ = Tikhonov(weight=float(weight)).solve(model, y, noise)
        torch.testing.assert_close(single.value, x.clamp(min=0))


# --- the factorised matrix ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "rank"), [(120, N), (120, 17), (30, 30)])
def test_coordinates_keep_every_distance_to_the_data(rows: int, rank: int) -> None:
    model = system(rows, rank)
    _, y, _ = scene(model)
    assert model.rank == min(rank, rows)
    coordinates = model.coordinates(y)
    x = torch.randn(3, N, dtype=torch.float64)
    image = (x @ model.V) * model.s
    distance = torch.hypot((image - coordinates[:, :-1]).norm(dim=1), coordinates[:, -1])
    torch.testing.assert_close(distance, (x @ model.matrix.T - y).norm(dim=1))
    torch.testing.assert_close(model.residual(x, y), distance)


def test_singular_values_that_are_rounding_are_dropped() -> None:
    assert system(rank=17, dtype=torch.float32).rank == 17
    assert system(rank=17).rank == 17


def test_noise_is_estimated_outside_the_range() -> None:
    model = system(rows=2000)
    _, y, noise = scene(model, batch=4, noise=0.3)
    # 1958 degrees of freedom: a norm is known to 1/sqrt(2 * 1958) = 1.6 %, the true one likewise
    torch.testing.assert_close(model.noise_std(model.coordinates(y)) * 2000**0.5, noise, rtol=0.08, atol=0)
    square = system(rows=N)
    with pytest.raises(ValueError, match="leaves nothing to estimate noise from; give it"):
        square.noise_std(square.coordinates(torch.rand(1, N, dtype=torch.float64)))


def test_truncation_by_rank_and_by_cutoff() -> None:
    model = system(rank=30)
    _, y, _ = scene(model)
    coordinates = model.coordinates(y)
    u, s, vh = np.linalg.svd(model.matrix.numpy(), full_matrices=False)
    assert (s >= 0.1 * s[0]).sum() == 10
    for keep, options in (
        (30, {}),
        (12, {"rank": 12}),
        (30, {"rank": 99}),
        (10, {"cutoff": 0.1}),
        (5, {"cutoff": 0.1, "rank": 5}),
    ):
        expected = (y.numpy() @ u[:, :keep] / s[:keep]) @ vh[:keep]
        np.testing.assert_allclose(model.truncated(coordinates, **options), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="rank: 0 is not a number of singular values"):
        model.truncated(coordinates, rank=0)
    with pytest.raises(ValueError, match="cutoff: 3 is not relative"):
        model.truncated(coordinates, cutoff=3)


def test_matrices_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="matrix: holds NaN"):
        FactoredSystem(torch.full((4, 6), torch.nan), (2, 3))
    with pytest.raises(ValueError, match="matrix: is zero"):
        FactoredSystem(torch.zeros(4, 6), (2, 3))
    with pytest.raises(ValueError, match=r"matrix: shape \(4, 6\) does not fit"):
        FactoredSystem(torch.ones(4, 6), (2, 4))


def test_total_variation_goes_on_from_its_dual() -> None:
    """Repeated calls on the same image converge to the proximal map; the first call alone does not."""
    v = torch.rand(2, N, dtype=torch.float64)
    often, once, long = (Variation(SHAPE, 0.2, k, True, False) for k in (3, 3, 3000))
    target = long.prox(v, torch.empty_like(v))
    for _ in range(300):
        result = often.prox(v, torch.empty_like(v))
    first = float((once.prox(v, torch.empty_like(v)) - target).abs().max())
    assert float((result - target).abs().max()) < 1e-2 * first
