"""What a stack is made of, decided from settings alone."""

from pathlib import Path

import pytest

from darkroom.config import Settings, load_settings
from darkroom.stack.parts import plan


def names(settings: Settings) -> list[str]:
    return [part.name for part in sorted(plan(settings, workers=1).parts, key=lambda part: part.priority)]


def test_whole_stack_starts_the_servers_first(tmp_path: Path):
    assert names(load_settings(home=tmp_path)) == ["valkey", "s3", "worker", "web"]


@pytest.mark.parametrize("variable", ["REDIS_URL", "DARKROOM_REDIS_URL"])
def test_given_redis_leaves_valkey_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "redis://127.0.0.1:6379/0")
    settings = load_settings(home=tmp_path)
    assert names(settings) == ["s3", "worker", "web"]
    assert plan(settings, workers=1).environment["DARKROOM_REDIS_URL"] == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize("variable", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_given_s3_leaves_ours_out_and_keeps_the_keys_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    monkeypatch.setenv(variable, "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_PROFILE", "studio")
    chosen = plan(load_settings(home=tmp_path), workers=1)
    assert chosen.s3 is None
    assert chosen.environment["AWS_PROFILE"] == "studio"
    assert chosen.environment["DARKROOM_S3_ENDPOINT_URL"] == "http://127.0.0.1:9000"


def test_foreign_keys_do_not_reach_our_own_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "foreign")
    chosen = plan(load_settings(home=tmp_path), workers=1)
    assert chosen.s3
    assert chosen.environment["AWS_ACCESS_KEY_ID"] == chosen.s3.access_key_id
    assert "foreign" not in chosen.environment.values()


def test_our_own_s3_is_addressed_by_path_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DARKROOM_S3_ADDRESSING_STYLE", "virtual")
    chosen = plan(load_settings(home=tmp_path), workers=1)
    assert chosen.settings.s3_addressing_style == chosen.environment["DARKROOM_S3_ADDRESSING_STYLE"] == "path"
    monkeypatch.setenv("S3_ENDPOINT_URL", "https://s3.example.net")
    chosen = plan(load_settings(home=tmp_path), workers=1)
    assert chosen.environment["DARKROOM_S3_ADDRESSING_STYLE"] == "virtual"


def test_parts_read_back_the_settings_they_were_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = plan(load_settings(home=tmp_path, port=8123, worker_models="a,b", s3_bucket="pictures"), workers=1)
    for name, value in chosen.environment.items():
        monkeypatch.setenv(name, value)
    seen = load_settings()
    for field in ("home", "database", "redis_url", "s3_endpoint_url", "s3_bucket", "host", "port", "worker_models"):
        assert getattr(seen, field) == getattr(chosen.settings, field), field


def test_worker_is_given_its_grace_time_to_drain(tmp_path: Path):
    (worker,) = [
        p for p in plan(load_settings(home=tmp_path, worker_grace_seconds=90), workers=2).parts if p.copies == 2
    ]
    assert worker.name == "worker"
    assert worker.stop_seconds > 90
