"""Particle marginal Metropolis-Hastings: random walks on the parameters, the path integrated out by particles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp, ndtr
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.mcmc import MCMCKernel
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from sojourn._arguments import numbers, positive_numbers
from sojourn._contract import trace_model
from sojourn.inference._initial import init_to_hint
from sojourn.inference._particle_filter import check_options, explain_weights
from sojourn.inference._read import ScanModel, StateSpace, refuse_deferred
from sojourn.inference._scan import is_latent, prepared, run_prefix, run_step, site_term
from sojourn.inference._structure import ScanStructure, analyze
from sojourn.ops.particles import run_filter
from sojourn.ops.resampling import _inverse_cdf, draw

__all__ = ["ParticleMarginal", "ParticleMarginalState"]

TRIES = 8
"""Starting points looked at before one of zero likelihood is given up."""


class ParticleMarginalState(NamedTuple):
    """State of :class:`ParticleMarginal`."""

    z: dict[str, Array]
    """Parameters, unconstrained; the path and the initial sites as they are."""
    log_joint: Array
    """Log-prior on the unconstrained scale plus ``log_evidence``."""
    log_evidence: Array
    """Estimate of the log-likelihood of the parameters."""
    accept_prob: Array
    """Of the last proposal."""
    accepted: Array
    """Whether it was accepted."""
    mean_accept_prob: Array
    """Since the start, or since the end of warm-up."""
    noise: Any
    """The normals behind the estimate, where proposals are correlated; otherwise empty."""
    i: Array
    """Iterations so far."""
    scale: Array
    """Cholesky factor of the proposal's covariance."""
    rng_key: Array


class ParticleMarginal(MCMCKernel):
    """Particle marginal Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010, *JRSS B* 72:269).

    A random walk proposes parameters, a particle filter estimates their likelihood without bias, and the usual
    ratio decides: the draws of the parameters, and of a path from the particles, have the exact posterior law
    with any number of particles. It needs no gradient and is not slowed by what the path and the parameters know
    of each other; it gets stuck on an estimate that came out too high, so choose ``num_particles`` for a
    standard deviation of the log-likelihood between 1 and 2 (a few times the length of the series, often). For
    some ten parameters and more, :class:`ParticleGibbs`.

    During warm-up the covariance of the walk adapts towards ``target_accept_prob`` (robust adaptive Metropolis;
    Vihola 2012, *Statistics and Computing* 22:997); afterwards it is fixed.

    Args:
        model: a NumPyro model with a ``scan``. All sites but those of the scan and of its initial state are its
            parameters; they must be continuous.
        num_particles: at least 2.
        correlation: of the random numbers of the filter from one iteration to the next, below 1; 0.99, say. The
            difference of two estimates then has far less noise than each, so far fewer particles will do
            (correlated pseudo-marginal method; Deligiannidis, Doucet and Pitt 2018, *JRSS B* 80:839). The filter
            becomes a function of normals: sites are drawn through their quantile functions, particles are sorted
            (along a Hilbert curve if the state has several dimensions) and resampled systematically at every
            step. Exact for any correlation; it helps most where the state has one dimension and is continuous.
            Normal, multivariate normal and other laws that NumPyro has a quantile function (``icdf``) for, their
            transformations, and laws with finitely many values; series in a plate share one set of particles.
        resampling: ``"systematic"``, ``"multinomial"`` or ``"killing"``.
        ess_threshold: resample when the effective sample size is below this share of ``num_particles``;
            ``None`` resamples at every step.
        target_accept_prob: 0.2 suits estimates with a standard deviation around 1.
        step_size: standard deviation of the first proposals on the unconstrained scale.
        guide, initial_guide, twist: proposals and look-ahead weights, as for
            :func:`~sojourn.inference.particle_filter`; no twist with a correlation.
        scan: which scan, if several have latent sites: its number, or the name of a site in it.
        init_strategy: where chains start, in NumPyro's sense.

    Raises:
        ValueError: at ``init``: no scan; a discrete parameter; a subsample; no starting point with a positive
            likelihood (step and site are named); under ``correlation`` a site without a quantile function.

    Example:
        >>> from functools import partial
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> fit = sj.fit(walk, jnp.array([0.1, 0.9, 1.4]), engine=partial(ParticleMarginal, num_particles=20),
        ...              num_chains=2, num_warmup=50, num_samples=50, progress_bar=False)
        >>> fit.posterior["x"].dims, "log_evidence" in fit.sample_stats
        (('chain', 'draw', 'time'), True)
    """

    sample_field = "z"
    stat_fields = ("log_evidence", "accept_prob", "accepted")

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int = 200,
        *,
        correlation: float | None = None,
        resampling: str = "systematic",
        ess_threshold: float | None = 0.5,
        target_accept_prob: float = 0.2,
        step_size: float = 0.2,
        guide: Callable[..., Any] | None = None,
        initial_guide: Callable[..., Any] | None = None,
        twist: Callable[..., Any] | None = None,
        scan: str | int | None = None,
        init_strategy: Callable[..., Any] | None = None,
    ):
        check_options(num_particles, resampling, ess_threshold)
        if correlation is not None and not 0.0 <= numbers(correlation, "correlation") < 1.0:
            raise ValueError(f"`correlation` must lie in [0, 1), not {correlation!r}.")
        if correlation is not None and twist is not None:
            raise ValueError("A twist cannot be combined with `correlation`.")
        if not 0.0 < numbers(target_accept_prob, "target_accept_prob") < 1.0:
            raise ValueError(f"`target_accept_prob` must lie between 0 and 1, not {target_accept_prob!r}.")
        self._model = prepared(model)
        self._num_particles = num_particles
        self._correlation = correlation
        self._filter_options = {"resampling": resampling, "ess_threshold": ess_threshold}
        self._target_accept_prob = target_accept_prob
        self._step_size = positive_numbers(step_size, "step_size")
        self._guides: dict[str, Any] = {"guide": guide, "initial_guide": initial_guide, "twist": twist}
        self._scan = scan
        self._init_strategy = init_to_hint() if init_strategy is None else init_strategy
        self._sample_fn: Callable[..., Any] | None = None
        self._postprocess_fn = None
        self._num_warmup = 0
        self._structure: ScanStructure
        self._transforms: dict[str, Any]
        self._shapes: dict[str, tuple[int, ...]]
        self._after: tuple[str, ...]

    @property
    def model(self) -> Callable[..., Any]:
        return getattr(self._model, "__wrapped__", self._model)

    # ------------------------------------------------------------------------------------------- set up
    def init(self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None):
        kwargs = dict(model_kwargs or {})
        self._num_warmup = num_warmup
        self._read_model(model_args, kwargs)

        def start(key, given):
            return self._start(key, given, model_args, kwargs)

        batched = not is_prng_key(rng_key)
        state = jax.jit(jax.vmap(start, (0, 0 if init_params else None)) if batched else start)(
            rng_key, init_params
        )
        sound = jnp.isfinite(state.log_joint)
        if not isinstance(sound, jax.core.Tracer) and not bool(sound.all()):
            bad = int(jnp.argmin(jnp.atleast_1d(sound)))
            z = {n: v[bad] if batched else v for n, v in state.z.items()}
            parameters = {n: t(z[n]) for n, t in self._transforms.items()}
            reason = explain_weights(
                self._read(model_args, kwargs), parameters, random.key(0), self._num_particles, **self._guides
            )
            raise ValueError(
                f"None of {TRIES} starting points has a positive likelihood; at one of them: "
                f"{reason or 'the prior or the likelihood is not finite.'}"
            )

        def sample(state, args, kwargs):
            return self._next(state, args, dict(kwargs or {}))

        self._sample_fn = jax.vmap(sample, (0, None, None)) if batched else sample
        return state

    def sample(self, state, model_args, model_kwargs):
        assert self._sample_fn is not None, "`init` must be called before `sample`."
        return self._sample_fn(state, model_args, model_kwargs)

    def _read_model(self, args, kwargs):
        structure = analyze(self._model, args, kwargs, scan=self._scan, plates=self._correlation is None)
        refuse_deferred(structure)
        laws = self._laws(structure, args, kwargs)
        for name in structure.global_sites:
            if laws[name].support.is_discrete:
                raise ValueError(
                    f"Parameter '{name}' is discrete, and ParticleMarginal moves its parameters by a random walk: "
                    "sum it out, or give it a block of its own beside ParticleGibbs."
                )
        self._structure = structure
        self._transforms = {n: dist.biject_to(laws[n].support) for n in structure.global_sites}

    def _laws(self, structure, args, kwargs) -> dict[str, Any]:
        """Laws of the parameters; shapes and order of the sites on the way. Nothing is computed if possible."""
        laws: dict[str, Any] = {}
        mine = {*structure.path_sites, *structure.observed_sites}
        states = (*structure.path_sites, *structure.initial_sites)

        def look(key):
            trace = trace_model(self._model, args, kwargs, key=key)
            for name, site in trace.items():
                if (
                    site["type"] == "plate"
                    and site["args"][1] is not None
                    and site["args"][1] < site["args"][0]
                ):
                    raise ValueError(
                        f"Plate '{name}' takes a subsample of the data, which a Metropolis step cannot work with."
                    )
            order = [n for n, s in trace.items() if s["type"] == "sample"]
            first = min(order.index(n) for n in mine if n in order)
            self._after = tuple(n for n in order[first:] if n not in mine)
            self._shapes = {n: np.shape(trace[n]["value"]) for n in states}
            if self._correlation is not None:
                for name in states:
                    _quantile(trace[name]["fn"], jnp.zeros(self._shapes[name]), name)
            laws.update({n: trace[n]["fn"] for n in structure.global_sites})

        def leaves():
            return [x for n in structure.global_sites for x in jax.tree.leaves(laws[n].support)]

        jax.eval_shape(look, random.key(0))
        if any(isinstance(x, jax.core.Tracer) for x in leaves()):
            # Bounds worked out from the data, or from other parameters: see whether two draws share them.
            bounds = []
            for k in range(2):
                look(random.key(k))
                bounds.append({n: jax.tree.leaves(laws[n].support) for n in laws})
            for name in laws:
                if not all(np.array_equal(a, b) for a, b in zip(*(b[name] for b in bounds), strict=True)):
                    raise ValueError(
                        f"The support of '{name}' depends on another parameter: sample it on a fixed support and "
                        "scale it."
                    )
        return laws

    def _read(self, args, kwargs) -> ScanModel:
        return ScanModel(self._model, args, kwargs, self._structure)

    def _start(self, key, given, args, kwargs):
        key, key_try = random.split(key)

        def attempt(running):
            count, key, *_ = running
            key, key_point, key_filter, key_noise = random.split(key, 4)
            model = handlers.substitute(
                handlers.seed(self._model, key_point), substitute_fn=self._init_strategy
            )
            trace = handlers.trace(model).get_trace(*args, **kwargs)
            u = {n: jnp.asarray(t.inv(trace[n]["value"])) for n, t in self._transforms.items()}
            if given:
                u = {n: jnp.asarray(given[n]) for n in u}
            noise = self._draw_noise(key_noise)
            log_joint, log_evidence, path = self._evaluate(u, key_filter, noise, args, kwargs)
            return count + 1, key, {**u, **path}, log_joint, log_evidence, noise

        shapes = jax.eval_shape(attempt, (jnp.array(0), key_try))
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[2:])
        first = (jnp.array(0), key_try, empty[0], jnp.full_like(empty[1], -jnp.inf), *empty[2:])
        _, _, z, log_joint, log_evidence, noise = lax.while_loop(
            lambda running: (running[0] < TRIES) & ~jnp.isfinite(running[3]), attempt, first
        )
        size = sum(v.size for n, v in z.items() if n in self._transforms)
        zero = jnp.zeros_like(log_joint)
        return ParticleMarginalState(
            z=z,
            log_joint=log_joint,
            log_evidence=log_evidence,
            accept_prob=zero,
            accepted=jnp.array(False),
            mean_accept_prob=zero,
            noise=noise,
            i=jnp.array(0),
            scale=self._step_size * jnp.eye(size),
            rng_key=key,
        )

    # ----------------------------------------------------------------------------------------- one step
    def _next(self, state: ParticleMarginalState, args, kwargs) -> ParticleMarginalState:
        key, key_walk, key_noise, key_filter, key_accept = random.split(state.rng_key, 5)
        flat, unravel = ravel_pytree({n: state.z[n] for n in self._transforms})
        push = random.normal(key_walk, flat.shape, flat.dtype)
        u = unravel(flat + state.scale @ push)
        noise = self._draw_noise(key_noise)
        if self._correlation is not None:
            rho = self._correlation
            noise = jax.tree.map(lambda a, b: rho * a + (1 - rho**2) ** 0.5 * b, state.noise, noise)
        log_joint, log_evidence, path = self._evaluate(u, key_filter, noise, args, kwargs)
        prob = jnp.exp(jnp.minimum(log_joint - state.log_joint, 0.0))
        prob = jnp.where(jnp.isnan(prob), 0.0, prob)
        accepted = random.uniform(key_accept) < prob
        warm = state.i < self._num_warmup
        count = jnp.where(warm, state.i, state.i - self._num_warmup) + 1.0
        before = jnp.where(count == 1.0, 0.0, state.mean_accept_prob)
        proposed = ({**u, **path}, log_joint, log_evidence, noise)
        current = (state.z, state.log_joint, state.log_evidence, state.noise)
        z, log_joint, log_evidence, noise = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), proposed, current
        )
        return ParticleMarginalState(
            z=z,
            log_joint=log_joint,
            log_evidence=log_evidence,
            accept_prob=prob,
            accepted=accepted,
            mean_accept_prob=before + (prob - before) / count,
            noise=noise,
            i=state.i + 1,
            scale=jnp.where(warm, self._adapt(state, push, prob), state.scale),
            rng_key=key,
        )

    def _adapt(self, state, push, prob):
        """Robust adaptive Metropolis: longer in the direction of a good proposal, shorter in that of a bad one."""
        size = push.shape[0]
        if size == 0:
            return state.scale
        rate = jnp.minimum(1.0, size * (state.i + 1.0) ** -0.6)
        stretch = rate * (prob - self._target_accept_prob) / jnp.sum(push**2)
        middle = jnp.eye(size) + stretch * jnp.outer(push, push)
        return jnp.linalg.cholesky(state.scale @ middle @ state.scale.T)

    def _evaluate(self, u, key, noise, args, kwargs):
        """Log-density of the parameters and their data, the likelihood in it, and a path."""
        parameters = {n: t(u[n]) for n, t in self._transforms.items()}
        space = self._read(args, kwargs).at(parameters)
        log_prior = space.log_prior
        for n, t in self._transforms.items():
            log_prior = log_prior + jnp.sum(t.log_abs_det_jacobian(u[n], parameters[n]))
        if self._after:
            trace = trace_model(self._model, args, kwargs, key=random.key(0), values=parameters)
            log_prior = log_prior + sum(site_term(trace[n]) for n in self._after)
        if self._correlation is None:
            sweep = run_filter(
                space.process(**self._guides), key, self._num_particles, **self._filter_options
            )
            log_evidence, path = sweep.log_evidence.sum(), {**sweep.start, **sweep.path}
        else:
            log_evidence, path = _filter_of_normals(space, self._guides, key, noise)
        log_evidence = jnp.where(jnp.isnan(log_evidence), -jnp.inf, log_evidence)
        return log_prior + log_evidence, log_evidence, path

    def _draw_noise(self, key) -> Any:
        if self._correlation is None:
            return ()
        structure, n = self._structure, self._num_particles

        def size(names):
            return sum(int(np.prod(self._shapes[k])) // self._steps(k) for k in names)

        one, two, three = random.split(key, 3)
        return {
            "start": random.normal(one, (n, size(structure.initial_sites))),
            "moves": random.normal(two, (structure.length, n, size(structure.path_sites))),
            "resampling": random.normal(three, (structure.length,)),
        }

    def _steps(self, name: str) -> int:
        return self._structure.length if name in self._structure.path_sites else 1

    # ------------------------------------------------------------------------------------------ reports
    def postprocess_fn(self, args, kwargs):
        kwargs = dict(kwargs or {})

        def constrain(z):
            values = {n: self._transforms[n](v) if n in self._transforms else v for n, v in z.items()}
            if not self._structure.has_deterministic:
                return values
            trace = trace_model(self._model, args, kwargs, key=random.key(0), values=values)
            derived = {n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}
            return {**values, **derived}

        return constrain

    def get_diagnostics_str(self, state):
        return f"acc. prob={state.mean_accept_prob:.2f}, log-likelihood {state.log_evidence:.1f}"

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None}


# ------------------------------------------------------------------------ the filter as a function of normals


def _quantile(fn: Any, normals: Array, name: str) -> Array:
    """A draw from ``fn`` as a function of independent standard normals of the shape of its value."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    if isinstance(fn, dist.Delta):
        return jnp.broadcast_to(fn.v, normals.shape)
    if isinstance(fn, dist.Normal):
        return fn.loc + fn.scale * normals
    if isinstance(fn, dist.MultivariateNormal):
        return fn.loc + jnp.squeeze(fn.scale_tril @ normals[..., None], -1)
    if isinstance(fn, dist.TransformedDistribution) and all(t.domain.event_dim == 0 for t in fn.transforms):
        value = _quantile(fn.base_dist, normals, name)
        for transform in fn.transforms:
            value = transform(value)
        return value
    # Short of 1 by what float32 can tell from it.
    uniform = jnp.clip(ndtr(normals), jnp.finfo(normals.dtype).tiny, 1 - jnp.finfo(normals.dtype).epsneg)
    if fn.has_enumerate_support and fn.event_dim == 0:
        support = fn.enumerate_support(expand=False)
        mass = jnp.cumsum(jnp.exp(fn.log_prob(support)), 0)
        index = jnp.sum(uniform * mass[-1] >= mass, 0)
        return support.reshape(-1)[jnp.minimum(index, len(support) - 1)]
    if type(fn).icdf is not dist.Distribution.icdf and not isinstance(fn, dist.TransformedDistribution):
        try:
            return fn.icdf(uniform)
        except (ImportError, NotImplementedError):  # some need a library that NumPyro does without
            pass
    raise ValueError(
        f"Site '{name}' has a law, {type(fn).__name__}, without a quantile function, so its draws cannot be "
        "correlated: leave `correlation` out."
    )


class _from_normals(Messenger):
    """Draw latent sites from a vector of normals, in the order in which they come."""

    def __init__(self, fn: Any, normals: Array, names: Any):
        self.normals, self.names, self.used = normals, set(names), 0
        super().__init__(fn)

    def process_message(self, msg):
        if not is_latent(msg) or msg["value"] is not None or msg["name"] not in self.names:
            return
        shape = msg["fn"].shape()
        size = int(np.prod(shape))
        chunk = lax.dynamic_slice_in_dim(self.normals, self.used, size)
        self.used += size
        msg["value"] = _quantile(msg["fn"], chunk.reshape(shape), msg["name"])


def _filter_of_normals(
    space: StateSpace, guides: Mapping[str, Any], key: Array, noise: Any
) -> tuple[Array, dict[str, Array]]:
    """Estimate of the log-likelihood, a function of ``noise``; and a path, drawn with ``key``."""
    structure = space._read.structure
    process, parameters = space.process(**guides), space._parameters
    n = noise["start"].shape[0]

    def proposed(guide, normals, names, *inputs):
        if guide is None:
            return {}, 0
        source = _from_normals(guide, normals, names)
        with handlers.block(), handlers.trace() as trace:
            source(*inputs, parameters)
        return {k: s["value"] for k, s in trace.items() if is_latent(s)}, source.used

    def start(normals):
        values, used = proposed(guides["initial_guide"], normals, structure.initial_sites)
        rest = [k for k in structure.initial_sites if k not in values]
        if rest:
            source = _from_normals(space._read.model, normals[used:], rest)
            trace = run_prefix(
                source,
                space._read.args,
                space._read.kwargs,
                index=structure.index,
                values={**parameters, **values},
            )[1]
            values = {k: trace[k]["value"] for k in structure.initial_sites}
        return (*process.start_at(values), values)

    def move(normals, carry, x, t):
        values, used = proposed(guides["guide"], normals, structure.path_sites, carry, x)
        rest = [k for k in structure.path_sites if k not in values]
        if rest:
            source = _from_normals(space._call.f, normals[used:], rest)
            trace = run_step(space._call._replace(f=source), carry, x, t, values=values)[2]
            values = {k: trace[k]["value"] for k in structure.path_sites}
        moved = process.move_to(carry, x, t, values)
        return moved.carry, moved.log_weight, moved.values

    def proper(weight):
        return jnp.where(jnp.isnan(weight), -jnp.inf, weight)

    def body(running, inputs):
        carry, weight = running
        x, t, normals, place = inputs
        order = _sorted(carry, structure.touched)
        points = (ndtr(place) + jnp.arange(n)) / n
        ancestor = order[_inverse_cdf(points, weight[order])]
        parents = jax.tree.map(lambda v: v[ancestor], carry)
        new, weight, values = jax.vmap(move, (0, 0, None, None))(normals, parents, x, t)
        weight = proper(weight)
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, carry)
        total = logsumexp(weight)
        weight = jnp.where(jnp.isneginf(total), 0.0, weight - total)
        return (new, weight), (values, ancestor, total - jnp.log(n))

    carry, weight, initial = jax.vmap(start, axis_size=n)(noise["start"])
    weight = proper(weight)
    total = logsumexp(weight)
    weight = jnp.where(jnp.isneginf(total), 0.0, weight)
    times = jnp.arange(space.length)
    (_, weight), (values, ancestors, terms) = lax.scan(
        body, (carry, weight), (space.xs, times, noise["moves"], noise["resampling"])
    )
    origin, line = lax.scan(lambda k, a: (a[k], k), draw(key, weight), ancestors, reverse=True)
    path = {k: v[times, line] for k, v in values.items()}
    return total - jnp.log(n) + terms.sum(), {**{k: v[origin] for k, v in initial.items()}, **path}


def _sorted(carry: Any, touched: np.ndarray) -> Array:
    """Order of the particles: by their state, along a Hilbert curve if it has several dimensions."""
    leaves = [v for v, on in zip(jax.tree.leaves(carry), touched, strict=True) if on]
    state = jnp.concatenate([v.reshape(len(v), -1).astype(float) for v in leaves], 1)
    if state.shape[1] == 1:
        return jnp.argsort(state[:, 0])
    spread = state.std(0)
    unit = ndtr((state - state.mean(0)) / jnp.where(spread > 0, spread, 1.0))
    return jnp.argsort(_hilbert_index(unit))


def _hilbert_index(unit: Array) -> Array:
    """Place on a Hilbert curve of points ``(N, dimensions)`` of the unit cube (Skilling 2004, AIP 707:381).

    31 bits are shared out among the dimensions; those beyond the 31st are left out.
    """
    d = min(unit.shape[1], 31)
    bits = 31 // d
    x = [jnp.clip((unit[:, i] * 2**bits).astype(jnp.int32), 0, 2**bits - 1) for i in range(d)]
    for level in range(bits - 1, 0, -1):
        q, p = 1 << level, (1 << level) - 1
        for i in range(d):
            flip = (x[i] & q) != 0
            swap = jnp.where(flip, 0, (x[0] ^ x[i]) & p)
            x[0] = x[0] ^ jnp.where(flip, p, swap)
            x[i] = x[i] ^ swap if i else x[0]
    for i in range(1, d):
        x[i] = x[i] ^ x[i - 1]
    gray = jnp.zeros_like(x[0])
    for level in range(bits - 1, 0, -1):
        gray = jnp.where((x[-1] & (1 << level)) != 0, gray ^ ((1 << level) - 1), gray)
    x = [v ^ gray for v in x]
    index = jnp.zeros_like(x[0])
    for level in range(bits - 1, -1, -1):
        for v in x:
            index = (index << 1) | ((v >> level) & 1)
    return index
