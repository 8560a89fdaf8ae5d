"""Variational inference of fractional SDEs: which guide, how fast, how soon.

    python benchmarks/fractional_sde.py [--quick] [--only noise|guides|torchsde|compile]

Parts:

- ``noise``: largest error of the covariance of unit-variance type II fractional Brownian motion on 200 steps, and the
  ratio of the variance of an increment to the exact one: the scheme in use and the published Markov approximation with
  five terms (Daems, Opper, Crevecoeur and Birdal 2024, *ICLR*; gamma_max = 20, exponential steps).
- ``guides``: steps of Adam a second, and CPU seconds until the evidence bound is within a nat of the exact evidence
  (Kalman filter): the pseudo-observation guide, a free control linear in the state, and the published control network
  (two layers of 1000, of time and state, unit scale). On the published bridge (fractional Ornstein-Uhlenbeck, 200 steps,
  seen once at the end) and on a record of 128 values of rough noise (H = 0.2).
- ``torchsde``: gradient steps a second of the bound of an Ornstein-Uhlenbeck process (H = 1/2) with a control network of
  64 units, 32 paths of 200 Euler steps, beside torchsde's ``sdeint(..., logqp=True)``, if that is installed.
- ``compile``: CPU seconds of a whole ``sj.fit(engine="svi")`` of one optimisation step, double well of 128 steps, H
  unknown, in a fresh interpreter (imports apart).

One machine core is assumed to be otherwise idle; float64.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import time
import warnings
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hidden_markov import Target, _python, table
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.optim import optax_to_numpyro

from sojourn.distributions import FractionalBrownianMotion
from sojourn.inference import PathGuide, PseudoObservationGuide
from sojourn.inference._path_guide import PathBound
from sojourn.models import fractional_sde
from sojourn.ops import fractional

FIRST_FIT = """
import json, time
import jax, numpy as np, numpyro.distributions as dist
jax.config.update("jax_enable_x64", True)
import sojourn as sj
from sojourn.models import fractional_sde
import optax, arviz
n, step = 128, 3.0 / 128
seen = np.arange(5, n, 6)
y = -1.0 + 0.2 * np.random.default_rng(3).normal(size=len(seen))
start = time.process_time()
fit = sj.fit(fractional_sde.sde, y, (seen + 1) * step, drift=lambda x: 2.0 * x * (1.0 - x**2), diffusion=0.7,
             observation_noise=0.15, initial=-1.0, step=step, start=0.0, hurst=dist.Uniform(0.02, 0.98),
             engine=sj.Variational(max_steps=1, block_size=1), num_samples=100, progress_bar=False)
print(json.dumps(time.process_time() - start))
"""


# ------------------------------------------------------------------------------------------------------ the noise


def bench_noise(quick: bool) -> list[Target]:
    print("### Covariance of the noise, 200 steps, K = 5\n")
    n = 200
    times = np.arange(1, n + 1) / n
    rates = fractional.published_rates()
    rows, worst = [], 0.0
    for hurst in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9):
        exact = np.asarray(fractional.covariance(times, hurst, kind="II"))
        ours = np.asarray(fractional.hybrid_covariance(fractional.hybrid_scheme(hurst, 1 / n, n), n))
        weights = fractional.markov_weights(hurst, rates, 1.0, "II")
        published = np.asarray(fractional.markov_covariance(times, rates, weights, "II"))

        def increment(c):
            return np.diag(c)[1:] + np.diag(c)[:-1] - 2 * np.diag(c, 1)

        ratio = [float((increment(c) / increment(exact)).mean()) for c in (ours, published)]
        error = [float(np.abs(c - exact).max()) for c in (ours, published)]
        worst = max(worst, error[0])
        rows.append([f"{hurst}", f"{error[0]:.4f}", f"{error[1]:.4f}", f"{ratio[0]:.3f}", f"{ratio[1]:.3f}"])
    table(["H", "error, hybrid", "error, published", "increment variance, hybrid", "published"], rows)
    return [Target("largest covariance error of the scheme", 0.006, worst, worst, at_least=False)]


# ----------------------------------------------------------------------------------------------------- the guides


def _problems() -> dict[str, tuple[Any, ...]]:
    bridge = {
        "hurst": 0.8,
        "diffusion": 1.0,
        "observation_noise": 0.1,
        "initial": 0.0,
        "start": 0.0,
        "step": 2.0 / 200,
    }
    rough = bridge | {"hurst": 0.2, "step": 1.0 / 128}
    times = np.arange(1, 129) / 128
    record = FractionalBrownianMotion(0.2, times, noise=0.1, kind="II").sample(jax.random.key(0))
    return {
        "bridge, H = 0.8": (np.array([0.0]), np.array([2.0]), 1.0, bridge),
        "record of 128, H = 0.2": (np.asarray(record), times, 0.0, rough),
    }


def _evidence(y, times, rate, settings) -> float:
    seeded = handlers.seed(fractional_sde.linear, 0)
    trace = handlers.trace(seeded).get_trace(y, times, rate=rate, offset=0.0, **settings)
    return float(sum(s["fn"].log_prob(s["value"]).sum() for s in trace.values() if s["type"] == "sample"))


def _clock(y, times, **settings):
    """What the published control network is told of time: its sine and cosine."""
    steps = round(float(times[-1]) / settings["step"])
    t = settings["step"] * jnp.arange(steps)
    return jnp.stack([jnp.sin(t), jnp.cos(t)], -1)


def _race(make, rate_of_learning, budget, y, times, settings, evidence) -> list[str]:
    """Until within a nat of the evidence, or the budget of steps is spent."""
    start = time.process_time()
    guide = make(fractional_sde.sde)
    guide.setup(y, times, **settings)
    loss = PathBound(guide.bound, 8)
    svi = SVI(guide.bound, lambda *a, **k: None, optax_to_numpyro(optax.adam(rate_of_learning)), loss)
    state = jax.jit(lambda k: svi.init(k, y, times, **settings))(jax.random.key(0))

    @jax.jit
    def steps(state):
        return jax.lax.scan(lambda s, _: svi.update(s, y, times, **settings), state, length=25)

    @jax.jit
    def bound(state, key):
        params = svi.get_params(state)
        return -PathBound(guide.bound, 256).loss(key, params, None, None, y, times, **settings)

    gap = evidence - float(bound(state, jax.random.key(1)))
    ready = time.process_time() - start
    reached = ready if gap < 1.0 else None
    taken, done = 0.0, 0
    while done < budget and (reached is None or done < 50):
        begin = time.process_time()
        state, _ = steps(state)
        jax.block_until_ready(state.rng_key)
        if done:
            taken += time.process_time() - begin
        done += 25
        gap = evidence - float(bound(state, jax.random.key(done)))
        if reached is None and gap < 1.0:
            reached = time.process_time() - start
    speed = (done - 25) / taken
    when = "not reached" if reached is None else f"{reached:.1f}"
    return [f"{ready:.1f}", f"{speed:.0f}", when, f"{gap:.2f}", f"{done}"]


def bench_guides(quick: bool) -> list[Target]:
    print("### Guides\n")
    guides = {
        "pseudo-observations": (PseudoObservationGuide, 0.02, 200),
        "free linear control": (partial(PathGuide, control="linear"), 0.02, 500 if quick else 3000),
        "published network": (
            partial(
                PathGuide,
                encoder=lambda x: x[:, :2],
                data=_clock,
                control="network",
                scale="unit",
                width=1000,
                depth=2,
            ),
            1e-3,
            50 if quick else 400,
        ),
    }
    rows = []
    for problem, (y, times, rate, settings) in _problems().items():
        evidence = _evidence(y, times, rate, settings)
        settings = settings | {"drift": lambda x, rate=rate: -rate * x}
        for name, (make, rate_of_learning, budget) in guides.items():
            rows.append([problem, name, *_race(make, rate_of_learning, budget, y, times, settings, evidence)])
    table(
        [
            "problem",
            "guide",
            "ready, CPU s",
            "steps a CPU s",
            "to one nat, CPU s",
            "gap, nats",
            "after steps",
        ],
        rows,
    )
    return []


# ----------------------------------------------------------------------------------------------------- torchsde

TORCH = """
import json, time
import torch, torchsde
torch.manual_seed(0); torch.set_num_threads(1)
class Bridge(torchsde.SDEIto):
    def __init__(self):
        super().__init__(noise_type="diagonal")
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    def f(self, t, y):
        clock = torch.stack([torch.sin(t), torch.cos(t)]).expand(len(y), 2)
        return -y + self.net(torch.cat([clock, y], -1))
    def h(self, t, y):
        return -y
    def g(self, t, y):
        return torch.ones_like(y)
sde = Bridge()
adam = torch.optim.Adam(sde.parameters(), 1e-3)
ts = torch.linspace(0.0, 2.0, 2)
def step():
    adam.zero_grad()
    ys, kl = torchsde.sdeint(sde, torch.zeros(32, 1), ts, dt=2.0 / 200, method="euler", logqp=True)
    loss = (0.5 * (ys[-1] / 0.1) ** 2).mean() + kl.sum(0).mean()
    loss.backward(); adam.step()
step()
start = time.process_time(); wall = time.time()
for _ in range(10):
    step()
print(json.dumps([10 / (time.process_time() - start), 10 / (time.time() - wall)]))
"""


def bench_torchsde(quick: bool) -> list[Target]:
    print("### Beside torchsde, H = 1/2\n")
    y, times, _, settings = _problems()["bridge, H = 0.8"]
    settings = settings | {"hurst": 0.5, "drift": lambda x: -x}
    guide = PathGuide(
        fractional_sde.sde, encoder=lambda x: x[:, :2], data=_clock, control="network", scale="unit", width=64
    )
    guide.setup(y, times, **settings)
    svi = SVI(
        guide.bound, lambda *a, **k: None, optax_to_numpyro(optax.adam(1e-3)), PathBound(guide.bound, 32)
    )
    state = jax.jit(lambda k: svi.init(k, y, times, **settings))(jax.random.key(0))
    step = jax.jit(lambda s: svi.update(s, y, times, **settings)[0])
    state = jax.block_until_ready(step(state))
    taken = []
    for _ in range(10 if quick else 50):
        start = time.process_time()
        state = jax.block_until_ready(step(state))
        taken.append(time.process_time() - start)
    ours = 1 / statistics.median(taken)
    rows = [["sojourn, PathGuide", f"{ours:.0f}"]]
    targets = []
    if importlib.util.find_spec("torchsde"):
        theirs = json.loads(_python("-c", TORCH).stdout.splitlines()[-1])[0]
        rows.append(["torchsde, Euler, logqp", f"{theirs:.1f}"])
        targets = [
            Target("gradient steps a CPU second, sojourn / torchsde", 1.0, ours / theirs, ours / theirs)
        ]
    else:
        print("torchsde is not installed: `pip install torchsde`.\n")
    table(["program", "steps a CPU s"], rows)
    return targets


def bench_compile(quick: bool) -> list[Target]:
    print("### A whole fit of one step, fresh interpreter\n")
    seconds = [json.loads(_python("-c", FIRST_FIT).stdout.splitlines()[-1]) for _ in range(1 if quick else 3)]
    table(
        ["", "CPU s, median", "min"], [["sj.fit", f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}"]]
    )
    return [
        Target(
            'CPU s of fit(engine="svi"), 128 steps',
            15.0,
            statistics.median(seconds),
            min(seconds),
            at_least=False,
        )
    ]


PARTS = {"noise": bench_noise, "guides": bench_guides, "torchsde": bench_torchsde, "compile": bench_compile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="short budgets")
    parser.add_argument("--only", choices=PARTS, help="one part")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("sojourn", "numpyro", "jax"))
    print("## Fractional SDEs\n")
    print(
        f"{datetime.date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores, {packages}.\n"
    )
    targets: list[Target] = []
    for name in [options.only] if options.only else list(PARTS):
        targets += PARTS[name](options.quick)
    print("### Targets\n")
    for target in targets:
        print(target)


if __name__ == "__main__":
    main()
