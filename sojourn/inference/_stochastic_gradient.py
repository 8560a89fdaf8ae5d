"""Stochastic-gradient MCMC: Langevin dynamics that looks at a minibatch of the data a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import constrain_fn, potential_energy
from numpyro.util import is_prng_key

from sojourn._arguments import numbers, positive_numbers
from sojourn._contract import observed_sites, trace_model
from sojourn.inference._check_model import check_gradient_engine, check_latents, latent_sites
from sojourn.inference._initial import compiled_once, init_to_hint
from sojourn.inference._scan import prepared
from sojourn.inference._whole_data import subsampling_plates, whole_data

__all__ = ["StochasticGradientLangevin", "StochasticGradientState"]

METHODS = ("sgnht", "sgld")
TRIES = 100
"""Starting points looked at before the search is given up."""
ASCENT = (0.1, 1e-4)
"""First and last step of the ascent that warm-up begins with, on the unconstrained scale."""
PROBES = 32
"""Minibatches whose gradients are compared at the start."""


class StochasticGradientState(NamedTuple):
    """State of :class:`StochasticGradientLangevin`; ``d`` unconstrained coordinates in all."""

    z: dict[str, Array]
    """Position, unconstrained."""
    momentum: Array
    """``(d,)``, in units of ``scale``. Stays as it is under SGLD, as do the two below."""
    thermostat: Array
    """Share of the momentum that the thermostat takes in a step: ``step_size`` times blackjax's ``xi``."""
    temperature: Array
    """Mean over the last draw of the kinetic estimate of ``temperature``."""
    step_size: Array
    """Of the last gradient."""
    num_steps: Array
    """Gradients in this draw."""
    diverging: Array
    """Whether something was not finite in this draw, and the chain was set back."""
    scale: Array
    """``(d,)``: lengths of the unconstrained coordinates."""
    gradient_variance: Array
    """``(d,)``: variance of the gradient from one minibatch to the next, on the unconstrained scale."""
    prior_precision: Array
    """``(d,)``: of the unconstrained coordinates, given the values of others at the start."""
    gradient: Array
    """``(d,)``: the last gradient of the log-density, on the unconstrained scale."""
    sound: Array
    """``(d,)``: the last position with a finite gradient, on the unconstrained scale."""
    i: Array
    """Gradients so far."""
    warmup_left: Array
    """Draws of warm-up still to come."""
    rng_key: Array


class StochasticGradientLangevin(MCMCKernel):
    r"""Langevin dynamics driven by gradients of minibatches: MCMC for data too many to look at in every step.

    The model takes a minibatch by itself, in NumPyro's own way: ``numpyro.plate(name, size, subsample_size=m)``
    around its likelihood. Each gradient sees new indices, with the log-likelihood scaled up by ``size / m``, and
    costs ``m`` data. **The draws are approximate**: no Metropolis step corrects for the length of the step or for
    the noise of the gradient, and no ``accept_prob`` is reported. Use NUTS where the data are few enough.

    With :math:`g` the estimated gradient of the log-density of the *whole* data, :math:`h` the step size, in
    coordinates divided by their ``scale``, a step is (blackjax's convention)

    * ``"sgld"`` (Welling and Teh 2011, *ICML*): :math:`x \leftarrow x + h g + \sqrt{2 h T}\,\epsilon`. The noise of
      the gradient, of variance :math:`V`, heats the chain: it adds :math:`h V / 2` to the temperature.
    * ``"sgnht"`` (Ding et al. 2014, *NeurIPS* 27; adaptive Langevin dynamics, Leimkuhler and Shang 2016, *SIAM J.
      Sci. Comput.* 38:A712): :math:`x \leftarrow x + h p`,
      :math:`p \leftarrow (1 - h\xi) p + h g + \sqrt{2 \alpha h T}\,\epsilon`, and the thermostat
      :math:`\xi \leftarrow \xi + h (|p|^2 / d - T')` takes away the heat that the noise brings, whatever its
      variance, as long as that is the same in all coordinates. Here
      :math:`T' = T / (1 - h\xi/2)`: the Euler step with friction holds positions colder than momenta by
      :math:`1 - h\xi/2`, for a Gaussian target exactly so up to :math:`h^2/2`. With :math:`T' = T`, as in the papers,
      variances are too small by that factor, and noise of :math:`h^2 V > 1` cannot be cooled at all.

    A gradient moves the position by :math:`h g` under SGLD and by :math:`h^2 g` under SGNHT: ``step_size=h**2`` of
    the one is as long as ``step_size=h`` of the other.

    One step size fits all coordinates if ``scale`` is about their posterior standard deviation. The variance of the
    gradient between minibatches estimates it: it is ``size / m - 1`` times the information in the data (the idea of
    Fisher scoring; Ahn, Korattikara and Welling 2012, *ICML*). It is measured at the start, followed during warm-up
    and then fixed, together with the precision of the prior; gradient noise is then alike in all coordinates too, as
    SGNHT asks. Strong posterior correlations it does not see: centre and standardise covariates. About ``size / m``
    gradients carry the chain over one standard deviation.

    Args:
        model: a NumPyro model with a subsampling plate around observed sites; its latent sites are continuous and
            outside that plate.
        step_size: :math:`h`, a number or a schedule, gradient number -> step size (optax's are such; count from
            the start of warm-up). In units of ``scale`` under SGNHT, of its square under SGLD. By default it follows
            from the largest ``size / m``: ``min(0.2, 0.5 * (m / size)**0.5)`` under SGNHT, where the noise takes
            about an eighth of the momentum in a step; ``min(0.05, 0.1 * m / size)`` under SGLD, where it makes
            variances about 5% too large (at temperature 1). Under a decreasing schedule weight the draws by ``step_size``.
        method: ``"sgnht"`` or ``"sgld"``.
        steps_per_draw: gradients from one draw to the next.
        friction: :math:`\alpha h`, the share of the momentum renewed in a step of SGNHT beside the gradient noise
            (blackjax's ``alpha`` is ``friction / step_size``).
        temperature: :math:`T`; samples the posterior to the power 1 / T.
        scale: lengths of the unconstrained coordinates: a number, or by site what broadcasts to its unconstrained
            shape; ``None``: measured as above. ``1.0`` leaves the unconstrained coordinates as they are.
        init_strategy: where chains start, in NumPyro's sense.

    Warm-up begins with half as many gradients again as it has by itself, of stochastic gradient ascent (Adam) from
    the starting point towards a mode; with ``num_warmup=0`` the chain starts where ``init_strategy`` says.

    The field ``temperature`` should average to ``temperature`` and ``thermostat`` (:math:`h\xi`, held below 1.5 to keep
    the step stable) should stay well below 1: near it the step is too long for the noise. A chain that leaves the finite
    numbers says ``diverging``, and goes on with a new momentum from the last position that had a finite gradient. Deterministic sites inside a subsampling plate are
    not kept; those outside see the whole data (:class:`whole_data <sojourn.inference.whole_data>`).

    Raises:
        ValueError: an unknown method, a setting outside its range; at ``init``: no subsampling plate, a latent site
            inside one, a discrete latent site, a gradient that is not finite at the start.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with numpyro.plate("data", len(y), subsample_size=20) as chosen:
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[chosen])
        >>> y = 3.0 + jax.random.normal(jax.random.key(0), (1000,))
        >>> mcmc = MCMC(StochasticGradientLangevin(model), num_warmup=200, num_samples=500, num_chains=2,
        ...             chain_method="vectorized", progress_bar=False)
        >>> mcmc.run(jax.random.key(1), y)
        >>> bool(abs(mcmc.get_samples()["mean"].mean() - y.mean()) < 0.02)
        True
    """

    sample_field = "z"
    follows_gradient = True

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float | Callable[[Any], Any] | None = None,
        *,
        method: str = "sgnht",
        steps_per_draw: int = 10,
        friction: float = 0.1,
        temperature: float = 1.0,
        scale: float | Mapping[str, Any] | None = None,
        init_strategy: Callable[..., Any] | None = None,
    ):
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, not {method!r}.")
        if step_size is not None:
            _check_step_size(step_size(0) if callable(step_size) else step_size)
        if (
            not isinstance(steps_per_draw, int | np.integer)
            or isinstance(steps_per_draw, bool)
            or steps_per_draw < 1
        ):
            raise ValueError(
                f"`steps_per_draw` must be a whole number of at least 1, not {steps_per_draw!r}."
            )
        if not 0.0 < numbers(friction, "friction") < 1.0:
            raise ValueError(f"`friction` must lie between 0 and 1, not {friction!r}.")
        if not 0.0 < numbers(temperature, "temperature") < math.inf:
            raise ValueError(f"`temperature` must be positive and finite, not {temperature!r}.")
        given = scale.values() if isinstance(scale, Mapping) else () if scale is None else (scale,)
        for value in given:
            positive_numbers(value, "scale")
        self._model = prepared(model)
        self._step_size = step_size
        self._method = method
        self._steps_per_draw = int(steps_per_draw)
        self._friction = friction
        self._temperature = temperature
        self._scale = scale
        self._init_strategy = init_to_hint() if init_strategy is None else init_strategy
        self._sample_fn: Callable[..., Any] | None = None
        self._postprocess_fn = None
        self._ratios: tuple[float, ...] = ()
        self._inside: frozenset[str] = frozenset()
        self._fixed: dict[str, Any] = {}

    @property
    def model(self) -> Callable[..., Any]:
        return getattr(self._model, "__wrapped__", self._model)

    @property
    def stat_fields(self) -> tuple[str, ...]:
        """Fields of the state worth collecting."""
        common = ("num_steps", "diverging", "step_size")
        return (*common, "thermostat", "temperature") if self._method == "sgnht" else common

    @property
    def default_fields(self):
        return (self.sample_field, "diverging")

    # ------------------------------------------------------------------------------------------- set up
    def init(self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None):
        kwargs = dict(model_kwargs or {})
        if callable(self._step_size):
            _check_step_size(self._step_size(num_warmup * self._steps_per_draw))
        self._read_model(model_args, kwargs)

        def start(key, given):
            return self._start(key, given, num_warmup, model_args, kwargs)

        def approach(state):
            return self._approach(state, num_warmup * self._steps_per_draw // 2, model_args, kwargs)

        batched = not is_prng_key(rng_key)
        with compiled_once():
            state, sound = jax.jit(jax.vmap(start, (0, 0 if init_params else None)) if batched else start)(
                rng_key, init_params or None
            )
        if not isinstance(sound, jax.core.Tracer) and not bool(sound.all()):
            bad = int(jnp.argmin(jnp.atleast_1d(sound)))
            z = {n: v[bad] if batched else v for n, v in state.z.items()}
            raise ValueError(
                f"The gradient is not finite at the start: {self._culprit(z, model_args, kwargs)}"
            )
        if num_warmup:
            state = jax.jit(jax.vmap(approach) if batched else approach)(state)

        def sample(state, args, kwargs):
            return self._next(state, args, dict(kwargs or {}))

        self._sample_fn = jax.vmap(sample, (0, None, None)) if batched else sample
        return state

    def sample(self, state, model_args, model_kwargs):
        assert self._sample_fn is not None, "`init` must be called before `sample`."
        return self._sample_fn(state, model_args, model_kwargs)

    def _read_model(self, args, kwargs):
        """Refuse what the method cannot do, and note the plates. Nothing is computed."""
        found: dict[str, Any] = {}

        def look(key):
            with handlers.seed(rng_seed=key):
                found["plates"] = subsampling_plates(self._model, args, kwargs)
            for name, (size, taken) in found["plates"].items():
                if taken > size:
                    raise ValueError(f"Plate '{name}' takes a subsample of {taken} out of {size}.")
            found["trace"] = trace_model(self._model, args, kwargs, key=key)

        jax.eval_shape(look, random.key(0))
        plates, trace = found["plates"], found["trace"]
        check_latents(trace)
        check_gradient_engine(trace, type(self).__name__)

        def around(site):
            return [f.name for f in site["cond_indep_stack"] if f.name in plates]

        for name, site in latent_sites(trace).items():
            if around(site):
                raise ValueError(
                    f"Site '{name}' is latent inside the subsampling plate '{around(site)[0]}': it would be another "
                    "variable for every minibatch. Integrate it out, or use NUTS and a plate without subsample_size."
                )
        self._ratios = tuple(
            math.prod(plates[p][0] / plates[p][1] for p in around(site))
            for site in observed_sites(trace).values()
            if around(site)
        )
        if not self._ratios:
            raise ValueError(
                "The model has no subsampling plate around an observed site: use MALT or NUTS, or give the plate of "
                "the data a subsample_size."
            )
        self._inside = frozenset(n for n, s in trace.items() if s["type"] == "deterministic" and around(s))
        self._fixed = {}
        if any(s["type"] in ("param", "mutable") for s in trace.values()):
            concrete = trace_model(self._model, args, kwargs, key=random.key(0))
            self._fixed = {n: s["value"] for n, s in concrete.items() if s["type"] in ("param", "mutable")}
        if isinstance(self._scale, Mapping):
            missing = [n for n in latent_sites(trace) if n not in self._scale]
            if missing:
                raise ValueError(f"`scale` says nothing of site '{missing[0]}'.")

    def _start(self, key, given, num_warmup, args, kwargs):
        key, key_try, key_prior, key_momentum = random.split(key, 4)
        model = handlers.substitute(self._model, data=self._fixed)

        def propose(key):
            seeded = handlers.substitute(handlers.seed(model, key), substitute_fn=self._init_strategy)
            latent = latent_sites(handlers.trace(seeded).get_trace(*args, **kwargs))
            return {
                n: jnp.asarray(dist.biject_to(s["fn"].support).inv(s["value"])) for n, s in latent.items()
            }

        def attempt(running):
            count, key, *_ = running
            key, key_point, key_probe = random.split(key, 3)
            z = {n: jnp.asarray(v) for n, v in given.items()} if given else propose(key_point)
            return count + 1, key, z, self._probe(z, key_probe, args, kwargs)

        shapes = jax.eval_shape(attempt, (jnp.array(0), key_try))
        z, gradients = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes[2:])
        _, _, z, gradients = lax.while_loop(
            lambda running: (running[0] < (1 if given else TRIES)) & ~jnp.isfinite(running[3]).all(),
            attempt,
            (jnp.array(0), key_try, z, gradients),
        )
        flat, _ = ravel_pytree(z)
        variance = gradients.var(0, ddof=1)
        precision = self._prior_precision(z, key_prior, args, kwargs)
        zero = jnp.zeros((), flat.dtype)
        state = StochasticGradientState(
            z=z,
            momentum=jnp.sqrt(self._temperature) * random.normal(key_momentum, flat.shape, flat.dtype),
            thermostat=zero + self._friction,
            temperature=zero + self._temperature,
            step_size=self._step(0, flat.dtype),
            num_steps=jnp.array(0),
            diverging=jnp.array(False),
            scale=self._lengths(z, variance, precision),
            gradient_variance=variance,
            prior_precision=precision,
            gradient=gradients[-1],
            sound=flat,
            i=jnp.array(0),
            warmup_left=jnp.array(num_warmup),
            rng_key=key,
        )
        return state, jnp.isfinite(gradients).all()

    def _probe(self, z, key, args, kwargs):
        """Gradients at one point for several minibatches, ``(PROBES, d)``."""
        flat, unravel = ravel_pytree(z)
        return lax.map(lambda k: self._gradient(flat, unravel, k, args, kwargs), random.split(key, PROBES))

    def _approach(self, state: StochasticGradientState, steps: int, args, kwargs):
        """Go near a mode by stochastic gradient ascent (Adam), and follow the noise of the gradient.

        Far from the posterior the noise says nothing of its width, and hot momenta take long to cool.
        """
        import optax

        key, key_ascent = random.split(state.rng_key)
        flat, unravel = ravel_pytree(state.z)
        optimiser = optax.adam(optax.exponential_decay(ASCENT[0], steps, ASCENT[1] / ASCENT[0]))

        def body(k, running):
            x, memory, last, variance = running
            gradient = self._gradient(x, unravel, random.fold_in(key_ascent, k), args, kwargs)
            move, memory = optimiser.update(-gradient, memory)
            variance = variance + ((gradient - last) ** 2 / 2 - variance) * _rate(k + 1, 1)
            return x + move, memory, gradient, variance

        x, _, last, variance = lax.fori_loop(
            0, steps, body, (flat, optimiser.init(flat), state.gradient, state.gradient_variance)
        )
        sound = jnp.isfinite(x).all() & jnp.isfinite(last).all() & jnp.isfinite(variance).all()
        x, last, variance = (
            jnp.where(sound, a, b)
            for a, b in ((x, flat), (last, state.gradient), (variance, state.gradient_variance))
        )
        z = unravel(x)
        return state._replace(
            z=z,
            sound=x,
            gradient=last,
            gradient_variance=variance,
            scale=self._lengths(z, variance, state.prior_precision),
            rng_key=key,
        )

    def _prior_precision(self, z, key, args, kwargs):
        """Of each unconstrained coordinate, from draws of its law given what it depends on; 0 if it has no law."""
        if self._scale is not None:
            return jnp.zeros_like(ravel_pytree(z)[0])
        trace = self._trace_at(z, key, args, kwargs)

        def precision(name, key):
            fn = trace[name]["fn"]
            try:
                draws = fn.sample(key, (10 * PROBES,))
            except NotImplementedError:  # an improper law
                return jnp.zeros_like(z[name])
            draws = jax.vmap(dist.biject_to(fn.support).inv)(draws)
            if draws.shape[1:] != z[name].shape:  # sites inside a scan have a leading axis of time
                return jnp.zeros_like(z[name])
            precision = 1 / draws.var(0)
            return jnp.where(jnp.isfinite(precision), precision, 0.0).astype(z[name].dtype)

        return ravel_pytree({n: precision(n, random.fold_in(key, k)) for k, n in enumerate(z)})[0]

    def _lengths(self, z, variance, precision):
        """Scale of the coordinates, ``(d,)``."""
        flat, _ = ravel_pytree(z)
        if isinstance(self._scale, Mapping):
            given = {n: jnp.broadcast_to(jnp.asarray(self._scale[n], v.dtype), v.shape) for n, v in z.items()}
            return ravel_pytree(given)[0]
        if self._scale is not None:
            return jnp.full_like(flat, self._scale)
        # Without replacement, N^2/m (1 - m/N) var(g_i) = (N/m - 1) N var(g_i).
        total = variance / (min(self._ratios) - 1) + precision
        return jnp.where(total > 0, 1 / jnp.sqrt(total), 1.0)

    def _trace_at(self, z, key, args, kwargs):
        """Trace at an unconstrained position."""

        def value(site):
            if site["type"] == "sample" and site["name"] in z:
                return dist.biject_to(site["fn"].support)(z[site["name"]])
            return None

        model = handlers.substitute(self._model, data=self._fixed)
        seeded = handlers.substitute(handlers.seed(model, key), substitute_fn=value)
        return handlers.trace(seeded).get_trace(*args, **kwargs)

    def _culprit(self, z, args, kwargs) -> str:
        names: list[str] = []

        def terms(key):
            trace = self._trace_at(z, key, args, kwargs)
            sites = {n: s for n, s in trace.items() if s["type"] == "sample"}
            names[:] = sites
            return [s["fn"].log_prob(s["value"]).sum() for s in sites.values()]

        found = jax.jit(jax.vmap(terms))(random.split(random.key(0), PROBES))
        for name, term in zip(names, found, strict=True):
            bad = ~np.isfinite(term)
            if bad.any():
                return f"the log-density at site '{name}' is {np.asarray(term)[bad][0]} there."
        _, unravel = ravel_pytree(z)
        gradients = jax.jit(lambda: self._probe(z, random.key(0), args, kwargs))()
        for name, value in jax.vmap(unravel)(gradients).items():
            if not np.isfinite(value).all():
                return f"that with respect to site '{name}' is not."
        return "for some minibatches, that is."

    # ------------------------------------------------------------------------------------------ one draw
    def _gradient(self, flat, unravel, key, args, kwargs):
        """Gradient of the log-density, estimated from the minibatch that ``key`` chooses."""

        def energy(flat):
            model = handlers.seed(handlers.substitute(self._model, data=self._fixed), key)
            return potential_energy(model, args, kwargs, unravel(flat))

        return -jax.grad(energy)(flat)

    def _step(self, i, dtype):
        if self._step_size is None:
            ratio = max(self._ratios)
            step = min(0.2, 0.5 / math.sqrt(ratio)) if self._method == "sgnht" else min(0.05, 0.1 / ratio)
        else:
            step = self._step_size(i) if callable(self._step_size) else self._step_size
        return jnp.asarray(step, dtype)

    def _next(self, state: StochasticGradientState, args, kwargs) -> StochasticGradientState:
        from blackjax.sgmcmc import sgld, sgnht

        flat, unravel = ravel_pytree(state.z)
        scale, T = state.scale, self._temperature

        def move(u, p, taken, h, gradient, key):
            """One step of blackjax's, in coordinates of unit scale; and the factor from momenta to temperature."""

            def known(*_):
                return gradient

            if self._method == "sgld":
                return sgld.build_kernel()(key, u, known, None, h, T), p, taken, jnp.ones_like(taken)
            colder = 1 - taken / 2
            kernel = sgnht.build_kernel(self._friction / h)
            new = kernel(key, sgnht.SGNHTState(u, p, taken / h), known, None, h, T / colder)
            # Far from the posterior momenta are hot, and the thermostat would shoot past what is stable.
            return new.position, new.momentum, jnp.clip(h * new.xi, -1.0, 1.5), colder

        def body(k, running):
            u, p, taken, sound, last, diverging, key, heat, squares = running
            key, key_batch, key_noise, key_restart = random.split(key, 4)
            gradient = self._gradient(u * scale, unravel, key_batch, args, kwargs)
            h = self._step(state.i + k, flat.dtype)
            *new, colder = move(u, p, taken, h, scale * gradient, key_noise)
            fine = jnp.isfinite(gradient).all()
            for value in new:
                fine &= jnp.isfinite(value).all()
            fresh = jnp.sqrt(T) * random.normal(key_restart, p.shape, p.dtype)
            back = (sound, fresh, jnp.full_like(taken, self._friction))
            sound = jnp.where(fine, u, sound)
            change = jnp.where(fine, (gradient - last) ** 2 / 2, 0.0)
            last = jnp.where(fine, gradient, last)
            u, p, taken = (jnp.where(fine, a, b) for a, b in zip(new, back, strict=True))
            heat = heat + colder * jnp.mean(p**2)
            return u, p, taken, sound, last, diverging | ~fine, key, heat, squares + change

        zero = jnp.zeros_like(state.thermostat)
        first = (
            flat / scale,
            state.momentum,
            state.thermostat,
            state.sound / scale,
            state.gradient,
            jnp.array(False),
            state.rng_key,
            zero,
            jnp.zeros_like(flat),
        )
        steps = self._steps_per_draw
        u, p, taken, sound, last, diverging, key, heat, squares = lax.fori_loop(0, steps, body, first)
        z = unravel(u * scale)
        warming, i = state.warmup_left > 0, state.i + steps
        rate = jnp.where(warming, _rate(i, steps), 0.0).astype(flat.dtype)
        variance = state.gradient_variance + rate * (squares / steps - state.gradient_variance)
        lengths = jnp.where(warming, self._lengths(z, variance, state.prior_precision), scale)
        return StochasticGradientState(
            z=z,
            momentum=p,
            thermostat=taken,
            temperature=heat / steps if self._method == "sgnht" else state.temperature,
            step_size=self._step(i - 1, flat.dtype),
            num_steps=jnp.full_like(state.num_steps, steps),
            diverging=diverging,
            scale=lengths,
            gradient_variance=variance,
            prior_precision=state.prior_precision,
            gradient=last,
            sound=sound * scale,
            i=i,
            warmup_left=jnp.maximum(state.warmup_left - 1, 0),
            rng_key=key,
        )

    # ------------------------------------------------------------------------------------------ reports
    def postprocess_fn(self, args, kwargs):
        model = handlers.substitute(whole_data(self._model), data=self._fixed)

        def constrain(z):
            seeded = handlers.seed(model, random.key(0))
            values = constrain_fn(seeded, args, dict(kwargs or {}), z, return_deterministic=True)
            return {n: v for n, v in values.items() if n not in self._inside}

        return constrain

    def get_diagnostics_str(self, state):
        says = f"step size {state.step_size:.2e}"
        if self._method == "sgnht":
            says += f", thermostat {state.thermostat:.2f}, temperature {state.temperature:.2f}"
        return says + (", diverging" if state.diverging else "")

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None}


def _rate(i: Any, steps: int) -> Any:
    """Weight of the newest ``steps`` of ``i`` gradients: an average whose weights grow as the cube of time."""
    return jnp.minimum(1.0, 4 * steps / (i + 4 * PROBES))


def _check_step_size(step: Any) -> None:
    if isinstance(step, jax.core.Tracer):
        return
    if np.ndim(numbers(step, "step_size")) or not 0.0 < float(step) < math.inf:
        raise ValueError(f"`step_size` must be positive and finite, not {step!r}.")
