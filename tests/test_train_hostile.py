"""Folders of training runs that are damaged or made to harm: one line that names the file, before it costs anything."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_system import SLOPE, run, stop_at

from pyrecon._errors import DataError, MissingDependency
from pyrecon.train import Interrupted
from pyrecon.train._files import read_tensors, write_tensors


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
    ("batch", "config.json", other(lambda s: s.replace('"batch": 2', '"batch": 1' + "0" * 12))),
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
    assert what != "bomb" or "compressed" in str(found.value)  # before it was unpacked
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
    whole = (folder / "source.safetensors").read_bytes()
    (folder / "source.safetensors").unlink()
    with pytest.raises(DataError, match=r"source\.safetensors: .*no such file"):
        run(folder, resume=True)
    (folder / "source.safetensors").write_bytes(whole)
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
