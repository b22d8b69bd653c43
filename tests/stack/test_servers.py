"""The servers of the embedded stack and of the tests, as real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from darkroom.config import Settings
from darkroom.db import Database, is_migrated
from darkroom.errors import StackError
from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import S3Server, ValkeyServer, find_valkey, free_port, wait_until
from darkroom.storage import Storage

REPOSITORY = Path(__file__).parents[2]


def test_valkey_wants_its_password_and_evicts_nothing(valkey):
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=valkey.server.port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with valkey.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}


def test_valkey_keeps_what_it_was_told_across_a_restart(valkey):
    with valkey.client() as client:
        client.set("bell", "rung")
    valkey.stop()
    assert not valkey.server.is_ready()
    valkey.start()
    with valkey.client() as client:
        assert client.get("bell") == "rung"


def test_paused_valkey_answers_nothing_until_it_is_resumed(valkey):
    valkey.pause()
    assert not valkey.server.is_ready()
    valkey.resume()
    assert valkey.server.is_ready()


def test_each_test_finds_valkey_running_and_empty(valkey):
    with valkey.client() as client:
        assert client.dbsize() == 0


def test_s3_serves_the_bucket_of_the_test(settings: Settings):
    storage = Storage(settings)
    storage.put("jobs/a.png", b"picture", content_type="image/png")
    assert storage.get("jobs/a.png") == b"picture"


def test_passwords_stand_in_no_command_line(tmp_path: Path):
    valkey = ValkeyServer(find_valkey(), tmp_path / "valkey", free_port())
    s3 = S3Server(Path("rclone"), tmp_path / "s3", free_port())
    valkey.prepare()
    assert valkey.password not in " ".join(valkey.command)
    assert s3.secret_access_key not in " ".join(s3.command)
    assert valkey.config.stat().st_mode & 0o077 == 0
    assert valkey.password not in repr(valkey)
    assert s3.secret_access_key not in repr(s3)


def test_valkey_starts_in_a_folder_with_an_awkward_name(tmp_path: Path):
    valkey = ValkeyServer(find_valkey(), tmp_path / 'my "home"; 100% ü #1', free_port())
    valkey.prepare()
    with subprocess.Popen(valkey.command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(valkey.is_ready, seconds=20, refusal=lambda: "it does not start")
        finally:
            process.kill()


def test_chosen_server_that_is_no_program_is_named(tmp_path: Path):
    with pytest.raises(StackError, match=r"REDIS_SERVER_BIN.*nothing-here"):
        find_valkey(tmp_path / "nothing-here")


def test_database_is_migrated_and_empty(database: Database):
    assert is_migrated(database)
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM jobs").scalar_one() == 0


def test_settings_and_database_are_the_same_place(settings: Settings, database: Database):
    assert settings.database == database.url


@pytest.mark.timeout(20)
def test_leashed_process_dies_with_its_holder_killed():
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    with holder, holder.stdout:
        assert holder.stdout.readline() == "started\n"
        holder.send_signal(signal.SIGKILL)
        # The leashed process holds the other end of the pipe: end of file means that it is gone.
        assert holder.stdout.read() == ""


HOLDER = """
import os, subprocess
from darkroom.stack.leash import held_by, leashed
command = leashed(["sh", "-c", "echo started; exec sleep 600"])
subprocess.run(command, env={**os.environ, **held_by(os.getpid())})
"""


def test_leashed_command_does_not_start_once_its_holder_is_gone():
    result = subprocess.run(
        leashed(["echo", "started"]), env={**os.environ, **held_by(1)}, capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 1
    assert "started" not in result.stdout


@pytest.mark.parametrize(("strict", "status"), [("1", 1), ("0", 0)])
def test_skipped_test_fails_the_run_where_none_may_be_skipped(tmp_path: Path, strict: str, status: int):
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests/conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n\ndef test_it():\n    pytest.skip('not today')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    result = subprocess.run(command, env={**os.environ, "DARKROOM_TESTS_NO_SKIP": strict}, cwd=tmp_path, timeout=60)
    assert result.returncode == status
