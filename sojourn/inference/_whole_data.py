"""Plates that take a subsample of the data: which there are, and how to have the whole data back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from numpyro.primitives import Messenger

from sojourn._contract import check_function

__all__ = ["subsampling_plates", "whole_data"]


class _at_plates(Messenger):
    """Reach the plates of a model, those in the functions of a ``scan`` or ``cond`` among them."""

    def at_plate(self, msg: dict[str, Any]) -> None:
        raise NotImplementedError

    def within(self, fn: Callable[..., Any]) -> Messenger:
        return type(self)(fn)

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            first, *rest = msg["args"]
            if callable(first):  # scan(f, ...); otherwise cond(pred, true_fun, false_fun, operand)
                msg["args"] = (self.within(first), *rest)
            else:
                on, off, *rest = rest
                msg["args"] = (first, self.within(on), self.within(off), *rest)
        elif msg["type"] == "plate":
            self.at_plate(msg)


class whole_data(_at_plates):
    """Let every subsampling plate of a model take all its indices, in order.

    The model under this handler is the one without ``subsample_size``: its log-density is that of all data, at
    scale one, its observed sites have an entry for every datum, and it needs no key for its plates. Made for what
    comes after a fit by minibatches: the pointwise log-likelihood, replicated data, a check of the density.

    Args:
        fn: a NumPyro model. ``numpyro.subsample`` in it returns its argument whole.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.util import log_density
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("data", len(y), subsample_size=2) as chosen:
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[chosen])
        >>> _, trace = log_density(whole_data(model), (jnp.arange(5.0),), {}, {"mean": 0.3})
        >>> trace["y"]["value"].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, fn: Callable[..., Any] | None = None):
        if fn is not None:
            check_function(fn)
        super().__init__(fn)

    def at_plate(self, msg: dict[str, Any]) -> None:
        size, taken = msg["args"]
        if taken is not None and taken != size:
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)


class _note_plates(_at_plates):
    def __init__(self, fn: Callable[..., Any], found: dict[str, tuple[int, int]]):
        self.found = found
        super().__init__(fn)

    def within(self, fn: Callable[..., Any]) -> Messenger:
        return _note_plates(fn, self.found)

    def at_plate(self, msg: dict[str, Any]) -> None:
        size, taken = msg["args"]
        if taken is not None and taken != size:
            self.found[msg["name"]] = (size, taken)


def subsampling_plates(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Size and number of taken indices of each subsampling plate that ``model(*args, **kwargs)``, seeded, meets."""
    found: dict[str, tuple[int, int]] = {}
    with warnings.catch_warnings(action="ignore"):  # of NumPyro, on subsamples larger than their plate
        _note_plates(model, found)(*args, **kwargs)
    return found
