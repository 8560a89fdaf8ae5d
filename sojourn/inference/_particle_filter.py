"""Particle filter for any NumPyro model with a scan, and words for when its weights fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from numpyro import handlers
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution, Unit

from sojourn._arguments import finite_numbers, must_be, numbers, shown, whole_number
from sojourn._contract import observed_sites, trace_model
from sojourn.inference import _labels as labels
from sojourn.inference._check_model import check_data
from sojourn.inference._read import ScanModel, StateSpace, read_scan
from sojourn.inference._scan import is_latent, run_step, site_term
from sojourn.ops.particle_filter import GRADIENTS, Filtered
from sojourn.ops.particle_filter import particle_filter as run
from sojourn.ops.particles import _by_system, lanes, pick
from sojourn.ops.resampling import SCHEMES, draw, systematic

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["explain_weights", "particle_filter", "particle_log_likelihood"]

POOLED = 2000
"""Points from which quantiles over several draws of the parameters are taken."""


def particle_filter(
    model: Callable[..., Any],
    *args: Any,
    parameters: Mapping[str, Any] | None = None,
    fit: Any = None,
    num_draws: int = 100,
    num_particles: int = 1000,
    seed: int = 0,
    resampling: str = "systematic",
    ess_threshold: float | None = 0.5,
    guide: Callable[..., Any] | None = None,
    initial_guide: Callable[..., Any] | None = None,
    twist: Callable[..., Any] | None = None,
    scan: str | int | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    horizon: int | None = None,
    future: Any = None,
    particles: bool = False,
    **kwargs: Any,
) -> xr.Dataset:
    """Likelihood, filtered states and forecasts of a NumPyro model with a ``scan``, by particles.

    A bootstrap filter moves the particles by the model's own step (Gordon, Salmond and Smith 1993); a guide
    makes it a guided filter, a twist an auxiliary one (Pitt and Shephard 1999, *JASA* 94:590).

    Args:
        model: a NumPyro model whose time loop is ``numpyro.contrib.control_flow.scan``.
        *args: its arguments, the data among them. NaN observations count as missing.
        parameters: values of the parameters, that is of all latent sites but those of the scan and of its
            initial state. The filter is run at these values.
        fit: instead of ``parameters``, a fit of the model (any ArviZ container): the filter is run at
            ``num_draws`` of its draws, evenly spaced; states and forecasts are those of the mixture.
        num_draws: draws taken from ``fit``.
        num_particles: at least 2.
        seed: the same seed on the same machine gives the same numbers.
        resampling: ``"systematic"``, ``"multinomial"`` or ``"killing"``.
        ess_threshold: resample when the effective sample size is below this share of ``num_particles``;
            ``None`` resamples at every step.
        guide: ``guide(carry, x, parameters)``, a NumPyro function that samples any of the step's latent sites,
            under their own names, from a better proposal than the model's.
        initial_guide: ``initial_guide(parameters)``, likewise for the initial state.
        twist: ``twist(carry, x, parameters)``, a log-weight by which a particle is favoured when it is
            resampled before the step with input ``x``.
        scan: which scan, if several have latent sites: its number, or the name of a site in it.
        quantiles: of the filtered states; ``()`` saves their sorting.
        horizon: number of steps to go on beyond the data, where observed sites are drawn, not conditioned on.
        future: inputs of the scan (its ``xs``) for these steps. Entries that hold data are not looked at: put
            NaN. May be left out when the inputs are one array (all of it data, replaced by NaN, or by 0 in an
            array of integers) or none. A model whose next state uses the observation must take it from the
            sample statement, ``y = numpyro.sample("y", ..., obs=y)``.
        particles: return the particles and weights of each step.
        **kwargs: keyword arguments of the model.

    Returns:
        An ``xarray.Dataset`` with

        * ``log_likelihood``: estimate of the log-density of the observations of the scan; its exponential is
          unbiased. ``log_predictive`` (time): its terms log p(y_t | y_<t); ``ess`` (time): effective sample
          size. All three by ``draw`` if a fit was given, and by plate where the model falls apart into
          independent series;
        * for each latent site ``x`` of the scan ``x_mean``, ``x_sd`` and ``x_quantile`` (time, ...) given the
          data so far; ``x_probability`` (time, ..., x_value) if it has finitely many values;
        * with ``horizon``, for each site of the scan ``x_forecast`` (sample, horizon, ...): equally weighted
          draws given all data;
        * with ``particles``, each latent site itself (time, particle, ...) and ``log_weight``, normalised.

    Raises:
        ValueError: fewer than two particles; a parameter without a value; data outside the support of their
            law; at some step no particle with positive weight, or an infinite density: the sentence names the
            step and the site; forecasts that are NaN because ``future`` is needed.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> found = particle_filter(walk, jnp.array([0.1, 0.9, 1.4]), parameters={"scale": 0.5}, horizon=2)
        >>> round(float(found.log_likelihood))  # exact: -3.94
        -4
        >>> found.x_mean.dims, found.y_forecast.dims
        (('time',), ('sample', 'horizon'))
    """
    check_options(num_particles, resampling, ess_threshold)
    check_guides(guide=guide, initial_guide=initial_guide, twist=twist)
    num_draws, seed = whole_number(num_draws, "num_draws"), whole_number(seed, "seed", None)
    if horizon is not None:
        horizon = whole_number(horizon, "horizon", 0)
    wanted = np.asarray(numbers(quantiles, "quantiles"))
    if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError(
            f"`quantiles` must be probabilities, such as (0.05, 0.5, 0.95), not {shown(quantiles)}."
        )
    key_trace, key = random.split(random.key(seed))
    read = read_scan(model, *args, scan=scan, **kwargs)
    structure = read.structure
    values = _parameters(structure.global_sites, parameters, fit, num_draws, lambda: parameter_shapes(read))
    one = {n: v[0] for n, v in values.items()}
    trace = trace_model(read.model, read.args, read.kwargs, key=key_trace, values=one)
    _check_supports(trace)
    ahead = _inputs_ahead(read.at(one).xs, horizon, future)

    count = next((len(v) for v in values.values()), 1)
    mixed = fit is not None
    kept = -(-num_particles // count)
    # The quantiles of a mixture are those of many quantiles of its parts.
    points = -(-POOLED // count) if mixed and len(quantiles) else 0
    levels = tuple((np.arange(points) + 0.5) / points) if points else tuple(map(float, quantiles))
    support = {
        n: np.asarray(trace[n]["fn"].enumerate_support(expand=False)).ravel()
        for n in structure.path_sites
        if trace[n]["fn"].has_enumerate_support and trace[n]["fn"].event_dim == 0
    }
    guides: dict[str, Any] = {"guide": guide, "initial_guide": initial_guide, "twist": twist}

    def summarise(states, log_weight):
        summaries = {
            n: _summary(v, _weights_of(log_weight, v, structure.value_axes.get(n)), levels, support.get(n))
            for n, v in states.items()
        }
        return summaries, (states, log_weight) if particles else None

    def once(given):
        parameters, key = given
        key_filter, key_last, key_ahead = random.split(key, 3)
        space = read.at(parameters)
        filtered = run(
            space.process(**guides),
            key_filter,
            num_particles,
            resampling=resampling,
            ess_threshold=ess_threshold,
            summarise=summarise,
        )
        drawn = {}
        if ahead is not None:
            chosen = _by_system(systematic, structure.systems)(key_last, filtered.log_weights)
            chosen = chosen[(np.arange(kept) * 2 + 1) * num_particles // (2 * kept)]
            last = pick(filtered.carry, chosen, structure.carry_axes, structure.systems)
            drawn = _go_on(space, key_ahead, last, ahead)
        return filtered._replace(carry=None, log_weights=None), filtered.log_evidence, drawn

    keys = random.split(key, count)
    filtered, log_likelihood, drawn = jax.tree.map(
        np.asarray, jax.jit(lambda given: lax.map(once, given))((values, keys))
    )
    sound = np.isfinite(log_likelihood).reshape(count, -1).all(1)
    if not sound.all():
        bad = int(np.argmin(sound))
        reason = explain_weights(
            read, {n: v[bad] for n, v in values.items()}, keys[bad], num_particles, **guides
        )
        raise ValueError(reason or "The log-likelihood is not finite: use more particles, or a guide.")
    for name, draws in drawn.items():
        if np.issubdtype(draws.dtype, np.floating) and np.isnan(draws).any():
            raise ValueError(
                f"The forecast of '{name}' is NaN: pass the inputs of the scan beyond the data as `future`, and let "
                "the next state take the observation from its sample statement."
            )
    return _dataset(
        read,
        trace,
        labels.named_arrays(model, args, kwargs),
        filtered,
        log_likelihood,
        drawn,
        quantiles,
        support,
        mixed,
    )


def check_options(num_particles: int, resampling: str, ess_threshold: float | None) -> None:
    """Refuse what no particle filter can work with."""
    if not isinstance(num_particles, int | np.integer) or num_particles < 2:
        raise ValueError(f"`num_particles` must be a whole number of at least 2, not {num_particles!r}.")
    if resampling not in SCHEMES:
        raise ValueError(f"`resampling` must be one of {', '.join(map(repr, SCHEMES))}, not {resampling!r}.")
    if ess_threshold is not None and not 0.0 <= numbers(ess_threshold, "ess_threshold") <= 1.0:
        raise ValueError(
            f"`ess_threshold` is a share of the particles, 0 to 1, or None; not {ess_threshold!r}."
        )


def check_guides(**guides: Any) -> None:
    for name, guide in guides.items():
        must_be(guide is None or callable(guide), name, "a function", guide)


def _check_supports(trace: Mapping[str, Any]) -> None:
    """Refuse data outside a support that is the same for every path; what depends on the path has weights."""

    def law(fn):
        while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
            fn = fn.base_dist
        return type(fn)

    fixed = {
        n: s
        for n, s in observed_sites(trace).items()
        if not isinstance(inspect.getattr_static(law(s["fn"]), "support", None), property)
    }
    if fixed:
        check_data(fixed)


def parameter_shapes(read: ScanModel) -> dict[str, tuple[int, ...]]:
    """Of the latent sites that are parameters, and of what ``numpyro.param`` declares; nothing is computed."""

    def values():
        trace = trace_model(read.model, read.args, read.kwargs, key=random.key(0))
        wanted = read.structure.global_sites
        return {n: s["value"] for n, s in trace.items() if n in wanted or s["type"] == "param"}

    return {n: getattr(like, "shape", ()) for n, like in jax.eval_shape(values).items()}


def check_parameters(
    given: Mapping[str, Any], sites: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The given values, once they are known to be of the model and, at its latent ``sites``, to fit them."""
    must_be(isinstance(given, Mapping), "parameters", "a mapping from names to values", given)
    unknown = [n for n in given if n not in shapes]
    if unknown:
        raise ValueError(f"The model has no parameter {unknown[0]!r}; its parameters are {list(shapes)}.")
    found = dict(given)
    for name in sites:
        if name in given:
            found[name] = finite_numbers(given[name], f"parameters[{name!r}]")
            if np.shape(found[name]) != shapes[name]:
                raise ValueError(
                    f"The parameter {name!r} has shape {shapes[name]}, not {np.shape(found[name])}."
                )
    return found


def _parameters(
    names: Sequence[str],
    given: Mapping[str, Any] | None,
    fit: Any,
    num_draws: int,
    shapes: Callable[[], Mapping[str, tuple[int, ...]]],
) -> dict[str, Array]:
    """Values of the parameters with a leading axis of draws."""
    if given is not None and fit is not None:
        raise ValueError("Give `parameters` or `fit`, not both.")
    if given is not None:
        given = check_parameters(given, names, shapes())
    if fit is not None:
        posterior = getattr(fit, "posterior", fit)
        given = {n: posterior[n] for n in names if n in posterior}
    missing = [n for n in names if n not in (given or {})]
    if missing or given is None:
        if not missing:
            return {}
        where = "the posterior of `fit`" if fit is not None else "`parameters`"
        raise ValueError(
            f"The filter runs at given parameters, and {where} lacks {', '.join(map(repr, missing))}."
        )
    if fit is None:
        return {n: jnp.asarray(given[n])[None] for n in names}
    stacked = {n: np.asarray(v).reshape((-1, *v.shape[2:])) for n, v in given.items()}
    total = next((len(v) for v in stacked.values()), 1)
    chosen = np.unique(np.linspace(0, total - 1, min(num_draws, total)).astype(int))
    return {n: jnp.asarray(v[chosen]) for n, v in stacked.items()}


def _inputs_ahead(xs: Any, horizon: int | None, future: Any) -> Any:
    """Inputs of the scan beyond the data, leading axis time, with the number of steps; ``None`` for no forecast."""
    if future is None and not horizon:
        return None
    if future is not None:
        future = jax.tree.map(jnp.asarray, future)
        given: Any = jax.tree.structure(future)
        if given != jax.tree.structure(xs):
            raise ValueError("`future` must have the structure of the inputs `xs` of the scan.")
        lengths = {len(v) for v in jax.tree.leaves(future)}
        if len(lengths) > 1 or (horizon is not None and lengths - {horizon}):
            raise ValueError(
                f"The entries of `future` must all have length `horizon`; they have {sorted(lengths)}."
            )
        return lengths.pop(), future
    leaves = jax.tree.leaves(xs)
    if len(leaves) > 1:
        raise ValueError(
            "The scan has several inputs: pass their values beyond the data as `future` (NaN for data)."
        )

    def unknown(x):
        gap = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return jnp.full((horizon, *x.shape[1:]), gap, x.dtype)

    return horizon, jax.tree.map(unknown, xs)


class _unobserve(handlers.block):
    """Draw observed sites from their law; factors stay as they are."""

    def __init__(self, fn: Callable[..., Any]):
        super().__init__(fn, hide_fn=lambda _: False)

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["is_observed"] and not isinstance(msg["fn"], Unit):
            msg["is_observed"], msg["value"] = False, None


def _go_on(space: StateSpace, key: Array, carry: Any, ahead: tuple[int, Any]) -> dict[str, Array]:
    """Draws of every site of the scan ``(horizon, particles, ...)`` from particles after the last step."""
    horizon, xs = ahead
    # What was given for the steps of the data (handlers.condition, ...) says nothing about those that follow.
    call = space._call._replace(f=_unobserve(space._call.f), substitute_stack=())
    num = len(jax.tree.leaves(carry)[0])

    def body(carry, inputs):
        t, x, key = inputs

        def single(carry, key):
            new, _, trace = run_step(call, carry, x, t, key=key)
            new = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, carry)
            return new, {n: s["value"] for n, s in trace.items() if is_latent(s)}

        return jax.vmap(single)(carry, lanes(key, num))

    times = space.length + jnp.arange(horizon)
    return lax.scan(body, carry, (times, xs, random.split(key, horizon)))[1]


def _weights_of(log_weight: Array, value: Array, axes: tuple[int, ...] | None) -> Array:
    """Weights ``(N, *systems)`` with the axes of the values that they belong to."""
    shape = [log_weight.shape[0]] + [1] * (value.ndim - 1)
    for size, axis in zip(log_weight.shape[1:], axes or (), strict=True):
        shape[axis + 1] = size
    return jnp.exp(log_weight).reshape(shape)


def _summary(
    value: Array, weight: Array, levels: Sequence[float], support: np.ndarray | None
) -> dict[str, Array]:
    """Moments, quantiles and probabilities of weighted particles ``(N, ...)``."""
    number = value.astype(weight.dtype)
    mean = (weight * number).sum(0)
    out = {"mean": mean, "sd": jnp.sqrt((weight * (number - mean) ** 2).sum(0))}
    if len(levels):
        order = jnp.argsort(value, 0)
        ranked = jnp.take_along_axis(value, order, 0).reshape(len(value), -1)
        mass = jnp.cumsum(jnp.take_along_axis(jnp.broadcast_to(weight, value.shape), order, 0), 0)
        mass = mass.reshape(len(value), -1)
        target = jnp.asarray(levels) * mass[-1:].T
        where = jax.vmap(lambda m, q: jnp.searchsorted(m, q), (1, 0), 1)(mass, target)
        found = jnp.take_along_axis(ranked, jnp.minimum(where, len(value) - 1), 0)
        out["quantile"] = found.reshape(len(levels), *value.shape[1:])
    if support is not None:
        out["probability"] = (weight[..., None] * (value[..., None] == support)).sum(0)
    return out


def _dataset(
    read: ScanModel,
    trace: Mapping[str, Any],
    arrays: Mapping[str, Any],
    filtered: Filtered,
    log_likelihood: np.ndarray,
    drawn: Mapping[str, np.ndarray],
    quantiles: Sequence[float],
    support: Mapping[str, np.ndarray],
    mixed: bool,
) -> xr.Dataset:
    import xarray as xr

    structure = read.structure
    mine = [n for n in (*structure.path_sites, *structure.observed_sites) if n in trace]
    names = labels.Labels({n: np.shape(trace[n]["value"]) for n in mine}, trace)
    for array in arrays.values():
        for name in observed_sites(trace):
            if name in names.dims and np.shape(trace[name]["value"]) == np.shape(array):
                names.adopt(array, names.dims[name])
    time = names.dims[structure.path_sites[0]][0]
    plates = [p.name for p in structure.plates]
    draws = ["draw"] if mixed else []
    coords: dict[str, Any] = dict(names.coords)

    def first(x):
        return x if mixed else x[0]

    variables: dict[str, Any] = {
        "log_likelihood": ([*draws, *plates], first(log_likelihood)),
        "log_predictive": ([*draws, time, *plates], first(filtered.increments)),
        "ess": ([*draws, time, *plates], first(filtered.ess)),
    }
    summaries, history = filtered.summaries
    for name, parts in summaries.items():
        inner = names.dims[name][1:]
        mean, sd = parts["mean"].astype(float), parts["sd"].astype(float)
        variables[f"{name}_mean"] = ([time, *inner], mean.mean(0))
        variables[f"{name}_sd"] = ([time, *inner], np.sqrt((sd**2).mean(0) + mean.var(0)))
        if "quantile" in parts:
            pooled = parts["quantile"][0].swapaxes(0, 1)
            if mixed:
                points = np.moveaxis(parts["quantile"], 2, 1)
                pooled = np.quantile(points.reshape(-1, *points.shape[2:]), list(quantiles), axis=0)
            variables[f"{name}_quantile"] = (["quantile", time, *inner], pooled)
            coords["quantile"] = list(quantiles)
        if "probability" in parts:
            variables[f"{name}_probability"] = ([time, *inner, f"{name}_value"], parts["probability"].mean(0))
            coords[f"{name}_value"] = support[name]
    for name, values in drawn.items():
        flat = np.moveaxis(values, 2, 1).reshape(-1, values.shape[1], *values.shape[3:])
        variables[f"{name}_forecast"] = (["sample", "horizon", *names.dims[name][1:]], flat)
        coords["horizon"] = 1 + np.arange(values.shape[1])
    if history is not None:
        states, log_weight = history
        for name, values in states.items():
            variables[name] = ([*draws, time, "particle", *names.dims[name][1:]], first(values))
        variables["log_weight"] = ([*draws, time, "particle", *plates], first(log_weight))
    dataset = xr.Dataset(variables)
    known = {d: c for d, c in coords.items() if d in dataset.dims and len(c) == dataset.sizes[d]}
    return dataset.assign_coords({d: np.arange(n) for d, n in dataset.sizes.items()} | known)


# ------------------------------------------------------------------------------------- when weights fail


def explain_weights(
    read: ScanModel,
    parameters: Mapping[str, Any],
    key: Array,
    num_particles: int,
    *,
    guide: Callable[..., Any] | None = None,
    initial_guide: Callable[..., Any] | None = None,
    twist: Callable[..., Any] | None = None,
) -> str | None:
    """Say at which step and site the weights of a particle filter fail, or ``None`` if they do not.

    Runs a filter anew and keeps, for each step, the largest log-density that any particle gives to each observed
    site. Steps are counted from 0.

    Args:
        read: the model, from :func:`sojourn.inference.read_scan`.
        parameters: values of its parameters.
        key: random key.
        num_particles: number of particles.
        guide, initial_guide, twist: as given to the filter that failed.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def model(y):
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Uniform(x, x + 1.0))
        ...         numpyro.sample("y", dist.Uniform(x, x + 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> print(explain_weights(read_scan(model, jnp.array([0.5, 7.0])), {}, jax.random.key(0), 50))
        All 50 particles have weight zero at step 1: 'y' has density zero given every one of them. ...
    """
    structure = read.structure
    systems, n = structure.systems, num_particles
    one_each = _by_system(lambda key, w: draw(key, w, w.shape), systems)

    def worst(term):
        gap = jnp.isnan(term)
        return jnp.where(gap, -jnp.inf, term).max(0), gap.all(0)

    def run_once(key):
        space = read.at(parameters)
        process = space.process(guide=guide, initial_guide=initial_guide, twist=twist)
        key_start, key_moves = random.split(key)
        carry, _, weight = jax.vmap(process.start)(lanes(key_start, n))
        weight = weight + jnp.zeros((n, *systems))

        def usable(weight):
            weight = jnp.where(jnp.isnan(weight), -jnp.inf, weight)
            return jnp.where(jnp.isneginf(weight.max(0)), 0.0, weight)

        def seen(carry, x, t, values):
            sites = space._step(carry, x, t, values=values)[1]
            return {k: site_term(s, structure.plates) for k, s in sites.items() if not is_latent(s)}

        def body(running, inputs):
            carry, weight = running
            x, t, keys = inputs
            parents = pick(carry, one_each(keys[0], usable(weight)), structure.carry_axes, systems)
            moved = jax.vmap(process.move, (0, 0, None, None))(lanes(keys[1], n), parents, x, t)
            terms = jax.vmap(seen, (0, None, None, 0))(parents, x, t, moved.values)
            terms = {k: v + jnp.zeros((n, *systems)) for k, v in terms.items()}
            new = jax.tree.map(lambda a, b: a.astype(b.dtype), moved.carry, carry)
            return (new, moved.log_weight), (worst(moved.log_weight), {k: worst(v) for k, v in terms.items()})

        keys = random.split(key_moves, (space.length, 2))
        _, out = lax.scan(body, (carry, weight), (space.xs, jnp.arange(space.length), keys))
        return worst(weight), out

    start, (total, sites) = jax.tree.map(np.asarray, jax.jit(run_once)(key))
    if not np.isfinite(start[0]).all():
        what = ", ".join(f"'{n}'" for n in (structure.weighing or structure.initial_sites))
        return (
            f"No particle has a finite, positive weight before the first step ({what}): look at the parameters, or "
            "at `initial_guide`."
        )
    failed = ~np.isfinite(total[0])
    if not failed.any():
        return None
    t, *where = (int(i) for i in np.argwhere(failed)[0])
    at = f"step {t}" + "".join(f", {p.name} {i}" for p, i in zip(structure.plates, where, strict=True))
    here = (t, *where)
    infinite = [n for n, (top, _) in sites.items() if np.isposinf(top[here])]
    if infinite:
        return (
            f"The density of '{infinite[0]}' is infinite at {at} given some particle, so no weight can be compared "
            "with it: keep the scale of its law away from zero."
        )
    undefined = [n for n, (_, gap) in sites.items() if gap[here]]
    if undefined:
        return (
            f"The log-density of '{undefined[0]}' is NaN at {at} given every one of {n} particles: look at the "
            "parameters of its law there."
        )
    impossible = [n for n, (top, _) in sites.items() if np.isneginf(top[here])]
    if impossible:
        return (
            f"All {n} particles have weight zero at {at}: '{impossible[0]}' has density zero given every one of "
            "them. Check the datum and the support of its law; if it is possible but rare, use more particles or a "
            "guide."
        )
    if guide is not None:
        return (
            f"All {n} particles have weight zero at {at}: the guide proposes values that the model excludes, or "
            "their densities are not finite."
        )
    names = " and ".join(f"'{n}'" for n in sites)
    return f"All {n} particles have weight zero at {at}: none allows {names} together. Use more particles or a guide."


# ------------------------------------------------------------------------------- likelihood as a function


def particle_log_likelihood(
    model: Callable[..., Any],
    *args: Any,
    num_particles: int = 100,
    resampling: str = "systematic",
    ess_threshold: float | None = 0.5,
    gradient: str = "score",
    guide: Callable[..., Any] | None = None,
    initial_guide: Callable[..., Any] | None = None,
    twist: Callable[..., Any] | None = None,
    scan: str | int | None = None,
    **kwargs: Any,
) -> Callable[[Mapping[str, Any], Array], Array]:
    """The log-likelihood of the parameters of a model with a ``scan``, estimated by a particle filter.

    Returns a pure function ``(parameters, key) -> estimate`` for use under ``jit``, ``vmap`` and ``grad``: as an
    objective for an optimiser, or inside another sampler. With ``Z`` the likelihood:

    * ``exp(estimate)`` is unbiased for ``Z``; the estimate itself is too low on average, by about half its
      variance;
    * ``gradient="score"``: ``exp(estimate) * grad(estimate)`` is unbiased for the gradient of ``Z``; so
      ``grad(estimate)`` is consistent for the score, with a bias of order ``1 / num_particles``. It is Fisher's
      identity along the particles' genealogies, good for any latent site, discrete ones too; its variance grows
      as the square of the length of the series;
    * ``gradient="pathwise"``: unbiased in the same sense (Ścibior and Wood 2021, arXiv:2106.10314), with latent
      values as functions of the parameters: sites whose law can be reparametrised only. The variance is smaller
      where the observations say little;
    * ``gradient="stop"``: leaves the choice of ancestors out. Biased however many particles; least noise.

    Args:
        model, *args, **kwargs: as for :func:`particle_filter`.
        num_particles, resampling, ess_threshold, guide, initial_guide, twist, scan: likewise.
        gradient: ``"score"``, ``"pathwise"`` or ``"stop"``.

    Raises:
        ValueError: fewer than two particles; ``gradient="pathwise"`` and a latent site that cannot be
            reparametrised, by name.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> estimate = particle_log_likelihood(walk, jnp.array([0.1, 0.9, 1.4]), num_particles=1000)
        >>> value, slope = jax.value_and_grad(estimate)({"scale": 0.5}, jax.random.key(0))
        >>> round(float(value))
        -4
    """
    check_options(num_particles, resampling, ess_threshold)
    check_guides(guide=guide, initial_guide=initial_guide, twist=twist)
    if gradient not in GRADIENTS:
        raise ValueError(f"`gradient` must be one of {', '.join(map(repr, GRADIENTS))}, not {gradient!r}.")
    read = read_scan(model, *args, scan=scan, **kwargs)
    structure = read.structure
    if gradient == "pathwise":
        trace = trace_model(read.model, read.args, read.kwargs, key=random.key(0))
        for name in (*structure.path_sites, *structure.initial_sites):
            if not trace[name]["fn"].has_rsample:
                raise ValueError(
                    f"Site '{name}' cannot be reparametrised, so its draws carry no gradient: use gradient='score'."
                )

    def estimate(parameters: Mapping[str, Any], key: Array) -> Array:
        missing = [n for n in structure.global_sites if n not in parameters]
        if missing:
            raise ValueError(f"`parameters` lacks {', '.join(map(repr, missing))}.")
        space = read.at({n: parameters[n] for n in structure.global_sites})
        filtered = run(
            space.process(guide=guide, initial_guide=initial_guide, twist=twist),
            key,
            num_particles,
            resampling=resampling,
            ess_threshold=ess_threshold,
            gradient=gradient,
            initial_log_joint=space.initial_log_prob,
        )
        return jnp.sum(filtered.log_evidence)

    return estimate
