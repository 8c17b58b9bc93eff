"""The table of docs/which-measure.md, from the declarations of `streamcca.MEASURES` and what the examples show."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np
import which_measure as examples

import streamcca as sc

# What each measure looks at, and what its declaration cannot say: blind spots that the examples show.
SEES = {
    "svcca": "which strong directions are shared, each counting alike; not how strong, not that one side lacks some",
    "svcca_r2": "as `svcca`; weak correlations count less",
    "cca": "which directions are shared, faint ones as much as strong ones; not that one side lacks some",
    "mean_squared_cca": "as `cca`; weak correlations count less",
    "yanai": "as `mean_squared_cca`, and directions that one side lacks",
    "pillai": "how many directions are shared",
    "pwcca_x": "shared directions, by what x's neurons put in them; not directions that y lacks",
    "pwcca_y": "shared directions, by what y's neurons put in them; not directions that x lacks",
    "pwcca": "the mean of both",
    "cka": "shared directions, each by the product of its variances: the strongest decide",
    "debiased_cka": "as `cka`, without the bias of few rows",
    "cka_angle": "as `cka`; a metric",
    "rv": "as `cka`",
    "adjusted_rv": "as `debiased_cka`, of standardized neurons",
    "procrustes": "shared directions by their standard deviations on both sides",
    "procrustes_distance": "as `procrustes`",
    "procrustes_angle": "as `procrustes`; a metric",
    "bures": "as `procrustes`",
    "regression_y": "how much of y's variance x holds; not what x holds beside it",
    "regression_x": "how much of x's variance y holds; not what y holds beside it",
    "shape": "between `cca` (alpha 0) and `procrustes` (1); and directions that one side lacks",
    "shape_angle": "as `shape`; a metric",
    "rbf_cka": "which samples are neighbors, within the bandwidth",
    "rsa": "the order of all distances between samples",
}
_PLAIN = (
    ("linear", "any invertible linear map"),
    ("rotation", "rotation"),
    ("units", "units of neurons"),
    ("scale", "one factor"),
)


def _blind(changes: AbstractSet[str]) -> str:
    """Say the largest changes; every measure is blind to a constant row, which the page says once."""
    if "linear" in changes:
        return "any invertible linear map"
    words = [plain for change, plain in _PLAIN if change in changes]
    return ", ".join(words)


def chance_levels(rows: int = 200, width: int = 50) -> dict[str, float]:
    """Return `null_mean` of every measure for Gaussian views."""
    x, y = np.random.default_rng(11).standard_normal((2, rows, width))
    return {name: r.null_mean for name, r in examples.measured(x, y, sc.MEASURES).items()}


def after_moving() -> dict[str, float]:
    """Return every measure of a view and itself with 5 of 1000 rows moved by 10 norms of a row."""
    return {name: values[0] for name, values in examples.moved([10.0], 0.005, names=sc.MEASURES).items()}


def table() -> str:
    """Return the table of all measures as Markdown."""
    lines = [
        "| measure | alike | symmetric | blind to | sees | chance | 5 rows moved | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    levels, moved = chance_levels(), after_moving()
    for name, declared in sc.MEASURES.items():
        x, y = _blind(declared.invariant_x), _blind(declared.invariant_y)
        alike = "the rank" if np.isinf(declared.alike) else f"{declared.alike:g}"
        lines.append(
            f"| `{name}` | {alike} | {'yes' if declared.symmetric else 'no'} "
            f"| {x if x == y else f'of x: {x}; of y: {y}'} | {SEES[name]} | {levels[name]:.2f} | {moved[name]:.2f} "
            f"| {declared.paper} |"
        )
    return "\n".join(lines)
