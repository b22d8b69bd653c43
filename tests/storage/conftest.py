"""A real S3 server (rclone) for the storage tests."""

import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from darkroom.config import Settings, load_settings
from darkroom.storage import Storage


@dataclass(frozen=True)
class S3Server:
    url: str
    access_key_id: str
    secret_access_key: str


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    root = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}", "test", secrets.token_hex(16))
    command = [str(shutil.which("rclone", path=str(Path(sys.executable).parent)))]
    command += ["serve", "s3", "--config", "/dev/null", "--addr", f"127.0.0.1:{port}", str(root)]
    environment = {"RCLONE_AUTH_KEY": f'"{server.access_key_id},{server.secret_access_key}"', "HOME": str(root)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise


@pytest.fixture
def settings(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings for a bucket that nobody else uses and that does not exist yet."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return load_settings(home=tmp_path, s3_endpoint_url=s3.url, s3_bucket=f"test-{uuid4().hex[:12]}")


@pytest.fixture
def storage(settings: Settings) -> Storage:
    storage = Storage(settings)
    storage.ensure_bucket()
    return storage
