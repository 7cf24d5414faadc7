"""What Kaczmarz sweeps converge to, that every option has its effect, and what bad arguments are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon import testing
from pyrecon.ops import kaczmarz, kaczmarz_order
from pyrecon.ops._kaczmarz_order import _uniform

DTYPES = [torch.float64, torch.complex128]


def problem(dtype: torch.dtype, batch: int = 3, rows: int = 40, columns: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, dtype=dtype, generator=generator) for shape in ((rows, columns), (batch, rows)))  # type: ignore[return-value]


def tikhonov(A: Tensor, y: Tensor, weight: Tensor, center: Tensor | None = None) -> Tensor:
    """argmin |A x - y|^2 + weight |x - center|^2, by the normal equations."""
    center = torch.zeros(y.shape[0], A.shape[1], dtype=y.dtype) if center is None else center
    normal = A.mH @ A + weight[:, None, None] * torch.eye(A.shape[1], dtype=A.dtype)
    right = y @ A.conj() + weight[:, None] * center
    return torch.linalg.solve(normal, right[..., None])[..., 0]


@pytest.mark.parametrize("order", ["cyclic", "random"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_converges_to_the_tikhonov_minimiser(dtype: torch.dtype, order: Any) -> None:
    A, y = problem(dtype)
    weight = torch.tensor([0.5, 2.0, 20.0], dtype=torch.float64)
    x = kaczmarz(A, y, weight=weight, sweeps=2000, order=order)
    torch.testing.assert_close(x, tikhonov(A, y, weight), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_start_without_its_dual_moves_the_centre(dtype: torch.dtype) -> None:
    A, y = problem(dtype)
    weight = torch.full((3,), 2.0, dtype=torch.float64)
    x0 = torch.randn(3, 12, dtype=dtype, generator=torch.Generator().manual_seed(2))
    x = kaczmarz(A, y, x0=x0, weight=weight, sweeps=2000)
    torch.testing.assert_close(x, tikhonov(A, y, weight, x0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_consistent_system_without_weight_is_solved(dtype: torch.dtype) -> None:
    A, _ = problem(dtype)
    truth = torch.randn(3, 12, dtype=dtype, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(kaczmarz(A, truth @ A.T, sweeps=500), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pair_continues_a_run_and_obeys_its_invariant(dtype: torch.dtype) -> None:
    A, y = problem(dtype)
    once, once_dual = kaczmarz(A, y, weight=0.7, sweeps=5, return_dual=True)
    x, dual = kaczmarz(A, y, weight=0.7, sweeps=2, return_dual=True)
    x, dual = kaczmarz(A, y, x0=x, dual=dual, weight=0.7, sweeps=3, return_dual=True)
    torch.testing.assert_close(x, once, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dual, once_dual, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x, dual @ A.conj(), rtol=1e-12, atol=1e-12)


def test_warm_start_of_the_next_frame_keeps_the_limit_and_gets_nearer() -> None:
    A, y = problem(torch.float64)
    weight = torch.full((3,), 5.0, dtype=torch.float64)
    x, dual = kaczmarz(A, y, weight=weight, sweeps=2000, return_dual=True)
    following = y + 0.01 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    target = tikhonov(A, following, weight)
    torch.testing.assert_close(
        kaczmarz(A, following, x0=x, dual=dual, weight=weight, sweeps=2000), target, rtol=1e-9, atol=1e-9
    )
    warm, cold = kaczmarz(A, following, x0=x, dual=dual, weight=weight), kaczmarz(A, following, weight=weight)
    assert (warm - target).norm() < 0.1 * (cold - target).norm()


def test_every_option_changes_the_answer() -> None:
    A, y = problem(torch.float64)
    plain = kaczmarz(A, y)
    x0 = torch.ones(3, 12, dtype=torch.float64)
    options: list[dict[str, Any]] = [
        {"x0": x0},
        {"weight": 1.0},
        {"weight": 1.0, "dual": torch.ones_like(y)},
        {"sweeps": 2},
        {"nonneg": True},
        {"order": torch.arange(39, -1, -1)},
        {"order": "random"},
        {"order": "random", "seed": 1},
    ]
    answers = [plain, *(kaczmarz(A, y, **option) for option in options)]
    for i, one in enumerate(answers):
        for other in answers[:i]:
            assert (one - other).abs().max() > 1e-3
    assert torch.equal(kaczmarz(A, y, order="cyclic"), plain)
    assert torch.equal(kaczmarz(A, y, order=torch.arange(40)), plain)
    assert torch.equal(kaczmarz(A, y, order="random", seed=0), kaczmarz(A, y, order="random"))


def test_positivity_holds_after_every_sweep_and_drops_the_imaginary_part() -> None:
    A, y = problem(torch.complex128)
    x = kaczmarz(A, y, nonneg=True, sweeps=3)
    assert (x.real >= 0).all()
    assert (x.real > 0).any()
    assert (x.imag == 0).all()
    stepwise = None
    for _ in range(3):
        free = kaczmarz(A, y, x0=stepwise)
        stepwise = torch.complex(free.real.clamp(min=0), torch.zeros_like(free.real))
    torch.testing.assert_close(x, stepwise, rtol=1e-12, atol=1e-12)


def test_complex_rows_equal_their_real_pairs() -> None:
    """A complex equation is two real ones whose rows are orthogonal: the same projection."""
    A, y = problem(torch.complex128)
    pairs = torch.stack([torch.cat([A.real, -A.imag], 1), torch.cat([A.imag, A.real], 1)], 1).flatten(0, 1)
    x = kaczmarz(A, y, weight=0.3, sweeps=2)
    real = kaczmarz(pairs, torch.view_as_real(y).flatten(1), weight=0.3, sweeps=2)
    torch.testing.assert_close(torch.cat([x.real, x.imag], 1), real, rtol=1e-12, atol=1e-12)


# --- orders -----------------------------------------------------------------------------------------------------
def test_philox_gives_the_published_numbers() -> None:
    """Known answers of Philox 4x32-10 (Salmon et al., Random123): key 0 and counter 0."""
    words = (_uniform(0, 4, torch.device("cpu")) * 2**32 - 0.5).long().tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_random_rows_follow_the_energies_and_the_seed() -> None:
    A = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    order = kaczmarz_order(A, sweeps=5000, seed=3)
    assert order.shape == (5000, 4)
    share = torch.bincount(order.flatten(), minlength=4) / 20000
    # A share p of n draws is within 4 sqrt(p (1 - p) / n) < 0.0142 of its mean, but for one run in 15,000.
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0, 2.0, 9.0]) / 12, rtol=0, atol=0.0142)
    assert share[1] == 0
    assert torch.equal(order[:7], kaczmarz_order(A, sweeps=7, seed=3))
    assert not torch.equal(order[:7], kaczmarz_order(A, sweeps=7, seed=4))
    assert torch.equal(order, kaczmarz_order(A.to(torch.complex64), sweeps=5000, seed=3))


def test_every_sweep_draws_its_own_rows() -> None:
    A, y = problem(torch.float64)
    order = kaczmarz_order(A, sweeps=2, seed=5)
    assert not torch.equal(order[0], order[1])
    assert torch.equal(kaczmarz(A, y, sweeps=2, order="random", seed=5), kaczmarz(A, y, sweeps=2, order=order))


def test_partial_and_repeated_orders() -> None:
    A, y = problem(torch.float64)
    order = torch.tensor([3, 3, 3, 0, 39])
    x, dual = kaczmarz(A, y, weight=0.5, order=order, return_dual=True)
    state = kaczmarz(A, y, weight=0.5, order=order[:1], return_dual=True)
    for i in range(1, 5):
        state = kaczmarz(A, y, x0=state[0], dual=state[1], weight=0.5, order=order[i : i + 1], return_dual=True)
    torch.testing.assert_close(x, state[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dual, state[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(dual != 0, torch.isin(torch.arange(40), order).expand(3, 40))
    assert torch.equal(kaczmarz(A, y, order=order[:0]), torch.zeros(3, 12, dtype=torch.float64))


# --- hard numbers -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 2, 40])
def test_a_broken_sample_reaches_no_other(batch: int) -> None:
    A, y = problem(torch.float32, batch=batch)
    clean = kaczmarz(A, y, nonneg=True)
    y[0, 5] = float("nan")
    broken = kaczmarz(A, y, nonneg=True)
    assert torch.equal(broken[1:], clean[1:])
    assert broken[0].isnan().all()


@pytest.mark.parametrize("level", testing.available_isa_levels())
@pytest.mark.parametrize("batch", [1, 2, 40])
def test_a_broken_row_shows(batch: int, level: str) -> None:
    A, y = problem(torch.float32, batch=batch)
    A[7, 3] = float("nan")
    with testing.isa(level):
        assert kaczmarz(A, y).isnan().all()


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_zero_rows_are_skipped_without_weight(batch: int) -> None:
    A, y = problem(torch.float32, batch=batch)
    A[[4, 5, 39]] = 0
    y[:, 4] = float("inf")  # never read
    x, dual = kaczmarz(A, y, return_dual=True)
    kept = [i for i in range(40) if i not in (4, 5, 39)]
    torch.testing.assert_close(x, kaczmarz(A[kept], y[:, kept]))
    assert (dual[:, [4, 5, 39]] == 0).all()


def test_64_samples_are_64_single_runs() -> None:
    A, y = problem(torch.float32, batch=64, rows=200, columns=50)
    weight = torch.linspace(0.1, 3, 64)
    together = kaczmarz(A, y, weight=weight, sweeps=2)
    alone = torch.cat([kaczmarz(A, y[b : b + 1], weight=weight[b : b + 1], sweeps=2) for b in range(64)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


# --- gradients --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_the_adjoint(dtype: torch.dtype) -> None:
    A, y = problem(dtype)
    y.requires_grad_()
    x = kaczmarz(A, y, weight=0.4, sweeps=2)
    g = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(4))
    (back,) = torch.autograd.grad(x, y, g)
    left, right = (g.conj() * x.detach()).sum(), (back.conj() * y.detach()).sum()
    # Rounding: sums of 36 and 120 terms after 80 projections, 8 + sqrt(12) eps each (see the case table), twice.
    assert abs(left - right) <= 2 * (8 + 12**0.5) * torch.finfo(dtype).eps * float(g.norm() * x.detach().norm())


@pytest.mark.parametrize("nonneg", [False, True])
def test_all_gradients_agree_with_the_reference_over_many_chunks(nonneg: bool) -> None:
    """More steps than one chunk of the gradient to A, with rows coming back inside a chunk and across sweeps."""
    A, y = problem(torch.float64, rows=300)
    dual = 0.1 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(6))
    order = torch.randint(300, (2, 700), generator=torch.Generator().manual_seed(5))
    leaves = [A, y, dual, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)]
    results = []
    for backend in ("cpp", "reference"):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        with pyrecon.backend(backend):
            x, w = kaczmarz(
                *inputs[:2], dual=inputs[2], weight=inputs[3], sweeps=2, order=order, nonneg=nonneg, return_dual=True
            )
            results.append(torch.autograd.grad(x.square().sum() + w.square().sum(), inputs))
    for fast, reference in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-10, atol=1e-10)


def test_gradients_of_the_data_cost_no_history() -> None:
    A, y = problem(torch.float64)
    with testing.record_calls() as calls:
        kaczmarz(A, y.requires_grad_(), sweeps=3).sum().backward()
    assert [call.op for call in calls] == ["kaczmarz", "kaczmarz"]


# --- arguments --------------------------------------------------------------------------------------------------
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"A": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "A: dtype int64"),
    ({"A": torch.ones(3)}, ValueError, "A: shape"),
    ({"y": torch.ones(2, 4)}, ValueError, r"y: shape \(2, 4\)"),
    ({"y": torch.ones(2, 3, dtype=torch.float64)}, TypeError, "y: dtype"),
    ({"x0": torch.ones(2, 3)}, ValueError, "x0: shape"),
    ({"dual": torch.ones(2, 2)}, ValueError, "dual: shape"),
    ({"weight": -1.0}, ValueError, "weight: -1.0"),
    ({"weight": float("nan")}, ValueError, "weight: nan"),
    ({"weight": torch.ones(3)}, ValueError, "weight: shape"),
    ({"weight": torch.ones(2, dtype=torch.float64)}, TypeError, "weight: dtype"),
    ({"sweeps": 0}, ValueError, "sweeps: 0"),
    ({"sweeps": 1.5}, TypeError, r"sweeps: 1\.5"),
    ({"order": "shuffled"}, ValueError, "order: 'shuffled'"),
    ({"order": torch.tensor([0.0])}, TypeError, "order: dtype"),
    ({"order": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "order: shape"),
    ({"order": torch.tensor([0, 3])}, ValueError, "order: row 3 does not exist"),
    ({"order": torch.tensor([-1])}, ValueError, "order: row -1 does not exist"),
    ({"seed": 1}, ValueError, "seed: has no effect"),
    ({"out": torch.ones(3, 2)}, ValueError, "out: shape"),
    ({"out": (torch.ones(2, 2), torch.ones(2, 3))}, TypeError, "out: expected a torch.Tensor, got tuple"),
    ({"out": torch.ones(2, 2), "return_dual": True}, TypeError, "out: expected a tuple of 2"),
]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_arguments_are_named(backend: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"A": torch.ones(3, 2), "y": torch.ones(2, 3), **change}
    with pyrecon.backend(backend), pytest.raises(error, match=message):
        kaczmarz(arguments.pop("A"), arguments.pop("y"), **arguments)


def test_out_may_not_be_an_input() -> None:
    A, y = torch.ones(3, 2), torch.ones(2, 3)
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="out: shares memory"):
        kaczmarz(A, y, x0=x, out=x)
    with pytest.raises(ValueError, match=r"out\[1\]: shares memory"):
        kaczmarz(A, y, out=(x, y), return_dual=True)


# --- GPU --------------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("batch", "columns"), [(2, 1), (3, 700), (3, 1400), (3, 2000), (700, 70)], ids=str)
@pytest.mark.parametrize("order", ["cyclic", "random"])
def test_gpu_shapes_agree_with_the_cpu(dtype: torch.dtype, batch: int, columns: int, order: Any) -> None:
    """Every shape of the kernel: columns in registers or in memory, one or four samples a thread block."""
    A, y = problem(dtype, batch=batch, rows=150, columns=columns)
    options: dict[str, Any] = {"weight": 0.2, "sweeps": 2, "nonneg": True, "return_dual": True}
    rows = kaczmarz_order(A, sweeps=2) if order == "random" else None
    expected = kaczmarz(A, y, order=rows, **options)
    answer = kaczmarz(A.cuda(), y.cuda(), order=None if rows is None else rows.cuda(), **options)
    for value, wanted in zip(answer, expected, strict=True):
        testing.assert_close_to_reference(value.cpu(), wanted, k=2 * (8 + columns**0.5))


@pytest.mark.gpu
def test_gpu_draws_the_same_rows() -> None:
    A, _ = problem(torch.float32)
    assert torch.equal(kaczmarz_order(A.cuda(), sweeps=3, seed=2).cpu(), kaczmarz_order(A, sweeps=3, seed=2))


@pytest.mark.gpu
def test_gpu_row_outside_the_matrix_shows() -> None:
    A, y = problem(torch.float32)
    assert kaczmarz(A.cuda(), y.cuda(), order=torch.tensor([0, 40]).cuda()).isnan().all()


@pytest.mark.gpu
def test_gpu_sweeps_are_captured_in_a_graph() -> None:
    A, y = (t.cuda() for t in problem(torch.float32))
    out = torch.empty(3, 12, device="cuda")
    kaczmarz(A, y, weight=0.1, out=out)  # loads the module
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kaczmarz(A, y, weight=0.1, sweeps=2, out=out)
    y.mul_(2)
    graph.replay()
    torch.testing.assert_close(out, kaczmarz(A, y, weight=0.1, sweeps=2))
