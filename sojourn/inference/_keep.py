"""What is kept of the draws of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sojourn._arguments import is_list, numbers
from sojourn.ops.running_summary import RunningSummary, begin_summary, summary_quantiles, update_summary

__all__ = ["Keep", "as_keep"]


class Keep:
    """What ``sj.fit`` keeps of the draws: ``sj.fit(..., keep=sj.Keep(summarise=["h"], thinning=5))``.

    A thousand draws of a path of a hundred thousand points are 400 MB. Sites that are only looked at as a band around
    a mean need not be kept draw by draw: a running summary takes the memory of a few draws, however many there are.

    Args:
        sites: names of the latent and deterministic sites to keep; all by default. ``keep=["a", "b"]`` is short for
            ``Keep(sites=["a", "b"])``.
        summarise: names of the sites of which only running summaries are kept, by chain: mean, standard deviation and
            quantiles. They make the group ``running_summary`` of the fit (dimension ``statistic``).
        thinning: iterations of the chain for one kept draw.
        quantiles: of the summaries. They are running estimates (the P-square rule), within a few hundredths of a
            standard deviation for a thousand draws or more.

    Where latent sites are left out, the groups that need them (``log_likelihood``, ``posterior_predictive``) are too.

    Raises:
        ValueError: no names, a site that is both kept and summarised, a thinning below one, quantiles that are not
            increasing between 0 and 1. When the fit starts: a site that the model does not have, or a discrete or
            ragged one to summarise.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def levels(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     with numpyro.plate("unit", 200):
        ...         x = numpyro.sample("x", dist.Normal(0.0, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> fit = sj.fit(levels, np.zeros(200), keep=sj.Keep(summarise=["x"]), num_chains=2, num_warmup=100,
        ...              num_samples=100, progress_bar=False)
        >>> list(fit.posterior), fit.running_summary["x"].dims
        (['scale'], ('chain', 'statistic', 'unit'))
    """

    def __init__(
        self,
        sites: Iterable[str] | None = None,
        *,
        summarise: Iterable[str] = (),
        thinning: int = 1,
        quantiles: Iterable[float] = (0.05, 0.5, 0.95),
    ):
        self.sites = None if sites is None else _names(sites, "sites")
        self.summarise = _names(summarise, "summarise")
        both = set(self.sites or ()) & set(self.summarise)
        if both:
            raise ValueError(f"Site '{both.pop()}' is to be kept and to be summarised: choose one.")
        if isinstance(thinning, bool) or not isinstance(thinning, int | np.integer) or thinning < 1:
            raise ValueError(f"`thinning` of Keep is a whole number of at least 1, not {thinning!r}.")
        self.thinning = int(thinning)
        self.quantiles = tuple(np.ravel(numbers(quantiles, "quantiles")).astype(float).tolist())
        steps = np.diff([0.0, *self.quantiles, 1.0])
        if not (steps > 0).all():
            raise ValueError(
                f"`quantiles` of Keep increase between 0 and 1, and these do not: {self.quantiles}."
            )

    def __repr__(self) -> str:
        return f"Keep({self.sites}, summarise={self.summarise}, thinning={self.thinning}, quantiles={self.quantiles})"

    def check(self, forms: Mapping[str, Any]) -> None:
        """Refuse names that the draws do not have.

        Args:
            forms: shape and type of each site of a draw.
        """
        for name in [*(self.sites or ()), *self.summarise]:
            if name not in forms:
                raise ValueError(f"`keep` names '{name}', and the sites of the draws are {sorted(forms)}.")
        for name in self.summarise:
            if not jnp.issubdtype(forms[name].dtype, jnp.floating):
                raise ValueError(
                    f"Site '{name}' is discrete ({forms[name].dtype}): mean and quantiles would say little of it. Keep "
                    "its draws, or thin them."
                )

    def split(self, sites: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Sites whose draws are kept, and those to summarise."""
        wanted = [n for n in sites if (self.sites is None or n in self.sites) and n not in self.summarise]
        return {n: sites[n] for n in wanted}, {n: sites[n] for n in self.summarise}

    def begin(self, forms: Mapping[str, Any]) -> dict[str, RunningSummary]:
        return {n: begin_summary(f.shape, self.quantiles, f.dtype) for n, f in forms.items()}

    def update(
        self, summaries: Mapping[str, RunningSummary], seen: Mapping[str, Any]
    ) -> dict[str, RunningSummary]:
        return {n: update_summary(s, seen[n], self.quantiles) for n, s in summaries.items()}

    def table(self, summaries: Mapping[str, RunningSummary], axis: int) -> dict[str, np.ndarray]:
        """Arrays of all statistics by site, along ``axis``, in the order of :attr:`statistics`."""
        found = {}
        for name, summary in summaries.items():
            sd = jnp.sqrt(summary.square / jnp.maximum(summary.seen - 1, 1))
            rows = jnp.concatenate([summary.mean[None], sd[None], summary_quantiles(summary)])
            found[name] = np.moveaxis(np.asarray(rows), 0, axis)
        return jax.tree.map(np.asarray, found)

    @property
    def statistics(self) -> list[str]:
        return ["mean", "sd", *(f"q{100 * q:g}" for q in self.quantiles)]


def _names(value: Any, argument: str) -> tuple[str, ...]:
    names = tuple(value) if is_list(value) else ()
    if not is_list(value) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{argument}` of Keep is a list of names of sites, not {value!r}.")
    return names


def as_keep(keep: Any) -> Keep:
    """A ``Keep``, of names or of nothing."""
    if keep is None or isinstance(keep, Keep):
        return Keep() if keep is None else keep
    if isinstance(keep, str | Mapping) or not isinstance(keep, Iterable):
        raise ValueError(f"`keep` is a list of names of sites or an sj.Keep, not {keep!r}.")
    return Keep(keep)
