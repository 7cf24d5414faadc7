"""One case table per op family, shared by the tests, the benchmarks and ``pyrecon bench``."""

from __future__ import annotations

from pyrecon.testing.cases._case import Case, complex_randn, randn
from pyrecon.testing.cases.anderson import CASES as ANDERSON
from pyrecon.testing.cases.charbonnier import CASES as CHARBONNIER
from pyrecon.testing.cases.consistency import CASES as CONSISTENCY
from pyrecon.testing.cases.deq_mpi import CASES as DEQ_MPI
from pyrecon.testing.cases.epg import CASES as EPG
from pyrecon.testing.cases.fit import CASES as FIT
from pyrecon.testing.cases.joint import CASES as JOINT
from pyrecon.testing.cases.kaczmarz import CASES as KACZMARZ
from pyrecon.testing.cases.langevin import CASES as LANGEVIN
from pyrecon.testing.cases.learned_consistency import CASES as LEARNED_CONSISTENCY
from pyrecon.testing.cases.radon import CASES as RADON
from pyrecon.testing.cases.rdn import CASES as RDN
from pyrecon.testing.cases.rician import CASES as RICIAN
from pyrecon.testing.cases.sense import CASES as SENSE
from pyrecon.testing.cases.sine import CASES as SINE
from pyrecon.testing.cases.variation import CASES as VARIATION

CASES: tuple[Case, ...] = (
    *ANDERSON, *CHARBONNIER, *CONSISTENCY, *DEQ_MPI, *EPG, *FIT, *JOINT, *KACZMARZ, *LANGEVIN, *LEARNED_CONSISTENCY,
    *RADON, *RDN, *RICIAN, *SENSE, *SINE, *VARIATION,
)  # fmt: skip

__all__ = ["CASES", "Case", "complex_randn", "randn"]
