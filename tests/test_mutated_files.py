"""Damaged files and hostile arguments through the whole command: an image or one line, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_scans as small
from mutate_files import FORMATS
from typer.testing import CliRunner

from pyrecon import cli
from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.io import read_result, write_result


def test_some_mutated_files_of_every_format() -> None:
    """Of 2,000 each, which ``python tests/mutate_files.py`` runs."""
    for module in ("nibabel", "pydicom", "twixtools", "ismrmrd", "matplotlib"):
        pytest.importorskip(module)
    script = Path(__file__).with_name("mutate_files.py")
    done = subprocess.run(
        [sys.executable, str(script), "--count", "40"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines()[2:]]
    assert {line[0].strip() for line in lines} == set(FORMATS)
    for name, files, image, refused, *_ in lines:
        assert int(image) + int(refused) == int(files) == 40, name
        assert min(int(image), int(refused)) >= 4, name  # damage was felt, and not all of it was fatal


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for made, name in ((small.sinogram, "ct.h5"), (small.ismrmrd, "mri.h5")):
        made(folder, 0, **({"suffix": ".h5"} if name == "ct.h5" else {}))
        (folder / "scan.h5").rename(folder / name)
    small.mpi(folder, 0)
    small.nifti(folder, 1)
    return folder


CT, MRI = ["reconstruct", "{}/ct.h5"], ["reconstruct", "{}/mri.h5"]
MPI, FIT = ["reconstruct", "{}/measurement.mdf", "-s", "{}/system.mdf"], ["fit", "sr", "{}/series.nii"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*CT, "--figure", "{}/no/f.png"], "--figure: the folder .*no does not exist"),
        ([*CT, "--figure", "{}"], "--figure: .* is a directory, expected a file to write"),
        ([*FIT, "--figure", "{}/f.xyz"], "has no known figure format"),
        ([*FIT, "--table", "{}/no/t.csv"], "--table: the folder .*no does not exist"),
        ([*MRI, "--maps-out", "{}/no/m.npz"], "--maps-out: the folder .*no does not exist"),
        ([*MRI, "-o", "{}/.nii.gz"], "--output: '.nii.gz' has no known format"),
        ([*MRI, "-o", "{}/" + 300 * "x" + ".npz"], "--output: .* cannot be written .File name too long"),
        ([*MRI, "-o", "{}/folder.npz"], "--output: .*folder.npz is a directory"),
        ([*MRI, "--device", "meta"], "--device: 'meta' is not usable here"),
        ([*CT, "--shape", "1000000", "1000000"], "an image of 1000000 x 1000000 pixels needs .* TiB of memory"),
        ([*MPI, "--upsample", "100000"], "voxels needs .* of memory, this machine has .* GiB; raise --snr-threshold"),
        ([*MRI, "-m", "cg-sense", "-p", "tol=1e308"], r"-p: tol: 1e\+308 does not fit"),
        ([*MRI, "-m", "l1-sense", "-p", "levels=9"], "levels: 9 does not fit, expected 0 to 5"),
    ],
)
def test_what_cannot_be_done_is_told_before_the_work(scans: Path, command: list[str], message: str) -> None:
    (scans / "folder.npz").mkdir(exist_ok=True)
    before = sorted(scans.iterdir())
    given = [part.replace("{}", str(scans)) for part in command]
    with pytest.raises(DataError, match=message) as caught:
        CliRunner().invoke(app, [*given, *([] if "-o" in given else ["-o", str(scans / "out.npz")])],
                           catch_exceptions=False)  # fmt: skip
    assert "\n" not in str(caught.value)
    assert sorted(scans.iterdir()) == before


def test_a_region_without_a_value_is_null_in_json(tmp_path: Path) -> None:
    small.nifti(tmp_path, 1)
    series = read_result(tmp_path / "series.nii")
    image = series.image.copy()
    image[:, 0] = np.nan  # of all times, one slice of two
    write_result(tmp_path / "series.nii", replace(series, image=image))
    regions = np.ones(image.shape[1:], np.uint8)
    regions[0] = 2
    write_result(tmp_path / "mask.nii", replace(series, image=regions))
    found = CliRunner().invoke(app, ["fit", "sr", str(tmp_path / "series.nii"), "--mask", str(tmp_path / "mask.nii"),
                                     "-o", str(tmp_path / "m.npz"), "--json"])  # fmt: skip

    def none(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    first, second = json.loads(found.stdout, parse_constant=none)["regions"]
    assert first["voxels"] == 12
    assert first["mean"] == pytest.approx(1.2, abs=0.1)
    assert (second["voxels"], second["mean"]) == (0, None)


def test_a_folder_that_cannot_be_written_to(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode, **_: not mode & os.W_OK)  # as for any user but root
    with pytest.raises(DataError, match=r"--output: the folder .* cannot be written to"):
        CliRunner().invoke(app, [*MRI[:1], str(scans / "mri.h5"), "-o", str(scans / "a.npz")], catch_exceptions=False)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_memory_that_runs_out_is_a_line(error: Exception, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        raise error

    monkeypatch.setattr(cli, "app", run)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err.startswith("error: out of memory: ")


def test_another_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(cli, "app", run)
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.main()


def test_the_small_scans_are_what_they_should_be(scans: Path) -> None:
    """An image of every sound file is the object, so that damage is felt."""
    for command, least in ((MRI, 0.9), (CT, 0.8)):
        given = [part.replace("{}", str(scans)) for part in command]
        CliRunner().invoke(app, [*given, "-o", str(scans / "image.npz")], catch_exceptions=False)
        image = np.abs(read_result(scans / "image.npz").image.squeeze())
        if command is MRI:
            from pyrecon.physics.mri import head_phantom

            truth = np.abs(head_phantom((small.ROWS, small.COLUMNS)).numpy()).squeeze()
            assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > least
        else:
            assert image.mean() > 0
    (scans / "image.npz").unlink()


@pytest.mark.parametrize("what", ["mri", "t1", "ct"])
def test_a_simulation_looks_at_its_targets_first(tmp_path: Path, what: str) -> None:
    for option in ("--output", *(() if what == "mri" else ("--truth",))):
        arguments = ["simulate", what, "-o", str(tmp_path / "scan.h5"), option, str(tmp_path / "no" / "x.h5")]
        with pytest.raises(DataError, match=f"{option}: the folder .* does not exist"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not list(tmp_path.iterdir())
