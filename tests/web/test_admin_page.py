"""The pages of operators, followed as a browser without JavaScript follows them."""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from darkroom import fleet, intake, jobs, keys
from darkroom.config import Settings
from darkroom.db import Database, now
from darkroom.fleet import WorkerFacts
from darkroom.jobs import JobState
from darkroom.keys import Quotas
from darkroom.models import Job, Worker, WorkerState
from darkroom.web.amounts import SPACE, count, duration, size
from darkroom.web.overview import FRESH_SECONDS, STORED_SECONDS, WINDOWS, Overlook
from darkroom.web.plots import columns, lines

WORKER = WorkerFacts("by-hand", "gpu-host", 42, "NVIDIA H200", 2**37, "cuda/h200", ["darkroom-seeded"], 4, "0.1.0")


@pytest.fixture
def app_database(app: Flask) -> Database:
    database: Database = app.extensions["darkroom"].database
    return database


@pytest.fixture
def fleet_of_one(app_database: Database) -> None:
    fleet.register(app_database, WORKER)
    fleet.beat(app_database, WORKER, state=WorkerState.READY, num_jobs=1, rows_per_step=5.25)


@pytest.fixture
def press(browser: Any) -> Callable[..., Any]:
    """Press a button of the page that is open, by where its form goes."""

    def press(page: Any, action: str, **fields: Any) -> Any:
        (form,) = [form for form in page.forms if form.action.partition("?")[0].endswith(action)]
        return browser.send(form, **fields)

    return press


def age(app_database: Database, job_id: str, **seconds: float) -> None:
    with app_database.write() as session:
        moved = {column: now(-ago) for column, ago in seconds.items()}
        session.execute(update(Job).where(Job.id == UUID(job_id)).values(**moved))


def test_worker_is_shown_with_all_that_it_says_of_itself(browser: Any, fleet_of_one: None) -> None:
    words = browser.open("/admin").words
    for part in ("gpu-host", "process 42", "NVIDIA H200", "128 GiB", "darkroom-seeded", "1 of 4", "5.2", "0.1.0"):
        assert part in words, part
    assert "process 42 ready" in words
    assert re.search(r"\d+ ms ago|\d+ s ago", words)


def test_worker_that_was_not_heard_of_for_a_lease_is_silent(
    browser: Any, app_database: Database, fleet_of_one: None
) -> None:
    with app_database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=now(-61)))
    words = browser.open("/admin").words
    assert "process 42 silent" in words
    assert "1 min 1 s ago" in words
    assert "0 ready, of 1" in words


def test_worker_is_drained_and_takes_jobs_again(
    browser: Any, app_database: Database, fleet_of_one: None, press: Callable[..., Any]
) -> None:
    page = press(browser.open("/admin?window=day"), "/workers/by-hand/drain")
    assert browser.path == "/admin"
    assert "process 42 draining" in page.words
    assert "in the last day" in page.words
    assert fleet.list_workers(app_database)[0].is_drain_wanted
    press(page, "/workers/by-hand/resume")
    assert not fleet.list_workers(app_database)[0].is_drain_wanted


def test_pause_takes_a_reason_which_every_page_shows_at_once(
    browser: Any, client: FlaskClient, press: Callable[..., Any]
) -> None:
    browser.open("/")
    page = press(browser.open("/admin"), "/intake/pause", reason=" new <disks> ")
    assert "The intake is paused new <disks> By local" in page.words
    for path in ("/", "/gallery", "/admin/keys"):
        assert "No jobs are taken just now: new <disks>" in browser.open(path).words
    assert client.post("/api/v1/jobs", json={"prompt": "a"}).status_code == 503
    page = press(browser.open("/admin"), "/intake/resume")
    assert "Jobs are taken" in page.words
    assert "No jobs are taken" not in browser.open("/").words


def test_way_back_leads_nowhere_else(client: FlaskClient, browser: Any) -> None:
    (pause,) = browser.open("/admin").forms[:1]
    sent = pause.fields | {"reason": "new disks"}
    headers = {"Origin": "http://localhost"}
    address = "/admin/intake/pause?window=day&_anchor=x&_external=1&_scheme=gopher&next=//evil.example"
    assert client.post(address, data=sent, headers=headers).location == "/admin?window=day"


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501, "a\x07bell"])
def test_pause_without_a_reason_that_can_be_shown_is_refused_beside_its_field(
    browser: Any, app_database: Database, press: Callable[..., Any], reason: str
) -> None:
    page = press(browser.open("/admin"), "/intake/pause", reason=reason)
    assert page.status_code == 422
    assert 'id="reason-refused"' in page.html
    assert "It must be 1 to 500 printable characters." in page.words
    assert intake.read(app_database) is None


def test_pause_by_the_api_is_shown_on_the_next_page_too(browser: Any, client: FlaskClient) -> None:
    browser.open("/")
    client.post("/api/v1/admin/intake/pause", json={"reason": "a flood"})
    assert "a flood" in browser.open("/").words
    client.post("/api/v1/admin/intake/resume")
    assert "a flood" not in browser.open("/").words


def test_depths_and_what_runs_are_told_by_class(browser: Any, app_database: Database, submit: Any, worker: Any) -> None:
    submit(priority="interactive")
    worker.claim()
    old, *_ = [submit() for _ in range(3)]
    age(app_database, old["id"], queued_at=4000)
    words = browser.open("/admin").words
    assert "Interactive, waiting 0 nobody waits" in words
    assert "Bulk, waiting 3 the oldest for 1 h 6 min" in words
    assert "Developing 1 1 interactive, 0 bulk" in words


def test_throughput_and_waits_are_drawn_and_said_and_told_as_a_table(
    browser: Any, app_database: Database, submit: Any, worker: Any
) -> None:
    for _ in range(3):
        job_id = submit()["id"]
        worker.develop()
        age(app_database, job_id, created_at=90, started_at=30)
    submit()
    worker.fail("no")
    page = browser.open("/admin")
    assert "3 jobs in the last hour, and 1 that failed or expired" in page.words
    assert "Median 1 min , 95th percentile 1 min , at" in page.words
    assert [tag["aria-label"].replace(SPACE, " ") for tag in page.all("svg")] == [
        "Jobs developed and failed, every 1 min",
        "How long the jobs had waited: median and 95th percentile, every 1 min",
    ]
    drawn = {tag["class"]: tag["d"] for tag in page.all("path")}
    assert all(drawn[name].startswith("M") for name in ("done", "ill", "median", "p95"))
    rows = page.html[page.html.index('id="figures"') :].partition("</table>")[0]
    assert rows.count("<tr>") == 61
    assert f"<td>1{SPACE}min</td>" in rows


def test_window_is_an_hour_or_a_day_and_nothing_else(browser: Any) -> None:
    assert "Nothing was developed in the last day" in browser.open("/admin?window=day").words
    assert browser.open("/admin?window=year").status_code == 422


def test_failures_are_grouped_and_lead_to_their_jobs_also_to_those_of_others(
    browser: Any, app_database: Database, submit: Any, worker: Any
) -> None:
    mine = [submit()["id"] for _ in range(2)]
    for gib in ("1.5", "2.5"):
        worker.fail(f"{gib} GiB are missing")
    with app_database.write() as session:
        session.execute(update(Job).values(owner="somebody else"))
    page = browser.open("/admin")
    assert "2 jobs out_of_memory 2.5 GiB are missing" in page.words
    links = [tag["href"] for tag in page.all("a") if tag["href"].startswith("/admin/jobs/")]
    assert sorted(links) == sorted(f"/admin/jobs/{job_id}" for job_id in mine)

    page = browser.open(links[0])
    for part in ("A job of somebody else", "GiB are missing", "out_of_memory", "running", "failed", "darkroom-seeded"):
        assert part in page.words, part


def test_words_and_pictures_of_others_stay_theirs(browser: Any, submit: Any, worker: Any) -> None:
    job = submit(prompt="a secret house", negative_prompt="neighbors")
    worker.develop()
    page = browser.open(f"/admin/jobs/{job['id']}")
    assert "secret" not in page.html
    assert "neighbors" not in page.html
    assert page.all("img") == []


def test_running_job_is_found_by_its_worker_and_put_back(
    browser: Any, app_database: Database, submit: Any, worker: Any, fleet_of_one: None, press: Callable[..., Any]
) -> None:
    job = submit()
    worker.claim()
    page = browser.open("/admin")
    assert f'href="/admin/jobs/{job["id"]}"' in page.html
    page = press(browser.open(f"/admin/jobs/{job['id']}"), "/requeue")
    assert "Waiting" in page.words
    assert "an operator put it back" in page.words
    assert jobs.get(app_database, jobs.list_jobs(app_database, owner="local")[0].id).state is JobState.QUEUED


def test_job_that_ended_meanwhile_is_not_put_back_and_its_page_says_how(
    browser: Any, submit: Any, worker: Any, press: Callable[..., Any]
) -> None:
    job = submit()
    claim = worker.claim()
    page = browser.open(f"/admin/jobs/{job['id']}")
    jobs.fail(worker.database, claim.job_id, attempt=claim.attempt, code="x", message="it broke")
    page = press(page, "/requeue")
    assert page.status_code == 200
    assert "it broke" in page.words
    assert page.forms == [form for form in page.forms if "requeue" not in form.action]


def test_anybody_s_job_is_called_off_from_its_page(
    browser: Any, app_database: Database, submit: Any, press: Callable[..., Any]
) -> None:
    job = submit()
    page = press(browser.open(f"/admin/jobs/{job['id']}"), f"/queue/all/{job['id']}/cancel")
    assert browser.path == f"/admin/jobs/{job['id']}"
    assert "Canceled" in page.words
    assert page.forms == [], "what has ended is not called off"
    assert jobs.get(app_database, UUID(job["id"])).state is JobState.CANCELED


def test_job_that_never_was_is_not_found(browser: Any) -> None:
    assert browser.open(f"/admin/jobs/{uuid4()}").status_code == 404
    assert browser.open("/admin/jobs/x").status_code == 404


def test_storage_and_retention_are_told(browser: Any, submit: Any, worker: Any) -> None:
    submit()
    worker.develop()
    words = browser.open("/admin").words
    assert "Pictures 1, 500 KiB" in words
    assert "Pictures are kept 30 d" in words
    assert "What failed, was canceled or expired 7 d" in words
    assert "Uploads are kept 1 d" in words


def test_figures_are_counted_anew_after_a_few_seconds_however_many_look(
    settings: Settings, app_database: Database, submit: Any, worker: Any
) -> None:
    clock = [0.0]
    overlook = Overlook(settings, app_database, clock=lambda: clock[0])
    seen = []
    for clock[0] in (0.0, 1.0, FRESH_SECONDS + 1, FRESH_SECONDS + 2, STORED_SECONDS + 3):
        overview = overlook.look(WINDOWS["hour"])
        seen.append((overview.num_succeeded, overview.stored.num_images, overview.depths[1].num_queued))
        submit()
        submit()
        worker.develop()
    assert seen == [(0, 0, 0), (0, 0, 1), (2, 0, 2), (2, 0, 3), (4, 4, 4)]


def test_pieces_that_change_are_fetched_alone_and_hold_nothing_of_htmx(
    client: FlaskClient, browser: Any, fleet_of_one: None
) -> None:
    page = browser.open("/admin")
    (poll,) = [tag for tag in page.all("div") if tag.get("id") == "live"]
    assert poll["hx-trigger"] == "every 5s"
    pieces = client.get(poll["hx-get"]).text
    targets = re.findall(r'<hx-partial hx-target="#([a-z]+)"', pieces)
    assert targets == ["now", "throughput", "waits", "figures", "workers", "failures", "stored"]
    assert all(f'id="{target}"' in page.html for target in targets)
    inside = re.sub(r"</?hx-partial[^>]*>", "", pieces)
    assert "hx-" not in inside
    assert "<html" not in pieces


def test_pages_of_operators_are_named_to_operators_alone(app: Flask, browser: Any, app_database: Database) -> None:
    assert 'href="/admin"' in browser.open("/").html
    _, key = keys.create(app_database, name="ann", owner="ann", scopes=("submit", "read"), quotas=Quotas())
    app.extensions["darkroom"].keys.forget()
    (form,) = browser.open("/login").forms
    page = browser.send(form, key=key)
    assert 'href="/admin"' not in page.html
    assert browser.open("/admin").status_code == 403


def checked(page: Any) -> list[str]:
    return [tag["value"] for tag in page.all("input") if tag.get("type") == "checkbox" and "checked" in tag]


def test_first_key_says_what_it_does_and_its_maker_goes_on_with_it(
    client: FlaskClient, browser: Any, press: Callable[..., Any]
) -> None:
    page = browser.open("/admin/keys")
    assert "The first key locks the door" in page.words
    assert checked(page) == list(keys.SCOPES)
    page = press(page, "/admin/keys", name="ops", scopes=["admin", "read", "submit"])
    assert page.status_code == 201
    (key,) = re.findall(r"dk_[A-Za-z0-9_-]{43}", page.html)
    browser.open("/admin")
    assert browser.path == "/admin"
    assert key not in browser.open("/admin/keys").html
    stranger = client.application.test_client()
    assert stranger.get("/admin").status_code == 303
    assert stranger.get("/api/v1/me", headers={"Authorization": f"Bearer {key}"}).json["owner"] == "ops"


def test_key_is_made_with_its_quotas_and_listed(
    browser: Any, app_database: Database, press: Callable[..., Any]
) -> None:
    fields = {"max_queued": "5", "megapixel_steps_per_day": "1000.5", "requests_per_minute": "", "weight": "2"}
    press(browser.open("/admin/keys"), "/admin/keys", name="ann", owner="studio", scopes=list(keys.SCOPES), **fields)
    (key,) = keys.list_keys(app_database)
    assert (key.name, key.owner, key.quotas) == ("ann", "studio", Quotas(2.0, 5, 1000.5, None))
    words = browser.open("/admin/keys").words
    assert f"ann {key.prefix}… studio submit, read, interactive, admin 5 0 of 1,000.5 no limit 2" in words


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("name", ""),
        ("name", "x" * 65),
        ("scopes", []),
        ("max_queued", "many"),
        ("weight", "0"),
        ("weight", "1e3"),
        ("requests_per_minute", "1.5"),
        ("requests_per_minute", "0"),
        ("megapixel_steps_per_day", "-1"),
    ],
)
def test_field_of_a_key_that_is_not_taken_says_why_beside_itself_and_keeps_what_was_typed(
    browser: Any, app_database: Database, press: Callable[..., Any], field: str, text: Any
) -> None:
    typed = {"name": "ann", "owner": 'the "studio"', "scopes": ["read"], "max_queued": "7"}
    page = press(browser.open("/admin/keys"), "/admin/keys", **typed | {field: text})
    assert page.status_code == 422
    assert f'id="{field}-refused"' in page.html
    assert keys.list_keys(app_database) == []
    kept = (
        page.forms[-1].fields if field == "owner" else {form.action: form.fields for form in page.forms}["/admin/keys"]
    )
    assert kept["owner"] == 'the "studio"'
    if field != "scopes":
        assert checked(page) == ["read"]
        assert kept[field] == text


def test_key_is_changed_and_revoked(browser: Any, app_database: Database, press: Callable[..., Any]) -> None:
    press(browser.open("/admin/keys"), "/admin/keys", name="ops", scopes=list(keys.SCOPES))
    record, _ = keys.create(app_database, name="ann", owner="ann", scopes=("read",), quotas=Quotas(max_queued=5))
    path = f"/admin/keys/{record.id}"
    page = browser.open(path)
    assert checked(page) == ["read"]
    assert page.forms[0].fields["max_queued"] == "5"
    press(page, path, max_queued="", weight="0.5", scopes=["submit", "read"])
    changed = keys.get(app_database, record.id)
    assert (changed.quotas, changed.scopes) == (Quotas(weight=0.5), {"submit", "read"})
    page = press(browser.open(path), "/revoke")
    assert "1 revoked" in page.words
    assert keys.get(app_database, record.id).revoked_at
    assert "Its jobs go on" in browser.open(path).words


def test_change_that_is_not_taken_changes_nothing(
    browser: Any, app_database: Database, press: Callable[..., Any]
) -> None:
    press(browser.open("/admin/keys"), "/admin/keys", name="ops", scopes=list(keys.SCOPES))
    (record,) = keys.list_keys(app_database)
    path = f"/admin/keys/{record.id}"
    for bad in ({"scopes": []}, {"max_queued": "-5", "scopes": ["admin"]}, {"weight": "1000", "scopes": ["admin"]}):
        page = press(browser.open(path), path, **bad)
        assert page.status_code == 422
        assert "-refused" in page.html
    assert keys.get(app_database, record.id).quotas == Quotas()
    assert "This is the key that you are using" in browser.open(path).words


def test_key_that_never_was_is_not_found(browser: Any) -> None:
    assert browser.open(f"/admin/keys/{uuid4()}").status_code == 404
    assert browser.open("/admin/keys/x").status_code == 404


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "12 ms"),
        (0.96, "1 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (9600, "2 h 40 min"),
        (3600, "1 h"),
        (273600, "3 d 4 h"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds).replace(SPACE, " ") == said


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KiB"), (2**37, "128 GiB"), (5 * 10**15, "4.4 PiB")],
)
def test_size(num_bytes: int, said: str) -> None:
    assert size(num_bytes).replace(SPACE, " ") == said


def test_count() -> None:
    assert [count(number) for number in (7, 1234567, 0.25)] == ["7", "1,234,567", "0.2"]


def test_columns_stand_upon_each_other_under_a_round_end_of_the_scale() -> None:
    plot = columns([3, 0], [1, 0])
    assert (plot.top, plot.num) == (4, 2)
    assert plot.paths == ("M0.1 100V25H0.9V100Z", "M0.1 25V0H0.9V25Z")
    assert columns([0], [0]).top == 2


def test_line_breaks_where_a_value_is_missing_and_a_lone_one_is_seen() -> None:
    plot = lines([None, 10.0, None, 5.0, 0.0], [None] * 5)
    assert plot.top == 10
    assert plot.paths == ("M1.1 0L1.5 0L1.9 0M3.1 50L3.5 50L4.5 100L4.9 100", "")
    assert lines([10.0, 40.0]).top == 40
