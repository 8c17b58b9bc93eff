"""Layer identification (Kornblith et al. 2019, section 6.1): which layer of another net is most similar to this one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from benchmarks.digits import accuracy, digits, plain_cnn, train

_ROWS: dict[str, Any] = {"positions": "positions", "averages over positions": "pool"}
_RULES: dict[str, dict[str, Any]] = {"99 % of the variance": {"variance": 0.99}, "everything": {"variance": 1.0}}
_MEASURES: dict[str, tuple[Any, ...]] = {"99 % of the variance": ("svcca", "pwcca"), "everything": ("cca", "pwcca")}


def identified(comparison: Any) -> float:
    """Share of (pair of nets, layer) whose most similar layer in the other net is the same one; both ways."""
    hits = []
    for cell in comparison.comparisons.values():
        matrix = cell.matrix
        right = np.arange(len(matrix))
        hits += [np.mean(matrix.argmax(axis=1) == right), np.mean(matrix.argmax(axis=0) == right)]
    return float(np.mean(hits))


def run_identification(nets: int = 10, depth: int = 8, epochs: int = 12) -> list[dict[str, Any]]:
    """Train the nets, keep their scores once for each rule, and compare every two of them by every measure."""
    import torch

    import streamcca as sc

    train_set, test_set = digits()
    models = {}
    for seed in range(nets):
        torch.manual_seed(seed)
        models[f"seed {seed}"] = model = plain_cnn(depth)
        train(model, *train_set, epochs=epochs, seed=seed)
    reached = [accuracy(model, *test_set) for model in models.values()]
    layers = [f"{i}.relu" for i in range(depth)]
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        for name, rows in _ROWS.items():
            for rule, options in _RULES.items():
                scores = [
                    sc.subspace_scores(m, train_set[0], layers, name=k, rows=rows, precision="float64", **options)
                    for k, m in models.items()
                ]
                for measure in _MEASURES[rule]:
                    found = sc.compare(scores, measure=measure)
                    results.append(
                        {
                            "case": f"{measure.upper()}, {rule}, rows are {name}",
                            "identified": identified(found),
                            "similarity": float(
                                np.mean([np.diag(c.matrix).mean() for c in found.comparisons.values()])
                            ),
                            "chance": float(
                                np.mean([np.diag(c.null_matrix).mean() for c in found.comparisons.values()])
                            ),
                            "nets": nets,
                            "layers": depth,
                            "test_accuracy": [min(reached), max(reached)],
                            "n": scores[0].n,
                        }
                    )
    return results
