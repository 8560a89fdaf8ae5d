r"""Markov jump processes tilted by averages: the functions behind :mod:`sojourn.models.maximum_caliber`.

Notation, shapes, units and sources are those of that module's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn import logsumexp
from jax.scipy.linalg import expm
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, numbers, positive_numbers, shown
from sojourn.ops.perron import check_irreducible, deviation_matrix, perron
from sojourn.ops.rate_matrix import check_rate_matrix

__all__ = [
    "Driven",
    "averages",
    "covariances",
    "cycle_affinity",
    "doob_transform",
    "entropy_flow",
    "finite_time_free_energy",
    "free_energy",
    "green_kubo",
    "is_concrete",
    "maximum_entropy",
    "process_arrays",
    "rate_function",
    "solve_tilt",
    "summary_of",
    "tilted_generator",
]


Process = tuple[Array, Array, Array]  # rate matrix, dwell and jump observables


class Driven(NamedTuple):
    """A jump process in its stationary state."""

    rate_matrix: Array
    """``(..., K, K)``."""
    stationary: Array
    """``(..., K)``: its stationary law."""


# --------------------------------------------------------------------------------------------------- input


def is_concrete(*arrays: Any) -> bool:
    """Whether none of the arrays is traced."""
    return not any(isinstance(x, jax.core.Tracer) for x in arrays)


def _check(rate_matrix: ArrayLike) -> None:
    check_rate_matrix(rate_matrix)
    check_irreducible(rate_matrix, "rate_matrix")


def process_arrays(
    tilt: ArrayLike,
    rate_matrix: ArrayLike,
    dwell: ArrayLike | None,
    jump: ArrayLike | None,
    name: str = "tilt",
) -> tuple[Array, Array, Array, Array]:
    """The four arrays in one type, with zeros for a missing kind of observable."""
    if dwell is None and jump is None:
        raise ValueError("A tilt needs something to tilt by: pass `dwell`, `jump` or both.")
    if tilt is None:
        raise ValueError(f"`{name}` must be a vector of numbers, one for each observable.")
    tilt = numbers(tilt, name)
    dwell = None if dwell is None else numbers(dwell, "dwell")
    jump = None if jump is None else numbers(jump, "jump")
    _check(rate_matrix)
    states = np.shape(rate_matrix)[-1]
    size = np.shape(tilt)[-1] if np.ndim(tilt) else 0
    for given, kind, event in ((dwell, "dwell", (states,)), (jump, "jump", (states, states))):
        if given is not None and np.shape(given)[-1 - len(event) :] != (size, *event):
            raise ValueError(
                f"`{name}` has shape {np.shape(tilt)} and `{kind}` {np.shape(given)}: a vector of A numbers goes "
                f"with {('A', *event)} for {states} states.".replace("'A'", "A")
            )
    for given, kind in ((tilt, name), (dwell, "dwell"), (jump, "jump")):
        if given is not None and is_concrete(given) and not np.isfinite(np.asarray(given)).all():
            raise ValueError(f"`{kind}` has an entry that is not finite.")
    dtype = jnp.result_type(
        float, *(jnp.asarray(x) for x in (tilt, rate_matrix, dwell, jump) if x is not None)
    )
    dwell = np.zeros((size, states)) if dwell is None else dwell
    jump = np.zeros((size, states, states)) if jump is None else jump
    tilt, rate_matrix, dwell, jump = (jnp.asarray(x, dtype) for x in (tilt, rate_matrix, dwell, jump))
    return tilt, rate_matrix, dwell, jump


def _for_batches(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda fn: jax.jit(partial(jnp.vectorize, signature=signature)(fn))


def _moves(rate_matrix: Array) -> Array:
    return rate_matrix - jnp.diag(jnp.diagonal(rate_matrix))


# ------------------------------------------------------------------------------------- the tilted process


def _tilt(tilt: Array, rate_matrix: Array, dwell: Array, jump: Array) -> Array:
    weight = jnp.exp(_moves(jnp.tensordot(tilt, jump, 1)))
    return _moves(rate_matrix) * weight + jnp.diag(jnp.diagonal(rate_matrix) + tilt @ dwell)


def _psi(tilt: Array, *process: Array) -> Array:
    return perron(_tilt(tilt, *process)).value


def _doob(tilt: Array, *process: Array) -> tuple[Array, Array, Array]:
    """Rates and stationary law of the driven process, and the free energy."""
    tilted = _tilt(tilt, *process)
    value, log_right, log_left = perron(tilted)
    moves = _moves(tilted) * jnp.exp(log_right - log_right[:, None])
    return moves - jnp.diag(moves.sum(-1)), jnp.exp(log_right + log_left), value


def _mean(tilt: Array, rate_matrix: Array, dwell: Array, jump: Array) -> tuple[Array, tuple[Array, ...]]:
    """Averages, and again with :func:`_doob`."""
    rates, law, value = _doob(tilt, rate_matrix, dwell, jump)
    mean = dwell @ law + jnp.einsum("i,ij,aij->a", law, _moves(rates), jump)
    return mean, (rates, law, value, mean)


def _summary(tilt: Array, *process: Array) -> tuple[Array, ...]:
    """Rates, law, free energy, averages, covariances: with one search for the Perron vectors."""
    covariance, rest = jax.jacfwd(_mean, has_aux=True)(tilt, *process)
    return *rest, covariance


_TILTED = "(a),(k,k),(a,k),(a,k,k)"
_batched_tilt = _for_batches(f"{_TILTED}->(k,k)")(_tilt)
_batched_psi = _for_batches(f"{_TILTED}->()")(_psi)
_batched_doob = _for_batches(f"{_TILTED}->(k,k),(k),()")(_doob)
_batched_mean = _for_batches(f"{_TILTED}->(a)")(lambda *args: _mean(*args)[0])
summary_of = _for_batches(f"{_TILTED}->(k,k),(k),(),(a),(a,a)")(_summary)


def tilted_generator(
    tilt: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Array:
    """The matrix ``L`` of the module's text: ``(..., K, K)``. Its rows do not sum to zero.

    Example:
        >>> import jax.numpy as jnp
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> print(tilted_generator(jnp.array([0.5]), switch, dwell=jnp.array([[0.0, 1.0]])))
        [[-1.   1. ]
         [ 1.  -0.5]]
    """
    return _batched_tilt(*process_arrays(tilt, rate_matrix, dwell, jump))


def free_energy(
    tilt: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Array:
    r"""Process free energy :math:`\psi(\lambda) = \lim_{T \to \infty} T^{-1} \log E \, e^{\lambda \cdot A}`, ``(...)``.

    Convex in the tilt and zero at zero. Also known as the scaled cumulant generating function.

    Example:
        >>> import jax.numpy as jnp
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> print(free_energy(jnp.array([jnp.log(3.0)]), switch, jump=jnp.ones((1, 2, 2))).round(4))
        2.0
    """
    return _batched_psi(*process_arrays(tilt, rate_matrix, dwell, jump))


def doob_transform(
    tilt: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Driven:
    r"""The process of maximum caliber: rates :math:`Q_{ij} = L_{ij} r_j / r_i` and stationary law :math:`l_i r_i`.

    ``l`` and ``r`` are the vectors of the tilted matrix. An observable that is a difference of values of the two
    states at every jump changes nothing: in the long run it has nothing to constrain.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> rates, law = doob_transform(jnp.array([1.5]), switch, dwell=jnp.array([[0.0, 1.0]]))
        >>> print(rates.round(4))
        [[-2.   2. ]
         [ 0.5 -0.5]]
        >>> print(np.asarray(law).round(4))
        [0.2 0.8]
    """
    return Driven(*_batched_doob(*process_arrays(tilt, rate_matrix, dwell, jump))[:2])


def averages(
    tilt: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Array:
    r"""Long-run averages ``(..., A)`` of the observables in the tilted process.

    The Gibbs relation: they are the gradient of :func:`free_energy` in the tilt.

    Example:
        >>> import jax.numpy as jnp
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> print(averages(jnp.array([0.0]), switch, dwell=jnp.array([[0.0, 1.0]])).round(4))
        [0.5]
    """
    return _batched_mean(*process_arrays(tilt, rate_matrix, dwell, jump))


def covariances(
    tilt: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Array:
    r"""Long-run covariances ``(..., A, A)`` of the observables in the tilted process, by unit of time.

    :math:`\lim_{T \to \infty} \mathrm{Cov}(A_k, A_l) / T`; an average over a time ``T`` has this divided by ``T``. The
    Gibbs-Maxwell (fluctuation-dissipation) relation: it is the Hessian of :func:`free_energy`, the response of
    average ``k`` to tilt ``l``, and for dwell observables the integral of :func:`green_kubo`.

    Example:
        >>> import jax.numpy as jnp
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> print(covariances(jnp.array([0.0]), switch, dwell=jnp.array([[0.0, 1.0]])).round(4))
        [[0.25]]
    """
    return summary_of(*process_arrays(tilt, rate_matrix, dwell, jump))[-1]


def green_kubo(rate_matrix: ArrayLike, dwell: ArrayLike) -> Array:
    r"""Integrated correlations of dwell observables in the stationary state of a process, ``(..., A, A)``.

    :math:`\int_{-\infty}^{\infty} \mathrm{Cov}(f_k(x_0), f_l(x_t)) \, dt`, which is :math:`\langle f_k, D f_l \rangle_\pi`
    made symmetric, ``D`` the deviation matrix of the process (Green 1954, Kubo 1957).

    Args:
        rate_matrix: ``(..., K, K)``, of the process itself: for a tilted one that of :func:`doob_transform`.
        dwell: ``(..., A, K)``.

    Example:
        >>> import jax.numpy as jnp
        >>> print(green_kubo(jnp.array([[-1.0, 1.0], [1.0, -1.0]]), jnp.array([[0.0, 1.0]])).round(4))
        [[0.25]]
    """
    _check(rate_matrix)
    if dwell is None:
        raise ValueError("`dwell` must hold what each observable collects in each state, (..., A, K).")
    dwell, states = finite_numbers(dwell, "dwell"), np.shape(rate_matrix)[-1]
    if np.ndim(dwell) < 2 or np.shape(dwell)[-1] != states:
        raise ValueError(f"`dwell` has shape {np.shape(dwell)}; {states} states need (..., A, {states}).")
    rate_matrix = jnp.asarray(rate_matrix)
    _, log_right, log_left = perron(rate_matrix)
    law = jnp.exp(log_right + log_left)
    dwell = jnp.asarray(dwell)
    half = dwell * law[..., None, :] @ deviation_matrix(rate_matrix) @ jnp.swapaxes(dwell, -1, -2)
    return half + jnp.swapaxes(half, -1, -2)


def finite_time_free_energy(
    tilt: ArrayLike,
    rate_matrix: ArrayLike,
    dwell: ArrayLike | None = None,
    jump: ArrayLike | None = None,
    *,
    duration: ArrayLike,
    initial: ArrayLike | None = None,
) -> Array:
    r""":math:`T^{-1} \log E \, e^{\lambda \cdot A_T}` for paths of finite duration ``T``, ``(...)``.

    It tends to :func:`free_energy` as ``1 / T``: ``T`` times the difference tends to ``log(p . r)``, ``p`` the initial law
    and ``r`` the right vector of the tilted matrix (as :func:`~sojourn.ops.perron.perron` scales it).

    Args:
        tilt, rate_matrix, dwell, jump: see the module's text.
        duration: ``(...)`` positive.
        initial: ``(..., K)`` law of the first state; by default the stationary law of ``rate_matrix``.

    Example:
        >>> import jax.numpy as jnp
        >>> switch, count = jnp.array([[-1.0, 1.0], [1.0, -1.0]]), jnp.ones((1, 2, 2))
        >>> print(finite_time_free_energy(jnp.array([jnp.log(3.0)]), switch, jump=count, duration=5.0).round(4))
        2.0
    """
    duration = positive_numbers(duration, "duration")
    arrays = process_arrays(tilt, rate_matrix, dwell, jump)
    if initial is None:
        _, log_right, log_left = perron(arrays[1])
        initial = jnp.exp(log_right + log_left)
    else:
        initial, states = positive_numbers(initial, "initial", zero=True), np.shape(rate_matrix)[-1]
        if np.shape(initial)[-1:] != (states,):
            raise ValueError(
                f"`initial` has shape {np.shape(initial)}; {states} states need (..., {states})."
            )
        if is_concrete(initial) and np.abs(np.asarray(initial).sum(-1) - 1).max() > 1e-4:
            raise ValueError("`initial` must hold probabilities that sum to one.")
    return _batched_finite_time(*arrays, jnp.asarray(duration), jnp.asarray(initial))


@_for_batches(f"{_TILTED},(),(k)->()")
def _batched_finite_time(tilt, rate_matrix, dwell, jump, duration, initial):
    value, log_right, _ = perron(_tilt(tilt, rate_matrix, dwell, jump))
    rates, _, _ = _doob(tilt, rate_matrix, dwell, jump)
    # e^{T L} = e^{T psi} R e^{T Q} R^{-1}: of a generator the exponential cannot overflow.
    log_law = jnp.log(expm(duration * rates, max_squarings=40) @ jnp.exp(-log_right))
    return value + logsumexp(log_right + log_law, b=initial) / duration


# ------------------------------------------------------------------------------ from averages back to tilts


_STEPS = 0.5 ** np.arange(25)


def _newton(target: Array, *process: Array) -> tuple[Array, Array]:
    """Newton's method with backtracking on the concave dual: the tilt, and whether it converged."""
    eps = jnp.finfo(target.dtype).eps

    def dual(tilt):
        value = tilt @ target - _psi(tilt, *process)
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def unfinished(carry):
        _, decrement, step = carry
        return (decrement > eps**0.6) & (step < 100)  # one more step, below, squares what is left

    def step(carry):
        tilt, _, count = carry
        *_, mean, covariance = _summary(tilt, *process)
        residual = target - mean
        direction = jnp.linalg.solve(covariance, residual)
        decrement = residual @ direction  # squared length of the step, in standard deviations
        steps = jnp.asarray(_STEPS, tilt.dtype)
        now = dual(tilt)
        slack = 16 * eps * (jnp.abs(now) + jnp.abs(tilt * target).sum())
        enough = jax.vmap(dual)(tilt + steps[:, None] * direction) >= now + 0.25 * steps * decrement - slack
        size = steps[jnp.where(enough.any(), enough.argmax(), len(steps) - 1)]
        return tilt + size * direction, jnp.sqrt(jnp.abs(decrement)), count + 1

    start = (jnp.zeros_like(target), jnp.full((), jnp.inf, target.dtype), 0)
    tilt, decrement, _ = lax.while_loop(unfinished, step, start)
    return tilt, decrement <= eps**0.6


@_for_batches(f"{_TILTED}->(a),(a,a),(a,a)")
def _batched_solve(target, *process):
    tilt, converged = _newton(*lax.stop_gradient((target, *process)))
    # One more step from a constant: it has the derivatives of the solution (implicit function theorem).
    *_, mean, covariance = jax.vmap(lambda x: _summary(x, *process))(jnp.stack([jnp.zeros_like(tilt), tilt]))
    tilt = tilt + jnp.linalg.solve(covariance[1], target - mean[1])
    return jnp.where(converged, tilt, jnp.nan), covariance[0], covariance[1]


def solve_tilt(
    targets: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Array:
    r"""The tilt at which the observables have given long-run averages: the inverse of :func:`averages`.

    Newton's method, damped, on the convex dual :math:`\psi(\lambda) - \lambda \cdot a`. First derivatives are right, by
    the implicit function theorem; second ones are not.

    Args:
        targets: ``(..., A)`` averages.
        rate_matrix, dwell, jump: see the module's text.

    Returns:
        ``(..., A)``. Where the targets are traced and cannot be reached, NaN.

    Raises:
        ValueError: targets at or beyond the edge of what the observables can average to, or observables of which
            a combination does not fluctuate in the long run (all occupations together, the net current of a chain
            without a cycle), so that the tilt is not unique.

    Example:
        >>> import jax.numpy as jnp
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> print(solve_tilt(jnp.array([0.8]), switch, dwell=jnp.array([[0.0, 1.0]])).round(2))
        [1.5]
    """
    arrays = process_arrays(targets, rate_matrix, dwell, jump, "targets")
    tilt, at_start, at_tilt = _batched_solve(*arrays)
    if is_concrete(tilt):
        targets = jnp.broadcast_to(arrays[0], tilt.shape)
        _check_solution(*(np.asarray(x) for x in (targets, tilt, at_start, at_tilt)))
    return tilt


def _check_solution(targets: np.ndarray, tilt: np.ndarray, at_start: np.ndarray, at_tilt: np.ndarray) -> None:
    eps = np.finfo(tilt.dtype).eps
    scale = np.sqrt(np.maximum(np.diagonal(at_start, axis1=-2, axis2=-1), np.finfo(tilt.dtype).tiny))
    if (np.linalg.eigvalsh(at_start / (scale[..., None] * scale[..., None, :])) < 1e3 * eps).any():
        raise ValueError(
            "The observables are redundant: in the long run some combination of them does not fluctuate. Leave one "
            "out."
        )
    for one, found, start, end in zip(
        *(
            x.reshape((-1, *x.shape[i:]))
            for x, i in ((targets, -1), (tilt, -1), (at_start, -2), (at_tilt, -2))
        ),
        strict=True,
    ):
        # Towards the edge fluctuations die out, and the tilt goes to infinity.
        if np.isnan(found).any() or np.linalg.eigvals(np.linalg.solve(start, end)).real.min() < eps**0.75:
            raise ValueError(
                f"No tilt gives the averages {one.tolist()}: they lie at or beyond the edge of what the observables "
                "can average to under this reference. Move them inside, or give the reference the moves they need."
            )


def rate_function(
    value: ArrayLike, rate_matrix: ArrayLike, dwell: ArrayLike | None = None, jump: ArrayLike | None = None
) -> Array:
    r"""Large-deviation rate :math:`I(a) = \sup_\lambda \lambda \cdot a - \psi(\lambda)` of averages ``a``, ``(...)``.

    Under the reference the averages over a long time ``T`` come out near ``a`` with probability
    :math:`e^{-T I(a)}`. It is also the relative entropy rate of the process of maximum caliber with these averages
    to the reference, the least of all processes that have them. Its gradient is the tilt.

    Args:
        value: ``(..., A)`` averages.
        rate_matrix, dwell, jump: see the module's text.

    Raises:
        ValueError: as :func:`solve_tilt` (at the edge the rate may be finite, beyond it is infinite).

    Example:
        >>> import jax.numpy as jnp
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> print(rate_function(jnp.array([2.0]), switch, jump=jnp.ones((1, 2, 2))).round(4))
        0.3863
    """
    tilt = solve_tilt(value, rate_matrix, dwell, jump)
    return (tilt * jnp.asarray(value)).sum(-1) - free_energy(tilt, rate_matrix, dwell, jump)


def maximum_entropy(tilt: ArrayLike, features: ArrayLike, log_weight: ArrayLike = 0.0) -> Array:
    r"""The static counterpart: :math:`p_i \propto w_i \, e^{\lambda \cdot f(i)}`, ``(..., K)``.

    The law of greatest entropy, relative to the weights ``w``, with given means of the features (Jaynes 1957, *Phys.
    Rev.* 106:620). With the mean rate of jumps as one more constraint, and a reference in which all allowed moves
    have one rate each way, maximum caliber turns it into the rates :math:`\nu \sqrt{p_j / p_i}`.

    Args:
        tilt: ``(..., A)``.
        features: ``(..., A, K)``.
        log_weight: ``(..., K)`` logarithm of the weights, such as the number of ways to be in a state.

    Example:
        >>> import jax.numpy as jnp
        >>> print(maximum_entropy(jnp.array([jnp.log(3.0)]), jnp.array([[0.0, 1.0]])).round(4))
        [0.25 0.75]
    """
    tilt, features = finite_numbers(tilt, "tilt"), finite_numbers(features, "features")
    log_weight = numbers(log_weight, "log_weight")
    size = np.shape(tilt)[-1:]
    if not size or np.ndim(features) < 2 or np.shape(features)[-2:-1] != size or 0 in np.shape(features):
        raise ValueError(
            f"`tilt` has shape {np.shape(tilt)} and `features` {np.shape(features)}; they need (..., A) and (..., A, K)."
        )
    if np.shape(log_weight)[-1:] not in ((), (1,), np.shape(features)[-1:]):
        raise ValueError(
            f"`log_weight` has shape {np.shape(log_weight)}; {np.shape(features)[-1]} states need one each."
        )
    if is_concrete(log_weight) and not (np.asarray(log_weight) < np.inf).all():
        raise ValueError(
            "`log_weight` must be finite, or -inf for a state that cannot be; it holds nan or inf."
        )
    energy = (jnp.asarray(tilt)[..., None, :] @ jnp.asarray(features))[..., 0, :]
    return jax.nn.softmax(energy + jnp.asarray(log_weight), -1)


# ------------------------------------------------------------------------------------------------- entropy


def entropy_flow(rate_matrix: ArrayLike) -> Array:
    r"""Entropy that flows to the surroundings at each jump, :math:`\log (q_{ij} / q_{ji})`: ``(..., K, K)``.

    In units of Boltzmann's constant (Lebowitz and Spohn 1999, *J. Stat. Phys.* 95:333). As a jump observable its
    average is the entropy production, and its free energy obeys :math:`\psi(\lambda) = \psi(-1 - \lambda)` (Gallavotti
    and Cohen 1995). Zero where there is no move either way, infinite where there is no way back.

    Example:
        >>> import jax.numpy as jnp
        >>> print(entropy_flow(jnp.array([[-1.0, 1.0], [2.0, -2.0]])).round(3))
        [[ 0.    -0.693]
         [ 0.693  0.   ]]
    """
    check_rate_matrix(rate_matrix)
    rates = jnp.asarray(rate_matrix)
    moves = jnp.where(jnp.eye(rates.shape[-1], dtype=bool), 0.0, rates)
    log = jnp.where(moves > 0, jnp.log(jnp.where(moves > 0, moves, 1.0)), -jnp.inf)
    none = jnp.isneginf(log) & jnp.isneginf(jnp.swapaxes(log, -1, -2))
    log = jnp.where(none, 0.0, log)
    return log - jnp.swapaxes(log, -1, -2)


def cycle_affinity(rate_matrix: ArrayLike, cycle: Sequence[int]) -> Array:
    r"""Thermodynamic force around a cycle of states: the sum of :func:`entropy_flow` along it, ``(...)``.

    Zero around every cycle in detailed balance (Kolmogorov), so always on a chain or a tree, which has none. A
    tilt changes it by its own sum of :math:`\lambda \cdot (g_{ij} - g_{ji})` and dwell observables do not change it.

    Args:
        rate_matrix: ``(..., K, K)``.
        cycle: at least three different states; the last leads back to the first.

    Example:
        >>> import numpy as np
        >>> ring = np.array([[-4.0, 3.0, 1.0], [1.0, -4.0, 3.0], [3.0, 1.0, -4.0]])
        >>> print(cycle_affinity(ring, [0, 1, 2]).round(4))
        3.2958
    """
    check_rate_matrix(rate_matrix)
    states = np.shape(rate_matrix)[-1]
    way = np.asarray(numbers(cycle, "cycle"))
    if way.ndim != 1 or not np.issubdtype(way.dtype, np.integer):
        raise ValueError(f"`cycle` must be a list of states, such as [0, 1, 2], not {shown(cycle)}.")
    cycle = way.tolist()
    if len(cycle) < 3 or len(set(cycle)) < len(cycle) or not set(cycle) <= set(range(states)):
        raise ValueError(f"A cycle is three or more different states below {states}, not {list(cycle)}.")
    return entropy_flow(rate_matrix)[..., list(cycle), [*cycle[1:], cycle[0]]].sum(-1)
