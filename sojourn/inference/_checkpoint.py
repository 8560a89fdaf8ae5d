"""State and draws of a long run on disk, so that the same call goes on where it was cut off."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Checkpoint",
    "Damaged",
    "Stage",
    "Store",
    "as_checkpoint",
    "differences",
    "on_host",
    "refilled",
    "strong",
]

_KEPT = 3  # states that stay on disk, besides those marked to stay


class Damaged(Exception):
    """A file of a checkpoint that is not what was written."""


class Checkpoint:
    """Where, and how often, ``sj.fit`` writes down where it stands: ``sj.fit(..., checkpoint=sj.Checkpoint("run1"))``.

    ``checkpoint="run1"`` is the same with the defaults. The same call again goes on from the last state that is whole,
    in warm-up too, and its result is bit for bit that of a run that was never stopped (on the same machine, with the
    same versions of the libraries). A call with another model, other data or other settings is refused with a sentence
    that says what differs; more ``num_samples`` than before go on where the old ones end, fewer take the
    first of them.

    The folder holds, for each stage of the fit, the last states (NumPy archives whose names carry their digest,
    written aside and renamed) and the draws in blocks (a Zarr store with a checksum on each block, which
    ``xarray.open_zarr`` reads while the run goes on). A damaged file is noticed, said, and the state before it used.

    Args:
        path: the folder; made if need be.
        every: seconds between two states.
        every_draws: iterations between two states, where these come first.

    Raises:
        ValueError: a path that is a file, a folder that holds something else, an interval that is not positive.

    Example:
        >>> import tempfile, numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        ...     numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = sj.Checkpoint(f"{folder}/run1", every=60)
        ...     settings = dict(num_chains=2, num_warmup=100, progress_bar=False, checkpoint=run)
        ...     first = sj.fit(coin, np.array([1, 0, 1, 1]), num_samples=50, **settings)
        ...     more = sj.fit(coin, np.array([1, 0, 1, 1]), num_samples=80, **settings)
        >>> bool((more.posterior["p"].values[:, :50] == first.posterior["p"].values).all())
        True
    """

    def __init__(self, path: str | os.PathLike[str], *, every: float = 120.0, every_draws: int | None = None):
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ValueError(f"`checkpoint` is the path of a folder or an sj.Checkpoint, not {path!r}.")
        self.path = Path(path)
        if isinstance(every, bool) or not isinstance(every, int | float) or not every >= 0:
            raise ValueError(f"`every` of Checkpoint is a time in seconds, not negative, not {every!r}.")
        if every_draws is not None and (
            isinstance(every_draws, bool) or not isinstance(every_draws, int) or every_draws < 1
        ):
            raise ValueError(
                f"`every_draws` of Checkpoint is a positive whole number or None, not {every_draws!r}."
            )
        self.every = float(every)
        self.every_draws = every_draws

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, every={self.every:g}, every_draws={self.every_draws})"


def as_checkpoint(checkpoint: Any) -> Checkpoint | None:
    return checkpoint if checkpoint is None or isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)


class Store:
    """The folder of one process of one run, held by it alone.

    Args:
        settings: where and how often.
        fingerprint: what the run is: text by subject, compared with what is on disk.
        part: number of this process and how many there are.
    """

    def __init__(self, settings: Checkpoint, fingerprint: Mapping[str, str], part: tuple[int, int] = (0, 1)):
        self.settings = settings
        self.fingerprint = dict(fingerprint)
        root = settings.path
        if root.exists() and not root.is_dir():
            raise ValueError(f"`checkpoint` must be a folder, and '{root}' is a file.")
        number, count = part
        known = "process-*-of-*"
        if root.exists() and any(root.iterdir()) and not any(root.glob(known)):
            raise ValueError(
                f"The folder '{root}' holds something that is not a checkpoint: give another one, or empty it."
            )
        others = {path.name for path in root.glob(known) if not path.name.endswith(f"-of-{count}")}
        if others:
            was = others.pop().rsplit("-", 1)[1]
            raise ValueError(
                f"The checkpoint '{root}' was written by {was} process{'es' * (was != '1')}, and this run has {count}: "
                f"go on with {was}, or give another folder."
            )
        self.folder = root / f"process-{number}-of-{count}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._hold()
        try:
            self._compare()
        except BaseException:
            self.close()
            raise

    def _hold(self) -> Any:
        """A lock that the system lets go of when the process ends, however it ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            return None
        lock = open(self.folder / "lock", "a+")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(
                f"Another run is writing to the checkpoint '{self.settings.path}': wait for it, stop it, or give "
                "another folder."
            ) from None
        except OSError:  # a file system without locks
            pass
        return lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _compare(self) -> None:
        newest: dict[str, Any] | None = None
        for states in self.folder.glob("*/state-*.npz"):
            with suppress(Damaged):
                meta = _read(states)[0]
                if newest is None or meta["written"] > newest["written"]:
                    newest = meta
        if newest is None:
            return
        changed = differences(newest["fingerprint"], self.fingerprint)
        if changed:
            raise ValueError(
                f"The checkpoint '{self.settings.path}' is of another run: {changed} Restore what it was, or give "
                "another folder."
            )
        versions = [
            f"{name[8:]} {was} then, {self.fingerprint.get(name)} now"
            for name, was in newest["fingerprint"].items()
            if name.startswith("version ") and was != self.fingerprint.get(name)
        ]
        if versions:
            warnings.warn(
                f"The checkpoint '{self.settings.path}' was written by other versions ({'; '.join(versions)}): the run "
                "goes on, and will not be bit for bit that of one never stopped.",
                stacklevel=4,
            )

    def stage(self, name: str) -> Stage:
        return Stage(self, name)


class Stage:
    """One stage of a run: states and draws in a folder of their own."""

    def __init__(self, store: Store, name: str):
        self.store = store
        self.folder = store.folder / name
        self.folder.mkdir(exist_ok=True)
        self._arrays: dict[str, Any] = {}
        self._block = 1
        self._last = time.monotonic()
        self._last_count = 0

    # ------------------------------------------------------------------------------------------------ states

    def due(self, count: int) -> bool:
        """Whether it is time for another state, at iteration ``count``."""
        settings = self.store.settings
        draws = settings.every_draws
        return time.monotonic() - self._last >= settings.every or (
            draws is not None and count - self._last_count >= draws
        )

    def save(self, count: int, meta: Mapping[str, Any], tree: Any, *, stays: bool = False) -> None:
        """Write a state aside and rename it; forget older ones.

        Args:
            count: number of the state, growing.
            meta: what JSON can hold.
            tree: arrays.
            stays: never forget this one.
        """
        meta = {
            **meta,
            "count": count,
            "stays": stays,
            "written": time.time(),
            "fingerprint": self.store.fingerprint,
        }
        content = io.BytesIO()
        leaves: dict[str, Any] = {f"leaf_{i}": on_host(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
        np.savez(content, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **leaves)
        data = content.getvalue()
        # The name orders states and lets their content be checked.
        name = f"state-{count:012d}-{'stays' if stays else 'rolls'}-{_digest(data)}.npz"
        aside = self.folder / "state.partial"
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.folder / name)
        for old in self._states()[_KEPT:]:
            if "-stays-" not in old.name or old.name[:18] == name[:18]:
                old.unlink(missing_ok=True)
        self._last, self._last_count = time.monotonic(), count

    def _states(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("state-*.npz"), reverse=True)

    def counts(self) -> list[int]:
        """Of the states that can be read, newest first."""
        found = []
        for path in self._states():
            with suppress(Damaged):
                found.append(int(_read(path)[0]["count"]))
        return found

    def restore(self, like: Any = None, *, at: int | None = None) -> tuple[dict[str, Any], Any] | None:
        """The newest state that is whole, with all draws that it counts on.

        Args:
            like: arrays of the structure that was saved, or ``None`` for a list of them.
            at: no state but that of this number.

        Returns:
            What was saved with it, and the arrays; or ``None``.
        """
        states = self._states()
        for path in states:
            try:
                meta, leaves = _read(path)
                if at is not None and meta["count"] != at:
                    continue
                tree = leaves if like is None else refilled(like, leaves)
                if meta.get("blocks", 0):
                    self._check_blocks(int(meta["blocks"]))
            except Damaged as damage:
                warnings.warn(
                    f"The checkpoint '{self.store.settings.path}' is damaged: {damage} Going on from the state before, "
                    "or from the start.",
                    stacklevel=3,
                )
                path.unlink(missing_ok=True)
                continue
            self._last_count = meta["count"]
            return meta, tree
        return None

    def newest(self) -> dict[str, Any] | None:
        """What was saved with the newest state that can be read."""
        for path in self._states():
            with suppress(Damaged):
                return _read(path)[0]
        return None

    def whole(self, meta: Mapping[str, Any]) -> bool:
        """Whether all draws that a state counts on are there."""
        try:
            self._check_blocks(int(meta["blocks"]))
        except Damaged:
            return False
        self._open()
        return True

    def clear(self) -> None:
        """Forget states and draws."""
        import shutil

        self._arrays = {}
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    # ------------------------------------------------------------------------------------------------ draws

    def prepare(
        self, shapes: Mapping[str, tuple[tuple[int, ...], Any]], chains: int, draws: int, block: int
    ) -> None:
        """Make room for ``draws`` draws, or for more than before; what is there stays.

        Args:
            shapes: by variable, shape of one draw and type.
            block: draws in one block.
        """
        import zarr  # a second, and only runs that are written down need it
        from zarr.codecs import Crc32cCodec

        self._block = block
        forms = {
            _escaped(name): ((chains, draws, *shape), (chains, block, *(max(n, 1) for n in shape)), dtype)
            for name, (shape, dtype) in shapes.items()
        }
        with suppress(Exception):  # absent, torn or of another form: then nothing in it can be counted on
            # What an array leaves out (blocks of nothing but zeros) is not stored with it.
            with zarr.config.set({"array.write_empty_chunks": True}):
                root = zarr.open_group(self._path, mode="r+")
                arrays: Any = {name: root[name] for name in forms}
            if all(
                (a.chunks, a.shape[:1] + a.shape[2:], a.dtype) == (chunks, shape[:1] + shape[2:], dtype)
                for a, (shape, chunks, dtype) in zip(arrays.values(), forms.values(), strict=True)
            ):
                for name, (shape, _, _) in forms.items():
                    if arrays[name].shape[1] < shape[1]:
                        arrays[name].resize(shape)
                self._arrays = arrays
                return
        root = zarr.open_group(self._path, mode="w")
        self._arrays = {
            name: root.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                # Draws are noise: packing them would cost more than it saves.
                compressors=[Crc32cCodec()],
                filters=None,
                dimension_names=["chain", "draw", *(f"{name}_dim_{i}" for i in range(len(shape) - 2))],
                config={"write_empty_chunks": True},
            )
            for name, (shape, chunks, dtype) in forms.items()
        }

    @property
    def _path(self) -> Path:
        return self.folder / "draws.zarr"

    def append(self, block: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write block number ``block``, arrays with leading axes (chain, draw)."""
        first = block * self._block
        for name, values in arrays.items():
            self._arrays[_escaped(name)][:, first : first + values.shape[1]] = values

    def _open(self) -> None:
        import zarr

        self._arrays = dict(zarr.open_group(self._path, mode="r").arrays())

    def num_bytes(self, draws: int) -> int:
        """Of the first draws."""
        arrays = self._arrays.values()
        return sum(a.dtype.itemsize * draws * int(np.prod([a.shape[0], *a.shape[2:]])) for a in arrays)

    def read(self, draws: int, only: str = "") -> dict[str, np.ndarray]:
        """The first draws of every variable, or of those whose names begin so, in memory."""
        names = {name: _plain(name) for name in self._arrays}
        return {n: self._arrays[name][:, :draws] for name, n in names.items() if n.startswith(only)}

    def lazily(self, draws: int) -> Any:
        """The first draws as an ``xarray.Dataset`` that reads from disk what is asked of it."""
        import xarray as xr

        whole = xr.open_dataset(self._path, engine="zarr", consolidated=False, chunks=None, cache=False)
        whole = whole.rename({name: _plain(str(name)) for name in whole.data_vars})
        return whole.isel(draw=slice(0, draws))

    def _check_blocks(self, blocks: int) -> None:
        """Read every block once: its checksum tells whether it is whole."""
        import zarr

        try:
            root = zarr.open_group(self._path, mode="r")
            for name in root.array_keys():
                array: Any = root[name]
                inner = ["0"] * (array.ndim - 2)
                for block in range(blocks):
                    if not self._path.joinpath(name, "c", "0", str(block), *inner).exists():
                        raise Damaged(f"block {block} of the draws of '{_plain(name)}' is missing.")
                    array[:, block * array.chunks[1] : (block + 1) * array.chunks[1]]
        except Damaged:
            raise
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Damaged(f"its draws cannot be read ({said[:100]}).") from error


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two fingerprints, in words; versions apart. Empty if nothing does.

    Subjects are ``model``, ``data NAME``, names of settings, and ``engine's NAME``, which say nothing of another engine;
    values are readable if short, digests otherwise.

    Example:
        >>> differences({"model": "ab12", "seed": "0"}, {"model": "ab12", "seed": "1"})
        '`seed` was 0 and is 1.'
    """
    data, settings = [], []
    for subject in [*before, *(n for n in now if n not in before)]:
        was, is_ = before.get(subject), now.get(subject)
        if was == is_ or subject.startswith("version ") or subject == "model":
            continue
        if subject.startswith("engine's ") and before.get("engine") != now.get("engine"):
            continue
        if subject.startswith("data "):
            data.append(f"`{subject[5:]}`")
        elif was is None or is_ is None or len(was) + len(is_) > 200 or _is_digest(was) or _is_digest(is_):
            settings.append(f"`{subject}` is another.")
        else:
            settings.append(f"`{subject}` was {was} and is {is_}.")
    said = [f"the data changed ({', '.join(data)})."] if data else []
    # Data that changed may show in what the model computes.
    if not data and not settings and before.get("model") != now.get("model"):
        said.append("the model changed.")
    return " ".join([*said, *settings])


def on_host(leaf: Any) -> np.ndarray:
    """A leaf as an array that a file can hold."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def strong(tree: Any) -> Any:
    """The same arrays of types that do not give way in arithmetic, as they come back from a file."""
    return jax.tree.map(lambda leaf: _as(leaf, on_host(leaf)), tree)


def _as(like: Any, value: np.ndarray) -> Any:
    if isinstance(like, jax.Array) and jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
    return jnp.asarray(value)


def refilled(like: Any, leaves: list[np.ndarray]) -> Any:
    """Arrays from a file in the structure of ``like``.

    Raises:
        Damaged: they do not fit.
    """
    old, form = jax.tree.flatten(like)
    if [(np.shape(on_host(a)), on_host(a).dtype) for a in old] != [(b.shape, b.dtype) for b in leaves]:
        raise Damaged("a state has another form.")
    return jax.tree.unflatten(form, [_as(a, b) for a, b in zip(old, leaves, strict=True)])


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        data = path.read_bytes()
        if _digest(data) != path.stem.rsplit("-", 1)[1]:
            raise Damaged(f"'{path.name}' is not what was written.")
        with np.load(io.BytesIO(data)) as archive:
            meta = json.loads(archive["meta"].tobytes())
            return meta, [archive[f"leaf_{i}"] for i in range(len(archive.files) - 1)]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise Damaged(f"'{path.name}' cannot be read.") from error


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _is_digest(text: str) -> bool:
    return len(text) == 24 and not set(text) - set("0123456789abcdef")


def _escaped(name: str) -> str:
    return quote(name, safe=" ")


def _plain(name: str) -> str:
    return unquote(name)
