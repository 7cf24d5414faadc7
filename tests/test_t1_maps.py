"""Maps of T1 from raw k-space: which image is which, both methods, the comparison, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.brains import CLASSES, Brains
from pyrecon.data.contrasts import contrasts_of
from pyrecon.data.mri import some_entries
from pyrecon.data.raw import MRIScan
from pyrecon.experiments.maps import tissue_errors
from pyrecon.experiments.t1 import evaluate_t1, evaluation_table
from pyrecon.io import read_result
from pyrecon.io._cartesian import Readout, assemble
from pyrecon.io.ismrmrd import read_ismrmrd, write_ismrmrd
from pyrecon.metrics import t1_errors
from pyrecon.models import LUSER, PINQI
from pyrecon.models.mri import PINQIMRI, CGSense, SenseFit, reconstruct_maps, reconstruct_mri
from pyrecon.models.weights import Card
from pyrecon.physics.mri import coil_maps
from pyrecon.physics.t1 import TIMES, scan_brains, unseen_brains, variable_lines

SIZE, FIVE = 48, TIMES["five"]


@cache
def known() -> Brains:
    return unseen_brains(2, SIZE)


@cache
def scan_of(acceleration: float = 1.0, noise: float = 0.01) -> MRIScan:
    return scan_brains(known(), FIVE, coils=4, acceleration=acceleration, centre=10, noise=noise)


def saved(folder: Path, times: Any = FIVE, name: str = "w", **changes: Any) -> str:
    torch.manual_seed(0)
    options: dict[str, Any] = {"iterations": 2, "widths": (8, 8), "image_widths": (8, 8)} | changes
    model = PINQI(len(times), **options)
    about = {"task": "t1", "times": list(times), "noise_std": 0.04, "acceleration": 4.0}
    model.card = Card(model.system, "maps", (SIZE, SIZE), about, {})
    model.save(folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def relative(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """The largest inside the brains."""
    inside = known().inside
    return float(np.abs(found[inside] / truth[inside] - 1).max())


# --- which image is which --------------------------------------------------------------------------------------------
def test_times_and_slices_come_back_from_a_file(tmp_path: Path) -> None:
    scan = scan_of(4.0)
    more = {"echo time": np.full(10, 0.004), "flip angle": np.tile(np.radians([10.0, 20, 30, 40, 50]), 2)}
    scan = replace(scan, settings=scan.settings | more)
    write_ismrmrd(tmp_path / "a.h5", scan)
    back = read_ismrmrd(tmp_path / "a.h5")
    np.testing.assert_array_equal(back.kspace, scan.kspace)
    np.testing.assert_array_equal(back.mask, scan.mask)
    np.testing.assert_array_equal(back.slices, scan.slices)  # type: ignore[arg-type]
    np.testing.assert_array_equal(back.settings["inversion time"], scan.settings["inversion time"])
    for name in more:
        np.testing.assert_allclose(back.settings[name], more[name], rtol=1e-14)
    assert back.labels == scan.labels
    assert "settings_left_out" not in back.metadata


def test_the_reference_package_reads_times_and_contrasts(tmp_path: Path) -> None:
    ismrmrd = pytest.importorskip("ismrmrd")
    write_ismrmrd(tmp_path / "a.h5", scan_of(4.0))
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), mode="r") as file:
        header = ismrmrd.xsd.CreateFromDocument(file.read_xml_header())
        last = file.read_acquisition(file.number_of_acquisitions() - 1)
    assert header.sequenceParameters.TI == [500, 1000, 1500, 2000, 8000]
    assert header.encoding[0].encodingLimits.contrast.maximum == 4
    assert (last.idx.slice, last.idx.contrast) == (1, 4)


def test_partitions_of_a_contrast_are_slices_of_their_own() -> None:
    names = ("slice", "contrast")
    data = np.ones((1, 4), np.complex64)
    readouts = [Readout(data, 0, p, 0, (s, c)) for c in (1, 0) for s in (7, 3) for p in (0, 1)]
    found = assemble("a.h5", readouts, (2, 1, 4), names)
    assert found.slices.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert found.contrasts.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found.labels[2] == "slice 3, contrast 1, partition 0"


def changed(path: Path, old: str, new: str) -> Path:
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        assert old in text
        file["dataset/xml"][0] = text.replace(old, new).encode()
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<TI>500.0</TI>", "", r"the header has 4 values \(TI\), the file 5 contrasts"),
        ("<TI>500.0</TI>", "<TI>500.0</TI><TI>700</TI>", r"the header has 6 values \(TI\), the file 5 contrasts"),
        ("<TI>500.0</TI>", "<TI>soon</TI>", "soon, 1000.0, 1500.0, 2000.0, 8000.0, expected numbers from 0"),
        ("<TI>500.0</TI>", "<TI>-500</TI>", "expected numbers from 0"),
    ],
)
def test_times_that_contradict_the_file_are_told_where_they_are_needed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_ismrmrd(tmp_path / "a.h5", scan_of(4.0))
    scan = read_ismrmrd(changed(tmp_path / "a.h5", old, new))
    with pytest.raises(DataError, match=message):
        reconstruct_maps(scan)
    assert len(reconstruct_mri(scan, CGSense())[0]) == 10  # images need no times


def test_one_time_is_that_of_all_contrasts(tmp_path: Path) -> None:
    scan = replace(scan_of(4.0), settings={"inversion time": np.full(10, 0.5)})
    write_ismrmrd(tmp_path / "a.h5", scan)
    back = read_ismrmrd(tmp_path / "a.h5")
    np.testing.assert_array_equal(back.settings["inversion time"], np.full(10, 0.5))
    with pytest.raises(DataError, match=r"is 0\.5 in all 5 images"):
        reconstruct_maps(back)


def test_what_is_no_series_is_said() -> None:
    scan = scan_of(4.0)
    times = scan.settings["inversion time"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"settings": {}}, "inversion time: is needed of every image, the scan says none"),
        ({"slices": None}, "10 slices of one image each"),
        ({"slices": np.repeat([0, 1], [4, 6])}, "slice 1 has 6 images, slice 0 has 4"),
        ({"settings": {"inversion time": np.where(np.arange(10) == 9, 9.0, times)}}, "of slice 1 .*, 9, of slice 0"),
        ({"settings": scan.settings | {"echo time": np.arange(10.0)}}, "echo time: changes from image to image"),
        ({"settings": {"inversion time": times[:5]}}, "does not fit 10 entries"),
    ]
    for change, message in cases:
        with pytest.raises(DataError, match=message):
            reconstruct_maps(replace(scan, **change))


def test_settings_that_differ_between_slices_cannot_be_written(tmp_path: Path) -> None:
    scan = scan_of(4.0)
    with pytest.raises(ValueError, match="inversion time differs between slices"):
        write_ismrmrd(tmp_path / "a.h5", replace(scan, settings={"inversion time": np.arange(10.0)}))
    with pytest.raises(ValueError, match="'b value', ISMRMRD has"):
        write_ismrmrd(tmp_path / "a.h5", replace(scan, settings={"b value": np.arange(10.0)}))
    assert list(tmp_path.iterdir()) == []


def test_entries_keep_what_belongs_to_them() -> None:
    scan = replace(scan_of(4.0), calibration=scan_of().kspace[[4, 9]])
    part = some_entries(scan, np.array([7, 1]))
    assert part.labels == ("slice 1, contrast 2", "slice 0, contrast 1")
    assert part.settings["inversion time"].tolist() == [1.5, 1.0]
    assert part.slices is not None
    assert part.slices.tolist() == [1, 0]
    np.testing.assert_array_equal(part.calibration, scan.calibration[[1, 0]])  # type: ignore[index,arg-type]
    np.testing.assert_array_equal(part.mask, scan.mask[[7, 1]])


@pytest.mark.parametrize("method", ["sense-fit", "pinqi"])
def test_slices_and_contrasts_may_come_in_any_order(tmp_path: Path, method: str) -> None:
    """Contrast 0 is another in each file, slices are interleaved, weights want the longest time first."""
    chosen = SenseFit() if method == "sense-fit" else PINQIMRI(saved(tmp_path, FIVE[::-1]))
    expected, _ = reconstruct_maps(scan_of(2.0), chosen)
    mixed = some_entries(scan_of(2.0), np.array([8, 3, 5, 0, 9, 4, 7, 2, 6, 1]))
    write_ismrmrd(tmp_path / "a.h5", mixed)
    back = read_ismrmrd(tmp_path / "a.h5")
    assert contrasts_of(back, "inversion time").values.tolist() == list(FIVE)
    found, _ = reconstruct_maps(back, chosen)
    for name, values in expected.values.items():
        np.testing.assert_allclose(found.values[name][known().inside], values[known().inside], rtol=1e-3, atol=1e-3)


# --- the maps --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["sr", "ir"])
def test_all_lines_without_noise_give_the_truth(model: Any) -> None:
    maps, report = reconstruct_maps(scan_of(noise=0.0), SenseFit(model=model))
    assert relative(maps.values["T1"], known().t1) < 1e-3
    size = maps.values["M0" if model == "sr" else "a"]
    assert relative(size, np.abs(known().m0)) < 0.01  # to what the coil maps are worth
    assert maps.units["phase of M0" if model == "sr" else "phase of a"] == "rad"
    assert not maps.status[known().inside].any()
    assert (report.counted, report.samples) == ("voxels", int(maps.inside.sum()))


def test_the_network_gives_the_truth_where_data_leave_no_choice(tmp_path: Path) -> None:
    path = saved(tmp_path, weights=(1e-4, 1e-6, 1e-6))
    maps, report = reconstruct_maps(scan_of(noise=0.0), PINQIMRI(path))
    assert relative(maps.values["T1"], known().t1) < 1e-3
    assert relative(maps.values["M0"], np.abs(known().m0)) < 0.01
    assert report.method == "PINQI"
    assert "0.72" in report.details["scale"]
    assert maps.errors == {}


@pytest.mark.parametrize("method", ["sense-fit", "pinqi"])
def test_scale_and_phase_of_the_data_change_m0_alone(tmp_path: Path, method: str) -> None:
    chosen = SenseFit() if method == "sense-fit" else PINQIMRI(saved(tmp_path))
    scan, factor = scan_of(2.0), np.complex64(1e-4 * np.exp(1.3j))
    assert scan.noise is not None
    first, _ = reconstruct_maps(scan, chosen)
    second, _ = reconstruct_maps(replace(scan, kspace=factor * scan.kspace, noise=factor * scan.noise), chosen)
    inside = known().inside
    np.testing.assert_allclose(second.values["T1"][inside], first.values["T1"][inside], rtol=2e-3)
    np.testing.assert_allclose(second.values["M0"][inside], 1e-4 * first.values["M0"][inside], rtol=2e-3)
    np.testing.assert_allclose(second.residual[inside], 1e-4 * first.residual[inside], rtol=2e-2, atol=1e-8)
    turn = np.exp(1j * (second.values["phase of M0"] - first.values["phase of M0"] - 1.3))[inside]
    assert float(np.abs(turn - 1).max()) < 1e-2


def test_m0_is_in_the_unit_of_coils_that_are_mixed_and_noisy() -> None:
    """As the root sum of squares of the coils as they are in the file shows it, whatever whitening did to them."""
    rng = np.random.default_rng(0)
    mix = (np.eye(4) + 0.3 * (rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))).astype(np.complex64)
    scan = scan_of(1.0)
    assert scan.noise is not None
    mixed = replace(scan, kspace=np.einsum("dc,schw->sdhw", mix, scan.kspace), noise=mix @ scan.noise)
    maps, _ = reconstruct_maps(mixed)
    generator = torch.Generator().manual_seed(0)
    turns = 2 * np.pi * torch.rand(2, generator=generator)
    own = np.stack([coil_maps((SIZE, SIZE), 4, turn=float(turn))[0].numpy() for turn in turns])
    expected = np.abs(known().m0) * np.linalg.norm(np.einsum("dc,schw->sdhw", mix, own), axis=1)
    inside = known().inside
    ratio = maps.values["M0"][inside] / expected[inside]
    assert float(np.median(ratio)) == pytest.approx(1, abs=0.01)
    assert float(np.std(ratio)) < 0.05


def test_slices_are_mapped_as_if_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, told = PINQIMRI(saved(tmp_path)), list[tuple[int, int]]()
    whole, report = reconstruct_maps(scan_of(2.0), chosen)
    monkeypatch.setattr("pyrecon.models.mri.map_reconstruct.CHUNK_BYTES", 1)
    parts, again = reconstruct_maps(scan_of(2.0), chosen, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(parts.values["T1"], whole.values["T1"], rtol=1e-3, atol=1e-4)
    assert told == [(1, 2), (2, 2)]
    assert len(report.residual) == len(again.residual) == 2
    assert report.noise_level == again.noise_level


def test_ten_lines_are_enough_for_coil_maps_of_the_whole_brain() -> None:
    maps, report = reconstruct_maps(scan_of(4.0))
    assert not (known().inside & ~maps.inside).any()
    assert max(report.residual_over_noise) < 1.2
    walsh, _ = reconstruct_maps(scan_of(4.0), coil_maps="walsh")
    assert walsh.inside.all()


def test_standard_errors_are_those_of_the_noise() -> None:
    maps, _ = reconstruct_maps(scan_of(1.0, 0.01))
    inside = known().inside
    within = np.abs(maps.values["T1"] - known().t1)[inside] <= maps.errors["T1"][inside]
    assert float(within.mean()) == pytest.approx(0.68, abs=0.04)


# --- what is refused -------------------------------------------------------------------------------------------------
def test_weights_for_other_data_are_refused(tmp_path: Path) -> None:
    scan = scan_of(4.0)
    nobody = PINQI(5, iterations=1, widths=(8, 8), image_widths=(8, 8))
    nobody.save(tmp_path / "nobody.safetensors")
    other = LUSER(2, width=4, stages=2)
    other.save(tmp_path / "other.safetensors")
    cases: list[tuple[Any, str]] = [
        (None, "pyrecon train pinqi"),
        (saved(tmp_path, FIVE[:4], "four"), "5 of 0.5, 1, 1.5, 2, 8 s, the weights are for 4 of 0.5, 1, 1.5, 2 s"),
        (saved(tmp_path, (*FIVE[:4], 8.1), "late"), "the weights are for 5 of 0.5, 1, 1.5, 2, 8.1 s"),
        (str(tmp_path / "nobody.safetensors"), "does not say what it was trained for"),
        (str(tmp_path / "other.safetensors"), "holds weights of 'luser', expected 'pinqi'"),
    ]
    for weights, message in cases:
        with pytest.raises(DataError, match=message):
            reconstruct_maps(scan, PINQIMRI(weights))
    reconstruct_maps(scan, PINQIMRI(saved(tmp_path, (*FIVE[:4], 8.07), "close")))
    for said, message in (
        (list(FIVE[:4]), "says 4 times, its network takes 5"),
        (["soon"] * 5, "does not say which times"),
    ):
        nobody.card = Card("pinqi", "maps", (SIZE, SIZE), {"task": "t1", "times": said}, {})
        nobody.save(tmp_path / "nobody.safetensors")
        with pytest.raises(DataError, match=message):
            reconstruct_maps(scan, PINQIMRI(str(tmp_path / "nobody.safetensors")))
    for wrong in ("sense-fit", CGSense(), SenseFit):
        with pytest.raises(TypeError, match="method: got"):
            reconstruct_maps(scan, wrong)  # type: ignore[arg-type]


def test_data_unlike_those_of_training_are_worth_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.warns(UserWarning, match=r"noise of .* of M0, 0.04 at most in training"):
        reconstruct_maps(scan_of(4.0, 0.1), PINQIMRI(path))
    _, report = reconstruct_maps(scan_of(2.0), PINQIMRI(path))
    assert report.warnings == []


# --- numbers, lines, the comparison ----------------------------------------------------------------------------------
def test_errors_of_maps_are_what_they_say() -> None:
    truth = torch.tensor([[[1.0, 2.0, 4.0]], [[1.0, 2.0, 4.0]]])
    t1 = torch.tensor([[[1.5, 2.0, torch.nan]], [[1.0, 2.0, torch.inf]]])
    inside = torch.tensor([[[True, True, False]], [[False, False, True]]])
    found = t1_errors(t1, truth, inside)
    assert float(found["nrmse"][0]) == pytest.approx(0.5 / 5**0.5)
    assert float(found["mae"][0]) == pytest.approx(0.25)
    assert float(found["r1_nrmse"][0]) == pytest.approx((1 / 3) / 1.25**0.5)
    assert float(found["median"][0]) == 0.0  # the lower of two
    assert [float(found[name][1]) for name in found] == [1.0, 4.0, 1.0, 1.0]  # nothing found: all of it
    assert torch.isnan(t1_errors(t1, truth, torch.zeros_like(inside))["mae"]).all()
    with pytest.raises(ValueError, match="expected \\(B, H, W\\)"):
        t1_errors(t1, truth[:1], inside)
    with pytest.raises(TypeError, match="expected bool"):
        t1_errors(t1, truth, inside.float())
    names = [c.name for c in CLASSES]
    labels = torch.tensor([[[names.index("grey matter"), names.index("fluid"), names.index("white matter")]]]).expand(
        2, 1, 3
    )
    tissues = tissue_errors(t1, truth, inside, labels)
    assert float(tissues["grey"]["mae"][0]) == 0.5
    assert float(tissues["fluid"]["mae"][0]) == 0.0
    assert float(tissues["white"]["mae"][1]) == 4.0


def test_lines_are_those_that_were_asked_for() -> None:
    lines = variable_lines(300, 64, 4.0, 8, torch.Generator().manual_seed(0))
    assert (lines.sum(1) == 16).all()
    assert lines[:, 28:36].all()
    often = lines.float().mean(0)
    assert float(often[20:28].mean()) > 1.5 * float(often[:8].mean()) > 0
    assert variable_lines(1, 64, 1.0, 0, torch.Generator()).all()
    with pytest.raises(ValueError, match="centre: 65 lines"):
        variable_lines(1, 64, 4.0, 65, torch.Generator())


def test_methods_are_compared_with_the_truth(tmp_path: Path) -> None:
    methods = [("fit", SenseFit()), ("network", PINQIMRI(saved(tmp_path)))]
    brains = unseen_brains(2, SIZE)
    rows, maps = evaluate_t1(methods, brains, times=FIVE, accelerations=(1.0, 4.0), coils=4)
    assert [(row.method, row.acceleration) for row in rows] == [(n, a) for a in (1.0, 4.0) for n in ("fit", "network")]
    assert float(rows[0].errors["nrmse"].mean()) < float(rows[2].errors["nrmse"].mean())
    truth, inside = torch.from_numpy(brains.t1), torch.from_numpy(brains.inside)
    again = t1_errors(torch.from_numpy(maps["fit", 4.0]), truth, inside)
    torch.testing.assert_close(rows[2].errors, again)
    lines = evaluation_table(rows).splitlines()
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {11}


def test_shipped_weights_beat_a_fit_on_brains_they_never_saw() -> None:
    methods = [("fit", SenseFit()), ("network", PINQIMRI("pinqi-t1"))]
    rows, _ = evaluate_t1(methods, unseen_brains(4, 96, seed=3), times=FIVE)
    for name in ("nrmse", "mae", "r1_nrmse", "median"):
        assert float((rows[1].errors[name] / rows[0].errors[name]).max()) < 0.95, name
        assert float((rows[1].errors[name] / rows[0].errors[name]).mean()) < 0.85, name


# --- the commands ----------------------------------------------------------------------------------------------------
def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.parametrize("method", ["sense-fit", "pinqi"])
def test_from_a_simulated_file_to_maps_by_command(tmp_path: Path, method: str) -> None:
    pytest.importorskip("nibabel")
    raw, out = tmp_path / "t1.h5", tmp_path / "maps.nii.gz"
    options = ["--size", SIZE, "--coils", 4, "--slices", 2, "--acceleration", 2, "--truth", tmp_path / "truth.nii.gz"]
    made = run("simulate", "t1", "-o", raw, *options)
    assert made.exit_code == 0, made.output
    assert "pyrecon reconstruct" in made.output
    chosen = ["-m", method, *(["--weights", saved(tmp_path)] if method == "pinqi" else [])]
    plan = run("reconstruct", raw, *chosen, "--dry-run", "--json")
    assert json.loads(plan.stdout)["inversion time"] == "0.5, 1, 1.5, 2, 8 s"
    assert json.loads(plan.stdout)["slices"] == "2"
    found = run("reconstruct", raw, *chosen, "-o", out, "--figure", tmp_path / "maps.png", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["counted"] == "voxels"
    maps, truth = read_result(out), read_result(tmp_path / "truth.nii.gz")
    assert maps.labels[:3] == ("T1 (s)", "M0 (a.u.)", "phase of M0 (rad)")
    assert maps.labels[-3:] == ("residual (a.u.)", "status", "at a bound")
    assert maps.image.shape[1:] == truth.image.shape[1:] == (2, SIZE, SIZE)
    if method == "sense-fit":
        inside = truth.image[truth.labels.index("inside")] > 0
        assert float(np.median(np.abs(maps.image[0] / truth.image[0] - 1)[inside])) < 0.15
    assert (tmp_path / "maps.png").stat().st_size > 10_000


def test_the_comparison_by_command(tmp_path: Path) -> None:
    options = [
        "--size",
        SIZE,
        "--coils",
        4,
        "--test",
        2,
        "-a",
        2,
        "-o",
        tmp_path / "a.md",
        "--figure",
        tmp_path / "a.png",
    ]
    found = run("evaluate", "t1", "-m", "sense-fit", "-m", f"pinqi={saved(tmp_path)}", *options)
    assert found.exit_code == 0, found.output
    assert "| CG-SENSE + fit | 2 |" in found.stdout
    assert "| PINQI | 2 |" in found.stdout
    assert found.stdout.strip() in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_commands_say_what_is_wrong(tmp_path: Path) -> None:
    write_ismrmrd(tmp_path / "a.h5", scan_of(4.0))
    write_ismrmrd(tmp_path / "b.h5", replace(scan_of(4.0), settings={}))
    for arguments, message in (
        (["reconstruct", tmp_path / "b.h5", "-m", "sense-fit"], "inversion time: is needed of every image"),
        (["reconstruct", tmp_path / "a.h5", "-m", "sense-fit", "-o", "a.png"], "use --figure"),
        (["reconstruct", tmp_path / "a.h5", "-m", "sense-fit", "--weights", "w"], "--weights: is for"),
        (["reconstruct", tmp_path / "a.h5", "-m", "sense-fit", "-p", "model=t2"], "expected one of sr, ir"),
        (["reconstruct", tmp_path / "a.h5", "-m", "sensefit"], "did you mean sense-fit"),
        (["reconstruct", tmp_path / "a.h5", "-m", "pinqi"], "pyrecon train pinqi"),
        (["simulate", "t1", "--times", "now"], "expected five, eight or seconds"),
        (["simulate", "t1", "--size", 16, "--centre", 17], "--centre: 17 lines, the images have 16"),
        (["simulate", "t1", "--truth", "a.txt"], "no known format"),
        (["evaluate", "t1", "-m", "cg-sense"], "expected one of sense-fit, pinqi"),
        (["evaluate", "t1", "-a", "0.5"], "is below 1"),
        (["evaluate", "t1", "--centre", 100], "the images have 96"),
        (["evaluate", "t1", "--mni", "--brainweb", "."], "give one of them"),
        (["evaluate", "t1", "--brainweb", "nowhere"], "nowhere"),
    ):
        found = run(*arguments)
        assert isinstance(found.exception, DataError), (arguments, found.output)
        assert message in str(found.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5", "b.h5"}
