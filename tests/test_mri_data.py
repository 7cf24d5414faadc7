"""MRI preprocessing and coil maps, each against its law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data import coil_maps as coil_maps_module
from pyrecon.data import mri
from pyrecon.data.coil_maps import _dominant, espirit_maps, walsh_maps
from pyrecon.data.fourier import centered_slice, fft_centered, ifft_centered
from pyrecon.data.raw import MRIScan
from pyrecon.io.ismrmrd import read_ismrmrd, write_ismrmrd
from pyrecon.physics.mri import coil_maps, gaussian_points, head_phantom, random_lines, simulate

EVERYTHING = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def correlated(coils: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((coils, coils)) + 1j * rng.standard_normal((coils, coils))
    return root @ root.conj().T / coils + 0.5 * np.eye(coils)


def scan_of(shape: tuple[int, int] = (32, 28), coils: int = 4, mask: Tensor = EVERYTHING, **options: object) -> MRIScan:
    return simulate(head_phantom(shape, batch=2, seed=1), coil_maps(shape, coils), mask, **options)  # type: ignore[arg-type]


# --- the Fourier convention ------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(6, 7), (5, 8)])
def test_fourier_is_centred_and_orthonormal(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    y, z = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    rows, columns = (torch.exp(-2j * torch.pi * torch.outer(q, q) / len(q)) / len(q) ** 0.5 for q in (y, z))
    assert (fft_centered(x) - rows @ x @ columns).abs().max() < 1e-13
    assert (ifft_centered(fft_centered(x)) - x).abs().max() < 1e-14


# --- readout oversampling --------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [28, 27])
@pytest.mark.parametrize("factor", [2, 3])
def test_removing_oversampling_keeps_image_and_noise(width: int, factor: int) -> None:
    wide = scan_of((32, width), readout_oversampling=factor, mask=random_lines((32, width), 2, acl=8))
    narrow = mri.remove_oversampling(wide)
    plain = scan_of((32, width), mask=random_lines((32, width), 2, acl=8))
    assert narrow.readout_oversampling == 1
    assert narrow.kspace.dtype == np.complex64
    # Two more transforms in single precision: a few roundings of the largest value.
    assert np.abs(narrow.kspace - plain.kspace).max() < 8 * np.finfo(np.float32).eps * np.abs(plain.kspace).max()
    noisy = scan_of((32, width), readout_oversampling=factor, noise_std=1.0, seed=3)
    noise = mri.remove_oversampling(noisy).kspace - scan_of((32, width)).kspace
    power = np.mean(np.abs(noise) ** 2)
    assert abs(power - 1) < 5 / np.sqrt(noise.size)  # |n|^2 has mean 1 and standard deviation 1


def test_removing_oversampling_takes_calibration_and_partial_echo_along() -> None:
    wide = scan_of((16, 20), readout_oversampling=2)
    echo = np.broadcast_to(np.arange(40) >= 10, (1, 1, 16, 40)).copy()
    calibration = wide.kspace[:1]
    narrow = mri.remove_oversampling(replace(wide, mask=echo, calibration=calibration))
    assert narrow.mask.shape == (1, 1, 16, 20)
    assert np.array_equal(narrow.mask[0, 0, 0], np.arange(20) >= 5)
    assert narrow.calibration is not None
    assert np.abs(narrow.calibration - mri.remove_oversampling(wide).kspace[:1]).max() == 0
    assert not narrow.kspace[..., :5].any()
    with pytest.raises(DataError, match="40 readout samples divided by 3"):
        mri.remove_oversampling(replace(wide, readout_oversampling=3.0))


# --- noise -----------------------------------------------------------------------------------------------------
def test_whitening_makes_the_noise_covariance_the_identity() -> None:
    scan = scan_of(coils=4, noise_std=0.02, noise_covariance=correlated(4), noise_samples=8192)
    white = mri.prewhiten(scan)
    assert white.noise is not None
    found = white.noise.astype(np.complex128) @ white.noise.conj().T / white.noise.shape[1]
    # Whitened by the covariance of these very samples: exact up to single precision.
    assert np.abs(found - np.eye(4)).max() < 1e-5
    assert white.metadata["whitened"] == "noise scan, 8192 samples"


def test_whitening_by_the_noise_scan_whitens_the_data() -> None:
    options = {"mask": EVERYTHING, "coils": 4}
    covariance, samples = 0.02**2 * correlated(4), 8192
    noisy = scan_of((64, 64), noise_std=1.0, noise_covariance=covariance, noise_samples=samples, **options)
    clean = scan_of((64, 64), **options)
    noise = replace(noisy, kspace=noisy.kspace - clean.kspace)
    white = mri.prewhiten(noise, mri.estimate_noise(noisy)).kspace.transpose(1, 0, 2, 3).reshape(4, -1)
    found = white @ white.conj().T / white.shape[1]
    # Sampling error of the estimate and of this check: five standard errors each.
    assert np.abs(found - np.eye(4)).max() < 5 / np.sqrt(samples) + 5 / np.sqrt(white.shape[1])
    transform = mri.prewhiten(noisy).metadata[mri.COIL_TRANSFORM]
    again = transform @ mri.estimate_noise(noisy).covariance @ transform.conj().T
    assert np.abs(again - np.eye(4)).max() < 1e-10


@pytest.mark.parametrize("factor", [1, 2])
def test_noise_from_the_corners_is_close_to_that_of_the_noise_scan(factor: int) -> None:
    covariance = correlated(3)
    scan = scan_of((96, 96), 3, noise_std=0.2, noise_covariance=covariance, readout_oversampling=factor)
    corners = mri.estimate_noise(replace(scan, noise=None))
    assert corners.source == "k-space corners"
    assert mri.estimate_noise(scan).source == "noise scan"
    n = corners.samples
    assert n == pytest.approx(2 * 96 * 96 * (1 - np.pi / 4), rel=0.02)
    # Sampling error, and the head's detail in the corners, which is below a tenth of this noise.
    scale = 0.04 * np.sqrt(np.outer(covariance.diagonal().real, covariance.diagonal().real))
    assert (np.abs(corners.covariance - 0.04 * covariance) < scale * (5 / np.sqrt(n) + 0.01)).all()


def test_noise_ratio_scales_the_noise_scan_and_survives_a_file(tmp_path: Path) -> None:
    scan = scan_of(coils=3, noise_std=1.0)
    assert scan.noise is not None
    short = replace(scan, noise=2 * scan.noise, noise_ratio=0.25)  # measured with a quarter of the dwell time
    write_ismrmrd(tmp_path / "scan.h5", short)
    read = read_ismrmrd(tmp_path / "scan.h5")
    expected = mri.estimate_noise(scan).covariance
    for found in (short, read):
        assert found.noise_ratio == pytest.approx(0.25)
        assert np.abs(mri.estimate_noise(found).covariance - expected).max() < 1e-6 * np.abs(expected).max()
    white = mri.prewhiten(short)
    assert np.abs(mri.estimate_noise(white).covariance - np.eye(3)).max() < 1e-5
    with pytest.warns(UserWarning, match=r"predicts [34]\.. times the power that the corners"):
        mri.estimate_noise(replace(short, noise_ratio=1.0))
    with pytest.raises(DataError, match="noise_ratio: 0"):
        mri.estimate_noise(replace(short, noise_ratio=0.0))


def test_corners_without_data_do_not_count() -> None:
    scan = scan_of((48, 48), 2, noise_std=0.3, noise_samples=0)
    kspace = scan.kspace.copy()
    kspace[..., :4] = kspace[..., -4:] = 0  # zero-filled by somebody who says it was sampled
    full, part = (mri.estimate_noise(s) for s in (scan, replace(scan, kspace=kspace)))
    assert part.samples < full.samples
    # Five standard errors of either estimate.
    assert np.abs(part.covariance - full.covariance).max() < 10 * 0.09 / np.sqrt(part.samples)


def test_whitening_refuses_what_has_no_inverse() -> None:
    scan = scan_of(coils=3, noise_std=0.1)
    assert scan.noise is not None
    dead = scan.noise.copy()
    dead[1] = 0
    with pytest.raises(DataError, match="coil 1 of 3 has no noise"):
        mri.prewhiten(replace(scan, noise=dead))
    twice = scan.noise.copy()
    twice[2] = twice[0]
    with pytest.raises(DataError, match="singular"):
        mri.prewhiten(replace(scan, noise=twice))
    with pytest.raises(DataError, match="does not fit 3 coils"):
        mri.prewhiten(scan, mri.Noise(np.eye(2, dtype=complex), 10, "noise scan"))
    lines = random_lines((32, 28), 8, acl=4)
    few = scan_of((32, 28), 20, mask=lines, noise_samples=0)
    few = replace(few, mask=few.mask & (np.abs(np.arange(32) - 16) < 2)[:, None])
    with pytest.raises(DataError, match="too few for the covariance of 20 coils"):
        mri.estimate_noise(few)


# --- coils -----------------------------------------------------------------------------------------------------
def test_compression_keeps_the_energy_it_says_and_white_noise_white() -> None:
    scan = mri.prewhiten(scan_of(coils=8, noise_std=0.01))
    small = mri.compress_coils(scan, 4)
    assert small.kspace.shape[1] == 4
    kept = np.sum(np.abs(small.kspace) ** 2) / np.sum(np.abs(scan.kspace) ** 2)
    assert small.metadata["compression_energy"] == pytest.approx(kept, rel=1e-5)
    assert kept > 0.9
    matrix = small.metadata[mri.COIL_TRANSFORM] @ np.linalg.inv(scan.metadata[mri.COIL_TRANSFORM])
    assert np.abs(matrix @ matrix.conj().T - np.eye(4)).max() < 1e-12
    best = np.linalg.svd(scan.kspace.transpose(1, 0, 2, 3).reshape(8, -1), compute_uv=False) ** 2
    assert kept == pytest.approx(best[:4].sum() / best.sum(), rel=1e-5)
    for coils in (0, 9):
        with pytest.raises(ValueError, match=f"coils: {coils} of 8"):
            mri.compress_coils(scan, coils)


# --- sampling --------------------------------------------------------------------------------------------------
def test_undersampling_leaves_what_both_masks_have() -> None:
    first, second = (random_lines((32, 28), 2, acl=8, seed=s) for s in (1, 2))
    scan = scan_of(mask=first)
    under = mri.undersample(scan, second)
    both = (first & second).numpy()
    assert np.array_equal(under.mask, both)
    assert np.array_equal(under.kspace, np.where(both, scan.kspace, 0))
    columns = mri.undersample(scan_of(), random_lines((32, 28), 2, acl=8, axis=-1))
    assert columns.mask.shape == (1, 1, 32, 28)
    with pytest.raises(DataError, match=r"mask: shape \(1, 1, 31, 1\) does not fit"):
        mri.undersample(scan, torch.ones(1, 1, 31, 1, dtype=torch.bool))
    with pytest.raises(DataError, match="no sample at all"):
        mri.undersample(scan, ~first)


def best_block(full: np.ndarray) -> int:
    """The largest centred block's area, by trying all."""
    height, width = full.shape
    areas = [
        h * w
        for h in range(1, height + 1)
        for w in range(1, width + 1)
        if full[centered_slice(height, h), centered_slice(width, w)].all()
    ]
    return max(areas, default=0)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.5, 1.0), st.integers(0, 2**31))
def test_calibration_region_is_the_largest_sampled_centre(h: int, w: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((1, 1, h, w)) < density
    rows, columns = mri.calibration_region(mask, (h, w))
    block = mask[0, 0, rows, columns]
    assert block.all()
    assert block.size == best_block(mask[0, 0])
    if block.size:
        assert rows == centered_slice(h, rows.stop - rows.start)
        assert columns == centered_slice(w, columns.stop - columns.start)


def test_calibration_region_of_real_masks() -> None:
    shape = (160, 144)
    lines = random_lines(shape, 4, acl=24, seed=0).numpy()
    rows, columns = mri.calibration_region(lines, shape)
    assert columns == slice(0, 144)
    assert rows.start <= 68
    assert rows.stop >= 92
    points = gaussian_points(shape, 8, calibration=20, width=0.4).numpy()
    assert mri.calibration_region(points, shape) == (centered_slice(160, 20), centered_slice(144, 20))


def test_calibration_data_prefers_separate_reference_lines() -> None:
    full = scan_of((40, 36))
    sparse = mri.undersample(full, random_lines((40, 36), 4, acl=10))
    assert torch.equal(mri.calibration_data(sparse, 8), mri.calibration_data(full, 8))
    reference = np.where((np.abs(np.arange(40) - 20) < 8)[:, None], 2 * full.kspace[:1], 0)
    separate = mri.calibration_data(replace(sparse, calibration=reference), 12)
    assert torch.equal(separate, 2 * mri.calibration_data(full, 12)[:1])
    hollow = replace(sparse, mask=sparse.mask & (np.arange(40) != 20)[:, None])
    with pytest.raises(DataError, match="centre of k-space is not sampled; acquire autocalibration lines, or give"):
        mri.calibration_data(hollow)


@pytest.mark.parametrize("calibrations", [None, 1, 2, 4])
def test_first_slices_keep_their_calibration(calibrations: int | None) -> None:
    scan = simulate(head_phantom((32, 28), batch=4, seed=1), coil_maps((32, 28), 2), EVERYTHING)
    scan = replace(scan, calibration=None if calibrations is None else scan.kspace[:calibrations])
    first = mri.first_slices(scan, 3)
    mri.check_scan(first)
    assert first.labels == ("slice 0", "slice 1", "slice 2")
    assert np.array_equal(first.kspace, scan.kspace[:3])
    if calibrations is not None:
        assert first.calibration is not None
        whole = np.repeat(scan.kspace[:calibrations], 4 // calibrations, axis=0)[:3]
        assert np.array_equal(np.broadcast_to(first.calibration, whole.shape), whole)


# --- coil maps -------------------------------------------------------------------------------------------------
def map_error(maps: Tensor, truth: Tensor) -> Tensor:
    """|truth - maps e^i phi| at every pixel, phi the best common phase of the coils."""
    along = (maps.conj() * truth).sum(dim=1, keepdim=True)
    turned = maps * torch.where(along == 0, 1, along / along.abs())
    return torch.linalg.vector_norm(truth - turned, dim=1)


def head(noise_std: float, coils: int, shape: tuple[int, int] = (96, 88)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Calibration data, k-space, true maps, and where the object is."""
    image, maps = head_phantom(shape), coil_maps(shape, coils)
    scan = simulate(image, maps, EVERYTHING, noise_std=noise_std, seed=2)
    return mri.calibration_data(scan, 24), torch.from_numpy(scan.kspace), maps, image.abs() > 0.05


# Mean and largest error inside the object. Without noise there remain the patches' finite extent and the threshold of
# 1 %; at noise 0.05, a quarter of the grey matter's signal, that of the calibration data.
@pytest.mark.parametrize(("noise_std", "mean", "most"), [(0.0, 0.01, 0.1), (0.05, 0.05, 0.15)])
@pytest.mark.parametrize("coils", [2, 8])
def test_espirit_recovers_the_maps_up_to_phase(noise_std: float, mean: float, most: float, coils: int) -> None:
    calibration, _, truth, inside = head(noise_std, coils)
    maps, eigenvalues = espirit_maps(calibration, (96, 88), noise_std=noise_std)
    error = map_error(maps, truth)[inside]
    assert error.mean() < mean
    assert error.max() < most
    assert eigenvalues[inside].min() > 0.9
    assert eigenvalues.max() < 1 + 1e-4
    power = maps.abs().square().sum(dim=1)
    assert ((power - 1).abs()[power > 0] < 1e-4).all()


def test_espirit_maps_satisfy_the_data() -> None:
    calibration, kspace, _, _ = head(0.0, 8)
    maps, _ = espirit_maps(calibration, (96, 88), noise_std=0.0)
    images = ifft_centered(kspace)
    left = images - maps * (maps.conj() * images).sum(dim=1, keepdim=True)
    # Each pixel's residual is at most its map's error times the signal.
    assert torch.linalg.vector_norm(left) < 0.02 * torch.linalg.vector_norm(images)


def test_espirit_in_double_precision_equals_an_eigen_decomposition_of_its_definition() -> None:
    """Kernels made from the SVD, transformed one by one, and LAPACK at every pixel."""
    calibration, _, _, _ = head(0.02, 3, (20, 18))
    data, kernel, threshold, shape = calibration[0, :, :14, :12].to(torch.complex128), 4, 0.03, (20, 18)
    patches = data.unfold(1, kernel, 1).unfold(2, kernel, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3 * kernel**2)
    _, s, vh = torch.linalg.svd(patches, full_matrices=False)
    kernels = vh[s > threshold * s[0]].reshape(-1, 3, kernel, kernel)
    # Row j of V^H is orthonormal to the others and spans the patches (as rows): the projector on columns is conjugate.
    y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    offset = torch.arange(kernel, dtype=torch.float64)
    ey = torch.exp(2j * torch.pi * torch.outer(y, offset) / shape[0])
    ex = torch.exp(2j * torch.pi * torch.outer(x, offset) / shape[1])
    images = torch.einsum("jcpq,yp,xq->yxcj", kernels.to(torch.complex128), ey, ex)
    values, vectors = torch.linalg.eigh(images @ images.mH / kernel**2)
    maps, found = espirit_maps(data[None], shape, noise_std=0.0, kernel=kernel, threshold=threshold, crop=0.0)
    # Values are good to the square of the vectors' error.
    assert (found[0] - values[..., -1]).abs().max() < 1e-12
    clear = values[..., -1] - values[..., -2] > 0.1  # elsewhere the eigenvector is not well defined
    expected = vectors[..., -1].permute(2, 0, 1)[None]
    assert map_error(maps, expected)[0][clear].max() < 1e-7  # the residual of 5e-9 over the gap
    assert clear.double().mean() > 0.5


def test_espirit_options_have_their_effect() -> None:
    calibration, _, _, inside = head(0.05, 4)

    def run(**options: float) -> tuple[Tensor, Tensor]:
        return espirit_maps(calibration, (96, 88), **({"noise_std": 0.05} | options))  # type: ignore[arg-type]

    plain, values = run()
    assert (run(crop=0.98)[0] == 0).sum() > (plain == 0).sum()
    assert not (run(crop=0.0)[0] == 0).any()
    for change in ({"kernel": 5}, {"threshold": 0.2}, {"noise_std": 0.0}):
        assert (run(**change)[1] - values)[inside[0].expand_as(values)].abs().max() > 1e-3


def test_map_phase_is_smooth_across_the_object() -> None:
    calibration, _, _, inside = head(0.0, 8)
    for maps in (espirit_maps(calibration, (96, 88), noise_std=0.0)[0], walsh_maps(calibration, (96, 88))):
        step = (maps[:, :, 1:] - maps[:, :, :-1]).abs().sum(dim=1)[inside[:, 1:] & inside[:, :-1]]
        assert step.max() < 0.3  # a phase jump of pi in one coil would give up to 2


@pytest.mark.parametrize(("noise_std", "mean"), [(0.0, 0.03), (0.05, 0.06)])
def test_walsh_recovers_the_maps_up_to_phase(noise_std: float, mean: float) -> None:
    calibration, _, truth, inside = head(noise_std, 6)
    maps = walsh_maps(calibration, (96, 88))
    assert map_error(maps, truth)[inside].mean() < mean
    assert (maps.abs().square().sum(dim=1) - 1).abs().max() < 1e-4
    assert (walsh_maps(calibration, (96, 88), window=3) - maps).abs().max() > 1e-3


def test_maps_do_not_depend_on_the_batch_or_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = torch.cat([head(0.02, 4)[0], 3j * head(0.0, 4)[0]])
    espirit, walsh = espirit_maps(calibration, (96, 88), noise_std=0.02), walsh_maps(calibration, (96, 88))
    monkeypatch.setitem(coil_maps_module._CHUNK_BYTES, "cpu", 1)  # a row at a time
    for b, sample in enumerate(calibration):
        maps, values = espirit_maps(sample[None], (96, 88), noise_std=0.02)
        kept = values[0] > 0.8 + 1e-5  # rounding may move a pixel across the crop
        # Vectors are good to 1e-4 over the gap to the next eigenvalue, which closes towards the background.
        assert (maps[0] - espirit[0][b]).abs()[:, kept].max() < 2e-2
        assert (maps[0] - espirit[0][b]).abs()[:, kept].mean() < 1e-5
        assert (values[0] - espirit[1][b]).abs()[kept].max() < 1e-5
        assert (walsh_maps(sample[None], (96, 88))[0] - walsh[b]).abs().mean() < 1e-5


def test_a_sample_of_noise_has_no_maps_and_spoils_no_other() -> None:
    calibration, _, _, _ = head(0.05, 4)
    noise = 0.05 * torch.randn(1, 4, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    batch = torch.cat([noise, calibration, torch.zeros_like(noise)])
    maps, eigenvalues = espirit_maps(batch, (96, 88), noise_std=0.05)
    for empty in (0, 2):
        assert not maps[empty].any()
        assert not eigenvalues[empty].any()
    assert torch.equal(maps[1], espirit_maps(calibration, (96, 88), noise_std=0.05)[0][0])


def test_maps_are_finite_where_there_is_nothing_but_rounding() -> None:
    """Where a pixel has no object its matrix is rounding: no Hermitian one, of a trace of any sign."""
    noise = 1e-9 * torch.randn(2000, 3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    swapped = torch.tensor([[[0, 1e-9], [1e-9, 0]]], dtype=torch.complex64)  # of trace 0
    for matrices in (noise, swapped, torch.zeros_like(swapped)):
        for found in _dominant(matrices, 0.8):
            assert torch.isfinite(found.abs()).all()


# --- bad input -------------------------------------------------------------------------------------------------
def broken(scan: MRIScan, value: complex) -> MRIScan:
    kspace = scan.kspace.copy()
    kspace[1, 2, 5, 7] = value
    return replace(scan, kspace=kspace)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: broken(s, np.nan), r"NaN or Inf in slice 1 \(first: coil 2, line 5, sample 7\)"),
        (lambda s: broken(s, np.inf), "NaN or Inf in slice 1"),
        (lambda s: broken(s, 1e20j), r"kspace: values beyond 1e\+15 in slice 1 \(first: coil 2, line 5, sample 7\)"),
        (lambda s: replace(s, field_of_view=(0.2, 1e300, 0.005)), "field_of_view: .* expected lengths of 1e-09 to"),
        (lambda s: replace(s, field_of_view=(0.2, 0.2, 1e-30)), "field_of_view: .* expected lengths of 1e-09 to"),
        (lambda s: replace(s, kspace=s.kspace[0]), r"kspace: shape \(4, 32, 28\)"),
        (lambda s: replace(s, mask=np.ones((1, 1, 30, 1), bool)), r"mask: shape \(1, 1, 30, 1\) does not fit"),
        (lambda s: replace(s, mask=np.ones((1, 1, 32, 1))), "mask: dtype float64"),
        (lambda s: replace(s, mask=np.zeros((1, 1, 32, 1), bool)), "no sample at all"),
        (lambda s: replace(s, noise=np.zeros((3, 9), np.complex64)), r"noise: shape \(3, 9\) does not fit 4 coils"),
        (lambda s: replace(s, noise=np.full((4, 9), np.nan, np.complex64)), "noise: NaN or Inf"),
        (lambda s: replace(s, calibration=s.kspace[:, :3]), "calibration: shape"),
        (lambda s: replace(s, calibration=np.full_like(s.kspace, np.nan)), "calibration: NaN"),
        (lambda s: replace(s, readout_oversampling=0.5), "readout_oversampling: 0.5"),
    ],
)
def test_damaged_scans_are_refused_in_one_line(damage: Callable[[MRIScan], MRIScan], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        mri.check_scan(damage(scan_of()))
    assert "\n" not in str(caught.value)


def test_noise_that_is_none_is_not_divided_by() -> None:
    """In its units k-space would not fit into single precision; a hundredth of the brightest pixel is taken instead."""
    scan = scan_of()
    noise = np.random.default_rng(0).standard_normal((4, 100)).astype(np.complex64) * np.float32(1e-25)
    tiny = replace(scan, noise=noise, noise_ratio=1.0)
    with pytest.raises(DataError, match=r"times its noise .* reconstruct without whitening"):
        mri.prewhiten(tiny)


def test_coil_maps_refuse_a_calibration_that_cannot_work() -> None:
    calibration = torch.zeros(1, 2, 24, 4, dtype=torch.complex64)
    with pytest.raises(DataError, match="24 x 4 samples are fewer than the kernel of 6 x 6; acquire more"):
        espirit_maps(calibration, (32, 32), noise_std=1.0)
    noise = torch.randn(1, 2, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="exceeds the maps' shape"):
        espirit_maps(noise, (20, 32), noise_std=1.0)
    with pytest.raises(ValueError, match="out of range"):
        espirit_maps(noise, (32, 32), noise_std=1.0, crop=2.0)
    with pytest.raises(ValueError, match="window: 4"):
        walsh_maps(noise, (32, 32), window=4)
