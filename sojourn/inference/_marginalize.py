"""``marginalize``: any NumPyro model with its finite discrete path summed out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import constraints
from numpyro.ops.provenance import eval_provenance
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from sojourn._contract import Site
from sojourn.inference._check_model import mask_of
from sojourn.inference._scan import (
    ScanCall,
    enclosing_handlers,
    is_latent,
    is_scan,
    prepared,
    run_prefix,
    run_step,
    scan_length,
    site_term,
)
from sojourn.inference._structure import (
    _outline,
    _quoted,
    _reach,
    analyze,
    canonical_carry,
    carry_names,
    forgets_after,
    lasting,
)
from sojourn.inference._summed_scan import (
    Layout,
    SummedScan,
    SummedSite,
    Support,
    _in_place,
    _systems_depth,
    log_sum,
)

__all__ = ["marginalizable", "marginalize"]

_LARGEST = 1_000_000
"""Terms of one step, at most."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """What becomes of a model."""

    layout: Layout
    index: int
    weighing: tuple[str, ...]
    """Sites before the scan whose law depends on its roots, in order."""
    hidden: frozenset[str]
    """Deterministic sites that depend on what is summed out."""


def marginalizable(
    model: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Names of the latent sites in a ``scan`` whose support is discrete and finite: what to sum out.

    Args:
        model, args, kwargs: a model and its arguments.

    Returns:
        The names in the order of the model; none if the model has no such site.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def coin():
        ...     scan(lambda s, _: (numpyro.sample("side", dist.Bernoulli(0.5)), None), 0, None, length=4)
        >>> marginalizable(coin)
        ('side',)
    """
    sites = _outline(prepared(model), args, dict(kwargs or {})).sites
    return tuple(n for n, s in sites.items() if s["scan"] is not None and _summable(s))


def marginalize(model: Callable[..., Any], *, vjp: bool = True) -> Callable[..., Any]:
    r"""The same model with the discrete path of its ``scan`` summed out, exactly.

    Latent sites in the ``numpyro.contrib.control_flow.scan`` whose support is discrete and finite disappear, and
    with them discrete sites before it that feed nothing but its initial carry. What remains has gradients, so NUTS
    and variational inference apply. Continuous latent sites in the scan stay.

    Every other site of the scan is emitted under its own name with a law whose ``log_prob`` holds the terms

    .. math:: \log p(y_t \mid \text{earlier sites of step } t, \text{everything before } t),

    of shape ``(T, ...)`` with an axis for each plate across which the model falls apart. They sum to the exact
    joint density, whatever is asked for it: ``numpyro.infer.log_likelihood`` returns the one-step-ahead terms. The
    law also draws: ``sample`` a new series on a new path (given the continuous latent values),
    ``sample_one_step_ahead`` each entry given the past.

    The recursion is that of the forward algorithm (Baum et al. 1970, *Ann. Math. Stat.* 41:164). Its state is the
    discrete values of the last ``L`` steps, ``L`` being the number of steps after which the carry has forgotten
    them: 1 for a Markov chain, 2 if a carry holds the last two states. This is read off the model. All its discrete
    sites together take ``K`` values a step; the cost is ``T K^(L+1)`` evaluations of the step. Plates around
    everything in the scan count as independent chains, not as ``K^P`` values.

    Handlers go around the result as around any model; ``condition`` or ``substitute`` on a site that is summed out
    belongs inside: ``marginalize(handlers.condition(model, ...))``. NaN observations count as missing. What the
    model *returns* is arbitrary where it depends on the path, and ``deterministic`` sites that do are left out:
    :func:`sojourn.inference.decode_paths` gives both the path and them.

    Args:
        model: a NumPyro model. If it has nothing to sum out, it comes back to the same effect.
        vjp: use the hand-written reverse rule of the recursion; ``False`` for forward-mode differentiation.

    Raises:
        ValueError: when it is called, if the carry remembers the path for ever (entries that count or accumulate it);
            if a step has more than a million terms; if a site after the scan depends on the path.
        NotImplementedError: a reverse scan; several scans with discrete sites.

    Example:
        Two coins, exchanged now and then; the sum over 2^5 paths.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def coins(heads):
        ...     p = numpyro.sample("p", dist.Beta(2.0, 2.0))
        ...     def step(coin, heads):
        ...         coin = numpyro.sample("coin", dist.Bernoulli(jnp.where(coin == 1, 0.8, 0.2)))
        ...         numpyro.sample("heads", dist.Bernoulli(jnp.where(coin == 1, p, 0.5)), obs=heads)
        ...         return coin, None
        ...     scan(step, jnp.array(0), heads)
        >>> heads = jnp.array([1, 0, 1, 1, 1])
        >>> terms = numpyro.infer.log_likelihood(marginalize(coins), {"p": jnp.array([0.9])}, heads)
        >>> terms["heads"].shape, f"{terms['heads'].sum():.4f}"
        ((1, 5), '-2.8284')
    """
    return model if isinstance(model, _Marginalized) else _Marginalized(model, vjp)


class _Marginalized:
    """See :func:`marginalize`."""

    def __init__(self, model: Callable[..., Any], vjp: bool):
        self.model, self.vjp = prepared(model), vjp
        functools.update_wrapper(self, model, updated=[])
        self.__wrapped__ = model
        self.__name__ = getattr(model, "__name__", type(model).__name__)
        self._plans: dict[Any, _Plan | None] = {}

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Plan | None:
        """What to sum out, found once for each shape of the arguments."""
        key = _static_key((args, dict(kwargs)))
        if key in self._plans:
            return self._plans[key]
        plan = _make_plan(self.model, args, kwargs)
        # From traced arguments it cannot be seen whether plates are independent.
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))):
            self._plans[key] = plan
        return plan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)[0]

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, SummedScan | None]:
        """What the model returns, and its scan."""
        plan = self.plan(args, kwargs)
        if plan is None:
            return self.model(*args, **kwargs), None
        _refuse_given(plan)
        summing = _sum_out(plan, self.model, args, kwargs, self.vjp)
        with summing:
            result = self.model(*args, **kwargs)
        return result, summing.scan


def _static_key(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(
        (jnp.shape(x), str(jnp.result_type(x)))
        if isinstance(x, jax.Array | np.ndarray)
        else (type(x), x if getattr(x, "__hash__", None) else id(x))
        for x in leaves
    )


def _summable(site: Mapping[str, Any]) -> bool:
    return site["latent"] and site["discrete"] and site["finite"]


# ----------------------------------------------------------------------------------------------- planning


def _make_plan(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Plan | None:
    sites = _outline(model, args, kwargs).sites
    owners = sorted({s["scan"] for s in sites.values() if s["scan"] is not None and _summable(s)})
    if not owners:
        return None
    if len(owners) > 1:
        first = [next(n for n, s in sites.items() if s["scan"] == o and _summable(s)) for o in owners]
        raise NotImplementedError(
            f"Several scans of this model have discrete latent sites ({_quoted(first)}); one can be summed out. Join "
            "them into one scan, or put what they have in common into plates."
        )
    structure = analyze(model, args, kwargs, scan=owners[0])
    discrete = [n for n in structure.path_sites if _summable(sites[n])]
    roots = [n for n in structure.initial_sites if _summable(sites[n])]
    latents = {n: s["value"] for n, s in sites.items() if s["latent"]}
    outside = {n: v for n, v in latents.items() if n not in structure.path_sites and n not in roots}
    start = {n: latents[n] for n in roots}
    inside = {n: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for n, v in latents.items()}
    facts: dict[str, Any] = {}

    def begin(**given):
        call, _ = run_prefix(
            model, args, kwargs, index=structure.index, values={**given["outside"], **given["roots"]}
        )
        like, tree = jax.tree.flatten(canonical_carry(call))
        facts.update(like=like, tree=tree, names=carry_names(call.init))
        facts["x"] = jax.eval_shape(lambda: jax.tree.map(lambda v: jnp.asarray(v)[0], call.xs))
        return jax.tree.leaves(call.init)

    jax.eval_shape(begin, outside=outside, roots=start)
    like, size = facts["like"], len(facts["like"])

    def one_step(**given):
        call, _ = run_prefix(
            model, args, kwargs, index=structure.index, values={**given["outside"], **given["roots"]}
        )
        carry = jax.tree.unflatten(facts["tree"], [given[f"carry {k}"] for k in range(size)])
        values = {**given["discrete"], **given["held"]}
        new, output, trace = run_step(call, carry, given["x"], given["t"], values=values)
        facts["supports"] = {n: _support(trace[n], _axes(structure, n, trace[n])) for n in discrete}
        told = {n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}
        return jax.tree.leaves(new), output, told

    given = {
        "outside": outside,
        "roots": start,
        "discrete": {n: inside[n] for n in discrete},
        "held": {n: inside[n] for n in structure.path_sites if n not in discrete},
        "x": facts["x"],
        "t": jax.ShapeDtypeStruct((), jnp.int32),
    } | {f"carry {k}": leaf for k, leaf in enumerate(like)}
    made, outputs, told = eval_provenance(one_step, **given)
    depends = np.array([[f"carry {k}" in made[j] for k in range(size)] for j in range(size)], bool)
    depends = depends.reshape(size, size)
    fed = _fed_by_roots(model, args, kwargs, structure, start, outside, facts)
    touched = _reach(depends, np.array(["discrete" in made[j] for j in range(size)], bool) | fed)
    memory = forgets_after(depends, touched)
    if np.isinf(memory):
        culprits = np.array(facts["names"], object)[lasting(depends, touched)]
        raise ValueError(
            f"The path of {_quoted(discrete)} cannot be summed out: {', '.join(culprits)} remembers it for ever. A "
            "carry may hold the discrete values of the last few steps, each as an entry of its own (two in one array "
            "look like one that never forgets)."
        )
    steady, levels = _steady(made, one_step, given)
    layout = Layout(
        sites=facts["supports"],
        roots={n: facts["root supports"][n] for n in roots},
        memory=int(memory),
        head=max(int(memory), levels),
        touched=tuple(bool(x) for x in touched),
        steady=tuple(bool(x) for x in steady),
        looks_back=bool(depends[np.ix_(~steady, ~steady)].any()),
        plates=structure.plates,
        carry_axes=structure.carry_axes,
    )
    _check_size(layout, discrete, roots, structure)

    poisoned = _reach(depends, touched) | touched
    at_risk = {f"carry {k}" for k in np.flatnonzero(poisoned)} | {"discrete"}
    bad_output = [bool(made & at_risk) for made in jax.tree.leaves(outputs, is_leaf=_is_names)]
    hidden = {n for n, names in told.items() if names & at_risk}
    weighing, more = _outside(model, args, kwargs, structure, start, outside, poisoned, bad_output)
    return _Plan(layout, structure.index, weighing, frozenset(hidden | more))


def _is_names(x: Any) -> bool:
    return isinstance(x, frozenset)


def _axes(structure: Any, name: str, site: Site) -> tuple[int, ...]:
    return tuple(structure.value_axes.get(name, ())) if structure.plates else ()


def _support(site: Site, systems: tuple[int, ...]) -> Support:
    fn = site["fn"]
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    try:
        with jax.ensure_compile_time_eval():
            values = np.asarray(fn.enumerate_support(expand=False))
    except (
        jax.errors.TracerArrayConversionError,
        jax.errors.ConcretizationTypeError,
        NotImplementedError,
    ) as e:
        raise ValueError(
            f"The support of '{site['name']}' is not known before the model runs (its size is computed, or differs "
            "from entry to entry), so its values cannot be listed."
        ) from e
    values = values.reshape(len(values), *fn.event_shape)
    shape = jnp.shape(site["value"])
    return Support(values, shape[: len(shape) - len(fn.event_shape)], systems)


def _fed_by_roots(model, args, kwargs, structure, roots, outside, facts):
    """Entries of the initial carry that depend on the roots, whose supports are noted on the way."""
    size = len(facts["like"])
    if not roots:
        facts["root supports"] = {}
        return np.zeros(size, bool)

    def begin(**given):
        call, trace = run_prefix(
            model, args, kwargs, index=structure.index, values={**given["roots"], **given["outside"]}
        )
        facts["root supports"] = {n: _support(trace[n], _axes(structure, n, trace[n])) for n in roots}
        return jax.tree.leaves(call.init)

    return np.array(
        ["roots" in names for names in eval_provenance(begin, roots=roots, outside=outside)], bool
    )


def _steady(made, one_step, given):
    """Entries of the carry that are functions of parameters and recent discrete values alone, and after how many
    steps they are."""
    closed = jax.make_jaxpr(lambda given: one_step(**given)[0])(given)
    places = [name for name, tree in sorted(given.items()) for _ in jax.tree.leaves(tree)]
    size = len(made)
    own = [closed.jaxpr.invars[places.index(f"carry {k}")] for k in range(size)]
    steady = np.array([out is var for out, var in zip(closed.jaxpr.outvars[:size], own, strict=True)], bool)
    levels = 0
    while True:
        known = {"outside", "roots", "discrete"} | {f"carry {k}" for k in np.flatnonzero(steady)}
        more = np.array([names <= known for names in made], bool) & ~steady
        # An entry that depends on itself (a counter) is not the same at every step.
        if not more.any():
            return steady, levels
        steady, levels = steady | more, levels + 1


def _check_size(layout: Layout, discrete: list[str], roots: list[str], structure: Any) -> None:
    size = layout.num_tuples * layout.num_values
    if size <= _LARGEST:
        return
    what = f"{_quoted([*discrete, *roots])} can take {layout.num_states} values a step"
    memory = f", and the carry holds them for {layout.memory} steps" if layout.memory > 1 else ""
    raise ValueError(
        f"The path cannot be summed out: {what}{memory}, which makes {size:.3g} terms a step, more than {_LARGEST:.0e}. "
        "Plates are independent chains, and cost a sum each, if they lie around every site of the scan and nothing "
        "passes between their elements; else use engine='particle_gibbs'."
    )


class _replace_scan(Messenger):
    """Given outputs in place of those of the scan."""

    def __init__(self, index: int, outputs: Callable[[Any], Any]):
        self.index, self.outputs, self.count = index, outputs, 0
        super().__init__(None)

    def process_message(self, msg):
        if not is_scan(msg):
            return
        index, self.count = self.count, self.count + 1
        if index == self.index:
            carry, ys = self.outputs(msg["args"])
            msg["value"] = ((None, None, carry), (PytreeTrace({}), ys))


def _outside(model, args, kwargs, structure, roots, outside, poisoned, bad_output):
    """Sites before the scan whose law depends on the roots, and deterministic sites that depend on the path."""
    order: list[str] = []
    kinds: dict[str, str] = {}
    place: dict[str, int] = {}

    def whole(**given):
        order.clear()

        def outputs(scan_args):
            place["scan"] = len(trace)
            call = ScanCall(*scan_args[:3], structure.length, ())
            tree = jax.tree.structure(call.init)
            carry = jax.tree.unflatten(
                tree,
                [
                    _mix(like, given["path"], bad)
                    for like, bad in zip(jax.tree.leaves(canonical_carry(call)), poisoned, strict=True)
                ],
            )
            x = jax.tree.map(lambda v: jnp.asarray(v)[0], call.xs)
            ys = jax.eval_shape(lambda c, x: run_step(call, c, x, jnp.array(0))[1], call.init, x)
            leaves, tree = jax.tree.flatten(ys)
            longer = [jax.ShapeDtypeStruct((structure.length, *y.shape), y.dtype) for y in leaves]
            made = [_mix(like, given["path"], bad) for like, bad in zip(longer, bad_output, strict=True)]
            return carry, jax.tree.unflatten(tree, made)

        with (
            handlers.block(),
            _replace_scan(structure.index, outputs),
            handlers.trace() as trace,
            handlers.seed(rng_seed=random.key(0)),
        ):
            handlers.substitute(model, data={**given["roots"], **given["outside"]})(*args, **kwargs)
        order.extend(trace)
        kinds.update({n: s["type"] for n, s in trace.items()})
        terms = {n: site_term(s) for n, s in trace.items() if s["type"] == "sample"}
        return terms, {n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}

    terms, told = eval_provenance(
        whole, path=jax.ShapeDtypeStruct((), jnp.float32), roots=roots, outside=outside
    )
    late = [n for n in order[place["scan"] :] if n in terms and terms[n] & {"path", "roots"}]
    if late:
        raise ValueError(
            f"The law of {_quoted(late)}, after the scan, depends on the path that is to be summed out: move "
            f"{'it' if len(late) == 1 else 'them'} into the transition function."
        )
    weighing = tuple(
        n for n in order[: place["scan"]] if n in terms and n not in roots and "roots" in terms[n]
    )
    return weighing, {n for n, names in told.items() if names & {"path", "roots"}}


def _mix(like: Any, path: Any, bad: bool) -> Any:
    """Something of the shape of ``like`` that depends on the path if ``bad``."""
    value = jnp.ones(like.shape, like.dtype)
    return value * (path == path).astype(like.dtype) if bad else value


def _refuse_given(plan: _Plan) -> None:
    """Handlers around the model cannot give a value to what is not there."""
    gone = {*plan.layout.sites, *plan.layout.roots}
    for kind in (handlers.condition, handlers.substitute):
        for handler in enclosing_handlers(kind):
            given = sorted(gone & set(handler.data or ()))
            if given:
                raise ValueError(
                    f"{_quoted(given)} is summed out, so handlers.{kind.__name__} around marginalize(model) cannot set "
                    f"it; put the handler inside: marginalize(handlers.{kind.__name__}(model, ...))."
                )


# ------------------------------------------------------------------------------------------------ running


class _sum_out(Messenger):
    """Run the model with its roots hidden and its scan summed."""

    def __init__(self, plan: _Plan, model, args, kwargs, vjp: bool):
        self.plan, self.model, self.args, self.kwargs, self.vjp = plan, model, args, kwargs, vjp
        self.count = 0
        self.values: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.scan: SummedScan | None = None
        super().__init__(None)

    def process_message(self, msg):
        plan = self.plan
        if is_scan(msg):
            index, self.count = self.count, self.count + 1
            if index == plan.index:
                msg["fn"] = self.summed
            return
        name = msg.get("name")
        if msg["type"] == "deterministic" and name in plan.hidden:
            msg["stop"] = True
        if msg["type"] != "sample" or msg.get("_control_flow_done"):
            return
        if name in plan.layout.roots:
            msg["stop"] = True
            key = numpyro.prng_key()
            table = plan.layout.roots[name].table
            # Any value will do to read off the rest; a draw makes what follows a draw from the joint law.
            msg["value"] = jnp.asarray(table[0]) if key is None else msg["fn"].sample(key)
        elif name in plan.weighing:
            msg["fn"] = self._weighed(name, msg["fn"], msg["is_observed"])

    def postprocess_message(self, msg):
        given = msg["type"] in ("param", "mutable", "plate") or (
            msg["type"] == "sample" and not msg["is_observed"] and msg["name"] not in self.plan.layout.roots
        )
        if given and self.scan is None:
            self.values[msg["name"]] = msg["value"]

    def _weighed(self, name: str, fn: dist.Distribution, observed: bool) -> dist.Distribution:
        """Law of a site before the scan, the roots summed out: known when the scan is reached."""
        plates = self.plan.layout.plates
        shape = fn.batch_shape
        batch = _systems_depth(len(shape), plates)
        lead = shape[:batch]
        support = fn.support
        extra = len(shape) - batch
        if extra:
            support = constraints.independent(support, extra)

        def terms():
            return _in_place(self.weights[name][None], (1, *lead), plates)[0]

        law = SummedSite(lead, (*shape[batch:], *fn.event_shape), support, terms, fn.sample)
        mask = mask_of(fn)
        return law if mask is None or extra or not observed else law.mask(mask)

    # -------------------------------------------------------------------------------------- the scan
    def summed(self, f, init, xs, length, reverse, rng_key=None, substitute_stack=None, **_):
        """In place of NumPyro's own: its arguments and result."""
        layout = self.plan.layout
        length = scan_length(xs, length)
        stack = tuple(_as_substitute(given) for given in substitute_stack or ())
        call = ScanCall(f, init, xs, length, stack)
        roots, carry = self._start(call)
        (log_start, base) = roots
        drawn, sampled, held = _chance(call, layout)
        if drawn:
            if rng_key is None:
                raise ValueError(
                    f"{_quoted(sorted(drawn))} in the scan need a random key: wrap the model in numpyro.handlers.seed."
                )
            if sampled and held:
                values = _simulate_given(SummedScan(layout, call, carry, log_start), sampled, held, rng_key)
            else:
                # One run of the scan, discrete sites and all.
                _, (trace, _) = scan_wrapper(call.f, init, xs, length, False, rng_key, substitute_stack)
                values = {n: trace.trace[n]["value"] for n in drawn | held}
                stack = tuple(given for given in stack if given[0] == "condition")
            call = call._replace(substitute_stack=(*stack, ("substitute", values)))
        scan = SummedScan(layout, call, carry, log_start, vjp=self.vjp)
        last, ys, sites = scan.anywhere()
        trace = {}
        for name, site in sites.items():
            if name in layout.sites or name in self.plan.hidden:
                continue
            trace[name] = _emitted(scan, name, site)
        if scan.unnormalised or base is not None:
            name = f"_{next(iter(layout.sites))}_log_sum"
            total = scan.terms.get("", jnp.zeros((length, *layout.systems)))
            if base is not None:
                total = total.at[0].add(base)
            trace[name] = _factor(name, total)
        self.scan = scan
        carry = jax.tree.unflatten(jax.tree.structure(init), last)
        return (length, rng_key, carry), (PytreeTrace(trace), ys)

    def _start(self, call: ScanCall):
        """Log-law of the roots given what was observed of them (and what it lacks to sum to one), and the carries
        they lead to."""
        layout = self.plan.layout
        if not layout.roots:
            leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(call.init)]
            leaves = [v[None] if on else v for v, on in zip(leaves, layout.touched, strict=True)]
            return (jnp.zeros((1, *layout.systems)), None), leaves
        names = [*layout.roots, *self.plan.weighing]
        unnormalised = False

        def begin(number):
            nonlocal unnormalised
            chosen = {}
            for name in reversed(list(layout.roots)):
                support = layout.roots[name]
                chosen[name] = jnp.asarray(support.table)[number % support.size]
                number = number // support.size
            found, trace = run_prefix(
                self.model,
                self.args,
                self.kwargs,
                index=self.plan.index,
                values={**self.values, **chosen},
            )
            unnormalised = any(
                trace[n]["scale"] is not None or mask_of(trace[n]["fn"]) is not None for n in layout.roots
            )
            return [jnp.asarray(v) for v in jax.tree.leaves(found.init)], {
                n: site_term(trace[n], layout.plates) for n in names
            }

        axes = [0 if on else None for on in layout.touched]
        begin = jax.jit(jax.vmap(begin, out_axes=(axes, 0)))
        leaves, terms = begin(jnp.arange(layout.num_roots))
        joint = sum(terms[n] for n in layout.roots)
        sofar = base = log_sum(joint, 0)
        for name in self.plan.weighing:
            joint = joint + terms[name]
            upto = log_sum(joint, 0)
            self.weights[name], sofar = upto - jnp.where(jnp.isfinite(sofar), sofar, 0.0), upto
        log_start = joint - jnp.where(jnp.isfinite(sofar), sofar, 0.0)
        return (log_start, base if unnormalised else None), leaves


def _simulate_given(scan: SummedScan, sampled: set[str], held: set[str], key: Any) -> dict[str, Any]:
    """Values of the sites that nothing determines, on a path drawn from its law given the others."""
    held_members = [n for n in scan.members if n in held]
    if scan.carry_by_chance or any(scan.reach[n].chance for n in (*scan.discrete, *held_members)):
        raise NotImplementedError(
            f"{_quoted(sorted(held))} are given, and their law depends on {_quoted(sorted(sampled))}, which are not: a "
            "path cannot be drawn for them."
        )
    key_path, key_values = random.split(key)
    return scan.drawn_along(scan.sample_path(key_path, held_members), sorted(sampled), key_values)


def _as_substitute(given: tuple[str, Any]) -> tuple[str, Any]:
    """A replayed trace gives values as ``substitute`` does."""
    kind, what = given
    if kind != "replay":
        return given
    return "substitute", {
        n: s["value"] for n, s in what.items() if s["type"] == "sample" and not s["is_observed"]
    }


def _chance(call: ScanCall, layout: Layout) -> tuple[set[str], set[str], set[str]]:
    """Latent sites of the step, other than the discrete ones: whose value hangs on a random key, those of them that
    no handler gives, and the ones whose value is fixed."""
    empty: set[str] = set()
    latent: set[str] = set()

    def notice(site):
        """Outermost of the handlers around the step: what has no value now is left to chance."""
        if site["type"] == "sample" and site["value"] is None:
            empty.add(site["name"])

    def step(key, carry, x, values):
        # Seeded within the substitutions, as in NumPyro's scan: an initialisation strategy draws from that key.
        seeded = call._replace(f=handlers.substitute(handlers.seed(call.f, key), data=values))
        seeded = seeded._replace(substitute_stack=(*call.substitute_stack, ("substitute", notice)))
        _, _, trace = run_step(seeded, carry, x, jnp.array(0))
        found = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and is_latent(s)}
        latent.update(n for n in found if n not in layout.sites)
        return {n: v for n, v in found.items() if n not in layout.sites}

    x = jax.tree.map(lambda v: jnp.asarray(v)[0], call.xs)
    values = {n: jnp.asarray(s.table[0]) for n, s in layout.sites.items()}
    made = eval_provenance(step, key=random.key(0), carry=call.init, x=x, values=values)
    drawn = {n for n, names in made.items() if "key" in names}
    return drawn, drawn & empty, latent - drawn


def _emitted(scan: SummedScan, name: str, site: Site) -> dict[str, Any]:
    """A site as NumPyro's scan leaves it, with its own law."""
    message = {k: v for k, v in site.items() if k not in ("stop", "mask", "args", "fn")}
    message |= {"args": (), "_control_flow_done": True, "fn": None}
    if site["type"] != "sample":
        return message
    fn: dist.Distribution = scan.law(name, site)
    if "mask" in site:
        fn = fn.mask(_in_place(site["mask"], fn.batch_shape, scan.layout.plates))
    infer = {**site["infer"], "_scan_current_index": None}
    kwargs = {**site["kwargs"], "rng_key": None}
    return {**message, "fn": fn, "infer": infer, "kwargs": kwargs, "scale": None, "intermediates": []}


def _factor(name: str, log_factor: Any) -> dict[str, Any]:
    return {
        "type": "sample",
        "name": name,
        "fn": dist.Unit(log_factor),
        "args": (),
        "kwargs": {"rng_key": None, "sample_shape": ()},
        "value": jnp.zeros((*jnp.shape(log_factor), 0)),
        "scale": None,
        "is_observed": True,
        "intermediates": [],
        "cond_indep_stack": [],
        "infer": {"_scan_current_index": None},
        "_control_flow_done": True,
    }
