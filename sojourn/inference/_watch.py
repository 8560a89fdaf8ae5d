"""Watches over chains while they run: what has gone wrong is said when it does, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel

from sojourn.inference._explain import explain_not_finite

__all__ = ["ChainWatch", "stuck_chains"]

_TINY, _HUGE = 1e-10, 1e10
_PATIENCE = 200  # iterations that a step size may be out of all measure before the run is given up
_SETTLED = 20  # iterations after which a step size means something
_LOOKS = 200  # draws after which chains are compared; and again whenever there are twice as many


class ChainWatch:
    """The watch that ``sj.fit`` keeps over its chains.

    A run ends with a ``RuntimeError`` at a state that is not finite, or when the step size has collapsed or exploded;
    it stops with what has been drawn where every transition diverges and nothing moves, or where chains have settled at different log
    densities (see :func:`stuck_chains`).

    Args:
        model, args, kwargs: as fitted.
        kernel: the kernel.
        num_warmup: iterations of warm-up.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        kernel: MCMCKernel,
        num_warmup: int,
    ):
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.kernel, self.num_warmup = kernel, num_warmup
        self.levels: list[np.ndarray] = []
        self.next_look = _LOOKS
        self.odd_since: Any = np.inf
        self.diverged: list[Any] = []

    def look(
        self, states: Sequence[Any], last_good: Sequence[Any], iteration: int, wrong_since: np.ndarray
    ) -> None:
        """Raise if a chain cannot go on.

        Args:
            states: of the chains, all in one or one each.
            last_good: their last finite positions, likewise.
            iteration: how many have been run.
            wrong_since: by chain the first iteration whose state was not finite, or -1.

        Raises:
            RuntimeError: naming the chain, the iteration and, where it can be found, the site.
        """
        if (wrong_since >= 0).any():
            chain = int(np.argmin(np.where(wrong_since >= 0, wrong_since, np.iinfo(np.int32).max)))
            since = int(wrong_since[chain])
            raise RuntimeError(
                f"Chain {chain} is not finite from {self._when(since)} on: "
                + (
                    self._explained(_chain(self._positions(states), chain, len(wrong_since)))
                    or self._explained(_chain(last_good, chain, len(wrong_since)))
                    or "its last position before was fine, and a step from there was not: the step is too long, or a "
                    "transform overflows. Take a smaller step, a longer warm-up, or priors that keep off extremes."
                )
            )
        sizes = _step_sizes(states)
        if iteration < _SETTLED or sizes is None:
            return
        bad = ~((sizes > _TINY) & (sizes < _HUGE))
        self.odd_since = np.where(bad, np.minimum(self.odd_since, iteration), np.inf)
        # Adaptation may swing far out, from a bad start say, and come back.
        lost = np.isnan(sizes) | (iteration - self.odd_since >= _PATIENCE)
        lost |= bad & (iteration > self.num_warmup)
        if lost.any():
            chain = int(np.argmax(lost))
            what = "exploded" if sizes[chain] >= _HUGE else "collapsed"
            where = self._explained(_chain(last_good, chain, len(wrong_since)))
            raise RuntimeError(
                f"The step size of chain {chain} has {what} (to {sizes[chain]:.0e}, after {iteration} iterations): "
                + (
                    where
                    or "no step is accepted, or every step is. Rescale data and parameters to about one, give proper "
                    "priors, or look at sj.diagnose_model(model, ...)."
                )
            )

    def weigh(self, rows: Mapping[str, np.ndarray]) -> str | None:
        """Why the run had better stop, from the statistics of new draws, leading axes (chain, draw); or ``None``."""
        for name, sign in (("potential_energy", -1.0), ("log_evidence", 1.0)):
            if name in rows:
                values = rows[name].reshape(*rows[name].shape[:2], -1).sum(-1)
                self.levels.append(sign * values.astype(np.float64))
                break
        if "diverging" in rows:
            self.diverged.append(rows["diverging"].reshape(*rows["diverging"].shape[:2], -1).any(-1))
        drawn = sum(level.shape[1] for level in self.levels)
        if drawn < self.next_look:
            return None
        self.next_look = 2 * drawn
        levels = np.concatenate(self.levels, 1)
        moves = (np.diff(levels, axis=1) != 0).mean()
        if self.diverged and moves < 0.05 and all(d.all() for d in self.diverged):
            return (
                f"Each of the first {drawn} transitions diverged, and hardly one moved its chain: look at "
                "sj.diagnose_model(model, ...) for gradients that are not finite, rescale parameters to about one, or "
                "raise target_accept_prob."
            )
        return stuck_chains(levels)

    def _positions(self, states: Sequence[Any]) -> list[Any]:
        return [getattr(state, self.kernel.sample_field) for state in states]

    def _when(self, iteration: int) -> str:
        if iteration < self.num_warmup:
            return f"iteration {iteration + 1} of the warm-up"
        return f"draw {iteration - self.num_warmup + 1} (iteration {iteration + 1})"

    def _explained(self, position: Any) -> str | None:
        unconstrained = isinstance(self.kernel, HMC) or bool(getattr(self.kernel, "follows_gradient", False))
        if not isinstance(position, Mapping):
            return None
        try:
            return explain_not_finite(
                self.model, self.args, self.kwargs, position, unconstrained=unconstrained
            )
        except Exception:  # an explanation that fails must not hide what it explains
            return None


def stuck_chains(levels: np.ndarray) -> str | None:
    """Whether chains have settled at different log densities, and what to do.

    The second half of the draws counts. A chain has settled if its level does not drift (means of two stretches within
    a standard deviation). Two groups of settled chains are apart if all but one percent of the one lies above all but
    one percent of the other, by half the widest range of a chain and by two nats. Chains that differ in labels alone are
    as probable as each other, and are not told apart.

    Args:
        levels: log densities, shape ``(chain, draw)``.

    Example:
        >>> levels = np.random.default_rng(0).normal(size=(3, 400)) + np.array([[0.0], [0.0], [-30.0]])
        >>> print(stuck_chains(levels))
        Chains have settled in different modes: chain 2 at log density -29.95, the others at -0.06259, after 400 draws...
        >>> stuck_chains(levels[:2]) is None
        True
    """
    half = levels[:, levels.shape[1] // 2 :]
    if len(half) < 2 or not np.isfinite(half).all():
        return None
    stretch = half.shape[1] // 2
    spread = half.std(1)
    drift = np.abs(half[:, :stretch].mean(1) - half[:, stretch:].mean(1))
    if (drift > spread).any() or not (spread > 0).all():
        return None
    order = np.argsort(half.mean(1))
    low, high = np.quantile(half, 0.01, axis=1), np.quantile(half, 0.99, axis=1)
    for split in range(1, len(order)):
        below, above = order[:split], order[split:]
        gap = low[above].min() - high[below].max()
        if gap > 2.0 * max((high - low)[order].max() / 4.0, 1.0):
            fewer, more = (below, above) if len(below) <= len(above) else (above, below)
            names = ", ".join(str(int(c)) for c in sorted(fewer))
            return (
                f"Chains have settled in different modes: chain{'s' * (len(fewer) > 1)} {names} at log density "
                f"{half[fewer].mean():.4g}, the others at {half[more].mean():.4g}, after {levels.shape[1]} draws. More "
                "draws will not bring them together: hint a start (infer={'init': value}, or warm_start=), fix the order "
                "of exchangeable parts, or look at the modes apart. stop_early=False lets such a run go on."
            )
    return None


def _chain(states: Sequence[Any], chain: int, count: int) -> Any:
    """Of the position of one chain."""
    if len(states) == count:
        return states[chain]
    return jax.tree.map(lambda leaf: leaf[chain], states[0])


def _step_sizes(states: Sequence[Any]) -> np.ndarray | None:
    """Of the integrators, by chain."""
    found = []
    for state in states:
        holder = getattr(state, "adapt_state", state)
        size = getattr(holder, "step_size", None)
        if size is None:
            return None
        found.append(np.ravel(np.asarray(size)))
    return np.concatenate(found)
