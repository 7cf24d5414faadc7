"""Turn pytest-benchmark's JSON into ``benchmarks/results/<device>.json`` and ``docs/benchmarks.md``.

    pytest benchmarks --benchmark-enable --benchmark-json=build/benchmark.json
    python benchmarks/render.py build/benchmark.json

``--add`` joins the rows of a run of some benchmarks to those of an earlier run on the same machine with the same
versions, in the place of those of the same name.

``python benchmarks/render.py NEW.json --compare benchmarks/results/cpu.json`` lists rows whose ratio to the best rival
got worse by more than 15 %, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READ = "plain read"  # of the work's bytes, timed beside a row: not a rival
WORSE = 1.15  # runs of the same code differ by 6 to 10 %


def condense(report: dict[str, Any]) -> dict[str, Any]:
    """One entry per row: milliseconds of every implementation, ours over the best rival, and the goal."""
    rows: dict[str, dict[str, Any]] = {}
    for benchmark in report["benchmarks"]:
        extra, stats = benchmark["extra_info"], benchmark["stats"]
        row = rows.setdefault(benchmark["group"], {"ms": {}, "min_ms": {}, "device": extra["device"]})
        row["ms"][extra["impl"]] = stats["median"] * 1e3
        row["min_ms"][extra["impl"]] = stats["min"] * 1e3
        for key in ("goal", "bytes_moved", "flops", "rates", "quick"):
            if extra.get(key):
                row[key] = extra[key]
    for row in rows.values():
        rivals = {name: ms for name, ms in row["ms"].items() if name not in ("pyrecon", READ)}
        if rivals and "pyrecon" in row["ms"]:
            row["best_rival"] = min(rivals, key=rivals.__getitem__)
            row["ratio"] = row["ms"]["pyrecon"] / rivals[row["best_rival"]]
        bound = roofline_ms(row)
        if bound is not None and "pyrecon" in row["ms"]:
            row["roofline"] = bound / row["ms"]["pyrecon"]
    info = report["machine_info"]
    cpu = info.get("cpu", {})
    machine = {
        "cpu": cpu.get("brand_raw", info.get("processor", "unknown")),
        "isa": info.get("isa"),
        "threads": info.get("threads"),
        "gpu": info.get("gpu"),
        "python": info.get("python_version"),
        "versions": info.get("versions", {}),
    }
    return {"machine": machine, "rows": rows}


def roofline_ms(row: dict[str, Any]) -> float | None:
    """The least time of a row by its bytes and flops, at the rates of a large copy and a large matrix product."""
    rates = row.get("rates")
    if not rates or not (row.get("bytes_moved") or row.get("flops")):
        return None
    return 1e3 * max((row.get("bytes_moved") or 0) / rates["copy"], (row.get("flops") or 0) / rates["product"])


def reached(row: dict[str, Any]) -> bool | None:
    """Whether a row meets its goal; None without a goal."""
    goal = row.get("goal")
    ours = row["ms"].get("pyrecon")
    if not goal or ours is None:
        return None
    if "ms" in goal:
        return bool(ours <= goal["ms"])
    rival = row["ms"].get(goal.get("against", row.get("best_rival")))
    return None if rival is None else bool(ours <= goal["ratio"] * rival)


def goal_text(goal: dict[str, Any] | None) -> str:
    if not goal:
        return ""
    if "ms" in goal:
        return f"{goal['ms']:g} ms"
    return f"{goal['ratio']:.3g} x {goal.get('against', 'best')}"


COLUMNS = ("work", "pyrecon, ms", "best rival, ms", "ratio", "goal", "reached", "roofline")


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows, as text under :data:`COLUMNS`."""
    table: list[tuple[str, ...]] = []
    for name, row in result["rows"].items():
        ours, rival = row["ms"].get("pyrecon"), row.get("best_rival")
        if ours is None:
            continue
        against = f"{row['ms'][rival]:.3g} ({rival})" if rival else ""
        ratio = f"{row['ratio']:.2g}" if rival else ""
        verdict = {True: "yes", False: "no", None: ""}[reached(row)]
        share = f"{100 * row['roofline']:.0f} %" if "roofline" in row else ""
        if READ in row["ms"]:
            share += f"; {READ} {100 * row['ms'][READ] / ours:.0f} %"
        work = f"{name} (quick)" if row.get("quick") else name
        table.append((work, f"{ours:.3g}", against, ratio, goal_text(row.get("goal")), verdict, share))
    return table


def rates_text(result: dict[str, Any]) -> str:
    rates = next((row["rates"] for row in result["rows"].values() if "rates" in row), None)
    return f"{rates['copy'] / 1e9:.1f} GB/s and {rates['product'] / 1e9:.0f} Gflop/s" if rates else "not measured"


def where(result: dict[str, Any]) -> str:
    """Machine, kernels, threads and versions in one line."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return (
        f"{machine['gpu'] or machine['cpu']}, kernels {machine['isa']}, {machine['threads']} threads; {versions}, "
        f"Python {machine['python']}"
    )


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Every answer is asserted against the float64 reference before it is timed. Both sides get the same threads, "
        "dtype and reused buffers. Times are medians; the ratio is ours over the fastest rival.",
        "",
        f"Measured on: {where(result)}. On your machine: `pyrecon bench`; in a checkout `make bench` writes this page.",
        "",
        "Goals were set on a processor with AVX-512; goals in milliseconds do not carry over to another machine, goals "
        "in ratios do. The last column is the least time by the work's bytes and flops, at the rates of a large copy "
        f"and a large matrix product in the row's own run ({rates_text(result)}), over our time: above 100 % where the "
        "data stay in the cache. Where it says so, a plain read of the work's bytes in the same run stands beside it.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(row) + " |" for row in cells(result)),
    ]
    return "\n".join([*lines, ""])


def regressions(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Rows whose ratio to the best rival got worse; ratios, because machines differ and drift."""
    found = []
    for name, row in new["rows"].items():
        before = old["rows"].get(name, {}).get("ratio")
        if before and row.get("ratio", 0) > WORSE * before:
            found.append(f"{name}: ratio {before:.2f} -> {row['ratio']:.2f}")
    return found


def joined(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The rows of both, the new one where a row is in both; ValueError for those of two machines."""
    if new["machine"] != old["machine"]:
        raise ValueError(f"measured on {where(new)}, the page on {where(old)}: run all benchmarks")
    return {"machine": old["machine"], "rows": old["rows"] | new["rows"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--add", action="store_true", help="to the rows that are there, of the same machine")
    parser.add_argument("--compare", type=Path, help="an earlier benchmarks/results/<device>.json")
    arguments = parser.parse_args()
    result = condense(json.loads(arguments.report.read_text()))
    if arguments.compare:
        found = regressions(result, json.loads(arguments.compare.read_text()))
        print("\n".join(found) or "no regression")
        return 1 if found else 0
    device = result["machine"]["gpu"]
    name = re.sub(r"\W+", "-", device.lower()) if device else "cpu"
    (ROOT / "benchmarks/results").mkdir(exist_ok=True)
    if arguments.add:
        result = joined(result, json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()))
    (ROOT / f"benchmarks/results/{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    import plots

    static = ROOT / "docs/_static"
    plots.speed_up(result, static / f"speed-up-{name}.svg")
    plots.roofline(result, static / f"roofline-{name}.svg")
    scaling = ROOT / f"benchmarks/results/scaling-{name}.json"
    pictures = [f"![Speed-up over the fastest rival](_static/speed-up-{name}.svg)"]
    pictures += [f"![Roofline](_static/roofline-{name}.svg)"]
    if scaling.exists():
        plots.scaling(json.loads(scaling.read_text()), static / f"scaling-{name}.svg")
        pictures += [f"![Time against the sizes of the problem](_static/scaling-{name}.svg)"]
    notes = ROOT / "docs/benchmark_notes.md"  # what the numbers mean, written by hand
    text = "\n".join([markdown(result), *(f"{picture}\n" for picture in pictures), notes.read_text()])
    (ROOT / "docs/benchmarks.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
