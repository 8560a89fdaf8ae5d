"""The report page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sojourn.diagnostics import Section, _arviz, report
from sojourn.diagnostics.report import scalars


class Page(HTMLParser):
    """Collects headings and the sources of images, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.headings = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_of_a_series(series_fit, tmp_path):
    import matplotlib.pyplot as plt

    table = pd.DataFrame({"days": [6.6]}, index=["half-life"])
    path = report(
        series_fit(0, versions={"numpyro": "0.19"}),
        tmp_path / "fit.html",
        title="Series <A>",
        sections=[Section("The question", ["How <persistent>?", table])],
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.headings == [
        "Summary", "The question", "Marginals and traces", "Ranks", "Intervals", "Posterior predictive",
        "One step ahead",
        "Predictive calibration",
    ]  # fmt: skip
    assert len(page.sources) == 7  # traces, ranks, intervals of two variables, two fans, calibration
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "Series &lt;A&gt;" in text
    assert "How &lt;persistent&gt;?" in text
    assert "half-life" in text
    assert "engine nuts · 4 chains × 250 draws · seed 0 · 1.5 seconds" in text
    assert "numpyro 0.19" in text
    assert plt.get_fignums() == []


def test_the_page_needs_no_network_and_no_script(series_fit, tmp_path):
    text = report(series_fit(0), tmp_path / "fit.html").read_text(encoding="utf-8")
    outside = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?://|<script|<link|@import|src=|url\(", outside)


def test_the_page_of_a_variational_fit(make_fit, tmp_path):
    rng = np.random.default_rng(0)
    fit = make_fit({"x": rng.normal(size=(1, 300, 30))}, engine="svi", converged=1)
    elbo = xr.Dataset(
        {"elbo": (("restart", "step"), -np.exp(-np.arange(200) / 20) + 0.01 * rng.normal(size=(3, 200)))}
    )
    fit = _arviz.with_groups(fit, {"sample_stats": elbo})
    text = report(fit, tmp_path / "fit.html").read_text(encoding="utf-8")
    headings = Page(text).headings
    assert "Optimisation" in headings
    assert "Ranks" not in headings
    assert "r_hat" not in text
    assert "Left out for want of room: 6 further scalars." in text
    assert "Left out for want of room: 18 further scalars." in text


def test_paths_get_fans_and_stay_out_of_the_table(make_fit, chains, tmp_path):
    fit = make_fit(
        {"h": chains(0, draws=100, size=5), "mu": chains(1, draws=100, size=1)[..., 0]},
        dims={"h": ("time",)},
    )
    text = report(fit, tmp_path / "fit.html").read_text(encoding="utf-8")
    assert "Posterior over time" in Page(text).headings
    assert "h[time=3]" not in text
    assert "h[time=3]" in report(fit, tmp_path / "h.html", var_names=["h"]).read_text(encoding="utf-8")


def test_observations_without_time_get_a_distribution(make_fit, chains, tmp_path):
    rng = np.random.default_rng(0)
    groups = {
        "posterior_predictive": xr.Dataset(
            {"k": (("chain", "draw", "item"), rng.poisson(4, size=(4, 100, 20)))}
        ),
        "observed_data": xr.Dataset({"k": ("item", rng.poisson(4, size=20))}),
    }
    fit = make_fit({"x": chains(0, draws=100)}, groups=groups)
    text = report(fit, tmp_path / "fit.html").read_text(encoding="utf-8")
    assert "Distribution of k" in text
    assert "the envelope holds only for independent observations" in text


def test_a_fit_with_constants_and_bad_values_still_has_a_page(make_fit, chains, tmp_path):
    x = chains(0, draws=100)
    x[..., 0] = 0.0
    x[0, 0, 1] = np.nan
    fit = make_fit({"x": x, "z": (x[..., 2] > 0).astype(int)})
    text = report(fit, tmp_path / "fit.html").read_text(encoding="utf-8")
    assert "NaN or infinite posterior values" in text
    assert "<td>–</td>" in text


def test_scalars_are_named_limited_and_in_order(make_fit, chains):
    fit = make_fit(
        {"x": chains(0, draws=10, size=3)}, dims={"x": ("site",)}, coords={"site": ["a", "b", "c"]}
    )
    table, left_out = scalars(_arviz.group(fit, "posterior"), 2)
    assert list(table) == ["x[a]", "x[b]"]
    assert left_out == 1
    np.testing.assert_array_equal(table["x[b]"], _arviz.group(fit, "posterior")["x"][..., 1])


def test_wrong_input_is_named(make_fit, chains, tmp_path):
    fit = make_fit({"x": chains(0, draws=20)})
    with pytest.raises(TypeError, match=r"report\(\) takes a fit"):
        report(3, tmp_path / "a.html")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report(fit, tmp_path / "no" / "a.html")
    with pytest.raises(ValueError, match="the posterior has no"):
        report(fit, tmp_path / "a.html", var_names=["y"])
    with pytest.raises(TypeError, match="Section"):
        report(fit, tmp_path / "a.html", sections=["text"])
    with pytest.raises(TypeError, match="holds a int"):
        Section("Numbers", [3])
    assert list(tmp_path.iterdir()) == []
