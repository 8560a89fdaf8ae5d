"""``diagnose_model``: what to know of a model before a long run."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.util import potential_energy

from sojourn._arguments import whole_number
from sojourn._contract import (
    Site,
    is_path_form,
    marginal_form,
    observed_sites,
    pointwise_ndim,
    series_law,
    trace_model,
)
from sojourn.inference import _labels as labels
from sojourn.inference._auto import choose_engine
from sojourn.inference._blocked_gibbs import BlockedGibbs, _path_sites, _PathBlock
from sojourn.inference._check_gradient import check_model_gradient
from sojourn.inference._check_model import (
    check_data,
    check_gradient_engine,
    check_latents,
    check_takes_all,
    latent_sites,
    subsampled,
)
from sojourn.inference._explain import explain_not_finite, law_of, support_words
from sojourn.inference._fit import ENGINES, is_gradient_kernel
from sojourn.inference._gradient_kernel import GradientKernel
from sojourn.inference._initial import compiled_once
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._model_diagnosis import CHAINS, DRAWS, ModelDiagnosis, SiteDescription
from sojourn.inference._particle_gibbs import ParticleGibbs
from sojourn.inference._particle_marginal import ParticleMarginal
from sojourn.inference._predictive import _MOST, missing_entries, site_log_prob
from sojourn.inference._read import refuse_deferred
from sojourn.inference._scan import prepared, run_prefix
from sojourn.inference._score import read_parametric
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._stochastic_gradient import StochasticGradientLangevin
from sojourn.inference._structure import _outline, analyze
from sojourn.inference._unconstrained import unconstrained_size
from sojourn.inference._variational import Variational
from sojourn.inference._whole_data import whole_data

__all__ = ["ModelDiagnosis", "SiteDescription", "diagnose_model"]

Model = Callable[..., Any]

_TIMINGS = 20  # gradients after the first, at least, of which the median is taken
_PACKAGE = Path(__file__).resolve().parents[1]


def diagnose_model(
    model: Model, *args: Any, num_draws: int = 100, seed: int = 0, **kwargs: Any
) -> ModelDiagnosis:
    """Look a model over before a long run: what is in it, what is wrong, what it will cost, who can fit it.

    The model and the data are taken as :func:`sojourn.fit` takes them, and asked what it asks; the log density and its
    gradient are evaluated at draws from the prior. Nothing is fitted. One gradient is compiled, which takes most of
    the time.

    Args:
        model: any function with NumPyro primitives.
        *args, **kwargs: its arguments, the data first.
        num_draws: draws from the prior at which the log density and its gradient are evaluated. Where only some plate
            takes a subsample, each with another subsample.
        seed: of these draws.

    Returns:
        A :class:`ModelDiagnosis`: the sites; the sizes; whether the density is finite, and of what first it is not;
        seconds and bytes; for each engine whether it applies, or why not; ``problems``, sentences on what a fit
        would stop at, and ``ok``, whether there are none.

    Raises:
        TypeError: the model is no function.
        ValueError: ``num_draws`` is no whole number of at least 1.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
        ...     with numpyro.plate("toss", len(tosses)):
        ...         numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> found = diagnose_model(coin, jnp.array([1, 0, 1, 1]))
        >>> print(found)
        coin: no problem found.
        site    kind      law             shape  dims  support          dtype
        p       latent    Uniform         ()           interval [0, 1]  float32
        tosses  observed  BernoulliProbs  (4,)   toss  boolean          int32
        1 latent number; 4 observations.
        Finite log density and gradient at 100 of 100 draws from the prior.
        One gradient: ... ms, ... s to compile, ... of temporary buffers.
        4 chains of 1000 draws: 16 kB (p 16 kB); log_likelihood 64 kB; posterior_predictive 64 kB.
        Engines that apply: nuts, svi, map, langevin, underdamped_langevin.
          particle_gibbs, particle_marginal, score_ascent: The model has no scan: ...
          blocked_gibbs: BlockedGibbs samples the path: call the model with path=True.
          mclmc, adjusted_mclmc: ... needs two or more latent numbers; ...
          stochastic_gradient: The model has no subsampling plate around an observed site: ...
        engine='auto' takes NUTS: with 1 latent number every sampler is quick, ...
        >>> found.ok, found.engines["mclmc"]
        (True, 'MCLMC moves along a sphere ...')
    """
    if not isinstance(num_draws, int | np.integer) or isinstance(num_draws, bool) or num_draws < 1:
        raise ValueError(f"`num_draws` must be a whole number of at least 1, not {num_draws!r}.")
    whole_number(seed, "seed", None)
    named = getattr(model, "func", model)
    name = getattr(named, "__name__", type(named).__name__)
    look = _Look(
        prepared(model),
        tuple(labels.bare(a) for a in args),
        {n: labels.bare(v) for n, v in kwargs.items()},
        jax.random.key(seed),
    )
    with _noted(look.remarks):
        found = look.at(int(num_draws))
    return ModelDiagnosis(name, problems=tuple(look.problems), remarks=tuple(look.remarks), **found)


class _Cost(NamedTuple):
    compile_seconds: float
    milliseconds: float
    temporary_bytes: int | None


class _Look:
    """One look at a model; what is found on the way is kept, and what is wrong noted."""

    def __init__(self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], key: Array):
        self.given, self.args, self.kwargs, self.key = model, args, kwargs, key
        self.problems: list[str] = []
        self.remarks: list[str] = []

    def at(self, num_draws: int) -> dict[str, Any]:
        try:
            outline = _outline(self.given, self.args, self.kwargs)
            scan_lengths = tuple(self._length(index) for index in range(outline.scans))
            summed_out = marginalizable(self.given, self.args, self.kwargs)
            sites = self._sites(summed_out)
        except Exception as error:  # whatever a user's model may raise
            self.problems.append(_sentence(error))
            return {}
        found: dict[str, Any] = {"sites": sites, "scan_lengths": scan_lengths}
        # As `fit` prepares a model for an engine that follows gradients.
        self.model, self.unsummable = self.given, None
        if summed_out:
            summed = marginalize(self.given)
            try:
                self._abstract(summed, self.kwargs)
                self.model = summed
                quoted = ", ".join(f"'{n}'" for n in summed_out)
                self.remarks.append(f"Engines that follow gradients get {quoted} summed out.")
            except Exception as error:
                self.unsummable = _sentence(error)
        try:
            with compiled_once():
                self.trace = trace_model(self.model, self.args, self.kwargs, key=self.key)
                self.first_trace, self.whole = self.trace, self.model
                if subsampled(self.trace):
                    self.whole = whole_data(self.model)
                    self.trace = trace_model(self.whole, self.args, self.kwargs, key=self.key)
                marginal = self.trace
                if is_path_form(self.given, self.kwargs):
                    kwargs = marginal_form(self.given, self.kwargs)
                    marginal = trace_model(self.whole, self.args, kwargs, key=self.key)
        except Exception as error:
            self.problems.append(_sentence(error))
            return found
        with compiled_once():
            self._ask(check_latents, self.trace)
            self._ask(check_data, self.trace)
        if any(site["type"] == "param" for site in self.trace.values()):
            name = next(n for n, site in self.trace.items() if site["type"] == "param")
            self.remarks.append(
                f"'{name}' is a numpyro.param: svi and score_ascent learn it, under any other engine it stays at its "
                "first value."
            )
        latent = latent_sites(self.trace)
        discrete = [n for n, site in latent.items() if site["fn"].support.is_discrete]
        found["num_latent"] = sum(unconstrained_size(s) for n, s in latent.items() if n not in discrete)
        found["num_discrete"] = sum(np.size(latent[n]["value"]) for n in discrete)
        refusal = self._gradient_refusal() if latent else None
        parts = [lambda: _observations(marginal), lambda: self._memory(marginal)]
        if latent:
            parts.append(lambda: self._density(num_draws, not discrete and refusal is None))
        for part in parts:
            try:
                found |= part()
            except Exception as error:
                self.problems.append(_sentence(error))
        found["engines"], found["auto"] = self._engines(refusal) if latent else ({}, None)
        if found["engines"] and not any(reason is None for reason in found["engines"].values()):
            self.problems.append("No engine applies: see `engines` for the reasons.")
        return found

    # ------------------------------------------------------------------------------------------- sites
    def _abstract(self, model: Model, kwargs: Mapping[str, Any]) -> dict[str, Site]:
        """A trace without arrays; nothing is compiled."""
        known: dict[str, Site] = {}

        def look(key):
            known.update(trace_model(model, self.args, kwargs, key=key))

        jax.eval_shape(look, self.key)
        return known

    def _length(self, index: int) -> int:
        found = []

        def look(key):
            found.append(run_prefix(self.given, self.args, self.kwargs, index=index, key=key)[0].length)

        jax.eval_shape(look, self.key)
        return found[0]

    def _sites(self, summed_out: tuple[str, ...]) -> tuple[SiteDescription, ...]:
        trace = {
            n: s
            for n, s in self._abstract(self.given, self.kwargs).items()
            if s["type"] in ("sample", "deterministic", "param")
        }
        # The value of a `param` may be a tree, such as a network.
        arrays = {n: s["value"] for n, s in trace.items() if jax.tree_util.all_leaves([s["value"]])}
        shapes = {n: np.shape(value) for n, value in arrays.items()}
        dims = labels.Labels(shapes, trace).dims
        described = []
        for name, site in trace.items():
            law, support, kind = "", "", site["type"]
            if kind == "sample":
                kind = "observed" if site["is_observed"] else "latent"
                law = type(law_of(site["fn"])).__name__
                support = support_words(site["fn"].support)
            elif kind == "param":
                constraint = site["kwargs"].get("constraint")
                support = "" if constraint is None else support_words(constraint)
            told = tuple("" if d.startswith(f"{name}_dim_") else d for d in dims.get(name, ()))
            dtype = (
                str(jax.dtypes.canonicalize_dtype(jnp.result_type(site["value"]))) if name in dims else "tree"
            )
            described.append(
                SiteDescription(
                    name, kind, law, shapes.get(name, ()), support, told, dtype, name in summed_out
                )
            )
        return tuple(described)

    def _memory(self, marginal: Mapping[str, Site]) -> dict[str, Any]:
        """Bytes of what a fit keeps."""
        draws = CHAINS * DRAWS
        kept = latent_sites(self.trace)
        kept |= {n: s for n, s in self.trace.items() if s["type"] == "deterministic"}
        posterior = {n: draws * _size(s["value"]) for n, s in kept.items()}
        posterior = dict(sorted(posterior.items(), key=lambda item: -item[1]))

        def terms(site: Site) -> Any:
            law = series_law(site, "predictive_log_prob")
            return site_log_prob(site) if law is None else law.predictive_log_prob(site["value"])

        observed = observed_sites(marginal)
        shapes = {n: jax.eval_shape(lambda s=s: terms(s)) for n, s in observed.items()}
        pointwise = {
            "log_likelihood": draws * sum(_size(x) for x in shapes.values()),
            "posterior_predictive": draws * sum(_size(s["value"]) for s in observed.values()),
        }
        most = draws * max(
            sum(x.size for x in shapes.values()), sum(np.size(s["value"]) for s in observed.values())
        )
        if most > _MOST:
            self.remarks.append(
                f"log_likelihood and posterior_predictive of {CHAINS} x {DRAWS} draws would hold up to {most:.1e} "
                f"numbers, and a fit leaves them out beyond {_MOST:.0e}: draw fewer samples to have them."
            )
        return {"posterior_bytes": posterior, "pointwise_bytes": pointwise if observed else {}}

    # ----------------------------------------------------------------------------------------- density
    def _density(self, num_draws: int, has_gradient: bool) -> dict[str, Any]:
        """Log density and gradient at draws from the prior, and what one costs."""
        keys = jax.random.split(self.key, num_draws)
        latent = latent_sites(self.trace)
        smooth = [n for n, s in latent.items() if not s["fn"].support.is_discrete]

        def draw(key):
            sites = trace_model(self.model, self.args, self.kwargs, key=key)
            values = {n: jnp.asarray(sites[n]["value"]) for n in latent}
            return values, {n: biject_to(sites[n]["fn"].support).inv(values[n]) for n in smooth}

        with compiled_once():
            values, positions = jax.jit(lambda keys: jax.lax.map(draw, keys))(keys)
        fixed = {n: v for n, v in values.items() if n not in smooth}

        def density(z, fixed, key):
            # A seed further in has the first word: each draw has its own subsample.
            seeded = handlers.substitute(handlers.seed(self.model, key), data=fixed)
            return -potential_energy(seeded, self.args, self.kwargs, z)

        def evaluate(i, positions, fixed, keys):
            z, fixed, key = jax.tree.map(lambda x: x[i], (positions, fixed, keys))
            if not has_gradient:
                return density(z, fixed, key), jnp.array(True)
            value, slope = jax.value_and_grad(density)(z, fixed, key)
            return value, jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(slope)]).all()

        given = positions, fixed, keys
        started = time.perf_counter()
        program = jax.jit(evaluate).lower(0, *given).compile()
        compile_seconds = time.perf_counter() - started
        results, seconds = [], []
        for i in range(max(num_draws, _TIMINGS + 1)):
            started = time.perf_counter()
            result = jax.block_until_ready(program(i % num_draws, *given))
            seconds.append(time.perf_counter() - started)
            if i < num_draws:
                results.append(result)
        value, sound = (np.asarray(x) for x in zip(*results, strict=True))
        inside = np.ones(num_draws, bool)
        for z in positions.values():
            inside &= np.isfinite(np.asarray(z)).reshape(num_draws, -1).all(1)
        fine = np.isfinite(value) & sound & inside
        if not fine.all():
            self._explain(values, keys, value, sound, inside, has_gradient)
        return {
            "num_draws": num_draws,
            "num_finite": int(fine.sum()),
            "has_gradient": has_gradient,
            **_Cost(compile_seconds, 1e3 * float(np.median(seconds[1:])), _temporary(program))._asdict(),
        }

    def _explain(
        self,
        values: Mapping[str, Any],
        keys: Array,
        value: np.ndarray,
        sound: np.ndarray,
        inside: np.ndarray,
        has_gradient: bool,
    ) -> None:
        """Say what is wrong at the first of the worst draws. A density of zero at some of them is no mistake."""
        total = len(value)
        kinds = {
            "the gradient is not finite": inside & np.isfinite(value) & ~sound,
            "the log density is NaN or infinite": inside & (np.isnan(value) | np.isposinf(value)),
            "the density is zero": inside & np.isneginf(value),
            "a latent number lies on the edge of its support": ~inside,
        }
        for what, where in kinds.items():
            if not where.any():
                continue
            i = int(np.flatnonzero(where)[0])
            at = {n: v[i] for n, v in values.items()}
            reason = explain_not_finite(handlers.seed(self.model, keys[i]), self.args, self.kwargs, at)
            said = f"At {where.sum()} of {total} draws from the prior {what}" + (
                f": {reason}" if reason else "."
            )
            # Data out of support, say, have been reported already.
            harmless = what in list(kinds)[2:] and (where.sum() < total or bool(self.problems))
            (self.remarks if harmless else self.problems).append(said)

    # ----------------------------------------------------------------------------------------- engines
    def _ask(self, check: Callable[..., Any], *args: Any) -> None:
        try:
            check(*args)
        except Exception as error:
            self.problems.append(_sentence(error))

    def _gradient_refusal(self) -> str | None:
        """Why no engine can follow the model's gradient, with ``<engine>`` for its name."""
        if self.unsummable is not None:
            return self.unsummable

        def ask() -> None:
            check_gradient_engine(self.trace, "<engine>")
            check_model_gradient(self.whole, self.args, self.kwargs, self.trace, "<engine>", self.key)

        return _refusal(ask)

    def _engines(self, refusal: str | None) -> tuple[dict[str, str | None], tuple[str, str] | None]:
        auto = None
        engines: dict[str, str | None] = {}
        for name, engine in ENGINES.items():
            with _noted(self.remarks, f"{name}: "):
                if name != "auto":
                    engines[name] = self._engine(name, engine, refusal)
                elif refusal is None and not subsampled(self.first_trace):
                    auto = choose_engine(self.model, self.args, self.kwargs, self.trace)
        return engines, auto

    def _engine(self, name: str, engine: Any, refusal: str | None) -> str | None:
        """Why an engine cannot fit the model, by the checks that it makes itself before it runs."""
        args, kwargs = self.args, self.kwargs
        follower = "variational inference" if isinstance(engine, Variational) else name
        gradient = None if refusal is None else refusal.replace("<engine>", follower)
        if isinstance(engine, ScoreAscent):
            return _refusal(lambda: read_parametric(self.given, args, kwargs, plates=False))
        if not callable(engine):  # svi, map
            return gradient
        kernel = engine(self.model)
        if is_gradient_kernel(kernel):
            if not isinstance(kernel, StochasticGradientLangevin):
                who = type(kernel).__name__ if isinstance(kernel, GradientKernel) else name
                reason = _refusal(lambda: check_takes_all(self.first_trace, who))
                if reason is not None:
                    return reason
            if gradient is not None:
                return gradient
            if isinstance(kernel, StochasticGradientLangevin):
                return _refusal(lambda: kernel._read_model(args, kwargs))
            if isinstance(kernel, GradientKernel):
                size = sum(unconstrained_size(s) for s in latent_sites(self.trace).values())
                return _refusal(lambda: kernel._check(self.trace, size))
            return None
        kernel = engine(self.given)
        if isinstance(kernel, ParticleGibbs):
            return _refusal(lambda: self._ask_particle_gibbs(kernel))
        if isinstance(kernel, ParticleMarginal):
            return _refusal(lambda: kernel._read_model(args, kwargs))
        if isinstance(kernel, BlockedGibbs):
            return _refusal(lambda: self._ask_blocked_gibbs(kernel))
        return None

    def _ask_particle_gibbs(self, kernel: ParticleGibbs) -> None:
        block = kernel._kernels[0]
        whole = analyze(self.given, self.args, self.kwargs, plates=False)
        refuse_deferred(whole)
        kernel._refuse(whole)
        block.adopt(whole)

    def _ask_blocked_gibbs(self, kernel: BlockedGibbs) -> None:
        if not is_path_form(self.given, self.kwargs):
            kernel.init(self.key, 0, None, self.args, self.kwargs)  # which refuses
        trace = self._abstract(self.given, self.kwargs)
        (path,) = _path_sites(trace)
        like = trace[path]["value"]
        parameters = {n: s["value"] for n, s in latent_sites(trace).items() if n != path}
        block = _PathBlock(self.given)

        def draw(key):
            values = jax.tree.map(lambda v: jnp.zeros(jnp.shape(v), jnp.result_type(v)), parameters)
            state = block.init(key, 0, {path: jnp.zeros(like.shape, like.dtype)}, self.args, self.kwargs)
            return block.sample(state, self.args, {**self.kwargs, GIBBS_SITES_KWARG: values})

        jax.eval_shape(draw, self.key)


# ----------------------------------------------------------------------------------------------- helpers


@contextmanager
def _noted(remarks: list[str], prefix: str = "") -> Iterator[None]:
    """What the checks warn of becomes remarks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Out-of-support values")  # which is what is looked for
        yield
    for warning in caught:
        said = prefix + str(warning.message)
        if said not in remarks:
            remarks.append(said)


def _refusal(check: Callable[[], Any]) -> str | None:
    try:
        check()
    except Exception as error:
        return _sentence(error)
    return None


def _sentence(error: Exception) -> str:
    """What an error says; by whom, unless it is one of the package's own sentences."""
    said = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    if said and frames:
        # JAX takes its own frames out of what it raises: the last one left must be the statement that raised.
        ours = Path(frames[-1].filename).resolve().is_relative_to(_PACKAGE)
        if ours and (frames[-1].line or "").startswith("raise"):
            return said[0]
    return f"The model raises {type(error).__name__}: {said[0] if said else 'no message.'}"


def _observations(marginal: Mapping[str, Site]) -> dict[str, int]:
    total = gone = 0
    for site in observed_sites(marginal).values():
        shape = np.shape(site["value"])
        total += int(np.prod(shape[: len(shape) - site["fn"].event_dim + pointwise_ndim(site)], dtype=int))
        missing = None if isinstance(site["value"], jax.core.Tracer) else missing_entries(site)
        gone += 0 if missing is None else int(missing.sum())
    return {"num_observed": total, "num_missing": gone}


def _size(value: Any) -> int:
    """Bytes of an array."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(value))
    return int(np.prod(np.shape(value), dtype=int)) * dtype.itemsize


def _temporary(program: Any) -> int | None:
    try:
        analysis = program.memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)
    except (NotImplementedError, AttributeError, RuntimeError):  # not every backend has it
        return None
