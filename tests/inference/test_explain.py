"""Why a density or its gradient is not finite: the site, the entry and the reason, in one sentence."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from sojourn.inference._explain import explain_not_finite, support_words
from sojourn.inference._scan import prepared
from sojourn.models import hidden_markov

STEADY = {"s": 1.0, "x": jnp.ones(5), "k": jnp.zeros(5, int)}


def explain(model, values, *args, **options):
    return explain_not_finite(model, args, {}, values, **options)


def regression(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(jnp.log(x), s), obs=y)


def branch(y):
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    x = numpyro.sample("x", dist.Normal(0.0, s))
    root = jnp.where(x > 0, jnp.sqrt(x), 0.0)
    numpyro.sample("z", dist.Normal(x, 1.0), obs=0.5)
    numpyro.sample("y", dist.Normal(root, 1.0), obs=y)


def series(y):
    s = numpyro.sample("s", dist.HalfNormal(1.0))

    def step(last, y):
        numpyro.sample("v", dist.Normal(jnp.sqrt(2.0 - last), 1.0), obs=0.0)
        x = numpyro.sample("x", dist.Normal(last, s))
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        with numpyro.plate("unit", 2):
            numpyro.sample("y", dist.Normal(jnp.log(x) + k, 1.0), obs=y)
        return x, None

    scan(step, 1.0, y)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"x": 1.0, "s": 1.0}, None),
        ({"x": jnp.nan, "s": -1.0}, "Site 'x' has the value nan."),
        (
            {"x": 1.0, "s": 0.0},
            "Site 's' has log density -inf: its value 0 lies outside the support of its law, HalfNormal.",
        ),
        (
            {"x": -1.0, "s": 1.0},
            "Site 'y' has log density nan (first at index 0): its law Normal has loc nan there.",
        ),
    ],
)
def test_values(values, says):
    assert explain(regression, values, jnp.zeros(3)) == says


def test_data_that_are_nan_and_those_that_are_missing():
    y = np.array([0.1, np.nan, 0.3])
    values = {"x": 1.0, "s": 1.0}
    assert "(first at index 1): its value is nan there." in explain(regression, values, y)
    assert explain(prepared(regression), values, y) is None


def test_entry_and_range_of_a_parameter():
    def model(y):
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.stack([1.0 + 0 * c, c])).expand([3, 2]).to_event(1), obs=y)

    y = jnp.ones((3, 2), int)
    said = explain(model, {"c": -2.0}, y)
    assert said == (
        "Site 'y' has log density nan (first at index 0): its law Poisson has rate [ 1., -2.] there, which must be at "
        "least 0."
    )
    assert "outside the support of its law, Poisson" in explain(model, {"c": 2.0}, y.at[2, 0].set(-4))
    assert "(first at index 2)" in explain(model, {"c": 2.0}, y.at[2, 0].set(-4))


def test_one_value_under_many_laws():
    def model(y):
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Gamma(jnp.ones(3), 1.0 + c), obs=y)

    said = explain(model, {"c": 0.0}, -2.0)
    assert "(first at index 0): its value -2 there lies outside the support of its law, Gamma." in said


def test_factor():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("penalty", -jnp.log(x))

    assert explain(model, {"x": 0.0}) == "Factor 'penalty' is inf."


def test_masked_entries_do_not_count():
    seen = np.array([True, False, True])

    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).mask(seen))
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample(
                "y", dist.Normal(jnp.where(seen, jnp.log(jnp.where(seen, x, 1.0)), 0.0), 1.0), obs=y
            )

    assert explain(model, {"x": jnp.array([1.0, jnp.nan, 1.0])}, jnp.zeros(3)) is None
    said = explain(model, {"x": jnp.array([1.0, jnp.nan, -1.0])}, jnp.zeros(3))
    assert "Site 'y' has log density nan (first at index 2)" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        # The model names v first; y goes wrong a step earlier.
        ({"x": [1.0, 1.0, -1.0, 3.0, 1.0]}, "Site 'y' has log density nan (first at time step 2, index 0)"),
        ({"x": [1.0, 1.0, 3.0, -1.0, 1.0]}, "Site 'v' has log density nan (first at time step 3)"),
        ({"x": [1.0, 1.0, np.inf, 1.0, 1.0]}, "Site 'x' has the value inf (first at time step 2)."),
        ({"k": [0, 0, 0, 3, 0], "s": np.inf}, "Site 's' has the value inf."),
    ],
)
def test_scan(change, says):
    values = {n: jnp.asarray(change.get(n, v)) for n, v in STEADY.items()}
    said = explain(series, values, np.ones((5, 2)))
    assert said is None if says is None else said.startswith(says)


def test_gradient_of_a_branch_not_taken():
    said = explain(branch, {"s": 1.0, "x": -1.0}, 0.3)
    assert said.startswith(
        "The gradient of the log density with respect to 'x' is nan, though the density is finite (-"
    )
    assert "from the term of site 'y', most often by 0 * inf in a branch of jnp.where" in said
    # The same point on the unconstrained scale.
    assert explain(branch, {"s": 0.0, "x": -1.0}, 0.3, unconstrained=True) == said
    assert explain(branch, {"s": 0.0, "x": 1.0}, 0.3, unconstrained=True) is None


def test_gradient_within_a_scan():
    def model(y):
        x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(jnp.where(x > 0, jnp.sqrt(x), 0.0), 1.0), obs=y)
            return x, None

        scan(step, x0, y)

    said = explain(model, {"x0": 0.0, "x": jnp.array([1.0, 1.0, -1.0, 1.0])}, np.ones(4))
    assert "with respect to 'x' is nan (first at time step 2)" in said
    assert "from the term of site 'y'" in said


def test_edges_of_a_support():
    def model():
        numpyro.sample("p", dist.Beta(1.0, 1.0))
        numpyro.sample("s", dist.HalfNormal(1.0))

    assert explain(model, {"p": 1.0, "s": 1.0}).startswith(
        "Site 'p' lies at the edge of its support (value 1)"
    )
    assert explain(model, {"p": 0.0, "s": 200.0}, unconstrained=True) == "Site 's' has the value inf."


def test_series_of_a_system_says_which_time_step():
    def model(y):
        drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))
        numpyro.sample("y", _Walk(drift, jnp.array([1.0, 1.0, -1.0, 1.0])), obs=y)

    said = explain(model, {"drift": 0.0}, jnp.zeros(4))
    assert said.startswith("Site 'y' has log density nan (first at index 2): its law _Walk has scale nan")


class _Walk(dist.Distribution):
    """A law of a whole series that tells its terms."""

    arg_constraints = {"drift": dist.constraints.real, "scale": dist.constraints.real_vector}
    support = dist.constraints.real_vector
    reparametrized_params = ["drift"]

    def __init__(self, drift, variance, *, validate_args=None):
        self.drift, self.scale = drift, jnp.sqrt(variance)
        super().__init__((), (4,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        return jnp.zeros((*sample_shape, 4))

    def predictive_log_prob(self, value):
        return dist.Normal(self.drift, self.scale).log_prob(value)

    def log_prob(self, value):
        return self.predictive_log_prob(value).sum(-1)


def test_missing_entries_of_a_known_series():
    model = partial(hidden_markov.poisson, num_states=2)
    y = np.array([1.0, 2.0, np.nan, 4.0])
    said = explain(model, {"rate": jnp.array([0.0, 1.0]), "transition": jnp.full((2, 2), 0.5)}, y)
    assert said.startswith("Site 'rate' has log density -inf: its value")


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (dist.constraints.positive, "positive"),
        (dist.constraints.independent(dist.constraints.unit_interval, 1), "unit interval"),
        (dist.constraints.interval(0.0, 5.0), "interval [0, 5]"),
        (dist.constraints.greater_than(2.0), "greater than 2"),
        (dist.constraints.less_than_eq(2.0), "at most 2"),
        (dist.constraints.nonnegative_integer, "integer nonnegative"),
        (dist.constraints.simplex, "simplex"),
    ],
)
def test_words_of_constraints(constraint, words):
    assert support_words(constraint) == words
