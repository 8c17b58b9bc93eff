"""Pictures of what differently trained models know (arXiv 2110.12899), from a study's plain results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.multiplicity.study.pictures import SMALL, Results, colors_of, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES = {
    "both right": "0.75",
    "both wrong": "0.15",
    "only the base": "tab:blue",
    "only the other": "tab:orange",
}


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def rung_colors(results: Results) -> dict[str, Any]:
    """Return a color for each rung of the ladder."""
    from matplotlib import colormaps

    rungs = [rung["rung"] for rung in results["ladder"]["rungs"]]
    return dict(zip(rungs, colormaps["viridis"](np.linspace(0, 0.88, max(2, len(rungs)))), strict=False))


def _rung_axis(ax: Axes, rungs: Sequence[Mapping[str, Any]]) -> None:
    ax.set_xticks(range(len(rungs)), [rung["rung"] for rung in rungs], rotation=25, ha="right", rotation_mode="anchor")
    ax.tick_params(labelsize=SMALL)
    ax.set_xlim(-0.5, len(rungs) - 0.5)


def ladder(results: Results) -> Figure:
    """Draw error inconsistency, ensemble gain, conversion rate and distance of the insides along the ladder."""
    rungs = results["ladder"]["rungs"]
    colors = rung_colors(results)
    figure, axes = new_figure(5.0, 2, 2)
    panels = (
        ("error_inconsistency", "error inconsistency"),
        ("improvement_mean", "gain of the pair over its mean"),
        ("conversion", "conversion rate"),
        ("distance", "distance of the insides"),
    )
    for ax, (field, title) in zip(axes.ravel(), panels, strict=True):
        for i, rung in enumerate(rungs):
            values = [_number(pair[field]) for pair in rung["pairs"]]
            spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
            ax.scatter(i + np.asarray(spread), values, s=5, color=colors[rung["rung"]], alpha=0.45, linewidths=0)
            mean = rung[field]
            if mean["value"] is None:
                continue
            low, high = (mean["value"] if end is None else end for end in (mean["low"], mean["high"]))
            bars = [[max(0.0, mean["value"] - low)], [max(0.0, high - mean["value"])]]
            ax.errorbar(i, mean["value"], yerr=bars, fmt="o", color="black", markersize=4, capsize=3, linewidth=1)
        _rung_axis(ax, rungs)
        ax.set_title(title, fontsize=9)
    return figure


def ensemble_gain(results: Results) -> Figure:
    """Draw the gain of every pair's ensemble against its error inconsistency."""
    figure, ax = new_figure(3.4)
    for name, color in rung_colors(results).items():
        rung = next(one for one in results["ladder"]["rungs"] if one["rung"] == name)
        x = [_number(pair["error_inconsistency"]) for pair in rung["pairs"]]
        y = [_number(pair["improvement_mean"]) for pair in rung["pairs"]]
        ax.scatter(x, y, s=12, color=color, label=f"{name} ({len(x)})", linewidths=0)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_xlabel("error inconsistency: only one of the two is right", fontsize=9)
    ax.set_ylabel("accuracy of the pair over its mean", fontsize=9)
    ax.tick_params(labelsize=SMALL)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def confidence_plane(results: Results) -> Figure:
    """Draw the confidences of a pair near the bottom and of one at the top of the ladder, by who is right."""
    planes = results["specialization"]["planes"]
    figure, axes = new_figure(3.5, 1, len(planes), sharey=True, squeeze=False)
    for ax, plane in zip(axes[0], planes, strict=True):
        outcome = np.array(plane["outcome"])
        x, y = np.array(plane["confidence_base"]), np.array(plane["confidence_other"])
        for code, (name, color) in enumerate(OUTCOMES.items()):
            where = outcome == code
            ax.scatter(
                x[where], y[where], s=4 if code == 0 else 12, color=color, label=name, linewidths=0, zorder=2 + code
            )
        ax.plot([0, 1], [0, 1], color="0.5", linewidth=0.6, zorder=1)
        ax.set_aspect("equal")
        ax.set_title(f"{plane['rung']}\n{plane['base']} and {plane['other']}", fontsize=8)
        ax.set_xlabel("confidence of the base", fontsize=9)
        ax.tick_params(labelsize=SMALL)
    axes[0][0].set_ylabel("confidence of the other", fontsize=9)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False
    )
    return figure


def specialization(results: Results) -> Figure:
    """Draw how often one of a pair is the more confident, by who is right, along the ladder."""
    rungs = results["specialization"]["rungs"]
    figure, axes = new_figure(0.7 + 1.05 * len(rungs), len(rungs), 1, sharex=True, squeeze=False)
    for ax, rung in zip(axes[:, 0], rungs, strict=True):
        edges = np.array(rung["edges"])
        middle = (edges[1:] + edges[:-1]) / 2
        for name, color in OUTCOMES.items():
            counts = np.array(rung["counts"][name], dtype=np.float64)
            if counts.sum() and name != "both wrong":
                ax.step(middle, counts / counts.sum(), where="mid", color=color, label=name, linewidth=1.3)
        ax.set_title(rung["rung"], fontsize=SMALL, loc="left", pad=2)
        ax.set_yticks([])
        ax.axvline(0, color="0.6", linewidth=0.6)
        ax.tick_params(labelsize=SMALL)
    axes[-1, 0].set_xlabel("angle in the confidence plane (degrees; right: the base is surer)", fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False
    )
    return figure


def mixing(results: Results) -> Figure:
    """Draw the accuracy of probes on mixed features against the share of the base's features."""
    figure, ax = new_figure(3.3)
    for name, color in rung_colors(results).items():
        rows = results["mixing"]["rungs"].get(name)
        if not rows:
            continue
        x, y = [row["share"] for row in rows], np.array([_number(row["value"]) for row in rows])
        ax.plot(x, y, marker="o", markersize=3, color=color, label=name)
        low, high = ([_number(row[end]) for row in rows] for end in ("low", "high"))
        ax.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    ax.set_xlabel("share of the base's features; the rest are of the other model", fontsize=9)
    ax.set_ylabel(f"probe accuracy, {results['mixing']['dimension']} features", fontsize=9)
    ax.tick_params(labelsize=SMALL)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return figure


def feature_curves(results: Results) -> Figure:
    """Draw the accuracy of probes on the first features of two models, most diverse first."""
    curves = results["features_needed"]
    figure, axes = new_figure(3.2, 1, 2)
    colors = rung_colors(results)
    for name, color in colors.items():
        rows = curves["rungs"].get(name)
        if not rows:
            continue
        axes[0].plot(
            [row["count"] for row in rows["curve"]],
            [_number(row["value"]) for row in rows["curve"]],
            color=color,
            label=name,
        )
        needed = [_number(value) for value in rows["needed"]]
        at = list(colors).index(name)
        axes[1].scatter([at] * len(needed), needed, s=9, color=color, alpha=0.6, linewidths=0)
        if np.isfinite(needed).any():
            axes[1].plot(at, float(np.nanmean(needed)), marker="_", markersize=16, color="black")
    axes[0].axhline(curves["target"], color="0.6", linewidth=0.8)
    axes[0].set_xlabel("features of both, in order", fontsize=9)
    axes[0].set_ylabel("probe accuracy", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    axes[0].tick_params(labelsize=SMALL)
    _rung_axis(axes[1], results["ladder"]["rungs"])
    axes[1].set_title(f"features needed for {curves['target']:.1%}", fontsize=9)
    axes[1].set_ylim(bottom=0)
    return figure


def greedy_path(results: Results) -> Figure:
    """Draw the accuracy of an ensemble as models are added one by one, on rows that chose them and on others."""
    paths = results["greedy"]["paths"]
    figure, ax = new_figure(3.0)
    colors = colors_of([path["start"] for path in paths])
    for path in paths:
        x = range(1, 1 + len(path["held_out"]))
        ax.plot(
            x, path["held_out"], marker="o", markersize=3, color=colors[path["start"]], label=f"from {path['start']}"
        )
        ax.plot(x, path["selection"], linestyle=":", linewidth=1, color=colors[path["start"]])
    ax.set_xlabel("models in the ensemble (dotted: on the rows that chose them)", fontsize=9)
    ax.set_ylabel("accuracy", fontsize=9)
    ax.set_xticks(range(1, 1 + max(len(path["held_out"]) for path in paths)))
    ax.tick_params(labelsize=SMALL)
    ax.legend(fontsize=SMALL, frameon=False)
    return figure
