"""Have the labels of exchangeable states switched, between chains or within one?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sojourn.diagnostics.labels import assign, common_order, label_features, permute, squared_distances

if TYPE_CHECKING:
    import xarray as xr

SEPARATION = 2.2
CHAIN_REDUCTION = 0.75
CHAIN_NOISE = 8.0


@dataclass(frozen=True)
class Switching:
    """Which draws carry other labels than the most common order.

    Args:
        switched: Shape (chain, draw).
        permutations: Permutations to a common order, shape (chain, draw, label).
    """

    switched: np.ndarray
    permutations: np.ndarray

    @property
    def fraction(self) -> float:
        """Fraction of all draws whose labels differ from the most common order."""
        return float(self.switched.mean())

    def where(self) -> str:
        """Say in words which chains are concerned."""
        by_chain = self.switched.mean(axis=1)
        whole = [str(chain) for chain in np.flatnonzero(by_chain >= 0.9)]
        within = [str(chain) for chain in np.flatnonzero((by_chain >= 0.01) & (by_chain < 0.9))]
        words = []
        if whole:
            words.append(f"chain{'s' * (len(whole) > 1)} {', '.join(whole)} in another order")
        if within:
            words.append(f"switching within chain{'s' * (len(within) > 1)} {', '.join(within)}")
        return "; ".join(words)


def detect(posterior: xr.Dataset, dim: str, log_density: np.ndarray | None) -> Switching:
    """Find the draws whose labels differ from the most common order.

    Within chains: every draw is brought to a common order. Overlapping states make some draws look swapped
    though nothing switched, so a draw counts only if (1) undoing its permutation makes it fit at least half
    as much better as a perfect swap would, and (2) that permutation is identifiable: over all relabelled
    draws, the loss of fit under it has a mean of at least 2.2 of its standard deviations (complete overlap
    gives 1.3, two modes more than 2).
    Between chains, where a mean over many draws separates states that single draws do not: a chain counts if
    a permutation of its mean features takes away three quarters of its squared distance to the reference
    chain, and that gain is at least eight times what the two halves of a chain differ by.

    Args:
        posterior: The posterior draws, without NaN.
        dim: The dimension that runs over the labels.
        log_density: Log density of each draw, shape (chain, draw), or None.

    Returns:
        The switched draws and the permutations.

    Example:
        >>> import numpy as np, xarray as xr
        >>> mu = np.array([0.0, 3.0]) + 0.1 * np.random.default_rng(0).normal(size=(4, 100, 2))
        >>> mu[3] = mu[3, :, ::-1]
        >>> found = detect(xr.Dataset({"mu": (("chain", "draw", "state"), mu)}), "state", None)
        >>> found.fraction, found.where()
        (0.25, 'chain 3 in another order')
    """
    features = label_features(posterior, dim)
    chains, draws, labels, size = features.shape
    permutations = common_order(features, log_density)
    if size == 0:
        return Switching(np.zeros((chains, draws), dtype=bool), permutations)
    flat = features.reshape(chains * draws, labels, size)
    relative, counts = _relative_to_majority(permutations.reshape(-1, labels))
    aligned = permute(flat, relative)
    mean = aligned.mean(axis=0)
    scale = np.sqrt(np.maximum(((aligned - mean) ** 2).mean(axis=(0, 1)), 1e-6))
    within = _switched_draws(aligned / scale, mean / scale, relative, counts)
    switched = within.reshape(chains, draws)
    switched[_switched_chains(features / scale)] = True
    return Switching(switched, permutations)


def _relative_to_majority(permutations: np.ndarray) -> tuple[np.ndarray, dict[tuple[int, ...], int]]:
    """Rename the reference so that most draws have the identity; also count the permutations."""
    distinct, counts = np.unique(permutations, axis=0, return_counts=True)
    relative = permutations[:, np.argsort(distinct[counts.argmax()])]
    distinct, counts = np.unique(relative, axis=0, return_counts=True)
    return relative, {tuple(map(int, row)): int(count) for row, count in zip(distinct, counts, strict=True)}


def _switched_draws(
    aligned: np.ndarray, mean: np.ndarray, relative: np.ndarray, counts: dict[tuple[int, ...], int]
) -> np.ndarray:
    distances = squared_distances(aligned, mean)
    labels = np.arange(mean.shape[0])
    own = distances[:, labels, labels].sum(axis=1)
    switched = np.zeros(len(aligned), dtype=bool)
    common = sorted(counts, key=counts.__getitem__, reverse=True)[:50]
    for permutation in common:
        if permutation == tuple(labels):
            continue
        # The draw as it was is the aligned draw under the inverse permutation.
        loss = distances[:, labels, np.argsort(permutation)].sum(axis=1) - own
        if loss.mean() >= SEPARATION * loss.std():
            switched |= (relative == permutation).all(axis=1) & (loss >= loss.mean() / 2)
    return switched


def _switched_chains(features: np.ndarray) -> list[int]:
    chains, draws, labels = features.shape[:3]
    if chains == 1 or draws < 4:
        return []
    means = features.mean(axis=1)
    half = draws // 2
    halves = features[:, :half].mean(axis=1) - features[:, half:].mean(axis=1)
    noise = (halves**2).sum(axis=(1, 2)).mean() / 2
    index = np.arange(labels)
    best: list[int] | None = None
    for reference in range(chains):
        distances = squared_distances(means, means[reference])
        permutations = assign(means, means[reference])
        own = distances[:, index, index].sum(axis=1)
        gain = own - np.take_along_axis(distances, permutations[..., None], axis=2).sum(axis=(1, 2))
        found = [
            int(c) for c in np.flatnonzero((gain >= CHAIN_REDUCTION * own) & (gain > CHAIN_NOISE * noise))
        ]
        if best is None or len(found) < len(best):
            best = found
    return best or []
