"""Chains of a kernel, advanced block by block: what lets a run be watched, written down, stopped and resumed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import nested_attrgetter
from tqdm.auto import tqdm

from sojourn._contract import trace_model
from sojourn.inference._check_model import latent_sites
from sojourn.inference._checkpoint import Stage, strong
from sojourn.inference._explain import explain_not_finite
from sojourn.inference._initial import compiled_start
from sojourn.inference._keep import Keep
from sojourn.inference._places import Places
from sojourn.inference._stop import stop_signals
from sojourn.ops.running_summary import RunningSummary

__all__ = ["Chains", "Drawn", "Watch"]

_BLOCK_BYTES = 4_000_000  # of draws on the device, and in one block on disk
_IN_MEMORY = 800_000_000  # bytes of draws beyond which they are read from disk when asked for
_CALL_SECONDS = 0.5  # of one call of the compiled program: so long may Ctrl-C have to wait


class Drawn(NamedTuple):
    """What came of a run.

    Attributes:
        draws, stats: by name, leading axes (chain, draw). Draws too many for memory are arrays of xarray that read
            from disk.
        summaries: running summaries by site, leading axes (chain, statistic).
        states: of the chains, to go on from; none where the run was over before this call.
        partial: whether it ended before it was over.
        advice: why, if it was the watch that ended it.
        seconds: spent on it, in all sessions.
    """

    draws: dict[str, Any]
    stats: dict[str, np.ndarray]
    summaries: dict[str, np.ndarray]
    states: list[Any]
    partial: bool
    advice: str | None
    seconds: float


class Watch(Protocol):
    """Looks at a run after every call of its program, and ends one that has gone wrong."""

    def look(
        self, states: Sequence[Any], last_good: Sequence[Any], iteration: int, wrong_since: np.ndarray
    ) -> None:
        """Raises if the chains cannot go on.

        Args:
            states: of all chains at once, or one for each.
            last_good: their last finite positions, likewise.
            iteration: how many have been run.
            wrong_since: by chain the first iteration whose state was not finite, or -1.
        """

    def weigh(self, rows: Mapping[str, np.ndarray]) -> str | None:
        """Takes statistics of new draws, leading axes (chain, draw); why the run had better stop, or ``None``."""


class _Carry(NamedTuple):
    """What goes through the loop; of a program for several devices, how it lies on them."""

    state: Any
    buffer: Any
    """Rows since the last block, and one more that is written over."""
    summary: Any
    slot: Any
    """Rows in the buffer."""
    wrong_since: Any
    """``(chains,)``: the first iteration whose state was not finite, or -1."""
    last_good: Any
    """The last finite position, of kernels that follow gradients."""


class Chains:
    """A kernel, the model's arguments and a number of chains: compiled once, run as often as wanted.

    Args:
        kernel: the kernel.
        args, kwargs: of the model.
        num_warmup: iterations of adaptation that the kernel is told of.
        places: how many chains, and where they run.
        fields: gives the fields of the kernel's state to collect besides its own, once the kernel has seen the model.
        keep: what is kept of the draws.
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        num_warmup: int,
        places: Places,
        fields: Callable[[], Sequence[str]] = tuple,
        keep: Keep | None = None,
    ):
        self.kernel, self.args, self.kwargs = kernel, args, dict(kwargs)
        self.num_warmup, self.places = num_warmup, places
        self.keep = Keep() if keep is None else keep
        self._more_fields = fields
        self.fields: tuple[str, ...] = ()
        self.batched = not places.in_turn and places.num_chains > 1
        self.block = 0
        self._advance: Any = None

    def start(self, key: Array) -> list[Any]:
        """First states: one of all chains side by side, or one each of those that run in turn."""
        keys = key[None] if self.places.num_chains == 1 else jax.random.split(key, self.places.num_chains)
        keys = keys[self.places.own_chains]
        settings = self.num_warmup, None, self.args, self.kwargs
        try:
            with compiled_start():
                if self.batched:
                    return [strong(self.kernel.init(keys, *settings))]
                return [strong(self.kernel.init(one, *settings)) for one in keys]
        except RuntimeError as error:
            if "Cannot find valid initial parameters" not in str(error):
                raise
            raise RuntimeError(
                f"No start was found at which density and gradient are finite: {self._no_start()}"
            ) from None

    def _no_start(self) -> str:
        """Why, at draws from the prior."""
        model: Any = getattr(self.kernel, "model", None)
        for number in range(5 if model is not None else 0):
            with contextlib.suppress(Exception):  # an explanation that fails must not hide what it explains
                trace = trace_model(model, self.args, self.kwargs, key=jax.random.key(number))
                values = {n: s["value"] for n, s in latent_sites(trace).items()}
                said = explain_not_finite(model, self.args, self.kwargs, values)
                if said is not None:
                    return said
        return "check the priors and the scale of the data, or hint a start with infer={'init': value}."

    def compile(self, state: Any, num_samples: int, block: int | None) -> None:
        """Build the program that advances chains from states like this one."""
        if self._advance is not None:
            return
        kernel = self.kernel
        self.fields = tuple(
            dict.fromkeys((kernel.sample_field, *kernel.default_fields, *self._more_fields()))
        )
        row = jax.eval_shape(self._collect, state)
        self.keep.check(row["sites"])
        self._forms = self._split(row)
        lanes = 1 if self.batched else self.places.num_own
        size = lanes * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._forms[0]))
        self.block = block or min(max(_BLOCK_BYTES // max(size, 1), 1), num_samples)
        if self.batched and self.places.mesh is not None:
            chain, inner = PartitionSpec("chain"), PartitionSpec(None, "chain")
            specs = _Carry(chain, inner, None, PartitionSpec(), chain, chain)
            specs = specs._replace(summary={n: _summary_specs(chain, inner) for n in self._forms[1]})
        else:
            specs = None
        self._advance = self.places.compiled(self._steps, specs)

    def _collect(self, state: Any) -> dict[str, Any]:
        first, *rest = self.fields
        values = nested_attrgetter(*self.fields)(state) if rest else (getattr(state, first),)
        constrain = self.kernel.postprocess_fn(self.args, self.kwargs)
        sites = jax.vmap(constrain)(values[0]) if self.batched else constrain(values[0])
        return {"sites": sites, "stats": dict(zip(rest, values[1:], strict=True))}

    def _split(self, row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What goes into the buffer, and what into running summaries."""
        kept, summarised = self.keep.split(row["sites"])
        return {"draws": kept, "stats": row["stats"]}, summarised

    def _steps(self, carry: _Carry, first: Array, last: Array, num_warmup: Array) -> _Carry:
        return lax.fori_loop(first, last, partial(self._step, num_warmup=num_warmup), carry)

    def _step(self, i: Array, carry: _Carry, *, num_warmup: Array) -> _Carry:
        state = self.kernel.sample(carry.state, self.args, self.kwargs)
        take = (i >= num_warmup) & ((i + 1 - num_warmup) % self.keep.thinning == 0)
        forms = jax.eval_shape(lambda s: self._split(self._collect(s)), state)
        row, seen = lax.cond(
            take,
            lambda s: self._split(self._collect(s)),
            lambda s: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), forms),
            state,
        )
        # Rows that are not taken are written as well, and the next one over them: so the buffer stays in place.
        buffer = jax.tree.map(
            lambda rows, new: lax.dynamic_update_index_in_dim(rows, new, carry.slot, 0), carry.buffer, row
        )
        summary = carry.summary
        if summary:
            summary = lax.cond(take, lambda s: self.keep.update(s, seen), lambda s: s, summary)
        wrong = _not_finite(state, self.kernel.sample_field, jnp.shape(carry.wrong_since), self._of_gradients)
        since = jnp.where((carry.wrong_since < 0) & wrong, i, carry.wrong_since)
        good = jax.tree.map(
            lambda old, new: jnp.where(
                wrong.reshape(*wrong.shape, *(1,) * (new.ndim - wrong.ndim)), old, new
            ),
            carry.last_good,
            self._position(state),
        )
        return _Carry(state, buffer, summary, carry.slot + take, since, good)

    def _position(self, state: Any) -> Any:
        return getattr(state, self.kernel.sample_field) if self._of_gradients else ()

    @property
    def _of_gradients(self) -> bool:
        return "potential_energy" in self.fields or bool(getattr(self.kernel, "follows_gradient", False))

    def fresh(self, state: Any) -> _Carry:
        """A carry without draws."""
        row, summarised = self._forms
        lead = (self.places.num_own,) if self.batched else ()
        buffer = jax.tree.map(lambda x: jnp.zeros((self.block + 1, *x.shape), x.dtype), row)
        good = jax.tree.map(jnp.copy, self._position(state))  # not the state's own, which is used up
        summary = self.keep.begin(summarised)
        return _Carry(state, buffer, summary, jnp.int32(0), jnp.full(lead, -1, jnp.int32), good)

    def advance(self, carry: _Carry, first: int, last: int, num_warmup: int) -> _Carry:
        """From iteration ``first`` to before ``last``; uses ``carry`` up."""
        carry = self._advance(carry, np.int32(first), np.int32(last), np.int32(num_warmup))
        jax.block_until_ready(carry.slot)
        return carry

    def run(
        self,
        begin: Callable[[], list[Any]],
        num_samples: int,
        *,
        num_warmup: int,
        stage: Stage | None = None,
        watch: Watch | None = None,
        progress_bar: bool = True,
        phase: str | None = None,
        states_wanted: bool = False,
    ) -> Drawn:
        """Draw, going on from the last state on disk if there is one.

        Args:
            begin: gives the states to start from.
            num_samples: draws to keep of each chain.
            num_warmup: iterations before them.
            stage: where it is written down how far the run has come.
            watch: looks at the run.
            progress_bar: show progress.
            phase: what the bar says in place of "warmup" and "sample".
            states_wanted: give the last states also of a run that was over before.

        Raises:
            KeyboardInterrupt: interrupted before the first draw.
            ValueError: running summaries on disk of more draws than are wanted.
            SystemExit: the system asked the process to end; all there is has been written down.
        """
        over = None if stage is None else stage.newest()
        if over is not None and self.keep.summarise and over["draws"] > num_samples:
            raise ValueError(
                f"The checkpoint holds running summaries of {over['draws']} draws, which cannot be taken back to "
                f"{num_samples}: ask for {over['draws']} or more, or give another folder."
            )
        if stage is not None and not states_wanted and not self.keep.summarise:
            ready = over is not None and over["on_disk"] >= num_samples and stage.whole(over)
            if not self.places.agree(go_on=float(not ready))["go_on"]:
                assert over is not None
                draws, stats = _from_disk(stage, num_samples)
                draws = {n: v if _on_disk(v) else self.places.gather(v) for n, v in draws.items()}
                stats = {n: self.places.gather(v) for n, v in stats.items()}
                return Drawn(draws, stats, {}, [], False, None, over["seconds"])
        return _Run(self, num_samples, num_warmup, stage, watch).go(begin, progress_bar, phase)

    def rows(
        self, carries: Sequence[_Carry], end: int, begin: int = 0, only: str = ""
    ) -> dict[str, np.ndarray]:
        """Rows of the buffer by name, leading axes (chain, draw)."""
        found: dict[str, list[np.ndarray]] = {}
        for carry in carries:
            for group, arrays in (
                ("posterior", carry.buffer["draws"]),
                ("sample_stats", carry.buffer["stats"]),
            ):
                for own, array in arrays.items():
                    name = f"{group}.{own}"
                    if name.startswith(only):
                        part = np.asarray(array[begin:end])
                        found.setdefault(name, []).append(
                            np.moveaxis(part, 0, 1) if self.batched else part[None]
                        )
        return {name: np.concatenate(parts) for name, parts in found.items()}


class _Run:
    """One run, from where it stands to its end."""

    def __init__(
        self, chains: Chains, num_samples: int, num_warmup: int, stage: Stage | None, watch: Watch | None
    ):
        self.chains, self.places, self.stage, self.watch = chains, chains.places, stage, watch
        self.num_samples, self.num_warmup = num_samples, num_warmup
        self.total = num_warmup + num_samples * chains.keep.thinning
        self.count = 0  # iterations
        self.blocks = 0  # full ones, that have left the buffer
        self.before = 0.0  # seconds in earlier sessions
        self.carries: list[_Carry] = []
        self.rows: dict[str, np.ndarray] = {}
        self.advice: str | None = None

    def go(self, begin: Callable[[], list[Any]], progress_bar: bool, phase: str | None) -> Drawn:
        self.started = time.perf_counter()
        self._begin(begin)
        hidden = not progress_bar or self.places.number > 0
        with (
            stop_signals(terminate=self.stage is not None) as stop,
            tqdm(total=self.total, initial=self.count, disable=hidden, desc=phase) as bar,
        ):
            try:
                self._loop(stop, bar, phase)
            except KeyboardInterrupt:
                if any(carry.slot.is_deleted() for carry in self.carries):
                    raise
                stop.asked = True
        if stop.asked and self.count < self.total:
            self._save()
            if stop.ended:
                raise SystemExit(
                    f"Asked to end, at iteration {self.count} of {self.total}: all is written down."
                )
        return self._end()

    def _begin(self, begin: Callable[[], list[Any]]) -> None:
        chains, stage = self.chains, self.stage
        states = begin()
        known = None if stage is None else stage.newest()
        chains.compile(states[0], self.num_samples, None if known is None else known.get("block"))
        self.carries = [chains.fresh(state) for state in states]
        found = None if stage is None else stage.restore(self.carries, at=self._common())
        forms = {name: (x.shape[2:], x.dtype) for name, x in chains.rows(self.carries, 1).items()}
        if stage is not None:
            if found is None:
                stage.clear()
            else:
                meta, carries = found
                self.carries = carries
                self.count, self.blocks, self.before = meta["count"], meta["full_blocks"], meta["seconds"]
            room = max(self.num_samples, self.drawn)
            stage.prepare(forms, self.places.num_own, room, chains.block)
        else:
            shape = self.places.num_own, self.num_samples
            self.rows = {name: np.empty((*shape, *inner), dtype) for name, (inner, dtype) in forms.items()}

    def _common(self) -> int | None:
        """The newest state that all processes have; ``None`` for the newest there is."""
        if self.places.count == 1 or self.stage is None:
            return None
        own = self.stage.counts()[:8]
        every = self.places.exchange(np.array(own + [-1] * (8 - len(own))))
        common = set(every[0].tolist()).intersection(*(set(row.tolist()) for row in every[1:]))
        return max(common - {-1}, default=-1)

    def _loop(self, stop: Any, bar: Any, phase: str | None) -> None:
        pace, calls = 1, 0
        while self.count < self.total and self.advice is None:
            due = self.stage is not None and self.stage.due(self.count)
            wishes = self.places.agree(stop=float(stop.asked), due=float(due), rate=1.0 / pace)
            if wishes["stop"]:
                stop.asked = True
                return
            if wishes["due"]:
                self._save()
            steps = min(max(round(1.0 / wishes["rate"]), 1), self._room())
            before = time.perf_counter()
            self._advance(steps)
            took = time.perf_counter() - before
            calls += 1
            # The first call compiles, and says nothing of what a step takes.
            pace = 2 if calls == 1 else max(min(int(_CALL_SECONDS * steps / max(took, 1e-6)), 8 * pace), 1)
            bar.update(self.count - bar.n)
            if not bar.disable:
                self._describe(bar, phase)
        if self.count == self.total or self.advice is not None:
            self._save()

    def _room(self) -> int:
        """Iterations until the buffer is full, the warm-up over, or the run."""
        if self.count < self.num_warmup:
            return self.num_warmup - self.count
        thinning = self.chains.keep.thinning
        full = self.num_warmup + min((self.blocks + 1) * self.chains.block, self.num_samples) * thinning
        return full - self.count

    def _advance(self, steps: int) -> None:
        first, last = self.count, self.count + steps
        old = self.drawn
        self.carries = self.places.each(
            lambda carry: self.chains.advance(carry, first, last, self.num_warmup), self.carries
        )
        self.count = last
        if self.watch is not None:
            since = np.concatenate([np.ravel(np.asarray(c.wrong_since)) for c in self.carries])
            good = [c.last_good for c in self.carries]
            self.watch.look([c.state for c in self.carries], good, last, since)
            if self.drawn > old:
                begin, end = (
                    old - self.blocks * self.chains.block,
                    self.drawn - self.blocks * self.chains.block,
                )
                rows = self.chains.rows(self.carries, end, begin, only="sample_stats.")
                self.advice = self.watch.weigh({n[len("sample_stats.") :]: v for n, v in rows.items()})
        if self.drawn == (self.blocks + 1) * self.chains.block:
            self._put(self.chains.block)
            self.blocks += 1
            self.carries = [c._replace(slot=jnp.zeros_like(c.slot)) for c in self.carries]
        if last == self.num_warmup and self.stage is not None:
            self._save(stays=True)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    @property
    def drawn(self) -> int:
        """Draws kept so far."""
        return max(self.count - self.num_warmup, 0) // self.chains.keep.thinning

    def _put(self, rows: int) -> None:
        """Write rows of the buffer to where draws go."""
        new = self.chains.rows(self.carries, rows)
        if self.stage is not None:
            self.stage.append(self.blocks, new)
            return
        first = self.blocks * self.chains.block
        for name, values in new.items():
            self.rows[name][:, first : first + rows] = values

    def _save(self, *, stays: bool = False) -> None:
        if self.stage is None:
            return
        rest = self.drawn - self.blocks * self.chains.block
        finished = self.count == self.total or self.advice is not None
        if finished and rest:
            self._put(rest)
        meta = {
            "full_blocks": self.blocks,
            "blocks": self.blocks + (finished and rest > 0),
            "block": self.chains.block,
            "draws": self.drawn,
            "on_disk": min((self.blocks + (finished and rest > 0)) * self.chains.block, self.drawn),
            "seconds": self.seconds,
            "advice": self.advice,
        }
        self.stage.save(self.count, meta, self.carries, stays=stays)

    def _end(self) -> Drawn:
        drawn, places = self.drawn, self.places
        if drawn == 0:
            raise KeyboardInterrupt
        rest = drawn - self.blocks * self.chains.block
        if rest:
            self._put(rest)
        drawn = min(drawn, self.num_samples)  # an earlier call may have asked for more
        if self.stage is not None:
            draws, stats = _from_disk(self.stage, drawn)
        else:
            draws, stats = _parted({name: rows[:, :drawn] for name, rows in self.rows.items()})
        draws = {n: v if _on_disk(v) else places.gather(v) for n, v in draws.items()}
        stats = {n: places.gather(v) for n, v in stats.items()}
        tables = [
            self.chains.keep.table(c.summary, axis=1 if self.chains.batched else 0) for c in self.carries
        ]
        summaries = {
            n: places.gather(tables[0][n] if self.chains.batched else np.stack([t[n] for t in tables]))
            for n in tables[0]
        }
        states = [carry.state for carry in self.carries]
        return Drawn(draws, stats, summaries, states, self.count < self.total, self.advice, self.seconds)

    def _describe(self, bar: Any, phase: str | None) -> None:
        bar.set_description(phase or ("warmup" if self.count < self.num_warmup else "sample"), refresh=False)
        state = self.carries[0].state
        if self.chains.batched and not self.chains.kernel.is_ensemble_kernel:
            state = jax.tree.map(lambda x: x[0], state)
        bar.set_postfix_str(self.chains.kernel.get_diagnostics_str(state), refresh=False)


def _from_disk(stage: Stage, drawn: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if stage.num_bytes(drawn) <= _IN_MEMORY or jax.process_count() > 1:
        return _parted(stage.read(drawn))
    lazily = stage.lazily(drawn)
    _, stats = _parted(stage.read(drawn, only="sample_stats."))
    return {n[len("posterior.") :]: lazily[n] for n in lazily.data_vars if n.startswith("posterior.")}, stats


def _parted(rows: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {"posterior": {}, "sample_stats": {}}
    for name, values in rows.items():
        group, own = name.split(".", 1)
        groups[group][own] = values
    return groups["posterior"], groups["sample_stats"]


def _on_disk(values: Any) -> bool:
    return not isinstance(values, np.ndarray)


def _not_finite(state: Any, field: str, shape: tuple[int, ...], of_gradients: bool) -> Array:
    """By chain, whether a state is one from which no chain comes back."""
    leaves = [getattr(state, name) for name in ("potential_energy", "log_evidence") if hasattr(state, name)]
    if of_gradients:
        leaves += jax.tree.leaves(getattr(state, field))
    wrong = jnp.zeros(shape, bool)
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.shape[: len(shape)] == shape:
            wrong |= ~jnp.isfinite(leaf).all(tuple(range(len(shape), leaf.ndim)))
    return wrong


def _summary_specs(chain: Any, inner: Any) -> RunningSummary:
    whole: Any = PartitionSpec()
    return RunningSummary(whole, chain, chain, inner, inner)
