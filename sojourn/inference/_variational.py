"""Variational inference with restarts and a rule for when to stop."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.svi import SVIState
from numpyro.optim import optax_to_numpyro
from tqdm.auto import tqdm

from sojourn._arguments import must_be, numbers
from sojourn._contract import trace_model
from sojourn.inference._auto import choose_guide
from sojourn.inference._checkpoint import Stage, refilled, strong
from sojourn.inference._explain import explain_not_finite
from sojourn.inference._initial import compiled_once, init_to_hint
from sojourn.inference._params import hold_params, read_params
from sojourn.inference._path_guide import PathBound, PathGuideBase
from sojourn.inference._predictive import in_batches, site_log_prob
from sojourn.inference._stop import stop_signals
from sojourn.inference._warm_start import WarmStart, start_guide
from sojourn.inference._whole_data import whole_data

__all__ = ["Variational"]

_PHASES = (1.0, 0.25, 0.0625)  # step size in units of the first
_RESTARTS = 4
_FALLS = 5  # blocks, each worse than the one before, that end a search that has come out below its start
_PATIENCE = 2  # blocks without improvement that end a phase


class _Run(NamedTuple):
    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    attrs: dict[str, Any]
    params: dict[str, Any] = {}  # never changed


class Variational:
    """Settings of the engine ``"svi"``: NumPyro's SVI, several restarts, and a convergence rule.

    **When it stops.** The optimiser (Adam) runs in blocks of ``block_size`` steps at a constant step size. A
    block counts as an improvement if its mean ELBO exceeds the best block so far by more than two standard
    errors of the difference and by more than ``tolerance`` nats. After two blocks without one (in every
    restart) the step size is divided by four; after the third step size the fit has converged. It is cut off
    after ``max_steps``, and then says so. The restart with the best last block is kept.

    **Whether it is right** is another matter: ``sj.check`` reports the PSIS k-hat of the importance ratios
    (Yao, Vehtari, Simpson and Gelman 2018, *ICML*), which are stored for each draw.

    Args:
        guide: an ``AutoGuide`` class (or ``partial`` of one), an ``AutoGuide`` of the same model, a path guide
            (:class:`~sojourn.inference.PseudoObservationGuide`, :class:`~sojourn.inference.PathGuide`, a ``partial`` or
            an instance), or a guide function with the model's arguments. By default a model with a continuous path in
            a ``scan`` gets a path guide (the attribute ``guide_choice`` of the fit says which and why), any other a
            multivariate normal on the unconstrained space, which has d (d + 3) / 2 parameters for d latent values;
            beyond some hundreds pass ``AutoLowRankMultivariateNormal`` or ``AutoNormal``.
        num_restarts: optimisations side by side from different starts; by default 4, and 1 for a path guide, which
            looks for its start. The first begins at the model's hints,
            the others up to 2 away on the unconstrained scale (automatic guides; a guide function starts
            from its own initial values under different random keys). With ``sj.fit(..., warm_start=...)`` the
            first begins there instead, and the others, as they are, guard against a wrong one; one will do where
            that is trusted.
        trained: an earlier fit with this engine. Parameters (of the model and of the guide) start at its values, and
            where the guide is amortised (``PathGuide(encoder=...)``) nothing is optimised: the trained encoder reads
            the new data. What describes one data set only (``guide_series_...``) starts afresh and is optimised with
            all the rest held.
        num_particles: draws of the guide for one estimate of the ELBO.
        step_size: Adam's first step size.
        block_size, max_steps, tolerance: of the rule above.

    Example:
        >>> import sojourn as sj
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from sojourn.models import hidden_markov
        >>> quakes = sj.datasets.earthquakes()["count"]
        >>> fit = sj.fit(hidden_markov.poisson, quakes, num_states=2, num_samples=500, progress_bar=False,
        ...              engine=sj.Variational(guide=AutoNormal, num_restarts=2))
        >>> fit.attrs["converged"], fit.posterior["rate"].shape
        (1, (1, 500, 2))
    """

    def __init__(
        self,
        guide: Any = None,
        *,
        num_restarts: int | None = None,
        num_particles: int = 8,
        step_size: float = 0.02,
        block_size: int = 250,
        max_steps: int = 20_000,
        tolerance: float = 0.01,
        trained: Any = None,
    ):
        for name, value in (
            ("num_restarts", 1 if num_restarts is None else num_restarts),
            ("num_particles", num_particles),
            ("block_size", block_size),
            ("max_steps", max_steps),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` of Variational must be a positive integer, not {value!r}.")
        must_be(
            guide is None or isinstance(guide, str) or callable(guide),
            "guide",
            "an AutoGuide or a function",
            guide,
        )
        if (
            not 0 < numbers(step_size, "step_size") < np.inf
            or not 0 <= numbers(tolerance, "tolerance") < np.inf
        ):
            raise ValueError("`step_size` of Variational must be positive and `tolerance` not negative.")
        self.guide = guide
        self.num_restarts = num_restarts
        self.num_particles = num_particles
        self.step_size = step_size
        self.block_size = block_size
        self.max_steps = max_steps
        self.tolerance = tolerance
        self.trained = trained

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        num_samples: int,
        key: Array,
        progress_bar: bool = True,
        warm_start: WarmStart | None = None,
        stage: Stage | None = None,
    ) -> _Run:
        """Optimise, then draw from the guide. Called by ``sj.fit``."""
        import optax  # half of what `import sojourn` would add to `import numpyro`

        trained = {} if self.trained is None else read_params(self.trained)
        guide, automatic, choice = self._build(model, args, kwargs)
        path_guide = isinstance(guide, PathGuideBase)
        restarts = self.num_restarts or (1 if path_guide or self.trained is not None else _RESTARTS)
        optimiser = optax.inject_hyperparams(optax.adam)(learning_rate=self.step_size)
        key_init, key_shift, key_draw = jax.random.split(key, 3)
        if path_guide:
            guide.setup(*args, **kwargs, trained=trained)
        kept: dict[str, Any] = {}
        held_model, held_guide = (hold_params(f, trained, kept) if trained else f for f in (model, guide))
        step = optax_to_numpyro(optimiser)
        if path_guide:  # the bound is model and guide in one
            bound = hold_params(guide.bound, trained, kept) if trained else guide.bound
            svi = SVI(bound, _nothing, step, PathBound(bound, self.num_particles))
        else:
            svi = SVI(held_model, held_guide, step, Trace_ELBO(num_particles=self.num_particles))
        states = self._start(svi, args, kwargs, key_init, key_shift, path_guide, automatic, restarts)
        if warm_start is not None:
            first = jax.tree.map(lambda x: x[0], svi.optim.get_params(states.optim_state))
            warm = svi.optim.init(start_guide(first, guide, warm_start))
            optim_state = jax.tree.map(lambda all, one: all.at[0].set(one), states.optim_state, warm)
            states = states._replace(optim_state=optim_state)

        @jax.jit
        def block(states: SVIState, size: Array) -> tuple[SVIState, Array]:
            states = _with_step_size(states, jnp.broadcast_to(size, (restarts,)))

            def step(state, _):
                return svi.stable_update(state, *args, **kwargs)

            def many(state):
                return jax.lax.scan(step, state, length=self.block_size)

            if restarts == 1:  # an axis of one costs a quarter of the compilation
                one = many(jax.tree.map(lambda x: x[0], states))
                return jax.tree.map(lambda x: x[None], one)
            return jax.vmap(many)(states)

        partial = False
        if trained and not svi.optim.get_params(states.optim_state):  # nothing that is not known already
            loss = jax.jit(jax.vmap(lambda s: svi.evaluate(s, *args, **kwargs)))(states)
            losses, converged = np.asarray(loss)[:, None], True
        else:
            search = _Search(strong(states), restarts)

            def look(states: SVIState, step: int) -> str | None:
                params = svi.get_params(jax.tree.map(lambda x: x[0], states))
                return self._explained(model, guide, params, args, kwargs, jax.random.fold_in(key_draw, step))

            self._optimise(block, search, progress_bar, stage, look)
            states, losses, converged = search.states, np.concatenate(search.losses, 1), search.converged
            partial = search.partial
        last = losses[:, -self.block_size :].mean(1)
        if not np.isfinite(last).any():
            raise RuntimeError(
                "The ELBO is not finite in any restart: the model's density or its gradient is not finite near "
                "the start. Lower `step_size`, check the priors, or hint a start with infer={'init': value}."
            )
        best = int(np.nanargmin(last))
        params = svi.get_params(jax.tree.map(lambda x: x[best], states))
        settings = params, args, kwargs, num_samples, key_draw
        with compiled_once() if path_guide else contextlib.nullcontext():
            draws, ratios, joint = self._draw(held_model, held_guide, *settings)
        params = {**kept, **params}
        attrs = {
            "converged": int(converged),
            "num_steps": losses.shape[1] if losses.shape[1] > 1 else 0,
            "restart_kept": best,
            "guide": type(guide).__name__ if automatic else getattr(guide, "__name__", "guide"),
        }
        if choice is not None:
            attrs["guide_choice"] = choice
        if partial:
            attrs["partial"] = 1
        if self.trained is not None:
            attrs["trained"] = 1
        return _Run(draws, {"lp": joint, "log_importance_ratio": ratios, "elbo": -losses}, attrs, params)

    # ------------------------------------------------------------------------------------------------ parts

    def _build(self, model: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, bool, str | None]:
        """The guide, whether it is one of NumPyro's automatic ones, and why it was chosen."""
        given, choice = self.guide, None
        if given is None:
            given, choice = choose_guide(model, args, kwargs)
        base = given
        while isinstance(base, functools.partial):
            base = base.func
        if inspect.isclass(base) and issubclass(base, AutoGuide):
            takes_start = "init_loc_fn" in inspect.signature(base).parameters
            start = {"init_loc_fn": init_to_hint()} if takes_start else {}
            settings = given.keywords if isinstance(given, functools.partial) else {}
            return given(model, **{**start, **settings}), True, choice
        if inspect.isclass(base) and issubclass(base, PathGuideBase):
            return given(model), False, choice
        if isinstance(given, AutoGuide):
            return given, True, choice
        if not callable(given):
            raise ValueError(f"`guide` must be an AutoGuide or a function, not {given!r}.")
        return given, False, choice

    def _start(self, svi, args, kwargs, key_init, key_shift, path_guide, automatic, restarts) -> SVIState:
        """States of all restarts, stacked."""
        keys = jax.random.split(key_init, restarts)
        # A path guide knows its start by now: one program, where NumPyro would run model and guide by operations.
        init = svi.init
        if path_guide:
            compiled = jax.jit(lambda key: svi.init(key, *args, **kwargs))

            def init(key, *args, **kwargs):
                with compiled_once():
                    return compiled(key)

        # An automatic guide looks at the model once, outside any transformation, and starts everyone there.
        states = [init(keys[0], *args, **kwargs)]
        for i in range(1, restarts):
            if not automatic:
                states.append(init(keys[i], *args, **kwargs))
                continue
            params = svi.optim.get_params(states[0].optim_state)
            key = jax.random.fold_in(key_shift, i)
            moved = {n: _shift(n, v, jax.random.fold_in(key, j)) for j, (n, v) in enumerate(params.items())}
            states.append(SVIState(svi.optim.init(moved), states[0].mutable_state, keys[i]))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def _optimise(
        self,
        block: Callable[..., Any],
        search: _Search,
        progress_bar: bool,
        stage: Stage | None,
        explained: Callable[[SVIState, int], str | None],
    ) -> None:
        """Blocks of steps until the rule says that it has converged; goes on from the last state on disk."""
        size, total = self.block_size, -(-self.max_steps // self.block_size)
        if stage is not None:
            search.restore(stage)
        with (
            stop_signals(terminate=stage is not None) as stop,
            tqdm(
                total=total * size, initial=search.num_blocks * size, disable=not progress_bar, desc="svi"
            ) as bar,
        ):
            try:
                while search.num_blocks < total and not search.converged and not stop.asked:
                    states, loss = block(search.states, self.step_size * _PHASES[search.phase])
                    search.take(states, np.asarray(loss), self.tolerance)
                    self._refuse(search, explained)
                    if stage is not None and stage.due(search.num_blocks * size):
                        search.save(stage)
                    bar.update(size)
                    bar.set_postfix_str(
                        f"ELBO {-np.nanmin(search.losses[-1].mean(1)):.2f}, step size {search.phase + 1} of {len(_PHASES)}"
                    )
            except KeyboardInterrupt:
                stop.asked = True
        search.partial = stop.asked and not search.converged
        if stage is not None:
            search.save(stage)
            if stop.ended:
                raise SystemExit(
                    f"Asked to end, after {search.num_blocks * size} steps: all is written down."
                )
        if not search.losses:
            raise KeyboardInterrupt

    def _refuse(self, search: _Search, explained: Callable[[SVIState, int], str | None]) -> None:
        """End a search that cannot come right.

        Raises:
            RuntimeError: the ELBO of no restart is finite, or that of all has fallen, block by block, below where it
                began.
        """
        loss, first = search.losses[-1], (search.num_blocks - 1) * self.block_size
        lost = ~np.isfinite(loss)
        if lost.mean(1).min() > 0.5:
            step = first + int(np.argmax(lost.all(0))) + 1
            why = explained(search.states, step) or (
                "the model's density or its gradient is not finite near there. Lower `step_size`, check the priors, or "
                "hint a start with infer={'init': value}."
            )
            raise RuntimeError(f"The ELBO is not finite in any restart, from step {step} on: {why}")
        if search.num_blocks < _FALLS:
            return
        means = np.array([part.mean(1) for part in search.losses[-_FALLS:]])
        start, errors = search.losses[0].mean(1), _standard_error(search.losses[-1])
        falls = (np.diff(means, axis=0) > 0).all(0) & (means[-1] > start + 10 * errors + 10.0)
        if (falls | ~np.isfinite(means[-1])).all():
            raise RuntimeError(
                f"The ELBO has fallen over the last {_FALLS} blocks, to {-np.nanmin(means[-1]):.4g} from "
                f"{-np.nanmin(start):.4g} at the start: the optimiser diverges. Lower `step_size` (now {self.step_size:g}), "
                "or take more `num_particles`."
            )

    def _explained(self, model, guide, params, args, kwargs, key) -> str | None:
        """What is not finite in the model, at a few draws of the guide."""
        for draw in jax.random.split(key, 4):
            try:
                with compiled_once():
                    guided = trace_model(guide, args, kwargs, key=draw, values=params)
                values = {n: s["value"] for n, s in guided.items() if _is_latent(s)}
                said = explain_not_finite(model, args, kwargs, values)
            except Exception:  # an explanation that fails must not hide what it explains
                return None
            if said is not None:
                return said
        return None

    def _draw(self, model, guide, params, args, kwargs, num_samples, key):
        """Draws of the latent and deterministic sites, with log p - log q and log p, of all data at once."""
        model, guide = whole_data(model), whole_data(guide)

        def one(key):
            key_guide, key_model = jax.random.split(key)
            guided = trace_model(guide, args, kwargs, key=key_guide, values=params)
            latents = {n: s["value"] for n, s in guided.items() if _is_latent(s)}
            modelled = trace_model(model, args, kwargs, key=key_model, values={**params, **latents})
            log_q, log_p = _log_density(guided), _log_density(modelled)
            kept = {
                n: s["value"]
                for n, s in modelled.items()
                if s["type"] == "deterministic" or (s["type"] == "sample" and not s["is_observed"])
            }
            return kept, log_p - log_q, log_p

        keys = jax.random.split(key, num_samples)
        return jax.tree.map(lambda x: np.asarray(x)[None], in_batches(one, keys))


class _Search:
    """Where the optimisation stands."""

    def __init__(self, states: SVIState, restarts: int):
        self.states = states
        self.losses: list[np.ndarray] = []
        self.best, self.error = np.full(restarts, np.inf), np.zeros(restarts)
        self.phase = self.idle = 0
        self.converged = self.partial = False

    @property
    def num_blocks(self) -> int:
        return len(self.losses)

    def take(self, states: SVIState, loss: np.ndarray, tolerance: float) -> None:
        """One more block, and what it says of convergence."""
        self.states = states
        self.losses.append(loss)
        mean, se = loss.mean(1), _standard_error(loss)
        gain = self.best - mean
        better = gain > np.maximum(tolerance, 2 * np.hypot(se, self.error))
        # A lucky block must not set the mark too high for later ones: the mark moves only on a real gain.
        self.best, self.error = np.where(better, mean, self.best), np.where(better, se, self.error)
        self.idle = 0 if better.any() else self.idle + 1
        if self.idle >= _PATIENCE and not self.converged:
            self.phase, self.idle = self.phase + 1, 0
            self.converged = self.phase == len(_PHASES)
            self.phase = min(self.phase, len(_PHASES) - 1)

    def save(self, stage: Stage) -> None:
        losses = np.concatenate(self.losses, 1) if self.losses else np.zeros((len(self.best), 0), np.float32)
        meta = {
            "phase": self.phase,
            "idle": self.idle,
            "converged": self.converged,
            "num_blocks": self.num_blocks,
        }
        stage.save(self.num_blocks, meta, [self.states, self.best, self.error, losses])

    def restore(self, stage: Stage) -> None:
        found = stage.restore()
        if found is None:
            return
        meta, leaves = found
        *states, self.best, self.error, losses = leaves
        self.states = refilled(self.states, states)
        self.losses = np.split(losses, meta["num_blocks"], 1) if meta["num_blocks"] else []
        self.phase, self.idle, self.converged = meta["phase"], meta["idle"], meta["converged"]


def _is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site of a guide stands for one of the model."""
    return site["type"] == "sample" and not site["infer"].get("is_auxiliary", False)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """The guide of a model without latent sites."""


def _log_density(trace: Mapping[str, Any]) -> Array:
    terms = [jnp.sum(site_log_prob(s)) for s in trace.values() if s["type"] == "sample"]
    return sum(terms, jnp.zeros(()))


def _standard_error(loss: np.ndarray, batches: int = 10) -> np.ndarray:
    """Of each row's mean, by means of ``batches`` stretches, since consecutive steps are correlated."""
    size = max(loss.shape[1] // batches, 1)
    means = loss[:, : size * (loss.shape[1] // size)].reshape(len(loss), -1, size).mean(-1)
    return means.std(1, ddof=1) / np.sqrt(means.shape[1]) if means.shape[1] > 1 else np.zeros(len(loss))


def _shift(name: str, value: Array, key: Array) -> Array:
    """Another start for the location of an automatic guide; its other parameters stay."""
    if not name.endswith("_loc"):
        return value
    return value + jax.random.uniform(key, jnp.shape(value), jnp.result_type(float), -2.0, 2.0)


def _with_step_size(states: SVIState, size: Array) -> SVIState:
    """NumPyro keeps (count, (params, optax state)); optax keeps the injected step size in that state."""
    count, (params, inner) = states.optim_state
    rates = {**inner.hyperparams, "learning_rate": size.astype(inner.hyperparams["learning_rate"].dtype)}
    return states._replace(optim_state=(count, (params, inner._replace(hyperparams=rates))))
