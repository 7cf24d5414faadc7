"""Posteriors of scans: energy against definition, samples against a closed form, interruption, errors, calibration."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrecon import io
from pyrecon._errors import DataError, Stopped
from pyrecon.cli import app
from pyrecon.data.raw import MRIScan
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.linops import Sense
from pyrecon.models.mri.posterior import Posterior, held_maps
from pyrecon.models.mri.sampling import Uncertainty, sample_mri
from pyrecon.physics.mri import coil_maps, head_phantom, random_lines, simulate
from pyrecon.report import Report
from pyrecon.solvers import Charbonnier, ConvergenceWarning, Draw

N = 16


class Gaussian:
    """R(u) = |u - 1/2|^2 / (2 s^2)."""

    def __init__(self, std: float = 0.3) -> None:
        self.std = std

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        away = (u - 0.5) / self.std**2
        return 0.5 * ((u - 0.5) * away).flatten(1).sum(1), away


def scan(slices: int = 1, noise: float = 0.05, phase: float = 1.0) -> MRIScan:
    image = head_phantom((N, N), batch=slices, seed=1, phase=phase)
    mask = random_lines((N, N), 2, acl=6, seed=2)
    return simulate(image, coil_maps((N, N), 3), mask, noise_std=noise)


MAPS = coil_maps((N, N), 3)


def quick(data: MRIScan, prior: Any = None, **options: Any) -> tuple[Uncertainty, Report]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"chains": 2, "burn_in": 10, "samples": 24, "maps": MAPS} | options
        return sample_mri(data, Gaussian() if prior is None else prior, **given)


def problem(weight: float = 3.0, prior: Any = None) -> Posterior:
    data = held_maps(scan(), MAPS, 24, None, torch.device("cpu"), {})
    kspace, mask = data.tensors(slice(0, 1))
    return Posterior(kspace, data.maps_of(slice(0, 1)), mask, prior or Charbonnier(0.05), weight)


# --- the energy --------------------------------------------------------------------------------------------------
def test_energy_is_that_of_whitened_data_and_prior() -> None:
    here = problem()
    u, v = (torch.rand(3, N, N, generator=torch.Generator().manual_seed(i)) for i in (1, 2))

    def by_hand(u: Tensor) -> Tensor:
        data = here.operator(here.peak * (u * here.inside).to(torch.complex64)) - here.kspace
        outside = here.peak**2 * (u * ~here.inside).square().flatten(1).sum(1)
        own = here.prior.energy_and_gradient(u * here.inside)[0]
        return data.abs().square().flatten(1).sum(1).double() + outside + 3.0 * own

    ours = here.energy_and_gradient(u)[0] - here.energy_and_gradient(v)[0]
    torch.testing.assert_close(ours, by_hand(u) - by_hand(v), rtol=1e-4, atol=1e-2)


def test_gradient_is_that_of_the_energy() -> None:
    here = problem()
    u = torch.rand(2, N, N, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(2, N, N, generator=torch.Generator().manual_seed(2))
    _, gradient = here.energy_and_gradient(u)
    t = 1e-3
    rise = (here.energy_and_gradient(u + t * direction)[0] - here.energy_and_gradient(u - t * direction)[0]) / (2 * t)
    torch.testing.assert_close((gradient * direction).double().flatten(1).sum(1), rise, rtol=2e-3, atol=0)


def test_smoothed_tv_is_its_definition() -> None:
    u = torch.rand(2, 5, 7, dtype=torch.float64).requires_grad_()
    rows = torch.nn.functional.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    columns = torch.nn.functional.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    energy = (rows.square() + columns.square() + 0.03**2).sqrt().flatten(1).sum(1)
    (gradient,) = torch.autograd.grad(energy.sum(), u)
    ours = Charbonnier(0.03).energy_and_gradient(u.detach())
    torch.testing.assert_close(ours[0], energy.detach())
    torch.testing.assert_close(ours[1], gradient)


def test_metric_of_smoothed_tv_lies_above_its_hessian_and_is_perturbed_by_its_covariance() -> None:
    prior = Charbonnier(0.03)
    for scale in (0.0, 0.01, 1.0):
        u = scale * torch.rand(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).view(4, 5, 5)

        def energy(x: Tensor) -> Tensor:
            rows = torch.nn.functional.pad(x[1:] - x[:-1], (0, 0, 0, 1))
            columns = torch.nn.functional.pad(x[:, 1:] - x[:, :-1], (0, 1))
            return (rows.square() + columns.square() + 0.03**2).sqrt().sum()

        eye = torch.eye(25, dtype=torch.float64).view(25, 5, 5)
        metric = prior.metric(eye).reshape(25, 25)
        for image in u:
            hessian = torch.autograd.functional.hessian(energy, image).reshape(25, 25)
            assert torch.linalg.eigvalsh(metric - hessian).min() >= -1e-9
        eta = prior.perturbation(Draw(torch.zeros(20000, 5, 5, dtype=torch.float64), 1, 2, 0)).flatten(1)
        error = ((metric.diagonal()[:, None] * metric.diagonal() + metric**2) / 20000).sqrt()
        assert ((eta.T @ eta / 20000 - metric).abs() <= 5 * error).all()


@pytest.mark.parametrize("prior", [Charbonnier(0.05), Gaussian()], ids=["metric", "largest curvature"])
def test_preconditioner_solves_what_it_perturbs_by(prior: Any) -> None:
    here = problem(prior=prior)
    how = here.preconditioned(1e-6, 0)
    basis = torch.eye(N * N).view(-1, N, N)
    P = how.solve(basis).reshape(N * N, N * N).double()
    precision = torch.linalg.inv((P + P.T) / 2)
    count = 20000
    eta = torch.cat([how.perturb(Draw(torch.zeros(5000, N, N), 1, k, 0)) for k in range(4)]).flatten(1).double()
    error = ((precision.diagonal()[:, None] * precision.diagonal() + precision**2) / count).sqrt()
    assert ((eta.T @ eta / count - precision).abs() <= 5.5 * error).all()


def test_maps_carry_the_phase() -> None:
    data = held_maps(scan(noise=1e-4, phase=0.7), MAPS, 24, None, torch.device("cpu"), {})
    kspace, mask = data.tensors(slice(0, 1))
    image = Sense(data.maps_of(slice(0, 1)), mask).adjoint(kspace)
    bright = image.abs() > 0.3 * image.abs().max()
    assert float(image.real[bright].min()) > 0
    assert float((image.imag[bright].abs() / image.abs()[bright]).median()) < 0.2


# --- the samples -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("sampler", "samples"), [("preconditioned", 1500), ("ula", 4000), ("mala", 4000)])
def test_samples_have_the_posterior_of_a_gaussian_prior(sampler: str, samples: int) -> None:
    data = scan(noise=0.15)
    found, report = quick(
        data, Gaussian(), sampler=sampler, chains=4, burn_in=500, samples=samples, weight=1.0, nonneg=False
    )
    here = problem_of(data)
    eye = torch.eye(N * N).view(-1, N, N)
    precision = here.gram(eye).reshape(N * N, -1).double() + torch.eye(N * N) / 0.3**2
    covariance = torch.linalg.inv((precision + precision.T) / 2)
    linear = here.gram(here.reference) - here.slope + 0.5 / 0.3**2 * here.inside
    mean = (covariance @ linear.flatten().double()).view(N, N)
    std = covariance.diagonal().sqrt().view(N, N)
    inside = here.inside
    error = (found.mean[0] / unit_of(data, here) - mean)[inside] / (std / found.ess[0].clamp(min=1).sqrt())[inside]
    assert float(error.square().mean().sqrt()) <= 1.6
    ratio = (found.std[0] / unit_of(data, here) / std)[inside]
    # 5 % of the variance along the stiffest direction, and the solves of P.
    assert abs(float(ratio.mean()) - 1) <= 0.05
    normal = 1.6448536
    width = ((found.upper - found.lower)[0] / unit_of(data, here) / (2 * normal * std))[inside]
    assert abs(float(width.mean()) - 1) <= 0.06
    assert ("acceptance" in report.details) == (sampler == "mala")


def problem_of(data: MRIScan) -> Posterior:
    prepared = held_maps(data, MAPS, 24, None, torch.device("cpu"), {})
    kspace, mask = prepared.tensors(slice(0, 1))
    return Posterior(kspace, prepared.maps_of(slice(0, 1)), mask, Gaussian(), 1.0)


def unit_of(data: MRIScan, here: Posterior) -> Tensor:
    """(H, W): what an image of peak 1 was multiplied by."""
    prepared = held_maps(data, MAPS, 24, None, torch.device("cpu"), {})
    unit = prepared.unit(slice(0, 1))
    assert isinstance(unit, Tensor)
    return (here.peak * unit)[0]


def test_every_option_has_its_effect() -> None:
    base = quick(scan())[0]
    assert base.mean.shape == (1, N, N)
    assert torch.equal(quick(scan())[0].mean, base.mean)
    changed: list[dict[str, Any]] = [
        {"sampler": "ula"}, {"sampler": "mala"}, {"chains": 3}, {"burn_in": 20}, {"samples": 40}, {"thinning": 2},
        {"weight": 7.0}, {"bias": 0.2}, {"nonneg": False}, {"seed": 1}, {"coils": 2}, {"prior": Gaussian(0.1)},
    ]  # fmt: skip
    for options in changed:
        assert not torch.equal(quick(scan(), **options)[0].mean, base.mean), options
    narrow = quick(scan(), level=0.5)[0]
    assert ((narrow.upper - narrow.lower) <= (base.upper - base.lower)).all()
    assert not torch.equal(quick(scan(), draws=8)[0].upper, base.upper)
    assert torch.equal(quick(scan(), draws=8)[0].mean, base.mean)
    assert (base.mean >= 0).all()
    # Estimated maps, in place of given ones.
    estimated = quick(scan(), maps=None)[0].mean
    assert not torch.equal(estimated, base.mean)
    assert not torch.equal(quick(scan(), maps=None, calibration=6)[0].mean, estimated)


def test_default_weight_is_that_of_the_temperature() -> None:
    class Cold(Gaussian):
        temperature = 0.2

    assert problem_of(scan()).weight == 1.0
    prepared = held_maps(scan(), MAPS, 24, None, torch.device("cpu"), {})
    kspace, mask = prepared.tensors(slice(0, 1))
    maps = prepared.maps_of(slice(0, 1))
    assert Posterior(kspace, maps, mask, Cold(), None).weight == pytest.approx(5.0)
    plain = Posterior(kspace, maps, mask, Charbonnier(0.01), None)
    assert plain.weight == pytest.approx(0.2 * plain.peak)


def test_slices_do_not_depend_on_one_another_and_a_lost_one_is_named() -> None:
    class Breaking(Gaussian):
        """NaN for the brightest slice's images, from a while on."""

        calls = 0

        def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
            energy, gradient = super().energy_and_gradient(u)
            self.calls += len(u) == 2
            if self.calls > 20:
                gradient[1] = torch.nan
            return energy, gradient

    with pytest.warns(ConvergenceWarning, match="1 of 2 samples became NaN"):
        found, report = sample_mri(scan(), Breaking(), chains=2, burn_in=10, samples=64, maps=MAPS)
    assert found.mean.isfinite().all()  # of the chain that is left
    assert report.status == {"MAX_ITER": 1}


def test_a_scan_that_converges_says_so() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        found, report = sample_mri(
            scan(noise=0.15), Gaussian(0.1), chains=4, burn_in=300, samples=2600, weight=1.0, maps=MAPS
        )
    assert report.status == {"CONVERGED": 1}
    assert float(found.rhat[found.std > 0].median()) < 1.01
    assert 0.7 < report.residual_over_noise[0] < 1.3


# --- interruption ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", ["preconditioned", "ula", "mala"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path: Path, sampler: str) -> None:
    data = scan(slices=2)
    whole = quick(data, sampler=sampler)[0]
    state = tmp_path / "chains"
    steps = [0]
    for after in (3, 9, 45):

        def stop(limit: int = after) -> bool:
            return steps[-1] >= limit

        with pytest.raises(Stopped, match="interrupted after"):
            quick(data, sampler=sampler, state=state, progress=lambda done, total: steps.append(done), stop=stop)
        assert any(state.iterdir())
    found = quick(data, sampler=sampler, state=state)[0]
    for name in ("mean", "std", "lower", "upper", "ess", "rhat"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert not state.exists()


def test_chains_of_another_run_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "chains"
    count = iter(range(100))
    with pytest.raises(Stopped):
        quick(scan(), state=state, stop=lambda: next(count) > 1)
    for change in ({"seed": 3}, {"weight": 9.0}, {"prior": Gaussian(0.2)}, {"samples": 30}):
        with pytest.raises(DataError, match="is of another scan, prior or settings"):
            quick(scan(), state=state, **change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is of another scan"):
        quick(scan(noise=0.06), state=state)
    with pytest.raises(Stopped, match="which are lost"):
        quick(scan(), stop=lambda: True)


# --- errors ------------------------------------------------------------------------------------------------------
class Wrong:
    def energy_and_gradient(self, u: Tensor) -> Any:
        return u.sum(), u


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 3}, "prior: int has no energy_and_gradient"),
        ({"prior": Wrong()}, "prior: energy_and_gradient returned shapes"),
        ({"sampler": "hmc"}, "sampler: 'hmc' is not known"),
        ({"chains": 0}, "chains: 0"),
        ({"samples": 4}, "samples: 4"),
        ({"burn_in": -1}, "burn_in: -1"),
        ({"thinning": 0}, "thinning: 0"),
        ({"draws": 2}, "draws: 2"),
        ({"level": 1.0}, "level: 1.0"),
        ({"weight": -1.0}, "weight: -1.0"),
        ({"bias": 0.0}, "bias: 0.0"),
        ({"nonneg": 1}, "nonneg: 1"),
        ({"seed": -1}, "seed: -1"),
        ({"stop": 3}, "stop: expected a function"),
        ({"progress": 3}, "progress: expected a function"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        quick(scan(), **options)


def test_scans_that_cannot_be_sampled_are_named() -> None:
    with pytest.raises(TypeError, match="scan: expected an MRIScan"):
        sample_mri(torch.zeros(3))  # type: ignore[arg-type]
    empty = scan()
    with pytest.raises(DataError, match="kspace"):
        quick(dataclasses.replace(empty, kspace=np.zeros_like(empty.kspace)))
    bad = scan()
    bad.kspace[0, 0, 8, 8] = np.nan
    with pytest.raises(DataError, match="kspace: NaN or Inf in slice 0"):
        quick(bad)
    with pytest.raises(ValueError, match="epsilon: 0"):
        Charbonnier(0)


# --- the command line --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    image = head_phantom((24, 24), seed=1)
    data = simulate(image, coil_maps((24, 24), 3), random_lines((24, 24), 2, acl=10, seed=2), noise_std=0.03)
    write_ismrmrd(path, data)
    return path


def test_command_writes_maps_and_report(file: Path, tmp_path: Path) -> None:
    target, figure = tmp_path / "out.h5", tmp_path / "out.png"
    arguments = ["sample", str(file), "-o", str(target), "--chains", "2", "--burn-in", "20", "--samples", "40"]
    done = CliRunner().invoke(app, [*arguments, "--figure", str(figure), "--json", "--level", "0.8"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert told["parameters"]["prior"] == "tv"
    assert "split R-hat" in told["details"]
    assert any("effective samples" in text for text in told["warnings"])
    result = io.read_result(target)
    assert result.labels[:3] == ("mean", "standard deviation", "lower end, 80%")
    assert result.image.shape == (6, 1, 24, 24)
    mean, _, lower, upper = result.image[:4]
    assert ((lower <= upper) & (mean >= 0)).all()
    assert figure.stat().st_size > 1000
    assert not (tmp_path / "out.h5.chains").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-o", "x.png"], "holds no numbers"),
        (["--level", "1.5"], "--level: 1.5"),
        (["--prior", "nothing-like-it"], "nothing-like-it"),
        (["--device", "nowhere"], "--device"),
    ],
)
def test_command_refuses_by_name(file: Path, change: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["sample", str(file), *change])
    assert isinstance(done.exception, DataError)
    assert message in str(done.exception)


def test_an_interrupted_command_goes_on(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    command = [
        sys.executable,
        "-m",
        "pyrecon",
        "sample",
        str(file),
        "-o",
        str(target),
        "--chains",
        "2",
        "--sampler",
        "ula",
    ]
    command += ["--burn-in", "10", "--samples", "6000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"env": environment, "cwd": tmp_path}  # not where the sources lie
    cut = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
    chains = tmp_path / "out.npz.chains/slice-0.safetensors"
    while cut.poll() is None and not chains.exists():
        time.sleep(0.05)
    cut.send_signal(signal.SIGTERM)
    _, said = cut.communicate(timeout=120)
    assert cut.returncode == 1, said
    assert "the same command goes on" in said
    assert chains.exists()
    assert not target.exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert again.returncode == 0, again.stderr
    other = tmp_path / "whole.npz"
    command[command.index(str(target))] = str(other)
    assert subprocess.run(command, capture_output=True, timeout=300, **options).returncode == 0
    assert np.array_equal(io.read_result(target).image, io.read_result(other).image)


# --- calibration -------------------------------------------------------------------------------------------------
def test_intervals_hold_what_they_claim() -> None:
    from pyrecon.experiments.stable_mri.calibration import CASES, Law, Problem, run
    from pyrecon.solvers import MALA

    here = Problem(dataclasses.replace(CASES[2], sigma=0.1), 0)
    for name, steps in (("MALA", 3000), ("preconditioned ULA, CG", 1500)):
        sampler, P = here.samplers()[name]
        found = run(here, sampler, Law.of(here.precision, P), replicates=32, steps=steps, seed=1)
        assert 0.88 <= found.coverage <= 0.92
        assert 0.87 <= found.coverage_draws <= 0.92
        assert abs(found.variance / found.law - 1) <= 0.03
        assert 0.6 <= found.mean_error <= 1.4
        assert math.isnan(found.acceptance) != isinstance(sampler, MALA)


def test_law_of_calibration_is_that_of_a_scalar() -> None:
    from pyrecon.experiments.stable_mri.calibration import Law

    one = torch.eye(1, dtype=torch.float64)
    law = Law.of(4 * one, one)
    assert law.variance == pytest.approx(1.05)
    a = 1 - law.step * 4 / 2
    assert law.tau == pytest.approx((1 + a) / (1 - a))
