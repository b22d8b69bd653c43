"""How often a key may ask, and a link that needs none: counted in Redis for all web processes together.

While Redis is away each process counts for itself, and asks Redis again after 1, 2, 4, ... seconds: a black-holed Redis
costs a request now and then two time-outs, and the others nothing.
"""

import math
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from flask import Flask, Response, request
from flask_limiter import Limiter
from redis import RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from darkroom.brokers import REDIS_TIMEOUT_SECONDS
from darkroom.config import Settings
from darkroom.web.identity import known

# A link is passed around; a page of it asks for its pictures too. Each costs a look at SQL and a picture's bytes.
LINK_REQUESTS_PER_MINUTE = 600
# As brokers.impatient_redis has it; the library makes its own client.
IMPATIENT: dict[str, Any] = {
    "socket_timeout": REDIS_TIMEOUT_SECONDS,
    "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
    "retry": Retry(NoBackoff(), 0),
}


def install(app: Flask, settings: Settings) -> None:
    """Count every request that shows a key, or a link's token, and tell in headers what is left."""
    limiter = Limiter(
        lambda: _limited().name,
        app=app,
        application_limits=[lambda: f"{_limited().most}/minute"],
        strategy="sliding-window-counter",
        storage_uri=settings.redis_url,
        storage_options=IMPATIENT,
        in_memory_fallback_enabled=True,
        key_prefix="darkroom",
    )
    limiter.request_filter(_is_unlimited)

    @app.after_request
    def tell(response: Response) -> Response:
        if limit := limiter.current_limit:
            try:
                reset_at, remaining = limit.window
            except RedisError:
                return response  # the next request counts in this process
            seconds = max(1, math.ceil(reset_at - time.time()))
            response.headers["RateLimit-Limit"] = str(limit.limit.amount)
            response.headers["RateLimit-Remaining"] = str(max(0, remaining))
            response.headers["RateLimit-Reset"] = str(seconds)
            if limit.breached:
                response.headers["Retry-After"] = str(seconds)
        return response


@dataclass(frozen=True)
class _Counted:
    """Whose requests are counted together, and how many of them a minute are answered."""

    name: str
    most: int


def _counted() -> _Counted | None:
    """Who is counted for this request. A link is what its holders have in common, whichever proxy they come through."""
    identity = known()
    if identity and identity.requests_per_minute is not None:
        return _Counted(str(identity.key_id), identity.requests_per_minute)
    if request.blueprint == "shared" and request.view_args:
        return _Counted(sha256(request.view_args["token"].encode()).hexdigest(), LINK_REQUESTS_PER_MINUTE)
    return None


def _is_unlimited() -> bool:
    return _counted() is None


def _limited() -> _Counted:
    counted = _counted()
    assert counted, "only asked where _is_unlimited says no"
    return counted
