"""Which series of unequal lengths one program serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from sojourn._contract import trace_model
from sojourn.inference._check_model import latent_sites
from sojourn.inference._initial import compiled_once
from sojourn.inference._many_fits import cut, outline, padded
from sojourn.inference._predictive import site_log_prob

__all__ = ["Bucket", "PaddingProbe", "Series", "group_series", "stacked"]

_GROWTH = 1.5  # from one length of padded series to the next
_DRAWS_COMPARED = 3


class Series(NamedTuple):
    """A data set: its place, its arguments as they came and as arrays, and the shapes of its unobserved sites."""

    number: int
    given: tuple[Any, ...]
    args: tuple[np.ndarray, ...]
    shapes: Mapping[str, tuple[int, ...]]


class Bucket(NamedTuple):
    """Series that one program serves: places among the datasets, and the length they are padded to."""

    members: list[int]
    length: int | None = None


def group_series(series: Mapping[int, Series], probe: PaddingProbe | None) -> list[Bucket]:
    alike: dict[Any, list[int]] = {}
    for i, one in series.items():
        alike.setdefault(_kind(one, ragged=probe is not None), []).append(i)
    buckets = []
    for members in alike.values():
        lengths = {i: one.args[0].shape[:1] for i, one in series.items() if i in set(members)}
        if probe is None or len(set(lengths.values())) == 1:
            buckets.append(Bucket(members))
            continue
        together = _geometric({i: n for i, (n,) in lengths.items()})
        if all(probe.ignores_padding(series[b.members[0]], b.length) for b in together):
            buckets += together
        else:
            buckets += group_series({i: series[i] for i in members}, None)
    return buckets


def _kind(one: Series, ragged: bool) -> Any:
    """What series must share to be fitted together: all shapes, or all but the length of what can be padded."""
    first = one.args[0]
    along = [a.ndim > 0 and len(a) == len(first) for a in one.args] if first.ndim else []
    ragged = (
        ragged and any(along) and all(a.dtype.kind == "f" for a, t in zip(one.args, along, strict=True) if t)
    )
    if ragged:
        return tuple(
            (a.dtype, a.shape[1:] if t else a.shape, t) for a, t in zip(one.args, along, strict=True)
        )
    return tuple((a.dtype, a.shape) for a in one.args)


def _geometric(lengths: Mapping[int, int]) -> list[Bucket]:
    """Buckets of lengths within a factor, each padded to its longest; the shortest series comes first."""
    buckets: list[Bucket] = []
    for i, n in sorted(lengths.items(), key=lambda item: -item[1]):
        longest = buckets[-1].length if buckets else None
        if longest is None or n * _GROWTH < longest:
            buckets.append(Bucket([], n))
        buckets[-1].members.append(i)
    for bucket in buckets:
        bucket.members.reverse()
    same = [all(lengths[i] == b.length for i in b.members) for b in buckets]
    return [b._replace(length=None) if exact else b for b, exact in zip(buckets, same, strict=True)]


class PaddingProbe:
    """Compares a series with itself padded."""

    def __init__(self, model, others, kwargs, follows_gradient: bool):
        self.call = model, others, kwargs
        self.follows_gradient = follows_gradient

    def ignores_padding(self, one: Series, length: int | None) -> bool:
        if length is None:
            return True
        long = padded(one.args, length)
        model, others, kwargs = self.call
        with compiled_once():
            sites = latent_sites(outline(model, (*one.args, *others), kwargs))
            try:
                alike = latent_sites(outline(model, (*long, *others), kwargs))
            except Exception:  # whatever the model has against NaN: series of one length do without
                return False
            if {n: np.shape(s["value"]) for n, s in sites.items()} != {
                n: np.shape(s["value"]) for n, s in alike.items()
            }:
                return False
            keys = jax.random.split(jax.random.key(0), _DRAWS_COMPARED)
            values = jax.jit(jax.vmap(lambda key: self._draw(key, one.args)))(keys)
            here, there = (jax.device_get(jax.jit(self._look)(args, values)) for args in (one.args, long))
        close = np.allclose(there[0], here[0], rtol=1e-5, atol=1e-3)
        for n, slope in here[1].items():
            close &= np.allclose(there[1][n], slope, rtol=1e-3, atol=1e-3 * (1.0 + np.abs(slope).max()))
        for n, value in here[2].items():
            shown = cut(there[2][n], value.shape[1:], lead=1)
            close &= shown.shape == value.shape and np.allclose(shown, value, 1e-4, 1e-5, equal_nan=True)
        return bool(close)

    def _draw(self, key, args):
        model, others, kwargs = self.call
        trace = trace_model(model, (*args, *others), kwargs, key=key)
        return {n: s["value"] for n, s in latent_sites(trace).items()}

    def _look(self, args, values):
        """Log density, its gradient on the unconstrained scale, and deterministic sites, for each of several values."""
        model, others, kwargs = self.call

        def run(values):
            return trace_model(model, (*args, *others), kwargs, key=jax.random.key(0), values=values)

        def one(values):
            sites = latent_sites(run(values))
            moving = {
                n: biject_to(s["fn"].support)
                for n, s in sites.items()
                if self.follows_gradient and not s["fn"].support.is_discrete
            }

            def log_joint(z):
                trace = run({**values, **{n: moving[n](x) for n, x in z.items()}})
                joint = sum(jnp.sum(site_log_prob(s)) for s in trace.values() if s["type"] == "sample")
                return joint, {n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}

            z = {n: transform.inv(values[n]) for n, transform in moving.items()}
            (joint, shown), slope = jax.value_and_grad(log_joint, has_aux=True)(z)
            return joint, slope, shown

        return jax.vmap(one)(values)


def stacked(members: Sequence[int], bucket: Bucket, series: Mapping[int, Series]) -> tuple[np.ndarray, ...]:
    """Arguments of some series, each with a leading axis over them."""
    each = [
        series[i].args if bucket.length is None else padded(series[i].args, bucket.length) for i in members
    ]
    return tuple(np.stack(column) for column in zip(*each, strict=True))
