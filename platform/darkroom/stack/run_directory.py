"""`<home>/run`: what exists only while a stack runs, and the lock that lets one stack run per home.

Knows files and locks; knows no process but by its number.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from darkroom.errors import StackError
from darkroom.stack.servers import write_private

SOCKET_PATH_BYTES = 90  # the kernel allows 107 and supervisord adds a suffix of its own while it binds


@dataclass(frozen=True)
class Record:
    """A stack as it wrote itself down. `environment` holds its addresses and passwords."""

    pid: int
    url: str
    socket: str
    environment: Mapping[str, str]


class RunDirectory:
    """The run directory of one home. Whoever holds it may write it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "run"
        self._lock_path = self.path / "lock"
        self._record_path = self.path / "stack.json"
        self._lock: IO[str] | None = None

    def claim(self) -> Record | None:
        """Take the directory, and return what a stack that was killed has left in it.

        Raises StackError, naming the process, when a stack of this home runs.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock = self._lock_path.open("a+")
        except OSError as error:
            raise StackError(f"DARKROOM_HOME: {self.home} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip()
            lock.close()
            raise StackError(
                f"Darkroom already runs at {self.home} (pid {pid or 'unknown'}): "
                "stop that one, or choose another home with DARKROOM_HOME"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        return self._read()

    def clear(self) -> None:
        """Remove everything but the lock."""
        for path in self.path.iterdir():
            if path == self._lock_path:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def release(self) -> None:
        """Empty the directory and give it back. Idempotent."""
        if self._lock:
            self.clear()
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def socket_path(self) -> Path:
        """Choose where a socket can be bound: here, or in a folder of its own when the path here is too long."""
        here = self.path / "supervisor.sock"
        if _fits(here):
            return here
        folder = tempfile.gettempdir()
        is_short = _fits(Path(folder, "darkroom-12345678", here.name))
        return Path(tempfile.mkdtemp(prefix="darkroom-", dir=folder if is_short else "/tmp")) / here.name  # noqa: S108

    def forget_socket(self, socket: Path) -> None:
        """Remove the folder that socket_path may have made."""
        if socket.parent != self.path:
            shutil.rmtree(socket.parent, ignore_errors=True)

    def write(self, record: Record) -> None:
        """Write down the stack that runs, for `darkroom doctor` and for whoever comes after a crash."""
        write_private(self._record_path, json.dumps(asdict(record)))

    def running(self) -> Record | None:
        """Read what the running stack wrote down; None when none runs."""
        if not self._lock_path.exists():
            return None
        with self._lock_path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._read()
        return None

    def _read(self) -> Record | None:
        try:
            return Record(**json.loads(self._record_path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # cut off by a crash
            return None


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES
