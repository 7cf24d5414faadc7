"""Pictures of a benchmark run: speed-up bars, the roofline, and time against the sizes of a problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import render
from matplotlib.ticker import LogFormatter, NullFormatter

OURS, RIVAL, GUIDE = "#1f5fa8", "#b0b7bf", "#8a6d3b"


def speed_up(result: Mapping[str, Any], path: Path) -> None:
    """One bar per row: the fastest rival's time over ours."""
    rows = [(name, 1 / row["ratio"], row["best_rival"]) for name, row in result["rows"].items() if "ratio" in row]
    fig, ax = plt.subplots(figsize=(8, 0.24 * len(rows) + 1), layout="constrained")
    names, factors, rivals = zip(*reversed(rows), strict=True)
    ax.barh(range(len(rows)), factors, color=[OURS if f >= 1 else GUIDE for f in factors])
    for i, (factor, rival) in enumerate(zip(factors, rivals, strict=True)):
        ax.text(factor, i, f" {factor:.1f} x {rival}", va="center", fontsize=7)
    ax.set_yticks(range(len(rows)), names, fontsize=7)
    ax.set(xscale="log", xlabel="times faster than the fastest rival", ylim=(-0.6, len(rows) - 0.4))
    ax.set_xlim(right=2.5 * max(factors))
    ax.axvline(1, color="black", lw=0.8)
    _finish(fig, ax, path)


def roofline(result: Mapping[str, Any], path: Path) -> None:
    """Flop/s against flops per byte of ours and the fastest rival, under the two limits of the machine."""
    rows = [r for r in result["rows"].values() if r.get("flops") and r.get("bytes_moved") and "pyrecon" in r["ms"]]
    if not rows:
        return
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    intensity = [row["flops"] / row["bytes_moved"] for row in rows]
    for label, color in (("fastest rival", RIVAL), ("pyrecon", OURS)):
        ms = [row["ms"].get("pyrecon" if color == OURS else row.get("best_rival"), float("nan")) for row in rows]
        rate = [row["flops"] / t / 1e6 for row, t in zip(rows, ms, strict=True)]
        ax.plot(intensity, rate, "o", color=color, label=label)
    rates = rows[0]["rates"]
    grid = [min(intensity) / 2, rates["product"] / rates["copy"], 2 * max(intensity)]
    ax.plot(grid, [min(rates["product"], rates["copy"] * x) / 1e9 for x in grid], color="black", lw=1)
    ax.set(xscale="log", yscale="log", xlabel="flops per byte that must move", ylabel="Gflop/s")
    ax.set_title(
        f"limits: {render.rates_text({'rows': {'': rows[0]}})}; above the slope: data in the cache", fontsize=8
    )
    ax.legend(fontsize=8)
    _finish(fig, ax, path)


def scaling(curves: Mapping[str, Any], path: Path) -> None:
    """Time against one size at a time, with a line of slope one through the last point."""
    fig, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for ax, (title, curve) in zip(axes.flat, curves["curves"].items(), strict=False):
        sizes = curve["sizes"]
        for (name, ms), color in zip(curve["ms"].items(), (OURS, RIVAL), strict=False):
            ax.loglog(sizes, ms, "o-", color=color, label=name, ms=3)
        ours = curve["ms"]["pyrecon"]
        ax.loglog(sizes, [ours[-1] * s / sizes[-1] for s in sizes], ":", color=GUIDE, label="proportional", lw=1)
        for x in curve.get("knees", ()):
            ax.axvline(x, color=GUIDE, lw=0.6)
        ax.set_title(title, fontsize=8)
        ax.set_xlabel(curve["size"], fontsize=8)
        ax.set_ylabel("ms", fontsize=8)
        ax.tick_params(labelsize=7)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(LogFormatter(labelOnlyBase=True))
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes.flat)[len(curves["curves"]) :]:
        ax.set_axis_off()
    axes.flat[0].legend(fontsize=7)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def _finish(fig: Any, ax: Any, path: Path) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, metadata={"Date": None})  # the same numbers, the same file
    plt.close(fig)
