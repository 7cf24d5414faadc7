"""Small ISMRMRD files, sound or not, for tests of the reader and of what is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SPACE = (
    "<matrixSize><x>{0}</x><y>{1}</y><z>{2}</z></matrixSize>"
    "<fieldOfView_mm><x>{3}</x><y>{4}</y><z>{5}</z></fieldOfView_mm>"
)
_LIMITS = (
    "<kspace_encoding_step_{0}><minimum>0</minimum><maximum>{1}</maximum><center>{2}</center>"
    "</kspace_encoding_step_{0}>"
)


def mrd_encoding(
    matrix: tuple[int, int, int] = (8, 6, 1),
    extent: tuple[float, float, float] = (400.0, 300.0, 40.0),
    *,
    oversampling: float = 2.0,
    center: tuple[int, int] | None = None,
    image: tuple[tuple[int, int, int], tuple[float, float, float]] | None = None,
    trajectory: str = "cartesian",
    epi: dict[str, float | str] | None = None,
) -> str:
    """An encoding: encoded matrix and field of view in mm along x, y, z, counters of the centre along y and z.

    ``image`` has matrix and field of view of the image, by default the encoded ones without the readout's oversampling;
    ``epi`` are the parameters of a trajectory's description "ConventionalEPI".
    """
    own = ((round(matrix[0] / oversampling), *matrix[1:]), (extent[0] / oversampling, *extent[1:]))
    center = (matrix[1] // 2, matrix[2] // 2) if center is None else center
    encoded = _SPACE.format(*matrix, *extent)
    asked = _SPACE.format(*[v for sizes in (own if image is None else image) for v in sizes])
    described = "" if epi is None else "<trajectoryDescription><identifier>ConventionalEPI</identifier>" + "".join(
        f"<userParameter{kind}><name>{name}</name><value>{value}</value></userParameter{kind}>"
        for name, value in epi.items() for kind in ["Double" if name == "dwellTime" else "Long"]
    ) + "</trajectoryDescription>"  # fmt: skip
    limits = "".join(_LIMITS.format(i + 1, matrix[i + 1] - 1, center[i]) for i in range(2))
    return (
        f"<encoding><encodedSpace>{encoded}</encodedSpace><reconSpace>{asked}</reconSpace>"
        f"<encodingLimits>{limits}</encodingLimits><trajectory>{trajectory}</trajectory>{described}</encoding>"
    )


def mrd_header(*encodings: str, channels: int | None = None, vendor: str = "", more: str = "") -> str:
    """The whole header."""
    system = f"<systemVendor>{vendor}</systemVendor>" if vendor else ""
    system += "" if channels is None else f"<receiverChannels>{channels}</receiverChannels>"
    return (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"
        f"{''.join(encodings or (mrd_encoding(),))}{more}</ismrmrdHeader>"
    )


def mrd_file(path: Path, lines: Sequence[dict[str, Any]], header: str | None = None) -> Path:
    """A file that the reference package ``ismrmrd`` writes.

    Each line is a dict: ``data`` (channels, samples); optionally ``flags`` (names without ``ACQ_``), ``at`` (counters),
    ``center``, ``position`` and directions as the format names them, and the header's other fields.
    """
    import ismrmrd

    with ismrmrd.Dataset(str(path), mode="w") as file:
        file.write_xml_header((mrd_header() if header is None else header).encode())
        for line in lines:
            acquisition = ismrmrd.Acquisition.from_array(line["data"])
            acquisition.center_sample = line.get("center", line["data"].shape[1] // 2)
            for flag in line.get("flags", ()):
                acquisition.setFlag(getattr(ismrmrd, f"ACQ_{flag}"))
            for name in ("discard_pre", "discard_post", "encoding_space_ref", "sample_time_us"):
                setattr(acquisition, name, line.get(name, 0))
            for name in ("position", "read_dir", "phase_dir", "slice_dir"):
                for i, value in enumerate(line.get(name, ())):
                    getattr(acquisition, name)[i] = value
            for name, value in line.get("at", {}).items():
                if name == "user":
                    for i, number in enumerate(value):
                        acquisition.idx.user[i] = number
                else:
                    setattr(acquisition.idx, name, value)
            file.append_acquisition(acquisition)
    return path


def fastmri_file(path: Path, kspace: Any, *, mask: Any = None, header: str | None = "", **more: Any) -> Path:
    """A fastMRI volume of k-space ``(S, [C,] readout, lines)``; ``header`` None: none, ``more`` are datasets."""
    import h5py

    _, *_, samples, lines = kspace.shape
    if header == "":
        header = mrd_header(mrd_encoding((samples, lines, 1), (2.0 * samples, 1.0 * lines, 5.0)))
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if mask is not None:
            file["mask"] = mask
        if header is not None:
            file["ismrmrd_header"] = header
        for name, values in more.items():
            file[name] = values
    return path
