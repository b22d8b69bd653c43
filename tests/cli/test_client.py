"""The client, against a Darkroom that listens."""

import threading
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from darkroom.client import ClientError, Darkroom, JobFailed, JobUnfinished, RequestRefused
from darkroom.client.connection import LONGEST_RETRY_AFTER_SECONDS
from darkroom.stack.servers import free_port


def test_job_is_followed_from_submit_to_its_bytes(url, worker):
    with Darkroom(url) as client:
        submitted = client.submit("a red house", seed=7, num_images=2)
        assert (submitted.state, submitted.position, submitted.params["seed"]) == ("queued", 0, 7)
        seen = []
        worker_at_work = threading.Timer(0.2, worker.develop)
        worker_at_work.start()
        job = client.wait(submitted.id, seconds=30, on_change=lambda job: seen.append(job.state))
        worker_at_work.join()
        assert job.state == "succeeded"
        assert (seen[0], seen[-1]) == ("queued", "succeeded")
        digests = [sha256(picture.body).hexdigest() for picture in client.pictures(job)]
        assert digests == [image.sha256 for image in job.images]


def test_wait_is_bounded_and_leaves_the_job_alone(url):
    with Darkroom(url) as client:
        job = client.submit("a red house")
        with pytest.raises(JobUnfinished) as caught:
            client.wait(job.id, seconds=0.2)
        assert caught.value.state == "queued"
        assert client.get(job.id).is_live


def test_canceled_job_says_so(url):
    with Darkroom(url) as client:
        job = client.submit("a red house")
        assert client.cancel(job.id).state == "canceled"
        assert client.wait(job.id, seconds=5).state == "canceled"


def test_refusal_carries_the_problem(url):
    with Darkroom(url) as client, pytest.raises(RequestRefused) as caught:
        client.submit("a red house", width=7, guidance_scale=-1)
    assert caught.value.status == 422
    assert {error.field for error in caught.value.errors} == {"width", "guidance_scale"}
    assert caught.value.document["code"] == caught.value.code == "invalid_parameters"
    assert caught.value.document["status"] == 422


def test_unknown_job_is_refused_with_404(url):
    with Darkroom(url) as client, pytest.raises(RequestRefused) as caught:
        client.get("00000000-0000-0000-0000-000000000000")
    assert caught.value.status == 404


def test_newest_jobs_come_first(url):
    with Darkroom(url) as client:
        ids = [client.submit(f"house {n}").id for n in range(3)]
        assert [job.id for job in client.jobs(limit=2)] == ids[:0:-1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "http://[::1]:{port}", "not a url", "http://"])
def test_address_where_nobody_answers_is_a_client_error(address):
    with Darkroom(address.format(port=free_port())) as client, pytest.raises(ClientError):
        client.models()


@pytest.mark.parametrize(("status", "expected"), [(200, ClientError), (502, RequestRefused)])
def test_stranger_at_the_address_is_a_client_error(stranger, status, expected):
    with Darkroom(stranger((status, "<html>It works!</html>"))[0]) as client, pytest.raises(expected):
        client.models()


def test_proxy_for_the_outside_world_is_not_asked_for_this_machine(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with Darkroom(url) as client:
        assert client.models()


def test_short_outage_is_ridden_out(url, stranger):
    with Darkroom(url) as client:
        queued = client.submit("a red house").model_dump_json()
        canceled = queued.replace('"queued"', '"canceled"')
    with Darkroom(stranger((200, queued), (503, "starting"), (200, canceled))[0]) as client:
        assert client.wait("a-job", seconds=30).state == "canceled"


def test_generate_returns_pictures_that_can_be_saved(url, worker, tmp_path, at_work):
    with at_work(worker.develop, url), Darkroom(url) as client:
        first, second = client.generate("a red house", seed=7, num_images=2)
    assert (first.n, first.seed, second.n, second.seed) == (0, 7, 1, 8)
    assert first.save(tmp_path / "house.png").read_bytes() == first.body
    assert first.body.endswith(b" a picture0")


def test_generate_raises_for_a_job_that_failed(url, worker, at_work):
    with at_work(lambda: worker.fail("no card"), url), Darkroom(url) as client, pytest.raises(JobFailed) as caught:
        client.generate("a red house")
    assert (caught.value.state, caught.value.reason) == ("failed", "no card")


def test_generate_is_bounded(url):
    with Darkroom(url) as client, pytest.raises(JobUnfinished):
        client.generate("a red house", wait_seconds=0.2)


def test_address_and_key_come_from_the_environment(stranger, monkeypatch):
    address, received = stranger((200, '{"models": []}'))
    monkeypatch.setenv("DARKROOM_URL", address + "/")
    monkeypatch.setenv("DARKROOM_API_KEY", "dk_secret")
    with Darkroom() as client:
        assert client.url == address
        client.models()
    assert received[0].headers["Authorization"] == "Bearer dk_secret"


def test_address_and_key_that_are_given_win(stranger, monkeypatch):
    address, received = stranger((200, '{"models": []}'))
    monkeypatch.setenv("DARKROOM_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DARKROOM_API_KEY", "dk_secret")
    with Darkroom(address, "dk_other") as client:
        client.models()
    assert received[0].headers["Authorization"] == "Bearer dk_other"


def test_without_a_key_none_is_sent(stranger, monkeypatch):
    monkeypatch.delenv("DARKROOM_API_KEY", raising=False)
    address, received = stranger((200, '{"models": []}'))
    with Darkroom(address) as client:
        client.models()
    assert "Authorization" not in received[0].headers


def test_submit_whose_answer_was_lost_makes_one_job(url, cutting_proxy):
    """The job is stored, the answer is cut off, and the client asks again."""
    proxy = cutting_proxy(url, num_cut=1)
    with Darkroom(proxy.url) as client:
        job = client.submit("a red house")
    with Darkroom(url) as client:
        assert [each.id for each in client.jobs()] == [job.id]
    assert proxy.num_requests == 2


def test_submit_with_a_key_of_ones_own_is_the_same_job(url):
    with Darkroom(url) as client:
        first = client.submit("a red house", seed=1, idempotency_key="mine")
        assert client.submit("a red house", seed=1, idempotency_key="mine").id == first.id
        assert client.submit("a red house", seed=1).id != first.id


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_answer_that_says_later_is_asked_for_again(stranger, status):
    address, received = stranger((status, "later"), (200, '{"models": []}'))
    with Darkroom(address) as client:
        assert client.models() == ()
    assert len(received) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_answer_that_will_not_change_is_asked_for_once(stranger, status):
    address, received = stranger((status, "no"), (200, '{"models": []}'))
    with Darkroom(address) as client, pytest.raises(RequestRefused):
        client.models()
    assert len(received) == 1


@pytest.mark.parametrize(("seconds", "num_requests"), [(LONGEST_RETRY_AFTER_SECONDS + 1, 1), (1, 2)])
def test_later_is_waited_for_up_to_a_limit(stranger, seconds, num_requests):
    address, received = stranger((429, "later", {"Retry-After": f"{seconds:.0f}"}), (200, '{"models": []}'))
    with Darkroom(address) as client, suppress(RequestRefused):
        client.models()
    assert len(received) == num_requests


def test_stream_tells_a_job_from_its_beginning_to_its_end(url, worker):
    with Darkroom(url) as client:
        job = client.submit("a red house")
        stream = client.stream(job.id)
        first = next(stream)
        assert (first.name, first.document["state"]) == ("state", "queued")
        worker.develop()
        rest = list(stream)
    assert [event.name for event in rest if event.name not in {"progress", "preview"}] == [
        "state",
        "state",
        "image",
        "done",
    ]
    assert rest[-1].document["state"] == "succeeded"


def test_stream_of_an_ended_job_is_told_to_its_end(url, worker):
    with Darkroom(url) as client:
        job = client.submit("a red house")
        worker.develop()
        assert list(client.stream(job.id))[-1].name == "done"


def test_stream_of_an_unknown_job_is_refused(url):
    with Darkroom(url) as client, pytest.raises(RequestRefused) as caught:
        list(client.stream("00000000-0000-0000-0000-000000000000"))
    assert caught.value.status == 404


def frames(*events, ending=""):
    return "retry: 10\n\n" + "".join(f"id: {id}\nevent: {name}\ndata: {data}\n\n" for id, name, data in events) + ending


def test_broken_stream_goes_on_after_the_last_event_that_came(stranger):
    address, received = stranger(
        (200, frames((1, "state", '{"state": "queued"}'), ending='event: state\ndata: {"sta')),
        (503, "restarting"),
        (200, frames((2, "state", '{"state": "running"}'))),
        (200, frames((3, "done", '{"state": "failed"}'))),
    )
    with Darkroom(address) as client:
        told = list(client.stream("a-job"))
    assert [(event.id, event.name) for event in told] == [("1", "state"), ("2", "state"), ("3", "done")]
    assert [request.headers.get("Last-Event-ID") for request in received] == [None, "1", "1", "2"]


def test_stream_with_nothing_left_to_tell_ends(stranger):
    address, _ = stranger((204, ""))
    with Darkroom(address) as client:
        assert list(client.stream("a-job")) == []


@pytest.mark.parametrize("data", ["{", "7", "[]"])
def test_event_that_is_no_object_is_a_client_error(stranger, data):
    address, _ = stranger((200, frames((1, "state", data))))
    with Darkroom(address) as client, pytest.raises(ClientError):
        list(client.stream("a-job"))


@pytest.mark.parametrize("status", [404, 503])
def test_wait_asks_again_and_again_where_there_is_no_stream(url, stranger, status):
    with Darkroom(url) as client:
        queued = client.submit("a red house").model_dump_json()
    canceled = queued.replace('"queued"', '"canceled"')
    seen = []
    address, _ = stranger((200, queued), (status, "no stream"), (200, queued), (200, canceled))
    with Darkroom(address) as client:
        client.wait("a-job", seconds=30, on_change=lambda job: seen.append(job.state))
    assert seen == ["queued", "canceled"]


@pytest.fixture
def stranger():
    """Start a server that gives these answers, one after another and the last one for ever; see what it was asked."""
    servers = []

    def start(*answers):
        left, received = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                received.append(self)
                status, body, *headers = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", received

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cutting_proxy():
    """Start a proxy that passes requests on and cuts off the first answers."""
    servers = []

    def start(url, *, num_cut):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name: self.headers[name] for name in ("Content-Type", "Idempotency-Key")}
                with httpx.Client(trust_env=False) as onward:
                    answer = onward.post(url + self.path, content=body, headers=headers)
                self.server.num_requests += 1
                if self.server.num_requests <= num_cut:
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        server.num_requests = 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
