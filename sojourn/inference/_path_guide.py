"""What guides of a path have in common: they run the model with other laws at its latent sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.elbo import ELBO
from numpyro.primitives import Messenger

from sojourn._arguments import must_be, whole_number
from sojourn._contract import trace_model
from sojourn.inference._initial import compiled_once
from sojourn.inference._params import restore
from sojourn.inference._path_laws import Placed, made_of
from sojourn.inference._path_system import PathSystem, _fixed_params, _laws
from sojourn.inference._scan import ScanCall, is_scan, prepared

__all__ = ["PathBound", "PathGuideBase", "Plan", "standard", "standardised"]

_FULL = 200  # parameters up to which their joint covariance is learnt


class Plan(NamedTuple):
    """What is worked out once for arguments of given shapes."""

    system: PathSystem
    params: dict[str, tuple[Any, dict[str, Any]]]
    """``numpyro.param`` sites of the model: first value, keywords."""
    start: dict[str, Any]
    """First values of the guide's own parameters."""
    extra: dict[str, Any]


class PathGuideBase:
    """What the guides have in common: parameters of the model, and running it with other laws."""

    mean_field: bool
    """Whether divergences of single sites make the bound, rather than their log-densities."""

    def __init__(self, model, *, scan, prefix, width, context_size, sites, data, seed):
        self.model = prepared(model)
        whole_number(width, "width")
        if context_size is not None:
            whole_number(context_size, "context_size")
        whole_number(seed, "seed", None)
        must_be(data is None or callable(data), "data", "a function of the arguments of the model", data)
        self.prefix, self.seed = prefix, seed
        self._scan, self._width, self._context_size = scan, width, context_size
        self._sites, self._data = sites, data
        self._plans: dict[Any, Plan] = {}
        self.__name__ = type(self).__name__

    # ---------------------------------------------------------------------------------------------- interface

    def setup(self, *args: Any, trained: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at the model and find where to start. Called by itself, unless the data are traced.

        Args:
            *args, **kwargs: of the model.
            trained: parameters of an earlier run, from which to start where they are not of one series only.
        """
        key = _signature(args, kwargs)
        if key in self._plans:
            return
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))):
            raise ValueError(
                f"{type(self).__name__} looks at the data once to find where to start, and here they are traced: call "
                "guide.setup(*args, **kwargs) before, with the arguments of the model as they are."
            )
        # Inside a trace what is known is worked out at once; elsewhere that would compile operation by operation.
        inside = isinstance(jnp.asarray(np.zeros(())), jax.core.Tracer)
        known = jax.ensure_compile_time_eval() if inside else nullcontext()
        with handlers.block(), known:
            plan = self._make_plan(args, kwargs, dict(trained or {}))
        of_series = any(n.startswith("series_") for n in plan.start)
        if plan.system.structure.subsampled and of_series:
            raise ValueError(
                f"Plate '{plan.system.structure.subsampled[0]}' takes a subsample, and {type(self).__name__} would learn "
                "values for the steps of a series, which then is another one each time: give it an encoder, such as "
                "encoder='gru'."
            )
        self._plans[key] = plan

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Run as a guide: samples the latent sites of the model and returns their values."""
        plan = self._plan(args, kwargs)
        params = self._model_params(plan)
        vector = self._draw_parameters(plan)
        start = self._start(plan, args, kwargs, params, vector)
        (each, always), initial, taken = self._steer(plan, args, kwargs, start)
        law, _ = self._outer(plan, vector, initial)
        hidden = handlers.block(hide_fn=not_of_guide)

        def steered(f, carry, inputs):
            x, own = inputs
            make, after = self._laws_of_step(plan, own, always, carry)
            with handlers.block(hide_fn=not_of_guide), _laws(None, make, after):
                return f(carry, x)

        scans = _steered(plan.system.index, each, steered)
        with handlers.trace() as trace, hidden, _taken(taken), scans, _laws(None, law):
            self.model(*args, **kwargs)
        return {n: s["value"] for n, s in trace.items() if s["type"] == "sample"}

    def bound(self, *args: Any, **kwargs: Any) -> Array:
        """One estimate of the evidence bound, in a single pass through the model.

        ``Trace_ELBO`` runs the guide and then the model at its draw; here the guide *is* the model, so that both
        densities are at hand in one pass, and all random numbers are drawn at once. To be run under
        ``handlers.seed`` and ``handlers.substitute``.
        """
        plan = self._plan(args, kwargs)
        system = plan.system
        params = self._model_params(plan)
        places = self._places(system)
        slices = PathSystem.slices(places)
        sizes = (
            (system.num_parameters,),
            (system.num_systems, system.num_initial),
            (system.length, system.num_systems, sum(p.size for p in places.values())),
        )
        counts = [int(np.prod(size, dtype=int)) for size in sizes]
        # A barrier, or XLA works the numbers out again in every loop that reads them.
        normal = jax.lax.optimization_barrier(jax.random.normal(numpyro.prng_key(), (sum(counts),)))
        parts = jnp.split(normal, np.cumsum(counts)[:-1])
        own, first, path = (part.reshape(size) for part, size in zip(parts, sizes, strict=True))
        vector, entropy = self._make_parameters(plan, own)
        start = self._start(plan, args, kwargs, params, vector)
        (each, always), initial, taken = self._steer(plan, args, kwargs, start)
        law, first_slices = self._outer(plan, vector, initial)

        def draw(name, law):
            if name in first_slices:
                return made_of(law, first[..., first_slices[name]], system.initial_sites[name])
            return law.v

        def steered(f, carry, inputs):
            x, (own, noise) = inputs
            make, after = self._laws_of_step(plan, own, always, carry)

            def draw(name, law):
                return made_of(law, noise[..., slices[name]], places[name])

            laws = _laws(None, make, after, draw=draw, bound=True, analytic=self.mean_field)
            with handlers.block(), laws:
                carry, output = f(carry, x)
            return carry, (output, laws.total)

        laws = _laws(None, law, draw=draw, bound=True, analytic=self.mean_field)
        scans = _steered(system.index, (each, path), steered, terms=True)
        with handlers.block(), _taken(taken), _fixed_params(None, params), scans, laws:
            self.model(*args, **kwargs)
        return laws.total + entropy + jnp.sum(scans.terms)

    def _model_params(self, plan: Plan) -> dict[str, Any]:
        """The model's ``numpyro.param`` sites, declared once (a network is callable, and would be called)."""
        return {
            n: numpyro.param(n, (lambda key, v=value: v) if callable(value) else value, **given)
            for n, (value, given) in plan.params.items()
        }

    @staticmethod
    def _places(system: PathSystem) -> dict[str, Placed]:
        """Sites of a step, and where the systems are in their normal noise."""
        return {**system.noise_sites, **system.unconstrained}

    @staticmethod
    def _start(plan, args, kwargs, params, vector):
        key = numpyro.prng_key() if plan.system.structure.subsampled else None
        return partial(plan.system.start, args, kwargs, vector, params=params, key=key)

    @staticmethod
    def _outer(plan, vector, initial):
        """The laws outside the scan; entries of each initial site in their noise."""
        system = plan.system
        at_parameters = system.at_parameters(vector)

        def law(name, fn):
            return at_parameters(name, fn) or (initial(name, fn) if name in system.initial_sites else None)

        return law, system.slices(system.initial_sites)

    def sample_posterior(
        self,
        key: Array,
        params: Mapping[str, Any],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draws of the latent sites.

        Args:
            key: random key.
            params: as ``SVI.get_params`` gives them.
            *args, **kwargs: of the model.
            sample_shape: how many draws.
        """
        self._plan(args, kwargs)

        def one(key):
            return handlers.substitute(handlers.seed(self, key), data=dict(params))(*args, **kwargs)

        if sample_shape == ():
            return jax.jit(one)(key)
        keys = jax.random.split(key, int(np.prod(sample_shape)))
        draws = jax.jit(jax.vmap(one))(keys)
        return jax.tree.map(lambda x: x.reshape((*sample_shape, *x.shape[1:])), draws)

    def belongs_to_series(self, name: str) -> bool:
        """Whether a parameter describes the series at hand, and means nothing for others."""
        return name.startswith(f"{self.prefix}_series_")

    # -------------------------------------------------------------------------------------------------- parts

    def _plan(self, args, kwargs) -> Plan:
        key = _signature(args, kwargs)
        if key not in self._plans:
            self.setup(*args, **kwargs)
        return self._plans[key]

    def _make_plan(self, args, kwargs, trained) -> Plan:
        raise NotImplementedError

    def _steer(self, plan, args, kwargs, start) -> tuple[Any, Callable[[str, Any], Any], dict[str, Array]]:
        """What steers each step, with time first (and what steers all); the laws of the initial sites; what plates
        took. ``start(noise)`` gives the scan."""
        raise NotImplementedError

    def _laws_of_step(
        self, plan, steering, always, carry
    ) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
        """For :class:`_laws`, from what steers a step and the carry before it."""
        raise NotImplementedError

    def _network(self, plan: Plan, name: str) -> Any:
        """A network of the guide, every array of it a parameter of its own: NumPyro's replay of a scan asks for arrays."""
        leaves, tree = jax.tree_util.tree_flatten_with_path(plan.extra[name])
        found = [
            numpyro.param(f"{self.prefix}_{name}{jax.tree_util.keystr(path)}", leaf)
            if isinstance(leaf, jax.Array)
            else leaf
            for path, leaf in leaves
        ]
        return jax.tree.unflatten(tree, found)

    def _own(self, plan: Plan, name: str, **given: Any) -> Array:
        """A parameter of the guide."""
        return numpyro.param(f"{self.prefix}_{name}", plan.start[name], **given)

    def _first_look(self, args, kwargs, trained) -> tuple[PathSystem, dict[str, Any], dict[str, Any]]:
        """The system, the model's ``param`` sites, and where the parameters start."""
        system = PathSystem(self.model, args, kwargs, self._scan)
        discrete = [n for n in (*system.parameters, *system.other_sites) if system.facts[n]["discrete"]]
        if discrete:
            raise ValueError(
                f"Site '{discrete[0]}' is discrete: {type(self).__name__} is for continuous sites."
            )
        found: dict[str, Any] = {}

        def draw(key):
            trace = trace_model(self.model, args, kwargs, key=key)
            values = []
            for name in system.parameters:
                site = trace[name]
                hint = site["infer"].get("init")
                value = site["value"] if hint is None else jnp.broadcast_to(hint, jnp.shape(site["value"]))
                values.append(jnp.ravel(biject_to(site["fn"].support).inv(jnp.asarray(value, float))))
            found["params"] = {
                n: {k: v for k, v in s["kwargs"].items() if k in ("constraint", "event_dim")}
                for n, s in trace.items()
                if s["type"] == "param"
            }
            params = {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
            return (jnp.concatenate(values) if values else jnp.zeros(0)), params

        keys = jax.random.split(jax.random.key(self.seed), 64)
        with compiled_once():
            draws, params = jax.jit(lambda keys: (jax.vmap(lambda k: draw(k)[0])(keys), draw(keys[0])[1]))(
                keys
            )
        known = {n: restore(n, v, trained) for n, v in params.items()}
        params = {n: (v if known[n] is None else known[n], found["params"][n]) for n, v in params.items()}
        loc = np.nanmedian(np.asarray(draws), 0)
        size = len(loc)
        start: dict[str, Any] = {}
        if size:
            start["loc"] = trained.get(
                f"{self.prefix}_loc", jnp.asarray(np.where(np.isfinite(loc), loc, 0.0))
            )
            if size <= _FULL:
                start["scale_tril"] = trained.get(f"{self.prefix}_scale_tril", 0.1 * jnp.eye(size))
            else:
                start["scale"] = trained.get(f"{self.prefix}_scale", jnp.full(size, 0.1))
        return system, params, start

    def _parameter_law(self, plan: Plan) -> Any:
        loc = self._own(plan, "loc")
        if "scale_tril" in plan.start:
            root = self._own(plan, "scale_tril", constraint=constraints.scaled_unit_lower_cholesky)
            return dist.MultivariateNormal(loc, scale_tril=root)
        return dist.Normal(loc, self._own(plan, "scale", constraint=constraints.softplus_positive)).to_event(
            1
        )

    def _draw_parameters(self, plan: Plan) -> Array:
        """Their unconstrained values, jointly normal."""
        if not plan.system.num_parameters:
            return jnp.zeros(0)
        infer = {"is_auxiliary": True}
        return numpyro.sample(f"{self.prefix}_parameters", self._parameter_law(plan), infer=infer)

    def _make_parameters(self, plan: Plan, noise: Array) -> tuple[Array, Array]:
        """The same from standard normal numbers, and minus the log-density."""
        if not plan.system.num_parameters:
            return jnp.zeros(0), jnp.zeros(())
        law = self._parameter_law(plan)
        if "scale_tril" in plan.start:
            vector, scale = law.loc + law.scale_tril @ noise, jnp.diagonal(law.scale_tril)
        else:
            vector, scale = law.base_dist.loc + law.base_dist.scale * noise, law.base_dist.scale
        return vector, jnp.sum(0.5 * noise**2 + jnp.log(scale) + 0.5 * np.log(2 * np.pi))

    # ------------------------------------------------------------------------------------- reading the data

    def _features(self, system: PathSystem, args, kwargs, call: ScanCall) -> Array:
        """``(T, systems, inputs)``: what the encoder reads, before it is standardised."""
        if self._data is not None:
            given = jnp.asarray(self._data(*args, **kwargs), float)
            if given.ndim == 2:
                given = given[:, None]
            if given.ndim != 3 or given.shape[:2] != (system.length, system.num_systems):
                raise ValueError(
                    f"`data` of {type(self).__name__} returned shape {given.shape}: it must be (time, features) or (time, "
                    f"series, features), here with {system.length} steps and {system.num_systems} series."
                )
            there = jnp.isfinite(given)
            return jnp.concatenate([jnp.where(there, given, 0.0), there.astype(float)], -1)
        names = system.observed if self._sites is None else tuple(self._sites)
        unknown = [n for n in names if n not in system.observed]
        if unknown or not names:
            raise ValueError(
                f"The encoder of {type(self).__name__} reads observed sites of the scan, which are "
                f"{list(system.observed)}"
                + (f", not {unknown[0]!r}" if unknown else "")
                + ": name them in `sites`, "
                "or give a function of the model's arguments as `data`."
            )
        values, present = system.seen(call, names)
        parts = []
        for name in names:
            value = jnp.log1p(values[name]) if system.facts[name]["discrete"] else values[name]
            there = present[name]
            parts += [jnp.where(there, value, jnp.nan), there.astype(float)]
        return jnp.concatenate(parts, -1)


def _signature(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    leaves, tree = jax.tree.flatten((args, dict(kwargs)))

    def of(leaf):
        if isinstance(leaf, np.ndarray | jax.Array):
            return jnp.shape(leaf), str(jnp.result_type(leaf))
        return leaf if isinstance(leaf, int | float | bool | str | None) else id(leaf)

    return tree, tuple(of(leaf) for leaf in leaves)


def not_of_guide(msg: Mapping[str, Any]) -> bool:
    """What a guide must not show of the model it runs: data, factors, functions of the latent values."""
    return msg["type"] == "deterministic" or (msg["type"] == "sample" and bool(msg["is_observed"]))


class _taken(Messenger):
    """The elements that subsampling plates take."""

    def __init__(self, values: Mapping[str, Array]):
        self.values = values
        super().__init__(None)

    def process_message(self, msg):
        if msg["type"] == "plate" and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class _steered(Messenger):
    """Give a scan another transition function, ``turn(f, carry, (x, each))``.

    With ``terms`` it returns ``(carry, (output, term))``; the terms are kept, and the model gets the outputs.
    """

    def __init__(self, index: int, each: Any, turn: Callable[..., Any], terms: bool = False):
        self.index, self.each, self.turn = index, each, turn
        self.count = 0
        self.sums, self.terms = terms, jnp.zeros(())
        super().__init__(None)

    def process_message(self, msg):
        if not is_scan(msg):
            return
        if self.count == self.index:
            f, init, xs, length, reverse = msg["args"]
            msg["args"] = (partial(self.turn, f), init, (xs, self.each), length, reverse)
            msg["steered"] = True
        self.count += 1

    def postprocess_message(self, msg):
        if is_scan(msg) and msg.get("steered") and self.sums:
            carry, (trace, (output, self.terms)) = msg["value"]
            msg["value"] = carry, (trace, output)


class PathBound(ELBO):
    """The evidence bound of a path guide, in one pass through the model (:meth:`PathGuideBase.bound`).

    Args:
        bound: that method, perhaps with some parameters held.
        num_particles: number of estimates that are averaged.
    """

    def __init__(self, bound: Callable[..., Array], num_particles: int = 1):
        self._bound = bound
        super().__init__(num_particles)

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        def one(key):
            return handlers.substitute(handlers.seed(self._bound, key), data=param_map)(*args, **kwargs)

        bounds = jax.vmap(one)(jax.random.split(rng_key, self.num_particles))
        return {"loss": -jnp.mean(bounds), "mutable_state": None}


def standard(features: np.ndarray, trained: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Location and scale of the features, as they are found or as they were learnt with."""
    flat = features.reshape(-1, features.shape[-1])
    known = np.isfinite(flat).any(0)
    flat = np.where(known, flat, 0.0)
    mean, sd = np.nanmean(flat, 0), np.nanstd(flat, 0)
    return {
        "feature_mean": trained.get(f"{prefix}_feature_mean", jnp.asarray(mean)),
        "feature_log_sd": trained.get(
            f"{prefix}_feature_log_sd", jnp.asarray(np.log(np.where(sd > 1e-6, sd, 1.0)))
        ),
    }


def standardised(guide: PathGuideBase, plan: Plan, features: Array) -> Array:
    mean, log_sd = guide._own(plan, "feature_mean"), guide._own(plan, "feature_log_sd")
    # Filled before, not after: NaN would live on in the gradient of mean and spread.
    return (jnp.where(jnp.isnan(features), mean, features) - mean) * jnp.exp(-log_sd)
