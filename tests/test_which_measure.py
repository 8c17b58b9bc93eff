"""docs/which-measure.md: its examples say what the papers say, its table and numbers are those of its script."""

from __future__ import annotations

import functools
import importlib
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import streamcca as sc

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import which_measure as which  # noqa: E402
import which_measure_table as tables  # noqa: E402

PAGE = ROOT / "docs/which-measure.md"


@pytest.fixture(scope="module")
def numbers():
    return which.numbers()


# ---------------------------------------------------------------------- the examples


def test_only_the_ranks_tell_noise_from_signal_in_a_mean_over_the_smaller_rank():
    found = which.noise_or_signal(rows=600)
    noise, signal = found["noise"], found["signal"]
    for case in (noise, signal):
        # The 50 signals lie in both.
        assert case["cca"] == pytest.approx(1, abs=1e-9)
        assert case["regression_x"] == pytest.approx(1, abs=1e-9)
        assert case["yanai"] == pytest.approx(math.sqrt(50 / 200), abs=1e-9)
        assert case["rank_x"] in (49, 50)
    assert noise["svcca"] > 0.99 < noise["svcca_yanai"]
    assert noise["rank_y"] <= 50 < 180 < signal["rank_y"] <= 200
    # Strong signals: SVCCA's mean does not fall, what divides by both sizes does.
    assert signal["svcca"] > 0.95
    assert signal["svcca_yanai"] == pytest.approx(math.sqrt(50 / signal["rank_y"]), abs=0.03)
    for name in ("cka", "debiased_cka", "procrustes"):
        assert noise[name] > 0.99
        # 50 of 200 equal directions: their share of both norms is one half.
        assert signal[name] == pytest.approx(0.5, abs=0.06)


# reference/README: one draw, +- 0.01
MORCOS = {
    20: {"cca": 0.333, "pwcca_x": 0.473, "variance": 0.326, "nuclear": 0.332, "ranks": (165, 195)},
    100: {"cca": 0.598, "pwcca_x": 0.930, "variance": 1.000, "nuclear": 0.620, "ranks": (100, 187)},
    180: {"cca": 0.909, "pwcca_x": 0.997, "variance": 1.000, "nuclear": 0.995, "ranks": (177, 181)},
}


@pytest.mark.parametrize("shared", MORCOS)
def test_the_rule_is_part_of_the_number(numbers, shared):
    known = MORCOS[shared]
    for name in ("cca", "pwcca_x", "variance", "nuclear"):
        assert numbers[f"morcos.{shared}.{name}"] == pytest.approx(known[name], abs=0.012), name
    for rule, rank in zip(("variance", "nuclear"), known["ranks"], strict=True):
        assert abs(numbers[f"morcos.{shared}.{rule}_rank"] - rank) <= 2
    # Size is what CKA and Procrustes look at: faint noise does not lower them.
    assert numbers[f"morcos.{shared}.cka"] > 0.99
    assert numbers[f"morcos.{shared}.procrustes"] > 0.93


def test_deleted_components_have_closed_forms():
    counts, width = [0, 1, 13, 30, 39], 40
    found = which.deleted(counts, width=width, rows=300)
    variances = 1 / np.arange(1, width + 1)
    for i, count in enumerate(counts):
        kept = variances[: width - count]
        expected = {
            "cca": 1,
            "pwcca_x": 1,
            "over_width": 1 - count / width,
            "yanai": math.sqrt(1 - count / width),
            "cka": np.linalg.norm(kept) / np.linalg.norm(variances),
            "procrustes": math.sqrt(kept.sum() / variances.sum()),
            "regression_x": kept.sum() / variances.sum(),
        }
        for name, number in expected.items():
            assert found[name][i] == pytest.approx(number, abs=1e-9), (name, count)
        assert found["svcca"][i] == pytest.approx(1, abs=1e-9)
        assert found["yanai"][i] - 1e-9 <= found["shape"][i] <= found["procrustes"][i] + 1e-9


def test_invertible_maps_move_what_looks_at_size():
    found = which.remapped(rows=500, width=30)
    for name in ("cca", "pwcca_x", "yanai", "regression_x"):
        assert found[name] == pytest.approx(1, abs=1e-9), name
    for name in ("cka", "debiased_cka", "procrustes"):
        assert 0.4 < found[name] < 0.9, name


def test_more_neurons_than_rows_leave_nothing_but_debiased_cka():
    found = which.too_few_rows()
    assert found["cca"] == pytest.approx(1, abs=1e-9)
    assert found["yanai"] == pytest.approx(1, abs=1e-9)
    assert found["cka"] > 0.6
    assert found["procrustes"] > 0.8
    assert abs(found["debiased_cka"]) < 0.08
    assert abs(found["rsa"]) < 0.15
    # Five directions a side: one draw of the mean of five correlations, each of deviation below 1 / sqrt(49).
    assert found["svcca_null"] == pytest.approx(sc.null_mean(5, 5, 50))
    assert found["svcca"] == pytest.approx(found["svcca_null"], abs=0.15)


@pytest.mark.parametrize(("sizes", "known"), [((100, 1000, 1000), 0.909), ((1000, 100, 50), 0.066)])
def test_cka_of_unrelated_views_is_its_chance_level(sizes, known):
    found = which.unrelated_cka(*sizes)
    n, p, q = sizes
    assert math.sqrt(p * q / ((n + p) * (n + q))) == pytest.approx(known, abs=1e-3)
    assert found["cka"] == pytest.approx(known, abs=0.004)
    assert found["null"] == pytest.approx(known, abs=0.002)
    assert abs(found["debiased_cka"]) < 0.01


def test_unrelated_views_score_what_null_mean_says():
    rows = [80, 120, 400]
    found = which.chance(rows, width=30, names=(*which.CHANCE, "adjusted_rv"))
    for name, curve in found.items():
        for n, (number, level) in zip(rows, curve, strict=True):
            # Half of a distance's variance is that of its two rows' norms, whose correlation has deviation 1 / sqrt(n).
            slack = 4 * 0.5 / math.sqrt(n) if name == "rsa" else 0.05
            assert number == pytest.approx(level, abs=slack), name
        levels = [level for _, level in curve]
        if name in ("debiased_cka", "adjusted_rv", "rsa"):
            assert levels == [0, 0, 0]
        else:
            assert levels[0] > levels[1] > levels[2] > 0.03, name
    # E mean rho^2 = max(kx, ky) / (n - 1), exactly.
    assert [level for _, level in found["yanai"]] == pytest.approx([30 / (n - 1) for n in rows])


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_a_few_moved_rows_decide_cka(share):
    found = which.moved([0, 10, 300], share=share, rows=400, width=30)
    for name in set(found) - {"limit"}:
        assert found[name][0] == pytest.approx(1, abs=1e-9), name
    far = which.moved([1e5], share=share, rows=400, width=30, names=["cka"])
    assert far["cka"][0] == pytest.approx(far["limit"][0], rel=2e-3)
    assert found["limit"][2] < 0.1
    assert found["cka"][1] < found["procrustes"][1] < 0.95
    # A map of rank one added: all but one correlation stay, however far.
    for i in (1, 2):
        assert 28.9 / 30 < found["cca"][i] < 0.999
    assert found["svcca"][1] > 0.9
    if share < 0.05:
        assert found["rsa"][1] > 0.95


def test_one_direction_decides_cka_and_svcca_does_not_see_its_size():
    shares = [0, 0.5, 0.9, 0.995]
    found = which.dominant(shares, rows=1500, width=40)
    chance = sc.null_mean(40, 40, 1500)
    assert found["cka"][1] > 0.9
    assert found["debiased_cka"][1] > 0.9
    for i in (1, 2):
        # One direction of 40, and chance in the others.
        assert found["svcca"][i] == pytest.approx(chance + (1 - chance) / 40, abs=0.03)
        assert found["regression_x"][i] == pytest.approx(shares[i] + (1 - shares[i]) * 40 / 1500, abs=0.03)
        assert found["procrustes"][i] == pytest.approx(shares[i] + (1 - shares[i]) * chance, abs=0.05)
    assert found["svcca"][3] > 0.99
    assert found["cca"][3] < 0.2


def test_shape_goes_from_correlations_to_procrustes():
    found = which.between([0, 0.25, 0.5, 0.75, 1])
    assert found["strong"] == sorted(found["strong"])
    assert found["faint"] == sorted(found["faint"], reverse=True)
    assert found["faint"][0] - found["strong"][0] > 0.4
    assert found["strong"][4] - found["faint"][4] > 0.8
    chance = sc.null_mean(40, 40, 2000)
    # Shares of directions at one end, of variances at the other; the rest is chance.
    assert found["strong"][0] == pytest.approx((10 + 40 * chance) / 50, abs=0.02)
    assert found["strong"][4] == pytest.approx((10 + 0.4 * chance) / 10.4, abs=0.01)
    assert found["faint"][4] == pytest.approx((0.4 + 10 * sc.null_mean(10, 10, 2000)) / 10.4, abs=0.02)


# ---------------------------------------------------------------------- the page

_NAMED = re.compile(r"(-?\d+(?:\.\d+)?)<!--([\w.]+)-->")
_TABLE = re.compile(r"<!-- table -->\n(.*)\n<!-- end of table -->", flags=re.DOTALL)


def test_the_numbers_of_the_page_are_those_of_the_script(numbers):
    page = PAGE.read_text()
    named = _NAMED.findall(page)
    assert len(named) > 90
    for text, name in named:
        # Half a unit of the last digit; where correlations tie, the variates that PWCCA weighs are free to turn.
        digits = len(text.partition(".")[2])
        slack = 0.02 if "pwcca" in name else 1e-6
        assert abs(float(text) - numbers[name]) <= 0.5 * 10.0**-digits + slack, name
    rest = _TABLE.sub("", _NAMED.sub("", page))
    # Whatever else looks like a measured number is an option or a size of an example.
    assert set(re.findall(r"(?<![\w.])\d+\.\d+", rest)) == {"0.99", "0.5", "0.1"}


def test_the_numbers_carry_the_claims_of_the_page(numbers):
    assert numbers["few.cca"] > 0.999 > 0.6 > numbers["few.debiased_cka"]
    for name in ("cca", "svcca", "pwcca_x"):
        assert numbers[f"deleted.90.{name}"] > 0.999
    assert numbers["deleted.90.cka"] > 0.95 > 0.8 > numbers["deleted.90.procrustes"] > numbers["deleted.90.yanai"]
    assert numbers["unrelated.256.4096.512.cka"] == pytest.approx(0.792, abs=0.004)
    assert numbers["moved.5.cka"] < 0.6 < 0.95 < min(numbers[f"moved.5.{name}"] for name in ("cca", "svcca", "rsa"))


def _cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_is_the_one_of_the_script():
    (committed,) = _TABLE.findall(PAGE.read_text())
    committed, made = _cells(committed), _cells(tables.table())
    assert [row[0] for row in committed[2:]] == [f"`{name}`" for name in sc.MEASURES]
    assert len(committed) == len(made) == 26
    for old, new in zip(committed, made, strict=True):
        numeric = (5, 6) if old[0].startswith("`") else ()
        assert [c for i, c in enumerate(old) if i not in numeric] == [c for i, c in enumerate(new) if i not in numeric]
        for i in numeric:
            slack = 0.02 if "pwcca" in old[0] else 0.011  # a last digit may turn
            assert float(old[i]) == pytest.approx(float(new[i]), abs=slack), old[0]


def test_the_table_says_what_is_declared():
    rows = {row[0].strip("`"): row for row in _cells(tables.table())[2:]}
    for name, declared in sc.MEASURES.items():
        row = rows[name]
        assert (row[2] == "yes") == declared.symmetric
        assert ("of x:" in row[3]) == (declared.invariant_x != declared.invariant_y)
        for changes in (declared.invariant_x, declared.invariant_y):
            if "linear" in changes:
                assert "any invertible linear map" in row[3]
            else:
                assert ("rotation" in row[3]) == ("rotation" in changes)
        assert row[7] == declared.paper
    assert set(tables.SEES) == set(sc.MEASURES)


def test_filling_a_page_replaces_numbers_and_tables():
    page = "a 0.12<!--x.y--> b -3<!--z--> 7\n<!-- t -->\nold\n<!-- end of t -->\nend\n"
    filled = which.filled(page, {"x.y": -0.001, "z": 41.6}, {"t": "| new |"})
    assert filled == "a 0.00<!--x.y--> b 42<!--z--> 7\n<!-- t -->\n| new |\n<!-- end of t -->\nend\n"
    assert which.filled(filled, {"x.y": -0.001, "z": 41.6}, {"t": "| new |"}) == filled


def _quicker(monkeypatch):
    for name in ("moved", "dominant"):
        monkeypatch.setattr(which, name, functools.partial(getattr(which, name), rows=200))
    small = which.chance
    monkeypatch.setattr(which, "chance", lambda rows: small([min(n, 300) for n in rows]))


@pytest.mark.slow
def test_the_script_draws_its_pictures(tmp_path, monkeypatch):
    pictures = importlib.import_module("which_measure_pictures")
    _quicker(monkeypatch)
    monkeypatch.setattr(which, "numbers", lambda: {"a": 1.0})
    which.main(["--out", str(tmp_path / "new")])
    page = PAGE.read_text()
    for name in pictures.PICTURES:
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "new" / name).stat().st_size > 10_000
        assert (ROOT / "docs/images" / name).stat().st_size > 10_000
        assert f"(images/{name})" in page


def test_the_lines_of_a_picture_are_the_numbers():
    pictures = importlib.import_module("which_measure_pictures")
    axes = pictures.draw_deleted().axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert {"cca", "svcca", "cka", "procrustes", "yanai"} < set(labels)
    (line,) = [line for line in axes.lines if line.get_color() == pictures.COLORS["cka"]]
    variances = 1 / np.arange(1, 101)
    expected = [np.linalg.norm(variances[: 100 - int(c)]) / np.linalg.norm(variances) for c in line.get_xdata()]
    assert line.get_ydata() == pytest.approx(expected, abs=1e-9)
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.04  # names do not overlap
