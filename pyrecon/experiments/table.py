"""A comparison of methods: mean and spread of image quality per column, beside published figures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyrecon._plain import plain
from pyrecon.report import versions


@dataclass
class Row:
    """One method with one kind of settings.

    ``psnr`` (dB) and ``ssim`` hold one number per test image for each column; ``milliseconds`` the time per image, all
    test images at once and one alone; ``published`` holds mean and standard deviation of pSNR in dB and of SSIM in
    percent.
    """

    method: str
    kind: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    psnr: dict[str, list[float]] = field(default_factory=dict)
    ssim: dict[str, list[float]] = field(default_factory=dict)
    published: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    milliseconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def mean_psnr(self, column: str) -> float:
        return float(np.mean(self.psnr[column]))


@dataclass
class Table:
    """Rows, how the data came about (``facts``), and what a reader must know (``notes``)."""

    title: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def row(self, method: str, kind: str) -> Row:
        """The row, made if it is not there yet."""
        for row in self.rows:
            if (row.method, row.kind) == (method, kind):
                return row
        self.rows.append(Row(method, kind))
        return self.rows[-1]

    def order(self, kind: str, column: str) -> list[str]:
        """Methods from the highest mean pSNR to the lowest."""
        rows = [row for row in self.rows if row.kind == kind and column in row.psnr]
        return [row.method for row in sorted(rows, key=lambda row: -row.mean_psnr(column))]

    def to_markdown(self, level: int = 1) -> str:
        """A section with the table, the settings behind it, facts and notes; ``level`` of its heading."""
        heads = [f"{c}, {what}" for c in self.columns for what in ("here", "published")]
        lines = [f"{'#' * level} {self.title}", "", *(f"- {name}: {text}" for name, text in self.facts.items()), ""]
        lines += ["pSNR in dB / SSIM in %, mean ± standard deviation over the test images.", ""]
        lines += ["| method | settings | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
        for row in self.rows:
            cells = [cell for c in self.columns for cell in (_measured(row, c), _published(row, c))]
            lines.append(f"| {row.method} | {row.kind} | " + " | ".join(cells) + " |")
        lines += [
            "",
            "| method | settings | " + " | ".join(self.columns) + " |",
            "|---|---|" + "---|" * len(self.columns),
        ]
        for row in self.rows:
            if any(row.settings.values()):
                cells = [
                    ", ".join(f"{k} {_short(v)}" for k, v in row.settings.get(c, {}).items()) for c in self.columns
                ]
                lines.append(f"| {row.method} | {row.kind} | " + " | ".join(cells) + " |")
        if any(row.milliseconds for row in self.rows):
            lines += ["", "Milliseconds per image, all test images at once / one alone.", ""]
            lines += [
                "| method | settings | " + " | ".join(self.columns) + " |",
                "|---|---|" + "---|" * len(self.columns),
            ]
            for row in self.rows:
                cells = [" / ".join(f"{ms:.3g}" for ms in row.milliseconds.get(c, ())) for c in self.columns]
                lines.append(f"| {row.method} | {row.kind} | " + " | ".join(cells) + " |")
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """One line per method, kind and column."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        heads = ["method", "settings", "column", "psnr_mean", "psnr_std", "ssim_mean", "ssim_std", "images", "values"]
        writer.writerow([*heads, "ms_together", "ms_alone"])
        for row in self.rows:
            for column in self.columns:
                if column in row.psnr:
                    p, s = np.array(row.psnr[column]), np.array(row.ssim[column])
                    numbers = [f"{v:.4f}" for v in (p.mean(), p.std(), s.mean(), s.std())]
                    settings = json.dumps(plain(row.settings.get(column, {})))
                    times = [f"{ms:.4g}" for ms in row.milliseconds.get(column, ())] or ["", ""]
                    writer.writerow([row.method, row.kind, column, *numbers, len(p), settings, *times])
        return buffer.getvalue()

    def to_json(self) -> str:
        """Everything, every image's numbers included."""
        return json.dumps(plain(self) | {"versions": versions()}, indent=1)


@dataclass
class Listing:
    """Any table: its heads and lines of text."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def to_markdown(self, level: int = 1) -> str:
        text = [f"{'#' * level} {self.title}", "", _bar(self.heads), "|" + "---|" * len(self.heads)]
        text += [_bar(line) for line in self.lines]
        return "\n".join([*text, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def to_csv(self) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.heads, *self.lines])
        return buffer.getvalue()


def _bar(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _measured(row: Row, column: str) -> str:
    if column not in row.psnr:
        return ""
    p, s = np.array(row.psnr[column]), 100 * np.array(row.ssim[column])
    return f"{p.mean():.1f}±{p.std():.1f} / {s.mean():.1f}±{s.std():.1f}"


def _published(row: Row, column: str) -> str:
    if column not in row.published:
        return ""
    p, p_std, s, s_std = row.published[column]
    return f"{p}±{p_std} / {s}±{s_std}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
