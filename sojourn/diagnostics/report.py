"""The report: a self-contained page on a fit, to read or to send to a colleague."""

from __future__ import annotations

import html
import json
import os
import pathlib
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn._arguments import is_list, must_be
from sojourn.diagnostics import _arviz, _figures
from sojourn.diagnostics._names import entry_name
from sojourn.diagnostics._page import check_html, figure_html, page_html, table_html
from sojourn.diagnostics.check import check
from sojourn.diagnostics.predictive import pit, plot_pit, predictive_variables

if TYPE_CHECKING:
    import xarray as xr

MAX_PLOTTED = 24
MAX_TRACED = 12
MAX_TABLED = 100
MAX_FANS = 4


@dataclass(frozen=True)
class Section:
    """A part of your own in a report, placed after the summary table.

    Args:
        title: Its heading.
        body: A matplotlib figure, a pandas data frame, a paragraph of text, or a sequence of them.

    Raises:
        TypeError: If the body is anything else.

    Example:
        >>> Section("The data", ["Hourly counts.", "Three are missing."]).title
        'The data'
    """

    title: str
    body: Any

    def __post_init__(self) -> None:
        for item in self.items():
            if not (isinstance(item, str) or hasattr(item, "savefig") or hasattr(item, "itertuples")):
                raise TypeError(
                    f"The body of section {self.title!r} holds a {type(item).__name__}; it takes matplotlib "
                    "figures, pandas data frames and text."
                )

    def items(self) -> list[Any]:
        """The body as a list."""
        return list(self.body) if isinstance(self.body, (list, tuple)) else [self.body]


def report(
    fit: Any,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    var_names: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
    label_dims: Sequence[str] = ("state",),
    open_browser: bool = False,
) -> pathlib.Path:
    """Write a self-contained HTML page on a fit: verdict, tables, and figures with how to read them.

    The page has the check of the fit; ArviZ's summary table; your own sections; traces and marginals, ranks
    (or the ELBO of a variational fit), and intervals of the first 24 scalars; the posterior predictive over
    `time`, with the observations on top; the predictive calibration (see
    `sojourn.diagnostics.predictive.pit`); and posterior variables over `time`, such as hidden paths. Parts
    for which the fit holds nothing are left out; a point estimate has its check, its values and your sections.

    Args:
        fit: An ArviZ container.
        path: The file to write; its folder must exist.
        title: Heading of the page.
        var_names: Posterior variables to show in tables and plots of parameters; by default all without a
            `time` dimension.
        sections: Parts of your own.
        label_dims: As in `sojourn.diagnostics.check`.
        open_browser: Whether to open the page when it is written.

    Returns:
        The path of the page.

    Raises:
        TypeError: If `fit` is not an ArviZ container, or a section is not a `Section`.
        ValueError: If the fit has no posterior, or no variable of that name.
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> import numpy as np, xarray as xr, tempfile, pathlib
        >>> from sojourn.diagnostics._arviz import container
        >>> draws = np.random.default_rng(0).normal(size=(2, 50))
        >>> fit = container({"posterior": xr.Dataset({"mu": (("chain", "draw"), draws)})}, {"engine": "nuts"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(fit, pathlib.Path(folder) / "fit.html", title="A fit").read_text()
        >>> "<h1>A fit</h1>" in page
        True
    """
    posterior = _arviz.require_posterior(fit, "report")
    must_be(isinstance(path, str | os.PathLike), "path", "a file name", path)
    must_be(is_list(sections), "sections", "a list of Section(title, body)", sections)
    must_be(var_names is None or is_list(var_names), "var_names", "a list of names", var_names)
    for section in sections:
        if not isinstance(section, Section):
            raise TypeError(f"report(): sections takes Section(title, body), not a {type(section).__name__}.")
    unknown = [name for name in var_names or () if name not in posterior.data_vars]
    if unknown:
        raise ValueError(f"report(): the posterior has no {unknown}; it has {list(posterior.data_vars)}.")
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"report(): the folder {path.parent} does not exist.")
    from matplotlib import rc_context

    attrs = _arviz.attributes(fit)
    chosen = _parameters(posterior, var_names)
    with rc_context(_figures.STYLE):
        parts = [("", check_html(check(fit, label_dims=label_dims)))]
        parts += _summary(chosen, attrs)
        parts += [(section.title, _section_html(section)) for section in sections]
        if not attrs.get("point_estimate"):  # one draw has no spread to draw
            parts += _parameter_plots(fit, chosen, attrs)
            parts += _predictive(fit)
            parts += _calibration(fit)
            parts += _paths(posterior)
    page = page_html(title or "Report on a fit", _facts(posterior, attrs), parts, _versions(attrs))
    path.write_text(page, encoding="utf-8")
    if open_browser:
        webbrowser.open(path.resolve().as_uri())
    return path


def _parameters(posterior: xr.Dataset, var_names: Sequence[str] | None) -> xr.Dataset:
    numeric = [name for name in posterior.data_vars if posterior[name].dtype.kind in "fiub"]
    if var_names is not None:
        return posterior[[name for name in var_names if name in numeric]]
    still = [name for name in numeric if "time" not in posterior[name].dims]
    return posterior[still or numeric]


def scalars(posterior: xr.Dataset, most: int, *, varying_only: bool = False) -> tuple[xr.Dataset, int]:
    """Spread a posterior over one variable a scalar entry, named by its coordinates.

    Args:
        posterior: The posterior draws.
        most: The largest number of scalars kept, the first ones.
        varying_only: Whether to leave out the entries that never vary or are not finite, which have no
        density.

    Returns:
        The dataset and the number of scalars left out for want of room.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rate = xr.Dataset({"rate": (("chain", "draw", "state"), np.ones((1, 2, 3)), {})})
        >>> found, left_out = scalars(rate, 2)
        >>> list(found), left_out
        (['rate[state=0]', 'rate[state=1]'], 1)
    """
    kept: dict[str, Any] = {}
    total = 0
    for name, array in posterior.data_vars.items():
        values = array.transpose("chain", "draw", ...).values
        columns = values.reshape(*values.shape[:2], -1)
        if varying_only:
            wide = columns.astype(float)
            finite = np.isfinite(wide).all(axis=(0, 1))
            usable = finite & (np.ptp(np.where(finite, wide, 0.0), axis=(0, 1)) > 0)
        else:
            usable = np.ones(columns.shape[2], dtype=bool)
        total += int(usable.sum())
        entry = array.isel(chain=0, draw=0, drop=True)
        for index in np.flatnonzero(usable)[: max(0, most - len(kept))]:
            kept[entry_name(entry, name, int(index))] = (("chain", "draw"), columns[..., index])
    coords = {name: posterior[name] for name in ("chain", "draw") if name in posterior.coords}
    import xarray as xr

    return xr.Dataset(kept, coords=coords), total - len(kept)


def _left_out(count: int, what: str = "scalars") -> str:
    return f" Left out for want of room: {count} further {what}." if count else ""


def _facts(posterior: xr.Dataset, attrs: Mapping[str, Any]) -> str:
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    facts = [f"engine {attrs['engine']}"] if "engine" in attrs else []
    facts.append(
        "point estimate"
        if attrs.get("point_estimate")
        else f"{chains} chain{'s' * (chains > 1)} × {draws} draws"
    )
    if "seed" in attrs:
        facts.append(f"seed {attrs['seed']}")
    seconds = attrs.get("seconds", attrs.get("sampling_time"))
    if seconds is not None:
        facts.append(f"{float(seconds):.3g} seconds")
    return " · ".join(facts)


def _versions(attrs: Mapping[str, Any]) -> str:
    versions = attrs.get("versions", {})
    if isinstance(versions, str) and versions.startswith("{"):
        versions = json.loads(versions)
    if not isinstance(versions, Mapping):
        versions = {"versions": versions}
    named = {str(name): str(version) for name, version in versions.items()}
    for name, value in attrs.items():
        if str(name).endswith("_version"):
            named.setdefault(str(name).removesuffix("_version"), str(value))
    named.setdefault("arviz", _arviz.arviz_module().__version__)
    return ", ".join(f"{name} {version}" for name, version in named.items())


def _summary(chosen: xr.Dataset, attrs: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not chosen.data_vars:
        return []
    table, left_out = scalars(chosen, MAX_TABLED)
    if attrs.get("point_estimate"):
        frame = table.isel(chain=0, draw=0, drop=True).to_array("").to_dataframe("estimate")
    else:
        independent = attrs.get("engine") == "svi"
        frame = _arviz.summary(
            _arviz.container({"posterior": table}), kind="stats" if independent else "all", rounded=False
        )
    note = f"<p>{html.escape(_left_out(left_out).strip())}</p>" if left_out else ""
    return [("Summary", table_html(frame) + note)]


def _section_html(section: Section) -> str:
    parts = []
    for item in section.items():
        if isinstance(item, str):
            parts.append(f"<p>{html.escape(item)}</p>")
        elif hasattr(item, "savefig"):
            parts.append(figure_html(item, alternative=section.title))
        else:
            parts.append(table_html(item))
    return "".join(parts)


def _parameter_plots(fit: Any, chosen: xr.Dataset, attrs: Mapping[str, Any]) -> list[tuple[str, str]]:
    parts = []
    independent = attrs.get("engine") == "svi"
    shown, left_out = scalars(chosen, MAX_PLOTTED, varying_only=True)
    traced, more = scalars(chosen, MAX_TRACED, varying_only=True)
    stats = _arviz.group(fit, "sample_stats")
    if traced.data_vars:
        caption = (
            "Left: the marginal posterior; right: the draws in the order they were made; one colour a chain. "
            "Chains that agree have the same density and look like level noise." + _left_out(more)
        )
        figure = _arviz.plot_trace(_arviz.container({"posterior": traced}), width=_figures.WIDTH)
        parts.append(("Marginals and traces", figure_html(figure, caption)))
    if independent and stats is not None and "elbo" in stats and "step" in stats["elbo"].dims:
        caption = (
            "The evidence lower bound at each step of the optimiser, the best restart in dark blue. It "
            "should be level at the end; restarts that end at different levels found different optima."
        )
        parts.append(("Optimisation", figure_html(_figures.elbo(stats["elbo"]), caption)))
    if shown.data_vars and not independent and shown.sizes["chain"] > 1:
        figure = _arviz.plot_rank(_arviz.container({"posterior": shown}), width=_figures.WIDTH)
        caption = f"{_arviz.RANK_CAPTION[_arviz.generation()]}{_left_out(left_out)}"
        parts.append(("Ranks", figure_html(figure, caption)))
    if shown.data_vars:
        caption = (
            "Central values with a thick and a thin interval for each scalar, all chains together. Each "
            "variable has a scale of its own."
        )
        names = [str(name) for name in shown.data_vars]
        figures = [
            figure_html(
                _arviz.plot_forest(_arviz.container({"posterior": shown[[name]]}), width=_figures.WIDTH),
                caption + _left_out(left_out) if name == names[-1] else "",
            )
            for name in names
        ]
        parts.append(("Intervals", "".join(figures)))
    return parts


def _predictive(fit: Any) -> list[tuple[str, str]]:
    draws, observed = _arviz.group(fit, "posterior_predictive"), _arviz.group(fit, "observed_data")
    if draws is None:
        return []
    bodies = []
    for name, array in draws.data_vars.items():
        truth = observed[name] if observed is not None and name in observed else None
        if array.dtype.kind not in "fiub" or array.size == 0 or "entry" in array.dims:  # a path of jumps
            continue
        if truth is not None and set(truth.dims) != set(array.dims) - {"chain", "draw"}:
            truth = None
        if "time" in array.dims:
            figure, left_out = _figures.fan(array, truth)
            caption = (
                f"What the fitted model predicts for {name}: median, central 50 % and 90 % bands over time. "
                "About one observation in ten should fall outside the light band, and not all in one "
                "stretch."
            )
            bodies.append(figure_html(figure, caption + _left_out(left_out, "series")))
        elif truth is not None and truth.size > 1:
            caption = (
                f"Distribution of {name}: data sets predicted by the fitted model in light blue, the "
                "observed one dark. The dark line should look like one of the light ones."
            )
            bodies.append(figure_html(_figures.distribution(array, truth), caption))
    parts = [("Posterior predictive", "".join(bodies))] if bodies else []
    ahead = _arviz.group(fit, "predictions")
    if ahead is not None and observed is not None:
        fans = []
        for name, array in ahead.data_vars.items():
            if "time" in array.dims and array.dtype.kind in "fiub" and name in observed:
                figure, left_out = _figures.fan(array, observed[name])
                caption = (
                    f"What the model predicts for each {name} from those before it: the bands follow the "
                    "series, one step late."
                )
                fans.append(figure_html(figure, caption + _left_out(left_out, "series")))
        if fans:
            parts.append(("One step ahead", "".join(fans)))
    return parts


def _calibration(fit: Any) -> list[tuple[str, str]]:
    names = predictive_variables(fit)
    if not names:
        return []
    found = [pit(fit, name) for name in names[:MAX_FANS]]
    figure = plot_pit(fit, names[:MAX_FANS])
    step = any(values.source == "predictions" for values in found)
    weighted = any(values.weighted for values in found)
    high = sum(values.high_khat for values in found)
    caption = "Where each observation falls in its " + ("one-step-ahead " if step else "") + "prediction"
    caption += ", its own term taken out of the posterior by PSIS-LOO" if weighted else ""
    caption += (
        "; calibrated predictions stay inside the simultaneous 95 % envelope. A curve above it at the left "
        "and below at the right means predictions that are too narrow, the opposite ones too wide."
    )
    if not step:
        caption += (
            " These are not one-step-ahead predictions, so the envelope holds only for independent "
            "observations."
        )
    if high:
        caption += f" For {high} observations the importance weights cannot be trusted (Pareto k above 0.7)."
    return [
        (
            "Predictive calibration",
            figure_html(figure, caption + _left_out(len(names) - len(found), "variables")),
        )
    ]


def _paths(posterior: xr.Dataset) -> list[tuple[str, str]]:
    names = [
        name
        for name, array in posterior.data_vars.items()
        if "time" in array.dims and array.sizes["time"] > 1 and array.dtype.kind in "fiu"
    ]
    bodies = []
    for name in names[:MAX_FANS]:
        figure, left_out = _figures.fan(posterior[name], None)
        caption = f"Posterior of {name} over time: median, central 50 % and 90 % bands at each time."
        bodies.append(figure_html(figure, caption + _left_out(left_out, "entries")))
    note = (
        f"<p>{html.escape(_left_out(len(names) - MAX_FANS, 'variables').strip())}</p>"
        if len(names) > MAX_FANS
        else ""
    )
    return [("Posterior over time", "".join(bodies) + note)] if bodies else []
