"""Labels of exchangeable states: put every draw in the same order.

A model whose states can be renamed without changing its density has a posterior with one copy of itself for
each permutation of the labels. Summaries by state then mean nothing until each draw is brought to a common
order. As in Stephens (2000), J. R. Statist. Soc. B 62:795-809, each draw gets the permutation that brings it
closest to a reference, and the reference is then replaced by the mean of the relabelled draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn._arguments import is_list, must_be
from sojourn.diagnostics._arviz import group, require_posterior, with_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

MAX_FEATURES = 50
MEDOID_DRAWS = 64


def label_dims_present(posterior: xr.Dataset, label_dims: Sequence[str]) -> list[str]:
    """Return those of `label_dims` that some posterior variable has, with at least two labels.

    Args:
        posterior: The posterior draws.
        label_dims: Names of dimensions that run over exchangeable labels.

    Returns:
        The names present, in the order given.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw", "state"), np.zeros((1, 2, 3)))})
        >>> label_dims_present(posterior, ["state", "k"])
        ['state']
    """
    if isinstance(label_dims, str):
        raise TypeError(f"label_dims is a sequence of names, such as ({label_dims!r},), not a string.")
    must_be(is_list(label_dims), "label_dims", "a list of names", label_dims)
    return [dim for dim in label_dims if posterior.sizes.get(dim, 0) >= 2]


def _robust_scores(values: np.ndarray) -> np.ndarray:
    """Put each column of (sample, column) on a common scale that outliers do not set.

    The score is asinh((x - median) / scale), linear in the middle and logarithmic in the tails, where the
    scale is the distance between the 10 % and 90 % quantiles over that of a normal variable.
    """
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    scale = (high - low) / 2.563
    scale = np.where(scale > 0, scale, values.std(axis=0))
    return np.arcsinh((values - median) / np.where(scale > 0, scale, 1.0))


def label_features(posterior: xr.Dataset, dim: str) -> np.ndarray:
    """What each label looks like in each draw, on a scale on which no variable dominates.

    Every entry of a variable is scored by its place among all draws and labels, asinh((x - median) / spread),
    so neither units nor heavy tails matter, and each variable counts once however many entries it has (at
    most 50 of them are used). An entry then counts by how well it tells labels apart: its scores are divided
    by the spread that is left when the labels of each draw are sorted by that entry, which needs no labels to
    be known. From a variable with the paired dimension `next_<dim>` as well, such as a transition matrix, a
    label gets its diagonal entry and its sorted other entries, by row and by column: these follow the label
    whatever the order of the rest.

    Args:
        posterior: The posterior draws.
        dim: The dimension that runs over the labels.

    Returns:
        Features, shape (chain, draw, label, feature). Permuting the labels of a draw permutes its third axis.

    Example:
        >>> import numpy as np, xarray as xr
        >>> mu = np.random.default_rng(0).normal(size=(2, 50, 3))
        >>> label_features(xr.Dataset({"mu": (("chain", "draw", "state"), mu)}), "state").shape
        (2, 50, 3, 1)
    """
    chains, draws, labels = (posterior.sizes[name] for name in ("chain", "draw", dim))
    columns = []
    for array in posterior.data_vars.values():
        axes = [name for name in (dim, f"next_{dim}") if name in array.dims]
        if not axes or array.dtype.kind not in "fiub":
            continue
        values = np.asarray(array.transpose("chain", "draw", *axes, ...).values, dtype=float)
        values = values.reshape(chains * draws, labels ** len(axes), -1)
        kept = np.unique(np.linspace(0, values.shape[-1] - 1, MAX_FEATURES).astype(int))
        values = values[..., kept]
        scores = _robust_scores(values.reshape(-1, kept.size)).reshape(values.shape)
        if len(axes) == 2:
            scores = _pair_features(scores.reshape(chains * draws, labels, labels, kept.size))
        total = scores.var(axis=(0, 1))
        varying = total > 0
        if varying.any():
            scores, total = scores[..., varying], total[varying]
            sorted_variance = np.sort(scores, axis=1).var(axis=0).mean(axis=0)
            spread = np.sqrt(np.maximum(sorted_variance, 0.002 * total))
            columns.append(scores / (spread * np.sqrt(varying.sum())))
    features = np.concatenate(columns, axis=-1) if columns else np.zeros((chains * draws, labels, 0))
    return features.reshape(chains, draws, labels, -1)


def _pair_features(scores: np.ndarray) -> np.ndarray:
    """From (sample, label, next label, entry) to features that follow the label, (sample, label, feature)."""
    samples, labels = scores.shape[:2]
    off = ~np.eye(labels, dtype=bool)
    diagonal = np.einsum("niie->nie", scores)[:, :, None]
    rows = np.sort(scores[:, off].reshape(samples, labels, labels - 1, -1), axis=2)
    columns = np.sort(scores.swapaxes(1, 2)[:, off].reshape(samples, labels, labels - 1, -1), axis=2)
    return np.concatenate([diagonal, rows, columns], axis=2).reshape(samples, labels, -1)


def squared_distances(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Squared distance of each label of each draw to each label of the reference.

    Args:
        features: Shape (sample, label, feature).
        reference: Shape (label, feature).

    Returns:
        Shape (sample, reference label, draw label).

    Example:
        >>> import numpy as np
        >>> squared_distances(np.array([[[0.0], [2.0]]]), np.array([[0.0], [1.0]])).tolist()
        [[[0.0, 4.0], [1.0, 1.0]]]
    """
    cross = np.einsum("nif,jf->nji", features, reference)
    squares = (reference**2).sum(-1)[None, :, None] + (features**2).sum(-1)[:, None, :]
    return np.maximum(squares - 2.0 * cross, 0.0)


def assign(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """For each draw, the permutation that brings its labels closest to the reference (the Hungarian method).

    Args:
        features: Shape (sample, label, feature).
        reference: Shape (label, feature).

    Returns:
        Permutations, shape (sample, label): label `j` of the reference is label `permutation[j]` of the draw.

    Example:
        >>> import numpy as np
        >>> assign(np.array([[[5.0], [0.0], [9.0]]]), np.array([[0.0], [5.0], [9.0]])).tolist()
        [[1, 0, 2]]
    """
    from scipy.optimize import linear_sum_assignment

    costs = squared_distances(features, reference)
    return np.array([linear_sum_assignment(cost)[1] for cost in costs]).reshape(features.shape[:2])


def permute(features: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Put the labels of each draw in the order of the reference.

    Args:
        features: Shape (sample, label, ...).
        permutations: Shape (sample, label), as `assign` returns them.

    Returns:
        The array in the new order, same shape.

    Example:
        >>> import numpy as np
        >>> permute(np.array([[5, 0, 9]]), np.array([[1, 0, 2]])).tolist()
        [[0, 5, 9]]
    """
    index = permutations.reshape(permutations.shape + (1,) * (features.ndim - 2))
    return np.take_along_axis(features, index, axis=1)


def common_order(features: np.ndarray, log_density: np.ndarray | None, *, iterations: int = 3) -> np.ndarray:
    """Permutations that bring all draws to a common order.

    The first reference is the draw of highest log density, or else the medoid of 64 evenly spaced draws; the
    next ones are the mean of the relabelled draws, until the permutations stay the same.

    Args:
        features: From `label_features`, shape (chain, draw, label, feature).
        log_density: Log density of each draw, shape (chain, draw), or None.
        iterations: The largest number of references.

    Returns:
        Permutations, shape (chain, draw, label).

    Example:
        >>> import numpy as np
        >>> features = np.array([[[[0.0], [1.0]], [[1.1], [0.1]], [[0.0], [0.9]]]])
        >>> common_order(features, np.array([[-1.0, -2.0, -3.0]])).tolist()
        [[[0, 1], [1, 0], [0, 1]]]
    """
    chains, draws, labels, _ = features.shape
    flat = features.reshape(chains * draws, labels, -1)
    if log_density is not None and np.isfinite(log_density).any():
        reference = flat[int(np.nanargmax(np.where(np.isfinite(log_density), log_density, np.nan)))]
    else:
        picked = flat[np.unique(np.linspace(0, len(flat) - 1, MEDOID_DRAWS).astype(int))]
        totals = []
        for candidate in picked:
            totals.append(((permute(picked, assign(picked, candidate)) - candidate) ** 2).sum())
        reference = picked[int(np.argmin(totals))]
    permutations = assign(flat, reference)
    for _ in range(iterations - 1):
        previous = permutations
        permutations = assign(flat, permute(flat, previous).mean(axis=0))
        if np.array_equal(permutations, previous):
            break
    return permutations.reshape(chains, draws, labels)


def log_density(fit: Any) -> np.ndarray | None:
    """Log density of each draw, `sample_stats["lp"]`, where the fit has it.

    Args:
        fit: An ArviZ container.

    Returns:
        Shape (chain, draw), or None.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from sojourn.diagnostics._arviz import container
        >>> draws = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> log_density(container({"posterior": draws, "sample_stats": draws.rename(mu="lp")})).shape
        (2, 5)
    """
    stats = group(fit, "sample_stats")
    if stats is None or "lp" not in stats or set(stats["lp"].dims) != {"chain", "draw"}:
        return None
    return np.asarray(stats["lp"].transpose("chain", "draw").values, dtype=float)


def reorder(posterior: xr.Dataset, dim: str, permutations: np.ndarray) -> xr.Dataset:
    """Apply permutations to every variable that has the dimension `dim` or `next_<dim>`.

    Args:
        posterior: The posterior draws.
        dim: The dimension that runs over the labels.
        permutations: Shape (chain, draw, label).

    Returns:
        A new dataset; the coordinates stay as they are.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw", "state"), np.array([[[2.0, 1.0]]]))})
        >>> reorder(posterior, "state", np.array([[[1, 0]]]))["mu"].values.tolist()
        [[[1.0, 2.0]]]
    """
    new = {}
    for name, array in posterior.data_vars.items():
        axes = [axis for axis in (dim, f"next_{dim}") if axis in array.dims]
        if not axes:
            continue
        moved = array.transpose("chain", "draw", ...)
        values = moved.values
        for axis in map(moved.dims.index, axes):
            shape = [1] * values.ndim
            shape[0], shape[1], shape[axis] = permutations.shape
            values = np.take_along_axis(values, permutations.reshape(shape), axis=axis)
        new[name] = moved.copy(data=values).transpose(*array.dims)
    return posterior.assign(new)


def relabel(fit: Any, *, label_dims: Sequence[str] = ("state",), label_values: Sequence[str] = ()) -> Any:
    """Undo label switching: give the states of every draw the same order.

    Each draw gets the permutation of its labels that brings it closest to a reference (the Hungarian method
    on normal scores, see `label_features`); the reference starts as the draw of highest `sample_stats["lp"]`,
    or the medoid of the draws where there is no `lp`, and is then the mean of the relabelled draws.

    Relabelling makes summaries by state readable; it cannot separate states that the data do not separate.
    Where an order is known beforehand, an ordered location in the model (`ordered=True`) is better.

    Args:
        fit: An ArviZ container.
        label_dims: Dimensions that run over exchangeable labels. Every posterior variable with such a
            dimension, or with its pair `next_<dim>` (a transition matrix has both), is put in the new order.
        label_values: Posterior variables whose *values* are labels 0, 1, ... of `label_dims[0]`, such as a
            sampled path of states. They have no dimension to tell them by, so they must be named.

    Returns:
        A new container. `sample_stats["label_permutation"]`, dimensions (chain, draw, state), says which
        label of the original draw each label is; with several dimensions present it is
        `label_permutation_<dim>` for each.

    Raises:
        TypeError: If `fit` is not an ArviZ container.
        ValueError: If no posterior variable has such a dimension, or the posterior has NaN there.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from sojourn.diagnostics._arviz import container
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.permuted(np.array([0.0, 3.0]) + 0.1 * rng.normal(size=(2, 100, 2)), axis=-1)
        >>> fit = container({"posterior": xr.Dataset({"mu": (("chain", "draw", "state"), mu)})})
        >>> np.sort(relabel(fit).posterior["mu"].mean(("chain", "draw")).values).round().astype(int).tolist()
        [0, 3]
    """
    posterior = require_posterior(fit, "relabel")
    present = label_dims_present(posterior, label_dims)
    if not present:
        raise ValueError(
            f"relabel(): no posterior variable has a dimension of {list(label_dims)} with two labels or "
            f"more; the dimensions are {dict(posterior.sizes)}."
        )
    unknown = [name for name in label_values if name not in posterior.data_vars]
    if unknown:
        raise ValueError(f"relabel(): the posterior has no {unknown} (label_values).")
    import xarray as xr

    stats = group(fit, "sample_stats")
    stats = stats.copy() if stats is not None else xr.Dataset()
    for position, dim in enumerate(present):
        holders = [a for a in posterior.data_vars.values() if {dim, f"next_{dim}"} & set(a.dims)]
        if any(a.dtype.kind == "f" and bool(a.isnull().any()) for a in holders):
            raise ValueError(f"relabel(): the posterior has NaN in a variable with dimension {dim!r}.")
        permutations = common_order(label_features(posterior, dim), log_density(fit))
        posterior = reorder(posterior, dim, permutations)
        if position == 0:
            inverse = np.argsort(permutations, axis=-1)
            for name in label_values:
                array = posterior[name].transpose("chain", "draw", ...)
                flat = array.values.astype(int).reshape(*permutations.shape[:2], -1)
                values = np.take_along_axis(inverse, flat, axis=-1).reshape(array.shape)
                renamed = array.copy(data=values.astype(array.dtype)).transpose(*posterior[name].dims)
                posterior = posterior.assign({name: renamed})
        name = "label_permutation" if len(present) == 1 else f"label_permutation_{dim}"
        if name in stats:
            permutations = np.take_along_axis(
                stats[name].transpose("chain", "draw", dim).values, permutations, axis=-1
            )
        coords = {key: posterior[key] for key in ("chain", "draw", dim) if key in posterior.coords}
        stats[name] = xr.DataArray(permutations, dims=("chain", "draw", dim), coords=coords)
    return with_groups(fit, {"posterior": posterior, "sample_stats": stats})
