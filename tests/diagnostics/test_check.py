"""The verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from sojourn.diagnostics import Check, Finding, check


def named(verdict):
    return {finding.name: finding for finding in verdict.findings}


def test_well_mixed_chains_pass(make_fit, chains):
    rng = np.random.default_rng(0)
    stats = {
        "lp": rng.normal(size=(4, 500)),
        "energy": rng.normal(size=(4, 500)),
        "diverging": np.zeros((4, 500), dtype=bool),
        "reached_max_treedepth": np.zeros((4, 500), dtype=bool),
    }
    verdict = check(make_fit({"x": chains(0), "mu": chains(1)[..., :2]}, stats, dims={"mu": ("state",)}))
    assert verdict.ok, str(verdict)
    assert [finding.name for finding in verdict.findings] == [
        "finite", "rhat", "ess_bulk", "ess_tail", "divergences", "tree_depth", "bfmi", "frozen_chains",
        "label_switching", "modes",
    ]  # fmt: skip
    assert all(finding.advice == "" for finding in verdict.findings)


def test_a_chain_that_never_moves_is_named(make_fit, chains):
    """Entries that never vary are left out of R-hat: with a single chain nothing else would say so."""
    x, lp = np.ones((1, 500)), np.full((1, 500), -3.0)
    frozen = named(check(make_fit({"x": x}, {"lp": lp})))["frozen_chains"]
    assert not frozen.ok
    assert frozen.where == "chain 0 stood still"
    assert "step collapsed" in frozen.advice


@pytest.mark.parametrize(("shift", "ok"), [(0.0, True), (0.04, True), (0.2, False)])
def test_the_bias_of_a_step(make_fit, chains, shift, ok):
    fit = make_fit({"x": chains(0)})
    fit.attrs |= {"step_bias": shift, "step_bias_seen": 0.1, "step_bias_where": "x" if shift else ""}
    finding = named(check(fit))["step_bias"]
    assert finding.ok == ok
    assert finding.where == ("x" if shift else "shifts below 0.1 would go unseen")
    assert ("Metropolis" in finding.advice) != ok


def test_walks_for_averages_have_no_effective_sample_size(make_fit, chains):
    fit = make_fit({"x": chains(0)})
    fit.attrs["ergodic_averages_only"] = 1
    assert not {"rhat", "ess_bulk", "ess_tail"} & set(named(check(fit)))


def test_slow_chains_fail_by_rhat_and_not_by_modes(make_fit, chains):
    found = named(check(make_fit({"x": chains(1, rho=0.995)})))
    assert not found["rhat"].ok
    assert not found["ess_bulk"].ok
    assert found["modes"].ok
    assert found["rhat"].where.startswith("x[")


def test_two_modes_fail_and_name_chains_and_density(make_fit, chains):
    x = chains(2)
    x[2:] += 8.0
    lp = np.random.default_rng(0).normal(size=(4, 500)) - np.array([10.0, 10.0, 25.0, 25.0])[:, None]
    found = named(check(make_fit({"x": x}, {"lp": lp})))
    assert found["modes"].value == 2
    assert "chains 0, 1 (mean log density -10.0)" in found["modes"].advice
    assert "chains 2, 3 (mean log density -25.0)" in found["modes"].advice
    assert "Running longer will not help while modes" in found["rhat"].advice


def test_modes_that_only_the_density_tells_apart(make_fit, chains):
    lp = np.random.default_rng(0).normal(size=(4, 500)) - np.array([0.0, 0.0, 0.0, 30.0])[:, None]
    found = named(check(make_fit({"x": chains(3)}, {"lp": lp})))
    assert found["modes"].value == 2
    assert found["modes"].where == "lp"


def test_switched_labels_are_not_modes(make_fit, chains):
    mu = chains(4, size=2) + np.array([0.0, 10.0])
    mu[2] = mu[2, :, ::-1]
    found = named(check(make_fit({"mu": mu}, dims={"mu": ("state",)})))
    assert not found["label_switching"].ok
    assert "chain 2 in another order" in found["label_switching"].where
    assert "relabel" in found["label_switching"].advice
    assert found["modes"].ok
    assert not found["rhat"].ok


def test_label_dims_can_be_named_otherwise(make_fit, chains):
    mu = chains(4, size=2) + np.array([0.0, 10.0])
    mu[2] = mu[2, :, ::-1]
    fit = make_fit({"mu": mu}, dims={"mu": ("component",)})
    assert "label_switching" not in named(check(fit))
    assert not named(check(fit, label_dims=("component",)))["label_switching"].ok


def test_constant_entries_are_skipped(make_fit, chains):
    x = chains(5)
    x[..., 1] = 0.0
    x[..., 2] = 1e6 + 1e-10 * x[..., 2]
    verdict = check(make_fit({"x": x, "n": np.full((4, 500), 7)}))
    assert verdict.ok, str(verdict)
    assert named(verdict)["rhat"].where == "x[x_dim_0=0]"


def test_nothing_varies(make_fit):
    verdict = check(make_fit({"x": np.ones((4, 100))}))
    assert [finding.name for finding in verdict.findings] == ["finite", "modes"]
    assert verdict.ok


def test_chains_stuck_at_different_values_fail(make_fit):
    stuck = np.broadcast_to(np.arange(4.0)[:, None], (4, 100)).copy()
    found = named(check(make_fit({"x": stuck})))
    assert found["rhat"].value == np.inf or found["rhat"].value > 10
    assert not found["rhat"].ok


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_draw_that_is_not_finite_fails_and_spoils_nothing_else(make_fit, chains, bad):
    x, mu = chains(6), chains(7, size=2) + np.array([0.0, 9.0])
    x[1, 7, 2] = bad
    mu[0, 0, 0] = bad
    verdict = check(make_fit({"x": x, "mu": mu}, dims={"mu": ("state",)}))
    found = named(verdict)
    assert found["finite"].value == 2
    assert not found["finite"].ok
    assert found["finite"].where == "x[x_dim_0=2]"
    assert all(np.isfinite(finding.value) for finding in verdict.findings)
    assert found["rhat"].ok


def test_infinite_values_count_as_very_large_ones(make_fit, chains):
    x = chains(8, size=1)
    infinite, large = np.where(x > 0.5, np.inf, x), np.where(x > 0.5, 1e9, x)
    values = [named(check(make_fit({"x": array}))) for array in (infinite, large)]
    assert values[0]["rhat"].value == pytest.approx(values[1]["rhat"].value, abs=1e-12)
    assert values[0]["ess_tail"].value == pytest.approx(values[1]["ess_tail"].value, rel=1e-9)


def test_sampler_statistics(make_fit, chains):
    rng = np.random.default_rng(0)
    diverging = np.zeros((4, 500), dtype=bool)
    diverging[2, :3] = True
    reached = np.zeros((4, 500), dtype=bool)
    reached[0, :200] = True
    energy = rng.normal(size=(4, 500)).cumsum(axis=1)
    found = named(
        check(
            make_fit(
                {"x": chains(0)}, {"diverging": diverging, "reached_max_treedepth": reached, "energy": energy}
            )
        )
    )
    assert (found["divergences"].value, found["divergences"].where) == (3, "in chain 2")
    assert found["tree_depth"].value == pytest.approx(0.1)
    assert found["bfmi"].value < 0.1
    assert not any(found[name].ok for name in ("divergences", "tree_depth", "bfmi"))


def test_variational_fits_have_their_own_findings(make_fit, chains):
    rng = np.random.default_rng(0)
    x = chains(0, chains=1, draws=2000)
    good = check(
        make_fit(
            {"x": x}, {"log_importance_ratio": 0.1 * rng.normal(size=(1, 2000))}, engine="svi", converged=1
        )
    )
    assert [finding.name for finding in good.findings] == ["finite", "convergence", "khat"]
    assert good.ok
    heavy = {"log_importance_ratio": rng.exponential(scale=1.5, size=(1, 2000))}
    bad = named(check(make_fit({"x": x}, heavy, engine="svi", converged=0)))
    assert not bad["convergence"].ok
    assert not bad["khat"].ok
    assert "nuts" in bad["khat"].advice


def test_one_chain(make_fit, chains):
    assert check(make_fit({"x": chains(0, chains=1, draws=2000)})).ok
    drifting = chains(0, chains=1) + np.linspace(0, 4, 500)[None, :, None]
    assert not named(check(make_fit({"x": drifting})))["rhat"].ok


def test_a_handful_of_draws_fails_without_an_error(make_fit, chains):
    found = named(check(make_fit({"x": chains(0, draws=3)})))
    assert not found["ess_bulk"].ok
    assert "rhat" not in found


def test_places_are_named_by_labels(make_fit, chains):
    x = chains(0, size=2)
    x[0, :, 1] += 3.0
    fit = make_fit({"x": x}, dims={"x": ("site",)}, coords={"site": ["north", "south"]})
    assert named(check(fit))["rhat"].where == "x[south]"


def test_the_text_has_a_verdict_and_a_line_for_each_finding(make_fit, chains):
    verdict = check(make_fit({"x": chains(1, rho=0.995)}))
    lines = str(verdict).splitlines()
    assert lines[0].startswith("3 of 5 checks need attention (nuts, 4 chains of 500 draws)")
    assert sum(line.lstrip().startswith(("pass", "attention")) for line in lines) == 5
    assert sum(line.lstrip().startswith("->") for line in lines) == 3


def test_to_dict_is_json_and_html_is_escaped(make_fit, chains):
    verdict = check(make_fit({"x<y": chains(1, rho=0.995)}))
    assert json.loads(json.dumps(verdict.to_dict()))["ok"] is False
    assert "x&lt;y" in verdict._repr_html_()
    assert "<y[" not in verdict._repr_html_()


def test_a_check_is_frozen():
    verdict = Check((Finding("rhat", 1.0, 1.01, True, "", ""),))
    with pytest.raises(AttributeError):
        verdict.findings = ()


def test_wrong_input_is_named(make_fit):
    with pytest.raises(TypeError, match=r"check\(\) takes a fit .* not a str"):
        check("x")
    fit = make_fit({"x": np.zeros((2, 5))})
    for empty in (xr.Dataset(), xr.Dataset({"x": ("draw", np.zeros(3))})):
        from sojourn.diagnostics._arviz import with_groups

        with pytest.raises(ValueError, match=r"check\(\) needs"):
            check(with_groups(fit, {"posterior": empty}))
