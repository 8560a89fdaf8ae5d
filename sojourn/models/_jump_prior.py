"""Priors of a jump process: its rates, what covariates and subjects do to them, and the law of the first state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import numbers, shown
from sojourn.models._given import check_priors
from sojourn.models._rate_matrices import adjacency_of, masked
from sojourn.models._rate_matrices import reversible as reversible_matrix
from sojourn.ops.rate_matrix import check_rate_matrix, exit_rates, generator, off_diagonal, stationary

__all__ = ["Rates", "default_rate_prior", "first_state", "move_names", "sample_rates", "state_names"]

_LOG_MEDIAN, _LOG_SD = -1.0, 1.5


class Rates(NamedTuple):
    """Rate matrices, and which one holds where."""

    matrix: Array
    """``(K, K)``, or ``(G, K, K)``."""
    group: np.ndarray | None
    """``(N,)`` or ``(N, L - 1)``; ``None`` where one matrix holds everywhere."""
    baseline: Array
    """``(K, K)``: with covariates zero, of a typical series."""


def state_names(states: Sequence[str] | None, num_states: int) -> list[str]:
    """Labels of the states.

    Raises:
        ValueError: a wrong number of names, names that are not distinct.
    """
    if states is None:
        return [str(k) for k in range(num_states)]
    names = [str(s) for s in states] if isinstance(states, Iterable) else [shown(states)]
    if len(names) != num_states or len(set(names)) != num_states:
        raise ValueError(f"`states` must hold {num_states} different names, not {names}.")
    return names


def move_names(graph: np.ndarray, names: Sequence[str]) -> list[str]:
    """``"i->j"`` for each edge of a graph, row by row."""
    return [f"{names[i]}->{names[j]}" for i, j in np.argwhere(graph)]


def default_rate_prior(time_unit: float) -> dist.Distribution:
    """LogNormal(-1, 1.5) in the inverse of ``time_unit``."""
    return dist.LogNormal(_LOG_MEDIAN - np.log(time_unit), _LOG_SD)


def sample_rates(
    num_states: int,
    rates: Any,
    prior: dist.Distribution | None,
    time_unit: float,
    names: Sequence[str],
    *,
    start: np.ndarray | None = None,
    covariates: ArrayLike | None = None,
    effect_prior: dist.Distribution | None = None,
    hierarchical: bool = False,
    num_series: int | None = None,
    num_steps: int = 1,
) -> Rates:
    """Sample sites of the rates (see :func:`sojourn.models.jump_process.model` for the arguments).

    Args:
        start: ``(K, K)`` where chains begin: a rough estimate.
        num_series: ``N``; ``None`` for a single series.
        num_steps: observations a series, where covariates vary in time.
    """
    check_priors(rate_prior=prior, effect_prior=effect_prior)
    baseline, graph = _baseline(num_states, rates, prior, time_unit, names, start)
    with (
        numpyro.plate("state", num_states, dim=-2),
        numpyro.plate("next_state", num_states, dim=-1),
    ):
        numpyro.deterministic("rate_matrix", baseline)
    if covariates is None and not hierarchical:
        return Rates(baseline, None, baseline)
    moves = move_names(graph, names)
    rows, group = _patterns(covariates, hierarchical, num_series, num_steps)
    change: Any = 0.0
    labels = {"event_coords": {"move": moves}}
    if covariates is not None:
        columns = rows[:, 1:]
        prior = dist.Normal(0.0, 1.0) if effect_prior is None else effect_prior
        shape = (columns.shape[1], len(moves))
        infer = {"event_dims": ["covariate", "move"], "init": np.zeros(shape), **labels}
        effect = numpyro.sample("covariate_effect", prior.expand(shape).to_event(2), infer=infer)
        change = columns @ effect
    if hierarchical:
        infer = {"event_dims": ["move"], "init": np.full(len(moves), 0.3), **labels}
        spread = numpyro.sample("rate_sd", dist.HalfNormal(0.5).expand([len(moves)]).to_event(1), infer=infer)
        shape = (num_series or 1, len(moves))
        infer = {"event_dims": ["series", "move"], "init": np.zeros(shape), **labels}
        own = numpyro.sample("series_effect", dist.Normal(0.0, 1.0).expand(shape).to_event(2), infer=infer)
        change = change + spread * own[rows[:, 0].astype(int)]
    origin, target = np.nonzero(graph)
    factor = jnp.ones((len(rows), num_states, num_states)).at[:, origin, target].set(jnp.exp(change))
    return Rates(generator(off_diagonal(baseline) * factor), group, baseline)


def _baseline(num_states, rates, prior, time_unit, names, start) -> tuple[Array, np.ndarray]:
    """A rate matrix, and the graph of its jumps."""
    everywhere = ~np.eye(num_states, dtype=bool)
    if callable(rates):
        matrix = jnp.asarray(rates(time_unit))
        if matrix.shape != (num_states, num_states):
            raise ValueError(
                f"`rates(time_unit)` must return a ({num_states}, {num_states}) matrix, not {matrix.shape}."
            )
        check_rate_matrix(matrix, "rates(time_unit)")
        return matrix, everywhere
    prior = default_rate_prior(time_unit) if prior is None else prior
    middle = np.exp(_LOG_MEDIAN) / time_unit
    if isinstance(rates, str) and rates == "reversible":
        infer: dict[str, Any] = {"event_dims": ["state"], "init": np.full(num_states, 1.0 / num_states)}
        infer["event_coords"] = {"state": list(names)}
        law = numpyro.sample("stationary", dist.Dirichlet(np.ones(num_states)), infer=infer)
        i, j = np.triu_indices(num_states, 1)
        pairs = [f"{names[a]}-{names[b]}" for a, b in zip(i, j, strict=True)]
        begin = np.full(len(i), middle) if start is None else np.sqrt(start[i, j] * start[j, i])
        infer = {"event_dims": ["pair"], "event_coords": {"pair": pairs}, "init": begin}
        exchange = numpyro.sample("exchange", prior.expand([len(i)]).to_event(1), infer=infer)
        return reversible_matrix(exchange, law), everywhere
    graph = adjacency_of(rates, num_states)
    edges = [(int(i), int(j)) for i, j in np.argwhere(graph)]
    infer = {
        "event_dims": ["move"],
        "event_coords": {"move": move_names(graph, names), "state": list(names), "next_state": list(names)},
        "init": np.full(len(edges), middle) if start is None else start[graph],
        "moves": edges,  # for an approximation that knows jump processes, see sj.fit(warm_start=)
    }
    rate = numpyro.sample("rate", prior.expand([len(edges)]).to_event(1), infer=infer)
    return masked(rate, graph), graph


def _patterns(covariates, hierarchical, num_series, num_steps) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows (series, covariates), the series zero where it does not matter, and the row that holds where."""
    count = num_series or 1
    series = np.arange(count) if hierarchical else np.zeros(count, int)
    lead = () if num_series is None else (count,)
    if covariates is None:
        return series[:, None].astype(float), series.reshape(lead)
    if isinstance(covariates, jax.core.Tracer):
        raise ValueError("`covariates` must be known when the model is compiled.")
    values = np.asarray(numbers(covariates, "covariates"), float)
    varies = values.ndim == len(lead) + 2
    if not values.ndim or values.shape[:-1] not in (lead, (*lead, num_steps)):
        wanted = (
            ("P,", f"{num_steps}, P") if num_series is None else (f"{count}, P", f"{count}, {num_steps}, P")
        )
        raise ValueError(f"`covariates` has shape {values.shape}; it must be ({wanted[0]}) or ({wanted[1]}).")
    if varies:
        values = values[..., :-1, :]  # row l holds from observation l to l + 1
    if not np.isfinite(values).all():
        raise ValueError("`covariates` has an entry that is not finite; covariates cannot be missing.")
    steps = values.shape[-2] if varies else 1
    flat = values.reshape(count * steps, values.shape[-1])
    table = np.concatenate([np.repeat(series, steps)[:, None], flat], 1)
    rows, group = np.unique(table, axis=0, return_inverse=True)
    return rows, group.reshape((*lead, steps) if varies else lead)


def first_state(
    initial: Any, num_states: int, rates: Rates, num_series: int | None, names: Sequence[str]
) -> Array:
    """``(K,)`` or ``(N, K)`` law of the first state: ``"free"``, ``"stationary"`` or probabilities."""
    if isinstance(initial, str):
        if initial == "free":
            infer = {
                "event_dims": ["state"],
                "event_coords": {"state": list(names)},
                "init": np.full(num_states, 1.0 / num_states),
            }
            return numpyro.sample("initial", dist.Dirichlet(np.ones(num_states)), infer=infer)
        if initial == "stationary":
            _refuse_absorbing(rates.baseline, names)
            law = stationary(rates.matrix)
            if rates.group is None:
                return law
            by_interval = rates.group.ndim > (num_series is not None)
            return law[rates.group[..., 0] if by_interval else rates.group]
        raise ValueError(f"`initial` is 'free', 'stationary' or probabilities here, not {initial!r}.")
    probs = jnp.asarray(numbers(initial, "initial"))
    if probs.shape not in ((num_states,), (num_series, num_states)):
        each = "" if num_series is None else f" or ({num_series}, {num_states})"
        raise ValueError(
            f"`initial` has shape {probs.shape}; {num_states} states need ({num_states},){each}."
        )
    if not isinstance(probs, jax.core.Tracer):
        total = np.asarray(probs).sum(-1)
        if (np.asarray(probs) < 0).any() or not (np.abs(total - 1) <= 1e-4).all():
            raise ValueError("`initial` must hold probabilities that sum to one.")
    return probs


def _refuse_absorbing(rate_matrix: Array, names: Sequence[str]) -> None:
    if isinstance(rate_matrix, jax.core.Tracer):
        return
    stuck = np.flatnonzero(np.asarray(exit_rates(rate_matrix)) == 0)
    if len(stuck):
        raise ValueError(
            f"State {names[stuck[0]]} is absorbing: a process at rest is there for ever, and initial='stationary' "
            "would have it start there. Use initial='free' or probabilities."
        )
