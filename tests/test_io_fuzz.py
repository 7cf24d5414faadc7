"""Some thousand damaged files: each must either be read or raise one DataError of one line.

A fifth of them, other ones in every format, with the fast tests.
"""

from __future__ import annotations

import faulthandler
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan
from pyrecon.data.raw import Grid, MPICalibration, MPIScan, MRIScan
from pyrecon.io import Result, mdf, read, write_result
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io.inspection import inspect
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.io.sinogram import write_sinogram
from pyrecon.physics.ct import scanner
from pyrecon.testing.mrd import fastmri_file, mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

SIEMENS = Path(__file__).parents[2] / "shared/data/siemens_gre_2coils.dat"
LONGEST = 20  # seconds for one small file, on a machine that does other things too


def noise(*shape: int) -> NDArray[np.complex64]:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def measurement(path: Path) -> None:
    spectrum = noise(3, 2, 2, 5)
    mdf.write_measurement(path, MPIScan(spectrum, np.arange(1, 6) * 100.0, np.arange(3) == 1))


def system_matrix(path: Path) -> None:
    grid = Grid((2, 3), (1e-3, 1e-3), (0.0, 0.0))
    calibration = MPICalibration(
        noise(2, 2, 5, 6),
        np.arange(1, 6) * 100.0,
        grid,
        background=noise(3, 2, 2, 5),
        background_positions=np.array([0, 3, 6]),
        snr=np.ones((2, 2, 5)),
    )
    mdf.write_system_matrix(path, calibration)


def fastmri(path: Path) -> None:
    rng = np.random.default_rng(5)
    kspace = (rng.standard_normal((2, 3, 12, 8)) + 1j * rng.standard_normal((2, 3, 12, 8))).astype(np.complex64)
    fastmri_file(path, kspace, mask=np.ones(8, np.float32), reconstruction_rss=np.ones((2, 8, 8), np.float32))


def echo_planar(path: Path) -> None:
    """Lines of both directions with navigators, and references of another encoding space."""
    rng = np.random.default_rng(6)

    def samples(count: int) -> np.ndarray[Any, np.dtype[np.complex64]]:
        return (rng.standard_normal((2, count)) + 1j * rng.standard_normal((2, count))).astype(np.complex64)

    lines: list[dict[str, Any]] = [
        {"data": samples(8), "flags": ["IS_PHASECORR_DATA", *["IS_REVERSE"] * (i % 2)]} for i in range(3)
    ]
    for row in range(6):
        lines.append({"data": samples(8), "at": {"kspace_encode_step_1": row}, "flags": ["IS_REVERSE"] * (row % 2)})
    for row in range(4):
        lines.append({"data": samples(6), "at": {"kspace_encode_step_1": row}, "encoding_space_ref": 1,
                      "flags": ["IS_PARALLEL_CALIBRATION"]})  # fmt: skip
    coarse = mrd_encoding((6, 4, 1), (300.0, 300.0, 40.0), oversampling=1.0)
    mrd_file(path, lines, mrd_header(mrd_encoding(), coarse))


def ismrmrd(path: Path) -> None:
    mask = np.ones((1, 1, 6, 1), bool)
    write_ismrmrd(path, MRIScan(noise(2, 2, 6, 8), mask, noise(2, 16), readout_oversampling=2.0))


def siemens(path: Path) -> None:
    lines = [{"data": noise(2, 8), "at": {"Lin": row}, "center_line": 3, "rotation": (1, 0, 0, 0)} for row in range(6)]
    protocol = "sKSpace.lBaseResolution = 4\nsKSpace.lPhaseEncodingLines = 6\nsSliceArray.asSlice[0].dThickness = 5\n"
    parts = {"Dicom": '<ParamDouble."flReadoutOSFactor">  { <Precision> 6  2.000000  }'}
    path.write_bytes(twix_bytes([{"data": noise(2, 16), "flags": ["NOISEADJSCAN"]}, *lines], protocol, parts))


def image(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        named = path.with_name(f"image{kind}")
        write_result(named, Result(np.abs(noise(3, 4, 5)), Grid((4, 5), (1e-3, 2e-3), (0.0, 0.0)), "x", {"a": 1.0}))
        named.rename(path)

    return write


def sinogram(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        geometry = scanner("fan", 5, n_det=8)
        named = path.with_name(f"scan{kind}")
        write_sinogram(named, CTScan(np.abs(noise(2, 5, 8)), geometry, ("a", "b"), {"x": 1}))
        named.rename(path)

    return write


def htc(path: Path) -> None:
    parameters = {"distanceSourceOrigin": 410.66, "distanceSourceDetector": 553.74, "distanceUnit": "mm",
                  "pixelSizePost": 2.0, "angles": np.arange(5.0), "geometryType": "Cone"}  # fmt: skip
    content = {"CtDataLimited": {"type": "2d", "sinogram": np.abs(noise(5, 8)), "parameters": parameters}}
    savemat(path, content, appendmat=False)


def exchange(path: Path) -> None:
    counts = 100 + np.random.default_rng(0).uniform(0, 50, (9, 2, 12)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["exchange/data"], file["exchange/theta"] = counts, 20.0 * np.arange(9)
        file["exchange/data_dark"], file["exchange/data_white"] = counts[:2] - 100, counts[:3] + 100


def array(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        kspace = noise(2, 3, 12, 8)
        if kind == ".npy":
            with path.open("wb") as file:
                np.save(file, kspace)
        elif kind == ".npz":
            with path.open("wb") as file:
                np.savez(file, kspace=kspace, mask=np.ones(12))
        else:
            savemat(path, {"kspace": kspace, "mask": np.ones((12, 8))}, appendmat=False, do_compression=True)

    return write


@contextmanager
def in_time() -> Iterator[None]:
    """A hang ends the session with a traceback, wherever it is: no Python runs while a library loops in C."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def outcome(path: Path, check: Callable[[Path], Any] = read) -> str:
    message = None
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check(path)
        except DataError as error:
            message = str(error)
    assert message is None or ("\n" not in message and message.startswith(str(path)))
    return "read" if message is None else "refused"


def damaged(content: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut off, with scattered wrong bytes, with wrong bytes near its head, or with a stretch of one value."""
    kind = rng.integers(4)
    if kind == 0:
        return content[: rng.integers(len(content))]
    content = content.copy()
    if kind == 1:
        where = rng.integers(len(content), size=rng.integers(1, 9))
        content[where] = rng.integers(256, size=len(where))
    elif kind == 2:
        where = np.minimum(len(content) - 1, rng.exponential(2000, size=rng.integers(1, 5)).astype(int))
        content[where] = rng.choice([0, 1, 127, 128, 255], size=len(where))
    else:
        start = rng.integers(len(content))
        content[start : start + rng.integers(1, 64)] = rng.choice([0, 255, rng.integers(256)])
    return content


FEW_AND_ALL = pytest.mark.parametrize("share", [0.2, pytest.param(1.0, marks=pytest.mark.slow)], ids=["few", "all"])


@FEW_AND_ALL
@pytest.mark.parametrize(
    ("write", "count"),
    [
        (measurement, 300),
        (system_matrix, 300),
        (ismrmrd, 700),
        (siemens, 1000),
        (image(".h5"), 300),
        (image(".nii"), 300),
        (image(".nii.gz"), 200),
        (image(".npz"), 200),
        (image(".png"), 200),
        (sinogram(".h5"), 400),
        (sinogram(".npz"), 200),
        (htc, 700),
        (exchange, 300),
        (fastmri, 300),
        (echo_planar, 400),
        (array(".npy"), 200),
        (array(".npz"), 200),
        (array(".mat"), 300),
    ],
    ids=[
        "mdf",
        "mdf-system-matrix",
        "ismrmrd",
        "twix",
        "h5",
        "nii",
        "nii.gz",
        "npz",
        "png",
        "sinogram.h5",
        "sinogram.npz",
        "htc",
        "data-exchange",
        "fastmri",
        "echo-planar",
        "kspace.npy",
        "kspace.npz",
        "kspace.mat",
    ],
)
def test_damaged_bytes(tmp_path: Path, write: Callable[[Path], None], count: int, share: float) -> None:
    count = int(share * count)
    write(tmp_path / "sound")
    assert outcome(tmp_path / "sound") == "read"
    content = np.fromfile(tmp_path / "sound", np.uint8)
    seen: Counter[str] = Counter()
    for seed in range(count):
        damaged(content, np.random.default_rng((count, seed))).tofile(tmp_path / "damaged")
        seen[outcome(tmp_path / "damaged")] += 1
    assert seen["refused"] > count // 5  # the damage was felt


@pytest.mark.parametrize(
    "write",
    [measurement, system_matrix, ismrmrd, siemens, image(".npz"), sinogram(".h5"), htc, exchange, fastmri, echo_planar,
     array(".npy"), array(".mat")],
)  # fmt: skip
def test_damaged_bytes_are_looked_into(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """What a reader refuses may be shown, refusal and all; what cannot be shown is one line."""
    write(tmp_path / "sound")
    content = np.fromfile(tmp_path / "sound", np.uint8)

    def look(path: Path) -> None:
        for most in (0, 2**28):
            refusal = inspect(path, most=most).refusal
            assert refusal is None or "\n" not in refusal

    for seed in range(60):
        damaged(content, np.random.default_rng((60, seed))).tofile(tmp_path / "damaged")
        outcome(tmp_path / "damaged", look)


@pytest.mark.skipif(not SIEMENS.exists(), reason="no real twix file beside the checkout")
def test_damaged_bytes_of_a_real_scan(tmp_path: Path) -> None:
    content = np.fromfile(SIEMENS, np.uint8)
    for seed in range(100):
        damaged(content, np.random.default_rng(seed)).tofile(tmp_path / "damaged")
        outcome(tmp_path / "damaged")


WRONG: dict[str, Any] = {
    "nothing": None,
    "text": "x",
    "empty text": "",
    "long text": "y" * 5000,
    "texts": np.array(["a", "b"], dtype=object),
    "minus one": -1,
    "zero": 0,
    "large": 2**62,
    "half": 0.5,
    "nan": np.nan,
    "infinities": np.full((3, 4), np.inf),
    "complex": np.ones((2, 3), complex),
    "empty": np.zeros((0, 3)),
    "many": np.arange(1000),
    "deep": np.ones((1,) * 7, np.int8),
    "no shape": h5py.Empty("f8"),
    "record": np.zeros(3, [("a", "f4"), ("b", "S3")]),
    "reference": h5py.Reference(),
}


def replaced(path: Path, field: str, kind: str) -> None:
    with h5py.File(path, "a") as file:
        del file[field]
        if kind == "group":
            file.create_group(f"{field}/{field.rpartition('/')[2]}")
        elif kind == "link":
            file[field] = h5py.SoftLink(f"/{field}")
        elif kind == "outside":
            file[field] = h5py.ExternalLink("/dev/zero", "/")
        elif WRONG[kind] is not None:
            value = WRONG[kind]
            file.create_dataset(field, data=value, dtype=h5py.ref_dtype if kind == "reference" else None)


def fields_of(path: Path) -> list[str]:
    names: list[str] = []
    with h5py.File(path) as file:
        file.visit(names.append)
    return names


@FEW_AND_ALL
@pytest.mark.parametrize(
    "write",
    [measurement, system_matrix, ismrmrd, sinogram(".h5"), exchange, fastmri],
    ids=["mdf", "mdf-system-matrix", "ismrmrd", "sinogram", "data-exchange", "fastmri"],
)
def test_fields_deleted_and_retyped(tmp_path: Path, write: Callable[[Path], None], share: float) -> None:
    write(tmp_path / "sound")
    content = (tmp_path / "sound").read_bytes()
    cases = [(field, kind) for field in fields_of(tmp_path / "sound") for kind in [*WRONG, "group", "link", "outside"]]
    rng = np.random.default_rng(7)
    chosen = rng.choice(len(cases), min(int(share * 150), len(cases)), replace=False)
    seen: Counter[str] = Counter()
    for field, kind in (cases[i] for i in chosen):
        (tmp_path / "damaged").write_bytes(content)
        replaced(tmp_path / "damaged", field, kind)
        seen[outcome(tmp_path / "damaged")] += 1
        if write in (measurement, system_matrix):
            outcome(tmp_path / "damaged", mdf.validate)
    assert seen["refused"] > len(chosen) // 10


# ---- what HDF5 2.0 itself does not survive, made on purpose: each of these crashed it or kept it busy for ever


def patched(path: Path, old: bytes, new: bytes, after: bytes = b"") -> None:
    content = path.read_bytes()
    start = content.index(old, content.index(after))
    path.write_bytes(content[:start] + new + content[start + len(old) :])


def endless_heap(path: Path) -> None:
    content = path.read_bytes()
    heap = content.index(b"GCOL")
    path.write_bytes(content[: heap + 16] + bytes(16) + content[heap + 32 :])


def long_reference(path: Path) -> None:
    with h5py.File(path) as file:
        place = file["version"].id.get_offset()
    content = path.read_bytes()
    path.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])


def odd_number(path: Path) -> None:
    single = h5py.h5t.IEEE_F32LE.encode()[2:]
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(188)
    patched(path, single, odd.encode()[2:], after=b"data")


def odd_list(path: Path) -> None:
    vlen = h5py.h5t.vlen_create(h5py.h5t.IEEE_F32LE).encode()[2:]
    patched(path, vlen, vlen[:1] + b"\x02" + vlen[2:])


@pytest.mark.parametrize(
    ("write", "harm", "message"),
    [
        (measurement, endless_heap, "the HDF5 heap at byte .* holds a value of 0 bytes"),
        (measurement, long_reference, "/version: refers to 2147483647 bytes that are not at their place"),
        (measurement, odd_number, "/measurement/data: values of an unusual type"),
        (ismrmrd, endless_heap, "the HDF5 heap at byte .* holds a value of 0 bytes"),
        (ismrmrd, odd_list, "/dataset/data: values of an unusual type"),
    ],
)
def test_what_hdf5_does_not_survive(
    tmp_path: Path, write: Callable[[Path], None], harm: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "damaged")
    harm(tmp_path / "damaged")
    with in_time(), pytest.raises(DataError, match=message):
        read(tmp_path / "damaged")


def test_references_behind_a_user_block(tmp_path: Path) -> None:
    """Addresses inside the file count from behind the block, offsets of data from the beginning."""
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=2048) as file:
        file["image"] = np.ones((2, 3))
        file["pyrecon"] = '{"method": "x"}'
        chunked = file.create_dataset("more", (4,), h5py.string_dtype(), maxshape=(None,), chunks=(3,))
        chunked[:] = ["a", "bb", "ccc", ""]
    with Hdf5(tmp_path / "block.h5") as file:
        assert file.text("/pyrecon") == '{"method": "x"}'
        assert file.texts("/more").tolist() == ["a", "bb", "ccc", ""]
