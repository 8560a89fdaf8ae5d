"""The HTML page of a report: one file, no network, no JavaScript."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from sojourn.diagnostics.check import Check

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f3; color: #2f3e46; line-height: 1.5;
  font: 15px/1.5 "Source Sans 3", "Source Sans Pro", "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 980px; margin: 2.5rem auto; padding: 2.6rem 3rem 3rem; background: #fff;
  border: 1px solid #e3e6e4; border-radius: 6px; }
h1 { font-size: 1.75rem; font-weight: 600; line-height: 1.2; margin: 0 0 .4rem; color: #1f2d35; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .7rem; padding-top: 1.1rem; color: #1f2d35;
  border-top: 1px solid #e3e6e4; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.facts { color: #5c6b73; margin: 0; max-width: none; }
.verdict { margin: 1.4rem 0 .6rem; padding: .65rem 1rem; border-radius: 4px; font-weight: 600; max-width:
none; } .verdict.pass { background: #e8f2ed; color: #1f6b50; } .verdict.attention { background: #faeee6;
color: #9c4414; } .scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size:
.86rem; font-variant-numeric: tabular-nums; } table.narrow { width: auto; }
th { text-align: right; font-weight: 600; color: #5c6b73;
padding: .35rem .6rem; border-bottom: 1px solid #c9d0cd; } td { text-align: right; padding: .3rem .6rem;
border-bottom: 1px solid #edf0ee; vertical-align: top; } th:first-child, td:first-child, th.text, td.text {
text-align: left; } td:first-child { padding-left: 0; } th:first-child { padding-left: 0; } td.name {
font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .82rem; }
td.pass { color: #1f6b50; } td.attention { color: #b3541e; font-weight: 600; } .where { color: #7b878d; }
.advice { display: block; color: #9c4414; margin-top: .15rem; } figure { margin: 1rem 0 0; } figure img {
display: block; width: 100%; height: auto; } figcaption { color: #5c6b73; font-size: .86rem; margin-top:
.4rem; max-width: 46rem; } footer { margin-top: 2.6rem; padding-top: .8rem; border-top: 1px solid #e3e6e4;
color: #7b878d; font-size: .82rem; } @media print { body { background: #fff; } main { border: 0; margin: 0;
padding: 0; max-width: none; } }
"""


def figure_html(figure: Figure, caption: str = "", alternative: str = "") -> str:
    """A figure as an inline PNG with its caption.

    Args:
        figure: A matplotlib figure.
        caption: How to read it.
        alternative: Text for readers who cannot see it; the caption by default.

    Returns:
        HTML.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure_html(Figure(figsize=(1, 1)), "Empty.")[:37]
        '<figure><img src="data:image/png;base'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    alt = html.escape(alternative or caption or "figure", quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">{text}</figure>'


def table_html(table: pandas.DataFrame) -> str:
    """A data frame as a plain table, numbers to four figures.

    Args:
        table: The data frame; its index is the first column.

    Returns:
        HTML.

    Example:
        >>> import pandas
        >>> "<td>0.3333</td>" in table_html(pandas.DataFrame({"mean": [1 / 3]}, index=["mu"]))
        True
    """
    text_head = '<th class="text">'
    numeric = [bool(kind in "fiub") for kind in (getattr(dtype, "kind", "O") for dtype in table.dtypes)]

    def cell(value: Any, number: bool) -> str:
        if not number:
            return f'<td class="text">{html.escape(str(value))}</td>'
        text = "–" if value != value else str(value)
        if isinstance(value, float) and value == value:
            text = f"{value:.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"
        return f"<td>{html.escape(text)}</td>"

    head = "".join(
        f"{'<th>' if number else text_head}{html.escape(str(name))}</th>"
        for name, number in zip(table.columns, numeric, strict=True)
    )
    rows = [f"<tr><th>{html.escape(str(table.index.name or ''))}</th>{head}</tr>"]
    for label, *values in table.itertuples(name=None):
        cells = "".join(cell(value, number) for value, number in zip(values, numeric, strict=True))
        rows.append(f'<tr><td class="name">{html.escape(str(label))}</td>{cells}</tr>')
    narrow = ' class="narrow"' if len(table.columns) <= 4 else ""
    return f'<div class="scroll"><table{narrow}>{"".join(rows)}</table></div>'


def check_html(check: Check) -> str:
    """The verdict and the findings of a check.

    Args:
        check: What `sojourn.diagnostics.check` returned.

    Returns:
        HTML.

    Example:
        >>> from sojourn.diagnostics.check import Check
        >>> 'class="verdict pass"' in check_html(Check(()))
        True
    """
    state = "pass" if check.ok else "attention"
    rows = []
    for row in check.rows():
        where = f' <span class="where">{html.escape(row["where"])}</span>' if row["where"] else ""
        advice = f'<span class="advice">{html.escape(row["advice"])}</span>' if row["advice"] else ""
        rows.append(
            f'<tr><td class="{row["state"]}">{row["state"]}</td><td class="text name">{row["name"]}</td>'
            f"<td>{row['value']}</td><td>{html.escape(row['threshold'])}</td>"
            f'<td class="text">{html.escape(row["meaning"])}{where}{advice}</td></tr>'
        )
    head = '<tr><th></th><th class="text">check</th><th>value</th><th>wanted</th><th class="text"></th></tr>'
    verdict = html.escape(check.verdict())
    table = f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
    return f'<p class="verdict {state}">{verdict}</p>{table}'


def page_html(title: str, facts: str, parts: list[tuple[str, str]], footer: str) -> str:
    """Put the parts together.

    Args:
        title: Of the page.
        facts: One line below the title.
        parts: Headings, empty for none, and the HTML below them.
        footer: One line at the end.

    Returns:
        A complete HTML document.

    Example:
        >>> page_html("Fit", "nuts", [("Summary", "<p>text</p>")], "").startswith("<!DOCTYPE html>")
        True
    """
    body = "".join(
        f"<section>{f'<h2>{html.escape(heading)}</h2>' if heading else ''}{content}</section>"
        for heading, content in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="facts">{html.escape(facts)}</p>{body}'
        f"<footer>{html.escape(footer)}</footer></main></body></html>\n"
    )
