"""Rate matrices from what a scientist would call the parameters: every one a plain differentiable function."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, is_known, numbers, positive_numbers, whole_number
from sojourn.ops import rate_matrix as ops

__all__ = [
    "adjacency_of",
    "arrhenius",
    "birth_death",
    "driven_cycle",
    "flashing_ratchet",
    "free",
    "generator",
    "linear_chain",
    "masked",
    "reversible",
]


def adjacency_of(structure: Any, num_states: int) -> np.ndarray:
    """``(K, K)`` booleans: which jumps a named structure, or a graph, allows.

    Raises:
        ValueError: an unknown name, a graph of the wrong shape or without edges.
    """
    i, j = np.indices((num_states, num_states))
    named = {
        "free": i != j,
        "birth_death": abs(i - j) == 1,
        "linear_chain": j == i + 1,
        "cycle": ((i - j) % num_states == 1) | ((j - i) % num_states == 1),
    }
    if isinstance(structure, str):
        if structure not in named:
            names = ", ".join(map(repr, [*named, "reversible"]))
            raise ValueError(
                f"There is no structure {structure!r}; the names are {names}, or pass a (K, K) graph."
            )
        return named[structure]
    graph = np.asarray(numbers(structure, "rates"))
    if graph.shape != (num_states, num_states):
        raise ValueError(
            f"The graph of jumps has shape {graph.shape}; {num_states} states need {(num_states,) * 2}."
        )
    graph = (graph != 0) & (i != j)
    if not graph.any():
        raise ValueError("The graph of jumps has no edge: nothing can happen.")
    return graph


def _vector(rates: ArrayLike, name: str) -> Array:
    """Numbers along a last axis, none of which is known to be negative."""
    rates = positive_numbers(rates, name, zero=True)
    if np.ndim(rates) == 0 or np.shape(rates)[-1] == 0:
        raise ValueError(
            f"`{name}` has shape {np.shape(rates)}; it needs at least one entry along its last axis."
        )
    return jnp.asarray(rates)


def generator(rates: ArrayLike) -> Array:
    """The rate matrix with the off-diagonal entries of ``rates``, whatever its diagonal.

    Args:
        rates: ``(..., K, K)``, not negative off the diagonal.

    Returns:
        ``(..., K, K)``.

    Raises:
        ValueError: no square matrix; a rate off the diagonal that is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> print(generator(jnp.array([[0.0, 1.0], [2.0, 0.0]])))
        [[-1.  1.]
         [ 2. -2.]]
    """
    rates = numbers(rates, "rates")
    shape = np.shape(rates)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(f"`rates` has shape {shape}; K >= 2 states need (..., K, K).")
    if is_known(rates):
        rates = np.where(np.eye(shape[-1], dtype=bool), 0.0, np.asarray(rates))
        positive_numbers(rates, "rates", zero=True)
    return ops.generator(rates)


def free(rates: ArrayLike) -> Array:
    """Any rate matrix, from its off-diagonal entries row by row.

    Args:
        rates: ``(..., K (K - 1))``.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(free(jnp.array([1.0, 2.0])))
        [[-1.  1.]
         [ 2. -2.]]
    """
    rates = _vector(rates, "rates")
    states = round((1.0 + (1.0 + 4.0 * rates.shape[-1]) ** 0.5) / 2.0)
    if states * (states - 1) != rates.shape[-1]:
        raise ValueError(f"{rates.shape[-1]} rates fill no matrix: K states need K (K - 1) of them.")
    return masked(rates, ~np.eye(states, dtype=bool))


def masked(rates: ArrayLike, adjacency: ArrayLike) -> Array:
    """A rate matrix on a graph.

    Args:
        rates: ``(..., E)``, one for each edge, row by row.
        adjacency: ``(K, K)``, not zero where a jump is possible; concrete.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(masked(jnp.array([1.0, 2.0]), [[0, 1, 0], [0, 0, 1], [0, 0, 0]]))
        [[-1.  1.  0.]
         [ 0. -2.  2.]
         [ 0.  0.  0.]]
    """
    rates, graph = _vector(rates, "rates"), np.asarray(numbers(adjacency, "adjacency"))
    if graph.ndim != 2:
        raise ValueError(f"`adjacency` has shape {graph.shape}; a graph of K states needs (K, K).")
    origin, target = np.nonzero(adjacency_of(graph, len(graph)))
    if rates.shape[-1] != len(origin):
        raise ValueError(f"The graph has {len(origin)} edges and there are {rates.shape[-1]} rates.")
    blank = jnp.zeros((*rates.shape[:-1], *graph.shape), rates.dtype)
    return ops.generator(blank.at[..., origin, target].set(rates))


def reversible(exchange: ArrayLike, stationary: ArrayLike) -> Array:
    r"""A chain in detailed balance with a given stationary law: :math:`q_{ij} = s_{ij} \sqrt{\pi_j / \pi_i}`.

    Args:
        exchange: ``(..., K (K - 1) / 2)`` rates :math:`s` of the pairs ``(0, 1), (0, 2), ..., (1, 2), ...``.
        stationary: ``(..., K)`` probabilities.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(reversible(jnp.array([1.0]), jnp.array([0.8, 0.2])))
        [[-0.5  0.5]
         [ 2.  -2. ]]
    """
    exchange, law = _vector(exchange, "exchange"), _vector(stationary, "stationary")
    if is_known(law) and ((np.asarray(law) <= 0).any() or np.abs(np.asarray(law).sum(-1) - 1).max() > 1e-4):
        raise ValueError("`stationary` must hold positive probabilities that sum to one.")
    states = law.shape[-1]
    i, j = np.triu_indices(states, 1)
    if exchange.shape[-1] != len(i):
        raise ValueError(
            f"{states} states make {len(i)} pairs and there are {exchange.shape[-1]} exchange rates."
        )
    blank = jnp.zeros((*exchange.shape[:-1], states, states), exchange.dtype)
    pairs = blank.at[..., i, j].set(exchange).at[..., j, i].set(exchange)
    return ops.generator(pairs * jnp.sqrt(law[..., None, :] / law[..., :, None]))


def arrhenius(
    energy: ArrayLike, barrier: ArrayLike, temperature: ArrayLike = 1.0, attempt_rate: ArrayLike = 1.0
) -> Array:
    r"""Jumps over barriers: :math:`q_{ij} = \nu \exp(-(B_{ij} - E_i) / T)`, in detailed balance if ``B`` is symmetric.

    Args:
        energy: ``(..., K)`` energies of the states, in units of Boltzmann's constant times temperature.
        barrier: ``(..., K, K)`` energies of the barriers; infinite where there is no jump.
        temperature: ``T``.
        attempt_rate: ``nu``.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(arrhenius(jnp.array([0.0, 0.0]), jnp.zeros((2, 2)), attempt_rate=3.0))
        [[-3.  3.]
         [ 3. -3.]]
    """
    energy, barrier = finite_numbers(energy, "energy"), numbers(barrier, "barrier")
    states = np.shape(energy)[-1:]
    if not states or np.shape(barrier)[-2:] != (*states, *states):
        raise ValueError(
            f"`energy` has shape {np.shape(energy)} and `barrier` {np.shape(barrier)}; K states need (..., K) and "
            "(..., K, K)."
        )
    if is_known(barrier) and not (np.asarray(barrier) > -np.inf).all():
        raise ValueError(
            "`barrier` must be finite, or infinite where there is no jump; it holds nan or -inf."
        )
    temperature = positive_numbers(temperature, "temperature")
    attempt_rate = positive_numbers(attempt_rate, "attempt_rate", zero=True)
    energy, barrier = jnp.asarray(energy), jnp.asarray(barrier)
    height = jnp.where(jnp.isinf(barrier), 0.0, barrier) - energy[..., :, None]
    rates = attempt_rate * jnp.exp(-height / temperature)
    return ops.generator(jnp.where(jnp.isinf(barrier), 0.0, rates))


def driven_cycle(
    energy: ArrayLike,
    barrier: ArrayLike,
    affinity: ArrayLike,
    temperature: ArrayLike = 1.0,
    attempt_rate: ArrayLike = 1.0,
) -> Array:
    r"""States on a ring, pushed around it.

    The jump from ``i`` to ``i + 1`` crosses ``barrier[i]``; once around, the force does the work ``affinity``, an equal
    share on each edge: :math:`q_{i,i\pm1} = \nu \exp(-(B - E_i) / T \pm F / 2 K T)`. The product of forward over the product
    of backward rates is :math:`e^{F/T}` (Schnakenberg 1976, *Rev. Mod. Phys.* 48:571).

    Args:
        energy: ``(..., K)``, ``K`` at least 3.
        barrier: ``(..., K)``, the last one between the last state and the first.
        affinity: ``(...)`` work ``F`` done in one turn.
        temperature, attempt_rate: as in :func:`arrhenius`.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> from sojourn.models.jump_process import entropy_production_rate
        >>> ring = driven_cycle(jnp.zeros(3), jnp.zeros(3), affinity=0.0)
        >>> f"{entropy_production_rate(ring):.1f}"
        '0.0'
    """
    energy, barrier = finite_numbers(energy, "energy"), finite_numbers(barrier, "barrier")
    affinity = finite_numbers(affinity, "affinity")
    temperature = positive_numbers(temperature, "temperature")
    attempt_rate = positive_numbers(attempt_rate, "attempt_rate", zero=True)
    if np.ndim(energy) == 0 or np.shape(energy)[-1:] != np.shape(barrier)[-1:]:
        raise ValueError(
            f"`energy` has shape {np.shape(energy)} and `barrier` {np.shape(barrier)}; both need (..., K)."
        )
    energy, barrier = jnp.asarray(energy, float), jnp.asarray(barrier, float)
    states = energy.shape[-1]
    if states < 3:
        raise ValueError(f"A ring needs at least three states, not {states}.")
    push = jnp.asarray(affinity, float)[..., None] / (2.0 * states)
    forward = attempt_rate * jnp.exp(-(barrier - energy - push) / temperature)
    backward = attempt_rate * jnp.exp(-(barrier - jnp.roll(energy, -1, -1) + push) / temperature)
    here, ahead = np.arange(states), (np.arange(states) + 1) % states
    blank = jnp.zeros((*forward.shape, states), forward.dtype)
    return ops.generator(blank.at[..., here, ahead].set(forward).at[..., ahead, here].set(backward))


def birth_death(birth: ArrayLike, death: ArrayLike) -> Array:
    """Jumps between neighbours on a line.

    Args:
        birth: ``(..., K - 1)`` rates from ``i`` to ``i + 1``.
        death: ``(..., K - 1)`` rates from ``i + 1`` to ``i``.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(birth_death(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
        [[-1.  1.  0.]
         [ 3. -5.  2.]
         [ 0.  4. -4.]]
    """
    birth, death = (
        jnp.asarray(positive_numbers(rates, name, zero=True))
        for rates, name in ((birth, "birth"), (death, "death"))
    )
    longest = max(birth.shape[-1:], death.shape[-1:])
    if longest in ((), (0,)) or not {birth.shape[-1:], death.shape[-1:]} <= {(), (1,), longest}:
        raise ValueError(
            f"`birth` has shape {birth.shape} and `death` {death.shape}; both need (..., K - 1)."
        )
    birth, death = jnp.broadcast_arrays(jnp.asarray(birth, float), jnp.asarray(death, float))
    states = birth.shape[-1] + 1
    low = np.arange(states - 1)
    blank = jnp.zeros((*birth.shape[:-1], states, states), birth.dtype)
    return ops.generator(blank.at[..., low, low + 1].set(birth).at[..., low + 1, low].set(death))


def linear_chain(rates: ArrayLike) -> Array:
    """Steps in one direction, the last state absorbing: stages of a disease.

    Args:
        rates: ``(..., K - 1)`` rates from ``i`` to ``i + 1``.

    Returns:
        ``(..., K, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(linear_chain(jnp.array([1.0, 2.0])))
        [[-1.  1.  0.]
         [ 0. -2.  2.]
         [ 0.  0.  0.]]
    """
    rates = jnp.asarray(_vector(rates, "rates"), float)
    return birth_death(rates, jnp.zeros_like(rates))


def flashing_ratchet(
    potential: ArrayLike, switching: ArrayLike, diffusion: ArrayLike, *, num_sites: int = 3
) -> Array:
    r"""A particle on a ring of sites under a potential that is switched on and off at random.

    With the potential on (states ``0..S-1``) jumps from site ``i`` to ``j`` have rate :math:`e^{-V (j - i) / 2}`; with it
    off (states ``S..2S-1``) they have rate ``b``; it is switched at rate ``r`` either way (Ajdari and Prost 1992, *C. R.
    Acad. Sci. Paris* 315:1635; in this discrete form Roldan and Parrondo 2010, *Phys. Rev. Lett.* 105:150607).

    Args:
        potential: ``V``.
        switching: ``r``.
        diffusion: ``b``.
        num_sites: ``S``.

    Returns:
        ``(..., 2 S, 2 S)``.

    Example:
        >>> print(flashing_ratchet(0.0, 1.0, 1.0)[0].round(1))
        [-3.  1.  1.  1.  0.  0.]
    """
    num_sites = whole_number(num_sites, "num_sites", 2)
    potential = finite_numbers(potential, "potential")
    switching = positive_numbers(switching, "switching", zero=True)
    diffusion = positive_numbers(diffusion, "diffusion", zero=True)
    potential, switching, diffusion = jnp.broadcast_arrays(
        *(jnp.asarray(x, float)[..., None, None] for x in (potential, switching, diffusion))
    )
    site = np.arange(num_sites)
    on = jnp.exp(-potential * (site[None, :] - site[:, None]) / 2.0)
    off = diffusion * np.ones((num_sites, num_sites))
    switch = switching * np.eye(num_sites)
    above, below = jnp.concatenate([on, switch], -1), jnp.concatenate([switch, off], -1)
    return ops.generator(jnp.concatenate([above, below], -2))
