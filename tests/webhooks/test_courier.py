"""The loop that delivers, alone and with others beside it in processes of their own."""

import subprocess
import sys
from collections import Counter

import pytest

from darkroom.models import DeliveryState
from darkroom.stack.servers import wait_until
from darkroom.webhooks.destinations import Destinations

PROCESS = """
import sys
from darkroom.db import Database
from darkroom.webhooks.courier import Courier
from darkroom.webhooks.destinations import Destinations
from darkroom.webhooks.sending import Sender
courier = Courier(Database(sys.argv[1]), Sender(Destinations.read(["127.0.0.0/8"])), poll_seconds=0.02)
courier.ensure_alive()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def running(post):
    """Start couriers that are stopped when the test is over."""
    couriers = []

    def start(**how):
        couriers.append(post.courier(**how))
        couriers[-1].ensure_alive()
        return couriers[-1]

    yield start
    for courier in couriers:
        courier.stop()
        courier.stop()


def until(condition):
    wait_until(condition, seconds=30, refusal=lambda: "it never came to that")


def test_loop_delivers_what_happens(post, running):
    running()
    post.submit(url=post.receiver.url())
    post.develop()
    told = post.receiver.wait_for(3)
    assert [received.document["type"] for received in told] == ["job.queued", "job.running", "job.succeeded"]
    until(post.all_ended)


def test_no_more_are_under_way_than_were_asked_for(post, running):
    post.receiver.gate.clear()
    for n in range(4):
        post.submit(
            url=post.receiver.url(host=f"127.0.0.{n + 1}") if n == 0 else f"http://127.0.0.1:{post.receiver.port}"
        )
    running(most_at_once=1)
    post.receiver.wait_for(1)
    post.receiver.gate.set()
    post.receiver.wait_for(4)
    until(post.all_ended)
    assert post.receiver.most_inside == 1


def test_address_that_is_not_on_the_internet_is_never_called(post, running):
    post.submit(url=post.receiver.url())
    running(destinations=Destinations())
    until(lambda: any(each.last_error for each in post.list()))
    (delivery,) = post.list()
    assert "not on the internet" in delivery.last_error
    assert delivery.state is DeliveryState.PENDING
    assert post.receiver.received == []


def test_stop_may_come_first_and_may_come_again(post):
    courier = post.courier()
    courier.stop()
    courier.ensure_alive()
    courier.stop()
    post.submit(url=post.receiver.url())
    assert post.receiver.received == []


def test_several_processes_deliver_each_event_once_and_in_order(post):
    """Each holds its own claims; the jobs' lines are kept across all of them."""
    command = [sys.executable, "-c", PROCESS, post.database.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for n in range(10):
            post.submit(url=post.receiver.url(f"/{n}"))
            post.develop()
        told = post.receiver.wait_for(30)
        until(post.all_ended)
    finally:
        for process in processes:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()
    assert set(Counter(received.headers["webhook-id"] for received in told).values()) == {1}
    assert len(post.receiver.received) == 30
    for n in range(10):
        assert [each.document["data"]["seq"] for each in told if each.path == f"/{n}"] == [1, 2, 3]
