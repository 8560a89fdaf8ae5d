"""The meadow: a small stochastic grid world whose law is known exactly.

An agent walks an 8 by 8 meadow with walls and berry bushes, which two beasts roam. Its seven mechanics are
independent given the state, so that the probability of every next state is a product of a few known rates:
what laws learnt from its transitions predict can be held against the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn._arguments import whole_number
from sojourn.environments.transitions import State, Transitions, check_transitions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BUSHES", "MOVES", "PICK", "REST", "WALLS", "Meadow", "mutants", "picture"]

# drawn once by numpy.random.default_rng(5): 8 cells for the walls, then 10 of the others for the bushes
_MAP = """
*#.*....
*.*..*..
*.#.....
....#..#
......##
*.....#*
#.......
*.*.....
"""
_ROWS = np.array([list(row) for row in _MAP.split()])

WALLS = _ROWS.T == "#"
"""Where nothing can be, ``(8, 8)``, indexed ``[x, y]``; ``y`` runs downwards."""

BUSHES = _ROWS.T == "*"
"""Where berries grow, ``(8, 8)``, indexed ``[x, y]``."""

MOVES = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])
"""Steps ``(x, y)`` of the actions 0 to 3: up, down, left, right."""

PICK, REST = 4, 5

_SIZES = {"pos": len(WALLS), "energy": 10, "health": 10, "berries": 10, "weather": 3}
_FREE = np.argwhere(~WALLS.T)[:, ::-1]  # row by row
_NEAR = 1  # a beast bites at this distance, in steps


def _destinations() -> np.ndarray:
    """Where each move leads from each cell, ``(8, 8, 4, 2)``: a blocked one to the cell itself."""
    cells = np.moveaxis(np.indices(WALLS.shape), 0, -1)[:, :, None]
    there = cells + MOVES
    blocked = np.pad(WALLS, 1, constant_values=True)[there[..., 0] + 1, there[..., 1] + 1]
    return np.where(blocked[..., None], cells, there)


_DESTINATIONS = _destinations()
for _constant in (WALLS, BUSHES, MOVES, _FREE, _DESTINATIONS):
    _constant.setflags(write=False)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).sum(-1)


def _happens(rng: np.random.Generator, probability: float) -> bool:
    return rng.random() < probability


@dataclass(frozen=True)
class Meadow:
    """The meadow as an environment: six actions, four :data:`MOVES`, ``PICK`` and ``REST``.

    A state holds ``pos`` (2,), the agent's cell ``(x, y)``; ``energy``, ``health`` and ``berries`` from 0 to
    9; ``weather`` from 0 to 2; and the class ``beast`` with ``pos`` (2, 2), one row a beast. All of it is
    integer. Every mechanic reads the state before the step and happens, or does not, independently of the
    others:

    ========= =============================================================== ==========================
    mechanic  what it does                                                    happens with probability
    ========= =============================================================== ==========================
    walk      a move leads to the next cell unless it is blocked              ``1 - slip``
    tire      a move, blocked or not, costs 1 energy                          ``tire``
    rest      ``REST`` gives 1 energy                                         1
    pick      ``PICK`` at a bush gives 1 berry                                ``pick``
    seasons   the weather turns to the next of three                          ``weather``
    bite      a beast within one step of the agent costs it 2 health          ``bite``, however many
    roam      a beast sets off in one of four directions, equally likely      ``roam``, each beast
    ========= =============================================================== ==========================

    Numbers stop at 0 and 9. A beast that meets a wall or the edge stays; cells are shared freely.

    Args:
        slip: probability that a move leaves the agent where it is.
        tire: rate of tiring.
        pick: rate of a successful pick.
        weather: rate at which the weather turns.
        roam: rate at which a beast sets off; a blocked one stays, so that it is seen to move less often.
        bite: rate of a bite while a beast is near.

    Raises:
        ValueError: if a rate is not a probability.

    Example:
        >>> import numpy as np
        >>> from sojourn.environments.meadow import Meadow
        >>> meadow, rng = Meadow(slip=0.0), np.random.default_rng(1)
        >>> state = meadow.reset(rng)
        >>> state["pos"], meadow.step(rng, state, 3)["pos"]
        (array([5, 3]), array([6, 3]))
    """

    slip: float = 0.1
    tire: float = 0.2
    pick: float = 0.7
    weather: float = 0.1
    roam: float = 0.5
    bite: float = 0.3

    num_actions = 6

    def __post_init__(self) -> None:
        for rate in fields(self):
            value = getattr(self, rate.name)
            if not (isinstance(value, int | float | np.number) and 0 <= value <= 1):
                raise ValueError(f"{rate.name} of the meadow is {value}: give a probability, from 0 to 1.")

    def reset(self, rng: np.random.Generator) -> State:
        """A first state: cells off the walls, energy 3 to 7, health 3 to 9, up to 3 berries, any weather."""
        return {
            "pos": _FREE[rng.integers(len(_FREE))].copy(),
            "energy": rng.integers(3, 8),
            "health": rng.integers(3, 10),
            "berries": rng.integers(0, 4),
            "weather": rng.integers(0, 3),
            "beast": {"pos": _FREE[rng.integers(len(_FREE), size=2)]},
        }

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        """The state after ``action``. Entries that the meadow does not know are handed on as they are.

        Raises:
            ValueError: if there is no such action.
        """
        _check_actions(np.asarray(action))
        pos, beasts = np.array(state["pos"]), np.array(state["beast"]["pos"])
        after: dict[str, Any] = {**state, "pos": pos}
        if action < len(MOVES):
            if not _happens(rng, self.slip):
                after["pos"] = _DESTINATIONS[pos[0], pos[1], action].copy()
            if _happens(rng, self.tire):
                after["energy"] = np.maximum(state["energy"] - 1, 0)
        elif action == REST:
            after["energy"] = np.minimum(state["energy"] + 1, 9)
        elif BUSHES[pos[0], pos[1]] and _happens(rng, self.pick):
            after["berries"] = np.minimum(state["berries"] + 1, 9)
        if _happens(rng, self.weather):
            after["weather"] = (state["weather"] + 1) % 3
        if (_distance(beasts, pos) <= _NEAR).any() and _happens(rng, self.bite):
            after["health"] = np.maximum(state["health"] - 2, 0)
        for slot, (x, y) in enumerate(beasts):
            if not _happens(rng, 1 - self.roam):
                beasts[slot] = _DESTINATIONS[x, y, rng.integers(len(MOVES))]
        after["beast"] = {**state["beast"], "pos": beasts}
        return after

    def log_prob(self, transitions: Transitions) -> np.ndarray:
        """Exact log p(next state | state, action) of each transition, ``(T,)`` in nats; -inf if impossible.

        Raises:
            ValueError: if a state or an action is not one of the meadow's, such as a hidden attribute (-1).

        Example:
            >>> from sojourn.environments import record
            >>> from sojourn.environments.meadow import Meadow
            >>> seen = record(Meadow(), 1000, seed=99)
            >>> for world in (Meadow(), Meadow(bite=0.9)):
            ...     print(world.log_prob(seen).mean().round(4))
            -3.1124
            -3.1961
        """
        state, action, after = transitions
        action = np.asarray(action)
        _check_actions(action)
        for name, size in _SIZES.items():
            _check_support(name, state[name], size)
        beasts, next_beasts = np.asarray(state["beast"]["pos"]), np.asarray(after["beast"]["pos"])
        _check_support("beast.pos", beasts, _SIZES["pos"])
        pos, next_pos = np.asarray(state["pos"]), np.asarray(after["pos"])
        x, y = pos[..., 0], pos[..., 1]
        moves = action < len(MOVES)
        near = (_distance(beasts, pos[..., None, :]) <= _NEAR).any(-1)

        def event(name: str, when: Any, rate: Any, outcome: Any) -> np.ndarray:
            # an outcome that coincides with "nothing happens" collects both probabilities
            p = np.where(when, rate, 0.0)
            return p * (after[name] == outcome) + (1 - p) * (after[name] == state[name])

        destination = _DESTINATIONS[x, y, np.minimum(action, len(MOVES) - 1)]
        walk = np.where(moves, 1 - self.slip, 0.0)
        change = np.where(moves, -1, np.where(action == REST, 1, 0))
        roams = (next_beasts[..., None, :] == _DESTINATIONS[beasts[..., 0], beasts[..., 1]]).all(-1).mean(-1)
        factors = [
            walk * (next_pos == destination).all(-1) + (1 - walk) * (next_pos == pos).all(-1),
            event(
                "energy",
                change != 0,
                np.where(moves, self.tire, 1.0),
                np.clip(state["energy"] + change, 0, 9),
            ),
            event("berries", (action == PICK) & BUSHES[x, y], self.pick, np.minimum(state["berries"] + 1, 9)),
            event("weather", True, self.weather, (np.asarray(state["weather"]) + 1) % 3),
            event("health", near, self.bite, np.maximum(np.asarray(state["health"]) - 2, 0)),
            (self.roam * roams + (1 - self.roam) * (next_beasts == beasts).all(-1)).prod(-1),
        ]
        with np.errstate(divide="ignore"):
            return np.log(factors).sum(0)


def _check_actions(action: np.ndarray) -> None:
    wrong = (action < 0) | (action >= Meadow.num_actions)
    if wrong.any():
        raise ValueError(f"There is an action {action[wrong].flat[0]}: the meadow has the actions 0 to 5.")


def _check_support(name: str, values: Any, size: int) -> None:
    values = np.asarray(values)
    wrong = (values < 0) | (values >= size)
    if wrong.any():
        raise ValueError(
            f"states[{name!r}] holds {values[wrong].flat[0]}: the probability of a next state needs whole "
            f"states of the meadow, where it lies from 0 to {size - 1} (a hidden attribute is -1)."
        )


def mutants(transitions: Transitions, seed: int = 0) -> list[dict[str, Any]]:
    """Seven next states that look right and are impossible, for a model to tell from the true one.

    Each is the true next state with one thing changed that no mechanic could have done: the agent three or
    more steps away; health, energy or berries off by more than any step allows; the first beast three or more
    steps away; a berry more together with an impossible energy; the weather turned backwards. To change the
    true next state, not the state before as OneLife (Khan et al. 2025) does, makes the comparison one of
    legality: a mutant of the state before is often likelier than the truth, because nothing else in it moved.

    Args:
        transitions: of :class:`Meadow`, T of them.
        seed: of NumPy's generator.

    Returns:
        Seven states, stacked like ``transitions.next_states``.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.meadow import Meadow, mutants
        >>> seen = record(Meadow(), 5, seed=1)
        >>> Meadow().log_prob(seen._replace(next_states=mutants(seen)[0]))
        array([-inf, -inf, -inf, -inf, -inf])
    """
    check_transitions(transitions)
    rng = np.random.default_rng(whole_number(seed, "seed", 0))
    state, true = transitions.states, transitions.next_states

    def far(pos: np.ndarray) -> np.ndarray:
        allowed = _distance(pos[:, None], _FREE) >= 3
        return _FREE[np.where(allowed, rng.random(allowed.shape), -1.0).argmax(-1)]

    def shifted(name: str, low: int, high: int) -> np.ndarray:
        return (state[name] + rng.integers(low, high, np.shape(state[name]))) % 10

    beasts = np.array(true["beast"]["pos"])
    beasts[:, 0] = far(np.asarray(state["beast"]["pos"])[:, 0])
    changes: list[Mapping[str, Any]] = [
        {"pos": far(np.asarray(state["pos"]))},
        {"health": shifted("health", 3, 7)},
        {"energy": shifted("energy", 3, 7)},
        {"berries": shifted("berries", 2, 8)},
        {"beast": {**true["beast"], "pos": beasts}},
        {"berries": np.minimum(state["berries"] + 1, 9), "energy": (state["energy"] + 4) % 10},
        {"weather": (state["weather"] + 2) % 3},
    ]
    return [{**true, **change} for change in changes]


def picture(state: State, ax: Axes | None = None) -> Axes:
    """The meadow in one state: walls, bushes, the agent, the beasts, and the agent's numbers above.

    Args:
        state: one state of :class:`Meadow`, not stacked.
        ax: matplotlib axes to draw on; by default those of a new figure that pyplot does not hold.

    Returns:
        The axes; ``axes.figure.savefig(...)`` keeps the picture.

    Example:
        >>> import numpy as np
        >>> from sojourn.environments.meadow import Meadow, picture
        >>> picture(Meadow().reset(np.random.default_rng(0))).get_title(loc="left").split()
        ['energy', '6', 'health', '6', 'berries', '1', 'weather', '0']
    """
    from matplotlib.figure import Figure

    if ax is None:
        ax = Figure(figsize=(5.4, 4.4), layout="constrained").subplots()
    ground = np.where(WALLS[..., None], (0.36, 0.35, 0.33), (0.91, 0.94, 0.85)).swapaxes(0, 1)
    ax.imshow(ground, interpolation="nearest")
    edges = np.arange(len(WALLS) + 1) - 0.5
    ax.set_xticks(edges, minor=True)
    ax.set_yticks(edges, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0, labelsize=8, colors="0.4")
    ax.set_xticks(range(len(WALLS)))
    ax.set_yticks(range(len(WALLS)))
    ax.spines[:].set_visible(False)
    extent = ax.get_window_extent()
    cell = 72 / ax.figure.dpi * min(extent.width, extent.height) / len(WALLS)  # in points, roughly

    def mark(where: np.ndarray, label: str, marker: str, size: float, color: str, edge: str = "none") -> None:
        ax.plot(*where.T, linestyle="", marker=marker, ms=size * cell, mfc=color, mec=edge, label=label)

    mark(np.empty((0, 2)), "wall", "s", 0.5, "#5c5954")
    mark(np.argwhere(BUSHES), "bush", "o", 0.55, "#8fb565")
    mark(np.asarray(state["pos"])[None], "agent", "o", 0.38, "#2b5c9e", "white")
    # in the corners of a cell, so that those who share it stay visible
    corners = np.array([(-0.27, 0.25), (0.27, 0.25)])
    mark(np.asarray(state["beast"]["pos"]) + corners, "beast", "^", 0.34, "#c2452d", "white")
    numbers = [f"{name} {int(state[name])}" for name in ("energy", "health", "berries", "weather")]
    ax.set_title("\n".join("   ".join(numbers[i : i + 2]) for i in (0, 2)), loc="left", fontsize=9)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelspacing=1.1)
    return ax
