"""Fits of many series: one by one on demand, and all of them in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from numpyro.diagnostics import gelman_rubin

from sojourn._contract import Site, marginal_form, observed_sites, trace_model
from sojourn.diagnostics._arviz import container, ess
from sojourn.inference import _labels as labels
from sojourn.inference._check_model import latent_sites
from sojourn.inference._fit import _constant_data, _groups
from sojourn.inference._initial import compiled_once
from sojourn.inference._predictive import _MOST, Evaluation, evaluate, evaluate_draw, in_batches
from sojourn.inference._series_batches import Run

if TYPE_CHECKING:
    import pandas
    import xarray as xr

__all__ = ["Call", "Entry", "ManyFits", "cut", "outline", "padded"]

_COLUMNS = ("mean", "sd", "q5", "q95", "r_hat", "ess_bulk")


class Entry(NamedTuple):
    """A series that was fitted.

    Attributes:
        number: its place among the datasets.
        given, args: its arguments as they came, and as arrays.
        length: what it was padded to; ``None`` where it was not.
        program: the bucket it was fitted in.
        run: what came of it.
    """

    number: int
    given: tuple[Any, ...]
    args: tuple[np.ndarray, ...]
    length: int | None
    program: str
    run: Run


class Call(NamedTuple):
    """What all series share: the model, as given and as the engine ran it, further arguments, and how it was run."""

    given: Callable[..., Any]
    model: Callable[..., Any]
    others: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given_others: tuple[Any, ...]
    given_kwargs: Mapping[str, Any]
    seed: int
    x64: bool
    attrs: Mapping[str, Any]


def padded(args: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, ...]:
    """Arguments of a series with NaN after the end of each array that is as long as the first."""
    steps = len(args[0])
    wide = length - steps
    return tuple(
        np.pad(a, [(0, wide)] + [(0, 0)] * (a.ndim - 1), constant_values=np.nan)
        if a.ndim and len(a) == steps
        else a
        for a in args
    )


def cut(array: Any, shape: Sequence[int], lead: int = 2) -> Any:
    """``array`` without what was padded at the ends of the axes after the first ``lead``."""
    return array[(slice(None),) * lead + tuple(slice(n) for n in shape[: np.ndim(array) - lead])]


def outline(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Site]:
    """The trace of a model of which nothing is computed: its values have shapes and types alone."""
    found: dict[str, Site] = {}

    def run(key):
        found.update(trace_model(model, args, kwargs, key=key))
        return 0

    jax.eval_shape(run, jax.random.key(0))
    return found


class ManyFits(Mapping[Any, Any]):
    """What :func:`sojourn.fit_many` returns: a mapping from the labels of the fitted series to their fits.

    ``many[label]`` is the same container as from :func:`sojourn.fit`, with pointwise log-likelihood and replicated
    data, worked out when it is asked for (by one compiled program for all series of a bucket). Series that failed are
    in :attr:`failures` and not among the keys. Printing it says how many series were fitted, the worst R-hat, and how
    many programs were compiled.

    Attributes:
        failures: what went wrong with which series, a sentence by label.
        num_series: number of datasets given.
        num_programs: number of sampling programs that were needed.
        seconds: of all of ``fit_many``.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        ...     numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> tosses = {"fair": [0, 1, 1, 0], "bent": [1, 1, 1, 1], "wrong": [0, 7, 1, 1]}
        >>> many = sj.fit_many(coin, tosses, engine="langevin", num_warmup=100, num_samples=100,
        ...                    progress_bar=False)
        >>> list(many), many["bent"].posterior["p"].shape
        (['fair', 'bent'], (2, 100))
        >>> many.failures["wrong"]
        "The data at site 'tosses' lie outside the support of its law, Bernoulli... (first at index 1)."
        >>> many.posterior["p"].dims
        ('series', 'chain', 'draw')
        >>> many.summary().columns.tolist()
        ['mean', 'sd', 'q5', 'q95', 'r_hat', 'ess_bulk']
    """

    def __init__(
        self,
        call: Call,
        entries: Mapping[Any, Entry],
        failures: Mapping[Any, str],
        num_programs: int,
        seconds: float,
    ):
        self._call, self._entries = call, dict(entries)
        self.failures = dict(failures)
        self.num_series = len(self._entries) + len(self.failures)
        self.num_programs = num_programs
        self.seconds = seconds
        self._evaluations: dict[str, Callable[..., Any]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __getitem__(self, label: Any) -> Any:
        return self.fit(label)

    def __repr__(self) -> str:
        attrs = self._call.attrs
        text = f"ManyFits: {len(self)} of {self.num_series} series fitted by {attrs['engine']}"
        if self._entries:
            lead = np.shape(next(iter(self._first.run.draws.values())))[:2]
            text += f" ({lead[0]} chain{'s' * (lead[0] > 1)} of {lead[1]} draw{'s' * (lead[1] > 1)})"
        if self.failures:
            text += f", {len(self.failures)} failed (see .failures)"
        if self._entries and self._scalars():
            worst = self._table["r_hat"]
            if worst.notna().any():
                at = int(np.nanargmax(worst.to_numpy()))
                label = list(self._entries)[at * len(self) // len(worst)]
                text += f"; worst r_hat {worst.max():.3f} (series {label!r}, {worst.index[at][1]})"
        plural = "s" * (self.num_programs != 1)
        return f"{text}; {self.num_programs} program{plural} compiled, {self.seconds:.0f} s."

    def fit(self, label: Any) -> Any:
        """The fit of one series: ``many[label]``.

        Returns:
            ArviZ's container, as :func:`sojourn.fit` makes it.

        Raises:
            KeyError: a label that no series has, or one of a series that failed: why.
        """
        if label in self.failures:
            raise KeyError(f"Series {label!r} was not fitted: {self.failures[label]}")
        if label not in self._entries:
            raise KeyError(f"There is no series {label!r}; the fitted ones are {_some(self._entries)}.")
        entry = self._entries[label]
        if entry.run.fit is not None:
            return entry.run.fit
        call, args = self._call, (*entry.args, *self._call.others)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(call.seed), entry.number), 1)
        with jax.enable_x64(call.x64):
            with compiled_once():
                trace = trace_model(call.model, args, call.kwargs, key=key)
                marginal = trace_model(call.model, args, marginal_form(call.model, call.kwargs), key=key)
            observed = observed_sites(marginal)
            draws, stats = dict(entry.run.draws), dict(entry.run.stats)
            latents = {n: draws[n] for n in latent_sites(trace) if n in draws}
            evaluation = self._evaluate(entry, latents, observed, key)
        stats.setdefault("lp", evaluation.log_joint)
        shapes = {n: v.shape[2:] for n, v in draws.items()}
        shapes |= {n: np.shape(site["value"]) for n, site in observed.items()}
        names = labels.Labels(shapes, {**trace, **marginal})
        names.dims |= {n: names.fit(n, d, stats[n].shape[2:]) for n, d in entry.run.stat_dims.items()}
        given = labels.named_arrays(call.given, (*entry.given, *call.given_others), call.given_kwargs)
        constant = _constant_data(names, given, observed)
        groups = _groups(marginal, names, draws, stats, evaluation)
        if constant:
            groups["constant_data"] = names.dataset(constant, lead=())
        attrs = {**call.attrs, **entry.run.attrs, "seed": call.seed, "series": str(label)}
        attrs |= {f"{lib}_version": version(lib) for lib in ("sojourn", "numpyro", "jax", "arviz")}
        return container(groups, {**attrs, "inference_library": "sojourn"})

    def _evaluate(
        self, entry: Entry, latents: Mapping[str, np.ndarray], observed: Mapping[str, Site], key: Any
    ) -> Evaluation:
        call = self._call
        lead = next(iter(latents.values())).shape[:2]
        size = sum(np.size(site["value"]) for site in observed.values())
        if math.prod(lead) * size > _MOST:  # it warns, and leaves them out
            return evaluate(call.model, (*entry.args, *call.others), call.kwargs, latents, key)
        if entry.program not in self._evaluations:
            self._evaluations[entry.program] = jax.jit(_evaluation(call.model, call.others, call.kwargs))
        args = entry.args if entry.length is None else padded(entry.args, entry.length)
        flat = {n: v.reshape((-1, *v.shape[2:])) for n, v in latents.items()}
        results = self._evaluations[entry.program](flat, jax.random.split(key, math.prod(lead)), args)
        parts = jax.tree.map(lambda r: np.asarray(r).reshape((*lead, *r.shape[1:])), results)
        shapes = {n: np.shape(site["value"]) for n, site in observed.items()}
        return Evaluation(parts[0], *({n: cut(v, shapes[n]) for n, v in part.items()} for part in parts[1:]))

    # ------------------------------------------------------------------------------------------- all of them

    @property
    def _first(self) -> Entry:
        return next(iter(self._entries.values()))

    @cached_property
    def _names(self) -> labels.Labels:
        """Dimensions of the variables that have one shape in all series."""
        call, draws = self._call, self._first.run.draws
        shapes = {n: v.shape[2:] for n, v in draws.items()}
        for entry in self._entries.values():
            shapes = {n: s for n, s in shapes.items() if entry.run.draws[n].shape[2:] == s}
        with jax.enable_x64(call.x64):
            trace = outline(call.model, (*self._first.args, *call.others), call.kwargs)
        return labels.Labels(shapes, trace)

    @cached_property
    def posterior(self) -> xr.Dataset:
        """Draws of all fitted series, ``(series, chain, draw, ...)``.

        A variable whose shape is not the same in all series, such as the path of series of unequal lengths, is left
        out: ``many[label]`` has it.
        """
        import xarray as xr

        if not self._entries:
            return xr.Dataset()
        runs = [entry.run.draws for entry in self._entries.values()]
        stacked = {n: np.stack([draws[n] for draws in runs]) for n in self._names.dims}
        dataset = self._names.dataset(stacked, lead=("series", "chain", "draw"))
        return dataset.assign_coords(series=_as_index(list(self._entries)))

    def summary(self, var_names: Sequence[str] | None = None) -> pandas.DataFrame:
        """A row for each series and scalar.

        Args:
            var_names: variables to show; by default all that have no axis of time and the same shape in all series.

        Returns:
            A table with index (series, parameter) and columns ``mean``, ``sd``, ``q5`` and ``q95`` (quantiles at 5 and
            95 %), ``r_hat`` (rank-normalised and split, the larger of bulk and folded) and ``ess_bulk`` (Vehtari et
            al. 2021, Bayesian Analysis 16:667-718; NaN for fewer than four draws).

        Raises:
            ValueError: a variable that the posterior does not have.
        """
        if var_names is None:
            return self._table
        if not self._entries:
            return _summary({}, [])
        unknown = [name for name in var_names if name not in self._names.dims]
        if unknown:
            raise ValueError(
                f"The series have no variable {unknown[0]!r} of one shape; there are {_some(self._names.dims)}."
            )
        return _summary(self._flat(var_names), list(self._entries))

    @cached_property
    def _table(self) -> pandas.DataFrame:
        return _summary(self._flat(self._scalars()), list(self._entries))

    def _scalars(self) -> list[str]:
        return [n for n, dims in self._names.dims.items() if "time" not in dims] if self._entries else []

    def _flat(self, var_names: Sequence[str]) -> dict[str, np.ndarray]:
        """Draws of each scalar, ``(chain, draw, series)``, under a name such as ``rate[0]``."""
        columns: dict[str, np.ndarray] = {}
        for name in var_names:
            values = np.stack([entry.run.draws[name] for entry in self._entries.values()], 2)
            shape, dims = values.shape[3:], self._names.dims[name]
            for index in np.ndindex(shape):
                at = (
                    self._names.coords.get(d, range(n))[i] for d, n, i in zip(dims, shape, index, strict=True)
                )
                where = ", ".join(map(str, at))
                columns[f"{name}[{where}]" if where else name] = values[(..., *index)]
        return columns


def _summary(columns: Mapping[str, np.ndarray], series: Sequence[Any]) -> pandas.DataFrame:
    import pandas as pd

    index = pd.MultiIndex.from_product([series, list(columns)], names=["series", "parameter"])
    if not len(index):
        return pd.DataFrame(columns=list(_COLUMNS), index=index, dtype=float)
    x = np.stack([v.astype(float) for v in columns.values()], -1)  # (chain, draw, series, parameter)
    low, high = np.quantile(x, (0.05, 0.95), (0, 1))
    table = {
        "mean": x.mean((0, 1)),
        "sd": x.std((0, 1), ddof=1) if x.size > x[0, 0].size else np.nan * x[0, 0],
    }
    table |= {"q5": low, "q95": high, "r_hat": _rhat(x), "ess_bulk": _ess_bulk(x)}
    return pd.DataFrame({name: table[name].ravel() for name in _COLUMNS}, index=index)


def _rhat(x: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat over two leading axes, all scalars at once.

    ArviZ has the same number, one scalar after the other: 18 s for a thousand series of three.
    """
    half = x.shape[1] // 2
    if half < 2:
        return np.full(x.shape[2:], np.nan)
    halves = np.concatenate([x[:, :half], x[:, -half:]])
    # The 0/0 of a variable that never varies stands for itself; for one of two values the bulk half counts.
    with np.errstate(invalid="ignore", divide="ignore"):
        bulk = gelman_rubin(_normal_scores(halves))
        folded = gelman_rubin(_normal_scores(np.abs(halves - np.median(halves, (0, 1)))))
    return np.fmax(bulk, folded)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    flat = x.reshape((-1, *x.shape[2:]))
    ranks = rankdata(flat, axis=0)
    return ndtri((ranks - 0.375) / (len(flat) + 0.25)).reshape(x.shape)


def _ess_bulk(x: np.ndarray) -> np.ndarray:
    import xarray as xr

    if x.shape[1] < 4:
        return np.full(x.shape[2:], np.nan)
    dataset = xr.Dataset({"x": (("chain", "draw", "series", "parameter"), x)})
    return ess(dataset)["x"].transpose("series", "parameter").values


def _evaluation(
    model: Callable[..., Any], others: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """:func:`~sojourn.inference._predictive.evaluate` as a function of draws, keys and the data."""
    kwargs = marginal_form(model, kwargs)

    def of_series(draws, keys, args):
        def one(x):
            return evaluate_draw(model, (*args, *others), kwargs, *x)

        return in_batches(one, (draws, keys))

    return of_series


def _as_index(names: list[Any]) -> np.ndarray:
    """Labels as the coordinate of one axis."""
    array = np.asarray(names)
    if array.ndim == 1 and array.dtype.kind in "biufMmU":
        return array
    array = np.empty(len(names), object)
    array[:] = names
    return array


def _some(names: Any) -> str:
    shown = ", ".join(map(repr, list(names)[:5]))
    return shown + (", ..." if len(names) > 5 else "") if shown else "none"
