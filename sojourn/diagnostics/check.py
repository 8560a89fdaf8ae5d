"""Has the fit converged? A verdict in words, with the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sojourn.diagnostics import _arviz, _findings
from sojourn.diagnostics._switching import detect
from sojourn.diagnostics._verdict import Check, Finding
from sojourn.diagnostics.labels import label_dims_present, log_density, reorder

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Check", "Finding", "check"]


def check(fit: Any, *, label_dims: Sequence[str] = ("state",)) -> Check:
    """Check whether a fit can be trusted, and say what to do where it cannot.

    The findings, each only where it applies to the fit:

    - `finite`: number of posterior values that are NaN or infinite, which must be zero.
    - `convergence`: for optimisers that say so (`fit.attrs["converged"]`). Of a point estimate
      (`fit.attrs["point_estimate"]`, as `engine="map"` gives) this and `finite` are all that can be said.
    - `rhat`: largest rank-normalised split R-hat, below 1.01, and `ess_bulk`, `ess_tail`: smallest effective
      sample sizes, at least 100 a chain (Vehtari et al. 2021, Bayesian Analysis 16:667-718). Entries that
      never vary are left out, and so are these three for variational fits (`fit.attrs["engine"] == "svi"`),
      whose draws are independent, and for self-repellent walks, whose draws make up for each other in a way that
      these numbers do not see (compare the averages of several chains). A single chain is cut in two for R-hat.
    - `divergences`: number of divergent transitions, zero; `tree_depth`: fraction of draws at the largest
      tree depth, below 0.05; `bfmi`: smallest energy fraction of missing information, at least 0.3
      (Betancourt 2016).
    - `frozen_chains`: number of chains whose log density never changed, which must be zero.
    - `step_bias`: for samplers without a Metropolis test, the largest shift of a mean or spread at half the step,
      beyond what chance explains, in posterior standard deviations: below 0.05.
    - `path_update`: for particle samplers, the smallest share of draws, over time, in which the path moved: at
      least 0.2.
    - `khat`: for variational fits with `sample_stats["log_importance_ratio"]`, the Pareto shape of the
      importance ratios of the posterior to the guide, below 0.7 (Yao et al. 2018, ICML).
    - `label_switching`: fraction of draws whose states carry other labels than most, below 0.01; see
      `sojourn.diagnostics._switching.detect` for what counts.
    - `modes`: number of groups of chains that sit in different modes, beyond a permutation of labels, which
      must be one; see `sojourn.diagnostics._modes.groups_of_chains`. `sample_stats["lp"]` is one of the
      scalars compared.
    - `warm_start`: for fits that were started from an approximate posterior, the largest distance of its medians from
      those of this posterior, in standard deviations of this posterior (positive variables by their logarithms), and
      the range of the ratios of its standard deviations to this posterior's; a standard deviation here is half the
      distance between the quantiles at 16 and 84 %. It says whether the margins of the approximation could have been
      used in place of this fit (less than 0.25 away, ratios between 0.8 and 1.25), and nothing against the fit: it is
      always `ok`.

    Args:
        fit: An ArviZ container (`arviz.InferenceData` or `xarray.DataTree`).
        label_dims: Dimensions of posterior variables that run over exchangeable labels.

    Returns:
        The findings. Print them, look at `.ok`, or take `.to_dict()`.

    Raises:
        TypeError: If `fit` is not an ArviZ container.
        ValueError: If it has no posterior.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from sojourn.diagnostics._arviz import container
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> fit = container({"posterior": xr.Dataset({"mu": (("chain", "draw"), draws)})}, {"engine": "nuts"})
        >>> check(fit).ok
        True
        >>> print(check(fit))
        All 5 checks passed (nuts, 4 chains of 500 draws).
        ...
    """
    posterior = _arviz.require_posterior(fit, "check")
    attrs = _arviz.attributes(fit)
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    numeric = posterior[[name for name in posterior.data_vars if posterior[name].dtype.kind in "fiub"]]
    engine = str(attrs.get("engine", ""))
    findings = [_findings.finite(numeric)]
    if "converged" in attrs:
        findings.append(_findings.convergence(attrs["converged"]))
    if attrs.get("point_estimate"):
        subject = "a point estimate without intervals"
        return Check(tuple(findings), f"{engine}, {subject}" if engine else subject)
    ranked = numeric.map(_findings.ranked)
    varying = ranked.map(_findings.varying_entries)
    if engine != "svi" and not attrs.get("ergodic_averages_only"):
        findings += _findings.mixing(ranked, varying, chains, draws)
    findings += _findings.sampler(fit)
    if "step_bias" in attrs:
        findings.append(_findings.step_bias(*(attrs[f"step_bias{part}"] for part in ("", "_seen", "_where"))))
    lp = log_density(fit)
    whole = ranked.map(lambda array: array.fillna(0.0) if array.dtype.kind == "f" else array)
    for dim in label_dims_present(numeric, label_dims):
        found = detect(whole, dim, lp)
        findings.append(_findings.label_switching(dim, found.fraction, found.where()))
        if not findings[-1].ok:
            whole = reorder(whole, dim, found.permutations)
    if chains > 1 and engine != "svi":
        findings.append(_findings.modes(whole, varying, lp))
    warm = _arviz.group(fit, "warm_start")
    if warm is not None:
        findings += _findings.warm_start(warm, ranked, varying)
    findings = _findings.name_the_cause(findings)
    count = f"{chains} chain{'s' * (chains > 1)} of {draws} draws"
    return Check(tuple(findings), f"{engine}, {count}" if engine else count)
