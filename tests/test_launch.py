"""Several processes: what they exchange, and what is said when one is lost."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from sojourn import _launch
from sojourn.cli import main

MODEL = """
import sys, os, jax, numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    with numpyro.plate("unit", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
y = np.random.default_rng(0).normal(1.0, 2.0, 8)
settings = dict(num_chains=4, num_warmup=0, num_samples=6, progress_bar=False)
"""


def script(folder, text):
    path = folder / "fit.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def run(*arguments, environment=None, timeout=600):
    command = [sys.executable, "-m", "sojourn.cli", "run", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def test_ranks_of_batch_systems():
    assert _launch.ranks({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == (3, 8)
    assert _launch.ranks({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}) == (0, 2)
    assert _launch.ranks({"PMI_RANK": "1", "PMI_SIZE": "4"}) == (1, 4)
    assert _launch.ranks({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None
    assert _launch.ranks({}) is None


def test_where_tasks_of_one_machine_meet():
    alone = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
    assert _launch._common_coordinator(alone) is None
    here = _launch._common_coordinator({**alone, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert re.fullmatch(r"127\.0\.0\.1:[23]\d{4}", here)


def test_who_is_to_blame():
    """The one that was killed, not those that failed because of it."""
    assert _launch._culprit([1, -signal.SIGKILL, 1], [0, 1, 2]) == 1
    assert _launch._culprit([None, 1, None], [1]) == 1
    assert "process 1 of 4 was ended by SIGKILL. The others have been stopped." in _launch._words(1, 4, -9)
    assert "process 0 of 1 ended with an error (code 2). Start the same" in _launch._words(0, 1, 2)


def test_no_script(capsys):
    assert main(["run", "nowhere.py"]) == 2
    assert "there is no script 'nowhere.py'" in capsys.readouterr().err


def test_one_process_is_a_script_as_ever(tmp_path):
    found = run(script(tmp_path, "import sys; print('arguments', sys.argv[1:], __name__)"), "a", "--b")
    assert found.returncode == 0
    assert "arguments ['a', '--b'] __main__" in found.stdout


def test_processes_exchange_and_one_speaks(tmp_path):
    text = """
    import jax, numpy as np
    from sojourn.inference._places import Places
    places = Places(3)
    own = np.arange(10.0)[places.own_chains][:, None] * np.ones((1, 2), np.float64)
    print(places.count, places.num_own, places.gather(own).tolist(), places.agree(a=jax.process_index(), b=-1.0))
    """
    found = run("--processes", "2", script(tmp_path, text))
    assert found.returncode == 0, found.stderr
    said = [line for line in found.stdout.splitlines() if "[[" in line]
    assert said == ["2 2 [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]] {'a': 1.0, 'b': -1.0}"]


def test_an_error_in_one_ends_all_and_is_shown(tmp_path):
    text = """
    import jax, time
    if jax.process_index() == 1:
        raise ValueError("something of mine")
    time.sleep(300)
    """
    before = time.monotonic()
    found = run("--processes", "2", script(tmp_path, text))
    assert time.monotonic() - before < 200
    assert found.returncode == 1
    assert "something of mine" in found.stderr
    assert "process 1 of 2 ended with an error (code 1). The others have been stopped." in found.stderr


def fit(folder, name, how="chains", checkpoint="None"):
    text = f"""{MODEL}
fit = sj.fit(model, y, shard={how!r}, checkpoint={checkpoint}, **settings)
if jax.process_index() == 0:
    np.savez({str(folder / name)!r}, **{{n: v.values for n, v in fit.posterior.data_vars.items()}})
    print(jax.process_count(), jax.device_count())
"""
    return script(folder, text)


def assert_same(folder, one, two):
    with np.load(folder / one) as first, np.load(folder / two) as second:
        for name in first.files:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["chains", "unit"])
def test_processes_and_devices_give_the_draws_of_one(tmp_path, how):
    assert run(fit(tmp_path, "one.npz", how)).returncode == 0
    for number, options in enumerate((["--processes", "2"], ["--processes", "4"], ["--devices", "4"])):
        found = run(*options, fit(tmp_path, f"{number}.npz", how))
        assert found.returncode == 0, found.stderr
        assert_same(tmp_path, "one.npz", f"{number}.npz")


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_the_checkpoint_goes_on(tmp_path):
    folder = tmp_path / "run"
    text = f"""{MODEL}
settings |= dict(num_samples=20_000, num_warmup=100)
if {{killed}} and jax.process_index() == 1:
    import threading, time, signal, pathlib
    def end():
        while len(list(pathlib.Path({str(folder)!r}).glob("process-1-of-2/chains/state-*"))) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=end).start()
checkpoint = {{checkpoint}}
fit = sj.fit(model, y, checkpoint=checkpoint, keep=["mu"], **settings)
if jax.process_index() == 0:
    np.savez({str(tmp_path)!r} + "/{{name}}.npz", mu=fit.posterior["mu"].values)
"""
    run_in = f"sj.Checkpoint({str(folder)!r}, every=0.3)"
    lost = run("--processes", "2", script(tmp_path, text.format(killed=True, checkpoint=run_in, name="lost")))
    assert lost.returncode == 1
    assert "process 1 of 2 was ended by SIGKILL. The others have been stopped." in lost.stderr
    assert not (tmp_path / "lost.npz").exists()
    again = run(
        "--processes", "2", script(tmp_path, text.format(killed=False, checkpoint=run_in, name="again"))
    )
    assert again.returncode == 0, again.stderr
    whole = run(
        "--processes", "2", script(tmp_path, text.format(killed=False, checkpoint=None, name="whole"))
    )
    assert whole.returncode == 0, whole.stderr
    with np.load(tmp_path / "again.npz") as one, np.load(tmp_path / "whole.npz") as two:
        np.testing.assert_array_equal(one["mu"], two["mu"])
