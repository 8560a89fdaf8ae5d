"""``sojourn run``: a script as one program in several processes, on one machine or on many."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import IO, Any

__all__ = ["launch", "ranks", "worker"]

_GRACE = 10.0  # seconds that processes have to write down where they stand before they are killed
_HEARTBEAT = 30  # seconds without a sign of life after which the others give a process up
_RANKS = (
    ("SLURM_PROCID", "SLURM_NTASKS", "none: JAX asks SLURM where process 0 is"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
)


def ranks(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Number of this task and of all tasks, as SLURM, Open MPI or MPICH tell them; ``None`` outside of these.

    Example:
        >>> ranks({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"})
        (3, 8)
    """
    for rank, size, _ in _RANKS:
        if rank in environment and int(environment.get(size, 1)) > 1:
            return int(environment[rank]), int(environment[size])
    return None


def _common_coordinator(environment: Mapping[str, str]) -> str | None:
    """Where process 0 listens, if ``mpirun`` started all tasks on this machine: children of one process, whose number
    makes a port that all can work out."""
    for rank, size, local in _RANKS:
        if rank in environment and environment.get(size) == environment.get(local, ""):
            return f"127.0.0.1:{20_000 + os.getppid() % 20_000}"
    return None


def launch(
    script: str,
    arguments: Sequence[str] = (),
    *,
    processes: int | None = None,
    devices: int | None = None,
    coordinator: str | None = None,
) -> int:
    """Run a script in several processes that know of each other, and see them all end.

    Args:
        script: path of a Python script.
        arguments: its arguments.
        processes: how many to start here. By default one, which joins those that ``srun`` or ``mpirun`` start
            elsewhere if this command was started by them.
        devices: number of devices to make of the processors, for each process.
        coordinator: ``HOST:PORT`` where process 0 listens, where the batch system does not tell.

    Returns:
        0, or 1 if a process failed: then the others have been stopped, and what happened has been said.
    """
    if not os.path.isfile(script):
        print(f"sojourn run: there is no script '{script}'.", file=sys.stderr)
        return 2
    joined = ranks(os.environ) if processes is None else None
    count = processes or 1
    # All must trace the same program, and NumPyro flattens distributions in the order of a set of names.
    settings = {"PYTHONHASHSEED": "0", **os.environ}
    if devices is not None:
        flags = settings.get("XLA_FLAGS", "")
        settings["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    if coordinator is not None:
        settings["SOJOURN_COORDINATOR"] = coordinator
    elif count > 1:
        settings["SOJOURN_COORDINATOR"] = f"127.0.0.1:{_free_port()}"
    elif joined is not None:
        common = _common_coordinator(os.environ)
        settings |= {} if common is None else {"SOJOURN_COORDINATOR": common}
    command = [sys.executable, "-m", "sojourn._launch", script, *arguments]
    running: list[subprocess.Popen[bytes]] = []
    said: list[IO[bytes] | None] = []
    for number in range(count):
        own = dict(settings)
        if joined is not None:
            own["SOJOURN_PROCESS"] = f"{joined[0]}/{joined[1]}"
        elif count > 1:
            own["SOJOURN_PROCESS"] = f"{number}/{count}"
        # All run the same script; one of them speaks.
        quiet = number > 0
        errors = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115
        output = subprocess.DEVNULL if quiet else None
        running.append(subprocess.Popen(command, env=own, stdout=output, stderr=errors))
        said.append(errors)
    first, total = joined if joined is not None else (0, count)
    return _see_to_the_end(running, said, first, total)


def _see_to_the_end(
    running: list[subprocess.Popen[bytes]], said: list[IO[bytes] | None], first: int, total: int
) -> int:
    asked = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            codes = [process.poll() for process in running]
            lost = [i for i, code in enumerate(codes) if code not in (None, 0)]
            if lost or None not in codes:
                break
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not lost:
        return 0
    culprit = _culprit(codes, lost)
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in running:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not asked:
        errors = said[culprit]
        if errors is not None:
            errors.seek(0)
            print(b"\n".join(errors.read().splitlines()[-20:]).decode(errors="replace"), file=sys.stderr)
        print(_words(culprit + first, total, codes[culprit]), file=sys.stderr)
    return 1


def _culprit(codes: Sequence[int | None], lost: Sequence[int]) -> int:
    """Of several that have ended, one that was killed from outside: the others failed for want of it."""
    killed = [i for i in lost if codes[i] in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV)]
    return (killed or list(lost))[0]


def _words(number: int, total: int, code: int | None) -> str:
    assert code is not None
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with an error (code {code})"
    others = "" if total == 1 else " The others have been stopped."
    return (
        f"sojourn run: process {number} of {total} {how}.{others} Start the same command again: a fit with `checkpoint=` "
        "goes on from its last state."
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def worker(script: str, arguments: Sequence[str]) -> None:
    """One of the processes: join the others, then run the script."""
    place = os.environ.get("SOJOURN_PROCESS")
    if place is not None:
        import jax

        number, count = map(int, place.split("/"))
        coordinator = os.environ.get("SOJOURN_COORDINATOR")
        settings: dict[str, Any] = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": number,
        }
        jax.distributed.initialize(
            **(settings if coordinator is not None else {}),  # else JAX asks the batch system
            heartbeat_timeout_seconds=_HEARTBEAT,
            initialization_timeout=120,
        )
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException as error:
        if place is None or (isinstance(error, SystemExit) and not error.code):
            raise
        # At its exit JAX would wait for the others, who wait for this one.
        if isinstance(error, SystemExit):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2:])
