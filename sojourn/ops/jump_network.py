r"""A network that reads the rates of a Markov jump process off its panel data.

A panel (the states of several paths at discrete times) is nearly summarised by how often each pair of states is
seen a given time apart: for a noise-free panel on a regular grid the consecutive pairs are sufficient, and pairs
at longer lags tell misread states from moves. The network therefore reads *counts* (:func:`panel_statistics`,
NumPy), never paths: its cost does not depend on the number of paths or their length, the order of the paths is
irrelevant, and a longer panel is a larger count.

The layers (:func:`apply`, JAX) act on a ``(K, K, C)`` array by entry, transpose, row, column, diagonal and grand
mean (the exchangeable matrix layer of Hartford, Graham, Leyton-Brown and Ravanbakhsh 2018, *ICML*) and by a
matrix product channel by channel, which lets a move ``i -> k -> j`` explain a pair ``(i, j)``. Relabelling the
states therefore relabels the answer, and one set of weights serves any number of states up to ``MAX_STATES``.

Time is measured in the panel's own median interval between consecutive observations, so the answer does not
depend on the unit of time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
    "MAX_STATES",
    "PanelStatistics",
    "Prediction",
    "apply",
    "counting_rates",
    "initialise",
    "panel_statistics",
]

MAX_STATES = 8
_STEPS = (1, 2, 4, 8, 16, 32)  # observations between the two of a pair
_BINS = np.array([0.0, 0.35, 0.71, 1.41, 2.83, 5.66, 11.3, 22.6, 64.0])  # of the lag of a pair, in intervals
_NUM_BINS = len(_BINS) - 1
_HEADS = 4  # log-rate mean, log of its sd, logit of the edge, correction of the point estimate


class PanelStatistics(NamedTuple):
    """What the network reads; all times in units of ``interval``, arrays padded with zeros to ``K`` states."""

    pairs: Any
    """``(8, K, K)``: pairs of states seen, by bin of their time lag."""
    lag: Any
    """``(8,)``: mean time lag in each bin; 0 where the bin is empty."""
    log_transition: Any
    """``(8, K, K)``: matrix logarithm of the transition frequencies in each bin (identity where there are none)."""
    moves: Any
    """``(K, K)``: pairs of consecutive observations."""
    exposure: Any
    """``(K,)``: time spent in each state, each interval shared equally between its two ends."""
    blips: Any
    """``(K, K)``: triples ``i, j, i``, the mark of a misread state."""
    confirmed: Any
    """``(K, K)``: quadruples ``i, i, j, j``, a move confirmed on both sides."""
    first: Any
    """``(K,)``: first observations of the paths."""


class Prediction(NamedTuple):
    """Marginal posterior of each rate per ``interval``, given that the move exists, and of its existence."""

    log_rate_mean: Array
    """``(..., K, K)``"""
    log_rate_sd: Array
    """``(..., K, K)``"""
    edge_logit: Array
    """``(..., K, K)``: log odds that the move ``i -> j`` has a positive rate."""
    log_rate: Array
    """``(..., K, K)``: log of the posterior mean of the rate, absence included."""
    initial_logit: Array
    """``(..., K)``: law of the first state up to a constant; -1e9 at padded states."""


def panel_statistics(
    states: np.ndarray, times: np.ndarray, *, padded_states: int = MAX_STATES
) -> tuple[PanelStatistics, float]:
    """Count the pairs of a panel. Plain NumPy, linear in the number of observations.

    Args:
        states: ``(N, L)`` integers in ``0..padded_states - 1``; -1 is missing.
        times: ``(L,)`` or ``(N, L)``, increasing along each path.
        padded_states: K of the arrays returned.

    Returns:
        The statistics, and the median interval between consecutive observations, their unit of time.

    Raises:
        ValueError: no path has two observations.

    Example:
        >>> import numpy as np
        >>> from sojourn.ops import jump_network
        >>> statistics, interval = jump_network.panel_statistics(np.array([[0, 0, 1, -1, 0]]), np.arange(5) / 2)
        >>> interval, statistics.moves[:2, :2].tolist(), statistics.exposure[:2].tolist()
        (0.5, [[1.0, 1.0], [1.0, 0.0]], [2.5, 1.5])
    """
    states, times = np.asarray(states, np.int16), np.asarray(times, float)
    K = padded_states
    seen = states >= 0
    ragged = not seen.all()
    if ragged:  # close the gaps, so that consecutive columns are consecutive observations
        order = np.argsort(~seen, axis=1, kind="stable")[:, : max(seen.sum(1).max(), 1)]
        states = np.take_along_axis(states, order, 1)
        times = np.take_along_axis(np.broadcast_to(times, seen.shape), order, 1)
    length = states.shape[1]

    def count(code: np.ndarray, *shape: int) -> np.ndarray:
        return np.bincount(code.ravel(), minlength=int(np.prod(shape))).reshape(shape).astype(float)

    # One grid for all paths: the lags are those of the columns, (L - 1,). Otherwise (N, L - 1).
    lag = np.diff(times)
    consecutive = lag[states[:, 1:] >= 0] if ragged else lag
    if consecutive.size == 0:
        raise ValueError("No path has two observations, so nothing is known about the rates.")
    interval = float(np.median(consecutive))
    times = times / interval

    pairs = np.zeros((_NUM_BINS, K, K))
    total_lag = np.zeros(_NUM_BINS)
    moves, exposure = np.zeros((K, K)), np.zeros(K)
    for step in (s for s in _STEPS if s < length):
        lag = times[..., step:] - times[..., :-step]
        bins = np.zeros(lag.shape, np.int16)
        for edge in _BINS[1:]:  # ten times as fast as np.searchsorted
            bins += lag >= edge
        code = states[:, :-step] * np.int16(K) + states[:, step:]
        if ragged:
            bins = np.where(states[:, step:] >= 0, bins, _NUM_BINS)  # with the lags beyond all bins: dropped
        copies = code.size // lag.size
        total_lag += copies * np.bincount(bins.ravel(), lag.ravel(), _NUM_BINS + 1)[:_NUM_BINS]
        index = np.where(bins < _NUM_BINS, code + bins * np.int16(K * K), _NUM_BINS * K * K)
        pairs += count(index, _NUM_BINS * K * K + 1)[:-1].reshape(pairs.shape)
        if step == 1:
            kept = np.broadcast_to(states[:, 1:] >= 0, code.shape)
            code, lag = code[kept], np.broadcast_to(lag, code.shape)[kept]
            moves = count(code, K, K)
            time = np.bincount(code, lag, K * K).reshape(K, K)
            exposure = (time.sum(0) + time.sum(1)) / 2
    blips, confirmed = np.zeros((K, K)), np.zeros((K, K))
    if length > 2:
        i, j, k = states[:, :-2], states[:, 1:-1], states[:, 2:]
        kept = (i == k) & (k >= 0)
        blips = count(i[kept] * K + j[kept], K, K)
    if length > 3:
        kept = (states[:, :-3] == states[:, 1:-2]) & (states[:, 2:-1] == states[:, 3:]) & (states[:, 3:] >= 0)
        confirmed = count(states[:, 1:-2][kept] * K + states[:, 2:-1][kept], K, K)
    first = count(states[:, 0][states[:, 0] >= 0], K)

    row = pairs.sum(-1, keepdims=True)
    frequency = np.where(row > 0, pairs / np.maximum(row, 1.0), np.eye(K))
    # Logarithm by its (1, 1) Pade approximant. The eigenvalues lie in the unit disk: the shift keeps p + I regular.
    log_transition = 2.0 * (frequency - np.eye(K)) @ np.linalg.inv(frequency + (1.0 + 2e-3) * np.eye(K))
    statistics = PanelStatistics(
        pairs=pairs,
        lag=total_lag / np.maximum(pairs.sum((1, 2)), 1.0),
        log_transition=np.clip(log_transition, -50.0, 50.0),
        moves=moves,
        exposure=exposure,
        blips=blips,
        confirmed=confirmed,
        first=first,
    )
    return PanelStatistics(*(leaf.astype(np.float32) for leaf in statistics)), interval


def counting_rates(statistics: PanelStatistics) -> np.ndarray:
    """Crude estimate of the rates per interval, ``(K, K)``: observed moves by time spent; zero diagonal.

    It takes each observed change for one jump and misses those between two observations; a state never seen
    gets zeros.
    """
    rates = np.asarray(statistics.moves) / np.maximum(np.asarray(statistics.exposure), 1e-30)[:, None]
    np.fill_diagonal(rates, 0.0)
    return rates


# --- the network ---------------------------------------------------------------------------------------------


def _linear(key: Array, inputs: int, outputs: int, scale: float = 1.0) -> dict[str, Array]:
    bound = scale * (3.0 / inputs) ** 0.5
    return {
        "w": jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound),
        "b": jnp.zeros(outputs),
    }


def initialise(
    key: Array, *, width: int = 32, hidden: int = 64, product: int = 16, blocks: int = 3
) -> dict[str, Any]:
    """Random weights: ``width`` channels, ``product`` of them multiplied as matrices, ``blocks`` layers."""
    keys = iter(jax.random.split(key, 6 + 6 * blocks))
    return {
        "in1": _linear(next(keys), _NUM_FEATURES, hidden),
        "in2": _linear(next(keys), hidden, width),
        "blocks": [
            {
                "scale": jnp.ones(width),
                "left": _linear(next(keys), width, product),
                "right": _linear(next(keys), width, product),
                "entry": _linear(next(keys), 2 * width + product, hidden),
                "row": _linear(next(keys), 4 * width, hidden, 0.5),
                "column": _linear(next(keys), 3 * width, hidden, 0.5),
                "out": _linear(next(keys), hidden, width, 0.3),
            }
            for _ in range(blocks)
        ],
        "out1": _linear(next(keys), width, hidden),
        "out2": _linear(next(keys), hidden, _HEADS, 0.1),
        "initial1": _linear(next(keys), 3 * width, width),
        "initial2": _linear(next(keys), width, 1, 0.1),
    }


def _dense(layer: dict[str, Array], x: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1]) @ layer["w"]  # one plain matrix product: half the time of a batched one
    return flat.reshape(*x.shape[:-1], -1) + layer["b"]


def _log_count(x: Array) -> Array:
    return jnp.log1p(x) / 6.0


def _base(s: PanelStatistics, states: Array) -> Array:
    """Log counting rates, shrunk towards the mean rate; ``(B, K, K)``."""
    off = 1.0 - jnp.eye(s.moves.shape[-1])
    jumps = (s.moves * off).sum((-2, -1))
    mean = (jumps + 0.5) / ((s.exposure.sum(-1) + 0.5) * (states.sum(-1) - 1.0))
    return jnp.log((s.moves + 0.3) / (s.exposure[..., None] + 0.3 / mean[..., None, None]))


_NUM_FEATURES = 8 * _NUM_BINS + 13


def _features(s: PanelStatistics, states: Array, base: Array) -> Array:
    """Features of each pair of states, ``(B, K, K, F)``. ``states``: ``(B, K)``, one where the state exists."""
    B, _, K, _ = s.pairs.shape
    row = s.pairs.sum(-1, keepdims=True)
    p = s.pairs / jnp.maximum(row, 1.0)
    present = (s.lag > 0).astype(p.dtype)[..., None, None]
    lag = jnp.where(s.lag > 0, s.lag, 1.0)[..., None, None]
    log_p = s.log_transition
    generator = log_p / lag
    # With misread states log p = constant + lag x generator, nearly: the slope between two lags drops the constant.
    both = present[:, 1:] * present[:, :-1]
    slope = (log_p[:, 1:] - log_p[:, :-1]) / jnp.where(both > 0, lag[:, 1:] - lag[:, :-1], 1.0)

    def against_base(rate: Array, where: Array) -> Array:
        excess = jnp.log(jnp.maximum(rate, 1e-12)) - base[:, None]
        return jnp.clip(excess, -3.0, 3.0) * where

    slope = jnp.concatenate([against_base(slope, both), jnp.zeros((B, 1, K, K))], 1)
    by_bin = jnp.stack(
        jnp.broadcast_arrays(
            p,
            _log_count(s.pairs),
            _log_count(row),
            jnp.log(lag) * 0.5,
            present,
            jnp.arcsinh(10.0 * generator) * present,
            against_base(generator, present),
            slope,
        ),
        -1,
    )
    by_bin = by_bin.transpose(0, 2, 3, 1, 4).reshape(B, K, K, -1)
    occupancy = s.exposure / jnp.maximum(s.exposure.sum(-1, keepdims=True), 1e-6)
    first = s.first / jnp.maximum(s.first.sum(-1, keepdims=True), 1.0)
    held = jnp.einsum("bii->bi", s.confirmed)[..., None]  # i, i, i, i: where confirmed moves may start
    returns = jnp.einsum("bii->bi", s.blips)[..., None]
    extra = jnp.stack(
        jnp.broadcast_arrays(
            base / 3.0,
            _log_count(s.moves),
            _log_count(s.blips),
            jnp.log((s.blips + 0.1) / (returns + 1.0)) / 4.0,
            _log_count(s.confirmed),
            jnp.clip(jnp.log((s.confirmed + 0.1) / (held + 1.0)) - base, -5.0, 5.0) / 2.0,
            occupancy[:, :, None],
            occupancy[:, None, :],
            first[:, :, None],
            _log_count(s.first)[:, :, None],
            _log_count(s.exposure)[:, :, None],
            _log_count(s.exposure)[:, None, :],
            jnp.eye(K),
        ),
        -1,
    )
    return jnp.concatenate([by_bin, extra], -1)


def apply(params: dict[str, Any], statistics: PanelStatistics, num_states: Array) -> Prediction:
    """Read a batch of panels.

    Args:
        params: from :func:`initialise`, trained.
        statistics: :class:`PanelStatistics` with one leading batch axis ``B``.
        num_states: ``(B,)`` integers; states from there on are padding, and what is predicted there is void.

    Returns:
        :class:`Prediction` with that batch axis, rates per interval. Diagonals are void.
    """
    s = PanelStatistics(*map(jnp.asarray, statistics))
    K = s.moves.shape[-1]
    states = (jnp.arange(K) < jnp.asarray(num_states)[:, None]).astype(s.moves.dtype)
    n = states.sum(-1)[:, None, None]  # against (B, K, C)
    mask = (states[:, :, None] * states[:, None, :])[..., None]
    base = _base(s, states)
    x = _dense(params["in2"], jax.nn.gelu(_dense(params["in1"], _features(s, states, base)))) * mask
    for block in params["blocks"]:
        h = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * block["scale"] * mask
        row, column, diagonal = h.sum(2) / n, h.sum(1) / n, jnp.einsum("biic->bic", h)
        mean = jnp.broadcast_to(row.sum(1, keepdims=True) / n, row.shape)
        left, right = _dense(block["left"], h) * mask, _dense(block["right"], h) * mask
        product = jnp.einsum("bikm,bkjm->bijm", left, right) / n[..., None] ** 0.5
        hidden = _dense(block["entry"], jnp.concatenate([h, h.swapaxes(1, 2), product], -1))
        hidden += _dense(block["row"], jnp.concatenate([row, column, diagonal, mean], -1))[:, :, None]
        hidden += _dense(block["column"], jnp.concatenate([row, column, diagonal], -1))[:, None]
        x = (x + _dense(block["out"], jax.nn.gelu(hidden))) * mask
    out = _dense(params["out2"], jax.nn.gelu(_dense(params["out1"], x)))
    mean, log_sd, edge = base + out[..., 0], jnp.clip(out[..., 1] - 1.0, -6.0, 2.0), out[..., 2] + 1.0
    # The point estimate is the mean of the mixture (no move, log-normal rate) and a correction of the order of the
    # sd, trained by itself: the mixture is not quite the posterior.
    spread = jnp.exp(jnp.minimum(log_sd, 0.0))
    log_rate, spread = jax.lax.stop_gradient((mean + jax.nn.log_sigmoid(edge) + spread**2 / 2.0, spread))
    log_rate += spread * out[..., 3]
    node = jnp.concatenate([x.sum(2) / n, x.sum(1) / n, jnp.einsum("biic->bic", x)], -1)
    initial = _dense(params["initial2"], jax.nn.gelu(_dense(params["initial1"], node)))[..., 0]
    initial += jnp.log((s.first + 0.3) / (s.first.sum(-1, keepdims=True) + 0.3 * n[:, 0]))
    return Prediction(mean, jnp.exp(log_sd), edge, log_rate, jnp.where(states > 0, initial, -1e9))
