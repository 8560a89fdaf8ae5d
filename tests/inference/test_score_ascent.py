"""Maximum likelihood by score ascent: against maxima and curvatures known in closed form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from sojourn.inference import _score_ascent
from sojourn.inference._score_ascent import ScoreAscent

Y = jnp.array([1.2, 3.1, 0.4, 2.2, 2.8, 1.5])


def level(y):
    """y_t ~ N(mu, 2) with half of the variance in a hidden value."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        numpyro.deterministic("twice", 2 * x)
        return x, None

    scan(step, 0.0, y)


def declared(y):
    """The same without a prior, and the scale unknown too."""
    mu = numpyro.param("mu", 1.0)
    tau = numpyro.param("tau", 0.8, constraint=constraints.positive)

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(x, 0.2), obs=y)
        return x, None

    scan(step, 0.0, y)


def run(model=level, num_samples=50, progress_bar=False, **options):
    engine = ScoreAscent(**{"num_particles": 10, "num_steps": 200, "num_sweeps": 2, **options})
    return engine.run(
        model, (Y,), {}, num_samples=num_samples, key=jax.random.key(0), progress_bar=progress_bar
    )


def test_a_fit():
    """The mean of the data, with variance 2 / 6.

    Bounds: sixth of a standard error for the maximum (the mean of 100 iterates of noisy Adam), a tenth for the
    standard error (from 200 sweeps), 4 Monte Carlo errors for the draws.
    """
    fit = run(num_samples=400)
    estimate, error = (json.loads(fit.attrs[n])["mu"] for n in ("estimate", "standard_error"))
    truth = np.sqrt(2 / len(Y))
    assert abs(estimate - Y.mean()) < truth / 6
    assert abs(error / truth - 1) < 0.1
    assert fit.attrs["converged"] == 1
    assert fit.attrs["num_steps"] == 200
    assert "asymptotic normal law" in fit.attrs["draws"]
    mu = fit.draws["mu"]
    assert mu.shape == (1, 400)
    assert abs(mu.mean() - estimate) < 4 * error / np.sqrt(400)
    assert abs(mu.std() / error - 1) < 4 / np.sqrt(2 * 400)
    # Paths come with the parameters they were drawn given: E (x | mu, y) = (mu + y) / 2, variance 1/2.
    assert fit.draws["x"].shape == (1, 400, 6)
    gap = (fit.draws["x"] - (mu[..., None] + Y) / 2).mean((0, 1))
    assert np.abs(gap).max() < 4 * np.sqrt(0.5 / 400) + 0.02  # and the bias of three sweeps
    np.testing.assert_allclose(fit.draws["twice"], 2 * fit.draws["x"], rtol=1e-5)
    # Unbiased likelihoods: their mean at draws near mu-hat is that of the exact ones within 4 standard errors.
    exact = dist.Normal(mu[..., None], jnp.sqrt(2.0)).log_prob(Y).sum(-1)
    ratio = np.exp(fit.stats["log_evidence"] - exact)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(400)


@pytest.mark.slow
def test_maximum_a_posteriori():
    """With the prior N(0, 1): precision 1 + 6 / 2, by Markov score climbing."""
    found = ScoreAscent(prior=True, num_particles=10, num_steps=400, num_sweeps=1).maximise(
        level, (Y,), progress_bar=False
    )
    precision = 1 + len(Y) / 2
    assert abs(found.estimate["mu"] - Y.sum() / 2 / precision) < 1 / 6 / np.sqrt(precision)
    assert abs(found.standard_error["mu"] * np.sqrt(precision) - 1) < 0.1


@pytest.mark.slow
def test_parameters_without_prior():
    """`numpyro.param`: the mean and the sd of the data, less the known noise; their asymptotic variances."""
    found = ScoreAscent(num_particles=20, num_steps=300, num_sweeps=2).maximise(
        declared, (Y,), progress_bar=False
    )
    total = float(Y.var())
    tau = np.sqrt(total - 0.04)
    # Of the standard deviation: V(total) = 2 total^2 / n, and d tau / d total = 1 / (2 tau).
    truth = {"mu": np.sqrt(total / 6), "tau": total * np.sqrt(2 / 6) / (2 * tau)}
    assert abs(found.estimate["mu"] - Y.mean()) < truth["mu"] / 6
    assert abs(found.estimate["tau"] - tau) < truth["tau"] / 6
    for name, value in truth.items():
        assert abs(found.standard_error[name] / value - 1) < 0.15
    assert found.converged


class _Interrupting:
    """A progress bar during which someone presses Ctrl-C after two updates."""

    def __init__(self, **options):
        self.updates = 0

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False

    def set_postfix_str(self, text):
        pass

    def update(self, count):
        self.updates += 1
        if self.updates == 2:
            raise KeyboardInterrupt


def test_interrupted_and_without_curvature(monkeypatch):
    """Ctrl-C keeps what there is. No curvature: a warning, no standard error, not converged."""

    def flat(self, parametric, vector, path, key):
        return np.zeros(2), np.diag([1.0, -1.0]), np.zeros((5, 2, 2))

    monkeypatch.setattr(_score_ascent, "tqdm", _Interrupting)
    monkeypatch.setattr(ScoreAscent, "_look_around", flat)
    engine = ScoreAscent(optax.adam(0.1), estimator="paris", num_particles=10, num_steps=200, num_sweeps=2)
    with pytest.warns(UserWarning, match="not positive definite"):
        found = engine.maximise(declared, (Y,), progress_bar=False)
    assert found.iterates.shape == (50, 2)
    assert np.isfinite(found.estimate["tau"])
    assert np.isnan(found.standard_error["tau"])
    assert not found.converged


def test_a_score_that_is_not_finite():
    def broken(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(mu, 1.0))
            numpyro.factor("term", jnp.where(mu > -9, jnp.sqrt(mu - mu), 0.0))  # derivative inf - inf
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, 0.0, y)

    with pytest.raises(RuntimeError, match="score is not finite"):
        ScoreAscent(num_steps=25, num_particles=5, num_sweeps=1).maximise(broken, (Y,), progress_bar=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "`num_particles` of ScoreAscent"),
        ({"num_sweeps": 0}, "`num_sweeps` of ScoreAscent"),
        ({"estimator": "pgas"}, "'ppg' or 'paris'"),
        ({"average": 0.0}, "`average` of ScoreAscent"),
        ({"optimizer": 0.1}, "optax optimiser"),
        ({"backward": "all"}, "`backward` must be"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreAscent(**options)


def test_start_is_checked():
    with pytest.raises(ValueError, match="`start` names 'nu'"):
        run(start={"nu": 1.0})
