"""What the doctor finds, each broken on purpose on a real server, file or setting."""

import os
import subprocess
import sys

import pytest

from darkroom import doctor
from darkroom.config import load_settings
from darkroom.stack.servers import free_port

OLD_PYTHON = (3, 10)


def one(findings):
    """The first finding that is wrong; it names its cure."""
    wrong = [finding for finding in findings if finding.is_wrong]
    assert wrong, "nothing was found wrong"
    assert all(finding.cure for finding in wrong)
    return wrong[0]


def nothing(findings):
    return [finding for finding in findings if finding.is_wrong] == []


def test_healthy_servers_are_found_healthy(settings, s3):
    assert nothing(doctor.check_database(settings))
    assert nothing(doctor.check_redis(settings))
    assert nothing(doctor.check_s3(settings, is_amazon=False))


def test_old_python_is_wrong():
    assert one([doctor.check_python(OLD_PYTHON)]).cure == "install Python 3.11 or newer"


def test_database_without_tables_wants_a_migration(tmp_path):
    settings = load_settings(database_url=f"sqlite:///{tmp_path}/empty.db")
    assert one(doctor.check_database(settings)).cure == "darkroom migrate"


def test_missing_embedded_database_is_absent_and_is_not_made(tmp_path):
    (finding,) = doctor.check_database(load_settings(home=tmp_path))
    assert (finding.is_wrong, finding.mark) == (False, "--")
    assert list(tmp_path.iterdir()) == []


def test_database_that_does_not_answer_is_wrong(postgres):
    settings = load_settings(database_url=postgres.url("no_such_database"))
    assert "no_such_database" in one(doctor.check_database(settings)).fact


def test_fleet_without_a_worker_is_told(settings):
    assert [f.fact for f in doctor.check_database(settings) if f.name == "workers"] == ["none lives: jobs will wait"]


def test_redis_that_may_evict_is_wrong(settings, valkey):
    with valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert "noeviction" in one(doctor.check_redis(settings)).cure
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_redis_that_is_down_is_wrong(settings, valkey):
    valkey.stop()
    assert "REDIS_URL" in one(doctor.check_redis(settings)).cure


def test_redis_with_a_wrong_password_is_wrong_and_the_password_is_not_shown(settings, valkey):
    wrong = settings.redis_url.replace(valkey.server.password, "a-wrong-secret")
    finding = one(doctor.check_redis(settings.model_copy(update={"redis_url": wrong})))
    assert "a-wrong-secret" not in finding.fact + finding.cure


def test_redis_of_strangers_without_password_is_wrong():
    settings = load_settings(redis_url=f"redis://localhost.localdomain.invalid:{free_port()}/0")
    assert "no password" in one(doctor.check_redis(settings)).fact


def test_missing_bucket_is_wrong(settings):
    settings = settings.model_copy(update={"s3_bucket": "no-such-bucket"})
    assert "no such bucket" in one(doctor.check_s3(settings, is_amazon=False)).fact


def test_wrong_s3_keys_are_wrong(settings, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    assert "AWS_SECRET_ACCESS_KEY" in one(doctor.check_s3(settings, is_amazon=False)).cure


def test_s3_that_is_down_is_wrong(settings, s3):
    s3.stop()
    assert one(doctor.check_s3(settings, is_amazon=False)).name == "s3"


def test_probe_leaves_nothing_in_the_bucket(settings, s3):
    list(doctor.check_s3(settings, is_amazon=False))
    assert [path for path in (s3.server.folder / s3.bucket).rglob("*") if path.is_file()] == []


def test_stack_that_brings_its_servers_along_needs_none(tmp_path):
    settings = load_settings(home=tmp_path)
    assert nothing(doctor.check_redis(settings))
    assert nothing(doctor.check_s3(settings, is_amazon=False))


def test_server_that_could_not_be_brought_along_is_wrong(tmp_path):
    settings = load_settings(home=tmp_path, redis_server_bin=tmp_path / "nothing")
    assert "nothing" in one(doctor.check_redis(settings)).cure


def test_model_whose_folder_is_gone_is_wrong(tmp_path):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(f'[models.lost]\nfamily = "sd"\nsource = "{tmp_path}/lost"\n')
    assert "lost" in one(doctor.check_catalog(load_settings(catalog=catalog))).fact


def test_broken_catalog_is_wrong(tmp_path):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text("default =")
    assert str(catalog) in one(doctor.check_catalog(load_settings(catalog=catalog))).fact


def test_worker_model_that_is_in_no_catalog_is_wrong():
    settings = load_settings(worker_models="darkroom-seeded,nothing")
    assert "nothing" in one(doctor.check_catalog(settings)).fact


def test_device_that_torch_does_not_see_is_wrong():
    assert "DARKROOM_WORKER_DEVICE" in one([doctor.check_device("cuda:1", ["cpu", "cuda", "cuda:0"])]).cure
    assert nothing([doctor.check_device("cuda:0", ["cpu", "cuda", "cuda:0"]), doctor.check_device("auto", ["cpu"])])


def test_port_held_by_something_mute_is_wrong(valkey):
    settings = load_settings(port=valkey.server.port)
    assert "PORT" in one(doctor.check_port(settings, is_ours=False)).cure


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({}, 0, ["is not running here", "torch", "is free"]),
        ({"DARKROOM_HEARTBEAT_SECONDS": "never"}, 1, ["DARKROOM_HEARTBEAT_SECONDS"]),
        ({"DARKROOM_WORKER_DEVICE": "cuda:99"}, 1, ["cuda:99 is asked for"]),
    ],
)
def test_command_says_all_of_it_with_the_stack_down(tmp_path, environment, status, words):
    environment = {**os.environ, "DARKROOM_HOME": str(tmp_path), "PORT": str(free_port()), **environment}
    command = [sys.executable, "-m", "darkroom.cli", "doctor"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == status, result.stdout + result.stderr
    assert all(word in result.stdout for word in words), result.stdout
    assert list(tmp_path.iterdir()) == []
