"""What ``diagnose_model`` finds, and how it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sojourn.inference._fit import ENGINES

__all__ = ["CHAINS", "DRAWS", "ModelDiagnosis", "SiteDescription"]

CHAINS, DRAWS = 4, 1000  # of the run whose memory is told
_SHOWN = 10  # sites in the table


@dataclass(frozen=True)
class SiteDescription:
    """A site of a model."""

    name: str
    kind: str
    """``latent``, ``observed``, ``deterministic`` or ``param``."""
    law: str
    shape: tuple[int, ...]
    support: str
    dims: tuple[str, ...]
    """Names of the axes, as in a fit."""
    dtype: str
    summed_out: bool = False
    """Whether engines that follow gradients sum it out."""


@dataclass(frozen=True)
class ModelDiagnosis:
    """What :func:`diagnose_model` found. Print it, or look at ``ok`` and ``problems``."""

    model: str
    sites: tuple[SiteDescription, ...] = ()
    num_latent: int = 0
    """Unconstrained latent numbers, of the model as an engine that follows gradients sees it."""
    num_discrete: int = 0
    """Latent numbers that are discrete, and not summed out."""
    num_observed: int = 0
    """Entries of the observed sites, the missing ones among them."""
    num_missing: int = 0
    scan_lengths: tuple[int, ...] = ()
    num_draws: int = 0
    num_finite: int = 0
    """Draws from the prior at which the log density and its gradient are finite."""
    has_gradient: bool = False
    compile_seconds: float | None = None
    """Of the gradient, or of the density where there is no gradient."""
    milliseconds: float | None = None
    """Median time of one, compiled."""
    temporary_bytes: int | None = None
    """Of XLA's buffers for one; ``None`` where XLA does not tell."""
    posterior_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of 4 chains of 1000 draws, by site, the largest first."""
    pointwise_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of the groups ``log_likelihood`` and ``posterior_predictive`` of as many draws."""
    engines: Mapping[str, str | None] = field(default_factory=dict)
    """By name of an engine: ``None`` if it applies, or else why not."""
    auto: tuple[str, str] | None = None
    """What ``engine="auto"`` takes, and why."""
    problems: tuple[str, ...] = ()
    """What stands in the way of a fit."""
    remarks: tuple[str, ...] = ()
    """What does not, and is good to know."""

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        count = len(self.problems)
        verdict = "no problem found" if self.ok else f"{count} problem{'s' * (count > 1)}"
        lines = [f"{self.model}: {verdict}."]
        lines += [f"  ! {problem}" for problem in self.problems]
        lines += [f"  - {remark}" for remark in self.remarks]
        lines += _table(self.sites)
        if self.sites:
            steps = "".join(f"; scan of {n} steps" for n in self.scan_lengths)
            missing = f", {self.num_missing} of them missing" if self.num_missing else ""
            discrete = f" and {self.num_discrete} discrete ones" if self.num_discrete else ""
            plural = "s" * (self.num_latent != 1 or bool(discrete))
            latent = f"{self.num_latent} latent number{plural}{discrete}"
            lines.append(f"{latent}; {self.num_observed} observations{missing}{steps}.")
        if self.num_draws:
            what = "log density and gradient" if self.has_gradient else "log density (without gradient)"
            lines.append(f"Finite {what} at {self.num_finite} of {self.num_draws} draws from the prior.")
        if self.milliseconds is not None:
            what = "gradient" if self.has_gradient else "density"
            cost = f"{self.milliseconds:.3g} ms, {self.compile_seconds:.1f} s to compile"
            if self.temporary_bytes is not None:
                cost += f", {_bytes(self.temporary_bytes)} of temporary buffers"
            lines.append(f"One {what}: {cost}.")
        if self.posterior_bytes:
            largest = ", ".join(f"{n} {_bytes(b)}" for n, b in list(self.posterior_bytes.items())[:3])
            more = ", ..." * (len(self.posterior_bytes) > 3)
            groups = "".join(f"; {group} {_bytes(b)}" for group, b in self.pointwise_bytes.items())
            total = _bytes(sum(self.posterior_bytes.values()))
            lines.append(f"{CHAINS} chains of {DRAWS} draws: {total} ({largest}{more}){groups}.")
        if self.engines:
            able = [name for name, reason in self.engines.items() if reason is None]
            lines.append(f"Engines that apply: {', '.join(able) or 'none'}.")
            lines += _refusals(self.engines)
        if self.auto is not None:
            lines.append(f"engine='auto' takes {self.auto[1]}")
        return "\n".join(lines)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            break
        number, unit = number / 1000, "TB"
    return f"{number:.3g} {unit}"


def _table(sites: tuple[SiteDescription, ...]) -> list[str]:
    if not sites:
        return []
    rows = [("site", "kind", "law", "shape", "dims", "support", "dtype")]
    for s in sites[:_SHOWN]:
        kind = f"{s.kind}, summed" if s.summed_out else s.kind
        dims = ", ".join(d or "." for d in s.dims)
        rows.append((s.name, kind, s.law, str(s.shape), dims, s.support, s.dtype))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(sites) > _SHOWN:
        lines.append(f"... and {len(sites) - _SHOWN} more: see `sites`")
    return lines


def _refusals(engines: Mapping[str, str | None]) -> list[str]:
    """Engines that do not apply, those of one reason in one line."""
    groups: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    for name, reason in engines.items():
        if reason is None:
            continue
        engine = ENGINES[name]
        bare = reason
        for own in (name, getattr(engine, "__name__", name), type(engine).__name__, "variational inference"):
            bare = re.sub(rf"\b{own}\b", "<engine>", bare)
        groups.setdefault(bare, []).append(name)
        said.setdefault(bare, reason)
    return [f"  {', '.join(names)}: {said[bare]}" for bare, names in groups.items()]
