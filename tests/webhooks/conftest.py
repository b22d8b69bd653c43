"""A receiver that really listens, and does what a test tells it."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest
from claiming import claim_one
from sqlalchemy import func, select, tuple_, update

from darkroom import jobs
from darkroom.db import Database, now
from darkroom.jobs import ImageRecord, JobClass, NewJob, Success
from darkroom.models import DeliveryState, JobEvent, WebhookCursor, WebhookDelivery
from darkroom.params import GenerationParams
from darkroom.stack.servers import wait_until
from darkroom.webhooks import deliveries
from darkroom.webhooks.courier import Courier
from darkroom.webhooks.deliveries import Claimed, DeliveryRecord
from darkroom.webhooks.destinations import Destinations
from darkroom.webhooks.sending import Sender
from darkroom.webhooks.subscriptions import EVENTS


@dataclass
class Received:
    """One request that reached the receiver."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers each path with its status, 204 where nothing else was said. `gate` closed: it answers nobody."""

    port: int = 0
    statuses: dict[str, list[int]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    num_inside: int = 0
    most_inside: int = 0
    came: threading.Condition = field(default_factory=threading.Condition)

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def answer(self, path: str, *statuses: int) -> None:
        """Answer a path with these statuses, one after another and the last one for ever."""
        self.statuses[path] = list(statuses)

    def take(self, request: Received) -> int:
        with self.came:
            self.received.append(request)
            self.num_inside += 1
            self.most_inside = max(self.most_inside, self.num_inside)
            self.came.notify_all()
        assert self.gate.wait(30)
        with self.came:
            self.num_inside -= 1
            left = self.statuses.get(request.path, [204])
            return left.pop(0) if len(left) > 1 else left[0]

    def wait_for(self, num_requests: int) -> list[Received]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.received) >= num_requests, timeout=30), len(self.received)
            return list(self.received)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.take(Received(self.path, headers, body))
            self.send_response(status)
            if status in {301, 302, 307, 308}:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield receiver
    receiver.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[Any], None]], int]]:
    """Start a server that hands each connection to a function; return its port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(serve: Callable[[Any], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    serve(connection)
                except OSError:
                    return

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


@dataclass
class Post:
    """A deployment's webhooks by hand: jobs with and without them, and time that moves by an UPDATE."""

    database: Database
    receiver: Receiver

    def submit(self, *, url: str | None = None, events: tuple[str, ...] = EVENTS, owner: str = "ann") -> UUID:
        params = GenerationParams(
            prompt="a red house",
            width=64,
            height=64,
            num_inference_steps=1,
            guidance_scale=1.0,
            sampler="euler",
            seed=7,
        )
        webhook = {"url": url, "events": list(events)} if url else None
        new = NewJob("small", params, JobClass.BULK, 3600, webhook=webhook)
        return jobs.submit(self.database, new, owner=owner).id

    def develop(self) -> UUID:
        """Take the front job through a worker's hands."""
        claim = claim_one(
            self.database, worker_id="w", models=["small"], num_held=0, lease_seconds=60, lines=jobs.Lines()
        )
        assert claim
        key = f"jobs/{claim.job_id}/1/0.png"
        image = ImageRecord(0, key, key, "image/png", 64, 64, num_bytes=9, seed=7, sha256="0" * 64)
        jobs.succeed(self.database, Success(claim.job_id, claim.attempt, [image], timings={}))
        return claim.job_id

    def set(self, table: Any, where: Any, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(update(table).where(where).values(**values))

    def pass_time(self) -> None:
        """Everything that waits for its time is due."""
        self.set(WebhookDelivery, WebhookDelivery.state == "pending", due_at=now(-1))

    def plan(self) -> None:
        """Plan all that has happened. A transaction of PostgreSQL's own may hold that up for a moment."""

        def is_planned() -> bool:
            while deliveries.plan(self.database):
                pass
            place = tuple_(JobEvent.xid, JobEvent.position)
            with self.database.read() as session:
                cursor = session.execute(select(WebhookCursor.xid, WebhookCursor.position)).one_or_none()
                left = select(func.count()).select_from(JobEvent).where(place > tuple_(*(cursor or (0, 0))))
                return session.scalar(left) == 0

        wait_until(is_planned, seconds=30, refusal=lambda: "the history is not planned to its end")

    def claim(self) -> Claimed:
        claimed = deliveries.claim(self.database)
        assert claimed
        return claimed

    def courier(self, destinations: Destinations | None = None, **how: Any) -> Courier:
        rules = destinations or Destinations.read(["127.0.0.0/8"])
        return Courier(self.database, Sender(rules, total_seconds=10), poll_seconds=0.05, **how)

    def carry(self) -> int:
        """Plan, and carry out all that is due, one after another; return how many tries that were."""
        self.plan()
        courier, num_tries = self.courier(), 0
        while claimed := deliveries.claim(self.database):
            courier.deliver(claimed)
            num_tries += 1
        return num_tries

    def list(self, owner: str = "ann", **filters: Any) -> list[DeliveryRecord]:
        return deliveries.list_deliveries(self.database, owner=owner, **filters)

    def all_ended(self) -> bool:
        return all(each.state is not DeliveryState.PENDING for each in self.list(limit=1000))


@pytest.fixture
def post(database: Database, receiver: Receiver) -> Post:
    return Post(database, receiver)
