"""Train the network of :func:`sojourn.inference.amortized.amortized_jump_process` on simulated jump processes.

``python -m sojourn.inference._train_jump_network`` (``make train-jump-network``) simulates the pool and rebuilds
``weights/jump_network.npz`` from a fixed seed. Time is measured in horizons: every simulated panel spans [0, 1].

The prior (:func:`draw_process`, :func:`simulate_panels`): 2 to 8 states; dense, sparse, chain (birth and death),
ring or star topologies, some with an absorbing state; Beta, log-normal or power-law rates within a factor 1000;
largest rate x horizon log-uniform on [0.3, 100] (at most five per observation); a start in the stationary law or a
random one; 3 to 100 observations on regular or irregular grids, with missing observations and paths that end
early; 1 to 6000 paths; none or up to 20 % of the states replaced by uniform ones. One panel in eight is of fewer
and longer paths, to 3000 observations, with the same rates per observation. It contains the prior of Berghaus,
Cvejoski, Seifner, Ojeda and Sánchez (2024, *NeurIPS*, arXiv:2406.06419), whose loss this one follows: log-normal
likelihood of the rates present and cross-entropy of their presence.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sojourn.ops import jump_network
from sojourn.ops.jump_network import MAX_STATES, PanelStatistics

WEIGHTS = Path(__file__).parent / "weights" / "jump_network.npz"
SEED = 1
CHUNK = 64  # processes simulated side by side
REACH = (0.3, 100.0)  # largest rate x horizon, or x LENGTH intervals where the horizon is longer
PER_INTERVAL = 5.0  # upper bound of largest rate x interval
LENGTH = 100  # observations in a path, at most
LONG = 3000  # the same, of the few long paths
PATHS = 6000
RATE_RATIO = 1000.0
PRIOR = {
    "reach": REACH,
    "per_interval": PER_INTERVAL,
    "length": LENGTH,
    "long": LONG,
    "paths": PATHS,
    "rate_ratio": RATE_RATIO,
}


class Pool(NamedTuple):
    """Simulated panels, one a row, and the truth behind them. Rates are per interval of the panel."""

    statistics: PanelStatistics
    num_states: np.ndarray
    rates: np.ndarray
    initial: np.ndarray
    noise: np.ndarray
    paths: np.ndarray


# --- simulator -----------------------------------------------------------------------------------------------


def _log_uniform(rng: np.random.Generator, low: float, high: float, size: Any = None) -> Any:
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def _edges(rng: np.random.Generator, K: int) -> np.ndarray:
    """Which moves exist, ``(K, K)``; every state reaches every other."""
    kind = rng.choice(["dense", "sparse", "chain", "ring", "star"], p=[0.35, 0.35, 0.1, 0.1, 0.1])
    if kind == "dense" or K == 2:
        return ~np.eye(K, dtype=bool)
    if kind == "sparse":
        while True:
            edges = rng.random((K, K)) < rng.uniform(0.25, 0.8)
            if rng.random() < 0.5:
                edges = np.triu(edges, 1) | np.triu(edges, 1).T
            np.fill_diagonal(edges, False)
            if np.linalg.matrix_power(edges + np.eye(K), K).all():
                return edges
    step = (np.arange(K)[None] - np.arange(K)[:, None]) % K
    if kind == "ring":
        edges = (step == 1) | ((step == K - 1) & (rng.random() < 0.7))
    elif kind == "chain":
        edges = abs(np.arange(K)[None] - np.arange(K)[:, None]) == 1
    else:
        edges = (np.arange(K)[None] == 0) ^ (np.arange(K)[:, None] == 0)
    order = rng.permutation(K)
    return edges[np.ix_(order, order)]


def draw_process(rng: np.random.Generator, num_observations: int) -> tuple[int, np.ndarray]:
    """Number of states and rate matrix per horizon, ``(MAX_STATES, MAX_STATES)`` padded, zero diagonal."""
    K = rng.choice(np.arange(2, 9), p=[0.08, 0.12, 0.14, 0.15, 0.19, 0.15, 0.17])
    kind = rng.choice(["beta", "lognormal", "power"], p=[0.5, 0.25, 0.25])
    if kind == "beta":
        size = rng.beta(rng.choice([0.7, 1.0, 2.0]), rng.choice([1.0, 2.0, 4.0]), (K, K))
    elif kind == "lognormal":
        size = np.exp(rng.uniform(0.1, 1.5) * rng.standard_normal((K, K)))
    else:
        size = _log_uniform(rng, 10.0 ** -rng.uniform(0.5, 3.0), 1.0, (K, K))
    edges = _edges(rng, K)
    if K > 2 and rng.random() < 0.06:
        edges[rng.integers(K)] = False  # absorbing
    largest = size[edges].max()
    scale = _log_uniform(rng, REACH[0], min(REACH[1], PER_INTERVAL * num_observations))
    scale *= max(1.0, num_observations / LENGTH)
    rates = np.zeros((MAX_STATES, MAX_STATES))
    rates[:K, :K] = np.where(edges, np.maximum(size / largest, 1.0 / RATE_RATIO), 0.0) * scale
    return int(K), rates


def _generator(rates: np.ndarray) -> np.ndarray:
    return rates - rates.sum(-1)[..., None] * np.eye(rates.shape[-1])


def transition_matrices(rates: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """exp(Q lag) by scaling and squaring; ``rates`` ``(..., K, K)`` against ``lags`` ``(...)``."""
    scaled = _generator(rates) * lags[..., None, None]
    size = np.max(-np.einsum("...ii->...i", scaled))
    squarings = max(0, int(np.ceil(np.log2(max(size, 1e-9) / 0.25))))
    scaled = scaled / 2**squarings
    total = term = np.broadcast_to(np.eye(rates.shape[-1]), scaled.shape)
    for k in range(1, 9):
        term = term @ scaled / k
        total = total + term
    for _ in range(squarings):
        total = total @ total
    return np.clip(total, 0.0, 1.0)


def stationary(rates: np.ndarray) -> np.ndarray:
    """Stationary law of one irreducible process, ``(K,)``."""
    K = rates.shape[-1]
    equations = np.vstack([_generator(rates).T, np.ones(K)])
    law = np.clip(np.linalg.lstsq(equations, np.r_[np.zeros(K), 1.0], rcond=None)[0], 0.0, None)
    return law / law.sum()


def sample_paths(
    rng: np.random.Generator, initial: np.ndarray, transitions: np.ndarray, num_paths: np.ndarray
) -> list[np.ndarray]:
    """Paths of ``B`` processes at once, ``(num_paths[b], L)`` each: ``initial`` ``(B, 8)``, ``transitions`` ``(B, L - 1, 8, 8)``."""
    B, steps, K, _ = transitions.shape
    process = np.repeat(np.arange(B), num_paths)
    paths = np.empty((len(process), steps + 1), np.int16)
    uniform = rng.random((steps + 1, len(process)), dtype=np.float32)

    def invert(cumulative: np.ndarray, row: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Bisection of eight cumulative probabilities: 4 + 2 + 1."""
        cumulative = np.ascontiguousarray(cumulative, np.float32).ravel()
        at = row * K
        for half in (4, 2, 1):
            at += half * (u > cumulative[at + (half - 1)])
        return at - row * K

    def cumulate(p: np.ndarray) -> np.ndarray:
        c = p.cumsum(-1)
        return np.where(c > c[..., -1:] - 1e-7, 2.0, c)  # from the last state of positive probability on

    state = invert(cumulate(initial), process, uniform[0])
    paths[:, 0] = state
    cumulative = cumulate(transitions)
    for step in range(steps):
        state = invert(cumulative[:, step], process * K + state, uniform[step + 1])
        paths[:, step + 1] = state
    return np.split(paths, np.cumsum(num_paths)[:-1])


def simulate_panels(seed: Any, count: int = CHUNK) -> Pool:
    """``count`` random processes and a panel of each."""
    rng = np.random.default_rng(seed)
    long = rng.random() < 0.125
    length = round(_log_uniform(rng, LENGTH, LONG) if long else _log_uniform(rng, 3, LENGTH))
    most = 300_000 // length if long else PATHS
    num_paths = np.floor(_log_uniform(rng, 1, most + 1, count)).astype(int)
    num_states, rates = map(np.array, zip(*(draw_process(rng, length) for _ in range(count)), strict=True))
    initial = np.zeros((count, MAX_STATES))
    times = np.tile(np.linspace(0.0, 1.0, length), (count, 1))
    irregular = rng.random(count) < 0.3
    for b, K in enumerate(num_states):
        absorbing = not rates[b, :K].any(1).all()
        if rng.random() < 0.5 and not absorbing:
            initial[b, :K] = stationary(rates[b, :K, :K])
        else:
            initial[b, :K] = rng.dirichlet(np.ones(K))
        if irregular[b]:
            gaps = rng.gamma(rng.uniform(0.7, 4.0), size=length - 1) + 1e-3
            times[b] = np.r_[0.0, gaps.cumsum() / gaps.sum()]
    regular_steps = transition_matrices(rates, np.full(count, 1.0 / (length - 1)))
    transitions = np.broadcast_to(regular_steps[:, None], (count, length - 1, MAX_STATES, MAX_STATES)).copy()
    if irregular.any():
        transitions[irregular] = transition_matrices(rates[irregular][:, None], np.diff(times[irregular]))
    paths = sample_paths(rng, initial, transitions, num_paths)

    noise = np.where(rng.random(count) < 0.4, 0.0, _log_uniform(rng, 0.002, 0.2, count))
    rows, intervals = [], []
    for b, states in enumerate(paths):
        K = int(num_states[b])
        if noise[b] > 0:
            wrong = rng.random(states.shape, dtype=np.float32) < noise[b]
            states[wrong] = rng.integers(0, K, np.count_nonzero(wrong))
        gap = rng.random()
        if gap < 0.4:  # missing at random, in half of these until the path ends early
            seen = rng.random(states.shape, dtype=np.float32) < rng.uniform(0.3, 0.95)
            if gap < 0.2:
                seen &= np.arange(length) < rng.integers(2, length + 1, (len(states), 1))
            seen[0, :2] = True  # something to learn from
            states = np.where(seen, states, -1)
        statistics, interval = jump_network.panel_statistics(states, times[b])
        rows.append(statistics)
        intervals.append(interval)
    stacked = PanelStatistics(*map(np.stack, zip(*rows, strict=True)))
    per_interval = (rates * np.array(intervals)[:, None, None]).astype(np.float32)
    return Pool(stacked, num_states, per_interval, initial.astype(np.float32), noise, num_paths)


def concatenate(pools: list[Pool]) -> Pool:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pools)


def simulate_pool(seed: int, count: int) -> Pool:
    """``count`` panels in chunks, each with its own seed."""
    pools = []
    for chunk in range(-(-count // CHUNK)):
        pools.append(simulate_panels([seed, chunk]))
        if chunk % 200 == 199:
            print(f"simulated {(chunk + 1) * CHUNK} panels", flush=True)
    return concatenate(pools)


# --- training ------------------------------------------------------------------------------------------------

_GROUPS = ((4, 40), (6, 44), (8, 44))  # states padded to, panels in a batch: small processes are cheap


def _take(pool: Pool, index: np.ndarray, K: int) -> tuple[PanelStatistics, Any, Any, Any]:
    s = PanelStatistics(*(leaf[index] for leaf in pool.statistics))
    s = PanelStatistics(
        s.pairs[..., :K, :K],
        s.lag,
        s.log_transition[..., :K, :K],
        s.moves[:, :K, :K],
        s.exposure[:, :K],
        s.blips[:, :K, :K],
        s.confirmed[:, :K, :K],
        s.first[:, :K],
    )
    return s, pool.num_states[index], pool.rates[index, :K, :K], pool.initial[index, :K]


def loss(params: Any, batch: tuple[PanelStatistics, Any, Any, Any]) -> jax.Array:
    """Mean over the batch. All terms are free of the unit of time."""
    statistics, num_states, rates, initial = batch
    q = jump_network.apply(params, statistics, num_states)
    K = rates.shape[-1]
    states = jnp.arange(K) < num_states[:, None]
    off = states[:, :, None] & states[:, None, :] & ~jnp.eye(K, dtype=bool)
    edge = off & (rates > 0)
    log_rate = jnp.log(jnp.where(edge, rates, 1.0))
    z = (log_rate - q.log_rate_mean) / q.log_rate_sd
    fit = jnp.where(edge, 0.5 * z**2 + jnp.log(q.log_rate_sd), 0.0).sum() / edge.sum()
    presence = jnp.where(off, jax.nn.softplus(q.edge_logit) - q.edge_logit * edge, 0.0).sum() / off.sum()
    # Poisson deviance, least at the posterior mean, in units of the process's mean rate; each panel weighs by what can
    # be known of it, or the least informative panels would rule.
    scale = rates.sum((1, 2), keepdims=True) / off.sum((1, 2), keepdims=True)
    point = (
        jnp.exp(jnp.minimum(q.log_rate, 6.0)) - rates * (q.log_rate - jnp.where(edge, log_rate, 0.0)) - rates
    )
    probability = jax.nn.sigmoid(q.edge_logit)
    variance = probability * (q.log_rate_sd**2 + 1.0 - probability)
    variance = jax.lax.stop_gradient(jnp.where(off, variance, 0.0).sum((1, 2), keepdims=True) + 1e-4)
    point = jnp.where(off, point / (scale * variance), 0.0).sum((1, 2)).mean()
    start = -(jax.nn.log_softmax(q.initial_logit) * initial).sum(-1).mean()
    return fit + presence + 0.3 * point + 0.3 * start


def train(
    pool: Pool,
    *,
    steps: int,
    seed: int = SEED,
    learning_rate: float = 3e-3,
    every: int = 500,
    report: Any = None,
    **shape: int,
) -> dict[str, Any]:
    """AdamW with a cosine schedule. ``report(step, params)`` is called every ``every`` steps and at the end."""
    params = jump_network.initialise(jax.random.key(seed), **shape)
    schedule = optax.warmup_cosine_decay_schedule(1e-4, learning_rate, min(200, steps // 5), steps, 1e-5)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))
    state = optimiser.init(params)
    members = []
    low = 2
    for K, size in _GROUPS:
        members.append((K, size, np.flatnonzero((pool.num_states >= low) & (pool.num_states <= K))))
        low = K + 1
    total = sum(size for _, size in _GROUPS)

    @jax.jit
    def step(params: Any, state: Any, batches: Any) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            sizes = jnp.array([size / total for _, size in _GROUPS])
            return sizes @ jnp.stack([loss(params, batch) for batch in batches])

        value, gradient = jax.value_and_grad(mean_loss)(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng([seed, 1])
    running = None
    for i in range(1, steps + 1):
        batches = [_take(pool, rng.choice(index, size), K) for K, size, index in members]
        params, state, value = step(params, state, batches)
        running = value if running is None else 0.99 * running + 0.01 * value
        if report and (i % every == 0 or i == steps):
            report(i, params, float(running))
    return params


# --- how good it is ------------------------------------------------------------------------------------------


def predict(params: Any, statistics: PanelStatistics, num_states: np.ndarray, size: int = 256) -> Any:
    """The network on many panels, in batches; NumPy."""
    forward = jax.jit(jump_network.apply)
    parts = []
    for start in range(0, len(num_states), size):
        part = PanelStatistics(*(leaf[start : start + size] for leaf in statistics))
        parts.append(jax.tree.map(np.asarray, forward(params, part, num_states[start : start + size])))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def evaluate(params: Any, pool: Pool) -> dict[str, dict[str, float]]:
    """Scores on a held-out pool by number of paths and by noise.

    ``rmse``: median over panels of the root mean square error over moves, in units of the process's mean rate;
    ``relative``: median relative error of the rates present (``counting...``: both of the counting estimate);
    ``coverage``: of the central 90 % intervals; ``brier``: mean square error of the edge probability.
    """
    q = predict(params, pool.statistics, pool.num_states)
    states = np.arange(MAX_STATES) < pool.num_states[:, None]
    off = states[:, :, None] & states[:, None, :] & ~np.eye(MAX_STATES, dtype=bool)
    edge = off & (pool.rates > 0)
    scale = pool.rates.sum((1, 2), keepdims=True) / off.sum((1, 2), keepdims=True)
    point = np.exp(q.log_rate)
    counting = np.stack(
        [jump_network.counting_rates(PanelStatistics(*row)) for row in zip(*pool.statistics, strict=True)]
    )
    z = (np.log(np.where(edge, pool.rates, 1.0)) - q.log_rate_mean) / q.log_rate_sd

    def panel_rmse(rates: np.ndarray) -> np.ndarray:
        return np.sqrt((((rates - pool.rates) / scale) ** 2 * off).sum((1, 2)) / off.sum((1, 2)))

    def relative(rates: np.ndarray) -> np.ndarray:
        return np.abs(rates / np.where(edge, pool.rates, 1.0) - 1.0)

    error, counting_error = panel_rmse(point), panel_rmse(counting)
    probability = 1.0 / (1.0 + np.exp(-q.edge_logit))

    def row(chosen: np.ndarray) -> dict[str, float]:
        o, e = off & chosen[:, None, None], edge & chosen[:, None, None]
        return {
            "panels": int(chosen.sum()),
            "rmse": float(np.median(error[chosen])),
            "counting": float(np.median(counting_error[chosen])),
            "relative": float(np.median(relative(point)[e])),
            "counting_relative": float(np.median(relative(counting)[e])),
            "coverage": float(np.mean(np.abs(z)[e] < 1.6449)),
            "brier": float(np.mean((probability - edge)[o] ** 2)),
        }

    groups = {"all": pool.paths > 0}
    for low, high in ((1, 9), (10, 29), (30, 99), (100, 299), (300, 999), (1000, PATHS)):
        groups[f"paths {low}-{high}"] = (pool.paths >= low) & (pool.paths <= high)
    groups["noise 0"] = pool.noise == 0
    for least, most in ((0.0, 0.02), (0.02, 0.07), (0.07, 0.2)):
        groups[f"noise {least:.2f}-{most:.2f}"] = (pool.noise > least) & (pool.noise <= most)
    return {name: row(chosen) for name, chosen in groups.items() if chosen.any()}


def flashing_ratchet(potential: float = 1.0, switching: float = 1.0, diffusion: float = 1.0) -> np.ndarray:
    """Rates of the discrete flashing ratchet with six states (Berghaus et al. 2024); zero diagonal."""
    rates = np.zeros((6, 6))
    for i in range(3):
        for j in range(3):
            if i != j:
                rates[i, j] = np.exp(-potential * (j - i) / 2)
                rates[i + 3, j + 3] = diffusion
        rates[i, i + 3] = rates[i + 3, i] = switching
    return rates


def evaluate_ratchet(params: Any, seed: int = 0, repeats: int = 16) -> dict[str, dict[str, float]]:
    """RMSE over the 30 rates of the flashing ratchet, 100 regular observations on [0, 2.5], by number of paths."""
    rates = flashing_ratchet()
    padded = np.zeros((1, MAX_STATES, MAX_STATES))
    padded[0, :6, :6] = rates
    times = np.linspace(0.0, 2.5, 100)
    initial = np.zeros((1, MAX_STATES))
    initial[0, :6] = stationary(rates)
    transitions = transition_matrices(padded[:, None], np.diff(times)[None])
    rng = np.random.default_rng(seed)
    off = ~np.eye(6, dtype=bool)
    table = {}
    for num_paths in (30, 100, 300, 1000, 5000):
        panels = [sample_paths(rng, initial, transitions, np.array([num_paths]))[0] for _ in range(repeats)]
        rows, intervals = zip(*(jump_network.panel_statistics(p, times) for p in panels), strict=True)
        q = predict(params, PanelStatistics(*map(np.stack, zip(*rows, strict=True))), np.full(repeats, 6))
        interval = np.array(intervals)[:, None, None]
        point = np.exp(q.log_rate[:, :6, :6]) / interval
        mean = (np.exp(q.log_rate_mean) / (1 + np.exp(-q.edge_logit)))[:, :6, :6] / interval
        counting = np.stack([jump_network.counting_rates(r)[:6, :6] for r in rows]) / interval

        def rmse(x: np.ndarray) -> float:
            return float(np.mean(np.sqrt(np.mean((x - rates)[:, off] ** 2, 1))))

        present = rates > 0
        z = (np.log(rates[present]) - np.log(1 / interval[:, 0]) - q.log_rate_mean[:, :6, :6][:, present]) / (
            q.log_rate_sd[:, :6, :6][:, present]
        )
        table[f"{num_paths} paths"] = {
            "rmse": rmse(point),
            "rmse_edge_times_median": rmse(mean),
            "counting": rmse(counting),
            "coverage": float(np.mean(np.abs(z) < 1.6449)),
        }
    return table


def show(table: dict[str, dict[str, float]]) -> str:
    heads = list(next(iter(table.values())))
    lines = [" " * 18 + "".join(f"{h:>24}" for h in heads)]
    for name, row in table.items():
        lines.append(
            f"{name:18}"
            + "".join(f"{row[h]:24.3f}" if isinstance(row[h], float) else f"{row[h]:24}" for h in heads)
        )
    return "\n".join(lines)


# --- weights on disk -----------------------------------------------------------------------------------------


def save(path: Path, params: Any, facts: dict[str, Any]) -> None:
    """Weights by their path in the tree, float32, and ``facts`` as JSON."""
    leaves: dict[str, Any] = {
        jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v)
        for k, v in jax.tree_util.tree_leaves_with_path(params)
    }
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, facts=np.array(json.dumps(facts)), **leaves)
    temporary.replace(path)


def main(panels: int = 64_000, steps: int = 8_000, path: Path = WEIGHTS) -> None:
    """Simulate, train, score and save."""
    start = time.time()
    held_out = simulate_pool(SEED + 1, 2048)
    pool = simulate_pool(SEED, panels)
    print(f"pool of {panels} panels after {time.time() - start:.0f} s", flush=True)

    def report(step: int, params: Any, running: float) -> None:
        table, ratchet = evaluate(params, held_out), evaluate_ratchet(params)
        print(f"step {step}, {time.time() - start:.0f} s, loss {running:.4f}", flush=True)
        print(json.dumps({k: round(v, 4) for k, v in table["all"].items()}), flush=True)
        print("ratchet", [round(r["rmse"], 4) for r in ratchet.values()], flush=True)
        made = {"step": step, "of": steps, "panels": panels, "seed": SEED}
        save(path, params, {"prior": PRIOR, "made": made, "held_out": table, "ratchet": ratchet})
        if step == steps:
            print(show(table), show(ratchet), sep="\n", flush=True)

    train(pool, steps=steps, report=report)


if __name__ == "__main__":
    main()
