r"""Guides for models with a continuous path: variational families that are the model's own ``scan``, steered.

A mean-field or jointly normal guide has to learn how one step hangs on the next. These guides need not: they run the
model's own transition function, with the noise of each step drawn from a law that hangs on the state and on what the
data say,

.. math:: e_t \mid z_t \sim N(\mu_t(z_t), \Sigma_t),

in place of :math:`N(0, I)`. The Kullback-Leibler divergence of the paths is then the sum over steps of that of the
noise, the discretised Girsanov term :math:`\tfrac12 \sum_t |\mu_t|^2` plus what the scales add.

* :class:`PseudoObservationGuide`: the law is that of the model *linearised* around a reference path, given the data
  (working responses, as in iteratively reweighted least squares) and corrections that are learnt. Exact for
  linear-Gaussian models, whatever their parameters; the default of ``sj.fit(engine="svi")`` for normal increments.
* :class:`PathGuide`: the law is a network of the state and of a context that an encoder reads off the data.

Both are built from the model, as NumPyro's automatic guides are, and go wherever these go::

    SVI(model, PseudoObservationGuide(model), optim, Trace_ELBO())
    sj.fit(model, data, engine=sj.Variational(partial(sj.PathGuide, encoder="gru")))

They know nothing of a particular system: any model with one ``scan`` over continuous latent sites will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import biject_to

from sojourn._arguments import whole_number
from sojourn.inference._encoders import ControlNetwork, build_encoder
from sojourn.inference._initial import compiled_once
from sojourn.inference._linearised import filtered, linearise, most_probable_path, quadratic
from sojourn.inference._path_guide import PathGuideBase, Plan, standard, standardised
from sojourn.inference._path_laws import JointNormal, NormalThrough, Placed, normal_law
from sojourn.inference._path_system import PathSystem
from sojourn.ops import information_filter

__all__ = ["PathGuide", "PseudoObservationGuide"]

_WEAK = -6.0  # log precision of a pseudo-observation before it is learnt, in units of the state's own spread


class _Proposer:
    """Laws of the normal sites of a step whose noise is jointly normal: ``mean + factor @ standard normal``.

    The factor is upper triangular and the sites are stacked last first, so that each law needs only the noise of the
    sites drawn before it.
    """

    def __init__(self, sites: Mapping[str, Placed], mean: Array, factor: Array):
        self.sites, self.mean, self.factor = sites, mean, factor
        self.slices = PathSystem.slices(sites)
        self.drawn: dict[str, Array] = {}

    def law(self, name: str, fn: Any) -> Any:
        if name not in self.sites:
            return None
        own = self.slices[name]
        mean = self.mean[..., own]
        for other, noise in self.drawn.items():
            mean = mean + (self.factor[..., own, self.slices[other]] @ noise[..., None])[..., 0]
        own_law = normal_law.of(fn)
        assert own_law is not None  # as PathSystem found
        return JointNormal(own_law, mean, self.factor[..., own, own], self.sites[name], fn.event_dim)

    def after(self, name: str, fn: Any, value: Array) -> None:
        if name in self.sites and len(self.sites) > 1 and isinstance(fn, JointNormal):
            self.drawn[name] = fn.own_noise(value)


class PseudoObservationGuide(PathGuideBase):
    r"""The model linearised around a path and filtered backwards: a guide that is exact where the model is linear.

    With a reference path :math:`(\bar z_t, \bar e_t)`, step and observations are expanded to first order, and every
    observation is replaced by its working response: for a parameter :math:`\theta` of its law (a mean, the logarithm
    of a rate), a normal observation of information :math:`-\partial^2_\theta \log p` and score
    :math:`\partial_\theta \log p`. A backward information filter (:mod:`sojourn.ops.information_filter`) then gives the
    law of the noise of every step given the state and all later data, from which the guide draws, through the model's
    own nonlinear step. All of it is worked out anew for every draw of the model's parameters, so that the path
    follows them: a Hurst index or a noise level is not held by a path that was fitted to another.

    The reference starts at the most probable path, found by Gauss-Newton. What is learnt, by the evidence bound:
    the joint normal law of the model's parameters; and, unless the model is found to be linear with normal data,
    the reference, a weight and a shift for each working response, and a free pseudo-observation of every coordinate in
    which the step is not linear, at every step.

    For SVI use ``Trace_ELBO``: with an exact guide its every draw equals the log evidence, while an analytic
    divergence leaves the noise of the likelihood term.

    Args:
        model: a model with a ``scan`` whose latent sites are normal (``Normal`` or ``MultivariateNormal``).
        encoder: ``None`` learns the corrections of the series at hand. ``"gru"``, ``"conv"``, or a function or
            equinox module ``(time, inputs) -> (time, outputs)`` instead reads them, and the reference, off the data:
            the guide is then amortised, and new series need no optimisation.
        width: hidden units of a named encoder.
        sites: observed sites in the scan that the encoder reads; by default all.
        data: a function of the model's arguments that returns what the encoder reads, ``(time, features)`` or
            ``(time, series, features)``, in place of sites.
        scan: which scan, where several have latent sites: its number, or the name of a site in it.
        prefix: of the names of the guide's parameters. Those that start with ``<prefix>_series_`` describe one data
            set.
        seed: of the search for a start.

    Raises:
        ValueError: no scan, or none with latent sites; increments that are not normal; a discrete site.

    Example:
        A random walk seen in noise: the bound is the log evidence, draw by draw.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> def walk(y):
        ...     def step(x, y_t):
        ...         x = numpyro.sample("x", dist.Normal(x, 0.5))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> y = jnp.array([0.3, 1.2, 0.7, 1.9])
        >>> guide = PseudoObservationGuide(walk)
        >>> params = SVI(walk, guide, numpyro.optim.Adam(0.01), Trace_ELBO()).run(
        ...     jax.random.key(0), 1, y, progress_bar=False).params
        >>> covariance = 0.25 * jnp.minimum(*jnp.meshgrid(jnp.arange(1.0, 5.0), jnp.arange(1.0, 5.0))) + jnp.eye(4)
        >>> evidence = dist.MultivariateNormal(0.0, covariance).log_prob(y)
        >>> draws = [-Trace_ELBO().loss(jax.random.key(k), params, walk, guide, y) for k in range(3)]
        >>> [bool(abs(draw - evidence) < 1e-4) for draw in draws]
        [True, True, True]
    """

    mean_field = False

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        encoder: Any = None,
        width: int = 32,
        sites: tuple[str, ...] | None = None,
        data: Callable[..., Any] | None = None,
        scan: str | int | None = None,
        prefix: str = "guide",
        seed: int = 0,
    ):
        super().__init__(
            model, scan=scan, prefix=prefix, width=width, context_size=None, sites=sites, data=data, seed=seed
        )
        self._encoder = encoder
        if encoder is not None:
            build_encoder(encoder, 1, 1, 1, jax.random.key(0))

    def _make_plan(self, args, kwargs, trained) -> Plan:
        system, params, start = self._first_look(args, kwargs, trained)
        if system.other_sites:
            raise ValueError(
                f"Site '{next(iter(system.other_sites))}' of the scan is not normal: PseudoObservationGuide linearises "
                "models with normal increments; use PathGuide."
            )
        vector = start.get("loc", jnp.zeros(0))
        values = {n: v for n, (v, _) in params.items()}
        path, spread, curved, rough, kept = most_probable_path(
            system, args, kwargs, vector, values, self.seed
        )
        kept = system.respond_only(kept)
        states, noises, first = path
        exact = not curved.size and not rough
        extra: dict[str, Any] = {"path": path, "kept": kept, "curved": curved, "exact": exact}
        if not exact and self._encoder is None:
            shape = states.shape[:2]
            start |= {
                "series_reference": states,
                "series_reference_noise": noises,
                "series_reference_initial": first,
                "series_weight": jnp.zeros((*shape, len(kept))),
                "series_shift": jnp.zeros((*shape, len(kept))),
                "series_precision": jnp.full((*shape, len(curved)), _WEAK),
                "series_target": jnp.zeros((*shape, len(curved))),
            }
        if not exact and self._encoder is not None:
            start |= self._amortise(system, args, kwargs, vector, values, trained, extra, states, spread)
        extra["spread"] = spread
        return Plan(system, params, start, extra)

    def _amortise(
        self, system, args, kwargs, vector, params, trained, extra, states, spread
    ) -> dict[str, Any]:
        nothing = jnp.zeros((system.num_systems, system.num_initial))
        call, _ = system.start(args, kwargs, vector, nothing, params)
        features = np.asarray(self._features(system, args, kwargs, call), float)
        sizes = (
            system.num_states,
            system.num_noise,
            len(extra["kept"]),
            len(extra["kept"]),
            len(extra["curved"]),
            len(extra["curved"]),
            system.num_initial,
        )
        extra["sizes"] = sizes
        key = jax.random.key(self.seed)
        extra["encoder"] = build_encoder(self._encoder, features.shape[-1], sum(sizes), self._width, key)
        return standard(features, trained, self.prefix) | {
            "middle": trained.get(f"{self.prefix}_middle", jnp.asarray(states.mean((0, 1)))),
            "reach": trained.get(f"{self.prefix}_reach", jnp.asarray(spread)),
        }

    # ---------------------------------------------------------------------------------------------- running it

    def _local(self, plan: Plan, args, kwargs, start):
        """Reference path, weights and shifts of the working responses, free pseudo-observations."""
        system, extra = plan.system, plan.extra
        states, noises, first = extra["path"]
        count = len(extra["kept"])
        shape = (system.length, system.num_systems)
        if extra["exact"]:
            nothing = jnp.zeros((*shape, count))
            return states, noises, first, nothing, nothing, None
        if self._encoder is None:
            states, noises = self._own(plan, "series_reference"), self._own(plan, "series_reference_noise")
            first = self._own(plan, "series_reference_initial")
            weight, shift = self._own(plan, "series_weight"), self._own(plan, "series_shift")
            precision, target = self._own(plan, "series_precision"), self._own(plan, "series_target")
        else:
            call, _ = start(jnp.zeros((shape[1], system.num_initial)))
            features = standardised(self, plan, self._features(system, args, kwargs, call))
            out = jax.vmap(self._network(plan, "encoder"), 1, 1)(features)
            parts = jnp.split(out, np.cumsum(extra["sizes"])[:-1], -1)
            spread = self._own(plan, "reach")
            states = self._own(plan, "middle") + spread * parts[0]
            noises, weight, shift, precision, target = parts[1], *parts[2:6]
            precision = precision + _WEAK
            first = parts[6][0]
        unit = jnp.asarray(extra["spread"])[extra["curved"]]
        free = extra["curved"], jnp.exp(precision) / unit**2, target * unit
        return states, noises, first, weight, shift, free

    def _steer(self, plan, args, kwargs, start):
        system = plan.system
        states, noises, first, weight, shift, free = self._local(plan, args, kwargs, start)
        call, taken = start(first)
        linear = linearise(system, call, states, noises)
        seen = quadratic(linear, plan.extra["kept"], weight, shift, free)
        control, (mean, root) = filtered(system, start, linear, seen, call, (states, noises, first))
        factor = information_filter.noise_factor(control.precision_root)
        initial = _Proposer(system.initial_sites, first + mean, information_filter.noise_factor(root)).law
        return ((states, noises + control.mean, control.gain, factor), None), initial, taken

    def _laws_of_step(self, plan, steering, always, carry):
        system = plan.system
        reference, mean, gain, factor = steering
        mean = mean + (gain @ (system.pack_state(carry) - reference)[..., None])[..., 0]
        proposer = _Proposer(system.noise_sites, mean, factor)
        return proposer.law, proposer.after


class PathGuide(PathGuideBase):
    r"""The model's own ``scan``, steered by a network: a guide for nonlinear dynamics, amortised where it has an encoder.

    The noise of a step is normal, its mean (the control) and its scale functions of the state and of a context of
    the step. A latent site that is not made of normal noise gets a normal law of its unconstrained value.

    With ``TraceMeanField_ELBO``, which ``sj.fit`` takes for it, the divergence of the noise is analytic: half the
    squared control, summed over steps, the discretised Girsanov term (Girsanov 1960), and what the scales add. It is
    the path bound of latent stochastic differential equations (Li, Wong, Chen and Duvenaud 2020, *AISTATS*) with the
    scale set free: noise that observations tell to less than its prior spread needs a smaller one.

    Args:
        model: a model with a ``scan`` over continuous latent sites.
        encoder: what gives the context. ``"gru"`` (recurrent, from both ends), ``"conv"`` (dilated convolutions), or a
            function or equinox module ``(time, inputs) -> (time, context)``: amortised. ``None``: free parameters for
            each step of the series at hand.
        control: ``"network"`` (of context and state), or ``"linear"`` in the state, with coefficients that are free or
            come from the encoder.
        scale: ``"free"``, or ``"unit"`` for that of the model (the control of published latent SDEs).
        width: hidden units of the networks.
        depth: hidden layers of the control network.
        context_size: of the context of a step.
        sites: observed sites in the scan that the encoder reads; by default all.
        data: a function of the model's arguments that returns what the encoder reads, ``(time, features)`` or ``(time,
            series, features)``, in place of sites.
        scan, prefix, seed: as for :class:`PseudoObservationGuide`; ``seed`` also draws the first networks.

    Raises:
        ValueError: no scan, or none with latent sites; a discrete site; an encoder that finds nothing to read.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> from numpyro.infer import SVI, TraceMeanField_ELBO
        >>> def counts(y):
        ...     def step(x, y_t):
        ...         x = numpyro.sample("x", dist.Normal(0.9 * x, 0.5))
        ...         numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=y_t)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> y = jnp.array([2, 0, 1, 4, 5])
        >>> guide = PathGuide(counts, encoder="conv", width=8)
        >>> svi = SVI(counts, guide, numpyro.optim.Adam(0.01), TraceMeanField_ELBO())
        >>> run = svi.run(jax.random.key(0), 100, y, progress_bar=False)
        >>> guide.sample_posterior(jax.random.key(1), run.params, y, sample_shape=(50,))["x"].shape
        (50, 5)

        The same network reads another series, of another length:

        >>> longer = jnp.array([1, 3, 2, 0, 0, 1, 1])
        >>> guide.sample_posterior(jax.random.key(2), run.params, longer)["x"].shape
        (7,)
    """

    mean_field = True

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        encoder: Any = None,
        control: str = "network",
        scale: str = "free",
        width: int = 64,
        depth: int = 1,
        context_size: int = 32,
        sites: tuple[str, ...] | None = None,
        data: Callable[..., Any] | None = None,
        scan: str | int | None = None,
        prefix: str = "guide",
        seed: int = 0,
    ):
        for name, value, known in (
            ("control", control, ("network", "linear")),
            ("scale", scale, ("free", "unit")),
        ):
            if value not in known:
                raise ValueError(f"`{name}` of PathGuide is {known[0]!r} or {known[1]!r}, not {value!r}.")
        super().__init__(
            model,
            scan=scan,
            prefix=prefix,
            width=width,
            context_size=context_size,
            sites=sites,
            data=data,
            seed=seed,
        )
        whole_number(depth, "depth")
        self._encoder, self._control, self._scale, self._depth = encoder, control, scale, depth
        if encoder is not None:
            build_encoder(encoder, 1, 1, 1, jax.random.key(0))

    def _make_plan(self, args, kwargs, trained) -> Plan:
        system, params, start = self._first_look(args, kwargs, trained)
        values = {n: v for n, (v, _) in params.items()}
        vector = start.get("loc", jnp.zeros(0))
        noise = system.num_noise + sum(p.size for p in system.unconstrained.values())
        systems, states, initial = system.num_systems, system.num_states, system.num_initial
        nothing = jnp.zeros((systems, initial))
        own = {n[len(self.prefix) + 1 :]: v for n, v in trained.items() if n.startswith(f"{self.prefix}_")}
        if "state_mean" in own:
            start |= {n: own[n] for n in ("state_mean", "state_log_sd")}
        else:

            @jax.jit
            def simulate(keys):
                call, _ = system.start(args, kwargs, vector, nothing, values)
                return jax.vmap(lambda key: system.simulate(call, key))(keys)

            with compiled_once():
                visited = np.asarray(simulate(jax.random.split(jax.random.key(self.seed), 16)), float)
            visited = np.where(np.isfinite(visited), visited, np.nan)
            sd = np.nanstd(visited, (0, 1, 2))
            start["state_mean"] = jnp.asarray(np.nanmean(visited, (0, 1, 2)))
            start["state_log_sd"] = jnp.asarray(np.log(np.where(sd > 1e-6, sd, 1.0)))
        context = self._context_size
        outputs = noise * (1 if self._scale == "unit" else 2)
        linear = noise * states + outputs
        keys = jax.random.split(jax.random.key(self.seed), 4)
        extra: dict[str, Any] = {"noise": noise}
        shape = system.length, systems
        if self._encoder is not None:
            call, _ = system.start(args, kwargs, vector, nothing, values)
            features = np.asarray(self._features(system, args, kwargs, call), float)
            start |= standard(features, trained, self.prefix)
            extra["encoder"] = build_encoder(self._encoder, features.shape[-1], context, self._width, keys[0])
            seen = jax.ShapeDtypeStruct((len(features), features.shape[-1]), jnp.result_type(float))
            found = jax.eval_shape(extra["encoder"], seen)
            if len(found.shape) != 2 or found.shape[0] != system.length:
                raise ValueError(
                    f"The encoder makes shape {found.shape} of {system.length} steps: it must be (time, context)."
                )
            context = found.shape[1]
            if self._control == "linear":
                extra["coefficients"] = ControlNetwork(context, linear, 1, 0, keys[1])
            if initial:
                extra["initial"] = ControlNetwork(context, 2 * initial, 1, 0, keys[3])
        else:
            if self._control == "linear":
                start["series_coefficients"] = jnp.zeros((*shape, linear))
            else:
                start["series_context"] = 0.1 * jax.random.normal(keys[0], (*shape, context))
            if initial:
                start["series_initial"] = jnp.zeros((systems, 2 * initial))
        if self._control == "network":
            extra["control"] = ControlNetwork(context + states, outputs, self._width, self._depth, keys[2])
        return Plan(system, params, start, extra)

    def _steer(self, plan, args, kwargs, start):
        system = plan.system
        context, taken = None, {}
        if self._encoder is not None or system.structure.subsampled:
            call, taken = start(jnp.zeros((system.num_systems, system.num_initial)))
        if self._encoder is not None:
            features = standardised(self, plan, self._features(system, args, kwargs, call))
            context = jax.vmap(self._network(plan, "encoder"), 1, 1)(features)
        if self._control == "linear":
            if context is None:
                steering = self._own(plan, "series_coefficients")
            else:
                steering = jax.vmap(jax.vmap(self._network(plan, "coefficients")))(context)
        else:
            steering = self._own(plan, "series_context") if context is None else context
        first = None
        if system.num_initial:
            if context is None:
                first = self._own(plan, "series_initial")
            else:
                first = jax.vmap(self._network(plan, "initial"))(context[0])

        def initial(name, fn):
            mean, log_sd = jnp.split(first, 2, -1)
            own = system.slices(system.initial_sites)[name]
            return _independent(fn, system.initial_sites[name], mean, log_sd, own)

        network = self._network(plan, "control") if self._control == "network" else None
        scaling = self._own(plan, "state_mean"), self._own(plan, "state_log_sd")
        return (steering, (network, scaling)), initial, taken

    def _laws_of_step(self, plan, steering, always, carry):
        system, count = plan.system, plan.extra["noise"]
        network, (middle, log_sd) = always
        places = self._places(system)
        slices = PathSystem.slices(places)
        state = (system.pack_state(carry) - middle) * jnp.exp(-log_sd)
        if network is None:
            split = count * state.shape[-1]
            gain = steering[..., :split].reshape((*steering.shape[:-1], count, state.shape[-1]))
            out = steering[..., split:]
            mean = out[..., :count] + (gain @ state[..., None])[..., 0]
        else:
            out = jax.vmap(network)(jnp.concatenate([steering, state], -1))
            mean = out[..., :count]
        spread = jnp.zeros_like(mean) if self._scale == "unit" else out[..., count:]

        def law(name, fn):
            if name not in places:
                return None
            return _independent(fn, places[name], mean, spread, slices[name])

        return law, None


def _independent(fn: Any, where: Placed, mean: Array, log_sd: Array, own: slice) -> Any:
    """A law of a site whose noise, or unconstrained value, is normal entry by entry."""
    mean, sd = mean[..., own], jnp.exp(jnp.clip(log_sd[..., own], -12.0, 12.0))
    law = normal_law.of(fn)
    if law is None:
        transform = biject_to(fn.support)
        base = dist.Normal(where.unpack(mean), where.unpack(sd))
        made = NormalThrough(base, transform)
        return made.to_event(fn.event_dim - made.event_dim) if fn.event_dim > made.event_dim else made
    if law.triangular:
        return JointNormal(law, mean, sd, where, fn.event_dim)
    return dist.Normal(law.value(where.unpack(mean)), law.scale * where.unpack(sd)).to_event(fn.event_dim)
