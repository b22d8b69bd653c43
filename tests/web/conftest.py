"""An application on the tests' servers, a client that is on this host, and a stand-in for a worker."""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from claiming import claim_one
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as Picture

from darkroom import jobs
from darkroom.config import Settings, load_settings
from darkroom.db import Database
from darkroom.jobs import Claim, ImageRecord, Lines, Success
from darkroom.storage import Storage, image_key, thumb_key, walk_key
from darkroom.web import create_app
from darkroom.web.services import Services

NUM_BYTES = 512_008  # more than one chunk


def _noise() -> bytes:
    """A PNG, with as many bytes behind its end as are missing."""
    file = BytesIO()
    Picture.frombytes("RGB", (128, 128), random.Random(7).randbytes(128 * 128 * 3)).save(file, "PNG")
    return file.getvalue().ljust(NUM_BYTES, b"\0")


PICTURE = _noise()
THUMB = b"RIFF" + bytes(64)


@dataclass(frozen=True)
class HandWorker:
    """Does by hand, and at once, what a worker does with the front job."""

    database: Database
    storage: Storage

    def claim(self, model: str = "darkroom-seeded") -> Claim:
        claim = claim_one(
            self.database, worker_id="by-hand", models=[model], num_held=0, lease_seconds=60, lines=Lines()
        )
        assert claim
        return claim

    def develop(self, *, is_stored: bool = True, has_walk: bool = False) -> Claim:
        """Finish the front job with as many pictures as it wants."""
        claim = self.claim()
        images = [self._record(claim, n) for n in range(claim.params.num_images)]
        for image in images if is_stored else ():
            self.storage.put(image.key, PICTURE + bytes([image.n]), content_type="image/png")
            self.storage.put(image.thumb_key, THUMB, content_type="image/webp")
        timings = {"encode": 0.1, "denoise": 2.5}
        key = walk_key(claim.job_id, claim.attempt) if has_walk else None
        if key:
            self.storage.put(key, b"RIFFwalk", content_type="image/webp")
        ending = {"images": images, "timings": timings, "walk_key": key}
        jobs.succeed(self.database, Success(claim.job_id, claim.attempt, **ending))
        return claim

    def fail(self, message: str) -> Claim:
        claim = self.claim()
        jobs.fail(self.database, claim.job_id, attempt=claim.attempt, code="out_of_memory", message=message)
        return claim

    def _record(self, claim: Claim, n: int) -> ImageRecord:
        picture = PICTURE + bytes([n])
        return ImageRecord(
            n=n,
            key=image_key(claim.job_id, claim.attempt, n, "png"),
            thumb_key=thumb_key(claim.job_id, claim.attempt, n),
            content_type="image/png",
            width=claim.params.width,
            height=claim.params.height,
            num_bytes=len(picture),
            seed=claim.params.seed_of(n),
            sha256=hashlib.sha256(picture).hexdigest(),
        )


def services_of(app: Flask) -> Services:
    services: Services = app.extensions["darkroom"]
    return services


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application without its loops."""
    app = create_app(settings, with_background=False)
    yield app
    services_of(app).database.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def bare_client(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[FlaskClient]:
    """A client of an application that has a database and nothing else, the same for a whole file of tests."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(migrated_sqlite, home / "darkroom.db")
    settings = load_settings(
        home=home,
        catalog=Path(__file__).parents[1] / "seeded.toml",
        redis_url="redis://127.0.0.1:1/0",
        s3_endpoint_url="http://127.0.0.1:1",
    )
    app = create_app(settings, with_background=False)
    yield app.test_client()
    services_of(app).database.dispose()


@pytest.fixture
def bucket(settings: Settings) -> None:
    """Make the bucket by the server's own door, so that it knows of it."""
    Storage(settings).ensure_bucket()


@pytest.fixture
def worker(app: Flask, bucket: None) -> HandWorker:
    return HandWorker(services_of(app).database, services_of(app).storage)


@pytest.fixture
def submit(client: FlaskClient) -> Callable[..., Any]:
    """Submit a job by the API; return its document."""

    def submit(**fields: Any) -> Any:
        response = client.post("/api/v1/jobs", json={"prompt": "a red house"} | fields)
        assert response.status_code == 202, response.text
        return response.json

    return submit


class Form:
    """A form of a page: where it goes, and what it would send as it stands."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self.action = attributes.get("action", "")
        self.method = attributes["method"]
        self.fields: dict[str, str] = {}


class Page(HTMLParser):
    """A page as a browser without JavaScript has it: its words, its tags, its own forms, and those of every page."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.status_code = response.status_code
        self.html = response.text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.forms: list[Form] = []
        self.shared_forms: list[Form] = []
        self._is_own = False
        self._form: Form | None = None
        self._texts: list[str] = []
        self.title = ""
        self._inside = ""
        self._control = ""
        self.feed(self.html)

    @property
    def words(self) -> str:
        """All that can be read on it, in one line."""
        return " ".join(" ".join(self._texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every tag of that name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in pairs}
        self.tags.append((tag, attributes))
        self._inside = tag
        if tag == "main":
            self._is_own = True
        if tag == "form" and attributes.get("method") != "dialog":
            self._form = Form(attributes)
            (self.forms if self._is_own else self.shared_forms).append(self._form)
        if self._form:
            self._fill(self._form, tag, attributes)

    def _fill(self, form: Form, tag: str, attributes: dict[str, str]) -> None:
        """What a form would send of a control."""
        if tag in {"textarea", "select"}:
            self._control = attributes["name"]
            form.fields[self._control] = ""
        if (
            tag == "input"
            and "name" in attributes
            and ("checked" in attributes or attributes.get("type") not in {"radio", "checkbox"})
        ):
            form.fields[attributes["name"]] = attributes.get("value", "")
        if tag == "option":
            self._inside = "chosen" if "selected" in attributes else "option"
            if "selected" in attributes and "value" in attributes:
                form.fields[self._control] = attributes["value"]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag == "main":
            self._is_own = False
        if tag == "form":
            self._form = None

    def handle_data(self, text: str) -> None:
        fields = self._form.fields if self._form else {}
        if self._inside == "textarea":
            fields[self._control] = text.removeprefix("\n")
        elif self._inside == "chosen":
            fields[self._control] = fields[self._control] or text
        elif self._inside == "title":
            self.title = text
        else:
            self._texts.append(text)


class Browser:
    """A browser with JavaScript off, on this host. It follows redirects and sends forms as they stand."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self.path = "/"

    def open(self, path: str) -> Page:
        return self._show(self._client.get(path, follow_redirects=True))

    def send(self, form: Form, **changes: str) -> Page:
        assert form.method == "post"
        headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        return self._show(
            self._client.post(form.action, data=form.fields | changes, headers=headers, follow_redirects=True)
        )

    def _show(self, response: Any) -> Page:
        self.path = response.request.path
        return Page(response)


@pytest.fixture
def page_of() -> type[Page]:
    return Page


@pytest.fixture
def open_browser() -> type[Browser]:
    return Browser


@pytest.fixture
def bare_browser(bare_client: FlaskClient) -> Browser:
    return Browser(bare_client)


@pytest.fixture
def browser(client: FlaskClient) -> Browser:
    return Browser(client)
