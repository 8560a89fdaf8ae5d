"""Questions to a Markov jump process: functions of rate matrices, and of a fit with its data.

Rate matrices come as arrays ``(..., K, K)`` or as ``xarray.DataArray`` with last dimensions ``state`` and
``next_state``, such as ``fit.posterior["rate_matrix"]``; then the answer is a DataArray over the same chains and draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, numbers, shown, whole_number
from sojourn.models._decoding import _bare, _labels, _law_of_series, _over_draws, _state_labels
from sojourn.ops import jump_path, transition_probability
from sojourn.ops import rate_matrix as ops
from sojourn.ops.rate_matrix import check_rate_matrix

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "entropy_production_rate",
    "expected_statistics",
    "mean_first_passage_times",
    "mean_sojourn_times",
    "probability_currents",
    "rate_matrix_at",
    "relaxation_times",
    "sample_paths",
    "simulate",
    "stationary_law",
    "survival",
    "transition_probabilities",
]


def _ask(
    rate_matrix: Any,
    compute: Callable[[Any], Any],
    dims: Sequence[str],
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """``compute(values)`` with the labels of ``rate_matrix``, if it has any, and ``dims`` at the end."""
    if not hasattr(rate_matrix, "dims"):
        check_rate_matrix(rate_matrix)
        return compute(jnp.asarray(rate_matrix))
    import xarray as xr

    if tuple(rate_matrix.dims[-2:]) != ("state", "next_state"):
        raise ValueError(
            f"The last dimensions of a rate matrix are ('state', 'next_state'), not {tuple(rate_matrix.dims[-2:])}."
        )
    values = rate_matrix.values
    check_rate_matrix(values)
    lead = list(rate_matrix.dims[:-2])
    kept = {d: rate_matrix[d] for d in lead if d in rate_matrix.coords}
    for dim in dims:
        source = "state" if dim in ("state", "next_state", "target") else None
        if source and source in rate_matrix.coords:
            kept[dim] = rate_matrix[source].values
    result = np.asarray(compute(jnp.asarray(values)))
    return xr.DataArray(result, dims=[*lead, *dims], coords={**kept, **(coords or {})})


def _refuse_absorbing(rate_matrix: Any, what: str) -> None:
    check_rate_matrix(
        getattr(rate_matrix, "values", rate_matrix) if hasattr(rate_matrix, "dims") else rate_matrix
    )
    exits = np.asarray(ops.exit_rates(np.asarray(getattr(rate_matrix, "values", rate_matrix))))
    stuck: Any = np.unique(np.argwhere(exits <= 0)[:, -1]) if (exits <= 0).any() else []
    if len(stuck):
        names = (
            rate_matrix["state"].values[stuck]
            if hasattr(rate_matrix, "coords") and "state" in rate_matrix.coords
            else stuck
        )
        raise ValueError(
            f"State {', '.join(str(n) for n in names)} is absorbing: {what} is that of staying there for ever. Ask for "
            "`survival` or `mean_first_passage_times`."
        )


def stationary_law(rate_matrix: Any) -> Any:
    """Long-run share of time in each state, ``(..., state)``.

    Raises:
        ValueError: an absorbing state.

    Example:
        >>> import jax.numpy as jnp
        >>> print(stationary_law(jnp.array([[-1.0, 1.0], [2.0, -2.0]])).round(4))
        [0.6667 0.3333]
    """
    _refuse_absorbing(rate_matrix, "the stationary law")
    return _ask(rate_matrix, ops.stationary, ["state"])


def mean_sojourn_times(rate_matrix: Any) -> Any:
    """Mean time of one stay in each state, ``(..., state)``; infinite in absorbing states.

    Example:
        >>> import jax.numpy as jnp
        >>> print(mean_sojourn_times(jnp.array([[-1.0, 1.0], [2.0, -2.0]])))
        [1.  0.5]
    """

    def compute(q):
        exits = ops.exit_rates(q)
        return jnp.where(exits > 0, 1.0 / jnp.where(exits > 0, exits, 1.0), jnp.inf)

    return _ask(rate_matrix, compute, ["state"])


def relaxation_times(rate_matrix: Any) -> Any:
    """``-1 / Re(eigenvalue)`` of the eigenvalues other than zero, longest first, ``(..., mode)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(relaxation_times(jnp.array([[-1.0, 1.0], [2.0, -2.0]])).round(4))
        [0.3333]
    """
    return _ask(rate_matrix, ops.relaxation_times, ["mode"])


def mean_first_passage_times(rate_matrix: Any) -> Any:
    """Mean time from each state until a target is first entered, ``(..., state, target)``.

    Infinite where the target may never be reached.

    Example:
        >>> import jax.numpy as jnp
        >>> print(mean_first_passage_times(jnp.array([[-1.0, 1.0], [0.0, 0.0]])))
        [[ 0.  1.]
         [inf  0.]]
    """

    def compute(q):
        edges = np.asarray(ops.off_diagonal(q)) > 0
        states = edges.shape[-1]
        patterns, which = np.unique(edges.reshape(-1, states * states), axis=0, return_inverse=True)
        never = np.stack([_may_miss(p.reshape(states, states)) for p in patterns])[which.ravel()]
        never = jnp.asarray(never.reshape(edges.shape))
        times = []
        for target in range(states):
            # A state that may miss the target keeps no equation of its own; nobody else needs its value.
            out = never[..., :, target][..., None]
            system = jnp.where(out, -jnp.eye(states), q)
            times.append(ops.mean_first_passage_times(system)[..., :, target])
        return jnp.where(never, jnp.inf, jnp.stack(times, -1))

    return _ask(rate_matrix, compute, ["state", "target"])


def _may_miss(edges: np.ndarray) -> np.ndarray:
    """``[i, j]``: from ``i`` there is a way to states from which there is none to ``j``."""
    states = len(edges)
    result = np.zeros((states, states), bool)
    for target in range(states):
        step = edges.copy()
        step[target] = False  # what comes after the target does not count
        reach = step | np.eye(states, dtype=bool)
        for _ in range(states):
            reach = (reach.astype(int) @ reach.astype(int)) > 0
        lost = ~reach[:, target]
        result[:, target] = (reach & lost[None, :]).any(1)
        result[target, target] = False
    return result


def entropy_production_rate(rate_matrix: Any) -> Any:
    """Entropy produced in the stationary state, a unit of time, in Boltzmann's constants ``(...)``.

    Zero in detailed balance, infinite where a jump has no way back (see
    :func:`sojourn.ops.rate_matrix.entropy_production_rate`).

    Example:
        >>> from sojourn.models.jump_process import flashing_ratchet
        >>> print(f"{entropy_production_rate(flashing_ratchet(1.0, 1.0, 1.0)):.4f}")
        0.1792
    """
    _refuse_absorbing(rate_matrix, "the stationary state")
    return _ask(rate_matrix, ops.entropy_production_rate, [])


def probability_currents(rate_matrix: Any) -> Any:
    """Net flow between states in the stationary state, ``(..., state, next_state)``.

    Example:
        >>> from sojourn.models.jump_process import flashing_ratchet
        >>> print(f"{probability_currents(flashing_ratchet(1.0, 1.0, 1.0))[0, 1]:.4f}")
        -0.0424
    """
    _refuse_absorbing(rate_matrix, "the stationary state")
    return _ask(rate_matrix, ops.probability_currents, ["state", "next_state"])


def transition_probabilities(rate_matrix: Any, times: ArrayLike) -> Any:
    """Probability of each state after each time, ``(..., time, state, next_state)``.

    Example:
        >>> import jax.numpy as jnp
        >>> f"{transition_probabilities(jnp.array([[-1.0, 1.0], [2.0, -2.0]]), [0.5])[0, 0, 1]:.4f}"
        '0.2590'
    """
    grid = _grid(times)
    return _ask(
        rate_matrix,
        lambda q: transition_probability.transition_probabilities(q, grid),
        ["time", "state", "next_state"],
        {"time": grid},
    )


def survival(rate_matrix: Any, times: ArrayLike, *, until: Sequence[int] | int) -> Any:
    """Probability that none of the states ``until`` has been entered by each time, ``(..., time, state)``.

    Args:
        rate_matrix: see the module's text.
        times: ``(T,)``.
        until: a state, or several, by position.

    Example:
        >>> import jax.numpy as jnp
        >>> f"{survival(jnp.array([[-1.0, 1.0], [2.0, -2.0]]), [1.0], until=1)[0, 0]:.4f}"
        '0.3679'
    """
    grid = _grid(times)
    check_rate_matrix(rate_matrix.values if hasattr(rate_matrix, "dims") else rate_matrix)
    target = np.atleast_1d(np.asarray(numbers(until, "until")))
    states = np.shape(rate_matrix)[-1]
    if target.size and not np.issubdtype(target.dtype, np.integer):
        raise ValueError(f"`until` must name states by position, 0 to {states - 1}, not {shown(until)}.")
    target = target.astype(int)
    if target.size == 0 or target.min() < 0 or target.max() >= states:
        raise ValueError(f"`until` must name some of the states 0 to {states - 1}.")

    def compute(q):
        stopped = q.at[..., target, :].set(0.0)
        arrived = transition_probability.transition_probabilities(stopped, grid)[..., target].sum(-1)
        return jnp.clip(1.0 - arrived, 0.0, 1.0)

    return _ask(rate_matrix, compute, ["time", "state"], {"time": grid})


def _grid(times: ArrayLike) -> np.ndarray:
    grid = np.atleast_1d(np.asarray(numbers(times, "times"), float))
    if grid.ndim != 1 or not np.isfinite(grid).all() or (grid < 0).any():
        raise ValueError("`times` must be finite and not negative, (T,).")
    return grid


def simulate(
    rate_matrix: Any, duration: float, *, initial: ArrayLike, seed: int = 0, max_jumps: int | None = None
) -> xr.Dataset:
    """A complete path for each rate matrix: with posterior draws, predicted paths with all their uncertainty.

    Args:
        rate_matrix: see the module's text.
        duration: length of the paths.
        initial: the first state, or ``(K,)`` probabilities.
        seed: of the paths.
        max_jumps: room for jumps. By default enough for all but one path in a million.

    Returns:
        A Dataset over ``(..., visit)``: ``entry_time`` and ``state``. After the last jump the state repeats, entered
        at ``duration``.

    Example:
        >>> import jax.numpy as jnp
        >>> paths = simulate(jnp.array([[-1.0, 1.0], [2.0, -2.0]]), 5.0, initial=0, seed=1)
        >>> sorted(paths.data_vars), float(paths["entry_time"][0])
        (['entry_time', 'state'], 0.0)
    """
    import xarray as xr

    values = rate_matrix.values if hasattr(rate_matrix, "dims") else rate_matrix
    check_rate_matrix(values)
    values = np.asarray(values, float)
    states = values.shape[-1]
    if np.ndim(numbers(duration, "duration")) or not (np.isfinite(duration) and duration > 0):
        raise ValueError(f"`duration` must be positive and finite, not {duration!r}.")
    seed = whole_number(seed, "seed", None)
    if max_jumps is not None:
        max_jumps = whole_number(max_jumps, "max_jumps", 0)
    first = np.asarray(numbers(initial, "initial"))
    if first.ndim == 0 and not 0 <= int(first) < states:
        raise ValueError(f"`initial` must be a state from 0 to {states - 1}, or probabilities.")
    law = np.eye(states)[int(first)] if first.ndim == 0 else np.asarray(initial, float)
    if law.shape != (states,) or not (law >= 0).all() or abs(law.sum() - 1) > 1e-4:
        raise ValueError(f"`initial` must hold {states} probabilities that sum to one.")
    lead = values.shape[:-2]
    count = int(np.prod(lead, dtype=int))
    if max_jumps is None:
        fastest = float(np.asarray(ops.exit_rates(values)).max())
        max_jumps = transition_probability.most_events(fastest * duration, 1e-6) + 1
    keys = jax.random.split(jax.random.key(seed), (count, 2))

    @jax.jit
    def run(keys, matrices):
        def one(key, matrix):
            start = jax.random.choice(key[0], states, p=jnp.asarray(law))
            return jump_path.simulate(key[1], matrix, start, duration, max_jumps=max_jumps)[:2]

        return jax.vmap(one)(keys, matrices)

    time, state = (np.asarray(x) for x in run(keys, jnp.asarray(values.reshape(-1, states, states))))
    dims = [
        *getattr(rate_matrix, "dims", [f"dim_{i}" for i in range(len(lead))] + ["state", "next_state"])[:-2],
        "visit",
    ]
    coords = {d: rate_matrix[d] for d in dims if d in getattr(rate_matrix, "coords", {})}
    return xr.Dataset(
        {"entry_time": (dims, time.reshape(*lead, -1)), "state": (dims, state.reshape(*lead, -1))},
        coords=coords,
    )


def rate_matrix_at(posterior: Any, covariates: Any) -> Any:
    """Rate matrices at given covariates, ``(..., state, next_state)``.

    Args:
        posterior: of a fit with ``covariates``: ``rate_matrix`` and ``covariate_effect`` by name.
        covariates: ``(P,)``.

    Example:
        >>> import numpy as np, xarray as xr
        >>> names = ["a", "b"]
        >>> posterior = xr.Dataset(
        ...     {"rate_matrix": (("state", "next_state"), np.array([[-1.0, 1.0], [2.0, -2.0]])),
        ...      "covariate_effect": (("covariate", "move"), np.log([[3.0, 1.0]]))},
        ...     coords={"state": names, "next_state": names, "move": ["a->b", "b->a"]})
        >>> print(rate_matrix_at(posterior, [1.0]).values.round(4))
        [[-3.  3.]
         [ 2. -2.]]
    """
    if not hasattr(posterior, "data_vars"):
        raise ValueError(
            f"`posterior` must be the posterior of a fit, such as fit.posterior, not {shown(posterior)}."
        )
    if "covariate_effect" not in posterior:
        raise ValueError("The posterior has no `covariate_effect`: the model was fitted without covariates.")
    matrix, effect = posterior["rate_matrix"], posterior["covariate_effect"]
    at = np.atleast_1d(np.asarray(finite_numbers(covariates, "covariates"), float))
    if at.shape != (effect.sizes["covariate"],):
        raise ValueError(
            f"`covariates` has shape {at.shape}; the model has {effect.sizes['covariate']} of them."
        )
    names = [str(s) for s in matrix["state"].values]
    values = matrix.values.copy()
    change = np.einsum("p,...pm->...m", at, effect.transpose(..., "covariate", "move").values)
    for m, move in enumerate(effect["move"].values):
        origin, target = str(move).split("->")
        values[..., names.index(origin), names.index(target)] *= np.exp(change[..., m])
    return matrix.copy(data=np.asarray(ops.generator(values)))


# ----------------------------------------------------------------------------------------- of a fit with its data


def expected_statistics(
    fit: Any, model: Callable[..., Any], *args: Any, num_draws: int | None = None, **kwargs: Any
) -> xr.Dataset:
    """Expected time in each state and number of jumps, given the data, for every posterior draw.

    Args:
        fit: result of ``sj.fit``.
        model, *args, **kwargs: the model and the data, as they were given to ``sj.fit``.
        num_draws: use this many draws of each chain, evenly spaced (all by default).

    Returns:
        A Dataset over ``chain``, ``draw``: ``dwell_time`` (state) and ``jumps`` (state, next_state), summed over series.

    Example:
        >>> import numpy as np, sojourn as sj
        >>> from sojourn.models import jump_process
        >>> data = [0, 0, 1, 1, 0, 0, 0, 1], np.arange(8.0)
        >>> fit = sj.fit(jump_process.panel, *data, num_states=2, num_warmup=200, num_samples=100, num_chains=1,
        ...              progress_bar=False)
        >>> answer = expected_statistics(fit, jump_process.panel, *data, num_states=2)
        >>> np.allclose(answer["dwell_time"].sum("state"), 7.0, rtol=1e-3)
        True
    """
    import xarray as xr

    arrays, kwargs = [_bare(a) for a in args], {n: _bare(v) for n, v in kwargs.items()}

    def one(values, key):
        law, series = _law(model, arrays, kwargs, values, key)
        dwell, jumps = law.expected_statistics(series)
        together = law.rate_matrix.ndim == 3
        return (dwell.sum(0), jumps.sum(0)) if together else (dwell, jumps)

    dwell, jumps, thinned = _over_draws(fit, one, num_draws, 0)
    labels = _state_labels(thinned, dwell.shape[-1])
    return xr.Dataset(
        {
            "dwell_time": (["chain", "draw", "state"], dwell),
            "jumps": (["chain", "draw", "state", "next_state"], jumps),
        },
        coords={
            "chain": thinned["chain"].values,
            "draw": thinned["draw"].values,
            "state": labels,
            "next_state": labels,
        },
    )


def sample_paths(
    fit: Any,
    model: Callable[..., Any],
    *args: Any,
    at: ArrayLike,
    num_draws: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> xr.Dataset:
    """The whole path given the data, jumps between observations included: one draw for each posterior draw.

    The draws are exact: states at the times of observation by forward filtering and backward sampling, the paths in
    between by uniformization.

    Args:
        fit, model, *args, **kwargs: as in :func:`expected_statistics`.
        at: ``(T,)`` times at which the paths are looked at.
        num_draws: use this many draws of each chain, evenly spaced (all by default).
        seed: of the paths.

    Returns:
        A Dataset over ``chain``, ``draw`` (and ``series``): ``state`` (``path_time``), and ``num_jumps`` between the first
        observation and the last. Averaged over draws, ``state == k`` is the probability of state ``k``. Outside the
        observed stretch the state is that at its nearer end.

    Example:
        >>> import numpy as np, sojourn as sj
        >>> from sojourn.models import jump_process
        >>> data = [0, 0, 1, 1, 0, 0, 0, 1], np.arange(8.0)
        >>> fit = sj.fit(jump_process.panel, *data, num_states=2, num_warmup=200, num_samples=100, num_chains=1,
        ...              progress_bar=False)
        >>> paths = sample_paths(fit, jump_process.panel, *data, num_states=2, at=[2.0, 2.5])
        >>> float((paths["state"] == 1).mean("draw")[0, 0]), paths["state"].dims
        (1.0, ('chain', 'draw', 'path_time'))
    """
    import xarray as xr

    grid = np.atleast_1d(np.asarray(at, float))
    arrays, kwargs = [_bare(a) for a in args], {n: _bare(v) for n, v in kwargs.items()}

    def load(values, key):
        return (_law(model, arrays, kwargs, values, key)[0].max_events(),)

    heaviest, _ = _over_draws(fit, load, num_draws, seed)
    num_events = transition_probability.most_events(float(heaviest.max()), 1e-9) + 1

    def one(values, key):
        law, series = _law(model, arrays, kwargs, values, key)
        path = law.sample_jump_path(jax.random.fold_in(key, 1), series, num_events=num_events)
        flat = path.reshape(-1, *path.shape[-2:])
        state = jax.vmap(lambda p: jump_path.state_at(p[:, 0], p[:, 1].astype(int), grid))(flat)
        jumps = (jnp.diff(flat[..., 1], axis=-1) != 0).sum(-1)
        lead = path.shape[:-2]
        return state.reshape(*lead, -1), jumps.reshape(lead)

    state, jumps, thinned = _over_draws(fit, one, num_draws, seed)
    batch = ["series"] if state.ndim == 4 else []
    coords = _labels(fit, thinned, batch, state.shape[2:-1])
    coords["path_time"] = grid
    lead = ["chain", "draw", *batch]
    return xr.Dataset({"state": ([*lead, "path_time"], state), "num_jumps": (lead, jumps)}, coords=coords)


def _law(model, args, kwargs, values, key):
    return _law_of_series(model, args, kwargs, values, key, method="sample_jump_path")
