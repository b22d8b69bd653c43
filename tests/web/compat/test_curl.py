"""docs/api.md and docs/accounts.md: their commands run as they stand, one after another, and do what the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

DOCS = Path(__file__).parents[3] / "docs"
TITLE = re.compile(r"^##+ (.*)$")


def scripts(page: str) -> dict[str, str]:
    """The shell commands below each heading of a page."""
    found: dict[str, str] = {}
    title, block = "", None
    for line in (DOCS / page).read_text().splitlines():
        if block is None and (heading := TITLE.match(line)):
            title = heading[1]
        elif line == "```sh":
            block = []
        elif line.startswith("```") and block is not None:
            found[title] = "\n".join(block)
            block = None
        elif block is not None:
            block.append(line)
    return found


COMMANDS = scripts("api.md")


@pytest.fixture
def run(deployment: Any, tmp_path: Path) -> Callable[..., tuple[str, list[int]]]:
    """Run commands as somebody with a key does; what they print, and the status of every answer."""
    header = f'header = "Authorization: Bearer {deployment.keys["ann"]}"'
    (tmp_path / ".curlrc").write_text(header + '\nwrite-out = "%{stderr}%{http_code}\\n"\n')

    def run(title: str, **names: str) -> tuple[str, list[int]]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DARKROOM_URL": deployment.url, **names}
        ran = subprocess.run(
            ["bash", "-euc", COMMANDS[title]], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout, [int(status) for status in ran.stderr.split()]

    return run


@pytest.fixture
def ended(deployment: Any, until: Callable[..., None]) -> Callable[[str], Any]:
    """Wait until a job has ended, and read it."""

    def ended(job_id: str) -> Any:
        with deployment.client() as client:
            until(lambda: client.get(f"/api/v1/jobs/{job_id}").json()["finished_at"])
            return client.get(f"/api/v1/jobs/{job_id}").json()

    return ended


def submitted(deployment: Any, prompt: str) -> str:
    with deployment.client() as client:
        job_id: str = client.post("/api/v1/jobs", json={"prompt": prompt}).json()["id"]
        return job_id


def test_every_section_with_commands_has_a_test_here() -> None:
    tested = {
        "The native API",
        "A job",
        "Once, however often it is sent",
        "Following it",
        "Pictures",
        "Beginning from a picture",
        "Many at once",
    }
    assert {title or "The native API" for title in COMMANDS} == tested
    assert set(scripts("accounts.md")) == {"Keys from the command line"}


def test_job_is_submitted(run: Any, ended: Any) -> None:
    printed, statuses = run("A job")
    assert statuses == [202]
    job = ended(json.loads(printed)["id"])
    assert (job["state"], [image["seed"] for image in job["images"]]) == ("succeeded", [7, 8])


def test_same_key_gets_the_same_job(run: Any) -> None:
    first, again = (json.loads(run("Once, however often it is sent")[0])["id"] for _ in range(2))
    assert first == again


def test_job_is_followed_canceled_retried_and_erased(run: Any, deployment: Any, until: Callable[..., None]) -> None:
    job_id = submitted(deployment, "wait:never")
    with deployment.client() as client:
        until(lambda: client.get(f"/api/v1/jobs/{job_id}").json()["progress"])  # it changes no more: it waits
    printed, statuses = run("Following it", ID=job_id)
    assert statuses == [200, 304, 200, 200, 202, 204]
    assert f'"retry_of": "{job_id}"' in printed


def test_pictures_are_fetched(run: Any, deployment: Any, ended: Any, tmp_path: Path) -> None:
    job_id = submitted(deployment, "a house")
    ended(job_id)
    assert run("Pictures", ID=job_id)[1] == [200, 200, 206]
    with Picture.open(tmp_path / "picture.png") as picture, Picture.open(tmp_path / "thumb.webp") as thumb:
        assert (picture.format, thumb.format) == ("PNG", "WEBP")
    assert (tmp_path / "part").read_bytes() == (tmp_path / "picture.png").read_bytes()[:1024]


def test_job_begins_from_an_upload(run: Any, ended: Any, tmp_path: Path) -> None:
    Picture.new("RGB", (128, 128), "red").save(tmp_path / "photo.jpg")
    printed, statuses = run("Beginning from a picture")
    assert statuses == [201, 202]
    assert ended(json.loads(printed)["id"])["state"] == "succeeded"


def test_batches_are_submitted_followed_and_canceled(run: Any, deployment: Any) -> None:
    with deployment.client() as client:
        batch_id = client.post("/api/v1/jobs/batch", json={"jobs": [{"prompt": "wait:never"}]}).json()["id"]
    printed, statuses = run("Many at once", BATCH=batch_id)
    assert statuses == [202, 202, 200, 200]
    matrix, plain, shown, canceled = documents(printed)
    assert (matrix["num_jobs"], plain["num_jobs"]) == (6, 2)
    assert (shown["id"], canceled["id"]) == (batch_id, batch_id)
    assert (shown["done"], canceled["states"]) == (False, {"canceled": 1})


def documents(printed: str) -> list[Any]:
    """JSON documents, one behind another."""
    decoder, found = json.JSONDecoder(), []
    rest = printed.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


def test_keys_are_made_listed_and_revoked(migrated_sqlite: Path, tmp_path: Path) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "darkroom.db")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "DARKROOM_HOME": str(tmp_path)}
    command = scripts("accounts.md")["Keys from the command line"]
    ran = subprocess.run(["bash", "-euc", command], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert len(re.findall(r"^dk_\S{40,}$", ran.stdout, re.MULTILINE)) == 3
    assert {"ann", "ann-ci", "ops"} <= set(ran.stdout.split())
