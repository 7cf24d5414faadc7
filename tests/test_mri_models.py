"""Classical MRI reconstruction: each method against its definition, the whole road against the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
from pyrecon.data.mri import calibration_region, prewhiten, undersample
from pyrecon.data.raw import MRIScan
from pyrecon.linops import Gradient, Sense, Wavelet
from pyrecon.models.mri import (
    METHODS,
    CGSense,
    JointMRI,
    TVSense,
    WaveletSense,
    ZeroFilled,
    default_method,
    evaluate_mri,
    evaluation_table,
    reconstruct_mri,
    scan_of_images,
)
from pyrecon.physics.mri import (
    acceleration,
    coil_maps,
    equispaced_lines,
    gaussian_lines,
    head_phantom,
    poisson_disc,
    random_lines,
    simulate,
)
from pyrecon.solvers import ConvergenceWarning, Status, primal_dual

EVERYTHING = torch.ones(1, 1, 1, 1, dtype=torch.bool)
SIEMENS = Path(__file__).parents[2] / "shared/data/siemens_gre_2coils.dat"
SHAPE = (64, 56)


def scan_of(mask: Tensor = EVERYTHING, *, coils: int = 6, batch: int = 2, **options: Any) -> MRIScan:
    image = head_phantom(SHAPE, batch=batch, seed=1)
    return simulate(image, coil_maps(SHAPE, coils), mask, **({"noise_std": 0.02, "seed": 4} | options))


def problem(dtype: torch.dtype = torch.complex128) -> tuple[Tensor, Tensor, Tensor]:
    """k-space, maps and mask of a tiny undersampled scan, two images."""
    generator = torch.Generator().manual_seed(0)
    maps = coil_maps((12, 10), 3).to(dtype)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = gaussian_lines((12, 10), 2, acl=3)
    kspace = mask * torch.randn(2, 3, 12, 10, dtype=dtype, generator=generator)
    return 10 * kspace, maps, mask


def dense(operator: Sense) -> Tensor:
    """The matrix of an operator, one column per pixel."""
    rows, columns = operator.domain_shape
    basis = torch.eye(rows * columns, dtype=torch.complex128).view(-1, rows, columns)
    return operator(basis).flatten(1).T


# --- the methods against their definitions ---------------------------------------------------------------------
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_cg_sense_equals_dense_least_squares(weight: float) -> None:
    kspace, maps, mask = problem()
    A = dense(Sense(maps, mask))
    centre = torch.zeros(1, 1, 12, 10, dtype=torch.bool)
    centre[(0, 0, *calibration_region(np.broadcast_to(mask.numpy(), (1, 1, 12, 10)), (12, 10)))] = True
    assert centre.sum() >= 30
    prior = (dense(Sense(maps, centre)).mH @ kspace.flatten(1).T).T
    stacked = torch.cat([A, weight**0.5 * torch.eye(120, dtype=A.dtype)])
    data = torch.cat([kspace.flatten(1).T, weight**0.5 * prior.T])
    expected = torch.linalg.lstsq(stacked, data, driver="gelsd").solution.T.view(2, 12, 10)
    solution = CGSense(weight=weight, tol=1e-13, max_iter=500).solve(kspace, maps, mask)
    assert bool(solution.converged.all())
    condition = float(torch.linalg.cond(stacked)) ** 2
    error = torch.linalg.vector_norm(solution.value - expected) / torch.linalg.vector_norm(expected)
    assert error < 100 * torch.finfo(torch.float64).eps * condition  # the normal equations' condition


def test_cg_sense_weight_of_none_is_the_inverse_signal_power_outside_the_centre() -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(1, 1, 40, 1, dtype=torch.bool)
    mask[:, :, 8::2] = False
    mask[:, :, 17:24] = True
    noise = torch.randn(2, 4, 40, 300, dtype=torch.complex128, generator=generator)  # E|n|^2 = 1
    signal = torch.randn(2, 4, 40, 300, dtype=torch.complex128, generator=generator) * 5**0.5
    signal[:, :, 17:24] *= 100
    weight = CGSense.wiener_weight(mask * (signal + noise), mask)
    assert weight == pytest.approx(1 / (4 * 5), rel=0.05)  # four coils of power 5; 8,400 samples per coil
    assert CGSense.wiener_weight(signal, torch.ones_like(mask)) == 0.0


def test_wavelet_sense_satisfies_its_optimality_condition() -> None:
    kspace, maps, mask = problem()
    method = WaveletSense(weight=0.7, wavelet="db2", levels=1, tol=1e-13, max_iter=20000)
    x = method.solve(kspace, maps, mask).value
    operator, transform = Sense(maps, mask), Wavelet((12, 10), wavelet="db2", levels=1)
    g, c = transform(operator.adjoint(operator(x) - kspace)), transform(x)
    rows, columns = transform.coarse_shape
    detail = torch.ones(transform.range_shape, dtype=torch.bool)
    detail[:rows, :columns] = False
    # 0 is in the subdifferential: -g = weight c / |c| where c is not zero, |g| <= weight where it is, g = 0 where the
    # coarse scale is free. (12 x 10 needs no extension at one level, so W is unitary.)
    zero = c.abs() < 1e-12
    assert g[:, ~detail].abs().max() < 1e-8
    assert (g + 0.7 * c / c.abs().clamp_min(1e-300))[:, detail][~zero[:, detail]].abs().max() < 1e-8
    assert g[:, detail][zero[:, detail]].abs().max() < 0.7 + 1e-8
    assert 0.1 < zero[:, detail].double().mean() < 0.9  # both branches were tested


def test_tv_sense_finds_the_minimum_that_primal_dual_finds() -> None:
    kspace, maps, mask = problem()
    operator, gradient, weight = Sense(maps, mask), Gradient((12, 10)), 0.5

    def objective(x: Tensor) -> Tensor:
        misfit = (operator(x) - kspace).abs().square().flatten(1).sum(dim=1)
        return misfit / 2 + weight * torch.linalg.vector_norm(gradient(x), dim=1).flatten(1).sum(dim=1)

    def ball(u: Tensor, _: Tensor) -> Tensor:
        return u * (weight / torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(weight))

    start = operator.adjoint(kspace)
    other = primal_dual(
        lambda x: operator.gram(x) - start, None, gradient, gradient.H, ball, start,
        step=1.0, dual_step=1 / 16, max_iter=20000, tol=1e-10,
    ).value  # fmt: skip
    ours = TVSense(weight=weight, tol=1e-7, max_iter=2000, max_inner=2000).solve(kspace, maps, mask).value
    assert (objective(ours) - objective(other)).abs().max() < 1e-6 * objective(other).min()
    assert (objective(start) > 1.01 * objective(other)).all()


@pytest.mark.parametrize("method", [TVSense(), WaveletSense()], ids=lambda m: m.name)
def test_pixels_without_maps_are_zero(method: Any) -> None:
    """A few pixels with an object: nothing but the penalty says what the others are."""
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[30:34, 20:26] = True
    maps = coil_maps(SHAPE, 6) * inside
    image = 50 * inside.to(torch.complex64)[None]
    kspace = Sense(maps, EVERYTHING)(image)
    found = method.solve(kspace + 0.7 * torch.randn_like(kspace), maps, EVERYTHING).value
    assert bool((found[:, ~inside] == 0).all())
    assert float((found - image).abs()[:, inside].mean()) < 2


def test_zero_filled_is_the_root_sum_of_squares() -> None:
    image, maps = head_phantom(SHAPE), coil_maps(SHAPE, 5)
    found, report = reconstruct_mri(simulate(image, maps, EVERYTHING), ZeroFilled(), whiten=False)
    assert (found - image.abs()).abs().max() < 1e-6 * 4
    assert report.residual == []


HAAR = WaveletSense(wavelet="db1", levels=1)


@pytest.mark.parametrize("change", [{"weight": 0.05}, {"tol": 0.1}])
@pytest.mark.parametrize("method", [CGSense(), TVSense(), HAAR])
def test_common_options_have_their_effect(method: Any, change: dict[str, Any]) -> None:
    assert_differ(method, replace(method, **change))


@pytest.mark.parametrize("change", [{"wavelet": "db2"}, {"levels": 0}])
def test_wavelet_options_have_their_effect(change: dict[str, Any]) -> None:
    assert_differ(HAAR, replace(HAAR, **change))


def test_inner_iterations_have_their_effect() -> None:
    assert_differ(TVSense(), TVSense(max_inner=2))


def assert_differ(first: Any, second: Any) -> None:
    data = problem(torch.complex64)
    a, b = (method.solve(*data).value for method in (first, second))
    assert (a - b).abs().max() > 1e-4  # of 70


@pytest.mark.parametrize("method", [CGSense(max_iter=1), TVSense(max_iter=1), WaveletSense(max_iter=1)])
def test_a_method_that_may_not_converge_says_so(method: Any) -> None:
    with pytest.warns(ConvergenceWarning):
        solution = method.solve(*problem())
    assert (solution.status == Status.MAX_ITER).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WaveletSense(wavelet="db9"), "wavelet: 'db9' is not known"),
        (lambda: WaveletSense(levels=-1), "levels: -1 does not fit"),
        (lambda: TVSense(max_inner=0), "max_inner: 0 does not fit, expected 1 to 1000000"),
        (lambda: JointMRI(continuation=0.5), "continuation, decay, seed: 0.5, 0.95 and 0"),
        (lambda: JointMRI(decay=0.0), "continuation, decay, seed: 100.0, 0.0 and 0"),
        (lambda: JointMRI(seed=-1), "continuation, decay, seed: 100.0, 0.95 and -1"),
        (lambda: JointMRI(epsilon=1e-300), "epsilon: 1e-300 does not fit, expected 0 or 1e-30 to"),
    ],
)
def test_settings_that_no_solver_takes_are_refused_when_they_are_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [CGSense, WaveletSense, TVSense])
@pytest.mark.parametrize("change", [{"weight": -1.0}, {"tol": 0.0}, {"max_iter": 0}, {"weight": float("nan")}])
def test_methods_refuse_impossible_options(kind: type, change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        kind(**change)


# --- the whole road --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("oversampling", [1, 2])
def test_full_noiseless_sampling_is_exact_to_rounding(oversampling: int) -> None:
    image, maps = head_phantom(SHAPE, batch=2, seed=0), coil_maps(SHAPE, 6)
    scan = simulate(image, maps, EVERYTHING, readout_oversampling=oversampling)
    found, report = reconstruct_mri(scan, CGSense(), maps=maps, whiten=False)
    # Single precision: rounding of the data, transforms there and back, and the normalisation of the maps.
    assert (found - image).abs().max() < 16 * torch.finfo(torch.float32).eps
    assert report.status == {"CONVERGED": 2}


@pytest.mark.parametrize(("rate", "noise_std"), [(2, 0.01), (2, 0.03)])
def test_cg_sense_beats_zero_filling(rate: int, noise_std: float) -> None:
    image, maps = head_phantom((96, 96), phase=2.0), coil_maps((96, 96), 8)
    scan = simulate(image, maps, equispaced_lines((96, 96), rate, acl=20), noise_std=noise_std)
    quality = {m.name: psnr_of(scan, m, image, noise_std) for m in (ZeroFilled(), CGSense())}
    assert quality["CG-SENSE"] > quality["zero-filled RSS"] + 5


@pytest.mark.parametrize("noise_std", [0.02, 0.05])
def test_sparsity_beats_cg_sense_at_high_acceleration(noise_std: float) -> None:
    image, maps = head_phantom((128, 128), phase=2.0), coil_maps((128, 128), 8)
    scan = simulate(image, maps, gaussian_lines((128, 128), 4, acl=16), noise_std=noise_std)
    quality = {m.name: psnr_of(scan, m, image, noise_std) for m in (ZeroFilled(), CGSense(), WaveletSense(), TVSense())}
    assert quality["zero-filled RSS"] + 1 < quality["CG-SENSE"] < quality["l1-wavelet SENSE"] - 0.5
    assert quality["l1-wavelet SENSE"] < quality["TV-SENSE"] - 2  # piecewise constant is TV's home ground


def psnr_of(scan: MRIScan, method: Any, truth: Tensor, noise_std: float) -> float:
    """PSNR of the magnitude, in the units of the truth."""
    found, _ = reconstruct_mri(scan, method)
    return float(metrics.psnr(found.abs() * noise_std, truth.abs()).mean())


def test_image_is_in_units_of_the_noise() -> None:
    """Two scans that differ in their noise alone differ by noise of power 2 per pixel."""
    first, second = (reconstruct_mri(scan_of(seed=s), CGSense())[0] for s in (1, 2))
    inside = head_phantom(SHAPE, batch=2, seed=1).abs() > 0.05
    # One phase per pixel is the maps' own; magnitudes carry the noise of one of the two components.
    assert float((first.abs() - second.abs())[inside].var()) == pytest.approx(1.0, rel=0.1)
    ratio = first.abs()[inside] / (head_phantom(SHAPE, batch=2, seed=1).abs()[inside] / 0.02)
    assert float(ratio.median()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_given_maps_keep_the_units_of_the_data(factor: float) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6)) + 1j * rng.standard_normal((6, 6))
    scan = scan_of(noise_std=0.01, noise_covariance=root @ root.conj().T / 6 + np.eye(6))
    maps, image = coil_maps(SHAPE, 6), head_phantom(SHAPE, batch=2, seed=1)
    for scan_now, maps_now in ((scan, maps), (prewhiten(scan), None)):
        if maps_now is None:  # maps of the coils as they now are
            transform = torch.from_numpy(scan_now.metadata["coil_transform"]).to(torch.complex64)
            maps_now = torch.einsum("dc,bchw->bdhw", transform, maps)
        for options in ({}, {"coils": 5}, {"whiten": False}):
            found, _ = reconstruct_mri(scan_now, CGSense(weight=0.0), maps=factor * maps_now, **options)
            assert torch.linalg.vector_norm(factor * found - image) < 0.1 * torch.linalg.vector_norm(image)


def test_report_tells_the_residual_the_noise_and_the_parameters() -> None:
    scan = scan_of(random_lines(SHAPE, 2, acl=16), coils=8)
    _, report = reconstruct_mri(scan, TVSense())
    assert report.method == "TV-SENSE"
    assert report.parameters["weight"] == 0.4
    assert report.samples == 2
    assert report.status == {"CONVERGED": 2}
    # Of 8 x 1792 samples about as many as pixels are fitted, less what TV holds back.
    assert all(0.85 < ratio < 1.1 for ratio in report.residual_over_noise)
    assert report.details["maps"] == "espirit from 16 x 24 samples"
    assert report.details["noise"] == "noise scan, 4096 samples"
    assert report.details["image_unit"] == "noise"
    _, report = reconstruct_mri(scan, CGSense())
    assert 0 < report.parameters["weight"] < 1
    json.loads(report.to_json())


def test_slices_are_reconstructed_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of(random_lines(SHAPE, 2, acl=16, batch=2), coils=4)
    maps = coil_maps(SHAPE, 4)
    methods = (CGSense(weight=0.02), TVSense())
    together = [reconstruct_mri(scan, method, maps=maps)[0] for method in methods]
    monkeypatch.setattr("pyrecon.models.mri.reconstruct.CHUNK_BYTES", 1)
    for method, expected in zip(methods, together, strict=True):
        chunks, report = reconstruct_mri(scan, method, maps=maps)
        alone, _ = reconstruct_mri(replace(scan, kspace=scan.kspace[1:], mask=scan.mask[1:]), method, maps=maps)
        assert report.samples == 2
        # A slice stops by itself, so only the order of float additions can differ.
        assert (chunks - expected).abs().max() < 1e-5
        assert (alone[0] - expected[1]).abs().max() < 1e-5


def test_options_of_reconstruct_have_their_effect() -> None:
    scan = scan_of(random_lines(SHAPE, 2, acl=20))
    method = CGSense(weight=0.01)
    plain, _ = reconstruct_mri(scan, method)
    for change in ({"coil_maps": "walsh"}, {"calibration": 12}, {"coils": 4}, {"whiten": False}):
        assert (reconstruct_mri(scan, method, **change)[0].abs() - plain.abs()).abs().max() > 1e-2  # type: ignore[arg-type]
    _, report = reconstruct_mri(scan, method, coils=4)
    assert report.details["coils"].startswith("4 combinations with 9")


def test_separate_reference_lines_give_the_maps() -> None:
    full = scan_of(noise_std=0.005)
    comb = undersample(full, equispaced_lines(SHAPE, 2, acl=0))
    with pytest.raises(DataError, match=r"fewer than the kernel|centre of k-space is not sampled"):
        reconstruct_mri(comb, CGSense())
    reference = np.where((np.abs(np.arange(64) - 32) < 12)[:, None], full.kspace[:1], 0)
    found, _ = reconstruct_mri(replace(comb, calibration=reference), CGSense())
    truth = head_phantom(SHAPE, batch=2, seed=1).abs() / 0.005
    assert metrics.psnr(found[:1].abs(), truth[:1]) > 30
    assert found.shape == (2, *SHAPE)


def test_reference_lines_serve_the_slices_that_follow_each_other() -> None:
    image = head_phantom(SHAPE, batch=4, seed=1)
    order = torch.tensor([0, 0, 1, 1])
    turned = torch.cat([coil_maps(SHAPE, 6), coil_maps(SHAPE, 6).flip(dims=(3,))])[order]  # two positions of the array
    comb = simulate(image, turned, equispaced_lines(SHAPE, 2, acl=0), noise_std=0.005, seed=1)
    full = simulate(image, turned, EVERYTHING, noise_std=0.005, seed=2)
    reference = np.where((np.abs(np.arange(64) - 32) < 12)[:, None], full.kspace[[0, 2]], 0)
    found, _ = reconstruct_mri(replace(comb, calibration=reference), CGSense())
    # The head's parts move, but lie within the first one's outline: its maps hold for its neighbour.
    assert metrics.psnr(found.abs() * 0.005, image.abs()).min() > 25


def test_single_coil_needs_no_calibration() -> None:
    image = head_phantom(SHAPE)
    mask = equispaced_lines(SHAPE, 2, acl=0)
    scan = simulate(image, torch.ones(1, 1, *SHAPE, dtype=torch.complex64), mask, noise_std=0.01)
    found, report = reconstruct_mri(scan, CGSense())
    assert report.details["maps"] == "1 (single coil)"
    # One coil cannot unfold: half of the two images half a field of view apart.
    alias = (image + image.roll(32, dims=1)) / 2
    assert metrics.nmse(found * 0.01, alias) < 0.1


def test_slices_of_noise_come_out_empty_with_a_warning() -> None:
    scan = scan_of()
    kspace = scan.kspace.copy()
    kspace[1] = 0.02 * scan_of(noise_std=1.0).kspace[1] - 0.02 * scan_of(noise_std=0.0).kspace[1]
    with pytest.warns(UserWarning, match="no signal rises above the noise in slice 1: the image is zero"):
        found, report = reconstruct_mri(replace(scan, kspace=kspace), CGSense(weight=0.01))
    assert not found[1].any()
    assert (found[0] - reconstruct_mri(scan, CGSense(weight=0.01))[0][0]).abs().max() < 1e-3
    assert any("slice 1" in text for text in report.warnings)
    with pytest.raises(DataError, match="no signal rises above the noise in the centre of any slice"):
        reconstruct_mri(replace(scan, kspace=kspace[1:]), CGSense())


def test_unknown_noise_is_said_and_replaced() -> None:
    scan = replace(scan_of(noise_std=0.0), noise=np.zeros((6, 100), np.complex64))
    with pytest.warns(UserWarning, match="has no noise.*hundredth of the brightest pixel"):
        found, report = reconstruct_mri(scan, CGSense())
    assert report.residual_over_noise == []
    assert report.details["image_unit"] == "data"
    truth = head_phantom(SHAPE, batch=2, seed=1).abs()
    assert metrics.psnr(found.abs(), truth).min() > 35
    louder, _ = reconstruct_mri(replace(scan, kspace=1000 * scan.kspace), CGSense(), whiten=False)
    assert metrics.psnr(louder.abs() / 1000, found.abs()).min() > 100


# --- bad input -------------------------------------------------------------------------------------------------
def with_nan(scan: MRIScan) -> MRIScan:
    kspace = scan.kspace.copy()
    kspace[1, 0, 3, 4] = np.nan
    return replace(scan, kspace=kspace)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: reconstruct_mri(with_nan(s)), DataError, "NaN or Inf in slice 1"),
        (lambda s: reconstruct_mri(replace(s, mask=s.mask[:, :, 1:])), DataError, "mask: shape"),
        (lambda s: reconstruct_mri(s, maps=coil_maps(SHAPE, 5)), ValueError, r"maps: shape \(1, 5, 64, 56\) does not"),
        (lambda s: reconstruct_mri(s, maps=torch.ones(1, 6, *SHAPE)), TypeError, "maps: expected a complex tensor"),
        (lambda s: reconstruct_mri(s, maps=coil_maps(SHAPE, 6) * np.nan), ValueError, "maps: hold NaN"),
        (lambda s: reconstruct_mri(s, coil_maps="magic"), ValueError, "coil_maps: 'magic'"),
        (lambda s: reconstruct_mri(s, coils=7), ValueError, "coils: 7 of 6"),
        (lambda s: reconstruct_mri(replace(s, kspace=0 * s.kspace), whiten=False), DataError, "zero everywhere"),
        (lambda s: evaluate_mri(undersample(s, random_lines(SHAPE, 2))), DataError, "50% of the lines are sampled"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    call: Callable[[MRIScan], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call(scan_of())
    assert "\n" not in str(caught.value)


def test_a_scan_without_calibration_says_what_to_do() -> None:
    scan = undersample(scan_of(), random_lines(SHAPE, 4, acl=4))
    with pytest.raises(DataError, match="acquire more autocalibration lines, or give coil maps"):
        reconstruct_mri(scan, CGSense())
    found, _ = reconstruct_mri(scan, CGSense(), maps=coil_maps(SHAPE, 6))
    assert torch.isfinite(found.abs()).all()
    assert reconstruct_mri(scan, ZeroFilled())[1].status == {"CONVERGED": 2}


# --- choosing and comparing ------------------------------------------------------------------------------------
def test_default_method_follows_the_undersampling() -> None:
    full = scan_of()
    assert default_method(full) == CGSense()
    assert default_method(undersample(full, random_lines(SHAPE, 2))) == CGSense()
    assert default_method(undersample(full, random_lines(SHAPE, 4))) == TVSense()
    assert all(kind().name for kind in METHODS.values())
    assert reconstruct_mri(full)[1].method == "CG-SENSE"


def test_evaluation_compares_every_method_at_every_acceleration() -> None:
    scan = scan_of(coils=8, readout_oversampling=2)
    methods = (ZeroFilled(), CGSense(), TVSense())
    rows, images = evaluate_mri(scan, (2.0, 3.0), methods, mask=partial(gaussian_lines, acl=14, seed=3))
    assert [(r.method, r.acceleration) for r in rows] == [(m.name, rate) for rate in (2.0, 3.0) for m in methods]
    mask = gaussian_lines(SHAPE, 3.0, acl=14, seed=3)
    assert rows[-1].net_acceleration == acceleration(mask)
    reference = images["reference", 1.0].abs()
    assert rows[-1].psnr == pytest.approx(float(metrics.psnr(images["TV-SENSE", 3.0].abs(), reference).mean()))
    assert rows[1].psnr > rows[0].psnr
    assert rows[2].psnr > rows[5].psnr  # less undersampling, better image
    table = evaluation_table(rows)
    assert len(table.splitlines()) == 2 + len(rows)
    assert f"| {rows[1].psnr:.2f} |" in table
    points, _ = evaluate_mri(scan, (4.0,), (ZeroFilled(), TVSense()), mask=partial(poisson_disc, calibration=14))
    assert points[1].psnr > points[0].psnr + 3
    assert points[1].net_acceleration == pytest.approx(4.0, rel=1e-3)
    truth = head_phantom(SHAPE, batch=2, seed=1) / 0.02
    against_truth, _ = evaluate_mri(scan, (2.0,), (TVSense(),), reference=truth)
    assert against_truth[0].psnr != rows[2].psnr


@pytest.mark.skipif(not SIEMENS.exists(), reason="no real twix file beside the checkout")
def test_the_real_siemens_scan() -> None:
    scan = io.read(SIEMENS)
    assert isinstance(scan, MRIScan)
    image, report = reconstruct_mri(scan)
    magnitude = image[0].abs()
    assert magnitude.shape == (160, 160)
    assert report.details["noise"].startswith("k-space corners")
    # The ACR phantom the right way round: crossed wedges (dark) at the top, the resolution insert in the lower half
    # with the largest holes on the left.
    assert magnitude[16:22, 75:80].mean() < 0.3 * magnitude[140:146, 75:80].mean()
    assert magnitude[100:115, 100:110].mean() < 0.3 * magnitude[60:66, 100:110].mean()
    rows, _ = evaluate_mri(scan, (2.0,), mask=partial(gaussian_lines, acl=24))
    quality = {row.method: row.psnr for row in rows}
    assert quality["CG-SENSE"] > 24
    assert quality["TV-SENSE"] > quality["l1-wavelet SENSE"] > quality["CG-SENSE"]


def test_a_scan_of_images_shows_them_in_units_of_its_noise() -> None:
    """Fully sampled, least squares gives back what was scanned, with noise of one."""
    volume = np.random.default_rng(0).random((12, 40, 36)) + np.linspace(0, 1, 12)[:, None, None]
    scan, truth = scan_of_images(volume, coils=6, noise=0.02, slices=3)
    assert scan.kspace.shape == (3, 6, 40, 36)
    found, _ = reconstruct_mri(scan, CGSense())
    error = (found.abs() - truth.abs()).abs()
    # Magnitudes have the noise of one part of a complex number of deviation 1, whose median is 0.674 / sqrt(2).
    assert float(error.median()) == pytest.approx(0.477, rel=0.15)
    np.testing.assert_allclose((truth[1].abs() / truth[0].abs()).numpy(), volume[6] / volume[3], rtol=1e-4)
    for bad, message in ((np.zeros((4, 8, 8)), "zero"), (np.full((4, 8, 8), np.nan), "finite")):
        with pytest.raises(DataError, match=message):
            scan_of_images(bad)


def test_methods_are_compared_on_an_image_by_command(tmp_path: Path) -> None:
    io.write_result(tmp_path / "a.npz", io.Result(head_phantom((48, 48)).abs().numpy()))
    found = CliRunner().invoke(
        app,
        [
            "evaluate",
            "mri",
            str(tmp_path / "a.npz"),
            "-a",
            "2",
            "-m",
            "rss",
            "-m",
            "de-prox=de-prox-mri",
            "--coils",
            "2",
        ],
    )
    assert found.exit_code == 0, found.output
    assert "| zero-filled RSS | 2 " in found.stdout
    assert "| DE-Prox | 2 " in found.stdout
