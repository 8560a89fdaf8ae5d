"""The ready models: one law in two forms, what they simulate, and what they refuse."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from sojourn.models import hidden_markov as hmm

NAN = np.nan
STATES = 2


# ---------------------------------------------------------------------------------- marginal form = path form


def both_forms(model, y, **kwargs):
    """log p(parameters, y) from the marginal form, and from the sum over all paths of the path form."""
    y = np.asarray(y)
    marginal = handlers.trace(handlers.seed(lambda: model(y, num_states=STATES, **kwargs), 3)).get_trace()
    parameters = {
        name: site["value"]
        for name, site in marginal.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    trace = handlers.trace(
        handlers.seed(lambda: model(y, num_states=STATES, path=True, **kwargs), 3)
    ).get_trace()
    shape = trace["hidden_state"]["value"].shape  # time first
    paths = np.array(list(itertools.product(range(STATES), repeat=int(np.prod(shape))))).reshape((-1, *shape))

    def joint(path):
        values = {**parameters, "hidden_state": path}
        return log_density(model, (y,), {"num_states": STATES, "path": True, **kwargs}, values)[0]

    total = jax.nn.logsumexp(jax.jit(jax.vmap(joint))(paths))
    alone = sum(
        float(jnp.sum(site["fn"].log_prob(site["value"])))
        for site in marginal.values()
        if site["type"] == "sample"
    )
    return alone, float(total), shape


def count_emission(num_states):
    with numpyro.plate("state", num_states):
        mean = numpyro.sample("mean", dist.LogNormal(1.0, 1.0))
    return lambda state: dist.NegativeBinomial2(mean[state], 5.0)


def independent_emission(num_states):
    with numpyro.plate("state", num_states):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    return lambda state: dist.Normal(loc[state], 1.0).to_event(1)


def own_counts(y, **kwargs):
    return hmm.model(y, count_emission, **kwargs)


def own_vectors(y, **kwargs):
    return hmm.model(y, independent_emission, **kwargs)


VECTORS = np.array([[0.1, 1.0], [2.0, -0.3], [0.5, 0.6], [-1.0, 1.4]])
WIND = np.array([[0.3], [-1.0], [0.8], [0.1]])
CASES = {
    "poisson, NaN": (hmm.poisson, [3, NAN, 1, 7], {}),
    "poisson, mask": (hmm.poisson, [3, 0, 1, 7], {"mask": np.array([1, 1, 0, 1], bool)}),
    "poisson, covariates": (hmm.poisson, [3, 0, 1, 7], {"covariates": WIND}),
    "poisson, several, lengths, NaN": (
        hmm.poisson,
        [[3, 0, NAN, 7], [2, 2, -1, -1]],
        {"lengths": np.array([4, 2]), "stickiness": 3.0},
    ),
    "poisson, several, covariates of each": (
        hmm.poisson,
        [[3, 0, 9], [2, 2, 8]],
        {"covariates": np.stack([WIND[:3], 2 * WIND[1:]])},
    ),
    "poisson, several, shared covariates": (hmm.poisson, [[3, 0, 9], [2, 2, 8]], {"covariates": WIND[:3]}),
    "normal, several, mask": (
        hmm.normal,
        [[0.1, 2.0, NAN], [0.3, -1.0, 5.0]],
        {"mask": np.array([[1, 1, 0], [1, 0, 1]], bool), "initial": "free"},
    ),
    "multivariate normal, NaN": (
        hmm.multivariate_normal,
        np.where([[0, 0], [1, 0], [0, 0], [0, 0]], NAN, VECTORS),
        {"initial": np.array([0.9, 0.1])},
    ),
    "categorical, NaN": (hmm.categorical, [0, 2, NAN, 1], {"num_categories": 3}),
    "negative binomial of one's own": (own_counts, [3, 0, 1, 7], {}),
    "vectors with a missing component": (
        own_vectors,
        np.where([[0, 0], [1, 0], [0, 1], [1, 1]], NAN, VECTORS),
        {},
    ),
    "one step": (hmm.poisson, [3], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_both_forms_declare_the_same_law(case):
    model, y, kwargs = CASES[case]
    marginal, summed, shape = both_forms(model, y, **kwargs)
    assert np.isfinite(marginal)
    assert summed == pytest.approx(marginal, rel=1e-5, abs=1e-5)
    lead = np.shape(y)[: np.ndim(y) - (model in (hmm.multivariate_normal, own_vectors))]
    assert shape == lead[::-1]


# ----------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize(
    ("model", "kwargs", "event"),
    [
        (hmm.poisson, {}, ()),
        (hmm.multivariate_normal, {"dimension": 3}, (3,)),
        (hmm.categorical, {"num_categories": 4, "num_series": 2}, ()),
    ],
)
def test_prior_predictive(model, kwargs, event, path):
    several = (2,) if "num_series" in kwargs else ()
    draws = Predictive(model, num_samples=5)(
        jax.random.key(0), None, num_states=3, num_steps=6, path=path, **kwargs
    )
    assert draws["transition"].shape == (5, 3, 3)
    if not path:
        assert draws["y"].shape == (5, *several, 6, *event)
    else:
        assert draws["hidden_state"].shape == (5, 6, *several)
        assert set(np.unique(draws["hidden_state"])) <= {0, 1, 2}
    assert np.isfinite(np.asarray(draws["y"], float)).all()


def test_simulated_series_come_series_first_whatever_the_form():
    def simulate():
        return hmm.poisson(None, num_states=2, num_steps=6, num_series=3, path=True)

    assert handlers.seed(simulate, 0)().shape == (3, 6)


def test_sites_and_labels():
    y = np.random.default_rng(0).poisson(4.0, 20)
    trace = handlers.trace(handlers.seed(lambda: hmm.poisson(y, num_states=3, name="count"), 0)).get_trace()
    assert trace["count"]["is_observed"]
    assert trace["transition"]["infer"]["event_dims"] == ["next_state"]
    rate = np.asarray(trace["rate"]["value"])
    assert (np.diff(rate) > 0).all()
    free = handlers.trace(handlers.seed(lambda: hmm.poisson(y, num_states=3, ordered=False), 0)).get_trace()
    assert free["rate"]["fn"].batch_shape == (3,)
    # Where a chain starts must be a point of the prior's support.
    for site in trace.values():
        start = site.get("infer", {}).get("init") if site["type"] == "sample" else None
        if start is not None:
            assert np.asarray(site["fn"].support(jnp.asarray(start))).all()


def test_priors_can_be_given():
    def rates(**kwargs):
        return handlers.trace(
            handlers.seed(lambda: hmm.poisson([3, 4], num_states=2, **kwargs), 0)
        ).get_trace()["rate"]["fn"]

    assert isinstance(rates(rate_prior=dist.Gamma(2.0, 0.1)).base, dist.Gamma)
    # Default: LogNormal(log of the mean count, 1).
    assert float(rates().base.loc) == pytest.approx(np.log(3.5), rel=1e-6)


def test_stickiness_and_concentration():
    trace = handlers.trace(
        handlers.seed(lambda: hmm.poisson([3, 4], num_states=2, concentration=2.0, stickiness=5.0), 0)
    ).get_trace()
    np.testing.assert_array_equal(trace["transition"]["fn"].concentration, [[7.0, 2.0], [2.0, 7.0]])


# ----------------------------------------------------------------------------------------------- bad input

COUNTS = [3, 0, 1, 7]
TWO = {"num_states": 2}


def wrong_emission(num_states):
    return dist.Poisson(jnp.ones(num_states + 1))


def fixed_emission(num_states):
    return dist.Poisson(jnp.ones(num_states))


def no_emission(num_states):
    return 3.0


BAD = [
    (r"`y` is empty \(shape \(0,\)\)", hmm.poisson, [], TWO),
    (r"`y` is empty", hmm.normal, np.zeros((0, 3)), TWO),
    (r"`y` has shape \(1, 2, 2\); a series is \(T\)", hmm.normal, np.zeros((1, 2, 2)), TWO),
    (r"`y` has shape \(\)", hmm.normal, 1.0, TWO),
    (
        r"`y` is NaN at index 1, where `mask` says that it was observed",
        hmm.poisson,
        [3, NAN, 1, 7],
        {**TWO, "mask": np.ones(4, bool)},
    ),
    (
        r"`mask` has shape \(3,\); the series need \(4,\)",
        hmm.poisson,
        COUNTS,
        {**TWO, "mask": np.ones(3, bool)},
    ),
    (r"Counts are non-negative integers; at index 2 stands -1", hmm.poisson, [3, 0, -1], TWO),
    (r"Counts are non-negative integers; at index \(0, 1\) stands 0.5", hmm.poisson, [[3, 0.5]], TWO),
    (
        r"Categories are integers from 0 to 2; at index 1 stands 3",
        hmm.categorical,
        [0, 3],
        {**TWO, "num_categories": 3},
    ),
    (
        r"Categories are integers from 0 to 2; at index 0 stands -1",
        hmm.categorical,
        [-1, 1],
        {**TWO, "num_categories": 3},
    ),
    (r"`num_categories` must be at least two", hmm.categorical, [0, 0], {**TWO, "num_categories": 1}),
    (r"`y` is infinite at index 1", hmm.normal, [0.0, np.inf, 1.0], TWO),
    (r"`y` is infinite at index \(0, 1\)", hmm.multivariate_normal, [[0.0, np.inf]], TWO),
    (r"vectors need \(T, D\) or \(N, T, D\)", hmm.multivariate_normal, [0.0, 1.0], TWO),
    (r"`dimension` is needed to simulate", hmm.multivariate_normal, None, {**TWO, "num_steps": 3}),
    (r"`num_steps` must be a positive number of steps", hmm.poisson, None, TWO),
    (r"`num_steps` must be a positive number of steps", hmm.poisson, None, {**TWO, "num_steps": 0}),
    (r"`num_states` must be a positive integer, not 0", hmm.poisson, COUNTS, {"num_states": 0}),
    (r"`num_states` must be a positive integer, not 2.5", hmm.poisson, COUNTS, {"num_states": 2.5}),
    (r"path=True needs at least two states", hmm.poisson, COUNTS, {"num_states": 1, "path": True}),
    (r"covariates .* needs? at least two states", hmm.poisson, COUNTS, {"num_states": 1, "covariates": WIND}),
    (
        r"`lengths` has an entry 5; it must lie between 1 and the 4 steps",
        hmm.poisson,
        [COUNTS] * 2,
        {**TWO, "lengths": np.array([5, 2])},
    ),
    (r"`lengths` has an entry 0", hmm.poisson, [COUNTS] * 2, {**TWO, "lengths": np.array([4, 0])}),
    (r"`lengths` describes several series", hmm.poisson, COUNTS, {**TWO, "lengths": np.array(4)}),
    (
        r"`lengths` has shape \(3,\); 2 series need \(2,\)",
        hmm.poisson,
        [COUNTS] * 2,
        {**TWO, "lengths": np.array([4, 2, 1])},
    ),
    (
        r"`lengths` has an entry 5",
        hmm.poisson,
        [COUNTS] * 2,
        {**TWO, "lengths": np.array([5, 2]), "path": True},
    ),
    (
        r"`covariates` has shape \(3, 1\); the series need \(4, P\)",
        hmm.poisson,
        COUNTS,
        {**TWO, "covariates": WIND[:3]},
    ),
    (r"`covariates` has shape \(4,\)", hmm.poisson, COUNTS, {**TWO, "covariates": WIND[:, 0]}),
    (r"`covariates` has an entry that is not finite", hmm.poisson, COUNTS, {**TWO, "covariates": WIND * NAN}),
    (
        r"chain has no stationary law",
        hmm.poisson,
        COUNTS,
        {**TWO, "covariates": WIND, "initial": "stationary"},
    ),
    (
        r"`initial` is 'stationary', 'free' or probabilities",
        hmm.poisson,
        COUNTS,
        {**TWO, "initial": "uniform"},
    ),
    (
        r"`initial` has shape \(3,\); 2 states need \(2,\)",
        hmm.poisson,
        COUNTS,
        {**TWO, "initial": np.ones(3) / 3},
    ),
    (r"`initial` sums to 1.5", hmm.poisson, COUNTS, {**TWO, "initial": np.array([0.5, 1.0])}),
    (r"`initial` sums to 1.5", hmm.poisson, COUNTS, {**TWO, "initial": np.array([0.5, 1.0]), "path": True}),
    (r"`concentration` must be positive", hmm.poisson, COUNTS, {**TWO, "concentration": 0.0}),
    (r"`stickiness` not negative", hmm.poisson, COUNTS, {**TWO, "stickiness": -1.0}),
    (
        r"`emission` has batch shape \(3,\); 2 states need \(2,\)",
        hmm.model,
        COUNTS,
        {**TWO, "emission": wrong_emission},
    ),
    (
        r"With path=True `emission` must return",
        hmm.model,
        COUNTS,
        {**TWO, "emission": fixed_emission, "path": True},
    ),
    (
        r"must return a function of the state or a distribution",
        hmm.model,
        COUNTS,
        {**TWO, "emission": no_emission},
    ),
]


@pytest.mark.parametrize(("message", "model", "y", "kwargs"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_in_a_sentence(message, model, y, kwargs):
    y = None if y is None else np.asarray(y)
    with pytest.raises(ValueError, match=message):
        handlers.seed(model, 0)(y, **kwargs)


def test_what_looks_bad_and_is_not():
    # Beyond its length and behind its mask a series may hold anything finite.
    handlers.seed(hmm.poisson, 0)(np.array([[3, 1, -9], [1, 2, 4]]), num_states=2, lengths=np.array([2, 3]))
    handlers.seed(hmm.poisson, 0)(np.array([3, -5, 2]), num_states=2, mask=np.array([1, 0, 1], bool))
    handlers.seed(hmm.poisson, 0)(np.zeros(3, int), num_states=2)
    handlers.seed(hmm.poisson, 0)(np.array([2, 3]), num_states=1)
    handlers.seed(hmm.normal, 0)(np.array([2.0, 2.0]), num_states=2)


# ----------------------------------------------------------------------------------------------------- pad


def test_pad():
    stacked, lengths = hmm.pad([[1, 2, 3], [4], [5, 6]])
    np.testing.assert_array_equal(stacked, [[1, 2, 3], [4, 0, 0], [5, 6, 0]])
    assert stacked.dtype.kind == "i"
    assert lengths.tolist() == [3, 1, 2]
    stacked, lengths = hmm.pad([np.ones((2, 3)), np.full((4, 3), 2)])
    assert stacked.shape == (2, 4, 3)
    assert stacked.dtype == float
    assert stacked[0, 2:].sum() == 0
    stacked, _ = hmm.pad([[1, 2], [0.5]])  # one type for all
    assert stacked.tolist() == [[1.0, 2.0], [0.5, 0.0]]
    for nothing in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one series, and at least one observation in each"):
            hmm.pad(nothing)


def test_padded_series_have_the_density_of_the_parts():
    parts = [np.array([3, 0, 1, 7]), np.array([2]), np.array([9, 8])]
    stacked, lengths = hmm.pad(parts)
    values = {"rate": jnp.array([2.0, 6.0]), "transition": jnp.array([[0.9, 0.1], [0.2, 0.8]])}

    def of_data(y, **kwargs):
        model = handlers.substitute(handlers.seed(hmm.poisson, 0), data=values)
        site = handlers.trace(model).get_trace(y, num_states=2, **kwargs)["y"]
        return np.asarray(jax.jit(lambda law: law.log_prob(site["value"]))(site["fn"]))

    together = of_data(stacked, lengths=lengths)
    np.testing.assert_allclose(together, [of_data(y) for y in parts], rtol=1e-5)
