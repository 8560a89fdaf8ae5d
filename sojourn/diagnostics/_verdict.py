"""A verdict on a fit: its findings, and how they read."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One number of a fit beside its threshold.

    Args:
        name: What is measured, such as `"rhat"`.
        value: The number.
        threshold: The number it is held against.
        ok: Whether the value is on the right side of the threshold.
        where: The variable and entry, the chains or the like where the value was found.
        advice: What to do, empty where `ok`.

    Example:
        >>> Finding("rhat", 1.2, 1.01, False, "phi[0]", "Run longer.").ok
        False
    """

    name: str
    value: float
    threshold: float
    ok: bool
    where: str
    advice: str


_READING = {
    "finite": ("NaN or infinite posterior values", "="),
    "convergence": ("the optimiser had converged", "="),
    "rhat": ("largest R-hat", "<"),
    "ess_bulk": ("smallest bulk effective sample size", ">="),
    "ess_tail": ("smallest tail effective sample size", ">="),
    "divergences": ("divergent transitions", "="),
    "tree_depth": ("fraction of draws at the largest tree depth", "<"),
    "bfmi": ("smallest energy fraction of missing information", ">="),
    "frozen_chains": ("chains that never moved", "="),
    "step_bias": ("shift, in standard deviations, between the step and half of it", "<"),
    "path_update": ("smallest rate at which the path moves", ">="),
    "khat": ("k-hat of the guide's importance weights", "<"),
    "label_switching": ("fraction of draws with switched labels", "<"),
    "modes": ("groups of chains in different modes", "="),
    "warm_start": ("shift of the warm start from this posterior, in standard deviations", "vs"),
}


def number_text(value: float) -> str:
    if math.isfinite(value) and value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}"


@dataclass(frozen=True, repr=False)
class Check:
    """The findings on a fit; print it to read them.

    Args:
        findings: In the order they are to be read.
        subject: What was checked, such as `"nuts, 4 chains of 1000 draws"`.

    Example:
        >>> print(Check((Finding("rhat", 1.2, 1.01, False, "phi", "Run longer chains."),), "nuts"))
        1 of 1 checks needs attention (nuts).
          attention  rhat        1.2  < 1.01   largest R-hat, at phi
                     -> Run longer chains.
    """

    findings: tuple[Finding, ...]
    subject: str = ""

    @property
    def ok(self) -> bool:
        """Whether every finding is."""
        return all(finding.ok for finding in self.findings)

    def verdict(self) -> str:
        """One sentence: passed, or how many checks need attention."""
        total, failed = len(self.findings), sum(not finding.ok for finding in self.findings)
        subject = f" ({self.subject})" if self.subject else ""
        if failed == 0:
            return f"All {total} checks passed{subject}."
        return f"{failed} of {total} checks need{'s' if failed == 1 else ''} attention{subject}."

    def to_dict(self) -> dict[str, Any]:
        """The verdict and the findings as plain Python values, ready for JSON."""
        return {
            "ok": self.ok,
            "subject": self.subject,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def rows(self) -> list[dict[str, str]]:
        """The findings as text, one mapping a row, for a table."""
        rows = []
        for finding in self.findings:
            meaning, relation = _READING.get(finding.name, (finding.name, "vs"))
            rows.append(
                {
                    "state": "pass" if finding.ok else "attention",
                    "name": finding.name,
                    "value": number_text(finding.value),
                    "threshold": f"{relation} {number_text(finding.threshold)}",
                    "meaning": meaning,
                    "where": finding.where,
                    "advice": finding.advice,
                }
            )
        return rows

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = self.rows()
        names, values, thresholds = (
            max((len(row[key]) for row in rows), default=0) for key in ("name", "value", "threshold")
        )
        lines = [self.verdict()]
        for row in rows:
            text = f"{row['meaning']}, {_placed(row['where'])}" if row["where"] else row["meaning"]
            lines.append(
                f"  {row['state']:9}  {row['name']:<{max(names, 10)}}  {row['value']:>{values}}  "
                f"{row['threshold']:<{max(thresholds, 7)}}  {text}"
            )
            if row["advice"]:
                lines.append(f"{'':13}-> {row['advice']}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = []
        for row in self.rows():
            colour = "#2a7f62" if row["state"] == "pass" else "#b3541e"
            advice = f"<br><em>{html.escape(row['advice'])}</em>" if row["advice"] else ""
            where = f" <span style='color:#777'>{html.escape(row['where'])}</span>" if row["where"] else ""
            cells.append(
                f"<tr><td style='color:{colour};font-weight:600'>{row['state']}</td><td>{row['name']}</td>"
                f"<td style='text-align:right'>{row['value']}</td><td>{html.escape(row['threshold'])}</td>"
                f"<td style='text-align:left'>{html.escape(row['meaning'])}{where}{advice}</td></tr>"
            )
        return f"<p><strong>{html.escape(self.verdict())}</strong></p><table>{''.join(cells)}</table>"


def _placed(where: str) -> str:
    # An entry of a variable is "at" its place; words about chains stand for themselves.
    return where if " " in where.split("[")[0] else f"at {where}"
