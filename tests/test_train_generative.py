"""``pyrecon train generative``: chains that persist, runs that resume bit by bit, settings at work, early warnings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pyrecon._errors import DataError, MissingDependency
from pyrecon.cli import app
from pyrecon.models import GenerativePrior
from pyrecon.ops import langevin_step
from pyrecon.train import DivergenceWarning, Interrupted, Progress, train
from pyrecon.train._files import read_tensors, write_tensors
from pyrecon.train._replay import Replay
from pyrecon.train.config import Halved
from pyrecon.train.generative import Config, Data, Energy, GenerativeTraining, Signs, completed, permuted, third

SMALL: dict[str, Any] = {
    "size": 12, "width": 2, "images": "heads", "pool": 6, "validation": 2, "buffer": 7, "langevin": 3, "ramp": 2.0,
    "validate_every": 3, "save_every": 2,
}  # fmt: skip


def settings(steps: int = 6, **changes: Any) -> Config:
    config = Config.of_scale("quick", **SMALL | changes)
    return config.with_stage("energy", steps=steps, batch=3)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The images of every small run, drawn once."""
    folder = tmp_path_factory.mktemp("pool") / "run"
    train(GenerativeTraining, folder, None, settings(1))
    return (folder / "pool.npy").read_bytes()


def run(folder: Path, pool: bytes, config: Config | None = None, **more: Any) -> dict[str, Tensor]:
    folder.mkdir(exist_ok=True)
    (folder / "pool.npy").write_bytes(pool)
    train(GenerativeTraining, folder, None, None if more.get("resume") else config or settings(), **more)
    return GenerativePrior.load(folder / "weights.safetensors").state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def last(folder: Path) -> dict[str, Tensor]:
    """Chains and weights of the last checkpoint."""
    tensors = read_tensors(folder / "energy/last.safetensors", "", most=999)[0]
    return {name: value for name, value in tensors.items() if "/task/" in name or "state_dict" in name}


# --- runs ------------------------------------------------------------------------------------------------------------
def test_a_prior_trains_by_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [f"{name}={value}" for name, value in SMALL.items() if not name.endswith("every")]
    command = ["train", "generative", "-o", str(folder), "--steps", "3", "--batch", "3", "--validate-every", "2"]
    found = CliRunner().invoke(app, command + [word for value in words for word in ("-p", value)])
    assert found.exit_code == 0, found.output
    prior = GenerativePrior.load(folder / "weights.safetensors")
    assert prior.card is not None
    assert (prior.card.model, prior.card.role, prior.card.shape) == ("generative", "prior", (12, 12))
    assert prior.card.data["grid"] == [12, 12]
    assert prior.card.training["config"]["energy"]["at"][0] == 1  # as many halvings in fewer steps
    pixels = np.sort(np.load(folder / "pool.npy")[:6].reshape(6, -1))
    torch.testing.assert_close(prior.levels[[0, -1]][:, [0, -1]], torch.from_numpy(pixels[[0, -1]][:, [0, -1]]))
    # The samples, as a picture of all seven chains with a zoom of eight and a border.
    from PIL import Image

    assert Image.open(folder / "energy/samples-000003.png").size == (3 * 98, 3 * 98)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("question", [3, 4, 6])
def test_a_stopped_run_ends_where_another_does(tmp_path: Path, pool: bytes, question: int, in_file: bool) -> None:
    config = settings(buffer_file=in_file)
    whole = run(tmp_path / "whole", pool, config)
    asked = iter(range(1, 1000))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", pool, config, stop=lambda: next(asked) == question)
    assert same(run(tmp_path / "run", pool, resume=True), whole)
    ends = last(tmp_path / "whole"), last(tmp_path / "run")
    assert any(name.endswith("/task/chains") for name in ends[0])
    if in_file:  # what changed since the checkpoint before differs, what the file holds then does not
        assert (tmp_path / "whole/replay.npy").read_bytes() == (tmp_path / "run/replay.npy").read_bytes()
    else:
        assert same(*ends)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_run_ends_where_another_does(tmp_path: Path, pool: bytes, step: int, in_file: bool) -> None:
    """With chains that went on after the last checkpoint, or before there was any."""
    config = settings(buffer_file=in_file)

    def die(progress: Progress) -> None:
        if progress.step == step:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "run", pool, config, report=die)
    assert same(run(tmp_path / "run", pool, resume=True), run(tmp_path / "whole", pool, config))


def test_a_file_of_chains_makes_the_same_run_as_memory(tmp_path: Path, pool: bytes) -> None:
    kept = [run(tmp_path / str(in_file), pool, settings(buffer_file=in_file)) for in_file in (False, True)]
    assert same(*kept)


CHANGES: dict[str, Any] = {
    "width": 3, "growth": 3.0, "absolute": True, "step": 1.0, "noise_std": 0.02, "langevin": 5, "ramp": 9.0,
    "buffer": 9, "renewed": 0.9, "patience": 1, "smoothing": 0.2, "score": 0.5, "score_noise": 0.04, "regulariser": 0.0,
    "gradient_clip": 1e-4, "seed": 1,
}  # fmt: skip


def test_every_setting_changes_the_weights(tmp_path: Path, pool: bytes) -> None:
    usual = {"renewed": 0.5}  # often enough for patience to be seen
    found = {}
    for name, value in {"": None, **CHANGES}.items():
        changed = usual | ({name: value} if name else {})
        run(tmp_path / f"run{name}", pool, settings(**changed))
        found[name] = last(tmp_path / f"run{name}")
    for name in CHANGES:
        weights = [{k: v for k, v in found[key].items() if "state_dict" in k} for key in (name, "")]
        shapes = [{k: v.shape for k, v in one.items()} for one in weights]
        assert shapes[0] != shapes[1] or not same(*weights), name


def test_adabelief_trains_and_resumes(tmp_path: Path, pool: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    config = replace(config, energy=replace(config.energy, method="adabelief"))
    asked = iter(range(1, 1000))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", pool, config, stop=lambda: next(asked) == 6)
    found = run(tmp_path / "run", pool, resume=True)
    assert same(found, run(tmp_path / "whole", pool, config))
    assert not same(last(tmp_path / "whole"), last_of_adam(tmp_path / "adam", pool))
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingDependency, match=r"AdaBelief needs pytorch-optimizer: pip install .*\[train\]"):
        config.energy.optimizer([{"params": [torch.nn.Parameter(torch.ones(1))]}])


def last_of_adam(folder: Path, pool: bytes) -> dict[str, Tensor]:
    run(folder, pool)
    return last(folder)


def test_adabelief_is_what_its_paper_says() -> None:
    """m = .9 m + .1 g, s = .999 s + .001 (g - m)^2, w -= r m' / sqrt(s'): Zhuang et al. 2020, algorithm 2."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Halved(10, rate=0.1, method="adabelief").optimizer([{"params": [weight]}])
    w, m, s = weight.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for t in range(1, 5):
        g = torch.tensor([0.3, -1.0]).double() * t
        weight.grad = g.clone()
        optimizer.step()
        m, s = 0.9 * m + 0.1 * g, s
        s = 0.999 * s + 0.001 * (g - m).square() + 1e-16
        w = w - 0.1 * (m / (1 - 0.9**t)) / (s / (1 - 0.999**t)).sqrt()
    torch.testing.assert_close(weight.detach(), w, rtol=1e-6, atol=0)


# --- hostile checkpoints ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("in_file", [False, True])
def test_a_checkpoint_of_other_chains_is_refused(tmp_path: Path, pool: bytes, in_file: bool) -> None:
    asked = iter(range(1, 1000))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", pool, settings(buffer_file=in_file), stop=lambda: next(asked) == 6)
    path = tmp_path / "run/energy/last.safetensors"
    tensors, facts = read_tensors(path, "", most=999)
    (chains,) = (name for name in tensors if name.endswith("/task/chains"))
    visits = chains.replace("chains", "visits")
    wrong: dict[str, tuple[str, Tensor]] = {
        "float64": (chains, tensors[chains].double()),
        "expected torch.float32": (chains, torch.zeros(len(tensors[chains]), 13, 13)),
        "NaN": (chains, torch.full_like(tensors[chains], torch.nan)),
        "negative": (visits, tensors[visits] - 1000),
        "visits is": (visits, tensors[visits][:-1].clone()),
    }
    if in_file:
        rows = chains.replace("chains", "rows")
        wrong |= {"growing numbers": (rows, tensors[rows].flip(0)), "of 7 chains": (rows, tensors[rows] + 7)}
    for said, (name, value) in wrong.items():
        write_tensors(path, tensors | {name: value}, facts)
        with pytest.raises(DataError, match=said):
            run(tmp_path / "run", pool, resume=True)
    text = json.dumps(facts)
    assert '"task"' in text
    write_tensors(path, tensors, json.loads(text.replace('"task"', '"other"')))
    with pytest.raises(DataError, match="the state of the chains holds"):
        run(tmp_path / "run", pool, resume=True)
    write_tensors(path, tensors | {f"/more{i}": torch.zeros(1) for i in range(99)}, facts)
    with pytest.raises(DataError, match="tensors, expected at most"):
        run(tmp_path / "run", pool, resume=True)


def test_a_file_of_other_chains_is_refused(tmp_path: Path) -> None:
    def draw(first: int, count: int) -> Tensor:
        return torch.zeros(count, 4, 4)

    path = tmp_path / "replay.npy"
    np.save(path, np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match=r"holds float64 .* expected float32 \(3, 4, 4\)"):
        Replay(3, 4, draw, path=path)
    path.write_bytes(b"\x93NUMPY\x01\x00" + b"{" * 70_000)
    with pytest.raises(DataError, match="is not the replay buffer"):
        Replay(3, 4, draw, path=path)


# --- the step --------------------------------------------------------------------------------------------------------
def test_the_steps_of_a_chain_grow_as_published() -> None:
    config = Config.of_scale("full")
    for h in (1, 100, 1000, 27_000):
        assert config.langevin_at(h - 1) == int(np.ceil(500 * (1 - np.exp(-h / 1000))))
    assert (config.langevin_at(0), config.langevin_at(10**6)) == (1, 500)
    assert (config.buffer, config.energy.batch, config.energy.method) == (8000, 50, "adabelief")
    assert [config.energy.rate_at(h) for h in (499, 500, 2000, 3000, 5000, 7000)] == [0.5**i for i in range(6)]


@pytest.fixture
def task(pool: bytes, tmp_path: Path) -> Callable[..., Energy]:
    images = torch.from_numpy(np.load(_written(tmp_path, pool)))

    def make(**changes: Any) -> Energy:
        config = settings(**changes)
        model = GenerativeTraining(tmp_path, None, config).model(None)
        return Energy(model, Data(config, images[:6], images[6:], tmp_path), config.energy)

    return make


def _written(folder: Path, pool: bytes) -> Path:
    (folder / "pool.npy").write_bytes(pool)
    return folder / "pool.npy"


def test_the_loss_is_the_likelihood_s_gradient(task: Callable[..., Energy]) -> None:
    """Of chains after their Langevin steps, those of the step's own stream, with bounded gradients."""
    one = task(regulariser=0.0, renewed=0.0, gradient_clip=0.01, langevin=2, ramp=1e-3, smoothing=1e-9, score=0.0)
    config, model = one.data.config, one.model
    before = torch.from_numpy(one.replay._images.copy())
    loss = one.loss(4)
    after = torch.from_numpy(one.replay._images)
    (moved,) = (before != after).flatten(1).any(1).nonzero(as_tuple=True)
    assert len(moved) == 3
    chosen = torch.randperm(7, generator=one.data.generator(0, 4))[:3]
    x = before[chosen]
    for j in range(2):
        slope = model.gradient(x)
        slope = slope * (0.01 / slope.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None]
        x = langevin_step(x, slope, config.step, config.noise_std, seed=config.seed, counter=8 + j)
    torch.testing.assert_close(after[chosen], x, rtol=0, atol=1e-7)
    drawn = one.data.pool[torch.randint(6, (3,), generator=one.data.generator(1, 4))]
    torch.testing.assert_close(loss, model.energy(drawn).mean() - model.energy(x).mean())
    assert one._watched["clipped"] > 0
    assert float(one._watched["gradient_samples"]) > 0.01


def test_half_of_the_chains_begin_as_data_and_new_ones_wait(task: Callable[..., Energy]) -> None:
    one = task(renewed=1.0, patience=2, buffer=300, langevin=1, step=1e-9, noise_std=1e-9)
    pool = one.data.pool
    chains = torch.from_numpy(one.replay._images)
    known = (chains[:, None] == pool).flatten(2).all(2).any(1)
    assert known.tolist() == [i % 2 == 0 for i in range(300)]
    histograms = pool.flatten(1).sort(1).values
    assert bool((chains.flatten(1).sort(1).values[:, None] == histograms).all(2).any(1).all())
    assert bool((one.replay.visits == 2).all())
    one.loss(0)
    assert one.replay.visits.sort().values[:4].tolist() == [1, 1, 1, 2]
    torch.testing.assert_close(one._sampled(1)[1], torch.full((3,), 1 / 3))  # nobody waited: all count
    quiet = task(renewed=0.0, patience=2)
    quiet.replay.visits[:] = torch.tensor([9, 0, 9, 0, 9, 0, 9])
    chosen = torch.randperm(7, generator=quiet.data.generator(0, 5))[:3]
    weight = (chosen % 2 == 0).float()
    torch.testing.assert_close(quiet._sampled(5)[1], weight / weight.sum())


def test_score_matching_asks_for_the_noise(task: Callable[..., Energy]) -> None:
    """Where the energy is constant it is the mean of n^2; its largest noise and its weight do what they say."""
    one = task(regulariser=0.0)
    one.model.network.requires_grad_(False)
    images, generator = torch.zeros(300, 12, 12), torch.Generator().manual_seed(2)
    seen = []
    one.model.network.register_forward_hook(lambda module, inputs, energy: seen.append(inputs[0].detach()))
    for top in (0.5, 0.03):
        other = task(regulariser=0.0, score_noise=top)
        other.model = one.model
        other._score_error(images, generator)
    levels = [noisy.flatten(1).std(1) for noisy in seen]
    # Of 144 numbers each: a standard deviation is within 6 % at one sigma.
    assert float(levels[0].log().mean()) == pytest.approx(float(np.log(0.03 * 0.5) / 2), abs=0.15)
    assert 0.02 < float(levels[0].min()) < 0.04 < 0.4 < float(levels[0].max()) < 0.65
    torch.testing.assert_close(levels[1], torch.full((300,), 0.03), rtol=0.25, atol=0)
    with torch.no_grad():
        one.model.network.last.weight.zero_()
    assert one._score_error(images, generator).item() == pytest.approx(1.0, abs=0.03)
    none, much = (task(score=weight, seed=1) for weight in (0.0, 3.0))
    difference = much.loss(0) - none.loss(0)
    torch.testing.assert_close(difference.detach(), 3 * much._watched["score_error"], rtol=1e-4, atol=1e-6)
    assert "score_error" not in none._watched


def test_permuted_pixels_keep_the_histogram_and_nothing_else() -> None:
    images = torch.rand(2, 9, 9)
    found = permuted(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.flatten(1).sort(1).values, images.flatten(1).sort(1).values, rtol=0, atol=0)
    assert not torch.equal(found, images)


# --- validation ------------------------------------------------------------------------------------------------------
def test_images_are_completed_from_what_is_known(task: Callable[..., Energy]) -> None:
    one = task()
    truth, generator = one.data.held_out, torch.Generator().manual_seed(3)
    found, start = completed(one.model, truth, generator, iterations=40)
    mask = third(12, torch.Generator().manual_seed(3))
    assert 0.25 < float(mask.float().mean()) < 0.42
    back = -torch.arange(12) % 12
    assert torch.equal(mask, mask[back][:, back])
    for images in (found, start):
        torch.testing.assert_close(
            torch.fft.fft2(images)[:, mask], torch.fft.fft2(truth)[:, mask], atol=1e-4, rtol=1e-5
        )
    assert float(torch.fft.fft2(start)[:, ~mask].abs().max()) < 1e-5
    energies = [one.model.energy(images).detach() for images in (found, start)]
    assert bool((energies[0] < energies[1]).all())


def test_completion_reaches_the_minimum_of_an_energy_with_a_kink() -> None:
    """R(u) = |u - x|, whose gradient has the same length everywhere: the minimum is x, the truth."""

    class Distance:
        def gradient(self, u: Tensor) -> Tensor:
            return (u - truth) / (u - truth).flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]

    truth = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, start = completed(Distance(), truth, torch.Generator().manual_seed(3), iterations=100)  # type: ignore[arg-type]
    distance = (start - truth).norm()
    assert float(distance) > 1
    assert float((found - truth).norm()) < 2e-3 * float(distance)  # the last step is 0.05 / 100 of the start


def test_signs_of_divergence_are_told_once(task: Callable[..., Energy]) -> None:
    signs, calm = Signs(), {"gradient_data": 0.1, "gap": 1.0, "clipped": 0.0}
    assert [signs.look(calm) for _ in range(9)] == [[]] * 9
    (said,) = signs.look(calm | {"gradient_data": 0.5})
    assert "the gradient of the energy at the data rose to 0.5 from 0.1" in said
    assert signs.look(calm | {"gradient_data": 0.9}) == []
    found = [signs.look(calm | {"gap": 6.0}) for _ in range(4)]
    assert [len(text) for text in found] == [0, 0, 1, 0]
    assert "6.0 standard deviations above" in found[2][0]
    found = [signs.look(calm | {"clipped": 1.0}) for _ in range(11)]
    assert [len(text) for text in found] == [0] * 9 + [1, 0]
    one = task(gradient_clip=1e-9)
    for step in range(0, 90, 10):
        one.loss(step)
    with pytest.warns(DivergenceWarning, match=r"step 90: 100% of the Langevin steps are as long as gradient_clip"):
        one.loss(90)


# --- settings and images ---------------------------------------------------------------------------------------------
def test_a_stage_halves_its_rate_where_it_is_told() -> None:
    stage = Halved(100, at=(10, 20, 50, 100, 200))
    assert [stage.rate_at(step) for step in (0, 9, 10, 49, 50, 99)] == [1, 1, 0.5, 0.25, 0.125, 0.125]
    assert stage.of_length(10).at == (1, 2, 5, 10, 20)
    for wrong in ({"halve": 3}, {"at": (-1, 2, 3, 4, 5)}, {"at": (1, 2)}, {"method": "sgd"}):
        with pytest.raises(DataError, match="stage:"):
            Halved(100, **wrong)


def test_settings_survive_the_file(tmp_path: Path) -> None:
    config = Config.of_scale("full", seed=4)
    (tmp_path / "config.json").write_text(config.to_json())
    assert Config.from_json(tmp_path / "config.json") == config
    broken = config.to_json().replace("2000", '"x"')
    (tmp_path / "config.json").write_text(broken)
    with pytest.raises(DataError, match=r"stage: at: .*expected 5 values"):
        Config.from_json(tmp_path / "config.json")


def test_what_does_not_fit_together_is_refused(tmp_path: Path, pool: bytes) -> None:
    with pytest.raises(DataError, match=r"^buffer: 2 chains, expected at least a batch, 3"):
        run(tmp_path / "small", pool, settings(buffer=2))
    for images, source, said in (("folder", None, "give --folder too"), ("heads", tmp_path, "give --images folder")):
        with pytest.raises(DataError, match=said):
            train(GenerativeTraining, tmp_path / images, source, settings(images=images))
    run(tmp_path / "first", pool)
    weights = tmp_path / "first/weights.safetensors"
    with pytest.raises(DataError, match="has the network"):
        run(tmp_path / "other", pool, settings(width=3), initial=weights)
    again = run(tmp_path / "again", pool, settings(0), initial=weights)
    assert same(again, GenerativePrior.load(weights).state_dict())


def test_fastmri_volumes_train_by_their_reconstructions(tmp_path: Path) -> None:
    """Of many coils, their central 11 slices, each from 0 to 1."""
    folder = tmp_path / "fastmri"
    folder.mkdir()
    values = np.random.default_rng(0).random((10, 15, 24, 24), np.float32) + 1
    for i, volume in enumerate(values):
        with h5py.File(folder / f"file{i}.h5", "w") as file:
            file["kspace"] = np.zeros((15, 2, 24, 20), np.complex64)
            file["reconstruction_rss"] = (1e-5 * volume) * (1 + np.arange(15))[:, None, None]
    config = settings(1, images="folder", pool=88, size=12)
    train(GenerativeTraining, tmp_path / "run", folder, config)
    pool = np.load(tmp_path / "run/pool.npy")
    assert pool.shape == (90, 12, 12)
    np.testing.assert_allclose(pool.max((1, 2)), 1)
    np.testing.assert_allclose(pool.min((1, 2)), 0)
    means = values[:, 2:13].reshape(-1, 12, 2, 12, 2).mean((2, 4))
    low, high = (f(means, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    expected = (means - low) / (high - low)
    nearest = np.abs(pool[:, None] - expected[None]).max((2, 3)).min(1)
    assert nearest.max() < 1e-4
    with pytest.raises(DataError, match="has 88 images of 10 files for train, 89"):
        train(GenerativeTraining, tmp_path / "more", folder, replace(config, pool=89))
