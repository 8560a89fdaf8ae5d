"""Recursions on a chain of finite memory, against the sum over every path."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops import discrete_chain as ops
from sojourn.ops import hidden_markov
from sojourn.ops.discrete_chain import Piece

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def chain(states, number, memory, steps, seed=0, fixed=True):
    """A start and two pieces: one step by itself, then the others. ``number`` of the ``states`` stay."""
    rng = np.random.default_rng(seed)
    rest = states ** (memory - 1)
    start = np.full((states, rest), -np.inf)
    start.ravel()[:states] = rng.normal(size=states)

    def moves(n):
        return 2.0 * rng.normal(size=(n, states, rest, number))

    lengths = (1, steps - 1)
    pieces = [Piece(moves(n if not fixed else 1), 3.0 * rng.normal(size=(n, number))) for n in lengths]
    return jnp.asarray(start), [Piece(*map(jnp.asarray, p)) for p in pieces]


def paths(start, pieces):
    """Every start with every path, and its log-weight."""
    states, rest = start.shape
    number, steps = pieces[0].log_weight.shape[-1], sum(len(p.log_weight) for p in pieces)
    moves = np.concatenate(
        [np.broadcast_to(p.log_move, (len(p.log_weight), *p.log_move.shape[1:])) for p in pieces]
    )
    weights = np.concatenate([p.log_weight for p in pieces])
    found = []
    for first in range(start.size):
        if np.isneginf(start.ravel()[first]):
            continue
        for path in itertools.product(range(number), repeat=steps):
            total, at = float(start.ravel()[first]), first
            for t, z in enumerate(path):
                oldest, others = divmod(at, rest)
                total += moves[t, oldest, others, z] + weights[t, z]
                at = others * states + z
            found.append((first, path, total))
    return found


def total(start, pieces, **options):
    return ops.forward(start, pieces, **options).increments.sum()


@jax.jit
def answers(start, pieces):
    run = ops.forward(start, pieces)
    return run.increments, ops.smooth(start, pieces), ops.viterbi(start, pieces)


slow_total = jax.jit(lambda start, pieces: total(start, pieces, vjp=False))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("states", "number", "memory", "steps", "fixed"),
    [(3, 3, 1, 7, True), (3, 2, 1, 7, False), (2, 2, 2, 8, True), (2, 2, 3, 7, False), (3, 2, 2, 7, True)],
)
def test_sum_smoothing_and_best_path_are_those_of_all_paths(states, number, memory, steps, fixed):
    start, pieces = chain(states, number, memory, steps, fixed=fixed)
    every = paths(start, pieces)
    weights = np.array([w for *_, w in every])
    norm = np.logaddexp.reduce(weights)
    expected = norm - np.logaddexp.reduce(np.asarray(start).ravel())
    increments, smoothed, (at, path) = answers(start, pieces)
    np.testing.assert_allclose(increments.sum(), expected, **TOLERANCE)
    np.testing.assert_allclose(slow_total(start, pieces), expected, **TOLERANCE)

    probability = np.exp(weights - norm)
    marginals, first = np.zeros((steps, number)), np.zeros(start.size)
    for (begin, along, _), p in zip(every, probability, strict=True):
        first[begin] += p
        marginals[np.arange(steps), along] += p
    np.testing.assert_allclose(smoothed.marginals, marginals, **TOLERANCE)
    np.testing.assert_allclose(smoothed.start.ravel(), first, **TOLERANCE)

    best = max(every, key=lambda x: x[2])
    assert (int(at), tuple(path.tolist())) == best[:2]


@pytest.mark.usefixtures("x64")
def test_increments_are_ratios_of_the_sums_over_shorter_chains():
    start, (first, others) = chain(2, 2, 2, 6)
    steps = answers(start, [first, others])[0]
    for n in range(2, 7):
        shorter = [first, Piece(others.log_move, others.log_weight[: n - 1])]
        expected = np.logaddexp.reduce([w for *_, w in paths(start, shorter)])
        expected -= np.logaddexp.reduce(np.asarray(start).ravel())
        np.testing.assert_allclose(steps[:n].sum(), expected, **TOLERANCE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fixed", [True, False])
def test_reverse_rule_is_the_derivative_of_whatever_is_made_of_the_result(fixed):
    start, pieces = chain(2, 2, 2, 9, fixed=fixed)
    rng = np.random.default_rng(1)
    run = jax.eval_shape(ops.forward, start, pieces)
    by = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), run)

    def anything(start, pieces, vjp):
        run = ops.forward(jnp.where(jnp.isfinite(start), start, -jnp.inf), pieces, vjp=vjp)
        # Impossible tuples have no gradient.
        safe = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), run)
        return sum((a * b).sum() for a, b in zip(safe, by, strict=True))

    gradient = jax.jit(jax.grad(anything, 1), static_argnums=2)
    ours, reference = gradient(start, pieces, True), gradient(start, pieces, False)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
    second = [
        jax.jit(jax.hessian(lambda w, v=vjp: total(start, [pieces[0], Piece(pieces[1].log_move, w)], vjp=v)))
        for vjp in (True, False)
    ]
    one, other = (h(pieces[1].log_weight) for h in second)
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def left_to_right(steps=40, jump=20, size=200.0):
    """State 1 is ``size`` nats improbable until ``jump``, needed from there on, and entered at the start only."""
    move = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))[None, :, None, :]
    weight = jnp.zeros((steps, 2)).at[5, 1].set(-size).at[jump:, 0].set(-3.0 * size)
    return jnp.log(jnp.array([0.5, 0.5]))[:, None], [Piece(move, weight)]


def test_a_state_that_underflows_is_kept_for_when_it_is_needed():
    """In float32 the scaled pass loses it (e^-200), and would report about -600 a step from the jump on."""
    start, pieces = left_to_right()
    increments, smoothed, _ = answers(start, pieces)
    np.testing.assert_allclose(increments.sum(), np.log(0.5) - 200.0, rtol=1e-6)
    np.testing.assert_allclose(smoothed.marginals[:, 1], 1.0, rtol=1e-6)
    _, enough = jax.jit(ops._scaled_arrivals)(start, *pieces[0])
    assert not bool(enough)
    # Only together with one that is in trouble does an innocent chain pay, and it comes out the same.
    calm = jnp.stack([jnp.zeros((40, 2)), pieces[0].log_weight])
    both = jax.jit(jax.vmap(lambda w: total(start, [Piece(pieces[0].log_move, w)])))(calm)
    np.testing.assert_allclose(both, [0.0, np.log(0.5) - 200.0], rtol=1e-6, atol=1e-5)


def test_a_usual_chain_stays_on_the_fast_pass():
    start, pieces = chain(4, 4, 1, 50)
    _, enough = jax.jit(ops._scaled_arrivals)(start - jax.nn.logsumexp(start), *pieces[1])
    assert bool(enough)


def test_vmap_of_gradients_is_the_gradients_one_by_one():
    start, pieces = chain(3, 3, 1, 12)
    start, pieces = jax.tree.map(lambda x: x.astype(jnp.float32), (start, pieces))
    scales = jnp.array([0.5, 1.0, 2.0])

    def value(scale):
        return total(start, [Piece(scale * p.log_move, p.log_weight) for p in pieces])

    both = jax.value_and_grad(value)
    together, one = jax.jit(jax.vmap(both)), jax.jit(both)
    together, alone = together(scales), [one(s) for s in scales]
    np.testing.assert_allclose(together, np.array(alone).T, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_equals_the_hidden_markov_kernel():
    rng = np.random.default_rng(3)
    initial, move = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4), 4)
    emission = 2.0 * rng.normal(size=(300, 4))
    pieces = [Piece(jnp.log(move)[None, :, None, :], jnp.asarray(emission[1:]))]
    first = np.log(initial) + emission[0]
    increments, found, (_, path) = answers(jnp.asarray(first)[:, None], pieces)
    whole = increments.sum() + np.logaddexp.reduce(first)
    np.testing.assert_allclose(whole, hidden_markov.log_likelihood(initial, move, emission), **TOLERANCE)
    smoothed = hidden_markov.smooth(initial, move, emission)
    np.testing.assert_allclose(found.marginals, smoothed.marginals[1:], **TOLERANCE)
    assert (path == hidden_markov.viterbi(initial, move, emission)[1:]).all()


def test_sampled_paths_follow_their_weights():
    """4000 paths; counts within 4.5 standard errors of their expectation."""
    start, pieces = chain(3, 2, 2, 4)
    every = paths(start, pieces)
    law = np.exp([w for *_, w in every])
    law /= law.sum()

    @jax.jit
    def draw(key):
        return ops.sample_paths(key, ops.forward(start, pieces), pieces, num_samples=4000)

    at, drawn = draw(jax.random.key(0))
    counts = {(first, path): 0 for first, path, _ in every}
    for first, path in zip(at.tolist(), map(tuple, drawn.tolist()), strict=True):
        counts[first, path] += 1
    z = (np.array(list(counts.values())) - 4000 * law) / np.sqrt(4000 * law * (1 - law))
    assert np.abs(z[law > 2e-3]).max() < 4.5


def test_an_impossible_chain_weighs_nothing():
    start, pieces = left_to_right()
    weight = pieces[0].log_weight.at[7].set(-jnp.inf)
    both = jax.jit(jax.value_and_grad(lambda w: total(start, [Piece(pieces[0].log_move, w)])))
    value, gradient = both(weight)
    assert np.isneginf(value)
    assert np.isfinite(gradient).all()
