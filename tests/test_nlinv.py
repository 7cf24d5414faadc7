"""Nonlinear inversion: the Gauss-Newton steps against dense ones, when it stops, what it is told, and the method."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrecon import io, metrics
from pyrecon.cli import app
from pyrecon.data.raw import MRIScan
from pyrecon.models.mri import METHODS, NLINV, CGSense, ZeroFilled, reconstruct_mri, reconstruct_with_maps
from pyrecon.physics.mri import coil_maps, head_phantom, random_lines, simulate
from pyrecon.solvers import ConvergenceWarning, Status, nlinv
from pyrecon.testing.mrd import mrd_encoding, mrd_file, mrd_header

DOUBLE = torch.complex128
SHAPE = (48, 40)


def fourier(coils: Tensor) -> Tensor:
    shifted = torch.fft.fft2(torch.fft.ifftshift(coils, dim=(-2, -1)), norm="ortho")
    return torch.fft.fftshift(shifted, dim=(-2, -1))


def dense(k: Tensor, mask: Tensor, steps: int, *, alpha: float, reduction: float, s: float, order: float) -> Any:
    """Image, maps and misfit of one sample: the real Jacobian by automatic differentiation, equations by LU."""
    coils, rows, cols = k.shape
    n = rows * cols
    ky, kx = (torch.fft.fftfreq(size, 256 / size, dtype=torch.float64) for size in (rows, cols))
    weight = (1 + s * (ky[:, None] ** 2 + kx**2)) ** (-order / 2)
    scale = 100 / 256 * math.sqrt(n) / torch.linalg.vector_norm(mask * k)
    known = torch.view_as_real(scale * mask * k).flatten()

    def parts(v: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.view_as_complex(v.view(1 + coils, rows, cols, 2))
        return x[0], torch.fft.ifft2(weight * x[1:], norm="ortho")

    def model(v: Tensor) -> Tensor:
        rho, maps = parts(v)
        return torch.view_as_real(mask * fourier(rho * maps)).flatten()

    start = torch.zeros(2 * (1 + coils) * n, dtype=torch.float64)
    start[0 : 2 * n : 2] = 1
    x, eye = start, torch.eye(len(start), dtype=torch.float64)
    for i in range(steps):
        J, a = torch.autograd.functional.jacobian(model, x), alpha * reduction**i
        x = x + torch.linalg.solve(J.T @ J + a * eye, J.T @ (known - model(x)) + a * (start - x))
    rho, maps = parts(x)
    total = torch.linalg.vector_norm(maps, dim=0)
    return rho * total / scale, maps / total, torch.linalg.vector_norm(known - model(x)) / scale


def random_problem(batch: int = 1, shape: tuple[int, int] = (8, 7), coils: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 1, *shape, dtype=torch.float64, generator=generator) + 0.5
    maps = torch.randn(batch, coils, 1, 1, dtype=DOUBLE, generator=generator)
    maps = maps + 0.3 * torch.randn(batch, coils, *shape, dtype=DOUBLE, generator=generator)
    mask = torch.rand(1, 1, *shape, generator=generator) < 0.6
    mask[..., shape[0] // 2, shape[1] // 2] = True
    return fourier(image * maps) * mask, mask


@pytest.mark.parametrize(
    ("smoothness", "order", "shape"),
    [(220.0, 32.0, (8, 7)), (2e4, 2.0, (8, 7)), (3e5, 40.0, (9, 12))],
    ids=["as published", "all frequencies", "the lowest alone"],
)
def test_steps_are_those_of_dense_equations(smoothness: float, order: float, shape: tuple[int, int]) -> None:
    k, mask = random_problem(shape=shape)
    options: dict[str, Any] = {"alpha": 0.8, "reduction": 0.4}
    image, maps, misfit = dense(k[0], mask[0].double(), 5, **options, s=smoothness, order=order)
    found = nlinv(k, mask, steps=5, rtol=1e-14, max_iter=600, smoothness=smoothness, order=order, **options)
    torch.testing.assert_close(found.value[0][0], image, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.value[1][0], maps, rtol=1e-9, atol=1e-9)
    assert float(found.residual) == pytest.approx(float(misfit), rel=1e-9)
    assert found.iterations.tolist() == [5]


def test_the_scale_of_the_data_is_that_of_the_image_alone() -> None:
    k, mask = random_problem()
    one, other = nlinv(k, mask, rtol=1e-10), nlinv(1e4 * k, mask, rtol=1e-10)
    torch.testing.assert_close(other.value[0], 1e4 * one.value[0])
    torch.testing.assert_close(other.value[1], one.value[1])
    torch.testing.assert_close(other.residual, 1e4 * one.residual)


def test_the_first_step_at_the_noise_is_the_last_sample_by_sample() -> None:
    k, mask = random_problem(batch=3)
    history = torch.stack([nlinv(k, mask, steps=n, rtol=1e-10).residual for n in range(1, 9)])
    assert bool((history.diff(dim=0) < 0).all())
    wanted = torch.tensor([2, 7, 4])
    tol = torch.stack([history[n, i] * 1.0001 for i, n in enumerate((wanted - 1).tolist())])
    found = nlinv(k, mask, steps=8, tol=tol, rtol=1e-10)
    assert found.iterations.tolist() == wanted.tolist()
    assert found.counts() == {"CONVERGED": 3}
    for i, n in enumerate(wanted.tolist()):
        alone = nlinv(k[i : i + 1], mask, steps=n, rtol=1e-10)
        torch.testing.assert_close(found.value[0][i], alone.value[0][0])
    with pytest.warns(ConvergenceWarning, match=r"nlinv: 2 of 3 samples .*\(2 MAX_ITER.*raise steps"):
        assert nlinv(k, mask, steps=3, tol=tol, rtol=1e-10).iterations.tolist() == [2, 3, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nlinv(k, mask, steps=3).counts() == {"MAX_ITER": 3}


def test_silent_and_broken_samples_leave_the_others_alone() -> None:
    k, mask = random_problem(batch=4)
    alone = nlinv(k[[0, 3]], mask, steps=4)
    k[1], k[2, 0, 4, 3] = 0, torch.nan
    with pytest.warns(ConvergenceWarning, match="1 NONFINITE"):
        found = nlinv(k, mask, steps=4)
    assert [Status(int(s)).name for s in found.status] == ["MAX_ITER", "CONVERGED", "NONFINITE", "MAX_ITER"]
    torch.testing.assert_close(found.value[0][[0, 3]], alone.value[0])
    assert not found.value[0][1].any()
    torch.testing.assert_close(found.value[1].abs().square().sum(1), torch.ones(4, 8, 7, dtype=torch.float64))
    assert nlinv(k[:0], mask).value[0].shape == (0, 8, 7)
    dead = nlinv(torch.cat((k[:1], torch.zeros_like(k[:1])), dim=1), mask, steps=4)  # two coils that saw nothing
    assert not dead.value[1][0, 2:].any()


def test_a_mask_of_each_sample_its_own_and_any_transform_of_coils() -> None:
    k, mask = random_problem(batch=2)
    masks = torch.cat((mask, mask.flip(-1).roll(1, -1)))
    masks[..., 4, 3] = True
    both = nlinv(k, masks, steps=6, tol=torch.tensor([1e9, 0.0], dtype=torch.float64), rtol=1e-10)
    assert both.iterations.tolist() == [1, 6]
    second = nlinv(k[1:], masks[1:], steps=6, rtol=1e-10)
    torch.testing.assert_close(both.value[0][1:], second.value[0])

    class Coils:
        bound = 1.0

        def adjoint(self, kspace: Tensor) -> Tensor:
            return self._back(mask * kspace)

        def gram(self, coils: Tensor) -> Tensor:
            return self._back(mask * fourier(coils))

        def _back(self, samples: Tensor) -> Tensor:
            shifted = torch.fft.ifft2(torch.fft.ifftshift(samples, dim=(-2, -1)), norm="ortho")
            return torch.fft.fftshift(shifted, dim=(-2, -1))

    torch.testing.assert_close(nlinv(k, Coils(), rtol=1e-10).value, nlinv(k, mask, rtol=1e-10).value)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"kspace": torch.zeros(1, 2, 8, 7)}, TypeError, "kspace: dtype float32"),
        ({"mask": "lines"}, TypeError, "mask: str"),
        ({"steps": 0}, ValueError, "steps: 0"),
        ({"tol": -1.0}, ValueError, "tol: -1"),
        ({"tol": torch.ones(3, dtype=torch.float64)}, ValueError, "tol: shape"),
        ({"tol": torch.tensor([-1.0], dtype=torch.float64)}, ValueError, "tol: .* expected numbers >= 0"),
        ({"reduction": 1.5}, ValueError, "reduction: 1.5"),
        ({"alpha": 0.0}, ValueError, "alpha: 0.0"),
        ({"order": -1.0}, ValueError, "order: -1"),
        ({"max_iter": 0}, ValueError, "max_iter: 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    k, mask = random_problem()
    with pytest.raises(kind, match=message):
        nlinv(**({"kspace": k, "mask": mask} | change))


# --- the method ------------------------------------------------------------------------------------------------------
def scan_of(mask: Tensor, noise: float = 0.01, batch: int = 1) -> MRIScan:
    return simulate(head_phantom(SHAPE, batch=batch, seed=1), coil_maps(SHAPE, 6), mask, noise_std=noise, seed=4)


def truth() -> Tensor:
    return torch.linalg.vector_norm(head_phantom(SHAPE, seed=1)[:, None] * coil_maps(SHAPE, 6), dim=1)


def quality(scan: MRIScan, method: Any, noise: float) -> float:
    """PSNR; images are in units of the noise."""
    peak = float(truth().max())
    return float(metrics.psnr(reconstruct_mri(scan, method)[0].abs() * noise / peak, truth() / peak))


@pytest.mark.parametrize("acl", [1, 9])
@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_the_step_that_fits_the_noise_is_near_the_best(noise: float, acl: int) -> None:
    scan = scan_of(random_lines(SHAPE, 2, acl=acl, seed=0), noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        steps = [quality(scan, NLINV(misfit=0.0, steps=n), noise) for n in range(1, 15)]
    chosen = quality(scan, NLINV(), noise)
    assert chosen > max(steps) - 1.2
    assert chosen > quality(scan, ZeroFilled(), noise) + 2.5
    if acl > 1:
        assert chosen > quality(scan, CGSense(), noise) - 1  # whose maps are of the calibration lines


def test_every_setting_changes_the_image_and_wrong_ones_are_named() -> None:
    scan = scan_of(random_lines(SHAPE, 2, acl=9, seed=0))
    kspace, mask = torch.from_numpy(scan.kspace) / 0.01, torch.from_numpy(scan.mask)
    plain = NLINV().solve(kspace, None, mask).value
    for change in (
        {"misfit": 2.0}, {"steps": 3}, {"alpha": 0.1}, {"reduction": 0.3}, {"smoothness": 20.0}, {"order": 8.0},
        {"rtol": 1e-3}, {"max_iter": 2},
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            changed = NLINV(**change).solve(kspace, None, mask).value  # type: ignore[arg-type]
        assert float((changed - plain).abs().max()) > 1e-3 * float(plain.abs().max()), change
    for wrong in ({"misfit": -1.0}, {"steps": 0}, {"alpha": 0.0}, {"reduction": 2.0}, {"rtol": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
            NLINV(**wrong)  # type: ignore[arg-type]


def test_reports_maps_and_batches() -> None:
    scan = scan_of(random_lines(SHAPE, 2, acl=9, seed=0), batch=2)
    images, maps, report = reconstruct_with_maps(scan, NLINV())
    assert maps is not None
    assert maps.shape == (2, 6, *SHAPE)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(2, *SHAPE))
    assert report.status == {"CONVERGED": 2}
    assert all(0.5 < value <= 0.951 for value in report.residual_over_noise)
    assert report.details["steps end"] == "at 0.95 of the noise, 16 at most"
    alone, _ = reconstruct_mri(replace(scan, kspace=scan.kspace[1:]), NLINV())
    torch.testing.assert_close(images[1:], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_the_command_line(tmp_path: Path) -> None:
    mask = random_lines(SHAPE, 2, acl=1, seed=0)
    kspace, taken = scan_of(mask).kspace[0], mask.flatten().nonzero().flatten().tolist()
    scan = mrd_file(
        tmp_path / "scan.h5",
        [{"data": kspace[:, row], "at": {"kspace_encode_step_1": row}} for row in taken],
        mrd_header(mrd_encoding((SHAPE[1], SHAPE[0], 1), (200.0, 240.0, 5.0), oversampling=1)),
    )
    target, maps = tmp_path / "image.npz", tmp_path / "maps.h5"
    call = ["reconstruct", str(scan), "-m", "nlinv", "-p", "misfit=1.1", "-o", str(target), "--maps-out", str(maps)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "at 1.1 of the noise" in done.output
    image, found = io.read_result(target), io.read_result(maps)
    assert image.method == "NLINV"
    assert found.image.shape == (6, 1, *image.image.shape[-2:])
    assert np.iscomplexobj(image.image)
    assert np.ptp(np.angle(image.image[np.abs(image.image) > 0.2 * np.abs(image.image).max()])) > 0.01
    assert METHODS["nlinv"] is NLINV
