"""Laws of the meadow learnt under each type of stochasticity, naively and with the matching wrapper.

    python benchmarks/stochasticity.py [--steps 1500]

Each row corrupts the environment by a hook of ``sojourn.environments.hooks`` (STORI's types), fits the twelve laws of
the meadow (seven true, five wrong) by their posterior mode, and reports the mean error of the seven true rates, the
largest rate of a wrong law, and what was learnt of the stochasticity itself.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import numpyro

import sojourn as sj
from sojourn.environments import Meadow, hooks, record
from sojourn.environments.meadow import WALLS
from sojourn.models.laws import (
    CyclicDrift,
    RandomAction,
    RandomEvent,
    StickyAction,
    SuddenDrift,
    World,
    law,
    meadow_laws,
    meadow_space,
    one_of,
    when,
    wrong_meadow_laws,
)

TRUE = {"walk": 0.9, "tire": 0.2, "rest": 1.0, "pick": 0.7, "seasons": 0.1, "bite": 0.3, "roam": 0.5}


FREE = np.argwhere(~WALLS).astype(np.int32)


@law
def gust(s, a):
    return when(True, pos=one_of(FREE))


def blow(rng, state, after):
    return {"pos": rng.choice(FREE)}


def fitted(model, seen):
    return sj.fit(model, seen, engine="map", progress_bar=False)


def rates(fit, name="rate"):
    return np.asarray(fit.posterior[name])[0, 0]


def row(name, fit, note="", truth=TRUE, which="rate"):
    found = dict(zip(fit.posterior["law"].values, rates(fit, which), strict=True))
    error = np.mean([abs(found[n] - r) for n, r in truth.items()])
    wrong = max(v for n, v in found.items() if n not in truth)
    print(f"| {name} | {error:.3f} | {wrong:.3f} | {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    numpyro.enable_x64()
    began = time.process_time()
    world = World(meadow_space(), meadow_laws() + wrong_meadow_laws())
    plain = Meadow()
    print("| stochasticity | mean error of true rates | largest wrong rate | learnt |")
    print("|---|---|---|---|")
    seen = record(plain, steps, seed=1)
    row("none", fitted(world.model, world.route(*seen)))

    seen = record(hooks.random_action(plain, 0.3), steps, seed=2)
    row("random action .3, naive", fitted(world.model, world.route(*seen)))
    noisy = world.under(RandomAction(6))
    fit = fitted(noisy.model, noisy.route(*seen))
    row("random action, matched", fit, f"probability {float(rates(fit, 'random_action')):.3f} (.3)")

    seen = record(hooks.sticky_action(plain, 0.25), steps, seed=3)
    row("sticky action .25, naive", fitted(world.model, world.route(*seen)))
    noisy = world.under(StickyAction(6))
    fit = fitted(noisy.model, noisy.route(*seen))
    row("sticky action, matched", fit, f"probability {float(rates(fit, 'sticky_action')):.3f} (.25)")

    seen = record(hooks.random_event(plain, blow, 0.05), steps, seed=4)
    change = list(world.space.attributes).index("pos")
    fit = fitted(world.model, world.route(*seen))
    row("gust .05, naive", fit, f"unexplained change of pos {rates(fit, 'change')[change]:.3f}")
    more = World(world.space, [*world.laws, gust])
    fit = fitted(more.model, more.route(*seen))
    row("gust as one more law", fit, f"its rate {rates(fit)[-1]:.3f} (.05)", TRUE | {"gust": 0.05})
    noisy = world.under(RandomEvent(gust))
    fit = fitted(noisy.model, noisy.route(*seen))
    note = f"its rate {float(rates(fit, 'gust.rate')):.3f} (.05), change of pos {rates(fit, 'change')[change]:.4f}"
    row("gust, matched", fit, note)

    later = TRUE | {"bite": 0.9, "roam": 0.1}
    seen = record(hooks.sudden_drift(plain, Meadow(bite=0.9, roam=0.1), at=901), steps, seed=5)
    row("drift at 901, naive", fitted(world.model, world.route(*seen)))
    noisy = world.under(SuddenDrift())
    series = noisy.route(*seen)
    fit = fitted(noisy.model, series)
    when_ = noisy.moment(fit, series)
    low, high = (int(np.searchsorted(when_.cumsum(), q)) + 2 for q in (0.05, 0.95))
    row("drift, matched, before", fit, f"step {when_.idxmax()} ({low} to {high})")
    row("drift, matched, after", _renamed(fit), "", later, "rate_after")

    seen = record(hooks.cyclic_drift(plain, Meadow(bite=0.9, roam=0.1), every=200), steps, seed=6)
    row("turns of 200, naive", fitted(world.model, world.route(*seen)))
    noisy = world.under(CyclicDrift(range(100, 401)))
    series = noisy.route(*seen)
    fit = fitted(noisy.model, series)
    row("turns, matched, first", fit, f"turns of {noisy.moment(fit, series).idxmax()}")
    row("turns, matched, second", _renamed(fit), "", later, "rate_after")

    seen = hooks.hide(record(plain, 2 * steps, seed=6), 0.5, seed=0)
    blind = {k: _filled(v) for k, v in (("s", seen.states), ("n", seen.next_states))}
    row("half hidden, read as zeros", fitted(world.model, world.route(blind["s"], seen.actions, blind["n"])))
    row("half hidden, matched", fitted(world.model, world.route(*seen)))
    print(f"\n{time.process_time() - began:.0f} CPU s")


def _renamed(fit):
    """The fit with the drifting laws under the name of laws."""
    from types import SimpleNamespace

    posterior = fit.posterior[["rate_after"]].rename({"drifting_law": "law"})
    return SimpleNamespace(posterior=posterior)


def _filled(states):
    return {
        k: _filled(v) if isinstance(v, dict) else np.where(np.asarray(v) < 0, 0, v) for k, v in states.items()
    }


if __name__ == "__main__":
    main()
