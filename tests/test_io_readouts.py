"""What a scanner's readouts are: calibration, averages, echoes, other coils, both directions. In both formats."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.fourier import fft_centered, ifft_centered
from pyrecon.data.raw import MRIScan
from pyrecon.io import read
from pyrecon.models.mri import CGSense, ZeroFilled, reconstruct_mri
from pyrecon.testing.mrd import mrd_encoding, mrd_file, mrd_header
from pyrecon.testing.siemens import twix_bytes

pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

N, COILS = 32, 4
Line = dict[str, Any]
Write = Callable[[Path, Sequence[Line]], Path]
PROTOCOL = f"sKSpace.lBaseResolution = {N}\nsKSpace.lPhaseEncodingLines = {N}\nsKSpace.ucTrajectory = 1\n"


def phantom() -> NDArray[np.float64]:
    """A disc with a dark and a bright spot where no mirror image has them."""
    y, x = np.meshgrid(*2 * [(np.arange(N) - N // 2) / N], indexing="ij")
    image = 1.0 * ((x / 0.33) ** 2 + (y / 0.42) ** 2 < 1)
    image[(x + 0.12) ** 2 + (y + 0.15) ** 2 < 0.01] = 0.2
    image[(x - 0.12) ** 2 + (y - 0.1) ** 2 < 0.007] = 1.8
    return image


def kspace(image: NDArray[Any] | None = None, channels: int = COILS) -> NDArray[np.complex64]:
    """``(C, N, 2 N)`` with twofold oversampling of the readout and noise of 2 %."""
    y, x = np.meshgrid(*2 * [(np.arange(N) - N // 2) / N], indexing="ij")
    turns = 2 * np.pi * np.arange(channels)[:, None, None] / channels + 0.4
    distance = (x - 0.55 * np.cos(turns)) ** 2 + (y - 0.55 * np.sin(turns)) ** 2
    maps = np.exp(-distance / 0.35) * np.exp(1j * (turns + 2 * x * np.sin(turns) - 2 * y * np.cos(turns)))
    seen = np.pad(maps * (phantom() if image is None else image), [(0, 0), (0, 0), (N // 2, N // 2)])
    rng = np.random.default_rng(0)
    noise = 0.02 * (rng.standard_normal(seen.shape) + 1j * rng.standard_normal(seen.shape))
    return (fft_centered(torch.from_numpy(seen)).numpy() + noise).astype(np.complex64)


# ---- a line is written to either format by the same words

_FLAGS = {
    "reference": ("IS_PARALLEL_CALIBRATION", ("PATREFSCAN",)),
    "both": ("IS_PARALLEL_CALIBRATION_AND_IMAGING", ("PATREFSCAN", "PATREFANDIMASCAN")),
    "backwards": ("IS_REVERSE", ("REFLECT",)),
    "navigator": ("IS_PHASECORR_DATA", ("PHASCOR",)),
    "noise": ("IS_NOISE_MEASUREMENT", ("NOISEADJSCAN",)),
}
_COUNTERS = {"row": ("kspace_encode_step_1", "Lin"), "contrast": ("contrast", "Eco"), "phase": ("phase", "Phs"),
             "repetition": ("repetition", "Rep"), "average": ("average", "Ave"), "slice": ("slice", "Sli")}  # fmt: skip


def line(data: NDArray[np.complex64], row: int, *flags: str, **at: int) -> Line:
    return {"data": data, "flags": flags, "at": {"row": row, **at}}


def mrd(path: Path, lines: Sequence[Line], channels: int | None = None) -> Path:
    def own(entry: Line) -> Line:
        at = {_COUNTERS.get(name, (name, ""))[0]: value for name, value in entry["at"].items()}
        return {**entry, "at": at, "flags": [_FLAGS[flag][0] for flag in entry["flags"]]}

    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0)), channels=channels)
    return mrd_file(path.with_suffix(".h5"), [own(entry) for entry in lines], header)


def twix(path: Path, lines: Sequence[Line]) -> Path:
    def own(entry: Line) -> Line:
        at = {_COUNTERS.get(name, ("", name))[1]: value for name, value in entry["at"].items()}
        flags = [name for flag in entry["flags"] for name in _FLAGS[flag][1]]
        return {**entry, "at": at, "flags": flags, "center_line": N // 2}

    path = path.with_suffix(".dat")
    path.write_bytes(twix_bytes([own(entry) for entry in lines], PROTOCOL))
    return path


FORMATS = pytest.mark.parametrize("write", [mrd, twix], ids=["ismrmrd", "twix"])


def notes(scan: MRIScan) -> str:
    return "; ".join(scan.metadata.get("notes", []))


def correlation(images: torch.Tensor) -> list[float]:
    return [float(np.corrcoef(image.abs().flatten(), phantom().ravel())[0, 1]) for image in images]


def reconstructed(scan: MRIScan, method: Any = None) -> tuple[torch.Tensor, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reconstruct_mri(scan, CGSense() if method is None else method)


# ---- calibration


@FORMATS
@pytest.mark.parametrize("factor", [2, 3])
def test_integrated_reference_lines_are_calibration_and_image(tmp_path: Path, write: Write, factor: int) -> None:
    """The lines in the gaps are flagged as calibration alone, those of the lattice amid them as both."""
    k, lines = kspace(), []
    for row in range(N):
        lattice, block = row % factor == 1, abs(row - N // 2 + 0.5) < 8
        flags = ["both" if lattice else "reference"] if block else []
        if lattice or block:
            lines.append(line(k[:, row], row, *flags))
    scan = read(write(tmp_path / "m", lines))
    plain = read(write(tmp_path / "p", [{**entry, "flags": ()} for entry in lines]))
    assert scan.calibration is None
    np.testing.assert_array_equal(scan.kspace, plain.kspace)
    np.testing.assert_array_equal(scan.mask, plain.mask)
    images, report = reconstructed(scan)
    assert report.details["maps"] == "espirit from 16 x 24 samples"
    assert min(correlation(images)) > 0.96


@FORMATS
def test_a_reference_scan_of_its_own_stays_out_of_the_image(tmp_path: Path, write: Write) -> None:
    k, lines = kspace(), []
    for row in range(0, N, 2):
        lines.append(line(k[:, row], row))
    for row in range(N // 2 - 8, N // 2 + 8):
        lines.append(line(3 * k[:, row], row, "reference"))
    scan = read(write(tmp_path / "m", lines))
    assert int(scan.mask.sum()) == N // 2
    np.testing.assert_array_equal(np.flatnonzero(scan.calibration.any(axis=(0, 1, 3))), np.arange(8, 24))
    assert min(correlation(reconstructed(scan)[0])) > 0.96 > 0.9 > correlation(reconstructed(scan, ZeroFilled())[0])[0]


@FORMATS
@pytest.mark.parametrize("rows", [range(0, N, 2), range(1, N, 2)], ids=["lines of the image", "lines between"])
def test_references_with_counters_of_their_own_are_no_image(tmp_path: Path, write: Write, rows: range) -> None:
    """Another contrast is a scan of its own, whatever lines it has."""
    k, lines = kspace(), [line(kspace()[:, row], row) for row in range(0, N, 2)]
    middle = [row for row in rows if abs(row - N // 2) < 9]
    lines += [line(3 * k[:, row], row, "reference", contrast=1) for row in middle]
    scan = read(write(tmp_path / "m", lines))
    assert len(scan.kspace) == 1
    assert int(scan.mask.sum()) == N // 2
    np.testing.assert_array_equal(np.flatnonzero(scan.calibration.any(axis=(0, 1, 3))), middle)


@FORMATS
def test_references_that_are_zero_or_of_another_coil_are_left_out(tmp_path: Path, write: Write) -> None:
    k = kspace()
    lines = [line(k[:, row], row) for row in range(N)]
    extra = [line(0 * k[:, 9], 9, "reference"), line(kspace(channels=2)[:, 10], 10, "reference")]
    scan = read(write(tmp_path / "m", [*lines, *extra]))
    assert scan.calibration is None
    assert "2 of 2 reference readouts are left out" in notes(scan)
    scan = read(write(tmp_path / "n", [*lines, *extra, line(2 * k[:, 12], 12, "reference")]))
    np.testing.assert_array_equal(np.flatnonzero(scan.calibration.any(axis=(0, 1, 3))), [12])
    assert "2 of 3 reference readouts are left out" in notes(scan)


@FORMATS
def test_slices_without_references_take_those_of_the_nearest(tmp_path: Path, write: Write) -> None:
    k, middle = kspace(), range(N // 2 - 4, N // 2 + 4)
    lines = [line(k[:, row], row, slice=s) for s in range(5) for row in range(N)]
    lines += [line((2 + s) * k[:, row], row, "reference", slice=s) for s in (4, 1) for row in middle]
    scan = read(write(tmp_path / "m", lines))
    scale = np.abs(scan.calibration).max(axis=(1, 2, 3)) / np.abs(k[:, middle]).max()
    np.testing.assert_allclose(scale, [3, 3, 3, 6, 6], rtol=1e-6)
    assert "no reference lines of slices 0, 2, 3: those of the nearest slice serve" in notes(scan)


def test_references_of_another_encoding_space(tmp_path: Path) -> None:
    """A coarser matrix, half the oversampling and counters of their own: the same steps in k-space from its centre."""
    k, rows = kspace(), 12
    lines = [line(k[:, row], row) for row in range(0, N, 2)]
    once = fft_centered(ifft_centered(torch.from_numpy(k), (-1,))[..., N // 2 : -N // 2], (-1,))
    for row in range(rows):
        samples = once[:, N // 2 - rows // 2 + row, N // 2 - 8 : N // 2 + 8].numpy()
        lines.append(line(samples, row, "reference", encoding_space_ref=1))
    encodings = [
        mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0)),
        mrd_encoding((16, rows, 1), (200.0, 200.0, 5.0), oversampling=1.0),
    ]
    own = []
    for entry in lines:
        space = entry["at"].pop("encoding_space_ref", 0)
        at = {"kspace_encode_step_1": entry["at"]["row"]}
        flags = ["IS_PARALLEL_CALIBRATION"] * space
        own.append({"data": entry["data"], "at": at, "encoding_space_ref": space, "flags": flags})
    scan = read(mrd_file(tmp_path / "m.h5", own, mrd_header(*encodings)))
    assert notes(scan) == ""
    images, report = reconstructed(scan)
    assert report.details["maps"].startswith("espirit from 12 x ")
    assert min(correlation(images)) > 0.97
    encodings[1] = mrd_encoding((16, rows, 1), (1e-3, 200.0, 5.0), oversampling=1.0)  # a grid of 6 million columns
    hostile = read(mrd_file(tmp_path / "h.h5", own, mrd_header(*encodings)))
    assert hostile.calibration is None
    assert "left out: its field of view along x is 0.001 mm" in notes(hostile)
    encodings[1] = mrd_encoding((16, rows, 1), (200.0, 230.0, 5.0), oversampling=1.0)
    other = read(mrd_file(tmp_path / "n.h5", own, mrd_header(*encodings)))
    assert other.calibration is None
    assert "12 reference lines of encoding space 1 are left out: its field of view along y is 230 mm" in notes(other)


@FORMATS
def test_lines_left_out_in_turn_give_maps_from_their_average(tmp_path: Path, write: Write) -> None:
    k = kspace()
    lines = [line(k[:, row], row, phase=p) for p in range(4) for row in range(p % 2, N, 2)]
    images, report = reconstructed(read(write(tmp_path / "m", lines)))
    assert report.details["maps"].endswith("averaged over time")
    assert len(images) == 4
    assert min(correlation(images)) > 0.98


@FORMATS
@pytest.mark.parametrize(("kept", "share"), [(10, 31), (18, 56)], ids=["before the centre", "past it"])
def test_a_repetition_broken_off_is_named_and_spoils_no_other(
    tmp_path: Path, write: Write, kept: int, share: int
) -> None:
    """Past the centre, its few lines about it must not be all that the others' maps come from."""
    k = kspace()
    lines = [line(k[:, row], row, repetition=r) for r in range(3) for row in range(N if r < 2 else kept)]
    scan = read(write(tmp_path / "m", lines))
    with pytest.warns(UserWarning, match=f"repetition 2: only {share} % of the samples that others have"):
        images, report = reconstruct_mri(scan, CGSense())
    assert report.details["maps"] == "espirit from 24 x 24 samples, averaged over time"
    assert min(correlation(images[:2])) > 0.98


# ---- what lies on one place


@FORMATS
def test_averages_are_those_that_the_counter_counts(tmp_path: Path, write: Write) -> None:
    k = kspace()
    lines = [line((1 + 2 * a) * k[:, row], row, average=a) for a in range(2) for row in range(N)]
    scan = read(write(tmp_path / "m", lines))
    assert len(scan.kspace) == 1
    assert notes(scan) == ""
    np.testing.assert_allclose(np.abs(scan.kspace).sum(), 2 * np.abs(k).sum(), rtol=1e-5)


@FORMATS
def test_readouts_that_no_counter_tells_apart_are_images_in_their_order(tmp_path: Path, write: Write) -> None:
    """Echoes of opposite phase: summed up, the object would vanish."""
    echoes = [sign * kspace() for sign in (1, -1, 1)]
    scan = read(write(tmp_path / "m", [line(k[:, row], row) for k in echoes for row in range(N)]))
    assert scan.labels == ("order 0", "order 1", "order 2")
    assert "3 readouts lie on one place of k-space although the counter of averages does not count them" in notes(scan)
    assert min(correlation(reconstructed(scan)[0])) > 0.98


@pytest.mark.parametrize(
    ("write", "counters", "name"),
    [(twix, ("Ida",), "Ida"), (twix, ("Seg",), "Seg"), (mrd, ("segment",), "segment")],
)
def test_a_counter_that_images_have_no_axis_for_tells_echoes_apart(
    tmp_path: Path, write: Write, counters: tuple[str], name: str
) -> None:
    lines = [line(kspace()[:, row], row, **{counters[0]: e}) for e in range(2) for row in range(N)]
    scan = read(write(tmp_path / "m", lines))
    assert scan.labels == (f"{name} 0", f"{name} 1")
    assert f"told apart by the counter {name}" in notes(scan)


@FORMATS
def test_readouts_of_zeros_are_not_measured(tmp_path: Path, write: Write) -> None:
    k = kspace()
    kept = [row for row in range(N) if row % 2 or abs(row - N // 2) < 7]
    whole = read(write(tmp_path / "a", [line(k[:, row], row) for row in kept]))
    filled = read(write(tmp_path / "b", [line(k[:, row] * (row in kept), row) for row in range(N)]))
    np.testing.assert_array_equal(filled.mask, whole.mask)
    np.testing.assert_array_equal(filled.kspace, whole.kspace)
    assert f"{N - len(kept)} of {N} readouts are exactly zero in every channel" in notes(filled)
    with pytest.raises(DataError, match="all 32 imaging readouts are zero"):
        read(write(tmp_path / "c", [line(0 * k[:, row], row) for row in range(N)]))


@FORMATS
def test_readouts_of_another_coil_are_left_out(tmp_path: Path, write: Write) -> None:
    k, body = kspace(), kspace(channels=2)
    lines = [line(body[:, row], row) for row in range(8)] + [line(k[:, row], row) for row in range(N)]
    scan = read(write(tmp_path / "m", lines))
    assert scan.kspace.shape[1] == COILS
    assert "8 readouts of 2 channels are left out, the image has 4" in notes(scan)
    assert min(correlation(reconstructed(scan)[0])) > 0.98


def test_the_header_says_whose_readouts_are_left_out(tmp_path: Path) -> None:
    """Where the header's number of channels is there, it decides against the majority."""
    k, body = kspace(), kspace(channels=2)
    lines = [line(k[:, row], row) for row in range(N // 2)] + [line(body[:, row], row) for row in range(N)]
    assert read(mrd(tmp_path / "a", lines, channels=COILS)).kspace.shape[1] == COILS
    assert read(mrd(tmp_path / "b", lines)).kspace.shape[1] == 2


@FORMATS
def test_noise_of_another_coil_is_named(tmp_path: Path, write: Write) -> None:
    k = kspace()
    lines = [line(kspace(channels=2)[:, 0], 0, "noise"), *(line(k[:, row], row) for row in range(N))]
    scan = read(write(tmp_path / "m", lines))
    assert scan.noise is None
    assert "1 noise readouts of 2 channels are left out: the image has 4" in notes(scan)


# ---- lines of both directions


def bent(samples: NDArray[np.complex64], slope: float, constant: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Lines whose image has a constant phase per channel and a linear one, as a shift in k-space makes it."""
    x = np.arange(samples.shape[-1]) - samples.shape[-1] // 2
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(samples, axes=-1)), axes=-1)
    image = image * np.exp(1j * (slope * x + constant[:, None]))
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=-1)), axes=-1).astype(np.complex64)


@FORMATS
def test_lines_sampled_backwards_get_the_phase_of_the_others(tmp_path: Path, write: Write) -> None:
    k, constant = kspace(), np.array([0.3, -0.8, 1.9, 0.7])

    def sampled(row: int, backwards: bool, *flags: str) -> Line:
        samples = bent(k[:, row], 0.11, constant)[:, ::-1] if backwards else k[:, row]
        return line(samples, row, *flags, *["backwards"] * backwards)

    image = [sampled(row, row % 2 == 1) for row in range(N)]
    navigators = [sampled(N // 2, i % 2 == 0, "navigator") for i in range(3)]
    scan = read(write(tmp_path / "m", [*navigators, *image]))
    assert scan.metadata["phase_correction"] == "lines of both directions, by 3 navigators"
    beyond = {**navigators[0], "data": navigators[0]["data"][:, 8:], "center": 2}  # ends outside the matrix
    outside = read(write(tmp_path / "o", [*navigators, *image, beyond]))
    np.testing.assert_array_equal(outside.kspace, scan.kspace)
    straight = read(write(tmp_path / "s", [line(k[:, row], row) for row in range(N)]))
    error = np.linalg.norm(scan.kspace - straight.kspace) / np.linalg.norm(straight.kspace)
    assert error < 0.05  # the navigators' noise
    ghosts = read(write(tmp_path / "g", image))
    assert "no lines to correct their phases by: expect a ghost" in notes(ghosts)
    assert np.linalg.norm(ghosts.kspace - straight.kspace) > 0.5 * np.linalg.norm(straight.kspace)


@FORMATS
def test_lines_of_one_direction_are_left_as_they_are(tmp_path: Path, write: Write) -> None:
    k = kspace()
    scan = read(write(tmp_path / "m", [line(k[:, row, ::-1], row, "backwards") for row in range(N)]))
    straight = read(write(tmp_path / "s", [line(k[:, row], row) for row in range(N)]))
    np.testing.assert_array_equal(scan.kspace, straight.kspace)
    assert notes(scan) == ""


# ---- flags


@pytest.mark.parametrize(
    "flags",
    [["SLICE_ACCEL_REFSCAN"], ["SLICE_ACCEL_REFSCAN", "PATREFSCAN"], ["SLICE_ACCEL_PHASCOR", "PHASCOR"],
     ["2NDHADAMARPULSE"], ["FIRST_SCAN_IN_BLADE"], ["SWAPPED"]],
)  # fmt: skip
def test_siemens_flags_of_what_lines_cannot_be_laid_on_a_grid_are_refused(tmp_path: Path, flags: list[str]) -> None:
    k = kspace()
    flag = flags[0]
    lines = [{"data": k[:, row], "at": {"Lin": row}, "center_line": N // 2} for row in range(N)]
    lines[3]["flags"] = flags
    (tmp_path / "m.dat").write_bytes(twix_bytes(lines, PROTOCOL))
    with pytest.raises(DataError, match=f"1 readouts with the flag {flag}: .* not supported"):
        read(tmp_path / "m.dat")


@pytest.mark.parametrize("flag", ["RAWDATACORRECTION", "SCANSCALEFACTOR", "SIGNREV", "RETRO_REPEATTHISHEARTBEAT"])
def test_siemens_flags_that_ask_for_what_is_not_done_are_told(tmp_path: Path, flag: str) -> None:
    k = kspace()
    lines = [{"data": k[:, row], "at": {"Lin": row}, "center_line": N // 2, "flags": [flag]} for row in range(N)]
    (tmp_path / "m.dat").write_bytes(twix_bytes(lines, PROTOCOL))
    assert f"{N} readouts ask for" in notes(read(tmp_path / "m.dat"))


@pytest.mark.parametrize(
    ("flag", "kind"),
    [("PACE", "navigator"), ("RTFEEDBACK", "feedback"), ("PHASESTABSCAN", "phase stabilisation"),
     ("RETRO_DUMMYSCAN", "dummy"), ("CT_NORMALIZE", "dummy")],
)  # fmt: skip
def test_siemens_readouts_that_no_image_is_made_of_are_counted(tmp_path: Path, flag: str, kind: str) -> None:
    k = kspace()
    lines = [{"data": k[:, row], "at": {"Lin": row}, "center_line": N // 2} for row in range(N)]
    plain = tmp_path / "p.dat"
    plain.write_bytes(twix_bytes(lines, PROTOCOL))
    lines.insert(5, {"data": 9 * k[:, 7], "at": {"Lin": 7}, "center_line": N // 2, "flags": [flag]})
    (tmp_path / "m.dat").write_bytes(twix_bytes(lines, PROTOCOL))
    scan = read(tmp_path / "m.dat")
    assert scan.metadata["readouts"] == {"image": N, kind: 1}
    np.testing.assert_array_equal(scan.kspace, read(plain).kspace)


@pytest.mark.parametrize(
    ("flag", "kind"),
    [("IS_NAVIGATION_DATA", "navigator"), ("IS_HPFEEDBACK_DATA", "feedback"), ("IS_RTFEEDBACK_DATA", "feedback"),
     ("IS_DUMMYSCAN_DATA", "dummy"), ("IS_SURFACECOILCORRECTIONSCAN_DATA", "surface-coil correction"),
     ("IS_PHASE_STABILIZATION", "phase stabilisation"), ("IS_PHASE_STABILIZATION_REFERENCE", "phase stabilisation")],
)  # fmt: skip
def test_ismrmrd_readouts_that_no_image_is_made_of_are_counted(tmp_path: Path, flag: str, kind: str) -> None:
    k = kspace()
    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0)))
    lines = [{"data": k[:, row], "at": {"kspace_encode_step_1": row}} for row in range(N)]
    plain = read(mrd_file(tmp_path / "p.h5", lines, header))
    lines.insert(5, {"data": 9 * k[:, 7], "at": {"kspace_encode_step_1": 7}, "flags": [flag]})
    scan = read(mrd_file(tmp_path / "m.h5", lines, header))
    assert scan.metadata["readouts"] == {kind: 1, "image": N}
    np.testing.assert_array_equal(scan.kspace, plain.kspace)


def test_ismrmrd_flags_of_compression_are_refused_and_of_users_told(tmp_path: Path) -> None:
    k = kspace()
    header = mrd_header(mrd_encoding((2 * N, N, 1), (400.0, 200.0, 5.0)))
    lines = [
        {"data": k[:, row], "at": {"kspace_encode_step_1": row}, "flags": ["USER3", "FIRST_IN_SLICE"]}
        for row in range(N)
    ]
    scan = read(mrd_file(tmp_path / "m.h5", lines, header))
    assert "flags that the format does not define (59); they are not looked at" in notes(scan)
    lines[0]["flags"] = ["COMPRESSION2"]
    with pytest.raises(DataError, match="readouts with compressed samples"):
        read(mrd_file(tmp_path / "c.h5", lines, header))


# ---- what a header does not know


def test_a_field_of_view_of_zero_is_not_known(tmp_path: Path) -> None:
    k = kspace()
    lines = [{"data": k[:, row], "at": {"kspace_encode_step_1": row}} for row in range(N)]
    scan = read(mrd_file(tmp_path / "m.h5", lines, mrd_header(mrd_encoding((2 * N, N, 1), (0.0, 0.0, 0.0)))))
    assert scan.readout_oversampling == 2.0
    assert scan.field_of_view == pytest.approx((1e-3 * N, 1e-3 * N, 1e-3))
    assert "field of view is 0, which is taken as not known" in notes(scan)
    assert min(correlation(reconstructed(scan, ZeroFilled())[0])) > 0.85
