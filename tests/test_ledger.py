"""Numbers of trained models on file: computed once, of the settings they say, and read as a stranger's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrecon._errors import DataError
from pyrecon.experiments.ledger import Ledger, Numbers
from pyrecon.train.equilibrium import Config


def test_numbers_are_computed_once(tmp_path: Path) -> None:
    path, calls = tmp_path / "results.json", list[str]()

    def compute() -> Numbers:
        calls.append("")
        return {"psnr": [30.123456789, float(len(calls))]}

    settings = {"a": Config.of_scale("quick")}
    first = Ledger(path).numbers("a", settings, 2, compute)
    assert first == {"psnr": [30.1235, 1.0]}
    assert Ledger(path).numbers("a", settings, 2, compute) == first
    assert len(calls) == 1
    with pytest.raises(DataError, match="a was trained or tested with other settings"):
        Ledger(path).numbers("a", {"a": Config.of_scale("quick", seed=1)}, 2, compute)
    with pytest.raises(DataError, match="other settings"):  # of what it began with
        Ledger(path).numbers("a", settings | {"denoiser": Config.of_scale("quick")}, 2, compute)
    with pytest.raises(DataError, match="other settings"):
        Ledger(path).numbers("a", settings, 2, compute, {"limit": 100})


def test_numbers_of_another_test_set_are_refused(tmp_path: Path) -> None:
    settings = {"a": Config.of_scale("quick")}
    Ledger(tmp_path / "results.json").numbers("a", settings, 2, lambda: {"psnr": [30.0, 31.0]})
    with pytest.raises(DataError, match="a is not of 64 test images"):
        Ledger(tmp_path / "results.json").numbers("a", settings, 64, dict)
    assert Ledger(tmp_path / "results.json").numbers("diverged", settings, 64, dict) == {}


def test_what_others_wrote_meanwhile_stays(tmp_path: Path) -> None:
    path, settings = tmp_path / "results.json", {"x": Config.of_scale("quick")}
    one, two = Ledger(path), Ledger(path)
    one.numbers("a", settings, 1, lambda: {"psnr": [1.0]})
    two.numbers("b", settings, 1, lambda: {"psnr": [2.0]})
    again = Ledger(path)
    for name, value in (("a", 1.0), ("b", 2.0)):
        assert again.numbers(name, settings, 1, dict) == {"psnr": [value]}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"settings": "x", "numbers": {"psnr": ["y"]}}}'])
def test_what_is_no_ledger_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is no ledger"):
        Ledger(path)
