"""A model's scan as a dynamical system driven by standard normal noise.

Every latent site of the scan whose law is normal is written as location + scale * noise, the carry as a vector; then
one step is a function of state and noise, whatever the model is about. Independent elements of plates are independent
systems, side by side in the first axis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.kl import kl_divergence
from numpyro.primitives import Messenger

from sojourn._contract import Site, trace_model
from sojourn.inference._path_laws import Placed, bare, normal_law, point
from sojourn.inference._scan import ScanCall, is_latent, run_prefix, run_step, site_term
from sojourn.inference._structure import ScanStructure, analyze, canonical_carry
from sojourn.inference._working_responses import Working, observed_entries, working_parts

__all__ = ["PathSystem"]


class _values(Messenger):
    """Give sites the values that a function makes of their laws; it sees the law after plates have widened it."""

    def __init__(self, fn: Any, make: Callable[[str, Any], Any]):
        self.make = make
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        value = self.make(msg["name"], msg["fn"])
        if value is not None:
            msg["value"] = value


class _laws(Messenger):
    """Replace the laws of latent sites; ``after`` sees the value that was drawn, by NumPyro or by ``draw``.

    With ``bound`` it adds up the evidence bound as it goes: log-densities of what is observed, and for each latent site
    log p - log q, or minus the divergence of q from p where that is known and ``analytic``.
    """

    def __init__(
        self,
        fn: Any,
        make: Callable[[str, Any], Any],
        after: Callable[[str, Any, Any], None] | None = None,
        *,
        draw: Callable[[str, Any], Any] | None = None,
        bound: bool = False,
        analytic: bool = False,
    ):
        self.make, self.after, self.draw, self.bound, self.analytic = make, after, draw, bound, analytic
        self.total: Any = 0.0
        self._model_laws: dict[str, Any] = {}
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        law = self.make(msg["name"], msg["fn"])
        if law is not None:
            self._model_laws[msg["name"]] = msg["fn"]
            msg["fn"] = law
            if self.draw is not None:
                msg["value"] = self.draw(msg["name"], law)

    def postprocess_message(self, msg):
        if msg["type"] != "sample" or msg.get("_control_flow_done"):
            return
        if self.after is not None and not msg["is_observed"]:
            self.after(msg["name"], msg["fn"], msg["value"])
        if not self.bound:
            return
        law, value = self._model_laws.get(msg["name"], msg["fn"]), msg["value"]
        if msg["is_observed"]:
            term = jnp.sum(law.log_prob(value))
        elif law is msg["fn"]:
            return  # drawn from its own law
        else:
            term = None
            if self.analytic:
                with contextlib.suppress(NotImplementedError):
                    term = -jnp.sum(kl_divergence(msg["fn"], law))
            if term is None:
                term = jnp.sum(law.log_prob(value)) - jnp.sum(msg["fn"].log_prob(value))
        self.total = self.total + (term if msg["scale"] is None else msg["scale"] * term)


class _fixed_params(Messenger):
    """Values of ``param`` sites, seen by nobody else."""

    def __init__(self, fn: Any, values: Mapping[str, Any]):
        self.values = values
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] == "param" and msg["name"] in self.values:
            msg["value"], msg["stop"] = self.values[msg["name"]], True


class PathSystem:
    """What is static about the scan of a model for arguments of given shapes.

    Args:
        model, args, kwargs: the model, prepared.
        scan: which scan, as for :func:`analyze`.

    Attributes:
        structure: as :func:`analyze` finds it.
        noise_sites: sites of the scan that are made of normal noise, with where the systems are in them.
        other_sites: the other latent sites of the scan.
        initial_sites: sites before the scan that are made of normal noise and feed the first carry.
        parameters: all other latent sites, each with the shape of its unconstrained values.
        num_systems, num_states, num_noise, num_initial: sizes.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        scan: str | int | None = None,
    ):
        self.model = model
        structure = analyze(model, args, kwargs, scan=scan)
        self.structure: ScanStructure = structure
        self.index, self.length = structure.index, structure.length
        facts: dict[str, Any] = {}

        def look(key):
            sites = trace_model(model, args, kwargs, key=key)
            for name, site in sites.items():
                if site["type"] != "sample":
                    continue
                fn, _ = bare(site["fn"])
                facts[name] = {
                    "normal": isinstance(fn, dist.Normal | dist.MultivariateNormal)
                    and normal_law.of(site["fn"]) is not None,
                    "triangular": isinstance(fn, dist.MultivariateNormal),
                    "discrete": bool(site["fn"].support.is_discrete),
                    "support": site["fn"].support if is_latent(site) else None,
                    "event_dim": site["fn"].event_dim,
                    "shape": jnp.shape(site["value"]),
                    "plates": tuple(f for f in site["cond_indep_stack"]),
                    "unit": isinstance(fn, dist.Unit),
                }
            call, _ = run_prefix(model, args, kwargs, index=self.index, key=key)
            facts["carry"] = [jnp.shape(leaf) for leaf in jax.tree.leaves(call.init)]
            return 0

        with handlers.block():
            jax.eval_shape(look, jax.random.key(0))
        carry_shapes = facts.pop("carry")
        self.facts = facts
        several = bool(structure.plates)
        self.num_systems = int(np.prod(structure.systems, dtype=int)) if several else 1

        def placed(name: str, timed: bool) -> Placed:
            shape = tuple(facts[name]["shape"][1:] if timed else facts[name]["shape"])
            return Placed(tuple(structure.value_axes[name]) if several else (), shape)

        # Last first: a factor of their joint covariance is upper triangular (guides._Proposer).
        self.noise_sites: dict[str, Placed] = {}
        self.other_sites: dict[str, Placed] = {}
        for name in reversed(structure.path_sites):
            where = placed(name, True)
            fits = facts[name]["normal"] and not (
                facts[name]["triangular"] and where.size != (where.shape[-1] if where.shape else 0)
            )
            (self.noise_sites if fits else self.other_sites)[name] = where
        self.initial_sites = {
            n: placed(n, False)
            for n in reversed(structure.starting_sites)
            if facts[n]["normal"]
            and not facts[n]["triangular"]
            and (not several or n in structure.value_axes)
        }
        self.parameters: dict[str, tuple[int, ...]] = {}
        for name in facts:
            if facts[name]["support"] is None or name in structure.path_sites:
                continue
            if name not in self.initial_sites:
                transform = biject_to(facts[name]["support"])
                self.parameters[name] = tuple(transform.inverse_shape(facts[name]["shape"]))
        self.num_parameters = int(sum(np.prod(s, dtype=int) for s in self.parameters.values()))
        axes = structure.carry_axes if several else ((),) * len(carry_shapes)
        self.state = [
            Placed(tuple(a or ()), tuple(shape)) if on else None
            for on, a, shape in zip(structure.touched, axes, carry_shapes, strict=True)
        ]
        self.num_states = sum(p.size for p in self.state if p is not None)
        self.unconstrained = {n: self._unconstrained(n, p) for n, p in self.other_sites.items()}
        """For each other site its unconstrained values, and where the systems are in them."""
        self.num_noise = sum(p.size for p in self.noise_sites.values())
        self.num_initial = sum(p.size for p in self.initial_sites.values())
        self.responding: frozenset[tuple[str, str]] | None = None
        self.response_parts: list[tuple[tuple[str, str], int]] = []
        self.observed = tuple(n for n in structure.observed_sites if not facts[n]["unit"])

    def _unconstrained(self, name: str, where: Placed) -> Placed:
        if self.facts[name]["discrete"]:  # a guide refuses it
            return where
        shape = biject_to(self.facts[name]["support"]).inverse_shape(where.shape)
        return Placed(where.axes, tuple(shape))

    # --------------------------------------------------------------------------------------- states and noise

    def pack_state(self, carry: Any) -> Array:
        """``(systems, d)``: the entries of the carry that the latent values reach."""
        parts = [
            p.pack(leaf) for p, leaf in zip(self.state, jax.tree.leaves(carry), strict=True) if p is not None
        ]
        return jnp.concatenate(parts, -1).astype(float) if parts else jnp.zeros((self.num_systems, 0))

    def unpack_state(self, state: Array, like: Any) -> Any:
        """The carry with these entries, and the others as they are in ``like``."""
        leaves, tree = jax.tree.flatten(like)
        at = 0
        for k, p in enumerate(self.state):
            if p is not None:
                leaves[k] = p.unpack(state[..., at : at + p.size]).astype(jnp.result_type(leaves[k], float))
                at += p.size
        return jax.tree.unflatten(tree, leaves)

    @staticmethod
    def slices(sites: Mapping[str, Placed]) -> dict[str, slice]:
        """Entries of each site in the noise of a step."""
        found, at = {}, 0
        for name, p in sites.items():
            found[name] = slice(at, at + p.size)
            at += p.size
        return found

    def _from_noise(self, sites: Mapping[str, Placed], noise: Array) -> Callable[[str, Any], Any]:
        slices = self.slices(sites)

        def make(name, fn):
            if name not in sites:
                return None
            law = normal_law.of(fn)
            assert law is not None
            return law.value(sites[name].unpack(noise[..., slices[name]]))

        return make

    def unpack_parameters(self, vector: Array) -> dict[str, Array]:
        """Unconstrained values by site."""
        found, at = {}, 0
        for name, shape in self.parameters.items():
            size = int(np.prod(shape, dtype=int))
            found[name] = vector[..., at : at + size].reshape((*vector.shape[:-1], *shape))
            at += size
        return found

    def at_parameters(self, vector: Array) -> Callable[[str, Any], Any]:
        """For :class:`_laws`: each parameter at its value."""
        values = self.unpack_parameters(vector)
        return lambda name, fn: point(fn, values[name]) if name in values else None

    # ------------------------------------------------------------------------------------------------- running

    def start(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        parameters: Array,
        noise: Array,
        params: Mapping[str, Any],
        key: Array | None = None,
    ) -> tuple[ScanCall, dict[str, Array]]:
        """The scan as the model calls it, its parameters and the noise of the initial sites given.

        With it the elements that subsampling plates took (by ``key``).
        """

        def model(*args, **kwargs):
            laws = _laws(None, self.at_parameters(parameters))
            noises = _values(None, self._from_noise(self.initial_sites, noise))
            with _fixed_params(None, params), laws, noises:
                return self.model(*args, **kwargs)

        call, trace = run_prefix(model, args, kwargs, index=self.index, key=key)
        return call, {n: trace[n]["value"] for n in self.structure.subsampled if n in trace}

    def step(
        self, call: ScanCall, state: Array, noise: Array, x: Any, t: Array
    ) -> tuple[Array, dict[str, Site]]:
        """The next state ``(systems, d)`` and the trace of the step."""

        def f(carry, x):
            with _values(None, self._from_noise(self.noise_sites, noise)):
                return call.f(carry, x)

        carry, _, trace = run_step(call._replace(f=f), self.unpack_state(state, call.init), x, t)
        return self.pack_state(carry), trace

    def simulate(self, call: ScanCall, key: Array) -> Array:
        """``(T, systems, d)`` states before each step, all latent sites of the scan drawn from their own laws."""

        def step(carry, inputs):
            x, t, key = inputs
            new, _, _ = run_step(call, carry, x, t, key=key)
            state = self.pack_state(carry)
            return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b, a)), new, carry), state

        like = canonical_carry(call)
        start = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), call.init, like)
        steps = call.xs, jnp.arange(self.length), jax.random.split(key, self.length)
        return jax.lax.scan(step, start, steps)[1]

    def log_density(self, noise: Array, trace: Mapping[str, Site]) -> Array:
        """``(systems,)``: log-density of noise and observations of a step, up to a constant."""
        total = -0.5 * (noise**2).sum(-1)
        for name in self.structure.observed_sites:
            term = site_term(trace[name], self.structure.plates, scaled=False)
            total = total + jnp.reshape(term, (-1,))
        return total

    def seen(self, call: ScanCall, names: tuple[str, ...]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Values of observed sites along the scan, ``(T, systems, entries)``, and whether each was observed.

        The step is run on the first carry: what is observed does not depend on the state.
        """
        state = self.pack_state(call.init)
        noise = jnp.zeros((self.num_systems, self.num_noise))

        def one(x, t):
            _, trace = self.step(call, state, noise, x, t)
            values, present = {}, {}
            for name in names:
                site = trace[name]
                where = self.observed_place(site)
                value = jnp.broadcast_to(site["value"], where.shape)
                there = observed_entries(site["fn"], where.shape)
                values[name], present[name] = where.pack(value.astype(float)), where.pack(there)
            return values, present

        return jax.vmap(one)(call.xs, jnp.arange(self.length))

    def observed_place(self, site: Site) -> Placed:
        shape = jnp.broadcast_shapes(site["fn"].shape(), jnp.shape(site["value"]))
        if not self.structure.plates:
            return Placed((), shape)
        ndim = len(shape) - site["fn"].event_dim
        return Placed(tuple(ndim + p.dim for p in self.structure.plates), shape)

    def working(self, trace: Mapping[str, Site]) -> Working:
        """Working responses of all observed sites of a step whose entries are observed one by one.

        Of the parameters in ``responding``, by site and name, once it is known which depend on the path.
        """
        parts, self.response_parts = [], []
        for name in self.observed:
            found = working_parts(trace[name], self.observed_place(trace[name]), name, self.responding)
            for parameter, part in found.items():
                self.response_parts.append(((name, parameter), part[0].shape[-1]))
                parts.append(part)
        if not parts:
            empty = jnp.zeros((self.num_systems, 0))
            return Working(empty, empty, empty)
        return Working(*(jnp.concatenate(x, -1) for x in zip(*parts, strict=True)))

    def respond_only(self, kept: np.ndarray) -> np.ndarray:
        """Leave out responses of which no entry is in ``kept``; the places of ``kept`` among the rest."""
        at, found, places = 0, set(), []
        offset = 0
        for part, size in self.response_parts:
            inside = kept[(kept >= at) & (kept < at + size)] - at
            if len(inside):
                found.add(part)
                places.append(offset + inside)
                offset += size
            at += size
        self.responding = frozenset(found)
        return np.concatenate(places) if places else np.zeros(0, int)
