"""Self-repellent walks against the variances that theory gives, and wrong walks that the same numbers reject.

A sample variance over C independent walks has the relative standard error sqrt(2 / (C - 1)); bounds are four of them,
and four standard errors for means.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax, random
from numpyro.infer import MCMC

from sojourn.inference._self_repellent import SelfRepellentWalk
from sojourn.inference._token_walk import TokenWalk
from sojourn.ops import self_repellent as ops

WALKS = 256
BOUND = 4 * np.sqrt(2 / (WALKS - 1))


def two_rings():
    """16 nodes, 20 edges: two rings of eight with a chord each, and two bridges."""
    adjacency = np.zeros((16, 16))
    rings = [(r + i, r + (i + 1) % 8) for r in (0, 8) for i in range(8)]
    for i, j in [*rings, (2, 6), (10, 14), (0, 8), (4, 12)]:
        adjacency[i, j] = adjacency[j, i] = 1
    return adjacency


GRAPH = ops.graph_from_adjacency(two_rings())
MASS = 1 + np.arange(16) / 5
G = np.linspace(-2, 2, 16)
EXACT = float(MASS @ G / MASS.sum())


def base_chain(graph=GRAPH, mass=MASS):
    return np.asarray(ops.metropolis_matrix(graph, jnp.log(jnp.asarray(mass))), float)


def averages(alpha, steps, move=ops.next_state):
    """Average of G over each of the walks; they start at a draw from the target, with a uniform measure."""
    log_mass = jnp.log(jnp.asarray(MASS))

    @jax.jit
    @jax.vmap
    def run(key):
        key_start, key = random.split(key)

        def body(carry, n):
            key, state, visits = carry
            key, key_move = random.split(key)
            state = move(key_move, GRAPH, log_mass, visits, state, alpha)
            return (key, state, ops.update_visits(visits, state, ops.step_size(n, 1.0))), None

        first = (key, random.categorical(key_start, log_mass), jnp.full(16, 1 / 16))
        visits = lax.scan(body, first, jnp.arange(1, steps + 1))[0][-1]
        return ((steps + 1) * visits - 1 / 16) @ jnp.asarray(G) / steps  # without the start's count

    return np.asarray(run(random.split(random.key(11), WALKS)), float)


def z_score(values, exact):
    return (values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values)))


# ------------------------------------------------------------------------------------ averages over a walk


def test_what_theory_says_of_this_graph():
    """Its second eigenvalue, 0.935, decides: the gain is all but 2 alpha (1 + lambda_2) + 1."""
    chain = base_chain()
    second = np.sort(np.linalg.eigvals(chain).real)[-2]
    alpha = np.array([1, 2, 5, 10, 20])
    variance = np.array([ops.asymptotic_variance(chain, MASS, a, G) for a in (0, *alpha)])
    ratio = variance[1:] / variance[0]
    assert np.allclose(ratio, [0.207, 0.116, 0.050, 0.026, 0.013], atol=6e-4)
    assert np.allclose(ratio, 1 / (2 * alpha * (1 + second) + 1), rtol=0.03)


@pytest.mark.parametrize("alpha", [0.0, pytest.param(1.0, marks=pytest.mark.slow), 5.0, 20.0])
def test_the_variance_of_averages_is_what_theory_says(alpha):
    found = averages(alpha, steps := 10_000)
    theory = ops.asymptotic_variance(base_chain(), MASS, alpha, G)
    assert abs(steps * found.var(ddof=1) / theory - 1) < BOUND
    assert abs(z_score(found, EXACT)) < 4


def repel_by_visits(key, graph, log_mass, visits, state, alpha):
    """By ``x_j`` in place of ``x_j / mu_j``: settles between the target and the uniform law."""
    to, log_row = ops.metropolis_row(graph, log_mass, state)
    return to[random.categorical(key, log_row - alpha * jnp.log(visits[to]))]


def repel_one_way(key, graph, log_mass, visits, state, alpha):
    """Lets the chain stay where it is as if that were no visit."""
    to, log_row = ops.metropolis_row(graph, log_mass, state)
    excess = (jnp.log(visits[to]) - log_mass[to]).at[-1].set(0.0)
    return to[random.categorical(key, log_row - alpha * excess)]


@pytest.mark.parametrize("move", [repel_by_visits, pytest.param(repel_one_way, marks=pytest.mark.slow)])
def test_wrong_repulsion_is_caught(move):
    assert abs(z_score(averages(1.0, 4000, move), EXACT)) > 10


# --------------------------------------------------------------------------------------------- in NumPyro


def ising(coupling, field):
    """A ring of spins that like to agree, in a field."""
    with numpyro.plate("site", 6):
        spin = 2 * numpyro.sample("spin", dist.Bernoulli(0.5)) - 1
    energy = coupling * jnp.sum(spin * jnp.roll(spin, 1)) + field * spin.sum()
    numpyro.factor("energy", energy)


def test_an_ising_ring_through_mcmc():
    spins = np.array(list(itertools.product((0, 1), repeat=6)))
    signs = 2 * spins - 1
    log_mass = 0.5 * (signs * np.roll(signs, 1, axis=1)).sum(1) + 0.15 * signs.sum(1)
    mass = np.exp(log_mass) / np.exp(log_mass).sum()
    chain = ops.metropolis_matrix(ops.product_graph((2,) * 6), jnp.asarray(log_mass))
    g = signs.mean(1)
    chains, draws = 128, 2000
    mcmc = MCMC(
        SelfRepellentWalk(ising, alpha=5.0),
        num_warmup=0,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(5), 0.5, 0.15, extra_fields=("potential_energy",))
    found = np.asarray(mcmc.get_samples(group_by_chain=True)["spin"])
    magnetisation = (2 * found - 1).mean((1, 2))
    assert abs(z_score(magnetisation, mass @ g)) < 4
    theory = ops.asymptotic_variance(chain, mass, 5.0, g)
    assert theory < ops.asymptotic_variance(chain, mass, 0.0, g) / 15
    assert abs(draws * magnetisation.var(ddof=1) / theory - 1) < 4 * np.sqrt(2 / (chains - 1))

    # Batches within a chain make up for each other: taken for independent ones they overstate the error.
    batches = (2 * found - 1).mean(2).reshape(chains, 20, draws // 20).mean(2)
    by_batches = (batches.var(1, ddof=1) / 20).mean()
    assert by_batches > 3 * magnetisation.var(ddof=1)

    # The energies are those of the states, up to the constant of the uniform prior.
    energy = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["potential_energy"])
    number = found @ 2 ** np.arange(5, -1, -1)
    assert np.allclose(energy, 6 * np.log(2) - log_mass[number], atol=1e-4)


# -------------------------------------------------------------------------------- stochastic approximation

TORUS = np.zeros((16, 16))
for i, j in itertools.product(range(4), range(4)):
    for k in (4 * ((i + 1) % 4) + j, 4 * i + (j + 1) % 4):
        TORUS[4 * i + j, k] = TORUS[k, 4 * i + j] = 1

SLOPE = 1 + 0.5 * np.random.default_rng(3).random(16)
Y = 1.5 * SLOPE + np.linspace(-1, 1, 16)
BEST = SLOPE @ Y / (SLOPE @ SLOPE)
GRADIENT = SLOPE * (Y - SLOPE * BEST)
CURVATURE = (SLOPE**2).mean()
APPROXIMATIONS = 512


def least_squares(alpha, steps):
    """Iterates ``theta += n^-0.9 slope (y - slope theta)``, one observation on each node of the torus."""
    walk = TokenWalk(TORUS, alpha=alpha, step_exponent=0.6)

    @jax.jit
    @jax.vmap
    def run(key):
        def body(carry, n):
            state, theta = carry
            k, state = walk.step(state)
            slope, y = jnp.asarray(SLOPE)[k], jnp.asarray(Y)[k]
            return (state, theta + n**-0.9 * slope * (y - slope * theta)), None

        first = (walk.init(key), jnp.array(BEST))
        return lax.scan(body, first, jnp.arange(1.0, steps + 1.0))[0][1]

    return np.asarray(run(random.split(random.key(2), APPROXIMATIONS)), float)


def linearised(alpha, steps):
    """Variance of the iterates by the recursion of the linearised system, white noise in place of the chain's.

    In each eigendirection of the chain the measure has ``y += gamma_n (-(a + 1) y + noise)`` with
    ``a = alpha (1 + lambda)``, and passes ``-a y + noise`` on to the iterates.
    """
    chain = base_chain(ops.graph_from_adjacency(TORUS), np.ones(16))
    values, vectors = np.linalg.eigh(chain)
    values, share = values[:-1], vectors[:, :-1].T @ GRADIENT / 4
    noise, pull = (1 + values) / (1 - values), alpha * (1 + values)
    yy, yt, tt = np.zeros((3, 15))
    for n in range(1, steps + 1):
        gamma, beta = (n + 1.0) ** -0.6, n**-0.9
        a, b, c = 1 - gamma * (pull + 1), 1 - beta * CURVATURE, -beta * pull * share
        yy, yt, tt = (
            a * a * yy + gamma**2 * noise,
            a * b * yt + a * c * yy + gamma * beta * share * noise,
            b * b * tt + 2 * b * c * yt + c * c * yy + (beta * share) ** 2 * noise,
        )
    return tt.sum()


def law(alpha, steps):
    """The limit: of order ``1 / alpha**2``."""
    chain = base_chain(ops.graph_from_adjacency(TORUS), np.ones(16))
    return steps**-0.9 * ops.approximation_variance(chain, np.ones(16), alpha, GRADIENT) / (2 * CURVATURE)


@pytest.mark.parametrize("alpha", [5.0, *(pytest.param(a, marks=pytest.mark.slow) for a in (0.0, 1.0, 2.0))])
def test_noise_of_stochastic_approximation(alpha):
    """Held to the linearised system at the same step, which falls short by what is not linear: 10 % allowed for that.

    A repulsion that left a variance of order 1 / alpha would be off by a factor of 4 at alpha = 5.
    """
    found = least_squares(alpha, steps := 10_000)
    bound = 0.1 + 4 * np.sqrt(2 / (APPROXIMATIONS - 1))
    assert abs(found.var(ddof=1) / linearised(alpha, steps) - 1) < bound
    assert abs(z_score(found, BEST)) < 4


def test_the_linearised_noise_falls_as_one_over_alpha_squared():
    """What it has above the law shrinks with the number of steps, slowly, as ``beta_n / gamma_n`` does."""
    excess = np.array([[linearised(a, n) / law(a, n) - 1 for a in (1.0, 5.0)] for n in (1000, 10_000)])
    assert (excess > 0).all()
    assert (excess[1] < 0.7 * excess[0]).all()
    assert law(100.0, 1) / law(200.0, 1) == pytest.approx(4.0, rel=0.02)
