"""Darkroom from Python: `Darkroom().generate("a red house")` returns pictures."""

from darkroom.client.darkroom import Darkroom
from darkroom.client.documents import Event, Image, Job, Model, Picture, Progress
from darkroom.errors import ClientError, JobFailed, JobUnfinished, RequestRefused

__all__ = [
    "ClientError",
    "Darkroom",
    "Event",
    "Image",
    "Job",
    "JobFailed",
    "JobUnfinished",
    "Model",
    "Picture",
    "Progress",
    "RequestRefused",
]
