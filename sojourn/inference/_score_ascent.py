"""Maximum likelihood for models with a hidden path, by following particle estimates of the score."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm.auto import tqdm

from sojourn._arguments import must_be, numbers
from sojourn._contract import trace_model
from sojourn.inference._checkpoint import Stage, refilled, strong
from sojourn.inference._predictive import in_batches
from sojourn.inference._score import Parametric, read_parametric
from sojourn.inference._smoothing import backward_options
from sojourn.inference._stop import stop_signals
from sojourn.inference._variational import _Run
from sojourn.ops.paris import Statistic, blank_path, paris_sweep, parisian_gibbs

__all__ = ["Maximum", "ScoreAscent"]

_ESTIMATORS = ("ppg", "paris")
_BLOCK = 25  # steps between two looks at the keyboard
_CLOSE = 0.25  # standard errors from the maximum, at most, of a fit called converged
_PATH_PARTICLES = 32
_PATH_SWEEPS = 3  # the first of them free


class Maximum(NamedTuple):
    """A maximum of the likelihood, or of the posterior density."""

    estimate: dict[str, np.ndarray]
    """The parameters there, on their own scale."""
    standard_error: dict[str, np.ndarray]
    """By the observed information, carried to the parameters' own scale; NaN where it is not positive definite."""
    vector: np.ndarray
    """``(p,)``: the parameters on the unconstrained scale, in alphabetical order."""
    covariance: np.ndarray
    """``(p, p)``: inverse of the observed information there."""
    iterates: np.ndarray
    """``(num_steps, p)``: the way of the optimiser."""
    log_evidence: np.ndarray
    """``(num_steps,)``: log-likelihood as the sweeps along the way estimated it, without data outside the scan."""
    distance: float
    """How far the estimated score says that the maximum is, in standard errors."""
    error_of_standard_error: float
    """Largest relative Monte Carlo error of the standard errors (unconstrained scale)."""

    @property
    def converged(self) -> bool:
        """Whether the score puts the maximum within a quarter of a standard error."""
        return bool(self.distance < _CLOSE)


class ScoreAscent:
    """Settings of the engine ``"score_ascent"``: maximum likelihood with the path integrated out by particles.

    Each step moves the parameters, on the unconstrained scale, along an estimate of the score (Fisher's identity).
    The result is the mean of the last iterates (Polyak and Juditsky 1992). Parameters are all latent sites that
    belong neither to the scan nor to its initial state, random effects included, and all ``numpyro.param``;
    their priors say where they live and where the search begins, and count for nothing else.

    **How good it is.** At the result, further sweeps estimate the observed information (Louis' identity), from
    which come the standard errors, and once more the score: ``distance`` is the way left to the maximum, in
    standard errors, and the fit has ``converged`` if it is below 0.25.

    **What the draws are.** ``sj.fit`` returns draws of the normal law that the estimate has for long series,
    centred at the maximum, with the inverse information as its covariance, on the unconstrained scale; and with
    each of them a path given these parameters. They are an approximation of a posterior under flat priors, no
    sample from it.

    Args:
        optimizer: an optax optimiser (it is given minus the score). The default is Adam with a step size of 0.05
            for the first half of the steps and from there falling as a power of the time, to about 0.01.
        estimator: of the score. ``"ppg"``: mean over ``num_sweeps`` conditional sweeps, the path carried on
            from each step to the next (Cardoso, Moulines and Olsson 2023). With ``num_sweeps=1`` this is Markov score
            climbing (Naesseth, Lindsten and Blei 2020). ``"paris"``: mean over ``num_sweeps`` independent free
            sweeps, whose bias of order ``1 / num_particles`` moves the maximum.
        num_particles: particles of each sweep.
        num_sweeps: sweeps a step.
        num_steps: steps.
        average: share of the steps, the last ones, over which iterates are averaged.
        num_information_sweeps: sweeps that estimate the information.
        prior: maximise the posterior density instead: that of the parameters on their own scale.
        num_backward, backward, num_tries: of the sweeps; see :func:`~sojourn.inference.paris`.
        start: values to start from, by parameter. Others start at ``infer={"init": value}``, else at the
            median of their prior; ``numpyro.param`` at its initial value.

    Raises:
        ValueError: an option out of range; no parameter, or a discrete one; no scan.
        NotImplementedError: a carry that remembers more than one step; a second scan with latent sites.

    References:
        T. A. Louis (1982), *JRSS B* 44:226-233; B. T. Polyak and A. B. Juditsky (1992), *SIAM J. Control
        Optim.* 30:838-855; G. Cardoso, E. Moulines and J. Olsson (2023), *ICML*, arXiv:2301.00900;
        C. Naesseth, F. Lindsten and D. Blei (2020), *NeurIPS*, arXiv:2003.10374.

    Example:
        The level of independent values seen in noise: the maximum is their mean, 2, and its variance 2 / 4.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def level(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(mu, 1.0))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> ascent = ScoreAscent(num_steps=200, num_particles=10)
        >>> found = ascent.maximise(level, (jnp.array([1.0, 1.5, 2.5, 3.0]),), progress_bar=False)
        >>> round(float(found.estimate["mu"]), 1), round(float(found.standard_error["mu"]), 1)
        (2.0, 0.7)
    """

    def __init__(
        self,
        optimizer: Any = None,
        *,
        estimator: str = "ppg",
        num_particles: int = 32,
        num_sweeps: int = 4,
        num_steps: int = 400,
        average: float = 0.5,
        num_information_sweeps: int = 200,
        prior: bool = False,
        num_backward: int = 2,
        backward: str = "auto",
        num_tries: int = 4,
        start: Mapping[str, Any] | None = None,
    ):
        for name, value, least in (
            ("num_particles", num_particles, 2),
            ("num_sweeps", num_sweeps, 1),
            ("num_steps", num_steps, 1),
            ("num_information_sweeps", num_information_sweeps, 2),
            ("num_backward", num_backward, 2),
            ("num_tries", num_tries, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"`{name}` of ScoreAscent must be a whole number of at least {least}, not {value!r}."
                )
        if estimator not in _ESTIMATORS:
            raise ValueError(f"`estimator` of ScoreAscent must be 'ppg' or 'paris', not {estimator!r}.")
        if not 0 < numbers(average, "average") <= 1:
            raise ValueError(
                f"`average` of ScoreAscent is a share of the steps, above 0 and at most 1, not {average!r}."
            )
        must_be(
            start is None or isinstance(start, Mapping), "start", "a mapping from names of parameters", start
        )
        if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise ValueError(f"`optimizer` of ScoreAscent must be an optax optimiser, not {optimizer!r}.")
        self.optimizer = optimizer
        self.estimator = estimator
        self.num_particles = num_particles
        self.num_sweeps = num_sweeps
        self.num_steps = num_steps
        self.average = average
        self.num_information_sweeps = num_information_sweeps
        self.prior = prior
        self.start = dict(start or {})
        self._options = backward_options(backward, num_particles, num_backward, num_tries)

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        num_samples: int,
        key: Array,
        progress_bar: bool = True,
        stage: Stage | None = None,
    ) -> _Run:
        """Maximise, then draw from the asymptotic law. Called by ``sj.fit``."""
        parametric = read_parametric(model, args, kwargs)
        key_ascent, key_draw = jax.random.split(key)
        found = self._maximise(parametric, key_ascent, progress_bar, stage)
        draws, stats = self._draw(parametric, found, num_samples, key_draw)
        what = "posterior density" if self.prior else "likelihood"
        attrs = {
            "converged": int(found.converged),
            "distance_to_maximum": found.distance,
            "num_steps": len(found.iterates),
            **({"partial": 1} if len(found.iterates) < self.num_steps else {}),
            "estimator": self.estimator,
            "draws": f"asymptotic normal law around the maximum of the {what}",
            "estimate": json.dumps(_listed(found.estimate)),
            "standard_error": json.dumps(_listed(found.standard_error)),
            "error_of_standard_error": found.error_of_standard_error,
        }
        return _Run(draws, stats, attrs)

    def maximise(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        key: Array | None = None,
        progress_bar: bool = True,
    ) -> Maximum:
        """The maximum alone, without draws.

        Args:
            model, args, kwargs: as for ``sj.fit``.
            key: random key; by default ``jax.random.key(0)``.
            progress_bar: show progress.
        """
        key = jax.random.key(0) if key is None else key
        return self._maximise(read_parametric(model, args, dict(kwargs or {})), key, progress_bar)

    # ------------------------------------------------------------------------------------------------ parts

    def _maximise(
        self, parametric: Parametric, key: Array, progress_bar: bool, stage: Stage | None = None
    ) -> Maximum:
        key_begin, key_steps, key_information = jax.random.split(key, 3)
        vector = parametric.begin(self.start, key_begin)
        iterates, log_evidence, path = self._climb(parametric, vector, key_steps, progress_bar, stage)
        kept = max(round(self.average * len(iterates)), 1)
        vector = jnp.asarray(iterates[-kept:].astype(np.float64).mean(0), vector.dtype)
        score, information, error = self._look_around(parametric, vector, path, key_information)
        size = parametric.size
        covariance = np.full((size, size), np.nan)
        distance = np.nan
        eigenvalues = np.linalg.eigvalsh(information) if np.isfinite(information).all() else np.array([-1.0])
        if eigenvalues[0] > 1e-6 * eigenvalues[-1]:
            covariance = np.linalg.inv(information)
            distance = float(np.sqrt(score @ covariance @ score))
        else:
            warnings.warn(
                "The observed information is not positive definite: the maximum has not been reached, or is on the "
                "edge of the parameter space, or is not unique. There are no standard errors, and all draws are the "
                "estimate.",
                stacklevel=2,
            )
        values = parametric.outside(vector).values
        slopes = jax.jacfwd(lambda v: parametric.outside(v).values)(vector)

        def error_of(slope):
            slope = np.asarray(slope, np.float64)
            return np.sqrt(np.einsum("...i,ij,...j->...", slope, covariance, slope))

        relative = np.einsum("ij,sjk,ki->si", covariance, error, covariance) / np.diag(covariance)
        return Maximum(
            estimate=jax.tree.map(np.asarray, values),
            standard_error=jax.tree.map(error_of, slopes),
            vector=np.asarray(vector),
            covariance=covariance,
            iterates=iterates,
            log_evidence=log_evidence,
            distance=distance,
            error_of_standard_error=float(0.5 * (relative.std(0) / np.sqrt(len(relative))).max()),
        )

    def _optimizer(self) -> Any:
        if self.optimizer is not None:
            return self.optimizer
        import optax  # not needed by `import sojourn`

        half = self.num_steps // 2
        since = max(half / 10, 1.0)

        def size(count):
            return 0.05 * (1.0 + jnp.maximum(count - half, 0) / since) ** -0.6

        # A short memory of the gradients' size: those from far away are a hundred times larger than those near the
        # maximum.
        return optax.adam(size, b2=0.95)

    def _climb(self, parametric, vector, key_steps, progress_bar, stage=None):
        """Iterates, log-evidence a step, and the last path."""
        import optax

        optimizer = self._optimizer()

        def score(vector, path, count):
            process, statistic = parametric.statistic(vector, free=True)
            key = jax.random.fold_in(key_steps, count)
            if self.estimator == "ppg":
                path, moments, log_evidence = parisian_gibbs(
                    process,
                    key,
                    self.num_particles,
                    statistic,
                    path,
                    self.num_sweeps,
                    fresh=count == 0,
                    **self._options,
                )
            else:
                swept = jax.lax.map(
                    lambda k: paris_sweep(process, k, self.num_particles, statistic, **self._options),
                    jax.random.split(key, self.num_sweeps),
                )
                moments, log_evidence = swept.estimate, swept.log_evidence
            total = parametric.total_score(vector, moments.score.mean(0), free=True, prior=self.prior)
            return total, path, log_evidence.reshape(self.num_sweeps, -1).sum(1).mean()

        def step(state, count):
            vector, optimizer_state, path = state
            gradient, new_path, log_evidence = score(vector, path, count)
            # One bad estimate (a weight that overflows, say) must not end the climb.
            fine = jnp.isfinite(gradient).all()
            updates, optimizer_state = optimizer.update(
                -jnp.where(fine, gradient, 0.0), optimizer_state, vector
            )
            path = jax.tree.map(lambda new, old: jnp.where(fine, new, old), new_path, path)
            vector = optax.apply_updates(vector, updates)
            return (vector, optimizer_state, path), (vector, log_evidence, fine)

        @jax.jit
        def block(state, first):
            return jax.lax.scan(step, state, first + jnp.arange(_BLOCK))

        blank = blank_path(parametric.read.at(parametric.outside(vector).values).process())
        state = strong((vector, optimizer.init(vector), blank))
        outputs: list[Any] = []
        restored = None if stage is None else stage.restore()
        if restored is not None:
            *leaves, iterates, log_evidence, fine = restored[1]
            state, outputs = refilled(state, leaves), [(iterates, log_evidence, fine)]
        done = sum(len(part[0]) for part in outputs)

        def save() -> None:
            if stage is not None and outputs:
                stage.save(done, {}, [state, *map(np.concatenate, zip(*outputs, strict=True))])

        with (
            stop_signals(terminate=stage is not None) as stop,
            tqdm(total=self.num_steps, initial=done, disable=not progress_bar, desc="score_ascent") as bar,
        ):
            try:
                while done < self.num_steps and not stop.asked:
                    state, output = block(state, done)
                    outputs.append(jax.tree.map(np.asarray, output))
                    done += _BLOCK
                    if stage is not None and stage.due(done):
                        save()
                    bar.update(min(_BLOCK, self.num_steps - done + _BLOCK))
                    bar.set_postfix_str(f"log-likelihood about {outputs[-1][1].mean():.2f}")
            except KeyboardInterrupt:
                stop.asked = True
        save()
        if stop.ended:
            raise SystemExit(f"Asked to end, after {done} steps: all is written down.")
        if not outputs:
            raise KeyboardInterrupt
        iterates, log_evidence, fine = (
            np.concatenate(v)[: self.num_steps] for v in zip(*outputs, strict=True)
        )
        if not fine[-_BLOCK:].any():
            raise RuntimeError(
                "The score is not finite at the parameters that were reached: lower the optimiser's step size, or "
                "start elsewhere with `start=` or infer={'init': value}."
            )
        return iterates, log_evidence, state[2]

    def _look_around(self, parametric, vector, path, key):
        """Score and observed information at ``vector``, and how far each sweep's information is from the mean."""

        @jax.jit
        def look(vector, path, key):
            process, statistic = parametric.statistic(vector, free=True, order=2)
            _, moments, _ = parisian_gibbs(
                process,
                key,
                self.num_particles,
                statistic,
                path,
                self.num_information_sweeps,
                **self._options,
            )
            mean = jax.tree.map(lambda v: v.mean(0), moments)
            score = parametric.total_score(vector, mean.score, free=True, prior=self.prior)
            information = parametric.information(vector, mean, prior=self.prior)
            axes = tuple(range(1, moments.second.ndim - 2))
            return score, information, (moments.second - mean.second).sum(axes)

        return (np.asarray(v, np.float64) for v in look(vector, path, key))

    def _draw(self, parametric, found: Maximum, num_samples: int, key: Array):
        """Draws of the asymptotic law, with paths and deterministic sites."""
        read = parametric.read
        known = np.isfinite(found.covariance).all()
        factor = np.linalg.cholesky(found.covariance) if known else np.zeros_like(found.covariance)
        root = jnp.asarray(factor, found.vector.dtype)
        nothing = Statistic(lambda carry, values: (), lambda total, step: total)
        # With a single path asked of it, a sweep may as well have more particles.
        size = max(self.num_particles, _PATH_PARTICLES)

        def one(key):
            key_vector, key_path, key_model = jax.random.split(key, 3)
            vector = found.vector + root @ jax.random.normal(key_vector, (parametric.size,), root.dtype)
            outside = parametric.outside(vector)
            process = read.at(outside.values).process()
            (start, path), _, log_evidence = parisian_gibbs(
                process, key_path, size, nothing, None, _PATH_SWEEPS, **self._options
            )
            values = {**outside.values, **start, **path}
            trace = trace_model(read.model, read.args, read.kwargs, key=key_model, values=values)
            more = {n: s["value"] for n, s in trace.items() if s["type"] == "deterministic"}
            return {**values, **more}, log_evidence[0].sum() + outside.log_likelihood

        draws, log_evidence = in_batches(one, jax.random.split(key, num_samples))
        arrays = {n: np.asarray(v)[None] for n, v in draws.items()}
        return arrays, {"log_evidence": np.asarray(log_evidence)[None]}


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {n: jax.tree.map(lambda v: np.asarray(v, float).round(8).tolist(), v) for n, v in values.items()}
