"""fit_many: many series by few programs."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan
from numpyro.infer import AIES
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model

from sojourn.diagnostics import _arviz
from sojourn.inference import _fit_many, _many_fits
from sojourn.inference._fit_many import fit_many
from sojourn.inference._series_batches import run_batch
from sojourn.inference._series_buckets import PaddingProbe
from sojourn.models import hidden_markov

QUIET = {"progress_bar": False}


class WalkState(NamedTuple):
    z: dict
    potential_energy: jax.Array
    rng_key: jax.Array


class RandomWalk(MCMCKernel):
    """Random-walk Metropolis: compiles in a tenth of the time that NUTS takes."""

    sample_field = "z"
    stat_fields = ("potential_energy",)

    def __init__(self, model, scale=0.5):
        self._model, self.scale = model, scale

    @property
    def model(self):
        return self._model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        info, self._potential, self._post, _ = initialize_model(
            rng_key,
            self._model,
            model_args=model_args,
            model_kwargs=model_kwargs,
            dynamic_args=True,
            validate_grad=False,
        )
        return WalkState(info.z, info.potential_energy, rng_key)

    def sample(self, state, model_args, model_kwargs):
        key, move, test = jax.random.split(state.rng_key, 3)
        flat, back = jax.flatten_util.ravel_pytree(state.z)
        z = back(flat + self.scale * jax.random.normal(move, flat.shape))
        energy = self._potential(*model_args, **model_kwargs)(z)
        accept = jnp.log(jax.random.uniform(test)) < state.potential_energy - energy
        z = jax.tree.map(lambda new, old: jnp.where(accept, new, old), z, state.z)
        return WalkState(z, jnp.where(accept, energy, state.potential_energy), key)

    def postprocess_fn(self, model_args, model_kwargs):
        return self._post(*model_args, **model_kwargs)


def level(y, unit=1.0):
    """Conjugate: mean ~ N(0, 1), y ~ N(mean, 1)."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.deterministic("residual", (y - mean) * unit)
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y, infer={"event_dims": ["time"]})


def autoregression(y):
    """NaN in the data makes later means NaN, whose gradient is not masked."""
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    numpyro.sample("y", dist.Normal(phi * y[:-1], 1.0), obs=y[1:])


def random_walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def posterior_of_level(y):
    return np.nansum(y) / (1 + np.isfinite(y).sum()), 1 / np.sqrt(1 + np.isfinite(y).sum())


class FollowsGradient(RandomWalk):
    """By its own account, so that discrete paths are summed out for it."""

    follows_gradient = True


walk = partial(RandomWalk, scale=0.8)
LENGTHS = {"a": 12, "b": 12, "c": 9, "d": 3, "e": 11, "g": 12, "h": 2}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    series = {name: rng.normal(0.5, 1.0, n) for name, n in LENGTHS.items()}
    series["b"][3] = np.nan
    series["a"] = xr.DataArray(series["a"], dims="day", coords={"day": 100 + np.arange(12)})
    return series | {
        "wrong": np.array([1.0, np.inf]),
        "empty": [],
        "unseen": np.full(3, np.nan),
        "text": ["x"],
    }


@pytest.fixture(scope="module")
def many(data):
    return fit_many(level, data, engine=walk, num_warmup=200, num_samples=1500, seed=3, **QUIET)


def test_posteriors_are_those_of_each_series(many, data):
    # 3000 draws, an autocorrelation time of about 8: 375 effective draws, standard error of the mean 0.052 sd; 5 of
    # these. A padded zero in place of a gap would move the mean of 'h' by 1.5 sd.
    for name in LENGTHS:
        mean, sd = posterior_of_level(np.asarray(data[name]))
        draws = many.posterior["mean"].sel(series=name).values
        assert abs(draws.mean() - mean) < 0.26 * sd, name
        assert 0.75 < draws.std() / sd < 1.3, name


def test_bad_series_fail_alone(many):
    assert list(many) == list(LENGTHS)
    assert len(many) == 7
    assert many.num_series == 11
    assert list(many.failures) == ["wrong", "empty", "unseen", "text"]
    assert "outside the support of its law, Normal" in many.failures["wrong"]
    assert "index 1" in many.failures["wrong"]
    assert "is empty" in many.failures["empty"]
    assert "all of it is NaN" in many.failures["unseen"]
    assert "no array of numbers" in many.failures["text"]
    with pytest.raises(KeyError, match="'wrong' was not fitted: The data at site 'y' lie outside"):
        many["wrong"]
    with pytest.raises(KeyError, match="There is no series 'z'; the fitted ones are 'a', 'b'"):
        many["z"]


def test_lengths_are_padded_to_few_and_cut_again(many, data):
    assert many.num_programs == 2  # up to 12 and up to 3
    assert many._entries["c"].length == 12
    assert many._entries["d"].length == 3
    fit = many["c"]
    assert fit.posterior["residual"].shape == fit.log_likelihood["y"].shape == (2, 1500, 9)
    assert fit.posterior_predictive["y"].dims == ("chain", "draw", "time")
    mean = fit.posterior["mean"].values[..., None]
    np.testing.assert_allclose(
        fit.log_likelihood["y"].values, dist.Normal(mean, 1.0).log_prob(jnp.asarray(data["c"])), atol=1e-5
    )
    np.testing.assert_allclose(fit.posterior["residual"].values, data["c"] - mean, atol=1e-5)
    assert fit.observed_data["y"].shape == (9,)
    # The log density of the series itself, constants and all.
    joint = fit.log_likelihood["y"].values.sum(-1) + dist.Normal(0.0, 1.0).log_prob(mean[..., 0])
    np.testing.assert_allclose(fit.sample_stats["lp"].values, joint, atol=1e-3)


def test_a_fit_is_labelled_as_one_of_fit(many):
    fit = many["a"]
    assert fit.posterior["mean"].dims == ("chain", "draw")
    assert fit.observed_data["time"].values[0] == 100
    assert fit.attrs["engine"] == "RandomWalk"
    assert fit.attrs["series"] == "a"
    gap = np.isnan(many["b"].log_likelihood["y"].values)
    assert gap[..., 3].all()
    assert gap.mean() == pytest.approx(1 / 12)


def test_posterior_of_all_leaves_ragged_variables_out(many):
    assert many.posterior["mean"].dims == ("series", "chain", "draw")
    assert many.posterior["mean"].shape == (7, 2, 1500)
    assert "residual" not in many.posterior
    np.testing.assert_array_equal(many.posterior["mean"].sel(series="c"), many["c"].posterior["mean"])


def test_summary_has_arviz_numbers(many):
    table = many.summary()
    assert table.index.names == ["series", "parameter"]
    assert table.index.get_level_values("series").tolist() == list(LENGTHS)
    posterior = many.posterior[["mean"]].astype(float)  # as the table: folding in single precision makes ties
    np.testing.assert_allclose(table["r_hat"], _arviz.rhat(posterior)["mean"], rtol=1e-6)
    np.testing.assert_allclose(table["ess_bulk"], _arviz.ess(posterior)["mean"], rtol=1e-6)
    np.testing.assert_allclose(table["q5"], posterior["mean"].quantile(0.05, ("chain", "draw")), rtol=1e-5)
    with pytest.raises(ValueError, match="no variable 'residual' of one shape; there are 'mean'"):
        many.summary(["residual"])


def test_repr_says_what_there_is(many):
    worst = many.summary()["r_hat"].max()
    assert repr(many).startswith(
        "ManyFits: 7 of 11 series fitted by RandomWalk (2 chains of 1500 draws), 4 failed (see .failures); "
        f"worst r_hat {worst:.3f} (series '"
    )
    assert ", mean); 2 programs compiled, " in repr(many)


def test_one_evaluation_is_compiled_for_a_bucket(many):
    for name in ("a", "b", "c", "e"):
        many[name]
    evaluate = many._evaluations[many._entries["a"].program]
    assert many._entries["c"].program == many._entries["a"].program
    assert evaluate._cache_size() == 1


def test_draws_depend_neither_on_batches_nor_on_the_executor(data, many):
    with ThreadPoolExecutor(2) as pool:
        again = fit_many(
            level,
            data,
            engine=walk,
            num_warmup=200,
            num_samples=1500,
            seed=3,
            batch_size=3,
            executor=pool,
            **QUIET,
        )
    # Rounding may turn an acceptance over now and then; another key would leave no draw the same.
    same = np.isclose(again.posterior["mean"], many.posterior["mean"], atol=1e-5)
    assert same.mean() > 0.9


def test_whether_nan_is_missing_is_found_out(x64):
    rng = np.random.default_rng(2)
    series = _fit_many._take(lambda y: y, [(rng.normal(size=n),) for n in (5, 8)], (), {}, looks=False)[0]

    def ignores(model, follows_gradient=True, kwargs=None):
        return PaddingProbe(_fit_many.prepared(model), (), kwargs or {}, follows_gradient).ignores_padding(
            series[0], 8
        )

    def depends_on_length(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0 + y.shape[0]))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def shows_a_mean(y):
        numpyro.deterministic("average", y.mean())
        level(y)

    assert ignores(level)
    assert ignores(hidden_markov.normal, kwargs={"num_states": 2})
    assert not ignores(autoregression)
    assert ignores(autoregression, follows_gradient=False)  # its values are right
    assert not ignores(random_walk)  # more latents
    assert not ignores(depends_on_length)
    assert not ignores(shows_a_mean)


def test_series_are_grouped_by_shape_where_they_cannot_be_padded():
    rng = np.random.default_rng(3)

    def buckets(arrays, pads=True):
        class Probe:
            def ignores_padding(self, one, length):
                return pads

        series, _ = _fit_many._take(
            lambda y: y, [a if isinstance(a, tuple) else (a,) for a in arrays], (), {}, False
        )
        return {tuple(b.members): b.length for b in _fit_many.group_series(series, Probe())}

    floats = [rng.normal(size=n) for n in (100, 70, 60, 40, 100)]
    assert buckets(floats) == {(1, 4, 0): 100, (3, 2): 60} or buckets(floats) == {(1, 0, 4): 100, (3, 2): 60}
    assert buckets(floats, pads=False) == {(0, 4): None, (1,): None, (2,): None, (3,): None}
    assert buckets([np.arange(3), np.arange(4), np.arange(3)]) == {(0, 2): None, (1,): None}
    # A second argument along time is padded with the first; one of integers forbids it; a scalar does not matter.
    pairs = [(rng.normal(size=n), rng.normal(size=(n, 2)), 0.5) for n in (10, 9)]
    assert list(buckets(pairs).values()) == [10]
    assert list(buckets([(y, np.arange(len(y))) for y, _, _ in pairs]).values()) == [None, None]


@pytest.mark.slow
def test_paths_of_unequal_lengths_run_by_exact_shape():
    rng = np.random.default_rng(4)
    series = [rng.normal(size=4), rng.normal(size=5), rng.normal(size=4)]
    many = fit_many(random_walk, series, engine=walk, num_warmup=20, num_samples=30, **QUIET)
    assert many.num_programs == 2
    assert list(many.posterior.data_vars) == ["scale"]
    assert many[1].posterior["x"].shape == (2, 30, 5)
    assert many[1].posterior["x"].dims == ("chain", "draw", "time")


def switching(y):
    stay = numpyro.sample("stay", dist.Beta(8.0, 2.0))

    def step(state, y):
        state = numpyro.sample("state", dist.Bernoulli(jnp.where(state == 1, stay, 1 - stay)))
        numpyro.sample("y", dist.Normal(3.0 * state, 1.0), obs=y)
        return state, None

    scan(step, 0, y)


@pytest.mark.slow
def test_a_discrete_path_is_summed_out_for_gradients():
    y = np.random.default_rng(5).normal(size=(3, 10))
    many = fit_many(
        switching, y, engine=FollowsGradient, num_warmup=30, num_samples=20, num_chains=1, **QUIET
    )
    assert len(many) == 3
    assert many._call.attrs["summed_out"] == "state"
    assert many.posterior["stay"].shape == (3, 1, 20)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have another default")
def test_series_go_one_at_a_time_where_the_density_is_a_loop():
    def size(model, drawn=1000, **kwargs):
        one = _fit_many._take(model, [(np.ones(6),)], (), kwargs, looks=True)[0][0]
        return _fit_many._batch_size(_fit_many.prepared(model), one, (), kwargs, drawn)

    assert size(level) == 16
    assert size(random_walk) == 1
    assert size(hidden_markov.poisson, num_states=2) == 1
    assert size(level, drawn=2_000_000) == 3  # of seven numbers each, 5e7 in all


def test_what_fit_finds_out_is_in_the_attributes():
    first = _fit_many._take(level, [(np.ones(3),)], (), {}, looks=True)[0][0]
    _, attrs = _fit_many._check_model(level, "auto", "auto", first, (), {})
    assert attrs["engine"] == "nuts"
    assert "every sampler is quick" in attrs["engine_choice"]
    model, attrs = _fit_many._check_model(switching, FollowsGradient, "mine", first, (), {})
    assert attrs == {"engine": "mine", "summed_out": "state"}
    assert list(_many_fits.outline(model, first.args, {})) == ["stay", "y"]


def test_engines_that_run_themselves_fit_one_by_one():
    y = [np.array([1.0, 2.0]), np.array([3.0, 5.0, 4.0]), np.array([np.inf])]
    many = fit_many(level, y, engine="map", **QUIET)
    assert many.posterior["mean"].values.ravel() == pytest.approx([1.0, 3.0], abs=1e-3)  # sum / (1 + n)
    assert many[1].attrs["engine"] == "map"
    assert "outside the support" in many.failures[2]
    assert many.summary()["r_hat"].isna().all()
    assert repr(many).startswith("ManyFits: 2 of 3 series fitted by map (1 chain of 1 draw), 1 failed")


def test_a_model_that_needs_numbers_is_fitted_one_by_one():
    def needs_numbers(y):
        level(np.asarray(y, float))

    many = fit_many(
        needs_numbers,
        [[0.1, 0.2], [0.3, 0.4]],
        engine=walk,
        num_warmup=5,
        num_samples=10,
        num_chains=1,
        **QUIET,
    )
    assert not many.failures
    assert many.num_programs == 2
    assert many[0].attrs["engine"] == "RandomWalk"
    assert not np.array_equal(many.posterior["mean"][0], many.posterior["mean"][1])


class Recorder:
    """Runs at once; ``raises`` in the tasks of some."""

    def __init__(self, raises):
        self.raises, self.futures = dict(raises), []

    def submit(self, function, *arguments):
        number = len(self.futures)
        future = Future()
        error = self.raises.get(number)
        if error is None:
            future.set_result(function(*arguments))
        else:
            future.set_exception(error)
        self.futures.append(future)
        return future


def test_a_task_that_raises_takes_only_its_series_along():
    y = np.random.default_rng(6).normal(size=(5, 4))
    settings = {"engine": walk, "num_warmup": 5, "num_samples": 10, "batch_size": 2, **QUIET}
    many = fit_many(level, y, executor=Recorder({1: MemoryError("out of memory")}), **settings)
    assert list(many) == [0, 1, 4]
    assert many.failures == dict.fromkeys((2, 3), "MemoryError: out of memory")
    # After Ctrl-C what is done is kept; here the third batch is done by the time that the second is asked for.
    many = fit_many(level, y, executor=Recorder({1: KeyboardInterrupt()}), **settings)
    assert list(many) == [0, 1, 4]
    assert many.failures == dict.fromkeys((2, 3), "Not run: interrupted.")


def test_ctrl_c_keeps_what_is_done(monkeypatch):
    y = np.random.default_rng(7).normal(size=(3, 4))
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_batch(*arguments)

    monkeypatch.setattr(_fit_many, "run_batch", interrupted)
    many = fit_many(level, y, engine=walk, num_warmup=5, num_samples=10, batch_size=1, **QUIET)
    assert list(many) == [0]
    assert many.failures == dict.fromkeys((1, 2), "Not run: interrupted.")
    assert len(calls) == 2


def test_a_series_without_a_start_fails_alone():
    def breaks_at_large_data(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("bad", jnp.where(y.sum() > 100, jnp.nan, 0.0) * x)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    many = fit_many(
        breaks_at_large_data, [[0.1, 0.2], [90.0, 91.0]], engine=walk, num_warmup=5, num_samples=10, **QUIET
    )
    assert list(many) == [0]
    assert "Chain 0 found no start of finite density" in many.failures[1]


def test_rows_and_columns_carry_their_labels():
    y = np.random.default_rng(8).normal(size=(2, 4))
    rows = xr.DataArray(y, dims=("station", "hour"), coords={"station": ["north", "south"]})
    names, given = _fit_many._read(rows)
    assert names == ["north", "south"]
    np.testing.assert_array_equal(given[1][0], y[1])
    names, given = _fit_many._read(rows.to_pandas().T)
    assert names == ["north", "south"]
    np.testing.assert_array_equal(given[1][0], y[1])
    assert _fit_many._read(y)[0] == [0, 1]


@pytest.mark.parametrize(
    ("datasets", "settings", "error", "message"),
    [
        ([], {}, ValueError, "`datasets` holds no series"),
        ("text", {}, TypeError, "`datasets` is a list, mapping or array of series, not a str"),
        (3.0, {}, TypeError, "not a float"),
        (
            np.zeros(5),
            {},
            ValueError,
            "`datasets` has a single axis, of length 5: fit one series with sojourn.fit",
        ),
        ([0.1, 0.2], {}, ValueError, "a sequence of 2 single numbers"),
        ([([1.0], 2.0), ([1.0],)], {}, ValueError, "Series 1 has 1 arguments and series 0 has 2"),
        (xr.DataArray(np.zeros((2, 3)), dims=("i", "t"), coords={"i": [7, 7]}), {}, ValueError, "labelled 7"),
        (
            [[], []],
            {},
            ValueError,
            "None of the 2 series can be fitted; the first: Argument 0 of this series is empty",
        ),
        (
            [[np.inf]],
            {},
            ValueError,
            "None of the 1 series can be fitted; the first: The data at site 'y' lie outside",
        ),
        ([[1.0]], {"executor": object()}, TypeError, r"needs a method submit.*a object has none"),
        ([[1.0]], {"batch_size": 0}, ValueError, "`batch_size` must be a whole number of at least 1, not 0"),
        ([[1.0]], {"num_chains": 1.5}, ValueError, "`num_chains` must be a whole number"),
        ([[1.0]], {"engine": "nut"}, ValueError, "There is no engine 'nut'"),
        ([[1.0]], {"engine": lambda model: 3}, ValueError, "must return a numpyro MCMCKernel"),
    ],
)
def test_bad_input_is_refused(datasets, settings, error, message):
    with pytest.raises(error, match=message):
        fit_many(level, datasets, **{"engine": walk, **settings, **QUIET})


def test_what_fit_says_against_a_model_is_said_at_once():
    def discrete(y):
        k = numpyro.sample("k", dist.Poisson(1.0))
        numpyro.sample("y", dist.Normal(k, 1.0), obs=y)

    with pytest.raises(ValueError, match="Site 'k' is discrete, and nuts needs gradients"):
        fit_many(discrete, [[1.0, 2.0]], **QUIET)
    with pytest.raises(ValueError, match="no latent sample site"):
        fit_many(lambda y: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y), [[1.0]], engine=walk, **QUIET)


def test_forking_executors_are_refused():
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.raises(ValueError, match="This executor forks"),
    ):
        fit_many(level, [[1.0]], executor=pool, **QUIET)


def test_padding_and_cutting():
    y, x, one = _many_fits.padded((np.ones(2), np.ones((2, 3)), np.ones(())), 4)
    assert np.isnan(y).tolist() == [False, False, True, True]
    assert x.shape == (4, 3)
    assert one.shape == ()
    assert _many_fits.cut(np.zeros((2, 5, 4, 3)), (2, 3)).shape == (2, 5, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "engine", "expected"),
    [
        (
            random_walk,
            "nuts",
            {"lp", "n_steps", "tree_depth", "reached_max_treedepth", "diverging", "energy"},
        ),
        (random_walk, "mclmc", {"lp"}),
        (random_walk, "adjusted_mclmc", {"lp", "acceptance_rate"}),
        (level, "underdamped_langevin", {"lp"}),
        (random_walk, "particle_gibbs", {"lp", "log_evidence", "path_update"}),
        (random_walk, "particle_marginal", {"lp"}),
        (level, AIES, {"lp"}),
    ],
)
def test_every_sampler_runs_with_the_data_as_an_argument(model, engine, expected):
    y = np.random.default_rng(10).normal(size=(2, 6))
    many = fit_many(
        model, y, engine=engine, num_warmup=100, num_samples=100, num_chains=4, batch_size=2, **QUIET
    )
    assert not many.failures
    assert many.num_programs == 1
    fit = many[1]
    assert set(fit.sample_stats) >= expected
    assert not np.array_equal(
        fit.posterior[next(iter(fit.posterior))], many[0].posterior[next(iter(fit.posterior))]
    )


@pytest.mark.slow
def test_processes_and_dask_give_the_same_draws():
    distributed = pytest.importorskip("distributed")
    counts = np.random.default_rng(9).poisson(4.0, (3, 20)).astype(float)
    settings = {
        "num_states": 2,
        "engine": "langevin",
        "num_warmup": 20,
        "num_samples": 30,
        "batch_size": 2,
        **QUIET,
    }
    here = fit_many(hidden_markov.poisson, counts, **settings)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = fit_many(hidden_markov.poisson, counts, executor=pool, **settings)
    assert not there.failures
    np.testing.assert_allclose(here.posterior["rate"], there.posterior["rate"], rtol=1e-3)
    np.testing.assert_allclose(here[2].log_likelihood["y"], there[2].log_likelihood["y"], rtol=1e-3)
    with (
        distributed.LocalCluster(1, processes=False, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = fit_many(hidden_markov.poisson, counts, executor=client, **settings)
    assert not there.failures
    np.testing.assert_allclose(here.posterior["rate"], there.posterior["rate"], rtol=1e-3)
