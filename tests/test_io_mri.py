"""ISMRMRD and Siemens raw data: where each line goes, what is left out, what the reference packages make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyrecon.data.raw import MRIScan
from pyrecon.io import detect, read

SIEMENS = Path(__file__).parents[2] / "shared/data/siemens_gre_2coils.dat"


@pytest.mark.skipif(not SIEMENS.exists(), reason="no real twix file beside the checkout")
def test_the_real_siemens_scan() -> None:
    assert detect(SIEMENS) == "twix"
    scan = read(SIEMENS)
    assert isinstance(scan, MRIScan)
    assert scan.kspace.shape == (1, 2, 160, 320)
    assert scan.mask.all()
    assert scan.readout_oversampling == 2.0
    assert scan.field_of_view == (0.2, 0.2, 0.004)
    assert np.unravel_index(np.abs(scan.kspace[0, 0]).argmax(), (160, 320)) == (80, 160)
