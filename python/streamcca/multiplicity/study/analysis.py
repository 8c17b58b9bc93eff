"""What the workers of a study compute from the models' answers: predictions, insides, pairs, features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.answers.average_precision import average_precision
from streamcca.multiplicity.answers.calibration import temperature_scaling
from streamcca.multiplicity.answers.contested import contested_rows
from streamcca.multiplicity.answers.ensembles import all_pair_ensembles, greedy_ensemble
from streamcca.multiplicity.answers.inconsistency import specialization
from streamcca.multiplicity.answers.predictions import Predictions
from streamcca.multiplicity.answers.predictive import disagreements, predictive_multiplicity, probability_distances
from streamcca.multiplicity.features.feature_curve import features_needed
from streamcca.multiplicity.features.mixing import feature_mixing
from streamcca.multiplicity.features.stacked import STACKED, stacked_probe
from streamcca.multiplicity.insides.finite_sample import finite_sample_models, finite_sample_rows
from streamcca.multiplicity.insides.representational import representational_multiplicity
from streamcca.multiplicity.models.sources import StudyModel
from streamcca.multiplicity.relation.association import associate
from streamcca.multiplicity.study.config import StudyConfig
from streamcca.multiplicity.study.members import answers_of, models_of
from streamcca.multiplicity.study.work import data_of, settings_of

_BINS = 18
_PLANE_ROWS = 600
_CONTESTED = 12
# Draws of fewer models or rows behind each point of a curve.
_CURVE_DRAWS, _ROW_DRAWS = 60, 4


def _study(folder: Path) -> tuple[StudyConfig, list[StudyModel]]:
    config = settings_of(folder)
    return config, models_of(config, len(data_of(config).classes))


def groups_of(models: list[StudyModel]) -> dict[str, list[str]]:
    """Return the names of each group's models."""
    found: dict[str, list[str]] = {}
    for model in models:
        found.setdefault(model.group, []).append(model.name)
    return found


def predictions_of(folder: Path, set_name: str) -> Predictions:
    """Open what all models answered to one test set."""
    config, models = _study(folder)
    paths = {model.name: answers_of(folder, model)["logits"] for model in models}
    return Predictions.load(paths, set_name, data_of(config).test.labels)


def answers(folder: Path, set_name: str) -> dict[str, Any]:
    """Measure predictive multiplicity on one test set."""
    _, models = _study(folder)
    predictions = predictions_of(folder, set_name)
    groups = {
        group: predictive_multiplicity(predictions.select(names)).to_dict()
        for group, names in groups_of(models).items()
        if len(names) > 1
    }
    return {
        "accuracies": predictions.accuracies.tolist(),
        "groups": groups,
        "disagreement": disagreements(predictions).tolist(),
        "probability variance": probability_distances(predictions).tolist(),
    }


def insides(folder: Path) -> dict[str, Any]:
    """Measure representational multiplicity."""
    config, models = _study(folder)
    found = representational_multiplicity(
        {model.name: answers_of(folder, model)["scores"] for model in models},
        groups_of(models),
        layers={model.name: _layers(folder, model) for model in models},
        measure=config.representation.measure,
        level=config.statistics.level,
        progress=False,
    )
    return found.to_dict()


def _layers(folder: Path, model: StudyModel) -> list[str]:
    from streamcca.scores import SubspaceScores

    return list(SubspaceScores.load(answers_of(folder, model)["scores"]).layers)


def calibration(folder: Path) -> dict[str, Any]:
    """Fit a temperature to each model's i.i.d. answers."""
    predictions = predictions_of(folder, "iid")
    return {name: fitted_temperature(predictions.logits(name), predictions.known_labels) for name in predictions.names}


def fitted_temperature(logits: Any, labels: Any) -> dict[str, Any]:
    """Fit a temperature; where all labels are right there is no best one, and it stays 1.

    At the lower bound a model would be sure of everything, and overrule every partner, since it is right on the very
    rows that it is measured on.
    """
    found = temperature_scaling(logits, labels).to_dict()
    if found["at_bound"] == "lower":
        found |= {"temperature": 1.0} | {f"{key}_after": found[f"{key}_before"] for key in ("nll", "brier", "ece")}
    return found


def _calibrated(folder: Path, temperatures: dict[str, float]) -> Predictions:
    predictions = predictions_of(folder, "iid")
    return predictions.calibrated(np.array([temperatures[name] for name in predictions.names]))


def ensembles(folder: Path, temperatures: dict[str, float]) -> dict[str, Any]:
    """Let every two models answer together; find the images on which all models differ most."""
    config = settings_of(folder)
    predictions = _calibrated(folder, temperatures)
    pairs = all_pair_ensembles(predictions, config.predictions.ensemble).to_dict()
    return {"pairs": pairs, "contested": contested_rows(predictions, _CONTESTED).to_dict()}


def greedy(folder: Path, temperatures: dict[str, float], start: str) -> dict[str, Any]:
    """Grow an ensemble from one model, chosen on a random half of the rows and measured on the other."""
    config = settings_of(folder)
    predictions = _calibrated(folder, temperatures)
    chosen_on = np.zeros(predictions.n, dtype=bool)
    chosen_on[np.random.default_rng(config.statistics.seed).permutation(predictions.n)[: predictions.n // 2]] = True
    size = min(config.features.ensemble_size, len(predictions.names))
    rule = config.predictions.ensemble
    return greedy_ensemble(predictions, start, rule=rule, size=size, selection=chosen_on).to_dict()


def confidences(
    folder: Path, temperatures: dict[str, float], rungs: dict[str, list[list[str]]], shown: list[str]
) -> dict[str, Any]:
    """Lay the confidences of pairs along the ladder out: histograms of angles, and rows of a pair of some rungs."""
    predictions = _calibrated(folder, temperatures)
    right = dict(zip(predictions.names, predictions.correct, strict=True))
    sure = {
        name: predictions.probabilities(name).max(axis=1) for name in {n for p in rungs.values() for q in p for n in q}
    }
    found, planes = [], []
    for rung, pairs in rungs.items():
        parts = [specialization(sure[a], sure[b], right[a], right[b], bins=_BINS) for a, b in pairs]
        names = {
            "both right": "both right",
            "both wrong": "both wrong",
            "only the base": "only a",
            "only the other": "only b",
        }
        counts = {name: np.sum([part.counts[own] for part in parts], axis=0).tolist() for name, own in names.items()}
        found.append({"rung": rung, "edges": parts[0].edges.tolist(), "counts": counts, "pairs": len(pairs)})
        if rung in shown:
            base, other = pairs[0]
            rows = slice(0, _PLANE_ROWS)
            # 0 both right, 1 both wrong, 2 only the base, 3 only the other.
            a, b = right[base][rows], right[other][rows]
            outcome = np.select([a & b, ~a & ~b, a & ~b], [0, 1, 2], 3)
            planes.append(
                {
                    "rung": rung,
                    "base": base,
                    "other": other,
                    "confidence_base": np.round(sure[base][rows], 4).tolist(),
                    "confidence_other": np.round(sure[other][rows], 4).tolist(),
                    "outcome": outcome.tolist(),
                }
            )
    return {"rungs": found, "planes": planes}


def _features(folder: Path, *names: str) -> list[tuple[Any, Any]]:
    _, models = _study(folder)
    files = {model.name: answers_of(folder, model) for model in models}
    return [tuple(np.load(files[name][half], mmap_mode="r") for half in ("train", "test")) for name in names]


def mixed(folder: Path, base: str, other: str) -> dict[str, Any]:
    """Probe random mixtures of the features of two models."""
    config = settings_of(folder)
    data = data_of(config)
    (train_a, test_a), (train_b, test_b) = _features(folder, base, other)
    dimension = min(train_a.shape[1], train_b.shape[1])
    found = feature_mixing(
        train_a,
        train_b,
        test_a,
        test_b,
        data.train.labels,
        data.test.labels,
        shares=config.features.shares,
        dimension=dimension,
        draws=config.features.draws,
        seed=config.statistics.seed,
        level=config.statistics.level,
        names=(base, other),
        progress=False,
    )
    return found.to_dict()


def curve(folder: Path, base: str, other: str, target: float) -> dict[str, Any]:
    """Probe the first features of two models, most diverse first."""
    config = settings_of(folder)
    data = data_of(config)
    (train_a, test_a), (train_b, test_b) = _features(folder, base, other)
    return features_needed(
        (train_a, train_b),
        (test_a, test_b),
        data.train.labels,
        data.test.labels,
        config.features.order,
        step=config.features.step,
        most=min(train_a.shape[1] + train_b.shape[1], config.features.step * 16),
        target_accuracy=target,
        seed=config.statistics.seed,
        level=config.statistics.level,
        progress=False,
    ).to_dict()


def stacked(folder: Path, base: str, other: str) -> dict[str, Any]:
    """Probe two models for another task, alone and together."""
    config = settings_of(folder)
    data = data_of(config)
    features = dict(zip((base, other), _features(folder, base, other), strict=True))
    train, test = (attributes(config, labels) for labels in (data.train.labels, data.test.labels))
    found = stacked_probe(
        features, train, test, multilabel=True, level=config.statistics.level, seed=config.statistics.seed
    )
    precision = {name: average_precision(test, found.scores[name]).mean for name in (base, other, STACKED)}
    return {**found.to_dict(), "mean_average_precision": precision}


def attributes(config: StudyConfig, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the labels (N, A) of the downstream task: which attributes an image's class has."""
    return np.stack([np.isin(labels, classes) for classes in config.downstream.values()], axis=1).astype(np.int64)


def check_downstream(config: StudyConfig, classes: int) -> None:
    """Refuse attributes that no class, or every class, has.

    Raises
    ------
    InputError
    """
    for name, has in config.downstream.items():
        if not has or max(has) >= classes or len(set(has)) == classes:
            raise InputError(
                f"[downstream].{name}: got {list(has)}, expected some, not all, of the classes 0 to {classes - 1}"
            )


def foretelling(folder: Path, rows: list[int]) -> dict[str, Any]:
    """Measure RM and PM of each group on fewer models, and on fewer probe rows."""
    config, models = _study(folder)
    groups = {group: names for group, names in groups_of(models).items() if len(names) > 1}
    place = {model.name: i for i, model in enumerate(models)}
    places = {group: [place[name] for name in names] for group, names in groups.items()}
    measured = {name: answer_of(folder, name) for name in ("insides", "answers/iid")}
    rm = np.mean(measured["insides"]["distances"], axis=0)
    pm = np.array(measured["answers/iid"][config.predictions.measure])
    seed = config.statistics.seed
    by_models = {
        key: finite_sample_models(matrix, places, draws=_CURVE_DRAWS, seed=seed)
        for key, matrix in (("rm", rm), ("pm", pm))
    }
    by_rows: Sequence[FloatArray] = ()
    if rows:  # none under a ridge
        by_rows = finite_sample_rows(
            {model.name: answers_of(folder, model)["scores"] for model in models if model.group in groups},
            groups,
            rows,
            layers={model.name: _layers(folder, model) for model in models if model.group in groups},
            draws=_ROW_DRAWS,
            seed=seed,
            progress=False,
        ).draws
    of_rows = _pm_of_rows(folder, config, groups, rows)
    return {
        "groups": list(groups),
        "models": {"counts": list(by_models["rm"].counts), **{k: _listed(v.draws) for k, v in by_models.items()}},
        "rows": {"counts": rows, "rm": _listed(by_rows), "pm": _listed(of_rows)},
    }


def _listed(draws: Any) -> list[Any]:
    return [[[float(v) if np.isfinite(v) else None for v in row] for row in of_count] for of_count in draws]


def _pm_of_rows(folder: Path, config: StudyConfig, groups: dict[str, list[str]], counts: list[int]) -> list[FloatArray]:
    """Return PM (draws, groups) of each group on random test rows for each count; of RM's, if these are test rows."""
    predictions = predictions_of(folder, "iid")
    of_rows = np.empty((len(groups), predictions.n))
    for g, names in enumerate(groups.values()):
        some = predictions.select(names)
        for where, p in some.blocks():
            if config.predictions.measure == "disagreement":
                votes = some.votes[:, where]
                differ = votes[:, None] != votes[None]
                of_rows[g, where] = differ.sum(axis=(0, 1)) / (len(names) * (len(names) - 1))
            else:
                of_rows[g, where] = p.var(axis=0, ddof=1).sum(axis=1)
    seed = config.statistics.seed
    found = []
    for count in counts:
        drawn = [
            of_rows[:, np.random.default_rng((seed, count, d)).choice(predictions.n, count, replace=False)].mean(axis=1)
            for d in range(_ROW_DRAWS)
        ]
        found.append(np.array(drawn))
    return found


def associated(folder: Path, sets: list[str]) -> dict[str, Any]:
    """Correlate the distances of insides with the differences of answers, means over some test sets."""
    config, models = _study(folder)
    place = {model.name: i for i, model in enumerate(models)}
    groups = {group: [place[name] for name in names] for group, names in groups_of(models).items()}
    rm = np.mean(answer_of(folder, "insides")["distances"], axis=0)
    pm = np.mean([answer_of(folder, f"answers/{name}")[config.predictions.measure] for name in sets], axis=0)
    how = config.statistics
    found = associate(rm, pm, groups, level=how.level, draws=how.draws, permutations=how.permutations, seed=how.seed)
    return found.to_dict()


def answer_of(folder: Path, name: str) -> dict[str, Any]:
    """Return what another task of the study answered."""
    path = folder / "receipts" / f"{name.replace('/', '__')}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["answer"]
    return found
