"""HiddenJumpProcess under NumPyro's conventions: noisy observations at given times."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.linalg
import scipy.stats
from numpyro.infer.util import log_density

from sojourn.distributions import HiddenJumpProcess, HiddenMarkov

RATES = np.array([[-1.4, 1.0, 0.4], [0.3, -1.1, 0.8], [0.6, 0.2, -0.8]])
INITIAL = np.array([0.5, 0.3, 0.2])
LOC = np.array([-2.0, 0.0, 2.0])
NORMAL = dist.Normal(LOC, 1.0)
TIMES = np.array([[0.0, 0.5, 1.2, 2.0], [1.0, 1.5, 3.5, 3.6]])
Y = np.array([[-1.7, 0.3, 2.2, 1.1], [0.4, 1.8, -2.5, -0.9]])
K = 3


def channels(emission=NORMAL, times=TIMES, rates=RATES, **kwargs):
    return HiddenJumpProcess(rates, kwargs.pop("initial", INITIAL), emission, times, **kwargs)


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


def forward(log_emission, times, rates=RATES, initial=INITIAL):
    """The likelihood of one series."""
    alpha = initial * np.exp(log_emission[0])
    for dt, row in zip(np.diff(times), log_emission[1:], strict=True):
        alpha = alpha @ scipy.linalg.expm(rates * dt) * np.exp(row)
    return np.log(alpha.sum())


def log_normal(y):
    return np.where(np.isnan(y)[..., None], 0.0, scipy.stats.norm(LOC).logpdf(np.asarray(y)[..., None]))


EXPECTED = [forward(log_normal(y), t) for y, t in zip(Y, TIMES, strict=True)]


# ------------------------------------------------------------------------------------------------------ shapes

LOC_IN_TIME = LOC + 0.1 * np.arange(4.0)[:, None]
EMISSIONS = {
    "in time": (dist.Normal(LOC_IN_TIME, 1.0), ()),
    "by series, constant": (dist.Normal(np.broadcast_to(LOC, (2, 1, K)), 1.0), ()),
    "multivariate": (dist.MultivariateNormal(LOC[:, None] + np.zeros(2), np.eye(2)), (2,)),
}


@pytest.mark.parametrize("what", EMISSIONS)
def test_shapes_by_emission(what):
    emission, event = EMISSIONS[what]
    law = channels(emission)
    assert (law.batch_shape, law.event_shape, law.num_states) == ((2,), (4, *event), K)
    y = Y.reshape(2, 4, *(1,) * len(event)) + np.zeros(event)

    @jax.jit
    def both(key):
        draw = law.sample(key, (5,))
        return law.log_prob(y), draw, law.log_prob(draw)

    found, draw, several = both(jax.random.key(0))
    assert draw.shape == (5, 2, 4, *event)
    assert several.shape == (5, 2)
    loc = LOC_IN_TIME if "in time" in what else LOC
    each = scipy.stats.norm(loc).logpdf(Y[..., None]) * (2 if event else 1)
    np.testing.assert_allclose(found, [forward(e, t) for e, t in zip(each, TIMES, strict=True)], rtol=1e-5)


def test_one_series():
    law = channels(times=TIMES[0])
    assert (law.batch_shape, law.event_shape) == ((), (4,))
    found = log_prob(law, Y[0])
    assert found.shape == ()
    assert float(found) == pytest.approx(EXPECTED[0], rel=1e-5)
    # Values with more axes than the law.
    several = log_prob(law, np.stack([Y[0], Y[0, ::-1]]))
    expected = [EXPECTED[0], forward(log_normal(Y[0, ::-1]), TIMES[0])]
    np.testing.assert_allclose(several, expected, rtol=1e-5)


def test_an_array_of_log_densities():
    law = channels(log_normal(Y))
    assert (law.batch_shape, law.event_shape) == ((2,), (4,))
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
    expected = forward(log_normal(np.where(mask, Y, np.nan))[0], TIMES[0])
    nothing = np.full((2, 4), np.nan)
    whole, masked = jax.jit(
        lambda: [channels(log_normal(Y), mask=m).log_prob(nothing) for m in (None, mask)]
    )()
    np.testing.assert_allclose(whole, EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(masked, [expected, EXPECTED[1]], rtol=1e-5)
    with pytest.raises(NotImplementedError, match="array of log-densities cannot be sampled"):
        jax.jit(law.sample)(jax.random.key(0))


# ----------------------------------------------------------------------------------------------- hidden states


def test_equal_intervals_make_a_hidden_markov_model():
    """At equal intervals all that is said of the states is what HiddenMarkov says."""
    steps = scipy.linalg.expm(RATES * 0.5)
    law = channels(times=0.5 * np.arange(4))
    chain = HiddenMarkov(INITIAL, steps, NORMAL, num_steps=4)

    @jax.jit
    def said(law):
        return (
            law.log_prob(Y[0]),
            law.predictive_log_prob(Y[0]),
            law.filter(Y[0]).filtered,
            law.smooth(Y[0]).marginals,
            law.most_likely_path(Y[0]),
        )

    for a, b in zip(said(law), said(chain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_density_is_the_sum_of_its_predictions():
    """Also with gaps, padding, deaths and a matrix for each series."""
    y = Y.copy()
    y[0, 2] = np.nan
    law = channels(
        rates=np.stack([RATES, 0.5 * RATES]),
        group=[1, 0],
        lengths=[4, 3],
        obstype=[[1, 1, 1, 3], [1, 2, 1, 1]],
        max_rate=20.0,
    )
    terms, whole = jax.jit(lambda: (law.predictive_log_prob(y), law.log_prob(y)))()
    assert terms.shape == (2, 4)
    np.testing.assert_allclose(terms.sum(-1), whole, rtol=1e-5)
    np.testing.assert_allclose([terms[0, 2], terms[1, 3]], 0.0, atol=1e-6)
    assert float(terms[1, 0]) == pytest.approx(np.log(INITIAL @ np.exp(log_normal(y[1, 0]))), rel=1e-5)


def test_paths_given_the_series():
    """4000 paths: the states at each time against the smoothed law, |z| < 4; pairs of states by chi-square."""
    law = channels(times=TIMES[0])
    draws = 4000
    paths, smoothed = jax.jit(lambda key: (law.sample_path(key, Y[0], (draws,)), law.smooth(Y[0])))(
        jax.random.key(0)
    )
    assert paths.shape == (draws, 4)
    marginals = np.asarray(smoothed.marginals)
    found = (np.asarray(paths)[..., None] == np.arange(K)).mean(0)
    z = (found - marginals) / np.sqrt(marginals * (1 - marginals) / draws)
    assert np.abs(z).max() < 4
    # Pairs (first, second) from the smoothed law and P(second | first, the rest) by hand.
    steps = [scipy.linalg.expm(RATES * dt) for dt in np.diff(TIMES[0])]
    lik = np.exp(log_normal(Y[0]))
    ahead = steps[1] @ (lik[2] * (steps[2] @ lik[3]))
    pair = (INITIAL * lik[0])[:, None] * steps[0] * (lik[1] * ahead)
    counts = np.bincount(np.ravel_multi_index(np.asarray(paths)[:, :2].T, (K, K)), minlength=K * K)
    likely = draws * (pair / pair.sum()).ravel()
    seen = likely > 5  # the rest together
    table = [np.append(x[seen], x[~seen].sum()) for x in (counts, likely)]
    assert scipy.stats.chisquare(*table).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------------- sampling


def test_samples_have_the_law_of_the_process():
    """Misclassified states at three times in 20 000 draws: chi-square with 26 degrees of freedom, p > 1e-4.

    The states at the given times do not depend on how they came to be observed: a replicate holds snapshots.
    """
    confusion = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7]])
    steps = [scipy.linalg.expm(RATES * dt) for dt in np.diff(TIMES[0, :3])]
    states = INITIAL[:, None, None] * steps[0][:, :, None] * steps[1][None]
    joint = np.einsum("abc,ax,by,cz->xyz", states, confusion, confusion, confusion)
    law = channels(dist.Categorical(probs=confusion), times=TIMES[0, :3], obstype=[1, 2, 3])
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(0)))
    assert draws.dtype == np.int32
    counts = np.bincount(np.ravel_multi_index(draws.T, (K,) * 3), minlength=K**3)
    assert scipy.stats.chisquare(counts, 20_000 * joint.ravel()).pvalue > 1e-4


def test_one_step_ahead():
    """Means of 4000 draws given the past, |z| < 4: after a death, too, the next one is a snapshot."""
    law = channels(obstype=[[1, 1, 3, 1], [1, 1, 2, 1]])
    keys = jax.random.split(jax.random.key(2), 4000)

    @jax.jit
    def forecasts(keys):
        draws = jax.vmap(lambda key: law.sample_one_step_ahead(key, Y))(keys)
        return draws, law.filter(Y).filtered

    draws, filtered = map(np.asarray, forecasts(keys))
    assert draws.shape == (4000, 2, 4)
    for n, s in np.ndindex(2, 4):
        past = filtered[n, s - 1] @ scipy.linalg.expm(RATES * (TIMES[n, s] - TIMES[n, s - 1]))
        law_ahead = INITIAL if s == 0 else past
        mean = law_ahead @ LOC
        variance = 1.0 + law_ahead @ (LOC - mean) ** 2
        assert abs(draws[:, n, s].mean() - mean) < 4 * np.sqrt(variance / 4000)
        assert draws[:, n, s].var() == pytest.approx(variance, rel=0.15)


# --------------------------------------------------------------------------------------------- transformations


def test_vmap_and_grad_over_parameters():
    def density(loc, scale):
        return channels(dist.Normal(loc, 1.0), rates=scale * RATES, max_rate=30.0).log_prob(Y).sum()

    scales = np.array([0.5, 1.0, 2.0])
    together, slopes = jax.jit(jax.vmap(jax.value_and_grad(density), (None, 0)))(LOC, scales)
    for scale, found in zip(scales, together, strict=True):
        expected = sum(forward(log_normal(y), t, scale * RATES) for y, t in zip(Y, TIMES, strict=True))
        assert float(found) == pytest.approx(expected, rel=1e-5)
    # d/d loc_k = sum_l P(state k at l) (y_l - loc_k)
    marginals = np.asarray(jax.jit(lambda: channels().smooth(Y).marginals)())
    expected = (marginals * (Y[..., None] - LOC)).sum((0, 1))
    np.testing.assert_allclose(slopes[1], expected, rtol=1e-4, atol=1e-4)


def test_expand_to_event_and_mask():
    law = channels()
    expanded = law.expand((3, 2))
    assert (expanded.batch_shape, expanded.event_shape) == ((3, 2), (4,))
    joined = law.to_event(1)
    assert (joined.batch_shape, joined.event_shape) == ((), (2, 4))
    hidden = law.mask(np.array([True, False]))
    thrice = np.stack([Y] * 3)

    @jax.jit
    def everything(key):
        densities = expanded.log_prob(thrice), joined.log_prob(Y), hidden.log_prob(Y)
        return (*densities, expanded.sample(key))

    found = everything(jax.random.key(0))
    np.testing.assert_allclose(found[0], [EXPECTED] * 3, rtol=1e-5)
    assert float(found[1]) == pytest.approx(sum(EXPECTED), rel=1e-5)
    np.testing.assert_allclose(found[2], [EXPECTED[0], 0.0], rtol=1e-5)
    assert found[3].shape == (3, 2, 4)


def test_pytree_round_trip():
    law = channels(lengths=[4, 3], method="eigen", vjp=False, max_rate=12.0)
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in leaves])
    assert (again.batch_shape, again.event_shape, again.num_steps) == ((2,), (4,), 4)
    assert (again.method, again.vjp, again.max_rate) == ("eigen", False, 12.0)
    np.testing.assert_allclose(log_prob(again, Y), log_prob(law, Y), rtol=1e-6)


def test_in_a_plate():
    def model(y):
        with numpyro.plate("series", 2):
            numpyro.sample("y", channels(), obs=y)

    found = jax.jit(lambda: log_density(model, (Y,), {}, {})[0])()
    assert float(found) == pytest.approx(sum(EXPECTED), rel=1e-5)


# ----------------------------------------------------------------------------------------- missing and padded


def test_missing_is_nan_is_masked():
    gone = np.array([[0, 1, 0, 1], [0, 0, 1, 0]], bool)
    blank = np.where(gone, np.nan, Y)
    expected = [forward(e, t) for e, t in zip(log_normal(blank), TIMES, strict=True)]

    @jax.jit
    def slope(loc, y, mask):
        def density(loc):
            each = channels(dist.LogNormal(loc, 1.0), mask=mask).log_prob(y)
            return each.sum(), each

        return jax.grad(density, has_aux=True)(loc)

    logs, positive = np.log(np.abs(Y)), np.abs(Y)
    expected = [
        forward(log_normal(np.where(g, np.nan, y)) - np.where(g, 0.0, y)[:, None], t)
        for g, y, t in zip(gone, logs, TIMES, strict=True)
    ]
    by_nan, value = slope(LOC, np.where(gone, np.nan, positive), np.ones((2, 4), bool))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # Not even an inadmissible number may leak through the mask, nor its gradient.
    by_mask, value = slope(LOC, np.where(gone, -1.0, positive), ~gone)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(by_nan).all()
    np.testing.assert_allclose(by_nan, by_mask, rtol=1e-5)


def test_lengths_are_cut_series():
    times, y = TIMES.copy(), Y.copy()
    times[1, 2:], y[1, 2:] = np.nan, np.nan
    law = channels(times=times, lengths=[4, 2])
    found = log_prob(law, y)
    expected = [EXPECTED[0], forward(log_normal(Y[1, :2]), TIMES[1, :2])]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert law.observed.tolist() == [[True] * 4, [True, True, False, False]]


# -------------------------------------------------------------------------------------------------- bad arguments


def test_arguments_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"`emission` has batch shape \(2,\); its last axis must be the 3 states"
    ):
        channels(dist.Normal(LOC[:2], 1.0))
    with pytest.raises(ValueError, match=r"`emission` has batch shape \(\)"):
        channels(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"The series has shape \(2, 3\); its last axes must be \(4,\)"):
        channels().log_prob(Y[:, :3])
    with pytest.raises(ValueError, match=r"`times` do not increase in series 0: 1 is followed by 0.5"):
        channels(times=[0.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="beyond the capacity `max_rate` = 1"):
        channels(max_rate=1.0, validate_args=True)
    with pytest.raises(ValueError, match=r"Row 0 of `rate_matrix` sums to 1"):
        channels(rates=RATES + np.diag([1.0, 0.0, 0.0]), validate_args=True)


def test_support():
    law = channels(dist.Poisson(np.array([1.0, 2.0, 3.0])), times=TIMES[0])
    assert law.support.event_dim == 1
    assert law.support.is_discrete
    assert bool(law.support(np.array([1, 0, 4, 2])))
    assert bool(law.support(np.array([1, np.nan, 4, 2])))
    assert law.support(np.array([[1, 0, 4, 2], [1, -1, 4, 2]])).tolist() == [True, False]
    masked = channels(law.emission, times=TIMES[0], mask=np.array([1, 0, 1, 1], bool))
    assert bool(masked.support(np.array([1, -2, 4, 2])))
    assert bool(channels(log_normal(Y)).support(np.full((2, 4), np.nan)).all())
    assert not channels().support.is_discrete
