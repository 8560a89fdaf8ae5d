"""The real Crafter (Hafner 2022, "Benchmarking the spectrum of agent capabilities") as a world one can put back.

Crafter 1.8.3 is drawn from one random generator, and yet its lives cannot be repeated: it balances its animals in the
order of a Python set, orders its chunks by who came first, and draws the noise of the night from the world's own
generator. :class:`Crafter` takes these three out, so that equal snapshots have equal futures, in any process. No
picture is made, so it is several times faster.

Crafter is asked for when it is used, not when this module is imported: ``pip install "sojourn[crafter]"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from sojourn.environments.transitions import Policy, State, Transitions, stack

__all__ = [
    "ACTIONS",
    "DIRECTIONS",
    "ITEMS",
    "KINDS",
    "MATERIALS",
    "NUM_COWS",
    "NUM_ZOMBIES",
    "UPDATE_RANGE",
    "VITALS",
    "Crafter",
    "laboratory",
    "play",
    "random_policy",
    "situation",
]

MATERIALS = (
    "none", "water", "grass", "stone", "path", "sand", "tree", "lava", "coal", "iron", "diamond", "table", "furnace",
)  # fmt: skip
"""Material ``i`` of a map is ``MATERIALS[i]``; 0 is the outside of the world."""
NONE, WATER, GRASS, STONE, PATH, SAND, TREE, LAVA, COAL, IRON, DIAMOND, TABLE, FURNACE = range(13)

ACTIONS = (
    "noop", "move_left", "move_right", "move_up", "move_down", "do", "sleep",
    "place_stone", "place_table", "place_furnace", "place_plant",
    "make_wood_pickaxe", "make_stone_pickaxe", "make_iron_pickaxe",
    "make_wood_sword", "make_stone_sword", "make_iron_sword",
)  # fmt: skip
"""Action ``i`` is ``ACTIONS[i]``."""
NOOP, MOVE_LEFT, MOVE_RIGHT, MOVE_UP, MOVE_DOWN, DO, SLEEP = range(7)
PLACE_STONE, PLACE_TABLE, PLACE_FURNACE, PLACE_PLANT = range(7, 11)
MAKE_WOOD_PICKAXE, MAKE_STONE_PICKAXE, MAKE_IRON_PICKAXE = range(11, 14)
MAKE_WOOD_SWORD, MAKE_STONE_SWORD, MAKE_IRON_SWORD = range(14, 17)

DIRECTIONS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)], np.int32)
"""(4, 2): the step left, right, up, down; ``facing`` counts them, and so do the moves, from ``MOVE_LEFT``."""
LEFT, RIGHT, UP, DOWN = range(4)

VITALS = ("health", "food", "drink", "energy")
ITEMS = (
    "sapling", "wood", "stone", "coal", "iron", "diamond",
    "wood_pickaxe", "stone_pickaxe", "iron_pickaxe", "wood_sword", "stone_sword", "iron_sword",
)  # fmt: skip
"""What the player can carry, up to nine of each."""

KINDS = ("player", "cow", "zombie", "skeleton", "arrow", "plant", "fence")
"""The first column of a snapshot's ``objects`` counts these."""
PLAYER, COW, ZOMBIE, SKELETON, ARROW, PLANT, FENCE = range(7)

NUM_COWS, NUM_ZOMBIES = 8, 6
UPDATE_RANGE = 18
"""Objects at this distance from the player, |dx| + |dy|, or farther stand still."""
LIFE = 10_000
"""Steps after which a life ends anyhow."""

_SLOTS = {"cow": (COW, NUM_COWS), "zombie": (ZOMBIE, NUM_ZOMBIES)}
_EXTRA = {ZOMBIE: "cooldown", SKELETON: "reload", PLANT: "grown"}
_INVENTORY = VITALS + ITEMS
_COUNTERS = ("_hunger", "_thirst", "_fatigue", "_recover")
_FULL_HEALTH = {COW: 3, ZOMBIE: 5, SKELETON: 3, PLANT: 1}
_SNAPSHOT = (
    "materials", "objects", "inventory", "achievements", "unlocked", "sleeping", "counters", "last_health",
    "daylight", "clock", "chunks", "rng_key", "rng_place", "rng_gauss",
)  # fmt: skip


@cache
def _crafter() -> tuple[Any, Any, Any]:
    """Crafter's environment with the three sources of chance outside its generator removed; its classes; its tables."""
    try:
        import crafter
        from crafter import constants, objects
    except ImportError as error:
        raise ImportError(
            'Crafter is not installed: pip install "sojourn[crafter]" (recorded transitions need no Crafter, see '
            "sojourn.environments.crafter_records)."
        ) from error
    tables = tuple(constants.actions), ("none", *constants.materials), tuple(constants.items)
    if tables != (ACTIONS, MATERIALS, _INVENTORY):
        raise ImportError(
            "this Crafter has other actions, materials or items than Crafter 1.8: install crafter==1.8.3."
        )

    class Environment(crafter.Env):
        def __init__(self, area: tuple[int, int], seed: int) -> None:
            super().__init__(area=area, seed=seed, length=LIFE)
            self._sem_view = lambda: None

        def _obs(self) -> None:
            """No picture, and no noise of the night drawn from the world's generator."""

        def _balance_chunk(self, chunk: Any, objs: Iterable[Any]) -> None:
            # A set of objects iterates in the order of their addresses, which differs from process to process.
            super()._balance_chunk(chunk, sorted(objs, key=lambda thing: tuple(thing.pos)))

        def step(self, action: int) -> Any:
            # Chunks are balanced in the order in which they were first entered; a snapshot knows only which were.
            self.sort_chunks()
            return super().step(action)

        def sort_chunks(self, keys: Iterable[tuple[int, ...]] = ()) -> None:
            chunks = self._world._chunks
            for key in keys:  # a chunk that any object was ever in goes on being balanced
                chunks.setdefault(key, set())
            ordered = sorted(chunks.items())
            chunks.clear()
            chunks.update(ordered)

    names = ("Player", "Cow", "Zombie", "Skeleton", "Arrow", "Plant", "Fence")
    return Environment, tuple(getattr(objects, name) for name in names), constants


def _check_area(area: Sequence[int]) -> tuple[int, int]:
    width, height = (int(side) for side in area)
    if min(width, height) < UPDATE_RANGE:
        raise ValueError(
            f"area is {(width, height)}: Crafter moves what is nearer than {UPDATE_RANGE} tiles, so make both sides at "
            f"least {UPDATE_RANGE}."
        )
    return width, height


class Crafter:
    """Crafter 1.8.3 whose whole state can be taken out and put back; equal snapshots have equal futures.

    The *symbolic state* that :meth:`state`, :meth:`reset` and :meth:`step` return is a dictionary. All numbers are
    int32 unless said otherwise, W and H are the sides of the area.

    ===================== ====================== =========================================================
    ``pos``               (2,)                   x and y of the player
    ``facing``            ()                     0 to 3, a row of :data:`DIRECTIONS`
    ``sleeping``          ()                     0 or 1
    ``target``            ()                     material of the tile the player faces, 0 outside the world
    ``health`` ...        ()                     :data:`VITALS` and :data:`ITEMS` by their names, each 0 to 9
    ``materials``         (W, H), uint8          positions in :data:`MATERIALS`
    ``occupied``          (W, H), bool           where any object is, the player included
    ``daylight``          (), float32            0 (night) to 1
    ``cow``               8 slots                ``alive`` (8,) bool, ``pos`` (8, 2), ``health`` (8,)
    ``zombie``            6 slots                the same with (6,), and ``cooldown`` (6,), 0 to 5
    ===================== ====================== =========================================================

    Only animals nearer than :data:`UPDATE_RANGE` have a slot, the nearest first; empty slots are zero. What is hidden
    from the state is hidden in Crafter too (the counters behind hunger and thirst), or is seen only as ``occupied``
    (skeletons, arrows, plants). A snapshot has everything.

    Args:
        area: width and height, at least 18 each.
        seed: of the worlds: life k of a seed begins in the same world in every process.

    Raises:
        ImportError: if Crafter is not installed.
        ValueError: if the area is too small.

    Example:
        >>> import numpy as np
        >>> from sojourn.environments.crafter import MOVE_LEFT, Crafter
        >>> world = Crafter(seed=7)
        >>> state = world.reset()
        >>> state["pos"].tolist(), int(state["health"])
        ([16, 16], 9)
        >>> now = world.snapshot()
        >>> after, reward, done = world.step(MOVE_LEFT)
        >>> again, _, _ = world.restore(now).step(MOVE_LEFT)
        >>> bool((after["occupied"] == again["occupied"]).all()), done
        (True, False)
    """

    num_actions = len(ACTIONS)

    def __init__(self, area: Sequence[int] = (32, 32), seed: int = 0) -> None:
        self.area = _check_area(area)
        make, self._classes, self._tables = _crafter()
        self._env = make(self.area, int(seed))

    # ------------------------------------------------------------------------------------------ life

    def reset(self) -> dict[str, Any]:
        """Begin a new life in a new world; returns its symbolic state. Takes about half a second."""
        self._env.reset()
        return self.state()

    def step(self, action: int) -> tuple[dict[str, Any], float, bool]:
        """Act; returns the next state of the transition, the reward and whether the life is over.

        The state returned is told in terms of the state before: every animal keeps the slot it had (one that is gone
        has ``alive`` False, one that came has none yet), and ``target`` is the material *now* at the tile faced
        *before* the step, for that is the tile an action changes. ``state()`` afterwards tells it anew.

        The reward is Crafter's: 1 if something was achieved for the first time, and a tenth of the change of health.
        """
        if not (isinstance(action, (int, np.integer)) and 0 <= action < self.num_actions):
            raise ValueError(
                f"action is {action!r}: pass a whole number from 0 to {self.num_actions - 1} (see ACTIONS)."
            )
        self._alive()
        if self._env._player.health <= 0 or self._env._step >= LIFE:
            raise RuntimeError("this life is over: call reset() or restore() before step().")
        slots, faced = self.slots(), self.faced
        _, reward, done, _ = self._env.step(int(action))
        return self.state(slots, faced), float(reward), bool(done)

    def _alive(self) -> None:
        if self._env._player is None:
            raise RuntimeError("no life has begun: call reset() or restore() first.")

    # ------------------------------------------------------------------------------------------ the symbolic state

    @property
    def faced(self) -> tuple[int, int]:
        """x and y of the tile the player faces; it may lie outside."""
        self._alive()
        player = self._env._player
        return int(player.pos[0] + player.facing[0]), int(player.pos[1] + player.facing[1])

    def slots(self) -> dict[str, np.ndarray]:
        """Which animal is in which slot: rows of the snapshot's ``objects``, (8,) for cows, (6,) for zombies; 0 is none."""
        self._alive()
        player, found = self._env._player, {}
        for name, (kind, number) in _SLOTS.items():
            near = sorted(
                (int(player.distance(thing)), row)
                for row, thing in enumerate(self._env._world._objects)
                if type(thing) is self._classes[kind]
            )
            rows = [row for distance, row in near if distance < UPDATE_RANGE][:number]
            found[name] = np.array(rows + [0] * (number - len(rows)), np.int32)
        return found

    def state(
        self, slots: Mapping[str, np.ndarray] | None = None, faced: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """The symbolic state now.

        Args:
            slots: which animal is in which slot, from :meth:`slots` at an earlier time; by default the nearest first.
            faced: x and y of the tile that ``target`` reports; by default the one faced now.
        """
        slots = self.slots() if slots is None else slots
        x, y = self.faced if faced is None else faced
        world, player = self._env._world, self._env._player
        facing = player.facing
        state: dict[str, Any] = {
            "pos": np.array(player.pos, np.int32),
            "facing": np.int32((LEFT, RIGHT)[facing[0] > 0] if facing[0] else (UP, DOWN)[facing[1] > 0]),
            "sleeping": np.int32(player.sleeping),
            "target": np.int32(
                world._mat_map[x, y] if 0 <= x < self.area[0] and 0 <= y < self.area[1] else NONE
            ),
        }
        state |= {name: np.int32(player.inventory[name]) for name in _INVENTORY}
        state |= {
            "materials": world._mat_map.copy(),
            "occupied": world._obj_map > 0,
            "daylight": np.float32(world.daylight),
        }
        for name, rows in slots.items():
            things = [world._objects[row] for row in rows]
            animals: dict[str, np.ndarray] = {"alive": np.array([thing is not None for thing in things])}
            animals["pos"] = np.array([(0, 0) if thing is None else thing.pos for thing in things], np.int32)
            for what in ("health", "cooldown")[: 2 if name == "zombie" else 1]:
                animals[what] = np.array(
                    [0 if thing is None else getattr(thing, what) for thing in things], np.int32
                )
            state[name] = animals
        return state

    # ------------------------------------------------------------------------------------------ all of the state

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything the future depends on, as NumPy arrays (``np.savez(path, **snapshot)`` keeps it).

        ``materials`` (W, H); ``objects`` (N, 7) in the order in which they act, with the columns kind, x, y, health,
        extra (a zombie's cooldown, a skeleton's reload, a plant's age), dx, dy of what it faces, and -1 in the rows of
        those that are gone; ``inventory`` (16,); ``achievements`` and ``unlocked`` (22,); ``sleeping``; ``counters``
        (4,) of hunger, thirst, fatigue, recovery; ``last_health`` (2,); ``daylight``; ``clock`` (3,) of steps, lives
        and seed; ``chunks`` (K, 4); and the generator's state.
        """
        self._alive()
        env, world, player = self._env, self._env._world, self._env._player
        objects = np.full((len(world._objects), 7), -1, np.int32)
        for row, thing in enumerate(world._objects):
            if thing is None:
                continue
            kind = self._classes.index(type(thing))
            extra = getattr(thing, _EXTRA[kind]) if kind in _EXTRA else 0
            objects[row] = (kind, *thing.pos, thing.health, extra, *getattr(thing, "facing", (0, 0)))
        achieved = self._tables.achievements
        _, key, place, has_gauss, gauss = world.random.get_state()
        return {
            "materials": world._mat_map.copy(),
            "objects": objects,
            "inventory": np.array([player.inventory[name] for name in _INVENTORY], np.int32),
            "achievements": np.array([player.achievements[name] for name in achieved], np.int32),
            "unlocked": np.array([name in env._unlocked for name in achieved]),
            "sleeping": np.array(player.sleeping),
            "counters": np.array([getattr(player, name) for name in _COUNTERS], np.float64),
            "last_health": np.array([player._last_health, env._last_health], np.int32),
            "daylight": np.array(world.daylight, np.float64),
            "clock": np.array([env._step, env._episode, env._seed], np.int64),
            "chunks": np.array(sorted(world._chunks), np.int32).reshape(-1, 4),
            "rng_key": key.copy(),
            "rng_place": np.array([place, has_gauss]),
            "rng_gauss": np.array(gauss),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> Crafter:
        """Put a snapshot back (of this world or another of the same area); returns the world itself."""
        missing = [name for name in _SNAPSHOT if name not in snapshot]
        if missing:
            raise ValueError(
                f"the snapshot lacks {', '.join(missing)}: pass what snapshot() or situation() returned."
            )
        shape = np.shape(snapshot["materials"])
        if shape != self.area:
            raise ValueError(
                f"the snapshot's area is {shape}, this world's {self.area}: make Crafter(area={shape})."
            )
        env, world = self._env, self._env._world
        world.reset()
        world._mat_map[:] = snapshot["materials"]
        world.daylight = float(snapshot["daylight"])
        place, has_gauss = (int(number) for number in snapshot["rng_place"])
        key = np.asarray(snapshot["rng_key"], np.uint32)
        world.random.set_state(("MT19937", key, place, has_gauss, float(snapshot["rng_gauss"])))
        env._step, env._episode, env._seed = (int(number) for number in snapshot["clock"])
        env._player = None
        for row in np.asarray(snapshot["objects"])[1:].tolist():
            if row[0] < 0:
                world._objects.append(None)
            else:
                self._put(*row)
        player = env._player
        player.sleeping = bool(snapshot["sleeping"])
        player.inventory = dict(zip(_INVENTORY, np.asarray(snapshot["inventory"]).tolist(), strict=True))
        achieved = self._tables.achievements
        player.achievements = dict(zip(achieved, np.asarray(snapshot["achievements"]).tolist(), strict=True))
        for name, value in zip(_COUNTERS, np.asarray(snapshot["counters"]).tolist(), strict=True):
            setattr(player, name, value)
        player._last_health, env._last_health = (int(number) for number in snapshot["last_health"])
        env._unlocked = {name for name, known in zip(achieved, snapshot["unlocked"], strict=True) if known}
        env.sort_chunks(tuple(chunk) for chunk in np.asarray(snapshot["chunks"]).tolist())
        return self

    def _put(self, kind: int, x: int, y: int, health: int, extra: int, dx: int, dy: int) -> None:
        world, player = self._env._world, self._env._player
        further = {ZOMBIE: (player,), SKELETON: (player,), ARROW: (np.array((dx, dy)),)}.get(kind, ())
        thing = self._classes[kind](world, (x, y), *further)
        world.add(thing)
        thing.health = health
        if kind == PLAYER:
            self._env._player = thing
            thing.facing = (dx, dy)
        if kind in _EXTRA:
            setattr(thing, _EXTRA[kind], extra)


def situation(
    area: Sequence[int] = (32, 32),
    *,
    ground: str = "sand",
    tiles: Mapping[tuple[int, int], str] | None = None,
    things: Sequence[tuple[Any, ...]] = (),
    facing: int = RIGHT,
    seed: int = 0,
    **carries: int,
) -> dict[str, np.ndarray]:
    """A snapshot made by hand: the player in the middle of an even ground, with what you put around it.

    Nothing is born on sand, so a situation on sand has no animals but yours.

    Args:
        area: width and height, at least 18 each.
        ground: one of :data:`MATERIALS`.
        tiles: materials by their place relative to the player, ``{(1, 0): "tree"}`` being to its right.
        things: ``(kind, (dx, dy))`` or ``(kind, (dx, dy), extra)``, in the order in which they act. ``kind`` is
            ``"cow"``, ``"zombie"``, ``"skeleton"`` or ``"plant"``, all unhurt; ``extra`` is the zombie's cooldown, the
            skeleton's reload, the plant's age (ripe above 300).
        facing: a row of :data:`DIRECTIONS`.
        seed: of all chance from here on.
        **carries: :data:`VITALS` (9 each unless told) and :data:`ITEMS` (none unless told), 0 to 9.

    Example:
        >>> from sojourn.environments.crafter import DO, Crafter, situation
        >>> world = Crafter().restore(situation(tiles={(1, 0): "tree"}))
        >>> state, reward, _ = world.step(DO)
        >>> int(state["wood"]), reward
        (1, 1.0)
    """
    width, height = _check_area(area)
    if unknown := [name for name in (ground, *(tiles or {}).values()) if name not in MATERIALS[1:]]:
        raise ValueError(f"there is no material {unknown[0]!r}: choose from {', '.join(MATERIALS[1:])}.")
    if wrong := [name for name, n in carries.items() if name not in _INVENTORY or not 0 <= n <= 9]:
        raise ValueError(
            f"cannot carry {wrong[0]}={carries[wrong[0]]}: carry 0 to 9 of {', '.join(_INVENTORY)}."
        )
    if facing not in range(len(DIRECTIONS)):
        raise ValueError(f"facing is {facing!r}: choose 0 to 3, a row of DIRECTIONS.")
    centre = np.array([width // 2, height // 2])
    materials = np.full((width, height), MATERIALS.index(ground), np.uint8)
    for offset, name in (tiles or {}).items():
        materials[_within(centre, offset, materials.shape)] = MATERIALS.index(name)
    inventory = np.array([carries.get(name, 9 * (name in VITALS)) for name in _INVENTORY], np.int32)
    rows = [(-1,) * 7, (PLAYER, *centre, inventory[0], 0, *DIRECTIONS[facing])]
    for kind, offset, *extra in things:
        number = KINDS.index(kind) if kind in KINDS else -1
        if number not in _FULL_HEALTH:
            raise ValueError(f"cannot put a {kind!r} there: choose cow, zombie, skeleton or plant.")
        where = _within(centre, offset, materials.shape)
        if any(where == (row[1], row[2]) for row in rows[1:]):
            raise ValueError(f"two things at {tuple(offset)}: put the {kind} elsewhere.")
        rows.append((number, *where, _FULL_HEALTH[number], extra[0] if extra else 0, 0, 0))
    _, key, place, has_gauss, gauss = np.random.RandomState(seed).get_state()
    return {
        "materials": materials,
        "objects": np.array(rows, np.int32),
        "inventory": inventory,
        "achievements": np.zeros(22, np.int32),
        "unlocked": np.zeros(22, bool),
        "sleeping": np.array(False),
        "counters": np.zeros(4),
        "last_health": np.repeat(inventory[0], 2),
        "daylight": np.array(1 - np.cos(0.3 * np.pi) ** 3),
        "clock": np.array([0, 1, seed], np.int64),
        "chunks": np.zeros((0, 4), np.int32),
        "rng_key": np.asarray(key),
        "rng_place": np.array([place, has_gauss]),
        "rng_gauss": np.array(gauss),
    }


def _within(centre: np.ndarray, offset: Sequence[int], shape: tuple[int, ...]) -> tuple[int, int]:
    x, y = (centre + np.asarray(offset)).tolist()
    if not (0 <= x < shape[0] and 0 <= y < shape[1]):
        raise ValueError(f"{tuple(offset)} from the player is outside the area {tuple(shape)}: come nearer.")
    return x, y


# ------------------------------------------------------------------------------------------------- recording


def random_policy(rng: np.random.Generator, state: State) -> int:
    """Any action, but ``do`` more often: it is 17 in 40 of all."""
    return int(rng.integers(len(ACTIONS))) if rng.random() < 0.6 else DO


def play(
    num_transitions: int, seed: int = 0, *, policy: Policy | None = None, area: Sequence[int] = (32, 32)
) -> Transitions:
    """Transitions of lives one after another, each begun in a new world when the last one is over.

    Args:
        num_transitions: how many to record.
        seed: of worlds and policy. Equal seeds give equal transitions.
        policy: picks an action from the state; :func:`random_policy` by default.
        area: width and height, at least 18 each.

    Returns:
        Transitions whose states are those of :class:`Crafter` and ``life`` (), which counts lives from 0. In
        ``next_states``, animals keep their slots and ``target`` is that of the tile faced before (see
        :meth:`Crafter.step`).

    Example:
        >>> from sojourn.environments.crafter import play
        >>> seen = play(20, seed=3)
        >>> seen.num_transitions, seen.states["cow"]["pos"].shape, int(seen.states["life"][-1])
        (20, (20, 8, 2), 0)
    """
    return _record(num_transitions, seed, policy, area, every=None)


def laboratory(
    num_transitions: int,
    seed: int = 0,
    *,
    every: int = 15,
    policy: Policy | None = None,
    area: Sequence[int] = (32, 32),
) -> Transitions:
    """Transitions from a world that is dealt anew every few steps, so that rare laws are seen often.

    Every deal keeps the player's place and gives it a random inventory, half of the tiles around it (7 by 7) random
    materials, sometimes a table and a furnace beside it, a cow or a zombie within reach, and sometimes sleep. In
    between Crafter goes its own way. One life of random play shows only walking, sleeping and thirst; what a law does
    is learnt from how often its precondition held, not from how long one played.

    Args:
        num_transitions: how many to record.
        seed: of worlds, deals and policy. Equal seeds give equal transitions.
        every: steps between deals.
        policy: picks an action from the state; :func:`random_policy` by default.
        area: width and height, at least 18 each.

    Returns:
        As :func:`play`; ``life`` counts stretches without a deal.

    Example:
        >>> from sojourn.environments.crafter import laboratory
        >>> seen = laboratory(30, seed=3, every=10)
        >>> seen.states["materials"].shape, seen.states["life"][[0, 9, 10, 29]].tolist()
        ((30, 32, 32), [0, 0, 1, 2])
    """
    if every < 1:
        raise ValueError(f"every is {every}: deal anew after at least one step.")
    return _record(num_transitions, seed, policy, area, every=every)


def _record(
    num_transitions: int, seed: int, policy: Policy | None, area: Sequence[int], every: int | None
) -> Transitions:
    if num_transitions < 1:
        raise ValueError(f"num_transitions is {num_transitions}: record at least one transition.")
    policy = random_policy if policy is None else policy
    rng, world = np.random.default_rng(seed), Crafter(area, seed)
    world.reset()
    states, actions, next_states, life, done = [], [], [], 0, False
    for number in range(num_transitions):
        if done:
            world.reset()
        if every is not None and number % every == 0:
            world.restore(_deal(world.snapshot(), rng))
        life += bool(number) and (done or (every is not None and number % every == 0))
        state = world.state() | {"life": np.int32(life)}
        action = policy(rng, state)
        after, _, done = world.step(action)
        states.append(state)
        actions.append(action)
        next_states.append(after | {"life": np.int32(life)})
    return Transitions(stack(states), np.array(actions, np.int32), stack(next_states))


_AROUND = np.array([(dx, dy) for dx in range(-3, 4) for dy in range(-3, 4) if dx or dy])
_BESIDE = _AROUND[np.abs(_AROUND).max(1) == 1]
_WITHIN_REACH = _AROUND[np.abs(_AROUND).sum(1) <= 2]
_DEALT = np.array(
    [GRASS, GRASS, GRASS, TREE, WATER, STONE, COAL, IRON, DIAMOND, SAND, PATH, TABLE, FURNACE], np.uint8
)

_DEALT_IN_FRONT = np.array([GRASS, TREE, WATER, STONE, COAL, IRON, DIAMOND, SAND], np.uint8)


def _deal(snapshot: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A snapshot with the player where it was and everything within its reach dealt anew."""
    materials, objects = snapshot["materials"].copy(), snapshot["objects"]
    taken = {(x, y) for kind, x, y, *_ in objects.tolist() if kind >= 0}
    pos, facing = objects[1, 1:3], objects[1, 5:7]

    def empty(offsets: np.ndarray) -> list[tuple[int, int]]:
        places = (pos + offsets).tolist()
        return [
            (x, y)
            for x, y in places
            if (x, y) not in taken and 0 <= x < len(materials) and 0 <= y < materials.shape[1]
        ]

    for where in empty(_AROUND[rng.random(len(_AROUND)) < 0.5]):
        materials[where] = rng.choice(_DEALT)
    for where in empty(facing[None]):
        materials[where] = rng.choice(_DEALT_IN_FRONT)
    beside = empty(_BESIDE)
    if rng.random() < 0.3 and len(beside) > 1:
        for where, material in zip(rng.permutation(beside)[:2], (TABLE, FURNACE), strict=True):
            materials[tuple(where)] = material
    born = []
    for kind, share in ((COW, 0.6), (ZOMBIE, 0.35)):
        in_front = rng.random() < 0.4
        places = empty(facing[None] if in_front else _WITHIN_REACH)
        if rng.random() < share and places:
            where = places[rng.integers(len(places))]
            taken.add(where)
            materials[where] = GRASS
            born.append((kind, *where, _FULL_HEALTH[kind], 0, 0, 0))
    vitals, stock, tools = rng.integers(0, 10, 4), rng.integers(0, 9, 6), rng.integers(0, 2, 6)
    vitals[0] = rng.integers(3, 10)  # at 1, a bite of 2 would look like a loss of 1
    sleeping = rng.random() < 0.1
    if sleeping and rng.random() < 0.5:
        vitals[3] = 9  # about to wake up
    return {
        **snapshot,
        "materials": materials,
        "objects": np.array([*objects.tolist(), *born], np.int32),
        "inventory": np.concatenate([vitals, stock, tools]).astype(np.int32),
        "sleeping": np.array(sleeping),
        "last_health": np.repeat(vitals[0], 2).astype(np.int32),
    }
