"""The README's examples, as a user would paste them."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Amortised rates"
)  # two patients are fewer than the network was trained on
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_examples_run(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[index]
    exec(compile(block.replace("num_simulations=200", "num_simulations=5"), "README.md", "exec"), {})
    page = {0: "earthquakes.html", 1: "volatility.html"}.get(index)
    if page:
        assert (tmp_path / page).stat().st_size > 100_000
