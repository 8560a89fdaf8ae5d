r"""Learning from the better part of a mixed data set: transitions weighted by the return of their trajectory.

A data set of trajectories from many policies, most of them poor, teaches a model mostly of the poor ones. Hong,
Agrawal, Tachet des Combes and Laroche (2023, "Harnessing Mixed Offline Reinforcement Learning Datasets via
Trajectory Weighting", *ICLR*) sample its transitions with probabilities that grow with the return of their trajectory,
and leave the learner as it is. Here the learner is any NumPyro model with a ``plate`` over the transitions:
:func:`return_weights`, :func:`advantage_weights` and :func:`top_fraction_weights` make the probabilities,
:func:`weighted` hands them to a model and :func:`effective_sample_size` says how many transitions are left.

What it claims: worlds with deterministic transitions and rewards, from random initial states. Where rewards are random,
luck is taken for skill: an action with a high variance wins over one with a higher mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from sojourn._arguments import must_be, numbers
from sojourn._contract import Site
from sojourn.inference._whole_data import _at_plates

__all__ = [
    "advantage_weights",
    "effective_sample_size",
    "positive_sided_variance",
    "return_weights",
    "top_fraction_weights",
    "weighted",
]


def return_weights(returns: Any, lengths: Any, *, temperature: float = 0.1) -> np.ndarray:
    r"""Probability of each transition, by the return of its trajectory (return weighting).

    With :math:`g_i = (G_i - \min G) / (\max G - \min G)` and lengths :math:`T_i`, every transition of trajectory
    :math:`i` gets :math:`\exp(g_i / \alpha) / \sum_j T_j \exp(g_j / \alpha)`: first the returns between 0 and 1, then
    the softmax over transitions. This is the formula of the authors' JAX programs (their others apply the softmax to
    raw returns). A trajectory as a whole counts in proportion to its length, too.

    Args:
        returns: ``(n,)``, the sum of rewards :math:`G_i` of each trajectory, not discounted.
        lengths: ``(n,)``, the number of transitions :math:`T_i` of each.
        temperature: the paper's :math:`\alpha`: the smaller, the more the best trajectories count; ``inf`` weighs all
            alike. Published with 0.2 for CQL, 0.1 for IQL and for TD3+BC.

    Returns:
        ``(sum(lengths),)``, the transitions of the first trajectory first; they sum to one.

    Raises:
        ValueError: returns that are not finite, lengths that do not fit them or are not positive whole numbers, a
            temperature that is not positive.

    Example:
        >>> return_weights([0.0, 1.0, 3.0], [1, 2, 1], temperature=0.5).round(4).tolist()
        [0.0814, 0.1586, 0.1586, 0.6015]
    """
    returns, lengths = _trajectories(returns, lengths)
    return _softmax(returns, lengths, temperature)


def advantage_weights(
    returns: Any, lengths: Any, initial_observations: Any, *, temperature: float = 0.1
) -> np.ndarray:
    r"""Probability of each transition, by how far its trajectory did better than its start promised.

    As :func:`return_weights`, with :math:`A_i = G_i - V(s_{i0})` in place of the return, where :math:`V` is the
    ordinary least-squares fit, with an intercept, of the returns on the initial observations (advantage weighting).
    A lucky start then counts for nothing.

    Args:
        returns, lengths, temperature: as for :func:`return_weights`.
        initial_observations: ``(n,)`` or ``(n, ...)``, what was seen at the start of each trajectory.

    Returns:
        ``(sum(lengths),)``, summing to one.

    Raises:
        ValueError: as :func:`return_weights`; initial observations that are not finite or not one a trajectory.

    Example:
        Two starts, of which the second brings 10 more; in either, one trajectory earned 1 by what it did:

        >>> advantage_weights([0.0, 1.0, 10.0, 11.0], [1, 1, 1, 1], [0.0, 0.0, 1.0, 1.0]).round(4).tolist()
        [0.0, 0.5, 0.0, 0.5]
        >>> return_weights([0.0, 1.0, 10.0, 11.0], [1, 1, 1, 1]).round(4).tolist()
        [0.0, 0.0001, 0.2872, 0.7127]
    """
    returns, lengths = _trajectories(returns, lengths)
    starts = np.asarray(numbers(initial_observations, "initial_observations"), float)
    if starts.ndim == 0 or len(starts) != len(returns):
        rows = 0 if starts.ndim == 0 else len(starts)
        raise ValueError(
            f"`initial_observations` must have one row a trajectory: {rows} for {len(returns)} returns."
        )
    if not np.isfinite(starts).all():
        where = int(np.argwhere(~np.isfinite(starts))[0, 0])
        raise ValueError(f"`initial_observations` of trajectory {where} are not finite.")
    design = np.column_stack([np.ones(len(returns)), starts.reshape(len(returns), -1)])
    value = design @ np.linalg.lstsq(design, returns, rcond=None)[0]
    advantages = returns - value
    # What rounding leaves of a perfect fit is no advantage: min-max would blow it up.
    noise = 100 * np.finfo(float).eps * len(returns) * abs(returns).max()
    return _softmax(np.where(abs(advantages) > noise, advantages, 0.0), lengths, temperature)


def top_fraction_weights(returns: Any, lengths: Any, *, fraction: float = 0.1) -> np.ndarray:
    """Even weights on the best trajectories and none on the others: the usual baseline, as "Top-10%".

    Args:
        returns, lengths: as for :func:`return_weights`.
        fraction: of the trajectories kept, rounded up to at least one; of equal returns the earlier are kept.

    Returns:
        ``(sum(lengths),)``, summing to one.

    Raises:
        ValueError: as :func:`return_weights`; a fraction that is not above 0 and at most 1.

    Example:
        >>> top_fraction_weights([0.0, 3.0, 1.0], [1, 2, 1], fraction=0.3).tolist()
        [0.0, 0.5, 0.5, 0.0]
    """
    returns, lengths = _trajectories(returns, lengths)
    if not 0.0 < numbers(fraction, "fraction") <= 1.0:
        raise ValueError(f"`fraction` must be above 0 and at most 1, not {fraction!r}.")
    # 0.1 * 30 is a little more than 3 in floating point.
    kept = math.ceil(round(fraction * len(returns), 9))
    best = np.zeros(len(returns))
    best[np.argsort(-returns, kind="stable")[: max(kept, 1)]] = 1.0
    weights = np.repeat(best, lengths)
    return weights / weights.sum()


def effective_sample_size(weights: Any, lengths: Any = None) -> float:
    r"""Number of evenly weighted transitions that these weights are worth: :math:`(\sum w)^2 / \sum w^2`.

    It is the number of observations at which an even average is as variable as the weighted one.

    Args:
        weights: ``(N,)``, not negative, of any total.
        lengths: ``(n,)``, of the trajectories that the transitions come from: then the effective number of
            *trajectories*, from the weight each has as a whole. It is the one to look at where the transitions of a
            trajectory are no independent evidence, for example because each has a policy of its own.

    Returns:
        The number, between 1 and that of the weights (of the trajectories).

    Raises:
        ValueError: weights that are negative, not finite or all zero; lengths that do not add up to their number.

    Example:
        >>> weights = return_weights([0.0, 0.0, 5.0], [4, 4, 4])
        >>> round(effective_sample_size(weights), 3), round(effective_sample_size(weights, [4, 4, 4]), 3)
        (4.001, 1.0)
    """
    weights = _probabilities(weights)
    if lengths is not None:
        lengths = _whole_lengths(lengths)
        if lengths.sum() != len(weights):
            raise ValueError(f"`lengths` add up to {lengths.sum()}, and there are {len(weights)} weights.")
        weights = np.add.reduceat(weights, np.cumsum(lengths) - lengths)
    return float(1.0 / np.sum(weights**2))


def positive_sided_variance(returns: Any) -> float:
    r"""Mean of :math:`\max(G - \bar G, 0)^2`: what weighting by return may gain over the average trajectory.

    The upper semi-variance, in its standard definition. A data set with a few good trajectories has more of it than
    one with a few bad ones, whatever the variance of both; Hong et al. (2023) name it as what makes weighting pay.

    Args:
        returns: ``(n,)``, one a trajectory.

    Returns:
        The semi-variance, in squared units of the returns.

    Raises:
        ValueError: no returns, or some that are not finite.

    Example:
        >>> positive_sided_variance([0, 0, 0, 1]), positive_sided_variance([0, 1, 1, 1])
        (0.140625, 0.046875)
    """
    returns = _finite_returns(returns)
    return float(np.mean(np.maximum(returns - returns.mean(), 0.0) ** 2))


def weighted(
    model: Callable[..., Any], weights: Any, plate: str, *, at: str | float = "effective"
) -> Callable[..., Any]:
    r"""A model in which the observations of a plate count by weight.

    With :math:`p_k` the weights, made to sum to one, the log-likelihood of the plate becomes
    :math:`W \sum_k p_k \log p(y_k \mid \theta)`; priors stay as they are. Where the plate
    takes a subsample (``subsample_size=m``), its indices are **drawn by weight, with replacement**, instead of evenly,
    and all :math:`m` count alike: the same gradient on average as weighting evenly drawn ones, with far less noise
    (Hong et al. 2023 feed an unchanged learner so).

    **How much it counts.** Weights leave less evidence than there are data. The average of weighted scores varies as
    that of :math:`1 / \sum_k p_k^2` (:func:`effective_sample_size`) evenly weighted ones, so ``at="effective"``, the
    default, gives them this total weight :math:`W`: intervals are as wide as the data that are left allow.
    ``at="nominal"`` keeps the number :math:`N` of transitions (mean weight one) and with it the balance of likelihood and
    prior of the fit without weights, as a penalised point estimate may want it; its intervals are too narrow by about
    :math:`\sqrt{N \sum_k p_k^2}`. Either way this is a generalised posterior (Bissiri, Holmes and Walker 2016, *J. R.
    Stat. Soc. B* 78:1103): of the law of the *weighted* data, given the weights. Where the transitions of one
    trajectory are no independent evidence, pass ``at=effective_sample_size(weights, lengths)``.

    The effective sample size is a variable of the fit, ``<plate>_effective_sample_size``. ``log_likelihood`` holds
    the weighted terms. ``engine="stochastic_gradient"`` measures its lengths as if all :math:`N` data counted, and takes
    longer steps than it should where few do: compare with NUTS, or give it a ``scale``.

    Args:
        model: a NumPyro model with a plate of this name, outside any ``scan``, with observed sites only in it.
        weights: ``(N,)``, one an element of the plate in its order; not negative, of any total.
        plate: its name.
        at: the total weight :math:`W`: ``"effective"``, ``"nominal"`` or a positive number of transitions.

    Returns:
        A model of the same arguments.

    Raises:
        ValueError: weights that are negative, not finite or all zero, an unknown ``at``; when the model runs: no such
            plate, or one of another size, without observations, in a ``scan`` or with a latent site inside.

    Example:
        Behaviour cloning on a mixed data set. Of 20 trajectories of ten steps, 18 come from a policy that takes action
        1 a tenth of the time, and two from one that takes it nine times in ten; the reward is the action:

        >>> import numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> rng = np.random.default_rng(0)
        >>> trajectories = [rng.binomial(1, 0.1, 10) for _ in range(18)] + [rng.binomial(1, 0.9, 10) for _ in range(2)]
        >>> def policy(action):
        ...     p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        ...     with numpyro.plate("steps", len(action)):
        ...         numpyro.sample("action", dist.Bernoulli(p), obs=action)
        >>> weights = return_weights([sum(t) for t in trajectories], [len(t) for t in trajectories])
        >>> better = weighted(policy, weights, "steps")
        >>> fit = sj.fit(better, np.concatenate(trajectories), num_warmup=300, num_samples=500, progress_bar=False)
        >>> round(float(np.concatenate(trajectories).mean()), 2), round(float(fit.posterior["p"].mean()), 2)
        (0.22, 0.83)
        >>> round(float(fit.posterior["steps_effective_sample_size"].mean()))
        16
    """
    if not callable(model):
        raise TypeError(f"A model is a function with NumPyro primitives, not {model!r:.60}.")
    must_be(isinstance(plate, str), "plate", "the name of a plate", plate)
    return _Weighted(model, weights, plate, at)


class _Weighted:
    """A model with weights; callable as the model is."""

    def __init__(self, model: Callable[..., Any], weights: Any, plate: str, at: str | float):
        self.model, self.plate = model, plate
        self.weights = _probabilities(weights)
        self.effective_sample_size = effective_sample_size(self.weights)
        self.total = _total(at, self.weights)
        self.__name__ = getattr(model, "__name__", type(model).__name__)
        self.__wrapped__ = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weigh = _weigh(self)
        result = weigh(*args, **kwargs)
        if not weigh.found:
            others = f"its plates are {', '.join(map(repr, weigh.others))}" if weigh.others else "it has none"
            raise ValueError(f"The model has no plate '{self.plate}' to weight: {others}.")
        if not weigh.observed:
            raise ValueError(f"Nothing is observed in the weighted plate '{self.plate}'.")
        numpyro.deterministic(f"{self.plate}_effective_sample_size", jnp.asarray(self.effective_sample_size))
        return result


class _weigh(_at_plates):
    """One run of a model with weights."""

    def __init__(self, of: _Weighted):
        self.of = of
        self.found = self.observed = self.drawn = False
        self.others: dict[str, None] = {}
        self.scale: Any = None
        super().__init__(of.model)

    def within(self, fn: Callable[..., Any]) -> _not_within:
        return _not_within(fn, self.of.plate)

    def at_plate(self, msg: Site) -> None:
        if msg["name"] != self.of.plate:
            self.others[msg["name"]] = None
            return
        size, count = msg["args"][0], len(self.of.weights)
        if count != size:
            raise ValueError(f"There are {count} weights, and plate '{self.of.plate}' has {size} elements.")
        # Handlers further out (`whole_data`, a guide's plate) may choose the indices: then this is not called.
        msg["fn"] = self.draw

    def draw(self, size: int, taken: int, rng_key: Any = None) -> jax.Array:
        if rng_key is None:
            raise ValueError(
                f"Plate '{self.of.plate}' takes a subsample, and there is no random key to draw it with: seed the model."
            )
        self.drawn = True
        # 32 random bits against integer thresholds: float32 would be coarser than the weights of a million data.
        edges = np.minimum(np.round(np.cumsum(self.of.weights)[:-1] * 2.0**32), 2.0**32 - 1).astype(np.uint32)
        bits = jax.random.bits(rng_key, (taken,), jnp.uint32)
        return jnp.searchsorted(edges, bits, side="right").astype(int)

    def process_message(self, msg: Site) -> None:
        super().process_message(msg)
        if msg["type"] != "sample":
            return
        frame = next((f for f in msg["cond_indep_stack"] if f.name == self.of.plate), None)
        if frame is None:
            return
        if not msg["is_observed"]:
            raise ValueError(
                f"Site '{msg['name']}' is latent inside the weighted plate '{self.of.plate}', where a weight would change "
                "its prior: integrate it out, or move it out of the plate (to simulate, run the model without weights)."
            )
        self.observed = True
        scale = self.scale if self.drawn else self.scale.reshape((-1, *(1,) * (-frame.dim - 1)))
        msg["scale"] = scale if msg["scale"] is None else scale * msg["scale"]

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] != "plate" or msg["name"] != self.of.plate:
            return
        self.found = True
        size, taken = msg["args"]
        # The plate itself multiplies by size / taken.
        if self.drawn:
            self.scale = self.of.total / size
        else:
            scale = jnp.asarray(self.of.total * self.of.weights)
            self.scale = scale if taken in (None, size) else scale[msg["value"]]


class _not_within(_at_plates):
    """Refuse a weighted plate in the function of a ``scan`` or ``cond``."""

    def __init__(self, fn: Callable[..., Any], plate: str):
        self.plate = plate
        super().__init__(fn)

    def within(self, fn: Callable[..., Any]) -> _not_within:
        return _not_within(fn, self.plate)

    def at_plate(self, msg: Site) -> None:
        if msg["name"] == self.plate:
            raise ValueError(
                f"Plate '{self.plate}' lies inside a scan or cond, where it cannot be weighted: make the transitions the "
                "elements of one plate outside."
            )


# ------------------------------------------------------------------------------------------------------- input


def _finite_returns(returns: Any) -> np.ndarray:
    returns = np.asarray(numbers(returns, "returns"), float)
    if returns.ndim != 1 or returns.size == 0:
        raise ValueError(f"`returns` must hold one number a trajectory, not have shape {returns.shape}.")
    if not np.isfinite(returns).all():
        where = int(np.flatnonzero(~np.isfinite(returns))[0])
        raise ValueError(f"The return of trajectory {where} is {returns[where]}: it must be finite.")
    return returns


def _whole_lengths(lengths: Any) -> np.ndarray:
    found = np.asarray(lengths)
    if (
        found.ndim != 1
        or found.dtype.kind not in "iuf"
        or not (np.isfinite(found) & (found == np.round(found)) & (found >= 1)).all()
    ):
        raise ValueError("`lengths` must be positive whole numbers, one a trajectory.")
    return found.astype(int)


def _trajectories(returns: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
    returns, lengths = _finite_returns(returns), _whole_lengths(lengths)
    if len(lengths) != len(returns):
        raise ValueError(
            f"There are {len(returns)} returns and {len(lengths)} lengths: one each a trajectory."
        )
    return returns, lengths


def _softmax(scores: np.ndarray, lengths: np.ndarray, temperature: float) -> np.ndarray:
    if not numbers(temperature, "temperature") > 0:
        raise ValueError(f"`temperature` must be positive, not {temperature!r}.")
    width = scores.max() - scores.min()
    height = (scores - scores.max()) / width if width > 0 else np.zeros_like(scores)  # min-max, less one
    mass = np.exp(height / temperature)
    return np.repeat(mass, lengths) / (lengths @ mass)


def _probabilities(weights: Any) -> np.ndarray:
    weights = np.asarray(numbers(weights, "weights"), float)
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"`weights` must hold one number an element, not have shape {weights.shape}.")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise ValueError(f"Weight {where} is {weights[where]}: weights must be finite and not negative.")
    if not weights.any():
        raise ValueError("All weights are zero: nothing would be left of the data.")
    weights = weights / weights.max()  # the sum of huge ones would overflow
    return weights / weights.sum()


def _total(at: str | float, probabilities: np.ndarray) -> float:
    if isinstance(at, str):
        named = {"effective": effective_sample_size(probabilities), "nominal": float(len(probabilities))}
        if at in named:
            return named[at]
    elif isinstance(at, int | float | np.number) and not isinstance(at, bool) and 0.0 < at < math.inf:
        return float(at)
    raise ValueError(f'`at` must be "effective", "nominal" or a positive number of transitions, not {at!r}.')
