"""Hidden Markov models: series whose law switches with an unseen finite-state chain.

Each model function is a plain NumPyro model. The series comes first, ``(T,)`` or ``(N, T)`` (several series,
one chain each, shared parameters) followed by the axes of one observation; ``None`` simulates.

    >>> import sojourn as sj
    >>> from sojourn.models import hidden_markov
    >>> quakes = sj.datasets.earthquakes()["count"]
    >>> fit = sj.fit(hidden_markov.poisson, quakes, num_states=2, num_warmup=300, num_samples=200,
    ...              num_chains=2, progress_bar=False)
    >>> fit.posterior["rate"].dims
    ('chain', 'draw', 'state')

By default the chain is summed out (``path=False``): any engine for continuous parameters applies. With
``path=True`` the hidden states are sample sites ``hidden_state`` inside a ``scan``, for engines that sample
them. Both forms declare the same law.

**Missing observations** are NaN, or false in ``mask``. **Unequal lengths** are padded to a common ``T`` and
declared by ``lengths`` (:func:`pad` does both).

**Label switching.** The states carry no names of their own. Models with a scalar location sort it
(``ordered=True``), which leaves the prior what it was and keeps one labelling. The others start all chains
from one labelling, which need not last: where chains differ, ``sj.check`` says so and ``sj.relabel`` aligns them.

**Default priors** take their scale from the data, as in brms and Bambi, and are documented with each model.
Without data they are of unit scale. To simulate and refit with the same prior, state it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import is_known, numbers, positive_numbers, shown, whole_number
from sojourn.distributions import HiddenMarkov, Ordered
from sojourn.distributions._missing import is_missing
from sojourn.models._decoding import decode, forecast
from sojourn.models._given import check_emission, check_priors
from sojourn.models._scan_path import Emission, as_function, law_of_states, scan_path
from sojourn.models._series import (
    Scale,
    check_categories,
    check_counts,
    check_covariates,
    check_lengths,
    check_mask,
    increasing,
    observed_steps,
    pad,
    read_series,
)
from sojourn.ops.hidden_markov import stationary

__all__ = [
    "ChainOptions",
    "categorical",
    "decode",
    "forecast",
    "model",
    "multivariate_normal",
    "normal",
    "pad",
    "poisson",
    "stationary",
]


class ChainOptions(TypedDict, total=False):
    """Keywords that every model of this module takes (see :func:`model` for what they mean)."""

    num_steps: int | None
    num_series: int | None
    mask: ArrayLike | None
    lengths: ArrayLike | None
    concentration: float
    stickiness: float
    initial: Literal["stationary", "free"] | ArrayLike | None
    covariates: ArrayLike | None
    path: bool
    name: str


def model(
    y: ArrayLike | None,
    emission: Callable[[int], Emission | dist.Distribution],
    *,
    num_states: int,
    num_steps: int | None = None,
    num_series: int | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    concentration: float = 1.0,
    stickiness: float = 0.0,
    initial: Literal["stationary", "free"] | ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    path: bool = False,
    name: str = "y",
) -> Array | None:
    r"""Hidden Markov model with an emission of your own.

    Args:
        y: the series, ``(T, ...)`` or ``(N, T, ...)``, or ``None`` to simulate.
        emission: called with ``num_states``; samples the parameters of the emission (a
            ``numpyro.plate("state", num_states)`` labels them) and returns the law of one observation as a
            function of the state: ``lambda state: dist.Normal(loc[state], scale)``. With ``path=False`` a
            distribution of batch shape ``(num_states,)`` will do.
        num_states: number of states ``K``.
        num_steps: ``T``; only to simulate.
        num_series: ``N``; only to simulate several series.
        mask: booleans of the shape of the series without the axes of one observation; false is missing.
        lengths: ``(N,)`` steps that belong to each series; the rest is padding.
        concentration: row ``i`` of the transition matrix is Dirichlet with this parameter at every entry ...
        stickiness: ... plus this much at entry ``i``. A row then stays put with prior mean
            ``(concentration + stickiness) / (K concentration + stickiness)``.
        initial: law of the first state: ``"stationary"`` (that of the transition matrix; the default without
            covariates), ``"free"`` (Dirichlet(1); the default with covariates), or ``(K,)`` probabilities.
        covariates: ``(T, P)`` or ``(N, T, P)``, best standardised. Row ``t`` drives the move from step ``t``
            to ``t + 1`` by a multinomial logit with staying as reference:
            ``log p_ij / p_ii = transition_intercept_ij + x_t . transition_slope_ij``, with priors
            Normal(-2, 1.5) and Normal(0, 1). They replace the Dirichlet prior.
        path: declare the states as sample sites. Inside the ``scan`` time comes first: with several series
            the sites ``hidden_state`` and ``name`` are ``(T, N, ...)``.
        name: of the observed site.

    Returns:
        The series (simulated where ``y`` is ``None``).

    Raises:
        ValueError: an empty series, NaN outside a declared mask, shapes that do not agree, lengths beyond the
            array, fewer states than the request needs.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import Predictive
        >>> def emission(num_states):
        ...     with numpyro.plate("state", num_states):
        ...         mean = numpyro.sample("mean", dist.LogNormal(1.0, 1.0))
        ...     return lambda state: dist.NegativeBinomial2(mean[state], 5.0)
        >>> Predictive(model, num_samples=3)(
        ...     jax.random.key(0), None, emission, num_states=2, num_steps=50)["y"].shape
        (3, 50)
    """
    if not isinstance(num_states, int | np.integer) or num_states < 1:
        raise ValueError(f"`num_states` must be a positive integer, not {num_states!r}.")
    if num_states == 1 and (path or covariates is not None):
        what = "path=True" if path else "covariates on the transitions"
        raise ValueError(f"{what} needs at least two states; `num_states` is 1.")
    check_emission(emission)
    by_state = as_function(emission(num_states), num_states, path)
    all_states = law_of_states(by_state, num_states)
    event = len(all_states.event_shape)
    y, shape = read_series(y, event, num_steps, num_series, name)
    mask = check_mask(y, mask, shape, event, name)
    check_lengths(lengths, shape)
    covariates = check_covariates(covariates, shape)
    start, transition = _chain(num_states, concentration, stickiness, initial, covariates)

    if not path:
        law = HiddenMarkov(start, transition, all_states, num_steps=shape[-1], mask=mask, lengths=lengths)
        infer = {"event_dims": ["time"]}
        if len(shape) == 1:
            return numpyro.sample(name, law, obs=y, infer=infer)
        with numpyro.plate("series", shape[0], dim=-1):
            return numpyro.sample(name, law, obs=y, infer=infer)
    observed = observed_steps(None, mask, lengths, shape, event)
    if observed is None and y is not None and is_missing(y) is not None:
        observed = jnp.ones(shape, bool)
    return scan_path(y, observed, by_state, start, transition, shape, name)


def _chain(
    num_states: int,
    concentration: float,
    stickiness: float,
    initial: Any,
    covariates: Array | None,
) -> tuple[Any, Any]:
    """Priors on the chain: law of the first state, and transition matrix (with a time axis for covariates)."""
    for name, value in (("concentration", concentration), ("stickiness", stickiness)):
        if is_known(numbers(value, name)) and not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
            raise ValueError("`concentration` must be positive and `stickiness` not negative.")
    if is_known(concentration) and not np.all(np.asarray(concentration) > 0):
        raise ValueError("`concentration` must be positive and `stickiness` not negative.")
    if num_states == 1:
        return np.ones(1), np.ones((1, 1))
    stay = np.eye(num_states)
    if covariates is None:
        start_at = 0.7 * stay + 0.3 / num_states
        with numpyro.plate("state", num_states):
            transition = numpyro.sample(
                "transition",
                dist.Dirichlet(concentration + stickiness * stay),
                infer={"event_dims": ["next_state"], "init": start_at},
            )
    else:
        transition = _driven_transition(num_states, covariates)
    if initial is None:
        initial = "stationary" if covariates is None else "free"
    if isinstance(initial, str):
        if initial == "free":
            ones = np.ones(num_states)
            infer = {"event_dims": ["state"], "init": ones / num_states}
            return numpyro.sample("initial", dist.Dirichlet(ones), infer=infer), transition
        if initial != "stationary":
            raise ValueError(f"`initial` is 'stationary', 'free' or probabilities, not {initial!r}.")
        if covariates is not None:
            raise ValueError("With covariates the chain has no stationary law: use initial='free'.")
        return stationary(transition), transition
    probs = jnp.asarray(numbers(initial, "initial"))
    if probs.shape != (num_states,):
        raise ValueError(f"`initial` has shape {probs.shape}; {num_states} states need ({num_states},).")
    if not isinstance(probs, jax.core.Tracer):
        total = np.asarray(probs).sum()
        if not (np.asarray(probs) >= 0).all() or abs(total - 1) > 1e-4:
            raise ValueError(f"`initial` sums to {total:.6g}; it must hold probabilities that sum to one.")
    return probs, transition


def _driven_transition(num_states: int, covariates: Array) -> Array:
    origin, target = np.nonzero(~np.eye(num_states, dtype=bool))
    moves = [f"{i}->{j}" for i, j in zip(origin, target, strict=True)]
    labels = {"event_coords": {"move": moves}}
    intercept = numpyro.sample(
        "transition_intercept",
        dist.Normal(-2.0, 1.5).expand([len(moves)]).to_event(1),
        infer={"event_dims": ["move"], "init": jnp.full(len(moves), -2.0), **labels},
    )
    slope = numpyro.sample(
        "transition_slope",
        dist.Normal(0.0, 1.0).expand([covariates.shape[-1], len(moves)]).to_event(2),
        infer={"event_dims": ["covariate", "move"], "init": jnp.zeros((covariates.shape[-1], len(moves)))},
    )
    effect = intercept + covariates[..., :-1, :] @ slope
    logits = jnp.zeros((*effect.shape[:-1], num_states, num_states))
    return jax.nn.softmax(logits.at[..., origin, target].set(effect), -1)


# ------------------------------------------------------------------------------------------ ready models


def poisson(
    counts: ArrayLike | None = None,
    *,
    num_states: int,
    rate_prior: dist.Distribution | None = None,
    ordered: bool = True,
    **chain: Unpack[ChainOptions],
) -> Array | None:
    """Counts with a Poisson rate for each state.

    Args:
        counts: ``(T,)`` or ``(N, T)`` non-negative integers (NaN where missing), or ``None``.
        num_states: number of states.
        rate_prior: of the rate of one state. Default: LogNormal(log m, 1), m the mean count.
        ordered: rates increase with the state.
        **chain: see :func:`model`.

    Sites: ``rate`` (state), ``transition`` (state, next_state), the counts.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> draws = Predictive(poisson, num_samples=2)(jax.random.key(0), None, num_states=3, num_steps=20)
        >>> draws["rate"].shape, draws["y"].shape
        ((2, 3), (2, 20))
    """
    check_priors(rate_prior=rate_prior)
    counts = None if counts is None else numbers(counts, "counts")
    check_counts(counts, chain.get("mask"), chain.get("lengths"))
    scale = Scale(counts, chain.get("mask"), chain.get("lengths"))
    prior = dist.LogNormal(_log(scale.mean), 1.0) if rate_prior is None else rate_prior

    def emission(num_states: int) -> Emission:
        start = increasing(scale.spread(num_states) + 0.1 * scale.mean)
        rate = _per_state("rate", prior, num_states, ordered, start)
        return lambda state: dist.Poisson(rate[state])

    return model(counts, emission, num_states=num_states, **chain)


def normal(
    y: ArrayLike | None = None,
    *,
    num_states: int,
    loc_prior: dist.Distribution | None = None,
    scale_prior: dist.Distribution | None = None,
    ordered: bool = True,
    **chain: Unpack[ChainOptions],
) -> Array | None:
    """Real values with a normal law for each state.

    Args:
        y: ``(T,)`` or ``(N, T)`` reals, or ``None``.
        num_states: number of states.
        loc_prior: of the mean of one state. Default: Normal(m, 2 s), m and s mean and sd of the data.
        scale_prior: of the standard deviation of one state. Default: LogNormal(log s - 1/2, 1), which keeps
            a state from collapsing on one observation.
        ordered: means increase with the state.
        **chain: see :func:`model`.

    Sites: ``loc`` (state), ``scale`` (state), ``transition`` (state, next_state), the series.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> draws = Predictive(normal, num_samples=2)(jax.random.key(0), None, num_states=2, num_steps=20)
        >>> draws["loc"].shape, draws["y"].shape
        ((2, 2), (2, 20))
    """
    check_priors(loc_prior=loc_prior, scale_prior=scale_prior)
    y = None if y is None else numbers(y, "y")
    scale = Scale(y, chain.get("mask"), chain.get("lengths"))
    loc_prior = dist.Normal(scale.mean, 2 * scale.sd) if loc_prior is None else loc_prior
    scale_prior = dist.LogNormal(_log(scale.sd) - 0.5, 1.0) if scale_prior is None else scale_prior

    def emission(num_states: int) -> Emission:
        loc = _per_state("loc", loc_prior, num_states, ordered, increasing(scale.spread(num_states)))
        start = scale.sd / num_states * np.ones(num_states)
        sd = _per_state("scale", scale_prior, num_states, False, start)
        return lambda state: dist.Normal(loc[state], sd[state])

    return model(y, emission, num_states=num_states, **chain)


def multivariate_normal(
    y: ArrayLike | None = None,
    *,
    num_states: int,
    dimension: int | None = None,
    loc_prior: dist.Distribution | None = None,
    scale_prior: dist.Distribution | None = None,
    correlation: float = 2.0,
    **chain: Unpack[ChainOptions],
) -> Array | None:
    """Vectors with a multivariate normal law for each state.

    Args:
        y: ``(T, D)`` or ``(N, T, D)`` reals, or ``None``. A vector with a NaN in it is missing.
        num_states: number of states.
        dimension: ``D``; only to simulate.
        loc_prior: of the mean of one state, event shape ``(D,)``. Default: independent Normal(m_d, 2 s_d).
        scale_prior: of the standard deviations of one state, event shape ``(D,)``. Default: independent
            LogNormal(log s_d - 1/2, 1).
        correlation: concentration of the LKJ prior on each state's correlation matrix.
        **chain: see :func:`model`.

    Sites: ``loc`` and ``scale`` (state, dimension), ``correlation_cholesky``, ``transition``, the series.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> Predictive(multivariate_normal, num_samples=2)(
        ...     jax.random.key(0), None, num_states=2, dimension=3, num_steps=20)["y"].shape
        (2, 20, 3)
    """
    check_priors(loc_prior=loc_prior, scale_prior=scale_prior)
    correlation = positive_numbers(correlation, "correlation")
    if y is None:
        if dimension is None:
            raise ValueError("`dimension` is needed to simulate a multivariate normal model.")
        dimension = whole_number(dimension, "dimension")
    else:
        y = numbers(y, "y")
        if jnp.ndim(y) < 2:
            raise ValueError(f"The series has shape {jnp.shape(y)}; vectors need (T, D) or (N, T, D).")
        if dimension is not None and dimension != jnp.shape(y)[-1]:
            raise ValueError(
                f"`dimension` is {shown(dimension)}, and the vectors of `y` have {jnp.shape(y)[-1]} entries."
            )
        dimension = jnp.shape(y)[-1]
        if 0 in jnp.shape(y):
            raise ValueError(f"`y` is empty (shape {jnp.shape(y)}); a series needs at least one observation.")
    scale = Scale(y, chain.get("mask"), chain.get("lengths"), event_ndim=1)
    ones = np.ones(dimension)
    if loc_prior is None:
        loc_prior = dist.Normal(scale.mean * ones, 2 * scale.sd * ones).to_event(1)
    if scale_prior is None:
        scale_prior = dist.LogNormal(_log(scale.sd * ones) - 0.5, 1.0).to_event(1)

    def emission(num_states: int) -> Emission:
        named = {"event_dims": ["dimension"]}
        start = scale.spread(num_states).reshape((num_states, -1)) * np.ones((num_states, dimension))
        with numpyro.plate("state", num_states):
            loc = numpyro.sample("loc", loc_prior, infer={**named, "init": start})
            sd = numpyro.sample(
                "scale", scale_prior, infer={**named, "init": scale.sd * np.ones((num_states, dimension))}
            )
            if dimension > 1:
                factor = numpyro.sample(
                    "correlation_cholesky",
                    dist.LKJCholesky(dimension, correlation),
                    infer={"event_dims": ["dimension", "factor"]},
                )
            else:
                factor = jnp.ones((num_states, 1, 1))
        tril = sd[..., None] * factor
        return lambda state: dist.MultivariateNormal(loc[state], scale_tril=tril[state])

    return model(y, emission, num_states=num_states, **chain)


def categorical(
    y: ArrayLike | None = None,
    *,
    num_states: int,
    num_categories: int,
    emission_concentration: float = 1.0,
    **chain: Unpack[ChainOptions],
) -> Array | None:
    """Categories with their own probabilities in each state.

    Args:
        y: ``(T,)`` or ``(N, T)`` integers below ``num_categories`` (NaN where missing), or ``None``.
        num_states: number of states.
        num_categories: number of categories ``M``.
        emission_concentration: parameter of the Dirichlet prior on each state's probabilities.
        **chain: see :func:`model`.

    Sites: ``probs`` (state, category), ``transition`` (state, next_state), the series. Chains start with
    category ``k`` likeliest in state ``k`` (counting modulo ``M``), away from the solution at which all
    states emit alike, a local optimum or saddle of the likelihood. Nothing keeps them in one labelling
    afterwards: look at ``sj.check`` and use ``sj.relabel``.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> Predictive(categorical, num_samples=2)(
        ...     jax.random.key(0), None, num_states=2, num_categories=4, num_steps=20)["probs"].shape
        (2, 2, 4)
    """
    y = None if y is None else numbers(y, "y")
    emission_concentration = positive_numbers(emission_concentration, "emission_concentration")
    check_categories(y, num_categories, chain.get("mask"), chain.get("lengths"))

    def emission(num_states: int) -> Emission:
        likely = np.eye(num_categories)[np.arange(num_states) % num_categories]
        with numpyro.plate("state", num_states):
            probs = numpyro.sample(
                "probs",
                dist.Dirichlet(np.full(num_categories, emission_concentration, float)),
                infer={"event_dims": ["category"], "init": 0.8 * likely + 0.2 / num_categories},
            )
        return lambda state: dist.Categorical(probs=probs[state])

    return model(y, emission, num_states=num_states, **chain)


def _log(x: Any) -> Any:
    """Logarithm of a positive scale (one half where counts are all zero), without compiling for plain data."""
    numeric = jnp if isinstance(x, jax.core.Tracer) else np
    return numeric.log(numeric.where(x > 0, x, 0.5))


def _per_state(name: str, prior: dist.Distribution, num_states: int, ordered: bool, start: Any) -> Array:
    if ordered and num_states > 1:
        infer = {"event_dims": ["state"], "init": start}
        return numpyro.sample(name, Ordered(prior, num_states), infer=infer)
    with numpyro.plate("state", num_states):
        return numpyro.sample(name, prior, infer={"init": start})
