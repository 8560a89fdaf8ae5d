"""Rate matrices from their parameters: the laws that each one states, batches, gradients, what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.models import jump_process as mjp
from sojourn.models._rate_matrices import adjacency_of
from sojourn.ops import rate_matrix as ops

pytestmark = pytest.mark.usefixtures("x64")

LAW = np.array([0.5, 0.2, 0.3])
EXCHANGE = np.array([0.7, 1.5, 0.4])
ENERGY = np.array([0.0, 1.3, -0.4])
BARRIER = np.array([2.0, 1.5, 2.5])
WALLS = np.array([[0.0, 2.0, np.inf], [2.0, 0.0, 1.5], [np.inf, 1.5, 0.0]])
GRAPH = np.array([[0, 1, 0], [0, 0, 1], [1, 1, 0]])
T = 0.8

# name: a builder of one array of parameters, and parameters
BUILDERS = {
    "free": (mjp.free, np.array([1.0, 0.2, 0.5, 0.8, 0.3, 2.0])),
    "masked": (lambda r: mjp.masked(r, GRAPH), np.array([1.0, 0.4, 0.3, 2.0])),
    "reversible": (lambda s: mjp.reversible(s, LAW), EXCHANGE),
    "arrhenius": (lambda e: mjp.arrhenius(e, WALLS, T, 3.0), ENERGY),
    "driven_cycle": (lambda e: mjp.driven_cycle(e, BARRIER, 2.0, T, 3.0), ENERGY),
    "birth_death": (lambda r: mjp.birth_death(r[..., :2], r[..., 2:]), np.array([1.0, 2.0, 3.0, 4.0])),
    "linear_chain": (mjp.linear_chain, np.array([1.0, 2.0])),
    "flashing_ratchet": (lambda x: mjp.flashing_ratchet(x[..., 0], x[..., 1], x[..., 2]), np.ones(3)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_generators_in_batches_with_gradients(name):
    build, at = BUILDERS[name]
    batch = np.stack([at, 1.1 * at, 0.3 * at]).reshape(3, 1, -1)
    states = 6 if name == "flashing_ratchet" else 3
    rng, step = np.random.default_rng(5), 1e-6
    weight, along = rng.normal(size=(states, states)), rng.normal(size=at.shape)

    def number(x):
        return (build(x) * weight).sum()

    @jax.jit
    def everything(batch):
        alone = jnp.stack([build(one) for one in batch[:, 0]])
        there, back = number(at + step * along), number(at - step * along)
        return build(batch), alone, jax.grad(number)(at), (there - back) / (2 * step)

    several, alone, gradient, slope = (np.asarray(x) for x in everything(batch))
    assert several.shape == (3, 1, states, states)
    np.testing.assert_allclose(several.sum(-1), 0.0, atol=1e-13)
    assert (several * ~np.eye(states, dtype=bool) >= 0).all()
    np.testing.assert_allclose(alone, several[:, 0], rtol=1e-12)
    assert gradient @ along == pytest.approx(slope, rel=1e-7)  # the error of differences: of second order


# ------------------------------------------------------------------------------------------ rates, one by one


def test_free_and_masked_fill_row_by_row():
    np.testing.assert_allclose(
        mjp.free(np.arange(1.0, 7.0)), [[-3.0, 1.0, 2.0], [3.0, -7.0, 4.0], [5.0, 6.0, -11.0]]
    )
    np.testing.assert_allclose(
        mjp.masked(np.arange(1.0, 5.0), GRAPH), [[-1.0, 1.0, 0.0], [0.0, -2.0, 2.0], [3.0, 4.0, -7.0]]
    )
    # What the graph says of the diagonal, and weights other than one, do not matter.
    np.testing.assert_array_equal(
        mjp.masked(np.arange(1.0, 5.0), 7.0 * GRAPH + np.eye(3)), mjp.masked(np.arange(1.0, 5.0), GRAPH)
    )


def test_birth_death_and_linear_chain():
    birth, death = np.array([1.0, 2.0, 0.5]), np.array([3.0, 4.0, 0.7])
    q = np.asarray(mjp.birth_death(birth, death))
    np.testing.assert_array_equal(np.diag(q, 1), birth)
    np.testing.assert_array_equal(np.diag(q, -1), death)
    np.testing.assert_array_equal(np.triu(q, 2) + np.tril(q, -2), 0.0)
    # Detailed balance on a line: pi_i proportional to the product of birth over death below.
    law = np.cumprod(np.concatenate([[1.0], birth / death]))
    np.testing.assert_allclose(ops.stationary(q), law / law.sum(), rtol=1e-12)
    np.testing.assert_array_equal(mjp.birth_death(2.0 * np.ones(3), 0.0), mjp.linear_chain(2.0 * np.ones(3)))
    np.testing.assert_array_equal(np.asarray(mjp.linear_chain(birth))[-1], 0.0)


# ------------------------------------------------------------------------------------------ detailed balance


def test_reversible():
    q = np.asarray(mjp.reversible(EXCHANGE, LAW))
    np.testing.assert_allclose(ops.stationary(q), LAW, rtol=1e-12)
    flow = LAW[:, None] * q
    np.testing.assert_allclose(flow, flow.T, rtol=1e-12)
    assert q[0, 2] == pytest.approx(EXCHANGE[1] * np.sqrt(0.3 / 0.5), rel=1e-12)  # pair (0, 2) comes second
    assert float(ops.entropy_production_rate(q)) == pytest.approx(0.0, abs=1e-13)


def test_arrhenius():
    q = np.asarray(mjp.arrhenius(ENERGY, WALLS, T, 3.0))
    assert q[1, 0] == pytest.approx(3.0 * np.exp(-(2.0 - 1.3) / T), rel=1e-12)
    assert q[0, 2] == q[2, 0] == 0.0
    boltzmann = np.exp(-ENERGY / T)
    np.testing.assert_allclose(ops.stationary(q), boltzmann / boltzmann.sum(), rtol=1e-12)
    assert float(ops.entropy_production_rate(q)) == pytest.approx(0.0, abs=1e-13)
    # An infinite wall leaves the gradient by its height zero, not NaN; a wall that leans drives the ring.
    slope = jax.grad(lambda b: mjp.arrhenius(ENERGY, b, T).sum(where=~np.eye(3, dtype=bool)))(WALLS)
    assert np.isfinite(slope).all()
    leaning = np.where(np.isinf(WALLS), 1.0, WALLS) + np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert float(ops.entropy_production_rate(mjp.arrhenius(ENERGY, leaning, T))) > 0.01


# ------------------------------------------------------------------------------------------- away from balance


@pytest.mark.parametrize("force", [-3.0, 0.0, 1.7])
def test_driven_cycle(force):
    energy, barrier = np.array([0.0, 1.3, -0.4, 0.2]), np.array([2.0, 1.5, 2.5, 1.8])
    q = np.asarray(mjp.driven_cycle(energy, barrier, force, T, 3.0))
    ahead = (np.arange(4) + 1) % 4
    forward, backward = q[np.arange(4), ahead], q[ahead, np.arange(4)]
    assert np.prod(forward / backward) == pytest.approx(np.exp(force / T), rel=1e-11)
    assert q[1, 2] == pytest.approx(3.0 * np.exp(-(1.5 - 1.3) / T + force / (8.0 * T)), rel=1e-12)
    assert q[0, 3] == pytest.approx(3.0 * np.exp(-(1.8 - 0.0) / T - force / (8.0 * T)), rel=1e-12)
    assert q[0, 2] == q[1, 3] == 0.0
    # A single cycle: entropy production is the current times the affinity (Schnakenberg 1976, equation 7.12).
    current = float(ops.probability_currents(q)[0, 1])
    assert float(ops.entropy_production_rate(q)) == pytest.approx(current * force / T, abs=1e-13, rel=1e-10)
    assert np.sign(round(current, 12)) == np.sign(force)
    if force == 0:
        boltzmann = np.exp(-energy / T)
        np.testing.assert_allclose(ops.stationary(q), boltzmann / boltzmann.sum(), rtol=1e-12)


def test_flashing_ratchet():
    """By its definition; tests/ops holds more figures of the same matrices."""
    batch = jax.jit(mjp.flashing_ratchet)(np.arange(4.0), 1.0, 1.0)
    assert batch.shape == (4, 6, 6)
    site = np.arange(3)
    for v, q in zip(range(4), np.asarray(batch), strict=True):
        slope = np.exp(-v * (site[None, :] - site[:, None]) / 2)
        expected = np.block([[slope, np.eye(3)], [np.eye(3), np.ones((3, 3))]])
        off = ~np.eye(6, dtype=bool)
        np.testing.assert_allclose(q[off], expected[off], rtol=1e-12)
    law = [0.30119155, 0.13654175, 0.06226671, 0.20029789, 0.15913544, 0.14056668]
    np.testing.assert_allclose(ops.stationary(batch[1]), law, atol=1e-8)
    q = np.asarray(mjp.flashing_ratchet(0.7, 0.3, 1.9, num_sites=4))
    assert q.shape == (8, 8)
    assert q[0, 3] == pytest.approx(np.exp(-0.7 * 3 / 2), rel=1e-12)  # up the slope, potential on
    assert q[3, 1] == pytest.approx(np.exp(0.7), rel=1e-12)
    assert (q[4, 5], q[7, 4], q[2, 6], q[6, 2], q[2, 7]) == (1.9, 1.9, 0.3, 0.3, 0.0)


# -------------------------------------------------------------------------------------------------- structures


def test_graphs_by_name():
    edges = {name: np.argwhere(adjacency_of(name, 4)).tolist() for name in ("linear_chain", "cycle")}
    assert edges["linear_chain"] == [[0, 1], [1, 2], [2, 3]]
    assert edges["cycle"] == [[0, 1], [0, 3], [1, 0], [1, 2], [2, 1], [2, 3], [3, 0], [3, 2]]
    assert adjacency_of("free", 4).sum() == 12
    assert np.argwhere(adjacency_of("birth_death", 3)).tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert (adjacency_of("cycle", 2) == adjacency_of("free", 2)).all()
    assert not adjacency_of(np.ones((3, 3)), 3).diagonal().any()


BAD = [
    (
        r"There is no structure 'ring'; the names are 'free', .*'reversible', or pass",
        adjacency_of,
        ("ring", 3),
    ),
    (
        r"The graph of jumps has shape \(2, 3\); 3 states need \(3, 3\)",
        adjacency_of,
        (np.ones((2, 3)), 3),
    ),
    (r"The graph of jumps has no edge", adjacency_of, (np.eye(3), 3)),
    (r"5 rates fill no matrix: K states need K \(K - 1\)", mjp.free, (jnp.ones(5),)),
    (r"The graph has 4 edges and there are 3 rates", mjp.masked, (jnp.ones(3), GRAPH)),
    (r"The graph of jumps has shape \(2, 3\); 2 states need \(2, 2\)", mjp.masked, (jnp.ones(3), GRAPH[:2])),
    (r"3 states make 3 pairs and there are 2 exchange rates", mjp.reversible, (jnp.ones(2), LAW)),
    (r"A ring needs at least three states, not 2", mjp.driven_cycle, (jnp.zeros(2), jnp.zeros(2), 1.0)),
]


@pytest.mark.parametrize(("message", "build", "args"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_in_a_sentence(message, build, args):
    with pytest.raises(ValueError, match=message):
        build(*args)
