"""The README's examples, as a user would paste them."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Amortised rates"
)  # two patients are fewer than the network was trained on
@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5, 6, 7])
def test_examples_run(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[index]
    # One of them asks for double precision, which is not to last.
    before = jax.config.read("jax_enable_x64")
    try:
        exec(compile(block.replace("num_simulations=200", "num_simulations=5"), "README.md", "exec"), {})
    finally:
        jax.config.update("jax_enable_x64", before)
    page = {0: "earthquakes.html", 1: "volatility.html"}.get(index)
    if page:
        assert (tmp_path / page).stat().st_size > 100_000
