"""Where the suite's time goes, by test file: ``python tests/times.py build/tests.xml``, which ``make test`` writes."""

from __future__ import annotations

import sys
from collections import defaultdict
from xml.etree import ElementTree

rows = [
    (float(case.get("time", 0)), case.get("classname", "").removeprefix("tests."), case.get("name", ""))
    for path in sys.argv[1:] or ["build/tests.xml"]
    for case in ElementTree.parse(path).iter("testcase")
]
files: dict[str, list[float]] = defaultdict(list)
for seconds, file, _ in rows:
    files[file].append(seconds)
print(f"{'file':36}{'tests':>7}{'s':>9}")
for file, times in sorted(files.items(), key=lambda item: -sum(item[1])):
    print(f"{file:36}{len(times):7}{sum(times):9.1f}")
print(f"{'all':36}{len(rows):7}{sum(row[0] for row in rows):9.1f}\n\nthe slowest")
for seconds, file, name in sorted(rows, reverse=True)[:12]:
    print(f"{seconds:8.1f}  {file}::{name}")
