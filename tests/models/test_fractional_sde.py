"""Equations with fractional noise: sites and shapes, grids and gaps, fits, questions, and what is refused."""

from __future__ import annotations

import types
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import sojourn as sj
from sojourn.models import fractional_sde as fs
from sojourn.ops.fractional import covariance

RNG = np.random.default_rng(2)
Y = 0.3 * np.cumsum(RNG.normal(size=12))


def decay(x):
    return -x


def sites(model, *args, **kwargs):
    """The trace of a model, abstractly: nothing is compiled."""
    found = {}

    def run():
        trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args, **kwargs)
        found.update(trace)
        return {n: s["value"] for n, s in trace.items() if s["type"] in ("sample", "deterministic", "param")}

    return jax.eval_shape(run), found


def shapes(model, *args, **kwargs):
    return {n: v.shape for n, v in sites(model, *args, **kwargs)[0].items() if hasattr(v, "shape")}


# ------------------------------------------------------------------------------------ sites and shapes


def test_sites_of_a_scalar_equation():
    assert shapes(fs.sde, Y, drift=decay) == {
        "hurst": (),
        "diffusion": (),
        "observation_noise": (),
        "initial_state": (),
        "noise": (12, 1, 2),
        "y": (12,),
        "state": (12,),
    }


def test_sites_of_series_in_a_plane():
    y = RNG.normal(size=(3, 5, 2))
    found, trace = sites(
        fs.sde, y, drift=decay, correlation=dist.LKJCholesky(2, 2.0), kind="I", substeps=3,
        hurst=dist.Beta(2.0, 2.0).expand([2]).to_event(1), name="position",
    )  # fmt: skip
    assert {n: v.shape for n, v in found.items()} == {
        "hurst": (2,),
        "diffusion": (2,),
        "correlation_cholesky": (2, 2),
        "observation_noise": (2,),
        "initial_state": (3, 2),
        "past": (3, 2, 4),
        "noise": (13, 3, 2, 2),
        "position": (13, 3, 2),
        "state": (13, 3, 2),
    }
    assert trace["noise"]["infer"]["dims_of"] == {"state": ["time", "series", "dimension"]}
    np.testing.assert_allclose(trace["noise"]["infer"]["event_coords"]["time"], np.arange(3, 16) / 3)


def test_fixed_brownian_noise_has_no_memory():
    found = shapes(fs.sde, Y, hurst=0.5, diffusion=1.0, initial=0.0, observation_noise=0.1)
    assert found == {"noise": (12, 1, 1), "y": (12,), "state": (12,)}


@pytest.mark.parametrize(
    ("diffusion", "num_dims", "drivers"),
    [
        (0.5, 0, 1),
        (np.ones(3), 0, 3),
        (0.5, 2, 2),
        (np.ones(2), 2, 2),
        (np.ones((2, 3)), 2, 3),
        (lambda x: x, 2, 2),
        (lambda x: jnp.outer(x, jnp.ones(4)), 2, 4),
        (lambda: jnp.ones(3), 0, 3),
    ],
)
def test_drivers(diffusion, num_dims, drivers):
    found = shapes(fs.sde, None, diffusion=diffusion, num_dims=num_dims, num_steps=4)
    assert found["noise"] == (4, drivers, 2)
    assert found["state"] == ((4, num_dims) if num_dims else (4,))


def test_functions_and_networks():
    network = eqx.nn.MLP("scalar", "scalar", 3, 1, key=jax.random.key(0))
    found, trace = sites(fs.sde, Y, drift=network, diffusion=lambda x: jnp.exp(-(x**2)), solver="heun")
    assert trace["drift$params"]["type"] == "param"
    assert "diffusion" not in found

    def well():
        depth = numpyro.sample("depth", dist.LogNormal(0.0, 1.0))
        return lambda x, t: depth * (x - x**3) + jnp.sin(t)

    def neurons():
        gain = numpyro.sample("gain", dist.Normal(0.0, 1.0).expand([7]).to_event(1))
        return lambda x: dist.Poisson(jnp.exp(gain * x)).to_event(1)

    counts = RNG.poisson(1.0, (12, 7))
    found, trace = sites(
        fs.sde, counts, drift=well, observation=neurons, num_dims=0, diffusion=dist.HalfNormal(1.0)
    )
    assert {"depth", "gain", "diffusion"} <= set(found)
    assert found["y"].shape == (12, 7)
    assert jnp.issubdtype(found["y"].dtype, jnp.integer)
    assert trace["y"]["infer"]["event_dims"] == ["channel"]


def test_simulation_comes_back_as_data_do():
    """Along the grid at the site, at the times asked for as the value; then it can be fitted as it is."""

    def simulate():
        return numpyro.deterministic(
            "data",
            fs.sde(
                None, [0.5, 1.0, 2.0], drift=decay, step=0.5, num_series=2, num_dims=3, observation_noise=0.1
            ),
        )

    found = Predictive(simulate, num_samples=1)(jax.random.key(0))
    assert found["y"].shape == (1, 4, 2, 3)
    assert found["data"].shape == (1, 2, 3, 3)
    np.testing.assert_array_equal(found["data"][0, :, 2], found["y"][0, 3])
    assert shapes(fs.sde, found["data"][0], [0.5, 1.0, 2.0], step=0.5)["y"] == (4, 2, 3)


def test_what_belongs_to_a_series_is_labelled_so():
    _, trace = sites(fs.sde, np.stack([Y, -Y]), num_series=2)
    assert [frame.name for frame in trace["initial_state"]["cond_indep_stack"]] == ["series"]
    assert trace["initial_state"]["infer"]["event_dims"] == []
    assert np.allclose(trace["initial_state"]["fn"].loc, [Y[0], -Y[0]])


def test_priors_follow_the_scale_of_the_data():
    _, one = sites(fs.sde, Y, drift=decay)
    _, other = sites(fs.sde, 100 * Y, drift=decay)
    for name in ("diffusion", "observation_noise"):
        assert np.allclose(other[name]["fn"].loc - one[name]["fn"].loc, np.log(100), atol=1e-5)
    assert np.allclose(other["initial_state"]["fn"].scale, 100 * one["initial_state"]["fn"].scale)
    assert np.allclose(one["initial_state"]["fn"].loc, Y[0])


def test_both_forms_of_the_linear_model_have_the_same_priors():
    _, marginal = sites(fs.linear, Y)
    _, path = sites(fs.linear, Y, path=True)
    latent = {n for n, s in marginal.items() if s["type"] == "sample" and not s["is_observed"]}
    assert latent == {"rate", "offset", "hurst", "diffusion", "observation_noise"}
    for name in latent:
        one, other = (jax.tree.leaves(trace[name]["fn"]) for trace in (marginal, path))
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert set(path) - set(marginal) == {"initial_state", "noise", "state"}


# -------------------------------------------------------------------------------------- grids and gaps


def density(y, times=None, *, noise, **model):
    fixed = {
        "hurst": 0.3,
        "diffusion": 0.7,
        "observation_noise": 0.2,
        "initial": 0.1,
        "drift": decay,
        **model,
    }
    return jax.jit(lambda noise: log_density(fs.sde, (y, times), fixed, {"noise": noise})[0])(
        jnp.asarray(noise)
    )


def test_gaps_masks_and_irregular_times_are_one_thing(x64):
    noise = RNG.normal(size=(6, 1, 2))
    y = np.array([0.3, np.nan, np.nan, -0.2, np.nan, 0.4])
    kept = ~np.isnan(y)
    times = 0.1 * np.arange(1, 7)
    by_gap = density(y, times, noise=noise)
    by_mask = density(np.where(kept, y, 99.0), times, noise=noise, mask=kept)
    np.testing.assert_allclose(by_mask, by_gap, rtol=1e-12)
    late = density(y[kept], times[kept] + 1e-5, noise=noise, step=0.1, start=0.0)
    np.testing.assert_allclose(late, by_gap, rtol=1e-12)
    rounded = density(y[kept], times[kept] + 0.03, noise=noise, step=0.1, start=0.0, tolerance=0.5)
    np.testing.assert_allclose(rounded, late, rtol=1e-12)


def test_a_plate_is_the_sum_of_its_series(x64):
    """Two series in a plane, one with a coordinate missing and one with a whole reading."""
    noise = RNG.normal(size=(4, 2, 2, 2))
    y = RNG.normal(size=(2, 4, 2))
    y[0, 1, 0], y[1, 2] = np.nan, np.nan
    model = {
        "diffusion": lambda x: 1 + 0.1 * jnp.outer(x, x),
        "correlation": np.array([[1.0, 0.5], [0.5, 1.0]]),
    }
    together = density(y, noise=noise, **model)
    alone = [density(y[i], noise=noise[:, i], **model) for i in range(2)]
    np.testing.assert_allclose(together, sum(alone), rtol=1e-12)


def test_data_may_be_traced(x64):
    """As they are when a compiled fit is given new series: gaps and default priors work all the same."""
    y = RNG.normal(size=(2, 4, 2))
    y[0, 1, 0], y[1, 2] = np.nan, np.nan
    values = {
        "observation_noise": np.array([0.3, 0.2]),
        "initial_state": np.zeros((2, 2)),
        "noise": RNG.normal(size=(7, 2, 2, 2)),
    }
    values = {n: jnp.asarray(v) for n, v in values.items()}
    model = {"substeps": 2, "diffusion": 0.5, "hurst": 0.3}
    known = jax.jit(lambda v: log_density(fs.sde, (y,), model, v)[0])(values)
    traced = jax.jit(lambda y, v: log_density(fs.sde, (y,), model, v)[0])(y, values)
    np.testing.assert_allclose(traced, known, rtol=1e-12)


def test_density_has_a_gradient_everywhere():
    y = np.array([0.3, np.nan, 0.5, -0.2], np.float32)

    def model():
        fs.sde(y, drift=decay, diffusion=lambda x: 1 + x**2, kind="I")

    values = {
        "hurst": 0.5,
        "observation_noise": 0.3,
        "initial_state": 0.0,
        "noise": jnp.zeros((4, 1, 2)),
        "past": jnp.zeros((1, 4)),
    }
    slope = jax.jit(jax.grad(lambda v: log_density(model, (), {}, v)[0]))(values)
    assert all(np.isfinite(s).all() for s in slope.values())


# ------------------------------------------------------------------------------------------------ fits


@pytest.fixture(scope="module")
def marginal_fit():
    """`linear` with a gap, on a grid twice as fine as the data."""
    times = 0.5 * np.arange(1, 13)
    y = Y.copy()
    y[4] = np.nan
    fit = sj.fit(
        fs.linear,
        y,
        times,
        substeps=2,
        num_warmup=30,
        num_samples=20,
        num_chains=1,
        progress_bar=False,
        seed=1,
    )
    return y, times, fit


def test_a_fit_of_the_marginal_form(marginal_fit):
    y, times, fit = marginal_fit
    assert set(fit.posterior.data_vars) == {"hurst", "rate", "offset", "diffusion", "observation_noise"}
    grid = fit.observed_data["y"]
    assert grid.dims == ("time",)
    np.testing.assert_allclose(grid["time"], 0.25 + 0.25 * np.arange(1, 24))
    np.testing.assert_allclose(grid.sel(time=times), y, rtol=1e-6)
    assert int(grid.isnull().sum()) == 11 + 1
    assert np.isfinite(fit.log_likelihood["y"].sel(time=times[:4])).all()
    assert fit.predictions["y"].dims == ("chain", "draw", "time")


def test_questions_of_a_fit(marginal_fit):
    y, times, fit = marginal_fit
    path = fs.smoothed_state(fit, y, times, substeps=2, num_draws=5)
    assert path["mean"].dims == ("time",)
    np.testing.assert_allclose(path["time"], fit.observed_data["time"])
    seen = path.sel(time=times[~np.isnan(y)])
    error = float(fit.posterior["observation_noise"].max())
    assert (np.abs(seen["mean"] - y[~np.isnan(y)]) < 5 * error).all()
    assert float(path["sd"].sel(time=times[4])) > float(path["sd"].sel(time=times[3]))
    msd = fs.mean_squared_displacement(fit, [1.0, 4.0], kind="I")
    assert msd.dims == ("chain", "draw", "lag")
    np.testing.assert_allclose(msd.sel(lag=1.0), fit.posterior["diffusion"] ** 2, rtol=1e-6)
    np.testing.assert_allclose(
        np.log(msd.sel(lag=4.0) / msd.sel(lag=1.0)) / np.log(16.0), fit.posterior["hurst"], rtol=1e-4
    )


def test_displacement_by_dimension():
    posterior = xr.Dataset(
        {
            "hurst": (("chain", "draw", "driver"), [[[0.5, 1.0]]]),
            "diffusion": (("chain", "draw", "dimension"), [[[1.0, 2.0]]]),
        }
    )
    fit = types.SimpleNamespace(posterior=posterior)
    assert fs.mean_squared_displacement(fit, [3.0], kind="I").values.tolist() == [[[[3.0], [36.0]]]]
    with pytest.raises(ValueError, match="`lags` must be"):
        fs.mean_squared_displacement(fit, [0.0])
    with pytest.raises(ValueError, match="the fit has no `diffusion`; give it"):
        fs.mean_squared_displacement(types.SimpleNamespace(posterior=posterior[["hurst"]]), [1.0])
    mixed = posterior.assign(diffusion=(("chain", "draw", "dimension", "driver"), np.ones((1, 1, 2, 2))))
    with pytest.raises(ValueError, match="a diffusion matrix mixes its drivers"):
        fs.mean_squared_displacement(types.SimpleNamespace(posterior=mixed), [1.0])


@pytest.mark.parametrize("hurst", [0.1, 0.7])
def test_late_displacements_of_type_two(hurst, x64):
    """A step of one after 1e5, from the exact covariance; what is left of the start is below 1e-3."""
    posterior = xr.Dataset(
        {"hurst": (("chain", "draw"), [[hurst]]), "diffusion": (("chain", "draw"), [[2.0]])}
    )
    msd = fs.mean_squared_displacement(types.SimpleNamespace(posterior=posterior), [1.0])
    c = np.asarray(covariance(np.array([1e5, 1e5 + 1.0]), hurst, kind="II"))
    assert float(msd[0, 0, 0]) == pytest.approx(4.0 * (c[0, 0] + c[1, 1] - 2 * c[0, 1]), rel=1e-3)


def test_field_of_a_network():
    network = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    posterior = xr.Dataset({"hurst": (("chain", "draw"), np.full((1, 2), 0.3))})
    states = RNG.normal(size=(4, 2))
    learnt = jax.tree.map(lambda x: 2 * x, eqx.filter(network, eqx.is_inexact_array))
    fit = types.SimpleNamespace(posterior=posterior)
    field = fs.drift_field(fit, states, drift=network, params={"drift$params": learnt})
    assert field.dims == ("chain", "draw", "at", "dimension")
    expected = jax.vmap(eqx.combine(learnt, network))(states.astype(np.float32))
    np.testing.assert_allclose(field[0, 1], expected, rtol=1e-5)
    kept = {
        f"drift$params{jax.tree_util.keystr(k)}": v for k, v in jax.tree_util.tree_leaves_with_path(learnt)
    }
    group = xr.Dataset({n: ([f"{n}_{i}" for i in range(np.ndim(v))], np.asarray(v)) for n, v in kept.items()})
    read = fs.drift_field(types.SimpleNamespace(posterior=posterior, params=group), states, drift=network)
    np.testing.assert_allclose(read, field)


@pytest.mark.slow
def test_a_fit_of_the_path_form():
    path_fit = sj.fit(
        fs.sde,
        Y[:6],
        drift=decay,
        observation_noise=0.1,
        num_warmup=10,
        num_samples=10,
        num_chains=1,
        progress_bar=False,
    )

    assert path_fit.posterior["state"].dims == ("chain", "draw", "time")
    assert path_fit.posterior["noise"].dims == ("chain", "draw", "time", "driver", "component")
    assert path_fit.posterior["time"].values.tolist() == [1, 2, 3, 4, 5, 6]
    assert path_fit.log_likelihood["y"].dims == ("chain", "draw", "time")


@pytest.mark.slow
def test_particle_gibbs_moves_the_path():
    """The carry remembers everything, so paths keep their own past; every step is weighed by its datum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit = sj.fit(
            fs.sde, Y[:6], drift=decay, hurst=0.3, diffusion=dist.LogNormal(0.0, 1.0), initial=0.0,
            observation_noise=0.3, engine="particle_gibbs", num_warmup=5, num_samples=10, num_chains=1,
            progress_bar=False,
        )  # fmt: skip
    state = fit.posterior["state"].values[0]
    assert (state.std(0) > 0).all()
    assert fit.posterior["state"].dims == ("chain", "draw", "time")


# ------------------------------------------------------------------------------------- what is refused

BAD = [
    ({"y": [0.0, np.inf]}, r"the data are infinite at time 1; mark what was not observed by NaN"),
    ({"y": []}, r"the data have shape \(0,\)"),
    ({"y": ["a", "b"]}, "the data must be numbers"),
    ({"y": None}, "to simulate, give `times`, or `num_steps`"),
    ({"y": None, "num_steps": 0}, "`num_steps` must be an integer of at least 1"),
    ({"times": [1.0, 1.0, 2.0]}, r"`times` must increase; entry 1 \(1\) does not exceed entry 0"),
    ({"times": [1.0, np.nan, 2.0]}, r"`times` has an entry that is not finite \(entry 1\)"),
    ({"times": [1.0, 2.0]}, "there are 2 `times` and 3 observations"),
    ({"times": [[1.0, 2.0, 3.0]]}, r"`times` must be \(T,\) with at least one entry"),
    (
        {"times": np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "datetime64[D]")},
        "`times` must be numbers",
    ),
    ({"times": [1.0, 2.0, 4.0]}, "the gaps between `times` vary from 1 to 2; give `step`"),
    ({"times": [1.0, 2.0, 3.5], "step": 1.0}, r"time 3.5 \(entry 2\) lies 0.5 steps off the grid 0 \+ k x 1"),
    ({"times": [1.0, 2.0, 2.1], "step": 1.0, "tolerance": 0.5}, "falls on the same step of the grid"),
    ({"times": [1.0, 2.0, 3.0], "start": 1.0}, "`start` must lie before the first time, 1; got 1.0"),
    (
        {"times": [1.0, 2.0, 3.0], "start": 0.8, "step": 1.0, "tolerance": 0.5},
        r"time 1 \(entry 0\) falls on the same step",
    ),
    (
        {"times": [1.0, 2.0, 3.0], "step": 1.0, "substeps": 2},
        "give `step` or, for regular times, `substeps`, but not both",
    ),
    ({"y": [1.0], "times": [1.0]}, "one time has no spacing; give `step`"),
    ({"step": -1.0}, "`step` must be positive"),
    ({"substeps": 0}, "`substeps` must be a positive integer"),
    ({"tolerance": 0.0}, r"`tolerance` must lie in \(0, 0.5\]"),
    ({"mask": np.ones(2, bool)}, r"`mask` has shape \(2,\), and the data \(3,\)"),
    ({"y": np.zeros((2, 3)), "num_series": 3}, "`num_series` is 3, and the data hold 2 series"),
    ({"num_dims": 2}, r"one observation has shape \(\) and the state \(2,\); give `observation`"),
    ({"y": np.zeros((2, 3, 4, 5))}, "say by `num_dims` how many dimensions"),
    ({"num_dims": -1}, "`num_dims` must be an integer of at least 0"),
    ({"kind": "III"}, "`kind` must be one of 'I', 'II'"),
    ({"calculus": "Ito"}, "`calculus` must be one of 'stratonovich', 'ito'"),
    ({"solver": "midpoint"}, "`solver` must be one of None, 'euler', 'heun', 'rk4'"),
    ({"hurst": 1.2}, "`hurst` must lie strictly between 0 and 1; got 1.2"),
    ({"hurst": 0.0}, "`hurst` must lie strictly between 0 and 1; got 0"),
    ({"hurst": dist.Normal(0.5, 0.1)}, r"the prior of `hurst` must keep to \(0, 1\)"),
    ({"hurst": dist.Uniform(0.0, 1.5)}, r"the prior of `hurst` must keep to \(0, 1\)"),
    ({"hurst": np.array([0.3, 0.4])}, r"`hurst` has shape \(2,\); with 1 drivers it is \(\) or \(1,\)"),
    ({"drift": lambda x: jnp.ones(2)}, r"`drift` returns shape \(2,\) for a state of shape \(\)"),
    ({"drift": eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))}, r"`drift` fails on a state of shape \(\)"),
    (
        {"diffusion": np.ones((2, 2))},
        r"`diffusion` has shape \(2, 2\); with a state of shape \(\) it must be \(\) or \(M,\)",
    ),
    ({"diffusion": np.nan}, "`diffusion` has an entry that is not finite"),
    ({"diffusion": lambda x: x[0]}, r"`diffusion` fails on a state of shape \(\)"),
    ({"diffusion": lambda x: x, "calculus": "ito"}, "converges only where `hurst` is fixed at 1/2 or above"),
    (
        {"diffusion": lambda x: x, "calculus": "ito", "hurst": 0.4},
        "converges only where `hurst` is fixed at 1/2 or above",
    ),
    (
        {"diffusion": lambda x: x, "calculus": "ito", "hurst": 0.7, "solver": "rk4"},
        "is Euler's method; leave `solver` out",
    ),
    (
        {"diffusion": lambda x: x, "solver": "euler"},
        "Euler's method does not solve the Stratonovich equation",
    ),
    ({"correlation": np.eye(2)}, r"`correlation` has shape \(2, 2\); 1 drivers need \(1, 1\)"),
    (
        {"correlation": np.array([[1.0, 2.0], [2.0, 1.0]])},
        "`correlation` must be a matrix with ones on its diagonal",
    ),
    ({"observation_noise": 0.0}, "`observation_noise` must be positive"),
    ({"observation_noise": np.ones(2)}, r"`observation_noise` has shape \(2,\); the state has shape \(\)"),
    ({"observation": lambda x: x}, "`observation` must return a NumPyro distribution"),
    ({"observation": lambda x: dist.Normal(x, np.ones(2))}, r"returns a batch of shape \(2,\) for one state"),
    (
        {"observation": lambda x: dist.Normal(x, np.ones(2)).to_event(1)},
        r"one observation in the data has shape \(\), and `observation` returns laws of shape \(2,\)",
    ),
    ({"observation": 3.0}, "`observation` must be a function of the state"),
    ({"observation": lambda x: dist.Normal(x, 1.0), "observation_noise": 1.0}, "but not both"),
    ({"initial": dist.Normal(np.zeros(2), 1.0).to_event(1)}, r"`initial` is a distribution of shape \(2,\)"),
    ({"initial": np.zeros(2)}, r"`initial` has shape \(2,\); the state has shape \(\)"),
    ({"y": None, "num_steps": 200_000, "num_terms": 2}, "`num_terms=2` exponentials cannot remember"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_is_refused(changes, message):
    given = {"y": [0.1, 0.2, 0.3], **changes}
    with pytest.raises(ValueError, match=message):
        sites(fs.sde, given.pop("y"), given.pop("times", None), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": np.ones(2)}, r"`rate` is shape \(2,\)"),
        ({"rate": decay}, "`rate` is a function"),
        ({"offset": np.ones(2)}, r"`offset` has shape \(2,\); the state has shape \(\)"),
        (
            {"diffusion": lambda x: x},
            r"`diffusion` must not depend on the state; sde\(\) takes one that does",
        ),
        ({"num_dims": 2}, r"sde\(\) takes observations of another kind"),
        ({"solver": "midpoint"}, r"linear\(\): `solver` must be one of"),
    ],
)
def test_what_linear_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        sites(fs.linear, [0.1, 0.2, 0.3], **changes)
