"""``sojourn demo laws``: which rules hold in this world, and what do they say one should do?"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
import numpyro
import pandas as pd

import sojourn as sj
from sojourn.diagnostics import _figures
from sojourn.environments import Meadow, record
from sojourn.environments import meadow as m
from sojourn.models.laws import (
    World,
    crafter_laws,
    crafter_space,
    meadow_laws,
    meadow_space,
    wrong_crafter_laws,
    wrong_meadow_laws,
)

__all__ = ["laws_demo"]

_NUM_CHAINS = 2
_NUM_TRANSITIONS = 1000
_HELD_OUT_SEED = 99
_LIVES = 500  # imagined, and tried, by plan
_IN_CRAFTER = 2000  # transitions
_TRUE = {"walk": 0.9, "tire": 0.2, "rest": 1.0, "pick": 0.7, "seasons": 0.1, "bite": 0.3, "roam": 0.5}
_COLOURS = {
    "real": _figures.BLUE,
    "absent": _figures.WARM,
    "open": "#e0a030",
    "never seen": "#9aa5ad",
}
_START: dict[str, Any] = {
    "pos": np.array([2, 1]),
    "energy": np.array(8),
    "health": np.array(9),
    "berries": np.array(0),
    "weather": np.array(0),
    "beast": {"pos": np.array([[3, 1], [2, 0]])},
}
_LEFT = 2
_PLANS = {
    "stay and pick": [m.PICK] * 12,
    "2 west, then pick": [_LEFT] * 2 + [m.PICK] * 10,
    "3 west, then pick": [_LEFT] * 3 + [m.PICK] * 9,  # one step to spare: the bush is at the edge
    "rest": [m.REST] * 12,
}


def laws_demo(options: argparse.Namespace) -> None:
    """The meadow, whose law is known: rule book, held-out likelihood, plans. With ``crafter``, the real Crafter too."""
    # Chains run in parallel if JAX sees as many devices; it looks when first used.
    numpyro.set_host_device_count(min(_NUM_CHAINS, os.cpu_count() or 1))
    started = time.perf_counter()
    world = World(meadow_space(), meadow_laws() + wrong_meadow_laws())
    seen = world.route(*record(Meadow(), _NUM_TRANSITIONS, seed=options.seed + 1))
    print(
        f"The meadow (simulated): {seen.num_transitions} transitions of random actions are {seen.book.num_rows} situations, "
        f"{seen.rows.num_rows} of them different.\n{len(_TRUE)} of its laws are written down, and "
        f"{len(world.names) - len(_TRUE)} wrong ideas; which are real, the data have to say.",
        flush=True,
    )
    fit = sj.fit(
        world.model,
        seen,
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        num_chains=_NUM_CHAINS,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    book = world.summary(fit, seen)
    book.insert(3, "truth", [_TRUE.get(name, 0.0) for name in book.index])
    print(f"\nNUTS: {fit.attrs['seconds_total']:.0f} s. The rule book:\n{book.round(3).to_string()}")
    print(f"\nCheck:\n{sj.check(fit)}")

    scores, likelihood = _held_out(world, fit)
    print(f"\nNext states of 1000 other transitions:\n{scores.round(4).to_string()}\n{likelihood}")
    plans, gains, answer = _compare(world, fit, book, options.seed)
    print(f"\nPlans, imagined and tried in the meadow:\n{plans.round(3).to_string()}\n{answer}", flush=True)
    danger, caption = _danger(world, fit, options.seed)
    table, text = _crafter(options)
    print(f"\n{text}" if table is None else f"\nCrafter:\n{table.to_string()}\n{text}")

    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "laws.html",
        title="The rules of the meadow, learnt from a thousand transitions",
        sections=[
            sj.Section("Which laws are real?", [_rates(book), book.round(3)]),
            sj.Section("What comes next?", [scores.round(4), likelihood]),
            sj.Section(
                "What should one do?",
                [
                    danger,
                    caption,
                    _outcomes(gains),
                    plans.round(3),
                    answer,
                ],
            ),
            sj.Section("The real Crafter", [text] if table is None else [table, text]),
        ],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")


# ---------------------------------------------------------------------------------------------------- the meadow


def _held_out(world: World, fit) -> tuple[pd.DataFrame, str]:
    """Mean log-probability of next states not learnt from, and the same said in a sentence."""
    new = record(Meadow(), 1000, seed=_HELD_OUT_SEED)
    exact = Meadow().log_prob(new).mean()
    mean = {
        "the meadow itself (exact)": exact,
        "learnt": world.log_prob(fit, *new).mean(),
        "the same laws, every rate one half": world.log_prob(world.supposing(0.5), *new).mean(),
    }
    table = pd.DataFrame({"nats a transition": mean})
    table["below exact"] = exact - table["nats a transition"]
    lost = exact - mean["learnt"]
    return table, f"What was learnt falls short of the exact probabilities by {lost:.3f} nats a transition."


def _reward(states):
    """Berries picked less health lost."""
    berries, health = np.asarray(states["berries"], float), np.asarray(states["health"], float)
    return berries[..., -1] - berries[..., 0] + health[..., -1] - health[..., 0]


def _tried(plan, num: int, seed: int) -> np.ndarray:
    """Rewards of a plan in the meadow itself, ``(num,)``."""
    meadow, rng, last = Meadow(), np.random.default_rng(seed), []
    for _ in range(num):
        state: Any = _START
        for action in plan:
            state = meadow.step(rng, state, action)
        last.append(state)
    start = np.broadcast_to
    ends = {
        name: np.stack([start(_START[name], num), [state[name] for state in last]], 1)
        for name in ("berries", "health")
    }
    return _reward(ends)


def _compare(world: World, fit, book: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, dict, str]:
    """Table of the plans; rewards of each, imagined in two ways and true ones; what follows from them."""
    settings: dict[str, Any] = {"num_paths": _LIVES, "seed": seed}
    plans = world.compare_plans(fit, _START, _PLANS, _reward, **settings)
    plans.columns = ["imagined", "error", "best"]
    real = book.index[book["verdict"] == "real"]
    only_real = world.supposing({str(name): book.loc[name, "rate"] for name in real})
    gains = {}
    for name in plans.index:
        imagined, surely = (
            _reward(world.simulate(beliefs, _START, _PLANS[name], **settings)) for beliefs in (fit, only_real)
        )
        gains[name] = imagined, surely, _tried(_PLANS[name], _LIVES, seed)
    plans["real laws alone"] = [surely.mean() for _, surely, _ in gains.values()]
    plans["tried"] = [true.mean() for *_, true in gains.values()]
    plans["error of tried"] = [true.std(ddof=1) / np.sqrt(_LIVES) for *_, true in gains.values()]
    first, truth = plans.index[0], plans["tried"].idxmax()
    agrees = "is best there, too" if first == truth else f"is not the best: {truth!r} is"
    answer = (
        f"Reward is berries picked less health lost. Imagined, {first!r} promises most, {plans['imagined'].iloc[0]:.2f}; in the "
        f"meadow it brings {plans.loc[first, 'tried']:.2f} ({_LIVES} lives) and {agrees}."
    )
    unsure = book.index[~book["verdict"].isin(["real", "absent"])]
    if len(unsure):
        answer += (
            f" Imagined lives allow for what the data leave open ({', '.join(unsure)}); with the real laws alone, at "
            f"their mean rates, it would be {plans['real laws alone'].iloc[0]:.2f}."
        )
    return plans, gains, answer


def _rates(book: pd.DataFrame):
    figure, (axis,) = _figures.panels(1, height=3.2)
    at = np.arange(len(book))[::-1]
    for verdict, colour in _COLOURS.items():
        mine = (book["verdict"] == verdict).to_numpy()
        if not mine.any():
            continue
        axis.hlines(at[mine], book["low"][mine], book["high"][mine], color=colour, linewidth=5, alpha=0.35)
        axis.plot(book["rate"][mine], at[mine], "o", color=colour, markersize=5, label=verdict)
    axis.plot(
        book["truth"], at, "|", color=_figures.INK, markersize=13, markeredgewidth=1.6, label="the truth"
    )
    axis.set_yticks(at, [f"{name}  ({n})" for name, n in book["activations"].items()])
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("rate: mean and 90 %; in brackets, how often the law's condition held")
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    return figure


def _danger(world: World, fit, seed: int):
    """The start, where beasts will bite, and where two steps west lead; and what the picture shows."""
    settings: dict[str, Any] = {"num_paths": _LIVES, "seed": seed}
    lives = [
        world.simulate(fit, _START, _PLANS[name], **settings)
        for name in ("2 west, then pick", "3 west, then pick")
    ]
    beasts = lives[0]["beast"]["pos"][:, 1:, :, None, None]  # (lives, times, beasts, 1, 1, 2)
    side = len(m.WALLS)
    cell = np.moveaxis(np.indices((side, side)), 0, -1)
    near = (np.abs(beasts - cell).sum(-1) <= 1).any(2).mean((0, 1))
    two, three = ((life["pos"][:, -1, None, None] == cell).all(-1).mean(0) for life in lives)

    figure, axes = _figures.panels(3, columns=3, height=3.75)
    titles = "the start", "a beast is near, %", "the agent, after two steps west, %"
    for axis, title in zip(axes, titles, strict=True):
        m.picture(_START, axis)
        axis.set_title(title, loc="left", fontsize=9.5)
        if axis is not axes[0]:
            axis.legend().remove()
            for marks in axis.lines[-2:]:  # agent and beasts, who have moved on
                marks.remove()
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08), "ncols": 4, "fontsize": 8}
    axes[0].legend(**below, frameon=False, columnspacing=0.8, handletextpad=0.2)
    _heat(axes[1], 100 * near, "OrRd")
    _heat(axes[2], 100 * two, "Blues")
    bush = tuple(_START["pos"] - (2, 0))
    caption = (
        "Left, where the plans begin. Middle, in how many of a hundred steps a beast will be near enough to bite, by "
        f"{_LIVES} imagined lives of twelve steps. Right, where the agent then stands and picks, in how many of a hundred lives: "
        f"a move may fail, and in {100 * two[bush]:.0f} it has reached the bush. With a third step, which the edge stops if it "
        f"is not needed, it has in {100 * three[bush]:.0f}."
    )
    return figure, caption


def _heat(axis, percent: np.ndarray, colours: str) -> None:
    """Colour and number the cells with at least half a per cent."""
    shown = np.where(m.WALLS | (percent < 0.5), np.nan, percent)
    axis.imshow(shown.T, cmap=colours, alpha=0.75, vmin=0, vmax=np.nanmax(shown))
    for x, y in np.argwhere(~np.isnan(shown)):
        colour = "white" if shown[x, y] > 0.6 * np.nanmax(shown) else "0.2"
        axis.text(x, y, f"{shown[x, y]:.0f}", ha="center", va="center", fontsize=8, color=colour)


def _outcomes(gains: dict):
    """Distribution of the reward by plan, imagined and tried."""
    figure, axes = _figures.panels(len(gains), columns=len(gains), height=2.3)
    values = np.concatenate([np.concatenate(some) for some in gains.values()])
    edges = np.arange(values.min(), values.max() + 2) - 0.5
    middle = edges[:-1] + 0.5
    most = 0.0
    for axis, (name, some) in zip(axes, gains.items(), strict=True):
        imagined, surely, tried = (np.histogram(gain, edges)[0] / len(gain) for gain in some)
        axis.bar(middle, imagined, 0.9, color=_figures.LIGHT, label="imagined")
        axis.stairs(surely, edges, color=_figures.BLUE, linewidth=1, label="with real laws alone")
        axis.plot(middle[tried > 0], tried[tried > 0], ".", color=_figures.WARM, label="tried")
        axis.set_title(name, fontsize=9.5)
        axis.set_xlabel("reward")
        most = max(most, *imagined, *surely, *tried)
    for axis in axes:
        axis.set_ylim(0, 1.05 * most)
        axis.tick_params(labelleft=axis is axes[0])
    axes[0].set_ylabel("share of lives")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return figure


# ----------------------------------------------------------------------------------------------- the real Crafter


def _crafter(options: argparse.Namespace) -> tuple[pd.DataFrame | None, str]:
    """Rates of Crafter's laws and of wrong ones, and what they amount to; or how to get Crafter."""
    from sojourn.environments.crafter import laboratory

    try:
        transitions = laboratory(_IN_CRAFTER, seed=options.seed + 1)
    except ImportError as missing:
        return None, f"{missing} With it, the same is asked of the fifty laws of a real game."
    real, wrong = ([law.name for law in laws] for laws in (crafter_laws(), wrong_crafter_laws()))
    world = World(crafter_space(), crafter_laws() + wrong_crafter_laws())
    seen = world.route(*transitions)
    fit = sj.fit(world.model, seen, engine=sj.MaximumAPosteriori(num_restarts=1), progress_bar=False)
    table = world.summary(fit, seen)[["rate", "activations", "verdict"]].round(3)
    verdict = table["verdict"]
    found = int((verdict[real] == "real").sum())
    rejected = int((verdict[wrong] == "absent").sum())
    others = [f"{n} ({v})" for n, v in verdict[real].items() if v != "real"]
    others += [f"{n} ({v})" for n, v in verdict[wrong].items() if v != "absent"]
    text = (
        f"Crafter 1.8.3 (Hafner 2022), {_IN_CRAFTER} transitions of a law laboratory, the posterior mode: of its {len(real)} laws "
        f"{found} come out real, of {len(wrong)} wrong ones {rejected} absent. A law that happened at each of its n "
        "activations has the rate n / (n + 1)."
    )
    if others:
        text += f" The others: {', '.join(others)}."
    return table, f"{text} {sj.check(fit).verdict()}"
