"""Which axis of a computation is spread over devices: told while it is traced, heeded where the axis is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["gather_particles", "spread_over", "spread_particles", "spreading"]

_SPREAD: ContextVar[tuple[str, Mesh] | None] = ContextVar("spread", default=None)


@contextmanager
def spread_over(what: str, mesh: Mesh) -> Iterator[None]:
    """While something is traced within this context, its axis ``what`` is spread over the one axis of ``mesh``."""
    token = _SPREAD.set((what, mesh))
    try:
        yield
    finally:
        _SPREAD.reset(token)


def spreading(what: str) -> Mesh | None:
    """The devices over which an axis is to be spread, or ``None``."""
    told = _SPREAD.get()
    return told[1] if told is not None and told[0] == what else None


def spread_particles(tree: Any) -> Any:
    """The same arrays, their leading axis (particles) spread over devices if that was asked for."""
    mesh = spreading("particles")
    return tree if mesh is None else _laid_out(tree, mesh, mesh.axis_names[0])


def gather_particles(tree: Any) -> Any:
    """The same arrays, whole on each device, for what must look at all particles at once (resampling)."""
    mesh = spreading("particles")
    return tree if mesh is None else _laid_out(tree, mesh, None)


def _laid_out(tree: Any, mesh: Mesh, first: Any) -> Any:
    def one(leaf: Any) -> Any:
        spec = PartitionSpec(first, *(None,) * (leaf.ndim - 1))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)
