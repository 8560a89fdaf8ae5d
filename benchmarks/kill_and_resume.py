"""Kill runs at random moments and damage checkpoints: is what comes out bit for bit what it should be?

    python benchmarks/kill_and_resume.py                 # 50 kills over all engines, 20 damaged checkpoints (an hour)
    python benchmarks/kill_and_resume.py --kills 12 --damages 0 --only nuts --in-a-row 4

Every run is a process of its own, ended with SIGKILL at a moment drawn uniformly over its life (imports and compiling
included), and started again with the same command until it ends (or is killed again: ``--in-a-row``). Its result is
compared, every number of every group, with that of a process that was left alone and wrote no checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

EVERY = 1.0  # seconds between two states


def gaussian(y):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("unit", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def subsampled(y):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    with numpyro.plate("unit", len(y), subsample_size=16):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, event_dim=0))


def walk(y):
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def cases():
    """Model, number of observations and settings by engine; each samples for some seconds."""
    import sojourn as sj

    chains = {"num_chains": 2, "num_warmup": 400}
    return {
        "nuts": (walk, 40, {"num_samples": 1500, **chains}),
        "particle_gibbs": (walk, 40, {"num_samples": 300, "num_chains": 2, "num_warmup": 100}),
        "particle_marginal": (walk, 40, {"num_samples": 1500, **chains}),
        "langevin": (walk, 40, {"num_samples": 4000, **chains}),
        "mclmc": (walk, 40, {"num_samples": 4000, **chains}),
        "adjusted_mclmc": (walk, 40, {"num_samples": 3000, **chains}),
        "underdamped_langevin": (walk, 40, {"num_samples": 4000, **chains}),
        "stochastic_gradient": (subsampled, 200, {"num_samples": 20000, **chains}),
        "svi": (walk, 40, {"engine": sj.Variational(num_restarts=2, max_steps=6000), "num_samples": 500}),
        "score_ascent": (walk, 40, {"engine": sj.ScoreAscent(num_steps=800), "num_samples": 200}),
        "map": (gaussian, 200, {"engine": sj.MaximumAPosteriori(num_restarts=6)}),
    }


def fitted(name: str, folder: Path | None, every: float = EVERY):
    import sojourn as sj

    model, size, settings = cases()[name]
    y = (
        np.random.default_rng(0).normal(size=size).cumsum()
        if model is walk
        else np.random.default_rng(0).normal(1.0, 2.0, size)
    )
    checkpoint = None if folder is None else sj.Checkpoint(folder, every=every)
    return sj.fit(model, y, **{"engine": name, "progress_bar": False, **settings}, checkpoint=checkpoint)


def arrays(fit) -> dict[str, np.ndarray]:
    from sojourn.diagnostics import _arviz

    groups = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "predictions", "params")
    found = {g: _arviz.group(fit, g) for g in groups}
    return {
        f"{g}.{n}": v.values
        for g, data in found.items()
        if data is not None
        for n, v in data.data_vars.items()
    }


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[n], two[n], equal_nan=one[n].dtype.kind == "f") for n in one
    )


def child(name: str, result: Path, folder: Path | None) -> None:
    np.savez(result, **arrays(fitted(name, folder)))


def start(name: str, result: Path, folder: Path | None, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--child", name, "--result", str(result)]
    command += [] if folder is None else ["--folder", str(folder)]
    settings = {
        **os.environ,
        # The same programs are compiled again and again: this test is not about that.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with open(result.with_suffix(".err"), "w") as errors:
        return subprocess.Popen(command, env=settings, stderr=errors)


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def kills(names: list[str], number: int, room: Path, seed: int, in_a_row: int = 1) -> tuple[int, int]:
    moments = np.random.default_rng(seed)
    good = runs = done = 0
    print(f"{'engine':22s} {'alone, s':>8s}  killed at (s): states, age of the newest -> result", flush=True)
    for i, name in enumerate(names):
        share = number // len(names) + (i < number % len(names))
        if not share:
            continue
        cache, reference = room / f"cache-{name}", room / f"{name}.npz"
        start(name, reference, None, cache).wait()  # fills the cache
        start(name, room / "filled.npz", room / f"{name}-whole", cache).wait()
        before = time.monotonic()
        start(name, reference, None, cache).wait()
        life = time.monotonic() - before
        alone = loaded(reference)
        lines, killed = [], 0
        while killed < share:
            folder, result = room / f"{name}-run", room / f"{name}-result.npz"
            shutil.rmtree(folder, ignore_errors=True)
            parts, fine, code, in_run = [], True, None, 0
            while code is None:
                process = start(name, result, folder, cache)
                wanted = in_run < min(in_a_row, share - killed)
                moment = moments.uniform(0.0, life)
                try:
                    code = process.wait(moment if wanted else None)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    in_run += 1
                    states = sorted(
                        folder.glob("process-0-of-1/*/state-*.npz"), key=lambda p: p.stat().st_mtime
                    )
                    age = time.time() - states[-1].stat().st_mtime if states else float("nan")
                    parts.append(f"{moment:.1f}: {len(states)}, {age:.1f} s")
                else:
                    if not in_run:
                        # Over before its moment: no kill. Machines get faster as others leave them.
                        life = min(life, moment)
                said = result.with_suffix(".err").read_text()
                fine &= "is damaged" not in said  # a kill damages nothing
            if not in_run:
                continue
            killed += in_run
            fine &= code == 0 and same(alone, loaded(result))
            good, runs = good + fine, runs + 1
            outcome = (
                "same" if fine else "DIFFERS" if code == 0 else f"FAILED ({said.strip().splitlines()[-1:]})"
            )
            lines.append(f"{' + '.join(parts)} -> {outcome}")
        done += killed
        print(f"{name:22s} {life:8.1f}  {'; '.join(lines)}", flush=True)
    print(f"{done} kills; {good} of {runs} results are bit for bit those of runs left alone", flush=True)
    return good, runs


def damages(number: int, room: Path, seed: int) -> tuple[int, int]:
    """Damage one file of a checkpoint cut off in the middle, and go on."""
    chance = np.random.default_rng(seed)
    from sojourn.inference import _chains

    name, folder = "nuts", room / "damaged"
    alone = arrays(fitted(name, None))
    advance = _chains.Chains.advance

    def cut(self, carry, first, last, num_warmup):
        if first > 1200:
            raise OSError("cut off")
        return advance(self, carry, first, last, num_warmup)

    _chains._BLOCK_BYTES = 20_000  # blocks of some hundred draws, so that there are several
    _chains.Chains.advance = cut
    try:
        fitted(name, folder, every=0.0)
    except OSError:
        _chains.Chains.advance = advance
    good = 0
    for i in range(number):
        copy = room / f"damaged-{i}"
        shutil.copytree(folder, copy)
        files = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "lock")
        file = files[int(chance.integers(len(files)))]
        data = bytearray(file.read_bytes())
        kind = ["truncated", "byte flipped", "emptied", "deleted", "overwritten"][i % 5]
        if kind == "truncated":
            file.write_bytes(data[: int(chance.integers(len(data)))])
        elif kind == "byte flipped":
            data[int(chance.integers(len(data)))] ^= 1 << int(chance.integers(8))
            file.write_bytes(data)
        elif kind == "emptied":
            file.write_bytes(b"")
        elif kind == "deleted":
            file.unlink()
        else:
            file.write_bytes(chance.bytes(len(data)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                fine, answer = same(alone, arrays(fitted(name, copy))), "same"
            except ValueError as error:
                fine, answer = True, str(error)
        good += fine
        words = next((str(w.message) for w in said if "checkpoint" in str(w.message)), "nothing")
        where = file.relative_to(copy / "process-0-of-1")
        print(
            f"{kind:13s} {where!s:60.60s} said: {words[:110]} -> {answer if fine else 'DIFFERS'}", flush=True
        )
        shutil.rmtree(copy)
    print(f"{good} of {number} damaged checkpoints gave the right result", flush=True)
    return good, number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--in-a-row", type=int, default=1, help="most kills of one run, one in each life")
    parser.add_argument("--damages", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=None, help="engines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.result, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as room:
        outcome = [(0, 0), (0, 0)]
        if options.kills:
            names = options.only or list(cases())
            outcome[0] = kills(names, options.kills, Path(room), options.seed, options.in_a_row)
        if options.damages:
            outcome[1] = damages(options.damages, Path(room), options.seed)
    return int(any(good < done for good, done in outcome))


if __name__ == "__main__":
    sys.exit(main())
