r"""Random walks on a finite graph that keep away from where they have been.

A chain with transition matrix ``P``, reversible for ``mu``, moves on the states ``0..S-1``. The self-repellent
walk (Doshi, Hu and Eun 2023, *ICML*, arXiv:2305.05097) keeps an empirical measure ``x`` of its visits, and moves by

.. math::
    K_{ij}[x] \propto P_{ij} \, (x_j / \mu_j)^{-\alpha}, \qquad
    x \leftarrow x + \gamma_n (\delta_{X_n} - x), \qquad \gamma_n = (n + 1)^{-a}, \quad 1/2 < a \le 1 .

``mu`` matters up to a constant only. ``x`` converges to ``mu`` for every ``alpha``; a single state is no draw from
``mu``. With eigenvalues ``1 = lambda_1 > lambda_2 >= ...`` of ``P`` and eigenvectors ``u_i`` (orthonormal under
``mu``), averages of a function ``g`` over ``n`` states have a variance of ``1 / n`` times :func:`asymptotic_variance`
for ``a = 1``, and of :func:`approximation_variance` for ``a < 1``.

Here ``P`` is the Metropolis chain with a proposal along the edges of a graph, and it is never formed: a step takes
the row of one state, as long as the state has neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

__all__ = [
    "Edges",
    "Graph",
    "ProductGraph",
    "approximation_variance",
    "asymptotic_variance",
    "check_repulsion",
    "count_pieces",
    "graph_from_adjacency",
    "metropolis_matrix",
    "metropolis_row",
    "next_state",
    "product_graph",
    "step_size",
    "update_visits",
]


class Edges(NamedTuple):
    """The edges out of some states, ``D`` of them each. Missing ones lead back to the state, with probability 0."""

    to: Any
    """``(..., D)``: where they lead."""
    log_proposal: Any
    """``(..., D)``: log-probability of proposing each."""
    log_reverse: Any
    """``(..., D)``: log-probability of the proposal back (0 for a missing one)."""
    stay: Any
    """``(...,)``: probability of proposing the state itself."""


class ProductGraph(NamedTuple):
    """Vectors that differ in one entry are neighbours, equally likely to be proposed. See :func:`product_graph`."""

    size: np.ndarray
    """``(D,)``: number of values of the entry that an edge changes."""
    stride: np.ndarray
    """``(D,)``: what one step of that entry adds to the number of the state."""
    shift: np.ndarray
    """``(D,)``: by how many steps it changes, cyclically."""

    def edges(self, state: Any) -> Edges:
        """Edges out of ``state``, of any shape."""
        at = state[..., None]
        digit = at // self.stride % self.size
        to = at + ((digit + self.shift) % self.size - digit) * self.stride
        log_proposal = jnp.full(to.shape, -math.log(len(self.size)))
        return Edges(to, log_proposal, log_proposal, jnp.zeros(to.shape[:-1]))


class Graph(NamedTuple):
    """Any graph, by tables. See :func:`graph_from_adjacency`; the fields are those of :class:`Edges`."""

    to: np.ndarray
    log_proposal: np.ndarray
    log_reverse: np.ndarray
    stay: np.ndarray

    def edges(self, state: Any) -> Edges:
        """Edges out of ``state``, of any shape."""
        return Edges(*(jnp.asarray(table)[state] for table in self))


# ------------------------------------------------------------------------------------------------- graphs


def product_graph(sizes: Sequence[int]) -> ProductGraph:
    """The graph on vectors whose entries take ``sizes`` values; at least one entry takes two.

    State ``k`` is the vector ``numpy.unravel_index(k, sizes)``: the last entry varies fastest.

    Example:
        >>> import numpy as np
        >>> product_graph((2, 3)).edges(np.array(4)).to.tolist()  # from (1, 1) to (0, 1), (1, 2) and (1, 0)
        [1, 5, 3]
    """
    stride = np.append(np.cumprod(sizes[:0:-1])[::-1], 1).astype(int)
    edges = [(size, stride[c], k) for c, size in enumerate(sizes) for k in range(1, size)]
    return ProductGraph(*(np.array(v) for v in zip(*edges, strict=True)))


def graph_from_adjacency(adjacency: Any, size: int | None = None) -> Graph:
    """The graph of a weighted adjacency matrix; proposals in proportion to the weights of the edges.

    Args:
        adjacency: ``(S, S)``, symmetric, not negative, connected. A positive diagonal lets the chain stay.
        size: what ``S`` must be.

    Raises:
        ValueError: says which of these fails, and where.

    Example:
        >>> import numpy as np
        >>> ring = np.roll(np.eye(4), 1, axis=0) + np.roll(np.eye(4), -1, axis=0)
        >>> graph_from_adjacency(ring).to.tolist()
        [[1, 3], [0, 2], [1, 3], [0, 2]]
    """
    weight = np.asarray(adjacency)
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or not weight.size:
        raise ValueError(f"`adjacency` must be a square matrix, and its shape is {weight.shape}.")
    if size is not None and len(weight) != size:
        raise ValueError(f"`adjacency` is of {len(weight)} states where there are {size}.")
    if weight.dtype.kind not in "biuf":
        raise ValueError(f"`adjacency` must hold numbers, not {weight.dtype}.")
    weight = weight.astype(float)
    for what, bad in (
        ("must be finite", ~np.isfinite(weight)),
        ("must not be negative", weight < 0),
        ("must be symmetric", weight != weight.T),
    ):
        if bad.any():
            i, j = (int(k) for k in np.argwhere(bad)[0])
            raise ValueError(
                f"`adjacency` {what}: entry [{i}, {j}] is {weight[i, j]} and its twin {weight[j, i]}."
            )
    pieces, label = connected_components(csr_matrix(weight), directed=False)
    if pieces > 1:
        lost = int(np.argmax(label != label[0]))
        raise ValueError(
            f"`adjacency` falls into {pieces} pieces (no way leads from state 0 to state {lost}): add edges that join them."
        )
    proposal = weight / np.maximum(weight.sum(1, keepdims=True), np.finfo(float).tiny)
    others = proposal * (1 - np.eye(len(weight)))
    most = int((others > 0).sum(1).max())
    to = np.argsort(others <= 0, axis=1, kind="stable")[:, :most]  # stable: neighbours come in order
    rows = np.arange(len(weight))[:, None]
    there = others[rows, to] > 0
    to = np.where(there, to, rows)
    log_proposal = np.log(others[rows, to], out=np.full(to.shape, -np.inf), where=there)
    log_reverse = np.log(others[to, rows], out=np.zeros(to.shape), where=there)
    return Graph(to, log_proposal, log_reverse, np.diag(proposal))


def count_pieces(graph: Graph | ProductGraph, alive: np.ndarray) -> int:
    """Into how many pieces the graph falls if only the states in ``alive`` ``(S,)`` are left."""
    states = np.flatnonzero(alive)
    edges = graph.edges(states)
    to = np.asarray(edges.to)
    kept = np.isfinite(np.asarray(edges.log_proposal)) & alive[to]
    rows = np.broadcast_to(states[:, None], to.shape)
    links = csr_matrix((np.ones(kept.sum()), (rows[kept], to[kept])), (len(alive), len(alive)))
    label = connected_components(links, directed=False)[1]
    return len(np.unique(label[alive]))


def check_repulsion(alpha: Any, step_exponent: Any) -> tuple[float, float]:
    """``alpha`` and ``step_exponent`` as numbers, if they are what the theory asks for; else a ``ValueError``."""
    values = []
    for name, value, fits, rule in (
        ("alpha", alpha, lambda v: 0 <= v < math.inf, "not negative (0: no repulsion)"),
        ("step_exponent", step_exponent, lambda v: 0.5 < v <= 1, "above 0.5 and at most 1"),
    ):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not fits(number):
            raise ValueError(f"`{name}` must be a number {rule}, not {value!r}.")
        values.append(number)
    return values[0], values[1]


# ------------------------------------------------------------------------------------------------ the walk


def metropolis_row(graph: Graph | ProductGraph, log_mass: Array, state: Array) -> tuple[Array, Array]:
    r"""Transitions of the Metropolis chain out of one state: ``q_ij min(1, mu_j q_ji / (mu_i q_ij))``.

    Args:
        graph: proposals ``q``, with ``D`` edges a state.
        log_mass: ``(S,)``: ``log mu`` up to a constant. Minus infinity is legal, but not at ``state``.
        state: an integer.

    Returns:
        ``(D + 1,)`` states, the last one ``state`` itself, and their log-probabilities ``(D + 1,)``.
    """
    to, forth, back, stay = graph.edges(state)
    there = jnp.isfinite(forth)
    log_accept = jnp.where(there, log_mass[to] - log_mass[state] + back - jnp.where(there, forth, 0.0), 0.0)
    log_accept = jnp.minimum(log_accept, 0.0)
    # The sum of what is refused, rather than one minus what is accepted: zero if nothing is, where rounding
    # would leave a probability that a strong repulsion can blow up.
    stay = stay + jnp.sum(-jnp.expm1(log_accept) * jnp.exp(forth), -1)
    log_row = jnp.append(forth + log_accept, jnp.log(stay))
    return jnp.append(to, state), log_row.astype(log_mass.dtype)


def metropolis_matrix(graph: Graph | ProductGraph, log_mass: Array) -> Array:
    """The Metropolis chain as a matrix ``(S, S)``, reversible for ``exp(log_mass)``, all of it positive.

    Example:
        >>> import jax.numpy as jnp
        >>> metropolis_matrix(product_graph((2,)), jnp.log(jnp.array([0.25, 0.5]))).round(4).tolist()
        [[0.0, 1.0], [0.5, 0.5]]
    """
    states = jnp.arange(len(log_mass))

    @jax.jit
    def fill(log_mass):
        to, log_row = jax.vmap(lambda state: metropolis_row(graph, log_mass, state))(states)
        return jnp.zeros((len(states),) * 2, log_row.dtype).at[states[:, None], to].add(jnp.exp(log_row))

    return fill(jnp.asarray(log_mass))


def next_state(
    key: Array,
    graph: Graph | ProductGraph,
    log_mass: Array,
    visits: Array,
    state: Array,
    alpha: Array | float,
) -> Array:
    """A draw from ``K_ij[x]``, where ``visits`` ``(S,)`` is ``x`` and ``state`` is ``i``.

    ``visits`` must be positive wherever ``log_mass`` is finite. The other arguments are those of
    :func:`metropolis_row`.
    """
    to, log_row = metropolis_row(graph, log_mass, state)
    possible = jnp.isfinite(log_row)
    excess = jnp.where(possible, jnp.log(visits[to]) - log_mass[to], 0.0)
    return to[jax.random.categorical(key, log_row - alpha * excess)]


def step_size(n: Array, exponent: float) -> Array:
    """``gamma_n = (n + 1)^(-exponent)``, for the ``n``-th state (from 1)."""
    return (n + 1.0) ** -exponent


def update_visits(visits: Array, state: Array, gamma: Array) -> Array:
    """The empirical measure ``(S,)`` after a visit to ``state``."""
    here = jnp.arange(visits.shape[-1]) == state  # a scatter would do, and is slower under vmap
    return (1.0 - gamma) * visits + gamma * here


# ---------------------------------------------------------------------------------------------- the theory


def _spectrum(matrix: Any, mass: Any, g: Any) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a reversible matrix but the first, and the square of each coefficient of ``g``."""
    matrix, mass, g = (np.asarray(v, dtype=np.float64) for v in (matrix, mass, g))
    root = np.sqrt(mass / mass.sum())
    symmetric = root[:, None] * matrix / root
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    return values[:-1], ((root * g) @ vectors[:, :-1]) ** 2


def asymptotic_variance(matrix: Any, mass: Any, alpha: float, g: Any) -> float:
    r"""``lim n Var`` of the average of ``g`` over ``n`` states, for ``gamma_n = 1 / (n + 1)``.

    .. math::
        \sum_{i \ge 2} \frac{1}{2 \alpha (1 + \lambda_i) + 1} \,
        \frac{1 + \lambda_i}{1 - \lambda_i} \, \langle g, u_i \rangle_\mu^2 ,

    of order ``1 / alpha`` (Doshi, Hu and Eun 2023); without repulsion that of the chain ``P``.

    Args:
        matrix: ``(S, S)``: ``P``, reversible for ``mass``, with one eigenvalue 1.
        mass: ``(S,)``: ``mu``, positive, up to a factor.
        alpha: strength of the repulsion.
        g: ``(S,)``: values of the function.

    Example:
        >>> chain, mass = [[0.9, 0.1], [0.1, 0.9]], [0.5, 0.5]
        >>> [round(asymptotic_variance(chain, mass, alpha, [-1.0, 1.0]), 3) for alpha in (0.0, 5.0)]
        [9.0, 0.474]
    """
    values, square = _spectrum(matrix, mass, g)
    return float(np.sum(square * (1 + values) / (1 - values) / (2 * alpha * (1 + values) + 1)))


def approximation_variance(matrix: Any, mass: Any, alpha: float, g: Any) -> float:
    r"""The same where the measure moves faster than the average: ``gamma_n`` with an exponent below 1.

    .. math::
        \sum_{i \ge 2} \frac{1}{(\alpha (1 + \lambda_i) + 1)^2} \,
        \frac{1 + \lambda_i}{1 - \lambda_i} \, \langle g, u_i \rangle_\mu^2 ,

    of order ``1 / alpha**2`` (Hu, Doshi and Eun 2024, *ICLR*, arXiv:2401.09665). For the iterates
    ``theta += beta_n H(theta, X_n)`` of stochastic approximation with ``beta_n = o(gamma_n)`` it is the variance of
    the noise that a gradient ``g = H(theta*, .)`` hands on to them: their own is linear in it, and knows no other
    ``alpha``. Arguments as for :func:`asymptotic_variance`.

    Example:
        >>> chain, mass = [[0.9, 0.1], [0.1, 0.9]], [0.5, 0.5]
        >>> [round(approximation_variance(chain, mass, alpha, [-1.0, 1.0]), 3) for alpha in (0.0, 5.0)]
        [9.0, 0.09]
    """
    values, square = _spectrum(matrix, mass, g)
    return float(np.sum(square * (1 + values) / (1 - values) / (alpha * (1 + values) + 1) ** 2))
