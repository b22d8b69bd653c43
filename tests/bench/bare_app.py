"""The least that a web application on SQL can do: one row by its key; one row and its event. Knows Darkroom's tables.

The yardstick of the benchmarks: the same server, the same database, no rules, no limits, no fair share.
"""

import os
from typing import Any

import uuid_utils.compat
from flask import Flask, request
from sqlalchemy import create_engine, text

SELECT = text("SELECT id, state, model, params, attempt, created_at FROM jobs WHERE id = :id")
INSERT_JOB = text(
    "INSERT INTO jobs (id, owner, model, params, state, job_class, start_tag, finish_tag, attempt, is_alone, crashes, "
    "shared_crashes, is_solo, created_at, queued_at, deadline_at, timings, event_seq) "
    "VALUES (:id, 'bare', 'bare', CAST(:params AS json), 'queued', 1, 0, 0, 0, false, 0, 0, false, now(), now(), "
    "now() + interval '7 days', '{}', 1)"
)
INSERT_EVENT = text(
    "INSERT INTO job_events (xid, job_id, seq, type, payload, created_at) VALUES (0, :id, 1, 'queued', '{}', now())"
)


def load() -> Flask:
    """The application, on the database of the environment."""
    app = Flask("bare")
    engine = create_engine(os.environ["DARKROOM_DATABASE_URL"], pool_size=20)

    @app.get("/jobs/<job_id>")
    def show(job_id: str) -> dict[str, Any]:
        with engine.connect() as connection:
            row = connection.execute(SELECT, {"id": job_id}).one()
        return {**row._mapping, "id": str(row.id), "created_at": row.created_at.isoformat()}

    @app.post("/jobs")
    def submit() -> tuple[dict[str, Any], int]:
        request.get_json()
        job_id = uuid_utils.compat.uuid7()
        with engine.begin() as connection:
            connection.execute(INSERT_JOB, {"id": job_id, "params": request.get_data(as_text=True)})
            connection.execute(INSERT_EVENT, {"id": job_id})
        return {"id": str(job_id), "state": "queued"}, 202

    return app
