"""Ctrl-C, and a system that asks to end: noticed between two blocks, where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stop", "stop_signals"]


class Stop:
    """Whether someone asked to stop.

    Attributes:
        asked: someone did.
        ended: it was the system (SIGTERM, as batch queues send before they kill), so that the process ends too.
    """

    def __init__(self) -> None:
        self.asked = False
        self.ended = False


@contextmanager
def stop_signals(*, terminate: bool = False) -> Iterator[Stop]:
    """Within this context the first Ctrl-C is a wish, told by ``Stop.asked``; the second one raises as ever.

    Args:
        terminate: take SIGTERM for a wish as well.

    Example:
        >>> import os, signal
        >>> with stop_signals() as stop:
        ...     os.kill(os.getpid(), signal.SIGINT)
        ...     stop.asked
        True
    """
    stop = Stop()
    before = {}

    def interrupt(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    def end(number, frame):
        stop.asked = stop.ended = True

    # Only there does Python allow handlers; elsewhere an interrupt is not delivered to us anyway.
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        if terminate and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
