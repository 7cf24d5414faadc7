"""Reading raw data and writing images.

``detect`` tells what a file is, ``read`` reads whatever it is, and ``mdf``, ``ismrmrd``, ``twix``, ``fastmri``,
``kspace_array``, ``htc``, ``data_exchange``, ``sinogram`` and ``results`` have the readers and writers of each format.
Everything a reader gets is taken for damaged or hostile until checked; every failure is one
:class:`pyrecon._errors.DataError` that names the file, the field, what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan
from pyrecon.data.raw import MPICalibration, MPIScan, MRIScan
from pyrecon.io._detect import detect
from pyrecon.io._files import PathLike, written_whole
from pyrecon.io.results import Result, read_result, write_result

__all__ = ["Result", "detect", "read", "read_result", "write_result", "written_whole"]


def read(path: PathLike) -> MPIScan | MPICalibration | MRIScan | CTScan | Result:
    """Read a file by its content: raw data into its container, an image into a :class:`Result`.

    Raises DataError if the format is unknown, known but not read by pyrecon, or the file is damaged.
    """
    from pyrecon.io import data_exchange, fastmri, htc, ismrmrd, kspace_array, mdf, sinogram, twix

    readers: dict[str, Callable[[PathLike], MPIScan | MPICalibration | MRIScan | CTScan | Result]] = {
        "mdf-measurement": mdf.read_measurement,
        "mdf-system-matrix": mdf.read_system_matrix,
        "ismrmrd": ismrmrd.read_ismrmrd,
        "fastmri": fastmri.read_fastmri,
        "twix": twix.read_twix,
        "bart": kspace_array.read_kspace_array,
        "kspace-array": kspace_array.read_kspace_array,
        "htc": htc.read_htc,
        "data-exchange": data_exchange.read_data_exchange,
        "sinogram": sinogram.read_sinogram,
        "pyrecon-image": read_result,
        "nifti": read_result,
        "npz": read_result,
        "png": read_result,
    }
    kind = detect(path)
    if kind not in readers:
        raise DataError(f"{path}: is a {kind} file, which pyrecon does not read; expected {', '.join(readers)}")
    return readers[kind](path)
