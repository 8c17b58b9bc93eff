"""Which pairs of models stand on which rung of the ladder, and which of them are probed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streamcca.multiplicity.models.methods import LADDER, distance_on_ladder
from streamcca.multiplicity.models.sources import StudyModel
from streamcca.multiplicity.study.config import StudyConfig

Pairs = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class LadderPairs:
    """Pairs (base, other) by rung.

    Attributes
    ----------
    pairs : dict of str to list of (str, str)
        From 'reinit' up; rungs without pairs are left out.
    left_out : int
        Pairs whose accuracies are too far from the base group's.
    target : float or None
        Accuracy that probes are asked for.
    """

    pairs: Pairs
    left_out: int
    target: float | None


def ladder_pairs(config: StudyConfig, models: list[StudyModel], accuracies: Mapping[str, float]) -> LadderPairs:
    """Pair every model of the base group with all others, and sort the pairs by how differently they were made.

    Pairs of very different accuracy would show the accuracy, not the difference (the paper pairs models of 74 to 78 %):
    both models must be within `accuracy_band` of the base group's mean.
    """
    bases = [model for model in models if model.group == config.base]
    center = float(np.mean([accuracies[model.name] for model in bases]))
    band = config.features.accuracy_band
    pairs: Pairs = {rung: [] for rung in LADDER}
    left_out = 0
    for i, base in enumerate(bases):
        for other in [*bases[i + 1 :], *(model for model in models if model.group != config.base)]:
            if max(abs(accuracies[model.name] - center) for model in (base, other)) > band:
                left_out += 1
                continue
            rung = distance_on_ladder((base.method, base.data_set), (other.method, other.data_set))
            pairs[rung].append((base.name, other.name))
    found = {rung: some for rung, some in pairs.items() if some}
    target = config.features.target
    return LadderPairs(found, left_out, target if target is not None else _default_target(center) if found else None)


def _default_target(center: float) -> float:
    """Return half a point below the base group: the paper asks for 76 % of models of 76.2 and 76.5 %."""
    return round(center - 0.005, 4)


def chosen_pairs(pairs: Pairs, count: int) -> Pairs:
    """Choose a few pairs of each rung, such that no model, and no group, is in many of them."""
    chosen: Pairs = {}
    for rung, some in pairs.items():
        used: Counter[str] = Counter()
        left = list(some)
        taken: list[tuple[str, str]] = []
        while left and len(taken) < count:
            best = min(left, key=lambda pair: (used[_group(pair[1])], used[pair[1]] + used[pair[0]], some.index(pair)))
            left.remove(best)
            taken.append(best)
            used.update([*best, _group(best[1])])
        chosen[rung] = taken
    return chosen


def _group(name: str) -> str:
    return "group " + name.rpartition(" ")[0]
