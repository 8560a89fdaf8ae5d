"""Self-repellent random walk over the discrete sites of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random
from numpyro import handlers
from numpyro.infer.gibbs import prototype_trace
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import log_density
from numpyro.util import is_prng_key

from sojourn._contract import Site, check_function, trace_model
from sojourn.inference._check_model import check_takes_all, latent_sites
from sojourn.ops import self_repellent as ops

__all__ = ["SelfRepellentState", "SelfRepellentWalk"]


class SelfRepellentState(NamedTuple):
    """State of :class:`SelfRepellentWalk`. ``S`` is the number of joint states."""

    z: dict[str, Array]
    """Values of the discrete sites."""
    potential_energy: Array
    """Minus the log joint density of the model at ``z``."""
    log_weight: Array
    """Log-weight of this draw in averages; 0 for all of them if ``step_exponent`` is 1."""
    node: Array
    """The number of the joint state at which the walk is."""
    visits: Array
    """``(S,)``: the empirical measure."""
    log_mass: Array
    """``(S,)``: log joint density of the model at each joint state."""
    i: Array
    """Draws since the start, or since the end of warm-up."""
    warmup_left: Array
    """Draws of warm-up to come."""
    rng_key: Array


class SelfRepellentWalk(MCMCKernel):
    r"""Self-repellent random walk (Doshi, Hu and Eun 2023, *ICML*, arXiv:2305.05097) over all sites of a discrete model.

    The joint values of the sites are the nodes of a graph, on which a Metropolis chain ``P`` for the posterior
    ``mu`` would step from neighbour to neighbour. The walk favours those that it has visited too little so far:
    ``K_ij[x]`` is proportional to ``P_ij (x_j / mu_j)^(-alpha)``, with ``x`` the empirical measure of its visits. The
    averages of a function converge to its posterior mean, with a variance that falls as ``1 / alpha``; see
    :func:`sojourn.ops.self_repellent.asymptotic_variance`.

    **What it is for.** Averages over whole walks. The law by which the walk moves changes with its history, so
    single draws do not have the law ``mu``, R-hat and effective sample sizes do not apply, and it is no block of a
    Gibbs sampler. The error of an average comes from several chains: their standard deviation over the root of
    their number. Batches within one chain make up for each other, so their spread shows little of the gain. The
    average has a transient of order ``1 / num_samples``, which for a large ``alpha`` outlasts its noise: 5 is enough
    for most. All joint states are enumerated, so ``mu`` could be summed too: this is a method to study, or to build
    on.

    **Warm-up** visits are not those of the draws kept, which on their own make up ``x``. The measure that they leave
    is the one from which the draws set out, with the weight of a single draw, in place of the uniform one.
    ``num_warmup=0`` is fine; a thinned chain is not, since the visits left out are part of what repels.

    **Weights.** With ``step_exponent=1`` all draws count alike: ``x`` is their share of visits, but for the one count
    of the start. With less, ``x`` forgets, and ``log_weight`` has the weights with which the draws make up ``x``
    (``gamma_n / prod_{k <= n} (1 - gamma_k)``, not normalised). Plain averages vary less: a measure that follows
    faster leaves them a variance of order ``1 / alpha**2``, at the price of a longer transient
    (:func:`sojourn.ops.self_repellent.approximation_variance`).

    Args:
        model: a NumPyro model whose latent sites are all discrete, with finite supports that do not depend on each
            other; in plates and scans too. The walk changes one entry of one site at a time.
        alpha: strength of the repulsion; 0 is the Metropolis chain itself.
        step_exponent: ``a`` of the steps ``gamma_n = (n + 1)^(-a)`` of the empirical measure, in (0.5, 1].
        adjacency: ``(S, S)``, symmetric and connected, instead: which joint states are neighbours, and with
            which weights they are proposed. Joint states are in the order of ``itertools.product`` over the entries
            of the sites, as the model comes to them: the last entry varies fastest.
        max_states: refuse a model with more joint states.

    Raises:
        ValueError: an option out of range; at ``init``: no latent site, one that is continuous or infinite, a
            subsample, too many joint states, states that the neighbourhood does not join, no state of positive mass.

    Example:
        >>> from functools import partial
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def switches(y):
        ...     with numpyro.plate("switch", len(y)):
        ...         on = numpyro.sample("on", dist.Bernoulli(0.3))
        ...         numpyro.sample("y", dist.Normal(on, 1.0), obs=y)
        >>> fit = sj.fit(switches, jnp.array([0.2, 1.4, 0.9]), engine=partial(SelfRepellentWalk, alpha=5.0),
        ...              num_warmup=0, num_samples=2000, num_chains=4, progress_bar=False)
        >>> chains = fit.posterior["on"].mean("draw")
        >>> error = chains.std("chain", ddof=1) / 2  # of the mean of 4 chains
        >>> bool((error < 0.01).all()), fit.sample_stats["log_weight"].dims
        (True, ('chain', 'draw'))
    """

    ergodic_averages_only = True
    sample_field = "z"
    stat_fields = ("potential_energy", "log_weight")

    def __init__(
        self,
        model: Callable[..., Any],
        alpha: float = 5.0,
        *,
        step_exponent: float = 1.0,
        adjacency: Any = None,
        max_states: int = 4096,
    ):
        check_function(model)
        self._alpha, self._step_exponent = ops.check_repulsion(alpha, step_exponent)
        if not isinstance(max_states, int) or isinstance(max_states, bool) or max_states < 2:
            raise ValueError(f"`max_states` must be a whole number of at least 2, not {max_states!r}.")
        self._given = None if adjacency is None else ops.graph_from_adjacency(adjacency)
        self._model = model
        self._max_states = max_states
        self._sample_fn: Callable[..., Any] | None = None
        self._postprocess_fn = None
        self._graph: ops.Graph | ops.ProductGraph
        self._values: dict[str, np.ndarray]
        self._has_deterministic = False

    @property
    def model(self) -> Callable[..., Any]:
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        return (self.sample_field, "log_weight")

    # ------------------------------------------------------------------------------------------- set up
    def init(self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None):
        kwargs = dict(model_kwargs or {})
        self._read_model(model_args, kwargs)
        log_mass = self._log_mass(model_args, kwargs)

        def start(key, given):
            key, key_node = random.split(key)
            node = self._node_of(given) if given else random.categorical(key_node, log_mass)
            alive = jnp.isfinite(log_mass)
            return SelfRepellentState(
                z=self._at(node),
                potential_energy=-log_mass[node],
                log_weight=jnp.zeros_like(log_mass[0]),
                node=node,
                visits=jnp.where(alive, 1.0 / alive.sum(), 0.0).astype(log_mass.dtype),
                log_mass=log_mass,
                i=jnp.array(0),
                warmup_left=jnp.array(num_warmup),
                rng_key=key,
            )

        batched = not is_prng_key(rng_key)
        self._sample_fn = jax.vmap(self._next) if batched else self._next
        given = {n: jnp.asarray(v) for n, v in (init_params or {}).items()}
        self._check_start(given, log_mass, batched)
        return jax.jit(jax.vmap(start) if batched else start)(rng_key, given)

    def sample(self, state, model_args, model_kwargs):
        assert self._sample_fn is not None, "`init` must be called before `sample`."
        return self._sample_fn(state)

    def _read_model(self, args, kwargs):
        """Joint states and their graph: what is the same for any data of the same shape, as NumPy arrays."""
        trace = prototype_trace(self._model, random.key(0), args, kwargs)
        self._has_deterministic = any(s["type"] == "deterministic" for s in trace.values())
        check_takes_all(trace, "SelfRepellentWalk", otherwise="")
        sites = latent_sites(trace)
        if not sites:
            raise ValueError("The model has no latent site: SelfRepellentWalk has nothing to walk over.")
        supports = {name: _support(name, site) for name, site in sites.items()}
        if len(sites) > 1:
            again = prototype_trace(self._model, random.key(1), args, kwargs)
            for name, support in supports.items():
                if not np.array_equal(support, _support(name, again[name])):
                    raise ValueError(
                        f"The support of site '{name}' depends on another site, and SelfRepellentWalk needs fixed "
                        "ones: use a Categorical law on the largest, with zeros in it."
                    )
        shapes = {name: np.shape(site["value"]) for name, site in sites.items()}
        entries = [len(supports[n]) for n in sites for _ in range(math.prod(shapes[n]))]
        count = math.prod(entries)
        if count > self._max_states:
            sizes = ", ".join(
                f"'{n}' {len(v)}" + (f"^{math.prod(shapes[n])}" if shapes[n] else "")
                for n, v in supports.items()
            )
            number = f"{count:,}" if count < 10**12 else f"10^{len(str(count)) - 1}"
            raise ValueError(
                f"The sites have {number} joint states ({sizes}), and SelfRepellentWalk enumerates at most "
                f"{self._max_states:,}: raise `max_states` if the memory allows it, or sample them with NumPyro's "
                "DiscreteGibbs."
            )
        if count == 1:
            raise ValueError(
                f"The sites {', '.join(map(repr, sites))} can take no other value: nothing to sample."
            )
        if self._given is None:
            self._graph = ops.product_graph(entries)
        elif len(self._given.to) != count:
            raise ValueError(
                f"`adjacency` is of {len(self._given.to)} states where the sites {', '.join(map(repr, sites))} "
                f"have {count} joint ones."
            )
        else:
            self._graph = self._given
        digits = np.stack(np.unravel_index(np.arange(count), entries), 1)
        self._values, done = {}, 0
        for name in sites:
            size = math.prod(shapes[name])
            values = supports[name][digits[:, done : done + size]]
            self._values[name] = values.reshape(count, *shapes[name])
            done += size

    def _log_mass(self, args, kwargs) -> Array:
        model = handlers.seed(self._model, random.key(0))
        log_joint = jax.vmap(lambda values: log_density(model, args, kwargs, values)[0])
        log_mass = jax.jit(log_joint)({n: jnp.asarray(v) for n, v in self._values.items()})
        if isinstance(log_mass, jax.core.Tracer):  # under pmap nothing can be looked at
            return log_mass
        mass = np.asarray(log_mass)
        sound = ~np.isnan(mass) & (mass < np.inf)
        if not sound.all():
            raise ValueError(f"The joint density of the model is {mass[~sound][0]} at {self._show(~sound)}.")
        alive = np.isfinite(mass)
        if not alive.any():
            raise ValueError(
                "None of the joint states of the sites has a positive density: look at the data."
            )
        if not alive.all():
            pieces = ops.count_pieces(self._graph, alive)
            if pieces > 1:
                raise ValueError(
                    f"The {alive.sum()} joint states of positive density fall into {pieces} groups that no step from "
                    "neighbour to neighbour joins: give an `adjacency` that does."
                )
        return log_mass

    def _check_start(self, given: Mapping[str, Array], log_mass: Array, batched: bool) -> None:
        if not given:
            return
        if set(given) != set(self._values):
            raise ValueError(
                f"`init_params` must have the sites {sorted(self._values)}, and has {sorted(given)}."
            )
        if any(isinstance(v, jax.core.Tracer) for v in (*given.values(), log_mass)):
            return
        node = np.asarray((jax.vmap(self._node_of) if batched else self._node_of)(given))
        there = {n: jnp.asarray(v)[node] for n, v in self._values.items()}
        right = all(np.array_equal(given[n], there[n]) for n in there)
        if not right or not np.isfinite(np.asarray(log_mass)[node]).all():
            raise ValueError("`init_params` is not among the joint states of positive density.")

    def _node_of(self, given: Mapping[str, Array]) -> Array:
        same = [
            jnp.all(jnp.asarray(v) == given[n], axis=tuple(range(1, v.ndim))) for n, v in self._values.items()
        ]
        return jnp.argmax(jnp.stack(same).all(0))

    def _at(self, node: Array) -> dict[str, Array]:
        return {n: jnp.asarray(v)[node] for n, v in self._values.items()}

    def _show(self, which: np.ndarray) -> str:
        first = int(np.argmax(which))
        return ", ".join(f"{n} = {v[first].tolist()}" for n, v in self._values.items())

    # ----------------------------------------------------------------------------------------- one step
    def _next(self, state: SelfRepellentState) -> SelfRepellentState:
        key, key_move = random.split(state.rng_key)
        node = ops.next_state(key_move, self._graph, state.log_mass, state.visits, state.node, self._alpha)
        dtype = state.visits.dtype
        i = state.i + 1
        gamma = ops.step_size(i.astype(dtype), self._step_exponent)
        visits = ops.update_visits(state.visits, node, gamma)
        # Weights are up to a factor: the first draw has gamma_1 / (1 - gamma_1), the next ones relative to it.
        if self._step_exponent == 1:
            log_weight = jnp.zeros_like(state.log_weight)
        else:
            before = jnp.where(
                i > 1, state.log_weight - jnp.log(ops.step_size(i - 1.0, self._step_exponent)), 0.0
            )
            log_weight = (before + jnp.log(gamma) - jnp.log1p(-gamma)).astype(dtype)
        return state._replace(
            z=self._at(node),
            potential_energy=-state.log_mass[node],
            log_weight=log_weight,
            node=node,
            visits=visits,
            i=jnp.where(state.warmup_left == 1, 0, i),
            warmup_left=jnp.maximum(state.warmup_left - 1, 0),
            rng_key=key,
        )

    # ------------------------------------------------------------------------------------------ reports
    def postprocess_fn(self, args, kwargs):
        kwargs = dict(kwargs or {})

        def add_deterministic(z):
            if not self._has_deterministic:
                return z
            trace = trace_model(self._model, args, kwargs, key=random.key(0), values=z)
            return {**z, **{n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}}

        return add_deterministic

    def refresh(self, state, model_args, model_kwargs):
        raise ValueError(_NO_BLOCK)

    def wrap_model(self, wrapper):
        raise ValueError(_NO_BLOCK)

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None}


_NO_BLOCK = (
    "SelfRepellentWalk cannot be a block of Gibbs: its transition law depends on where it has been, so it has no fixed "
    "kernel that would leave a conditional law as it is, and that law changes with every sweep while its visits are "
    "those of the laws before; it is for ergodic averages of a model by itself. Use numpyro.infer.DiscreteGibbs."
)


def _support(name: str, site: Site) -> np.ndarray:
    """Values of one entry of a site, ``(K,)``."""
    fn = site["fn"]
    if not fn.support.is_discrete:
        raise ValueError(
            f"Site '{name}' is continuous, and SelfRepellentWalk walks over finitely many values: observe it, integrate "
            "it out, or sample the model with NUTS in numpyro.infer.Gibbs beside DiscreteGibbs."
        )
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    law = type(fn).__name__
    if not fn.has_enumerate_support or fn.event_shape:
        raise ValueError(
            f"Site '{name}' has a law, {law}, without a finite support that can be enumerated: truncate it, to a "
            "Categorical law, say."
        )
    try:
        # Under pmap everything would be traced, constants too.
        with jax.ensure_compile_time_eval():
            support = np.asarray(fn.enumerate_support(expand=False))
    except (NotImplementedError, jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        support = None
    if support is None or support.size != len(support):
        raise ValueError(
            f"The entries of site '{name}' differ in their supports, or these depend on what is sampled: use a law with "
            f"one fixed support, such as a Categorical with zeros in it, in place of {law}."
        )
    return support.reshape(-1)
