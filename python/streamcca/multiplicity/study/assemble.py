"""The results of a study as plain values: what the report, the tables and the pictures show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.multiplicity.images.data_sets import DataSet
from streamcca.multiplicity.models.methods import Method
from streamcca.multiplicity.models.sources import StudyModel
from streamcca.multiplicity.relation.predictors import foretell, foretelling_curves
from streamcca.multiplicity.relation.resampling import Estimate, jackknife, pair_mean, pairs_between, pairs_within
from streamcca.multiplicity.study.config import StudyConfig
from streamcca.multiplicity.study.findings import findings
from streamcca.multiplicity.study.knowledge import knowledge
from streamcca.multiplicity.study.origins import ORIGINS
from streamcca.multiplicity.study.work import set_names

Receipts = Mapping[str, Mapping[str, Any]]
PREDICTIVE = {
    "probability variance": (
        "PM: variance of the predicted probabilities",
        "PM (variance)",
        "variance of the predicted probabilities over the models of a group, summed over classes, mean over images",
    ),
    "disagreement": (
        "PM: share of images on which two models differ",
        "PM (disagreement)",
        "share of images to which two models of a group give different answers, mean over pairs",
    ),
}


class Answers:
    """The answers of all tasks, in arrays that are looked at again and again."""

    def __init__(self, config: StudyConfig, models: Sequence[StudyModel], receipts: Receipts) -> None:
        self.config, self.models, self._receipts = config, models, receipts
        self.names = [model.name for model in models]
        self.sets = set_names(config)
        self.kinds = {
            "iid": ["iid"],
            **{k: [s for s in self.sets if s.startswith(f"{k}-")] for k in config.shifts.kinds},
        }
        if len(self.sets) > 1:
            self.kinds["ood"] = self.sets[1:]
        self.groups: dict[str, list[int]] = {}
        for i, model in enumerate(models):
            self.groups.setdefault(model.group, []).append(i)
        self.distance: FloatArray = np.mean(self["insides"]["distances"], axis=0)
        self.pm = {name: np.array(self[f"answers/{name}"][config.predictions.measure]) for name in self.sets}
        self.accuracy = {name: np.array(self[f"answers/{name}"]["accuracies"]) for name in self.sets}

    def __getitem__(self, task: str) -> Any:
        return self._receipts[task]["answer"]

    def __contains__(self, task: str) -> bool:
        return task in self._receipts

    def get(self, task: str, default: Any) -> Any:
        """Return the answer of a task that not every study has."""
        receipt = self._receipts.get(task)
        return default if receipt is None else receipt["answer"]

    def started_with(self, prefix: str) -> list[Any]:
        """Return the answers of all tasks of one kind."""
        return [receipt["answer"] for name, receipt in self._receipts.items() if name.startswith(prefix)]

    @property
    def level(self) -> float:
        """Of the intervals."""
        return self.config.statistics.level

    def pm_of_kind(self, kind: str) -> FloatArray:
        """Return PM of every two models, mean over the test sets of a kind."""
        found: FloatArray = np.mean([self.pm[name] for name in self.kinds[kind]], axis=0)
        return found

    def accuracy_of_kind(self, kind: str) -> FloatArray:
        """Return the accuracy of every model, mean over the test sets of a kind."""
        found: FloatArray = np.mean([self.accuracy[name] for name in self.kinds[kind]], axis=0)
        return found

    def train_accuracies(self) -> list[float | None]:
        """Return accuracies on the rows and labels that models were trained on; of others, on the training half."""
        found = []
        for name in self.names:
            trained = self._receipts.get(f"train/{name}")
            found.append((trained or self._receipts[f"answers of/{name}"])["answer"]["train_accuracy"])
        return found


def assemble(config: StudyConfig, data: DataSet, models: Sequence[StudyModel], receipts: Receipts) -> dict[str, Any]:
    """Return all results of a study as plain values."""
    answers = Answers(config, models, receipts)
    title, short, explanation = PREDICTIVE[config.predictions.measure]
    settings = {key: value for key, value in config.to_dict().items() if key != "folder"}
    results: dict[str, Any] = {
        "settings": settings,
        "settings_text": json.dumps(settings, indent=1),
        "data": _data(config, data, answers),
        "predictive": {"title": title, "short": short, "explanation": explanation},
        "models": _models(answers),
        "groups": _groups(answers),
        "by_set": {
            name: {"accuracy": float(answers.accuracy[name].mean()), "pm": _mean_of_groups(answers, name)}
            for name in answers.sets
        },
        "representational": _representational(answers),
        "association": {
            which: answers[f"association/{which}"] for which in ("iid", "ood") if f"association/{which}" in answers
        },
        "predictors": _predictors(answers),
        "contested": _contested(answers, data),
        **knowledge(answers),
        "notes": sorted({note for receipt in receipts.values() for note in receipt["notes"]}),
        "sources": [origin._asdict() for origin in ORIGINS],
    }
    return results | {"findings": findings(results, answers)}


def estimate_of_pairs(matrix: FloatArray, group: Sequence[int], level: float) -> dict[str, Any]:
    """Return the mean of a matrix over the pairs of a group, with its interval over models."""
    if len(group) < 2:
        return Estimate(None, reason="a single model has no pair").to_dict()
    pairs = pairs_within(group)
    return jackknife(lambda w: pair_mean(matrix, w, pairs)[:, None], [group], len(matrix), level)[0].to_dict()


def _data(config: StudyConfig, data: DataSet, answers: Answers) -> dict[str, Any]:
    sets = [{"name": "iid", "kind": None, "strength": 0, "root_mean_square": 0.0}]
    for kind in config.shifts.kinds:
        for strength in config.shifts.strengths:
            moved = answers[f"shift/{kind}-{strength}"]["root_mean_square"]
            sets.append({"name": f"{kind}-{strength}", "kind": kind, "strength": strength, "root_mean_square": moved})
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "train": len(data.train.labels),
        "test": len(data.test.labels),
        "classes": list(data.classes),
        "kinds": list(config.shifts.kinds),
        "strengths": list(config.shifts.strengths),
        "sets": sets,
    }


def _models(answers: Answers) -> list[dict[str, Any]]:
    calibration, trained = answers["calibration"], answers.train_accuracies()
    found = []
    for i, model in enumerate(answers.models):
        scaling, captured = calibration[model.name], answers[f"answers of/{model.name}"]
        method = model.method.to_dict() if isinstance(model.method, Method) else dict(model.method)
        own = float(answers.accuracy["iid"][i])
        found.append(
            {
                "name": model.name,
                "group": model.group,
                "method": method,
                "data_set": model.data_set,
                "parameters": captured["parameters"],
                "ranks": captured["ranks"],
                "train_accuracy": trained[i],
                "accuracy": {name: float(answers.accuracy[name][i]) for name in answers.sets},
                "accuracy_by_kind": {kind: float(answers.accuracy_of_kind(kind)[i]) for kind in answers.kinds},
                "gap": None if trained[i] is None else trained[i] - own,  # type: ignore[operator]
                **{
                    key: scaling[key]
                    for key in ("temperature", "at_bound", "nll_before", "nll_after", "ece_before", "ece_after")
                },
            }
        )
    return found


def _mean_of_groups(answers: Answers, name: str) -> float | None:
    values = [
        answers.pm[name][np.ix_(group, group)].sum() / (len(group) * (len(group) - 1))
        for group in answers.groups.values()
        if len(group) > 1
    ]
    return float(np.mean(values)) if values else None


def _groups(answers: Answers) -> list[dict[str, Any]]:
    inside = answers["insides"]
    excess = {tuple(pair["names"]): pair["excess"] for pair in inside["between"]}
    base, trained = answers.config.base, answers.train_accuracies()
    found = []
    for name, members in answers.groups.items():
        within = inside["within"].get(name)
        told = answers["answers/iid"]["groups"].get(name, {})
        known = [trained[i] for i in members if trained[i] is not None]
        accuracy = {kind: float(answers.accuracy_of_kind(kind)[members].mean()) for kind in answers.kinds}
        train_accuracy = float(np.mean(known)) if known else None  # type: ignore[arg-type]
        found.append(
            {
                "name": name,
                "description": description(answers, name),
                "models": [answers.names[i] for i in members],
                "accuracy": accuracy,
                "train_accuracy": train_accuracy,
                "gap": None if train_accuracy is None else train_accuracy - accuracy["iid"],
                "rm": {
                    "mean": within["mean"],
                    "sd": within["sd"],
                    "per_layer": within["per_layer"] if len(members) > 1 else [],
                    "relative_to_chance": within["relative_to_chance"],
                    "excess": excess.get((base, name)) or excess.get((name, base)),
                },
                "pm": {
                    "by_set": {one: estimate_of_pairs(answers.pm[one], members, answers.level) for one in answers.sets},
                    "by_kind": {
                        kind: estimate_of_pairs(answers.pm_of_kind(kind), members, answers.level)
                        for kind in answers.kinds
                    },
                    "ambiguity": told.get("ambiguity"),
                    "discrepancy": told.get("discrepancy"),
                    "churn": told.get("churn"),
                    "jensen_shannon": told.get("jensen_shannon"),
                },
            }
        )
    return found


def description(answers: Answers, group: str) -> str:
    """Say how the models of a group differ from the base group's, or, of that, how they were trained."""
    first = answers.models[answers.groups[group][0]]
    if not isinstance(first.method, Method):
        return f"{first.method.get('architecture', '')}, {first.data_set}"
    own = first.method
    varies = "" if len(own.varies) == 6 else f"members differ in {', '.join(own.varies) or 'nothing'} only"
    base = answers.models[answers.groups[answers.config.base][0]]
    if group == answers.config.base or not isinstance(base.method, Method):
        return (
            f"{own.architecture} {own.width} x {own.depth}, {own.optimizer} {own.learning_rate:g}, {own.epochs} "
            "epochs of "
            f"batches of {own.batch_size}" + (f"; {varies}" if varies else "")
        )
    before = base.method.settings()
    changes = [
        f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in own.settings().items()
        if value != before[key]
    ]
    if first.data_set != base.data_set:
        changes.append(f"trained on {first.data_set}")
    return ", ".join(filter(None, [*changes, varies])) or f"as {answers.config.base}"


def _representational(answers: Answers) -> dict[str, Any]:
    inside = answers["insides"]
    means = {tuple(pair["names"]): pair["mean"]["value"] for pair in inside["between"]}
    names = list(answers.groups)
    between = [
        [inside["within"][g]["mean"]["value"] if g == h else means.get((g, h), means.get((h, g))) for h in names]
        for g in names
    ]
    return {
        "measurement": inside["measurement"],
        "layers": inside["layers"],
        "chance_by_layer": inside["chance_by_layer"],
        "between": between,
        "excess": inside["between"],
        "largest_error_bound": float(np.max(inside["error_bounds"])),
    }


def _predictors(answers: Answers) -> dict[str, Any]:
    names = [name for name, members in answers.groups.items() if len(members) > 1]
    members = [answers.groups[name] for name in names]
    trained = answers.train_accuracies()
    rm, pm = (
        [float(pair_mean(matrix, np.ones((1, len(matrix))), pairs_within(group))[0]) for group in members]
        for matrix in (answers.distance, answers.pm_of_kind("iid"))
    )
    targets: dict[str, list[float]] = {}
    if "ood" in answers.kinds:
        targets["accuracy out of distribution"] = [
            float(answers.accuracy_of_kind("ood")[group].mean()) for group in members
        ]
    if all(trained[i] is not None for group in members for i in group):
        targets["generalization gap"] = [
            float(np.mean([trained[i] for i in group]) - answers.accuracy["iid"][group].mean()) for group in members
        ]
    how, titles = answers.config.statistics, {"rm": "RM", "pm": "PM, i.i.d.", "both": "both"}
    table = [
        {"target": target, "predictor": titles[key], "value": one.r2, "p": one.p, "note": one.note}
        for target, values in targets.items()
        for key, one in foretell(values, {"rm": rm, "pm": pm}, permutations=how.permutations, seed=how.seed).items()
    ]
    target = next(iter(targets), None)
    curves: dict[str, Any] = {"models": {}, "rows": {}}
    if target is not None and "foretelling" in answers:
        measured = answers["foretelling"]
        for key in curves:
            draws = {one: [_numbers(d) for d in measured[key][one]] for one in ("rm", "pm")}
            found = foretelling_curves(measured[key]["counts"], draws, targets[target])
            curves[key] = {name: [point.to_dict() for point in points] for name, points in found.items()}
    return {"table": table, "curves": curves, "curves_title": f"foretelling: {target}", "groups": names}


def _numbers(draws: Sequence[Sequence[float | None]]) -> FloatArray:
    return np.array([[np.nan if value is None else value for value in row] for row in draws], dtype=np.float64)


def _contested(answers: Answers, data: DataSet) -> list[dict[str, Any]]:
    rows = answers["ensembles"]["contested"]
    found = []
    for kind in ("agreed", "disagreed"):
        for row in rows[kind]:
            votes, counts = np.unique(row["votes"], return_counts=True)
            order = np.argsort(-counts, kind="stable")
            found.append(
                {
                    "row": row["row"],
                    "kind": kind,
                    "label": str(data.classes[int(data.test.labels[row["row"]])]),
                    "answers": ", ".join(f"{data.classes[int(votes[i])]} ({counts[i]})" for i in order),
                    "pm": row["variance"],
                    "confidence": float(np.mean(row["confidences"])),
                    "image": np.round(data.test.images[row["row"]], 3).tolist()
                    if data.test.images[0].size <= 4096
                    else None,
                }
            )
    return found


__all__ = ["Answers", "assemble", "estimate_of_pairs", "pairs_between"]
