"""Command line: ``sojourn demo`` fits real data and writes a report page, ``sojourn run`` starts several processes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sojourn as sj
from sojourn._demos import DEMOS
from sojourn._launch import launch

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``sojourn``.

    Example:
        >>> main(["demo", "--list"])
        hidden-markov    earthquakes of magnitude 7 or more, 1900-2006: how many regimes, and when?
        particle-gibbs   returns of the S&P 500, 2007-2010: how volatile was the market, and when?
        langevin         earthquakes again: how did activity drift, and which sampler needs the fewest gradients?
        jump-process     liver cirrhosis: does prednisone change how fast patients get worse, better, or die?
        exceedance       daily temperatures: how long do warm and cold spells last, and how long does the longest?
        fractional-sde   volatility of the S&P 500: how rough is it, and would Brownian noise do?
        langevin-flow    spikes of thirty neurons (simulated): what moves their rates, and what will neurons not recorded do?
        laws             a small world (simulated), and Crafter if installed: which of these laws are real, and what should one do?
        0
    """
    parser = argparse.ArgumentParser(prog="sojourn", description=sj.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="fit real data, print the verdict, write a report page")
    demo.add_argument("name", nargs="?", default="hidden-markov", choices=list(DEMOS))
    demo.add_argument("--list", action="store_true", help="list the demonstrations")
    demo.add_argument("--output", type=Path, default=Path("reports"), help="folder of the page (reports/)")
    demo.add_argument("--num-samples", type=_positive, default=1000, help="draws a chain (1000)")
    demo.add_argument("--num-warmup", type=_positive, default=500, help="warm-up draws a chain (500)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--open", action="store_true", help="open the page in a browser")
    run = commands.add_parser("run", help="run a script in several processes that share out its fits")
    run.add_argument("--processes", type=_positive, help="started here; under srun or mpirun leave it out")
    run.add_argument("--devices", type=_positive, help="devices to make of the processors, for each process")
    run.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0, where the batch system does not tell"
    )
    run.add_argument("script", help="a Python script that calls sj.fit")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args(arguments)
    if options.command == "run":
        return launch(
            options.script,
            options.arguments,
            processes=options.processes,
            devices=options.devices,
            coordinator=options.coordinator,
        )
    if options.list:
        for name, (question, _) in DEMOS.items():
            print(f"{name:16s} {question}")
        return 0
    DEMOS[options.name][1](options)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
