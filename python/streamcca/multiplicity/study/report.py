"""One self-contained HTML page of a study's results: pictures inside, nothing fetched, nothing run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from streamcca.multiplicity.study import feature_pictures, pictures
from streamcca.multiplicity.study.page import (
    STYLE,
    digits,
    figure_html,
    grid,
    p_value,
    percent,
    range_text,
    table,
    text,
    with_range,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
Panel = tuple[Callable[[Results], "Figure"], str]


def report_html(results: Results) -> str:
    """Return the page.

    Parameters
    ----------
    results : mapping
        What `run_study` writes to results.json.
    """
    title = f"Model multiplicity: {results['settings']['name']}"
    parts = [
        f"<h1>{text(title)}</h1>",
        _summary(results),
        _findings(results),
        _insides(results),
        _answers(results),
        _together(results),
        _cards(results),
        _knowledge(results),
        _models(results),
        _how(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _summary(results: Results) -> str:
    data = results["data"]
    models = results["models"]
    accuracies = [model["accuracy"]["iid"] for model in models]
    return (
        f"<p>{len(models)} models in {len(results['groups'])} groups, trained on {text(data['name'])} "
        f"({data['train']} images for training, {data['test']} for tests, {len(data['classes'])} classes). They "
        "are right on "
        f"{min(accuracies):.1%} to {max(accuracies):.1%} of the test images. This page shows how different they "
        "are inside "
        "(<b>RM</b>, representational multiplicity), how different their answers are (<b>PM</b>, predictive "
        "multiplicity), what "
        "one tells about the other, and what some models know that others do not. Intervals are of "
        f"{results['settings']['statistics']['level']:.0%}.</p>"
    )


def _findings(results: Results) -> str:
    words = {"found": ("found", "found"), "not found": ("not found", "not"), "undecided": ("undecided", "open")}
    rows = []
    for finding in results["findings"]:
        word, style = words[finding["verdict"]]
        rows.append(
            f"<tr><td>{text(finding['claim'])}<br><small>{text(finding['source'])}</small></td>"
            f'<td class="verdict {style}">{word}</td><td>{text(finding["evidence"])}</td></tr>'
        )
    return (
        "<h2>What was looked for, and what was found</h2><p>Claims of the two papers, looked for in these models. "
        "Found: the interval, or the permutation test, leaves out that there is nothing, on the claim's side. Not "
        "found: on the other side. Undecided: it cannot tell. All of it is about these models and this data.</p>"
        '<div class="scroll"><table><thead><tr><th>claim</th><th></th><th>evidence</th></tr></thead><tbody>'
        + "".join(rows)
        + "</tbody></table></div>"
    )


def _insides(results: Results) -> str:
    found = results["representational"]
    return (
        "<h2>How different are the insides?</h2><p>RM is the mean distance, 1 - similarity, of every two models "
        "of a group on "
        f"the same images: 0 where all layers hold the same up to rotation, 1 where they share nothing. Measured as "
        f"{text(found['measurement'])}.</p>"
        + grid(
            results,
            (
                pictures.rm_heat_map,
                "RM within each group (diagonal, bold) and between every two groups, mean over the layers.",
            ),
            (
                pictures.rm_by_layer,
                "RM within the groups from the first layer to the last. Dashed: layers that have nothing in common.",
            ),
        )
        + table(
            ["group", "what is special", "RM", "interval", "SD of pairs", "excess over the base group"],
            [
                [
                    group["name"],
                    group["description"],
                    digits(group["rm"]["mean"]["value"]),
                    range_text(group["rm"]["mean"]),
                    digits(group["rm"]["sd"]),
                    with_range(group["rm"]["excess"]),
                ]
                for group in results["groups"]
            ],
            numbers=(2, 3, 4, 5),
        )
    )


def _answers(results: Results) -> str:
    kinds = results["data"]["kinds"]
    head = ["group", "accuracy", *(f"accuracy, {kind}" for kind in kinds), "PM", *(f"PM, {kind}" for kind in kinds)]
    rows = [
        [
            group["name"],
            percent(group["accuracy"]["iid"]),
            *(percent(group["accuracy"][kind]) for kind in kinds),
            digits(group["pm"]["by_kind"]["iid"]["value"], 4),
            *(digits(group["pm"]["by_kind"][kind]["value"], 4) for kind in kinds),
            percent(group["pm"]["ambiguity"]),
            percent(group["pm"]["discrepancy"]),
        ]
        for group in results["groups"]
    ]
    head += ["ambiguity", "discrepancy"]
    panels: list[Panel] = [
        (pictures.pm_bars, "PM of each group on the test set and on its shifted versions, with intervals over models."),
    ]
    if kinds:
        caption = "PM and accuracy as the test images move away from the training images."
        panels.append((pictures.pm_by_strength, caption))
    if any(row["image"] is not None for row in results["contested"]):
        caption = "Test images on which all models differ most; in brackets, how many of them say so."
        panels.append((pictures.contested_images, caption))
    return (
        "<h2>How different are the answers?</h2><p>PM is the "
        f"{text(results['predictive']['explanation'])}. Ambiguity is the share of i.i.d. test images on which a model "
        "of the group answers otherwise than its best one; discrepancy, how many the most different single model "
        "answers otherwise.</p>"
        + grid(results, *panels)
        + table(head, rows, numbers=tuple(range(1, len(head))))
        + _contested(results)
    )


def _contested(results: Results) -> str:
    rows = [
        [str(row["row"]), row["label"], row["answers"], digits(row["pm"], 3), percent(row["confidence"])]
        for row in results["contested"]
    ]
    return (
        "<details><summary>Test images on which all models differ most</summary><p>By the variance of their calibrated "
        "probabilities.</p>"
        + table(["image", "label", "answers (models)", "PM", "mean confidence"], rows, numbers=(0, 3, 4))
        + "</details>"
    )


def _together(results: Results) -> str:
    rows = []
    for which, title in (("iid", "i.i.d."), ("ood", "out of distribution")):
        for level in ("groups", "within", "all"):
            found = results["association"].get(which, {}).get(level)
            if found is None:
                continue
            rows.append(
                [
                    f"{found['points']} {found['over']}, {title}",
                    *(with_range(found[name]) for name in ("pearson", "spearman", "kendall")),
                    p_value(found["test"]),
                    found["pearson"]["reason"],
                ]
            )
    predictors = [
        [row["target"], row["predictor"], digits(row["value"], 2), p_value(row), row.get("note", "")]
        for row in results["predictors"]["table"]
    ]
    return (
        "<h2>Does one tell about the other?</h2><p>Pairs of models share models; intervals therefore come from "
        "drawing models, "
        "not pairs, and p values from permuting models (Mantel).</p>"
        + grid(
            results,
            (pictures.rm_against_pm, "Each point is a group: RM to the right, PM upward, with intervals over models."),
            (pictures.pairs_plane, "Each point is a pair of models, i.i.d. test set."),
            (
                pictures.predictor_curves,
                "R2 of the prediction for groups that were left out, from a line through the others: 1 is perfect, "
                "0 no better than their mean.",
            ),
        )
        + table(
            ["RM with PM over", "Pearson", "Spearman", "Kendall", "p (permutations)", ""], rows, numbers=(1, 2, 3, 4)
        )
        + table(["foretold, groups left out", "from", "R2", "p", ""], predictors, numbers=(2, 3))
    )


def _cards(results: Results) -> str:
    cards = "".join(
        figure_html(pictures.group_card(results, group), f"{group['name']}: {group['description']}", group["name"])
        for group in results["groups"]
    )
    return (
        "<h2>Cards</h2><p>One for each group: how different its models are inside, layer by layer, and in their "
        "answers, test set "
        f'by test set. Gray: the other groups.</p><div class="grid">{cards}</div>'
    )


def _knowledge(results: Results) -> str:
    rungs = results["ladder"]["rungs"]
    rows = [
        [
            rung["rung"],
            str(len(rung["pairs"])),
            *(
                with_range(rung[name])
                for name in (
                    "distance",
                    "error_inconsistency",
                    "kappa",
                    "improvement_mean",
                    "improvement_best",
                    "conversion",
                )
            ),
        ]
        for rung in rungs
    ]
    panels: list[Panel] = []
    if rungs:
        panels += [
            (
                feature_pictures.ladder,
                "From pairs that differ by their seed only to pairs that differ by more and more. Dots: pairs; black: "
                "mean and interval over models.",
            ),
            (
                feature_pictures.ensemble_gain,
                "The more two models err on different images, the more their ensemble gains.",
            ),
            (
                feature_pictures.confidence_plane,
                "Each point is a test image: how sure the two models are. Where only one is right, is it the surer "
                "one?",
            ),
            (
                feature_pictures.specialization,
                "The same as an angle: near 0 both are as sure, to the right the base is surer.",
            ),
        ]
    if results["mixing"]["rungs"]:
        panels.append((feature_pictures.mixing, "Linear probes on features drawn at random from two models."))
    if results["features_needed"]["rungs"]:
        panels.append((feature_pictures.feature_curves, _curves_caption(results["features_needed"])))
    panels.append(
        (
            feature_pictures.greedy_path,
            "Models are added one by one, each time the one that helps most on one half of the test set; solid: "
            "the other half.",
        )
    )
    stacked = [
        [
            row["rung"],
            f"{row['base']} + {row['other']}",
            percent(row["base_value"]),
            percent(row["other_value"]),
            percent(row["both_value"]),
            digits(row["gain"]),
            with_range(row["answers_gain"]),
        ]
        for row in results["stacked"]["rows"]
    ]
    left_out = results["ladder"]["left_out"]
    note = (
        f" {left_out} pairs are left out, since their accuracies differ by more than "
        f"{results['settings']['features']['accuracy_band']:.1%}."
        if left_out
        else ""
    )
    return (
        "<h2>What do differently trained models know?</h2><p>Models of the group "
        f"{text(results['ladder']['base'])!r} are paired with all "
        f"others; how a pair differs is read off how its models were trained.{note} Temperatures were fitted to "
        "each model's i.i.d. test answers before ensembling.</p>"
        + table(
            [
                "rung",
                "pairs",
                "distance inside",
                "error inconsistency",
                "kappa",
                "gain over mean",
                "gain over best",
                "conversion",
            ],
            rows,
            numbers=tuple(range(1, 8)),
        )
        + grid(results, *panels)
        + f"<h3>Stacked probe for another task: {text(results['stacked']['task'])}</h3>"
        + table(
            [
                "rung",
                "pair",
                "base alone",
                "other alone",
                "both",
                "gain over the better",
                "gain in right answers over the better",
            ],
            stacked,
            numbers=(2, 3, 4, 5, 6),
        )
    )


def _curves_caption(found: Mapping[str, Any]) -> str:
    never = found["censored"]
    return f"Probes on the first features of two models together, ordered by {found['order']}." + (
        f" {never} pairs never get there and are no dots on the right." if never else ""
    )


def _models(results: Results) -> str:
    kinds = results["data"]["kinds"]
    head = ["model", "train", "test", *kinds, "gap", "temperature", "ECE", "ECE, calibrated"]
    rows = [
        [
            model["name"],
            percent(model["train_accuracy"]),
            percent(model["accuracy"]["iid"]),
            *(percent(model["accuracy_by_kind"][kind]) for kind in kinds),
            percent(model["gap"]),
            digits(model["temperature"], 2),
            digits(model["ece_before"]),
            digits(model["ece_after"]),
        ]
        for model in results["models"]
    ]
    return (
        "<h2>The models</h2><details><summary>Accuracy and calibration of each</summary>"
        + table(head, rows, numbers=tuple(range(1, len(head))))
        + "</details>"
    )


def _how(results: Results) -> str:
    notes = "".join(f"<li>{text(note)}</li>" for note in results["notes"])
    origin = table(["computation", "the paper", "ours"], [list(row.values()) for row in results["sources"]])
    return (
        "<h2>How it was done</h2>"
        + (
            f"<details><summary>{len(results['notes'])} notes made while computing</summary><ul>{notes}</ul></details>"
            if notes
            else ""
        )
        + f"<details><summary>What the papers say, and what we chose</summary>{origin}</details>"
        + f"<details><summary>Settings</summary><pre>{text(results['settings_text'])}</pre></details>"
        + f'<p class="small">streamcca {text(results["version"])}; data {text(results["data"]["fingerprint"])}</p>'
    )
