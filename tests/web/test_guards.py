"""A Darkroom without keys hears this host, and no page of another site."""

import re
import stat
from pathlib import Path
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from darkroom.config import Settings, load_settings
from darkroom.errors import ConfigError
from darkroom.web import check_bind, create_app
from darkroom.web.guards import secret_key

BODY = {"prompt": "a red house"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:5000", "[::1]", "[::1]:8000", "127.9.9.9:1"]
)
def test_loopback_names_are_served(bare_client: FlaskClient, host: str) -> None:
    assert bare_client.get("/api/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "evil.example:80@127.0.0.1", "0.0.0.0",
     "192.168.0.7:8000", "169.254.169.254", "[::]", "[::ffff:10.0.0.1]", "127.0.0.1/../x", "localhost:x", "127.1",
     "2130706433", "localhost, evil.example", "user@localhost", "localhost?", ".localhost", "[::1", ""],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/api/v1/jobs", "/gallery", "/static/darkroom.css", "/nothing"])
def test_any_other_host_name_is_refused(bare_client: FlaskClient, path: str, host: str) -> None:
    response = bare_client.get(path, environ_overrides={"HTTP_HOST": host})
    assert response.status_code == 421
    assert b"<form" not in response.data


def test_refused_host_reads_as_a_problem_below_api_and_as_text_elsewhere(bare_client: FlaskClient) -> None:
    problem = bare_client.get("/api/v1/jobs", headers={"Host": "evil.example"})
    assert problem.json
    assert problem.json["code"] == "unknown_host"
    assert bare_client.get("/", headers={"Host": "evil.example"}).content_type.startswith("text/plain")


def test_probes_are_answered_by_address(bare_client: FlaskClient) -> None:
    assert bare_client.get("/healthz", headers={"Host": "10.1.2.3:8000"}).status_code == 200
    assert bare_client.get("/readyz", headers={"Host": "10.1.2.3:8000"}).status_code != 421
    assert bare_client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
    assert bare_client.get("/healthz", headers={"Host": ".localhost"}).status_code == 421


def test_hosts_that_the_operator_lists_are_served(settings: Settings) -> None:
    listed = settings.model_copy(update={"allowed_hosts": ("Pictures.example", "10.0.0.7")})
    client = create_app(listed, with_background=False).test_client()
    for host in ("pictures.example", "pictures.example:8443", "10.0.0.7:8000", "localhost"):
        assert client.get("/api/v1/models", headers={"Host": host}).status_code == 200
    assert client.get("/api/v1/models", headers={"Host": "other.example"}).status_code == 421
    own = {"Host": "127.0.0.1:8000", "Origin": "https://pictures.example"}
    assert client.post("/api/v1/jobs", json=BODY, headers=own).status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "file://localhost"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/v1/jobs", "/api/v1/jobs/{id}/cancel", "/jobs/{id}/cancel"])
def test_page_of_another_origin_changes_nothing(bare_client: FlaskClient, path: str, headers: dict[str, str]) -> None:
    path = path.format(id=uuid4())
    refused = bare_client.post(path, json=BODY, headers=headers)
    assert refused.status_code == 403
    assert refused.json is None or refused.json["code"] == "foreign_origin"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://LOCALHOST"},
        {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"},
    ],
)
def test_own_page_and_programs_may_submit(bare_client: FlaskClient, headers: dict[str, str]) -> None:
    assert bare_client.post("/api/v1/jobs", json=BODY, headers=headers).status_code == 202


def test_no_answer_lets_another_origin_read_it(bare_client: FlaskClient) -> None:
    response = bare_client.options("/api/v1/jobs", headers={"Origin": "https://evil.example"})
    assert not [name for name, _ in response.headers if name.lower().startswith("access-control")]


def test_plain_html_form_cannot_cancel_by_the_api(bare_client: FlaskClient) -> None:
    response = bare_client.post(f"/api/v1/jobs/{uuid4()}/cancel", data={"x": "1"})
    assert response.status_code == 415


@pytest.mark.parametrize("path", ["/", "/gallery", "/api/v1/models", "/nothing", "/api/nothing", "/static/darkroom.js"])
def test_every_answer_carries_the_security_headers(bare_client: FlaskClient, path: str) -> None:
    with bare_client.get(path) as response:
        headers = response.headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_pages_need_no_inline_script_or_style(bare_client: FlaskClient) -> None:
    for path in ("/", "/gallery", "/nothing"):
        page = bare_client.get(path).text
        for forbidden in ("<style", " style=", " onclick=", " onchange=", "javascript:", "http://", "https://"):
            assert forbidden not in page
        tags = re.findall(r"<script[^>]*>", page)
        assert all(' nonce="' in tag for tag in tags)
        # One is a map of what scripts import, which no attribute can name.
        assert [tag for tag in tags if ' src="/static/' not in tag and 'type="importmap"' not in tag] == []


def test_nonce_of_a_page_is_that_of_its_policy_and_no_other_s(bare_client: FlaskClient) -> None:
    pages = [bare_client.get("/") for _ in range(2)]
    nonces = [re.findall(r'nonce="([^"]+)"', page.text) for page in pages]
    for page, found in zip(pages, nonces, strict=True):
        assert len(set(found)) == 1
        assert f"script-src 'nonce-{found[0]}';" in page.headers["Content-Security-Policy"]
    assert nonces[0][0] != nonces[1][0]


def test_cookie_is_kept_from_scripts_and_from_other_sites(bare_client: FlaskClient) -> None:
    cookie = bare_client.application.test_client().get("/").headers["Set-Cookie"]
    assert cookie.startswith("darkroom=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


def test_programs_get_no_cookie(bare_client: FlaskClient) -> None:
    assert "Set-Cookie" not in bare_client.get("/api/v1/jobs").headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_may_be_bound_without_keys(host: str) -> None:
    check_bind(load_settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "pictures.example", "", "127.0.0.1.example"])
def test_no_other_address_is_bound_without_keys_unless_that_is_said_plainly(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match=r"DARKROOM_HOST.*DARKROOM_KEYLESS_ANYWHERE"):
        check_bind(load_settings(host=host))
    with pytest.raises(ConfigError):
        create_app(load_settings(home=tmp_path, host=host), with_background=False)
    check_bind(load_settings(host=host, keyless_anywhere=True))


def test_key_that_signs_cookies_outlives_a_restart_and_is_private(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    first = secret_key(settings)
    assert len(first) == 64
    assert secret_key(settings) == first
    [path] = list((tmp_path / "home").iterdir())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_configured_key_is_used_and_none_is_kept(tmp_path: Path) -> None:
    assert secret_key(load_settings(home=tmp_path / "home", secret_key="a key of mine")) == "a key of mine"
    assert not (tmp_path / "home").exists()


def test_missing_place_for_the_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="DARKROOM_SECRET_KEY"):
        secret_key(load_settings(home=tmp_path / "file" / "home"))
