"""Questions to a world that has been fitted."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from sojourn._arguments import must_be
from sojourn.distributions import LawRows
from sojourn.models.laws._cast import numeric
from sojourn.models.laws._imagine import Beliefs, decode_into, next_codes
from sojourn.models.laws._routing import Book, Routed
from sojourn.models.laws._space import GONE, Space

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Answers", "Ranking", "edit_distance"]

_NO_BOOK = Book(
    np.zeros((0, 0), np.int32), {}, 0, 0, ()
)  # one for all: a book of its own would be compiled for anew
_ABSENT = 0.05  # a law that happens less often than this where it holds is as good as absent


class Ranking(NamedTuple):
    """Where true next states rank among distractors; made by :meth:`World.rank`."""

    rank: np.ndarray
    """``(T,)``: 1 for the likeliest; ties are broken at random."""
    num_candidates: np.ndarray
    """``(T,)``: the truth and the distractors that differ from it."""
    log_prob: np.ndarray
    """``(T,)``: of the truth."""

    @property
    def rank_1(self) -> float:
        """Share of transitions in which the truth is likeliest ("Rank@1")."""
        return float((self.rank == 1).mean())

    @property
    def mean_reciprocal_rank(self) -> float:
        """Mean of 1 / rank ("MRR")."""
        return float((1 / self.rank).mean())

    def __repr__(self) -> str:
        return (
            f"Ranking(rank_1={self.rank_1:.3f}, mean_reciprocal_rank={self.mean_reciprocal_rank:.3f}, "
            f"{self.num_candidates.mean():.1f} candidates)"
        )


def edit_distance(
    space: Space, states: Mapping[str, Any], others: Mapping[str, Any], *, normalised: bool = False
) -> np.ndarray:
    """How many leaves of one state have to be edited to make it the other.

    Leaves are the numbers that a state holds: two for a cell, one for any other attribute, for every object that is
    alive in either, and whether it is alive.

    Args:
        space: the attributes that count.
        states, others: stacked states, ``(T, ...)``.
        normalised: divide by the number of leaves of ``others``.

    Returns:
        ``(T,)``.

    Example:
        >>> import numpy as np
        >>> from sojourn.models.laws import Space, cells, edit_distance
        >>> space = Space(pos=cells(4, 4), health=10)
        >>> a = {"pos": np.array([[0, 1]]), "health": np.array([9])}
        >>> b = {"pos": np.array([[0, 2]]), "health": np.array([9])}
        >>> edit_distance(space, a, b), edit_distance(space, a, b, normalised=True).round(2)
        (array([1.]), array([0.33]))
    """
    must_be(isinstance(space, Space), "space", "a Space", space)
    sizes = {}
    for what, given in (("states", states), ("others", others)):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(numeric(given))]
        if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
            raise ValueError(
                f"edit_distance: `{what}` must hold arrays with one leading axis, (T, ...), in common."
            )
        sizes[what] = shapes[0][0]
    if sizes["states"] != sizes["others"]:
        raise ValueError(f"edit_distance: there are {sizes['states']} states and {sizes['others']} others.")
    num = sizes["states"]
    edits, leaves = np.zeros(num), np.zeros(num)
    for group in space.groups:
        a, b = space.alive(states, group, "states"), space.alive(others, group, "others")
        edits += (a != b).sum(1)
        leaves += b.sum(1)
    for attribute in space:
        if attribute.field == GONE and attribute.group is not None:
            continue
        if attribute.group is None:
            a, b = np.asarray(states[attribute.name]), np.asarray(others[attribute.name])
            here = there = np.ones((num, 1), bool)
        else:
            a = np.asarray(states[attribute.group][attribute.field])
            b = np.asarray(others[attribute.group][attribute.field])
            there = space.alive(others, attribute.group, "others")
            here = there & space.alive(states, attribute.group, "states")
        each = 2 if attribute.kind == "cells" else 1
        differ = (a != b).reshape(num, -1, each).sum(-1)
        edits += (differ * here + each * (there & ~here)).sum(1)
        leaves += each * there.sum(1)
    return edits / leaves if normalised else edits


def _padded(routed: Routed) -> Routed:
    """With rows repeated up to a power of two, so that questions of many lengths share few programs."""

    def positions(num: int) -> np.ndarray:
        return np.arange(1 << max(num - 1, 0).bit_length()) % num

    rows = routed.rows
    which = positions(rows.num_rows)
    several = rows.several[positions(len(rows.several))] if len(rows.several) else rows.several
    taken = LawRows(**{n: x[which] for n, x in rows._asdict().items() if n != "several"}, several=several)
    return replace(routed, rows=taken, value=routed.value[which], count=routed.count[which], book=_NO_BOOK)


class Answers:
    """What one asks of a world; :class:`World` has these as methods."""

    # what World has
    space: Space
    names: list[str]
    pool: str
    parameters: dict[str, Any]
    refresh: Callable[[Any, Any, Any], Any] | None
    laws: list[Any]
    situation_law: Callable[..., Any]
    route: Callable[..., Routed]
    look: Callable[..., None]

    # ------------------------------------------------------------------------------------------------ beliefs

    def supposing(
        self, rates: Mapping[str, float] | float, *, change: float = 1e-4, **parameters: float
    ) -> Any:
        """Rates that one supposes rather than learns, to be asked like a fit.

        Args:
            rates: probability of each law (under ``pool="product"`` its weight), by name, others 0; or one for all.
            change: rate of unexplained change of every attribute (weight of "no change").
            **parameters: of laws, with ``__`` for the dot: ``chase__long_axis=0.8``.

        Example:
            >>> from sojourn.models.laws import Space, World, law, levels, when
            >>> @law
            ... def tire(s, a):
            ...     return when(a == 1, energy=s.energy - 1)
            >>> world = World(Space(energy=levels(10)), [tire])
            >>> guess = world.supposing({"tire": 0.2})
            >>> world.log_prob(guess, {"energy": [3]}, [1], {"energy": [2]}).round(1)  # log 0.2
            array([-1.6])
        """
        if not isinstance(rates, Mapping):
            rates = dict.fromkeys(self.names, rates)
        unknown = [n for n in rates if n not in self.names]
        if unknown:
            raise ValueError(f"supposing: there is no law {unknown[0]!r}; there are {', '.join(self.names)}.")
        rate = np.array([float(rates.get(n, 0.0)) for n in self.names])
        values: dict[str, Any] = {n: 0.5 for n in self.parameters}
        values |= {n.replace("__", "."): v for n, v in parameters.items()}
        if set(values) != set(self.parameters):
            raise ValueError(f"supposing: the parameters are {', '.join(self.parameters) or 'none'}.")
        if self.pool == "hazard":
            if np.any((rate < 0) | (rate > 1)):
                raise ValueError("supposing: rates are probabilities, between 0 and 1.")
            most = -np.log1p(-np.minimum(rate, 1 - 1e-7))
            values |= {"hazard": most, "rate": rate, "change": np.full(len(self.space), change)}
        else:
            values |= {"weight": rate, "frame": np.full(len(self.space), change)}
        return SimpleNamespace(posterior={n: np.asarray(v)[None, None] for n, v in values.items()})

    def beliefs(
        self, fit: Any, num_draws: int | None = None, more: Sequence[str] = ()
    ) -> dict[str, jax.Array]:
        """Values of the sites of a fit (and of ``more``) with a leading axis of draws, evenly thinned."""
        posterior = fit.posterior
        wanted = ["hazard", "change"] if self.pool == "hazard" else ["weight", "frame"]
        wanted += [*self.parameters, *more]
        for name in wanted:
            if name not in posterior:
                raise ValueError(f"This is no fit of this world: it has no {name!r}.")
        found = {}
        for name in wanted:
            values = np.asarray(posterior[name])
            found[name] = values.reshape(-1, *values.shape[2:])
        if len(self.names) != found[wanted[0]].shape[-1]:
            raise ValueError(
                f"This is no fit of this world: it has {found[wanted[0]].shape[-1]} laws, the world {len(self.names)}."
            )
        total = len(found[wanted[0]])
        keep = (
            np.arange(total)
            if num_draws is None or num_draws >= total
            else np.linspace(0, total - 1, num_draws).astype(int)
        )
        return {n: jnp.asarray(v[keep], jnp.result_type(float)) for n, v in found.items()}

    # --------------------------------------------------------------------------------------------- likelihoods

    def check_routed(self, routed: Any) -> None:
        """Refuse what this world has not routed."""
        if not isinstance(routed, Routed):
            raise ValueError(
                f"World takes what its `route` returned, not {type(routed).__name__}: "
                "sj.fit(world.model, world.route(states, actions, next_states))."
            )
        if routed.book.laws != tuple(self.names):
            raise ValueError(
                "These transitions were routed by a world of other laws; route them by the world that is asked."
            )

    def situation_log_prob(self, beliefs: Beliefs, routed: Routed) -> jax.Array:
        """``(U,)``: log-probability of what came in each different situation."""
        return self.situation_law(beliefs, routed).log_prob(routed.value)

    @functools.cached_property
    def _situations(self) -> Any:
        return jax.jit(jax.vmap(self.situation_log_prob, in_axes=(0, None)))

    def log_likelihood(self, fit: Any, routed: Routed, *, num_draws: int | None = None) -> xr.DataArray:
        """Log-likelihood of every transition under posterior draws: what ArviZ compares models by.

        Args:
            fit: of this world.
            routed: the transitions.
            num_draws: at most so many draws, evenly spaced.

        Returns:
            ``(chain, draw, transition)``, with a single chain.
        """
        import xarray as xr

        values = self._transitions(self.beliefs(fit, num_draws), routed)
        return xr.DataArray(values[None], dims=("chain", "draw", "transition"), name="log_likelihood")

    def _transitions(self, beliefs: Beliefs, routed: Routed) -> np.ndarray:
        """``(S, T)``."""
        self.check_routed(routed)
        by_row = np.asarray(self._situations(beliefs, _padded(routed)), float)
        t, cell = np.nonzero(routed.book.row_of >= 0)
        rows = routed.book.row_of[t, cell]
        return np.stack(
            [np.bincount(t, weights=draw[rows], minlength=routed.num_transitions) for draw in by_row]
        )

    def log_prob(
        self, fit: Any, states: Any, actions: Any, next_states: Any, *, num_draws: int = 100
    ) -> np.ndarray:
        """Log-probability of next states, the posterior averaged over.

        Args:
            fit: of this world, or what :meth:`supposing` returned.
            states, actions, next_states: as :meth:`World.route` takes them.
            num_draws: at most so many posterior draws, evenly spaced.

        Returns:
            ``(T,)``: log of the mean probability.
        """
        routed = self.route(states, actions, next_states)
        return self._log_mean(self._transitions(self.beliefs(fit, num_draws), routed))

    @staticmethod
    def _log_mean(values: np.ndarray) -> np.ndarray:
        top = values.max(0)
        return top + np.log(np.exp(values - top).mean(0))

    def rank(
        self,
        fit: Any,
        transitions: Any,
        distractors: Sequence[Any],
        *,
        num_draws: int = 20,
        seed: int = 0,
    ) -> Ranking:
        """Rank true next states by their probability among distractors.

        Args:
            fit: of this world, or what :meth:`supposing` returned.
            transitions: states, actions and true next states.
            distractors: wrong next states, each stacked ``(T, ...)``, or a pair of such states and a mask ``(T,)`` of
                the transitions that they are for. Those equal to the truth do not count.
            num_draws: posterior draws averaged over.
            seed: breaks ties.
        """
        states, actions, truth = transitions
        actions = np.asarray(actions)
        num = len(actions)
        given = [d if isinstance(d, tuple) else (d, np.ones(num, bool)) for d in distractors]
        # All at once: what is asked in one piece is compiled once.
        asked = [truth, *(other for other, _ in given)]
        attributes = {a.group or a.name for a in self.space}
        asked = [{name: state[name] for name in attributes} for state in asked]
        whole = jax.tree.map(lambda *x: np.concatenate(x), *asked)
        before, done = jax.tree.map(
            lambda x: np.concatenate([np.asarray(x)] * len(asked)), (dict(states), actions)
        )
        log_prob = self.log_prob(fit, before, done, whole, num_draws=num_draws).reshape(len(asked), num)
        own = log_prob[0]
        rng = np.random.default_rng(seed)
        rank, candidates = np.ones(num, int), np.ones(num, int)
        ours = rng.random(num)
        for (other, applies), theirs in zip(given, log_prob[1:], strict=True):
            applies = np.asarray(applies) & (edit_distance(self.space, other, truth) > 0)
            tie = np.isclose(theirs, own, atol=1e-6)
            ahead = np.where(tie, rng.random(num) < ours, theirs > own)
            rank += applies & ahead
            candidates += applies
        return Ranking(rank, candidates, own)

    # --------------------------------------------------------------------------------------------- imagination

    @functools.cached_property
    def _rollout(self) -> Any:
        def one(key, beliefs, state, plan, leaks):
            def step(carry, action):
                key, state = carry
                key, key_step = jax.random.split(key)
                codes = next_codes(self, key_step, state, action, beliefs, leaks)
                after = decode_into(self.space, state, codes)
                if self.refresh is not None:
                    refreshed = self.refresh(state, action, after)
                    after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), refreshed, state)
                return (key, after), after

            return jax.lax.scan(step, (key, state), plan)[1]

        def many(keys, beliefs, state, plan, leaks):
            after = jax.vmap(one, in_axes=(0, 0, None, None, None))(keys, beliefs, state, plan, leaks)

            def join(first, rest):
                first = jnp.broadcast_to(jnp.asarray(first), (len(keys), 1, *jnp.shape(first)))
                return jnp.concatenate([first.astype(rest.dtype), rest], 1)

            return jax.tree.map(join, state, after)

        return jax.jit(many, static_argnums=4)

    def simulate(
        self, fit: Any, state: Any, plan: Any, *, num_paths: int = 100, seed: int = 0, leaks: bool = False
    ) -> dict[str, Any]:
        """Imagine what a plan leads to: paths from posterior draws, one draw a path.

        Args:
            fit: of this world, or what :meth:`supposing` returned.
            state: the state to begin from, without a leading axis.
            plan: ``(H,)`` actions.
            num_paths: how many.
            seed: of the random numbers.
            leaks: draw from the model's density to the letter, with the small probabilities that any value comes;
                otherwise, and under ``pool="product"`` in any case, attributes only take values that laws name.

        Returns:
            A state whose arrays are ``(num_paths, H + 1, ...)``, as NumPy arrays.
        """
        state = jax.tree.map(jnp.asarray, numeric(state))
        plan = jnp.asarray(plan)
        if plan.ndim == 0 or len(plan) == 0:
            raise ValueError("simulate: `plan` must hold at least one action.")
        if num_paths < 1:
            raise ValueError(f"simulate: `num_paths` must be at least 1, not {num_paths}.")
        self.look(state, plan[0])
        beliefs = self.beliefs(fit, None)
        total = len(next(iter(beliefs.values())))
        key = jax.random.key(seed)
        which = jax.random.permutation(key, jnp.arange(num_paths) % total)
        keys = jax.random.split(jax.random.fold_in(key, 1), num_paths)
        chosen = {n: v[which] for n, v in beliefs.items()}
        return jax.tree.map(np.asarray, self._rollout(keys, chosen, state, plan, leaks))

    def compare_plans(
        self,
        fit: Any,
        state: Any,
        plans: Mapping[str, Any],
        reward: Callable[[Mapping[str, Any]], Any],
        *,
        num_paths: int = 500,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Which plan promises most, by imagined rollouts.

        Args:
            fit: of this world, or what :meth:`supposing` returned.
            state: the state to begin from.
            plans: actions ``(H,)`` by the plan's name.
            reward: of paths ``(num_paths, H + 1, ...)`` as :meth:`simulate` returns them, ``(num_paths,)``.
            num_paths, seed: of the rollouts; every plan meets the same random numbers.

        Returns:
            A table by plan, the best first: ``reward`` (mean), ``error`` (its standard error), ``best`` (share of the
            paths, the posterior draw being the same, in which the plan does at least as well as any other).
        """
        import pandas as pd

        if not plans:
            raise ValueError("compare_plans: there are no plans.")
        gains = {}
        for name, plan in plans.items():
            gain = np.asarray(reward(self.simulate(fit, state, plan, num_paths=num_paths, seed=seed)), float)
            if gain.shape != (num_paths,):
                raise ValueError(
                    f"compare_plans: `reward` returned shape {gain.shape}; it must be one number a path, ({num_paths},)."
                )
            gains[name] = gain
        most = np.max(list(gains.values()), 0)
        table = pd.DataFrame(
            {
                "reward": {n: g.mean() for n, g in gains.items()},
                "error": {n: g.std(ddof=1) / np.sqrt(num_paths) for n, g in gains.items()},
                "best": {n: float((g >= most).mean()) for n, g in gains.items()},
            }
        )
        table.index.name = "plan"
        return table.sort_values("reward", ascending=False)

    # ------------------------------------------------------------------------------------------------ summary

    def summary(self, fit: Any, routed: Routed, *, prob: float = 0.9) -> pd.DataFrame:
        """The rule book, with what the data say of each law.

        Args:
            fit: of this world.
            routed: the transitions that it was fitted to.
            prob: of the intervals.

        Returns:
            A table by law: ``rate`` (posterior mean; ``weight`` under ``pool="product"``), ``low`` and ``high`` (equal
            tails), ``activations`` (how often its condition held), ``verdict``: "never seen" without activations; "real"
            where the rate is surely above what is left to a law that n activations never saw happen (with
            probability 0.95 each: a 5 % quantile above 1 - 0.05^(1 / (n + 1))); "absent" where it is surely below
            0.05; "open" otherwise (of a posterior mode: with the interval of a
            law that nothing competes with); and ``rivals``, laws that often held in the same situations, from which the data
            can tell it only where they did not hold.
        """
        import pandas as pd

        self.check_routed(routed)
        name = "rate" if self.pool == "hazard" else "weight"
        values = np.asarray(fit.posterior[name])
        values = values.reshape(-1, values.shape[-1])
        tail = (1 - prob) / 2
        seen = np.array([routed.activations[n] for n in self.names])
        rates = values if self.pool == "hazard" else -np.expm1(-values)
        if len(values) > 1:
            low, high = np.quantile(values, [tail, 1 - tail], axis=0)
            least, most = np.quantile(rates, [0.05, 0.95], axis=0)
        else:  # a mode has no interval; that of a law which nothing competes with says how sure one can be
            low = high = np.full(len(self.names), np.nan)
            hits = np.minimum(rates[0] * (seen + 1), seen)  # k of n, of which k / (n + 1) is the mode
            least, most = betaincinv(1 + hits, 1 + seen - hits, np.array([[0.05], [0.95]]))
        by_chance = 1 - 0.05 ** (1 / (seen + 1))
        verdict = np.select(
            [seen == 0, least > by_chance, most < _ABSENT], ["never seen", "real", "absent"], "open"
        )
        rivals = self.rivals(routed)
        table = pd.DataFrame(
            {
                name: values.mean(0),
                "low": low,
                "high": high,
                "activations": seen,
                "verdict": verdict,
                "rivals": [
                    ", ".join(
                        other
                        for other in rivals.columns
                        if other != n and rivals.loc[n, other] > 0.5 * max(a, 1)
                    )
                    for n, a in zip(self.names, seen, strict=True)
                ],
            },
            index=pd.Index(self.names, name="law"),
        )
        return table

    def rivals(self, routed: Routed) -> pd.DataFrame:
        """How often two laws held together and would have written the same attribute, by pairs.

        The data tell such laws apart only by what each would write; where they would write the same they share the
        credit, and only the posterior of both together is worth reading.
        """
        import pandas as pd

        rows = routed.rows
        total = np.zeros((len(self.names), len(self.names)))
        law, writes = np.asarray(rows.law), np.asarray(rows.writes)
        times = np.bincount(routed.book.row_of[routed.book.row_of >= 0], minlength=rows.num_rows)
        for a, b in itertools.combinations(range(law.shape[1]), 2):
            shared = (writes[:, a] & writes[:, b]).any(-1) & (law[:, a] != law[:, b])
            np.add.at(total, (law[shared, a], law[shared, b]), times[shared])
            np.add.at(total, (law[shared, b], law[shared, a]), times[shared])
        return pd.DataFrame(total.astype(int), index=self.names, columns=self.names)
