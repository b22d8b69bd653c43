"""Storage against a real S3 server."""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from darkroom.config import Settings
from darkroom.errors import ObjectNotFound, StorageError
from darkroom.storage import CHUNK_BYTES, DELETE_BATCH, Storage, attempt_keys, content_type, image_key, thumb_key

JOB = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
KEY = image_key(JOB, 1, 0, "png")


def test_object_comes_back_as_it_was_put(storage: Storage) -> None:
    storage.put(KEY, b"picture", content_type="image/png")
    assert storage.get(KEY) == b"picture"


def test_later_put_replaces_the_object(storage: Storage) -> None:
    storage.put(KEY, b"first", content_type="image/png")
    storage.put(KEY, b"second", content_type="image/png")
    assert storage.get(KEY) == b"second"


def test_opened_object_streams_in_chunks_with_its_type_and_size(storage: Storage) -> None:
    body = bytes(range(256)) * (CHUNK_BYTES * 5 // 2 // 256)
    storage.put(KEY, body, content_type="image/png")
    opened = storage.open(KEY)
    parts = list(opened.chunks)
    assert (opened.content_type, opened.num_bytes) == ("image/png", len(body))
    assert len(parts) == 3
    assert b"".join(parts) == body


def test_empty_object_streams_no_chunk(storage: Storage) -> None:
    storage.put(KEY, b"", content_type="image/png")
    assert list(storage.open(KEY).chunks) == []


def test_closing_an_unread_object_gives_its_connection_up(storage: Storage) -> None:
    storage.put(KEY, bytes(16 * CHUNK_BYTES), content_type="image/png")
    before = _num_open_files()
    opened = [storage.open(KEY).chunks for _ in range(20)]
    assert next(opened[0])
    assert _num_open_files() >= before + 19  # one connection was there already
    for chunks in opened:
        chunks.close()
    assert _num_open_files() <= before


def _num_open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_missing_object_is_named_whether_read_or_opened(storage: Storage) -> None:
    with pytest.raises(ObjectNotFound, match=KEY) as from_get:
        storage.get(KEY)
    with pytest.raises(ObjectNotFound, match=KEY):
        storage.open(KEY)
    assert (from_get.value.operation, from_get.value.key) == ("get", KEY)


def test_delete_removes_what_is_there_and_accepts_what_is_not(storage: Storage) -> None:
    keys = attempt_keys(JOB, 1, 2, "webp")
    storage.put(keys[0], b"picture", content_type="image/webp")
    storage.put(keys[2], b"thumb", content_type="image/webp")
    storage.delete(keys)
    storage.delete(keys)
    for key in keys:
        with pytest.raises(ObjectNotFound):
            storage.get(key)


def test_delete_of_one_attempt_leaves_the_other(storage: Storage) -> None:
    winner = image_key(JOB, 2, 0, "png")
    for key in (KEY, winner):
        storage.put(key, b"picture", content_type="image/png")
    storage.delete(attempt_keys(JOB, 1, 1, "png"))
    assert storage.get(winner) == b"picture"


def test_delete_of_nothing_asks_nothing(settings: Settings) -> None:
    Storage(settings).delete([])  # the bucket does not exist: a request would fail


def test_delete_takes_more_keys_than_one_request_does(storage: Storage) -> None:
    first, last = image_key(JOB, 1, 0, "png"), image_key(JOB, 1, DELETE_BATCH, "png")
    for key in (first, last):
        storage.put(key, b"picture", content_type="image/png")
    storage.delete(image_key(JOB, 1, n, "png") for n in range(DELETE_BATCH + 1))
    for key in (first, last):
        with pytest.raises(ObjectNotFound):
            storage.get(key)


@pytest.mark.parametrize(
    "key", ["", "jobs/../secret.png", "/jobs/a.png", "jobs//a.png", "jobs/a.png/", "jobs/A.png", "jobs/ä.png", "a\n"]
)
def test_key_outside_our_layout_is_refused_before_anything_is_sent(storage: Storage, key: str) -> None:
    with pytest.raises(StorageError, match="not a key of ours"):
        storage.put(key, b"picture", content_type="image/png")


def test_every_object_of_an_attempt_has_a_key_of_its_own() -> None:
    keys = [key for attempt in (1, 2) for key in attempt_keys(JOB, attempt, 4, "webp")]
    assert len(set(keys)) == len(keys) == 18
    assert image_key(JOB, 2, 3, "webp") == f"jobs/{JOB}/2/3.webp"
    assert thumb_key(JOB, 2, 3) == f"jobs/{JOB}/2/3.thumb.webp"
    assert {image_key(JOB, 2, 3, "webp"), thumb_key(JOB, 2, 3)} <= set(keys)


def test_content_type_follows_the_extension() -> None:
    assert content_type(image_key(JOB, 1, 0, "jpeg")) == "image/jpeg"
    assert content_type(thumb_key(JOB, 1, 0)) == "image/webp"
    assert content_type("jobs/a") == "application/octet-stream"


def test_many_threads_share_one_storage(storage: Storage) -> None:
    def round_trip(n: int) -> bytes:
        key = image_key(JOB, 1, n, "png")
        storage.put(key, str(n).encode(), content_type="image/png")
        return storage.get(key)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(round_trip, range(64))) == [str(n).encode() for n in range(64)]


def test_bucket_can_be_ensured_again_and_by_many_at_once(settings: Settings) -> None:
    barrier = threading.Barrier(4, timeout=20)

    def ensure() -> None:
        storage = Storage(settings)
        barrier.wait()
        storage.ensure_bucket()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ensure) for _ in range(4)]:
            done.result(30)
    Storage(settings).ensure_bucket()
    Storage(settings).check()


def test_bucket_is_created_in_another_region_too(settings: Settings) -> None:
    storage = Storage(settings.model_copy(update={"s3_region": "eu-central-1"}))
    storage.ensure_bucket()
    storage.check()


def test_check_names_a_missing_bucket(settings: Settings) -> None:
    with pytest.raises(StorageError, match=f"{settings.s3_bucket}: there is no such bucket"):
        Storage(settings).check()


def test_put_into_a_missing_bucket_is_a_storage_error_and_not_a_missing_object(settings: Settings) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket"):
        Storage(settings).put(KEY, b"picture", content_type="image/png")
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        Storage(settings).get(KEY)
    assert not isinstance(caught.value, ObjectNotFound)


def test_wrong_secret_is_a_storage_error_that_does_not_tell_it(
    settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    wrong = Storage(settings)
    with pytest.raises(StorageError, match="SignatureDoesNotMatch") as caught:
        wrong.put(KEY, b"picture", content_type="image/png")
    with pytest.raises(StorageError, match="access denied"):
        wrong.check()
    assert "not-the-secret" not in str(caught.value)


def test_absent_credentials_are_a_storage_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="credentials"):
        Storage(settings).put(KEY, b"picture", content_type="image/png")


def test_endpoint_that_is_no_url_is_a_storage_error(settings: Settings) -> None:
    with pytest.raises(StorageError, match="endpoint"):
        Storage(settings.model_copy(update={"s3_endpoint_url": "no url"}))


def test_http_proxy_does_not_stand_between_us_and_a_server_on_this_host(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    storage = Storage(settings)
    storage.ensure_bucket()
    storage.check()


def test_refused_connection_ends_soon_as_a_storage_error(settings: Settings) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        storage = Storage(settings.model_copy(update={"s3_endpoint_url": _url(closed)}))
        began = time.monotonic()
        with pytest.raises(StorageError, match=KEY):
            storage.get(KEY)
        with pytest.raises(StorageError, match="reach bucket"):
            storage.check()
    assert time.monotonic() - began < 10  # three attempts and their pauses: at most 1 + 2 s


def test_silent_endpoint_ends_within_its_bound(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts in the kernel's backlog, never answers
        storage = Storage(settings.model_copy(update={"s3_endpoint_url": _url(silent), "upload_limit_seconds": 6}))
        began = time.monotonic()
        with pytest.raises(StorageError, match="timeout"):
            storage.check()
        assert time.monotonic() - began < 6  # one attempt of 1 + 2 s
        began = time.monotonic()
        with pytest.raises(StorageError, match="timeout"):
            storage.put(KEY, b"picture", content_type="image/png")
        assert time.monotonic() - began < 10  # within the upload limit, and some seconds for a busy machine


def _url(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"
