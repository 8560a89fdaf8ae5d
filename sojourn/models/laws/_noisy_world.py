"""A world under stochasticity: its transitions and its model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

from sojourn._arguments import is_list, must_be
from sojourn.environments import Transitions, hooks
from sojourn.models.laws._cast import cast_one, numeric, with_shape
from sojourn.models.laws._routing import Routed
from sojourn.models.laws._space import HIDDEN
from sojourn.models.laws._stochasticity import (
    CyclicDrift,
    Hidden,
    RandomAction,
    RandomEvent,
    Represented,
    StickyAction,
    SuddenDrift,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NoisyWorld", "RoutedSeries"]


@dataclass(frozen=True, eq=False)
class _Start:
    hazard: np.ndarray | None = None
    hazard_after: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RoutedSeries:
    """Transitions as the model of a :class:`NoisyWorld` takes them."""

    routed: Routed
    """All variants of all transitions: by executed action, and with what events override not seen."""
    situations: Any
    """``(P, A, E, N)``: situations of each variant, as many as there are for none."""
    meant: Any
    """``(P,)``: the action that was meant."""
    event: Any
    """``(P, k)``: log-probability of what was seen if the event happened; NaN where it cannot happen."""
    begins: Any
    """``(P,)``: whether a life begins here."""
    count: Any
    """``(P,)``: how often, where the order does not matter and equal transitions are merged."""
    start: _Start = field(metadata={"static": True})
    """Where a fit begins: never traced."""

    @property
    def activations(self) -> dict[str, int]:
        """How often the condition of each law held, given the actions that were meant."""
        return self.routed.activations

    def __repr__(self) -> str:
        return (
            f"RoutedSeries({len(self.meant)} different transitions, {self.routed.rows.num_rows} situations)"
        )


class NoisyWorld:
    """A world under some kinds of stochasticity; made by :meth:`World.under`."""

    def __init__(self, world: Any, transforms: Sequence[Any]):
        must_be(hasattr(world, "pool") and hasattr(world, "names"), "world", "a World", world)
        must_be(is_list(transforms), "transforms", "a list of kinds of stochasticity", transforms)
        self.world = world
        self.transforms = list(transforms)
        kinds = (RandomAction, StickyAction, RandomEvent, SuddenDrift, CyclicDrift, Hidden, Represented)
        for transform in self.transforms:
            if not isinstance(transform, kinds):
                raise ValueError(
                    f"under: {transform!r} is none of {', '.join(kind.__name__ for kind in kinds)}."
                )
        self.action = self._only(RandomAction, StickyAction)
        self.drift = self._only(SuddenDrift, CyclicDrift)
        self.events = [t for t in self.transforms if isinstance(t, RandomEvent)]
        self.decoders = [t.decode for t in self.transforms if isinstance(t, Represented)]
        names = [t.event.name for t in self.events]
        taken = [n for n in names if n in world.names or names.count(n) > 1]
        if taken:
            raise ValueError(f"under: there is already a law called {taken[0]!r}.")
        if self.drift is not None:
            wanted = world.names if self.drift.laws is None else self.drift.laws
            unknown = [n for n in wanted if n not in world.names]
            if unknown:
                raise ValueError(f"under: there is no law {unknown[0]!r} to drift.")
            self.drifting = [world.names.index(n) for n in wanted]
        if world.pool != "hazard" and self.drift is not None:
            raise ValueError("under: drift is for worlds with pool='hazard'.")

    def _only(self, *kinds: type) -> Any:
        found = [t for t in self.transforms if isinstance(t, kinds)]
        if len(found) > 1:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"under: at most one {names} at a time.")
        return found[0] if found else None

    @property
    def names(self) -> list[str]:
        """Names of the laws."""
        return self.world.names

    @property
    def _sequential(self) -> bool:
        return isinstance(self.action, StickyAction) or self.drift is not None

    # ------------------------------------------------------------------------------------------------ routing

    def route(
        self, states: Any, actions: Any, next_states: Any, *, begins: Any = None, chunk: int | None = None
    ) -> RoutedSeries:
        """As :meth:`World.route`, once for every action that may have been executed.

        Args:
            states, actions, next_states: as there, in the order of time; actions are whole numbers.
            begins: ``(T,)``, where a life begins; by default where a state is not the one that came before.
            chunk: as there.
        """
        actions = np.asarray(actions)
        if actions.ndim != 1 or actions.dtype.kind not in "iu":
            raise ValueError("route: actions under stochasticity must be whole numbers (T,).")
        num = len(actions)
        for decode in reversed(self.decoders):
            decoded = hooks.represented(Transitions(states, actions, next_states), decode)
            states, actions, next_states = decoded
        states, next_states = numeric(states), numeric(next_states)
        if num == 0:
            raise ValueError("route: there are no transitions.")
        executed = range(1) if self.action is None else range(self.action.num_actions)
        if self.action is not None and not np.all((actions >= 0) & (actions < len(executed))):
            raise ValueError(f"route: actions must lie between 0 and {len(executed) - 1}.")
        event, hidden = self._events(states, actions, next_states)
        parts = []
        for e in executed:
            given = actions if self.action is None else np.full_like(actions, e)
            parts += [(states, given, after) for after in hidden]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        options = {} if chunk is None else {"chunk": chunk}
        routed = self.world.route(*joined, **options)
        rows = routed.book.row_of.reshape(len(executed), len(hidden), num, -1)
        rows = np.where(rows < 0, routed.rows.num_rows, rows)
        rows = np.sort(rows, -1)
        rows = rows[..., : max(int((rows < routed.rows.num_rows).sum(-1).max()), 1)]
        situations = np.moveaxis(rows, 2, 0)
        begins = self._begins(states, next_states, num) if begins is None else np.asarray(begins, bool)
        meant = actions.astype(np.int32)
        count: Any = np.ones(num)
        if not self._sequential:
            keys = [situations.reshape(num, -1), meant[:, None], np.nan_to_num(event, nan=1.0).round(9)]
            _, index, count = np.unique(
                np.concatenate(keys, 1), axis=0, return_index=True, return_counts=True
            )
            situations, meant, event, begins = situations[index], meant[index], event[index], begins[index]
        activations = self._activations(routed, actions, len(hidden))
        routed = replace(routed, book=replace(routed.book, activations=activations))
        start = _Start() if self.drift is None else self._begin_at(routed, situations, meant)
        return RoutedSeries(routed, situations, meant, event, begins, np.asarray(count, float), start)

    def _begin_at(self, routed: Routed, situations: np.ndarray, meant: np.ndarray) -> _Start:
        """Rates before and after the change that fit best if laws did not compete.

        Two regimes that begin alike part only slowly, and may end with a change at the very edge of the data.
        """
        num, rows = len(meant), routed.rows
        hit = (rows.label == routed.value[:, None, :, None]) & (routed.value > 0)[:, None, :, None]
        hit = hit.any((2, 3))  # (U, M)
        by_row = np.zeros((2, rows.num_rows + 1, len(self.names) + 1))
        which = np.arange(rows.num_rows)[:, None]
        np.add.at(by_row[0], (which, rows.law), 1.0)
        np.add.at(by_row[1], (which, rows.law), hit)
        action = meant if situations.shape[1] > 1 else np.zeros(num, int)
        met = situations[np.arange(num), action, 0]  # (T, N)
        held, happened = by_row[:, met, :-1].sum(2)  # (T, L)

        def split(held, happened):
            rate = (happened + 0.5) / (held + 1.0)
            return rate, (happened * np.log(rate) + (held - happened) * np.log1p(-rate)).sum(-1)

        if isinstance(self.drift, SuddenDrift):
            first = np.cumsum(held, 0)[:-1], np.cumsum(happened, 0)[:-1]
        else:
            masks = self._in_first(num).astype(float)
            first = masks @ held, masks @ happened
        rate, fits = split(*first)
        rate_after, fits_after = split(held.sum(0) - first[0], happened.sum(0) - first[1])
        best = int(np.argmax(fits + fits_after))
        hazards = [-np.log1p(-r[best]) for r in (rate, rate_after)]
        return _Start(hazards[0], hazards[1][self.drifting])

    def _activations(self, routed: Routed, actions: np.ndarray, variants: int) -> dict[str, int]:
        """By the actions that were meant."""
        num = len(actions)
        copies = len(routed.book.row_of) // (num * variants)
        law = np.asarray(routed.rows.law)
        found = np.zeros(len(self.names) + 1, int)
        which = actions if copies > 1 else np.zeros(num, int)
        rows = routed.book.row_of.reshape(copies, variants, num, -1)[which, 0, np.arange(num)]
        per_row = np.bincount(rows[rows >= 0], minlength=len(law))
        np.add.at(found, law, per_row[:, None])
        return dict(zip(self.names, found[:-1].tolist(), strict=True))

    def _events(self, states: Any, actions: np.ndarray, next_states: Any) -> tuple[np.ndarray, list[Any]]:
        """``(T, k)`` log-probabilities, and next states with every subset of events' attributes not seen."""
        space = self.world.space
        num = len(actions)
        log_probs = np.zeros((num, len(self.events)))
        overridden = []
        taken: set[str] = set()
        values, exists = space.read_next(states, next_states)
        for k, transform in enumerate(self.events):
            law = transform.event
            shape, cast = with_shape(
                lambda s, a, shape, law=law: cast_one(space, law, s, s, a, {}, shape), states, actions
            )
            names = [w.attribute.name for w in shape.writes]
            if taken & set(names):
                raise ValueError(f"under: two events override {sorted(taken & set(names))[0]!r}.")
            taken |= set(names)
            overridden.append(names)
            total = np.zeros(num)
            for j, write in enumerate(shape.writes):
                came = values[:, write.attribute.first]
                seen = exists[:, write.attribute.first] & (came != HIDDEN)
                if write.uniform:
                    p = np.full(num, 1.0 / write.attribute.size)
                else:
                    hit = np.asarray(cast.values[j]) == came[:, None]
                    p = (np.asarray(cast.probs[j], float) * hit).sum(-1)
                total += np.where(seen, np.log(np.maximum(p, 1e-30)), 0.0)
            log_probs[:, k] = np.where(np.asarray(cast.active), total, np.nan)
        variants = []
        for happened in itertools.product((False, True), repeat=len(self.events)):
            after = dict(next_states)
            for names, yes in zip(overridden, happened, strict=True):
                for name in names if yes else ():
                    after[name] = np.full_like(np.asarray(next_states[name]), HIDDEN)
            variants.append(after)
        return log_probs, variants

    def _begins(self, states: Any, next_states: Any, num: int) -> np.ndarray:
        values, _ = self.world.space.read(states, "states")
        following, _ = self.world.space.read_next(states, next_states)
        stable = np.concatenate([np.full(a.slots, a.group is None) for a in self.world.space])
        both = (values[1:] != HIDDEN) & (following[:-1] != HIDDEN) & stable
        joined = ((values[1:] == following[:-1]) | ~both).all(1)
        return np.concatenate([[True], ~joined])[:num]

    # -------------------------------------------------------------------------------------------------- model

    def model(self, series: RoutedSeries | None = None) -> None:
        """The NumPyro model: the world's sites, and those of the stochasticity.

        The observed site ``as_seen`` says of each transition (of the whole series, where the order matters) that it
        came as it was seen: its probability is the likelihood.

        Args:
            series: what :meth:`route` returned; ``None`` for the prior alone.
        """
        if series is not None and not isinstance(series, RoutedSeries):
            raise ValueError(
                f"A world under stochasticity takes what its own `route` returned, not {type(series).__name__}."
            )
        beliefs = self._sample_beliefs(_Start() if series is None else series.start)
        if series is None:
            return
        log_prob = self._log_prob(beliefs, series)
        if self._sequential:
            numpyro.sample("as_seen", _certain(log_prob), obs=1)
            return
        with numpyro.plate("transition", len(series.meant)), handlers.scale(scale=jnp.asarray(series.count)):
            numpyro.sample("as_seen", _certain(log_prob), obs=np.ones(len(series.meant), np.int32))

    def _sample_beliefs(self, start: _Start) -> dict[str, Any]:
        beliefs = self.world.sample_beliefs(start.hazard)
        if self.drift is not None:
            names = [self.world.names[i] for i in self.drifting]
            dims: dict[str, Any] = {"event_dims": ["drifting_law"], "event_coords": {"drifting_law": names}}
            dims["dims_of"] = {"rate_after": ["drifting_law"]}
            if start.hazard_after is not None:
                dims["init"] = start.hazard_after
            prior = self.world.hazard_prior(self.drifting)
            beliefs["hazard_after"] = numpyro.sample("hazard_after", prior, infer=dims)
            numpyro.deterministic("rate_after", -jnp.expm1(-beliefs["hazard_after"]))
        for transform in (self.action, *self.events):
            if transform is not None:
                beliefs[transform.site] = numpyro.sample(transform.site, transform.prior)
        return beliefs

    def _log_prob(self, beliefs: Mapping[str, Any], series: RoutedSeries) -> Array:
        """``(P,)``, or ``()`` where the order matters."""
        by_action = self._by_action(beliefs, series)
        if isinstance(self.action, StickyAction):
            return self._sticky(beliefs[self.action.site], by_action, series)
        by_regime = self._executed(beliefs, by_action, series)
        if self.drift is None:
            return by_regime[0]
        return self._summed(self._moments(by_regime))

    def _by_action(self, beliefs: Mapping[str, Any], series: RoutedSeries) -> Array:
        """``(R, P, A)``: log-probability of each transition by regime and executed action."""
        regimes = [beliefs]
        if self.drift is not None:
            after = beliefs["hazard"].at[np.array(self.drifting)].set(beliefs["hazard_after"])
            regimes.append({**beliefs, "hazard": after})
        log_probs = []
        for regime in regimes:
            rows = self.world.situation_log_prob(regime, series.routed)
            rows = jnp.append(rows, jnp.zeros(1, rows.dtype))
            log_probs.append(rows[series.situations].sum(-1))  # (P, A, E)
        stacked = jnp.stack(log_probs)
        if not self.events:
            return stacked[..., 0]
        terms = []
        for v, happened in enumerate(itertools.product((False, True), repeat=len(self.events))):
            term = stacked[..., v]
            for k, (transform, yes) in enumerate(zip(self.events, happened, strict=True)):
                can = ~jnp.isnan(series.event[:, k])
                rate = beliefs[transform.site]
                if yes:
                    extra = jnp.where(can, jnp.log(rate) + jnp.where(can, series.event[:, k], 0.0), -jnp.inf)
                else:
                    extra = jnp.where(can, jnp.log1p(-rate), 0.0)
                term = term + extra[:, None]
            terms.append(term)
        return jax.nn.logsumexp(jnp.stack(terms), 0)

    def _executed(self, beliefs: Mapping[str, Any], by_action: Array, series: RoutedSeries) -> Array:
        """``(R, P)``: the executed action summed out."""
        if self.action is None:
            return by_action[..., 0]
        p, num = beliefs[self.action.site], self.action.num_actions
        meant = jax.nn.one_hot(series.meant, num, dtype=by_action.dtype)
        return jax.nn.logsumexp(by_action + jnp.log((1 - p) * meant + p / num), -1)

    def _moments(self, by_regime: Array) -> Array:
        """``(M,)``: log-probability of all data by the time of the change, or by the period."""
        before, after = by_regime
        if isinstance(self.drift, SuddenDrift):
            left, right = jnp.cumsum(before), jnp.cumsum(after)
            return left[:-1] + (right[-1] - right[:-1])
        first = self._in_first(before.shape[0])
        return jnp.where(first, before, after).sum(-1)

    def _in_first(self, num: int) -> np.ndarray:
        """``(M, T)``: whether a step belongs to the first concept, by period."""
        return (np.arange(num) // np.array(self.drift.every)[:, None]) % 2 == 0

    @staticmethod
    def _summed(moments: Array) -> Array:
        return jax.nn.logsumexp(moments) - jnp.log(1.0 * moments.shape[0])

    def _sticky(self, stickiness: Array, by_action: Array, series: RoutedSeries) -> Array:
        """Forward algorithm over (regime, executed action)."""
        regimes, steps, num = by_action.shape
        meant = jax.nn.one_hot(series.meant, num, dtype=by_action.dtype)
        sudden = isinstance(self.drift, SuddenDrift)
        t = np.arange(steps)
        # chance that the change comes between the step before and this one, all times being equally likely
        switch = np.where(t == 0, 0.0, 1.0 / np.maximum(steps - t, 1)) if sudden else np.zeros(steps)

        def forward(first):
            def step(belief, x):
                log_probs, meant, begins, switch, first = x
                total = belief.sum(-1, keepdims=True)
                moved = (1 - stickiness) * total * meant + stickiness * belief
                moved = jnp.where(begins, total * meant, moved)
                if sudden:
                    moved = jnp.stack([(1 - switch) * moved[0], moved[1] + switch * moved[0]])
                elif regimes > 1:
                    moved = moved.sum(0) * jnp.stack([first, 1 - first])[:, None]
                top = log_probs.max()
                new = moved * jnp.exp(log_probs - top)
                evidence = new.sum()
                return new / evidence, jnp.log(evidence) + top

            start = jnp.zeros((regimes, num), by_action.dtype).at[0].set(1.0 / num)
            xs = (
                jnp.moveaxis(by_action, 1, 0),
                meant,
                jnp.asarray(series.begins),
                jnp.asarray(switch),
                first,
            )
            return jax.lax.scan(step, start, xs)[1].sum()

        if isinstance(self.drift, CyclicDrift):
            first = jnp.asarray(self._in_first(steps), by_action.dtype)
            return self._summed(jax.vmap(forward)(first))
        return forward(jnp.ones(steps, by_action.dtype))

    # ---------------------------------------------------------------------------------------------- questions

    def summary(self, fit: Any, series: RoutedSeries, **options: Any) -> pd.DataFrame:
        """As :meth:`World.summary`; of drifting laws these are the rates before the change."""
        return self.world.summary(fit, series.routed, **options)

    def moment(self, fit: Any, series: RoutedSeries, *, num_draws: int = 100) -> pd.Series:
        """When the laws changed: posterior probability of every step, or of every period.

        Args:
            fit: of this world.
            series: the transitions that it was fitted to.
            num_draws: at most so many posterior draws, evenly spaced.

        Returns:
            Probabilities, by the first step under the new rates (counted from 1) after :class:`SuddenDrift`, by the
            number of steps of a turn after :class:`CyclicDrift`.

        Raises:
            ValueError: no drift; sticky actions, under which the time is summed out together with the actions.
        """
        import pandas as pd

        if self.drift is None or isinstance(self.action, StickyAction):
            raise ValueError("moment: ask it of a world under drift, and without sticky actions.")
        beliefs = self.world.beliefs(fit, num_draws, [*self._own_sites(), "hazard_after"])
        log_probs = self._by_moment(beliefs, series)
        probabilities = np.asarray(jax.nn.softmax(log_probs, -1)).mean(0)
        if isinstance(self.drift, SuddenDrift):
            return pd.Series(probabilities, index=pd.RangeIndex(2, len(probabilities) + 2, name="step"))
        return pd.Series(probabilities, index=pd.Index(self.drift.every, name="every"))

    def _own_sites(self) -> list[str]:
        return [t.site for t in (self.action, *self.events) if t is not None]

    @functools.cached_property
    def _by_moment(self) -> Any:
        def one(beliefs, series):
            return self._moments(self._executed(beliefs, self._by_action(beliefs, series), series))

        return jax.jit(jax.vmap(one, in_axes=(0, None)))


def _certain(log_prob: Array) -> dist.Distribution:
    """A truth value that is one with this log-probability."""
    log_prob = jnp.minimum(log_prob, -1e-7)
    return dist.BernoulliLogits(log_prob - jnp.log(-jnp.expm1(log_prob)))
