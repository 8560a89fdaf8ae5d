"""Many series, one model: fitted side by side by few compiled programs."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import HMC
from tqdm.auto import tqdm

from sojourn._arguments import whole_number
from sojourn._contract import Site, observed_sites, trace_model
from sojourn.inference import _labels as labels
from sojourn.inference._auto import choose_engine
from sojourn.inference._check_gradient import check_model_gradient
from sojourn.inference._check_model import (
    check_data,
    check_gradient_engine,
    check_latents,
    check_takes_all,
    latent_sites,
    mask_of,
    subsampled,
    warn_of_params,
)
from sojourn.inference._fit import Engine, _kernel, is_gradient_kernel, resolve_engine
from sojourn.inference._initial import compiled_once
from sojourn.inference._many_fits import Call, Entry, ManyFits, cut, outline
from sojourn.inference._map import MaximumAPosteriori
from sojourn.inference._predictive import site_log_prob
from sojourn.inference._scan import prepared
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._series_batches import Run, Settings, drop_programs, run_batch, sentence, summed_out
from sojourn.inference._series_buckets import Bucket, PaddingProbe, Series, group_series, stacked
from sojourn.inference._structure import check_scans
from sojourn.inference._variational import Variational
from sojourn.inference._whole_data import whole_data

__all__ = ["fit_many"]

_ON_CPU = 16
_ON_ACCELERATORS = 256
_LARGEST_BATCH = 50_000_000  # numbers drawn by one batch: 0.2 GB in float32


class _Task(NamedTuple):
    members: list[int]
    arrays: tuple[np.ndarray, ...]
    settings: Settings


def fit_many(
    model: Callable[..., Any],
    datasets: Any,
    *args: Any,
    engine: Engine = "nuts",
    executor: Any = None,
    num_samples: int = 500,
    num_warmup: int = 500,
    num_chains: int = 2,
    seed: int = 0,
    batch_size: int | None = None,
    pad: bool = True,
    progress_bar: bool = True,
    **kwargs: Any,
) -> ManyFits:
    """Fit a model to many series, each by itself: a thousand for the compilation of one.

    The sampler is compiled with the data as an argument, once for each shape of series, and run for ``batch_size``
    series at a time, with their chains.

    **Unequal lengths.** Where the model takes NaN as missing, series of floating-point numbers are padded at their end
    by NaN to one of a few lengths (each 1.5 times the one before), so that there are few programs. Whether it does is
    checked: at draws from the prior, the log density of the shortest series of each bucket, its gradient and its
    deterministic sites must come out the same with and without the padding. Otherwise, and for integers, there is a
    program for each length: give counts as ``float`` to have them padded. What is returned is never padded.

    **One by one.** Variational inference, posterior modes and maximum likelihood, and any engine on a model that needs
    to see its data as numbers, go through :func:`sojourn.fit` for each series in turn, compilation and all; an
    executor of processes is what helps these.

    Args:
        model: any function with NumPyro primitives.
        datasets: the series, each the first argument of the model: a list or a tuple, the rows of an array, or a
            mapping of names (also a DataFrame or an ``xarray.Dataset``, by their columns and variables). A series that
            is a tuple is the first arguments of the model.
        *args: positional arguments after these, the same for all series.
        engine: as for :func:`sojourn.fit`; ``"auto"`` chooses by the first series.
        executor: where the batches are run: anything with ``submit(function, *arguments)`` that returns a future, such
            as ``concurrent.futures.ThreadPoolExecutor(4)`` (batches side by side on the cores of this machine, one
            compilation), ``ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))`` or a
            ``dask.distributed.Client`` (each process compiles for itself; model and engine must be importable, or, for
            Dask, picklable by cloudpickle). By default here, one batch after the other.
        num_samples, num_warmup, num_chains: of each series, as for :func:`sojourn.fit`.
        seed: the draws of a series depend on it and on the place of the series among the datasets; not on the batches
            and the executor, but for rounding.
        batch_size: series side by side in one program. All chains of a batch wait for the longest trajectory among
            them. By default 256 on accelerators; on CPUs 16, and 1 for a density that goes through the series step by
            step (a ``scan``), where company only makes the wait longer; fewer where the draws of a batch would hold
            more than 5e7 numbers.
        pad: whether series may be padded.
        progress_bar: show progress.
        **kwargs: keyword arguments of the model, the same for all series.

    Returns:
        :class:`~sojourn.inference.ManyFits`: a mapping from the labels (the names, the coordinate of the rows, or
        0, 1, ...) of the series that were fitted to their fits, with ``.posterior``, ``.summary()`` and ``.failures``.
        A series that goes wrong (data outside the support, empty, without an observation; a chain without a start or
        with draws that are not finite; a worker that raises) is a failure by itself, with a sentence; so is what was
        not run before Ctrl-C. Samplers without a Metropolis test are not rerun at half the step.

    Raises:
        ValueError: no datasets, one series in place of several, series with different numbers of arguments, two of one
            label, none that the model takes; a setting out of range; what :func:`sojourn.fit` has to say against the
            model under this engine.
        TypeError: ``datasets`` are no collection; an ``executor`` without ``submit``; the model is no function.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def growth(y):
        ...     rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        ...     numpyro.sample("y", dist.Normal(rate, sigma), obs=y)
        >>> rng = np.random.default_rng(0)
        >>> series = [rng.normal(mean, 0.5, length) for mean, length in ((-1.0, 30), (0.0, 28), (1.0, 25))]
        >>> many = sj.fit_many(growth, series, num_warmup=200, num_samples=200, progress_bar=False)
        >>> many
        ManyFits: 3 of 3 series fitted by nuts (2 chains of 200 draws); worst r_hat ...; 1 program compiled, ...
        >>> many[2].posterior["rate"].shape, many.posterior["rate"].dims
        ((2, 200), ('series', 'chain', 'draw'))
        >>> bool((many.summary().xs("rate", level="parameter")["mean"].diff().dropna() > 0.5).all())
        True
    """
    started = time.perf_counter()
    _check_settings(
        executor, num_samples=num_samples, num_warmup=num_warmup, num_chains=num_chains, batch_size=batch_size
    )
    seed = whole_number(seed, "seed", None)
    engine_of, engine_name = resolve_engine(engine)
    names, given = _read(datasets)
    others = tuple(labels.bare(a) for a in args)
    settings = {name: labels.bare(value) for name, value in kwargs.items()}
    alone = isinstance(engine_of, Variational | ScoreAscent | MaximumAPosteriori)
    attrs: dict[str, Any] = {"engine": engine_name}

    whole = prepared(model)
    series, faults = _take(whole, given, others, settings, looks=not alone)
    if not series:
        raise ValueError(
            f"None of the {len(given)} series can be fitted; the first: {next(iter(faults.values()))}"
        )
    if alone:
        buckets = [Bucket([i]) for i in series]
    else:
        first = next(iter(series.values()))
        whole, attrs = _check_model(model, engine_of, engine_name, first, others, settings)
        engine = attrs["engine"] if engine_of == "auto" else engine
        follows_gradient = is_gradient_kernel(_kernel(resolve_engine(engine)[0], whole))
        if _takes_traced(whole, first, others, settings):
            probe = PaddingProbe(whole, others, settings, follows_gradient)
            buckets = group_series(series, probe if pad else None)
            for bucket in buckets:
                faults |= _outside(whole, bucket, series, others, settings)
        else:
            alone = True
            buckets = [Bucket([i]) for i in series]
    buckets = [b._replace(members=[i for i in b.members if i not in faults]) for b in buckets]
    buckets = [b for b in buckets if b.members]
    if not buckets:
        raise ValueError(f"None of the {len(given)} series can be fitted; the first: {faults[min(faults)]}")

    latents = () if alone else tuple(latent_sites(outline(whole, (*first.args, *others), settings)))
    if batch_size is None:
        drawn = num_chains * num_samples
        batch_size = 1 if alone else _batch_size(whole, first, others, settings, drawn)
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    call = f"{uuid.uuid4().hex} "
    common = Settings(call, others, settings, num_warmup, num_samples, num_chains, seed, x64, alone, latents)
    bucket_of = {i: n for n, bucket in enumerate(buckets) for i in bucket.members}
    tasks = [
        task
        for n, bucket in enumerate(buckets)
        for task in _tasks(bucket, series, common._replace(program=f"{call}{n}"), batch_size)
    ]
    runs: dict[int, Run] = {}
    try:
        with tqdm(total=len(bucket_of), disable=not progress_bar, desc="fit_many") as bar:
            for task, results in _results(model, engine, tasks, executor):
                for i, result in zip(
                    task.members, results, strict=False
                ):  # the last of a bucket is filled up
                    if isinstance(result, str):
                        faults[i] = result
                    else:
                        runs[i] = result
                bar.update(len(task.members))
    finally:
        drop_programs(call)
    entries = {}
    for i, run in sorted(runs.items()):
        one, bucket = series[i], buckets[bucket_of[i]]
        if bucket.length is not None:
            run = run._replace(
                draws={n: cut(v, one.shapes.get(n, v.shape[2:])) for n, v in run.draws.items()}
            )
        entries[names[i]] = Entry(i, one.given, one.args, bucket.length, f"{call}{bucket_of[i]}", run)
    shared = Call(model, whole, others, settings, args, kwargs, seed, x64, attrs)
    failures = {names[i]: faults[i] for i in sorted(faults)}
    return ManyFits(shared, entries, failures, len(buckets), time.perf_counter() - started)


# ---------------------------------------------------------------------------------------------- what is given


def _check_settings(executor: Any, **numbers: Any) -> None:
    for name, value in numbers.items():
        least = 0 if name == "num_warmup" else 1
        if value is None and name == "batch_size":
            continue
        whole_number(value, name, least)
    if executor is None:
        return
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "`executor` needs a method submit(function, *arguments), as the executors of concurrent.futures and "
            f"dask.distributed.Client have it; a {type(executor).__name__} has none."
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "This executor forks, and JAX hangs in forked processes: make it with "
            'ProcessPoolExecutor(..., mp_context=multiprocessing.get_context("spawn")).'
        )


def _read(datasets: Any) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """Labels of the series, and their arguments as they came."""
    one = "fit one series with sojourn.fit, or give a list of series"
    if isinstance(datasets, str | bytes) or not hasattr(datasets, "__iter__"):
        raise TypeError(f"`datasets` is a list, mapping or array of series, not a {type(datasets).__name__}.")
    if getattr(datasets, "ndim", 2) < 2:
        raise ValueError(f"`datasets` has a single axis, of length {len(datasets)}: {one}.")
    if hasattr(datasets, "items"):
        names, found = list(datasets.keys()), [datasets[name] for name in datasets]
    else:
        found = list(datasets)
        rows = datasets.coords.get(datasets.dims[0]) if hasattr(datasets, "coords") else None
        names = list(range(len(found))) if rows is None else rows.values.tolist()
    if not found:
        raise ValueError("There is nothing to fit: `datasets` holds no series.")
    if all(not isinstance(d, tuple) and d is not None and np.isscalar(d) for d in found):
        raise ValueError(f"`datasets` is a sequence of {len(found)} single numbers: {one}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"Two series are labelled {twice[0]!r}: give each a name of its own.")
    given = [d if isinstance(d, tuple) else (d,) for d in found]
    for name, d in zip(names, given, strict=True):
        if len(d) != len(given[0]) or not d:
            raise ValueError(
                f"Series {name!r} has {len(d)} arguments and series {names[0]!r} has {len(given[0])}: give all series "
                "the same number of them, at least one."
            )
    return names, given


def _take(
    model: Callable[..., Any],
    given: Sequence[tuple[Any, ...]],
    others: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    looks: bool,
) -> tuple[dict[int, Series], dict[int, str]]:
    """Series as arrays; ``looks``: those that the model takes. What is wrong with the rest, by place."""
    series: dict[int, Series] = {}
    faults: dict[int, str] = {}
    for i, arguments in enumerate(given):
        try:
            arrays = _arrays(arguments)
            shapes = {}
            if looks:
                trace = outline(model, (*arrays, *others), kwargs)
                shapes = {n: np.shape(s["value"]) for n, s in _unobserved(trace).items()}
            series[i] = Series(i, arguments, arrays, shapes)
        except Exception as error:
            faults[i] = sentence(error)
    return series, faults


def _arrays(arguments: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    arrays = []
    for k, argument in enumerate(arguments):
        array = np.asarray(labels.bare(argument))
        if array.dtype.kind not in "biufc":
            raise ValueError(
                f"Argument {k} of this series is no array of numbers but of {array.dtype}: what is common to all "
                "series goes after the datasets."
            )
        if array.size == 0:
            raise ValueError(f"Argument {k} of this series is empty (shape {array.shape}).")
        arrays.append(array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False))
    if arrays[0].dtype.kind == "f" and np.isnan(arrays[0]).all():
        raise ValueError("Nothing of this series was observed: all of it is NaN.")
    return tuple(arrays)


def _unobserved(trace: Mapping[str, Site]) -> dict[str, Site]:
    deterministic = {n: s for n, s in trace.items() if s["type"] == "deterministic"}
    return {**latent_sites(trace), **deterministic}


# ---------------------------------------------------------------------------------------------- what is wrong


def _check_model(
    model: Callable[..., Any],
    engine_of: Any,
    engine_name: str,
    first: Series,
    others: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What ``fit`` checks before it runs: the model as it is evaluated, and attributes, with the engine's name."""
    args, key = (*first.args, *others), jax.random.key(0)
    check_scans(prepared(model), args, kwargs)
    chooses = engine_of == "auto"
    kernel = None if chooses else _kernel(engine_of, prepared(model))
    follows_gradient = chooses or is_gradient_kernel(kernel)
    model, names = summed_out(model, args, kwargs, follows_gradient)
    with compiled_once():
        trace = trace_model(model, args, kwargs, key=key)
        if chooses or isinstance(kernel, HMC):
            check_takes_all(trace, engine_name)
        if subsampled(trace):
            model = whole_data(model)
            trace = trace_model(model, args, kwargs, key=key)
    check_latents(trace)
    if not observed_sites(trace):
        check_data(trace)
    if follows_gradient:
        check_gradient_engine(trace, engine_name)
        check_model_gradient(model, args, kwargs, trace, engine_name, key)
    warn_of_params(trace, engine_name)
    attrs = {"engine": engine_name} | ({"summed_out": ", ".join(names)} if names else {})
    if not chooses:
        return model, attrs
    engine_name, choice = choose_engine(model, args, kwargs, trace)
    return model, {**attrs, "engine": engine_name, "engine_choice": choice}


def _takes_traced(
    model: Callable[..., Any], one: Series, others: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the model runs on data of which it knows shapes alone (it does run on these)."""
    try:
        jax.eval_shape(
            lambda args: [s["value"] for s in _unobserved(_trace(model, args, others, kwargs)).values()],
            one.args,
        )
    except Exception:
        return False
    return True


def _trace(model, args, others, kwargs, values=None):
    return trace_model(model, (*args, *others), kwargs, key=jax.random.key(0), values=values)


def _outside(
    model: Callable[..., Any],
    bucket: Bucket,
    series: Mapping[int, Series],
    others: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[int, str]:
    """Series with data that their law cannot produce."""

    def fits(*args):
        inside = []
        for site in observed_sites(_trace(model, args, others, kwargs)).values():
            within, seen = site["fn"].support(site["value"]), mask_of(site["fn"])
            inside.append(jnp.all(within if seen is None else within | ~seen))
        return jnp.all(jnp.stack(inside))

    with compiled_once():
        found = np.asarray(jax.jit(jax.vmap(fits))(*stacked(bucket.members, bucket, series)))
    faults = {}
    for i in np.asarray(bucket.members)[~found]:
        faults[int(i)] = "The data lie outside the support of their law."
        try:
            with compiled_once():
                check_data(_trace(model, series[i].args, others, kwargs))
        except Exception as error:
            faults[int(i)] = sentence(error)
    return faults


# ----------------------------------------------------------------------------------------------------- running


def _batch_size(
    model: Callable[..., Any], one: Series, others: tuple[Any, ...], kwargs: Mapping[str, Any], drawn: int
) -> int:
    """How many series side by side pay, when each is drawn ``drawn`` times."""
    size = _ON_CPU if jax.default_backend() == "cpu" else _ON_ACCELERATORS
    if size == _ON_CPU and _has_loop(model, one, others, kwargs):
        return 1
    numbers = sum(math.prod(shape) for shape in one.shapes.values())
    return max(1, min(size, _LARGEST_BATCH // (drawn * max(numbers, 1))))


def _has_loop(
    model: Callable[..., Any], one: Series, others: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the log density goes through the series step by step."""
    sites = latent_sites(outline(model, (*one.args, *others), kwargs))
    latents = {n: jax.ShapeDtypeStruct(np.shape(s["value"]), s["value"].dtype) for n, s in sites.items()}

    def log_joint(args, values):
        trace = _trace(model, args, others, kwargs, values)
        return sum(jnp.sum(site_log_prob(s)) for s in trace.values() if s["type"] == "sample")

    def loops(jaxpr: Any) -> bool:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("scan", "while"):
                return True
            inner = jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"))
            inner = [getattr(p, "jaxpr", p) for p in inner]
            if any(loops(p) for p in inner if hasattr(p, "eqns")):
                return True
        return False

    return loops(jax.make_jaxpr(log_joint)(one.args, latents).jaxpr)


def _tasks(
    bucket: Bucket, series: Mapping[int, Series], settings: Settings, batch_size: int
) -> Iterator[_Task]:
    members = bucket.members
    size = 1 if settings.alone else -(-len(members) // -(-len(members) // batch_size))
    for start in range(0, len(members), size):
        chosen = members[start : start + size]
        # Repeating a series spares the compilation of a smaller batch.
        full = chosen + chosen[-1:] * (size - len(chosen))
        yield _Task(chosen, (np.asarray(full, np.uint32), *stacked(full, bucket, series)), settings)


def _results(
    model: Callable[..., Any], engine: Any, tasks: Sequence[_Task], executor: Any
) -> Iterator[tuple[_Task, list[Run | str]]]:
    """What came of each task; after Ctrl-C that the rest was not run."""
    futures: list[Any] = []
    done = 0
    try:
        if executor is not None:
            for task in tasks:
                futures.append(executor.submit(run_batch, model, engine, task.arrays, task.settings))
        for n, task in enumerate(tasks):
            try:
                if executor is None:
                    results = run_batch(model, engine, task.arrays, task.settings)
                else:
                    results = futures[n].result()
            except Exception as error:
                results = [sentence(error)] * len(task.members)
            done = n + 1
            yield task, results
    except KeyboardInterrupt:
        ready = [future.done() for future in futures[done:]]
        for future in futures[done:]:
            future.cancel()
        for n, task in enumerate(tasks[done:]):
            results = ["Not run: interrupted."] * len(task.members)
            if n < len(ready) and ready[n]:
                try:
                    results = futures[done + n].result()
                except KeyboardInterrupt:  # it was the worker that was interrupted
                    pass
                except Exception as error:
                    results = [sentence(error)] * len(task.members)
            yield task, results
