"""The scan inside a NumPyro model, taken out and run one step at a time.

Everything here that is not part of NumPyro's public interface is imported here and nowhere else: the layout of
the scan's message (``type == "control_flow"``), its substitution wrapper and the handler stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.contrib.control_flow.scan import _subs_wrapper
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.primitives import _PYRO_STACK, Messenger

from sojourn._contract import Site, check_function, series_law

__all__ = [
    "Plate",
    "ScanCall",
    "capture_scan",
    "is_latent",
    "is_scan",
    "prepared",
    "run_prefix",
    "run_step",
    "scan_length",
    "site_term",
]


class ScanCall(NamedTuple):
    """The arguments of a ``scan`` statement as the model made them, and what handlers asked of its sites."""

    f: Callable[..., Any]
    init: Any
    xs: Any
    length: int
    substitute_stack: tuple[Any, ...]


class Plate(NamedTuple):
    """A plate: its dimension counts batch axes from the right."""

    name: str
    dim: int
    size: int


class _one_key(handlers.seed):
    """``seed`` for a stretch of the model with one site to draw: it gets the key as it is.

    Splitting it would cost as much as the draw, for every particle at every step. Should there be a second site
    after all, the key is split from there on.
    """

    def __init__(self, key: Array):
        super().__init__(None, key)
        self.whole = True

    def __enter__(self):
        self.whole = True
        return super().__enter__()

    def process_message(self, msg):
        drawn = msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None
        if drawn and self.whole and msg["kwargs"]["rng_key"] is None:
            self.whole = False
            msg["kwargs"]["rng_key"] = self.rng_key
            self.rng_key = jax.random.fold_in(self.rng_key, 1 << 30)
        else:
            super().process_message(msg)


def _seeded(key: Array | None, draws: int | None) -> handlers.seed:
    key = jax.random.key(0) if key is None else key
    return _one_key(key) if draws == 1 else handlers.seed(rng_seed=key)


class _ScanReached(Exception):
    def __init__(self, call: ScanCall):
        self.call = call


def is_scan(message: Mapping[str, Any]) -> bool:
    return message["type"] == "control_flow" and message["fn"].__name__ != "cond_wrapper"


def scan_length(xs: Any, length: int | None) -> int:
    """Number of steps of a scan, from its arguments."""
    if length is not None:
        return int(length)
    leaves = jax.tree.leaves(xs)
    if not leaves:
        raise ValueError(
            "A scan of this model has neither inputs nor a length: give it the data, or length=<number of steps>."
        )
    if any(np.ndim(leaf) == 0 for leaf in leaves):
        raise ValueError("An input of a scan of this model is no array with time as its first axis.")
    steps = int(np.shape(leaves[0])[0])
    if not steps:
        raise ValueError("The inputs of a scan of this model are empty: it needs one step at least.")
    return steps


def is_latent(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


class capture_scan(Messenger):
    """Stop the model at scan number ``index`` and hand out its arguments.

    With ``cut=True`` the model runs on, its scan starting from constants instead: what still depends on the
    initial state then does so without the scan. To be the outermost handler: it must see the message last.
    """

    def __init__(self, index: int = 0, cut: bool = False):
        self.index, self.cut = index, cut
        self.count = 0
        self.call: ScanCall | None = None
        super().__init__(None)

    def process_message(self, msg):
        if not is_scan(msg):
            return
        index, self.count = self.count, self.count + 1
        if index != self.index:
            return
        f, init, xs, length, reverse = msg["args"]
        if reverse:
            raise NotImplementedError(
                "This scan has reverse=True: NumPyro then records its sites in the order of xs but reads given "
                "values in the order of execution, so no engine can condition on them. Flip xs instead."
            )
        stack = tuple(msg["kwargs"].get("substitute_stack") or ())
        self.call = ScanCall(f, init, xs, scan_length(xs, length), stack)
        if not self.cut:
            raise _ScanReached(self.call)
        constants = jax.tree.map(lambda x: np.ones(jnp.shape(x), jnp.result_type(x)), init)
        msg["args"] = (f, constants, xs, length, reverse)


def run_prefix(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    index: int = 0,
    key: Array | None = None,
    values: Mapping[str, Any] | None = None,
    draws: int | None = None,
) -> tuple[ScanCall, dict[str, Site]]:
    """Run the model up to its scan: the scan's arguments, and the trace so far.

    ``draws`` is the number of sites that have no value yet, if that is known.
    """
    try:
        with (
            handlers.block(),
            capture_scan(index),
            handlers.trace() as trace,
            _seeded(key, draws),
            handlers.substitute(data=dict(values or {})),
        ):
            model(*args, **kwargs)
    except _ScanReached as reached:
        return reached.call, trace
    raise ValueError(f"The model has no scan number {index + 1}.")


def run_step(
    call: ScanCall,
    carry: Any,
    x: Any,
    t: Array,
    *,
    key: Array | None = None,
    values: Mapping[str, Any] | None = None,
    draws: int | None = None,
) -> tuple[Any, Any, dict[str, Site]]:
    """One turn of the transition function: the new carry, its output, and the trace of the step.

    ``draws`` is the number of sites that have no value yet, if that is known.
    """
    fn = handlers.infer_config(call.f, config_fn=lambda _: {"_scan_current_index": t})
    for kind, given in call.substitute_stack:
        at_step = partial(_subs_wrapper, given, t, call.length)
        if kind == "condition":
            fn = handlers.condition(fn, condition_fn=at_step)
        elif kind == "substitute":
            fn = handlers.substitute(fn, substitute_fn=at_step)
        else:
            raise NotImplementedError(f"A scan under handlers.{kind} cannot be run step by step.")
    with (
        handlers.block(),
        handlers.trace() as trace,
        _seeded(key, draws),
        handlers.substitute(data=dict(values or {})),
    ):
        carry, output = fn(carry, x)
    return carry, output, trace


def site_term(site: Site, plates: tuple[Plate, ...] = (), *, scaled: bool = True) -> Array:
    """Log-density at a site, summed over all but ``plates`` (sorted by dimension), with its mask and scale."""
    fn, value = site["fn"], site["value"]
    term = fn.log_prob(value, site["intermediates"]) if site["intermediates"] else fn.log_prob(value)
    if scaled and site["scale"] is not None:
        term = site["scale"] * term
    if not plates:
        return jnp.sum(term)
    least = -plates[0].dim
    shape = (1,) * max(least - jnp.ndim(term), 0) + jnp.shape(term)
    kept = {len(shape) + p.dim: p.size for p in plates}
    term = jnp.broadcast_to(
        jnp.reshape(term, shape), tuple(kept.get(axis, size) for axis, size in enumerate(shape))
    )
    return term.sum(tuple(axis for axis in range(len(shape)) if axis not in kept))


class _prepare(Messenger):
    """NaN observations count as missing; no site inside a scan is marked for NumPyro's own enumeration."""

    def __init__(self, fn: Callable[..., Any], missing: bool, inside: bool = False):
        self.missing, self.inside = missing, inside
        super().__init__(fn)

    def process_message(self, msg):
        if is_scan(msg):
            f, init, xs, *rest = msg["args"]
            missing = self.missing or _has_nan(xs)
            msg["args"] = (_prepare(f, missing, inside=True), init, xs, *rest)
            return
        if msg["type"] != "sample" or msg.get("_control_flow_done"):
            return
        if self.inside and msg["infer"].get("enumerate") == "parallel":
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "enumerate"}
        if series_law(msg, "predictive_log_prob") is not None:
            return  # the law of a whole series, which knows its own gaps
        value = msg["value"]
        if self.missing and msg["is_observed"] and jnp.size(value) and _has_nan(value):
            fn, gap = msg["fn"], jnp.isnan(value)
            gone = gap.any(tuple(range(gap.ndim - fn.event_dim, gap.ndim)))
            value = jnp.where(gap, fn.support.feasible_like(jnp.asarray(value)), value)
            msg["value"], msg["fn"] = value, fn.mask(~gone)


def _has_nan(tree: Any) -> bool:
    """Whether any concrete array holds NaN; a traced one may."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return True
        elif isinstance(leaf, np.ndarray | jax.Array | float) and not jax.dtypes.issubdtype(
            jnp.result_type(leaf), jax.dtypes.prng_key
        ):
            array = np.asarray(leaf)
            if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
                return True
    return False


class _Prepared:
    """A model whose NaN observations are missing ones; callable as the model is."""

    def __init__(self, model: Callable[..., Any]):
        self.model = model
        self.__name__ = getattr(model, "__name__", type(model).__name__)
        self.__wrapped__ = model

    def __call__(self, *args, **kwargs):
        data = {n: v for n, v in kwargs.items() if n != GIBBS_SITES_KWARG}
        return _prepare(self.model, _has_nan((args, data)))(*args, **kwargs)


def prepared(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model as the engines run it: NaN in the data means that nothing was observed there.

    An observation with event dimensions is missing as a whole if any of it is NaN. Marks that ask for NumPyro's
    enumeration are taken off sites inside a scan, where sojourn has its own.
    """
    check_function(model)
    return model if isinstance(model, _Prepared) else _Prepared(model)


def is_prepared(model: Callable[..., Any]) -> bool:
    return isinstance(model, _Prepared)


def enclosing_handlers(kind: type) -> list[Any]:
    """Handlers of a kind that are active now."""
    return [h for h in _PYRO_STACK if isinstance(h, kind)]
