import numpy as np
import pytest

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.models import hidden_markov

SHORT = {"num_warmup": 150, "num_samples": 60, "num_chains": 2, "progress_bar": False}


@pytest.fixture(scope="module")
def series():
    """Two regimes far apart, so that decoding has one right answer."""
    return np.array([1, 0, 2, 1, 40, 38, 44, 41, 1, 2, 0, 39, 42, 40], float)


@pytest.fixture(scope="module")
def fit(series):
    gaps = series.copy()
    gaps[5] = np.nan
    return sj.fit(hidden_markov.poisson, gaps, num_states=2, **SHORT)


def test_decode(fit, series):
    gaps = series.copy()
    gaps[5] = np.nan
    states = hidden_markov.decode(fit, hidden_markov.poisson, gaps, num_states=2)
    assert states["state_probability"].dims == ("chain", "draw", "time", "state")
    np.testing.assert_allclose(states["state_probability"].sum("state"), 1, atol=1e-5)
    truth = (series > 20).astype(int)
    seen = np.arange(len(series)) != 5
    assert (states["most_likely_state"].values[..., seen] == truth[seen]).mean() > 0.99
    assert (states["sampled_state"].values[..., seen] == truth[seen]).mean() > 0.99
    # The paths are drawn from the law that smoothing gives: the missing step, within 5 Monte Carlo errors.
    p = float(states["state_probability"].sel(time=5, state=1).mean())
    drawn = float(states["sampled_state"].sel(time=5).mean())
    assert abs(drawn - p) < 5 * np.sqrt(p * (1 - p) / 120) + 1e-3
    thinned = hidden_markov.decode(fit, hidden_markov.poisson, gaps, num_states=2, num_draws=7)
    assert thinned.sizes["draw"] == 7
    with pytest.raises(ValueError, match="`num_draws` must lie between 1 and the 60 draws"):
        hidden_markov.decode(fit, hidden_markov.poisson, gaps, num_states=2, num_draws=61)


def test_forecast(fit, series):
    gaps = series.copy()
    gaps[5] = np.nan
    future = hidden_markov.forecast(fit, hidden_markov.poisson, gaps, num_states=2, horizon=40)
    assert future["y"].dims == ("chain", "draw", "horizon")
    assert future["time"].values.tolist() == list(range(14, 54))
    posterior = _arviz.group(fit, "posterior")
    # One step on: the last state is 1 for certain, so the next one is drawn from row 1 of each draw's matrix.
    stay = float(posterior["transition"].sel(state=1, next_state=1).mean())
    drawn = float(future["hidden_state"].sel(horizon=1).mean())
    assert abs(drawn - stay) < 5 * 0.5 / np.sqrt(120)
    # And a count comes from the rate of its state.
    state, count = future["hidden_state"].values, future["y"].values
    assert count[state == 1].mean() == pytest.approx(float(posterior["rate"].sel(state=1).mean()), rel=0.1)
    with pytest.raises(ValueError, match="`horizon` must be at least one step"):
        hidden_markov.forecast(fit, hidden_markov.poisson, gaps, num_states=2, horizon=0)


def test_ragged_and_covariates():
    rng = np.random.default_rng(0)
    y, lengths = hidden_markov.pad([rng.poisson(3, 9), rng.poisson(3, 4)])
    one = sj.fit(hidden_markov.poisson, y, num_states=2, lengths=lengths, **{**SHORT, "num_chains": 1})
    states = hidden_markov.decode(one, hidden_markov.poisson, y, num_states=2, lengths=lengths)
    assert states["state_probability"].dims == ("chain", "draw", "series", "time", "state")
    assert np.isnan(states["state_probability"].values[0, 0, 1, 4:]).all()
    assert (states["most_likely_state"].values[0, 0, 1, 4:] == -1).all()
    future = hidden_markov.forecast(one, hidden_markov.poisson, y, num_states=2, lengths=lengths, horizon=2)
    assert future["y"].dims == ("chain", "draw", "series", "horizon")

    x = rng.normal(size=(9, 1))
    kwargs = {"num_states": 2, "covariates": x}
    driven = sj.fit(hidden_markov.poisson, y[0], **kwargs, **{**SHORT, "num_chains": 1})
    assert _arviz.group(driven, "posterior")["transition_slope"]["move"].values.tolist() == ["0->1", "1->0"]
    ahead = hidden_markov.forecast(
        driven, hidden_markov.poisson, y[0], horizon=3, future_covariates=np.ones((2, 1)), **kwargs
    )
    assert ahead["y"].shape == (1, 60, 3)
    with pytest.raises(ValueError, match="`future_covariates` has shape"):
        hidden_markov.forecast(driven, hidden_markov.poisson, y[0], horizon=3, **kwargs)


def test_old_faithful_escapes_its_saddle():
    """All chains reach the two-state solution, 66 nats above the saddle at which both states emit alike."""
    y = sj.datasets.old_faithful()["long"]
    fit = sj.fit(
        hidden_markov.categorical,
        y,
        num_states=2,
        num_categories=2,
        **{**SHORT, "num_warmup": 300, "num_samples": 100, "num_chains": 4},
    )
    terms = _arviz.group(fit, "log_likelihood")["y"].sum("time")
    assert float(terms.mean("draw").min()) > -140  # maximum -127.31; one state -193.80
    # Nothing names the states, so chains may differ in their labels; aligned, they agree.
    fit = sj.relabel(fit)
    probs = _arviz.group(fit, "posterior")["probs"].mean(("chain", "draw")).sel(category=1)
    assert float(probs.max()) > 0.95
    assert float(probs.min()) == pytest.approx(0.225, abs=0.1)
