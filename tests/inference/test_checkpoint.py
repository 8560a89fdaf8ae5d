"""Runs that are cut off and go on; what is on disk, and what happens when it is damaged."""

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import _chains, _variational
from sojourn.inference._checkpoint import Damaged, Store, differences, refilled, strong

Y = np.random.default_rng(0).normal(1.0, 2.0, 30)
SHORT = {"num_samples": 40, "num_warmup": 30, "num_chains": 2, "progress_bar": False}


def gaussian(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def same(one, two):
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
        first, second = _arviz.group(one, group), _arviz.group(two, group)
        assert set(first.data_vars) == set(second.data_vars)
        for name in first.data_vars:
            np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=f"{group} {name}")


@pytest.fixture
def stage(tmp_path):
    store = Store(sj.Checkpoint(tmp_path, every=1e9, every_draws=10), {})
    yield store.stage("chains")
    store.close()


class CutOff(Exception):
    """Stands for the end of a process: nothing after it is run."""


@pytest.fixture
def cut_off(monkeypatch):
    """Ends a run of chains at the call that would pass an iteration."""
    advance = _chains.Chains.advance

    def at(iteration):
        def cut(self, carry, first, last, num_warmup):
            if last > iteration:
                raise CutOff
            return advance(self, carry, first, last, num_warmup)

        monkeypatch.setattr(_chains.Chains, "advance", cut)

    yield at
    monkeypatch.undo()


@pytest.fixture(scope="module")
def whole():
    return sj.fit(gaussian, Y, **SHORT)


@pytest.mark.parametrize("iteration", [2, 29, 45], ids=["in warm-up", "before its end", "while drawing"])
def test_what_is_cut_off_goes_on_bit_by_bit(whole, tmp_path, cut_off, monkeypatch, iteration):
    run = sj.Checkpoint(tmp_path, every=0.0)
    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)  # a step a call
    cut_off(iteration)
    with pytest.raises(CutOff):
        sj.fit(gaussian, Y, checkpoint=run, **SHORT)
    cut_off(np.inf)
    same(whole, sj.fit(gaussian, Y, checkpoint=run, **SHORT))


def test_a_run_that_is_over_is_read_and_a_longer_one_goes_on(whole, tmp_path, cut_off):
    same(whole, sj.fit(gaussian, Y, checkpoint=tmp_path, **SHORT))
    cut_off(0)  # nothing may be drawn any more
    same(whole, sj.fit(gaussian, Y, checkpoint=tmp_path, **SHORT))
    cut_off(np.inf)
    longer = {**SHORT, "num_samples": 70}
    more = sj.fit(gaussian, Y, checkpoint=tmp_path, **longer)
    np.testing.assert_array_equal(more.posterior["mu"][:, :40], whole.posterior["mu"])
    same(more, sj.fit(gaussian, Y, **longer))


def test_a_shorter_one_takes_the_first_draws(tmp_path, cut_off, monkeypatch):
    longer = {**SHORT, "num_samples": 70}
    run = sj.Checkpoint(tmp_path, every=0.0)
    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)
    cut_off(85)
    with pytest.raises(CutOff):
        sj.fit(gaussian, Y, checkpoint=run, **longer)
    cut_off(0)
    same(sj.fit(gaussian, Y, checkpoint=run, **SHORT), sj.fit(gaussian, Y, checkpoint=run, **SHORT))
    cut_off(np.inf)
    same(sj.fit(gaussian, Y, checkpoint=run, **SHORT), sj.fit(gaussian, Y, **SHORT))
    whole = sj.fit(gaussian, Y, **longer)
    same(sj.fit(gaussian, Y, checkpoint=run, **longer), whole)  # none was lost
    assert sj.fit(gaussian, Y, checkpoint=run, **SHORT).posterior.sizes["draw"] == 40
    cut_off(0)
    same(sj.fit(gaussian, Y, checkpoint=run, **longer), whole)


def test_running_summaries_cannot_be_taken_back(tmp_path):
    settings = {**SHORT, "keep": sj.Keep(summarise=["mu"])}
    sj.fit(gaussian, Y, checkpoint=tmp_path, **{**settings, "num_samples": 50})
    with pytest.raises(
        ValueError, match=r"summaries of 50 draws, which cannot be taken back to 40: ask for 50"
    ):
        sj.fit(gaussian, Y, checkpoint=tmp_path, **settings)


def test_cut_off_again_and_again(tmp_path, cut_off, monkeypatch, recwarn):
    """No way back is lost with the first resumption: blocks of zeros (no divergences) count, and old ones stay."""
    monkeypatch.setattr(_chains, "_BLOCK_BYTES", 400)
    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)
    whole = sj.fit(gaussian, Y, **SHORT)
    assert not whole.sample_stats["diverging"].values.any()
    run = sj.Checkpoint(tmp_path, every=0.0)
    advance = _chains.Chains.advance
    for iteration in (20, 45, 52, 60, 67):
        cut_off(iteration)
        with pytest.raises(CutOff):
            sj.fit(gaussian, Y, checkpoint=run, **SHORT)
    monkeypatch.undo()
    firsts = []

    def seen(self, carry, first, last, num_warmup):
        firsts.append(first)
        return advance(self, carry, first, last, num_warmup)

    monkeypatch.setattr(_chains, "_BLOCK_BYTES", 400)
    monkeypatch.setattr(_chains.Chains, "advance", seen)
    same(whole, sj.fit(gaussian, Y, checkpoint=run, **SHORT))
    assert min(firsts) >= 66
    assert not recwarn.list


def test_blocks_and_thinning(tmp_path, cut_off, monkeypatch):
    """Draws leave the device block by block; a cut in the middle of one loses none."""
    monkeypatch.setattr(_chains, "_BLOCK_BYTES", 400)
    settings = {**SHORT, "keep": sj.Keep(thinning=3)}
    whole = sj.fit(gaussian, Y, **settings)
    assert whole.posterior.sizes["draw"] == 40
    run = sj.Checkpoint(tmp_path, every=0.0)
    cut_off(100)
    with pytest.raises(CutOff):
        sj.fit(gaussian, Y, checkpoint=run, **settings)
    assert len(list(tmp_path.glob("*/chains/draws.zarr/posterior.mu/c/0/*"))) > 1
    cut_off(np.inf)
    same(whole, sj.fit(gaussian, Y, checkpoint=run, **settings))
    unthinned = sj.fit(gaussian, Y, **{**SHORT, "num_samples": 120})
    np.testing.assert_array_equal(whole.posterior["mu"], unthinned.posterior["mu"][:, 2::3])


@pytest.mark.parametrize(
    "engine",
    [sj.Variational(num_restarts=2, max_steps=750), sj.MaximumAPosteriori(num_restarts=3)],
    ids=["svi", "map"],
)
def test_searches_go_on(tmp_path, monkeypatch, engine):
    settings = {"engine": engine, "num_samples": 20, "progress_bar": False}
    whole = sj.fit(gaussian, Y, **settings)
    stage = sj.inference._checkpoint.Stage
    save, count = stage.save, [0]

    def cut(self, *args, **kwargs):
        save(self, *args, **kwargs)
        count[0] += 1
        if count[0] == 2:
            raise CutOff

    monkeypatch.setattr(stage, "save", cut)
    run = sj.Checkpoint(tmp_path, every=0.0)
    with pytest.raises(CutOff):
        sj.fit(gaussian, Y, checkpoint=run, **settings)
    monkeypatch.setattr(stage, "save", save)
    again = sj.fit(gaussian, Y, checkpoint=run, **settings)
    same(whole, again)
    if isinstance(engine, sj.Variational):
        np.testing.assert_array_equal(whole.sample_stats["elbo"], again.sample_stats["elbo"])
        # The search is over: more draws need no more of it.
        monkeypatch.setattr(_variational._Search, "take", None)
        more = {**settings, "num_samples": 30}
        restored = sj.fit(gaussian, Y, checkpoint=run, **more)
        monkeypatch.undo()
        same(sj.fit(gaussian, Y, **more), restored)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["nuts", "particle_gibbs", "particle_marginal", "langevin", "mclmc", "adjusted_mclmc"]
)
def test_every_sampler_of_paths_goes_on(tmp_path, cut_off, monkeypatch, engine):
    settings = {**SHORT, "engine": engine}
    whole = sj.fit(walk, Y, **settings)
    run = sj.Checkpoint(tmp_path, every=0.0)
    monkeypatch.setattr(_chains, "_CALL_SECONDS", 0.05)
    for iteration in (10, 50):
        cut_off(iteration)
        with pytest.raises(CutOff):
            sj.fit(walk, Y, checkpoint=run, **settings)
    cut_off(np.inf)
    same(whole, sj.fit(walk, Y, checkpoint=run, **settings))


@pytest.mark.slow
def test_score_ascent_goes_on(tmp_path, monkeypatch):
    engine = sj.ScoreAscent(num_steps=200, num_particles=8, num_information_sweeps=20)
    settings = {"engine": engine, "num_samples": 20, "progress_bar": False}
    whole = sj.fit(walk, Y, **settings)
    stage = sj.inference._checkpoint.Stage
    save = stage.save

    def cut(self, *args, **kwargs):
        save(self, *args, **kwargs)
        raise CutOff

    monkeypatch.setattr(stage, "save", cut)
    run = sj.Checkpoint(tmp_path, every=0.0)
    with pytest.raises(CutOff):
        sj.fit(walk, Y, checkpoint=run, **settings)
    monkeypatch.setattr(stage, "save", save)
    again = sj.fit(walk, Y, checkpoint=run, **settings)
    np.testing.assert_array_equal(whole.posterior["scale"], again.posterior["scale"])
    assert again.attrs["estimate"] == whole.attrs["estimate"]


# ------------------------------------------------------------------------------------------------ another run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, sj.fit(gaussian, Y, checkpoint=folder, **SHORT)


def wider(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 4.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.mark.parametrize(
    ("model", "y", "changed", "sentence"),
    [
        (wider, Y, {}, r"is of another run: the model changed\."),
        (gaussian, Y + 1e-6, {}, r"is of another run: the data changed \(`y`\)\."),
        (gaussian, Y, {"seed": 5}, r"`seed` was 0 and is 5\."),
        (gaussian, Y, {"num_warmup": 31}, r"`num_warmup` was 30 and is 31\."),
        (gaussian, Y, {"num_chains": 3}, r"`num_chains` was 2 and is 3\."),
        (gaussian, Y, {"engine": "langevin"}, r"`engine` was 'nuts' and is 'langevin'\."),
        (gaussian, Y, {"keep": ["mu"]}, r"`keep` was"),
        (
            gaussian,
            Y,
            {"chain_method": "sequential"},
            r"`chain_method` was 'all chains at once' and is 'a chain at a time'\.",
        ),
        (
            gaussian,
            Y,
            {"engine": functools.partial(numpyro.infer.NUTS, target_accept_prob=0.9)},
            r"is of another run: `engine's target_accept_prob` was 0\.8 and is 0\.9\.",
        ),
        (
            gaussian,
            Y,
            {"engine": lambda m: numpyro.infer.NUTS(m, target_accept_prob=0.9)},
            r"is of another run: `engine` was 'nuts' and is '<lambda>'\. Restore",
        ),
    ],
)
def test_another_run_is_refused(finished, model, y, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.fit(model, y, checkpoint=finished[0], **{**SHORT, **changed})


def test_the_same_model_written_anew_is_the_same(finished):
    def gaussian(y):  # another function, and other names
        location = numpyro.sample("mu", dist.Normal(0.0, 3.0))
        spread = numpyro.sample("sigma", dist.HalfNormal(2.0))
        numpyro.sample("y", dist.Normal(location, spread), obs=y)

    same(finished[1], sj.fit(gaussian, Y, checkpoint=finished[0], **SHORT))


def test_differences_of_versions_are_no_differences():
    assert differences({"version jax": "1", "seed": "0"}, {"version jax": "2", "seed": "0"}) == ""
    assert differences({"init": "a" * 150}, {"init": "b" * 150}) == "`init` is another."


def test_other_versions_are_said(finished, monkeypatch):
    from sojourn.inference import _fingerprint

    known = _fingerprint.version
    monkeypatch.setattr(_fingerprint, "version", lambda name: "99.0" if name == "numpyro" else known(name))
    with pytest.warns(UserWarning, match=r"other versions \(numpyro .* then, 99\.0 now\)"):
        same(finished[1], sj.fit(gaussian, Y, checkpoint=finished[0], **SHORT))


def test_two_runs_do_not_share_a_folder(tmp_path):
    store = Store(sj.Checkpoint(tmp_path), {})
    with pytest.raises(ValueError, match="Another run is writing to the checkpoint"):
        Store(sj.Checkpoint(tmp_path), {})
    store.close()
    Store(sj.Checkpoint(tmp_path), {}).close()


def test_another_number_of_processes(tmp_path):
    Store(sj.Checkpoint(tmp_path), {}, (0, 2)).close()
    with pytest.raises(ValueError, match="was written by 2 processes, and this run has 1"):
        Store(sj.Checkpoint(tmp_path), {})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"checkpoint": 3}, "`checkpoint` is the path of a folder or an sj.Checkpoint, not 3"),
        ({"checkpoint": ""}, "`checkpoint` is the path of a folder"),
    ],
)
def test_no_folder(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.fit(gaussian, Y, **settings, **SHORT)


def test_folders_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds something that is not a checkpoint"):
        sj.fit(gaussian, Y, checkpoint=tmp_path, **SHORT)
    with pytest.raises(ValueError, match=r"must be a folder, and '.*thesis.tex' is a file"):
        sj.fit(gaussian, Y, checkpoint=tmp_path / "thesis.tex", **SHORT)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"every": -1}, "`every` of Checkpoint is a time in seconds, not negative, not -1"),
        ({"every": "often"}, "not 'often'"),
        ({"every_draws": 0}, "`every_draws` of Checkpoint is a positive whole number or None, not 0"),
    ],
)
def test_intervals(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.Checkpoint("run", **settings)


def test_every_so_many_draws(stage):
    assert not stage.due(9)
    assert stage.due(10)
    stage.save(10, {"blocks": 0}, [])
    assert not stage.due(19)


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture
def cut(tmp_path, cut_off, monkeypatch):
    """A checkpoint in the middle of a run, with several blocks of draws."""
    monkeypatch.setattr(_chains, "_BLOCK_BYTES", 400)
    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)
    run = sj.Checkpoint(tmp_path / "run", every=0.0)
    cut_off(60)
    with pytest.raises(CutOff):
        sj.fit(gaussian, Y, checkpoint=run, **SHORT)
    cut_off(np.inf)
    return run


def newest(run):
    return max(run.path.glob("*/chains/state-*.npz"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: newest(run).write_bytes(newest(run).read_bytes()[:100]),
        lambda run: flip(newest(run)),
        lambda run: flip(run.path / "process-0-of-1/chains/draws.zarr/posterior.mu/c/0/0"),
        lambda run: (run.path / "process-0-of-1/chains/draws.zarr/posterior.mu/c/0/1").unlink(),
        lambda run: (run.path / "process-0-of-1/chains/draws.zarr/zarr.json").write_text("{"),
    ],
    ids=["state truncated", "state flipped", "draws flipped", "draws missing", "no index of draws"],
)
def test_damage_is_said_and_the_state_before_used(whole, cut, damage):
    damage(cut)
    with pytest.warns(UserWarning, match="is damaged: .* Going on from the state before, or from the start"):
        again = sj.fit(gaussian, Y, checkpoint=cut, **SHORT)
    same(whole, again)


def test_a_state_being_written_is_no_state(whole, cut):
    (newest(cut).parent / "state.partial").write_bytes(b"half")
    same(whole, sj.fit(gaussian, Y, checkpoint=cut, **SHORT))


def test_the_end_of_the_warm_up_stays(cut):
    assert any("-stays-" in p.name and "00000030-" in p.name for p in newest(cut).parent.iterdir())
    assert len(list(newest(cut).parent.glob("state-*"))) <= 5


def test_states_come_back_as_they_were(stage):
    tree = strong({"key": jax.random.key(3), "x": jnp.arange(3.0), "n": jnp.int32(2)})
    stage.save(1, {"note": "a"}, tree)
    meta, back = stage.restore(tree)
    assert meta["note"] == "a"
    assert jax.random.bits(back["key"]) == jax.random.bits(tree["key"])
    np.testing.assert_array_equal(back["x"], tree["x"])
    with pytest.raises(Damaged, match="another form"):
        refilled({"x": jnp.zeros(2)}, [np.zeros(3, np.float32)])


def test_names_of_sites_with_strokes(stage):
    stage.prepare({"posterior.a/b c": ((2,), np.dtype("float32"))}, 2, 6, 3)
    values = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    stage.append(0, {"posterior.a/b c": values})
    np.testing.assert_array_equal(stage.read(3)["posterior.a/b c"], values)
    np.testing.assert_array_equal(stage.lazily(3)["posterior.a/b c"], values)


# ------------------------------------------------------------------------------------------------ interrupts


def test_ctrl_c_gives_the_draws_so_far(whole, tmp_path, monkeypatch):
    advance = _chains.Chains.advance

    def pressed(self, carry, first, last, num_warmup):
        carry = advance(self, carry, first, last, num_warmup)
        if last > 50:
            os.kill(os.getpid(), signal.SIGINT)
        return carry

    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)
    monkeypatch.setattr(_chains.Chains, "advance", pressed)
    part = sj.fit(gaussian, Y, checkpoint=tmp_path, **SHORT)
    assert part.attrs["partial"] == 1
    assert part.attrs["num_samples_asked"] == 40
    drawn = part.posterior.sizes["draw"]
    assert 0 < drawn < 40
    np.testing.assert_array_equal(part.posterior["mu"], whole.posterior["mu"][:, :drawn])
    monkeypatch.setattr(_chains.Chains, "advance", advance)
    same(whole, sj.fit(gaussian, Y, checkpoint=tmp_path, **SHORT))


def test_ctrl_c_in_warm_up_has_nothing_to_give(monkeypatch):
    advance = _chains.Chains.advance

    def pressed(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        return advance(self, *args)

    monkeypatch.setattr(_chains.Chains, "advance", pressed)
    with pytest.raises(KeyboardInterrupt):
        sj.fit(gaussian, Y, **SHORT)


def test_a_system_that_asks_to_end(tmp_path, whole, monkeypatch):
    advance = _chains.Chains.advance

    def asked(self, carry, first, last, num_warmup):
        carry = advance(self, carry, first, last, num_warmup)
        if last > 45:
            os.kill(os.getpid(), signal.SIGTERM)
        return carry

    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)
    monkeypatch.setattr(_chains.Chains, "advance", asked)
    with pytest.raises(SystemExit, match="Asked to end, at iteration 46 of 70: all is written down"):
        sj.fit(gaussian, Y, checkpoint=sj.Checkpoint(tmp_path, every=1e9), **SHORT)
    monkeypatch.setattr(_chains.Chains, "advance", advance)
    same(whole, sj.fit(gaussian, Y, checkpoint=tmp_path, **SHORT))


@pytest.mark.slow
def test_kill_minus_nine(tmp_path):
    """A process that is killed while it draws, twice, ends with the result of one left alone."""
    script = tmp_path / "fit.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, numpy as np, numpyro, numpyro.distributions as dist, sojourn as sj
            def model(y):
                mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
                numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            folder = None if sys.argv[2] == "none" else sj.Checkpoint(sys.argv[2], every=0.2)
            fit = sj.fit(model, np.arange(5.0), num_samples=200_000, num_chains=2, checkpoint=folder, progress_bar=False)
            np.save(sys.argv[1], fit.posterior["mu"].values)
            """
        )
    )
    run = [sys.executable, str(script)]
    subprocess.run([*run, str(tmp_path / "alone.npy"), "none"], check=True)
    folder = tmp_path / "run"
    for _ in range(2):
        process = subprocess.Popen([*run, str(tmp_path / "killed.npy"), str(folder)])
        before = {p.name for p in folder.glob("*/chains/state-*")}
        while process.poll() is None and len({p.name for p in folder.glob("*/chains/state-*")} - before) < 2:
            pass
        process.kill()
        process.wait()
    subprocess.run([*run, str(tmp_path / "killed.npy"), str(folder)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "alone.npy"), np.load(tmp_path / "killed.npy"))


def test_meta_is_readable(finished):
    """What a state says of itself is JSON, for those who look."""
    state = max(finished[0].glob("*/chains/state-*.npz"))
    with np.load(state) as archive:
        meta = json.loads(archive["meta"].tobytes())
    assert meta["count"] == 70
    assert meta["draws"] == 40
    assert meta["fingerprint"]["seed"] == "0"
