"""A worker that cannot work says in one sentence why, and leaves the queue alone."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database, is_on_network
from darkroom.jobs import JobClass, JobState, NewJob, get, submit
from darkroom.params import resolve
from darkroom.stack.leash import held_by, leashed
from darkroom_worker.worker import is_alive, life_sign

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def run_worker(environment: dict[str, str], *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m darkroom_worker`, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "darkroom_worker", *arguments],
        env={**environment, **changes},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def refusal_of(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in ended.stderr.splitlines() if line.startswith("darkroom-worker: ")]
    assert ended.returncode == 1, ended.stderr
    assert len(lines) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return lines[0]


@on_sqlite
def test_a_broken_model_folder_stops_the_worker_and_leaves_the_queue_alone(
    settings: Settings, database: Database, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[models.mine]\nfamily = "sd"\nsource = "empty"\n')
    entry = Catalog.load(settings).default
    new = NewJob(entry.name, resolve(entry, {"prompt": "a"}), JobClass.BULK, 60)
    job = submit(database, new, owner="ann")
    refusal = refusal_of(run_worker(environment, DARKROOM_CATALOG=str(catalog)))
    assert "'mine'" in refusal
    assert str(tmp_path / "empty") in refusal
    assert get(database, job.id).state is JobState.QUEUED


@on_sqlite
def test_a_model_that_is_in_no_catalog_is_named(settings: Settings, environment: dict[str, str]) -> None:
    assert "'nobody'" in refusal_of(run_worker(environment, DARKROOM_WORKER_MODELS="nobody"))


def test_an_unmigrated_database_is_refused_with_its_cure(
    settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    refusal = refusal_of(run_worker(environment, DATABASE_URL=f"sqlite:///{tmp_path}/empty.db"))
    assert "darkroom migrate" in refusal


def test_a_database_that_does_not_answer_is_named(settings: Settings, environment: dict[str, str]) -> None:
    refusal = refusal_of(run_worker(environment, DATABASE_URL="postgresql://127.0.0.1:1/darkroom"))
    assert "database" in refusal


def test_a_wrong_setting_is_named_with_its_limit(settings: Settings, environment: dict[str, str]) -> None:
    refusal = refusal_of(run_worker(environment, DARKROOM_WORKER_SLOTS="0"))
    assert "DARKROOM_WORKER_SLOTS" in refusal
    assert "1" in refusal


@pytest.mark.parametrize(
    ("kind", "point", "is_away"),
    [("nfs4", "/srv/shared", True), ("cifs", "/srv", True), ("ext4", "/srv/shared", False), ("nfs", "/mnt", False)],
)
def test_a_sqlite_file_on_a_network_filesystem_is_told_from_a_local_one(
    tmp_path: Path, kind: str, point: str, is_away: bool
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nproc /proc proc rw 0 0\nserver:/x {point} {kind} rw 0 0\n")
    assert is_on_network("sqlite:////srv/shared/darkroom.db", mounts=mounts) is is_away


def test_a_mount_point_with_a_space_is_understood(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/root / ext4 rw 0 0\nserver:/x /srv/my\\040share nfs rw 0 0\n")
    assert is_on_network("sqlite:////srv/my share/darkroom.db", mounts=mounts)


def test_the_health_probe_tells_a_living_worker_from_a_silent_one(
    settings: Settings, environment: dict[str, str]
) -> None:
    assert not is_alive(settings)
    sign = life_sign(settings, "a-worker")
    sign.parent.mkdir(parents=True)
    sign.touch()
    assert is_alive(settings)
    old = sign.stat().st_mtime - 4 * settings.heartbeat_seconds
    os.utime(sign, (old, old))
    assert not is_alive(settings)
    assert run_worker(environment, "--health").returncode == 1
    sign.touch()
    assert run_worker(environment, "--health").returncode == 0


def test_the_health_probe_brings_no_torch() -> None:
    """It runs every few seconds on a busy host."""
    check = "import sys, darkroom_worker.app; print([m for m in sys.modules if m in {'torch', 'diffusers'}])"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


@on_sqlite
def test_a_real_worker_develops_a_prompt_into_a_picture(
    settings: Settings, database: Database, environment: dict[str, str], place: Any, tmp_path: Path
) -> None:
    """The whole way with the engine itself: Celery, seeded weights, S3, SQL."""
    log = tmp_path / "worker.log"
    command = leashed([sys.executable, "-m", "darkroom_worker"])
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**environment, **held_by(os.getpid()), "DARKROOM_WORKER_THREADS": "1"},
        )
    try:
        job_id = place.submit(num_inference_steps=4, width=64, height=96, num_images=2)
        place.until(
            lambda: place.job(job_id).state not in {JobState.QUEUED, JobState.RUNNING} or worker.poll() is not None,
            "it has ended",
            seconds=90,
        )
        job = place.job(job_id)
        assert job.state is JobState.SUCCEEDED, log.read_text()
        for image in job.images:
            with Image.open(io.BytesIO(place.storage.get(image.key))) as picture:
                picture.load()
                assert (picture.format, picture.size) == ("PNG", (64, 96))
                assert len(picture.getcolors(picture.width * picture.height)) > 100
            with Image.open(io.BytesIO(place.storage.get(image.thumb_key))) as thumb:
                assert (thumb.format, thumb.size) == ("WEBP", (64, 96))
        assert set(job.timings) == {"wait", "encode", "denoise", "decode", "compress", "upload"}
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0, log.read_text()
    finally:
        worker.kill()
        worker.wait(10)
