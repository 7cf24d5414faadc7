"""The mechanics of training, with a system that trains in milliseconds: resume, interrupts, hostile folders."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from pyrecon import systems
from pyrecon._errors import DataError, MissingDependency
from pyrecon.systems import SYSTEMS, System
from pyrecon.train import Diverged, Interrupted, Progress, Quality, RunConfig, Stage, Task, Training, train
from pyrecon.train._files import kept_pool, read_tensors, read_tree, write_tensors
from pyrecon.train.config import setting
from pyrecon.train.run import Option, Outcome


# --- the smallest system ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Config(RunConfig):
    first: Stage = setting(Stage(4, batch=3, rate=1e-2, halve=2), "--first-steps", "Steps of the first stage.")
    second: Stage = setting(Stage(5, batch=2, rate=1e-2, clip=1.0))
    pool: int = setting(20, "--pool", "Images.", least=1)
    way: Literal["straight", "crooked"] = setting("straight", "--way", "How.")
    noise: tuple[float, float] = setting((0.0, 0.1), "--noise", "Two numbers.")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
        self.card: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.second(self.first(x))
        return value

    def save(self, path: Path) -> None:
        save_file(self.state_dict(), path)


@dataclass
class Data:
    images: Tensor
    slope: Tensor
    seed: int

    def to(self, device: torch.device) -> Data:
        return self

    def batch(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        x = self.images[torch.randint(len(self.images), (count,), generator=generator)]
        return x, (x @ self.slope)[:, None]


class First(Task):
    name = "first"
    measure = Quality("nRMSE", "nRMSE", higher=False)

    @property
    def part(self) -> nn.Module:
        part: nn.Module = self.model.first
        return part

    def loss(self, step: int) -> Tensor:
        x, y = self.data.batch(step, self.stage.batch)
        return (self.model(x) - y).square().mean()

    def quality(self) -> dict[str, float]:
        x, y = self.data.batch(-1, 8)
        return {"quality": float((self.model(x) - y).norm() / y.norm())}


class Second(First):
    name = "second"

    @property
    def part(self) -> nn.Module:
        part: nn.Module = self.model
        return part


class Toy(Training):
    """Toys."""

    name = "toy"
    settings = Config
    tasks = (First, Second)
    models: Mapping[str, Any] = {"line": None}
    options = (Option("--slope", float, 2.0, "Of the line.", least=0),)

    @classmethod
    def new_source(cls, seed: int, options: Mapping[str, Any]) -> Tensor:
        return torch.full((3,), options["slope"])

    @classmethod
    def kept(cls, source: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"slope": source}, {"size": len(source)}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Tensor:
        if tensors["slope"].shape != (facts["size"],):
            raise ValueError("of another size")
        return tensors["slope"]

    def data(self, drawn: Any) -> Data:
        def draw(first: int, count: int) -> Any:
            return np.random.default_rng(first).random((count, 3), np.float32)

        pool = kept_pool(self.folder / "pool.npy", self.config.pool, (3,), draw, drawn, chunk=8)
        return Data(pool, self.source, self.config.seed)

    def model(self, initial: Path | None) -> Line:
        torch.manual_seed(self.config.seed)
        return Line()

    def finish(self, model: Line, data: Data, outcomes: dict[str, Outcome]) -> None:
        model.card = {name: outcome.quality for name, outcome in outcomes.items()}


SLOPE = torch.tensor([1.0, -2.0, 3.0])
CONFIG = Config(validate_every=2, save_every=3)


def run(folder: Path, config: Config = CONFIG, **more: Any) -> bytes:
    train(Toy, folder, None if more.get("resume") else SLOPE, None if more.get("resume") else config, **more)
    return (folder / "weights.safetensors").read_bytes()


def stop_at(question: int) -> Callable[[], bool]:
    asked = iter(range(1, 1000))
    return lambda: next(asked) == question


# --- resume ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that was never stopped."""
    return run(tmp_path_factory.mktemp("runs") / "whole")


# Questions 1 to 3 while images are drawn, 4 and 9 before a stage, 5 to 8 and 10 to 14 after a step.
@pytest.mark.parametrize("question", [1, 3, 4, 5, 7, 9, 10, 11, 13])
def test_a_run_that_was_stopped_anywhere_ends_where_another_does(tmp_path: Path, whole: bytes, question: int) -> None:
    with pytest.raises(Interrupted, match="stopped (after|before)"):
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


def _program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


# --- hostile folders -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the second stage."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(Interrupted):
        run(folder, stop=stop_at(12))
    return folder


def bomb(path: Path) -> None:
    """64 MiB of zeros in 64 KiB; torch would unpack them, twice."""
    torch.save({"weights": {"first.weight": torch.zeros(4)}, "quality": 1.0, "history": []}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(2**26) if name.endswith("/data/0") else content)


def many(path: Path) -> None:
    save_file({f"{i}": torch.zeros(()) for i in range(20_000)}, path, {"pyrecon": "{}"})


def deep(path: Path) -> None:
    write_tensors(path, {"slope": SLOPE}, {})
    text = "[" * 5000 + "]" * 5000
    save_file({"slope": SLOPE}, path, {"pyrecon": text})


def header(path: Path) -> None:
    """A table of sizes of 2^62 bytes."""
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def declared(path: Path) -> None:
    """The header of 4 TiB, and no content."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def other(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda path: path.write_text(change(path.read_text())) and None


def nan(path: Path) -> None:
    np.save(path, np.full((20, 3), np.nan, np.float32))


def facts_of(facts: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        write_tensors(path, load_file(path), facts)

    return change


HOSTILE: list[tuple[str, str, Callable[[Path], None]]] = [
    ("bomb", "first/weights.pt", bomb),
    ("not a zip", "first/weights.pt", text("none")),
    ("many", "first/weights.safetensors", many),
    ("deep", "first/weights.safetensors", deep),
    ("list", "first/weights.safetensors", facts_of([1])),
    ("number", "first/weights.safetensors", facts_of({"quality": "x", "history": []})),
    ("bomb", "second/last.ckpt", bomb),
    ("many", "second/last.safetensors", many),
    ("deep", "second/last.safetensors", deep),
    ("header", "second/last.safetensors", header),
    ("tree", "second/last.safetensors", facts_of({"dict": [["a", {"tensor": "b"}]]})),
    ("empty", "second/last.safetensors", facts_of({"dict": []})),
    ("many", "source.safetensors", many),
    ("deep", "source.safetensors", deep),
    ("other", "source.safetensors", facts_of({"size": 4})),
    ("list", "source.safetensors", facts_of([])),
    ("declared", "pool.npy", declared),
    ("text", "pool.npy", text("none")),
    ("nested", "pool.npy", text("\x93NUMPY\x01\x00\x28\x23" + "(" * 9000)),
    ("nan", "pool.npy", nan),
    ("deep", "config.json", text("[" * 50_000)),
    ("huge", "config.json", text(" " * 2**21)),
    ("digits", "config.json", other(lambda s: s.replace('"pool": 20', '"pool": 1' + "0" * 5000))),
    ("large", "config.json", other(lambda s: s.replace('"pool": 20', '"pool": 1' + "0" * 1000))),
    ("memory", "config.json", other(lambda s: s.replace('"pool": 20', '"pool": 1' + "0" * 12))),
    ("nan", "config.json", other(lambda s: s.replace('"clip": 1.0', '"clip": NaN'))),
    ("infinite", "config.json", other(lambda s: s.replace('"clip": 1.0', '"clip": 1e999'))),
    ("half", "config.json", other(lambda s: s.replace('"pool": 20', '"pool": 20.5'))),
    ("bool", "config.json", other(lambda s: s.replace('"seed": 0', '"seed": true'))),
    ("choice", "config.json", other(lambda s: s.replace("straight", "sideways"))),
    ("stage", "config.json", other(lambda s: s.replace('"steps": 4', '"steps": null'))),
    ("binary", "config.json", lambda path: path.write_bytes(b"\xff\xfe\x00") and None),
]


@pytest.mark.parametrize(("what", "name", "change"), HOSTILE, ids=[f"{name}-{what}" for what, name, _ in HOSTILE])
def test_a_hostile_file_is_one_line_that_names_it(
    tmp_path: Path, interrupted: Path, what: str, name: str, change: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    path = folder / name
    if path.suffix in (".pt", ".ckpt"):
        path.with_suffix(".safetensors").unlink()
    change(path)
    with pytest.raises(DataError) as found:
        run(folder, resume=True)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600
    assert (path.name if what != "memory" else "pool.npy") in str(found.value)


def test_truncated_files_are_one_line_too(tmp_path: Path, interrupted: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    names = ["config.json", "source.safetensors", "pool.npy", "first/weights.safetensors", "second/last.safetensors"]
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for length in (0, 7, len(whole) // 2):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=path.name):
                run(folder, resume=True)
        path.write_bytes(whole)
    run(folder, resume=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, interrupted: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    path = folder / "second/last.safetensors"
    tensors, facts = read_tensors(path, "", most=99)
    wrong = {"/state_dict/model.first.bias": "first.bias", "/optimizer_states/0/state/0/exp_avg": "other shapes"}
    for name, said in wrong.items():
        write_tensors(path, tensors | {name: torch.zeros(5)}, facts)
        with pytest.raises(DataError, match=said):
            run(folder, resume=True)
    write_tensors(path, tensors | {"/state_dict/model.first.bias": torch.full((3,), torch.nan)}, facts)
    with pytest.raises(DataError, match="NaN"):
        run(folder, resume=True)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only file system even removing what is not there fails; that error used to replace the clean one."""
    (tmp_path / "run").mkdir()

    def refused(*of: Any, **more: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(DataError, match=r"run/source\.safetensors: cannot be written \(Read-only file system\)"):
        run(tmp_path / "run")
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(DataError, match=r"cannot be made \(Read-only file system\)"):
        run(tmp_path / "new")


def test_any_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyrecon import cli

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "app", full)
    found = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, found)
    assert end.value.code == 2
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err


def test_missing_lightning_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(MissingDependency, match=r"pyrecon-imaging\[train\]"):
        run(tmp_path)


# --- settings and the command ----------------------------------------------------------------------------------------
def test_rate_halves() -> None:
    stage = Stage(10, halve=3)
    assert [stage.rate_at(k) for k in (0, 2, 3, 6, 9)] == [1, 1, 0.5, 0.25, 0.125]
    assert Stage(10).rate_at(9) == 1.0
    assert [Stage(10, halve=3).of_length(n).halve for n in (20, 1)] == [6, 1]
    assert Stage(10).of_length(20) == Stage(20)  # a rate that is kept stays so


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    monkeypatch.setitem(sys.modules, "toy_system", sys.modules[__name__])
    monkeypatch.setitem(SYSTEMS, "toy", System("Toy", "toy_system:Line", training_path="toy_system:Toy"))

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
    assert system.methods
    training = system.training
    assert training.name == name == system.paper.name
    assert {task.name for task in training.tasks} == set(training.settings.stage_names())
    assert system.paper.tables


if __name__ == "__main__":  # the command, with the toy among its systems
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["toy_system"] = sys.modules["__main__"]
    SYSTEMS["toy"] = System("Toy", "toy_system:Line", training_path="toy_system:Toy")
    sys.argv[0] = "pyrecon"
    from pyrecon.cli import main

    main()
