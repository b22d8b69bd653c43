"""What one writes without Darkroom: Flask, Celery on Redis, AsyncResult. The broker holds the jobs and how they ended.

Run as a program with `worker` it is the Celery worker; `load` makes the web application.
"""

import os
import sys
import time
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from flask import Flask, Response, request

celery = Celery("reference", broker=os.environ.get("REDIS_URL"), backend=os.environ.get("REDIS_URL"))
celery.conf.update(
    worker_prefetch_multiplier=4,
    task_serializer="json",
    broker_connection_retry_on_startup=True,
    redis_socket_timeout=30,
)
LONGEST_WAIT_SECONDS = 60


@celery.task(name="reference.develop")  # type: ignore[untyped-decorator]
def develop(prompt: str, seconds: float = 0.0) -> dict[str, Any]:
    """Develop nothing."""
    time.sleep(seconds)
    return {"prompt": prompt, "images": []}


def load() -> Flask:
    """The web application."""
    app = Flask("reference")

    @app.post("/jobs")
    def submit() -> tuple[dict[str, Any], int]:
        body = request.get_json()
        result = develop.delay(body["prompt"], body.get("seconds", 0.0))
        return {"id": result.id, "state": "queued"}, 202

    @app.get("/jobs/<job_id>")
    def show(job_id: str) -> dict[str, Any]:
        result = AsyncResult(job_id, app=celery)
        state = result.state
        return {"id": job_id, "state": state, "result": result.result if state == "SUCCESS" else None}

    @app.get("/jobs/<job_id>/wait")
    def wait(job_id: str) -> dict[str, Any]:
        return {"id": job_id, "result": AsyncResult(job_id, app=celery).get(timeout=LONGEST_WAIT_SECONDS)}

    @app.post("/jobs/<job_id>/cancel")
    def cancel(job_id: str) -> Response:
        AsyncResult(job_id, app=celery).revoke(terminate=True)
        return Response(status=202)

    return app


if __name__ == "__main__":
    slots = sys.argv[1]
    celery.worker_main(["worker", "--pool=threads", f"--concurrency={slots}", "--loglevel=ERROR", "--without-gossip"])
