"""Keys over HTTP: how they are shown, what they may do, how often, and what operators do with all of it."""

import base64
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient

from darkroom import fleet, intake, jobs, keys
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import ConfigError
from darkroom.fleet import WorkerFacts
from darkroom.jobs import JobClass
from darkroom.keys import KeyRecord, Quotas
from darkroom.web import check_bind, create_app
from darkroom.web.identity import own_path

BODY = {"prompt": "a red house"}
OWN = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def app_database(app: Flask) -> Database:
    database: Database = app.extensions["darkroom"].database
    return database


def make(database: Database, owner: str = "ann", *scopes: str, **quotas: Any) -> tuple[KeyRecord, str]:
    scopes = scopes or keys.ORDINARY_SCOPES
    return keys.create(database, name=owner, owner=owner, scopes=scopes, quotas=Quotas(**quotas))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def root(app_database: Database) -> dict[str, str]:
    """An operator's headers."""
    return bearer(make(app_database, "root", *keys.SCOPES)[1])


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "shown",
    [
        lambda key: f"Bearer {key}",
        lambda key: f"bearer {key}",
        lambda key: f"Token {key}",
        lambda key: basic("anybody", key),
        lambda key: basic(key, ""),
    ],
)
def test_key_is_taken_in_every_way_that_clients_show_it(
    client: FlaskClient, app_database: Database, shown: Any
) -> None:
    _, key = make(app_database)
    assert client.get("/api/v1/me", headers={"Authorization": shown(key)}).json["owner"] == "ann"


def test_nobody_needs_a_key_as_long_as_there_is_none_and_a_made_up_one_does_no_harm(client: FlaskClient) -> None:
    for headers in ({}, bearer("sk-none"), bearer("dk_" + "x" * 43)):
        me = client.get("/api/v1/me", headers=headers).json
        assert (me["owner"], me["key"], me["scopes"]) == ("local", None, ["admin", "read", "submit"])


def test_first_key_locks_the_door_also_on_loopback_and_revoking_it_opens_nothing(client: FlaskClient) -> None:
    made = client.post("/api/v1/admin/keys", json={"name": "ann", "owner": "local", "scopes": ["read", "admin"]}).json
    refused = client.get("/api/v1/jobs")
    assert (refused.status_code, refused.json["code"]) == (401, "key_missing")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert client.get("/api/v1/jobs", headers=bearer(made["key"])).status_code == 200
    client.post(f"/api/v1/admin/keys/{made['id']}/revoke", headers=bearer(made["key"]))
    assert client.get("/api/v1/jobs").status_code == 401
    assert client.get("/api/v1/jobs", headers=bearer(made["key"])).json["code"] == "key_unknown"


def test_flag_for_no_keys_anywhere_asks_for_keys_all_the_same_once_there_are_some(
    settings: Settings, app_database: Database
) -> None:
    anywhere = settings.model_copy(update={"host": "0.0.0.0", "keyless_anywhere": True})
    client = create_app(anywhere, with_background=False).test_client()
    assert client.get("/api/v1/jobs").status_code == 200
    make(app_database)
    client = create_app(anywhere, with_background=False).test_client()
    assert client.get("/api/v1/jobs").status_code == 401


def test_other_address_is_bound_only_once_there_is_a_key_and_then_asks_for_it(
    settings: Settings, app_database: Database
) -> None:
    anywhere = settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="darkroom keys create"):
        check_bind(anywhere)
    _, key = make(app_database)
    check_bind(anywhere)
    client = create_app(anywhere, with_background=False).test_client()
    assert client.get("/api/v1/jobs").status_code == 401
    assert client.get("/api/v1/jobs", headers=bearer(key)).status_code == 200


def test_other_address_is_bound_while_the_database_is_away_and_lets_nobody_in(settings: Settings) -> None:
    away = settings.model_copy(update={"host": "0.0.0.0", "database_url": "postgresql+psycopg://me@127.0.0.1:1/x"})
    client = create_app(away, with_background=False).test_client()
    assert client.get("/api/v1/jobs").status_code == 401
    assert client.get("/api/v1/jobs", headers=bearer("dk_" + "x" * 43)).status_code == 503


def login_form(browser: Any) -> Any:
    """The form that asks for a key."""
    (form,) = browser.open("/login").forms
    return form


def test_part_of_a_page_without_a_key_has_the_page_ask_for_itself(client: FlaskClient, app_database: Database) -> None:
    make(app_database)
    response = client.get("/estimate", headers={"HX-Request": "true"})
    assert (response.status_code, response.headers["HX-Refresh"], response.data) == (401, "true", b"")


def test_person_logs_in_with_a_key_goes_where_they_wanted_to_and_out_again(
    client: FlaskClient, browser: Any, app_database: Database
) -> None:
    _, key = make(app_database)
    page = browser.open("/gallery?cursor=")
    assert browser.path == "/login"
    (form,) = page.forms
    assert form.fields["next"] == "/gallery?cursor="
    page = browser.send(form, key=f" {key} ")
    assert browser.path == "/gallery"
    (leave,) = [form for form in page.shared_forms if form.action == "/logout"]
    assert "Log out ann" in page.words
    browser.send(leave)
    assert browser.path == "/login"
    browser.open("/gallery")
    assert browser.path == "/login"


def test_session_cookie_holds_no_key_and_is_kept_from_scripts_and_other_sites(
    client: FlaskClient, browser: Any, app_database: Database
) -> None:
    _, key = make(app_database)
    form = login_form(browser)
    headers = OWN | {"X-Forwarded-Proto": "https"}
    answer = client.post("/login", data=form.fields | {"key": key}, headers=headers)
    cookie = answer.headers["Set-Cookie"]
    payload = cookie.partition("=")[2].partition(".")[0]
    assert key.encode() not in base64.urlsafe_b64decode(payload + "==")
    assert key not in cookie
    for attribute in ("HttpOnly", "SameSite=Lax", "Secure"):
        assert attribute in cookie
    assert "Secure" not in client.get("/login").headers.get("Set-Cookie", "")


def test_login_without_the_forms_token_is_refused(client: FlaskClient, app_database: Database) -> None:
    _, key = make(app_database)
    assert client.post("/login", data={"key": key}, headers=OWN).status_code == 400
    assert client.get("/api/v1/me").status_code == 401


def test_wrong_key_is_refused_on_the_login_page_and_not_repeated(browser: Any, app_database: Database) -> None:
    make(app_database)
    form = login_form(browser)
    page = browser.send(form, key="dk_" + "x" * 43)
    assert page.status_code == 401
    assert "not known here" in page.words
    assert "xxx" not in page.html


def test_session_goes_on_over_the_api_and_ends_with_its_key(
    app: Flask, client: FlaskClient, browser: Any, app_database: Database
) -> None:
    record, key = make(app_database)
    browser.send(login_form(browser), key=key)
    assert client.get("/api/v1/me").json["owner"] == "ann"
    keys.revoke(app_database, record.id)
    app.extensions["darkroom"].keys.forget()
    assert client.get("/api/v1/me").json["code"] == "key_missing"


def test_form_of_who_is_logged_in_is_interactive_though_the_key_may_not_ask_for_that_by_api(
    client: FlaskClient, browser: Any, app_database: Database
) -> None:
    _, key = make(app_database)
    (form, *_) = [form for form in browser.send(login_form(browser), key=key).forms if form.action == "/"]
    browser.send(form, prompt="a house")
    (job,) = jobs.list_jobs(app_database, owner="ann")
    assert job.job_class is JobClass.INTERACTIVE
    refused = client.post("/api/v1/jobs", json=BODY | {"priority": "interactive"}, headers=bearer(key))
    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "priority")


def test_shown_key_wins_over_the_session(client: FlaskClient, browser: Any, app_database: Database) -> None:
    _, key = make(app_database)
    browser.send(login_form(browser), key=key)
    _, other = make(app_database, "bob")
    assert client.get("/api/v1/me", headers=bearer(other)).json["owner"] == "bob"
    assert client.get("/api/v1/me", headers=bearer("dk_" + "x" * 43)).status_code == 401


def test_session_of_another_deployment_is_none(client: FlaskClient, app_database: Database) -> None:
    make(app_database)
    client.set_cookie("darkroom", "eyJrZXlfaWQiOiJ4In0.aaaaaa.bbbbbb")
    assert client.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil.example", "evil", "/a\nb", ""]
)
def test_login_leads_nowhere_else(target: str) -> None:
    assert own_path(target) == "/"


@pytest.mark.parametrize("target", ["/", "/gallery", "/?prompt=a%20house", "/jobs/x?y=https://evil.example"])
def test_login_leads_to_any_page_of_ours(target: str) -> None:
    assert own_path(target) == target


def test_login_page_leads_straight_on_where_no_key_is_asked_for(client: FlaskClient) -> None:
    answer = client.get("/login?next=/gallery")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/gallery")


def test_key_is_in_no_log_line(client: FlaskClient, app_database: Database, log_lines: list[Any]) -> None:
    _, key = make(app_database)
    client.post("/api/v1/jobs", json=BODY, headers=bearer(key))
    client.post("/login", data={"key": key}, headers=OWN)
    client.get(f"/api/v1/jobs/{key}", headers=bearer(key[:-1] + "x"))
    assert log_lines
    assert key not in str(log_lines)


def test_me_tells_what_is_left(client: FlaskClient, app_database: Database) -> None:
    record, key = make(app_database, max_queued=3, megapixel_steps_per_day=1000.0, requests_per_minute=60, weight=2.0)
    client.post("/api/v1/jobs", json=BODY, headers=bearer(key))
    me = client.get("/api/v1/me", headers=bearer(key)).json
    used = keys.get(app_database, record.id).used_megapixel_steps
    assert used > 0
    assert me == {
        "owner": "ann",
        "key": {"id": str(record.id), "name": "ann", "prefix": record.prefix},
        "scopes": ["read", "submit"],
        "weight": 2.0,
        "quota": {
            "max_queued": 3,
            "num_queued": 1,
            "queued_left": 2,
            "megapixel_steps_per_day": 1000.0,
            "megapixel_steps_today": used,
            "megapixel_steps_left": 1000.0 - used,
            "requests_per_minute": 60,
        },
    }


def test_quota_that_is_used_up_is_429_with_its_numbers_and_when_to_come_back(
    client: FlaskClient, app_database: Database
) -> None:
    _, key = make(app_database, max_queued=1)
    assert client.post("/api/v1/jobs", json=BODY, headers=bearer(key)).status_code == 202
    refused = client.post("/api/v1/jobs", json=BODY, headers=bearer(key))
    assert refused.status_code == 429
    assert refused.content_type == "application/problem+json"
    named = {name: refused.json[name] for name in ("code", "quota", "limit", "used", "asked")}
    assert named == {"code": "quota_exceeded", "quota": "max_queued", "limit": 1, "used": 1, "asked": 1}
    assert int(refused.headers["Retry-After"]) > 0


def test_retry_and_batch_are_held_to_the_quota_too(client: FlaskClient, app_database: Database, worker: Any) -> None:
    _, key = make(app_database, max_queued=1)
    job = client.post("/api/v1/jobs", json=BODY, headers=bearer(key)).json
    worker.develop()
    assert client.post("/api/v1/jobs/batch", json={"jobs": [BODY] * 2}, headers=bearer(key)).status_code == 429
    assert client.post(f"{job['urls']['self']}/retry", headers=bearer(key)).status_code == 202
    assert client.post(f"{job['urls']['self']}/retry", headers=bearer(key)).status_code == 429


def test_weight_of_a_key_is_its_jobs_share(client: FlaskClient, app_database: Database) -> None:
    for owner, weight in (("heavy", 4.0), ("light", 1.0)):
        _, key = make(app_database, owner, weight=weight)
        for _ in range(3):
            client.post("/api/v1/jobs", json=BODY, headers=bearer(key))
    waiting = jobs.front_of_queue(app_database, model="darkroom-seeded", limit=6)
    owners = [jobs.get(app_database, job_id).owner for job_id in waiting]
    assert owners == ["heavy", "light", "heavy", "heavy", "light", "light"]


RATE = 3


def test_as_many_requests_are_answered_in_a_minute_as_the_key_may_send(
    client: FlaskClient, app_database: Database
) -> None:
    _, key = make(app_database, requests_per_minute=RATE)
    for left in reversed(range(RATE)):
        answer = client.get("/api/v1/me", headers=bearer(key))
        assert answer.status_code == 200
        assert (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]) == (str(RATE), str(left))
        assert 0 < int(answer.headers["RateLimit-Reset"]) <= 61
        assert "Retry-After" not in answer.headers
    refused = client.post("/api/v1/jobs", json=BODY, headers=bearer(key))
    assert (refused.status_code, refused.json["code"]) == (429, "rate_limited")
    assert f"{RATE} per 1 minute" in refused.json["detail"]
    assert 0 < int(refused.headers["Retry-After"]) <= 61
    assert jobs.list_jobs(app_database, owner="ann") == []


def test_keys_are_counted_each_for_itself_and_public_routes_not_at_all(
    client: FlaskClient, app_database: Database
) -> None:
    _, key = make(app_database, requests_per_minute=1)
    _, other = make(app_database, "bob", requests_per_minute=1)
    for _ in range(3):
        assert client.get("/healthz", headers=bearer(key)).status_code == 200
    assert [client.get("/api/v1/me", headers=bearer(each)).status_code for each in (key, other)] == [200, 200]
    assert [client.get("/api/v1/me", headers=bearer(each)).status_code for each in (key, other)] == [429, 429]


def test_web_processes_count_together(settings: Settings, app_database: Database) -> None:
    _, key = make(app_database, requests_per_minute=RATE)
    clients = [create_app(settings, with_background=False).test_client() for _ in range(2)]
    answers = [clients[n % 2].get("/api/v1/me", headers=bearer(key)).status_code for n in range(RATE + 1)]
    assert answers == [200] * RATE + [429]


def test_without_redis_each_process_counts_for_itself(client: FlaskClient, app_database: Database, valkey: Any) -> None:
    _, key = make(app_database, requests_per_minute=RATE)
    valkey.stop()
    answers = [client.get("/api/v1/me", headers=bearer(key)) for _ in range(RATE + 1)]
    assert [answer.status_code for answer in answers] == [200] * RATE + [429]
    assert answers[0].headers["RateLimit-Remaining"] == str(RATE - 1)


def test_key_without_a_rate_limit_is_not_counted(client: FlaskClient, app_database: Database) -> None:
    _, key = make(app_database)
    answer = client.get("/api/v1/me", headers=bearer(key))
    assert "RateLimit-Limit" not in answer.headers


def test_operator_makes_changes_and_revokes_a_key(client: FlaskClient, root: dict[str, str]) -> None:
    made = client.post("/api/v1/admin/keys", json={"name": "bob", "max_queued": 1}, headers=root)
    assert made.status_code == 201
    key, path = made.json.pop("key"), made.headers["Location"]
    shown = client.get(path, headers=root).json
    assert "key" not in shown
    assert (shown["owner"], shown["scopes"], shown["max_queued"]) == ("bob", ["read", "submit"], 1)
    assert client.get("/api/v1/me", headers=bearer(key)).json["owner"] == "bob"
    changed = client.patch(path, json={"max_queued": None, "weight": 3.0}, headers=root).json
    assert (changed["max_queued"], changed["weight"]) == (None, 3.0)
    revoked = client.post(f"{path}/revoke", headers=root).json
    assert revoked["revoked_at"]
    assert client.get("/api/v1/me", headers=bearer(key)).status_code == 401
    listed = client.get("/api/v1/admin/keys", headers=root).json["keys"]
    assert [each["name"] for each in listed] == ["root", "bob"]
    assert key not in str(listed)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "", "owner": "ann"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x", "owner": "nul\x00"}, "owner"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "weight": 0}, "weight"),
        ({"name": "x", "weight": None}, "weight"),
        ({"name": "x", "max_queued": 1.5}, "max_queued"),
        ({"name": "x", "max_queued": True}, "max_queued"),
        ({"name": "x", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "x", "megapixel_steps_per_day": "many"}, "megapixel_steps_per_day"),
        ({"name": "x", "colour": "red"}, "colour"),
    ],
)
def test_key_that_cannot_be_made_is_refused_by_field(
    client: FlaskClient, root: dict[str, str], body: Any, field: str
) -> None:
    refused = client.post("/api/v1/admin/keys", json=body, headers=root)
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json["errors"]] == [field]
    assert refused.json["errors"][0]["limit"]


@pytest.mark.parametrize("key_id", ["01a20405-fb01-7070-bc9a-0d618ca8ebd9", "x", "nul%00"])
def test_unknown_key_is_404(client: FlaskClient, root: dict[str, str], key_id: str) -> None:
    path = f"/api/v1/admin/keys/{key_id}"
    answers = [
        client.get(path, headers=root),
        client.patch(path, json={"weight": 2}, headers=root),
        client.post(f"{path}/revoke", headers=root),
    ]
    assert [(answer.status_code, answer.json["code"]) for answer in answers] == [(404, "unknown_key")] * 3


def test_paused_intake_is_503_with_the_reason_and_a_banner_until_it_is_resumed(
    client: FlaskClient, browser: Any, submit: Any
) -> None:
    job = submit()
    paused = client.post("/api/v1/admin/intake/pause", json={"reason": "new disks"}).json
    assert (paused["paused"], paused["reason"], paused["paused_by"]) == (True, "new disks", "local")
    assert client.get("/api/v1/admin/intake").json == paused
    for path, body in (("/api/v1/jobs", BODY), ("/api/v1/jobs/batch", {"jobs": [BODY]})):
        refused = client.post(path, json=body)
        assert (refused.status_code, refused.json["code"]) == (503, "intake_paused")
        assert "new disks" in refused.json["detail"]
        assert int(refused.headers["Retry-After"]) > 0
    page = browser.open("/")
    assert "No jobs are taken just now: new disks" in page.words
    (form,) = [form for form in page.forms if form.action == "/"]
    assert "new disks" in browser.send(form, prompt="a house").words
    assert client.post(job["urls"]["cancel"]).status_code == 200
    assert client.post("/api/v1/admin/intake/resume").json["paused"] is False
    submit()


@pytest.mark.parametrize("reason", ["x", "x" * 500])
def test_reason_is_taken_up_to_its_length(client: FlaskClient, reason: str) -> None:
    assert client.post("/api/v1/admin/intake/pause", json={"reason": reason}).json["reason"] == reason


@pytest.mark.parametrize("reason", ["", "x" * 501, "nul\x00", 7, None])
def test_reason_that_cannot_be_told_is_refused(client: FlaskClient, app_database: Database, reason: Any) -> None:
    refused = client.post("/api/v1/admin/intake/pause", json={"reason": reason})
    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "reason")
    assert intake.read(app_database) is None


@pytest.fixture
def known_worker(app_database: Database) -> WorkerFacts:
    facts = WorkerFacts("host-1-abc", "host", 1, "cpu", 2**33, "cpu/test", ["darkroom-seeded"], 4, "0")
    fleet.register(app_database, facts)
    return facts


def test_operator_sees_the_workers_drains_one_and_has_it_claim_again(
    client: FlaskClient, root: dict[str, str], known_worker: WorkerFacts, app_database: Database
) -> None:
    (listed,) = client.get("/api/v1/admin/workers", headers=root).json["workers"]
    assert {name: listed[name] for name in vars(known_worker)} == vars(known_worker)
    path = f"/api/v1/admin/workers/{known_worker.id}"
    assert client.post(f"{path}/drain", headers=root).status_code == 202
    assert [worker.is_drain_wanted for worker in fleet.list_workers(app_database)] == [True]
    assert client.post(f"{path}/resume", headers=root).status_code == 202
    assert [worker.is_drain_wanted for worker in fleet.list_workers(app_database)] == [False]


@pytest.mark.parametrize("worker_id", ["nobody", "nul%00"])
@pytest.mark.parametrize("act", ["drain", "resume"])
def test_unknown_worker_is_404(client: FlaskClient, root: dict[str, str], worker_id: str, act: str) -> None:
    answer = client.post(f"/api/v1/admin/workers/{worker_id}/{act}", headers=root)
    assert (answer.status_code, answer.json["code"]) == (404, "unknown_worker")


def test_operator_puts_anybodys_running_job_back_and_sees_nothing_of_what_it_asked_for(
    client: FlaskClient, root: dict[str, str], app_database: Database, worker: Any
) -> None:
    _, key = make(app_database)
    job = client.post("/api/v1/jobs", json=BODY, headers=bearer(key)).json
    worker.claim()
    answer = client.post(f"/api/v1/admin/jobs/{job['id']}/requeue", headers=root)
    assert answer.status_code == 200
    assert (answer.json["owner"], answer.json["state"]) == ("ann", "queued")
    assert "house" not in answer.text
    assert jobs.get(app_database, UUID(job["id"])).state == "queued"


def test_ended_or_unknown_job_cannot_be_put_back(client: FlaskClient, submit: Any, worker: Any) -> None:
    job = submit()
    worker.develop()
    assert client.post(f"/api/v1/admin/jobs/{job['id']}/requeue").status_code == 409
    assert client.post(f"/api/v1/admin/jobs/{uuid4()}/requeue").status_code == 404
