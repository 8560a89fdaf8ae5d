"""A scan whose path is known, evaluated at all times at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.contrib.control_flow.scan import _promote_scanned_value_shapes, _subs_wrapper
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from sojourn.inference._scan import is_scan, scan_length

__all__ = ["parallel_in_time"]


class _parallel_scan(Messenger):
    def __init__(self, fn: Callable[..., Any], index: int):
        self.index, self.count = index, 0
        super().__init__(fn)

    def __enter__(self):
        self.count = 0
        return super().__enter__()

    def process_message(self, msg):
        if not is_scan(msg):
            return
        if self.count == self.index:
            msg["fn"] = _all_steps
        self.count += 1


def parallel_in_time(model: Callable[..., Any], index: int = 0) -> Callable[..., Any]:
    """The model with scan number ``index`` evaluated by ``vmap`` over time.

    Right only where every latent site of the scan is given and each carry is a function of the latent values of
    its own step (``ScanStructure.parallel``): the carries are found first, all at once, then the densities.
    """
    return partial(_run, model, index)


def _run(model, index, *args, **kwargs):
    with _parallel_scan(None, index):
        return model(*args, **kwargs)


def _all_steps(f, init, xs, length, reverse, rng_key=None, substitute_stack=None, **_):
    """In place of NumPyro's ``scan_wrapper``, with its arguments and its result."""
    length = scan_length(xs, length)

    def step(t, carry, x):
        with handlers.block():
            fn = handlers.infer_config(f, config_fn=lambda _: {"_scan_current_index": t})
            if rng_key is not None:
                fn = handlers.seed(fn, rng_key)
            for kind, given in substitute_stack or ():
                at_step = partial(_subs_wrapper, given, t, length)
                if kind == "condition":
                    fn = handlers.condition(fn, condition_fn=at_step)
                else:
                    fn = handlers.substitute(fn, substitute_fn=at_step)
            with handlers.trace() as trace:
                carry, output = fn(carry, x)
        return carry, PytreeTrace(trace), output

    over = (0, None if xs is None else 0)

    @jax.jit  # one program, also where the model runs outside of any
    def every_step(init, xs):
        times = jnp.arange(length)
        carries = jax.vmap(lambda t, x: step(t, init, x)[0], in_axes=over)(times, xs)
        before = jax.tree.map(
            lambda first, rest: jnp.concatenate([jnp.asarray(first, rest.dtype)[None], rest[:-1]]),
            init,
            carries,
        )
        _, trace, outputs = jax.vmap(step, in_axes=(0, 0, over[1]))(times, before, xs)
        return jax.tree.map(lambda c: c[-1], carries), trace, outputs

    last, trace, outputs = every_step(init, xs)
    for site in trace.trace.values():
        if site["type"] == "sample":
            site["fn"] = promote_batch_shape(site["fn"])
            site["value"] = _promote_scanned_value_shapes(site["value"], site["fn"])
    return (jnp.asarray(length), rng_key, last), (trace, outputs)
