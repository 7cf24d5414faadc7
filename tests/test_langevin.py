"""What the noise, the Langevin step and the sampler must satisfy beyond the shared laws of tests/test_ops.py."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
import torch._dynamo.testing
from torch import Tensor

import pyrecon
from pyrecon import testing
from pyrecon.ops import Moments, langevin_step
from pyrecon.ops._langevin import _philox
from pyrecon.solvers import Chain, ConvergenceWarning, Status, langevin

KERNELS = pytest.mark.parametrize("level", ["reference", *testing.available_isa_levels()])
EVERY_DTYPE = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str
)


@pytest.fixture
def running(level: str) -> Iterator[str]:
    """The implementation that answers in this test."""
    if level == "reference":
        with pyrecon.backend("reference"):
            yield level
    else:
        with testing.isa(level):
            yield level


def noise(*shape: int, dtype: torch.dtype = torch.float64, **stream: Any) -> Tensor:
    """xi itself: the step from zero with unit noise."""
    zero = torch.zeros(shape, dtype=dtype)
    return langevin_step(zero, zero, 0.0, 1.0, **({"seed": 0, "counter": 0} | stream))


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# --- the integers ------------------------------------------------------------------------------------------------
# Known answers of Philox 4x32-10, published with Random123 (Salmon et al. 2011): counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    c = counter[0] | counter[1] << 32
    c -= 2**64 if c >= 2**63 else 0
    result = _philox(torch.tensor([c]), counter[2] | counter[3] << 32, key[0] | key[1] << 32)
    assert tuple(int(w) for w in result) == words


def box_muller(v: int, w: int) -> tuple[float, float]:
    """The law of pyrecon/ops/_langevin.py for two words, in Python's own arithmetic."""
    u = float(torch.tensor(v >> 1 | 1).float()) / 2**31
    quarter = (w << 2) % 2**32
    f = float(torch.tensor(quarter - (2**32 if quarter >= 2**31 else 0)).float()) / 2**32
    radius = math.sqrt(-2 * math.log(u))
    a = radius * math.cos(math.pi / 2 * f) * (-1 if w >> 31 else 1)
    b = radius * math.sin(math.pi / 2 * f)
    return (b, a) if w >> 30 & 1 else (a, b)


@KERNELS
def test_known_words_become_the_numbers_of_the_law(running: str) -> None:
    words = KNOWN[0][2]  # of counter 0 under seed 0, and the step's counter 0: numbers 0, 16, 32 and 48
    expected = torch.tensor([*box_muller(*words[:2]), *box_muller(*words[2:])], dtype=torch.float64)
    assert (noise(64)[::16] - expected).abs().max() <= 1e-14
    assert (noise(64, dtype=torch.float32)[::16] - expected).abs().max() <= 6 * 2**-24 * 2


@KERNELS
@pytest.mark.parametrize("offset", [0, 5, 64 * 2**28 - 130, 2**61], ids=str)
@pytest.mark.parametrize("counter", [0, 2**32 - 1, 2**32, 2**63 - 1], ids=str)
def test_every_word_of_seed_counter_and_index_counts(running: str, counter: int, offset: int) -> None:
    # A number that differs by an integer anywhere in Philox is another number: agreement to 1e-13 is that of all bits.
    for seed in (1, 2**32 + 1, 2**63 - 1):
        stream = {"seed": seed, "counter": counter, "offset": offset}
        with pyrecon.backend("reference"):
            expected = noise(300, **stream)
        assert (noise(300, **stream) - expected).abs().max() <= 1e-13
        for other in ({"seed": seed ^ 2**33}, {"counter": counter ^ 2**33}, {"offset": offset ^ 2**40}):
            assert not torch.isclose(noise(300, **(stream | other)), expected).any()


# --- the stream --------------------------------------------------------------------------------------------------
@KERNELS
@EVERY_DTYPE
def test_splitting_a_batch_changes_no_bit(running: str, dtype: torch.dtype) -> None:
    x, grad = randn(5, 7, 61, dtype=dtype), randn(5, 7, 61, dtype=dtype, seed=1)
    steps = torch.linspace(0.1, 0.3, 5, dtype=dtype.to_real())
    stream = {"seed": 7, "counter": 3}
    whole = Moments.zeros_like(x)
    expected = langevin_step(x, grad, steps, **stream, offset=11, moments=whole)
    for cut in (1, 3):
        pieces, moments = [], []
        for part in (slice(0, cut), slice(cut, 5)):
            moments.append(Moments.zeros_like(x[part]))
            pieces.append(
                langevin_step(
                    x[part], grad[part], steps[part], **stream, offset=11 + part.start * 7 * 61, moments=moments[-1]
                )
            )
        assert torch.equal(torch.cat(pieces), expected)
        assert torch.equal(torch.cat([m.mean for m in moments]), whole.mean)
        assert torch.equal(torch.cat([m.m2 for m in moments]), whole.m2)


@EVERY_DTYPE
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    x, grad = randn(3, 20011, dtype=dtype), randn(3, 20011, dtype=dtype, seed=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            moments = Moments.zeros_like(x)
            results.append((langevin_step(x, grad, 0.2, seed=1, counter=2, offset=3, moments=moments), moments))
    finally:
        torch.set_num_threads(before)
    for result, moments in results[1:]:
        assert torch.equal(result, results[0][0])
        assert torch.equal(moments.mean, results[0][1].mean)
        assert torch.equal(moments.m2, results[0][1].m2)


@KERNELS
def test_precisions_and_parts_of_complex_numbers_share_the_stream(running: str) -> None:
    wide = noise(2, 1000, seed=5, offset=9)
    narrow = noise(2, 1000, dtype=torch.float32, seed=5, offset=9)
    # About twelve roundings of half a unit in the last place make a number: 4 before the root, which halves them, 8 for
    # the root, the fitted sine and the products. Measured over 2^25 numbers: 4.3 units.
    unit = 2.0 ** (torch.frexp(wide).exponent - 24)
    assert ((narrow - wide).abs() <= 6 * unit).all()
    pairs = torch.view_as_real(noise(2, 500, dtype=torch.complex128, seed=5, offset=9))
    assert (pairs.flatten() - noise(2, 1000, seed=5, offset=18).flatten()).abs().max() <= 1e-14


def test_a_process_of_its_own_makes_the_same_numbers() -> None:
    code = (
        "import torch; from pyrecon.ops import langevin_step; z = torch.zeros(1000, dtype=torch.float64);"
        "print(langevin_step(z, z, 0.0, 1.0, seed=3, counter=4, offset=5).view(torch.int64).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(pyrecon.__file__).parents[1]
    )
    assert int(done.stdout) == int(noise(1000, seed=3, counter=4, offset=5).view(torch.int64).sum())


def test_counter_may_be_a_tensor() -> None:
    counter = torch.tensor(41)
    counter += 1
    assert torch.equal(noise(100, counter=counter), noise(100, counter=42))


def test_compiled_step_takes_any_counter_without_compiling_again() -> None:
    x, grad = randn(2, 50), randn(2, 50, seed=1)
    torch._dynamo.reset()
    counts = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counts)
    def step(x: Tensor, counter: int, moments: Moments) -> Tensor:
        return langevin_step(x, grad, 0.1, seed=3, counter=counter, moments=moments)

    compiled, eager = Moments.zeros_like(x), Moments.zeros_like(x)
    for counter in range(2, 12):
        expected = langevin_step(x, grad, 0.1, seed=3, counter=counter, moments=eager)
        assert torch.equal(step(x, counter, compiled), expected)
    assert torch.equal(compiled.mean, eager.mean)
    assert torch.equal(compiled.m2, eager.m2)
    assert compiled.count == 10
    assert counts.frame_count <= 2  # once for the first number, once for all


@pytest.mark.gpu
def test_a_replayed_graph_draws_new_numbers() -> None:
    x, grad = randn(3, 1000, dtype=torch.float32).cuda(), randn(3, 1000, dtype=torch.float32, seed=1).cuda()
    counter, moments = torch.zeros((), dtype=torch.int64, device="cuda"), Moments.zeros_like(x)
    langevin_step(x, grad, 0.1, seed=1, counter=counter, moments=Moments.zeros_like(x))  # compiles the kernel
    start, graph = x.cpu(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        langevin_step(x, grad, 0.1, seed=1, counter=counter, moments=moments, out=x)
        counter += 1
    for _ in range(5):
        graph.replay()
    twin = Moments.zeros_like(start)
    for k in range(5):
        start = langevin_step(start, grad.cpu(), 0.1, seed=1, counter=k, moments=twin)
    testing.assert_close_to_reference(x.cpu(), start.double(), k=64)
    testing.assert_close_to_reference(moments.m2.cpu(), twin.m2.double(), k=64)
    assert moments.count == 5


# --- the numbers are normal and independent ----------------------------------------------------------------------
N = 2**20


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_are_those_of_a_standard_normal_number(running: str, dtype: torch.dtype) -> None:
    for stream in ({"seed": 0, "counter": 0}, {"seed": 12345, "counter": 2**33, "offset": 2**40}):
        z = noise(N, dtype=dtype, **stream).double()
        # The mean of z^k over N numbers has variance (E z^2k - (E z^k)^2) / N: 1, 2, 15, 96 / N. Five sigma.
        for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
            assert abs(float((z**power).mean()) - mean) <= 5 * math.sqrt(variance / N), power


@KERNELS
def test_distribution_function_is_normal(running: str) -> None:
    z = noise(N, dtype=torch.float32, seed=99, counter=17)
    # Kolmogorov: P(D sqrt(N) > 1.95) = 1e-3; the numbers are fixed, so this cannot fail by chance once it has passed.
    assert scipy.stats.kstest(z.numpy(), "norm").statistic * math.sqrt(N) <= 1.95
    # Tails, where Kolmogorov sees nothing: the count beyond t is Poisson, five sigma.
    for t in (3.0, 4.0, 4.5):
        expected = N * math.erfc(t / math.sqrt(2))
        assert abs(int((z.abs() > t).sum()) - expected) <= 5 * math.sqrt(expected)


def test_words_of_the_largest_and_smallest_radius() -> None:
    assert box_muller(0, 0) == (math.sqrt(62 * math.log(2)), 0.0)  # 6.55: u = 2^-31
    assert box_muller(2**32 - 1, 0) == (0.0, 0.0)  # u = 1


@KERNELS
def test_neighbours_are_independent(running: str) -> None:
    z = noise(N, dtype=torch.float32, seed=4, counter=5).double()
    # Covariances of two independent functions with zero mean have standard deviation sigma^2 / sqrt(N). All distances
    # within two blocks of 64 for z and z^2 - 1 (variance 2): 256 values, five sigma: chance of failure 1.5e-4.
    for values, variance in ((z, 1.0), (z.square() - 1, 2.0)):
        for lag in range(1, 129):
            assert abs(float((values[lag:] * values[:-lag]).mean())) <= 5 * variance / math.sqrt(N), lag
    # The places within a block of 64 against each other, over 2^14 blocks: 2016 pairs, six sigma: 4e-6.
    places = z.view(-1, 64)
    correlation = places.T @ places / len(places) - torch.eye(64)
    assert correlation.fill_diagonal_(0).abs().max() <= 6 / math.sqrt(len(places))
    # Pairs made from the same two words: the angle of (z_i, z_i+16) is uniform and the radius squared exponential.
    pairs = places.view(-1, 2, 2, 16)
    angle = torch.atan2(pairs[:, :, 1], pairs[:, :, 0]).flatten() / (2 * math.pi) + 0.5
    energy = pairs.square().sum(2).flatten() / 2
    assert scipy.stats.kstest(angle.numpy(), "uniform").statistic * math.sqrt(N / 2) <= 1.95
    assert scipy.stats.kstest(energy.numpy(), "expon").statistic * math.sqrt(N / 2) <= 1.95
    assert abs(float(((angle - 0.5) * (energy - 1)).mean())) <= 5 * math.sqrt(1 / 12) / math.sqrt(N / 2)


@KERNELS
def test_steps_and_seeds_are_independent(running: str) -> None:
    n = 2**16
    streams = [{"seed": s, "counter": c} for s in (0, 1, 2**32) for c in (0, 1, 2, 2**32, 2**62)]
    z = torch.stack([noise(n, dtype=torch.float32, **stream) for stream in streams]).double()
    for values, variance in ((z, 1.0), (z.square() - 1, 2.0)):
        covariance = (values @ values.T / n).fill_diagonal_(0)
        assert covariance.abs().max() <= 5 * variance / math.sqrt(n)  # 105 pairs each: 1e-4
    # The sum over steps at each place, as a chain sees it.
    total = z.sum(0) / math.sqrt(len(z))
    assert scipy.stats.kstest(total.numpy(), "norm").statistic * math.sqrt(n) <= 1.95


# --- the step ----------------------------------------------------------------------------------------------------
@KERNELS
@EVERY_DTYPE
def test_step_is_drift_plus_noise(running: str, dtype: torch.dtype) -> None:
    x, grad = randn(3, 50, dtype=dtype), randn(3, 50, dtype=dtype, seed=1)
    stream = {"seed": 2, "counter": 3}
    close = {"rtol": 0.0, "atol": 16 * torch.finfo(dtype).eps}
    xi = noise(3, 50, dtype=dtype, **stream)
    torch.testing.assert_close(langevin_step(x, grad, 0.5, 0.0, **stream), x - 0.25 * grad, **close)
    torch.testing.assert_close(langevin_step(x, grad, 0.25, **stream), x - 0.125 * grad + 0.5 * xi, **close)
    # The released sampler of generative priors: x - grad + 7.5e-3 noise.
    torch.testing.assert_close(langevin_step(x, grad, 2.0, 7.5e-3, **stream), x - grad + 7.5e-3 * xi, **close)
    steps = torch.tensor([0.0, 0.1, 2.0], dtype=dtype.to_real())
    for std in (None, 0.3, steps.flip(0)):
        each = steps.sqrt() if std is None else torch.as_tensor(std, dtype=steps.dtype).expand(3)
        expected = x - steps[:, None] / 2 * grad + each[:, None] * xi
        torch.testing.assert_close(langevin_step(x, grad, steps, std, **stream), expected, **close)
    torch.testing.assert_close(
        langevin_step(x, grad, 0.1, steps, **stream), x - 0.05 * grad + steps[:, None] * xi, **close
    )


def test_complex_parts_have_the_noise_each() -> None:
    z = noise(2**16, dtype=torch.complex64)
    for part in (z.real, z.imag):
        assert abs(float(part.var()) - 1) <= 5 * math.sqrt(2 / 2**16)
    assert abs(float((z.real * z.imag).mean())) <= 5 / 2**8


@KERNELS
def test_projection(running: str) -> None:
    x, grad = randn(4, 100), randn(4, 100, seed=1)
    free = langevin_step(x, grad, 0.3, seed=1, counter=1)
    assert torch.equal(langevin_step(x, grad, 0.3, seed=1, counter=1, nonneg=True), free.clamp(min=0))
    assert (free < 0).any()


@KERNELS
@EVERY_DTYPE
def test_nan_stays_with_its_number(running: str, dtype: torch.dtype) -> None:
    x, grad = randn(2, 100, dtype=dtype), randn(2, 100, dtype=dtype, seed=1)
    expected = langevin_step(x, grad, 0.3, seed=1, counter=1, nonneg=not dtype.is_complex)
    x[1, 17], grad[0, 3] = math.nan, math.inf
    result = langevin_step(x, grad, 0.3, seed=1, counter=1, nonneg=not dtype.is_complex)
    assert result[1, 17].isnan()
    result[1, 17], result[0, 3] = expected[1, 17], expected[0, 3]
    assert torch.equal(result, expected)


@EVERY_DTYPE
def test_in_place(dtype: torch.dtype) -> None:
    x, grad = randn(3, 77, dtype=dtype), randn(3, 77, dtype=dtype, seed=1)
    expected = langevin_step(x, grad, 0.3, seed=1, counter=1)
    for name in ("x", "grad", "both"):
        a, b = x.clone(), grad.clone()
        if name == "both":
            b = a
            expected = langevin_step(a, a.clone(), 0.3, seed=1, counter=1)
        out = b if name == "grad" else a
        assert langevin_step(a, b, 0.3, seed=1, counter=1, out=out) is out
        assert torch.equal(out, expected)


def test_gradient_of_the_default_noise_reaches_the_step() -> None:
    step = torch.tensor([0.2, 0.5], dtype=torch.float64, requires_grad=True)
    x, grad = randn(2, 30), randn(2, 30, seed=1)
    moments = Moments.zeros_like(x)
    result = langevin_step(x, grad, step, seed=1, counter=1, moments=moments)
    (g,) = torch.autograd.grad(result.sum(), step)
    xi = noise(2, 30, seed=1, counter=1)
    expected = (-grad / 2 + xi / (2 * step.detach().sqrt()[:, None])).sum(1)
    torch.testing.assert_close(g, expected)
    assert torch.equal(moments.mean, result.detach())
    assert moments.count == 1


def test_backward_after_the_clock_moved_uses_the_numbers_of_the_forward() -> None:
    clock, std = torch.tensor(3), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = randn(2, 30)
    result = langevin_step(x, x, 0.1, std, seed=1, counter=clock)
    clock += 1
    result.sum().backward()
    torch.testing.assert_close(std.grad, noise(2, 30, seed=1, counter=3).sum())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.float16)}, TypeError, "x: dtype float16 is not supported"),
        ({"grad": torch.zeros(2, 4)}, ValueError, "grad: shape"),
        ({"grad": torch.zeros(2, 3, dtype=torch.float64)}, TypeError, "grad: dtype"),
        ({"step": -0.1}, ValueError, "step: -0.1 does not fit"),
        ({"step": math.nan}, ValueError, "step: nan does not fit"),
        (
            {"step": torch.zeros(3)},
            ValueError,
            r"step: shape \(3,\) does not fit, expected a number or \(B,\) = \(2,\)",
        ),
        ({"noise_std": torch.zeros(2, 3)}, ValueError, "noise_std: shape"),
        ({"noise_std": torch.zeros(2).double()}, TypeError, "noise_std: dtype"),
        ({"seed": -1}, ValueError, "seed: -1 does not fit"),
        ({"seed": 2**63}, ValueError, "seed: "),
        ({"counter": 1.5}, TypeError, "counter: 1.5, expected a whole number"),
        ({"counter": torch.tensor(1, dtype=torch.int32)}, TypeError, "counter: dtype"),
        ({"counter": torch.tensor([1])}, ValueError, "counter: shape"),
        ({"offset": -5}, ValueError, "offset: -5"),
        ({"x": torch.zeros(2, 3).cfloat(), "grad": torch.zeros(2, 3).cfloat(), "nonneg": True}, ValueError, "nonneg"),
        ({"moments": Moments.zeros_like(torch.zeros(3))}, ValueError, "moments.mean: shape"),
        ({"moments": Moments.zeros_like(torch.zeros(2, 3).double())}, TypeError, "moments.mean: dtype"),
        ({"out": torch.zeros(6)}, ValueError, "out: shape"),
        ({"out": torch.zeros(3, 2).T}, ValueError, "out: must be contiguous"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 3), "grad": torch.zeros(2, 3), "step": 0.1, "seed": 0, "counter": 0} | change
    with pytest.raises(error, match=message):
        langevin_step(**arguments)


def test_buffers_that_overlap_are_refused() -> None:
    memory, grad = torch.zeros(7), torch.zeros(6)
    with pytest.raises(ValueError, match="out: shares memory"):
        langevin_step(memory[:6], grad, 0.1, seed=0, counter=0, out=memory[1:])
    x = torch.zeros(6)
    moments = Moments(x, torch.zeros(6), torch.tensor(0))
    with pytest.raises(ValueError, match=r"moments.mean: shares memory"):
        langevin_step(x, grad, 0.1, seed=0, counter=0, moments=moments)
    moments = Moments.zeros_like(x)
    with pytest.raises(ValueError, match="out: shares memory"):
        langevin_step(x, grad, 0.1, seed=0, counter=0, moments=moments, out=moments.m2)


# --- moments -----------------------------------------------------------------------------------------------------
@KERNELS
@EVERY_DTYPE
def test_moments_are_mean_and_variance_of_the_samples(running: str, dtype: torch.dtype) -> None:
    x, grad = 3 + randn(3, 70, dtype=dtype), randn(3, 70, dtype=dtype, seed=1)
    fused, apart = Moments.zeros_like(x), Moments.zeros_like(x)
    samples = []
    for k in range(50):
        x = langevin_step(x, grad, 0.3, seed=1, counter=k, moments=fused)
        apart.update(x)
        samples.append(x)
        assert fused.count == k + 1
    wide = torch.stack(samples).to(torch.complex128 if dtype.is_complex else torch.float64)
    # Each update rounds a few times relative to the largest sample and its square.
    k = 50 * 4
    for moments in (fused, apart):
        testing.assert_close_to_reference(moments.mean, wide.mean(0), k=k)
        for correction in (0, 1):
            variance = wide.var(0, correction=correction)
            testing.assert_close_to_reference(moments.variance(correction), variance, k=k)
            testing.assert_close_to_reference(moments.std(correction), variance.sqrt(), k=k)


def test_variance_of_too_few_samples_is_nan() -> None:
    moments = Moments.zeros_like(torch.zeros(3))
    assert moments.variance().isnan().all()
    moments.update(torch.ones(3))
    assert moments.std().isnan().all()
    assert torch.equal(moments.variance(correction=0), torch.zeros(3))


# --- the sampler -------------------------------------------------------------------------------------------------
def recorded(gradient: Any, states: list[Tensor]) -> Any:
    def record(x: Tensor, *args: Any) -> Tensor:
        states.append(x.clone())
        return gradient(x, *args)

    return record


def test_gaussian_posterior_has_the_mean_and_covariance_of_the_algorithm() -> None:
    # H = 1/2 (x - m)^T P (x - m). In the eigenbasis of P, x <- a x + sqrt(h) xi with a = 1 - h L / 2: variance
    # s = h / (1 - a^2) = 1 / (L (1 - h L / 4)) and autocovariance s a^k, from which follows all below.
    chains, kept, burn_in, h = 2000, 300, 200, 0.5
    curvature = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    Q = torch.linalg.qr(randn(3, 3)).Q
    P, m = Q @ curvature.diag() @ Q.T, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    chain = langevin(
        lambda x, m: (x - m) @ P,
        m.expand(chains, 3),
        (m,),
        step=h,
        iterations=burn_in + kept,
        burn_in=burn_in,
        seed=3,
    )
    assert (chain.status == Status.MAX_ITER).all()
    assert chain.moments.count == kept
    a = 1 - h * curvature / 2
    assert (a.abs() ** (2 * burn_in) < 1e-12).all()
    s = 1 / (curvature * (1 - h * curvature / 4))
    lag = torch.arange(-kept + 1, kept, dtype=torch.float64).abs()
    covariance = (Q**2) @ (s[:, None] * a[:, None] ** lag)  # of each pixel with itself, by lag
    weight = (kept - lag) / kept**2
    of_mean = covariance @ weight  # variance of a chain's mean
    assert ((chain.mean.mean(0) - m).abs() <= 5 * (of_mean / chains).sqrt()).all()
    variance = covariance[:, kept - 1]
    expected = (variance - of_mean) * kept / (kept - 1)
    spread = (2 * (covariance**2 @ weight) / chains).sqrt()  # of the mean of the chains' variances
    estimate = chain.std.square().mean(0)
    assert ((estimate - expected).abs() <= 5 * spread).all()
    bias = variance - torch.linalg.inv(P).diagonal()
    assert (5 * spread <= bias / 2).all()  # so the comparison tells the algorithm from the posterior
    # And across the chains, the covariance of the last states.
    states = chain.x - m
    exact = Q @ s.diag() @ Q.T
    error = ((exact.diagonal()[:, None] * exact.diagonal() + exact**2) / chains).sqrt()
    assert ((states.T @ states / chains - exact).abs() <= 5 * error).all()


def test_complex_posterior() -> None:
    # H = 1/2 L |x - m|^2: both parts are Gaussian with the variance above, so |x - m|^2 has twice that.
    m, curvature, h = 1.0 - 2.0j, 2.0, 0.3
    chain = langevin(
        lambda x: curvature * (x - m), torch.full((4000, 8), m, dtype=torch.complex64), step=h, iterations=60
    )
    variance = 1 / (curvature * (1 - h * curvature / 4))
    states = chain.x - m
    for part in (states.real, states.imag):
        assert abs(float(part.var()) / variance - 1) <= 5 * math.sqrt(2 / part.numel())
    assert abs(complex(chain.mean.mean()) - m) <= 0.02
    assert chain.std.dtype == torch.float32


def test_mean_and_std_are_those_of_the_kept_states() -> None:
    states: list[Tensor] = []
    chain = langevin(
        recorded(lambda x: x, states), randn(3, 20), step=0.2, iterations=41, burn_in=7, thinning=5, seed=1
    )
    after = torch.stack([*states[1:], chain.x])
    kept = after[7:][4::5]
    assert chain.moments.count == len(kept) == 6
    torch.testing.assert_close(chain.mean, kept.mean(0))
    torch.testing.assert_close(chain.std, kept.std(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_resumed_and_split_chains_are_the_same_chains(dtype: torch.dtype) -> None:
    x0 = randn(6, 3, 11, dtype=dtype)

    def run(x: Tensor | Chain, iterations: int, **more: Any) -> Chain:
        options: dict[str, Any] = {"step": lambda k: 0.3 / (1 + k), "burn_in": 4, "thinning": 2}
        return langevin(lambda x: 0.5 * x, x, iterations=iterations, **options, **more)

    whole = run(x0, 17, seed=9)
    first = run(x0, 6, seed=9)
    before = first.x.clone()
    parts = {
        "resumed": run(run(first, 3), 8),
        "twice": run(first, 11),
        "split": [run(x0[:2], 17, seed=9), run(x0[2:], 17, seed=9, first_sample=2)],
    }
    assert torch.equal(first.x, before)
    assert first.steps == 6
    for part in parts.values():
        pieces = part if isinstance(part, list) else [part]
        assert all(piece.steps == 17 for piece in pieces)
        for read in (lambda c: c.x, lambda c: c.mean, lambda c: c.std):
            assert torch.equal(torch.cat([read(piece) for piece in pieces]), read(whole))


def test_options_of_the_sampler_have_their_effect() -> None:
    x0 = randn(4, 20)

    def run(**options: Any) -> Chain:
        return langevin(lambda x: x, x0, **({"step": 0.2, "iterations": 5} | options))

    plain = run()
    steps = torch.tensor([0.2, 0.0, 0.1, 0.2], dtype=torch.float64)
    each = run(step=steps)
    assert torch.equal(each.x[[0, 3]], plain.x[[0, 3]])
    assert torch.equal(each.x[1], x0[1])
    assert torch.equal(run(step=lambda k: 0.2).x, plain.x)
    assert (run(nonneg=True).x >= 0).all()
    assert not (plain.x >= 0).all()
    torch.testing.assert_close(run(noise_std=0.0).x, 0.9**5 * x0)
    assert not torch.isclose(run(seed=1).x, plain.x).any()
    assert not torch.isclose(run(first_sample=1).x, plain.x).any()
    assert torch.equal(run(iterations=0).x, x0)
    assert run(iterations=0).std.isnan().all()


def test_gradient_may_use_autograd_and_start_may_require_it() -> None:
    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((x**4).sum() / 4, x)[0]

    x0 = randn(2, 9).requires_grad_()
    assert torch.equal(
        langevin(gradient, x0, step=0.1, iterations=3).x, langevin(lambda x: x**3, x0, step=0.1, iterations=3).x
    )


def test_a_sample_that_blows_up_is_named_and_reaches_no_other() -> None:
    x0 = randn(3, 5)
    curvature = torch.tensor([[1.0], [1e6], [1.0]], dtype=torch.float64)
    good = langevin(lambda x: x, x0, step=0.1, iterations=200)
    with pytest.warns(ConvergenceWarning, match="1 of 3 samples became NaN or Inf within 200 steps"):
        chain = langevin(lambda x: curvature * x, x0, step=0.1, iterations=200)
    assert chain.status.tolist() == [Status.MAX_ITER, Status.NONFINITE, Status.MAX_ITER]
    assert torch.equal(chain.x[[0, 2]], good.x[[0, 2]])
    assert torch.equal(chain.mean[[0, 2]], good.mean[[0, 2]])
    assert chain.mean[1].isnan().all()
    assert chain.std[1].isnan().all()
    with pytest.warns(ConvergenceWarning, match="1 of 3"):
        assert langevin(lambda x: x, chain, step=0.1, iterations=1).status[1] == Status.NONFINITE


def test_a_batch_that_blew_up_stops() -> None:
    with pytest.warns(ConvergenceWarning, match="2 of 2"):
        chain = langevin(lambda x: 1e6 * x, torch.ones(2, 3), step=0.1, iterations=10**6)
    assert chain.steps < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "iterations: -1"),
        ({"thinning": 0}, "thinning: 0"),
        ({"burn_in": -1}, "burn_in: -1"),
        ({"x0": torch.tensor(1.0)}, "x0: has no batch axis"),
        ({"gradient": lambda x: x[:1]}, r"gradient: returned shape \(1, 3\), expected \(2, 3\)"),
        ({"gradient": lambda x: None}, "gradient: returned None"),
        ({"step": lambda k: -1.0}, "step: -1.0 does not fit"),
    ],
)
def test_sampler_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        langevin(**({"gradient": lambda x: x, "x0": torch.zeros(2, 3), "step": 0.1, "iterations": 2} | change))


def test_a_chain_keeps_its_seed() -> None:
    chain = langevin(lambda x: x, torch.zeros(2, 3), step=0.1, iterations=1, seed=4)
    with pytest.raises(ValueError, match="seed, first_sample: a chain has its own"):
        langevin(lambda x: x, chain, step=0.1, iterations=1, seed=5)
