"""Pieces of an HTML page: pictures as SVG inside, tables, numbers as people read them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Any]

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem 1.25rem 4rem;font:16px/1.5 system-ui,sans-serif;
  color:#1b1b1b;background:#fff}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.6rem 0 .5rem;border-top:2px solid #222;padding-top:.7rem}
h3{font-size:1rem;margin:0 0 .25rem}
p{max-width:46rem;margin:.4rem 0 .8rem}
.grid{columns:26rem auto;column-gap:1.5rem;max-width:100%}
figure{margin:0 0 1.5rem;break-inside:avoid;border:1px solid #ddd;border-radius:6px;padding:.7rem}
figure img{width:100%;height:auto;display:block}
figcaption{font-size:.85rem;color:#444;margin-top:.4rem}
.scroll{overflow-x:auto;margin:.6rem 0 1.2rem}
table{border-collapse:collapse;font-size:.85rem}
th,td{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid #e3e3e3;vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.verdict{white-space:nowrap;font-weight:600}
.found{color:#176b2c}.not{color:#9a1f1f}.open{color:#7a5b00}
small,.small{font-size:.82rem;color:#555}
details{margin:.6rem 0}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;background:#f6f6f6;padding:.7rem;font-size:.78rem}
@media(max-width:480px){body{padding:.6rem .7rem 3rem;font-size:15px}figure{padding:.35rem}h1{font-size:1.35rem}}
"""


def text(value: Any) -> str:
    """Escape a value for the page."""
    return html.escape(str(value))


def figure_html(figure: Figure, caption: str, alternative: str) -> str:
    """Return a figure with its caption."""
    return (
        f'<figure><img alt="{html.escape(alternative, quote=True)}" src="{picture_uri(figure, alternative)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def grid(results: Results, *panels: tuple[Callable[[Results], Figure], str]) -> str:
    """Return pictures side by side where there is room."""
    inside = "".join(figure_html(draw(results), caption, draw.__name__.replace("_", " ")) for draw, caption in panels)
    return f'<div class="grid">{inside}</div>'


def picture_uri(figure: Figure, salt: str) -> str:
    """Return a figure as the text of an SVG image; the same figure gives the same text."""
    from matplotlib import rc_context

    image = io.BytesIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": salt}):
        figure.savefig(image, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode()


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; columns in `numbers` stand to the right."""

    def cell(tag: str, column: int, value: str) -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{kind}>{text(value)}</{tag}>"

    top = "".join(cell("th", i, value) for i, value in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def digits(value: float | None, places: int = 3) -> str:
    """Return a number with so many places, a dash for none."""
    return "-" if value is None else f"{value:.{places}f}"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return "-" if value is None else f"{value:.1%}"


def range_text(found: Mapping[str, Any], places: int = 3) -> str:
    """Return the ends of an interval."""
    if found.get("low") is None or found.get("high") is None:
        return "-"
    return f"{found['low']:.{places}f} to {found['high']:.{places}f}"


def with_range(found: Mapping[str, Any] | None, places: int = 3) -> str:
    """Return a value and its interval."""
    if found is None or found.get("value") is None:
        return "-"
    inside = range_text(found, places)
    return digits(found["value"], places) + ("" if inside == "-" else f" ({inside})")


def p_value(found: Mapping[str, Any] | None) -> str:
    """Return the p value of a finding."""
    if found is None or found.get("p") is None:
        return "-"
    return f"{found['p']:.4f}" if found["p"] >= 1e-4 else "< 0.0001"
