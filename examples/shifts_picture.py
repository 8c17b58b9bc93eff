"""Picture of docs/images/shifts.png: one digit per kind of out-of-distribution version, at all strengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from streamcca.multiplicity.images.data_sets import load_data
from streamcca.multiplicity.images.shifts import SHIFTS, shifted


def draw(path: Path, seed: int = 0) -> None:
    """Draw kinds x strengths; every row is another digit, its untouched image first."""
    images = load_data("digits").test
    chosen = [int(np.flatnonzero(images.labels == digit)[1]) for digit in (3, 5, 2, 7, 4, 8, 9)]
    figure = Figure(figsize=(8.2, 9.2), dpi=130, facecolor="white")
    axes = figure.subplots(len(SHIFTS), 6)
    for row, (kind, shift) in zip(axes, SHIFTS.items(), strict=True):
        index = chosen.pop(0)
        image = images.images[index : index + 1]
        versions = [image, *(shifted(image, kind, strength, seed, first=index) for strength in range(1, 6))]
        captions = ["", *(f"{number:g}" for number in shift.strengths)]
        for cell, version, caption in zip(row, versions, captions, strict=True):
            cell.imshow(version[0, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            cell.set_xlabel(caption, fontsize=9, labelpad=2)
        row[0].set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=11, labelpad=8)
        row[1].text(
            0, 1.05, f"{shift.description}: {shift.unit}", transform=row[1].transAxes, fontsize=8.5, va="bottom"
        )
    for column, title in enumerate(["as it is", *(f"strength {strength}" for strength in range(1, 6))]):
        axes[0, column].set_title(title, fontsize=10, pad=22)
    figure.subplots_adjust(left=0.13, right=0.985, top=0.93, bottom=0.03, hspace=0.45, wspace=0.06)
    figure.savefig(path)


if __name__ == "__main__":
    draw(Path(__file__).parent.parent / "docs" / "images" / "shifts.png")
