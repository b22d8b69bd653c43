"""A stack held in the foreground of a terminal: until a signal, or for the time of one block."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from darkroom.stack.embedded import Report, Stack

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECK_SECONDS = 1.0


class Interrupted(Exception):
    """Somebody wants this to end."""


@contextmanager
def started(stack: Stack) -> Iterator[None]:
    """Start a stack, and stop it at the end of the block, whatever ends it.

    The first signal raises Interrupted in the block; a second one, while the parts stop, ends them at once.
    """

    def interrupt(_number: int, _frame: Any) -> None:
        raise Interrupted

    earlier = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        stack.start()
        yield
    finally:
        for number in SIGNALS:  # a signal that raised now would leave the parts to be killed
            signal.signal(number, lambda *_: stack.kill())
        stack.stop()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def hold(stack: Stack, *, report: Report) -> None:
    """Keep a stack running until a signal. Raises StackError when it cannot run or cannot be kept running."""
    try:
        with started(stack):
            report(f"\nthe form is on {stack.url}\nlogs are in {stack.logs}\nCtrl-C stops everything")
            while True:
                time.sleep(CHECK_SECONDS)
                stack.check()
    except Interrupted:
        report("stopped")
