"""The native API, as JSON: jobs, batches, pictures, uploads, models, the queue, webhooks, and the document of all."""

from darkroom.web.answers import answer
from darkroom.web.api import batches, images, jobs, png_info, queue, uploads, webhooks
from darkroom.web.queries import DEFAULT_PAGE, LARGEST_PAGE

BLUEPRINTS = (
    jobs.blueprint,
    batches.blueprint,
    images.blueprint,
    uploads.blueprint,
    png_info.blueprint,
    queue.blueprint,
    webhooks.blueprint,
)

__all__ = ["BLUEPRINTS", "DEFAULT_PAGE", "LARGEST_PAGE", "answer"]
