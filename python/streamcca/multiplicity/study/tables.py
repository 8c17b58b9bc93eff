"""A study's results as text and as files of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamcca.store import write_atomically

Results = Mapping[str, Any]


def text_of(results: Results, report: Path) -> str:
    """Return groups and findings as lines of text."""
    groups = results["groups"]
    width = max(5, *(len(group["name"]) for group in groups))
    kind = "ood" if "ood" in groups[0]["accuracy"] else "iid"
    lines = [
        f"{len(results['models'])} models in {len(groups)} groups on {results['data']['name']}",
        f"{'group':<{width}}  {'accuracy':>8}  {kind:>7}  {'RM':>6}  {'PM':>7}  {'PM ' + kind:>7}",
    ]
    for group in groups:
        rm, pm, shifted = (
            found["value"]
            for found in (group["rm"]["mean"], group["pm"]["by_kind"]["iid"], group["pm"]["by_kind"][kind])
        )
        lines.append(
            f"{group['name']:<{width}}  {group['accuracy']['iid']:>8.1%}  {group['accuracy'][kind]:>7.1%}  "
            f"{_number(rm, 3):>6}  {_number(pm, 4):>7}  {_number(shifted, 4):>7}"
        )
    lines += [
        "",
        *(
            f"{finding['verdict'] + ':':<11} {finding['claim']}\n{'':<12}{finding['evidence']}"
            for finding in results["findings"]
        ),
    ]
    return "\n".join([*lines, "", f"report: {report}"])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_tables(results: Results, folder: Path) -> None:
    """Write models.csv, groups.csv, pairs.csv, ladder.csv and findings.csv."""
    sets = [one["name"] for one in results["data"]["sets"]]
    models = [
        {
            **{key: model[key] for key in ("name", "group", "data_set", "parameters", "train_accuracy", "gap")},
            **{f"accuracy {name}": model["accuracy"][name] for name in sets},
            **{key: model[key] for key in ("temperature", "nll_before", "nll_after", "ece_before", "ece_after")},
        }
        for model in results["models"]
    ]
    groups = [
        {
            "group": group["name"],
            "description": group["description"],
            **_ends("RM", group["rm"]["mean"]),
            "RM sd of pairs": group["rm"]["sd"],
            **{
                f"RM {layer}": one["value"]
                for layer, one in zip(results["representational"]["layers"], group["rm"]["per_layer"], strict=False)
            },
            **{key: value for name in sets for key, value in _ends(f"PM {name}", group["pm"]["by_set"][name]).items()},
            **{key: group["pm"][key] for key in ("ambiguity", "discrepancy", "churn", "jensen_shannon")},
        }
        for group in results["groups"]
    ]
    pairs = [{**pair, "groups": " / ".join(pair["groups"])} for pair in results["pairs"]]
    ladder = [{"rung": rung["rung"], **pair} for rung in results["ladder"]["rungs"] for pair in rung["pairs"]]
    for name, rows in (
        ("models", models),
        ("groups", groups),
        ("pairs", pairs),
        ("ladder", ladder),
        ("findings", results["findings"]),
    ):
        write_atomically(folder / f"{name}.csv", _csv(rows).encode())


def _ends(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found["value"], f"{name} low": found["low"], f"{name} high": found["high"]}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns: list[str] = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(_cells(row, columns) for row in rows)
    return out.getvalue()


def _cells(row: Mapping[str, Any], columns: Iterable[str]) -> list[Any]:
    return ["" if row.get(column) is None else row[column] for column in columns]
