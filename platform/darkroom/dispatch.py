"""The doorbell: one Celery task name, one queue per model. Knows how to ring; decides nothing about any job.

A message wakes a worker, which then claims the best job from SQL. It may be lost, doubled or forged without harm.
"""

from collections.abc import Iterable
from uuid import UUID

from celery import Celery
from celery.exceptions import CeleryError
from kombu.entity import Queue
from kombu.exceptions import KombuError
from redis import RedisError

from darkroom.brokers import impatient_redis
from darkroom.config import Settings

TASK = "darkroom.develop"
KEY_PREFIX = "darkroom:"
# What a broker that is gone, or half gone, may raise.
BROKER_ERRORS = (CeleryError, KombuError, RedisError, OSError)


def queue_name(model: str) -> str:
    """The Celery queue of a model's doorbells."""
    return f"develop.{model}"


def model_of(queue: str) -> str:
    """The model whose doorbells a queue carries."""
    return queue.removeprefix(queue_name(""))


def celery_app(settings: Settings, *, transport: str | None = None) -> Celery:
    """Celery as Darkroom needs it: early ack, prefetch one, JSON only, no results, no remote control.

    The reasons were measured: late ack doubles running jobs on a connection blip, a result backend and remote control
    are ways for a broker to decide something.
    """
    app = Celery("darkroom", set_as_current=False)
    app.conf.update(
        broker_url=settings.redis_url,
        broker_transport=transport,
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            "socket_timeout": 5,
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_acks_late=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


class Doorbell:
    """Rings for jobs. Every call is bounded to about a second; none belongs inside an HTTP request."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings)
        # A publisher gives up sooner than a consumer, which waits inside BRPOP.
        self._app.conf.broker_transport_options |= {"socket_timeout": 1}
        self._redis = impatient_redis(settings.redis_url, seconds=1)

    def num_waiting(self, model: str) -> int:
        """How many doorbells of a model nobody has heard yet. Raises one of BROKER_ERRORS."""
        return int(self._redis.llen(KEY_PREFIX + queue_name(model)))

    def ring(self, job_id: UUID, *, model: str) -> None:
        """Send one doorbell. Raises one of BROKER_ERRORS; it may have been delivered all the same."""
        self._app.send_task(TASK, args=(str(job_id),), queue=Queue(queue_name(model)), retry=False, ignore_result=True)

    def close(self) -> None:
        """Give the connections back."""
        self._app.close()
        self._redis.close()


def consume(app: Celery, models: Iterable[str]) -> None:
    """Make a worker's app consume the queues of these models and no other.

    Redis forgets a doorbell as soon as it is taken: to note there who took it, and then that it was heard, would be
    four commands for each, and who dies with one leaves nothing undone.
    """
    app.conf.task_queues = [Queue(queue_name(model), no_ack=True) for model in models]
