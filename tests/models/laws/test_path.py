"""The path form: its density against the routed one, its draws, and a fit of a life half seen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import sojourn as sj
from sojourn.models.laws import Objects, Space, World, cells, law, levels, when
from tests.models.laws.test_routing import LAWS, RATES, SPACE


def life(num, seed=0):
    """States of one life: any at all, a later one owing nothing to the one before."""
    rng = np.random.default_rng(seed)
    return {
        "pos": rng.integers(0, 4, (num + 1, 2)),
        "energy": rng.integers(0, 6, num + 1),
        "food": rng.integers(0, 5, num + 1),
        "score": rng.integers(0, 5, num + 1),
        "weather": rng.integers(0, 3, num + 1),
        "cow": {
            "pos": rng.integers(0, 4, (num + 1, 3, 2)),
            "alive": np.arange(num + 1)[:, None] < np.array([num + 1, 4, 2]),
        },
    }, rng.integers(0, 3, num)


def split(series):
    return tuple(jax.tree.map(lambda x, s=s: x[s], series) for s in (slice(0, -1), slice(1, None)))


def log_prob(world, beliefs, series, actions, path=None):
    """Of what was seen and of the path, the parameters being given."""
    values = {n: jnp.asarray(v) for n, v in beliefs.items()} | (path or {})
    model = handlers.substitute(handlers.seed(world.path, jax.random.key(0)), values)
    trace = handlers.trace(model).get_trace(series, actions)
    names = [n for n, s in trace.items() if s["type"] == "sample" and n.startswith(("seen_", "state_"))]
    return sum(float(trace[n]["fn"].log_prob(trace[n]["value"]).sum()) for n in names), trace


@pytest.fixture(scope="module")
def world():
    return World(SPACE, LAWS)


def test_seen_whole_it_is_the_routed_density(x64, world):
    series, actions = life(12)
    guess = world.supposing(RATES, change=0.03, flee__bold=0.3)
    beliefs = {n: v[0] for n, v in world.beliefs(guess).items()}
    states, after = split(series)
    exact = world.log_prob(guess, states, actions, after).sum()
    total, trace = log_prob(world, beliefs, series, actions)
    assert total == pytest.approx(exact, abs=1e-6)
    assert trace["state"]["value"].shape == (13, world.space.num_cells)


@law
def eat(s, a):
    return when(a == 1, energy=s.energy + 1, food=s.food - 1)


@law
def tire(s, a):
    return when(True, energy=s.energy - 1)


@law(after="energy")
def sing(s, a):
    return when(s.energy > s.before.energy, mood=1)


SMALL = Space(energy=levels(3), food=levels(3), mood=2)


def small(num=4):
    series = {
        "energy": np.array([1, 2, -1, 2, 1])[: num + 1],
        "food": np.array([2, -1, -1, 1, 1])[: num + 1],
        "mood": np.array([0, 1, -1, -1, 1])[: num + 1],
    }
    return series, np.array([1, 1, 1, 0])[:num]


def test_hidden_values_have_their_exact_posterior(x64):
    """Every hidden path enumerated by the routed density; the path form gives each of them the same probability."""
    world = World(SMALL, [eat, tire, sing])
    series, actions = small()
    guess = world.supposing({"eat": 0.7, "tire": 0.3, "sing": 0.6}, change=0.02)
    beliefs = {n: v[0] for n, v in world.beliefs(guess).items()}
    rng = np.random.default_rng(0)
    for _ in range(6):
        whole = {
            k: np.where(v < 0, rng.integers(0, SMALL.attributes[k].size, v.shape), v)
            for k, v in series.items()
        }
        states, after = split(whole)
        exact = world.log_prob(guess, states, actions, after).sum()
        codes = np.stack([whole[k] for k in ("energy", "food", "mood")], 1)
        phase = np.array([0, 0, 1])
        path = {f"state_{k}": jnp.asarray(np.where(phase == k, codes, 0), jnp.int32) for k in (0, 1)}
        total, _ = log_prob(world, beliefs, series, actions, path)
        assert total == pytest.approx(exact, abs=1e-9)  # the first state was seen


def test_draws_given_what_was_seen(x64):
    """One step, energy seen and food not: food follows its conditional law."""
    world = World(SMALL, [eat, tire, sing])
    series = {"energy": np.array([1, 2]), "food": np.array([2, -1]), "mood": np.array([0, 0])}
    guess = world.supposing({"eat": 0.7, "tire": 0.3, "sing": 0.6}, change=0.2)
    beliefs = {n: v[0] for n, v in world.beliefs(guess).items()}
    chance = np.exp([world.log_prob(guess, *_one({**series, "food": np.array([2, f])}))[0] for f in range(3)])
    chance /= chance.sum()

    def draw(key):
        model = handlers.substitute(handlers.seed(world.path, key), beliefs)
        return handlers.trace(model).get_trace(series, np.array([1]))["state"]["value"][1, 1]

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 4000)))
    share = np.bincount(drawn, minlength=3) / 4000
    assert np.all(np.abs(share - chance) < 4.5 * np.sqrt(chance * (1 - chance) / 4000))


def _one(series):
    states, after = split(series)
    return states, np.array([1]), after


@pytest.mark.slow
def test_particle_gibbs_learns_from_a_life_half_seen():
    """A drift of energy whose readings are missing half the time: rates as from quadrature over all paths."""
    world = World(Space(energy=levels(6)), [_rise, _fall])
    rng = np.random.default_rng(2)
    num, true = 120, (0.5, 0.2)
    actions = rng.integers(0, 2, num)
    energy = [3]
    for a in actions:
        happens = rng.random() < true[a]
        energy.append(int(np.clip(energy[-1] + happens * (1 - 2 * a), 0, 5)))
    seen = np.where(rng.random(num + 1) < 0.5, -1, energy)
    engine = partial(sj.inference.ParticleGibbs, num_particles=24)
    options = {"num_chains": 1, "num_warmup": 300, "num_samples": 1000, "progress_bar": False}
    fit = sj.fit(world.path, {"energy": seen}, actions, engine=engine, seed=1, **options)
    rate = fit.posterior["rate"].values[0]
    mean, sd = _quadrature(seen, actions)
    np.testing.assert_allclose(rate.mean(0), mean, atol=0.35 * sd.max())
    np.testing.assert_allclose(rate.std(0), sd, rtol=0.3)
    path = fit.posterior["state"].values[0, :, :, 0]
    assert (path[:, seen >= 0] == seen[seen >= 0]).all()


@law
def _rise(s, a):
    return when(a == 0, energy=s.energy + 1)


@law
def _fall(s, a):
    return when(a == 1, energy=s.energy - 1)


def _quadrature(seen, actions):
    """Forward algorithm on a grid of both rates (unexplained change at its prior mean, which data leave near zero)."""
    grid = np.linspace(0.01, 0.99, 50)
    rates = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    belief = np.tile((np.arange(6) == seen[0]) if seen[0] >= 0 else np.ones(6), (len(rates), 1)).astype(float)
    log_prob = np.zeros(len(rates))
    for t, a in enumerate(actions):
        target = np.clip(np.arange(6) + (1 - 2 * a), 0, 5)
        moved = belief * (1 - rates[:, a : a + 1])
        for v in range(6):
            moved[:, target[v]] += belief[:, v] * rates[:, a]
        moved = 0.99 * moved + 0.01 / 6 * belief.sum(1, keepdims=True)
        if seen[t + 1] >= 0:
            moved = moved * (np.arange(6) == seen[t + 1])
        total = moved.sum(1)
        log_prob += np.log(total)
        belief = moved / total[:, None]
    weight = np.exp(log_prob - log_prob.max())
    weight /= weight.sum()
    mean = weight @ rates
    return mean, np.sqrt(weight @ (rates - mean) ** 2)


def test_wrong_input(world):
    series, actions = life(5)
    with pytest.raises(ValueError, match=r"5 actions lead through 6 states, and `series` has \[5\] rows"):
        world.path(split(series)[0], actions)
    product = World(SPACE, LAWS, pool="product")
    with pytest.raises(ValueError, match="hidden attributes are for worlds with pool='hazard'"):
        product.path(series, actions)
    names = [f"x{i}" for i in range(9)]

    @law
    def everything(s, a):
        return when(True, **dict.fromkeys(names, 0))

    @law
    def apart(s, a):
        return when(True, x0=1)

    @law
    def another(s, a):
        return when(True, x1=1)

    wide = World(Space(**dict.fromkeys(names, 2)), [everything, apart, another])
    with pytest.raises(NotImplementedError, match="tie 9 attributes to each other, and at most 8"):
        handlers.seed(wide.path, 0)({n: np.zeros(3, int) for n in names}, np.zeros(2, int))


def test_objects_that_are_gone_tell_nothing(x64):
    @law(each="cow")
    def dies(cow, s, a):
        return when(a == 0, gone=1)

    @law(each="cow")
    def steps(cow, s, a):
        return when(True, pos=(cow.pos + 1) % 4)

    world = World(Space(cow=Objects(2, pos=cells(4, 4), gone=2)), [dies, steps])
    alive = np.array([[True, True], [True, False], [True, False]])
    pos = np.array([[[0, 0], [1, 1]], [[1, 1], [0, 0]], [[2, 2], [3, 3]]])
    guess = world.supposing(0.4, change=0.01)
    beliefs = {n: v[0] for n, v in world.beliefs(guess).items()}
    series = {"cow": {"pos": pos, "alive": alive}}
    actions = np.array([0, 1])
    states, after = split(series)
    exact = world.log_prob(guess, states, actions, after).sum()
    assert log_prob(world, beliefs, series, actions)[0] == pytest.approx(exact, abs=1e-9)
