"""The loop of a web process that delivers: a few at a time, each in a thread of its own. Knows when, not what."""

import threading
from datetime import UTC, datetime

import structlog

from darkroom import __version__
from darkroom.db import Database
from darkroom.loops import Loop
from darkroom.webhooks import deliveries
from darkroom.webhooks.deliveries import Claimed
from darkroom.webhooks.messages import compose
from darkroom.webhooks.secrets import signed_headers
from darkroom.webhooks.sending import Answer, Sender

logger = structlog.get_logger(__name__)

MOST_AT_ONCE = 8
POLL_SECONDS = 1.0


class Courier:
    """Plans deliveries and carries them out. `ensure_alive` starts it, after the fork, and anew if it has died."""

    def __init__(
        self,
        database: Database,
        sender: Sender,
        *,
        most_at_once: int = MOST_AT_ONCE,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._database = database
        self._sender = sender
        self._poll_seconds = poll_seconds
        self._room = threading.Semaphore(most_at_once)
        self._wake = threading.Event()
        self._loop = Loop("webhooks", self._turn, pause_seconds=0)
        self.ensure_alive = self._loop.ensure_alive

    def stop(self) -> None:
        """End the loop. What is under way ends by itself or, with the process, by its lease. Again is fine."""
        self._wake.set()
        self._loop.stop()

    def _turn(self) -> None:
        self._wake.wait(self._poll_seconds)
        self._wake.clear()
        while deliveries.plan(self._database):
            pass
        self._start_due()

    def _start_due(self) -> None:
        while self._room.acquire(blocking=False):
            try:
                claimed = deliveries.claim(self._database)
            except BaseException:
                self._room.release()
                raise
            if claimed is None:
                self._room.release()
                return
            threading.Thread(target=self._deliver, args=(claimed,), name="webhook", daemon=True).start()

    def _deliver(self, claimed: Claimed) -> None:
        try:
            self.deliver(claimed)
        except Exception:  # its lease runs out, and it is tried again
            logger.exception("webhook_broke", delivery=str(claimed.id), job_id=str(claimed.job_id))
        finally:
            self._room.release()
            self._wake.set()

    def deliver(self, claimed: Claimed) -> None:
        """Carry out one delivery that was claimed."""
        message = compose(self._database, claimed)
        if message is None:
            return
        at = datetime.now(UTC)
        headers = signed_headers(str(claimed.id), message.body, keys=message.keys, at=at)
        headers |= {"Content-Type": "application/json", "User-Agent": f"Darkroom/{__version__}"}
        answer = self._sender.post(message.url, message.body, headers=headers)
        state = deliveries.finish(self._database, claimed, answer)
        self._log(claimed, answer, state)

    def _log(self, claimed: Claimed, answer: Answer, state: object) -> None:
        log = logger.info if answer.is_delivered else logger.warning
        log(
            "webhook_tried",
            delivery=str(claimed.id),
            job_id=str(claimed.job_id),
            num_tries=claimed.num_tries,
            status=answer.status,
            reason=answer.error,
            state=state,
        )
