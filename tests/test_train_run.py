"""The mechanics of training, with a system that trains in milliseconds: resume, interrupts, settings."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_system
from safetensors.torch import load_file
from torch import Tensor
from toy_system import CONFIG, SLOPE, Config, Data, First, Toy, run, stop_at
from typer.testing import CliRunner

from pyrecon import systems
from pyrecon._errors import DataError
from pyrecon.systems import SYSTEMS
from pyrecon.train import Diverged, Interrupted, Progress, Quality, Stage, train
from pyrecon.train._files import read_tensors, read_tree


# --- resume ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that was never stopped."""
    return run(tmp_path_factory.mktemp("runs") / "whole")


# Questions 1 to 3 while images are drawn, 4 and 9 before a stage, 5 to 8 and 10 to 14 after a step.
@pytest.mark.parametrize("question", [1, 3, 4, 5, 7, 9, 10, 11, 13])
def test_a_run_that_was_stopped_anywhere_ends_where_another_does(tmp_path: Path, whole: bytes, question: int) -> None:
    with pytest.raises(Interrupted, match=r"stopped (after|before)"):
        run(tmp_path, stop=stop_at(question))
    assert run(tmp_path, resume=True) == whole


def test_after_the_last_step_of_a_stage_there_is_nothing_to_stop(tmp_path: Path, whole: bytes) -> None:
    assert run(tmp_path / "run", stop=stop_at(8)) == whole
    assert run(tmp_path / "other", replace(CONFIG, seed=1)) != whole


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_sweeps(tmp_path: Path, whole: bytes) -> None:

    def die(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("second", 4):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "run", report=die)
    assert not (tmp_path / "run/weights.safetensors").exists()
    # What kill -9 leaves of files that were being written; a user's own hidden files are none of ours.
    mark = "0123456789ab"
    hidden = [f".last.ckpt.{mark}.ckpt", f".last.safetensors.{mark}.safetensors", f".pool.npy.{mark}.npy"]
    for place in (tmp_path / "run", tmp_path / "run/second"):
        for name in (*hidden, ".mine.npy"):
            (place / name).write_bytes(b"half")
    assert run(tmp_path / "run", resume=True) == whole
    assert sorted(p.name for p in (tmp_path / "run").rglob(".*")) == [".mine.npy", ".mine.npy"]


def test_folders_of_earlier_versions_resume(tmp_path: Path, whole: bytes) -> None:
    """Whose stages ended in weights.pt and whose checkpoints were last.ckpt of torch.save."""
    with pytest.raises(Interrupted):
        run(tmp_path / "run", stop=stop_at(12))
    first, second = tmp_path / "run/first", tmp_path / "run/second"
    weights, facts = read_tensors(first / "weights.safetensors", "", most=99)
    torch.save({"weights": weights, **facts}, first / "weights.pt")
    torch.save(read_tree(second / "last.safetensors", "", most=99), second / "last.ckpt")
    for path in (first / "weights.safetensors", second / "last.safetensors"):
        path.unlink()
    assert run(tmp_path / "run", resume=True) == whole


def test_the_best_weights_are_those_of_the_lowest_error(tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = Config(first=Stage(0), second=Stage(40, rate=0.3, batch=2), validate_every=1)
    model = train(Toy, tmp_path / "run", SLOPE, config, report=seen.append)
    qualities = [p.quality for p in seen]
    assert model.card["second"] <= min(qualities)
    assert min(qualities) < qualities[-1]  # so that the last are not the best
    x, y = Data(torch.from_numpy(np.load(tmp_path / "run/pool.npy")), SLOPE, 0).batch(-1, 8)
    with torch.no_grad():
        error = float((model(x) - y).norm() / y.norm())
    assert error == pytest.approx(model.card["second"], rel=1e-5)
    assert seen[0].measure.text(0.25) == "0.25 nRMSE"
    assert Quality().text(30) == "30.00 dB"


# --- interrupts ------------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def _usual_signals() -> Iterator[None]:
    # A process in the background of a shell script begins with interrupts ignored.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["drawn", "report", "done"])
def test_a_signal_leaves_a_folder_that_resumes(tmp_path: Path, whole: bytes, number: int, when: str) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    sent: list[int] = []

    def send(*of: Any) -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="stopped"):
        run(tmp_path / "run", **{when: send})
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert run(tmp_path / "run", resume=True) == whole


def test_a_second_interrupt_ends_at_once_and_the_folder_resumes(tmp_path: Path, whole: bytes) -> None:

    def send(progress: Progress) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run(tmp_path / "run", report=send)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(tmp_path / "run", resume=True) == whole


def test_a_run_in_another_thread_takes_no_signals(tmp_path: Path, whole: bytes) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run, tmp_path).result() == whole
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def _program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, toy_system.__file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_command_ends_with_code_1_at_sigterm_and_resumes(tmp_path: Path) -> None:
    """A batch queue's way of ending a job; before, the code was 0 and there were no weights."""
    process = _program("train", "toy", "-o", str(tmp_path / "run"), "-p", "second.steps=100000", "--validate-every=100")
    checkpoint = tmp_path / "run/second/last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert re.search(r"stopped after step \d+ of second; go on with: pyrecon train toy --resume", errors)
    assert "Traceback" not in errors
    with pytest.raises(Interrupted, match=r"step \d{2,} of second"):  # goes on there
        train(Toy, tmp_path / "run", resume=True, stop=stop_at(2))


@pytest.mark.parametrize("second", [False, True])
def test_an_interrupt_during_import_is_one_line(tmp_path: Path, second: bool) -> None:
    """torch takes seconds to import: the signal comes from within it."""
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n" * (1 + second))
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "sys.argv[0] = '/usr/bin/pyrecon'; import pyrecon.cli"
    path = os.pathsep.join([str(tmp_path), str(Path(systems.__file__).parents[1])])
    found = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert found.stderr == "error: interrupted; nothing was begun\n"
    assert found.returncode == 1


# --- numbers that are none -------------------------------------------------------------------------------------------
def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"loss became (inf|nan) at step 2 of first.*lower rate \(now 1e\+30\)"):
        run(tmp_path / "run", replace(CONFIG, first=Stage(9, rate=1e30), save_every=1))
    assert torch.isfinite(torch.cat([v.flatten() for v in _floats(tmp_path / "run/first/last.safetensors")])).all()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss with a gradient that is none."""

    def loss(task: First, step: int) -> Tensor:
        x, y = task.data.batch(step, 2)
        found = (task.model(x) - y).square().mean()
        return found + (0 * found).sqrt() if step == 3 else found

    monkeypatch.setattr(First, "loss", loss)
    with pytest.raises(Diverged, match="weights became NaN or infinite at step 4 of first"):
        run(tmp_path / "run", replace(CONFIG, first=Stage(9), save_every=2))
    assert torch.isfinite(torch.cat([v.flatten() for v in _floats(tmp_path / "run/first/last.safetensors")])).all()
    assert not (tmp_path / "run/first/weights.safetensors").exists()


def test_a_quality_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(First, "quality", lambda task: {"quality": float("nan")})
    with pytest.raises(Diverged, match="no validation of first gave a finite nRMSE"):
        run(tmp_path / "run")


def _floats(path: Path) -> list[Tensor]:
    return [value for value in load_file(path).values() if value.is_floating_point()]


# --- settings and the command ----------------------------------------------------------------------------------------
def test_rate_halves() -> None:
    stage = Stage(10, halve=3)
    assert [stage.rate_at(k) for k in (0, 2, 3, 6, 9)] == [1, 1, 0.5, 0.25, 0.125]
    assert Stage(10).rate_at(9) == 1.0
    assert [Stage(10, halve=3).of_length(n).halve for n in (20, 1)] == [6, 1]
    assert Stage(10).of_length(20) == Stage(20)  # a rate that is kept stays so


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    monkeypatch.setitem(SYSTEMS, "toy", toy_system.TOY)

    def command(folder: Path, *options: str) -> Config:
        from pyrecon.cli import app

        result = CliRunner().invoke(app, ["train", "toy", "-o", str(folder), *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return Config.from_json(folder / "config.json")

    return command


def test_every_setting_is_reached_by_name_and_by_its_option(tmp_path: Path, toy: Callable[..., Config]) -> None:
    plain = toy(tmp_path / "plain")
    assert plain == Config()
    named = ["seed=3", "pool=7", "way=crooked", "noise=0.5,1", "first.steps=8", "second.rate=1e-3", "second.clip=0"]
    found = toy(tmp_path / "named", *(f"-p{setting}" for setting in named))
    assert found == replace(
        plain,
        seed=3,
        pool=7,
        way="crooked",
        noise=(0.5, 1.0),
        first=Stage(8, 3, 1e-2, halve=4),
        second=Stage(5, 2, 1e-3, clip=0.0),
    )
    options = ["--seed=3", "--pool=7", "--way=crooked", "--noise", "0.5", "1", "--first-steps=8"]
    assert toy(tmp_path / "short", *options, "-psecond.rate=1e-3", "-psecond.clip=0") == found
    all_stages = toy(tmp_path / "all", "--steps=2", "--batch=1", "--rate=0.5")
    assert all_stages.first == Stage(4, 1, 0.5, halve=2)
    assert all_stages.second == Stage(2, 1, 0.5, clip=1.0)
    sloped = load_file(tmp_path / "named/source.safetensors")["slope"]
    assert torch.equal(sloped, torch.full((3,), 2.0))
    toy(tmp_path / "steep", "--slope=5")
    assert float(load_file(tmp_path / "steep/source.safetensors")["slope"][0]) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-p", "seed"], "not of the form NAME=VALUE"),
        (["-p", "pol=3"], r"toy has no setting 'pol' \(did you mean pool\?\)"),
        (["-p", "first.step=3"], r"did you mean first\.steps\?"),
        (["-p", "first=3"], "no setting 'first'"),
        (["-p", "pool=many"], "-p pool: 'many' is not a int"),
        (["-p", "pool=0"], "pool: 0, expected at least 1"),
        (["-p", "way=sideways"], "expected one of straight, crooked"),
        (["-p", "noise=1"], "expected 2 values"),
        (["-p", "first.batch=0"], "first: stage: .*batch=0"),
        (["-p", "first.rate=nan"], "first: stage: rate"),
        (["-p", "pool=3", "--pool=4"], "--pool: is given twice"),
        (["--from-pretrained=x"], "begins with no other weights"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, toy: Callable[..., Config], options: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        toy(tmp_path / "run", *options)


def test_a_resumed_run_takes_no_settings(tmp_path: Path, toy: Callable[..., Config]) -> None:
    from pyrecon.cli import app

    toy(tmp_path / "run")
    for more, said in ((["--pool=3"], "pool"), (["-p", "seed=1"], "parameter"), (["--slope=2"], "slope")):
        with pytest.raises(DataError, match=f"a run keeps its settings, leave out {said}"):
            CliRunner().invoke(app, ["train", "toy", "--resume", str(tmp_path / "run"), *more], catch_exceptions=False)
    again = CliRunner().invoke(app, ["train", "toy", "--resume", str(tmp_path / "run")], catch_exceptions=False)
    assert "nRMSE on the validation images" in again.output


def test_help_is_made_of_what_systems_declare(toy: Callable[..., Config]) -> None:
    from pyrecon.cli import app

    wide = {"COLUMNS": "200", "TERM": "dumb"}
    text = CliRunner().invoke(app, ["train", "toy", "--help"], env=wide).output
    for word in ("--slope", "--way", "straight|crooked", "--first-steps", "validate_every", "STAGE.steps"):
        assert word in text
    assert "toy" in CliRunner().invoke(app, ["train", "--help"], env=wide).output
    methods = CliRunner().invoke(app, ["reconstruct", "--help"], env=wide).output
    from pyrecon.models import mpi, mri

    for name in {**mpi.METHODS, **mpi.LEARNED, **mpi.UNTRAINED, **mri.METHODS}:
        assert re.search(rf"\b{name}\b", methods), name


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_have_what_their_lines_say(name: str) -> None:
    system = SYSTEMS[name]
    assert isinstance(system.model, type)
    assert bool(system.methods) == bool(system.methods_path)
    assert system.model.system == name
    training = system.training
    assert training.name == name
    assert {task.name for task in training.tasks} == set(training.settings.stage_names())
    if system.paper_path:
        assert system.paper.name == (system.paper_name or name)
        assert system.paper.tables
