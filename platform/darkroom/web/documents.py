"""The shapes that programs read: jobs, pictures and models as JSON. Knows addresses; asks nobody anything."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from darkroom.catalog import Catalog, ModelEntry
from darkroom.fleet import WorkerRecord
from darkroom.jobs import BatchRecord, ImageRecord, JobRecord, LineRecord, UploadRecord
from darkroom.models import LIVE_STATES
from darkroom.previews import Preview
from darkroom.web.pace import Eta


def job_path(job_id: UUID) -> str:
    """Where a program finds the job."""
    return f"/api/v1/jobs/{job_id}"


def page_path(job_id: UUID) -> str:
    """Where a person finds the job."""
    return f"/jobs/{job_id}"


def image_path(job_id: UUID, n: int) -> str:
    """Where picture n of the job is."""
    return f"{job_path(job_id)}/images/{n}"


def batch_path(batch_id: UUID) -> str:
    """Where a program finds the batch."""
    return f"/api/v1/batches/{batch_id}"


def upload_path(upload_id: UUID) -> str:
    """Where a program finds the upload."""
    return f"/api/v1/uploads/{upload_id}"


def job_document(
    job: JobRecord,
    *,
    position: int | None = None,
    progress: Mapping[str, Any] | None = None,
    eta: Eta | None = None,
) -> dict[str, Any]:
    """One job. Addresses are relative to the host that was asked, so that they hold behind any proxy."""
    return {
        "id": str(job.id),
        "state": job.state.value,
        "model": job.model,
        "priority": job.job_class.name.lower(),
        "params": job.params.model_dump(mode="json"),
        "position": position,
        "eta": asdict(eta) if eta else None,
        "progress": dict(progress) if progress else None,
        "attempt": job.attempt,
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "deadline_at": timestamp(job.deadline_at),
        "error": {"code": job.error_code, "message": job.error_message or ""} if job.error_code else None,
        "timings": dict(job.timings),
        "images": [image_document(job.id, image, has_walk=job.walk_key is not None) for image in job.images],
        "metadata": dict(job.metadata or {}),
        "webhook": dict(job.webhook) if job.webhook else None,
        "retention_seconds": job.retention_seconds,
        "batch_id": str(job.batch_id) if job.batch_id else None,
        "retry_of": str(job.retry_of) if job.retry_of else None,
        "urls": {"self": job_path(job.id), "cancel": f"{job_path(job.id)}/cancel", "page": page_path(job.id)},
    }


def image_document(job_id: UUID, image: ImageRecord, *, has_walk: bool = False) -> dict[str, Any]:
    """One picture, without its keys in the storage. A job's walk is that of its first picture."""
    url = image_path(job_id, image.n)
    return {
        "id": f"job:{job_id}/{image.n}",
        "n": image.n,
        "url": url,
        "thumb_url": f"{url}?variant=thumb",
        "walk_url": f"{url}?variant=walk" if has_walk and image.n == 0 else None,
        "content_type": image.content_type,
        "width": image.width,
        "height": image.height,
        "num_bytes": image.num_bytes,
        "seed": image.seed,
        "sha256": image.sha256,
        "fingerprint": image.fingerprint,
        "rows": image.rows,
    }


def batch_document(batch: BatchRecord) -> dict[str, Any]:
    """How far a batch is."""
    path = batch_path(batch.id)
    return {
        "id": str(batch.id),
        "num_jobs": batch.num_jobs,
        "states": {state.value: num for state, num in batch.states.items()},
        "done": not any(batch.states.get(state) for state in LIVE_STATES),
        "created_at": timestamp(batch.created_at),
        "urls": {"self": path, "cancel": f"{path}/cancel", "jobs": f"/api/v1/jobs?batch={batch.id}"},
    }


def upload_document(upload: UploadRecord) -> dict[str, Any]:
    """One upload, without its key in the storage."""
    return {
        "id": str(upload.id),
        "width": upload.width,
        "height": upload.height,
        "num_bytes": upload.num_bytes,
        "content_type": "image/png",
        "created_at": timestamp(upload.created_at),
        "expires_at": timestamp(upload.expires_at),
    }


def models_document(catalog: Catalog, workers: Iterable[WorkerRecord]) -> dict[str, Any]:
    """Every model on offer, and the one that a request gets when it names none."""
    workers = tuple(workers)
    models = [model_document(entry, workers) for entry in catalog.models]
    return {"models": models, "default": catalog.default.name}


def model_document(entry: ModelEntry, workers: Iterable[WorkerRecord]) -> dict[str, Any]:
    """One model, and the workers that hold it. Where its weights are is the operator's business."""
    public = {"name", "title", "description", "family", "license", "license_url", "features"}
    loaded_on = [
        {"worker": worker.id, "device": worker.device, "state": worker.state.value}
        for worker in workers
        if entry.name in worker.models
    ]
    document = entry.model_dump(mode="json", include=public | {"defaults", "limits", "example_prompts"})
    return document | {"loras": list(entry.loras), "loaded_on": loaded_on}


def queue_document(lines: Iterable[LineRecord]) -> dict[str, Any]:
    """Every line, and all of them together."""
    lines = tuple(lines)
    oldest = [line.oldest_seconds for line in lines if line.oldest_seconds is not None]
    return {
        "queued": sum(line.queued for line in lines),
        "running": sum(line.running for line in lines),
        "oldest_seconds": max(oldest, default=None),
        "lines": [
            {
                "model": line.model,
                "priority": line.job_class.name.lower(),
                "queued": line.queued,
                "running": line.running,
                "oldest_seconds": line.oldest_seconds,
            }
            for line in lines
        ],
    }


def timestamp(moment: datetime | None) -> str | None:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None


def data_url(preview: Preview) -> str:
    """A preview inside a page or an event: it is small, and gone a moment later."""
    return f"data:image/webp;base64,{b64encode(preview.body).decode()}"
