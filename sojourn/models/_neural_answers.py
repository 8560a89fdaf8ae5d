"""Questions to spikes and their rates, whatever model the rates come from; and simulated spikes to ask them of.

:mod:`sojourn.models.langevin_flow` offers them all. Rates are spikes a bin, ``(time, neuron)`` or ``(trial, time,
neuron)``; xarray objects are aligned by the names of their dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, numbers, positive_numbers, shown, whole_number
from sojourn.models._given import posterior_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "bits_per_spike",
    "co_smoothing",
    "decode",
    "forward_prediction",
    "gaussian_smoothing",
    "lorenz_spikes",
    "rate_r2",
]


# -------------------------------------------------------------------------------------------------- simulated data


def lorenz_spikes(
    seed: int = 0,
    *,
    num_conditions: int = 8,
    num_trials: int = 20,
    num_steps: int = 60,
    num_neurons: int = 30,
    step: float = 0.015,
) -> xr.Dataset:
    """Simulated spikes of neurons that the Lorenz system drives: the usual proving ground of latent dynamics.

    Every condition is one stretch of the attractor, from a random start; its trials share their rates, and differ by
    Poisson noise. Each neuron's log-rate is a combination of the three coordinates (scaled to a largest absolute
    value of 1) with weights of size 1 to 2 and random sign.

    Args:
        seed: of the starts, the weights and the spikes.
        num_conditions: stretches.
        num_trials: repetitions of each.
        num_steps: bins.
        num_neurons: neurons.
        step: time units of the Lorenz system a bin.

    Returns:
        ``spikes`` and ``rate`` (spikes a bin), ``(trial, time, neuron)``, ``behaviour`` ``(trial, time, coordinate)``,
        the scaled coordinates, and the coordinate ``condition`` of each trial. Trials stand condition by condition.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> data = lorenz_spikes(num_trials=2)
        >>> dict(data["behaviour"].sizes), data["condition"].values[:5].tolist()
        ({'trial': 16, 'time': 60, 'coordinate': 3}, [0, 0, 1, 1, 2])
    """
    import xarray as xr

    given = (num_conditions, num_trials, num_steps, num_neurons, step)
    whole = all(isinstance(number, int | np.integer) for number in given[:4])
    if not whole or np.ndim(numbers(step, "step")) or not np.isfinite(step) or min(given) <= 0:
        raise ValueError(f"lorenz_spikes(): all of its numbers and its step must be positive; got {given}.")
    rng = np.random.default_rng(whole_number(seed, "seed", 0))
    states = _lorenz(rng.normal(size=(num_conditions, 3)), num_steps, step)
    states = states - states.mean((0, 1))
    states = (states / np.abs(states).max()).transpose(1, 0, 2)
    weights = (rng.random((3, num_neurons)) + 1) * np.sign(rng.normal(size=(3, num_neurons)))
    behaviour = np.repeat(states, num_trials, 0)
    rate = np.exp(behaviour @ weights)
    dims = ("trial", "time", "neuron")
    return xr.Dataset(
        {
            "spikes": (dims, rng.poisson(rate)),
            "rate": (dims, rate, {"units": "spikes a bin"}),
            "behaviour": (("trial", "time", "coordinate"), behaviour),
        },
        coords={
            "trial": np.arange(len(rate)),
            "time": np.arange(num_steps),
            "neuron": np.arange(num_neurons),
            "coordinate": ["x", "y", "z"],
            "condition": ("trial", np.repeat(np.arange(num_conditions), num_trials)),
        },
        attrs={"source": "simulated: Lorenz (1963), sigma = 10, rho = 28, beta = 8/3", "step": step},
    )


def _lorenz(state: np.ndarray, num_steps: int, step: float, transient: int = 1000) -> np.ndarray:
    """``(num_steps, N, 3)`` by the classical Runge-Kutta method, after a transient."""

    def velocity(s: np.ndarray) -> np.ndarray:
        x, y, z = s.T
        return np.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], -1)

    path = []
    for _ in range(transient + num_steps):
        k1 = velocity(state)
        k2 = velocity(state + 0.5 * step * k1)
        k3 = velocity(state + 0.5 * step * k2)
        k4 = velocity(state + step * k3)
        state = state + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        path.append(state)
    return np.array(path[transient:])


# ---------------------------------------------------------------------------------------------------- the questions


def bits_per_spike(
    rates: ArrayLike | xr.DataArray,
    counts: ArrayLike | xr.DataArray,
    null: ArrayLike | xr.DataArray | None = None,
) -> float:
    r"""How much better rates tell the spikes than constant rates do, in bits a spike.

    .. math::
        \frac{1}{n \log 2} \sum \left[\log \mathrm{Poisson}(y; \lambda) - \log \mathrm{Poisson}(y; \bar\lambda)\right]

    with n the number of spikes (Pei et al. 2021, Neural Latents Benchmark).

    Args:
        rates: ``(..., neurons)`` in spikes a bin; xarray objects are aligned with ``counts`` by the names of their
            dimensions.
        counts: of the same shape; NaN is left out.
        null: rates to compare with, such as ``(neurons,)``; ``None`` for the mean count of each neuron.

    Returns:
        The bits; ``-inf`` where a spike stands at a rate of zero.

    Raises:
        ValueError: shapes that differ, rates that are negative or not finite, no spikes.

    Example:
        >>> round(bits_per_spike([[0.5], [1.5]], [[0], [2]]), 6)
        0.584963
    """
    from scipy.special import xlogy

    rates, counts = _aligned(rates, counts, "bits_per_spike")
    seen = ~np.isnan(counts)
    if not ((counts[seen] >= 0) & np.isfinite(counts[seen]) & (counts[seen] == np.round(counts[seen]))).all():
        raise ValueError("bits_per_spike(): `counts` must be whole numbers that are not negative, or NaN.")
    if not (np.isfinite(rates[seen]).all() and (rates[seen] >= 0).all()):
        raise ValueError("bits_per_spike(): `rates` must be finite and not negative, in spikes a bin.")
    spikes_seen = np.where(seen, counts, 0.0)
    if not spikes_seen.sum() > 0:
        raise ValueError("bits_per_spike(): `counts` holds no spike, so nothing can be said of one.")
    if null is None:
        axes = tuple(range(counts.ndim - 1))
        null = spikes_seen.sum(axes) / np.maximum(seen.sum(axes), 1)
    null = np.asarray(positive_numbers(null, "null", zero=True), float)
    if null.shape not in ((), counts.shape[-1:], counts.shape):
        raise ValueError(f"bits_per_spike(): `null` has shape {null.shape}, and `counts` {counts.shape}.")
    null = np.broadcast_to(null, counts.shape)
    gain = xlogy(spikes_seen, rates) - xlogy(spikes_seen, null) - (rates - null)
    return float(np.where(seen, gain, 0.0).sum() / (spikes_seen.sum() * np.log(2.0)))


def co_smoothing(
    fit: Any,
    counts: ArrayLike | xr.DataArray,
    held_out: ArrayLike,
    *,
    null: ArrayLike | xr.DataArray | None = None,
) -> xr.DataArray:
    """Bits per spike of neurons that the encoder was not shown, at their posterior mean rates.

    Args:
        fit: of ``langevin_flow.spikes`` to these trials with the same ``held_out``, by a guide that reads the site ``spikes``
            alone. To judge generalisation, fit other trials, and let the trained guide read these.
        counts: ``(T, neurons)`` or ``(trials, T, neurons)``, of all neurons.
        held_out: as given to the model.
        null: rates to compare with, as in :func:`bits_per_spike`, of the held-out neurons.

    Returns:
        A number, with the attributes ``spikes`` and ``neurons``: over how many.

    Raises:
        ValueError: a fit of another model, or to data of another shape.

    Example:
        >>> import types
        >>> data = lorenz_spikes(num_trials=2)
        >>> truth = types.SimpleNamespace(posterior=data[["rate"]].expand_dims(chain=1, draw=1))
        >>> f"{co_smoothing(truth, data['spikes'], [3, 7]):.2f}"
        '0.91'
    """
    rates, counts = _aligned(_posterior_mean(fit, "rate"), counts, "co_smoothing")
    which = neuron_indices(held_out, counts.shape[-1])
    return _bits(rates[..., which], counts[..., which], null)


def forward_prediction(
    fit: Any, counts: ArrayLike | xr.DataArray, start: int, *, null: ArrayLike | xr.DataArray | None = None
) -> xr.DataArray:
    """Bits per spike of the last bins of each trial, which were NaN in the fit, at their posterior mean rates.

    Args:
        fit: of ``langevin_flow.spikes`` to the counts with NaN from bin ``start`` on.
        counts: ``(T, neurons)`` or ``(trials, T, neurons)``, with what happened in those bins.
        start: the first bin that the fit was not shown.
        null: rates to compare with, as in :func:`bits_per_spike`; ``None`` for the mean counts in those bins.

    Returns:
        A number, with the attributes ``spikes`` and ``neurons``: over how many.

    Raises:
        ValueError: a fit of another model, to data of another shape, or that has seen the bins; no bins.

    Example:
        >>> import types
        >>> data = lorenz_spikes(num_trials=2)
        >>> truth = types.SimpleNamespace(posterior=data[["rate"]].expand_dims(chain=1, draw=1))
        >>> f"{forward_prediction(truth, data['spikes'], 50):.2f}"
        '0.61'
    """
    rates, counts = _aligned(_posterior_mean(fit, "rate"), counts, "forward_prediction")
    start = whole_number(start, "start", None)
    if not 0 < start < counts.shape[-2]:
        raise ValueError(
            f"forward_prediction(): `start` must lie between 1 and {counts.shape[-2] - 1}, the last bin; got {start}."
        )
    fitted = np.asarray(getattr(fit, "constant_data", {}).get("counts", np.nan), float)
    if fitted.shape == counts.shape and not np.isnan(fitted[..., start:, :]).all():
        raise ValueError(
            f"forward_prediction(): the fit was shown bins from {start} on; fit counts that are NaN there."
        )
    return _bits(rates[..., start:, :], counts[..., start:, :], null)


def _bits(rates: np.ndarray, counts: np.ndarray, null: ArrayLike | xr.DataArray | None) -> xr.DataArray:
    import xarray as xr

    value = bits_per_spike(rates, counts, null)
    about = {"spikes": int(np.nansum(counts)), "neurons": counts.shape[-1]}
    return xr.DataArray(value, name="bits_per_spike", attrs=about)


def rate_r2(rates: ArrayLike | xr.DataArray, truth: ArrayLike | xr.DataArray) -> float:
    """Share of the variance of true rates that estimated ones explain, over all neurons together.

    Args:
        rates: ``(..., neurons)``; xarray objects are aligned with ``truth`` by the names of their dimensions.
        truth: of the same shape. What is to be explained is the deviation from each neuron's mean.

    Raises:
        ValueError: shapes that differ; true rates without variance.

    Example:
        >>> rate_r2([[1.0], [2.0], [3.5]], [[1.0], [2.0], [3.0]])
        0.875
    """
    rates, truth = _aligned(rates, truth, "rate_r2", "truth")
    for name, values in (("rates", rates), ("truth", truth)):
        finite_numbers(values, name)
    return _r2(rates, truth, "rate_r2(): `truth`")[1]


def _r2(estimate: np.ndarray, truth: np.ndarray, what: str) -> tuple[np.ndarray, float]:
    """Of each column, and of all together."""
    lead = tuple(range(truth.ndim - 1))
    left = ((estimate - truth) ** 2).sum(lead)
    total = ((truth - truth.mean(lead)) ** 2).sum(lead)
    if not (total > 0).any():
        raise ValueError(f"{what} does not vary, so no share of its variance can be explained.")
    with np.errstate(divide="ignore", invalid="ignore"):  # a constant column has none: minus infinity, or NaN
        return 1.0 - left / total, float(1.0 - left.sum() / total.sum())


def gaussian_smoothing(counts: ArrayLike | xr.DataArray, widths: float | Sequence[float]) -> xr.DataArray:
    """Rates by averaging each neuron's counts over time with a Gaussian kernel: the baseline of every latent model.

    Missing bins take no part: the weights of the others are renormalised, and where none is within reach (four
    standard deviations) the neuron's mean stands.

    Args:
        counts: ``(T, neurons)`` or ``(trials, T, neurons)``; NaN is missing.
        widths: standard deviation of the kernel in bins, one or several.

    Returns:
        ``([trial,] time, neuron)`` rates, or several widths first, ``(width, [trial,] time, neuron)``.

    Raises:
        ValueError: a width that is not positive; counts of another shape.

    Example:
        >>> smooth = gaussian_smoothing(lorenz_spikes(num_trials=1)["spikes"], [1.0, 3.0])
        >>> smooth.dims
        ('width', 'trial', 'time', 'neuron')
    """
    import xarray as xr
    from scipy.ndimage import gaussian_filter1d

    values = np.asarray(numbers(counts, "counts"), float)
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"gaussian_smoothing(): `counts` has shape {values.shape}; it must be (T, neurons) or (trials, T, neurons)."
        )
    if np.isinf(values).any():
        raise ValueError(
            "gaussian_smoothing(): `counts` must be finite, or NaN where missing; it holds infinity."
        )
    each = np.atleast_1d(np.asarray(numbers(widths, "widths"), float))
    if not (each.ndim == 1 and each.size and np.isfinite(each).all() and (each > 0).all()):
        raise ValueError(f"gaussian_smoothing(): `widths` must be positive, in bins; got {shown(widths)}.")
    seen = ~np.isnan(values)
    axes = tuple(range(values.ndim - 1))
    filled = np.where(seen, values, 0.0)
    mean = filled.sum(axes) / np.maximum(seen.sum(axes), 1)

    def smooth(width: float) -> np.ndarray:
        weight = gaussian_filter1d(seen.astype(float), width, axis=-2)
        total = gaussian_filter1d(filled, width, axis=-2)
        return np.where(weight > 1e-9, total / np.where(weight > 1e-9, weight, 1.0), mean)

    dims = ("trial", "time", "neuron")[3 - values.ndim :]
    coords: dict[Any, Any] = (
        dict(counts.coords) if isinstance(counts, xr.DataArray) and counts.dims == dims else {}
    )
    rates = xr.DataArray(
        np.stack([smooth(width) for width in each]),
        dims=("width", *dims),
        coords={"width": each, **coords},
        name="rate",
    )
    return rates if np.ndim(widths) else rates[0]


def decode(
    train_latents: ArrayLike | xr.DataArray,
    train_behaviour: ArrayLike | xr.DataArray,
    test_latents: ArrayLike | xr.DataArray,
    test_behaviour: ArrayLike | xr.DataArray | None = None,
    *,
    penalties: ArrayLike | None = None,
    num_folds: int = 5,
) -> xr.Dataset:
    """Behaviour as a linear function of the hidden state: ridge regression, its penalty by cross-validation.

    The folds are trials (every ``num_folds``-th), or stretches of one recording: neighbouring bins know each other.

    Args:
        train_latents: ``(trials, T, D)`` or ``(T, D)``; of xarray objects ``trial`` and ``time`` are found by name,
            so that ``fit.posterior["latent"].mean(("chain", "draw"))`` will do.
        train_behaviour: ``(trials, T, P)`` or ``(T, P)``, no NaN.
        test_latents: as ``train_latents``, of other trials.
        test_behaviour: as ``train_behaviour``, to score the prediction; ``None`` for none.
        penalties: to choose from, per row and on standardised latents; ``None`` for 17 from 1e-6 to 100.
        num_folds: of the cross-validation.

    Returns:
        ``prediction`` ``([trial,] time, coordinate)``; with ``test_behaviour`` the R^2 of each ``coordinate``, ``r2``,
        and that of all together, ``r2_total``. Attribute ``penalty``: the one chosen.

    Raises:
        ValueError: shapes that do not agree, values that are not finite, penalties that are not positive, fewer than
            two folds or more than there are trials.

    Example:
        >>> data = lorenz_spikes()
        >>> smooth = gaussian_smoothing(data["spikes"], 2.0)
        >>> train, test = smooth["trial"] % 20 < 16, smooth["trial"] % 20 >= 16
        >>> answer = decode(smooth[train], data["behaviour"][train], smooth[test], data["behaviour"][test])
        >>> bool(answer["r2_total"] > 0.9)
        True
    """
    import xarray as xr

    given = {"train_latents": train_latents, "train_behaviour": train_behaviour, "test_latents": test_latents}
    if test_behaviour is not None:
        given["test_behaviour"] = test_behaviour
    arrays = {}
    for name, array in given.items():
        x = arrays[name] = _trials_first(array, name)
        if x.ndim not in (2, 3) or 0 in x.shape or not np.isfinite(x).all():
            raise ValueError(
                f"decode(): `{name}` must be finite and of shape (T, n) or (trials, T, n); it has shape {x.shape}"
                f"{'' if np.isfinite(x).all() else ' and holds NaN or infinity'}."
            )
    x, y, x_new = (arrays[name] for name in ("train_latents", "train_behaviour", "test_latents"))
    y_new = arrays.get("test_behaviour")
    for one, two in ((x, y), (x_new, x_new if y_new is None else y_new)):
        if one.shape[:-1] != two.shape[:-1]:
            raise ValueError(
                f"decode(): latents {one.shape} and behaviour {two.shape} must share their trials and times."
            )
    if x_new.shape[-1] != x.shape[-1] or (y_new is not None and y_new.shape[-1] != y.shape[-1]):
        raise ValueError(
            "decode(): latents, and behaviour, must have as many columns for testing as for training."
        )
    given_choice = np.logspace(-6, 2, 17) if penalties is None else numbers(penalties, "penalties")
    choice = np.atleast_1d(np.asarray(given_choice, float))
    if choice.ndim != 1 or not choice.size or not ((choice > 0) & np.isfinite(choice)).all():
        raise ValueError(f"decode(): `penalties` must be positive; got {shown(penalties)}.")
    num_folds = whole_number(num_folds, "num_folds", None)
    if not 2 <= num_folds <= len(x):
        what = "trials" if x.ndim == 3 else "bins"
        raise ValueError(
            f"decode(): `num_folds` must lie between 2 and the {len(x)} {what} of the training set; got {num_folds}."
        )

    units = np.arange(len(x))
    fold = units % num_folds if x.ndim == 3 else units * num_folds // len(x)
    errors = np.zeros(len(choice))
    if len(choice) > 1:
        for k in range(num_folds):
            for i, w in enumerate(_ridge(x[fold != k], y[fold != k], choice)):
                errors[i] += ((w(x[fold == k]) - y[fold == k]) ** 2).sum()
    penalty = choice[errors.argmin()]
    prediction = _ridge(x, y, np.array([penalty]))[0](x_new)

    dims = ("trial", "time", "coordinate")[3 - prediction.ndim :]
    names = getattr(train_behaviour, "coords", {})
    coords = {"coordinate": np.asarray(names["coordinate"])} if "coordinate" in names else {}
    answer: dict[str, Any] = {"prediction": (dims, prediction)}
    if y_new is not None:
        each, total = _r2(prediction, y_new, "decode(): `test_behaviour`")
        answer |= {"r2": ("coordinate", each), "r2_total": total}
    return xr.Dataset(answer, coords=coords, attrs={"penalty": float(penalty)})


def _ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Predictors, one for each penalty, from one eigendecomposition."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    centre, level = x.mean(0), y.mean(0)
    spread = x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    z = (x - centre) / spread
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    target = vectors.T @ (z.T @ (y - level)) / len(z)

    def predictor(penalty: float) -> Callable[[np.ndarray], np.ndarray]:
        weights = vectors @ (target / (np.maximum(values, 0.0) + penalty)[:, None])
        return lambda new: (new - centre) / spread @ weights + level

    return [predictor(penalty) for penalty in penalties]


def neuron_indices(neurons: ArrayLike, size: int) -> np.ndarray:
    """Neurons given by index or by booleans, as sorted indices."""
    which = np.asarray(numbers(neurons, "held_out"))
    if which.dtype == bool:
        if which.shape != (size,):
            raise ValueError(
                f"`held_out` has shape {which.shape}; as booleans it needs one for each of {size} neurons."
            )
        which = np.flatnonzero(which)
    which = np.atleast_1d(which)
    if which.ndim != 1 or not which.size or not np.issubdtype(which.dtype, np.integer):
        raise ValueError(f"`held_out` must be indices of neurons, or booleans; got {shown(neurons)}.")
    if which.min() < 0 or which.max() >= size or len(np.unique(which)) < len(which):
        raise ValueError(
            f"`held_out` must be different indices from 0 to {size - 1}, one for each neuron; got {which.tolist()}."
        )
    return np.sort(which)


def _trials_first(array: Any, name: str) -> np.ndarray:
    dims = getattr(array, "dims", ())
    if {"trial", "time"} <= set(dims):
        array = array.transpose("trial", "time", ...)
    return np.asarray(numbers(array, name), float)


def _posterior_mean(fit: Any, name: str) -> Any:
    """Over chains and draws; trials first, then time."""
    if name not in posterior_of(fit):
        raise ValueError(
            f"The fit has no `{name}`: it is not of sojourn.models.langevin_flow.spikes, or its deterministic sites "
            "were left out."
        )
    mean = fit.posterior[name].mean(("chain", "draw"))
    return mean.transpose("trial", "time", ...) if "trial" in mean.dims else mean.transpose("time", ...)


def _aligned(one: Any, two: Any, function: str, second: str = "counts") -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape; of xarray objects by the names of their dimensions."""
    if hasattr(one, "dims") and hasattr(two, "dims") and set(one.dims) == set(two.dims):
        one = one.transpose(*two.dims)
    one = np.asarray(numbers(one, "rates"), float)
    two = np.asarray(numbers(two, second), float)
    if one.shape != two.shape or two.ndim < 1 or 0 in two.shape:
        raise ValueError(
            f"{function}(): the rates have shape {one.shape} and `{second}` {two.shape}; they must be the same, "
            "neurons last, and not empty."
        )
    if np.isinf(two).any():
        raise ValueError(f"{function}(): `{second}` must be finite, or NaN where missing; it holds infinity.")
    return one, two
