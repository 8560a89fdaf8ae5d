"""The single findings on a fit, each with its threshold and what to do where it fails."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn.diagnostics import _arviz
from sojourn.diagnostics._modes import groups_of_chains
from sojourn.diagnostics._names import entry_name
from sojourn.diagnostics._verdict import Finding, number_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import xarray as xr

RHAT = 1.01
ESS_PER_CHAIN = 100
TREE_DEPTH = 0.05
BFMI = 0.3
KHAT = 0.7
SWITCHED = 0.01
PATH_UPDATE = 0.2
STEP_BIAS = 0.05
WARM_SHIFT = 0.25
WARM_RATIO = 1.25


def ranked(array: xr.DataArray) -> xr.DataArray:
    """Put infinite values just beyond the finite ones: ranks see no difference, arithmetic stays finite."""
    if array.dtype.kind != "f" or np.isfinite(array.values).all():
        return array
    finite = array.where(np.isfinite(array))
    axes = [name for name in ("chain", "draw") if name in array.dims]
    low, high = finite.min(axes).fillna(0.0), finite.max(axes).fillna(0.0)
    margin = 1.0 + np.abs(low) + np.abs(high)
    return array.where(~np.isposinf(array), high + margin).where(~np.isneginf(array), low - margin)


def varying_entries(array: xr.DataArray) -> xr.DataArray:
    """Which entries differ between draws by more than the rounding of their type, and are never NaN."""
    values = np.asarray(array.transpose("chain", "draw", ...).values)
    if values.dtype.kind == "f":
        rounding = 8 * np.finfo(values.dtype).eps * np.abs(values).max(axis=(0, 1))
        varies = np.ptp(values, axis=(0, 1)) > rounding
    else:
        varies = values.max(axis=(0, 1)) > values.min(axis=(0, 1))
    return array.isel(chain=0, draw=0, drop=True).copy(data=varies)


def finite(posterior: xr.Dataset) -> Finding:
    """How many posterior values are NaN or infinite."""
    bad, where = 0, ""
    for name, array in posterior.data_vars.items():
        wrong = ~np.isfinite(array.transpose("chain", "draw", ...).values)
        if wrong.any() and not where:
            first = int(np.flatnonzero(wrong.any(axis=(0, 1)))[0])
            where = entry_name(array.isel(chain=0, draw=0, drop=True), name, first)
        bad += int(wrong.sum())
    advice = (
        "A sampled value that is not finite means that the model or the engine failed: look at those "
        "draws, and check the priors' supports and float64. Of a derived quantity that need not have a "
        "mean, report quantiles instead."
    )
    return Finding("finite", float(bad), 0.0, bad == 0, where, advice if bad else "")


def convergence(converged: Any) -> Finding:
    """Whether the optimiser of a variational or maximum-likelihood fit had arrived when it stopped."""
    value = float(converged)
    advice = (
        "The optimiser reached its last step while its objective was still rising: give it more steps, or look "
        "at its trace (for SVI in sj.report(fit, ...)) and change the learning rate."
    )
    return Finding("convergence", value, 1.0, value == 1.0, "", "" if value == 1.0 else advice)


def mixing(posterior: xr.Dataset, varying: xr.Dataset, chains: int, draws: int) -> list[Finding]:
    """R-hat and effective sample sizes of the entries that vary."""
    names = [name for name in posterior.data_vars if bool(varying[name].any())]
    enough = ESS_PER_CHAIN * chains
    if not names:
        return []
    kept, masks = posterior[names], varying[names]
    findings = []
    if draws >= (8 if chains == 1 else 4):
        values = _arviz.rhat(kept).fillna(np.inf).where(masks)
        value, where = _extreme(values, largest=True)
        advice = (
            "The chains do not agree yet: run them longer; if that does not help, reparametrise (a "
            "non-centred hierarchy, standardised data) or give the prior more information."
        )
        findings.append(Finding("rhat", value, RHAT, value < RHAT, where, "" if value < RHAT else advice))
    for method in ("bulk", "tail"):
        values = _arviz.ess(kept, method=method) if draws >= 4 else masks.astype(float) * 0.0
        value, where = _extreme(values.fillna(0.0).where(masks), largest=False)
        part = "means and medians" if method == "bulk" else "the ends of intervals"
        advice = (
            f"Too few effective draws to rely on {part}: draw more samples (about {_more(enough, value)} "
            "times as many), or use an engine or a parametrisation that mixes better."
        )
        ok = value >= enough
        findings.append(Finding(f"ess_{method}", value, float(enough), ok, where, "" if ok else advice))
    return findings


def _extreme(values: Mapping[Any, xr.DataArray], largest: bool) -> tuple[float, str]:
    """The largest or smallest entry that is not NaN, and its place."""
    sign = 1.0 if largest else -1.0
    best, where = -math.inf, ""
    for name, array in values.items():
        flat = sign * np.ravel(array.values)
        if np.isnan(flat).all():
            continue
        index = int(np.nanargmax(flat))
        if flat[index] > best or not where:
            best, where = float(flat[index]), entry_name(array, name, index)
    return sign * best, where


def _more(enough: float, value: float) -> str:
    return number_text(math.ceil(min(enough / max(value, 1.0), 1000.0)))


def sampler(fit: Any) -> list[Finding]:
    """What the statistics of the sampler say, those that the fit has."""
    stats = _arviz.group(fit, "sample_stats")
    if stats is None:
        return []
    readers: dict[str, Callable[[np.ndarray], Finding]] = {
        "diverging": _divergences,
        "reached_max_treedepth": _tree_depth,
        "energy": _energy,
        "log_importance_ratio": _khat,
    }
    found = [
        reader(stats[name].transpose("chain", "draw", ...).values)
        for name, reader in readers.items()
        if name in stats
    ]
    if "lp" in stats and stats.sizes.get("draw", 0) > 1:
        found.append(_frozen(stats["lp"].transpose("chain", "draw", ...).values))
    if "path_update" in stats:
        found.append(_path_update(stats["path_update"]))
    return found


def _frozen(lp: np.ndarray) -> Finding:
    """Chains that never moved: entries that never vary say nothing to R-hat."""
    still = [str(c) for c, row in enumerate(lp.reshape(lp.shape[0], -1)) if np.ptp(row) == 0.0]
    advice = (
        "A chain that stays where it began shows nothing of the posterior: its step collapsed in warm-up, or every "
        "proposal was refused. Start elsewhere (infer={'init': value}), reparametrise, or take another engine."
    )
    where = f"chain{'s' * (len(still) > 1)} {', '.join(still)} stood still" if still else ""
    return Finding("frozen_chains", float(len(still)), 0.0, not still, where, advice if still else "")


def step_bias(bias: float, seen: float, where: str) -> Finding:
    """The shift of an approximate sampler between its step and half of it."""
    ok = bias < STEP_BIAS
    advice = (
        "The sampler has no Metropolis test, and its step is too long for this density: give it a smaller tolerance "
        '(energy_variance for MCLMC), or use an exact engine ("langevin", "nuts").'
    )
    place = where if where else f"shifts below {number_text(seen)} would go unseen"
    return Finding("step_bias", bias, STEP_BIAS, ok, place, "" if ok else advice)


def warm_start(warm: xr.Dataset, posterior: xr.Dataset, varying: xr.Dataset) -> list[Finding]:
    """How far the approximation that a fit started from was from the posterior, margin by margin."""
    shifts, ratios = {}, []
    for name in (name for name in warm.data_vars if name in posterior and bool(varying[name].any())):
        entries = varying[name]
        exact = posterior[name].transpose("chain", "draw", *entries.dims).values
        exact = exact.reshape(-1, *entries.shape).astype(float)
        rough = warm[name].transpose("warm_draw", *entries.dims).values.astype(float)
        if (exact > 0).all() and (rough > 0).all():
            exact, rough = np.log(exact), np.log(rough)
        # Quantiles: the logarithm of a probability near zero has a tail that would drown a standard deviation.
        (low, middle, high), (low_of, middle_of, high_of) = (
            np.quantile(x, [0.16, 0.5, 0.84], axis=0) for x in (exact, rough)
        )
        with np.errstate(all="ignore"):
            shift = 2.0 * np.abs(middle_of - middle) / (high - low)
            ratio = (high_of - low_of) / (high - low)
        usable = entries.values & np.isfinite(shift + ratio)
        shifts[name] = entries.copy(data=np.where(usable, shift, np.nan))
        ratios += np.ravel(ratio)[np.ravel(usable)].tolist()
    if not ratios:
        return []
    value, place = _extreme(shifts, largest=True)
    least, most = min(ratios), max(ratios)
    close = value < WARM_SHIFT and least > 1 / WARM_RATIO and most < WARM_RATIO
    reading = "its margins agree with this posterior" if close else "not to be used in place of this fit"
    where = f"at {place}; ratios of sd {least:.2g} to {most:.2g}: {reading}"
    return [Finding("warm_start", value, WARM_SHIFT, True, where, "")]


def _path_update(moved: xr.DataArray) -> Finding:
    """The time at which the path of a particle sampler moves least."""
    rate = moved.mean(("chain", "draw"))
    index = int(np.argmin(rate.values))
    value = float(np.ravel(rate.values)[index])
    ok = value >= PATH_UPDATE
    advice = (
        "The path hardly moves there, and parameters stick to it however good their own effective sample size "
        "looks: take more particles, path='ancestor' with a state that forgets its past, or a guide."
    )
    return Finding(
        "path_update", value, PATH_UPDATE, ok, entry_name(rate, "path", index), "" if ok else advice
    )


def _divergences(diverging: np.ndarray) -> Finding:
    count = int(np.asarray(diverging, dtype=bool).sum())
    by_chain = [str(c) for c, row in enumerate(diverging) if np.any(row)]
    advice = (
        "The sampler could not follow the density there, so draws may be missing from that region: raise "
        "target_accept_prob (0.95, 0.99; for a sampler without one, lower its tolerance), use a non-centred "
        "parametrisation, or narrow the prior."
    )
    where = f"in chain{'s' * (len(by_chain) > 1)} {', '.join(by_chain)}" if count else ""
    return Finding("divergences", float(count), 0.0, count == 0, where, advice if count else "")


def _tree_depth(reached: np.ndarray) -> Finding:
    value = float(np.mean(reached))
    ok = value < TREE_DEPTH
    advice = (
        "The trajectories are cut short, so the draws are costly and dependent: raise max_tree_depth, warm "
        "up longer, or reparametrise so that scales are alike."
    )
    return Finding("tree_depth", value, TREE_DEPTH, ok, "", "" if ok else advice)


def _energy(energy: np.ndarray) -> Finding:
    values = _arviz.bfmi(energy)
    value = float(np.min(np.where(np.isnan(values), 0.0, values)))
    ok = value >= BFMI
    advice = (
        "The momentum steps are too small for the spread of the density, so its tails are poorly explored: "
        "warm up longer, or reparametrise heavy-tailed and hierarchical parameters."
    )
    return Finding("bfmi", value, BFMI, ok, f"in chain {int(np.argmin(values))}", "" if ok else advice)


def _khat(log_ratios: np.ndarray) -> Finding:
    value = _arviz.psis_khat(log_ratios)
    ok = value < KHAT
    advice = (
        "The guide is not a good stand-in for the posterior (0.7 or more): its spreads and correlations "
        "cannot be "
        'trusted. Use engine="nuts", or a richer guide.'
    )
    return Finding("khat", value, KHAT, ok, "", "" if ok else advice)


def label_switching(dim: str, fraction: float, where: str) -> Finding:
    """How many draws carry other labels than most."""
    ok = fraction < SWITCHED
    advice = (
        "Summaries by state mix different states: order the states in the model (ordered=True), or put the "
        "draws in one order with sj.relabel(fit) before reading them."
    )
    return Finding(
        "label_switching", fraction, SWITCHED, ok, dim if ok else f"{dim}: {where}", "" if ok else advice
    )


def modes(posterior: xr.Dataset, varying: xr.Dataset, lp: np.ndarray | None) -> Finding:
    """Into how many modes the chains fall."""
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    names, columns = [], []
    for name, array in posterior.data_vars.items():
        columns.append(
            np.asarray(array.transpose("chain", "draw", ...).values, dtype=float).reshape(chains, draws, -1)
        )
        entries = varying[name]
        columns[-1] = columns[-1][..., np.ravel(entries.values)]
        names += [entry_name(entries, name, int(index)) for index in np.flatnonzero(np.ravel(entries.values))]
    if lp is not None and np.isfinite(lp).all() and np.ptp(lp) > 0:
        columns.append(lp[..., None])
        names.append("lp")
    values = np.concatenate(columns, axis=-1) if columns else np.zeros((chains, draws, 0))
    groups, pairs = groups_of_chains(values)
    if len(groups) == 1:
        return Finding("modes", 1.0, 1.0, True, "", "")
    described = []
    for members in groups:
        text = f"chain{'s' * (len(members) > 1)} {', '.join(map(str, members))}"
        if lp is not None:
            text += f" (mean log density {lp[members].mean():.1f})"
        described.append(text)
    advice = (
        f"{'; '.join(described)}: each group keeps to its own mode. Do not pool them: start from several "
        "initial points, give the prior more information, and compare the modes by their log density "
        "before you keep one."
    )
    return Finding("modes", float(len(groups)), 1.0, False, names[int(np.argmax(pairs))], advice)


def name_the_cause(findings: list[Finding]) -> list[Finding]:
    """Longer chains do not help against switched labels or separate modes: say so instead."""
    causes = [f.name for f in findings if f.name in ("label_switching", "modes") and not f.ok]
    if not causes:
        return findings
    advice = (
        f"Running longer will not help while {' and '.join(causes)} below needs attention: see there first."
    )
    mixing = ("rhat", "ess_bulk", "ess_tail")
    return [f if f.ok or f.name not in mixing else replace(f, advice=advice) for f in findings]
