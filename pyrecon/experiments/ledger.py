"""What trained models did on the test images, kept in a file: a table needs the numbers, not the models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.io import written_whole
from pyrecon.train.config import RunConfig

Numbers = dict[str, list[float]]


class Ledger:
    """``results.json`` of a study's folder: lists of numbers by model and by what they are.

    Those that are there are not computed again, and their models not trained: a folder with the ledger of another
    machine makes the same tables. A model whose settings are not those of the ledger's is an error, not a mixture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self._known = _checked(json.loads(path.read_text()))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{path}: is no ledger ({error}); delete it to compute its numbers anew") from None

    def numbers(
        self,
        name: str,
        configs: Mapping[str, RunConfig],
        images: int,
        compute: Callable[[], Numbers],
        evaluation: Mapping[str, Any] | None = None,
        measure: str = "psnr",
    ) -> Numbers:
        """Of a model by ``name``, computed and written down where they are not there.

        ``configs`` are the settings of its training, and of the models that it began with; ``images`` is how many
        numbers of the ``measure`` there are, unless there are none at all. ``evaluation`` is what else the numbers
        depend on.
        """
        known = {k: asdict(c) for k, c in configs.items()} | ({"evaluation": dict(evaluation)} if evaluation else {})
        mark = hashlib.sha256(json.dumps(plain(known)).encode()).hexdigest()[:16]
        if name in self._known:
            if self._known[name]["settings"] != mark:
                raise DataError(
                    f"{self.path}: {name} was trained or tested with other settings; delete it from the ledger"
                )
        else:
            found = {key: [float(f"{value:.6g}") for value in values] for key, values in compute().items()}
            self._known = self._read() | {name: {"settings": mark, "numbers": found}}
            lines = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(self._known.items())]
            with written_whole(self.path) as temporary:
                temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        numbers: Numbers = self._known[name]["numbers"]
        if numbers and len(numbers.get(measure, ())) != images:
            raise DataError(f"{self.path}: {name} is not of {images} test images; delete it from the ledger")
        return numbers

    def _read(self) -> dict[str, dict[str, Any]]:
        """What another process may have added meanwhile, and ours."""
        return (_checked(json.loads(self.path.read_text())) if self.path.exists() else {}) | self._known


def _checked(value: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for name, entry in value.items():
        numbers = {str(key): [float(v) for v in values] for key, values in entry["numbers"].items()}
        found[str(name)] = {"settings": str(entry["settings"]), "numbers": numbers}
    return found
