import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoNormal

import sojourn as sj
from sojourn.diagnostics import _arviz

Y = np.array([0.3, 1.9, 1.1, 0.4, 2.2])
VARIANCE = 1 / (1 / 4 + len(Y))
MEAN = VARIANCE * Y.sum()


def normal_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def own_guide(y):
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    numpyro.sample("mu", dist.Normal(loc, scale))


@pytest.mark.parametrize("guide", [AutoNormal, own_guide], ids=["automatic", "own"])
def test_exact_where_the_guide_holds_the_posterior(guide):
    """Normal posterior, normal guide: after convergence the ELBO is within 0.01 of the evidence.

    The draws' mean and sd are within 5 Monte Carlo errors plus what 0.01 nats of KL allow (0.14 sd of bias).
    """
    fit = sj.fit(
        normal_mean,
        Y,
        engine=sj.Variational(guide=guide, num_restarts=2),
        num_samples=4000,
        progress_bar=False,
    )
    assert fit.attrs["converged"] == 1
    draws = _arviz.group(fit, "posterior")["mu"].values.ravel()
    sd = np.sqrt(VARIANCE)
    assert abs(draws.mean() - MEAN) < 5 * sd / np.sqrt(4000) + 0.14 * sd
    assert abs(draws.std() / sd - 1) < 0.15
    ratio = _arviz.group(fit, "sample_stats")["log_importance_ratio"].values.ravel()
    # log p(y) in closed form: the mean of p/q is the evidence.
    n = len(Y)
    covariance = np.eye(n) + 4.0
    evidence = -0.5 * (
        n * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + Y @ np.linalg.solve(covariance, Y)
    )
    assert abs(np.log(np.mean(np.exp(ratio))) - evidence) < 0.02
    assert sj.check(fit).ok


def test_agrees_with_nuts(nuts_fit, svi_fit):
    """Posterior means agree to half a posterior sd, and the check gives the k-hat that says how far to trust more."""
    khat = next(f for f in sj.check(svi_fit).findings if f.name == "khat")
    assert np.isfinite(khat.value)
    for name in ("rate", "transition"):
        nuts = _arviz.group(nuts_fit, "posterior")[name]
        svi = _arviz.group(svi_fit, "posterior")[name]
        gap = abs(nuts.mean(("chain", "draw")) - svi.mean(("chain", "draw"))) / nuts.std(("chain", "draw"))
        assert float(gap.max()) < 0.5


def test_elbo_trace(svi_fit):
    elbo = _arviz.group(svi_fit, "sample_stats")["elbo"]
    assert elbo.dims == ("restart", "step")
    assert elbo.sizes["restart"] == 4
    assert elbo.sizes["step"] == svi_fit.attrs["num_steps"]
    kept = elbo.isel(restart=svi_fit.attrs["restart_kept"])
    assert float(kept[-250:].mean()) > float(kept[:50].mean())


def test_not_converged_is_said():
    fit = sj.fit(
        normal_mean,
        Y + 50,
        engine=sj.Variational(num_restarts=1, block_size=20, max_steps=40, step_size=1e-3),
        num_samples=100,
        progress_bar=False,
    )
    assert fit.attrs["converged"] == 0
    assert not sj.check(fit).ok


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_restarts": 0}, "`num_restarts` of Variational"),
        ({"step_size": 0.0}, "`step_size` of Variational must be positive"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.Variational(**settings)


def test_bad_guide():
    with pytest.raises(ValueError, match="`guide` must be an AutoGuide or a function"):
        sj.fit(normal_mean, Y, engine=sj.Variational(guide=3), progress_bar=False)


def test_minibatches_are_optimised_and_the_whole_data_judge():
    """A normal posterior and guide: log p - log q is the evidence at every draw, but for what is left of the KL.

    At convergence the mean is within some tenths of a standard deviation, where minibatches of 4 of 40 move it, so the
    ratios spread by as much (0.5 is allowed); those of single minibatches spread by several nats.
    """
    y = np.random.default_rng(0).normal(1.0, 1.0, 40)

    def minibatch(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("data", len(y), subsample_size=4) as chosen:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.asarray(y)[chosen])

    engine = sj.Variational(guide=AutoNormal, num_restarts=1, step_size=0.05, block_size=100, max_steps=1000)
    fit = sj.fit(minibatch, y, engine=engine, num_samples=400, progress_bar=False)
    stats = _arviz.group(fit, "sample_stats")
    mu = _arviz.group(fit, "posterior")["mu"].values
    joint = (-0.5 * (y - mu[..., None]) ** 2).sum(-1) - mu**2 / 8
    joint -= 41 * np.log(2 * np.pi) / 2 + np.log(2.0)
    np.testing.assert_allclose(stats["lp"], joint, rtol=1e-5)
    assert float(stats["log_importance_ratio"].std()) < 0.5
    khat = next(f for f in sj.check(fit).findings if f.name == "khat")
    assert khat.ok
