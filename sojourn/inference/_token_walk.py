"""A token that walks over a graph of data shards and brings their minibatches to variational inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.gibbs import prototype_trace
from numpyro.infer.svi import SVIState

from sojourn.ops import self_repellent as ops

__all__ = ["TokenSVI", "TokenSVIState", "TokenWalk", "TokenWalkState"]

_SHARD = "_shard"
"""Keyword through which the indices of the shard travel to model and guide."""


class TokenWalkState(NamedTuple):
    """State of :class:`TokenWalk`."""

    shard: Array
    """The shard at which the token is."""
    visits: Array
    """``(num_shards,)``: the empirical measure of its visits."""
    i: Array
    """Steps so far."""
    rng_key: Array


class TokenWalk:
    """Self-repellent walk that picks minibatches on a graph of data shards (Hu, Doshi and Eun 2024, *ICLR*,
    arXiv:2401.09665).

    Where data lie on the nodes of a network, stochastic gradients come in the order in which a token walks over it.
    A token that keeps away from shards it has seen much of (see :mod:`sojourn.ops.self_repellent`) visits all of
    them equally often in the long run, like the Metropolis walk that it repels (``alpha=0``), and leaves less noise
    in what is learnt: with steps of the optimiser that fall faster than those of the walk's memory
    (``step_exponent``), the variance of the iterates falls as ``1 / alpha**2``. The walk pays where shards can only be
    reached through their neighbours; if any shard can be had at any time, shuffle them.

    Use ``alpha`` up to about 5. Visits even out as the memory's steps get small, and until then the iterates have a
    bias of their order; it grows with ``alpha`` while their variance falls, and beyond 5 it dominates in runs of some
    ten thousand steps.

    Args:
        adjacency: ``(num_shards, num_shards)``, symmetric, not negative, connected: which shards are neighbours,
            and with which weights they are proposed.
        alpha: strength of the repulsion, not negative.
        step_exponent: ``a`` of the steps ``gamma_n = (n + 1)^(-a)`` of the empirical measure, in (0.5, 1].

    Raises:
        ValueError: an argument that is not so.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> ring = np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0)
        >>> walk = TokenWalk(ring, alpha=2.0)
        >>> state, shards = jax.lax.scan(
        ...     lambda state, _: walk.step(state)[::-1], walk.init(jax.random.key(0)), length=1000)
        >>> bool((abs(jnp.bincount(shards, length=5) / 1000 - 0.2) < 0.02).all())
        True
    """

    def __init__(self, adjacency: Any, alpha: float = 2.0, *, step_exponent: float = 0.6):
        self.alpha, self.step_exponent = ops.check_repulsion(alpha, step_exponent)
        self.graph = ops.graph_from_adjacency(adjacency)
        self.num_shards = len(self.graph.to)
        if self.num_shards < 2:
            raise ValueError("`adjacency` is of one shard: there is nowhere to walk.")

    def init(self, rng_key: Array, start: int | Array | None = None) -> TokenWalkState:
        """State at shard ``start``, a random one by default. Its data come up when the walk returns to it."""
        key, key_start = random.split(rng_key)
        if start is None:
            start = random.randint(key_start, (), 0, self.num_shards)
        elif not isinstance(start, jax.core.Tracer) and not 0 <= int(start) < self.num_shards:
            raise ValueError(f"`start` must be a shard, 0 to {self.num_shards - 1}, not {start!r}.")
        visits = jnp.full(self.num_shards, 1.0 / self.num_shards)
        return TokenWalkState(jnp.asarray(start), visits, jnp.array(0), key)

    def step(self, state: TokenWalkState) -> tuple[Array, TokenWalkState]:
        """One step: the number of the next shard, and the state there. Fit for ``jit``, ``vmap`` and ``lax.scan``."""
        key, key_move = random.split(state.rng_key)
        flat = jnp.zeros_like(state.visits)
        shard = ops.next_state(key_move, self.graph, flat, state.visits, state.shard, self.alpha)
        gamma = ops.step_size(state.i + 1, self.step_exponent).astype(flat.dtype)
        visits = ops.update_visits(state.visits, shard, gamma)
        return shard, TokenWalkState(shard, visits, state.i + 1, key)

    def svi(self, svi: SVI, *, plate: str, shards: Any) -> TokenSVI:
        """Variational inference whose minibatches are the shards that the walk comes to.

        Args:
            svi: any ``numpyro.infer.SVI``. Its model has ``numpyro.plate(plate, size, subsample_size)``.
            plate: name of that plate.
            shards: ``(num_shards, subsample_size)``: indices of the data in each shard, every index of the plate
                in one of them. Shards of one size, since a step weighs each by ``size / subsample_size``.

        Raises:
            ValueError: shards of several sizes, or not one for each node of the walk; at ``init``: no such plate,
                a plate of another size, shards that are no partition of it.

        Example:
            The mean, 10, of 20 values at four nodes of a ring, whose own means are 2.5, 7.5, 12.5 and 17.5.

            >>> import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
            >>> from numpyro.infer import SVI, Trace_ELBO
            >>> from numpyro.infer.autoguide import AutoDelta
            >>> def model(y):
            ...     mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
            ...     with numpyro.plate("data", 20, subsample_size=5) as index:
            ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])
            >>> ring = np.roll(np.eye(4), 1, axis=0) + np.roll(np.eye(4), -1, axis=0)
            >>> steps = optax.linear_schedule(0.2, 0.0, 2000)
            >>> svi = SVI(model, AutoDelta(model), optax.adam(steps), Trace_ELBO())
            >>> token = TokenWalk(ring).svi(svi, plate="data", shards=np.arange(20).reshape(4, 5))
            >>> found = token.run(jax.random.key(0), 2000, jnp.arange(20) + 0.5, progress_bar=False)
            >>> round(float(found.params["mu_auto_loc"]))
            10
        """
        return TokenSVI(self, svi, plate, shards)


class TokenSVIState(NamedTuple):
    """State of :class:`TokenSVI`."""

    svi: SVIState
    walk: TokenWalkState


class TokenSVI(SVI):
    """``numpyro.infer.SVI`` with the minibatches of a walk; see :meth:`TokenWalk.svi`.

    Used like ``SVI``: ``init``, ``update``, ``stable_update``, ``get_params``, ``evaluate`` and ``run``; the state is a
    :class:`TokenSVIState`. ``evaluate`` leaves the choice of the minibatch to the plate.
    """

    def __init__(self, walk: TokenWalk, svi: SVI, plate: str, shards: Any):
        self.walk, self.plate = walk, plate
        self.shards = _check_shards(shards, walk.num_shards)
        self._base = svi
        model, guide = (partial(_on_shard, fn, plate) for fn in (svi.model, svi.guide))
        super().__init__(model, guide, svi.optim, svi.loss, **svi.static_kwargs)

    def init(self, rng_key, *args, init_params=None, **kwargs):
        """State of the optimiser, and of a walk that sets out from a random shard."""
        self._check_plate(args, {**kwargs, **self.static_kwargs})
        key, key_walk = random.split(rng_key)
        walk = self.walk.init(key_walk)
        kwargs[_SHARD] = self.shards[walk.shard]
        state = super().init(key, *args, init_params=init_params, **kwargs)
        self._base.constrain_fn = self.constrain_fn  # so that the SVI given can read what has been learnt
        return TokenSVIState(state, walk)

    def update(self, svi_state, *args, **kwargs):
        """A step of the walk, and one of the optimiser on the shard there: ``(state, loss)``."""
        return self._step(super().update, svi_state, args, kwargs)

    def stable_update(self, svi_state, *args, **kwargs):
        """Like :meth:`update`, but keeps what it had where the loss or the new parameters are not finite."""
        return self._step(super().stable_update, svi_state, args, kwargs)

    def get_params(self, svi_state):
        """Values of the parameters."""
        return super().get_params(_inner(svi_state))

    def evaluate(self, svi_state, *args, **kwargs):
        """The loss on a minibatch that the plate draws."""
        return super().evaluate(_inner(svi_state), *args, **kwargs)

    def _step(self, update: Callable[..., Any], state: TokenSVIState, args: Any, kwargs: Any) -> Any:
        shard, walk = self.walk.step(state.walk)
        inner, loss = update(state.svi, *args, **kwargs, **{_SHARD: self.shards[shard]})
        return TokenSVIState(inner, walk), loss

    def _check_plate(self, args: Any, kwargs: Any) -> None:
        trace = prototype_trace(self._base.model, random.key(0), args, kwargs)
        found = {n: s["args"] for n, s in trace.items() if s["type"] == "plate"}
        if self.plate not in found:
            raise ValueError(f"The model has no plate '{self.plate}'; its plates are {sorted(found)}.")
        size, subsample_size = found[self.plate]
        shard_size = self.shards.shape[1]
        if shard_size != (size if subsample_size is None else subsample_size):
            raise ValueError(
                f"Plate '{self.plate}' takes {size if subsample_size is None else subsample_size} of its {size} "
                f"elements at a time, and the shards have {shard_size}: give it `subsample_size={shard_size}`."
            )
        if not np.array_equal(np.sort(self.shards, axis=None), np.arange(size)):
            raise ValueError(
                f"`shards` must have each of the indices 0 to {size - 1} of plate '{self.plate}' once: otherwise what "
                "is learnt belongs to other data."
            )


def _inner(state: Any) -> SVIState:
    return state.svi if isinstance(state, TokenSVIState) else state


def _on_shard(fn: Callable[..., Any], plate: str, *args: Any, **kwargs: Any) -> Any:
    """Run a model or a guide with the indices of a shard in its plate."""
    indices = kwargs.pop(_SHARD, None)
    if indices is None:
        return fn(*args, **kwargs)
    return handlers.substitute(fn, data={plate: indices})(*args, **kwargs)


def _check_shards(shards: Any, number: int) -> Array:
    if not hasattr(shards, "ndim"):
        shards = [np.asarray(s) for s in shards]
        sizes = sorted({s.size for s in shards})
        if len(sizes) > 1:
            raise ValueError(
                f"The shards have from {sizes[0]} to {sizes[-1]} elements, and a walk that visits them equally often "
                "would give those of small shards more weight: make them of one size."
            )
    shards = np.asarray(shards)
    if shards.ndim != 2 or shards.dtype.kind not in "iu":
        raise ValueError(
            f"`shards` must be indices of shape (num_shards, shard_size), not {shards.dtype} of shape {shards.shape}."
        )
    if len(shards) != number:
        raise ValueError(f"There are {len(shards)} shards, and the graph of the walk has {number} nodes.")
    return jnp.asarray(shards)
