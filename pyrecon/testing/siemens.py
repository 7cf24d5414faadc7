"""Small Siemens raw-data files, sound or not, for tests of readers and of what is built on them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np


def twix_bytes(
    lines: Sequence[dict[str, Any]],
    protocol: str = "",
    parts: dict[str, str] | None = None,
    ve: bool = True,
    count: int = 1,
) -> bytes:
    """The content of a raw-data file with one measurement.

    Each line is a dict: ``data`` (channels, samples); optionally ``flags`` (names of twixtools), ``at`` (counters),
    ``center``, ``center_line``, ``center_partition``, ``cut`` (samples to drop at both ends), ``rotation``
    (quaternion), ``position`` (mm) and ``length`` (what the header claims). ``protocol`` is the text of MeasYaps,
    ``parts`` further parts by name. ``ve`` chooses the layout of VD and later scanners, else that of VB; ``count``
    repeats the table's entry.
    """
    from twixtools import mdh_def

    head = b""
    parts = {"MeasYaps": protocol, **(parts or {})}
    for name, text in parts.items():
        head += name.encode() + b"\0" + len(text).to_bytes(4, "little") + text.encode("latin1")
    head += bytes(-(len(head) + 8) % 32)
    head = (len(head) + 8).to_bytes(4, "little") + len(parts).to_bytes(4, "little") + head
    if not ve:
        head = (10_240).to_bytes(4, "little") + head[4:] + bytes(10_240 - len(head))
    body = b""
    for number, line in enumerate([*lines, {"flags": ["ACQEND"], "data": np.zeros((1, 16), np.complex64)}]):
        data = np.asarray(line["data"], np.complex64)
        header = mdh_def.Scan_header() if ve else mdh_def.VB17_header()
        header.ScanCounter, header.UsedChannels, header.SamplesInScan = number + 1, *data.shape
        header.CenterCol, header.CenterLin = line.get("center", data.shape[1] // 2), line.get("center_line", 0)
        header.CenterPar = line.get("center_partition", 0)
        header.CutOff.Pre, header.CutOff.Post = line.get("cut", (0, 0))
        for name, value in line.get("at", {}).items():
            setattr(header.Counter, name, value)
        for i, value in enumerate(line.get("rotation", (0, 0, 0, 0))):
            header.SliceData.Quaternion[i] = value
        for name, value in zip(("Sag", "Cor", "Tra"), line.get("position", (0, 0, 0)), strict=True):
            setattr(header.SliceData.SlicePos, name, value)
        for flag in line.get("flags", ()):
            mdh_def.add_flag(header, flag)
        channel = ctypes.sizeof(mdh_def.Channel_header if ve else mdh_def.VB17_header)
        length = len(data) * (channel + 8 * data.shape[1]) + ctypes.sizeof(mdh_def.Scan_header) if ve else 0
        header.FlagsAndDMALength = line.get("length", length)
        if ve:
            body += bytes(header)
        for values in data:
            body += (bytes(mdh_def.Channel_header()) if ve else bytes(header)) + values.tobytes()
    if not ve:
        return head + body
    start = 8 + 152 * 64 + 504  # 10240
    table = (0).to_bytes(4, "little") + count.to_bytes(4, "little")
    entry = bytes(8) + start.to_bytes(8, "little") + (len(head) + len(body)).to_bytes(8, "little") + bytes(128)
    return (table + entry * count).ljust(start, b"\0") + head + body
