"""Recorded transitions of Crafter in one small file, which needs no Crafter to be read.

What barely changes from one transition to the next is stored as its change, and of ``occupied`` only what the slots of
the animals do not say: a transition takes some 40 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from sojourn.environments.transitions import State, Transitions

__all__ = ["crafter_transitions", "save_crafter_transitions"]

_CLASSES = ("cow", "zombie")


def crafter_transitions(path: str | PathLike[str], which: str = "train") -> Transitions:
    """One of the sets of transitions in a file that :func:`save_crafter_transitions` wrote.

    The transitions come back as they were recorded (see :class:`sojourn.environments.crafter.Crafter` for the states):
    whole numbers are int32, ``materials`` uint8, ``occupied`` and ``alive`` bool, ``daylight`` float32.

    Args:
        path: of the ``.npz``.
        which: name of the set.

    Raises:
        ValueError: if the file has no such set.

    Example:
        >>> import tempfile, numpy as np
        >>> from sojourn.environments import Transitions
        >>> from sojourn.environments.crafter_records import crafter_transitions, save_crafter_transitions
        >>> beasts = {"alive": np.ones((3, 1), bool), "pos": np.ones((3, 1, 2), np.int32)}
        >>> state = {"pos": np.zeros((3, 2), np.int32), "cow": beasts, "zombie": beasts,
        ...          "occupied": np.zeros((3, 4, 4), bool), "life": np.arange(3)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_crafter_transitions(f"{folder}/a.npz", train=Transitions(state, np.arange(3), state))
        ...     crafter_transitions(f"{folder}/a.npz").states["cow"]["pos"][2].tolist()
        [[1, 1]]
    """
    with np.load(path) as file:
        sets = sorted({name.split("/")[0] for name in file.files})
        if which not in sets:
            raise ValueError(f"{path} has no set {which!r} of transitions: choose from {', '.join(sets)}.")
        stored = {
            name.removeprefix(f"{which}/"): file[name] for name in file.files if name.startswith(f"{which}/")
        }
    kinds = dict(zip(stored["names"].tolist(), stored["dtypes"].tolist(), strict=True))
    states, next_states = {}, {}
    for name, kind in kinds.items():
        if name in ("daylight", "life"):
            states[name], next_states[name] = stored[f"states/{name}"], stored[f"next_states/{name}"]
            continue
        first = np.moveaxis(np.add.accumulate(stored[f"states/{name}"], axis=-1, dtype=np.uint8), -1, 0)
        then = np.moveaxis(stored[f"next_states/{name}"], -1, 0) + first
        if name == "occupied":
            first, then = (np.unpackbits(value, axis=-1, count=stored["height"]) for value in (first, then))
        states[name], next_states[name] = first.astype(kind), then.astype(kind)
    whole = [_nest(state) for state in (states, next_states)]
    for state in whole:
        state["occupied"] ^= _known(state)
    return Transitions(whole[0], stored["actions"].astype(np.int32), whole[1])


def save_crafter_transitions(path: str | PathLike[str], **sets: Transitions) -> None:
    """Write sets of Crafter's transitions, by their names, into one ``.npz``.

    Args:
        path: of the file.
        **sets: as :func:`sojourn.environments.crafter.laboratory` and ``play`` return them. Whole numbers must lie in
            0 to 255 (``life`` may be any).

    Raises:
        ValueError: if a number does not fit.
    """
    arrays: dict[str, Any] = {}
    for which, (states, actions, next_states) in sets.items():
        first, then = _flat(states), _flat(next_states)
        arrays[f"{which}/names"] = np.array(list(first))
        arrays[f"{which}/dtypes"] = np.array([value.dtype.str for value in first.values()])
        arrays[f"{which}/height"] = np.array(first["occupied"].shape[-1])
        arrays[f"{which}/actions"] = np.asarray(actions, np.uint8)
        for name in first:
            now, after = first[name], then[name]
            if name not in ("daylight", "life"):
                if name == "occupied":
                    now = np.packbits(now ^ _known(states), axis=-1)
                    after = np.packbits(after ^ _known(next_states), axis=-1)
                now, after = _bytes(name, now), _bytes(name, after)
                # Time runs along the last axis: runs of equal bytes, which is what compresses.
                after = np.moveaxis(after - now, 0, -1)
                now = np.moveaxis(np.diff(now, axis=0, prepend=np.zeros_like(now[:1])), 0, -1)
            arrays[f"{which}/states/{name}"], arrays[f"{which}/next_states/{name}"] = now, after
    np.savez_compressed(path, **arrays)


def _bytes(name: str, value: np.ndarray) -> np.ndarray:
    if value.min() < 0 or value.max() > 255:
        raise ValueError(
            f"{name!r} has {value.min()} to {value.max()}: only whole numbers from 0 to 255 can be stored."
        )
    return value.astype(np.uint8)


def _known(state: State) -> np.ndarray:
    """(T, W, H): where the player and the animals in slots are."""
    known = np.zeros_like(state["occupied"])
    time = np.arange(len(known))
    known[time, state["pos"][:, 0], state["pos"][:, 1]] = True
    for name in _CLASSES:
        when, slot = np.nonzero(state[name]["alive"])
        x, y = state[name]["pos"][when, slot].T
        known[when, x, y] = True
    return known


def _flat(state: State) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": np.asarray(array) for part, array in value.items()}
        else:
            flat[name] = np.asarray(value)
    return flat


def _nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, part = name.partition(".")
        if part:
            state.setdefault(group, {})[part] = value
        else:
            state[name] = value
    return state
