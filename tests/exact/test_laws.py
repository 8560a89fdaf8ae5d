"""Laws against closed forms: posteriors, maxima, entropies, and the meadow whose law is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sojourn as sj
from sojourn.distributions import CompetingLaws, LawRows, LogLinearLaws
from sojourn.environments import Meadow, record
from sojourn.environments.meadow import mutants
from sojourn.models.laws import (
    Space,
    World,
    cells,
    law,
    levels,
    meadow_laws,
    meadow_space,
    one_of,
    when,
    wrong_meadow_laws,
)

TINY = 1e-12


def rows(*named, size):
    """One situation of one cell, seen in all its outcomes: each law names one value, a label of its own."""
    laws = len(named)
    return LawRows(
        law=np.arange(laws)[None],
        writes=np.ones((1, laws, 1), bool),
        label=np.array(named)[None, :, None, None],
        probs=np.ones((1, laws, 1, 1)),
        uniform=np.zeros((1, laws, 1), bool),
        attribute=np.zeros((1, 1), int),
        size=np.full((1, 1), size),
        named=np.full((1, 1), 1 + max(named)),
        several=np.array([], int),
    )


def slope(log_prob, counts, at):
    """Gradient at ``at`` of the likelihood of label i being seen ``counts[i]`` times."""

    def total(w):
        return sum(n * log_prob(w, np.array([[v]]))[0] for v, n in counts.items())

    return jax.grad(total)(jnp.asarray(at))


def test_one_law_is_beta_binomial(x64):
    world = World(Space(wood=levels(10)), [_chop], noise=TINY)
    hits, num = 42, 60
    wood = np.full(num, 3)
    seen = world.route({"wood": wood}, np.zeros(num), {"wood": wood + (np.arange(num) < hits)})
    rate = np.linspace(0, 1, 20_001)[1:-1]
    beliefs = {"hazard": jnp.asarray(-np.log1p(-rate))[:, None], "change": jnp.full((len(rate), 1), TINY)}
    log_prob = world._situations(beliefs, seen) @ jnp.asarray(seen.count)
    density = np.exp(log_prob - log_prob.max())
    density /= density.sum()
    mean = (density * rate).sum()
    assert mean == pytest.approx(43 / 62, abs=1e-6)  # .693548
    assert np.sqrt((density * (rate - mean) ** 2).sum()) == pytest.approx(0.058083, abs=1e-6)


@law
def _chop(s, a):
    return when(True, wood=s.wood + 1)


def test_nuts_finds_the_beta_posterior():
    world = World(Space(wood=levels(10)), [_chop])
    hits, num = 42, 60
    wood = np.full(num, 3)
    seen = world.route({"wood": wood}, np.zeros(num), {"wood": wood + (np.arange(num) < hits)})
    fit = sj.fit(world.model, seen, num_chains=2, num_warmup=300, num_samples=1500, progress_bar=False)
    rate = fit.posterior["rate"].values
    # 3000 draws at a third of independent ones' worth: errors .0018 and .0013; the noise of 1e-3 moves neither as far
    assert abs(rate.mean() - 0.693548) < 0.008
    assert abs(rate.std() - 0.058083) < 0.006


def test_a_law_never_right_has_the_prior_cut_short(x64):
    """Exp(1) prior, n misses: the hazard is exponential with rate n + 1."""
    n = 60
    hazard = jnp.linspace(1e-5, 1.0, 200_001)
    one = rows(1, size=10)
    log_prob = jax.vmap(
        lambda w: CompetingLaws(w[None], jnp.array([TINY]), one, noise=TINY).log_prob(np.array([[0]]))[0]
    )(hazard)
    density = np.exp(n * log_prob - hazard)
    assert (density * hazard).sum() / density.sum() == pytest.approx(1 / (n + 1), rel=1e-3)


def test_competing_hazards_share_the_total(x64):
    counts = {0: 500, 1: 380, 2: 120}
    total = -np.log(500 / 1000)
    at = np.array([380, 120]) / 500 * total
    np.testing.assert_allclose(at, [0.526792, 0.166355], atol=1e-6)

    def log_prob(w, value):
        return CompetingLaws(w, jnp.array([TINY]), rows(1, 2, size=10), noise=TINY).log_prob(value)

    np.testing.assert_allclose(slope(log_prob, counts, at), 0, atol=1e-6)


@pytest.mark.parametrize(("p", "weight"), [(0.9, 0.590389), (0.5, 0.399689), (0.02, 0.061913), (0.0099, 0.0)])
def test_log_linear_pool_of_one_law(x64, p, weight):
    """w = log(p (V - 1) / (1 - p)) / b, with b = log(1 + (1 - eps) V / eps)."""
    size, eps = 101, 1e-3
    b = np.log1p((1 - eps) * size / eps)
    exact = max(np.log(p * (size - 1) / (1 - p)) / b, 0.0)
    assert exact == pytest.approx(weight, abs=1e-6)

    def log_prob(w, value):
        return LogLinearLaws(w, jnp.zeros(1), rows(1, size=size), noise=eps).log_prob(value)

    gradient = slope(log_prob, {1: p, -1: 1 - p}, np.array([exact]))
    assert abs(gradient[0]) < 1e-9 if exact > 0 else gradient[0] < 0


def test_log_linear_pool_with_penalty(x64):
    """An L1 penalty lam shifts p to p - lam / (n b): .4940375 for V = 101, n = 200, p = .75, lam = 5."""
    size, eps, n, lam = 101, 1e-3, 200, 5.0
    b = np.log1p((1 - eps) * size / eps)
    p = 0.75 - lam / (n * b)
    exact = np.log(p * (size - 1) / (1 - p)) / b
    assert exact == pytest.approx(0.4940375, abs=1e-6)

    def log_prob(w, value):
        return LogLinearLaws(w, jnp.zeros(1), rows(1, size=size), noise=eps).log_prob(value)

    gradient = slope(log_prob, {1: 0.75 * n, -1: 0.25 * n}, np.array([exact]))
    assert gradient[0] == pytest.approx(lam, abs=1e-6)


def test_log_linear_rivals(x64):
    size, eps, p = 101, 1e-3, np.array([0.7, 0.2, 0.1])
    at = np.log(p[:2] * (size - 2) / p[2]) / np.log1p((1 - eps) * size / eps)
    np.testing.assert_allclose(at, [0.567705, 0.458976], atol=1e-6)

    def log_prob(w, value):
        # labels 1 and 2; "no change" is one of the 99 others
        return LogLinearLaws(w, jnp.zeros(1), rows(1, 2, size=size), noise=eps).log_prob(value)

    np.testing.assert_allclose(slope(log_prob, {1: 0.7, 2: 0.2, -1: 0.1}, at), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "n", "weight"), [(101, 100, 1.842068), (2, 12, 1.169524), (2, 50, 1.312236)]
)
def test_onelife_parity(x64, size, n, weight):
    """Boost 10 and L1 .001 (the published choice), a law that is always right."""
    exact = np.log((size - 1) * (10 * n - 0.001) / 0.001) / 10
    assert exact == pytest.approx(weight, abs=1e-6)

    def log_prob(w, value):
        return LogLinearLaws(w, jnp.zeros(1), rows(1, size=size), boost=10.0).log_prob(value)

    assert slope(log_prob, {1: n}, np.array([exact]))[0] == pytest.approx(0.001, rel=1e-5)


def test_a_law_of_four_attributes_fires_as_one(x64):
    """Two activations, two hits, exponential prior: the mode is 2 / 3, not the 8 / 9 of four hits each."""

    @law
    def make(s, a):
        return when(True, wood=s.wood - 1, coal=s.coal - 1, iron=s.iron - 1, pickaxe=s.pickaxe + 1)

    names = ("wood", "coal", "iron", "pickaxe")
    world = World(Space(**{n: levels(10) for n in names}), [make], noise=TINY)
    before = {n: np.array([3, 4]) for n in names}
    after = {n: before[n] + (1 if n == "pickaxe" else -1) for n in names}
    seen = world.route(before, np.zeros(2), after)

    def posterior(w):
        beliefs = {"hazard": w, "change": jnp.full(4, TINY)}
        return world.situation_log_prob(beliefs, seen) @ jnp.asarray(seen.count) - w.sum()

    rate = 2 / 3
    assert abs(jax.grad(posterior)(jnp.array([-np.log1p(-rate)]))[0]) < 1e-6


def test_a_walk_in_two_coordinates_loses_their_mutual_information(x64):
    """A cow moves to one of four neighbours half the time: 2 log 2 nats as a cell, .08495 more as x and y apart."""

    @law
    def roams(s, a):
        steps = [s.pos + jnp.array(d) for d in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        return when(True, pos=one_of(steps))

    joint = World(Space(pos=cells(8, 8)), [roams], noise=TINY)

    @law
    def along_x(s, a):
        return when(True, x=one_of([s.x - 1, s.x + 1]))

    @law
    def along_y(s, a):
        return when(True, y=one_of([s.y - 1, s.y + 1]))

    apart = World(Space(x=8, y=8), [along_x, along_y], noise=TINY)
    moves = np.array([(0, 0)] * 4 + [(-1, 0), (1, 0), (0, -1), (0, 1)])
    start = np.full((8, 2), 4)
    actions = np.zeros(8)
    together = joint.log_prob(
        joint.supposing(0.5, change=TINY), {"pos": start}, actions, {"pos": start + moves}
    )
    assert -together.mean() == pytest.approx(2 * np.log(2), abs=1e-6)
    split = apart.log_prob(
        apart.supposing(0.25, change=TINY),
        {"x": start[:, 0], "y": start[:, 1]},
        actions,
        {"x": (start + moves)[:, 0], "y": (start + moves)[:, 1]},
    )
    exact = -2 * (0.75 * np.log(0.75) + 0.25 * np.log(0.125))
    assert exact == pytest.approx(1.471244, abs=1e-6)
    assert -split.mean() == pytest.approx(exact, abs=1e-6)


@pytest.fixture(scope="module")
def meadow():
    return record(Meadow(), 1000, seed=1), record(Meadow(), 1000, seed=99)


TRUE = {"walk": 0.9, "tire": 0.2, "rest": 1.0, "pick": 0.7, "seasons": 0.1, "bite": 0.3, "roam": 0.5}


def test_the_meadow_is_learnt(meadow):
    train, test = meadow
    world = World(meadow_space(), meadow_laws() + wrong_meadow_laws())
    seen = world.route(*train)
    fit = sj.fit(world.model, seen, engine="map", progress_bar=False)
    rate = dict(zip(world.names, fit.posterior["rate"].values[0, 0], strict=True))
    for name, truth in TRUE.items():
        n = seen.activations[name]
        assert abs(rate[name] - truth) < 3.5 * np.sqrt(max(truth * (1 - truth), 1 / n) / n), name
    assert max(rate[one.name] for one in wrong_meadow_laws()) < 0.02
    log_prob = world.log_prob(fit, *test).mean()
    oracle = Meadow().log_prob(test).mean()
    assert oracle == pytest.approx(-3.1124, abs=1e-4)
    assert oracle - 0.02 < log_prob < oracle + 0.01
    ranking = world.rank(fit, test, mutants(test))
    assert ranking.rank_1 > 0.99


def test_the_log_linear_pool_is_half_a_nat_worse(meadow):
    """A move that is blocked names the value that "no change" names: their votes multiply instead of adding."""
    train, test = meadow
    world = World(meadow_space(), meadow_laws() + wrong_meadow_laws(), pool="product")
    fit = sj.fit(world.model, world.route(*train), engine="map", progress_bar=False)
    assert world.log_prob(fit, *test).mean() < Meadow().log_prob(test).mean() - 0.5


def test_random_candidates_rank_at_random():
    """Rank@1 = 1 / N and MRR = H_N / N where all candidates are equally likely."""
    world = World(Space(pos=cells(16, 16)), [_nowhere])
    num, others = 4000, 6
    rng = np.random.default_rng(0)
    pos = np.full((num, 2), 8)
    wrong = [{"pos": np.stack([np.full(num, 1), np.full(num, k)], 1)} for k in range(others)]
    truth = {"pos": np.stack([np.full(num, 2), rng.integers(0, 16, num)], 1)}
    ranking = world.rank(world.supposing(0.0), ({"pos": pos}, np.zeros(num), truth), wrong)
    n = others + 1
    assert abs(ranking.rank_1 - 1 / n) < 4 * np.sqrt(1 / n * (1 - 1 / n) / num)
    assert abs(ranking.mean_reciprocal_rank - (1 / np.arange(1, n + 1)).sum() / n) < 4 * 0.28 / np.sqrt(num)


@law
def _nowhere(s, a):
    return when(False, pos=s.pos)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["nuts", "svi", "langevin", "mclmc"])
def test_engines_find_the_posterior(engine):
    """Two laws that never compete: two Beta posteriors, known in closed form."""
    world = World(Space(wood=levels(10), food=levels(10)), [_chop, _starve])
    num, hits = 60, np.array([42, 6])
    states = {"wood": np.full(num, 3), "food": np.full(num, 5)}
    happened = [np.arange(num) < h for h in hits]
    after = {"wood": states["wood"] + happened[0], "food": states["food"] - happened[1]}
    seen = world.route(states, np.zeros(num), after)
    fit = sj.fit(world.model, seen, engine=engine, num_samples=2000, progress_bar=False)
    rate = fit.posterior["rate"].values.reshape(-1, 2)
    mean = (1 + hits) / (2 + num)
    sd = np.sqrt(mean * (1 - mean) / (3 + num))
    # a variational family is normal in log hazard, which the skew of the rarer law does not quite fit
    np.testing.assert_allclose(rate.mean(0), mean, atol=0.12 * sd.max())
    np.testing.assert_allclose(rate.std(0), sd, rtol=0.15)


@law
def _starve(s, a):
    return when(True, food=s.food - 1)
