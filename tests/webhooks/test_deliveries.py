"""From an event to its delivery: nothing is missed, nothing doubled, nothing overtaken, nothing lost."""

from threading import Barrier, Thread
from uuid import uuid4

import pytest
from claiming import claim_one
from sqlalchemy import func, select
from standardwebhooks import Webhook

from darkroom import jobs
from darkroom.db import Database, now
from darkroom.errors import DeliveryNotFound
from darkroom.jobs.ending import move
from darkroom.models import DeliveryState, Job, WebhookDelivery, WebhookEndpoint
from darkroom.webhooks import deliveries, endpoints
from darkroom.webhooks.deliveries import LEASE_SECONDS, MOST_PER_ORIGIN, RETRY_SECONDS
from darkroom.webhooks.sending import TOTAL_SECONDS, Answer
from darkroom.webhooks.subscriptions import EVENTS, Subscription

REFUSED = Answer(500)


def register(post, *, path="/hook", events=EVENTS, owner="ann"):
    return endpoints.register(post.database, Subscription(post.receiver.url(path), events), owner=owner)


def test_job_that_names_a_webhook_is_told_of(post):
    job_id = post.submit(url=post.receiver.url())
    post.develop()
    assert post.carry() == 3
    told = [received.document for received in post.receiver.received]
    assert [document["type"] for document in told] == ["job.queued", "job.running", "job.succeeded"]
    assert [document["data"]["seq"] for document in told] == [1, 2, 3]
    assert [document["data"]["state"] for document in told] == ["queued", "running", "succeeded"]
    assert {document["data"]["job_id"] for document in told} == {str(job_id)}
    assert [len(document["data"]["images"]) for document in told] == [0, 0, 1]
    assert told[2]["data"]["images"][0]["url"] == f"/api/v1/jobs/{job_id}/images/0"
    assert "red house" not in repr(told)


def test_failure_and_return_to_the_queue_are_told_as_such(post):
    post.submit(url=post.receiver.url(), events=("job.requeued", "job.failed"))
    claim = claim_one(post.database, worker_id="w", models=["small"], num_held=0, lease_seconds=9, lines=jobs.Lines())
    jobs.requeue(post.database, claim.job_id, reason="drains", attempt=1)
    claim_one(post.database, worker_id="w", models=["small"], num_held=0, lease_seconds=9, lines=jobs.Lines())
    jobs.fail(post.database, claim.job_id, attempt=2, code="develop-failed", message="no")
    post.carry()
    told = [received.document["data"] for received in post.receiver.received]
    assert [(each["state"], each["error"]) for each in told] == [
        ("queued", None),
        ("failed", {"code": "develop-failed", "message": "no"}),
    ]


def test_only_the_events_that_were_asked_for_are_told(post):
    post.submit(url=post.receiver.url(), events=("job.succeeded",))
    post.submit()
    post.develop()
    post.develop()
    assert post.carry() == 1
    assert post.receiver.received[0].document["type"] == "job.succeeded"


def test_endpoint_hears_of_its_owners_jobs_only(post):
    register(post, path="/ann")
    register(post, path="/bob", owner="bob")
    post.submit(owner="ann")
    post.carry()
    assert [received.path for received in post.receiver.received] == ["/ann"]


def test_endpoint_hears_nothing_from_before_its_time(post):
    post.submit()
    endpoint, _ = register(post)
    post.set(WebhookEndpoint, WebhookEndpoint.id == endpoint.id, created_at=now(60))
    assert post.carry() == 0


def test_job_and_endpoint_are_both_told(post):
    register(post, path="/endpoint")
    post.submit(url=post.receiver.url("/job"))
    assert post.carry() == 2
    assert {received.path for received in post.receiver.received} == {"/endpoint", "/job"}


def test_every_signature_verifies_and_every_id_is_its_own(post):
    _, secret = register(post, path="/endpoint")
    post.submit(url=post.receiver.url("/job"))
    post.develop()
    post.carry()
    of_jobs = endpoints.job_secret(post.database, owner="ann")
    for received in post.receiver.received:
        key = secret if received.path == "/endpoint" else of_jobs
        assert Webhook(key).verify(received.body, received.headers)["type"] in EVENTS
        assert received.headers["content-type"] == "application/json"
    assert len({received.headers["webhook-id"] for received in post.receiver.received}) == 6


def test_both_secrets_sign_after_a_rotation_and_only_the_new_one_later(post):
    endpoint, old = register(post)
    new = endpoints.rotate(post.database, endpoint.id, owner="ann")
    old_of_jobs = endpoints.job_secret(post.database, owner="ann")
    new_of_jobs = endpoints.rotate_job_secret(post.database, owner="ann")
    post.submit(url=post.receiver.url("/job"))
    post.carry()
    for received in post.receiver.received:
        keys = (old, new) if received.path == "/hook" else (old_of_jobs, new_of_jobs)
        for key in keys:
            Webhook(key).verify(received.body, received.headers)
    post.set(WebhookEndpoint, WebhookEndpoint.id == endpoint.id, previous_secret_expires_at=now(-1))
    post.submit()
    post.carry()
    signature = post.receiver.received[-1].headers["webhook-signature"]
    assert len(signature.split()) == 1
    Webhook(new).verify(post.receiver.received[-1].body, post.receiver.received[-1].headers)


def test_same_event_is_the_same_bytes_and_the_same_id_at_every_try(post):
    post.receiver.answer("/hook", 500, 204)
    post.submit(url=post.receiver.url())
    post.carry()
    post.pass_time()
    post.carry()
    first, second = post.receiver.received
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_delivery_waits_longer_after_each_failure_and_is_given_up_at_last(post):
    post.receiver.answer("/hook", 500)
    post.submit(url=post.receiver.url())
    pauses = []
    for _ in RETRY_SECONDS:
        assert post.carry() == 1
        with post.database.read() as session:
            due_at, clock = session.execute(select(WebhookDelivery.due_at, now())).one()
        pauses.append((due_at - clock).total_seconds())
        assert post.list()[0].state is DeliveryState.PENDING
        assert post.carry() == 0, "it is not due"
        post.pass_time()
    assert pauses == pytest.approx(RETRY_SECONDS, rel=0.11, abs=3)
    assert post.carry() == 1
    (dead,) = post.list()
    assert (dead.state, dead.num_tries, dead.last_status) == (DeliveryState.DEAD, len(RETRY_SECONDS) + 1, 500)
    post.pass_time()
    assert post.carry() == 0


def test_retries_go_on_for_hours():
    assert 12 * 3600 < sum(RETRY_SECONDS) < 24 * 3600


def test_lease_outlasts_a_try():
    assert TOTAL_SECONDS * 2 < LEASE_SECONDS


def test_later_event_of_a_job_waits_for_the_earlier_one(post):
    post.receiver.answer("/hook", 500, 204)
    post.submit(url=post.receiver.url())
    post.develop()
    assert post.carry() == 1
    assert post.carry() == 0
    post.pass_time()
    assert post.carry() == 3
    assert [received.document["data"]["seq"] for received in post.receiver.received] == [1, 1, 2, 3]


def test_later_event_of_a_job_waits_while_the_earlier_one_is_under_way(post):
    post.submit(url=post.receiver.url())
    post.develop()
    post.plan()
    first = post.claim()
    assert first.seq == 1
    assert deliveries.claim(post.database) is None
    deliveries.finish(post.database, first, Answer(204))
    assert post.claim().seq == 2


def test_what_waits_behind_a_failure_is_due_with_it(post):
    """Else every search for what is due would meet it again and again."""
    post.receiver.answer("/hook", 500)
    post.submit(url=post.receiver.url())
    post.develop()
    post.carry()
    with post.database.read() as session:
        num_due = session.scalar(
            select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.due_at <= now())
        )
    assert num_due == 0


def test_event_behind_a_dead_one_goes_its_way(post):
    post.receiver.answer("/hook", 500)
    post.submit(url=post.receiver.url())
    post.carry()
    post.set(WebhookDelivery, WebhookDelivery.seq == 1, num_tries=len(RETRY_SECONDS), due_at=now(-1))
    post.carry()
    post.receiver.answer("/hook", 204)
    post.develop()
    post.carry()
    assert [received.document["data"]["seq"] for received in post.receiver.received] == [1, 1, 2, 3]


def test_one_jobs_trouble_does_not_hold_up_another(post):
    post.receiver.answer("/bad", 500)
    post.submit(url=post.receiver.url("/bad"))
    post.submit(url=post.receiver.url("/good"))
    assert post.carry() == 2
    assert {received.path for received in post.receiver.received} == {"/bad", "/good"}


def test_delivery_under_way_is_claimed_by_nobody_else(post):
    post.submit(url=post.receiver.url())
    post.plan()
    post.claim()
    assert deliveries.claim(post.database) is None


def test_delivery_of_a_process_that_died_is_taken_over_and_its_late_answer_refused(post):
    post.submit(url=post.receiver.url())
    post.plan()
    lost = post.claim()
    post.set(WebhookDelivery, WebhookDelivery.id == lost.id, lease_expires_at=now(-1))
    taken = post.claim()
    assert (taken.id, taken.attempt) == (lost.id, lost.attempt + 1)
    assert deliveries.finish(post.database, lost, Answer(204)) is None
    assert post.list()[0].state is DeliveryState.PENDING
    assert deliveries.finish(post.database, taken, Answer(204)) is DeliveryState.DELIVERED


def test_origin_takes_no_more_than_its_share_at_once(post):
    for _ in range(MOST_PER_ORIGIN + 1):
        post.submit(url=post.receiver.url())
    other = post.submit(url="http://127.0.0.2:9/")
    post.plan()
    held = [post.claim() for _ in range(MOST_PER_ORIGIN + 1)]
    assert [claimed.job_id for claimed in held].index(other) == MOST_PER_ORIGIN
    assert deliveries.claim(post.database) is None
    deliveries.finish(post.database, held[0], Answer(204))
    assert post.claim()


def test_gone_disables_the_endpoint_and_gives_up_what_waits_for_it(post):
    post.receiver.answer("/hook", 410)
    endpoint, _ = register(post)
    post.submit()
    post.develop()
    assert post.carry() == 1
    assert [each.state for each in post.list()] == [DeliveryState.DEAD] * 3
    assert endpoints.get_endpoint(post.database, endpoint.id, owner="ann").disabled_at
    post.submit()
    assert post.carry() == 0


def test_gone_ends_the_delivery_of_a_job_at_once(post):
    post.receiver.answer("/hook", 410)
    post.submit(url=post.receiver.url())
    post.carry()
    assert post.list()[0].state is DeliveryState.DEAD


@pytest.mark.parametrize("state", ["delivered", "dead"])
def test_ended_delivery_can_be_replayed(post, state):
    post.receiver.answer("/hook", 204 if state == "delivered" else 410)
    post.submit(url=post.receiver.url())
    post.carry()
    (ended,) = post.list()
    assert ended.state == state
    post.receiver.answer("/hook", 204)
    replayed = deliveries.replay(post.database, ended.id, owner="ann")
    assert (replayed.state, replayed.num_tries, replayed.ended_at) == (DeliveryState.PENDING, 0, None)
    assert post.carry() == 1
    assert post.list()[0].state is DeliveryState.DELIVERED
    first, second = post.receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_replay_of_a_waiting_delivery_makes_it_due(post):
    post.receiver.answer("/hook", 500, 204)
    post.submit(url=post.receiver.url())
    post.carry()
    deliveries.replay(post.database, post.list()[0].id, owner="ann")
    assert post.carry() == 1


def test_replay_leaves_a_delivery_under_way_in_its_hands(post):
    post.submit(url=post.receiver.url())
    post.plan()
    claimed = post.claim()
    deliveries.replay(post.database, claimed.id, owner="ann")
    assert deliveries.claim(post.database) is None
    assert deliveries.finish(post.database, claimed, Answer(204)) is DeliveryState.DELIVERED


def test_somebody_elses_delivery_does_not_exist(post):
    post.submit(url=post.receiver.url())
    post.plan()
    (delivery,) = post.list()
    for call in (deliveries.replay, deliveries.get_delivery):
        with pytest.raises(DeliveryNotFound):
            call(post.database, delivery.id, owner="bob")
        with pytest.raises(DeliveryNotFound):
            call(post.database, uuid4(), owner="ann")
    assert post.list(owner="bob") == []


def test_deliveries_are_found_by_state_endpoint_and_job(post):
    endpoint, _ = register(post)
    first = post.submit(url=post.receiver.url("/job"))
    post.submit()
    post.plan()
    post.courier().deliver(post.claim())
    assert len(post.list()) == 3
    assert len(post.list(state=DeliveryState.DELIVERED)) == 1
    assert len(post.list(endpoint_id=endpoint.id)) == 2
    assert {each.job_id for each in post.list(job_id=first)} == {first}
    newest, second, _ = post.list()
    assert [each.id for each in post.list(before=newest.id, limit=1)] == [second.id]


def test_deleted_job_takes_its_deliveries_along(post):
    job_id = post.submit(url=post.receiver.url())
    post.plan()
    claimed = post.claim()
    with post.database.write() as session:
        session.delete(session.get(Job, job_id))
    post.courier().deliver(claimed)
    assert post.receiver.received == []
    assert post.list() == []


def test_removed_endpoint_takes_its_deliveries_along(post):
    endpoint, _ = register(post)
    post.submit()
    post.plan()
    claimed = post.claim()
    endpoints.remove(post.database, endpoint.id, owner="ann")
    post.courier().deliver(claimed)
    assert post.receiver.received == []
    assert post.list() == []


def test_each_event_becomes_one_delivery_however_many_plan(post):
    for _ in range(30):
        post.submit(url=post.receiver.url())
    start = Barrier(4)

    def plan():
        database = Database(post.database.url)
        start.wait(10)
        while deliveries.plan(database):
            pass
        database.dispose()

    threads = [Thread(target=plan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    post.plan()
    assert len(post.list(limit=100)) == 30


def test_history_longer_than_a_batch_is_planned_to_its_end(post, monkeypatch):
    monkeypatch.setattr(deliveries, "BATCH", 3)
    for _ in range(7):
        post.submit(url=post.receiver.url())
    post.plan()
    assert len(post.list()) == 7
    post.plan()
    assert len(post.list()) == 7


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_event_that_commits_late_is_not_skipped(post):
    """A transaction that began first and ends last: its event lies before one that is already there to be read."""
    late, early = post.submit(), post.submit()
    url = post.receiver.url()
    post.set(Job, Job.id.in_([late, early]), webhook={"url": url, "events": ["job.canceled"]})
    post.plan()
    other = Database(post.database.url)
    with other.write() as session:
        move(session, Job.id == late, jobs.JobState.CANCELED, {})
        jobs.cancel(post.database, early, owner="ann")
        deliveries.plan(post.database)
        seen_meanwhile = {each.job_id for each in post.list()}
    post.plan()
    other.dispose()
    assert late not in seen_meanwhile
    assert {each.job_id for each in post.list()} == {late, early}
    assert len(post.list()) == 2


def test_delivery_is_claimed_once_however_many_claim(post):
    for n in range(6):
        post.submit(url=f"http://127.0.0.{n + 1}:9/")
    post.plan()
    start, claimed = Barrier(4), []

    def claim():
        database = Database(post.database.url)
        start.wait(10)
        while found := deliveries.claim(database):
            claimed.append(found.id)
        database.dispose()

    threads = [Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while found := deliveries.claim(post.database):
        claimed.append(found.id)
    assert len(claimed) == len(set(claimed)) == 6
