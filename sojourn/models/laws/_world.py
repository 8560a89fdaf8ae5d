"""A world: attributes, laws, and how laws that hold together are pooled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints

from sojourn._arguments import is_list, must_be, numbers, positive_numbers
from sojourn.distributions import CompetingLaws, LogLinearLaws
from sojourn.models._given import check_priors
from sojourn.models.laws._answers import Answers
from sojourn.models.laws._cast import LawShape, cast_one, numeric, shapes_of
from sojourn.models.laws._imagine import Beliefs, levels_of
from sojourn.models.laws._law import Law
from sojourn.models.laws._noisy_world import NoisyWorld
from sojourn.models.laws._path import path_model
from sojourn.models.laws._routing import Routed, Router
from sojourn.models.laws._space import Space

__all__ = ["World"]

POOLS = ("hazard", "product")
_CHUNK = 1024  # filled up where there are fewer, so that laws are compiled once


class _RateToHazard(dist.transforms.ParameterFreeTransform):
    """``-log(1 - rate)``."""

    domain = constraints.unit_interval
    codomain = constraints.positive

    def __call__(self, x: Array) -> Array:
        return -jnp.log1p(-x)

    def _inverse(self, y: Array) -> Array:
        return -jnp.expm1(-y)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return y


class World(Answers):
    r"""A stochastic world made of laws, and its NumPyro model.

    Which laws hold is known from the state and the action; whether they *happen* is what the data tell. Laws that hold
    together and write the same attribute are pooled:

    ``pool="hazard"`` (the default)
        Competing hazards. Each law has a hazard :math:`w`, and a *rate* :math:`1 - e^{-w}`, the probability that it
        happens if nothing competes. A rate of zero is a world without the law. With one law alone and the uniform
        prior the posterior of the rate is exactly Beta(1 + hits, 1 + misses). A law that writes several attributes
        writes all or none: laws ring at exponential times within the step, and one that finds an attribute of its own
        already written is void.
    ``pool="product"``
        The log-linear pool of OneLife (Khan et al. 2025): laws vote with weights for the values that they name, each
        attribute alone, and so does "no change".

    Attributes that no law writes keep their value up to a rate of unexplained ``change``, one an attribute: where it
    is large, a law is missing.

    Args:
        space: attributes with their supports.
        laws: at least one, with distinct names.
        pool: see above.
        prior: of the rates of laws without one of their own (hazard).
        change: prior of the rates of unexplained change (hazard).
        penalty: of the weights, the rate of their exponential prior (product); OneLife's is 0.001.
        boost: score of a value that a law names (product), instead of one by its probability; OneLife's is 10.
        noise: probability that a law that happens writes any value whatever.
        refresh: ``refresh(state, action, next_state) -> next_state`` brings the context (whatever the space does not
            declare) up to date after a step that is imagined; by default it stays.

    Raises:
        ValueError: no law; two of one name; a class of objects or an attribute that the space lacks; an unknown pool;
            a rate prior under ``pool="product"``.

    Example:
        >>> import numpy as np, sojourn as sj
        >>> from sojourn.models.laws import Space, World, law, levels, when
        >>> space = Space(energy=levels(10))
        >>> @law
        ... def tire(s, a):
        ...     return when(a == 1, energy=s.energy - 1)
        >>> @law
        ... def recover(s, a):
        ...     return when(a == 0, energy=s.energy + 1)
        >>> world = World(space, [tire, recover])
        >>> rng = np.random.default_rng(0)
        >>> energy, action = rng.integers(2, 8, 300), rng.integers(0, 2, 300)
        >>> after = energy - (action == 1) * (rng.random(300) < 0.2)
        >>> seen = world.route({"energy": energy}, action, {"energy": after})
        >>> seen
        Routed(300 transitions, 300 situations, 3 of them different)
        >>> fit = sj.fit(world.model, seen, num_chains=2, num_warmup=300, num_samples=300, progress_bar=False)
        >>> world.summary(fit, seen)["verdict"].to_dict(), round(float(fit.posterior["rate"][..., 0].mean()), 1)
        ({'tire': 'real', 'recover': 'absent'}, 0.2)
    """

    def __init__(
        self,
        space: Space,
        laws: Sequence[Law],
        *,
        pool: str = "hazard",
        prior: dist.Beta | None = None,
        change: dist.Distribution | None = None,
        penalty: float = 1.0,
        boost: float | None = None,
        noise: float = 1e-3,
        refresh: Callable[[Any, Any, Any], Any] | None = None,
    ):
        must_be(isinstance(space, Space), "space", "a Space", space)
        must_be(is_list(laws), "laws", "a list of laws", laws)
        check_priors(change=change)
        must_be(
            refresh is None or callable(refresh),
            "refresh",
            "a function of state, action and next state",
            refresh,
        )
        penalty = positive_numbers(penalty, "penalty", zero=True)
        if boost is not None:
            boost = positive_numbers(boost, "boost")
        self.space = space
        self.laws = list(laws)
        if not self.laws:
            raise ValueError("World: there is no law at all; give it at least one.")
        for law in self.laws:
            if not isinstance(law, Law):
                raise ValueError(f"World: {law!r} is no law; decorate the function with @law.")
        self.names = [law.name for law in self.laws]
        twice = sorted({n for n in self.names if self.names.count(n) > 1})
        if twice:
            raise ValueError(
                f"World: {len(self.laws)} laws, but more than one is called {twice[0]!r}; give each its own name."
            )
        if pool not in POOLS:
            raise ValueError(f"World: `pool` is 'hazard' or 'product', not {pool!r}.")
        if not 0 < numbers(noise, "noise") < 1:
            raise ValueError(f"World: `noise` is a probability above 0 and below 1, not {noise!r}.")
        for law in self.laws:
            if law.each is not None and law.each not in space.groups:
                raise ValueError(
                    f"law {law.name!r} is about each {law.each!r}, which the space lacks; its classes of objects are "
                    f"{', '.join(space.groups) or 'none'}."
                )
            for name in law.after:
                if name not in space.attributes:
                    raise ValueError(
                        f"law {law.name!r} cannot see {name!r} after the step: the space lacks it; it has "
                        f"{', '.join(space.attributes)}."
                    )
            if pool == "product" and law.prior is not None:
                raise ValueError(
                    f"law {law.name!r} has a prior of its rate, which pool='product' does not know; its weights have "
                    "the prior that `penalty` says."
                )
        if prior is not None and not isinstance(prior, dist.Beta):
            raise ValueError(f"World: `prior` is a Beta distribution of rates, not {type(prior).__name__}.")
        self.pool = pool
        self.prior = dist.Beta(1.0, 1.0) if prior is None else prior
        self.change = dist.Beta(1.0, 20.0) if change is None else change
        self.penalty = penalty
        self.boost = boost
        self.noise = noise
        self.refresh = refresh
        self.attribute_of = space.attribute_of_cell()
        self.sizes = np.array([a.size for a in space])
        self.parameters = {
            f"{law.name}.{name}": prior for law in self.laws for name, prior in law.parameters.items()
        }
        self.levels: list[int] = []
        self._shapes: list[LawShape] | None = None

    def __repr__(self) -> str:
        return f"World({len(self.laws)} laws over {self.space!r}, pool={self.pool!r})"

    # ---------------------------------------------------------------------------------------------- structure

    @property
    def shapes(self) -> list[LawShape]:
        """What each law writes and reads; known once a state has been seen."""
        if self._shapes is None:
            raise ValueError(
                "World: it has seen no state yet, so that it does not know what its laws write; call `route` first."
            )
        return self._shapes

    @functools.cached_property
    def cells(self) -> list[np.ndarray]:
        """``(slots, writes)`` by law: which cells it writes."""
        return [shape.cells(law, self.space) for law, shape in zip(self.laws, self.shapes, strict=True)]

    def look(self, state: Mapping[str, Any], action: Any = 0) -> None:
        """Read off one state what the laws write; :meth:`route` does so by itself."""
        if self._shapes is None:
            state = numeric(state)
            shapes = shapes_of(self.space, self.laws, state, jnp.asarray(action), self._prior_draw(0))
            self.levels = levels_of(self.space, self.laws, shapes)
            self._shapes = shapes

    def _prior_draw(self, seed: int) -> dict[str, dict[str, Array]]:
        """Values of the parameters, by law."""
        draws: dict[str, dict[str, Array]] = {}
        for i, law in enumerate(self.laws):
            draws[law.name] = {
                name: prior.sample(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), j))
                for j, (name, prior) in enumerate(law.parameters.items())
            }
        return draws

    def law_parameters(self, number: int, beliefs: Beliefs) -> dict[str, Any]:
        """The parameters of one law among the values of all sites."""
        law = self.laws[number]
        return {name: beliefs[f"{law.name}.{name}"] for name in law.parameters}

    # ------------------------------------------------------------------------------------------------ routing

    def route(
        self,
        states: Mapping[str, Any],
        actions: Any,
        next_states: Mapping[str, Any],
        *,
        weights: Any = None,
        chunk: int = _CHUNK,
    ) -> Routed:
        """Transitions as the model takes them: who holds where, equal situations merged.

        A situation is one attribute, or several that laws which hold tie together, with the laws that hold, what they
        would write and what came. Values count only by whether they are equal, so that situations from different
        places merge, and a fit costs no more for more transitions.

        Args:
            states: named arrays ``(T, ...)``; whole numbers for attributes, pairs ``(T, 2)`` for cells, mappings for
                classes of objects. -1 means not seen: what depends on it is left out, and an unseen next value is
                summed out.
            actions: ``(T,)``, or anything with a leading axis that the laws understand.
            next_states: as ``states``; only attributes are read.
            weights: ``(T,)``, not negative: how much each transition counts.
            chunk: transitions looked at a time; memory grows with it.

        Raises:
            ValueError: a missing attribute, a wrong shape, a value outside its support; a law that writes what the
                space lacks or outside a support, or reads what the states do not hold, or whose probabilities do not
                sum to one; lengths that differ.
            NotImplementedError: a law with parameters whose probabilities depend on the state as well.
        """
        actions = np.asarray(actions)
        num = len(actions) if actions.ndim else 0
        if num == 0:
            raise ValueError("route: there are no transitions.")
        states, next_states = numeric(states), numeric(next_states)
        for what, given in (("states", states), ("next_states", next_states)):
            lengths = {len(x) for x in jax.tree.leaves(given)}
            if lengths != {num}:
                raise ValueError(f"route: `{what}` has {sorted(lengths)} rows, and there are {num} actions.")
        if weights is not None:
            weights = np.asarray(weights, float)
            if weights.shape != (num,) or not np.all(weights >= 0):
                raise ValueError(
                    f"route: `weights` must be {num} numbers that are not negative, one a transition."
                )
        current, exists = self.space.read(states, "states")
        following, exists_after = self.space.read_next(states, next_states)
        self.look(_at(states, 0), actions[0])
        router = Router(self.space, self.laws, self.shapes, joint=self.pool == "hazard")
        after = {name: next_states[name] for name in self._read_after()}
        for begin in range(0, num, chunk):
            stop = min(begin + chunk, num)
            which = np.minimum(np.arange(begin, begin + chunk), stop - 1)  # the last one is filled up
            casts = self._cast(states, after, actions, which, stop - begin, first=begin == 0)
            part = slice(begin, stop)
            router.add(current[part], exists[part], following[part], exists_after[part], casts)
        example = jax.tree.map(jnp.asarray, (_at(states, 0), _at(after, 0), actions[0]))
        return router.finish(weights, example)

    def _read_after(self) -> list[str]:
        """Entries of the next state that some law reads."""
        names = {n for law in self.laws for n in law.after}
        return sorted({self.space.attributes[n].group or n for n in names})

    def _cast(self, states, after, actions, which, num, *, first):
        part = _at(states, which), _at(after, which), actions[which]
        draw = self._prior_draw(0)
        casts = jax.tree.map(lambda x: np.asarray(x)[:num], self._cast_all(*part, draw))
        with_parameters = [i for i, law in enumerate(self.laws) if law.parameters]
        if with_parameters:
            others = self._cast_all(*part, self._prior_draw(1)) if first else casts
            for i in with_parameters:
                self._check_parameters(
                    self.laws[i], casts[i], jax.tree.map(lambda x: np.asarray(x)[:num], others[i])
                )
        return casts

    @functools.cached_property
    def _cast_all(self) -> Any:
        """All laws on a chunk of transitions, compiled once."""

        def one(state, after, action, parameters):
            return tuple(
                cast_one(self.space, law, state, after, action, parameters[law.name]) for law in self.laws
            )

        return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))

    def _check_parameters(self, law: Law, cast: Any, other: Any) -> None:
        same = all(np.array_equal(a, b) for a, b in zip(cast.values, other.values, strict=True))
        if not same or not np.array_equal(cast.active, other.active):
            raise ValueError(
                f"law {law.name!r}: its condition or its values depend on a parameter; only the probabilities of "
                "outcomes may."
            )
        for probs in cast.probs:
            flat = probs.reshape(-1, probs.shape[-1])
            if not np.allclose(flat, flat[0], atol=1e-6):
                raise NotImplementedError(
                    f"law {law.name!r}: its probabilities depend on a parameter and on the state; make a law of each case."
                )

    # -------------------------------------------------------------------------------------------------- model

    def model(self, routed: Routed | None = None) -> None:
        """The NumPyro model.

        Sites: ``hazard`` (law) and the deterministic ``rate``, ``change`` (attribute), or ``weight`` and ``frame``;
        ``"<law>.<parameter>"``; ``next``, the observed labels of the situations.

        Args:
            routed: what :meth:`route` returned; ``None`` for the prior alone.
        """
        if routed is not None:
            self.check_routed(routed)
        beliefs = self.sample_beliefs()
        if routed is None:
            return
        num = routed.rows.num_rows
        with numpyro.plate("situation", num), handlers.scale(scale=jnp.asarray(routed.count)):
            numpyro.sample(
                "next", self.situation_law(beliefs, routed), obs=routed.value, infer={"event_dims": ["cell"]}
            )

    def sample_beliefs(self, start: np.ndarray | None = None) -> dict[str, Any]:
        """The latent sites of the model; ``start`` says where hazards are to begin."""
        laws: dict[str, Any] = {
            "event_dims": ["law"],
            "event_coords": {"law": self.names},
            "dims_of": {"rate": ["law"]},
        }
        attributes = {"event_dims": ["attribute"], "event_coords": {"attribute": list(self.space.attributes)}}
        if start is not None:
            laws["init"] = start
        num = len(self.space)
        beliefs: dict[str, Any] = {}
        if self.pool == "hazard":
            beliefs["hazard"] = numpyro.sample("hazard", self.hazard_prior(), infer=laws)
            numpyro.deterministic("rate", -jnp.expm1(-beliefs["hazard"]))
            change = self.change.expand((num,)).to_event(1)
            beliefs["change"] = numpyro.sample("change", change, infer=attributes)
        else:
            weight = dist.Exponential(self.penalty)
            beliefs["weight"] = numpyro.sample(
                "weight", weight.expand((len(self.laws),)).to_event(1), infer=laws
            )
            beliefs["frame"] = numpyro.sample("frame", weight.expand((num,)).to_event(1), infer=attributes)
        for name, prior in self.parameters.items():
            beliefs[name] = numpyro.sample(name, prior)
        return beliefs

    def hazard_prior(self, which: Sequence[int] | None = None) -> dist.Distribution:
        """Prior of the hazards of all laws, or of some."""
        chosen = self.laws if which is None else [self.laws[i] for i in which]
        priors = [law.prior or self.prior for law in chosen]
        one = np.array([float(p.concentration1) for p in priors])
        zero = np.array([float(p.concentration0) for p in priors])
        if np.all(one == 1):  # 1 - rate is Beta(b, 1), so that the hazard is exponential
            return dist.Exponential(jnp.asarray(zero, jnp.result_type(float))).to_event(1)
        beta = dist.Beta(jnp.asarray(one, jnp.result_type(float)), jnp.asarray(zero, jnp.result_type(float)))
        return dist.TransformedDistribution(beta, [_RateToHazard()]).to_event(1)

    def path(self, series: Mapping[str, Any], actions: Any) -> None:
        """The NumPyro model of one life of which not everything was seen: the state is a path of sample sites.

        What was not seen is inferred together with the rates; give it to an engine for hidden paths, such as
        ``engine="particle_gibbs"``. :meth:`model` leaves out what depends on unseen values instead, and is much
        cheaper where enough is left.

        Sites: those of :meth:`model`; in the ``scan`` ``seen_<phase>``, which holds the data, ``state_<phase>`` and the
        deterministic ``state`` (time, cell), codes of all attributes of the T + 1 states: whole numbers,
        ``x * height + y`` for cells. What was not seen of the first state is uniform over its support.

        Args:
            series: states of one life, ``(T + 1, ...)``, -1 for what was not seen; who is alive must be.
            actions: ``(T,)``.

        Raises:
            ValueError: lengths that do not fit; ``pool="product"``.
            NotImplementedError: laws that tie more than eight attributes to each other.
        """
        path_model(self, series, actions)

    def under(self, *transforms: Any) -> NoisyWorld:
        """This world under some kinds of stochasticity, from the laws outwards.

        Args:
            *transforms: :class:`RandomAction` or :class:`StickyAction`, :class:`RandomEvent`, :class:`SuddenDrift` or
                :class:`CyclicDrift`, :class:`Hidden`, :class:`Represented`.

        Example:
            >>> from sojourn.models.laws import RandomAction, World, meadow_laws, meadow_space
            >>> World(meadow_space(), meadow_laws()).under(RandomAction(6)).action.site
            'random_action'
        """
        return NoisyWorld(self, transforms)

    def situation_law(self, beliefs: Beliefs, routed: Routed) -> CompetingLaws | LogLinearLaws:
        """The law of the labels of all situations, given values of the sites."""
        probs = self._probs(beliefs, routed)
        if self.pool == "hazard":
            return CompetingLaws(
                beliefs["hazard"],
                beliefs["change"],
                routed.rows,
                probs,
                noise=self.noise,
                validate_args=False,
            )
        return LogLinearLaws(
            beliefs["weight"],
            beliefs["frame"],
            routed.rows,
            probs,
            noise=self.noise,
            boost=self.boost,
            validate_args=False,
        )

    def _probs(self, beliefs: Beliefs, routed: Routed) -> Array:
        """Probabilities of outcomes, those with parameters worked out."""
        rows = routed.rows
        probs = rows.probs
        if not self.parameters:
            return probs
        names = list(self.space.attributes)
        values = {name: beliefs[name] for name in self.parameters}
        for (number, attribute), mine in self._parametric(values, routed.example).items():
            mine = jnp.pad(mine, (0, probs.shape[-1] - mine.shape[-1]))
            where = (rows.law == number)[:, :, None] & (rows.attribute == names.index(attribute))[:, None, :]
            probs = jnp.where(where[..., None], mine, probs)
        return probs

    @functools.cached_property
    def _parametric(self) -> Any:
        """Probabilities of outcomes of the laws with parameters, by law and attribute."""

        def probs(values, example):
            state, after, action = example
            found = {}
            for i, law in enumerate(self.laws):
                if law.parameters:
                    parameters = self.law_parameters(i, values)
                    cast = cast_one(self.space, law, state, after, action, parameters)
                    for write, mine in zip(self.shapes[i].writes, cast.probs, strict=True):
                        found[i, write.attribute.name] = mine.reshape(-1, mine.shape[-1])[0]
            return found

        return jax.jit(probs)


def _at(tree: Any, which: Any) -> Any:
    return jax.tree.map(lambda x: x[which], tree)
