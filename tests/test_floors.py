"""The floors of the house: which part may import which (pyproject.toml, tool.importlinter)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_import_contracts():
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_import_is_lazy():
    """Heavy libraries are loaded when they are first needed, not by ``import sojourn``."""
    code = "import sys, sojourn; print([m for m in ('arviz', 'matplotlib', 'xarray', 'blackjax', 'scipy.stats') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_arviz_may_come_first():
    """ArviZ 1.x loads NumPyro lazily; imported before sojourn it must not break the models."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import arviz, jax, sojourn\n"
        "from numpyro.infer import Predictive\n"
        "from sojourn.models import hidden_markov\n"
        "Predictive(hidden_markov.poisson, num_samples=1)(jax.random.key(0), None, num_states=2, num_steps=3)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
