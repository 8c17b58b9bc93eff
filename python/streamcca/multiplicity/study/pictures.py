"""Pictures of a study's representational and predictive multiplicity, from its plain results.

All are drawn 4.7 inches wide, so that a telephone shows their letters at a size that can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
WIDTH = 4.7
SMALL = 8.0


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of the report's width and its axes."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # Not pyplot: it would keep a reference to every figure and may need a display.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def colors_of(names: Sequence[str]) -> dict[str, Any]:
    """Return a color for each name, the same in every picture."""
    require_matplotlib()
    from matplotlib import colormaps

    palette = [*colormaps["tab10"].colors, *colormaps["Dark2"].colors, *colormaps["tab20b"].colors]  # type: ignore[attr-defined]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _known(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _error_bars(rows: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, Any]:
    """Return (2, n) distances from the values to the ends of their intervals, 0 where there is none."""
    values = [_known(row["value"]) for row in rows]
    low = [_known(row.get("low")) for row in rows]
    high = [_known(row.get("high")) for row in rows]
    bars = np.array([np.subtract(values, low), np.subtract(high, values)])
    return np.asarray(np.maximum(np.nan_to_num(bars), 0))


def rm_heat_map(results: Results) -> Figure:
    """Draw RM within (diagonal) and between groups, mean over the layers."""
    names = [group["name"] for group in results["groups"]]
    matrix = np.array(
        [[_known(value) for value in row] for row in results["representational"]["between"]], dtype=np.float64
    )
    cell = min(0.42, 3.1 / len(names))
    figure, ax = new_figure(1.0 + cell * len(names))
    lowest, highest = float(np.nanmin(matrix)), float(np.nanmax(matrix))
    image = ax.imshow(matrix, cmap="YlOrRd", vmin=lowest, vmax=max(lowest + 0.01, highest))
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=SMALL)
    ax.set_yticks(range(len(names)), names, fontsize=SMALL)
    if len(names) <= 20:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                weight = "bold" if i == j else "normal"
                ink = "white" if value > lowest + 0.7 * (highest - lowest) else "black"
                size = min(7.5, 20 * cell)
                ax.text(j, i, f"{value:.2f}"[-3:], ha="center", va="center", color=ink, fontsize=size, weight=weight)
    bar = figure.colorbar(image, ax=ax, shrink=0.8, aspect=25, pad=0.02)
    bar.ax.set_ylabel("distance: 1 - similarity", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def rm_by_layer(results: Results) -> Figure:
    """Draw RM within each group along the depth of the nets, and what chance would leave."""
    groups = results["groups"]
    colors = colors_of([group["name"] for group in groups])
    layers = results["representational"]["layers"]
    figure, ax = new_figure(3.6)
    for group in groups:
        rows = group["rm"]["per_layer"]
        if rows:
            values = [_known(row["value"]) for row in rows]
            ax.plot(
                range(len(layers)), values, marker="o", markersize=3, label=group["name"], color=colors[group["name"]]
            )
    chance = [1 - _known(value) for value in results["representational"]["chance_by_layer"]]
    ax.plot(range(len(layers)), chance, color="0.5", linestyle="--", linewidth=1, label="unrelated (chance)")
    ax.set_xticks(range(len(layers)), layers, fontsize=SMALL)
    ax.set_ylabel("RM within the group", fontsize=9)
    ax.set_ylim(0, 1)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def pm_bars(results: Results) -> Figure:
    """Draw PM of each group on i.i.d. data and, averaged, on each kind of shift."""
    groups = results["groups"]
    kinds = ["iid", *results["data"]["kinds"]]
    colors = colors_of(kinds)
    figure, ax = new_figure(1.3 + 0.1 * (2 + len(kinds)) * len(groups))
    height = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        rows = [group["pm"]["by_kind"][kind] for group in groups]
        at = np.arange(len(groups)) + (k - (len(kinds) - 1) / 2) * height
        label = "i.i.d." if kind == "iid" else f"{kind} (mean of strengths)"
        ax.barh(at, [_known(row["value"]) for row in rows], height, color=colors[kind], label=label)
        ax.errorbar(
            [_known(row["value"]) for row in rows], at, xerr=_error_bars(rows), fmt="none", ecolor="0.25", linewidth=0.8
        )
    ax.set_yticks(range(len(groups)), [group["name"] for group in groups], fontsize=SMALL)
    ax.set_ylim(len(groups) - 0.45, -0.55)
    ax.set_xlim(left=0)
    ax.set_xlabel(results["predictive"]["title"], fontsize=9)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def pm_by_strength(results: Results) -> Figure:
    """Draw mean PM and mean accuracy against the strength of each shift."""
    strengths = results["data"]["strengths"]
    figure, axes = new_figure(2.7, 1, 2)
    colors = colors_of(["iid", *results["data"]["kinds"]])
    for ax, field, title in ((axes[0], "pm", results["predictive"]["short"]), (axes[1], "accuracy", "accuracy")):
        for kind in results["data"]["kinds"]:
            rows = [results["by_set"]["iid"], *(results["by_set"][f"{kind}-{strength}"] for strength in strengths)]
            ax.plot(
                [0, *strengths],
                [_known(row[field]) for row in rows],
                marker="o",
                markersize=3,
                label=kind,
                color=colors[kind],
            )
        ax.set_xlabel("strength of the shift", fontsize=9)
        ax.set_title(f"{title}, mean of all groups", fontsize=9)
        ax.set_xticks([0, *strengths], ["i.i.d.", *map(str, strengths)], fontsize=SMALL)
        ax.set_ylim(bottom=0)
        ax.tick_params(labelsize=SMALL)
    axes[0].legend(fontsize=SMALL, frameon=False)
    return figure


def rm_against_pm(results: Results) -> Figure:
    """Draw groups by RM and PM, i.i.d. and out of distribution, with intervals and the correlation."""
    groups = [group for group in results["groups"] if group["rm"]["mean"] is not None]
    colors = colors_of([group["name"] for group in results["groups"]])
    tests = [("iid", "i.i.d. test set"), ("ood", "out of distribution")]
    tests = [(which, title) for which, title in tests if which in results["association"]]
    figure, axes = new_figure(3.9, 1, len(tests), sharex=True, squeeze=False)
    axes = axes[0]
    for ax, (which, title) in zip(axes, tests, strict=True):
        for group in groups:
            rm, pm = group["rm"]["mean"], group["pm"]["by_kind"][which]
            ax.errorbar(
                _known(rm["value"]),
                _known(pm["value"]),
                xerr=_error_bars([rm]),
                yerr=_error_bars([pm]),
                fmt="o",
                markersize=4,
                linewidth=0.8,
                color=colors[group["name"]],
                label=group["name"],
            )
        ax.set_title(f"{title}\n{correlation_text(results, which)}", fontsize=7.5)
        ax.set_xlabel("RM", fontsize=9)
        ax.tick_params(labelsize=SMALL)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel(results["predictive"]["short"], fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def correlation_text(results: Results, which: str) -> str:
    """Say the correlation of RM and PM over groups in a few words."""
    found = results["association"][which]["groups"]["spearman"]
    if found["value"] is None:
        return found.get("reason") or "no correlation"
    text = f"Spearman {found['value']:+.2f}"
    return text + ("" if found["low"] is None else f" ({found['low']:+.2f} to {found['high']:+.2f})")


def pairs_plane(results: Results) -> Figure:
    """Draw every two models: distance of their insides against how often they disagree."""
    figure, ax = new_figure(3.2)
    within = [pair for pair in results["pairs"] if pair["groups"][0] == pair["groups"][1]]
    between = [pair for pair in results["pairs"] if pair["groups"][0] != pair["groups"][1]]
    for pairs, color, label in ((between, "0.72", "of two groups"), (within, "tab:blue", "of one group")):
        x = [_known(pair["distance"]) for pair in pairs]
        y = [_known(pair["pm"]) for pair in pairs]
        ax.scatter(x, y, s=7, color=color, label=f"{label} ({len(pairs)})", linewidths=0)
    ax.set_xlabel("distance of the insides (mean over layers)", fontsize=9)
    ax.set_ylabel(results["predictive"]["short"], fontsize=9)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=SMALL, frameon=False)
    ax.tick_params(labelsize=SMALL)
    return figure


def predictor_curves(results: Results) -> Figure:
    """Draw how well RM, PM and both foretell a target in groups left out, against models and probe rows."""
    curves = results["predictors"]["curves"]
    figure, axes = new_figure(2.9, 1, 2, sharey=True)
    styles = {"rm": ("tab:red", "RM"), "pm": ("tab:blue", "PM"), "both": ("tab:purple", "both")}
    lowest = 0.0
    from matplotlib.ticker import MaxNLocator

    for ax, field, label in ((axes[0], "models", "models of a group"), (axes[1], "rows", "probe rows")):
        for key, (color, name) in styles.items():
            rows = curves[field].get(key, [])
            x = [row["count"] for row in rows]
            y = np.array([_known(row["value"]) for row in rows])
            spread = np.array([_known(row.get("sd")) for row in rows])
            ax.plot(x, y, color=color, label=name, marker="o", markersize=3)
            ax.fill_between(
                x, y - np.nan_to_num(spread), y + np.nan_to_num(spread), color=color, alpha=0.12, linewidth=0
            )
            if np.isfinite(y).any():
                lowest = min(lowest, float(np.nanmin(y)))
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(label, fontsize=9)
        ax.tick_params(labelsize=SMALL)
    axes[0].set_ylim(max(-1.5, lowest - 0.1), 1.05)
    axes[0].set_ylabel("R2 in groups left out", fontsize=9)
    axes[0].legend(fontsize=SMALL, frameon=False)
    figure.suptitle(results["predictors"]["curves_title"], fontsize=9)
    return figure


def group_card(results: Results, group: Mapping[str, Any]) -> Figure:
    """Draw RM along the layers beside PM on every test set of one group; gray: all groups."""
    figure, axes = new_figure(2.3, 1, 2)
    color = colors_of([one["name"] for one in results["groups"]])[group["name"]]
    layers = results["representational"]["layers"]
    sets = [one["name"] for one in results["data"]["sets"]]
    for other in results["groups"]:
        mine = other["name"] == group["name"]
        style: dict[str, Any] = {
            "color": color if mine else "0.8",
            "linewidth": 2 if mine else 0.7,
            "zorder": 3 if mine else 1,
        }
        if other["rm"]["per_layer"]:
            axes[0].plot([_known(row["value"]) for row in other["rm"]["per_layer"]], **style)
        axes[1].plot([_known(other["pm"]["by_set"][name]["value"]) for name in sets], **style)
    axes[0].set_xticks(range(len(layers)), layers, fontsize=7, rotation=30, ha="right", rotation_mode="anchor")
    axes[0].set_ylim(0, 1)
    axes[0].set_title("insides: RM", fontsize=9)
    axes[1].set_xticks(range(len(sets)), sets, fontsize=6, rotation=60, ha="right", rotation_mode="anchor")
    axes[1].set_ylim(bottom=0)
    axes[1].set_title(f"answers: {results['predictive']['short']}", fontsize=9)
    for ax in axes:
        _quiet(ax)
    return figure


def contested_images(results: Results) -> Figure:
    """Draw the images on which models differ most, with what they answer and how many say so."""
    rows = sorted((row for row in results["contested"] if row["image"] is not None), key=lambda row: -row["pm"])[:12]
    lines = -(-len(rows) // 4)
    figure, axes = new_figure(0.2 + 1.5 * lines, lines, 4, squeeze=False)
    for ax, row in zip(axes.ravel(), rows, strict=False):
        image = np.moveaxis(np.array(row["image"]), 0, -1)
        ax.imshow(image[..., 0] if image.shape[-1] != 3 else image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"label {row['label']}\n{_cut(row['answers'])}", fontsize=7, parse_math=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    return figure


def _cut(text: str, most: int = 22) -> str:
    parts = text.split(", ")
    while len(", ".join(parts)) > most and len(parts) > 1:
        parts.pop()
    return ", ".join(parts) + (", ..." if len(", ".join(parts)) < len(text) else "")


def _quiet(ax: Axes) -> None:
    ax.tick_params(axis="y", labelsize=7)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
