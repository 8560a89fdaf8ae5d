"""``read_scan``: a NumPyro model with a scan as the pure functions of a state-space model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from sojourn._contract import Site
from sojourn.inference import _labels as labels
from sojourn.inference._scan import ScanCall, is_latent, prepared, run_prefix, run_step, site_term
from sojourn.inference._structure import ScanStructure, analyze, canonical_carry
from sojourn.ops.particles import Move, Process

__all__ = ["ScanModel", "StateSpace", "read_scan"]


def read_scan(
    model: Callable[..., Any],
    *args: Any,
    scan: str | int | None = None,
    plates: bool = True,
    **kwargs: Any,
) -> ScanModel:
    """Read a NumPyro model with a ``scan`` as a state-space model: the seam for samplers from elsewhere.

    The result holds what was found in the model (``structure``) and, for given parameters, the pure functions
    that define the process: draw and density of the initial state, draw and density of a step, density of the
    observations. They can be used under ``jit``, ``vmap``, ``grad`` and ``lax.scan``.

    Args:
        model: a NumPyro model whose time loop is ``numpyro.contrib.control_flow.scan``.
        *args, **kwargs: its arguments, the data among them. NaN observations count as missing.
        scan: which scan, if several have latent sites: its number, or the name of a site in it.
        plates: treat plates around everything in the scan as independent systems; densities then have the shape
            of these plates, otherwise they are scalars.

    Raises:
        ValueError: no scan, no latent site in it, ``do`` or ``reparam`` set on a site inside it.
        NotImplementedError: a reverse scan; sites after the scan whose law depends on it.

    Example:
        A particle of a random walk, moved by hand.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
        >>> read = sj.read_scan(walk, jnp.array([0.1, 0.3, -0.2]))
        >>> print(read.structure)
        scan of 3 steps
          path: x
          before the first step: x0
          observed at each step: y
          parameters: scale
          the carry forgets after 1 step
        >>> process = read.at({"scale": 0.5})
        >>> carry, initial = process.initial_draw(jax.random.key(0))
        >>> carry, values = process.transition_draw(jax.random.key(1), carry, process.xs[0], 0)
        >>> bool(process.observation_log_prob(initial["x0"], process.xs[0], 0, values) < 0)
        True
    """
    model, bare_args = prepared(model), tuple(labels.bare(a) for a in args)
    bare_kwargs = {name: labels.bare(value) for name, value in kwargs.items()}
    structure = analyze(model, bare_args, bare_kwargs, scan=scan, plates=plates)
    refuse_deferred(structure)
    return ScanModel(model, bare_args, bare_kwargs, structure)


def refuse_deferred(structure: ScanStructure) -> None:
    if structure.deferred:
        names = ", ".join(f"'{n}'" for n in structure.deferred)
        raise NotImplementedError(
            f"The law of {names}, after the scan, depends on the path, so no step can be weighed by itself: move it "
            "into the transition function."
        )


class ScanModel:
    """A model with a scan, read; see :func:`read_scan`.

    Attributes:
        structure: what goes where (:class:`ScanStructure`).
        model, args, kwargs: what was read.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        structure: ScanStructure,
    ):
        self.model, self.args, self.kwargs, self.structure = model, args, dict(kwargs), structure

    def at(self, parameters: Mapping[str, Any] | None = None) -> StateSpace:
        """The process at given parameters: values, on their own scale, of ``structure.global_sites``."""
        return StateSpace(self, dict(parameters or {}))

    def __repr__(self) -> str:
        return f"ScanModel of a {self.structure}"


class StateSpace:
    """Pure functions of a process at given parameters; see :func:`read_scan`.

    ``carry`` is the model's own carry, ``values`` a dict of the latent values of one step, ``x`` one entry of
    ``xs``, ``t`` the number of the step. Densities have shape ``structure.systems``, usually ``()``.

    Attributes:
        xs: inputs of the scan, leading axis ``length``.
        length: number of steps.
        log_prior: log-density of all sites before the scan that the initial state does not touch.
    """

    def __init__(self, read: ScanModel, parameters: dict[str, Any]):
        self._read, self._parameters = read, parameters
        self._call, trace = self._prefix(None, {})
        self._like = canonical_carry(self._call)
        structure = read.structure
        # Inputs of a scan may be Python or NumPy numbers; indexing by a tracer wants arrays.
        self.xs = jax.tree.map(jnp.asarray, self._call.xs)
        self.length = self._call.length
        apart = {*structure.initial_sites, *structure.weighing}
        self.log_prior = sum(
            (jnp.sum(site_term(s)) for n, s in trace.items() if s["type"] == "sample" and n not in apart),
            jnp.zeros(()),
        )

    # ------------------------------------------------------------------------------------------ reading
    def _prefix(self, key: Array | None, values: Mapping[str, Any]) -> tuple[ScanCall, dict[str, Site]]:
        read = self._read
        return run_prefix(
            read.model,
            read.args,
            read.kwargs,
            index=read.structure.index,
            key=key,
            values={**self._parameters, **values},
            draws=len(read.structure.initial_sites),
        )

    def _step(self, carry, x, t, key=None, values=None):
        carry, _, trace = run_step(
            self._call,
            carry,
            x,
            jnp.asarray(t),
            key=key,
            values=values,
            draws=len(self._read.structure.path_sites),
        )
        carry = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), carry, self._like)
        return carry, {n: s for n, s in trace.items() if s["type"] == "sample"}

    def _sum(self, sites: Any, scaled: bool = True) -> Array:
        structure = self._read.structure
        total = jnp.zeros(structure.systems)
        for site in sites:
            total = total + site_term(site, structure.plates, scaled=scaled)
        return total

    def _start(self, key, values):
        structure = self._read.structure
        call, trace = self._prefix(key, values)
        carry = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), call.init, self._like)
        drawn = {n: trace[n] for n in structure.initial_sites}
        weight = self._sum(trace[n] for n in structure.weighing)
        # Drawn from the prior without its scale: the scale is a weight.
        weight = weight + self._extra(drawn.values())
        return carry, drawn, weight

    def _extra(self, sites: Any) -> Array:
        """What a ``scale`` adds to the density from which a latent site is drawn."""
        scaled = [s for s in sites if s["scale"] is not None]
        return self._sum(scaled) - self._sum(scaled, scaled=False)

    # -------------------------------------------------------------------------------------- the functions
    def initial_draw(self, key: Array) -> tuple[Any, dict[str, Array]]:
        """Draw the initial sites: the carry before the first step, and their values."""
        carry, drawn, _ = self._start(key, {})
        return carry, {n: s["value"] for n, s in drawn.items()}

    def initial_carry(self, values: Mapping[str, Any]) -> Any:
        """The carry before the first step, given the initial sites."""
        return self._start(None, values)[0]

    def initial_log_prob(self, values: Mapping[str, Any]) -> Array:
        """Log-density of the initial sites, and of what was observed of them before the scan."""
        _, drawn, weight = self._start(None, values)
        return weight + self._sum(drawn.values(), scaled=False)

    def transition_draw(self, key: Array, carry: Any, x: Any, t: Any) -> tuple[Any, dict[str, Array]]:
        """One step from ``carry``: the new carry, and the latent values of the step."""
        carry, sites = self._step(carry, x, t, key=key)
        return carry, {n: s["value"] for n, s in sites.items() if is_latent(s)}

    def transition(self, carry: Any, x: Any, t: Any, values: Mapping[str, Any]) -> Any:
        """The carry after a step with the given latent values."""
        return self._step(carry, x, t, values=values)[0]

    def transition_log_prob(self, carry: Any, x: Any, t: Any, values: Mapping[str, Any]) -> Array:
        """Log-density of the latent values of a step from ``carry``."""
        sites = self._step(carry, x, t, values=values)[1]
        return self._sum(s for s in sites.values() if is_latent(s))

    def observation_log_prob(self, carry: Any, x: Any, t: Any, values: Mapping[str, Any]) -> Array:
        """Log-density of what is observed in a step from ``carry`` with the given latent values."""
        sites = self._step(carry, x, t, values=values)[1]
        return self._sum(s for s in sites.values() if not is_latent(s))

    # ------------------------------------------------------------------------------------ for particles
    def process(
        self,
        *,
        guide: Callable[..., Any] | None = None,
        initial_guide: Callable[..., Any] | None = None,
        twist: Callable[..., Any] | None = None,
    ) -> Process:
        """The process as :mod:`sojourn.ops.particles` takes it.

        Args:
            guide: ``guide(carry, x, parameters)``, a NumPyro function that samples any of the step's latent
                sites under their own names: the proposal in place of the model's transition.
            initial_guide: ``initial_guide(parameters)``, likewise for the initial sites.
            twist: ``twist(carry, x, parameters)``: log-weight by which a particle is favoured when it is
                resampled before the step with input ``x`` (auxiliary particle filter).
        """
        structure, parameters = self._read.structure, self._parameters

        def proposal(fn, key, values, *inputs):
            """Values drawn by a guide, and their log-density, site by site."""
            with (
                handlers.block(),
                handlers.trace() as trace,
                handlers.seed(rng_seed=jax.random.key(0) if key is None else key),
                handlers.substitute(data=dict(values or {})),
            ):
                fn(*inputs, parameters)
            latent = {n: s for n, s in trace.items() if is_latent(s)}
            return {n: s["value"] for n, s in latent.items()}, latent

        def twisted(carry, x, t):
            if twist is None:
                return jnp.zeros(structure.systems)
            return jnp.asarray(twist(carry, x, parameters)) + jnp.zeros(structure.systems)

        def weigh_start(key, values):
            proposed: dict[str, Any] = {}
            if initial_guide is not None:
                key, key_guide = (None, None) if key is None else jax.random.split(key)
                drawn, proposed = proposal(initial_guide, key_guide, values)
                values = {**drawn, **values}
            carry, sites, weight = self._start(key, values)
            corrected = [sites[n] for n in sites if n in proposed]
            weight = (
                weight
                + self._sum(corrected, scaled=False)
                - self._sum(proposed[s["name"]] for s in corrected)
            )
            return carry, {n: s["value"] for n, s in sites.items()}, weight

        def weigh(key, carry, x, t, values):
            proposed: dict[str, Any] = {}
            if guide is not None:
                key, key_guide = (None, None) if key is None else jax.random.split(key)
                drawn, proposed = proposal(guide, key_guide, values, carry, x)
                values = {**drawn, **(values or {})}
            new, sites = self._step(carry, x, t, key=key, values=values)
            latent = {n: s for n, s in sites.items() if is_latent(s)}
            seen = self._sum(s for n, s in sites.items() if n not in latent)
            corrected = [latent[n] for n in latent if n in proposed]
            weight = seen + self._extra(s for n, s in latent.items() if n not in proposed)
            weight = weight + self._sum(corrected) - self._sum(proposed[s["name"]] for s in corrected)
            return Move(
                new,
                {n: latent[n]["value"] for n in structure.path_sites if n in latent},
                weight,
                seen + self._sum(latent.values()),
                twisted(carry, x, t),
            )

        def start_at(values):
            carry, _, weight = weigh_start(None, dict(values))
            return carry, weight

        axes = structure.value_axes
        return Process(
            length=self.length,
            xs=self.xs,
            start=lambda key: weigh_start(key, {}),
            start_at=start_at,
            move=lambda key, carry, x, t: weigh(key, carry, x, t, None),
            move_to=lambda carry, x, t, values: weigh(None, carry, x, t, values),
            twist=None if twist is None else twisted,
            systems=structure.systems,
            carry_axes=structure.carry_axes,
            value_axes=tuple(axes[n] for n in sorted(structure.path_sites)) if axes else None,
            start_axes=tuple(axes[n] for n in sorted(structure.initial_sites)) if axes else None,
        )
