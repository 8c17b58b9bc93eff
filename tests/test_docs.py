"""What the README and the docs show must run and be true."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

import streamcca as sc
from streamcca import errors, multiplicity
from streamcca.multiplicity.study.origins import ORIGINS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    (claimed,) = re.findall(r"# (SVCCA 0\.\d{3})", README)
    assert claimed in out
    assert float(out.splitlines()[-1]) == pytest.approx(1, abs=1e-6)
    assert (tmp_path / "layers.png").stat().st_size > 10_000


def test_the_training_loop_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "SVCCA to the final state, n = 2000 samples" in capsys.readouterr().out
    for picture in ("curves.png", "map.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert page.parent.joinpath(target).exists(), target


def test_every_error_has_its_section():
    text = (ROOT / "docs/errors.md").read_text()
    headings = " ".join(re.findall(r"^## (.*)$", text, flags=re.MULTILINE))
    own = [name for name, kind in vars(errors).items() if isinstance(kind, type) and name != "StreamCCAError"]
    assert len(own) > 10
    for name in own:
        assert re.search(rf"\b{name}\b", headings), name


def test_public_names_are_in_the_design():
    text = (ROOT / "docs/design.md").read_text()
    functions = [name for name in sc.__all__ if name[0].islower()]
    for name in functions:
        assert f"sc.{name}(" in text, name
    for name in multiplicity.__all__:
        assert name[0].isupper() or f"mm.{name}(" in text, name
        assert not callable(getattr(multiplicity, name)) or getattr(multiplicity, name).__doc__, name


def test_what_the_papers_say_stands_in_the_docs_as_in_the_report():
    text = (ROOT / "docs/multiplicity.md").read_text()
    for origin in ORIGINS:
        assert f"| {origin.what} | {origin.paper} | {origin.ours} |" in text, origin.what


def test_every_promise_about_hooks_has_its_test():
    for line in (ROOT / "docs/hooks.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith(("| situation", "|---")):
            named = re.findall(r"(?:(test_\w+\.py) )?`(test_\w+)`", line.split("|")[-2])
            assert named, line
            for file, test in named:
                assert f"def {test}(" in (ROOT / "tests" / (file or "test_watch.py")).read_text(), test
