"""The claims of both papers, looked for in a study: found, not found or undecided, with the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.multiplicity.relation.resampling import jackknife, pair_mean, pairs_within
from streamcca.multiplicity.study.origins import DISENTANGLING, NO_ONE

if TYPE_CHECKING:
    from streamcca.multiplicity.study.assemble import Answers

Results = Mapping[str, Any]
FOUND, NOT_FOUND, UNDECIDED = "found", "not found", "undecided"


def findings(results: Results, answers: Answers) -> list[dict[str, Any]]:
    """Return each claim with its source, verdict and evidence."""
    ladder = results["ladder"]["trends"]
    found = [_methods_differ(answers)]
    for which, title in (("iid", "i.i.d."), ("ood", "out of distribution")):
        if which in results["association"]:
            found.append(_correlated(results, which, title))
    found += [_foretold(row, results) for row in results["predictors"]["table"] if row["predictor"] != "both"]
    for quantity, claim, source in (
        ("distance", "insides are the more different, the more differently models were trained", "ours"),
        ("error_inconsistency", "error inconsistency rises along the ladder", NO_ONE),
        ("improvement_mean", "ensembles gain more along the ladder", NO_ONE),
        ("conversion", "the conversion rate rises along the ladder", NO_ONE),
    ):
        found.append(_trend(claim, ladder[quantity], source, rises=True))
    found.append(_gain_with_inconsistency(results, answers))
    if results["features_needed"]["along"]:
        found.append(_fewer_needed(results["features_needed"]))
    if results["mixing"]["gain"]:
        claim = "mixed features of more differently trained models gain more over the line between both"
        found.append(_trend(claim, results["mixing"]["gain"], NO_ONE, rises=True))
    if results["stacked"]["along"]:
        claim = "another task gains more from the features of more differently trained models"
        found.append(_trend(claim, results["stacked"]["along"], NO_ONE, rises=True))
    return found


def _finding(claim: str, source: str, verdict: str, evidence: str) -> dict[str, Any]:
    return {"claim": claim, "source": source, "verdict": verdict, "evidence": evidence}


def _methods_differ(answers: Answers) -> dict[str, Any]:
    """Compare the RM of every group with that of the base group, with intervals that hold for all together."""
    claim = "training methods differ in the representational multiplicity that they leave"
    base = answers.groups[answers.config.base]
    others = {name: group for name, group in answers.groups.items() if name != answers.config.base and len(group) > 1}
    if len(base) < 2 or not others:
        return _finding(claim, DISENTANGLING, UNDECIDED, "one group with two models is all there is")
    level = 1 - (1 - answers.level) / len(others)
    apart, values = [], {answers.config.base: _mean(answers.distance, base)}
    for name, group in others.items():
        value, low_end, high_end = _difference(answers.distance, group, base, level)
        values[name] = _mean(answers.distance, group)
        if low_end is not None and high_end is not None and (low_end > 0 or high_end < 0):
            apart.append(f"{name} {value:+.3f}")
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    evidence = (
        f"RM from {values[low]:.3f} ({low}) to {values[high]:.3f} ({high}); {len(apart)} of {len(others)} groups "
        "differ from "
        f"{answers.config.base!r} (intervals of {answers.level:.0%} for all together)"
        + (f": {', '.join(apart)}" if apart else "")
    )
    return _finding(claim, DISENTANGLING, FOUND if apart else UNDECIDED, evidence)


def _mean(matrix: FloatArray, group: list[int]) -> float:
    return float(pair_mean(matrix, np.ones((1, len(matrix))), pairs_within(group))[0])


def _difference(
    matrix: FloatArray, group: list[int], base: list[int], level: float
) -> tuple[float, float | None, float | None]:
    def statistic(weights: FloatArray) -> FloatArray:
        change: FloatArray = pair_mean(matrix, weights, pairs_within(group)) - pair_mean(
            matrix, weights, pairs_within(base)
        )
        return change[:, None]

    found = jackknife(statistic, [group, base], len(matrix), level)[0]
    return float(found.value or 0.0), found.low, found.high


def _correlated(results: Results, which: str, title: str) -> dict[str, Any]:
    """Read the correlation over groups: the methods are the sample, so the verdict is the permutation test's."""
    found = results["association"][which]
    groups, level = found["groups"], results["settings"]["statistics"]["level"]
    value, p = groups["pearson"]["value"], groups["test"]["p"]
    claim = f"groups with more RM have more PM ({title})"
    if value is None or p is None:
        return _finding(claim, DISENTANGLING, UNDECIDED, groups["pearson"]["reason"] or groups["test"]["reason"])
    verdict = UNDECIDED if p > 1 - level else FOUND if value > 0 else NOT_FOUND
    spearman = groups["spearman"]
    evidence = (
        f"{groups['points']} groups: Pearson {value:+.2f}{_interval(groups['pearson'])}, Spearman "
        f"{spearman['value']:+.2f}"
        f"{_interval(spearman)}, p = {p:.4f}; pairs of models of one group: {_pairs(found['within'])}; all pairs: "
        f"{_pairs(found['all'])}"
    )
    return _finding(claim, DISENTANGLING, verdict, evidence)


def _pairs(found: Mapping[str, Any]) -> str:
    value, p = found["pearson"]["value"], found["test"]["p"]
    return "-" if value is None else f"{value:+.2f} (Mantel p = {p:.4f})" if p is not None else f"{value:+.2f}"


def _foretold(row: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """Read one predictor of one target; two are tried for each, so that each p is held to half."""
    claim = f"{row['predictor']} foretells the {row['target']} of groups that were left out"
    if row["value"] is None or row["p"] is None:
        return _finding(claim, DISENTANGLING, UNDECIDED, row["note"])
    level = results["settings"]["statistics"]["level"]
    verdict = FOUND if row["value"] > 0 and row["p"] <= (1 - level) / 2 else UNDECIDED
    groups = len(results["predictors"]["groups"])
    evidence = f"{groups} groups: R2 {row['value']:.2f} (p = {row['p']:.4f}); 1 is perfect, 0 no better than the mean"
    return _finding(claim, DISENTANGLING, verdict, evidence)


def _trend(claim: str, along: Mapping[str, Any], source: str, rises: bool, digits: int = 3) -> dict[str, Any]:
    slope = along["slope"]
    means = ", ".join(
        f"{rung} {mean['value']:.{digits}f}" for rung, mean in along["means"].items() if mean["value"] is not None
    )
    if slope["value"] is None or slope["low"] is None:
        return _finding(claim, source, UNDECIDED, f"{means}; {slope['reason']}")
    low, high = (slope["low"], slope["high"]) if rises else (-slope["high"], -slope["low"])
    verdict = FOUND if low > 0 else NOT_FOUND if high < 0 else UNDECIDED
    return _finding(
        claim, source, verdict, f"{means}; {slope['value']:+.{digits + 1}f}{_interval(slope, digits + 1)} a rung"
    )


def _fewer_needed(needed: Results) -> dict[str, Any]:
    """Read the trend of features needed; pairs that never got there count as all that were tried, which is too few.

    In the upper half of the ladder too few speaks for the claim, in the lower half against it.
    """
    claim = "features of more differently trained models: fewer are needed for the same accuracy"
    found = _trend(claim, needed["along"], NO_ONE, rises=False, digits=1)
    if not needed["censored"]:
        return found
    rungs = needed["along"]["rungs"]
    never = [place for place, rung in enumerate(rungs) if None in needed["rungs"][rung]["needed"]]
    middle = (len(rungs) - 1) / 2
    flattered = {FOUND: max(never) > middle, NOT_FOUND: min(never) < middle}.get(found["verdict"], False)
    told = f"{found['evidence']}; {needed['censored']} pairs never reach it and count as all features that were tried"
    return {**found, "verdict": UNDECIDED if flattered else found["verdict"], "evidence": told}


def _gain_with_inconsistency(results: Results, answers: Answers) -> dict[str, Any]:
    """Correlate the gain of pairs on the ladder with their error inconsistency."""
    claim = "ensembles of pairs gain the more, the more inconsistent their errors are"
    pairs = [pair for rung in results["ladder"]["rungs"] for pair in rung["pairs"]]
    x, y = (
        np.array([pair[name] for pair in pairs], dtype=np.float64)
        for name in ("error_inconsistency", "improvement_mean")
    )
    if len(x) < 3 or not x.std() or not y.std():
        return _finding(claim, NO_ONE, UNDECIDED, f"{len(x)} pairs")
    place = {name: i for i, name in enumerate(answers.names)}
    ends = np.array([[place[pair["base"]], place[pair["other"]]] for pair in pairs])
    strata = [[i for i in group if i in ends] for group in answers.groups.values()]
    spared = [group for group in strata if len(group) > 1]
    alone = [group[0] for group in strata if len(group) == 1]

    def statistic(weights: FloatArray) -> FloatArray:
        weights = weights.copy()
        weights[:, alone] = 1
        kept = weights[:, ends].prod(axis=2) > 0
        return np.array([[_fisher(x[row], y[row])] for row in kept])

    value = float(np.corrcoef(x, y)[0, 1])
    if not spared:
        return _finding(claim, NO_ONE, UNDECIDED, f"{len(x)} pairs: Pearson {value:+.2f}")
    # Leaving models out, since pairs share them; on Fisher's scale.
    found = jackknife(statistic, spared, len(answers.names), answers.level)[0]
    told, count = f"Pearson {value:+.2f}", len(np.unique(ends))
    if found.low is None or found.high is None:
        return _finding(claim, NO_ONE, UNDECIDED, f"{len(x)} pairs of {count} models: {told}")
    low, high = np.tanh(found.low), np.tanh(found.high)
    verdict = FOUND if low > 0 else NOT_FOUND if high < 0 else UNDECIDED
    evidence = f"{told} ({low:+.2f} to {high:+.2f}, leaving models out) over {len(x)} pairs of {count} models"
    return _finding(claim, NO_ONE, verdict, evidence)


def _fisher(x: FloatArray, y: FloatArray) -> float:
    if len(x) < 3 or not x.std() or not y.std():
        return float("nan")
    return float(np.arctanh(np.clip(np.corrcoef(x, y)[0, 1], -1 + 1e-12, 1 - 1e-12)))


def _interval(found: Mapping[str, Any], digits: int = 2) -> str:
    if found["low"] is None:
        return ""
    return f" ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"
