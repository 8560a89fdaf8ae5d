r"""Fractional Brownian motion: exact laws, exact paths, and Markov approximations that run inside a scan.

With :math:`\alpha = H + 1/2`, :math:`0 < H < 1` the Hurst exponent, there are two kinds:

.. math::
    \text{I:}\quad B(t) \propto \int_{-\infty}^0 \bigl[(t - s)^{\alpha - 1} - (-s)^{\alpha - 1}\bigr]\,dW_s
    + \int_0^t (t - s)^{\alpha - 1}\,dW_s, \qquad
    \text{II:}\quad B(t) \propto \int_0^t (t - s)^{\alpha - 1}\,dW_s .

Kind I (Mandelbrot and Van Ness 1968, *SIAM Review* 10:422) has stationary increments. Kind II
(Riemann-Liouville) starts at time zero and knows no past. Both are scaled here so that
:math:`\operatorname{Var} B(t) = t^{2H}`, at every time and for every ``hurst``: a model multiplies by its
own scale.

Exact: :func:`covariance`, :func:`noise_autocovariance`, :func:`sample_paths`.

For models that move through time step by step, :func:`hybrid_scheme`: the last step of the kernel is exact,
all before it is a sum of a few exponentials, so that a handful of numbers remembers the whole past. The idea
of treating the singular end of the kernel by itself is that of Bennedsen, Lunde and Pakkanen (2017, *Finance
Stoch.* 21:931); the sum of exponentials is the Markov lift of Carmona and Coutin (1998, *Electron. Commun.
Probab.* 3:95) and Harms and Stefanovits (2019, *Stoch. Process. Appl.* 129:1185). What kind I has besides
kind II, the past before time zero, is a smooth process, and a few fixed functions of time hold it:
:func:`past_loadings`.

For comparison, the approximation by Ornstein-Uhlenbeck processes alone, as published (Daems, Opper,
Crevecoeur and Birdal 2024, ICLR): :func:`markov_weights` and what goes with it. It is much the worse of the
two, most of all for rough paths, as :func:`markov_error` tells.

All is differentiable in ``hurst``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammainc, gammaincc, gammaln
from jax.typing import ArrayLike

from sojourn._arguments import numbers, whole_number
from sojourn.ops import gaussian_path

__all__ = [
    "HybridScheme",
    "covariance",
    "hybrid_covariance",
    "hybrid_scheme",
    "markov_covariance",
    "markov_error",
    "markov_weights",
    "noise_autocovariance",
    "past_loadings",
    "published_rates",
    "sample_paths",
    "unnormalised_variance",
]

Kind = Literal["I", "II"]


class HybridScheme(NamedTuple):
    """A step of fractional Brownian motion on a regular grid, made of ``K`` exponentials.

    Attributes:
        decay: ``(K,)``, what a step leaves of each memory.
        gain: ``(K,)``, what a step adds to each memory, for one unit of its noise.
        weights: ``(K,)``, of the memories in the value.
        first: loading of the value on the noise of the step that leads to it.
        residual: loading on the second noise of that step: what the increment of the Brownian motion does not
            tell of the first cell of the kernel. Negative for smooth paths, zero at 1/2.
        loadings: ``(num_steps, M)``, of the values on the past before time zero, ``M`` standard normal
        numbers;
            ``M`` is zero for kind II.
    """

    decay: Array
    gain: Array
    weights: Array
    first: Array
    residual: Array
    loadings: Array

    def step(self, memory: Array, noise: Array) -> tuple[Array, Array]:
        """The next memory and the part of the next value that comes from after time zero.

        Args:
            memory: ``(K,)``; zeros at the start. In units of the square root of a step.
            noise: ``(2,)``, standard normal: the increment of the Brownian motion, and the rest of the cell.

        Returns:
            Memory ``(K,)`` and the value, a scalar. For kind I, the value at step ``n`` (counted from 0) is
            complete with ``loadings[n] @ past`` added, ``past`` standard normal ``(M,)``, drawn once.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> scheme = hybrid_scheme(0.3, 0.1, 50)
            >>> memory, path = jax.lax.scan(scheme.step, jnp.zeros(5), jnp.ones((50, 2)))
            >>> memory.shape, path.shape
            ((5,), (50,))
        """
        value = self.first * noise[0] + (self.weights * self.decay) @ memory + self.residual * noise[1]
        return self.decay * memory + self.gain * noise[0], value


def hybrid_scheme(
    hurst: ArrayLike,
    dt: ArrayLike,
    num_steps: int,
    *,
    num_terms: int = 5,
    kind: Kind = "II",
    rates: ArrayLike | None = None,
) -> HybridScheme:
    r"""Fractional Brownian motion at ``dt, 2 dt, ..., num_steps dt`` as a recursion with ``num_terms`` memories.

    In units of a step, the value at ``n`` loads on the noise of the cell that ended ``l`` steps before it by
    :math:`\kappa_l = \sqrt{2H}\,[(l + 1)^\alpha - l^\alpha] / \alpha`. The cell ``l = 0`` is kept as it is,
    with its part that the increment of the Brownian motion does not determine, of standard deviation
    :math:`|1/2 - H| / \alpha`. The others are fitted by exponentials, :math:`\kappa_l \approx \sum_k w_k g_k
    e^{-\gamma_k l}` with :math:`g_k = (1 - e^{-\gamma_k}) / \gamma_k`, by least squares over all pairs of a
    value and a cell. The design of that fit does not depend on ``hurst``: its QR decomposition is made once,
    in double precision, so that a gradient costs two products of a matrix and a vector.

    Largest error of the covariance, in units of the variance at the end, for kind II (kind I has less), with
    the default rates:

    ========= ===== ====== ====== ====== ====== ====== ====== ======
    num_steps terms H=0.05    0.1    0.2    0.3    0.5    0.7    0.9
    ========= ===== ====== ====== ====== ====== ====== ====== ======
    200       5     0.0053 0.0046 0.0018 0.0007 0      0.0009 0.0017
    200       8     0.0050 0.0043 0.0015 0.0003 0      0.0000 0.0000
    1000      5     0.0062 0.0064 0.0058 0.0035 0      0.0010 0.0014
    1000      8     0.0043 0.0031 0.0008 0.0001 0      0.0000 0.0001
    ========= ===== ====== ====== ====== ====== ====== ====== ======

    What more terms leave is the shape of the cells within a step. It makes the mean variance of an increment
    0 to 2.5 percent too large (0 at 1/2, 1.3 at 0.1, 2.5 at 0.9). Single precision adds 4e-6 at most, up to
    8 terms.

    Args:
        hurst: exponent in (0, 1), scalar; may be traced.
        dt: length of a step; may be traced. It enters as the factor ``dt**hurst`` alone.
        num_steps: how many steps, the horizon of the fit; static.
        num_terms: how many exponentials; static.
        kind: "I" or "II".
        rates: ``(num_terms,)``, rates of the exponentials per step (not per unit of time), distinct and not
            negative; concrete. By default zero and a geometric sequence from ``0.6 / num_steps`` to 0.7:
            with the rate zero, ``hurst = 1/2`` is Brownian motion. Given, they decide ``num_terms``, and
            nothing checks that they reach far enough.

    Raises:
        ValueError: ``hurst`` outside (0, 1) or ``dt`` not positive, where their values are known; fewer than
        two
            terms, or fewer than so long a horizon needs; a ``kind`` that is neither.

    Example:
        >>> scheme = hybrid_scheme(0.5, 0.04, 100)  # Brownian motion: every increment has weight one
        >>> print(round(float(scheme.first), 5), float(scheme.residual), scheme.loadings.shape)
        0.2 0.0 (100, 0)
    """
    hurst, dt = _checked_hurst(hurst), _checked_positive(dt, "dt", "the length of a step")
    _check_kind(kind)
    num_steps = int(num_steps)
    per_step = _checked_rates(rates, num_terms, num_steps)
    decay, gain, triangular, projection, scale = _lag_design(per_step, max(num_steps, 2 * len(per_step)))
    dtype = jnp.result_type(float, hurst, dt)
    hurst, dt = hurst.astype(dtype), dt.astype(dtype)
    alpha = hurst + 0.5
    lag = np.arange(1.0, projection.shape[1] + 1)
    kernel = jnp.exp(alpha * np.log(lag).astype(dtype)) * jnp.expm1(alpha * np.log1p(1 / lag).astype(dtype))
    weights = solve_triangular(triangular.astype(dtype), projection.astype(dtype) @ kernel) / scale.astype(
        dtype
    )
    unit = dt**hurst / alpha
    loadings = jnp.zeros((num_steps, 0), dtype)
    if kind == "I":
        unit = unit * _type_two_share(hurst)
        loadings = past_loadings(hurst, np.arange(1, num_steps + 1) / num_steps) * (num_steps * dt) ** hurst
    root = jnp.sqrt(2 * hurst) * unit
    return HybridScheme(
        decay=jnp.asarray(decay, dtype),
        gain=jnp.asarray(gain, dtype),
        weights=root * weights,
        first=root,
        residual=(0.5 - hurst) * unit,
        loadings=loadings,
    )


def hybrid_covariance(scheme: HybridScheme, num_steps: int) -> Array:
    """``(num_steps, num_steps)``: the covariance of the values that a scheme makes, the past included.

    Args:
        scheme: as :func:`hybrid_scheme` made it.
        num_steps: how many steps from the start, at most those of the scheme.

    Raises:
        ValueError: more steps than the scheme was made for.

    Example:
        >>> made = hybrid_covariance(hybrid_scheme(0.7, 0.5, 20), 20)
        >>> print(f"{made[0, 0]:.3f} {made[1, 1]:.2f} {made[19, 19]:.1f}")  # 0.5^1.4, 1^1.4, 10^1.4
        0.379 1.00 25.1
    """
    if num_steps > scheme.loadings.shape[0]:
        raise ValueError(
            f"`num_steps` is {num_steps}, and the scheme was made for {scheme.loadings.shape[0]}: make it longer."
        )
    lag = np.arange(num_steps)
    kernel = (scheme.decay ** lag[:, None]) @ (scheme.weights * scheme.gain)
    kernel = kernel.at[0].set(scheme.first)
    behind = lag[:, None] - lag
    lower = jnp.where(behind >= 0, kernel[np.maximum(behind, 0)], 0.0)
    past = scheme.loadings[:num_steps]
    return lower @ lower.T + past @ past.T + scheme.residual**2 * jnp.eye(num_steps, dtype=lower.dtype)


def covariance(times: ArrayLike, hurst: ArrayLike, kind: Kind = "I", other: ArrayLike | None = None) -> Array:
    r"""Covariance of fractional Brownian motion, exact to rounding.

    Kind I: :math:`\frac12 (s^{2H} + t^{2H} - |t - s|^{2H})`. Kind II, for :math:`s \le t`:

    .. math::
        2H \int_0^s v^{\alpha - 1} (v + t - s)^{\alpha - 1}\,dv, \qquad v = \frac{s}{1 + e^u},

    by the trapezoid rule in ``u``. The integrand is analytic for :math:`|\operatorname{Im} u| < \pi`
    whatever the times, so that the rule is exact to rounding at one step for all of them, however close.

    Args:
        times: ``(N,)``, not negative, in any order.
        hurst: exponent in (0, 1), scalar.
        kind: "I" or "II".
        other: ``(M,)``, other times; by default the same.

    Returns:
        ``(N, N)``, or ``(N, M)`` between ``times`` and ``other``.

    Raises:
        ValueError: ``hurst`` outside (0, 1), times that are negative or no vector, a ``kind`` that is
        neither.

    Example:
        >>> import jax.numpy as jnp
        >>> print(covariance(jnp.array([1.0, 2.0]), 0.5, "II"))
        [[1. 1.]
         [1. 2.]]
    """
    hurst, times = _checked_hurst(hurst), _checked_times(times, "times")
    _check_kind(kind)
    dtype = jnp.result_type(hurst, times)
    if other is None:
        rows, columns = np.triu_indices(times.shape[0])  # half the work
        place = np.zeros((times.shape[0],) * 2, int)
        place[rows, columns] = place[columns, rows] = np.arange(len(rows))
        first, second = times[rows], times[columns]
    else:
        other = _checked_times(other, "other")
        dtype = jnp.result_type(dtype, other)
        first, second = jnp.broadcast_arrays(times[:, None], other)
    first, second, hurst = first.astype(dtype), second.astype(dtype), hurst.astype(dtype)
    if kind == "I":
        values = (
            _power(first, 2 * hurst) + _power(second, 2 * hurst) - _power(jnp.abs(first - second), 2 * hurst)
        ) / 2
    else:
        values = _type_two_covariance(jnp.minimum(first, second), jnp.maximum(first, second), hurst)
    return values[place] if other is None else values


_LOGIT = np.arange(-24.0, 80.5, 0.6)


@jax.jit  # or every call outside jit would compile its scan anew
def _type_two_covariance(early: Array, late: Array, hurst: Array) -> Array:
    alpha, spacing = hurst + 0.5, float(_LOGIT[1] - _LOGIT[0])
    positive, apart = early > 0, late > early
    scale = jnp.where(positive, early, 1.0)
    gap = jnp.where(positive & apart, late - early, 1.0) / scale
    # Both tails are geometric; beyond the last node, whatever is close to s = t is still far from it.
    log_weight = np.log(spacing) - np.logaddexp(0.0, -_LOGIT)
    log_weight[0] -= np.log(-np.expm1(-spacing))
    weight = jnp.asarray(log_weight, gap.dtype).at[-1].add(-jnp.log(-jnp.expm1(-alpha * spacing)))
    log_share = jnp.asarray(-np.logaddexp(0.0, _LOGIT), gap.dtype)

    @jax.checkpoint  # a gradient would keep every node's array
    def add(total, node):
        weight, log_share = node
        inner = (alpha - 1) * jnp.log(jnp.exp(log_share) + gap)
        return total + jnp.exp(weight + alpha * log_share + inner), None

    integral, _ = jax.lax.scan(add, jnp.zeros_like(gap), (weight, log_share))
    return _power(early, 2 * hurst) * jnp.where(apart, 2 * hurst * integral, 1.0)


def noise_autocovariance(hurst: ArrayLike, num_lags: int) -> Array:
    r"""Autocovariance of fractional Gaussian noise: the increments of kind I over steps of length one.

    :math:`\frac12 (|k + 1|^{2H} - 2 k^{2H} + |k - 1|^{2H})`, in a form that loses no digits at large ``k``.
    For a step ``dt``, multiply by ``dt**(2 hurst)``.

    Args:
        hurst: exponent in (0, 1), scalar.
        num_lags: how many, from lag zero; static.

    Returns:
        ``(num_lags,)``.

    Raises:
        ValueError: ``hurst`` outside (0, 1).

    Example:
        >>> print(*(f"{r:.4f}" for r in noise_autocovariance(0.75, 4)))
        1.0000 0.4142 0.2696 0.2181
    """
    hurst = _checked_hurst(hurst)
    power = 2 * hurst
    lag = np.arange(2.0, max(num_lags, 3))
    # (1 + x)^p + (1 - x)^p - 2 = 2 [expm1(p/2 log(1 - x^2)) cosh(p atanh x) + cosh(p atanh x) - 1]
    slope = power * jnp.asarray(np.arctanh(1 / lag), hurst.dtype)
    bend = jnp.expm1(hurst * jnp.asarray(np.log1p(-1 / lag**2), hurst.dtype))
    tail = lag**power * (bend * jnp.cosh(slope) + 2 * jnp.sinh(slope / 2) ** 2)
    start = jnp.stack([jnp.ones_like(hurst), jnp.expm1((power - 1) * np.log(2.0))])
    return jnp.concatenate([start, tail])[:num_lags]


def sample_paths(
    key: Array, hurst: ArrayLike, num_steps: int, dt: ArrayLike = 1.0, sample_shape: tuple[int, ...] = ()
) -> Array:
    """Paths of kind I at ``dt, 2 dt, ..., num_steps dt``, exact in law: circulant embedding of the increments.

    Args:
        key: random key.
        hurst: exponent in (0, 1), scalar.
        num_steps: how many steps; static.
        dt: length of a step.
        sample_shape: how many paths.

    Returns:
        ``(*sample_shape, num_steps)``.

    Raises:
        ValueError: ``hurst`` outside (0, 1), ``dt`` not positive, no step at all.

    Example:
        >>> import jax
        >>> paths = sample_paths(jax.random.key(0), 0.7, 64, 1 / 64, (500,))
        >>> paths.shape, bool(abs(paths[:, -1].var() - 1) < 0.2)
        ((500, 64), True)
    """
    hurst, dt = _checked_hurst(hurst), _checked_positive(dt, "dt", "the length of a step")
    if num_steps < 1:
        raise ValueError(f"`num_steps` is {num_steps}; a path needs one step at least.")
    increments = gaussian_path.sample_paths(key, noise_autocovariance(hurst, max(num_steps, 2)), sample_shape)
    return dt**hurst * jnp.cumsum(increments[..., :num_steps], -1)


def published_rates(num_terms: int = 5, max_rate: float = 20.0) -> np.ndarray:
    """``(num_terms,)``: rates from ``1 / max_rate`` to ``max_rate``, geometric (Daems et al. 2024).

    Raises:
        ValueError: fewer than two terms, or ``max_rate`` not above one.

    Example:
        >>> print(published_rates().round(3))
        [ 0.05   0.224  1.     4.472 20.   ]
    """
    if num_terms < 2 or not max_rate > 1:
        raise ValueError(
            f"`num_terms` is {num_terms} and `max_rate` {max_rate}; the grid needs two rates or more, and a largest "
            "above 1."
        )
    return np.geomspace(1 / max_rate, max_rate, num_terms)


def markov_weights(hurst: ArrayLike, rates: ArrayLike, horizon: ArrayLike, kind: Kind = "II") -> Array:
    r"""Weights of Ornstein-Uhlenbeck processes of one Brownian motion, whose sum is nearest to fractional motion.

    They minimise :math:`\int_0^T E [B(t) - \sum_k w_k (Y_k(t) - Y_k(0))]^2\,dt` with :math:`dY_k = -\gamma_k
    Y_k\,dt + dW`, ``Y`` zero at the start (kind II) or stationary (kind I), as Daems et al. (2024) do; here
    the sum is near the motion of unit variance at time one. :func:`hybrid_scheme` is the better
    approximation.

    Args:
        hurst: exponent in (0, 1), scalar.
        rates: ``(K,)``, positive, such as :func:`published_rates`.
        horizon: T, in the same unit of time.
        kind: "I" or "II".

    Returns:
        ``(K,)``.

    Raises:
        ValueError: ``hurst`` outside (0, 1), rates or horizon not positive, a ``kind`` that is neither; more
        than
            seven rates in single precision, in which their normal equations cannot be solved.

    Example:
        >>> print(*(f"{weight:.2f}" for weight in markov_weights(0.5, published_rates(3), 1.0)))  # Brownian motion
        1.08 -0.08 0.01
    """
    normal, target, _ = _markov_equations(hurst, rates, horizon, kind)
    return _markov_solution(normal, target)


def markov_error(
    hurst: ArrayLike,
    rates: ArrayLike,
    horizon: ArrayLike,
    kind: Kind = "II",
    weights: ArrayLike | None = None,
) -> Array:
    """Relative error of that approximation: root of the integrals of E(error^2) over that of E(B^2).

    Args:
        hurst, rates, horizon, kind: as for :func:`markov_weights`.
        weights: ``(K,)``, to be judged; by default the best.

    Raises:
        ValueError: as :func:`markov_weights`.

    Example:
        >>> print(f"{markov_error(0.1, published_rates(), 1.0):.2f}")  # rough paths have no such sum
        0.48
    """
    normal, target, total = _markov_equations(hurst, rates, horizon, kind)
    weights = _markov_solution(normal, target) if weights is None else jnp.asarray(weights)
    return jnp.sqrt(jnp.maximum(weights @ normal @ weights - 2 * target @ weights + total, 0.0) / total)


def markov_covariance(times: ArrayLike, rates: ArrayLike, weights: ArrayLike, kind: Kind = "II") -> Array:
    """``(N, N)``: the covariance of the weighted sum of Ornstein-Uhlenbeck processes at ``times`` ``(N,)``.

    Args:
        times: ``(N,)``, not negative.
        rates, weights: ``(K,)``, as for :func:`markov_weights`.
        kind: "I", the processes stationary and their values at time zero subtracted, or "II".

    Raises:
        ValueError: times that are negative, a ``kind`` that is neither.

    Example:
        >>> import jax.numpy as jnp
        >>> made = markov_covariance(jnp.ones(1), published_rates(), markov_weights(0.7, published_rates(), 1.0))
        >>> bool(abs(made[0, 0] - 1) < 0.01)
        True
    """
    times = _checked_times(times, "times")
    _check_kind(kind)
    rates, weights = jnp.asarray(rates), jnp.asarray(weights)
    pair = rates[:, None] + rates
    first, second = times[:, None, None, None], times[None, :, None, None]
    early, gap = jnp.minimum(first, second), jnp.abs(first - second)
    later = jnp.where(first >= second, rates[:, None], rates)  # the rate of the process seen later
    if kind == "II":
        each = -jnp.exp(-later * gap) * jnp.expm1(-pair * early)
    else:
        # E (Y_i(s) - Y_i(0)) (Y_j(t) - Y_j(0)), less what cancels
        each = jnp.expm1(-later * gap) - jnp.expm1(-rates[:, None] * first) - jnp.expm1(-rates * second)
    return jnp.einsum("stij,i,j->st", each / pair, weights, weights)


def _markov_equations(
    hurst: ArrayLike, rates: ArrayLike, horizon: ArrayLike, kind: Kind
) -> tuple[Array, Array, Array]:
    """Normal matrix, right-hand side and the integral of the variance: of unit variance at time one."""
    hurst = _checked_hurst(hurst)
    _check_kind(kind)
    rates = _checked_positive(rates, "rates", "every rate")
    horizon = _checked_positive(horizon, "horizon", "the length of the record")
    dtype = jnp.result_type(hurst, rates, horizon)
    hurst, rates, horizon = hurst.astype(dtype), rates.astype(dtype), horizon.astype(dtype)
    if rates.shape[0] > 7 and dtype == jnp.float32:
        raise ValueError(
            f"`rates` has {rates.shape[0]} values, and single precision solves for 7 at most: switch double precision on "
            "(jax.enable_x64, or numpyro.enable_x64)."
        )
    alpha, reach = hurst + 0.5, rates * horizon
    pair = rates[:, None] + rates
    power = jnp.exp(-alpha * jnp.log(rates))  # rate^-alpha
    if kind == "II":
        normal = (horizon + jnp.expm1(-pair * horizon) / pair) / pair
        inner = gammainc(alpha, reach)
        last = jnp.exp(alpha * jnp.log(reach) - reach - gammaln(alpha + 1))
        target = power * (horizon * inner - alpha / rates * (inner - last))
        root = jnp.sqrt(2 * hurst) * jnp.exp(gammaln(alpha))
    else:
        each = jnp.expm1(-reach) / rates
        normal = (2 * horizon + each[:, None] + each) / pair
        target = (
            2 * horizon * power
            - horizon**alpha / rates * jnp.exp(-gammaln(alpha + 1))
            + (jnp.exp(-reach) - _scaled_gammaincc(alpha, reach)) * power / rates
        )
        root = 1 / jnp.sqrt(unnormalised_variance(hurst))
    return normal, root * target, horizon ** (2 * hurst + 1) / (2 * hurst + 1)


def _markov_solution(normal: Array, target: Array) -> Array:
    scale = jnp.sqrt(jnp.diagonal(normal))
    return jnp.linalg.solve(normal / (scale[:, None] * scale), target / scale) / scale


@jax.jit
def _scaled_gammaincc(a: Array, z: Array) -> Array:
    """e^z Q(a, z), which does not overflow: Legendre's continued fraction from z = 10 on."""
    near, far = jnp.minimum(z, 10.0), jnp.maximum(z, 10.0)

    def one_level(fraction, level):
        return level * (level - a) / (far + 2 * level + 1 - a - fraction), None

    levels = jnp.asarray(np.arange(40.0, 0.0, -1.0), z.dtype)
    fraction, _ = jax.lax.scan(one_level, jnp.zeros_like(far), levels)
    tail = jnp.exp(a * jnp.log(far) - gammaln(a)) / (far + 1 - a - fraction)
    return jnp.where(z < 10.0, gammaincc(a, near) * jnp.exp(near), tail)


def _power(base: Array, exponent: Array) -> Array:
    """``base ** exponent`` for a base not negative, with derivatives zero where it is zero."""
    positive = base > 0
    return jnp.where(positive, jnp.exp(exponent * jnp.log(jnp.where(positive, base, 1.0))), 0.0)


def _checked_times(times: ArrayLike, name: str) -> Array:
    if np.ndim(times) != 1:
        raise ValueError(f"`{name}` has shape {np.shape(times)}; it must be a vector of times (N,).")
    if not isinstance(times, jax.core.Tracer):
        values = np.asarray(times, float)
        wrong = ~(np.isfinite(values) & (values >= 0))
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ValueError(
                f"`{name}[{place}]` is {values[place]}; times must be finite and not negative (the motion starts at 0)."
            )
    times = jnp.asarray(times)
    return times.astype(jnp.result_type(float, times))


def unnormalised_variance(hurst: ArrayLike) -> Array:
    r"""Variance at time one of kind I before it is scaled, with :math:`1 / \Gamma(\alpha)` before its integrals.

    .. math::
        V_H = \frac{\Gamma(2 - 2H) \cos \pi H}{\pi H (1 - 2H)} = \frac{1}{\Gamma(2H + 1) \sin \pi H},

    in a form that is regular at ``hurst = 1/2``. Kind II has :math:`1 / (2H\,\Gamma(\alpha)^2)` in its place.

    Args:
        hurst: exponent in (0, 1), any shape.

    Raises:
        ValueError: ``hurst`` outside (0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> print(unnormalised_variance(jnp.array([0.1, 0.5, 0.9])).round(4))
        [3.5245 1.     1.9303]
    """
    hurst = _checked_hurst(hurst, scalar=False)
    return jnp.exp(gammaln(2 - 2 * hurst)) * jnp.sinc(hurst - 0.5) / (2 * hurst)


def _type_two_share(hurst: Array) -> Array:
    """Standard deviation at time one of the part of kind I that comes from after time zero."""
    return jnp.exp(-gammaln(hurst + 0.5)) / jnp.sqrt(2 * hurst * unnormalised_variance(hurst))


def past_loadings(hurst: ArrayLike, times: ArrayLike, num_terms: int = 4) -> Array:
    r"""Kind I less kind II: the past before time zero, as ``num_terms`` functions of time.

    .. math::
        P(t) = \int_0^\infty \bigl[(t + x)^{\alpha - 1} - x^{\alpha - 1}\bigr]\,dW_x

    is analytic for :math:`t > 0`. With :math:`x = e^y` the trapezoid rule in ``y`` gives its covariance as a
    product of features of the times, to rounding: the integrand is analytic in a strip of half-width
    :math:`\pi`, and its two tails are geometric series. The loadings are the features' projections on those
    of ``num_terms`` times, which crowd at zero (the Nyström approximation, computed by a QR decomposition
    rather than from the covariance). Four leave an error of the covariance of 2e-4 at most, in units of the
    variance at the horizon, from 1/2000 of the horizon on; before that, up to 6e-3 for rough paths.

    Args:
        hurst: exponent in (0, 1), scalar.
        times: ``(N,)``, not negative; the last is the horizon.
        num_terms: how many functions.

    Returns:
        ``(N, num_terms)``: ``loadings @ past`` with ``past`` standard normal, scaled as kind I of unit
        variance at time one. It changes smoothly with ``hurst``, through zero at 1/2.

    Raises:
        ValueError: ``hurst`` outside (0, 1), times that are negative or no vector.

    Example:
        >>> import jax.numpy as jnp
        >>> loadings = past_loadings(0.3, jnp.arange(1, 101) / 100)
        >>> loadings.shape, f"{(loadings[-1] ** 2).sum():.3f}"  # share of the past in the variance at the end
        ((100, 4), '0.111')
    """
    hurst, times = _checked_hurst(hurst), _checked_times(times, "times")
    dtype = jnp.result_type(hurst, times)
    hurst, times = hurst.astype(dtype), times.astype(dtype)
    horizon = times.max()
    nodes = (np.arange(1, num_terms + 1) / num_terms) ** 5
    basis, triangular = jnp.linalg.qr(_past_features(hurst, jnp.asarray(nodes, dtype)).T)
    basis = basis * jnp.sign(jnp.diagonal(triangular))  # or a column's sign may jump where hurst changes
    scale = jnp.exp(-gammaln(hurst + 0.5)) / jnp.sqrt(unnormalised_variance(hurst))
    return (hurst - 0.5) * scale * horizon**hurst * (_past_features(hurst, times / horizon) @ basis)


_PAST_LOG = np.arange(-60.0, 30.25, 0.5)
"""Logarithms of how long before time zero: beyond the first and the last, the integrand is geometric."""


@jax.jit
def _past_features(hurst: Array, times: Array) -> Array:
    """``(N, nodes)``: square roots of the trapezoid's terms, over alpha - 1."""
    log_lag = jnp.asarray(_PAST_LOG, times.dtype)
    spacing = float(_PAST_LOG[1] - _PAST_LOG[0])
    left = spacing / -jnp.expm1(-2 * hurst * spacing)
    right = spacing / -jnp.expm1(-(2 - 2 * hurst) * spacing)
    weight = jnp.full(log_lag.shape, spacing).at[0].set(left).at[-1].set(right)
    stretch = jnp.log1p(times[:, None] * jnp.exp(-log_lag))
    return jnp.sqrt(weight) * jnp.exp(hurst * log_lag) * stretch * _expm1_ratio((hurst - 0.5) * stretch)


def _expm1_ratio(x: Array) -> Array:
    """(e^x - 1) / x, regular at zero."""
    small = jnp.abs(x) < 0.1
    inner = jnp.where(small, x, 0.0)
    series = jnp.ones_like(x)
    for divisor in range(9, 1, -1):
        series = 1 + inner * series / divisor
    outer = jnp.where(small, 1.0, x)
    return jnp.where(small, series, jnp.expm1(outer) / outer)


@lru_cache(maxsize=64)
def _lag_design(rates: tuple[float, ...], length: int):
    """Decay, gain, and the least squares of the lags 1, ..., length - 1: triangle, projection, scale.

    NumPy, in double precision: the rates are known when a program is traced. The projection has the weights
    of the lags in it twice, as it acts on the kernel itself.
    """
    rate = np.asarray(rates)
    decay = np.exp(-rate)
    gain = np.where(rate > 0, -np.expm1(-rate) / np.where(rate > 0, rate, 1.0), 1.0)
    lag = np.arange(1, length)
    root = np.sqrt(length - lag)  # so many values have a cell at this lag
    design = root[:, None] * gain * np.exp(-rate * lag[:, None])
    scale = np.sqrt((design**2).sum(0))
    # The ridge keeps weights small where there are more terms than so few lags can tell apart.
    orthogonal, triangular = np.linalg.qr(np.concatenate([design / scale, _RIDGE * np.eye(len(rate))]))
    return decay, gain, triangular, orthogonal[: -len(rate)].T * root, scale


_RIDGE = 1e-6
"""Relative to the size of a column: the fit loses nothing that double or single precision would show."""

_LONGEST = {2: 8, 3: 32, 4: 450, 5: 15_000, 6: 400_000}
"""Number of steps up to which so many terms keep the error of the covariance, at the worst exponent, below 0.02
of the variance at the end (measured)."""


def _checked_rates(rates: ArrayLike | None, num_terms: int, num_steps: int) -> tuple[float, ...]:
    if num_steps < 1:
        raise ValueError(f"`num_steps` is {num_steps}; the grid needs one step at least.")
    if rates is not None:
        given = np.asarray(numbers(rates, "rates"), float)
        if given.ndim != 1 or len(given) < 2 or (given < 0).any() or len(np.unique(given)) < len(given):
            raise ValueError(
                f"`rates` is {given.tolist()}; it needs (num_terms,), two or more distinct rates per step, not negative."
            )
        return tuple(given.tolist())
    num_terms = whole_number(num_terms, "num_terms", None)
    if num_terms < 2:
        raise ValueError(f"`num_terms` is {num_terms}; the kernel's tail needs two exponentials at least.")
    if num_steps > _LONGEST.get(num_terms, np.inf):
        enough = next((terms for terms, longest in _LONGEST.items() if num_steps <= longest), 7)
        raise ValueError(
            f"`num_terms={num_terms}` exponentials cannot remember {num_steps} steps: the covariance would be off by "
            f"more than 2 percent; pass `num_terms={enough}`."
        )
    geometric = np.geomspace(0.6 / num_steps, 0.7, num_terms - 1) if num_terms > 2 else [0.7 / num_steps**0.5]
    return (0.0, *(float(rate) for rate in geometric))


def _check_kind(kind: str) -> None:
    if kind not in ("I", "II"):
        raise ValueError(
            f"`kind` is {kind!r}; it must be 'I' (stationary increments) or 'II' (no past before time zero)."
        )


def _checked_hurst(hurst: ArrayLike, scalar: bool = True) -> Array:
    if scalar and np.ndim(hurst) > 0:
        raise ValueError(
            f"`hurst` has shape {np.shape(hurst)}; it must be a scalar: use jax.vmap for several."
        )
    if not isinstance(hurst, jax.core.Tracer):
        value = np.asarray(numbers(hurst, "hurst"), float)
        if not ((value > 0) & (value < 1)).all():
            raise ValueError(f"`hurst` is {value.tolist()}; it must be above 0 and below 1.")
    hurst = jnp.asarray(hurst)
    return hurst.astype(jnp.result_type(float, hurst))


def _checked_positive(value: ArrayLike, name: str, meaning: str) -> Array:
    value = numbers(value, name)
    if not isinstance(value, jax.core.Tracer) and not (np.asarray(value) > 0).all():
        raise ValueError(f"`{name}` is {np.asarray(value).tolist()}; {meaning} must be above 0.")
    value = jnp.asarray(value)
    return value.astype(jnp.result_type(float, value))
