"""Benchmarks measure Darkroom, not its log. Those of the web share a deployment on PostgreSQL."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from deployment import Deployment


def pytest_configure() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


@pytest.fixture
def deployment(postgres: Any, migrated_postgres: str, valkey: Any, tmp_path: Path) -> Iterator[Deployment]:
    """A database and a Redis of its own, and nothing running yet."""
    name = postgres.new_database(template=migrated_postgres)
    deployment = Deployment(tmp_path, database_url=postgres.url(name), redis_url=valkey.url)
    yield deployment
    deployment.end()
