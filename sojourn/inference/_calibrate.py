"""Simulation-based calibration of an engine on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel
from tqdm.auto import tqdm

from sojourn._arguments import whole_number
from sojourn._contract import Site, marginal_form, observed_sites, trace_model
from sojourn.diagnostics import Calibration
from sojourn.diagnostics.calibration import rank
from sojourn.inference import _labels as labels
from sojourn.inference._auto import choose_engine
from sojourn.inference._check_model import (
    check_data,
    check_gradient_engine,
    check_latents,
    check_takes_all,
    latent_sites,
    subsampled,
)
from sojourn.inference._fit import Engine, is_gradient_kernel, resolve_engine
from sojourn.inference._map import MaximumAPosteriori
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._predictive import replicate, site_log_prob
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._variational import Variational
from sojourn.inference._whole_data import whole_data

__all__ = ["calibrate"]


def calibrate(
    model: Callable[..., Any],
    *args: Any,
    engine: Engine = "nuts",
    num_simulations: int = 100,
    num_samples: int = 1000,
    num_warmup: int = 500,
    num_ranked: int = 99,
    seed: int = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Check an engine on a model of yours: simulate, fit, and see where the truth ranks.

    Parameters are drawn from the prior and data from the model, ``num_simulations`` times; each data set is
    fitted by one chain; the rank of every true value among ``num_ranked`` evenly thinned draws is uniform if
    model, priors and engine fit together (Talts, Betancourt, Simpson, Vehtari and Gelman 2018,
    arXiv:1804.06788; uniformity is judged by the envelope of Säilynoja, Bürkner and Vehtari 2022). The
    parameters are ranked, and with them the log-likelihood of the data, which sees what single parameters do
    not (Modrák et al. 2023, arXiv:2211.02383).

    Args:
        model: a NumPyro model. Observations must not feed back into later steps of a ``scan``.
        *args, **kwargs: its arguments. The first positional one is an example of the data: its shape and its
            missing entries are kept, its values are replaced. Priors must not depend on it: state those that
            would take their scale from the data. Where it is no array of the shape of the one observed site
            (data at several sites, a table, a ``routed`` world), or is read on the host, it stays as it is, and
            the observed sites are conditioned on what was simulated at them: the calibration is then of the
            model given whatever else it reads off the example, a prior's scale or a first state.
            Entries that a law only knows to be cut off (kinds of excursions) are simulated whole: leave them out.
        engine: as in ``sj.fit``; not ``"map"``, which has no draws. Optimisers (``"svi"``,
            ``"score_ascent"``) are compiled for every data set anew. The draws of ``"score_ascent"`` are those
            of its asymptotic law, and are ranked as if they were a posterior.
        num_simulations: number of data sets.
        num_samples, num_warmup: of each chain (MCMC).
        num_ranked: draws the truth is ranked among, one less than the number of ranks. Keep ``num_samples``
            ten times as large: ranks among dependent draws crowd the ends and look like a fault.
        seed: the same seed gives the same ranks.
        progress_bar: show progress.

    Returns:
        A :class:`~sojourn.diagnostics.Calibration`: print it, ``.ok``, ``.plot()``.

    Raises:
        ValueError: no data to replace, or inside a scan and not the first argument; a prior that depends on
            the data; an engine without draws; simulated data that are not finite.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Beta(2.0, 2.0))
        ...     numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> result = sj.calibrate(coin, jnp.zeros(20, int), num_simulations=10, num_samples=198,
        ...                       num_warmup=100, progress_bar=False)
        >>> result.ranks["p"].shape
        (10,)
    """
    for name, value in (("num_simulations", num_simulations), ("num_ranked", num_ranked)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, not {value!r}.")
    num_samples = whole_number(num_samples, "num_samples")
    num_warmup = whole_number(num_warmup, "num_warmup", 0)
    seed = whole_number(seed, "seed", None)
    if num_ranked > num_samples:
        raise ValueError(f"`num_ranked` ({num_ranked}) cannot exceed `num_samples` ({num_samples}).")
    if not args:
        raise ValueError("calibrate() needs an example of the data as first argument after the model.")
    args = tuple(labels.bare(a) for a in args)
    kwargs = {name: labels.bare(value) for name, value in kwargs.items()}
    engine_of, engine_name = resolve_engine(engine)
    if isinstance(engine_of, MaximumAPosteriori):
        raise ValueError(
            "calibrate() ranks the truth among the draws of a posterior, and the engine 'map' finds a single "
            "point: calibrate an engine that draws ('nuts', 'svi', ...)."
        )
    key = jax.random.key(seed)
    given = model  # what simulates: all sites, all data
    trace = trace_model(model, args, kwargs, key=key)
    if engine_of == "auto":
        engine_of, engine_name = resolve_engine(choose_engine(model, args, kwargs, trace)[0])
    kernel = None if isinstance(engine_of, Variational | ScoreAscent) else _kernel(engine_of, model)
    if subsampled(trace):
        if isinstance(kernel, HMC):
            check_takes_all(trace, engine_name)
        given = whole_data(model)
        trace = trace_model(given, args, kwargs, key=key)
    whole = given  # what is ranked: the sites that the engine samples
    if isinstance(engine_of, Variational) or is_gradient_kernel(kernel):
        if marginalizable(given, args, kwargs):
            model, whole = marginalize(model), marginalize(given)
            trace = trace_model(whole, args, kwargs, key=key)
        check_gradient_engine(trace, engine_name)
    check_latents(trace)
    check_data(trace)
    data = _Data(given, args, kwargs, trace)
    latents = list(latent_sites(trace))
    simulate = jax.jit(lambda key: _simulate(given, args, kwargs, key, data, latents))
    run = _runner(model, kwargs, engine_of, data, num_samples, num_warmup)
    log_prior = jax.jit(lambda values, new: _log_prior(*data.call(whole, new), kwargs, values))
    marginal = marginal_form(whole, kwargs)
    score = jax.jit(lambda values, new: _log_likelihood(*data.call(whole, new), marginal, values))
    scores = jax.jit(jax.vmap(score, (0, None)))
    told = set(latent_sites(trace_model(whole, args, marginal, key=key)))  # what the likelihood depends on
    keep = np.linspace(0, num_samples - 1, num_ranked).round().astype(int)

    ties = np.random.default_rng(seed)
    ranks: dict[str, list[np.ndarray]] = {}
    for i in tqdm(range(num_simulations), disable=not progress_bar, desc="calibrate"):
        key_simulate, key_fit = jax.random.split(jax.random.fold_in(key, i))
        truth, new = simulate(key_simulate)
        data.check(new, i)
        if i == 0 and not np.allclose(log_prior(truth, data.example), log_prior(truth, new), rtol=1e-4):
            raise ValueError(
                "The prior depends on the data (the log prior density of one draw changes with them), so truth "
                "and fit would have different priors: state the priors that take their scale from the data."
            )
        draws = run(key_fit, new)
        draws = {n: np.asarray(v)[keep] for n, v in draws.items() if n in latents}
        for name, value in truth.items():
            if name in draws:
                ranks.setdefault(name, []).append(rank(value, draws[name], seed=ties))
        if told <= set(draws):  # not where an engine keeps parameters and no path
            fitted = np.asarray(scores(draws, new))
            ranks.setdefault("log_likelihood", []).append(rank(score(truth, new), fitted, seed=ties))
    names = labels.Labels({n: v[0].shape for n, v in ranks.items()}, trace)
    return Calibration(
        names.dataset({n: np.stack(v) for n, v in ranks.items()}, lead=("simulation",)), num_ranked
    )


class _Data:
    """Where the data are in a call of the model, and how others take their place.

    Where a model can read traced data, a new series is its first argument. Else (it reads them on the host, or
    has them at several sites, or in another shape) its arguments stay as they are, and the observed sites are
    conditioned on new values: as good a calibration, of the model given whatever else it read off its arguments.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        trace: Mapping[str, Site],
    ):
        observed = observed_sites(trace)
        if not observed:
            raise ValueError("The model observes nothing: calibrate() has no data to simulate.")
        self.args = args
        shape = _shape(args[0])
        self.argument = ([np.shape(s["value"]) for s in observed.values()] == [shape]) and _takes_traced(
            model, args, kwargs
        )
        for name, site in observed.items():
            if not self.argument and site.get("_control_flow_done", False):
                raise ValueError(
                    "calibrate() replaces data inside a scan by replacing the first argument, which must be an "
                    "array of the shape of the one observed site and be read as it is: it has shape "
                    f"{shape}, and site '{name}' {np.shape(site['value'])}."
                )
        self.example = {n: jnp.asarray(s["value"]) for n, s in observed.items()}
        if self.argument:
            self.example = dict.fromkeys(observed, jnp.asarray(args[0]))

    def replicate(self, trace: Mapping[str, Site], key: Any) -> dict[str, Any]:
        """New data, missing where the example is."""
        found = {}
        for i, (name, example) in enumerate(self.example.items()):
            new = replicate(trace[name], key if i == 0 else jax.random.fold_in(key, i))
            if jnp.issubdtype(example.dtype, jnp.floating):
                new = jnp.where(jnp.isnan(example), jnp.nan, new)
            found[name] = new.astype(example.dtype)
        return found

    def call(self, model: Callable[..., Any], new: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """The model and its arguments, with these data."""
        if self.argument:
            return model, (*new.values(), *self.args[1:])
        return handlers.condition(model, data=dict(new)), self.args

    def check(self, new: Mapping[str, Any], simulation: int) -> None:
        for name, example in self.example.items():
            if jnp.issubdtype(example.dtype, jnp.floating):
                wrong = ~np.isfinite(new[name]) & ~np.isnan(example)
                if wrong.any():
                    raise ValueError(
                        f"Data set {simulation} that the model simulates at site '{name}' is not finite: narrow "
                        "the priors, or give the example more room."
                    )


def _shape(x: Any) -> tuple[int, ...] | None:
    """Of an array of numbers; ``None`` for anything else."""
    array = np.asarray(x)
    return array.shape if array.dtype.kind in "biuf" else None


def _takes_traced(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    def look(first: Any) -> Any:
        trace = trace_model(model, (first, *args[1:]), kwargs, key=jax.random.key(0))
        return {n: site_log_prob(s) for n, s in observed_sites(trace).items()}

    try:
        jax.eval_shape(look, jnp.asarray(args[0]))
    except jax.errors.JAXTypeError:
        return False
    return True


def _simulate(model, args, kwargs, key, data, latents):
    """A draw of the latent values and of the data given them."""
    key_latent, key_data = jax.random.split(key)
    trace = trace_model(model, args, kwargs, key=key_latent)
    return {n: trace[n]["value"] for n in latents}, data.replicate(trace, key_data)


def _log_prior(model, args, kwargs, values):
    trace = trace_model(model, args, kwargs, key=jax.random.key(0), values=values)
    return sum(jnp.sum(site_log_prob(s)) for s in latent_sites(trace).values())


def _log_likelihood(model, args, kwargs, values):
    trace = trace_model(model, args, kwargs, key=jax.random.key(0), values=values)
    return sum(jnp.sum(site_log_prob(s)) for s in observed_sites(trace).values())


def _kernel(engine: Callable[..., Any], model: Callable[..., Any]) -> MCMCKernel:
    kernel = engine(model)
    if not isinstance(kernel, MCMCKernel):
        raise ValueError(f"`engine(model)` must return a numpyro MCMCKernel, not {type(kernel).__name__}.")
    return kernel


def _runner(model, kwargs, engine, data, num_samples, num_warmup):
    """``run(key, new) -> draws``."""
    if isinstance(engine, Variational | ScoreAscent):

        def optimise(key, new):
            call, args = data.call(model, new)
            run = engine.run(call, args, kwargs, num_samples=num_samples, key=key, progress_bar=False)
            return {n: v[0] for n, v in run.draws.items()}

        return optimise

    # The kernel is made, adapted and run inside one compiled function: a new data set costs no compilation.
    @jax.jit
    def sample(key, new):
        call, args = data.call(model, new)
        mcmc = MCMC(engine(call), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.run(key, *args, **kwargs)
        return mcmc.get_samples()

    return sample
