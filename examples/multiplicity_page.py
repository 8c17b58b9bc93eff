"""Fill docs/multiplicity.md with what a study of `examples/digits.toml` found, and draw its two pictures.

streamcca study examples/digits.toml && python examples/multiplicity_page.py study-digits
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from streamcca.multiplicity.study import feature_pictures, pictures
from streamcca.plots import save_figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"


def findings(results: dict[str, Any]) -> str:
    """Return the claims as a table, and the groups as another."""
    lines = ["| claim | of | verdict | evidence |", "|---|---|---|---|"]
    lines += [f"| {f['claim']} | {f['source']} | **{f['verdict']}** | {f['evidence']} |" for f in results["findings"]]
    lines += [
        "",
        "| group | what is special | accuracy | out of distribution | RM | PM | PM out of distribution |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in results["groups"]:
        rm, pm, shifted = group["rm"]["mean"], group["pm"]["by_kind"]["iid"], group["pm"]["by_kind"]["ood"]
        accuracy = f"{group['accuracy']['iid']:.1%} | {group['accuracy']['ood']:.1%}"
        interval = f"{rm['value']:.3f} ({rm['low']:.3f} to {rm['high']:.3f})"
        lines.append(
            f"| {group['name']} | {group['description']} | {accuracy} | {interval} | {pm['value']:.4f} | "
            f"{shifted['value']:.4f} |"
        )
    return "\n".join(lines)


def main(folder: str) -> None:
    """Write the page's part between its marks, and both pictures."""
    results = json.loads((Path(folder) / "results.json").read_text())
    save_figure(pictures.rm_against_pm(results), DOCS / "images" / "study-rm-pm.png")
    save_figure(feature_pictures.ladder(results), DOCS / "images" / "study-ladder.png")
    page = DOCS / "multiplicity.md"
    text = page.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{before}\n\n{findings(results)}\n\n{after}")


if __name__ == "__main__":
    main(sys.argv[1])
