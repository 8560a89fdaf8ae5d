"""Metropolis chains on graphs, repelled transitions, and the variances of the theory by other routes."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from sojourn.ops import self_repellent as ops


def weighted_graph(size=7, seed=2):
    """Random weights on a ring and some chords; a diagonal entry, and states with different numbers of neighbours."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((size, size))
    for i, j in [*((i, (i + 1) % size) for i in range(size)), (0, 3), (2, 5), (0, 0)]:
        weight[i, j] = weight[j, i] = rng.uniform(0.5, 2.0)
    return weight


def target(size, seed=4):
    mass = np.random.default_rng(seed).uniform(0.2, 3.0, size)
    return mass / mass.sum()


GRAPHS = {
    "weighted": (lambda: ops.graph_from_adjacency(weighted_graph()), 7),
    "product": (lambda: ops.product_graph((2, 3, 1, 2)), 12),
}


@pytest.fixture(params=GRAPHS)
def chain(request, x64):
    build, size = GRAPHS[request.param]
    graph, mass = build(), target(size)
    return graph, mass, np.asarray(ops.metropolis_matrix(graph, jnp.log(3.0 * mass)))


def test_the_metropolis_chain_is_reversible_for_the_target(chain):
    _, mass, matrix = chain
    flow = mass[:, None] * matrix
    assert np.allclose(matrix.sum(1), 1, atol=1e-14)
    assert (matrix >= 0).all()
    assert np.allclose(flow, flow.T, atol=1e-15)
    assert np.allclose(mass @ matrix, mass, atol=1e-15)


def test_proposals_follow_the_weights_of_the_edges(x64):
    weight = weighted_graph()
    proposal = weight / weight.sum(1, keepdims=True)
    mass = target(7)
    matrix = np.asarray(ops.metropolis_matrix(ops.graph_from_adjacency(weight), jnp.log(mass)))
    for i, j in itertools.permutations(range(7), 2):
        accept = min(1, mass[j] * proposal[j, i] / (mass[i] * proposal[i, j])) if weight[i, j] else 0
        assert matrix[i, j] == pytest.approx(proposal[i, j] * accept, abs=1e-15)
    assert matrix[0, 0] >= proposal[0, 0]


def test_neighbours_in_a_product_differ_in_one_entry():
    sizes = (2, 3, 2)
    graph = ops.product_graph(sizes)
    vectors = list(itertools.product(*map(range, sizes)))
    to = np.asarray(graph.edges(np.arange(12)).to)
    for i, vector in enumerate(vectors):
        near = [
            j
            for j, other in enumerate(vectors)
            if sum(a != b for a, b in zip(vector, other, strict=True)) == 1
        ]
        assert sorted(to[i]) == near


def test_a_flat_target_leaves_no_probability_of_staying_in_single_precision():
    """One minus the sum of 11 elevenths is not zero, and a strong repulsion would make something of it."""
    graph = ops.product_graph((12,))
    _, log_row = ops.metropolis_row(graph, jnp.zeros(12), jnp.array(3))
    assert log_row[-1] == -jnp.inf


def test_states_without_mass_are_never_entered():
    graph = ops.product_graph((4,))
    log_mass = jnp.log(jnp.array([1.0, 0.0, 2.0, 1.0]))
    visits = jnp.array([0.4, 0.0, 0.3, 0.3])
    for alpha in (0.0, 3.0):
        keys = jax.random.split(jax.random.key(0), 500)
        drawn = jax.vmap(lambda k, a=alpha: ops.next_state(k, graph, log_mass, visits, jnp.array(0), a))(keys)
        assert set(np.asarray(drawn).tolist()) == {0, 2, 3}  # stays where it proposes the impossible


def test_transitions_are_repelled_as_defined(chain):
    graph, mass, matrix = chain
    size, alpha, state = len(mass), 1.5, 2
    visits = target(size, seed=9)
    law = matrix[state] * (visits / mass) ** -alpha
    law /= law.sum()
    draw = jax.vmap(
        lambda k: ops.next_state(k, graph, jnp.log(mass), jnp.asarray(visits), jnp.array(state), alpha)
    )
    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), count := 20_000)))
    share = np.bincount(drawn, minlength=size) / count
    assert (np.abs(share - law) <= 4 * np.sqrt(law * (1 - law) / count)).all()


def test_visits_stay_a_measure_and_average_with_equal_weights():
    visits = jnp.full(3, 1 / 3)
    for n, state in enumerate([0, 2, 2, 1, 2], start=1):
        visits = ops.update_visits(visits, jnp.array(state), ops.step_size(n, 1.0))
    assert np.allclose(visits, (np.array([1, 1, 3]) + 1 / 3) / 6, atol=1e-6)


# ---------------------------------------------------------------------------------------------- the theory


def fundamental_covariance(matrix, mass):
    """Asymptotic covariance of the shares of visits of the chain, by the fundamental matrix (Kemeny and Snell)."""
    size = len(mass)
    everywhere = np.tile(mass, (size, 1))
    fundamental = np.linalg.inv(np.eye(size) - matrix + everywhere)
    weighted = mass[:, None] * fundamental
    return weighted + weighted.T - np.diag(mass) - np.outer(mass, mass)


def test_without_repulsion_it_is_the_variance_of_the_chain(chain):
    _, mass, matrix = chain
    g = np.random.default_rng(0).normal(size=len(mass))
    exact = g @ fundamental_covariance(matrix, mass) @ g
    assert ops.asymptotic_variance(matrix, mass, 0.0, g) == pytest.approx(exact, rel=1e-10)
    assert ops.approximation_variance(matrix, mass, 0.0, g) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_with_repulsion_it_solves_the_equations_of_stochastic_approximation(chain, alpha):
    """Lyapunov's equation for gamma_n = 1 / (n + 1), and ``J^-1 U J^-T`` for a measure that moves faster.

    ``J`` is the Jacobian of the mean field at ``mu``, ``2 alpha mu 1' - alpha P' - (alpha + 1) I``.
    """
    _, mass, matrix = chain
    size = len(mass)
    g = np.random.default_rng(0).normal(size=size)
    noise = fundamental_covariance(matrix, mass)
    jacobian = 2 * alpha * np.outer(mass, np.ones(size)) - alpha * matrix.T - (alpha + 1) * np.eye(size)
    slow = scipy.linalg.solve_continuous_lyapunov(jacobian + np.eye(size) / 2, -noise)
    fast = np.linalg.solve(jacobian, np.linalg.solve(jacobian, noise).T)
    assert ops.asymptotic_variance(matrix, 7 * mass, alpha, g) == pytest.approx(g @ slow @ g, rel=1e-9)
    assert ops.approximation_variance(matrix, 7 * mass, alpha, g + 2) == pytest.approx(g @ fast @ g, rel=1e-9)


# -------------------------------------------------------------------------------------------------- errors


def without(weight, *edges):
    weight = weight.copy()
    for i, j in edges:
        weight[i, j] = 0
    return weight


RING = np.roll(np.eye(4), 1, 0) + np.roll(np.eye(4), -1, 0)


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (np.ones((2, 3)), r"must be a square matrix, and its shape is \(2, 3\)"),
        (np.ones(4), "square"),
        (np.zeros((0, 0)), "square"),
        (np.ones((3, 3)), "is of 3 states where there are 4"),
        (RING.astype(str), "must hold numbers"),
        (np.where(RING > 0, np.nan, 0), r"must be finite: entry \[0, 1\]"),
        (-RING, r"must not be negative: entry \[0, 1\] is -1"),
        (without(RING, (2, 1)), r"must be symmetric: entry \[1, 2\] is 1.0 and its twin 0.0"),
        (
            without(RING, (1, 2), (2, 1), (3, 0), (0, 3)),
            r"falls into 2 pieces \(no way leads from state 0 to state 2\)",
        ),
    ],
)
def test_what_is_wrong_with_a_graph_is_said(adjacency, message):
    with pytest.raises(ValueError, match=message):
        ops.graph_from_adjacency(adjacency, size=4)


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf, "much", None, True])
def test_repulsion_must_not_be_negative(alpha):
    with pytest.raises(ValueError, match="`alpha` must be a number not negative"):
        ops.check_repulsion(alpha, 1.0)


@pytest.mark.parametrize("exponent", [0.5, 1.1, np.nan, "slow"])
def test_steps_must_fall_at_a_rate_of_the_theory(exponent):
    with pytest.raises(ValueError, match=r"`step_exponent` must be a number above 0.5 and at most 1"):
        ops.check_repulsion(1.0, exponent)


def test_pieces_of_what_is_left_of_a_graph():
    graph = ops.product_graph((2, 2))
    assert ops.count_pieces(graph, np.array([True, True, True, True])) == 1
    assert ops.count_pieces(graph, np.array([True, True, False, False])) == 1
    assert ops.count_pieces(graph, np.array([True, False, False, True])) == 2
