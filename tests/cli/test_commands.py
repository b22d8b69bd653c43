"""The commands that speak to a Darkroom, against one that listens."""

import json
import subprocess
import sys
from uuid import uuid4

import pytest
from claiming import claim_one

from darkroom import jobs
from darkroom.db import Database
from darkroom.params import GenerationParams
from darkroom.stack.servers import free_port

NO_JOB = str(uuid4())


COMMANDS = "up demo submit watch cancel ls get models migrate requeue doctor web"


@pytest.mark.parametrize("words", [[], *([word] for word in COMMANDS.split())])
def test_every_command_explains_itself(darkroom, words):
    result = darkroom(*words, "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout
    assert len(result.stdout.splitlines()) > 4


def test_submit_prints_the_id_that_get_takes(darkroom, url):
    submitted = darkroom("submit", "a red house", "--seed", 7, "--steps", 4, "--url", url)
    assert submitted.returncode == 0, submitted.stderr
    shown = darkroom("get", submitted.stdout.strip(), "--url", url)
    assert shown.returncode == 0
    assert "queued, 0 ahead" in shown.stdout
    assert "a red house" in shown.stdout
    listed = darkroom("ls", DARKROOM_URL=url)
    assert submitted.stdout.strip() in listed.stdout


def test_submit_that_waits_writes_each_picture(darkroom, url, worker, tmp_path, at_work):
    with at_work(worker.develop, url):
        result = darkroom("submit", "red houses", "--num-images", 2, "--output", tmp_path / "house.png", "--url", url)
    assert result.returncode == 0, result.stderr
    for n in range(2):
        assert (tmp_path / f"house-{n}.png").read_bytes().endswith(f" a picture{n}".encode())
        assert str(tmp_path / f"house-{n}.png") in result.stdout


def test_job_that_failed_is_exit_status_three_and_its_reason(darkroom, url, worker, at_work):
    with at_work(lambda: worker.fail("the card is too small"), url):
        result = darkroom("submit", "a red house", "--wait", "--url", url)
    assert result.returncode == 3
    assert "the job has failed: the card is too small" in result.stderr


def test_job_that_takes_too_long_is_exit_status_four(darkroom, url):
    result = darkroom("submit", "a red house", "--wait", "--timeout", 0.2, "--url", url)
    assert result.returncode == 4
    assert "is still queued" in result.stderr
    job_id = result.stdout.strip()
    watched = darkroom("watch", job_id, "--timeout", 0.2, "--url", url)
    assert (watched.returncode, watched.stdout) == (4, "")
    assert "queued, 0 ahead" in watched.stderr


def test_watch_shows_each_stage_and_writes_the_picture(darkroom, url, worker, tmp_path, at_work):
    job_id = darkroom("submit", "a red house", "--url", url).stdout.strip()
    with at_work(worker.develop, url):
        result = darkroom("watch", job_id, "--output", tmp_path / "house.png", "--url", url)
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'house.png'}\n")
    assert result.stderr.splitlines()[-1] == "succeeded"
    assert (tmp_path / "house.png").read_bytes().endswith(b" a picture0")


def test_watch_in_json_is_a_line_for_each_change(darkroom, url, worker, at_work):
    job_id = darkroom("submit", "a red house", "--url", url).stdout.strip()
    with at_work(worker.develop, url):
        result = darkroom("watch", job_id, "--json", "--url", url)
    states = [json.loads(line)["state"] for line in result.stdout.splitlines()]
    assert (result.returncode, states[-1]) == (0, "succeeded")
    assert json.loads(result.stdout.splitlines()[-1])["id"] == job_id


@pytest.mark.parametrize("words", [["--json"], []])
def test_canceled_job_is_no_success(darkroom, url, words):
    job_id = darkroom("submit", "a red house", "--url", url).stdout.strip()
    canceled = darkroom("cancel", job_id, *words, "--url", url)
    assert canceled.returncode == 0
    assert "canceled" in canceled.stdout
    assert darkroom("cancel", job_id, "--url", url).returncode == 0
    assert darkroom("watch", job_id, *words, "--url", url).returncode == 3
    assert darkroom("get", job_id, *words, "--url", url).returncode == 0


def test_cancel_takes_several_and_stops_at_one_that_is_refused(darkroom, url):
    ids = [darkroom("submit", "a house", "--url", url).stdout.strip() for _ in range(2)]
    result = darkroom("cancel", ids[0], NO_JOB, ids[1], "--url", url)
    assert (result.returncode, result.stdout) == (1, f"{ids[0]} canceled\n")
    states = [json.loads(darkroom("get", each, "--json", "--url", url).stdout)["state"] for each in ids]
    assert states == ["canceled", "queued"]


def test_json_of_every_command_is_a_job_a_line(darkroom, url, worker, at_work, tmp_path):
    job_id = json.loads(darkroom("submit", "a red house", "--json", "--url", url).stdout)["id"]
    for words in (["get", job_id], ["ls"], ["cancel", job_id]):
        (line,) = darkroom(*words, "--json", "--url", url).stdout.splitlines()
        assert json.loads(line)["id"] == job_id
    output = tmp_path / "house.png"
    with at_work(worker.develop, url):
        result = darkroom("submit", "a red house", "--json", "--output", output, "--url", url)
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["state"] == "succeeded"
    assert output.exists()


def test_ls_takes_filters(darkroom, url):
    red, blue = (darkroom("submit", f"a {color} house", "--url", url).stdout.strip() for color in ("red", "blue"))
    darkroom("cancel", red, "--url", url)
    for words, expected in [
        (["--state", "canceled"], [red]),
        (["--query", "blue"], [blue]),
        (["--model", "nobody's"], []),
        (["--limit", 1], [blue]),
    ]:
        result = darkroom("ls", *words, "--url", url)
        assert [line.split()[0] for line in result.stdout.splitlines()] == expected, words


def test_get_writes_the_pictures_of_a_job_that_has_them(darkroom, url, worker, tmp_path):
    job_id = darkroom("submit", "a red house", "--url", url).stdout.strip()
    early = darkroom("get", job_id, "--output", tmp_path / "a.png", "--url", url)
    assert early.returncode == 4
    worker.develop()
    result = darkroom("get", job_id, "--output", tmp_path / "a.png", "--url", url)
    assert result.returncode == 0
    assert result.stdout.endswith(f"{tmp_path / 'a.png'}\n")
    assert (tmp_path / "a.png").exists()


def test_submit_without_metadata_says_so(darkroom, url):
    job = json.loads(darkroom("submit", "a red house", "--no-metadata", "--json", "--url", url).stdout)
    assert job["params"]["embed_metadata"] is False


def test_sheet_of_a_finished_job_shows_its_stages_in_order(darkroom, url, worker):
    job_id = darkroom("submit", "a red house", "--url", url).stdout.strip()
    worker.develop()
    lines = darkroom("get", job_id, "--url", url).stdout.splitlines()
    stages = [line for line in lines if line.endswith(" s")]
    assert [stage.rsplit(maxsplit=2)[0].strip() for stage in stages] == [
        "wait in the queue",
        "encode the prompt",
        "denoise",
        "upload",
    ]


@pytest.mark.parametrize("words", [["demo", "--prompt", "a red house"], ["submit", "a red house"]])
def test_picture_that_could_not_be_written_is_refused_before_any_work(darkroom, tmp_path, words):
    output = tmp_path / "nodir/x.png"
    result = darkroom(*words, "--output", output, DARKROOM_URL=f"http://127.0.0.1:{free_port()}", TMPDIR=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.endswith(f"Error: Invalid value for '--output': there is no folder {output.parent}\n")
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_refused_field_is_named(darkroom, url):
    result = darkroom("submit", "a red house", "--width", 7, "--url", url)
    assert result.returncode == 1
    assert "width" in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_job_is_one_sentence(darkroom, url):
    result = darkroom("get", NO_JOB, "--url", url)
    assert result.returncode == 1
    assert result.stderr == "Error: Not Found: No job has this id.\n"


@pytest.mark.parametrize(
    "words", [["submit", "a red house"], ["ls"], ["get", NO_JOB], ["watch", NO_JOB], ["cancel", NO_JOB], ["models"]]
)
def test_darkroom_that_is_not_there_is_one_sentence(darkroom, words):
    url = f"http://127.0.0.1:{free_port()}"
    result = darkroom(*words, "--url", url)
    assert result.returncode == 1
    assert f"{url} cannot be reached" in result.stderr


def test_models_lists_the_default_first(darkroom, url):
    result = darkroom("models", "--url", url)
    assert result.returncode == 0
    assert result.stdout.splitlines()[1].startswith("darkroom-seeded")


def test_migrate_makes_the_tables_and_may_be_repeated(darkroom, tmp_path):
    for _ in range(2):
        result = darkroom("migrate", DARKROOM_HOME=str(tmp_path / "home"))
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "home/darkroom.db").exists()


def test_requeue_puts_a_running_job_back(darkroom, database_url):
    database = Database(database_url)
    values = {"prompt": "a house", "width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 1.0}
    params = GenerationParams(sampler="euler", seed=0, **values)
    new = jobs.NewJob("small", params, jobs.JobClass.BULK, ttl_seconds=60)
    job = jobs.submit(database, new, owner="ann")
    claim = claim_one(database, worker_id="w", models=["small"], num_held=0, lease_seconds=60, lines=jobs.Lines())
    assert claim.job_id == job.id

    result = darkroom("requeue", job.id, DATABASE_URL=database_url)

    assert (result.returncode, result.stdout) == (0, f"{job.id} waits again\n")
    assert jobs.get(database, job.id).state == "queued"
    database.dispose()


def test_requeue_of_an_unknown_job_is_one_sentence(darkroom, database_url):
    result = darkroom("requeue", NO_JOB, DATABASE_URL=database_url)
    assert (result.returncode, result.stderr) == (1, f"Error: no job has the id {NO_JOB}\n")


def test_impossible_setting_is_one_sentence(darkroom):
    result = darkroom("migrate", DATABASE_URL="mysql://somewhere")
    assert result.returncode == 1
    assert "must begin with postgresql:// or sqlite:///" in result.stderr


def test_web_refuses_to_listen_to_strangers_without_keys(darkroom, tmp_path):
    result = darkroom("web", "--host", "0.0.0.0", DARKROOM_HOME=str(tmp_path))
    assert result.returncode == 1
    assert "DARKROOM_KEYLESS_ANYWHERE" in result.stderr


def test_command_line_loads_neither_torch_nor_the_stack():
    code = "import sys, darkroom.cli; print({'torch', 'supervisor', 'flask', 'sqlalchemy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
