"""What a weighted model is to the engines and handlers, and what it and its weights refuse."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.util import log_density

import sojourn as sj
from sojourn._contract import trace_model
from sojourn.inference._whole_data import whole_data
from sojourn.inference.trajectory_weights import (
    advantage_weights,
    effective_sample_size,
    positive_sided_variance,
    return_weights,
    top_fraction_weights,
    weighted,
)

ACTIONS = np.repeat([[0, 0, 1, 0, 0], [1, 1, 0, 1, 1], [0, 1, 0, 0, 0], [1, 1, 1, 0, 1]], 3, axis=0).ravel()
RETURNS, LENGTHS = ACTIONS.reshape(12, 5).sum(1), np.full(12, 5)
WEIGHTS = return_weights(RETURNS, LENGTHS, temperature=0.3)


def policy(actions, subsample_size=None, plate="steps"):
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    with numpyro.plate(plate, 60, subsample_size=subsample_size) as steps:
        obs = None if actions is None else jnp.asarray(actions)[steps]
        numpyro.sample("action", dist.Bernoulli(p), obs=obs)


def density(model, **options):
    return float(log_density(handlers.seed(model, 0), (ACTIONS,), options, {"p": 0.37})[0])


def by_hand(total, weights=WEIGHTS):
    terms = np.where(ACTIONS == 1, np.log(0.37), np.log(0.63))
    return float(dist.Beta(2.0, 3.0).log_prob(0.37)) + total * weights @ terms


# ------------------------------------------------------------------------------------------------- the density


@pytest.mark.parametrize(
    ("at", "total"), [("effective", effective_sample_size(WEIGHTS)), ("nominal", 60), (7.5, 7.5)]
)
def test_only_the_observations_of_the_plate_are_scaled(at, total):
    model = weighted(policy, 10 * WEIGHTS, "steps", at=at)
    assert density(model) == pytest.approx(by_hand(total), rel=1e-5)
    assert density(whole_data(model), subsample_size=7) == pytest.approx(by_hand(total), rel=1e-5)


def test_even_weights_change_nothing():
    assert density(weighted(policy, np.ones(60), "steps")) == pytest.approx(density(policy), rel=1e-6)


def test_weights_go_along_their_own_axis_of_nested_plates():
    y = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def model(rows):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("columns", 4, dim=-1), numpyro.plate("rows", 3, dim=-2):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=rows)
        with numpyro.plate("columns", 4, dim=-1):
            numpyro.sample("total", dist.Normal(mean, 2.0), obs=rows.sum(0))

    for plate, share in (("rows", [0.5, 0.0, 0.5]), ("columns", [0.1, 0.2, 0.3, 0.4])):
        trace = trace_model(
            weighted(model, share, plate, at="nominal"), (y,), {}, key=jax.random.key(0), values={"mean": 0.2}
        )
        counts = np.array(share) * len(share)
        assert np.array_equal(
            trace["y"]["scale"], (counts if plate == "columns" else counts[:, None]).astype("f4")
        )
        scaled = trace["total"]["scale"]
        assert scaled is None if plate == "rows" else np.array_equal(scaled, counts.astype("f4"))


def test_zero_weights_leave_data_out_and_are_never_drawn():
    weights = top_fraction_weights(RETURNS, LENGTHS, fraction=0.25)
    assert effective_sample_size(weights) == pytest.approx(15)
    assert effective_sample_size(weights, LENGTHS) == pytest.approx(3)
    model = handlers.trace(handlers.seed(weighted(policy, weights, "steps"), 1))
    steps = np.asarray(model.get_trace(ACTIONS, subsample_size=50)["steps"]["value"])
    assert steps.dtype == jnp.arange(1).dtype
    assert (weights[steps] > 0).all()
    assert len(np.unique(steps)) > 1


def test_indices_come_as_often_as_their_weights_ask_even_among_a_million():
    """Weights of two classes, a thousandth of the data with a tenth of the weight: share of 10^5 draws within 4 s.e.

    Within the small class, whose weights are 10^-4, and the large one, 9e-7, all positions are alike: so are quarters.
    """
    n, draws = 1_000_000, 100_000
    weights = np.full(n, 0.9 / (n - 1000))
    weights[500_000:501_000] = 1e-4

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("steps", n, subsample_size=draws) as steps:
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[steps])

    traced = handlers.trace(handlers.seed(weighted(model, weights, "steps"), 2))
    steps = np.asarray(traced.get_trace(jnp.zeros(n))["steps"]["value"])
    small = (steps >= 500_000) & (steps < 501_000)
    assert abs(small.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / draws)
    for chosen, low, size in ((steps[small], 500_000, 1000), (steps[steps > 501_000], 501_000, 499_000)):
        share = np.histogram(chosen, low + size * np.arange(5) / 4)[0] / len(chosen)
        assert (abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(chosen))).all()


# ------------------------------------------------------------------------------------------------- the engines


@pytest.fixture(scope="module")
def nuts():
    model = weighted(policy, WEIGHTS, "steps")
    return sj.fit(model, ACTIONS, num_warmup=300, num_samples=1000, num_chains=4, seed=2, progress_bar=False)


def exact_posterior(total):
    frequency = WEIGHTS @ ACTIONS
    return dist.Beta(2.0 + total * frequency, 3.0 + total * (1 - frequency))


def test_nuts_samples_the_beta_of_the_effective_sample_size(nuts):
    """Mean within 4 standard errors, at 1000 effective draws or more; standard deviation within 10% (4 of 2.5%)."""
    law = exact_posterior(effective_sample_size(WEIGHTS))
    p = nuts.posterior["p"].values
    sd = float(law.variance) ** 0.5
    assert abs(p.mean() - float(law.mean)) < 4 * sd / np.sqrt(1000)
    assert p.std() == pytest.approx(sd, rel=0.1)
    assert sd > 1.1 * float(exact_posterior(60).variance) ** 0.5  # the nominal size would fail


def test_the_fit_says_how_many_transitions_are_left_and_holds_all_of_them(nuts):
    assert np.unique(nuts.posterior["steps_effective_sample_size"]) == pytest.approx(
        effective_sample_size(WEIGHTS)
    )
    assert nuts.log_likelihood["action"].dims == ("chain", "draw", "steps")
    assert nuts.posterior_predictive["action"].shape == (4, 1000, 60)
    assert sj.check(nuts).ok


def test_variational_inference_by_weighted_minibatches_finds_the_weighted_frequency():
    """A point guide, which Adam leaves some steps of 0.02 / 16 from the mode, on a scale four times as long as p's.

    Within 0.02; evenly drawn minibatches would end more than 0.1 away.
    """
    engine = sj.Variational(guide=AutoDelta, num_restarts=1, num_particles=1, tolerance=0.1)
    fit = sj.fit(
        weighted(policy, WEIGHTS, "steps"),
        ACTIONS,
        subsample_size=30,
        engine=engine,
        num_samples=2,
        progress_bar=False,
    )
    law = exact_posterior(effective_sample_size(WEIGHTS))
    mode = (law.concentration1 - 1) / (law.concentration1 + law.concentration0 - 2)
    assert float(fit.posterior["p"][0, 0]) == pytest.approx(float(mode), abs=0.02)
    assert abs(float(mode) - ACTIONS.mean()) > 0.1
    assert fit.log_likelihood["action"].shape == (1, 2, 60)
    assert float(fit.posterior["steps_effective_sample_size"][0, 0]) == pytest.approx(
        effective_sample_size(WEIGHTS)
    )


def test_a_weighted_model_can_be_stored():
    model = pickle.loads(pickle.dumps(weighted(policy, WEIGHTS, "steps")))
    assert density(model) == density(weighted(policy, WEIGHTS, "steps"))
    assert model.__name__ == "policy"


# ------------------------------------------------------------------------------------------------- the weights


def test_weights_sum_to_one_and_are_alike_within_a_trajectory():
    lengths = np.arange(1, 13)
    starts = np.random.default_rng(4).normal(size=(12, 2, 2))
    for weights in (
        return_weights(RETURNS, lengths),
        advantage_weights(RETURNS, lengths, starts),
        top_fraction_weights(RETURNS, lengths),
    ):
        assert weights.shape == (78,)
        assert weights.sum() == pytest.approx(1.0, abs=1e-14)
        for trajectory in np.split(weights, np.cumsum(lengths)[:-1]):
            assert np.ptp(trajectory) == 0


def test_advantages_do_not_see_what_is_linear_in_the_start():
    starts = np.random.default_rng(5).normal(size=(12, 2))
    shifted = RETURNS + 3.0 + starts @ [20.0, -7.0]
    np.testing.assert_allclose(
        advantage_weights(shifted, LENGTHS, starts), advantage_weights(RETURNS, LENGTHS, starts), rtol=1e-9
    )


def test_weights_are_even_where_no_trajectory_is_better():
    assert return_weights([2.0, 2.0], [1, 3]).tolist() == [0.25] * 4
    assert return_weights([2.0, 5.0], [1, 3], temperature=np.inf).tolist() == [0.25] * 4
    starts = np.random.default_rng(6).normal(size=8)
    assert advantage_weights(0.3 + 1.7 * starts, np.ones(8, int), starts).tolist() == [0.125] * 8


def test_small_temperatures_neither_overflow_nor_lose_the_best():
    assert return_weights([-1e8, 1e8, 0.0], [1, 2, 1], temperature=1e-4).tolist() == [0.0, 0.5, 0.5, 0.0]


def test_the_top_fraction_rounds_up_and_keeps_the_earlier_of_equals():
    assert top_fraction_weights(np.arange(30), np.ones(30, int), fraction=0.1).nonzero()[0].tolist() == [
        27,
        28,
        29,
    ]
    assert top_fraction_weights([1.0, 1.0, 0.0], [1, 1, 1], fraction=0.01).tolist() == [1.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "make", [return_weights, top_fraction_weights, lambda r, n: advantage_weights(r, n, r)]
)
def test_what_trajectories_are_refused(make):
    with pytest.raises(ValueError, match="There are 3 returns and 2 lengths: one each a trajectory"):
        make([0.0, 1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="The return of trajectory 1 is nan: it must be finite"):
        make([0.0, np.nan, 2.0], [1, 1, 1])
    with pytest.raises(
        ValueError, match=r"`returns` must hold one number a trajectory, not have shape \(1, 2\)"
    ):
        make([[0.0, 1.0]], [1, 1])
    for lengths in ([1, 0], [1, 1.5], [True, True], [[1, 1]], [1, np.nan]):
        with pytest.raises(ValueError, match="`lengths` must be positive whole numbers, one a trajectory"):
            make([0.0, 1.0], lengths)


def test_what_settings_of_weights_are_refused():
    for temperature in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="`temperature` must be positive, not"):
            return_weights([0.0, 1.0], [1, 1], temperature=temperature)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="`fraction` must be above 0 and at most 1, not"):
            top_fraction_weights([0.0, 1.0], [1, 1], fraction=fraction)
    with pytest.raises(ValueError, match="must have one row a trajectory: 3 for 2 returns"):
        advantage_weights([0.0, 1.0], [1, 1], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="`initial_observations` of trajectory 1 are not finite"):
        advantage_weights([0.0, 1.0], [1, 1], [0.0, np.inf])
    with pytest.raises(
        ValueError, match=r"`returns` must hold one number a trajectory, not have shape \(0,\)"
    ):
        positive_sided_variance([])
    with pytest.raises(ValueError, match="`lengths` add up to 4, and there are 3 weights"):
        effective_sample_size([1.0, 1.0, 1.0], [2, 2])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0, -0.5], "Weight 1 is -0.5: weights must be finite and not negative"),
        ([np.inf, 1.0], "Weight 0 is inf: weights must be finite and not negative"),
        ([0.0, 0.0], "All weights are zero: nothing would be left of the data"),
        (2.0, r"`weights` must hold one number an element, not have shape \(\)"),
    ],
)
def test_what_weights_are_refused(weights, says):
    with pytest.raises(ValueError, match=says):
        weighted(policy, weights, "steps")
    with pytest.raises(ValueError, match=says):
        effective_sample_size(weights)


def test_what_else_is_refused_before_the_model_runs():
    for at in ("all", 0.0, np.nan, True):
        with pytest.raises(ValueError, match='`at` must be "effective", "nominal" or a positive number'):
            weighted(policy, WEIGHTS, "steps", at=at)
    with pytest.raises(TypeError, match="A model is a function with NumPyro primitives, not 3"):
        weighted(3, WEIGHTS, "steps")


def refuse(model, says, *args, **kwargs):
    with pytest.raises(ValueError, match=says):
        sj.fit(model, *args, progress_bar=False, **kwargs)


def test_what_models_are_refused():
    refuse(
        weighted(policy, WEIGHTS, "rows"), "has no plate 'rows' to weight: its plates are 'steps'", ACTIONS
    )
    refuse(
        weighted(policy, WEIGHTS[1:], "steps"),
        "There are 59 weights, and plate 'steps' has 60 elements",
        ACTIONS,
    )

    def bare(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    refuse(weighted(bare, WEIGHTS, "steps"), "has no plate 'steps' to weight: it has none", ACTIONS)

    def empty(y):
        bare(y)
        with numpyro.plate("steps", 60):
            pass

    refuse(weighted(empty, WEIGHTS, "steps"), "Nothing is observed in the weighted plate 'steps'", ACTIONS)

    def local(y):
        with numpyro.plate("steps", 60):
            numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    refuse(
        weighted(local, WEIGHTS, "steps"), "Site 'mean' is latent inside the weighted plate 'steps'", ACTIONS
    )

    def in_time(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))

        def step(carry, row):
            with numpyro.plate("steps", 60):
                numpyro.sample("y", dist.Normal(mean, 1.0), obs=row)
            return carry, None

        scan(step, None, y)

    refuse(
        weighted(in_time, WEIGHTS, "steps"), "Plate 'steps' lies inside a scan or cond", jnp.zeros((4, 60))
    )


def test_nuts_wants_the_whole_plate_and_a_minibatch_wants_a_key():
    model = weighted(policy, WEIGHTS, "steps")
    refuse(model, "Plate 'steps' takes 30 of 60 elements, and nuts needs all", ACTIONS, subsample_size=30)
    with pytest.raises(ValueError, match="there is no random key to draw it with: seed the model"):
        handlers.substitute(model, data={"p": 0.3})(ACTIONS, subsample_size=30)


def test_a_weighted_model_does_not_simulate():
    with pytest.raises(ValueError, match="to simulate, run the model without weights"):
        Predictive(weighted(policy, WEIGHTS, "steps"), num_samples=2)(jax.random.key(0), None)
