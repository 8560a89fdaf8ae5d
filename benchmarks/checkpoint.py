"""What writing down costs: how draws and states are best stored, what a checkpoint adds to a run, and what memory a
long path takes.

    python benchmarks/checkpoint.py [--only storage|overhead|memory] [--repeats N] [--draws N] [--points N]

Parts:

- ``storage``: 4 chains of draws of 30 parameters and a path of 1000 points, written as they come in blocks of 50, once
  as a Zarr store with checksums (what `sj.fit` does), once as one NetCDF file a block (h5netcdf, through xarray), once as
  one NumPy archive a block; and a state of 200 000 numbers as a NumPy archive (what `sj.fit` does), and with Orbax where
  it is installed. Seconds to write and to read back, and what a kill in the middle of writing leaves.
- ``overhead``: CPU and wall seconds of `sj.fit` with and without `checkpoint=` at the default interval (two minutes) and
  at two seconds, in turn.
- ``memory``: peak resident memory of a process that draws a path of 100 000 points 10 000 times, kept on disk, and kept
  as running summaries.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np


def storage(repeats: int) -> None:
    import jax.numpy as jnp
    import xarray as xr

    import sojourn as sj
    from sojourn.inference._checkpoint import Store

    rng = np.random.default_rng(0)
    block, blocks = 50, 20
    shapes = {f"posterior.p{i}": () for i in range(30)} | {"posterior.path": (1000,)}
    rows = {n: rng.normal(size=(4, block, *shape)).astype(np.float32) for n, shape in shapes.items()}

    def with_zarr(folder: Path) -> None:
        stage = Store(sj.Checkpoint(folder), {}).stage("chains")
        stage.prepare({n: (s, np.dtype("float32")) for n, s in shapes.items()}, 4, block * blocks, block)
        for i in range(blocks):
            stage.append(i, rows)

    def zarr_back(folder: Path) -> None:
        stage = Store(sj.Checkpoint(folder), {}).stage("chains")
        assert stage.whole({"blocks": blocks})
        stage.read(block * blocks)

    def dataset() -> xr.Dataset:
        return xr.Dataset({n: (("chain", "draw", *(f"{n}_dim",) * (v.ndim - 2)), v) for n, v in rows.items()})

    def with_netcdf(folder: Path) -> None:
        folder.mkdir()
        for i in range(blocks):
            dataset().to_netcdf(folder / f"{i:06d}.nc", engine="h5netcdf")

    def netcdf_back(folder: Path) -> None:
        parts = [xr.load_dataset(p, engine="h5netcdf") for p in sorted(folder.glob("*.nc"))]
        xr.concat(parts, "draw")

    def with_archives(folder: Path) -> None:
        folder.mkdir()
        for i in range(blocks):
            np.savez(folder / f"{i:06d}.npz", **rows)

    def archives_back(folder: Path) -> None:
        parts = [dict(np.load(p)) for p in sorted(folder.glob("*.npz"))]
        {n: np.concatenate([p[n] for p in parts], 1) for n in shapes}

    print(f"{'draws':34s} {'write a block, ms':>18s} {'read all, ms':>13s}")
    for name, write, read in (
        ("Zarr, checksums, one store", with_zarr, zarr_back),
        ("NetCDF, a file a block", with_netcdf, netcdf_back),
        ("NumPy archives, one a block", with_archives, archives_back),
    ):
        writes, reads = [], []
        for i in range(repeats + 1):  # the first one imports
            with tempfile.TemporaryDirectory() as room:
                folder = Path(room) / "run"
                before = time.perf_counter()
                write(folder)
                writes.append((time.perf_counter() - before) / blocks)
                before = time.perf_counter()
                read(folder)
                reads.append(time.perf_counter() - before)
                assert i >= 0
        print(
            f"{name:34s} {1e3 * statistics.median(writes[1:]):18.1f} {1e3 * statistics.median(reads[1:]):13.1f}"
        )

    state = {"z": jnp.asarray(rng.normal(size=100_000)), "grad": jnp.asarray(rng.normal(size=100_000))}

    def with_archive(folder: Path) -> None:
        Store(sj.Checkpoint(folder), {}).stage("chains").save(1, {}, state)

    ways = [("NumPy archive, digest, fsync", with_archive)]
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        print("Orbax is not installed: not measured.")
    else:

        def with_orbax(folder: Path) -> None:
            with ocp.StandardCheckpointer() as writer:
                writer.save(folder.absolute() / "state", state)

        ways.append(("Orbax", with_orbax))
    print(f"\n{'state of 200 000 numbers':34s} {'write, ms':>18s}")
    for name, write in ways:
        took = []
        for _ in range(repeats + 1):
            with tempfile.TemporaryDirectory() as room:
                before = time.perf_counter()
                write(Path(room) / "run")
                took.append(time.perf_counter() - before)
        print(f"{name:34s} {1e3 * statistics.median(took[1:]):18.1f}")


def overhead(repeats: int) -> None:
    import sojourn as sj
    from sojourn.models import hidden_markov

    quakes = sj.datasets.earthquakes()["count"]
    settings = {
        "num_states": 2,
        "num_warmup": 500,
        "num_samples": 4000,
        "num_chains": 2,
        "progress_bar": False,
    }
    ways = {"none": None, "every 120 s": 120.0, "every 2 s": 2.0}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, every in ways.items():
            with tempfile.TemporaryDirectory() as room:
                run = None if every is None else sj.Checkpoint(Path(room) / "run", every=every)
                before = time.process_time()
                sj.fit(hidden_markov.poisson, quakes, checkpoint=run, **settings)
                cpu[name].append(time.process_time() - before)
    base = cpu["none"]
    print(f"{'checkpoint':14s} {'CPU s (median)':>15s} {'ratio to none, in pairs':>24s}")
    for name, values in cpu.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"{name:14s} {statistics.median(values):15.1f} {ratio:24.3f}")


def memory_of_one(how: str, draws: int, points: int) -> None:
    import numpyro
    import numpyro.distributions as dist

    import sojourn as sj

    def model(y):
        with numpyro.plate("time", len(y)):
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=points).astype(np.float32)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    room = tempfile.mkdtemp()
    keep = sj.Keep(summarise=["x"]) if how == "summaries" else None
    before = time.perf_counter()
    fit = sj.fit(
        model,
        y,
        engine=partial(
            sj.UnderdampedLangevin,
            step_size=0.5,
            trajectory_length=1.0,
            adapt_step_size=False,
            measures_bias=False,
        ),
        num_warmup=50,
        num_samples=draws,
        num_chains=1,
        progress_bar=False,
        keep=keep,
        checkpoint=None if how == "summaries" else Path(room) / "run",
    )
    if how == "disk":
        mean = float(fit.posterior["x"][0, :, 17].values.mean())
    else:
        mean = float(fit.running_summary["x"][0, 0, 17])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_disk = sum(p.stat().st_size for p in Path(room).rglob("*") if p.is_file())
    shutil.rmtree(room)
    print(
        json.dumps(
            {
                "start": started,
                "peak": peak,
                "disk": on_disk,
                "seconds": time.perf_counter() - before,
                "mean": mean,
                "y": float(y[17]),
            }
        )
    )


def memory(draws: int, points: int) -> None:
    print(f"{draws} draws of a path of {points} points ({4e-9 * draws * points:.1f} GB)")
    print(f"{'kept':12s} {'imported, MB':>13s} {'peak, MB':>9s} {'on disk, MB':>12s} {'seconds':>8s}")
    for how in ("disk", "summaries"):
        command = [sys.executable, __file__, "--child", how, "--draws", str(draws), "--points", str(points)]
        found = json.loads(
            subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1]
        )
        print(
            f"{how:12s} {found['start'] / 1e3:13.0f} {found['peak'] / 1e3:9.0f} {found['disk'] / 1e6:12.0f} "
            f"{found['seconds']:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["storage", "overhead", "memory"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        memory_of_one(options.child, options.draws, options.points)
        return
    if options.only in (None, "storage"):
        storage(options.repeats)
    if options.only in (None, "overhead"):
        overhead(options.repeats)
    if options.only in (None, "memory"):
        memory(options.draws, options.points)


if __name__ == "__main__":
    main()
