"""The posterior mode of any model, by L-BFGS from several starts."""

from __future__ import annotations

import itertools
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
from numpyro.infer import init_to_uniform
from numpyro.infer.util import helpful_support_errors
from tqdm.auto import tqdm

from sojourn._contract import Site
from sojourn.inference._check_model import check_gradient_engine, latent_sites
from sojourn.inference._checkpoint import Stage
from sojourn.inference._initial import compiled_once, init_to_hint
from sojourn.inference._predictive import site_log_prob
from sojourn.inference._unconstrained import constrained
from sojourn.inference._whole_data import whole_data

__all__ = ["MaximumAPosteriori"]

_REACH = 16.0  # half the width of the box, in unconstrained coordinates
_EDGE = 2.0  # a coordinate this near to its bound that pushes towards it goes there
_MOVED = 2.0  # how far from the first start others begin, at most, likewise
_MEDIAN_OF = 15  # draws of the prior whose median is the first start, as in NumPyro's init_to_median
_TRIES = 20  # draws for one start until the density is finite
_MEMORY = 20  # pairs of steps and gradients that L-BFGS keeps
_DENSE = 100  # most coordinates whose curvature is measured by differences
_ROUND = 200  # most steps of L-BFGS before it is
_POLISH = 20  # most Newton steps after a round of L-BFGS
_FLAT = 1e-6  # curvatures below this share of the largest, each coordinate in its own scale, count as this
_TELLING = 4e3  # units of precision that a gain must have to be told from the rounding of gradients
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
    ``tolerance`` nats (in single precision 5e-4, if that is more: below, gradients are rounding), that is, when the end
    is about ``sqrt(2 * tolerance)`` posterior standard deviations from the mode.

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

    def __init__(self, *, num_restarts: int = 4, max_steps: int = 2000, tolerance: float = 1e-5):
        for name, value in (("num_restarts", num_restarts), ("max_steps", max_steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` of MaximumAPosteriori must be a positive integer, not {value!r}.")
        if (
            isinstance(tolerance, bool)
            or not isinstance(tolerance, int | float)
            or not 0 < tolerance < np.inf
        ):
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
        stage: Stage | None = None,
    ) -> _Run:
        """Find the mode. Called by ``sj.fit``; there is one mode, whatever ``num_samples``."""
        density = _Density(whole_data(model), args, kwargs, key)
        peaks: list[_Peak | None] = []
        partial = False
        restored = None if stage is None else stage.restore()
        if restored is not None:  # climbs that were over
            meta, vectors = restored
            found = iter(vectors)
            peaks = [None if facts is None else _Peak(next(found), *facts) for facts in meta["peaks"]]

        def save() -> None:
            if stage is not None:
                facts = [peak and (peak.log_density, peak.num_steps, peak.converged) for peak in peaks]
                stage.save(len(peaks), {"peaks": facts}, [peak.vector for peak in peaks if peak])

        starts = itertools.islice(density.starts(self.num_restarts), len(peaks), None)
        with tqdm(total=self.num_restarts, initial=len(peaks), disable=not progress_bar, desc="map") as bar:
            try:
                for start in starts:
                    peaks.append(None if start is None else self._climb(density, start))
                    density.best = None
                    save()
                    bar.update()
                    best = max((peak.log_density for peak in peaks if peak), default=np.nan)
                    bar.set_postfix_str(f"log density {best:.2f}")
            except KeyboardInterrupt:  # what the climb under way has found so far
                if density.best is not None:
                    value, vector = density.best
                    peaks.append(_Peak(vector, -value, 0, False))
                if not any(peaks):
                    raise
                partial = True
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
        attrs: dict[str, Any] = {
            "converged": int(peak.converged),
            "point_estimate": 1,
            "num_steps": peak.num_steps,
            "log_density": peak.log_density,
            "restart_kept": kept,
            "restart_log_density": json.dumps(
                [None if np.isnan(end) else round(float(end), 6) for end in ends]
            ),
            "restart_spread": float(np.nanmax(ends) - np.nanmin(ends)),
            "restarts_at_best": int((ends > ends[kept] - max(_SAME, density.rounding(ends[kept]))).sum()),
            "at_bound": ", ".join(density.at_bound(peak.vector)),
        }
        if partial:
            attrs["partial"] = 1
        stats = {"lp": np.full((1, 1), peak.log_density)}
        return _Run({n: np.asarray(v)[None, None] for n, v in draws.items()}, stats, attrs)

    def _climb(self, density: _Density, vector: np.ndarray) -> _Peak:
        """Rounds of L-BFGS, each followed by Newton's steps, until these would gain no more."""
        from scipy.optimize import minimize  # not needed by `import sojourn`

        exact = len(vector) <= _DENSE
        steps, gain = 0, np.inf
        enough = max(self.tolerance, _TELLING * density.precision)
        while True:
            value, before = density.refer_to(vector), gain
            left = self.max_steps - steps
            found = minimize(
                density,
                vector,
                jac=True,
                method="L-BFGS-B",
                bounds=density.bounds,
                # It stops for want of progress only; whether it has arrived is for the curvature to say.
                options={
                    "maxiter": min(left, _ROUND) if exact else left,
                    "maxfun": 20 * left + 20,
                    "maxcor": _MEMORY,
                    "ftol": density.precision * min(1.0, 1.0 / (1.0 + abs(value))),
                    "gtol": 0.0,
                },
            )
            density.refer_to(found.x)
            newton = _Newton(density, found.hess_inv) if exact else _QuasiNewton(found.hess_inv)
            taken = max(int(found.nit), 1)
            vector, end, gain, polished = self._polish(density, found.x, newton, min(_POLISH, left - taken))
            steps += taken + polished
            stalled = end > value - enough and gain > 0.5 * before
            if gain <= enough or steps >= self.max_steps or stalled:
                return _Peak(vector, -end, steps, gain <= enough)

    def _polish(
        self, density: _Density, vector: np.ndarray, newton: _QuasiNewton, most: int
    ) -> tuple[np.ndarray, float, float, int]:
        """Steps by gradient and curvature, as long as they shrink what the next one would gain."""
        value, slope = density(vector)
        at_edge = density.at_edge(vector, slope)
        value_there, slope_there = density(at_edge)
        if value_there <= value + density.rounding(value):
            vector, value, slope = at_edge, value_there, slope_there
        step, gain = newton(vector, slope, density.held(vector, slope))
        for count in range(most):
            if gain <= 1e-3 * self.tolerance:
                return vector, value, gain, count
            for share in (1.0, 0.25):
                moved = np.clip(vector + share * step, *density.bounds.T)
                value_there, slope = density(moved)
                if value_there <= value + density.rounding(value):
                    break
            else:
                return vector, value, gain, count
            step_there, gain_there = newton(moved, slope, density.held(moved, slope))
            if not gain_there < 0.9 * gain:
                return vector, value, gain, count
            vector, value, step, gain = moved, value_there, step_there, gain_there
        return vector, value, gain, most


class _QuasiNewton:
    """The step to the maximum of the local parabola, and what it would gain, by the memory of L-BFGS."""

    def __init__(self, inverse: Any):
        self.inverse = inverse

    def __call__(self, vector: np.ndarray, slope: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, float]:
        slope = np.where(held, 0.0, slope)
        step = np.where(held, 0.0, -(self.inverse @ slope))
        return step, -0.5 * float(slope @ step)


class _Newton(_QuasiNewton):
    """The same by curvatures measured: differences of gradients, over tenths of a standard deviation.

    Over such distances the gradient changes by far more than its rounding, in single precision too, and nothing new
    is compiled.
    """

    def __init__(self, density: _Density, inverse: Any):
        self.density = density
        size = len(density.bounds)
        self.spread = np.sqrt(np.abs([(inverse @ row)[i] for i, row in enumerate(np.eye(size))]))

    def __call__(self, vector: np.ndarray, slope: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, float]:
        free = np.flatnonzero(~held)
        step = np.zeros_like(vector)
        if not len(free):
            return step, 0.0
        boxed = np.isfinite(self.density.bounds).any(axis=1)
        # No less than what single precision resolves.
        least = 1e3 * self.density.precision * (1.0 + np.abs(vector))
        width = np.clip(0.1 * self.spread, least, np.where(boxed, 0.1, np.inf))
        rows = []
        for i in free:
            there, back = vector.copy(), vector.copy()
            there[i] += width[i]
            back[i] -= width[i]
            rows.append((self.density(there)[1] - self.density(back)[1])[free] / (there[i] - back[i]))
        curvature = 0.5 * (np.array(rows) + np.array(rows).T)
        own = np.abs(np.diag(curvature))
        if not own.any():  # the density is flat
            own = np.ones_like(own)
        scale = 1.0 / np.sqrt(np.maximum(own, _FLAT**2 * own.max()))
        values, axes = np.linalg.eigh(scale[:, None] * curvature * scale)
        # Where the density curves upwards, a step down the slope as long as if it curved downwards as much.
        values = np.maximum(np.abs(values), _FLAT * max(np.abs(values).max(), 1.0))
        pull = axes.T @ (scale * slope[free])
        step[free] = -scale * (axes @ (pull / values))
        self.spread[free] = scale
        return step, 0.5 * float(pull @ (pull / values))


class _Density:
    """Minus the log density of the latent sites on their own scale, as a function of unconstrained coordinates.

    Called with a vector it returns value and gradient in double precision, whatever the model computes in, and
    remembers the best it has seen. Where either is not finite, the value is one that a line search turns back from.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Array
    ):
        self.model, self.args, self.kwargs = model, args, kwargs
        self.key_trace, self.key_start, key_moves = jax.random.split(key, 3)
        self.moves = np.random.default_rng(np.asarray(jax.random.key_data(key_moves)))
        self.best: tuple[float, np.ndarray] | None = None
        self.worst, self.base = 0.0, 0.0
        self.transforms: dict[str, Any] = {}
        self._start = jax.jit(self._draw_start)
        with compiled_once():
            first = self._start(self.key_start, False)
        flat, self.unravel = ravel_pytree(first)
        self.dtype = flat.dtype
        self.precision = float(jnp.finfo(flat.dtype).eps)
        self.first = np.asarray(flat, float)
        self.bounds, self.site_of = self._box(first)

        def terms_at(vector: Array) -> list[Array]:
            trace = self._trace(self.unravel(vector))
            return [site_log_prob(s) for s in trace.values() if s["type"] == "sample"]

        def energy(vector: Array, reference: list[Array]) -> tuple[Array, list[Array]]:
            terms = terms_at(vector)
            less = [jnp.sum(old - term) for old, term in zip(reference, terms, strict=True)]
            return sum(less, jnp.zeros(())), terms

        # The data stay in the closure, as they are: a model may look at their values.
        self._value_and_slope = jax.jit(jax.value_and_grad(energy, has_aux=True))
        shapes = jax.eval_shape(terms_at, flat)
        self.zero = self.reference = [jnp.zeros(term.shape, term.dtype) for term in shapes]

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self.exact(vector)
        if not (np.isfinite(value) and np.isfinite(slope).all()):
            return self.worst + 1e3 * (1.0 + abs(self.worst)), np.zeros_like(slope)
        self.worst = max(self.worst, value)
        if self.best is None or value < self.best[0]:
            self.best = value, vector.copy()
        return value, slope

    def exact(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        (value, _), slope = self._value_and_slope(jnp.asarray(vector, self.dtype), self.reference)
        return self.base + float(value), np.asarray(slope, float)

    def refer_to(self, vector: np.ndarray) -> float:
        """Sum differences from the terms of the density at ``vector`` from now on; the value there.

        A sum of thousands of terms in single precision is rounded to thousandths; that of their changes is not.
        """
        (_, self.reference), _ = self._value_and_slope(jnp.asarray(vector, self.dtype), self.zero)
        self.base = -sum(float(np.asarray(term, float).sum()) for term in self.reference)
        return self.base

    def rounding(self, value: float) -> float:
        """What a value of this size may be wrong by."""
        return 32.0 * self.precision * (1.0 + abs(value))

    def held(self, vector: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Which coordinates a bound holds."""
        low, high = self.bounds.T
        return ((vector <= low) & (slope > 0)) | ((vector >= high) & (slope < 0))

    def at_edge(self, vector: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """With coordinates that are about to run into their bounds there."""
        low, high = self.bounds.T
        moved = np.where((vector <= low + _EDGE) & (slope > 0), low, vector)
        return np.where((vector >= high - _EDGE) & (slope < 0), high, moved)

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
                    start = self.first
                elif i % 2 == 1 or i == 0:
                    start = self.first + self.moves.uniform(-_MOVED, _MOVED, len(low))
                else:
                    drawn = self._start(jax.random.fold_in(self.key_start, _TRIES * i + j), True)
                    start = np.concatenate([np.ravel(drawn[name]) for name in sorted(drawn)]).astype(float)
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
        at = handlers.substitute(seeded, substitute_fn=partial(constrained, values))
        return handlers.trace(at).get_trace(*self.args, **self.kwargs)

    def _draw_start(self, key: Array, from_prior: Any) -> dict[str, Array]:
        """Unconstrained: a draw of the prior, or else hints and medians of the prior. Notes the transforms."""
        seeded = handlers.seed(self.model, key)
        at = handlers.substitute(seeded, substitute_fn=partial(_begin, from_prior))
        trace = handlers.trace(at).get_trace(*self.args, **self.kwargs)
        check_gradient_engine(trace, "map")
        found = {}
        for name, site in latent_sites(trace).items():
            with helpful_support_errors(site):
                self.transforms[name] = biject_to(site["fn"].support)
            found[name] = self.transforms[name].inv(site["value"])
        return found

    def _box(self, first: Mapping[str, Array]) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, ``(coordinate, 2)``, and the site of each coordinate."""
        ends, site_of = [], []
        for name in sorted(first):  # the order of a flattened dictionary
            start = np.ravel(np.asarray(first[name], float))
            ends.append(_limits(self.transforms[name], np.where(np.isfinite(start), start, 0.0)))
            site_of.append(np.full(start.shape, name))
        return np.concatenate(ends), np.concatenate(site_of)


def _begin(from_prior: Any, site: Site) -> Any:
    """Initialisation strategy: a draw of the prior, or else the hint and, without one, the median of the prior.

    ``from_prior`` is traced, so that one program does both: samplers of gammas and the like take long to compile.
    """
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    hint = site["infer"].get("init")
    try:
        drawn = site["fn"].sample(site["kwargs"]["rng_key"], (_MEDIAN_OF, *site["kwargs"]["sample_shape"]))
    except NotImplementedError:  # a law without a sampler
        drawn = None
    if drawn is None:
        return init_to_uniform(site) if hint is None else init_to_hint(site, radius=0.0)
    with helpful_support_errors(site):
        transform = biject_to(site["fn"].support)
    free = transform.inv(drawn)
    if hint is None:
        middle = jnp.median(free, axis=0)
    else:
        numeric = jnp if isinstance(hint, jax.Array) else np
        middle = transform.inv(jnp.asarray(numeric.broadcast_to(hint, site["fn"].shape()), free.dtype))
    return transform(jnp.where(from_prior, free[0], middle))


def _limits(transform: Any, start: np.ndarray) -> np.ndarray:
    """Ends of the box of a site's coordinates, ``(coordinate, 2)``; infinite where one need not run away."""
    while isinstance(transform, transforms.IndependentTransform | transforms.ComposeTransform):
        inner = isinstance(transform, transforms.IndependentTransform)
        transform = transform.base_transform if inner else transform.parts[0]
    low, high = np.full(start.shape, -np.inf), np.full(start.shape, np.inf)
    both = transforms.SigmoidTransform, transforms.StickBreakingTransform, transforms.CorrCholeskyTransform
    if isinstance(transform, both):
        low[:], high[:] = -_REACH, _REACH
    elif isinstance(transform, transforms.ExpTransform | transforms.SoftplusTransform):
        low = np.minimum(start, 0.0) - _REACH
        if isinstance(transform, transforms.ExpTransform):  # softplus grows no faster than its argument
            high = np.maximum(start, 0.0) + _REACH
    return np.stack([low, high], axis=1)
