"""Tables 2, 3 and 4 of LUSER, and its methods compared pair by pair."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrecon.experiments.luser import published
from pyrecon.experiments.luser.memory import Line, memory_line
from pyrecon.experiments.luser.study import LABELS, ROWS, TASKS, LUSERStudy, name_of, problem_of
from pyrecon.experiments.paired import paired
from pyrecon.experiments.study import Pictures
from pyrecon.experiments.table import Listing
from pyrecon.linops import LinearOperator
from pyrecon.losses import supervised
from pyrecon.models._data_step import Reconstructor
from pyrecon.train.luser import Config, new_model, physics_of
from pyrecon.train.problem import Batch

_TITLES = {"deblur": "deblurring", "ct": "CT", "mri-4x": "4x MRI", "mri-8x": "8x MRI"}
_SHOWN = ("lu-dncnn", "deq4ip", "luser-dw")
_GB = 2**30
_PAIRS = [
    (("luser-dw", "final"), ("lu-dncnn", "final")),
    (("luser-dw", "aux"), ("lu-dncnn", "aux")),
    (("luser-sw", "final"), ("lu-dncnn", "final")),
    (("luser-sw", "aux"), ("lu-dncnn", "aux")),
    (("luser-dw", "final"), ("deq4ip", "final")),
    (("luser-sw", "aux"), ("luser-sw", "final")),
]


def table_2(study: LUSERStudy, tasks: Sequence[str] | None = None) -> tuple[Listing, Pictures]:
    """PSNR and SSIM on the test images: mean over seeds and images, the spread of the seeds' means, and the difference
    to LU-DnCNN of the same loss."""
    lines, pictures = [], Pictures()
    for task in tasks or TASKS:
        for network, loss in ROWS:
            results = study.results(task, network, loss)
            theirs = published.QUALITY[task][network, loss]
            row = [_TITLES[task], LABELS[network], loss]
            if results:
                means = np.array([[r.psnr.mean(), r.ssim.mean()] for r in results])
                spread = f" ± {means[:, 0].std(ddof=1):.2f}" if len(results) > 1 else ""
                row += [f"{means[:, 0].mean():.2f}{spread}", f"{means[:, 1].mean():.3f}"]
                row += [f"{100 * np.mean([r.converged for r in results]):.0f} %", _gain(study, task, network, loss)]
            else:
                row += ["diverged", "", "", ""]
            lines.append([*row, f"{theirs[0]:.2f}", f"{theirs[1]:.3f}"])
        pictures[task] = _images(study, task)
    configs = {task: study.config_of(task) for task in tasks or TASKS}
    config = next(iter(configs.values()))
    sizes = {config.size for config in configs.values()}
    first = study.config_of(next(iter(configs)), "deq4ip").denoiser.steps
    pixels = [f"{c.size} x {c.size}" + (f" ({_TITLES[task]})" if len(sizes) > 1 else "") for task, c in configs.items()]
    notes = [
        f"Here: generated images of {', '.join(dict.fromkeys(pixels))} pixels, {config.pool} to train on and "
        f"{study.amounts.test} others to test, the same for all models; {_runs(study)}. "
        "Published: CelebA, LoDoPaB-CT, fastMRI at their own sizes.",
        f"All networks with K = {config.unrolled} stages; LUSER's blocks {config.width} channels wide, DnCNN "
        f"{config.layers} layers of {config.dncnn_width} (published: 8, 32, 17, 64).",
        f"All models: {config.reconstruction.steps} steps of {config.reconstruction.batch} images, the same ones in "
        f"the same order. DEQ4IP begins with a denoiser, trained for {first} steps more.",
        f"Minus LU-DnCNN: of the same loss, images and seed, with Student's 95 % interval {_of(study)}.",
        "Equilibria reached: share of test images on which every solve met its tolerance.",
    ]
    heads = [
        "task", "network", "loss", "PSNR, dB", "SSIM", "equilibria reached", "minus LU-DnCNN, dB", "PSNR, published",
        "SSIM, published",
    ]  # fmt: skip
    return Listing("Table 2: quality of images", heads, lines, notes), pictures


def _gain(study: LUSERStudy, task: str, network: str, loss: str) -> str:
    return "" if network == "lu-dncnn" else _difference(study, task, (network, loss), ("lu-dncnn", loss))


def _runs(study: LUSERStudy) -> str:
    return f"{study.seeds} models a row, ± the deviation of their means" if study.seeds > 1 else "one model a row"


def _of(study: LUSERStudy) -> str:
    if study.seeds > 1:
        return f"over {study.seeds} seeds"
    return "over the images of a single seed, which says nothing of other seeds"


def _difference(study: LUSERStudy, task: str, one: tuple[str, str], other: tuple[str, str]) -> str:
    """Of the PSNR on the same images, seed by seed."""
    both = [(study.result(task, *one, seed), study.result(task, *other, seed)) for seed in range(study.seeds)]
    differences = [(a.psnr - b.psnr).tolist() for a, b in both if a is not None and b is not None]
    return str(paired(differences)) if differences else "diverged"


def _images(study: LUSERStudy, task: str) -> Pictures:
    batch = study.test_set(task)
    start = batch.y if task == "deblur" else batch.physics.adjoint(batch.y)
    found: Pictures = {"start": start}
    for network in _SHOWN:
        images = study.reconstructed(name_of(task, network, "final", 0))
        if images is not None:
            found[LABELS[network]] = images
    return found | {"truth": batch.images}


def comparisons(study: LUSERStudy) -> Listing:
    """Differences on the same images with 95 % confidence intervals."""
    lines = []
    for task in TASKS:
        for one, other in _PAIRS:
            theirs = published.QUALITY[task][one][0] - published.QUALITY[task][other][0]
            ours = _difference(study, task, one, other)
            lines.append([_TITLES[task], _said(one), _said(other), ours, f"{theirs:+.2f}"])
    notes = [
        f"PSNR in dB of the first minus the second, on the same {study.amounts.test} images, means with Student's 95 % "
        f"interval {_of(study)}.",
        "Published differences are of one model each.",
    ]
    return Listing("Pairs of Table 2", ["task", "first", "second", "difference, dB", "published"], lines, notes)


def _said(row: tuple[str, str]) -> str:
    return f"{LABELS[row[0]]}, {row[1]}"


# --- Table 3 ---------------------------------------------------------------------------------------------------------
_KINDS = {
    "LU-DnCNN": ("lu-dncnn", {}),
    "LU-DnCNN, checkpoints": ("lu-dncnn", {"checkpointing": True}),
    "DEQ4IP": ("deq4ip", {}),
    "LUSER-SW": ("luser-sw", {}),
    "LUSER-DW": ("luser-dw", {}),
    "LUSER-DW, recorded": ("luser-dw", {"recompute": False}),
}
# (pixels along an axis, batch) of the measurements; full: one at half and two at the published size.
_MEASURED = {"quick": ((24, 2), (32, 2), (48, 2)), "full": ((0.5, 1), (1, 1), (1, 2))}


def table_3(study: LUSERStudy) -> tuple[Listing, Pictures]:
    """Weights, and the largest batch by what training steps of the published networks were measured to hold."""
    lines: list[list[str]] = []
    worst = 0.0
    for task in ("deblur", "ct", "mri"):
        found: dict[str, Line] = {}
        for label, (network, options) in _KINDS.items():
            study.progress(f"memory: {task}, {label}", len(lines), 3 * len(_KINDS))
            config = Config.of_scale("full", network, task=task)
            sizes = [(side if side > 1 else round(side * config.size), count) for side, count in _MEASURED[study.scale]]
            found[label] = memory_line(config, lambda c: problem_of(c, study.folder / "memory"), sizes, **options)  # type: ignore[arg-type]
            worst = max(worst, found[label].error)
            pixels, line = config.size**2, found[label]
            weights = sum(value.numel() for value in new_model(config).parameters())
            ours = [_batch(line.batch(memory * _GB, pixels)) for memory in published.MEMORIES]
            theirs = published.BATCHES[task].get(network) if not options else None
            base = published.BATCHES[task]["lu-dncnn"][2]
            lines.append([
                task, label, f"{weights:,}", f"{published.WEIGHTS[task][network]:,}",
                f"{line.per_pixel * pixels / 2**20:,.0f}", " / ".join(ours),
                " / ".join(map(_batch, theirs)) if theirs else "",
                f"{found['LU-DnCNN'].per_pixel / line.per_pixel:.1f}",
                f"{theirs[2] / base:.1f}" if theirs and theirs[2] and base else "",
            ])  # fmt: skip
    heads = [
        "task", "network", "weights", "published", "MiB an image", "batch in 8 / 10 / 24 GB", "published",
        "times LU-DnCNN's", "published",
    ]  # fmt: skip
    sides = ", ".join(f"{Config.of_scale('full', task=task).size} ({task})" for task in ("deblur", "ct", "mri"))
    at = ", ".join(f"{side} x {count}" for side, count in _MEASURED[study.scale])
    how = (
        f"at the published size, 128, 362 and 320 pixels: {at} of it"
        if study.scale == "full"
        else f"at {at} (pixels along an axis x batch) and carried to the published {sides} pixels, memory being linear "
        f"in the pixels of a batch: no measured point is further than {100 * worst:.1f} % from its line"
    )
    notes = [
        f"Measured: the peak of what torch holds in a step of Adam, float32, the published networks, K = 8; {how}.",
        "GB are 2^30 bytes, all of it torch's: no context of a GPU and no scratch memory of convolutions, which the "
        "published figures contain. Batches are even, or 1, as in the paper.",
        "LUSER keeps a stage's image and residual and repeats its one recorded application in the backward pass; "
        "'recorded' keeps all K of them. The times LU-DnCNN's are of the memory an image takes.",
        "Activations overwrite what they are applied to, in all networks.",
    ]
    return Listing("Table 3: weights and largest batches", heads, lines, notes), {}


def _batch(value: int | None) -> str:
    return str(value) if value else "-"


# --- Table 4 ---------------------------------------------------------------------------------------------------------
class Counted(LinearOperator):
    """An operator that counts its products; ``A^H A`` is one of each."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__()
        self.operator, self.calls = operator, Counter[str]()
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def forward(self, x: Tensor) -> Tensor:
        self.calls["forward"] += 1
        return self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        self.calls["adjoint"] += 1
        return self.operator.adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        self.calls.update(("forward", "adjoint"))
        return self.operator.gram(x)


def table_4(study: LUSERStudy) -> tuple[Listing, Pictures]:
    """Time, operator calls, memory and stability of the trained models of CT, beside the paper's words."""
    task, lines = "ct", []
    timed: dict[str, tuple[float, float]] = {}
    models = {network: study.model(name_of(task, network, "final", 0)) for network in LABELS}
    known = {network: model for network, model in models.items() if model is not None}
    batch = next(iter(_few(study, task)))
    for _ in range(3):  # in turn, the best of three: what else the machine does hits all alike
        for network, model in known.items():
            now = _times(model, batch)
            timed[network] = tuple(map(min, zip(now, timed.get(network, now), strict=True)))  # type: ignore[assignment]
    for network, label in LABELS.items():
        words = published.PROPERTIES[network]
        found = known.get(network)
        if found is None:
            lines.append([label, *[""] * 5, "diverged", *words.values()])
            continue
        train, test = timed[network]
        counted = Counted(batch.physics)
        found.reconstruct(batch.y, counted)
        shares = [study.unsolved(name_of(task, network, "final", seed)) for seed in range(study.seeds)]
        runs = len(study.results(task, network, "final"))
        unsolved = [share for share in shares if share is not None]
        stable = f"{100 * float(np.mean(unsolved)):.1f} % of solves at the limit; " if unsolved else ""
        lines.append([
            label, f"{sum(value.numel() for value in found.parameters()):,}", f"{1e3 * train:.0f}", f"{1e3 * test:.1f}",
            f"{counted.calls['forward']} + {counted.calls['adjoint']}", _memory(study, task, network),
            f"{stable}{study.seeds - runs} of {study.seeds} runs diverged", *words.values(),
        ])  # fmt: skip
    heads = [
        "network", "weights", "training, ms an image", "evaluation, ms an image", "products A + A^H",
        "training, MiB an image",
        "stability", *(f"{name}, published" for name in published.PROPERTIES["luser-dw"]),
    ]  # fmt: skip
    config = study.config_of(task)
    notes = [
        f"The models of Table 2, CT, {config.size} x {config.size} pixels, batch {len(batch.y)}; "
        f"{torch.get_num_threads()} thread(s), best of three in turn.",
        "Products: for a whole batch, evaluation.",
    ]
    return Listing("Table 4: methods compared", heads, lines, notes), {}


def _few(study: LUSERStudy, task: str) -> list[Batch]:
    from pyrecon.experiments.luser.study import parts

    config = study.config_of(task)
    return list(parts(study.test_set(task), config.reconstruction.batch))


def _times(model: Reconstructor, batch: Batch) -> tuple[float, float]:
    """Seconds an image of a training step without the optimizer, and of a reconstruction."""
    images = batch.images
    assert images is not None
    model.train()
    start = time.perf_counter()
    supervised(model(batch.y, physics_of(model, batch)), images).backward()
    middle = time.perf_counter()
    model.zero_grad()
    model.eval()
    model.reconstruct(batch.y, physics_of(model, batch))
    end = time.perf_counter()
    return (middle - start) / len(images), (end - middle) / len(images)


def _memory(study: LUSERStudy, task: str, network: str) -> str:
    config = study.config_of(task, network)
    sizes = [(config.size, 2), (config.size, 4)]
    found = memory_line(config, lambda c: problem_of(c, study.folder / "test"), sizes)
    return f"{found.per_pixel * config.size**2 / 2**20:.1f}"
