"""Simulation-based calibration of an engine on a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel
from tqdm.auto import tqdm

from sojourn._contract import marginal_form, observed_sites, trace_model
from sojourn.diagnostics import Calibration
from sojourn.diagnostics.calibration import rank
from sojourn.inference import _labels as labels
from sojourn.inference._auto import choose_engine
from sojourn.inference._check_model import check_data, check_gradient_engine, check_latents, latent_sites
from sojourn.inference._fit import Engine, is_gradient_kernel, resolve_engine
from sojourn.inference._predictive import replicate, site_log_prob
from sojourn.inference._variational import Variational

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
            would take their scale from the data.
        engine: as in ``sj.fit``.
        num_simulations: number of data sets.
        num_samples, num_warmup: of each chain (MCMC).
        num_ranked: draws the truth is ranked among, one less than the number of ranks. Keep ``num_samples``
            ten times as large: ranks among dependent draws crowd the ends and look like a fault.
        seed: the same seed gives the same ranks.
        progress_bar: show progress.

    Returns:
        A :class:`~sojourn.diagnostics.Calibration`: print it, ``.ok``, ``.plot()``.

    Raises:
        ValueError: no data to replace, or a prior that depends on the data.

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
    if num_ranked > num_samples:
        raise ValueError(f"`num_ranked` ({num_ranked}) cannot exceed `num_samples` ({num_samples}).")
    if not args:
        raise ValueError("calibrate() needs an example of the data as first argument after the model.")
    args = tuple(labels.bare(a) for a in args)
    kwargs = {name: labels.bare(value) for name, value in kwargs.items()}
    engine_of, engine_name = resolve_engine(engine)
    key = jax.random.key(seed)
    trace = trace_model(model, args, kwargs, key=key)
    check_latents(trace)
    check_data(trace)
    if engine_of == "auto":
        engine_of, engine_name = resolve_engine(choose_engine(model, args, kwargs, trace)[0])
    site = _data_site(trace, args[0])
    latents = list(latent_sites(trace))
    simulate = jax.jit(lambda key: _simulate(model, args, kwargs, key, site))
    run = _runner(model, args[1:], kwargs, engine_of, engine_name, trace, num_samples, num_warmup)
    log_prior = jax.jit(lambda values, data: _log_prior(model, (data, *args[1:]), kwargs, values))
    score = jax.jit(lambda values, data: _log_likelihood(model, (data, *args[1:]), kwargs, values))
    scores = jax.jit(jax.vmap(score, (0, None)))
    keep = np.linspace(0, num_samples - 1, num_ranked).round().astype(int)

    template = jnp.asarray(args[0])
    ties = np.random.default_rng(seed)
    ranks: dict[str, list[np.ndarray]] = {}
    for i in tqdm(range(num_simulations), disable=not progress_bar, desc="calibrate"):
        key_simulate, key_fit = jax.random.split(jax.random.fold_in(key, i))
        truth, data = simulate(key_simulate)
        if i == 0 and not np.allclose(log_prior(truth, template), log_prior(truth, data), rtol=1e-4):
            raise ValueError(
                "The prior depends on the data (the log prior density of one draw changes with them), so truth "
                "and fit would have different priors: state the priors that take their scale from the data."
            )
        draws = run(key_fit, data)
        draws = {n: np.asarray(v)[keep] for n, v in draws.items() if n in latents}
        fitted = np.asarray(scores(draws, data))
        for name, value in truth.items():
            if name in draws:
                ranks.setdefault(name, []).append(rank(value, draws[name], seed=ties))
        ranks.setdefault("log_likelihood", []).append(rank(score(truth, data), fitted, seed=ties))
    names = labels.Labels({n: v[0].shape for n, v in ranks.items()}, trace)
    return Calibration(
        names.dataset({n: np.stack(v) for n, v in ranks.items()}, lead=("simulation",)), num_ranked
    )


def _data_site(trace: Any, data: Any) -> str:
    found = [n for n, s in observed_sites(trace).items() if np.shape(s["value"]) == np.shape(data)]
    if len(found) != 1:
        raise ValueError(
            f"calibrate() replaces the first argument by simulated data, but {len(found)} observed sites have "
            f"its shape {np.shape(data)}."
        )
    return found[0]


def _simulate(model, args, kwargs, key, site):
    """A draw of the latent values and of the data at ``site`` given them."""
    key_latent, key_data = jax.random.split(key)
    trace = trace_model(model, args, kwargs, key=key_latent)
    data = replicate(trace[site], key_data)
    template = jnp.asarray(args[0])
    if jnp.issubdtype(template.dtype, jnp.floating):
        data = jnp.where(jnp.isnan(template), jnp.nan, data)
    return {n: s["value"] for n, s in latent_sites(trace).items()}, data.astype(template.dtype)


def _log_prior(model, args, kwargs, values):
    trace = trace_model(model, args, kwargs, key=jax.random.key(0), values=values)
    return sum(jnp.sum(site_log_prob(s)) for s in latent_sites(trace).values())


def _log_likelihood(model, args, kwargs, values):
    trace = trace_model(model, args, marginal_form(model, kwargs), key=jax.random.key(0), values=values)
    return sum(jnp.sum(site_log_prob(s)) for s in observed_sites(trace).values())


def _runner(model, others, kwargs, engine, name, trace, num_samples, num_warmup):
    """``run(key, data) -> draws``."""
    if isinstance(engine, Variational):
        check_gradient_engine(trace, "variational inference")

        def variational(key, data):
            run = engine.run(
                model, (data, *others), kwargs, num_samples=num_samples, key=key, progress_bar=False
            )
            return {n: v[0] for n, v in run.draws.items()}

        return variational
    kernel = engine(model)
    if not isinstance(kernel, MCMCKernel):
        raise ValueError(f"`engine(model)` must return a numpyro MCMCKernel, not {type(kernel).__name__}.")
    if is_gradient_kernel(kernel):
        check_gradient_engine(trace, name)

    # The kernel is made, adapted and run inside one compiled function, so that a new data set costs no compilation.
    @jax.jit
    def sample(key, data):
        mcmc = MCMC(engine(model), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.run(key, data, *others, **kwargs)
        return mcmc.get_samples()

    return sample
