"""A process that is stopped and not ended, as if its host hung. Knows processes, and no job."""

import os
import signal
from pathlib import Path

from darkroom.stack.servers import wait_until

STOP_SECONDS = 60


def freeze(pid: int) -> None:
    """Stop a process, and return when all of it has: a thread that waits for a core goes on for some milliseconds."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _is_frozen(pid), seconds=STOP_SECONDS, refusal=lambda: f"{pid} does not stop")


def _is_frozen(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    try:
        # The state follows the name, which is in brackets and may hold any character.
        states = [(thread / "stat").read_text().rpartition(") ")[2][0] for thread in threads]
    except (FileNotFoundError, ProcessLookupError):  # one of them has just ended
        return False
    return all(state == "T" for state in states)
