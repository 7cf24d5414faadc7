"""Weights of DEQ-MPI on disk and in reconstruction: whole files, the right rows, any unit, every frame by itself."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.mpi import MPIFrames, prepare_frames, prepare_system
from pyrecon.data.raw import Grid
from pyrecon.models import DEQMPI
from pyrecon.models import weights as stored
from pyrecon.models.deq_mpi import new_card
from pyrecon.models.mpi import DEQ, FactoredSystem, Reconstructor, ScaledSystem
from pyrecon.models.mpi.method import KAPPA
from pyrecon.models.mpi.system import noise_std, row_layout
from pyrecon.nn import RDN, BallConsistency, LearnedConsistency, RowLayout
from pyrecon.physics.mpi import Scanner

SHAPE, GRID = (6, 4), Grid((6, 4), (2e-3, 2e-3), (0.0, 0.0))
CARD = new_card(20.0, SHAPE, (0.05, 2.0), {"images": "none"})
SCANNER = replace(Scanner(), angles=4, harmonics=(2, 3, 4))


def net(layout: RowLayout | None = None, **data: Any) -> DEQMPI:
    """Small and gentle: near the identity, so that its images resemble least squares."""
    torch.manual_seed(3)
    model = DEQMPI(RDN(4, 3, 2, 2), None if layout is None else LearnedConsistency(layout, width=5), iterations=7)
    with torch.no_grad():
        model.rdn.last.weight.mul_(0.05)
        model.rdn.last.bias.zero_()  # type: ignore[union-attr]
    model.card = replace(CARD, data=CARD.data | data)
    return model


def test_the_radius_of_training_is_in_the_file(tmp_path: Path) -> None:
    """And a reconstruction takes it, unless it is told another."""
    model = net()
    model.kappa = 0.3
    model.save(tmp_path / "w.safetensors")
    assert DEQMPI.load(tmp_path / "w.safetensors").kappa == 0.3
    A = matrix()
    y = data(A)
    own, same, other = (
        Reconstructor(A, DEQ(str(tmp_path / "w.safetensors"), kappa=kappa), shape=SHAPE)(y, noise_std=0.1)[0]
        for kappa in (None, 0.3, 1.0)
    )
    assert torch.equal(own, same)
    assert float((own - other).abs().max()) > 1e-3


def test_where_noise_was_taken_out_of_the_matrix_the_radius_is_a_share_of_it(tmp_path: Path) -> None:
    """Of a matrix that is known to have four singular values, and of the same that is not."""
    model, A = net(), matrix()
    model.kappa = 0.9
    model.save(tmp_path / "w.safetensors")
    u, s, vh = torch.linalg.svd(A, full_matrices=False)
    A = (u[:, :4] * s[:4]) @ vh[:4]
    y = data(A)
    noise = torch.full((len(y),), 0.1 * len(A) ** 0.5)
    for rank, kappa in ((None, 0.9), (4, KAPPA * 0.9)):
        system = FactoredSystem(A, SHAPE, rank=rank)
        own, same, other = (
            DEQ(str(tmp_path / "w.safetensors"), kappa=given).solve(system, y, noise)[0].value
            for given in (None, kappa, 0.9 * kappa)
        )
        assert system.denoised == (rank is not None)
        assert torch.equal(own, same)
        assert not torch.equal(own, other)
    # Learned consistency has the radius that it was trained with: of all noise, in all rows.
    learned = net(RowLayout.from_mask(torch.arange(90) < 75, (10, 9), 9))
    learned.save(tmp_path / "l.safetensors")
    own, same, other = (
        DEQ(str(tmp_path / "l.safetensors"), kappa=given).solve(FactoredSystem(A, SHAPE, rank=4), y, noise)[0].value
        for given in (None, 1.0, KAPPA)
    )
    assert torch.equal(own, same)
    assert not torch.equal(own, other)


def mask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def some_layout() -> RowLayout:
    return RowLayout.from_mask(torch.rand(45, generator=torch.Generator().manual_seed(0)) > 0.4, (5, 9), 7)


def matrix() -> Tensor:
    return torch.randn(150, 24, generator=torch.Generator().manual_seed(1)) * 0.2


def data(A: Tensor, frames: int = 5, noise: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(frames, A.shape[1], generator=generator) * torch.linspace(0.5, 1.5, frames)[:, None]
    return x @ A.T + noise * torch.randn(frames, len(A), generator=generator)


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", [None, some_layout()], ids=["ball", "learned"])
def test_weights_come_back_with_all_that_belongs_to_them(tmp_path: Path, layout: RowLayout | None) -> None:
    model = net(layout)
    model.save(tmp_path / "w.safetensors")
    loaded = DEQMPI.load(tmp_path / "w.safetensors")
    assert not loaded.training
    assert loaded.card == CARD
    assert loaded.iterations == 7
    assert loaded.rdn.config == model.rdn.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    if layout is None:
        assert isinstance(loaded.consistency, BallConsistency)
    else:
        assert isinstance(loaded.consistency, LearnedConsistency)
        assert loaded.consistency.layout.digest == layout.digest
        assert loaded.consistency.config == model.consistency.config  # type: ignore[union-attr]
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o444 == 0o444 & ~mask()  # not for its writer alone
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    assert DEQMPI.from_pretrained(tmp_path / "w.safetensors").card == CARD


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    net(some_layout()).save(path)
    whole = path.read_bytes()
    for size in sorted({0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"w\.safetensors"):
            DEQMPI.load(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(DataError, match="whole safetensors"):
        DEQMPI.load(path)


def test_what_is_not_written_whole_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    net().save(path)
    before = path.read_bytes()

    def half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(DataError, match=r"w\.safetensors: cannot be written .No space left"):
        net(some_layout()).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    monkeypatch.undo()
    broken = net()
    with torch.no_grad():
        broken.rdn.last.bias.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"rdn\.last\.bias"):
        broken.save(path)
    assert path.read_bytes() == before


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """The same tensors under a changed table and header."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + size])
    header = json.loads(table["__metadata__"]["pyrecon"])
    change(table, header)
    if "__metadata__" in table:
        table["__metadata__"]["pyrecon"] = json.dumps(header)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table, header: table.pop("__metadata__"), "from_released"),
        (lambda table, header: header.update(format=3), "format 3"),
        (lambda table, header: header.update(model="other"), "'other'"),
        (lambda table, header: header["config"]["rdn"].update(layers=10**9), "1000000000"),
        (lambda table, header: header["config"]["rdn"].update(layers=1), "tensors, its configuration has"),
        (lambda table, header: header["config"]["rdn"].update(growth="wide"), "wide"),
        (lambda table, header: header["config"]["rdn"].update(depth=3), "depth"),
        (lambda table, header: header["config"].pop("consistency"), "consistency"),
        (lambda table, header: header["config"]["consistency"].update(kind="some"), "'some'"),
        (lambda table, header: header["config"]["consistency"].update(kind="none"), "its configuration has"),
        (lambda table, header: header["card"].update(role="judge"), "judge"),
        (lambda table, header: header["config"]["consistency"].update(used=6), "digest"),
        (lambda table, header: header["config"]["consistency"].update(grid=[10**9, 10**9]), "points"),
        (lambda table, header: header["card"]["data"].update(snr_db="high"), "high"),
        (lambda table, header: header["card"]["data"].update(signal_range=[0, 1]), "card"),
        (lambda table, header: header["config"].update(iterations=0), "from 1 to 1024, got '0'"),
        (lambda table, header: table.update(extra=table.pop("rdn.last.bias")), "extra is 1 float32"),
        (lambda table, header: table["rdn.last.bias"].update(dtype="I32"), r"rdn\.last\.bias"),
    ],
)
def test_foreign_headers_and_tables_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "w.safetensors"
    net(some_layout()).save(path)
    rewritten(path, change)
    with pytest.raises(DataError, match=said) as caught:
        DEQMPI.load(path)
    assert "w.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    net().save(path)
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(content)
    with pytest.raises(DataError, match="NaN"):
        DEQMPI.load(path)


def test_unknown_names_list_the_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHIPPED", tmp_path)
    with pytest.raises(DataError, match=r"'mine'.*\(none\)"):
        DEQMPI.from_pretrained("mine")
    with pytest.raises(DataError, match=r"none of the role .equilibrium. come"):
        Reconstructor(matrix(), DEQ(), shape=SHAPE)
    net().save(tmp_path / "mine.safetensors")
    assert DEQMPI.from_pretrained("mine").card == CARD
    with pytest.raises(DataError, match=r"'yours'.*\(mine\)"):
        DEQMPI.from_pretrained("yours")


# --- reconstruction --------------------------------------------------------------------------------------------------
def reconstructor(tmp_path: Path, model: DEQMPI | None = None, system: Any = None, **options: Any) -> Reconstructor:
    path = tmp_path / "w.safetensors"
    (model or net()).save(path)
    return Reconstructor(matrix() if system is None else system, DEQ(weights=str(path)), shape=SHAPE, **options)


def test_reconstruction_is_the_model_in_its_scale(tmp_path: Path) -> None:
    """By hand: noise brought to the model's, the whole system, the image brought back."""
    A, noise = matrix(), 0.1
    y = data(A)
    scaled = ScaledSystem.of_matrix(A, SHAPE)
    up = noise_std(20.0) / (noise * scaled.gain)
    inside = y @ torch.linalg.pinv(A.double()).T.float() @ A.T  # the ball is in the range of A
    radius = torch.full((len(y),), noise_std(20.0) * int(torch.linalg.matrix_rank(A)) ** 0.5)
    expected = net().reconstruct(scaled.problem(20.0), inside * (scaled.gain * up), radius).value.clamp(min=0) / up
    images, report = reconstructor(tmp_path, model_error=False)(y, noise_std=noise)
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)
    assert report.method == "DEQ-MPI"
    assert report.details["iterations_per_image"] == 7
    more, _ = Reconstructor(A, DEQ(str(tmp_path / "w.safetensors"), iterations=30), shape=SHAPE)(y, noise_std=noise)
    assert float((more - images).abs().max()) > 1e-4


def test_units_and_doses_do_not_matter(tmp_path: Path) -> None:
    A = matrix()
    y = data(A)
    images, _ = reconstructor(tmp_path)(y, noise_std=0.1)
    for gain, dose in ((1e-9, 1.0), (1.0, 300.0), (1e6, 1e-4)):
        other, _ = reconstructor(tmp_path, system=gain * A)(gain * dose * y, noise_std=0.1 * gain * dose)
        torch.testing.assert_close(other / dose, images, rtol=2e-3, atol=2e-3)
    plain, _ = reconstructor(tmp_path, system=10 * A, normalise=False)(10 * y, noise_std=1.0)
    torch.testing.assert_close(plain, images, rtol=2e-3, atol=2e-3)


def test_a_frame_that_is_not_finite_leaves_the_others_right(tmp_path: Path) -> None:
    A = matrix()
    y = data(A)
    expected, _ = reconstructor(tmp_path)(y, noise_std=0.1)
    y[3, 10] = torch.nan
    with pytest.warns(UserWarning, match="frames 3"):
        images, report = reconstructor(tmp_path)(y, noise_std=0.1)
    assert report.status == {"MAX_ITER": 4, "NONFINITE": 1}
    torch.testing.assert_close(images[[0, 1, 2, 4]], expected[[0, 1, 2, 4]], rtol=1e-4, atol=1e-4)


def test_frames_outside_the_training_data_are_brought_to_its_border_and_named(tmp_path: Path) -> None:
    A = matrix()
    y = data(A, noise=0.001)
    with pytest.warns(UserWarning, match=r"5 of 5 frames is stronger .*w\.safetensors \(20 dB\)"):
        images, report = reconstructor(tmp_path, net(signal_range=(0.3, 0.5)))(y, noise_std=0.001)
    assert torch.isfinite(images).all()
    assert any("stronger" in text for text in report.warnings)
    with pytest.warns(UserWarning, match="weaker"):
        reconstructor(tmp_path, net(signal_range=(0.3, 0.5)))(data(A, noise=3.0), noise_std=3.0)
    still = torch.zeros(2, len(A))
    assert (reconstructor(tmp_path)(still, noise_std=0.1)[0].abs() < 1).all()
    assert torch.isfinite(reconstructor(tmp_path)(data(A, noise=0.0), noise_std=0.0)[0]).all()


def test_each_frame_gets_the_model_of_its_snr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHIPPED", tmp_path)
    A = matrix()
    for snr in (10.0, 30.0):
        model = net(snr_db=snr)
        with torch.no_grad():
            model.rdn.last.bias.fill_(snr / 1000)  # type: ignore[union-attr]  # so that the two differ
        model.save(tmp_path / f"deq-mpi-{snr:g}dB.safetensors")
    net(some_layout(), snr_db=20.0).save(tmp_path / "learned.safetensors")  # never chosen: it fits its own rows only
    clean = data(A, frames=4, noise=0.0)
    strength = clean.square().mean(1).sqrt()
    noise = strength * torch.tensor([10**-0.6, 10**-1.4, 10**-0.3, 10**-2.0])  # 12, 28, 6 and 40 dB
    y = clean + noise[:, None] * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    images, _ = Reconstructor(A, DEQ(), shape=SHAPE, model_error=False)(y, noise_std=noise)
    for frame, name in enumerate(("deq-mpi-10dB", "deq-mpi-30dB", "deq-mpi-10dB", "deq-mpi-30dB")):
        alone = Reconstructor(A, DEQ(name), shape=SHAPE, model_error=False)(y[[frame]], noise_std=noise[[frame]])[0]
        torch.testing.assert_close(images[[frame]], alone, rtol=1e-3, atol=1e-3)


def test_learned_consistency_reads_its_own_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    net().save(tmp_path / "shipped/free.safetensors")
    calibration = SCANNER.calibrate(GRID, noise=0.1)
    scan = SCANNER.measure(torch.rand(3, 12, 8), Grid((12, 8), (1e-3, 1e-3), (0.0, 0.0)), noise=0.1)
    system = prepare_system(calibration, scan)
    layout = row_layout(system)
    assert layout is not None
    frames = prepare_frames(system, scan)
    path = tmp_path / "w.safetensors"
    net(layout).save(path)
    images, _ = Reconstructor(system, DEQ(str(path)))(frames)
    assert images.shape == (3, *SHAPE)
    assert torch.isfinite(images).all()
    fewer = prepare_system(calibration, scan, snr_threshold=50.0)
    assert len(fewer.rows) < len(system.rows)
    with pytest.raises(DataError, match=r"learned consistency belongs to .*fit any system matrix \(free\)"):
        Reconstructor(fewer, DEQ(str(path)))
    free, _ = Reconstructor(fewer, DEQ("free"))(prepare_frames(fewer, scan))
    assert free.shape == (3, *SHAPE)
    with pytest.raises(DataError, match="learned consistency"):
        Reconstructor(matrix(), DEQ(str(path)), shape=SHAPE)


def test_frames_object_and_a_line_grid(tmp_path: Path) -> None:
    A = matrix()
    y = data(A)
    by_frames, _ = reconstructor(tmp_path)(MPIFrames(y, torch.full((5,), 0.1)))
    torch.testing.assert_close(by_frames, reconstructor(tmp_path)(y, noise_std=0.1)[0])
    with pytest.raises(DataError, match="is for images of two axes"):
        Reconstructor(A, DEQ(str(tmp_path / "w.safetensors")), shape=(2, 3, 4))(y, noise_std=0.1)
    flat, _ = Reconstructor(A, DEQ(str(tmp_path / "w.safetensors")), shape=(6, 1, 4))(y, noise_std=0.1)
    assert flat.shape == (5, 6, 1, 4)


def test_evaluation_sets_trained_weights_beside_the_classical_methods(tmp_path: Path) -> None:
    from pyrecon.experiments.mpi import Images, draw, evaluate_mpi

    path = tmp_path / "mine.safetensors"
    net().save(path)
    pictures = torch.rand(2, 12, 8, generator=torch.Generator().manual_seed(0))
    table, results = evaluate_mpi(
        Images(pictures, pictures, "random"),
        calibration=SCANNER.calibrate(GRID, noise=0.1),
        snr_db=(25.0,),
        weights=[str(path)],
    )
    (row,) = (row for row in table.rows if row.method == "DEQ-MPI")
    assert row.kind == "mine"
    assert len(row.psnr["25 dB"]) == 2
    assert not row.published  # random images
    assert results["DEQ-MPI, mine"].shape == (2, *SHAPE)
    assert "DEQ-MPI | mine" in table.to_markdown()
    assert draw(results, "default") is not None


@pytest.mark.skipif("deq-mpi-25dB" not in stored.shipped_weights(), reason="no weights come with this package")
def test_shipped_weights_beat_classical_methods_on_vessels_they_never_saw() -> None:
    """Crops of a retina at 25 dB, by the settings found best for the classical methods on such crops."""
    pytest.importorskip("skimage")
    from pyrecon import metrics
    from pyrecon.experiments.mpi import GRID as FIELD
    from pyrecon.experiments.mpi import measured_scenario, measured_system, vessel_images
    from pyrecon.models.mpi import L1ADMM, TVADMM

    system = measured_system(Scanner().calibrate(FIELD, seed=0))
    problem = measured_scenario(system, vessel_images(test=16, validation=8, seed=5), 25.0, seed=1)
    test = problem.test
    std = test.noise / test.y.shape[1] ** 0.5

    def quality(method: Any) -> float:
        images, _ = Reconstructor(problem.system.matrix, method, shape=problem.system.shape)(test.y, noise_std=std)
        return float(metrics.psnr(images, test.images).mean())

    tuned = (L1ADMM(mu=32.0, kappa=0.8, iterations=19), TVADMM(mu=358.0, kappa=0.8, iterations=18))
    known = [method.solve(problem.system, test.y, test.noise)[0].value.view_as(test.images) for method in tuned]
    best = max(float(metrics.psnr(images, test.images).mean()) for images in known)
    assert quality(DEQ()) > best + 0.3
