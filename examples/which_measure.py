"""What each measure is blind to: the examples by which papers show it, their numbers, pictures and tables.

Run ``python examples/which_measure.py [--out docs/images] [--page docs/which-measure.md]``. Seeds are fixed,
everything is float64; it takes less than a minute on two cores. The pictures go to ``--out``; ``--page`` also writes
the table and the numbers of that page anew.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import streamcca as sc

sys.path.insert(0, str(Path(__file__).parent))

Numbers = dict[str, float]
Array = np.ndarray[Any, np.dtype[np.float64]]

_GRAM = ("rbf_cka", "rsa")  # formed from n x n matrices only
SHOWN = ("cca", "svcca", "pwcca_x", "yanai", "cka", "debiased_cka", "procrustes", "regression_x", "shape")


def measured(x: Array, y: Array, names: Iterable[str] = SHOWN, **options: Any) -> dict[str, sc.SimilarityResult]:
    """Form measures by name, those of moments from one pass and those of n x n matrices from another."""
    names = list(names)
    results: dict[str, sc.SimilarityResult] = {}
    with warnings.catch_warnings():
        # The examples are the cases that these warnings are about.
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        if of_moments := [name for name in names if name not in _GRAM]:
            results.update(sc.similarities(x, y, measures=of_moments, strategy="covariance", **options))
        if of_grams := [name for name in names if name in _GRAM]:
            results.update(sc.similarities(x, y, measures=of_grams, strategy="gram", **options))
    return {name: results[name] for name in names}


def means(x: Array, y: Array, names: Iterable[str] = SHOWN, **options: Any) -> Numbers:
    """Return the numbers alone."""
    return {name: result.mean for name, result in measured(x, y, names, **options).items()}


def rotated(x: Array, rng: np.random.Generator) -> Array:
    """Mix neurons by a random rotation, so that no measure can profit from their order."""
    turned: Array = x @ np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))[0]
    return turned


# ---------------------------------------------------------------------- the examples of the papers


def noise_or_signal(rows: int = 1000) -> dict[str, Numbers]:
    """Raghu et al. 2017, appendix B: 50 signals; they and 150 faint noise directions; they and 150 strong signals.

    Returns
    -------
    dict
        'noise' and 'signal': the measures of A with B and of A with C; `rank_x` and `rank_y` are what `svcca` keeps,
        and `svcca_yanai` is Yanai's coefficient of what it keeps, which divides by sqrt(kx ky) where the mean divides
        by the smaller rank.
    """
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((rows, 50))
    a, result = rotated(shared, rng), {}
    for case, size in (("noise", 0.01), ("signal", 1.0)):
        other = rotated(np.hstack([shared, size * rng.standard_normal((rows, 150))]), rng)
        found = measured(a, other, (*SHOWN, "rsa"))
        kept = found["svcca"].detail
        if kept is None:
            raise RuntimeError("svcca keeps its correlations")
        result[case] = {name: r.mean for name, r in found.items()} | {
            "rank_x": float(kept.rank_x),
            "rank_y": float(kept.rank_y),
            "svcca_yanai": means(a, other, ["yanai"], variance=0.99)["yanai"],
        }
    return result


def shared_and_noise(shared: int, rows: int = 2000, width: int = 200) -> Numbers:
    """Morcos et al. 2018, appendix A.4: `shared` signals, rotated in y, and faint noise (sd 0.1), fresh in y.

    `variance` and `nuclear` are SVCCA by the two rules that the SVCCA paper names, each at 99 %, with the ranks of x.
    """
    rng = np.random.default_rng(2)
    signals = rng.standard_normal((rows, shared))
    x, y = (
        np.hstack([part, 0.1 * rng.standard_normal((rows, width - shared))])
        for part in (signals, rotated(signals, rng))
    )
    result = means(x, y, ["cca", "pwcca_x", "cka", "debiased_cka", "procrustes", "regression_x"])
    for rule in ("variance", "nuclear"):
        r = sc.svcca(x, y, **{rule: 0.99})  # type: ignore[arg-type]
        result |= {rule: r.mean, f"{rule}_rank": float(r.rank_x)}
    return result


def spectrum(width: int) -> Array:
    """Return variances 1/i, which fall as those of trained layers roughly do."""
    return 1.0 / np.arange(1, width + 1)


def deleted(counts: Iterable[int], width: int = 100, rows: int = 1000) -> dict[str, list[float]]:
    """Ding et al. 2021, sensitivity: a view against itself without its smallest principal components.

    Returns
    -------
    dict
        For each measure its numbers, one for each of `counts`, the components deleted; `over_width` is the sum of the
        correlations over the neurons of the whole view, where `cca` divides by the smaller rank.
    """
    rng = np.random.default_rng(3)
    columns = rng.standard_normal((rows, width))
    whole = np.linalg.qr(columns - columns.mean(axis=0))[0] * np.sqrt(spectrum(width) * rows)
    result: dict[str, list[float]] = {name: [] for name in (*SHOWN, "over_width")}
    for count in counts:
        kept = rotated(whole[:, : width - count], rng)
        numbers = means(rotated(whole, rng), kept)
        numbers["over_width"] = numbers["cca"] * (width - count) / width
        for name, number in numbers.items():
            result[name].append(number)
    return result


def remapped(rows: int = 2000, width: int = 50) -> Numbers:
    """Kornblith et al. 2019, section 2.1: a view against an invertible linear map of itself (condition 100)."""
    rng = np.random.default_rng(4)
    x = rotated(rng.standard_normal((rows, width)) * np.sqrt(spectrum(width)), rng)
    stretched = rotated(x, rng) * np.geomspace(1, 100, width)
    return means(x, rotated(stretched, rng))


def too_few_rows(rows: int = 50, width: int = 100) -> Numbers:
    """Kornblith et al. 2019, theorem 1: unrelated views with more neurons than rows; `svcca` keeps 5 directions."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, rows, width))
    names = ["cca", "yanai", "cka", "debiased_cka", "procrustes", "rsa"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        options: dict[str, Any] = {"strategy": "gram", "allow_underdetermined": True}
        result = {name: r.mean for name, r in sc.similarities(x, y, measures=names, **options).items()}
        few = sc.svcca(x, y, rank=5, strategy="gram")
    return result | {"svcca": few.mean, "svcca_null": few.null_mean}


def unrelated_cka(rows: int, width_x: int, width_y: int) -> Numbers:
    """Murphy et al. 2024 (arXiv 2405.01012): CKA and debiased CKA of unrelated Gaussian views, and the chance level."""
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((rows, width_x)), rng.standard_normal((rows, width_y))
    found = sc.similarities(x, y, measures=["cka", "debiased_cka"], strategy="gram")
    return {"cka": found["cka"].mean, "debiased_cka": found["debiased_cka"].mean, "null": found["cka"].null_mean}


CHANCE = ("cca", "pwcca_x", "yanai", "cka", "debiased_cka", "procrustes", "regression_x", "rbf_cka", "rsa")


def chance(rows: Iterable[int], width: int = 50, names: Iterable[str] = CHANCE) -> dict[str, list[tuple[float, float]]]:
    """Unrelated Gaussian views of `width` neurons: for each measure (number, chance level) for each number of rows."""
    result: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for n in rows:
        x, y = np.random.default_rng(7).standard_normal((2, n, width))
        for name, r in measured(x, y, result).items():
            result[name].append((r.mean, r.null_mean))
    return result


def moved(
    distances: Iterable[float],
    share: float,
    rows: int = 1000,
    width: int = 50,
    names: Iterable[str] = (*SHOWN, "rsa"),
) -> dict[str, list[float]]:
    """Davari et al. 2023, theorem 1 (arXiv 2210.16156): a view against itself, a share of its rows moved by a vector.

    The distance is in root mean squares of the rows' norms. `limit` is what CKA tends to, once for every distance: of
    the second view only the indicator of the moved rows is left.
    """
    rng = np.random.default_rng(8)
    x = rng.standard_normal((rows, width)) * np.sqrt(spectrum(width))
    chosen, direction = np.arange(rows) < round(share * rows), rng.standard_normal(width)
    direction *= np.sqrt(np.sum(x**2) / rows) / np.linalg.norm(direction)
    centered, inside = x - x.mean(axis=0), chosen - chosen.mean()
    limit = np.sum((inside @ centered) ** 2) / np.sum(inside**2) / np.linalg.norm(centered.T @ centered)
    result: dict[str, list[float]] = {name: [] for name in (*names, "limit")}
    for distance in distances:
        y = x + distance * np.outer(chosen, direction)
        numbers = means(x, y, names) | {"limit": float(limit)}
        for name, number in numbers.items():
            result[name].append(number)
    return result


def dominant(shares: Iterable[float], rows: int = 2000, width: int = 50) -> dict[str, list[float]]:
    """Nguyen et al. 2021: unrelated views that share one direction, which holds a share of each one's variance."""
    rng = np.random.default_rng(9)
    signal = rng.standard_normal(rows)
    signal *= np.sqrt(rows) / np.linalg.norm(signal)
    own = rng.standard_normal((2, rows, width))
    own -= own.mean(axis=1, keepdims=True)
    own /= np.sqrt(np.sum(own**2, axis=(1, 2), keepdims=True) / rows)
    directions = rng.standard_normal((2, 1, width))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    result: dict[str, list[float]] = {name: [] for name in SHOWN}
    for share in shares:
        x, y = np.sqrt(share) * signal[:, None] * directions + np.sqrt(1 - share) * own
        for name, number in means(x, y).items():
            result[name].append(number)
    return result


def between(alphas: Iterable[float], rows: int = 2000, strong: int = 10, faint: int = 40) -> dict[str, list[float]]:
    """Williams et al. 2021: `shape` from canonical correlations (0) to Procrustes (1).

    'strong' shares the ten strong directions (sd 1) and not the forty faint ones (sd 0.1); 'faint' the other way round.
    """
    rng = np.random.default_rng(10)
    parts = rng.standard_normal((3, rows, strong + faint)) * np.r_[np.ones(strong), np.full(faint, 0.1)]
    result = {}
    for case, common in (
        ("strong", np.arange(strong + faint) < strong),
        ("faint", np.arange(strong + faint) >= strong),
    ):
        x, y = (rotated(np.where(common, parts[0], own), rng) for own in parts[1:])
        result[case] = [sc.similarity("shape", x, y, alpha=float(alpha)).mean for alpha in alphas]
    return result


# ---------------------------------------------------------------------- the page


def numbers() -> Numbers:
    """Return every number that the page names, by the name that follows it there."""
    result = {f"appendix.{case}.{k}": v for case, row in noise_or_signal().items() for k, v in row.items()}
    for shared in (20, 100, 180):
        result |= {f"morcos.{shared}.{k}": v for k, v in shared_and_noise(shared).items()}
    for count, row in (("50", deleted([50])), ("90", deleted([90]))):
        result |= {f"deleted.{count}.{k}": v[0] for k, v in row.items()}
    result |= {f"remapped.{k}": v for k, v in remapped().items()} | {f"few.{k}": v for k, v in too_few_rows().items()}
    for sizes in ((100, 1000, 1000), (1000, 100, 50), (256, 4096, 512)):
        result |= {f"unrelated.{'.'.join(map(str, sizes))}.{k}": v for k, v in unrelated_cka(*sizes).items()}
    for k, v in chance([100, 1000]).items():
        result |= {f"chance.100.{k}": v[0][0], f"chance.1000.{k}": v[1][0]}
    for label, share in (("5", 0.005), ("100", 0.1)):
        result |= {f"moved.{label}.{k}": v[0] for k, v in moved([10.0], share).items()}
    for label, strength in (("50", 0.5), ("80", 0.8), ("995", 0.995)):
        result |= {f"dominant.{label}.{k}": v[0] for k, v in dominant([strength]).items()}
    for case, ends in between([0, 0.5, 1]).items():
        result |= {f"between.{case}.{k}": v for k, v in zip(("0", "0.5", "1"), ends, strict=True)}
    return result


_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(<!--([\w.]+)-->)")


def filled(page: str, values: Numbers, tables: dict[str, str]) -> str:
    """Put numbers before their names, with as many digits as stand there, and tables between their marks."""

    def number(found: re.Match[str]) -> str:
        digits = len(found[1].partition(".")[2])
        text = f"{values[found[3]]:.{digits}f}"
        return (text.removeprefix("-") if float(text) == 0 else text) + found[2]

    page = _NUMBER.sub(number, page)
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = before + begin + table + end + rest.partition(end)[2]
    return page


def main(arguments: list[str] | None = None) -> None:
    """Draw the pictures, and print the numbers or write the page."""
    from which_measure_pictures import draw_all
    from which_measure_table import table

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables and numbers to write anew")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in draw_all(options.out):
        print(path)
    values = numbers()
    if options.page is None:
        print(*(f"{name:<40} {value:8.4f}" for name, value in values.items()), sep="\n")
    else:
        options.page.write_text(filled(options.page.read_text(), values, {"table": table()}))


if __name__ == "__main__":
    main()
