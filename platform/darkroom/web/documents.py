"""The shapes that programs read: jobs, pictures and models as JSON. Knows addresses; asks nobody anything."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from darkroom.catalog import Catalog, ModelEntry
from darkroom.jobs import ImageRecord, JobRecord


def job_path(job_id: UUID) -> str:
    """Where a program finds the job."""
    return f"/api/v1/jobs/{job_id}"


def page_path(job_id: UUID) -> str:
    """Where a person finds the job."""
    return f"/jobs/{job_id}"


def image_path(job_id: UUID, n: int) -> str:
    """Where picture n of the job is."""
    return f"{job_path(job_id)}/images/{n}"


def job_document(
    job: JobRecord, *, position: int | None = None, progress: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One job. Addresses are relative to the host that was asked, so that they hold behind any proxy."""
    return {
        "id": str(job.id),
        "state": job.state.value,
        "model": job.model,
        "priority": job.job_class.name.lower(),
        "params": job.params.model_dump(mode="json"),
        "position": position,
        "progress": dict(progress) if progress else None,
        "attempt": job.attempt,
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "deadline_at": timestamp(job.deadline_at),
        "error": {"code": job.error_code, "message": job.error_message or ""} if job.error_code else None,
        "timings": dict(job.timings),
        "images": [image_document(job.id, image) for image in job.images],
        "retry_of": str(job.retry_of) if job.retry_of else None,
        "urls": {"self": job_path(job.id), "cancel": f"{job_path(job.id)}/cancel", "page": page_path(job.id)},
    }


def image_document(job_id: UUID, image: ImageRecord) -> dict[str, Any]:
    """One picture, without its keys in the storage."""
    url = image_path(job_id, image.n)
    return {
        "n": image.n,
        "url": url,
        "thumb_url": f"{url}?variant=thumb",
        "content_type": image.content_type,
        "width": image.width,
        "height": image.height,
        "num_bytes": image.num_bytes,
        "seed": image.seed,
        "sha256": image.sha256,
    }


def models_document(catalog: Catalog) -> dict[str, Any]:
    """Every model on offer, and the one that a request gets when it names none."""
    return {"models": [model_document(entry) for entry in catalog.models], "default": catalog.default.name}


def model_document(entry: ModelEntry) -> dict[str, Any]:
    """One model. Where its weights are is the operator's business."""
    public = {"name", "title", "description", "family", "license", "license_url"}
    return entry.model_dump(mode="json", include=public | {"defaults", "limits", "example_prompts"})


def timestamp(moment: datetime | None) -> str | None:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None
