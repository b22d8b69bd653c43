"""Shows on one line of the terminal how far a stage is; where there is no terminal, a line now and then."""

import sys
import time
from collections.abc import Mapping

PLAIN_SECONDS = 15.0
WIDTH = 24


class Bar:
    """A progress bar on stderr."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started_at = self._shown_at = time.monotonic()
        self._first_step = self._last_step = -1

    def __call__(self, step: int, num_steps: int, values: Mapping[str, float], /) -> None:
        now = time.monotonic()
        if self._first_step < 0 or step <= self._last_step:  # another stage begins
            self._first_step, self._started_at = step, now
        self._last_step = step
        is_last = step >= num_steps
        if not self._is_terminal and not is_last and now - self._shown_at < PLAIN_SECONDS:
            return
        self._shown_at = now
        rate = (step - self._first_step) / max(1e-9, now - self._started_at)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"{_blocks(step / num_steps)} {step}/{num_steps}  {rate:.2f}/s  {numbers}"
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if is_last else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _blocks(part: float) -> str:
    filled = round(WIDTH * min(1.0, part))
    return "█" * filled + "░" * (WIDTH - filled)
