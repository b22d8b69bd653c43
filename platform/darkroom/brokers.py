"""Redis for whoever cannot wait for it. Knows no key and no channel."""

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def impatient_redis(url: str, *, seconds: float, decode_responses: bool = False) -> Redis:
    """A client that tries once, and waits this long for a connection and for an answer: its own default tries on."""
    return Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        decode_responses=decode_responses,
    )
