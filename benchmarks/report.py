"""Tables for people, JSON for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _line(row: dict[str, Any]) -> str:
    cells = [f"  {row['label']:<34}", f"{row['seconds'] * 1e3:>10.1f} ms", f"{row['ratio']:>7.2f}x"]
    if "gflops" in row:
        cells.append(f"{row['gflops']:>7.0f} GF/s {row['share_of_peak']:>5.0%} of peak")
    if "error" in row:
        cells.append(f"  error {row['error']:.0e}")
    if "bar" in row:
        cells.append(f"  wanted {row['bar']:g}x: {'reached' if row['ratio'] >= row['bar'] else 'MISSED'}")
    return " ".join(cells)


def format_case(result: dict[str, Any]) -> str:
    """Lay one race out: medians, and how many times longer than streamcca."""
    head = [result["case"], f"  correct: {result['checked']}; peak {result['peak_gflops']:.0f} GF/s in this run"]
    return "\n".join(head + [_line(row) for row in result["contenders"]])


def format_machine(machine: dict[str, Any]) -> str:
    """One line about where this ran."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    return f"{machine['cpu']}, {machine['threads']} threads, kernels {machine['isa']}; {versions}"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write results; every single time is in them."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)
