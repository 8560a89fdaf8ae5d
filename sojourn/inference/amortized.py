"""Amortised inference: a posterior in milliseconds, from a network trained once on simulated processes."""

from __future__ import annotations

import functools
import importlib.resources
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpy.typing import ArrayLike

from sojourn._arguments import numbers
from sojourn.ops import jump_network
from sojourn.ops.jump_network import MAX_STATES, PanelStatistics, Prediction

__all__ = ["AmortizedJumpProcess", "amortized_jump_process"]

_Z90 = 1.6449  # standard normal quantile of the central 90 %
_FEW_MOVES = 10


@dataclass(frozen=True)
class AmortizedJumpProcess:
    """What :func:`amortized_jump_process` found. Arrays are NumPy; rates are per unit of the times given.

    Each rate is log-normal given that the move exists. The marginal intervals are calibrated over the training
    prior; the rates are taken for independent, which they are not, so use :meth:`approximation` as a starting
    point or a proposal, never as the joint posterior.
    """

    log_rate_mean: np.ndarray
    """``(K, K)``: mean of the log rate of ``i -> j`` if that move exists; NaN on the diagonal."""
    log_rate_sd: np.ndarray
    """``(K, K)``: its standard deviation."""
    edge_probability: np.ndarray
    """``(K, K)``: probability that the move exists; zero diagonal."""
    initial: np.ndarray
    """``(K,)``: law of the first state of a path."""
    rate_matrix: np.ndarray
    """``(K, K)``: posterior mean of the rates, absence included; rows sum to zero."""
    counting_estimate: np.ndarray
    """``(K, K)``: observed changes by time spent, for comparison: it misses the moves between two observations
    and takes misread states for moves; rows sum to zero."""
    warnings: tuple[str, ...] = field(default=())
    """What about these data lies outside what the network was trained on."""

    @property
    def num_states(self) -> int:
        return len(self.initial)

    def edges(self, threshold: float = 0.05) -> np.ndarray:
        """Moves whose probability is at least ``threshold``, ``(K, K)`` booleans."""
        return self.edge_probability >= threshold

    def approximation(self, moves: Sequence[tuple[int, int]] | None = None) -> Any:
        """Log-normal distribution of the rates of ``moves``, in their order.

        Args:
            moves: pairs ``(i, j)``, ``i != j``; by default all, row by row.

        Returns:
            ``numpyro.distributions.LogNormal(...).to_event(1)``.
        """
        K = self.num_states
        if moves is None:
            moves = [(i, j) for i in range(K) for j in range(K) if i != j]
        for move in moves:
            if not (len(move) == 2 and all(0 <= s < K for s in move) and move[0] != move[1]):
                raise ValueError(
                    f"`moves` must hold pairs of two different states in 0..{K - 1}, not {move!r}."
                )
        index = tuple(np.array(moves, int).reshape(-1, 2).T)
        return dist.LogNormal(
            jnp.asarray(self.log_rate_mean[index]), jnp.asarray(self.log_rate_sd[index])
        ).to_event(1)

    def warm_start(self, trace: Mapping[str, Any]) -> dict[str, Any]:
        """Approximate posterior of the rates of a model, as ``sj.fit(..., warm_start=self)`` asks for it.

        Args:
            trace: of the model. Its rates are the latent site with the hint ``infer={"moves": [(i, j), ...]}``, which
                the models of :mod:`sojourn.models.jump_process` with free rates or a graph have.

        Raises:
            ValueError: no such site.
        """
        for name, site in trace.items():
            if site["type"] == "sample" and "moves" in site["infer"]:
                return {name: self.approximation(site["infer"]["moves"])}
        raise ValueError(
            "The model says nowhere which of its sites are rates of jumps: give that site the hint "
            "infer={'moves': [(i, j), ...]}, or pass {name: self.approximation(...)} as `warm_start`."
        )

    def __str__(self) -> str:
        lines = [f"{'move':>8}  {'rate':>10}  {'90 % interval':>23}  {'edge prob.':>10}  {'counting':>10}"]
        for i, j in zip(*np.nonzero(~np.eye(self.num_states, dtype=bool)), strict=True):
            mean, sd = self.log_rate_mean[i, j], self.log_rate_sd[i, j]
            low, high = np.exp(mean - _Z90 * sd), np.exp(mean + _Z90 * sd)
            lines.append(
                f"{f'{i} -> {j}':>8}  {self.rate_matrix[i, j]:>10.4g}  {f'({low:.4g}, {high:.4g})':>23}"
                f"  {self.edge_probability[i, j]:>10.2f}  {self.counting_estimate[i, j]:>10.4g}"
            )
        lines.append("Rate: posterior mean, absence included. Interval: of the rate, if the move exists.")
        return "\n".join([*lines, *(f"Warning: {w}" for w in self.warnings)])

    __repr__ = __str__


@functools.cache
def _weights() -> tuple[Any, dict[str, Any]]:
    """Weights as a tree, and the facts stored with them."""
    source = importlib.resources.files("sojourn.inference") / "weights" / "jump_network.npz"
    with source.open("rb") as file, np.load(file) as stored:
        leaves = {name: stored[name] for name in stored.files}
    facts = json.loads(str(leaves.pop("facts")))
    shape = jax.eval_shape(lambda: jump_network.initialise(jax.random.key(0)))
    paths, tree = jax.tree_util.tree_flatten_with_path(shape)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    return jax.tree.unflatten(tree, [jnp.asarray(leaves[name], jnp.float32) for name in names]), facts


@jax.jit
def _forward(params: Any, statistics: PanelStatistics, num_states: Any) -> Prediction:
    batch = jax.tree.map(lambda leaf: leaf[None], statistics)
    return jax.tree.map(
        lambda leaf: leaf[0], jump_network.apply(params, batch, jnp.asarray(num_states)[None])
    )


def _read_panel(
    y: ArrayLike, times: ArrayLike, num_states: int | None, mask: ArrayLike | None, lengths: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """States ``(N, L)`` with -1 for missing, times ``(L,)`` or ``(N, L)``, and the number of states; all checked."""
    values = np.asarray(numbers(y, "y"), float)
    grid = np.asarray(numbers(times, "times"), float)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"`y` must be states of shape (L,) or (N, L), not {values.shape}.")
    if grid.shape not in (values.shape, values.shape[-1:]):
        raise ValueError(
            f"`times` must have the shape of `y`, {values.shape}, or its last axis, not {grid.shape}."
        )
    values = np.atleast_2d(values)
    seen = ~np.isnan(values)
    if mask is not None:
        observed = np.atleast_2d(np.asarray(mask))
        if observed.dtype != bool or observed.shape not in (values.shape, (1, values.shape[1])):
            raise ValueError(
                f"`mask` must be booleans of the shape of `y`, {values.shape}, true where observed."
            )
        seen &= observed
    if lengths is not None:
        count = np.atleast_1d(np.asarray(lengths))
        if count.shape != values.shape[:1] or not np.issubdtype(count.dtype, np.integer) or (count < 0).any():
            raise ValueError(f"`lengths` must be {len(values)} integers, the observations of each path.")
        if (count > values.shape[1]).any():
            raise ValueError(f"`lengths` must not exceed the {values.shape[1]} columns of `y`.")
        seen &= np.arange(values.shape[1]) < count[:, None]
    labels = values[seen]
    if labels.size == 0:
        raise ValueError("`y` holds no observation.")
    if not (np.isfinite(labels) & (labels == np.round(labels))).all() or labels.min() < 0:
        raise ValueError("`y` must hold the states 0, 1, ..., K - 1 as integers, with NaN for a missing one.")
    largest = int(labels.max())
    if num_states is None:
        num_states = largest + 1
    if not isinstance(num_states, (int, np.integer)):
        raise ValueError(f"`num_states` must be an integer, not {num_states!r}.")
    if largest >= num_states:
        raise ValueError(
            f"`y` holds the state {largest}, but the {num_states} states are 0..{num_states - 1}."
        )
    if num_states < 2:
        raise ValueError(
            "A jump process needs two states or more: pass `num_states` if `y` shows only one of them."
        )
    if num_states > MAX_STATES:
        raise ValueError(
            f"The network reads 2 to {MAX_STATES} states, not {num_states}: merge states, or fit the exact likelihood."
        )
    when = np.broadcast_to(grid, values.shape)
    if not np.isfinite(when[seen]).all():
        raise ValueError("`times` must be finite wherever `y` is observed.")
    so_far = np.maximum.accumulate(np.where(seen, when, -np.inf), axis=1)
    if (seen[:, 1:] & (when[:, 1:] <= so_far[:, :-1])).any():
        raise ValueError("`times` must increase along each path.")
    if (seen.sum(1) < 2).all():
        raise ValueError(
            "Each path has one observation: the rates are not identified. At least one path must be seen twice."
        )
    states = np.where(seen, values, -1).astype(np.int16)
    shared = grid.ndim == 1 and seen.all()
    return states, grid if shared else np.where(seen, when, 0.0), int(num_states)


def _outside_training(
    states: np.ndarray,
    times: np.ndarray,
    rates: np.ndarray,
    counting: np.ndarray,
    edge_probability: np.ndarray,
    statistics: PanelStatistics,
    interval: float,
    facts: dict[str, Any],
) -> list[str]:
    """Sentences on what the network has not been trained for. Rates per unit of time."""
    prior = facts["prior"]
    seen = states >= 0
    when = np.broadcast_to(times, states.shape)
    horizon = float(np.max(np.where(seen, when, -np.inf).max(1) - np.where(seen, when, np.inf).min(1)))
    window = min(
        horizon, (prior["length"] - 1) * interval
    )  # long paths count by windows of that many observations
    fastest = float(max(rates.max(), counting.max()))
    found = []
    low, high = prior["reach"]
    which = "horizon" if window == horizon else f"{prior['length']} observations"
    if fastest * window > high:
        found.append(
            f"rate x {which} reaches {fastest * window:.3g}, outside the training range (at most {high:g})"
        )
    if fastest * window < low:
        found.append(
            f"rate x {which} is {fastest * window:.2g}, outside the training range (at least {low:g})"
        )
    if fastest * interval > prior["per_interval"]:
        found.append(
            f"rate x interval reaches {fastest * interval:.3g}, outside the training range (at most "
            f"{prior['per_interval']:g}): moves so frequent are hardly seen at these times"
        )
    likely = rates[edge_probability > 0.5]
    if likely.size and likely.max() > prior["rate_ratio"] * likely.min():
        ratio = likely.max() / likely.min()
        found.append(
            f"largest to smallest rate is {ratio:.3g}, outside the training range (at most {prior['rate_ratio']:g})"
        )
    if len(states) > prior["paths"]:
        found.append(
            f"{len(states)} paths, more than in training ({prior['paths']}): more of them may not help further"
        )
    longest = int(seen.sum(1).max())
    if longest > prior["long"]:
        found.append(f"paths of {longest} observations, longer than in training ({prior['long']})")
    if longest < 3:
        found.append(
            "two observations a path, fewer than in training (3): misread states cannot be told from moves"
        )
    changes = int(statistics.moves.sum() - np.trace(statistics.moves))
    if changes < _FEW_MOVES:
        found.append(
            f"only {changes} changes of state observed: the rates are mostly those of the training prior"
        )
    K = len(rates)
    unseen = np.flatnonzero(statistics.exposure[:K] == 0)
    if unseen.size:
        found.append(
            f"no time observed in state {', '.join(map(str, unseen))}: its rates are those of the training prior"
        )
    return found


def amortized_jump_process(
    y: ArrayLike,
    times: ArrayLike,
    *,
    num_states: int | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> AmortizedJumpProcess:
    """Rates of a Markov jump process from panel data, without a fit ("zero-shot").

    The states of one or more paths are observed at discrete times, possibly misread. A network trained on simulated
    jump processes (2 to 8 states; dense, sparse, chain, ring and star topologies; up to 20 % misread states; regular
    and irregular grids; 1 to 6000 paths) reads the posterior of every rate off the counts of pairs of states. The
    counts are taken in one pass over the data, the network takes milliseconds. Its answer starts, or proposes for,
    an exact fit; it does not replace one.

    The idea is that of Berghaus, Cvejoski, Seifner, Ojeda and Sánchez (2024, *NeurIPS*, arXiv:2406.06419); the
    network, which reads counts instead of paths, is described in :mod:`sojourn.ops.jump_network`. Retrained by
    ``make train-jump-network``.

    Args:
        y: ``(L,)`` or ``(N, L)``, states ``0..K - 1``; NaN is missing.
        times: ``(L,)`` or ``(N, L)``, increasing along each path, in any unit.
        num_states: K, 2 to 8; by default the largest state seen plus one.
        mask: like ``y``, true where it was observed.
        lengths: ``(N,)``, leading observations that belong to each path; the rest is padding.

    Returns:
        :class:`AmortizedJumpProcess`. Whatever about the data lies outside the training prior is said in its
        ``warnings``, in its printed table and as a ``UserWarning``.

    Raises:
        ValueError: states or times as they must not be, fewer than 2 or more than 8 states, or no path
            observed twice.

    Example:
        >>> import numpy as np
        >>> from sojourn.inference.amortized import amortized_jump_process
        >>> rng = np.random.default_rng(0)
        >>> stay = np.exp(-0.1 * 2)  # two states, both rates 1, observed every 0.1
        >>> flips = rng.random((200, 50)) < (1 - stay) / 2
        >>> result = amortized_jump_process(flips.cumsum(1) % 2, 0.1 * np.arange(50))
        >>> bool(abs(result.rate_matrix[0, 1] - 1) < 0.2), result.edges().tolist(), result.warnings
        (True, [[False, True], [True, False]], ())
    """
    states, grid, K = _read_panel(y, times, num_states, mask, lengths)
    statistics, interval = jump_network.panel_statistics(states, grid)
    params, facts = _weights()
    q = jax.tree.map(np.asarray, _forward(params, statistics, K))
    off = ~np.eye(K, dtype=bool)

    def generator(rates: np.ndarray) -> np.ndarray:
        rates = np.where(off, rates[:K, :K], 0.0) / interval
        return rates - np.diag(rates.sum(1))

    rate_matrix = generator(np.exp(q.log_rate.astype(float)))
    counting = generator(jump_network.counting_rates(statistics).astype(float))
    edge_probability = np.where(off, 1.0 / (1.0 + np.exp(-q.edge_logit[:K, :K].astype(float))), 0.0)
    initial = np.exp(q.initial_logit[:K] - q.initial_logit[:K].max())
    found = _outside_training(
        states, grid, np.where(off, rate_matrix, 0.0), counting, edge_probability, statistics, interval, facts
    )
    for sentence in found:
        warnings.warn(f"Amortised rates: {sentence}.", stacklevel=2)
    return AmortizedJumpProcess(
        log_rate_mean=np.where(off, q.log_rate_mean[:K, :K] - np.log(interval), np.nan),
        log_rate_sd=np.where(off, q.log_rate_sd[:K, :K], np.nan).astype(float),
        edge_probability=edge_probability,
        initial=initial / initial.sum(),
        rate_matrix=rate_matrix,
        counting_estimate=counting,
        warnings=tuple(found),
    )
