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


def _ratios(result: dict[str, Any], labels: list[str]) -> list[str]:
    rows = {row["label"]: row for row in result["contenders"]}
    return [f"{rows[label]['ratio']:.1f}" if label in rows else "" for label in labels]


def markdown(folder: Path) -> list[str]:
    """Return the lines of README's tables, from the committed results."""
    names = ("covariance", "truncation", "svcca", "files")
    covariance, truncation, svcca, files = (
        json.loads((folder / f"{name}.json").read_text())["results"] for name in names
    )
    labels = ["numpy X.T @ X, default BLAS", "numpy X.T @ X, Haswell", "torch.mm(X.T, X)", "numpy.cov, default BLAS"]
    lines = [
        "| covariance of | moments only | `X.T @ X` | the same, AVX2 BLAS | `torch.mm` | `np.cov` | share of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in covariance:
        share = f"{result['contenders'][0]['share_of_peak']:.0%}"
        cells = _ratios(result, ["streamcca, moments only", *labels])
        lines.append(f"| {result['case'].removeprefix('covariance, ')} | " + " | ".join([*cells, share]) + " |")
    lines += [
        "",
        "| 99 % of a covariance's variance | streamcca | `scipy.linalg.eigh` | `np.linalg.eigh` |",
        "|---" * 4 + "|",
    ]
    for result in truncation:
        seconds = f"{result['contenders'][0]['seconds']:.2f} s"
        kind = result["case"].split(",")[0].removeprefix("truncation of a ")
        width = result["case"].split(",")[1].strip()
        kept = result["checked"].split(",")[0].removeprefix("rank ")
        cells = _ratios(result, ["scipy eigh, default BLAS", "numpy eigh, default BLAS"])
        lines.append(f"| {kind}, {width}, {kept} kept | " + " | ".join([seconds, *cells]) + " |")
    labels = ["numpy cov + eigh", "numpy float32 X.T @ X + eigh", "numpy SVD"]
    lines += [
        "",
        "| | streamcca | `np.cov` + `eigh` | float32 `X.T @ X` + `eigh` | SVD | torch QR + SVD |",
        "|---" * 6 + "|",
    ]
    for result in svcca:
        seconds = f"{result['contenders'][0]['seconds']:.2f} s"
        cells = _ratios(result, [*(f"{label}, default BLAS" for label in labels), "torch QR + SVD"])
        kind = result["case"].split(",")[0].removeprefix("SVCCA of ")
        kept = result["checked"].split("ranks ")[1].split(" ")[0]
        lines.append(f"| {kind}, {kept} of 1024 directions kept | " + " | ".join([seconds, *cells]) + " |")
    file = files[0]
    size, peak = f"{file['bytes'] / 2**30:.0f} GiB", f"{file['peak_bytes'] / 2**20:.0f} MiB"
    lines += [
        "",
        f"{file['case'].removeprefix('files, ')}, {size}: {file['seconds']:.0f} s, peak memory {peak}, "
        f"{file['speed_of_memory']:.0%} of the speed of the kernel on rows in memory.",
    ]
    return lines
