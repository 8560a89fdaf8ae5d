"""One-step-ahead forecasts of any model of a series: exactly where possible, else by particles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.scipy.special import logsumexp
from numpyro.distributions import Unit

from sojourn._arguments import whole_number
from sojourn._contract import Site, marginal_form, observed_sites, pointwise_ndim, series_law, trace_model
from sojourn.diagnostics._arviz import container
from sojourn.inference import _labels as labels
from sojourn.inference._check_model import check_data, latent_sites, subsampled
from sojourn.inference._fit import _groups
from sojourn.inference._marginalize import marginalize
from sojourn.inference._particle_filter import (
    _check_supports,
    _parameters,
    _unobserve,
    check_guides,
    check_options,
    explain_weights,
    parameter_shapes,
)
from sojourn.inference._predictive import Evaluation, evaluate, site_log_prob
from sojourn.inference._read import ScanModel, read_scan
from sojourn.inference._scan import prepared, run_step
from sojourn.inference._structure import _outline
from sojourn.inference._whole_data import whole_data
from sojourn.ops.particle_filter import particle_filter as run
from sojourn.ops.particles import _by_system, lanes, pick
from sojourn.ops.resampling import draw, systematic

__all__ = ["forecaster", "one_step_ahead"]

METHODS = ("auto", "exact", "particles")

_EvaluateAt = Callable[
    [Callable[[tuple[str, ...], Callable[[], Mapping[str, tuple[int, ...]]]], dict[str, Array]], int, Array],
    tuple[dict[str, Site], dict[str, np.ndarray], Evaluation],
]
"""``(draws of the parameters with these names, their number, key) -> trace, draws, evaluation``."""


def one_step_ahead(
    model: Callable[..., Any],
    *args: Any,
    fit: Any = None,
    parameters: Mapping[str, Any] | None = None,
    num_draws: int = 200,
    num_particles: int = 500,
    seed: int = 0,
    method: str = "auto",
    resampling: str = "systematic",
    ess_threshold: float | None = 0.5,
    guide: Callable[..., Any] | None = None,
    initial_guide: Callable[..., Any] | None = None,
    twist: Callable[..., Any] | None = None,
    scan: str | int | None = None,
    **kwargs: Any,
) -> Any:
    """Forecast every observation of a series from those before it, at parameters drawn from a fit.

    The result reads like a fit, so that :func:`sojourn.score` and the PIT of
    :mod:`sojourn.diagnostics.predictive` apply to any model, whatever engine it was fitted with. The
    parameters have seen the whole series; take the observation's own term out by weighting the draws (as
    ``sj.score`` does), or the future altogether by :func:`sojourn.leave_future_out`.

    Where the hidden path can be integrated out, by ``path=False`` or, if it is finite and discrete, by
    :func:`~sojourn.inference.marginalize`, forecasts are exact. Otherwise a particle filter runs at each draw
    of the parameters: before y_t weighs the particles, one of them, drawn by its weight, moves on by the
    model's own step, and its observation is the forecast.

    Args:
        model: a NumPyro model of a series: with a ``scan``, a law of the whole series
            (:class:`~sojourn.distributions.HiddenMarkov`, ...), or observations that are independent given
            the parameters.
        *args: its arguments, the data among them. NaN observations count as missing.
        fit: a fit of the model (any ArviZ container); ``num_draws`` of its draws are taken, evenly spaced.
            Fewer, such as the one of ``engine="map"``, are taken several times.
        parameters: instead of ``fit``, values of the parameters, used ``num_draws`` times.
        num_draws: draws of parameters; each has one forecast of each observation.
        num_particles: at least 2.
        seed: the same seed on the same machine gives the same numbers.
        method: ``"exact"``, ``"particles"``, or ``"auto"``, the first where it is possible and no guide,
            twist or ``scan`` was given.
        resampling, ess_threshold, guide, initial_guide, twist, scan: of the particle filter, as for
            :func:`~sojourn.inference.particle_filter`.
        **kwargs: keyword arguments of the model.

    Returns:
        ArviZ's container with one chain of draws and groups

        * ``posterior``: the parameters used;
        * ``predictions``: for each observed site of the series a draw of y_t given y_<t and the parameters;
        * ``log_likelihood``: log p(y_t | y_<t, parameters) by entry. Of several entries observed at a step,
          particles give each the density of its forecast from the past alone (the terms do not sum to the
          joint density); :func:`~sojourn.inference.marginalize` gives terms, and draws, of a site given the
          earlier sites of its step;
        * ``sample_stats``: ``log_predictive`` (time), log p(y_t | y_<t, parameters) of all that is observed
          at t, 0 where nothing is. Of particles it is an estimate whose exponential is unbiased;
        * ``observed_data``. NaN where nothing was observed.

        Attributes ``method``, ``seed``, ``num_particles``.

    Raises:
        ValueError: neither or both of ``fit`` and ``parameters``; a parameter that they lack; data outside
            the support of their law; a latent site with a value for each time that is not in a ``scan``, or a
            law of the whole series that offers no one-step-ahead terms; no particle with positive weight at
            some step.

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
        >>> ahead = one_step_ahead(walk, jnp.array([0.1, 0.9, 1.4]), parameters={"scale": 0.5}, num_draws=50)
        >>> ahead.predictions["y"].shape, ahead.attrs["method"]
        ((1, 50, 3), 'particles')
        >>> bool(abs(ahead.sample_stats["log_predictive"].mean("draw").sum() + 3.94) < 0.05)  # exact: -3.94
        True
    """
    check_options(num_particles, resampling, ess_threshold)
    if not isinstance(num_draws, int | np.integer) or isinstance(num_draws, bool) or num_draws < 2:
        raise ValueError(f"`num_draws` must be a whole number of at least 2, not {num_draws!r}.")
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, not {method!r}.")
    if (fit is None) == (parameters is None):
        raise ValueError(
            "one_step_ahead() runs at given parameters: pass `fit`, a fit of the model, or `parameters`."
        )
    ahead, _ = forecaster(
        model,
        args,
        kwargs,
        num_particles=num_particles,
        method=method,
        resampling=resampling,
        ess_threshold=ess_threshold,
        guide=guide,
        initial_guide=initial_guide,
        twist=twist,
        scan=scan,
    )
    return ahead(fit, parameters, num_draws, seed)


def forecaster(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    num_particles: int = 500,
    method: str = "auto",
    resampling: str = "systematic",
    ess_threshold: float | None = 0.5,
    scan: str | int | None = None,
    **guides: Any,
) -> tuple[Callable[[Any, Mapping[str, Any] | None, int, int], Any], int]:
    """``(fit, parameters, num_draws, seed) -> container`` of :func:`one_step_ahead`; the series' length.

    To be called again and again: what depends on the model alone is done and compiled once.

    Args:
        model, args, kwargs: the model and its arguments.
        num_particles, method, resampling, ess_threshold, scan: as for :func:`one_step_ahead`.
        **guides: ``guide``, ``initial_guide`` and ``twist``.
    """
    check_options(num_particles, resampling, ess_threshold)
    check_guides(**guides)
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, not {method!r}.")
    bare_args = tuple(labels.bare(a) for a in args)
    bare_kwargs = {n: labels.bare(v) for n, v in kwargs.items()}
    wanted = scan is not None or any(g is not None for g in guides.values())
    if method == "exact" and wanted:
        raise ValueError("A guide, a twist and `scan` are for particles; leave them out of method='exact'.")
    summed = None
    if method == "exact" or (method == "auto" and not wanted):
        summed = _without_path(model, bare_args, bare_kwargs, method == "exact")
    attrs: dict[str, Any] = {"engine": "one_step_ahead", "inference_library": "sojourn"}
    if summed is not None:
        evaluate_at, length = _exactly(summed, bare_args, marginal_form(model, bare_kwargs))
        attrs["method"] = "exact"
    else:
        read = read_scan(model, *bare_args, scan=scan, **bare_kwargs)
        length = read.structure.length
        evaluate_at = _by_particles(read, num_particles, guides, resampling, ess_threshold)
        attrs |= {"method": "particles", "num_particles": num_particles}
    given = labels.named_arrays(model, args, kwargs).values()

    def ahead(fit: Any, parameters: Mapping[str, Any] | None, num_draws: int, seed: int) -> Any:
        seed = whole_number(seed, "seed", None)
        if not isinstance(num_draws, int | np.integer) or isinstance(num_draws, bool) or num_draws < 2:
            raise ValueError(f"`num_draws` must be a whole number of at least 2, not {num_draws!r}.")
        if (fit is None) == (parameters is None):
            raise ValueError(
                "one_step_ahead() runs at given parameters: pass `fit`, a fit of the model, or `parameters`."
            )
        trace, draws, evaluation = evaluate_at(
            lambda names, shapes: _drawn(names, fit, parameters, num_draws, shapes),
            num_draws,
            random.key(seed),
        )
        observed = observed_sites(trace)
        shapes = {n: v.shape[2:] for n, v in draws.items()}
        names = labels.Labels(shapes | {n: np.shape(s["value"]) for n, s in observed.items()}, trace)
        for name, site in observed.items():
            axis, known = _time_axis(site), list(names.dims[name])
            if known[axis] == f"{name}_dim_{axis % len(known)}":  # the model has no name for it
                known[axis] = "time"
                names.dims[name] = names.fit(name, known, np.shape(site["value"]))
            for array in given:
                if np.shape(site["value"]) == np.shape(array):
                    names.adopt(array, names.dims[name])
        first = next(iter(observed))
        names.dims["log_predictive"] = [names.dims[first][_time_axis(observed[first])]]
        groups = _groups(trace, names, draws, {"log_predictive": evaluation.log_joint}, evaluation)
        groups.pop("posterior_predictive")
        return container(groups, {**attrs, "seed": seed})

    return ahead, length


def _time_axis(site: Site) -> int:
    """Axis of an observed value that is time: the first of a series' event, or of all axes."""
    return -site["fn"].event_dim if pointwise_ndim(site) else 0


def _drawn(
    names: tuple[str, ...],
    fit: Any,
    parameters: Mapping[str, Any] | None,
    num_draws: int,
    shapes: Callable[[], Mapping[str, tuple[int, ...]]],
) -> dict[str, Array]:
    """Values of the parameters with a leading axis of draws, few draws several times."""
    values = _parameters(names, parameters, fit, num_draws, shapes)
    if not values:
        return {}
    times = max(1, num_draws // len(next(iter(values.values()))))
    return {n: jnp.tile(v, (times, *(1,) * (v.ndim - 1))) for n, v in values.items()}


# ---------------------------------------------------------------------------------------------- exactly


def _without_path(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], needed: bool
) -> Callable[..., Any] | None:
    """The model with its path integrated out, or ``None`` where it cannot be (an error if ``needed``)."""
    form = marginal_form(model, kwargs)
    hidden = {n: s for n, s in _outline(prepared(model), args, form).sites.items() if s["scan"] is not None}
    hidden = {n: s for n, s in hidden.items() if s["latent"]}
    if not hidden:
        return prepared(model)
    kept = [n for n, s in hidden.items() if not (s["discrete"] and s["finite"])]
    if kept:
        if needed:
            raise ValueError(
                f"The path '{kept[0]}' cannot be integrated out exactly: it is not discrete and finite, and "
                "the model takes no `path=`. Use method='particles'."
            )
        return None
    summed = marginalize(model)
    try:
        summed.plan(args, form)  # type: ignore[attr-defined]
    except (ValueError, NotImplementedError):
        if needed:
            raise
        return None  # a path with an infinite memory, or with too many states to sum over
    return summed


def _exactly(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[_EvaluateAt, int]:
    """See :func:`forecaster`; the length is that of the first observed site."""
    trace = trace_model(model, args, kwargs, key=random.key(0))
    if subsampled(trace):
        model = whole_data(model)
        trace = trace_model(model, args, kwargs, key=random.key(0))
    latents = latent_sites(trace)
    # A single number, observed beside the series, has no time.
    observed = {n: s for n, s in observed_sites(trace).items() if np.ndim(s["value"])}
    if not observed:
        raise ValueError(
            "The model observes no series: pass the data, and give it to a sample site as `obs`."
        )
    for name, site in observed.items():
        _check_series(name, site, latents)
    check_data(trace)
    kept = _only(trace, observed)

    def shapes():
        return {n: np.shape(s["value"]) for n, s in latents.items()}

    def evaluate_at(drawn, num_draws, key):
        values = {n: np.asarray(v)[None] for n, v in drawn(tuple(latents), shapes).items()}
        # Where there are no parameters, an entry that no site takes tells the number of draws.
        evaluation = evaluate(model, args, kwargs, values or {"": np.zeros((1, num_draws))}, key)
        if not evaluation.log_likelihood:
            raise ValueError(f"The forecasts of {num_draws} draws are too large to keep: lower `num_draws`.")
        pointwise = {n: evaluation.log_likelihood[n] for n in observed}
        joint = None
        for name, terms in pointwise.items():
            site = observed[name]
            axis = 2 + np.ndim(site["value"]) - site["fn"].event_dim if pointwise_ndim(site) else 2
            by_time = np.moveaxis(terms, axis, 2)
            by_time = by_time.reshape(*by_time.shape[:3], -1).sum(axis=-1)
            if (
                joint is None or joint.shape == by_time.shape
            ):  # else a series beside the first, of another length
                joint = by_time + (0.0 if joint is None else joint)
        ahead = {n: evaluation.one_step_ahead.get(n, evaluation.replicated[n]) for n in observed}
        return kept, values, Evaluation(joint, pointwise, {}, ahead)

    first = next(iter(observed.values()))
    return evaluate_at, np.shape(first["value"])[_time_axis(first)]


def _only(trace: Mapping[str, Site], observed: Mapping[str, Site]) -> dict[str, Site]:
    """The trace without other observed sites."""
    return {n: s for n, s in trace.items() if n in observed or n not in observed_sites(trace)}


def _check_series(name: str, site: Site, latents: Mapping[str, Site]) -> None:
    """Refuse an observed site whose terms or draws would not be one step ahead."""
    if series_law(site, "sample_one_step_ahead") is not None:
        return
    if pointwise_ndim(site) or np.ndim(site["value"]) == site["fn"].event_dim:
        raise ValueError(
            f"The law of '{name}', {type(site['fn']).__name__}, is of the series as a whole and offers no "
            "draws one step ahead (predictive_log_prob and sample_one_step_ahead): write the model with a "
            "scan."
        )
    if "_scan_current_index" in site["infer"]:
        return
    length = np.shape(site["value"])[0]
    for latent, other in latents.items():
        if length in np.shape(other["value"]):
            raise ValueError(
                f"Site '{latent}' has a value for each of the {length} entries of '{name}', and its draws "
                "have seen the future: declare it in a scan."
            )


# --------------------------------------------------------------------------------------------- particles


class _draw_observed(_unobserve):
    """Draw observed sites from their law, in the shape of what was observed."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["is_observed"] and not isinstance(msg["fn"], Unit):
            fn, shape = msg["fn"], jnp.shape(msg["value"])
            batch = jnp.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
            msg["fn"] = fn if batch == fn.batch_shape else fn.expand(batch)
        super().process_message(msg)


def _by_particles(
    read: ScanModel,
    num_particles: int,
    guides: Mapping[str, Any],
    resampling: str,
    ess_threshold: float | None,
) -> _EvaluateAt:
    structure = read.structure
    found: list[tuple[dict[str, Site], Callable[..., Any]]] = []

    def evaluate_at(drawn, num_draws, key):
        values = drawn(structure.global_sites, lambda: parameter_shapes(read))
        if not found:  # what it takes to know the shapes of the sites
            one = {n: v[0] for n, v in values.items()}
            trace = trace_model(read.model, read.args, read.kwargs, key=random.key(0), values=one)
            _check_supports(trace)
            observed = {n: s for n, s in observed_sites(trace).items() if n in structure.observed_sites}
            if not observed:
                raise ValueError(
                    "Nothing is observed in the scan of the model: pass the data, and give it to a site as "
                    "`obs`."
                )
            once = _filter_once(read, observed, num_particles, guides, resampling, ess_threshold)
            found.append((_only(trace, observed), jax.jit(lambda given: lax.map(once, given))))
        trace, compiled = found[0]
        count = len(next(iter(values.values()))) if values else num_draws
        keys = random.split(key, count)
        joint, evidence, pointwise, forecasts = jax.tree.map(np.asarray, compiled((values, keys)))
        sound = np.isfinite(evidence).reshape(count, -1).all(axis=1)
        if not sound.all():
            bad = int(np.argmin(sound))
            at = {n: v[bad] for n, v in values.items()}
            reason = explain_weights(read, at, keys[bad], num_particles, **guides)
            raise ValueError(reason or "The log-likelihood is not finite: use more particles, or a guide.")

        def led(arrays):
            return {n: np.asarray(v)[None] for n, v in arrays.items()}

        joint = joint.reshape(*joint.shape[:2], -1).sum(axis=-1)[None]
        return trace, led(values), Evaluation(joint, led(pointwise), {}, led(forecasts))

    return evaluate_at


def _filter_once(
    read: ScanModel,
    observed: Mapping[str, Site],
    num_particles: int,
    guides: Mapping[str, Any],
    resampling: str,
    ess_threshold: float | None,
) -> Callable[[tuple[dict[str, Array], Array]], tuple[Array, Array, dict[str, Array], dict[str, Array]]]:
    """``(parameters, key) -> joint terms by system, their sum, terms by site, draws by site``."""
    structure = read.structure
    systems, axes = structure.systems, structure.carry_axes
    # A single observation at a step has the filter's own estimate; of several each needs its density alone.
    plates = [p.name for p in structure.plates]
    alone = len(observed) == 1 and all(
        np.shape(site_log_prob(s))[1:] == systems and labels.site_dims(s)[1 : 1 + len(plates)] == plates
        for s in observed.values()
    )
    one_of = _by_system(lambda key, w: draw(key, w, (1,)), systems)
    all_of = _by_system(systematic, systems)

    def remember(key, carry, log_weight):
        """The state of a particle drawn by the weights, and of as many as there are if these are needed."""
        key_one, key_all = random.split(key)
        chosen = pick(carry, one_of(key_one, log_weight), axes, systems)
        return chosen, None if alone else pick(carry, all_of(key_all, log_weight), axes, systems)

    def once(given):
        parameters, key = given
        key_filter, key_start, key_kept, key_ahead, key_terms = random.split(key, 5)
        space = read.at(parameters)
        process = space.process(**guides)

        def move(key, carry, x, t):
            step = process.move(key, carry, x, t)
            return step._replace(values=(step.carry, t))

        def summarise(state, log_weight):
            carry, t = state
            return remember(random.fold_in(key_kept, t[0]), carry, log_weight)

        filtered = run(
            process._replace(move=move),
            key_filter,
            num_particles,
            resampling=resampling,
            ess_threshold=ess_threshold,
            summarise=summarise,
        )
        carry, _, weight = jax.vmap(process.start)(lanes(key_start, num_particles))
        first = remember(
            random.fold_in(key_kept, space.length), carry, weight + jnp.zeros((num_particles, *systems))
        )
        before, cloud = jax.tree.map(
            lambda a, b: jnp.concatenate([a[None].astype(b.dtype), b[:-1]]), first, filtered.summaries
        )
        # What was given for these steps (handlers.condition, ...) is not known before they are made.
        call = space._call._replace(f=_draw_observed(space._call.f), substitute_stack=())
        times = jnp.arange(space.length)

        def ahead(carry, x, t, key):
            sites = run_step(call, jax.tree.map(lambda c: c[0], carry), x, t, key=key)[2]
            return {n: sites[n]["value"] for n in observed}

        drawn = jax.vmap(ahead)(before, space.xs, times, random.split(key_ahead, space.length))
        if alone:
            return (
                filtered.increments,
                filtered.log_evidence,
                {next(iter(observed)): filtered.increments},
                drawn,
            )

        def terms(inputs):
            carries, x, t, key = inputs

            def single(carry, key):
                sites = space._step(carry, x, t, key=key)[1]
                return {n: site_log_prob(sites[n]) for n in observed}

            each = jax.vmap(single)(carries, lanes(key, num_particles))
            return {n: logsumexp(v, 0) - jnp.log(num_particles) for n, v in each.items()}

        keys = random.split(key_terms, space.length)
        pointwise = lax.map(terms, (cloud, space.xs, times, keys))
        return filtered.increments, filtered.log_evidence, pointwise, drawn

    return once
