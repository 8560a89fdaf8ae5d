"""Record the transitions of Crafter that the tests of laws read.

    python benchmarks/record_crafter.py [--out tests/data/crafter_transitions.npz]

Takes a few minutes and needs the extra ``sojourn[crafter]``. Equal versions of Crafter, NumPy and opensimplex give an
equal file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sojourn.environments.crafter import ACTIONS, laboratory, play
from sojourn.environments.crafter_records import crafter_transitions, save_crafter_transitions

OUT = Path(__file__).parents[1] / "tests" / "data" / "crafter_transitions.npz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    sets = {"train": laboratory(6000, seed=1), "test": laboratory(1000, seed=2), "wild": play(600, seed=3)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_crafter_transitions(out, **sets)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")
    for name, seen in sets.items():
        assert np.array_equal(crafter_transitions(out, name).states["occupied"], seen.states["occupied"])
        often = np.bincount(seen.actions, minlength=len(ACTIONS))
        print(
            f"{name}: {seen.num_transitions} transitions, {seen.states['life'][-1] + 1} stretches, actions {often}"
        )


if __name__ == "__main__":
    main()
