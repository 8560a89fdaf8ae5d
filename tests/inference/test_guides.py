"""Guides of a path: exact where the model is linear, and what they make of models that are not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference._auto import choose_guide
from sojourn.inference._path_guide import PathBound

RNG = np.random.default_rng(0)
Y = RNG.normal(size=12)


def two_sites(y):
    """Level and trend, both latent in a step; an initial state; unknown scales."""
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.3))
    level = numpyro.sample("level_0", dist.Normal(0.0, 2.0))

    def step(state, y_t):
        level, trend = state
        trend = numpyro.sample("trend", dist.Normal(0.7 * trend, 0.3))
        level = numpyro.sample("level", dist.Normal(level + trend, width))
        numpyro.sample("y", dist.Normal(level, 0.5), obs=y_t)
        return (level, trend), None

    scan(step, (level, 0.0), y)


def vector(y):
    """A vector with correlated increments, observed in part."""
    root = jnp.array([[1.0, 0.0], [0.4, 0.7]])

    def step(x, y_t):
        x = numpyro.sample("x", dist.MultivariateNormal(0.8 * x, scale_tril=root))
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y_t)
        return x, None

    scan(step, jnp.zeros(2), y)


def series(y):
    """Independent series in a plate, each with its own start."""
    with numpyro.plate("series", y.shape[1]):
        first = numpyro.sample("first", dist.Normal(0.0, 1.0))

    def step(x, y_t):
        with numpyro.plate("series", y.shape[1]):
            e = numpyro.sample("e", dist.Normal(0.0, 1.0))
            x = 0.9 * x + 0.5 * e
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(step, first, y)


def counts(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.5))
        numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=y_t)
        return x, x

    _, path = scan(step, 0.0, y)
    numpyro.deterministic("path", path)


def positive(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Gamma(4.0, 4.0 / (0.5 + 0.5 * x)))
        numpyro.sample("y", dist.Poisson(x), obs=y_t)
        return x, None

    scan(step, 1.0, y)


def _sites(model, y):
    return handlers.trace(handlers.seed(model, 0)).get_trace(y)


def _evidence(model, y, names, given=None):
    """Of a linear model with normal data, from its joint log-density, which is quadratic in the latent values."""
    given = given or {}

    sizes = jax.eval_shape(lambda: {n: s["value"] for n, s in _sites(model, y).items() if n in names})
    sizes = {n: sizes[n].shape for n in names}
    counts = [int(np.prod(s)) for s in sizes.values()]

    def joint(z):
        parts = jnp.split(z, np.cumsum(counts)[:-1])
        values = {n: p.reshape(s) for (n, s), p in zip(sizes.items(), parts, strict=True)}
        seeded = handlers.seed(model, 0)
        trace = handlers.trace(handlers.substitute(seeded, data={**values, **given})).get_trace(y)
        return sum(
            s["fn"].log_prob(s["value"]).sum()
            for n, s in trace.items()
            if s["type"] == "sample" and n not in given
        )

    @jax.jit
    def evidence():
        zero = jnp.zeros(sum(counts))
        slope, curvature = jax.grad(joint)(zero), jax.hessian(joint)(zero)
        mean = jnp.linalg.solve(-curvature, slope)
        return joint(mean) + 0.5 * len(zero) * np.log(2 * np.pi) - 0.5 * jnp.linalg.slogdet(-curvature)[1]

    return evidence()


@pytest.mark.parametrize(
    ("model", "y", "names"),
    [
        (two_sites, Y, ("level_0", "trend", "level")),
        (vector, Y, ("x",)),
        (series, Y.reshape(4, 3), ("first", "e")),
    ],
    ids=["two sites", "vector", "series"],
)
def test_exact_for_linear_models(model, y, names, x64):
    """log p - log q is the log evidence at every draw, in one pass and in NumPyro's two, whatever the parameters."""
    guide = sj.PseudoObservationGuide(model)
    y = jnp.asarray(y)
    guide.setup(y)
    assert not any(guide.belongs_to_series(n) for n in _params(guide, y))

    @jax.jit
    def both(key):
        guided = handlers.trace(handlers.seed(guide, key)).get_trace(y)
        given = {"width": guided["width"]["value"]} if "width" in guided else {}
        replayed = handlers.trace(handlers.replay(handlers.seed(model, 0), guided)).get_trace(y)
        log_q = sum(guided[n]["fn"].log_prob(guided[n]["value"]).sum() for n in names)
        log_p = sum(s["fn"].log_prob(s["value"]).sum() for n, s in replayed.items() if n in {*names, "y"})
        return log_p - log_q, given

    ratio, given = both(jax.random.key(3))
    evidence = float(_evidence(model, y, names, given))
    assert float(ratio) == pytest.approx(evidence, abs=1e-8)
    if not given:
        bounds = jax.jit(jax.vmap(lambda k: handlers.seed(guide.bound, k)(y)))(
            jax.random.split(jax.random.key(0), 5)
        )
        np.testing.assert_allclose(bounds, evidence, atol=1e-8)


def test_parameters_by_importance_weights(x64):
    """The mean of exp(bound) is the evidence with the width integrated out (quadrature on 200 points), to four standard
    errors: the density of the change of variables has to have its sign."""
    y = jnp.asarray(Y[:4])
    guide = sj.PseudoObservationGuide(two_sites)
    guide.setup(y)
    wide = {
        **_params(guide, y),
        "guide_scale_tril": jnp.array([[0.5]]),
    }  # wider than the prior, so that weights have a variance

    def one(key):
        return handlers.substitute(handlers.seed(guide.bound, key), data=wide)(y)

    weights = np.exp(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000)))

    widths = np.exp(np.linspace(-1.6, 1.6, 200))
    log_z = jax.jit(jax.vmap(lambda w: _evidence(two_sites, y, ("level_0", "trend", "level"), {"width": w})))(
        widths
    )
    prior = np.exp(-0.5 * (np.log(widths) / 0.3) ** 2) / (0.3 * np.sqrt(2 * np.pi))
    evidence = (np.exp(log_z) * prior).sum() * (np.log(widths[1]) - np.log(widths[0]))
    error = weights.std() / np.sqrt(len(weights))
    assert abs(weights.mean() - evidence) < 4 * error
    assert error < 0.1 * evidence


def _params(guide, *args):
    trace = handlers.trace(handlers.seed(guide, 0)).get_trace(*args)
    return {n: s["value"] for n, s in trace.items() if s["type"] == "param"}


@pytest.mark.parametrize(
    ("make", "model", "data", "loss"),
    [
        (
            partial(sj.PathGuide, encoder="conv", width=4, context_size=3),
            counts,
            [2, 0, 1, 4],
            TraceMeanField_ELBO,
        ),
        (partial(sj.PathGuide, control="linear"), positive, [2, 0, 1, 4], TraceMeanField_ELBO),
        (sj.PseudoObservationGuide, counts, [2, 0, 1, 4], Trace_ELBO),
    ],
    ids=["network", "not normal", "pseudo-observations"],
)
def test_bound_in_one_pass_is_numpyros(make, model, data, loss):
    """The mean over 4000 draws is that of NumPyro's own estimator, within five standard errors of the difference."""
    y = jnp.array(data)
    guide = make(model)
    guide.setup(y)
    params = _params(guide, y)
    rng = np.random.default_rng(5)
    moved = {n: v + 0.1 * jnp.asarray(rng.normal(size=v.shape)) for n, v in params.items()}
    keys = jax.random.split(jax.random.key(1), 4000)
    ours = jax.jit(jax.vmap(lambda k: PathBound(guide.bound).loss(k, moved, model, guide, y)))(keys)
    theirs = jax.jit(jax.vmap(lambda k: loss().loss(k, moved, model, guide, y)))(keys)
    error = np.sqrt((np.var(ours) + np.var(theirs)) / len(keys))
    assert abs(ours.mean() - theirs.mean()) < 5 * error
    assert np.isfinite(ours).all()


@pytest.fixture(scope="module")
def trained():
    engine = sj.Variational(
        partial(sj.PathGuide, encoder="conv", width=8, context_size=4),
        num_particles=2,
        block_size=100,
        max_steps=300,
    )
    y = np.random.default_rng(3).poisson(1.0, 20)
    return sj.fit(counts, y, engine=engine, num_samples=50, progress_bar=False)


def test_amortised_fit_reads_new_series(trained):
    """A series of another length, without an optimisation step; its mean path follows its counts."""
    guide = partial(sj.PathGuide, encoder="conv", width=8, context_size=4)
    new = np.array([0, 0, 0, 0, 0, 6, 7, 6, 8, 7])
    fit = sj.fit(
        counts, new, engine=sj.Variational(guide, trained=trained), num_samples=200, progress_bar=False
    )
    assert fit.attrs["num_steps"] == 0
    assert fit.attrs["trained"] == 1
    path = _arviz.group(fit, "posterior")["x"].mean(("chain", "draw"))
    assert path.sizes == {"time": 10}
    assert float(path[6:].mean()) > float(path[:4].mean()) + 0.5
    old, now = _arviz.group(trained, "params"), _arviz.group(fit, "params")
    assert set(old) == set(now)
    assert all(np.array_equal(old[n], now[n]) for n in old)


def test_amortised_pseudo_observations():
    """The encoder in place of free corrections: the bound rises, and a series of another length is read."""
    guide = partial(sj.PseudoObservationGuide, encoder="conv", width=8)
    engine = {"num_particles": 2, "block_size": 100, "max_steps": 300}
    y = np.random.default_rng(3).poisson(1.0, 20)
    fit = sj.fit(counts, y, engine=sj.Variational(guide, **engine), num_samples=50, progress_bar=False)
    elbo = _arviz.group(fit, "sample_stats")["elbo"].values[0]
    assert elbo[-50:].mean() > elbo[:10].mean()
    assert not any(n.startswith("guide_series") for n in _arviz.group(fit, "params"))
    new = np.array([0, 0, 0, 0, 6, 7, 6, 8])
    read = sj.fit(counts, new, engine=sj.Variational(guide, trained=fit), num_samples=200, progress_bar=False)
    assert read.attrs["num_steps"] == 0
    path = _arviz.group(read, "posterior")["x"].mean(("chain", "draw"))
    assert float(path[5:].mean()) > float(path[:4].mean()) + 0.3


def test_params_of_a_fit(trained):
    found = _arviz.group(trained, "params")
    assert any(n.startswith("guide_encoder") for n in found)
    assert trained.attrs["guide"] == "PathGuide"


def test_choice():
    y = jnp.asarray(Y)
    assert choose_guide(two_sites, (y,), {})[0] is sj.PseudoObservationGuide
    guide, reason = choose_guide(positive, (jnp.array([1, 2]),), {})
    assert guide.func is sj.PathGuide
    assert "'x' is not normal" in reason

    def no_path(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal()), 1.0), obs=y)

    assert choose_guide(no_path, (y,), {})[1] is None


def test_learnt_parameters_stay_put_elsewhere():
    def model(y):
        width = numpyro.param("width", 1.0)
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal()), width), obs=y)

    with pytest.warns(UserWarning, match="nuts does not learn 'width', a numpyro.param"):
        sj.fit(model, Y, num_chains=1, num_warmup=10, num_samples=10, progress_bar=False)


def discrete(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Poisson(1.0 + x))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, 0, y)


def minibatch(y):
    with numpyro.plate("series", 6, subsample_size=2) as index:
        first = numpyro.sample("first", dist.Normal(0.0, 1.0))
    y = jnp.asarray(y)[:, index]

    def step(x, y_t):
        e = numpyro.sample("e", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        x = 0.9 * x + 0.5 * e
        numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=y_t)
        return x, None

    scan(step, first, y)


@pytest.mark.parametrize(
    ("make", "model", "y", "sentence"),
    [
        (sj.PathGuide, discrete, Y, "Site 'x' is discrete: PathGuide is for continuous sites"),
        (
            sj.PseudoObservationGuide,
            positive,
            np.array([1, 2]),
            "Site 'x' of the scan is not normal: .* use PathGuide",
        ),
        (partial(sj.PathGuide, encoder="lstm"), counts, np.array([1, 2]), "There is no encoder 'lstm'"),
        (partial(sj.PathGuide, encoder=3), counts, np.array([1, 2]), "`encoder` must be None, 'gru', 'conv'"),
        (partial(sj.PathGuide, encoder="gru", sites=("z",)), counts, np.array([1, 2]), "are .'y'., not 'z'"),
        (
            partial(sj.PathGuide, control="cubic"),
            counts,
            np.array([1, 2]),
            "`control` of PathGuide is 'network' or",
        ),
        (
            partial(sj.PathGuide, encoder="gru", data=lambda y: y[:1, None]),
            counts,
            np.array([1, 2]),
            r"`data` of PathGuide returned shape \(1, 1, 1\)",
        ),
        (
            sj.PathGuide,
            minibatch,
            np.ones((5, 6), int),
            "Plate 'series' takes a subsample, and PathGuide would learn",
        ),
        (sj.PathGuide, lambda y: numpyro.sample("m", dist.Normal()), Y, "The model has no scan"),
    ],
)
def test_bad_input(make, model, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(model).setup(y)


def test_traced_data():
    with pytest.raises(ValueError, match="here they are traced: call"):
        jax.jit(lambda y: handlers.seed(sj.PathGuide(counts), 0)(y))(jnp.array([1, 2]))
