"""The dominant eigenvalue against a general eigensolver, its derivatives against series, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sojourn.ops.perron import deviation_matrix, perron


def metzler(states, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    matrix = np.exp(spread * rng.normal(size=(states, states)))
    np.fill_diagonal(matrix, -matrix.sum(1) + rng.normal(size=states))
    return matrix


def vectors(matrix):
    """Value, right and left vector by a general eigensolver, scaled as `perron` does."""
    sides = []
    for side in (matrix, matrix.T):
        values, columns = np.linalg.eig(side)
        sides.append(np.abs(columns[:, values.real.argmax()].real))
    right, left = sides[0], sides[1] / sides[1].sum()
    return np.linalg.eigvals(matrix).real.max(), right / (left @ right), left


@pytest.mark.parametrize("states", [1, 2, 3, 6, 20])
def test_value_and_vectors(states, x64):
    for seed, spread in enumerate((0.1, 1.0, 3.0)):
        matrix = metzler(states, spread, seed)
        found = perron(matrix)
        value, right, left = vectors(matrix)
        size = np.abs(matrix).sum(1).max()
        assert float(found.value) == pytest.approx(value, abs=1e-13 * size)
        np.testing.assert_allclose(np.exp(found.log_right), right, rtol=1e-9)
        np.testing.assert_allclose(np.exp(found.log_left), left, rtol=1e-9)


HARD = {
    "a long chain with a well at either end": np.diag([5.0, *[-2.0] * 28, 5.001])
    + np.eye(30, k=1)
    + np.eye(30, k=-1),
    "a directed ring": 100.0 * np.roll(np.eye(30), 1, 1) + np.diag([300.0] + [0.0] * 29),
    "nearly in two parts": np.array([[-1.0, 1.0, 1e-9], [1.0, -1.0, 0.0], [1e-9, 0.0, 0.5]]),
    "tiny": 1e-12 * np.array([[-1.0, 1.0], [2.0, -1.9]]),
    "huge": 1e12 * np.array([[-1.0, 1.0], [2.0, -1.9]]),
    "no diagonal, period two": np.array([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0], [0.0, 5.0, 0.0]]),
    "a strong tilt": np.array([[-1.0, 1e8, 0.0], [1e-8, -2.0, 1e8], [0.0, 1e-8, 40.0]]),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hard_cases_satisfy_the_eigenvalue_equation(case, dtype, x64):
    """Row by row, to the rounding of its own terms; by Collatz and Wielandt that bounds the eigenvalue as well."""
    matrix = HARD[case].astype(dtype)
    found = perron(matrix)
    assert found.value.dtype == dtype
    for side, log_vector in ((matrix, found.log_right), (matrix.T, found.log_left)):
        log_vector = np.asarray(log_vector, float)
        assert np.isfinite(log_vector).all()
        terms = side.astype(float) * np.exp(log_vector[None, :] - log_vector[:, None])
        size = np.abs(terms).sum(1) + abs(float(found.value))
        off = np.abs(terms.sum(1) - float(found.value))
        # Logarithms of size |log r| are known to |log r| eps, and a row has len(matrix) terms.
        bound = 8 * len(matrix) * np.finfo(dtype).eps * (1 + np.abs(log_vector).max())
        assert (off <= bound * size).all()


def test_derivatives_of_value_and_vectors_in_both_modes(x64):
    matrix, direction = metzler(3, 0.7), np.random.default_rng(5).normal(size=(3, 3))

    def along(t):
        found = perron(matrix + t * direction)
        return jnp.concatenate([found.value[None], found.log_right, found.log_left])

    check_grads(jax.jit(along), (0.1,), order=2, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6)


def test_perturbation_series_to_third_order(x64):
    """``psi'' = 2 sum_m (l V r_m) (l_m V r) / (psi - psi_m)`` over the other eigenvalues, and its differences."""
    matrix, direction = metzler(4), np.random.default_rng(6).normal(size=(4, 4))

    def series(t):
        values, right = np.linalg.eig(matrix + t * direction)
        top = values.real.argmax()
        coupled = np.linalg.inv(right) @ direction @ right
        other = np.arange(4) != top
        second = 2 * (coupled[top, other] * coupled[other, top] / (values[top] - values[other])).sum()
        return coupled[top, top].real, second.real

    def first(t):
        return jax.grad(lambda t: perron(matrix + t * direction).value)(t)

    second = jax.jvp(first, (0.0,), (1.0,))[1]
    third = jax.jvp(lambda t: jax.jvp(first, (t,), (1.0,))[1], (0.0,), (1.0,))[1]
    assert float(first(0.0)) == pytest.approx(series(0.0)[0], rel=1e-11)
    assert float(second) == pytest.approx(series(0.0)[1], rel=1e-10)
    step = 1e-4  # errors of 1e-8 from the step, 1e-11 from rounding
    assert float(third) == pytest.approx((series(step)[1] - series(-step)[1]) / (2 * step), rel=1e-6)


def test_gradient_in_an_entry_that_is_zero(x64):
    """A forbidden move has a derivative, ``l_i r_j``, on the side where it is allowed."""
    chain = np.array([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 2.0, -1.5]])
    _, right, left = vectors(chain)
    gradient = jax.grad(lambda a: perron(a).value)(chain)
    np.testing.assert_allclose(gradient, left[:, None] * right[None, :], rtol=1e-11)


def test_batches(x64):
    stack = np.stack([metzler(3, seed=s) for s in range(4)]).reshape(2, 2, 3, 3)
    whole, mapped = perron(stack), jax.jit(jax.vmap(jax.vmap(perron)))(stack)
    assert whole.value.shape == (2, 2)
    assert whole.log_left.shape == (2, 2, 3)
    for i in np.ndindex(2, 2):
        one = perron(stack[i])
        for a, b, c in zip(one, whole, mapped, strict=True):
            np.testing.assert_allclose(b[i], a, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(c[i], a, rtol=1e-12, atol=1e-12)


def test_single_precision_by_default():
    found = perron([[-1, 2], [1, -1]])
    assert found.value.dtype == jnp.float32
    assert float(found.value) == pytest.approx(np.sqrt(2.0) - 1.0, rel=1e-5)


def test_deviation_matrix_is_the_negative_group_inverse(x64):
    for states in (1, 2, 5):
        rates = metzler(states)
        rates = rates - np.diag(rates.sum(1))
        deviation = np.asarray(deviation_matrix(rates))
        law = np.linalg.svd(rates.T)[2][-1]
        law = law / law.sum()
        np.testing.assert_allclose(-rates @ deviation, np.eye(states) - law, atol=1e-12)
        np.testing.assert_allclose(-deviation @ rates, np.eye(states) - law, atol=1e-12)
        np.testing.assert_allclose(deviation.sum(1), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (np.ones((2, 3)), r"`matrix` has shape \(2, 3\)"),
        (np.ones(3), r"`matrix` has shape \(3,\)"),
        ([[0.0, np.nan], [1.0, 0.0]], "not finite"),
        ([[0.0, -0.5], [1.0, 0.0]], "entry -0.5 off its diagonal"),
        ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]], "reducible: state 0 never leads to state 2"),
        ([np.eye(3) + 1, np.eye(3)], "reducible"),
    ],
)
def test_refused(matrix, sentence):
    with pytest.raises(ValueError, match=sentence):
        perron(np.asarray(matrix))
