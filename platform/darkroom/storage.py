"""Pictures as bytes in one S3 bucket, and the keys they have there. Knows boto3; knows no job, no lease, no HTTP.

Meant for every S3 server, the plainest included: what a picture is stands in SQL and in its key's extension, so no
metadata, tag, ACL, conditional put or listing is relied upon.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.response import StreamingBody

from darkroom.addresses import is_loopback
from darkroom.config import Settings
from darkroom.errors import ObjectNotFound, StorageError

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "avif": "image/avif"}
CHUNK_BYTES = 256 * 1024
SIGNED_SECONDS = 900
DELETE_BATCH = 1000  # the most keys one DeleteObjects takes
KEY = re.compile(r"[a-z0-9_-][a-z0-9_.-]*(/[a-z0-9_-][a-z0-9_.-]*)*")  # no empty segment, none that begins with a dot


def image_key(job_id: UUID, attempt: int, n: int, extension: str) -> str:
    """Name the object of picture n of one attempt. Attempts never share a key, so a stale one overwrites nothing."""
    return f"jobs/{job_id}/{attempt}/{n}.{extension}"


def thumb_key(job_id: UUID, attempt: int, n: int) -> str:
    """Name the object of the thumbnail of picture n."""
    return f"jobs/{job_id}/{attempt}/{n}.thumb.webp"


def walk_key(job_id: UUID, attempt: int) -> str:
    """Name the object that shows how an attempt's first picture came out of the noise."""
    return f"jobs/{job_id}/{attempt}/walk.webp"


def upload_key(owner: str, upload_id: UUID) -> str:
    """Name the object of an upload. Owners share no prefix, and no key tells an owner's name."""
    return f"uploads/{hashlib.sha256(owner.encode()).hexdigest()[:16]}/{upload_id}.png"


def reference_of(key: str) -> str | None:
    """What a request calls the object of a key: a picture's id, or an upload's. None for anything else."""
    if found := re.fullmatch(r"jobs/([0-9a-f-]{36})/[0-9]+/([0-9]+)\.[a-z]+", key):
        return f"job:{found[1]}/{found[2]}"
    found = re.fullmatch(r"uploads/[0-9a-f]{16}/([0-9a-f-]{36})\.png", key)
    return found[1] if found else None


def attempt_keys(job_id: UUID, attempt: int, num_images: int, extension: str) -> list[str]:
    """List every key that an attempt can have written, for pictures 0 to num_images - 1: the bucket is never listed."""
    images = [image_key(job_id, attempt, n, extension) for n in range(num_images)]
    thumbs = [thumb_key(job_id, attempt, n) for n in range(num_images)]
    return [*images, *thumbs, walk_key(job_id, attempt)]


def content_type(key: str) -> str:
    """Say what an object is by its extension: some servers forget the stored content type."""
    return CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream")


class Chunks:
    """The bytes of an object as they arrive. close() gives up the connection, also before the first chunk was read."""

    def __init__(self, key: str, body: StreamingBody) -> None:
        self._key = key
        self._body = body
        self._parts = body.iter_chunks(CHUNK_BYTES)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with _named("get", self._key):
            part = next(self._parts, b"")
        if not part:
            raise StopIteration
        return part

    def close(self) -> None:
        """Give the connection up. Again is fine."""
        self._body.close()


@dataclass(frozen=True)
class ByteRange:
    """A part of an object, both ends in it."""

    first: int
    last: int


@dataclass(frozen=True)
class StoredObject:
    """An object that is being read. Whoever opened it reads all chunks or closes them."""

    content_type: str
    num_bytes: int
    chunks: Chunks


class Storage:
    """One bucket. Safe to share between threads, not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.s3_bucket
        url, common = settings.s3_endpoint_url, _common(settings)
        session = Session(region_name=settings.s3_region)  # not boto3's default one, which threads may not share
        with _named("configure", self._bucket):
            try:
                self._client = session.client("s3", endpoint_url=url, config=common.merge(_patient(settings)))
                self._brisk = session.client("s3", endpoint_url=url, config=common.merge(_brisk()))
                public_url = settings.s3_public_endpoint_url
                self._public = session.client("s3", endpoint_url=public_url, config=common) if public_url else None
                self._probe = session.client("s3", endpoint_url=url, config=common.merge(_impatient()))
            except ValueError as error:
                raise StorageError("configure", key=self._bucket, reason=str(error)) from error
        self._client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5)

    def put(self, key: str, body: bytes, *, content_type: str, is_awaited: bool = False) -> None:
        """Write an object, over whatever had its key. Raises StorageError; within seconds where somebody waits."""
        if not KEY.fullmatch(key):
            raise StorageError("put", key=key, reason="not a key of ours: lower-case a-z, 0-9, '_', '-', '.', '/'")
        client = self._brisk if is_awaited else self._client
        with _named("put", key):
            client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType=content_type)

    def get(self, key: str) -> bytes:
        """Read a whole object. Raises ObjectNotFound or StorageError."""
        with _named("get", key):
            body: bytes = self._brisk.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return body

    def open(self, key: str, part: ByteRange | None = None) -> StoredObject:
        """Begin to read an object or a part of it, giving a silent server up within seconds: a request waits.

        Raises ObjectNotFound or StorageError here; its chunks raise StorageError later.
        """
        which = {"Range": f"bytes={part.first}-{part.last}"} if part else {}
        with _named("get", key):
            answer = self._brisk.get_object(Bucket=self._bucket, Key=key, **which)
        return StoredObject(content_type(key), answer["ContentLength"], Chunks(key, answer["Body"]))

    def signed_url(self, key: str, *, disposition: str) -> str:
        """Sign an address at the public host, good for SIGNED_SECONDS, that gives an object out under this disposition.

        Asks no server. Only where the storage `is_public`.
        """
        assert self._public
        with _named("sign", key):
            url: str = self._public.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentDisposition": disposition,
                    "ResponseContentType": content_type(key),
                },
                ExpiresIn=SIGNED_SECONDS,
            )
        return url

    @property
    def is_public(self) -> bool:
        """Whether clients can reach the storage themselves."""
        return self._public is not None

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there count as deleted. Raises StorageError, with some already gone."""
        todo = list(dict.fromkeys(keys))
        for start in range(0, len(todo), DELETE_BATCH):
            self._delete_batch(todo[start : start + DELETE_BATCH])

    def _delete_batch(self, keys: list[str]) -> None:
        objects: Any = [{"Key": key} for key in keys]
        with _named("delete", keys[0]):
            answer: Any = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        refused = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
        if refused:
            first = refused[0]
            reason = f"{first.get('Code')}: {first.get('Message')} ({len(refused)} of {len(keys)} objects)"
            raise StorageError("delete", key=first.get("Key", keys[0]), reason=reason)

    def ensure_bucket(self) -> None:
        """Create the bucket if it is missing. Raises StorageError, also when it is there but is somebody else's."""
        with _named("create bucket", self._bucket):
            if self._has_bucket():
                return
            try:
                self._client.create_bucket(Bucket=self._bucket, **_location(self._client.meta.region_name))
            except ClientError as error:
                if _code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise
                # Another process was faster, or the name is taken: asking again tells which.
                self._client.head_bucket(Bucket=self._bucket)

    def _has_bucket(self) -> bool:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if _code(error) in {"404", "NoSuchBucket"}:
                return False
            raise
        return True

    def check(self) -> None:
        """Ask, once and within a few seconds, whether the bucket can be reached. Raises StorageError saying why not."""
        with _named("reach bucket", self._bucket):
            self._probe.head_bucket(Bucket=self._bucket)

    def check_writing(self) -> None:
        """Write, read and delete an object of no use, once and within seconds. Raises StorageError saying why not.

        A bucket may be reached and yet refuse every picture: keys that only read, a full disk.
        """
        key = f"probes/{token_hex(8)}.png"
        body = key.encode()
        with _named("put", key):
            self._probe.put_object(Bucket=self._bucket, Key=key, Body=body)
        try:
            with _named("get", key):
                kept = self._probe.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        finally:  # the bucket is never listed: nobody else would find it
            with _named("delete", key):
                self._probe.delete_object(Bucket=self._bucket, Key=key)
        if kept != body:
            raise StorageError("get", key=key, reason="gave back other bytes than it was given")


def _common(settings: Settings) -> Config:
    style = settings.s3_addressing_style
    if style == "auto" and settings.s3_endpoint_url:
        style = "path"  # host names like bucket.my-server rarely resolve
    return Config(
        signature_version="s3v4",
        s3={"addressing_style": style},
        # botocore's default checksums break plainer servers (rclone answers a ranged read with the whole object's sum)
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=max(10, settings.web_threads),
        # an HTTP proxy set for the outside world has no business between us and a server on this host
        proxies={} if is_loopback(urlsplit(settings.s3_endpoint_url or "").hostname or "") else None,
    )


def _add_md5(request: Any, **_: Any) -> None:
    """Send the sum that S3 once demanded of a bulk delete; boto3 stopped, and older servers still refuse without it."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _patient(settings: Settings) -> Config:
    """Wait on a silent server so long that all attempts and the pauses between them stay within the upload limit."""
    attempts = 3
    silence = max(1, settings.upload_limit_seconds / attempts / 2)
    return Config(
        connect_timeout=min(3, silence),
        read_timeout=silence,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )


def _brisk() -> Config:
    """Read while somebody waits: a silent server may hold a request, and its thread, for seconds only."""
    return Config(connect_timeout=1, read_timeout=4, retries={"mode": "standard", "total_max_attempts": 2})


def _impatient() -> Config:
    return Config(connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 1})


def _location(region: str) -> dict[str, Any]:
    """AWS wants every region but its oldest named, and that one not named."""
    if region in {"us-east-1", "aws-global"}:
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _named(operation: str, key: str) -> Iterator[None]:
    """Turn what boto3 raises into our errors, which name the operation and the key."""
    try:
        yield
    except ClientError as error:
        code, message = _code(error), error.response.get("Error", {}).get("Message", "")
        if code == "NoSuchKey":
            raise ObjectNotFound(operation, key=key, reason="there is no such object") from error
        raise StorageError(operation, key=key, reason=_REASONS.get(code) or f"{code}: {message}") from error
    except BotoCoreError as error:
        raise StorageError(operation, key=key, reason=str(error)) from error


# HEAD answers carry a bare status: say what it means.
_REASONS = {
    "403": "access denied (403): the key id, the secret or the policy does not allow it",
    "404": "there is no such bucket (404)",
}
