"""What depends on what in a model with a scan, found by tracing it: no site is declared to be anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import handlers
from numpyro.distributions import MaskedDistribution
from numpyro.handlers import do, reparam
from numpyro.ops.provenance import eval_provenance

from sojourn._arguments import whole_number
from sojourn.inference._interweave import location_scale
from sojourn.inference._scan import (
    Plate,
    ScanCall,
    capture_scan,
    enclosing_handlers,
    is_latent,
    is_scan,
    run_prefix,
    run_step,
    scan_length,
    site_term,
)

__all__ = ["ScanStructure", "analyze", "audit", "check_scans", "scan_numbers", "with_plates"]


@dataclass(frozen=True)
class ScanStructure:
    """The parts of a model around its scan.

    Printing it says what goes where.
    """

    path_sites: tuple[str, ...]
    """Latent sites in the scan."""
    initial_sites: tuple[str, ...]
    """Latent sites before the scan that feed nothing but its initial carry, which forgets them."""
    global_sites: tuple[str, ...]
    """All other latent sites: parameters."""
    observed_sites: tuple[str, ...]
    """Sites in the scan that hold data (factors among them)."""
    memory: float
    """Number of steps after which the carry has forgotten its past, given the latent values between; ``inf`` if
    it never does."""
    parallel: bool
    """Whether each carry is a function of the latent values of its own step, so that all steps can be evaluated
    at once when the path is known."""
    plates: tuple[Plate, ...] = ()
    """Plates around every site of the scan, across which nothing else is shared."""
    index: int = 0
    """Number of the scan in the model."""
    length: int = 0
    blocking: tuple[str, ...] = ()
    """Where the memory is infinite, the entries of the carry that remember."""
    deferred: tuple[str, ...] = ()
    """Sites after the scan whose law depends on it."""
    discrete: tuple[str, ...] = field(default=(), repr=False)
    """The discrete ones of the parameters."""
    subsampled: tuple[str, ...] = field(default=(), repr=False)
    """Plates that take a subsample."""
    location_scale: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    """Sites of the path, or before it, whose law has a location and a scale, and its other parameters."""
    has_deterministic: bool = field(default=False, repr=False)
    """Whether the model has ``deterministic`` sites."""
    carry_axes: tuple[tuple[int, ...] | None, ...] = field(default=(), repr=False, compare=False)
    value_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    depends: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool), repr=False, compare=False)
    touched: np.ndarray = field(default_factory=lambda: np.zeros(0, bool), repr=False, compare=False)
    starting_sites: tuple[str, ...] = field(default=(), repr=False)
    """Latent sites before the scan that feed nothing but its initial carry, whether or not it forgets them."""
    weighing: tuple[str, ...] = field(default=(), repr=False)
    """Observed sites before the scan whose density depends on the initial sites."""

    @property
    def systems(self) -> tuple[int, ...]:
        return tuple(p.size for p in self.plates)

    def __str__(self) -> str:
        def names(sites):
            return ", ".join(sites) or "none"

        lines = [
            f"scan of {self.length} steps",
            f"  path: {names(self.path_sites)}",
            f"  before the first step: {names(self.initial_sites)}",
            f"  observed at each step: {names(self.observed_sites)}",
            f"  parameters: {names(self.global_sites)}",
        ]
        if np.isinf(self.memory):
            lines.append(f"  the carry never forgets: {names(self.blocking)}")
        else:
            lines.append(f"  the carry forgets after {int(self.memory)} step{'s' if self.memory > 1 else ''}")
        if self.plates:
            lines.append(f"  independent systems: {' x '.join(f'{p.name} ({p.size})' for p in self.plates)}")
        return "\n".join(lines)


class _Watch(capture_scan):
    """Count scans and notice what NumPyro passes over in silence."""

    def __init__(self):
        super().__init__(index=-1)
        self.undone: set[str] = set()

    def process_message(self, msg):
        if not is_scan(msg):
            return
        scan_length(*msg["args"][2:4])  # which says what is missing
        self.count += 1
        for handler in enclosing_handlers(do):
            self.undone |= set(handler.data)
        for handler in enclosing_handlers(reparam):
            if isinstance(handler.config, Mapping):
                self.undone |= {f"reparam {name}" for name in handler.config}
        if msg["args"][4]:
            self.index = self.count - 1
            self.count -= 1
            super().process_message(msg)  # raises


@dataclass
class _Outline:
    """Static facts about each site of a run."""

    sites: dict[str, dict[str, Any]]
    scans: int
    subsampled: tuple[str, ...]
    has_deterministic: bool


def _outline(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Outline:
    """Trace the model abstractly: no array is computed, nothing is compiled."""
    found: dict[str, dict[str, Any]] = {}
    watch = _Watch()

    class _Record(handlers.trace):
        def postprocess_message(self, msg):
            super().postprocess_message(msg)
            if msg["type"] == "sample":
                found[msg["name"]]["scan"] = watch.count - 1 if msg.get("_control_flow_done") else None

        def process_message(self, msg):
            if msg["type"] == "sample":
                found[msg["name"]] = {}

    other: dict[str, Any] = {}

    def run(key):
        with handlers.block(), watch, _Record() as trace, handlers.seed(rng_seed=key):
            model(*args, **kwargs)
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            fn = site["fn"]
            found[name] |= {
                "latent": is_latent(site),
                "discrete": bool(fn.support.is_discrete),
                "finite": bool(fn.has_enumerate_support),
                "event_dim": fn.event_dim,
                "plates": tuple(Plate(f.name, f.dim, int(f.size)) for f in site["cond_indep_stack"]),
                "treatment": _treatment(site),
                "shape_params": location_scale(fn),
                "infer": {k: v for k, v in site["infer"].items() if not k.startswith("_")},
            }
        other["deterministic"] = any(s["type"] == "deterministic" for s in trace.values())
        other["subsampled"] = tuple(
            n
            for n, s in trace.items()
            if s["type"] == "plate" and s["args"][1] is not None and s["args"][1] < s["args"][0]
        )
        return {n: s["value"] for n, s in trace.items() if s["type"] == "sample"}

    values = jax.eval_shape(run, random.key(0))
    for name, value in values.items():
        found[name]["value"] = value
    inside = {n for n, s in found.items() if s["scan"] is not None}
    undone = sorted(n for n in inside if n in watch.undone)
    if undone:
        raise ValueError(
            f"handlers.do is set on {_quoted(undone)}, which lies inside a scan, where NumPyro ignores it: make the "
            "intervention in the transition function."
        )
    moved = sorted(n for n in inside if f"reparam {n}" in watch.undone)
    if moved:
        raise ValueError(
            f"handlers.reparam is set on {_quoted(moved)}, which lies inside a scan, where NumPyro cannot follow: "
            "apply it to the transition function."
        )
    return _Outline(found, watch.count, other["subsampled"], other["deterministic"])


def _treatment(site: Mapping[str, Any]) -> tuple[Any, int]:
    """What handlers did to a site: its scale (if known now), and how many masks lie on its law."""
    scale, fn, masks = site["scale"], site["fn"], 0
    while hasattr(fn, "base_dist"):
        masks += isinstance(fn, MaskedDistribution)
        fn = fn.base_dist
    return ("traced" if isinstance(scale, jax.core.Tracer) else scale), masks


def _check_treatment(sites: Mapping[str, Any], mine: list[str], inside: Mapping[str, Any]) -> None:
    """Refuse a handler around the scan that changes its sites where the transition function does not see it."""
    if set(mine) != set(inside):
        raise ValueError(
            f"The sites of the scan are {_quoted(sorted(mine))} from outside and {_quoted(sorted(inside))} from "
            "inside: a handler around it (scope, ...) renames them; move it into the transition function."
        )
    for name in mine:
        for what, outer, inner in zip(("scale", "mask"), sites[name]["treatment"], inside[name], strict=True):
            if not np.array_equal(outer, inner):
                raise ValueError(
                    f"A handler around the scan sets a {what} on its site '{name}', which no single step sees: move "
                    "it into the transition function."
                )


def _quoted(names: Any) -> str:
    return ", ".join(f"'{n}'" for n in names)


def check_scans(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse what NumPyro gets wrong without a word: ``do`` or ``reparam`` on a site in a scan, reverse scans; and
    say in a sentence why JAX cannot trace a model."""
    try:
        _outline(model, args, kwargs)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            "The model hands NumPy a value that is only known when it runs: use jax.numpy there, and where a plate or a "
            "latent indexes data, `jnp.asarray(data)[index]`."
        ) from error
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "The model decides in Python (`if`, `while`, `range`, `int`) on a value that is only known when it runs: use "
            "jnp.where, jax.lax.cond or numpyro's scan there."
        ) from error


def scan_numbers(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, int]:
    """Latent sites inside scans, each with the number of its scan."""
    sites = _outline(model, args, kwargs).sites
    return {n: s["scan"] for n, s in sites.items() if s["scan"] is not None and s["latent"]}


def _choose_scan(outline: _Outline, wanted: str | int | None) -> int:
    owners = sorted({s["scan"] for s in outline.sites.values() if s["scan"] is not None and s["latent"]})
    if outline.scans == 0:
        raise ValueError(
            "The model has no scan: particle methods move along numpyro.contrib.control_flow.scan, so write the "
            "time loop with it."
        )
    if not owners:
        raise ValueError(
            "The model has no latent site in its scan: there is no path to sample; use engine='nuts'."
        )
    if isinstance(wanted, str):
        site = outline.sites.get(wanted)
        if site is None or site["scan"] is None:
            raise ValueError(f"There is no site '{wanted}' in a scan of this model.")
        return site["scan"]
    if isinstance(wanted, int):
        if wanted not in owners:
            raise ValueError(f"Scan number {wanted + 1} of this model has no latent site.")
        return wanted
    if len(owners) > 1:
        named = {
            o: next(n for n, s in outline.sites.items() if s["scan"] == o and s["latent"]) for o in owners
        }
        raise ValueError(
            f"Several scans of this model have latent sites ({_quoted(named.values())}): say which one, with "
            "scan=<name of a site in it>, and give each a block of its own."
        )
    return owners[0]


def _aval(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.canonicalize_dtype(jnp.result_type(x)))


def _reach(depends: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """Leaves that ``leaves`` can influence in any number of steps."""
    reached = leaves.copy()
    for _ in range(len(depends)):
        reached = reached | (depends[:, reached].any(1) if reached.any() else False)
    return reached


def forgets_after(depends: np.ndarray, leaves: np.ndarray) -> float:
    """Steps until nothing in ``leaves`` depends on what was in them; infinite if something always does."""
    index = np.flatnonzero(leaves)
    if index.size == 0:
        return 1.0
    move, power = depends[np.ix_(index, index)], np.eye(index.size, dtype=bool)
    for steps in range(1, index.size + 1):
        power = (power.astype(int) @ move.astype(int)) > 0
        if not power.any():
            return float(steps)
    return np.inf


def lasting(depends: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """The leaves that remember for ever: those on a cycle."""
    power = depends & leaves[:, None] & leaves[None, :]
    closed = power.copy()
    for _ in range(len(depends)):
        closed = closed | ((closed.astype(int) @ power.astype(int)) > 0)
    return np.diag(closed) & leaves


def carry_names(init: Any) -> list[str]:
    """A name for every entry of the carry."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(init)]
    return [f"carry{path}" if path else "carry" for path in paths]


def canonical_carry(call: ScanCall, values: Any = None) -> Any:
    """Shapes and types of the carry once it has been through a step."""
    carry = jax.tree.map(_aval, call.init)
    x = jax.eval_shape(lambda xs: jax.tree.map(lambda v: v[0], xs), call.xs)
    after = jax.eval_shape(lambda c, x: run_step(call, c, x, jnp.array(0), values=values)[0], carry, x)
    return jax.tree.map(
        lambda a, b: jax.ShapeDtypeStruct(b.shape, jnp.promote_types(a.dtype, b.dtype)), carry, after
    )


def analyze(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    scan: str | int | None = None,
    plates: bool = True,
) -> ScanStructure:
    """Find the path, its initial state, the parameters, the memory of the carry and the independent plates.

    Args:
        model, args, kwargs: a model, perhaps conditioned on some of its sites.
        scan: the scan to look at: its number, or the name of a site in it; by default the one with latent sites.
        plates: look for plates across which the model falls apart into independent systems.
    """
    outline = _outline(model, args, kwargs)
    if scan is not None and not isinstance(scan, str):
        whole_number(scan, "scan", 0)
    index = _choose_scan(outline, scan)
    sites = outline.sites
    order = list(sites)
    mine = [n for n in order if sites[n]["scan"] == index]
    path = tuple(n for n in mine if sites[n]["latent"])
    before = [n for n in order[: order.index(mine[0])] if sites[n]["scan"] is None]
    after = [n for n in order[order.index(mine[-1]) + 1 :]]
    latents = {n: s["value"] for n, s in sites.items() if s["latent"]}
    outside = {n: v for n, v in latents.items() if n not in path}

    facts: dict[str, Any] = {}

    def carry_of(**values):
        call, _ = run_prefix(model, args, kwargs, index=index, values=values)
        facts["carry"], facts["xs"] = canonical_carry(call), jax.tree.map(_aval, call.xs)
        facts["length"], facts["names"] = call.length, carry_names(call.init)
        return call.init

    jax.eval_shape(carry_of, **outside)
    leaves, tree = jax.tree.flatten(facts["carry"])
    x = jax.eval_shape(lambda xs: jax.tree.map(lambda v: v[0], xs), facts["xs"])
    step_values = {n: jax.ShapeDtypeStruct(latents[n].shape[1:], latents[n].dtype) for n in path}

    def one_step(**given):
        call, _ = run_prefix(model, args, kwargs, index=index, values=given["outside"])
        carry = jax.tree.unflatten(tree, [given[f"carry {k}"] for k in range(len(leaves))])
        new, _, trace = run_step(call, carry, given["x"], given["t"], values=given["values"])
        facts["inside"] = {n: _treatment(s) for n, s in trace.items() if s["type"] == "sample"}
        return jax.tree.leaves(new)

    made = eval_provenance(
        one_step,
        outside=outside,
        values=step_values,
        x=x,
        t=jax.ShapeDtypeStruct((), jnp.int32),
        **{f"carry {k}": leaf for k, leaf in enumerate(leaves)},
    )
    _check_treatment(sites, mine, facts["inside"])
    size = len(leaves)
    depends = np.array([[f"carry {k}" in made[j] for k in range(size)] for j in range(size)], bool)
    depends = depends.reshape(size, size)
    touched = _reach(depends, np.array([bool({"values"} & made[j]) for j in range(size)], bool))

    def whole(**values):
        cut = capture_scan(index, cut=True)
        with handlers.block(), cut, handlers.trace() as trace, handlers.seed(rng_seed=random.key(0)):
            handlers.substitute(model, data=values)(*args, **kwargs)
        assert cut.call is not None
        terms = {n: site_term(s) for n, s in trace.items() if s["type"] == "sample"}
        return jax.tree.leaves(cut.call.init), terms

    starts, terms = eval_provenance(whole, **latents)
    fed = {
        n: np.array([n in start for start in starts], bool).reshape(size)
        for n in before
        if sites[n]["latent"]
    }
    initial, starting = [], []
    for name, leaf in fed.items():
        if not leaf.any() or any(name in terms[m] for m in terms if m != name and m not in before):
            continue
        if not any(name in terms[m] for m in before if m != name):
            starting.append(name)
        if not np.isinf(forgets_after(depends, _reach(depends, leaf))):
            initial.append(name)  # what lives in the carry for ever is a parameter
    # A latent that depends on nothing initial but conditions it (a mean, say) stays a parameter; one that hangs on
    # an initial site without feeding the carry would be lost between two blocks.
    for name in initial:
        touched = touched | _reach(depends, fed[name])
    memory = forgets_after(depends, touched)
    constant = True
    if (~touched).any():
        constant = all(made[k] == frozenset({f"carry {k}"}) for k in np.flatnonzero(~touched))
    parameters = tuple(n for n in latents if n not in path and n not in initial)
    structure = ScanStructure(
        path_sites=path,
        initial_sites=tuple(initial),
        global_sites=parameters,
        discrete=tuple(n for n in parameters if sites[n]["discrete"]),
        subsampled=outline.subsampled,
        location_scale={
            n: sites[n]["shape_params"] for n in (*path, *initial) if sites[n]["shape_params"] is not None
        },
        has_deterministic=outline.has_deterministic,
        observed_sites=tuple(n for n in mine if not sites[n]["latent"]),
        memory=memory,
        parallel=not depends[touched].any() and constant,
        index=index,
        length=facts["length"],
        blocking=tuple(np.array(facts["names"], object)[lasting(depends, touched)]),
        deferred=tuple(n for n in after if terms[n] & {*path, *initial}),
        value_axes={},
        depends=depends,
        touched=touched,
        starting_sites=tuple(starting),
        weighing=tuple(n for n in before if n not in initial and terms[n] & set(initial)),
    )
    if plates:
        structure = with_plates(structure, model, args, kwargs, outline)
    return structure


def with_plates(
    structure: ScanStructure,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    outline: _Outline | None = None,
) -> ScanStructure:
    """Add the plates around every site of the scan, if nothing passes between their elements."""
    sites = (outline or _outline(model, args, kwargs)).sites
    concerned = [
        *structure.path_sites,
        *structure.observed_sites,
        *structure.initial_sites,
        *structure.weighing,
    ]
    around = set.intersection(*(set(sites[n]["plates"]) for n in concerned))
    common = tuple(sorted((p for p in around if p.size > 1), key=lambda p: p.dim))
    if not common:
        return structure
    axes = {}
    starting = [n for n in structure.starting_sites if set(common) <= set(sites[n]["plates"])]
    for name in dict.fromkeys((*structure.path_sites, *structure.initial_sites, *starting)):
        ndim = len(sites[name]["value"].shape) - (name in structure.path_sites)
        axes[name] = tuple(ndim - sites[name]["event_dim"] + p.dim for p in common)
    carry_axes = _exchange(structure, common, axes, model, args, kwargs)
    if carry_axes is None:
        return structure
    return replace(structure, plates=common, carry_axes=carry_axes, value_axes=axes)


def _exchange(structure, plates, axes, model, args, kwargs):
    """Axes of the plates in each entry of the carry, or ``None`` if the elements depend on each other.

    Two particles swap one element of the plate: if the elements are independent, the next state and the densities
    of that element are the other particle's, and those of the rest are untouched. At random points this finds
    dependence with probability one, and works for discrete and continuous states alike.
    """
    systems = tuple(p.size for p in plates)
    element = tuple(size // 2 for size in systems)

    def swap(one, two, where):
        if where is None:
            return one
        index = [slice(None)] * jnp.ndim(one)
        for axis, place in zip(where, element, strict=True):
            index[axis] = place
        return jnp.asarray(one).at[tuple(index)].set(jnp.asarray(two)[tuple(index)])

    def candidates(shape):
        """The only assignment of plates to axes of these sizes, or ``None`` if there is no single one."""
        found = []
        for size in systems:
            fits = [a for a, n in enumerate(shape) if n == size]
            if len(fits) != 1:
                return None
            found.append(fits[0])
        return tuple(found)

    concrete: dict[str, Any] = {}

    def test(key):
        key_parameters, *keys = random.split(key, 5)
        _, prior = run_prefix(model, args, kwargs, index=structure.index, key=key_parameters)
        parameters = {
            n: s["value"] for n, s in prior.items() if is_latent(s) and n not in structure.initial_sites
        }
        pair = []
        for one, two in (keys[:2], keys[2:]):
            call, _ = run_prefix(model, args, kwargs, index=structure.index, key=one, values=parameters)
            like = canonical_carry(call)
            carry = jax.tree.map(lambda v, a: jnp.asarray(v, a.dtype), call.init, like)
            x = jax.tree.map(lambda v: v[0], call.xs)
            first, _, _ = run_step(call, carry, x, jnp.array(0), key=one)
            if structure.length > 1:
                x = jax.tree.map(lambda v: v[1], call.xs)
            t = jnp.array(min(1, structure.length - 1))
            first = jax.tree.map(lambda v, a: jnp.asarray(v, a.dtype), first, like)
            _, _, trace = run_step(call, first, x, t, key=two)
            pair.append((first, {n: trace[n]["value"] for n in structure.path_sites}))
        (carry_a, values_a), (carry_b, values_b) = pair
        leaves_a, tree = jax.tree.flatten(carry_a)
        leaves_b = jax.tree.leaves(carry_b)
        where = [
            candidates(leaf.shape) if on else None
            for leaf, on in zip(leaves_a, structure.touched, strict=True)
        ]
        concrete["where"] = where
        mixed = jax.tree.unflatten(
            tree, [swap(a, b, w) for a, b, w in zip(leaves_a, leaves_b, where, strict=True)]
        )
        values = {n: swap(values_a[n], values_b[n], axes[n]) for n in values_a}

        def outcome(carry, values):
            new, _, trace = run_step(call, carry, x, t, values=values)
            terms = [site_term(s, plates) for s in trace.values() if s["type"] == "sample"]
            return jax.tree.leaves(new), terms

        new_a, terms_a = outcome(carry_a, values_a)
        new_b, terms_b = outcome(carry_b, values_b)
        new_m, terms_m = outcome(mixed, values)
        every = tuple(range(len(systems)))
        same = [
            jnp.allclose(swap(a, b, w), m, rtol=1e-4, atol=1e-5, equal_nan=True)  # rounding hangs on fusion
            for a, b, m, w in zip(new_a, new_b, new_m, where, strict=True)
        ]
        same += [
            jnp.allclose(swap(a, b, every), m, rtol=1e-4, atol=1e-5, equal_nan=True)
            for a, b, m in zip(terms_a, terms_b, terms_m, strict=True)
        ]
        return jnp.stack([jnp.asarray(s) for s in same])

    with jax.ensure_compile_time_eval():
        same = jax.jit(test)(random.key(17))
    if isinstance(same, jax.core.Tracer) or not bool(np.asarray(same).all()):
        return None
    where = concrete["where"]
    if any(w is None for w, on in zip(where, structure.touched, strict=True) if on):
        return None
    return tuple(where)


def audit(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    structure: ScanStructure,
) -> None:
    """Compare the sum of the steps' densities with NumPyro's own joint density at a draw from the prior.

    They differ when something outside the scan changes its sites where the transition function does not see it.
    ``analyze`` refuses the handlers that do; this asks the numbers, for a model that does something stranger.
    """

    def both(key):
        trace = handlers.trace(handlers.block(handlers.seed(model, key), hide_fn=lambda _: False))
        whole = trace.get_trace(*args, **kwargs)
        mine = {*structure.path_sites, *structure.observed_sites}
        total = sum(site_term(whole[n]) for n in mine)
        values = {n: s["value"] for n, s in whole.items() if is_latent(s) and n not in mine}
        call, _ = run_prefix(model, args, kwargs, index=structure.index, values=values)
        like = canonical_carry(call)
        path = {n: whole[n]["value"] for n in structure.path_sites}

        def body(carry, inputs):
            x, t, values = inputs
            new, _, trace = run_step(call, carry, x, t, values=values)
            term = sum(site_term(s) for s in trace.values() if s["type"] == "sample")
            return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, like), term

        start = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), call.init, like)
        _, terms = jax.lax.scan(body, start, (call.xs, jnp.arange(call.length), path))
        return total, terms.sum()

    with jax.ensure_compile_time_eval(), handlers.block():
        theirs, ours = jax.jit(both)(random.key(3))
    if isinstance(theirs, jax.core.Tracer) or not np.isfinite(float(theirs)):
        return
    if abs(float(theirs) - float(ours)) > 1e-3 * (1.0 + abs(float(theirs))):
        raise ValueError(
            f"The log-density of the scan is {float(theirs):.6g} to NumPyro and {float(ours):.6g} step by step: a "
            "handler around the scan (mask, scale, scope, ...) changes its sites; move it into the transition "
            "function."
        )
