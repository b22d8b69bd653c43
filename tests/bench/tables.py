"""Prints a benchmark's table and keeps it as JSON beside the others. Knows no benchmark."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(os.environ.get("DARKROOM_BENCH_RESULTS", "build/bench"))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def milliseconds(values: Sequence[float]) -> dict[str, float]:
    """Summarize seconds as milliseconds."""
    return {
        "p50_ms": round(statistics.median(values) * 1000, 2),
        "p99_ms": round(percentile(values, 0.99) * 1000, 2),
        "min_ms": round(min(values) * 1000, 2),
        "n": len(values),
    }


def report(name: str, rows: Mapping[str, Mapping[str, object]]) -> None:
    """Print a table, one line per case, and write it to RESULTS."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(len(case) for case in rows)
    print(f"\n{name}\n{'':<{width}}  " + "  ".join(f"{column:>12}" for column in columns))
    for case, row in rows.items():
        print(f"{case:<{width}}  " + "  ".join(f"{row.get(column, '')!s:>12}" for column in columns))
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
