"""A drift learnt by a network from noisy series, with the right noise and with the wrong one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import trained_model
from sojourn.models import fractional_sde

STEP, LENGTH, SERIES = 0.05, 60, 64
TIMES = STEP * np.arange(1, LENGTH + 1)


def double_well(x):
    return 4.0 * x * (1.0 - x**2)


def simulate(seed, num_series):
    """Series of the double well under noise of H = 0.3, seen at every step with error 0.1."""
    draws = Predictive(fractional_sde.sde, num_samples=1)(
        jax.random.key(seed),
        None,
        TIMES,
        drift=double_well,
        diffusion=0.6,
        hurst=0.3,
        initial=0.0,
        observation_noise=0.1,
        num_series=num_series,
        step=STEP,
    )
    return np.asarray(draws["y"][0]).T, np.asarray(draws["state"][0])


def learn(y, hurst, max_steps=750):
    network = eqx.nn.MLP("scalar", "scalar", 16, 1, jnp.tanh, key=jax.random.key(1))
    settings = {
        "drift": network,
        "hurst": hurst,
        "diffusion": dist.LogNormal(-0.5, 0.7),
        "initial": 0.0,
        "observation_noise": dist.LogNormal(-2.0, 0.7),
        "step": STEP,
        "num_series": len(y),
    }
    engine = sj.Variational(num_particles=1, max_steps=max_steps, step_size=0.01)
    fit = sj.fit(fractional_sde.sde, y, TIMES, engine=engine, num_samples=40, progress_bar=False, **settings)
    return fit, settings


def held_out(fit, settings, y):
    """Log-likelihood of new series by a particle filter, averaged over draws of the parameters."""
    model = trained_model(fractional_sde.sde, fit)
    found = sj.particle_filter(
        model,
        y,
        TIMES,
        fit=fit,
        num_draws=10,
        num_particles=2000,
        quantiles=(),
        **{**settings, "num_series": len(y)},
    )
    return (
        float(found["log_likelihood"].sum("series").mean())
        if "series" in found.dims
        else float(found["log_likelihood"].mean())
    )


@pytest.mark.slow
def test_the_wrong_noise_loses():
    """64 series of 60 steps. With H = 0.3 the learnt field is nearer to the true one over the visited region, and 32
    held-out series are likelier by more than 10 nats than with H = 1/2 assumed (23 when written)."""
    y, states = simulate(0, SERIES)
    new, _ = simulate(1, 32)
    visited = np.quantile(states, np.linspace(0.02, 0.98, 200))
    error, likelihood = {}, {}
    for hurst in (0.3, 0.5):
        fit, settings = learn(y, hurst)
        field = fractional_sde.drift_field(fit, visited, drift=settings["drift"])
        away = np.asarray(field.mean(("chain", "draw"))).ravel() - double_well(visited)
        error[hurst] = float(np.sqrt((away**2).mean()))
        likelihood[hurst] = held_out(fit, settings, new)
        posterior = _arviz.group(fit, "posterior")
        print(
            f"H = {hurst}: field off by {error[hurst]:.3f} (rms of the field {np.sqrt((double_well(visited) ** 2).mean()):.3f}), "
            f"diffusion {float(posterior['diffusion'].mean()):.3f}, errors {float(posterior['observation_noise'].mean()):.3f}, "
            f"held-out {likelihood[hurst]:.1f}, steps {fit.attrs['num_steps']}, {fit.attrs['seconds']:.0f} s"
        )
    assert error[0.3] < error[0.5]
    assert likelihood[0.3] > likelihood[0.5] + 10.0
