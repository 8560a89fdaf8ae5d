"""The same posterior two ways: NUTS with the path summed out, and the path drawn exactly in turn with NUTS."""

from functools import partial

import numpy as np
import numpyro.distributions as dist

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.models import hidden_markov


def test_same_posterior():
    """Means agree within 5 Monte Carlo errors of the two chains, sds within 15 %."""
    y = sj.datasets.earthquakes()["count"]
    model = partial(hidden_markov.poisson, num_states=2)
    marginal = sj.fit(model, y, num_warmup=400, num_samples=1000, num_chains=4, progress_bar=False)
    path = sj.fit(
        model,
        y,
        path=True,
        engine="blocked_gibbs",
        num_warmup=300,
        num_samples=4000,
        num_chains=1,
        progress_bar=False,
    )
    one, two = _arviz.group(marginal, "posterior"), _arviz.group(path, "posterior")
    sizes = [_arviz.ess(x[["rate", "transition"]]) for x in (one, two)]
    for name in ("rate", "transition"):
        sd = one[name].std(("chain", "draw"))
        error = sd * np.sqrt(1 / sizes[0][name] + 1 / sizes[1][name])
        gap = abs(one[name].mean(("chain", "draw")) - two[name].mean(("chain", "draw")))
        assert float((gap / error).max()) < 5
        assert float(sizes[1][name].min()) > 200  # the comparison means something
        assert float(abs(two[name].std(("chain", "draw")) / sd - 1).max()) < 0.15
    # The sampled paths visit states as often as smoothing says (95 % of a mean over dependent draws: 5 errors).
    states = hidden_markov.decode(marginal, model, y, num_draws=250)
    smoothed = states["state_probability"].mean(("chain", "draw")).sel(state=1).values
    visited = two["hidden_state"].mean(("chain", "draw")).values
    assert np.abs(smoothed - visited).max() < 0.1
    assert np.abs(smoothed - visited).mean() < 0.02


def test_terms_are_those_of_the_marginal_form():
    """A path fit stores log p(y_t | y_<t), not log p(y_t | x_t)."""
    y = np.array([1, 2, 9, 8, 1])
    fit = sj.fit(
        hidden_markov.poisson,
        y,
        num_states=2,
        path=True,
        engine="blocked_gibbs",
        num_warmup=50,
        num_samples=20,
        num_chains=1,
        progress_bar=False,
    )
    posterior = _arviz.group(fit, "posterior").isel(chain=0, draw=4)
    law = sj.distributions.HiddenMarkov(
        hidden_markov.stationary(posterior["transition"].values),
        posterior["transition"].values,
        dist.Poisson(posterior["rate"].values),
        num_steps=5,
    )
    stored = _arviz.group(fit, "log_likelihood")["y"].isel(chain=0, draw=4)
    np.testing.assert_allclose(stored, law.predictive_log_prob(y), rtol=1e-4)
