"""What differently trained models know (arXiv 2110.12899): a study's answers along the ladder, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.multiplicity.features.diverse import ORDERS
from streamcca.multiplicity.features.stacked import STACKED
from streamcca.multiplicity.relation.ladder import AlongLadder, along_ladder
from streamcca.multiplicity.study.rungs import ladder_pairs

if TYPE_CHECKING:
    from streamcca.multiplicity.study.assemble import Answers

Pairs = Mapping[str, Sequence[tuple[str, str]]]
_SHARES = ("distance", "error_inconsistency", "conversion")


def knowledge(answers: Answers) -> dict[str, Any]:
    """Return ladder, specialization, mixed features, features needed, greedy ensembles and stacked probes."""
    accuracies = dict(zip(answers.names, answers.accuracy["iid"].tolist(), strict=True))
    ladder = ladder_pairs(answers.config, list(answers.models), accuracies)
    quantities = _quantities(answers)
    along = {name: _along(answers, matrix, ladder.pairs) for name, matrix in quantities.items()}
    rungs = [
        {
            "rung": rung,
            "pairs": [
                {"base": a, "other": b, **{name: _at(answers, matrix, a, b) for name, matrix in quantities.items()}}
                for a, b in pairs
            ],
            **{name: _mean(found, rung, name) for name, found in along.items()},
        }
        for rung, pairs in ladder.pairs.items()
    ]
    trends = {name: found.to_dict() for name, found in along.items()}
    place = {name: i for i, name in enumerate(answers.names)}
    return {
        "ladder": {"base": answers.config.base, "rungs": rungs, "trends": trends, "left_out": ladder.left_out},
        "pairs": _all_pairs(answers, quantities),
        "specialization": answers.get("confidences", {"rungs": [], "planes": []}),
        "mixing": _mixing(answers, ladder.pairs, place),
        "features_needed": _needed(answers, ladder.pairs, place, ladder.target),
        "greedy": {"paths": [_path(found) for found in answers.started_with("greedy/")]},
        "stacked": _stacked(answers, ladder.pairs, place),
    }


def _quantities(answers: Answers) -> dict[str, FloatArray]:
    """Return matrices (M, M) of what is looked at along the ladder."""
    pairs = answers["ensembles"]["pairs"]
    found = {
        "distance": answers.distance,
        "pm": answers.pm["iid"],
        **{
            name: np.array(pairs[own], dtype=np.float64)
            for name, own in (
                ("error_inconsistency", "inconsistency"),
                ("improvement_mean", "improvement_mean"),
                ("improvement_best", "improvement_best"),
                ("conversion", "conversion"),
            )
        },
    }
    a = answers.accuracy["iid"]
    expected = np.outer(a, a) + np.outer(1 - a, 1 - a)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["kappa"] = np.where(expected < 1, (1 - found["error_inconsistency"] - expected) / (1 - expected), np.nan)
    return found


def _along(answers: Answers, matrix: FloatArray, pairs: Pairs) -> AlongLadder:
    place = {name: i for i, name in enumerate(answers.names)}
    places = {rung: np.array([[place[a], place[b]] for a, b in some]) for rung, some in pairs.items()}
    return along_ladder(matrix, places, list(answers.groups.values()), answers.level)


def _mean(found: AlongLadder, rung: str, name: str) -> dict[str, Any]:
    """Return the mean of a rung; the interval of a share does not leave 0 to 1."""
    if rung in found.means:
        mean = found.means[rung].to_dict()
        if name in _SHARES and mean["low"] is not None:
            mean |= {"low": max(0.0, mean["low"]), "high": min(1.0, mean["high"])}
        return mean
    return {"value": None, "low": None, "high": None, "reason": "not defined for any pair"}


def _at(answers: Answers, matrix: FloatArray, a: str, b: str) -> float | None:
    value = float(matrix[answers.names.index(a), answers.names.index(b)])
    return value if np.isfinite(value) else None


def _all_pairs(answers: Answers, quantities: Mapping[str, FloatArray]) -> list[dict[str, Any]]:
    found = []
    for j, b in enumerate(answers.models):
        for i, a in enumerate(answers.models[:j]):
            values = {name: float(matrix[i, j]) for name, matrix in quantities.items()}
            known = {name: value if np.isfinite(value) else None for name, value in values.items()}
            found.append({"a": a.name, "b": b.name, "groups": [a.group, b.group], **known})
    return found


def _of_pairs(answers: Answers, task: str, pairs: Pairs) -> dict[str, dict[tuple[str, str], Any]]:
    """Return what the probes of one kind answered, by rung and pair."""
    return {
        rung: {(a, b): answers[f"{task}/{a} + {b}"] for a, b in some if f"{task}/{a} + {b}" in answers}
        for rung, some in pairs.items()
    }


def _matrix(place: Mapping[str, int], values: Mapping[tuple[str, str], float | None]) -> FloatArray:
    found = np.full((len(place), len(place)), np.nan)
    for (a, b), value in values.items():
        if value is not None:
            found[place[a], place[b]] = found[place[b], place[a]] = value
    return found


def _mixing(answers: Answers, pairs: Pairs, place: Mapping[str, int]) -> dict[str, Any]:
    probes = _of_pairs(answers, "mixed", pairs)
    shares = sorted(set(answers.config.features.shares))  # as feature_mixing has them
    rungs: dict[str, Any] = {}
    for k, share in enumerate(shares):
        values = {pair: found["accuracy"][k]["value"] for some in probes.values() for pair, found in some.items()}
        along = _along(answers, _matrix(place, values), pairs)
        for rung, mean in along.means.items():
            rungs.setdefault(rung, []).append({"share": share, **mean.to_dict()})
    gains = {pair: _mixed_gain(found) for some in probes.values() for pair, found in some.items()}
    dimensions = sorted({found["dimension"] for some in probes.values() for found in some.values()})
    return {
        "dimension": dimensions[0]
        if len(dimensions) == 1
        else " to ".join(map(str, dimensions[:: len(dimensions) - 1 or 1])),
        "rungs": rungs,
        "gain": _along(answers, _matrix(place, gains), pairs).to_dict() if gains else None,
    }


def _mixed_gain(found: Mapping[str, Any]) -> float | None:
    """Return by how much the even mixture, or the share nearest to it, is above the line between both ends."""
    over = found["over_line"]
    if over is None:
        return None
    middle = min(range(len(found["shares"])), key=lambda k: abs(found["shares"][k] - 0.5))
    return float(over[middle]["value"])


def _needed(answers: Answers, pairs: Pairs, place: Mapping[str, int], target: float | None) -> dict[str, Any]:
    probes = _of_pairs(answers, "curve", pairs)
    rungs: dict[str, Any] = {}
    values: dict[tuple[str, str], float | None] = {}
    censored = 0
    for rung, some in probes.items():
        if not some:
            continue
        sizes = sorted(set.intersection(*(set(found["sizes"]) for found in some.values())))
        curve = [
            {
                "count": size,
                "value": float(
                    np.mean([found["accuracy"][found["sizes"].index(size)]["value"] for found in some.values()])
                ),
            }
            for size in sizes
        ]
        rungs[rung] = {"curve": curve, "needed": [found["needed"] for found in some.values()]}
        for pair, found in some.items():
            # A target that was never reached needs more than all: all is a lower bound, and is said to be one.
            values[pair] = found["needed"] if found["needed"] is not None else found["sizes"][-1]
            censored += found["needed"] is None
    order = answers.config.features.order
    return {
        "order": ORDERS.get(order, order),
        "target": target,
        "rungs": rungs,
        "censored": censored,
        "along": _along(answers, _matrix(place, values), pairs).to_dict() if values else None,
    }


def _path(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "start": found["names"][0],
        "names": found["names"],
        "selection": found["selection_accuracies"],
        "held_out": found["held_out_accuracies"],
    }


def _stacked(answers: Answers, pairs: Pairs, place: Mapping[str, int]) -> dict[str, Any]:
    rows = []
    values: dict[tuple[str, str], float | None] = {}
    for rung, some in _of_pairs(answers, "stacked", pairs).items():
        for (a, b), found in some.items():
            better = max(found["gains"], key=lambda gain: found["accuracy"][gain["over"]]["value"])
            precision = found["mean_average_precision"]
            values[a, b] = precision[STACKED] - max(precision[a], precision[b])
            rows.append(
                {
                    "rung": rung,
                    "base": a,
                    "other": b,
                    "base_value": precision[a],
                    "other_value": precision[b],
                    "both_value": precision[STACKED],
                    "gain": values[a, b],
                    "answers_gain": {"value": better["gain"], "low": better["low"], "high": better["high"]},
                }
            )
    names = ", ".join(answers.config.downstream)
    return {
        "task": f"attributes of the classes ({names}), 11-point mean average precision"
        if names
        else "none was asked for",
        "rows": rows,
        "along": _along(answers, _matrix(place, values), pairs).to_dict() if values else None,
    }
