"""No call kills the process: hundreds of wrong uses in a subprocess whose signals are counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

EXAMPLES = 1000


def test_no_misuse_ends_in_a_signal_or_a_raw_error(tmp_path: Path) -> None:
    log = tmp_path / "cases"
    script = Path(__file__).with_name("misuse.py")
    done = subprocess.run(
        [sys.executable, str(script), str(EXAMPLES), str(log)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    cases = log.read_text().splitlines() if log.exists() else ["none"]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise AssertionError(f"{name} after {len(cases)} cases, in {cases[-1]}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= EXAMPLES
