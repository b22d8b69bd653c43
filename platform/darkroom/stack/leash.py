"""Run a command that cannot outlive the process that started it. Knows the standard library and nothing of Darkroom.

It is run as a file, so that a part starts in milliseconds: `python -I -S leash.py COMMAND...` becomes COMMAND.
On Linux the kernel keeps the promise, kill -9 included. Elsewhere the command runs untied.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
HOLDER = "DARKROOM_LEASH_HOLDER"


def tie(holder: int) -> None:
    """Have the kernel kill this process when its parent ends; exit at once if the parent is no longer `holder`.

    The bond survives exec and is not inherited by children, who must tie themselves.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != holder:  # it died before the kernel was asked
        sys.exit("the process that started this one is gone")


def leashed(command: list[str]) -> list[str]:
    """Put a command on the leash. Whoever runs it hands `held_by()` to its environment, or is itself on a leash."""
    return [sys.executable, "-I", "-S", __file__, *command]


def held_by(pid: int) -> dict[str, str]:
    """Name the process that holds the leash, for the environment of a leashed command."""
    return {HOLDER: str(pid)}


if __name__ == "__main__":
    tie(int(os.environ[HOLDER]))
    os.environ[HOLDER] = str(os.getpid())  # what this process starts on a leash is held by it
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell is the point
