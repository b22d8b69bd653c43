"""The native API, as JSON: jobs, batches, pictures, uploads, models, the queue, and the document of it all."""

from darkroom.web.answers import answer
from darkroom.web.api import batches, images, jobs, queue, uploads
from darkroom.web.queries import DEFAULT_PAGE, LARGEST_PAGE

BLUEPRINTS = (jobs.blueprint, batches.blueprint, images.blueprint, uploads.blueprint, queue.blueprint)

__all__ = ["BLUEPRINTS", "DEFAULT_PAGE", "LARGEST_PAGE", "answer"]
