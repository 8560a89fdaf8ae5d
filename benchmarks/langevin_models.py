"""The targets of ``langevin.py``: NumPyro models without arguments, and what of their draws is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Draws = Mapping[str, Any]
"""Unconstrained, by site; the first two axes are chain and draw."""

GRID_STEPS, HORIZON = 96, 3.0
"""Of the latent path."""
STEP = HORIZON / GRID_STEPS
OBSERVED = np.arange(5, GRID_STEPS, 6)
MEASURED = np.arange(3, GRID_STEPS, 4)
"""Grid steps at which the path is observed, and at which draws of it are measured."""
PROCESSES = 5
START, VOLATILITY, OBSERVATION_SD, TRUE_HURST = -1.0, 0.7, 0.15, 0.7
HURST_RANGE = (0.02, 0.98)


@dataclass(frozen=True)
class Posterior:
    """A target.

    Attributes:
        title: for the tables.
        model: takes no arguments.
        measured: from unconstrained draws of the sites to what is measured: ``x``, and others by name.
    """

    title: str
    model: Callable[[], None]
    measured: Callable[[Draws], dict[str, Any]]


# ------------------------------------------------------------------------------------------- three small ones


def gaussian() -> Posterior:
    import numpyro
    import numpyro.distributions as dist

    rng = np.random.default_rng(11)
    axes, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    covariance = (axes * np.geomspace(0.05, 5.0, 10)) @ axes.T

    def model() -> None:
        numpyro.sample("x", dist.MultivariateNormal(np.zeros(10), covariance))

    return Posterior("Rotated Gaussian, 10-d, condition number 100", model, _all)


def eight_schools() -> Posterior:
    import numpyro
    import numpyro.distributions as dist

    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("effect", dist.Normal(mu + tau * theta, error), obs=effect)

    return Posterior("Eight schools, non-centred, 10-d", model, _all)


def logistic() -> Posterior:
    import numpyro
    import numpyro.distributions as dist

    rng = np.random.default_rng(12)
    count, covariates = 300, 20
    x = rng.normal(size=(count, covariates))
    x[:, 1:] = 0.6 * x[:, :-1] + 0.8 * x[:, 1:]  # neighbours are correlated
    slope = 0.7 * rng.normal(size=covariates)
    y = (rng.random(count) < 1.0 / (1.0 + np.exp(-0.3 - x @ slope))).astype(float)

    def model() -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([covariates]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ slope).to_event(1), obs=y)

    return Posterior("Logistic regression, 21-d, n = 300", model, _all)


def _all(draws: Draws) -> dict[str, np.ndarray]:
    arrays = [np.asarray(draws[name]) for name in sorted(draws)]
    return {"x": np.concatenate([a.reshape(*a.shape[:2], -1) for a in arrays], axis=-1)}


# ------------------------------------------------------------------------------------ a path between two wells


class FractionalNoise:
    """Fractional Brownian motion of Riemann and Liouville on a grid, as a Markov process, with variance t^(2H).

    The part of its kernel that lies one or more steps back is fitted by a few exponentials, by least squares over the
    grid; the last step is exact: its loading on the increment, and the variance left over as a noise of its own.
    """

    def __init__(self, steps: int, dt: float, processes: int):
        self.dt = dt
        rate = np.geomspace(0.1 / (steps * dt), 1.0 / dt, processes)
        self.decay = np.exp(-rate * dt)
        self.gain = (1.0 - self.decay) / (rate * dt)
        self.lag = np.arange(1.0, steps)
        basis = self.gain[:, None] * self.decay[:, None] ** self.lag
        weighted = basis * (steps - self.lag)
        normal = weighted @ basis.T
        size = np.sqrt(np.diag(normal))
        scaled = normal / size / size[:, None] + 1e-10 * np.eye(processes)
        self.projection = np.linalg.solve(scaled, weighted / size[:, None]) / size[:, None]
        """From the kernel at each lag to the loadings: it does not depend on H."""

    def loadings(self, hurst: Any) -> tuple[Any, Any, Any]:
        """On the increment, on the processes before the step, and on the noise of the last step.

        The last changes sign at H = 1/2, which leaves the law as it is and the density smooth.
        """
        power = hurst + 0.5
        scale = (2.0 * hurst) ** 0.5 * self.dt ** (power - 1.0) / power
        kernel = scale * ((self.lag + 1.0) ** power - self.lag**power)
        return scale, self.decay * (self.projection @ kernel), self.dt**hurst * (hurst - 0.5) / power

    def step(self, loadings: tuple[Any, Any, Any], processes: Any, noise: Any) -> tuple[Any, Any]:
        """The processes after a step with two standard normals, and the value of the motion there."""
        on_increment, on_past, on_rest = loadings
        increment = self.dt**0.5 * noise[0]
        motion = on_increment * increment + (on_past * processes).sum() + on_rest * noise[1]
        return self.decay * processes + self.gain * increment, motion


@dataclass(frozen=True)
class DoubleWell:
    """dX = 2 X (1 - X^2) dt + sigma dB, B fractional with unknown H, X seen with noise at a few times."""

    @cached_property
    def noise(self) -> FractionalNoise:
        return FractionalNoise(GRID_STEPS, STEP, PROCESSES)

    def advance(self, loadings: tuple[Any, Any, Any], state: Any, noise: Any) -> Any:
        processes, motion, x = state
        processes, moved = self.noise.step(loadings, processes, noise)
        x = x + 2.0 * x * (1.0 - x**2) * STEP + VOLATILITY * (moved - motion)
        return processes, moved, x

    def path(self, hurst: Any, noise: Any) -> Any:
        """X after each step; ``noise`` has shape (steps, 2)."""
        import jax
        import jax.numpy as jnp

        loadings = self.noise.loadings(hurst)

        def advance(state: Any, noise_t: Any) -> tuple[Any, Any]:
            state = self.advance(loadings, state, noise_t)
            return state, state[2]

        start = jnp.zeros(PROCESSES), jnp.array(0.0), jnp.array(START)
        return jax.lax.scan(advance, start, noise)[1]

    @cached_property
    def observations(self) -> np.ndarray:
        rng = np.random.default_rng(13)
        loadings = self.noise.loadings(TRUE_HURST)
        state: Any = (np.zeros(PROCESSES), 0.0, START)
        path = []
        for noise in rng.normal(size=(GRID_STEPS, 2)):
            state = self.advance(loadings, state, noise)
            path.append(state[2])
        return np.array(path)[OBSERVED] + OBSERVATION_SD * rng.normal(size=len(OBSERVED))


def latent_sde() -> Posterior:
    """H and the increments, as one site of shape (steps, 2) before a ``lax.scan``.

    The same model with a site in NumPyro's ``scan`` compiles no faster (NUTS: 24 CPU seconds against 23).
    """
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    well = DoubleWell()
    observations = well.observations

    def model() -> None:
        hurst = numpyro.sample("H", dist.Uniform(*HURST_RANGE))
        noise = numpyro.sample("noise", dist.Normal(0.0, 1.0).expand([GRID_STEPS, 2]).to_event(2))
        seen = well.path(hurst, noise)[OBSERVED]
        numpyro.sample("y", dist.Normal(seen, OBSERVATION_SD).to_event(1), obs=observations)

    low, high = HURST_RANGE
    paths = jax.jit(jax.vmap(jax.vmap(lambda hurst, noise: well.path(hurst, noise)[MEASURED])))

    def measured(draws: Draws) -> dict[str, Any]:
        hurst = low + (high - low) * jax.nn.sigmoid(jnp.asarray(draws["H"]))
        return {"H": np.asarray(hurst)[..., None], "x": np.asarray(paths(hurst, draws["noise"]))}

    return Posterior("Latent path of an SDE, 193-d", model, measured)


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "gaussian": gaussian,
    "eight-schools": eight_schools,
    "logistic": logistic,
    "latent-sde": latent_sde,
}
