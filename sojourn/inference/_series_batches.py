"""One batch of series, run by one compiled program: what a worker of ``fit_many`` does."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel

from sojourn.diagnostics._arviz import attributes, group, require_posterior
from sojourn.inference._fit import _kernel, fit, is_gradient_kernel, resolve_engine
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._scan import prepared
from sojourn.inference._statistics import named_statistics, statistic_fields

__all__ = ["Run", "Settings", "drop_programs", "run_batch", "sentence", "summed_out"]

_KEPT = 8  # programs that a worker process holds
_PROGRAMS: OrderedDict[str, tuple[Callable[..., Any], MCMCKernel]] = OrderedDict()
# Tracing goes through handlers and settings that belong to the whole process.
_ONE_AT_A_TIME = threading.RLock()


class Settings(NamedTuple):
    """What is the same for all series.

    Attributes:
        program: name under which a process keeps the compiled program.
        others, kwargs: arguments of the model after those of a series.
        num_warmup, num_samples, num_chains, seed: of the run.
        x64: whether the caller works in double precision (a new process or thread does not know).
        alone: fit series by series with ``fit``.
        latents: sites whose draws have to be finite (others may say NaN where nothing was observed).
    """

    program: str
    others: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    num_warmup: int
    num_samples: int
    num_chains: int
    seed: int
    x64: bool
    alone: bool
    latents: tuple[str, ...]


class Run(NamedTuple):
    """What came of one series: arrays with leading axes (chain, draw).

    Attributes:
        draws, stats: by site, and under ArviZ's names.
        stat_dims: names of the axes of statistics that have more.
        attrs: of the fit.
        fit: the container, where the series was fitted by ``fit``.
    """

    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    stat_dims: dict[str, list[str]]
    attrs: dict[str, Any]
    fit: Any = None


def summed_out(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], follows_gradient: bool
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The model as an engine runs it, and the discrete sites of its scan that were summed out for it."""
    model = prepared(model)
    names = marginalizable(model, args, kwargs) if follows_gradient else ()
    return (marginalize(model) if names else model), names


def sentence(error: BaseException) -> str:
    """What an error says."""
    text = " ".join(str(error).split())[:500]
    return (
        text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text or 'no message'}"
    )


def drop_programs(call: str) -> None:
    """Forget the programs of one call of ``fit_many`` in this process."""
    with _ONE_AT_A_TIME:
        for name in [name for name in _PROGRAMS if name.startswith(call)]:
            del _PROGRAMS[name]


def run_batch(
    model: Callable[..., Any], engine: Any, arrays: tuple[np.ndarray, ...], settings: Settings
) -> list[Run | str]:
    """Fit series of one shape side by side.

    Args:
        model, engine: as for ``fit_many``.
        arrays: numbers of the series, ``(B,)``, which set their random keys; then the arguments of the model, each
            with a leading axis of size ``B``.
        settings: the rest.

    Returns:
        For each series what came of it, or what went wrong.
    """
    with jax.enable_x64(settings.x64):
        if settings.alone:
            with _ONE_AT_A_TIME:
                numbers, *args = arrays
                return [
                    _fit_alone(model, engine, int(n), tuple(a[b] for a in args), settings)
                    for b, n in enumerate(numbers)
                ]
        with _ONE_AT_A_TIME:
            program = _PROGRAMS.get(settings.program)
            if program is None:
                program = _PROGRAMS[settings.program] = _compile(model, engine, arrays, settings)
                while len(_PROGRAMS) > _KEPT:
                    _PROGRAMS.popitem(last=False)
        sample, kernel = program
        draws, stats = jax.device_get(sample(*arrays))
    wanted = statistic_fields(kernel)
    stats = named_statistics(kernel, {n: v for n, v in stats.items() if n in wanted})
    attrs = {"num_warmup": settings.num_warmup}
    if getattr(kernel, "ergodic_averages_only", False):
        attrs["ergodic_averages_only"] = 1
    results: list[Run | str] = []
    for b in range(len(arrays[0])):
        one, of_one = ({n: np.asarray(v)[b] for n, v in group.items()} for group in (draws, stats))
        fault = _fault({n: one[n] for n in settings.latents if n in one}, of_one)
        results.append(Run(one, of_one, getattr(kernel, "stat_dims", {}), attrs) if fault is None else fault)
    return results


def _compile(
    model: Callable[..., Any], engine: Any, arrays: tuple[np.ndarray, ...], settings: Settings
) -> tuple[Callable[..., Any], MCMCKernel]:
    """The program, and the kernel within it, which knows the model by now."""
    engine_of, _ = resolve_engine(engine)
    first = (*(a[0] for a in arrays[1:]), *settings.others)
    follows_gradient = is_gradient_kernel(_kernel(engine_of, prepared(model)))
    # On numbers first: what is read off the model then need not be guessed from traced arguments.
    model, _ = summed_out(model, first, settings.kwargs, follows_gradient)
    kernel = _kernel(engine_of, model)
    fields = statistic_fields(kernel)
    sizes = {"num_warmup": settings.num_warmup, "num_samples": settings.num_samples, "progress_bar": False}

    chains = settings.num_chains

    def run(key, *args, **options):
        # Kernel, warm-up and draws within one program, of which the data are an argument.
        nonlocal kernel
        kernel = _kernel(engine_of, model)
        mcmc = MCMC(kernel, **sizes, **options)
        mcmc.run(key, *args, *settings.others, extra_fields=fields, **settings.kwargs)
        by_chain = bool(options)
        return mcmc.get_samples(by_chain), mcmc.get_extra_fields(by_chain)

    def batch(numbers, *args):
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(settings.seed), n))(numbers)
        if kernel.is_ensemble_kernel:
            return jax.vmap(partial(run, num_chains=chains, chain_method="vectorized"))(keys, *args)
        # Series and chains along one axis: a second one costs as much tracing again.
        keys = jax.vmap(lambda key: jax.random.split(key, chains))(keys).reshape(-1)
        lanes = jax.vmap(run)(keys, *(jnp.repeat(a, chains, 0) for a in args))
        return jax.tree.map(lambda x: x.reshape((-1, chains, *x.shape[1:])), lanes)

    return jax.jit(batch).lower(*arrays).compile(), kernel


def _fault(draws: Mapping[str, np.ndarray], stats: Mapping[str, np.ndarray]) -> str | None:
    lp = stats.get("lp")
    if lp is not None and not np.isfinite(lp).all():
        by_chain = np.isfinite(lp).reshape(len(lp), -1)
        chain = int(np.argmin(by_chain.all(1)))
        if not by_chain[chain].any():
            return (
                f"Chain {chain} found no start of finite density: check the priors against these data, or hint at a "
                "start with infer={'init': value}."
            )
        draw = int(np.argmin(by_chain[chain]))
        return f"The log density of chain {chain} is not finite from draw {draw} on: fit this series by sj.fit to see why."
    for name, value in draws.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            chain, draw = (int(i) for i in np.argwhere(~np.isfinite(value))[0][:2])
            return f"Site '{name}' is not finite in draw {draw} of chain {chain}: fit this series by sj.fit to see why."
    return None


def _fit_alone(
    model: Callable[..., Any], engine: Any, number: int, args: tuple[np.ndarray, ...], settings: Settings
) -> Run | str:
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    try:
        result = fit(
            model,
            *args,
            *settings.others,
            engine=engine,
            num_samples=settings.num_samples,
            num_warmup=settings.num_warmup,
            num_chains=settings.num_chains,
            seed=int(jax.random.bits(key)) >> 1,
            progress_bar=False,
            **settings.kwargs,
        )
    except Exception as error:
        return sentence(error)
    if "partial" in attributes(result):  # `fit` has taken the Ctrl-C
        raise KeyboardInterrupt
    posterior, stats = require_posterior(result, "fit_many"), group(result, "sample_stats")
    draws = {str(n): posterior[n].values for n in posterior.data_vars}
    kept = {} if stats is None else {str(n): stats[n].values for n in stats.data_vars if n != "elbo"}
    fault = _fault({}, kept)
    return fault if fault is not None else Run(draws, kept, {}, attributes(result), result)
