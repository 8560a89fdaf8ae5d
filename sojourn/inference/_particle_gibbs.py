"""Particle Gibbs: conditional sequential Monte Carlo for the path, another kernel for the parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpyro import handlers
from numpyro.infer import NUTS, init_to_value
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, Gibbs, conditioned, with_conditioning
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from sojourn._arguments import is_list, must_be, numbers, whole_number
from sojourn._contract import check_function
from sojourn.inference._gibbs_state import HMC_STATS, GibbsStateWithStats
from sojourn.inference._initial import compiled_once, compiled_start, init_to_hint
from sojourn.inference._interweave import Innovations
from sojourn.inference._parallel_scan import parallel_in_time
from sojourn.inference._particle_filter import explain_weights
from sojourn.inference._read import ScanModel, StateSpace, refuse_deferred
from sojourn.inference._scan import is_prepared, prepared, run_prefix
from sojourn.inference._structure import ScanStructure, analyze, with_plates
from sojourn.ops.particles import PATHS, Sweep, particle_sweep, run_filter
from sojourn.ops.resampling import SCHEMES

__all__ = ["ConditionalSMC", "ParticleGibbs"]


class ConditionalSMCState(NamedTuple):
    """State of :class:`ConditionalSMC`."""

    z: dict[str, Array]
    """The path and the initial sites."""
    log_evidence: Array
    """Estimate of the log-likelihood given the other sites (one for each independent system)."""
    particle_ess: Array
    """``(T, *systems)``: effective sample size of the weights after each step."""
    path_update: Array
    """``(T, *systems)``: whether the path took a new value there."""
    rng_key: Array


class ConditionalSMC(MCMCKernel):
    """Conditional sequential Monte Carlo: a new path given the old one, as a block of ``numpyro.infer.Gibbs``.

    It owns latent sites inside one ``scan``, and those before it that feed only the initial state; every other
    site must belong to another block. The other sites may be parameters, discrete sites, even some of those in
    the scan. :class:`ParticleGibbs` is this block and NUTS.

    Args:
        model: a NumPyro model with a ``scan``.
        num_particles: at least 2; 100 serves series of some hundred steps.
        path: how a path is picked from the particles.

            * ``"ancestor"``: ancestor sampling (Lindsten, Jordan and Schön 2014, *JMLR* 15:2145): at each step the
              old path is given a new past. Every stretch of the path moves, also with few particles.
            * ``"backward"``: backward sampling (Whiteley 2010): slightly better mixing for half as much time
              again; needs a carry that is a function of its own step's latent values.
            * ``"genealogy"``: the particles' own past. For long series the early path then never moves, and
              parameters stick where they are.
            * ``"auto"``: ``"ancestor"``; where the carry remembers its whole past given the latent values,
              ``"genealogy"`` with a warning and with ``ess_threshold=0.5``.
        resampling: ``"systematic"``, ``"multinomial"`` or ``"killing"``.
        ess_threshold: resample only when the effective sample size is below this share of the particles. With
            ancestor or backward sampling it does harm.
        memory: number of steps after which the carry forgets its past given the latent values, where the model
            hides it (several lags stacked in one array, say). Found by itself otherwise.
        guide: ``guide(carry, x, parameters)``, a NumPyro function that samples latent sites of the step under
            their own names: the proposal in place of the model's transition. Sites it leaves out come from the
            model.
        initial_guide: ``initial_guide(parameters)``, likewise for the sites before the scan.
        twist: ``twist(carry, x, parameters)``: log-weight by which a particle is favoured when it is resampled
            before the step with input ``x`` (auxiliary particle filter; Pitt and Shephard 1999).
        plates: independent plates around everything in the scan have particles of their own.
        scan: which scan: its number or the name of a site in it.

    Example:
        Two blocks of one's own: a path, and NUTS for the rest.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> from numpyro.infer import MCMC, NUTS, Gibbs
        >>> from sojourn.inference import ConditionalSMC
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> kernel = Gibbs([(ConditionalSMC(walk, num_particles=20), ["x"]), (NUTS(walk), None)])
        >>> mcmc = MCMC(kernel, num_warmup=20, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array([0.1, 0.3, -0.2]))
        >>> mcmc.get_samples()["x"].shape
        (20, 3)
    """

    sample_field = "z"

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int = 100,
        *,
        path: str = "auto",
        resampling: str = "systematic",
        ess_threshold: float | None = None,
        memory: int | None = None,
        guide: Callable[..., Any] | None = None,
        initial_guide: Callable[..., Any] | None = None,
        twist: Callable[..., Any] | None = None,
        plates: bool = True,
        scan: str | int | None = None,
    ):
        check_function(model)
        check_num_particles(num_particles)
        if memory is not None:
            memory = whole_number(memory, "memory")
        if path not in ("auto", *PATHS):
            raise ValueError(f"`path` must be 'auto', {', '.join(map(repr, PATHS))}, not {path!r}.")
        check_resampling(resampling, ess_threshold)
        self._model = model
        self._is_prepared = is_prepared(model)
        self.num_particles = int(num_particles)
        self._path, self._resampling, self._ess_threshold = path, resampling, ess_threshold
        self._memory, self._plates, self._scan = memory, plates, scan
        self._proposal = {"guide": guide, "initial_guide": initial_guide, "twist": twist}
        self._base: ScanStructure | None = None
        self._structure: ScanStructure | None = None
        self._options: dict[str, Any] = {}

    @property
    def model(self) -> Callable[..., Any]:
        return self._model

    @property
    def _run_model(self) -> Callable[..., Any]:
        # Blocks of one composite must share the user's own model, which this one then prepares for itself.
        return self._model if self._is_prepared else prepared(self._model)

    @property
    def structure(self) -> ScanStructure:
        """What was found in the model; known once the kernel is initialised."""
        if self._structure is None:
            raise ValueError("The model has not been read yet: run the kernel first.")
        return self._structure

    def read(self, model_args: tuple[Any, ...], model_kwargs: Mapping[str, Any] | None) -> ScanStructure:
        """Read the model, and settle how its path is moved. Work is done once for one form of the arguments."""
        model, kwargs = self._run_model, dict(model_kwargs or {})
        base = analyze(model, model_args, kwargs, scan=self._scan, plates=False)
        if base == self._base and self._structure is not None:
            return self._structure
        refuse_deferred(base)
        if base.global_sites:
            names = ", ".join(f"'{n}'" for n in base.global_sites)
            raise ValueError(
                f"ConditionalSMC moves sites in the scan and those that feed its first carry alone; {names} must "
                "belong to another block."
            )
        structure = with_plates(base, model, model_args, kwargs) if self._plates else base
        self._options = self._settle(structure)
        self._base, self._structure = base, structure
        return structure

    def _settle(self, structure: ScanStructure) -> dict[str, Any]:
        memory = structure.memory if self._memory is None else self._memory
        path, threshold = self._path, self._ess_threshold
        where = ", ".join(structure.blocking)
        if path == "auto":
            path = "ancestor"
            if np.isinf(memory):
                path = "genealogy"
                threshold = 0.5 if threshold is None else threshold
                warnings.warn(
                    f"The carry ({where}) depends on its whole past, so the path cannot be given a new one (ancestor "
                    "sampling): falling back to the particles' own genealogy, under which the early path of a long "
                    "series hardly moves. If the state itself is a sample site it can; `memory=` says how many steps "
                    "matter.",
                    UserWarning,
                    stacklevel=2,
                )
        elif path == "ancestor" and np.isinf(memory):
            raise ValueError(
                f"Ancestor sampling needs a carry that forgets its past given the latent values; {where} never does. "
                "Make the state itself a sample site, give `memory=`, or take path='genealogy'."
            )
        elif path == "backward" and memory != 1:
            raise ValueError(
                "Backward sampling needs a carry that is a function of its own step's latent values; "
                + (f"{where} remembers more." if where else f"this one remembers {memory:.0f} steps.")
            )
        return {
            "path": path,
            "ess_threshold": threshold,
            "memory": int(memory) if np.isfinite(memory) else 1,
            "resampling": self._resampling,
        }

    def _space(self, model_args: tuple[Any, ...], model_kwargs: Mapping[str, Any] | None) -> StateSpace:
        kwargs = dict(model_kwargs or {})
        read = ScanModel(self._run_model, model_args, kwargs, self.structure)
        # The other sites are conditioned upon; guides are told their values.
        return read.at(kwargs.get(GIBBS_SITES_KWARG, {}))

    def _state(self, sweep: Sweep, old: Mapping[str, Array] | None, key: Array) -> ConditionalSMCState:
        z = {**sweep.path, **sweep.start}
        changed = jnp.zeros_like(sweep.ess, bool)
        axes = self.structure.value_axes
        for name, values in sweep.path.items():
            if old is None:
                break
            kept = tuple(a + 1 for a in axes[name]) if axes else ()
            moved = jnp.moveaxis(values != old[name], kept, range(1, len(kept) + 1))
            changed = changed | moved.any(tuple(range(changed.ndim, moved.ndim)))
        return ConditionalSMCState(z, sweep.log_evidence, sweep.ess, changed, key)

    def adopt(self, structure: ScanStructure) -> None:
        """Take what was read of the whole model, its parameters being another block's."""
        self._structure = replace(structure, global_sites=())
        self._options = self._settle(self._structure)

    def begin(
        self, key: Array, model_args: Any, model_kwargs: Mapping[str, Any] | None
    ) -> ConditionalSMCState:
        """A first path, from a particle filter."""
        process = self._space(model_args, model_kwargs).process(**self._proposal)
        key, key_sweep = random.split(key)
        sweep = run_filter(process, key_sweep, self.num_particles, resampling=self._resampling)
        return self._state(sweep, None, key)

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        self.read(model_args, model_kwargs)
        kwargs = dict(model_kwargs or {})
        others = kwargs.pop(GIBBS_SITES_KWARG, {})
        run = jax.jit(lambda key, others: self.begin(key, model_args, with_conditioning(kwargs, others)))
        with compiled_once():
            return run(rng_key, others)

    def sample(self, state, model_args, model_kwargs):
        key, key_sweep = random.split(state.rng_key)
        process = self._space(model_args, model_kwargs).process(**self._proposal)
        structure = self.structure
        old = (
            {n: state.z[n] for n in structure.initial_sites},
            {n: state.z[n] for n in structure.path_sites},
        )
        sweep = particle_sweep(process, key_sweep, self.num_particles, old, **self._options)
        return self._state(sweep, state.z, key)

    def refresh(self, state, model_args, model_kwargs):
        return state

    def wrap_model(self, wrapper):
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        return kernel

    def get_constrain_fn(self, model_args, model_kwargs):
        return lambda z: z

    def get_diagnostics_str(self, state):
        share = np.mean(state.particle_ess) / self.num_particles
        return f"path update {np.mean(state.path_update):.2f}, particle ESS {share:.2f}"


def check_num_particles(num_particles: Any) -> None:
    whole = isinstance(num_particles, int | np.integer) and not isinstance(num_particles, bool)
    if not whole or num_particles < 2:
        raise ValueError(f"`num_particles` must be a whole number of at least 2, not {num_particles!r}.")


def check_resampling(resampling: Any, ess_threshold: Any) -> None:
    if resampling not in SCHEMES:
        raise ValueError(f"`resampling` must be {', '.join(map(repr, SCHEMES))}, not {resampling!r}.")
    if ess_threshold is not None and not 0.0 < numbers(ess_threshold, "ess_threshold") <= 1.0:
        raise ValueError(f"`ess_threshold` is a share of the particles, in (0, 1], not {ess_threshold!r}.")


class _State(GibbsStateWithStats):
    """State of :class:`ParticleGibbs`: fields of its blocks under their own names."""

    __slots__ = ()

    @property
    def log_evidence(self) -> Array:
        return self.block_states[0].log_evidence

    @property
    def particle_ess(self) -> Array:
        return self.block_states[0].particle_ess

    @property
    def path_update(self) -> Array:
        return self.block_states[0].path_update


class ParticleGibbs(Gibbs):
    """Particle Gibbs sampler for any NumPyro model with a ``scan``.

    Alternates a conditional particle filter for everything latent in the scan (:class:`ConditionalSMC`; Andrieu,
    Doucet and Holenstein 2010, with ancestor sampling) with another kernel, NUTS unless told otherwise, for the
    parameters given the path. What is what is read off the model: nothing is declared. Latents may be continuous,
    discrete or both; plates around everything in the scan get independent particles; NaN observations are missing.

    ``sample_stats`` of a fit holds ``path_update`` (whether the path moved, by time; its mean over draws is the
    update rate, which should be well above 0.2 everywhere), ``particle_ess`` by time, ``log_evidence`` (an estimate
    of the log-likelihood given the parameters), and the inner kernel's own.

    Args:
        model: a NumPyro model with a ``scan``.
        num_particles: at least 2.
        inner_kernel: kernel for the parameters: a class or function ``model -> MCMCKernel``, such as
            ``partial(NUTS, target_accept_prob=0.9)``. Must be usable as a block of ``numpyro.infer.Gibbs``.
        interweave: give the parameters a second update at each turn, given the innovations of the path instead
            of the path (Yu and Meng 2011, *JCGS* 20:531), by a second inner kernel. Scales of a path that the data
            say little about, which the path else pins down, then move several times as fast. ``"auto"`` does so for
            every site of a location-scale law (normal, Student, Laplace, ...) if the inner kernel is NUTS or HMC;
            names of sites, or ``False``, otherwise.
        parallel_in_time: evaluate the scan at all times at once while the path stays put, where each carry is a
            function of its own step's latent values.
        **options: as for :class:`ConditionalSMC`.

    Raises:
        ValueError: no scan, no latent site in it, fewer than two particles, all particles of weight zero.
        NotImplementedError: sites after the scan whose law depends on the path.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> fit = sj.fit(walk, jnp.array([0.1, 0.3, -0.2, 0.9]), engine="particle_gibbs", num_warmup=50,
        ...              num_samples=50, num_chains=2, progress_bar=False)
        >>> fit.posterior["x"].dims
        ('chain', 'draw', 'time')
    """

    _state_cls = _State

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int = 100,
        inner_kernel: Callable[..., MCMCKernel] | None = None,
        *,
        interweave: str | bool | Sequence[str] = "auto",
        parallel_in_time: bool = True,
        **options: Any,
    ):
        model = prepared(model)
        if inner_kernel is None:
            inner_kernel = partial(NUTS, init_strategy=init_to_hint())
            inner = inner_kernel(model)
        elif isinstance(inner_kernel, MCMCKernel):
            raise ValueError(
                "`inner_kernel` is a class or function that takes the model, such as partial(NUTS, "
                "target_accept_prob=0.9), not a kernel already built."
            )
        else:
            must_be(
                callable(inner_kernel),
                "inner_kernel",
                "a class or function that takes the model",
                inner_kernel,
            )
            inner = inner_kernel(model)
        told = isinstance(interweave, str | bool) or (
            is_list(interweave) and all(isinstance(n, str) for n in interweave)
        )
        must_be(told, "interweave", "'auto', True, False or names of sites", interweave)
        self._parallel, self._interweave, self._inner_kernel = parallel_in_time, interweave, inner_kernel
        self._innovations: Innovations | None = None
        self._second: Any = None
        super().__init__([(ConditionalSMC(model, num_particles, **options), self._own_sites), (inner, None)])
        self._conditioned = self._kernels
        self.stat_dims: dict[str, list[str]] = {}

    def _own_sites(self, trace: Mapping[str, Any]) -> list[str]:
        return [*self._whole.path_sites, *self._whole.initial_sites]

    @property
    def structure(self) -> ScanStructure:
        """What was found in the model; known once the kernel is initialised."""
        return self._kernels[0].structure

    @property
    def stat_fields(self) -> tuple[str, ...]:
        fields = ("log_evidence", "particle_ess", "path_update")
        return (*fields, *HMC_STATS) if isinstance(self._kernels[-1], HMC) else fields

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        kwargs = dict(model_kwargs or {})
        block, inner = self._conditioned
        self._whole = analyze(self._model, model_args, kwargs, scan=block._scan, plates=block._plates)
        refuse_deferred(self._whole)
        self._refuse(self._whole)
        block.adopt(self._whole)
        plates = [p.name for p in self._whole.plates]
        self.stat_dims = {
            "log_evidence": plates,
            "particle_ess": ["time", *plates],
            "path_update": ["time", *plates],
        }
        if not self._whole.global_sites:
            self._kernels, self._specs = (block,), (self._own_sites,)
        else:
            if self._parallel and self._whole.parallel:
                inner = inner.wrap_model(lambda model: parallel_in_time(model, self._whole.index))
            self._kernels, self._specs = (block, inner), (self._own_sites, None)
        self._set_up_interweaving(inner)
        single = is_prng_key(rng_key)
        values, paths = self._first_paths(rng_key[None] if single else rng_key, model_args, kwargs)

        def start(key, values, path):
            with compiled_start():
                return self._init_chain(key, num_warmup, values, path, init_params, model_args, kwargs)

        if single:
            return start(rng_key, *jax.tree.map(lambda v: v[0], (values, paths)))
        return jax.vmap(start)(rng_key, values, paths)

    def _first_paths(self, keys, model_args, kwargs):
        """Parameters at which the chains start, and a path for each, from a particle filter."""
        names, block = self._whole.global_sites, self._conditioned[0]

        def one(key):
            key_values, key_path = random.split(key)
            model = handlers.substitute(handlers.seed(self._model, key_values), substitute_fn=init_to_hint())
            _, trace = run_prefix(model, model_args, kwargs, index=self._whole.index, key=key_values)
            if not set(names) <= set(trace):  # parameters that come after the scan
                trace = handlers.trace(model).get_trace(*model_args, **kwargs)
            values = {n: trace[n]["value"] for n in names}
            return values, block.begin(key_path, model_args, with_conditioning(kwargs, values))

        run = jax.jit(jax.vmap(one))
        with compiled_once():
            values, paths = run(keys)
        for attempt in range(5):
            if isinstance(paths.log_evidence, jax.core.Tracer):
                return values, paths
            evidence = np.asarray(paths.log_evidence).reshape(len(keys), -1)
            hopeless = ~np.isfinite(evidence).all(1)
            if not hopeless.any():
                return values, paths
            # Some draw of the parameters makes the data impossible: another may not.
            again = run(jax.vmap(random.fold_in, (0, None))(keys, attempt))
            values, paths = jax.tree.map(
                lambda old, new, bad=hopeless: (
                    jnp.where(bad.reshape((-1, *(1,) * (old.ndim - 1))), new, old)
                    if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
                    else old
                ),
                (values, paths),
                again,
            )
        read = ScanModel(self._model, model_args, kwargs, self._whole)
        bad = int(np.flatnonzero(hopeless)[0])
        given = jax.tree.map(lambda v: v[bad], values)
        said = explain_weights(read, given, random.key(0), block.num_particles)
        raise ValueError(said or "The particles lose all their weight at every start that was tried.")

    def _refuse(self, whole: ScanStructure) -> None:
        if whole.subsampled:
            names = ", ".join(f"'{n}'" for n in whole.subsampled)
            raise ValueError(
                f"ParticleGibbs needs all of the data at every step; plate {names} takes a subsample."
            )
        if whole.discrete and isinstance(self._conditioned[-1], HMC):
            names = ", ".join(f"'{n}'" for n in whole.discrete)
            raise ValueError(
                f"Site {names} is discrete and lies outside the scan, where NUTS cannot move it: build "
                "numpyro.infer.Gibbs([(ConditionalSMC(model), path sites), (DiscreteGibbs(model), it), (NUTS(model), "
                "None)])."
            )

    def _init_chain(self, key, num_warmup, values, path, params, model_args, kwargs):
        """As ``Gibbs.init``, without its own run of the model: the partition is known."""
        rest = self._kernels[1:]
        self._sites = (tuple(self._own_sites({})), *(tuple(self._whole.global_sites) for _ in rest))
        self._has_deterministic = self._whole.has_deterministic
        key, key_rest = random.split(key)
        states = [path]
        for inner in rest:
            given = with_conditioning(kwargs, path.z)
            states.append(_init_at(inner, key_rest, num_warmup, values, params, model_args, given))
        if self._innovations is not None:
            given = with_conditioning(kwargs, self._to_innovations(values, path.z, model_args, kwargs))
            key_rest = random.fold_in(key_rest, 1)
            states.append(_init_at(self._second, key_rest, num_warmup, values, params, model_args, given))
        self._sample_fn = self._sample_one
        return self._state_cls(self._merge_z(states), tuple(states), key)

    def _set_up_interweaving(self, inner: MCMCKernel) -> None:
        able, wanted = self._whole.location_scale, self._interweave
        if wanted == "auto":
            wanted = tuple(able) if isinstance(inner, HMC) else ()
        elif isinstance(wanted, bool):
            wanted = tuple(able) if wanted else ()
        unable = [n for n in wanted if n not in able]
        if unable:
            raise ValueError(
                f"Site '{unable[0]}' cannot be interweaved: it is no latent site of the path of a "
                "location-scale law."
            )
        self._innovations = self._second = None
        if not wanted or not self._whole.global_sites:
            return
        if not isinstance(inner, HMC):
            raise ValueError("`interweave` needs an inner kernel of the HMC family.")
        self._innovations = Innovations(self._model, {n: able[n] for n in wanted})
        self._second = self._inner_kernel(self._innovations.model).wrap_model(conditioned)

    def _to_innovations(self, parameters, path, model_args, kwargs):
        """What the second kernel holds fixed: innovations, and the sites of the path that have none."""
        rest = {n: v for n, v in path.items() if n not in self._innovations.sites}
        return {**rest, **self._innovations.of({**parameters, **path}, model_args, kwargs)}

    @property
    def num_particles(self) -> int:
        return self._conditioned[0].num_particles

    def sample(self, state, model_args, model_kwargs):
        def chain(state):
            return self._sample_chain(state, model_args, dict(model_kwargs or {}))

        return chain(state) if is_prng_key(state.rng_key) else jax.vmap(chain)(state)

    def _sample_chain(self, state, model_args, kwargs):
        # NumPyro's Gibbs never reads its own key once its blocks have theirs, so that two continuations of one state
        # under different keys would be the same: here the blocks' keys come from it at every step.
        keys = random.split(state.rng_key, len(state.block_states) + 1)
        blocks = tuple(b._replace(rng_key=k) for b, k in zip(state.block_states, keys[1:], strict=True))
        state = super().sample(state._replace(block_states=blocks, rng_key=keys[0]), model_args, kwargs)
        state = state._replace(rng_key=keys[0])
        return (
            state if self._innovations is None else self._sample_given_innovations(state, model_args, kwargs)
        )

    def _sample_given_innovations(self, state, model_args, kwargs):
        block, first, second = state.block_states
        inner = self._kernels[1]
        parameters = inner.get_constrain_fn(model_args, with_conditioning(kwargs, block.z))(first.z)
        fixed = self._to_innovations(parameters, block.z, model_args, kwargs)
        given = with_conditioning(kwargs, fixed)
        second = self._second.refresh(second._replace(z=first.z), model_args, given)
        second = self._second.sample(second, model_args, given)
        parameters = self._second.get_constrain_fn(model_args, given)(second.z)
        parameters = {n: parameters[n] for n in self._whole.global_sites}
        path = {**block.z, **self._innovations.values({**parameters, **fixed}, model_args, kwargs)}
        first = inner.refresh(first._replace(z=second.z), model_args, with_conditioning(kwargs, path))
        blocks = (block._replace(z=path), first, second)
        return state._replace(z=self._merge_z(blocks), block_states=blocks)


def _init_at(kernel, key, num_warmup, values, params, model_args, model_kwargs):
    """Initialise a kernel of parameters at ``values``, unless the user gave ``params``."""
    if params is not None:
        return kernel.init(key, num_warmup, params, model_args, model_kwargs)
    if not isinstance(kernel, HMC):
        return kernel.init(key, num_warmup, values, model_args, model_kwargs)
    # As a strategy, not as parameters: HMC would evaluate the density anew at these, operation by operation.
    strategy, kernel._init_strategy = kernel._init_strategy, init_to_value(values=values)
    try:
        return kernel.init(key, num_warmup, None, model_args, model_kwargs)
    finally:
        kernel._init_strategy = strategy
