"""Settings and a storage for the tests that need no database and no Redis."""

from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from darkroom.config import Settings, load_settings
from darkroom.storage import Storage


class S3(Protocol):
    @property
    def endpoint_url(self) -> str: ...


@pytest.fixture
def settings(s3: S3, tmp_path: Path) -> Settings:
    """Settings that name a bucket which does not exist yet."""
    return load_settings(home=tmp_path, s3_endpoint_url=s3.endpoint_url, s3_bucket=f"test-{uuid4().hex[:12]}")


@pytest.fixture
def storage(settings: Settings) -> Storage:
    storage = Storage(settings)
    storage.ensure_bucket()
    return storage
