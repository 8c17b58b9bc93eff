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
    return " ".join(cells)


def _bar_line(bar: dict[str, Any]) -> str:
    if bar["reached"]:
        return f"  reached: {bar['bar']}: {bar['text']}"
    return f"  MISSED: {bar['bar']}: {bar['text']}, by {abs(1 - bar['measured'] / bar['wanted']):.0%}"


def format_case(result: dict[str, Any]) -> str:
    """Lay one race out: medians, how many times longer than the first, and a verdict for each bar."""
    head = [result["case"], f"  correct: {result['checked']}; peak {result['peak_gflops']:.0f} GF/s in this run"]
    return "\n".join(head + [_line(row) for row in result["contenders"]] + [_bar_line(bar) for bar in result["bars"]])


def format_bars(results: list[dict[str, Any]]) -> str:
    """One line that counts the bars."""
    reached = [bar["reached"] for result in results for bar in result.get("bars", ())]
    return f"{sum(reached)} of {len(reached)} bars reached"


def format_machine(machine: dict[str, Any]) -> str:
    """One line about where this ran."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    return f"{machine['cpu']}, {machine['threads']} threads, kernels {machine['isa']}; {versions}"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write results; every single time is in them."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs/images/percent-of-peak.png"


def committed() -> list[dict[str, Any]]:
    """All committed results."""
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return [result for document in documents for result in document["results"]]


def _of(results: list[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    return [result for result in results if result["benchmark"] == benchmark]


def _plain(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in _of(results, "covariance") if result["case"].startswith("covariance, ")]


def _ratios(result: dict[str, Any], labels: list[str]) -> list[str]:
    rows = {row["label"]: row for row in result["contenders"]}
    return [f"{rows[label]['ratio']:.1f}" if label in rows else "" for label in labels]


def _table(*head: str) -> list[str]:
    return ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _covariance(results: list[dict[str, Any]]) -> list[str]:
    labels = ["numpy X.T @ X, default BLAS", "numpy X.T @ X, Haswell", "scipy ssyrk", "torch.mm(X.T, X)"]
    labels += ["sklearnex covariance", "numpy.cov, default BLAS"]
    head = ["`X.T @ X`", "the same, AVX2 BLAS", "`ssyrk`", "`torch.mm`", "sklearnex", "`np.cov`"]
    plain = _plain(results)
    kinds = {"moments only": "share of peak", "vector kernels": "with vectors"}  # the latter on CPUs with a matrix unit
    there = {row["label"] for result in plain for row in result["contenders"]}
    kinds = {kind: name for kind, name in kinds.items() if f"streamcca, {kind}" in there}
    lines = _table("covariance of", *head, *kinds.values())
    for result in plain:
        shares = {row["label"]: f"{row['share_of_peak']:.0%}" for row in result["contenders"]}
        ours = [shares.get(f"streamcca, {kind}", "") for kind in kinds]
        wanted = [label.replace("ssyrk", "dsyrk") if "float64" in result["case"] else label for label in labels]
        lines.append(_row(result["case"].removeprefix("covariance, "), *_ratios(result, wanted), *ours))
    return lines


def _bfloat16(results: list[dict[str, Any]]) -> list[str]:
    rival = "torch.mm of bfloat16"
    lines = _table("moments of", "streamcca", "with float32 multiply-adds", "`torch.mm`")
    for result in _of(results, "covariance"):
        if result["case"].startswith("bfloat16, "):
            milliseconds = f"{result['contenders'][0]['seconds'] * 1e3:.0f} ms"
            cells = _ratios(result, ["streamcca, float32 multiply-adds", rival])
            lines.append(_row(result["case"].removeprefix("bfloat16, ") + " bfloat16", milliseconds, *cells))
    return lines


def _truncation(results: list[dict[str, Any]]) -> list[str]:
    lines = _table("99 % of a covariance's variance", "streamcca", "`scipy.linalg.eigh`", "`np.linalg.eigh`")
    for result in _of(results, "truncation"):
        seconds = f"{result['contenders'][0]['seconds']:.2f} s"
        kind = result["case"].split(",")[0].removeprefix("truncation of a ")
        width = result["case"].split(",")[1].strip()
        kept = result["checked"].split(",")[0].removeprefix("rank ")
        cells = _ratios(result, ["scipy eigh, default BLAS", "numpy eigh, default BLAS"])
        lines.append(_row(f"{kind}, {width}, {kept} kept", seconds, *cells))
    return lines


def _svcca(results: list[dict[str, Any]]) -> list[str]:
    labels = ["numpy cov + eigh", "numpy float32 X.T @ X + eigh", "numpy SVD"]
    lines = _table("", "streamcca", "`np.cov` + `eigh`", "float32 `X.T @ X` + `eigh`", "SVD", "torch QR + SVD")
    for result in _of(results, "svcca"):
        seconds = f"{result['contenders'][0]['seconds']:.2f} s"
        cells = _ratios(result, [*(f"{label}, default BLAS" for label in labels), "torch QR + SVD"])
        kind = result["case"].split(",")[0].removeprefix("SVCCA of ")
        kept = result["checked"].split("ranks ")[1].split(" ")[0]
        lines.append(_row(f"{kind}, {kept} of 1024 directions kept", seconds, *cells))
    return lines


def _files(results: list[dict[str, Any]]) -> list[str]:
    file = _of(results, "files")[0]
    size, peak = f"{file['bytes'] / 2**30:.0f} GiB", f"{file['peak_bytes'] / 2**20:.0f} MiB"
    return [
        "",
        f"{file['case'].removeprefix('files, ')}, {size}: {file['seconds']:.0f} s, peak memory {peak}, "
        f"{file['speed_of_memory']:.0%} of the speed of the kernel on rows in memory.",
    ]


def markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of README's tables."""
    return [line for part in (_covariance, _bfloat16, _truncation, _svcca, _files) for line in part(results)]


def bars_markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of promises in docs/performance.md; those of a GPU are in docs/cuda.md."""
    lines = _table("race", "promised", "measured", "")
    for result in results:
        if result["benchmark"] == "cuda":
            continue
        for bar in result.get("bars", ()):
            lines.append(_row(result["case"], bar["bar"], bar["text"], "reached" if bar["reached"] else "missed"))
    return lines


def accuracy_markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of errors in docs/numerics.md."""
    lines = _table("rows and products", "largest error", "rms error", "time of the pass")
    for result in _of(results, "accuracy"):
        seconds = f"{result['seconds'] * 1e3:.0f} ms"
        lines.append(_row(result["case"], f"{result['largest']:.1e}", f"{result['rms']:.1e}", seconds))
    return lines


def identification_markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of layer identification in docs/measures.md."""
    lines = _table(
        "measure, rule, rows", "layers identified", "mean similarity of corresponding layers", "chance level"
    )
    for result in _of(results, "identification"):
        numbers = (f"{result['identified']:.0%}", f"{result['similarity']:.2f}", f"{result['chance']:.2f}")
        lines.append(_row(result["case"], *numbers))
    return lines


def wide_markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of routes for very wide layers in docs/which-route.md."""
    lines = _table("route", "keep", "minutes", "peak memory", "disk", "mean correlation", "directions kept")
    for result in _of(results, "wide"):
        for route in result.get("routes", ()):
            memory, disk = f"{route['peak_memory'] / 2**30:.1f} GiB", f"{route['disk'] / 1e9:.1f} GB"
            for rule, found in route["results"].items():
                minutes = f"{route['minutes_shared'] + route['minutes'][rule]:.0f}"
                mean = f"{found['mean']:.8f} +- {found['error_bound']:.1e}"
                lines.append(
                    _row(
                        f"`{route['strategy']}`",
                        rule,
                        minutes,
                        memory,
                        disk,
                        mean,
                        " and ".join(map(str, found["ranks"])),
                    )
                )
    return lines


def cuda_markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of bars in docs/cuda.md."""
    lines = _table("case", "bar", "measured", "reached")
    for result in _of(results, "cuda"):
        for bar in result["bars"]:
            measured = bar["text"].split(" (torch")[0]
            lines.append(_row(result["case"], bar["bar"], measured, "yes" if bar["reached"] else "**no**"))
    return lines


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Percent of the multiply-add peak against the width, one line per contender."""
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for result in _plain(results):
        if "float32" in result["case"]:
            width = int(result["case"].split(" x ")[1].split()[0])
            for row in result["contenders"]:
                lines.setdefault(row["label"], []).append((width, 100 * row["share_of_peak"]))
    top = max(100, 1.06 * max(share for points in lines.values() for _, share in points))
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    ends: list[float] = []
    for label, points in sorted(lines.items(), key=lambda item: -item[1][-1][1]):
        if len(points) < 2:
            continue
        ours = label.startswith("streamcca")
        widths, shares = zip(*points, strict=True)
        (line,) = axes.plot(widths, shares, marker="o", ms=4, lw=2.5 if ours else 1.3, zorder=3 if ours else 2)
        height = min([shares[-1], *(end - 0.042 * top for end in ends)])
        ends.append(height)
        axes.annotate(label, (widths[-1], height), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.texts[-1].set_color(line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks([256, 512, 1024, 2048, 4096], ["256", "512", "1024", "2048", "4096"])
    axes.set_ylim(0, top)
    axes.axhline(100, color="0.6", lw=1, zorder=1)
    axes.set_xlim(230, 16000)
    axes.set_xlabel("width of the view")
    axes.set_ylabel("useful work, % of the vectors' multiply-add peak")
    axes.set_title("Second moments of float32 rows, two threads", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


ROUTES_PICTURE = Path(__file__).parent.parent / "docs/images/routes.png"
_MEMORY = 16 << 30


def _way(width: int, rows: int) -> str:
    import streamcca as sc

    try:
        return sc.plan({"x": width, "y": width}, rows, memory=_MEMORY, kept=100 if width > 100 else 1.0).strategy
    except sc.MemoryLimitError:
        return "nothing"


def draw_routes(path: Path) -> None:
    """Draw which route fits into 16 GiB for two views of one width, by asking the planner."""
    import numpy as np
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    colors = {
        "covariance": "#7fb3d5",
        "replay": "#a9cce3",
        "gram": "#82c99d",
        "sketch": "#f5cb7a",
        "nothing": "#d9d9d9",
    }
    names = list(colors)
    widths, rows = np.geomspace(1e2, 1e7, 61), np.geomspace(1e2, 1e10, 81)
    found = np.array([[names.index(_way(int(d), int(n))) for d in widths] for n in rows])
    figure = Figure(figsize=(7, 5), layout="constrained")
    ax = figure.subplots()
    ax.pcolormesh(widths, rows, found, cmap=ListedColormap(list(colors.values())), vmin=-0.5, vmax=len(names) - 0.5)
    ax.set(xscale="log", yscale="log", xlabel="width of each view d", ylabel="rows n")
    ax.set_title('Route that strategy="auto" takes for two views in 16 GiB', fontsize=11)
    for k, name in enumerate(names):
        inside = np.argwhere(found == k)
        if len(inside) > 0.01 * found.size:
            y, x = np.median(inside, axis=0).astype(int)
            ax.text(widths[x], rows[y], name, ha="center", va="center", fontsize=12)
    figure.savefig(path, dpi=120)
