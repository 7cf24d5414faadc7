"""No call of a model kills the process, hangs, or answers wrongly without a word."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.raw import MRIScan
from pyrecon.models import DEQMPI
from pyrecon.models.mpi import (
    ART,
    DEQ,
    L1ADMM,
    METHODS,
    TVADMM,
    DeepImagePrior,
    EndToEnd,
    FactoredSystem,
    HybADMM,
    PnP,
    Problem,
    Reconstructor,
    Tikhonov,
)
from pyrecon.models.mri import CGSense, reconstruct_mri
from pyrecon.models.weights import read_header
from pyrecon.nn import RDN
from pyrecon.physics.mri import coil_maps, head_phantom, random_lines, simulate
from pyrecon.solvers import Status

SHAPE = (5, 4)
LEARNED_METHODS = (DEQ("deq-mpi-25dB"), PnP("denoiser", iterations=3), EndToEnd("end-to-end-25dB"))


def matrix(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(60, 20, generator=torch.Generator().manual_seed(seed), dtype=dtype) / 4


def frames(A: Tensor, count: int = 4) -> Tensor:
    x = torch.rand(count, 20, generator=torch.Generator().manual_seed(1)).to(A)
    return x @ A.T + 0.01 * torch.randn(count, 60, generator=torch.Generator().manual_seed(2)).to(A)


def net(**options: Any) -> DEQMPI:
    torch.manual_seed(0)
    return DEQMPI(RDN(4, 3, 1, 1), iterations=3, **options)


# --- what a problem keeps follows its matrix -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "write",
    [
        lambda problem, new: problem.load_state_dict(Problem(new, SHAPE).state_dict()),
        lambda problem, new: problem.A.matrix.copy_(new),
        lambda problem, new: setattr(problem.A, "matrix", new),
        lambda problem, new: problem.double() and problem.A.matrix.copy_(new),
    ],
    ids=["load_state_dict", "in place", "replaced", "another precision"],
)
@pytest.mark.parametrize("factors", [False, True])
def test_inverse_and_start_are_those_of_the_matrix_as_it_is(write: Callable[..., Any], factors: bool) -> None:
    A, new = matrix(0), matrix(5)
    known = None
    if factors:
        u, s, vh = torch.linalg.svd(A, full_matrices=False)
        known = (u, s, vh.T)
    problem = Problem(A.clone(), SHAPE, factors=known)
    y = frames(new)
    problem.inverse(2.0), problem.start(y)
    write(problem, new)
    fresh = Problem(new.to(problem.A.matrix.dtype), SHAPE)
    y = y.to(problem.A.matrix.dtype)
    torch.testing.assert_close(problem.inverse(2.0), fresh.inverse(2.0))
    torch.testing.assert_close(problem.start(y)[0], fresh.start(y)[0])


def test_known_factors_are_the_start_that_a_decomposition_gives() -> None:
    A, y = matrix(dtype=torch.float64), frames(matrix(dtype=torch.float64))
    system = FactoredSystem(A, SHAPE)
    for rank in (None, 7):
        given = Problem(A, SHAPE, rank=rank, factors=(system.Q, system.s, system.V))
        torch.testing.assert_close(given.start(y)[0], Problem(A, SHAPE, rank=rank).start(y)[0])


# --- one sample does not touch the others --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "method",
    [*(kind() for kind in METHODS.values()), DeepImagePrior(iterations=20), *LEARNED_METHODS],
    ids=lambda method: method.name,
)
@pytest.mark.filterwarnings("ignore")
def test_a_frame_that_is_no_number_leaves_the_others_as_they_are(method: Any) -> None:
    A = matrix()
    y = frames(A)
    broken = y.clone()
    broken[1, 3] = torch.nan
    whole, _ = Reconstructor(A, method, shape=SHAPE)(y)
    images, report = Reconstructor(A, method, shape=SHAPE)(broken)
    assert images[1].isnan().all()
    others = [0, 2, 3]
    torch.testing.assert_close(images[others], whole[others], rtol=1e-4, atol=1e-4)
    assert report.status["NONFINITE"] == 1
    alone, _ = method.solve(Reconstructor(A, method, shape=SHAPE).system, broken, torch.full((4,), 0.1))
    assert alone.status.tolist().count(int(Status.NONFINITE)) == 1


# --- empty batches -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "method",
    [*(kind() for kind in METHODS.values()), DeepImagePrior(iterations=20), *LEARNED_METHODS],
    ids=lambda method: method.name,
)
@pytest.mark.filterwarnings("ignore")
def test_no_frames_are_no_images(method: Any) -> None:
    A = matrix()
    images, report = Reconstructor(A, method, shape=SHAPE)(torch.zeros(0, 60))
    assert images.shape == (0, *SHAPE)
    assert report.samples == 0
    solution, _ = method.solve(FactoredSystem(A, SHAPE), torch.zeros(0, 60), torch.zeros(0))
    assert solution.value.shape == (0, 20)


def test_an_equilibrium_of_no_samples_is_none() -> None:
    problem, y = Problem(matrix(), SHAPE), torch.zeros(0, 60)
    for model in (net(), net(memory=3)):
        assert model(problem, y, 1.0).shape == (0, *SHAPE)
        assert model.reconstruct(problem, y, 1.0).value.shape == (0, *SHAPE)
        assert model.direct(problem, y).shape == (0, *SHAPE)


# --- arguments -----------------------------------------------------------------------------------------------------
def test_radius_and_start_come_as_people_have_them() -> None:
    problem, y = Problem(matrix(), SHAPE), frames(matrix())
    start = torch.rand(4, *SHAPE)
    model = net()
    expected = model.reconstruct(problem, y, torch.full((4,), 0.3), start.flatten(1)).value
    for radius in (0.3, torch.tensor(0.3)):
        torch.testing.assert_close(model.reconstruct(problem, y, radius, start).value, expected, rtol=0, atol=0)
    assert model(problem, y, 0.3, start).shape == (4, *SHAPE)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, p, y: m.reconstruct(p, y, 0.3, iterations=0), "iterations: 0 does not fit, expected at least 1"),
        (lambda m, p, y: m.reconstruct(p, y, 0.3, iterations=2.5), "iterations: 2.5, expected a whole number"),
        (lambda m, p, y: m.reconstruct(p, y, -1.0), "radius: -1.0 does not fit"),
        (lambda m, p, y: m.reconstruct(p, y, "wide"), "radius: 'wide', expected a number"),
        (lambda m, p, y: m.reconstruct(p, y, torch.ones(3)), r"radius: shape \(3,\) does not fit"),
        (lambda m, p, y: m(p, y, torch.ones(4, dtype=torch.float64)), "radius: dtype float64"),
        (lambda m, p, y: m.reconstruct(p, y[:, :7], 0.3), r"y: shape \(4, 7\) does not fit"),
        (lambda m, p, y: m.reconstruct(p, y.numpy(), 0.3), "y: expected a torch.Tensor, got ndarray"),
        (lambda m, p, y: m.reconstruct(p, y.half(), 0.3), "y: dtype torch.float16"),
        (lambda m, p, y: m.reconstruct(p, y.long(), 0.3), "y: dtype torch.int64"),
        (lambda m, p, y: m.reconstruct(p, y, 0.3, torch.zeros(4, 4, 5)), r"start: shape \(4, 4, 5\) does not fit"),
        (lambda m, p, y: DEQMPI(iterations=0), "iterations: 0 does"),
        (lambda m, p, y: DEQMPI(memory=-1), "memory: -1 does"),
        (lambda m, p, y: DEQMPI(penalty=float("nan")), "penalty: nan does not fit"),
        (lambda m, p, y: DEQMPI(penalty="big"), "penalty: 'big', expected a number"),
        (lambda m, p, y: DEQMPI(tol=-1.0), "tol: -1.0 does not fit"),
        (lambda m, p, y: DEQMPI(RDN), "rdn: expected a module, got the class RDN"),
        (lambda m, p, y: DEQMPI(consistency="ball"), "consistency: expected a module, got 'ball'"),
        (lambda m, p, y: Problem(matrix().numpy(), SHAPE), "matrix: expected a torch.Tensor, got ndarray"),
        (lambda m, p, y: Problem(matrix().half(), SHAPE), "matrix: dtype float16"),
        (lambda m, p, y: Problem(matrix(), (20,)), r"shape: \(20,\) does not fit"),
    ],
)
def test_a_model_names_the_argument_that_is_wrong(call: Callable[..., Any], said: str) -> None:
    A = matrix()
    with pytest.raises((ValueError, TypeError), match=said):
        call(net(), Problem(A, SHAPE), frames(A))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda A: Reconstructor(A, HybADMM, shape=SHAPE), r"the class HybADMM, expected an instance: HybADMM\("),
        (lambda A: Reconstructor(A, "hyb", shape=SHAPE), r"the text 'hyb', expected an instance, e\.g\. HybADMM\(\)"),
        (lambda A: Reconstructor(A, CGSense(), shape=SHAPE), "method: got CGSense, expected an instance of MPIMethod"),
        (lambda A: Reconstructor(A.numpy(), ART(), shape=SHAPE), "system: expected an MPISystem or a real matrix"),
        (lambda A: Reconstructor(A.to(torch.complex64), ART(), shape=SHAPE), "system: is complex"),
        (lambda A: Reconstructor(A, ART(), shape=SHAPE, batch=2.0), r"batch: 2\.0"),
        (lambda A: Reconstructor(A, ART(), shape=SHAPE)(frames(A).numpy()), "frames: .* got ndarray: torch.from_numpy"),
        (lambda A: Reconstructor(A, ART(), shape=SHAPE)(frames(A).to(torch.complex64)), "frames: are complex"),
        (lambda A: Reconstructor(A, ART(), shape=SHAPE)(frames(A).half()), "frames: dtype float16"),
        (lambda A: Reconstructor(A, ART(), shape=SHAPE)(frames(A).int()), "frames: dtype int32"),
        (
            lambda A: Reconstructor(A, ART(), shape=SHAPE)(frames(A), noise_std=torch.ones(3)),
            r"noise_std: shape \(3,\)",
        ),
        (lambda A: list(Reconstructor(A, ART(), shape=SHAPE).stream(frames(A) * 1j)), "frames: are complex"),
        (lambda A: L1ADMM().solve(FactoredSystem(A, SHAPE), frames(A), 0.1), "noise: expected a torch.Tensor"),
        (lambda A: TVADMM().solve(FactoredSystem(A, SHAPE), frames(A), torch.ones(3)), r"noise: shape \(3,\)"),
        (lambda A: Tikhonov().solve(FactoredSystem(A, SHAPE), frames(A) * 1j, torch.ones(4)), "y: dtype"),
        (lambda A: reconstruct_mri(A), "scan: expected an MRIScan"),
        (lambda A: reconstruct_mri(scan(), CGSense), r"the class CGSense, expected an instance: CGSense\("),
        (lambda A: reconstruct_mri(scan(), "cg-sense"), "the text 'cg-sense'"),
        (lambda A: reconstruct_mri(scan(), HybADMM()), "got HybADMM, expected an instance of MRIMethod"),
        (
            lambda A: CGSense().solve(torch.zeros(1, 2, 4, 4, dtype=torch.complex64), None, torch.ones(1, 1, 4, 4)),
            "maps",
        ),
    ],
)
def test_a_reconstructor_names_the_argument_that_is_wrong(call: Callable[..., Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call(matrix())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HybADMM(mu="strong"), "mu: 'strong', expected a number"),
        (lambda: HybADMM(iterations=2.5), "iterations: 2.5, expected a whole number"),
        (lambda: HybADMM(nonneg=1), "nonneg: 1, expected True or False"),
        (lambda: ART(order="shuffled"), "order: 'shuffled', expected one of cyclic, random"),
        (lambda: DEQ(weights=3), "weights: 3, expected text"),
        (lambda: CGSense(tol=None), "tol: None, expected a number"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make()


def scan() -> MRIScan:
    shape = (16, 16)
    return simulate(head_phantom(shape), coil_maps(shape, 2), random_lines(shape, 2.0, acl=8, seed=0), seed=0)


def test_a_singular_value_decomposition_is_made_once_for_learned_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    A, sizes = matrix(), list[tuple[int, ...]]()
    decompose = torch.linalg.svd

    def counted(value: Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tuple(value.shape))
        return decompose(value, *args, **options)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    monkeypatch.setattr(torch.linalg, "matrix_norm", lambda *a, **k: pytest.fail("a norm is a decomposition too"))
    for method in LEARNED_METHODS:
        sizes.clear()
        Reconstructor(A, method, shape=SHAPE)(frames(A), noise_std=0.01)
        assert sizes == [(60, 20)]


_SHORT = struct.pack("<Q", 2) + b"{}"
_NUMBER = struct.pack("<Q", 32) + b'{"__metadata__": {"pyrecon": 1}}'


# --- weights from others -------------------------------------------------------------------------------------------
def hostile(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A file of weights with a changed table and header, the tensors as they were."""
    net().save(path)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + size])
    header = json.loads(table["__metadata__"]["pyrecon"])
    change(table, header)
    table["__metadata__"]["pyrecon"] = header if isinstance(header, str) else json.dumps(header)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return path


def _many(table: dict[str, Any], header: dict[str, Any], count: int) -> None:
    table.update({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, h: h["config"]["rdn"].update(blocks=1000, layers=1000), "its configuration has 2002010"),
        (lambda t, h: h["config"]["rdn"].update(features=1024, growth=1024), "rdn.* is .* expected"),
        (lambda t, h: h["config"].update(consistency={"kind": "learned", "layers": 1000}), "its configuration has"),
        (lambda t, h: h["config"].update(iterations=10**300), "expected a whole number"),
        (lambda t, h: h["config"].update(penalty=1e999), "penalty"),
        (lambda t, h: h["config"].update(penalty=[1]), "penalty"),
        (lambda t, h: h.update(card={"shape": [1e999]}), "unusable"),
        (lambda t, h: h.update(card=[]), "unusable"),
        (lambda t, h: h.update(config=7), "unusable"),
        (lambda t, h: t["rdn.last.bias"].update(shape=[1e999]), "no whole safetensors"),
        (lambda t, h: t["rdn.last.bias"].update(shape=None), "no whole safetensors"),
        (lambda t, h: _many(t, h, 300_000), "a header of"),
        (lambda t, h: _many(t, h, 20_000), "20014 tensors, expected up to 10000"),
    ],
)
def test_sizes_are_judged_before_anything_is_built(tmp_path: Path, change: Callable[..., Any], said: str) -> None:
    path = hostile(tmp_path / "w.safetensors", change)
    start = time.perf_counter()
    with pytest.raises(DataError, match=said) as caught:
        DEQMPI.load(path)
    assert "w.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5  # a million modules took 40 s, 300,000 tensors 24


@pytest.mark.parametrize("where", ["table", "header"])
def test_a_deep_header_is_named(tmp_path: Path, where: str) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    table = {"__metadata__": {"pyrecon": deep}} if where == "header" else {}
    text = (json.dumps(table) if table else deep).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 100, _SHORT, b"\x02", b"\0" * 64, _NUMBER])
def test_a_file_of_bytes_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        DEQMPI.load(path)


def test_files_of_the_first_format_load_as_they_did() -> None:
    """The shipped ones are of that format; np guards against a card whose numbers became text."""
    model = DEQMPI.from_pretrained("deq-mpi-25dB")
    assert model.card is not None
    assert model.card.data["snr_db"] == 25.0
    assert (model.card.model, model.card.role, model.card.shape) == ("deq-mpi", "equilibrium", (26, 13))
    assert np.all(np.diff(model.card.data["signal_range"]) > 0)
