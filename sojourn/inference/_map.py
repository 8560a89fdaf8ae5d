"""The posterior mode of any model, by L-BFGS from several starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to, transforms
from numpyro.infer import init_to_median, init_to_sample
from numpyro.infer.util import helpful_support_errors
from tqdm.auto import tqdm

from sojourn._contract import Site
from sojourn.inference._check_model import check_gradient_engine, latent_sites
from sojourn.inference._initial import compiled_once, init_to_hint
from sojourn.inference._predictive import site_log_prob
from sojourn.inference._whole_data import whole_data

__all__ = ["MaximumAPosteriori"]

_REACH = 16.0  # half the width of the box, in unconstrained coordinates
_MOVED = 2.0  # how far from the first start others begin, at most, likewise
_TRIES = 20  # draws for one start until the density is finite
_MEMORY = 20  # pairs of steps and gradients that L-BFGS keeps
_ROUNDS = 5  # searches in a row, each from where the last one ended
_POLISH = 20  # steps by the gradient alone, after each
_SAME = 0.01  # nats between restarts that count as having found the same mode


class _Run(NamedTuple):
    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    attrs: dict[str, Any]


class _Peak(NamedTuple):
    """Where a climb ended."""

    vector: np.ndarray
    log_density: float
    num_steps: int
    converged: bool


class MaximumAPosteriori:
    """Settings of the engine ``"map"``: the values of the latent sites at which their posterior density is highest.

    The density is that of the latent sites **on their own scale** (no Jacobian enters, as with NumPyro's
    ``AutoDelta``), so the mode of a probability with ``Beta(a, b)`` posterior is ``(a - 1) / (a + b - 2)``. With flat
    priors it is the maximum-likelihood estimate. A mode belongs to a parametrisation: that of a rate is not the
    exponential of the mode of its logarithm.

    The search itself goes by unconstrained coordinates (logarithms, logits, ...): L-BFGS-B (Byrd, Lu, Nocedal and Zhu
    1995, *SIAM J. Sci. Comput.* 16:1190) from several starts, of which the best end is kept. Values of a density in
    single precision hide a maximum flatter than their rounding, at which line searches stall; from there quasi-Newton
    steps go on by the gradient alone, which does not. A climb has converged when such a step would gain less than
    ``tolerance`` nats, that is, when the end is about ``sqrt(2 * tolerance)`` posterior standard deviations from the
    mode.

    **Runaways.** Where the data say that a probability is one or a hazard zero, the maximum lies at the end of an
    infinite axis. Coordinates of bounded and positive sites, of simplices and of correlations stay in a box: 16 to
    either side of zero and, for those bounded on one side, of the first start as well. A logit of 16 is 1e-7 from
    one, a logarithm of -16 is 1e-7. The attribute ``at_bound`` names the sites that stopped there; others come to rest
    before, where the density has become flat. Sites over the whole real line have no bounds.

    **What the fit holds**: one chain of one draw, the mode. There are no intervals. Its attributes: ``converged``,
    ``num_steps`` (of the climb that was kept), ``log_density``, ``restart_kept``, ``restart_log_density`` (a JSON list;
    null for a restart without a start of finite density), ``restart_spread`` (nats from the best end to the worst),
    ``restarts_at_best`` (ends within 0.01 nats of the best), ``at_bound`` and ``point_estimate``. An interrupt keeps
    the best so far.

    A plate that takes a subsample takes all its elements here. Discrete sites in a ``scan`` are summed out by
    ``sj.fit``; a continuous path is maximised with everything else, so that what comes out is the most probable path
    and the parameters most probable *with that path*, whose scales are then too small: integrate the path out first
    (``path=False``), where the model can.

    Args:
        num_restarts: climbs. The first begins at the hints of the model (``infer={"init": value}``; without one at the
            median of the prior), the next up to 2 away from there on the unconstrained scale, the third at a draw of
            the prior, and so on in turn.
        max_steps: most steps of one climb.
        tolerance: nats that one more step may still gain.

    Raises:
        ValueError: an option out of range; a discrete latent site.
        RuntimeError: at the run: a density or gradient that is not finite at any start.

    Example:
        Seven heads in ten tosses under a ``Beta(2, 2)`` prior: the mode of ``Beta(9, 5)`` is 8 / 12.

        >>> import numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Beta(2.0, 2.0))
        ...     numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> tosses = np.array([1, 1, 0, 1, 1, 0, 1, 1, 0, 1])
        >>> fit = sj.fit(coin, tosses, engine=sj.MaximumAPosteriori(num_restarts=2), progress_bar=False)
        >>> fit.posterior["p"].shape, round(float(fit.posterior["p"].squeeze()), 3), fit.attrs["converged"]
        ((1, 1), 0.667, 1)
        >>> print(sj.check(fit).verdict())
        All 2 checks passed (map, a point estimate without intervals).
    """

    def __init__(self, *, num_restarts: int = 4, max_steps: int = 2000, tolerance: float = 1e-6):
        for name, value in (("num_restarts", num_restarts), ("max_steps", max_steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` of MaximumAPosteriori must be a positive integer, not {value!r}.")
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < np.inf:
            raise ValueError(
                f"`tolerance` of MaximumAPosteriori is a gain in nats, positive and finite, not {tolerance!r}."
            )
        self.num_restarts = num_restarts
        self.max_steps = max_steps
        self.tolerance = tolerance

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        num_samples: int = 1,
        key: Array,
        progress_bar: bool = True,
    ) -> _Run:
        """Find the mode. Called by ``sj.fit``; there is one mode, whatever ``num_samples``."""
        density = _Density(whole_data(model), args, kwargs, key)
        peaks: list[_Peak | None] = []
        starts = density.starts(self.num_restarts)
        with tqdm(total=self.num_restarts, disable=not progress_bar, desc="map") as bar:
            try:
                for start in starts:
                    peaks.append(None if start is None else self._climb(density, start))
                    density.best = None
                    bar.update()
                    best = max((peak.log_density for peak in peaks if peak), default=np.nan)
                    bar.set_postfix_str(f"log density {best:.2f}")
            except KeyboardInterrupt:  # what the climb under way has found so far
                if density.best is not None:
                    value, vector = density.best
                    peaks.append(_Peak(vector, -value, 0, False))
                if not any(peaks):
                    raise
        ends = np.array([np.nan if peak is None else peak.log_density for peak in peaks])
        if np.isnan(ends).all():
            raise RuntimeError(
                "The log density or its gradient is not finite at any of the starts: check the priors and the data's "
                "scale, or hint a start with infer={'init': value}."
            )
        kept = int(np.nanargmax(ends))
        peak = peaks[kept]
        assert peak is not None
        draws = density.values(peak.vector)
        attrs = {
            "converged": int(peak.converged),
            "point_estimate": 1,
            "num_steps": peak.num_steps,
            "log_density": peak.log_density,
            "restart_kept": kept,
            "restart_log_density": json.dumps([None if np.isnan(end) else round(float(end), 6) for end in ends]),
            "restart_spread": float(np.nanmax(ends) - np.nanmin(ends)),
            "restarts_at_best": int((ends > ends[kept] - max(_SAME, density.rounding(ends[kept]))).sum()),
            "at_bound": ", ".join(density.at_bound(peak.vector)),
        }
        stats = {"lp": np.full((1, 1), peak.log_density)}
        return _Run({n: np.asarray(v)[None, None] for n, v in draws.items()}, stats, attrs)

    def _climb(self, density: _Density, vector: np.ndarray) -> _Peak:
        from scipy.optimize import minimize  # not needed by `import sojourn`

        steps, converged = 0, False
        value = density(vector)[0]
        for _ in range(_ROUNDS):
            found = minimize(
                density,
                vector,
                jac=True,
                method="L-BFGS-B",
                bounds=density.bounds,
                # It stops for want of progress only; whether it has arrived is for the gradient to say.
                options={
                    "maxiter": self.max_steps - steps,
                    "maxfun": 20 * self.max_steps,
                    "maxcor": _MEMORY,
                    "ftol": density.precision,
                    "gtol": 0.0,
                },
            )
            steps += max(int(found.nit), 1)
            vector, end, gain = self._polish(density, found.x, found.hess_inv)
            converged = gain <= self.tolerance
            stalled = not end < value
            value = end
            if converged or stalled or steps >= self.max_steps:
                break
        return _Peak(vector, -value, steps, converged)

    def _polish(self, density: _Density, vector: np.ndarray, inverse: Any) -> tuple[np.ndarray, float, float]:
        """Quasi-Newton steps as long as they shrink what the next one would gain; with value and gain at the end."""
        value, slope = density(vector)
        step, gain = density.newton(vector, slope, inverse)
        for _ in range(_POLISH):
            if gain <= 1e-3 * self.tolerance:
                break
            moved = np.clip(vector + step, *density.bounds.T)
            value_there, slope = density(moved)
            step, gain_there = density.newton(moved, slope, inverse)
            if not (gain_there < 0.5 * gain and value_there <= value + density.rounding(value)):
                break
            vector, value, gain = moved, value_there, gain_there
        return vector, value, gain


class _Density:
    """Minus the log density of the latent sites on their own scale, as a function of unconstrained coordinates.

    Called with a vector it returns value and gradient in double precision, whatever the model computes in, and
    remembers the best it has seen. Where either is not finite, the value is one that a line search turns back from.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Array):
        self.model, self.args, self.kwargs = model, args, kwargs
        self.key_trace, self.key_start, key_moves = jax.random.split(key, 3)
        self.moves = np.random.default_rng(np.asarray(jax.random.key_data(key_moves)))
        self.best: tuple[float, np.ndarray] | None = None
        self.worst = 0.0
        self.transforms: dict[str, Any] = {}
        self._starts = jax.jit(self._draw_starts)
        with compiled_once():
            first, first_from_prior = self._starts(self.key_start)
        flat, self.unravel = ravel_pytree(first)
        self.dtype = flat.dtype
        self.precision = float(jnp.finfo(flat.dtype).eps)
        self.first = np.asarray(flat, float), np.asarray(ravel_pytree(first_from_prior)[0], float)
        self.bounds, self.site_of = self._box(first)

        def energy(vector: Array) -> Array:
            trace = self._trace(self.unravel(vector))
            terms = [jnp.sum(site_log_prob(s)) for s in trace.values() if s["type"] == "sample"]
            return -sum(terms, jnp.zeros(()))

        # The data stay in the closure, as they are: a model may look at their values.
        self._value_and_slope = jax.jit(jax.value_and_grad(energy))

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self.exact(vector)
        if not (np.isfinite(value) and np.isfinite(slope).all()):
            return self.worst + 1e3 * (1.0 + abs(self.worst)), np.zeros_like(slope)
        self.worst = max(self.worst, value)
        if self.best is None or value < self.best[0]:
            self.best = value, vector.copy()
        return value, slope

    def exact(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self._value_and_slope(jnp.asarray(vector, self.dtype))
        return float(value), np.asarray(slope, float)

    def rounding(self, value: float) -> float:
        """What a value of this size may be wrong by."""
        return 32.0 * self.precision * (1.0 + abs(value))

    def newton(self, vector: np.ndarray, slope: np.ndarray, inverse: Any) -> tuple[np.ndarray, float]:
        """The quasi-Newton step among the coordinates that no bound holds, and what it would gain."""
        low, high = self.bounds.T
        held = ((vector <= low) & (slope > 0)) | ((vector >= high) & (slope < 0))
        slope = np.where(held, 0.0, slope)
        step = np.where(held, 0.0, -(inverse @ slope))
        return step, -0.5 * float(slope @ step)

    def at_bound(self, vector: np.ndarray) -> list[str]:
        """Sites with a coordinate at the end of its box."""
        low, high = self.bounds.T
        return list(dict.fromkeys(self.site_of[(vector <= low) | (vector >= high)].tolist()))

    def values(self, vector: np.ndarray) -> dict[str, Any]:
        """Latent and deterministic sites."""

        def look(vector: Array) -> dict[str, Any]:
            trace = self._trace(self.unravel(vector))
            kept = {n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}
            return {n: s["value"] for n, s in latent_sites(trace).items()} | kept

        with compiled_once():
            return jax.tree.map(np.asarray, jax.jit(look)(jnp.asarray(vector, self.dtype)))

    def starts(self, number: int) -> Iterator[np.ndarray | None]:
        """Points of finite density inside the box; ``None`` where none was found."""
        low, high = self.bounds.T
        for i in range(number):
            for j in range(_TRIES):
                if i == 0 and j == 0:
                    start = self.first[0]
                elif i % 2 == 1 or i == 0:
                    start = self.first[0] + self.moves.uniform(-_MOVED, _MOVED, len(low))
                elif i == 2 and j == 0:
                    start = self.first[1]
                else:
                    with compiled_once():
                        drawn = self._starts(jax.random.fold_in(self.key_start, _TRIES * i + j))[1]
                    start = np.asarray(ravel_pytree(drawn)[0], float)
                if not np.isfinite(start).all():
                    continue
                start = np.clip(start, low, high)
                value, slope = self.exact(start)
                if np.isfinite(value) and np.isfinite(slope).all():
                    yield start
                    break
            else:
                yield None

    # ------------------------------------------------------------------------------------------------ parts

    def _trace(self, values: Mapping[str, Array]) -> dict[str, Site]:
        seeded = handlers.seed(self.model, self.key_trace)
        at = handlers.substitute(seeded, substitute_fn=partial(_constrained, values))
        return handlers.trace(at).get_trace(*self.args, **self.kwargs)

    def _draw_starts(self, key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Unconstrained: hints, else medians of the prior; and a draw of the prior. Notes the transforms."""

        def one(strategy: Any) -> dict[str, Array]:
            seeded = handlers.seed(self.model, key)
            at = handlers.substitute(seeded, substitute_fn=strategy)
            trace = handlers.trace(at).get_trace(*self.args, **self.kwargs)
            check_gradient_engine(trace, "map")
            found = {}
            for name, site in latent_sites(trace).items():
                with helpful_support_errors(site):
                    transform = biject_to(site["fn"].support)
                self.transforms[name] = transform
                found[name] = transform.inv(site["value"])
            return found

        return one(_at_hint), one(init_to_sample())

    def _box(self, first: Mapping[str, Array]) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, ``(coordinate, 2)``, and the site of each coordinate."""
        ends, site_of = [], []
        for name in sorted(first):  # the order of a flattened dictionary
            start = np.ravel(np.asarray(first[name], float))
            ends.append(_limits(self.transforms[name], np.where(np.isfinite(start), start, 0.0)))
            site_of.append(np.full(start.shape, name))
        return np.concatenate(ends), np.concatenate(site_of)


def _at_hint(site: Site) -> Any:
    """Initialisation strategy: the hint itself, else the median of the prior."""
    hinted = site["type"] == "sample" and not site["is_observed"] and site["infer"].get("init") is not None
    return init_to_hint(site, radius=0.0) if hinted else init_to_median(site)


def _constrained(values: Mapping[str, Array], site: Site) -> Array | None:
    """The value at a latent site whose unconstrained one is given, by the support that it has in this run."""
    if site["type"] != "sample" or site["name"] not in values:
        return None
    with helpful_support_errors(site):
        transform = biject_to(site["fn"].support)
    value = values[site["name"]]
    now = site["infer"].get("_scan_current_index")  # in a scan: this step's part of the series
    own = len(site["fn"].shape()) - (transform.codomain.event_dim - transform.domain.event_dim)
    if now is not None and jnp.ndim(value) > own:
        value = value[now]
    return transform(value)


def _limits(transform: Any, start: np.ndarray) -> np.ndarray:
    """Ends of the box of a site's coordinates, ``(coordinate, 2)``; infinite where one need not run away."""
    parts = transform.parts if isinstance(transform, transforms.ComposeTransform) else [transform]
    low, high = np.full(start.shape, -np.inf), np.full(start.shape, np.inf)
    both = transforms.SigmoidTransform, transforms.StickBreakingTransform, transforms.CorrCholeskyTransform
    if isinstance(parts[0], both):
        low[:], high[:] = -_REACH, _REACH
    elif isinstance(parts[0], transforms.ExpTransform | transforms.SoftplusTransform):
        low = np.minimum(start, 0.0) - _REACH
        if isinstance(parts[0], transforms.ExpTransform):  # softplus grows no faster than its argument
            high = np.maximum(start, 0.0) + _REACH
    return np.stack([low, high], axis=1)
