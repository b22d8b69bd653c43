"""One POST, against servers that really listen: what it reaches, what it does not, and how long it takes at most."""

import threading
from itertools import count, cycle

import pytest

from darkroom.stack.servers import free_port
from darkroom.webhooks.destinations import Destinations
from darkroom.webhooks.sending import Sender

LOOPBACK = Destinations.read(["127.0.0.0/8"])
NOWHERE_ELSE = Destinations()


def post(url, *, destinations=LOOPBACK, resolve=None, total_seconds=10.0, body=b"{}", **headers):
    how = {} if resolve is None else {"resolve": resolve}
    return Sender(destinations, total_seconds=total_seconds, **how).post(url, body, headers=headers)


def test_body_and_headers_arrive(receiver):
    answer = post(receiver.url("/hook?a=b"), body=b'{"a": 1}', **{"webhook-id": "x"})
    assert answer.is_delivered
    (received,) = receiver.received
    assert (received.path, received.body, received.headers["webhook-id"]) == ("/hook?a=b", b'{"a": 1}', "x")
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize(
    ("status", "is_delivered"), [(200, True), (299, True), (300, False), (400, False), (500, False)]
)
def test_only_success_is_delivered(receiver, status, is_delivered):
    receiver.answer("/hook", status)
    answer = post(receiver.url())
    assert (answer.status, answer.is_delivered) == (status, is_delivered)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(receiver, status):
    receiver.answer("/hook", status)
    assert not post(receiver.url()).is_delivered
    assert [received.path for received in receiver.received] == ["/hook"]


def test_name_that_means_this_machine_is_not_called(receiver):
    answer = post(receiver.url(host="hooks.example"), destinations=NOWHERE_ELSE, resolve=lambda host: ["127.0.0.1"])
    assert "not on the internet" in answer.error
    assert receiver.received == []


@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "0x7f.1", "127.1", "localhost", "localhost."])
def test_odd_spelling_of_this_machine_is_not_called(receiver, host):
    answer = post(receiver.url(host=host), destinations=NOWHERE_ELSE)
    assert answer.error
    assert receiver.received == []


def test_one_closed_address_among_open_ones_closes_the_name(receiver):
    answers = ["93.184.216.34", "127.0.0.1"]
    answer = post(receiver.url(host="hooks.example"), destinations=NOWHERE_ELSE, resolve=lambda host: answers)
    assert "not on the internet" in answer.error
    assert receiver.received == []


def test_name_is_resolved_once_and_the_checked_address_is_called(receiver):
    """A name server that answers differently the second time finds nobody who asks."""
    answers, asked = cycle([["127.0.0.1"], ["127.0.0.2"]]), count()

    def rebinding(host):
        next(asked)
        return next(answers)

    only_first = Destinations.read(["127.0.0.1"])
    assert post(receiver.url(host="hooks.example"), destinations=only_first, resolve=rebinding).is_delivered
    assert next(asked) == 1
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
    assert (
        "not on the internet"
        in post(receiver.url(host="hooks.example"), destinations=only_first, resolve=rebinding).error
    )
    assert len(receiver.received) == 1


def test_name_that_the_operator_allows_may_have_any_address(receiver):
    allowed = Destinations.read(["hooks.internal"])
    answer = post(receiver.url(host="hooks.internal"), destinations=allowed, resolve=lambda host: ["127.0.0.1"])
    assert answer.is_delivered


def test_next_address_is_tried_when_one_does_not_answer(receiver):
    answer = post(receiver.url(host="hooks.example"), resolve=lambda host: ["127.0.0.2", "127.0.0.1"])
    assert answer.is_delivered


def test_url_that_is_stored_and_no_longer_allowed_is_not_called(receiver):
    assert "not on the internet" in post(receiver.url(), destinations=NOWHERE_ELSE).error
    assert receiver.received == []


@pytest.mark.parametrize("url", ["http://user:word@127.0.0.1:{}/", "ftp://127.0.0.1:{}/", "http://127.0.0.1:{}/#x"])
def test_url_that_was_never_to_be_stored_is_not_called(receiver, url):
    assert "the URL" in post(url.format(receiver.port)).error
    assert receiver.received == []


def test_proxy_of_the_environment_is_not_asked(receiver, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert post(receiver.url()).is_delivered


def test_nobody_there_is_told_as_such():
    assert "no connection" in post(f"http://127.0.0.1:{free_port()}/").error


def test_name_without_an_address_is_told_as_such():
    def resolve(host):
        raise OSError("no such name")

    assert "cannot be resolved" in post("http://hooks.example/", resolve=resolve).error
    assert "no address" in post("http://hooks.example/", resolve=lambda host: []).error


def test_what_is_no_http_is_told_as_such(raw_server):
    port = raw_server(lambda connection: connection.sendall(b"SSH-2.0-hello\r\n"))
    assert "broke" in post(f"http://127.0.0.1:{port}/").error


def test_https_is_not_spoken_to_a_server_without_it(raw_server):
    port = raw_server(lambda connection: connection.recv(10) and connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"))
    answer = post(f"https://127.0.0.1:{port}/")
    assert answer.status is None
    assert answer.error


def test_receiver_that_never_answers_ends_with_the_total_time(receiver):
    receiver.gate.clear()
    assert "no answer within 0.5 seconds" in post(receiver.url(), total_seconds=0.5).error


def test_receiver_that_drips_ends_with_the_total_time(raw_server):
    """Each byte comes in time; all of them together do not."""
    over = threading.Event()

    def drip(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not over.wait(0.05):
            connection.sendall(b"x")

    port = raw_server(drip)
    answer = post(f"http://127.0.0.1:{port}/", total_seconds=0.5)
    over.set()
    assert "no answer within" in answer.error


def test_resolver_that_never_answers_ends_with_the_total_time():
    over = threading.Event()
    answer = post("http://hooks.example/", resolve=lambda host: [str(over.wait(30))], total_seconds=0.2)
    over.set()
    assert "no answer within" in answer.error


def test_endless_answer_is_read_to_a_limit(raw_server):
    sent = []

    def pour(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            connection.sendall(b"x" * 1024)
            sent.append(1024)

    port = raw_server(pour)
    assert post(f"http://127.0.0.1:{port}/").is_delivered
    assert sum(sent) < 16 * 1024 * 1024, "the kernel's buffers hold some, and nobody read the rest"


def test_answer_that_breaks_off_after_its_status_has_been_given(raw_server):
    def break_off(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    assert post(f"http://127.0.0.1:{raw_server(break_off)}/").is_delivered


def test_headers_without_end_are_refused(raw_server):
    def pour(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X-More: " + b"x" * 1000 + b"\r\n")

    assert post(f"http://127.0.0.1:{raw_server(pour)}/").error
