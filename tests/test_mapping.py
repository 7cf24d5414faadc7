"""Maps of relaxation times: right and with honest errors where the truth is known; ``pyrecon fit`` as it is typed."""

from __future__ import annotations

import csv
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyrecon import ops
from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.series import ImageSeries
from pyrecon.io import Result, read_result, write_result
from pyrecon.io.series import read_series
from pyrecon.models.mri.mapping import KINDS, fit_series, regions

REAL = Path(__file__).parents[2] / "shared" / "data" / "qmri"
shared = pytest.mark.skipif(not REAL.exists(), reason="real series lie beside the checkout")
RNG = np.random.default_rng(3)
SHAPE = (2, 40, 50)  # slices, rows, columns
T1 = RNG.uniform(0.6, 1.6, SHAPE)
T2 = RNG.uniform(0.04, 0.12, SHAPE)
M0 = RNG.uniform(80, 120, SHAPE)
NOISE = 0.5


def images(kind: str) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Without noise, their settings, and the time that is looked for; from the formulas, not from the models."""

    def t(*values: float) -> np.ndarray[Any, Any]:
        return np.array(values).reshape(-1, 1, 1, 1)

    ti = t(0.05, 0.15, 0.4, 0.8, 1.4, 2.2, 3.2, 4.5)
    te = t(*np.arange(1, 13) * 0.012)
    if kind == "ir":
        return M0 * (1 - 1.9 * np.exp(-ti / T1)), {"inversion time": ti.ravel()}, T1
    if kind == "ir, several TR":
        tr = t(1.5, 1.5, 1.8, 2.2, 3.0, 4.0, 5.0, 6.0)
        signal = M0 * (1 - 1.95 * np.exp(-ti / T1) + 0.95 * np.exp(-tr / T1))
        return signal, {"inversion time": ti.ravel(), "repetition time": tr.ravel()}, T1
    if kind == "sr":
        return M0 * (1 - np.exp(-ti / T1)), {"inversion time": ti.ravel()}, T1
    if kind == "molli":
        star = 1 / (1 / T1 + 0.3)
        a = M0 * star / T1
        return (
            a - (a + 0.95 * M0) * np.exp(-ti / star),
            {"inversion time": ti.ravel()},
            star * ((a + 0.95 * M0) / a - 1),
        )
    if kind == "vfa":
        angle, tr = np.radians(t(2, 4, 8, 12, 18, 25)), 0.015
        e = np.exp(-tr / T1)
        signal = 20 * M0 * np.sin(angle) * (1 - e) / (1 - np.cos(angle) * e)
        return signal, {"flip angle": angle.ravel(), "repetition time": np.full(6, tr)}, T1
    if kind == "epg":  # by the op's signal, which tests/test_fit_epg.py holds against Bloch's equations
        settings = [torch.from_numpy(v.reshape(1, -1)) for v in (1 / T2, 0.8 + 0.1 * np.sin(9 * T1), M0)]
        signal = ops.MultiSpinEcho().signal(*settings, torch.from_numpy(te.ravel()))
        return signal.numpy().reshape(-1, *SHAPE), {"echo time": te.ravel()}, T2
    return M0 * np.exp(-te / T2), {"echo time": te.ravel()}, T2


CASES = ["ir", "ir, several TR", "sr", "molli", "vfa", "t2", "t2star", "epg"]


@pytest.mark.parametrize("case", CASES)
def test_errors_are_calibrated(case: str) -> None:
    """Of 4,000 voxels with noise: no bias beyond a tenth of the standard error, and Student's widths.

    Complex data but for vfa and the echoes, whose magnitudes stay far above the noise. The mean of 4,000 z has a
    deviation of 0.016; curvature shifts it by about the relative error of a time, a twentieth. With n degrees of
    freedom the deviation of z is sqrt(n / (n - 2)), known to 2 % from so many and shifted likewise.
    """
    clean, settings, truth = images(case)
    rng = np.random.default_rng(5)
    is_complex = case in ("ir", "ir, several TR", "sr", "molli")
    noise = NOISE * rng.standard_normal((2, *clean.shape))
    data = clean * np.exp(0.7j) + noise[0] + 1j * noise[1] if is_complex else np.abs(clean + noise[0])
    kind = case.split(",")[0]
    series = ImageSeries(data.astype(np.complex64 if is_complex else np.float32), settings)
    maps, report = fit_series(series, kind)
    name = KINDS[kind].time
    z = (maps.values[name] - truth) / maps.errors[name]
    assert report.status == {"CONVERGED": z.size}
    assert abs(z.mean()) < 0.1
    parameters = {"ir": 5, "ir, several TR": 4, "sr": 3, "molli": 5, "epg": 3}.get(case, 2)
    freedom = len(clean) * (2 if is_complex else 1) - parameters
    assert z.std() == pytest.approx((freedom / (freedom - 2)) ** 0.5, rel=0.1)
    assert np.isfinite(maps.residual).all()
    assert maps.residual.mean() == pytest.approx(NOISE * (2**0.5 if is_complex else 1), rel=0.35)


@pytest.mark.parametrize("case", CASES)
def test_without_noise_the_maps_are_the_truth(case: str) -> None:
    clean, settings, truth = images(case)
    kind = case.split(",")[0]
    series = ImageSeries(np.abs(clean).astype(np.float32), settings)
    maps, _ = fit_series(series, kind)
    np.testing.assert_allclose(maps.values[KINDS[kind].time], truth, rtol=2e-3)
    assert not maps.at_bound.any()


def test_late_echoes_near_the_noise_need_its_likelihood() -> None:
    """T2 with the last of twelve echoes at the noise: least squares is off by a third of a standard error and more."""
    clean, settings, truth = images("t2")
    noise = 8 * np.random.default_rng(1).standard_normal((2, *clean.shape))
    series = ImageSeries(np.hypot(clean + noise[0], noise[1]).astype(np.float32), settings)
    bias = []
    for noise_std in (None, 8.0):
        maps, report = fit_series(series, "t2", noise_std=noise_std)
        bias.append(float(np.nanmedian((maps.values["T2"] - truth) / maps.errors["T2"])))
    assert bias[0] > 0.3
    assert abs(bias[1]) < 0.1
    assert "Rician noise of 8" in report.details["assumed"]
    with pytest.raises(DataError, match="noise_std"):
        fit_series(series, "epg", noise_std=8.0)


def test_b1_and_masks_are_used() -> None:
    _, settings, truth = images("vfa")
    b1 = RNG.uniform(0.8, 1.2, SHAPE)
    angle = settings["flip angle"].reshape(-1, 1, 1, 1) * b1
    e = np.exp(-0.015 / T1)
    data = (20 * M0 * np.sin(angle) * (1 - e) / (1 - np.cos(angle) * e)).astype(np.float32)
    mask = RNG.random(SHAPE) < 0.5
    data[:, ~mask] = np.nan
    maps, report = fit_series(ImageSeries(data, settings), "vfa", mask=mask, b1=b1)
    np.testing.assert_allclose(maps.values["T1"][mask], truth[mask], rtol=2e-3)
    assert not maps.values["T1"][~mask].any()
    assert not maps.errors["T1"][~mask].any()
    assert report.samples == mask.sum()
    assert "B1 as given" in report.details["assumed"]
    wrong = fit_series(ImageSeries(data, settings), "vfa", mask=mask)[0]
    assert np.abs(wrong.values["T1"][mask] / truth[mask] - 1).mean() > 0.1


def test_regions_leave_out_what_has_no_value() -> None:
    clean, settings, _ = images("t2")
    data = clean.astype(np.float32)
    data[:, 0, 0, :5] = 0  # nothing to fit
    data[:, 0, 0, 5:10] = 100  # no decay: the rate is at its bound
    labels = np.zeros(SHAPE)
    labels[0, 0], labels[1] = 1, 7
    maps, report = fit_series(ImageSeries(data, settings), "t2", mask=labels)
    first, second = regions(maps, labels, "T2")
    assert (first.label, first.size, first.voxels) == (1, 50, 40)
    assert (second.label, second.size, second.voxels) == (7, 2000, 2000)
    assert first.mean == pytest.approx(T2[0, 0, 10:].mean(), rel=1e-3)
    assert second.median == pytest.approx(np.median(T2[1]), rel=1e-3)
    assert report.status == {"CONVERGED": 2045, "NONFINITE": 5}
    assert "5 voxels, whose T2 is" in report.details["at a bound"]
    with pytest.raises(DataError, match="no whole numbers"):
        list(regions(maps, labels + 0.5, "T2"))


def test_what_a_series_lacks_is_said() -> None:
    clean, settings, _ = images("t2")
    series = ImageSeries(clean.astype(np.float32), settings)
    with pytest.raises(DataError, match="ir: needs the inversion time of every image, the series says echo time"):
        fit_series(series, "ir")
    with pytest.raises(DataError, match="the echo time is 12 ms in all 12 images"):
        fit_series(ImageSeries(series.images, {"echo time": np.full(12, 0.012)}), "t2")
    mixed = settings | {"flip angle": np.radians(np.arange(12) + 5.0), "repetition time": np.full(12, 0.02)}
    with pytest.raises(DataError, match=r"beside the echo time the flip angle \(5, 6, .* degrees\) changes"):
        fit_series(ImageSeries(series.images, mixed), "t2")
    with pytest.raises(DataError, match="beside the flip angle the echo time"):
        fit_series(ImageSeries(series.images, mixed), "vfa")
    with pytest.raises(DataError, match="milliseconds"):
        fit_series(ImageSeries(series.images, {"echo time": 1e3 * settings["echo time"] + 100}), "t2")
    with pytest.raises(DataError, match="needs the repetition time"):
        fit_series(ImageSeries(series.images, {"flip angle": settings["echo time"]}), "vfa")
    with pytest.raises(DataError, match="expected one of ir, sr"):
        fit_series(series, "T2")
    with pytest.raises(DataError, match="--b1"):
        fit_series(series, "t2", b1=np.ones(SHAPE))
    with pytest.raises(DataError, match="mask: shape"):
        fit_series(series, "t2", mask=np.ones((2, 40, 49)))
    with pytest.raises(DataError, match="zero everywhere"):
        fit_series(series, "t2", mask=np.zeros(SHAPE))
    with pytest.raises(DataError, match="--efficiency"):
        fit_series(ImageSeries(series.images, {"inversion time": settings["echo time"]}), "ir", efficiency=1.0)


def test_errors_of_derived_maps_are_those_of_small_changes() -> None:
    """Of T1 of a Look-Locker fit, whose rate and factors err together, against many repetitions."""
    times = torch.tensor([0.1, 0.3, 0.6, 1.0, 1.6, 2.4, 3.5], dtype=torch.float64)
    clean = (0.8 - 1.5 * torch.exp(-times / 0.7)).view(1, -1, 1)
    noise = 0.01 * torch.randn(1, 7, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fit = ops.fit_voxels(ops.LookLocker(), clean + noise, times)
    for name, error in fit.errors().items():
        spread = float(fit.maps()[name].std())
        assert float(error.mean()) == pytest.approx(spread, rel=0.08), name  # estimated from three degrees of freedom


# Spheres of two plates of a phantom, (row, column) of their centres: the template's, registered to these scans.
SPHERES = {
    "plate5": [(58, 97), (65, 119), (85, 134), (108, 134), (127, 120), (135, 96), (128, 73), (109, 60), (84, 60),
               (65, 73), (81, 82), (81, 112), (112, 112), (112, 81)],
    "plate4": [(53, 92), (58, 116), (76, 131), (100, 134), (120, 121), (129, 100), (124, 76), (106, 61), (82, 59),
               (62, 71), (77, 81), (74, 110), (105, 113), (108, 83)],
}  # fmt: skip


def phantom(folder: Path, archive: str, plate: str, of: str) -> tuple[ImageSeries, np.ndarray[Any, Any], list[float]]:
    """A series from its DICOM folder, labels of the spheres, and their reference times in seconds."""
    pytest.importorskip("pydicom")
    with tarfile.open(REAL / archive) as files:
        files.extractall(folder, filter="data")
    series = read_series(folder / plate)
    rows, columns = np.mgrid[: series.images.shape[2], : series.images.shape[3]]
    labels = np.zeros(series.images.shape[1:], int)
    for i, (row, column) in enumerate(SPHERES[plate], 1):
        labels[0, np.hypot(rows - row, columns - column) <= 3.5] = i
    kind, field = of.split()
    reference = json.loads((REAL / "nist_reference.json").read_text())[plate][kind][field][:14]
    return series, labels, [1e-3 * t for t in reference]


@shared
def test_inversions_of_a_phantom_as_they_come_from_the_scanner(tmp_path: Path) -> None:
    """Six series of one image each, with repetition times of their own: read of the first for all, T1 would be wrong by
    a half. The reference is of 20 degrees; the scan's temperature is not known, and T1 changes by 2 to 3 % a degree."""
    series, labels, reference = phantom(tmp_path, "nist_T1_siemens15_plate5.tar.gz", "plate5", "t1_ms 1.5T")
    np.testing.assert_allclose(series.settings["inversion time"], [0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(series.settings["repetition time"], [1.0, 1.0, 1.0, 1.26, 1.86, 2.46])
    maps, _ = fit_series(series, "ir", mask=labels, max_iter=100)
    error = np.array([r.median / t - 1 for r, t in zip(regions(maps, labels, "T1"), reference, strict=True)])
    assert np.abs(error).max() < 0.08
    assert np.median(np.abs(error)) < 0.04
    one = replace(series, settings=series.settings | {"repetition time": np.full(6, 1.0)})
    wrong = next(regions(fit_series(one, "ir", mask=labels)[0], labels, "T1"))
    assert abs(wrong.median / reference[0] - 1) > 0.4


@shared
def test_spin_echoes_of_a_phantom_as_they_come_from_the_scanner(tmp_path: Path) -> None:
    """Thirty-two echoes: as plain decays T2 comes out 15 % too long, with stimulated echoes 5 %."""
    series, labels, reference = phantom(tmp_path, "nist_T2_philips3T_plate4.tar.gz", "plate4", "t2_ms 3.0T")
    np.testing.assert_allclose(series.settings["echo time"], 0.008 * np.arange(1, 33))
    for kind, least, most in (("t2", 0.12, 0.2), ("epg", 0.0, 0.09)):
        maps, _ = fit_series(series, kind, mask=np.where(labels <= 6, labels, 0))
        found = list(regions(maps, np.where(labels <= 6, labels, 0), "T2"))
        error = np.median([r.median / t - 1 for r, t in zip(found, reference, strict=False)])
        assert least < error < most, kind


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def test_the_command_writes_maps_table_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    clean, settings, truth = images("t2")
    affine = np.array([[-1.2, 0.1, 0, 30], [0.1, 1.2, 0, -20], [0, 0, 5, 7], [0, 0, 0, 1]], float)
    write_result(tmp_path / "a.nii.gz", Result(clean.astype(np.float32), affine=affine))
    write_result(tmp_path / "mask.nii.gz", Result(np.where(T1 < 1, 1, 2).astype(np.uint8), affine=affine))
    times = ",".join(map(str, settings["echo time"]))
    out = tmp_path / "maps.nii.gz"
    found = run(
        "t2", tmp_path / "a.nii.gz", "--times", times, "--mask", tmp_path / "mask.nii.gz", "-o", out,
        "--figure", tmp_path / "maps.png", "--table", tmp_path / "maps.csv", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    maps = read_result(out)
    assert maps.labels[0] == "T2 (s)"
    np.testing.assert_allclose(maps.image[0], truth, rtol=1e-3)
    np.testing.assert_allclose(maps.affine, affine)  # type: ignore[arg-type]
    assert (tmp_path / "maps.png").stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "maps.csv").open()))
    assert [row["region"] for row in rows] == ["1", "2"]
    assert float(rows[0]["mean"]) == pytest.approx(truth[T1 < 1].mean(), rel=1e-3)
    told = json.loads(found.stdout)
    assert told["status"] == {"CONVERGED": truth.size}
    assert told["counted"] == "voxels"
    assert told["regions"][1]["voxels"] == int((T1 >= 1).sum())


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    write_result(tmp_path / "a.npz", Result(images("t2")[0].astype(np.float32)))
    for arguments, message in (
        (["t2", tmp_path / "a.npz", "--times", "0.1,0.2"], "2 values, but 12 images"),
        (["t2", tmp_path / "a.npz", "--times", "soon"], "expected numbers"),
        (["t2", tmp_path / "a.npz"], "needs the echo time"),
        (["vfa", tmp_path / "a.npz", "--times", "1"], "give --flip-angles"),
        (["t2", tmp_path / "a.npz", "--flip-angles", "1"], "is for vfa"),
        (["t2", tmp_path / "a.npz", "-o", tmp_path / "a.png"], "use --figure"),
        (["t2", tmp_path / "a.npz", "--component", "phase", "--times", "1"], "of DICOM"),
        (["t2", tmp_path / "a.npz", "--table", tmp_path / "a.txt"], "expected .csv or .md"),
    ):
        found = run("-o", tmp_path / "maps.npz", *arguments) if "-o" not in arguments else run(*arguments)
        assert isinstance(found.exception, DataError), found.output
        assert message in str(found.exception)
        assert not (tmp_path / "maps.npz").exists()
