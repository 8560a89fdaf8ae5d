"""Leave-future-out cross-validation against predictive densities in closed form.

A normal mean with known variance has them; a kernel that draws from its posterior, independently, takes the
place of MCMC, so that Monte Carlo errors are known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.infer.mcmc import MCMCKernel
from scipy import stats

from sojourn.diagnostics._arviz import group
from sojourn.inference._leave_future_out import LeaveFutureOut, _takes_nan, leave_future_out

PRIOR = 2.0


def level(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, PRIOR))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def posterior(y):
    """Mean and variance of the level given what is not NaN, of series along the first axis."""
    y = y[~np.isnan(y)]
    precision = len(y) + PRIOR**-2
    return y.sum() / precision, 1 / precision


class State(NamedTuple):
    z: Any
    moments: Any
    rng_key: Any


class Conjugate(MCMCKernel):
    """Independent draws from the posterior of `level`."""

    sample_field = "z"

    def __init__(self, model):
        self.model = model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        y = jnp.asarray(model_args[0])
        seen = ~jnp.isnan(y)
        precision = seen.sum() + PRIOR**-2
        moments = jnp.array([jnp.where(seen, y, 0.0).sum() / precision, precision**-0.5])
        return State(jnp.zeros(()), moments, rng_key)

    def sample(self, state, model_args, model_kwargs):
        key, now = random.split(state.rng_key)
        mean, sd = state.moments
        return state._replace(z=mean + sd * random.normal(now), rng_key=key)

    def postprocess_fn(self, args, kwargs):
        return lambda z: {"mean": z}

    def get_diagnostics_str(self, state):
        return ""


SETTINGS = {
    "engine": Conjugate,
    "num_chains": 1,
    "num_warmup": 0,
    "num_samples": 4000,
    "num_draws": 4000,
    "progress_bar": False,
}


def exact(y, first, horizon=1):
    """Log p(y_t, ..., y_{t+h-1} | y_<t) for t = first, ..."""
    scores = []
    for t in range(first, len(y) - horizon + 1):
        mean, var = posterior(y[:t])
        ahead = y[t : t + horizon]
        ahead = ahead[~np.isnan(ahead)]
        covariance = np.eye(len(ahead)) + var
        law = stats.multivariate_normal
        scores.append(law.logpdf(ahead, mean * np.ones(len(ahead)), covariance) if len(ahead) else np.nan)
    return np.array(scores)


DATA = np.random.default_rng(0).normal(0.5, 1.0, size=40)
DATA[[3, 25]] = np.nan
DATA[36] = 6.0  # a surprise, which moves the level


@pytest.fixture(scope="module")
def weighted():
    y = xr.DataArray(DATA, dims="day", coords={"day": np.arange(100, 140)})
    return leave_future_out(level, y, first=20, **SETTINGS)


def test_weights_give_the_predictive_density(weighted):
    expected = exact(DATA, 20)
    found = weighted.log_score.values
    gap = np.isnan(expected)
    assert gap.tolist() == (np.arange(20, 40) == 25).tolist() == np.isnan(found).tolist()
    # The densities of 4000 draws vary by less than their mean, and the weights leave 1000 draws or more: 4
    # standard errors are 4 / sqrt(1000), and of the ordinary observations a quarter of that, since the level
    # is known to 0.2.
    ordinary = ~gap & (np.arange(20, 40) != 36)
    assert np.abs(found - expected)[ordinary].max() < 1 / np.sqrt(1000)
    assert abs(found[16] - expected[16]) < 4 / np.sqrt(1000)
    assert weighted.elpd == pytest.approx(np.nansum(found))
    assert weighted.se == pytest.approx(np.nanstd(found, ddof=1) * np.sqrt(19))


def test_the_fit_is_renewed_where_the_weights_fail_only(weighted):
    assert weighted.refits[0] == 20
    assert len(weighted.refits) < 5
    assert np.isnan(weighted.khat.values[0])
    used = weighted.khat.values[~np.isnan(weighted.khat.values)]
    assert len(used) == 20 - len(weighted.refits)
    assert (used <= 0.7).all()


def test_a_jump_asks_for_a_new_fit():
    # One observation 12 away moves the level by five of its standard deviations: the weights are log-normal
    # with a standard deviation of five, and a handful of 4000 draws have any. The ones that follow change
    # little.
    y = np.concatenate([DATA[4:10], [12.0, 1.0, 2.0]])
    found = leave_future_out(level, y, first=6, **SETTINGS)
    assert found.refits == (6, 7)
    assert np.isnan(found.khat.values).tolist() == [True, True, False]
    # Averages over 4000 draws, of densities that vary by half of their mean as the level does by 0.4.
    assert np.abs(found.log_score.values - exact(y, 6))[1:].max() < 4 * 0.5 / np.sqrt(4000)
    assert "2 fits, k-hat at most" in str(found)


def test_the_future_is_hidden_by_gaps_only_where_the_model_takes_them():
    def centred(y):
        level(y - y.mean())

    def autoregression(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        scan(lambda last, y: (y, numpyro.sample("y", dist.Normal(a * last, 1.0), obs=y)), 0.0, y)

    def filled(y):
        level(jnp.nan_to_num(y))

    y = np.array([0.1, np.nan, 0.2, 0.3])
    assert _takes_nan(level, y, 3, (), {})
    assert not _takes_nan(centred, np.arange(4.0), 3, (), {})  # then nothing is observed at all
    assert not _takes_nan(filled, y, 3, (), {})  # the future is zero
    assert not _takes_nan(autoregression, np.arange(4.0), 2, (), {})  # the gradient is NaN
    assert not _takes_nan(level, np.zeros(4, int), 3, (), {})
    with pytest.raises(ValueError, match=r"observes other entries than the first ones.*truncate='slice'"):
        leave_future_out(centred, np.arange(4.0), first=3, truncate="missing", **SETTINGS)


def test_several_steps_are_scored_together_and_slices_serve_as_gaps_do():
    def counted(y, weight):
        assert len(y) == len(weight)
        level(y)

    y = DATA[:32]
    found = leave_future_out(counted, y, np.ones(32), first=24, horizon=3, truncate="slice", **SETTINGS)
    assert found.log_score.sizes["time"] == 6
    # Of three observations together, some draws of a level with sd 0.2: see above.
    assert np.abs(found.log_score.values - exact(y, 24, 3)).max() < 4 * 1.5 / np.sqrt(1000)
    assert "6 forecasts 3 steps ahead" in str(found)
    assert np.isfinite(found.se)


def test_forecasts_are_draws_from_the_predictive_law(weighted):
    drawn = weighted.forecasts.predictions["y"]
    assert drawn.dims == ("chain", "draw", "time")
    assert drawn["time"].values.tolist() == list(range(120, 140))
    for t in (20, 30, 39):
        mean, var = posterior(DATA[:t])
        sd = np.sqrt(1 + var)
        values = drawn.values[0, :, t - 20]
        # At least 1000 independent draws among the 4000 of equal weight.
        assert abs(values.mean() - mean) < 4 * sd / np.sqrt(1000)
        assert abs(values.std() / sd - 1) < 4 / np.sqrt(2000)
    scored = weighted.score(intervals=(0.5,))
    row = scored.table.loc["y"]
    assert row["observations"] == 19
    assert row["log_score"] == pytest.approx(weighted.elpd / 19)
    mean, var = posterior(DATA[:36])
    assert scored.pointwise["y_pit"].values[16] > 1 - 1e-3
    # CRPS of a normal so far out: the distance less sd / sqrt(pi).
    assert scored.pointwise["y_crps"].values[16] == pytest.approx(
        6 - mean - np.sqrt((1 + var) / np.pi), abs=0.15
    )
    assert group(weighted.forecasts, "posterior").sizes["draw"] == 4000


def test_text_and_picture(weighted):
    text = str(weighted)
    assert text.startswith("elpd -")
    assert "over 19 forecasts one step ahead" in text
    figure = weighted.plot()
    above, below = figure.axes
    assert above.lines[0].get_ydata()[-1] == pytest.approx(weighted.elpd)
    assert len(below.lines) == 1 + len(weighted.refits) - 1


def test_errors_of_overlapping_sums_count_their_covariance():
    scores = xr.DataArray(np.repeat([1.0, -1.0, 1.0, -1.0], 2), dims="time")
    one = LeaveFutureOut(scores, scores, (1,), 1, 0.7, None)
    two = LeaveFutureOut(scores, scores, (1,), 2, 0.7, None)
    assert one.se == pytest.approx(np.sqrt(8 * 8 / 7))
    # Lag 1: products 1, -1, 1, -1, 1, -1, 1, with weight 1/2 twice.
    assert two.se == pytest.approx(np.sqrt(9 * 8 / 7))


@pytest.mark.slow
def test_a_path_is_filtered_by_particles():
    """A random walk seen with noise, parameters all but known: the elpd is that of the Kalman filter."""

    def walk(y):
        scale = numpyro.sample("scale", dist.LogNormal(np.log(0.5), 0.01))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, scale))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    rng = np.random.default_rng(1)
    y = np.cumsum(0.5 * rng.normal(size=30)) + rng.normal(size=30)
    found = leave_future_out(
        walk,
        y,
        first=20,
        engine="particle_gibbs",
        num_chains=1,
        num_warmup=100,
        num_samples=200,
        num_draws=200,
        progress_bar=False,
    )
    mean, var, terms = 0.0, 1.0, []
    for value in y:
        var = var + 0.25
        terms.append(stats.norm.logpdf(value, mean, np.sqrt(var + 1)))
        gain = var / (var + 1)
        mean, var = mean + gain * (value - mean), var * (1 - gain)
    # 200 draws of a scale known to 1 %, 500 particles: the noise of a term is below 0.05 a draw.
    assert np.abs(found.log_score.values - terms[20:]).max() < 0.05


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (np.zeros(5), {"first": 0}, "`first` must be a whole number of at least 1"),
        (np.zeros(5), {"first": 5}, "After the first 5 of 5 observations there are no 1 left to score"),
        (np.zeros(5), {"first": 2, "horizon": 1.5}, "`horizon` must be a whole number"),
        (np.zeros(5), {"first": 2, "truncate": "cut"}, "`truncate` must be one of"),
        (np.zeros(5, int), {"first": 2, "truncate": "missing"}, "Data of type int64 cannot hold NaN"),
        (np.float64(1.0), {"first": 2}, "needs data with time on the first axis"),
    ],
)
def test_what_cannot_be_done_is_named(data, options, says):
    with pytest.raises(ValueError, match=says):
        leave_future_out(level, data, **options, **SETTINGS)


def test_time_comes_first():
    def across(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, PRIOR))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=jnp.asarray(y).T)

    with pytest.raises(
        ValueError, match="5 entries on their first axis, and the series of the model 2 steps"
    ):
        leave_future_out(
            across, np.zeros((5, 2)), first=3, **(SETTINGS | {"num_samples": 100, "num_draws": 100})
        )
