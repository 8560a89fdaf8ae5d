"""Devices and processes: what of a run each of them gets."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.distributions import Distribution
from numpyro.infer.gibbs import Gibbs
from numpyro.infer.mcmc import MCMCKernel
from numpyro.primitives import Messenger

from sojourn._contract import Site
from sojourn.inference._checkpoint import on_host
from sojourn.inference._particle_gibbs import ParticleGibbs
from sojourn.ops.sharding import spread_over, spreading

__all__ = ["CHAIN_METHODS", "Places", "choose_places", "spread_plate"]

CHAIN_METHODS = ("auto", "parallel", "vectorized", "sequential")


class Places:
    """Where chains run.

    Chains are dealt out to the processes of ``jax.distributed``, and those of a process to its devices, which run
    them side by side without waiting for each other. Or all processes and devices run all chains together, and share
    out the particles, or the elements of a plate, of each.

    Attributes:
        num_chains, own_chains, num_own: chains of the run; those of this process.
        in_turn: one chain at a time, by a program for one chain.
        side_by_side: which several threads then run, as far as there are processors.
        mesh: devices over which the chains of this process are spread.
        together: devices, of all processes, that share one axis, and the name of the axis.
    """

    def __init__(
        self,
        num_chains: int,
        *,
        in_turn: bool = False,
        side_by_side: bool = False,
        devices: list[Any] | None = None,
        together: tuple[str, Mesh] | None = None,
    ):
        self.num_chains, self.in_turn, self.together = num_chains, in_turn, together
        self.side_by_side, self._built = side_by_side, False
        self.number, self.count = jax.process_index(), jax.process_count()
        first, last = 0, num_chains
        if together is None:
            bounds = np.linspace(0, num_chains, self.count + 1).round().astype(int)
            first, last = int(bounds[self.number]), int(bounds[self.number + 1])
        self.own_chains, self.num_own = slice(first, last), last - first
        self.mesh: Mesh | None = None
        devices = devices or []
        share = max((n for n in range(1, len(devices) + 1) if self.num_own % n == 0), default=1)
        if share > 1 and not in_turn:
            self.mesh = Mesh(np.array(devices[:share]), ("chain",))

    @property
    def num_devices(self) -> int:
        """Devices at work, in all processes."""
        if self.together is not None:
            return self.together[1].size
        return self.count * (1 if self.mesh is None else self.mesh.size)

    # ------------------------------------------------------------------------------------------------ programs

    def compiled(self, advance: Callable[..., Any], specs: Any) -> Callable[..., Any]:
        """``advance(carry, first, last, num_warmup)`` as a program on these devices; the carry is used up.

        Args:
            advance: the function.
            specs: of the carry, how it lies over the chain axis.
        """
        if self.mesh is not None:
            scalar = PartitionSpec()
            # Each device has a loop of its own: chains elsewhere that take longer do not hold it up.
            advance = jax.shard_map(
                advance,
                mesh=self.mesh,
                in_specs=(specs, scalar, scalar, scalar),
                out_specs=specs,
                check_vma=False,
            )
            return jax.jit(advance, donate_argnums=0)
        if self.together is None:
            program = jax.jit(advance, donate_argnums=0)
            return _BuiltOnce(program) if self.in_turn else program
        what, mesh = self.together
        whole = NamedSharding(mesh, PartitionSpec())

        @functools.partial(jax.jit, donate_argnums=0, out_shardings=whole)
        def spread(carry: Any, first: Any, last: Any, num_warmup: Any) -> Any:
            with spread_over(what, mesh):
                return advance(carry, first, last, num_warmup)

        def run(carry: Any, *bounds: Any) -> Any:
            return spread(jax.tree.map(lambda leaf: _everywhere(leaf, whole), carry), *bounds)

        return run

    def each(self, advance: Callable[[Any], Any], carries: Sequence[Any]) -> list[Any]:
        """``advance`` of each carry: in threads, JAX lets go of Python's lock while a program runs."""
        workers = min(len(carries), _processors()) if self.side_by_side and self._built else 1
        self._built = True  # the first call compiles, in the thread whose settings hold
        if workers == 1:
            return [advance(carry) for carry in carries]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(advance, carries))

    # ------------------------------------------------------------------------------------------------ processes

    def agree(self, **wishes: float) -> dict[str, float]:
        """The largest of each wish over all processes; where a process is lost, an error.

        Raises:
            RuntimeError: another process has gone.
        """
        if self.count == 1:
            return wishes
        gathered = self.exchange(np.array(list(wishes.values()), np.float64))
        return dict(zip(wishes, gathered.max(0).tolist(), strict=True))

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Chains of all processes, from those of each, along the first axis."""
        if self.count == 1 or self.together is not None:
            return values
        sizes = self.exchange(np.array([len(values)])).ravel()
        padded = np.zeros((int(sizes.max()), *values.shape[1:]), values.dtype)
        padded[: len(values)] = values
        every = self.exchange(padded)
        return np.concatenate([part[:size] for part, size in zip(every, sizes, strict=True)])

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """What each process has, along a new first axis. Bytes travel, so that no type is changed on the way."""
        from jax.experimental import multihost_utils

        flat = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        try:
            gathered = np.asarray(multihost_utils.process_allgather(flat))
        except Exception as error:
            raise RuntimeError(
                f"Process {self.number} of {self.count} cannot reach the others: one of them has ended, or the network "
                "has. Start all of them again; with `checkpoint=` they go on from the last state."
            ) from error
        gathered = gathered.reshape(self.count, -1)
        return np.frombuffer(gathered.tobytes(), values.dtype).reshape(self.count, *values.shape)


class _BuiltOnce:
    """A program that is compiled at the first call, and never again: other threads have other settings of JAX."""

    def __init__(self, program: Any):
        self.program = program
        self.built: Any = None

    def __call__(self, *args: Any) -> Any:
        if self.built is None:
            self.built = self.program.lower(*args).compile()
        return self.built(*args)


def _processors() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _everywhere(leaf: Any, whole: NamedSharding) -> Any:
    """An array that all processes have alike, as one that lies whole on all their devices."""
    if isinstance(leaf, jax.Array) and leaf.sharding == whole:
        return leaf
    value = jax.make_array_from_process_local_data(whole, on_host(leaf))
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return value


def choose_places(
    kernel: MCMCKernel, num_chains: int, chain_method: str, shard: str | None, trace: Mapping[str, Site]
) -> Places:
    """Where the chains of a fit run.

    Args:
        kernel: the kernel.
        num_chains: how many there are.
        chain_method: ``"auto"``, ``"parallel"``, ``"vectorized"`` or ``"sequential"``.
        shard: ``None`` or ``"chains"``, ``"particles"``, or the name of a plate.
        trace: of the model.

    Raises:
        ValueError: unknown names; a kernel without particles; fewer chains than processes.
    """
    if chain_method not in CHAIN_METHODS:
        raise ValueError(
            f"`chain_method` must be {', '.join(map(repr, CHAIN_METHODS))}, not {chain_method!r}."
        )
    # NumPyro's composite of kernels starts one chain at a time.
    alone = isinstance(kernel, Gibbs) and not isinstance(kernel, ParticleGibbs)
    in_turn = num_chains > 1 and (alone or chain_method == "sequential")
    if shard in (None, "chains"):
        if num_chains < jax.process_count():
            raise ValueError(
                f"{num_chains} chains cannot be dealt out to {jax.process_count()} processes: take more chains, or share "
                "out something else with shard='particles' or the name of a plate."
            )
        spread = not in_turn and chain_method != "vectorized" and not kernel.is_ensemble_kernel
        devices = jax.local_devices() if spread else []
        # Chains of one `vmap` share a core, and wait in every step for the slowest of them.
        alone = chain_method == "parallel" and len(devices) == 1 and devices[0].platform == "cpu"
        threads = alone and num_chains > 1
        return Places(num_chains, in_turn=in_turn or threads, side_by_side=threads, devices=devices)
    if shard == "particles":
        size = getattr(kernel, "num_particles", None)
        if size is None:
            raise ValueError(
                f"{type(kernel).__name__} has no particles to share out: leave out shard='particles', or use "
                "engine='particle_gibbs' or 'particle_marginal'."
            )
        return Places(num_chains, in_turn=in_turn, together=(shard, _mesh(shard, size)))
    plates = {f.name: f.size for s in trace.values() for f in s.get("cond_indep_stack", ())}
    if shard not in plates:
        raise ValueError(
            f"`shard` must be 'chains', 'particles' or the name of a plate of the model ({sorted(plates) or 'none'}), "
            f"not {shard!r}."
        )
    return Places(num_chains, in_turn=in_turn, together=(shard, _mesh(shard, plates[shard])))


def _mesh(what: str, size: int) -> Mesh:
    """All devices of all processes, or as many as divide the axis into equal parts."""
    devices = jax.devices()
    share = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    if jax.process_count() > 1 and share != len(devices):
        raise ValueError(
            f"{len(devices)} devices in {jax.process_count()} processes cannot have equal parts of the {size} of "
            f"'{what}': choose a multiple of {len(devices)}."
        )
    return Mesh(np.array(devices[:share]), ("part",))


def spread_plate(model: Callable[..., Any]) -> Callable[..., Any]:
    """The same model; where its run is traced for several devices (:mod:`sojourn.ops.sharding`), sites of the plate
    that was named lie on them in parts, and so does all that follows from them."""

    @functools.wraps(model)
    def spread(*args: Any, **kwargs: Any) -> Any:
        with _SpreadPlate():
            return model(*args, **kwargs)

    return spread


class _SpreadPlate(Messenger):
    """Effect handler: values at sites of a plate are laid out over devices."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["value"] is not None and msg.get("is_observed"):
            msg["value"] = self._laid_out(msg, msg["value"])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and not msg.get("is_observed"):
            msg["value"] = self._laid_out(msg, msg["value"])

    @staticmethod
    def _laid_out(msg: dict[str, Any], value: Any) -> Any:
        for frame in msg.get("cond_indep_stack", ()):
            mesh = spreading(frame.name)
            law = msg["fn"]
            if mesh is None or not isinstance(law, Distribution):
                continue
            axis = frame.dim - law.event_dim
            if np.ndim(value) >= -axis and np.shape(value)[axis] == frame.size:
                spec = [None] * np.ndim(value)
                spec[axis] = mesh.axis_names[0]
                sharding = NamedSharding(mesh, PartitionSpec(*spec))
                return jax.lax.with_sharding_constraint(jnp.asarray(value), sharding)
        return value
