r"""Langevin latent flows: spikes of many neurons that follow a few hidden coordinates moving in a potential.

Position z and velocity v of the hidden state obey underdamped Langevin dynamics at temperature one,

.. math::
    dz = v\,dt, \qquad dv = -\nabla U(z)\,dt - \gamma v\,dt + \sqrt{2 \gamma}\,dW,

and neuron i fires :math:`\mathrm{Poisson}(\exp(C_i z + b_i))` spikes in a bin. U is a ring of coupled oscillators, to
which a bounded network may be added; so the stationary law, proportional to :math:`\exp(-U(z) - |v|^2 / 2)`, is proper.

The idea is that of Song, Müller, Keller, Wang and Welling (LangevinFlow, 2025), with two differences. There the noise
is not inferred and the readout sees the encoder's state, so that its objective is no bound on the likelihood; here the
noise is a sample site in a ``scan`` and the rates see the hidden state alone, so that the ELBO is one. And friction
scales with the time step, at a temperature of one whatever both are.

The dynamics and the readout are ``numpyro.param``: variational inference learns them with its guide. Engines that
sample take them as they start, or as ``numpyro.handlers.substitute`` sets them.

    >>> import sojourn as sj
    >>> from sojourn.models import langevin_flow
    >>> data = langevin_flow.lorenz_spikes(num_conditions=4, num_trials=5)
    >>> dict(data["spikes"].sizes)
    {'trial': 20, 'time': 60, 'neuron': 30}

What one asks of a fit: :func:`co_smoothing` (neurons it was not shown), :func:`forward_prediction` (bins it was not
shown), :func:`decode` (behaviour from the hidden state); :func:`bits_per_spike` and :func:`rate_r2` compare rates with
spikes and with true rates, :func:`gaussian_smoothing` is the baseline.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import eqx_module
from numpyro.distributions import constraints

from sojourn._arguments import numbers, whole_number
from sojourn.distributions._missing import only_observed
from sojourn.models._neural_answers import (
    bits_per_spike,
    co_smoothing,
    decode,
    forward_prediction,
    gaussian_smoothing,
    lorenz_spikes,
    neuron_indices,
    rate_r2,
)
from sojourn.models._series import check_counts, check_mask

__all__ = [
    "bits_per_spike",
    "co_smoothing",
    "decode",
    "forward_prediction",
    "gaussian_smoothing",
    "lorenz_spikes",
    "rate_r2",
    "spikes",
]

Potential = Callable[[Array], Array]

_MOST_ENERGY = 10.0  # what the network may add to U, in units of the temperature
# Beyond, either way, log-rates grow like a logarithm: at most some exp(10) spikes a bin, at least one in 20000 bins.
_LOG_RATE = 10.0


def spikes(
    counts: ArrayLike | None = None,
    *,
    num_dims: int = 6,
    held_out: ArrayLike | None = None,
    potential: Literal["oscillators", "network"] | Callable[..., Any] = "oscillators",
    hidden: int = 32,
    friction: float | None = None,
    time_step: float | None = None,
    num_steps: int | None = None,
    num_trials: int | None = None,
    num_neurons: int | None = None,
    seed: int = 0,
) -> ArrayLike:
    r"""Spike counts driven by a Langevin flow.

    A bin of the recording is one step of the dynamics: a kick, :math:`v \leftarrow v - \Delta \nabla U(z)`, a drift,
    :math:`z \leftarrow z + \Delta v`, and the exact Ornstein-Uhlenbeck step
    :math:`v \leftarrow e^{-\gamma \Delta} v + \sqrt{1 - e^{-2 \gamma \Delta}}\,\epsilon`. Latent sites are
    ``initial_state`` (position and velocity before the first bin) and ``noise`` (every bin's epsilon), all of them
    standard normal. The potential is

    .. math:: U(z) = \tfrac12 \sum_i k_i z_i^2 + \tfrac12 \sum_i c_i (z_i - z_{i+1})^2 \; [+ \; \text{network}(z)],

    the coordinates standing on a ring. Learnt (``numpyro.param``): ``stiffness`` k and ``coupling`` c, positive;
    ``potential$params`` of a network; ``friction`` gamma and ``time_step`` Delta, positive; ``loading`` C
    ``(num_dims, neurons)`` and ``baseline`` b ``(neurons,)``, which starts at the logarithm of the mean counts.

    Args:
        counts: ``(T, neurons)`` or ``(trials, T, neurons)`` spikes a bin; NaN is missing: a neuron not recorded in a
            trial, the end of a short one, bins to predict. ``None`` simulates.
        num_dims: coordinates D of the position.
        held_out: neurons, by index or as booleans ``(neurons,)``, that are observed at a site of their own,
            ``held_out_spikes``, where an encoder that reads the site ``spikes`` does not see them.
        potential: ``"oscillators"``; ``"network"``, which adds a network with one layer of tanh whose output lies
            between -10 and 10 (times the temperature); or one of your own in place of U: an equinox module that maps
            ``(D,)`` to a number (it is learnt), a JAX function that does, or a function without arguments that
            declares its parameters and returns such a function. Yours should grow without bound, or the flow has no
            stationary law.
        hidden: width of the network.
        friction: gamma, per unit of time; ``None`` to learn it.
        time_step: Delta, of one bin; ``None`` to learn it.
        num_steps: T; only to simulate.
        num_trials: trials; only to simulate, ``None`` for one recording without an axis of trials.
        num_neurons: neurons; only to simulate.
        seed: of the starting values of what is learnt.

    Returns:
        The counts (simulated where they are ``None``). Deterministic sites: ``latent`` (z) and ``velocity``
        ``(T, [trials,] D)``, ``rate`` ``(T, [trials,] neurons)`` in spikes a bin. As everywhere in a scan time comes
        first, at ``noise``, ``spikes`` and ``held_out_spikes`` too.

    Raises:
        ValueError: counts that are empty, of another shape, negative, no integers, or missing altogether; indices in
            ``held_out`` that are no neurons, repeat, or leave none to be seen; a friction or time step that is not
            positive; a potential that is none of these or does not return a number.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> simulate = Predictive(spikes, num_samples=2)
        >>> draws = simulate(jax.random.key(0), num_dims=2, num_steps=50, num_trials=3, num_neurons=4)
        >>> draws["spikes"].shape, draws["latent"].shape
        ((2, 50, 3, 4), (2, 50, 3, 2))
    """
    for name, number in (("num_dims", num_dims), ("hidden", hidden)):
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"spikes(): `{name}` must be a positive integer, not {number!r}.")
    seed = whole_number(seed, "seed", 0)
    counts, shape = _read_counts(counts, num_steps, num_trials, num_neurons)
    *lead, length, neurons = shape
    groups = {"spikes": np.arange(neurons)}
    if held_out is not None:
        out = neuron_indices(held_out, neurons)
        groups = {"spikes": np.setdiff1d(groups["spikes"], out), "held_out_spikes": out}
        if not len(groups["spikes"]):
            raise ValueError(
                f"spikes(): `held_out` holds all {neurons} neurons; leave some from which the hidden state can be read."
            )

    rng = np.random.default_rng(seed)
    loading = numpyro.param(
        "loading", jnp.asarray(rng.normal(size=(num_dims, neurons)) / np.sqrt(num_dims), float)
    )
    baseline = numpyro.param("baseline", jnp.asarray(_log_mean(counts, neurons), float))
    gamma = _positive("friction", friction, float(np.log(2.0)))
    delta = _positive("time_step", time_step, 0.3)
    force = _force(_potential(potential, num_dims, hidden, rng, seed), num_dims, bool(lead))
    keep = jnp.exp(-gamma * delta)
    stir = jnp.sqrt(-jnp.expm1(-2.0 * gamma * delta))

    def trials() -> Any:
        return numpyro.plate("trial", lead[0], dim=-1) if lead else contextlib.nullcontext()

    flow = ["time", *(["trial"] if lead else [])]
    dims_of = {
        "latent": [*flow, "dim"],
        "velocity": [*flow, "dim"],
        "rate": [*flow, "neuron"],
    }
    with trials():
        start = numpyro.sample(
            "initial_state",
            dist.Normal(jnp.zeros((*lead, 2, num_dims)), 1.0).to_event(2),
            infer={
                "event_dims": ["phase", "dim"],
                "event_coords": {"phase": ["position", "velocity"]},
                "dims_of": dims_of,
            },
        )

    def observe(name: str, rate: Array, given: tuple[Any, Any, Any] | None) -> Array:
        axis = "neuron" if held_out is None else {"spikes": "seen_neuron"}.get(name, "held_out_neuron")
        infer = {"event_dims": [axis], "event_coords": {axis: groups[name]}}
        law: dist.Distribution = dist.Poisson(rate)
        if given is None:
            return numpyro.sample(name, law.to_event(1), infer=infer)
        value, seen, bins = given
        if seen is None:
            return numpyro.sample(name, law.to_event(1), obs=value, infer=infer)
        law, value = only_observed(law, value, seen)
        # The outer mask changes no density: it tells the fit which bins are missing altogether.
        return numpyro.sample(name, law.to_event(1).mask(bins), obs=value, infer=infer)

    def step(state: tuple[Array, Array], given: dict[str, Any]) -> tuple[Any, Any]:
        position, velocity = state
        with trials():
            noise = numpyro.sample(
                "noise",
                dist.Normal(jnp.zeros((*lead, num_dims)), 1.0).to_event(1),
                infer={"event_dims": ["dim"]},
            )
            velocity = velocity + delta * force(position)
            position = position + delta * velocity
            velocity = keep * velocity + stir * noise
            rate = jnp.exp(_soft_clip(position @ loading + baseline))
            drawn = {}
            for name, which in groups.items():
                part = rate if held_out is None else rate[..., which]
                drawn[name] = observe(name, part, given.get(name))
        return (position, velocity), (position, velocity, rate, drawn)

    given = {} if counts is None else {name: _time_first(counts, which) for name, which in groups.items()}
    first = start[..., 0, :], start[..., 1, :]
    _, (position, velocity, rate, drawn) = scan(step, first, given, length=length)
    numpyro.deterministic("latent", position)
    numpyro.deterministic("velocity", velocity)
    numpyro.deterministic("rate", rate)
    if counts is not None:
        return counts
    # Columns back in the order of the neurons.
    order = np.argsort(np.concatenate(list(groups.values())))
    whole = jnp.concatenate([drawn[name] for name in groups], -1)[..., order]
    return jnp.moveaxis(whole, 0, -2)


def _read_counts(
    counts: Any, num_steps: int | None, num_trials: int | None, num_neurons: int | None
) -> tuple[Any, tuple[int, ...]]:
    """The counts as an array (NumPy where they are at hand), and ``([trials,] T, neurons)``."""
    if counts is None:
        for name, number in (("num_steps", num_steps), ("num_neurons", num_neurons)):
            if not isinstance(number, int | np.integer) or number < 1:
                raise ValueError(f"spikes(): to simulate, `{name}` must be a positive integer; got {number}.")
        if num_trials is not None and (not isinstance(num_trials, int | np.integer) or num_trials < 1):
            raise ValueError(f"spikes(): `num_trials` must be positive, or None for one; got {num_trials}.")
        lead = () if num_trials is None else (num_trials,)
        return None, (*lead, int(num_steps or 0), int(num_neurons or 0))
    counts = counts if isinstance(counts, jax.core.Tracer) else np.asarray(numbers(counts, "counts"))
    if counts.ndim not in (2, 3) or 0 in counts.shape:
        raise ValueError(
            f"spikes(): `counts` has shape {counts.shape}; it must be (T, neurons) or (trials, T, neurons), none of them 0."
        )
    if not isinstance(counts, jax.core.Tracer):
        if counts.dtype == object or not np.issubdtype(counts.dtype, np.number):
            counts = counts.astype(float)
        check_mask(counts, None, counts.shape, 0, "counts")
        check_counts(counts, None, None)
        if np.isnan(counts).all():
            raise ValueError("spikes(): `counts` is NaN throughout: there is nothing to learn from.")
    return counts, counts.shape


def _time_first(counts: Any, which: np.ndarray) -> tuple[Any, Any, Any]:
    """Counts of some neurons as integers, time first; where, and in which bins any, were seen; ``None``: everywhere."""
    xp = jnp if isinstance(counts, jax.core.Tracer) else np
    part = xp.moveaxis(counts[..., which], -2, 0)
    seen = None
    if np.issubdtype(part.dtype, np.floating):
        seen = ~xp.isnan(part)
        part = xp.where(seen, part, 0)
        if xp is np and seen.all():
            seen = None
    return part.astype(int), seen, None if seen is None else seen.any(-1)


def _log_mean(counts: Any, neurons: int) -> Any:
    """Where the baselines start: the logarithm of each neuron's mean count, half a spike at least in all."""
    if counts is None:
        return np.zeros(neurons)
    xp = jnp if isinstance(counts, jax.core.Tracer) else np
    flat = counts.reshape(-1, neurons)
    seen = ~xp.isnan(flat)
    number = seen.sum(0)
    total = xp.where(seen, flat, 0).sum(0)
    return xp.log(xp.maximum(total, 0.5) / xp.maximum(number, 1))


def _positive(name: str, value: float | None, start: float) -> Any:
    if value is None:
        return numpyro.param(name, jnp.asarray(start, float), constraint=constraints.softplus_positive)
    value = numbers(value, name)
    if not isinstance(value, jax.core.Tracer) and not (np.ndim(value) == 0 and 0 < value < np.inf):
        raise ValueError(f"spikes(): `{name}` must be a positive number, or None to learn it; got {value!r}.")
    return value


def _soft_clip(x: Array) -> Array:
    """The identity up to a bound either way, then a logarithm: nothing overflows, and every gradient lives."""
    beyond = jnp.maximum(jnp.abs(x) - _LOG_RATE, 0.0)
    return jnp.clip(x, -_LOG_RATE, _LOG_RATE) + jnp.sign(x) * jnp.log1p(beyond)


def _bounded(x: Array) -> Array:
    return _MOST_ENERGY * jnp.tanh(x / _MOST_ENERGY)


@functools.lru_cache(maxsize=32)
def _network(num_dims: int, hidden: int, seed: int, dtype: str) -> eqx.nn.MLP:
    """The network at its start; concrete even where the model is being traced."""
    with jax.ensure_compile_time_eval():
        return eqx.nn.MLP(
            num_dims,
            "scalar",
            hidden,
            1,
            activation=jnp.tanh,
            final_activation=_bounded,
            dtype=jnp.dtype(dtype),
            key=jax.random.key(seed),
        )


def _potential(potential: Any, num_dims: int, hidden: int, rng: np.random.Generator, seed: int) -> Potential:
    """U, a function of one position ``(D,)``, with its parameters declared."""
    if isinstance(potential, str):
        if potential not in ("oscillators", "network"):
            raise ValueError(
                f"spikes(): `potential` is 'oscillators', 'network', an equinox module or a function; got {potential!r}."
            )
        springs = [
            numpyro.param(
                name,
                jax.nn.softplus(jnp.asarray(0.1 * rng.normal(size=num_dims), float)),
                constraint=constraints.softplus_positive,
            )
            for name in ("stiffness", "coupling")
        ]

        def ring(z: Array) -> Array:
            stiffness, coupling = springs
            return 0.5 * jnp.sum(stiffness * z**2 + coupling * (z - jnp.roll(z, -1)) ** 2)

        if potential == "oscillators":
            return ring
        network = eqx_module(
            "potential", _network(int(num_dims), int(hidden), seed, jnp.result_type(float).name)
        )
        return lambda z: ring(z) + network(z)
    if not callable(potential):
        raise ValueError(
            "spikes(): `potential` is 'oscillators', 'network', an equinox module or a function of the position; "
            f"got {potential!r}."
        )
    if isinstance(potential, eqx.Module):
        return eqx_module("potential", potential)
    return potential() if _takes_nothing(potential) else potential


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _force(potential: Potential, num_dims: int, several: bool) -> Callable[[Array], Array]:
    """Minus the gradient of U, of one position or of those of all trials."""
    value = jax.eval_shape(potential, jax.ShapeDtypeStruct((num_dims,), jnp.result_type(float)))
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        what = getattr(value, "shape", type(value).__name__)
        raise ValueError(
            f"spikes(): `potential` must map one position ({num_dims},) to one real number; it returned {what}."
        )

    def force(z: Array) -> Array:
        return -jax.grad(potential)(z)

    return jax.vmap(force) if several else force
