"""Storage against answers that a healthy S3 server does not give, from a server that knows only its script."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from darkroom.config import load_settings
from darkroom.errors import StorageError
from darkroom.storage import Storage


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    missing_bytes: int = 0  # how many are promised and never sent


@dataclass
class ScriptedServer:
    """Answers one request after the other from a script; its last entry answers all that follow. Knows no S3."""

    script: list[Answer]
    num_requests: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_answer(self, headers: dict[str, str], body: bytes) -> Answer:
        with self.lock:
            self.num_requests += 1
            self.headers, self.body = headers, body
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    state = ScriptedServer([Answer()])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = state.next_answer(dict(self.headers), body)
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body) + answer.missing_bytes))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            self.close_connection = bool(answer.missing_bytes)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


@pytest.fixture
def storage(scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return Storage(load_settings(home=tmp_path, s3_endpoint_url=scripted.url))


KEY = "jobs/01890a5d-ac96-774b-bcce-b302099a8057/1/0.png"
THUMB = "jobs/01890a5d-ac96-774b-bcce-b302099a8057/1/0.thumb.webp"
BUSY = Answer(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
BROKEN = Answer(500, b"<Error><Code>InternalError</Code><Message>We broke.</Message></Error>")
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")


@pytest.mark.parametrize("fault", [BUSY, BROKEN, Answer(502, b"<html>bad gateway</html>")])
def test_passing_fault_is_tried_again(storage: Storage, scripted: ScriptedServer, fault: Answer) -> None:
    scripted.script = [fault, Answer()]
    storage.put(KEY, b"picture", content_type="image/png")
    assert scripted.num_requests == 2


def test_lasting_fault_is_given_up_after_three_attempts(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [BUSY]
    with pytest.raises(StorageError, match="SlowDown") as caught:
        storage.put(KEY, b"picture", content_type="image/png")
    assert (caught.value.operation, caught.value.key) == ("put", KEY)
    assert scripted.num_requests == 3


def test_refusal_is_not_tried_again(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [DENIED]
    with pytest.raises(StorageError, match="AccessDenied"):
        storage.get(KEY)
    assert scripted.num_requests == 1


def test_check_asks_once(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [Answer(503)]
    with pytest.raises(StorageError, match="503"):
        storage.check()
    assert scripted.num_requests == 1


def test_bucket_that_takes_no_pictures_is_found_out_at_once(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [DENIED]
    with pytest.raises(StorageError, match="AccessDenied") as caught:
        storage.check_writing()
    assert caught.value.operation == "put"
    assert scripted.num_requests == 1


def test_bucket_that_keeps_other_bytes_is_found_out(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [Answer(200), Answer(200, b"others"), Answer(204)]
    with pytest.raises(StorageError, match="other bytes"):
        storage.check_writing()
    assert scripted.num_requests == 3


def test_probe_that_cannot_be_read_back_is_removed_all_the_same(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [Answer(200), DENIED, Answer(204)]
    with pytest.raises(StorageError, match="AccessDenied") as caught:
        storage.check_writing()
    assert caught.value.operation == "get"
    assert scripted.num_requests == 3, "put, get, delete"


def test_object_that_breaks_off_is_a_storage_error_and_not_a_short_picture(
    storage: Storage, scripted: ScriptedServer
) -> None:
    scripted.script = [Answer(200, b"half a pic", missing_bytes=90)]
    with pytest.raises(StorageError, match=KEY):
        storage.get(KEY)
    opened = storage.open(KEY)
    with pytest.raises(StorageError, match=KEY):
        list(opened.chunks)


def test_objects_that_could_not_be_deleted_are_named_and_counted(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [Answer(200, _refused(THUMB, "AccessDenied"))]
    with pytest.raises(StorageError, match=r"AccessDenied.*1 of 2 objects") as caught:
        storage.delete([KEY, THUMB])
    assert caught.value.key == THUMB


def test_object_that_a_server_calls_missing_counts_as_deleted(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [Answer(200, _refused(THUMB, "NoSuchKey"))]
    storage.delete([KEY, THUMB])


def test_delete_carries_the_sum_that_older_servers_demand(storage: Storage, scripted: ScriptedServer) -> None:
    scripted.script = [Answer(200, b"<DeleteResult/>")]
    storage.delete([KEY, THUMB])
    assert THUMB.encode() in scripted.body
    assert scripted.headers["Content-MD5"] == b64encode(md5(scripted.body).digest()).decode()
    assert "content-md5" in scripted.headers["Authorization"], "the sum is signed too"


def test_bucket_that_is_somebody_elses_is_refused(storage: Storage, scripted: ScriptedServer) -> None:
    taken = b"<Error><Code>BucketAlreadyExists</Code><Message>Taken</Message></Error>"
    scripted.script = [Answer(404), Answer(409, taken), Answer(403)]
    with pytest.raises(StorageError, match="access denied"):
        storage.ensure_bucket()


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_requests_are_signed_for_the_region_of_the_environment(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv(name, "eu-central-1")
    Storage(load_settings(home=tmp_path, s3_endpoint_url=scripted.url)).check()
    assert "/eu-central-1/s3/aws4_request" in scripted.headers["Authorization"]


def _refused(key: str, code: str) -> bytes:
    return (
        f"<DeleteResult><Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error></DeleteResult>"
    ).encode()
