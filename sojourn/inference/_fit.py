"""The front door: one function fits any NumPyro model with any engine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from importlib.metadata import version
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel

from sojourn._arguments import whole_number
from sojourn._contract import Site, marginal_form, observed_sites, trace_model
from sojourn.diagnostics._arviz import container
from sojourn.inference import _labels as labels
from sojourn.inference._auto import choose_engine
from sojourn.inference._blocked_gibbs import BlockedGibbs
from sojourn.inference._chains import Chains
from sojourn.inference._check_gradient import check_model_gradient
from sojourn.inference._check_model import (
    check_data,
    check_gradient_engine,
    check_latents,
    check_names,
    check_takes_all,
    latent_sites,
    subsampled,
    warn_of_params,
)
from sojourn.inference._checkpoint import Checkpoint, Store, as_checkpoint
from sojourn.inference._fingerprint import fingerprint
from sojourn.inference._gradient_kernel import GradientKernel
from sojourn.inference._initial import compiled_once, init_to_hint
from sojourn.inference._keep import Keep, as_keep
from sojourn.inference._malt import MALT
from sojourn.inference._map import MaximumAPosteriori
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._mclmc import MCLMC, AdjustedMCLMC
from sojourn.inference._params import flat_params, params_dataset, with_params
from sojourn.inference._particle_gibbs import ParticleGibbs
from sojourn.inference._particle_marginal import ParticleMarginal
from sojourn.inference._places import Places, choose_places, spread_plate
from sojourn.inference._predictive import Evaluation, evaluate, missing_entries
from sojourn.inference._scan import prepared
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._statistics import named_statistics, statistic_fields
from sojourn.inference._step_bias import shift_between
from sojourn.inference._stochastic_gradient import StochasticGradientLangevin
from sojourn.inference._structure import check_scans
from sojourn.inference._underdamped import UnderdampedLangevin
from sojourn.inference._variational import Variational
from sojourn.inference._warm_start import WarmStart, read_warm_start, refuse_warm_start, start_kernel
from sojourn.inference._watch import ChainWatch
from sojourn.inference._whole_data import whole_data

__all__ = ["ENGINES", "Engine", "fit", "is_gradient_kernel", "resolve_engine"]

Engine = str | Variational | ScoreAscent | MaximumAPosteriori | Callable[[Callable[..., Any]], MCMCKernel]


def _nuts(model: Callable[..., Any]) -> NUTS:
    return NUTS(model, init_strategy=init_to_hint())


ENGINES: dict[str, Any] = {
    "nuts": _nuts,
    "svi": Variational(),
    "particle_gibbs": ParticleGibbs,
    "particle_marginal": ParticleMarginal,
    "score_ascent": ScoreAscent(),
    "map": MaximumAPosteriori(),
    "blocked_gibbs": BlockedGibbs,
    "langevin": MALT,
    "mclmc": MCLMC,
    "adjusted_mclmc": AdjustedMCLMC,
    "underdamped_langevin": UnderdampedLangevin,
    "stochastic_gradient": StochasticGradientLangevin,
    "auto": "auto",
}
"""Engines by name."""


def fit(
    model: Callable[..., Any],
    *args: Any,
    engine: Engine = "nuts",
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    progress_bar: bool = True,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    warm_start: Any = None,
    checkpoint: str | PathLike[str] | Checkpoint | None = None,
    keep: Keep | Sequence[str] | None = None,
    chain_method: str = "auto",
    shard: str | None = None,
    stop_early: bool = True,
    **kwargs: Any,
) -> Any:
    """Fit a NumPyro model to data.

    Args:
        model: any function with NumPyro primitives.
        *args: its positional arguments, the data first. xarray and pandas objects are handed over as arrays
            and give their coordinates to the result.
        engine: ``"nuts"`` (No-U-Turn sampler), ``"svi"`` (variational inference; see
            :class:`~sojourn.inference.Variational`), ``"particle_gibbs"``
            (:class:`~sojourn.inference.ParticleGibbs`, for models with a ``scan``), ``"particle_marginal"``
            (:class:`~sojourn.inference.ParticleMarginal`, likewise), ``"score_ascent"`` (maximum likelihood;
            :class:`~sojourn.inference.ScoreAscent`), ``"map"`` (the posterior mode, one draw without intervals;
            :class:`~sojourn.inference.MaximumAPosteriori`), ``"blocked_gibbs"``
            (:class:`~sojourn.inference.BlockedGibbs`), ``"langevin"`` (:class:`~sojourn.inference.MALT`),
            ``"mclmc"``, ``"adjusted_mclmc"``, ``"underdamped_langevin"``
            (:class:`~sojourn.inference.MCLMC`, :class:`~sojourn.inference.AdjustedMCLMC`,
            :class:`~sojourn.inference.UnderdampedLangevin`), ``"stochastic_gradient"``
            (:class:`~sojourn.inference.StochasticGradientLangevin`, for models with a subsampled plate),
            ``"auto"`` (NUTS, MALT or MCLMC by the dimension and structure of the model; the attribute
            ``engine_choice`` says which and why), a configured ``Variational(...)``, ``ScoreAscent(...)`` or
            ``MaximumAPosteriori(...)``, or any callable
            ``model -> numpyro.infer.mcmc.MCMCKernel``, such as ``partial(NUTS, target_accept_prob=0.95)``. An
            engine that follows gradients gets a model with finite discrete sites in its ``scan`` with these
            summed out (:func:`~sojourn.inference.marginalize`); the attribute ``summed_out`` names them.
        num_samples: draws kept from each chain (a posterior mode is one).
        num_warmup: draws of adaptation before them (MCMC).
        num_chains: chains (MCMC; variational draws are independent and make one chain).
        seed: the same seed on the same machine gives the same draws.
        progress_bar: show progress.
        dims: names of the axes of a variable, where the model does not tell them.
        coords: labels along named axes.
        warm_start: an approximate posterior to start from: a mapping from names of latent sites to distributions of
            their shapes, such as ``{"rate": dist.LogNormal(m, s)}``; an object with a method ``warm_start(trace)``
            that makes one for the model of that trace; or an earlier fit, ``warm_start=fit``. Chains start at draws
            from independent Gaussians with its means and 1.5 times its standard deviations on the unconstrained
            scale, the mass matrix of HMC, NUTS, MALT and UnderdampedLangevin at its variances, and the first restart
            of variational inference at its means and standard deviations; from there they adapt as ever. Sites that
            it leaves out start as they would without it.
        checkpoint: a folder, or a :class:`~sojourn.Checkpoint`, in which state and draws are written down as the run
            goes on, so that the same call goes on where it was cut off.
        keep: names of sites to keep, or a :class:`~sojourn.Keep`: thinning, and running summaries in place of draws.
        chain_method: ``"vectorized"`` (side by side in one program), ``"sequential"`` (one at a time, by a program for
            one chain), ``"parallel"`` (dealt out to the devices; on a single processor device, one at a time in
            several threads), or ``"auto"``: dealt out if there are several devices, else vectorized.
        shard: what several devices share out: ``"chains"`` (the default), ``"particles"``, or the name of a plate.
        stop_early: end a run that has gone wrong in a way that more draws do not mend, with a warning.
        **kwargs: keyword arguments of the model.

    Returns:
        ArviZ's container (``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x) with groups

        * ``posterior``: latent and deterministic sites;
        * ``sample_stats``: statistics of the sampler under ArviZ's names, ``lp`` always among them; for
          variational inference ``elbo`` (restart, step) and ``log_importance_ratio`` (log p - log q a draw);
        * ``log_likelihood``: pointwise (this and the next two only where they would hold less than 2e8 numbers, or
          2.5e7 beside draws on disk); for a series whose hidden path is integrated out these are the terms
          log p(y_t | y_<t). NaN where nothing was observed;
        * ``posterior_predictive``: replicated data, given the latent values of each draw;
        * ``predictions``: for the same series one-step-ahead draws of y_t given y_<t;
        * ``observed_data``, and ``constant_data`` for the other array arguments;
        * ``params``: after variational inference, the values of all ``numpyro.param`` sites, of the model and of the
          guide (arrays of a network by their place in it);
        * ``warm_start``: draws of the approximate posterior (``warm_draw``), where there was one;
          :func:`sojourn.check` says how far it was from the posterior;
        * ``running_summary``: mean, standard deviation and quantiles of sites kept as summaries.

        Draws of more than 800 MB stay in the ``checkpoint`` if there is one, and are read when asked for.

        Attributes: ``engine``, ``seed``, ``seconds`` (of inference) and ``seconds_total``, versions; for samplers
        without a Metropolis test ``step_bias``, from a rerun at half the step that :func:`sojourn.check` reads;
        ``warm_start``, the type of what the fit was started from; ``partial`` after Ctrl-C (a second one raises at
        once), with the draws so far, and ``stopped``, a sentence, where the fit stopped by itself.

    Raises:
        ValueError: an unknown engine; data that are empty or outside the support of their law (NaN counts as
            missing); a discrete latent site under an engine that needs gradients, a density without gradient or with
            another's (``stop_gradient``); nothing to fit; a ``warm_start`` of other sites, shapes or supports than
            the model's, or under an engine that cannot start from one; a ``checkpoint`` of another model, other data
            or other settings.
        RuntimeError: a chain whose density, position or step size is no longer a finite number: which chain, since
            when, and at which site.
        TypeError: the model is no function; ``warm_start`` is no approximate posterior.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        ...     numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> result = sj.fit(coin, jnp.array([1, 0, 1, 1]), num_chains=2, num_warmup=200, num_samples=200,
        ...                 progress_bar=False)
        >>> result.posterior["p"].shape
        (2, 200)
    """
    started = time.perf_counter()
    engine_of, engine_name = resolve_engine(engine)
    num_samples, num_chains = whole_number(num_samples, "num_samples"), whole_number(num_chains, "num_chains")
    num_warmup, seed = whole_number(num_warmup, "num_warmup", 0), whole_number(seed, "seed", None)
    kept, checkpoint = as_keep(keep), as_checkpoint(checkpoint)
    bare_args = tuple(labels.bare(a) for a in args)
    bare_kwargs = {name: labels.bare(value) for name, value in kwargs.items()}
    key_check, key_run, key_predict = jax.random.split(jax.random.key(seed), 3)
    check_names(model, kwargs, fit)
    model = prepared(model)
    check_scans(model, bare_args, bare_kwargs)
    chooses = engine_of == "auto"
    runs_itself = isinstance(engine_of, Variational | ScoreAscent | MaximumAPosteriori)
    few_draws = isinstance(engine_of, Variational | MaximumAPosteriori)
    kernel = None if runs_itself or chooses else _kernel(engine_of, model)
    follows_gradient = chooses or few_draws or is_gradient_kernel(kernel)
    summed_out = marginalizable(model, bare_args, bare_kwargs) if follows_gradient else ()
    if summed_out:
        model = marginalize(model)
        kernel = None if runs_itself or chooses else _kernel(engine_of, model)
    with compiled_once():
        trace = trace_model(model, bare_args, bare_kwargs, key=key_check)
    whole = model
    if chooses or isinstance(kernel, HMC):
        check_takes_all(trace, engine_name)
    if subsampled(trace):  # what follows the fit looks at all the data; only the engine sees minibatches
        whole = whole_data(model)
        trace = trace_model(whole, bare_args, bare_kwargs, key=key_check)
    check_latents(trace)
    check_data(trace)
    warm = None if warm_start is None else read_warm_start(warm_start, trace)
    if follows_gradient:
        follower = "variational inference" if isinstance(engine_of, Variational) else engine_name
        check_gradient_engine(trace, follower)
        check_model_gradient(whole, bare_args, bare_kwargs, trace, follower, key_check)
    choice = None
    if chooses:
        engine_name, choice = choose_engine(model, bare_args, bare_kwargs, trace)
        kernel = _kernel(ENGINES[engine_name], model)
        if progress_bar:
            print(choice)

    if not isinstance(engine_of, Variational):
        warn_of_params(trace, engine_name)
    whole_call = whole, bare_args, bare_kwargs
    run = {"seed": seed, "engine": engine_name, "num_chains": num_chains, "num_warmup": num_warmup}
    run |= {"keep": repr(kept), **_settings(engine_of if runs_itself else kernel)}
    if getattr(kernel, "measures_bias", False):  # by a second run as long as the first
        run["num_samples"] = num_samples
    places = None if kernel is None else choose_places(kernel, num_chains, chain_method, shard, trace)
    if places is not None:
        run["chain_method"] = "a chain at a time" if places.in_turn else "all chains at once"
    run |= {"shard": shard, "warm_start": None if warm is None else [warm.mean, warm.sd]}
    store = None
    if checkpoint is not None:
        part = (jax.process_index(), jax.process_count())
        store = Store(checkpoint, fingerprint(*whole_call, trace, run), part)
    params: dict[str, Any] = {}
    with closing(store) if store is not None else nullcontext():
        if kernel is None or places is None:
            if keep is not None:
                raise ValueError(
                    f"`keep` is for samplers that run chains, and {engine_name} draws at its end."
                )
            options: dict[str, Any] = {
                "num_samples": num_samples,
                "key": key_run,
                "progress_bar": progress_bar,
            }
            if warm is not None:
                if not isinstance(engine_of, Variational):
                    refuse_warm_start(type(engine_of).__name__)
                options["warm_start"] = warm
            if store is not None:
                options["stage"] = store.stage(engine_name)
            found = engine_of.run(model, bare_args, bare_kwargs, **options)
            params = getattr(found, "params", {})
            sampled = _Sampled(found.draws, found.stats, found.attrs)
        else:
            if places.together is not None and shard != "particles":
                model = spread_plate(model)
                kernel = _kernel(ENGINES[engine_name] if chooses else engine_of, model)
            if isinstance(kernel, GradientKernel):
                kernel.gradient_checked = True
            options = {
                "keep": kept,
                "places": places,
                "store": store,
                "progress_bar": progress_bar,
                "warm": warm,
            }
            sizes = num_warmup, num_samples, key_run

            def sample(kernel: MCMCKernel) -> _Sampled:
                watch = ChainWatch(model, bare_args, bare_kwargs, kernel, num_warmup) if stop_early else None
                return _run_mcmc(kernel, bare_args, bare_kwargs, *sizes, watch=watch, **options)

            try:
                sampled = sample(kernel)
            except RuntimeError as error:
                if not chooses or engine_name == "nuts":
                    raise
                choice = f"NUTS, after {engine_name} failed: {error}"
                engine_name, kernel = "nuts", _nuts(model)
                sampled = sample(kernel)
    draws, stats, attrs = sampled.draws, sampled.stats, sampled.attrs
    if choice is not None:
        attrs["engine_choice"] = choice
    if summed_out:
        attrs["summed_out"] = ", ".join(summed_out)
    if warm is not None:
        attrs["warm_start"] = warm.source
    seconds = time.perf_counter() - started if sampled.seconds is None else sampled.seconds

    if params:
        whole = with_params(whole, flat_params(params))
    with compiled_once():
        marginal = trace_model(whole, bare_args, marginal_form(model, bare_kwargs), key=key_check)
    latents = {n: draws[n] for n in latent_sites(trace) if n in draws}
    evaluation = None
    if set(latent_sites(marginal)) <= set(latents):
        try:
            # Such draws are few, and their evaluation a single pass: what counts is how fast it compiles.
            with compiled_once() if few_draws else nullcontext():
                evaluation = evaluate(whole, bare_args, bare_kwargs, latents, key_predict)
        except KeyboardInterrupt:
            if "partial" not in attrs:
                raise
        else:
            stats.setdefault("lp", evaluation.log_joint)
    attrs |= {
        "engine": engine_name,
        "seed": seed,
        "seconds": seconds,
        "seconds_total": time.perf_counter() - started,
        "inference_library": "sojourn",
        **{f"{lib}_version": version(lib) for lib in ("sojourn", "numpyro", "jax", "arviz")},
    }
    observed = observed_sites(marginal)
    shapes = {n: v.shape[2:] for n, v in [*draws.items(), *sampled.summaries.items()]}
    shapes |= {n: np.shape(site["value"]) for n, site in observed.items()}
    names = labels.Labels(shapes, {**trace, **marginal}, dims, coords)
    names.dims |= {n: names.fit(n, known, stats[n].shape[2:]) for n, known in sampled.stat_dims.items()}
    constant = _constant_data(names, labels.named_arrays(model, args, kwargs), observed)
    groups = _groups(marginal, names, draws, stats, evaluation)
    if constant:
        groups["constant_data"] = names.dataset(constant, lead=())
    if sampled.summaries:
        names.coords["statistic"] = np.array(kept.statistics)
        groups["running_summary"] = names.dataset(sampled.summaries, lead=("chain", "statistic"))
    if params:
        groups["params"] = params_dataset(params)
    if warm is not None:
        groups["warm_start"] = names.dataset(warm.draws, lead=("warm_draw",))
    return container(groups, attrs)


class _Sampled(NamedTuple):
    """What an engine has come to."""

    draws: dict[str, Any]
    stats: dict[str, np.ndarray]
    attrs: dict[str, Any]
    stat_dims: dict[str, list[str]] = {}  # never changed
    summaries: dict[str, np.ndarray] = {}
    seconds: float | None = None


def _settings(engine: Any) -> dict[str, Any]:
    """What an engine was told, before it has seen the model."""
    told = {"class": type(engine).__name__, **vars(engine)}
    return {f"engine's {name.lstrip('_')}": value for name, value in told.items() if name != "_model"}


def resolve_engine(engine: Engine) -> tuple[Any, str]:
    if isinstance(engine, str):
        if engine not in ENGINES:
            raise ValueError(
                f"There is no engine {engine!r}; the names are {', '.join(map(repr, ENGINES))}, and any callable "
                "`model -> MCMCKernel` will do."
            )
        return ENGINES[engine], engine
    if isinstance(engine, Variational):
        return engine, "svi"
    if isinstance(engine, ScoreAscent):
        return engine, "score_ascent"
    if isinstance(engine, MaximumAPosteriori):
        return engine, "map"
    if not callable(engine):
        raise ValueError(f"`engine` must be a name or a callable `model -> MCMCKernel`, not {engine!r}.")
    base = getattr(engine, "func", engine)
    name = getattr(base, "__name__", type(base).__name__)
    return engine, "nuts" if name == "NUTS" else name


def is_gradient_kernel(kernel: MCMCKernel | None) -> bool:
    return isinstance(kernel, HMC) or bool(getattr(kernel, "follows_gradient", False))


def _kernel(engine_of: Callable[..., Any], model: Callable[..., Any]) -> MCMCKernel:
    kernel = engine_of(model)
    if not isinstance(kernel, MCMCKernel):
        raise ValueError(f"`engine(model)` must return a numpyro MCMCKernel, not {type(kernel).__name__}.")
    return kernel


def _run_mcmc(
    kernel: MCMCKernel,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    num_warmup: int,
    num_samples: int,
    key: jax.Array,
    *,
    keep: Keep,
    places: Places,
    store: Store | None,
    watch: ChainWatch | None,
    progress_bar: bool,
    warm: WarmStart | None,
) -> _Sampled:
    if warm is not None:
        start_kernel(kernel, warm)

    chains = Chains(
        kernel,
        args,
        kwargs,
        num_warmup=num_warmup,
        places=places,
        fields=lambda: statistic_fields(kernel),
        keep=keep,
    )
    measures_bias = getattr(kernel, "measures_bias", False)
    drawn = chains.run(
        lambda: chains.start(key),
        num_samples,
        num_warmup=num_warmup,
        stage=None if store is None else store.stage("chains"),
        watch=watch,
        progress_bar=progress_bar,
        states_wanted=measures_bias,
    )
    draws, stats = drawn.draws, named_statistics(kernel, drawn.stats)
    attrs: dict[str, Any] = {"num_warmup": num_warmup}
    if getattr(kernel, "ergodic_averages_only", False):
        attrs["ergodic_averages_only"] = 1
    if drawn.partial:
        attrs["partial"] = 1
        attrs["num_samples_asked"] = num_samples
    if drawn.advice is not None:
        attrs["stopped" if drawn.partial else "advice"] = drawn.advice
        warnings.warn(drawn.advice, stacklevel=4)
    if measures_bias and not drawn.partial:
        # The same program goes on with half the step.
        again = chains.run(
            lambda: [kernel.halve_step(state) for state in drawn.states],
            num_samples,
            num_warmup=0,
            stage=None if store is None else store.stage("half_step"),
            progress_bar=progress_bar,
            phase="half step",
        )
        if not again.partial:
            attrs |= shift_between(draws, again.draws)
    return _Sampled(draws, stats, attrs, getattr(kernel, "stat_dims", {}), drawn.summaries, drawn.seconds)


def _groups(
    trace: Mapping[str, Site],
    names: labels.Labels,
    draws: Mapping[str, np.ndarray],
    stats: Mapping[str, np.ndarray],
    evaluation: Evaluation | None,
) -> dict[str, Any]:
    observed = observed_sites(trace)
    missing = {n: missing_entries(site) for n, site in observed.items()}

    def hide(arrays: Mapping[str, np.ndarray], lead: int) -> dict[str, np.ndarray]:
        """NaN where nothing was observed."""
        result = {}
        for name, array in arrays.items():
            gap = missing[name]
            if gap is not None:
                gap = gap.reshape((*gap.shape, *(1,) * (array.ndim - lead - gap.ndim)))
                array = np.where(np.broadcast_to(gap, array.shape), np.nan, array)
            result[name] = array
        return result

    sample_stats = names.dataset({n: v for n, v in stats.items() if n != "elbo"})
    if "elbo" in stats:
        sample_stats = sample_stats.merge(names.dataset({"elbo": stats["elbo"]}, lead=("restart", "step")))
    pointwise = {n: labels.log_likelihood_dims(site, names.dims[n]) for n, site in observed.items()}
    groups = {
        "posterior": names.dataset(draws),
        "sample_stats": sample_stats,
        "observed_data": names.dataset(
            hide({n: np.asarray(s["value"]) for n, s in observed.items()}, 0), lead=()
        ),
    }
    if evaluation is None:
        return groups
    if evaluation.log_likelihood:  # else they would be too large
        groups["log_likelihood"] = names.dataset(hide(evaluation.log_likelihood, 2), dims=pointwise)
        groups["posterior_predictive"] = names.dataset(hide(evaluation.replicated, 2))
    if evaluation.one_step_ahead:
        groups["predictions"] = names.dataset(hide(evaluation.one_step_ahead, 2))
    return groups


def _constant_data(
    names: labels.Labels,
    given: Mapping[str, Any],
    observed: Mapping[str, Site],
) -> Any:
    """The array arguments that are not the observed data, and the coordinates that the arguments carry."""
    constant: dict[str, np.ndarray] = {}
    for name, array in given.items():
        value = np.asarray(array)
        for twin, site in observed.items():
            if np.shape(site["value"]) == value.shape:
                names.adopt(array, names.dims[twin])
        if any(_same(value, site["value"]) for site in observed.values()):
            continue
        if name in observed or not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
            continue
        dims = list(getattr(array, "dims", ())) or _guess_dims(names, value.shape, observed)
        names.dims[name] = names.fit(name, dims, value.shape)
        names.adopt(array, names.dims[name])
        constant[name] = value
    return constant


def _same(one: np.ndarray, two: Any) -> bool:
    """Equal wherever neither is missing (data may be padded or filled on their way into the model)."""
    two = np.asarray(two)
    if one.shape != two.shape or one.dtype.kind not in "biuf" or two.dtype.kind not in "biuf":
        return False
    return bool(((one == two) | np.isnan(one.astype(float)) | np.isnan(two.astype(float))).all())


def _guess_dims(names: labels.Labels, shape: tuple[int, ...], observed: Mapping[str, Site]) -> list[str]:
    """The axes of the data that an array shares, axis by axis from the left."""
    for name in observed:
        axes = list(zip(names.dims[name], np.shape(observed[name]["value"]), strict=True))
        shared = []
        for size in shape:
            match = next((dim for dim, n in axes if n == size and dim not in shared), None)
            if match is None:
                break
            shared.append(match)
        if shared:
            return [*shared, *(f"axis_{i}" for i in range(len(shared), len(shape)))]
    return []
