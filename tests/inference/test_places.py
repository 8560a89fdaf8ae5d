"""Chains of one processor device: side by side in threads."""

import threading

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import _chains, _places

Y = np.random.default_rng(0).normal(1.0, 2.0, 20)
SHORT = {"num_warmup": 60, "num_samples": 40, "num_chains": 3, "progress_bar": False}


def levels(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def draws(fit):
    found = _arviz.require_posterior(fit, "draws")
    return np.stack([found["mu"].values, found["sigma"].values])


@pytest.fixture
def threads(monkeypatch):
    """Names of the threads that advanced chains, as if there were four processors."""
    names = []
    advance = _chains.Chains.advance

    def noted(self, *args):
        names.append(threading.current_thread().name)
        return advance(self, *args)

    monkeypatch.setattr(_chains.Chains, "advance", noted)
    monkeypatch.setattr(_places, "_processors", lambda: 4)
    return names


def test_threads_give_the_draws_of_chains_in_turn(threads):
    turns = draws(sj.fit(levels, Y, chain_method="sequential", **SHORT))
    assert set(threads) == {"MainThread"}
    threads.clear()
    np.testing.assert_array_equal(draws(sj.fit(levels, Y, chain_method="parallel", **SHORT)), turns)
    assert threads[:3] == ["MainThread"] * 3  # the first call compiles
    assert len(set(threads[3:])) > 1
    assert "MainThread" not in threads[3:]


def test_threads_keep_the_precision(x64, threads):
    y = Y.copy()  # JAX mixes up the precisions of one array
    one, two = (draws(sj.fit(levels, y, chain_method=how, **SHORT)) for how in ("sequential", "parallel"))
    assert two.dtype == np.float64
    np.testing.assert_array_equal(one, two)


def test_threads_resume(threads, tmp_path, monkeypatch):
    settings = {**SHORT, "chain_method": "parallel"}
    whole = draws(sj.fit(levels, Y, **settings))
    advance = _places.Places.each
    calls = []

    def cut(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("cut off")
        return advance(self, *args)

    monkeypatch.setattr(_places.Places, "each", cut)
    run = sj.Checkpoint(tmp_path / "run", every=0.0)
    with pytest.raises(OSError, match="cut off"):
        sj.fit(levels, Y, checkpoint=run, **settings)
    monkeypatch.setattr(_places.Places, "each", advance)
    np.testing.assert_array_equal(draws(sj.fit(levels, Y, checkpoint=run, **settings)), whole)


def test_one_processor_needs_no_threads(threads, monkeypatch):
    monkeypatch.setattr(_places, "_processors", lambda: 1)
    sj.fit(levels, Y, chain_method="parallel", **SHORT)
    assert set(threads) == {"MainThread"}
