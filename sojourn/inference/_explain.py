"""Why a log density, or its gradient, is not finite: the first site to blame, in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer.util import potential_energy

from sojourn._contract import Site, pointwise_ndim, series_law, trace_model
from sojourn.inference._check_model import mask_of
from sojourn.inference._initial import compiled_once
from sojourn.inference._labels import site_dims
from sojourn.inference._predictive import site_log_prob
from sojourn.inference._structure import _outline
from sojourn.inference._unconstrained import constrained

__all__ = ["explain_not_finite", "law_of", "support_words"]

Model = Callable[..., Any]
Values = Mapping[str, Any]

_KEY = 0  # of what has no value given: the order of a subsample, a latent site left out
_WRAPPERS = (dist.MaskedDistribution, dist.ExpandedDistribution, dist.Independent)


def explain_not_finite(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Values,
    *,
    unconstrained: bool = False,
) -> str | None:
    """One sentence on what is not finite in a model at given values of its latent sites.

    The first site, in the order of the model and within a scan in the order of time, of which a value is not finite,
    or the log density; or else the first latent site with respect to which the gradient of the log joint density on
    the unconstrained scale is not finite, and the site whose term in the density it comes from. Entries under a mask
    do not count, discrete sites have no gradient.

    Each question is one program, compiled fast; those that find the culprit are compiled only once something is known
    to be wrong.

    Args:
        model: as the engines run it: with NaN read as missing (``prepared``), and summed out where it is.
        args, kwargs: its arguments.
        values: a value for each latent site, of the site's shape; a site in a scan has time as its first axis.
            Latent sites that it leaves out are drawn from their prior by a fixed key.
        unconstrained: the values of continuous sites are unconstrained ones, under NumPyro's
            ``biject_to(support)``.

    Returns:
        A sentence; ``None`` if everything is finite.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> def model(y):
        ...     x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(0.0, jnp.sqrt(x)), obs=y)
        >>> print(explain_not_finite(model, (jnp.zeros(3),), {}, {"x": -1.0}))
        Site 'y' has log density nan (first at index 0): its law Normal has scale nan there.
        >>> explain_not_finite(model, (jnp.zeros(3),), {}, {"x": 1.0})
    """
    asked = _Question(model, args, dict(kwargs), dict(values), unconstrained)
    # NumPyro warns of values out of support, which is what is looked for here.
    with compiled_once(), warnings.catch_warnings(action="ignore"):
        return asked.about_values() or asked.about_gradient()


class _Question:
    """A model at a point: programs that say what is finite there."""

    def __init__(
        self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values, unconstrained: bool
    ):
        self.model, self.args, self.kwargs = model, args, kwargs
        known: dict[str, Site] = {}

        def look(key: Array) -> None:
            known.update(trace_model(model, args, kwargs, key=key))

        jax.eval_shape(look, jax.random.key(_KEY))
        self.kinds = {n: s["fn"].support.is_discrete for n, s in known.items() if s["type"] == "sample"}
        self.latent = [n for n in self.kinds if not known[n]["is_observed"]]
        self.dims = {n: site_dims(known[n]) for n in self.kinds}
        arrays = {n: jax.tree.map(jnp.asarray, v) for n, v in values.items()}
        smooth = {n: v for n, v in arrays.items() if self.kinds.get(n) is False and n in self.latent}
        smooth = {
            n: v if jnp.issubdtype(v.dtype, jnp.floating) else v.astype(float) for n, v in smooth.items()
        }
        self.fixed = {n: v for n, v in arrays.items() if n not in smooth}
        self.smooth, self.unconstrained = smooth, unconstrained

    def run(self, smooth: Values, unconstrained: bool) -> dict[str, Site]:
        """The sample sites of the model at the point."""
        values = {**self.fixed, **({} if unconstrained else smooth)}
        model = self.model
        if unconstrained:  # within: a handler further in has the first word on a site
            model = handlers.substitute(model, substitute_fn=partial(constrained, smooth))
        trace = trace_model(model, self.args, self.kwargs, key=jax.random.key(_KEY), values=values)
        return {n: s for n, s in trace.items() if s["type"] == "sample"}

    # ------------------------------------------------------------------------------------------ values
    def about_values(self) -> str | None:
        def look(smooth):
            return {n: self._bad(n, s) for n, s in self.run(smooth, self.unconstrained).items()}

        bad = jax.tree.map(np.asarray, jax.jit(look)(self.smooth))
        found = [(n, kind) for n, by_kind in bad.items() for kind, flags in by_kind.items() if flags.any()]
        if not found:
            return None
        # Within a scan what happened first is to blame, not what the model says first.
        outline = _outline(self.model, self.args, self.kwargs).sites
        order = list(self.kinds)
        scan = {n: outline[n]["scan"] for n in order if n in outline}
        first_of = {number: next(n for n in order if scan.get(n) == number) for number in scan.values()}

        def rank(item: tuple[str, str]) -> tuple[int, int, int, int]:
            name, kind = item
            number = scan.get(name)
            place = order.index(name)
            flags = bad[name][kind]
            when = int(np.argwhere(flags)[0][0]) if number is not None and flags.ndim else 0
            leader = place if number is None else order.index(first_of[number])
            return leader, when, place, kind == "density"

        name, kind = min(found, key=rank)
        if kind == "value":
            return self._say_value(name)
        return self._say_density(name)

    def _bad(self, name: str, site: Site) -> dict[str, Array]:
        """Entries whose log density, or at a latent site whose value, is not finite."""
        found = {"density": ~jnp.isfinite(site_log_prob(site))}
        if name in self.latent:
            found["value"] = _odd(site)
        return found

    def _say_value(self, name: str) -> str:
        def look(smooth):
            site = self.run(smooth, self.unconstrained)[name]
            return _odd(site), site["value"]

        odd, value = jax.tree.map(np.asarray, jax.jit(look)(self.smooth))
        index = tuple(np.argwhere(odd)[0])
        return f"Site '{name}' has the value {_first(value[index], _not_finite)}{self._at(name, index)}."

    def _say_density(self, name: str) -> str:
        facts: dict[str, Any] = {}

        def look(smooth):
            site = self.run(smooth, self.unconstrained)[name]
            facts["law"] = type(law_of(site["fn"])).__name__
            facts["factor"] = isinstance(site["fn"], dist.Unit)
            law = series_law(site, "predictive_log_prob")
            log_prob = site_log_prob(site)
            terms = log_prob if law is None else law.predictive_log_prob(site["value"])
            facts["event_dim"], facts["series"] = site["fn"].event_dim, pointwise_ndim(site)
            parameters, facts["ranks"], facts["words"] = _parameters(site["fn"])
            try:
                inside = site["fn"].support(site["value"])
            except (NotImplementedError, ValueError):  # a support that is known only to the law
                inside = jnp.array(True)
            return log_prob, terms, site["value"], inside, parameters

        log_prob, terms, value, inside, parameters = jax.tree.map(np.asarray, jax.jit(look)(self.smooth))
        bad = ~np.isfinite(terms) if not np.isfinite(terms).all() else ~np.isfinite(log_prob)
        shown = terms if bad.shape == terms.shape else log_prob
        index = tuple(np.argwhere(bad)[0])
        number = f"{shown[index]:.4g}"
        at = self._at(name, index)
        if facts["factor"]:
            return f"Factor '{name}' is {number}{at}."
        head = f"Site '{name}' has log density {number}{at}"
        there = " there" if at else ""
        batch = index if bad.shape == log_prob.shape and not facts["series"] else ()
        shape = log_prob.shape if batch else ()
        for wrong in ("not finite", "outside"):
            for parameter, (array, finite, valid) in parameters.items():
                event_dim, extra = facts["ranks"][parameter]
                if _entry(finite if wrong == "not finite" else valid, shape, extra, batch).all():
                    continue
                entry = _first(_entry(array, shape, extra + event_dim, batch), _not_finite)
                words = "" if wrong == "not finite" else f", which must be {facts['words'][parameter]}"
                return f"{head}: its law {facts['law']} has {parameter} {entry}{there}{words}."
        own = _entry(value, bad.shape, facts["event_dim"] - (facts["series"] if not batch else 0), index)
        entry = _first(own, _not_finite)
        if value.dtype.kind == "f" and not np.isfinite(own).all():
            return f"{head}: its value is {entry}{there}."
        if not _entry(inside, bad.shape, 0, index).all():
            return f"{head}: its value {entry}{there} lies outside the support of its law, {facts['law']}."
        told = [
            f"{p} {_first(_entry(a, shape, sum(facts['ranks'][p]), batch), _not_finite)}"
            for p, (a, *_) in parameters.items()
        ]
        given = f" with {', '.join(told)}" if told else ""
        return f"{head}: its value is {entry}{there}, under its law {facts['law']}{given}."

    # ---------------------------------------------------------------------------------------- gradient
    def about_gradient(self) -> str | None:
        if not self.smooth:
            return None
        position = self.smooth
        if not self.unconstrained:
            position, edge = self._position()
            if edge is not None:
                return edge
        seeded = handlers.substitute(handlers.seed(self.model, jax.random.key(_KEY)), data=self.fixed)

        def density(z):
            return -potential_energy(seeded, self.args, self.kwargs, z)

        value, slope = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(density))(position))
        if not np.isfinite(value):
            return (
                f"The log density on the unconstrained scale is {value:.4g}, though that of every site is finite: a "
                "change of variables overflows, or the sum does."
            )
        odd = [n for n in self.latent if n in slope and not np.isfinite(slope[n]).all()]
        if not odd:
            return None
        name = odd[0]
        index = tuple(np.argwhere(~np.isfinite(slope[name]))[0])
        return (
            f"The gradient of the log density with respect to '{name}' is {_first(slope[name], _not_finite)}"
            f"{self._at(name, index)}, though the density is finite ({value:.4g}): {self._source(position, odd)}."
        )

    def _position(self) -> tuple[dict[str, Array], str | None]:
        """The point on the unconstrained scale, and the complaint if it has no place there."""

        def look(smooth):
            sites = self.run(smooth, False)
            return {n: dist.biject_to(sites[n]["fn"].support).inv(_unmasked(sites[n])) for n in smooth}

        position = jax.jit(look)(self.smooth)
        for name in self.latent:
            if name in position and not np.isfinite(np.asarray(position[name])).all():
                value = np.asarray(self.smooth[name])
                bad = np.argwhere(~np.isfinite(np.asarray(position[name])))[0]
                same = value.shape == np.shape(position[name])
                entry = f" (value {value[tuple(bad)]:.6g})" if same else ""
                return position, (
                    f"Site '{name}' lies at the edge of its support{entry}, or beyond, where it has no unconstrained "
                    "value."
                )
        return position, None

    def _source(self, position: Values, odd: list[str]) -> str:
        """The term whose gradient it is: site by site, each by itself, for a zero does not keep NaN out."""
        moved = {n: position[n] for n in odd}
        rest = {n: v for n, v in position.items() if n not in odd}
        for name in self.kinds:

            def term(z, name=name):
                site = self.run({**rest, **z}, True)[name]
                return jnp.sum(site_log_prob(site))

            slope = jax.jit(jax.grad(term))(moved)
            if not all(np.isfinite(np.asarray(v)).all() for v in slope.values()):
                return (
                    f"it comes from the term of site '{name}', most often by 0 * inf in a branch of jnp.where, or by "
                    "sqrt or log at 0"
                )
        return "it comes from a change of variables at the edge of a support, or from a sum that overflows"

    def _at(self, name: str, index: tuple[Any, ...]) -> str:
        """Where an entry of a site is: `` (first at time step 3)``; nothing for a number."""
        if not index:
            return ""
        where = [int(i) for i in index]
        said = []
        if self.dims[name][:1] == ["time"]:
            said.append(f"time step {where.pop(0)}")
        if where:
            said.append(f"index {tuple(where) if len(where) > 1 else where[0]}")
        return f" (first at {', '.join(said)})"


def law_of(fn: dist.Distribution) -> dist.Distribution:
    """A law without the wrappers that only mask or reshape it."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def support_words(support: Any) -> str:
    """A constraint in words: ``positive``, ``interval [0, 5]``, ``real vector``."""
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    name = repr(support).partition("(")[0].strip("_ <>")
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip().replace("_", " ")
    lower, upper = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    ends = [None if x is None or isinstance(x, jax.core.Tracer) or np.ndim(x) else x for x in (lower, upper)]
    for written, said in (("greater than eq", "at least"), ("less than eq", "at most")):
        words = words.replace(written, said)
    fixed = ("unit interval", "positive", "nonnegative", "integer nonnegative", "integer positive")
    if words in fixed or (lower is None and upper is None):
        return words
    if lower is not None and upper is not None:
        span = [f"{x:g}" if x is not None else "..." for x in ends]
        return f"{words} [{', '.join(span)}]"
    end = next((x for x in ends if x is not None), None)
    return words if end is None else f"{words} {end:g}"


def _odd(site: Site) -> Array:
    """Entries of a latent site, by its batch, that are not finite and not masked."""
    value, fn = jnp.asarray(site["value"]), site["fn"]
    odd = ~jnp.isfinite(value)
    odd = odd.any(tuple(range(odd.ndim - fn.event_dim, odd.ndim)))
    mask = mask_of(fn)
    return odd if mask is None else odd & mask


def _unmasked(site: Site) -> Array:
    """The value of a site, with what lies under a mask set to a value that its law could have."""
    value, fn, mask = jnp.asarray(site["value"]), site["fn"], mask_of(site["fn"])
    if mask is None:
        return value
    mask = jnp.reshape(mask, (*jnp.shape(mask), *(1,) * fn.event_dim))
    return jnp.where(mask, value, fn.support.feasible_like(value))


def _parameters(fn: dist.Distribution) -> tuple[dict[str, Any], dict[str, tuple[int, int]], dict[str, str]]:
    """What a law was given: arrays, with whether they are finite and in their range; the numbers of their event axes
    and of the batch axes made into events; their ranges in words."""
    extra = 0
    while isinstance(fn, _WRAPPERS) or (
        isinstance(fn, dist.TransformedDistribution) and not type(fn).arg_constraints
    ):
        extra += fn.reinterpreted_batch_ndims if isinstance(fn, dist.Independent) else 0
        fn = fn.base_dist
    found, ranks, words = {}, {}, {}
    for name, constraint in fn.arg_constraints.items():
        value = vars(fn).get(name)
        if not isinstance(value, jax.Array | np.ndarray | float | int):
            continue
        array = jnp.asarray(value)
        try:
            event_dim, valid = constraint.event_dim, jnp.asarray(constraint(array))
        except (NotImplementedError, ValueError, TypeError):  # a range that depends on the other parameters
            event_dim, valid = 0, jnp.ones(array.shape, bool)
        finite = jnp.isfinite(array)
        found[name] = array, finite.all(tuple(range(array.ndim - event_dim, array.ndim))), valid
        ranks[name], words[name] = (event_dim, extra), support_words(constraint)
    return found, ranks, words


def _entry(array: np.ndarray, shape: tuple[int, ...], inner: int, index: tuple[Any, ...]) -> np.ndarray:
    """The part of a parameter that belongs to an entry of the batch; all of it where that cannot be told."""
    inner = min(inner, array.ndim)
    outer = array.shape[: array.ndim - inner]
    try:
        whole = (*np.broadcast_shapes(outer, shape), *array.shape[array.ndim - inner :])
        return np.broadcast_to(array, whole)[index]
    except (ValueError, IndexError):
        return array


def _not_finite(entries: np.ndarray) -> np.ndarray:
    return ~np.isfinite(entries)


def _first(entries: Any, wanted: Callable[[np.ndarray], np.ndarray]) -> str:
    """A number, or of an array the first one that is wanted, or else the array itself in short."""
    entries = np.asarray(entries)
    if entries.ndim == 0:
        return f"{entries[()]:.6g}" if entries.dtype.kind == "f" else str(entries[()])
    hits = entries[wanted(entries)] if entries.dtype.kind == "f" else entries[:0]
    if hits.size:
        return f"{hits.ravel()[0]:.6g}"
    if entries.size > 4:
        return f"of shape {entries.shape}"
    return np.array2string(entries, precision=6, separator=", ")
