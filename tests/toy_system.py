"""The smallest system that :mod:`pyrecon.train` trains, in milliseconds; as a program, the command with it.

A line through random points: what a system writes, and nothing else.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyrecon import plotting
from pyrecon.experiments.study import Drawing, Paper, Recipe, Sizes, Study
from pyrecon.experiments.table import Listing
from pyrecon.systems import SYSTEMS, System
from pyrecon.train import Option, Outcome, Quality, RunConfig, Stage, Task, Training, kept_pool, setting, train


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


# --- its paper -------------------------------------------------------------------------------------------------------
class ToyStudy(Study):
    """Two models, the second of which begins with the first in name only."""

    training = Toy
    recipes: ClassVar[dict[str, Recipe]] = {
        "short": Recipe(None, {"pool": 8}, without=("first",), quick={"second": {"steps": 3}}),
        "long": Recipe(None, {"pool": 8}, quick={"second": {"steps": 6}}),
    }

    def sizes_of(self, scale: str) -> Sizes:
        return Sizes(test=4, validation=2, budget=1, repeats=1)

    def source(self, recipe: Recipe) -> Tensor:
        return SLOPE


def table(study: ToyStudy) -> tuple[Listing, dict[str, Any]]:
    lines = [[name, Path(study.weights(name)).parent.name] for name in study.recipes]
    return Listing("Models", ["recipe", "folder"], lines), {}


def drawing(study: ToyStudy) -> Drawing:
    return Drawing(plotting.curves({"line": [(0.0, 1.0), (1.0, 2.0)]}, "x", "y"), [["x", "y"], [0, 1]], "A line.")


PAPER = Paper("toy", ToyStudy, {"I": table}, {2: drawing}, {"none": lambda study: Listing("None", ["a"], [])})
TOY = System("Toy", "toy_system:Line", training_path="toy_system:Toy", paper_path="toy_system:PAPER")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    SYSTEMS["toy"] = TOY
    sys.argv[0] = "pyrecon"
    from pyrecon.cli import main

    main()
