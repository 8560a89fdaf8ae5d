"""Expectations of additive functionals of the hidden path, for any model with a scan: PaRIS and PPG."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sojourn._arguments import whole_number
from sojourn.inference._particle_filter import check_parameters, parameter_shapes
from sojourn.inference._read import read_scan
from sojourn.inference._score import read_parametric, require_memory_one
from sojourn.ops.paris import BACKWARD, Statistic, Step, additive, paris_sweep, parisian_gibbs
from sojourn.ops.particles import Process

__all__ = ["Smoothed", "backward_options", "paris", "ppg"]

Functional = str | Callable[..., Any]

_EXACT_UP_TO = 32  # particles: beyond this the draws of all pairs cost more than four Metropolis steps


class Smoothed(NamedTuple):
    """Smoothed expectation of an additive functional."""

    estimate: Any
    """The expectation, in the shape of what the functional returns; for the score a dict by parameter."""
    standard_error: Any
    """Its Monte Carlo standard error, from the spread of the repetitions; NaN if there was only one."""
    sweeps: Any
    """Estimates of all sweeps, those burnt among them: leading axes ``(num_repeats, num_sweeps)``."""
    log_evidence: np.ndarray
    """``(num_repeats, num_sweeps)``: log-likelihood as each sweep estimates it. A free sweep is unbiased on the
    natural scale; one that is conditional on a path is not."""
    path: dict[str, np.ndarray]
    """A path drawn by the last sweep of each repetition: ``(num_repeats, T, ...)`` by site of the scan,
    ``(num_repeats, ...)`` by initial site."""


def paris(
    model: Callable[..., Any],
    *args: Any,
    functional: Functional,
    parameters: Mapping[str, Any] | None = None,
    num_particles: int = 200,
    num_backward: int = 2,
    backward: str = "auto",
    num_tries: int = 4,
    num_repeats: int = 4,
    seed: int = 0,
    **kwargs: Any,
) -> Smoothed:
    """Expectation of an additive functional of the hidden path given the data, in one pass forward (PaRIS).

    The functional is ``sum_t h(carry_{t-1}, carry_t, x_t)``; its expectation is taken over the law of the path
    given all data, at fixed parameters. The bias is of order ``1 / num_particles`` and grows with the length of
    the series; :func:`ppg` removes it.

    Args:
        model: a NumPyro model with a ``scan`` whose carry is settled by the latent values of its own step.
        *args, **kwargs: its arguments, the data among them. NaN observations count as missing.
        functional: ``h(carry, carry_next, x)``, of the scan's own carry before and after a step and the input of
            the step, written for one path; it returns an array or a pytree of them. A function with parameters
            named ``values`` or ``t`` is also given the latent values of the step by site, and its number. Or
            ``"score"``: the derivative of the log-likelihood in the parameters, on their own scale (Fisher's
            identity). Data outside the scan count in it; priors of the parameters do not.
        parameters: value, on its own scale, of every latent site that belongs neither to the scan nor to its
            initial state, and of every ``numpyro.param``.
        num_particles: ``N``.
        num_backward: backward draws a particle and step, at least 2.
        backward: ``"exact"`` (cost ``N^2`` a step), ``"mcmc"`` (``num_tries`` Metropolis steps a draw; linear
            cost, same law), or ``"auto"``: exact up to 32 particles.
        num_tries: Metropolis steps a draw.
        num_repeats: independent repetitions, of which the estimate is the mean.
        seed: the same seed on the same machine gives the same numbers.

    Returns:
        :class:`Smoothed`.

    Raises:
        ValueError: no scan; parameters missing or unknown; an option out of range.
        NotImplementedError: a carry that remembers more than one step.

    References:
        J. Olsson and J. Westerborn (2017), Efficient particle-based online smoothing in general hidden Markov
        models: the PaRIS algorithm, *Bernoulli* 23:1951-1996.

    Example:
        Mean of the last state of a Gaussian random walk; exactly, 0.6.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, 1.0))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> result = paris(walk, jnp.array([0.0, 1.0]), num_particles=500,
        ...                functional=lambda x, x_next, y, t: x_next * (t == 1))
        >>> round(float(result.estimate), 1)
        0.6
    """
    _check(num_particles, num_backward, num_tries, num_repeats, 1, 0)
    options = backward_options(backward, num_particles, num_backward, num_tries)
    target = _target(model, args, kwargs, functional, parameters)

    def one(key):
        process, statistic = target.build()
        swept = paris_sweep(process, key, num_particles, statistic, **options)
        lead = jax.tree.map(lambda v: v[None], (swept.estimate, swept.log_evidence))
        return (swept.start, swept.path), *lead

    return _gather(target, one, num_repeats, 0, seed)


def ppg(
    model: Callable[..., Any],
    *args: Any,
    functional: Functional,
    parameters: Mapping[str, Any] | None = None,
    num_particles: int = 32,
    num_sweeps: int = 20,
    num_burn: int = 5,
    num_backward: int = 2,
    backward: str = "auto",
    num_tries: int = 4,
    num_repeats: int = 4,
    start: Mapping[str, Any] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Smoothed:
    """Expectation of an additive functional of the hidden path given the data, by Parisian particle Gibbs (PPG).

    Sweeps of PaRIS, each conditional on the path that the last one drew; the estimate is the mean over the sweeps
    after ``num_burn``. Its bias falls geometrically with ``num_burn``, however few the particles.

    Args:
        model, *args, functional, parameters, num_backward, backward, num_tries, seed, **kwargs: see
            :func:`paris`.
        num_particles: ``N``, the frozen path among them.
        num_sweeps: sweeps of each repetition.
        num_burn: sweeps among them that the estimate leaves out.
        num_repeats: independent repetitions, of which the estimate is the mean.
        start: paths to begin with, as in ``path`` of an earlier result; by default drawn by a free sweep.

    Returns:
        :class:`Smoothed`.

    Raises:
        ValueError, NotImplementedError: as :func:`paris`.

    References:
        G. Cardoso, E. Moulines and J. Olsson (2023), State and parameter learning with PaRIS particle Gibbs,
        *ICML*; arXiv:2301.00900.

    Example:
        The score of a random walk's scale, and whether it is zero within its error.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = numpyro.sample("x", dist.Normal(x, scale))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> result = ppg(walk, jnp.array([0.3, 2.0, 3.1, 3.4]), parameters={"scale": 0.5}, functional="score")
        >>> bool(result.estimate["scale"] > 3 * result.standard_error["scale"])  # a larger scale fits better
        True
    """
    _check(num_particles, num_backward, num_tries, num_repeats, num_sweeps, num_burn)
    options = backward_options(backward, num_particles, num_backward, num_tries)
    target = _target(model, args, kwargs, functional, parameters)
    references = None if start is None else target.references(start, num_repeats)

    def one(inputs):
        key, reference = (inputs, None) if references is None else inputs
        process, statistic = target.build()
        free = int(reference is None)
        path, *swept = parisian_gibbs(
            process, key, num_particles, statistic, reference, num_sweeps + free, **options
        )
        return path, *jax.tree.map(lambda v: v[free:], swept)

    return _gather(target, one, num_repeats, num_burn, seed, references)


def backward_options(backward: str, num_particles: int, num_backward: int, num_tries: int) -> dict[str, Any]:
    """Keyword arguments of :func:`~sojourn.ops.paris.paris_sweep`."""
    if backward not in (*BACKWARD, "auto"):
        raise ValueError(f"`backward` must be 'exact', 'mcmc' or 'auto', not {backward!r}.")
    if backward == "auto":
        backward = "exact" if num_particles <= _EXACT_UP_TO else "mcmc"
    return {"num_backward": num_backward, "backward": backward, "num_tries": num_tries}


# --------------------------------------------------------------------------------------------------- parts


class _Target(NamedTuple):
    """What to smooth: the process and the statistic, and how its estimates are shown."""

    build: Callable[[], tuple[Process, Statistic]]
    show: Callable[[Any], Any]
    """Of estimates with leading axes (repeats, sweeps)."""
    path_sites: tuple[str, ...]
    initial_sites: tuple[str, ...]

    def references(self, start: Mapping[str, Any], num_repeats: int) -> tuple[Any, Any]:
        sites = {*self.path_sites, *self.initial_sites}
        if set(start) != sites:
            raise ValueError(f"`start` must hold the sites {sorted(sites)}, not {sorted(start)}.")
        arrays = {n: jnp.asarray(v) for n, v in start.items()}
        wrong = [n for n, v in arrays.items() if v.shape[:1] != (num_repeats,)]
        if wrong:
            raise ValueError(
                f"`start` must hold a path for each of {num_repeats} repetitions; see '{wrong[0]}'."
            )
        return {n: arrays[n] for n in self.initial_sites}, {n: arrays[n] for n in self.path_sites}


def _target(model, args, kwargs, functional, parameters) -> _Target:
    if functional == "score":
        parametric = read_parametric(model, args, kwargs)
        vector = parametric.flat(parameters or {})
        structure = parametric.read.structure

        def show(moments):
            return jax.vmap(jax.vmap(parametric.unflat))(
                parametric.total_score(vector, moments.score, free=False, lead=2)
            )

        return _Target(
            partial(parametric.statistic, vector, free=False),
            show,
            structure.path_sites,
            structure.initial_sites,
        )
    if not callable(functional):
        raise ValueError(
            f"`functional` must be a function h(carry, carry_next, x) or 'score', not {functional!r}."
        )
    # A functional of the whole carry does not fall apart with the plates of the model.
    read = read_scan(model, *args, plates=False, **kwargs)
    structure = read.structure
    require_memory_one(structure)
    given = check_parameters(parameters or {}, structure.global_sites, parameter_shapes(read))
    missing = [n for n in structure.global_sites if n not in given]
    if missing:
        raise ValueError(f"`parameters` has no value for {', '.join(map(repr, missing))}.")
    term = _term(functional)

    def build():
        process = read.at(given).process()
        return process, additive(process, term)

    return _Target(build, lambda estimate: estimate, structure.path_sites, structure.initial_sites)


def _term(functional: Callable[..., Any]) -> Callable[[Step], Any]:
    try:
        takes = set(inspect.signature(functional).parameters)
    except (TypeError, ValueError):
        takes = set()
    more = [name for name in ("values", "t") if name in takes]
    return lambda step: functional(
        step.carry, step.carry_next, step.x, **{name: getattr(step, name) for name in more}
    )


def _gather(
    target: _Target, one, num_repeats: int, num_burn: int, seed: int, references: Any = None
) -> Smoothed:
    """Run the repetitions and put their estimates together."""

    @jax.jit
    def run(keys, references):
        inputs = keys if references is None else (keys, references)
        # Side by side where there is a machine for it: on a CPU that only takes three times as long to compile.
        size = None if jax.default_backend() == "cpu" else min(num_repeats, 16)
        paths, sweeps, log_evidence = jax.lax.map(one, inputs, batch_size=size)
        return paths, target.show(sweeps), log_evidence

    paths, sweeps, log_evidence = run(
        jax.random.split(jax.random.key(whole_number(seed, "seed", None)), num_repeats), references
    )
    sweeps = jax.tree.map(np.asarray, sweeps)
    means = jax.tree.map(lambda v: v[:, num_burn:].mean(1), sweeps)

    def error(v):
        return v.std(0, ddof=1) / np.sqrt(num_repeats) if num_repeats > 1 else np.full(v.shape[1:], np.nan)

    log_evidence = np.asarray(log_evidence)
    return Smoothed(
        estimate=jax.tree.map(lambda v: v.mean(0), means),
        standard_error=jax.tree.map(error, means),
        sweeps=sweeps,
        log_evidence=log_evidence.reshape((*log_evidence.shape[:2], -1)).sum(-1),
        path={n: np.asarray(v) for part in paths for n, v in part.items()},
    )


def _check(num_particles, num_backward, num_tries, num_repeats, num_sweeps, num_burn) -> None:
    least = (
        ("num_particles", num_particles, 2),
        ("num_backward", num_backward, 2),
        ("num_tries", num_tries, 1),
        ("num_repeats", num_repeats, 1),
        ("num_sweeps", num_sweeps, 1),
        ("num_burn", num_burn, 0),
    )
    for name, value, bound in least:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < bound:
            raise ValueError(f"`{name}` must be a whole number of at least {bound}, not {value!r}.")
    if num_burn >= num_sweeps:
        raise ValueError(
            f"`num_burn` ({num_burn}) must leave some of the {num_sweeps} sweeps (`num_sweeps`)."
        )
