"""The solvers under the Langevin samplers: diffrax's QUICSORT and the library's BAOAB, in double precision.

QUICSORT is the shifted ODE with Runge-Kutta three of Jelincic, Foster and Kidger (2024, arXiv:2405.06464); BAOAB the
splitting of Leimkuhler and Matthews (2013). On a Gaussian potential one step of either is linear, and its stationary
covariance S solves S = A S A' + B B' without any sampling.
"""

from __future__ import annotations

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

from sojourn.ops.langevin import LangevinPoint, baoab_step, baoab_trajectory

pytestmark = pytest.mark.usefixtures("x64")

TAYLOR = (
    0.01  # below it diffrax expands the coefficients of the step, so that it is right to rounding in double
)


class Increments(diffrax.AbstractPath):
    """A path known by its increments (W, H, K) over the steps of a grid."""

    W: jax.Array
    H: jax.Array
    K: jax.Array
    step: float | jax.Array
    t0 = 0.0
    t1 = 4.0

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        n = jnp.round(t0 / self.step).astype(int)
        return diffrax.SpaceTimeTimeLevyArea(dt=jnp.asarray(self.step), W=self.W[n], H=self.H[n], K=self.K[n])


def terms(friction, scale, gradient, path):
    return diffrax.MultiTerm(
        diffrax.UnderdampedLangevinDriftTerm(friction, scale, lambda x, args=None: gradient(x)),
        diffrax.UnderdampedLangevinDiffusionTerm(friction, scale, path),
    )


def quicsort(x, v, W, H, K, *, step, friction, scale=1.0, gradient):
    """One step of diffrax's QUICSORT from vectors ``x`` and ``v``."""
    system = terms(friction, scale, gradient, Increments(W[None], H[None], K[None], step))
    solver, start = diffrax.QUICSORT(TAYLOR), (x, v)
    state = solver.init(system, 0.0, step, start, None)
    return solver.step(system, 0.0, step, start, None, state, False)[0]


def quicsort_by_its_formula(x, v, W, H, K, *, step, friction, scale, gradient):
    """One step as the paper has it; ``a``, ``b``, ``c`` the coefficients at the two nodes and at the end."""
    nodes = 0.5 - np.sqrt(3) / 6, 0.5 + np.sqrt(3) / 6, 1.0
    time = friction * step * np.array(nodes)
    decay = np.exp(-time)
    a = (1 - decay) / friction
    b = (decay + time - 1) / (friction**2 * step)
    third = (1 - np.exp(-friction * step / 3)) / friction
    rho = np.sqrt(2 * friction * scale)
    start, noise = v + rho * (H + 6 * K), rho * (W - 12 * K)
    first = scale * step * gradient(x + a[0] * start + b[0] * noise)
    second = scale * step * gradient(x + a[1] * start + b[1] * noise - third * first)
    return (
        x + a[2] * start + b[2] * noise - 0.5 * (a[1] * first + a[0] * second),
        decay[2] * start
        + a[2] / step * noise
        - 0.5 * (decay[1] * first + decay[0] * second)
        - rho * (H - 6 * K),
    )


# ---------------------------------------------------------------------------------------- steps and their order


def test_one_step_of_quicsort():
    increments = (jnp.array([value]) for value in (0.3, -0.1, 0.02))
    how = {"step": 0.25, "friction": 1.3, "scale": 0.7, "gradient": lambda x: x**3 - x}
    x, v = jax.jit(partial(quicsort, **how))(jnp.array([0.4]), jnp.array([-0.2]), *increments)
    np.testing.assert_allclose((x[0], v[0]), (0.3786753408396627, 0.2899174912031729), atol=1e-13)
    formula = quicsort_by_its_formula(0.4, -0.2, 0.3, -0.1, 0.02, **how)
    np.testing.assert_allclose((x[0], v[0]), formula, atol=1e-13)


def joined(first, second):
    """(W, H, K) over two adjacent intervals of one length, from those over each."""
    (W1, H1, K1), (W2, H2, K2) = first, second
    return W1 + W2, (H1 + H2) / 2 + (W1 - W2) / 4, (K1 + K2) / 4 + (H1 - H2) / 8


def coarser(increments):
    return joined([part[::2] for part in increments], [part[1::2] for part in increments])


@pytest.fixture(scope="module")
def grids():
    """(W, H, K) of 400 paths on [0, 4] by number of steps, from 4096 down to 16 by joining."""
    rng, n = np.random.default_rng(0), 4096
    variance = 4.0 / n * np.array([1.0, 1 / 12, 1 / 720])
    increments = tuple(rng.normal(size=(n, 400)) * np.sqrt(s) for s in variance)
    result = {n: increments}
    while n > 16:
        n, increments = n // 2, coarser(increments)
        result[n] = increments
    return result


def slope(errors):
    return -np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0]


def test_quicsort_is_of_strong_order_three(grids):
    """On the double well (x^2 - 1)^2, whose gradient is smooth but not Lipschitz; 2.98 for these sizes of step.

    The fitted slope of another 400 paths differs by a few hundredths; a wrong sign of H or K gives 1 or 2.
    """

    @jax.jit
    def end(W, H, K, num_steps):
        step = 4.0 / num_steps
        system = terms(0.8, 0.2, lambda x: 4 * x * (x**2 - 1), Increments(W, H, K, step))
        solver, start = diffrax.QUICSORT(TAYLOR), (jnp.zeros(400), jnp.zeros(400))
        state = solver.init(system, 0.0, step, start, None)

        def advance(n, carry):
            y, state = carry
            y, _, _, state, _ = solver.step(system, n * step, (n + 1) * step, y, None, state, False)
            return y, state

        return jax.lax.fori_loop(0, num_steps, advance, (start, state))[0][0]

    sizes = (16, 32, 64, 128, 256, 512)
    padded = {n: [np.pad(part, ((0, 4096 - n), (0, 0))) for part in grids[n]] for n in (*sizes, 4096)}
    ends = {n: np.asarray(end(*increments, n)) for n, increments in padded.items()}
    errors = {n: np.sqrt(np.mean((ends[n] - ends[4096]) ** 2)) for n in sizes}
    assert abs(slope(errors) - 2.98) < 0.15, errors
    assert errors[512] < 1e-6


def test_baoab_energy_error_is_of_order_two_without_friction():
    """Then it is the leapfrog: the error at a fixed time falls by four for each half of the step."""

    def double_well(x):
        return jnp.sum((x**2 - 1) ** 2), 4 * x * (x**2 - 1)

    x = jnp.array([0.3, 1.7])
    start = LangevinPoint(x, x[::-1], *double_well(x), jnp.array(0.0))
    follow = jax.jit(lambda n: baoab_trajectory(jax.random.key(0), double_well, start, 2.0 / n, 0.0, n))
    errors = {}
    for n in (64, 128, 256, 512):
        end = follow(n)
        energy = (
            end.potential + jnp.sum(end.velocity**2) / 2 - start.potential - jnp.sum(start.velocity**2) / 2
        )
        assert abs(end.energy_error - energy) < 1e-12  # nothing but kicks and drifts: the sum telescopes
        errors[n] = abs(float(energy))
    assert abs(slope(errors) - 2.0) < 0.1, errors


def test_baoab_energy_error_is_the_metropolis_ratio_of_the_step():
    """Its exponential is pi(start) p(end | start) / (pi(end) p(start reversed | end reversed)).

    In one dimension a step from (x, v) is a Gaussian draw of the velocity between the drifts, so that both densities
    are known once the draw is: v is read backwards with its sign turned.
    """

    def quartic(x):
        return jnp.sum(x**4), 4 * x**3

    x, v, step, friction = jnp.array([0.6]), jnp.array([-0.9]), 0.3, 0.7
    start = LangevinPoint(x, v, *quartic(x), jnp.array(0.0))
    end = baoab_step(quartic, start, step, friction, jnp.array([0.4]))
    decay = np.exp(-friction * step)

    def log_density(before, after):
        return -((after - decay * before) ** 2) / (2 * (1 - decay**2))

    before = v - step / 2 * start.gradient
    after = end.velocity + step / 2 * end.gradient
    forward, backward = log_density(before, after), log_density(-after, -before)
    change = end.potential + end.velocity**2 / 2 - start.potential - v**2 / 2
    np.testing.assert_allclose(end.energy_error, (change + forward - backward)[0], atol=1e-13)
    assert abs(end.energy_error) > 0.01


# ------------------------------------------------------------------------------------------------ stationary laws


def stationary(step, variances):
    """Stationary covariance of (x, v) under a linear ``step(x, v, noise)`` from and to vectors of length one."""
    basis = jnp.eye(2 + len(variances))
    columns = jax.vmap(lambda e: jnp.concatenate(step(e[:1], e[1:2], e[2:])))(basis)
    A, B = np.split(np.asarray(columns).T, [2], axis=1)
    assert np.abs(np.linalg.eigvals(A)).max() < 1
    return solve_discrete_lyapunov(A, B @ np.diag(variances) @ B.T)


@jax.jit
def linear_quicsort(x, v, noise, step, friction):
    W, H, K = noise[:, None]
    return quicsort(x, v, W, H, K, step=step, friction=friction, gradient=lambda x: x)


@jax.jit
def linear_baoab(x, v, noise, step, friction):
    def potential_and_grad(x):
        return jnp.sum(x**2) / 2, x

    start = LangevinPoint(x, v, *potential_and_grad(x), jnp.array(0.0))
    end = baoab_step(potential_and_grad, start, step, friction, noise)
    return end.position, end.velocity


BIAS = {
    (1.0, 0.25): -2.8e-5,
    (1.0, 0.5): -4.98e-4,
    (1.0, 0.75): -2.35e-3,
    (1.0, 1.0): -6.48e-3,
    (1.0, 1.5): -2.16e-2,
    (1.0, 2.0): -3.65e-2,
    (0.5, 0.5): -2.93e-3,
    (0.5, 1.0): -2.60e-2,
    (2.0, 0.5): 1.79e-3,
    (2.0, 1.0): 1.06e-2,
}


@pytest.mark.parametrize(("friction", "step"), BIAS)
def test_stationary_variance_of_quicsort(friction, step):
    """Variance less one on the standard normal; the table has two or three digits, hence 1 % or half a digit."""

    covariance = stationary(
        lambda *at: linear_quicsort(*at, step, friction), step * np.array([1.0, 1 / 12, 1 / 720])
    )
    expected = BIAS[friction, step]
    half_digit = 5e-7 if abs(expected) < 1e-4 else 0.0
    assert abs(covariance[0, 0] - 1 - expected) < 0.01 * abs(expected) + half_digit


@pytest.mark.parametrize("friction", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("step", [0.125, 0.5, 1.0, 1.5, 1.9])
def test_stationary_variance_of_baoab_is_exact(friction, step):
    covariance = stationary(lambda *at: linear_baoab(*at, step, friction), np.ones(1))
    assert abs(covariance[0, 0] - 1.0) < 1e-12
    assert abs(covariance[0, 1]) < 1e-12
    # That of the velocity is not: 1 - h^2 / 4.
    np.testing.assert_allclose(covariance[1, 1], 1 - step**2 / 4, atol=1e-12)


# --------------------------------------------------------------------------------------------- Brownian integrals


def test_laws_of_the_brownian_integrals_survive_joining(grids):
    """Variances h, h/12 and h/720, no covariance: within 5 standard errors for every size of step."""
    for n, increments in grids.items():
        scaled = np.stack([part.ravel() for part in increments]) / np.sqrt(
            4.0 / n / np.array([[1], [12], [720]])
        )
        error = 1 / np.sqrt(scaled.shape[1])
        covariance = scaled @ scaled.T * error**2
        assert np.abs(covariance - np.eye(3)).max() < 5 * np.sqrt(2) * error, n


@jax.jit
@jax.vmap
def queried(key, start, end):
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 2.0**-12, (), key, diffrax.SpaceTimeTimeLevyArea)
    area = path.evaluate(start, end, use_levy=True)
    return jnp.stack([area.W, area.H, area.K])


QUERIES = 15_000  # in both tests, so that they share one compilation


def test_joining_holds_on_one_virtual_brownian_tree():
    """Queries at [s, s + h], [s + h, s + 2 h] and [s, s + 2 h] agree to rounding, on dyadic intervals and others."""
    rng, trees = np.random.default_rng(1), QUERIES // 3
    step = np.where(np.arange(trees) % 2, rng.uniform(0.01, 0.3, trees), 2.0 ** -rng.integers(2, 8, trees))
    start = np.where(np.arange(trees) % 2, rng.uniform(0.0, 0.4, trees), step)
    start[:6], step[:6] = 0.0, 0.5
    keys = jnp.tile(jax.random.split(jax.random.key(1), trees), 3)
    begin, end = (
        np.stack([start, start + step, start]),
        np.stack([start + step, start + 2 * step, start + 2 * step]),
    )
    areas = np.asarray(queried(keys, begin.ravel(), end.ravel())).reshape(3, trees, 3)
    first, second, whole = (area.T for area in areas)
    np.testing.assert_allclose(np.stack(joined(first, second)), whole, atol=1e-6)
    assert np.abs(whole[2]).max() > 1e-2


def test_laws_of_the_brownian_integrals_on_a_virtual_brownian_tree():
    """One interval that is not dyadic, of many trees; 5 standard errors."""
    start, end = np.full(QUERIES, 0.3), np.full(QUERIES, 0.7)
    drawn = np.asarray(queried(jax.random.split(jax.random.key(2), QUERIES), start, end)).T
    scaled = drawn / np.sqrt(0.4 / np.array([[1], [12], [720]]))
    error = 1 / np.sqrt(scaled.shape[1])
    assert np.abs(scaled @ scaled.T * error**2 - np.eye(3)).max() < 5 * np.sqrt(2) * error
