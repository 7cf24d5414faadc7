"""DEQ-MPI against the authors' program, and against what its own equations demand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.implicit import ImplicitGradient
from pyrecon.models import DEQMPI
from pyrecon.models.deq_mpi import _released_name
from pyrecon.models.mpi.system import Problem
from pyrecon.nn import RDN, BallConsistency, ExactConsistency, LearnedConsistency, RowLayout
from pyrecon.ops._deq_mpi import deq_mpi
from pyrecon.solvers import Anderson, ConvergenceWarning, Picard, Status, fixed_point
from pyrecon.testing import record_calls

ORACLE = Path(__file__).resolve().parents[2] / "shared/oracles/deqmpi_released_35db.npz"
needs_oracle = pytest.mark.skipif(not ORACLE.exists(), reason="the released weights are not at hand")
GRID, USED, SHAPE = (5, 9), 7, (6, 4)


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layout() -> RowLayout:
    mask = torch.rand(GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0)) > 0.4
    return RowLayout.from_mask(mask, GRID, USED)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Problem, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = 2 * len(layout().rows)
    A = torch.randn(rows, SHAPE[0] * SHAPE[1], generator=generator, dtype=torch.float64)
    x = torch.rand(3, A.shape[1], generator=generator, dtype=torch.float64)
    y = x @ A.T + 0.1 * torch.randn(3, rows, generator=generator, dtype=torch.float64)
    radius = torch.full((3,), 0.1 * rows**0.5, dtype=torch.float64)
    return Problem(A.to(dtype), SHAPE), y.to(dtype), radius.to(dtype)


def model(consistency: Any = None, **options: Any) -> DEQMPI:
    torch.manual_seed(2)
    return DEQMPI(RDN(4, 3, 2, 2), consistency or LearnedConsistency(layout()), **options).double()


# --- the authors' program ------------------------------------------------------------------------------------------
def test_sizes_are_those_of_the_released_networks() -> None:
    assert count(RDN()) == 58393
    assert count(LearnedConsistency(layout())) == 354
    assert count(DEQMPI(RDN(), LearnedConsistency(layout()))) == 58747


@needs_oracle
def test_released_weights_reproduce_every_array_of_the_authors() -> None:
    """They were computed in float32 and agree among themselves to 1e-4 relative."""
    arrays = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(ORACLE).items() if not k.startswith("w/")}
    net = DEQMPI.from_released(ORACLE, RowLayout.from_mask(arrays["sel"], (60, 247), 130))
    prepared = Problem(arrays["A"], (26, 13), rank=150)
    y, radius = arrays["y"], torch.full((4,), float(arrays["eps"]))
    assert relative(prepared.inverse(), arrays["M"]) < 1e-4
    with torch.no_grad():
        assert relative(net.rdn(arrays["rdn_in"].view(4, 26, 13)).flatten(1), arrays["rdn_out"]) < 1e-6
        assert relative(net.consistency(arrays["lc_in_v"], y, radius), arrays["lc_out"]) < 1e-6
        x, d1, d0 = arrays["state0"].split((338, 338, 5486), dim=1)
        assert relative(torch.cat(net.step(prepared, (x, d1, d0), y, radius), dim=1), arrays["state1"]) < 1e-4
        assert relative(prepared.start(y)[0], arrays["x0"]) < 1e-3  # 1e-4 was added to the released singular values
    for steps in (25, 26):
        result = net.reconstruct(prepared, y, radius, arrays["x0"], iterations=steps)
        assert relative(result.value.flatten(1), arrays[f"x_{steps}"]) < 1e-4


def test_released_names_load(tmp_path: Path) -> None:
    """A twin of the released file with weights of our own."""
    torch.manual_seed(0)
    twin = DEQMPI(RDN(), LearnedConsistency(layout(), ball="released"))
    weights = {_released_name(name): value.numpy() for name, value in twin.state_dict().items()}
    assert len(weights) == len(twin.state_dict())
    np.savez(tmp_path / "w.npz", **{f"w/{name}": value for name, value in weights.items()})
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, tmp_path / "w.pt")
    for file in ("w.npz", "w.pt"):
        loaded = DEQMPI.from_released(tmp_path / file, layout())
        for name, value in twin.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
    assert isinstance(DEQMPI.from_released(tmp_path / "w.npz").consistency, BallConsistency)


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", **{"w/f.sharedNet.conv0.weight": np.zeros((12, 1, 3, 3))})
    with pytest.raises(DataError, match=r"few\.npz: lacks 'f\.sharedNet"):
        DEQMPI.from_released(tmp_path / "few.npz")
    for name in ("bad.npz", "bad.pt", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of weights" * 20)
        with pytest.raises(DataError, match=name):
            DEQMPI.from_released(tmp_path / name)
    with pytest.raises(DataError, match="absent"):
        DEQMPI.from_released(tmp_path / "absent.npz")


# --- the equations -------------------------------------------------------------------------------------------------
class Positive(torch.nn.Module):
    """The projection onto images without negative values."""

    def forward(self, image: Tensor) -> Tensor:
        return image.clamp(min=0)


def test_the_penalty_scales_the_dual_of_the_data_and_leaves_the_image() -> None:
    class Shrink(torch.nn.Module):
        """The proximal map of half the squared norm: the image wants to leave the ball."""

        def forward(self, image: Tensor) -> Tensor:
            return image / 2

    prepared, y, radius = problem()
    state = prepared.start(y)
    plain, other = (DEQMPI(Shrink(), BallConsistency(), penalty=c) for c in (1.0, 4.0))  # type: ignore[arg-type]
    for _ in range(3000):
        state = plain.step(prepared, state, y, radius)
    x, d1, d0 = state
    assert float(d0.abs().amax()) > 1e-3
    for before, after in zip((x, d1, d0 / 4), other.step(prepared, (x, d1, d0 / 4), y, radius), strict=True):
        assert relative(after, before) < 1e-6
    start = prepared.start(y)
    assert relative(other.step(prepared, start, y, radius)[0], plain.step(prepared, start, y, radius)[0]) > 1e-3


def test_without_networks_the_fixed_point_solves_the_problem() -> None:
    """With the projections in place of both networks, ADMM finds a non-negative image that explains the data."""

    prepared, y, radius = problem()
    net = DEQMPI(Positive(), BallConsistency())  # type: ignore[arg-type]
    image = net.reconstruct(prepared, y, 1.5 * radius, iterations=3000).value.flatten(1)
    assert float(image.min()) > -1e-6
    assert (torch.linalg.vector_norm(prepared.A(image) - y, dim=1) <= 1.5 * radius * (1 + 1e-6)).all()


def test_step_is_its_four_equations() -> None:
    prepared, y, radius = problem()
    net, A = model(), prepared.A.matrix
    state = tuple(torch.randn_like(t) for t in prepared.start(y))
    x, d1, d0 = state
    z0, z1 = net.consistency(x @ A.T - d0, y, radius), net.rdn((x - d1).view(-1, *SHAPE)).flatten(1)
    expected = torch.linalg.solve(torch.eye(24, dtype=A.dtype) + A.T @ A, ((z0 + d0) @ A + z1 + d1).T).T
    new = net.step(prepared, state, y, radius)  # type: ignore[arg-type]
    for value, wanted in zip(new, (expected, d1 + z1 - expected, d0 + z0 - expected @ A.T), strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("ball", ["paper", "released"])
def test_learned_consistency_stays_in_its_ball(ball: Any, dims: Any) -> None:
    consistency = LearnedConsistency(layout(), ball=ball, dims=dims).double()
    _, y, radius = problem()
    small = 0.01 * radius
    z = consistency(torch.randn_like(y), y, small)
    if ball == "paper":
        torch.testing.assert_close(torch.linalg.vector_norm(z - y, dim=1), small)
        inside = consistency(torch.randn_like(y), y, 1e6 * radius)
        assert (torch.linalg.vector_norm(inside - y, dim=1) < 1e6 * radius).all()
    torch.testing.assert_close(consistency(y, y, 0 * radius), y)


def test_rows_beyond_the_used_frequencies_pass_as_zeros() -> None:
    rows, data = layout(), torch.randn(2, 2 * len(layout().rows))
    back = rows.gather(rows.spread(data)).view(2, 2, -1)
    beyond = rows.rows % GRID[1] >= USED
    assert beyond.any()
    assert (back[:, :, beyond] == 0).all()
    assert torch.equal(back[:, :, ~beyond], data.view(2, 2, -1)[:, :, ~beyond])


def pass_v(consistency: LearnedConsistency) -> LearnedConsistency:
    """Weights near those of N(y, v) = v: a fixed point needs z0 = A x to be within reach of the data's dual."""
    with torch.no_grad():
        for conv in consistency.convs:
            conv.weight.mul_(0.05)  # type: ignore[operator,union-attr]
        first, middle, last = (conv.weight for conv in consistency.convs)
        for part in range(2):
            for k, sign in ((2 * part, 1.0), (2 * part + 1, -1.0)):
                first[k, 2 + part, 1] += sign  # type: ignore[index,operator]
                middle[k, k, 1] += 1.0  # type: ignore[index,operator]
                last[part, k, 1] += sign  # type: ignore[index,operator]
    return consistency


def test_training_gradient_reaches_both_networks_and_is_right() -> None:
    """The implicit gradient of one weight of each network, against a finite difference."""
    prepared, y, radius = problem()
    radius = 2 * radius
    torch.manual_seed(0)
    tight = {"tol": 1e-11, "max_iter": 400}
    consistency = pass_v(LearnedConsistency(RowLayout(GRID, layout().rows, GRID[1])))
    net = model(
        consistency, solver=Anderson(memory=10), gradient=ImplicitGradient(solver=Anderson(memory=10), **tight), **tight
    )
    target = torch.rand(3, *SHAPE, dtype=torch.float64)

    def loss() -> Tensor:
        return (net(prepared, y, radius) - target).square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        loss().backward()
    for weight in (net.rdn.blocks[0].fuse.weight, net.consistency.convs[0].weight):  # type: ignore[union-attr,index]
        at, h = (1, 2, 0, 0)[: weight.dim()], 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[at] += sign * h
                values.append(float(loss()))
                weight[at] -= sign * h
        assert weight.grad is not None
        assert float(weight.grad[at]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-8)


def test_reconstruction_is_plain_iteration_of_the_step() -> None:
    prepared, y, radius = problem()
    net = model()
    for iterations in (1, 7):
        result = net.reconstruct(prepared, y, radius, iterations=iterations)
        expected = fixed_point(
            prepared.step_of(net), prepared.start(y), (y, radius), solver=Picard(), tol=0.0, max_iter=iterations
        )
        torch.testing.assert_close(result.value.flatten(1), expected.value[0])
        torch.testing.assert_close(result.residual, expected.residual)
        assert torch.equal(result.status, expected.status)
        assert torch.equal(result.iterations, expected.iterations)


@pytest.mark.parametrize("consistency", ["learned", "ball", "exact"])
@pytest.mark.parametrize("memory", [0, 3])
def test_the_op_is_what_the_modules_are(consistency: str, memory: int) -> None:
    """More frames than the kernel takes at a time, which end after different numbers of steps."""
    prepared, y, radius = problem()
    size = torch.logspace(-3, 1, 15, dtype=torch.float64)
    y, radius = y.repeat(5, 1) * size[:, None], radius.repeat(5) * size
    steps = {"learned": LearnedConsistency(layout()), "ball": BallConsistency(), "exact": ExactConsistency()}
    net = model(steps[consistency], memory=memory, tol=0.02, iterations=25, penalty=3.0)
    for parameter in net.rdn.parameters():  # for a map that contracts
        parameter.data.mul_(0.5)
    with record_calls() as calls:
        found = net.reconstruct(prepared, y, radius)
    assert {call.op for call in calls} == {"deq_mpi"}
    handle = net.rdn.register_forward_hook(lambda *_: None)  # somebody listens: the modules run
    with record_calls() as calls:
        expected = net.reconstruct(prepared, y, radius)
    handle.remove()
    assert "deq_mpi" not in {call.op for call in calls}
    # The weights of mixing have a condition of up to 1e4, and multiply differences of steps.
    torch.testing.assert_close(found.value, expected.value, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-6, atol=1e-12)
    assert torch.equal(found.status, expected.status)
    assert torch.equal(found.iterations, expected.iterations)
    if memory and consistency != "exact":  # whose dual of the data grows with every step
        assert len(found.iterations.unique()) > 1


def test_the_op_gives_the_same_bits_on_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2 * len(layout().rows), 338, generator=generator)
    y = A[:, 3] + 0.1 * torch.randn(7, len(A), generator=generator)
    net, prepared, before = model(memory=2).float(), Problem(A, (26, 13)), torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3, 9):  # images side by side, and more threads than images
            torch.set_num_threads(threads)
            answers.append(net.reconstruct(prepared, y, y.new_ones(7)).value)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_the_op_says_what_it_was_given() -> None:
    prepared, y, radius = problem()
    net = model(BallConsistency())
    network = net.rdn.operands()
    assert network is not None
    state = torch.cat(prepared.start(y), dim=1)
    given = prepared.A.matrix, prepared.inverse(), state, y, radius, network.pop("weights")
    options: dict[str, Any] = {"shape": SHAPE, "steps": 2, **network}
    with torch.no_grad():
        assert deq_mpi(*given, **options)[1].shape == (3, 3)
        for wrong, message in (
            ({"shape": (5, 5)}, "shape: images"),
            ({"steps": 0}, "steps: 0"),
            ({"memory": 33}, "memory: 33"),
            ({"penalty": 0.0}, "penalty"),
            ({"data": "none"}, "data: 'none'"),
            ({"data": "learned"}, "learned, places"),
            ({"data": "ball", "places": torch.zeros(1)}, "are not for"),
        ):
            with pytest.raises(ValueError, match=message):
                deq_mpi(*given, **(options | wrong))
        with pytest.raises(ValueError, match="state"):
            deq_mpi(*given[:2], state[:, 1:], *given[3:], **options)
    with pytest.raises(ValueError, match="no gradient"):
        deq_mpi(*given, **options)


def test_one_bad_frame_leaves_the_others_alone() -> None:
    prepared, y, radius = problem()
    expected = model().reconstruct(prepared, y, radius).value
    y = y.clone()
    y[1, 3] = torch.nan
    solution = model().reconstruct(prepared, y, radius)
    assert [Status for Status in solution.counts()] == ["MAX_ITER", "NONFINITE"]
    torch.testing.assert_close(solution.value[[0, 2]], expected[[0, 2]])


def test_a_wrong_row_layout_is_refused_with_advice() -> None:
    prepared, y, radius = problem()
    net = model(LearnedConsistency(RowLayout((5, 9), torch.arange(4), 9)))
    with pytest.raises(ValueError, match="without learned consistency"):
        net.reconstruct(prepared, y, radius)
    with pytest.raises(ValueError, match="increasing"):
        RowLayout((2, 3), torch.tensor([2, 1]), 3)
    with pytest.raises(ValueError, match="does not fit images"):
        Problem(torch.zeros(5, 6), (2, 2))


def test_mixing_reaches_the_equilibrium_in_fewer_steps() -> None:
    prepared, y, radius = problem()
    # Small singular values: a plain step hardly moves the image.
    prepared, y, radius = Problem(prepared.A.matrix / 50, SHAPE), y / 50, radius / 50
    plain, mixed = (DEQMPI(Positive(), BallConsistency(), memory=m) for m in (0, 5))  # type: ignore[arg-type]
    zero = torch.zeros(3, SHAPE[0] * SHAPE[1], dtype=torch.float64)  # least squares would be the answer
    answers = [net.reconstruct(prepared, y, radius, zero, iterations=20) for net in (plain, mixed)]
    assert float(answers[1].residual.max()) < 0.3 * float(answers[0].residual.max())
    again = mixed.reconstruct(prepared, y, radius, zero, iterations=2000)
    assert (again.status == Status.CONVERGED).all()
    assert int(again.iterations.max()) < 2000
