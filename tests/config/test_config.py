"""What the environment may say. Every wrong value is named, with its limit, and never repeated: it may be a secret."""

from pathlib import Path
from typing import Any

import pytest

from darkroom.config import Settings, load_settings
from darkroom.errors import ConfigError

WRONG = [
    ("DARKROOM_DATABASE_URL", "mysql://host/name", "postgresql:// or sqlite:///"),
    ("DATABASE_URL", "oracle://host/name", "postgresql:// or sqlite:///"),
    ("DATABASE_URL", "postgresql://u:p@h:port/db", "postgresql://USER:PASSWORD@HOST:PORT/NAME"),
    ("DATABASE_URL", "postgresql://u:p@[::1/db", "postgresql://USER:PASSWORD@HOST:PORT/NAME"),
    ("REDIS_URL", "redis://h:port/0", "redis://:PASSWORD@HOST:PORT/0"),
    ("REDIS_URL", "redis://[::1/0", "redis://:PASSWORD@HOST:PORT/0"),
    ("DARKROOM_REDIS_URL", "http://host", "redis:// or rediss://"),
    ("REDIS_URL", "localhost:6379", "redis:// or rediss://"),
    ("S3_ENDPOINT_URL", "minio:9000", "http:// or https://"),
    ("S3_BUCKET", "A Bucket", "a-z0-9"),
    ("DARKROOM_S3_ADDRESSING_STYLE", "dns", "'auto', 'path' or 'virtual'"),
    ("PORT", "0", "1"),
    ("PORT", "70000", "65535"),
    ("DARKROOM_PORT", "web", "integer"),
    ("DARKROOM_WEB_THREADS", "0", "1"),
    ("DARKROOM_WEB_WAITERS", "0", "1"),
    ("DARKROOM_STREAM_HEARTBEAT_SECONDS", "0", "0"),
    ("DARKROOM_KEYLESS_ANYWHERE", "perhaps", "boolean"),
    ("DARKROOM_LEASE_SECONDS", "0", "0"),
    ("DARKROOM_LEASE_SECONDS", "nan", "0"),
    ("DARKROOM_LEASE_SECONDS", "3601", "3600"),
    ("DARKROOM_HEARTBEAT_SECONDS", "601", "600"),
    ("DARKROOM_POLL_SECONDS", "-1", "0"),
    ("DARKROOM_SWEEP_SECONDS", "61", "60"),
    ("DARKROOM_RELAY_SECONDS", "0", "0"),
    ("DARKROOM_JOB_TTL_SECONDS", "inf", "31536000"),
    ("DARKROOM_BULK_PROMOTION_SECONDS", "1e9", "31536000"),
    ("DARKROOM_SOLO_WAIT_SECONDS", "1e9", "86400"),
    ("DARKROOM_UPLOAD_LIMIT_SECONDS", "1e9", "86400"),
    ("DARKROOM_RETENTION_SUCCEEDED_DAYS", "1e9", "36500"),
    ("DARKROOM_RETENTION_OTHER_DAYS", "inf", "36500"),
    ("DARKROOM_WORKER_SLOTS", "257", "256"),
    ("DARKROOM_WORKER_GRACE_SECONDS", "0", "0"),
    ("DARKROOM_WORKER_DEVICE", "tpu", "cuda"),
    ("DARKROOM_WORKER_THREADS", "0", "1"),
    ("DARKROOM_MAX_ROWS", "0", "1"),
    ("DARKROOM_LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("DARKROOM_LOG_FORMAT", "xml", "'console' or 'json'"),
]


@pytest.mark.parametrize(("name", "value", "limit"), WRONG)
def test_wrong_value_is_named_with_its_limit(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, limit: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refusal:
        load_settings()
    message = str(refusal.value)
    assert name in message
    assert limit in message


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("DARKROOM_MAX_ROWS", "0")
    with pytest.raises(ConfigError, match=r"PORT.*DARKROOM_MAX_ROWS"):
        load_settings()


def test_refusal_does_not_repeat_what_may_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("mysql://root:hunter2@host/name", "postgresql://root@host:hunter2/name"):
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(ConfigError) as refusal:
            load_settings()
        assert "hunter2" not in str(refusal.value)


def test_heartbeat_must_fit_twice_into_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_LEASE_SECONDS", "10")
    monkeypatch.setenv("DARKROOM_HEARTBEAT_SECONDS", "5")
    assert load_settings().heartbeat_seconds == 5
    monkeypatch.setenv("DARKROOM_HEARTBEAT_SECONDS", "6")
    with pytest.raises(ConfigError, match=r"DARKROOM_HEARTBEAT_SECONDS must be at most half of DARKROOM_LEASE_SECONDS"):
        load_settings()


@pytest.mark.parametrize(
    ("names", "value", "field"),
    [
        (("DARKROOM_DATABASE_URL", "DATABASE_URL"), "sqlite:////a/b.db", "database_url"),
        (("DARKROOM_REDIS_URL", "REDIS_URL"), "rediss://host:1/2", "redis_url"),
        (("DARKROOM_S3_ENDPOINT_URL", "S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), "https://s3.host", "s3_endpoint_url"),
        (("DARKROOM_S3_BUCKET", "S3_BUCKET"), "pictures", "s3_bucket"),
        (("DARKROOM_S3_REGION", "S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"), "eu-west-1", "s3_region"),
    ],
)
def test_setting_is_read_under_each_of_its_names(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], value: str, field: str
) -> None:
    for name in names:
        with monkeypatch.context() as only:
            only.setenv(name, value)
            assert getattr(load_settings(), field) == value


def test_first_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("DARKROOM_PORT", "2")
    assert load_settings().port == 2


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_WORKER_THREADS", "")
    monkeypatch.setenv("REDIS_URL", "")
    assert load_settings().worker_threads is None
    assert load_settings().redis_url.startswith("redis://127.0.0.1")


def test_what_is_said_in_code_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MAX_ROWS", "2")
    assert load_settings(max_rows=4).max_rows == 4


@pytest.mark.parametrize("prefix", ["postgres://", "postgresql://", "postgresql+psycopg://"])
def test_postgresql_is_spoken_to_by_psycopg(prefix: str) -> None:
    assert load_settings(database_url=prefix + "u@h/d").database == "postgresql+psycopg://u@h/d"


def test_database_is_sqlite_at_home_unless_one_is_given(tmp_path: Path) -> None:
    assert load_settings(home=tmp_path).database == f"sqlite:///{tmp_path}/darkroom.db"


def test_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings().home == tmp_path / ".darkroom"
    assert load_settings(home="here").home.is_absolute()


@pytest.mark.parametrize(("value", "names"), [("a,b", ("a", "b")), (" a , ,b,", ("a", "b")), (",", ())])
def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, value: str, names: tuple[str, ...]) -> None:
    monkeypatch.setenv("DARKROOM_WORKER_MODELS", value)
    assert load_settings().worker_models == names


def test_settings_cannot_be_changed() -> None:
    settings: Any = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_secret_is_not_shown() -> None:
    assert "hunter2" not in repr(load_settings(secret_key="hunter2"))


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.annotation is float])
def test_every_number_has_an_end(name: str) -> None:
    with pytest.raises(ConfigError):
        load_settings(**{name: float("inf")})
