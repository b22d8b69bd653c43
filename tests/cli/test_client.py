"""The client, against a Darkroom that listens."""

import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from darkroom.client import Client
from darkroom.errors import ClientError, JobUnfinished, RequestRefused
from darkroom.stack.servers import free_port


def test_job_is_followed_from_submit_to_its_bytes(url, worker):
    with Client(url) as client:
        submitted = client.submit("a red house", seed=7, num_images=2)
        assert (submitted.state, submitted.position, submitted.params["seed"]) == ("queued", 0, 7)
        seen = []
        worker_at_work = threading.Timer(0.2, worker.develop)
        worker_at_work.start()
        job = client.wait(submitted.id, seconds=30, on_change=lambda job: seen.append(job.state))
        worker_at_work.join()
        assert job.state == "succeeded"
        assert (seen[0], seen[-1]) == ("queued", "succeeded")
        assert [sha256(client.download(image)).hexdigest() for image in job.images] == [
            image.sha256 for image in job.images
        ]


def test_wait_is_bounded_and_leaves_the_job_alone(url):
    with Client(url) as client:
        job = client.submit("a red house")
        with pytest.raises(JobUnfinished) as caught:
            client.wait(job.id, seconds=0.2)
        assert caught.value.state == "queued"
        assert client.get(job.id).is_live


def test_canceled_job_says_so(url):
    with Client(url) as client:
        job = client.submit("a red house")
        assert client.cancel(job.id).state == "canceled"
        assert client.wait(job.id, seconds=5).state == "canceled"


def test_refusal_carries_the_problem(url):
    with Client(url) as client, pytest.raises(RequestRefused) as caught:
        client.submit("a red house", width=7, guidance_scale=-1)
    assert caught.value.status == 422
    assert {error.field for error in caught.value.errors} == {"width", "guidance_scale"}
    assert caught.value.code


def test_unknown_job_is_refused_with_404(url):
    with Client(url) as client, pytest.raises(RequestRefused) as caught:
        client.get("00000000-0000-0000-0000-000000000000")
    assert caught.value.status == 404


def test_newest_jobs_come_first(url):
    with Client(url) as client:
        ids = [client.submit(f"house {n}").id for n in range(3)]
        assert [job.id for job in client.list_jobs(limit=2)] == ids[:0:-1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "http://[::1]:{port}", "not a url", "http://"])
def test_address_where_nobody_answers_is_a_client_error(address):
    with Client(address.format(port=free_port())) as client, pytest.raises(ClientError):
        client.models()


@pytest.mark.parametrize(("status", "expected"), [(200, ClientError), (502, RequestRefused)])
def test_stranger_at_the_address_is_a_client_error(stranger, status, expected):
    with Client(stranger((status, "<html>It works!</html>"))) as client, pytest.raises(expected):
        client.models()


def test_proxy_for_the_outside_world_is_not_asked_for_this_machine(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with Client(url) as client:
        assert client.models()


def test_short_outage_is_ridden_out(url, stranger):
    with Client(url) as client:
        queued = client.submit("a red house").model_dump_json()
        canceled = queued.replace('"queued"', '"canceled"')
    with Client(stranger((200, queued), (503, "starting"), (200, canceled))) as client:
        assert client.wait("a-job", seconds=30).state == "canceled"


@pytest.fixture
def stranger():
    """Start a server that gives these answers, one after another and the last one for ever."""
    servers = []

    def start(*answers):
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
