"""The pages that people read, one module each. They work with JavaScript off.

A view reads HTTP, makes one call, writes HTTP; what a page says of a job is put into words in wording.py.
"""

from dataclasses import dataclass

from darkroom.web.identity import Rule, known
from darkroom.web.pages import admin, compare, form, gallery, job, keys, queue, recent, shared, theme

BLUEPRINTS = (
    form.blueprint,
    recent.blueprint,
    job.blueprint,
    shared.blueprint,
    compare.blueprint,
    gallery.blueprint,
    queue.blueprint,
    theme.blueprint,
    admin.blueprint,
    keys.blueprint,
)


@dataclass(frozen=True)
class Place:
    """A page that every other page leads to, for whom its rule lets in."""

    endpoint: str
    title: str
    rule: Rule = "read"


PLACES = (
    Place("form.show", "Develop"),
    Place("compare.show", "Compare"),
    Place("gallery.show", "Gallery"),
    Place("queue.show", "Queue"),
    Place("admin.show", "Admin", "admin"),
)

__all__ = ["BLUEPRINTS", "places"]


def places() -> tuple[Place, ...]:
    """What the header leads to. What asks for more than reading is shown to who has it."""
    identity = known()
    scopes = identity.scopes if identity else frozenset()
    return tuple(place for place in PLACES if place.rule == "read" or place.rule in scopes)
