"""A paper's tables and figures, ours beside the paper's: recipes of models, how much is computed, and what is written.

A paper is a folder here with its published numbers, recipes, tables and figures, and one :class:`Paper` that names
them. :func:`reproduce` runs it; ``pyrecon reproduce NAME`` is its command.
"""

from __future__ import annotations

import csv
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pyrecon import plotting
from pyrecon._errors import DataError
from pyrecon.experiments.ledger import Ledger
from pyrecon.experiments.table import Listing, Table
from pyrecon.io import written_whole
from pyrecon.models.weights import shipped_weights
from pyrecon.train.config import RunConfig
from pyrecon.train.run import Option, Training, train

Scale = Literal["quick", "full"]
Pictures = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is computed: images, evaluations of a search, noise draws of a phantom."""

    test: int
    validation: int
    budget: int
    repeats: int

    def on_grid(self, upsampled: int) -> Any:
        """A search on ``upsampled^2`` times the voxels has as many times fewer images, for the same time."""
        return replace(self, validation=max(1, self.validation // upsampled**2))


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: what differs from the configuration's ``of_scale`` for a ``role``, and from which other
    model's networks. ``without`` names stages that are left out, ``quick`` has further changes at ``"quick"`` scale,
    those of single stages as mappings."""

    role: Any
    changes: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None
    without: tuple[str, ...] = ()
    quick: dict[str, Any] = field(default_factory=dict)


@dataclass
class Study(ABC):
    """One run of a paper's experiments; a paper adds its images and systems.

    A model is shipped with the package, or it is trained once into the study's folder as its recipe says; an
    interrupted training goes on where it stood.

    Attributes
    ----------
    folder
        Of results; models trained for them lie in ``folder/models``.
    scale
        ``"quick"`` or ``"full"``: of the evaluation and of models that have to be trained.
    images
        Where images come from, in the paper's own words.
    seed
        Of images, noise and searches.
    progress
        Called with what is being done, how many steps are done, and how many there are.
    """

    folder: Path
    scale: Scale = "quick"
    images: str = "generated"
    seed: int = 0
    progress: Callable[[str, int, int], None] = lambda text, done, total: None
    sizes: Any = None

    training: ClassVar[type[Training]]
    recipes: ClassVar[Mapping[str, Any]]
    # Stages that are left out where a run begins with other weights, which have been through them.
    begun: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sizes_of(self, scale: Scale) -> Any:
        """:class:`Sizes` of a scale."""

    @abstractmethod
    def source(self, recipe: Any) -> Any:
        """What the data of a recipe's training are made of."""

    @cached_property
    def amounts(self) -> Any:
        return self.sizes or self.sizes_of(self.scale)

    def weights(self, name: str) -> str:
        """Name of shipped weights or path of trained ones, after training them if need be."""
        if name in shipped_weights() and self.scale == "quick":
            return name
        if name not in self.recipes:
            raise DataError(f"model: {name!r}, expected one of {', '.join(self.recipes)}")
        return self.trained(name, self.recipes[name])

    @cached_property
    def ledger(self) -> Ledger:
        """Numbers of trained models on the test images."""
        return Ledger(self.folder / "results.json")

    def is_here(self, name: str) -> bool:
        """Whether a model ships or has been trained."""
        return (name in shipped_weights() and self.scale == "quick") or self._path(name).exists()

    def settings(self, name: str) -> dict[str, RunConfig]:
        """Of a model's training, and of the one that it begins with."""
        recipe = self.recipes[name]
        before = {} if recipe.initial is None else self.settings(recipe.initial)
        return before | {name: self.config(recipe)}

    def _path(self, name: str) -> Path:
        return self.folder / "models" / name / "weights.safetensors"

    def trained(self, name: str, recipe: Any) -> str:
        """Path of weights that are trained in the study's folder, as a recipe says, if they are not there."""
        path = self._path(name)
        if not path.exists():
            resume = (path.parent / "config.json").exists()
            train(
                self.training,
                path.parent,
                None if resume else self.source(recipe),
                None if resume else self.config(recipe),
                initial=None if resume or recipe.initial is None else self.weights(recipe.initial),
                resume=resume,
                report=lambda p: self.progress(f"{name}: {p.stage}, {p.measure.text(p.quality)}", p.step, p.steps),
            )
        return str(path)

    def config(self, recipe: Any) -> Any:
        """The schedule of a recipe at the study's scale."""
        config: RunConfig = self.training.settings.of_scale(self.scale, recipe.role, **recipe.changes)
        if self.scale == "quick":
            for name, value in recipe.quick.items():
                mapping = isinstance(value, dict)
                config = config.with_stage(name, **value) if mapping else replace(config, **{name: value})
        left_out = recipe.without if recipe.initial is None else (*self.begun, *recipe.without)
        for stage in left_out:
            config = config.with_stage(stage, steps=0)
        return config


@dataclass(frozen=True)
class Drawing:
    """A figure, the numbers in it as rows of a CSV file (heads first), and what a reader must know."""

    figure: Any
    numbers: Sequence[Sequence[Any]]
    caption: str

    def to_csv(self) -> str:
        """The numbers."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.numbers)
        return buffer.getvalue()


@dataclass(frozen=True)
class Paper:
    """What a paper has: functions of a :class:`Study`, by the numbers or names that the paper or we gave them.

    A table comes with images that ``picture`` draws; ``options`` are what ``pyrecon reproduce`` asks for beside scale
    and seed, given to ``study`` by key.
    """

    name: str
    study: Callable[..., Study]
    tables: Mapping[str, Callable[[Any], tuple[Table | Listing, Pictures]]]
    figures: Mapping[Any, Callable[[Any], Drawing]]
    experiments: Mapping[str, Callable[[Any], Listing]]
    picture: Callable[[Pictures], Any] | None = None
    options: tuple[Option, ...] = ()
    about: str = ""

    def parts(self) -> dict[str, Mapping[Any, Any]]:
        """``{"table": ..., "experiment": ..., "figure": ...}``, in the order in which they are made."""
        return {"table": self.tables, "experiment": self.experiments, "figure": self.figures}


def reproduce(paper: Paper, study: Study, chosen: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Path, float | None]]:
    """Make the chosen parts, each written when it is done, and left as it is where it is there.

    ``chosen`` has names by part (:meth:`Paper.parts`). Yields the file of each, and the seconds that it took: None
    where it was there.
    """
    for part, known in paper.parts().items():
        for name in chosen.get(part, ()):
            path = study.folder / {"table": f"table-{name}.md", "experiment": f"{name}.md"}.get(
                part, f"figure-{name}.png"
            )
            if path.exists():
                yield path, None
                continue
            start = time.perf_counter()
            _write(paper, part, known[name](study), path)
            yield path, time.perf_counter() - start


def _write(paper: Paper, part: str, result: Any, path: Path) -> None:
    """The file at ``path`` last: it says that the others are there."""
    pictures: Pictures = {}
    if part == "table":
        result, pictures = result
    if pictures and paper.picture is not None:
        plotting.save(paper.picture(pictures), path.with_suffix(".png"))
    with written_whole(path.with_suffix(".csv")) as temporary:
        temporary.write_text(result.to_csv())
    if isinstance(result, Drawing):
        plotting.save(result.figure, path)
        return
    with written_whole(path) as temporary:
        temporary.write_text(result.to_markdown())
